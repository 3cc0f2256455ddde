//! Where tokens go and where not, whatever redirects say.

use std::sync::Arc;

use kvfs::mount::open::{OpenConfig, TokenSource, open_with};
use kvfs::store::ErrorKind;

use super::{ID, Scripted, config, deadline, key, open, options, store_object};
use crate::support::scripted::{Answer, ScriptedServer};

#[test]
fn a_redirect_to_another_host_carries_no_token() {
    let elsewhere = ScriptedServer::queue([Answer::new(200, "moved")]);
    let there = format!("{}bucket/a?X-Amz-Signature=c2lnbmVk", elsewhere.url());
    let api = Scripted::queue([Answer::new(302, "").header("location", &there)]);
    assert_eq!(api.read("a").expect("a record"), b"moved");
    assert_eq!(api.seen()[0].header("authorization"), Some("Bearer s3cret"));
    let seen = &elsewhere.seen()[0];
    assert_eq!(seen.target, "/bucket/a?X-Amz-Signature=c2lnbmVk");
    assert_eq!(seen.header("authorization"), None);
    assert_eq!(seen.header("accept-encoding"), Some("gzip, br, deflate"));
}

#[test]
fn redirects_end() {
    for location in ["?again", "", "/v2/elsewhere"] {
        let location = location.to_owned();
        let api = Scripted::with(options(), move |_, _| {
            Answer::new(302, "").header("location", &location)
        });
        let error = api.get("a").expect_err("a loop");
        assert_eq!(error.kind(), ErrorKind::Protocol, "{error}");
        assert!(api.seen().len() <= 3);
    }
    let api = Scripted::with(options(), |_, count| {
        Answer::new(307, "").header("location", &format!("/{count}"))
    });
    assert_eq!(
        api.get("a").expect_err("endless").kind(),
        ErrorKind::Protocol
    );
    assert_eq!(api.seen().len(), 11);
    for location in ["ftp://h/", "http://", "file:///etc/passwd"] {
        let api = Scripted::queue([Answer::new(302, "").header("location", location)]);
        assert_eq!(
            api.get("a").expect_err(location).kind(),
            ErrorKind::Protocol
        );
    }
}

#[test]
fn a_token_file_is_read_again_when_it_changes() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("token");
    std::fs::write(&path, " first \n").expect("written");
    let server = ScriptedServer::start(|_, count| match count {
        0 => store_object(),
        _ => Answer::new(200, "x"),
    });
    let config = OpenConfig {
        token: TokenSource::File(path.clone()),
        ..config(ID, &server)
    };
    let store = open_with(&config, options(), Arc::default()).expect("a store");
    std::fs::write(&path, "second\n").expect("written");
    store.head(&key("a"), deadline()).expect("a record");
    let tokens: Vec<_> = server
        .seen()
        .iter()
        .map(|seen| seen.header("authorization").map(str::to_owned))
        .collect();
    assert_eq!(
        tokens,
        [Some("Bearer first".into()), Some("Bearer second".into())]
    );
}

#[test]
fn a_url_of_another_server_gets_no_token() {
    let api = ScriptedServer::queue([]);
    let other = ScriptedServer::queue([store_object()]);
    let reference = format!("{}v2/key-value-stores/{ID}", other.url());
    open(&config(&reference, &api)).expect("a store");
    assert_eq!(other.seen()[0].header("authorization"), None);
    assert!(api.seen().is_empty());
}

#[test]
fn a_missing_token_file_says_what_to_do() {
    let server = ScriptedServer::queue([]);
    for token in [
        TokenSource::File("/nonexistent/token".into()),
        TokenSource::CliLogin("/nonexistent/auth.json".into()),
    ] {
        let config = OpenConfig {
            token,
            ..config(ID, &server)
        };
        let error = open(&config).expect_err("no token");
        assert_eq!(error.kind(), ErrorKind::Denied);
        assert!(
            error
                .hint()
                .is_some_and(|hint| hint.contains("--token-file")),
            "{error}"
        );
    }
}
