//! A large content on its way to disk, readable while it arrives, shared by all its readers.
//!
//! It is filled front to back, a little ahead of the farthest reader ([`super::fill`]). Where the
//! server honours ranges, a read far ahead fetches its own part. Each reader is woken once, when
//! all its bytes are there.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;

use super::file::{disk_error, read_file_within};
use super::prefix::Prefix;
use super::ranges::RangeSet;
use super::state::{State, Status, Waiting};
use super::stream::{Body, FIRST_PART, Origin, PART};
use super::tools::Tools;
use crate::base::clock::Wait;
use crate::base::sync::atomic::{AtomicBool, Ordering};
use crate::base::sync::{self, Condvar, Mutex, MutexGuard};
use crate::base::units::MIB;
use crate::disk::{Patience, Room, Spool};
use crate::store::wait::{Result, may_block, timed_out, wait_until};
use crate::store::{ErrorKind, StoreError};

/// A read this far ahead of the download fetches its own part.
const FAR: u64 = 4 * MIB;
/// The same when the download does not wait for its readers.
const FAR_OF_WHOLE: u64 = 64 * MIB;
/// Once readers have fetched this share of what is left in parts of their own, the rest is worth
/// fetching whole.
const PARTS_OF_WHOLE: u64 = 8;

/// A content on its way, or the whole of it.
#[derive(Debug)]
pub struct Download {
    pub(super) origin: Origin,
    pub(super) file: Arc<File>,
    /// The content's size where the headers told it.
    pub(super) expected: Option<u64>,
    pub(super) tools: Tools,
    /// The stored bytes that a listing shows, where the answer's end is not told otherwise.
    pub(super) listed: Option<u64>,
    pub(super) complete: AtomicBool,
    /// The end of the bytes that have arrived without a gap from the start, where another transfer
    /// must go on.
    pub(super) prefix: Mutex<Prefix>,
    /// Room for it in the cache folder.
    pub(super) room: Arc<Room>,
    /// Fills it further when it is parked and a reader goes on.
    go_on: OnceLock<GoOn>,
    pub(super) state: Mutex<State>,
    /// Wakes threads that wait for a decision rather than for bytes: those that fill, and those
    /// that wait for the size.
    pub(super) changed: Condvar,
}

/// Takes up a parked download on a thread of its own.
struct GoOn(Box<dyn Fn(Spool) -> Result<(), StoreError> + Send + Sync>);

impl std::fmt::Debug for GoOn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("GoOn")
    }
}

/// What is known of a download's size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Size {
    /// The content has this size, and can be read from the download.
    Exact(u64),
    /// The content has this size, but the download could not keep it.
    Unkept(u64),
}

impl Download {
    /// Makes a download into a spool's file. `expected` is the content's size if the headers told it.
    ///
    /// `listed` are the stored bytes that a listing shows, for an answer that does not tell its end.
    pub fn new(
        origin: Origin,
        spool: &Spool,
        expected: Option<u64>,
        listed: Option<u64>,
        tools: Tools,
    ) -> Arc<Self> {
        let file = Arc::clone(spool.file());
        Self::into_file(origin, (file, spool.room()), expected, listed, tools)
    }

    /// The same into another file.
    pub fn into_file(
        origin: Origin,
        (file, room): (Arc<File>, &Arc<Room>),
        expected: Option<u64>,
        listed: Option<u64>,
        tools: Tools,
    ) -> Arc<Self> {
        Arc::new(Self {
            origin,
            file,
            room: Arc::clone(room),
            expected,
            listed,
            tools,
            prefix: Mutex::default(),
            go_on: OnceLock::new(),
            complete: AtomicBool::new(false),
            state: Mutex::default(),
            changed: Condvar::new(),
        })
    }

    /// Notes that it is begun for a reader that may never come.
    pub fn is_ahead(&self) {
        self.state.lock().ahead = true;
    }

    /// Sets how it is taken up when it was parked; the first call counts.
    pub fn connect(&self, go_on: impl Fn(Spool) -> Result<(), StoreError> + Send + Sync + 'static) {
        let _ = self.go_on.set(GoOn(Box::new(go_on)));
    }

    /// Makes the thread that waits for readers give the download up for now; `false` when it has
    /// something to do by now.
    pub(super) fn ask_to_park(&self) -> bool {
        let mut state = self.state.lock();
        state.must_park = state.paused;
        self.changed.notify_all();
        state.must_park
    }

