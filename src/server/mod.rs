//! An Apify-compatible HTTP server over local stores: what `kvfs serve` runs and tests talk to.
//!
//! Stores block, so every request is worked off on a blocking thread; bodies go through small
//! bounded channels both ways and are never held whole. Which stores there are is a
//! [`Catalog`]'s business.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::{Body, HttpBody};
use axum::extract::{Request, State};
use axum::handler::Handler;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::serve::ListenerExt;
use http_body_util::{BodyExt, Limited};
use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::sync::oneshot;

mod aliases;
mod auth;
mod body;
pub mod catalog;
pub mod config;
mod errors;
pub mod folders;
mod keys;
mod negotiate;
mod range;
mod records;
mod reply;
mod routes;
mod sign;
mod stats;
mod stores;

pub use catalog::{Catalog, Changed, Lookup, StoreChange, StoreEntry};
pub use config::{GeneralAccess, Knobs, RunEntry, ServerConfig, User};
pub use folders::DirectoryCatalog;
pub use stats::{Counts, LoggedRequest};

use crate::local::Access;
use crate::redact::Secret;
use auth::Caller;
use errors::{ApiError, Result};
use routes::{Query, Route, Target};
use stats::Stats;

/// The longest that one operation of a store may take.
const REQUEST_DEADLINE: Duration = Duration::from_secs(60);

/// The longest that an upload may take, as on the platform.
const UPLOAD_TIMEOUT: Duration = Duration::from_secs(300);

/// The largest body of a request about a store object, in bytes.
const MAX_OBJECT: usize = 1 << 20;

/// Requests a second that the platform allows for records of a store, and for the rest.
const RATE_LIMITS: (u32, u32) = (200, 60);

/// Threads that move bytes; stores work on others.
const THREADS: usize = 2;

/// How long open connections may take to end when the server stops.
const GRACE: Duration = Duration::from_millis(500);

/// The server, ready to be started.
#[derive(Debug)]
pub struct Server;

/// A running server; dropping it stops it.
#[derive(Debug)]
pub struct RunningServer {
    app: Arc<App>,
    addr: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    runtime: Option<Runtime>,
}

/// What all requests share.
#[derive(Debug)]
struct App {
    config: ServerConfig,
    catalog: Arc<dyn Catalog>,
    stats: Arc<Stats>,
    addr: SocketAddr,
    /// Requests left for each store, and when that was reckoned.
    allowances: Mutex<HashMap<String, (f64, Instant)>>,
}

/// A request, but for its body.
#[derive(Debug)]
struct Call {
    method: Method,
    headers: HeaderMap,
    query: Query,
    caller: Caller,
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
        let secret = match (&config.signing_secret, &config.token) {
            (Some(secret), _) => secret.clone(),
            (None, Some(token)) => Secret::new(sign::record_signature(
                token.expose(),
                "kvfs signing secret",
            )),
            (None, None) => Secret::new(sign::base62(fastrand::u128(..))),
        };
        let catalog = DirectoryCatalog::open(&config.root, access, config.general_access, secret)?;
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
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(THREADS)
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
            config,
            catalog,
            stats: Arc::default(),
            addr,
            allowances: Mutex::default(),
        });
        let listener = listener.tap_io(|connection| {
            if let Err(error) = connection.set_nodelay(true) {
                tracing::debug!(%error, "a connection cannot be made prompt");
            }
        });
        let (stop, stopped) = oneshot::channel::<()>();
        // The handler serves all paths itself: routers change what the rules here depend on.
        let service = handle.with_state(app.clone()).into_make_service();
        let serving = axum::serve(listener, service).with_graceful_shutdown(async {
            // A dropped sender stops the server, too.
            let _ = stopped.await;
        });
        runtime.spawn(async {
            if let Err(error) = serving.await {
                tracing::error!(%error, "the server ended");
            }
        });
        Ok(RunningServer {
            app,
            addr,
            stop: Some(stop),
            runtime: Some(runtime),
        })
    }
}

impl RunningServer {
    /// Returns where the server listens.
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
    pub fn requests(&self) -> Vec<LoggedRequest> {
        self.app.stats.log()
    }

    /// Forgets all counts and requests.
    pub fn reset_counts(&self) {
        self.app.stats.reset();
    }

    /// Stops listening, gives open requests a moment, and ends.
    pub fn stop(mut self) {
        self.end(GRACE);
    }

    fn end(&mut self, grace: Duration) {
        drop(self.stop.take());
        if let Some(runtime) = self.runtime.take() {
            if grace.is_zero() {
                runtime.shutdown_background();
            } else {
                runtime.shutdown_timeout(grace);
            }
        }
    }
}

impl Drop for RunningServer {
    fn drop(&mut self) {
        self.end(Duration::ZERO);
    }
}

impl Call {
    fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    /// Fails unless this caller may write, and anybody at all may.
    fn may_write(&self, app: &App) -> Result<()> {
        self.caller.must_own()?;
        if app.config.read_only {
            return Err(ApiError::no_permission());
        }
        Ok(())
    }
}

