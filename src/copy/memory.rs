//! What earlier copies between two stores remember: sizes, fingerprints, and how each side shows
//! that nothing has changed since.
//!
//! On disk, one file for each pair of stores, of records of a fixed length that are only appended:
//! an interrupted copy loses at most the last of them, and the next copy resumes there. A torn or
//! damaged record is ignored. Keys are in it as hashes only.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufReader, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use rustix::fs::{FlockOperation, flock};
use sha2::{Digest, Sha256};

use super::fingerprint::{Fingerprint, of_key};
use crate::base::folders::private_dir;
use crate::store::Key;

/// Bytes of a record: key, fingerprint, size, two marks, two versions, time, checksum.
const LEN: usize = 16 + 16 + 8 + 4 * 8 + 8 + 8;
/// What a file begins with; another version is as good as none.
const HEAD: &[u8; 16] = b"kvfs-copy v1\n\0\0\0";
/// The most records that are remembered: 90 bytes each on disk and in memory.
const MOST: usize = 3_000_000;

/// In the place of a key: [`Memory::distrust_target`].
const DISTRUST: [u8; 16] = [0; 16];
const NOTHING: Known = Known {
    print: Fingerprint([0; 16]),
    size: 0,
    source: 0,
    source_version: 0,
    target: 0,
    target_version: 0,
    at_ms: 0,
};

/// What is known of a record that both stores had, the same in both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Known {
    /// What tells it from others.
    pub print: Fingerprint,
    /// Stored bytes.
    pub size: u64,
    /// The clock of the source, or for a store on disk the record's version there.
    pub source: u64,
    /// The record's version in the source, where that tells versions apart; else 0.
    pub source_version: u64,
    /// For a target on disk the record's version there; else 0.
    pub target: u64,
    /// The record's version in the target, where that tells versions apart; else 0.
    pub target_version: u64,
    /// When it was known, in milliseconds since 1970; 0 where others may have changed the target since.
    pub at_ms: u64,
}

/// What is remembered of a pair of stores.
#[derive(Debug, Default)]
pub struct Memory {
    known: HashMap<[u8; 16], Known>,
    /// Locked as long as this copy runs; `None` where nothing can be kept.
    file: Option<Mutex<File>>,
    /// When anything was last known.
    last_ms: u64,
}

impl Memory {
    /// Opens what is remembered in `dir` of copies from `source` to `target`. Where that is not
    /// available, or another copy has it, nothing is remembered: the copy is right all the same.
    pub fn open(dir: &Path, source: &str, target: &str) -> Self {
        Self::try_open(dir, source, target).unwrap_or_else(|error| {
            tracing::debug!(%error, "nothing is remembered of this copy");
            Self::default()
        })
    }

    fn try_open(dir: &Path, source: &str, target: &str) -> io::Result<Self> {
        private_dir(dir)?;
        let mut file = OpenOptions::new()
            .read(true)
            .append(true)
            .create(true)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW)
            .open(path_of(dir, source, target))?;
        flock(&file, FlockOperation::NonBlockingLockExclusive)?;
        let (mut known, records) = read(&file)?;
        if records > 2 * known.len() + 1000 || known.len() > MOST || file.metadata()?.len() == 0 {
            if known.len() > MOST {
                known.clear();
            }
            rewrite(&mut file, &known)?;
        } else {
            // A torn record at the end would put all that follow out of step.
            let whole = (HEAD.len() + records * LEN) as u64;
            file.set_len(whole)?;
        }
        let last_ms = known.values().map(|known| known.at_ms).max().unwrap_or(0);
        Ok(Self {
            known,
            file: Some(Mutex::new(file)),
            last_ms,
        })
    }

    /// Returns what is known of a record.
    pub fn get(&self, key: &Key) -> Option<&Known> {
        self.known.get(&of_key(key.as_str()))
    }

    /// Returns when anything was last known, in milliseconds since 1970; 0 for never.
    pub fn last_ms(&self) -> u64 {
        self.last_ms
    }

    /// Notes that the target may have been changed by others: of nothing that was known so far is it
    /// known any more what the target has.
    pub fn distrust_target(&self) {
        self.write(&DISTRUST, &NOTHING);
    }

    /// Remembers a record from now on.
    pub fn note(&self, key: &Key, known: &Known) {
        self.write(&of_key(key.as_str()), known);
    }

    fn write(&self, key: &[u8; 16], known: &Known) {
        let Some(file) = &self.file else { return };
        let line = encode(key, known);
        if let Err(error) = file.lock().write_all(&line) {
            tracing::debug!(%error, "a record is not remembered");
        }
    }
}

/// Returns the time in milliseconds since 1970.
pub fn now_ms() -> u64 {
    ms(SystemTime::now())
}

/// Returns a time in milliseconds since 1970.
pub fn ms(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| {
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    })
}

fn path_of(dir: &Path, source: &str, target: &str) -> PathBuf {
    let mut hash = Sha256::new();
    for side in [source, target] {
        hash.update((side.len() as u64).to_le_bytes());
        hash.update(side);
    }
    let name: String = hash.finalize()[..16]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    dir.join(name)
}

