//! Brings a record into the cache: the disk's, else memory.

use std::sync::Arc;
use std::time::Duration;

use super::content::{Content, Data};
use super::records::{Need, Peek, Records};
use crate::base::clock::{Deadline, Wait};
use crate::base::units::MIB;
use crate::store::Key;
use crate::store::wait::Result;
use crate::transfer::download::Size;

/// Bytes from one look at a download to the next.
const STEP: u64 = MIB;

/// What became of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Warmed {
    /// It was cached and fresh, with this many bytes.
    Cached(u64),
    /// The store was asked; this many bytes are in the cache.
    Asked(u64),
    /// The cache cannot hold it.
    Unfit,
}

impl Records {
    /// Returns how many bytes the cache can hold that [`Records::warm`] fills.
    pub fn capacity(&self) -> u64 {
        match self.disk() {
            Some(disk) => disk.capacity(),
            None => self.config().memory_capacity,
        }
    }

    /// Returns the room that a content of `bytes` bytes takes in it.
    pub fn cost(&self, bytes: u64) -> u64 {
        match self.disk() {
            Some(disk) => disk.cost(bytes),
            None => bytes.saturating_add(super::records::MEMORY_OVERHEAD),
        }
    }

    /// Makes sure that a record is in the cache, in its current version. `patience` bounds each
    /// wait; `is_over` says whether it is not wanted any more.
    ///
    /// # Errors
    /// Those of the store.
    pub fn warm(
        self: &Arc<Self>,
        key: &Key,
        patience: Duration,
        is_over: &dyn Fn() -> bool,
    ) -> Result<Warmed> {
        if let Some(size) = self.kept_size(key) {
            return Ok(Warmed::Cached(size));
        }
        let wait = || Wait::Until(Deadline::after(patience));
        let (_, content) = self.resolve(key, Need::Warm, wait())?;
        let Some(content) = content else {
            return Ok(Warmed::Unfit);
        };
        match &content.data {
            Data::Streamed(_) => Ok(Warmed::Unfit),
            Data::File(kept) => Ok(Warmed::Asked(kept.size)),
            Data::Staged(_, size) => Ok(Warmed::Asked(*size)),
            Data::Memory(bytes) => {
                if self.disk().is_some_and(|disk| !disk.contains(key)) {
                    self.write_behind(&content);
                    // The disk sets the pace: what its queue cannot take would be lost.
                    self.finish_writing(Deadline::after(patience));
                }
                Ok(Warmed::Asked(bytes.len() as u64))
            }
            Data::Download(_) => self.pull(&content, &wait, is_over),
        }
    }

    /// Reads a download to its end, which runs only a little ahead of its readers.
    fn pull(
        self: &Arc<Self>,
        content: &Arc<Content>,
        wait: &dyn Fn() -> Wait,
        is_over: &dyn Fn() -> bool,
    ) -> Result<Warmed> {
        let reader = content.reader()?;
        let size = match content.size(wait())? {
            Size::Exact(size) => size,
            Size::Unkept(_) => return Ok(Warmed::Unfit),
        };
        let mut at = 0;
        while at < size && !is_over() {
            let last = (at + STEP).min(size) - 1;
            reader.read_at(last, 1, wait())?;
            at = last + 1;
        }
        Ok(Warmed::Asked(size))
    }

    /// Returns the size of a record that is cached and fresh.
    fn kept_size(&self, key: &Key) -> Option<u64> {
        let Peek::Present(known) = self.peek(key) else {
            return None;
        };
        let is_kept = match self.disk() {
            Some(disk) => disk.contains(key),
            None => self.is_at_hand(key),
        };
        known.size.filter(|_| is_kept)
    }
}
