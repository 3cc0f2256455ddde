//! The inodes that are in use.
//!
//! A listing of a million records makes a million of these, all with numbers in a row: they lie
//! in chunks by number, and keys are indexed without a copy.

use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;

use hashbrown::HashTable;

use super::inode::Inode;
use super::types::Ino;
use crate::base::caller;
use crate::store::Key;

/// Inodes of successive numbers.
type Chunk = [Option<Inode>; CHUNK];
/// Numbers in a chunk.
const CHUNK: usize = 64;

/// All inodes in use.
///
/// INVARIANT: `by_key` names, for a key, its one inode that is not detached.
#[derive(Debug)]
pub struct InodeTable {
    /// By number divided by [`CHUNK`], with how many are in use; none is empty.
    chunks: HashMap<u64, (usize, Box<Chunk>)>,
    by_key: HashTable<Ino>,
    hasher: RandomState,
    len: usize,
    next: u64,
}

impl Default for InodeTable {
    fn default() -> Self {
        Self {
            chunks: HashMap::new(),
            by_key: HashTable::new(),
            hasher: RandomState::new(),
            len: 0,
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
        if let Some(ino) = self.ino_of(key.as_str()) {
            return ino;
        }
        match listed {
            Some(ino) if self.get(ino).is_none() => ino,
            _ => self.fresh(),
        }
    }

    /// Counts a reference of the kernel to `ino`, which [`InodeTable::number`] gave for `key`.
    pub fn remember(&mut self, ino: Ino, key: &Key, told_size: u64) {
        if self.get(ino).is_none() {
            self.place_new(ino, key, told_size);
        }
        let Some(inode) = self.get_mut(ino) else {
            return;
        };
        inode.lookups += 1;
        inode.told_name();
        inode.tell_size(told_size);
        let is_named = !inode.detached;
        if is_named {
            self.name(ino, key);
        }
    }

    fn place_new(&mut self, ino: Ino, key: &Key, told_size: u64) {
        let (chunk, at) = place(ino);
        let (used, chunk) = self
            .chunks
            .entry(chunk)
            .or_insert_with(|| (0, Box::new([const { None }; CHUNK])));
        let slot = &mut chunk[at];
        if slot.is_none() {
            *used += 1;
            self.len += 1;
        }
        *slot = Some(Inode::new(key.clone(), told_size));
    }

    /// Makes a key's name lead to an inode.
    fn name(&mut self, ino: Ino, key: &Key) {
        if self.ino_of(key.as_str()) == Some(ino) {
            return;
        }
        self.unname(key);
        let hash = self.hasher.hash_one(key.as_str());
        let (chunks, hasher) = (&self.chunks, &self.hasher);
        self.by_key.insert_unique(hash, ino, |ino| {
            hasher.hash_one(key_at(chunks, *ino).unwrap_or_default())
        });
    }

    /// Counts a reference of the kernel to an inode of a file that was made here; `named` unless
    /// no record's name leads to it.
    pub fn add(&mut self, ino: Ino, key: &Key, named: bool) {
        let told_size = match self.get(ino) {
            Some(inode) => inode.told_size,
            None => {
                self.place_new(ino, key, 0);
                if let Some(inode) = self.get_mut(ino) {
                    inode.detached = !named;
                }
                0
            }
        };
        self.remember(ino, key, told_size);
    }

    /// Gives an inode a record's name, which no other may have.
    pub fn rename(&mut self, ino: Ino, key: &Key) {
        let Some(inode) = self.get_mut(ino) else {
            return;
        };
        let before = inode.key.clone();
        if self.ino_of(before.as_str()) == Some(ino) {
            self.unname(&before);
        }
        if let Some(inode) = self.get_mut(ino) {
            inode.key = key.clone();
            inode.detached = false;
            inode.superseded = false;
        }
        self.name(ino, key);
    }

    /// Takes a record's name from whichever inode has it: the record is gone, or another file's. Notes when,
    /// and whether the kernel learns that.
    pub fn lose_name(&mut self, key: &Key) {
        self.take_name(key, true);
    }

    /// Takes a record's name from its inode; what is written to it is for the store all the same.
    pub fn detach_name(&mut self, key: &Key) {
        self.take_name(key, false);
    }

    fn take_name(&mut self, key: &Key, gone: bool) {
        if let Some(ino) = self.unname(key)
            && let Some(inode) = self.get_mut(ino)
        {
            inode.detached = true;
            inode.superseded = false;
            inode.gone |= gone;
            if gone {
                inode.moves(caller::claim());
            }
        }
    }

    /// Returns an inode in use.
    pub fn get(&self, ino: Ino) -> Option<&Inode> {
        let (chunk, at) = place(ino);
        self.chunks.get(&chunk)?.1[at].as_ref()
    }

    /// Returns an inode in use.
    pub fn get_mut(&mut self, ino: Ino) -> Option<&mut Inode> {
        let (chunk, at) = place(ino);
        self.chunks.get_mut(&chunk)?.1[at].as_mut()
    }

    /// Returns the number that a key's name leads to.
    pub fn ino_of(&self, key: &str) -> Option<Ino> {
        let hash = self.hasher.hash_one(key);
        let is_it = |ino: &Ino| key_at(&self.chunks, *ino) == Some(key);
        self.by_key.find(hash, is_it).copied()
    }

    /// Returns the inode that a key's name leads to.
    #[cfg(feature = "testing")]
    pub fn of_key(&self, key: &Key) -> Option<&Inode> {
        self.get(self.ino_of(key.as_str())?)
    }

    /// Takes the name from whatever inode has it.
    fn unname(&mut self, key: &Key) -> Option<Ino> {
        let hash = self.hasher.hash_one(key.as_str());
        let chunks = &self.chunks;
        let is_it = |ino: &Ino| key_at(chunks, *ino) == Some(key.as_str());
        let entry = self.by_key.find_entry(hash, is_it).ok()?;
        Some(entry.remove().0)
    }

    /// Takes the name from an inode; its open handles must keep their version.
    pub fn detach(&mut self, ino: Ino) {
        if let Some(inode) = self.get_mut(ino) {
            inode.superseded |= !inode.detached;
            inode.detached = true;
            let key = inode.key.clone();
            if self.ino_of(key.as_str()) == Some(ino) {
                self.unname(&key);
            }
        }
    }

    /// Takes back `lookups` references of the kernel.
    pub fn forget(&mut self, ino: Ino, lookups: u64) {
        if let Some(inode) = self.get_mut(ino) {
            inode.lookups = inode.lookups.saturating_sub(lookups);
        }
        self.drop_unused(ino);
    }

    /// Takes back one open handle; returns how many are left.
    pub fn closed(&mut self, ino: Ino) -> u32 {
        let mut left = 0;
        if let Some(inode) = self.get_mut(ino) {
            inode.opens = inode.opens.saturating_sub(1);
            left = inode.opens;
        }
        self.drop_unused(ino);
        left
    }

    fn drop_unused(&mut self, ino: Ino) {
        let unused = self
            .get(ino)
            .filter(|inode| inode.lookups == 0 && inode.opens == 0)
            .map(|inode| (inode.key.clone(), inode.detached));
        let Some((key, detached)) = unused else {
            return;
        };
        if !detached && self.ino_of(key.as_str()) == Some(ino) {
            self.unname(&key);
        }
        let (number, at) = place(ino);
        if let Some((used, chunk)) = self.chunks.get_mut(&number) {
            chunk[at] = None;
            self.len -= 1;
            *used -= 1;
            if *used == 0 {
                self.chunks.remove(&number);
            }
        }
        // Both give back what a forgotten listing of a million took.
        if self.len * 4 < self.by_key.capacity() && self.by_key.capacity() > 1024 {
            let (chunks, hasher) = (&self.chunks, &self.hasher);
            self.by_key.shrink_to(self.len * 2, |ino| {
                hasher.hash_one(key_at(chunks, *ino).unwrap_or_default())
            });
            self.chunks.shrink_to_fit();
        }
    }

    /// Returns all inodes in use, in no order.
    pub fn all(&self) -> impl Iterator<Item = (Ino, &Inode)> {
        self.chunks.iter().flat_map(|(number, (_, chunk))| {
            let inodes = chunk.iter().enumerate();
            inodes.filter_map(move |(at, inode)| {
                Some((Ino(number * CHUNK as u64 + at as u64), inode.as_ref()?))
            })
        })
    }

    /// Returns how many inodes are in use.
    pub fn count(&self) -> usize {
        self.len
    }

    /// Returns whether no inode is in use.
    #[cfg(feature = "testing")]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Panics unless the invariants hold. For tests.
    #[cfg(feature = "testing")]
    #[doc(hidden)]
    pub fn check_invariants(&self) {
        for ino in &self.by_key {
            assert!(
                self.get(*ino).is_some_and(
                    |inode| !inode.detached && self.ino_of(inode.key.as_str()) == Some(*ino)
                ),
                "{ino:?} is named and not there"
            );
        }
        let all = self.chunks.iter().flat_map(|(number, (used, chunk))| {
            let inodes = chunk.iter().enumerate();
            let inodes = inodes.filter_map(move |(at, inode)| {
                Some((Ino(number * CHUNK as u64 + at as u64), inode.as_ref()?))
            });
            assert!(*used > 0 && inodes.clone().count() == *used);
            inodes
        });
        assert_eq!(all.clone().count(), self.len);
        for (ino, inode) in all {
            assert!(inode.lookups > 0 || inode.opens > 0, "{ino:?} is unused");
            assert!(
                inode.detached || self.ino_of(inode.key.as_str()) == Some(ino),
                "{ino:?} has no name"
            );
            assert!(ino.0 < self.next);
        }
    }
}

/// Returns in which chunk a number is, and where.
fn place(ino: Ino) -> (u64, usize) {
    (ino.0 / CHUNK as u64, (ino.0 % CHUNK as u64) as usize)
}

fn key_at(chunks: &HashMap<u64, (usize, Box<Chunk>)>, ino: Ino) -> Option<&str> {
    let (chunk, at) = place(ino);
    Some(chunks.get(&chunk)?.1[at].as_ref()?.key.as_str())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_listing_of_a_million_takes_little() {
        assert!(size_of::<Option<Inode>>() <= 56);
    }

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
