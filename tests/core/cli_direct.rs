//! Stores without a mount: `kvfs ls`, `cat`, `put`, `rm`, `info`, `share`.

use std::io::Write;
use std::process::Stdio;

use kvfs::store::Encoding;

use crate::cli::{Ran, User, ran};
use crate::support::scripted::{Answer, Cost, ScriptedServer};
use crate::support::served::{STORE, TOKEN, TestServer};

/// Runs kvfs against `server`; `$STORE` stands for its store.
fn kvfs(server: &TestServer, user: &User, args: &[&str]) -> Ran {
    kvfs_with(server, user, args, b"")
}

fn kvfs_with(server: &TestServer, user: &User, args: &[&str], input: &[u8]) -> Ran {
    let store = format!("~{STORE}");
    let args = args
        .iter()
        .map(|arg| if *arg == "$STORE" { &store } else { *arg });
    let mut child = user
        .kvfs()
        .args(args)
        .env("APIFY_TOKEN", TOKEN)
        .env("APIFY_CLIENT_BASE_URL", server.url())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("kvfs runs");
    let mut stdin = child.stdin.take().expect("a pipe");
    // Not everybody reads.
    let _ = stdin.write_all(input);
    drop(stdin);
    ran(child.wait_with_output().expect("kvfs ends"))
}

#[track_caller]
fn prints(ran: &Ran, expected: &str) {
    assert_eq!((ran.code, ran.out.as_str()), (0, expected), "{ran:?}");
}

#[test]
fn what_is_put_is_listed_printed_described_and_removed() {
    let (server, user) = (TestServer::start(), User::new());
    let run = |args: &[&str]| kvfs(&server, &user, args);
    let stored = kvfs_with(&server, &user, &["put", "$STORE", "INPUT"], b"{\"a\": 1}");
    assert_eq!(stored.code, 0, "{stored:?}");
    std::fs::write(user.path("page.html"), "<p>").expect("a file");
    prints(&run(&["put", "$STORE", "page", "page.html", "-q"]), "");

    prints(&run(&["ls", "$STORE"]), "INPUT\npage\n");
    prints(&run(&["ls", "$STORE", "--prefix", "p"]), "page\n");
    prints(&run(&["cat", "$STORE", "page", "INPUT"]), "<p>{\"a\": 1}");
    let long = run(&["ls", "-l", "$STORE"]).out;
    let lines: Vec<Vec<&str>> = long
        .lines()
        .map(|line| line.split_whitespace().collect())
        .collect();
    assert_eq!(
        lines[0][2..],
        ["application/json;", "charset=utf-8", "INPUT"]
    );
    assert_eq!(lines[1][0], "3");
    assert_eq!(lines[1][2..], ["text/html;", "charset=utf-8", "page"]);
    let info: serde_json::Value =
        serde_json::from_str(&run(&["info", "$STORE", "page", "--json"]).out).expect("JSON");
    assert_eq!(info["size"], 3);
    assert_eq!(info["content_type"], "text/html; charset=utf-8");
    let info = run(&["info", "$STORE"]).out;
    assert!(info.contains(&server.entry.id), "{info}");

    let gone = run(&["rm", "$STORE", "page", "no-such-record"]);
    assert_eq!((gone.code, gone.out.as_str()), (4, ""), "{gone:?}");
    assert!(gone.err.contains("deleted page"), "{gone:?}");
    assert!(
        gone.err.contains("no-such-record was not there"),
        "{gone:?}"
    );
    prints(&run(&["rm", "--force", "$STORE", "no-such-record"]), "");
    prints(
        &run(&["ls", "$STORE", "--json"]),
        "{\"key\":\"INPUT\",\"size\":8}\n",
    );
}

