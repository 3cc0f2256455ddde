//! The server goes away for a while, in every way in which servers do, and comes back.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use super::daemon::{User, soon};
use crate::support::served::TOKEN;

/// How long the server is away in these tests; with `KVFS_TEST_LONG` it is ten minutes.
const AWAY: Duration = Duration::from_secs(6);
/// The mount's deadline.
const DEADLINE: Duration = Duration::from_secs(3);
/// What a busy machine may add to it.
const BUSY: Duration = Duration::from_secs(5);
/// Of so many records, the first half is read before the server goes away.
const RECORDS: usize = 40;

#[expect(clippy::disallowed_methods, reason = "how long this runs")]
fn away() -> Duration {
    match std::env::var_os("KVFS_TEST_LONG") {
        Some(_) => Duration::from_secs(600),
        None => AWAY,
    }
}

/// `kvfs serve`, which can end and be started again at the same address.
struct Server {
    child: Child,
    port: u16,
}

impl Server {
    fn start(user: &User, port: u16) -> Self {
        let mut child = user
            .command(&["serve", "storage", "--listen"])
            .arg(format!("127.0.0.1:{port}"))
            .env("KVFS_SERVE_TOKEN", TOKEN)
            .stderr(Stdio::piped())
            .spawn()
            .expect("kvfs runs");
        let mut said = BufReader::new(child.stderr.take().expect("a pipe"));
        let mut line = String::new();
        said.read_line(&mut line).expect("a line");
        let port = line
            .trim()
            .rsplit(':')
            .next()
            .and_then(|port| port.parse().ok())
            .unwrap_or_else(|| panic!("{line}"));
        thread::spawn(move || std::io::copy(&mut said, &mut std::io::sink()));
        Self { child, port }
    }

    fn ask(&self, method: &str, path: &str, body: &str) -> String {
        let mut connection = TcpStream::connect(("127.0.0.1", self.port)).expect("a connection");
        write!(
            connection,
            "{method} {path} HTTP/1.1\r\nHost: h\r\nConnection: close\r\nAuthorization: Bearer {TOKEN}\r\n\
             Content-Type: text/plain\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )
        .expect("a request");
        let mut answer = String::new();
        connection.read_to_string(&mut answer).expect("an answer");
        answer
    }

    fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        let sent = Command::new("kill").args([name, &pid]).status();
        assert!(sent.expect("kill runs").success());
    }

