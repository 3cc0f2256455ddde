//! `kvfs info`.

use std::time::SystemTime;

use serde_json::{Map, Value, json};

use super::args::{GlobalArgs, InfoArgs};
use super::direct::{Direct, failure, key_fault, shown};
use super::error::CliError;
use super::ls::timestamp;
use super::mounted::Daemon;
use super::select::no_record;
use super::settings::Environment;
use super::ui::Ui;
use crate::base::text;
use crate::store::{ErrorKind, Key, RecordMeta};

/// Prints what is known of a store, or of a record without fetching it.
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
    let keys = direct.keys(args.key.as_slice())?;
    let facts = match keys.as_slice() {
        [] => store(&direct, environment)?,
        [key, ..] => record(&direct, key)?,
    };
    if args.json {
        ui.json(&facts)?;
    } else {
        ui.data(lines(&facts))?;
    }
    Ok(())
}

/// Returns what is known of a store; what is not known is null.
fn store(direct: &Direct, environment: &Environment) -> Result<Value, CliError> {
    if let Some(place) = &direct.mount {
        let state = Daemon::find(&place.mount_point, environment)?.state()?;
        return Ok(json!({
            "store": state["store"], "id": state["store_id"], "name": state["store_name"],
            "mount_point": state["mount_point"], "mode": state["mode"], "access": state["access"],
            "prefix": state["prefix"], "collection": state["collection"],
        }));
    }
    let info = direct.store.info();
    let mut facts = json!({
        "store": direct.shown, "id": info.id, "name": info.name, "owner": null,
        "created": null, "modified": info.modified.map(timestamp), "access": null, "bytes": null,
        "signature_expires": info.expires.map(timestamp),
        "writable": direct.store.is_writable(),
    });
    if let Some(told) = direct.described() {
        facts["owner"] = told.username.into();
        facts["created"] = told.created_at.into();
        facts["access"] = told.general_access.into();
        facts["bytes"] = told.stats.and_then(|stats| stats.storage_bytes).into();
    }
    Ok(facts)
}

fn record(direct: &Direct, key: &Key) -> Result<Value, CliError> {
    let meta = direct
        .store
        .head(key, direct.deadline())
        .map_err(|error| match error.kind() {
            ErrorKind::NotFound => match key_fault(key) {
                Some(fault) => no_record(key, &direct.shown).hinted(fault),
                None => no_record(key, &direct.shown),
            },
            _ => failure(&format!("cannot ask about {}", shown(key)), &error),
        })?;
    let mut facts = json!({ "key": key.as_str(), "size": meta.stored_size });
    add_meta(&mut facts, &meta, None);
    facts["url"] = direct.store.record_url(key).into();
    Ok(facts)
}

/// Adds what a record's headers tell; what they do not is null.
pub(super) fn add_meta(facts: &mut Value, meta: &RecordMeta, modified: Option<SystemTime>) {
    facts["content_type"] = meta.content_type.as_deref().into();
    facts["content_encoding"] = meta.encoding.header_value().into();
    facts["etag"] = meta.etag.as_ref().map(|etag| etag.as_str()).into();
    facts["modified"] = modified.or_else(|| meta.modified()).map(timestamp).into();
}

/// Shows one fact a line.
fn lines(facts: &Value) -> String {
    let none = Map::new();
    let facts = facts.as_object().unwrap_or(&none);
    let width = facts.keys().map(String::len).max().unwrap_or(0);
    let lines: Vec<String> = facts
        .iter()
        .filter(|(_, value)| !value.is_null())
        .map(|(name, value)| {
            let value = match value {
                Value::String(text) => text::line(text).into_owned(),
                other => other.to_string(),
            };
            format!("{:width$}  {value}", name.replace('_', " "))
        })
        .collect();
    lines.join("\n")
}
