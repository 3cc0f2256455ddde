//! Records as they are put, sent, listed and asked for in parts.

use std::io::{Read, Write};
use std::net::TcpStream;

use kvfs::store::{Encoding, GetOutcome, GetRequest, ListQuery};
use serde_json::Value;

use super::{assert_error, bytes, client, header, keys, owner, raw_call, send};
use crate::support::served::{TOKEN, TestServer, encode, key, soon};

#[test]
fn a_record_is_stored_and_sent_as_it_was_put() {
    let server = TestServer::start();
    let body = encode(&Encoding::Brotli, b"some json");
    let response = send(
        client()
            .put(server.record_url("my!key'(v1).json"))
            .bearer_auth(TOKEN)
            .header("content-type", "application/json; charset=utf-8")
            .header("content-encoding", "br")
            .body(body.clone()),
    );
    assert_eq!(response.status(), 201);
    let location = header(&response, "location")
        .expect("a location")
        .to_owned();
    assert!(
        location.ends_with("/records/my%21key%27%28v1%29.json"),
        "{location}"
    );
    let response = send(
        client()
            .get(location)
            .bearer_auth(TOKEN)
            .header("accept-encoding", "br"),
    );
    assert_eq!(
        header(&response, "content-type"),
        Some("application/json; charset=utf-8")
    );
    assert_eq!(header(&response, "content-encoding"), Some("br"));
    assert_eq!(header(&response, "x-ratelimit-limit"), Some("200"));
    assert_eq!(header(&response, "x-ratelimit-enforced"), Some("no"));
    assert_eq!(
        header(&response, "content-length"),
        Some(&*body.len().to_string())
    );
    assert_eq!(bytes(response), body);

    let head = send(
        client()
            .head(server.record_url("my!key'(v1).json"))
            .bearer_auth(TOKEN)
            .header("accept-encoding", "gzip, br"),
    );
    assert_eq!(head.status(), 200);
    assert_eq!(
        header(&head, "content-length"),
        Some(&*body.len().to_string())
    );
    assert_eq!(header(&head, "content-encoding"), Some("br"));

    let deleted = send(
        client()
            .delete(server.record_url("my!key'(v1).json"))
            .bearer_auth(TOKEN),
    );
    assert_eq!(deleted.status(), 204);
    let again = send(
        client()
            .delete(server.record_url("my!key'(v1).json"))
            .bearer_auth(TOKEN),
    );
    assert_eq!(again.status(), 204);
    assert_eq!(keys(&server, "")["count"], 0);
}

#[test]
fn an_empty_body_makes_an_empty_record_with_a_content_type() {
    let server = TestServer::start();
    let path = format!("/v2/key-value-stores/{}/records/e", server.entry.id);
    for length in [
        "",
        "Content-Length: 0\r\n",
        "Transfer-Encoding: chunked\r\n",
    ] {
        let end = if length.starts_with('T') {
            "\r\n0\r\n"
        } else {
            ""
        };
        let (status, text) = raw_call(&server, "PUT", &path, &format!("{length}{end}"));
        assert_eq!(status, 201, "{text}");
        let response = owner(&server, &path);
        assert_eq!(
            header(&response, "content-type"),
            Some("application/octet-stream")
        );
        assert_eq!(header(&response, "content-length"), Some("0"));
        assert!(bytes(response).is_empty());
    }
}

#[test]
fn dots_and_slashes_in_keys_reach_records_and_trailing_slashes_no_store() {
    let server = TestServer::start();
    let store = format!("/v2/key-value-stores/{}", server.entry.id);
    for (encoded, name) in [("%2E", "."), ("%2e%2E", ".."), ("..%2e", "...")] {
        let path = format!("{store}/records/{encoded}");
        let (status, text) = raw_call(&server, "PUT", &path, "Content-Length: 0\r\n");
        assert_eq!(status, 201, "{text}");
        server.store().head(&key(name), soon()).expect("a record");
    }
    for path in [
        format!("{store}/"),
        format!("{store}/records/"),
        format!("{store}/records/../"),
    ] {
        let (status, _) = raw_call(&server, "DELETE", &path, "");
        assert_eq!(status, 404, "{path}");
    }
    // A folder may hold keys that nobody could put through the API.
    std::fs::create_dir(server.store_folder().join("a")).expect("a folder");
    std::fs::write(server.store_folder().join("a/b.txt"), "nested").expect("a file");
    let response = owner(&server, &format!("{store}/records/a%2Fb"));
    assert_eq!(bytes(response), b"nested");
    assert_eq!(keys(&server, "?prefix=a")["items"][0]["key"], "a/b");
}

