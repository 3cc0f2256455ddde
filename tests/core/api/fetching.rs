//! Records and listings as their answers tell them.

use std::io::Read;

use kvfs::store::{
    ETag, Encoding, ErrorKind, GetOutcome, GetRequest, ListQuery, PutRequest, Upload, Validator,
};

use super::{ID, Scripted, bytes, deadline, key, options, read};
use crate::support::scripted::Answer;

#[test]
fn a_record_arrives_with_what_its_headers_say() {
    let stored = bytes(300_000);
    let api = Scripted::queue([Answer::new(200, stored.clone())
        .header("content-type", "text/plain; charset=utf-8")
        .header("content-encoding", "br")
        .header("last-modified", "Tue, 02 Jan 2024 03:04:05 GMT")
        .header("etag", "\"v1\"")]);
    let fetched = api.get("a'b(c)!").expect("a record");
    let meta = fetched.meta.clone();
    assert_eq!(
        meta.content_type.as_deref(),
        Some("text/plain; charset=utf-8")
    );
    assert_eq!(meta.encoding, Encoding::Brotli);
    assert_eq!(meta.stored_size, Some(300_000));
    assert!(meta.strong_etag().is_some() && meta.modified().is_some());
    assert_eq!(fetched.range, None);
    assert_eq!(read(fetched).expect("the bytes"), stored);
    let seen = &api.seen()[0];
    assert_eq!(
        seen.target,
        format!("/v2/key-value-stores/{ID}/records/a%27b%28c%29%21?attachment=true")
    );
    assert_eq!(seen.header("accept-encoding"), Some("gzip, br, deflate"));
    assert_eq!(seen.header("authorization"), Some("Bearer s3cret"));
    assert!(
        seen.header("user-agent")
            .is_some_and(|agent| agent.starts_with("kvfs/"))
    );
    let counts = api.metrics.snapshot();
    assert_eq!(
        (
            counts.requests_total,
            counts.requests_get,
            counts.requests_other
        ),
        (2, 1, 1)
    );
    assert_eq!(counts.requests_retried, 0);
    assert!(counts.received_bytes >= 300_000);
}

#[test]
fn bodies_may_be_empty_chunked_or_end_with_the_connection() {
    let stored = bytes(70_000);
    let api = Scripted::queue([
        Answer::new(200, ""),
        Answer::new(200, stored.clone()).chunked(),
        Answer::new(200, stored.clone()).until_close(),
        Answer::new(200, "").chunked(),
    ]);
    for (expected, size) in [
        (Vec::new(), Some(0)),
        (stored.clone(), None),
        (stored, None),
        (Vec::new(), None),
    ] {
        let fetched = api.get("a").expect("a record");
        assert_eq!(fetched.meta.stored_size, size);
        assert_eq!(read(fetched).expect("the bytes"), expected);
    }
}

#[test]
fn keys_that_a_url_takes_for_folders_are_listed_and_refused_before_any_request() {
    let keys =
        r#"{"data":{"items":[{"key":".","size":1},{"key":"..","size":2}],"isTruncated":false}}"#;
    let api = Scripted::queue([Answer::new(200, keys)]);
    let page = api
        .store
        .list_page(&ListQuery::default(), deadline())
        .expect("a page");
    assert_eq!(page.items.len(), 2);
    for item in page.items {
        let key = &item.key;
        let body = Upload::Bytes(b"new");
        for error in [
            api.get(key.as_str()).expect_err("no address"),
            api.store.head(key, deadline()).expect_err("no address"),
            api.store
                .put(key, &PutRequest::default(), body, deadline())
                .expect_err("no address"),
            api.store.delete(key, deadline()).expect_err("no address"),
        ] {
            assert_eq!(error.kind(), ErrorKind::InvalidKey, "{error}");
            assert!(!error.is_unanswered() && error.hint().is_some());
        }
        assert_eq!(api.store.record_url(key), None);
    }
    assert_eq!(api.seen().len(), 1);
}

