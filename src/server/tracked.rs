//! Requests under way: the body of a request that says when the client is waited for, and the
//! body of an answer that says when it has gone out.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use axum::body::{Body, HttpBody};
use bytes::Bytes;
use hyper::body::{Frame, Incoming, SizeHint};

use super::connection::Signals;
use super::stats::{LoggedRequest, Stats};

/// A request under way; it ends when this is dropped, and is logged then.
#[derive(Debug)]
pub(super) struct Underway {
    signals: Arc<Signals>,
    stats: Arc<Stats>,
    began: Instant,
    line: Option<Arc<LoggedRequest>>,
    sent: u64,
}

impl Underway {
    pub(super) fn new(signals: Arc<Signals>, stats: Arc<Stats>) -> Self {
        signals.begin();
        stats.began();
        Self {
            signals,
            stats,
            began: Instant::now(),
            line: None,
            sent: 0,
        }
    }

    /// Returns the log text of the request.
    pub(super) fn log(&mut self, request: Arc<LoggedRequest>) {
        self.line = Some(request);
    }
}

impl Drop for Underway {
    fn drop(&mut self) {
        self.signals.end();
        self.stats.ended();
        if let Some(request) = &self.line {
            let LoggedRequest {
                method,
                path,
                status,
                ..
            } = &**request;
            let millis = self.began.elapsed().as_millis();
            tracing::debug!("{method} {path} {status} {} B {millis} ms", self.sent);
        }
    }
}

/// The body of an answer.
#[derive(Debug)]
pub(super) struct Tracked {
    inner: Body,
    underway: Underway,
}

impl Tracked {
    pub(super) fn wrap(inner: Body, underway: Underway) -> Body {
        Body::new(Self { inner, underway })
    }
}

impl HttpBody for Tracked {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = ready!(Pin::new(&mut self.inner).poll_frame(context));
        if let Some(Ok(frame)) = &frame {
            let bytes = frame.data_ref().map_or(0, |bytes| bytes.len() as u64);
            self.underway.sent += bytes;
            self.underway.stats.sent(bytes);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// The body of a request.
#[derive(Debug)]
pub(super) struct Awaited {
    inner: Incoming,
    signals: Arc<Signals>,
}

impl Awaited {
    pub(super) fn new(inner: Incoming, signals: Arc<Signals>) -> Self {
        Self { inner, signals }
    }
}

impl HttpBody for Awaited {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let frame = Pin::new(&mut self.inner).poll_frame(context);
        self.signals.await_body(frame.is_pending());
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

impl Drop for Awaited {
    fn drop(&mut self) {
        self.signals.await_body(false);
    }
}
