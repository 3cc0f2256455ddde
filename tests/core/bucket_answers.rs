//! What kvfs makes of a storage that refuses, is silent, asks for less or says something else, and
//! how often it asks one that answers well.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use kvfs::base::clock::Deadline;
use kvfs::bucket::{Bucket, Description, Use};
use kvfs::store::{ErrorKind, ListQuery, PutRequest, Store, Upload};
use serde_json::Value;

use super::server::{client, header, send};
use crate::support::fake_s3::{FakeS3, refusal};
use crate::support::mounted::Running;
use crate::support::scripted::{Answer, Seen};
use crate::support::served::{TOKEN, TestServer, key, soon};

/// Longer than any answer here takes, and shorter than what no deadline ends.
const PROMPTLY: Duration = Duration::from_secs(60);

/// Whether a request is for a record or a list of records.
fn is_of_records(seen: &Seen) -> bool {
    let deletes =
        seen.target.contains("?delete") && String::from_utf8_lossy(&seen.body).contains("/stores/");
    deletes || seen.target.contains("stores%2F") || seen.path().contains("/stores/")
}

fn made(bucket: &Bucket, name: &str) -> Description {
    let new = Description {
        id: "AbcdefghijklmnopQ".into(),
        name: Some(name.into()),
        ..Description::default()
    };
    bucket.create(&new, soon()).expect("a store").0
}

/// A `kvfs` that works with this storage.
fn kvfs(storage: &FakeS3, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kvfs"));
    command
        .args(args)
        .env_clear()
        .env("HOME", "/nowhere")
        .env("KVFS_SERVE_TOKEN", TOKEN)
        .envs(storage.variables())
        .stdin(Stdio::null());
    command
}

#[test]
fn what_the_storage_refuses_is_the_servers_fault_and_not_the_clients() {
    let storage = FakeS3::start();
    let server = TestServer::over_bucket(&storage.bucket(), |_| {});
    let (record, store) = (server.record_url("k"), server.store_url());
    for (status, code) in [
        (400, "ExpiredToken"),
        (403, "AccessDenied"),
        (403, "InvalidAccessKeyId"),
        (403, "RequestTimeTooSkewed"),
        (404, "NoSuchBucket"),
        (429, "TooManyRequests"),
        (503, "SlowDown"),
        // Azure: of two uploads of one record, one finds its parts replaced.
        (400, "InvalidBlockList"),
    ] {
        storage.answer_so(move |seen| is_of_records(seen).then(|| refusal(status, code)));
        for (what, request) in [
            ("GET", client().get(&record)),
            ("PUT", client().put(&record).body("x")),
            ("DELETE", client().delete(&record)),
            ("list", client().get(format!("{store}/keys"))),
        ] {
            let answer = send(request.bearer_auth(TOKEN));
            assert_eq!(answer.status(), 503, "{code} {what}");
            assert!(header(&answer, "retry-after").is_some(), "{code} {what}");
            let said: Value =
                serde_json::from_slice(&answer.bytes().expect("a body")).expect("JSON");
            let message = said["error"]["message"].as_str().expect("a message");
            assert!(message.contains(code), "{code} {what}: {message}");
        }
    }
    // What is not there is no fault, and what was refused can be asked again.
    storage.answer_well();
    let get = || send(client().get(&record).bearer_auth(TOKEN)).status();
    assert_eq!(get(), 404);
    let put = client().put(&record).bearer_auth(TOKEN).body("x");
    assert_eq!(send(put).status(), 201);
    assert_eq!(get(), 200);
}

