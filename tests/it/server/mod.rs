//! The server as its clients see it.

mod crash;
mod process;
mod rehearsal;
mod safety;
mod stores;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, SystemTime};

use kvfs::redact::Secret;
use kvfs::server::{GeneralAccess, User};
use kvfs::store::{Encoding, GetOutcome, GetRequest, ListQuery};
use reqwest::blocking::{Client, RequestBuilder, Response};
use serde_json::{Value, json};

use crate::support::served::{STORE, TOKEN, TestServer, encode, key, soon};

const HTML: &str = "text/html; charset=utf-8";

fn client() -> Client {
    // Fails only if another test was first.
    let _ = rustls::crypto::ring::default_provider().install_default();
    Client::builder()
        .no_proxy()
        .timeout(Duration::from_secs(300))
        .build()
        .expect("a client")
}

fn send(request: RequestBuilder) -> Response {
    request.send().expect("an answer")
}

/// Asks as the owner.
fn owner(server: &TestServer, path: &str) -> Response {
    send(
        client()
            .get(format!("{}{path}", server.url()))
            .bearer_auth(TOKEN),
    )
}

fn header<'a>(response: &'a Response, name: &str) -> Option<&'a str> {
    response
        .headers()
        .get(name)
        .map(|value| value.to_str().expect("text"))
}

fn bytes(response: Response) -> Vec<u8> {
    response.bytes().expect("a body").to_vec()
}

#[track_caller]
fn assert_error(response: Response, status: u16, kind: &str) {
    assert_eq!(response.status().as_u16(), status, "{}", response.url());
    let body: Value = serde_json::from_slice(&bytes(response)).expect("JSON");
    assert_eq!(body["error"]["type"], kind, "{body}");
    assert!(body["error"]["message"].is_string(), "{body}");
}

/// Returns what an answer holds in its envelope.
fn data(response: Response) -> Value {
    let body: Value = serde_json::from_slice(&bytes(response)).expect("JSON");
    body["data"].clone()
}

fn keys(server: &TestServer, query: &str) -> Value {
    let response = owner(
        server,
        &format!("/v2/key-value-stores/{}/keys{query}", server.entry.id),
    );
    assert_eq!(response.status(), 200);
    let body: Value = serde_json::from_slice(&bytes(response)).expect("JSON");
    body["data"].clone()
}

/// Sends bytes as they are and returns everything that comes back.
fn raw(server: &TestServer, request: &str) -> (u16, String) {
    let mut connection = TcpStream::connect(server.server.addr()).expect("a connection");
    connection
        .set_read_timeout(Some(Duration::from_secs(30)))
        .expect("a timeout");
    connection.write_all(request.as_bytes()).expect("a request");
    let mut answer = Vec::new();
    connection.read_to_end(&mut answer).expect("an answer");
    let text = String::from_utf8_lossy(&answer).into_owned();
    let status = text
        .split(' ')
        .nth(1)
        .and_then(|status| status.parse().ok())
        .unwrap_or_else(|| panic!("no status: {text}"));
    (status, text)
}

fn raw_call(server: &TestServer, method: &str, path: &str, more: &str) -> (u16, String) {
    raw(
        server,
        &format!(
            "{method} {path} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\
             Authorization: Bearer {TOKEN}\r\n{more}\r\n"
        ),
    )
}

