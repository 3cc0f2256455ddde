//! Turns errors of the library and the storage into errors of stores.

use object_store::Error;

use crate::base::redact;
use crate::store::{ErrorKind, Key, StoreError};

/// What storages call a bucket that is not there.
const NO_BUCKET: [&str; 2] = ["NoSuchBucket", "ContainerNotFound"];

/// What they and the library call a range that begins behind the end.
const PAST_THE_END: [&str; 3] = ["InvalidRange", "416 ", "but object was only"];

/// What they call "fewer requests, please".
const TOO_MUCH: [&str; 5] = [
    "SlowDown",
    "TooManyRequests",
    "ServerBusy",
    "RequestLimitExceeded",
    "Throttling",
];

/// Turns the library's errors into those of stores.
pub(super) fn failed(error: Error, key: Option<&Key>) -> StoreError {
    let said = chain(&error);
    let code = code(&shown(&said));
    let is = |codes: &[&str]| codes.iter().any(|known| said.contains(known));
    let (kind, message, hint) = match &error {
        _ if is(&NO_BUCKET) => (
            ErrorKind::Server,
            "there is no such bucket",
            "make it with the provider's own tools, or check its name and the endpoint",
        ),
        _ if is(&TOO_MUCH) || said.contains("429 Too Many") => (
            ErrorKind::Server,
            "the bucket asks for fewer requests",
            "try again in a moment",
        ),
        _ if is(&PAST_THE_END) => (
            ErrorKind::Protocol,
            "the record ends before the range begins",
            "",
        ),
        Error::NotFound { .. } => (ErrorKind::NotFound, "there is no such record", ""),
        // Writes that met: the storage says so and wants them again.
        Error::AlreadyExists { .. } if said.contains("ConditionalRequestConflict") => (
            ErrorKind::Server,
            "the bucket had two writes at once",
            "try again",
        ),
        Error::AlreadyExists { .. } | Error::Precondition { .. } | Error::NotModified { .. } => (
            ErrorKind::Changed,
            "the record is no longer the version that was asked for",
            "",
        ),
        _ if is_refusal(&error, &said) => (
            ErrorKind::Denied,
            "the bucket may not be used",
            "check the credentials in the variables AWS_…, GOOGLE_… or AZURE_…, what they allow, and this machine's clock",
        ),
        Error::NotSupported { .. } | Error::NotImplemented { .. } => {
            (ErrorKind::Unsupported, "the bucket cannot do that", "")
        }
        Error::InvalidPath { .. } => (
            ErrorKind::InvalidKey,
            "the bucket does not take this key",
            "",
        ),
        _ => (
            ErrorKind::Server,
            "the bucket cannot be asked",
            "check the network, and the endpoint and region in the variables AWS_…, GOOGLE_… or AZURE_…",
        ),
    };
    let mut failed = StoreError::new(kind, message).with_source(shown(&said));
    match kind {
        ErrorKind::Server => failed = failed.with_status(503, code),
        ErrorKind::Denied => failed = failed.with_status(403, code),
        _ => {}
    }
    if !hint.is_empty() {
        failed = failed.with_hint(hint);
    }
    match key {
        Some(key) => failed.with_key(key),
        None => failed,
    }
}

/// The library has no error of its own for refusals of lists, nor for credentials that ended.
fn is_refusal(error: &Error, said: &str) -> bool {
    const CODES: [&str; 8] = [
        "403 Forbidden",
        "401 Unauthorized",
        "ExpiredToken",
        "InvalidAccessKeyId",
        "InvalidToken",
        "SignatureDoesNotMatch",
        "RequestTimeTooSkewed",
        "AuthenticationFailed",
    ];
    matches!(
        error,
        Error::PermissionDenied { .. } | Error::Unauthenticated { .. }
    ) || CODES.iter().any(|code| said.contains(code))
}

/// Returns a text of the library or the storage without secrets: they name the address that was asked,
/// with all that the endpoint was given with.
pub(super) fn shown(text: &str) -> String {
    redact::text(&redact::without_queries(text), &[])
}

/// Returns what an error and its causes say.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut said = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let more = inner.to_string();
        if !said.contains(&more) {
            said = format!("{said}: {more}");
        }
        cause = inner.source();
    }
    said
}

/// Returns the storage's own word for what is wrong, or else the status of its answer.
fn code(said: &str) -> Option<String> {
    let within = |before: &str, after: &str| {
        let (_, rest) = said.split_once(before)?;
        Some(rest.split_once(after)?.0.trim().to_owned())
    };
    within("<Code>", "</Code>")
        .or_else(|| within("non-2xx status code: ", ":"))
        .filter(|code| !code.is_empty() && code.len() <= 64)
}

pub(super) fn corrupt(error: serde_json::Error) -> StoreError {
    let message = "the bucket's list of stores cannot be read";
    StoreError::new(ErrorKind::Corrupt, message)
        .with_hint("was it written by a newer kvfs, or by something else?")
        .with_source(error)
}

#[cfg(test)]
mod tests {
    use std::error::Error as _;

    use super::*;

    #[test]
    fn no_text_of_the_library_shows_how_the_endpoint_was_given() {
        let source = "error sending request for url \
                      (http://user:s3cret@127.0.0.1:9/b?key=s3cret&X-Amz-Signature=s3cret)";
        let error = Error::Generic {
            store: "S3",
            source: source.into(),
        };
        let error = failed(error, None);
        let cause = error.source().expect("a cause").to_string();
        assert!(cause.contains("127.0.0.1:9"), "{cause}");
        let all = format!("{error} {error:?} {cause} {:?}", error.duplicate());
        assert!(!all.contains("s3cret"), "{all}");
    }
}
