//! Servers and stores that fail: every failure is an errno and one line of explanation, none is
//! a hang, and no wrong byte is ever read.

use std::fs;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use kvfs::apify::http::HttpOptions;
use kvfs::clock::Deadline;
use kvfs::local::MemoryStore;
use kvfs::local::fault::{Call, Cut, FaultStore};
use kvfs::metrics::ErrorEntry;
use kvfs::server::Knobs;
use kvfs::store::{
    Encoding, ErrorKind, GetOutcome, GetRequest, Key, ListPage, ListQuery, PutRequest, RecordMeta,
    Store, StoreInfo, Upload,
};
use rustix::process::Signal;

use crate::support::mounted::{
    MountedSession, eventually, make_writable, pattern, quick_retries, scripted, scripted_keys,
    scripted_path, text,
};
use crate::support::scripted::{Answer, ScriptedServer, Seen};
use crate::support::served::{TestServer, encode, soon};

fn impatient() -> HttpOptions {
    HttpOptions {
        attempt_timeout: Duration::from_millis(300),
        ..quick_retries()
    }
}

/// Mounts a scripted server that lists one key `k` and answers as told for the rest.
fn mounted(
    options: HttpOptions,
    answer: impl Fn(&Seen) -> Answer + Send + Sync + 'static,
) -> (ScriptedServer, MountedSession) {
    let server = scripted(move |seen, _| {
        if seen.path().ends_with("/keys") {
            scripted_keys(&[("k", 10)])
        } else {
            answer(seen)
        }
    });
    let mount = MountedSession::scripted(&server, options, |config| {
        config.deadline = Duration::from_secs(3);
    });
    (server, mount)
}

/// Reads `k` and returns the errno; the error has left exactly one entry, which is returned too.
#[track_caller]
fn failure(mount: &MountedSession) -> (i32, ErrorEntry) {
    let start = Instant::now();
    let error = match fs::read(mount.file("k")) {
        Err(error) => error,
        Ok(bytes) => panic!(
            "read {} bytes: {:?}",
            bytes.len(),
            &bytes[..bytes.len().min(50)]
        ),
    };
    assert!(
        start.elapsed() < Duration::from_secs(5),
        "it took {:?}",
        start.elapsed()
    );
    let errors = mount.counters().last_errors;
    assert_eq!(errors.len(), 1, "{errors:?}");
    let entry = errors[0].clone();
    assert_eq!(entry.count, 1, "{entry:?}");
    (error.raw_os_error().expect("an errno"), entry)
}

/// Checks that a record that is answered so fails as expected, and that the mount goes on.
#[track_caller]
fn fails_with(
    errno: i32,
    words: &[&str],
    answer: impl Fn(&Seen) -> Answer + Send + Sync + 'static,
) {
    let (_server, mount) = mounted(quick_retries(), answer);
    let (actual, entry) = failure(&mount);
    assert_eq!(actual, errno, "{entry:?}");
    for word in words {
        assert!(
            entry.message.contains(word)
                || entry.hint.as_ref().is_some_and(|hint| hint.contains(word)),
            "{word} is not in {entry:?}"
        );
    }
    assert_eq!(entry.key.as_deref(), Some("k"));
    assert_eq!(mount.works("ls"), "k");
}

#[test]
fn a_body_shorter_than_its_length_is_an_error() {
    fails_with(libc::EIO, &[], |_| Answer::new(200, "hello").claim_len(10));
}

#[test]
fn a_large_body_shorter_than_its_length_is_an_error_and_never_padded() {
    let content = pattern(3 << 20);
    let sent = content.clone();
    let (_server, mount) = mounted(quick_retries(), move |_| {
        Answer::new(200, sent.clone()).cut_after(2 << 20)
    });
    let file = fs::File::open(mount.file("k")).expect("an open: the head has come");
    let mut read = Vec::new();
    let error = (&file).read_to_end(&mut read).expect_err("a short body");
    assert!(
        matches!(error.raw_os_error(), Some(libc::EIO | libc::ESTALE)),
        "{error}"
    );
    assert!(content.starts_with(&read), "wrong bytes");
    assert!(!mount.counters().last_errors.is_empty());
}

