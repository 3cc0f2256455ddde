//! A server that answers what it is told, however wrong: for testing the client alone.
//!
//! It listens on a loopback port, keeps connections alive where the answer allows, and remembers
//! the requests. Dropping it closes all connections and waits for its threads.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, BufWriter, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

/// A request as it arrived.
#[derive(Clone, Debug)]
pub struct Seen {
    /// `GET`, ...
    pub method: String,
    /// Path and query, verbatim.
    pub target: String,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    /// The body, no longer chunked.
    pub body: Vec<u8>,
}

impl Seen {
    /// Returns a header's value; `name` in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        let (_, value) = self.headers.iter().find(|(known, _)| known == name)?;
        Some(value)
    }

    /// Returns the path without the query.
    pub fn path(&self) -> &str {
        self.target.split('?').next().unwrap_or_default()
    }
}

/// How an answer's length is told.
#[derive(Clone, Copy, Debug)]
enum Framing {
    ContentLength(u64),
    Chunked,
    UntilClose,
    /// Not even a status line: the body is all there is.
    Raw,
}

/// What happens after an answer.
#[derive(Clone, Copy, Debug, PartialEq)]
enum After {
    KeepAlive,
    Close,
    Stall,
    /// All of it, or all after the head, has come a byte at a time with so much time in between.
    Trickle(Duration, From),
}

/// Where it is that an answer becomes slow.
#[derive(Clone, Copy, Debug, PartialEq)]
enum From {
    Start,
    Body,
}

/// An answer, or what stands in for one.
#[derive(Clone, Debug)]
pub struct Answer {
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
    framing: Framing,
    after: After,
    sent_len: usize,
}

impl Answer {
    /// Returns a well-formed answer.
    pub fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        let body = body.into();
        Self {
            status,
            headers: Vec::new(),
            framing: Framing::ContentLength(body.len() as u64),
            after: After::KeepAlive,
            sent_len: body.len(),
            body,
        }
    }

    /// Returns a well-formed error of the API.
    pub fn error(status: u16, api_type: &str, message: &str) -> Self {
        let error = serde_json::json!({"error": {"type": api_type, "message": message}});
        Self::new(status, error.to_string()).header("content-type", "application/json")
    }

    /// Returns bytes that are sent as they are, before the connection is closed.
    pub fn raw(bytes: impl Into<Vec<u8>>) -> Self {
        Self {
            framing: Framing::Raw,
            after: After::Close,
            ..Self::new(0, bytes)
        }
    }

    /// Returns silence: the connection stays open and nothing comes.
    pub fn silence() -> Self {
        Self {
            after: After::Stall,
            ..Self::raw("")
        }
    }

    /// Adds a header.
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    /// Sends only the first bytes of the body, then closes.
    pub fn cut_after(mut self, len: usize) -> Self {
        self.sent_len = len;
        self.after = After::Close;
        self
    }

    /// Sends only the first bytes of the body, then nothing.
    pub fn stall_after(mut self, len: usize) -> Self {
        self.sent_len = len;
        self.after = After::Stall;
        self
    }

    /// Sends head and body a byte at a time, with a pause before each.
    pub fn trickle(mut self, pause: Duration) -> Self {
        self.after = After::Trickle(pause, From::Start);
        self
    }

    /// Sends the head at once, and the body a byte at a time, with a pause before each.
    pub fn trickle_body(mut self, pause: Duration) -> Self {
        self.after = After::Trickle(pause, From::Body);
        self
    }

    /// Claims this length.
    pub fn claim_len(mut self, len: u64) -> Self {
        self.framing = Framing::ContentLength(len);
        self.after = After::Close;
        self
    }

    /// Sends the body in chunks, without telling its length.
    pub fn chunked(mut self) -> Self {
        self.framing = Framing::Chunked;
        self
    }

    /// Tells the body's end by closing.
    pub fn until_close(mut self) -> Self {
        self.framing = Framing::UntilClose;
        self.after = After::Close;
        self
    }

    fn write(&self, to: &mut impl Write, is_head: bool) -> std::io::Result<()> {
        let body = &self.body[..self.sent_len.min(self.body.len())];
        if let Framing::Raw = self.framing {
            to.write_all(body)?;
            return to.flush();
        }
        let mut head = format!("HTTP/1.1 {} Scripted\r\n", self.status);
        for (name, value) in &self.headers {
            head += &format!("{name}: {value}\r\n");
        }
        match self.framing {
            _ if matches!(self.status, 204 | 304) => {}
            Framing::ContentLength(len) => head += &format!("content-length: {len}\r\n"),
            Framing::Chunked => head += "transfer-encoding: chunked\r\n",
            Framing::UntilClose | Framing::Raw => {}
        }
        to.write_all(head.as_bytes())?;
        to.write_all(b"\r\n")?;
        if !is_head {
            if let Framing::Chunked = self.framing {
                for chunk in body.chunks(1000) {
                    to.write_all(format!("{:x}\r\n", chunk.len()).as_bytes())?;
                    to.write_all(chunk)?;
                    to.write_all(b"\r\n")?;
                }
                if self.sent_len >= self.body.len() {
                    to.write_all(b"0\r\n\r\n")?;
                }
            } else {
                to.write_all(body)?;
            }
        }
        to.flush()
    }
}

