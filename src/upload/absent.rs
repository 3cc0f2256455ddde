//! Records that are to be new, where the server heeds no conditions: right before one is stored, it is asked
//! whether there is one.
//!
//! A program that copies many files in would pay twice for each. So of several in a row all but the
//! first are answered by a page of the listing, from the name on, which counts for a second.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::base::clock::Deadline;
use crate::base::sync::Mutex;
use crate::store::record::is_key_byte;
use crate::store::{Key, ListQuery, Store};

/// So long a page tells which records there are.
const FRESH: Duration = Duration::from_secs(1);
/// What follows the one before it no later is in a row with it.
const IN_A_ROW: Duration = Duration::from_secs(2);
/// So many in a row are worth a page.
const ROW: u32 = 3;
/// So long no page is asked for after that has failed: perhaps the token may not.
const AFTER_FAILURE: Duration = Duration::from_secs(60);

/// What is known of records that are not there.
#[derive(Debug, Default)]
pub(super) struct Absences(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    in_a_row: u32,
    last: Option<Instant>,
    page: Option<Page>,
    is_asking: bool,
    failed: Option<Instant>,
}

/// A page of the listing.
#[derive(Debug)]
struct Page {
    asked: Instant,
    after: String,
    /// The last key that it tells of; `None` if it is the last page.
    until: Option<Arc<str>>,
    /// In order.
    keys: Vec<Key>,
}

impl Page {
    fn shows_absent(&self, key: &Key, now: Instant) -> bool {
        let is_within = *key.as_str() > *self.after
            && self
                .until
                .as_ref()
                .is_none_or(|until| *key.as_str() <= **until);
        is_within
            && now.saturating_duration_since(self.asked) < FRESH
            && self.keys.binary_search(key).is_err()
    }
}

impl Absences {
    /// Returns whether a page of the listing tells that there is no such record. Else the record itself
    /// is to be asked for.
    pub(super) fn show(
        &self,
        store: &dyn Store,
        key: &Key,
        now: Instant,
        deadline: Deadline,
    ) -> bool {
        let mut state = self.0.lock();
        let since = |at: Instant| now.saturating_duration_since(at);
        let is_in_a_row = state.last.is_some_and(|last| since(last) <= IN_A_ROW);
        state.in_a_row = if is_in_a_row { state.in_a_row + 1 } else { 1 };
        state.last = Some(now);
        if state
            .page
            .as_ref()
            .is_some_and(|page| page.shows_absent(key, now))
        {
            return true;
        }
        let has_failed = state.failed.is_some_and(|at| since(at) < AFTER_FAILURE);
        if state.in_a_row < ROW || state.is_asking || has_failed {
            return false;
        }
        state.is_asking = true;
        drop(state);
        let after = just_before(key);
        let query = ListQuery {
            after: Some(after.as_str().into()),
            ..ListQuery::default()
        };
        let page = store.list_page(&query, deadline);
        let mut state = self.0.lock();
        state.is_asking = false;
        match page {
            Ok(page) => {
                let mut keys: Vec<Key> = page.items.into_iter().map(|item| item.key).collect();
                keys.sort_unstable();
                let page = Page {
                    asked: now,
                    after,
                    until: page.next,
                    keys,
                };
                let is_absent = page.shows_absent(key, now);
                state.page = Some(page);
                is_absent
            }
            Err(error) => {
                tracing::debug!("cannot list what there is beside {key}: {error}");
                state.failed = Some(now);
                false
            }
        }
    }
}

/// Returns a text that comes before a key, and not far.
fn just_before(key: &Key) -> String {
    let mut text = key.as_str().to_owned();
    if let Some(last) = text.pop()
        && last.is_ascii()
        && let Some(lower) = (0..last as u8).rev().find(|byte| is_key_byte(*byte))
    {
        text.push(char::from(lower));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_just_before_a_key_could_be_one() {
        for (key, before) in [("b", "a"), ("n-10", "n-1."), ("!", ""), ("aé", "a")] {
            assert_eq!(just_before(&Key::new(key).expect("a key")), before, "{key}");
        }
    }
}