    /// Stops all its threads; a signal that has been sent may take a moment to do so.
    fn pause(&self) {
        self.signal("-STOP");
        let tasks = format!("/proc/{}/task", self.child.id());
        soon(|| {
            fs::read_dir(&tasks)
                .expect("threads")
                .flatten()
                .all(|task| {
                    fs::read_to_string(task.path().join("status"))
                        .is_ok_and(|status| status.contains("State:\tT"))
                })
        });
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn content(n: usize) -> String {
    format!("record {n}\n").repeat(n + 1)
}

#[test]
fn an_outage_ends_and_everything_goes_on_in_the_same_mount() {
    let user = User::new();
    fs::create_dir(user.path("storage")).expect("a folder");
    let mut server = Server::start(&user, 0);
    let stores = "/v2/key-value-stores";
    let made = server.ask("POST", &format!("{stores}?name=out"), "");
    assert!(made.starts_with("HTTP/1.1 201"), "{made}");
    for n in 0..RECORDS {
        let path = format!("{stores}/local~out/records/r{n:02}");
        let stored = server.ask("PUT", &path, &content(n));
        assert!(stored.starts_with("HTTP/1.1 201"), "{stored}");
    }
    let mounted = user
        .command(&["mount", "~out", "mnt", "--ttl", "1h"])
        .args(["--timeout", "1s", "--deadline", "3s"])
        .env("APIFY_TOKEN", TOKEN)
        .env(
            "APIFY_CLIENT_BASE_URL",
            format!("http://127.0.0.1:{}", server.port),
        )
        .output()
        .expect("kvfs runs");
    assert!(mounted.status.success(), "{mounted:?}");
    let file = |n: usize| user.path(&format!("mnt/r{n:02}"));
    let pid = user.pid();
    let listed = || fs::read_dir(user.path("mnt")).expect("the mount").count();
    assert_eq!(listed(), RECORDS);
    // Against the order of the listing: a walk along it would have more fetched ahead.
    for n in (0..RECORDS / 2).rev() {
        assert_eq!(fs::read_to_string(file(n)).expect("a record"), content(n));
    }

    let start = Instant::now();
    let mut failures = 0;
    let mut kinds = 0;
    while start.elapsed() < away() || kinds < 2 {
        // Gone, so that connections are refused; then there, and silent.
        let is_silent = kinds % 2 == 1;
        let port = server.port;
        if is_silent {
            server.pause();
        } else {
            drop(server);
            // Takes the address, so that nobody else does, and lets no connection through.
            server = Server::start(&user, port);
            server.pause();
            let _ = server.child.kill();
            let _ = server.child.wait();
        }
        let part = Instant::now();
        while part.elapsed() < away() / 2 {
            // What is cached is there at once.
            for n in (0..RECORDS / 2).rev() {
                assert_eq!(
                    fs::read_to_string(file(n)).expect("a cached record"),
                    content(n)
                );
            }
            assert_eq!(listed(), RECORDS);
            // What is not fails in time, and stops nobody.
            let begun = Instant::now();
            let missing = RECORDS / 2 + failures % (RECORDS / 2);
            fs::read(file(missing)).expect_err("the server is away");
            assert!(begun.elapsed() < DEADLINE + BUSY, "{:?}", begun.elapsed());
            failures += 1;
        }
        if is_silent {
            server.signal("-CONT");
        } else {
            drop(server);
            server = Server::start(&user, port);
        }
        kinds += 1;
    }
    assert!(failures > 1);

    for n in 0..RECORDS {
        soon(|| fs::read_to_string(file(n)).is_ok_and(|text| text == content(n)));
    }
    assert_eq!(user.pid(), pid, "it is another daemon");
    let stats = &user.status()[0]["stats"];
    assert_eq!(stats["panics_total"], 0);
    assert!(stats["errors_total"].as_u64() >= Some(1), "{stats}");
    user.works(&["unmount", "mnt"]);
    assert!(user.nothing_left());
}

/// Returns what the server counts.
fn counts(server: &Server) -> serde_json::Value {
    let answer = server.ask("GET", "/_kvfs/stats", "");
    let body = answer.split("\r\n\r\n").nth(1).unwrap_or_default();
    let stats: serde_json::Value = serde_json::from_str(body).expect("JSON");
    stats["counts"].clone()
}

/// Requests that a server finds when it goes on are carried out, though nobody waits for them any
/// more. Those that replace a version name it, so that an older one never replaces a newer one.
#[test]
fn a_server_that_stood_still_puts_no_older_bytes_over_newer_ones() {
    let user = User::new();
    fs::create_dir(user.path("storage")).expect("a folder");
    let server = Server::start(&user, 0);
    let stores = "/v2/key-value-stores";
    server.ask("POST", &format!("{stores}?name=out"), "");
    let record = format!("{stores}/local~out/records/r");
    server.ask("PUT", &record, "the first");
    let mounted = user
        .command(&["mount", "--rw", "~out", "mnt", "--timeout", "300ms"])
        .args(["--deadline", "1s"])
        .env("APIFY_TOKEN", TOKEN)
        .env(
            "APIFY_CLIENT_BASE_URL",
            format!("http://127.0.0.1:{}", server.port),
        )
        .output()
        .expect("kvfs runs");
    assert!(mounted.status.success(), "{mounted:?}");
    let file = user.path("mnt/r");
    assert_eq!(fs::read_to_string(&file).expect("it"), "the first");
    let write = |text: &str| {
        let mut opened = fs::OpenOptions::new()
            .write(true)
            .truncate(true)
            .open(&file)?;
        opened.write_all(text.as_bytes())?;
        opened.sync_all()
    };
    let sent = || user.status()[0]["stats"]["requests_put"].as_u64();
    for round in 0..5 {
        let before = sent();
        server.pause();
        write(&format!("{round}: never acknowledged")).expect_err("nobody answers");
        assert!(sent() > before, "the test proves nothing");
        server.signal("-CONT");
        let newest = format!("{round}: the newest");
        soon(|| write(&newest).is_ok());
        soon(|| counts(&server)["in_flight"] == 0);
        let answer = server.ask("GET", &record, "");
        assert!(answer.ends_with(&newest), "{answer}");
        assert_eq!(fs::read_to_string(&file).expect("it"), newest);
    }
    user.works(&["unmount", "mnt"]);
    assert!(user.nothing_left());
    // Only the one that asks is left: nothing that was sent is still to be carried out.
    soon(|| counts(&server)["connections"] == 1);
    let answer = server.ask("GET", &record, "");
    assert!(answer.ends_with("4: the newest"), "{answer}");
}