#[test]
fn bytes_that_do_not_decode_are_an_error() {
    for encoding in ["gzip", "br", "deflate"] {
        fails_with(libc::EIO, &[encoding], move |_| {
            Answer::new(200, "this is not compressed at all").header("content-encoding", encoding)
        });
    }
    let mut broken = encode(&Encoding::Gzip, &text(100_000));
    let at = broken.len() - 6;
    broken[at] ^= 1;
    let cut = broken[..at].to_vec();
    fails_with(libc::EIO, &[], move |_| {
        Answer::new(200, broken.clone()).header("content-encoding", "gzip")
    });
    fails_with(libc::EIO, &[], move |_| {
        Answer::new(200, cut.clone()).header("content-encoding", "gzip")
    });
}

#[test]
fn a_large_record_that_does_not_decode_is_an_error_before_it_can_be_read() {
    let mut broken = encode(&Encoding::Gzip, &text(4 << 20));
    let at = broken.len() - 6;
    broken[at] ^= 1;
    fails_with(libc::EIO, &[], move |_| {
        Answer::new(200, broken.clone()).header("content-encoding", "gzip")
    });
}

#[test]
fn an_error_page_is_not_a_record() {
    fails_with(libc::EIO, &["502"], |_| {
        Answer::new(502, "<html><h1>Bad Gateway</h1></html>").header("content-type", "text/html")
    });
    fails_with(libc::EACCES, &[], |_| {
        Answer::error(403, "insufficient-permissions", "You may not read this")
    });
    fails_with(libc::EACCES, &["token"], |_| {
        Answer::error(401, "user-or-token-not-found", "No such token")
    });
    fails_with(libc::ENOENT, &["store"], |_| {
        Answer::error(404, "record-not-found", "Key-value Store was not found")
    });
    fails_with(libc::EDQUOT, &[], |_| {
        Answer::error(402, "not-enough-usage", "Pay first")
    });
    fails_with(libc::EIO, &[], |_| Answer::raw("SSH-2.0-OpenSSH_9.2\r\n"));
}

#[test]
fn redirects_without_end_are_an_error() {
    fails_with(libc::EIO, &["redirect"], |seen| {
        Answer::new(302, "").header("location", &format!("{}&again=1", seen.target))
    });
}

#[test]
fn a_redirect_to_another_host_is_followed_without_the_token() {
    let other = ScriptedServer::start(|_, _| Answer::new(200, "elsewhere").chunked());
    // Another name for this machine is another host.
    let there =
        other.url().replace("127.0.0.1", "localhost") + "bucket/object?X-Amz-Signature=s3cret";
    let (server, mount) = mounted(quick_retries(), move |_| {
        Answer::new(302, "").header("location", &there)
    });
    assert_eq!(fs::read(mount.file("k")).expect("bytes"), b"elsewhere");
    assert!(
        server
            .seen()
            .iter()
            .all(|seen| seen.header("authorization").is_some())
    );
    let seen = other.seen();
    assert_eq!(seen.len(), 1);
    assert_eq!(seen[0].header("authorization"), None, "{:?}", seen[0]);
    assert!(!format!("{:?}", seen[0]).contains(crate::support::served::TOKEN));
    assert!(!mount.works("getfattr -d . k").contains("s3cret"));
}

#[test]
fn too_many_requests_are_waited_for_as_the_server_asks() {
    let asked = std::sync::atomic::AtomicUsize::new(0);
    let (server, mount) = mounted(quick_retries(), move |_| {
        if asked.fetch_add(1, Ordering::SeqCst) == 0 {
            Answer::error(429, "rate-limit-exceeded", "Slow down").header("retry-after", "1")
        } else {
            Answer::new(200, "hello")
        }
    });
    let start = Instant::now();
    assert_eq!(fs::read(mount.file("k")).expect("bytes"), b"hello");
    assert!(start.elapsed() >= Duration::from_secs(1));
    assert_eq!(server.seen().len(), 3);
    assert_eq!(mount.counters().responses_rate_limited, 1);
    assert!(mount.counters().last_errors.is_empty());
}

#[test]
fn a_server_that_refuses_for_too_long_is_an_error_that_says_so() {
    fails_with(libc::EIO, &["429"], |_| {
        Answer::error(429, "rate-limit-exceeded", "Slow down")
    });
}

