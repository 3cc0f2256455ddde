//! A store opened by a signed link to its keys.
//!
//! The signature opens the listing only; each record is fetched by the link that the listing
//! gives for it. No token is ever sent.

use std::num::NonZeroUsize;
use std::time::SystemTime;

use lru::LruCache;
use parking_lot::Mutex;
use url::Url;

use super::endpoint::{Endpoint, linked_record};
use super::pages::Pages;
use super::read_only;
use super::record::RecordApi;
use super::redirect::leads_inside;
use crate::base::clock::Deadline;
use crate::base::in_use;
use crate::base::redact::{SafeUrl, Secret};
use crate::store::{
    ErrorKind, GetOutcome, GetRequest, Key, ListPage, ListQuery, PutRequest, RecordMeta, Result,
    Store, StoreError, StoreInfo, Upload,
};

/// How many links are remembered; others are asked for again, one request each.
const MAX_LINKS: NonZeroUsize = NonZeroUsize::new(100_000).expect("not zero");

/// A store opened by a keys signature.
#[derive(Debug)]
pub struct SignedKeysStore {
    api: RecordApi,
    endpoint: Endpoint,
    signature: Secret,
    info: StoreInfo,
    pages: Pages,
    /// Links of listed records. Never locked during a request.
    links: Mutex<LruCache<Key, SafeUrl>>,
}

impl SignedKeysStore {
    /// Returns the store; makes no request. `info.expires` is the signature's expiry; `api` must
    /// have no token.
    pub fn new(api: RecordApi, endpoint: Endpoint, signature: Secret, info: StoreInfo) -> Self {
        debug_assert!(api.token.is_none());
        in_use::keep_out(&signature);
        Self {
            api,
            endpoint,
            signature,
            info,
            pages: Pages::default(),
            links: Mutex::new(LruCache::new(MAX_LINKS)),
        }
    }

    fn expired(&self) -> Option<StoreError> {
        let expires = self.info.expires?;
        (expires <= SystemTime::now()).then(|| {
            StoreError::new(
                ErrorKind::SignatureExpired,
                format!(
                    "the link's signature expired at {}",
                    httpdate::fmt_http_date(expires)
                ),
            )
        })
    }

    /// Finds out where a record is.
    fn target(&self, key: &Key, deadline: Deadline) -> Result<SafeUrl> {
        let plain = self.endpoint.record(key, true)?;
        let known = self.links.lock().get(key).cloned();
        let link = match known {
            Some(link) => Some(link),
            None => {
                // The key itself sorts before all others that begin with it.
                let query = ListQuery {
                    prefix: Some(key.as_str().into()),
                    limit: Some(1),
                    ..ListQuery::default()
                };
                let item = self
                    .list_page(&query, deadline)
                    .map_err(|error| error.with_key(key))?
                    .items
                    .into_iter()
                    .find(|item| item.key == *key)
                    .ok_or_else(|| {
                        StoreError::new(ErrorKind::NotFound, "the record does not exist")
                            .with_key(key)
                    })?;
                item.public_url
            }
        };
        // A link is followed wherever it leads, but not from an encrypted listing into the open, nor
        // from the Internet into the network around this machine.
        let is_encrypted = plain.expose().scheme() == "https";
        let may_follow = |link: &Url| {
            (!is_encrypted || link.scheme() == "https") && !leads_inside(plain.expose(), link)
        };
        let link = link.filter(|link| may_follow(link.expose()));
        Ok(link.map_or(plain, |link| linked_record(&link)))
    }

    /// Forgets a link that does not work, so that the next use asks for a new one.
    fn unlink<T>(&self, key: &Key, result: Result<T>) -> Result<T> {
        if let Err(error) = &result
            && error.kind() == ErrorKind::Denied
        {
            self.links.lock().pop(key);
        }
        result
    }
}

impl Store for SignedKeysStore {
    fn is_writable(&self) -> bool {
        false
    }

    fn info(&self) -> StoreInfo {
        self.info.clone()
    }

    fn record_url(&self, key: &Key) -> Option<String> {
        self.endpoint.record_url(key)
    }

    fn list_page(&self, query: &ListQuery, deadline: Deadline) -> Result<ListPage> {
        if let Some(expired) = self.expired() {
            return Err(expired);
        }
        let signature = Some(&self.signature);
        let page = self
            .pages
            .list(&self.api, &self.endpoint, signature, query, deadline)
            .map_err(|error| match (error.kind(), self.expired()) {
                (ErrorKind::Denied, Some(expired)) => expired,
                _ => error,
            })?;
        let mut links = self.links.lock();
        for item in &page.items {
            if let Some(link) = &item.public_url {
                links.put(item.key.clone(), link.clone());
            }
        }
        drop(links);
        Ok(page)
    }

    fn answers_head(&self) -> bool {
        self.api.answers_head()
    }

    fn head(&self, key: &Key, deadline: Deadline) -> Result<RecordMeta> {
        let target = self.target(key, deadline)?;
        self.unlink(key, self.api.head(target, key, deadline))
    }

    fn get(&self, key: &Key, request: &GetRequest, deadline: Deadline) -> Result<GetOutcome> {
        let target = self.target(key, deadline)?;
        self.unlink(key, self.api.get(target, key, request, deadline))
    }

    fn put(&self, key: &Key, _: &PutRequest, _: Upload<'_>, _: Deadline) -> Result<RecordMeta> {
        Err(read_only(key))
    }

    fn delete(&self, key: &Key, _: Deadline) -> Result<()> {
        Err(read_only(key))
    }
}