#[test]
fn errors_have_the_platforms_statuses_and_types() {
    let server = TestServer::start_with(|config| {
        config.other_users.push((
            User {
                id: "otherUser00000001".into(),
                username: "other".into(),
            },
            Secret::new("T2"),
        ));
    });
    server.put_text("k", "v");
    let store = format!("/v2/key-value-stores/{}", server.entry.id);
    let anonymous = |path: String| send(client().get(format!("{}{path}", server.url())));
    let with = |path: String, token: &str| {
        send(
            client()
                .get(format!("{}{path}", server.url()))
                .bearer_auth(token),
        )
    };
    assert_error(
        owner(&server, &format!("{store}/records/none")),
        404,
        "record-not-found",
    );
    assert_error(
        owner(&server, "/v2/key-value-stores/AAAAAAAAAAAAAAAAA"),
        404,
        "record-not-found",
    );
    assert_error(
        owner(&server, &format!("/v2/key-value-stores/{STORE}")),
        404,
        "record-not-found",
    );
    assert_error(
        owner(&server, "/v2/key-value-stores/~"),
        400,
        "invalid-request",
    );
    assert_error(
        owner(&server, "/v2/key-value-stores/local~"),
        400,
        "invalid-request",
    );
    assert_error(owner(&server, "/v2/nowhere"), 404, "page-not-found");
    assert_error(owner(&server, &format!("{store}/")), 404, "page-not-found");
    assert_error(
        owner(&server, &format!("{store}/records/a%20b")),
        400,
        "invalid-record-key",
    );
    assert_error(
        owner(&server, &format!("{store}/keys?limit=x")),
        400,
        "invalid-request",
    );
    assert_error(
        owner(&server, &format!("{store}/keys?collection=c")),
        400,
        "invalid-collection",
    );
    assert_error(anonymous("/v2/users/me".into()), 401, "token-not-provided");
    assert_error(
        anonymous("/v2/key-value-stores".into()),
        401,
        "token-not-provided",
    );
    assert_error(
        anonymous(format!("{store}/keys")),
        403,
        "insufficient-permissions",
    );
    assert_error(
        anonymous(format!("{store}/records/k")),
        403,
        "insufficient-permissions",
    );
    assert_error(
        with(format!("{store}/records/k"), "T2"),
        403,
        "insufficient-permissions",
    );
    assert_error(
        with(format!("{store}/keys"), "T2"),
        403,
        "insufficient-permissions",
    );
    assert_error(
        with(format!("{store}/keys"), "wrong"),
        401,
        "user-or-token-not-found",
    );
    assert_error(
        anonymous(format!("{store}/records/k?signature=x")),
        403,
        "insufficient-permissions",
    );
    let put = |key: &str| {
        client()
            .put(server.record_url(key))
            .bearer_auth(TOKEN)
            .body("x")
    };
    assert_error(send(put("a%2Fb")), 400, "invalid-record-key");
    assert_error(
        send(put("a").header("content-encoding", "bla")),
        415,
        "unsupported-content-encoding",
    );
    assert_error(
        send(
            put("a")
                .header("content-encoding", "bla")
                .header("content-type", HTML),
        ),
        403,
        "content-encoding-forbidden-for-html",
    );
    assert_error(
        send(client().put(server.record_url("a")).body("x")),
        401,
        "token-not-provided",
    );
    assert_error(
        send(client().patch(server.record_url("a")).bearer_auth(TOKEN)),
        405,
        "method-not-allowed",
    );
    let (status, text) = raw_call(&server, "TRACE", &format!("{store}/keys"), "");
    assert_eq!(status, 405);
    assert!(
        text.contains("using the following HTTP methods: OPTIONS,GET\""),
        "{text}"
    );
    let worker = client()
        .get(server.record_url("k"))
        .bearer_auth(TOKEN)
        .header("service-worker", "script");
    assert_error(send(worker), 403, "service-worker-registration-not-allowed");
}

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
        assert_eq!(header(&head, "content-length"), None);
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
    // That shows before the answer begins: as stored is all there is.
    assert_eq!(header(&response, "content-encoding"), Some("gzip"));
    assert_eq!(bytes(response), b"this is no gzip");
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
fn signed_urls_open_what_they_were_signed_for() {
    let server = TestServer::start();
    server.put_text("k", "v");
    server.put_text("l", "w");
    let page = keys(&server, "");
    let url = page["items"][0]["recordPublicUrl"].as_str().expect("a URL");
    assert!(url.contains("/records/k?signature="), "{url}");
    assert_eq!(bytes(send(client().get(url))), b"v");
    assert_eq!(send(client().head(url)).status(), 200);
    let other = url.replace("/records/k?", "/records/l?");
    assert_error(send(client().get(other)), 403, "insufficient-permissions");

    let store = owner(
        &server,
        &format!("/v2/key-value-stores/{}", server.entry.id),
    );
    let store: Value = serde_json::from_slice(&bytes(store)).expect("JSON");
    assert!(store["data"]["urlSigningSecretKey"].is_string());
    let keys_url = store["data"]["keysPublicUrl"].as_str().expect("a URL");
    for padding in ["", "%3D%3D", "&limit=1"] {
        let response = send(client().get(format!("{keys_url}{padding}")));
        assert_eq!(response.status(), 200, "{padding}");
        let body: Value = serde_json::from_slice(&bytes(response)).expect("JSON");
        let record = body["data"]["items"][0]["recordPublicUrl"].as_str();
        assert_eq!(bytes(send(client().get(record.expect("a URL")))), b"v");
    }
    let signature = keys_url.split("signature=").nth(1).expect("a signature");
    let record = format!("{}?signature={signature}", server.record_url("k"));
    assert_error(send(client().get(record)), 403, "insufficient-permissions");
    let log = serde_json::to_string(&server.server.requests()).expect("JSON");
    assert!(!log.contains(signature), "{log}");
    assert!(log.contains("signature=redacted"), "{log}");
}

