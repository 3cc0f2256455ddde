//! Servers over a bucket of a real S3 implementation: several share one.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::sync::Barrier;
use std::time::{Duration, Instant};

use kvfs::base::redact::Secret;
use kvfs::bucket::Bucket;
use kvfs::server::User;
use reqwest::blocking::{Body, Client, RequestBuilder, Response};
use serde_json::{Value, json};

use crate::support::served::{TOKEN, TestServer};
use crate::support::storage::{self, Storage};

fn client() -> Client {
    // Fails only if another test was first.
    let _ = rustls::crypto::ring::default_provider().install_default();
    Client::builder()
        .no_proxy()
        .timeout(Duration::from_secs(120))
        .build()
        .expect("a client")
}

fn send(request: RequestBuilder) -> Response {
    request.bearer_auth(TOKEN).send().expect("an answer")
}

#[track_caller]
fn data(response: Response) -> Value {
    let text = response.text().expect("a body");
    let body: Value = serde_json::from_str(&text).unwrap_or_else(|_| panic!("{text}"));
    body["data"].clone()
}

/// Two servers over one bucket.
fn two(storage: &Storage) -> [TestServer; 2] {
    let bucket = storage.bucket();
    [(); 2].map(|()| TestServer::over_bucket(&bucket, |_| {}))
}

fn stores(server: &TestServer) -> String {
    format!("{}/v2/key-value-stores", server.url())
}

fn keys(store: &str) -> Vec<String> {
    let listed = data(send(client().get(format!("{store}/keys"))));
    let items = listed["items"].as_array().expect("items").clone();
    let key = |item: &Value| item["key"].as_str().expect("a key").to_owned();
    items.iter().map(key).collect()
}

/// What one server writes, lists and deletes, the other sees at once.
#[test]
fn what_one_server_writes_the_other_lists_and_reads_at_once() {
    shared_by_two(storage::s3());
}

#[test]
fn what_one_server_writes_the_other_lists_and_reads_at_once_in_googles_storage() {
    shared_by_two(storage::gcs());
}

fn shared_by_two(storage: &Storage) {
    let servers = two(storage);
    for round in 0..6 {
        let [one, other] = [&servers[round % 2], &servers[(round + 1) % 2]];
        let name = format!("shared-{round}");
        let made = send(client().post(format!("{}?name={name}", stores(one))));
        assert_eq!(made.status(), 201);
        let id = data(made)["id"].as_str().expect("an id").to_owned();
        let again = send(client().post(format!("{}?name={name}", stores(other))));
        assert_eq!(again.status(), 200);
        assert_eq!(data(again)["id"], id.as_str());
        let here = format!("{}/{id}", stores(one));
        let there = format!("{}/local~{}", stores(other), name.to_uppercase());
        let put = client()
            .put(format!("{here}/records/k"))
            .header("content-type", "image/x-round; charset=utf-8")
            .header("content-encoding", "gzip")
            .body(vec![31, 139, 8]);
        let put = send(put);
        assert_eq!(put.status(), 201);
        let tag = put.headers()["etag"].clone();
        assert_eq!(keys(&there), ["k"]);
        let record = format!("{there}/records/k");
        let got = send(client().get(&record).header("accept-encoding", "gzip"));
        assert_eq!(
            got.headers()["content-type"],
            "image/x-round; charset=utf-8"
        );
        assert_eq!(got.headers()["content-encoding"], "gzip");
        assert_eq!(got.headers()["etag"], tag);
        assert_eq!(got.bytes().expect("bytes").as_ref(), [31, 139, 8]);
        let unchanged = client()
            .get(&record)
            .header("accept-encoding", "gzip")
            .header("if-none-match", &tag);
        assert_eq!(send(unchanged).status(), 304);
        assert_eq!(send(client().delete(&record)).status(), 204);
        assert!(keys(&here).is_empty());
        let gone = send(client().get(format!("{here}/records/k")));
        assert_eq!(gone.status(), 404);
        let renamed = json!({ "name": format!("renamed-{round}"), "title": "A title" });
        let renamed = send(client().put(&there).body(renamed.to_string()));
        assert_eq!(renamed.status(), 200);
        assert_eq!(send(client().get(&there)).status(), 404);
        let seen = data(send(client().get(&here)));
        assert_eq!(seen["name"], format!("renamed-{round}"));
        assert_eq!(seen["title"], "A title");
        // Links made by one are good at the other.
        assert_eq!(
            seen["urlSigningSecretKey"],
            data(send(client().get(format!("{}/{id}", stores(other)))))["urlSigningSecretKey"]
        );
    }
    let listed = data(send(client().get(stores(&servers[0]))));
    // The store that every test server begins with is one, too.
    assert_eq!(listed["total"], 7);
    let id = listed["items"][1]["id"].as_str().expect("an id");
    let record = format!("{}/{id}/records/left", stores(&servers[1]));
    assert_eq!(send(client().put(&record).body("left")).status(), 201);
    let deleted = send(client().delete(format!("{}/{id}", stores(&servers[0]))));
    assert_eq!(deleted.status(), 204);
    assert_eq!(send(client().get(record)).status(), 404);
    assert_eq!(data(send(client().get(stores(&servers[1]))))["total"], 6);
}

