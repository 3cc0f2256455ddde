//! Reads and overwrites what the tools leave on disk.

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::sync::Arc;

use tempfile::TempDir;

use super::*;
use crate::store::Encoding;

mod changes;

const JSON: &str = "application/json; charset=utf-8";

fn folder(files: &[(&str, &str)]) -> (TempDir, DirectoryStore) {
    let dir = tempfile::tempdir().expect("a temporary folder");
    for (name, text) in files {
        let path = dir.path().join(name);
        fs::create_dir_all(path.parent().expect("a parent")).expect("a folder");
        fs::write(path, text).expect("a file");
    }
    let store = DirectoryStore::open(dir.path(), Access::ReadWrite).expect("a store");
    (dir, store)
}

fn soon() -> Deadline {
    Deadline::after(Duration::from_secs(60))
}

fn key(text: &str) -> Key {
    Key::new(text).expect("a key")
}

fn keys(store: &DirectoryStore) -> Vec<String> {
    let page = store.list_page(&ListQuery::default(), soon());
    let items = page.expect("a page").items;
    items.iter().map(|item| item.key.to_string()).collect()
}

fn read(store: &DirectoryStore, name: &str) -> (String, String) {
    let outcome = store.get(&key(name), &GetRequest::default(), soon());
    let GetOutcome::Found(mut found) = outcome.unwrap_or_else(|error| panic!("{name}: {error}"))
    else {
        panic!("{name} is not sent");
    };
    let mut text = String::new();
    found.body.read_to_string(&mut text).expect("text");
    let kind = found.meta.content_type.expect("a content type");
    (text, kind.to_string())
}

fn put(store: &DirectoryStore, name: &str, encoding: Encoding, text: &str) {
    let request = PutRequest {
        content_type: Some("text/new".into()),
        encoding,
        ..PutRequest::default()
    };
    store
        .put(&key(name), &request, Upload::Bytes(text.as_bytes()), soon())
        .expect("a put");
}

fn pair(text: &str, kind: &str) -> (String, String) {
    (text.to_owned(), kind.to_owned())
}

#[test]
fn files_of_crawlee_js_without_metadata_are_records() {
    let (_dir, store) = folder(&[
        ("INPUT.json", "{}"),
        ("note.txt", "n"),
        ("odd.bin", "o"),
        ("page.html", "<p>"),
        ("a b?%#.txt", "s"),
        ("a/b.txt", "nested"),
        ("...txt", "dots"),
        ("__metadata__.json", "{}"),
    ]);
    assert_eq!(
        keys(&store),
        ["..", "INPUT", "a b?%#", "a/b", "note", "odd", "page"]
    );
    assert_eq!(read(&store, "INPUT"), pair("{}", JSON));
    assert_eq!(
        read(&store, "a/b"),
        pair("nested", "text/plain; charset=utf-8")
    );
    assert_eq!(
        read(&store, "page"),
        pair("<p>", "text/html; charset=utf-8")
    );
    assert_eq!(read(&store, "odd"), pair("o", "application/octet-stream"));
}