#[test]
fn patterns_select_keys_and_nothing_is_claimed_of_what_is_not_there() {
    let (server, user) = (TestServer::start(), User::new());
    for key in ["img-1.png", "img-2.png", "page.html"] {
        server.put_text(key, key);
    }
    let run = |args: &[&str]| kvfs(&server, &user, args);
    prints(&run(&["ls", "$STORE", "img-*"]), "img-1.png\nimg-2.png\n");
    prints(
        &run(&["ls", "$STORE", "{page,img-2}*", "--limit", "1"]),
        "img-2.png\n",
    );
    prints(&run(&["cat", "$STORE", "page.*"]), "page.html");
    run(&["ls", "$STORE", "none*"]).fails(4, &["no key of", "'none*'"]);
    run(&["cat", "$STORE", "none*"]).fails(4, &["'none*'"]);
    let gone = run(&["rm", "$STORE", "nope*"]);
    assert_eq!(gone.code, 4, "{gone:?}");
    assert!(!gone.err.contains("deleted"), "{gone:?}");
    prints(
        &run(&["rm", "--dry-run", "$STORE", "img-*"]),
        "would delete img-1.png\nwould delete img-2.png\n",
    );
    prints(&run(&["rm", "-q", "$STORE", "--prefix", "img-"]), "");
    prints(&run(&["ls", "$STORE"]), "page.html\n");
}

/// The platform takes no notice of conditions.
#[test]
fn conditions_of_put_hold_on_servers_that_ignore_them() {
    for platform in [None, Some(kvfs::server::Platform::default())] {
        let is_platform = platform.is_some();
        let (server, user) = (
            TestServer::start_with(|config| config.platform = platform),
            User::new(),
        );
        let put = |condition: &[&str], key: &str| {
            let args: Vec<&str> = ["put", "$STORE", key]
                .iter()
                .chain(condition)
                .copied()
                .collect();
            kvfs_with(&server, &user, &args, b"new")
        };
        server.put_text("a", "old");
        put(&["--if-absent"], "a").fails(6, &["a is not stored", "the record exists already"]);
        assert_eq!(put(&["--if-absent"], "b").code, 0);
        match is_platform {
            true => put(&["--if-match", "\"x\""], "a").fails(2, &["tells no versions"]),
            false => put(&["--if-match", "\"x\""], "a").fails(6, &["it has changed"]),
        }
        put(&["--if-match", "*"], "no-such-record").fails(6, &["it has changed"]);
        let run = |args: &[&str]| kvfs(&server, &user, args);
        prints(&run(&["cat", "$STORE", "a", "b"]), "oldnew");
        assert_eq!(put(&["--if-match", "*"], "b").code, 0);
    }
}

#[test]
fn records_of_local_folders_are_stored_and_deleted_too() {
    let (server, user) = (TestServer::start(), User::new());
    std::fs::create_dir(user.path("folder")).expect("a folder");
    std::fs::write(user.path("folder/old.txt"), "old").expect("a file");
    let stored = kvfs_with(&server, &user, &["put", "./folder", "new", "--json"], b"{}");
    assert_eq!(stored.code, 0, "{stored:?}");
    let facts: serde_json::Value = serde_json::from_str(&stored.out).expect("JSON");
    assert_eq!(facts["content_type"], "application/json; charset=utf-8");
    let run = |args: &[&str]| kvfs(&server, &user, args);
    prints(&run(&["cat", "./folder", "new"]), "{}");
    prints(&run(&["rm", "-q", "./folder", "old"]), "");
    assert!(!user.path("folder/old.txt").exists());
    prints(&run(&["ls", "./folder"]), "new\n");
}

#[test]
fn folders_of_several_stores_are_refused_with_their_names() {
    let (server, user) = (TestServer::start(), User::new());
    for store in ["shop", "s2"] {
        let folder = user.path("storage/key_value_stores").join(store);
        std::fs::create_dir_all(&folder).expect("a folder");
        std::fs::write(folder.join("INPUT.json"), "{}").expect("a file");
    }
    let run = |args: &[&str]| kvfs(&server, &user, args);
    for folder in ["./storage", "./storage/", "storage/key_value_stores"] {
        for args in [
            &["ls", folder][..],
            &["cat", folder, "INPUT"],
            &["mount", folder, "mnt"],
        ] {
            run(args).fails(1, &["s2, shop", "name one of them"]);
        }
    }
    prints(&run(&["ls", "storage/key_value_stores/shop"]), "INPUT\n");
}

