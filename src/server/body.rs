//! Bodies between blocking readers and the asynchronous server: bounded both ways.

use std::io::{self, Read, Write};
use std::time::Duration;

use axum::body::Body;
use bytes::{Buf, Bytes, BytesMut};
use futures_util::stream;
use http_body_util::BodyExt;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::SendTimeoutError;
use tokio::task::JoinHandle;

use super::listen::{LEAST_TAKEN, SPARED};
use super::stats::Stats;

/// Bytes in one piece of a body.
const CHUNK: usize = LEAST_TAKEN;

/// Bytes in one piece of a long record on its way out. Two are in memory for each reader.
const PIECE: usize = 128 * 1024;

/// Pieces that wait for the other side.
const WAITING: usize = 4;

/// How much of a refused upload is still read, so that its sender gets to see the answer.
const DRAINED: usize = 4 << 20;

/// How long that may take.
const DRAIN_TIME: Duration = Duration::from_secs(1);

/// Turns a reader, which has `length` bytes where that is known, into the body of an answer. Short
/// ones go out in one piece; of long ones the next piece is read while one goes out. An error
/// breaks the connection off, so that no client takes the bytes before it for the whole.
pub(super) fn outgoing(
    mut reader: Box<dyn Read + Send>,
    length: Option<u64>,
    chunked: bool,
) -> io::Result<Body> {
    let short = length.and_then(|length| usize::try_from(length).ok());
    // One byte more than there is: a shorter piece means the end.
    let most = short.map_or(CHUNK, |short| short.saturating_add(1).min(CHUNK));
    let first = fill(&mut reader, most)?;
    if first.len() < most && !chunked {
        return Ok(Body::from(first));
    }
    Ok(Body::from_stream(stream::unfold(
        Reading::Piece(first, reader, most),
        next_piece,
    )))
}

/// How far a long body is.
enum Reading {
    /// A piece that is there; a shorter one than was wanted is the last.
    Piece(Bytes, Box<dyn Read + Send>, usize),
    /// The next piece is on its way.
    Underway(JoinHandle<io::Result<(Bytes, Box<dyn Read + Send>)>>),
    End,
}

/// Returns the next piece of a body. No thread waits for the client: only reading takes one.
async fn next_piece(reading: Reading) -> Option<(io::Result<Bytes>, Reading)> {
    let (piece, reader, wanted) = match reading {
        Reading::Piece(piece, reader, wanted) => (piece, reader, wanted),
        Reading::Underway(piece) => {
            match piece.await.map_err(io::Error::other).and_then(|read| read) {
                Ok((piece, reader)) => (piece, reader, PIECE),
                Err(error) => {
                    tracing::warn!(%error, "a record broke off on its way out");
                    return Some((Err(error), Reading::End));
                }
            }
        }
        Reading::End => return None,
    };
    if piece.is_empty() {
        return None;
    }
    let next = if piece.len() < wanted {
        Reading::End
    } else {
        let mut reader = reader;
        Reading::Underway(tokio::task::spawn_blocking(move || {
            let piece = fill(&mut reader, PIECE)?;
            Ok((piece, reader))
        }))
    };
    Some((Ok(piece), next))
}

/// Returns the body of an answer that a blocking thread writes, a bounded way ahead. An error
/// breaks the connection off, and so does a client that hardly takes what is written if it
/// `makes_way`.
pub(super) fn written(
    write: impl FnOnce(&mut dyn Write) -> io::Result<()> + Send + 'static,
    makes_way: impl Fn() -> bool + Send + 'static,
) -> Body {
    let (sender, body) = channel();
    tokio::task::spawn_blocking(move || {
        let mut pieces = Pieces {
            sender,
            piece: BytesMut::new(),
            makes_way: Box::new(makes_way),
            given_up: false,
        };
        if let Err(error) = write(&mut pieces).and_then(|()| pieces.flush())
            && !pieces.sender.is_closed()
        {
            tracing::warn!(%error, "an answer broke off on its way out");
            // Its reader may be gone by now.
            let _ = pieces.sender.blocking_send(Err(error));
        }
    });
    body
}

fn channel() -> (mpsc::Sender<io::Result<Bytes>>, Body) {
    let (sender, receiver) = mpsc::channel::<io::Result<Bytes>>(WAITING);
    let pieces = stream::unfold(receiver, |mut receiver| async move {
        let piece = receiver.recv().await?;
        Some((piece, receiver))
    });
    (sender, Body::from_stream(pieces))
}

