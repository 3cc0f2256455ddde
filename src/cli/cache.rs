//! `kvfs cache`: what is kept on disk of the stores that were read.

use std::path::{Path, PathBuf};

use serde_json::json;

use super::args::{CacheArgs, CacheClearArgs, CacheCommand, CacheInfoArgs};
use super::config_file::Value;
use super::defaults;
use super::error::{CliError, Kind};
use super::ls::timestamp;
use super::settings::Environment;
use super::ui::{Ui, table};
use crate::base::units::ByteSize;
use crate::disk::usage::{self, ScopeUsage};

/// Shows or empties the cache on disk.
///
/// # Errors
/// That the folder cannot be used, or holds nothing of a store that was named.
pub fn run(ui: Ui, args: &CacheArgs, environment: &Environment) -> Result<(), CliError> {
    match &args.command {
        CacheCommand::Info(args) => info(ui, args, environment),
        CacheCommand::Clear(args) => clear(ui, args, environment),
    }
}

/// Returns the folder, and what is in it.
fn scopes(
    given: Option<&Path>,
    environment: &Environment,
) -> Result<(PathBuf, Vec<ScopeUsage>), CliError> {
    let file = environment.config_file(None)?;
    let settings = defaults::settings(&file, None, Vec::new(), environment)?;
    let set = settings
        .iter()
        .find_map(|(setting, _)| match &setting.value {
            Value::Text(dir) if setting.name == "cache-dir" => Some(Path::new(dir)),
            _ => None,
        });
    let dir = environment.cache_dir(given.or(set))?;
    let scopes = usage::scopes(&dir).map_err(|error| {
        CliError::failed(format!("cannot read the cache folder {}", dir.display()))
            .caused_by(&error)
    })?;
    Ok((dir, scopes))
}

fn info(ui: Ui, args: &CacheInfoArgs, environment: &Environment) -> Result<(), CliError> {
    let (dir, scopes) = scopes(args.cache_dir.as_deref(), environment)?;
    let time = |scope: &ScopeUsage| scope.used.map(timestamp);
    if args.json {
        for scope in &scopes {
            ui.json_line(&json!({
                "store": scope.store, "contents": scope.contents, "bytes": scope.bytes,
                "used": time(scope), "folder": dir,
            }))?;
        }
        return Ok(());
    }
    let total = scopes.iter().map(|scope| scope.bytes).sum();
    ui.data(format!("{}: {}", dir.display(), ByteSize(total)))?;
    let rows: Vec<Vec<String>> = scopes
        .iter()
        .map(|scope| {
            vec![
                scope.store.clone().unwrap_or_else(|| "-".to_owned()),
                scope.contents.to_string(),
                ByteSize(scope.bytes).to_string(),
                time(scope).unwrap_or_else(|| "-".to_owned()),
            ]
        })
        .collect();
    if !rows.is_empty() {
        ui.data(table(&["STORE", "CONTENTS", "SIZE", "LAST USED"], &rows))?;
    }
    Ok(())
}

fn clear(ui: Ui, args: &CacheClearArgs, environment: &Environment) -> Result<(), CliError> {
    let (dir, scopes) = scopes(args.cache_dir.as_deref(), environment)?;
    let is_of = |scope: &ScopeUsage, id: &String| scope.store.as_ref() == Some(id);
    for id in &args.stores {
        if !scopes.iter().any(|scope| is_of(scope, id)) {
            let said = format!("nothing of a store {id} is in {}", dir.display());
            return Err(CliError::of(Kind::NotFound, said)
                .hinted("see what is there with: kvfs cache info"));
        }
    }
    let mut bytes = 0;
    for scope in &scopes {
        if args.stores.is_empty() || args.stores.iter().any(|id| is_of(scope, id)) {
            usage::clear(scope).map_err(|error| {
                CliError::failed(format!("cannot empty the cache folder {}", dir.display()))
                    .caused_by(&error)
            })?;
            bytes += scope.bytes;
        }
    }
    ui.say(format_args!(
        "removed {} from {}",
        ByteSize(bytes),
        dir.display()
    ));
    Ok(())
}
