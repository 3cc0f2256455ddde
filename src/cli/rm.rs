//! `kvfs rm`.

use std::path::Path;

use serde_json::json;

use super::args::{GlobalArgs, RmArgs};
use super::direct::{Direct, failure, key_fault, shown};
use super::error::{CliError, Kind};
use super::places;
use super::select::{Wanted, check_patterns, no_match};
use super::settings::Environment;
use super::ui::Ui;
use crate::store::{ErrorKind, Key};

/// What became of a record.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    Deleted,
    WouldBeDeleted,
    WasNotThere,
}

/// Deletes records.
///
/// # Errors
/// That one cannot be deleted, or was not there; those before it have been deleted.
pub fn run(
    ui: Ui,
    args: &RmArgs,
    global: GlobalArgs,
    environment: &Environment,
) -> Result<(), CliError> {
    let which = || {
        CliError::usage("name the records: by keys, patterns or --prefix")
            .hinted("to delete the whole store: kvfs stores remove")
    };
    let is_whole = args.keys.is_empty() && args.prefix.is_none();
    if is_whole && places::inside(Path::new(&args.store)).is_none() {
        return Err(which());
    }
    check_patterns(&args.keys)?;
    let direct = Direct::open_to_delete(&args.store, &args.access, global, environment)?;
    let keys = direct.keys(&args.keys)?;
    if keys.is_empty() && args.prefix.is_none() {
        return Err(which());
    }
    let wanted = Wanted::new(keys, args.prefix.as_deref());
    let mut missing = Vec::new();
    for key in &wanted.named {
        if remove(ui, args, &direct, key, false)? == Fate::WasNotThere {
            missing.push(key);
        }
    }
    // As they are listed: there may be more of them than could be remembered.
    let unmatched = wanted.each(&direct, &mut |item| {
        remove(ui, args, &direct, &item.key, true).map(drop)
    })?;
    if args.force {
        return Ok(());
    }
    if !unmatched.is_empty() {
        return Err(no_match(&unmatched, &direct.shown));
    }
    let Some(first) = missing.first() else {
        return Ok(());
    };
    let more = match missing.len() - 1 {
        0 => String::new(),
        n => format!(", nor {n} others"),
    };
    let error = CliError::of(
        Kind::NotFound,
        format!("{} was not there{more}", shown(first)),
    );
    Err(match key_fault(first) {
        Some(fault) => error.hinted(fault),
        None => error.hinted("with --force that is no failure"),
    })
}

/// Deletes one record. The API says nothing of whether it was there, so it is asked first.
fn remove(
    ui: Ui,
    args: &RmArgs,
    direct: &Direct,
    key: &Key,
    is_listed: bool,
) -> Result<Fate, CliError> {
    let failed = |error| failure(&format!("cannot delete {}", shown(key)), &error);
    let is_there = is_listed
        || match direct.store.head(key, direct.deadline()) {
            Ok(_) => true,
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::InvalidKey) => {
                false
            }
            Err(error) => return Err(failed(error)),
        };
    let fate = match (is_there, args.dry_run) {
        (false, _) => Fate::WasNotThere,
        (true, true) => Fate::WouldBeDeleted,
        (true, false) => {
            direct
                .store
                .delete(key, direct.deadline())
                .map_err(failed)?;
            Fate::Deleted
        }
    };
    let told = match fate {
        Fate::Deleted => "deleted",
        Fate::WouldBeDeleted => "would delete",
        Fate::WasNotThere => "was not there",
    };
    if args.json {
        let fate = told.replace(' ', "_");
        ui.data(json!({ "key": key.as_str(), "result": fate }))?;
    } else if fate == Fate::WasNotThere {
        if args.force {
            ui.say(format_args!("{} was not there", shown(key)));
        }
    } else if args.dry_run {
        ui.data(format_args!("{told} {}", shown(key)))?;
    } else {
        ui.say(format_args!("{told} {}", shown(key)));
    }
    Ok(fate)
}
