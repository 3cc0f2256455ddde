//! Fills a download part by part: the helpers, and the rest after the first connection ends.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use super::readahead::Waited;
use super::sequential::Front;
use super::{CHUNK, End};
use crate::base::clock::Deadline;
use crate::base::sync::{self, MutexGuard};
use crate::base::units::MIB;
use crate::store::{ErrorKind, StoreError};
use crate::transfer::download::{Download, read_some};
use crate::transfer::file::{CACHE_HINT, disk_error};
use crate::transfer::state::{State, Status};

/// With less than this to fetch, no connection is added.
const WORTH_HELPING: u64 = 8 * MIB;
/// The least that a helper is sent for, but at the end.
const LEAST_PART: u64 = MIB;
/// How long one part may take a helper.
const PART_DEADLINE: Duration = Duration::from_secs(300);

impl Download {
    /// Fetches what is missing, part by part, with helpers where they pay.
    pub(super) fn fill_parts(self: &Arc<Self>, front: &mut Front) -> Result<End, StoreError> {
        let size = self.expected.unwrap_or_default();
        loop {
            let mut state = self.state.lock();
            (state.front, state.streaming) = (None, false);
            let part = loop {
                if state.present.contains(&(0..size)) {
                    return Ok(End::Whole);
                }
                if let Some(part) = self.next_part(&state).filter(|_| state.users > 0) {
                    break part;
                }
                match self.wait_for_use(&mut state) {
                    Waited::Wanted => {}
                    Waited::Enough => return Ok(End::Enough),
                    Waited::Unused => return Ok(End::Unused),
                }
            };
            state.claim(&part);
            drop(state);
            if !self.fetch_part(&part, None)? {
                return self.fill_again(front);
            }
        }
    }

    /// Counts bytes that have arrived, and sends for help where that pays.
    pub(super) fn note_progress(self: &Arc<Self>, mut state: MutexGuard<'_, State>, bytes: u64) {
        state.total += bytes;
        let (total, active) = (state.total, state.active);
        let Some(size) = self.expected.filter(|_| self.origin.has_ranges()) else {
            return;
        };
        state.pace.step(sync::now(), total, active);
        let target = state.pace.target();
        if target <= active || state.users == 0 || size - state.position < WORTH_HELPING {
            return;
        }
        if state.streaming && state.front.is_none() {
            // What the first connection has to itself from now on.
            let start = state.position;
            state.front = Some(start..size.min(start + 2 * state.pace.part(size)));
        }
        if self.next_part(&state).is_none() {
            return;
        }
        let mut missing = target - active;
        state.active += missing;
        drop(state);
        while missing > 0 {
            let helper = Arc::clone(self);
            if self.tools.fillers.spawn(move || helper.help()).is_err() {
                break;
            }
            missing -= 1;
        }
        if missing > 0 {
            let mut state = self.state.lock();
            state.active -= missing;
            state.pace.give_up();
        }
    }

    /// Fetches parts as long as there is something to fetch for a helper.
    fn help(self: Arc<Self>) {
        loop {
            let mut state = self.state.lock();
            let part = (matches!(state.status, Status::Running)
                && state.users > 0
                && state.active <= state.pace.target())
            .then(|| self.next_part(&state))
            .flatten();
            let Some(part) = part else {
                state.active -= 1;
                return;
            };
            state.claim(&part);
            drop(state);
            let fetched = self.fetch_part(&part, None);
            if !matches!(fetched, Ok(true)) {
                tracing::debug!("a helper's part failed: {fetched:?}");
                let mut state = self.state.lock();
                state.active -= 1;
                state.pace.give_up();
                return;
            }
        }
    }

    /// Returns the next part that no connection fetches; `None` if there is none within the
    /// horizon.
    fn next_part(&self, state: &State) -> Option<Range<u64>> {
        let size = self.expected?;
        let end = self.horizon(state).min(size);
        let taken = state.taken(state.front.as_ref());
        let gap = taken.first_missing(&(0..end))?;
        let part = gap.start..gap.end.min(gap.start + state.pace.part(size - gap.start));
        (part.end == size || part.end - part.start >= LEAST_PART || gap.end < end).then_some(part)
    }

    /// Fetches a part that is marked as being fetched: for a reader, within its deadline, or as a
    /// helper, as long as the download is in use. `false` when the server sends no parts.
    pub(crate) fn fetch_part(
        self: &Arc<Self>,
        part: &Range<u64>,
        reader: Option<Deadline>,
    ) -> Result<bool, StoreError> {
        let result = self.fetch_part_inner(part, reader);
        let mut state = self.state.lock();
        state.fetching.retain(|other| other != part);
        self.wake_all(&state);
        result
    }

    fn fetch_part_inner(
        self: &Arc<Self>,
        part: &Range<u64>,
        reader: Option<Deadline>,
    ) -> Result<bool, StoreError> {
        let deadline = reader.unwrap_or_else(|| Deadline::after(PART_DEADLINE));
        let Some(mut body) = self.origin.range(part.clone(), deadline)? else {
            return Ok(false);
        };
        let mut buffer = vec![0; CHUNK.min((part.end - part.start) as usize)];
        let mut at = part.start;
        while at < part.end {
            let most = buffer.len().min((part.end - at) as usize);
            let n = read_some(&mut body, &mut buffer[..most])
                .map_err(|error| self.body_error(error))?;
            if n == 0 {
                return Err(
                    StoreError::new(ErrorKind::Protocol, "the range ended early")
                        .with_key(&self.origin.key),
                );
            }
            if !self.room.take(n as u64) {
                return Err(StoreError::new(
                    ErrorKind::Disk,
                    "the cache has no room for more of the record",
                )
                .with_hint(CACHE_HINT)
                .with_key(&self.origin.key));
            }
            self.put(&buffer[..n], at).map_err(disk_error)?;
            let start = at;
            at += n as u64;
            let mut state = self.state.lock();
            state.arrived(start..at);
            if reader.is_none() {
                if !state.streaming {
                    let rest = state.position..self.expected.unwrap_or(state.position);
                    state.position = state
                        .present
                        .first_missing(&rest)
                        .map_or(rest.end, |missing| missing.start);
                }
                if state.users == 0 {
                    return Ok(true);
                }
                self.note_progress(state, n as u64);
            } else {
                drop(state);
            }
            if deadline.remaining().is_none() {
                return Err(StoreError::new(
                    ErrorKind::Timeout,
                    "the deadline passed while fetching a part",
                )
                .with_key(&self.origin.key));
            }
        }
        Ok(true)
    }
}
