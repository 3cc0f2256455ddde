//! Reports files that are not in the store yet, to people and programs; shows the staging folder
//! from outside, whether its owners live or not.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::FOLDER;
use super::entry::{EntryId, Pending, Why};
use super::folder::{self, STORE_FILE, StoreFile};
use super::owner;
use crate::store::Key;

/// The longest file that tells which store a scope is of, in bytes.
const MAX_STORE_FILE: u64 = 64 << 10;

/// Where an upload stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// It waits for its turn, or for the next mount if its owner is dead.
    Waiting,
    /// It is being sent.
    Uploading,
    /// It failed for a passing reason and will be tried again.
    Retrying,
    /// The store refused it; it waits for a person.
    Kept,
    /// Its bytes or its description are not what was written.
    Damaged,
}

impl State {
    /// Returns whether it will be uploaded by itself.
    pub fn is_pending(self) -> bool {
        matches!(self, Self::Waiting | Self::Uploading | Self::Retrying)
    }
}

/// One upload.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Item {
    /// Its name.
    pub id: String,
    /// The record's key; `None` if that is not known any more.
    pub key: Option<String>,
    /// Its size in bytes.
    pub size: u64,
    /// When the file was closed.
    pub closed_at: Option<Timestamp>,
    /// Where it stands.
    pub state: State,
    /// Why it is not in the store.
    pub reason: Option<String>,
    /// How often it was tried in vain.
    pub attempts: u32,
    /// Whether it was refused because the record has changed in the store.
    #[serde(default)]
    pub conflict: bool,
    /// The living process that owns it.
    pub owner_pid: Option<u32>,
}

impl Item {
    /// Returns what is to be said of an entry.
    pub fn of(id: &EntryId, pending: &Pending, state: State, owner_pid: Option<u32>) -> Self {
        Self {
            id: id.to_string(),
            key: Some(pending.key.to_string()),
            size: pending.size,
            closed_at: Some(pending.closed_at),
            state,
            reason: match &pending.why {
                Why::WriteBack => None,
                Why::Failed { message, .. } => Some(message.clone()),
            },
            attempts: pending.attempts,
            conflict: pending.why.is_conflict(),
            owner_pid,
        }
    }

    /// Returns what is to be said of a damaged entry.
    pub fn damaged(id: &EntryId) -> Self {
        Self {
            id: id.to_string(),
            key: None,
            size: 0,
            closed_at: None,
            state: State::Damaged,
            reason: Some("its bytes or its description are damaged".into()),
            attempts: 0,
            conflict: false,
            owner_pid: None,
        }
    }

    /// Returns whether `wanted`, keys and ids, names an entry; nothing names all.
    pub fn is_named(wanted: &[String], id: &EntryId, key: &Key) -> bool {
        wanted.is_empty()
            || wanted
                .iter()
                .any(|name| name == id.as_str() || name == key.as_str())
    }
}

/// One store's part of a staging folder.
#[derive(Clone, Debug)]
pub struct Scope {
    /// Where it is.
    pub path: PathBuf,
    /// Its name below the staging folder.
    pub name: String,
    /// Which store it is of; `None` if that cannot be read.
    pub store: Option<StoreFile>,
    /// What is not in the store, the first closed first.
    pub items: Vec<Item>,
}

/// Returns all stores for which anything lies in the staging folder `dir`. Changes nothing.
///
/// # Errors
/// That the folder cannot be read; one that is not there has nothing in it.
pub fn scan(dir: &Path) -> io::Result<Vec<Scope>> {
    let root = dir.join(FOLDER);
    let found = match fs::read_dir(&root) {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut scopes = Vec::new();
    for entry in found {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            let scope = scan_scope(&entry.path())?;
            if !scope.items.is_empty() {
                scopes.push(scope);
            }
        }
    }
    scopes.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(scopes)
}

/// Returns what lies in the folder of one scope. Changes nothing.
///
/// # Errors
/// That it cannot be read.
pub fn scan_scope(path: &Path) -> io::Result<Scope> {
    let mut items: Vec<Item> = folder::damaged(path).iter().map(Item::damaged).collect();
    for folder in owner::owners(path)? {
        let name = folder.file_name().and_then(|name| name.to_str());
        let pid = name.and_then(owner::owner_pid);
        let alive = owner::is_alive(&folder)?;
        let contents = match owner::contents(&folder) {
            Ok(contents) => contents,
            // Its owner has just ended.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        for found in &contents.entries {
            let state = if found.pending.why.is_failed() {
                State::Kept
            } else {
                State::Waiting
            };
            let owner = pid.filter(|_| alive);
            items.push(Item::of(&found.id, &found.pending, state, owner));
        }
        // A living owner may just be removing them.
        if !alive {
            items.extend(contents.damaged.iter().map(|(id, why)| Item {
                reason: Some(why.clone()),
                ..Item::damaged(id)
            }));
        }
    }
    items.sort_by(|a, b| a.id.cmp(&b.id));
    let name = path.file_name().unwrap_or_default();
    Ok(Scope {
        path: path.to_owned(),
        name: name.to_string_lossy().into_owned(),
        store: read_store_file(path),
        items,
    })
}

fn read_store_file(scope: &Path) -> Option<StoreFile> {
    let file = owner::open_own(&scope.join(STORE_FILE)).ok()?;
    serde_json::from_reader(io::Read::take(file, MAX_STORE_FILE)).ok()
}
