//! Stores as wholes: accounts, schemas, archives, statistics, other origins.

use std::io::Read;
use std::time::{Duration, SystemTime};

use kvfs::base::redact::Secret;
use kvfs::server::User;
use kvfs::store::Encoding;
use reqwest::blocking::Response;
use serde_json::{Value, json};

use super::{assert_error, bytes, client, data, header, keys, owner, send};
use crate::support::served::{STORE, TOKEN, TestServer, encode};

/// Starts a server with a second account, whose token is `T2`.
fn with_two_users() -> TestServer {
    TestServer::start_with(|config| {
        config
            .other_users
            .push((User::named("other"), Secret::new("T2")));
    })
}

fn put_json(url: String, body: Value) -> Response {
    send(client().put(url).bearer_auth(TOKEN).body(body.to_string()))
}

fn schema() -> Value {
    json!({
        "actorKeyValueStoreSchemaVersion": 1,
        "title": "Records",
        "collections": {
            "images": { "title": "Images", "keyPrefix": "image-" },
            "input": { "title": "Input", "key": "INPUT" },
        },
    })
}

#[test]
fn each_account_has_stores_and_names_of_its_own() {
    let server = with_two_users();
    let stores = format!("{}/v2/key-value-stores", server.url());
    let other = |method: reqwest::Method, path: &str| {
        let request = client().request(method, format!("{}{path}", server.url()));
        send(request.bearer_auth("T2"))
    };
    let get = |path: &str| other(reqwest::Method::GET, path);
    let post = other(
        reqwest::Method::POST,
        &format!("/v2/key-value-stores?name={STORE}"),
    );
    assert_eq!(post.status(), 201, "the name is free in this account");
    let theirs = data(post);
    let id = theirs["id"].as_str().expect("an id").to_owned();
    assert_ne!(id, server.entry.id);
    assert_eq!(theirs["username"], "other");
    assert_eq!(
        data(get(&format!("/v2/key-value-stores/~{STORE}")))["id"],
        id
    );
    let named = owner(&server, &format!("/v2/key-value-stores/other~{STORE}"));
    assert_error(named, 404, "record-not-found");
    let put = send(
        client()
            .put(format!("{stores}/{id}/records/k"))
            .bearer_auth("T2")
            .body("theirs"),
    );
    assert_eq!(put.status(), 201);
    for path in ["", "/keys", "/records/k", "/records"] {
        let path = format!("/v2/key-value-stores/{id}{path}");
        assert_error(owner(&server, &path), 403, "insufficient-permissions");
        assert_eq!(get(&path).status(), 200, "{path}");
    }
    let mine = send(client().delete(format!("{stores}/{id}")).bearer_auth(TOKEN));
    assert_error(mine, 403, "insufficient-permissions");
    assert_eq!(data(get("/v2/key-value-stores"))["total"], 1);
    assert_eq!(data(owner(&server, "/v2/key-value-stores"))["total"], 1);
    let signature = theirs["keysPublicUrl"].as_str().expect("a URL");
    assert_eq!(send(client().get(signature)).status(), 200);
    let me = data(get("/v2/users/me"));
    assert_eq!(data(owner(&server, "/v2/users/OTHER"))["id"], me["id"]);
    let stats = get("/_kvfs/stats");
    assert_error(stats, 403, "insufficient-permissions");
    let deleted = other(
        reqwest::Method::DELETE,
        &format!("/v2/key-value-stores/{id}"),
    );
    assert_eq!(deleted.status(), 204);
}

#[test]
fn collections_of_the_schema_select_keys() {
    let server = TestServer::start();
    let stores = format!("{}/v2/key-value-stores", server.url());
    let create = |body: Value| {
        let request = client().post(format!("{stores}?name=with-schema"));
        send(request.bearer_auth(TOKEN).body(body.to_string()))
    };
    let wrong = create(json!({"schema": {"collections": {}}}));
    assert_error(wrong, 400, "store-schema-invalid");
    let created = create(json!({"schema": schema()}));
    assert_eq!(created.status(), 201);
    let location = header(&created, "location").expect("a location").to_owned();
    assert_eq!(data(created)["schema"], schema());
    for key in ["INPUT", "INPUT2", "image-1", "image-2", "text"] {
        let put = client().put(format!("{location}/records/{key}"));
        assert_eq!(send(put.bearer_auth(TOKEN).body("x")).status(), 201);
    }
    let keys = |query: &str| -> Vec<String> {
        let url = format!("{location}/keys?{query}");
        let page = data(send(client().get(url).bearer_auth(TOKEN)));
        assert_eq!(page["nextExclusiveStartKey"], Value::Null);
        let items = page["items"].as_array().expect("items");
        items
            .iter()
            .map(|item| item["key"].as_str().expect("a key").to_owned())
            .collect()
    };
    assert_eq!(keys("collection=images"), ["image-1", "image-2"]);
    assert_eq!(
        keys("collection=images&exclusiveStartKey=image-1"),
        ["image-2"]
    );
    assert_eq!(keys("collection=images&prefix=image-2"), ["image-2"]);
    assert_eq!(keys("collection=input"), ["INPUT"]);
    assert!(keys("collection=input&exclusiveStartKey=INPUT").is_empty());
    let unknown = client().get(format!("{location}/keys?collection=none"));
    assert_error(send(unknown.bearer_auth(TOKEN)), 400, "invalid-collection");
    assert_error(
        put_json(location.clone(), json!({"schema": 1})),
        400,
        "store-schema-invalid",
    );
    let taken = put_json(location.clone(), json!({"schema": null}));
    assert_eq!(data(taken)["schema"], Value::Null);
    let gone = client().get(format!("{location}/keys?collection=images"));
    assert_error(send(gone.bearer_auth(TOKEN)), 400, "invalid-collection");
}

