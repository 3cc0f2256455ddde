//! The known stores of a folder, so that a request for one looks at no other, and one for a store
//! that does not exist looks at none.

use std::collections::HashMap;
use std::time::{Duration, Instant, SystemTime};

use super::DEFAULT;
use super::metadata::Identity;
use crate::server::catalog::{Lookup, StoreEntry};

/// How long the stores that were found are believed to be all, while the time of their folder does
/// not change: other programs may give a store another name without that.
const MOST_AGE: Duration = Duration::from_secs(1);

/// A change this close to a look may carry the same time as one before it.
const TICK: Duration = Duration::from_millis(20);

/// A store that was looked at.
#[derive(Clone, Debug)]
pub(super) struct Known {
    /// The version of the metadata file that `entry` was made from; `None` without one.
    pub(super) stamp: Option<Identity>,
    /// Device and inode of the folder.
    pub(super) place: (u64, u64),
    pub(super) entry: StoreEntry,
    /// In which order the stores were found: of two that claim one id, the first has it.
    number: u64,
}

/// The stores that were looked at, by the names of their folders.
#[derive(Debug, Default)]
pub(super) struct Stores {
    known: HashMap<String, Known>,
    looked: Option<Look>,
    next: u64,
}

/// A look at all folders.
#[derive(Clone, Copy, Debug)]
struct Look {
    /// Modification time of the folder of all stores; `None` if there is none.
    modified: Option<SystemTime>,
    began: Instant,
    /// Whether an unchanged modification time proves that no store was added.
    settled: bool,
}

impl Stores {
    pub(super) fn get(&self, folder: &str) -> Option<&Known> {
        self.known.get(folder)
    }

    pub(super) fn remove(&mut self, folder: &str) {
        self.known.remove(folder);
    }

    /// Keeps what was found out of a store.
    pub(super) fn insert(
        &mut self,
        folder: &str,
        stamp: Option<Identity>,
        place: (u64, u64),
        entry: StoreEntry,
    ) {
        let number = match self.known.get(folder) {
            Some(known) if known.place == place => known.number,
            _ => {
                self.next += 1;
                self.next
            }
        };
        let known = Known {
            stamp,
            place,
            entry,
            number,
        };
        self.known.insert(folder.to_owned(), known);
    }

    /// Returns the folder of the store that is meant; `owner` is the server's own account.
    pub(super) fn find(&self, lookup: Lookup<'_>, owner: &str) -> Option<String> {
        self.known
            .iter()
            .filter_map(|(folder, known)| {
                let rank = rank(folder, &known.entry, lookup, owner)?;
                Some(((rank, known.number), folder))
            })
            .min()
            .map(|(_, folder)| folder.clone())
    }

    /// Returns the folder of a store that was found earlier, unless it has become another.
    pub(super) fn folder_of(&self, entry: &StoreEntry) -> Option<String> {
        self.known
            .iter()
            .find(|(_, known)| std::sync::Arc::ptr_eq(&known.entry.store, &entry.store))
            .map(|(folder, _)| folder.clone())
    }

    /// Returns whether there are no stores but those that are known, as far as the time of their
    /// folder tells.
    pub(super) fn are_all(&self, modified: Option<SystemTime>) -> bool {
        self.looked.is_some_and(|look| {
            look.settled && look.modified == modified && look.began.elapsed() < MOST_AGE
        })
    }

    /// Returns whether all folders have been looked at once.
    pub(super) fn were_looked_at(&self) -> bool {
        self.looked.is_some()
    }

    /// Notes a look at all folders, which began then and found these.
    pub(super) fn looked(
        &mut self,
        modified: Option<SystemTime>,
        (began, wall): (Instant, SystemTime),
        found: &[String],
    ) {
        self.known
            .retain(|folder, _| found.binary_search(folder).is_ok());
        let settled = modified.is_none_or(|modified| {
            wall.duration_since(modified)
                .is_ok_and(|since| since > TICK)
        });
        self.looked = Some(Look {
            modified,
            began,
            settled,
        });
    }
}

/// Returns whether a store is meant, and how surely: less is surer.
pub(super) fn rank(
    folder: &str,
    entry: &StoreEntry,
    lookup: Lookup<'_>,
    owner: &str,
) -> Option<u8> {
    match lookup {
        Lookup::Id(id) if entry.id.eq_ignore_ascii_case(id) => Some(0),
        // What a program that names no store takes for its id. Accounts choose the names of folders:
        // no other is an id.
        Lookup::Id(id) => (id == DEFAULT && folder == DEFAULT && entry.owner == owner).then_some(1),
        Lookup::Name { owner, name } => {
            let named = entry.name.as_deref();
            (entry.owner == owner && named.unwrap_or(folder).eq_ignore_ascii_case(name))
                .then_some(0)
        }
    }
}
