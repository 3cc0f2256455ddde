//! A store whose names and a server whose messages mean no good: nothing of them reaches a terminal
//! or a log raw, in any command.

use std::fs;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::{Value, json};

use super::daemon::User;
use crate::support::mounted::Running;
use crate::support::scripted::{Answer, ScriptedServer, Seen};

/// What gives orders to a terminal, forges a line, and turns the direction of writing.
const HOSTILE: &str = "\x1b]0;PWNED\x07\x1b[31mred\u{9b}31m\nERROR forged line\r\u{202e}txt";

/// Characters that do something instead of being shown, line breaks aside.
fn is_raw(c: char) -> bool {
    (c.is_control() && c != '\n' && c != '\t')
        || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{200e}' | '\u{200f}')
}

#[track_caller]
fn is_clean(what: &str, text: &str) {
    assert!(!text.contains(is_raw), "{what}: {text:?}");
    let forged = text.lines().any(|line| line.starts_with("ERROR forged"));
    assert!(!forged, "{what}: {text}");
}

fn object() -> Value {
    let time = "2026-01-01T00:00:00.000Z";
    json!({ "data": {
        "id": "AAAAAAAAAAAAAAAAA", "name": format!("store {HOSTILE}"), "title": HOSTILE,
        "username": HOSTILE, "userId": "AAAAAAAAAAAAAAAAA", "profile": { "name": HOSTILE },
        "createdAt": time, "modifiedAt": time, "accessedAt": time,
        "urlSigningSecretKey": "a-key", "status": HOSTILE, "defaultKeyValueStoreId": "AAAAAAAAAAAAAAAAA",
    } })
}

/// Records are there, broken, forbidden, or named as no honest ones.
fn answer(seen: &Seen) -> Answer {
    let path = seen.path().to_owned();
    let parts: Vec<&str> = path.split('/').collect();
    let api_error = |status| Answer::error(status, HOSTILE, HOSTILE);
    match parts[..] {
        [_, "v2", "users", ..] | [_, "v2", "key-value-stores", _] => {
            Answer::new(200, object().to_string()).header("content-type", "application/json")
        }
        [_, "v2", "key-value-stores"] if seen.method == "GET" => {
            let mut named = object()["data"].clone();
            named["stats"] = json!({ "storageBytes": 7, "text": HOSTILE });
            let unnamed = json!({
                "id": format!("id {HOSTILE}"), "createdAt": HOSTILE, "modifiedAt": HOSTILE,
                "accessedAt": HOSTILE, "generalAccess": HOSTILE, "actRunId": HOSTILE,
            });
            let page = json!({ "data": {
                "items": [named, unnamed], "count": 2, "total": 2, "offset": 0, "limit": 1000, "desc": false,
            } });
            Answer::new(200, page.to_string()).header("content-type", "application/json")
        }
        [_, "v2", "key-value-stores", _, "keys"] => {
            let mut keys = vec!["ok".to_owned(), "broken".to_owned(), "gone".to_owned()];
            keys.extend(["a", "b"].map(|name| format!("{name}{HOSTILE}")));
            keys.sort();
            let items: Vec<Value> = keys
                .iter()
                .map(|key| json!({ "key": key, "size": 3 }))
                .collect();
            let page = json!({ "data": {
                "items": items, "count": items.len(), "limit": 1000, "isTruncated": false,
                "exclusiveStartKey": null, "nextExclusiveStartKey": null,
            } });
            Answer::new(200, page.to_string()).header("content-type", "application/json")
        }
        [_, "v2", "key-value-stores", _, "records", "ok"] if seen.method != "DELETE" => {
            Answer::new(200, "ok\n").header("content-type", "text/plain\u{9b}31m")
        }
        [_, "v2", "key-value-stores", _, "records", "broken"] => Answer::new(200, "no br")
            .header("content-type", "text/plain")
            .header("content-encoding", "br"),
        _ => api_error(403),
    }
}

/// How often the record `growing` is another one before it is forbidden.
const GROWS: usize = 4;

fn server() -> ScriptedServer {
    let asked = AtomicUsize::new(0);
    ScriptedServer::start(move |seen, _| {
        if !seen.path().ends_with("/records/growing") {
            return answer(seen);
        }
        match asked.fetch_add(1, Ordering::Relaxed) {
            n if n < GROWS => {
                Answer::new(200, format!("{n}\n")).header("content-type", "text/plain")
            }
            _ => Answer::error(403, HOSTILE, HOSTILE),
        }
    })
}

/// Runs a command and returns all it says.
fn said(user: &User, server: &ScriptedServer, args: &[&str]) -> String {
    let mut command: Command = user.command(args);
    command.env("APIFY_CLIENT_BASE_URL", server.url());
    let output = Running::start(&mut command).wait(Duration::from_secs(60));
    String::from_utf8_lossy(&output.stdout).into_owned() + &output.stderr
}

