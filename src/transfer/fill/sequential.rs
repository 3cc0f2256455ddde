//! The connection that fills a download front to back.

use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::readahead::Waited;
use super::{CHUNK, End};
use crate::base::sync;
use crate::base::units::KIB;
use crate::disk::Spool;
use crate::store::{ErrorKind, StoreError};
use crate::transfer::download::{Download, read_some};
use crate::transfer::file::CACHE_HINT;
use crate::transfer::stream::Body;
use crate::transfer::window::Block;

/// Bytes read before they are written: what stays in the processor's own cache.
const PIECE: usize = 256 * KIB as usize;
/// How long bytes are gathered for one write while no reader waits for exactly them.
const GATHER: Duration = Duration::from_millis(5);
/// Disk space set aside at once: cheaper than block by block.
const SET_ASIDE: u64 = 32 << 20;

/// Whether the first connection goes on.
enum Go {
    On,
    /// What comes next is here or on its way over another connection.
    Overtaken,
    Ended(End),
}

/// Where the bytes of the first connection go.
pub(super) struct Front {
    pub(super) position: u64,
    /// Gone when there is no more room; the rest is then read only to learn the size.
    pub(super) spool: Option<Spool>,
    /// Up to where disk space has been set aside.
    set_aside: u64,
}

impl Front {
    pub(super) fn new(spool: Spool) -> Self {
        Self {
            position: 0,
            spool: Some(spool),
            set_aside: 0,
        }
    }
}

impl Download {
    pub(super) fn fill_front(
        self: &Arc<Self>,
        front: &mut Front,
        head: &[u8],
        mut body: Body,
    ) -> Result<End, StoreError> {
        let mut scratch = Vec::new();
        self.state.lock().streaming = true;
        self.land(front, front.position, head)?;
        self.arrive(front, head.len() as u64, None);
        loop {
            match self.may_go_on(front.position) {
                Go::On => {}
                Go::Ended(end) => return Ok(end),
                Go::Overtaken => {
                    drop(body);
                    return self.fill_parts(front);
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
                self.check_end(front.position)?;
                return Ok(End::Whole);
            }
        }
    }

    /// Refuses what ended without telling so, and that a listing says is longer or shorter.
    fn check_end(&self, len: u64) -> Result<(), StoreError> {
        match self.listed {
            Some(listed) if listed != len => Err(StoreError::new(
                ErrorKind::Protocol,
                format!("the connection ended after {len} bytes, the listing says {listed}"),
            )
            .with_key(&self.origin.key)),
            _ => Ok(()),
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

    /// Reads from the body until `room` is full, a reader waits for just these bytes, or they come
    /// too slowly to wait for more. Fewer than one byte means the end.
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

    /// Returns whether a reader waits for nothing beyond `range`.
    fn is_awaited(&self, range: Range<u64>) -> bool {
        let state = self.state.lock();
        state
            .waiting
            .iter()
            .any(|waiting| range.start < waiting.wanted.end && waiting.wanted.end <= range.end)
    }

    /// Notes bytes, and writes them to disk as long as there is room.
    fn land(&self, front: &mut Front, at: u64, bytes: &[u8]) -> Result<(), StoreError> {
        let end = at + bytes.len() as u64;
        if bytes.is_empty() {
            return Ok(());
        }
        if self.expected.is_some_and(|expected| end > expected) {
            return Err(StoreError::new(
                ErrorKind::Protocol,
                "the record is longer than its declared length",
            )
            .with_key(&self.origin.key));
        }
        self.prefix.lock().update_at(at, bytes);
        if front.spool.is_none() {
            return Ok(());
        }
        let has_room = self.room.take(bytes.len() as u64);
        if has_room {
            self.set_aside(end, &mut front.set_aside);
        }
        let kept = has_room
            && self
                .put(bytes, at)
                .inspect_err(|error| tracing::warn!("cache disk: {error}"))
                .is_ok();
        if !kept {
            if self.expected.is_some() {
                return Err(
                    StoreError::new(ErrorKind::Disk, "cannot write to the cache folder")
                        .with_hint(CACHE_HINT)
                        .with_key(&self.origin.key),
                );
            }
            // Go on only to learn the size; what has arrived is dropped.
            front.spool = None;
        }
        Ok(())
    }

    /// Announces `len` more bytes, which are written; `block` has them in memory, too.
    fn arrive(self: &Arc<Self>, front: &mut Front, len: u64, block: Option<Bytes>) {
        let start = front.position;
        let end = start + len;
        front.position = end;
        let mut state = self.state.lock();
        state.position = end;
        state.frontier = state.frontier.max(end);
        let mut oldest = None;
        if front.spool.is_some() {
            // First, so that woken readers find it.
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

    /// Waits until the first connection may read on.
    fn may_go_on(self: &Arc<Self>, position: u64) -> Go {
        let mut state = self.state.lock();
        loop {
            if let Some(front) = state.front.clone()
                && position >= front.end
            {
                // It goes on if no helper has got there yet.
                let next = front.end + state.pace.part(u64::MAX);
                match state.taken(None).first_missing(&(front.end..next)) {
                    Some(free) if free.start == front.end => state.front = Some(free),
                    _ if self.expected == Some(position) => {}
                    _ => return Go::Overtaken,
                }
            }
            if self.expected.is_some_and(|expected| position >= expected) {
                return Go::On;
            }
            // If the size is not known yet, a caller may wait for it.
            if self.expected.is_none() || position < self.horizon(&state) {
                // A slow server could keep it up for hours.
                return match self.is_unused(&mut state) {
                    true => Go::Ended(End::Unused),
                    false => Go::On,
                };
            }
            match self.wait_for_use(&mut state) {
                Waited::Wanted => {}
                Waited::Enough => return Go::Ended(End::Enough),
                Waited::Unused => return Go::Ended(End::Unused),
            }
        }
    }
}
