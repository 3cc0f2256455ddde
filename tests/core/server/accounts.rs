//! What belongs to one account stays its own, whatever others call their stores; and what opens a
//! store to those who know its id.

use std::fs;

use kvfs::base::redact::Secret;
use kvfs::server::{GeneralAccess, Lookup, NewStore, ServerConfig, StoreChange, User};
use reqwest::blocking::Response;
use serde_json::{Value, json};

use super::{assert_error, bytes, client, data, header, keys, owner, send};
use crate::support::served::{TOKEN, TestServer};

const BOB: &str = "bobs-token-0123456789";

fn with_bob(change: impl FnOnce(&mut ServerConfig)) -> TestServer {
    TestServer::start_with(|config| {
        let token = Secret::new(BOB);
        config.other_users.push((User::named("bob"), token));
        change(config);
    })
}

fn as_bob(server: &TestServer, method: &str, path: &str, body: Option<Value>) -> Response {
    let url = format!("{}/v2/{path}", server.url());
    let method = method.parse().expect("a method");
    let mut request = client().request(method, url).bearer_auth(BOB);
    if let Some(body) = body {
        request = request
            .header("content-type", "application/json")
            .body(body.to_string());
    }
    send(request)
}

/// Bob makes a store of that name, puts a record there and takes the name away.
fn squats(server: &TestServer, name: &str, key: &str) {
    let made = as_bob(
        server,
        "POST",
        &format!("key-value-stores?name={name}"),
        None,
    );
    let id = data(made)["id"].as_str().expect("an id").to_owned();
    let record = format!("key-value-stores/{id}/records/{key}");
    let planted = as_bob(server, "PUT", &record, Some(json!("planted")));
    assert_eq!(planted.status(), 201);
    let store = format!("key-value-stores/{id}");
    let nameless = as_bob(server, "PUT", &store, Some(json!({ "name": null })));
    assert_eq!(nameless.status(), 200);
}

#[test]
fn nobody_takes_the_id_of_another_accounts_store() {
    // Which of two stores a wrong look-up finds would be a matter of luck.
    for _ in 0..8 {
        let server = with_bob(|_| {});
        server.put_text("OUTPUT", "mine");
        let id = server.entry.id.clone();
        squats(&server, &id, "OUTPUT");
        squats(&server, &id.to_lowercase(), "OUTPUT");
        let record = format!("/v2/key-value-stores/{id}/records/OUTPUT");
        assert_eq!(bytes(owner(&server, &record)), b"mine");
        let put = client().put(server.record_url("n")).bearer_auth(TOKEN);
        assert_eq!(send(put.body("n")).status(), 201);
        let delete = client().delete(server.store_url()).bearer_auth(TOKEN);
        assert_eq!(send(delete).status(), 204);
        assert!(!server.store_folder().exists());
        let theirs = data(as_bob(&server, "GET", "key-value-stores?unnamed=1", None));
        assert_eq!(theirs["count"], 2, "{theirs}");
    }
}

#[test]
fn nobody_takes_the_default_store_or_that_of_a_run() {
    let server = with_bob(|config| {
        config.runs.push("later=results".parse().expect("a run"));
        config.runs.push("plain=default".parse().expect("a run"));
    });
    for name in ["default", "results"] {
        squats(&server, name, "INPUT");
    }
    for path in [
        "key-value-stores/default/records/INPUT",
        "key-value-stores/results/records/INPUT",
        "key-value-stores/~results/records/INPUT",
        "actor-runs/later/key-value-store/records/INPUT",
        "actor-runs/plain/key-value-store/records/INPUT",
    ] {
        let got = owner(&server, &format!("/v2/{path}"));
        assert_error(got, 404, "record-not-found");
    }
    let default = client().post(format!("{}/v2/key-value-stores?name=default", server.url()));
    assert_eq!(send(default.bearer_auth(TOKEN)).status(), 201);
    let mine = data(owner(&server, "/v2/key-value-stores/default"));
    assert_eq!(mine["username"], "local");
    let theirs = as_bob(&server, "GET", "key-value-stores/default", None);
    assert_error(theirs, 403, "insufficient-permissions");
}

