//! `kvfs serve` as a program: its memory, its end, what it logs, what it lets in.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use reqwest::blocking::Body;
use serde_json::Value;
use tempfile::TempDir;

use super::{bytes, client, data, send};
use crate::support::served::TOKEN;

/// A running `kvfs serve`.
pub(super) struct Served {
    child: Child,
    pub(super) url: String,
    err: BufReader<ChildStderr>,
    folder: Arc<TempDir>,
}

impl Served {
    pub(super) fn start(arguments: &[&str]) -> Self {
        Self::over(&Arc::new(tempfile::tempdir().expect("a folder")), arguments)
    }

    /// Serves `storage` in a folder.
    pub(super) fn over(folder: &Arc<TempDir>, arguments: &[&str]) -> Self {
        Self::with(folder, &[("KVFS_SERVE_TOKEN", TOKEN)], arguments)
    }

    /// Starts one that may use so many bytes of addresses.
    pub(super) fn within(addresses: u64, arguments: &[&str]) -> Self {
        let mut limited = Command::new("sh");
        let limit = format!("ulimit -v {}; exec \"$0\" \"$@\"", addresses >> 10);
        limited.args(["-c", &limit, env!("CARGO_BIN_EXE_kvfs")]);
        let folder = Arc::new(tempfile::tempdir().expect("a folder"));
        Self::run(limited, &folder, &[("KVFS_SERVE_TOKEN", TOKEN)], arguments)
    }

    fn with(folder: &Arc<TempDir>, variables: &[(&str, &str)], arguments: &[&str]) -> Self {
        let program = Command::new(env!("CARGO_BIN_EXE_kvfs"));
        Self::run(program, folder, variables, arguments)
    }

    fn run(
        mut program: Command,
        folder: &Arc<TempDir>,
        variables: &[(&str, &str)],
        arguments: &[&str],
    ) -> Self {
        std::fs::write(folder.path().join("other-token"), "T2").expect("a file");
        std::fs::write(
            folder.path().join("runs"),
            "# a comment\nrun2=by-run,task=my-task\n",
        )
        .expect("a file");
        let mut child = program
            .args(["serve", "--listen", "127.0.0.1:0", "storage"])
            .args(arguments)
            .env_clear()
            .env("HOME", folder.path())
            .envs(variables.iter().copied())
            .current_dir(folder.path())
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("kvfs runs");
        let mut err = BufReader::new(child.stderr.take().expect("a pipe"));
        let mut line = String::new();
        err.read_line(&mut line).expect("a line");
        let url = line.rsplit(" at ").next().unwrap_or_default().trim();
        assert!(url.starts_with("http://127.0.0.1:"), "{line}");
        Self {
            url: url.to_owned(),
            child,
            err,
            folder: folder.clone(),
        }
    }

    /// Returns what is said at the start after the first line.
    fn announced(&mut self) -> String {
        let mut said = String::new();
        while !said.contains("Ctrl-C stops it") {
            assert!(self.err.read_line(&mut said).expect("a line") > 0, "{said}");
        }
        said
    }

    /// Ends it as a loss of power would, as far as a program can tell.
    pub(super) fn kill(mut self) {
        self.child.kill().expect("a kill");
        self.child.wait().expect("an end");
    }

    /// Makes a store and returns its address.
    pub(super) fn store(&self, name: &str) -> String {
        let url = format!("{}/v2/key-value-stores?name={name}", self.url);
        let made = data(send(client().post(url).bearer_auth(TOKEN)));
        let id = made["id"].as_str().expect("an id").to_owned();
        format!("{}/v2/key-value-stores/{id}", self.url)
    }

    /// Returns the most memory that it has used, in KiB.
    pub(super) fn most_memory(&self) -> u64 {
        let status = format!("/proc/{}/status", self.child.id());
        let status = std::fs::read_to_string(status).expect("a status");
        let line = status.lines().find(|line| line.starts_with("VmHWM:"));
        let digits = line.expect("a line").split_whitespace().nth(1);
        digits.expect("a number").parse().expect("a number")
    }

