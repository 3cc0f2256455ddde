//! Tokens and signatures over connections that are not encrypted.
//!
//! `0.0.0.0` stands for a machine elsewhere: it is no address of this one, and yet leads to it.

use std::sync::Arc;

use kvfs::apify::http::HttpOptions;
use kvfs::apify::plain::PlainHttp;
use kvfs::base::redact::Secret;
use kvfs::mount::open::{OpenConfig, TokenSource, open_with};
use kvfs::store::{ErrorKind, GetOutcome, Store, StoreError};

use crate::cli::{Ran, User, ran};
use crate::support::mounted::{
    SCRIPTED_ID, open_config, quick_retries, scripted, scripted_keys, scripted_path,
};
use crate::support::scripted::{Answer, ScriptedServer};
use crate::support::served::{STORE, TOKEN, TestServer, key, soon};

/// Returns the address of a server on this machine as one that could be anywhere.
fn elsewhere(url: &str) -> String {
    url.replace("127.0.0.1", "0.0.0.0")
}

fn open(url: &str, plain_http: PlainHttp) -> Result<Arc<dyn Store>, StoreError> {
    let config = OpenConfig {
        api_url: Some(url.parse().expect("a URL")),
        token: TokenSource::Environment(Secret::new(TOKEN)),
        plain_http,
        ..open_config(SCRIPTED_ID.parse().expect("an id"))
    };
    let options = HttpOptions {
        plain_http,
        ..quick_retries()
    };
    open_with(&config, options, Arc::default())
}

fn read(store: &dyn Store) -> Result<Vec<u8>, StoreError> {
    match store.get(&key("k"), &Default::default(), soon())? {
        GetOutcome::Found(mut found) => {
            let mut bytes = Vec::new();
            found.body.read_to_end(&mut bytes).expect("a body");
            Ok(bytes)
        }
        GetOutcome::NotModified => panic!("nobody asked"),
    }
}

#[track_caller]
fn is_refused(error: &StoreError) {
    let said = error.to_string();
    assert!(said.contains("--insecure-http"), "{said}");
    assert!(
        !format!("{said} {error:?}").contains("s3cret") && !said.contains('\n'),
        "{said}"
    );
}

#[test]
fn a_token_goes_to_another_machine_unencrypted_only_if_that_is_allowed() {
    let server = scripted(|_, _| Answer::new(200, "x"));
    let away = elsewhere(&server.url());
    let error = open(&away, PlainHttp::ThisMachine).expect_err("refused");
    assert_eq!(error.kind(), ErrorKind::Denied);
    is_refused(&error);
    assert!(server.seen().is_empty(), "something was sent");
    let store = open(&away, PlainHttp::Anywhere).expect("allowed");
    assert_eq!(read(&*store).expect("a record"), b"x");
    assert!(server.seen()[0].header("authorization").is_some());
}

#[test]
fn what_has_no_secret_may_travel_unencrypted() {
    let server = ScriptedServer::start(|_, _| Answer::new(404, "{}"));
    let config = OpenConfig {
        api_url: Some(elsewhere(&server.url()).parse().expect("a URL")),
        ..open_config(SCRIPTED_ID.parse().expect("an id"))
    };
    let error = open_with(&config, quick_retries(), Arc::default()).expect_err("no store");
    assert_eq!(error.kind(), ErrorKind::StoreNotFound);
    assert_eq!(server.seen().len(), 1);
}

#[test]
fn links_with_signatures_are_not_followed_to_another_machine_unencrypted() {
    for tail in ["keys?signature=s3cret", "records/k?signature=s3cret"] {
        let server = scripted(|_, _| scripted_keys(&[("k", 1)]));
        let base = elsewhere(&server.url());
        let link = format!("{base}v2/key-value-stores/{SCRIPTED_ID}/{tail}");
        let config = open_config(link.parse().expect("a reference"));
        let error = open_with(&config, quick_retries(), Arc::default()).expect_err(tail);
        is_refused(&error);
        assert!(server.seen().is_empty(), "something was sent: {tail}");
    }
}

