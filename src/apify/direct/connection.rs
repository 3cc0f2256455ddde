//! One connection to a server, read and written by the very thread that needs it.
//!
//! Sockets do not block; a read that finds nothing waits for its socket with `poll(2)`, never past
//! the given moment. So a body goes from the socket into the reader's buffer with one copy (two
//! where TLS decrypts it) and without a change of threads.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use hyper::rt::ReadBufCursor;
use parking_lot::Mutex;
use rustix::event::{PollFd, PollFlags};
use rustls::{ClientConnection, StreamOwned};

/// Bytes that the HTTP library gets at once: heads, and bodies in chunks.
const AT_ONCE: usize = 32 << 10;

/// A connected socket, encrypted or not.
pub struct Connection(Stream);

enum Stream {
    Plain(TcpStream),
    Tls(Box<StreamOwned<ClientConnection, TcpStream>>),
}

impl Connection {
    /// Wraps a connected socket that does not block.
    pub fn plain(socket: TcpStream) -> Self {
        Self(Stream::Plain(socket))
    }

    /// Wraps a socket that does not block, with the TLS session that has been begun on it.
    pub fn tls(session: ClientConnection, socket: TcpStream) -> Self {
        Self(Stream::Tls(Box::new(StreamOwned::new(session, socket))))
    }

    fn socket(&self) -> &TcpStream {
        match &self.0 {
            Stream::Plain(socket) => socket,
            Stream::Tls(stream) => &stream.sock,
        }
    }

    /// Reads what there is, waiting for the first byte; 0 at the end of the stream.
    ///
    /// # Errors
    /// [`io::ErrorKind::TimedOut`] when nothing has come until then; errors of the socket and TLS.
    pub fn read(&mut self, buffer: &mut [u8], until: Instant) -> io::Result<usize> {
        let mut is_late = false;
        loop {
            match self.read_now(buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    // Much may come that is nothing yet: pieces of what TLS can only decrypt whole.
                    if is_late {
                        return Err(io::ErrorKind::TimedOut.into());
                    }
                    self.wait(PollFlags::IN, until)?;
                    is_late = Instant::now() >= until;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => return result,
            }
        }
    }

    /// Tells whether the connection can be used again: it is open, and nothing has been said on it.
    pub fn is_quiet(&mut self) -> bool {
        let byte = &mut [0];
        matches!(self.read_now(byte), Err(error) if error.kind() == io::ErrorKind::WouldBlock)
    }

    /// Waits until the socket is ready.
    ///
    /// # Errors
    /// [`io::ErrorKind::TimedOut`]
    pub fn wait(&self, events: PollFlags, until: Instant) -> io::Result<()> {
        let socket = self.socket();
        loop {
            // Once more at the end, so that nobody is called silent whom this thread was too late for.
            let left = until.saturating_duration_since(Instant::now());
            let timeout = left.try_into().ok();
            match rustix::event::poll(&mut [PollFd::new(socket, events)], timeout.as_ref()) {
                Ok(0) if left.is_zero() => return Err(io::ErrorKind::TimedOut.into()),
                Ok(0) | Err(rustix::io::Errno::INTR) => {}
                Ok(_) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn read_now(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match &mut self.0 {
            Stream::Plain(socket) => socket.read(buffer),
            Stream::Tls(stream) => stream.read(buffer),
        }
    }

    fn writer(&mut self) -> &mut dyn Write {
        match &mut self.0 {
            Stream::Plain(socket) => socket,
            Stream::Tls(stream) => &mut **stream,
        }
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").finish_non_exhaustive()
    }
}

/// A connection while the HTTP library has it: never waits. Whoever drives the library waits.
#[derive(Clone, Debug)]
pub struct Lent(pub Arc<Mutex<Loan>>);

/// What is lent.
#[derive(Debug)]
pub struct Loan {
    /// The connection.
    pub connection: Connection,
    /// When reading ends, although more is coming: else the library would read interim answers for
    /// as long as a server sends them.
    pub until: Instant,
    /// Whether something has been read since then; what has arrived in time counts.
    pub is_late: bool,
}

fn poll<T>(result: io::Result<T>) -> Poll<io::Result<T>> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Poll::Pending,
        result => Poll::Ready(result),
    }
}

impl hyper::rt::Read for Lent {
    fn poll_read(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        mut room: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let mut buffer = [0; AT_ONCE];
        let most = room.remaining().min(AT_ONCE);
        let mut loan = self.0.lock();
        if loan.is_late {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        loan.is_late = Instant::now() >= loan.until;
        poll(loan.connection.read_now(&mut buffer[..most]))
            .map_ok(|len| room.put_slice(&buffer[..len]))
    }
}

impl hyper::rt::Write for Lent {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        poll(self.0.lock().connection.writer().write(bytes))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        poll(self.0.lock().connection.writer().flush())
    }

    /// Leaves the socket open: it is closed when it is dropped.
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
