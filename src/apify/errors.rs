//! Turns failures on the wire into [`StoreError`]s: the one table of HTTP answers.

use std::borrow::Cow;
use std::error::Error;
use std::fmt::{self, Write};
use std::time::{Duration, SystemTime};

use reqwest::header::{HeaderMap, RETRY_AFTER};

use super::retry::{Verdict, parse_retry_after};
use super::wire::{self, ApiError};
use crate::base::in_use;
use crate::base::redact::Secret;
use crate::store::{ErrorKind, Key, StoreError};

/// What a request is about, for error texts and for what a 404 means.
#[derive(Clone, Copy, Debug)]
pub enum Subject<'a> {
    /// One record.
    Record(&'a Key),
    /// The keys of the store.
    Listing,
    /// The store itself, or a run's.
    Store,
}

impl<'a> Subject<'a> {
    /// Returns the key of the record that it is about.
    pub fn key(self) -> Option<&'a Key> {
        match self {
            Self::Record(key) => Some(key),
            Self::Listing | Self::Store => None,
        }
    }
}

impl fmt::Display for Subject<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Record(_) => f.write_str("the record"),
            Self::Listing => f.write_str("the list of keys"),
            Self::Store => f.write_str("the store"),
        }
    }
}

/// A failed attempt: an error in the making, and whether to try again.
#[derive(Debug)]
pub struct Failure {
    /// What went wrong.
    pub kind: ErrorKind,
    /// In words; without secrets.
    pub message: String,
    /// Whether the request may be repeated.
    pub verdict: Verdict,
    /// The HTTP status, if there was an answer.
    pub status: Option<u16>,
    /// The API's error type.
    pub api_type: Option<String>,
    /// What to do about it, where the kind alone does not say.
    pub hint: Option<Cow<'static, str>>,
    /// Whether the server cannot have acted on the request: it refused it, or was never reached.
    pub not_done: bool,
    /// Whether it was not even sent: there was no time left for its turn to come.
    pub unsent: bool,
}

