//! Which requests the server may still count, if it counts those of the last second.
//!
//! When a request arrives is not known, only that it lies between its departure and its answer, and
//! that the way back takes as long as ever at least. So a request occupies a place from its departure
//! until a second after its answer, less the shortest time that any took from departure to answer:
//! let F and R be the least times of the two ways. A request that was answered at `t` arrived by
//! `t - R`, and one that departs a second after `t - (F + R)` arrives a second after that at the
//! earliest, however either of them was held up. If the way to the server is open only now and then,
//! in step with the requests, none of them shows the shortest time: two slots are left for that.
//!
//! Requests are counted by the slot of their departure, and once answered by that of their answer.
//! One that is never answered, as its process has died, ends by itself.

use std::time::Duration;

use super::Moment;

/// Moments are known as precisely as this; a place is free a slot or two late.
const SLOT: Duration = Duration::from_millis(SLOT_MS);
const SLOT_MS: u64 = 10;
/// Slots after which a place is free: a second, what is left of the answer's own slot, and two more
/// in case no exchange had both ways at their shortest.
const OCCUPIED: u64 = 103;
/// Slots after which a request without an answer has long arrived.
const UNANSWERED: u64 = 300;
/// How much time passes at most between looking at it and counting a request.
const PASSED: Duration = Duration::from_secs(5);
/// What is remembered of how fast the server answers, at least.
const REMEMBERED: Duration = Duration::from_secs(60);

/// What waits for a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// A program.
    Urgent,
    /// None yet.
    Other,
}

/// Requests by what waits for them.
type Counts = [u16; 2];

/// Requests that occupy places.
#[derive(Clone, Debug, PartialEq)]
pub struct Window {
    /// The slot of the last change; later ones are empty.
    newest: u64,
    /// Requests without an answer, by the slot of their departure.
    flying: [Counts; UNANSWERED as usize],
    /// Others, by the slot of the moment from which they occupy a place for a second.
    landed: [Counts; OCCUPIED as usize],
    /// The shortest time from departure to answer, lately and before that.
    fastest: [Duration; 2],
    /// Since when it is "lately".
    since: Moment,
}

/// Bytes of a window on disk.
pub const WINDOW_LEN: usize = 8 * 4 + 4 * (UNANSWERED + OCCUPIED) as usize;

impl Window {
    /// Returns one in which all places are free.
    pub fn new() -> Self {
        Self {
            newest: 0,
            flying: [[0; 2]; UNANSWERED as usize],
            landed: [[0; 2]; OCCUPIED as usize],
            fastest: [Duration::MAX; 2],
            since: Moment::ZERO,
        }
    }

    /// Counts a request that begins now.
    pub fn depart(&mut self, class: Class, now: Moment) {
        self.advance(now);
        change(&mut self.flying[index(slot(now), UNANSWERED)], class, 1);
    }

    /// Counts the answer to a request that began at `departed`, or the end of the wait for it.
    ///
    /// `took` is how long it took, if that tells anything about the line.
    pub fn land(&mut self, class: Class, departed: Moment, now: Moment, took: Option<Duration>) {
        self.advance(now);
        let left = slot(departed);
        if left + UNANSWERED > self.newest {
            change(&mut self.flying[index(left, UNANSWERED)], class, -1);
        }
        if let Some(took) = took {
            self.note(took, now);
        }
        let round_trip = self.fastest[0].min(self.fastest[1]);
        let known = if round_trip == Duration::MAX {
            Duration::ZERO
        } else {
            round_trip
        };
        let from = slot(now.saturating_sub(known).max(departed).min(now));
        if from + OCCUPIED > self.newest {
            change(&mut self.landed[index(from, OCCUPIED)], class, 1);
        }
    }

    /// Counts also what another window counts.
    pub fn add(&mut self, other: &Self) {
        let newest = start(other.newest);
        self.advance(newest);
        let mut other = other.clone();
        other.advance(start(self.newest));
        let places = self.flying.iter_mut().chain(&mut self.landed).flatten();
        let others = other.flying.iter().chain(&other.landed).flatten();
        for (place, more) in places.zip(others) {
            *place = place.saturating_add(*more);
        }
        for (fastest, others) in self.fastest.iter_mut().zip(other.fastest) {
            *fastest = others.min(*fastest);
        }
    }

