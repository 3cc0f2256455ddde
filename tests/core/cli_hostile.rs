//! Commands and servers that list without an end, tell names of any length, or lead elsewhere.

use crate::cli::{Ran, User, ran};
use crate::support::scripted::{Answer, ScriptedServer, Seen};

fn kvfs(server: &ScriptedServer, user: &User, args: &[&str]) -> Ran {
    let mut command = user.kvfs();
    command
        .args(args)
        .env("APIFY_TOKEN", "hostile-token-0123456789")
        .env("APIFY_CLIENT_BASE_URL", server.url());
    ran(command.output().expect("kvfs runs"))
}

fn store(id: &str, name: &str) -> serde_json::Value {
    serde_json::json!({
        "id": id, "name": name, "username": "u", "modifiedAt": "2026-01-02T00:00:00.000Z",
    })
}

fn data(data: &serde_json::Value) -> Answer {
    Answer::new(200, serde_json::json!({ "data": data }).to_string())
}

/// A store whose listing begins, and then is refused.
fn broken_listing(seen: &Seen) -> Answer {
    if !seen.path().ends_with("/keys") {
        return data(&store("Abcdefghij0123456", "shop"));
    }
    if seen.target.contains("exclusiveStartKey") {
        return Answer::error(403, "t", "no more");
    }
    data(&serde_json::json!({
        "items": [{"key": "a", "size": 1}, {"key": "b", "size": 1}],
        "isTruncated": true, "nextExclusiveStartKey": "b",
    }))
}

#[test]
fn long_listings_are_acted_on_page_by_page() {
    let server = ScriptedServer::start(|seen, _| broken_listing(seen));
    let user = User::new();
    std::fs::create_dir(user.path("empty")).expect("a folder");
    let removed = kvfs(&server, &user, &["rm", "-n", "~shop", "*"]);
    assert_eq!(
        removed.out, "would delete a\nwould delete b\n",
        "{removed:?}"
    );
    assert!(
        removed.code > 0 && removed.err.contains("cannot list"),
        "{removed:?}"
    );
    let differ = kvfs(&server, &user, &["diff", "~shop", "./empty"]);
    assert_eq!(differ.out.lines().count(), 2, "{differ:?}");
    assert!(
        differ.code == 3 && differ.err.contains("to its end"),
        "{differ:?}"
    );
}

#[test]
fn a_pattern_that_is_a_key_means_that_key_only() {
    let user = User::new();
    for (keys, word, removed) in [
        (vec!["{a,b}", "a"], "{a,b}", "would delete {a,b}\n"),
        (vec!["a", "b"], "{a,b}", "would delete a\nwould delete b\n"),
        (vec!["a!", "a*", "ab"], "a*", "would delete a*\n"),
        (vec!["a!", "ab"], "a*", "would delete a!\nwould delete ab\n"),
        (vec!["[ab]", "a"], "[ab]", "would delete [ab]\n"),
    ] {
        let server = ScriptedServer::start(move |seen, _| {
            if !seen.path().ends_with("/keys") {
                return data(&store("Abcdefghij0123456", "shop"));
            }
            let url = url::Url::parse(&format!("http://h{}", seen.target)).expect("a URL");
            let prefix = url.query_pairs().find(|(name, _)| name == "prefix");
            let prefix = prefix
                .map(|(_, value)| value.into_owned())
                .unwrap_or_default();
            let mut keys = keys.clone();
            keys.sort_unstable();
            let items: Vec<_> = keys
                .iter()
                .filter(|key| key.starts_with(&prefix))
                .map(|key| serde_json::json!({"key": key, "size": 1}))
                .collect();
            data(&serde_json::json!({"items": items, "isTruncated": false}))
        });
        let ran = kvfs(&server, &user, &["rm", "-n", "~shop", word]);
        assert_eq!((&*ran.out, ran.code), (removed, 0), "{ran:?}");
    }
}

