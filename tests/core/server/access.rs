//! Who may do what: tokens, signatures, public stores, browsers, and how often.

use std::sync::Barrier;
use std::thread;

use kvfs::base::signature::sign_keys;
use kvfs::server::GeneralAccess;
use kvfs::store::Encoding;
use reqwest::blocking::Response;
use serde_json::{Value, json};

use super::{HTML, assert_error, bytes, client, header, keys, owner, send};
use crate::support::served::{STORE, TOKEN, TestServer, encode};

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
    // Of a link that does not expire, the listing holds the signatures of the records instead.
    let for_ever = sign_keys(&server.entry.signing_key, &server.entry.id, None);
    let record = format!("{}?signature={}", server.record_url("k"), for_ever.expose());
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
    assert_error(by_name, 401, "token-not-provided");
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
    assert_eq!(header(&refused, "x-ratelimit-enforced"), None);
    assert_error(refused, 429, "rate-limit-exceeded");
}
