//! Splits a listing's key space, so that several pages can be fetched at once. Pure.
//!
//! A page can start after any string, whether it is a key or not. So the space is cut into
//! segments: what follows `after`, up to and with `end`. A worker without a segment cuts one in
//! two. Keys outside their segment are dropped: they belong to the next one. Whatever the
//! guesses, the result is the listing; bad guesses cost requests, and those are bounded.
//!
//! Where to cut: an earlier listing knows ([`Guide`]), else the keys so far tell how dense they
//! lie. Cuts are whole pages apart by that measure, so that where it is exact (nothing changed
//! since, or records are numbered without gaps) a cut costs no request at all. Where the keys
//! end nobody knows: the end is looked for in steps that double, one at a time, then halve.

use std::sync::Arc;

use super::page::Packed;
use crate::store::ListItem;

/// Guesses that may hit nothing before no more are made, beside one for every 16 pages.
const MOST_WASTED: u64 = 12;
/// Pages that a segment must seem to hold to be worth a cut that may cost half a page.
const WORTH: u64 = 8;
/// The same where a cut costs nothing.
const WORTH_EXACT: u64 = 2;
/// Positions of keys whose letters are remembered.
const POSITIONS: usize = 64;
/// Places are smaller than this, so that they can be multiplied by numbers of keys.
const MOST_PLACES: u128 = 1 << 90;

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
    /// What has been fetched of it reaches to here, and has so many keys.
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
    pages: Vec<Packed>,
}

impl Segment {
    /// Tells whether it is a guess of which nothing is known yet.
    fn is_probe(&self) -> bool {
        !self.goes_on && !self.done
    }
}

/// Where a segment could be cut.
#[derive(Debug)]
struct Cut {
    mid: Arc<str>,
    /// Keys that seem to lie between what has been fetched of the segment and the cut.
    before: u64,
    /// How much would be gained.
    worth: u64,
    /// Whether keys are expected behind it.
    full: bool,
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