#[test]
fn keys_and_bytes_that_cannot_be_are_told_what_is_wrong_with_them() {
    let (server, user) = (TestServer::start(), User::new());
    let run = |args: &[&str], input: &[u8]| kvfs_with(&server, &user, args, input);
    let odd = run(&["put", "$STORE", "a b"], b"x");
    assert!(odd.code == 1 && odd.err.contains("holds ' '"), "{odd:?}");
    let long = run(&["put", "$STORE", &"x".repeat(257)], b"x");
    assert!(long.code == 1 && long.err.contains("257"), "{long:?}");
    run(
        &["put", "$STORE", "a", "--content-encoding", "gzip"],
        b"plain",
    )
    .fails(2, &["gzip"]);
    let mut refused = user.kvfs();
    refused.args(["ls", "~s"]).env("APIFY_TOKEN", "tökén");
    ran(refused.output().expect("kvfs runs")).fails(2, &["APIFY_TOKEN cannot be a token"]);
}

#[test]
fn records_are_printed_decoded_or_as_stored() {
    let (server, user) = (TestServer::start(), User::new());
    let text = "brotli ".repeat(1000);
    let stored = server.put_encoded("a", "text/plain", Encoding::Brotli, text.as_bytes());
    prints(&kvfs(&server, &user, &["cat", "$STORE", "a"]), &text);
    let raw = user
        .kvfs()
        .args(["cat", "--raw", &server.store_url(), "a"])
        .env("APIFY_TOKEN", TOKEN)
        .env("APIFY_CLIENT_BASE_URL", server.url())
        .output()
        .expect("kvfs runs");
    assert_eq!(raw.stdout, stored);
}

#[test]
fn exit_codes_tell_what_is_missing() {
    let (server, user) = (TestServer::start(), User::new());
    server.put_text("a", "old");
    let run = |args: &[&str]| kvfs(&server, &user, args);
    run(&["cat", "$STORE", "nothing"]).fails(4, &["nothing"]);
    run(&["info", "$STORE", "nothing"]).fails(4, &["nothing"]);
    run(&["ls", "~no-such-store"]).fails(4, &["hint"]);
    run(&["cat", "$STORE", ""]).fails(2, &["key"]);
    let denied = user
        .kvfs()
        .args(["ls", &server.store_url()])
        .env("APIFY_CLIENT_BASE_URL", server.url())
        .env("APIFY_TOKEN", "wrong")
        .output();
    ran(denied.expect("kvfs runs")).fails(5, &["token"]);
    for condition in [&["--if-absent"][..], &["--if-match", "\"other\""]] {
        let args = [&["put", "$STORE", "a"], condition].concat();
        kvfs_with(&server, &user, &args, b"new").fails(6, &["not stored"]);
    }
    prints(&run(&["cat", "$STORE", "a"]), "old");
}

#[test]
fn a_record_again_costs_a_conditional_request() {
    let (server, user) = (TestServer::start(), User::new());
    let content = "x".repeat(300_000);
    server.put_text("big", &content);
    prints(&kvfs(&server, &user, &["cat", "$STORE", "big"]), &content);
    let sent = server.counts().bytes_sent;
    prints(&kvfs(&server, &user, &["cat", "$STORE", "big"]), &content);
    assert!(server.counts().bytes_sent - sent < 100_000, "fetched again");
}

#[test]
fn a_shared_link_opens_the_store_without_a_token() {
    let (server, user) = (TestServer::start(), User::new());
    server.put_text("a", "shared");
    let run = |args: &[&str]| kvfs(&server, &user, args);
    let without_token = |args: &[&str]| ran(user.kvfs().args(args).output().expect("kvfs runs"));

    let shared = run(&["share", "$STORE", "--expires", "1h"]);
    assert_eq!(shared.code, 0, "{shared:?}");
    let link = shared.out.trim();
    assert!(shared.err.contains("kvfs mount 'http"), "{shared:?}");
    prints(&without_token(&["cat", link, "a"]), "shared");

    let shared = run(&["share", "$STORE", "a", "--json"]);
    let facts: serde_json::Value = serde_json::from_str(&shared.out).expect("JSON");
    let link = facts["url"].as_str().expect("a link");
    prints(&without_token(&["cat", link, "a"]), "shared");
    without_token(&["put", link, "a"]).fails(1, &["cannot store"]);

    assert!(run(&["share", "$STORE", "--qr"]).out.contains('█'));
    run(&["share", "$STORE", "nothing"]).fails(4, &["cannot share"]);
    run(&["share", "$STORE", "a", "--expires", "1h"]).fails(2, &["cannot expire"]);
}

