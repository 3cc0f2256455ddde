//! The daemon's control socket: how other kvfs processes ask it for its state or to unmount.
//!
//! A Unix socket of mode 0600 in the state folder. A connection carries one request, a line of
//! JSON, and one answer, a line of JSON. Only the daemon's user and root are answered.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use rustix::net::sockopt::{self, Timeout};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::registry::unmount::UnmountMode;

/// The longest request: a few words, or the names of some thousand uploads.
const MAX_REQUEST: u64 = 256 << 10;

/// The longest answer: the counters and the remembered errors of one mount.
const MAX_ANSWER: u64 = 4 << 20;

/// How long a peer may take to send its request or take its answer.
const PEER_TIMEOUT: Duration = Duration::from_secs(5);

/// How many peers are served at a time; more are turned away.
const MAX_PEERS: usize = 16;

/// The longest path that fits into a socket address with its closing zero.
const MAX_SOCKET_PATH: usize = 107;

/// What can be asked of a daemon.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "snake_case")]
pub enum Request {
    /// The state of the mount.
    Status,
    /// To unmount and end.
    Unmount {
        /// How.
        mode: UnmountMode,
    },
    /// To answer when everything that was closed is in the store.
    Sync {
        /// How long that may take.
        timeout: Duration,
    },
    /// To try uploads that the store refused once more, or to drop them.
    Recover {
        /// Whether to drop them.
        discard: bool,
        /// Which, by key or id; none for all.
        wanted: Vec<String>,
    },
}

/// What a daemon answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// It is done, or under way; for [`Request::Status`], the state.
    Done(Value),
    /// The mount is in use.
    Busy,
    /// It failed, and why.
    Failed(String),
}

/// Answers requests; called from several threads.
pub type Handler = Arc<dyn Fn(Request) -> Answer + Send + Sync>;

/// A listening control socket; dropping it removes the socket file.
#[derive(Debug)]
pub struct ControlServer {
    path: PathBuf,
}

impl ControlServer {
    /// Listens at `path` and answers with `handler` from threads of its own.
    ///
    /// # Errors
    /// That the socket or the thread cannot be made.
    pub fn start(path: &Path, handler: Handler) -> io::Result<Self> {
        // Left by a killed daemon; the caller holds the mount point's lock, so nobody listens.
        if let Err(error) = fs::remove_file(path)
            && error.kind() != io::ErrorKind::NotFound
        {
            return Err(error);
        }
        let listener = with_short_path(path, UnixListener::bind)?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
        let server = Self {
            path: path.to_path_buf(),
        };
        thread::Builder::new()
            .name("control".into())
            .spawn(move || accept(&listener, &handler))?;
        Ok(server)
    }
}

impl Drop for ControlServer {
    fn drop(&mut self) {
        // The thread ends with the process: nothing that it holds outlives the mount.
        let _ = fs::remove_file(&self.path);
    }
}

/// Asks the daemon that listens at `path`.
///
/// # Errors
/// That nobody listens, or that no answer came in time.
pub fn ask(path: &Path, request: &Request, timeout: Duration) -> io::Result<Answer> {
    let mut stream = connect(path, timeout)?;
    stream.set_read_timeout(Some(timeout))?;
    stream.set_write_timeout(Some(timeout))?;
    send(&mut stream, request)?;
    receive(&stream, MAX_ANSWER)
}

fn accept(listener: &UnixListener, handler: &Handler) {
    let peers = Arc::new(AtomicUsize::new(0));
    loop {
        let stream = match listener.accept() {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of file descriptors, say: that may pass.
                tracing::warn!(%error, "the control socket cannot accept");
                thread::sleep(Duration::from_millis(500));
                continue;
            }
        };
        let place = Place::take(&peers);
        if place.0.load(Ordering::Relaxed) > MAX_PEERS {
            continue;
        }
        let handler = Arc::clone(handler);
        let started = thread::Builder::new()
            .name("control-peer".into())
            .spawn(move || {
                if let Err(error) = serve(stream, &handler) {
                    tracing::debug!(%error, "a control request failed");
                }
                drop(place);
            });
        if let Err(error) = started {
            tracing::warn!(%error, "cannot start a thread for a control request");
        }
    }
}

/// One of the places of [`MAX_PEERS`].
struct Place(Arc<AtomicUsize>);

