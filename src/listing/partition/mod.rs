//! Splits a listing's key space, so that several pages can be fetched at once. Pure.
//!
//! A page can start after any string, whether it is a key or not. So the space is cut into
//! segments: what follows `after`, up to and with `end`. A worker without a segment cuts one in
//! two. Keys outside their segment are dropped: they belong to the next one. Whatever the
//! guesses, the result is the listing; bad guesses cost requests, and those are bounded.

use std::sync::Arc;
use std::time::Instant;

use crate::listing::packed::Packed;
use crate::store::ListItem;

mod alphabet;
mod cut;
mod density;
#[cfg(test)]
mod tests;

use alphabet::Letters;

/// Guesses that may hit nothing before no more are made, besides one for every 16 pages.
const MOST_WASTED: u64 = 12;

/// An earlier listing of the same store, whole.
pub trait Guide: Send + Sync + std::fmt::Debug {
    /// Returns how many keys it has.
    fn keys(&self) -> u64;
    /// Returns how many of them are at or before `key`.
    fn rank_of(&self, key: &str) -> u64;
    /// Returns the key of that rank, from 1.
    fn key_at(&self, rank: u64) -> Option<Arc<str>>;
}

/// What has been listed in order, before the rest is split.
#[derive(Debug)]
pub struct Known<'a> {
    /// Its first key.
    pub first: &'a str,
    /// How many keys it has.
    pub count: u64,
    /// How many a full page has.
    pub page: u64,
}

/// A listing being fetched in segments.
#[derive(Debug)]
pub struct Split {
    /// In key order; together they are what is still to be handed out.
    segments: Vec<Segment>,
    next_id: u64,
    delivered: u64,
    wasted: u64,
    /// Keys on a full page.
    page: u64,
    letters: Letters,
    guide: Option<Arc<dyn Guide>>,
}

#[derive(Debug)]
struct Segment {
    id: u64,
    /// Where it began, for estimates, and how many keys seem to be before that.
    start: Arc<str>,
    rank: u64,
    /// The end of its fetched part, and the number of keys in that.
    after: Arc<str>,
    count: u64,
    /// Its last possible key; `None` for the end of the listing.
    end: Option<Arc<str>>,
    /// Whether keys are expected up to its end.
    full: bool,
    busy: bool,
    done: bool,
    /// Whether a page of it has shown that it goes on.
    goes_on: bool,
    pages: Vec<(Packed, Instant)>,
}

impl Segment {
    /// Returns whether it is a guess of which nothing is known yet.
    fn is_probe(&self) -> bool {
        !self.goes_on && !self.done
    }
}

/// A page to fetch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Task {
    id: u64,
    /// The page starts after this.
    pub after: Arc<str>,
}

impl Split {
    /// Starts after `after`, when so much has been listed up to there.
    pub fn new(after: Arc<str>, known: &Known<'_>, guide: Option<Arc<dyn Guide>>) -> Self {
        let mut letters = Letters::default();
        letters.notice(known.first);
        letters.notice(&after);
        let segment = Segment {
            id: 0,
            start: known.first.into(),
            rank: 1,
            after,
            count: known.count.saturating_sub(1),
            end: None,
            full: false,
            busy: false,
            done: false,
            goes_on: true,
            pages: Vec::new(),
        };
        Self {
            segments: vec![segment],
            next_id: 1,
            delivered: 0,
            wasted: 0,
            page: known.page.max(1),
            letters,
            guide,
        }
    }

    /// Returns what is left of a listing that has come to its end.
    pub fn finished() -> Self {
        Self {
            segments: Vec::new(),
            next_id: 0,
            delivered: 0,
            wasted: 0,
            page: 1,
            letters: Letters::default(),
            guide: None,
        }
    }

    /// Notes a key that has been listed.
    pub fn notice(&mut self, key: &str) {
        self.letters.notice(key);
    }