async fn handle(State(app): State<Arc<App>>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let query = Query::parse(&parts.uri);
    // `?method=POST` on a GET, for clients that can do nothing else.
    let method = match query.text("method").map(str::to_ascii_uppercase) {
        Some(method) if parts.method == Method::GET => {
            Method::from_bytes(method.as_bytes()).unwrap_or(parts.method)
        }
        _ => parts.method,
    };
    let route = Route::parse(&parts.uri);
    let kind = route
        .as_ref()
        .map_or(stats::Kind::Other, |route| route.kind(&method));
    let header = |name| parts.headers.get(name);
    let mut logged = LoggedRequest {
        method: method.as_str().to_owned(),
        path: stats::redacted(parts.uri.path_and_query().map_or("", |path| path.as_str())),
        status: 0,
        range: header(header::RANGE).map(|range| String::from_utf8_lossy(range.as_bytes()).into()),
        conditional: [
            header::IF_MATCH,
            header::IF_NONE_MATCH,
            header::IF_MODIFIED_SINCE,
        ]
        .iter()
        .any(|name| parts.headers.contains_key(name)),
    };
    let is_stats = matches!(route, Ok(Route::Stats));
    if !is_stats && !app.config.knobs.latency.is_zero() {
        tokio::time::sleep(app.config.knobs.latency).await;
    }
    let head = method == Method::HEAD;
    let mut response = match route {
        Ok(route) => answer(&app, method, parts.headers, query, route, body)
            .await
            .unwrap_or_else(IntoResponse::into_response),
        Err(error) => error.into_response(),
    };
    if let Some(size) = response.body().size_hint().exact()
        && !head
    {
        app.stats.sent(size);
    }
    let limit = match kind {
        stats::Kind::List | stats::Kind::Other => RATE_LIMITS.1,
        _ => RATE_LIMITS.0,
    };
    response.headers_mut().insert(
        "x-ratelimit-limit",
        HeaderValue::from(app.config.knobs.rate_limit.unwrap_or(limit)),
    );
    if !is_stats {
        logged.status = response.status().as_u16();
        tracing::debug!(
            method = logged.method,
            path = logged.path,
            status = logged.status
        );
        app.stats.count(kind, logged);
    }
    response
}

async fn answer(
    app: &Arc<App>,
    method: Method,
    headers: HeaderMap,
    query: Query,
    route: Route,
    mut body: Body,
) -> Result<Response> {
    if method == Method::OPTIONS {
        return Ok(options(&route));
    }
    if !route.methods().contains(&method) {
        return Err(ApiError::method(route.methods()));
    }
    if let Some(target) = route.target() {
        app.admit(target)?;
    }
    let call = Call {
        base: app.base(&headers),
        caller: auth::caller(&app.config, &headers, &query)?,
        method,
        headers,
        query,
    };
    let app = app.clone();
    match route {
        Route::Record(target, key) if call.method == Method::PUT || call.method == Method::POST => {
            let (feeder, incoming) = body::incoming();
            let storing = blocking(move || records::put(&app, &call, &target, &key, incoming));
            let feeding = async move {
                let fed = tokio::time::timeout(UPLOAD_TIMEOUT, feeder.feed(&mut body)).await;
                if fed.is_err() {
                    feeder.fail(io::Error::from(io::ErrorKind::TimedOut)).await;
                }
                fed.is_err()
            };
            let (stored, late) = tokio::join!(storing, feeding);
            // The platform answers a late body without a body.
            match stored {
                Err(_) if late => Ok(reply::empty(StatusCode::REQUEST_TIMEOUT)),
                stored => stored,
            }
        }
        Route::Stores | Route::Store(_) => {
            let body = Limited::new(body, MAX_OBJECT).collect().await;
            let body = body.map_err(|_| ApiError::too_large())?.to_bytes();
            blocking(move || match (&route, &call.method) {
                (Route::Store(target), _) => stores::store(&app, &call, target, &body),
                (_, &Method::POST) => stores::create(&app, &call, &body),
                _ => stores::list(&app, &call),
            })
            .await
        }
        route => blocking(move || small(&app, &call, &route)).await,
    }
}

/// Answers requests that have no body.
fn small(app: &App, call: &Call, route: &Route) -> Result<Response> {
    match route {
        Route::Stats if call.method == Method::DELETE => {
            call.caller.must_own()?;
            app.stats.reset();
            Ok(reply::empty(StatusCode::NO_CONTENT))
        }
        Route::Stats => {
            call.caller.must_own()?;
            let answer = serde_json::json!({
                "counts": app.stats.counts(),
                "requests": app.stats.log(),
            });
            Ok(reply::json(StatusCode::OK, &answer))
        }
        Route::Me => stores::me(call),
        Route::User(id) => stores::user(app, id),
        Route::Run(target) => stores::run(app, call, target),
        Route::Keys(target) => keys::list(app, call, target),
        Route::Records(_) => Err(ApiError::not_implemented("archives of all records")),
        Route::Record(target, key) if call.method == Method::DELETE => {
            records::delete(app, call, target, key)
        }
        Route::Record(target, key) => records::get(app, call, target, key),
        Route::Stores | Route::Store(_) => Err(ApiError::internal()),
    }
}

async fn blocking(work: impl FnOnce() -> Result<Response> + Send + 'static) -> Result<Response> {
    match tokio::task::spawn_blocking(work).await {
        Ok(answer) => answer,
        Err(error) => {
            tracing::error!(%error, "a request ended in a panic");
            Err(ApiError::internal())
        }
    }
}

fn options(route: &Route) -> Response {
    let mut response = reply::empty(StatusCode::NO_CONTENT);
    let mut names = vec!["OPTIONS"];
    names.extend(route.methods().iter().map(Method::as_str));
    if let Ok(value) = HeaderValue::from_str(&names.join(", ")) {
        response.headers_mut().insert(header::ALLOW, value);
    }
    response
}

impl App {
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

    /// Takes one request out of a store's allowance: as many as the limit at once, and as many
    /// again each second.
    fn admit(&self, target: &Target) -> Result<()> {
        let Some(limit) = self.config.knobs.rate_limit else {
            return Ok(());
        };
        let most = f64::from(limit);
        let now = Instant::now();
        let mut allowances = self.allowances.lock();
        let (left, reckoned) = allowances
            .entry(format!("{target:?}"))
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
