//! The store that the explored parts ask: it answers late, in pieces, or not to the end, as told.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use kvfs::base::clock::{Deadline, Wait};
use kvfs::base::sync::{Mutex, now, thread};
use kvfs::cache::content::Content;
use kvfs::cache::records::Records;
use kvfs::store::wait::{Error, Result as CacheResult};
use kvfs::store::{
    ETag, ErrorKind, Fetched, GetOutcome, GetRequest, Key, ListItem, ListPage, ListQuery,
    PutRequest, RecordMeta, Result, Store, StoreError, StoreInfo, Upload, Validator,
};

/// How bodies arrive.
#[derive(Clone, Copy, Debug)]
pub struct Pieces {
    /// Bytes at a time.
    pub size: usize,
    /// The time from one to the next.
    pub pause: Duration,
    /// Where they break off: with an error, or as if they were complete.
    pub breaks: Option<(u64, bool)>,
}

impl Default for Pieces {
    fn default() -> Self {
        Self {
            size: usize::MAX,
            pause: Duration::ZERO,
            breaks: None,
        }
    }
}

/// A store of records whose bytes tell key, version and place.
#[derive(Debug, Default)]
pub struct Stage {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    records: BTreeMap<Key, (u64, Bytes)>,
    versions: u64,
    history: Vec<(Key, Bytes)>,
    whole: Pieces,
    part: Pieces,
    gets: BTreeMap<Key, usize>,
    open: usize,
    most_open: usize,
}

/// Makes a folder, in memory where there is a place for that.
pub fn folder() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm")
        .or_else(|_| tempfile::tempdir())
        .expect("a folder")
}

/// Returns the key of that name.
pub fn key(name: &str) -> Key {
    Key::new(name).expect("a key")
}

/// Returns a deadline that nobody comes near.
pub fn long() -> Wait {
    Wait::Until(Deadline::after(Duration::from_secs(3600)))
}

/// Returns the bytes of a version.
pub fn bytes_of(key: &Key, version: u64, len: usize) -> Bytes {
    let mut random =
        fastrand::Rng::with_seed(version * 1000 + u64::from(key.as_str().as_bytes()[0]));
    std::iter::repeat_with(|| random.u8(..)).take(len).collect()
}

impl Stage {
    /// Stores the next version of a record; different versions have different lengths.
    pub fn put(&self, name: &str, len: usize) {
        let mut state = self.state.lock();
        state.versions += 1;
        let version = state.versions;
        let key = key(name);
        let bytes = bytes_of(&key, version, len + version as usize);
        state.history.push((key.clone(), bytes.clone()));
        state.records.insert(key, (version, bytes));
    }

    /// Tells whether a record ever had these bytes.
    pub fn had(&self, name: &str, bytes: &Bytes) -> bool {
        let state = self.state.lock();
        state.history.contains(&(key(name), bytes.clone()))
    }

    /// Has bodies of whole records and of parts arrive so.
    pub fn pace(&self, whole: Pieces, part: Pieces) {
        let mut state = self.state.lock();
        (state.whole, state.part) = (whole, part);
    }

    /// Returns a record's bytes.
    pub fn bytes(&self, name: &str) -> Bytes {
        self.state.lock().records[&key(name)].1.clone()
    }

    /// Returns how often a record was asked for.
    pub fn gets(&self, name: &str) -> usize {
        let state = self.state.lock();
        state.gets.get(&key(name)).copied().unwrap_or_default()
    }

    /// Returns how often any was.
    pub fn all_gets(&self) -> usize {
        self.state.lock().gets.values().sum()
    }

    /// Returns the most requests that were answered at one time.
    pub fn most_at_once(&self) -> usize {
        self.state.lock().most_open
    }
}

impl Store for Stage {
    fn info(&self) -> StoreInfo {
        StoreInfo::default()
    }

    fn list_page(&self, _query: &ListQuery, _deadline: Deadline) -> Result<ListPage> {
        let state = self.state.lock();
        let items = state.records.iter().map(|(key, (_, bytes))| ListItem {
            key: key.clone(),
            stored_size: Some(bytes.len() as u64),
            modified: None,
            public_url: None,
        });
        Ok(ListPage {
            items: items.collect(),
            next: None,
        })
    }

