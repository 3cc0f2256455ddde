//! Splits a listing's key space, so that several pages can be fetched at once. Pure.
//!
//! A page can start after any string, whether it is a key or not. So the space is cut into
//! segments: what follows `after`, up to and with `end`. A worker without a segment halves one
//! that is known to go on. Keys outside their segment are dropped: they belong to the next one.
//! Whatever the guesses, the result is the listing; bad guesses cost requests, and those are
//! bounded by `MOST_WASTED`.

use std::sync::Arc;

use crate::store::ListItem;

/// Guesses that may hit nothing before no more are made.
const MOST_WASTED: u32 = 12;
/// A segment that seems to hold fewer keys than this is not worth halving.
const WORTH: u64 = 8000;
/// Positions of keys whose letters are remembered.
const POSITIONS: usize = 64;
/// Characters after the common prefix that place a key in its segment.
const DIGITS: usize = 4;

/// A listing being fetched in segments.
#[derive(Debug)]
pub struct Split {
    /// In key order; together they are what is still to be handed out.
    segments: Vec<Segment>,
    next_id: u64,
    wasted: u32,
    /// Which ASCII characters keys have at each position.
    seen: [u128; POSITIONS],
}

#[derive(Debug)]
struct Segment {
    id: u64,
    /// Where it began, for estimates.
    start: Arc<str>,
    /// What has been fetched of it reaches to here.
    after: Arc<str>,
    /// Its last possible key; `None` for the end of the listing.
    end: Option<Arc<str>>,
    busy: bool,
    done: bool,
    /// Whether a page of it has shown that it goes on.
    goes_on: bool,
    count: u64,
    pages: Vec<Vec<ListItem>>,
}

/// A page to fetch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Task {
    id: u64,
    /// The page starts after this.
    pub after: Arc<str>,
}

