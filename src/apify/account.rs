//! The stores of an account: listed, made, deleted.

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use serde::Deserialize;
use url::Url;

use super::call::{Call, Purpose};
use super::endpoint::{Endpoint, encode};
use super::errors::Subject;
use super::http::HttpClient;
use super::token::Token;
use crate::base::clock::Deadline;
use crate::store::{ErrorKind, Result, StoreError};

/// The most stores on a page.
const PAGE: usize = 1000;

/// The most stores that an account is believed to have.
const MOST: usize = 1_000_000;

/// A store as the account's list shows it.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct StoreSummary {
    /// Its id.
    pub id: String,
    /// Its name, if it has one.
    pub name: Option<String>,
    /// The account's name.
    pub username: Option<String>,
    /// When it was made, ISO 8601.
    pub created_at: Option<String>,
    /// When it was last changed, ISO 8601.
    pub modified_at: Option<String>,
    /// The accounts that may read it.
    pub general_access: Option<String>,
    /// The run that made it.
    pub act_run_id: Option<String>,
    /// Counters.
    pub stats: Option<StoreStats>,
}

/// Counters of a store.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct StoreStats {
    /// Bytes that its records take.
    pub storage_bytes: Option<u64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Page {
    items: Vec<StoreSummary>,
    total: Option<usize>,
}

/// The stores of an account, page by page.
///
/// INVARIANT: each page has a store that none before it had, and there are at most `MOST` stores: a
/// list that repeats itself or does not end is an error.
#[derive(Debug)]
pub struct Stores<'a> {
    account: &'a Account,
    unnamed: bool,
    offset: usize,
    /// Hashes of the ids.
    seen: HashSet<u64>,
    done: bool,
}

impl Stores<'_> {
    /// Fetches the next page; `None` after the last one.
    ///
    /// # Errors
    /// Those of the server; [`ErrorKind::Protocol`] for a list that cannot be right.
    pub fn next_page(&mut self, deadline: Deadline) -> Result<Option<Vec<StoreSummary>>> {
        if self.done {
            return Ok(None);
        }
        let wrong = |why: String| StoreError::new(ErrorKind::Protocol, why);
        let mut page = self.account.page(self.offset, self.unnamed, deadline)?;
        let len = page.items.len();
        if len > PAGE {
            return Err(wrong(format!("a page of the stores holds {len} of them")));
        }
        self.offset += len;
        self.done = match page.total {
            Some(total) => self.offset >= total,
            None => len < PAGE,
        };
        let seen = &mut self.seen;
        page.items.retain(|store| seen.insert(hash(&store.id)));
        if len == 0 && !self.done {
            // What is counted may be more than what is listed.
            self.done = true;
            tracing::warn!(
                "the server counts {} stores, and lists {}",
                page.total.unwrap_or_default(),
                self.offset
            );
        }
        if page.items.is_empty() && !self.done {
            return Err(wrong(format!(
                "the list of stores does not advance: behind the first {} the same ones follow",
                self.seen.len()
            )));
        }
        if self.seen.len() > MOST {
            return Err(wrong(format!(
                "the account's list does not end: it has more than {MOST} stores"
            )));
        }
        Ok(Some(page.items))
    }
}

fn hash(id: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    id.hash(&mut hasher);
    hasher.finish()
}

/// The account of a token.
#[derive(Debug)]
pub struct Account {
    http: Arc<HttpClient>,
    token: Option<Arc<Token>>,
    base: Url,
}

impl Account {
    /// Returns the account of this token on the server at `base`.
    pub fn new(http: Arc<HttpClient>, token: Option<Arc<Token>>, base: Url) -> Self {
        Self { http, token, base }
    }

    fn call(&self, purpose: Purpose, path: &str, parameters: &[(&str, &str)]) -> Call<'_> {
        let target = Endpoint::new(&self.base, path).store_with(parameters);
        Call {
            token: self.token.as_deref(),
            ..Call::new(purpose, target, Subject::Store)
        }
    }

    /// Returns the list of the stores, the oldest first; those without a name only if they are wanted.
    pub fn stores(&self, unnamed: bool) -> Stores<'_> {
        Stores {
            account: self,
            unnamed,
            offset: 0,
            seen: HashSet::new(),
            done: false,
        }
    }

    fn page(&self, offset: usize, unnamed: bool, deadline: Deadline) -> Result<Page> {
        let (offset, limit) = (offset.to_string(), PAGE.to_string());
        let mut parameters = vec![("offset", offset.as_str()), ("limit", limit.as_str())];
        if unnamed {
            parameters.push(("unnamed", "true"));
        }
        let call = self.call(Purpose::Other, "key-value-stores", &parameters);
        self.http.json(&call, deadline)
    }

    /// Makes the store of this name, or returns the one that is there.
    ///
    /// # Errors
    /// Those of the server.
    pub fn create(&self, name: &str, deadline: Deadline) -> Result<StoreSummary> {
        let call = self.call(Purpose::Create, "key-value-stores", &[("name", name)]);
        self.http.json(&call, deadline)
    }

    /// Returns the API's data of a store.
    ///
    /// # Errors
    /// Those of the server.
    pub fn describe(&self, id: &str, deadline: Deadline) -> Result<StoreSummary> {
        let path = format!("key-value-stores/{}", encode(id));
        self.http
            .json(&self.call(Purpose::Other, &path, &[]), deadline)
    }

    /// Deletes a store with all its records, by its id.
    ///
    /// # Errors
    /// Those of the server.
    pub fn delete(&self, id: &str, deadline: Deadline) -> Result<()> {
        let path = format!("key-value-stores/{}", encode(id));
        let call = self.call(Purpose::Delete, &path, &[]);
        self.http.call(&call, None, deadline, |_| Ok(()))
    }
}