#[test]
fn a_redirect_takes_no_signature_to_another_machine_unencrypted() {
    for (query, plain, followed) in [
        ("?X-Amz-Signature=s3cret", PlainHttp::ThisMachine, false),
        ("?X-Amz-Signature=s3cret", PlainHttp::Anywhere, true),
        ("?part=1", PlainHttp::ThisMachine, true),
    ] {
        let there = ScriptedServer::start(|_, _| Answer::new(200, "there"));
        let to = elsewhere(&there.url()) + "bucket/k" + query;
        let server = scripted(move |seen, _| {
            assert_eq!(seen.path(), scripted_path("k"));
            Answer::new(302, "").header("location", &to)
        });
        let store = open(&server.url(), plain).expect("a store");
        match read(&*store) {
            Ok(bytes) => assert!(followed && bytes == b"there", "{query}"),
            Err(error) => {
                assert!(!followed, "{query}: {error}");
                is_refused(&error);
            }
        }
        assert_eq!(there.seen().len(), usize::from(followed), "{query}");
        assert!(
            there
                .seen()
                .iter()
                .all(|seen| seen.header("authorization").is_none())
        );
    }
}

fn kvfs(user: &User, variables: &[(&str, &str)], args: &[&str]) -> Ran {
    let mut command = user.kvfs();
    command
        .args(args)
        .env("APIFY_TOKEN", TOKEN)
        .envs(variables.iter().copied());
    ran(command.output().expect("kvfs runs"))
}

#[test]
fn every_command_that_talks_to_a_server_refuses_by_name_of_the_option_and_heeds_it() {
    let (server, user) = (TestServer::start(), User::new());
    server.put_text("a", "text");
    let store = format!("~{STORE}");
    let away = elsewhere(&server.url());
    let requests = || {
        let counts = server.counts();
        counts.list + counts.get + counts.head + counts.put + counts.delete + counts.other
    };
    let commands: [&[&str]; 8] = [
        &["ls", &store],
        &["cat", &store, "a"],
        &["put", &store, "b"],
        &["rm", &store, "b"],
        &["info", &store],
        &["share", &store],
        &["mount", &store, "mnt"],
        &["mount", "-f", &store, "mnt"],
    ];
    for command in commands {
        for (given, variables) in [
            (&[][..], &[("APIFY_CLIENT_BASE_URL", away.as_str())][..]),
            (&["--api-url", &away], &[]),
            (
                &["--insecure-http=false", "--api-url", &away],
                &[("KVFS_INSECURE_HTTP", "1")],
            ),
        ] {
            let ran = kvfs(&user, variables, &[command, given].concat());
            ran.fails(2, &["--insecure-http", "0.0.0.0"]);
            let lines = ran.err.lines().filter(|line| line.contains("error: "));
            assert_eq!(lines.count(), 1, "{ran:?}");
        }
    }
    let doctor = kvfs(&user, &[], &["doctor", &store, "--api-url", &away]);
    assert_eq!(doctor.code, 3, "{doctor:?}");
    assert!(doctor.out.contains("--insecure-http"), "{doctor:?}");
    assert_eq!(requests(), 0, "something was sent");

    for command in &commands[..6] {
        for (given, variables) in [
            (&["--insecure-http"][..], &[][..]),
            (&[], &[("KVFS_INSECURE_HTTP", "1")]),
        ] {
            let args = [command, &["--api-url", &away][..], given].concat();
            let ran = kvfs(&user, variables, &args);
            // Nothing was there to be removed the second time.
            assert!(ran.code == 0 || command[0] == "rm", "{ran:?}");
            assert!(
                ran.err.contains("the connection is not encrypted"),
                "{ran:?}"
            );
        }
    }
    let args = ["doctor", &store, "--api-url", &away, "--insecure-http"];
    let doctor = kvfs(&user, &[], &args);
    assert!(doctor.out.contains("is there"), "{doctor:?}");
}

#[test]
fn a_proxy_is_never_asked_for_what_is_on_this_machine() {
    let here = ScriptedServer::start(|_, _| Answer::new(200, "here"));
    let link = here.url() + "bucket/k?signature=s3cret";
    let proxy = ScriptedServer::start(move |_, _| Answer::new(302, "").header("location", &link));
    let user = User::new();
    let away = elsewhere(&here.url());
    let args = ["cat", SCRIPTED_ID, "k", "--insecure-http", "--api-url"];
    let ran = kvfs(
        &user,
        &[("HTTP_PROXY", &proxy.url()), ("http_proxy", &proxy.url())],
        &[&args[..], &[&away]].concat(),
    );
    assert_eq!((ran.code, ran.out.as_str()), (0, "here"), "{ran:?}");
    assert_eq!(here.seen().len(), 1);
    for seen in proxy.seen() {
        assert!(seen.target.starts_with("http://0.0.0.0:"), "{seen:?}");
        assert!(!seen.target.contains("s3cret"), "{seen:?}");
    }
}
