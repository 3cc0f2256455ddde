//! Headers that let pages of any origin use the API, as the platform allows it: tokens travel in
//! headers that a page must set itself, never in cookies, so a foreign page can do nothing by
//! itself. On this machine's own address a page needs a token or a link even for public stores:
//! those are meant for the programs of this machine, not for every page that its browser shows.

use std::net::{IpAddr, SocketAddr};

use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, header};

use super::routes::{Query, Route};

/// Headers of answers that pages may read besides the harmless ones.
const EXPOSED: &str = "Accept-Ranges, Content-Disposition, Content-Encoding, Content-Length, \
                       Content-Range, ETag, Last-Modified, Location, X-RateLimit-Limit";

/// Headers of requests that pages may set, where they do not ask for others.
const ALLOWED: &str =
    "Authorization, Content-Encoding, Content-Type, If-Match, If-None-Match, Range";

/// How long a browser may remember what it was allowed, in seconds: a day.
const REMEMBERED: &str = "86400";

/// Adds what every answer says to browsers.
pub(super) fn describe(headers: &mut HeaderMap, readable: bool) {
    if readable {
        headers.insert(
            header::ACCESS_CONTROL_ALLOW_ORIGIN,
            HeaderValue::from_static("*"),
        );
        headers.insert(
            header::ACCESS_CONTROL_EXPOSE_HEADERS,
            HeaderValue::from_static(EXPOSED),
        );
    }
    headers.insert(
        header::X_CONTENT_TYPE_OPTIONS,
        HeaderValue::from_static("nosniff"),
    );
    headers.insert(
        header::REFERRER_POLICY,
        HeaderValue::from_static("no-referrer"),
    );
}

/// Returns whether a page of any origin may read the answer to a request.
pub(super) fn may_read(listens: SocketAddr, request: &HeaderMap, query: &Query) -> bool {
    let origin = request.get(header::ORIGIN);
    let from_here = origin.is_none_or(|origin| {
        let origin = origin.to_str().unwrap_or_default();
        let place = origin.split_once("://").map_or("", |(_, place)| place);
        is_loopback(host_of(place))
    });
    !listens.ip().is_loopback()
        || from_here
        // A preflight request asks what a later one may do, which brings the token.
        || request.contains_key(header::ACCESS_CONTROL_REQUEST_METHOD)
        || request.contains_key(header::AUTHORIZATION)
        || query.text("token").is_some()
        || query.text("signature").is_some()
}

/// Returns the host of `HOST` or `HOST:PORT`.
pub(super) fn host_of(authority: &str) -> &str {
    match authority.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => host,
        _ => authority,
    }
}

/// Returns whether a host is this machine whatever a name server says.
pub(super) fn is_loopback(host: &str) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let name = host.trim_end_matches('.').to_ascii_lowercase();
    bare.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
        || name == "localhost"
        || name.ends_with(".localhost")
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machines_names_are_told_from_others() {
        for (authority, here) in [
            ("localhost", true),
            ("LOCALHOST:80", true),
            ("app.localhost:8010", true),
            ("127.0.0.1:8010", true),
            ("127.9.9.9", true),
            ("[::1]:8010", true),
            ("[::1]", true),
            ("", false),
            ("evil.example:8010", false),
            ("localhost.evil.example", false),
            ("127.0.0.1.evil.example", false),
            ("evillocalhost", false),
            ("10.0.0.1", false),
        ] {
            assert_eq!(is_loopback(host_of(authority)), here, "{authority}");
        }
    }
}
