//! The API client's requests: tokens, redirects, limits, and the one retry loop.
//!
//! INVARIANT: a token goes to its own server only, whatever redirects say. No error text holds
//! a URL with its query.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use parking_lot::Mutex;
use reqwest::header::{HeaderMap, HeaderValue, RETRY_AFTER};
use serde::de::DeserializeOwned;
use url::{Origin, Url};

use super::answer::is_done;
use super::call::{Call, Purpose, headers_of};
use super::errors::{Failure, Subject};
use super::limit::{Budget, Limiter};
use super::peer::Peer;
use super::plain::PlainHttp;
use super::redirect::redirect_target;
use super::retry::{RetryPolicy, RetryState, Verdict, parse_retry_after};
use super::transport::{Reply, Transport};
use super::upload::Outgoing;
use super::wire::{self, Envelope};
use crate::base::clock::Deadline;
use crate::base::redact::SafeUrl;
use crate::base::sync;
use crate::metrics::Metrics;
use crate::store::freshness::Span;
use crate::store::{ErrorKind, Key, Result, StoreError, Upload};

/// The most redirects that are followed.
const MAX_REDIRECTS: usize = 10;

/// The attempts to connect to a server that has never answered.
const UNREACHED_ATTEMPTS: u32 = 3;

/// How long until the log says again that requests wait for the server's limit.
const TELL_AGAIN: Duration = Duration::from_secs(60);

/// The platform's API host, which is known to limit requests.
pub const PLATFORM_HOST: &str = "api.apify.com";

/// How requests are sent.
#[derive(Clone, Copy, Debug)]
pub struct HttpOptions {
    /// The longest wait for one attempt's headers, and between two chunks of a body.
    pub attempt_timeout: Duration,
    /// How failed requests are repeated.
    pub retry: RetryPolicy,
    /// The longest that one resumption of a broken body may take, retries included.
    pub resume_timeout: Duration,
    /// How far secrets may travel unencrypted.
    pub plain_http: PlainHttp,
}

impl HttpOptions {
    /// Returns the usual options with this attempt timeout.
    pub fn new(attempt_timeout: Duration) -> Self {
        Self {
            attempt_timeout,
            retry: RetryPolicy::default(),
            resume_timeout: Duration::from_secs(60),
            plain_http: PlainHttp::default(),
        }
    }
}

/// Sends requests to one server, and where its redirects lead.
#[derive(Debug)]
pub struct HttpClient {
    transport: Arc<Transport>,
    limiter: Arc<Limiter>,
    limited: Origin,
    options: HttpOptions,
    peer: Peer,
    /// When the log was last told that requests wait for the server's limit.
    told: Mutex<Option<Duration>>,
}

impl HttpClient {
    /// Starts a client for the server of `api`.
    ///
    /// # Errors
    /// The TLS setup or the threads failed.
    pub fn new(api: &Url, options: HttpOptions, metrics: Arc<Metrics>) -> Result<Self> {
        let client = Self {
            transport: Arc::new(Transport::new(
                api,
                options.attempt_timeout,
                options.plain_http,
                metrics,
            )?),
            limiter: Arc::new(Limiter::new(api.host_str() == Some(PLATFORM_HOST))),
            limited: api.origin(),
            options,
            peer: Peer::default(),
            told: Mutex::new(None),
        };
        client.show_budget();
        Ok(client)
    }

