//! Whole stores at once: `kvfs copy`, `kvfs diff`, `kvfs stores`.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use kvfs::base::clock::Deadline;
use kvfs::copy::diff;
use kvfs::copy::filter::Filter;
use kvfs::copy::memory::Memory;
use kvfs::copy::report::{Outcome, Report, Told, Watcher};
use kvfs::copy::run::{self, Options, Side};
use kvfs::local::{Access, DirectoryStore};
use kvfs::store::{
    Encoding, ErrorKind, GetOutcome, GetRequest, Key, ListPage, ListQuery, PutRequest, RecordMeta,
    Result, Store, StoreError, StoreInfo, Upload,
};
use parking_lot::Mutex;

use crate::cli::{Ran, User, ran};
use crate::support::served::{STORE, TOKEN, TestServer, encode, key, soon};

/// What a store holds: type, encoding and stored bytes by key.
type Content = BTreeMap<String, (Option<String>, Encoding, Vec<u8>)>;

fn content(store: &dyn Store) -> Content {
    let mut all = Content::new();
    let mut pager = kvfs::store::pager::Pager::new(ListQuery::default());
    while let Some(page) = pager.next_page(store, soon()).expect("a page") {
        for item in page {
            let found = store.get(&item.key, &GetRequest::default(), soon());
            let GetOutcome::Found(mut found) = found.expect("a record") else {
                panic!("no record");
            };
            let mut bytes = Vec::new();
            found.body.read_to_end(&mut bytes).expect("its bytes");
            let meta = found.meta;
            let kind = meta.content_type.map(|kind| kind.to_string());
            all.insert(item.key.to_string(), (kind, meta.encoding, bytes));
        }
    }
    all
}

fn folder(path: &Path) -> Side {
    std::fs::create_dir_all(path).expect("a folder");
    let store = DirectoryStore::open(path, Access::ReadWrite).expect("a store");
    Side {
        store: Arc::new(store),
        is_local: true,
    }
}

fn remote(store: Arc<dyn Store>) -> Side {
    Side {
        store,
        is_local: false,
    }
}

fn put(store: &dyn Store, name: &str, kind: &str, encoding: Encoding, bytes: &[u8]) {
    let request = PutRequest {
        content_type: Some(kind.into()),
        encoding,
        ..PutRequest::default()
    };
    store
        .put(&key(name), &request, Upload::Bytes(bytes), soon())
        .expect("a put");
}

/// Fills a store with records of all encodings and odd keys.
fn fill(store: &dyn Store, many: usize) {
    let mut random = fastrand::Rng::with_seed(7);
    const KINDS: [&str; 6] = [
        "application/json",
        "application/json; charset=utf-8",
        "text/plain; charset=utf-8",
        "text/html",
        "image/png",
        "application/x-odd; a=\"b\"",
    ];
    const ODD: [&str; 12] = [
        ".",
        "..",
        "a/b",
        "a b",
        "\u{fc}",
        "%2E",
        "A",
        "a",
        "__metadata__.json",
        "x.__metadata__.json",
        "con.json.json",
        "!'()-_.",
    ];
    for n in 0..many {
        let name = match ODD.get(n) {
            Some(odd) => (*odd).to_owned(),
            None if n % 50 == 0 => format!("{}{n}", "long".repeat(62)),
            None => format!(
                "{}-{n}",
                random
                    .choice(["r", "R", "rec.ord", "\u{65e5}"])
                    .unwrap_or("r")
            ),
        };
        let size = match random.u8(..) {
            0..8 => 0,
            8..250 => random.usize(1..3000),
            _ => random.usize(100_000..1_500_000),
        };
        let plain: Vec<u8> = (0..size)
            .map(|at| (at as u8).wrapping_mul(7) ^ random.u8(..4))
            .collect();
        let encoding = match n % 5 {
            0 => Encoding::Gzip,
            1 => Encoding::Brotli,
            2 => Encoding::Deflate,
            _ => Encoding::Identity,
        };
        let stored = encode(&encoding, &plain);
        put(store, &name, KINDS[n % KINDS.len()], encoding, &stored);
    }
}

