//! One entry of the cache: what its `.json` says, and what is found by it.

use std::fs::File;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::Checksum;
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
    /// The checksum of all the other fields but the boot, which proves nothing by itself.
    #[serde(default)]
    pub(super) seal: String,
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
    /// Reads what a `.json` file says.
    ///
    /// # Errors
    /// Why it says nothing: it is no description of an entry, or a damaged one.
    pub(super) fn read(text: &[u8]) -> Result<Self, String> {
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
        let bare = Self {
            boot_id: String::new(),
            seal: String::new(),
            ..self.clone()
        };
        let mut sum = Checksum::default();
        sum.update(&serde_json::to_vec(&bare).map_err(|error| error.to_string())?);
        Ok(sum.finish())
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
        let sealed = EntryMeta::read(&text).expect("as it was written");
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
            if let Ok(read) = EntryMeta::read(&flipped) {
                let but_for_the_boot = EntryMeta {
                    boot_id: sealed.boot_id.clone(),
                    ..read
                };
                let shown = String::from_utf8_lossy(&flipped).into_owned();
                assert_eq!(but_for_the_boot, sealed, "{shown}");
            }
        }
        let unsealed = serde_json::to_vec(&meta).expect("JSON");
        assert!(EntryMeta::read(&unsealed).is_err());
    }
}