#[test]
fn an_upload_whose_end_is_refused_is_aborted_and_said_to_have_failed() {
    let storage = FakeS3::start();
    let server = TestServer::over_bucket(&storage.bucket(), |_| {});
    for (status, code) in [
        (403, "AccessDenied"),
        (400, "InvalidBlockList"),
        (404, "NoSuchUpload"),
    ] {
        storage.answer_so(move |seen| {
            let completes = seen.method == "POST" && seen.target.contains("uploadId=");
            completes.then(|| refusal(status, code))
        });
        let put = client().put(server.record_url("large")).bearer_auth(TOKEN);
        let answer = send(put.body(vec![1; 9 << 20]));
        assert_eq!(answer.status(), 503, "{code}");
        let seen = storage.server.seen();
        let last = seen.last().expect("a request");
        let aborts = last.method == "DELETE" && last.target.contains("uploadId=");
        assert!(aborts, "{code}: {} {}", last.method, last.target);
    }
}

#[test]
fn an_upload_that_a_stopping_server_cuts_off_is_aborted() {
    let storage = FakeS3::start();
    let mut command = kvfs(
        &storage,
        &[
            "serve",
            "--listen",
            "127.0.0.1:0",
            "--grace",
            "0s",
            "s3://b/p",
        ],
    );
    let mut child = command.stderr(Stdio::piped()).spawn().expect("kvfs runs");
    let mut err = std::io::BufReader::new(child.stderr.take().expect("a pipe"));
    let mut line = String::new();
    std::io::BufRead::read_line(&mut err, &mut line).expect("a line");
    std::thread::spawn(move || std::io::copy(&mut err, &mut std::io::sink()));
    let url = line
        .trim()
        .rsplit(" at ")
        .next()
        .expect("an address")
        .to_owned();
    let stores = format!("{url}/v2/key-value-stores?name=s");
    let answer = send(client().post(stores).bearer_auth(TOKEN))
        .bytes()
        .expect("a body");
    let store: Value = serde_json::from_slice(&answer).expect("JSON");
    let id = store["data"]["id"].as_str().expect("an id");
    let mut upload = TcpStream::connect(url.trim_start_matches("http://")).expect("a connection");
    let head = format!(
        "PUT /v2/key-value-stores/{id}/records/large HTTP/1.1\r\nHost: h\r\n\
         Authorization: Bearer {TOKEN}\r\nContent-Length: 30000000\r\n\r\n"
    );
    upload.write_all(head.as_bytes()).expect("a request");
    upload.write_all(&vec![b'x'; 20_000_000]).expect("a part");
    let asked = |method: &str| {
        let seen = storage.server.seen();
        seen.iter()
            .any(|seen| seen.method == method && seen.target.contains("uploadId="))
    };
    let deadline = Instant::now() + PROMPTLY;
    while !asked("PUT") {
        assert!(Instant::now() < deadline, "no part arrived");
        std::thread::sleep(Duration::from_millis(5));
    }
    let pid = i32::try_from(child.id()).expect("a process id");
    let pid = rustix::process::Pid::from_raw(pid).expect("a process id");
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("a signal");
    child.wait().expect("an end");
    assert!(asked("DELETE"), "the upload stays in the bucket");
}

#[test]
fn silence_of_the_storage_ends_with_the_deadline() {
    let storage = FakeS3::start();
    let bucket = storage.bucket();
    let store = made(&bucket, "one");
    storage.answer_so(|_| Some(Answer::silence()));
    let soon = || Deadline::after(Duration::from_secs(1));
    let began = Instant::now();
    let new = Description {
        id: "BbcdefghijklmnopQ".into(),
        ..store.clone()
    };
    let records = bucket.store(&store);
    let put = records.put(
        &key("k"),
        &PutRequest::default(),
        Upload::Bytes(b"x"),
        soon(),
    );
    let kinds = [
        bucket
            .describe(&store.id, Duration::ZERO, soon())
            .expect_err("silence")
            .kind(),
        bucket.create(&new, soon()).expect_err("silence").kind(),
        bucket
            .change(&store.id, |_| {}, soon())
            .expect_err("silence")
            .kind(),
        bucket
            .remove(&store.id, soon())
            .expect_err("silence")
            .kind(),
        bucket.descriptions(soon()).expect_err("silence").kind(),
        bucket
            .check(Use::Shared, soon())
            .expect_err("silence")
            .kind(),
        records.head(&key("k"), soon()).expect_err("silence").kind(),
        records
            .delete(&key("k"), soon())
            .expect_err("silence")
            .kind(),
    ];
    assert!(
        kinds.iter().all(|kind| *kind == ErrorKind::Timeout),
        "{kinds:?}"
    );
    // An upload has longer, by its size.
    assert_eq!(put.expect_err("silence").kind(), ErrorKind::Timeout);
    assert!(
        began.elapsed() < Duration::from_secs(180),
        "{:?}",
        began.elapsed()
    );
}