fn options() -> Options {
    Options {
        filter: Filter::default(),
        delete: false,
        dry_run: false,
        verify: false,
        checksum: false,
        jobs: 8,
        timeout: Duration::from_secs(60),
    }
}

/// Notes what it is told.
#[derive(Default)]
struct Notes(Mutex<BTreeMap<String, String>>);

impl Watcher for Notes {
    fn told(&self, told: &Told<'_>) {
        let outcome = match told.outcome {
            Outcome::Copied => "copied".to_owned(),
            Outcome::Unchanged(by) => format!("unchanged: {by}"),
            Outcome::Deleted => "deleted".to_owned(),
            Outcome::Failed(error) => format!("failed: {error}"),
        };
        self.0.lock().insert(told.key.to_string(), outcome);
    }
    fn found(&self, _: u64, _: u64) {}
    fn moved(&self, _: u64) {}
}

fn copy(
    from: &Side,
    to: &Side,
    options: &Options,
    memory: &Memory,
) -> (Report, BTreeMap<String, String>) {
    let notes = Notes::default();
    let report = run::run(from, to, options, memory, &notes);
    (report, notes.0.into_inner())
}

fn differing(one: &Content, other: &Content) -> Vec<String> {
    let keys = one.keys().chain(other.keys());
    let mut odd: Vec<String> = keys
        .filter(|key| one.get(*key) != other.get(*key))
        .cloned()
        .collect();
    odd.dedup();
    odd
}

#[test]
fn a_round_trip_over_the_api_and_folders_is_the_identity() {
    let (server, dir) = (TestServer::start(), tempfile::tempdir().expect("a folder"));
    let many = crate::support::cases(600, 10_000) as usize;
    fill(&*server.store(), many);
    let source = remote(server.open(&server.entry));
    let (one, two) = (
        folder(&dir.path().join("one")),
        folder(&dir.path().join("two")),
    );
    let (report, notes) = copy(&source, &one, &options(), &Memory::default());
    // A URL cannot carry two keys.
    let unreachable = [".", ".."];
    let failed: Vec<_> = notes
        .iter()
        .filter(|(_, said)| said.starts_with("failed"))
        .collect();
    assert!(
        failed
            .iter()
            .all(|(key, _)| unreachable.contains(&key.as_str())),
        "{failed:?}"
    );
    assert!(report.copied as usize >= many - 12, "{report:?}");
    let (report, _) = copy(&one, &two, &options(), &Memory::default());
    assert!(report.is_complete(), "{report:?}");
    let mut original = content(&*server.store());
    original.retain(|key, _| !failed.iter().any(|(failed, _)| *failed == key));
    for side in [&one, &two] {
        let odd = differing(&original, &content(&*side.store));
        assert!(odd.is_empty(), "{odd:?}");
    }
    // And back, as far as the API takes the keys.
    let back = server.another_store("back");
    let (report, notes) = copy(
        &two,
        &remote(server.open(&back)),
        &options(),
        &Memory::default(),
    );
    for (key, said) in &notes {
        // Whether a URL can carry the other two depends on the client.
        if !unreachable.contains(&key.as_str()) {
            let valid = kvfs::store::Key::new(key).expect("a key").is_valid();
            assert_eq!(said == "copied", valid, "{key}: {said}");
        }
    }
    assert!(report.failed > 0 && report.copied > 0);
    let mut expected = original;
    expected.retain(|key, _| notes.get(key).is_some_and(|said| said == "copied"));
    let odd = differing(&expected, &content(&*back.store));
    assert!(odd.is_empty(), "{odd:?}");
}