#[test]
fn public_stores_are_read_by_anybody_and_signed_for_nobody() {
    let server = TestServer::public();
    server.put_text("k", "v");
    let get = |path: &str| send(client().get(format!("{}{path}", server.url())));
    for reference in [
        server.entry.id.clone(),
        server.entry.id.to_lowercase(),
        format!("LOCAL~{STORE}"),
    ] {
        let store = format!("/v2/key-value-stores/{reference}");
        assert_eq!(bytes(get(&format!("{store}/records/k"))), b"v");
        let body: Value =
            serde_json::from_slice(&bytes(get(&format!("{store}/keys")))).expect("JSON");
        let url = body["data"]["items"][0]["recordPublicUrl"]
            .as_str()
            .expect("a URL");
        assert!(!url.contains('?'), "{url}");
        let object: Value = serde_json::from_slice(&bytes(get(&store))).expect("JSON");
        assert_eq!(object["data"].get("urlSigningSecretKey"), None);
        assert_eq!(object["data"]["name"], STORE);
    }
    server.set_access(GeneralAccess::AnyoneWithIdCanRead);
    assert_eq!(
        get(&format!("/v2/key-value-stores/{}/keys", server.entry.id)).status(),
        200
    );
    let by_name = get(&format!("/v2/key-value-stores/local~{STORE}/keys"));
    assert_error(by_name, 403, "insufficient-permissions");
}

#[test]
fn runs_lead_to_their_default_stores() {
    let server = TestServer::start();
    server.put_text("k", "v");
    for alias in [
        "actor-runs/run0000000000000A/key-value-store",
        "actors/actor00000000000A/runs/last/key-value-store",
        "acts/local~my-actor/runs/last/key-value-store",
        "actors/local%2Fmy-actor/runs/last/key-value-store",
        "actor-tasks/~my-task/runs/last/key-value-store",
    ] {
        let response = owner(&server, &format!("/v2/{alias}/records/k"));
        assert_eq!(response.status(), 200, "{alias}");
        assert_eq!(
            owner(&server, &format!("/v2/{alias}/keys?status=SUCCEEDED")).status(),
            200
        );
        let store: Value =
            serde_json::from_slice(&bytes(owner(&server, &format!("/v2/{alias}")))).expect("JSON");
        assert_eq!(store["data"]["id"], server.entry.id);
        let put = client().put(format!("{}/v2/{alias}/records/n", server.url()));
        assert_eq!(send(put.bearer_auth(TOKEN).body("n")).status(), 201);
    }
    for alias in [
        "actor-runs/none/key-value-store/keys",
        "actors/actor00000000000A/runs/last/key-value-store/keys?status=FAILED",
        "actors/actor00000000000A/runs/last/key-value-store/keys?origin=WEB",
        "actors/my-actor/runs/last/key-value-store/keys",
    ] {
        assert_error(
            owner(&server, &format!("/v2/{alias}")),
            404,
            "record-not-found",
        );
    }
    let run: Value =
        serde_json::from_slice(&bytes(owner(&server, "/v2/actor-runs/run0000000000000A")))
            .expect("JSON");
    assert_eq!(run["data"]["defaultKeyValueStoreId"], server.entry.id);
}

#[test]
fn stores_are_made_listed_renamed_and_deleted() {
    let server = TestServer::start();
    let stores = format!("{}/v2/key-value-stores", server.url());
    let post = |query: &str| send(client().post(format!("{stores}{query}")).bearer_auth(TOKEN));
    let made = post("?name=Fresh-One");
    assert_eq!(made.status(), 201);
    let made = data(made);
    let id = made["id"].as_str().expect("an id");
    assert_eq!(id.len(), 17);
    let again = post("?name=fresh-one");
    assert_eq!(again.status(), 200);
    assert_eq!(data(again)["id"], id);
    assert_eq!(post("").status(), 201);
    assert_error(post("?name=no_name"), 400, "invalid-request");
    let list = |query: &str| {
        let path = format!("/v2/key-value-stores{query}");
        data(owner(&server, &path))
    };
    assert_eq!(list("")["total"], 2);
    assert_eq!(list("?unnamed=1")["total"], 3);
    assert_eq!(
        list("?unnamed=true&desc=1&limit=1&offset=1")["items"]
            .as_array()
            .map(Vec::len),
        Some(1)
    );
    let put = |body: Value| {
        send(
            client()
                .put(format!("{stores}/{id}"))
                .bearer_auth(TOKEN)
                .body(body.to_string()),
        )
    };
    assert_error(put(json!({"name": STORE})), 400, "name-not-unique");
    assert_error(put(json!([])), 400, "invalid-request");
    let renamed =
        put(json!({"name": "other-name", "title": "A title", "generalAccess": "RESTRICTED"}));
    let renamed = data(renamed);
    assert_eq!(
        (&renamed["name"], &renamed["title"]),
        (&json!("other-name"), &json!("A title"))
    );
    assert_eq!(
        data(owner(&server, "/v2/key-value-stores/~other-name"))["id"],
        id
    );
    let delete = || send(client().delete(format!("{stores}/{id}")).bearer_auth(TOKEN));
    assert_eq!(delete().status(), 204);
    assert_error(delete(), 404, "record-not-found");
    let me = data(owner(&server, "/v2/users/me"));
    assert_eq!(me["username"], "local");
    assert_eq!(data(owner(&server, "/v2/users/LOCAL"))["id"], me["id"]);
}

