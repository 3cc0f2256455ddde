//! Uploads to a server that takes bytes slowly, or none at all: when they end, and what the server
//! has of them then.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use kvfs::apify::http::HttpOptions;
use kvfs::apify::retry::RetryPolicy;
use kvfs::base::redact::Secret;
use kvfs::mount::build::MountConfig;
use kvfs::mount::open::{OpenConfig, TokenSource, open_with};

use crate::support::mounted::{
    MountedSession, SCRIPTED_ID, make_writable, open_config, pattern, quick_retries,
};
use crate::support::served::TOKEN;

/// What a busy machine may add to a deadline.
const BUSY: Duration = Duration::from_secs(8);
/// More than all buffers on the way to a server hold.
const LARGE: usize = 24 << 20;
/// How much a slow server takes at once.
const BITE: usize = 256 << 10;

/// A server of one record, `old`, that leaves uploads to the test: it has read their heads only.
struct Server {
    address: SocketAddr,
    uploads: Receiver<TcpStream>,
}

impl Server {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        // What is accepted inherits it.
        rustix::net::sockopt::set_socket_recv_buffer_size(&listener, 64 << 10).expect("a size");
        let address = listener.local_addr().expect("an address");
        let (sender, uploads) = channel();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let sender = sender.clone();
                thread::spawn(move || serve(stream, &sender));
            }
        });
        Self { address, uploads }
    }

    /// Mounts it; an attempt ends after so much silence, and then there are as many more as the
    /// deadline has room for.
    fn mount(&self, silence: Duration, deadline: Duration) -> MountedSession {
        let options = HttpOptions {
            retry: RetryPolicy {
                attempts: 100_000,
                ..quick_retries().retry
            },
            ..HttpOptions::new(silence)
        };
        let open = OpenConfig {
            api_url: Some(format!("http://{}", self.address).parse().expect("a URL")),
            token: TokenSource::Environment(Secret::new(TOKEN)),
            ..open_config(SCRIPTED_ID.parse().expect("an id"))
        };
        let store = open_with(&open, options, Arc::default()).expect("a store");
        MountedSession::with(store, |config: &mut MountConfig| {
            make_writable(config);
            config.deadline = deadline;
        })
    }

    fn next(&self) -> TcpStream {
        self.uploads
            .recv_timeout(Duration::from_secs(20))
            .expect("an upload")
    }
}

