//! Reading a record straight from the store, for contents that no cache can hold.

use std::collections::VecDeque;
use std::fmt;
use std::io::Read;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use super::prefix::Prefix;
use crate::base::clock::{Deadline, Wait};
use crate::base::sync::atomic::{AtomicBool, Ordering};
use crate::base::sync::{Condvar, Mutex};
use crate::base::units::{KIB, MIB};
use crate::store::codec::{self, DecoderMemory, Turn, has_made_way};
use crate::store::wait::{Result, may_block, timed_out, wait_until};
use crate::store::{ErrorKind, GetOutcome, GetRequest, Key, RecordMeta, Store, StoreError};

/// Bytes read from the body at once.
const CHUNK: usize = 256 * KIB as usize;
/// How far behind the stream a read may be: the kernel's readahead asks out of order.
const LOOKBACK: u64 = 8 * MIB;
/// A read farther ahead than this starts a new request where the server honours ranges.
const SKIP: u64 = 4 * MIB;

/// The first fetch after a jump: as much as a new connection brings in two round trips (TCP's slow start
/// begins with 14 KiB), and one that has been used in one.
pub(super) const FIRST_PART: u64 = 32 * KIB;
/// What is fetched at most at once of a record that is downloaded besides.
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
    /// Set once the server has sent all of the record instead of a part.
    pub refuses_ranges: Arc<AtomicBool>,
}

impl Origin {
    /// Makes the origin of a version.
    pub fn new(store: Arc<dyn Store>, key: Key, meta: RecordMeta, raw: bool) -> Self {
        Self {
            store,
            key,
            meta,
            raw,
            refuses_ranges: Arc::default(),
        }
    }

    /// Returns whether parts of the content can be fetched by themselves, all of one version.
    pub fn has_ranges(&self) -> bool {
        (self.raw || self.meta.encoding.is_identity())
            && self.meta.accepts_ranges
            && self.meta.strong_etag().is_some()
            && !self.refuses_ranges.load(Ordering::Relaxed)
    }

    /// Fetches a part of the content; only where [`Origin::has_ranges`]. `None` when the server sends
    /// all of it instead, of which nothing is read: from then on there are no ranges.
    pub fn range(&self, range: Range<u64>, deadline: Deadline) -> Result<Option<Body>, StoreError> {
        let request = GetRequest {
            range: Some(range.clone()),
            if_match: self.meta.strong_etag().cloned(),
            ..GetRequest::default()
        };
        let found = match self.store.get(&self.key, &request, deadline)? {
            GetOutcome::Found(found) => found,
            GetOutcome::NotModified => {
                return Err(self.protocol("304 for a request without a condition"));
            }
        };
        // Some servers keep a tag over encodings; a part may come without the other headers.
        let is_part = found.range.is_some();
        let same_encoding = found.meta.encoding == self.meta.encoding
            || (is_part && found.meta.encoding.is_identity());
        let same_size = match (found.meta.stored_size, self.meta.stored_size) {
            (Some(now), Some(then)) => now == then,
            _ => true,
        };
        if found.meta.etag != self.meta.etag || !same_encoding || !same_size {
            return Err(self.changed());
        }
        match found.range {
            Some(sent) if sent.start == range.start => {
                Ok(Some(Box::new(found.body.take(range.end - range.start))))
            }
            Some(_) => Err(self.protocol("the server sent another part than requested")),
            None => {
                tracing::debug!("{}: the server sends no parts", self.key);
                self.refuses_ranges.store(true, Ordering::Relaxed);
                Ok(None)
            }
        }
    }

    /// Fetches the content from its start, decoded as the mount wants it. That it is the same version
    /// is proven by its bytes only ([`super::prefix`]), unless it has a strong entity tag.
    pub fn whole(&self, deadline: Deadline) -> Result<Body, StoreError> {
        match self
            .store
            .get(&self.key, &GetRequest::default(), deadline)?
        {
            GetOutcome::Found(found) if !self.may_be(&found.meta) => Err(self.changed()),
            GetOutcome::Found(found) if self.raw => Ok(found.body),
            GetOutcome::Found(found) => codec::decoder(
                &found.meta.encoding,
                found.body,
                DecoderMemory::of_process(),
                Turn::Reader(deadline),
            ),
            GetOutcome::NotModified => Err(self.protocol("304 for a request without a condition")),
        }
    }

    /// Returns whether an answer may be of this version, as far as its headers tell.
    fn may_be(&self, meta: &RecordMeta) -> bool {
        let sizes = (meta.stored_size, self.meta.stored_size);
        meta.validator() == self.meta.validator()
            && (meta.encoding == self.meta.encoding || !self.raw)
            && !matches!(sizes, (Some(now), Some(then)) if now != then && meta.encoding == self.meta.encoding)
    }