/// Collects what is written into pieces of a body.
struct Pieces {
    sender: mpsc::Sender<io::Result<Bytes>>,
    piece: BytesMut,
    /// Returns whether a client that takes no piece for [`SPARED`] is to make way.
    makes_way: Box<dyn Fn() -> bool + Send>,
    /// Whether it has made way; nothing more goes out then.
    given_up: bool,
}

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.piece.extend_from_slice(bytes);
        if self.piece.len() >= CHUNK {
            self.flush()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        let piece = self.piece.split().freeze();
        if piece.is_empty() {
            return Ok(());
        }
        let runtime = Handle::current();
        let mut waiting = Ok(piece);
        while !self.given_up {
            match runtime.block_on(self.sender.send_timeout(waiting, SPARED)) {
                Ok(()) => return Ok(()),
                Err(SendTimeoutError::Closed(_)) => return Err(io::ErrorKind::BrokenPipe.into()),
                Err(SendTimeoutError::Timeout(piece)) => {
                    self.given_up = (self.makes_way)();
                    waiting = piece;
                }
            }
        }
        Err(io::ErrorKind::TimedOut.into())
    }
}

/// Reads a whole piece; a shorter one means the end.
fn fill(reader: &mut dyn Read, size: usize) -> io::Result<Bytes> {
    let mut buffer = BytesMut::zeroed(size);
    let mut filled = 0;
    while filled < size {
        match reader.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    buffer.truncate(filled);
    Ok(buffer.freeze())
}

/// The body of a request, for a blocking thread. A body that breaks off is an error.
#[derive(Debug)]
pub(super) struct Incoming {
    receiver: mpsc::Receiver<io::Result<Piece>>,
    current: Bytes,
    ended: bool,
}

/// A piece of a body. The end is said aloud: a sender that just vanishes is a broken connection.
#[derive(Debug)]
enum Piece {
    Bytes(Bytes),
    End,
}

/// The asynchronous end of an [`Incoming`].
#[derive(Debug)]
pub(super) struct Feeder(mpsc::Sender<io::Result<Piece>>);

/// Returns both ends of a request's body.
pub(super) fn incoming() -> (Feeder, Incoming) {
    let (sender, receiver) = mpsc::channel(WAITING);
    let incoming = Incoming {
        receiver,
        current: Bytes::new(),
        ended: false,
    };
    (Feeder(sender), incoming)
}

impl Feeder {
    /// Hands the body over until its end, or until its reader is gone.
    pub(super) async fn feed(&self, body: &mut Body, stats: &Stats) {
        loop {
            let frame = tokio::select! {
                frame = body.frame() => frame,
                () = self.0.closed() => return drain(body).await,
            };
            let piece = match frame {
                None => Ok(Piece::End),
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(bytes) => {
                        stats.received(bytes.len() as u64);
                        Ok(Piece::Bytes(bytes))
                    }
                    // Trailers.
                    Err(_) => continue,
                },
                Some(Err(error)) => Err(io::Error::other(error)),
            };
            let last = !matches!(piece, Ok(Piece::Bytes(_)));
            if self.0.send(piece).await.is_err() {
                return drain(body).await;
            }
            if last {
                return;
            }
        }
    }

    /// Lets the reader know that the rest will not come.
    pub(super) async fn fail(self, error: io::Error) {
        // The reader may be gone already.
        let _ = self.0.send(Err(error)).await;
    }
}

/// Reads some of an unwanted body, so that its sender gets to see the answer.
pub(super) async fn drain(body: &mut Body) {
    let draining = async {
        let mut drained = 0;
        while drained < DRAINED
            && let Some(Ok(frame)) = body.frame().await
        {
            drained += frame.data_ref().map_or(0, Bytes::len);
        }
    };
    // Whatever is left then, the connection is closed over it.
    let _ = tokio::time::timeout(DRAIN_TIME, draining).await;
}

impl Read for Incoming {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() && !self.ended {
            match self.receiver.blocking_recv() {
                Some(Ok(Piece::Bytes(bytes))) => self.current = bytes,
                Some(Ok(Piece::End)) => self.ended = true,
                Some(Err(error)) => return Err(error),
                None => return Err(io::Error::from(io::ErrorKind::UnexpectedEof)),
            }
        }
        let n = buffer.len().min(self.current.len());
        self.current.copy_to_slice(&mut buffer[..n]);
        Ok(n)
    }
}
