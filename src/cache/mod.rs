//! The cache of a store: contents in memory and on disk, sizes, negative entries.
//!
//! INVARIANTS of the content cache, checked by tests beside the code:
//!
//! * C1 identity: an entry holds the bytes of one version of one record in one read mode
//! * C2 completeness: a published entry is whole; partial data lives only in a [`crate::transfer::download`]
//! * C3 presence: a byte is readable once it has been written, and stays so
//! * C4 budget: published and reserved bytes never exceed the capacity
//! * C5 single flight: one fetch per record at a time; waiters wake on success, failure and panic
//! * C6 pinning: a handle owns its file descriptor or memory; eviction unlinks, never truncates
//! * C7 broken is a miss: an entry that does not check out is removed, counted and fetched again
//! * C8 ownership: only our own versioned sub-folder of the cache folder is scanned or changed
//!
//! Lock order: record slot, then memory tier, disk index, one download. No lock is held across
//! network or disk I/O.

pub mod ahead;
mod behind;
pub mod content;
pub mod forget;
pub mod freshness;
pub mod receive;
pub mod records;
pub mod sizes;
pub mod warm;
pub mod watched;
pub mod written;
