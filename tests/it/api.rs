//! The API client against a server that misbehaves on command.

use std::io::Read;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kvfs::apify::http::HttpOptions;
use kvfs::apify::plain::PlainHttp;
use kvfs::apify::retry::RetryPolicy;
use kvfs::clock::Deadline;
use kvfs::metrics::Metrics;
use kvfs::open::{OpenConfig, TokenSource, open_with};
use kvfs::redact::Secret;
use kvfs::store::{
    ETag, Encoding, ErrorKind, Fetched, GetOutcome, GetRequest, Key, ListQuery, PutRequest, Result,
    Store, StoreError, Upload, Validator,
};
use url::Url;

use crate::support::scripted::{Answer, ScriptedServer, Seen};

const ID: &str = "WkzbQMuFYuamGv3YF";

fn deadline() -> Deadline {
    Deadline::after(Duration::from_secs(20))
}

fn key(text: &str) -> Key {
    Key::new(text).expect("a key")
}

fn options() -> HttpOptions {
    HttpOptions {
        retry: RetryPolicy {
            attempts: 4,
            base_delay: Duration::from_millis(1),
            max_delay: Duration::from_millis(4),
        },
        resume_timeout: Duration::from_secs(10),
        ..HttpOptions::new(Duration::from_secs(10))
    }
}

/// Options for tests in which the server falls silent.
fn impatient() -> HttpOptions {
    HttpOptions {
        attempt_timeout: Duration::from_millis(100),
        ..options()
    }
}

fn config(reference: &str, server: &ScriptedServer) -> OpenConfig {
    OpenConfig {
        reference: reference.parse().expect("a reference"),
        api_url: Some(Url::parse(&server.url()).expect("a URL")),
        token: TokenSource::Environment(Secret::new("s3cret")),
        signature: None,
        run_status: None,
        run_origin: None,
        plain_http: PlainHttp::default(),
        attempt_timeout: Duration::from_secs(10),
        deadline: Duration::from_secs(20),
        budget_dir: None,
    }
}

fn store_object() -> Answer {
    Answer::new(
        200,
        format!(r#"{{"data":{{"id":"{ID}","name":"n","modifiedAt":"2024-01-02T03:04:05.678Z"}}}}"#),
    )
}

/// A store whose requests other than opening it are answered by a script.
struct Scripted {
    server: ScriptedServer,
    store: Arc<dyn Store>,
    metrics: Arc<Metrics>,
}

impl Scripted {
    fn with(
        options: HttpOptions,
        handler: impl Fn(&Seen, usize) -> Answer + Send + Sync + 'static,
    ) -> Self {
        let server = ScriptedServer::start(move |seen, count| match count {
            0 => store_object(),
            _ => handler(seen, count - 1),
        });
        let metrics = Arc::new(Metrics::default());
        let store =
            open_with(&config(ID, &server), options, Arc::clone(&metrics)).expect("a store");
        Self {
            server,
            store,
            metrics,
        }
    }

    fn queue(answers: impl IntoIterator<Item = Answer>) -> Self {
        let answers: Vec<_> = answers.into_iter().collect();
        Self::with(options(), move |_, count| {
            let over = || Answer::new(418, "the script is over");
            answers.get(count).cloned().unwrap_or_else(over)
        })
    }

    /// Returns the requests after opening.
    fn seen(&self) -> Vec<Seen> {
        self.server.seen().split_off(1)
    }

    fn get(&self, name: &str) -> Result<Fetched> {
        self.get_with(name, &GetRequest::default())
    }

    fn get_with(&self, name: &str, request: &GetRequest) -> Result<Fetched> {
        match self.store.get(&key(name), request, deadline())? {
            GetOutcome::Found(fetched) => Ok(fetched),
            GetOutcome::NotModified => panic!("not modified"),
        }
    }

    fn read(&self, name: &str) -> Result<Vec<u8>> {
        read(self.get(name)?)
    }
}

fn read(mut fetched: Fetched) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    match fetched.body.read_to_end(&mut bytes) {
        Ok(_) => Ok(bytes),
        Err(error) => Err(StoreError::from_io(error, ErrorKind::Network)),
    }
}

fn bytes(len: usize) -> Vec<u8> {
    (0..len as u32)
        .flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes())
        .take(len)
        .collect()
}

fn shown(error: &StoreError) -> String {
    let text = format!("{error} {error:?} {:?}", error.hint());
    for secret in ["s3cret", "c2lnbmVk"] {
        assert!(!text.contains(secret), "{text}");
    }
    text
}