#[test]
fn an_unchanged_record_is_not_fetched_again() {
    let etag = Validator::ETag(ETag::new("\"v1\""));
    let date = "Tue, 02 Jan 2024 03:04:05 GMT";
    let api = Scripted::queue([
        Answer::new(304, ""),
        Answer::new(304, ""),
        // Servers that ignore the condition.
        Answer::new(200, bytes(100)).header("etag", "W/\"v1\""),
        Answer::new(200, bytes(100)).header("last-modified", date),
        Answer::new(200, bytes(101)).header("last-modified", date),
        Answer::new(200, bytes(100)).header("etag", "\"v2\""),
        Answer::new(200, bytes(100)),
    ]);
    let modified = Validator::Modified(date.into(), 100);
    for (validator, is_same) in [
        (&etag, true),
        (&modified, true),
        (&etag, true),
        (&modified, true),
        (&modified, false),
        (&etag, false),
        (&etag, false),
    ] {
        let request = GetRequest {
            if_none_match: Some(validator.clone()),
            ..GetRequest::default()
        };
        let outcome = api
            .store
            .get(&key("a"), &request, deadline())
            .expect("an answer");
        assert_eq!(matches!(outcome, GetOutcome::NotModified), is_same);
    }
    assert_eq!(api.seen()[0].header("if-none-match"), Some("\"v1\""));
    assert_eq!(api.seen()[1].header("if-modified-since"), Some(date));
    assert_eq!(api.metrics.snapshot().requests_conditional, 7);
}

#[test]
fn ranges_are_checked() {
    let request = GetRequest {
        range: Some(100..200),
        ..GetRequest::default()
    };
    let part = |range: &str, len| Answer::new(206, bytes(len)).header("content-range", range);
    let api = Scripted::queue([
        part("bytes 100-199/1000", 100),
        part("bytes 100-149/150", 50),
        Answer::new(200, bytes(1000)),
        Answer::new(416, "").header("content-range", "bytes */50"),
        part("bytes 0-99/1000", 100),
        part("bytes 100-299/1000", 200),
        part("bytes 100-199/1000", 50),
        Answer::new(206, bytes(100)),
        Answer::new(416, ""),
    ]);
    for (range, size, len) in [
        (Some(100..200), Some(1000), 100),
        (Some(100..150), Some(150), 50),
        (None, Some(1000), 1000),
        (Some(50..50), Some(50), 0),
    ] {
        let fetched = api.get_with("a", &request).expect("a part");
        assert_eq!(
            (fetched.range.clone(), fetched.meta.stored_size),
            (range, size)
        );
        assert_eq!(read(fetched).expect("the bytes").len(), len);
    }
    for _ in 0..5 {
        let error = api
            .get_with("a", &request)
            .expect_err("not what was asked for");
        assert_eq!(error.kind(), ErrorKind::Protocol, "{error}");
    }
    assert_eq!(api.seen()[0].header("range"), Some("bytes=100-199"));
}

#[test]
fn another_version_than_the_wanted_one_is_changed() {
    let request = GetRequest {
        if_match: Some(ETag::new("\"v1\"")),
        ..GetRequest::default()
    };
    let api = Scripted::queue([
        Answer::new(200, "x").header("etag", "\"v1\""),
        Answer::new(412, ""),
        Answer::new(200, "x").header("etag", "\"v2\""),
        Answer::new(200, "x"),
    ]);
    assert_eq!(
        read(api.get_with("a", &request).expect("a record")).expect("bytes"),
        b"x"
    );
    for _ in 0..3 {
        let error = api.get_with("a", &request).expect_err("another version");
        assert_eq!(error.kind(), ErrorKind::Changed);
    }
    assert_eq!(api.seen()[0].header("if-match"), Some("\"v1\""));
}

#[test]
fn pages_are_asked_for_within_the_limits() {
    let page = r#"{"data":{"items":[{"key":"a","size":3,"recordPublicUrl":"https://h/a"},{"key":"b","size":null}],"count":2,"limit":2,"isTruncated":true,"nextExclusiveStartKey":"b"}}"#;
    let api = Scripted::queue([Answer::new(200, page), Answer::new(200, page)]);
    let query = ListQuery {
        after: Some("a b".into()),
        limit: Some(5000),
        prefix: Some("p".into()),
        collection: Some("c".into()),
    };
    let found = api.store.list_page(&query, deadline()).expect("a page");
    assert_eq!(found.items.len(), 2);
    assert_eq!(found.items[0].stored_size, Some(3));
    assert_eq!(found.next.as_deref(), Some("b"));
    assert_eq!(
        api.seen()[0].target,
        format!(
            "/v2/key-value-stores/{ID}/keys?limit=1000&exclusiveStartKey=a+b&prefix=p&collection=c"
        )
    );
    assert_eq!(api.metrics.snapshot().requests_list, 1);
}

