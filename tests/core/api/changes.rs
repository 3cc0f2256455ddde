//! Uploads and deletions.

use std::sync::Arc;

use kvfs::mount::account::open_account;
use kvfs::mount::open::open_with;
use kvfs::store::{ETag, Encoding, ErrorKind, PutRequest, Upload};

use super::{ID, Scripted, bytes, config, deadline, key, options};
use crate::support::scripted::{Answer, ScriptedServer};

#[test]
fn uploads_say_their_length_and_are_sent_again() {
    let api = Scripted::with(options(), |seen, count| match (&*seen.method, count % 2) {
        ("HEAD", _) => Answer::new(200, "").header("etag", "\"v1\""),
        (_, 1) => Answer::new(500, ""),
        _ => Answer::new(201, "{}").header("etag", "\"v2\""),
    });
    api.store.head(&key("a"), deadline()).expect("a head");
    let content = bytes(700_000);
    let mut file = tempfile::tempfile().expect("a file");
    std::io::Write::write_all(&mut file, &content).expect("written");
    let request = PutRequest {
        content_type: Some("image/png".into()),
        encoding: Encoding::Gzip,
        ..PutRequest::default()
    };
    for (body, expected) in [
        (Upload::Bytes(&content), &content[..]),
        (Upload::File(&file, 600_000), &content[..600_000]),
        (Upload::Bytes(b""), b""),
    ] {
        let before = api.seen().len();
        let meta = api
            .store
            .put(&key("a"), &request, body, deadline())
            .expect("stored");
        assert_eq!(meta.stored_size, Some(expected.len() as u64));
        assert_eq!(meta.etag, Some(ETag::new("\"v2\"")));
        assert_eq!(meta.content_type.as_deref(), Some("image/png"));
        let seen = api.seen().split_off(before);
        assert_eq!(seen.len(), 2);
        for seen in seen {
            assert_eq!(seen.target, format!("/v2/key-value-stores/{ID}/records/a"));
            assert_eq!(seen.header("content-type"), Some("image/png"));
            assert_eq!(seen.header("content-encoding"), Some("gzip"));
            let len = expected.len().to_string();
            assert_eq!(seen.header("content-length"), Some(&*len));
            assert!(seen.body == expected);
        }
    }
    assert!(api.metrics.snapshot().sent_bytes >= 2_600_000);
}

#[test]
fn a_stream_is_sent_once() {
    let content = bytes(600_000);
    for len in [None, Some(600_000)] {
        let api = Scripted::queue([Answer::new(500, ""), Answer::new(201, "{}")]);
        let mut stream = &content[..];
        let body = Upload::Stream(&mut stream, len);
        let put = PutRequest::default();
        let error = api
            .store
            .put(&key("a"), &put, body, deadline())
            .expect_err("an error");
        assert_eq!(error.kind(), ErrorKind::Server);
        assert_eq!(api.seen().len(), 1);
        assert!(api.seen()[0].body == content);
    }
    let api = Scripted::queue([Answer::new(201, "{}")]);
    let mut stream = &content[..1000];
    let body = Upload::Stream(&mut stream, Some(2000));
    let put = PutRequest::default();
    let error = api
        .store
        .put(&key("a"), &put, body, deadline())
        .expect_err("too short");
    assert_eq!(error.kind(), ErrorKind::Disk);
}

#[test]
fn a_conditional_put_is_not_repeated_when_it_may_have_worked() {
    let request = PutRequest {
        if_absent: true,
        ..PutRequest::default()
    };
    let put = |api: &Scripted| {
        api.store
            .put(&key("a"), &request, Upload::Bytes(b"x"), deadline())
    };
    let api = Scripted::queue([Answer::raw(""), Answer::new(412, "")]);
    assert_eq!(put(&api).expect_err("unknown").kind(), ErrorKind::Network);
    assert_eq!(api.seen()[0].header("if-none-match"), Some("*"));
    let api = Scripted::queue([Answer::new(429, ""), Answer::new(412, "")]);
    assert_eq!(put(&api).expect_err("exists").kind(), ErrorKind::Changed);
}