/// The commands of the program, as its help lists them.
fn commands(user: &User) -> Vec<String> {
    let help = user.works(&["--help"]);
    let listed = help.split("Commands:").nth(1).expect("commands");
    let listed = listed.split("\n\n").next().expect("commands");
    let names = listed
        .lines()
        .filter(|line| line.starts_with("  ") && !line.starts_with("   "));
    names
        .filter_map(|line| line.split_whitespace().next())
        .map(str::to_owned)
        .collect()
}

#[test]
fn nothing_foreign_reaches_a_terminal_or_a_log_raw_in_any_command() {
    let user = User::new();
    let server = server();
    let hostile = format!("a{HOSTILE}");
    let mnt = user.path("mnt");
    let mnt = mnt.to_str().expect("text");
    let log = user.path("a.log");
    let log = log.to_str().expect("text");
    let bundle = user.path("bundle");
    let bundle = bundle.to_str().expect("text");
    fs::write(user.path("file"), "x").expect("a file");
    // A folder whose sidecars hold what they like.
    let folder = user.path("store");
    let sidecar = json!({ "key": "evil", "contentType": format!("text/plain{HOSTILE}") });
    fs::write(folder.join("evil.__metadata__.json"), sidecar.to_string()).expect("a file");
    fs::write(folder.join("evil"), "x").expect("a file");
    // Names of files and folders, as far as there can be such.
    let named = user.path("named");
    let odd = HOSTILE.replace('/', "");
    fs::create_dir_all(named.join("key_value_stores").join(&odd)).expect("a folder");
    let inner = named.join("key_value_stores").join(&odd);
    fs::write(inner.join(&odd), "x").expect("a file");
    let inner = inner.to_str().expect("text");
    let mut seen = Vec::new();
    let mut run = |args: &[&str]| {
        seen.push(args[0].to_owned());
        let text = said(&user, &server, args);
        is_clean(&args.join(" "), &text);
        text
    };
    run(&[
        "mount",
        "-v",
        "--rw",
        "--deadline",
        "5s",
        "--log-file",
        log,
        "~s",
        mnt,
    ]);
    for args in [
        &["ls", "~s"][..],
        &["ls", "-l", "~s"],
        &["ls", "--json", "~s"],
        &["ls", "-l", "store"],
        &["ls", "-l", "--json", "store"],
        &["info", "~s"],
        &["info", "--json", "~s"],
        &["info", "~s", "ok"],
        &["info", "store", "evil"],
        &["cat", "~s", &hostile],
        &["cat", "~s", "broken"],
        &["put", "~s", &hostile, "file"],
        &["rm", "~s", &hostile],
        &["share", "~s"],
        &["share", "--json", "~s", &hostile],
        &["share", mnt],
        &["doctor", "~s"],
        &["doctor", "--json", "~s"],
        &["doctor", "--bundle", bundle],
        &["config", "~s"],
        &["config", "--json"],
        &["serve", "--read-only", "file"],
        &["copy", "~s", "copied"],
        &["copy", "--json", "~s", "copied"],
        &["copy", "--verify", "--checksum", "--delete", "~s", "copied"],
        &["copy", "--dry-run", "--delete", "~s", "copied"],
        &["cat", "--follow", "--interval", "50ms", "~s", &hostile],
        &["diff", "~s", "store"],
        &["diff", "--json", "~s", "store"],
        &["diff", "--content", "~s", "copied"],
        &["diff", "--content", "--json", "~s", "copied"],
        &["stores"],
        &["stores", "--json"],
        &["stores", "--unnamed"],
        &["stores", "--json", "--unnamed", "--count"],
        &["stores", "create", "new"],
        &["stores", "remove", "--yes", "~s"],
        &["stores", "named"],
        &["stores", "--json", "named"],
        &["ls", "-l", inner],
        &["ls", "--json", inner],
        &["ls", "-l", "named"],
        &["info", inner],
        &["cat", inner, &odd],
        &["diff", inner, "store"],
        &["diff", "--json", "store", inner],
        &["copy", inner, "copied-too"],
        &["copy", "--json", inner, "copied-three"],
        &["copy", "store", "~s"],
        &["doctor", inner],
        &["mount", inner, "nowhere"],
        &["help"],
        &["demo", "--help"],
        &["completions", "bash"],
        &["man", "pages"],
        &["cache", "info"],
        &["cache", "info", "--json"],
        &["cache", "clear"],
    ] {
        run(args);
    }
    let followed = run(&["cat", "--follow", "--interval", "50ms", "~s", "growing"]);
    assert!(
        followed.contains("was replaced") && followed.contains("red"),
        "{followed}"
    );
    is_clean("bundle", &fs::read_to_string(bundle).expect("a report"));
    // What programs do in the mount while it is watched.
    let mut traces: Vec<Running> = [
        &["trace", "--for", "4s", mnt][..],
        &["trace", "--for", "4s", "--json", mnt],
        &["trace", "--for", "4s", "--summary", mnt],
    ]
    .iter()
    .map(|args| Running::start(&mut user.command(args)))
    .collect();
    for _ in 0..20 {
        for entry in fs::read_dir(mnt).expect("a listing").flatten() {
            let _ = fs::read(entry.path());
        }
        let _ = fs::write(format!("{mnt}/new"), "x");
        let _ = fs::remove_file(format!("{mnt}/gone"));
        std::thread::sleep(Duration::from_millis(100));
    }
    for trace in traces.drain(..) {
        let output = trace.wait(Duration::from_secs(60));
        let text = String::from_utf8_lossy(&output.stdout).into_owned() + &output.stderr;
        is_clean("trace", &text);
    }
    for args in [
        &["trace", "--for", "1ms", mnt][..],
        &["status"],
        &["status", mnt],
        &["status", "--json", mnt],
        &["warm", mnt],
        &["warm", "--json", mnt],
        &["refresh", mnt],
        &["refresh", "--json", mnt, "ok"],
        &["sync", mnt],
        &["recover"],
        &["recover", "--json"],
        &["recover", "--upload"],
        &["recover", "--discard", "--all"],
        &["doctor", "--bundle", &format!("{bundle}2")],
        &["unmount", mnt],
    ] {
        run(args);
    }
    is_clean(
        "bundle",
        &fs::read_to_string(format!("{bundle}2")).expect("a report"),
    );
    let logged = fs::read_to_string(log).expect("a log");
    is_clean("log", &logged);
    assert!(
        logged.contains("red"),
        "nothing foreign was logged: {logged}"
    );
    for command in commands(&user) {
        assert!(seen.contains(&command), "kvfs {command} was not run");
    }
}

