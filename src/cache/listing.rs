//! One listing of the store, page by page, shared by everybody who reads the directory meanwhile.

use std::sync::Arc;
use std::time::{Instant, SystemTime};

use parking_lot::{Condvar, Mutex};

use super::{Result, may_block, wait_until};
use crate::clock::Wait;
use crate::store::pager::Pager;
use crate::store::{ErrorKind, Key, ListQuery, Store, StoreError};

/// So many pages in a row may be empty before the listing counts as endless.
const MOST_EMPTY_PAGES: usize = 64;

/// A listing that grows page by page.
///
/// INVARIANT: entries are in key order, each key once; what is there never changes.
#[derive(Debug)]
pub struct Listing {
    /// When it was begun: it shows the store as it was then or later.
    pub started: Instant,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    pages: Vec<Arc<Page>>,
    /// Taken out while somebody fetches a page.
    pager: Option<Pager>,
    done: bool,
    /// The listing before this one, until this one is done.
    before: Option<Arc<Listing>>,
}

/// One page of a listing.
#[derive(Debug)]
pub struct Page {
    /// Index of the first entry in the whole listing.
    pub first: u64,
    /// When it was fetched.
    pub fetched: Instant,
    /// The entries in key order; never empty.
    pub entries: Vec<Entry>,
}

/// One record as listed.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The record's key.
    pub key: Key,
    /// Its inode number: they grow in listing order.
    pub ino: u64,
    /// Bytes as stored, where the store tells.
    pub stored_size: Option<u64>,
    /// Its time, where the store tells.
    pub modified: Option<SystemTime>,
}

/// What a listing knows of a key.
#[derive(Debug)]
pub enum Found {
    /// It is listed.
    Listed(Entry, Instant),
    /// The listing has come past it, and it is not there.
    Absent(Instant),
    /// The listing has not come so far.
    Unknown,
}

impl Listing {
    /// Begins a listing of what `query` selects.
    ///
    /// Keys that `before` lists keep their inode numbers.
    pub fn new(query: ListQuery, now: Instant, before: Option<Arc<Self>>) -> Arc<Self> {
        // Only one listing back, or a mount that is listed and never to the end would collect them.
        let before = before.and_then(|before| {
            let mut state = before.state.lock();
            let older = state.before.take();
            if state.pages.is_empty() {
                older
            } else {
                Some(Arc::clone(&before))
            }
        });
        let state = State {
            pages: Vec::new(),
            pager: Some(Pager::new(query)),
            done: false,
            before,
        };
        Arc::new(Self {
            started: now,
            state: Mutex::new(state),
            changed: Condvar::new(),
        })
    }

    /// Returns the page with entry `index` of the listing, fetching as far as needed; `None`
    /// when the listing ends before it.
    ///
    /// # Errors
    /// Those of the store; the listing goes on from there when asked again.
    ///
    /// `number` gives a key its inode number, given the one it had in the listing before.
    pub fn page(
        &self,
        index: u64,
        store: &dyn Store,
        wait: Wait,
        clock: &dyn Fn() -> Instant,
        number: &dyn Fn(&Key, Option<u64>) -> u64,
    ) -> Result<Option<Arc<Page>>> {
        let mut empty = 0;
        let mut state = self.state.lock();
        loop {
            if let Some(page) = page_of(&state.pages, index) {
                return Ok(Some(page));
            }
            if state.done {
                return Ok(None);
            }
            let deadline = may_block(wait)?;
            let Some(pager) = state.pager.take() else {
                wait_until(&self.changed, &mut state, deadline, "the listing")?;
                continue;
            };
            let before = state.before.clone();
            drop(state);
            let mut taken = Taken {
                listing: self,
                pager: Some(pager),
            };
            let Some(pager) = taken.pager.as_mut() else {
                return Ok(None);
            };
            let items = pager.next_page(store, deadline)?.unwrap_or_default();
            let done = pager.is_done();
            let entries: Vec<Entry> = items
                .into_iter()
                .map(|item| {
                    let known = before
                        .as_ref()
                        .and_then(|before| match before.find(&item.key) {
                            Found::Listed(entry, _) => Some(entry.ino),
                            _ => None,
                        });
                    let ino = number(&item.key, known);
                    Entry {
                        ino,
                        key: item.key,
                        stored_size: item.stored_size,
                        modified: item.modified,
                    }
                })
                .collect();
            empty = if entries.is_empty() { empty + 1 } else { 0 };
            if empty > MOST_EMPTY_PAGES {
                return Err(StoreError::new(
                    ErrorKind::Protocol,
                    "the listing goes on without keys",
                )
                .into());
            }
            state = self.state.lock();
            state.done = done;
            if done {
                state.before = None;
            }
            if !entries.is_empty() {
                let first = state
                    .pages
                    .last()
                    .map_or(0, |page| page.first + page.entries.len() as u64);
                state.pages.push(Arc::new(Page {
                    first,
                    fetched: clock(),
                    entries,
                }));
            }
            state.pager = taken.pager.take();
            self.changed.notify_all();
        }
    }

