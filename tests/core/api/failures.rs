//! Requests that fail: which are repeated, for how long, and what is said in the end.

use std::sync::Arc;
use std::time::{Duration, Instant};

use kvfs::apify::http::HttpOptions;
use kvfs::apify::retry::RetryPolicy;
use kvfs::base::clock::Deadline;
use kvfs::mount::open::open_with;
use kvfs::store::{ErrorKind, GetRequest, ListQuery, PutRequest, Upload};

use super::{ID, Scripted, config, deadline, impatient, key, options, shown};
use crate::support::scripted::{Answer, ScriptedServer};

#[test]
fn transient_failures_are_repeated_and_others_not() {
    for (failure, attempts) in [
        (Answer::new(429, ""), 2),
        (Answer::new(500, ""), 2),
        (
            Answer::new(502, "<html>bad gateway</html>").header("content-type", "text/html"),
            2,
        ),
        (Answer::new(503, "").header("retry-after", "0"), 2),
        (Answer::new(408, ""), 2),
        (Answer::raw(""), 2),
        (Answer::raw("garbage\r\n\r\n"), 2),
        (Answer::new(400, ""), 1),
        (Answer::new(401, ""), 1),
        (Answer::new(403, ""), 1),
        (Answer::new(404, ""), 1),
        (Answer::error(408, "operation-timed-out", "x"), 1),
        (Answer::new(413, ""), 1),
        (Answer::new(204, ""), 1),
    ] {
        let api = Scripted::queue([failure.clone(), Answer::new(200, "x")]);
        let result = api.read("a");
        assert_eq!(api.seen().len(), attempts, "{failure:?}");
        assert_eq!(result.is_ok(), attempts == 2, "{failure:?} {result:?}");
        let retried = api.metrics.snapshot().requests_retried;
        assert_eq!(retried, attempts as u64 - 1);
    }
}

#[test]
fn attempts_end_with_an_error_that_counts_them() {
    let api = Scripted::with(options(), |_, _| {
        Answer::error(503, "query-timeout", "too slow")
    });
    let error = api.get("a").expect_err("a failure");
    assert_eq!(error.kind(), ErrorKind::Server);
    assert_eq!(api.seen().len(), 4);
    let text = shown(&error);
    for part in ["4 attempts", "HTTP 503", "query-timeout", "too slow"] {
        assert!(text.contains(part), "{text}");
    }
    assert_eq!(error.key(), Some(&key("a")));

    let api = Scripted::with(options(), |_, _| {
        Answer::error(429, "rate-limit-exceeded", "x")
    });
    assert_eq!(
        api.get("a").expect_err("refused").kind(),
        ErrorKind::RateLimited
    );
    assert_eq!(api.metrics.snapshot().responses_rate_limited, 32);
}

#[test]
fn retry_after_is_waited_for_but_not_past_the_deadline() {
    let api = Scripted::queue([
        Answer::new(429, "").header("retry-after", "1"),
        Answer::new(200, "x"),
        Answer::new(503, "").header("retry-after", "3600"),
    ]);
    let before = Instant::now();
    assert_eq!(api.read("a").expect("a record"), b"x");
    assert!(before.elapsed() >= Duration::from_secs(1));
    let before = Instant::now();
    let error = api.get("a").expect_err("too long a wait");
    assert!(shown(&error).contains("3600"), "{error}");
    assert!(before.elapsed() < Duration::from_secs(10));
}

#[test]
fn silence_ends_with_the_deadline() {
    let api = Scripted::with(impatient(), |_, _| Answer::silence());
    let before = Instant::now();
    let end = Deadline::after(Duration::from_millis(150));
    let request = GetRequest::default();
    let error = api
        .store
        .get(&key("a"), &request, end)
        .expect_err("silence");
    assert_eq!(error.kind(), ErrorKind::Timeout);
    assert!(
        before.elapsed() < Duration::from_secs(5),
        "{:?}",
        before.elapsed()
    );
    let error = api.get("a").expect_err("silence");
    assert_eq!(error.kind(), ErrorKind::Timeout);
    assert!(shown(&error).contains("4 attempts"), "{error}");
}

#[test]
fn a_server_that_is_gone_is_a_network_error() {
    let api = Scripted::queue([]);
    let Scripted { server, store, .. } = api;
    drop(server);
    let error = store.head(&key("a"), deadline()).expect_err("nobody there");
    assert_eq!(error.kind(), ErrorKind::Network);
    assert!(shown(&error).contains("cannot be reached"), "{error}");
}

#[test]
fn answers_mean_what_the_api_documents() {
    for (answer, kind) in [
        (
            Answer::error(404, "record-not-found", "Record was not found"),
            ErrorKind::NotFound,
        ),
        (
            Answer::error(404, "record-not-found", "Key-value Store was not found"),
            ErrorKind::StoreNotFound,
        ),
        (
            Answer::error(401, "user-or-token-not-found", "x"),
            ErrorKind::Denied,
        ),
        (
            Answer::error(403, "insufficient-permissions", "x"),
            ErrorKind::Denied,
        ),
        (
            Answer::error(402, "x402-payment-required", "x"),
            ErrorKind::Quota,
        ),
        (
            Answer::error(400, "invalid-record-key", "x"),
            ErrorKind::InvalidKey,
        ),
        (
            Answer::error(413, "request-too-large", "x"),
            ErrorKind::TooLarge,
        ),
        (
            Answer::error(400, "record-too-large", "x"),
            ErrorKind::TooLarge,
        ),
    ] {
        let api = Scripted::queue([answer.clone(), answer]);
        let error = api.get("a").expect_err("an error");
        assert_eq!(error.kind(), kind, "{error}");
        let body = Upload::Bytes(b"x");
        let error = api
            .store
            .put(&key("a"), &PutRequest::default(), body, deadline())
            .expect_err("an error");
        assert_eq!(error.kind(), kind, "{error}");
    }
}