    /// Takes up a parked download: its bytes are wanted.
    fn unpark(&self, mut state: MutexGuard<'_, State>, spool: Spool) -> Result<()> {
        state.must_park = false;
        drop(state);
        let gone_on = match self.go_on.get() {
            Some(go_on) => go_on.0(spool),
            None => Err(self.abandoned()),
        };
        if let Err(error) = gone_on {
            let mut state = self.state.lock();
            state.status = Status::Failed(error.duplicate());
            self.wake_all(&state);
            return Err(error.into());
        }
        Ok(())
    }

    /// Counts another handle; `false` when the download is over and of no use.
    ///
    /// One that the disk failed is: its readers go on past the disk.
    pub fn attach(&self) -> bool {
        let mut state = self.state.lock();
        let may_be_read = match &state.status {
            Status::Running | Status::Complete(_) | Status::Parked(_) => true,
            Status::Failed(error) => error.kind() == ErrorKind::Disk,
            Status::Abandoned | Status::Counted(_) | Status::Paused(_) => false,
        };
        state.users += usize::from(may_be_read);
        state.unused_since = None;
        state.idle_since = None;
        may_be_read
    }

    /// Counts a closed handle.
    pub fn detach(&self) {
        self.state.lock().users -= 1;
        self.changed.notify_all();
    }

    /// Returns whether a new handle may use it.
    pub fn is_usable(&self) -> bool {
        !matches!(
            self.state.lock().status,
            Status::Failed(_) | Status::Abandoned
        )
    }

    /// Returns whether all of it is on disk.
    pub fn is_complete(&self) -> bool {
        self.complete.load(Ordering::Acquire)
    }

    /// Returns the file that all of the content is in, when it is.
    pub fn file(&self) -> &Arc<File> {
        &self.file
    }

    /// Returns the content's size, waiting for it where only decoding tells it.
    pub fn size(&self, wait: Wait) -> Result<Size> {
        if let Some(size) = self.expected {
            return Ok(Size::Exact(size));
        }
        let mut state = self.state.lock();
        loop {
            match &state.status {
                Status::Complete(size) => return Ok(Size::Exact(*size)),
                Status::Counted(size) => return Ok(Size::Unkept(*size)),
                Status::Failed(error) => return Err(error.duplicate().into()),
                Status::Abandoned => return Err(self.abandoned().into()),
                Status::Running | Status::Paused(_) | Status::Parked(_) => {}
            }
            let deadline = may_block(wait)?;
            state.sizing += 1;
            state.unused_since = None;
            let waited = wait_until(
                &self.changed,
                &mut state,
                deadline,
                "the record, of unknown decoded size",
            );
            state.sizing -= 1;
            waited?;
        }
    }

    /// Returns what has arrived without a gap from the start.
    pub fn prefix(&self) -> Prefix {
        self.prefix.lock().clone()
    }

    /// Returns where its bytes come from.
    pub(crate) fn origin(&self) -> &Origin {
        &self.origin
    }

    /// Takes up a paused download: returns what it needs to be filled further.
    pub fn resume(&self) -> Option<Spool> {
        let mut state = self.state.lock();
        match std::mem::take(&mut state.status) {
            Status::Paused(spool) => {
                state.unused_since = None;
                Some(*spool)
            }
            other => {
                state.status = other;
                None
            }
        }
    }

    /// Reads the bytes of `wanted`, which lies within the content.
    pub fn read(self: &Arc<Self>, wanted: Range<u64>, wait: Wait) -> Result<Bytes> {
        if !self.is_complete()
            && let Some(bytes) = self.await_range(&wanted, wait)?
        {
            return Ok(bytes);
        }
        read_file_within(self.room.patience(), &self.file, wanted, wait)
    }