    /// Tells whether the listing has come to its end.
    pub fn is_done(&self) -> bool {
        self.state.lock().done
    }

    /// Returns how many entries have been listed so far.
    pub fn len(&self) -> u64 {
        self.state
            .lock()
            .pages
            .last()
            .map_or(0, |page| page.first + page.entries.len() as u64)
    }

    /// Tells whether nothing has been listed so far.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the place of a key in what has been listed so far.
    pub fn rank(&self, key: &Key) -> Option<u64> {
        let state = self.state.lock();
        let after = state
            .pages
            .partition_point(|page| page.entries.first().is_some_and(|entry| entry.key <= *key));
        let page = state.pages.get(after.checked_sub(1)?)?;
        let at = page
            .entries
            .binary_search_by(|entry| entry.key.cmp(key))
            .ok()?;
        Some(page.first + at as u64)
    }

    /// Returns the entry at a place of what has been listed so far.
    pub fn entry(&self, rank: u64) -> Option<Entry> {
        let page = page_of(&self.state.lock().pages, rank)?;
        page.entries
            .get(usize::try_from(rank - page.first).ok()?)
            .cloned()
    }

    /// Returns all keys listed so far, in order.
    pub fn keys(&self) -> Vec<Key> {
        let pages = self.state.lock().pages.clone();
        pages
            .iter()
            .flat_map(|page| &page.entries)
            .map(|entry| entry.key.clone())
            .collect()
    }

    /// Returns the first key listed so far that `wanted` accepts.
    pub fn find_key(&self, wanted: &dyn Fn(&Key) -> bool) -> Option<Key> {
        let pages = self.state.lock().pages.clone();
        pages
            .iter()
            .flat_map(|page| &page.entries)
            .map(|entry| &entry.key)
            .find(|key| wanted(key))
            .cloned()
    }

    /// Looks a key up in what has been listed so far.
    pub fn find(&self, key: &Key) -> Found {
        let state = self.state.lock();
        let after = state
            .pages
            .partition_point(|page| page.entries.first().is_some_and(|entry| entry.key <= *key));
        let page = after.checked_sub(1).and_then(|at| state.pages.get(at));
        if let Some(page) = page
            && let Ok(at) = page.entries.binary_search_by(|entry| entry.key.cmp(key))
        {
            return page.entries.get(at).map_or(Found::Unknown, |entry| {
                Found::Listed(entry.clone(), page.fetched)
            });
        }
        match state.pages.last() {
            Some(last)
                if state.done || last.entries.last().is_some_and(|entry| entry.key > *key) =>
            {
                Found::Absent(page.unwrap_or(last).fetched)
            }
            None if state.done => Found::Absent(self.started),
            _ => Found::Unknown,
        }
    }
}

fn page_of(pages: &[Arc<Page>], index: u64) -> Option<Arc<Page>> {
    let after = pages.partition_point(|page| page.first <= index);
    let page = pages.get(after.checked_sub(1)?)?;
    (index < page.first + page.entries.len() as u64).then(|| Arc::clone(page))
}

/// Gives the pager back on every way out, and wakes those who wait for it.
struct Taken<'a> {
    listing: &'a Listing,
    pager: Option<Pager>,
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        if let Some(pager) = self.pager.take() {
            self.listing.state.lock().pager = Some(pager);
        }
        self.listing.changed.notify_all();
    }
}
