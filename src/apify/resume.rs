//! A record's body that survives broken connections without ever mixing two versions.
//!
//! INVARIANT: the bytes handed out are a prefix of the version that the headers described, and
//! all of it at EOF. After a break there are two ways to go on:
//!
//! - with a strong entity tag, the missing rest is asked for under that tag (RFC 9110, 8.8.1);
//! - else everything is fetched again, and what had been handed out must hash to the same
//!   value as the new transfer's start, and nothing the headers say may differ. The result is
//!   then exactly the newer transfer.
//!
//! Whatever differs is [`ErrorKind::Changed`]. Resumptions are bounded between two bytes of progress by
//! the retry policy, with its time stopped while known bytes come again, and in all by `MAX_RESUMES`.

use std::fmt;
use std::io::{self, Read};
use std::time::Instant;

use twox_hash::XxHash3_128;

use super::answer::Answer;
use super::body::{Broken, HttpBody};
use super::errors::{Failure, Subject};
use super::record::{Conditions, RecordApi};
use super::retry::{RetryState, Verdict};
use crate::base::clock::Deadline;
use crate::base::redact::SafeUrl;
use crate::store::{ErrorKind, Key, RecordMeta, StoreError};

/// The most resumptions of one body.
const MAX_RESUMES: u32 = 20;

/// How many bytes are skipped at once.
const SKIP_LEN: usize = 64 << 10;

/// The stored bytes of one version of a record, or of a part of it.
pub struct ResumingBody {
    api: RecordApi,
    target: SafeUrl,
    key: Key,
    /// What the first answer said, to be held against later ones.
    meta: RecordMeta,
    /// Whether a part was asked for.
    is_part: bool,
    start: u64,
    /// Where the next byte is in the stored record.
    at: u64,
    /// Where the last byte must have been, unless the server does not say.
    end: Option<u64>,
    /// Of all bytes handed out; only kept where there is no strong entity tag.
    hash: Option<Box<XxHash3_128>>,
    body: HttpBody,
    resumes: u32,
    /// The course of resuming since the last progress, and where that was.
    retry: Option<(RetryState, Deadline, u64)>,
    failed: Option<StoreError>,
}

/// Why going on did not work.
enum Setback {
    /// The new transfer broke too, and perhaps bytes had come.
    Broken(Broken, bool),
    /// It cannot work.
    Failed(StoreError),
}

impl From<StoreError> for Setback {
    fn from(error: StoreError) -> Self {
        Self::Failed(error)
    }
}

impl ResumingBody {
    /// Wraps the body of an answer that described `meta` and holds the bytes `span`.
    pub fn new(
        api: RecordApi,
        target: SafeUrl,
        key: Key,
        meta: &RecordMeta,
        span: (u64, Option<u64>),
        is_part: bool,
        body: HttpBody,
    ) -> Self {
        Self {
            api,
            target,
            key,
            hash: meta.strong_etag().is_none().then(Box::default),
            meta: meta.clone(),
            is_part,
            start: span.0,
            at: span.0,
            end: span.1,
            body,
            resumes: 0,
            retry: None,
            failed: None,
        }
    }

    fn step(&mut self, buffer: &mut [u8]) -> Result<usize, StoreError> {
        loop {
            // A resumed part may come as the whole record, of which the rest is not wanted.
            let wanted = match self.end.filter(|_| self.is_part) {
                Some(end) if self.at == end => return Ok(0),
                Some(end) => usize::try_from(end - self.at)
                    .map_or(buffer.len(), |left| left.min(buffer.len())),
                None => buffer.len(),
            };
            let broken = match self.body.read(&mut buffer[..wanted]) {
                Ok(0) if self.end.is_none_or(|end| self.at == end) => return Ok(0),
                Ok(0) => Broken::Lost("the answer ended before its announced length".into()),
                Ok(len) => return self.hand_out(&buffer[..len]),
                Err(broken) => broken,
            };
            self.resume(broken)?;
        }
    }

    fn hand_out(&mut self, bytes: &[u8]) -> Result<usize, StoreError> {
        self.at += bytes.len() as u64;
        if self.end.is_some_and(|end| self.at > end) {
            return Err(StoreError::new(
                ErrorKind::Protocol,
                "the server sent more bytes than it announced",
            ));
        }
        if let Some(hash) = &mut self.hash {
            hash.write(bytes);
        }
        Ok(bytes.len())
    }

    /// Gets a new transfer that goes on where the broken one ended.
    fn resume(&mut self, mut broken: Broken) -> Result<(), StoreError> {
        loop {
            let options = *self.api.http.options();
            let (mut state, deadline) = match self.retry {
                Some((state, deadline, at)) if at == self.at => (state, deadline),
                _ => (
                    RetryState::new(options.retry, Instant::now()),
                    Deadline::after(options.resume_timeout),
                ),
            };
            self.resumes += 1;
            let delay = (self.resumes <= MAX_RESUMES)
                .then(|| {
                    state.next_delay(Verdict::TRANSIENT, deadline.remaining(), fastrand::f64())
                })
                .flatten();
            let Some(delay) = delay else {
                let (attempts, elapsed) = (state.attempt(), state.elapsed(Instant::now()));
                let subject = Subject::Record(&self.key);
                return Err(Failure::from(broken).into_error(subject, attempts, elapsed));
            };
            self.retry = Some((state, deadline, self.at));
            tracing::debug!(key = %self.key, at = self.at, reason = %broken, "resuming a record");
            std::thread::sleep(delay);
            self.api.http.count_repeat();
            match self.reopen(deadline) {
                Ok(()) => return Ok(()),
                Err(Setback::Broken(again, has_moved)) => {
                    broken = again;
                    if has_moved && let Some((_, deadline, _)) = &mut self.retry {
                        // While bytes come, what they are for is not given up: only attempts count.
                        *deadline = Deadline::after(options.resume_timeout);
                    }
                }
                Err(Setback::Failed(error)) if error.kind() == ErrorKind::NotFound => {
                    return Err(self.changed("the record was deleted while it was read"));
                }
                Err(Setback::Failed(error)) => return Err(error),
            }
        }
    }

