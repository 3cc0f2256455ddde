//! Single requests to find out what a server does: no retries, no redirects, no budget.

use std::net::{TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use reqwest::Method;
use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderName};
use rustls::pki_types::ServerName;
use rustls::{ClientConnection, ProtocolVersion};
use serde_json::Value;
use url::Url;

use super::endpoint::Endpoint;
use super::errors::Subject;
use super::http::header;
use super::plain::PlainHttp;
use super::token::Token;
use super::transport::Transport;
use crate::base::clock::Deadline;
use crate::base::redact::SafeUrl;
use crate::metrics::Metrics;
use crate::store::{ErrorKind, Result, StoreError};

/// The largest answer that is looked at, in bytes.
const MAX_ANSWER: usize = 1 << 20;

/// Asks one server.
#[derive(Debug)]
pub struct Probe {
    transport: Arc<Transport>,
    base: Url,
    token: Option<Arc<Token>>,
    timeout: Duration,
}

/// What a server answered.
#[derive(Debug)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// How long the headers took.
    pub elapsed: Duration,
    /// The server's time less this machine's, in seconds, if the answer has a date.
    pub clock_ahead_s: Option<i64>,
    /// The body, if it is JSON and was asked for.
    pub json: Option<Value>,
    /// The bytes of the body as they came, if it was asked for.
    pub len: usize,
    /// The version of HTTP.
    pub version: String,
    headers: HeaderMap,
}

impl Answer {
    /// Returns a header as text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }
}

impl Probe {
    /// Prepares to ask the server of `base`, which gets the token if it may see it.
    ///
    /// # Errors
    /// The TLS setup or the threads failed.
    pub fn new(
        base: &Url,
        token: Option<Arc<Token>>,
        timeout: Duration,
        plain: PlainHttp,
    ) -> Result<Self> {
        let metrics = Arc::new(Metrics::default());
        Ok(Self {
            transport: Arc::new(Transport::new(base, timeout, plain, metrics)?),
            base: base.clone(),
            token,
            timeout,
        })
    }

    /// Asks for JSON at `path`, which counts from `/v2/`.
    ///
    /// # Errors
    /// No answer came.
    pub fn json(&self, path: &str) -> Result<Answer> {
        let target = Endpoint::new(&self.base, path).store();
        self.send(&Method::GET, &target, &[], true)
    }

    /// Asks for the first page of the listing at `path`, compressed; `tag` is what is there already.
    ///
    /// # Errors
    /// No answer came.
    pub fn page(&self, path: &str, tag: Option<&str>) -> Result<Answer> {
        let target = Endpoint::new(&self.base, path).store();
        let mut headers = vec![("accept-encoding", "gzip")];
        headers.extend(tag.map(|tag| ("if-none-match", tag)));
        self.send(&Method::GET, &target, &headers, true)
    }

    /// Returns the version of TLS that a server agrees on, on a connection of its own; `None` where
    /// there is none, or it cannot be told, as behind a proxy.
    pub fn tls_version(&self, url: &Url) -> Option<&'static str> {
        let host = url.host_str().filter(|_| url.scheme() == "https")?;
        let port = url.port_or_known_default()?;
        let address = (host, port).to_socket_addrs().ok()?.next()?;
        let mut socket = TcpStream::connect_timeout(&address, self.timeout).ok()?;
        socket.set_read_timeout(Some(self.timeout)).ok()?;
        socket.set_write_timeout(Some(self.timeout)).ok()?;
        let name = ServerName::try_from(host.to_owned()).ok()?;
        let config = Arc::new(self.transport.tls().clone());
        let mut connection = ClientConnection::new(config, name).ok()?;
        while connection.is_handshaking() {
            connection.complete_io(&mut socket).ok()?;
        }
        match connection.protocol_version()? {
            ProtocolVersion::TLSv1_2 => Some("TLS 1.2"),
            ProtocolVersion::TLSv1_3 => Some("TLS 1.3"),
            _ => None,
        }
    }

    /// Asks for the headers at `url`: with HEAD, or with GET and these headers.
    ///
    /// # Errors
    /// No answer came.
    pub fn headers(&self, head: bool, url: &Url, headers: &[(&str, &str)]) -> Result<Answer> {
        let target = SafeUrl::new(url.clone());
        let method = if head { Method::HEAD } else { Method::GET };
        self.send(&method, &target, headers, false)
    }

    fn send(
        &self,
        method: &Method,
        target: &SafeUrl,
        headers: &[(&str, &str)],
        read: bool,
    ) -> Result<Answer> {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            let name = HeaderName::try_from(*name).map_err(|error| {
                StoreError::new(ErrorKind::Protocol, "no header").with_source(error)
            })?;
            map.insert(name, header(value)?);
        }
        if let Some(token) = &self.token
            && let Some(secret) = token.for_url(target.expose())?
        {
            let mut value = header(&format!("Bearer {}", secret.expose()))?;
            value.set_sensitive(true);
            map.insert(AUTHORIZATION, value);
        }
        let deadline = Deadline::after(self.timeout);
        let start = Instant::now();
        let reply = self
            .transport
            .send(method, target, map, None, deadline)
            .map_err(|failure| failure.into_error(Subject::Store, 1, start.elapsed()))?;
        let elapsed = start.elapsed();
        let mut answer = Answer {
            status: reply.status,
            elapsed,
            clock_ahead_s: None,
            json: None,
            len: 0,
            version: format!("{:?}", reply.version),
            headers: reply.headers,
        };
        answer.clock_ahead_s = answer
            .header("date")
            .and_then(|date| httpdate::parse_http_date(date).ok())
            .map(|theirs| seconds_between(SystemTime::now(), theirs));
        if read {
            let body = reply
                .body
                .read_all(MAX_ANSWER, deadline)
                .unwrap_or_default();
            answer.len = body.len();
            answer.json = serde_json::from_slice(&body).ok();
        }
        Ok(answer)
    }
}

/// Returns how much later `theirs` is than `ours`, in seconds.
fn seconds_between(ours: SystemTime, theirs: SystemTime) -> i64 {
    let seconds = |span: Duration| i64::try_from(span.as_secs()).unwrap_or(i64::MAX);
    match theirs.duration_since(ours) {
        Ok(ahead) => seconds(ahead),
        Err(error) => -seconds(error.duration()),
    }
}