    /// Returns the counters.
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.transport.metrics
    }

    /// Returns the address of the server.
    pub fn server(&self) -> String {
        self.limited.ascii_serialization()
    }

    /// Returns what time it is by the server's clock, as far as its answers have told.
    pub fn server_time(&self) -> Option<Span> {
        self.peer.time()
    }

    /// Notes how many requests a second the server allows.
    fn show_budget(&self) {
        let metrics = self.metrics();
        for (budget, gauge) in [
            (Budget::Records, &metrics.budget_records_per_second),
            (Budget::Heads, &metrics.budget_heads_per_second),
            (Budget::Rest, &metrics.budget_rest_per_second),
            (Budget::Lists, &metrics.budget_lists_per_second),
        ] {
            gauge.set(self.limiter.allowed(budget));
        }
    }

    /// Returns how requests are sent.
    pub fn options(&self) -> &HttpOptions {
        &self.options
    }

    /// Counts requests together with those of all processes that name the same folder and store.
    pub fn share_budget(&self, dir: &Path, store: &str) {
        self.limiter.share(dir, store);
    }

    /// Counts a request that repeats one after its answer broke off.
    pub fn count_repeat(&self) {
        self.transport.metrics.requests_retried.one();
    }

    /// Sends a request until `read` has made something of its answer.
    ///
    /// `read` gets answers with a 2xx status or one that the call accepts. What it fails with
    /// counts like a failure to get an answer at all.
    ///
    /// # Errors
    /// The last attempt's failure. For a change it says whether any attempt may have arrived
    /// ([`StoreError::is_unanswered`]).
    pub fn call<T>(
        &self,
        call: &Call<'_>,
        upload: Option<&mut Upload<'_>>,
        deadline: Deadline,
        mut read: impl FnMut(Reply) -> Result<T, Failure>,
    ) -> Result<T> {
        let key = call.subject.key().map_or("", Key::as_str);
        let transfers = &self.metrics().transfers;
        let mut outgoing = upload.map(|upload| Outgoing::new(upload, key, transfers, deadline));
        let mut state = RetryState::new(self.options.retry, Instant::now());
        let mut before: Option<Failure> = None;
        let mut may_have_arrived = false;
        loop {
            let attempted = self.attempt(call, outgoing.as_mut(), deadline, &mut read);
            let deadline = deadline_of(outgoing.as_ref(), deadline);
            let failure = match attempted {
                Ok(result) => return Ok(result),
                // What went wrong when it was sent tells more.
                Err(failure) if failure.unsent => match before.take() {
                    Some(sent) => Failure {
                        verdict: Verdict::Permanent,
                        ..sent
                    },
                    None => failure,
                },
                Err(failure) => failure,
            };
            may_have_arrived |= call.is_change() && !failure.not_done && !failure.unsent;
            // A wrong address should be told soon; a server that has answered may come back.
            let is_hopeless = failure.is_unreached()
                && !self.peer.has_answered()
                && state.attempt() >= UNREACHED_ATTEMPTS;
            let may_repeat = !call.single
                && outgoing.as_ref().is_none_or(Outgoing::can_start)
                && (failure.not_done || !call.once)
                && !is_hopeless;
            let delay = may_repeat
                .then(|| state.next_delay(failure.verdict, deadline.remaining(), fastrand::f64()))
                .flatten();
            let Some(delay) = delay else {
                let elapsed = state.elapsed(Instant::now());
                let error = failure.into_error(call.subject, state.attempt(), elapsed);
                return Err(match may_have_arrived {
                    true => error.unanswered(),
                    false => error,
                });
            };
            tracing::debug!(
                attempt = state.attempt(),
                delay_ms = delay.as_millis() as u64,
                reason = failure.message,
                "repeating a request for {}",
                call.subject
            );
            let is_refused = matches!(failure.verdict, Verdict::Refused { .. });
            before = Some(failure);
            if is_refused {
                self.tell_of_refusal(call);
                self.metrics().requests_waiting_for_limit.add(1);
            }
            std::thread::sleep(delay);
            if is_refused {
                self.metrics().requests_waiting_for_limit.sub(1);
            }
            self.count_repeat();
        }
    }

    /// Asks for JSON in the API's envelope.
    ///
    /// # Errors
    /// As [`HttpClient::call`]; [`ErrorKind::Protocol`] when it is no such JSON every time.
    pub fn json<T: DeserializeOwned>(&self, call: &Call<'_>, deadline: Deadline) -> Result<T> {
        self.call(call, None, deadline, |reply| {
            let body = reply.body.read_all(wire::MAX_JSON_LEN, deadline)?;
            json_of(call.subject, reply.status, &reply.headers, body)
        })
    }

    /// Sends a request once, and again where redirects lead.
    fn attempt<T>(
        &self,
        call: &Call<'_>,
        mut outgoing: Option<&mut Outgoing<'_, '_>>,
        deadline: Deadline,
        read: &mut impl FnMut(Reply) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let given = deadline;
        let mut target = call.target.clone();
        let mut visited: Vec<Url> = Vec::new();
        loop {
            let deadline = deadline_of(outgoing.as_deref(), given);
            let server = target.expose().clone();
            let is_limited = server.origin() == self.limited;
            let mut permit = if is_limited {
                let begun = Instant::now();
                let permit = self.limiter.acquire(call.budget(), call.priority, deadline);
                let waited = u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX);
                self.metrics().budget_waited_us.add(waited);
                Some(permit.ok_or_else(|| Failure {
                    unsent: true,
                    ..Failure::permanent(
                        ErrorKind::Timeout,
                        format!(
                            "the deadline passed while {} waited for its turn",
                            call.subject
                        ),
                    )
                })?)
            } else {
                None
            };
            let was_paced = self.limiter.allowed(call.budget()) > 0;
            let headers = headers_of(call, &server).map_err(Failure::before_sending)?;
            self.count(call);
            let sent = outgoing.as_deref_mut();
            let begun = Instant::now();
            let reply = self
                .transport
                .send(&call.method(), &target, headers, sent, deadline)?;
            if let Some(permit) = &mut permit {
                permit.answered();
            }
            self.peer.is_reached();
            if is_limited && let Some(per_second) = self.peer.answered(begun, &reply) {
                self.limiter.learn(call.budget(), per_second);
                self.show_budget();
            }
            tracing::debug!(
                method = %call.method(),
                url = %SafeUrl::new(server.clone()),
                status = reply.status,
                "request"
            );
            if matches!(reply.status, 301 | 302 | 303 | 307 | 308) {
                let next = redirect_target(&reply, &server, call.purpose, self.options.plain_http)
                    .map_err(Failure::before_sending)?;
                visited.push(server);
                let refused = |reason: String| {
                    Failure::permanent(ErrorKind::Protocol, reason).before_sending()
                };
                if visited.len() > MAX_REDIRECTS || visited.contains(&next) {
                    return Err(refused(format!(
                        "the server redirects {} in circles",
                        call.subject
                    )));
                }
                if outgoing
                    .as_ref()
                    .is_some_and(|outgoing| !outgoing.can_start())
                {
                    return Err(refused(
                        "the server redirects an upload that cannot be sent again".into(),
                    ));
                }
                target = SafeUrl::new(next);
                continue;
            }
            if is_limited && self.peer.is_gateways(call.purpose, &reply) {
                return Err(Failure::of_gateway(reply.status, call.subject));
            }
            if call.is_change() && !is_done(&reply) && (200..300).contains(&reply.status) {
                return Err(Failure::of_gateway(reply.status, call.subject));
            }
            if (200..300).contains(&reply.status) || call.accepts.contains(&reply.status) {
                return read(reply);
            }
            if reply.status == 429 {
                self.transport.metrics.responses_rate_limited.one();
                let retry_after = reply
                    .headers
                    .get(RETRY_AFTER)
                    .and_then(|value| parse_retry_after(value.to_str().ok()?, SystemTime::now()));
                self.limiter.refused(call.budget(), retry_after, was_paced);
                self.show_budget();
            }
            let body = match call.purpose {
                Purpose::Head => Vec::new(),
                _ => {
                    let deadline = deadline_of(outgoing.as_deref(), given);
                    let start = reply.body.read_some(wire::MAX_ERROR_LEN, deadline);
                    wire::decoded(&reply.headers, start).unwrap_or_default()
                }
            };
            let (status, sent, now) = (reply.status, target.secrets(), SystemTime::now());
            let failure =
                Failure::from_answer(status, &reply.headers, &body, call.subject, &sent, now);
            let is_anybodys = matches!(reply.status, 404 | 410) && failure.api_type.is_none();
            if is_anybodys
                && is_limited
                && call.purpose != Purpose::Head
                && self.peer.lacks_limit(&reply.headers)
            {
                return Err(Failure::of_gateway(reply.status, call.subject));
            }
            return Err(failure);
        }
    }

    /// Says what is waited for, once for all that wait for it.
    fn tell_of_refusal(&self, call: &Call<'_>) {
        let now = sync::since_boot();
        let mut told = self.told.lock();
        if told.is_some_and(|told| now < told + TELL_AGAIN) {
            return;
        }
        *told = Some(now);
        drop(told);
        let limit = match self.limiter.allowed(call.budget()) {
            0 => String::new(),
            limit => format!(" of {limit} a second"),
        };
        tracing::warn!(
            "waiting for the server's limit of requests{limit} (429): other programs of this account or address use it up too; waiting requests go on by themselves"
        );
    }

    fn count(&self, call: &Call<'_>) {
        let metrics = &self.transport.metrics;
        metrics.requests_total.one();
        match call.purpose {
            Purpose::List => &metrics.requests_list,
            Purpose::Get => &metrics.requests_get,
            Purpose::Head => &metrics.requests_head,
            Purpose::Put => &metrics.requests_put,
            Purpose::Delete => &metrics.requests_delete,
            Purpose::Other | Purpose::Create => &metrics.requests_other,
        }
        .one();
        if call.purpose == Purpose::Get
            && ["if-none-match", "if-modified-since"]
                .iter()
                .any(|name| call.headers.contains_key(*name))
        {
            metrics.requests_conditional.one();
        }
    }
}

