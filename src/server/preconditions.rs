//! `If-Match` and its kin.

use axum::http::{HeaderMap, header};

use super::errors::{ApiError, Result};
use super::{Call, REQUEST_DEADLINE};
use crate::base::clock::Deadline;
use crate::store::{ETag, ErrorKind, Key, Store};

/// What the conditions of a get come to.
pub(super) enum Precondition {
    Holds,
    NotModified,
    Fails,
}

/// Judges `If-Match`, `If-None-Match` and `If-Modified-Since` in the RFC's order (9110, 13.2.2).
pub(super) fn precondition(call: &Call, headers: &HeaderMap) -> Precondition {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let etag = text(header::ETAG);
    if let Some(wanted) = call.header("if-match")
        && !etag.is_some_and(|etag| is_listed(wanted, etag, true))
    {
        return Precondition::Fails;
    }
    if let Some(known) = call.header("if-none-match") {
        return match etag {
            Some(etag) if is_listed(known, etag, false) => Precondition::NotModified,
            _ => Precondition::Holds,
        };
    }
    let date = |text: Option<&str>| httpdate::parse_http_date(text?).ok();
    match (
        date(call.header("if-modified-since")),
        date(text(header::LAST_MODIFIED)),
    ) {
        (Some(since), Some(modified)) if modified <= since => Precondition::NotModified,
        _ => Precondition::Holds,
    }
}

fn is_listed(list: &str, etag: &str, strongly: bool) -> bool {
    let bare = |tag: &str| tag.trim().trim_start_matches("W/").to_owned();
    list.split(',').any(|tag| {
        tag.trim() == "*"
            || (bare(tag) == bare(etag)
                && !(strongly && (tag.trim().starts_with("W/") || etag.starts_with("W/"))))
    })
}

/// Returns whether `If-Range` lets the range through: the same strong tag, or the same date.
pub(super) fn if_range(call: &Call, headers: &HeaderMap) -> bool {
    let Some(wanted) = call.header("if-range").map(str::trim) else {
        return true;
    };
    let is = |name| headers.get(name).is_some_and(|value| value == wanted);
    !wanted.starts_with("W/") && (is(header::ETAG) || is(header::LAST_MODIFIED))
}

/// Returns the conditions of a put: the version to be replaced, or that there must be none.
pub(super) fn put_preconditions(
    call: &Call,
    store: &dyn Store,
    key: &Key,
) -> Result<(Option<ETag>, bool)> {
    let if_absent = call.header("if-none-match").map(str::trim) == Some("*");
    let if_match = match call.header("if-match").map(str::trim) {
        None => None,
        // Whatever version there is: pinned, so that it holds when the new one is stored.
        Some("*") => match store.head(key, Deadline::after(REQUEST_DEADLINE)) {
            Ok(meta) => meta.etag,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                return Err(ApiError::precondition_failed());
            }
            Err(error) => return Err(error.into()),
        },
        Some(etag) => Some(ETag::new(etag)),
    };
    Ok((if_match, if_absent))
}
