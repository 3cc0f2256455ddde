//! Bodies that break.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::{Body, HttpBody};
use bytes::{Bytes, BytesMut};
use hyper::body::Frame;
use tokio::time::{Instant, Sleep, sleep_until};

use super::FaultAction;

/// As good as never: a year.
const NEVER: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// What happens at one place of a body.
#[derive(Clone, Copy, Debug)]
enum Break {
    /// What has come so far goes out, then comes [`Break::Error`].
    End,
    Error,
    Wait(Duration),
    Flip,
}

/// A body with a break in it.
#[derive(Debug)]
pub(in crate::server) struct BodyFault {
    inner: Body,
    /// Bytes until the break.
    left: u64,
    kind: Option<Break>,
    waiting: Option<Pin<Box<Sleep>>>,
    /// What comes after the break of a piece that holds it.
    rest: Option<Bytes>,
}

impl BodyFault {
    /// Breaks a body as an action says, if it is about bodies. `size` is the body's, if known.
    pub(in crate::server) fn apply(action: FaultAction, body: Body, size: Option<u64>) -> Body {
        let (place, kind) = match action {
            FaultAction::Truncate(place) => (place, Break::End),
            FaultAction::Corrupt(place) => (place, Break::Flip),
            FaultAction::Stall(time) => (None, Break::Wait(time.unwrap_or(NEVER))),
            _ => return body,
        };
        Body::new(Self {
            inner: body,
            left: place.unwrap_or(size.unwrap_or(0) / 2),
            kind: Some(kind),
            waiting: None,
            rest: None,
        })
    }

    /// Returns the bytes before the break; what comes after is kept.
    fn cut(&mut self, mut bytes: Bytes) -> Bytes {
        let length = bytes.len() as u64;
        if self.left >= length {
            self.left -= length;
            return bytes;
        }
        // Less than the length of a piece.
        let before = bytes.split_to(self.left as usize);
        self.left = 0;
        self.rest = Some(bytes);
        before
    }
}

impl HttpBody for BodyFault {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        loop {
            if let Some(waiting) = &mut self.waiting {
                ready!(waiting.as_mut().poll(context));
                self.waiting = None;
            }
            if let Some(rest) = self.rest.take() {
                match self.kind.take() {
                    Some(Break::End) => {
                        // Head and bytes that are not on their way yet would be lost with an
                        // error right away.
                        self.kind = Some(Break::Error);
                        self.rest = Some(rest);
                        context.waker().wake_by_ref();
                        return Poll::Pending;
                    }
                    Some(Break::Error) => {
                        let end = io::Error::from(io::ErrorKind::ConnectionAborted);
                        return Poll::Ready(Some(Err(axum::Error::new(end))));
                    }
                    Some(Break::Wait(time)) => {
                        self.waiting = Some(Box::pin(sleep_until(Instant::now() + time)));
                        self.rest = Some(rest);
                        continue;
                    }
                    Some(Break::Flip) => {
                        let mut wrong = BytesMut::from(&rest[..]);
                        if let Some(byte) = wrong.first_mut() {
                            *byte ^= 1;
                        }
                        return Poll::Ready(Some(Ok(Frame::data(wrong.freeze()))));
                    }
                    None => return Poll::Ready(Some(Ok(Frame::data(rest)))),
                }
            }
            let frame = ready!(Pin::new(&mut self.inner).poll_frame(context));
            let Some(Ok(frame)) = frame else {
                return Poll::Ready(frame);
            };
            if self.kind.is_none() {
                return Poll::Ready(Some(Ok(frame)));
            }
            let bytes = match frame.into_data() {
                Ok(bytes) => self.cut(bytes),
                Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
            };
            if !bytes.is_empty() {
                return Poll::Ready(Some(Ok(Frame::data(bytes))));
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_none() && self.waiting.is_none() && self.inner.is_end_stream()
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    fn sent(action: FaultAction, size: Option<u64>) -> Result<Bytes, axum::Error> {
        let pieces = ["0123", "4567", "89"].map(|piece| Ok::<_, io::Error>(Bytes::from(piece)));
        let body = Body::from_stream(futures_util::stream::iter(pieces));
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .expect("a runtime");
        let broken = BodyFault::apply(action, body, size);
        let collected = runtime.block_on(broken.collect())?;
        Ok(collected.to_bytes())
    }

    #[test]
    fn bodies_break_where_they_should() {
        let text = |action, size| sent(action, size).ok();
        assert_eq!(
            text(FaultAction::Corrupt(Some(4)), None).as_deref(),
            Some(&b"0123556789"[..])
        );
        assert_eq!(
            text(FaultAction::Corrupt(None), Some(10)).as_deref(),
            Some(&b"0123446789"[..])
        );
        assert_eq!(text(FaultAction::Truncate(Some(9)), None), None);
        for whole in [
            FaultAction::Truncate(Some(10)),
            FaultAction::Corrupt(Some(99)),
            FaultAction::Stall(Some(Duration::from_millis(1))),
            FaultAction::Reset,
        ] {
            assert_eq!(
                text(whole, Some(10)).as_deref(),
                Some(&b"0123456789"[..]),
                "{whole:?}"
            );
        }
    }
}