    /// Takes note of a key that has been listed.
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
    /// listing continues, `None` for its end.
    pub fn deliver(&mut self, task: &Task, mut items: Vec<ListItem>, next: Option<Arc<str>>) {
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
        if let Some(next) = next {
            if segment.end.as_ref().is_some_and(|end| next >= *end) {
                segment.done = true;
            }
            segment.after = next;
        }
        segment.count += items.len() as u64;
        let hit = !items.is_empty();
        if hit {
            segment.pages.push(Packed::new(&items));
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
    }

    /// Takes out what is complete from the front, in key order.
    pub fn ready(&mut self) -> Vec<Packed> {
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

    /// Says where a segment is best cut, if it is worth it.
    fn cut(&self, at: usize) -> Option<Cut> {
        let segment = &self.segments[at];
        // What is behind it must be known first: one step into the unknown at a time.
        let is_next_known = self
            .segments
            .get(at + 1)
            .is_none_or(|next| !next.is_probe());
        if segment.done || !segment.goes_on {
            return None;
        }
        let cut = match self.guided(segment) {
            Some(cut) => cut,
            None if segment.full => self.halve(segment),
            None if is_next_known => self.step(segment),
            None => None,
        }?;
        let fits =
            *cut.mid > *segment.after && segment.end.as_ref().is_none_or(|end| cut.mid < *end);
        fits.then_some(cut)
    }

    /// Cuts where an earlier listing had the middle; `None` where that one has ended.
    fn guided(&self, segment: &Segment) -> Option<Option<Cut>> {
        let guide = self.guide.as_ref()?;
        let from = guide.rank_of(&segment.after);
        let to = segment
            .end
            .as_ref()
            .map_or_else(|| guide.keys(), |end| guide.rank_of(end));
        let left = to.saturating_sub(from);
        if left == 0 {
            return None;
        }
        let pages = left.div_ceil(self.page);
        if pages < WORTH_EXACT {
            return Some(None);
        }
        let before = pages.div_ceil(2) * self.page;
        Some(guide.key_at(from + before).map(|mid| Cut {
            mid,
            before,
            worth: left,
            full: true,
        }))
    }

    /// Cuts a segment that is full of keys in two halves of whole pages.
    fn halve(&self, segment: &Segment) -> Option<Cut> {
        let scale = Scale::new(&self.letters, segment)?;
        let left = scale.left();
        let pages = left / self.page;
        if scale.ends_before {
            let worth = left.max(WORTH * self.page);
            return Some(Cut {
                mid: behind(scale.prefix),
                before: left,
                worth,
                full: true,
            });
        }
        let worth = if scale.is_exact() { WORTH_EXACT } else { WORTH };
        if pages < worth {
            return None;
        }
        let before = pages.div_ceil(2) * self.page;
        Some(Cut {
            mid: scale.text(scale.from + scale.span_of(before)?),
            before,
            worth: left,
            full: true,
        })
    }

    /// Takes a step into the unknown: as many keys as there are before it, or half the way to
    /// where nothing was found, but first of all not past the keys that begin alike.
    fn step(&self, segment: &Segment) -> Option<Cut> {
        let cut = |mid, before| Cut {
            mid,
            before,
            // Before all others: it tells what there is to do.
            worth: u64::MAX,
            full: false,
        };
        let scale = Scale::new(&self.letters, segment)?;
        let left = scale.left();
        let mut before = (segment.rank + segment.count).max(self.page);
        if segment.end.is_some() && !scale.ends_before {
            before = before.min(left / 2);
        }
        if before / self.page < WORTH / 2 {
            return None;
        }
        before = before / self.page * self.page;
        match scale.span_of(before).map(|span| scale.from + span) {
            Some(mid) if mid < scale.to => Some(cut(scale.text(mid), before)),
            _ if scale.ends_before && !scale.prefix.is_empty() => {
                Some(cut(behind(scale.prefix), left))
            }
            // There is nothing behind all keys but the end of their letters.
            _ => {
                let half = (scale.to - scale.from) / 2;
                let before = scale.keys_in(half) / self.page * self.page;
                (before / self.page >= WORTH / 2)
                    .then(|| cut(scale.text(scale.from + half), before))
            }
        }
    }
}

/// How dense the keys of a segment lie, by their places among all texts of their letters.
#[derive(Debug)]
struct Scale<'a> {
    letters: &'a [Vec<u8>],
    /// What the keys so far have in common, up to where words and numbers begin.
    prefix: &'a str,
    /// Whether the segment goes on behind all that begins so.
    ends_before: bool,
    /// Places of what has been fetched, and of the segment's end or that of the prefix.
    from: u128,
    to: u128,
    /// So many places held so many keys.
    span: u128,
    count: u64,
}

impl<'a> Scale<'a> {
    /// Returns `None` where nothing can be told.
    fn new(letters: &'a Letters, segment: &'a Segment) -> Option<Self> {
        let alike = &segment.after[..common_prefix(&segment.start, &segment.after)];
        let alike = alike.trim_end_matches(|c: char| c.is_ascii_alphanumeric());
        let end = segment.end.as_ref().filter(|end| end.starts_with(alike));
        let prefix = alike;
        let len = prefix.len();
        let letters = letters.from(len);
        let place = |key: &str| place(letters, key.as_bytes().get(len..).unwrap_or_default());
        let last = letters
            .iter()
            .map(|letters| letters.len().max(1) as u128)
            .product::<u128>();
        let from = place(&segment.after);
        let to = end.map_or(last, |end| place(end).min(last));
        let span = from.checked_sub(place(&segment.start))?;
        (span > 0 && segment.count > 0 && to > from).then_some(Self {
            letters,
            prefix,
            ends_before: end.is_none(),
            from,
            to,
            span,
            count: segment.count,
        })
    }

    /// Returns how many keys seem to be left.
    fn left(&self) -> u64 {
        self.keys_in(self.to - self.from)
    }

    fn keys_in(&self, places: u128) -> u64 {
        let keys = places.saturating_mul(u128::from(self.count)) / self.span;
        u64::try_from(keys).unwrap_or(u64::MAX)
    }

    /// Returns over how many places so many keys seem to be spread.
    fn span_of(&self, keys: u64) -> Option<u128> {
        Some(u128::from(keys).checked_mul(self.span)? / u128::from(self.count))
    }

    /// Tells whether the keys lie evenly, as numbers without gaps do.
    fn is_exact(&self) -> bool {
        self.span.is_multiple_of(u128::from(self.count))
    }

    /// Returns the text at a place.
    fn text(&self, place: u128) -> Arc<str> {
        let mut rest = place;
        let mut letters = Vec::with_capacity(self.letters.len());
        for position in self.letters.iter().rev() {
            let base = position.len().max(1) as u128;
            letters.push(position.get((rest % base) as usize).copied());
            rest /= base;
        }
        let mut text = self.prefix.to_owned();
        for letter in letters.into_iter().rev().map_while(|letter| letter) {
            text.push(char::from(letter));
        }
        text.into()
    }
}

/// Which ASCII characters keys have at each position.
#[derive(Debug)]
struct Letters {
    seen: [u128; POSITIONS],
    is_new: bool,
    /// In order, those that may stand at each position.
    alphabets: Vec<Vec<u8>>,
}

impl Default for Letters {
    fn default() -> Self {
        Self {
            seen: [0; POSITIONS],
            is_new: false,
            alphabets: Vec::new(),
        }
    }
}

impl Letters {
    fn notice(&mut self, key: &str) {
        for (seen, byte) in self.seen.iter_mut().zip(key.bytes()) {
            if byte.is_ascii() && *seen >> byte & 1 == 0 {
                *seen |= 1 << byte;
                self.is_new = true;
            }
        }
    }

