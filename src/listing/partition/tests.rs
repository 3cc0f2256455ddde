use std::collections::BTreeSet;
use std::ops::Bound;

use proptest::prelude::*;

use super::*;
use crate::store::Key;

fn item(key: &str) -> ListItem {
    ListItem {
        key: Key::new(key).expect("a key"),
        stored_size: None,
        modified: None,
        public_url: None,
    }
}

/// A listing of some other day.
#[derive(Debug)]
struct Then(Vec<String>);

impl Guide for Then {
    fn keys(&self) -> u64 {
        self.0.len() as u64
    }

    fn rank_of(&self, key: &str) -> u64 {
        self.0.partition_point(|known| known.as_str() <= key) as u64
    }

    fn key_at(&self, rank: u64) -> Option<Arc<str>> {
        let key = self.0.get(usize::try_from(rank).ok()?.checked_sub(1)?)?;
        Some(key.as_str().into())
    }
}

fn fetch(keys: &BTreeSet<String>, after: &str, page: usize) -> (Vec<ListItem>, Option<Arc<str>>) {
    let mut rest = keys.range::<str, _>((Bound::Excluded(after), Bound::Unbounded));
    let items: Vec<ListItem> = rest.by_ref().take(page).map(|key| item(key)).collect();
    let next = rest.next().and(items.last());
    let next = next.map(|last| Arc::from(last.key.as_str()));
    (items, next)
}

/// Lists `keys`, the first `in_order` pages one by one; `order` says which of the requests in
/// flight is answered next, `None` that it fails. Returns the listing, and the requests.
fn list(
    keys: &BTreeSet<String>,
    guide: Option<Vec<String>>,
    (page, in_order, workers): (usize, usize, usize),
    mut order: impl FnMut(usize) -> (usize, bool),
) -> (Vec<String>, usize) {
    let mut listed: Vec<String> = Vec::new();
    let mut after = String::new();
    for request in 1..=in_order {
        let (items, next) = fetch(keys, &after, page);
        listed.extend(items.iter().map(|item| item.key.as_str().to_owned()));
        match next {
            Some(next) => after = next.to_string(),
            None => return (listed, request),
        }
    }
    let known = Known {
        first: &listed[0],
        count: listed.len() as u64,
        page: page as u64,
    };
    let guide = guide.map(|keys| Arc::new(Then(keys)) as Arc<dyn Guide>);
    let mut split = Split::new(after.into(), &known, guide);
    for key in listed.iter().step_by(7) {
        split.notice(key);
    }
    let mut requests = in_order;
    let mut running = Vec::new();
    while !split.is_done() {
        while running.len() < workers
            && let Some(task) = split.task()
        {
            running.push(task);
        }
        assert!(!running.is_empty(), "nothing to do, and not done");
        let (at, fails) = order(running.len());
        let task = running.remove(at);
        requests += 1;
        if fails {
            split.failed(&task);
            continue;
        }
        let (items, next) = fetch(keys, &task.after, page);
        split.deliver(&task, Instant::now(), items, next);
        for (page, _) in split.ready() {
            let mut walk = page.walk(0);
            while let Some((key, _)) = walk.advance() {
                listed.push(key.to_owned());
            }
        }
    }
    (listed, requests)
}

proptest! {
    #[test]
    fn whatever_the_keys_the_listing_is_complete_and_in_order(
        keys in proptest::collection::btree_set("[ab]{1,3}|x-[0-9]{1,3}|é[a-c]{0,2}|aaaaaaaaaaaaaaaaa[a-z]{0,3}", 1..200),
        guide in proptest::option::of(proptest::collection::btree_set("[ab]{1,3}|x-[0-9]{1,3}|é[a-c]{0,2}", 0..200)),
        page in 1usize..9, workers in 1usize..9, seed in any::<u64>(),
    ) {
        let mut random = fastrand::Rng::with_seed(seed);
        let guide = guide.map(|keys| keys.into_iter().collect());
        let (listed, _) = list(&keys, guide, (page, 1, workers), |running| {
            (random.usize(..running), random.u8(..10) == 0)
        });
        prop_assert_eq!(listed, keys.into_iter().collect::<Vec<_>>());
    }

    #[test]
    fn keys_that_come_and_go_meanwhile_are_listed_once_or_not_and_the_others_once(
        lasting in proptest::collection::btree_set("[ab]{1,3}|x-[0-9]{1,3}", 1..100),
        passing in proptest::collection::btree_set("[ab]{1,3}|x-[0-9]{1,3}", 0..100),
        seed in any::<u64>(),
    ) {
        let mut random = fastrand::Rng::with_seed(seed);
        let now = |random: &mut fastrand::Rng| -> BTreeSet<String> {
            let some = passing.iter().filter(|_| random.bool());
            lasting.iter().chain(some).cloned().collect()
        };
        let (items, next) = fetch(&now(&mut random), "", 4);
        let mut listed: Vec<String> = items.iter().map(|item| item.key.as_str().into()).collect();
        if let Some(next) = next {
            let known = Known { first: &listed[0].clone(), count: listed.len() as u64, page: 4 };
            let guide = Arc::new(Then(now(&mut random).into_iter().collect()));
            let mut split = Split::new(next, &known, Some(guide));
            while !split.is_done() {
                let tasks: Vec<Task> = std::iter::from_fn(|| split.task()).take(5).collect();
                for task in tasks {
                    let (items, next) = fetch(&now(&mut random), &task.after, 4);
                    split.deliver(&task, Instant::now(), items, next);
                }
                for (page, _) in split.ready() {
                    listed.extend((0..page.len()).map(|at| page.get(at).expect("there").0.as_str().to_owned()));
                }
            }
        }
        prop_assert!(listed.is_sorted_by(|a, b| a < b), "{:?}", listed);
        prop_assert!(lasting.iter().all(|key| listed.contains(key)));
        prop_assert!(listed.iter().all(|key| lasting.contains(key) || passing.contains(key)));
    }
}

