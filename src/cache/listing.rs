//! One listing of the store, page by page, shared by everybody who reads the directory meanwhile.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use super::index::{Index, Saved};
use super::page::{Packed, Told};
use super::split::{Guide, Known, Split, Task};
use super::{Result, may_block, wait_until};
use crate::clock::{Deadline, Wait};
use crate::store::pager::Pager;
use crate::store::{ErrorKind, Key, ListQuery, MAX_PAGE, Store, StoreError};
use crate::sync::{Condvar, Mutex, MutexGuard};
use crate::workers::Workers;

/// So many pages are fetched one after the other before several are fetched at once: guesses cost
/// requests, and most stores are listed by then. Where an earlier listing guides, nothing is
/// guessed, and one page is enough to begin with.
const PAGES_IN_ORDER: usize = 10;
/// Pages fetched at once.
pub const PAGES_AT_ONCE: usize = 16;
/// Pages fetched before somebody asks for them: a reader who stops half-way wastes no more.
const PAGES_AHEAD: u64 = 64;

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
    /// Where it goes on, page by page; taken out while somebody fetches one.
    pager: Option<Pager>,
    /// The rest of the listing, when several pages are fetched at once.
    split: Option<Split>,
    /// Fetched pages in order, waiting for their inode numbers.
    raw: VecDeque<Packed>,
    /// Pages fetched at once so far, and how many of them readers asked for.
    fetched: u64,
    wanted: u64,
    working: usize,
    failure: Option<StoreError>,
    done: bool,
    /// The listing before this one, until this one is done.
    before: Option<Arc<Listing>>,
    /// Whether the index on disk may still be read, and what it had, until this one is done.
    has_index: bool,
    saved: Option<Arc<Saved>>,
}

/// One page of a listing; never empty.
#[derive(Debug)]
pub struct Page {
    /// Index of the first entry in the whole listing.
    pub first: u64,
    /// When it was fetched.
    pub fetched: Instant,
    /// The entries in key order.
    packed: Packed,
    /// Inode numbers: each of the first is that of the entry at its place, and those of the
    /// entries behind it count up from there.
    numbers: Box<[(u32, u64)]>,
}

impl Page {
    /// Returns how many entries it has.
    #[expect(clippy::len_without_is_empty, reason = "it is never empty")]
    pub fn len(&self) -> u64 {
        self.packed.len() as u64
    }

    /// Returns the entry at a place.
    pub fn get(&self, at: usize) -> Option<Entry> {
        let (key, told) = self.packed.get(at)?;
        Some(self.entry(at, key, told))
    }

