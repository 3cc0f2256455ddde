//! The counters of a mount for Prometheus: `kvfs mount --metrics`.
//!
//! One thread with one event loop answers `GET /metrics`, a few connections at a time, each for a
//! few seconds. It uses nothing but the counters, so that a mount that hangs still shows them.

use std::convert::Infallible;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{ALLOW, CONTENT_TYPE};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};

pub mod text;

pub use text::About;
use text::Exposition;

use crate::metrics::Metrics;

/// Connections at a time; others wait.
const CONNECTIONS: usize = 8;
/// How long one connection may take in all.
const CONNECTION_TIME: Duration = Duration::from_secs(10);
/// How long the head of a request may take.
const HEAD_TIME: Duration = Duration::from_secs(5);
/// The largest head of a request, in bytes.
const HEAD_SIZE: usize = 16 << 10;
/// The wait after a connection could not be accepted, for want of file descriptors say.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// Answers at `address` until the process ends; returns the address with the port in use.
///
/// # Errors
/// That it cannot listen there.
pub fn start(address: SocketAddr, about: About, metrics: Arc<Metrics>) -> io::Result<SocketAddr> {
    let listener = TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    let local = listener.local_addr()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let exposition = Arc::new(Exposition::new(about, metrics));
    thread::Builder::new()
        .name("kvfs-metrics".into())
        .spawn(move || runtime.block_on(serve(listener, exposition)))?;
    Ok(local)
}

async fn serve(listener: TcpListener, exposition: Arc<Exposition>) {
    let listener = match tokio::net::TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => {
            tracing::warn!(%error, "cannot serve metrics");
            return;
        }
    };
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            return;
        };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::debug!(%error, "a connection for metrics cannot be accepted");
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let exposition = Arc::clone(&exposition);
        tokio::spawn(async move {
            let service = service_fn(|request| {
                let answer = answer(&request, &exposition);
                async move { Ok::<_, Infallible>(answer) }
            });
            let serving = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD_TIME)
                .max_buf_size(HEAD_SIZE)
                .serve_connection(TokioIo::new(stream), service);
            if let Ok(Err(error)) = timeout(CONNECTION_TIME, serving).await {
                tracing::debug!(%error, "a connection for metrics broke");
            }
            drop(place);
        });
    }
}

fn answer<B>(request: &Request<B>, exposition: &Exposition) -> Response<Full<Bytes>> {
    let text = |status, content_type: &'static str, text: String| {
        let mut response = Response::new(Full::new(Bytes::from(text)));
        *response.status_mut() = status;
        let value = hyper::header::HeaderValue::from_static(content_type);
        response.headers_mut().insert(CONTENT_TYPE, value);
        response
    };
    const PLAIN: &str = "text/plain; charset=utf-8";
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let mut refusal = text(StatusCode::METHOD_NOT_ALLOWED, PLAIN, "only GET\n".into());
        let allowed = hyper::header::HeaderValue::from_static("GET, HEAD");
        refusal.headers_mut().insert(ALLOW, allowed);
        return refusal;
    }
    match request.uri().path() {
        "/metrics" => match exposition.text() {
            Ok(body) => text(StatusCode::OK, text::CONTENT_TYPE, body),
            Err(error) => {
                let why = format!("cannot write the metrics: {error}\n");
                text(StatusCode::INTERNAL_SERVER_ERROR, PLAIN, why)
            }
        },
        _ => text(StatusCode::NOT_FOUND, PLAIN, "see /metrics\n".into()),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpStream;

    use super::*;

    fn ask(address: SocketAddr, request: &str) -> String {
        let mut stream = TcpStream::connect(address).expect("a connection");
        stream.write_all(request.as_bytes()).expect("a request");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        answer
    }

    #[test]
    fn metrics_are_served_under_their_path_only_and_cannot_be_changed() {
        let metrics = Arc::new(Metrics::default());
        metrics.requests_total.add(3);
        let loopback = "127.0.0.1:0".parse().expect("an address");
        let about = About {
            mount_point: "/m".into(),
            store: "~mine".into(),
        };
        let address = start(loopback, about, metrics).expect("a listener");
        let get = |path: &str| {
            ask(
                address,
                &format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"),
            )
        };
        let answer = get("/metrics");
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        assert!(answer.contains("application/openmetrics-text"), "{answer}");
        assert!(answer.contains("\nkvfs_requests_total 3\n"), "{answer}");
        assert!(answer.ends_with("# EOF\n"), "{answer}");
        assert!(get("/").starts_with("HTTP/1.1 404"));
        let post = "POST /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
        assert!(ask(address, post).starts_with("HTTP/1.1 405"));
    }
}
