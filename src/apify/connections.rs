//! The connections to servers: reqwest's pool, and when not to trust it any more.
//!
//! A pool hands out the connection that was used last. When the network has changed, or the machine
//! has slept, all that wait in it may be dead at once, and each takes a request's whole patience to
//! show it. So the first failure of a connection counts for all that were idle then: the next
//! request connects. Requests under way keep theirs. TLS sessions stay known, whichever pool has
//! made them, so that a new connection to a server costs a round trip less.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use reqwest::redirect;
use rustls::crypto::ring;

use super::errors::chain;
use crate::base::proxies::Proxies;
use crate::base::sync;
use crate::store::{ErrorKind, Result, StoreError};

/// What kvfs calls itself.
pub const USER_AGENT: &str = concat!("kvfs/", env!("CARGO_PKG_VERSION"));

/// Idle connections kept for each server: as many as there can be requests in flight.
const IDLE_CONNECTIONS: usize = super::limit::MAX_IN_FLIGHT;

/// How long an idle connection is kept; load balancers drop theirs after about a minute.
const IDLE_TIMEOUT: Duration = Duration::from_secs(50);

/// How long a connection is silent before the kernel asks whether the server is still there.
const KEEPALIVE: Duration = Duration::from_secs(15);

/// How long what was sent may stay without a word from the other machine that it has come (tcp(7)):
/// servers that think for longer say that much, a path that is gone does not.
const UNHEARD: Duration = Duration::from_secs(15);

/// Connections to the servers on one side of the proxy.
pub struct Connections {
    /// Whether a proxy may be in between: none can be meant for this machine.
    proxied: bool,
    connect_timeout: Duration,
    tls: rustls::ClientConfig,
    /// Returns for how long the machine has slept since it was started.
    asleep: fn() -> Duration,
    pool: Mutex<Option<Pool>>,
}

/// A pool as a request uses it.
#[derive(Clone)]
pub struct Pool {
    /// What sends the request.
    pub client: reqwest::Client,
    /// Which it is, to be named when a connection of it fails.
    pub number: u64,
    /// As of when it was made.
    asleep: Duration,
}

impl Connections {
    /// Returns none yet.
    pub fn new(proxied: bool, connect_timeout: Duration, tls: rustls::ClientConfig) -> Self {
        Self {
            proxied,
            connect_timeout,
            tls,
            asleep: sync::time_asleep,
            pool: Mutex::new(None),
        }
    }

    /// Returns the pool for a request that begins now.
    ///
    /// # Errors
    /// [`ErrorKind::Network`]: the client cannot be set up.
    pub fn pool(&self) -> Result<Pool> {
        let asleep = (self.asleep)();
        let mut pool = self.pool.lock();
        let number = match &*pool {
            // Idle time is counted while the machine is awake.
            Some(pool) if asleep < pool.asleep + Duration::from_secs(1) => return Ok(pool.clone()),
            Some(pool) => pool.number + 1,
            None => 0,
        };
        let made = Pool {
            client: self.client()?,
            number,
            asleep,
        };
        Ok(pool.insert(made).clone())
    }

    /// Notes that a connection of this pool has failed: what is idle in it is not used again.
    pub fn distrust(&self, number: u64) {
        let mut pool = self.pool.lock();
        if let Some(current) = &*pool
            && current.number == number
        {
            match self.client() {
                Ok(client) => {
                    *pool = Some(Pool {
                        client,
                        number: number + 1,
                        asleep: (self.asleep)(),
                    });
                }
                Err(error) => tracing::debug!("idle connections are kept: {error}"),
            }
        }
    }

    fn client(&self) -> Result<reqwest::Client> {
        let mut builder = reqwest::Client::builder()
            .user_agent(USER_AGENT)
            .redirect(redirect::Policy::none())
            .retry(reqwest::retry::never())
            .referer(false)
            .http1_only()
            .tls_backend_preconfigured(self.tls.clone())
            .tcp_nodelay(true)
            .tcp_keepalive(KEEPALIVE)
            .tcp_keepalive_interval(KEEPALIVE)
            .tcp_keepalive_retries(3)
            .tcp_user_timeout(UNHEARD)
            .connect_timeout(self.connect_timeout)
            .pool_idle_timeout(IDLE_TIMEOUT)
            .pool_max_idle_per_host(IDLE_CONNECTIONS);
        match (self.proxied, Proxies::given()) {
            (true, None) => {}
            (true, Some(proxies)) => builder = with_proxies(builder.no_proxy(), proxies)?,
            (false, _) => builder = builder.no_proxy(),
        }
        builder.build().map_err(|error| cannot_start(&error))
    }
}

/// Routes requests through proxies.
fn with_proxies(
    mut builder: reqwest::ClientBuilder,
    proxies: &Proxies,
) -> Result<reqwest::ClientBuilder> {
    for scheme in ["http", "https"] {
        if let Some(address) = proxies.of(scheme) {
            // The error would show the address, and with it a password.
            let address = address.expose();
            let made = match scheme {
                "http" => reqwest::Proxy::http(address),
                _ => reqwest::Proxy::https(address),
            };
            let proxy = made.map_err(|_| {
                StoreError::new(
                    ErrorKind::Network,
                    format!("the address of the proxy for {scheme} is invalid"),
                )
                .with_hint(format!(
                    "check the variable {}_PROXY",
                    scheme.to_uppercase()
                ))
            })?;
            let excluded = proxies.excluded().and_then(reqwest::NoProxy::from_string);
            builder = builder.proxy(proxy.no_proxy(excluded));
        }
    }
    Ok(builder)
}

impl fmt::Debug for Connections {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connections").finish_non_exhaustive()
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").finish_non_exhaustive()
    }
}

/// Returns how to encrypt: with the certificates that the system trusts, and one store of sessions.
///
/// # Errors
/// [`ErrorKind::Network`]: the system trusts none.
pub fn tls() -> Result<rustls::ClientConfig> {
    let provider = Arc::new(ring::default_provider());
    let verifier = rustls_platform_verifier::Verifier::new(Arc::clone(&provider))
        .map_err(|error| cannot_start(&error))?;
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| cannot_start(&error))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

/// Returns the error of an HTTP client that cannot start.
pub fn cannot_start(error: &dyn std::error::Error) -> StoreError {
    StoreError::new(
        ErrorKind::Network,
        format!("cannot start the HTTP client: {}", chain(error)),
    )
    .with_hint("where the system has no CA certificates, install them: apt install ca-certificates")
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    static ASLEEP: AtomicU64 = AtomicU64::new(0);

    #[test]
    fn idle_connections_are_given_up_after_a_failure_and_after_sleep() {
        let mut connections =
            Connections::new(true, Duration::from_secs(1), tls().expect("certificates"));
        connections.asleep = || Duration::from_secs(ASLEEP.load(Ordering::Relaxed));
        let number = || connections.pool().expect("a pool").number;
        assert_eq!((number(), number()), (0, 0));
        // Of all that fail because of the same, the first counts.
        connections.distrust(0);
        connections.distrust(0);
        assert_eq!((number(), number()), (1, 1));
        ASLEEP.store(8 * 3600, Ordering::Relaxed);
        assert_eq!((number(), number()), (2, 2));
    }
}
