//! Answers a request: counts it, admits it, and runs it on a blocking thread.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, HttpBody};
use axum::extract::Request;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http_body_util::{BodyExt, LengthLimitError, Limited};

use super::connection::Signals;
use super::errors::{ApiError, Result};
use super::faults::{BodyFault, FaultAction};
use super::routes::{Query, Route};
use super::stats::{Kind, LoggedRequest};
use super::tracked::{Tracked, Underway};
use super::{
    App, Call, OBJECT_TIMEOUT, UPLOAD_TIMEOUT, accounts, archive, auth, body, cors, keys, records,
    reply, stats, stores,
};

/// The largest body of a request about a store object, in bytes.
const MAX_OBJECT: usize = 1 << 20;

/// Requests a second that the platform allows for records of a store and their listing, and for
/// the rest.
const RATE_LIMITS: (u32, u32) = (200, 60);

/// Names the limit, as the platform does.
const RATE_LIMIT: &str = "x-ratelimit-limit";

/// Says `no` where the limit is the platform's and this server keeps none: clients need not wait.
const LIMIT_ENFORCED: &str = "x-ratelimit-enforced";

/// What becomes of a request.
#[derive(Debug)]
pub(super) enum Outcome {
    /// It is answered.
    Answer(Response),
    /// The connection is reset instead, as a fault rule says.
    Reset,
}

/// Answers any request.
pub(super) async fn handle(app: Arc<App>, signals: Arc<Signals>, request: Request) -> Outcome {
    let (mut parts, mut body) = request.into_parts();
    let query = Query::parse(&parts.uri);
    // `?method=POST` on a GET, for clients that can do nothing else.
    let method = match query.text("method").map(str::to_ascii_uppercase) {
        Some(method) if parts.method == Method::GET => {
            Method::from_bytes(method.as_bytes()).unwrap_or(parts.method)
        }
        _ => parts.method,
    };
    let route = Route::parse(&parts.uri);
    if matches!(route, Ok(Route::Stats)) {
        return Outcome::Answer(respond(&app, method, parts.headers, query, route, body).await);
    }
    let kind = route
        .as_ref()
        .map_or(Kind::Other, |route| route.kind(&method));
    let mut logged = logged(&method, &parts.uri, &parts.headers);
    let mut underway = Underway::new(signals, app.stats.clone());
    let profile = app.profile.as_ref();
    let asked = profile.map(|profile| profile.ask(&method, &route, &mut parts.headers));
    let fault = route
        .as_ref()
        .ok()
        .and_then(|route| app.faults.decide(&method, route));
    let delay = match fault {
        Some(FaultAction::Delay(delay)) => delay,
        _ => Duration::ZERO,
    };
    let wait = app.config.knobs.latency + delay;
    if !wait.is_zero() {
        tokio::time::sleep(wait).await;
    }
    let readable = cors::may_read(app.addr, &parts.headers, &query);
    let response = match fault {
        Some(FaultAction::Reset) => None,
        Some(FaultAction::Status(status)) => {
            body::drain(&mut body).await;
            Some(ApiError::injected(status).into_response())
        }
        fault => {
            let head = method == Method::HEAD;
            let admitted = match (profile, &asked) {
                (Some(profile), Some(asked)) => profile.admit(asked, &route),
                _ => Ok(()),
            };
            let mut response = match admitted {
                Ok(()) => respond(&app, method, parts.headers, query, route, body).await,
                Err(error) => error.into_response(),
            };
            if let (Some(profile), Some(asked)) = (profile, &asked) {
                response = profile.answer(asked, response).await;
            }
            match fault {
                Some(FaultAction::Lose) => None,
                Some(action) if !head => Some(break_body(action, response)),
                _ => Some(response),
            }
        }
    };
    let Some(mut response) = response else {
        app.stats.count(kind, Arc::new(logged));
        return Outcome::Reset;
    };
    let limit = match kind {
        Kind::Other => RATE_LIMITS.1,
        _ => RATE_LIMITS.0,
    };
    cors::describe(response.headers_mut(), readable);
    let limit = match (profile, &asked) {
        (Some(profile), Some(asked)) => profile.limit(asked),
        _ => Some(limit),
    };
    if let Some(limit) = limit {
        let enforced = app.config.knobs.rate_limit;
        let headers = response.headers_mut();
        headers.insert(RATE_LIMIT, HeaderValue::from(enforced.unwrap_or(limit)));
        if enforced.is_none() && profile.is_none() {
            headers.insert(LIMIT_ENFORCED, HeaderValue::from_static("no"));
        }
    }
    logged.status = response.status().as_u16();
    let logged = Arc::new(logged);
    underway.log(logged.clone());
    app.stats.count(kind, logged);
    Outcome::Answer(response.map(|body| Tracked::wrap(body, underway)))
}

fn logged(method: &Method, uri: &Uri, headers: &HeaderMap) -> LoggedRequest {
    let range = headers.get(header::RANGE);
    LoggedRequest {
        method: stats::short(method.as_str().to_owned()),
        path: stats::short(stats::redacted(
            uri.path_and_query().map_or("", |path| path.as_str()),
        )),
        status: 0,
        range: range
            .map(|range| stats::short(String::from_utf8_lossy(range.as_bytes()).into_owned())),
        conditional: [
            header::IF_MATCH,
            header::IF_NONE_MATCH,
            header::IF_MODIFIED_SINCE,
        ]
        .iter()
        .any(|name| headers.contains_key(name)),
    }
}

