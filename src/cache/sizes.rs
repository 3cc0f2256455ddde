//! Exact sizes and times of versions, kept after their contents are evicted, and across mounts.
//!
//! A listing has stored sizes only. Once a record has been read, its content size and the time that
//! it showed are remembered here for as long as the listing shows the same stored size, also when the
//! content itself has been evicted. On disk: one JSON line a version, appended; rewritten when it has
//! grown to twice what it needs. Torn and damaged
//! lines are ignored: each has a checksum.
//!
//! A record without an entry has its content as it is stored and shows
//! [`Records::unknown_time`](super::records::Records::unknown_time): that needs no line.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use crate::base::sync::Mutex;
use crate::disk::{seal, temp};
use crate::store::Key;

/// The most versions that are remembered.
const MOST: usize = 1_000_000;
/// The most lines that wait to be written.
const MOST_WAITING: usize = 4096;

/// The versions of one store in one read mode.
#[derive(Debug, Default)]
pub struct ExactSizes {
    path: Option<PathBuf>,
    /// Whether versions with content as stored are remembered too: mounts with exact sizes need not ask
    /// again.
    keeps_plain: bool,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    versions: HashMap<Key, Remembered>,
    /// What memory has and the disk has not.
    waiting: Vec<(Key, Remembered)>,
}

/// What is remembered of one version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Remembered {
    /// Bytes as stored, as the record's own answer says.
    pub stored: u64,
    /// The same as a listing says.
    pub listed: u64,
    /// Bytes of content, once known.
    pub content: Option<u64>,
    /// The time that it shows; `None` for that of records of which none is known.
    pub modified: Option<SystemTime>,
}

impl Remembered {
    fn is_of(&self, stored: u64) -> bool {
        stored == self.stored || stored == self.listed
    }

    /// Returns whether it tells nothing that would not be so anyway.
    fn is_plain(&self) -> bool {
        self.listed == self.stored && self.content == Some(self.stored) && self.modified.is_none()
    }
}

#[derive(Serialize, Deserialize)]
struct Line {
    key: String,
    stored: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    listed: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    content: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    modified_unix_ns: Option<u64>,
    /// The checksum of the other fields.
    #[serde(default)]
    seal: String,
}

impl Line {
    fn new(key: &Key, version: &Remembered) -> Self {
        let since = |time: SystemTime| time.duration_since(SystemTime::UNIX_EPOCH).ok();
        let mut line = Self {
            key: key.as_str().into(),
            stored: version.stored,
            listed: (version.listed != version.stored).then_some(version.listed),
            content: version.content,
            modified_unix_ns: version
                .modified
                .and_then(since)
                .and_then(|since| u64::try_from(since.as_nanos()).ok()),
            seal: String::new(),
        };
        line.seal = line.proper_seal().unwrap_or_default();
        line
    }

    fn proper_seal(&self) -> Option<String> {
        let fields = (
            &self.key,
            self.stored,
            self.listed,
            self.content,
            self.modified_unix_ns,
        );
        seal(&fields).ok()
    }

    /// Returns what the line says; `None` if it is damaged.
    fn read(self) -> Option<(Key, Remembered)> {
        if Some(&self.seal) != self.proper_seal().as_ref() {
            return None;
        }
        let version = Remembered {
            stored: self.stored,
            listed: self.listed.unwrap_or(self.stored),
            content: self.content,
            modified: self
                .modified_unix_ns
                .map(|ns| SystemTime::UNIX_EPOCH + Duration::from_nanos(ns)),
        };
        Some((Key::new(self.key)?, version))
    }
}

impl ExactSizes {
    /// Loads the versions kept in `path`; `None` keeps them in memory only. `keeps_plain` remembers also
    /// those with content as stored.
    pub fn open(path: Option<PathBuf>, keeps_plain: bool) -> Self {
        let mut versions = HashMap::new();
        let mut lines = 0usize;
        if let Some(file) = path.as_ref().and_then(|path| File::open(path).ok()) {
            for line in BufReader::new(file).split(b'\n').map_while(Result::ok) {
                let Ok(line) = serde_json::from_slice::<Line>(&line) else {
                    continue;
                };
                lines += 1;
                if let Some((key, version)) = line.read()
                    && (versions.len() < MOST || versions.contains_key(&key))
                {
                    versions.insert(key, version);
                }
            }
        }
        let kept = versions.len();
        let known = Self {
            state: Mutex::new(State {
                versions,
                ..State::default()
            }),
            keeps_plain,
            path,
        };
        if lines > 2 * kept {
            known.rewrite();
        }
        known
    }

    /// Returns what is remembered of a record, in whichever version.
    pub fn get(&self, key: &Key) -> Option<Remembered> {
        self.state.lock().versions.get(key).copied()
    }

    /// Returns what is remembered of a record's version of that stored size.
    pub fn version(&self, key: &Key, stored: u64) -> Option<Remembered> {
        self.get(key).filter(|version| version.is_of(stored))
    }

    /// Returns the content size of a record with the stored size `stored`.
    pub fn content_size(&self, key: &Key, stored: u64) -> Option<u64> {
        self.version(key, stored)?.content
    }

    /// Remembers a version instead of any other of that record, and writes it to disk.
    #[cfg(feature = "testing")]
    pub fn remember(&self, key: &Key, version: Remembered) {
        if self.note(key, version) {
            self.write();
        }
    }

    /// Remembers a version in memory; returns whether there is something to [write](Self::write).
    pub fn note(&self, key: &Key, version: Remembered) -> bool {
        let mut state = self.state.lock();
        let before = state.versions.get(key);
        let nothing_new = match before {
            Some(before) => *before == version,
            None => (version.is_plain() && !self.keeps_plain) || state.versions.len() >= MOST,
        };
        if nothing_new {
            return false;
        }
        state.versions.insert(key.clone(), version);
        // A lost line costs a question.
        if self.path.is_some() && state.waiting.len() < MOST_WAITING {
            state.waiting.push((key.clone(), version));
        }
        self.path.is_some()
    }

