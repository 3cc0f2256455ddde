//! `kvfs doctor`: every kind of finding that can be provoked without a mount.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, SystemTime};

use serde_json::Value;

use crate::cli::{Ran, User, ran};
use crate::support::scripted::{Answer, ScriptedServer};
use crate::support::served::{STORE, TOKEN, TestServer};

fn doctor(user: &User, api: &str, variables: &[(&str, &str)], args: &[&str]) -> Ran {
    let mut command = user.kvfs();
    command
        .arg("doctor")
        .args(args)
        .env("APIFY_CLIENT_BASE_URL", api)
        .envs(variables.iter().copied());
    ran(command.output().expect("kvfs runs"))
}

/// Returns the findings as `check: state: message, fix`.
fn findings(ran: &Ran) -> Vec<String> {
    let report: Value =
        serde_json::from_str(&ran.out).unwrap_or_else(|error| panic!("{error}: {ran:?}"));
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let checks = report["checks"].as_array().expect("checks");
    checks
        .iter()
        .map(|check| {
            let [name, state, message, fix] =
                ["check", "state", "message", "fix"].map(|name| text(&check[name]));
            format!("{name}: {state}: {message}, {fix}")
        })
        .collect()
}

#[track_caller]
fn finds(findings: &[String], start: &str, texts: &[&str]) {
    let all = findings.join("\n");
    let found = findings.iter().find(|finding| finding.starts_with(start));
    let found = found.unwrap_or_else(|| panic!("no '{start}' in\n{all}"));
    for text in texts {
        assert!(found.contains(text), "no '{text}' in {found}");
    }
}

fn with_token(user: &User, server: &TestServer, args: &[&str]) -> (Ran, Vec<String>) {
    let args = [&["--json"], args].concat();
    let ran = doctor(user, &server.url(), &[("APIFY_TOKEN", TOKEN)], &args);
    let found = findings(&ran);
    (ran, found)
}

#[test]
fn what_the_platform_can_and_cannot_do_is_told() {
    let user = User::new();
    let server = TestServer::start_with(|config| {
        config.platform = Some(kvfs::server::Platform {
            lag: Duration::from_millis(1500),
            rested: Duration::from_secs(3600),
            ..Default::default()
        });
    });
    for n in 0..20 {
        server.put_text(&format!("record-{n:02}"), "some text");
    }
    let store = format!("~{STORE}");
    let (_, found) = with_token(&user, &server, &[&store, "--scratch-record"]);
    finds(
        &found,
        "protocol: ok",
        &["HTTP/1.1", "compressed (gzip)", "(304)", "200 listings"],
    );
    let lacks = [
        "no ETag",
        "modifiedAt",
        "no Range",
        "200 requests a second for records",
    ];
    finds(&found, "server: ok: has HEAD", &lacks);
    finds(
        &found,
        "changes: ok",
        &["it is believed", "it counts changes"],
    );
    finds(&found, "lag: ok", &["told of a change after"]);
    let left = server.server.requests();
    let deleted = left.iter().filter(|request| request.method == "DELETE");
    assert_eq!(deleted.count(), 1, "nothing is left of the trial");
}

#[test]
fn a_store_that_works_is_found_to_work() {
    let (server, user) = (TestServer::start(), User::new());
    server.put_text("a", "some text");
    let (ran, found) = with_token(&user, &server, &[&format!("~{STORE}")]);
    for check in [
        "version", "settings", "state", "cache", "api", "clock", "token", "store",
    ] {
        finds(&found, &format!("{check}: ok"), &[]);
    }
    finds(&found, "token: ok", &["APIFY_TOKEN", "of user local"]);
    finds(&found, "store: ok", &[&server.entry.id, STORE]);
    finds(&found, "permission: ok", &["writing and sharing"]);
    finds(
        &found,
        "server: ok",
        &["has ETag, conditional requests, HEAD, Range"],
    );
    assert!(!ran.out.contains(TOKEN), "{ran:?}");
    // Without --json the same, within 80 columns.
    let variables = [("APIFY_TOKEN", TOKEN), ("NO_COLOR", "1")];
    let shown = doctor(&user, &server.url(), &variables, &[]);
    let path = user.path("").display().to_string();
    for line in shown.out.lines().filter(|line| !line.contains(&path)) {
        assert!(line.chars().count() <= 80, "{line}");
    }
    assert!(shown.out.contains("ok       token"), "{shown:?}");
}

