//! Fills a download: one connection front to back, more of them where one is slow.
//!
//! It runs a little ahead of the farthest reader, so that `head -c` of a huge record costs about
//! that much. Where the server honours ranges and one connection is slow, helpers fetch parts
//! farther on, as many as [`super::pace`] finds worth it; the first connection goes on until it
//! meets such a part. A download that nobody uses any more is paused if much of it has arrived,
//! so that who comes back goes on from there, else given up.

use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::disk::{self, Checksum, Spool};
use super::download::{Download, State, Status, disk_error, read_some};
use super::stream::Body;
use super::window::Block;
use super::{KIB, MIB};
use crate::clock::Deadline;
use crate::store::{ErrorKind, StoreError};
use crate::sync::atomic::Ordering;
use crate::sync::{self, MutexGuard};

/// How far ahead of the farthest reader one connection runs at first, and at most.
const AHEAD: Range<u64> = MIB..64 * MIB;
/// How far it runs before anybody reads: a connection that is read from eagerly has the kernel
/// take in megabytes more, in vain for who reads somewhere else.
const AHEAD_OF_NOBODY: u64 = 64 * KIB;
/// The same for several connections, which need room to work in.
const AHEAD_OF_SEVERAL: u64 = 8 * MIB;
/// With less than this to fetch, no connection is added.
const WORTH_HELPING: u64 = 8 * MIB;
/// The least that a helper is sent for, but at the end.
const LEAST_PART: u64 = MIB;
/// Bytes moved at once where no block is to be had, and by helpers.
const CHUNK: usize = 256 * KIB as usize;
/// Bytes read before they are written: what stays in the processor's own cache.
const PIECE: usize = 256 * KIB as usize;
/// How long bytes are gathered for one write while nobody waits for exactly them.
const GATHER: Duration = Duration::from_millis(5);
/// Disk space set aside at once: cheaper than block by block.
const SET_ASIDE: u64 = 32 << 20;
/// How long a download waits for somebody to open the file.
const GRACE: Duration = Duration::from_secs(3);
/// A download of which this much has arrived is kept for who comes back.
const WORTH_KEEPING: u64 = 4 * MIB;
/// How long one part may take a helper.
const PART_DEADLINE: Duration = Duration::from_secs(300);

/// How a download ended, for the thread that ran it.
#[derive(Debug)]
pub enum Outcome {
    /// Whole: to be published under this size and checksum.
    Whole(Box<Spool>, u64, String),
    /// Nobody uses it; [`Download::resume`] takes it up again.
    Paused,
    /// Anything else; readers have been told.
    Over,
}

/// Why filling ended, unless it failed.
enum End {
    Whole,
    Unused,
}

/// Whether the first connection goes on.
enum Go {
    On,
    /// What comes next is here or on its way over another connection.
    Overtaken,
    Unused,
}

/// Where the bytes of the first connection go.
struct Front {
    position: u64,
    /// Gone when there is no more room; the rest is then read only to learn the size.
    spool: Option<Spool>,
    /// Of all bytes so far; gone when they do not come in order.
    sum: Option<Checksum>,
    /// Up to where disk space has been set aside.
    set_aside: u64,
}

impl Download {
    /// Fills the download: with `head`, which has been read already, then `body`; without a body,
    /// with what is missing.
    pub fn fill(self: &Arc<Self>, head: &[u8], body: Option<Body>, spool: Spool) -> Outcome {
        self.state.lock().active += 1;
        let mut front = Front {
            position: 0,
            spool: Some(spool),
            sum: Some(Checksum::default()),
            set_aside: 0,
        };
        let result = match body {
            Some(body) => self.fill_front(&mut front, head, body),
            None => {
                front.sum = None;
                self.fill_parts()
            }
        };
        let mut state = self.state.lock();
        state.active -= 1;
        state.paused = false;
        let size = self.expected.unwrap_or(front.position);
        let outcome = match (result, front.spool) {
            (Ok(End::Whole), Some(spool)) => {
                self.complete.store(true, Ordering::Release);
                state.status = Status::Complete(size);
                Some(spool)
            }
            (Ok(End::Whole), None) => {
                state.status = Status::Counted(size);
                None
            }
            // Marked as given up by the lock that found nobody using it; what is kept is usable.
            (Ok(End::Unused), Some(spool))
                if self.may_help() && state.present.len() >= WORTH_KEEPING =>
            {
                state.status = Status::Paused(Box::new(spool));
                None
            }
            (Ok(End::Unused), _) => None,
            (Err(error), _) => {
                state.status = Status::Failed(error);
                None
            }
        };
        self.wake_all(&state);
        let paused = matches!(state.status, Status::Paused(_));
        let window = state.window.clear();
        drop(state);
        drop(window);
        match outcome {
            Some(spool) => {
                let sum = match front.sum {
                    Some(sum) => Ok(sum.finish()),
                    None => disk::checksum(&self.file),
                };
                match sum {
                    Ok(sum) => Outcome::Whole(Box::new(spool), size, sum),
                    Err(error) => {
                        tracing::warn!("cache disk: {error}");
                        Outcome::Over
                    }
                }
            }
            None if paused => Outcome::Paused,
            None => Outcome::Over,
        }
    }

