//! Names that this mount has made or removed since the store was listed.
//!
//! A listing shows the store as it was when it was begun or later. What this mount changed after
//! that is laid over it, until a listing is begun that is younger than the change.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsString;
use std::time::{Instant, SystemTime};

use crate::fs::types::Ino;
use crate::store::Key;

/// This many changes are remembered; then the listing is made again.
pub const MOST: usize = 20_000;

/// Which name.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Name {
    /// A record's.
    Record(Key),
    /// A scratch file's.
    Scratch(OsString),
}

/// What this mount knows of a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// It leads to this inode, with this size and time unless something newer is known.
    Present {
        /// The inode.
        ino: Ino,
        /// Content bytes.
        size: u64,
        /// The time that it shows.
        modified: SystemTime,
    },
    /// There is no such name.
    Absent,
}

/// The changes, in the order in which names were made.
#[derive(Debug, Default)]
pub struct Overlay {
    changes: HashMap<Name, (u64, Instant, Change)>,
    order: BTreeMap<u64, Name>,
    last: u64,
}

impl Overlay {
    /// Notes a change made just now.
    ///
    /// A name that stays keeps its place in the order, so that no directory being read shows it
    /// twice.
    pub fn set(&mut self, name: Name, at: Instant, change: Change) {
        let number = match self.changes.get(&name) {
            Some((number, _, Change::Present { .. })) if change != Change::Absent => *number,
            before => {
                if let Some((number, ..)) = before {
                    self.order.remove(number);
                }
                self.last += 1;
                self.last
            }
        };
        if change == Change::Absent {
            self.order.remove(&number);
        } else {
            self.order.insert(number, name.clone());
        }
        self.changes.insert(name, (number, at, change));
    }

    /// Forgets a name altogether.
    pub fn forget(&mut self, name: &Name) {
        if let Some((number, ..)) = self.changes.remove(name) {
            self.order.remove(&number);
        }
    }

    /// Returns what is known of a name that was changed at or after `since`.
    pub fn get(&self, name: &Name, since: Option<Instant>) -> Option<(Instant, Change)> {
        let (_, at, change) = self.changes.get(name)?;
        since
            .is_none_or(|since| *at >= since)
            .then_some((*at, *change))
    }

    /// Returns the first name that is present after place `after`, with its place.
    pub fn next(&self, after: u64) -> Option<(u64, Name, Change)> {
        let (number, name) = self.order.range(after + 1..).next()?;
        let (_, _, change) = self.changes.get(name)?;
        Some((*number, name.clone(), *change))
    }

    /// Drops what a listing begun at `started` shows itself, unless `pinned`.
    pub fn prune(&mut self, started: Instant, pinned: impl Fn(&Name, Change) -> bool) {
        let order = &mut self.order;
        self.changes.retain(|name, (number, at, change)| {
            let keep = *at >= started || pinned(name, *change);
            if !keep {
                order.remove(number);
            }
            keep
        });
    }

    /// Returns how many names are remembered.
    pub fn count(&self) -> usize {
        self.changes.len()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn name(text: &str) -> Name {
        Name::Record(Key::new(text).expect("a key"))
    }

    fn present(ino: u64) -> Change {
        Change::Present {
            ino: Ino(ino),
            size: 1,
            modified: SystemTime::UNIX_EPOCH,
        }
    }

    #[test]
    fn names_come_in_the_order_in_which_they_were_made() {
        let now = Instant::now();
        let mut overlay = Overlay::default();
        overlay.set(name("b"), now, present(2));
        overlay.set(name("a"), now, present(3));
        overlay.set(name("b"), now, present(2));
        overlay.set(name("c"), now, Change::Absent);
        let mut seen = Vec::new();
        let mut at = 0;
        while let Some((number, name, _)) = overlay.next(at) {
            at = number;
            seen.push(name);
        }
        assert_eq!(seen, [name("b"), name("a")]);
        overlay.set(name("b"), now, Change::Absent);
        assert_eq!(overlay.next(0).map(|found| found.1), Some(name("a")));
        overlay.set(name("b"), now, present(9));
        assert!(overlay.next(at).is_some(), "a new file has a new place");
    }

    #[test]
    fn a_younger_listing_tells_itself_what_was_changed_before() {
        let start = Instant::now();
        let mut overlay = Overlay::default();
        overlay.set(name("old"), start, present(2));
        overlay.set(name("pinned"), start, present(3));
        let later = start + Duration::from_secs(1);
        overlay.set(name("new"), later, Change::Absent);
        assert!(overlay.get(&name("old"), Some(later)).is_none());
        overlay.prune(later, |found, _| *found == name("pinned"));
        assert_eq!(overlay.count(), 2);
        assert!(overlay.get(&name("old"), None).is_none());
        assert_eq!(
            overlay.get(&name("new"), Some(later)),
            Some((later, Change::Absent))
        );
    }
}
