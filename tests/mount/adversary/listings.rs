//! Listings: 3 x 4 x 3 x 4 x 8 x 3 x 2 = 6,912 cases. About 37 of them have all
//! pairs, 19 more have one wrong each.
//!
//! A listing that a program has read to its end without an error has every key that was there all the
//! time, each once, and none that was never there.

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use kvfs::apify::http::HttpOptions;

use super::long::Outcome;
use super::pairs;
use super::server::{Adversary, Request, STORE, Then, Wire};
use crate::support;
use crate::support::mounted::{MountedSession, quick_retries};

const SIZES: [usize; 7] = [3, 4, 3, 4, 8, 3, 2];
/// Keys that are there all the time.
const KEYS: usize = 2500;
const PAGE: usize = 1000;
const DEADLINE: Duration = Duration::from_secs(4);
/// Mounts at a time in a long run.
const AT_ONCE_LONG: usize = 8;
/// Cases of a long run between two words of how far it has come.
const AT_A_TIME: usize = 200;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    Sorted,
    Backwards,
    IgnoringCase,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Twice {
    Never,
    OnAPage,
    OverTheEdge,
    APageAgain,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cursor {
    Right,
    Back,
    Still,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Empty {
    Never,
    Once,
    WithoutCursor,
    Always,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Failure {
    Never,
    NotFound,
    Gone,
    Denied,
    Server,
    Page,
    PageNotFound,
    Once,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reader {
    Ls,
    Slow,
    Rewinding,
}

const ORDERS: [Order; 3] = [Order::Sorted, Order::Backwards, Order::IgnoringCase];
const TWICE: [Twice; 4] = [
    Twice::Never,
    Twice::OnAPage,
    Twice::OverTheEdge,
    Twice::APageAgain,
];
const CURSORS: [Cursor; 3] = [Cursor::Right, Cursor::Back, Cursor::Still];
const EMPTY: [Empty; 4] = [
    Empty::Never,
    Empty::Once,
    Empty::WithoutCursor,
    Empty::Always,
];
const FAILURES: [Failure; 8] = [
    Failure::Never,
    Failure::NotFound,
    Failure::Gone,
    Failure::Denied,
    Failure::Server,
    Failure::Page,
    Failure::PageNotFound,
    Failure::Once,
];
const READERS: [Reader; 3] = [Reader::Ls, Reader::Slow, Reader::Rewinding];

#[derive(Clone, Copy, Debug)]
struct Case {
    order: Order,
    twice: Twice,
    cursor: Cursor,
    empty: Empty,
    failure: Failure,
    reader: Reader,
    /// Whether keys come and go meanwhile.
    moving: bool,
}

impl Case {
    fn of(case: &[usize]) -> Self {
        Self {
            order: ORDERS[case[0]],
            twice: TWICE[case[1]],
            cursor: CURSORS[case[2]],
            empty: EMPTY[case[3]],
            failure: FAILURES[case[4]],
            reader: READERS[case[5]],
            moving: case[6] == 1,
        }
    }

    fn is_kind(self) -> bool {
        self.order == Order::Sorted
            && self.twice == Twice::Never
            && self.cursor == Cursor::Right
            && matches!(self.empty, Empty::Never | Empty::Once)
            && matches!(self.failure, Failure::Never | Failure::Once)
    }
}

fn stable() -> Vec<String> {
    let name = |at: usize| match at % 5 {
        0 => format!("Key-{at:05}"),
        1 => format!("key-{at:05}-b"),
        _ => format!("key-{at:05}"),
    };
    (0..KEYS).map(name).collect()
}

/// The keys that there are when this request comes, in the server's order.
fn keys(case: Case, count: usize) -> Vec<String> {
    let mut keys = stable();
    if case.moving {
        for at in [1, 700, 1400, 2400] {
            if (count + at).is_multiple_of(2) {
                keys.push(format!("key-{at:05}-moves"));
            }
        }
    }
    match case.order {
        Order::IgnoringCase => keys.sort_by_key(|key| (key.to_lowercase(), key.clone())),
        Order::Sorted | Order::Backwards => keys.sort(),
    }
    keys
}

fn script(
    case: Case,
    count: &AtomicUsize,
    request: &Request,
    wire: &mut Wire<'_>,
) -> std::io::Result<Then> {
    if request.path != format!("/v2/key-value-stores/{STORE}/keys") {
        return wire.error(404, "record-not-found");
    }
    let count = count.fetch_add(1, Ordering::SeqCst);
    let after = request.parameter("exclusiveStartKey");
    let is_second = after.is_some();
    match case.failure {
        Failure::NotFound if is_second => return wire.error(404, "record-or-token-not-found"),
        Failure::Gone if is_second => return wire.error(410, "gone"),
        Failure::Denied if is_second => return wire.error(403, "insufficient-permissions"),
        Failure::Server if is_second => return wire.error(500, "internal-error"),
        Failure::Page if is_second => return wire.gateway(200),
        Failure::PageNotFound if is_second => return wire.gateway(404),
        Failure::Once if count == 1 => return wire.error(500, "internal-error"),
        _ => {}
    }
    let all = keys(case, count);
    let limit = request
        .parameter("limit")
        .and_then(|limit| limit.parse().ok());
    let limit = limit.unwrap_or(PAGE).min(PAGE);
    let start = match after {
        None => 0,
        Some(after) => match all.iter().position(|key| key == after) {
            Some(at) => at + 1,
            None => all.partition_point(|key| key.as_str() <= after),
        },
    };
    let start = match case.twice {
        Twice::OverTheEdge => start.saturating_sub(1),
        Twice::APageAgain if start == 2 * PAGE => PAGE,
        _ => start,
    };
    let end = (start + limit).min(all.len());
    let mut page: Vec<String> = all[start..end].to_vec();
    let goes_on = end < all.len();
    let mut next = page.last().cloned().filter(|_| goes_on);
    match case.cursor {
        Cursor::Back if start > 0 && goes_on => next = all.get(10).cloned(),
        Cursor::Still if start > 0 && goes_on => next = after.map(str::to_owned),
        _ => {}
    }
    if case.twice == Twice::OnAPage && page.len() > 3 {
        page.insert(3, page[2].clone());
    }
    if case.order == Order::Backwards {
        page.reverse();
    }
    let mut is_truncated = goes_on;
    match case.empty {
        Empty::Once if start == PAGE && count % 2 == 1 => {
            // The cursor moves, though there is nothing on the page.
            page.clear();
            next = after.map(|after| format!("{after}!"));
        }
        Empty::WithoutCursor if start >= PAGE => {
            page.clear();
            (is_truncated, next) = (true, None);
        }
        Empty::Always if start >= PAGE => {
            page.clear();
            is_truncated = true;
            next = after.map(|after| format!("{after}!"));
        }
        _ => {}
    }
    let items: Vec<_> = page
        .iter()
        .map(|key| serde_json::json!({"key": key, "size": 7}))
        .collect();
    let page = serde_json::json!({"data": {
        "items": items, "count": items.len(), "limit": limit, "isTruncated": is_truncated,
        "exclusiveStartKey": after, "nextExclusiveStartKey": next,
    }});
    wire.answer(200, "application/json", page.to_string().as_bytes())
}

fn names(case: Case, mount: &MountedSession) -> Option<Vec<String>> {
    let script = match case.reader {
        Reader::Ls => "ls -U > $BESIDE/names",
        Reader::Slow => {
            "$PYTHON -c \"
import os, time
for at, entry in enumerate(os.scandir('.')):
    if at % 800 == 0: time.sleep(0.3)
    print(entry.name)\" > $BESIDE/names"
        }
        Reader::Rewinding => {
            "$PYTHON -c \"
import os
folder = os.open('.', os.O_DIRECTORY)
os.listdir(folder)
print('\\n'.join(os.listdir(folder)))\" > $BESIDE/names"
        }
    };
    let output = mount.sh(script);
    output.status.success().then(|| {
        let names = std::fs::read_to_string(mount.beside().join("names")).expect("names");
        names.lines().map(str::to_owned).collect()
    })
}

fn check(case: Case) -> Result<bool, String> {
    let count = AtomicUsize::new(0);
    let server = Adversary::start(move |request, wire| script(case, &count, request, wire));
    let options = HttpOptions {
        attempt_timeout: Duration::from_secs(2),
        ..quick_retries()
    };
    let mount = MountedSession::at(&server.url(), options, |config| {
        config.deadline = DEADLINE;
        config.ttl = Some(Duration::from_secs(1));
    });
    let Some(names) = names(case, &mount) else {
        return match case.is_kind() {
            true => Err(format!("{:?}", mount.counters().last_errors)),
            false if mount.counters().last_errors.is_empty() => Err("no word of it".into()),
            false => Ok(false),
        };
    };
    let unique: BTreeSet<&str> = names.iter().map(String::as_str).collect();
    if unique.len() != names.len() {
        return Err(format!("{} names, {} different", names.len(), unique.len()));
    }
    let wanted = stable();
    let missing = wanted.iter().filter(|key| !unique.contains(key.as_str()));
    let missing: Vec<_> = missing.collect();
    if !missing.is_empty() {
        return Err(format!(
            "{} of {} names are missing and no error: {:?}",
            missing.len(),
            wanted.len(),
            &missing[..missing.len().min(3)]
        ));
    }
    let strange = unique
        .iter()
        .find(|name| !name.ends_with("-moves") && !wanted.iter().any(|key| key == *name));
    match strange {
        Some(name) => Err(format!("{name} was never there")),
        None => Ok(true),
    }
}

/// Runs cases, `at_once` of them at a time, each in a mount of its own.
fn run(cases: &[Vec<usize>], at_once: usize) -> Outcome {
    let (next, whole) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let wrong = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..at_once {
            scope.spawn(|| {
                while let Some(digits) = cases.get(next.fetch_add(1, Ordering::SeqCst)) {
                    let case = Case::of(digits);
                    match check(case) {
                        Ok(with_names) => {
                            whole.fetch_add(usize::from(with_names), Ordering::SeqCst);
                        }
                        Err(reason) => {
                            let found = format!("{case:?}: {reason}");
                            let number = pairs::number_of(&SIZES, digits);
                            wrong.lock().expect("no panic").push((number, found));
                        }
                    }
                }
            });
        }
    });
    Outcome {
        cases: cases.len(),
        good: whole.into_inner(),
        wrong: wrong.into_inner().expect("no panic"),
    }
}

#[test]
fn every_pair_of_wrongs_gives_a_whole_listing_or_an_error() {
    let mut cases = pairs::all_pairs(&SIZES, 3);
    cases.extend(pairs::one_at_a_time(&SIZES));
    run(&cases, 1).end("all names");
}

#[test]
fn every_combination_of_wrongs_gives_a_whole_listing_or_an_error() {
    if !support::long() {
        return;
    }
    let numbers = support::share(SIZES.iter().product());
    let cases: Vec<_> = numbers
        .iter()
        .map(|number| pairs::nth(&SIZES, *number))
        .collect();
    let mut sum = Outcome::default();
    for chunk in cases.chunks(AT_A_TIME) {
        sum.add(run(chunk, AT_ONCE_LONG), |case| {
            run(&[pairs::nth(&SIZES, case)], 1)
        });
        println!("{} of {}: {sum}", sum.cases, cases.len());
    }
    sum.end("all names");
}