/// Unpacks an archive.
fn unpacked(archive: Vec<u8>) -> Vec<(String, Vec<u8>)> {
    let mut archive = zip::ZipArchive::new(std::io::Cursor::new(archive)).expect("an archive");
    (0..archive.len())
        .map(|index| {
            let mut file = archive.by_index(index).expect("a file");
            let mut content = Vec::new();
            file.read_to_end(&mut content).expect("content");
            (file.name().expect("a name").into_owned(), content)
        })
        .collect()
}

#[test]
fn all_records_come_decoded_in_one_archive() {
    let server = TestServer::start();
    let path = format!("/v2/key-value-stores/{}/records", server.entry.id);
    let empty = owner(&server, &path);
    assert_eq!(header(&empty, "content-type"), Some("application/zip"));
    assert!(unpacked(bytes(empty)).is_empty());
    let long = b"long content ".repeat(20_000);
    server.put_encoded("encoded", "text/plain", Encoding::Brotli, &long);
    server.put_text("my!key'(v1).txt", "text");
    server.put_text("a/b", "odd");
    server.put_text("empty", "");
    let of = |query: &str| unpacked(bytes(owner(&server, &format!("{path}{query}"))));
    assert_eq!(
        of(""),
        [
            ("a%2Fb".to_owned(), b"odd".to_vec()),
            ("empty".to_owned(), Vec::new()),
            ("encoded".to_owned(), long),
            ("my!key'(v1).txt".to_owned(), b"text".to_vec()),
        ]
    );
    assert_eq!(of("?prefix=em").len(), 1);
    let anonymous = || send(client().get(format!("{}{path}", server.url())));
    assert_error(anonymous(), 401, "token-not-provided");
    let link = data(owner(
        &server,
        &format!("/v2/key-value-stores/{}", server.entry.id),
    ));
    let link = link["keysPublicUrl"]
        .as_str()
        .expect("a URL")
        .replace("/keys?", "/records?");
    assert_eq!(unpacked(bytes(send(client().get(link)))).len(), 4);
    assert_error(
        owner(&server, &format!("{path}?collection=c")),
        400,
        "invalid-collection",
    );
    server.put("encoded", "text/plain", Encoding::Gzip, b"no gzip");
    assert_eq!(
        of("?prefix=enc"),
        [("encoded".to_owned(), b"no gzip".to_vec())]
    );
    let plain = client().get(server.record_url("encoded"));
    let plain = send(plain.bearer_auth(TOKEN));
    assert_eq!(header(&plain, "content-encoding"), None);
    assert_eq!(bytes(plain), b"no gzip");
    // What breaks in the middle must not look like a whole archive.
    let noise: Vec<u8> = (0..1_000_000u32)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect();
    let mut cut = encode(&Encoding::Gzip, &noise);
    cut.truncate(cut.len() - 100);
    server.put("encoded", "text/plain", Encoding::Gzip, &cut);
    let request = client().get(format!("{}{path}", server.url()));
    let broken = request.bearer_auth(TOKEN).send().and_then(Response::bytes);
    assert!(broken.is_err(), "{broken:?}");
}

#[test]
fn store_objects_tell_what_was_done() {
    let server = TestServer::start();
    let url = server.record_url("k");
    send(client().put(&url).bearer_auth(TOKEN).body("12345"));
    for _ in 0..2 {
        send(client().get(&url).bearer_auth(TOKEN));
    }
    keys(&server, "");
    send(
        client()
            .delete(server.record_url("none"))
            .bearer_auth(TOKEN),
    );
    let store = data(owner(
        &server,
        &format!("/v2/key-value-stores/{}", server.entry.id),
    ));
    assert_eq!(
        store["stats"],
        json!({
            "readCount": 2, "writeCount": 1, "deleteCount": 1, "listCount": 1,
            "storageBytes": 5, "s3StorageBytes": 5,
        })
    );
}

#[test]
fn pages_of_other_origins_may_use_the_api() {
    let server = TestServer::start();
    let preflight = client()
        .request(reqwest::Method::OPTIONS, server.record_url("k"))
        .header("origin", "https://example.com")
        .header("access-control-request-method", "PUT")
        .header("access-control-request-headers", "authorization,x-mine");
    let answer = send(preflight);
    assert_eq!(answer.status(), 204);
    assert_eq!(header(&answer, "access-control-allow-origin"), Some("*"));
    assert_eq!(
        header(&answer, "access-control-allow-headers"),
        Some("authorization,x-mine")
    );
    let methods = header(&answer, "access-control-allow-methods").expect("methods");
    assert!(
        methods.contains("PUT") && methods.contains("DELETE"),
        "{methods}"
    );
    // Errors can be read, too.
    let refused = send(client().get(server.record_url("k")));
    assert_eq!(refused.status(), 401);
    assert_eq!(header(&refused, "access-control-allow-origin"), Some("*"));
    let exposed = header(&refused, "access-control-expose-headers").expect("headers");
    assert!(exposed.contains("X-RateLimit-Limit"), "{exposed}");
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
    ] {
        assert_error(
            owner(&server, &format!("/v2/{alias}")),
            404,
            "record-not-found",
        );
    }
    let unknown = owner(
        &server,
        "/v2/actors/my-actor/runs/last/key-value-store/keys",
    );
    assert_error(unknown, 404, "record-or-token-not-found");
    let record = format!(
        "{}/v2/actor-runs/run0000000000000A/key-value-store/records/k",
        server.url()
    );
    let status = send(client().head(record).bearer_auth(TOKEN)).status();
    assert_eq!(status, 405, "the platform knows no HEAD there");
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
