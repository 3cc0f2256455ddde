//! Gets whose answers are read by the calling thread itself, without the HTTP client's threads.
//!
//! hyper writes the request and reads the answer's head. Where the head tells the body's length,
//! the connection is then taken back from hyper, with what it has read too much, and the rest of
//! the body goes straight into the reader's memory; other bodies come through hyper. A connection
//! whose answer has been read to its end is kept for the next request.
//!
//! What goes through a proxy does not come here: reqwest knows how. The records `.` and `..`, whose
//! addresses reqwest cannot send, are asked for without any proxy.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::Empty;
use hyper::http::uri::Uri;
use hyper_util::client::proxy::matcher::Matcher;
use reqwest::header::{ACCEPT, CONNECTION, HOST, HeaderMap, HeaderValue, USER_AGENT};
use url::{Position, Url};

pub mod body;
pub mod connection;
pub mod exchange;
pub mod idle;
#[cfg(test)]
mod tests;

use self::body::DirectBody;
use self::connection::Connection;
use self::exchange::{Exchange, Stopped};
use self::idle::Idle;
use super::body::HttpBody;
use super::connector;
use super::endpoint::Target;
use super::errors::{Failure, chain};
use super::transport::{self, Reply, Transport};
use crate::base::clock::Deadline;
use crate::store::ErrorKind;

/// Sends gets, and keeps connections for them.
pub struct DirectClient {
    proxies: Matcher,
    idle: Arc<Idle>,
}

impl DirectClient {
    /// Returns a client without any connection, with the proxies that the environment names.
    pub fn from_system() -> Self {
        Self {
            proxies: Matcher::from_system(),
            idle: Arc::default(),
        }
    }

    /// Returns the address to ask for, unless a proxy, or credentials in it, need reqwest.
    pub fn address(&self, target: &Target) -> Option<Uri> {
        let url = match target {
            Target::Url(url) => url.expose(),
            // reqwest could not ask for it.
            Target::DotKey { parent, tail } => return format!("{parent}{tail}").parse().ok(),
        };
        let uri: Uri = url[..Position::AfterQuery].parse().ok()?;
        let plain = url.username().is_empty() && url.password().is_none();
        (plain && (transport::is_loopback(url) || self.proxies.intercept(&uri).is_none()))
            .then_some(uri)
    }

    /// Asks, and waits for the answer's head, both together for at most `patience`.
    ///
    /// # Errors
    /// As [`Transport::send`].
    pub fn get(
        &self,
        transport: &Arc<Transport>,
        server: &Url,
        uri: &Uri,
        headers: HeaderMap,
        patience: Duration,
    ) -> Result<Reply, Failure> {
        let until = Deadline::after(patience).instant();
        let name = server[..Position::BeforePath].to_owned();
        let connection = match self.idle.take(&name) {
            Some(connection) => connection,
            None => connect(transport, uri, until)?,
        };
        let request = request(server, uri, headers)?;
        let (exchange, answer) =
            Exchange::begin(connection, request, until).map_err(|stopped| match stopped {
                Stopped::Silent => transport::silence(patience),
                Stopped::Broken(error) => Failure::transient(
                    ErrorKind::Network,
                    format!("the connection failed before an answer came: {error}"),
                ),
            })?;
        let (parts, body) = answer.into_parts();
        let keep = parts.version == hyper::Version::HTTP_11 && !says_close(&parts.headers);
        let home = keep.then(|| (Arc::clone(&self.idle), name));
        let body = DirectBody::new(exchange, body, home, Arc::clone(transport))?;
        Ok(Reply {
            status: parts.status.as_u16(),
            headers: parts.headers,
            body: HttpBody::direct(body),
        })
    }
}

impl fmt::Debug for DirectClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DirectClient").finish_non_exhaustive()
    }
}

fn connect(transport: &Transport, uri: &Uri, until: Instant) -> Result<Connection, Failure> {
    let connector = transport.connector.get()?;
    let span = until
        .saturating_duration_since(Instant::now())
        .min(transport.connector.timeout());
    let unreachable = |kind, reason: &str| {
        transport::check_certificate(Failure {
            not_done: true,
            ..Failure::transient(kind, format!("the server cannot be reached: {reason}"))
        })
    };
    match transport.wait(span, connector::connect(connector, uri.clone())) {
        Some(Ok(connection)) => Ok(connection),
        Some(Err(error)) => Err(unreachable(ErrorKind::Network, &chain(&*error))),
        None => Err(unreachable(
            ErrorKind::Timeout,
            &format!("no connection within {:.1} s", span.as_secs_f64()),
        )),
    }
}

fn request(
    server: &Url,
    uri: &Uri,
    mut headers: HeaderMap,
) -> Result<hyper::Request<Empty<Bytes>>, Failure> {
    let broken = || Failure::permanent(ErrorKind::Protocol, "the request cannot be sent");
    let host = HeaderValue::from_str(&server[Position::BeforeHost..Position::AfterPort])
        .map_err(|_| broken())?;
    headers.insert(HOST, host);
    headers.insert(USER_AGENT, HeaderValue::from_static(transport::USER_AGENT));
    headers
        .entry(ACCEPT)
        .or_insert(HeaderValue::from_static("*/*"));
    let mut request = hyper::Request::new(Empty::new());
    *request.uri_mut() = uri
        .path_and_query()
        .cloned()
        .map(Uri::from)
        .ok_or_else(broken)?;
    *request.headers_mut() = headers;
    Ok(request)
}

fn says_close(headers: &HeaderMap) -> bool {
    headers.get_all(CONNECTION).iter().any(|value| {
        value
            .to_str()
            .is_ok_and(|value| value.to_ascii_lowercase().contains("close"))
    })
}