#[test]
fn tokens_and_permissions_are_told_apart() {
    let (server, user) = (TestServer::start(), User::new());
    let store = server.store_url();
    let wrong = [("APIFY_TOKEN", "wrong")];
    let ran = doctor(&user, &server.url(), &wrong, &["--json", &store]);
    assert_eq!(ran.code, 3, "{ran:?}");
    let found = findings(&ran);
    finds(
        &found,
        "token: failure",
        &["APIFY_TOKEN", "does not know", "Console"],
    );
    finds(&found, "store: failure", &["token"]);
    let ran = doctor(&user, &server.url(), &[], &["--json", &store]);
    let found = findings(&ran);
    finds(&found, "token: warning", &["there is none", "apify login"]);
    finds(&found, "store: failure", &["no token was sent"]);
    let (ran, found) = with_token(&user, &server, &["~no-such-store"]);
    assert_eq!(ran.code, 3);
    finds(&found, "store: failure", &["does not exist"]);
    let (_, found) = with_token(&user, &server, &["a b c"]);
    finds(&found, "store: failure", &["run:"]);

    let public = TestServer::public();
    public.put_text("a", "text");
    let ran = doctor(&user, &public.url(), &[], &["--json", &public.store_url()]);
    finds(
        &findings(&ran),
        "permission: ok",
        &["reading; the API does not"],
    );
}

#[test]
fn an_api_that_is_none_is_a_failure() {
    let user = User::new();
    let ran = doctor(&user, "http://127.0.0.1:9", &[], &["--json"]);
    assert_eq!(ran.code, 3, "{ran:?}");
    let found = findings(&ran);
    finds(
        &found,
        "api: failure",
        &["127.0.0.1:9", "refused", "firewall"],
    );
    assert!(!found.iter().any(|finding| finding.starts_with("token")));
    for answer in [
        Answer::new(200, "<html>welcome</html>"),
        Answer::new(503, "{}"),
        Answer::new(404, "{}"),
    ] {
        let server = ScriptedServer::queue([answer]);
        let ran = doctor(&user, &server.url(), &[], &["--json"]);
        finds(
            &findings(&ran),
            "api: failure",
            &["not as the API does", "--api-url"],
        );
    }
    // TLS with a server that does not speak it.
    let server = ScriptedServer::queue([]);
    let url = server.url().replace("http", "https");
    let ran = doctor(&user, &url, &[], &["--json"]);
    finds(&findings(&ran), "api: failure", &["https://127.0.0.1"]);
}

