//! Listings as no server should send them, and as large as stores can be.

use std::collections::BTreeSet;
use std::process::Command;

use serde_json::json;

use crate::daemon::User;
use crate::support::long;
use crate::support::mounted::{MountedSession, SCRIPTED_ID, quick_retries, scripted};
use crate::support::scripted::{Answer, ScriptedServer, Seen};
use crate::support::served::TOKEN;

/// Returns a parameter of a request.
fn parameter(seen: &Seen, name: &str) -> Option<String> {
    let (_, query) = seen.target.split_once('?')?;
    url::form_urlencoded::parse(query.as_bytes())
        .find(|(known, _)| known == name)
        .map(|(_, value)| value.into_owned())
}

fn page(items: &[String], next: Option<&str>) -> Answer {
    let items: Vec<_> = items
        .iter()
        .map(|key| json!({"key": key, "size": 5}))
        .collect();
    let page = json!({"data": {
        "items": items, "count": items.len(), "limit": 1000, "isTruncated": next.is_some(),
        "exclusiveStartKey": null, "nextExclusiveStartKey": next,
    }});
    Answer::new(200, page.to_string()).header("content-type", "application/json")
}

fn name(n: usize) -> String {
    format!("r{n:07}")
}

/// Returns the number of the first key of a page, which may start after any text.
fn first(seen: &Seen) -> usize {
    let after = parameter(seen, "exclusiveStartKey").unwrap_or_default();
    let Some(digits) = after.strip_prefix('r') else {
        return if after.as_str() > "r" { usize::MAX } else { 0 };
    };
    let digits = digits.get(..7).unwrap_or(digits);
    let is_key = digits.len() == 7;
    // Behind "r12~" comes "r13", behind "r12" and "r12-" come all of "r12".
    let known = digits
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(digits.len());
    let scale = 10usize.pow(7 - known as u32);
    let number: usize = digits[..known].parse().unwrap_or(0);
    let past = match digits[known..].chars().next() {
        Some(next) => next > '9',
        None => is_key,
    };
    (number + usize::from(past)) * scale
}

/// Each page repeats keys of the page before it, has each key twice, and is in no order.
#[test]
fn keys_that_are_listed_twice_are_shown_once() {
    // As many pages as are fetched one by one, and more.
    for pages in [3, 25] {
        let count = pages * 100;
        let server = scripted(move |seen, _| {
            if !seen.path().ends_with("/keys") {
                return Answer::new(200, "hello");
            }
            let first = first(seen);
            let last = (first.saturating_add(100)).min(count);
            let mut keys: Vec<String> = (first.saturating_sub(7)..last).map(name).collect();
            let largest = keys.last().cloned();
            keys.extend(keys.clone());
            keys.reverse();
            page(&keys, largest.as_deref().filter(|_| last < count))
        });
        let mount = MountedSession::scripted(&server, quick_retries(), |_| {});
        let listed = mount.works("ls -U");
        let names: Vec<&str> = listed.lines().collect();
        let expected: BTreeSet<String> = (0..count).map(name).collect();
        assert_eq!(names.len(), count, "{pages} pages");
        assert!(names.iter().all(|name| expected.contains(*name)));
        assert_eq!(mount.works(&format!("cat {}", name(count - 1))), "hello");
        assert!(mount.counters().last_errors.is_empty());
    }
}

/// With a quarter of a GiB of addresses, stacks and libraries included; in the long form a million
/// keys.
#[test]
fn a_store_of_very_many_keys_is_listed_in_little_memory() {
    let count = if long() { 1_000_000 } else { 150_000 };
    let server = ScriptedServer::start(move |seen, _| {
        if seen.path().ends_with("/keys") {
            let first = first(seen).min(count);
            let last = (first + 1000).min(count);
            let keys: Vec<String> = (first..last).map(name).collect();
            let next = keys.last().cloned();
            page(&keys, next.as_deref().filter(|_| last < count))
        } else if seen.path().contains("/records/") {
            Answer::new(200, "hello")
        } else {
            Answer::new(
                200,
                format!(r#"{{"data":{{"id":"{SCRIPTED_ID}","name":"n"}}}}"#),
            )
        }
    });
    let user = User::new();
    let kvfs = user.command(&[]);
    let mut command = Command::new("prlimit");
    command.env_clear();
    for (name, value) in kvfs.get_envs() {
        if let Some(value) = value {
            command.env(name, value);
        }
    }
    let mounted = command
        .args(["--as=268435456", env!("CARGO_BIN_EXE_kvfs"), "mount"])
        .args([SCRIPTED_ID, "mnt"])
        .env("APIFY_TOKEN", TOKEN)
        .env("APIFY_CLIENT_BASE_URL", server.url())
        .current_dir(user.path(""))
        .output()
        .expect("prlimit runs");
    assert!(mounted.status.success(), "{mounted:?}");
    for _ in 0..2 {
        let mut listed = 0;
        for entry in std::fs::read_dir(user.path("mnt")).expect("the mount") {
            if let Err(error) = entry {
                panic!("after {listed} entries: {error}: {:?}", user.status());
            }
            listed += 1;
        }
        assert_eq!(listed, count);
    }
    let last = user.path("mnt").join(name(count - 1));
    assert_eq!(std::fs::read(last).expect("a record"), b"hello");
    let stats = &user.status()[0]["stats"];
    assert_eq!(stats["errors_total"], 0, "{stats}");
    assert_eq!(stats["panics_total"], 0, "{stats}");
    user.works(&["unmount", "mnt"]);
}