#[test]
fn commands_say_what_they_wait_for_and_end() {
    let storage = FakeS3::start();
    storage.answer_so(|_| Some(Answer::silence()));
    let home = tempfile::tempdir().expect("a folder");
    let mnt = tempfile::tempdir().expect("a folder");
    let (home, mnt) = (home.path().to_str(), mnt.path().to_str());
    let (home, mnt) = (home.expect("text"), mnt.expect("text"));
    for args in [
        &["serve", "--listen", "127.0.0.1:0", "s3://b/p"][..],
        &["ls", "--deadline", "5s", "s3://b/p/one"],
        &["cat", "--deadline", "5s", "s3://b/p/one", "k"],
        &["mount", "--deadline", "5s", "s3://b/p/one", mnt],
    ] {
        // Words while something is waited for are for people.
        let words: Vec<&str> = [env!("CARGO_BIN_EXE_kvfs")]
            .into_iter()
            .chain(args.iter().copied())
            .collect();
        let mut on_terminal = Command::new("script");
        on_terminal
            .args(["-qec", &words.join(" "), "/dev/null"])
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("KVFS_SERVE_TOKEN", TOKEN)
            .envs(storage.variables())
            .envs([("HOME", home), ("XDG_RUNTIME_DIR", home)]);
        let output = Running::start(&mut on_terminal).wait(PROMPTLY);
        assert!(!output.status.success());
        let said = String::from_utf8_lossy(&output.stdout);
        for word in [
            "waiting for an answer of s3://b/p",
            "the bucket took too long",
        ] {
            assert!(said.contains(word), "{args:?}: {said}");
        }
        assert!(!said.contains("--api-url"), "{args:?}: {said}");
    }
}