#[test]
fn deleting_what_is_not_there_succeeds() {
    let missing = |what: &str| Answer::error(404, "record-not-found", what);
    let api = Scripted::queue([
        Answer::new(204, ""),
        missing("Record was not found"),
        missing("Key-value Store was not found"),
    ]);
    api.store.delete(&key("a"), deadline()).expect("deleted");
    api.store.delete(&key("a"), deadline()).expect("absent");
    let error = api
        .store
        .delete(&key("a"), deadline())
        .expect_err("no store");
    assert_eq!(error.kind(), ErrorKind::StoreNotFound);
}

#[test]
fn a_change_is_redirected_only_within_the_server() {
    let elsewhere = ScriptedServer::queue([Answer::new(201, "{}")]);
    let there = elsewhere.url();
    let api = Scripted::queue([
        Answer::new(307, "").header("location", "/moved"),
        Answer::new(201, "{}"),
        Answer::new(302, "").header("location", "/moved"),
        Answer::new(307, "").header("location", &there),
    ]);
    let put = || {
        let body = Upload::Bytes(b"x");
        api.store
            .put(&key("a"), &PutRequest::default(), body, deadline())
    };
    put().expect("stored");
    assert_eq!(api.seen()[1].body, b"x");
    for _ in 0..2 {
        assert_eq!(put().expect_err("refused").kind(), ErrorKind::Protocol);
    }
    assert!(elsewhere.seen().is_empty());
}

#[test]
fn no_other_server_says_where_changes_go() {
    let told = r#"{"data":{"id":"EvilStore12345678","name":"n","username":"m"}}"#;
    for status in [301, 302, 303, 307, 308] {
        let elsewhere = ScriptedServer::start(move |_, _| Answer::new(201, told));
        let there = elsewhere.url();
        let server =
            ScriptedServer::start(move |_, _| Answer::new(status, "").header("location", &there));
        // Deleting a record or the store begins with what opening it says of it.
        let opened = open_with(&config("~n", &server), options(), Arc::default());
        let error = opened.expect_err("refused");
        assert!(error.to_string().contains("another server"), "{error}");
        let account = open_account(&config("~n", &server), Arc::default()).expect("an account");
        for error in [
            account.create("n", deadline()).expect_err("refused"),
            account.describe(ID, deadline()).expect_err("refused"),
            account.delete(ID, deadline()).expect_err("refused"),
        ] {
            assert_eq!(error.kind(), ErrorKind::Protocol, "{error}");
            assert!(error.to_string().contains("redirect"), "{error}");
        }
        assert!(elsewhere.seen().is_empty(), "{status}");
    }
}

#[test]
fn a_server_that_fails_may_have_stored_what_was_sent() {
    let request = PutRequest {
        if_absent: true,
        ..PutRequest::default()
    };
    // Repeated, the request would be refused because of itself.
    for status in [408, 500, 502, 503, 504] {
        let api = Scripted::queue([Answer::new(status, ""), Answer::new(412, "")]);
        let put = |request| {
            let body = Upload::Bytes(b"x");
            api.store.put(&key("a"), request, body, deadline())
        };
        let error = put(&request).expect_err("unknown");
        assert!(error.is_unanswered(), "{status}");
        assert_ne!(error.kind(), ErrorKind::Changed, "{status}");
        assert_eq!(api.seen().len(), 1, "{status}");
    }
}