type Handler = dyn Fn(&Seen, usize) -> Answer + Send + Sync;

/// What was asked of a server, or since a moment: what it costs on a line on which only waiting counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// Connections.
    pub connections: usize,
    /// Questions that were asked one after the other, each when the one before was answered.
    pub rounds: usize,
    /// Requests.
    pub requests: usize,
}

#[derive(Default)]
struct Shared {
    seen: Mutex<Vec<Seen>>,
    cost: Mutex<Cost>,
    /// How many rounds have been answered.
    answered: Mutex<usize>,
    closed: Mutex<usize>,
    closing: Condvar,
    connections: Mutex<Vec<(TcpStream, JoinHandle<()>)>>,
    stopping: AtomicBool,
}

impl Shared {
    fn count_closed(&self) {
        *self.closed.lock() += 1;
        self.closing.notify_all();
    }
}

/// The server; stops when dropped.
pub struct ScriptedServer {
    address: SocketAddr,
    shared: Arc<Shared>,
    acceptor: Option<JoinHandle<()>>,
}

impl ScriptedServer {
    /// Starts a server that asks `handler` for each answer; its second argument counts the
    /// requests before this one.
    pub fn start(handler: impl Fn(&Seen, usize) -> Answer + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        let shared = Arc::new(Shared::default());
        let handler: Arc<Handler> = Arc::new(handler);
        let for_acceptor = Arc::clone(&shared);
        let acceptor = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if for_acceptor.stopping.load(Ordering::SeqCst) {
                    return;
                }
                let Ok(stream) = stream else { continue };
                let Ok(twin) = stream.try_clone() else {
                    continue;
                };
                let (shared, handler) = (Arc::clone(&for_acceptor), Arc::clone(&handler));
                let thread = std::thread::spawn(move || {
                    // Errors are the client's doing: it closed the connection.
                    let _ = serve(&stream, &shared, &*handler);
                    let _ = stream.shutdown(Shutdown::Both);
                });
                for_acceptor.connections.lock().push((twin, thread));
            }
        });
        Self {
            address,
            shared,
            acceptor: Some(acceptor),
        }
    }

    /// Starts a server that gives these answers in turn, then 418.
    pub fn queue(answers: impl IntoIterator<Item = Answer>) -> Self {
        let answers = Mutex::new(answers.into_iter().collect::<VecDeque<_>>());
        Self::start(move |_, _| {
            let next = answers.lock().pop_front();
            next.unwrap_or_else(|| Answer::new(418, "the script is over"))
        })
    }

    /// Returns the server's address, with a final `/`.
    pub fn url(&self) -> String {
        format!("http://{}/", self.address)
    }

    /// Returns all requests so far.
    pub fn seen(&self) -> Vec<Seen> {
        self.shared.seen.lock().clone()
    }

    /// Returns what has been asked so far.
    pub fn cost(&self) -> Cost {
        *self.shared.cost.lock()
    }

    /// Returns what is asked while `work` runs.
    pub fn cost_of<T>(&self, work: impl FnOnce() -> T) -> (T, Cost) {
        let before = self.cost();
        let done = work();
        let after = self.cost();
        let cost = Cost {
            connections: after.connections - before.connections,
            rounds: after.rounds - before.rounds,
            requests: after.requests - before.requests,
        };
        (done, cost)
    }

    /// Waits until clients have closed so many of the connections of answers that did not end.
    pub fn wait_until_closed(&self, count: usize) {
        let until = Instant::now() + Duration::from_secs(20);
        let mut closed = self.shared.closed.lock();
        while *closed < count {
            let late = self.shared.closing.wait_until(&mut closed, until);
            assert!(
                !late.timed_out(),
                "only {closed} of {count} connections were closed"
            );
        }
    }
}