#[test]
fn an_answer_that_is_no_list_is_not_believed() {
    let storage = FakeS3::start();
    let bucket = storage.bucket();
    let store = made(&bucket, "one");
    let records = bucket.store(&store);
    let put = records.put(
        &key("k"),
        &PutRequest::default(),
        Upload::Bytes(b"x"),
        soon(),
    );
    put.expect("a record");
    let lists = |seen: &Seen| seen.target.contains("list-type=2");
    for said in [
        "<html>hello</html>",
        "<Error><Code>SlowDown</Code></Error>",
        "",
    ] {
        storage.answer_so(move |seen| lists(seen).then(|| Answer::new(200, said)));
        let page = records.list_page(&ListQuery::default(), soon());
        assert_eq!(
            page.expect_err("no list").kind(),
            ErrorKind::Server,
            "{said}"
        );
        bucket.descriptions(soon()).expect_err("no list");
        storage
            .bucket()
            .check(Use::Shared, soon())
            .expect_err("no bucket");
    }
    // A deletion that cannot see the records keeps the description, for the next server.
    assert!(bucket.remove(&store.id, soon()).expect("a deletion"));
    let described = || storage.names("p/catalog/");
    assert_eq!(described().len(), 1);
    assert_eq!(storage.names("p/stores/").len(), 1);
    storage.answer_well();
    let next = storage.bucket();
    next.tidy();
    let deadline = Instant::now() + PROMPTLY;
    while !described().is_empty() {
        assert!(Instant::now() < deadline, "nothing clears the store away");
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(storage.names("p/stores/").is_empty());
}

#[test]
fn a_page_of_records_is_one_list() {
    const KEYS: usize = 20_000;
    let storage = FakeS3::start();
    let bucket = storage.bucket();
    let store = made(&bucket, "one");
    for number in 0..KEYS {
        storage.put(&format!("p/stores/{}/=k{number:06}", store.id), b"x");
    }
    let records = bucket.store(&store);
    let mut query = ListQuery::default();
    let (mut keys, mut pages) = (0, 0);
    let before = storage.server.cost().requests;
    loop {
        let page = records.list_page(&query, soon()).expect("a page");
        (keys, pages) = (keys + page.items.len(), pages + 1);
        query.after = match page.next {
            Some(next) => Some(next),
            None => break,
        };
    }
    let asked = storage.server.cost().requests - before;
    assert_eq!((keys, pages, asked), (KEYS, KEYS / 1000, KEYS / 1000));
}

#[test]
fn a_name_that_is_used_again_leaves_nothing_more_behind() {
    let storage = FakeS3::start();
    let bucket = storage.bucket();
    for number in 0..10 {
        let new = Description {
            id: format!("Abcdefghijklmno{number:02}"),
            name: Some("results".into()),
            ..Description::default()
        };
        let (made, is_new) = bucket.create(&new, soon()).expect("a store");
        assert!(is_new);
        let renamed = bucket.change(&made.id, |store| store.name = Some("old".into()), soon());
        assert!(matches!(renamed, Ok(Some(Ok(_)))), "{renamed:?}");
        assert!(bucket.remove(&made.id, soon()).expect("a deletion"));
    }
    assert_eq!(
        storage.names("p/"),
        ["p/names/own/old", "p/names/own/results"]
    );
    // And a list of stores does not ask about names.
    let before = storage.server.seen().len();
    assert!(bucket.descriptions(soon()).expect("a list").is_empty());
    let asked = storage.server.seen().split_off(before);
    assert!(asked.iter().all(|seen| !seen.target.contains("names")));
}

/// The log says why, in the storage's own words, and not for each request.
#[test]
fn the_log_names_the_storages_word() {
    let storage = FakeS3::start();
    let mut command = kvfs(&storage, &["serve", "--listen", "127.0.0.1:0", "s3://b/p"]);
    let mut child = command.stderr(Stdio::piped()).spawn().expect("kvfs runs");
    let mut err = child.stderr.take().expect("a pipe");
    let (say, said) = mpsc::channel();
    std::thread::spawn(move || {
        let mut bytes = [0; 4096];
        while let Ok(n @ 1..) = err.read(&mut bytes) {
            if say
                .send(String::from_utf8_lossy(&bytes[..n]).into_owned())
                .is_err()
            {
                return;
            }
        }
    });
    let mut text = String::new();
    let mut wait_for = |wanted: &str| {
        while !text.contains(wanted) {
            text += &said
                .recv_timeout(PROMPTLY)
                .unwrap_or_else(|_| panic!("no {wanted}: {text}"));
        }
        text.clone()
    };
    let announced = wait_for("Ctrl-C stops it");
    let url = announced.lines().find_map(|line| line.rsplit_once(" at "));
    let url = url.expect("an address").1.trim().to_owned();
    storage.answer_so(|_| Some(refusal(400, "ExpiredToken")));
    for _ in 0..3 {
        let get = client().get(format!("{url}/v2/key-value-stores/AbcdefghijklmnopQ"));
        assert_eq!(send(get.bearer_auth(TOKEN)).status(), 503);
    }
    let logged = wait_for("ExpiredToken");
    assert!(
        logged.contains("WARN") || logged.contains("ERROR"),
        "{logged}"
    );
    child.kill().expect("a kill");
    child.wait().expect("an end");
}