fn serve(mut stream: TcpStream, uploads: &Sender<TcpStream>) {
    loop {
        let Some(head) = read_head(&mut stream) else {
            return;
        };
        let line = head.lines().next().unwrap_or_default();
        let is_head = line.starts_with("HEAD ");
        let (status, body) = if line.starts_with("PUT ") {
            let _ = uploads.send(stream);
            return;
        } else if line.contains("/keys?") {
            let page = r#"{"data":{"items":[{"key":"old","size":3}],"count":1,"limit":1000,"isTruncated":false,"exclusiveStartKey":null,"nextExclusiveStartKey":null}}"#;
            ("200 OK", page.to_owned())
        } else if line.contains("/records/old") {
            ("200 OK", "old".to_owned())
        } else if line.contains("/records/") {
            let error = r#"{"error":{"type":"record-not-found","message":"Record was not found"}}"#;
            ("404 Not Found", error.to_owned())
        } else {
            (
                "200 OK",
                format!(r#"{{"data":{{"id":"{SCRIPTED_ID}","name":"n"}}}}"#),
            )
        };
        let len = body.len();
        let body = if is_head { "" } else { &body };
        let answer = format!(
            "HTTP/1.1 {status}\r\ncontent-type: application/json\r\netag: \"v1\"\r\ncontent-length: {len}\r\n\r\n{body}"
        );
        if stream.write_all(answer.as_bytes()).is_err() {
            return;
        }
    }
}

/// Reads the head of a request, and nothing of its body.
fn read_head(stream: &mut TcpStream) -> Option<String> {
    let mut seen = vec![0; 16 << 10];
    loop {
        let len = stream.peek(&mut seen).ok().filter(|len| *len > 0)?;
        let end = seen[..len].windows(4).position(|end| end == b"\r\n\r\n");
        if let Some(end) = end {
            let mut head = vec![0; end + 4];
            stream.read_exact(&mut head).ok()?;
            return String::from_utf8(head).ok();
        }
        thread::yield_now();
    }
}

/// Writes and syncs `name`; returns the errno, or 0.
fn write_and_sync(mount: &MountedSession, name: &str, flags: &str) -> (i32, Duration) {
    std::fs::write(mount.beside().join("large"), pattern(LARGE)).expect("a file");
    let begun = Instant::now();
    let errno = mount.python(&format!(
        "import os
content = open(os.environ['BESIDE'] + '/large', 'rb').read()
fd = os.open('{name}', {flags})
os.write(fd, content[:1])
at = 1
while at < len(content): at += os.pwrite(fd, content[at:], at)
try: os.fsync(fd)
except OSError as error: print(error.errno, flush=True); os._exit(0)
print(0, flush=True)
os._exit(0)
"
    ));
    (errno.parse().expect("a number"), begun.elapsed())
}

#[test]
fn an_upload_of_which_the_server_takes_nothing_ends_with_the_deadline() {
    let deadline = Duration::from_secs(5);
    // A new record is sent again and again; one that replaces a version is looked for in between.
    for (name, flags) in [("new", "os.O_RDWR | os.O_CREAT"), ("old", "os.O_RDWR")] {
        let server = Server::start();
        let mount = server.mount(Duration::from_secs(4), deadline);
        let (errno, took) = write_and_sync(&mount, name, flags);
        assert_eq!(errno, libc::ETIMEDOUT, "{name}");
        // At the slowest that is allowed, these bytes would take 25 minutes; and there would be
        // several attempts.
        assert!(took < deadline + BUSY, "{name}: {took:?}");
        let errors = mount.counters().last_errors;
        assert!(
            errors
                .iter()
                .any(|error| error.key.as_deref() == Some(name)),
            "{errors:?}"
        );
    }
}

#[test]
fn an_upload_goes_on_past_the_deadline_while_the_server_takes_bytes() {
    let deadline = Duration::from_secs(4);
    let server = Server::start();
    let mount = server.mount(deadline, deadline);
    let sync = thread::scope(|scope| {
        let sync = scope.spawn(|| write_and_sync(&mount, "new", "os.O_RDWR | os.O_CREAT"));
        let mut upload = server.next();
        let begun = Instant::now();
        let mut taken = 0;
        let mut bite = vec![0; BITE];
        while taken < LARGE {
            // Slowly at first; what the buffers hold in the end, at once.
            if begun.elapsed() < deadline + deadline / 2 {
                thread::sleep(Duration::from_millis(100));
            }
            let wanted = (LARGE - taken).min(BITE);
            upload.read_exact(&mut bite[..wanted]).expect("bytes");
            taken += wanted;
        }
        let answer = b"HTTP/1.1 201 Created\r\netag: \"v2\"\r\ncontent-length: 0\r\n\r\n";
        upload.write_all(answer).expect("an answer");
        sync.join().expect("a verdict")
    });
    assert_eq!(sync.0, 0, "{sync:?}");
    assert!(sync.1 > deadline, "the test proves nothing: {sync:?}");
}

/// A server that stood still and goes on later finds the end of the connection, not of the body.
#[test]
fn an_upload_that_was_given_up_cannot_be_completed_by_a_server_that_goes_on_later() {
    let server = Server::start();
    let mount = server.mount(Duration::from_millis(500), Duration::from_secs(3));
    let (errno, _) = write_and_sync(&mount, "new", "os.O_RDWR | os.O_CREAT");
    assert_eq!(errno, libc::ETIMEDOUT);
    let mut attempts = 0;
    while let Ok(mut upload) = server.uploads.try_recv() {
        upload
            .set_read_timeout(Some(Duration::from_secs(10)))
            .expect("a timeout");
        let mut found = Vec::new();
        if let Err(error) = upload.read_to_end(&mut found) {
            let is_hung_up = error.kind() == std::io::ErrorKind::ConnectionReset;
            assert!(is_hung_up, "the connection is still open: {error}");
        }
        assert!(found.len() < LARGE, "the whole upload arrived");
        attempts += 1;
    }
    assert!(attempts > 1, "nothing was sent again");
}
