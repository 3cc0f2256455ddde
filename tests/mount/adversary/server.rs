//! A server that means harm: it writes its answers byte by byte itself and shares no code with the
//! client, with `kvfs serve`, or with the other scripted server.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

/// The id of its store.
pub const STORE: &str = "WkzbQMuFYuamGv3YF";

/// A request.
pub struct Request {
    /// Which of the server's connections it came over, counted from 1.
    pub connection: usize,
    pub method: String,
    pub path: String,
    pub query: Vec<(String, String)>,
    headers: Vec<(String, String)>,
}

impl Request {
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut all = self.headers.iter();
        all.find(|(known, _)| known == name)
            .map(|(_, value)| value.as_str())
    }

    pub fn parameter(&self, name: &str) -> Option<&str> {
        let mut all = self.query.iter();
        all.find(|(known, _)| known == name)
            .map(|(_, value)| value.as_str())
    }

    /// Returns the first and last byte that are asked for.
    pub fn range(&self) -> Option<(usize, Option<usize>)> {
        let (first, last) = self
            .header("range")?
            .strip_prefix("bytes=")?
            .split_once('-')?;
        Some((first.parse().ok()?, last.parse().ok()))
    }
}

/// What happens to the connection after an answer.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Then {
    Listen,
    Close,
    /// It stays open, and nothing comes any more.
    Silence,
}

/// The way back to the client.
pub struct Wire<'a>(&'a TcpStream);

impl Wire<'_> {
    /// Sends bytes as they are.
    pub fn send(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.0.write_all(bytes)
    }

    /// Sends a whole answer.
    pub fn answer(&mut self, status: u16, kind: &str, body: &[u8]) -> std::io::Result<Then> {
        let head = format!(
            "HTTP/1.1 {status} Answer\r\ncontent-type: {kind}\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        self.send(head.as_bytes())?;
        self.send(body)?;
        Ok(Then::Listen)
    }

    /// Sends an error of the API.
    pub fn error(&mut self, status: u16, kind: &str) -> std::io::Result<Then> {
        let body = format!(r#"{{"error":{{"type":"{kind}","message":"as the script says"}}}}"#);
        self.answer(status, "application/json", body.as_bytes())
    }

    /// Sends what a gateway says instead.
    pub fn gateway(&mut self, status: u16) -> std::io::Result<Then> {
        let page = b"<html><body><h1>Not here</h1><p>nginx</p></body></html>";
        self.answer(status, "text/html", page)
    }
}

type Script = dyn Fn(&Request, &mut Wire<'_>) -> std::io::Result<Then> + Send + Sync;

struct Shared {
    script: Box<Script>,
    stopping: AtomicBool,
    connections: Mutex<Vec<(TcpStream, JoinHandle<()>)>>,
}

/// The server; ends when dropped.
pub struct Adversary {
    address: SocketAddr,
    shared: Arc<Shared>,
    acceptor: Option<JoinHandle<()>>,
}

impl Adversary {
    /// Starts a server that describes its store and leaves everything else to `script`.
    pub fn start(
        script: impl Fn(&Request, &mut Wire<'_>) -> std::io::Result<Then> + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        let shared = Arc::new(Shared {
            script: Box::new(script),
            stopping: AtomicBool::new(false),
            connections: Mutex::default(),
        });
        let accepting = Arc::clone(&shared);
        let acceptor = std::thread::spawn(move || {
            for (connection, stream) in (1..).zip(listener.incoming().map_while(Result::ok)) {
                if accepting.stopping.load(Ordering::SeqCst) {
                    return;
                }
                let twin = stream.try_clone().expect("a second descriptor");
                let shared = Arc::clone(&accepting);
                let thread = std::thread::spawn(move || {
                    // Errors are the client's: it does not want the rest.
                    let _ = serve(&stream, connection, &shared);
                    let _ = stream.shutdown(Shutdown::Both);
                });
                let mut all = accepting.connections.lock().expect("no panic");
                all.retain(|(_, thread)| !thread.is_finished());
                all.push((twin, thread));
            }
        });
        Self {
            address,
            shared,
            acceptor: Some(acceptor),
        }
    }

    pub fn url(&self) -> String {
        format!("http://{}/", self.address)
    }
}

impl Drop for Adversary {
    fn drop(&mut self) {
        self.shared.stopping.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address);
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
        let all = std::mem::take(&mut *self.shared.connections.lock().expect("no panic"));
        for (stream, _) in &all {
            let _ = stream.shutdown(Shutdown::Both);
        }
        for (_, thread) in all {
            let _ = thread.join();
        }
    }
}

fn serve(stream: &TcpStream, connection: usize, shared: &Shared) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut reader = BufReader::new(stream);
    while let Some(mut request) = read(&mut reader)? {
        request.connection = connection;
        let mut wire = Wire(stream);
        let then = if request.path == format!("/v2/key-value-stores/{STORE}") {
            let store = format!(
                r#"{{"data":{{"id":"{STORE}","name":"n","createdAt":"2020-01-01T00:00:00.000Z","modifiedAt":"2024-01-02T03:04:05.678Z"}}}}"#
            );
            wire.answer(200, "application/json", store.as_bytes())?
        } else {
            (shared.script)(&request, &mut wire)?
        };
        match then {
            Then::Listen => {}
            Then::Close => return Ok(()),
            Then::Silence => {
                stream.set_read_timeout(Some(Duration::from_secs(120)))?;
                let _ = std::io::copy(&mut reader, &mut std::io::sink());
                return Ok(());
            }
        }
    }
    Ok(())
}

fn read(reader: &mut impl BufRead) -> std::io::Result<Option<Request>> {
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let mut words = line.split(' ');
    let method = words.next().unwrap_or_default().to_owned();
    let target = words.next().unwrap_or_default();
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let decode = |text: &str| {
        percent_encoding::percent_decode_str(text)
            .decode_utf8_lossy()
            .into_owned()
    };
    let query = query
        .split('&')
        .filter_map(|pair| pair.split_once('='))
        .map(|(name, value)| (decode(name), decode(value)))
        .collect();
    let mut request = Request {
        connection: 0,
        method,
        path: decode(path),
        query,
        headers: Vec::new(),
    };
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let Some((name, value)) = line.trim_end().split_once(':') else {
            break;
        };
        let header = (name.to_ascii_lowercase(), value.trim().to_owned());
        request.headers.push(header);
    }
    let length = request.header("content-length");
    if let Some(length) = length.and_then(|length| length.parse().ok()) {
        std::io::copy(&mut reader.take(length), &mut std::io::sink())?;
    }
    Ok(Some(request))
}