    /// Returns what an idle worker should fetch; `None` when there is nothing for it now.
    pub fn task(&mut self) -> Option<Task> {
        if let Some(segment) = self
            .segments
            .iter_mut()
            .find(|segment| !segment.busy && !segment.done)
        {
            segment.busy = true;
            return Some(Task {
                id: segment.id,
                after: Arc::clone(&segment.after),
            });
        }
        if self.wasted >= MOST_WASTED + self.delivered / 16 {
            return None;
        }
        self.letters.refresh();
        let (at, cut) = (0..self.segments.len())
            .filter_map(|at| Some((at, self.cut(at)?)))
            .max_by_key(|(_, cut)| cut.worth)?;
        let id = self.next_id;
        self.next_id += 1;
        let segment = &mut self.segments[at];
        let probe = Segment {
            id,
            rank: segment.rank + segment.count + cut.before,
            end: segment.end.replace(Arc::clone(&cut.mid)),
            full: segment.full,
            start: Arc::clone(&cut.mid),
            after: Arc::clone(&cut.mid),
            count: 0,
            busy: true,
            done: false,
            goes_on: false,
            pages: Vec::new(),
        };
        segment.full = cut.full;
        self.segments.insert(at + 1, probe);
        Some(Task { id, after: cut.mid })
    }

    /// Gives a task back that could not be done.
    pub fn failed(&mut self, task: &Task) {
        if let Some(segment) = self
            .segments
            .iter_mut()
            .find(|segment| segment.id == task.id)
        {
            segment.busy = false;
        }
    }

    /// Takes in a page: keys in strictly growing order after the task's start, and where the
    /// listing continues, `None` for its end. `asked` is when the request was begun.
    pub fn deliver(
        &mut self,
        task: &Task,
        asked: Instant,
        mut items: Vec<ListItem>,
        next: Option<Arc<str>>,
    ) {
        self.delivered += 1;
        self.page = self.page.max(items.len() as u64);
        for item in items.iter().step_by(7) {
            self.letters.notice(item.key.as_str());
        }
        let Some(at) = self
            .segments
            .iter()
            .position(|segment| segment.id == task.id)
        else {
            return;
        };
        let segment = &mut self.segments[at];
        let was_probe = segment.is_probe();
        segment.busy = false;
        let whole = items.len();
        if let Some(end) = &segment.end {
            items.truncate(items.partition_point(|item| item.key.as_str() <= &**end));
        }
        segment.goes_on = true;
        segment.done = items.len() < whole || next.is_none();
        let is_end = items.len() == whole && next.is_none();
        if let Some(next) = next {
            if segment.end.as_ref().is_some_and(|end| next >= *end) {
                segment.done = true;
            }
            segment.after = next;
        }
        segment.count += items.len() as u64;
        let hit = !items.is_empty();
        if hit {
            segment.pages.push((Packed::new(&items), asked));
        }
        if was_probe && let Some(first) = items.first() {
            // How dense keys lie is told by keys, not by the guess before them.
            segment.start = first.key.as_str().into();
            segment.count -= 1;
            segment.rank += 1;
        }
        if was_probe && (hit || segment.done) {
            // Now it is known whether the segment before it is full of keys to its end.
            if let Some(before) = at.checked_sub(1) {
                self.segments[before].full = hit;
            }
            if !hit {
                self.wasted += 1;
                self.segments.remove(at);
            }
        }
        let behind = at + usize::from(hit || !was_probe);
        if is_end && self.segments[behind..].iter().all(Segment::is_probe) {
            // Nothing is there: what has been guessed behind it need not be waited for.
            self.wasted += (self.segments.len() - behind) as u64;
            self.segments.truncate(behind);
        }
    }

    /// Returns whether a task's page is still of use.
    pub fn wants(&self, task: &Task) -> bool {
        self.segments.iter().any(|segment| segment.id == task.id)
    }

    /// Takes out what is complete from the front, in key order, with when it was asked for.
    pub fn ready(&mut self) -> Vec<(Packed, Instant)> {
        let mut pages = Vec::new();
        while let Some(front) = self.segments.first_mut() {
            pages.append(&mut front.pages);
            if !front.done {
                break;
            }
            self.segments.remove(0);
        }
        pages
    }

    /// Returns whether everything has been handed out.
    pub fn is_done(&self) -> bool {
        self.segments.is_empty()
    }
}
