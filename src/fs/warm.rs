//! Fetches ahead on request: everything, or what a name pattern selects.
//!
//! It takes turns at the lowest priority, so that it delays no waiting program, and never fetches
//! more than the cache holds: it does not evict what it has fetched itself.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use globset::GlobMatcher;
use parking_lot::{Condvar, Mutex};
use serde::{Deserialize, Serialize};

use super::glob::{literal_start, matcher};
use super::{FsError, KvFs, Result, name};
use crate::base::clock::{Deadline, Wait};
use crate::cache::warm::Warmed;
use crate::listing::{Listing, Page, Source};
use crate::store::Key;

/// Records fetched at once: enough to fill the request budget over a slow link.
const AT_ONCE: usize = 32;
/// The assumed cost of a record of unknown size, in bytes.
const UNKNOWN: u64 = 64 << 10;
/// How often progress is reported.
const TELL: Duration = Duration::from_millis(200);
/// How many records that did not fit, or could not be fetched, are named.
const NAMED: usize = 10;
/// After this many failures in a row there is no use in going on.
const HOPELESS: u64 = 32;

/// What to fetch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Wanted {
    /// Everything.
    All,
    /// Names that begin so.
    Prefix(String),
    /// Names that match `*`, `?`, `[...]` and `{a,b}`.
    Glob(String),
    /// These.
    Names(Vec<String>),
}

/// How far it has come.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct WarmProgress {
    /// Records to see to; grows while the store is being listed.
    pub records: u64,
    /// Bytes of these, as far as the listing tells.
    pub bytes: u64,
    /// Whether everything has been listed.
    pub is_listed: bool,
    /// Records seen to.
    pub records_done: u64,
    /// Bytes of these.
    pub bytes_done: u64,
    /// Of the records seen to, those that the store was asked for.
    pub asked: u64,
    /// Of the records seen to, those that were cached and fresh: they cost nothing.
    pub cached: u64,
    /// Records for which the cache has no room.
    pub unfit: u64,
    /// Bytes of these.
    pub unfit_bytes: u64,
    /// Some of them.
    pub unfit_names: Vec<String>,
    /// Records that could not be fetched.
    pub failed: u64,
    /// Some of them, with the reason.
    pub failures: Vec<String>,
    /// Why it has ended early, if it has.
    pub stopped: Option<String>,
}

/// Where the names come from.
enum Names {
    Listed {
        listing: Arc<Listing>,
        /// Whether the listing is the mount's own, which gives inode numbers.
        shared: bool,
        page: Option<Arc<Page>>,
        next: u64,
    },
    Given(VecDeque<String>),
}

/// What the threads share.
struct Run<'a> {
    fs: &'a KvFs,
    matcher: Option<GlobMatcher>,
    prefix: String,
    names: Mutex<Names>,
    room: Mutex<u64>,
    progress: Mutex<(WarmProgress, u64)>,
    ended: Condvar,
    working: Mutex<usize>,
    stop: AtomicBool,
}

impl KvFs {
    /// Fetches what is wanted into the cache and tells `tell` how far it has come, a few times a
    /// second; it ends early when that says `false`.
    ///
    /// # Errors
    /// That the pattern is invalid, or the store cannot be listed.
    pub fn warm(
        &self,
        wanted: &Wanted,
        tell: &mut dyn FnMut(&WarmProgress) -> bool,
    ) -> Result<WarmProgress> {
        let (prefix, matcher) = match wanted {
            Wanted::All | Wanted::Names(_) => (String::new(), None),
            Wanted::Prefix(prefix) => (prefix.clone(), None),
            Wanted::Glob(glob) => (literal_start(glob), Some(matcher(glob)?)),
        };
        let mut progress = WarmProgress::default();
        let names = match wanted {
            Wanted::Names(names) => {
                progress.records = names.len() as u64;
                progress.is_listed = true;
                Names::Given(names.iter().cloned().collect())
            }
            _ => self.listed_for(&prefix),
        };
        let run = Run {
            fs: self,
            matcher,
            prefix,
            names: Mutex::new(names),
            room: Mutex::new(self.records.capacity()),
            progress: Mutex::new((progress, 0)),
            ended: Condvar::new(),
            working: Mutex::new(AT_ONCE),
            stop: AtomicBool::new(false),
        };
        thread::scope(|scope| {
            let lister = scope.spawn(|| run.count());
            for _ in 0..AT_ONCE {
                scope.spawn(|| run.work());
            }
            let mut working = run.working.lock();
            while *working > 0 {
                run.ended.wait_for(&mut working, TELL);
                let now = run.progress.lock().0.clone();
                parking_lot::MutexGuard::unlocked(&mut working, || {
                    if !tell(&now) {
                        run.stop.store(true, Ordering::Relaxed);
                    }
                });
            }
            drop(working);
            lister.join().unwrap_or(Ok(()))
        })?;
        self.records
            .finish_writing(Deadline::after(self.config.page_deadline));
        let progress = run.progress.into_inner().0;
        Ok(progress)
    }