/// What of it no terminal may get: kvfs itself writes some sequences there, such as colours.
#[track_caller]
fn gives_no_orders(what: &str, text: &str) {
    let orders = ["\x1b]", "\x07", "\x1b[31mred", "\u{9b}", "\u{202e}"];
    for order in orders {
        assert!(!text.contains(order), "{what}: {text:?}");
    }
    let forged = |line: &str| line.trim_end().ends_with("ERROR forged line");
    let mut lines = text.split(['\n', '\r']);
    assert!(
        !lines.any(|line| forged(line) && line.starts_with("ERROR")),
        "{what}: {text:?}"
    );
}

#[test]
fn nothing_foreign_gives_orders_to_a_terminal() {
    let (user, server) = (User::new(), server());
    let mnt = user.path("mnt");
    let mnt = mnt.to_str().expect("text");
    let mut all = String::new();
    let mut run = |script: &str| {
        let kvfs = user.command(&[]);
        let mut command = Command::new("script");
        command.args(["-qec", script, "/dev/null"]).env_clear();
        for (name, value) in kvfs.get_envs() {
            command.envs(value.map(|value| (name, value)));
        }
        command
            .env("KVFS", env!("CARGO_BIN_EXE_kvfs"))
            .env("HOSTILE", format!("a{HOSTILE}"))
            .env("MNT", mnt)
            .env("TERM", "xterm")
            .env("SHELL", "/bin/sh")
            .env("APIFY_CLIENT_BASE_URL", server.url())
            .current_dir(user.path(""));
        let output = Running::start(&mut command).wait(Duration::from_secs(60));
        let text = String::from_utf8_lossy(&output.stdout).into_owned() + &output.stderr;
        gives_no_orders(script, &text);
        all.push_str(&text);
    };
    run(r#""$KVFS" mount --rw --deadline 5s --log-file log ~s "$MNT""#);
    for arguments in [
        "ls ~s",
        "ls -l ~s",
        "info ~s",
        r#"cat ~s "$HOSTILE""#,
        "cat ~s broken",
        "cat --follow --interval 50ms ~s growing",
        r#"put ~s "$HOSTILE" store/a"#,
        r#"rm ~s "$HOSTILE""#,
        "share ~s",
        "copy ~s copied",
        "copy store ~s",
        "diff ~s store",
        "diff --content ~s copied",
        "stores",
        "stores --unnamed --count",
        "stores create new",
        "stores remove ~s",
        "stores remove --yes ~s",
        "doctor ~s",
        r#"status "$MNT""#,
        r#"warm "$MNT""#,
        r#"refresh "$MNT""#,
        r#"sync "$MNT""#,
        "recover",
        r#"trace --for 100ms "$MNT""#,
        "cache info",
        r#"unmount "$MNT""#,
    ] {
        run(&format!(r#""$KVFS" {arguments}"#));
    }
    // Terminals were spoken to, and foreign text was among it.
    assert!(all.contains("red") && all.contains("PWNED"), "{all:?}");
}
