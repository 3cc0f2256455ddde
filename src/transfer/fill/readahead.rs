//! Readahead policy: how far a download runs ahead of its readers, and when it stops.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use crate::base::sync::{self, MutexGuard};
use crate::base::units::{KIB, MIB};
use crate::transfer::download::Download;
use crate::transfer::state::{State, Status};

/// How far ahead of the farthest reader one connection runs at first, and at most.
const AHEAD: Range<u64> = MIB..64 * MIB;
/// How far it runs before the first read: eager reading from a connection makes the kernel take in
/// megabytes more, wasted if the first read is elsewhere.
const AHEAD_OF_NOBODY: u64 = 64 * KIB;
/// The same for several connections, which need room to work in.
const AHEAD_OF_SEVERAL: u64 = 8 * MIB;
/// How far an unopened content of unknown size is decoded.
const AHEAD_OF_SIZE: u64 = 4 * MIB;
/// How long a download waits for a program to open the file.
const GRACE: Duration = Duration::from_secs(3);

/// How long a download waits for its readers to read on before it gives its thread and its
/// connection back, where it can go on later at no cost.
const PATIENCE: Duration = Duration::from_secs(10);

/// What came of waiting for demand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Waited {
    /// A reader may want more.
    Wanted,
    /// Its readers have all they want for now.
    Enough,
    /// It has been unused for a while, and is marked so.
    Unused,
}

impl Download {
    /// Returns where fetching ends for now.
    pub(super) fn horizon(&self, state: &State) -> u64 {
        if state.demand == 0 && !state.whole {
            return AHEAD_OF_NOBODY;
        }
        let several = state.pace.target() > 1;
        let ahead = if several {
            (state.demand.saturating_mul(4)).clamp(AHEAD_OF_SEVERAL, AHEAD.end)
        } else {
            state.demand.clamp(AHEAD.start, AHEAD.end)
        };
        if state.whole && state.users > 0 {
            u64::MAX
        } else {
            state.demand.saturating_add(ahead)
        }
    }

    /// Waits for demand.
    pub(super) fn wait_for_use(self: &Arc<Self>, state: &mut MutexGuard<'_, State>) -> Waited {
        state.pace.pause();
        state.paused = true;
        if state.users > 0 {
            let since = *state.idle_since.get_or_insert_with(sync::now);
            self.tools.note_idle(self);
            // Without parts all of it would come again: only where the thread is wanted.
            let has_ranges = self.origin.has_ranges();
            match (state.must_park, has_ranges) {
                (true, _) => {}
                (false, true) => {
                    self.changed.wait_until(state, since + PATIENCE);
                }
                (false, false) => self.changed.wait(state),
            }
            self.tools.note_busy(self);
            let is_late = has_ranges && sync::now() >= since + PATIENCE;
            if state.idle_since.is_some()
                && state.users > 0
                && (state.must_park || is_late)
                && self.expected.is_some()
            {
                (state.must_park, state.paused, state.idle_since) = (false, false, None);
                return Waited::Enough;
            }
        } else {
            let until = *state.unused_since.get_or_insert_with(sync::now) + GRACE;
            self.changed.wait_until(state, until);
        }
        state.must_park = false;
        state.paused = false;
        match self.is_unused(state) {
            true => Waited::Unused,
            false => Waited::Wanted,
        }
    }

    /// Marks the download, and returns whether it has been idle for a while.
    pub(super) fn is_unused(&self, state: &mut State) -> bool {
        if state.users + state.sizing > 0 {
            return false;
        }
        let now = sync::now();
        let since = *state.unused_since.get_or_insert(now);
        let far = state.ahead && self.expected.is_none() && state.position > AHEAD_OF_SIZE;
        let unused = far || now.saturating_duration_since(since) >= GRACE;
        if unused {
            // Under this lock, so that no new handle gets in.
            state.status = Status::Abandoned;
        }
        unused
    }
}
