//! A large content on its way to disk, readable while it arrives, shared by all its readers.
//!
//! One thread fills it front to back, a little ahead of the farthest reader, so that `head -c`
//! of a huge record costs about that much. Where the server honours ranges, a read far ahead
//! fetches its own part. A download that nobody uses any more is given up.

use std::fs::File;
use std::io::{self, Read};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::{Condvar, Mutex};

use super::disk::{Checksum, Spool};
use super::ranges::RangeSet;
use super::stream::{Body, Origin};
use super::{Result, may_block, wait_until};
use crate::clock::{Deadline, Wait};
use crate::store::{ErrorKind, StoreError};

/// Bytes moved from the body to the disk at once.
const CHUNK: usize = 256 << 10;
/// How far ahead of the farthest reader the download runs at first, and at most.
const AHEAD: Range<u64> = (1 << 20)..(64 << 20);
/// A read this far ahead of the download fetches its own part.
const FAR: u64 = 4 << 20;
/// The same when the download does not wait for anybody.
const FAR_OF_WHOLE: u64 = 64 << 20;
/// The least that such a read fetches.
const PART: u64 = 512 << 10;
/// What a whole download is expected to bring, in bytes a second, when parts are weighed against it.
const WHOLE_PER_SECOND: f64 = 1e9;
/// How long a paused download waits for somebody to open the file.
const GRACE: Duration = Duration::from_secs(3);

/// A content on its way, or the whole of it.
#[derive(Debug)]
pub struct Download {
    origin: Origin,
    file: Arc<File>,
    /// The content's size where the headers told it.
    expected: Option<u64>,
    complete: AtomicBool,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    present: RangeSet,
    /// Parts that readers are fetching by themselves.
    fetching: Vec<Range<u64>>,
    /// How far the front-to-back thread has come.
    position: u64,
    /// The end of the farthest read that waits for that thread, or was served by it.
    demand: u64,
    users: usize,
    /// Time that readers have spent on parts of their own.
    spent: Duration,
    /// Whether, as long as anybody has it open, all of it is fetched.
    whole: bool,
    status: Status,
}

#[derive(Debug, Default)]
enum Status {
    #[default]
    Running,
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

/// How a download ended, for the thread that ran it.
#[derive(Debug)]
pub enum Outcome {
    /// Whole: to be published under this size and checksum.
    Whole(Box<Spool>, u64, String),
    /// Anything else; readers have been told.
    Over,
}

impl Download {
    /// Makes a download into `file`. `expected` is the content's size if the headers told it.
    pub fn new(origin: Origin, file: Arc<File>, expected: Option<u64>) -> Arc<Self> {
        Arc::new(Self {
            origin,
            file,
            expected,
            complete: AtomicBool::new(false),
            state: Mutex::default(),
            changed: Condvar::new(),
        })
    }

