//! From a reference to a store.

use kvfs::base::redact::Secret;
use kvfs::mount::open::{OpenConfig, TokenSource};
use kvfs::store::{ErrorKind, ListQuery};

use super::{ID, config, deadline, key, open, shown, store_object};
use crate::support::scripted::{Answer, ScriptedServer};

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