#[test]
fn a_store_that_is_named_on_both_servers_at_once_is_one() {
    named_on_both(storage::s3());
}

#[test]
fn a_store_that_is_named_on_both_servers_at_once_is_one_in_googles_storage() {
    named_on_both(storage::gcs());
}

fn named_on_both(storage: &Storage) {
    const CLIENTS: usize = 4;
    let servers = two(storage);
    for round in 0..5 {
        let barrier = Barrier::new(CLIENTS);
        let made: Vec<(u16, String)> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..CLIENTS)
                .map(|at| {
                    let (barrier, server) = (&barrier, &servers[at % 2]);
                    // Case makes no difference.
                    let name = if at < 2 { "Wanted" } else { "wanted" };
                    let url = format!("{}?name={name}-{round}", stores(server));
                    scope.spawn(move || {
                        barrier.wait();
                        let answer = send(client().post(url));
                        let status = answer.status().as_u16();
                        let id = data(answer)["id"].as_str().expect("an id").to_owned();
                        (status, id)
                    })
                })
                .collect();
            let joined = threads.into_iter().map(|thread| thread.join());
            joined.map(|made| made.expect("an answer")).collect()
        });
        let new = made.iter().filter(|(status, _)| *status == 201).count();
        assert_eq!(new, 1, "{made:?}");
        assert!(made.iter().all(|(_, id)| *id == made[0].1), "{made:?}");
    }
    let listed = data(send(client().get(stores(&servers[0]))));
    assert_eq!(listed["total"], 6, "{listed}");
}

#[test]
fn concurrent_puts_through_both_servers_leave_one_whole_winner() {
    let servers = two(storage::s3());
    let id = &servers[0].entry.id;
    // In one request to the storage, and in parts.
    for size in [100_000, 20 << 20] {
        let barrier = Barrier::new(4);
        std::thread::scope(|scope| {
            for (at, letter) in (b'a'..=b'd').enumerate() {
                let record = format!("{}/{id}/records/contended", stores(&servers[at % 2]));
                let barrier = &barrier;
                scope.spawn(move || {
                    barrier.wait();
                    let put = client()
                        .put(record)
                        .header("content-type", format!("text/{}", char::from(letter)))
                        .body(vec![letter; size]);
                    assert_eq!(send(put).status(), 201);
                });
            }
        });
        for server in &servers {
            let got = send(client().get(format!("{}/{id}/records/contended", stores(server))));
            let kind = got.headers()["content-type"]
                .to_str()
                .expect("text")
                .to_owned();
            let bytes = got.bytes().expect("bytes");
            let winner = kind.as_bytes()[kind.len() - 1];
            assert_eq!(bytes.len(), size);
            assert!(bytes.iter().all(|byte| *byte == winner));
        }
    }
}

#[test]
fn conditions_hold_for_records_of_any_size() {
    for storage in [storage::s3(), storage::gcs(), storage::azure()] {
        let servers = two(storage);
        for size in [10, 9 << 20] {
            let record = |server: &TestServer| server.record_url(&format!("sized-{size}"));
            let put = |server: &TestServer, condition: &str, value: &str, byte: u8| {
                let put = client().put(record(server)).header(condition, value);
                send(put.body(vec![byte; size]))
            };
            let [one, other] = &servers;
            let url = format!("{}/{}", stores(other), one.entry.id);
            let made = put(one, "if-none-match", "*", 1);
            assert_eq!(made.status(), 201);
            let first = made.headers()["etag"].to_str().expect("text").to_owned();
            assert_eq!(put(one, "if-none-match", "*", 2).status(), 412);
            let changed = put(one, "if-match", &first, 3);
            assert_eq!(changed.status(), 201);
            assert_eq!(put(one, "if-match", &first, 4).status(), 412);
            let got = send(client().get(format!("{url}/records/sized-{size}")));
            assert_eq!(got.headers()["etag"], changed.headers()["etag"]);
            assert!(got.bytes().expect("bytes").iter().all(|byte| *byte == 3));
        }
    }
}

#[test]
fn accounts_have_names_of_their_own_in_a_bucket() {
    let bucket = storage::s3().bucket();
    let server = TestServer::over_bucket(&bucket, |config| {
        let other = (User::named("other"), Secret::new("T2"));
        config.other_users.push(other);
    });
    let make = |token: &str| {
        let made = client().post(format!("{}?name=same", stores(&server)));
        data(made.bearer_auth(token).send().expect("an answer"))
    };
    let (mine, theirs) = (make(TOKEN), make("T2"));
    assert_ne!(mine["id"], theirs["id"]);
    assert_eq!(theirs["username"], "other");
    let foreign = format!(
        "{}/{}",
        stores(&server),
        theirs["id"].as_str().expect("an id")
    );
    assert_eq!(send(client().get(foreign)).status(), 403);
    let seen = data(send(client().get(format!("{}/~same", stores(&server)))));
    assert_eq!(seen["id"], mine["id"]);
    let taken = json!({ "name": "SAME" });
    let mine = format!("{}/{}", stores(&server), server.entry.id);
    let refused = send(client().put(mine).body(taken.to_string()));
    assert!(refused.text().expect("text").contains("name-not-unique"));
}

