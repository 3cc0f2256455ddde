//! One connection: how fast bytes flow, how long it may be idle, and that it can be reset.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep, sleep_until};

/// Bytes that flow at once where the bandwidth is limited: a twentieth of a second's, at least
/// these.
const LEAST_BURST: u64 = 1024;

/// Bytes read at once where the bandwidth is limited, at most.
const MOST_READ: usize = 64 * 1024;

/// A bandwidth that all connections share, both directions together.
#[derive(Debug)]
pub(super) struct Throttle {
    bytes_a_second: u64,
    /// When the bytes so far have flowed.
    free: Mutex<Instant>,
}

impl Throttle {
    pub(super) fn new(bytes_a_second: u64) -> Self {
        Self {
            bytes_a_second: bytes_a_second.max(1),
            free: Mutex::new(Instant::now()),
        }
    }

    /// Returns how many bytes may flow at once.
    fn burst(&self) -> usize {
        usize::try_from((self.bytes_a_second / 20).max(LEAST_BURST)).unwrap_or(usize::MAX)
    }

    /// Notes bytes that have flowed; returns when the next ones may.
    fn flowed(&self, bytes: usize) -> Instant {
        let taken = Duration::from_secs_f64(bytes as f64 / self.bytes_a_second as f64);
        let mut free = self.free.lock();
        *free = (*free).max(Instant::now()) + taken;
        *free
    }
}

/// What a connection and the requests on it tell each other.
#[derive(Debug)]
pub(super) struct Signals {
    turn: Mutex<Turn>,
    /// Bytes that the client took, or its side of the line.
    taken: AtomicU64,
    /// Whether bytes wait for the client to take them.
    blocked: AtomicBool,
    /// The connection is to end with a reset.
    reset: AtomicBool,
}

/// Whether client or server acts next on a connection.
#[derive(Clone, Copy, Debug)]
enum Turn {
    /// The client's, since then: it may send a request.
    Request(Instant),
    /// The server's: silence is not the client's fault.
    Answer,
    /// The client's, since then: the body of its request is being waited for.
    Body(Instant),
}

impl Default for Signals {
    fn default() -> Self {
        Self {
            turn: Mutex::new(Turn::Request(Instant::now())),
            taken: AtomicU64::new(0),
            blocked: AtomicBool::new(false),
            reset: AtomicBool::new(false),
        }
    }
}

impl Signals {
    /// Notes that a request is being answered.
    pub(super) fn begin(&self) {
        *self.turn.lock() = Turn::Answer;
    }

    /// Notes that a request has been answered.
    pub(super) fn end(&self) {
        *self.turn.lock() = Turn::Request(Instant::now());
    }

    /// Returns since when a request could have come; `None` while one is being answered.
    pub(super) fn unused_since(&self) -> Option<Instant> {
        match *self.turn.lock() {
            Turn::Request(since) => Some(since),
            Turn::Answer | Turn::Body(_) => None,
        }
    }

    /// Returns how many bytes the client has taken, if others wait for it to take them.
    pub(super) fn blocked_at(&self) -> Option<u64> {
        let blocked = self.blocked.load(Ordering::Relaxed);
        blocked.then(|| self.taken.load(Ordering::Relaxed))
    }

    /// Notes whether more of the request's body is being waited for.
    pub(super) fn await_body(&self, waiting: bool) {
        let mut turn = self.turn.lock();
        *turn = match (*turn, waiting) {
            (Turn::Answer, true) => Turn::Body(Instant::now()),
            (Turn::Body(_), false) => Turn::Answer,
            (turn, _) => turn,
        };
    }

    pub(super) fn reset(&self) {
        self.reset.store(true, Ordering::Release);
    }
}

/// A connection as the HTTP layer sees it.
#[derive(Debug)]
pub(super) struct Connection {
    stream: TcpStream,
    signals: Arc<Signals>,
    throttle: Option<Arc<Throttle>>,
    /// Waits for the bandwidth, for reading and for writing.
    waits: [Option<Pin<Box<Sleep>>>; 2],
    idle: Duration,
    /// When bytes last moved.
    moved: Instant,
    timer: Pin<Box<Sleep>>,
}

