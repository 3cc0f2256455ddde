//! `--platform`: answers as the platform was recorded to give them.

use std::io::Read;
use std::time::{Duration, SystemTime};

use kvfs::server::{Platform, StoreClockKind};
use kvfs::store::Encoding;
use reqwest::Method;

use super::*;

fn served(change: impl FnOnce(&mut Platform)) -> TestServer {
    TestServer::start_with(|config| {
        config.general_access = kvfs::server::GeneralAccess::AnyoneWithNameCanRead;
        let mut platform = Platform::default();
        change(&mut platform);
        config.platform = Some(platform);
    })
}

fn ask(server: &TestServer, method: Method, path: &str, headers: &[(&str, &str)]) -> Response {
    let url = format!("{}{path}", server.store_url());
    let mut request = client().request(method, url).bearer_auth(TOKEN);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    send(request)
}

#[track_caller]
fn assert_common(response: &Response, limit: Option<&str>) {
    assert_eq!(header(response, "x-ratelimit-limit"), limit);
    assert_eq!(header(response, "x-ratelimit-enforced"), None);
    for (name, value) in [
        ("cache-control", "no-cache, no-store, must-revalidate"),
        ("pragma", "no-cache"),
        ("expires", "0"),
        ("referrer-policy", "no-referrer"),
        ("x-robots-tag", "none"),
        ("access-control-allow-origin", "*"),
    ] {
        assert_eq!(header(response, name), Some(value), "{name}");
    }
}

#[test]
fn records_have_nothing_to_revalidate_or_resume_with() {
    let server = served(|_| {});
    server.put_text("plain", "0123456789");
    let stored = server.put_encoded("packed", HTML, Encoding::Gzip, &[b'x'; 5000]);
    let conditions = [
        ("range", "bytes=2-3"),
        ("if-none-match", "*"),
        ("if-match", "\"other\""),
        ("if-modified-since", "Fri, 01 Jan 2100 00:00:00 GMT"),
    ];
    for method in [Method::GET, Method::HEAD] {
        let response = ask(&server, method.clone(), "/records/plain", &conditions);
        assert_eq!(response.status(), 200);
        assert_common(&response, Some("200"));
        for unknown in [
            "etag",
            "last-modified",
            "accept-ranges",
            "vary",
            "content-range",
        ] {
            assert_eq!(header(&response, unknown), None, "{unknown}");
        }
        assert_eq!(
            header(&response, "content-security-policy"),
            Some("script-src 'none'")
        );
        assert_eq!(header(&response, "content-length"), Some("10"));
        assert_eq!(
            header(&response, "content-type"),
            Some("text/plain; charset=utf-8")
        );
        let body: &[u8] = if method == Method::GET {
            b"0123456789"
        } else {
            b""
        };
        assert_eq!(bytes(response), body);
    }
    let path = "/records/packed?attachment=true";
    let packed = ask(
        &server,
        Method::GET,
        path,
        &[("accept-encoding", "gzip, br")],
    );
    assert_eq!(header(&packed, "content-encoding"), Some("gzip"));
    assert_eq!(bytes(packed), stored);
    assert_eq!(bytes(ask(&server, Method::GET, path, &[])), [b'x'; 5000]);
}

#[test]
fn conditions_of_writes_are_ignored_and_a_put_is_answered_with_an_empty_object() {
    let server = served(|_| {});
    server.put_text("here", "old");
    for condition in [("if-none-match", "*"), ("if-match", "\"other\"")] {
        let response = ask(&server, Method::PUT, "/records/here", &[condition]);
        assert_eq!(response.status(), 201);
        assert_common(&response, Some("200"));
        assert_eq!(header(&response, "location"), None);
        let tag = "W/\"2-vyGp6PvFo4RvsFtPoIWeCReyIC8\"";
        assert_eq!(header(&response, "etag"), Some(tag));
        assert_eq!(bytes(response), b"{}");
    }
    let deleted = ask(
        &server,
        Method::DELETE,
        "/records/here",
        &[("if-match", "\"other\"")],
    );
    assert_eq!(deleted.status(), 204);
    assert_common(&deleted, Some("200"));
}

