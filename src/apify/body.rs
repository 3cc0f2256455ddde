//! An answer's body as it arrives: chunks with a bound on silence.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, Bytes};
use futures_util::FutureExt;
use url::Url;

use super::errors::{Failure, chain};
use super::transport::Transport;
use crate::base::clock::Deadline;
use crate::store::ErrorKind;

/// The body of one answer. Dropping it before its end closes the connection.
pub struct HttpBody {
    /// `None` at the end.
    source: Option<Box<Source>>,
    /// What has arrived and has not been read.
    chunk: Bytes,
}

struct Source {
    response: reqwest::Response,
    transport: Arc<Transport>,
    /// The request that it answers, and the pool of its connection.
    url: Url,
    pool: u64,
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
            Self::Silence(span) => write!(f, "no byte arrived for {:.1} s", span.as_secs_f64()),
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
    /// Wraps an answer after its headers were read, on a connection of this pool.
    pub(super) fn new(
        response: reqwest::Response,
        transport: Arc<Transport>,
        url: Url,
        pool: u64,
    ) -> Self {
        Self {
            source: Some(Box::new(Source {
                response,
                transport,
                url,
                pool,
            })),
            chunk: Bytes::new(),
        }
    }

    /// Wraps a body that is already there whole.
    #[cfg(test)]
    pub fn buffered(bytes: Bytes) -> Self {
        Self {
            source: None,
            chunk: bytes,
        }
    }

    /// Makes sure that there are bytes to read; `false` at the end of the body.
    ///
    /// # Errors
    /// The body broke off. `deadline` bounds the wait besides the silence bound.
    pub fn fill(&mut self, deadline: Option<Deadline>) -> Result<bool, Broken> {
        while self.chunk.is_empty() {
            let Some(source) = &mut self.source else {
                return Ok(false);
            };
            match source.next(deadline)? {
                Some(bytes) => self.chunk = bytes,
                None => self.source = None,
            }
        }
        Ok(true)
    }

    /// Reads into `buffer`, waiting for the first byte; 0 at the end of the body.
    ///
    /// # Errors
    /// The body broke off.
    pub fn read(&mut self, buffer: &mut [u8]) -> Result<usize, Broken> {
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

impl Source {
    fn next(&mut self, deadline: Option<Deadline>) -> Result<Option<Bytes>, Broken> {
        let span = self.transport.patience(deadline);
        // What has come already needs no waiting.
        let next = match self.response.chunk().now_or_never() {
            Some(next) => Some(next),
            None => self.transport.wait(span, self.response.chunk()),
        };
        let broken = match next {
            Some(Ok(bytes)) => {
                let len = bytes.as_ref().map_or(0, Bytes::len);
                self.transport.metrics.received_bytes.add(len as u64);
                return Ok(bytes);
            }
            Some(Err(error)) => Broken::Lost(chain(&error.without_url())),
            None => Broken::Silence(span),
        };
        self.transport.connections(&self.url).distrust(self.pool);
        Err(broken)
    }
}

impl fmt::Debug for HttpBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpBody").finish_non_exhaustive()
    }
}
