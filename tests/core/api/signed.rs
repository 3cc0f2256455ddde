//! Stores that signed links open.

use kvfs::mount::open::OpenConfig;
use kvfs::store::{ErrorKind, GetOutcome, GetRequest, ListQuery};

use super::{ID, config, deadline, key, open, read, shown};
use crate::support::scripted::{Answer, ScriptedServer, Seen};

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
