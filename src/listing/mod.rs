//! One listing of the store, page by page, shared by all readers of the directory meanwhile.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::base::clock::{Clock, Wait};
use crate::base::sync::{Condvar, Mutex, MutexGuard};
use crate::base::workers::Workers;
use crate::listing::packed::Packed;
use crate::listing::partition::{Guide, Split};
use crate::listing::saved::{Index, Saved};
use crate::store::pager::Pager;
use crate::store::wait::{Result, may_block, wait_until};
use crate::store::{Key, ListQuery, Store, StoreError};

pub mod current;
mod fetch;
pub mod packed;
mod page;
pub mod partition;
pub mod saved;

pub use fetch::PAGES_AT_ONCE;
use page::page_of;
pub use page::{Entry, Page};

/// What is listed, and how.
#[derive(Clone, Debug)]
pub struct Source {
    /// The store.
    pub store: Arc<dyn Store>,
    /// What of it.
    pub query: ListQuery,
    /// The longest that one page may take, when no reader's deadline bounds it.
    pub deadline: Duration,
    /// Returns how old pages are.
    pub clock: Arc<dyn Clock>,
    /// Threads for pages that are fetched at once; at least [`PAGES_AT_ONCE`].
    pub workers: Arc<Workers>,
    /// Where whole listings are kept across mounts.
    pub index: Option<Arc<Index>>,
}