#[test]
fn an_unchanged_store_costs_a_handful_of_requests_and_a_changed_one_what_changed() {
    let (server, dir) = (TestServer::start(), tempfile::tempdir().expect("a folder"));
    for n in 0..300 {
        server.put_text(&format!("r{n:03}"), &format!("record {n:03}"));
    }
    let memory = || Memory::open(&dir.path().join("copies"), "a", "b");
    let to = folder(&dir.path().join("to"));
    let from = || remote(server.open(&server.entry));
    let (report, _) = copy(&from(), &to, &options(), &memory());
    assert_eq!((report.copied, report.failed), (300, 0), "{report:?}");
    let before = server.counts();
    let (report, notes) = copy(&from(), &to, &options(), &memory());
    let after = server.counts();
    assert_eq!((report.copied, report.unchanged), (0, 300));
    assert!(
        notes.values().all(|said| said.contains("clock")),
        "{notes:?}"
    );
    assert!(
        after.requests() - before.requests() <= 5,
        "{before:?}, {after:?}"
    );
    // The same size, other bytes; another size; a new one; one that is gone.
    server.put_text("r007", "RECORD 007");
    server.put_text("r008", "longer than before");
    server.put_text("new", "new");
    server
        .store()
        .delete(&key("r009"), soon())
        .expect("a delete");
    let wanted = Options {
        delete: true,
        verify: true,
        ..options()
    };
    let (report, notes) = copy(&from(), &to, &wanted, &memory());
    let changed: Vec<_> = notes
        .iter()
        .filter(|(_, said)| !said.starts_with("unchanged"))
        .collect();
    assert_eq!(
        (report.copied, report.deleted, report.failed),
        (3, 1, 0),
        "{changed:?}"
    );
    assert!(differing(&content(&*server.store()), &content(&*to.store)).is_empty());
    // The target was changed behind its back.
    put(
        &*to.store,
        "r010",
        "text/plain; charset=utf-8",
        Encoding::Identity,
        b"RECORD 010",
    );
    let (report, _) = copy(&from(), &to, &options(), &memory());
    assert_eq!((report.copied, report.failed), (1, 0), "{report:?}");
    let (report, notes) = copy(
        &from(),
        &to,
        &Options {
            checksum: true,
            ..options()
        },
        &memory(),
    );
    assert_eq!(report.copied, 0);
    assert!(
        notes.values().all(|said| said.contains("content")),
        "{notes:?}"
    );
}

/// A store whose puts fail after some, and whose listing can be cut short or fail.
#[derive(Debug)]
struct Faulty {
    inner: Arc<dyn Store>,
    puts_left: AtomicUsize,
    kind: ErrorKind,
    hidden: Option<&'static str>,
    fails_after: Option<&'static str>,
    gets: AtomicU64,
}

impl Faulty {
    fn new(inner: Arc<dyn Store>) -> Self {
        Self {
            inner,
            puts_left: AtomicUsize::new(usize::MAX),
            kind: ErrorKind::Server,
            hidden: None,
            fails_after: None,
            gets: AtomicU64::new(0),
        }
    }
}

impl Store for Faulty {
    fn info(&self) -> StoreInfo {
        self.inner.info()
    }
    fn list_page(&self, query: &ListQuery, deadline: Deadline) -> Result<ListPage> {
        let mut page = self.inner.list_page(query, deadline)?;
        if let Some(after) = self.fails_after {
            if query.after.is_some() {
                return Err(StoreError::new(ErrorKind::Server, "the list broke"));
            }
            page.items.retain(|item| item.key.as_str() <= after);
            page.next = Some(after.into());
        }
        page.items
            .retain(|item| Some(item.key.as_str()) != self.hidden);
        Ok(page)
    }
    fn head(&self, key: &Key, deadline: Deadline) -> Result<RecordMeta> {
        self.inner.head(key, deadline)
    }
    fn get(&self, key: &Key, request: &GetRequest, deadline: Deadline) -> Result<GetOutcome> {
        self.gets.fetch_add(1, Ordering::Relaxed);
        self.inner.get(key, request, deadline)
    }
    fn put(
        &self,
        key: &Key,
        request: &PutRequest,
        body: Upload<'_>,
        deadline: Deadline,
    ) -> Result<RecordMeta> {
        let left = self
            .puts_left
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
                left.checked_sub(1)
            });
        match left {
            Ok(_) => self.inner.put(key, request, body, deadline),
            Err(_) => Err(StoreError::new(self.kind, "no more")),
        }
    }
    fn delete(&self, key: &Key, deadline: Deadline) -> Result<()> {
        self.inner.delete(key, deadline)
    }
}

