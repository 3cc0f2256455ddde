//! Pages of keys, and answers kept so that the server need only say that nothing has changed.
//!
//! The platform tags each page with a hash of its text. The next listing asks for a page under the
//! tag that it had, and 304 costs no body. What is kept is the answer as it was sent, compressed
//! where the server does so.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use reqwest::header::{CONTENT_ENCODING, ETAG, HeaderMap, HeaderValue, IF_NONE_MATCH};
use serde::de::{DeserializeOwned, IgnoredAny};

use super::call::{Call, Purpose};
use super::endpoint::{self, Endpoint};
use super::errors::{Failure, Subject};
use super::http::json_of;
use super::record::RecordApi;
use super::wire::{self, KeysPage, Link};
use crate::base::clock::Deadline;
use crate::base::redact::Secret;
use crate::store::{ErrorKind, ListPage, ListQuery, Result, StoreError};

/// Bytes of answers kept for each store: some fifty compressed pages of a thousand keys.
const MOST_BYTES: usize = 1 << 20;
/// What a kept page takes besides its body, about.
const OVERHEAD: usize = 512;

/// The pages of one store.
#[derive(Debug, Default)]
pub struct Pages {
    kept: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    bytes: usize,
    /// How many listings have been begun.
    listings: u64,
    pages: HashMap<ListQuery, (Arc<Page>, u64)>,
}

/// An answer with a tag.
#[derive(Debug)]
struct Page {
    tag: HeaderValue,
    /// Only what tells how the body is encoded.
    headers: HeaderMap,
    body: Vec<u8>,
}

/// What the server says.
enum Answer<L> {
    /// The page, and what is worth keeping of it.
    Page(KeysPage<L>, Option<Page>),
    /// It is the one with this tag, where the server repeats that.
    Unchanged(Option<HeaderValue>),
}

impl Pages {
    /// Asks for a page of keys, with the token or the signature.
    ///
    /// # Errors
    /// As [`crate::store::Store::list_page`].
    pub fn list(
        &self,
        api: &RecordApi,
        endpoint: &Endpoint,
        signature: Option<&Secret>,
        query: &ListQuery,
        deadline: Deadline,
    ) -> Result<ListPage> {
        let call = || {
            let target = endpoint.keys(query, signature);
            api.call(Purpose::List, target, Subject::Listing)
        };
        let asked = endpoint::page_len(query);
        match signature {
            // Only a store without a token needs the links.
            Some(_) => self
                .ask::<String>(api, &call, query, deadline)?
                .into_page(asked, query.after.as_deref()),
            None => self
                .ask::<IgnoredAny>(api, &call, query, deadline)?
                .into_page(asked, query.after.as_deref()),
        }
    }

    fn ask<'a, L: Link + DeserializeOwned>(
        &self,
        api: &RecordApi,
        call: &dyn Fn() -> Call<'a>,
        query: &ListQuery,
        deadline: Deadline,
    ) -> Result<KeysPage<L>> {
        let known = self.kept.lock().get(query);
        if let Some(known) = known {
            let mut conditional = call();
            conditional.accepts = &[304];
            conditional.headers.insert(IF_NONE_MATCH, known.tag.clone());
            match send(api, &conditional, deadline)? {
                Answer::Page(page, worth) => {
                    self.kept.lock().put(query, worth);
                    return Ok(page);
                }
                Answer::Unchanged(tag)
                    if tag.as_ref().is_none_or(|tag| is_same(tag, &known.tag)) =>
                {
                    let page = json_of(Subject::Listing, 304, &known.headers, known.body.clone());
                    return page.map_err(|failure| StoreError::new(failure.kind, failure.message));
                }
                // It is another page that has not changed.
                Answer::Unchanged(_) => {}
            }
        }
        match send(api, &call(), deadline)? {
            Answer::Page(page, worth) => {
                self.kept.lock().put(query, worth);
                Ok(page)
            }
            Answer::Unchanged(_) => Err(StoreError::new(
                ErrorKind::Protocol,
                "the server answered 304 to a request without a condition",
            )),
        }
    }
}

