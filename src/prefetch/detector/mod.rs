//! Recognises scans: a program walks a directory and opens record after record. Pure.
//!
//! Positions are ranks: places in one order of the directory's records. A scan is a run of opens
//! with ranks that grow by small steps; several may be under way at once, from any number of
//! processes, and each may open a little out of order (`xargs -P`). What a scan leaves out is learnt
//! by kind (the names' extensions): `cat *.html` does not fetch the `.json` between. Fetching ahead
//! stops where names of another kind begin until one of these is opened, too: behind `page-099.html`
//! may come many an unwanted `screenshot-001.png`.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

mod kinds;

#[cfg(test)]
mod tests;

pub use kinds::Ahead;
use kinds::Kinds;

/// Opens in a row, by small steps, that make a scan: two may be chance.
const RUN: u32 = 3;
/// The largest step forward that continues a run, and how far back an open may come late.
const STEP: u64 = 16;
/// Records fetched ahead at first, and at most. The most bounds what an aborted scan wastes; it is
/// small where schedules are explored.
pub const WINDOW: (usize, usize) = if cfg!(feature = "shuttle") {
    (2, 5)
} else {
    (4, 60)
};
/// A scan without an open for this long, or during this many opens of others, has stopped.
const STOPPED: Duration = Duration::from_millis(500);
const STOPPED_OPENS: u64 = 64;
/// Scans followed at once; the least recently used one is forgotten.
const SCANS: usize = 16;
/// The last opens that are remembered: what others have just read need not be fetched ahead.
const REMEMBERED: usize = 256;

/// A reader that takes this long between two opens is a person, or works on what it reads.
const THINKS: Duration = Duration::from_millis(60);
/// Bytes fetched ahead for those.
const FOR_THINKERS: u64 = 1 << 20;

/// What the detector must know of the records.
pub trait Records {
    /// Returns what is known of the record at `rank`; `None` past the end.
    fn at(&self, rank: u64) -> Option<Ahead>;
}

/// Follows all scans of one directory in one order.
#[derive(Debug)]
pub struct Detector {
    /// Bytes that may be fetched ahead by one scan.
    budget: u64,
    /// How long a record fetched ahead is of use.
    useful: Duration,
    scans: Vec<Scan>,
    opens: u64,
    recent: Recent,
}

/// The ranks opened last, with their times, oldest first.
#[derive(Debug, Default)]
struct Recent {
    order: VecDeque<(u64, Duration)>,
    ranks: BTreeSet<u64>,
}

impl Recent {
    fn add(&mut self, rank: u64, now: Duration, useful: Duration) {
        if self.ranks.insert(rank) {
            self.order.push_back((rank, now));
        }
        while let Some((oldest, at)) = self.order.front().copied()
            && (self.order.len() > REMEMBERED || now.saturating_sub(at) >= useful)
        {
            self.order.pop_front();
            self.ranks.remove(&oldest);
        }
    }

    fn contains(&self, rank: u64) -> bool {
        self.ranks.contains(&rank)
    }
}

#[derive(Debug)]
struct Scan {
    /// The highest rank opened.
    front: u64,
    run: u32,
    /// Ranks fetched ahead and not opened yet, with their bytes.
    ahead: BTreeMap<u64, u64>,
    ahead_bytes: u64,
    /// The next rank to look at for fetching.
    next: u64,
    window: usize,
    /// The one class that this scan opens, if it leaves others out.
    only: Option<u64>,
    kinds: Kinds,
    last_used: u64,
    last_open: Duration,
    /// Smoothed time between opens.
    pace: Duration,
}

impl Detector {
    /// Makes a detector that lets each scan fetch `budget` bytes ahead, of use for `useful`.
    pub fn new(budget: u64, useful: Duration) -> Self {
        Self {
            budget,
            useful,
            scans: Vec::new(),
            opens: 0,
            recent: Recent::default(),
        }
    }

    /// Notes that the record at `rank` was opened at `now` (any monotonic origin), and returns the
    /// ranks to fetch ahead now, in the order of their need.
    pub fn opened(&mut self, rank: u64, now: Duration, records: &dyn Records) -> Vec<u64> {
        self.opens += 1;
        // Of several the one that stands right before it: where many walk side by side, each
        // fetches ahead what belongs to the next.
        let nearest = (0..self.scans.len())
            .filter(|at| self.scans[*at].expects(rank))
            .min_by_key(|at| self.scans[*at].distance(rank));
        // Taken out, so that those left are the others.
        let (at, mut scan) = match nearest {
            Some(at) => (at, self.scans.remove(at)),
            None => {
                if self.scans.len() == SCANS
                    && let Some(oldest) = (0..SCANS).min_by_key(|at| self.scans[*at].last_used)
                {
                    self.scans.swap_remove(oldest);
                }
                (self.scans.len(), Scan::new(rank, now))
            }
        };
        if let Some(opened) = records.at(rank) {
            scan.kinds.add(&opened);
        }
        for other in &mut self.scans {
            // What a scan that stopped has fetched is not coming any more.
            let idle = now.saturating_sub(other.last_open) > STOPPED;
            if idle || self.opens - other.last_used > STOPPED_OPENS {
                other.ahead.clear();
                other.ahead_bytes = 0;
            }
            other.take(rank);
        }
        let most = WINDOW.1.saturating_sub(self.unused()).max(WINDOW.0);
        // A walk that is alone need not spare other readers.
        if !self.scans.is_empty() {
            self.recent.add(rank, now, self.useful);
        }
        scan.last_used = self.opens;
        scan.advance(rank, now, records);
        let wanted = if scan.run < RUN {
            Vec::new()
        } else {
            scan.fetch(most, self.budget, self.useful, records, |rank| {
                self.is_somebodys(rank)
            })
        };
        self.scans.insert(at, scan);
        wanted
    }

