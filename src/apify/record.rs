//! One record over HTTP: conditional and partial gets, heads, and what their headers say.

use std::io::{Cursor, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use reqwest::header::{
    ACCEPT_ENCODING, HeaderValue, IF_MATCH, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE, RANGE,
};

use super::answer::{Answer, ContentRange, answer_of, meta_of};
use super::call::{Call, Purpose};
use super::errors::{Failure, Subject};
use super::http::{HttpClient, header};
use super::resume::ResumingBody;
use super::token::Token;
use super::transport::Reply;
use crate::base::clock::Deadline;
use crate::base::redact::SafeUrl;
use crate::metrics::transfers::{Direction, Metered};
use crate::store::{
    ETag, Encoding, ErrorKind, Fetched, GetOutcome, GetRequest, Key, Priority, RecordMeta, Result,
    StoreError, Validator,
};

/// The encodings that records are stored with: asking for them gets the stored bytes verbatim.
const STORED_ENCODINGS: HeaderValue = HeaderValue::from_static("gzip, br, deflate");

/// Access to records by address.
#[derive(Clone, Debug)]
pub struct RecordApi {
    /// Sends the requests.
    pub http: Arc<HttpClient>,
    /// The token they may carry.
    pub token: Option<Arc<Token>>,
    /// What its answers have shown so far.
    shown: Arc<Shown>,
}

/// What a server's answers about records have shown.
#[derive(Debug, Default)]
struct Shown {
    /// It has refused HEAD, which need not be tried again.
    refuses_head: AtomicBool,
    /// Records have strong entity tags.
    strong_tags: AtomicBool,
    /// Records have the time of their last change.
    dates: AtomicBool,
}

/// The conditions of a get.
#[derive(Debug, Default)]
pub struct Conditions<'a> {
    /// From this byte on, to before the second one.
    pub range: Option<(u64, Option<u64>)>,
    /// Only if it is not this version.
    pub if_none_match: Option<&'a Validator>,
    /// Only if it is this version.
    pub if_match: Option<&'a ETag>,
    /// The range only if it is this version, else the whole.
    pub if_range: Option<&'a ETag>,
    /// Its priority, by what waits for it.
    pub priority: Priority,
}

fn protocol(key: &Key, status: u16, message: &str) -> StoreError {
    StoreError::new(ErrorKind::Protocol, message)
        .with_status(status, None)
        .with_key(key)
}

impl RecordApi {
    /// Returns access to records with this token, or without.
    pub fn new(http: Arc<HttpClient>, token: Option<Arc<Token>>) -> Self {
        Self {
            http,
            token,
            shown: Arc::default(),
        }
    }

    /// Returns the same without the token.
    pub fn without_token(&self) -> Self {
        Self {
            token: None,
            ..self.clone()
        }
    }

    /// Never sends HEAD from now on.
    pub fn avoid_head(&self) {
        self.shown.refuses_head.store(true, Ordering::Relaxed);
    }

    /// Returns whether the server has not refused HEAD so far.
    pub fn answers_head(&self) -> bool {
        !self.shown.refuses_head.load(Ordering::Relaxed)
    }

    /// Notes the validators that a record's answer has.
    fn note_validators(&self, meta: &RecordMeta) {
        if meta.strong_etag().is_some() {
            self.shown.strong_tags.store(true, Ordering::Relaxed);
        }
        if meta.last_modified.is_some() {
            self.shown.dates.store(true, Ordering::Relaxed);
        }
    }

    /// Returns the new version's data from the answer to a PUT.
    ///
    /// Its headers describe the answer's own body, such as `{}`, as much as the record. So they
    /// count only where the store's records have been seen with the like: the platform tags the
    /// `{}`, and its records have no tags.
    pub fn validators_of_put(&self, reply: &Reply) -> (Option<ETag>, Option<Arc<str>>) {
        let meta = meta_of(reply);
        let has = |shown: &AtomicBool| shown.load(Ordering::Relaxed);
        (
            meta.etag
                .filter(|etag| etag.is_strong() && has(&self.shown.strong_tags)),
            meta.last_modified.filter(|_| has(&self.shown.dates)),
        )
    }

