//! Opening the stores of `kvfs copy` and `kvfs diff`.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::args::{FilterArgs, StoreArgs};
use super::direct::cannot_open;
use super::error::CliError;
use super::mounted::Daemon;
use super::places;
use super::reference;
use super::settings::{Environment, open_config};
use super::ui::Ui;
use crate::copy::filter::Filter;
use crate::copy::run::Side;
use crate::metrics::Metrics;
use crate::mount::open;
use crate::store::reference::{RemoteRef, StoreRef};

/// A store that takes part.
#[derive(Debug)]
pub struct Opened {
    /// The store.
    pub side: Side,
    /// What it is, without secrets.
    pub shown: String,
    /// Where it is on this machine.
    pub folder: Option<PathBuf>,
    /// Identifies this store, under any account.
    pub scope: String,
    /// The longest that one operation may take.
    pub timeout: Duration,
}

/// Opens a store to read it.
///
/// # Errors
/// What is wrong with the words, the settings or the store.
pub fn source(
    ui: Ui,
    word: &str,
    access: &StoreArgs,
    environment: &Environment,
) -> Result<Opened, CliError> {
    let (word, mut found) = super::access_of(word, access.flags(), environment)?;
    found.status = access.status.clone().or(found.status);
    found.origin = access.origin.clone().or(found.origin);
    opened(ui, &word, &found, environment, false)
}

/// Opens a store to change it; makes its folder if it is missing.
///
/// # Errors
/// As [`source`].
pub fn target(
    ui: Ui,
    word: &str,
    access: &StoreArgs,
    environment: &Environment,
) -> Result<Opened, CliError> {
    let (word, found) = super::access_of(word, access.flags(), environment)?;
    opened(ui, &word, &found, environment, true)
}

fn opened(
    ui: Ui,
    word: &str,
    access: &StoreArgs,
    environment: &Environment,
    writable: bool,
) -> Result<Opened, CliError> {
    if let Some(place) = places::inside(Path::new(word)) {
        let state = Daemon::find(&place.mount_point, environment)?.state()?;
        let store = state["store"].as_str().unwrap_or("STORE");
        return Err(CliError::usage(format!(
            "{word} is a mount, which shows records as programs read them, not as they are stored"
        ))
        .hinted(format!("name the store itself: {store}")));
    }
    let mut reference = match reference::parse(&[word.to_owned()])? {
        // A word that is no id of the platform's: in the place of a target a folder to be made.
        StoreRef::Remote(remote @ RemoteRef::Id(_))
            if writable && remote.mistaken_id().is_some() =>
        {
            StoreRef::Directory(word.into())
        }
        reference => reference,
    };
    if let StoreRef::Directory(path) = &mut reference {
        if writable && !path.exists() {
            fs::create_dir_all(&*path).map_err(|error| {
                CliError::failed(format!("cannot make the folder {}", path.display()))
                    .caused_by(&error)
            })?;
            ui.say(format_args!("made the folder {}", path.display()));
        }
        *path = fs::canonicalize(&*path).unwrap_or_else(|_| path.clone());
    }
    let shown = reference.to_string();
    let is_records = matches!(reference, StoreRef::Records(_));
    let folder = match &reference {
        StoreRef::Directory(path) => Some(path.clone()),
        _ => None,
    };
    let config = open_config(access, environment, reference)?;
    let metrics = Arc::new(Metrics::default());
    let store = match writable {
        true => open::open_writable(&config, metrics),
        false => open::open(&config, metrics),
    }
    .map_err(|error| cannot_open(&shown, &error))?;
    if writable && !store.is_writable() {
        return Err(CliError::usage(format!("{shown} can only be read"))
            .hinted("a store that is opened by a link cannot be changed"));
    }
    let info = store.info();
    Ok(Opened {
        scope: match is_records {
            true => info.cache_scope,
            false => info.upload_scope,
        },
        side: Side {
            is_local: folder.is_some(),
            store,
        },
        shown,
        folder,
        timeout: config.deadline,
    })
}

/// Returns which keys take part.
///
/// # Errors
/// What is wrong with a pattern.
pub fn filter(args: &FilterArgs) -> Result<Filter, CliError> {
    Filter::new(args.prefix.as_deref(), &args.include, &args.exclude).map_err(CliError::usage)
}