    pub(super) fn changed(&self) -> StoreError {
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
    /// What has been read of the content so far, from its start: a body that begins again must
    /// begin the same.
    prefix: Prefix,
    /// While such a body has not come as far as the one before.
    proving: Option<Proving>,
}

/// A body that has begun again: nothing of it is handed out before it was compared.
#[derive(Default)]
struct Proving {
    again: Prefix,
    /// Up to here it is the same.
    proven: u64,
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stream")
            .field("position", &self.position)
            .finish_non_exhaustive()
    }
}

impl StreamReader {
    /// Makes a stream of `size` content bytes; `body`, if any, is at its start. `prefix` is what has
    /// been read of this version already.
    pub fn new(origin: Origin, size: u64, body: Option<Body>, prefix: Prefix) -> Self {
        let stream = Stream {
            prefix,
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
            if stream.proving.take().is_some() {
                // Of another version, perhaps.
                stream.window.clear();
            }
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
            // A content of which only its end is proof is gone through first, however long it is.
            let is_behind =
                wanted.start < window_start && !stream.is_on_the_way_to_proof_of(wanted.end);
            if stream.body.is_none() || is_behind || far {
                stream.body = None;
                stream.window.clear();
                stream.next_part = FIRST_PART;
                self.restart(stream, &wanted, deadline)?;
            } else if stream.position == stream.end {
                self.restart(stream, &(stream.position..wanted.end), deadline)?;
            }
            match self.advance(stream) {
                // Its reader was away: it begins again.
                Err(error) if has_made_way(&error) => (stream.body, stream.proving) = (None, None),
                advanced => advanced?,
            }
        }
    }

    /// Begins another body, for bytes from `wanted` on.
    fn restart(
        &self,
        stream: &mut Stream,
        wanted: &Range<u64>,
        deadline: Deadline,
    ) -> Result<(), StoreError> {
        let offset = wanted.start;
        if self.origin.has_ranges() {
            let mut end = self.size;
            if offset > 0 && stream.next_part <= LAST_PART {
                let part = offset.saturating_add(stream.next_part);
                end = end.min(part.max(wanted.end));
                stream.next_part *= PART_GROWTH;
            }
            if let Some(body) = self.origin.range(offset..end, deadline)? {
                stream.body = Some(body);
                stream.position = offset;
                stream.end = end;
                return Ok(());
            }
        }
        stream.body = Some(self.origin.whole(deadline)?);
        stream.position = 0;
        stream.end = self.size;
        stream.window.clear();
        stream.proving = (!stream.prefix.is_empty()).then(Proving::default);
        Ok(())
    }

    /// Reads the next bytes of the body; while it is being compared, no farther than to the next
    /// place where that can be done.
    fn advance(&self, stream: &mut Stream) -> Result<(), StoreError> {
        let Some(body) = stream.body.as_mut() else {
            return Ok(());
        };
        let proof = stream
            .proving
            .as_ref()
            .map(|proving| stream.prefix.proof(proving.again.len() + 1));
        let most = match (&proof, &stream.proving) {
            (Some(proof), Some(proving)) => (proof.len - proving.again.len()).min(CHUNK as u64),
            _ => CHUNK as u64,
        };
        let mut chunk = Vec::with_capacity(most as usize);
        body.take(most).read_to_end(&mut chunk).map_err(|error| {
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
        if let (Some(proof), Some(proving)) = (proof, &mut stream.proving) {
            proving.again.update(&chunk);
            if proving.again.len() == proof.len {
                if proving.again.hash() != proof.hash {
                    return Err(self.origin.changed());
                }
                proving.proven = proof.len;
                if proof.len == stream.prefix.len() {
                    // The same bytes, with all marks: next time each MiB is proof enough.
                    stream.prefix = std::mem::take(&mut proving.again);
                }
            }
            if proving.proven == stream.prefix.len() {
                stream.proving = None;
            }
        } else {
            stream.prefix.update_at(start, &chunk);
        }
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
    /// Returns whether the bytes before `end` are still to be proven by what comes next.
    fn is_on_the_way_to_proof_of(&self, end: u64) -> bool {
        self.proving.is_some() && self.prefix.proof(end).len > self.position
    }

    /// Returns the wanted bytes if all of them are in the window.
    fn window_range(&self, wanted: &Range<u64>) -> Option<Bytes> {
        let first = self.window.iter().position(|(start, bytes)| {
            (*start..start + bytes.len() as u64).contains(&wanted.start)
        })?;
        let proven = self.proving.as_ref().map(|proving| proving.proven);
        if wanted.end > proven.unwrap_or(self.position) {
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
