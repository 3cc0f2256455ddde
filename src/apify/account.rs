//! The stores of an account: listed, made, deleted.

use std::sync::Arc;

use serde::Deserialize;
use url::Url;

use super::call::{Call, Purpose};
use super::endpoint::{Endpoint, encode};
use super::errors::Subject;
use super::http::HttpClient;
use super::token::Token;
use crate::base::clock::Deadline;
use crate::store::Result;

/// The most stores on a page.
const PAGE: usize = 1000;

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

    /// Returns the stores, the oldest first; those without a name only if they are wanted.
    ///
    /// # Errors
    /// Those of the server.
    pub fn stores(&self, unnamed: bool, deadline: Deadline) -> Result<Vec<StoreSummary>> {
        let mut stores: Vec<StoreSummary> = Vec::new();
        loop {
            let (offset, limit) = (stores.len().to_string(), PAGE.to_string());
            let mut parameters = vec![("offset", offset.as_str()), ("limit", limit.as_str())];
            if unnamed {
                parameters.push(("unnamed", "true"));
            }
            let call = self.call(Purpose::Other, "key-value-stores", &parameters);
            let page: Page = self.http.json(&call, deadline)?;
            let is_last = page.items.len() < PAGE;
            stores.extend(page.items);
            if is_last || page.total.is_some_and(|total| stores.len() >= total) {
                return Ok(stores);
            }
        }
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
