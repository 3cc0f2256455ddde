//! What every store promises, whatever stands behind it.
//!
//! To add a store: a constructor that returns a [`Subject`], and a line in `subjects!` below.

use std::any::Any;
use std::io::Read;
use std::sync::Arc;

use kvfs::bucket::{Bucket, Description, Scope};
use kvfs::local::{Access, DirectoryStore, MemoryStore};
use kvfs::store::pager::Pager;
use kvfs::store::{
    Encoding, ErrorKind, Fetched, GetOutcome, GetRequest, ListQuery, PutRequest, RecordMeta, Store,
    Upload, Validator,
};

use crate::support::served::{TestServer, encode, key, soon};
use crate::support::storage;

/// A store under test, with what must outlive it and what it cannot do.
struct Subject {
    store: Arc<dyn Store>,
    /// Whether it takes keys that the platform refuses.
    odd_keys: bool,
    /// Whether it takes `.` and `..`, which no URL can name.
    dot_keys: bool,
    _keep: Box<dyn Any + Send + Sync>,
}

fn memory() -> Subject {
    Subject {
        store: Arc::new(MemoryStore::new()),
        odd_keys: true,
        dot_keys: true,
        _keep: Box::new(()),
    }
}

fn directory() -> Subject {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let store = DirectoryStore::open(folder.path(), Access::ReadWrite).expect("a store");
    Subject {
        store: Arc::new(store),
        odd_keys: true,
        dot_keys: true,
        _keep: Box::new(folder),
    }
}

/// The API's client over a server over a folder.
fn http() -> Subject {
    let server = TestServer::start();
    Subject {
        store: server.open(&server.entry),
        odd_keys: false,
        dot_keys: false,
        _keep: Box::new(server),
    }
}

/// A bucket in memory: the library's own, with conditional writes.
fn bucket() -> Subject {
    let objects = Arc::new(object_store::memory::InMemory::new());
    let scope = Scope {
        bucket: "memory".into(),
        account: "memory".into(),
    };
    stored_in(Bucket::over(objects, "some/prefix".into(), scope).expect("a bucket"))
}

fn stored_in(bucket: Bucket) -> Subject {
    let description = Description {
        id: "store".into(),
        ..Description::default()
    };
    let made = bucket.create(&description, soon());
    let (description, _) = made.expect("a store");
    Subject {
        store: Arc::new(bucket.store(&description)),
        odd_keys: false,
        dot_keys: true,
        _keep: Box::new(bucket),
    }
}

/// A bucket of a real S3 implementation.
fn s3() -> Subject {
    stored_in(storage::s3().bucket())
}

/// A bucket of what comes closest to Google's storage.
fn gcs() -> Subject {
    stored_in(storage::gcs().bucket())
}

/// A container of a real implementation of Azure's blob storage.
fn azure() -> Subject {
    stored_in(storage::azure().bucket())
}

