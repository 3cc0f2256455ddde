//! A large content on its way to disk, readable while it arrives, shared by all its readers.
//!
//! It is filled front to back, a little ahead of the farthest reader ([`super::fill`]). Where the
//! server honours ranges, a read far ahead fetches its own part. Each reader is woken once, when
//! all that it waits for is there.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::ranges::RangeSet;
use super::stream::{Body, Origin, PART};
use super::window::{Blocks, Window};
use crate::base::clock::Wait;
use crate::base::sync::atomic::{AtomicBool, Ordering};
use crate::base::sync::{self, Condvar, Mutex};
use crate::base::units::MIB;
use crate::base::workers::Workers;
use crate::disk::Spool;
use crate::store::wait::{Result, may_block, wait_until};
use crate::store::{ErrorKind, StoreError};
use crate::transfer::connections::Pace;

/// A read this far ahead of the download fetches its own part.
const FAR: u64 = 4 * MIB;
/// The same when the download does not wait for anybody.
const FAR_OF_WHOLE: u64 = 64 * MIB;
/// What a whole download is expected to bring, in bytes a second, when parts are weighed against it.
const WHOLE_PER_SECOND: f64 = 1e9;

/// A content on its way, or the whole of it.
#[derive(Debug)]
pub struct Download {
    pub(super) origin: Origin,
    pub(super) file: Arc<File>,
    /// The content's size where the headers told it.
    pub(super) expected: Option<u64>,
    pub(super) tools: Tools,
    pub(super) complete: AtomicBool,
    pub(super) state: Mutex<State>,
    /// Wakes who waits for a decision rather than for bytes: those who fill, and for the size.
    pub(super) changed: Condvar,
}

/// What all downloads of a mount share.
#[derive(Clone, Debug)]
pub struct Tools {
    /// Memory for what has just arrived.
    pub blocks: Arc<Blocks>,
    /// Threads that fill.
    pub fillers: Arc<Workers>,
}

#[derive(Debug, Default)]
pub(super) struct State {
    pub present: RangeSet,
    /// The last bytes that arrived.
    pub window: Window,
    /// Who waits for bytes.
    pub waiting: Vec<Waiting>,
    /// Parts that are being fetched by requests of their own.
    pub fetching: Vec<Range<u64>>,
    /// Whether one connection fills front to back.
    pub streaming: bool,
    /// While there are several connections: what the one that began at the start has to itself.
    pub front: Option<Range<u64>>,
    /// How far the content has come from its start.
    pub position: u64,
    /// How far it has come, or is on its way.
    pub frontier: u64,
    /// The end of the farthest read that waits for those who fill, or was served by them.
    pub demand: u64,
    /// Where the last read that had to wait ends: blocks end there too.
    pub phase: u64,
    pub users: usize,
    /// Who waits to learn the size: it is used by them, too.
    pub sizing: usize,
    /// Whether it was begun for somebody who may never come.
    pub ahead: bool,
    /// Since when nobody has used it, where that has been looked at.
    pub unused_since: Option<Instant>,
    /// Time that readers have spent on parts of their own.
    pub spent: Duration,
    /// Whether, as long as anybody has it open, all of it is fetched.
    pub whole: bool,
    /// Whether somebody who fills waits for demand.
    pub paused: bool,
    /// How many fill.
    pub active: usize,
    /// Bytes that those have brought.
    pub total: u64,
    pub pace: Pace,
    pub status: Status,
}

/// A reader that waits, to be woken when its bytes are there or never come.
#[derive(Debug)]
pub(super) struct Waiting {
    pub wanted: Range<u64>,
    pub woken: Arc<Condvar>,
}

#[derive(Debug, Default)]
pub(super) enum Status {
    #[default]
    Running,
    /// Nobody uses it; what has arrived is kept for a while.
    Paused(Box<Spool>),
    /// Whole, of this size.
    Complete(u64),
    /// Read to its end to learn its size; there was no room to keep it.
    Counted(u64),
    Failed(StoreError),
    /// Given up because nobody used it.
    Abandoned,
}

/// What is known of a download's size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Size {
    /// The content has this size, and can be read from the download.
    Exact(u64),
    /// The content has this size, but the download could not keep it.
    Unkept(u64),
}

impl State {
    /// Marks a part as being fetched.
    pub fn claim(&mut self, part: &Range<u64>) {
        self.fetching.push(part.clone());
        self.frontier = self.frontier.max(part.end);
    }

    /// Returns what is here, on its way, or promised to `front`.
    pub fn taken(&self, front: Option<&Range<u64>>) -> RangeSet {
        let mut taken = self.present.clone();
        for part in self.fetching.iter().chain(front) {
            taken.insert(part.clone());
        }
        taken
    }

    /// Takes note that bytes are on disk, and wakes those who have all they wait for.
    pub fn arrived(&mut self, range: Range<u64>) {
        self.present.insert(range);
        for waiting in &self.waiting {
            if self.present.contains(&waiting.wanted) {
                waiting.woken.notify_one();
            }
        }
    }
}

impl Download {
    /// Makes a download into `file`. `expected` is the content's size if the headers told it.
    pub fn new(origin: Origin, file: Arc<File>, expected: Option<u64>, tools: Tools) -> Arc<Self> {
        Arc::new(Self {
            origin,
            file,
            expected,
            tools,
            complete: AtomicBool::new(false),
            state: Mutex::default(),
            changed: Condvar::new(),
        })
    }