// Reading

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
fn dot_keys_are_sent_literally() {
    let api = Scripted::with(options(), |seen, _| match seen.method.as_str() {
        "PUT" => Answer::new(201, "{}"),
        "DELETE" => Answer::new(204, ""),
        _ => Answer::new(200, "dots"),
    });
    for name in [".", ".."] {
        assert_eq!(api.read(name).expect("a record"), b"dots");
        assert_eq!(
            api.store
                .head(&key(name), deadline())
                .expect("a head")
                .stored_size,
            Some(4)
        );
        let body = Upload::Bytes(b"new");
        let put = PutRequest::default();
        api.store
            .put(&key(name), &put, body, deadline())
            .expect("stored");
        api.store.delete(&key(name), deadline()).expect("deleted");
    }
    let records = format!("/v2/key-value-stores/{ID}/records/");
    let sent: Vec<_> = api
        .seen()
        .iter()
        .map(|s| format!("{} {}", s.method, s.target))
        .collect();
    let expected: Vec<_> = ["%2E", "%2E%2E"]
        .iter()
        .flat_map(|name| {
            [
                format!("GET {records}{name}?attachment=true"),
                format!("HEAD {records}{name}?attachment=true"),
                format!("PUT {records}{name}"),
                format!("DELETE {records}{name}"),
            ]
        })
        .collect();
    assert_eq!(sent, expected);
    assert_eq!(api.seen()[2].body, b"new");
    assert!(
        api.seen()
            .iter()
            .all(|s| s.header("authorization") == Some("Bearer s3cret"))
    );
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

// Failing and retrying

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
    assert_eq!(api.metrics.snapshot().responses_rate_limited, 4);
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

// Broken bodies

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

// Redirects and secrets

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

// Listing and changing

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

// Opening

fn open(config: &OpenConfig) -> Result<Arc<dyn Store>> {
    open_with(config, options(), Arc::default())
}

#[test]
fn what_is_cached_depends_on_the_token_but_not_what_is_to_be_uploaded() {
    let server = ScriptedServer::queue([store_object(), store_object(), store_object()]);
    let info = |token: &str, reference: &str| {
        let config = OpenConfig {
            token: TokenSource::Environment(Secret::new(token)),
            ..config(reference, &server)
        };
        open(&config).expect("a store").info()
    };
    let (first, second) = (info("old", ID), info("new", "~mine"));
    assert_ne!(first.cache_scope, second.cache_scope);
    assert_eq!(first.upload_scope, second.upload_scope);
}

#[test]
fn references_are_resolved_to_an_id() {
    for (reference, path) in [
        (ID, format!("/v2/key-value-stores/{ID}")),
        ("~mine", "/v2/key-value-stores/~mine".into()),
        ("me/mine", "/v2/key-value-stores/me~mine".into()),
        ("run:R1", "/v2/actor-runs/R1/key-value-store".into()),
        (
            "actor:me/a",
            "/v2/actors/me~a/runs/last/key-value-store?status=SUCCEEDED&origin=API".into(),
        ),
        (
            "task:T1",
            "/v2/actor-tasks/T1/runs/last/key-value-store?status=SUCCEEDED&origin=API".into(),
        ),
    ] {
        let server = ScriptedServer::queue([store_object(), Answer::new(200, "x")]);
        let config = OpenConfig {
            run_status: Some("SUCCEEDED".into()),
            run_origin: Some("API".into()),
            ..config(reference, &server)
        };
        let store = open(&config).expect(reference);
        let info = store.info();
        assert_eq!((info.id.as_str(), info.name.as_deref()), (ID, Some("n")));
        assert!(info.modified.is_some() && info.cache_scope.starts_with(ID));
        store.head(&key("a"), deadline()).expect("a record");
        let seen = server.seen();
        assert_eq!(seen[0].target, path);
        assert_eq!(
            seen[1].path(),
            format!("/v2/key-value-stores/{ID}/records/a")
        );
    }
}

#[test]
fn opening_fails_with_the_reason() {
    for (answer, kind) in [
        (
            Answer::error(404, "record-not-found", "Key-value Store was not found"),
            ErrorKind::StoreNotFound,
        ),
        (
            Answer::error(401, "user-or-token-not-found", "x"),
            ErrorKind::Denied,
        ),
        (Answer::new(200, "<html>"), ErrorKind::Protocol),
    ] {
        let server = ScriptedServer::start(move |_, _| answer.clone());
        let error = open(&config(ID, &server)).expect_err("an error");
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.hint().is_some() || kind == ErrorKind::Protocol);
        shown(&error);
    }
}

