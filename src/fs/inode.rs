//! Inode numbers and what the kernel holds of them.

use std::collections::HashMap;

use super::types::Ino;
use crate::cache::content::VersionId;
use crate::store::Key;

/// An inode that the kernel or an open handle refers to.
#[derive(Debug)]
pub struct Inode {
    /// The record.
    pub key: Key,
    /// References of the kernel: grows with every entry reply, shrinks by *forget*.
    pub lookups: u64,
    /// Open handles.
    pub opens: u32,
    /// The version whose pages the kernel may hold, and its exact size.
    ///
    /// INVARIANT: while `opens > 0`, every handle of this inode reads this version.
    pub version: Option<(VersionId, u64)>,
    /// Whether an open is telling the kernel of this version at the moment.
    ///
    /// INVARIANT: while set, that open is the only one, and the kernel has no pages that anybody
    /// reads: other opens wait, so that none is told to keep pages that are about to be dropped.
    pub settling: bool,
    /// Whether the name now belongs to another inode, because the record changed while this one
    /// was open.
    pub detached: bool,
    /// The size last told to the kernel.
    pub told_size: u64,
}

/// All inodes in use.
///
/// INVARIANT: `by_key` names, for a key, its one inode that is not detached.
#[derive(Debug)]
pub struct InodeTable {
    inodes: HashMap<Ino, Inode>,
    by_key: HashMap<Key, Ino>,
    next: u64,
}

impl Default for InodeTable {
    fn default() -> Self {
        Self {
            inodes: HashMap::new(),
            by_key: HashMap::new(),
            next: Ino::ROOT.0 + 1,
        }
    }
}

impl InodeTable {
    /// Returns a number that was never given out.
    pub fn fresh(&mut self) -> Ino {
        let ino = Ino(self.next);
        self.next += 1;
        ino
    }

    /// Returns the number of a key's inode: the one in use, else `listed` if that is not
    /// held by an older version, else a fresh one.
    pub fn number(&mut self, key: &Key, listed: Option<Ino>) -> Ino {
        if let Some(ino) = self.by_key.get(key) {
            return *ino;
        }
        match listed {
            Some(ino) if !self.inodes.contains_key(&ino) => ino,
            _ => self.fresh(),
        }
    }

    /// Counts a reference of the kernel to `ino`, which [`InodeTable::number`] gave for `key`.
    pub fn remember(&mut self, ino: Ino, key: &Key, told_size: u64) {
        let inode = self.inodes.entry(ino).or_insert_with(|| Inode {
            key: key.clone(),
            lookups: 0,
            opens: 0,
            version: None,
            settling: false,
            detached: false,
            told_size,
        });
        inode.lookups += 1;
        inode.told_size = told_size;
        if !inode.detached {
            self.by_key.insert(key.clone(), ino);
        }
    }

    /// Returns an inode in use.
    pub fn get(&self, ino: Ino) -> Option<&Inode> {
        self.inodes.get(&ino)
    }

    /// Returns an inode in use.
    pub fn get_mut(&mut self, ino: Ino) -> Option<&mut Inode> {
        self.inodes.get_mut(&ino)
    }

    /// Returns the inode that a key's name leads to.
    pub fn of_key(&self, key: &Key) -> Option<&Inode> {
        self.inodes.get(self.by_key.get(key)?)
    }

    /// Takes the name from an inode whose open handles must keep their version.
    pub fn detach(&mut self, ino: Ino) {
        if let Some(inode) = self.inodes.get_mut(&ino) {
            inode.detached = true;
            if self.by_key.get(&inode.key) == Some(&ino) {
                self.by_key.remove(&inode.key);
            }
        }
    }

    /// Takes back `lookups` references of the kernel.
    pub fn forget(&mut self, ino: Ino, lookups: u64) {
        if let Some(inode) = self.inodes.get_mut(&ino) {
            inode.lookups = inode.lookups.saturating_sub(lookups);
        }
        self.drop_unused(ino);
    }

    /// Takes back one open handle.
    pub fn closed(&mut self, ino: Ino) {
        if let Some(inode) = self.inodes.get_mut(&ino) {
            inode.opens = inode.opens.saturating_sub(1);
        }
        self.drop_unused(ino);
    }

    fn drop_unused(&mut self, ino: Ino) {
        if self
            .inodes
            .get(&ino)
            .is_some_and(|inode| inode.lookups == 0 && inode.opens == 0)
            && let Some(inode) = self.inodes.remove(&ino)
            && self.by_key.get(&inode.key) == Some(&ino)
        {
            self.by_key.remove(&inode.key);
        }
    }

    /// Returns how many inodes are in use.
    pub fn len(&self) -> usize {
        self.inodes.len()
    }

    /// Tells whether no inode is in use.
    pub fn is_empty(&self) -> bool {
        self.inodes.is_empty()
    }

    /// Panics unless the invariants hold. For tests.
    #[doc(hidden)]
    pub fn check_invariants(&self) {
        for (key, ino) in &self.by_key {
            assert!(
                self.inodes
                    .get(ino)
                    .is_some_and(|inode| !inode.detached && inode.key == *key),
                "{key} leads nowhere"
            );
        }
        for (ino, inode) in &self.inodes {
            assert!(inode.lookups > 0 || inode.opens > 0, "{ino:?} is unused");
            assert!(
                inode.detached || self.by_key.get(&inode.key) == Some(ino),
                "{ino:?} has no name"
            );
            assert!(ino.0 < self.next);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_table_holds_exactly_what_is_in_use(ops in proptest::collection::vec((0u8..5, 0usize..3, 0usize..4), 0..80)) {
            let keys: Vec<Key> = ["a", "b", "c"].iter().map(|text| Key::new(*text).expect("a key")).collect();
            let mut table = InodeTable::default();
            let mut held: Vec<Ino> = Vec::new();
            let mut open: Vec<Ino> = Vec::new();
            for (op, key, pick) in ops {
                match op {
                    0 => {
                        let ino = table.number(&keys[key], None);
                        table.remember(ino, &keys[key], 0);
                        held.push(ino);
                    }
                    1 if !held.is_empty() => {
                        let ino = held.swap_remove(pick % held.len());
                        table.forget(ino, 1);
                    }
                    2 if !held.is_empty() => {
                        let ino = held[pick % held.len()];
                        table.get_mut(ino).expect("held").opens += 1;
                        open.push(ino);
                    }
                    3 if !open.is_empty() => {
                        let ino = open.swap_remove(pick % open.len());
                        table.closed(ino);
                    }
                    4 if !held.is_empty() => table.detach(held[pick % held.len()]),
                    _ => {}
                }
                table.check_invariants();
                for ino in held.iter().chain(&open) {
                    prop_assert!(table.get(*ino).is_some());
                }
            }
        }
    }
}