#[test]
fn a_name_that_was_taken_away_is_free_again() {
    let server = with_bob(|_| {});
    squats(&server, "results", "k");
    let made = as_bob(&server, "POST", "key-value-stores?name=results", None);
    assert_eq!(made.status(), 201, "the nameless one still has the name");
    let record = "key-value-stores/bob~results/records/k";
    assert_error(
        as_bob(&server, "GET", record, None),
        404,
        "record-not-found",
    );
    let folder = server.folder.path().join("key_value_stores/results");
    let metadata = fs::read_to_string(folder.join("__metadata__.json")).expect("a file");
    assert!(metadata.contains(&User::named("bob").id), "{metadata}");
}

#[test]
fn what_was_found_is_what_is_changed() {
    let server = with_bob(|_| {});
    let catalog = server.server.catalog();
    let stale = server.entry.clone();
    // Meanwhile the owner deletes it, and bob makes one in its place.
    assert!(catalog.delete(&stale).expect("a catalog"));
    let bobs = NewStore {
        owner: Some(User::named("bob").id),
        ..NewStore::named("test-store")
    };
    let (bobs, _) = catalog.create(&bobs).expect("a store");
    assert!(!catalog.delete(&stale).expect("a catalog"));
    let change = StoreChange {
        general_access: Some(GeneralAccess::AnyoneWithNameCanRead),
        ..StoreChange::default()
    };
    let changed = catalog.update(&stale, &change).expect("a catalog");
    assert!(
        matches!(changed, kvfs::server::Changed::Missing),
        "{changed:?}"
    );
    let now = catalog.find(Lookup::Id(&bobs.id)).expect("a catalog");
    assert_eq!(now.expect("it").access, GeneralAccess::Restricted);
}

#[test]
fn what_anyone_with_the_id_may_read_needs_the_id() {
    let server = TestServer::start();
    let stores = server.folder.path().join("key_value_stores");
    for name in ["crawled", "default"] {
        fs::create_dir(stores.join(name)).expect("a folder");
        fs::write(stores.join(name).join("OUTPUT.json"), "{}").expect("a file");
        let (found, path) = match name {
            "default" => (Lookup::Id(name), "default".to_owned()),
            name => (
                Lookup::Name {
                    owner: &User::default().id,
                    name,
                },
                format!("local~{name}"),
            ),
        };
        let catalog = server.server.catalog();
        let entry = catalog.find(found).expect("a catalog").expect("the store");
        let change = StoreChange {
            general_access: Some(GeneralAccess::AnyoneWithIdCanRead),
            ..StoreChange::default()
        };
        catalog.update(&entry, &change).expect("a change");
        let get = |store: &str| {
            let url = format!("{}/v2/key-value-stores/{store}/keys", server.url());
            send(client().get(url))
        };
        assert_eq!(get(&entry.id).status(), 200, "{name}");
        assert_error(get(&path), 401, "token-not-provided");
        // The id follows from nothing that a stranger knows.
        let elsewhere = TestServer::start();
        let folder = elsewhere.folder.path().join("key_value_stores").join(name);
        fs::create_dir(&folder).expect("a folder");
        let other = elsewhere.server.catalog().find(found).expect("a catalog");
        assert_ne!(other.expect("the store").id, entry.id, "{name}");
    }
    server.set_access(GeneralAccess::AnyoneWithIdCanRead);
    for alias in [
        "actor-runs/run0000000000000A",
        "acts/local~my-actor/runs/last",
        "actor-tasks/local~my-task/runs/last",
    ] {
        let url = format!("{}/v2/{alias}/key-value-store/keys", server.url());
        assert_error(send(client().get(url)), 401, "token-not-provided");
    }
}