#[test]
fn records_are_decoded_for_clients_that_do_not_take_their_encoding() {
    let server = TestServer::start();
    let content = b"content ".repeat(20_000);
    for (name, encoding) in [
        ("gzip", Encoding::Gzip),
        ("br", Encoding::Brotli),
        ("deflate", Encoding::Deflate),
    ] {
        let stored = server.put_encoded(name, "text/plain", encoding, &content);
        let get = |accept: Option<&str>| {
            let mut request = client().get(server.record_url(name)).bearer_auth(TOKEN);
            if let Some(accept) = accept {
                request = request.header("accept-encoding", accept);
            }
            send(request)
        };
        for accept in [
            None,
            Some("zstd"),
            Some("identity"),
            Some(&*format!("{name};q=0, zstd")),
            // Nothing that there is would do, and no record is refused for that.
            Some("identity;q=0"),
            Some("zstd, *;q=0"),
        ] {
            let response = get(accept);
            assert_eq!(
                header(&response, "content-encoding"),
                None,
                "{name} {accept:?}"
            );
            assert_eq!(header(&response, "content-length"), None);
            assert_eq!(header(&response, "accept-ranges"), None);
            assert!(bytes(response) == content, "{name} {accept:?}");
        }
        for accept in [
            "*",
            "gzip, compress, deflate, br",
            &format!("{name};q=0.1, identity;q=0"),
        ] {
            let response = get(Some(accept));
            assert_eq!(header(&response, "content-encoding"), Some(name));
            assert_eq!(header(&response, "vary"), Some("Accept-Encoding"));
            assert!(bytes(response) == stored, "{name} {accept}");
        }
        let decoded = get(None).headers()["etag"].clone();
        assert_ne!(decoded, get(Some("*")).headers()["etag"]);
        let head = send(client().head(server.record_url(name)).bearer_auth(TOKEN));
        // As on the platform: how long it is when decoded would have to be counted.
        let length = stored.len().to_string();
        assert_eq!(header(&head, "content-length"), Some(&*length));
        assert_eq!(header(&head, "content-encoding"), None);
    }
}

#[test]
fn a_record_that_does_not_decode_breaks_the_answer_off() {
    let server = TestServer::start();
    let mut stored = encode(
        &Encoding::Gzip,
        &(0..400_000u32)
            .flat_map(u32::to_le_bytes)
            .collect::<Vec<u8>>(),
    );
    stored.truncate(stored.len() - 100);
    server.put("cut", "text/plain", Encoding::Gzip, &stored);
    let response = send(client().get(server.record_url("cut")).bearer_auth(TOKEN));
    assert!(response.bytes().is_err());
    server.put("wrong", "text/plain", Encoding::Gzip, b"this is no gzip");
    let response = send(client().get(server.record_url("wrong")).bearer_auth(TOKEN));
    // That shows before the answer begins: as stored is all there is, and no gzip.
    assert_eq!(header(&response, "content-encoding"), None);
    let head = send(client().head(server.record_url("wrong")).bearer_auth(TOKEN));
    for name in ["etag", "content-encoding", "content-length", "content-type"] {
        assert_eq!(header(&head, name), header(&response, name), "{name}");
    }
    assert_eq!(bytes(response), b"this is no gzip");
    let taken = client().get(server.record_url("wrong")).bearer_auth(TOKEN);
    let taken = send(taken.header("accept-encoding", "gzip"));
    assert_eq!(header(&taken, "content-encoding"), Some("gzip"));
}

#[test]
fn ranges_are_honoured_for_records_sent_as_stored() {
    let server = TestServer::start();
    server.put_text("k", "0123456789");
    let get = |range: &str, if_range: Option<&str>| {
        let mut request = client()
            .get(server.record_url("k"))
            .bearer_auth(TOKEN)
            .header("range", range);
        if let Some(validator) = if_range {
            request = request.header("if-range", validator);
        }
        send(request)
    };
    for (range, content_range, part) in [
        ("bytes=0-3", "bytes 0-3/10", &b"0123"[..]),
        ("bytes=7-", "bytes 7-9/10", b"789"),
        ("bytes=-2", "bytes 8-9/10", b"89"),
        ("bytes=5-99", "bytes 5-9/10", b"56789"),
    ] {
        let response = get(range, None);
        assert_eq!(response.status(), 206);
        assert_eq!(header(&response, "content-range"), Some(content_range));
        assert_eq!(
            header(&response, "content-length"),
            Some(&*part.len().to_string())
        );
        assert_eq!(bytes(response), part);
    }
    let response = get("bytes=10-", None);
    assert_eq!(header(&response, "content-range"), Some("bytes */10"));
    assert_error(response, 416, "range-not-satisfiable");
    let whole = get("bytes=0-1,3-4", None);
    assert_eq!(
        (whole.status().as_u16(), header(&whole, "accept-ranges")),
        (200, Some("bytes"))
    );
    let etag = header(&whole, "etag").expect("a tag").to_owned();
    assert_eq!(get("bytes=0-3", Some(&etag)).status(), 206);
    assert_eq!(get("bytes=0-3", Some("\"other\"")).status(), 200);
    assert_eq!(server.counts().ranged, 8);
}

