//! A request as the store asks for it, before retries and redirects.

use reqwest::Method;
use reqwest::header::{ACCEPT_ENCODING, AUTHORIZATION, HeaderMap, HeaderValue};
use url::Url;

use super::errors::{Failure, Subject};
use super::limit::Budget;
use super::token::Token;
use crate::base::redact::SafeUrl;
use crate::store::{ErrorKind, Priority};

/// What kind of request, for counting and for the server's limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// A page of keys.
    List,
    /// A record's bytes.
    Get,
    /// A record's metadata.
    Head,
    /// Storing a record.
    Put,
    /// Deleting a record.
    Delete,
    /// Stores and runs.
    Other,
    /// Making a store.
    Create,
}

/// A request, which may be sent several times.
#[derive(Debug)]
pub struct Call<'a> {
    /// What kind it is; gives the method too.
    pub purpose: Purpose,
    /// Where it goes.
    pub target: SafeUrl,
    /// Headers besides the usual ones.
    pub headers: HeaderMap,
    /// The token that it may carry.
    pub token: Option<&'a Token>,
    /// What it is about.
    pub subject: Subject<'a>,
    /// Statuses other than 2xx that are no failure.
    pub accepts: &'static [u16],
    /// Whether a repetition could fail because the first attempt took effect.
    pub once: bool,
    /// Whether the caller repeats it, having asked something first.
    pub single: bool,
    /// Its priority, by what waits for it.
    pub priority: Priority,
}

impl<'a> Call<'a> {
    /// Returns a plain request, as urgent as requests of its kind usually are.
    pub fn new(purpose: Purpose, target: SafeUrl, subject: Subject<'a>) -> Self {
        Self {
            purpose,
            target,
            headers: HeaderMap::new(),
            token: None,
            subject,
            accepts: &[],
            once: false,
            single: false,
            priority: match purpose {
                Purpose::List => Priority::Listing,
                Purpose::Put | Purpose::Delete => Priority::Upload,
                Purpose::Get | Purpose::Head | Purpose::Other | Purpose::Create => {
                    Priority::Foreground
                }
            },
        }
    }

    /// Returns whether the server is to change something.
    pub(super) fn is_change(&self) -> bool {
        matches!(self.purpose, Purpose::Put | Purpose::Delete)
    }

    pub(super) fn method(&self) -> Method {
        match self.purpose {
            Purpose::List | Purpose::Get | Purpose::Other => Method::GET,
            Purpose::Create => Method::POST,
            Purpose::Head => Method::HEAD,
            Purpose::Put => Method::PUT,
            Purpose::Delete => Method::DELETE,
        }
    }

    pub(super) fn budget(&self) -> Budget {
        match self.purpose {
            Purpose::Get | Purpose::Put | Purpose::Delete => Budget::Records,
            Purpose::Head => Budget::Heads,
            Purpose::List => Budget::Lists,
            Purpose::Other | Purpose::Create => Budget::Rest,
        }
    }
}

/// Returns the headers of a call's request to this server, with the token if it may see that.
pub(super) fn headers_of(call: &Call<'_>, server: &Url) -> Result<HeaderMap, Failure> {
    let mut headers = call.headers.clone();
    if matches!(call.purpose, Purpose::List | Purpose::Other) {
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("gzip"));
    }
    if let Some(token) = call.token
        && let Some(secret) = token.for_url(server)?
    {
        let mut value =
            HeaderValue::from_str(&format!("Bearer {}", secret.expose())).map_err(|_| {
                Failure::permanent(
                    ErrorKind::Denied,
                    "the token holds characters that no token has",
                )
            })?;
        value.set_sensitive(true);
        headers.insert(AUTHORIZATION, value);
    }
    Ok(headers)
}