#[test]
fn stores_of_any_name_are_listed_on_lines_of_their_own() {
    let user = User::new();
    let long = "n".repeat(70_000);
    let odd = "a\nits id is b\u{1b}[31m";
    let list = serde_json::json!({
        "total": 2, "items": [store("Abcdefghij0123456", &long), store("Bbcdefghij0123456", odd)],
    });
    let server = ScriptedServer::start(move |seen, _| match (&*seen.method, seen.path()) {
        ("POST", _) => data(&store("Abc\nFAKE LINE", "new")),
        (_, path) if path.ends_with("/keys") => {
            data(&serde_json::json!({"items": [], "isTruncated": false}))
        }
        (_, path) if path.ends_with("/key-value-stores") => data(&list),
        _ => data(&store("Abcdefghij0123456", "shop")),
    });
    for args in [&["stores"][..], &["stores", "--count"]] {
        let listed = kvfs(&server, &user, args);
        assert_eq!(listed.code, 0, "{:?}", &listed.err);
        assert_eq!(listed.out.lines().count(), 3, "{}", listed.out);
        assert!(
            listed
                .out
                .lines()
                .all(|line| line.chars().count() < 5 * 125)
        );
    }
    let listed = kvfs(&server, &user, &["stores", "--json"]);
    assert!(listed.code == 0 && listed.out.contains(&long));
    let made = kvfs(&server, &user, &["stores", "create", "new"]);
    assert_eq!((made.code, made.err.lines().count()), (0, 1), "{made:?}");
    assert!(made.err.contains(r"Abc\nFAKE LINE"), "{made:?}");
}

#[test]
fn a_list_of_stores_that_repeats_itself_ends() {
    let user = User::new();
    let items: Vec<_> = (0..1000)
        .map(|id| store(&format!("{id:017}"), "n"))
        .collect();
    let list = serde_json::json!({"total": 1_000_000_000, "items": items});
    let server = ScriptedServer::start(move |_, _| data(&list));
    let listed = kvfs(&server, &user, &["stores", "--json"]);
    assert_eq!(listed.out.lines().count(), 1000);
    assert!(
        listed.code > 0 && listed.err.contains("does not advance"),
        "{}",
        listed.err
    );
    kvfs(&server, &user, &["stores"]).fails(listed.code, &["does not advance"]);
}

#[test]
fn a_change_goes_where_no_other_server_says() {
    let user = User::new();
    let there = ScriptedServer::start(|_, _| data(&store("EvilStore12345678", "newone")));
    for status in [301, 302, 303, 307, 308] {
        let to = there.url();
        let server = ScriptedServer::start(move |_, _| {
            Answer::new(status, "").header("location", &format!("{to}elsewhere"))
        });
        for args in [
            &["stores", "create", "newone"][..],
            &["stores", "remove", "--yes", "~newone"],
            &["put", "~newone", "k", "/etc/hostname"],
            &["rm", "~newone", "k"],
        ] {
            let ran = kvfs(&server, &user, args);
            assert!(
                ran.code > 0 && ran.err.contains("redirect"),
                "{args:?}: {ran:?}"
            );
        }
    }
    let seen = there.seen();
    assert!(seen.iter().all(|seen| seen.method == "HEAD"), "{seen:?}");
}

/// A file in the place of the home folder: there is no settings file below it.
#[test]
fn a_home_that_is_a_file_has_no_settings() {
    let server = ScriptedServer::start(|_, _| data(&serde_json::json!({"total": 0, "items": []})));
    let user = User::new();
    let mut command = user.kvfs();
    command
        .args(["stores"])
        .env("HOME", "/etc/hostname")
        .env("APIFY_TOKEN", "hostile-token-0123456789")
        .env("APIFY_CLIENT_BASE_URL", server.url());
    let listed = ran(command.output().expect("kvfs runs"));
    assert_eq!(listed.code, 0, "{listed:?}");
}

#[test]
fn a_copy_does_little_at_once_where_it_may_open_few_files() {
    let keys: Vec<String> = (0..400).map(|number| format!("r{number:04}")).collect();
    let listed = keys.clone();
    let server = ScriptedServer::start(move |seen, _| {
        if seen.path().ends_with("/keys") {
            let items: Vec<_> = listed
                .iter()
                .map(|key| serde_json::json!({"key": key, "size": 5}))
                .collect();
            return data(&serde_json::json!({"items": items, "isTruncated": false}));
        }
        match seen.path().contains("/records/") {
            true => Answer::new(200, "hello").header("content-type", "text/plain"),
            false => data(&store("Abcdefghij0123456", "shop")),
        }
    });
    let user = User::new();
    let mut command = std::process::Command::new("prlimit");
    let kvfs = user.kvfs();
    command
        .args(["--nofile=64:64", env!("CARGO_BIN_EXE_kvfs")])
        .args(["copy", "~shop", "./copied"])
        .env_clear()
        .envs(
            kvfs.get_envs()
                .filter_map(|(name, value)| Some((name, value?))),
        )
        .env("APIFY_TOKEN", "hostile-token-0123456789")
        .env("APIFY_CLIENT_BASE_URL", server.url())
        .current_dir(user.path("."));
    let copied = ran(command.output().expect("prlimit runs"));
    assert_eq!(copied.code, 0, "{copied:?}");
    let files = std::fs::read_dir(user.path("copied")).expect("a folder");
    assert!(files.count() >= keys.len());
}
