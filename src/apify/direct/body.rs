//! An answer's body, read by the thread that wants it.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Incoming};

use super::connection::Connection;
use super::exchange::{Exchange, Stopped};
use super::idle::Idle;
use crate::apify::body::Broken;
use crate::apify::errors::chain;
use crate::apify::transport::Transport;
use crate::base::clock::Deadline;

/// Bytes read at once for who takes bodies in chunks.
const CHUNK: usize = 64 << 10;

/// Where a connection goes when its answer has been read: among those of which server.
pub type Home = (Arc<Idle>, String);

/// The body of an answer.
pub struct DirectBody {
    framing: Framing,
    home: Option<Home>,
    transport: Arc<Transport>,
}

enum Framing {
    Counted(Counted),
    /// hyper knows where it ends.
    Framed(Box<(Exchange, Incoming)>),
}

/// So many bytes follow on the connection, after those that have come with the head.
#[derive(Default)]
struct Counted {
    early: VecDeque<Bytes>,
    connection: Option<Connection>,
    left: u64,
}

impl DirectBody {
    /// Takes over the body of an answer.
    ///
    /// # Errors
    /// None that a server could cause.
    pub fn new(
        exchange: Exchange,
        mut body: Incoming,
        home: Option<Home>,
        transport: Arc<Transport>,
    ) -> Result<Self, Broken> {
        let len = if body.is_end_stream() {
            Some(0)
        } else {
            body.size_hint().exact()
        };
        let Some(len) = len else {
            return Ok(Self {
                framing: Framing::Framed(Box::new((exchange, body))),
                home,
                transport,
            });
        };
        let mut early = VecDeque::new();
        let mut context = Context::from_waker(Waker::noop());
        while let Poll::Ready(Some(Ok(frame))) = Pin::new(&mut body).poll_frame(&mut context) {
            early.extend(frame.into_data());
        }
        drop(body);
        let ended = exchange.has_ended();
        let (connection, read) = exchange
            .end()
            .ok_or_else(|| Broken::Lost("the connection is in use".into()))?;
        early.push_back(read);
        early.retain(|bytes| !bytes.is_empty());
        let here: u64 = early.iter().map(|bytes| bytes.len() as u64).sum();
        // Bytes beyond the end belong to no answer.
        let excess = here.saturating_sub(len);
        if excess > 0
            && let Some(last) = early.back_mut()
        {
            last.truncate(last.len().saturating_sub(excess as usize));
        }
        let mut made = Self {
            framing: Framing::Counted(Counted {
                early,
                connection: Some(connection),
                left: len.saturating_sub(here),
            }),
            home: home.filter(|_| excess == 0 && !ended),
            transport,
        };
        made.give_back();
        Ok(made)
    }

    /// Reads into `buffer`; 0 at the end of the body. `None` where there are only chunks.
    ///
    /// # Errors
    /// The body broke off, or nothing has come for as long as an attempt may be silent.
    pub fn read(&mut self, buffer: &mut [u8]) -> Result<Option<usize>, Broken> {
        let Framing::Counted(counted) = &mut self.framing else {
            return Ok(None);
        };
        let len = counted.read(buffer, self.transport.patience(None))?;
        self.note(len);
        self.give_back();
        Ok(Some(len))
    }

    /// Returns the next bytes; `None` at the end of the body.
    ///
    /// # Errors
    /// As [`DirectBody::read`]. `deadline` bounds the wait beside the silence bound.
    pub fn chunk(&mut self, deadline: Option<Deadline>) -> Result<Option<Bytes>, Broken> {
        let span = self.transport.patience(deadline);
        let chunk = match &mut self.framing {
            Framing::Counted(counted) => counted.chunk(span)?,
            Framing::Framed(framed) => next_data(&mut framed.0, &mut framed.1, span)?,
        };
        match &chunk {
            Some(bytes) => self.note(bytes.len()),
            None => self.finish(),
        }
        self.give_back();
        Ok(chunk)
    }

    fn note(&self, len: usize) {
        self.transport.metrics.received_bytes.add(len as u64);
    }

    /// Takes the connection back from an exchange that hyper has had to the end.
    fn finish(&mut self) {
        let done = Framing::Counted(Counted::default());
        if let Framing::Framed(framed) = std::mem::replace(&mut self.framing, done) {
            let (mut exchange, body) = *framed;
            drop(body);
            if exchange.is_done()
                && let Some((connection, read)) = exchange.end()
                && read.is_empty()
            {
                self.framing = Framing::Counted(Counted {
                    connection: Some(connection),
                    ..Counted::default()
                });
            }
        }
    }

    /// Gives the connection back if the whole answer has been read from it.
    fn give_back(&mut self) {
        if let Framing::Counted(counted) = &mut self.framing
            && counted.left == 0
            && let Some(connection) = counted.connection.take()
            && let Some((idle, server)) = self.home.take()
        {
            idle.put(server, connection, &self.transport);
        }
    }
}

impl Counted {
    fn read(&mut self, buffer: &mut [u8], span: Duration) -> Result<usize, Broken> {
        if let Some(bytes) = self.early.front_mut() {
            let len = bytes.len().min(buffer.len());
            buffer[..len].copy_from_slice(&bytes.split_to(len));
            if bytes.is_empty() {
                self.early.pop_front();
            }
            return Ok(len);
        }
        if self.left == 0 {
            return Ok(0);
        }
        let most = usize::try_from(self.left).map_or(buffer.len(), |left| left.min(buffer.len()));
        let connection = self
            .connection
            .as_mut()
            .ok_or_else(|| Broken::Lost("the connection is gone".into()))?;
        let len = receive(connection, &mut buffer[..most], span)?;
        self.left -= len as u64;
        Ok(len)
    }

    fn chunk(&mut self, span: Duration) -> Result<Option<Bytes>, Broken> {
        if let Some(bytes) = self.early.pop_front() {
            return Ok(Some(bytes));
        }
        let most = usize::try_from(self.left).unwrap_or(CHUNK).min(CHUNK);
        let mut bytes = vec![0; most];
        let len = self.read(&mut bytes, span)?;
        bytes.truncate(len);
        Ok((len > 0).then(|| bytes.into()))
    }
}

impl fmt::Debug for DirectBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DirectBody").finish_non_exhaustive()
    }
}

fn receive(
    connection: &mut Connection,
    buffer: &mut [u8],
    span: Duration,
) -> Result<usize, Broken> {
    match connection.read(buffer, Deadline::after(span).instant()) {
        Ok(0) => Err(Broken::Lost(
            "the connection was closed before the answer's end".into(),
        )),
        Ok(len) => Ok(len),
        Err(error) if error.kind() == io::ErrorKind::TimedOut => Err(Broken::Silence(span)),
        Err(error) => Err(Broken::Lost(error.to_string())),
    }
}

/// Returns the next bytes of a body that hyper reads; `None` at its end.
fn next_data(
    exchange: &mut Exchange,
    body: &mut Incoming,
    span: Duration,
) -> Result<Option<Bytes>, Broken> {
    loop {
        let until = Deadline::after(span).instant();
        let frame = exchange
            .drive(until, |context| Pin::new(&mut *body).poll_frame(context))
            .map_err(|stopped| match stopped {
                Stopped::Silent => Broken::Silence(span),
                Stopped::Broken(reason) => Broken::Lost(reason),
            })?;
        match frame {
            Some(Ok(frame)) => {
                if let Ok(bytes) = frame.into_data() {
                    return Ok(Some(bytes));
                }
            }
            Some(Err(error)) => return Err(Broken::Lost(chain(&error))),
            None => return Ok(None),
        }
    }
}