impl Split {
    /// Starts after `after`, when `known`, keys before it, have been listed.
    pub fn new<'a>(after: Arc<str>, known: impl Iterator<Item = &'a str>) -> Self {
        let mut split = Self {
            segments: Vec::new(),
            next_id: 1,
            wasted: 0,
            seen: [0; POSITIONS],
        };
        let mut first: Option<&str> = None;
        let mut count = 0;
        for key in known {
            split.notice(key);
            first.get_or_insert(key);
            count += 1;
        }
        let start = first.map_or_else(|| Arc::clone(&after), Arc::from);
        // Most often all keys begin alike: what is behind that beginning is guessed to be empty.
        let common = common_prefix(&start, &after);
        split.segments.push(Segment {
            id: 0,
            start,
            end: None,
            busy: false,
            done: false,
            goes_on: true,
            count,
            pages: Vec::new(),
            after: Arc::clone(&after),
        });
        if common > 0 {
            let cut = behind(&after[..common]);
            let id = split.next_id;
            split.next_id += 1;
            split.segments[0].end = Some(Arc::clone(&cut));
            split.segments.push(Segment {
                id,
                start: Arc::clone(&cut),
                after: cut,
                end: None,
                busy: false,
                done: false,
                goes_on: false,
                count: 0,
                pages: Vec::new(),
            });
        }
        split
    }

    /// Returns what is left of a listing that has come to its end.
    pub fn finished() -> Self {
        Self {
            segments: Vec::new(),
            next_id: 0,
            wasted: 0,
            seen: [0; POSITIONS],
        }
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
        if self.wasted >= MOST_WASTED {
            return None;
        }
        let (at, mid) = (0..self.segments.len())
            .filter(|at| self.segments[*at].goes_on && !self.segments[*at].done)
            .filter_map(|at| Some((at, self.halve(&self.segments[at])?)))
            .max_by_key(|(_, (_, worth))| *worth)
            .map(|(at, (mid, _))| (at, mid))?;
        let id = self.next_id;
        self.next_id += 1;
        let end = self.segments[at].end.replace(Arc::clone(&mid));
        let task = Task {
            id,
            after: Arc::clone(&mid),
        };
        self.segments.insert(
            at + 1,
            Segment {
                id,
                start: Arc::clone(&mid),
                after: mid,
                end,
                busy: true,
                done: false,
                goes_on: false,
                count: 0,
                pages: Vec::new(),
            },
        );
        Some(task)
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
    /// listing continues, `None` for its end.
    pub fn deliver(&mut self, task: &Task, mut items: Vec<ListItem>, next: Option<Arc<str>>) {
        for item in &items {
            self.notice(item.key.as_str());
        }
        let Some(segment) = self
            .segments
            .iter_mut()
            .find(|segment| segment.id == task.id)
        else {
            return;
        };
        segment.busy = false;
        let whole = items.len();
        if let Some(end) = &segment.end {
            items.retain(|item| item.key.as_str() <= &**end);
        }
        let cut = items.len() < whole;
        segment.goes_on = true;
        segment.done = cut || next.is_none();
        if let Some(next) = next {
            if segment.end.as_ref().is_some_and(|end| next >= *end) {
                segment.done = true;
            }
            segment.after = next;
        }
        segment.count += items.len() as u64;
        if items.is_empty() {
            self.wasted += u32::from(segment.count == 0);
        } else {
            segment.pages.push(items);
        }
    }

    /// Takes out what is complete from the front, in key order.
    pub fn ready(&mut self) -> Vec<Vec<ListItem>> {
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

    /// Tells whether everything has been handed out.
    pub fn is_done(&self) -> bool {
        self.segments.is_empty()
    }

    fn notice(&mut self, key: &str) {
        for (seen, byte) in self.seen.iter_mut().zip(key.bytes()) {
            if byte.is_ascii() {
                *seen |= 1 << byte;
            }
        }
    }

    /// Returns a string that seems to lie in the middle of what is left of a segment, and how
    /// many keys seem to be left.
    fn halve(&self, segment: &Segment) -> Option<(Arc<str>, u64)> {
        let end = segment.end.as_deref();
        let alike = common_prefix(&segment.start, &segment.after);
        if end.is_none() && alike > 0 {
            // What the keys so far have in common, all the others most often have too.
            return Some((behind(&segment.after[..alike]), u64::MAX));
        }
        let prefix = end.map_or(0, |end| common_prefix(&segment.after, end));
        let letters: Vec<Vec<u8>> = (0..DIGITS)
            .map(|digit| alphabet(self.seen.get(prefix + digit).copied().unwrap_or(0)))
            .collect();
        if letters[0].len() < 2 {
            return None;
        }
        let place = |key: &str| place(&letters, key.as_bytes().get(prefix..).unwrap_or_default());
        let last = letters
            .iter()
            .map(|letters| letters.len().max(1) as u64)
            .product::<u64>();
        let from = place(&segment.after);
        let to = end.map_or(last, place);
        let mid = from + to.checked_sub(from)? / 2;
        // How dense the segment was so far tells what is left; without a clue it is worth a try.
        let worth = if alike >= prefix && segment.count > 0 {
            let span = from.saturating_sub(place(&segment.start)).max(1);
            segment.count.saturating_mul(to - from) / span
        } else {
            u64::MAX / 2
        };
        if worth < WORTH || mid <= from {
            return None;
        }
        let mut text = segment.after[..prefix].to_owned();
        let mut rest = mid;
        let mut digits = Vec::with_capacity(DIGITS);
        for letters in letters.iter().rev() {
            let base = letters.len().max(1) as u64;
            digits.push(letters.get((rest % base) as usize).copied());
            rest /= base;
        }
        for letter in digits.into_iter().rev().map_while(|letter| letter) {
            text.push(char::from(letter));
        }
        let fits = *text > *segment.after && end.is_none_or(|end| *text < *end);
        fits.then(|| (text.into(), worth))
    }
}

/// Returns a text behind all keys of ASCII characters that begin with `prefix`.
fn behind(prefix: &str) -> Arc<str> {
    format!("{prefix}\u{7f}").into()
}

/// Returns where a text lies among all texts of these letters; letters beyond count as the last.
fn place(letters: &[Vec<u8>], text: &[u8]) -> u64 {
    let mut value = 0;
    let mut exact = true;
    for (at, letters) in letters.iter().enumerate() {
        let base = letters.len().max(1) as u64;
        let digit = match text.get(at) {
            Some(byte) if exact => {
                let below = letters.partition_point(|letter| letter < byte);
                exact = letters.get(below) == Some(byte);
                below as u64
            }
            _ => 0,
        };
        value = value * base + digit;
    }
    value
}

/// Returns the letters that may stand where these were seen, in order: their whole classes.
fn alphabet(seen: u128) -> Vec<u8> {
    let has = |class: fn(&u8) -> bool| (0..128u8).any(|byte| seen >> byte & 1 == 1 && class(&byte));
    let (digits, lower, upper) = (
        has(u8::is_ascii_digit),
        has(u8::is_ascii_lowercase),
        has(u8::is_ascii_uppercase),
    );
    let hex = |byte: u8| {
        (0..128u8)
            .filter(|byte| seen >> byte & 1 == 1)
            .all(|b| b.is_ascii_hexdigit())
            && byte.is_ascii_hexdigit()
    };
    (0..128u8)
        .filter(|byte| {
            seen >> byte & 1 == 1
                || byte.is_ascii_digit() && digits
                || byte.is_ascii_lowercase() && lower && (hex(*byte) || !hex(b'a'))
                || byte.is_ascii_uppercase() && upper && (hex(*byte) || !hex(b'A'))
        })
        .collect()
}

/// Returns the length of the common beginning of two texts, in bytes; a character boundary.
fn common_prefix(a: &str, b: &str) -> usize {
    a.chars()
        .zip(b.chars())
        .take_while(|(x, y)| x == y)
        .map(|(x, _)| x.len_utf8())
        .sum()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

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

    /// Lists `keys` with so many workers, each taking random time; returns the listing and the requests.
    fn list(
        keys: &BTreeSet<String>,
        page: usize,
        workers: usize,
        seed: u64,
    ) -> (Vec<String>, usize) {
        let mut random = fastrand::Rng::with_seed(seed);
        let fetch = |after: &str| {
            let items: Vec<ListItem> = keys
                .range(after.to_owned()..)
                .filter(|key| key.as_str() > after)
                .take(page)
                .map(|key| item(key))
                .collect();
            let next = items
                .last()
                .filter(|last| keys.range(last.key.as_str().to_owned()..).nth(1).is_some());
            let next = next.map(|last| Arc::from(last.key.as_str()));
            (items, next)
        };
        let (head, next) = fetch("");
        let mut listed: Vec<String> = head
            .iter()
            .map(|item| item.key.as_str().to_owned())
            .collect();
        let Some(next) = next else { return (listed, 1) };
        let mut requests = 1;
        let mut split = Split::new(next, head.iter().map(|item| item.key.as_str()));
        let mut running = Vec::new();
        while !split.is_done() {
            while running.len() < workers
                && let Some(task) = split.task()
            {
                running.push(task);
            }
            assert!(!running.is_empty(), "nothing to do, and not done");
            let task = running.swap_remove(random.usize(..running.len()));
            requests += 1;
            if random.u8(..10) == 0 {
                split.failed(&task);
                continue;
            }
            let (items, next) = fetch(&task.after);
            split.deliver(&task, items, next);
            listed.extend(
                split
                    .ready()
                    .iter()
                    .flatten()
                    .map(|item| item.key.as_str().to_owned()),
            );
        }
        (listed, requests)
    }

    proptest! {
        #[test]
        fn whatever_the_keys_the_listing_is_complete_and_in_order(
            keys in proptest::collection::btree_set("[ab]{1,3}|x-[0-9]{1,3}|é[a-c]{0,2}|aaaaaaaaaaaaaaaaa[a-z]{0,3}", 1..200),
            page in 1usize..9, workers in 1usize..9, seed in any::<u64>(),
        ) {
            let (listed, _) = list(&keys, page, workers, seed);
            prop_assert_eq!(listed, keys.into_iter().collect::<Vec<_>>());
        }
    }

    #[test]
    fn usual_key_spaces_are_split_with_few_requests_in_vain() {
        let numbered = |i: u64| format!("key-{i:06}");
        let random = |i: u64| format!("{:016x}.json", i.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let mixed = |i: u64| {
            format!(
                "page_{}_{}",
                ["about", "item", "review"][(i % 3) as usize],
                i / 3
            )
        };
        for (name, make) in [
            ("numbered", &numbered as &dyn Fn(u64) -> String),
            ("random", &random),
            ("mixed", &mixed),
        ] {
            let keys: BTreeSet<String> = (0..100_000).map(make).collect();
            let mut split = None;
            // Rounds of one round trip each, sixteen workers.
            let all: Vec<&String> = keys.iter().collect();
            let head: Vec<ListItem> = all[..1000].iter().map(|key| item(key)).collect();
            let split = split.get_or_insert_with(|| {
                Split::new(
                    Arc::from(all[999].as_str()),
                    head.iter().map(|item| item.key.as_str()),
                )
            });
            let (mut rounds, mut requests, mut listed) = (0, 0, 1000);
            while !split.is_done() {
                let tasks: Vec<Task> = std::iter::from_fn(|| split.task()).take(16).collect();
                rounds += 1;
                requests += tasks.len();
                for task in tasks {
                    let from = all.partition_point(|key| key.as_str() <= &*task.after);
                    let to = all.len().min(from + 1000);
                    let next = (to < all.len()).then(|| Arc::from(all[to - 1].as_str()));
                    split.deliver(
                        &task,
                        all[from..to].iter().map(|key| item(key)).collect(),
                        next,
                    );
                }
                listed += split.ready().iter().map(Vec::len).sum::<usize>();
            }
            assert_eq!(listed, 100_000, "{name}");
            assert!(rounds <= 48, "{name}: {rounds} rounds");
            assert!(requests <= 180, "{name}: {requests} requests");
        }
    }
}
