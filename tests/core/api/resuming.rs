//! Bodies that break off, and go on without a byte of another version.

use std::io::Read;
use std::time::Duration;

use kvfs::apify::http::HttpOptions;
use kvfs::store::{ErrorKind, GetRequest, StoreError};

use super::{Scripted, bytes, impatient, options, read, shown};
use crate::support::scripted::Answer;

#[test]
fn a_short_body_resumes_under_its_entity_tag() {
    let stored = bytes(200_000);
    let whole = stored.clone();
    let api = Scripted::with(options(), move |seen, count| {
        let tagged = |answer: Answer| answer.header("etag", "\"v1\"");
        match seen.header("range") {
            None => tagged(Answer::new(200, whole.clone())).cut_after(50_000),
            Some(range) => {
                assert_eq!(seen.header("if-match"), Some("\"v1\""));
                assert_eq!(seen.header("if-range"), Some("\"v1\""));
                let start: usize = range["bytes=".len()..]
                    .trim_end_matches('-')
                    .parse()
                    .expect("a start");
                let last = whole.len() - 1;
                let rest = tagged(Answer::new(206, &whole[start..])).header(
                    "content-range",
                    &format!("bytes {start}-{last}/{}", whole.len()),
                );
                if count < 3 {
                    rest.cut_after(40_000)
                } else {
                    rest
                }
            }
        }
    });
    assert_eq!(api.read("a").expect("a record"), stored);
    let seen = api.seen();
    assert_eq!(seen.len(), 4);
    assert!(seen[1].header("range").is_some());
    assert_eq!(api.metrics.snapshot().requests_retried, 3);
}

#[test]
fn a_server_that_ignores_ranges_resumes_under_the_same_tag() {
    let stored = bytes(100_000);
    let whole = Answer::new(200, stored.clone()).header("etag", "\"v1\"");
    let api = Scripted::queue([whole.clone().cut_after(70_000), whole]);
    assert_eq!(api.read("a").expect("a record"), stored);
}

#[test]
fn a_record_that_changes_while_it_is_read_is_never_mixed() {
    let old = bytes(100_000);
    let mut new = old.clone();
    new[10] ^= 1;
    let tag = |answer: Answer, tag: &str| answer.header("etag", tag);
    let first = Answer::new(200, old.clone());
    let late = Answer::new(206, &old[60_000..]).header("content-range", "bytes 60000-99999/100000");
    let cases = [
        (Some("\"v1\""), tag(Answer::new(200, new.clone()), "\"v2\"")),
        (Some("\"v1\""), tag(late.clone(), "\"v2\"")),
        (Some("\"v1\""), late.clone()),
        (Some("\"v1\""), Answer::new(412, "")),
        (
            Some("\"v1\""),
            Answer::new(416, "").header("content-range", "bytes */3"),
        ),
        (
            Some("\"v1\""),
            Answer::error(404, "record-not-found", "Record was not found"),
        ),
        (None, Answer::new(200, new.clone())),
        (None, Answer::new(200, bytes(100_001))),
        (
            None,
            Answer::new(200, old.clone()).header("last-modified", "x"),
        ),
        (
            None,
            Answer::new(200, old.clone()).header("content-encoding", "gzip"),
        ),
        (
            Some("W/\"v1\""),
            tag(Answer::new(200, old.clone()), "W/\"v2\""),
        ),
    ];
    for (etag, second) in cases {
        let first = match etag {
            Some(etag) => tag(first.clone(), etag),
            None => first.clone(),
        };
        let api = Scripted::queue([first.cut_after(60_000), second.clone()]);
        let error = api.read("a").expect_err("a mixture");
        assert_eq!(error.kind(), ErrorKind::Changed, "{etag:?} {error}");
    }
}

#[test]
fn a_body_without_tag_starts_over_and_must_begin_the_same() {
    let stored = bytes(150_000);
    let whole = Answer::new(200, stored.clone());
    let api = Scripted::queue([
        whole.clone().cut_after(100_000),
        whole.clone().cut_after(20_000),
        Answer::new(500, ""),
        whole.clone().cut_after(120_000),
        whole,
    ]);
    assert_eq!(api.read("a").expect("a record"), stored);
    let seen = api.seen();
    assert_eq!(seen.len(), 5);
    assert!(seen.iter().all(|seen| seen.header("range").is_none()));
}

#[test]
fn a_part_resumes_too() {
    let stored = bytes(100_000);
    let request = GetRequest {
        range: Some(1000..90_000),
        ..GetRequest::default()
    };
    let part =
        Answer::new(206, &stored[1000..90_000]).header("content-range", "bytes 1000-89999/100000");
    let rest = Answer::new(206, &stored[31_000..90_000])
        .header("content-range", "bytes 31000-89999/100000");
    let whole = Answer::new(200, stored.clone());
    let tag = |answer: &Answer| answer.clone().header("etag", "\"v1\"");
    for answers in [
        [tag(&part).cut_after(30_000), tag(&rest)],
        [tag(&part).cut_after(30_000), tag(&whole)],
        [part.clone().cut_after(30_000), part.clone()],
        [part.clone().cut_after(30_000), whole.clone()],
    ] {
        let api = Scripted::queue(answers);
        let fetched = api.get_with("a", &request).expect("a part");
        assert_eq!(read(fetched).expect("the bytes"), &stored[1000..90_000]);
        let wanted = api.seen()[1].header("range").map(str::to_owned);
        assert!(wanted.is_some_and(|range| range.ends_with("-89999")));
    }
}