#[test]
fn tokens_come_in_header_or_query_and_methods_in_the_query_too() {
    let server = TestServer::start();
    let url = server.record_url("k");
    let put = send(client().get(format!("{url}?token={TOKEN}&method=PUT")));
    assert_eq!(put.status(), 201);
    assert_eq!(
        send(client().get(format!("{url}?token={TOKEN}"))).status(),
        200
    );
    let log = serde_json::to_string(&server.server.requests()).expect("JSON");
    assert!(!log.contains(TOKEN), "{log}");
    let stats = owner(&server, "/_kvfs/stats");
    let stats: Value = serde_json::from_slice(&bytes(stats)).expect("JSON");
    assert_eq!(
        (&stats["counts"]["put"], &stats["counts"]["get"]),
        (&json!(1), &json!(1))
    );
    assert_eq!(stats["requests"][0]["status"], 201);
}

#[test]
fn html_shown_in_a_browser_cannot_reach_cookies() {
    let server = TestServer::start();
    let page = "<!doctype html><p>hello";
    server.put("plain", HTML, Encoding::Identity, page.as_bytes());
    server.put_encoded("br", HTML, Encoding::Brotli, page.as_bytes());
    for name in ["plain", "br"] {
        let get = |query: &str| {
            let request = client().get(format!("{}{query}", server.record_url(name)));
            send(request.bearer_auth(TOKEN).header("accept-encoding", "br"))
        };
        let shown = get("");
        assert_eq!(header(&shown, "content-disposition"), None);
        assert_eq!(header(&shown, "content-encoding"), None);
        let length = header(&shown, "content-length").map(str::to_owned);
        let etag = shown.headers()["etag"].clone();
        let text = String::from_utf8(bytes(shown)).expect("text");
        assert!(
            text.starts_with("<script>") && text.ends_with(page),
            "{text}"
        );
        if let Some(length) = length {
            assert_eq!(length, text.len().to_string());
        }
        for query in ["?attachment=true", "?attachment=1"] {
            let attached = get(query);
            assert_eq!(header(&attached, "content-disposition"), Some("attachment"));
            assert_ne!(attached.headers()["etag"], etag);
            let bytes = bytes(attached);
            assert!(
                bytes == page.as_bytes() || bytes == encode(&Encoding::Brotli, page.as_bytes())
            );
        }
    }
}

#[test]
fn requests_beyond_the_limit_are_refused() {
    let server = TestServer::start_with(|config| config.knobs.rate_limit = Some(2));
    let store = format!("/v2/key-value-stores/{}/keys", server.entry.id);
    assert_eq!(owner(&server, &store).status(), 200);
    // At once, so that not even a busy machine spreads them over seconds.
    let barrier = Barrier::new(10);
    let ask = || {
        barrier.wait();
        owner(&server, &store)
    };
    let answers: Vec<Response> = thread::scope(|scope| {
        let asking: Vec<_> = (0..10).map(|_| scope.spawn(ask)).collect();
        asking
            .into_iter()
            .flat_map(|asking| asking.join())
            .collect()
    });
    let refused = answers.into_iter().find(|answer| answer.status() != 200);
    let refused = refused.expect("a refusal");
    assert_eq!(header(&refused, "x-ratelimit-limit"), Some("2"));
    assert_error(refused, 429, "rate-limit-exceeded");
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

#[test]
fn what_a_crawler_writes_behind_the_server_is_served() {
    let server = TestServer::start();
    server.put_text("warm", "up");
    assert_eq!(keys(&server, "")["count"], 1);
    let folder = server.store_folder();
    std::fs::write(folder.join("OUTPUT.json"), "{}").expect("a file");
    let response = send(client().get(server.record_url("OUTPUT")).bearer_auth(TOKEN));
    assert_eq!(
        header(&response, "content-type"),
        Some("application/json; charset=utf-8")
    );
    assert_eq!(bytes(response), b"{}");
    assert_eq!(keys(&server, "")["count"], 2);
    let modified = server.entry_now().modified;
    assert!(modified <= SystemTime::now() + Duration::from_secs(5));
}
