//! Sends one request and returns its answer's headers: no retries, no redirects.
//!
//! The only user of reqwest's client. It runs on two threads of its own; the calling threads block,
//! each wait bounded. Calls must come from threads that may block, not from async code.

use std::fmt;
use std::future::Future;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use futures_util::future::{Either, select};
use reqwest::header::{AUTHORIZATION, CONTENT_LENGTH, HeaderMap, HeaderValue};
use reqwest::{Method, Request, Version};
use tokio::runtime::{Builder, Runtime};
use url::{Host, Url};

use super::body::HttpBody;
use super::connections::{self, Connections};
use super::errors::{Failure, chain};
use super::plain::PlainHttp;
use super::retry::Verdict;
use super::upload::{FedBody, Outgoing};
use crate::base::clock::Deadline;
use crate::base::in_use;
use crate::base::redact::{SafeUrl, has_secret};
use crate::metrics::Metrics;
use crate::store::{ErrorKind, Result};

/// The longest wait for a connection, unless an attempt may take less.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// The HTTP client and the threads that it runs on.
pub struct Transport {
    /// `None` only while being dropped.
    runtime: Option<Runtime>,
    /// For this machine, past any proxy, and for all others.
    connections: [OnceLock<Connections>; 2],
    tls: rustls::ClientConfig,
    attempt_timeout: Duration,
    plain: PlainHttp,
    /// What is counted.
    pub(super) metrics: Arc<Metrics>,
}

/// An answer of which the headers have been read.
#[derive(Debug)]
pub struct Reply {
    /// The HTTP status.
    pub status: u16,
    /// The version of HTTP.
    pub version: Version,
    /// The headers.
    pub headers: HeaderMap,
    /// The rest.
    pub body: HttpBody,
}

impl Transport {
    /// Starts a client for the server of `api`, and others that this leads to.
    ///
    /// # Errors
    /// The TLS setup or the threads failed.
    pub fn new(
        api: &Url,
        attempt_timeout: Duration,
        plain: PlainHttp,
        metrics: Arc<Metrics>,
    ) -> Result<Self> {
        let runtime = Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("kvfs-http")
            .enable_all()
            .build()
            .map_err(|error| connections::cannot_start(&error))?;
        let transport = Self {
            runtime: Some(runtime),
            connections: [OnceLock::new(), OnceLock::new()],
            tls: connections::tls()?,
            attempt_timeout,
            plain,
            metrics,
        };
        // What is wrong with it is to be known now.
        transport.connections(api).pool()?;
        Ok(transport)
    }

    /// Returns how connections are encrypted.
    pub(super) fn tls(&self) -> &rustls::ClientConfig {
        &self.tls
    }

    /// Returns the connections for an address: no proxy can be meant for this machine.
    pub(super) fn connections(&self, url: &Url) -> &Connections {
        let is_here = is_loopback(url);
        self.connections[usize::from(is_here)].get_or_init(|| {
            let timeout = CONNECT_TIMEOUT.min(self.attempt_timeout);
            Connections::new(!is_here, timeout, self.tls.clone())
        })
    }

    /// Sends a request and waits for the headers of its answer.
    ///
    /// # Errors
    /// No answer came: transient, unless the upload's source failed. Permanent if a secret would
    /// have gone where it may not go.
    pub fn send(
        self: &Arc<Self>,
        method: &Method,
        url: &SafeUrl,
        headers: HeaderMap,
        upload: Option<&mut Outgoing<'_, '_>>,
        deadline: Deadline,
    ) -> Result<Reply, Failure> {
        let url = url.expose();
        if has_secret(url) || headers.contains_key(AUTHORIZATION) {
            let refused = |error| Failure::from(error).before_sending();
            self.plain.check(url).map_err(refused)?;
        }
        let connections = self.connections(url);
        let pool = connections
            .pool()
            .map_err(|error| Failure::from(error).before_sending())?;
        let mut request = Request::new(method.clone(), url.clone());
        *request.headers_mut() = headers;
        let sent = match upload {
            None => {
                let patience = self.patience(Some(deadline));
                match self.wait(patience, pool.client.execute(request)) {
                    Some(answer) => answer.map_err(unreachable),
                    None => Err(silence(patience)),
                }
            }
            Some(outgoing) => self.send_upload(&pool.client, request, outgoing),
        };
        let response = sent.inspect_err(|failure| {
            if !failure.not_done {
                connections.distrust(pool.number);
            }
        })?;
        Ok(Reply {
            status: response.status().as_u16(),
            version: response.version(),
            headers: response.headers().clone(),
            body: HttpBody::new(response, Arc::clone(self), url.clone(), pool.number),
        })
    }

