//! Against a server that writes answers in pieces of any length.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use proptest::prelude::*;
use reqwest::Method;
use reqwest::header::HeaderMap;
use url::Url;

use super::super::endpoint::Target;
use super::super::errors::Failure;
use super::super::plain::PlainHttp;
use super::super::transport::Transport;
use crate::base::clock::Deadline;
use crate::base::redact::SafeUrl;
use crate::store::ErrorKind;

/// What a server writes for one request, piece by piece, and whether it closes the connection then.
#[derive(Clone, Debug)]
struct Script {
    pieces: Vec<Vec<u8>>,
    closes: bool,
}

struct Server {
    url: Url,
    connections: Arc<AtomicUsize>,
    open: Arc<Mutex<Vec<TcpStream>>>,
}

impl Server {
    /// Starts a server that answers each connection's requests by what `script` says.
    fn start(script: Script) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let url = format!(
            "http://{}/a?b=c",
            listener.local_addr().expect("an address")
        );
        let connections = Arc::new(AtomicUsize::new(0));
        let open = Arc::new(Mutex::new(Vec::new()));
        let (count, all) = (Arc::clone(&connections), Arc::clone(&open));
        // Ends with the process: it has nothing but this socket.
        std::thread::spawn(move || {
            for socket in listener.incoming().flatten() {
                count.fetch_add(1, Ordering::SeqCst);
                let kept = socket.try_clone().expect("a copy");
                all.lock().expect("no panic").push(kept);
                let script = script.clone();
                std::thread::spawn(move || answer(socket, &script));
            }
        });
        Self {
            url: Url::parse(&url).expect("a URL"),
            connections,
            open,
        }
    }

    fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

fn answer(mut socket: TcpStream, script: &Script) {
    socket.set_nodelay(true).expect("an option");
    loop {
        let mut head = Vec::new();
        let mut byte = [0];
        while !head.ends_with(b"\r\n\r\n") {
            match socket.read(&mut byte) {
                Ok(1) => head.push(byte[0]),
                _ => return,
            }
        }
        assert!(head.starts_with(b"GET /a?b=c HTTP/1.1\r\n"));
        for piece in &script.pieces {
            if socket.write_all(piece).is_err() {
                return;
            }
        }
        if script.closes {
            // The test has the socket, too.
            let _ = socket.shutdown(Shutdown::Both);
            return;
        }
    }
}

fn transport(url: &Url, patience: Duration) -> Arc<Transport> {
    let plain = PlainHttp::default();
    Arc::new(Transport::new(url, patience, plain, Arc::default()).expect("a transport"))
}

/// Gets the whole body, reading `step` bytes at a time.
fn get(transport: &Arc<Transport>, url: &Url, step: usize) -> Result<Vec<u8>, Failure> {
    let target = Target::Url(SafeUrl::new(url.clone()));
    let deadline = Deadline::after(Duration::from_secs(60));
    let mut reply = transport.send(&Method::GET, &target, HeaderMap::new(), None, deadline)?;
    let (mut all, mut buffer) = (Vec::new(), vec![0; step]);
    loop {
        match reply.body.read(&mut buffer)? {
            0 => return Ok(all),
            len => all.extend_from_slice(&buffer[..len]),
        }
    }
}

fn with_length(body: &[u8], more: &str) -> Vec<u8> {
    let mut all = format!(
        "HTTP/1.1 200 OK\r\n{more}content-length: {}\r\n\r\n",
        body.len()
    )
    .into_bytes();
    all.extend_from_slice(body);
    all
}

fn in_chunks(body: &[u8], chunk: usize) -> Vec<u8> {
    let mut all = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n".to_vec();
    for chunk in body.chunks(chunk) {
        all.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
        all.extend_from_slice(chunk);
        all.extend_from_slice(b"\r\n");
    }
    all.extend_from_slice(b"0\r\n\r\n");
    all
}

fn bytes(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 31 + i / 257) as u8).collect()
}

fn patient() -> Duration {
    Duration::from_secs(60)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn bodies_are_exact_however_they_come_and_connections_are_used_again(
        len in prop_oneof![0..40usize, 0..200_000usize],
        chunk in prop_oneof![Just(None), (1..70_000usize).prop_map(Some)],
        mut cuts in prop::collection::vec(0..201_000usize, 0..6),
        step in prop_oneof![1..100usize, 1..300_000usize],
    ) {
        let body = bytes(len);
        let mut rest = match chunk {
            Some(chunk) => in_chunks(&body, chunk.max(len / 100)),
            None => with_length(&body, ""),
        };
        cuts.sort_unstable_by(|a, b| b.cmp(a));
        let mut pieces = Vec::new();
        for cut in cuts.into_iter().filter(|cut| *cut < rest.len()).collect::<Vec<_>>() {
            pieces.push(rest.split_off(cut));
        }
        pieces.push(rest);
        pieces.reverse();
        let server = Server::start(Script { pieces, closes: false });
        let transport = transport(&server.url, patient());
        for _ in 0..3 {
            let got = get(&transport, &server.url, step.max(len / 1000)).expect("an answer");
            prop_assert!(got == body, "{} of {len} bytes", got.len());
        }
        prop_assert_eq!(server.connections(), 1);
        prop_assert_eq!(transport.metrics.received_bytes.get(), 3 * len as u64);
    }
}