    /// Tells whether the content can be fetched in parts.
    fn may_help(&self) -> bool {
        self.expected.is_some() && self.origin.has_ranges()
    }

    fn fill_front(
        self: &Arc<Self>,
        front: &mut Front,
        head: &[u8],
        mut body: Body,
    ) -> Result<End, StoreError> {
        let mut scratch = Vec::new();
        self.state.lock().streaming = true;
        self.land(front, 0, head)?;
        self.arrive(front, head.len() as u64, None);
        loop {
            match self.may_go_on(front.position) {
                Go::On => {}
                Go::Unused => return Ok(End::Unused),
                Go::Overtaken => {
                    drop(body);
                    front.sum = None;
                    return self.fill_parts();
                }
            }
            let mut block = self.block();
            let room = match &mut block {
                Some(block) => block.room(),
                None => {
                    scratch.resize(CHUNK, 0);
                    &mut scratch[..]
                }
            };
            let (len, failure) = self.gather(front, &mut body, room)?;
            let block = block
                .filter(|_| len >= CHUNK)
                .map(|block| block.freeze(len));
            self.arrive(front, len as u64, block);
            if let Some(error) = failure {
                return Err(self.body_error(error));
            }
            if len == 0 {
                if self
                    .expected
                    .is_some_and(|expected| expected != front.position)
                {
                    return Err(StoreError::new(
                        ErrorKind::Protocol,
                        format!(
                            "the record ended at byte {}, short of its length",
                            front.position
                        ),
                    )
                    .with_key(&self.origin.key));
                }
                return Ok(End::Whole);
            }
        }
    }

    /// Takes a block, at the cost of the oldest that is kept for readers.
    fn block(&self) -> Option<Block> {
        self.tools.blocks.take().or_else(|| {
            let oldest = self.state.lock().window.shrink();
            drop(oldest);
            self.tools.blocks.take()
        })
    }

    /// Reads from the body until `room` is full, somebody waits for just what is there, or
    /// the bytes come too slowly to wait for more. Fewer than one byte means the end.
    ///
    /// Each piece is written before the next one is read, while the processor's cache has it.
    fn gather(
        &self,
        front: &mut Front,
        body: &mut Body,
        room: &mut [u8],
    ) -> Result<(usize, Option<io::Error>), StoreError> {
        let position = front.position;
        let most = {
            let state = self.state.lock();
            // Blocks end where reads end, so that each read finds its bytes in one block.
            let size = room.len() as u64;
            let past = (position + size - state.phase % size) % size;
            let limit = match &state.front {
                Some(front) => front.end,
                None if state.demand == 0 && self.expected.is_some() => self.horizon(&state),
                None => u64::MAX,
            };
            (size - past).min(limit.saturating_sub(position).max(1)) as usize
        };
        let begun = sync::now();
        let (mut len, mut landed) = (0, 0);
        let mut failure = None;
        while len < most {
            match read_some(body, &mut room[len..most.min(landed + PIECE)]) {
                Ok(0) => break,
                Ok(n) => len += n,
                Err(error) => {
                    failure = Some(error);
                    break;
                }
            }
            if len - landed == PIECE {
                self.land(front, position + landed as u64, &room[landed..len])?;
                landed = len;
            }
            if sync::now().saturating_duration_since(begun) > GATHER
                || self.is_awaited(position..position + len as u64)
            {
                break;
            }
        }
        self.land(front, position + landed as u64, &room[landed..len])?;
        Ok((len, failure))
    }

    /// Tells whether somebody waits for nothing beyond `range`.
    fn is_awaited(&self, range: Range<u64>) -> bool {
        let state = self.state.lock();
        state
            .waiting
            .iter()
            .any(|waiting| range.start < waiting.wanted.end && waiting.wanted.end <= range.end)
    }

    /// Writes bytes to disk, and to the checksum, as long as there is room.
    fn land(&self, front: &mut Front, at: u64, bytes: &[u8]) -> Result<(), StoreError> {
        let end = at + bytes.len() as u64;
        if bytes.is_empty() {
            return Ok(());
        }
        if self.expected.is_some_and(|expected| end > expected) {
            return Err(StoreError::new(
                ErrorKind::Protocol,
                "the record is longer than its length says",
            )
            .with_key(&self.origin.key));
        }
        let Some(room) = &mut front.spool else {
            return Ok(());
        };
        self.set_aside(end, &mut front.set_aside);
        let kept = room.grow(end)
            && self
                .file
                .write_all_at(bytes, at)
                .inspect_err(|error| tracing::warn!("cache disk: {error}"))
                .is_ok();
        if !kept {
            if self.expected.is_some() {
                return Err(
                    StoreError::new(ErrorKind::Disk, "cannot write to the cache folder")
                        .with_key(&self.origin.key),
                );
            }
            // Go on only to learn the size; what has arrived is dropped.
            front.spool = None;
        } else if let Some(sum) = &mut front.sum {
            // After the write, which has brought the bytes into the processor's cache.
            sum.update(bytes);
        }
        Ok(())
    }