/// Reads all records; returns them and how many whole ones there are, replaced ones included.
fn read(file: &File) -> io::Result<(HashMap<[u8; 16], Known>, usize)> {
    let mut known = HashMap::new();
    let mut reader = BufReader::with_capacity(1 << 20, file);
    let mut head = [0; HEAD.len()];
    if reader.read_exact(&mut head).is_err() || head != *HEAD {
        file.set_len(0)?;
        return Ok((known, 0));
    }
    let mut records = 0;
    let mut record = [0; LEN];
    while reader.read_exact(&mut record).is_ok() {
        let Some((key, value)) = decode(&record) else {
            break;
        };
        records += 1;
        if key == DISTRUST {
            known
                .values_mut()
                .for_each(|value: &mut Known| value.at_ms = 0);
        } else {
            known.insert(key, value);
        }
    }
    Ok((known, records))
}

fn rewrite(file: &mut File, known: &HashMap<[u8; 16], Known>) -> io::Result<()> {
    file.set_len(0)?;
    let mut bytes = HEAD.to_vec();
    for (key, value) in known {
        bytes.extend(encode(key, value));
    }
    file.write_all(&bytes)
}

fn encode(key: &[u8; 16], known: &Known) -> Vec<u8> {
    let mut record = Vec::with_capacity(LEN);
    record.extend(key);
    record.extend(known.print.0);
    for number in [
        known.size,
        known.source,
        known.source_version,
        known.target,
        known.target_version,
        known.at_ms,
    ] {
        record.extend(number.to_le_bytes());
    }
    let sum = checksum(&record);
    record.extend(sum);
    record
}

fn decode(record: &[u8; LEN]) -> Option<([u8; 16], Known)> {
    let (body, sum) = record.split_at(LEN - 8);
    if checksum(body) != *sum {
        return None;
    }
    let number = |at: usize| -> Option<u64> {
        let bytes = body.get(32 + at * 8..40 + at * 8)?;
        Some(u64::from_le_bytes(bytes.try_into().ok()?))
    };
    Some((
        body[..16].try_into().ok()?,
        Known {
            print: Fingerprint(body[16..32].try_into().ok()?),
            size: number(0)?,
            source: number(1)?,
            source_version: number(2)?,
            target: number(3)?,
            target_version: number(4)?,
            at_ms: number(5)?,
        },
    ))
}

fn checksum(bytes: &[u8]) -> [u8; 8] {
    let digest = Sha256::digest(bytes);
    let mut sum = [0; 8];
    sum.copy_from_slice(&digest[..8]);
    sum
}

/// Removes files that have not been used for `days` days.
pub fn forget_old(dir: &Path, days: u64) {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    for entry in entries {
        let age = entry
            .metadata()
            .and_then(|found| found.modified())
            .ok()
            .and_then(|at| at.elapsed().ok());
        if age.is_some_and(|age| age.as_secs() > days * 24 * 60 * 60) {
            let _ = fs::remove_file(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(n: u64) -> Known {
        Known {
            print: Fingerprint([n as u8; 16]),
            size: n,
            source: n + 1,
            source_version: n + 2,
            target: n + 3,
            target_version: n + 4,
            at_ms: n + 5,
        }
    }

    fn key(n: u64) -> Key {
        Key::new(format!("key-{n}")).expect("a key")
    }

    #[test]
    fn what_was_noted_is_known_to_the_next_copy_and_a_torn_end_is_none() {
        let dir = tempfile::tempdir().expect("a folder");
        let open = || Memory::open(dir.path(), "from", "to");
        let memory = open();
        for n in 0..100 {
            memory.note(&key(n), &known(n));
        }
        memory.note(&key(7), &known(700));
        assert!(
            memory.get(&key(7)).is_none(),
            "of this copy nothing is asked"
        );
        // Another copy of the same pair goes on without.
        assert!(open().file.is_none());
        drop(memory);
        let path = path_of(dir.path(), "from", "to");
        let torn = fs::read(&path).expect("it");
        fs::write(&path, &torn[..torn.len() - 3]).expect("a file");
        let memory = open();
        assert_eq!(memory.get(&key(3)), Some(&known(3)));
        assert_eq!(memory.get(&key(7)), Some(&known(7)), "the last was torn");
        memory.note(&key(7), &known(700));
        drop(memory);
        let memory = open();
        assert_eq!(memory.get(&key(7)), Some(&known(700)));
        assert_eq!(memory.last_ms(), 705);
        assert!(
            Memory::open(dir.path(), "to", "from")
                .get(&key(3))
                .is_none()
        );
        memory.distrust_target();
        memory.note(&key(8), &known(8));
        drop(memory);
        let memory = open();
        assert_eq!(memory.get(&key(3)).map(|known| known.at_ms), Some(0));
        assert_eq!(memory.get(&key(8)), Some(&known(8)));
    }
}
