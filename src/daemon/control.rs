//! The daemon's control socket: how other kvfs processes ask it for its state or to unmount.
//!
//! A Unix socket of mode 0600 in the state folder. A connection carries one request, a line of
//! JSON, and one answer, a line of JSON; lines about progress may come before the answer. Only the
//! daemon's user and root get answers.

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

use crate::base::descriptors::Spare;
use crate::daemon::registry::unmount::UnmountMode;
use crate::fs::warm::Wanted;

/// The longest request: the names of some hundred thousand files.
const MAX_REQUEST: u64 = 16 << 20;

/// The longest answer: the counters and the remembered errors of one mount.
const MAX_ANSWER: u64 = 4 << 20;

/// How long a peer may take to send its request or take its answer.
const PEER_TIMEOUT: Duration = Duration::from_secs(5);

/// How many peers are served at a time; more are turned away.
const MAX_PEERS: usize = 16;

/// The longest path that fits into a socket address with its closing zero.
const MAX_SOCKET_PATH: usize = 107;

/// A request to a daemon.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "snake_case")]
pub enum Request {
    /// The state of the mount.
    Status,
    /// A link to a file, or to the store.
    Share {
        /// The file's name in the mount.
        name: Option<String>,
        /// When the link is to expire, in seconds since 1970.
        expires_unix_s: Option<u64>,
    },
    /// To forget what is cached.
    Refresh {
        /// Of these files; none for all.
        names: Vec<String>,
    },
    /// To fetch into the cache, telling of the progress.
    Warm {
        /// What.
        wanted: Wanted,
    },
    /// To report every operation until the asking process hangs up.
    Trace,
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
    /// What it is about is not there.
    Missing(String),
    /// It failed, and why.
    Failed(String),
}

/// A line that a daemon sends.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Line {
    News(News),
    Answer(Answer),
}

/// What comes before the answer.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum News {
    Progress(Value),
}

/// Answers requests; called from several threads.
pub type Handler = Arc<dyn Fn(Request, &mut Progress<'_>) -> Answer + Send + Sync>;

/// Where news go before the answer.
#[derive(Debug)]
pub struct Progress<'a>(&'a UnixStream);

impl Progress<'_> {
    /// Sends news to the asking process.
    ///
    /// # Errors
    /// That the asking process has gone, or does not read.
    pub fn send(&mut self, news: Value) -> io::Result<()> {
        send(self.0, &News::Progress(news))
    }
}

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
        // Left by a killed daemon; the caller holds the mount point's lock, so no daemon listens.
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
/// That no daemon listens, or that no answer came in time.
pub fn ask(path: &Path, request: &Request, timeout: Duration) -> io::Result<Answer> {
    follow(path, request, timeout, &mut |_| true)
}

/// Asks the daemon that listens at `path`, and hands its news to `news` until it answers;
/// `patience` bounds the silence. Hangs up when `news` says `false`.
///
/// # Errors
/// That no daemon listens, or that nothing comes in time; [`io::ErrorKind::Interrupted`] after
/// hanging up.
pub fn follow(
    path: &Path,
    request: &Request,
    patience: Duration,
    news: &mut dyn FnMut(Value) -> bool,
) -> io::Result<Answer> {
    let stream = connect(path, patience)?;
    stream.set_read_timeout(Some(patience))?;
    stream.set_write_timeout(Some(patience))?;
    send(&stream, request)?;
    let mut lines = BufReader::new(&stream);
    loop {
        match receive(&mut lines, MAX_ANSWER)? {
            Line::Answer(answer) => return Ok(answer),
            Line::News(News::Progress(value)) => {
                if !news(value) {
                    return Err(io::ErrorKind::Interrupted.into());
                }
            }
        }
    }
}

