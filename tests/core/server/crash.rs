//! `kvfs serve` killed in the middle of uploads.

use std::fs;
use std::io::{Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use reqwest::blocking::Client;
use tempfile::TempDir;

use super::process::Served;
use super::{bytes, client, data, send};
use crate::support::mounted::eventually;
use crate::support::served::{TOKEN, encode};
use kvfs::store::Encoding;

/// How often the server is killed.
const KILLS: u64 = 6;

/// Keys, each with an uploader of its own and one that they all write.
const KEYS: [&str; 3] = ["one", "two", "both"];

/// Uploads that a server answers before it is killed, and one more each time.
const UPLOADS: u64 = 15;

/// Version `n` of a record: type, encoding and bytes tell of the same number.
fn version(n: u64) -> (String, Encoding, Vec<u8>) {
    let encoding = match n % 3 {
        0 => Encoding::Identity,
        1 => Encoding::Gzip,
        _ => Encoding::Brotli,
    };
    let text = format!("{n} ").repeat(usize::try_from(n * 7919 % 20_000).expect("a length") + 1);
    (format!("text/v{n}"), encoding, text.into_bytes())
}

fn upload(client: &Client, store: &str, key: &str, n: u64) -> bool {
    let (kind, encoding, plain) = version(n);
    let mut put = client
        .put(format!("{store}/records/{key}"))
        .bearer_auth(TOKEN)
        .header("content-type", kind);
    if let Some(encoding) = encoding.header_value() {
        put = put.header("content-encoding", encoding);
    }
    let answer = put.body(encode(&encoding, &plain)).send();
    answer.is_ok_and(|answer| answer.status() == 201)
}

#[test]
fn what_a_killed_server_has_stored_is_whole_and_of_one_version() {
    let folder = Arc::new(tempfile::tempdir().expect("a folder"));
    let next = AtomicU64::new(1);
    // The newest version that a server has said is stored, for each key.
    let stored = KEYS.map(|_| AtomicU64::new(0));
    for kill in 0..KILLS {
        let served = Served::over(&folder, &[]);
        let store = served.store("s");
        let answered = AtomicU64::new(0);
        std::thread::scope(|scope| {
            for own in [0, 1] {
                let (store, answered, next, stored) = (&store, &answered, &next, &stored);
                scope.spawn(move || {
                    let client = client();
                    for turn in 0.. {
                        let key = if turn % 2 == 0 { own } else { 2 };
                        let n = next.fetch_add(1, Ordering::Relaxed);
                        if !upload(&client, store, KEYS[key], n) {
                            return;
                        }
                        // Of the shared key the last one to arrive counts, whichever that is.
                        stored[key].fetch_max(if key == 2 { 1 } else { n }, Ordering::Relaxed);
                        answered.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
            // Every key has a version by then, so none may be absent afterwards.
            let none_stored = || stored.iter().any(|n| n.load(Ordering::Relaxed) == 0);
            while none_stored() || answered.load(Ordering::Relaxed) < UPLOADS + kill {
                std::thread::sleep(Duration::from_micros(300));
            }
            served.kill();
        });
        is_whole(&folder, &stored);
    }
}

fn is_whole(folder: &Arc<TempDir>, stored: &[AtomicU64; 3]) {
    let served = Served::over(folder, &[]);
    let store = served.store("s");
    for (key, stored) in KEYS.iter().zip(stored) {
        let url = format!("{store}/records/{key}");
        let got = send(
            client()
                .get(&url)
                .bearer_auth(TOKEN)
                .header("accept-encoding", "gzip, br"),
        );
        assert_eq!(got.status(), 200, "{key}");
        let kind = got.headers()["content-type"]
            .to_str()
            .expect("text")
            .to_owned();
        let n: u64 = kind.trim_start_matches("text/v").parse().expect("a number");
        assert!(
            n >= stored.load(Ordering::Relaxed),
            "{key} has lost a version: {kind}"
        );
        let (_, encoding, plain) = version(n);
        let said = got.headers().get("content-encoding");
        let said = said.map(|value| value.to_str().expect("text").to_owned());
        assert_eq!(said.as_deref(), encoding.header_value(), "{key}: {kind}");
        assert!(bytes(got) == encode(&encoding, &plain), "{key}: {kind}");
        let decoded = send(client().get(&url).bearer_auth(TOKEN));
        assert!(bytes(decoded) == plain, "{key}: {kind}");
    }
    // What was never finished is no record.
    let keys = data(send(
        client().get(format!("{store}/keys")).bearer_auth(TOKEN),
    ));
    assert_eq!(keys["count"], KEYS.len());
    assert_eq!(unfinished(folder), Vec::<String>::new());
    served.kill();
}

/// Returns what lies in the store's folder that is no record yet.
fn unfinished(folder: &TempDir) -> Vec<String> {
    let files = fs::read_dir(folder.path().join("storage/key_value_stores/s"));
    let names = files.into_iter().flatten().map(|file| {
        let name = file.expect("a file").file_name();
        name.into_string().expect("UTF-8")
    });
    names.filter(|name| name.ends_with(".tmp")).collect()
}

#[test]
fn what_an_upload_to_a_killed_server_leaves_is_removed_by_the_next_one() {
    let folder = Arc::new(tempfile::tempdir().expect("a folder"));
    let start = |served: &Served| {
        let path = served.store("s").trim_start_matches(&served.url).to_owned();
        let mut upload = served.connection();
        let head = format!(
            "PUT {path}/records/late HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer {TOKEN}\r\n\
             Content-Length: 8\r\n\r\nhalf"
        );
        let patience = Some(Duration::from_secs(60));
        upload.set_read_timeout(patience).expect("a limit");
        upload.write_all(head.as_bytes()).expect("a request");
        upload
    };
    let killed = Served::over(&folder, &[]);
    let _cut = start(&killed);
    eventually("it is under way", || !unfinished(&folder).is_empty());
    let left = unfinished(&folder);
    killed.kill();
    assert_eq!(unfinished(&folder), left, "a killed server removes nothing");

    // What is under way in a living one stays.
    let served = Served::over(&folder, &[]);
    let mut upload = start(&served);
    let other = || {
        let names = unfinished(&folder).into_iter();
        names
            .filter(|name| !left.contains(name))
            .collect::<Vec<_>>()
    };
    eventually("it is under way", || !other().is_empty());
    let under_way = other();
    let keys = format!("{}/keys", served.store("s"));
    send(client().get(keys).bearer_auth(TOKEN));
    assert_eq!(unfinished(&folder), under_way);
    upload.write_all(b"half").expect("the rest");
    let mut answer = [0; 12];
    upload.read_exact(&mut answer).expect("an answer");
    assert_eq!(&answer, b"HTTP/1.1 201");
    assert_eq!(unfinished(&folder), Vec::<String>::new());
    served.kill();
}
