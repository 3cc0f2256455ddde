//! Separates this mount's own writes from those of others.
//!
//! Only counting can do that: a store's `modifiedAt` that is the time of an own write says nothing
//! of writes by others a moment before. If the store's count of changes has grown by exactly the
//! own ones since a moment at which all was counted, no other writer has changed anything since
//! then.

use std::collections::VecDeque;
use std::time::{Duration, SystemTime};

use super::StoreState;
use super::span::{Span, back};

/// How far the clock of `modifiedAt` and that of `Date` may be apart.
pub(super) const SKEW: Duration = Duration::from_secs(2);
/// Own writes that are remembered until they must show; more are like others'.
const MOST: usize = 4096;

/// Own writes since a moment at which the store had counted everything.
#[derive(Clone, Debug, Default)]
pub(super) struct OwnWrites {
    /// The store's count at that moment.
    counted: Option<u64>,
    /// The last question with an answer that hid nothing it should show.
    proven: Option<SystemTime>,
    /// Those since, in order.
    writes: VecDeque<Span>,
    /// Whether one of them may or may not have been carried out, or is not remembered.
    is_vague: bool,
}

/// What own writes explain of what an answer shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Explained {
    /// All of it: these first own writes show, and no other writer has changed anything.
    Shown(usize),
    /// All of it, it seems. Own writes that need not show yet may hide others' of the same moment.
    SoFar,
    /// Others may have changed something.
    Not,
}

impl OwnWrites {
    /// Notes a write that happened at `when`; `is_vague` if it may not have happened.
    pub(super) fn wrote(&mut self, when: Span, is_vague: bool) {
        if self.writes.len() == MOST {
            self.writes.pop_front();
            self.is_vague = true;
        }
        self.is_vague |= is_vague;
        let at = self
            .writes
            .partition_point(|write| write.latest <= when.latest);
        self.writes.insert(at, when);
    }

    /// Returns whether there is any that an answer need not have shown yet.
    pub(super) fn are_none(&self) -> bool {
        self.writes.is_empty()
    }

    /// Returns what the own writes explain of an answer.
    ///
    /// `has_moved` says whether `modifiedAt` is another than before.
    pub(super) fn explain(
        &self,
        asked: Span,
        state: &StoreState,
        has_moved: bool,
        lag: Duration,
    ) -> Explained {
        let grown = match (state.changes, self.counted) {
            (Some(now), Some(then)) => now.checked_sub(then),
            _ => None,
        };
        let (Some(grown), false) = (grown, self.is_vague) else {
            return Explained::Not;
        };
        let last = self.writes.back().map(|last| last.latest + SKEW);
        // What moves without counting counts as others' change.
        if (grown > 0 || has_moved) && (grown == 0 || last.is_none_or(|last| state.modified > last))
        {
            return Explained::Not;
        }
        let shown = back(asked.earliest, lag);
        let near = |write: &Span| write.earliest <= state.modified + SKEW;
        let sure = |write: &Span| write.latest <= shown || write.latest + SKEW < state.modified;
        let most = self.writes.iter().filter(|write| near(write)).count();
        let least = self.writes.partition_point(sure);
        let count = usize::try_from(grown).unwrap_or(usize::MAX);
        if count < least || count > most {
            Explained::Not
        } else if least == most || count == 0 {
            Explained::Shown(count)
        } else if count == most && most - least == 1 {
            // If `modifiedAt` is the time of an own write, there is room for no other.
            Explained::SoFar
        } else if self
            .proven
            .is_some_and(|proven| asked.earliest <= proven + lag * 3)
        {
            Explained::SoFar
        } else {
            Explained::Not
        }
    }

    /// Takes in an answer that shows the first `shown` own writes and no others; returns them.
    pub(super) fn settle(&mut self, asked: Span, state: &StoreState, shown: usize) -> Vec<Span> {
        self.counted = state.changes;
        self.proven = Some(asked.earliest);
        self.drain(shown)
    }

    /// Takes in an answer that may show changes by others; returns the own writes that it must show.
    pub(super) fn restart(&mut self, asked: Span, state: &StoreState, lag: Duration) -> Vec<Span> {
        let must_show = back(asked.earliest, lag);
        let overdue = self
            .writes
            .partition_point(|write| write.latest <= must_show);
        let overdue = self.drain(overdue);
        // While some need not show, it cannot be told how many of them are in the count.
        self.counted = state.changes.filter(|_| self.writes.is_empty());
        self.proven = self.counted.map(|_| asked.earliest);
        overdue
    }

    fn drain(&mut self, count: usize) -> Vec<Span> {
        let shown = self.writes.drain(..count).collect();
        self.is_vague &= !self.writes.is_empty();
        shown
    }

    /// Returns the store's count of changes if it is known to hold nothing that did not show.
    pub(super) fn settled_count(&self) -> Option<u64> {
        self.counted.filter(|_| self.writes.is_empty())
    }
}
