//! `kvfs config`.

use clap::Arg;
use serde_json::{Map, json};

use super::args::ConfigArgs;
use super::config_file::{ConfigFile, Setting, TOKEN, Value};
use super::defaults::{self, From};
use super::error::CliError;
use super::options;
use super::settings::Environment;
use super::ui::{Ui, table};
use crate::apify::http::PLATFORM_HOST;
use crate::base::redact::bare;
use crate::base::text;

/// What stands for a secret.
const HIDDEN: &str = "(hidden)";

/// An option with its value.
#[derive(Debug)]
struct Row {
    name: String,
    value: Option<String>,
    from: String,
}

/// Shows what holds for a mount without flags, and where each setting comes from.
///
/// # Errors
/// What is wrong with the settings file or the environment.
pub fn run(ui: Ui, args: &ConfigArgs, environment: &Environment) -> Result<(), CliError> {
    let file = environment.config_file(args.config.as_deref())?;
    let name = match args.store.as_deref().map(|typed| typed.strip_prefix('@')) {
        Some(None) => {
            return Err(CliError::usage("a named store is written @NAME")
                .hinted("any other store has the settings that kvfs config shows without it"));
        }
        Some(name) => name,
        None => None,
    };
    let rows = rows(&file, name, environment)?;
    if args.json {
        return Ok(ui.data(as_json(&file, &rows))?);
    }
    let there = if file.found { "" } else { " (not there)" };
    ui.data(format_args!(
        "settings file: {}{there}",
        file.path.display()
    ))?;
    let header = ["SETTING", "FROM", "VALUE"];
    let cells: Vec<Vec<String>> = rows
        .into_iter()
        .map(|row| {
            let dash = |text: String| if text.is_empty() { "-".into() } else { text };
            // Last, for it may be long.
            let value = dash(row.value.unwrap_or_default());
            vec![row.name, dash(row.from), value]
        })
        .collect();
    ui.data(table(&header, &cells))?;
    if name.is_none() {
        for (name, named) in &file.stores {
            ui.data(format_args!("@{name}: {}", shown_store(&named.store)))?;
        }
    }
    Ok(())
}

/// Returns every setting with its value, in the order of the help, for a report.
///
/// # Errors
/// As [`run`].
pub fn settings(
    environment: &Environment,
    file: &ConfigFile,
) -> Result<serde_json::Value, CliError> {
    Ok(as_value(file, &rows(file, None, environment)?))
}

fn rows(
    file: &ConfigFile,
    name: Option<&str>,
    environment: &Environment,
) -> Result<Vec<Row>, CliError> {
    let mut rows = Vec::new();
    if let Some(name) = name {
        rows.push(Row {
            name: "store".into(),
            value: Some(shown_store(&file.named(name)?.store)),
            from: format!("[stores.{name}]"),
        });
    }
    let chosen = defaults::settings(file, name, Vec::new(), environment)?;
    rows.push(token(&chosen, environment));
    let command = options::mount_command();
    for argument in options::all(&command) {
        if argument.get_long() != Some("config") {
            rows.push(row(argument, &chosen, environment)?);
        }
    }
    Ok(rows)
}

fn token(chosen: &[(Setting, From)], environment: &Environment) -> Row {
    let in_file = chosen.iter().find(|(setting, _)| setting.name == TOKEN);
    let file_named = chosen
        .iter()
        .any(|(setting, _)| setting.name == "token-file");
    let login = environment.cli_login();
    let (value, from) = match (in_file, environment.variable(TOKEN), login) {
        (Some((_, from)), ..) => (Some(HIDDEN), place(from)),
        _ if file_named => (Some(HIDDEN), "token-file".to_owned()),
        (None, Some(variable), _) => (Some(HIDDEN), variable.to_owned()),
        (None, None, Some(_)) => (Some(HIDDEN), "apify login".to_owned()),
        (None, None, None) => (None, String::new()),
    };
    Row {
        name: TOKEN.to_owned(),
        value: value.map(str::to_owned),
        from,
    }
}

fn row(
    argument: &Arg,
    chosen: &[(Setting, From)],
    environment: &Environment,
) -> Result<Row, CliError> {
    let name = argument.get_long().unwrap_or_default();
    let found = chosen.iter().find(|(setting, _)| setting.name == name);
    let variable = environment
        .variable(name)
        .filter(|_| matches!(name, "api-url" | "signature" | "staging-dir"));
    let (value, from) = match (found, variable) {
        (Some((setting, from)), _) => (Some(shown(setting)), place(from)),
        (None, Some(variable)) => {
            let value = match name {
                "api-url" => environment.api_url()?.map(|url| bare(&url)),
                "staging-dir" => Some(environment.staging_dir(None)?.display().to_string()),
                _ => None,
            };
            (
                Some(value.unwrap_or_else(|| HIDDEN.into())),
                variable.into(),
            )
        }
        (None, None) => match default(argument, environment) {
            Some(value) => (Some(value), "default".into()),
            None => (None, String::new()),
        },
    };
    Ok(Row {
        name: name.to_owned(),
        value,
        from,
    })
}

/// Returns the default, which the help tells: `[default: 10s]`.
fn default(argument: &Arg, environment: &Environment) -> Option<String> {
    match argument.get_long() {
        Some("api-url") => return Some(format!("https://{PLATFORM_HOST}")),
        Some("cache-dir") => return Some(environment.cache_dir(None).ok()?.display().to_string()),
        Some("log-file") => return Some(environment.log_dir().ok()?.display().to_string() + "/"),
        Some("staging-dir") => {
            return Some(environment.staging_dir(None).ok()?.display().to_string());
        }
        _ if options::is_switch(argument) => return Some("false".to_owned()),
        _ => {}
    }
    let help = argument.get_help()?.to_string();
    let (_, default) = help.split_once("[default: ")?;
    Some(default.split_once(']')?.0.to_owned())
}

fn shown(setting: &Setting) -> String {
    match &setting.value {
        Value::Switch(on) => on.to_string(),
        Value::Text(text) => match url::Url::parse(text) {
            Ok(url) if url.has_host() => bare(&url),
            _ => text.clone(),
        },
        Value::Secret(_) => HIDDEN.to_owned(),
    }
}

fn shown_store(words: &[String]) -> String {
    match super::reference::parse(words) {
        Ok(reference) => reference.to_string(),
        Err(_) => "(not a store)".to_owned(),
    }
}

fn place(from: &From) -> String {
    match from {
        From::Store(name) => format!("[stores.{name}]"),
        From::Variable(name) => name.clone(),
        From::Defaults => "[defaults]".to_owned(),
    }
}

fn as_json(file: &ConfigFile, rows: &[Row]) -> String {
    let text = serde_json::to_string_pretty(&as_value(file, rows)).unwrap_or_default();
    text::json(&text).into_owned()
}

fn as_value(file: &ConfigFile, rows: &[Row]) -> serde_json::Value {
    let settings: Map<String, serde_json::Value> = rows
        .iter()
        .map(|row| {
            let from = Some(&row.from).filter(|from| !from.is_empty());
            (
                row.name.clone(),
                json!({ "value": row.value, "from": from }),
            )
        })
        .collect();
    let stores: Map<String, serde_json::Value> = file
        .stores
        .iter()
        .map(|(name, named)| (name.clone(), shown_store(&named.store).into()))
        .collect();
    json!({
        "file": file.path.to_string_lossy(),
        "found": file.found,
        "settings": settings,
        "stores": stores,
    })
}
