//! Compares two stores: keys, sizes and, if wanted, contents.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use parking_lot::Mutex;

use super::filter::Filter;
use super::pages::{Listing, ListingError, Pair, Pairs};
use super::record;
use crate::store::{Key, Result, Store, StoreError};

/// How a record differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only the first store has it.
    OnlyFirst,
    /// Only the second store has it.
    OnlySecond,
    /// Both have it, with other content, type or size.
    Different,
}

/// A record that differs.
#[derive(Debug)]
pub struct Difference {
    /// The record.
    pub key: Key,
    /// How.
    pub kind: Kind,
    /// Its stored bytes in the first store and in the second, where known.
    pub sizes: [Option<u64>; 2],
    /// What differs, in words; empty where only one has it.
    pub what: String,
}

/// What a comparison found.
#[derive(Debug, Default)]
pub struct Found {
    /// In the order of keys.
    pub differences: Vec<Difference>,
    /// Records that are the same.
    pub same: u64,
    /// Records that could not be compared, and why.
    pub failed: Vec<(Key, StoreError)>,
}

/// How to compare.
#[derive(Debug)]
pub struct Options {
    /// Which keys.
    pub filter: Filter,
    /// Whether to read records: without, stored sizes decide.
    pub content: bool,
    /// Records read at once.
    pub jobs: usize,
    /// The longest that one operation of a store may take.
    pub timeout: Duration,
}

/// Compares two stores.
///
/// # Errors
/// That one of them cannot be listed to its end: what it has is not known then.
pub fn run(
    first: &dyn Store,
    second: &dyn Store,
    options: &Options,
) -> Result<Found, ListingError> {
    let mut found = Found::default();
    let mut to_read = Vec::new();
    thread::scope(|scope| {
        let list = |store| Listing::start(scope, store, &options.filter, options.timeout);
        let mut pairs = Pairs::new(list(first), list(second));
        while let Some(pair) = pairs.next_pair()? {
            let (key, kind, sizes) = match pair {
                Pair::First(item) => (item.key, Kind::OnlyFirst, [item.stored_size, None]),
                Pair::Second(item) => (item.key, Kind::OnlySecond, [None, item.stored_size]),
                Pair::Both(one, other) => {
                    let sizes = [one.stored_size, other.stored_size];
                    if options.content || sizes.contains(&None) {
                        to_read.push((one.key, sizes));
                        continue;
                    }
                    if sizes[0] == sizes[1] {
                        found.same += 1;
                        continue;
                    }
                    (one.key, Kind::Different, sizes)
                }
            };
            found.differences.push(Difference {
                what: match kind {
                    Kind::Different => "size".to_owned(),
                    _ => String::new(),
                },
                key,
                kind,
                sizes,
            });
        }
        Ok(())
    })?;
    read(first, second, options, to_read, &mut found);
    found.differences.sort_by(|a, b| a.key.cmp(&b.key));
    Ok(found)
}

/// Reads records of both stores, and compares them.
fn read(
    first: &dyn Store,
    second: &dyn Store,
    options: &Options,
    records: Vec<(Key, [Option<u64>; 2])>,
    found: &mut Found,
) {
    let next = AtomicUsize::new(0);
    let into = Mutex::new(found);
    thread::scope(|scope| {
        for _ in 0..options.jobs.max(1).min(records.len()) {
            scope.spawn(|| {
                while let Some((key, sizes)) = records.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let compared = compare(first, second, key, options.timeout);
                    let mut found = into.lock();
                    match compared {
                        Ok(None) => found.same += 1,
                        Ok(Some(what)) => found.differences.push(Difference {
                            key: key.clone(),
                            kind: Kind::Different,
                            sizes: *sizes,
                            what: what.to_owned(),
                        }),
                        Err(error) => found.failed.push((key.clone(), error)),
                    }
                }
            });
        }
    });
}

/// Returns what differs of a record: decoded bytes, or the type. How it is stored does not count.
fn compare(
    first: &dyn Store,
    second: &dyn Store,
    key: &Key,
    timeout: Duration,
) -> Result<Option<&'static str>> {
    let (one, one_print) = record::read_decoded(first, key, timeout)?;
    let (other, other_print) = record::read_decoded(second, key, timeout)?;
    Ok(
        match (
            one_print == other_print,
            one.content_type == other.content_type,
        ) {
            (true, true) => None,
            (true, false) => Some("type"),
            (false, true) => Some("content"),
            (false, false) => Some("content and type"),
        },
    )
}