    /// Returns how many requests of each class occupy a place.
    pub fn occupied(&mut self, now: Moment) -> [usize; 2] {
        self.advance(now);
        let mut all = [0; 2];
        for counts in self.flying.iter().chain(&self.landed) {
            all[0] += usize::from(counts[0]);
            all[1] += usize::from(counts[1]);
        }
        all
    }

    /// Returns how long it takes until so many places are free again, at least.
    pub fn until_free(&mut self, mut places: usize, now: Moment) -> Duration {
        self.advance(now);
        let oldest = (self.newest + 1).saturating_sub(UNANSWERED);
        for slot in oldest..=self.newest {
            let mut here = sum(self.flying[index(slot, UNANSWERED)]);
            if slot + OCCUPIED > self.newest {
                here += sum(self.landed[index(slot, OCCUPIED)]);
            }
            if here >= places {
                // An answer that is late frees its place at any moment.
                let free = start(slot + OCCUPIED);
                return free.saturating_sub(now).max(SLOT);
            }
            places -= here;
        }
        Duration::ZERO
    }

    fn note(&mut self, took: Duration, now: Moment) {
        if now.saturating_sub(self.since) < REMEMBERED {
            self.fastest[0] = self.fastest[0].min(took);
        } else {
            self.fastest = [took, self.fastest[0]];
            self.since = now;
        }
    }

    /// Forgets what is over.
    fn advance(&mut self, now: Moment) {
        let now = slot(now);
        let passed = now.saturating_sub(self.newest);
        for slot in now - passed.min(UNANSWERED)..now {
            self.flying[index(slot + 1, UNANSWERED)] = [0; 2];
            self.landed[index(slot + 1, OCCUPIED)] = [0; 2];
        }
        self.newest = self.newest.max(now);
    }

    /// Writes a form for the disk.
    pub fn write(&self, into: &mut Vec<u8>) {
        let head = [
            self.newest,
            super::nanos(self.fastest[0]),
            super::nanos(self.fastest[1]),
            super::nanos(self.since),
        ];
        into.extend(head.iter().flat_map(|word| word.to_le_bytes()));
        let counts = self.flying.iter().chain(&self.landed).flatten();
        into.extend(counts.flat_map(|count| count.to_le_bytes()));
    }

    /// Reads what [`Window::write`] wrote; `None` for too few bytes. One that was written before
    /// the machine was last started is empty.
    pub fn read(bytes: &[u8], now: Moment) -> Option<Self> {
        let mut window = Self::new();
        let (head, counts) = bytes.get(..WINDOW_LEN)?.split_at(8 * 4);
        let mut words = head
            .chunks_exact(8)
            .filter_map(|word| Some(u64::from_le_bytes(word.try_into().ok()?)));
        window.newest = words.next()?;
        for fastest in &mut window.fastest {
            let nanos = words.next()?;
            if nanos < u64::MAX {
                *fastest = Duration::from_nanos(nanos);
            }
        }
        window.since = Duration::from_nanos(words.next()?);
        // Other processes may have gone on since this one looked at the time.
        if start(window.newest) > now + PASSED || window.since > now + PASSED {
            return Some(Self::new());
        }
        let places = window.flying.iter_mut().chain(&mut window.landed).flatten();
        for (place, count) in places.zip(counts.chunks_exact(2)) {
            *place = u16::from_le_bytes(count.try_into().ok()?);
        }
        Some(window)
    }
}

fn slot(moment: Moment) -> u64 {
    u64::try_from(moment.as_millis()).unwrap_or(u64::MAX / 2) / SLOT_MS
}

fn start(slot: u64) -> Moment {
    Duration::from_millis(slot.saturating_mul(SLOT_MS))
}

fn index(slot: u64, len: u64) -> usize {
    (slot % len) as usize
}

fn change(counts: &mut Counts, class: Class, by: i16) {
    let count = &mut counts[class as usize];
    *count = count.saturating_add_signed(by);
}

fn sum(counts: Counts) -> usize {
    usize::from(counts[0]) + usize::from(counts[1])
}
