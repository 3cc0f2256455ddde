//! `__metadata__.json`: the shape of Crawlee for Python, read in the case of Crawlee 4 too.
//!
//! kvfs adds `title`, `general_access`, `owner` and `schema`, which the others ignore.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::time::SystemTime;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::base::random::letters;
use crate::base::redact::Secret;
use crate::base::signature::{base62, sign_record};
use crate::local::directory::dir::Dir;
use crate::local::directory::names::STORE_METADATA;
use crate::local::directory::replace_file;
use crate::server::config::GeneralAccess;
use crate::store::{ErrorKind, Result, StoreError};

/// Length of the platform's ids.
const ID_LEN: usize = 17;

/// Larger files say nothing, in bytes.
const MOST: u64 = 1 << 20;

/// A version of the file: inode, modification time, size.
pub(super) type Identity = (u64, SystemTime, u64);

/// What the file says.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Metadata {
    pub(super) id: Option<String>,
    pub(super) name: Option<String>,
    #[serde(default, alias = "accessedAt")]
    pub(super) accessed_at: Option<String>,
    #[serde(default, alias = "createdAt")]
    pub(super) created_at: Option<String>,
    #[serde(default, alias = "modifiedAt")]
    pub(super) modified_at: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) title: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) general_access: Option<GeneralAccess>,
    /// The id of the account; absent for the server's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) owner: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) schema: Option<Value>,
}

impl Metadata {
    /// Opens the file of a store's folder; `None` if there is none that is a regular file in the
    /// folder. The second part tells one version of it from others.
    pub(super) fn open(folder: &Dir) -> Option<(File, Identity)> {
        let file = folder.file(STORE_METADATA).ok()?;
        let metadata = file.metadata().ok()?;
        let changed = metadata.modified().ok()?;
        let identity = (metadata.ino(), changed, metadata.len());
        metadata.is_file().then_some((file, identity))
    }

    /// Reads the file; a broken one says nothing.
    pub(super) fn read(file: File) -> Self {
        let mut text = Vec::new();
        match file.take(MOST).read_to_end(&mut text) {
            Ok(_) => serde_json::from_slice(&text).unwrap_or_default(),
            Err(error) => {
                tracing::warn!(%error, "the file {STORE_METADATA} of a store cannot be read");
                Self::default()
            }
        }
    }

    /// Replaces the file.
    pub(super) fn write(&self, folder: &Dir) -> Result<()> {
        let text = serde_json::to_vec_pretty(self).map_err(|error| disk(error.into()))?;
        replace_file(folder, STORE_METADATA, &text)
    }
}

/// Reads a time in any writer's form.
pub(super) fn time(text: Option<String>) -> Option<SystemTime> {
    let parsed = text?.parse::<Timestamp>().ok()?;
    Some(SystemTime::from(parsed))
}

/// Writes a time as Crawlee for Python does.
pub(super) fn date(time: SystemTime) -> String {
    Timestamp::try_from(time)
        .unwrap_or(Timestamp::UNIX_EPOCH)
        .strftime("%Y-%m-%d %H:%M:%S%.6f+00:00")
        .to_string()
}

/// Returns whether a text looks like the platform's ids.
pub(in crate::server) fn is_id(text: &str) -> bool {
    text.len() == ID_LEN && text.bytes().all(|byte| byte.is_ascii_alphanumeric())
}

/// Returns the id of an account or a run, which is no secret: always the same for the same text.
pub(in crate::server) fn derived_id(text: &str) -> String {
    let hash = Sha256::digest(format!("kvfs {text}"));
    let number = hash[..16]
        .iter()
        .fold(0u128, |number, byte| (number << 8) | u128::from(*byte));
    last_digits(&base62(number))
}

/// Returns the least significant digits; a number this large has 17 but for one in a million.
fn last_digits(digits: &str) -> String {
    format!("{digits:0>ID_LEN$}")[digits.len().max(ID_LEN) - ID_LEN..].to_owned()
}

/// Returns the id of a store that a program made without an id: always the same for the same
/// folder, and nothing that can be computed from its name.
pub(super) fn id_of_folder(secret: &Secret, folder: &str) -> String {
    last_digits(sign_record(secret, &format!("id of {folder}")).expose())
}

/// Returns an id that cannot be guessed.
pub(in crate::server) fn random_id() -> Result<String> {
    letters(ID_LEN).map_err(disk)
}

pub(super) fn disk(error: io::Error) -> StoreError {
    StoreError::new(ErrorKind::Disk, "the storage folder cannot be used").with_source(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn derived_ids_look_like_the_platforms_and_stay_the_same() {
        assert!(is_id(&derived_id("a")), "{}", derived_id("a"));
        assert_eq!(derived_id("a"), derived_id("a"));
        assert_ne!(derived_id("a"), derived_id("b"));
    }

    #[test]
    fn dates_of_all_writers_are_understood() {
        for text in [
            "2026-11-22 23:40:50.764587+00:00",
            "2026-11-22T23:40:50.764Z",
        ] {
            assert!(time(Some(text.to_owned())).is_some(), "{text}");
        }
        let epoch = SystemTime::UNIX_EPOCH;
        assert_eq!(date(epoch), "1970-01-01 00:00:00.000000+00:00");
        assert_eq!(time(Some(date(epoch))), Some(epoch));
    }
}
