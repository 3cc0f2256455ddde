//! What the folder holds in all: files one by one, databases as wholes. Pure: evicting is the
//! caller's work.
//!
//! INVARIANT C4: files, databases and what is set aside never exceed the capacity, but for what was
//! found too much and is being evicted.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::PathBuf;

use super::database::Space;
use super::lru::LruBytes;

/// The account of a folder.
#[derive(Debug)]
pub(super) struct Index {
    /// Entries in files, by the path of the `.json` below the root. What databases take is set aside
    /// in it.
    pub(super) lru: LruBytes<PathBuf, Filed>,
    /// Databases, by their scopes.
    databases: BTreeMap<String, Space>,
    pub(super) scanned: bool,
    /// Entries with files that a thread is changing: one thread at a time, so that files and index
    /// agree.
    pub(super) busy: HashSet<PathBuf>,
    /// Entries that were removed before the folder had been scanned.
    pub(super) removed: HashSet<PathBuf>,
    /// Bytes published since others' entries were counted.
    pub(super) published: u64,
    pub(super) counting: bool,
}

/// An entry in files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Filed {
    /// The data file's name.
    pub(super) data: String,
    /// When it was last used, in milliseconds since 1970.
    pub(super) used: i64,
}

/// What must go.
#[derive(Debug, Default)]
pub(super) struct Victims {
    /// Files: the path of the `.json`, and the name of the data file.
    pub(super) files: Vec<(PathBuf, String)>,
    /// How many bytes of which scope's database.
    pub(super) rows: BTreeMap<String, u64>,
}

impl Victims {
    pub(super) fn is_empty(&self) -> bool {
        self.files.is_empty() && self.rows.is_empty()
    }

    pub(super) fn extend(&mut self, more: Self) {
        self.files.extend(more.files);
        for (scope, bytes) in more.rows {
            *self.rows.entry(scope).or_default() += bytes;
        }
    }
}

impl Index {
    pub(super) fn new(capacity: u64) -> Self {
        Self {
            lru: LruBytes::new(capacity),
            databases: BTreeMap::new(),
            scanned: false,
            busy: HashSet::new(),
            removed: HashSet::new(),
            published: 0,
            counting: false,
        }
    }

    /// Returns the bytes of all entries.
    pub(super) fn used_bytes(&self) -> u64 {
        self.lru.used() + self.database_bytes()
    }

    fn database_bytes(&self) -> u64 {
        self.databases.values().map(|space| space.bytes).sum()
    }

    /// Notes that an entry in files is used.
    pub(super) fn used(&mut self, path: &PathBuf) {
        if let Some(filed) = self.lru.get_mut(path) {
            filed.used = super::now_ms();
        }
    }

    /// Notes what a scope's database takes; returns what must go for it.
    pub(super) fn set_database(&mut self, scope: &str, space: Option<Space>) -> Victims {
        let before = self.databases.remove(scope).unwrap_or_default();
        self.lru.unreserve(before.bytes);
        if let Some(space) = space {
            self.lru.reserve_anyway(space.bytes);
            self.databases.insert(scope.to_owned(), space);
        }
        self.make_room(0).unwrap_or_default()
    }

    /// Returns the scopes that have a database.
    pub(super) fn scopes(&self) -> BTreeSet<String> {
        self.databases.keys().cloned().collect()
    }

    /// Returns what of `bytes` in a scope's database would find room in what is free there.
    pub(super) fn beyond_free(&self, scope: &str, bytes: u64) -> u64 {
        let free = self.databases.get(scope).map_or(0, |space| space.free);
        bytes.saturating_sub(free)
    }

    /// Returns whether `bytes` have room in an empty cache, beside what is set aside.
    fn fits(&self, bytes: u64) -> bool {
        let set_aside = self.lru.reserved().saturating_sub(self.database_bytes());
        set_aside.saturating_add(bytes) <= self.lru.capacity()
    }

    /// Chooses what must go so that `bytes` more have room, least recently used first; `None`, and
    /// nothing goes, when even an empty cache has no such room.
    pub(super) fn make_room(&mut self, bytes: u64) -> Option<Victims> {
        if !self.fits(bytes) {
            return None;
        }
        let mut victims = Victims::default();
        loop {
            let over = self.lru.overflow(bytes);
            if over == 0 {
                return Some(victims);
            }
            let rows = self
                .databases
                .iter_mut()
                .filter(|(_, space)| space.bytes > 0 && space.oldest < i64::MAX)
                .min_by_key(|(_, space)| space.oldest);
            let file = self.lru.oldest().map(|filed| filed.used);
            match (rows, file) {
                (Some((scope, space)), file) if file.is_none_or(|used| space.oldest <= used) => {
                    let goes = over.min(space.bytes);
                    space.bytes -= goes;
                    *victims.rows.entry(scope.clone()).or_default() += goes;
                    self.lru.unreserve(goes);
                }
                (_, Some(_)) => {
                    let (path, filed) = self.lru.pop()?;
                    victims.files.push((path, filed.data));
                }
                _ => return Some(victims),
            }
        }
    }

    /// Sets `bytes` aside for an entry to come; the same otherwise.
    pub(super) fn reserve(&mut self, bytes: u64) -> Option<Victims> {
        let victims = self.make_room(bytes)?;
        self.lru.reserve_anyway(bytes);
        Some(victims)
    }

    /// Adds an entry in files that was found, and returns what must go for it; that may be it.
    pub(super) fn enter(&mut self, path: PathBuf, filed: Filed, bytes: u64) -> Victims {
        let itself = (path.clone(), filed.data.clone());
        self.insert(path, filed, bytes).unwrap_or_else(|| Victims {
            files: vec![itself],
            ..Victims::default()
        })
    }

    /// Adds an entry in files, and returns what must go for it, one under the same path included;
    /// `None`, and nothing changes, when it does not fit even then.
    pub(super) fn insert(&mut self, path: PathBuf, filed: Filed, bytes: u64) -> Option<Victims> {
        if !self.fits(bytes) {
            return None;
        }
        let replaced = self.lru.remove(&path);
        let mut victims = self.make_room(bytes)?;
        let replaced = replaced.map(|old| (path.clone(), old.data));
        victims.files.extend(replaced);
        self.lru.insert(path, filed, bytes);
        Some(victims)
    }
}