#[test]
fn silence_is_an_error_within_the_deadline_and_stops_nobody_else() {
    let (_server, mount) = mounted(impatient(), |seen| {
        if seen.path() == scripted_path("good") {
            Answer::new(200, "hello")
        } else {
            Answer::silence()
        }
    });
    assert_eq!(mount.works("cat good; ls"), "hellok");
    let start = Instant::now();
    let mut reader = mount.start_sh("exec cat k");
    eventually("the reader is blocked", || {
        start.elapsed() > Duration::from_millis(100)
    });
    assert!(reader.is_running());
    // What is known is answered meanwhile, and at once.
    let other = mount.sh("ls; ls -l >/dev/null; cat good; stat good");
    assert!(other.status.success(), "{other:?}");
    let output = reader.wait(Duration::from_secs(6));
    assert!(
        output.stderr.contains("timed out") || output.stderr.contains("Input/output error"),
        "{output:?}"
    );
    assert!(output.stdout.is_empty());
    let errors = mount.counters().last_errors;
    assert_eq!(errors.len(), 1, "{errors:?}");
}

#[test]
fn silence_in_the_middle_of_a_body_is_an_error() {
    let content = pattern(3 << 20);
    let sent = content.clone();
    let (_server, mount) = mounted(impatient(), move |_| {
        Answer::new(200, sent.clone()).stall_after(2 << 20)
    });
    let start = Instant::now();
    let output = mount.sh("cat k");
    assert!(!output.status.success());
    assert!(content.starts_with(&output.stdout), "wrong bytes");
    assert!(start.elapsed() < Duration::from_secs(8));
    assert_eq!(mount.works("ls"), "k");
}

/// Answers with a body that breaks at 2 MiB and, for the rest, as told.
fn breaking(
    content: Vec<u8>,
    rest: impl Fn(&Seen, u64) -> Answer + Send + Sync + 'static,
) -> (ScriptedServer, MountedSession) {
    mounted(quick_retries(), move |seen| {
        let from = seen.header("range").and_then(|range| {
            range
                .strip_prefix("bytes=")?
                .split('-')
                .next()?
                .parse()
                .ok()
        });
        match from {
            None | Some(0) => Answer::new(200, content.clone())
                .header("etag", "\"one\"")
                .header("accept-ranges", "bytes")
                .cut_after(2 << 20),
            Some(from) => rest(seen, from),
        }
    })
}

#[test]
fn a_broken_body_is_resumed_where_it_broke() {
    let content = pattern(3 << 20);
    let whole = content.clone();
    let (server, mount) = breaking(content.clone(), move |_, from| {
        let rest = &whole[from as usize..];
        Answer::new(206, rest).header("etag", "\"one\"").header(
            "content-range",
            &format!("bytes {from}-{}/{}", whole.len() - 1, whole.len()),
        )
    });
    assert!(fs::read(mount.file("k")).expect("bytes") == content);
    let resumed = server
        .seen()
        .into_iter()
        .find(|seen| seen.header("range").is_some());
    let resumed = resumed.expect("a resumption");
    assert!(
        resumed.header("if-match").is_some() || resumed.header("if-range").is_some(),
        "{resumed:?}"
    );
    assert!(mount.counters().last_errors.is_empty());
}

#[test]
fn a_body_that_broke_and_then_changed_is_an_error_never_a_mixture() {
    let content = pattern(3 << 20);
    let other = text(3 << 20);
    for honours_condition in [true, false] {
        let other = other.clone();
        let (_server, mount) = breaking(content.clone(), move |_, from| {
            if honours_condition {
                return Answer::new(412, "");
            }
            Answer::new(206, &other[from as usize..])
                .header("etag", "\"two\"")
                .header(
                    "content-range",
                    &format!("bytes {from}-{}/{}", other.len() - 1, other.len()),
                )
        });
        let output = mount.sh("cat k");
        assert!(!output.status.success());
        assert!(
            output.stderr.contains("Stale file handle"),
            "{}",
            output.stderr
        );
        assert!(content.starts_with(&output.stdout), "a mixture of versions");
        let errors = mount.counters().last_errors;
        assert!(
            errors.iter().any(|entry| entry.errno == "ESTALE"),
            "{errors:?}"
        );
    }
}

/// Lists a store whose listing is answered so.
fn listing(
    answer: impl Fn(&Seen) -> Answer + Send + Sync + 'static,
) -> (ScriptedServer, MountedSession) {
    let server = scripted(move |seen, _| {
        if seen.path().ends_with("/keys") {
            answer(seen)
        } else {
            Answer::new(200, "hello")
        }
    });
    let mount = MountedSession::scripted(&server, quick_retries(), |config| {
        config.deadline = Duration::from_secs(3);
    });
    (server, mount)
}