impl Failure {
    /// Returns a failure that must not be repeated.
    pub fn permanent(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: in_use::cleaned(message.into()),
            verdict: Verdict::Permanent,
            status: None,
            api_type: None,
            hint: None,
            not_done: false,
            unsent: false,
        }
    }

    /// Returns a failure that may be repeated.
    pub fn transient(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self {
            verdict: Verdict::TRANSIENT,
            ..Self::permanent(kind, message)
        }
    }

    /// Returns whether the server could not even be connected to.
    pub fn is_unreached(&self) -> bool {
        self.not_done && self.status.is_none()
    }

    /// Returns the failure that an error answer means. `sent` are the secrets that the request carried
    /// besides those in use.
    pub fn from_answer(
        status: u16,
        headers: &HeaderMap,
        body: &[u8],
        subject: Subject<'_>,
        sent: &[Secret],
        now: SystemTime,
    ) -> Self {
        let ApiError { api_type, message } = ApiError::parse(headers, body, sent);
        if matches!(status, 404 | 410) && api_type.is_none() && wire::is_web_page(headers) {
            return Self::of_gateway(status, subject);
        }
        let kind = kind_of(status, api_type.as_deref(), message.as_deref(), subject);
        let retry_after = || {
            let value = headers.get(RETRY_AFTER)?.to_str().ok()?;
            parse_retry_after(value, now)
        };
        let verdict = match status {
            429 => Verdict::Refused {
                retry_after: retry_after(),
            },
            503 => Verdict::Transient {
                retry_after: retry_after(),
            },
            500.. => Verdict::TRANSIENT,
            // The platform's answer to a body that came too slowly; others carry an error type.
            408 if body.is_empty() => Verdict::TRANSIENT,
            _ => Verdict::Permanent,
        };
        let mut text = format!("{subject} {}", what_happened(kind));
        if let Some(message) = message {
            let _ = write!(text, ": the server says: {message}");
        }
        let hint = match (kind, status, api_type.as_deref()) {
            (ErrorKind::Denied, 401, Some("token-not-provided")) => Some(
                "give a token: APIFY_TOKEN, --token-file, or `apify login`; or use a signed link",
            ),
            (ErrorKind::Denied, 401, _) => Some("the server does not know the token; check it"),
            (ErrorKind::StoreNotFound, _, Some("page-not-found")) => {
                Some("the server has no such API; check --api-url")
            }
            (ErrorKind::InvalidKey, ..) => {
                Some("keys have 1 to 256 of the characters a-z A-Z 0-9 ! - _ . ' ( )")
            }
            (ErrorKind::Quota, ..) => Some("check the account's plan and usage in the Console"),
            _ => None,
        };
        Self {
            verdict,
            status: Some(status),
            api_type,
            hint: hint.map(Cow::Borrowed),
            // A server, or what stands before it, may fail after the work is done.
            not_done: (400..500).contains(&status) && status != 408,
            ..Self::permanent(kind, text)
        }
    }

    /// Returns the failure of an answer that is not the API's: something between here and the server
    /// has answered in its place, and whether the server knows of the request is not known.
    pub fn of_gateway(status: u16, subject: Subject<'_>) -> Self {
        let text = format!(
            "{subject} {}: the answer is not the API's, but that of a gateway or proxy before it",
            what_happened(ErrorKind::Server)
        );
        Self {
            status: Some(status),
            hint: Some(Cow::Borrowed(
                "the API may be down for the moment; check --api-url, and what the network's proxy says",
            )),
            ..Self::transient(ErrorKind::Server, text)
        }
    }

    /// Marks a failure to send anything at all.
    pub fn before_sending(self) -> Self {
        Self {
            not_done: true,
            ..self
        }
    }

    /// Makes the error of it, after `attempts` attempts in `elapsed` time.
    pub fn into_error(self, subject: Subject<'_>, attempts: u32, elapsed: Duration) -> StoreError {
        let mut message = self.message;
        if attempts > 1 {
            let seconds = elapsed.as_secs_f64();
            let _ = write!(
                message,
                "; gave up after {attempts} attempts in {seconds:.1} s"
            );
        }
        if let Verdict::Transient {
            retry_after: Some(wait),
        }
        | Verdict::Refused {
            retry_after: Some(wait),
        } = self.verdict
        {
            let _ = write!(message, "; the server asks to wait {} s", wait.as_secs());
        }
        let mut error = StoreError::new(self.kind, message);
        if let Some(status) = self.status {
            error = error.with_status(status, self.api_type);
        }
        if let Some(hint) = self.hint {
            error = error.with_hint(hint);
        }
        match subject {
            Subject::Record(key) => error.with_key(key),
            _ => error,
        }
    }
}

impl From<StoreError> for Failure {
    /// Wraps an error that was found in an answer, such as a page that cannot be right.
    fn from(error: StoreError) -> Self {
        Self {
            status: error.status(),
            hint: error.hint().map(|hint| hint.to_owned().into()),
            ..Self::permanent(error.kind(), error.to_string())
        }
    }
}

fn kind_of(
    status: u16,
    api_type: Option<&str>,
    message: Option<&str>,
    subject: Subject<'_>,
) -> ErrorKind {
    match (status, api_type) {
        (400 | 413, Some("record-too-large" | "request-too-large")) | (413, _) => {
            ErrorKind::TooLarge
        }
        (400, Some("invalid-record-key")) | (414, _) => ErrorKind::InvalidKey,
        (402, _) => ErrorKind::Quota,
        (401 | 403, _) => ErrorKind::Denied,
        (404 | 410, Some("page-not-found")) => ErrorKind::StoreNotFound,
        (404 | 410, _) => {
            // A missing store and a missing record have the same type; the text tells them apart.
            let about_store = message.is_some_and(|message| {
                let message = message.to_ascii_lowercase();
                message.contains("store")
                    || message.contains("run was")
                    || message.contains("actor was")
            });
            match subject {
                Subject::Record(_) if !about_store => ErrorKind::NotFound,
                _ => ErrorKind::StoreNotFound,
            }
        }
        (405 | 415, _) => ErrorKind::Unsupported,
        (408, _) => ErrorKind::Timeout,
        (412, _) => ErrorKind::Changed,
        (429, _) => ErrorKind::RateLimited,
        (500.., _) => ErrorKind::Server,
        _ => ErrorKind::Protocol,
    }
}