/// Asks the server, retries included.
fn send<L: Link + DeserializeOwned>(
    api: &RecordApi,
    call: &Call<'_>,
    deadline: Deadline,
) -> Result<Answer<L>> {
    api.http.call(call, None, deadline, |reply| {
        let tag = reply.headers.get(ETAG).cloned();
        if reply.status == 304 {
            return Ok(Answer::Unchanged(tag));
        }
        let body = reply.body.read_all(wire::MAX_JSON_LEN, deadline)?;
        let mut headers = HeaderMap::new();
        for line in reply.headers.get_all(CONTENT_ENCODING) {
            headers.append(CONTENT_ENCODING, line.clone());
        }
        let worth = tag
            .filter(|_| body.len() <= MOST_BYTES)
            .map(|tag| (tag, body.clone()));
        let page = json_of(call.subject, reply.status, &headers, body)?;
        let worth = worth.map(|(tag, body)| Page { tag, headers, body });
        Ok::<_, Failure>(Answer::Page(page, worth))
    })
}

/// Compares weakly, as `If-None-Match` does.
fn is_same(one: &HeaderValue, other: &HeaderValue) -> bool {
    let strong = |tag: &HeaderValue| {
        let tag = tag.as_bytes();
        tag.strip_prefix(b"W/").unwrap_or(tag).to_vec()
    };
    strong(one) == strong(other)
}

impl Kept {
    /// Returns the page that a listing is about to ask for, if it is kept.
    fn get(&mut self, query: &ListQuery) -> Option<Arc<Page>> {
        if query.after.is_none() {
            self.listings += 1;
        }
        let (page, used) = self.pages.get_mut(query)?;
        *used = self.listings;
        Some(Arc::clone(page))
    }

    /// Keeps a page instead of the one before it, if there is room.
    fn put(&mut self, query: &ListQuery, page: Option<Page>) {
        if let Some((page, _)) = self.pages.remove(query) {
            self.bytes -= page.size();
        }
        // Few keys are asked for to find one of them.
        let Some(page) = page.filter(|_| query.limit.is_none()) else {
            return;
        };
        if self.bytes + page.size() > MOST_BYTES {
            // Of listings before the last one: the pages begin elsewhere by now.
            let listings = self.listings;
            self.pages.retain(|_, (_, used)| *used + 1 >= listings);
            self.bytes = self.pages.values().map(|(page, _)| page.size()).sum();
        }
        if self.bytes + page.size() <= MOST_BYTES {
            self.bytes += page.size();
            let kept = (Arc::new(page), self.listings);
            self.pages.insert(query.clone(), kept);
        }
    }
}

impl Page {
    fn size(&self) -> usize {
        self.body.len() + OVERHEAD
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(len: usize) -> Option<Page> {
        Some(Page {
            tag: HeaderValue::from_static("W/\"x\""),
            headers: HeaderMap::new(),
            body: vec![0; len],
        })
    }

    fn after(place: usize) -> ListQuery {
        ListQuery {
            after: (place > 0).then(|| place.to_string().into()),
            ..ListQuery::default()
        }
    }

    #[test]
    fn what_is_kept_is_bounded_and_makes_room_for_newer_listings() {
        let mut kept = Kept::default();
        for listing in 0..6 {
            // Keys that come before all others move each page on.
            let mut hits = 0;
            for at in 0..40 {
                let query = after(if at == 0 { 0 } else { at * 1000 + listing / 3 });
                hits += usize::from(kept.get(&query).is_some());
                kept.put(&query, page(MOST_BYTES / 20));
                assert!(kept.bytes <= MOST_BYTES);
                let all: usize = kept.pages.values().map(|(page, _)| page.size()).sum();
                assert_eq!(kept.bytes, all);
            }
            let expected = match listing {
                0 => 0,
                // The pages of the last listing are not driven out for the next one's.
                3 => 1,
                4 => 1,
                _ => 19,
            };
            assert_eq!(hits, expected, "{listing}");
        }
        let few = ListQuery {
            limit: Some(1),
            ..after(5)
        };
        kept.put(&few, page(10));
        assert!(kept.get(&few).is_none());
    }
}