#[test]
fn objects_and_pages_are_indented_tagged_and_compressed_when_long() {
    for not_modified in [true, false] {
        let server = served(|platform| platform.not_modified = not_modified);
        for key in 0..20 {
            server.put_text(&format!("key-{key:02}"), "x");
        }
        for (path, limit) in [("/keys", "200"), ("", "60")] {
            let plain = ask(&server, Method::GET, path, &[]);
            assert_common(&plain, Some(limit));
            let tag = header(&plain, "etag").expect("a tag").to_owned();
            let length = plain.content_length().expect("a length");
            let text = bytes(plain);
            assert_eq!(text.len() as u64, length);
            assert!(text.starts_with(b"{\n  \"data\": {\n    \""));
            assert!(tag.starts_with(&format!("W/\"{length:x}-")), "{tag}");
            let known = [("if-none-match", &*tag)];
            let again = ask(&server, Method::GET, path, &known);
            assert_eq!(again.status(), if not_modified { 304 } else { 200 });
            assert_eq!(header(&again, "etag"), Some(&*tag));
            let packed = ask(&server, Method::GET, path, &[("accept-encoding", "gzip")]);
            let is_long = text.len() >= 1024;
            assert_eq!(
                header(&packed, "content-encoding"),
                is_long.then_some("gzip")
            );
            assert_eq!(
                header(&packed, "vary"),
                is_long.then_some("Accept-Encoding")
            );
            assert_eq!(header(&packed, "etag"), Some(&*tag));
            if is_long {
                assert_eq!(header(&packed, "transfer-encoding"), Some("chunked"));
                let mut unpacked = Vec::new();
                flate2::read::GzDecoder::new(&*bytes(packed))
                    .read_to_end(&mut unpacked)
                    .expect("gzip");
                assert_eq!(unpacked, text);
            }
        }
    }
}

#[test]
fn errors_are_worded_as_recorded() {
    let server = served(|_| {});
    let missing = ask(&server, Method::GET, "/records/missing", &[]);
    assert_common(&missing, Some("200"));
    let text = "{\n  \"error\": {\n    \"type\": \"record-not-found\",\n    \"message\": \"Record was not found\"\n  }\n}";
    assert_eq!(bytes(missing), text.as_bytes());
    let nowhere = ask(&server, Method::GET, "/nowhere", &[]);
    assert_common(&nowhere, None);
    let text = String::from_utf8(bytes(nowhere)).expect("text");
    assert!(
        text.contains("at this URL. Did you specify it correctly?\""),
        "{text}"
    );
}

fn state(server: &TestServer) -> (String, u64) {
    let object = data(owner(
        server,
        &format!("/v2/key-value-stores/{}", server.entry.id),
    ));
    let modified = object["modifiedAt"].as_str().expect("a time").to_owned();
    (
        modified,
        object["stats"]["writeCount"].as_u64().expect("a count"),
    )
}

#[track_caller]
fn wait_for(server: &TestServer, wanted: impl Fn(&(String, u64)) -> bool) {
    let start = SystemTime::now();
    while !wanted(&state(server)) {
        let waited = start.elapsed().unwrap_or_default();
        assert!(waited < Duration::from_secs(30), "{:?}", state(server));
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn the_time_of_the_last_change_follows_writes_after_a_while() {
    let server = served(|platform| {
        platform.lag = Duration::from_secs(2);
        platform.rested = Duration::from_secs(3600);
    });
    let before = state(&server);
    assert_eq!(before.1, 0);
    assert_eq!(ask(&server, Method::PUT, "/records/a", &[]).status(), 201);
    assert_eq!(
        ask(&server, Method::DELETE, "/records/a", &[]).status(),
        204
    );
    assert_eq!(state(&server), before, "not at once");
    wait_for(&server, |now| now.1 == 2 && now.0 > before.0);
    let between = state(&server);
    server.put_text("b", "written into the folder");
    wait_for(&server, |now| now.1 == 3 && now.0 > between.0);
}

#[test]
fn the_time_of_the_last_change_can_be_no_use() {
    for (clock, moves) in [
        (StoreClockKind::Nothing, "no"),
        (StoreClockKind::Reads, "on"),
        (StoreClockKind::Back, "back"),
    ] {
        let server = served(|platform| {
            platform.lag = Duration::ZERO;
            platform.rested = Duration::from_secs(3600);
            platform.clock = clock;
        });
        let before = state(&server).0;
        if clock == StoreClockKind::Reads {
            ask(&server, Method::GET, "/records/a", &[]);
        } else {
            ask(&server, Method::PUT, "/records/a", &[]);
        }
        let after = state(&server).0;
        let moved = match after.cmp(&before) {
            std::cmp::Ordering::Less => "back",
            std::cmp::Ordering::Equal => "no",
            std::cmp::Ordering::Greater => "on",
        };
        assert_eq!(moved, moves, "{clock:?}");
    }
}

#[test]
fn limits_are_enforced_when_asked_for() {
    let server = served(|platform| platform.limits = true);
    let start = std::time::Instant::now();
    let mut refused = 0;
    let client = client();
    let url = server.store_url();
    for _ in 0..200 {
        let response = send(client.get(&url).bearer_auth(TOKEN));
        refused += u64::from(response.status() == 429);
    }
    // However slow this machine is: no second sees more than 60.
    let seconds = start.elapsed().as_secs() + 1;
    assert!(
        200 - refused <= 60 * seconds,
        "{refused} refused in {seconds} s"
    );
}
