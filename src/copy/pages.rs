//! Two listings side by side, in the order of keys, each a few pages ahead of its reader.

use std::cmp::Ordering;
use std::collections::VecDeque;
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::Scope;
use std::time::Duration;

use super::filter::Filter;
use crate::base::clock::Deadline;
use crate::store::pager::Pager;
use crate::store::{ListItem, Result, Store, StoreError};

/// Pages that are fetched before they are needed.
const PAGES_AHEAD: usize = 4;

/// The keys of a store that take part, in order.
#[derive(Debug)]
pub struct Listing {
    pages: Receiver<Result<Vec<ListItem>>>,
    page: VecDeque<ListItem>,
}

impl Listing {
    /// Starts listing in a thread of `scope`; each page may take as long as `timeout`.
    pub fn start<'scope>(
        scope: &'scope Scope<'scope, '_>,
        store: &'scope dyn Store,
        filter: &'scope Filter,
        timeout: Duration,
    ) -> Self {
        let (sender, pages) = sync_channel(PAGES_AHEAD);
        scope.spawn(move || {
            let mut pager = Pager::new(filter.query());
            while let Some(page) = pager.next_page(store, Deadline::after(timeout)).transpose() {
                let page = page.map(|mut items| {
                    items.retain(|item| filter.takes(&item.key));
                    items
                });
                let failed = page.is_err();
                // The reader may have given up.
                if sender.send(page).is_err() || failed {
                    return;
                }
            }
        });
        Self {
            pages,
            page: VecDeque::new(),
        }
    }

    fn peek(&mut self) -> Result<Option<&ListItem>> {
        while self.page.is_empty() {
            match self.pages.recv() {
                Ok(page) => self.page = page?.into(),
                Err(_) => return Ok(None),
            }
        }
        Ok(self.page.front())
    }
}

/// A key of one store or of both.
#[derive(Debug)]
pub enum Pair {
    /// Only the first has it.
    First(ListItem),
    /// Only the second has it.
    Second(ListItem),
    /// Both have it.
    Both(ListItem, ListItem),
}

/// Which of two listings failed, and why.
#[derive(Debug)]
pub enum ListingError {
    /// The first.
    First(StoreError),
    /// The second.
    Second(StoreError),
}

/// Two listings, walked together.
#[derive(Debug)]
pub struct Pairs {
    first: Listing,
    second: Listing,
}

impl Pairs {
    /// Walks two listings of the same filter.
    pub fn new(first: Listing, second: Listing) -> Self {
        Self { first, second }
    }

    /// Returns the next key; `None` when both listings are complete.
    ///
    /// # Errors
    /// That one of them failed: what would come after is unknown.
    pub fn next_pair(&mut self) -> Result<Option<Pair>, ListingError> {
        let order = {
            let first = self.first.peek().map_err(ListingError::First)?;
            let second = self.second.peek().map_err(ListingError::Second)?;
            match (first, second) {
                (None, None) => return Ok(None),
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (Some(first), Some(second)) => first.key.cmp(&second.key),
            }
        };
        let take = |wanted: bool, listing: &mut Listing| {
            wanted.then(|| listing.page.pop_front()).flatten()
        };
        let first = take(order.is_le(), &mut self.first);
        let second = take(order.is_ge(), &mut self.second);
        Ok(match (first, second) {
            (Some(first), Some(second)) => Some(Pair::Both(first, second)),
            (Some(first), None) => Some(Pair::First(first)),
            (None, Some(second)) => Some(Pair::Second(second)),
            (None, None) => None,
        })
    }
}