    /// Notes that it is begun for somebody who may never come.
    pub fn is_ahead(&self) {
        self.state.lock().ahead = true;
    }

    /// Counts another handle; `false` when the download is over and of no use.
    ///
    /// One that the disk failed is: its readers go on past the disk.
    pub fn attach(&self) -> bool {
        let mut state = self.state.lock();
        let may_be_read = match &state.status {
            Status::Running | Status::Complete(_) => true,
            Status::Failed(error) => error.kind() == ErrorKind::Disk,
            Status::Abandoned | Status::Counted(_) | Status::Paused(_) => false,
        };
        state.users += usize::from(may_be_read);
        state.unused_since = None;
        may_be_read
    }

    /// Counts a closed handle.
    pub fn detach(&self) {
        self.state.lock().users -= 1;
        self.changed.notify_all();
    }

    /// Tells whether a new handle may use it.
    pub fn is_usable(&self) -> bool {
        !matches!(
            self.state.lock().status,
            Status::Failed(_) | Status::Abandoned
        )
    }

    /// Tells whether all of it is on disk.
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
                Status::Running | Status::Paused(_) => {}
            }
            let deadline = may_block(wait)?;
            state.sizing += 1;
            state.unused_since = None;
            let waited = wait_until(
                &self.changed,
                &mut state,
                deadline,
                "the record, whose size only decoding tells",
            );
            state.sizing -= 1;
            waited?;
        }
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
        Ok(read_file(&self.file, wanted)?)
    }

    /// Waits for bytes; returns them if they are in memory still.
    fn await_range(self: &Arc<Self>, wanted: &Range<u64>, wait: Wait) -> Result<Option<Bytes>> {
        let mut state = self.state.lock();
        while !state.present.contains(wanted) {
            match &state.status {
                Status::Failed(error) => return Err(error.duplicate().into()),
                Status::Abandoned | Status::Counted(_) | Status::Paused(_) => {
                    return Err(self.abandoned().into());
                }
                Status::Complete(_) => return Ok(None),
                Status::Running => {}
            }
            let deadline = may_block(wait)?;
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
                let begun = sync::now();
                let result = self.fetch_part(&part, Some(deadline));
                state = self.state.lock();
                state.spent += sync::now().saturating_duration_since(begun);
                self.maybe_fetch_all(&mut state);
                result?;
                continue;
            }
            if !far {
                state.phase = wanted.end;
                if state.demand < wanted.end {
                    state.demand = wanted.end;
                    self.wake_paused(&state);
                }
            }
            let woken = Arc::new(Condvar::new());
            state.waiting.push(Waiting {
                wanted: wanted.clone(),
                woken: Arc::clone(&woken),
            });
            let result = wait_until(&woken, &mut state, deadline, "the record's bytes");
            state
                .waiting
                .retain(|waiting| !Arc::ptr_eq(&waiting.woken, &woken));
            result?;
        }
        // Sequential reading keeps the download ahead of it.
        if wanted.end > state.demand && wanted.end <= state.position {
            state.demand = wanted.end;
            self.wake_paused(&state);
        }
        Ok(state.window.get(wanted))
    }

    fn wake_paused(&self, state: &State) {
        if state.paused {
            self.changed.notify_all();
        }
    }

    /// Makes everybody who waits look at the state again.
    pub(super) fn wake_all(&self, state: &State) {
        for waiting in &state.waiting {
            waiting.woken.notify_one();
        }
        self.changed.notify_all();
    }

    /// Many small parts cost more than the whole: once readers have spent as much time on parts
    /// as the whole would take, the rest is fetched without waiting for anybody.
    fn maybe_fetch_all(&self, state: &mut State) {
        let Some(size) = self.expected else { return };
        let left = size.saturating_sub(state.position);
        if state.spent.as_secs_f64() * WHOLE_PER_SECOND >= left as f64 {
            state.whole = true;
            self.changed.notify_all();
        }
    }

    /// Returns what to fetch for a read that misses `missing`.
    fn part(&self, missing: Range<u64>, present: &RangeSet) -> Range<u64> {
        let size = self.expected.unwrap_or(missing.end);
        let end = missing
            .end
            .max(missing.start.saturating_add(PART))
            .min(size);
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

pub(super) fn disk_error(error: io::Error) -> StoreError {
    StoreError::new(ErrorKind::Disk, format!("the cache disk failed: {error}"))
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

/// Reads all of `wanted` from a file that holds it.
pub(crate) fn read_file(file: &File, wanted: Range<u64>) -> Result<Bytes, StoreError> {
    let len = (wanted.end - wanted.start) as usize;
    let mut bytes = Vec::with_capacity(len);
    while bytes.len() < len {
        let at = wanted.start + bytes.len() as u64;
        match rustix::io::pread(file, rustix::buffer::spare_capacity(&mut bytes), at) {
            Ok(0) => return Err(disk_error(io::ErrorKind::UnexpectedEof.into())),
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(disk_error(error.into())),
        }
    }
    bytes.truncate(len);
    Ok(bytes.into())
}