/// Breaks the body of an answer; its head says what the whole one would have been.
fn break_body(action: FaultAction, response: Response) -> Response {
    let (mut parts, body) = response.into_parts();
    let exact = body.size_hint().exact();
    if let Some(size) = exact.filter(|size| *size > 0) {
        parts
            .headers
            .entry(header::CONTENT_LENGTH)
            .or_insert(HeaderValue::from(size));
    }
    let said = parts
        .headers
        .get(header::CONTENT_LENGTH)
        .and_then(|length| length.to_str().ok()?.parse().ok());
    let body = BodyFault::apply(action, body, exact.or(said));
    Response::from_parts(parts, body)
}

async fn respond(
    app: &Arc<App>,
    method: Method,
    headers: HeaderMap,
    query: Query,
    route: Result<Route>,
    body: Body,
) -> Response {
    let answered = match route {
        Ok(route) => answer(app, method, headers, query, route, body).await,
        Err(error) => Err(error),
    };
    answered.unwrap_or_else(IntoResponse::into_response)
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
        let mut response = reply::empty(StatusCode::NO_CONTENT);
        *response.headers_mut() = cors::options(&route, &headers);
        return Ok(response);
    }
    let head: usize = headers
        .iter()
        .map(|(name, value)| name.as_str().len() + value.len())
        .sum();
    if head > app.config.limits.head {
        return Err(ApiError::head_too_large());
    }
    if !route.methods().contains(&method) {
        return Err(ApiError::method(route.methods()));
    }
    if let Some(target) = route.target() {
        app.admit(target)?;
    }
    let call = Call {
        base: app.base(&headers),
        is_local: app.is_local(&headers),
        caller: auth::caller(&app.config, &headers, &query)?,
        method,
        headers,
        query,
    };
    let app = app.clone();
    match route {
        Route::Record(target, key) if call.method == Method::PUT || call.method == Method::POST => {
            let (feeder, incoming) = body::incoming();
            let put = app.clone();
            let storing = blocking(move || records::put(&put, &call, &target, &key, incoming));
            let stats = app.stats.clone();
            let feeding = async move {
                let feed = feeder.feed(&mut body, &stats);
                let fed = tokio::time::timeout(UPLOAD_TIMEOUT, feed).await;
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
        Route::Stores if call.method == Method::POST => {
            if let Err(refused) = stores::may_create(&app, &call) {
                body::drain(&mut body).await;
                return Err(refused);
            }
            match object_body(body).await? {
                Some(body) => blocking(move || stores::create(&app, &call, &body)).await,
                None => Ok(reply::empty(StatusCode::REQUEST_TIMEOUT)),
            }
        }
        Route::Store(target) if call.method == Method::PUT => {
            let (asked, call) = (app.clone(), Arc::new(call));
            let caller = call.clone();
            let entry = match blocking(move || stores::to_change(&asked, &caller, &target)).await {
                Ok(entry) => entry,
                Err(refused) => {
                    body::drain(&mut body).await;
                    return Err(refused);
                }
            };
            match object_body(body).await? {
                Some(body) => blocking(move || stores::change(&app, &call, &entry, &body)).await,
                None => Ok(reply::empty(StatusCode::REQUEST_TIMEOUT)),
            }
        }
        route => blocking(move || small(&app, &call, &route)).await,
    }
}

/// Returns the body of a request about a store object; `None` if it does not come in time.
async fn object_body(body: Body) -> Result<Option<Bytes>> {
    let collecting = Limited::new(body, MAX_OBJECT).collect();
    match tokio::time::timeout(OBJECT_TIMEOUT, collecting).await {
        Ok(Ok(body)) => Ok(Some(body.to_bytes())),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(ApiError::too_large()),
        Ok(Err(_)) => Err(ApiError::aborted()),
        Err(_) => Ok(None),
    }
}

/// Answers requests without a body, or with one that says nothing.
fn small(app: &App, call: &Call, route: &Route) -> Result<Response> {
    match route {
        Route::Stats if call.method == Method::DELETE => {
            call.caller.must_be(&app.config.owner.id)?;
            app.stats.reset();
            Ok(reply::empty(StatusCode::NO_CONTENT))
        }
        Route::Stats => {
            call.caller.must_be(&app.config.owner.id)?;
            Ok(reply::json(StatusCode::OK, &app.stats.report()))
        }
        Route::Me => accounts::me(call),
        Route::User(id) => accounts::user(app, id),
        Route::Run(target) => accounts::run(app, call, target),
        Route::Keys(target) => keys::list(app, call, target),
        Route::Records(target) => archive::get(app, call, target),
        Route::Record(target, key) if call.method == Method::DELETE => {
            records::delete(app, call, target, key)
        }
        Route::Record(target, key) => records::get(app, call, target, key),
        Route::Stores => stores::list(app, call),
        Route::Store(target) if call.method == Method::DELETE => stores::delete(app, call, target),
        Route::Store(target) => stores::get(app, call, target),
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|_| {
        tracing::error!("a request ended in a panic");
        Err(ApiError::internal())
    })
}