#[test]
fn failures_do_not_stop_a_copy_and_the_next_one_copies_only_what_is_missing() {
    let (server, dir) = (TestServer::start(), tempfile::tempdir().expect("a folder"));
    for n in 0..200 {
        server.put_text(&format!("r{n:03}"), "text");
    }
    let to = folder(&dir.path().join("to"));
    let memory = || Memory::open(&dir.path().join("copies"), "a", "b");
    let broken = Faulty {
        puts_left: AtomicUsize::new(120),
        kind: ErrorKind::TooLarge,
        ..Faulty::new(to.store.clone())
    };
    let broken = Side {
        store: Arc::new(broken),
        is_local: true,
    };
    let source = remote(server.open(&server.entry));
    let (report, _) = copy(&source, &broken, &options(), &memory());
    assert_eq!(
        (report.copied, report.failed, report.not_tried),
        (120, 80, 0),
        "{report:?}"
    );
    // Interrupted: the rest is fetched, and nothing else.
    let counting = Arc::new(Faulty::new(server.open(&server.entry)));
    let (report, _) = copy(&remote(counting.clone()), &to, &options(), &memory());
    assert_eq!((report.copied, report.unchanged), (80, 120), "{report:?}");
    assert_eq!(counting.gets.load(Ordering::Relaxed), 80);
    // What all records would meet ends the copy soon.
    let denied = Faulty {
        puts_left: AtomicUsize::new(0),
        kind: ErrorKind::Denied,
        ..Faulty::new(folder(&dir.path().join("other")).store)
    };
    let denied = Side {
        store: Arc::new(denied),
        is_local: true,
    };
    let (report, _) = copy(&source, &denied, &options(), &Memory::default());
    assert!(
        report.not_tried > 50 && report.stopped.is_some(),
        "{report:?}"
    );
}

#[test]
fn nothing_is_deleted_on_a_listing_that_failed_or_came_short() {
    let dir = tempfile::tempdir().expect("a folder");
    let (from, to) = (
        folder(&dir.path().join("from")),
        folder(&dir.path().join("to")),
    );
    for name in ["a", "b", "c", "d"] {
        put(&*from.store, name, "text/plain", Encoding::Identity, b"x");
        put(&*to.store, name, "text/plain", Encoding::Identity, b"x");
    }
    put(
        &*to.store,
        "surplus",
        "text/plain",
        Encoding::Identity,
        b"x",
    );
    let wanted = || Options {
        delete: true,
        ..options()
    };
    let faulty = |hidden, fails_after| Side {
        store: Arc::new(Faulty {
            hidden,
            fails_after,
            ..Faulty::new(from.store.clone())
        }),
        is_local: true,
    };
    let (report, _) = copy(&faulty(None, Some("b")), &to, &wanted(), &Memory::default());
    assert!(
        report.deleted == 0 && report.listing.is_some(),
        "{report:?}"
    );
    assert_eq!(content(&*to.store).len(), 5);
    // A listing that looks complete and is not: the source is asked for each before it goes.
    let (report, notes) = copy(&faulty(Some("c"), None), &to, &wanted(), &Memory::default());
    assert_eq!((report.deleted, report.failed), (1, 1), "{notes:?}");
    let left: Vec<_> = content(&*to.store).into_keys().collect();
    assert_eq!(left, ["a", "b", "c", "d"]);
    let dry = Options {
        dry_run: true,
        ..wanted()
    };
    put(
        &*to.store,
        "surplus",
        "text/plain",
        Encoding::Identity,
        b"x",
    );
    let (report, _) = copy(&from, &to, &dry, &Memory::default());
    assert_eq!(report.deleted, 1);
    assert_eq!(content(&*to.store).len(), 5);
}

