//! Files that earlier mounts have left for a store and that no mount uploads: it is mounted read-only,
//! or with another staging folder.
//!
//! The state folder remembers which staging folders this user's mounts have had.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;
use serde_json::Value;

use super::settings::Environment;
use crate::base::folders::private_dir;
use crate::daemon::control::{self, Answer, Request};
use crate::daemon::registry::mount_point::quoted;
use crate::daemon::registry::{Entry, Registry};
use crate::staging::FOLDER;
use crate::staging::report::{self, State};

/// The file that remembers folders.
const REMEMBERED: &str = "staging-folders.json";
/// The most folders that it remembers.
const MOST: usize = 64;

/// What is left for a store in one staging folder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Left {
    /// The staging folder.
    pub staging_dir: PathBuf,
    /// Files that the next mount with that folder uploads.
    pub waiting: usize,
    /// Files that the store has refused.
    pub kept: usize,
}

impl Left {
    /// Returns what is to be said of it.
    pub fn message(&self) -> String {
        let files = match self.waiting + self.kept {
            1 => "1 file of an earlier mount is not".to_owned(),
            n => format!("{n} files of earlier mounts are not"),
        };
        let refused = match self.kept {
            0 => String::new(),
            n if self.waiting == 0 && n == 1 => ": the store has refused it".to_owned(),
            n if self.waiting == 0 => format!(": the store has refused all {n}"),
            n => format!(": the store has refused {n} of them"),
        };
        format!(
            "{files} in the store, but in {}{refused}",
            quoted(&self.staging_dir)
        )
    }

    /// Returns what a person can do about it.
    pub fn hint(&self) -> String {
        let dir = quoted(&self.staging_dir);
        format!("see them with: kvfs recover --staging-dir {dir}; with --upload it uploads them")
    }
}

/// Returns the staging folders that this user's mounts have had, as far as it is remembered.
pub fn folders(environment: &Environment) -> Vec<PathBuf> {
    let mut folders: Vec<PathBuf> = environment.staging_dir(None).into_iter().collect();
    if let Ok(state) = environment.state_dir() {
        // The usual one, where a variable names another.
        folders.push(state.join("staging"));
        folders.extend(remembered(&state));
    }
    let mut seen = Vec::new();
    folders.retain(|dir| match fs::canonicalize(dir) {
        Ok(real) if !seen.contains(&real) => {
            seen.push(real);
            true
        }
        _ => false,
    });
    folders
}

/// Remembers the staging folder of a mount.
pub fn remember(environment: &Environment, dir: &Path) {
    let Ok(state) = environment.state_dir() else {
        return;
    };
    if let Err(error) = add(&state, dir) {
        tracing::debug!(%error, "cannot remember the staging folder");
    }
}

fn remembered(state: &Path) -> Vec<PathBuf> {
    let text = fs::read(state.join(REMEMBERED)).unwrap_or_default();
    serde_json::from_slice(&text).unwrap_or_default()
}

fn add(state: &Path, dir: &Path) -> io::Result<()> {
    let mut folders = remembered(state);
    if dir == state.join("staging") || folders.last().is_some_and(|last| last == dir) {
        return Ok(());
    }
    folders.retain(|known| known != dir);
    folders.push(dir.to_owned());
    let many = folders.len().saturating_sub(MOST);
    folders.drain(..many);
    private_dir(state)?;
    let mut file = tempfile::NamedTempFile::new_in(state)?;
    file.write_all(&serde_json::to_vec(&folders)?)?;
    file.persist(state.join(REMEMBERED))
        .map_err(|error| error.error)?;
    Ok(())
}

/// Returns what is left for the store of a mount in this state, other than what that mount itself sees
/// to.
pub fn of(environment: &Environment, state: &Value) -> Vec<Left> {
    let Some(scope) = state["staging_scope"].as_str() else {
        return Vec::new();
    };
    let own = state["uploads"]["folder"].as_str().map(Path::new);
    let folders = folders(environment).into_iter();
    folders
        .filter_map(|dir| {
            let path = dir.join(FOLDER).join(scope);
            if own.is_some_and(|own| same(own, &path)) {
                return None;
            }
            let found = report::scan_scope(&path).ok()?;
            let items = found.items.iter();
            // What another mount has is its business.
            let dead = items.filter(|item| item.owner_pid.is_none());
            let count = |of: fn(State) -> bool| dead.clone().filter(|item| of(item.state)).count();
            let left = Left {
                staging_dir: dir,
                waiting: count(State::is_pending),
                kept: count(|state| state == State::Kept),
            };
            (left.waiting + left.kept > 0).then_some(left)
        })
        .collect()
}

fn same(one: &Path, other: &Path) -> bool {
    match (fs::canonicalize(one), fs::canonicalize(other)) {
        (Ok(one), Ok(other)) => one == other,
        _ => one == other,
    }
}

/// Asks a mount's daemon for its state, and returns what is left for its store.
pub fn at(
    environment: &Environment,
    registry: &Registry,
    mount_point: &Path,
    patience: Duration,
) -> Vec<Left> {
    let Some(daemon) = registry.find(mount_point).filter(Entry::is_alive) else {
        return Vec::new();
    };
    match control::ask(&daemon.control, &Request::Status, patience) {
        Ok(Answer::Done(state)) => of(environment, &state),
        _ => Vec::new(),
    }
}