#[test]
fn dropping_a_body_closes_its_connection() {
    let whole = Answer::new(200, bytes(1_000_000)).stall_after(500_000);
    let api = Scripted::with(options(), move |_, _| whole.clone());
    let mut fetched = api.get("a").expect("a record");
    fetched.body.read_exact(&mut [0; 1000]).expect("some bytes");
    drop(fetched);
    // The server's thread is waiting for the client to close; a leak would block it here.
    api.server.wait_until_closed(1);
}

#[test]
fn many_readers_share_the_client() {
    let stored = bytes(20_000);
    let whole = stored.clone();
    let api = Scripted::with(options(), move |_, count| match count % 5 {
        0 => Answer::new(503, ""),
        1 => Answer::new(200, whole.clone()).cut_after(count % 7 * 1000),
        _ => Answer::new(200, whole.clone()),
    });
    std::thread::scope(|scope| {
        for thread in 0..100 {
            let (api, stored) = (&api, &stored);
            scope.spawn(move || {
                for record in 0..5 {
                    // Unlucky ones may run out of attempts; none may get wrong bytes.
                    match api.read(&format!("{thread}-{record}")) {
                        Ok(bytes) => assert!(bytes == *stored),
                        Err(error) => assert!(matches!(
                            error.kind(),
                            ErrorKind::Server | ErrorKind::Network
                        )),
                    }
                }
            });
        }
    });
}

#[test]
fn all_lines_of_an_encoding_count() {
    for (lines, expected) in [
        (vec![], Some(Encoding::Identity)),
        (vec!["identity"], Some(Encoding::Identity)),
        (vec!["gzip"], Some(Encoding::Gzip)),
        (vec!["X-GZip"], Some(Encoding::Gzip)),
        (vec!["identity", "gzip"], Some(Encoding::Gzip)),
        (vec!["gzip, identity"], Some(Encoding::Gzip)),
        (vec!["", "br,"], Some(Encoding::Brotli)),
        (vec!["gzip", "gzip"], None),
        (vec!["br", "gzip"], None),
        (vec!["gzip, gzip"], None),
        (vec!["gzip\u{e9}"], None),
        (vec!["zstd"], None),
    ] {
        let mut answer = Answer::new(200, bytes(10));
        for line in &lines {
            answer = answer.header("content-encoding", line);
        }
        let api = Scripted::queue([answer.clone(), answer]);
        let fetched = api.get("a").expect("a record");
        let head = api.store.head(&key("a"), deadline()).expect("a head");
        for encoding in [fetched.meta.encoding, head.encoding] {
            match &expected {
                Some(expected) => assert_eq!(encoding, *expected, "{lines:?}"),
                None => assert!(matches!(encoding, Encoding::Unknown(_)), "{lines:?}"),
            }
        }
    }
}

#[test]
fn no_bytes_need_no_decoding_however_their_end_is_told() {
    let encoded = |body: &str| Answer::new(200, body).header("content-encoding", "br");
    for answer in [encoded(""), encoded("").chunked()] {
        let fetched = Scripted::queue([answer]).get("a").expect("a record");
        assert!(fetched.meta.encoding.is_identity());
        assert_eq!(fetched.meta.stored_size, Some(0));
        assert_eq!(read(fetched).expect("no bytes"), b"");
    }
    let fetched = Scripted::queue([encoded("bytes").chunked()]).get("a");
    let fetched = fetched.expect("a record");
    assert_eq!(fetched.meta.encoding, Encoding::Brotli);
    assert_eq!(read(fetched).expect("all bytes"), b"bytes");
    // A broken connection looks the same.
    let fetched = Scripted::queue([encoded("").until_close()]).get("a");
    let fetched = fetched.expect("a record");
    assert_eq!(fetched.meta.encoding, Encoding::Brotli);
}