#[test]
fn a_listing_that_is_none_is_an_error_and_records_can_still_be_read() {
    for answer in [
        Answer::new(200, "]garbage["),
        Answer::new(200, "<html></html>").header("content-type", "text/html"),
        Answer::new(200, r#"{"data": {"items": 7}}"#),
        Answer::new(200, r#"{"data": {"items": [{"size": 1}]}}"#),
        Answer::error(500, "internal-error", "Oops"),
    ] {
        let (_server, mount) = listing(move |_| answer.clone());
        let complaint = mount.fails("ls");
        assert!(complaint.contains("Input/output error"), "{complaint}");
        let errors = mount.counters().last_errors;
        assert_eq!(errors.len(), 1, "{errors:?}");
        assert_eq!(mount.works("cat k"), "hello");
    }
}

#[test]
fn a_listing_that_never_ends_or_turns_back_is_an_error() {
    let page = |keys: &[&str], next: &str| {
        let items: Vec<_> = keys
            .iter()
            .map(|key| serde_json::json!({"key": key, "size": 5}))
            .collect();
        Answer::new(
            200,
            serde_json::json!({"data": {"items": items, "isTruncated": true, "nextExclusiveStartKey": next}})
                .to_string(),
        )
    };
    for answer in [
        page(&["a", "b"], "b"),
        page(&["b", "a"], "b"),
        page(&[], "a"),
    ] {
        let (server, mount) = listing(move |_| answer.clone());
        let output = mount.sh("ls");
        assert!(!output.status.success(), "{output:?}");
        assert!(output.took < Duration::from_secs(5));
        assert!(server.seen().len() < 20, "{} requests", server.seen().len());
        assert!(!mount.counters().last_errors.is_empty());
        assert_eq!(mount.works("cat k"), "hello");
    }
}

/// A store in memory that fails as told, with a TTL so long that nothing is asked twice.
fn faulty(change: impl FnOnce(&MemoryStore)) -> (FaultStore, MountedSession) {
    let memory = MemoryStore::new();
    for (name, content) in [("a", "first"), ("b", "second"), ("c", "third")] {
        memory.insert(name, "text/plain", Encoding::Identity, content);
    }
    memory.insert("large", "text/plain", Encoding::Identity, pattern(8 << 20));
    change(&memory);
    let store = FaultStore::new(Arc::new(memory));
    let mount = MountedSession::with(Arc::new(store.clone()), |config| {
        config.deadline = Duration::from_secs(30);
    });
    (store, mount)
}

/// Where the store leaves a program waiting.
enum Gate {
    /// In the call.
    Get,
    /// In the body, before this byte.
    Body(u64),
}

#[track_caller]
fn is_ended(signal: Signal, gate: Gate, command: &str) {
    let (store, mount) = faulty(|_| {});
    mount.works("cat a");
    match gate {
        Gate::Get => store.block(Call::Get),
        Gate::Body(at) => store.block_bodies(at),
    }
    let mut reader = mount.start_sh(command);
    assert!(
        match gate {
            Gate::Get => store.wait_blocked(Call::Get, 1, soon()),
            Gate::Body(_) => store.wait_bodies_blocked(1, soon()),
        },
        "nothing waits"
    );
    // Long enough for the kernel to be where it waits.
    std::thread::sleep(Duration::from_millis(100));
    assert!(reader.is_running());
    let start = Instant::now();
    reader.signal(signal);
    let output = reader.wait(Duration::from_secs(20));
    let took = start.elapsed();
    assert!(took < Duration::from_millis(1500), "{signal:?}: {took:?}");
    assert_eq!(output.signal(), Some(signal.as_raw()), "{output:?}");
    assert!(output.stdout.is_empty());
    // The others go on, before and after the store does.
    assert_eq!(mount.works("cat a"), "first");
    eventually("its file is closed", || mount.counters().open_files == 0);
    store.release(Call::Get);
    store.release_bodies();
    assert_eq!(mount.works("cat b"), "second");
    // What was opened for a program that did not wait for it is closed again.
    eventually("all files are closed", || mount.counters().open_files == 0);
    assert_eq!(mount.counters().panics_total, 0);
    mount.unmount();
}

#[test]
fn ctrl_c_ends_a_program_blocked_in_a_lookup() {
    is_ended(Signal::INT, Gate::Get, "exec cat b");
}

#[test]
fn a_kill_ends_a_program_blocked_in_a_lookup() {
    is_ended(Signal::KILL, Gate::Get, "exec cat b");
}

#[test]
fn ctrl_c_ends_a_program_blocked_in_an_open() {
    is_ended(Signal::INT, Gate::Get, "ls -l >/dev/null; exec cat b");
}

#[test]
fn a_kill_ends_a_program_blocked_in_an_open() {
    is_ended(Signal::KILL, Gate::Get, "ls -l >/dev/null; exec cat b");
}

#[test]
fn ctrl_c_ends_a_program_blocked_in_a_read() {
    // Lookup and open are content with the headers of a large record.
    is_ended(Signal::INT, Gate::Body(0), "exec cat large");
    is_ended(
        Signal::INT,
        Gate::Body(2 << 20),
        "exec dd bs=1M skip=3 count=1 if=large",
    );
}

#[test]
fn a_kill_ends_a_program_blocked_in_a_read() {
    is_ended(Signal::KILL, Gate::Body(0), "exec cat large");
    is_ended(
        Signal::KILL,
        Gate::Body(2 << 20),
        "exec dd bs=1M skip=3 count=1 if=large",
    );
}

#[test]
fn ctrl_c_ends_a_program_that_handles_it_while_blocked_in_a_read() {
    let (store, mount) = faulty(|_| {});
    mount.works("ls -l");
    store.block_bodies(0);
    let program = mount.beside().join("reader.py");
    fs::write(
        &program,
        "import os\nfd = os.open('large', os.O_RDONLY)\ntry: os.read(fd, 100)\nexcept KeyboardInterrupt: print('interrupted')\n",
    )
    .expect("a program");
    let reader = mount.start_sh(&format!("exec $PYTHON {}", program.display()));
    assert!(store.wait_bodies_blocked(1, soon()));
    std::thread::sleep(Duration::from_millis(150));
    let start = Instant::now();
    reader.signal(Signal::INT);
    let output = reader.wait(Duration::from_secs(20));
    assert!(start.elapsed() < Duration::from_secs(5)); // the deadline is far later
    assert_eq!(output.text(), "interrupted", "{output:?}");
    store.release_bodies();
}

#[test]
fn ctrl_c_ends_a_listing_that_waits() {
    let (store, mount) = faulty(|_| {});
    store.block(Call::List);
    let reader = mount.start_sh("exec ls");
    assert!(store.wait_blocked(Call::List, 1, soon()));
    std::thread::sleep(Duration::from_millis(150));
    let start = Instant::now();
    reader.signal(Signal::INT);
    let output = reader.wait(Duration::from_secs(20));
    assert!(start.elapsed() < Duration::from_secs(5)); // the deadline is far later
    assert_eq!(output.signal(), Some(2));
    store.release(Call::List);
    assert_eq!(mount.works("ls"), "a\nb\nc\nlarge");
}

#[test]
fn a_hundred_blocked_readers_stop_nobody_else() {
    let memory = MemoryStore::new();
    for n in 0..130 {
        memory.insert(
            &format!("r{n:03}"),
            "text/plain",
            Encoding::Identity,
            "hello",
        );
    }
    let store = FaultStore::new(Arc::new(memory));
    let mount = MountedSession::with(Arc::new(store.clone()), |config| {
        config.deadline = Duration::from_secs(30);
    });
    mount.works("ls -l; cat r129");
    store.block(Call::Get);
    let mut readers = mount.start_sh("for n in $(seq 100 199); do cat r0${n#1} & done; wait");
    assert!(store.wait_blocked(Call::Get, 90, soon()), "no readers");
    std::thread::sleep(Duration::from_millis(200));
    let output = mount.sh("ls | wc -l; ls -l | wc -l; cat r129; stat r050 >/dev/null; df . >/dev/null; getfattr -d r129 >/dev/null; ! cat 'a b' 2>/dev/null");
    assert!(output.status.success(), "{output:?}");
    assert!(output.took < Duration::from_secs(2), "{:?}", output.took);
    assert!(readers.is_running());
    store.release(Call::Get);
    let output = readers.wait(Duration::from_secs(20));
    assert_eq!(output.text(), "hello".repeat(100));
}

#[test]
fn a_silent_end_of_a_body_is_an_error() {
    let (store, mount) = faulty(|_| {});
    store.cut_next(1, 2, Cut::Silent);
    let error = fs::read(mount.file("b")).expect_err("a short body");
    assert_eq!(error.raw_os_error(), Some(libc::EIO));
    assert_eq!(mount.counters().last_errors.len(), 1);
    assert_eq!(mount.works("cat b"), "second");
}

#[test]
fn kinds_of_failures_have_their_errnos_and_are_not_remembered() {
    let (store, mount) = faulty(|_| {});
    for (kind, errno) in [
        (ErrorKind::Denied, libc::EACCES),
        (ErrorKind::SignatureExpired, libc::EACCES),
        (ErrorKind::Quota, libc::EDQUOT),
        (ErrorKind::RateLimited, libc::EIO),
        (ErrorKind::Timeout, libc::ETIMEDOUT),
        (ErrorKind::Network, libc::EIO),
        (ErrorKind::Server, libc::EIO),
        (ErrorKind::StoreNotFound, libc::ENOENT),
    ] {
        store.fail_next(Call::Get, 1, kind);
        let error = fs::read(mount.file("c")).expect_err("an injected failure");
        assert_eq!(error.raw_os_error(), Some(errno), "{kind:?}");
        let last = mount.counters().last_errors.pop().expect("an entry");
        assert!(last.message.contains(&format!("{kind:?}")), "{last:?}");
        assert_eq!(last.key.as_deref(), Some("c"));
    }
    assert_eq!(mount.works("cat c"), "third");
}

#[test]
fn a_listing_that_fails_once_is_asked_for_again() {
    let (store, mount) = faulty(|_| {});
    store.fail_next(Call::List, 1, ErrorKind::Server);
    let complaint = mount.fails("ls");
    assert!(complaint.contains("Input/output error"), "{complaint}");
    assert_eq!(mount.works("ls"), "a\nb\nc\nlarge");
}

/// A store whose calls panic while it is told so.
#[derive(Debug)]
struct Panicking {
    inner: MemoryStore,
    panics: AtomicBool,
    puts_panic: AtomicBool,
}

impl Panicking {
    fn perhaps(&self) {
        assert!(!self.panics.load(Ordering::SeqCst), "expected by this test");
    }
}

impl Store for Panicking {
    fn info(&self) -> StoreInfo {
        self.inner.info()
    }

    fn list_page(&self, query: &ListQuery, deadline: Deadline) -> kvfs::store::Result<ListPage> {
        self.perhaps();
        self.inner.list_page(query, deadline)
    }

    fn head(&self, key: &Key, deadline: Deadline) -> kvfs::store::Result<RecordMeta> {
        self.perhaps();
        self.inner.head(key, deadline)
    }

    fn get(
        &self,
        key: &Key,
        request: &GetRequest,
        deadline: Deadline,
    ) -> kvfs::store::Result<GetOutcome> {
        self.perhaps();
        self.inner.get(key, request, deadline)
    }

    fn put(
        &self,
        key: &Key,
        request: &PutRequest,
        body: Upload<'_>,
        deadline: Deadline,
    ) -> kvfs::store::Result<RecordMeta> {
        assert!(
            !self.puts_panic.load(Ordering::SeqCst),
            "expected by this test"
        );
        self.inner.put(key, request, body, deadline)
    }

    fn delete(&self, key: &Key, deadline: Deadline) -> kvfs::store::Result<()> {
        self.inner.delete(key, deadline)
    }
}

#[test]
fn a_panic_costs_its_request_an_error_and_nothing_else() {
    let inner = MemoryStore::new();
    for name in ["a", "b"] {
        inner.insert(name, "text/plain", Encoding::Identity, name);
    }
    let store = Arc::new(Panicking {
        inner,
        panics: AtomicBool::new(false),
        puts_panic: AtomicBool::new(false),
    });
    let mount = MountedSession::of(store.clone());
    assert_eq!(mount.works("cat a"), "a");
    let open = fs::File::open(mount.file("a")).expect("a file");
    store.panics.store(true, Ordering::SeqCst);
    for script in ["cat b", "ls", "stat b"] {
        let complaint = mount.fails(script);
        assert!(
            complaint.contains("Input/output error"),
            "{script}: {complaint}"
        );
    }
    let mut byte = [0];
    open.read_exact_at(&mut byte, 0).expect("what is cached");
    assert_eq!(mount.works("cat a"), "a");
    assert!(mount.counters().panics_total >= 3);
    store.panics.store(false, Ordering::SeqCst);
    assert_eq!(mount.works("ls; cat b"), "a\nb\nb");
    drop(open);
    mount.unmount();
}

/// A thread of its own stores what is held back; nobody waits for its answers.
#[test]
fn a_panic_while_something_is_stored_later_is_counted_and_the_next_thing_is_stored() {
    for write_back in [false, true] {
        let store = Arc::new(Panicking {
            inner: MemoryStore::new(),
            panics: AtomicBool::new(false),
            puts_panic: AtomicBool::new(true),
        });
        let mount = MountedSession::with(store.clone(), |config| {
            make_writable(config);
            if let Some(write) = &mut config.write {
                write.write_back = write_back;
                write.scratch_delay = Duration::from_millis(100);
            }
        });
        let panics = || mount.counters().panics_total;
        fs::write(mount.file("a.tmp"), "held back").expect("written");
        eventually("a panic", || panics() > 0);
        store.puts_panic.store(false, Ordering::SeqCst);
        fs::write(mount.file("b.tmp"), "held back").expect("written");
        eventually("it is stored", || store.inner.bytes("b.tmp").is_some());
    }
}

#[test]
fn a_server_that_is_gone_leaves_what_is_cached_and_comes_back() {
    let server = TestServer::start_with(|config| config.knobs = Knobs::default());
    server.put_text("a", "first");
    server.put_text("b", "second");
    let mount = MountedSession::served_with(&server, |config| {
        config.deadline = Duration::from_secs(2);
    });
    assert_eq!(mount.works("ls; cat a"), "a\nb\nfirst");
    drop(server);
    assert_eq!(mount.works("ls; cat a"), "a\nb\nfirst");
    let start = Instant::now();
    mount.fails("cat b");
    assert!(start.elapsed() < Duration::from_secs(10));
    let errors = mount.counters().last_errors;
    assert_eq!(errors.len(), 1, "{errors:?}");
}

#[test]
fn a_mount_can_be_ended_while_readers_wait() {
    let (store, mount) = faulty(|_| {});
    mount.works("ls");
    store.block(Call::Get);
    let reader = mount.start_sh("exec cat b");
    assert!(store.wait_blocked(Call::Get, 1, soon()));
    rustix::mount::unmount(
        mount.path(),
        rustix::mount::UnmountFlags::FORCE | rustix::mount::UnmountFlags::DETACH,
    )
    .expect("an unmount by force");
    let output = reader.wait(Duration::from_secs(5));
    assert!(!output.status.success());
    store.release(Call::Get);
    mount.ended();
}

/// A walk over the directory has records fetched ahead, as many at a time as may be; the server
/// answers none of them. Who asks for another record is not behind them.
#[test]
fn a_queue_of_records_fetched_ahead_keeps_nobody_waiting() {
    let stalled = Arc::new(AtomicBool::new(false));
    let held = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let (gate, waiting) = (Arc::clone(&stalled), Arc::clone(&held));
    let names: Vec<String> = (0..200).map(|n| format!("r{n:03}")).collect();
    let listed = names.clone();
    let server = scripted(move |seen, _| {
        if seen.path().ends_with("/keys") {
            let keys: Vec<(&str, u64)> = listed.iter().map(|name| (name.as_str(), 5)).collect();
            return scripted_keys(&keys);
        }
        let is_ahead = (60..180).any(|n| seen.path() == scripted_path(&format!("r{n:03}")));
        if is_ahead && gate.load(Ordering::SeqCst) {
            waiting.fetch_add(1, Ordering::SeqCst);
            return Answer::silence();
        }
        Answer::new(200, "hello")
    });
    let mount =
        MountedSession::scripted(&server, HttpOptions::new(Duration::from_secs(30)), |_| {});
    mount.works("ls");
    stalled.store(true, Ordering::SeqCst);
    // The window grows to all that may be fetched at once.
    mount.works("for n in $(seq 0 59); do cat $(printf r%03d $n); done");
    eventually("many records are fetched ahead", || {
        held.load(Ordering::SeqCst) >= 40
    });
    let output = mount.sh("cat r190 r191; stat r192 > /dev/null; ls | wc -l");
    assert_eq!(output.text(), "hellohello200", "{output:?}");
    assert!(output.took < Duration::from_secs(5), "{:?}", output.took);
    // These wait still: they were no part of it.
    assert!(mount.counters().prefetched < 60 + 50);
}
