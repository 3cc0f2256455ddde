//! One listing of the store, page by page, shared by everybody who reads the directory meanwhile.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use parking_lot::{Condvar, Mutex};

use super::split::Split;
use super::{Result, may_block, wait_until};
use crate::clock::{Deadline, Wait};
use crate::store::pager::Pager;
use crate::store::{ErrorKind, Key, ListItem, ListQuery, Store, StoreError};
use crate::workers::Workers;

/// So many pages are fetched one after the other before several are fetched at once: guesses cost
/// requests, and most stores are listed by then.
const PAGES_IN_ORDER: usize = 10;
/// Pages fetched at once.
pub const PAGES_AT_ONCE: usize = 16;
/// Pages fetched before somebody asks for them: a reader who stops half-way wastes no more.
const PAGES_AHEAD: u64 = 200;

/// What is listed, and how.
#[derive(Clone, Debug)]
pub struct Source {
    /// The store.
    pub store: Arc<dyn Store>,
    /// What of it.
    pub query: ListQuery,
    /// The longest that one page may take, when nobody's own deadline bounds it.
    pub deadline: Duration,
    /// Threads for pages that are fetched at once; at least [`PAGES_AT_ONCE`].
    pub workers: Arc<Workers>,
}

/// A listing that grows page by page.
///
/// INVARIANT: entries are in key order, each key once; what is there never changes.
#[derive(Debug)]
pub struct Listing {
    /// When it was begun: it shows the store as it was then or later.
    pub started: Instant,
    source: Source,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    pages: Vec<Arc<Page>>,
    /// Where it goes on, page by page; taken out while somebody fetches one.
    pager: Option<Pager>,
    /// The rest of the listing, when several pages are fetched at once.
    split: Option<Split>,
    /// Fetched pages in order, waiting for their inode numbers.
    raw: VecDeque<Vec<ListItem>>,
    /// Pages fetched at once so far, and how many of them readers asked for.
    fetched: u64,
    wanted: u64,
    working: usize,
    failure: Option<StoreError>,
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
    /// Begins a listing.
    ///
    /// Keys that `before` lists keep their inode numbers.
    pub fn new(source: Source, now: Instant, before: Option<Arc<Self>>) -> Arc<Self> {
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
            pager: Some(Pager::new(source.query.clone())),
            split: None,
            raw: VecDeque::new(),
            fetched: 0,
            wanted: 0,
            working: 0,
            failure: None,
            done: false,
            before,
        };
        Arc::new(Self {
            started: now,
            source,
            state: Mutex::new(state),
            changed: Condvar::new(),
        })
    }

    /// Returns the page with entry `index` of the listing, fetching as far as needed; `None`
    /// when the listing ends before it.
    ///
    /// `number` gives a key its inode number, given the one it had in the listing before.
    ///
    /// # Errors
    /// Those of the store; the listing goes on from there when asked again.
    pub fn page(
        self: &Arc<Self>,
        index: u64,
        wait: Wait,
        clock: &dyn Fn() -> Instant,
        number: &dyn Fn(&Key, Option<u64>) -> u64,
    ) -> Result<Option<Arc<Page>>> {
        let mut state = self.state.lock();
        loop {
            if let Some(page) = page_of(&state.pages, index) {
                return Ok(Some(page));
            }
            if state.done {
                return Ok(None);
            }
            if !state.raw.is_empty() {
                self.number_pages(&mut state, clock, number);
                continue;
            }
            if state.split.as_ref().is_some_and(Split::is_done) {
                state.done = true;
                state.before = None;
                state.split = None;
                continue;
            }
            let deadline = may_block(wait)?;
            if state.split.is_some() {
                if let Some(failure) = state.failure.take() {
                    return Err(failure.into());
                }
                state.wanted = state.wanted.max(state.fetched);
                self.employ(&mut state);
                wait_until(&self.changed, &mut state, deadline, "the listing")?;
            } else if let Some(pager) = state.pager.take() {
                drop(state);
                self.next_in_order(pager, deadline)?;
                state = self.state.lock();
            } else {
                wait_until(&self.changed, &mut state, deadline, "the listing")?;
            }
        }
    }

    /// Fetches the next page, and after a few of them splits the rest.
    fn next_in_order(&self, pager: Pager, deadline: Deadline) -> Result<(), StoreError> {
        let mut taken = Taken {
            listing: self,
            pager: Some(pager),
        };
        let Some(pager) = taken.pager.as_mut() else {
            return Ok(());
        };
        let items = pager
            .next_page(&*self.source.store, deadline)?
            .unwrap_or_default();
        let (done, position) = (pager.is_done(), pager.position());
        let mut state = self.state.lock();
        if !items.is_empty() {
            state.raw.push_back(items);
        }
        if done {
            // An empty split is a finished one.
            state.split = Some(Split::finished());
        } else if state.pages.len() >= PAGES_IN_ORDER
            && let Some(position) = position
        {
            let known = state
                .pages
                .iter()
                .flat_map(|page| page.entries.iter().step_by(10))
                .map(|entry| entry.key.as_str());
            state.split = Some(Split::new(position, known));
        } else {
            state.pager = taken.pager.take();
        }
        taken.pager = None;
        Ok(())
    }

    /// Gives fetched pages their inode numbers.
    fn number_pages(
        &self,
        state: &mut parking_lot::MutexGuard<'_, State>,
        clock: &dyn Fn() -> Instant,
        number: &dyn Fn(&Key, Option<u64>) -> u64,
    ) {
        while let Some(items) = state.raw.pop_front() {
            let before = state.before.clone();
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
    }

    /// Puts threads to work on the split listing.
    fn employ(self: &Arc<Self>, state: &mut State) {
        while state.working < PAGES_AT_ONCE {
            let listing = Arc::clone(self);
            if self.source.workers.spawn(move || listing.work()).is_err() {
                if state.working == 0 {
                    state.failure = Some(StoreError::new(
                        ErrorKind::Network,
                        "too many listings at once",
                    ));
                }
                return;
            }
            state.working += 1;
        }
    }

    /// Fetches pages of the split listing until there is nothing to do.
    fn work(&self) {
        let _leaving = Leaving(self);
        loop {
            let task = {
                let mut state = self.state.lock();
                if state.failure.is_some() || state.fetched >= state.wanted + PAGES_AHEAD {
                    return;
                }
                match state.split.as_mut().and_then(Split::task) {
                    Some(task) => task,
                    None => return,
                }
            };
            let query = ListQuery {
                after: Some(Arc::clone(&task.after)),
                ..self.source.query.clone()
            };
            let mut pager = Pager::new(query);
            let page = pager.next_page(&*self.source.store, Deadline::after(self.source.deadline));
            let mut guard = self.state.lock();
            let state = &mut *guard;
            let Some(split) = state.split.as_mut() else {
                return;
            };
            match page {
                Ok(items) => {
                    let next = if pager.is_done() {
                        None
                    } else {
                        pager.position()
                    };
                    split.deliver(&task, items.unwrap_or_default(), next);
                    state.raw.extend(split.ready());
                    state.fetched += 1;
                }
                Err(error) => {
                    split.failed(&task);
                    state.failure = Some(error);
                }
            }
            drop(guard);
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

/// Counts a thread out on every way, and wakes those who may have to call another.
struct Leaving<'a>(&'a Listing);

impl Drop for Leaving<'_> {
    fn drop(&mut self) {
        self.0.state.lock().working -= 1;
        self.0.changed.notify_all();
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        if let Some(pager) = self.pager.take() {
            self.listing.state.lock().pager = Some(pager);
        }
        self.listing.changed.notify_all();
    }
}
