//! An Apify-compatible HTTP server over local stores: what `kvfs serve` runs and tests talk to.
//!
//! Stores block, so requests run on threads for that; bodies go through small bounded channels both
//! ways and are never held whole. A caller without permission is refused before a byte of the
//! request's body is read. A [`Catalog`] knows the stores.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::http::{HeaderMap, HeaderValue, Method, header};
use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::watch;
use tokio::task::JoinHandle;

mod accounts;
mod aliases;
mod archive;
mod auth;
mod body;
pub mod buckets;
pub mod catalog;
pub mod config;
mod connection;
mod cors;
mod dispatch;
mod errors;
mod faults;
pub mod folders;
mod keys;
mod listen;
mod negotiate;
mod preconditions;
mod profile;
mod range;
mod records;
mod reply;
mod routes;
mod schema;
mod secret;
mod stats;
mod stores;
mod tracked;

pub use buckets::BucketCatalog;
pub use catalog::{Catalog, Changed, Lookup, NewStore, StoreChange, StoreEntry};
pub use config::{GeneralAccess, Knobs, Limits, RunEntry, ServerConfig, User};
pub use faults::{FaultAction, FaultRule};
pub use folders::DirectoryCatalog;
pub use profile::{Platform, StoreClockKind};
pub use stats::{Counts, LoggedRequest};

use crate::local::Access;
use crate::store::codec::DecoderMemory;
use aliases::Resolved;
use archive::Archives;
use auth::{Caller, Wanted};
use errors::{ApiError, Result};
use faults::Faults;
use listen::Phase;
use profile::Profile;
use routes::{Query, Target};
use stats::Stats;

/// The longest that one operation of a store may take.
const REQUEST_DEADLINE: Duration = Duration::from_secs(60);

/// The longest that an upload may take, as on the platform.
const UPLOAD_TIMEOUT: Duration = Duration::from_secs(300);

/// The longest that the body of a request about a store object may take.
const OBJECT_TIMEOUT: Duration = Duration::from_secs(30);

/// How many stores have their requests counted at once under a rate limit.
const MOST_ALLOWANCES: usize = 10_000;

/// Threads for the work of stores, beyond those that uploads may take: one a connection.
const MORE_THREADS: usize = 64;

/// How long requests under way may take to end when the server stops, where nothing else is said.
#[cfg(feature = "testing")]
const GRACE: Duration = Duration::from_millis(500);

/// The server, ready to be started.
#[derive(Debug)]
pub struct Server;

/// A running server; dropping it stops it.
#[derive(Debug)]
pub struct RunningServer {
    app: Arc<App>,
    addr: SocketAddr,
    phase: watch::Sender<Phase>,
    serving: Option<JoinHandle<()>>,
    /// `None` once it has been stopped.
    runtime: Option<Runtime>,
}

/// What all requests share.
#[derive(Debug)]
struct App {
    config: ServerConfig,
    catalog: Arc<dyn Catalog>,
    stats: Arc<Stats>,
    addr: SocketAddr,
    faults: Faults,
    profile: Option<Profile>,
    archives: Arc<Archives>,
    /// The memory of all decoders of answers.
    decoders: DecoderMemory,
    /// Requests left for each store, and when that was reckoned. By a hash of what the address
    /// calls the store: strangers choose that text.
    allowances: Mutex<HashMap<u64, (f64, Instant)>>,
    /// Hashes those texts.
    hasher: RandomState,
}

/// A request, but for its body.
#[derive(Debug)]
struct Call {
    method: Method,
    headers: HeaderMap,
    query: Query,
    caller: Caller,
    /// Whether the name by which the server was asked is one that no other site can have.
    is_local: bool,
    /// Base of public URLs.
    base: String,
}

impl Server {
    /// Starts a server over `config.root`. It listens when this returns.
    ///
    /// # Errors
    /// If the folder cannot be used or the address is taken.
    pub fn start(config: ServerConfig) -> io::Result<RunningServer> {
        let access = if config.read_only {
            Access::ReadOnly
        } else {
            Access::ReadWrite
        };
        let catalog = DirectoryCatalog::open(
            &config.root,
            access,
            config.general_access,
            config.signing_secret.clone(),
            config.state.as_deref(),
            &config.owner.id,
        )?;
        Self::start_with(config, Arc::new(catalog))
    }

    /// Starts a server over any catalog; `config.root` is not looked at.
    ///
    /// # Errors
    /// If the address is taken.
    pub fn start_with(
        config: ServerConfig,
        catalog: Arc<dyn Catalog>,
    ) -> io::Result<RunningServer> {
        let runtime = Builder::new_multi_thread()
            .max_blocking_threads(config.limits.connections.saturating_add(MORE_THREADS))
            .thread_name("kvfs-serve")
            .enable_all()
            .build()?;
        let listener = std::net::TcpListener::bind(config.listen)?;
        listener.set_nonblocking(true)?;
        let listener = {
            let _context = runtime.enter();
            TcpListener::from_std(listener)?
        };
        let addr = listener.local_addr()?;
        let app = Arc::new(App {
            faults: Faults::new(&config.knobs.faults),
            profile: config.platform.clone().map(Profile::new),
            decoders: DecoderMemory::new(config.limits.decoders),
            config,
            catalog,
            stats: Arc::default(),
            addr,
            archives: Arc::default(),
            allowances: Mutex::default(),
            hasher: RandomState::new(),
        });
        let (phase, phases) = watch::channel(Phase::Run);
        let serving = runtime.spawn(listen::serve(app.clone(), listener, phases));
        Ok(RunningServer {
            app,
            addr,
            phase,
            serving: Some(serving),
            runtime: Some(runtime),
        })
    }
}

