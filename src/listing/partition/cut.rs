//! Decides where to cut a segment. Cuts are guesses: wrong ones cost requests, never a wrong
//! listing.
//!
//! An earlier listing gives the cuts ([`Guide`](super::Guide)), else the density of the keys so
//! far. Cuts are whole pages apart by that measure, so that where it is exact (nothing changed
//! since, or records are numbered without gaps) a cut costs no request at all. The end of the keys
//! is unknown: it is searched in steps that double, one at a time, then halve.

use std::sync::Arc;

use super::{Segment, Split};
use crate::listing::partition::density::Scale;

/// Pages that a segment must seem to hold to be worth a cut that may cost half a page.
const WORTH: u64 = 8;
/// The same where a cut costs nothing.
const WORTH_EXACT: u64 = 2;
/// Pages after which the end is searched with two steps at once.
const LARGE: u64 = 12;

/// Where a segment could be cut.
#[derive(Debug)]
pub(super) struct Cut {
    pub(super) mid: Arc<str>,
    /// Keys that seem to lie between what has been fetched of the segment and the cut.
    pub(super) before: u64,
    /// How much would be gained.
    pub(super) worth: u64,
    /// Whether keys are expected behind it.
    pub(super) full: bool,
}

impl Split {
    /// Says where a segment is best cut, if it is worth it.
    pub(super) fn cut(&self, at: usize) -> Option<Cut> {
        let segment = &self.segments[at];
        // What is behind it must be known first: one step into the unknown at a time.
        let is_next_known = self
            .segments
            .get(at + 1)
            .is_none_or(|next| !next.is_probe());
        if segment.is_probe() {
            return self.step_further(at);
        }
        if segment.done {
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
        if before / self.page < self.least_step(&scale) {
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
                (before / self.page >= self.least_step(&scale))
                    .then(|| cut(scale.text(scale.from + half), before))
            }
        }
    }

    /// Takes another step behind the one of which nothing is known yet.
    fn step_further(&self, at: usize) -> Option<Cut> {
        let probe = &self.segments[at];
        let segment = &self.segments[at.checked_sub(1)?];
        let is_last = at + 1 == self.segments.len();
        if self.guide.is_some() || self.delivered < LARGE || !is_last || !segment.goes_on {
            return None;
        }
        let scale = Scale::up_to(&self.letters, segment, probe.end.as_ref())?;
        let ahead = probe.rank.checked_sub(segment.rank + segment.count)?;
        let mut before = probe.rank;
        if probe.end.is_some() {
            before = before.min(scale.left().checked_sub(ahead)? / 2);
        }
        before = before / self.page * self.page;
        if before / self.page < self.least_step(&scale) {
            return None;
        }
        let place = scale.from + scale.span_of(ahead + before)?;
        let mid = (place < scale.to).then(|| scale.text(place))?;
        (*mid > *probe.after && probe.end.as_ref().is_none_or(|end| mid < *end)).then_some(Cut {
            mid,
            before,
            worth: u64::MAX,
            full: false,
        })
    }

    /// Returns how many pages a step must seem to leave behind.
    fn least_step(&self, scale: &Scale<'_>) -> u64 {
        if self.delivered >= LARGE && scale.is_exact() {
            WORTH_EXACT
        } else {
            WORTH / 2
        }
    }
}

/// Returns a text behind all keys of ASCII characters that begin with `prefix`.
fn behind(prefix: &str) -> Arc<str> {
    format!("{prefix}\u{7f}").into()
}
