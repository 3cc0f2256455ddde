//! The fingerprint of a stored record: bytes, content type and encoding.

use sha2::{Digest, Sha256};

use crate::store::RecordMeta;

/// The type of a record that has none, as stores on disk show it.
const NO_TYPE: &str = "application/octet-stream";

/// The first 128 bits of a SHA-256 over a record's stored bytes, type and encoding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fingerprint(pub [u8; 16]);

/// Makes a [`Fingerprint`] of bytes as they come.
#[derive(Clone, Debug, Default)]
pub struct Fingerprinter {
    bytes: Sha256,
    len: u64,
}

impl Fingerprinter {
    /// Adds the next stored bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.bytes.update(bytes);
        self.len += bytes.len() as u64;
    }

    /// Returns how many bytes there were.
    pub fn size(&self) -> u64 {
        self.len
    }

    /// Returns the fingerprint of the bytes under this description.
    pub fn finish(self, meta: &RecordMeta) -> Fingerprint {
        let mut whole = Sha256::new();
        whole.update(self.bytes.finalize());
        whole.update(meta.content_type.as_deref().unwrap_or(NO_TYPE));
        whole.update([0]);
        whole.update(meta.encoding.header_value().unwrap_or_default());
        Fingerprint(first_half(&whole.finalize()))
    }
}

/// Returns 128 bits that stand for a key.
pub fn of_key(key: &str) -> [u8; 16] {
    first_half(&Sha256::digest(key))
}

/// Returns 64 bits that stand for a version of a record where its store tells versions apart;
/// 0 where it does not.
pub fn of_version(meta: &RecordMeta) -> u64 {
    let Some(etag) = &meta.etag else { return 0 };
    let mut whole = Sha256::new();
    whole.update(etag.as_str());
    whole.update([0]);
    whole.update(meta.content_type.as_deref().unwrap_or(NO_TYPE));
    let half = first_half(&whole.finalize());
    let mut quarter = [0; 8];
    quarter.copy_from_slice(&half[..8]);
    u64::from_le_bytes(quarter).max(1)
}

fn first_half(digest: &[u8]) -> [u8; 16] {
    let mut half = [0; 16];
    half.copy_from_slice(&digest[..16]);
    half
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{ETag, Encoding};

    fn print(bytes: &[u8], kind: Option<&str>, encoding: Encoding) -> Fingerprint {
        let mut made = Fingerprinter::default();
        bytes.chunks(2).for_each(|chunk| made.update(chunk));
        assert_eq!(made.size(), bytes.len() as u64);
        made.finish(&RecordMeta {
            content_type: kind.map(Into::into),
            encoding,
            ..RecordMeta::default()
        })
    }

    #[test]
    fn bytes_type_and_encoding_count() {
        let one = print(b"abc", Some("text/plain"), Encoding::Identity);
        assert_eq!(one, print(b"abc", Some("text/plain"), Encoding::Identity));
        assert_ne!(one, print(b"abd", Some("text/plain"), Encoding::Identity));
        assert_ne!(one, print(b"abc", Some("text/html"), Encoding::Identity));
        assert_ne!(one, print(b"abc", Some("text/plain"), Encoding::Gzip));
        assert_eq!(
            print(b"", None, Encoding::Identity),
            print(b"", Some("application/octet-stream"), Encoding::Identity)
        );
    }

    #[test]
    fn versions_are_told_apart_where_the_store_does() {
        assert_eq!(of_version(&RecordMeta::default()), 0);
        let tagged = |tag: &str| RecordMeta {
            etag: Some(ETag::new(tag)),
            ..RecordMeta::default()
        };
        assert_ne!(of_version(&tagged("\"a\"")), of_version(&tagged("\"b\"")));
    }
}