#[test]
fn stores_are_compared_by_size_or_by_content_however_it_is_stored() {
    let dir = tempfile::tempdir().expect("a folder");
    let (one, other) = (
        folder(&dir.path().join("one")),
        folder(&dir.path().join("other")),
    );
    let text = "the same content ".repeat(100);
    put(
        &*one.store,
        "encoded",
        "text/plain",
        Encoding::Identity,
        text.as_bytes(),
    );
    put(
        &*other.store,
        "encoded",
        "text/plain",
        Encoding::Gzip,
        &encode(&Encoding::Gzip, text.as_bytes()),
    );
    for (store, bytes) in [(&one, b"aaa"), (&other, b"bbb")] {
        put(
            &*store.store,
            "same-size",
            "text/plain",
            Encoding::Identity,
            bytes,
        );
        put(
            &*store.store,
            "equal",
            "text/plain",
            Encoding::Identity,
            b"x",
        );
    }
    put(&*one.store, "left", "text/plain", Encoding::Identity, b"x");
    let found = |content| {
        let options = diff::Options {
            filter: Filter::default(),
            content,
            jobs: 4,
            timeout: Duration::from_secs(60),
        };
        let mut keys = Vec::new();
        let found = diff::run(&*one.store, &*other.store, &options, &mut |told| {
            if let diff::Told::Different(difference) = told {
                keys.push((difference.key.to_string(), difference.kind));
            }
            Ok(())
        });
        (keys, found.expect("two listings").same)
    };
    use diff::Kind::{Different, OnlyFirst};
    let (left, encoded) = (
        ("left".to_owned(), OnlyFirst),
        ("encoded".to_owned(), Different),
    );
    assert_eq!(found(false), (vec![encoded, left.clone()], 2));
    assert_eq!(
        found(true),
        (vec![left, ("same-size".to_owned(), Different)], 2)
    );
}

fn kvfs(server: &TestServer, user: &User, args: &[&str]) -> Ran {
    let mut command = user.kvfs();
    command
        .args(args)
        .env("APIFY_TOKEN", TOKEN)
        .env("APIFY_CLIENT_BASE_URL", server.url());
    ran(command.output().expect("kvfs runs"))
}

#[test]
fn the_commands_copy_compare_list_make_and_delete_stores() {
    let (server, user) = (TestServer::start(), User::new());
    server.put_text("a", "1");
    server.put_text("b.json", "{}");
    let store = format!("~{STORE}");
    let run = |args: &[&str]| kvfs(&server, &user, args);
    let copied = run(&["copy", &store, "saved"]);
    assert_eq!(copied.code, 0, "{copied:?}");
    assert!(copied.err.contains("copied 2 records"), "{copied:?}");
    assert_eq!(run(&["diff", &store, "./saved"]).code, 0);
    assert_eq!(run(&["diff", "--content", &store, "./saved/"]).code, 0);
    let made = run(&["stores", "create", "other"]);
    assert_eq!((made.code, made.out.as_str()), (0, "~other\n"), "{made:?}");
    let pushed = run(&["copy", "./saved", "~other", "--json", "--include", "*.json"]);
    assert_eq!(pushed.code, 0, "{pushed:?}");
    let line: serde_json::Value = serde_json::from_str(&pushed.out).expect("a line of JSON");
    assert_eq!(
        (line["key"].as_str(), line["result"].as_str()),
        (Some("b.json"), Some("copied"))
    );
    let differ = run(&["diff", &store, "~other", "--json"]);
    assert_eq!(differ.code, 1, "{differ:?}");
    assert!(differ.out.contains("only_in_a"), "{differ:?}");
    let listed = run(&["stores", "--count", "--json"]);
    assert!(
        listed.out.contains("\"records\":2") && listed.out.contains("~other"),
        "{listed:?}"
    );
    run(&["stores", "remove", "~other"]).fails(2, &["--yes"]);
    assert_eq!(run(&["stores", "remove", "--yes", "~other"]).code, 0);
    run(&["diff", &store, "~other"]).fails(4, &["~other"]);
    run(&["copy", &store, &store]).fails(2, &["the same store"]);
    run(&["copy", "./saved", "./saved/inner"]).fails(2, &["inside the other"]);
    run(&["copy", "~none", "x"]).fails(4, &["~none"]);
}