fn what_happened(kind: ErrorKind) -> &'static str {
    match kind {
        ErrorKind::NotFound => "does not exist",
        ErrorKind::StoreNotFound => "is not available: the store does not exist or may not be seen",
        ErrorKind::Denied => "may not be accessed",
        ErrorKind::SignatureExpired => "may no longer be accessed: the signature has expired",
        ErrorKind::InvalidKey => "has a key that the server does not accept",
        ErrorKind::TooLarge => "is too large for the server",
        ErrorKind::Quota => "is not served: the account's quota is used up",
        ErrorKind::Changed => "has changed",
        ErrorKind::RateLimited => "is not served: too many requests",
        ErrorKind::Timeout => "was not served in time",
        ErrorKind::Network => "could not be reached",
        ErrorKind::Server => "is not served: the server has failed",
        ErrorKind::Unsupported => "does not support this request",
        ErrorKind::Protocol | ErrorKind::Corrupt | ErrorKind::Disk => "got an unexpected answer",
    }
}

/// Puts an error and its causes into one line, without what repeats.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            let _ = write!(text, ": {cause_text}");
        }
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure(status: u16, body: &str, subject: Subject<'_>) -> Failure {
        let now = SystemTime::UNIX_EPOCH;
        Failure::from_answer(
            status,
            &HeaderMap::new(),
            body.as_bytes(),
            subject,
            &[],
            now,
        )
    }

    fn api(api_type: &str, message: &str) -> String {
        format!(r#"{{"error":{{"type":"{api_type}","message":"{message}"}}}}"#)
    }

    #[test]
    fn the_table_of_answers() {
        let key = Key::new("k").expect("a key");
        let record = Subject::Record(&key);
        for (status, body, kind) in [
            (
                404,
                api("record-not-found", "Record was not found"),
                ErrorKind::NotFound,
            ),
            (
                404,
                api("record-not-found", "Key-value Store was not found"),
                ErrorKind::StoreNotFound,
            ),
            (404, String::new(), ErrorKind::NotFound),
            (
                404,
                api("page-not-found", "We have bad news"),
                ErrorKind::StoreNotFound,
            ),
            (401, api("token-not-provided", "x"), ErrorKind::Denied),
            (403, api("insufficient-permissions", "x"), ErrorKind::Denied),
            (402, api("x402-payment-required", "x"), ErrorKind::Quota),
            (400, api("invalid-record-key", "x"), ErrorKind::InvalidKey),
            (400, api("record-too-large", "x"), ErrorKind::TooLarge),
            (400, api("invalid-request", "x"), ErrorKind::Protocol),
            (405, String::new(), ErrorKind::Unsupported),
            (412, String::new(), ErrorKind::Changed),
            (413, "<html>".into(), ErrorKind::TooLarge),
            (415, String::new(), ErrorKind::Unsupported),
            (418, String::new(), ErrorKind::Protocol),
        ] {
            let failure = failure(status, &body, record);
            assert_eq!(failure.kind, kind, "{status} {body}");
            assert_eq!(failure.verdict, Verdict::Permanent, "{status} {body}");
        }
        for (status, kind) in [
            (408, ErrorKind::Timeout),
            (500, ErrorKind::Server),
            (503, ErrorKind::Server),
            (599, ErrorKind::Server),
        ] {
            let failure = failure(status, "", record);
            assert_eq!(failure.kind, kind, "{status}");
            assert_eq!(failure.verdict, Verdict::TRANSIENT, "{status}");
        }
        let refused = failure(429, "", record);
        assert_eq!(refused.kind, ErrorKind::RateLimited);
        assert!(matches!(refused.verdict, Verdict::Refused { .. }));
        let slow = failure(408, &api("operation-timed-out", "x"), record);
        assert_eq!(slow.verdict, Verdict::Permanent);
        assert_eq!(
            failure(404, "", Subject::Listing).kind,
            ErrorKind::StoreNotFound
        );
    }

    #[test]
    fn the_error_says_how_hard_it_was_tried() {
        let key = Key::new("k").expect("a key");
        let error = failure(500, "", Subject::Record(&key)).into_error(
            Subject::Record(&key),
            8,
            Duration::from_millis(2340),
        );
        assert_eq!(
            error.to_string(),
            "the record is not served: the server has failed; gave up after 8 attempts in 2.3 s (HTTP 500)"
        );
        assert_eq!(error.key(), Some(&key));
    }
}