    /// Returns a call with the token.
    pub fn call<'a>(&'a self, purpose: Purpose, target: SafeUrl, subject: Subject<'a>) -> Call<'a> {
        Call {
            token: self.token.as_deref(),
            ..Call::new(purpose, target, subject)
        }
    }

    /// As [`crate::store::Store::get`].
    ///
    /// # Errors
    /// As [`crate::store::Store::get`].
    pub fn get(
        &self,
        target: SafeUrl,
        key: &Key,
        request: &GetRequest,
        deadline: Deadline,
    ) -> Result<GetOutcome> {
        let range = request.range.clone().filter(|range| !range.is_empty());
        let conditions = Conditions {
            range: range.as_ref().map(|range| (range.start, Some(range.end))),
            if_none_match: request.if_none_match.as_ref(),
            if_match: request.if_match.as_ref(),
            if_range: None,
            priority: request.priority,
        };
        let mut answer = self.fetch(&target, key, &conditions, deadline)?;
        if answer.status == 304
            && let Some(known) = &request.if_none_match
            && contradicts(&answer.meta, known)
        {
            // The record is unchanged, and it is another version: the record itself will tell.
            let unconditional = Conditions {
                if_none_match: None,
                ..conditions
            };
            answer = self.fetch(&target, key, &unconditional, deadline)?;
        }
        let Answer {
            status,
            mut meta,
            part,
            is_delimited,
            body,
        } = answer;
        if status == 304 {
            return match &request.if_none_match {
                Some(known) if !contradicts(&meta, known) => Ok(GetOutcome::NotModified),
                _ => Err(protocol(
                    key,
                    status,
                    "the server answered 304 to a request without a condition",
                )),
            };
        }
        if let Some(wanted) = &request.if_match
            && meta.etag.as_ref() != Some(wanted)
        {
            return Err(
                StoreError::new(ErrorKind::Changed, "the record has changed").with_key(key),
            );
        }
        // For servers that ignore conditions: the bytes are spared, by closing the connection.
        if let Some(known) = &request.if_none_match
            && is_version(&meta, known)
        {
            return Ok(GetOutcome::NotModified);
        }
        let (start, end, is_part) = match (status, part, &range) {
            (200, _, _) => (0, meta.stored_size, false),
            (
                206,
                Some(ContentRange {
                    bytes: Some((start, end)),
                    ..
                }),
                Some(range),
            ) if start == range.start && end <= range.end => (start, Some(end), true),
            (
                416,
                Some(ContentRange {
                    total: Some(total), ..
                }),
                Some(range),
            ) if total <= range.start => {
                let meta = RecordMeta {
                    stored_size: Some(total),
                    ..meta
                };
                return Ok(GetOutcome::Found(Fetched {
                    meta,
                    range: Some(total..total),
                    is_delimited: true,
                    body: Box::new(std::io::empty()),
                }));
            }
            _ => {
                return Err(protocol(
                    key,
                    status,
                    "the server's answer does not match the requested part of the record",
                ));
            }
        };
        let transfer = self.http.metrics().transfers.begin(
            key.as_str(),
            Direction::Down,
            end.map(|end| end.saturating_sub(start)),
        );
        let body = ResumingBody::new(
            self.clone(),
            target,
            key.clone(),
            &meta,
            (start, end),
            is_part,
            body,
        );
        let mut body: Box<dyn Read + Send> = Box::new(Metered::new(body, transfer));
        if status == 200 && meta.stored_size.is_none() && is_delimited {
            body = settle_empty(&mut meta, body).map_err(|error| error.with_key(key))?;
        }
        Ok(GetOutcome::Found(Fetched {
            meta,
            range: end.filter(|_| is_part).map(|end| start..end),
            is_delimited,
            body,
        }))
    }