impl Place {
    fn take(peers: &Arc<AtomicUsize>) -> Self {
        peers.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(peers))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

fn serve(mut stream: UnixStream, handler: &Handler) -> io::Result<()> {
    stream.set_read_timeout(Some(PEER_TIMEOUT))?;
    stream.set_write_timeout(Some(PEER_TIMEOUT))?;
    let peer = sockopt::socket_peercred(&stream)?;
    if !peer.uid.is_root() && peer.uid != rustix::process::geteuid() {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    let answer = match receive(&stream, MAX_REQUEST) {
        Ok(request) => handler(request),
        Err(error) => Answer::Failed(format!("the request cannot be read: {error}")),
    };
    send(&mut stream, &answer)
}

fn send(stream: &mut UnixStream, message: &impl Serialize) -> io::Result<()> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    stream.write_all(&line)
}

fn receive<T: for<'de> Deserialize<'de>>(stream: &UnixStream, limit: u64) -> io::Result<T> {
    let mut line = Vec::new();
    BufReader::new(stream.take(limit)).read_until(b'\n', &mut line)?;
    if line.pop() != Some(b'\n') {
        return Err(io::Error::new(
            io::ErrorKind::UnexpectedEof,
            "the message ends early or is too long",
        ));
    }
    Ok(serde_json::from_slice(&line)?)
}

/// Connects, which on a Unix socket waits while the listener's queue is full.
fn connect(path: &Path, timeout: Duration) -> io::Result<UnixStream> {
    use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
    let socket = rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )?;
    sockopt::set_socket_timeout(&socket, Timeout::Send, Some(timeout))?;
    with_short_path(path, |path| {
        rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
        Ok(())
    })?;
    Ok(UnixStream::from(socket))
}

/// Calls `operation` with `path`, or with a shorter path to the same place where it is too long
/// for a socket address.
fn with_short_path<T>(
    path: &Path,
    operation: impl FnOnce(PathBuf) -> io::Result<T>,
) -> io::Result<T> {
    if path.as_os_str().len() < MAX_SOCKET_PATH {
        return operation(path.to_path_buf());
    }
    let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let dir = File::open(dir)?;
    operation(Path::new(&format!("/proc/self/fd/{}", dir.as_raw_fd())).join(name))
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Done(_) => f.write_str("done"),
            Self::Busy => f.write_str("the mount point is in use"),
            Self::Failed(why) => f.write_str(why),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_secs(5);

    fn echo() -> Handler {
        Arc::new(|request| match request {
            Request::Status => Answer::Done(serde_json::json!({"pid": 1})),
            Request::Unmount {
                mode: UnmountMode::Graceful,
            } => Answer::Busy,
            _ => Answer::Failed("no".into()),
        })
    }

    #[test]
    fn requests_are_answered_until_the_server_is_dropped() {
        let dir = tempfile::tempdir().expect("a folder");
        for folder in ["short".to_owned(), "long".repeat(40)] {
            fs::create_dir(dir.path().join(&folder)).expect("a folder");
            let path = dir.path().join(folder).join("s.sock");
            fs::write(&path, "left behind").expect("a file");
            let server = ControlServer::start(&path, echo()).expect("a socket");
            let mode = fs::metadata(&path).expect("it").permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
            assert_eq!(
                ask(&path, &Request::Status, SOON).expect("an answer"),
                Answer::Done(serde_json::json!({"pid": 1}))
            );
            let unmount = Request::Unmount {
                mode: UnmountMode::Graceful,
            };
            assert_eq!(ask(&path, &unmount, SOON).expect("an answer"), Answer::Busy);
            drop(server);
            assert!(ask(&path, &Request::Status, SOON).is_err());
        }
    }

    #[test]
    fn nonsense_and_endless_requests_are_refused() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("s.sock");
        let _server = ControlServer::start(&path, echo()).expect("a socket");
        for nonsense in [
            &b"hello\n"[..],
            b"{\"request\":\"dance\"}\n",
            &[b'x'; 5000],
            &[b'y'; 300_000],
        ] {
            let mut stream = UnixStream::connect(&path).expect("a connection");
            // The server may hang up before it has read everything.
            let _ = stream.write_all(nonsense);
            let _ = stream.shutdown(std::net::Shutdown::Write);
            let answer: io::Result<Answer> = receive(&stream, MAX_ANSWER);
            assert!(
                !matches!(answer, Ok(Answer::Done(_) | Answer::Busy)),
                "{answer:?}"
            );
        }
        assert!(ask(&path, &Request::Status, SOON).is_ok());
    }

    #[test]
    fn a_daemon_that_does_not_answer_is_given_up() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("s.sock");
        let _silent = UnixListener::bind(&path).expect("a socket");
        let start = std::time::Instant::now();
        assert!(ask(&path, &Request::Status, Duration::from_millis(100)).is_err());
        assert!(start.elapsed() < SOON);
    }
}