    /// Returns the seconds that processors have worked for it.
    pub(super) fn processor_time(&self) -> f64 {
        let stat = format!("/proc/{}/stat", self.child.id());
        let stat = std::fs::read_to_string(stat).expect("what it did");
        // Fields 14 and 15 (proc(5)), behind a name that may hold anything but the last bracket.
        let fields = stat.rsplit(')').next().expect("fields").split_whitespace();
        let ticks: u64 = fields
            .skip(11)
            .take(2)
            .map(|ticks| ticks.parse::<u64>().expect("a number"))
            .sum();
        // USER_HZ is 100 on all machines that kvfs runs on.
        ticks as f64 / 100.0
    }

    fn signal(&self) {
        let pid = i32::try_from(self.child.id()).expect("a process id");
        let pid = rustix::process::Pid::from_raw(pid).expect("a process id");
        rustix::process::kill_process(pid, rustix::process::Signal::INT).expect("a signal");
    }

    pub(super) fn connection(&self) -> TcpStream {
        let address = self.url.trim_start_matches("http://");
        TcpStream::connect(address).expect("a connection")
    }

    /// Waits for the end; returns how it was and what was said after the first line.
    fn ended(mut self) -> (ExitStatus, String) {
        let mut said = String::new();
        self.err.read_to_string(&mut said).expect("text");
        (self.child.wait().expect("an end"), said)
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn wait_for(path: &Path) -> bool {
    let deadline = std::time::Instant::now() + Duration::from_secs(30);
    while std::time::Instant::now() < deadline {
        if path.exists() {
            return true;
        }
        std::thread::yield_now();
    }
    false
}

/// A body that is made while it is sent.
#[derive(Debug)]
struct Generated {
    left: u64,
}

impl Read for Generated {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let n = buffer
            .len()
            .min(usize::try_from(self.left).unwrap_or(usize::MAX));
        buffer[..n].fill(b'x');
        self.left -= n as u64;
        Ok(n)
    }
}

#[test]
fn large_records_flow_through_in_bounded_memory() {
    const SIZE: u64 = 256 << 20;
    let served = Served::start(&[]);
    let store = served.store("big");
    let record = format!("{store}/records/big");
    let before = served.most_memory();
    for chunked in [false, true] {
        let body = Generated { left: SIZE };
        let body = if chunked {
            Body::new(body)
        } else {
            Body::sized(body, SIZE)
        };
        let put = client().put(&record).bearer_auth(TOKEN).body(body);
        assert_eq!(send(put).status(), 201);
    }
    for url in [record, format!("{store}/records")] {
        let mut response = send(client().get(url).bearer_auth(TOKEN));
        std::io::copy(&mut response, &mut std::io::sink()).expect("a body");
    }
    let grown = served.most_memory().saturating_sub(before);
    assert!(grown < 24 << 10, "memory grew by {grown} KiB");
}

#[test]
fn an_upload_under_way_is_finished_before_the_end() {
    let served = Served::start(&[]);
    let store = served.store("s");
    let path = store.trim_start_matches(&served.url).to_owned();
    let mut upload = served.connection();
    let head = format!(
        "PUT {path}/records/late HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer {TOKEN}\r\n\
         Content-Length: 8\r\n\r\nhalf"
    );
    upload.write_all(head.as_bytes()).expect("a request");
    // Under way once its unfinished file is there.
    let stats = format!("{}/_kvfs/stats", served.url);
    loop {
        let answer = send(client().get(&stats).bearer_auth(TOKEN));
        let stats: Value = serde_json::from_slice(&bytes(answer)).expect("JSON");
        if stats["counts"]["in_flight"] == 1 && stats["counts"]["bytes_received"] == 4 {
            break;
        }
    }
    served.signal();
    // The end has begun when nobody is let in any more.
    let address = served.url.trim_start_matches("http://").to_owned();
    while TcpStream::connect(&address).is_ok() {}
    upload.write_all(b"half").expect("the rest");
    let mut answer = String::new();
    upload.read_to_string(&mut answer).expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 201"), "{answer}");
    let stored = served.folder.path().join("storage/key_value_stores/s/late");
    assert!(wait_for(&stored));
    let text = std::fs::read_to_string(stored).expect("the record");
    assert_eq!(text, "halfhalf");
    let (status, said) = served.ended();
    assert!(
        status.success() && said.contains("finishing 1 requests"),
        "{said}"
    );
}

#[test]
fn requests_are_logged_one_a_line_without_secrets() {
    let served = Served::start(&["-v"]);
    let store = served.store("s");
    let url = format!("{store}/records/k?token={TOKEN}&signature=c0ffee");
    send(client().put(&url).body("hello"));
    assert_eq!(send(client().get(&url)).text().expect("text"), "hello");
    served.signal();
    let (status, said) = served.ended();
    assert!(status.success(), "{said}");
    assert!(!said.contains(TOKEN) && !said.contains("c0ffee"), "{said}");
    let lines: Vec<&str> = said
        .lines()
        .filter(|line| line.contains("/records/k"))
        .collect();
    assert_eq!(lines.len(), 2, "{said}");
    assert!(lines[0].contains("PUT /v2/key-value-stores/"), "{said}");
    assert!(
        lines[1].contains("?token=redacted&signature=redacted 200 5 B"),
        "{said}"
    );
}

#[test]
fn runs_and_accounts_are_those_of_the_command_line() {
    let served = Served::start(&[
        "--run",
        "run1=by-run,actor=my-actor,status=failed",
        "--runs-file",
        "runs",
        "--user",
        "other:other-token",
        "--public-url",
        "https://kvfs.example/api",
    ]);
    let get = |path: &str, token: &str| {
        let url = format!("{}{path}", served.url);
        send(client().get(url).bearer_auth(token))
    };
    let store = served.store("by-run");
    for path in [
        "/v2/actor-runs/run1/key-value-store",
        "/v2/actor-runs/RUN2/key-value-store",
        "/v2/actors/local~my-actor/runs/last/key-value-store?status=FAILED",
        "/v2/actor-tasks/~my-task/runs/last/key-value-store",
    ] {
        let found = data(get(path, TOKEN));
        assert!(
            store.ends_with(found["id"].as_str().expect("an id")),
            "{path}"
        );
        let link = found["consoleUrl"].as_str().expect("a URL");
        assert!(link.starts_with("https://kvfs.example/api/v2/"), "{link}");
    }
    assert_eq!(data(get("/v2/users/me", "T2"))["username"], "other");
    assert_eq!(
        get(store.trim_start_matches(&served.url), "T2").status(),
        403
    );
}

#[test]
fn clients_that_ask_for_too_much_are_refused() {
    let served = Served::start(&[
        "--max-record",
        "10",
        "--idle-timeout",
        "100ms",
        "--read-only",
    ]);
    let refused = send(
        client()
            .post(format!("{}/v2/key-value-stores?name=x", served.url))
            .bearer_auth(TOKEN),
    );
    assert_eq!(refused.status(), 403);
    // Who says nothing is hung up on.
    let mut silent = served.connection();
    let mut nothing = Vec::new();
    silent.read_to_end(&mut nothing).expect("the end");
    assert!(nothing.is_empty(), "{nothing:?}");
    // So is who says too much.
    let mut loud = served.connection();
    let head = format!(
        "GET /v2/users/me HTTP/1.1\r\nX: {}\r\n\r\n",
        "x".repeat(100_000)
    );
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        // The server may hang up in the middle.
        let _ = loud.write_all(head.as_bytes());
        let mut answer = Vec::new();
        let _ = loud.read_to_end(&mut answer);
        sender.send(String::from_utf8_lossy(&answer).into_owned())
    });
    let answer = receiver
        .recv_timeout(Duration::from_secs(30))
        .expect("an end");
    assert!(
        answer.is_empty() || answer.starts_with("HTTP/1.1 431"),
        "{answer}"
    );
}