fn accept(listener: &UnixListener, handler: &Handler) {
    let peers = Arc::new(AtomicUsize::new(0));
    // `kvfs status` and `doctor` must get through even when all descriptors are in use.
    let spare = Spare::default();
    loop {
        let stream = match spare.with(|| listener.accept()) {
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

fn serve(stream: UnixStream, handler: &Handler) -> io::Result<()> {
    stream.set_read_timeout(Some(PEER_TIMEOUT))?;
    stream.set_write_timeout(Some(PEER_TIMEOUT))?;
    let peer = sockopt::socket_peercred(&stream)?;
    if !peer.uid.is_root() && peer.uid != rustix::process::geteuid() {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    let answer = match receive(&mut BufReader::new(&stream), MAX_REQUEST) {
        Ok(request) => handler(request, &mut Progress(&stream)),
        Err(error) => Answer::Failed(format!("the request cannot be read: {error}")),
    };
    let line = line(&answer)?;
    if line.len() as u64 > MAX_ANSWER {
        let failed = Answer::Failed("the answer is too large to be sent".to_owned());
        return send(&stream, &failed);
    }
    (&stream).write_all(&line)
}

fn send(mut stream: &UnixStream, message: &impl Serialize) -> io::Result<()> {
    stream.write_all(&line(message)?)
}

fn line(message: &impl Serialize) -> io::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    Ok(line)
}

fn receive<T: for<'de> Deserialize<'de>>(lines: &mut impl BufRead, limit: u64) -> io::Result<T> {
    let mut line = Vec::new();
    lines.take(limit).read_until(b'\n', &mut line)?;
    if line.pop() != Some(b'\n') {
        return Err(match line.len() as u64 + 1 < limit {
            true => io::Error::new(io::ErrorKind::UnexpectedEof, "the message ends early"),
            false => io::Error::new(io::ErrorKind::InvalidData, "the message is too long"),
        });
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
            Self::Missing(why) | Self::Failed(why) => f.write_str(why),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_secs(5);

    fn echo() -> Handler {
        Arc::new(|request, progress| match request {
            Request::Status => Answer::Done(serde_json::json!({"pid": 1})),
            Request::Unmount {
                mode: UnmountMode::Graceful,
            } => Answer::Busy,
            Request::Trace => {
                while progress.send(serde_json::json!(["something"])).is_ok() {}
                Answer::Done(Value::Null)
            }
            Request::Refresh { .. } => {
                for n in 0..3 {
                    progress.send(n.into()).expect("a listener");
                }
                Answer::Done(3.into())
            }
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
            let answer: io::Result<Answer> = receive(&mut BufReader::new(&stream), MAX_ANSWER);
            assert!(
                !matches!(answer, Ok(Answer::Done(_) | Answer::Busy)),
                "{answer:?}"
            );
        }
        assert!(ask(&path, &Request::Status, SOON).is_ok());
    }

    #[test]
    fn news_come_before_the_answer_and_end_when_nobody_wants_them() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("s.sock");
        let _server = ControlServer::start(&path, echo()).expect("a socket");
        let mut news = Vec::new();
        let refresh = Request::Refresh { names: Vec::new() };
        let answer = follow(&path, &refresh, SOON, &mut |value| {
            news.push(value);
            true
        });
        assert_eq!(answer.expect("an answer"), Answer::Done(3.into()));
        assert_eq!(Value::from(news), serde_json::json!([0, 1, 2]));
        let left = follow(&path, &Request::Trace, SOON, &mut |_| false);
        let error = left.expect_err("hung up");
        assert_eq!(error.kind(), io::ErrorKind::Interrupted);
    }

    #[test]
    fn an_answer_that_is_too_large_is_an_answer_all_the_same() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("s.sock");
        let large: Handler = Arc::new(|_, _| Answer::Done("x".repeat(MAX_ANSWER as usize).into()));
        let _server = ControlServer::start(&path, large).expect("a socket");
        let answer = ask(&path, &Request::Status, SOON).expect("an answer");
        assert!(matches!(answer, Answer::Failed(_)), "{answer:?}");
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