    /// Feeds the request's body from this thread while the connection sends it.
    fn send_upload(
        &self,
        client: &reqwest::Client,
        mut request: Request,
        outgoing: &mut Outgoing<'_, '_>,
    ) -> Result<reqwest::Response, Failure> {
        let len = outgoing.size();
        if let Some(len) = len {
            request
                .headers_mut()
                .insert(CONTENT_LENGTH, HeaderValue::from(len));
        }
        let (sender, body) = FedBody::new(len);
        *request.body_mut() = Some(reqwest::Body::wrap(body));
        let (mut chunks, transfer, progress) = outgoing.start();
        let mut answer = std::pin::pin!(client.execute(request));
        loop {
            let chunk = match chunks.next_chunk() {
                Ok(Some(chunk)) => chunk,
                Ok(None) => break,
                Err(error) => {
                    let message = format!("the bytes to upload cannot be read: {error}");
                    // Of what was announced the server has not seen the end.
                    return Err(Failure::permanent(ErrorKind::Disk, message).before_sending());
                }
            };
            let chunk_len = chunk.len() as u64;
            let begun = Instant::now();
            let patience = self.patience(Some(progress.deadline()));
            let fed = std::pin::pin!(sender.send(Ok(chunk)));
            match self.wait(patience, async {
                match select(fed, answer.as_mut()).await {
                    Either::Left((fed, _)) => Either::Left(fed),
                    Either::Right((answer, _)) => Either::Right(answer),
                }
            }) {
                None => return Err(silence(patience)),
                // The answer came before the upload's end: an error, or a server that knows all.
                Some(Either::Right(answer)) => return answer.map_err(unreachable),
                Some(Either::Left(Ok(()))) => {
                    self.metrics.sent_bytes.add(chunk_len);
                    transfer.moved(chunk_len);
                    progress.moved(chunk_len, begun.elapsed());
                }
                Some(Either::Left(Err(_))) => break,
            }
        }
        drop(sender);
        let patience = self.patience(Some(progress.deadline()));
        self.wait(patience, answer)
            .ok_or_else(|| silence(patience))?
            .map_err(unreachable)
    }

    /// Returns the longest wait for one sign of life.
    pub fn patience(&self, deadline: Option<Deadline>) -> Duration {
        deadline.map_or(self.attempt_timeout, |deadline| {
            self.attempt_timeout
                .min(deadline.remaining().unwrap_or_default())
        })
    }

    /// Blocks for a future; `None` when it takes longer than `span`.
    pub fn wait<F: Future>(&self, span: Duration, future: F) -> Option<F::Output> {
        let runtime = self.runtime.as_ref()?;
        runtime.block_on(async { tokio::time::timeout(span, future).await.ok() })
    }
}

impl Drop for Transport {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // Waits for nothing, so that it may happen in async code too.
            runtime.shutdown_background();
        }
    }
}

impl fmt::Debug for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transport").finish_non_exhaustive()
    }
}

/// Returns whether an address is on this machine.
pub fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => name == "localhost" || name.ends_with(".localhost"),
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    }
}

/// The failure of a server that does not answer.
pub fn silence(span: Duration) -> Failure {
    Failure::transient(
        ErrorKind::Timeout,
        format!(
            "the server did not answer within {:.1} s",
            span.as_secs_f64()
        ),
    )
}

fn unreachable(error: reqwest::Error) -> Failure {
    let kind = if error.is_timeout() {
        ErrorKind::Timeout
    } else {
        ErrorKind::Network
    };
    let not_done = error.is_connect() || error.is_builder();
    let what = if not_done {
        "the server cannot be reached"
    } else {
        "the connection failed before an answer came"
    };
    let failure = if error.is_builder() {
        Failure::permanent(kind, "the request cannot be sent")
    } else {
        Failure::transient(kind, what)
    };
    check_certificate(Failure {
        message: in_use::cleaned(format!(
            "{}: {}",
            failure.message,
            chain(&error.without_url())
        )),
        not_done,
        ..failure
    })
}

/// Makes a failure that is about the server's certificate one that is not worth repeating.
pub fn check_certificate(failure: Failure) -> Failure {
    // rustls says so; its error is hidden too deep in others to be asked for by type.
    if !failure.message.contains("invalid peer certificate") {
        return failure;
    }
    Failure {
        verdict: Verdict::Permanent,
        hint: Some(
            "the server's certificate is not trusted: check --api-url; a private authority's certificate can be named by SSL_CERT_FILE".into(),
        ),
        ..failure
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_untrusted_certificate_is_not_tried_again() {
        let failure = |message: &str| {
            check_certificate(Failure::transient(ErrorKind::Network, message)).verdict
        };
        assert_eq!(
            failure("x: invalid peer certificate: Expired"),
            Verdict::Permanent
        );
        assert_eq!(failure("connection refused"), Verdict::TRANSIENT);
    }

    #[test]
    fn addresses_of_this_machine_are_known() {
        for (url, expected) in [
            ("http://localhost:1", true),
            ("http://a.localhost", true),
            ("http://127.9.9.9/", true),
            ("http://[::1]/", true),
            ("http://10.0.0.1/", false),
            ("http://localhost.evil.com/", false),
        ] {
            assert_eq!(
                is_loopback(&Url::parse(url).expect("a URL")),
                expected,
                "{url}"
            );
        }
    }
}