/// Reads JSON in the API's envelope.
///
/// # Errors
/// [`ErrorKind::Protocol`], to be tried again, when it is no such JSON.
pub fn json_of<T: DeserializeOwned>(
    subject: Subject<'_>,
    status: u16,
    headers: &HeaderMap,
    body: Vec<u8>,
) -> Result<T, Failure> {
    let body = wire::decoded(headers, body)?;
    let envelope: Envelope<T> = serde_json::from_slice(&body).map_err(|error| {
        // serde_json names the place and what it expected, and quotes little.
        let place = format!("line {} column {}", error.line(), error.column());
        Failure {
            status: Some(status),
            ..Failure::transient(
                ErrorKind::Protocol,
                format!(
                    "the answer about {subject} is not the JSON that the API promises ({place})"
                ),
            )
        }
    })?;
    Ok(envelope.data)
}

/// Returns the deadline of a request; that of an upload moves on while bytes go out.
fn deadline_of(outgoing: Option<&Outgoing<'_, '_>>, given: Deadline) -> Deadline {
    outgoing.map_or(given, Outgoing::deadline)
}

/// Makes a header of a text; refuses one that could not be sent as it is.
///
/// # Errors
/// [`ErrorKind::Protocol`]
pub fn header(text: &str) -> Result<HeaderValue> {
    HeaderValue::from_str(text).map_err(|_| {
        StoreError::new(
            ErrorKind::Protocol,
            "a header value holds characters that cannot be sent",
        )
    })
}
