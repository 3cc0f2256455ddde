//! One entry of the cache: what its `.json` says, and what is found by it.

use std::fs::File;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::checksum::{Checksum, seal};
use crate::store::{ETag, Encoding, Key, RecordMeta};

/// What is noted of an entry: the text of a `.json` file, or in a row.
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
    /// The checksum of all the other fields but the boot, which proves nothing by itself.
    #[serde(default)]
    pub(super) seal: String,
}

/// A content to be kept.
#[derive(Clone, Copy, Debug)]
pub struct Fresh<'a> {
    /// The record.
    pub key: &'a Key,
    /// What is known of it.
    pub meta: &'a RecordMeta,
    /// The time shown for this version.
    pub modified: SystemTime,
    /// The store had it at that time by the server's clock or later, where that is known.
    pub read: Option<SystemTime>,
}

/// Where a content was found.
#[derive(Debug)]
pub enum Stored {
    /// All of a small content.
    Memory(Bytes),
    /// A large one.
    File(Arc<File>),
}

/// An entry found in the cache.
#[derive(Debug)]
pub struct DiskEntry {
    /// What is known of the record.
    pub meta: RecordMeta,
    /// Its content.
    pub stored: Stored,
    /// The content's size in bytes.
    pub size: u64,
    /// The content's checksum.
    pub checksum: u128,
    /// The time shown for this version.
    pub modified: SystemTime,
    /// The store had it at that time by the server's clock or later, where that is known.
    pub read: Option<SystemTime>,
    /// Identifies this very entry.
    pub id: String,
    /// Whether it was current when a mount was told that nothing changes any more.
    pub is_marked: bool,
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
    /// Describes a content of `size` bytes with that checksum.
    pub(super) fn new(fresh: Fresh<'_>, id: String, size: u64, checksum: String) -> Self {
        let Fresh {
            key,
            meta,
            modified,
            read,
        } = fresh;
        Self {
            key: key.as_str().into(),
            data: id,
            content_size: size,
            checksum,
            boot_id: String::new(),
            content_type: meta.content_type.as_deref().map(Into::into),
            encoding: meta.encoding.header_value().map(Into::into),
            stored_size: meta.stored_size,
            etag: meta.etag.as_ref().map(|etag| etag.as_str().into()),
            last_modified: meta.last_modified.as_deref().map(Into::into),
            accepts_ranges: meta.accepts_ranges,
            modified_unix_ns: modified
                .duration_since(SystemTime::UNIX_EPOCH)
                .map_or(0, |since| u64::try_from(since.as_nanos()).unwrap_or(0)),
            read_unix_ms: read.and_then(millis),
            immutable: false,
            seal: String::new(),
        }
    }

    /// Checks a small content.
    ///
    /// # Errors
    /// That it is another one.
    pub(super) fn check(&self, bytes: &[u8]) -> Result<(), String> {
        let size = bytes.len() as u64;
        if size != self.content_size {
            return Err(format!("{size} bytes instead of {}", self.content_size));
        }
        let mut sum = Checksum::default();
        sum.update(bytes);
        match sum.finish() == self.checksum {
            true => Ok(()),
            false => Err("its checksum does not match".to_owned()),
        }
    }

    /// Returns the entry that this describes.
    ///
    /// # Errors
    /// That it tells no checksum.
    pub(super) fn entry(&self, stored: Stored) -> Result<DiskEntry, String> {
        Ok(DiskEntry {
            size: self.content_size,
            modified: SystemTime::UNIX_EPOCH + Duration::from_nanos(self.modified_unix_ns),
            read: self.read(),
            id: self.data.clone(),
            is_marked: self.immutable,
            checksum: u128::from_str_radix(&self.checksum, 16)
                .map_err(|error| format!("its checksum is none: {error}"))?,
            meta: self.record(),
            stored,
        })
    }

    /// Returns when the store had it.
    pub(super) fn read(&self) -> Option<SystemTime> {
        let since = Duration::from_millis(self.read_unix_ms?);
        Some(SystemTime::UNIX_EPOCH + since)
    }

    /// Reads what a `.json` file says.
    ///
    /// # Errors
    /// Why it says nothing: it is no description of an entry, or a damaged one.
    pub(super) fn parse(text: &[u8]) -> Result<Self, String> {
        let meta: Self = serde_json::from_slice(text).map_err(|error| error.to_string())?;
        if meta.seal != meta.proper_seal()? {
            return Err("its description is damaged".to_owned());
        }
        Ok(meta)
    }

    /// Returns what its `.json` file is to say.
    ///
    /// # Errors
    /// None that is known.
    pub(super) fn write(&self) -> Result<Vec<u8>, String> {
        let sealed = Self {
            seal: self.proper_seal()?,
            ..self.clone()
        };
        serde_json::to_vec(&sealed).map_err(|error| error.to_string())
    }

    fn proper_seal(&self) -> Result<String, String> {
        seal(&Self {
            boot_id: String::new(),
            seal: String::new(),
            ..self.clone()
        })
        .map_err(|error| error.to_string())
    }

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_flipped_bit_of_a_description_is_believed() {
        let meta = EntryMeta {
            key: "a.b".into(),
            data: "0011.2233.data".into(),
            content_size: 1234,
            checksum: "00ff".into(),
            boot_id: "boot".into(),
            content_type: Some("text/plain".into()),
            encoding: Some("gzip".into()),
            stored_size: Some(99),
            etag: Some("\"x\"".into()),
            last_modified: Some("Mon".into()),
            accepts_ranges: true,
            modified_unix_ns: 1_700_000_000_000_000_000,
            read_unix_ms: Some(1_700_000_000_000),
            immutable: false,
            seal: String::new(),
        };
        let text = meta.write().expect("JSON");
        let sealed = EntryMeta::parse(&text).expect("as it was written");
        assert_eq!(
            EntryMeta {
                seal: String::new(),
                ..sealed.clone()
            },
            meta
        );
        for bit in 0..text.len() * 8 {
            let mut flipped = text.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            if let Ok(read) = EntryMeta::parse(&flipped) {
                let but_for_the_boot = EntryMeta {
                    boot_id: sealed.boot_id.clone(),
                    ..read
                };
                let shown = String::from_utf8_lossy(&flipped).into_owned();
                assert_eq!(but_for_the_boot, sealed, "{shown}");
            }
        }
        let unsealed = serde_json::to_vec(&meta).expect("JSON");
        assert!(EntryMeta::parse(&unsealed).is_err());
    }
}