    /// Writes to disk what has been noted.
    pub fn write(&self) {
        let Some(path) = &self.path else { return };
        let mut state = self.state.lock();
        let waiting = std::mem::take(&mut state.waiting);
        drop(state);
        if waiting.is_empty() {
            return;
        }
        // Not kept open: a disk with a file that is open for writing cannot be made read-only.
        let log = File::options().append(true).create(true).open(path);
        let mut lines = Vec::new();
        for (key, version) in &waiting {
            if serde_json::to_writer(&mut lines, &Line::new(key, version)).is_ok() {
                lines.push(b'\n');
            }
        }
        // One write for whole lines: several processes may append.
        if let Ok(mut log) = log
            && let Err(error) = log.write_all(&lines)
        {
            tracing::debug!("sizes and times are not kept on disk: {error}");
        }
    }

    /// Forgets the versions of these records, or of all.
    pub fn forget(&self, keys: Option<&[Key]>) {
        let mut state = self.state.lock();
        let before = state.versions.len();
        match keys {
            None => state.versions.clear(),
            Some(keys) => state.versions.retain(|key, _| !keys.contains(key)),
        }
        let changed = state.versions.len() != before;
        state.waiting.clear();
        drop(state);
        if changed {
            self.rewrite();
        }
    }

    fn rewrite(&self) {
        let Some((path, dir)) = self
            .path
            .as_ref()
            .and_then(|path| Some((path, path.parent()?)))
        else {
            return;
        };
        let versions = self.state.lock().versions.clone();
        let written = temp::create(dir).and_then(|temp| {
            let mut lines = std::io::BufWriter::new(temp);
            for (key, version) in versions {
                serde_json::to_writer(&mut lines, &Line::new(&key, &version))?;
                lines.write_all(b"\n")?;
            }
            let temp = lines.into_inner().map_err(|error| error.into_error())?;
            temp.persist(path).map_err(|error| error.error)
        });
        if let Err(error) = written {
            tracing::debug!("cannot rewrite {}: {error}", path.display());
            let _ = fs::remove_file(path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_flipped_bit_of_a_line_is_believed() {
        let version = Remembered {
            stored: 2804,
            listed: 2800,
            content: Some(7002),
            modified: Some(
                SystemTime::UNIX_EPOCH + Duration::from_nanos(1_700_000_000_000_000_001),
            ),
        };
        let key = Key::new("z2").expect("a key");
        let line = serde_json::to_vec(&Line::new(&key, &version)).expect("JSON");
        let read = |line: &[u8]| serde_json::from_slice::<Line>(line).ok()?.read();
        assert_eq!(read(&line), Some((key.clone(), version)));
        for bit in 0..line.len() * 8 {
            let mut flipped = line.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            let shown = String::from_utf8_lossy(&flipped).into_owned();
            assert!(
                read(&flipped).is_none_or(|same| same == (key.clone(), version)),
                "{shown}"
            );
        }
    }

    fn version(stored: u64, content: u64) -> Remembered {
        Remembered {
            stored,
            listed: stored,
            content: Some(content),
            modified: None,
        }
    }

    #[test]
    fn sizes_outlive_the_process_and_hold_only_for_the_same_stored_size() {
        let dir = tempfile::tempdir().expect("a temp folder");
        let path = dir.path().join("sizes.jsonl");
        let key = Key::new("OUTPUT").expect("a key");
        let sizes = ExactSizes::open(Some(path.clone()), false);
        sizes.remember(&key, version(10, 100));
        sizes.remember(&key, version(11, 111));
        fs::OpenOptions::new()
            .append(true)
            .open(&path)
            .expect("the log")
            .write_all(b"{\"key\":\"OUT")
            .expect("a torn line");
        for round in 0..3 {
            let again = ExactSizes::open(Some(path.clone()), false);
            assert_eq!(again.content_size(&key, 11), Some(111), "round {round}");
            assert_eq!(again.content_size(&key, 10), None);
        }
    }

    #[test]
    fn a_plain_version_takes_the_place_of_an_encoded_one_of_the_same_stored_size() {
        let dir = tempfile::tempdir().expect("a temp folder");
        let path = dir.path().join("sizes.jsonl");
        let key = Key::new("k").expect("a key");
        let sizes = ExactSizes::open(Some(path.clone()), false);
        sizes.remember(&key, version(29, 29));
        assert_eq!(sizes.get(&key), None, "nothing that would not be so anyway");
        sizes.remember(&key, version(29, 1000));
        sizes.remember(&key, version(29, 29));
        for sizes in [sizes, ExactSizes::open(Some(path), false)] {
            assert_eq!(sizes.content_size(&key, 29), Some(29));
        }
    }

    #[test]
    fn times_are_kept_with_their_versions() {
        let dir = tempfile::tempdir().expect("a temp folder");
        let path = dir.path().join("sizes.jsonl");
        let key = Key::new("k").expect("a key");
        let at = SystemTime::UNIX_EPOCH + Duration::from_nanos(1_700_000_000_123_456_789);
        let kept = Remembered {
            listed: 31,
            content: None,
            modified: Some(at),
            ..version(29, 29)
        };
        ExactSizes::open(Some(path.clone()), false).remember(&key, kept);
        let again = ExactSizes::open(Some(path), false);
        assert_eq!(again.version(&key, 29), Some(kept));
        assert_eq!(again.version(&key, 31), Some(kept), "as listed");
        assert_eq!(again.version(&key, 30), None);
    }
}
