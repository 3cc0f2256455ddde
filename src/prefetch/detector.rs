//! Recognises scans: somebody walks a directory and opens record after record. Pure.
//!
//! Positions are ranks: places in one order of the directory's records. A scan is a run of opens
//! whose ranks grow by small steps; several may be under way at once, from any number of
//! processes, and each may open a little out of order (`xargs -P`). What a scan leaves out is
//! learnt by class (the names' extensions): `cat *.html` does not fetch the `.json` between.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

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
/// A scan without an open for so long, or during so many opens of others, has stopped.
const STOPPED: Duration = Duration::from_millis(500);
const STOPPED_OPENS: u64 = 64;
/// Scans followed at once; the least recently used one is forgotten.
const SCANS: usize = 16;
/// The last opens that are remembered: what others have just read need not be fetched ahead.
const REMEMBERED: usize = 256;

/// What the detector must be told of the records.
pub trait Records {
    /// Returns the class of the record at `rank`, and the bytes that fetching it costs; `None`
    /// past the end.
    fn at(&self, rank: u64) -> Option<(u64, u64)>;
}

/// Follows all scans of one directory in one order.
#[derive(Debug)]
pub struct Detector {
    /// Bytes that may be fetched ahead by one scan.
    budget: u64,
    /// For so long what was fetched ahead is of use.
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

    /// Takes note that the record at `rank` was opened at `now` (any monotonic origin), and
    /// returns the ranks to fetch ahead now, in the order of their need.
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
        // A walk that is alone has nobody to mind.
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