impl Drop for ScriptedServer {
    fn drop(&mut self) {
        self.shared.stopping.store(true, Ordering::SeqCst);
        // Wakes the acceptor.
        let _ = TcpStream::connect(self.address);
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
        let connections = std::mem::take(&mut *self.shared.connections.lock());
        for (stream, _) in &connections {
            let _ = stream.shutdown(Shutdown::Both);
        }
        for (_, thread) in connections {
            let _ = thread.join();
        }
    }
}

fn serve(stream: &TcpStream, shared: &Shared, handler: &Handler) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut reader = BufReader::new(stream);
    let mut is_new = true;
    while let Some(request) = read_request(&mut reader)? {
        let round = *shared.answered.lock() + 1;
        {
            let mut cost = shared.cost.lock();
            cost.connections += usize::from(std::mem::take(&mut is_new));
            cost.requests += 1;
            cost.rounds = cost.rounds.max(round);
        }
        let is_head = request.method == "HEAD";
        let count = {
            let mut seen = shared.seen.lock();
            seen.push(request.clone());
            seen.len() - 1
        };
        let answer = handler(&request, count);
        if let After::Trickle(pause, from) = answer.after {
            let (mut bytes, mut head) = (Vec::new(), Vec::new());
            answer.write(&mut bytes, is_head)?;
            answer.write(&mut head, true)?;
            let at_once = if from == From::Body { head.len() } else { 0 };
            for (at, byte) in bytes.into_iter().enumerate() {
                if at >= at_once {
                    std::thread::sleep(pause);
                }
                // Fails once the client has given up or the server is dropped.
                if let Err(error) = (&mut &*stream).write_all(&[byte]) {
                    shared.count_closed();
                    return Err(error);
                }
            }
            continue;
        }
        {
            // Before the client can have it and ask the next.
            let mut answered = shared.answered.lock();
            *answered = (*answered).max(round);
        }
        answer.write(&mut BufWriter::new(stream), is_head)?;
        match answer.after {
            After::KeepAlive | After::Trickle(..) => {}
            After::Close => return Ok(()),
            // Ends when the client gives up or the server is dropped.
            After::Stall => {
                let _ = std::io::copy(&mut reader, &mut std::io::sink());
                shared.count_closed();
                return Ok(());
            }
        }
    }
    Ok(())
}

fn read_request(reader: &mut impl BufRead) -> std::io::Result<Option<Seen>> {
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let mut words = line.split_whitespace().map(str::to_owned);
    let (method, target) = (
        words.next().unwrap_or_default(),
        words.next().unwrap_or_default(),
    );
    let mut headers = Vec::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let Some((name, value)) = line.trim_end().split_once(':') else {
            break;
        };
        headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
    let mut seen = Seen {
        method,
        target,
        headers,
        body: Vec::new(),
    };
    if let Some(len) = seen
        .header("content-length")
        .and_then(|len| len.parse().ok())
    {
        reader.take(len).read_to_end(&mut seen.body)?;
    } else if seen.header("transfer-encoding") == Some("chunked") {
        loop {
            let mut line = String::new();
            reader.read_line(&mut line)?;
            let len = u64::from_str_radix(line.trim(), 16).unwrap_or(0);
            let start = seen.body.len();
            reader.by_ref().take(len + 2).read_to_end(&mut seen.body)?;
            seen.body
                .truncate(start + usize::try_from(len).unwrap_or(0));
            if len == 0 {
                break;
            }
        }
    }
    Ok(Some(seen))
}
