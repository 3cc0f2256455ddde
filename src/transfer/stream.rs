//! Reading a record straight from the store, for contents that no cache can hold.

use std::collections::VecDeque;
use std::fmt;
use std::io::Read;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use crate::base::clock::{Deadline, Wait};
use crate::base::sync::{Condvar, Mutex};
use crate::base::units::{KIB, MIB};
use crate::store::wait::{Result, may_block, timed_out, wait_until};
use crate::store::{ErrorKind, GetOutcome, GetRequest, Key, RecordMeta, Store, StoreError, codec};

/// Bytes read from the body at once.
const CHUNK: usize = 256 * KIB as usize;
/// How far behind the stream a read may be: the kernel's readahead asks out of order.
const LOOKBACK: u64 = 8 * MIB;
/// A read farther ahead than this starts a new request where the server honours ranges.
const SKIP: u64 = 4 * MIB;

/// What is fetched first of where somebody has jumped to.
pub(super) const PART: u64 = 512 * KIB;
/// How much more each time that is read to its end; from the last on, all the rest.
const PART_GROWTH: u64 = 4;
const LAST_PART: u64 = 8 * MIB;

/// A readable body.
pub type Body = Box<dyn Read + Send>;

/// Where the bytes of one version of a record come from.
#[derive(Debug, Clone)]
pub struct Origin {
    /// The store.
    pub store: Arc<dyn Store>,
    /// The record.
    pub key: Key,
    /// The version: other bytes than these are refused.
    pub meta: RecordMeta,
    /// Whether stored bytes are the content.
    pub raw: bool,
}

impl Origin {
    /// Tells whether parts of the content can be had by themselves, all of one version.
    pub fn has_ranges(&self) -> bool {
        (self.raw || self.meta.encoding.is_identity())
            && self.meta.accepts_ranges
            && self.meta.strong_etag().is_some()
    }

    /// Fetches a part of the content; only where [`Origin::has_ranges`].
    pub fn range(&self, range: Range<u64>, deadline: Deadline) -> Result<Body, StoreError> {
        let request = GetRequest {
            range: Some(range.clone()),
            if_match: self.meta.strong_etag().cloned(),
            ..GetRequest::default()
        };
        match self.store.get(&self.key, &request, deadline)? {
            GetOutcome::Found(found) if found.meta.etag != self.meta.etag => Err(self.changed()),
            GetOutcome::Found(found) if found.range.as_ref() == Some(&range) => Ok(found.body),
            GetOutcome::Found(mut found) => {
                // The server sent more than it was asked for: skip what comes before.
                let start = found.range.map_or(0, |sent| sent.start);
                let skip = range
                    .start
                    .checked_sub(start)
                    .ok_or_else(|| self.protocol("the range starts too late"))?;
                let skipped =
                    std::io::copy(&mut (&mut found.body).take(skip), &mut std::io::sink())
                        .map_err(|error| StoreError::from_io(error, ErrorKind::Network))?;
                if skipped != skip {
                    return Err(self.protocol("the record ends before the range"));
                }
                Ok(Box::new(found.body.take(range.end - range.start)))
            }
            GetOutcome::NotModified => Err(self.protocol("304 for a request without a condition")),
        }
    }

    /// Fetches the content from its start, decoded as the mount wants it.
    pub fn whole(&self, deadline: Deadline) -> Result<Body, StoreError> {
        match self
            .store
            .get(&self.key, &GetRequest::default(), deadline)?
        {
            GetOutcome::Found(found) if found.meta.validator() != self.meta.validator() => {
                Err(self.changed())
            }
            GetOutcome::Found(found) if self.raw => Ok(found.body),
            GetOutcome::Found(found) => codec::decoder(&found.meta.encoding, found.body),
            GetOutcome::NotModified => Err(self.protocol("304 for a request without a condition")),
        }
    }

    fn changed(&self) -> StoreError {
        StoreError::new(ErrorKind::Changed, "the record changed while it was open")
            .with_key(&self.key)
    }

    fn protocol(&self, what: &str) -> StoreError {
        StoreError::new(ErrorKind::Protocol, what).with_key(&self.key)
    }
}

/// One handle's stream of a content of known size.
///
/// One thread at a time reads from the body; the others wait for it, not past their deadlines.
#[derive(Debug)]
pub struct StreamReader {
    origin: Origin,
    size: u64,
    state: Mutex<Option<Box<Stream>>>,
    returned: Condvar,
}

#[derive(Default)]
struct Stream {
    body: Option<Body>,
    /// Position of the next byte of the body.
    position: u64,
    /// Where the body ends.
    end: u64,
    /// How much to fetch when that is not enough.
    next_part: u64,
    /// What was read last, oldest first.
    window: VecDeque<(u64, Bytes)>,
    /// Whether a body has been started before: the next one must be provably the same version.
    started: bool,
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stream")
            .field("position", &self.position)
            .finish_non_exhaustive()
    }
}

