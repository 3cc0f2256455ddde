//! What lets pages of any origin use the API, as the platform allows it: tokens travel in headers
//! that a page must set itself, never in cookies, so a foreign page can do nothing by itself.

use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, header};

use super::routes::Route;

/// Headers of answers that pages may read besides the harmless ones.
const EXPOSED: &str = "Accept-Ranges, Content-Disposition, Content-Encoding, Content-Length, \
                       Content-Range, ETag, Last-Modified, Location, X-RateLimit-Limit";

/// Headers of requests that pages may set, where they do not ask for others.
const ALLOWED: &str =
    "Authorization, Content-Encoding, Content-Type, If-Match, If-None-Match, Range";

/// How long a browser may remember what it was allowed, in seconds: a day.
const REMEMBERED: &str = "86400";

/// Adds what every answer says.
pub(super) fn open(headers: &mut HeaderMap) {
    headers.insert(
        header::ACCESS_CONTROL_ALLOW_ORIGIN,
        HeaderValue::from_static("*"),
    );
    headers.insert(
        header::ACCESS_CONTROL_EXPOSE_HEADERS,
        HeaderValue::from_static(EXPOSED),
    );
}

/// Returns what `OPTIONS` says of an address.
pub(super) fn options(route: &Route, request: &HeaderMap) -> HeaderMap {
    let mut names = vec!["OPTIONS"];
    names.extend(route.methods().iter().map(Method::as_str));
    let methods = HeaderValue::from_str(&names.join(", ")).ok();
    let asked = request.get(header::ACCESS_CONTROL_REQUEST_HEADERS).cloned();
    let said: [(HeaderName, Option<HeaderValue>); 4] = [
        (header::ALLOW, methods.clone()),
        (header::ACCESS_CONTROL_ALLOW_METHODS, methods),
        (
            header::ACCESS_CONTROL_ALLOW_HEADERS,
            asked.or(Some(HeaderValue::from_static(ALLOWED))),
        ),
        (
            header::ACCESS_CONTROL_MAX_AGE,
            Some(HeaderValue::from_static(REMEMBERED)),
        ),
    ];
    said.into_iter()
        .filter_map(|(name, value)| Some((name, value?)))
        .collect()
}