#[test]
fn no_more_clients_than_allowed_are_let_in_at_once() {
    let served = Served::start(&["--max-connections", "1"]);
    let request = b"GET /v2/nowhere HTTP/1.1\r\nHost: h\r\n\r\n";
    let answer = |connection: &mut TcpStream| {
        let mut begin = [0; 12];
        connection.read_exact(&mut begin).map(|()| begin)
    };
    let mut first = served.connection();
    first.write_all(request).expect("a request");
    assert_eq!(&answer(&mut first).expect("an answer"), b"HTTP/1.1 404");
    let mut second = served.connection();
    second.write_all(request).expect("a request");
    second
        .set_read_timeout(Some(Duration::from_millis(200)))
        .expect("a timeout");
    let waits = answer(&mut second).expect_err("no answer yet");
    assert_eq!(waits.kind(), std::io::ErrorKind::WouldBlock, "{waits}");
    drop(first);
    second.set_read_timeout(None).expect("no timeout");
    assert_eq!(&answer(&mut second).expect("an answer"), b"HTTP/1.1 404");
}

#[test]
fn a_made_up_token_is_told_at_the_start_and_let_in() {
    let folder = Arc::new(tempfile::tempdir().expect("a folder"));
    let token = || {
        let mut served = Served::with(&folder, &[], &["-v"]);
        let said = served.announced();
        let at = said.find("kvfs_").expect("a token");
        let token = said[at..].split_whitespace().next().expect("a token");
        let me = |token: &str| {
            let me = client().get(format!("{}/v2/users/me", served.url));
            send(me.bearer_auth(token)).status().as_u16()
        };
        assert_eq!((me(token), me("kvfs_x"), me("")), (200, 401, 401));
        served.signal();
        let (_, after) = served.ended();
        assert!(!after.contains(token), "{after}");
        token.to_owned()
    };
    assert_ne!(token(), token());
}

