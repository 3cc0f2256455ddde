//! The copy itself: two listings walked together, and many records on their way at once.
//!
//! INVARIANTS: nothing is deleted unless both listings came to their ends, and then only what the source
//! says that it does not have when it is asked for that very key. A target never holds a part of a
//! record: stores replace records whole.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::Duration;

use parking_lot::Mutex;

use super::filter::Filter;
use super::fingerprint::{Fingerprint, of_version};
use super::memory::{Known, Memory, ms, now_ms};
use super::pages::{Listing, ListingError, Pair, Pairs};
use super::record::{self, Held};
use super::report::{Outcome, Report, Told, Watcher};
use crate::base::descriptors::at_once;
use crate::store::{ErrorKind, Key, ListItem, RecordMeta, Result, Store, StoreError};

mod compare;

/// Records that wait for a thread.
const QUEUE: usize = 4096;
/// By so much a store's clock may lag behind its changes.
const CLOCK_LAG_MS: u64 = 15_000;
/// The most that is remembered of what only the target has, in bytes.
const MOST_SURPLUS: usize = 256 << 20;
/// This many failures in a row that concern the whole store end the copy.
const HOPELESS: usize = 64;

/// A store that takes part.
#[derive(Clone, Debug)]
pub struct Side {
    /// The store.
    pub store: Arc<dyn Store>,
    /// Whether it is on this machine's disk: asking it is cheap, and it tells versions apart.
    pub is_local: bool,
}

/// How to copy.
#[derive(Debug)]
pub struct Options {
    /// Which keys.
    pub filter: Filter,
    /// Whether to delete what the source does not have.
    pub delete: bool,
    /// Whether to change nothing and only tell.
    pub dry_run: bool,
    /// Whether to read each record back after it has been stored.
    pub verify: bool,
    /// Whether to read everything, whatever is remembered.
    pub checksum: bool,
    /// Records on their way at once.
    pub jobs: usize,
    /// The longest that one operation of a store may take.
    pub timeout: Duration,
}

enum Task {
    New(ListItem),
    Compare(ListItem, ListItem),
}

/// Copies what the source has and the target has not, or has otherwise.
pub fn run(
    source: &Side,
    target: &Side,
    options: &Options,
    memory: &Memory,
    watcher: &dyn Watcher,
) -> Report {
    let copy = Copy {
        source,
        target,
        options,
        memory,
        watcher,
        source_clock: clock(source),
        target_trusted: is_trusted(target, memory),
        sums: Sums::default(),
        stop: AtomicBool::new(false),
        in_a_row: AtomicUsize::new(0),
        why: Mutex::new(None),
    };
    if !target.is_local && !copy.target_trusted && !options.dry_run {
        memory.distrust_target();
    }
    let (sender, tasks) = sync_channel(QUEUE);
    let tasks = Mutex::new(tasks);
    let mut surplus = Vec::new();
    let listing = thread::scope(|scope| {
        for _ in 0..at_once(options.jobs) {
            scope.spawn(|| copy.work(&tasks));
        }
        let pairs = Pairs::new(
            Listing::start(scope, &*source.store, &options.filter, options.timeout),
            Listing::start(scope, &*target.store, &options.filter, options.timeout),
        );
        copy.plan(pairs, sender, &mut surplus)
    });
    let mut report = copy.sums.report();
    report.stopped = copy.why.lock().take();
    match listing {
        Err(error) => report.listing = Some(error),
        Ok(()) if options.delete && !copy.stop.load(Ordering::Relaxed) => {
            copy.delete(surplus);
            let short = copy.why.lock().take();
            let listing = report.listing.take();
            report = copy.sums.report();
            report.listing = listing.or(short);
        }
        Ok(()) => {}
    }
    report
}

/// Returns by what a store tells that nothing in it has changed; 0 where it does not.
fn clock(side: &Side) -> u64 {
    match side.is_local {
        true => 0,
        false => side.store.info().modified.map_or(0, ms),
    }
}

/// Returns whether a target elsewhere is as the last copies left it: its clock says that it has not
/// changed since, but for as long as that may lag.
fn is_trusted(target: &Side, memory: &Memory) -> bool {
    let clock = clock(target);
    clock > 0 && memory.last_ms() > 0 && clock <= memory.last_ms().saturating_add(CLOCK_LAG_MS)
}