impl StreamReader {
    /// Makes a stream of `size` content bytes; `body`, if any, is at its start.
    pub fn new(origin: Origin, size: u64, body: Option<Body>) -> Self {
        let stream = Stream {
            started: body.is_some(),
            end: size,
            body,
            ..Stream::default()
        };
        Self {
            origin,
            size,
            state: Mutex::new(Some(Box::new(stream))),
            returned: Condvar::new(),
        }
    }

    /// Reads `len` bytes at `offset`, fewer only at the end of the content.
    ///
    /// # Errors
    /// [`ErrorKind::Changed`] when the bytes would have to be fetched again and cannot be
    /// proven to be of the same version; errors of the store.
    pub fn read_at(&self, offset: u64, len: usize, wait: Wait) -> Result<Bytes> {
        let deadline = may_block(wait)?;
        let end = self.size.min(offset.saturating_add(len as u64));
        if offset >= end {
            return Ok(Bytes::new());
        }
        let mut stream = {
            let mut state = self.state.lock();
            loop {
                match state.take() {
                    Some(stream) => break stream,
                    None => wait_until(
                        &self.returned,
                        &mut state,
                        deadline,
                        "another read of this file",
                    )?,
                }
            }
        };
        let result = self.read_range(&mut stream, offset..end, deadline);
        if result.is_err() {
            stream.body = None;
        }
        *self.state.lock() = Some(stream);
        self.returned.notify_all();
        result
    }

    fn read_range(
        &self,
        stream: &mut Stream,
        wanted: Range<u64>,
        deadline: Deadline,
    ) -> Result<Bytes> {
        loop {
            if let Some(bytes) = stream.window_range(&wanted) {
                return Ok(bytes);
            }
            if deadline.remaining().is_none() {
                return Err(timed_out("the record's bytes"));
            }
            let window_start = stream
                .window
                .front()
                .map_or(stream.position, |(start, _)| *start);
            let far = self.origin.has_ranges() && wanted.start > stream.position + SKIP;
            if stream.body.is_none() || wanted.start < window_start || far {
                stream.body = None;
                stream.window.clear();
                stream.next_part = PART;
                self.restart(stream, wanted.start, deadline)?;
            } else if stream.position == stream.end {
                self.restart(stream, stream.position, deadline)?;
            }
            self.advance(stream)?;
        }
    }

    fn restart(
        &self,
        stream: &mut Stream,
        offset: u64,
        deadline: Deadline,
    ) -> Result<(), StoreError> {
        let mut end = self.size;
        let (body, position) = if self.origin.has_ranges() {
            if offset > 0 && stream.next_part <= LAST_PART {
                end = end.min(offset.saturating_add(stream.next_part));
                stream.next_part *= PART_GROWTH;
            }
            (self.origin.range(offset..end, deadline)?, offset)
        } else if stream.started && self.origin.meta.validator().is_none() {
            return Err(StoreError::new(
                ErrorKind::Changed,
                "this record is larger than the cache and its server tells no versions, so it can only be read once, forwards",
            )
            .with_key(&self.origin.key)
            .with_hint("raise --cache-size above the record's size"));
        } else {
            (self.origin.whole(deadline)?, 0)
        };
        stream.started = true;
        stream.body = Some(body);
        stream.position = position;
        stream.end = end;
        Ok(())
    }

    fn advance(&self, stream: &mut Stream) -> Result<(), StoreError> {
        let Some(body) = stream.body.as_mut() else {
            return Ok(());
        };
        let mut chunk = Vec::with_capacity(CHUNK);
        body.take(CHUNK as u64)
            .read_to_end(&mut chunk)
            .map_err(|error| {
                StoreError::from_io(error, ErrorKind::Corrupt).with_key(&self.origin.key)
            })?;
        if chunk.is_empty() {
            return Err(StoreError::new(
                ErrorKind::Protocol,
                format!(
                    "the record ended at byte {} of {}",
                    stream.position, self.size
                ),
            )
            .with_key(&self.origin.key));
        }
        let start = stream.position;
        stream.position += chunk.len() as u64;
        stream.window.push_back((start, chunk.into()));
        while stream
            .window
            .front()
            .is_some_and(|(start, bytes)| start + bytes.len() as u64 + LOOKBACK < stream.position)
        {
            stream.window.pop_front();
        }
        Ok(())
    }
}

impl Stream {
    /// Returns the wanted bytes if all of them are in the window.
    fn window_range(&self, wanted: &Range<u64>) -> Option<Bytes> {
        let first = self.window.iter().position(|(start, bytes)| {
            (*start..start + bytes.len() as u64).contains(&wanted.start)
        })?;
        if wanted.end > self.position {
            return None;
        }
        let (start, bytes) = &self.window[first];
        let from = (wanted.start - start) as usize;
        let len = (wanted.end - wanted.start) as usize;
        if from + len <= bytes.len() {
            return Some(bytes.slice(from..from + len));
        }
        let mut out = Vec::with_capacity(len);
        out.extend_from_slice(&bytes[from..]);
        for (_, bytes) in self.window.range(first + 1..) {
            out.extend_from_slice(&bytes[..bytes.len().min(len - out.len())]);
        }
        Some(out.into())
    }
}