type MakeKey = fn(u64) -> String;

/// Kinds of keys, and how many wasted requests they may cost for 100 pages.
const KINDS: [(&str, MakeKey, usize); 6] = [
    ("numbered", |i| format!("rec-{i:07}.json"), 8),
    ("numbered from one", |i| format!("page{:06}", i + 1), 8),
    (
        "random",
        |i| format!("{:016x}.json", i.wrapping_mul(0x9e37_79b9_7f4a_7c15)),
        25,
    ),
    ("unpadded", |i| format!("item-{i}"), 25),
    (
        "words",
        |i| {
            let word = ["about", "item", "review"][(i % 3) as usize];
            format!("page_{word}_{}", i / 3)
        },
        25,
    ),
    (
        "times",
        |i| {
            format!(
                "2024-{:02}-{:02}T{:02}-{:02}-00.000Z",
                i / 9000 + 1,
                i / 320 % 28 + 1,
                i / 14 % 24,
                i % 60
            )
        },
        25,
    ),
];

#[test]
fn usual_key_spaces_are_split_with_few_requests_in_vain() {
    for (name, make, in_vain) in KINDS {
        let keys: BTreeSet<String> = (0..100_000).map(make).collect();
        let pages = keys.len().div_ceil(1000);
        // Requests are answered in the order in which they were sent: rounds of one round trip.
        let mut rounds = 0.0;
        let (listed, requests) = list(&keys, None, (1000, 4, 16), |running| {
            rounds += 1.0 / running as f64;
            (0, false)
        });
        assert!(listed.iter().eq(&keys), "{name}");
        assert!(
            requests <= pages + in_vain,
            "{name}: {requests} requests for {pages}"
        );
        assert!(rounds <= 31.0, "{name}: {rounds} rounds");
        if name.starts_with("numbered") {
            assert!(rounds <= 12.0, "{name}: {rounds} rounds");
        }
    }
}

#[test]
fn a_store_of_a_few_pages_costs_two_requests_in_vain_at_most() {
    for (name, make, _) in KINDS {
        for count in (4_001..10_000).step_by(333) {
            let keys: BTreeSet<String> = (0..count).map(make).collect();
            let (listed, requests) = list(&keys, None, (1000, 4, 16), |_| (0, false));
            assert!(listed.iter().eq(&keys), "{name}");
            let pages = keys.len().div_ceil(1000);
            assert!(requests <= pages + 2, "{name}: {requests} for {pages}");
        }
    }
}

#[test]
fn what_is_guessed_behind_the_last_page_is_not_waited_for() {
    let keys: BTreeSet<String> = (0..5_000).map(KINDS[0].1).collect();
    let (_, next) = fetch(&keys, "", 4_000);
    let next = next.expect("more");
    let known = Known {
        first: "rec-0000000.json",
        count: 4_000,
        page: 1000,
    };
    let mut split = Split::new(next, &known, None);
    keys.iter().for_each(|key| split.notice(key));
    let last = split.task().expect("what follows");
    let guess = split.task().expect("a guess");
    let (items, next) = fetch(&keys, &last.after, 1000);
    assert_eq!(next, None);
    split.deliver(&last, Instant::now(), items, next);
    assert_eq!(split.ready().len(), 1);
    assert!(split.is_done() && !split.wants(&guess));
}

#[test]
fn an_earlier_listing_saves_every_request_in_vain() {
    for (name, make, _) in KINDS {
        let keys: BTreeSet<String> = (0..100_000).map(make).collect();
        let guide: Vec<String> = keys.iter().cloned().collect();
        let pages = keys.len().div_ceil(1000);
        let mut rounds = 0.0;
        let (listed, requests) = list(&keys, Some(guide.clone()), (1000, 1, 16), |running| {
            rounds += 1.0 / running as f64;
            (0, false)
        });
        assert!(listed.iter().eq(&keys), "{name}");
        assert_eq!(requests, pages, "{name}");
        assert!(rounds <= 11.0, "{name}: {rounds} rounds");
        // Half of the keys are gone, or the store has grown by as many.
        let half: BTreeSet<String> = keys.iter().step_by(2).cloned().collect();
        let (listed, requests) = list(&half, Some(guide), (1000, 1, 16), |_| (0, false));
        assert!(listed.iter().eq(&half), "{name}");
        assert!(
            requests <= half.len().div_ceil(1000) + 60,
            "{name}: {requests}"
        );
        let guide = half.iter().cloned().collect();
        let (listed, requests) = list(&keys, Some(guide), (1000, 1, 16), |_| (0, false));
        assert!(listed.iter().eq(&keys), "{name}");
        assert!(requests <= pages + 25, "{name}: {requests}");
    }
}
