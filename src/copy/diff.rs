//! Compares two stores: keys, sizes and, if wanted, contents.

use std::io;
use std::mem;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use parking_lot::Mutex;

use super::filter::Filter;
use super::pages::{Listing, ListingError, Pair, Pairs};
use super::record;
use crate::base::descriptors::at_once;
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

/// How a comparison went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Records that differ.
    pub different: u64,
    /// Records that are the same.
    pub same: u64,
    /// Records that could not be compared.
    pub failed: u64,
}

/// What is said of a record, in the order of keys.
#[derive(Debug)]
pub enum Told {
    /// It differs.
    Different(Difference),
    /// It could not be compared, and why.
    Failed(Key, StoreError),
}

/// Why a comparison ended early.
#[derive(Debug)]
pub enum Error {
    /// One of the stores cannot be listed to its end: what it has is not known then.
    Listing(Box<ListingError>),
    /// The one that is told cannot go on.
    Told(io::Error),
}

impl From<ListingError> for Error {
    fn from(error: ListingError) -> Self {
        Self::Listing(Box::new(error))
    }
}

/// Records that wait to be read or told, at most.
const BATCH: usize = 4096;
/// The bytes of their keys, at most.
const BATCH_BYTES: usize = 8 << 20;

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

/// Compares two stores, and tells of what differs as it goes: neither listing is kept.
///
/// # Errors
/// What ended it early; what was told before holds all the same.
pub fn run(
    first: &dyn Store,
    second: &dyn Store,
    options: &Options,
    tell: &mut dyn FnMut(Told) -> io::Result<()>,
) -> Result<Found, Error> {
    let mut batch = Batch {
        first,
        second,
        options,
        found: Found::default(),
        told: Vec::new(),
        to_read: Vec::new(),
        bytes: 0,
    };
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
                        batch.bytes += one.key.as_str().len();
                        batch.to_read.push((one.key, sizes));
                        batch.settle_if_full(tell)?;
                        continue;
                    }
                    if sizes[0] == sizes[1] {
                        batch.found.same += 1;
                        continue;
                    }
                    (one.key, Kind::Different, sizes)
                }
            };
            batch.bytes += key.as_str().len();
            batch.told.push(Told::Different(Difference {
                what: match kind {
                    Kind::Different => "size".to_owned(),
                    _ => String::new(),
                },
                key,
                kind,
                sizes,
            }));
            batch.settle_if_full(tell)?;
        }
        batch.settle(tell)
    })?;
    Ok(batch.found)
}

/// What has been listed and not yet been told.
struct Batch<'a> {
    first: &'a dyn Store,
    second: &'a dyn Store,
    options: &'a Options,
    found: Found,
    told: Vec<Told>,
    /// Records of which only the content says whether they differ.
    to_read: Vec<(Key, [Option<u64>; 2])>,
    bytes: usize,
}

impl Batch<'_> {
    fn settle_if_full(
        &mut self,
        tell: &mut dyn FnMut(Told) -> io::Result<()>,
    ) -> Result<(), Error> {
        let len = self.told.len() + self.to_read.len();
        // What waits for no content need not wait.
        match self.to_read.is_empty() || len >= BATCH || self.bytes >= BATCH_BYTES {
            true => self.settle(tell),
            false => Ok(()),
        }
    }

    /// Reads what is to be read, and tells of all in order.
    fn settle(&mut self, tell: &mut dyn FnMut(Told) -> io::Result<()>) -> Result<(), Error> {
        let records = mem::take(&mut self.to_read);
        let read = self.read(&records);
        self.found.same += (records.len() - read.len()) as u64;
        self.told.extend(read);
        self.told.sort_by(|a, b| a.key().cmp(b.key()));
        self.bytes = 0;
        for told in self.told.drain(..) {
            match &told {
                Told::Different(_) => self.found.different += 1,
                Told::Failed(..) => self.found.failed += 1,
            }
            tell(told).map_err(Error::Told)?;
        }
        Ok(())
    }

    /// Reads records of both stores; returns those that are not the same.
    fn read(&self, records: &[(Key, [Option<u64>; 2])]) -> Vec<Told> {
        let next = AtomicUsize::new(0);
        let found = Mutex::new(Vec::new());
        thread::scope(|scope| {
            for _ in 0..at_once(self.options.jobs).min(records.len()) {
                scope.spawn(|| {
                    while let Some((key, sizes)) = records.get(next.fetch_add(1, Ordering::Relaxed))
                    {
                        let told = match compare(self.first, self.second, key, self.options.timeout)
                        {
                            Ok(None) => continue,
                            Ok(Some(what)) => Told::Different(Difference {
                                key: key.clone(),
                                kind: Kind::Different,
                                sizes: *sizes,
                                what: what.to_owned(),
                            }),
                            Err(error) => Told::Failed(key.clone(), error),
                        };
                        found.lock().push(told);
                    }
                });
            }
        });
        found.into_inner()
    }
}

impl Told {
    fn key(&self) -> &Key {
        match self {
            Self::Different(difference) => &difference.key,
            Self::Failed(key, _) => key,
        }
    }
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