    /// Returns the entries from a place on.
    pub fn entries(&self, from: usize) -> impl Iterator<Item = Entry> + '_ {
        let mut walk = self.packed.walk(from);
        (from..).map_while(move |at| {
            let (key, told) = walk.advance()?;
            Some(self.entry(at, Key::new(key)?, told))
        })
    }

    fn entry(&self, at: usize, key: Key, told: Told) -> Entry {
        Entry {
            key,
            ino: self.ino(at),
            stored_size: told.stored_size,
            modified: told.modified,
        }
    }

    fn ino(&self, at: usize) -> u64 {
        let run = self
            .numbers
            .partition_point(|(first, _)| *first as usize <= at);
        run.checked_sub(1)
            .and_then(|run| self.numbers.get(run))
            .map_or(0, |(first, ino)| ino + (at as u64 - u64::from(*first)))
    }
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
            has_index: source.index.is_some() && before.is_none(),
            saved: None,
            before,
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
        clock: &dyn Fn() -> Instant,
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
                self.number_page(&mut state, clock, number);
                continue;
            }
            if state.split.as_ref().is_some_and(Split::is_done) {
                state.done = true;
                state.before = None;
                state.split = None;
                let was_shown = state.saved.take().is_some_and(|saved| saved.is_current);
                if !was_shown {
                    self.save(&state, clock());
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

    /// Fetches the next page, and after a few of them splits the rest.
    fn next_in_order(&self, pager: Pager, deadline: Deadline) -> Result<(), StoreError> {
        let mut taken = Taken {
            listing: self,
            pager: Some(pager),
        };
        let Some(pager) = taken.pager.as_mut() else {
            return Ok(());
        };
        if self.load() {
            taken.pager = None;
            return Ok(());
        }
        let items = pager
            .next_page(&*self.source.store, deadline)?
            .unwrap_or_default();
        let (done, position) = (pager.is_done(), pager.position());
        let packed = Packed::new(&items);
        let mut state = self.state.lock();
        if !packed.is_empty() {
            state.raw.push_back(packed);
        }
        let guide = state.guide();
        let in_order = if guide.is_some() { 1 } else { PAGES_IN_ORDER };
        if done {
            // An empty split is a finished one.
            state.split = Some(Split::finished());
        } else if state.pages.len() + state.raw.len() >= in_order
            && let Some(position) = position
        {
            state.split = Some(state.split_after(position, guide));
        } else {
            state.pager = taken.pager.take();
        }
        taken.pager = None;
        Ok(())
    }

    /// Reads the index on disk, at most once; returns whether that is the listing.
    fn load(&self) -> bool {
        let Some(index) = &self.source.index else {
            return false;
        };
        if !std::mem::take(&mut self.state.lock().has_index) {
            return false;
        }
        let Some(saved) = index.load() else {
            return false;
        };
        let mut state = self.state.lock();
        if saved.is_current {
            state.raw.extend(saved.pages.iter().cloned());
            state.split = Some(Split::finished());
        }
        let is_current = saved.is_current;
        state.saved = Some(Arc::new(saved));
        is_current
    }

    /// Writes the whole listing to disk, soon.
    fn save(&self, state: &State, now: Instant) {
        let Some(index) = self.source.index.clone() else {
            return;
        };
        if !index.is_immutable() && state.pages.len() <= PAGES_IN_ORDER {
            return;
        }
        let (pages, epoch) = (state.pages.clone(), self.epoch);
        let saved = self
            .source
            .workers
            .spawn(move || index.save(pages.iter().map(|page| &page.packed), now, epoch));
        if saved.is_err() {
            tracing::debug!("too much to do to keep the listing on disk");
        }
    }

    /// Gives a fetched page its inode numbers.
    fn number_page(
        &self,
        state: &mut MutexGuard<'_, State>,
        clock: &dyn Fn() -> Instant,
        number: &dyn Fn(&str, Option<u64>) -> u64,
    ) {
        if let Some(packed) = state.raw.pop_front() {
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
            state.pages.push(Arc::new(Page {
                first,
                fetched: clock(),
                packed,
                numbers: numbers.into(),
            }));
        }
    }

    /// Puts a thread to work on every page of the split listing that is worth fetching now.
    fn employ(self: &Arc<Self>, state: &mut State) {
        while let Some(task) = state.next_task() {
            state.working += 1;
            let (listing, job) = (Arc::clone(self), task.clone());
            if self.source.workers.spawn(move || listing.work(job)).is_ok() {
                continue;
            }
            state.working -= 1;
            if let Some(split) = &mut state.split {
                split.failed(&task);
            }
            if state.working == 0 {
                state.failure = Some(StoreError::new(
                    ErrorKind::Network,
                    "too many listings at once",
                ));
            }
            return;
        }
    }

    /// Fetches a page of the split listing, and further ones while there are any.
    fn work(self: &Arc<Self>, first: Task) {
        let mut working = Working {
            listing: self,
            task: Some(first),
        };
        while let Some(task) = &working.task {
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
                    split.deliver(task, items.unwrap_or_default(), next);
                    state.raw.extend(split.ready());
                    state.fetched += 1;
                    working.task = None;
                }
                Err(error) => {
                    state.failure = Some(error);
                    return;
                }
            }
            // This thread's place is its own; what else there is now is for others.
            state.working -= 1;
            let next = state.next_task();
            state.working += 1;
            working.task = next;
            if working.task.is_some() {
                self.employ(state);
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
        self.state.lock().len()
    }

    /// Tells whether nothing has been listed so far.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns about how many bytes the listing takes in memory so far.
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
        let page = state.page_before(key.as_str());
        match state.pages.last() {
            Some(last) if state.done || *last.packed.last_key() > *key.as_str() => {
                Found::Absent(page.unwrap_or(last).fetched)
            }
            None if state.done => Found::Absent(self.started),
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
        let after = self
            .pages
            .partition_point(|page| page.packed.first_key() <= key);
        self.pages.get(after.checked_sub(1)?)
    }

    fn place(&self, key: &str) -> Option<(&Page, usize)> {
        let page = self.page_before(key)?;
        Some((page, page.packed.find(key).ok()?))
    }

    /// Returns an earlier listing, if there is one that is whole and worth following.
    fn guide(&self) -> Option<Arc<dyn Guide>> {
        let saved = self.saved.clone().map(|saved| saved as Arc<dyn Guide>);
        let whole = self.before.as_ref().filter(|before| before.is_done());
        let guide = saved.or_else(|| Some(Arc::clone(whole?) as Arc<dyn Guide>))?;
        // Fewer pages are fetched in order, and cost no guess, whatever has changed.
        (guide.keys() > (PAGES_IN_ORDER * MAX_PAGE) as u64).then_some(guide)
    }

    /// Splits what comes after the pages that are there.
    fn split_after(&self, position: Arc<str>, guide: Option<Arc<dyn Guide>>) -> Split {
        let listed = || {
            let numbered = self.pages.iter().map(|page| &page.packed);
            numbered.chain(&self.raw)
        };
        let known = Known {
            first: listed().next().map_or("", Packed::first_key),
            count: listed().map(|page| page.len() as u64).sum(),
            page: listed().map(|page| page.len() as u64).max().unwrap_or(1),
        };
        let mut split = Split::new(position, &known, guide);
        for page in listed() {
            let mut walk = page.walk(0);
            while let Some((key, _)) = walk.advance() {
                split.notice(key);
            }
        }
        split
    }

    /// Returns a page for another thread to fetch, if there is one and a thread may.
    fn next_task(&mut self) -> Option<Task> {
        if self.working >= PAGES_AT_ONCE
            || self.failure.is_some()
            || self.fetched + self.working as u64 >= self.wanted + PAGES_AHEAD
        {
            return None;
        }
        self.split.as_mut().and_then(Split::task)
    }
}

impl Guide for Listing {
    fn keys(&self) -> u64 {
        self.len()
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

fn page_of(pages: &[Arc<Page>], index: u64) -> Option<Arc<Page>> {
    let after = pages.partition_point(|page| page.first <= index);
    let page = pages.get(after.checked_sub(1)?)?;
    (index < page.first + page.len()).then(|| Arc::clone(page))
}

/// Gives the pager back on every way out, and wakes those who wait for it.
struct Taken<'a> {
    listing: &'a Listing,
    pager: Option<Pager>,
}

/// Counts a thread out on every way, gives back what it has not done, and wakes those who may
/// have to call another.
struct Working<'a> {
    listing: &'a Listing,
    task: Option<Task>,
}

impl Drop for Working<'_> {
    fn drop(&mut self) {
        let mut state = self.listing.state.lock();
        state.working -= 1;
        if let (Some(split), Some(task)) = (&mut state.split, &self.task) {
            split.failed(task);
        }
        drop(state);
        self.listing.changed.notify_all();
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