#[test]
fn a_public_store_needs_no_token() {
    let server = ScriptedServer::start(|seen, _| {
        if seen.path().ends_with("/keys") {
            Answer::new(200, r#"{"data":{"items":[]}}"#)
        } else {
            Answer::error(
                401,
                "token-not-provided",
                "Authentication token was not provided",
            )
        }
    });
    let config = OpenConfig {
        token: TokenSource::None,
        ..config("me~public", &server)
    };
    let store = open(&config).expect("a store");
    assert_eq!(store.info().id, "me~public");
    let page = store
        .list_page(&ListQuery::default(), deadline())
        .expect("a page");
    assert!(page.items.is_empty());
    assert!(
        server
            .seen()
            .iter()
            .all(|seen| seen.header("authorization").is_none())
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

/// The keys signature of the store `A2` under the secret `secret`, for ever.
const SIGNATURE: &str = "MC4wLjFhRmtpMlJCcFBZa0NraGIyaklubA==";

fn keys(server: &Seen, items: &[&str]) -> Answer {
    let host = server.header("host").unwrap_or_default();
    let items: Vec<_> = items
        .iter()
        .map(|key| {
            let url =
                format!("http://{host}/v2/key-value-stores/A2/records/{key}?signature=c2lnbmVk");
            serde_json::json!({"key": key, "size": 1, "recordPublicUrl": url})
        })
        .collect();
    Answer::new(
        200,
        serde_json::json!({"data": {"items": items, "isTruncated": false}}).to_string(),
    )
}

/// Not as a token, nor in the address that a browser would tell as the referrer.
#[test]
fn a_redirect_to_another_host_carries_nothing_of_a_signed_link() {
    let elsewhere = ScriptedServer::start(|_, _| Answer::new(200, "moved"));
    let there = format!("{}bucket/a?X-Amz-Signature=b3RoZXI", elsewhere.url());
    let server = ScriptedServer::start(move |seen, _| {
        if seen.path().ends_with("/keys") {
            keys(seen, &["a"])
        } else {
            Answer::new(302, "").header("location", &there)
        }
    });
    let listed = format!(
        "{}v2/key-value-stores/A2/keys?signature={SIGNATURE}",
        server.url()
    );
    let store = open(&config(&listed, &server)).expect("a store");
    let found = store.get(&key("a"), &GetRequest::default(), deadline());
    assert!(matches!(found, Ok(GetOutcome::Found(_))), "{found:?}");
    assert!(
        server
            .seen()
            .iter()
            .any(|seen| seen.target.contains("signature="))
    );
    let seen = elsewhere.seen();
    assert_eq!(seen.len(), 1);
    let all = format!("{seen:?}");
    for part in [SIGNATURE, "c2lnbmVk", "key-value-stores"] {
        assert!(!all.contains(part), "{all}");
    }
    for name in ["authorization", "cookie", "referer"] {
        assert_eq!(seen[0].header(name), None, "{all}");
    }
}

#[test]
fn a_signed_listing_opens_its_records_by_their_links() {
    let server = ScriptedServer::start(|seen, _| {
        if seen.path().ends_with("/keys") {
            let all = ["a", "b"];
            let prefix = seen.target.contains("prefix=b");
            keys(seen, if prefix { &all[1..] } else { &all[..1] })
        } else if seen.target.contains("signature=c2lnbmVk") && seen.method == "GET" {
            Answer::new(200, "x")
        } else {
            Answer::error(403, "insufficient-permissions", "x")
        }
    });
    let reference = format!(
        "{}v2/key-value-stores/A2/keys?signature={SIGNATURE}",
        server.url()
    );
    let store = open(&config(&reference, &server)).expect("a store");
    assert_eq!(
        (store.info().id.as_str(), store.info().expires),
        ("A2", None)
    );
    for name in ["a", "b"] {
        assert_eq!(
            store
                .head(&key(name), deadline())
                .expect("a head")
                .stored_size,
            Some(1)
        );
    }
    let request = GetRequest::default();
    store
        .get(&key("a"), &request, deadline())
        .expect("a record");
    let error = store
        .get(&key("c"), &request, deadline())
        .expect_err("not listed");
    assert_eq!(error.kind(), ErrorKind::NotFound);
    let error = store.delete(&key("a"), deadline()).expect_err("read-only");
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(
        server
            .seen()
            .iter()
            .all(|seen| seen.header("authorization").is_none())
    );
    let lookups = server
        .seen()
        .iter()
        .filter(|seen| seen.path().ends_with("/keys"))
        .count();
    assert_eq!(lookups, 3, "opening, b and c");
    let heads = server
        .seen()
        .iter()
        .filter(|seen| seen.method == "HEAD")
        .count();
    assert_eq!(heads, 1, "HEAD was refused once");
}

#[test]
fn an_expired_signature_says_so_without_a_request() {
    let server = ScriptedServer::queue([]);
    // Expired in 2023.
    let signature = "MC4xNzAwMDAzNjAwMDAwLjhvcDB0aFlNV1lFbEFOSTFEbVBG";
    let reference = format!(
        "{}v2/key-value-stores/A2/keys?signature={signature}",
        server.url()
    );
    let error = open(&config(&reference, &server)).expect_err("expired");
    assert_eq!(error.kind(), ErrorKind::SignatureExpired);
    assert!(!shown(&error).contains(signature));
    assert!(server.seen().is_empty());
}

#[test]
fn a_wrong_signature_is_denied_and_not_shown() {
    let server = ScriptedServer::start(|seen, _| {
        let echo = format!("cannot accept {}", seen.target);
        Answer::error(403, "insufficient-permissions", &echo)
    });
    for secret in [SIGNATURE, "c2lnbmVk"] {
        let reference = format!(
            "{}v2/key-value-stores/A2/keys?signature={secret}",
            server.url()
        );
        let error = open(&config(&reference, &server)).expect_err("denied");
        assert_eq!(error.kind(), ErrorKind::Denied);
        assert!(!shown(&error).contains("MC4w"), "{error}");
    }
}

#[test]
fn record_urls_are_a_store_of_just_these() {
    let server = ScriptedServer::start(|seen, _| {
        if seen.path().ends_with("missing") {
            return Answer::error(404, "record-not-found", "Record was not found");
        }
        match seen.method.as_str() {
            "HEAD" => Answer::new(405, ""),
            _ => Answer::new(200, "four").header("content-type", "text/plain"),
        }
    });
    let url = |path: &str| format!("{}v2/key-value-stores/{path}", server.url());
    let urls = [
        url("A1/records/b?signature=c2lnbmVk"),
        url("A1/records/a%2Fc"),
    ];
    let config = OpenConfig {
        reference: kvfs::store::reference::StoreRef::parse(&urls).expect("records"),
        ..config(ID, &server)
    };
    let store = open(&config).expect("a store");
    let all = store
        .list_page(&ListQuery::default(), deadline())
        .expect("a page");
    let found: Vec<_> = all
        .items
        .iter()
        .map(|item| (item.key.as_str(), item.stored_size))
        .collect();
    assert_eq!(found, [("a/c", Some(4)), ("b", Some(4))]);
    let first = ListQuery {
        limit: Some(1),
        ..ListQuery::default()
    };
    let page = store.list_page(&first, deadline()).expect("a page");
    assert_eq!((page.items.len(), page.next.as_deref()), (1, Some("a/c")));
    let Ok(GetOutcome::Found(fetched)) = store.get(&key("b"), &GetRequest::default(), deadline())
    else {
        panic!("no record");
    };
    assert_eq!(read(fetched).expect("bytes"), b"four");
    let error = store.head(&key("z"), deadline()).expect_err("not given");
    assert_eq!(error.kind(), ErrorKind::NotFound);

    let missing = OpenConfig {
        reference: url("A1/records/missing?signature=c2lnbmVk")
            .parse()
            .expect("a record"),
        ..config
    };
    let error = open(&missing).expect_err("missing");
    assert_eq!(error.kind(), ErrorKind::NotFound);
    shown(&error);
}

// Living together

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
fn signed_record_urls_get_no_token() {
    let server = ScriptedServer::start(|_, _| Answer::new(200, "x"));
    let url = |rest: &str| format!("{}v2/key-value-stores/A1/records/{rest}", server.url());
    let urls = [url("a?signature=c2lnbmVk"), url("b")];
    let config = OpenConfig {
        reference: kvfs::store::reference::StoreRef::parse(&urls).expect("records"),
        ..config(ID, &server)
    };
    open(&config).expect("a store");
    for seen in server.seen() {
        let is_signed = seen.target.contains("signature");
        assert_eq!(
            seen.header("authorization").is_none(),
            is_signed,
            "{}",
            seen.target
        );
    }
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