macro_rules! subjects {
    ($($subject:ident),*; $tests:tt) => {
        $(mod $subject { subjects!(@each $subject $tests); })*
    };
    (@each $subject:ident [$($test:ident),* $(,)?]) => {
        $(#[test] fn $test() { super::$test(&super::$subject()); })*
    };
}

subjects!(memory, directory, http, bucket, s3, azure, gcs; [
    what_was_put_is_got,
    an_absent_record_is_not_found,
    a_put_replaces_bytes_type_and_encoding,
    stored_bytes_are_verbatim_whatever_the_encoding,
    streams_and_files_are_stored_whole,
    a_body_of_another_length_stores_nothing,
    an_empty_record_is_a_record,
    valid_keys_of_any_kind_are_kept,
    keys_that_the_platform_refuses_are_kept_where_they_are_taken,
    ranges_are_cut_to_the_record,
    validators_tell_versions_apart,
    if_match_holds_or_is_refused,
    puts_have_preconditions,
    deleting_is_idempotent,
    listings_are_in_binary_order_and_sizes_are_stored_sizes,
    pages_start_anywhere_and_end,
    prefixes_select,
    concurrent_puts_leave_one_whole_winner,
    a_body_in_flight_survives_a_put_or_says_so,
]);

fn put(subject: &Subject, name: &str, bytes: &[u8]) -> RecordMeta {
    put_as(subject, name, "text/plain", Encoding::Identity, bytes)
}

fn put_as(
    subject: &Subject,
    name: &str,
    content_type: &str,
    encoding: Encoding,
    bytes: &[u8],
) -> RecordMeta {
    let request = PutRequest {
        content_type: Some(content_type.into()),
        encoding,
        ..PutRequest::default()
    };
    subject
        .store
        .put(&key(name), &request, Upload::Bytes(bytes), soon())
        .unwrap_or_else(|error| panic!("{name:?} cannot be put: {error}"))
}

fn fetch(subject: &Subject, name: &str, request: &GetRequest) -> Fetched {
    match subject.store.get(&key(name), request, soon()) {
        Ok(GetOutcome::Found(fetched)) => fetched,
        other => panic!("{name:?} is not sent: {other:?}"),
    }
}

fn get(subject: &Subject, name: &str) -> (RecordMeta, Vec<u8>) {
    let mut fetched = fetch(subject, name, &GetRequest::default());
    let mut bytes = Vec::new();
    fetched.body.read_to_end(&mut bytes).expect("a body");
    (fetched.meta, bytes)
}

fn is_absent(subject: &Subject, name: &str) -> bool {
    match subject.store.head(&key(name), soon()) {
        Ok(_) => false,
        Err(error) => error.kind() == ErrorKind::NotFound,
    }
}

fn list(subject: &Subject, query: ListQuery) -> Vec<String> {
    let mut pager = Pager::new(query);
    let mut keys = Vec::new();
    while let Some(page) = pager.next_page(&*subject.store, soon()).expect("a page") {
        keys.extend(page.iter().map(|item| item.key.to_string()));
    }
    keys
}

fn what_was_put_is_got(subject: &Subject) {
    put_as(
        subject,
        "a.txt",
        "text/x-odd; charset=iso-8859-1",
        Encoding::Identity,
        b"hello",
    );
    let (meta, bytes) = get(subject, "a.txt");
    assert_eq!(bytes, b"hello");
    assert_eq!(
        meta.content_type.as_deref(),
        Some("text/x-odd; charset=iso-8859-1")
    );
    assert_eq!(meta.encoding, Encoding::Identity);
    if let Some(size) = meta.stored_size {
        assert_eq!(size, 5);
    }
    let head = subject.store.head(&key("a.txt"), soon()).expect("a head");
    assert_eq!(head.content_type, meta.content_type);
    assert_eq!(head.etag, meta.etag);
}

fn an_absent_record_is_not_found(subject: &Subject) {
    put(subject, "b", b"b");
    assert!(is_absent(subject, "a"));
    let error = subject
        .store
        .get(&key("a"), &GetRequest::default(), soon())
        .expect_err("an absent record");
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert_eq!(error.key(), Some(&key("a")));
}

fn a_put_replaces_bytes_type_and_encoding(subject: &Subject) {
    put_as(
        subject,
        "k",
        "text/html",
        Encoding::Brotli,
        &encode(&Encoding::Brotli, b"long text"),
    );
    put_as(subject, "k", "image/png", Encoding::Identity, b"png");
    let (meta, bytes) = get(subject, "k");
    assert_eq!(
        (&*bytes, meta.content_type.as_deref()),
        (&b"png"[..], Some("image/png"))
    );
    assert_eq!(meta.encoding, Encoding::Identity);
    assert_eq!(list(subject, ListQuery::default()), ["k"]);
}

fn stored_bytes_are_verbatim_whatever_the_encoding(subject: &Subject) {
    for (name, encoding) in [
        ("gzip", Encoding::Gzip),
        ("br", Encoding::Brotli),
        ("deflate", Encoding::Deflate),
    ] {
        let stored = encode(&encoding, &b"some text ".repeat(500));
        put_as(subject, name, "text/plain", encoding.clone(), &stored);
        let (meta, bytes) = get(subject, name);
        assert_eq!(bytes, stored, "{name}");
        assert_eq!(meta.encoding, encoding);
    }
}

fn streams_and_files_are_stored_whole(subject: &Subject) {
    let bytes: Vec<u8> = (0..300_000u32).map(|n| (n % 251) as u8).collect();
    for len in [None, Some(bytes.len() as u64)] {
        let mut stream = &bytes[..];
        subject
            .store
            .put(
                &key("stream"),
                &PutRequest::default(),
                Upload::Stream(&mut stream, len),
                soon(),
            )
            .expect("a put");
        assert!(get(subject, "stream").1 == bytes, "{len:?}");
    }
    let mut file = tempfile::tempfile().expect("a temporary file");
    // The file's own position must not matter, so it stays at its end.
    std::io::Write::write_all(&mut file, &bytes).expect("a write");
    subject
        .store
        .put(
            &key("file"),
            &PutRequest::default(),
            Upload::File(&file, bytes.len() as u64),
            soon(),
        )
        .expect("a put");
    assert!(get(subject, "file").1 == bytes);
}

fn a_body_of_another_length_stores_nothing(subject: &Subject) {
    put(subject, "old", b"old");
    for name in ["old", "new"] {
        let mut stream = &b"abc"[..];
        subject
            .store
            .put(
                &key(name),
                &PutRequest::default(),
                Upload::Stream(&mut stream, Some(5)),
                soon(),
            )
            .expect_err("a short body");
    }
    assert_eq!(get(subject, "old").1, b"old");
    assert_eq!(list(subject, ListQuery::default()), ["old"]);
}

fn an_empty_record_is_a_record(subject: &Subject) {
    put(subject, "empty", b"");
    let (meta, bytes) = get(subject, "empty");
    assert!(bytes.is_empty());
    assert_eq!(meta.content_type.as_deref(), Some("text/plain"));
    assert_eq!(list(subject, ListQuery::default()), ["empty"]);
}

fn keep_all(subject: &Subject, keys: &[&str]) {
    for name in keys {
        put(subject, name, name.as_bytes());
    }
    for name in keys {
        assert_eq!(get(subject, name).1, name.as_bytes(), "{name:?}");
    }
    let mut sorted: Vec<&str> = keys.to_vec();
    sorted.sort_unstable();
    assert_eq!(list(subject, ListQuery::default()), sorted);
    for name in keys {
        subject.store.delete(&key(name), soon()).expect("a delete");
        assert!(is_absent(subject, name), "{name:?}");
    }
    assert!(list(subject, ListQuery::default()).is_empty());
}

fn valid_keys_of_any_kind_are_kept(subject: &Subject) {
    let long = "x".repeat(256);
    let quotes = "'".repeat(256);
    keep_all(
        subject,
        &[
            "INPUT",
            "INPUT.json",
            "a",
            "a.json",
            "a.txt",
            "A",
            "...",
            ".a",
            "-",
            "_",
            "!'()",
            "a.__metadata__.json",
            "__metadata__.json",
            "x.tmp",
            &long,
            &quotes,
        ],
    );
    if subject.dot_keys {
        return keep_all(subject, &[".", ".."]);
    }
    for name in [".", ".."] {
        let error = subject.store.head(&key(name), soon()).expect_err("no URL");
        assert_eq!(error.kind(), ErrorKind::InvalidKey, "{error}");
    }
}

fn keys_that_the_platform_refuses_are_kept_where_they_are_taken(subject: &Subject) {
    let keys = [
        "a/b",
        "/",
        "a b",
        "é",
        "%2E",
        "a%",
        "a\nb",
        "a?b#c",
        "~",
        "\u{1F600}",
        "../../x",
    ];
    if subject.odd_keys {
        keep_all(subject, &keys);
        return;
    }
    for name in keys {
        let error = subject
            .store
            .put(
                &key(name),
                &PutRequest::default(),
                Upload::Bytes(b""),
                soon(),
            )
            .expect_err("an invalid key");
        assert_eq!(error.kind(), ErrorKind::InvalidKey, "{name:?}");
    }
}

fn ranges_are_cut_to_the_record(subject: &Subject) {
    put(subject, "k", b"0123456789");
    for (range, part) in [
        (0..4, &b"0123"[..]),
        (4..100, b"456789"),
        (9..10, b"9"),
        (0..u64::MAX, b"0123456789"),
    ] {
        let request = GetRequest {
            range: Some(range.clone()),
            ..GetRequest::default()
        };
        let mut fetched = fetch(subject, "k", &request);
        let mut bytes = Vec::new();
        fetched.body.read_to_end(&mut bytes).expect("a body");
        match fetched.range {
            Some(sent) => {
                assert_eq!(sent, range.start..range.end.min(10));
                assert_eq!(bytes, part);
                assert_eq!(fetched.meta.stored_size, Some(10));
            }
            None => assert_eq!(bytes, b"0123456789"),
        }
    }
}

fn validators_tell_versions_apart(subject: &Subject) {
    put(subject, "k", b"one");
    let (first, _) = get(subject, "k");
    let validator = first.validator().expect("a validator");
    let unchanged = GetRequest {
        if_none_match: Some(validator.clone()),
        ..GetRequest::default()
    };
    let answer = subject.store.get(&key("k"), &unchanged, soon());
    assert!(matches!(answer, Ok(GetOutcome::NotModified)), "{answer:?}");
    // Versions of equal length, put at once, one after the other.
    let mut seen = vec![validator];
    for bytes in [b"two", b"ten", b"six", b"two"] {
        let put_meta = put(subject, "k", bytes);
        let (meta, now) = get(subject, "k");
        assert_eq!(now, bytes);
        if let (Some(stored), Some(sent)) = (&put_meta.etag, &meta.etag) {
            assert_eq!(stored, sent);
        }
        if let Some(etag) = meta.etag {
            let validator = Validator::ETag(etag);
            assert!(!seen.contains(&validator), "{validator:?} again");
            seen.push(validator);
        }
    }
    let answer = subject.store.get(&key("k"), &unchanged, soon());
    assert!(matches!(answer, Ok(GetOutcome::Found(_))), "{answer:?}");
}

fn if_match_holds_or_is_refused(subject: &Subject) {
    put(subject, "k", b"one");
    let Some(etag) = get(subject, "k").0.strong_etag().cloned() else {
        return;
    };
    let request = GetRequest {
        if_match: Some(etag),
        ..GetRequest::default()
    };
    fetch(subject, "k", &request);
    put(subject, "k", b"two");
    let error = subject
        .store
        .get(&key("k"), &request, soon())
        .expect_err("another version");
    assert_eq!(error.kind(), ErrorKind::Changed);
}

fn puts_have_preconditions(subject: &Subject) {
    let refused = |request: &PutRequest| {
        let error = subject
            .store
            .put(&key("k"), request, Upload::Bytes(b"no"), soon())
            .expect_err("a precondition");
        assert_eq!(error.kind(), ErrorKind::Changed, "{request:?}");
    };
    let if_absent = PutRequest {
        if_absent: true,
        ..PutRequest::default()
    };
    subject
        .store
        .put(&key("k"), &if_absent, Upload::Bytes(b"one"), soon())
        .expect("a first put");
    refused(&if_absent);
    let first = subject.store.head(&key("k"), soon()).expect("a head");
    if let Some(etag) = first.etag {
        let if_match = PutRequest {
            if_match: Some(etag),
            ..PutRequest::default()
        };
        subject
            .store
            .put(&key("k"), &if_match, Upload::Bytes(b"two"), soon())
            .expect("a put over the known version");
        refused(&if_match);
        assert_eq!(get(subject, "k").1, b"two");
    }
}

fn deleting_is_idempotent(subject: &Subject) {
    put(subject, "k", b"k");
    put(subject, "l", b"l");
    for _ in 0..2 {
        subject.store.delete(&key("k"), soon()).expect("a delete");
        assert!(is_absent(subject, "k"));
    }
    assert_eq!(list(subject, ListQuery::default()), ["l"]);
}

fn listings_are_in_binary_order_and_sizes_are_stored_sizes(subject: &Subject) {
    let stored = encode(&Encoding::Gzip, &[b'x'; 5000]);
    for name in ["b", "B", "a", "_", "10", "9", "a.b", "a-b", "ab"] {
        put_as(subject, name, "text/plain", Encoding::Gzip, &stored);
    }
    let page = subject
        .store
        .list_page(&ListQuery::default(), soon())
        .expect("a page");
    let keys: Vec<&str> = page.items.iter().map(|item| item.key.as_str()).collect();
    assert_eq!(keys, ["10", "9", "B", "_", "a", "a-b", "a.b", "ab", "b"]);
    assert_eq!(page.next, None);
    for item in page.items {
        assert_eq!(
            item.stored_size,
            Some(stored.len() as u64),
            "{:?}",
            item.key
        );
    }
}

fn pages_start_anywhere_and_end(subject: &Subject) {
    for n in 0..25 {
        put(subject, &format!("k{n:02}"), b"");
    }
    for limit in [1, 7, 25, 1000] {
        let query = ListQuery {
            limit: Some(limit),
            ..ListQuery::default()
        };
        assert_eq!(list(subject, query).len(), 25, "{limit}");
    }
    let query = |after: &str, limit| ListQuery {
        after: Some(after.into()),
        limit: Some(limit),
        ..ListQuery::default()
    };
    assert_eq!(list(subject, query("k22", 1)), ["k23", "k24"]);
    assert_eq!(list(subject, query("k22x", 1)), ["k23", "k24"]);
    assert!(list(subject, query("k24", 1)).is_empty());
    assert_eq!(list(subject, query("", 10)).len(), 25);
    let page = subject
        .store
        .list_page(&query("k00", 3), soon())
        .expect("a page");
    let keys: Vec<&str> = page.items.iter().map(|item| item.key.as_str()).collect();
    assert_eq!(keys, ["k01", "k02", "k03"]);
    assert_eq!(page.next.as_deref(), Some("k03"));
}

fn prefixes_select(subject: &Subject) {
    for name in ["a", "ab", "ab1", "ab2", "ac", "b"] {
        put(subject, name, b"");
    }
    let query = |prefix: &str, after: Option<&str>| ListQuery {
        prefix: Some(prefix.into()),
        after: after.map(Into::into),
        limit: Some(2),
        ..ListQuery::default()
    };
    assert_eq!(list(subject, query("ab", None)), ["ab", "ab1", "ab2"]);
    assert_eq!(list(subject, query("ab", Some("ab1"))), ["ab2"]);
    assert_eq!(list(subject, query("b", Some("a"))), ["b"]);
    assert!(list(subject, query("x", None)).is_empty());
    assert!(list(subject, query("a", Some("b"))).is_empty());
}

fn concurrent_puts_leave_one_whole_winner(subject: &Subject) {
    const WRITERS: u8 = 6;
    let body = |n: u8| vec![b'a' + n; 20_000 + usize::from(n)];
    let kind = |n: u8| format!("text/x-writer-{n}");
    std::thread::scope(|scope| {
        for n in 0..WRITERS {
            scope.spawn(move || {
                for _ in 0..5 {
                    put_as(subject, "k", &kind(n), Encoding::Identity, &body(n));
                }
            });
        }
        scope.spawn(move || {
            for _ in 0..50 {
                if is_absent(subject, "k") {
                    continue;
                }
                let (meta, bytes) = get(subject, "k");
                let n = bytes[0] - b'a';
                assert!(bytes == body(n));
                assert_eq!(meta.content_type.as_deref(), Some(&*kind(n)));
            }
        });
    });
    let (meta, bytes) = get(subject, "k");
    let n = bytes[0] - b'a';
    assert!(bytes == body(n));
    assert_eq!(meta.content_type.as_deref(), Some(&*kind(n)));
    assert_eq!(list(subject, ListQuery::default()), ["k"]);
}

fn a_body_in_flight_survives_a_put_or_says_so(subject: &Subject) {
    let old = vec![b'o'; 1 << 20];
    put(subject, "k", &old);
    let mut fetched = fetch(subject, "k", &GetRequest::default());
    let mut bytes = vec![0; 1000];
    fetched.body.read_exact(&mut bytes).expect("a beginning");
    put(subject, "k", &vec![b'n'; 1 << 20]);
    match fetched.body.read_to_end(&mut bytes) {
        Ok(_) => assert!(bytes == old),
        Err(error) => drop(error),
    }
}