    /// Returns whether a program has opened a record just now, or one of the scans fetches it
    /// ahead.
    fn is_somebodys(&self, rank: u64) -> bool {
        self.recent.contains(rank) || self.scans.iter().any(|scan| scan.ahead.contains_key(&rank))
    }

    /// Forgets all scans.
    pub fn reset(&mut self) {
        self.scans.clear();
        self.recent = Recent::default();
    }

    /// Returns how many records are fetched ahead and not opened.
    pub fn unused(&self) -> usize {
        self.scans.iter().map(|scan| scan.ahead.len()).sum()
    }
}

impl Scan {
    fn new(rank: u64, now: Duration) -> Self {
        Self {
            front: rank,
            run: 1,
            ahead: BTreeMap::new(),
            ahead_bytes: 0,
            next: rank + 1,
            window: WINDOW.0,
            only: None,
            kinds: Kinds::default(),
            last_used: 0,
            last_open: now,
            pace: Duration::ZERO,
        }
    }

    fn expects(&self, rank: u64) -> bool {
        self.ahead.contains_key(&rank)
            || (self.front.saturating_sub(STEP)..=self.front + STEP).contains(&rank)
    }

    /// Returns how far an open is from the one that would be next.
    fn distance(&self, rank: u64) -> u64 {
        rank.abs_diff(self.front + 1)
    }

    fn advance(&mut self, rank: u64, now: Duration, records: &dyn Records) {
        let hit = self.take(rank);
        if rank <= self.front {
            return;
        }
        let pause = now.saturating_sub(self.last_open);
        self.last_open = now;
        self.pace = (self.pace * 7 + pause) / 8;
        let skipped = self.front + 1..rank;
        self.learn_class(rank, skipped.clone(), records);
        self.run += 1;
        self.front = rank;
        self.next = self.next.max(rank + 1);
        // What lies far behind was left out; late comers get a little time.
        let left_out: Vec<u64> = self
            .ahead
            .range(..rank.saturating_sub(STEP))
            .map(|(rank, _)| *rank)
            .collect();
        for rank in &left_out {
            self.take(*rank);
        }
        self.window = if !left_out.is_empty() {
            self.window.saturating_sub(left_out.len()).max(WINDOW.0)
        } else if hit {
            (self.window * 2).min(WINDOW.1)
        } else {
            self.window
        };
    }

    /// Learns from what was skipped whether the scan keeps to one class.
    fn learn_class(&mut self, rank: u64, skipped: std::ops::Range<u64>, records: &dyn Records) {
        let class = |rank| records.at(rank).map(|record| record.class);
        let here = class(rank);
        if self.only.is_some() && self.only != here {
            self.only = None;
        }
        let mut skipped = skipped
            .filter(|rank| !self.ahead.contains_key(rank))
            .peekable();
        if skipped.peek().is_some()
            && class(self.front) == here
            && skipped.all(|rank| class(rank) != here)
        {
            self.only = here;
            // What was fetched of the others is not coming any more.
            let others: Vec<u64> = self
                .ahead
                .keys()
                .copied()
                .filter(|rank| class(*rank) != here)
                .collect();
            for rank in others {
                self.take(rank);
            }
        }
    }

    fn take(&mut self, rank: u64) -> bool {
        let bytes = self.ahead.remove(&rank);
        self.ahead_bytes -= bytes.unwrap_or(0);
        bytes.is_some()
    }

    fn fetch(
        &mut self,
        most: usize,
        budget: u64,
        useful: Duration,
        records: &dyn Records,
        is_covered: impl Fn(u64) -> bool,
    ) -> Vec<u64> {
        // A slow reader gets no more than it will open while it is of use.
        let soon = useful
            .as_nanos()
            .checked_div(self.pace.as_nanos())
            .map_or(usize::MAX, |n| usize::try_from(n).unwrap_or(usize::MAX));
        let window = self.window.min(most).min(soon.max(1));
        // What a person looks at is there in time with less.
        let budget = match self.pace {
            pace if pace >= THINKS => budget.min(FOR_THINKERS),
            _ => budget,
        };
        let mut wanted = Vec::new();
        while self.ahead.len() < window {
            let Some(record) = records.at(self.next) else {
                break;
            };
            let is_left_out = self.only.is_some_and(|only| only != record.class);
            if !is_left_out && !self.kinds.include(&record) {
                break;
            }
            let bytes = record.bytes;
            let is_wanted = !is_left_out && bytes <= budget;
            if is_wanted && !is_covered(self.next) {
                if self.ahead_bytes + bytes > budget {
                    break;
                }
                self.ahead.insert(self.next, bytes);
                self.ahead_bytes += bytes;
                wanted.push(self.next);
            }
            self.next += 1;
        }
        wanted
    }
}
