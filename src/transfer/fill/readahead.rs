//! How far a download is filled: a little ahead of who reads it, and not without anybody.

use std::ops::Range;
use std::time::Duration;

use crate::base::sync::{self, MutexGuard};
use crate::base::units::{KIB, MIB};
use crate::transfer::download::{Download, State, Status};

/// How far ahead of the farthest reader one connection runs at first, and at most.
const AHEAD: Range<u64> = MIB..64 * MIB;
/// How far it runs before anybody reads: a connection that is read from eagerly has the kernel
/// take in megabytes more, in vain for who reads somewhere else.
const AHEAD_OF_NOBODY: u64 = 64 * KIB;
/// The same for several connections, which need room to work in.
const AHEAD_OF_SEVERAL: u64 = 8 * MIB;
/// How far a content of unknown size is decoded that nobody has opened.
const AHEAD_OF_SIZE: u64 = 4 * MIB;
/// How long a download waits for somebody to open the file.
const GRACE: Duration = Duration::from_secs(3);

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

    /// Waits for demand; `true`, and marked, when nobody has used the download for a while.
    pub(super) fn wait_for_use(&self, state: &mut MutexGuard<'_, State>) -> bool {
        state.pace.pause();
        state.paused = true;
        if state.users > 0 {
            self.changed.wait(state);
        } else {
            let until = *state.unused_since.get_or_insert_with(sync::now) + GRACE;
            self.changed.wait_until(state, until);
        }
        state.paused = false;
        self.is_unused(state)
    }

    /// Tells, and marks it, whether nobody has used the download for a while.
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