#[test]
fn the_store_that_is_shown_for_mounting_is_there() {
    let shown = |folder: &Arc<TempDir>, arguments: &[&str]| {
        let mut served = Served::over(folder, arguments);
        let said = served.announced();
        let line = said.lines().find(|line| line.contains("kvfs mount"));
        let mut words = line.expect("an example").split_whitespace().rev();
        let store = words.nth(1).expect("a store");
        // Quoted, for shells that know users by `~`.
        let store = store.trim_matches('\'').to_owned();
        let url = format!("{}/v2/key-value-stores/{store}", served.url);
        let found = send(client().get(url).bearer_auth(TOKEN)).status();
        (store, found.as_u16())
    };
    let folder = || Arc::new(tempfile::tempdir().expect("a folder"));
    let empty = folder();
    let none = shown(&empty, &["--read-only"]);
    assert_eq!(none, ("~STORE".to_owned(), 404));
    let made = ("~default".to_owned(), 200);
    assert_eq!(shown(&empty, &[]), made);
    assert_eq!(shown(&empty, &["--read-only"]), made);
    let used = folder();
    for name in ["results", "zoo"] {
        let store = used.path().join("storage/key_value_stores").join(name);
        std::fs::create_dir_all(store).expect("a store");
    }
    assert_eq!(shown(&used, &[]), ("~results".to_owned(), 200));
    let single = folder();
    std::fs::create_dir(single.path().join("storage")).expect("a folder");
    std::fs::write(single.path().join("storage/a.txt"), "a").expect("a record");
    assert_eq!(shown(&single, &[]), ("~storage".to_owned(), 200));
}

#[test]
fn rehearsals_are_asked_for_on_the_command_line() {
    let served = Served::start(&[
        "--fault",
        "status=503,method=PUT,key=k*,count=1",
        "--fault",
        "truncate=2,method=GET,key=k,count=1",
        "--latency",
        "1ms",
        "--bandwidth",
        "100MB",
        "--rate-limit",
        "1000",
    ]);
    let record = format!("{}/records/k", served.store("s"));
    let put = || send(client().put(&record).bearer_auth(TOKEN).body("value"));
    assert_eq!(
        [put().status(), put().status()].map(|status| status.as_u16()),
        [503, 201]
    );
    let get = || client().get(&record).bearer_auth(TOKEN).send();
    assert!(get().expect("an answer").bytes().is_err());
    let whole = get().expect("an answer");
    assert_eq!(whole.headers()["x-ratelimit-limit"], "1000");
    assert_eq!(whole.bytes().expect("a body"), "value");
}