    /// Waits for bytes; returns them if they are in memory still.
    fn await_range(self: &Arc<Self>, wanted: &Range<u64>, wait: Wait) -> Result<Option<Bytes>> {
        let mut state = self.state.lock();
        let patience = wait.deadline().map_or(Patience::MOST, Patience::of);
        while !state.present.contains(wanted) {
            match &state.status {
                Status::Failed(error) => return Err(error.duplicate().into()),
                Status::Abandoned | Status::Counted(_) | Status::Paused(_) => {
                    return Err(self.abandoned().into());
                }
                Status::Complete(_) => return Ok(None),
                Status::Running | Status::Parked(_) => {}
            }
            let deadline = may_block(wait)?;
            if let Status::Parked(_) = state.status {
                let Status::Parked(spool) = std::mem::take(&mut state.status) else {
                    continue;
                };
                self.unpark(state, *spool)?;
                state = self.state.lock();
                continue;
            }
            let missing = state
                .present
                .first_missing(wanted)
                .unwrap_or(wanted.clone());
            let far = self.origin.has_ranges()
                && missing.start > state.frontier + if state.whole { FAR_OF_WHOLE } else { FAR };
            let busy = state
                .fetching
                .iter()
                .any(|part| part.contains(&missing.start));
            if far && !busy {
                let part = self.part(missing, &state.present);
                state.fetching.push(part.clone());
                drop(state);
                let result = self.fetch_part(&part, Some(deadline));
                state = self.state.lock();
                state.in_parts += part.end - part.start;
                self.maybe_fetch_all(&mut state);
                result?;
                continue;
            }
            if !far {
                state.phase = wanted.end;
                if state.demand < wanted.end {
                    self.raise_demand(&mut state, wanted.end);
                }
            }
            let Some(until) = state.look_again(sync::now(), patience, deadline.instant()) else {
                return Err(disk_error(io::ErrorKind::TimedOut.into()).into());
            };
            if deadline.remaining().is_none() {
                return Err(timed_out("the record's bytes"));
            }
            let woken = Arc::new(Condvar::new());
            state.waiting.push(Waiting {
                wanted: wanted.clone(),
                woken: Arc::clone(&woken),
            });
            woken.wait_until(&mut state, until);
            state
                .waiting
                .retain(|waiting| !Arc::ptr_eq(&waiting.woken, &woken));
        }
        // Sequential reading keeps the download ahead of it.
        if wanted.end > state.demand && wanted.end <= state.position {
            self.raise_demand(&mut state, wanted.end);
        }
        Ok(state.window.get(wanted))
    }

    /// Writes to the disk; readers that wait for bytes see that a write is under way.
    pub(super) fn put(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        let since = sync::now();
        self.state.lock().writing.push(since);
        let written = self.file.write_all_at(bytes, at);
        let mut state = self.state.lock();
        if let Some(own) = state.writing.iter().position(|other| *other == since) {
            state.writing.swap_remove(own);
        }
        written
    }

    fn raise_demand(&self, state: &mut State, demand: u64) {
        state.demand = demand;
        state.idle_since = None;
        if state.paused {
            self.changed.notify_all();
        }
    }

    /// Makes all waiting threads look at the state again.
    pub(super) fn wake_all(&self, state: &State) {
        for waiting in &state.waiting {
            waiting.woken.notify_one();
        }
        self.changed.notify_all();
    }

    /// Many small parts cost more than the whole: once readers have fetched a good share that way, the
    /// rest is fetched without waiting for readers.
    fn maybe_fetch_all(&self, state: &mut State) {
        let Some(size) = self.expected else { return };
        let left = size.saturating_sub(state.position);
        if state.in_parts >= left / PARTS_OF_WHOLE {
            state.whole = true;
            state.idle_since = None;
            self.changed.notify_all();
        }
    }

    /// Returns the part to fetch for a read that misses `missing`: small after a jump, and as much again
    /// as is there already where reads go on.
    fn part(&self, missing: Range<u64>, present: &RangeSet) -> Range<u64> {
        let size = self.expected.unwrap_or(missing.end);
        let len = present.run_before(missing.start).clamp(FIRST_PART, PART);
        let end = missing.end.max(missing.start.saturating_add(len)).min(size);
        present
            .first_missing(&(missing.start..end))
            .unwrap_or(missing)
    }

    pub(super) fn body_error(&self, error: io::Error) -> StoreError {
        StoreError::from_io(error, ErrorKind::Corrupt).with_key(&self.origin.key)
    }

    pub(super) fn abandoned(&self) -> StoreError {
        StoreError::new(ErrorKind::Changed, "the download was given up").with_key(&self.origin.key)
    }
}

/// Reads once, trying again when a signal interrupts it.
pub(crate) fn read_some(body: &mut Body, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        match body.read(buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}