    /// Returns the listing to walk: the mount's own, or a shorter one of the prefix alone.
    fn listed_for(&self, prefix: &str) -> Names {
        let current = self.current_listing();
        // Names of valid keys are the keys; others begin differently than their names.
        let narrows = !prefix.is_empty()
            && !prefix.contains('%')
            && !current.is_done()
            && self
                .config
                .prefix
                .as_deref()
                .is_none_or(|of_mount| prefix.starts_with(of_mount));
        let listing = if narrows {
            let mut source: Source = self.source();
            source.query.prefix = Some(prefix.into());
            // A part must not be taken for the whole later.
            source.index = None;
            Listing::new(source, self.clock.now(), None)
        } else {
            current
        };
        Names::Listed {
            listing,
            shared: !narrows,
            page: None,
            next: 0,
        }
    }

    fn page_for(
        &self,
        listing: &Arc<Listing>,
        shared: bool,
        index: u64,
    ) -> Result<Option<Arc<Page>>> {
        let wait = Wait::Until(Deadline::after(self.config.page_deadline));
        if shared {
            return self.page(listing, index, wait);
        }
        Ok(listing.page(index, wait, &|_, _| 0)?)
    }
}

/// A record to see to.
struct Turn {
    key: Key,
    /// Its size, in bytes, where that is known.
    expected: Option<u64>,
    /// The room taken for it, in bytes; none if there was not enough.
    cost: Option<u64>,
}

