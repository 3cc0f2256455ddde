//! Detects runs of lookups that miss, and answers them from a page of the listing.
//!
//! A program that copies files into the mount, or probes for many names, costs a request for each.
//! After a few misses in a row, one page of the listing is fetched instead: it answers for all
//! names in its range, for as long as any listing does. Records that are emptied unread count as
//! missed: they were fetched in vain.

use std::time::{Duration, Instant};

use super::{FsError, KvFs, Result};
use crate::base::clock::Wait;
use crate::listing::Found;
use crate::store::{Key, MAX_PAGE};

/// This many misses in a row are worth a page of the listing.
const MISSES_A_PAGE: u64 = 3;
/// So many records that were fetched to be emptied are worth one.
const EMPTIED_A_PAGE: u64 = 2;
/// A name that was asked for so much later than the one before is not in a row with it.
const IN_A_ROW: Duration = Duration::from_secs(5);
/// More pages are not fetched for the sake of absent names.
const MOST_PAGES: u64 = 10;
/// Names on pages behind these are asked for one by one when the listing is old.
const PAGES_AGAIN: u64 = 2;
/// How long nothing is listed after that has failed: perhaps the token may not.
const AFTER_FAILURE: Duration = Duration::from_secs(60);

/// The names that were not there.
#[derive(Debug, Default)]
pub(super) struct Misses {
    /// How many in a row.
    in_a_row: u64,
    last: Option<(Key, Instant)>,
    /// How many records were emptied in a row, and when the last.
    emptied: u64,
    emptied_at: Option<Instant>,
    failed: Option<Instant>,
}

impl Misses {
    /// Notes that a name is not there, for which the store was asked.
    fn missed(&mut self, key: &Key, now: Instant) {
        let in_a_row = match &self.last {
            // A program waits for it to appear.
            Some((last, _)) if last == key => self.in_a_row,
            Some((_, at)) if is_in_a_row(*at, now) => self.in_a_row + 1,
            _ => 1,
        };
        self.in_a_row = in_a_row;
        self.last = Some((key.clone(), now));
    }

    /// Notes that a name is there.
    fn found(&mut self) {
        self.in_a_row = 0;
        self.last = None;
    }

    /// Notes that a record is emptied.
    fn emptied(&mut self, now: Instant) {
        let in_a_row = self.emptied_at.is_some_and(|at| is_in_a_row(at, now));
        self.emptied = if in_a_row { self.emptied + 1 } else { 1 };
        self.emptied_at = Some(now);
    }

    /// Returns whether another page is worth its request when this many are there.
    fn are_worth_a_page(&self, pages: u64, now: Instant) -> bool {
        let failed = |at: Instant| now.saturating_duration_since(at) < AFTER_FAILURE;
        let enough = |count, a_page, last: Option<Instant>| {
            count >= a_page * (pages + 1) && last.is_some_and(|at| is_in_a_row(at, now))
        };
        let missed_at = self.last.as_ref().map(|(_, at)| *at);
        pages < MOST_PAGES
            && !self.failed.is_some_and(failed)
            && (enough(self.in_a_row, MISSES_A_PAGE, missed_at)
                || enough(self.emptied, EMPTIED_A_PAGE, self.emptied_at))
    }
}

fn is_in_a_row(before: Instant, now: Instant) -> bool {
    now.saturating_duration_since(before) <= IN_A_ROW
}

impl KvFs {
    /// Lists a page or more after so many misses that this saves requests. [`KvFs::existence`]
    /// shows whether it did.
    pub(super) fn list_instead(&self, key: &Key, wait: Wait) {
        let now = self.clock.now();
        let never_believed = self.records.config().ttl.is_some_and(|ttl| ttl.is_zero());
        if Self::no_wait(wait) || never_believed || !self.misses.lock().are_worth_a_page(0, now) {
            return;
        }
        let listing = self.current_listing();
        while matches!(listing.find(key), Found::Unknown) {
            let pages = listing.count().div_ceil(MAX_PAGE as u64);
            if !self.misses.lock().are_worth_a_page(pages, now) {
                return;
            }
            match self.page(&listing, listing.count(), wait) {
                Ok(Some(_)) => {}
                Ok(None) => return,
                Err(error) => {
                    tracing::debug!("cannot list the store for the sake of {key}: {error:?}");
                    self.misses.lock().failed = Some(now);
                    return;
                }
            }
        }
    }

    /// Lists again, for a question about a name that an older listing shows: its page answers for all
    /// names next to it, and no record is fetched for its attributes. [`KvFs::existence`] shows whether
    /// it did. Not for what lies far behind, which would cost several pages, and not for a small record
    /// that is cached: asking for that record itself costs as little.
    pub(super) fn list_again(&self, key: &Key, wait: Wait) {
        let now = self.clock.now();
        let failed = |at: Instant| now.saturating_duration_since(at) < AFTER_FAILURE;
        if Self::no_wait(wait)
            || self.misses.lock().failed.is_some_and(failed)
            || self.records.revalidates_alone(key)
        {
            return;
        }
        let is_near = self.listing.latest().is_some_and(|listing| {
            listing
                .rank(key)
                .is_some_and(|rank| rank < PAGES_AGAIN * MAX_PAGE as u64)
        });
        if is_near && let Err(error) = self.list_past(key, wait) {
            tracing::debug!("cannot list the store for the sake of {key}: {error:?}");
            self.misses.lock().failed = Some(now);
        }
    }

    /// Notes that a record is to be emptied.
    pub(super) fn note_emptied(&self) {
        self.misses.lock().emptied(self.clock.now());
    }

    /// Notes what the store answered when it was asked for a name.
    pub(super) fn note_asked<T>(&self, key: &Key, answer: &Result<T>) {
        let mut misses = self.misses.lock();
        match answer {
            Ok(_) => misses.found(),
            Err(FsError::NoEntry) => misses.missed(key, self.clock.now()),
            Err(_) => {}
        }
    }
}
