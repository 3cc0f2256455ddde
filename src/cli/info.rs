//! `kvfs info`.

use serde_json::{Map, Value, json};

use super::args::{GlobalArgs, InfoArgs};
use super::direct::{Direct, failure, key, shown};
use super::error::CliError;
use super::ls::timestamp;
use super::settings::Environment;
use super::ui::Ui;
use crate::base::text;
use crate::store::{ErrorKind, RecordMeta};

/// Tells what is known of a store, or of a record without fetching it.
///
/// # Errors
/// That the store or the record is not there, or cannot be asked about.
pub fn run(
    ui: Ui,
    args: &InfoArgs,
    global: GlobalArgs,
    environment: &Environment,
) -> Result<(), CliError> {
    let direct = Direct::open(&args.store, &args.access, global, environment)?;
    let facts = match &args.key {
        None => store(&direct),
        Some(typed) => record(&direct, typed)?,
    };
    if args.json {
        ui.json(&facts)?;
    } else {
        ui.data(lines(&facts))?;
    }
    Ok(())
}

fn store(direct: &Direct) -> Value {
    let info = direct.store.info();
    let mut facts = json!({ "store": direct.shown, "id": info.id });
    if let Some(name) = info.name {
        facts["name"] = name.into();
    }
    if let Some(modified) = info.modified {
        facts["modified"] = timestamp(modified).into();
    }
    if let Some(expires) = info.expires {
        facts["signature_expires"] = timestamp(expires).into();
    }
    facts
}

fn record(direct: &Direct, typed: &str) -> Result<Value, CliError> {
    let key = key(typed)?;
    let meta = direct
        .store
        .head(&key, direct.deadline())
        .map_err(|error| match error.kind() {
            ErrorKind::NotFound => {
                let message = format!("no record {} in {}", shown(&key), direct.shown);
                CliError::of(super::error::Kind::NotFound, message)
            }
            _ => failure(&format!("cannot ask about {}", shown(&key)), &error),
        })?;
    let mut facts = json!({ "key": key.as_str(), "size": meta.stored_size });
    add_meta(&mut facts, &meta);
    if let Some(url) = direct.store.record_url(&key) {
        facts["url"] = url.into();
    }
    Ok(facts)
}

/// Adds what a record's headers tell.
pub(super) fn add_meta(facts: &mut Value, meta: &RecordMeta) {
    let mut set = |name: &str, value: Option<&str>| {
        if let Some(value) = value {
            facts[name] = value.into();
        }
    };
    set("content_type", meta.content_type.as_deref());
    set("content_encoding", meta.encoding.header_value());
    set("etag", meta.etag.as_ref().map(|etag| etag.as_str()));
    set("modified", meta.modified().map(timestamp).as_deref());
}

/// Shows one fact a line.
fn lines(facts: &Value) -> String {
    let none = Map::new();
    let facts = facts.as_object().unwrap_or(&none);
    let width = facts.keys().map(String::len).max().unwrap_or(0);
    let lines: Vec<String> = facts
        .iter()
        .map(|(name, value)| {
            let value = match value {
                Value::String(text) => text::line(text).into_owned(),
                Value::Null => "unknown".into(),
                other => other.to_string(),
            };
            format!("{:width$}  {value}", name.replace('_', " "))
        })
        .collect();
    lines.join("\n")
}
