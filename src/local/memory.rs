//! A store in memory, for tests and benchmarks.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use bytes::{Buf, Bytes};
use parking_lot::RwLock;

use super::transfer::{self, Verdict};
use crate::base::clock::{Clock, Deadline, SystemClock};
use crate::store::{
    ETag, Encoding, ErrorKind, Fetched, GetOutcome, GetRequest, Key, ListItem, ListPage, ListQuery,
    MAX_PAGE, PutRequest, RecordMeta, Result, Store, StoreError, StoreInfo, Upload,
};

/// Distinguishes the stores of one process in cache scopes.
static SERIAL: AtomicU64 = AtomicU64::new(0);

/// A store in memory. Every put makes a new version with a strong entity tag.
///
/// It can imitate servers that send less than they might: no entity tags, no dates, no ranges,
/// no lengths.
#[derive(Debug)]
pub struct MemoryStore {
    records: RwLock<BTreeMap<Key, Record>>,
    versions: AtomicU64,
    serial: u64,
    clock: Arc<dyn Clock>,
    knobs: Knobs,
}

#[derive(Debug, Clone, Copy)]
struct Knobs {
    etags: bool,
    dates: bool,
    ranges: bool,
    sizes: bool,
}

#[derive(Debug, Clone)]
struct Record {
    bytes: Bytes,
    content_type: Arc<str>,
    encoding: Encoding,
    version: u64,
    modified: SystemTime,
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self::new()
    }
}

impl MemoryStore {
    /// Returns an empty store.
    pub fn new() -> Self {
        Self {
            records: RwLock::default(),
            versions: AtomicU64::new(1),
            serial: SERIAL.fetch_add(1, Ordering::Relaxed),
            clock: Arc::new(SystemClock),
            knobs: Knobs {
                etags: true,
                dates: true,
                ranges: true,
                sizes: true,
            },
        }
    }

    /// Decides whether records carry entity tags; without them `if_match` is ignored by a get.
    pub fn with_etags(mut self, on: bool) -> Self {
        self.knobs.etags = on;
        self
    }

    /// Decides whether records carry `Last-Modified`.
    pub fn with_last_modified(mut self, on: bool) -> Self {
        self.knobs.dates = on;
        self
    }

    /// Decides whether ranges are honoured; without, a get of a range sends the whole record.
    pub fn with_ranges(mut self, on: bool) -> Self {
        self.knobs.ranges = on;
        self
    }

    /// Decides whether `head` and `get` know the stored size, as a chunked answer does not.
    pub fn with_sizes(mut self, on: bool) -> Self {
        self.knobs.sizes = on;
        self
    }

    /// Takes the time of `Last-Modified` from `clock`.
    pub fn with_clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = clock;
        self
    }

    /// Stores a record without ceremony; any non-empty key will do, an empty one is ignored.
    pub fn insert(
        &self,
        key: &str,
        content_type: &str,
        encoding: Encoding,
        bytes: impl Into<Bytes>,
    ) {
        if let Some(key) = Key::new(key) {
            let record = self.record(bytes.into(), content_type.into(), encoding);
            self.records.write().insert(key, record);
        }
    }

    /// Returns a record's stored bytes.
    pub fn bytes(&self, key: &str) -> Option<Bytes> {
        let key = Key::new(key)?;
        self.records
            .read()
            .get(&key)
            .map(|record| record.bytes.clone())
    }

    /// Returns how many records there are.
    pub fn len(&self) -> usize {
        self.records.read().len()
    }

    /// Returns whether there are no records.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn record(&self, bytes: Bytes, content_type: Arc<str>, encoding: Encoding) -> Record {
        Record {
            bytes,
            content_type,
            encoding,
            version: self.versions.fetch_add(1, Ordering::Relaxed),
            modified: self.clock.wall(),
        }
    }

    fn meta(&self, record: &Record) -> RecordMeta {
        RecordMeta {
            content_type: Some(record.content_type.clone()),
            encoding: record.encoding.clone(),
            stored_size: self.knobs.sizes.then_some(record.bytes.len() as u64),
            etag: self
                .knobs
                .etags
                .then(|| ETag::new(format!("\"m{}-{}\"", self.serial, record.version))),
            last_modified: self
                .knobs
                .dates
                .then(|| httpdate::fmt_http_date(record.modified).into()),
            accepts_ranges: self.knobs.ranges,
        }
    }

    fn find(&self, key: &Key) -> Result<Record> {
        self.records
            .read()
            .get(key)
            .cloned()
            .ok_or_else(|| transfer::not_found(key))
    }
}