#[test]
fn a_part_that_is_shorter_than_the_rest_is_gone_on_from() {
    let stored = bytes(100_000);
    let tag = |answer: Answer| answer.header("etag", "\"v1\"");
    let part = |start: usize, end: usize| {
        tag(Answer::new(206, &stored[start..end])).header(
            "content-range",
            &format!("bytes {start}-{}/100000", end - 1),
        )
    };
    let whole = tag(Answer::new(200, stored.clone()));
    let api = Scripted::queue([
        whole.cut_after(50_000),
        part(50_000, 70_000),
        part(70_000, 100_000),
    ]);
    assert_eq!(api.read("a").expect("a record"), stored);
}

#[test]
fn a_body_of_unknown_length_starts_over() {
    let stored = bytes(100_000);
    for etag in ["\"v1\"", "W/\"v1\""] {
        let whole = Answer::new(200, stored.clone())
            .header("etag", etag)
            .chunked();
        // All bytes come, but not the end: only another transfer can tell.
        let mut unfinished = stored.clone();
        unfinished.push(0);
        let unfinished = Answer::new(200, unfinished).header("etag", etag).chunked();
        let api = Scripted::queue([unfinished.clone().cut_after(100_000), whole.clone()]);
        assert_eq!(api.read("a").expect("a record"), stored);
        assert_eq!(api.seen()[1].header("range"), None);
        assert_eq!(api.seen()[1].header("if-range"), None);
        let shorter = Answer::new(200, &stored[..60_000])
            .header("etag", etag)
            .chunked();
        let api = Scripted::queue([whole.cut_after(80_000), shorter]);
        assert_eq!(
            api.read("a").expect_err("shorter").kind(),
            ErrorKind::Changed
        );
    }
}

#[test]
fn a_transfer_that_never_completes_is_an_error() {
    let stored = bytes(10_000);
    for answer in [
        Answer::new(200, stored.clone()).cut_after(5000),
        Answer::new(200, stored.clone()).claim_len(20_000),
        Answer::new(200, stored.clone()).chunked().cut_after(5000),
        Answer::new(200, stored)
            .header("etag", "\"v1\"")
            .cut_after(0),
    ] {
        let api = Scripted::with(options(), move |_, _| answer.clone());
        let error = api.read("a").expect_err("never whole");
        assert_eq!(error.kind(), ErrorKind::Network, "{error}");
        assert!(shown(&error).contains("attempts"), "{error}");
        assert!(api.seen().len() <= 5);
    }
}

#[test]
fn a_body_that_falls_silent_is_resumed() {
    let stored = bytes(50_000);
    let whole = Answer::new(200, stored.clone());
    let stalls = whole.clone().stall_after(30_000);
    let api = Scripted::with(impatient(), move |_, count| match count {
        0 => stalls.clone(),
        _ => whole.clone(),
    });
    assert_eq!(api.read("a").expect("a record"), stored);
}

#[test]
fn an_error_of_a_body_stays() {
    let api = Scripted::queue([
        Answer::new(200, "abcdef").cut_after(3),
        Answer::new(404, ""),
    ]);
    let mut fetched = api.get("a").expect("a record");
    let mut text = Vec::new();
    fetched.body.read_to_end(&mut text).expect_err("cut");
    assert_eq!(text, b"abc");
    let error = fetched.body.read(&mut [0; 8]).expect_err("still");
    assert_eq!(
        StoreError::from_io(error, ErrorKind::Network).kind(),
        ErrorKind::Changed
    );
}

#[test]
fn a_rest_in_another_encoding_or_of_another_length_is_another_version() {
    let old = bytes(100_000);
    let tag = |answer: Answer| {
        answer
            .header("etag", "\"v1\"")
            .header("accept-ranges", "bytes")
    };
    let part = |total: &str| {
        tag(Answer::new(206, &old[60_000..]))
            .header("content-range", &format!("bytes 60000-99999/{total}"))
    };
    let whole = || tag(Answer::new(200, old.clone()));
    let coded = |answer: Answer, encoding: &str| answer.header("content-encoding", encoding);
    for (first, late, is_same) in [
        (whole(), part("100000"), true),
        (whole(), part("*"), true),
        (whole(), part("200000"), false),
        (whole(), coded(part("100000"), "gzip"), false),
        (whole(), coded(part("*"), "gzip"), false),
        (whole(), coded(whole(), "gzip"), false),
        (whole(), coded(whole(), "gzip").chunked(), false),
        (coded(whole(), "gzip"), coded(part("100000"), "gzip"), true),
        // A part may leave out what the whole has told.
        (coded(whole(), "gzip"), part("100000"), true),
        (coded(whole(), "gzip"), part("*"), false),
        (coded(whole(), "gzip"), whole(), false),
    ] {
        let api = Scripted::queue([first.cut_after(60_000), late]);
        match api.read("a") {
            Ok(read) => assert!(is_same && read == old),
            Err(error) => {
                assert!(!is_same, "{error}");
                assert_eq!(error.kind(), ErrorKind::Changed, "{error}");
            }
        }
    }
}

#[test]
fn a_transfer_that_moves_is_not_given_up_for_having_taken_long() {
    let stored = bytes(200);
    let whole = Answer::new(200, stored.clone());
    let slow = |len| {
        whole
            .clone()
            .cut_after(len)
            .trickle_body(Duration::from_millis(5))
    };
    let answers = [
        whole.clone().cut_after(150),
        slow(140),
        slow(149),
        whole.clone(),
    ];
    // Each repetition takes longer than a resumption may be without a byte.
    let options = HttpOptions {
        attempt_timeout: Duration::from_millis(500),
        resume_timeout: Duration::from_millis(600),
        ..options()
    };
    let api = Scripted::with(options, move |_, count| answers[count.min(3)].clone());
    assert_eq!(api.read("a").expect("a record"), stored);
    assert_eq!(api.seen().len(), 4);
}
