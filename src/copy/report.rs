//! What is told of a copy, while it goes on and at its end.

use crate::store::{Key, StoreError};

/// What became of a record.
#[derive(Debug)]
pub enum Outcome {
    /// It has been stored, or with `dry_run` would be.
    Copied,
    /// It is the same in both; by what that is known.
    Unchanged(&'static str),
    /// It has been deleted, or with `dry_run` would be.
    Deleted,
    /// It could not be copied or deleted.
    Failed(StoreError),
}

/// What became of a record, with its key.
#[derive(Debug)]
pub struct Told<'a> {
    /// The record.
    pub key: &'a Key,
    /// Stored bytes, where known.
    pub size: Option<u64>,
    /// What became of it.
    pub outcome: &'a Outcome,
}

/// Is told how a copy goes; called from many threads.
pub trait Watcher: Sync {
    /// A record is done.
    fn told(&self, told: &Told<'_>);
    /// This many more records and bytes that take part have been found.
    fn found(&self, records: u64, bytes: u64);
    /// This many more bytes have come from the source.
    fn moved(&self, bytes: u64);
}

/// How a copy went.
#[derive(Debug, Default)]
pub struct Report {
    /// Records stored.
    pub copied: u64,
    /// Their bytes.
    pub copied_bytes: u64,
    /// Records that were the same.
    pub unchanged: u64,
    /// Records deleted.
    pub deleted: u64,
    /// Records that failed.
    pub failed: u64,
    /// Records that were not tried after many failures in a row.
    pub not_tried: u64,
    /// What kept a listing from coming to its end, if anything did.
    pub listing: Option<String>,
    /// Why nothing more was tried, if so.
    pub stopped: Option<String>,
}

impl Report {
    /// Returns whether the target now has what the source had.
    pub fn is_complete(&self) -> bool {
        self.failed == 0 && self.not_tried == 0 && self.listing.is_none()
    }
}