impl RunningServer {
    /// Returns where the server listens.
    #[cfg(feature = "testing")]
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Returns the base URL, `/v2` not included.
    pub fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// Returns the stores that are served.
    pub fn catalog(&self) -> &Arc<dyn Catalog> {
        &self.app.catalog
    }

    /// Returns what has been counted so far.
    pub fn counts(&self) -> Counts {
        self.app.stats.counts()
    }

    /// Returns the last requests (10 000), oldest first.
    #[cfg(feature = "testing")]
    pub fn requests(&self) -> Vec<LoggedRequest> {
        self.app.stats.log()
    }

    /// Forgets all counts and requests.
    #[cfg(feature = "testing")]
    pub fn reset_counts(&self) {
        self.app.stats.reset();
    }

    /// Stops listening, gives requests under way a moment, and ends.
    #[cfg(feature = "testing")]
    pub fn stop(self) {
        self.stop_within(GRACE);
    }

    /// Stops listening and waits for requests under way, uploads above all, for at most `grace`.
    /// False if some had to be cut off, also by a [`Stopper`].
    pub fn stop_within(mut self, grace: Duration) -> bool {
        self.phase.send_if_modified(|phase| {
            let runs = *phase == Phase::Run;
            if runs {
                *phase = Phase::Finish;
            }
            runs
        });
        let (Some(serving), Some(runtime)) = (self.serving.take(), &self.runtime) else {
            return true;
        };
        let ending = async { tokio::time::timeout(grace, serving).await.is_ok() };
        let ended = runtime.block_on(ending);
        ended && *self.phase.borrow() != Phase::End
    }

    /// Returns what ends the server at once from another thread, whatever is under way.
    pub fn stopper(&self) -> Stopper {
        Stopper(self.phase.clone())
    }
}

/// Ends a server at once.
#[derive(Clone, Debug)]
pub struct Stopper(watch::Sender<Phase>);

impl Stopper {
    /// Ends the server.
    pub fn stop(&self) {
        self.0.send_replace(Phase::End);
    }
}

impl Drop for RunningServer {
    fn drop(&mut self) {
        self.phase.send_replace(Phase::End);
        if let Some(runtime) = self.runtime.take() {
            // Work on other threads may wait for a disk.
            runtime.shutdown_background();
        }
    }
}

impl Call {
    fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    /// Fails unless this caller may write to a store, and the server allows writes.
    fn may_write(&self, app: &App, found: &Resolved) -> Result<()> {
        if let Err(refused) = self.caller.must_be(&found.entry.owner) {
            // What may not even be read is not told of.
            auth::sight(self, found, Wanted::Store)?;
            return Err(refused);
        }
        app.must_be_writable()
    }
}

impl App {
    fn must_be_writable(&self) -> Result<()> {
        if self.config.read_only {
            return Err(ApiError::no_permission());
        }
        Ok(())
    }

    /// Returns the base of public URLs.
    fn base(&self, headers: &HeaderMap) -> String {
        if let Some(url) = &self.config.public_url {
            return url.trim_end_matches('/').to_owned();
        }
        match headers.get(header::HOST).map(HeaderValue::to_str) {
            Some(Ok(host)) if !host.is_empty() => format!("http://{host}"),
            _ => format!("http://{}", self.addr),
        }
    }

    /// Notes that a record of a store was stored or deleted.
    fn written(&self, entry: &StoreEntry) {
        if let Some(profile) = &self.profile {
            let now = self.catalog.find(Lookup::Id(&entry.id)).ok().flatten();
            profile.written(
                &entry.id,
                now.map_or(entry.modified, |entry| entry.modified),
            );
        }
    }

    /// Returns whether a request came by a name that only this machine, or the owner's own domain,
    /// can have. A server that other machines reach is asked by any name.
    fn is_local(&self, headers: &HeaderMap) -> bool {
        if !self.addr.ip().is_loopback() {
            return true;
        }
        // Browsers, which are what this is about, always send one.
        let Some(host) = headers.get(header::HOST).map(HeaderValue::to_str) else {
            return true;
        };
        let host = cors::host_of(host.unwrap_or_default());
        let public = self.config.public_url.as_deref();
        cors::is_loopback(host)
            || public
                .and_then(|url| url::Url::parse(url).ok())
                .and_then(|url| url.host_str().map(|own| own.eq_ignore_ascii_case(host)))
                .unwrap_or(false)
    }

    /// Takes one request out of a store's allowance: as many as the limit at once, and as many
    /// again each second.
    fn admit(&self, target: &Target) -> Result<()> {
        let Some(limit) = self.config.knobs.rate_limit else {
            return Ok(());
        };
        let most = f64::from(limit);
        let now = Instant::now();
        let mut allowances = self.allowances.lock();
        if allowances.len() >= MOST_ALLOWANCES {
            allowances.clear();
        }
        let (left, reckoned) = allowances
            .entry(self.hasher.hash_one(target))
            .or_insert((most, now));
        *left = (*left + now.duration_since(*reckoned).as_secs_f64() * most).min(most);
        *reckoned = now;
        if *left < 1.0 {
            return Err(ApiError::rate_limit(limit));
        }
        *left -= 1.0;
        Ok(())
    }
}
