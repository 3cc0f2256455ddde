//! What is remembered of a store: contents in memory and on disk, sizes, listings, absence.
//!
//! INVARIANTS of the content cache, checked by tests beside the code:
//!
//! * C1 identity: an entry holds the bytes of one version of one record in one read mode
//! * C2 completeness: a published entry is whole; partial data lives only in a [`download`]
//! * C3 presence: a byte is readable once it has been written, and stays so
//! * C4 budget: published and reserved bytes never exceed the capacity
//! * C5 single flight: one fetch per record at a time; waiters wake on success, failure and panic
//! * C6 pinning: a handle owns its file descriptor or memory; eviction unlinks, never truncates
//! * C7 broken is a miss: an entry that does not check out is removed, counted and fetched again
//! * C8 ownership: only our own versioned sub-folder of the cache folder is scanned or changed
//!
//! Lock order: record slot, then memory tier, disk index, one download. No lock is held across
//! network or disk I/O.

use crate::clock::Deadline;
use crate::store::{ErrorKind, StoreError};
use crate::sync::{Condvar, MutexGuard};

pub mod ahead;
pub mod content;
pub mod disk;
pub mod download;
pub mod fill;
pub mod forget;
pub mod index;
pub mod listing;
pub mod lru;
pub mod pace;
pub mod page;
pub mod ranges;
pub mod receive;
pub mod records;
pub mod sizes;
pub mod split;
pub mod stream;
pub mod warm;
pub mod window;
pub mod written;

/// The unit of the sizes that decide how bytes are fetched and kept. Smaller where schedules are
/// explored, so that a large record costs little there.
pub(crate) const KIB: u64 = if cfg!(feature = "shuttle") {
    1
} else {
    1 << 10
};
/// 1024 of them.
pub(crate) const MIB: u64 = KIB << 10;

/// Why an answer cannot be had.
#[derive(Debug)]
pub enum Error {
    /// It would have to wait, and the caller may not.
    WouldBlock,
    /// The store or the disk failed.
    Failed(StoreError),
}

impl Error {
    /// Returns the kind of a failure.
    pub fn kind(&self) -> Option<ErrorKind> {
        match self {
            Self::WouldBlock => None,
            Self::Failed(error) => Some(error.kind()),
        }
    }
}

/// The result of asking a cache.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl From<StoreError> for Error {
    fn from(error: StoreError) -> Self {
        Self::Failed(error)
    }
}

/// Returns the deadline of a wait, or [`Error::WouldBlock`].
pub(crate) fn may_block(wait: crate::clock::Wait) -> Result<Deadline> {
    wait.deadline().ok_or(Error::WouldBlock)
}

/// Returns the error of a wait that took too long.
pub(crate) fn timed_out(what: &str) -> Error {
    Error::Failed(StoreError::new(
        ErrorKind::Timeout,
        format!("the deadline passed while waiting for {what}"),
    ))
}

/// Waits for a change, not past the deadline.
pub(crate) fn wait_until<T>(
    changed: &Condvar,
    guard: &mut MutexGuard<'_, T>,
    deadline: Deadline,
    what: &str,
) -> Result<()> {
    if deadline.remaining().is_none() {
        return Err(timed_out(what));
    }
    changed.wait_until(guard, deadline.instant());
    Ok(())
}
