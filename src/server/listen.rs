//! Accepts connections and reads requests: limits their number and the size of heads, and ends
//! them.

use std::fmt;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderValue, header};
use axum::response::Response;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

use super::App;
use super::connection::{Connection, Signals, Throttle};
use super::dispatch::{self, Outcome};
use super::tracked::Awaited;

/// The wait after a connection could not be accepted, for want of file descriptors say.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// How long a connection may bring no request, or take next to nothing of its answer, while others
/// wait for its place.
pub(super) const SPARED: Duration = Duration::from_secs(2);

/// Bytes of an answer that a client has to take in that time.
pub(super) const LEAST_TAKEN: usize = 64 << 10;

/// Headers of a request, at most.
const MAX_HEADERS: usize = 100;

/// What a server is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Phase {
    /// Serve.
    Run,
    /// Take no new requests, finish those under way.
    Finish,
    /// End at once.
    End,
}

/// Serves connections until the phase says otherwise.
pub(super) async fn serve(app: Arc<App>, listener: TcpListener, mut phase: watch::Receiver<Phase>) {
    let limits = app.config.limits;
    let places = Arc::new(Semaphore::new(limits.connections.max(1)));
    let throttle = app.config.knobs.bandwidth;
    let throttle = throttle.map(|bandwidth| Arc::new(Throttle::new(bandwidth)));
    // Whether a client waits for a place.
    let (crowd, crowded) = watch::channel(false);
    let mut connections = JoinSet::new();
    while *phase.borrow() == Phase::Run {
        let next = async {
            let accepted = listener.accept().await;
            crowd.send_replace(accepted.is_ok() && places.available_permits() == 0);
            // Closed only with this function.
            let place = places.clone().acquire_owned().await.ok();
            crowd.send_replace(false);
            (place, accepted)
        };
        let (place, accepted) = tokio::select! {
            next = next => next,
            // A sender that is gone means the end, too.
            _ = phase.changed() => break,
        };
        while connections.try_join_next().is_some() {}
        match accepted {
            Ok((stream, _)) => {
                let serving = connection(
                    app.clone(),
                    stream,
                    throttle.clone(),
                    phase.clone(),
                    crowded.clone(),
                );
                connections.spawn(async move {
                    serving.await;
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "a connection cannot be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    // New connections are refused now.
    drop(listener);
    loop {
        tokio::select! {
            ended = connections.join_next() => if ended.is_none() { return },
            () = reached(&mut phase, Phase::End) => {
                tracing::debug!("open connections are cut off");
                return;
            }
        }
    }
}

/// Waits until the server is in this phase or a later one.
async fn reached(phase: &mut watch::Receiver<Phase>, wanted: Phase) {
    // A server that is gone is past every phase.
    let _ = phase.wait_for(|phase| *phase >= wanted).await;
}

async fn connection(
    app: Arc<App>,
    stream: TcpStream,
    throttle: Option<Arc<Throttle>>,
    mut phase: watch::Receiver<Phase>,
    crowded: watch::Receiver<bool>,
) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "a connection cannot be made prompt");
    }
    let limits = app.config.limits;
    let signals = Arc::new(Signals::default());
    let _open = app.stats.connected();
    let service = service_fn(|request: hyper::Request<Incoming>| {
        let (app, signals, crowded) = (app.clone(), signals.clone(), &crowded);
        async move {
            let request = request.map(|body| Body::new(Awaited::new(body, signals.clone())));
            match dispatch::handle(app, signals.clone(), request).await {
                Outcome::Answer(mut response) => {
                    // Others wait for this place, whether this client wants to ask more or not.
                    if *crowded.borrow() {
                        let close = HeaderValue::from_static("close");
                        response.headers_mut().insert(header::CONNECTION, close);
                    }
                    Ok::<Response, Reset>(response)
                }
                Outcome::Reset => {
                    signals.reset();
                    Err(Reset)
                }
            }
        }
    });
    let io = Connection::new(stream, signals.clone(), throttle, limits.idle);
    let serving = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.idle)
        .max_buf_size(limits.head)
        .max_headers(MAX_HEADERS)
        .serve_connection(TokioIo::new(io), service);
    let mut serving = pin!(serving);
    let ended = tokio::select! {
        ended = serving.as_mut() => ended,
        () = unwanted(&signals, crowded.clone()) => {
            tracing::debug!("a connection that is hardly used makes way for another");
            return;
        }
        () = reached(&mut phase, Phase::Finish) => {
            serving.as_mut().graceful_shutdown();
            serving.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection broke");
    }
}

/// Waits until another client waits for the place of a connection without a request, or with a
/// client that hardly reads its answer.
async fn unwanted(signals: &Signals, mut crowded: watch::Receiver<bool>) {
    loop {
        if crowded.wait_for(|crowded| *crowded).await.is_err() {
            // The server takes no more connections.
            return std::future::pending().await;
        }
        let unused = signals.unused_since().map(|since| since.elapsed());
        match unused {
            Some(unused) if unused >= SPARED => return,
            Some(unused) => tokio::time::sleep(SPARED - unused).await,
            None => {
                let before = signals.blocked_at();
                tokio::time::sleep(SPARED).await;
                if let (Some(before), Some(now)) = (before, signals.blocked_at())
                    && now - before < LEAST_TAKEN as u64
                    && *crowded.borrow()
                {
                    return;
                }
            }
        }
    }
}

/// A connection that is to be reset instead of answered.
#[derive(Debug)]
struct Reset;

impl fmt::Display for Reset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the connection is reset on purpose")
    }
}

impl std::error::Error for Reset {}
