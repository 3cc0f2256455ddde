//! Files that were emptied to be rewritten, and could not be written whole: such a half does not
//! replace the record.
//!
//! Other files are stored as far as they were written, as on a local disk: of a log without room for
//! its last line, all other lines are wanted.
//!
//! INVARIANT: nothing is lost of what is stored or journalled since it was emptied. What was journalled
//! before stays on its way to the store: the half never takes its place.

use std::ops::Range;

use super::{Draft, State};
use crate::fs::FsError;
use crate::fs::error::Refusal;
use crate::transfer::ranges::RangeSet;

/// What a program was told is not in the file.
#[derive(Debug)]
pub(super) struct Lost {
    bytes: RangeSet,
    refusal: Refusal,
}

impl Lost {
    pub(super) fn error(&self) -> FsError {
        FsError::Refused(self.refusal.clone())
    }
}

impl Draft {
    /// Notes that bytes were to be written and are not.
    pub fn lose(&self, bytes: Range<u64>, error: &FsError) {
        self.state.lock().lose(bytes, error);
    }

    /// Notes that a program wants it to be of the size that it has.
    pub fn cut_off(&self, size: u64) {
        self.state.lock().cut_off(size);
    }
}

impl State {
    /// Notes that it was emptied.
    pub(super) fn empty(&mut self) {
        self.lost = None;
        let is_closed = self.journalled.is_some() || self.tickets > 0;
        let replaces = self.facts.base.is_some() || is_closed;
        self.emptied = replaces.then_some(self.change);
    }

    pub(super) fn lose(&mut self, bytes: Range<u64>, error: &FsError) {
        let FsError::Refused(refusal) = error else {
            return;
        };
        if self.emptied.is_none() {
            return;
        }
        let mut all = self
            .lost
            .take()
            .map_or_else(RangeSet::default, |lost| lost.bytes);
        all.insert(bytes);
        let mut refusal = refusal.clone();
        refusal.message = format!(
            "the record stays unchanged, as not all of the new one could be written: {}",
            refusal.message
        );
        self.lost = Some(Lost {
            bytes: all,
            refusal,
        });
    }

    /// Notes that bytes were written, which may have been lost before.
    pub(super) fn write_again(&mut self, bytes: Range<u64>) {
        if let Some(lost) = &mut self.lost {
            lost.bytes.remove(&bytes);
            self.lost.take_if(|lost| lost.bytes.is_empty());
        }
    }

    /// Notes that it was cut off, or lengthened, to `size`.
    pub(super) fn cut_off(&mut self, size: u64) {
        if let Some(lost) = &mut self.lost {
            // A program that does that knows what is there.
            lost.bytes.remove(&(size..u64::MAX));
            self.lost.take_if(|lost| lost.bytes.is_empty());
        }
    }

    /// Notes that the store, or the journal, has it as it is, or was since it was emptied.
    pub(super) fn settle_lost(&mut self) {
        if self.emptied.is_some_and(|at| at <= self.committed) {
            (self.lost, self.emptied) = (None, None);
        }
    }
}
