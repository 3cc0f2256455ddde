//! The Apify API as a store.
//!
//! [`ApifyStore`] is a store by id, with a token or public; [`signed`] has those that a link
//! opens. Below them, a request goes through `record` (what to ask), `http` (tokens, redirects,
//! limits, retries) and `transport` (one exchange); an answer's body comes back through `resume`.

use std::fmt;
use std::time::SystemTime;

use reqwest::header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderValue, IF_MATCH, IF_NONE_MATCH};

pub mod account;
pub mod answer;
pub mod body;
pub mod budget;
pub mod call;
pub mod connections;
pub mod endpoint;
pub mod errors;
pub mod http;
pub mod limit;
pub mod pace;
pub mod pages;
mod peer;
pub mod plain;
pub mod probe;
pub mod record;
pub mod record_urls;
pub mod redirect;
pub mod resume;
pub mod retry;
pub mod signed;
pub mod token;
pub mod transport;
pub mod upload;
pub mod wire;

use self::call::Purpose;
use self::endpoint::Endpoint;
use self::errors::Subject;
use self::http::header;
use self::pages::Pages;
use self::record::RecordApi;
use crate::base::clock::Deadline;
use crate::base::redact::Secret;
use crate::base::signature::{sign_keys, sign_record};
use crate::store::freshness::{Span, StoreState};
use crate::store::{
    ErrorKind, FirstState, GetOutcome, GetRequest, Key, ListPage, ListQuery, PutRequest,
    RecordMeta, Result, Store, StoreError, StoreInfo, Upload,
};

/// A store of the API, by its id.
///
/// Preconditions of [`Store::put`] are sent as `If-Match` and `If-None-Match`; whether the
/// platform honours them is not documented.
#[derive(Debug)]
pub struct ApifyStore {
    api: RecordApi,
    endpoint: Endpoint,
    info: StoreInfo,
    signing_key: Option<Secret>,
    first_state: Option<FirstState>,
    pages: Pages,
    explain: Option<Explain>,
}

/// Finds the cause of an error about a store that was opened without asking.
struct Explain(Box<dyn Fn(StoreError, Deadline) -> StoreError + Send + Sync>);

impl fmt::Debug for Explain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Explain").finish_non_exhaustive()
    }
}

impl ApifyStore {
    /// Returns the store at `endpoint`; makes no request.
    pub fn new(api: RecordApi, endpoint: Endpoint, info: StoreInfo) -> Self {
        Self {
            api,
            endpoint,
            info,
            signing_key: None,
            explain: None,
            first_state: None,
            pages: Pages::default(),
        }
    }

    /// Explains errors of a store that was opened without asking what it is.
    pub fn explaining(
        mut self,
        explain: impl Fn(StoreError, Deadline) -> StoreError + Send + Sync + 'static,
    ) -> Self {
        self.explain = Some(Explain(Box::new(explain)));
        self
    }

    fn explained<T>(&self, result: Result<T>, deadline: Deadline) -> Result<T> {
        result.map_err(|error| match &self.explain {
            Some(explain) => (explain.0)(error, deadline),
            None => error,
        })
    }

    /// Lets the store tell of its state, as it was told when it was opened.
    pub fn beginning_with(mut self, first_state: Option<FirstState>) -> Self {
        self.first_state = first_state;
        self
    }

    /// Lets the store make links, signed with its key.
    pub fn signing_with(mut self, key: Option<Secret>) -> Self {
        self.signing_key = key;
        self
    }
}

impl Store for ApifyStore {
    fn info(&self) -> StoreInfo {
        self.info.clone()
    }

    fn record_url(&self, key: &Key) -> Option<String> {
        self.endpoint.record_url(key)
    }

    fn shared_url(&self, key: Option<&Key>, expires: Option<SystemTime>) -> Option<Secret> {
        let secret = self.signing_key.as_ref()?;
        let (url, signature) = match key {
            Some(key) => (
                self.endpoint.record_url(key)?,
                sign_record(secret, key.as_str()),
            ),
            None => (
                self.endpoint.keys_url(),
                sign_keys(secret, &self.info.id, expires),
            ),
        };
        Some(Secret::new(format!(
            "{url}?signature={}",
            signature.expose()
        )))
    }

