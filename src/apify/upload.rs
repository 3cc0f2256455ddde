//! A new record's bytes on their way out, in chunks, with a bound on how long one may take.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use tokio::sync::mpsc;

use crate::base::clock::Deadline;
use crate::metrics::transfers::{Direction, Transfer, Transfers};
use crate::store::{SLOWEST_UPLOAD, Upload, upload_allowance};

/// How many bytes are read and handed to the connection at once.
const CHUNK_LEN: usize = 256 << 10;

/// Bytes to send, from their start again for every attempt where that is possible.
#[derive(Debug)]
pub struct Outgoing<'a, 'b> {
    upload: &'a mut Upload<'b>,
    transfer: Transfer,
    patience: Patience,
    /// Whether bytes have been taken from a stream, which cannot be given back.
    spent: bool,
}

impl<'a, 'b> Outgoing<'a, 'b> {
    /// Wraps an upload of which nothing has been sent; until it is dropped it is one of
    /// `transfers`, under the name of `key`. The deadline moves on while bytes go out.
    pub fn new(
        upload: &'a mut Upload<'b>,
        key: &str,
        transfers: &Arc<Transfers>,
        deadline: Deadline,
    ) -> Self {
        let patience = Patience {
            deadline,
            left: upload.size().map_or(Duration::MAX, upload_allowance),
        };
        let transfer = transfers.begin(key, Direction::Up, upload.size());
        Self {
            upload,
            transfer,
            patience,
            spent: false,
        }
    }

    /// Returns how many bytes there are, where known.
    pub fn size(&self) -> Option<u64> {
        self.upload.size()
    }

    /// Returns the deadline as it is by now.
    pub fn deadline(&self) -> Deadline {
        self.patience.deadline
    }

    /// Returns whether all bytes can be sent from the start (again).
    pub fn can_start(&self) -> bool {
        !self.spent
    }

    /// Starts an attempt: a reader from the first byte on, and where to note what has been sent.
    pub fn start(&mut self) -> (Chunks<'_>, &Transfer, &mut Patience) {
        self.transfer.restarted();
        let chunks = match self.upload {
            Upload::Bytes(bytes) => Chunks::Bytes(bytes),
            Upload::File(file, len) => Chunks::File(file, 0, *len),
            Upload::Stream(stream, len) => Chunks::Stream(*stream, &mut self.spent, *len),
        };
        (chunks, &self.transfer, &mut self.patience)
    }
}

/// How long an upload may go on. Time in which bytes go out does not count, at most as long as they
/// may take at the slowest; so silence ends it as early as any other request.
#[derive(Debug)]
pub struct Patience {
    deadline: Deadline,
    /// How much further the deadline may move in all attempts.
    left: Duration,
}

impl Patience {
    /// Returns the deadline as it is by now.
    pub fn deadline(&self) -> Deadline {
        self.deadline
    }

    /// Notes how long the server took to accept `len` bytes.
    pub fn moved(&mut self, len: u64, took: Duration) {
        let slowest = Duration::from_secs_f64(len as f64 / SLOWEST_UPLOAD as f64);
        let granted = took.min(slowest).min(self.left);
        self.left -= granted;
        self.deadline = self.deadline.later(granted);
    }
}

/// The bytes of one attempt.
pub enum Chunks<'a> {
    /// What is left in memory.
    Bytes(&'a [u8]),
    /// A file, where in it, and the end.
    File(&'a File, u64, u64),
    /// A stream, whether it has been read from, and how much is left where known.
    Stream(&'a mut (dyn Read + Send), &'a mut bool, Option<u64>),
}

impl Chunks<'_> {
    /// Returns the next chunk; `None` at the end.
    ///
    /// # Errors
    /// The source cannot be read, or is shorter or longer than it was said to be.
    pub fn next_chunk(&mut self) -> io::Result<Option<Bytes>> {
        match self {
            Self::Bytes(bytes) => {
                let (chunk, rest) = bytes.split_at(bytes.len().min(CHUNK_LEN));
                *bytes = rest;
                Ok((!chunk.is_empty()).then(|| Bytes::copy_from_slice(chunk)))
            }
            Self::File(file, at, end) => {
                let len = usize::try_from(*end - *at).map_or(CHUNK_LEN, |left| left.min(CHUNK_LEN));
                if len == 0 {
                    return Ok(None);
                }
                let mut chunk = vec![0; len];
                file.read_exact_at(&mut chunk, *at)?;
                *at += len as u64;
                Ok(Some(chunk.into()))
            }
            Self::Stream(stream, spent, left) => {
                **spent = true;
                let mut chunk = Vec::new();
                Read::by_ref(stream)
                    .take(CHUNK_LEN as u64)
                    .read_to_end(&mut chunk)?;
                if let Some(left) = left {
                    *left = left
                        .checked_sub(chunk.len() as u64)
                        .ok_or_else(|| io::Error::other("there are more bytes than announced"))?;
                    if chunk.is_empty() && *left > 0 {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                }
                Ok((!chunk.is_empty()).then(|| chunk.into()))
            }
        }
    }
}

impl fmt::Debug for Chunks<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Chunks").finish_non_exhaustive()
    }
}

/// A request's body that is fed from the calling thread.
#[derive(Debug)]
pub struct FedBody {
    receiver: mpsc::Receiver<io::Result<Bytes>>,
    left: Option<u64>,
}

impl FedBody {
    /// Returns a body of `len` bytes, where known, and the end to feed it by.
    pub fn new(len: Option<u64>) -> (mpsc::Sender<io::Result<Bytes>>, Self) {
        let (sender, receiver) = mpsc::channel(2);
        (
            sender,
            Self {
                receiver,
                left: len,
            },
        )
    }
}

impl Body for FedBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let next = std::task::ready!(self.receiver.poll_recv(context));
        if let (Some(Ok(bytes)), Some(left)) = (&next, &mut self.left) {
            *left = left.saturating_sub(bytes.len() as u64);
        }
        Poll::Ready(next.map(|chunk| chunk.map(Frame::data)))
    }

    fn is_end_stream(&self) -> bool {
        self.left == Some(0)
    }

    fn size_hint(&self) -> SizeHint {
        self.left
            .map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_time_in_which_bytes_go_out_moves_the_deadline_and_not_for_ever() {
        let start = Deadline::after(Duration::from_secs(60));
        let mut patience = Patience {
            deadline: start,
            left: upload_allowance(10 * SLOWEST_UPLOAD),
        };
        let moved = |patience: &Patience| patience.deadline().instant() - start.instant();
        // What a socket takes at once says little of the server.
        patience.moved(100 * SLOWEST_UPLOAD, Duration::from_millis(1));
        assert_eq!(moved(&patience), Duration::from_millis(1));
        // As long as it took, but not longer than at the slowest.
        patience.moved(5 * SLOWEST_UPLOAD, Duration::from_secs(4));
        assert_eq!(moved(&patience), Duration::from_millis(4001));
        patience.moved(SLOWEST_UPLOAD, Duration::from_secs(30));
        assert_eq!(moved(&patience), Duration::from_millis(5001));
        // However often the same bytes are sent.
        for _ in 0..100 {
            patience.moved(5 * SLOWEST_UPLOAD, Duration::from_secs(5));
        }
        assert_eq!(moved(&patience), Duration::from_secs(10));
    }
}