    /// Tells whether somebody has opened a record just now, or one of the scans fetches it ahead.
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
        let class = |rank| records.at(rank).map(|(class, _)| class);
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
        let mut wanted = Vec::new();
        while self.ahead.len() < window {
            let Some((class, bytes)) = records.at(self.next) else {
                break;
            };
            let is_wanted = self.only.is_none_or(|only| only == class) && bytes <= budget;
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

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    /// `len` records; every `period`-th is of class 0, the others of class 1.
    struct Store {
        len: u64,
        period: u64,
        bytes: u64,
    }

    impl Records for Store {
        fn at(&self, rank: u64) -> Option<(u64, u64)> {
            (rank < self.len).then_some((u64::from(!rank.is_multiple_of(self.period)), self.bytes))
        }
    }

    fn store(len: u64) -> Store {
        Store {
            len,
            period: 1,
            bytes: 100,
        }
    }

    fn detector() -> Detector {
        Detector::new(1 << 20, Duration::from_secs(5))
    }

    #[test]
    fn two_opens_are_no_scan_and_three_in_a_row_are() {
        let (mut detector, store) = (detector(), store(1000));
        assert!(detector.opened(10, Duration::ZERO, &store).is_empty());
        assert!(detector.opened(11, Duration::ZERO, &store).is_empty());
        assert_eq!(
            detector.opened(12, Duration::ZERO, &store),
            [13, 14, 15, 16]
        );
    }

    #[test]
    fn a_whole_scan_fetches_every_record_once_and_ends_at_the_end() {
        let (mut detector, store) = (detector(), store(1000));
        let mut fetched = Vec::new();
        for rank in 0..1000 {
            fetched.extend(detector.opened(rank, Duration::ZERO, &store));
        }
        assert_eq!(fetched, (3..1000).collect::<Vec<_>>());
        assert_eq!(detector.unused(), 0);
    }

    #[test]
    fn unrelated_opens_never_fetch() {
        let (mut detector, store) = (detector(), store(100_000));
        for i in 0..200u64 {
            assert!(
                detector
                    .opened(i * 7919 % 100_000, Duration::ZERO, &store)
                    .is_empty()
            );
        }
    }

    #[test]
    fn what_a_glob_leaves_out_is_not_fetched() {
        let mut detector = detector();
        let store = Store {
            len: 3000,
            period: 3,
            bytes: 100,
        };
        let fetched: Vec<u64> = (0..1000)
            .flat_map(|i| detector.opened(i * 3, Duration::ZERO, &store))
            .collect();
        let wasted = fetched.iter().filter(|rank| *rank % 3 != 0).count();
        assert!(wasted <= 10, "{wasted} records of the other class");
        assert!(fetched.len() >= 990 + wasted, "{}", fetched.len());
    }

    /// `xargs -P 8 -n 20 cat`: eight processes, each of which reads the next twenty.
    #[test]
    fn readers_side_by_side_are_followed_like_one() {
        let (mut detector, store) = (detector(), store(4000));
        let mut readers: Vec<std::ops::Range<u64>> = (0..8).map(|i| i * 20..i * 20 + 20).collect();
        let mut next = 160;
        let (mut fetched, mut foreseen, mut opens) = (HashSet::new(), 0, 0);
        let mut random = fastrand::Rng::with_seed(1);
        while opens < 3000 {
            let at = random.usize(..readers.len());
            let Some(rank) = readers[at].next() else {
                readers[at] = next..next + 20;
                next += 20;
                continue;
            };
            opens += 1;
            foreseen += usize::from(fetched.contains(&rank));
            fetched.extend(detector.opened(rank, Duration::from_micros(opens * 100), &store));
        }
        assert!(foreseen >= 2700, "only {foreseen} of {opens}");
        assert!(
            fetched.len() - foreseen <= 200,
            "{} wasted",
            fetched.len() - foreseen
        );
    }

    #[test]
    fn a_second_walk_is_foreseen_once_the_first_is_out_of_date() {
        let (mut detector, store) = (detector(), store(100));
        let mut walk = |from: u64| -> usize {
            (0..100)
                .map(|rank| {
                    detector
                        .opened(rank, Duration::from_secs(from), &store)
                        .len()
                })
                .sum()
        };
        assert_eq!(walk(0), 97);
        assert!(walk(6) >= 90);
    }

    #[test]
    fn a_slow_reader_gets_no_more_than_it_will_use_in_time() {
        let (mut detector, store) = (detector(), store(1000));
        for rank in 0..50u32 {
            detector.opened(u64::from(rank), Duration::from_secs(1) * rank, &store);
        }
        assert!(detector.unused() <= 6, "{}", detector.unused());
    }

    #[test]
    fn large_records_are_bounded_by_bytes() {
        let mut detector = detector();
        let store = Store {
            len: 1000,
            period: 1,
            bytes: 300 << 10,
        };
        for rank in 0..100 {
            detector.opened(rank, Duration::ZERO, &store);
            assert!(detector.unused() <= 3);
        }
    }

    proptest! {
        /// Several readers (`xargs -P`, two scans at once) in any interleaving: hardly anything is
        /// wanted twice (a second time it is at hand), little is wasted, and most records were
        /// fetched ahead.
        #[test]
        fn interleaved_readers_are_followed(
            starts in proptest::collection::vec(0u64..5, 1..4), width in 1usize..8, seed in any::<u64>(),
        ) {
            let store = store(100_000);
            let mut detector = detector();
            let mut random = fastrand::Rng::with_seed(seed);
            // Each scan has a region of its own and a pool of `width` processes working on it.
            let mut scans: Vec<(u64, Vec<u64>)> = starts.iter().map(|start| (start * 20_000, Vec::new())).collect();
            scans.sort();
            scans.dedup_by_key(|scan| scan.0);
            let mut fetched = HashSet::new();
            let (mut ahead, mut twice) = (0, 0);
            let opens = 300 * scans.len();
            for _ in 0..opens {
                let at = random.usize(..scans.len());
                let (next, pool) = &mut scans[at];
                while pool.len() < width {
                    pool.push(*next);
                    *next += 1;
                }
                let at = random.usize(..pool.len());
                let rank = pool.swap_remove(at);
                ahead += usize::from(fetched.contains(&rank));
                for wanted in detector.opened(rank, Duration::ZERO, &store) {
                    twice += usize::from(!fetched.insert(wanted));
                }
                prop_assert!(detector.unused() <= WINDOW.1 + SCANS * WINDOW.0);
            }
            prop_assert!(twice <= opens / 10, "{} of {} wanted twice", twice, opens);
            prop_assert!(ahead >= opens / 2, "only {} of {} opens were foreseen", ahead, opens);
            prop_assert!(fetched.len() - ahead <= 64 * scans.len() + opens / 20, "{} wasted", fetched.len() - ahead);
        }

        #[test]
        fn an_aborted_scan_wastes_at_most_one_window(stop in 1u64..500, step in 1u64..3) {
            let (mut detector, store) = (detector(), store(100_000));
            let opened: HashSet<u64> = (0..stop).map(|i| i * step).collect();
            let fetched: Vec<u64> = (0..stop).flat_map(|i| detector.opened(i * step, Duration::ZERO, &store)).collect();
            let unread = fetched.iter().filter(|rank| !opened.contains(rank) && **rank > (stop - 1) * step).count();
            prop_assert!(unread <= 64, "{} wasted", unread);
        }
    }
}
