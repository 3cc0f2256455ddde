//! Walks over stores, and what is fetched ahead for them.

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
    fn at(&self, rank: u64) -> Option<Ahead> {
        let class = u64::from(!rank.is_multiple_of(self.period));
        (rank < self.len).then_some(Ahead {
            class,
            shape: class,
            bytes: self.bytes,
        })
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

/// Records of three kinds, a hundred of each: two of one shape, the last of words.
struct Kinds;

impl Records for Kinds {
    fn at(&self, rank: u64) -> Option<Ahead> {
        let (class, shape) = match rank {
            0..100 => (1, 1),
            100..200 => (2, 2),
            200..300 => (3, rank),
            _ => return None,
        };
        Some(Ahead {
            class,
            shape,
            bytes: 100,
        })
    }
}

#[test]
fn fetching_ahead_stops_where_another_kind_of_names_begins_until_that_is_opened() {
    let mut detector = detector();
    let mut walk = |ranks: std::ops::Range<u64>| -> Vec<u64> {
        ranks
            .flat_map(|rank| detector.opened(rank, Duration::ZERO, &Kinds))
            .collect()
    };
    let first = walk(0..100);
    assert_eq!(first.last(), Some(&99), "none of what comes behind");
    assert_eq!(walk(100..101).len(), WINDOW.1, "and then at full width");
    assert_eq!(walk(101..200).last(), Some(&199));
    // Names of words are all of different shapes, and of one kind all the same.
    assert!(walk(200..201).len() >= WINDOW.1);
    assert!(walk(201..300).len() <= 40);
}

#[test]
fn who_thinks_between_two_opens_has_little_fetched_ahead() {
    let store = Store {
        len: 1000,
        period: 1,
        bytes: 150 << 10,
    };
    let pictures = |pause: u64| {
        let mut detector = Detector::new(32 << 20, Duration::from_secs(5));
        for rank in 0..60 {
            detector.opened(rank, Duration::from_millis(rank * pause), &store);
        }
        detector.unused()
    };
    assert_eq!(pictures(200), 6);
    assert!(pictures(5) >= 50);
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
