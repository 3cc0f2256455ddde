//! Content types: those that are kept, may be set, or are worth compressing.

use std::io::{self, Read, Seek, SeekFrom};

use crate::base::content_type::{self, UNKNOWN};
use crate::staging::file::StagingFile;

/// Returns the content type for a new record, from its name, else from its bytes.
///
/// # Errors
/// Those of reading the bytes.
pub fn guess(key: &str, bytes: &StagingFile, size: u64) -> io::Result<String> {
    content_type::guess(key, &mut Reader::new(bytes, size))
}

/// Reads the first bytes of a staging file.
#[derive(Debug)]
pub struct Reader<'a> {
    bytes: &'a StagingFile,
    at: u64,
    size: u64,
}

impl<'a> Reader<'a> {
    /// Returns a reader of the first `size` bytes.
    pub fn new(bytes: &'a StagingFile, size: u64) -> Self {
        Self { bytes, at: 0, size }
    }
}

impl Read for Reader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.size.saturating_sub(self.at)).unwrap_or(usize::MAX);
        let part = self.bytes.read_at(self.at, buffer.len().min(left))?;
        buffer[..part.len()].copy_from_slice(&part);
        self.at += part.len() as u64;
        Ok(part.len())
    }
}

impl Seek for Reader<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let at = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
            SeekFrom::End(by) => self.size.checked_add_signed(by),
        };
        self.at = at.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.at)
    }
}

/// Returns whether a type was only guessed for a record that had no bytes to guess from.
pub fn says_nothing(content_type: Option<&str>, stored_size: Option<u64>) -> bool {
    content_type.is_none() || (stored_size == Some(0) && content_type == Some(UNKNOWN))
}

/// Returns whether a value can be sent as a content type.
pub fn is_valid(value: &str) -> bool {
    let printable = value.bytes().all(|byte| (0x20..0x7f).contains(&byte));
    let kind = value.split(';').next().unwrap_or_default().trim();
    let token = |part: &str| {
        !part.is_empty()
            && part
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"!#$&-^_.+*'`|~%".contains(&byte))
    };
    printable
        && value.len() <= 1000
        && kind
            .split_once('/')
            .is_some_and(|(a, b)| token(a) && token(b))
}

/// Returns whether compressing such content is worth while.
pub fn is_compressible(content_type: &str) -> bool {
    let kind = content_type
        .split(';')
        .next()
        .unwrap_or_default()
        .trim()
        .to_ascii_lowercase();
    kind.starts_with("text/")
        || kind.ends_with("+json")
        || kind.ends_with("+xml")
        || matches!(
            &*kind,
            "application/json"
                | "application/ld+json"
                | "application/x-ndjson"
                | "application/jsonlines"
                | "application/xml"
                | "application/javascript"
                | "application/x-javascript"
                | "application/wasm"
                | "application/yaml"
                | "application/x-yaml"
                | "application/toml"
                | "application/sql"
                | "application/x-tar"
                | "application/octet-stream"
                | "application/vnd.sqlite3"
                | "application/x-sqlite3"
                | "image/svg+xml"
                | "image/bmp"
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guess_reads_the_staging_file() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let config = crate::staging::StagingConfig {
            dir: dir.path().into(),
            scope: "test".into(),
            store: crate::staging::folder::StoreFile {
                reference: "test".into(),
                open: crate::store::reference::StoreRef::Directory("/test".into()),
                api_url: None,
            },
            limit: None,
        };
        let folder = crate::staging::StagingFolder::open(&config).expect("a staging folder");
        let file = StagingFile::new(&folder).expect("a file");
        file.write_at(0, b"{\"a\": 1} and more").expect("written");
        let guessed = |key: &str, size| guess(key, &file, size).expect("readable");
        assert_eq!(guessed("OUTPUT", 8), "application/json; charset=utf-8");
        assert_eq!(guessed("OUTPUT", 12), "text/plain; charset=utf-8");
        assert_eq!(guessed("a.csv", 8), "text/csv; charset=utf-8");
        assert_eq!(guessed("OUTPUT", 0), UNKNOWN);
    }

    #[test]
    fn values_that_cannot_be_sent_are_no_types() {
        for good in [
            "text/plain",
            "application/json; charset=utf-8",
            "image/svg+xml",
        ] {
            assert!(is_valid(good), "{good}");
        }
        for bad in [
            "",
            "text",
            "text/",
            "/x",
            "text/plain\r\nx: y",
            "a b/c",
            "t\u{e9}/x",
        ] {
            assert!(!is_valid(bad), "{bad}");
        }
    }
}