    /// Counts another handle; `false` when the download is over and of no use.
    pub fn attach(&self) -> bool {
        let mut state = self.state.lock();
        if matches!(
            state.status,
            Status::Failed(_) | Status::Abandoned | Status::Counted(_)
        ) {
            return false;
        }
        state.users += 1;
        true
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
                Status::Running => {}
            }
            wait_until(
                &self.changed,
                &mut state,
                may_block(wait)?,
                "the record, whose size only decoding tells",
            )?;
        }
    }

    /// Returns how many bytes have arrived.
    pub fn arrived(&self) -> u64 {
        self.state.lock().position
    }

    /// Reads the bytes of `wanted`, which lies within the content.
    pub fn read(&self, wanted: Range<u64>, wait: Wait) -> Result<Bytes> {
        if !self.is_complete() {
            self.await_range(&wanted, wait)?;
        }
        Ok(read_file(&self.file, wanted)?)
    }

    fn await_range(&self, wanted: &Range<u64>, wait: Wait) -> Result<()> {
        let mut state = self.state.lock();
        while !state.present.contains(wanted) {
            match &state.status {
                Status::Failed(error) => return Err(error.duplicate().into()),
                Status::Abandoned | Status::Counted(_) => return Err(self.abandoned().into()),
                Status::Complete(_) => return Ok(()),
                Status::Running => {}
            }
            let deadline = may_block(wait)?;
            let missing = state
                .present
                .first_missing(wanted)
                .unwrap_or(wanted.clone());
            let far = self.origin.has_ranges()
                && missing.start > state.position + if state.whole { FAR_OF_WHOLE } else { FAR };
            let busy = state
                .fetching
                .iter()
                .any(|part| part.contains(&missing.start));
            if far && !busy {
                let part = self.part(missing, &state.present);
                state.fetching.push(part.clone());
                drop(state);
                let begun = Instant::now();
                let result = self.fetch_part(&part, deadline);
                state = self.state.lock();
                state.spent += begun.elapsed();
                self.maybe_fetch_all(&mut state);
                state.fetching.retain(|other| *other != part);
                if result.is_ok() {
                    state.present.insert(part);
                }
                self.changed.notify_all();
                result?;
                continue;
            }
            if !far && state.demand < wanted.end {
                state.demand = wanted.end;
                self.changed.notify_all();
            }
            wait_until(&self.changed, &mut state, deadline, "the record's bytes")?;
        }
        // Sequential reading keeps the download ahead of it.
        if wanted.end > state.demand && wanted.end <= state.position {
            state.demand = wanted.end;
            drop(state);
            self.changed.notify_all();
        }
        Ok(())
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

    fn fetch_part(&self, part: &Range<u64>, deadline: Deadline) -> Result<(), StoreError> {
        let mut body = self.origin.range(part.clone(), deadline)?;
        let mut buffer = vec![0; CHUNK];
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
            self.file
                .write_all_at(&buffer[..n], at)
                .map_err(disk_error)?;
            at += n as u64;
            if deadline.remaining().is_none() {
                return Err(StoreError::new(
                    ErrorKind::Timeout,
                    "the deadline passed while fetching a part",
                )
                .with_key(&self.origin.key));
            }
        }
        Ok(())
    }

    /// Fills the download front to back: first `head`, what has been read already, then `body`.
    pub fn fill(&self, head: &[u8], body: Body, spool: Spool) -> Outcome {
        let outcome = self.fill_inner(head, body, spool);
        let mut state = self.state.lock();
        let result = match outcome {
            Ok((Some(spool), sum)) => {
                self.complete.store(true, Ordering::Release);
                state.status = Status::Complete(state.position);
                Outcome::Whole(Box::new(spool), state.position, sum)
            }
            Ok((None, _)) => {
                state.status = match state.status {
                    Status::Abandoned => Status::Abandoned,
                    _ => Status::Counted(state.position),
                };
                Outcome::Over
            }
            Err(error) => {
                state.status = Status::Failed(error);
                Outcome::Over
            }
        };
        drop(state);
        self.changed.notify_all();
        result
    }

    fn fill_inner(
        &self,
        head: &[u8],
        mut body: Body,
        spool: Spool,
    ) -> Result<(Option<Spool>, String), StoreError> {
        let mut spool = Some(spool);
        let mut sum = Checksum::default();
        let mut position = 0;
        self.keep(head, &mut position, &mut spool, &mut sum)?;
        let mut buffer = vec![0; CHUNK];
        while self.may_go_on(position) {
            let n = read_some(&mut body, &mut buffer).map_err(|error| self.body_error(error))?;
            if n == 0 {
                if self.expected.is_some_and(|expected| expected != position) {
                    return Err(StoreError::new(
                        ErrorKind::Protocol,
                        format!("the record ended at byte {position}, short of its length"),
                    )
                    .with_key(&self.origin.key));
                }
                return Ok((spool, sum.finish()));
            }
            self.keep(&buffer[..n], &mut position, &mut spool, &mut sum)?;
        }
        self.state.lock().status = Status::Abandoned;
        Ok((None, String::new()))
    }

    fn keep(
        &self,
        bytes: &[u8],
        position: &mut u64,
        spool: &mut Option<Spool>,
        sum: &mut Checksum,
    ) -> Result<(), StoreError> {
        let start = *position;
        let end = start + bytes.len() as u64;
        if self.expected.is_some_and(|expected| end > expected) {
            return Err(StoreError::new(
                ErrorKind::Protocol,
                "the record is longer than its length says",
            )
            .with_key(&self.origin.key));
        }
        if let Some(room) = spool {
            let kept = room.grow(end)
                && self
                    .file
                    .write_all_at(bytes, start)
                    .inspect_err(|error| tracing::warn!("cache disk: {error}"))
                    .is_ok();
            if !kept {
                if self.expected.is_some() {
                    return Err(StoreError::new(
                        ErrorKind::Disk,
                        "cannot write to the cache folder",
                    )
                    .with_key(&self.origin.key));
                }
                // Go on only to learn the size; what has arrived is dropped.
                *spool = None;
            }
        }
        if spool.is_some() {
            sum.update(bytes);
        }
        *position = end;
        let mut state = self.state.lock();
        state.position = end;
        if spool.is_some() {
            state.present.insert(start..end);
        }
        drop(state);
        self.changed.notify_all();
        Ok(())
    }

    /// Waits until the download may read on; `false` when it is of no use any more.
    fn may_go_on(&self, position: u64) -> bool {
        let mut state = self.state.lock();
        let mut unused_since = None;
        loop {
            let ahead = state.demand.clamp(AHEAD.start, AHEAD.end);
            if self.expected.is_none_or(|expected| position >= expected)
                || position < state.demand.saturating_add(ahead)
                || (state.whole && state.users > 0)
            {
                return true;
            }
            if state.users > 0 {
                unused_since = None;
                self.changed.wait(&mut state);
                continue;
            }
            let until = *unused_since.get_or_insert_with(|| Instant::now() + GRACE);
            if self.changed.wait_until(&mut state, until).timed_out() && state.users == 0 {
                // Marked under the lock, so that no new handle gets in.
                state.status = Status::Abandoned;
                return false;
            }
        }
    }

    fn body_error(&self, error: io::Error) -> StoreError {
        StoreError::from_io(error, ErrorKind::Corrupt).with_key(&self.origin.key)
    }

    fn abandoned(&self) -> StoreError {
        StoreError::new(ErrorKind::Changed, "the download was given up").with_key(&self.origin.key)
    }
}

fn disk_error(error: io::Error) -> StoreError {
    StoreError::new(ErrorKind::Disk, format!("the cache disk failed: {error}"))
}

/// Reads once, trying again when a signal interrupts it.
pub(super) fn read_some(body: &mut Body, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        match body.read(buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

/// Reads all of `wanted` from a file that holds it.
pub(super) fn read_file(file: &File, wanted: Range<u64>) -> Result<Bytes, StoreError> {
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
