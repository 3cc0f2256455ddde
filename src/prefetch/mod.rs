//! Fetches the next records of a scan ahead, in parallel, so that a walk over small files costs
//! about one round trip a window instead of one a file.
//!
//! Only opens start it, and only opens keep it going: when a scan stops, so does prefetching, with
//! at most one window wasted. Its requests have the lowest priority.

use std::collections::hash_map::DefaultHasher;
use std::hash::Hasher;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::base::clock::{Deadline, Wait};
use crate::base::sync::{self, Mutex};
use crate::base::workers::Workers;
use crate::cache::records::Records;
use crate::listing::Listing;
use crate::metrics::Metrics;
use crate::store::Key;

pub mod detector;

use detector::{Ahead, Detector};

/// Records fetched ahead at once, over all scans. Few where schedules are explored.
pub const AT_ONCE: usize = if cfg!(feature = "shuttle") { 2 } else { 56 };
/// Records that wait to be fetched ahead, over all scans; more are not worth having.
const QUEUED: usize = if cfg!(feature = "shuttle") { 4 } else { 256 };
/// Larger records are not fetched ahead: their transfer, not the round trip, takes the time.
const LARGEST: u64 = 1 << 20;
/// The assumed cost of a record of unknown size.
const UNKNOWN: u64 = 64 << 10;
/// Bytes fetched ahead by one scan, if the memory cache is large enough.
const BUDGET: u64 = 32 << 20;
/// A store with more records than this is followed in listing order only.
const SORTABLE: u64 = 200_000;

/// Fetches ahead for one mount.
#[derive(Debug)]
pub struct Prefetcher {
    records: Arc<Records>,
    pool: Arc<Workers>,
    deadline: Duration,
    origin: Instant,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// The listing that the detectors' ranks belong to.
    listing: Option<Arc<Listing>>,
    in_order: Detector,
    by_number: Detector,
    numeric: Numeric,
}

/// The listing in the order that people number things: `r2` before `r10`.
#[derive(Debug, Default)]
enum Numeric {
    /// No reader has needed it yet.
    #[default]
    Unknown,
    /// It is the listing's own order, or the store is too large.
    Useless,
    /// Rank in the listing of each place in this order, and the other way round.
    Known(Arc<(Vec<u32>, Vec<u32>)>),
}

impl Prefetcher {
    /// Makes a prefetcher; `None` when nothing fetched ahead would be of use: without a TTL
    /// everything is asked for again, without memory it is lost.
    pub fn new(records: Arc<Records>, metrics: Arc<Metrics>, deadline: Duration) -> Option<Self> {
        let ttl = records.config().ttl.unwrap_or(Duration::MAX);
        let budget = BUDGET.min(records.config().memory_capacity / 2);
        if ttl.is_zero() || budget == 0 {
            return None;
        }
        let detector = || Detector::new(budget, ttl / 2);
        Some(Self {
            pool: Workers::new("kvfs-prefetch", AT_ONCE, QUEUED, metrics),
            state: Mutex::new(State {
                listing: None,
                in_order: detector(),
                by_number: detector(),
                numeric: Numeric::Unknown,
            }),
            records,
            deadline,
            origin: sync::now(),
        })
    }

    /// Notes that a program opened a record, and fetches what it will open next.
    pub fn opened(&self, listing: &Arc<Listing>, key: &Key) {
        let Some(rank) = listing.rank(key) else {
            return;
        };
        let now = self.records.now().saturating_duration_since(self.origin);
        let mut guard = self.state.lock();
        let state = &mut *guard;
        if state
            .listing
            .as_ref()
            .is_none_or(|known| !Arc::ptr_eq(known, listing))
        {
            state.listing = Some(Arc::clone(listing));
            state.in_order.reset();
            state.by_number.reset();
            state.numeric = Numeric::Unknown;
        }
        let mut wanted = state.in_order.opened(rank, now, &Ranks(listing, None));
        if wanted.is_empty()
            && let Some(orders) = state.numeric.of(listing)
            && let Some(place) = orders.1.get(rank as usize)
        {
            let places =
                state
                    .by_number
                    .opened(u64::from(*place), now, &Ranks(listing, Some(&orders.0)));
            wanted = places
                .iter()
                .filter_map(|place| orders.0.get(*place as usize))
                .map(|rank| u64::from(*rank))
                .collect();
        }
        drop(guard);
        for rank in wanted {
            if let Some(entry) = listing.entry(rank) {
                self.fetch(entry.key);
            }
        }
    }