impl Store for MemoryStore {
    fn info(&self) -> StoreInfo {
        StoreInfo {
            id: format!("memory{}", self.serial),
            name: None,
            cache_scope: format!("memory:{}:{}", std::process::id(), self.serial),
            upload_scope: format!("memory:{}:{}", std::process::id(), self.serial),
            modified: None,
            created: None,
            expires: None,
        }
    }

    fn list_page(&self, query: &ListQuery, deadline: Deadline) -> Result<ListPage> {
        transfer::check(deadline)?;
        if query.collection.is_some() {
            return Err(StoreError::new(
                ErrorKind::Unsupported,
                "a store in memory has no collections",
            ));
        }
        let limit = query.limit.unwrap_or(MAX_PAGE).clamp(1, MAX_PAGE);
        let prefix = query.prefix.as_deref().unwrap_or_default();
        let after = query.after.as_deref().unwrap_or_default();
        let start = if after < prefix {
            Key::new(prefix).map_or(Bound::Unbounded, Bound::Included)
        } else {
            Key::new(after).map_or(Bound::Unbounded, Bound::Excluded)
        };
        let records = self.records.read();
        let mut found = records
            .range((start, Bound::Unbounded))
            .take_while(|(key, _)| key.as_str().starts_with(prefix));
        let items: Vec<ListItem> = found
            .by_ref()
            .take(limit)
            .map(|(key, record)| ListItem {
                key: key.clone(),
                stored_size: Some(record.bytes.len() as u64),
                modified: self.knobs.dates.then_some(record.modified),
                public_url: None,
            })
            .collect();
        let next = match found.next() {
            Some(_) => items.last().map(|item| item.key.as_str().into()),
            None => None,
        };
        Ok(ListPage { items, next })
    }

    fn head(&self, key: &Key, deadline: Deadline) -> Result<RecordMeta> {
        transfer::check(deadline)?;
        Ok(self.meta(&self.find(key)?))
    }

    fn get(&self, key: &Key, request: &GetRequest, deadline: Deadline) -> Result<GetOutcome> {
        transfer::check(deadline)?;
        let record = self.find(key)?;
        let meta = self.meta(&record);
        if let Verdict::NotModified = transfer::judge(key, request, &meta)? {
            return Ok(GetOutcome::NotModified);
        }
        let range = request
            .range
            .as_ref()
            .filter(|_| self.knobs.ranges)
            .map(|range| transfer::clamp(range, record.bytes.len() as u64));
        let bytes = match &range {
            // Lengths of slices fit in usize.
            Some(range) => record.bytes.slice(range.start as usize..range.end as usize),
            None => record.bytes,
        };
        Ok(GetOutcome::Found(Fetched {
            is_delimited: true,
            meta,
            range,
            body: Box::new(bytes.reader()),
        }))
    }

    fn put(
        &self,
        key: &Key,
        request: &PutRequest,
        body: Upload<'_>,
        deadline: Deadline,
    ) -> Result<RecordMeta> {
        transfer::check(deadline)?;
        let mut bytes = Vec::new();
        transfer::copy(body, &mut bytes).map_err(|error| error.with_key(key))?;
        let content_type = request
            .content_type
            .clone()
            .unwrap_or_else(|| "application/octet-stream".into());
        let mut records = self.records.write();
        let current = records.get(key).map(|record| self.meta(record));
        transfer::may_put(key, request, current.as_ref())?;
        let record = self.record(bytes.into(), content_type, request.encoding.clone());
        let meta = self.meta(&record);
        records.insert(key.clone(), record);
        Ok(meta)
    }

    fn delete(&self, key: &Key, deadline: Deadline) -> Result<()> {
        transfer::check(deadline)?;
        self.records.write().remove(key);
        Ok(())
    }
}