    /// Tells everybody of `len` more bytes, which have landed; `block` has them in memory, too.
    fn arrive(self: &Arc<Self>, front: &mut Front, len: u64, block: Option<Bytes>) {
        let start = front.position;
        let end = start + len;
        front.position = end;
        let mut state = self.state.lock();
        state.position = end;
        state.frontier = state.frontier.max(end);
        let mut oldest = None;
        if front.spool.is_some() {
            // First, so that who is woken finds it.
            oldest = block.and_then(|block| state.window.push(start, block));
            state.arrived(start..end);
        }
        self.note_progress(state, len);
        drop(oldest);
    }

    /// Sets disk space aside before it is written; a disk that cannot says so when written.
    fn set_aside(&self, end: u64, done: &mut u64) {
        let Some(expected) = self.expected.filter(|expected| *expected >= SET_ASIDE / 4) else {
            return;
        };
        while *done < end {
            let len = SET_ASIDE.min(expected - *done);
            let flags = rustix::fs::FallocateFlags::KEEP_SIZE;
            match rustix::fs::fallocate(&self.file, flags, *done, len) {
                Ok(()) => *done += len,
                Err(_) => *done = u64::MAX,
            }
        }
    }

    /// Counts bytes that have arrived, and sends for help where that pays.
    fn note_progress(self: &Arc<Self>, mut state: MutexGuard<'_, State>, bytes: u64) {
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
            if let Err(error) = self.fetch_part(&part, None) {
                tracing::debug!("a helper's part failed: {error}");
                let mut state = self.state.lock();
                state.active -= 1;
                state.pace.give_up();
                return;
            }
        }
    }

    /// Fetches what is missing, part by part, with helpers where they pay.
    fn fill_parts(self: &Arc<Self>) -> Result<End, StoreError> {
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
                if self.wait_for_use(&mut state) {
                    return Ok(End::Unused);
                }
            };
            state.claim(&part);
            drop(state);
            self.fetch_part(&part, None)?;
        }
    }

    /// Waits for demand; `true`, and marked, when nobody has used the download for a while.
    fn wait_for_use(&self, state: &mut MutexGuard<'_, State>) -> bool {
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
    fn is_unused(&self, state: &mut State) -> bool {
        if state.users > 0 {
            return false;
        }
        let now = sync::now();
        let since = *state.unused_since.get_or_insert(now);
        let unused = now.saturating_duration_since(since) >= GRACE;
        if unused {
            // Under this lock, so that no new handle gets in.
            state.status = Status::Abandoned;
        }
        unused
    }

    /// Returns where fetching ends for now.
    fn horizon(&self, state: &State) -> u64 {
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

    /// Returns the next part that nobody fetches; `None` if there is none within the horizon.
    fn next_part(&self, state: &State) -> Option<Range<u64>> {
        let size = self.expected?;
        let end = self.horizon(state).min(size);
        let taken = state.taken(state.front.as_ref());
        let gap = taken.first_missing(&(0..end))?;
        let part = gap.start..gap.end.min(gap.start + state.pace.part(size - gap.start));
        (part.end == size || part.end - part.start >= LEAST_PART || gap.end < end).then_some(part)
    }

    /// Waits until the first connection may read on.
    fn may_go_on(&self, position: u64) -> Go {
        let mut state = self.state.lock();
        loop {
            if let Some(front) = state.front.clone()
                && position >= front.end
            {
                // It goes on if nobody else has got there yet.
                let next = front.end + state.pace.part(u64::MAX);
                match state.taken(None).first_missing(&(front.end..next)) {
                    Some(free) if free.start == front.end => state.front = Some(free),
                    _ if self.expected == Some(position) => {}
                    _ => return Go::Overtaken,
                }
            }
            // Of one whose size is not known yet, somebody may wait for that.
            if self.expected.is_none_or(|expected| position >= expected) {
                return Go::On;
            }
            if position < self.horizon(&state) {
                // A slow server could keep it up for hours.
                return match self.is_unused(&mut state) {
                    true => Go::Unused,
                    false => Go::On,
                };
            }
            if self.wait_for_use(&mut state) {
                return Go::Unused;
            }
        }
    }

    /// Fetches a part that is marked as being fetched: for a reader, within its deadline, or as
    /// a helper, as long as anybody uses the download.
    pub(super) fn fetch_part(
        self: &Arc<Self>,
        part: &Range<u64>,
        reader: Option<Deadline>,
    ) -> Result<(), StoreError> {
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
    ) -> Result<(), StoreError> {
        let deadline = reader.unwrap_or_else(|| Deadline::after(PART_DEADLINE));
        let mut body = self.origin.range(part.clone(), deadline)?;
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
            self.file
                .write_all_at(&buffer[..n], at)
                .map_err(disk_error)?;
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
                    return Ok(());
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
        Ok(())
    }
}
