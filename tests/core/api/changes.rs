//! Uploads and deletions.

use kvfs::store::{ETag, Encoding, ErrorKind, PutRequest, Upload};

use super::{ID, Scripted, bytes, deadline, key, options};
use crate::support::scripted::{Answer, ScriptedServer};

#[test]
fn uploads_say_their_length_and_are_sent_again() {
    let api = Scripted::with(options(), |_, count| match count % 2 {
        0 => Answer::new(500, ""),
        _ => Answer::new(201, "{}").header("etag", "\"v2\""),
    });
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
