//! A page of a listing: entries in key order with their inode numbers.

use std::sync::Arc;
use std::time::{Instant, SystemTime};

use crate::listing::packed::{Packed, Told};
use crate::store::Key;

/// One page of a listing; never empty.
#[derive(Debug)]
pub struct Page {
    /// Index of the first entry in the whole listing.
    pub first: u64,
    /// When it was asked for: it shows the store as it was then or later.
    pub fetched: Instant,
    /// The entries in key order.
    pub(super) packed: Packed,
    /// Inode numbers: each of the first is that of the entry at its place, and those of the
    /// entries behind it count up from there.
    pub(super) numbers: Box<[(u32, u64)]>,
}

impl Page {
    /// Returns how many entries it has.
    #[expect(clippy::len_without_is_empty, reason = "it is never empty")]
    pub fn len(&self) -> u64 {
        self.packed.len() as u64
    }

    /// Returns the entry at a place.
    pub fn get(&self, at: usize) -> Option<Entry> {
        let (key, told) = self.packed.get(at)?;
        Some(self.entry(at, key, told))
    }

    /// Returns the entries from a place on.
    pub fn entries(&self, from: usize) -> impl Iterator<Item = Entry> + '_ {
        let mut walk = self.packed.walk(from);
        (from..).map_while(move |at| {
            let (key, told) = walk.advance()?;
            Some(self.entry(at, Key::new(key)?, told))
        })
    }

    fn entry(&self, at: usize, key: Key, told: Told) -> Entry {
        Entry {
            key,
            ino: self.ino(at),
            stored_size: told.stored_size,
            modified: told.modified,
        }
    }

    pub(super) fn ino(&self, at: usize) -> u64 {
        let run = self
            .numbers
            .partition_point(|(first, _)| *first as usize <= at);
        run.checked_sub(1)
            .and_then(|run| self.numbers.get(run))
            .map_or(0, |(first, ino)| ino + (at as u64 - u64::from(*first)))
    }
}

/// One record as listed.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The record's key.
    pub key: Key,
    /// Its inode number: they grow in listing order.
    pub ino: u64,
    /// Bytes as stored, where the store tells.
    pub stored_size: Option<u64>,
    /// Its time, where the store tells.
    pub modified: Option<SystemTime>,
}

pub(super) fn page_of(pages: &[Arc<Page>], index: u64) -> Option<Arc<Page>> {
    let after = pages.partition_point(|page| page.first <= index);
    let page = pages.get(after.checked_sub(1)?)?;
    (index < page.first + page.len()).then(|| Arc::clone(page))
}
