//! Fetches the pages of a listing: from the index on disk, in order, or several at once.

use std::sync::Arc;
use std::time::Instant;

use super::{Listing, State};
use crate::base::clock::Deadline;
use crate::listing::packed::Packed;
use crate::listing::partition::{Guide, Known, Split, Task};
use crate::store::pager::Pager;
use crate::store::{ErrorKind, ListQuery, MAX_PAGE, StoreError};

/// This many pages are fetched one after the other before several are fetched at once: guesses cost
/// requests, and most stores are listed by then. Where an earlier listing guides, nothing is
/// guessed, and one page is enough to begin with.
const PAGES_IN_ORDER: usize = 4;
/// Pages fetched at once.
pub const PAGES_AT_ONCE: usize = 16;
/// Pages fetched ahead of the readers: a reader that stops half-way wastes no more.
const PAGES_AHEAD: u64 = 64;

impl Listing {
    /// Fetches the next page, and after a few of them splits the rest.
    pub(super) fn next_in_order(&self, pager: Pager, deadline: Deadline) -> Result<(), StoreError> {
        let mut taken = Taken {
            listing: self,
            pager: Some(pager),
        };
        let Some(pager) = taken.pager.as_mut() else {
            return Ok(());
        };
        if self.load(deadline) {
            taken.pager = None;
            return Ok(());
        }
        let asked = self.source.clock.now();
        let items = pager
            .next_page(&*self.source.store, deadline)?
            .unwrap_or_default();
        let (done, position) = (pager.is_done(), pager.position());
        let packed = Packed::new(&items);
        let mut state = self.state.lock();
        if !packed.is_empty() {
            state.raw.push_back((packed, asked));
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
    fn load(&self, deadline: Deadline) -> bool {
        let Some(index) = &self.source.index else {
            return false;
        };
        if !std::mem::take(&mut self.state.lock().has_index) {
            return false;
        }
        let Some(saved) = index.load_within(deadline) else {
            return false;
        };
        let mut state = self.state.lock();
        if saved.is_current {
            let pages = saved.pages.iter().cloned();
            state.raw.extend(pages.map(|page| (page, self.started)));
            state.split = Some(Split::finished());
        }
        let is_current = saved.is_current;
        state.saved = Some(Arc::new(saved));
        is_current
    }

    /// Writes the whole listing to disk, soon.
    pub(super) fn save(&self, state: &State, now: Instant) {
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

    /// Puts a thread to work on every page of the split listing that is worth fetching now.
    pub(super) fn employ(self: &Arc<Self>, state: &mut State) {
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
            let asked = self.source.clock.now();
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
                    split.deliver(task, asked, items.unwrap_or_default(), next);
                    state.raw.extend(split.ready());
                    state.fetched += 1;
                    working.task = None;
                }
                Err(error) => {
                    if split.wants(task) {
                        state.failure = Some(error);
                    }
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
}

impl State {
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
            numbered.chain(self.raw.iter().map(|(page, _)| page))
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

/// Gives the pager back on every way out, and wakes the threads that wait for it.
struct Taken<'a> {
    listing: &'a Listing,
    pager: Option<Pager>,
}

/// Counts a thread out on every way, gives back its unfinished work, and wakes the threads that may
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
