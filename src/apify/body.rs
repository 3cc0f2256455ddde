//! An answer's body as it arrives: chunks with a bound on silence.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, Bytes};

use super::direct::body::DirectBody;
use super::errors::{Failure, chain};
use super::transport::Transport;
use crate::base::clock::Deadline;
use crate::store::ErrorKind;

/// The body of one answer. Dropping it before its end closes the connection.
pub struct HttpBody {
    source: Source,
    /// What has arrived and has not been read.
    chunk: Bytes,
}

enum Source {
    Stream {
        response: Box<reqwest::Response>,
        transport: Arc<Transport>,
    },
    Direct(Box<DirectBody>),
    Done,
}

/// Why a body ended before its end.
#[derive(Debug)]
pub enum Broken {
    /// No byte came within the time one attempt may be silent.
    Silence(Duration),
    /// The connection broke, or its framing is wrong.
    Lost(String),
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Silence(span) => write!(f, "no byte came for {:.1} s", span.as_secs_f64()),
            Self::Lost(reason) => f.write_str(reason),
        }
    }
}

impl From<Broken> for Failure {
    fn from(broken: Broken) -> Self {
        let kind = match broken {
            Broken::Silence(_) => ErrorKind::Timeout,
            Broken::Lost(_) => ErrorKind::Network,
        };
        Self::transient(kind, format!("the answer broke off: {broken}"))
    }
}

impl HttpBody {
    /// Wraps an answer whose headers have been read.
    pub(super) fn new(response: reqwest::Response, transport: Arc<Transport>) -> Self {
        Self {
            source: Source::Stream {
                response: Box::new(response),
                transport,
            },
            chunk: Bytes::new(),
        }
    }

    /// Wraps one that the calling thread reads itself.
    pub(super) fn direct(body: DirectBody) -> Self {
        Self {
            source: Source::Direct(Box::new(body)),
            chunk: Bytes::new(),
        }
    }

    /// Wraps a body that is already there whole.
    pub fn buffered(bytes: Bytes) -> Self {
        Self {
            source: Source::Done,
            chunk: bytes,
        }
    }

    /// Makes sure that there are bytes to read; `false` at the end of the body.
    ///
    /// # Errors
    /// The body broke off. `deadline` bounds the wait beside the silence bound.
    pub fn fill(&mut self, deadline: Option<Deadline>) -> Result<bool, Broken> {
        while self.chunk.is_empty() {
            let next = match &mut self.source {
                Source::Stream {
                    response,
                    transport,
                } => {
                    let span = transport.patience(deadline);
                    match transport.wait(span, response.chunk()) {
                        None => return Err(Broken::Silence(span)),
                        Some(Err(error)) => return Err(Broken::Lost(chain(&error.without_url()))),
                        Some(Ok(bytes)) => bytes.inspect(|bytes| {
                            transport.metrics.received_bytes.add(bytes.len() as u64);
                        }),
                    }
                }
                Source::Direct(body) => body.chunk(deadline)?,
                Source::Done => return Ok(false),
            };
            match next {
                Some(bytes) => self.chunk = bytes,
                None => self.source = Source::Done,
            }
        }
        Ok(true)
    }

    /// Reads into `buffer`, waiting for the first byte; 0 at the end of the body.
    ///
    /// # Errors
    /// The body broke off.
    pub fn read(&mut self, buffer: &mut [u8]) -> Result<usize, Broken> {
        if self.chunk.is_empty()
            && let Source::Direct(body) = &mut self.source
            && let Some(len) = body.read(buffer)?
        {
            return Ok(len);
        }
        self.fill(None)?;
        Ok(self.take(buffer))
    }

    /// Hands over bytes that have arrived, after [`HttpBody::fill`]; 0 when there are none.
    pub fn take(&mut self, buffer: &mut [u8]) -> usize {
        let len = self.chunk.len().min(buffer.len());
        self.chunk.copy_to_slice(&mut buffer[..len]);
        len
    }

    /// Reads the rest of the body.
    ///
    /// # Errors
    /// The body broke off, or is longer than `limit` (which is not worth another attempt).
    pub fn read_all(mut self, limit: usize, deadline: Deadline) -> Result<Vec<u8>, Failure> {
        let mut all = Vec::new();
        while self.fill(Some(deadline))? {
            if all.len() + self.chunk.len() > limit {
                return Err(Failure::permanent(
                    ErrorKind::Protocol,
                    format!("the answer is longer than {limit} bytes"),
                ));
            }
            all.extend_from_slice(&self.chunk);
            self.chunk = Bytes::new();
        }
        Ok(all)
    }

    /// Reads the start of the body, as much of it as comes without trouble.
    pub fn read_some(mut self, limit: usize, deadline: Deadline) -> Vec<u8> {
        let mut start = Vec::new();
        while start.len() < limit && matches!(self.fill(Some(deadline)), Ok(true)) {
            let len = self.chunk.len().min(limit - start.len());
            start.extend_from_slice(&self.chunk.split_to(len));
        }
        start
    }
}

impl fmt::Debug for HttpBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpBody").finish_non_exhaustive()
    }
}