#[test]
fn a_lost_answer_is_remembered_when_the_repetition_is_refused() {
    for (first, status, unanswered) in [
        (Answer::raw(""), 403, true),
        (Answer::new(500, ""), 413, true),
        (Answer::new(429, ""), 403, false),
        (Answer::new(403, ""), 403, false),
    ] {
        for delete in [false, true] {
            let api = Scripted::queue([first.clone(), Answer::new(status, "")]);
            let put = PutRequest::default();
            let error = match delete {
                false => api
                    .store
                    .put(&key("a"), &put, Upload::Bytes(b"x"), deadline())
                    .map(drop),
                true => api.store.delete(&key("a"), deadline()),
            };
            let error = error.expect_err("refused");
            assert_eq!(error.is_unanswered(), unanswered, "{status} {delete}");
        }
    }
    // A redirect that is not followed, or a token that cannot be sent, changes nothing.
    let api = Scripted::queue([Answer::new(302, "").header("location", "/moved")]);
    let error = api
        .store
        .delete(&key("a"), deadline())
        .expect_err("refused");
    assert!(!error.is_unanswered());
}

#[test]
fn only_an_answer_of_the_api_says_that_a_change_is_made() {
    let page = "<html><title>Please log in</title></html>";
    let html =
        |status| Answer::new(status, page).header("content-type", "text/html; charset=utf-8");
    for answer in [
        html(200),
        html(201),
        Answer::new(200, page),
        Answer::new(200, "OK").header("content-type", "text/plain"),
        Answer::new(202, "{}").header("content-type", "application/json"),
        Answer::new(206, ""),
    ] {
        for delete in [false, true] {
            let done = Answer::new(if delete { 204 } else { 201 }, "");
            let api = Scripted::queue([answer.clone(), done]);
            if delete {
                api.store.delete(&key("a"), deadline()).expect("deleted");
            } else {
                let put = PutRequest::default();
                api.store
                    .put(&key("a"), &put, Upload::Bytes(b"x"), deadline())
                    .expect("stored");
            }
            assert_eq!(api.seen().len(), 2, "{answer:?}");
        }
    }
    for answer in [
        Answer::new(201, ""),
        Answer::new(204, ""),
        Answer::new(200, ""),
        Answer::new(200, "{}").header("content-type", "application/json; charset=utf-8"),
        Answer::new(200, "OK").header("x-ratelimit-limit", "200"),
    ] {
        let api = Scripted::queue([answer]);
        let put = PutRequest::default();
        let body = Upload::Bytes(b"x");
        api.store
            .put(&key("a"), &put, body, deadline())
            .expect("stored");
        assert_eq!(api.seen().len(), 1);
    }
}

#[test]
fn the_tag_of_an_answer_to_a_put_is_the_records_only_where_records_have_tags() {
    let put = |api: &Scripted| {
        let put = PutRequest::default();
        let body = Upload::Bytes(b"x");
        api.store
            .put(&key("a"), &put, body, deadline())
            .expect("stored")
    };
    let date = "Tue, 02 Jan 2024 03:04:05 GMT";
    for (record, of_put, expected) in [
        (None, "W/\"2-vyGp6PvFo4RvsFtPoIWeCReyIC8\"", false),
        (None, "\"2-vyGp6PvFo4RvsFtPoIWeCReyIC8\"", false),
        (Some("W/\"1\""), "W/\"2\"", false),
        (Some("W/\"1\""), "\"2\"", false),
        (Some("\"1\""), "W/\"2\"", false),
        (Some("\"1\""), "\"2\"", true),
    ] {
        for head in [false, true] {
            let mut answer = Answer::new(200, "");
            if let Some(tag) = record {
                answer = answer.header("etag", tag).header("last-modified", date);
            }
            let stored = Answer::new(201, "{}")
                .header("etag", of_put)
                .header("last-modified", date);
            let api = Scripted::queue([answer, stored]);
            if head {
                api.store.head(&key("b"), deadline()).expect("a head");
            } else {
                api.read("b").expect("a record");
            }
            let meta = put(&api);
            assert_eq!(meta.etag.is_some(), expected, "{record:?} {of_put}");
            assert_eq!(meta.last_modified.is_some(), record.is_some());
        }
    }
}