#[test]
fn a_connection_that_may_hold_something_else_is_not_used_again() {
    let body = bytes(1000);
    let mut surplus = with_length(&body, "");
    surplus.extend_from_slice(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil");
    let old = {
        let mut all = b"HTTP/1.0 200 OK\r\ncontent-length: 1000\r\n\r\n".to_vec();
        all.extend_from_slice(&body);
        all
    };
    for answer in [surplus, old, with_length(&body, "Connection: Close\r\n")] {
        let server = Server::start(Script {
            pieces: vec![answer],
            closes: false,
        });
        let transport = transport(&server.url, patient());
        for round in 1..4 {
            assert_eq!(get(&transport, &server.url, 300).expect("an answer"), body);
            assert_eq!(server.connections(), round);
        }
    }
}

#[test]
fn a_connection_that_the_server_has_closed_is_not_used_again() {
    let body = bytes(10);
    let server = Server::start(Script {
        pieces: vec![with_length(&body, "")],
        closes: false,
    });
    let transport = transport(&server.url, patient());
    for round in 1..4 {
        assert_eq!(get(&transport, &server.url, 300).expect("an answer"), body);
        assert_eq!(server.connections(), round);
        for socket in server.open.lock().expect("no panic").drain(..) {
            // The client has seen it when this returns: both ends are on this machine.
            let _ = socket.shutdown(Shutdown::Both);
        }
    }
}

#[test]
fn a_body_that_ends_early_is_an_error_whatever_its_framing() {
    let body = bytes(100_000);
    for whole in [with_length(&body, ""), in_chunks(&body, 7000)] {
        for len in [whole.len() - 60_000, whole.len() - 1] {
            let server = Server::start(Script {
                pieces: vec![whole[..len].to_vec()],
                closes: true,
            });
            let transport = transport(&server.url, patient());
            let failure = get(&transport, &server.url, 4096).expect_err("cut");
            assert_eq!(failure.kind, ErrorKind::Network, "{failure:?}");
        }
    }
}

#[test]
fn silence_is_an_error_in_the_head_and_in_the_body() {
    let body = bytes(100_000);
    for whole in [with_length(&body, ""), in_chunks(&body, 7000)] {
        for len in [0, 10, whole.len() - 1] {
            let server = Server::start(Script {
                pieces: vec![whole[..len].to_vec()],
                closes: false,
            });
            let transport = transport(&server.url, Duration::from_millis(200));
            let failure = get(&transport, &server.url, 4096).expect_err("silence");
            assert_eq!(failure.kind, ErrorKind::Timeout, "{failure:?}");
        }
    }
}

/// Interim answers, of which there may be any number (RFC 9110, 15.2), are no sign of life.
#[test]
fn a_server_that_never_comes_to_the_point_is_given_up() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}/", listener.local_addr().expect("an address"));
    let url = Url::parse(&url).expect("a URL");
    // Ends when the client has closed the connection.
    let server = std::thread::spawn(move || {
        let (mut socket, _) = listener.accept().expect("a client");
        let mut request = [0; 4096];
        let _ = socket.read(&mut request).expect("a request");
        let hints = b"HTTP/1.1 103 Early Hints\r\n\r\n".repeat(1000);
        while socket.write_all(&hints).is_ok() {}
    });
    let transport = transport(&url, Duration::from_millis(300));
    let failure = get(&transport, &url, 4096).expect_err("no answer");
    server.join().expect("no panic");
    assert_eq!(failure.kind, ErrorKind::Timeout, "{failure:?}");
}

#[test]
fn answers_without_a_body_keep_the_connection() {
    let server = Server::start(Script {
        pieces: vec![b"HTTP/1.1 304 Not Modified\r\ncontent-length: 77\r\n\r\n".to_vec()],
        closes: false,
    });
    let transport = transport(&server.url, patient());
    for _ in 0..3 {
        assert_eq!(get(&transport, &server.url, 10).expect("an answer"), b"");
    }
    assert_eq!(server.connections(), 1);
}
