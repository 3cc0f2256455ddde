//! What no client gets to, and what no link opens any more.

use std::os::unix::fs::symlink;
use std::time::{Duration, SystemTime};

use kvfs::base::signature::sign_keys;

use super::{assert_error, bytes, client, data, header, keys, owner, raw_call, send};
use crate::support::served::{TOKEN, TestServer};

#[test]
fn keys_and_links_lead_to_nothing_outside_the_folder() {
    let server = TestServer::start();
    let outside = tempfile::tempdir().expect("a folder");
    let secret = outside.path().join("secret.txt");
    std::fs::write(&secret, "secret").expect("a file");
    let folder = server.store_folder();
    let sibling = folder.with_file_name("sibling");
    std::fs::create_dir(&sibling).expect("a folder");
    std::fs::write(sibling.join("k.txt"), "sibling").expect("a file");
    let store = format!("/v2/key-value-stores/{}", server.entry.id);
    let absolute = kvfs::apify::endpoint::encode(secret.to_str().expect("a path"));
    for key in [
        "..%2Fsibling%2Fk",
        "%2E%2E%2Fsibling%2Fk.txt",
        "..%2F..%2Fx",
        &absolute,
    ] {
        for (method, body) in [
            ("GET", ""),
            ("HEAD", ""),
            ("PUT", "Content-Length: 0\r\n"),
            ("DELETE", ""),
        ] {
            let (status, text) = raw_call(&server, method, &format!("{store}/records/{key}"), body);
            assert_eq!(status, 400, "{method} {key}: {text}");
        }
    }
    // Decoded once, it holds a character that no key has.
    let (status, _) = raw_call(
        &server,
        "GET",
        &format!("{store}/records/%252e%252e%252fk"),
        "",
    );
    assert_eq!(status, 400);

    symlink(&secret, folder.join("link.txt")).expect("a link");
    symlink(&secret, folder.join("put")).expect("a link");
    symlink(outside.path(), folder.join("inner")).expect("a link");
    symlink(outside.path(), folder.with_file_name("linked")).expect("a link");
    for key in ["link", "put", "link.txt"] {
        let got = owner(&server, &format!("{store}/records/{key}"));
        assert_error(got, 404, "record-not-found");
    }
    assert_eq!(keys(&server, "")["count"], 0);
    let put = client().put(server.record_url("put")).bearer_auth(TOKEN);
    assert_eq!(send(put.body("replaced")).status(), 201);
    let delete = client()
        .delete(server.record_url("link"))
        .bearer_auth(TOKEN);
    assert_eq!(send(delete).status(), 204);
    assert_eq!(
        bytes(owner(&server, &format!("{store}/records/put"))),
        b"replaced"
    );
    let linked = owner(&server, "/v2/key-value-stores/~linked");
    assert_error(linked, 404, "record-not-found");
    // A new store of that name gets a folder of its own.
    let made = client().post(format!("{}/v2/key-value-stores?name=linked", server.url()));
    let made = send(made.bearer_auth(TOKEN));
    assert_eq!(made.status(), 201);
    let url = format!(
        "{}/records/k",
        header(&made, "location").expect("a location")
    );
    assert_eq!(
        send(client().put(&url).bearer_auth(TOKEN).body("mine")).status(),
        201
    );
    let store = url.trim_end_matches("/records/k");
    assert_eq!(
        send(client().delete(store).bearer_auth(TOKEN)).status(),
        204
    );

    let left = std::fs::read_dir(outside.path()).expect("a folder").count();
    assert_eq!(left, 1);
    assert_eq!(std::fs::read(&secret).expect("a file"), b"secret");
    assert_eq!(
        std::fs::read(sibling.join("k.txt")).expect("a file"),
        b"sibling"
    );
}

#[test]
fn signatures_of_listings_expire_or_do_not() {
    let server = TestServer::start();
    server.put_text("k", "v");
    let secret = &server.entry.signing_key;
    let now = SystemTime::now();
    let minute = Duration::from_secs(60);
    for (expires, padding, status) in [
        (None, "", 200),
        (None, "==", 200),
        (None, "%3D%3D", 200),
        (Some(now + minute), "", 200),
        (Some(now + minute), "%3D", 200),
        (Some(now - minute), "", 403),
        (Some(now - minute), "%3D", 403),
    ] {
        let signature = sign_keys(secret, &server.entry.id, expires);
        let signature = signature.expose();
        let keys = format!("{}/keys?signature={signature}{padding}", server.store_url());
        let got = send(client().get(keys));
        assert_eq!(got.status(), status, "{expires:?} {padding}");
        // It opens a listing and what is in it, not the store.
        let object = format!("{}?signature={signature}", server.store_url());
        assert_error(send(client().get(object)), 403, "insufficient-permissions");
        if status == 200 {
            let record = data(got)["items"][0]["recordPublicUrl"].clone();
            let record = send(client().get(record.as_str().expect("a URL")));
            assert_eq!(bytes(record), b"v");
        }
    }
    let other = sign_keys(secret, "AAAAAAAAAAAAAAAAA", None);
    let keys = format!("{}/keys?signature={}", server.store_url(), other.expose());
    assert_error(send(client().get(keys)), 403, "insufficient-permissions");
}