const READING: usize = 0;
const WRITING: usize = 1;

impl Connection {
    pub(super) fn new(
        stream: TcpStream,
        signals: Arc<Signals>,
        throttle: Option<Arc<Throttle>>,
        idle: Duration,
    ) -> Self {
        Self {
            stream,
            signals,
            throttle,
            waits: [None, None],
            idle,
            moved: Instant::now(),
            timer: Box::pin(sleep(idle)),
        }
    }

    /// Waits for the bandwidth; returns how many bytes may flow then.
    fn poll_allowance(
        &mut self,
        direction: usize,
        context: &mut Context<'_>,
    ) -> Poll<Option<usize>> {
        let Some(throttle) = &self.throttle else {
            return Poll::Ready(None);
        };
        if let Some(wait) = &mut self.waits[direction] {
            ready!(wait.as_mut().poll(context));
            self.waits[direction] = None;
        }
        Poll::Ready(Some(throttle.burst()))
    }

    /// Notes that bytes moved.
    fn moved(&mut self, direction: usize, bytes: usize) {
        self.moved = Instant::now();
        if let Some(throttle) = &self.throttle {
            self.waits[direction] = Some(Box::pin(sleep_until(throttle.flowed(bytes))));
        }
    }

    /// Ends a wait for the client that lasts too long.
    fn poll_idle(&mut self, turn: Turn, context: &mut Context<'_>) -> Poll<io::Error> {
        loop {
            ready!(self.timer.as_mut().poll(context));
            let now = Instant::now();
            let silent_since = match turn {
                Turn::Answer => now,
                Turn::Request(_) => self.moved,
                Turn::Body(since) => self.moved.max(since),
            };
            let end = silent_since + self.idle;
            if end <= now {
                return Poll::Ready(io::Error::from(io::ErrorKind::TimedOut));
            }
            self.timer.as_mut().reset(end);
        }
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let read = match ready!(this.poll_allowance(READING, context)) {
            None => {
                let before = buffer.filled().len();
                Pin::new(&mut this.stream)
                    .poll_read(context, buffer)
                    .map_ok(|()| buffer.filled().len() - before)
            }
            Some(allowed) => {
                let mut bytes = vec![0; allowed.min(buffer.remaining()).min(MOST_READ)];
                let mut part = ReadBuf::new(&mut bytes);
                let read = Pin::new(&mut this.stream).poll_read(context, &mut part);
                buffer.put_slice(part.filled());
                read.map_ok(|()| part.filled().len())
            }
        };
        match read {
            Poll::Ready(read) => {
                this.moved(READING, read?);
                Poll::Ready(Ok(()))
            }
            Poll::Pending => {
                let turn = *this.signals.turn.lock();
                this.poll_idle(turn, context).map(Err)
            }
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        let allowed = ready!(this.poll_allowance(WRITING, context));
        let part = &bytes[..bytes.len().min(allowed.unwrap_or(usize::MAX))];
        let written = Pin::new(&mut this.stream).poll_write(context, part);
        this.written(written, context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        if this.throttle.is_some() {
            let first = slices.iter().find(|slice| !slice.is_empty());
            return self.poll_write(context, first.map_or(&[], |slice| slice));
        }
        let written = Pin::new(&mut this.stream).poll_write_vectored(context, slices);
        this.written(written, context)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.signals.reset.load(Ordering::Acquire) {
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

impl Connection {
    fn written(
        &mut self,
        written: Poll<io::Result<usize>>,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        self.signals
            .blocked
            .store(written.is_pending(), Ordering::Relaxed);
        match written {
            Poll::Ready(written) => {
                let written = written?;
                self.signals
                    .taken
                    .fetch_add(written as u64, Ordering::Relaxed);
                self.moved(WRITING, written);
                Poll::Ready(Ok(written))
            }
            // A client that does not read is idle whatever is being answered.
            Poll::Pending => self.poll_idle(Turn::Request(self.moved), context).map(Err),
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        if self.signals.reset.load(Ordering::Acquire)
            && let Err(error) = self.stream.set_zero_linger()
        {
            tracing::debug!(%error, "a connection ends without a reset");
        }
    }
}
