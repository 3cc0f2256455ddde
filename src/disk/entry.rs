//! One entry of the cache: what its `.json` says, and what is found by it.

use std::fs::File;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::store::{ETag, Encoding, RecordMeta};

/// What a `.json` file says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct EntryMeta {
    pub(super) key: String,
    pub(super) data: String,
    pub(super) content_size: u64,
    pub(super) checksum: String,
    pub(super) boot_id: String,
    pub(super) content_type: Option<String>,
    pub(super) encoding: Option<String>,
    pub(super) stored_size: Option<u64>,
    pub(super) etag: Option<String>,
    pub(super) last_modified: Option<String>,
    pub(super) accepts_ranges: bool,
    pub(super) modified_unix_ns: u64,
    /// When the store had it by its own clock, in milliseconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) read_unix_ms: Option<u64>,
    /// Whether it was current when a mount was told that nothing changes any more.
    #[serde(default)]
    pub(super) immutable: bool,
}

/// An entry found in the cache.
#[derive(Debug)]
pub struct DiskEntry {
    /// What is known of the record.
    pub meta: RecordMeta,
    /// Its content.
    pub file: Arc<File>,
    /// The content's size in bytes.
    pub size: u64,
    /// The content's checksum.
    pub checksum: u128,
    /// The time shown for this version.
    pub modified: SystemTime,
    /// The store had it at that time by the server's clock or later, where that is known.
    pub read: Option<SystemTime>,
    /// Identifies this very entry: the data file's name.
    pub id: String,
    /// Whether it was current when a mount was told that nothing changes any more.
    pub is_marked: bool,
    /// All of a small content.
    pub bytes: Option<Bytes>,
}

/// Why an entry is of no use at the moment.
pub(super) enum Fault {
    /// It is not what it should be, for this reason.
    Broken(String),
    /// It is not known yet whether it is what it should be.
    Unchecked(Box<(EntryMeta, File)>),
}

impl From<String> for Fault {
    fn from(reason: String) -> Self {
        Self::Broken(reason)
    }
}

impl EntryMeta {
    /// Returns what is known of the record.
    pub(super) fn record(&self) -> RecordMeta {
        RecordMeta {
            content_type: self.content_type.as_deref().map(Into::into),
            encoding: Encoding::from_header(self.encoding.as_deref()),
            stored_size: self.stored_size,
            etag: self.etag.as_deref().map(ETag::new),
            last_modified: self.last_modified.as_deref().map(Into::into),
            accepts_ranges: self.accepts_ranges,
        }
    }
}

/// Returns a time as it is kept.
pub(super) fn millis(at: SystemTime) -> Option<u64> {
    let since = at.duration_since(SystemTime::UNIX_EPOCH).ok()?;
    u64::try_from(since.as_millis()).ok()
}