    /// As [`crate::store::Store::head`]; where HEAD is refused, a get with its body dropped.
    ///
    /// # Errors
    /// As [`crate::store::Store::head`].
    pub fn head(&self, target: SafeUrl, key: &Key, deadline: Deadline) -> Result<RecordMeta> {
        if self.answers_head() {
            let mut call = self.call(Purpose::Head, target.clone(), Subject::Record(key));
            call.headers.insert(ACCEPT_ENCODING, STORED_ENCODINGS);
            let found = self
                .http
                .call(&call, None, deadline, |reply| Ok(meta_of(&reply)));
            if let Ok(meta) = &found {
                self.note_validators(meta);
            }
            match &found {
                // No documentation says that HEAD takes signatures.
                Err(error)
                    if error.status() == Some(405)
                        || (self.token.is_none() && matches!(error.status(), Some(401 | 403))) => {}
                _ => return found,
            }
        }
        let answer = self.fetch(&target, key, &Conditions::default(), deadline)?;
        self.avoid_head();
        match answer.status {
            200 => Ok(answer.meta),
            status => Err(protocol(
                key,
                status,
                "the server's answer does not match the request",
            )),
        }
    }

    /// Asks for a record once, retries included.
    ///
    /// # Errors
    /// As [`crate::store::Store::get`]; 304 and 416 are answers.
    pub fn fetch(
        &self,
        target: &SafeUrl,
        key: &Key,
        conditions: &Conditions<'_>,
        deadline: Deadline,
    ) -> Result<Answer> {
        let mut call = self.call(Purpose::Get, target.clone(), Subject::Record(key));
        call.accepts = &[304, 416];
        call.priority = conditions.priority;
        call.headers.insert(ACCEPT_ENCODING, STORED_ENCODINGS);
        if let Some((start, end)) = conditions.range {
            let last = end.map(|end| (end - 1).to_string()).unwrap_or_default();
            call.headers
                .insert(RANGE, header(&format!("bytes={start}-{last}"))?);
        }
        match conditions.if_none_match {
            Some(Validator::ETag(etag)) => {
                call.headers.insert(IF_NONE_MATCH, header(etag.as_str())?);
            }
            Some(Validator::Modified(date, _)) => {
                call.headers.insert(IF_MODIFIED_SINCE, header(date)?);
            }
            None => {}
        }
        for (name, etag) in [
            (IF_MATCH, conditions.if_match),
            (IF_RANGE, conditions.if_range),
        ] {
            if let Some(etag) = etag {
                call.headers.insert(name, header(etag.as_str())?);
            }
        }
        let answer = self.http.call(&call, None, deadline, |reply| {
            let status = Some(reply.status);
            answer_of(reply).map_err(|message| Failure {
                status,
                ..Failure::permanent(ErrorKind::Protocol, message)
            })
        })?;
        if matches!(answer.status, 200 | 206) {
            self.note_validators(&answer.meta);
        }
        Ok(answer)
    }
}

/// Describes an encoded record of no bytes as what it is: no bytes, which need no decoding. Where no
/// length tells, its first byte does.
fn settle_empty(
    meta: &mut RecordMeta,
    mut body: Box<dyn Read + Send>,
) -> Result<Box<dyn Read + Send>> {
    if meta.encoding.is_identity() {
        return Ok(body);
    }
    let mut first = Vec::with_capacity(1);
    let read = body.by_ref().take(1).read_to_end(&mut first);
    read.map_err(|error| StoreError::from_io(error, ErrorKind::Network))?;
    if first.is_empty() {
        (meta.encoding, meta.stored_size) = (Encoding::Identity, Some(0));
    }
    Ok(Box::new(Cursor::new(first).chain(body)))
}

/// Returns whether a 304 names another version than the one that was asked about.
fn contradicts(meta: &RecordMeta, known: &Validator) -> bool {
    match known {
        Validator::ETag(known) => meta
            .etag
            .as_ref()
            .is_some_and(|etag| !same_tag(etag, known)),
        Validator::Modified(date, _) => meta
            .last_modified
            .as_ref()
            .is_some_and(|other| other != date),
    }
}

/// Compares weakly, as `If-None-Match` does.
fn same_tag(one: &ETag, other: &ETag) -> bool {
    one.as_str().trim_start_matches("W/") == other.as_str().trim_start_matches("W/")
}

/// Returns whether an answer describes the version that is already known.
fn is_version(meta: &RecordMeta, known: &Validator) -> bool {
    match known {
        Validator::ETag(known) => meta.etag.as_ref().is_some_and(|etag| same_tag(etag, known)),
        Validator::Modified(date, size) => {
            meta.last_modified.as_ref() == Some(date) && meta.stored_size == Some(*size)
        }
    }
}