#[test]
fn an_upload_that_breaks_off_leaves_nothing_in_the_bucket() {
    let storage = storage::s3();
    let address = storage.address();
    let bucket = Bucket::open(&address, &storage.options()).expect("a bucket");
    let server = TestServer::over_bucket(&bucket, |_| {});
    let path = format!("/v2/key-value-stores/{}/records/broken", server.entry.id);
    let mut upload = TcpStream::connect(server.server.addr()).expect("a connection");
    let head = format!(
        "PUT {path} HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer {TOKEN}\r\n\
         Content-Length: 30000000\r\n\r\n"
    );
    upload.write_all(head.as_bytes()).expect("a request");
    upload.write_all(&vec![b'x'; 20_000_000]).expect("a part");
    let prefix = address.path().trim_start_matches('/').to_owned();
    let uploads = || {
        let url = format!("{}/tests?uploads&prefix={prefix}", storage.url);
        let listed = client().get(url).send().expect("an answer").text();
        listed.expect("text").matches("<UploadId>").count()
    };
    let deadline = Instant::now() + Duration::from_secs(60);
    let wait_for = |wanted: usize| {
        while uploads() != wanted {
            assert!(Instant::now() < deadline, "{} uploads", uploads());
        }
    };
    // Parts have arrived in the bucket; then the client is gone.
    wait_for(1);
    drop(upload);
    wait_for(0);
    let record = format!("{}{path}", server.url());
    assert_eq!(send(client().get(record)).status(), 404);
    assert!(keys(&format!("{}/{}", stores(&server), server.entry.id)).is_empty());
}

/// `kvfs serve` over a bucket.
struct Served {
    child: Child,
    url: String,
}

impl Served {
    fn command(storage: &Storage, address: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kvfs"));
        command
            .args(["serve", "--listen", "127.0.0.1:0", address])
            .env_clear()
            .env("HOME", "/")
            .env("KVFS_SERVE_TOKEN", TOKEN)
            .envs(storage.variables())
            .stdin(Stdio::null())
            .stderr(Stdio::piped());
        command
    }

    fn start(storage: &Storage, address: &str) -> Self {
        let mut child = Self::command(storage, address).spawn().expect("kvfs runs");
        let mut err = child.stderr.take().expect("a pipe");
        let mut said = Vec::new();
        while said.last() != Some(&b'\n') {
            let mut byte = [0];
            err.read_exact(&mut byte).expect("a line");
            said.push(byte[0]);
        }
        let said = String::from_utf8_lossy(&said).trim().to_owned();
        let served = said
            .strip_prefix("serving ")
            .and_then(|said| said.split_once(" at "));
        let (shown, url) = served.unwrap_or_else(|| panic!("{said}"));
        assert_eq!(shown, address);
        std::thread::spawn(move || std::io::copy(&mut err, &mut std::io::sink()));
        let url = url.to_owned();
        Self { child, url }
    }

    fn most_memory(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()));
        let status = status.expect("a status");
        let line = status.lines().find(|line| line.starts_with("VmHWM:"));
        let digits = line.expect("a line").split_whitespace().nth(1);
        digits.expect("a number").parse().expect("a number")
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn large_records_flow_through_to_a_bucket_in_bounded_memory() {
    const SIZE: u64 = 160 << 20;
    let storage = storage::s3();
    let served = Served::start(storage, storage.address().as_str());
    let made = data(send(
        client().post(format!("{}/v2/key-value-stores?name=big", served.url)),
    ));
    let id = made["id"].as_str().expect("an id");
    let record = format!("{}/v2/key-value-stores/{id}/records/big", served.url);
    let before = served.most_memory();
    for chunked in [false, true] {
        let body = std::io::repeat(b'x').take(SIZE);
        let body = if chunked {
            Body::new(body)
        } else {
            Body::sized(body, SIZE)
        };
        assert_eq!(send(client().put(&record).body(body)).status(), 201);
    }
    let mut got = send(client().get(&record));
    let length = std::io::copy(&mut got, &mut std::io::sink()).expect("a body");
    assert_eq!(length, SIZE);
    let grown = served.most_memory().saturating_sub(before);
    assert!(grown < 64 << 10, "memory grew by {grown} KiB");
}

#[test]
fn buckets_that_cannot_be_used_are_refused_at_the_start() {
    let storage = storage::s3();
    for (address, code, message) in [
        ("s3://no-such-bucket/x", 1, "there is no such bucket"),
        ("s3://user:password@tests/x", 2, "no credentials"),
        ("s3://", 2, "names no bucket"),
        ("az://tests/x", 1, "is not a bucket that can be used"),
    ] {
        let output = Served::command(storage, address)
            .output()
            .expect("kvfs runs");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{address}: {said}");
        assert!(said.contains(message), "{address}: {said}");
        assert!(!said.contains("password"), "{said}");
    }
}
