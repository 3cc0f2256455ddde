//! A store of exactly the records given by URL, signed or not.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;
use percent_encoding::percent_decode_str;

use super::endpoint::linked_record;
use super::read_only;
use super::record::RecordApi;
use crate::base::clock::Deadline;
use crate::base::in_use;
use crate::base::redact::{SafeUrl, bare};
use crate::store::{
    ErrorKind, GetOutcome, GetRequest, Key, ListItem, ListPage, ListQuery, MAX_PAGE, PutRequest,
    RecordMeta, Result, Store, StoreError, StoreInfo, Upload,
};

/// How many records are asked about at once when the store is opened.
const OPEN_THREADS: usize = 8;

/// A store of records given by their URLs. Its listing is what opening it found.
#[derive(Debug)]
pub struct RecordUrlsStore {
    api: RecordApi,
    records: BTreeMap<Key, (SafeUrl, ListItem)>,
    info: StoreInfo,
}

impl RecordUrlsStore {
    /// Asks for each record's size and returns the store.
    ///
    /// # Errors
    /// Two URLs with one key; the first record, in the order of keys, that cannot be fetched.
    pub fn open(
        api: RecordApi,
        urls: &[SafeUrl],
        info: StoreInfo,
        deadline: Deadline,
    ) -> Result<Self> {
        let mut links = BTreeMap::new();
        for url in urls {
            url.secrets().iter().for_each(in_use::keep_out);
            let key = key_of(url)?;
            if links.insert(key.clone(), url.clone()).is_some() {
                return Err(StoreError::new(
                    ErrorKind::Unsupported,
                    "two of the URLs have the same key, so they would be the same file",
                )
                .with_key(&key)
                .with_hint("mount them one by one"));
            }
        }
        let links: Vec<(Key, SafeUrl)> = links.into_iter().collect();
        let found = Mutex::new(BTreeMap::new());
        let next = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..OPEN_THREADS.min(links.len()) {
                scope.spawn(|| {
                    while let Some((key, url)) = links.get(next.fetch_add(1, Ordering::Relaxed)) {
                        let meta = api_for(&api, url).head(linked_record(url), key, deadline);
                        let is_failure = meta.is_err();
                        found.lock().insert(key.clone(), meta);
                        if is_failure {
                            next.store(links.len(), Ordering::Relaxed);
                        }
                    }
                });
            }
        });
        let mut found = found.into_inner();
        if let Some(failed) = found
            .iter()
            .find(|(_, meta)| meta.is_err())
            .map(|(key, _)| key.clone())
            && let Some(Err(error)) = found.remove(&failed)
        {
            return Err(error);
        }
        let records = links
            .into_iter()
            .map(|(key, url)| {
                let meta = found.remove(&key).and_then(Result::ok).unwrap_or_default();
                let item = ListItem {
                    key: key.clone(),
                    stored_size: meta.stored_size,
                    modified: meta.modified(),
                    public_url: Some(url.clone()),
                };
                (key, (url, item))
            })
            .collect();
        Ok(Self { api, records, info })
    }

    fn link(&self, key: &Key) -> Result<&SafeUrl> {
        let record = self.records.get(key).ok_or_else(|| {
            StoreError::new(ErrorKind::NotFound, "the record does not exist").with_key(key)
        })?;
        Ok(&record.0)
    }
}

/// Returns access to a record: a signed URL needs no token, and gets none.
fn api_for(api: &RecordApi, url: &SafeUrl) -> RecordApi {
    if is_signed(url) {
        api.without_token()
    } else {
        api.clone()
    }
}

/// Returns whether a URL carries a signature.
pub fn is_signed(url: &SafeUrl) -> bool {
    url.expose()
        .query_pairs()
        .any(|(name, _)| name == "signature")
}

/// Reads the key in a record's URL.
fn key_of(url: &SafeUrl) -> Result<Key> {
    url.expose()
        .path_segments()
        .and_then(|mut segments| segments.next_back())
        .and_then(|segment| percent_decode_str(segment).decode_utf8().ok())
        .and_then(|key| Key::new(&*key))
        .ok_or_else(|| StoreError::new(ErrorKind::Unsupported, format!("{url} names no record")))
}

impl Store for RecordUrlsStore {
    fn is_writable(&self) -> bool {
        false
    }

    fn info(&self) -> StoreInfo {
        self.info.clone()
    }

    fn record_url(&self, key: &Key) -> Option<String> {
        Some(bare(self.records.get(key)?.0.expose()))
    }

    fn list_page(&self, query: &ListQuery, _: Deadline) -> Result<ListPage> {
        if query.collection.is_some() {
            return Err(StoreError::new(
                ErrorKind::Unsupported,
                "records given by their URLs have no collections",
            ));
        }
        let limit = query.limit.unwrap_or(MAX_PAGE).clamp(1, MAX_PAGE);
        let prefix = query.prefix.as_deref().unwrap_or_default();
        let mut selected = self
            .records
            .values()
            .map(|(_, item)| item)
            .filter(|item| {
                query
                    .after
                    .as_deref()
                    .is_none_or(|after| item.key.as_str() > after)
            })
            .filter(|item| item.key.as_str().starts_with(prefix));
        let items: Vec<ListItem> = selected.by_ref().take(limit).cloned().collect();
        let next = selected
            .next()
            .and(items.last())
            .map(|item| item.key.as_str().into());
        Ok(ListPage { items, next })
    }

    fn answers_head(&self) -> bool {
        self.api.answers_head()
    }

    fn head(&self, key: &Key, deadline: Deadline) -> Result<RecordMeta> {
        let link = self.link(key)?;
        api_for(&self.api, link).head(linked_record(link), key, deadline)
    }

    fn get(&self, key: &Key, request: &GetRequest, deadline: Deadline) -> Result<GetOutcome> {
        let link = self.link(key)?;
        api_for(&self.api, link).get(linked_record(link), key, request, deadline)
    }

    fn put(&self, key: &Key, _: &PutRequest, _: Upload<'_>, _: Deadline) -> Result<RecordMeta> {
        Err(read_only(key))
    }

    fn delete(&self, key: &Key, _: Deadline) -> Result<()> {
        Err(read_only(key))
    }
}