#[test]
fn a_web_page_is_no_listing() {
    let page = Answer::new(200, "<html>s3cret</html>").header("content-type", "text/html");
    let api = Scripted::with(options(), move |_, _| page.clone());
    let error = api
        .store
        .list_page(&ListQuery::default(), deadline())
        .expect_err("no listing");
    assert_eq!(error.kind(), ErrorKind::Protocol);
    assert_eq!(api.seen().len(), 4, "bad JSON is repeated");
    shown(&error);
    let page = Answer::new(403, "<html>s3cret</html>").header("content-type", "text/html");
    let api = Scripted::queue([page]);
    assert!(shown(&api.get("a").expect_err("denied")).contains("web page"));
}

#[test]
fn a_wrong_address_is_told_soon() {
    let server = ScriptedServer::queue([]);
    let config = config(ID, &server);
    drop(server);
    let options = HttpOptions {
        retry: RetryPolicy {
            attempts: 1_000_000,
            ..options().retry
        },
        ..options()
    };
    let error = open_with(&config, options, Arc::default()).expect_err("nobody there");
    assert_eq!(error.kind(), ErrorKind::Network);
    assert!(shown(&error).contains("3 attempts"), "{error}");
}

#[test]
fn a_gateways_page_is_no_word_about_the_record() {
    let page =
        |status| Answer::new(status, "<html>not here</html>").header("content-type", "text/html");
    for status in [404, 410] {
        // It neither hides a record, nor a store, nor says that one is deleted.
        let api = Scripted::queue([page(status), Answer::new(200, "x")]);
        assert_eq!(api.read("a").expect("the record"), b"x");
        let api = Scripted::queue([page(status), Answer::new(200, "x")]);
        api.store.head(&key("a"), deadline()).expect("the record");
        let api = Scripted::queue([page(status), Answer::new(204, "")]);
        api.store.delete(&key("a"), deadline()).expect("deleted");
        assert_eq!(api.seen().len(), 2);
        let api = Scripted::with(options(), move |_, _| page(status));
        let error = api.get("a").expect_err("no record");
        assert_eq!(error.kind(), ErrorKind::Server, "{error}");
        let error = api.store.list_page(&ListQuery::default(), deadline());
        let error = error.expect_err("no listing");
        assert_eq!(error.kind(), ErrorKind::Server, "{error}");
        let error = api
            .store
            .delete(&key("a"), deadline())
            .expect_err("not deleted");
        assert!(error.is_unanswered());
    }
}

#[test]
fn a_limit_that_is_only_named_slows_nothing_down() {
    for (enforced, slows) in [(None, true), (Some("yes"), true), (Some("no"), false)] {
        let answer = Answer::new(200, "x").header("x-ratelimit-limit", "200");
        let answer = enforced.into_iter().fold(answer, |answer, kept| {
            answer.header("x-ratelimit-enforced", kept)
        });
        let api = Scripted::queue([answer]);
        api.read("a").expect("a record");
        let pace = api.metrics.snapshot().budget_records_per_second;
        assert_eq!(pace > 0, slows, "{enforced:?}: {pace}");
    }
}

#[test]
fn where_the_api_names_its_limit_an_answer_without_is_a_gateways() {
    let limit = |answer: Answer| answer.header("x-ratelimit-limit", "200000");
    let html = |status| Answer::new(status, "<html></html>").header("content-type", "text/html");
    let record = || limit(Answer::new(200, "x"));
    for strange in [
        html(200),
        Answer::new(200, "OK"),
        Answer::new(206, "OK").header("content-range", "bytes 0-1/2"),
        Answer::new(404, ""),
    ] {
        let api = Scripted::queue([record(), strange.clone(), record()]);
        assert_eq!(api.read("a").expect("a record"), b"x");
        assert_eq!(api.read("b").expect("a record"), b"x", "{strange:?}");
        assert_eq!(api.seen().len(), 3);
        // A server that names none is believed.
        let api = Scripted::queue([Answer::new(200, "x"), strange.clone()]);
        assert_eq!(api.read("a").expect("a record"), b"x");
        let _ = api.read("b");
        assert_eq!(api.seen().len(), 2);
    }
    let api = Scripted::queue([
        record(),
        Answer::new(201, "{}"),
        limit(Answer::new(201, "{}")),
    ]);
    api.read("a").expect("a record");
    let body = Upload::Bytes(b"x");
    api.store
        .put(&key("a"), &PutRequest::default(), body, deadline())
        .expect("stored");
    assert_eq!(api.seen().len(), 3);
    // Typed errors are the API's, and a record may be any page.
    let missing = || Answer::error(404, "record-not-found", "Record was not found");
    let api = Scripted::queue([record(), missing(), limit(html(200))]);
    api.read("a").expect("a record");
    assert_eq!(api.get("b").expect_err("none").kind(), ErrorKind::NotFound);
    assert_eq!(api.read("c").expect("a record"), b"<html></html>");
}