    fn head(&self, key: &Key, _deadline: Deadline) -> Result<RecordMeta> {
        Err(StoreError::new(ErrorKind::NotFound, "not asked for here").with_key(key))
    }

    fn get(&self, key: &Key, request: &GetRequest, _deadline: Deadline) -> Result<GetOutcome> {
        let pause = {
            let mut state = self.state.lock();
            *state.gets.entry(key.clone()).or_default() += 1;
            state.open += 1;
            state.most_open = state.most_open.max(state.open);
            state.whole.pause.max(Duration::from_millis(1))
        };
        thread::sleep(pause);
        let mut state = self.state.lock();
        state.open -= 1;
        let Some((version, bytes)) = state.records.get(key).cloned() else {
            return Err(StoreError::new(ErrorKind::NotFound, "no such record").with_key(key));
        };
        let etag = ETag::new(format!("\"{version}\""));
        if request.if_none_match == Some(Validator::ETag(etag.clone())) {
            return Ok(GetOutcome::NotModified);
        }
        if request
            .if_match
            .as_ref()
            .is_some_and(|wanted| *wanted != etag)
        {
            return Err(StoreError::new(ErrorKind::Changed, "another version").with_key(key));
        }
        let len = bytes.len() as u64;
        let meta = RecordMeta {
            stored_size: Some(len),
            etag: Some(etag),
            accepts_ranges: true,
            ..RecordMeta::default()
        };
        let range = request
            .range
            .clone()
            .map(|range| range.start..range.end.min(len));
        let pieces = if range.is_some() {
            state.part
        } else {
            state.whole
        };
        let wanted = range.clone().unwrap_or(0..len);
        Ok(GetOutcome::Found(Fetched {
            is_delimited: true,
            meta,
            range,
            body: Box::new(Body {
                bytes: bytes.slice(wanted.start as usize..wanted.end as usize),
                at: 0,
                pieces,
            }),
        }))
    }

    fn put(&self, _: &Key, _: &PutRequest, _: Upload<'_>, _: Deadline) -> Result<RecordMeta> {
        Err(StoreError::new(ErrorKind::Unsupported, "read-only"))
    }

    fn delete(&self, _: &Key, _: Deadline) -> Result<()> {
        Err(StoreError::new(ErrorKind::Unsupported, "read-only"))
    }
}

/// A body that arrives in pieces.
pub struct Body {
    pub bytes: Bytes,
    pub at: usize,
    pub pieces: Pieces,
}

impl Read for Body {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.pieces.pause.is_zero() {
            thread::yield_now();
        } else {
            thread::sleep(self.pieces.pause);
        }
        let mut end = self.bytes.len();
        if let Some((at, with_error)) = self.pieces.breaks {
            end = end.min(at as usize);
            if self.at >= end && with_error {
                return Err(StoreError::new(ErrorKind::Network, "broken off").into());
            }
        }
        let len = buffer
            .len()
            .min(self.pieces.size)
            .min(end.saturating_sub(self.at));
        buffer[..len].copy_from_slice(&self.bytes[self.at..self.at + len]);
        self.at += len;
        Ok(len)
    }
}

/// Reads a whole record as a program does, in steps, and returns its bytes. Opens again when
/// the download was given up between finding and opening it.
pub fn cat(records: &Arc<Records>, name: &str, step: usize) -> CacheResult<Bytes> {
    loop {
        let content: Arc<Content> = records.content(&key(name), long())?;
        let reader = match content.reader() {
            Err(error) if error.kind() == Some(ErrorKind::Changed) => continue,
            reader => reader?,
        };
        drop(content);
        let mut all = Vec::new();
        loop {
            let part = reader.read_at(all.len() as u64, step, long())?;
            if part.is_empty() {
                return Ok(all.into());
            }
            all.extend_from_slice(&part);
        }
    }
}

/// Time stands still while anybody can run: where more passes than the store takes, somebody waited
/// who was not woken.
pub fn assert_nobody_overslept(begun: Instant) {
    let took = now() - begun;
    assert!(took < Duration::from_secs(60), "a lost wake-up: {took:?}");
}

/// Returns what kind of failure an error is.
pub fn kind(error: &Error) -> ErrorKind {
    error.kind().expect("waits are allowed")
}