#[test]
fn an_expiring_link_hands_out_nothing_that_outlives_it() {
    let server = TestServer::start();
    server.put_text("k", "v");
    let soon = std::time::SystemTime::now() + std::time::Duration::from_secs(3600);
    let secret = &server.entry.signing_key;
    let signature = kvfs::base::signature::sign_keys(secret, &server.entry.id, Some(soon));
    let listing = format!(
        "{}/keys?signature={}",
        server.store_url(),
        signature.expose()
    );
    let page = data(send(client().get(listing)));
    let url = page["items"][0]["recordPublicUrl"].as_str().expect("a URL");
    assert!(url.contains(signature.expose()), "{url}");
    assert_eq!(bytes(send(client().get(url))), b"v");
    let past = std::time::SystemTime::now() - std::time::Duration::from_secs(1);
    let expired = kvfs::base::signature::sign_keys(secret, &server.entry.id, Some(past));
    let url = url.replace(signature.expose(), expired.expose());
    assert_error(send(client().get(url)), 403, "insufficient-permissions");
    // The owner's own listing holds links that do not expire.
    let own = keys(&server, "");
    let own = own["items"][0]["recordPublicUrl"].as_str().expect("a URL");
    assert!(!own.contains(signature.expose()), "{own}");
}

#[test]
fn the_signing_key_is_told_to_its_owner_only_and_not_in_lists() {
    let server = with_bob(|_| {});
    let key = |object: &Value| object["urlSigningSecretKey"].is_string();
    let path = format!("/v2/key-value-stores/{}", server.entry.id);
    assert!(key(&data(owner(&server, &path))));
    let list = data(owner(&server, "/v2/key-value-stores"));
    assert_eq!(list["count"], 1);
    assert!(!key(&list["items"][0]), "{list}");
    let changed = client().put(server.store_url()).bearer_auth(TOKEN);
    let changed = data(send(changed.body("{\"title\": \"t\"}")));
    assert!(!key(&changed), "{changed}");
}

#[test]
fn links_outlive_the_server_and_tell_nothing_of_its_token() {
    let server = TestServer::start();
    let key = server.entry.signing_key.clone();
    let again = |token: &str, folder: &std::path::Path| {
        let mut config = ServerConfig::new(folder);
        config.token = Some(Secret::new(token));
        let server = kvfs::server::Server::start(config).expect("a server");
        let entry = server.catalog().find(Lookup::Name {
            owner: &User::default().id,
            name: "test-store",
        });
        entry.expect("a catalog").map(|entry| entry.signing_key)
    };
    let folder = server.folder.path();
    assert_eq!(again("another-token", folder), Some(key.clone()));
    // The same token and id, but another folder.
    let copy = tempfile::tempdir().expect("a folder");
    let store = copy.path().join("key_value_stores/test-store");
    fs::create_dir_all(&store).expect("a folder");
    let metadata = server.store_folder().join("__metadata__.json");
    fs::copy(metadata, store.join("__metadata__.json")).expect("a copy");
    let other = again(TOKEN, copy.path()).expect("the store");
    assert_ne!(other, key);
}

#[test]
fn pages_of_other_sites_read_nothing_from_this_machine() {
    let server = TestServer::public();
    server.put_text("k", "v");
    let get = |headers: &[(&str, &str)]| {
        let mut request = client().get(server.record_url("k"));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        send(request)
    };
    let open = |response: &Response| header(response, "access-control-allow-origin").is_some();
    assert_eq!(get(&[]).status(), 200);
    let foreign = get(&[("origin", "https://evil.example")]);
    assert!(!open(&foreign), "{:?}", foreign.headers());
    assert!(open(&get(&[("origin", "http://localhost:3000")])));
    let with_token = format!("Bearer {TOKEN}");
    let token = ("authorization", &*with_token);
    assert!(open(&get(&[("origin", "https://evil.example"), token])));
    // A name server that says the page's own name is this machine.
    let rebound = get(&[("host", "evil.example:8010")]);
    assert_error(rebound, 403, "insufficient-permissions");
    assert_eq!(get(&[("host", "evil.example:8010"), token]).status(), 200);
    assert_eq!(get(&[("host", "localhost:8010")]).status(), 200);
}