#[test]
fn preconditions_are_judged_in_the_rfcs_order() {
    let server = TestServer::start();
    server.put_text("k", "one");
    let get = |headers: &[(&str, &str)]| {
        let mut request = client().get(server.record_url("k")).bearer_auth(TOKEN);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        send(request)
    };
    let first = get(&[]);
    let etag = header(&first, "etag").expect("a tag").to_owned();
    let date = header(&first, "last-modified").expect("a date").to_owned();
    let unchanged = get(&[("if-none-match", &etag)]);
    assert_eq!(unchanged.status(), 304);
    assert_eq!(header(&unchanged, "etag"), Some(&*etag));
    assert_eq!(header(&unchanged, "content-length"), None);
    assert_eq!(get(&[("if-none-match", "\"x\", *")]).status(), 304);
    assert_eq!(
        get(&[("if-none-match", &format!("W/{etag}"))]).status(),
        304
    );
    assert_eq!(get(&[("if-modified-since", &date)]).status(), 304);
    assert_eq!(
        get(&[("if-none-match", "\"x\""), ("if-modified-since", &date)]).status(),
        200
    );
    assert_eq!(get(&[("if-match", &etag)]).status(), 200);
    assert_error(get(&[("if-match", "\"x\"")]), 412, "precondition-failed");
    server.put_text("k", "two");
    assert_eq!(get(&[("if-none-match", &etag)]).status(), 200);
    let put = |name: &str, value: &str| {
        let request = client().put(server.record_url("k")).bearer_auth(TOKEN);
        send(request.header(name, value).body("three"))
            .status()
            .as_u16()
    };
    assert_eq!(put("if-match", &etag), 412);
    assert_eq!(put("if-none-match", "*"), 412);
    assert_eq!(put("if-match", "*"), 201);
    assert_eq!(server.counts().conditional, 11);
}

#[test]
fn servers_without_validators_ranges_or_lengths_can_be_imitated() {
    let server = TestServer::start_with(|config| {
        config.knobs.etags = false;
        config.knobs.ranges = false;
        config.knobs.content_length = false;
    });
    server.put_text("k", "text");
    let response = send(
        client()
            .get(server.record_url("k"))
            .bearer_auth(TOKEN)
            .header("range", "bytes=0-1")
            .header("if-none-match", "*"),
    );
    assert_eq!(response.status(), 200);
    for name in ["etag", "last-modified", "accept-ranges", "content-length"] {
        assert_eq!(header(&response, name), None, "{name}");
    }
    assert_eq!(bytes(response), b"text");
    let head = send(client().head(server.record_url("k")).bearer_auth(TOKEN));
    assert_eq!(header(&head, "content-length"), None);
}

#[test]
fn listings_are_paged_with_literal_nulls() {
    let server = TestServer::start();
    for name in ["a", "B", "_", "aa"] {
        server.put_text(name, name);
    }
    let all = keys(&server, "");
    let names: Vec<&str> = all["items"]
        .as_array()
        .expect("items")
        .iter()
        .filter_map(|item| item["key"].as_str())
        .collect();
    assert_eq!(names, ["B", "_", "a", "aa"]);
    assert_eq!(all["count"], 4);
    assert_eq!(all["limit"], 1000);
    assert_eq!(all["isTruncated"], false);
    for name in ["exclusiveStartKey", "nextExclusiveStartKey"] {
        assert_eq!(all.get(name), Some(&Value::Null), "{name}");
    }
    assert_eq!(all["items"][3]["size"], 2);
    let page = keys(&server, "?limit=2&exclusiveStartKey=A");
    assert_eq!(page["nextExclusiveStartKey"], "_");
    assert_eq!(page["exclusiveStartKey"], "A");
    assert_eq!(page["isTruncated"], true);
    assert_eq!(keys(&server, "?limit=0")["limit"], 1000);
    assert_eq!(keys(&server, "?limit=5000")["limit"], 1000);
    assert_eq!(keys(&server, "?prefix=a")["count"], 2);
    assert_eq!(server.counts().list, 5);
}

#[test]
fn a_put_that_breaks_off_stores_nothing() {
    let server = TestServer::start();
    server.put_text("old", "old");
    let path = |name: &str| format!("/v2/key-value-stores/{}/records/{name}", server.entry.id);
    for name in ["old", "new"] {
        for (framing, part) in [
            ("Content-Length: 1000", "only a part"),
            ("Transfer-Encoding: chunked", "5\r\nparts\r\n"),
        ] {
            let mut connection = TcpStream::connect(server.server.addr()).expect("a connection");
            let head = format!(
                "PUT {} HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer {TOKEN}\r\n{framing}\r\n\r\n{part}",
                path(name)
            );
            connection.write_all(head.as_bytes()).expect("a request");
            connection
                .shutdown(std::net::Shutdown::Write)
                .expect("an end");
            let mut answer = String::new();
            // The server may hang up or say why first.
            let _ = connection.read_to_string(&mut answer);
            assert!(answer.is_empty() || answer.contains("400"), "{answer}");
        }
    }
    let page = server
        .store()
        .list_page(&ListQuery::default(), soon())
        .expect("a page");
    assert_eq!(page.items.len(), 1);
    let outcome = server
        .store()
        .get(&key("old"), &GetRequest::default(), soon());
    let Ok(GetOutcome::Found(mut found)) = outcome else {
        panic!("{outcome:?}");
    };
    let mut text = String::new();
    found.body.read_to_string(&mut text).expect("a body");
    assert_eq!(text, "old");
}