    fn refresh(&mut self) {
        if !std::mem::take(&mut self.is_new) {
            return;
        }
        // Where keys differ at all, are they hexadecimal there?
        let varied = self
            .seen
            .iter()
            .filter(|seen| seen.count_ones() > 1)
            .fold(0, |all, seen| all | seen);
        self.alphabets = self
            .seen
            .iter()
            .map(|seen| alphabet(*seen, varied))
            .collect();
    }

    /// Returns the alphabets from a position on, as many as make a place.
    fn from(&self, position: usize) -> &[Vec<u8>] {
        let rest = self.alphabets.get(position..).unwrap_or_default();
        let mut places = 1u128;
        let used = rest
            .iter()
            .take_while(|letters| {
                places *= letters.len().max(1) as u128;
                !letters.is_empty() && places < MOST_PLACES
            })
            .count();
        &rest[..used]
    }
}

/// Returns the letters that may stand where these were seen, in order. Digits stand for all
/// digits, several letters for all of their case; `varied` is what was seen where keys differ.
fn alphabet(seen: u128, varied: u128) -> Vec<u8> {
    let of = |set: u128, class: fn(&u8) -> bool| {
        (0..128u8).filter(move |byte| set >> byte & 1 == 1 && class(byte))
    };
    let is_hex = |letter: u8| {
        of(varied, u8::is_ascii_digit).next().is_some()
            && of(varied, |_| true)
                .all(|byte| byte.is_ascii_digit() || (letter..letter + 6).contains(&byte))
            && of(varied, u8::is_ascii_alphabetic).next().is_some()
    };
    let (hex_lower, hex_upper) = (is_hex(b'a'), is_hex(b'A'));
    let digits = of(seen, u8::is_ascii_digit).next().is_some();
    let lower = of(seen, u8::is_ascii_lowercase).count() > 1;
    let upper = of(seen, u8::is_ascii_uppercase).count() > 1;
    (0..128u8)
        .filter(|byte| {
            let in_hex = |first: u8, is_hex: bool, any: bool| {
                if is_hex {
                    (digits || any) && (first..first + 6).contains(byte)
                } else {
                    any
                }
            };
            seen >> byte & 1 == 1
                || byte.is_ascii_digit() && (digits || (lower && hex_lower) || (upper && hex_upper))
                || byte.is_ascii_lowercase() && in_hex(b'a', hex_lower, lower)
                || byte.is_ascii_uppercase() && in_hex(b'A', hex_upper, upper)
        })
        .collect()
}

/// Returns a text behind all keys of ASCII characters that begin with `prefix`.
fn behind(prefix: &str) -> Arc<str> {
    format!("{prefix}\u{7f}").into()
}

/// Returns where a text lies among all texts of these letters; letters beyond count as the last.
fn place(letters: &[Vec<u8>], text: &[u8]) -> u128 {
    let mut value = 0;
    let mut exact = true;
    for (at, letters) in letters.iter().enumerate() {
        let base = letters.len().max(1) as u128;
        let digit = match text.get(at) {
            Some(byte) if exact => {
                let below = letters.partition_point(|letter| letter < byte);
                exact = letters.get(below) == Some(byte);
                below as u128
            }
            _ => 0,
        };
        value = value * base + digit;
    }
    value
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

    fn fetch(
        keys: &BTreeSet<String>,
        after: &str,
        page: usize,
    ) -> (Vec<ListItem>, Option<Arc<str>>) {
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
            split.deliver(&task, items, next);
            for page in split.ready() {
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
                        split.deliver(&task, items, next);
                    }
                    for page in split.ready() {
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

    /// Kinds of keys, and how many requests in vain they may cost for 100 pages.
    const KINDS: [(&str, MakeKey, usize); 6] = [
        ("numbered", |i| format!("rec-{i:07}.json"), 4),
        ("numbered from one", |i| format!("page{:06}", i + 1), 4),
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
            let (listed, requests) = list(&keys, None, (1000, 10, 16), |running| {
                rounds += 1.0 / running as f64;
                (0, false)
            });
            assert!(listed.iter().eq(&keys), "{name}");
            assert!(
                requests <= pages + in_vain,
                "{name}: {requests} requests for {pages}"
            );
            assert!(rounds <= 30.0, "{name}: {rounds} rounds");
        }
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
}
