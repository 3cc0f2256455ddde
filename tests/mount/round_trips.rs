//! What a line with a long way would make of it: connections opened, and questions that are asked one
//! after the other. A scripted server tells them without a clock.

use std::fs;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use kvfs::apify::http::HttpOptions;

use crate::support::mounted::{MountedSession, make_writable, pattern, scripted, scripted_keys};
use crate::support::scripted::{Answer, Cost, ScriptedServer, Seen};

fn options() -> HttpOptions {
    HttpOptions::new(Duration::from_secs(30))
}

fn cost(connections: usize, rounds: usize, requests: usize) -> Cost {
    Cost {
        connections,
        rounds,
        requests,
    }
}

/// As the platform answers: no validators, no ranges.
fn platform() -> ScriptedServer {
    scripted(|seen, _| {
        let named = |answer: Answer| answer.header("x-ratelimit-limit", "200");
        named(match (seen.method.as_str(), seen.path()) {
            (_, path) if path.ends_with("/keys") => scripted_keys(&[("a", 5), ("b", 5)]),
            ("PUT", _) => Answer::new(201, "{}").header("content-type", "application/json"),
            ("DELETE", _) => Answer::new(204, ""),
            (_, path) if path.ends_with("/a") || path.ends_with("/b") => {
                Answer::new(200, "hello").header("content-type", "text/plain")
            }
            _ => Answer::error(404, "record-not-found", "Record was not found"),
        })
    })
}

#[test]
fn nothing_is_asked_that_need_not_be_and_all_of_it_on_one_connection() {
    let server = platform();
    let (mount, opened) =
        server.cost_of(|| MountedSession::scripted(&server, options(), make_writable));
    assert_eq!(opened, cost(1, 1, 1), "mounting");
    let first = server
        .cost_of(|| fs::read(mount.file("a")).expect("a record"))
        .1;
    assert_eq!(first, cost(0, 1, 1), "the first record");
    let again = server
        .cost_of(|| fs::read(mount.file("a")).expect("a record"))
        .1;
    assert_eq!(again, Cost::default(), "read again");
    let made = server.cost_of(|| fs::write(mount.file("new"), "text").expect("a new record"));
    assert_eq!(
        made.1,
        cost(0, 2, 2),
        "a new file: is there one, and its upload"
    );
    let changed = server.cost_of(|| {
        let mut file = fs::OpenOptions::new().append(true).open(mount.file("new"));
        file.as_mut()
            .expect("it is there")
            .write_all(b"more")
            .expect("written");
    });
    assert_eq!(
        changed.1,
        cost(0, 1, 1),
        "what was stored here is not asked for"
    );
    let listed = server.cost_of(|| mount.works("ls"));
    assert_eq!(listed.1, cost(0, 1, 1), "ls");
    let removed = server.cost_of(|| fs::remove_file(mount.file("b")).expect("removed"));
    assert_eq!(removed.1, cost(0, 1, 1), "rm of what is listed");
}

/// A server that does all it can: strong tags and ranges.
fn kinder(content: Vec<u8>) -> ScriptedServer {
    scripted(move |seen: &Seen, _| {
        let answer = match seen.header("range") {
            Some(range) => {
                let (start, last) = range["bytes=".len()..].split_once('-').expect("a range");
                let start: usize = start.parse().expect("a start");
                let end = last.parse().map_or(content.len(), |last: usize| last + 1);
                let end = end.min(content.len());
                let part = format!("bytes {start}-{}/{}", end - 1, content.len());
                Answer::new(206, &content[start..end]).header("content-range", &part)
            }
            None => Answer::new(200, content.clone()),
        };
        answer
            .header("etag", "\"1\"")
            .header("accept-ranges", "bytes")
    })
}

#[test]
fn a_read_far_into_a_large_record_is_one_more_question() {
    let content = pattern(64 << 20);
    let server = kinder(content.clone());
    let mount = MountedSession::scripted(&server, options(), |_| {});
    let mut end = vec![0; 100];
    let at = content.len() - end.len();
    let far = server.cost_of(|| {
        let file = fs::File::open(mount.file("large")).expect("a record");
        file.read_exact_at(&mut end, at as u64).expect("its end");
    });
    assert!(end == content[at..]);
    assert!(far.1.rounds <= 2 && far.1.connections <= 1, "{far:?}");
}