#[test]
fn files_of_crawlee_js_with_metadata_keep_their_keys_and_types() {
    let sidecar = |extension: &str, key: &str, kind: &str| {
        let inner =
            format!(r#"{{"extension":"{extension}","key":"{key}","contentType":"{kind}"}}"#);
        serde_json::to_string(&inner).expect("JSON")
    };
    let (_dir, store) = folder(&[
        ("page.html", "<p>"),
        (
            "page.html.__metadata__.json",
            &sidecar("html", "page.html", "text/html; x=1"),
        ),
        ("odd.bin", "o"),
        (
            "odd.__metadata__.json",
            &sidecar("bin", "odd", "application/x-nope"),
        ),
        ("a/b.txt", "nested"),
        (
            "a/b.__metadata__.json",
            &sidecar("txt", "a/b", "text/plain"),
        ),
        (
            "gone.__metadata__.json",
            &sidecar("txt", "gone", "text/plain"),
        ),
    ]);
    assert_eq!(keys(&store), ["a/b", "odd", "page.html"]);
    assert_eq!(read(&store, "page.html"), pair("<p>", "text/html; x=1"));
    assert_eq!(read(&store, "odd"), pair("o", "application/x-nope"));
    assert_eq!(read(&store, "a/b"), pair("nested", "text/plain"));
}

#[test]
fn files_of_crawlee_python_and_crawlee_4_are_records() {
    let (_dir, store) = folder(&[
        ("a%2Fb", "slash"),
        (
            "a%2Fb.__metadata__.json",
            r#"{"key":"a/b","content_type":"text/plain","size":5}"#,
        ),
        ("x.json", "camel"),
        (
            "x.json.__metadata__.json",
            r#"{"key":"x.json","contentType":"a/b"}"#,
        ),
        ("INPUT.json", "adopted"),
        (
            "INPUT.json.__metadata__.json",
            r#"{"key":"INPUT","content_type":"application/json","size":7}"#,
        ),
        ("none", ""),
        (
            "none.__metadata__.json",
            r#"{"key":"none","content_type":"application/x-none","size":0}"#,
        ),
        ("k.ab_12x9z.json.tmp", "half"),
    ]);
    assert_eq!(keys(&store), ["INPUT", "a/b", "none", "x.json"]);
    assert_eq!(read(&store, "a/b"), pair("slash", "text/plain"));
    assert_eq!(read(&store, "x.json"), pair("camel", "a/b"));
    assert_eq!(read(&store, "INPUT"), pair("adopted", "application/json"));
    assert_eq!(read(&store, "none"), pair("", "application/x-none"));
}

#[test]
fn a_sidecar_names_the_file_of_its_value() {
    let named = |key: &str, file: &str| {
        format!(r#"{{"key":"{key}","contentType":"a/{key}","filename":"{file}"}}"#)
    };
    let (dir, store) = folder(&[
        // As apify-cli leaves an input.
        ("INPUT.json", "{}"),
        ("INPUT.__metadata__.json", &named("INPUT", "INPUT.json")),
        // The name counts, also where there is a file called like the key.
        ("data", "stale"),
        ("data.__metadata__.json", &named("data", "page.html")),
        ("page.html", "<p>"),
        // A file that has a sidecar of its own is what that says.
        ("thief.__metadata__.json", &named("thief", "own.txt")),
        ("own.txt", "mine"),
        (
            "own.txt.__metadata__.json",
            r#"{"key":"own.txt","contentType":"a/own"}"#,
        ),
        // The generation before, side by side.
        ("old.json", "[]"),
    ]);
    assert_eq!(keys(&store), ["INPUT", "data", "old", "own.txt"]);
    assert_eq!(read(&store, "INPUT"), pair("{}", "a/INPUT"));
    assert_eq!(read(&store, "data"), pair("<p>", "a/data"));
    assert_eq!(read(&store, "own.txt"), pair("mine", "a/own"));
    assert_eq!(read(&store, "old"), pair("[]", JSON));
    assert!(store.head(&key("thief"), soon()).is_err());
    // It keeps its file when it is written, and takes it along when it goes.
    put(&store, "INPUT", Encoding::Identity, "new");
    let file = |name: &str| fs::read_to_string(dir.path().join(name));
    assert_eq!(file("INPUT.json").expect("the value"), "new");
    assert!(file("INPUT").is_err());
    let sidecar = file("INPUT.__metadata__.json").expect("a sidecar");
    assert!(sidecar.contains(r#""filename": "INPUT.json""#), "{sidecar}");
    assert_eq!(read(&store, "INPUT"), pair("new", "text/new"));
    store.delete(&key("data"), soon()).expect("a delete");
    assert!(file("page.html").is_err() && file("data.__metadata__.json").is_err());
    store.delete(&key("INPUT"), soon()).expect("a delete");
    assert!(file("INPUT.json").is_err());
}

#[test]
fn a_sidecar_names_nothing_outside_its_folder() {
    let outside = tempfile::tempdir().expect("a folder");
    let secret = outside.path().join("secret");
    fs::write(&secret, "secret").expect("a file");
    let up = "../".repeat(12) + secret.to_str().expect("text").trim_start_matches('/');
    let absolute = secret.to_str().expect("text").to_owned();
    for (name, path) in [("up", &*up), ("absolute", &*absolute), ("link", "link-out")] {
        let sidecar = format!(r#"{{"key":"{name}","contentType":"a/b","filename":"{path}"}}"#);
        let (dir, store) = folder(&[(&format!("{name}.__metadata__.json"), &sidecar)]);
        symlink(&secret, dir.path().join("link-out")).expect("a link");
        assert!(keys(&store).is_empty(), "{name}");
        let error = store.head(&key(name), soon()).expect_err(name);
        assert_eq!(error.kind(), ErrorKind::NotFound, "{name}: {error}");
        put(&store, name, Encoding::Identity, "new");
        assert_eq!(read(&store, name), pair("new", "text/new"));
        store.delete(&key(name), soon()).expect("a delete");
        assert_eq!(fs::read(&secret).expect("it"), b"secret", "{name}");
    }
}

#[test]
fn what_is_written_can_be_read_by_crawlee_for_python() {
    let (dir, store) = folder(&[]);
    put(&store, "a!'()-_.z", Encoding::Brotli, "text");
    let value = dir.path().join("a%21%27%28%29-_.z");
    assert_eq!(fs::read_to_string(value).expect("a value"), "text");
    let sidecar = dir.path().join("a%21%27%28%29-_.z.__metadata__.json");
    let sidecar: serde_json::Value =
        serde_json::from_slice(&fs::read(sidecar).expect("a sidecar")).expect("JSON");
    assert_eq!(sidecar["key"], "a!'()-_.z");
    assert_eq!(sidecar["contentType"], "text/new");
    assert_eq!(sidecar["size"], 4);
    assert_eq!(sidecar["contentEncoding"], "br");
    assert_eq!(fs::read_dir(dir.path()).expect("a folder").count(), 2);
}

#[test]
fn a_put_takes_over_from_files_of_other_layouts_and_a_delete_removes_all() {
    let (dir, store) = folder(&[
        ("page.html", "js"),
        ("page.txt", "rival"),
        ("other.txt", "o"),
    ]);
    assert_eq!(keys(&store), ["other", "page"]);
    // The name `page.html` is taken by the record `page`.
    put(&store, "page.html", Encoding::Identity, "apart");
    assert_eq!(read(&store, "page").0, "js");
    assert_eq!(read(&store, "page.html").0, "apart");
    put(&store, "page", Encoding::Identity, "new");
    assert_eq!(read(&store, "page"), pair("new", "text/new"));
    assert!(!dir.path().join("page.html").exists());
    assert!(!dir.path().join("page.txt").exists());
    for name in ["page", "page.html", "other"] {
        store.delete(&key(name), soon()).expect("a delete");
    }
    assert!(keys(&store).is_empty());
    assert_eq!(fs::read_dir(dir.path()).expect("a folder").count(), 0);
}

#[test]
fn a_key_with_the_name_of_a_folder_finds_another_name() {
    let (_dir, store) = folder(&[("a/b.txt", "nested")]);
    put(&store, "a", Encoding::Identity, "flat");
    assert_eq!(read(&store, "a").0, "flat");
    assert_eq!(keys(&store), ["a", "a/b"]);
}
