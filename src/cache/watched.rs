//! A store that reports this mount's changes to the store's clock, so that they do not count as
//! others'. All changes of a mount go through it, and a program that may go once its upload is sent is
//! let go here.

use std::sync::Arc;
use std::time::SystemTime;

use super::freshness::Freshness;
use crate::base::caller;
use crate::base::clock::Deadline;
use crate::base::redact::Secret;
use crate::store::freshness::{Span, StoreState};
use crate::store::{
    ErrorKind, FirstState, GetOutcome, GetRequest, Key, ListPage, ListQuery, PutRequest,
    RecordMeta, Result, Store, StoreInfo, Upload,
};

/// The same store.
#[derive(Debug)]
pub struct Watched {
    inner: Arc<dyn Store>,
    freshness: Arc<Freshness>,
}

impl Watched {
    /// Returns `inner`, wrapped to report its changes to `freshness`.
    pub fn new(inner: Arc<dyn Store>, freshness: Arc<Freshness>) -> Self {
        Self { inner, freshness }
    }

    fn change<T>(&self, key: &Key, change: impl FnOnce(&dyn Store) -> Result<T>) -> Result<T> {
        let question = self.freshness.question();
        let changed = change(&*self.inner);
        // A refused change has not happened; one without an answer may have.
        let is_refused = changed.as_ref().is_err_and(|error| {
            !matches!(
                error.kind(),
                ErrorKind::Network | ErrorKind::Timeout | ErrorKind::Server | ErrorKind::Protocol
            )
        });
        if !is_refused {
            self.freshness.wrote(key, &question, changed.is_err());
        }
        changed
    }
}

impl Store for Watched {
    fn info(&self) -> StoreInfo {
        self.inner.info()
    }

    fn is_writable(&self) -> bool {
        self.inner.is_writable()
    }

    fn record_url(&self, key: &Key) -> Option<String> {
        self.inner.record_url(key)
    }

    fn shared_url(&self, key: Option<&Key>, expires: Option<SystemTime>) -> Option<Secret> {
        self.inner.shared_url(key, expires)
    }

    fn state(&self, deadline: Deadline) -> Result<Option<StoreState>> {
        self.inner.state(deadline)
    }

    fn first_state(&self) -> Option<FirstState> {
        self.inner.first_state()
    }

    fn server(&self) -> Option<String> {
        self.inner.server()
    }

    fn server_time(&self) -> Option<Span> {
        self.inner.server_time()
    }

    fn list_page(&self, query: &ListQuery, deadline: Deadline) -> Result<ListPage> {
        self.inner.list_page(query, deadline)
    }

    fn answers_head(&self) -> bool {
        self.inner.answers_head()
    }

    fn head(&self, key: &Key, deadline: Deadline) -> Result<RecordMeta> {
        self.inner.head(key, deadline)
    }

    fn get(&self, key: &Key, request: &GetRequest, deadline: Deadline) -> Result<GetOutcome> {
        self.inner.get(key, request, deadline)
    }

    fn put(
        &self,
        key: &Key,
        request: &PutRequest,
        body: Upload<'_>,
        deadline: Deadline,
    ) -> Result<RecordMeta> {
        caller::sends();
        self.change(key, |store| store.put(key, request, body, deadline))
    }

    fn delete(&self, key: &Key, deadline: Deadline) -> Result<()> {
        self.change(key, |store| store.delete(key, deadline))
    }

    fn put_once(
        &self,
        key: &Key,
        request: &PutRequest,
        body: Upload<'_>,
        deadline: Deadline,
    ) -> Result<RecordMeta> {
        caller::sends();
        self.change(key, |store| store.put_once(key, request, body, deadline))
    }

    fn delete_once(&self, key: &Key, deadline: Deadline) -> Result<()> {
        self.change(key, |store| store.delete_once(key, deadline))
    }
}