#[derive(Debug, Default)]
struct Sums {
    copied: AtomicU64,
    copied_bytes: AtomicU64,
    unchanged: AtomicU64,
    deleted: AtomicU64,
    failed: AtomicU64,
    not_tried: AtomicU64,
}

impl Sums {
    fn report(&self) -> Report {
        let of = |sum: &AtomicU64| sum.load(Ordering::Relaxed);
        Report {
            copied: of(&self.copied),
            copied_bytes: of(&self.copied_bytes),
            unchanged: of(&self.unchanged),
            deleted: of(&self.deleted),
            failed: of(&self.failed),
            not_tried: of(&self.not_tried),
            ..Report::default()
        }
    }
}

struct Copy<'a> {
    source: &'a Side,
    target: &'a Side,
    options: &'a Options,
    memory: &'a Memory,
    watcher: &'a dyn Watcher,
    source_clock: u64,
    target_trusted: bool,
    sums: Sums,
    stop: AtomicBool,
    /// Failures of the whole store, one after the other.
    in_a_row: AtomicUsize,
    why: Mutex<Option<String>>,
}

impl Copy<'_> {
    /// Hands out what is to be done, and collects what only the target has.
    fn plan(
        &self,
        mut pairs: Pairs,
        tasks: SyncSender<Task>,
        surplus: &mut Vec<Key>,
    ) -> std::result::Result<(), String> {
        let mut surplus_bytes = 0;
        loop {
            let pair = match pairs.next_pair() {
                Ok(Some(pair)) => pair,
                Ok(None) => return Ok(()),
                Err(ListingError::First(error)) => {
                    return Err(format!("the source cannot be listed to its end: {error}"));
                }
                Err(ListingError::Second(error)) => {
                    return Err(format!("the target cannot be listed to its end: {error}"));
                }
            };
            let task = match pair {
                Pair::First(item) => {
                    self.watcher.found(1, item.stored_size.unwrap_or(0));
                    Task::New(item)
                }
                Pair::Both(from, to) => {
                    self.watcher.found(1, from.stored_size.unwrap_or(0));
                    Task::Compare(from, to)
                }
                Pair::Second(item) => {
                    if self.options.delete {
                        surplus_bytes += item.key.as_str().len() + size_of::<Key>();
                        surplus.push(item.key);
                    }
                    if surplus_bytes > MOST_SURPLUS {
                        return Err(
                            "the target has more than can be remembered that the source has not: nothing is deleted"
                                .to_owned(),
                        );
                    }
                    continue;
                }
            };
            if tasks.send(task).is_err() {
                return Ok(());
            }
        }
    }

    fn work(&self, tasks: &Mutex<Receiver<Task>>) {
        loop {
            let task = tasks.lock().recv();
            let Ok(task) = task else { return };
            let (key, size) = match &task {
                Task::New(item) | Task::Compare(item, _) => (&item.key, item.stored_size),
            };
            if self.stop.load(Ordering::Relaxed) {
                self.sums.not_tried.fetch_add(1, Ordering::Relaxed);
                continue;
            }
            let outcome = match &task {
                Task::New(item) => self.copy_new(&item.key),
                Task::Compare(from, to) => self.compare(from, to),
            };
            self.settle(key, size, outcome);
        }
    }

    fn settle(&self, key: &Key, size: Option<u64>, outcome: Result<Outcome>) {
        let outcome = outcome.unwrap_or_else(Outcome::Failed);
        match &outcome {
            Outcome::Failed(error) => self.note_failure(error),
            _ => self.in_a_row.store(0, Ordering::Relaxed),
        }
        let sum = match &outcome {
            Outcome::Copied => {
                let bytes = size.unwrap_or(0);
                self.sums.copied_bytes.fetch_add(bytes, Ordering::Relaxed);
                &self.sums.copied
            }
            Outcome::Unchanged(_) => &self.sums.unchanged,
            Outcome::Deleted => &self.sums.deleted,
            Outcome::Failed(_) => &self.sums.failed,
        };
        sum.fetch_add(1, Ordering::Relaxed);
        self.watcher.told(&Told {
            key,
            size,
            outcome: &outcome,
        });
    }

    /// Gives up after many failures in a row that other records would meet, too.
    fn note_failure(&self, error: &StoreError) {
        let concerns_all = matches!(
            error.kind(),
            ErrorKind::Denied
                | ErrorKind::SignatureExpired
                | ErrorKind::StoreNotFound
                | ErrorKind::Quota
                | ErrorKind::Disk
                | ErrorKind::Network
        );
        if !concerns_all {
            self.in_a_row.store(0, Ordering::Relaxed);
            return;
        }
        let before = self.in_a_row.fetch_add(1, Ordering::Relaxed);
        if before + 1 >= HOPELESS && !self.stop.swap(true, Ordering::Relaxed) {
            *self.why.lock() = Some(format!(
                "given up after {} failures in a row, the last: {error}",
                before + 1
            ));
        }
    }

    fn moved(&self) -> impl Fn(u64) + Sync + '_ {
        |bytes| self.watcher.moved(bytes)
    }

    /// Copies a record that the target does not have.
    fn copy_new(&self, key: &Key) -> Result<Outcome> {
        if self.options.dry_run {
            return Ok(Outcome::Copied);
        }
        if self.target.is_local {
            let (meta, stored, print, size) = record::pass(
                &*self.source.store,
                &*self.target.store,
                key,
                self.options.timeout,
                &self.moved(),
            )?;
            return self.stored(key, &meta, &stored, print, size);
        }
        let held = self.fetch(key)?;
        self.send(key, &held)
    }

    fn fetch(&self, key: &Key) -> Result<Held> {
        record::fetch(
            &*self.source.store,
            key,
            self.options.timeout,
            &self.moved(),
        )
    }

    fn send(&self, key: &Key, held: &Held) -> Result<Outcome> {
        if self.options.dry_run {
            return Ok(Outcome::Copied);
        }
        let stored = held.send(&*self.target.store, key, self.options.timeout)?;
        self.stored(key, &held.meta, &stored, held.print, held.size)
    }

    /// Checks what has been stored, if that is wanted, and remembers it.
    fn stored(
        &self,
        key: &Key,
        meta: &RecordMeta,
        stored: &RecordMeta,
        print: Fingerprint,
        size: u64,
    ) -> Result<Outcome> {
        if self.options.verify {
            let (_, found) = self.read(self.target, key)?;
            if found != print {
                return Err(StoreError::new(
                    ErrorKind::Corrupt,
                    "the target shows other bytes, type or encoding than were stored",
                )
                .with_hint("copy it again; if that does not help, the target alters what it stores")
                .with_key(key));
            }
        }
        let version = match self.target.is_local {
            true => of_version(&self.target.store.head(key, self.deadline())?),
            false => of_version(stored),
        };
        self.note(key, print, size, of_version(meta), version);
        Ok(Outcome::Copied)
    }

    fn note(&self, key: &Key, print: Fingerprint, size: u64, source: u64, target: u64) {
        let mark = |side: &Side, version: u64| if side.is_local { version } else { 0 };
        self.memory.note(
            key,
            &Known {
                print,
                size,
                source: match self.source.is_local {
                    true => source,
                    false => self.source_clock,
                },
                source_version: source,
                target: mark(self.target, target),
                target_version: target,
                at_ms: now_ms(),
            },
        );
    }

    fn deadline(&self) -> crate::base::clock::Deadline {
        crate::base::clock::Deadline::after(self.options.timeout)
    }

    fn read(&self, side: &Side, key: &Key) -> Result<(RecordMeta, Fingerprint)> {
        record::read(&*side.store, key, self.options.timeout, &|_| {})
    }

    /// Deletes what only the target has, each after the source has said that it does not have it.
    fn delete(&self, surplus: Vec<Key>) {
        let next = AtomicUsize::new(0);
        thread::scope(|scope| {
            for _ in 0..at_once(self.options.jobs) {
                scope.spawn(|| {
                    while let Some(key) = surplus.get(next.fetch_add(1, Ordering::Relaxed)) {
                        if self.stop.load(Ordering::Relaxed) {
                            self.sums.not_tried.fetch_add(1, Ordering::Relaxed);
                            continue;
                        }
                        self.settle(key, None, self.delete_one(key));
                    }
                });
            }
        });
    }

    fn delete_one(&self, key: &Key) -> Result<Outcome> {
        if !record::is_absent(&*self.source.store, key, self.options.timeout)? {
            let message = "the source has it, though its listing did not show it: not deleted";
            *self.why.lock() = Some(format!(
                "the listing of the source is incomplete: it lacks {key:?}"
            ));
            return Err(StoreError::new(ErrorKind::Protocol, message)
                .with_hint("copy again; the server's listing cannot be relied on")
                .with_key(key));
        }
        if !self.options.dry_run {
            self.target.store.delete(key, self.deadline())?;
        }
        Ok(Outcome::Deleted)
    }
}