#[test]
fn records_that_a_browser_shows_run_nothing_and_are_not_guessed_at() {
    let server = TestServer::public();
    server.put("page", "image/svg+xml", Default::default(), b"<svg/>");
    let get = |query: &str| send(client().get(format!("{}{query}", server.record_url("page"))));
    let shown = get("");
    let policy = header(&shown, "content-security-policy").expect("a policy");
    assert!(
        policy.contains("sandbox") && policy.contains("script-src 'none'"),
        "{policy}"
    );
    let kept = get("?attachment=true");
    assert_eq!(header(&kept, "content-security-policy"), None);
    for answer in [shown, kept, owner(&server, "/v2/nowhere")] {
        assert_eq!(header(&answer, "x-content-type-options"), Some("nosniff"));
        assert_eq!(header(&answer, "referrer-policy"), Some("no-referrer"));
    }
}

#[test]
fn what_may_not_be_seen_looks_like_what_is_not_there() {
    let server = with_bob(|config| {
        config.runs.push(
            "hidden=plans,actor=shop,task=weekly"
                .parse()
                .expect("a run"),
        );
    });
    let made = client().post(format!("{}/v2/key-value-stores?name=plans", server.url()));
    assert_eq!(send(made.bearer_auth(TOKEN)).status(), 201);
    let pairs = [
        (
            "key-value-stores/local~plans",
            "key-value-stores/local~none",
        ),
        ("key-value-stores/~plans", "key-value-stores/~none"),
        (
            "key-value-stores/local~plans",
            "key-value-stores/nobody~plans",
        ),
        ("actor-runs/hidden", "actor-runs/none"),
        (
            "actor-runs/hidden/key-value-store",
            "actor-runs/none/key-value-store",
        ),
        ("acts/local~shop/runs/last", "acts/local~none/runs/last"),
        (
            "acts/local~shop/runs/last/key-value-store",
            "acts/local~none/runs/last/key-value-store",
        ),
        (
            "acts/local~shop/runs/last/key-value-store",
            "acts/local~shop/runs/last/key-value-store?status=FAILED",
        ),
        (
            "actor-tasks/local~weekly/runs/last/key-value-store",
            "actor-tasks/local~none/runs/last/key-value-store",
        ),
    ];
    let said = |path: &str, token: Option<&str>, method: &str| {
        let url = format!("{}/v2/{path}", server.url());
        let request = client().request(method.parse().expect("a method"), url);
        let answer = send(match token {
            Some(token) => request.bearer_auth(token),
            None => request,
        });
        (
            answer.status().as_u16(),
            String::from_utf8_lossy(&bytes(answer)).into_owned(),
        )
    };
    let below = |path: &str, more: &str| match path.split_once('?') {
        Some((path, query)) => format!("{path}{more}?{query}"),
        None => format!("{path}{more}"),
    };
    for (there, not) in pairs {
        for more in ["", "/keys", "/records/k", "/records"] {
            if !more.is_empty() && !there.contains("key-value-store") {
                continue;
            }
            let (there, not) = (below(there, more), below(not, more));
            let stranger = said(&there, None, "GET");
            assert_eq!(stranger, said(&not, None, "GET"), "{there} {not}");
            assert_eq!(stranger.0, 401, "{there}");
            let bob = said(&there, Some(BOB), "GET");
            assert_eq!(bob, said(&not, Some(BOB), "GET"), "{there} {not}");
            assert_eq!(bob.0, 404, "{there}");
        }
        if there.contains("key-value-store") {
            let (there, not) = (below(there, "/records/k"), below(not, "/records/k"));
            for method in ["PUT", "DELETE"] {
                let bob = said(&there, Some(BOB), method);
                assert_eq!(bob, said(&not, Some(BOB), method), "{method} {there} {not}");
            }
            let wrong = |path: &str| said(&format!("{path}?signature=x"), None, "GET");
            if !not.contains('?') {
                assert_eq!(wrong(&there), wrong(&not), "{there} {not}");
            }
        }
    }
    // An id says nothing of names: the answers are the platform's.
    let id = format!("key-value-stores/{}", server.entry.id);
    assert_eq!(said(&id, Some(BOB), "GET").0, 403);
    assert_eq!(
        said("key-value-stores/AbcdefghijklmnopQ", Some(BOB), "GET").0,
        404
    );
    let lost = said(
        "acts/local~shop/runs/last/key-value-store?status=FAILED",
        Some(TOKEN),
        "GET",
    );
    assert!(lost.1.contains("Actor run was not found"), "{lost:?}");
}