impl Run<'_> {
    /// Counts the work, ahead of the threads that do it.
    fn count(&self) -> Result<()> {
        let (listing, shared) = match &*self.names.lock() {
            Names::Given(_) => return Ok(()),
            Names::Listed {
                listing, shared, ..
            } => (Arc::clone(listing), *shared),
        };
        let mut index = 0;
        while !self.stop.load(Ordering::Relaxed) {
            let page = match self.fs.page_for(&listing, shared, index) {
                Ok(page) => page,
                Err(error) => {
                    self.stop.store(true, Ordering::Relaxed);
                    return Err(error);
                }
            };
            let Some(page) = page else { break };
            let (mut records, mut bytes) = (0, 0);
            for entry in page.entries(0).filter(|entry| self.is_wanted(&entry.key)) {
                records += 1;
                bytes += self
                    .fs
                    .expected_size(&entry.key, entry.stored_size)
                    .unwrap_or(0);
            }
            let progress = &mut self.progress.lock().0;
            progress.records += records;
            progress.bytes += bytes;
            index = page.first + page.len();
        }
        self.progress.lock().0.is_listed = true;
        Ok(())
    }

    fn work(&self) {
        // Counted out on every way: else the caller would wait for ever.
        let _leaving = Leaving(self);
        while !self.stop.load(Ordering::Relaxed) {
            match self.next() {
                Ok(Some(turn)) => self.see_to(&turn),
                Ok(None) => return,
                Err(error) => {
                    let shown = self.fs.explain(&error);
                    self.progress.lock().0.stopped.get_or_insert(shown);
                    self.stop.store(true, Ordering::Relaxed);
                }
            }
        }
    }

    /// Takes the next record, and the room for it: in one step, so that what comes first gets the
    /// room that there is.
    fn next(&self) -> Result<Option<Turn>> {
        loop {
            let mut names = self.names.lock();
            match &mut *names {
                Names::Given(names) => {
                    let Some(name) = names.pop_front() else {
                        return Ok(None);
                    };
                    match self.fs.key_named(OsStr::new(&name)) {
                        Some(key) => return Ok(Some(self.take_room(key, None))),
                        None => self.fails(&name, "there is no such file", false),
                    }
                }
                Names::Listed {
                    listing,
                    shared,
                    page,
                    next,
                } => {
                    if let Some(found) =
                        page.as_ref().filter(|page| *next < page.first + page.len())
                    {
                        let at = usize::try_from(*next - found.first).unwrap_or(usize::MAX);
                        *next += 1;
                        if let Some(entry) = found.get(at)
                            && self.is_wanted(&entry.key)
                        {
                            return Ok(Some(self.take_room(entry.key, entry.stored_size)));
                        }
                        continue;
                    }
                    let (listing, shared, index) = (Arc::clone(listing), *shared, *next);
                    drop(names);
                    let found = self.fs.page_for(&listing, shared, index)?;
                    let Some(found) = found else {
                        return Ok(None);
                    };
                    if let Names::Listed { page, next, .. } = &mut *self.names.lock()
                        && *next == index
                    {
                        *page = Some(found);
                    }
                }
            }
        }
    }

    fn is_wanted(&self, key: &Key) -> bool {
        let name = name::of_key(key);
        name.starts_with(&self.prefix)
            && self
                .matcher
                .as_ref()
                .is_none_or(|matcher| matcher.is_match(&name))
    }

    fn take_room(&self, key: Key, stored: Option<u64>) -> Turn {
        let expected = self.fs.expected_size(&key, stored);
        let cost = self.fs.records.cost(expected.unwrap_or(UNKNOWN));
        let mut room = self.room.lock();
        let left = room.checked_sub(cost);
        *room = left.unwrap_or(*room);
        Turn {
            key,
            expected,
            cost: left.map(|_| cost),
        }
    }

    fn see_to(&self, turn: &Turn) {
        let (key, expected) = (&turn.key, turn.expected);
        let Some(cost) = turn.cost else {
            return self.does_not_fit(key, expected);
        };
        let begun = Instant::now();
        let outcome = self
            .fs
            .records
            .warm(key, self.fs.config.page_deadline, &|| {
                self.stop.load(Ordering::Relaxed)
            });
        let size = match &outcome {
            Ok(Warmed::Cached(size) | Warmed::Asked(size)) => *size,
            Ok(Warmed::Unfit) | Err(_) => 0,
        };
        // What it really takes.
        let really = if size > 0 {
            self.fs.records.cost(size)
        } else {
            0
        };
        let mut room = self.room.lock();
        *room = (*room + cost).saturating_sub(really);
        drop(room);
        match outcome {
            Ok(Warmed::Unfit) => self.does_not_fit(key, expected),
            Ok(warmed) => {
                let (progress, in_a_row) = &mut *self.progress.lock();
                *in_a_row = 0;
                progress.records_done += 1;
                progress.bytes_done += expected.unwrap_or(size);
                match warmed {
                    Warmed::Cached(_) => progress.cached += 1,
                    _ => {
                        progress.asked += 1;
                        self.fs.metrics.warmed.one();
                    }
                }
            }
            Err(_) if self.stop.load(Ordering::Relaxed) => {}
            Err(error) => {
                let took = begun.elapsed();
                tracing::debug!(%key, ?took, "cannot be fetched ahead: {error:?}");
                let error = FsError::from(error);
                let is_missing = matches!(error, FsError::NoEntry);
                self.fails(&name::of_key(key), &self.fs.explain(&error), !is_missing);
            }
        }
    }

    fn does_not_fit(&self, key: &Key, size: Option<u64>) {
        let progress = &mut self.progress.lock().0;
        progress.records_done += 1;
        progress.bytes_done += size.unwrap_or(0);
        progress.unfit += 1;
        progress.unfit_bytes += size.unwrap_or(0);
        if progress.unfit_names.len() < NAMED {
            progress.unfit_names.push(name::of_key(key));
        }
    }

    fn fails(&self, name: &str, why: &str, counts: bool) {
        let (progress, in_a_row) = &mut *self.progress.lock();
        progress.records_done += 1;
        progress.failed += 1;
        if progress.failures.len() < NAMED {
            progress.failures.push(format!("{name}: {why}"));
        }
        *in_a_row += u64::from(counts);
        if *in_a_row >= HOPELESS {
            progress.stopped.get_or_insert_with(|| why.to_owned());
            self.stop.store(true, Ordering::Relaxed);
        }
    }
}

/// Counts a thread out.
struct Leaving<'a, 'b>(&'a Run<'b>);

impl Drop for Leaving<'_, '_> {
    fn drop(&mut self) {
        *self.0.working.lock() -= 1;
        self.0.ended.notify_all();
    }
}

impl KvFs {
    fn expected_size(&self, key: &Key, stored: Option<u64>) -> Option<u64> {
        self.records.exact_size(key, stored).or(stored)
    }

    /// Returns an error in words, with what to do about it.
    pub fn explain(&self, error: &FsError) -> String {
        match error {
            FsError::Store(failure) => match failure.hint() {
                Some(hint) => format!("{failure} ({hint})"),
                None => failure.to_string(),
            },
            FsError::NoEntry => "there is no such file".to_owned(),
            other => super::error::errno_name(other.errno()).to_owned(),
        }
    }
}
