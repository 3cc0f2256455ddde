//! Exact content sizes of encoded records, kept across mounts.
//!
//! A listing tells stored sizes only. Once an encoded record has been decoded, its content size
//! is remembered here for as long as the listing shows the same stored size, also when the
//! content itself has been evicted. On disk: one JSON line a size, appended; rewritten when it
//! has grown to twice what it needs. A torn last line is ignored.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::base::sync::Mutex;
use crate::disk::temp;
use crate::store::Key;

/// The most sizes that are remembered.
const MOST: usize = 1_000_000;

/// The sizes of one store in one read mode.
#[derive(Debug, Default)]
pub struct ExactSizes {
    path: Option<PathBuf>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    sizes: HashMap<Key, (u64, u64)>,
    log: Option<File>,
}

#[derive(Serialize, Deserialize)]
struct Line {
    key: String,
    stored: u64,
    content: u64,
}

impl ExactSizes {
    /// Loads the sizes kept in `path`; `None` keeps them in memory only.
    pub fn open(path: Option<PathBuf>) -> Self {
        let mut sizes = HashMap::new();
        let mut lines = 0usize;
        if let Some(file) = path.as_ref().and_then(|path| File::open(path).ok()) {
            for line in BufReader::new(file).split(b'\n').map_while(Result::ok) {
                let Ok(line) = serde_json::from_slice::<Line>(&line) else {
                    continue;
                };
                lines += 1;
                if let Some(key) = Key::new(line.key)
                    && (sizes.len() < MOST || sizes.contains_key(&key))
                {
                    sizes.insert(key, (line.stored, line.content));
                }
            }
        }
        let known = Self {
            state: Mutex::new(State { sizes, log: None }),
            path,
        };
        if lines > 2 * known.state.lock().sizes.len() {
            known.rewrite();
        }
        known
    }

    /// Returns the content size of a record whose stored size is `stored`.
    pub fn get(&self, key: &Key, stored: u64) -> Option<u64> {
        let state = self.state.lock();
        state
            .sizes
            .get(key)
            .filter(|(then, _)| *then == stored)
            .map(|(_, content)| *content)
    }

    /// Remembers the content size of a record.
    pub fn remember(&self, key: &Key, stored: u64, content: u64) {
        let mut state = self.state.lock();
        if state.sizes.get(key) == Some(&(stored, content))
            || (state.sizes.len() >= MOST && !state.sizes.contains_key(key))
        {
            return;
        }
        state.sizes.insert(key.clone(), (stored, content));
        let log = state.log.take();
        drop(state);
        let Some(path) = &self.path else { return };
        let log = log.or_else(|| File::options().append(true).create(true).open(path).ok());
        let line = serde_json::to_vec(&Line {
            key: key.as_str().into(),
            stored,
            content,
        });
        if let (Some(mut log), Ok(mut line)) = (log, line) {
            line.push(b'\n');
            // One write a line: several processes may append. A lost size is only asked again.
            if log.write_all(&line).is_ok() {
                self.state.lock().log = Some(log);
            }
        }
    }

    /// Forgets the sizes of these records, or of all.
    pub fn forget(&self, keys: Option<&[Key]>) {
        let mut state = self.state.lock();
        let before = state.sizes.len();
        match keys {
            None => state.sizes.clear(),
            Some(keys) => state.sizes.retain(|key, _| !keys.contains(key)),
        }
        let changed = state.sizes.len() != before;
        // The next size is appended to the new file.
        state.log = None;
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
        let state = self.state.lock().sizes.clone();
        let written = temp::create(dir).and_then(|mut temp| {
            for (key, (stored, content)) in state {
                serde_json::to_writer(
                    &mut temp,
                    &Line {
                        key: key.as_str().into(),
                        stored,
                        content,
                    },
                )?;
                temp.write_all(b"\n")?;
            }
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
    fn sizes_outlive_the_process_and_hold_only_for_the_same_stored_size() {
        let dir = tempfile::tempdir().expect("a temp folder");
        let path = dir.path().join("sizes.jsonl");
        let key = Key::new("OUTPUT").expect("a key");
        let sizes = ExactSizes::open(Some(path.clone()));
        sizes.remember(&key, 10, 100);
        sizes.remember(&key, 11, 111);
        fs::OpenOptions::new()
            .append(true)
            .open(&path)
            .expect("the log")
            .write_all(b"{\"key\":\"OUT")
            .expect("a torn line");
        for round in 0..3 {
            let again = ExactSizes::open(Some(path.clone()));
            assert_eq!(again.get(&key, 11), Some(111), "round {round}");
            assert_eq!(again.get(&key, 10), None);
        }
    }
}
