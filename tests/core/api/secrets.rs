//! Where tokens go and where not, whatever redirects say.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use kvfs::base::redact::Secret;
use kvfs::mount::open::{OpenConfig, TokenSource, open_with};
use kvfs::store::pager::Pager;
use kvfs::store::{ErrorKind, GetRequest, ListQuery};

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

/// A token that no pattern knows, and no other test.
const QUOTED: &str = "Quoted-0f.Servers_7dJk29xTq+Wm";

/// Opens a store whose server quotes the token that it was sent, and returns what is said of it.
fn quoted(answer: impl Fn(&str) -> Answer + Send + Sync + 'static) -> String {
    let server = ScriptedServer::start(move |_, count| match count {
        0 => store_object(),
        _ => answer(QUOTED),
    });
    let config = OpenConfig {
        token: TokenSource::Environment(Secret::new(QUOTED)),
        ..config(ID, &server)
    };
    let store = open_with(&config, options(), Arc::default()).expect("a store");
    let error = store
        .get(&key("a"), &GetRequest::default(), deadline())
        .expect_err("refused");
    format!("{error} {error:?} {:?}", error.hint())
}

#[test]
fn what_a_server_quotes_of_the_token_is_shown_nowhere() {
    let split = |by: &str| {
        let chars: Vec<String> = QUOTED.chars().map(String::from).collect();
        chars.join(by)
    };
    for disguised in [
        QUOTED.to_owned(),
        split("\n"),
        split("\u{1b}"),
        split("\u{200b}"),
        split("\u{200d}"),
        QUOTED.replace('+', "%2B"),
        STANDARD.encode(format!("user:{QUOTED}")),
        format!("{}{QUOTED}", "x".repeat(289)),
        format!("{}{QUOTED}", "\u{200b}".repeat(400)),
    ] {
        for status in [400, 403, 404, 500] {
            for in_type in [false, true] {
                let text = disguised.clone();
                let said = quoted(move |_| match in_type {
                    true => Answer::error(status, &text, "no"),
                    false => Answer::error(status, "no", &text),
                });
                let letters = |text: &str| -> String {
                    text.chars().filter(char::is_ascii_alphanumeric).collect()
                };
                for hidden in [QUOTED, &STANDARD.encode(QUOTED)[..8], &*disguised] {
                    // Not even its beginning.
                    let start: String = letters(hidden).chars().take(8).collect();
                    assert!(
                        start == "xxxxxxxx" || !letters(&said).contains(&start),
                        "{status} {disguised:?}: {said}"
                    );
                }
            }
        }
    }
}

#[test]
fn a_signature_that_a_server_quotes_is_shown_nowhere() {
    let keys = "MC4wLjRxdW90ZWRTaWduYXR1cmUwMTIz";
    let server = ScriptedServer::start(move |seen, _| {
        let (_, query) = seen.target.split_once('?').unwrap_or_default();
        Answer::error(
            403,
            query,
            &format!(
                "you sent {query}, that is {}",
                query.replace("signature=", "")
            ),
        )
    });
    for link in [
        format!(
            "{}v2/key-value-stores/{ID}/keys?signature={keys}",
            server.url()
        ),
        format!(
            "{}v2/key-value-stores/{ID}/records/k?signature=5bQ1quotedOfRecord9x",
            server.url()
        ),
    ] {
        let config = config(&link, &server);
        let error = open_with(&config, options(), Arc::default()).expect_err("refused");
        let said = format!("{error} {error:?}");
        assert!(said.contains("you sent"), "{said}");
        assert!(
            !said.contains(keys) && !said.contains("5bQ1quotedOfRecord9x"),
            "{said}"
        );
    }
}

#[test]
fn a_listing_whose_cursor_is_the_token_shows_none() {
    let answer = |token: &str| {
        let page = format!(
            r#"{{"data":{{"items":[{{"key":"a"}}],"isTruncated":true,"nextExclusiveStartKey":"{token}"}}}}"#
        );
        Answer::new(200, page)
    };
    let server = ScriptedServer::start(move |_, count| match count {
        0 => store_object(),
        _ => answer("0cursor.Quoted-0f.Servers_7dJk29xTq+Wm"),
    });
    let config = OpenConfig {
        token: TokenSource::Environment(Secret::new("0cursor.Quoted-0f.Servers_7dJk29xTq+Wm")),
        ..config(ID, &server)
    };
    let store = open_with(&config, options(), Arc::default()).expect("a store");
    let mut pager = Pager::new(ListQuery::default());
    let error = std::iter::from_fn(|| pager.next_page(&*store, deadline()).transpose())
        .find_map(Result::err)
        .expect("it does not advance");
    assert!(!error.to_string().contains("Servers_7d"), "{error}");
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