#[test]
fn completions_and_manual_pages_know_the_commands() {
    let user = User::new();
    for shell in ["bash", "zsh", "fish"] {
        let script = ran(user
            .kvfs()
            .args(["completions", shell])
            .output()
            .expect("kvfs"));
        assert!(script.out.contains("exact-sizes"), "{shell}");
    }
    prints(
        &ran(user
            .kvfs()
            .args(["man", "pages", "-q"])
            .output()
            .expect("kvfs")),
        "",
    );
    let page = std::fs::read_to_string(user.path("pages/kvfs-mount.1")).expect("a page");
    assert!(page.contains("exact\\-sizes"));
}

#[test]
fn printing_and_listing_ask_one_question_and_explain_a_missing_store_afterwards() {
    let there = |path: &str| path.contains("/WkzbQMuFYuamGv3YF");
    let server = ScriptedServer::start(move |seen, _| match seen.path() {
        path if !there(path) => {
            Answer::error(404, "record-not-found", "Key-value Store was not found")
        }
        path if path.ends_with("/keys") => Answer::new(
            200,
            r#"{"data":{"items":[{"key":"a","size":5}],"isTruncated":false}}"#,
        ),
        path if path.ends_with("/records/a") => Answer::new(200, "hello"),
        _ => Answer::error(404, "record-not-found", "Record was not found"),
    });
    let user = User::new();
    let run = |args: &[&str]| {
        let (ran, cost) = server.cost_of(|| {
            let mut command = user.kvfs();
            command.args(args).env("APIFY_TOKEN", TOKEN);
            command.env("APIFY_CLIENT_BASE_URL", server.url());
            ran(command.output().expect("kvfs runs"))
        });
        (ran, cost)
    };
    let one = Cost {
        connections: 1,
        rounds: 1,
        requests: 1,
    };
    let store = "WkzbQMuFYuamGv3YF";
    for (args, printed) in [
        (["cat", store, "a"].as_slice(), "hello"),
        (&["ls", store], "a\n"),
    ] {
        let (ran, cost) = run(args);
        prints(&ran, printed);
        assert_eq!(cost, one, "{args:?}");
    }
    let (missing, cost) = run(&["cat", store, "none"]);
    assert_eq!((missing.code, cost), (4, one), "{missing:?}");
    for args in [["cat", "~typo", "a"].as_slice(), &["ls", "~typo"]] {
        let (ran, cost) = run(args);
        assert_eq!((ran.code, cost), (4, one), "{ran:?}");
        assert!(ran.err.contains("check user and name"), "{ran:?}");
    }
    // What is to be deleted is asked for first, so that nothing is claimed.
    let (ran, cost) = run(&["rm", "~typo", "a"]);
    assert_eq!((ran.code, cost.requests), (4, 2), "{ran:?}");
    assert!(ran.err.contains("check user and name"), "{ran:?}");
}

#[test]
fn a_record_is_followed_as_it_grows_and_when_it_is_replaced() {
    let (server, user) = (TestServer::start(), User::new());
    server.put_text("LOG", "one\n");
    let mut child = user
        .kvfs()
        .args([
            "cat",
            "--follow",
            "--interval",
            "100ms",
            &format!("~{STORE}"),
            "LOG",
        ])
        .env("APIFY_TOKEN", TOKEN)
        .env("APIFY_CLIENT_BASE_URL", server.url())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("kvfs runs");
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(
        child.stdout.take().expect("a pipe"),
    ));
    let mut next = || lines.next().expect("a line").expect("text");
    assert_eq!(next(), "one");
    server.put_text("LOG", "one\ntwo\n");
    assert_eq!(next(), "two");
    server.put_text("LOG", "other\n");
    assert_eq!(next(), "other");
    child.kill().expect("it runs");
    child.wait().expect("it ends");
    let two = kvfs(&server, &user, &["cat", "--follow", "$STORE", "LOG", "LOG"]);
    assert_eq!(two.code, 2, "{two:?}");
}