    fn reopen(&mut self, deadline: Deadline) -> Result<(), Setback> {
        let etag = self.meta.strong_etag();
        // Where the end is not known, the rest may be empty, and no range can ask for that.
        let from = match (etag, self.end) {
            (Some(_), Some(_)) => self.at,
            _ => self.start,
        };
        let range = (self.is_part || from > 0)
            .then_some((from, if self.is_part { self.end } else { None }));
        let conditions = Conditions {
            range,
            if_match: etag,
            if_range: etag.filter(|_| range.is_some()),
            ..Conditions::default()
        };
        let mut answer = self
            .api
            .fetch(&self.target, &self.key, &conditions, deadline)?;
        self.check_version(&answer)?;
        let begins_at = match (answer.status, answer.part.and_then(|part| part.bytes)) {
            (200, _) => 0,
            (206, Some((start, end)))
                if start == from && self.end.is_none_or(|whole| end <= whole) =>
            {
                start
            }
            (416, _) => return Err(self.changed("the record has become shorter").into()),
            (status, _) => {
                return Err(StoreError::new(
                    ErrorKind::Protocol,
                    "the server's answer does not continue where the broken one ended",
                )
                .with_status(status, None)
                .into());
            }
        };
        // The part before the one that was asked for has not been handed out, nor hashed.
        let before = self.start.saturating_sub(begins_at);
        let again = self.at - self.start.max(begins_at);
        let mut hash = self.hash.is_some().then(XxHash3_128::new);
        if !skip(&mut answer.body, before, None)? || !skip(&mut answer.body, again, hash.as_mut())?
        {
            return Err(self.changed("the record has become shorter").into());
        }
        if hash.map(|hash| hash.finish_128()) != self.hash.as_ref().map(|hash| hash.finish_128()) {
            return Err(self.changed("the record changed while it was read").into());
        }
        if !self.is_part {
            self.end = self.end.or(answer.meta.stored_size);
        }
        self.body = answer.body;
        Ok(())
    }

    /// Holds a later answer against what the first one said.
    fn check_version(&self, answer: &Answer) -> Result<(), StoreError> {
        if answer.status == 416 {
            return Ok(());
        }
        let (old, new) = (&self.meta, &answer.meta);
        let same_size = match (old.stored_size, new.stored_size) {
            (Some(old), Some(new)) => old == new,
            _ => true,
        };
        // A part may come without the other headers (RFC 9110, 15.3.7). Then the tag says all, but for
        // what some caches change without changing the tag: the encoding, and with it the size.
        let both_sizes = old.stored_size.is_some() && new.stored_size.is_some();
        let is_silent = answer.status == 206 && new.encoding.is_identity() && both_sizes;
        let same_encoding = old.encoding == new.encoding || is_silent;
        let same_headers = old.strong_etag().is_some()
            || (old.last_modified == new.last_modified
                && old.encoding == new.encoding
                && old.content_type == new.content_type);
        if old.etag != new.etag || !same_headers || !same_encoding || !same_size {
            return Err(self.changed("the record changed while it was read"));
        }
        Ok(())
    }

    fn changed(&self, message: &str) -> StoreError {
        StoreError::new(ErrorKind::Changed, message).with_key(&self.key)
    }
}

/// Reads bytes that are already known, into a hash where they must be compared; `false` if the
/// body, though complete, has fewer.
fn skip(
    body: &mut HttpBody,
    mut count: u64,
    mut hash: Option<&mut XxHash3_128>,
) -> Result<bool, Setback> {
    if count == 0 {
        return Ok(true);
    }
    let all = count;
    let mut scratch = vec![0; SKIP_LEN];
    while count > 0 {
        let is_there = body
            .fill(None)
            .map_err(|broken| Setback::Broken(broken, count < all))?;
        if !is_there {
            return Ok(false);
        }
        let most = usize::try_from(count).map_or(SKIP_LEN, |count| count.min(SKIP_LEN));
        let len = body.take(&mut scratch[..most]);
        if let Some(hash) = &mut hash {
            hash.write(&scratch[..len]);
        }
        count -= len as u64;
    }
    Ok(true)
}

impl Read for ResumingBody {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if let Some(error) = &self.failed {
            return Err(error.duplicate().into());
        }
        if buffer.is_empty() {
            return Ok(0);
        }
        self.step(buffer).map_err(|error| {
            let error = error.with_key(&self.key);
            self.failed = Some(error.duplicate());
            error.into()
        })
    }
}

impl fmt::Debug for ResumingBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResumingBody")
            .field("key", &self.key)
            .field("at", &self.at)
            .field("end", &self.end)
            .finish_non_exhaustive()
    }
}
