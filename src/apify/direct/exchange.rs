//! One request and the head of its answer: hyper speaks, the calling thread drives it and waits.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Instant;

use bytes::Bytes;
use http_body_util::Empty;
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use parking_lot::Mutex;
use rustix::event::PollFlags;

use super::connection::{Connection, Lent, Loan};
use crate::apify::errors::chain;

/// Why there is no answer.
#[derive(Debug)]
pub enum Stopped {
    /// The connection broke, or what came is not HTTP.
    Broken(String),
    /// Nothing came in time.
    Silent,
}

/// One request and its answer, driven by the calling thread.
pub struct Exchange {
    io: Arc<Mutex<Loan>>,
    driver: http1::Connection<Lent, Empty<Bytes>>,
    sender: SendRequest<Empty<Bytes>>,
    woken: Arc<Woken>,
    /// Why the connection is over, when it is.
    ended: Option<String>,
}

/// Whether a part of hyper has something to do for another.
#[derive(Default)]
struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl fmt::Debug for Exchange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Exchange").finish_non_exhaustive()
    }
}

impl Exchange {
    /// Sends a request and waits for the head of its answer.
    pub fn begin(
        connection: Connection,
        request: hyper::Request<Empty<Bytes>>,
        until: Instant,
    ) -> Result<(Self, hyper::Response<Incoming>), Stopped> {
        let io = Arc::new(Mutex::new(Loan {
            connection,
            until,
            is_late: false,
        }));
        let woken = Arc::new(Woken::default());
        let waker = Waker::from(Arc::clone(&woken));
        let mut context = Context::from_waker(&waker);
        let mut handshake = std::pin::pin!(http1::handshake(Lent(Arc::clone(&io))));
        let Poll::Ready(made) = handshake.as_mut().poll(&mut context) else {
            return Err(Stopped::Broken("HTTP cannot start".into()));
        };
        let (sender, driver) = made.map_err(|error| Stopped::Broken(chain(&error)))?;
        let mut exchange = Self {
            io,
            driver,
            sender,
            woken,
            ended: None,
        };
        let mut answer = Box::pin(exchange.sender.send_request(request));
        let answer = exchange.drive(until, |context| answer.as_mut().poll(context))?;
        match answer {
            Ok(answer) => Ok((exchange, answer)),
            Err(error) => Err(exchange.stopped(chain(&error))),
        }
    }

    /// Tells why it ended: hyper takes what came too late for a broken connection.
    fn stopped(&self, reason: String) -> Stopped {
        if self.io.lock().is_late {
            Stopped::Silent
        } else {
            Stopped::Broken(reason)
        }
    }

    /// Lets hyper work until `poll` has a result.
    pub fn drive<T>(
        &mut self,
        until: Instant,
        mut poll: impl FnMut(&mut Context<'_>) -> Poll<T>,
    ) -> Result<T, Stopped> {
        let waker = Waker::from(Arc::clone(&self.woken));
        let mut context = Context::from_waker(&waker);
        {
            let mut loan = self.io.lock();
            (loan.until, loan.is_late) = (until, false);
        }
        loop {
            self.woken.0.store(false, Ordering::Relaxed);
            if self.ended.is_none()
                && let Poll::Ready(end) = Pin::new(&mut self.driver).poll(&mut context)
            {
                self.ended = Some(end.err().map_or_else(
                    || "the server closed the connection".into(),
                    |error| chain(&error),
                ));
            }
            if let Poll::Ready(result) = poll(&mut context) {
                return Ok(result);
            }
            if let Some(reason) = &self.ended {
                return Err(self.stopped(reason.clone()));
            }
            if self.woken.0.load(Ordering::Relaxed) {
                continue;
            }
            // Requests are short: when hyper waits, it is for the answer.
            match self.io.lock().connection.wait(PollFlags::IN, until) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                    return Err(Stopped::Silent);
                }
                Err(error) => return Err(Stopped::Broken(error.to_string())),
            }
        }
    }

    /// Tells whether the connection is open and hyper has nothing more to read from it.
    pub fn is_done(&mut self) -> bool {
        let mut context = Context::from_waker(Waker::noop());
        self.ended.is_none()
            && Pin::new(&mut self.driver).poll(&mut context).is_pending()
            && matches!(self.sender.poll_ready(&mut context), Poll::Ready(Ok(())))
    }

    /// Tells whether the server has closed the connection already.
    pub fn has_ended(&self) -> bool {
        self.ended.is_some()
    }

    /// Takes the connection back, with what has been read from it and not been understood.
    pub fn end(self) -> Option<(Connection, Bytes)> {
        let parts = self.driver.into_parts();
        drop((parts.io, self.sender));
        let loan = Arc::into_inner(self.io)?.into_inner();
        Some((loan.connection, parts.read_buf))
    }
}