#[test]
fn clock_limit_and_a_token_that_may_not_say_whose_it_is_are_read_from_the_answer() {
    let user = User::new();
    let answer = |shift: i64| {
        let seconds = Duration::from_secs(shift.unsigned_abs());
        let now = SystemTime::now();
        let date = if shift < 0 {
            now - seconds
        } else {
            now + seconds
        };
        Answer::new(403, r#"{"error":{"type":"insufficient-permissions"}}"#)
            .header("date", &httpdate::fmt_http_date(date))
            .header("x-ratelimit-limit", "77")
    };
    for (shift, start, texts) in [
        (0, "clock: ok", &["agrees"][..]),
        (100, "clock: warning", &["behind", "timedatectl"]),
        (-4000, "clock: failure", &["ahead", "timedatectl"]),
    ] {
        let server = ScriptedServer::queue([answer(shift)]);
        let variables = [("APIFY_TOKEN", "s3cret")];
        let ran = doctor(&user, &server.url(), &variables, &["--json"]);
        let found = findings(&ran);
        finds(&found, start, texts);
        finds(&found, "token: ok", &["limited"]);
        finds(&found, "limit: ok", &["77"]);
        assert!(server.seen()[0].header("authorization").is_some());
        assert_eq!(server.seen().len(), 1);
        if start.contains("failure") {
            assert_eq!(ran.code, 3);
        }
    }
}

#[test]
fn a_server_that_can_little_is_described() {
    let user = User::new();
    let server = ScriptedServer::start(|seen, _| match (seen.method.as_str(), seen.path()) {
        ("GET", "/v2/users/me") => Answer::new(200, r#"{"data":{"id":"u","username":"me"}}"#),
        ("GET", "/v2/key-value-stores/abcdefghijklmnopq") => {
            Answer::new(200, r#"{"data":{"id":"abcdefghijklmnopq"}}"#)
        }
        ("GET", path) if path.ends_with("/keys") => Answer::new(
            200,
            r#"{"data":{"items":[{"key":"a","size":3}],"isTruncated":false,"limit":1,"count":1,
               "exclusiveStartKey":null,"nextExclusiveStartKey":null}}"#,
        ),
        ("GET", _) => Answer::new(200, "abc"),
        _ => Answer::new(405, ""),
    });
    let variables = [("APIFY_TOKEN", "s3cret")];
    let args = ["--json", "abcdefghijklmnopq"];
    let found = findings(&doctor(&user, &server.url(), &variables, &args));
    finds(&found, "token: ok", &["of user me (u)"]);
    finds(&found, "permission: ok", &["no sharing"]);
    let lacks = [
        "no ETag",
        "no HEAD",
        "no Range: large records are fetched whole",
    ];
    finds(&found, "server: ok", &lacks);
}

#[test]
fn faults_of_this_machine_are_found() {
    let (server, user) = (TestServer::start(), User::new());
    let config = user.path(".config/kvfs");
    fs::create_dir_all(&config).expect("a folder");
    fs::write(config.join("config.toml"), "[defaults]\ntll = '1m'\n").expect("a file");
    fs::write(user.path("cache"), "a file in the place of a folder").expect("a file");
    let staging = user.path("state/kvfs/staging");
    fs::create_dir_all(&staging).expect("a folder");
    fs::set_permissions(&staging, fs::Permissions::from_mode(0o755)).expect("a mode");
    let state = user.path("run/kvfs");
    fs::create_dir(&state).expect("a folder");
    fs::set_permissions(&state, fs::Permissions::from_mode(0o755)).expect("a mode");
    let (ran, found) = with_token(&user, &server, &[]);
    assert_eq!(ran.code, 3, "{ran:?}");
    finds(&found, "settings: failure", &["'tll'", "known are"]);
    finds(&found, "cache: warning", &["cannot be used", "--cache-dir"]);
    finds(&found, "staging: warning", &["open to other", "chmod 700"]);
    finds(
        &found,
        "state: failure",
        &["open to other users", "chmod 700"],
    );
    let args = ["--cache-size", "1EiB", "--cache-dir", "elsewhere"];
    finds(
        &with_token(&user, &server, &args).1,
        "cache: warning",
        &["free", "--cache-size"],
    );
}

#[test]
fn proxies_are_shown_without_their_passwords() {
    let (server, user) = (TestServer::start(), User::new());
    let variables = [
        ("HTTPS_PROXY", "http://me:s3cret@proxy:3128"),
        ("NO_PROXY", "localhost"),
    ];
    let ran = doctor(&user, &server.url(), &variables, &["--json"]);
    let found = findings(&ran);
    finds(
        &found,
        "proxy: ok",
        &["HTTPS_PROXY=http://proxy:3128", "NO_PROXY=localhost"],
    );
    assert!(!ran.out.contains("s3cret"), "{ran:?}");
}

#[test]
fn the_report_for_a_ticket_holds_no_secret() {
    let (server, user) = (TestServer::start(), User::new());
    server.put_text("a", "text");
    let logs = user.path("state/kvfs/logs");
    fs::create_dir_all(&logs).expect("a folder");
    let line = format!("GET http://h/keys?signature=s3cret&limit=1 with {TOKEN}\n");
    fs::write(logs.join("mnt.log"), line.repeat(1000)).expect("a log");
    let config = user.path(".config/kvfs/config.toml");
    fs::create_dir_all(config.parent().expect("a folder")).expect("a folder");
    fs::write(&config, "[defaults]\ntoken = 's3cret'\nttl = '7s'\n").expect("a file");
    fs::set_permissions(&config, fs::Permissions::from_mode(0o600)).expect("a mode");
    let report = user.path("report.txt").display().to_string();
    let (ran, _) = with_token(&user, &server, &["--bundle", &report]);
    assert!(ran.err.contains("read it before you send it"), "{ran:?}");
    let mode = fs::metadata(&report).expect("it").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let text = fs::read_to_string(&report).expect("a report");
    for expected in [
        "== system",
        "== findings",
        "== settings",
        "== mounts",
        "mnt.log",
        "signature=[redacted]&limit=1",
        env!("CARGO_PKG_VERSION"),
        "\"7s\"",
    ] {
        assert!(text.contains(expected), "no {expected} in {text}");
    }
    let home = user.path("").display().to_string();
    for secret in ["s3cret", TOKEN, home.trim_end_matches('/')] {
        assert!(!text.contains(secret), "{secret} in {text}");
    }
    assert!(text.len() < 20_000, "only the ends of logs");
    // What is there is not overwritten.
    let again = doctor(&user, &server.url(), &[], &["--bundle", &report]);
    assert_eq!(again.code, 1, "{again:?}");
}