/// A listing that grows page by page.
///
/// INVARIANT: entries are in key order, each key once; what is there never changes.
#[derive(Debug)]
pub struct Listing {
    /// When it was begun: it shows the store as it was then or later.
    pub started: Instant,
    source: Source,
    /// What the index on disk was at when it was begun.
    epoch: u64,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    pages: Vec<Arc<Page>>,
    /// Where it goes on, page by page; taken out while a thread fetches one.
    pager: Option<Pager>,
    /// The rest of the listing, when several pages are fetched at once.
    split: Option<Split>,
    /// Fetched pages in order, waiting for their inode numbers, each with the time before its request.
    raw: VecDeque<(Packed, Instant)>,
    /// Pages fetched at once so far, and how many of them readers asked for.
    fetched: u64,
    wanted: u64,
    working: usize,
    failure: Option<StoreError>,
    done: bool,
    /// When the page that was asked for last was asked for.
    newest: Option<Instant>,
    /// The listing before this one, until this one is done.
    before: Option<Arc<Listing>>,
    /// Whether that one tells more than inode numbers.
    believes_before: bool,
    /// Whether the index on disk may still be read, and what it had, until this one is done.
    has_index: bool,
    saved: Option<Arc<Saved>>,
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
        Self::begin(source, now, before, true)
    }

    /// Begins a listing because earlier ones are no longer valid; keys keep their inode numbers all
    /// the same.
    pub fn again(source: Source, now: Instant, before: Option<Arc<Self>>) -> Arc<Self> {
        Self::begin(source, now, before, false)
    }

    fn begin(
        source: Source,
        now: Instant,
        before: Option<Arc<Self>>,
        mut believes_before: bool,
    ) -> Arc<Self> {
        // Only one listing back, or a mount that is listed and never to the end would collect them.
        let before = before.and_then(|before| {
            let mut state = before.state.lock();
            let older = state.before.take();
            // What has come less far tells less of where names stand.
            let is_less = older
                .as_ref()
                .is_some_and(|older| Guide::keys(&**older) > state.len());
            if state.pages.is_empty() || is_less {
                believes_before &= state.believes_before;
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
            newest: None,
            has_index: source.index.is_some() && before.is_none(),
            saved: None,
            before,
            believes_before,
        };
        Arc::new(Self {
            epoch: source.index.as_ref().map_or(0, |index| index.epoch()),
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
        number: &dyn Fn(&str, Option<u64>) -> u64,
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
                Self::number_page(&mut state, number);
                continue;
            }
            if state.split.as_ref().is_some_and(Split::is_done) {
                state.done = true;
                state.before = None;
                state.split = None;
                let was_shown = state.saved.take().is_some_and(|saved| saved.is_current);
                if !was_shown {
                    self.save(&state, self.source.clock.now());
                }
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

    /// Gives a fetched page its inode numbers.
    fn number_page(state: &mut MutexGuard<'_, State>, number: &dyn Fn(&str, Option<u64>) -> u64) {
        if let Some((packed, fetched)) = state.raw.pop_front() {
            let mut numbers: Vec<(u32, u64)> = Vec::new();
            let mut walk = packed.walk(0);
            let mut at = 0;
            let mut next = 0;
            while let Some((key, _)) = walk.advance() {
                let known = state.before.as_ref().and_then(|before| before.ino(key));
                let ino = number(key, known);
                if numbers.is_empty() || ino != next {
                    numbers.push((at, ino));
                }
                next = ino + 1;
                at += 1;
            }
            let first = state.len();
            state.newest = state.newest.max(Some(fetched));
            state.pages.push(Arc::new(Page {
                first,
                fetched,
                packed,
                numbers: numbers.into(),
            }));
        }
    }

    /// Returns the listing before this one, as far as it is still valid, until this one has come to
    /// its end.
    pub fn before(&self) -> Option<Arc<Self>> {
        let state = self.state.lock();
        state.before.clone().filter(|_| state.believes_before)
    }

    /// Returns whether the listing has come to its end.
    pub fn is_done(&self) -> bool {
        self.state.lock().done
    }

    /// Returns when the youngest of its pages was asked for; `None` before the first.
    pub fn youngest(&self) -> Option<Instant> {
        self.state.lock().newest
    }

    /// Returns how many entries have been listed so far.
    pub fn count(&self) -> u64 {
        self.state.lock().len()
    }

    /// Returns about how many bytes the listing takes in memory so far.
    #[cfg(feature = "testing")]
    pub fn memory(&self) -> u64 {
        let pages = self.state.lock().pages.clone();
        pages
            .iter()
            .map(|page| page.packed.memory() + page.numbers.len() * size_of::<(u32, u64)>())
            .map(|bytes| (bytes + size_of::<Page>()) as u64)
            .sum()
    }

    /// Returns the place of a key in what has been listed so far.
    pub fn rank(&self, key: &Key) -> Option<u64> {
        let state = self.state.lock();
        let (page, at) = state.place(key.as_str())?;
        Some(page.first + at as u64)
    }

    /// Returns the entry at a place of what has been listed so far.
    pub fn entry(&self, rank: u64) -> Option<Entry> {
        let page = page_of(&self.state.lock().pages, rank)?;
        page.get(usize::try_from(rank - page.first).ok()?)
    }

    fn ino(&self, key: &str) -> Option<u64> {
        let state = self.state.lock();
        let (page, at) = state.place(key)?;
        Some(page.ino(at))
    }

    /// Returns all keys listed so far, in order.
    pub fn keys(&self) -> Vec<Key> {
        let pages = self.state.lock().pages.clone();
        pages
            .iter()
            .flat_map(|page| page.entries(0))
            .map(|entry| entry.key)
            .collect()
    }

    /// Returns the first key listed so far that `wanted` accepts.
    pub fn find_key(&self, wanted: &dyn Fn(&Key) -> bool) -> Option<Key> {
        let pages = self.state.lock().pages.clone();
        pages
            .iter()
            .flat_map(|page| page.entries(0))
            .map(|entry| entry.key)
            .find(wanted)
    }

    /// Looks a key up in what has been listed so far.
    pub fn find(&self, key: &Key) -> Found {
        let state = self.state.lock();
        if let Some((page, at)) = state.place(key.as_str()) {
            return page
                .get(at)
                .map_or(Found::Unknown, |entry| Found::Listed(entry, page.fetched));
        }
        // The gap that the key lies in was covered by the request for the page after it, else by
        // that for the page before it: the older of the two is right in either case.
        let after = state.pages_up_to(key.as_str());
        let before = after.checked_sub(1).and_then(|at| state.pages.get(at));
        let next = state.pages.get(after);
        let is_past = before.is_some_and(|page| *page.packed.last_key() > *key.as_str());
        match (before, next) {
            (Some(page), _) if is_past => Found::Absent(page.fetched),
            (None, None) if state.done => Found::Absent(self.started),
            (before, Some(next)) => {
                Found::Absent(before.map_or(next.fetched, |page| page.fetched.min(next.fetched)))
            }
            (Some(last), None) if state.done => Found::Absent(last.fetched),
            _ => Found::Unknown,
        }
    }
}

impl State {
    fn len(&self) -> u64 {
        self.pages.last().map_or(0, |page| page.first + page.len())
    }

    /// Returns the last page that begins at or before a key.
    fn page_before(&self, key: &str) -> Option<&Arc<Page>> {
        self.pages.get(self.pages_up_to(key).checked_sub(1)?)
    }

    /// Returns how many pages begin at or before a key.
    fn pages_up_to(&self, key: &str) -> usize {
        self.pages
            .partition_point(|page| page.packed.first_key() <= key)
    }

    fn place(&self, key: &str) -> Option<(&Page, usize)> {
        let page = self.page_before(key)?;
        Some((page, page.packed.find(key).ok()?))
    }
}

impl Guide for Listing {
    fn keys(&self) -> u64 {
        self.count()
    }

    fn rank_of(&self, key: &str) -> u64 {
        let state = self.state.lock();
        let Some(page) = state.page_before(key) else {
            return 0;
        };
        let at = match page.packed.find(key) {
            Ok(at) => at + 1,
            Err(at) => at,
        };
        page.first + at as u64
    }

    fn key_at(&self, rank: u64) -> Option<Arc<str>> {
        Some(self.entry(rank.checked_sub(1)?)?.key.as_str().into())
    }
}