    fn state(&self, deadline: Deadline) -> Result<Option<StoreState>> {
        if self.first_state.is_none() {
            return Ok(None);
        }
        let target = self.endpoint.store();
        let call = self.api.call(Purpose::Other, target, Subject::Store);
        let object: wire::StoreObject = self.api.http.json(&call, deadline)?;
        Ok(object.state())
    }

    fn first_state(&self) -> Option<FirstState> {
        self.first_state
    }

    fn server(&self) -> Option<String> {
        Some(self.api.http.server())
    }

    fn server_time(&self) -> Option<Span> {
        self.api.http.server_time()
    }

    fn list_page(&self, query: &ListQuery, deadline: Deadline) -> Result<ListPage> {
        let pages = &self.pages;
        let page = pages.list(&self.api, &self.endpoint, None, query, deadline);
        self.explained(page, deadline)
    }

    fn answers_head(&self) -> bool {
        self.api.answers_head()
    }

    fn head(&self, key: &Key, deadline: Deadline) -> Result<RecordMeta> {
        let target = self.endpoint.record(key, true)?;
        self.explained(self.api.head(target, key, deadline), deadline)
    }

    fn get(&self, key: &Key, request: &GetRequest, deadline: Deadline) -> Result<GetOutcome> {
        let target = self.endpoint.record(key, true)?;
        self.explained(self.api.get(target, key, request, deadline), deadline)
    }

    fn put(
        &self,
        key: &Key,
        request: &PutRequest,
        body: Upload<'_>,
        deadline: Deadline,
    ) -> Result<RecordMeta> {
        self.put_record(key, request, body, false, deadline)
    }

    fn delete(&self, key: &Key, deadline: Deadline) -> Result<()> {
        self.delete_record(key, false, deadline)
    }

    fn put_once(
        &self,
        key: &Key,
        request: &PutRequest,
        body: Upload<'_>,
        deadline: Deadline,
    ) -> Result<RecordMeta> {
        self.put_record(key, request, body, true, deadline)
    }

    fn delete_once(&self, key: &Key, deadline: Deadline) -> Result<()> {
        self.delete_record(key, true, deadline)
    }
}

impl ApifyStore {
    fn put_record(
        &self,
        key: &Key,
        request: &PutRequest,
        mut body: Upload<'_>,
        single: bool,
        deadline: Deadline,
    ) -> Result<RecordMeta> {
        let target = self.endpoint.record(key, false)?;
        let mut call = self.api.call(Purpose::Put, target, Subject::Record(key));
        if let Some(content_type) = &request.content_type {
            call.headers.insert(CONTENT_TYPE, header(content_type)?);
        }
        if let Some(encoding) = request.encoding.header_value() {
            call.headers.insert(CONTENT_ENCODING, header(encoding)?);
        }
        if let Some(etag) = &request.if_match {
            call.headers.insert(IF_MATCH, header(etag.as_str())?);
        }
        if request.if_absent {
            call.headers
                .insert(IF_NONE_MATCH, HeaderValue::from_static("*"));
        }
        call.single = single;
        call.once = request.if_match.is_some() || request.if_absent;
        let stored_size = body.size();
        let stored = self
            .api
            .http
            .call(&call, Some(&mut body), deadline, |reply| {
                let (etag, last_modified) = self.api.validators_of_put(&reply);
                Ok(RecordMeta {
                    content_type: request.content_type.clone(),
                    encoding: request.encoding.clone(),
                    stored_size,
                    etag,
                    last_modified,
                    accepts_ranges: false,
                })
            });
        self.explained(stored, deadline)
    }

    fn delete_record(&self, key: &Key, single: bool, deadline: Deadline) -> Result<()> {
        let target = self.endpoint.record(key, false)?;
        let mut call = self.api.call(Purpose::Delete, target, Subject::Record(key));
        call.single = single;
        let deleted = self.api.http.call(&call, None, deadline, |_| Ok(()));
        match deleted {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            other => self.explained(other, deadline),
        }
    }
}

/// The error of changing a store that a link opened.
fn read_only(key: &Key) -> StoreError {
    StoreError::new(
        ErrorKind::Unsupported,
        "a store opened by a link cannot be changed",
    )
    .with_key(key)
    .with_hint("open the store by its id or name, with a token that may write")
}