#[test]
fn a_transfer_coding_that_nobody_asked_for_is_refused() {
    for coding in ["gzip, chunked", "gzip"] {
        let head = format!("HTTP/1.1 200 OK\r\ntransfer-encoding: {coding}\r\n\r\n");
        let chunk = if coding == "gzip" {
            "xxxx"
        } else {
            "4\r\nxxxx\r\n0\r\n\r\n"
        };
        let api = Scripted::queue([Answer::raw(head + chunk)]);
        api.read("a").expect_err("not the record's bytes");
    }
}

#[test]
fn what_no_file_can_have_is_no_size() {
    let huge = 1_u64 << 63;
    let api = Scripted::queue([Answer::new(200, "").claim_len(huge)]);
    let head = api.store.head(&key("a"), deadline()).expect("a head");
    assert_eq!(head.stored_size, None);
    let keys =
        format!(r#"{{"data":{{"items":[{{"key":"a","size":{huge}}}],"isTruncated":false}}}}"#);
    let api = Scripted::queue([Answer::new(200, keys)]);
    let page = api
        .store
        .list_page(&ListQuery::default(), deadline())
        .expect("a page");
    assert_eq!(page.items[0].stored_size, None);
}

#[test]
fn a_304_about_another_version_is_not_believed() {
    let date = "Tue, 02 Jan 2024 03:04:05 GMT";
    let tag = Validator::ETag(ETag::new("\"v1\""));
    let modified = Validator::Modified(date.into(), 100);
    for (validator, name, value, believed) in [
        (&tag, "etag", "\"v1\"", true),
        (&tag, "etag", "W/\"v1\"", true),
        (&tag, "etag", "\"v2\"", false),
        (&modified, "last-modified", date, true),
        (
            &modified,
            "last-modified",
            "Wed, 03 Jan 2024 03:04:05 GMT",
            false,
        ),
    ] {
        let request = GetRequest {
            if_none_match: Some(validator.clone()),
            ..GetRequest::default()
        };
        let unchanged = Answer::new(304, "").header(name, value);
        let record = Answer::new(200, "new").header(name, value);
        let api = Scripted::queue([unchanged.clone(), record]);
        let outcome = api.store.get(&key("a"), &request, deadline());
        let outcome = outcome.expect("an answer");
        assert_eq!(
            matches!(outcome, GetOutcome::NotModified),
            believed,
            "{value}"
        );
        let seen = api.seen();
        assert_eq!(seen.len(), if believed { 1 } else { 2 });
        assert!(believed || seen[1].header("if-none-match").is_none());
        // As often as it is asked.
        let api = Scripted::with(options(), move |_, _| unchanged.clone());
        let outcome = api.store.get(&key("a"), &request, deadline());
        assert_eq!(outcome.is_ok(), believed, "{value}");
    }
}

#[test]
fn answers_of_the_api_are_asked_for_compressed() {
    let keys = r#"{"data":{"items":[{"key":"a","size":1}],"isTruncated":false}}"#;
    let packed = |text: &str| {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        std::io::Write::write_all(&mut encoder, text.as_bytes()).expect("in memory");
        encoder.finish().expect("in memory")
    };
    let gzip = |answer: Answer| answer.header("content-encoding", "gzip");
    let missing = r#"{"error":{"type":"record-not-found","message":"Store was not found"}}"#;
    let mut cut = packed(keys);
    cut.truncate(20);
    let api = Scripted::queue([
        gzip(Answer::new(200, packed(keys))).chunked(),
        gzip(Answer::new(200, cut)),
        Answer::new(200, keys),
        gzip(Answer::new(404, packed(missing))),
    ]);
    let list = || api.store.list_page(&ListQuery::default(), deadline());
    for _ in 0..2 {
        assert_eq!(list().expect("a page").items.len(), 1);
    }
    let error = list().expect_err("no store");
    assert_eq!(error.kind(), ErrorKind::StoreNotFound, "{error}");
    for seen in api.seen() {
        assert_eq!(seen.header("accept-encoding"), Some("gzip"));
    }
    assert_eq!(api.seen().len(), 4);
}