    fn fetch(&self, key: Key) {
        if self.records.is_at_hand(&key) {
            return;
        }
        let (records, deadline) = (Arc::clone(&self.records), self.deadline);
        let queued = self.pool.spawn(move || {
            if let Err(error) = records.prefetch(&key, Wait::Until(Deadline::after(deadline))) {
                // The program that opens it will be told.
                tracing::debug!("fetching {key} ahead failed: {error:?}");
            }
        });
        if queued.is_err() {
            tracing::debug!("too much to fetch ahead");
        }
    }
}

/// The records of a listing by rank, or by place in another order.
struct Ranks<'a>(&'a Listing, Option<&'a [u32]>);

impl detector::Records for Ranks<'_> {
    fn at(&self, rank: u64) -> Option<Ahead> {
        let rank = match self.1 {
            Some(order) => u64::from(*order.get(rank as usize)?),
            None => rank,
        };
        let entry = self.0.entry(rank)?;
        let bytes = entry.stored_size.unwrap_or(UNKNOWN);
        let key = entry.key.as_str();
        Some(Ahead {
            class: shape(key.rsplit_once('.').map_or("", |(_, extension)| extension)),
            shape: shape(key),
            // Beyond any budget: never fetched ahead.
            bytes: if bytes > LARGEST { u64::MAX } else { bytes },
        })
    }
}

/// Returns a number for a text but for the digits in it: the same for `page-9.html` and
/// `page-10.html`.
fn shape(text: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    let mut was_digit = false;
    for byte in text.bytes() {
        let is_digit = byte.is_ascii_digit();
        if !(is_digit && was_digit) {
            hasher.write_u8(if is_digit { b'0' } else { byte });
        }
        was_digit = is_digit;
    }
    hasher.finish()
}

impl Numeric {
    fn of(&mut self, listing: &Listing) -> Option<Arc<(Vec<u32>, Vec<u32>)>> {
        if matches!(self, Self::Unknown) && listing.is_done() {
            *self = Self::sort(listing);
        }
        match self {
            Self::Known(orders) => Some(Arc::clone(orders)),
            Self::Unknown | Self::Useless => None,
        }
    }

    fn sort(listing: &Listing) -> Self {
        if listing.count() > SORTABLE {
            return Self::Useless;
        }
        let keys = listing.keys();
        let mut order: Vec<u32> = (0..keys.len() as u32).collect();
        order.sort_by(|a, b| by_number(keys[*a as usize].as_str(), keys[*b as usize].as_str()));
        if order.is_sorted() {
            return Self::Useless;
        }
        let mut place = vec![0; order.len()];
        for (at, rank) in order.iter().enumerate() {
            place[*rank as usize] = at as u32;
        }
        Self::Known(Arc::new((order, place)))
    }
}

/// Compares as people number things: runs of digits by their value, the rest byte by byte.
fn by_number(a: &str, b: &str) -> std::cmp::Ordering {
    let (mut a, mut b) = (a.as_bytes(), b.as_bytes());
    while let (Some(x), Some(y)) = (a.first(), b.first()) {
        let order = if x.is_ascii_digit() && y.is_ascii_digit() {
            let (number, rest) = split_number(a);
            let (other, other_rest) = split_number(b);
            (a, b) = (rest, other_rest);
            number
                .len()
                .cmp(&other.len())
                .then_with(|| number.cmp(other))
        } else {
            (a, b) = (&a[1..], &b[1..]);
            x.cmp(y)
        };
        if order.is_ne() {
            return order;
        }
    }
    a.len().cmp(&b.len())
}

/// Splits a number, leading zeros dropped, from what follows it.
fn split_number(text: &[u8]) -> (&[u8], &[u8]) {
    let end = text
        .iter()
        .position(|byte| !byte.is_ascii_digit())
        .unwrap_or(text.len());
    let (digits, rest) = text.split_at(end);
    let zeros = digits
        .iter()
        .position(|digit| *digit != b'0')
        .unwrap_or(digits.len());
    (&digits[zeros..], rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_in_names_make_no_other_shape() {
        assert_eq!(shape("page-9.html"), shape("page-010.html"));
        assert_ne!(shape("page-9.html"), shape("page-9.json"));
        assert_ne!(shape("r1-1"), shape("r1"));
        assert_eq!(shape("001"), shape("2"), "parts of a whole are of one kind");
    }

    #[test]
    fn numbers_are_ordered_by_value() {
        let mut keys = ["r10", "r2", "r1", "r02x", "a", "r", "r1-10", "r1-9"];
        keys.sort_by(|a, b| by_number(a, b));
        assert_eq!(keys, ["a", "r", "r1", "r1-9", "r1-10", "r2", "r02x", "r10"]);
    }
}
