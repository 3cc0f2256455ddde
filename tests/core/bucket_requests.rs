//! What a server over a bucket asks of the storage, and what it makes of its answers.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use kvfs::bucket::{Bucket, Description, Scope, Use};
use kvfs::store::{ErrorKind, ListQuery, PutRequest, Store, Upload};
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta,
    ObjectStore, ObjectStoreExt, PutMode, PutMultipartOptions, PutOptions, PutPayload, PutResult,
    Result,
};
use reqwest::blocking::{Client, RequestBuilder};
use serde_json::Value;

use crate::support::served::{TOKEN, TestServer, key, soon};

/// A storage in memory that counts, loses answers and may ignore conditions.
#[derive(Clone, Debug, Default)]
struct Storage(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    objects: InMemory,
    requests: AtomicUsize,
    /// Whether the answer of the next write is lost.
    lose: AtomicBool,
    /// Whether it is told, after a repetition, that its condition does not hold.
    repeat: AtomicBool,
    ignores_conditions: AtomicBool,
}

impl Storage {
    fn bucket(&self) -> Bucket {
        let scope = Scope {
            bucket: "memory".into(),
            account: "memory".into(),
        };
        Bucket::over(Arc::new(self.clone()), "p".into(), scope).expect("a bucket")
    }

    fn count(&self) -> usize {
        self.0.requests.swap(0, Ordering::Relaxed)
    }

    fn asked(&self) {
        self.0.requests.fetch_add(1, Ordering::Relaxed);
    }
}

impl fmt::Display for Storage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a storage")
    }
}

#[async_trait::async_trait]
impl ObjectStore for Storage {
    async fn put_opts(
        &self,
        to: &Path,
        bytes: PutPayload,
        mut how: PutOptions,
    ) -> Result<PutResult> {
        self.asked();
        if self.0.ignores_conditions.load(Ordering::Relaxed) {
            how.mode = PutMode::Overwrite;
        }
        let done = self.0.objects.put_opts(to, bytes, how).await;
        let (path, source) = (to.to_string(), "lost".into());
        if self.0.lose.swap(false, Ordering::Relaxed) {
            let store = "test";
            return Err(Error::Generic { store, source });
        }
        if self.0.repeat.swap(false, Ordering::Relaxed) {
            return Err(Error::Precondition { path, source });
        }
        done
    }

    async fn put_multipart_opts(
        &self,
        to: &Path,
        how: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.asked();
        self.0.objects.put_multipart_opts(to, how).await
    }

    async fn get_opts(&self, from: &Path, how: GetOptions) -> Result<GetResult> {
        self.asked();
        self.0.objects.get_opts(from, how).await
    }

    fn delete_stream(
        &self,
        paths: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        self.asked();
        self.0.objects.delete_stream(paths)
    }

    fn list(&self, below: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.asked();
        self.0.objects.list(below)
    }

    async fn list_with_delimiter(&self, below: Option<&Path>) -> Result<ListResult> {
        self.asked();
        self.0.objects.list_with_delimiter(below).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, how: CopyOptions) -> Result<()> {
        self.0.objects.copy_opts(from, to, how).await
    }
}

fn http() -> Client {
    // Fails only if another test was first.
    let _ = rustls::crypto::ring::default_provider().install_default();
    Client::builder().no_proxy().build().expect("a client")
}

fn status(request: RequestBuilder) -> u16 {
    let answer = request.bearer_auth(TOKEN).send().expect("an answer");
    let status = answer.status().as_u16();
    answer.bytes().expect("a body");
    status
}

fn described(id: &str, name: &str) -> Description {
    Description {
        id: id.into(),
        name: Some(name.into()),
        ..Description::default()
    }
}

#[test]
fn a_request_for_a_record_is_one_request_to_the_bucket() {
    let storage = Storage::default();
    let server = TestServer::over_bucket(&storage.bucket(), |_| {});
    let (http, record) = (http(), server.record_url("k"));
    // What is known of the store may be forgotten in between where a machine stands still.
    let costs = |most: usize, least: usize, wanted: u16, ask: &dyn Fn() -> RequestBuilder| {
        let mut seen = usize::MAX;
        for _ in 0..20 {
            storage.count();
            assert_eq!(status(ask()), wanted);
            seen = seen.min(storage.count());
            if seen == least {
                break;
            }
        }
        assert!(seen == least && least <= most, "{seen} requests");
    };
    let put = || http.put(&record).body("0123456789");
    // The record, and whether its store is still there.
    costs(3, 2, 201, &put);
    costs(2, 1, 200, &|| http.get(&record));
    costs(2, 1, 200, &|| http.head(&record));
    costs(2, 1, 206, &|| {
        http.get(&record).header("range", "bytes=2-5")
    });
    costs(2, 1, 206, &|| http.get(&record).header("range", "bytes=7-"));
    let etag = http
        .head(&record)
        .bearer_auth(TOKEN)
        .send()
        .expect("an answer");
    let etag = etag.headers()["etag"].clone();
    costs(2, 1, 304, &|| {
        http.get(&record).header("if-none-match", &etag)
    });
    costs(2, 1, 200, &|| {
        http.get(&record).header("if-none-match", "\"x\"")
    });
    costs(2, 1, 412, &|| http.get(&record).header("if-match", "\"x\""));
    let beyond = http.get(&record).header("range", "bytes=70-");
    assert_eq!(status(beyond), 416);
    costs(2, 1, 204, &|| http.delete(&record));
    costs(1, 1, 200, &|| http.get(server.store_url()));
}

#[test]
fn a_list_of_many_stores_is_a_handful_of_requests() {
    let storage = Storage::default();
    let bucket = storage.bucket();
    for at in 0..40 {
        let new = described(&format!("Abcdefghijklmno{at:02}"), &format!("store-{at}"));
        bucket.create(&new, soon()).expect("a store");
    }
    // Something else lies there, too.
    let handle = tokio::runtime::Runtime::new().expect("a runtime");
    let put = |name: &str| {
        let path = Path::from(name);
        handle.block_on(storage.0.objects.put(&path, "x".into()))
    };
    put("p/catalog/.DS_Store").expect("an object");
    assert_eq!(bucket.descriptions(soon()).expect("a list").len(), 40);
    storage.count();
    assert_eq!(bucket.descriptions(soon()).expect("a list").len(), 40);
    assert!(storage.count() <= 3);
    // A server that has just started.
    assert_eq!(
        storage.bucket().descriptions(soon()).expect("a list").len(),
        40
    );
    assert!(storage.count() <= 4);
}

#[test]
fn a_write_whose_answer_was_lost_is_looked_up() {
    let storage = Storage::default();
    let server = TestServer::over_bucket(&storage.bucket(), |_| {});
    let (http, record) = (http(), server.record_url("mine"));
    for (number, flag) in [&storage.0.lose, &storage.0.repeat].into_iter().enumerate() {
        flag.store(true, Ordering::Relaxed);
        let record = format!("{record}{number}");
        let put = http.put(&record).header("if-none-match", "*").body("mine");
        assert_eq!(status(put), 201);
        assert_eq!(
            status(http.put(&record).header("if-none-match", "*").body("b")),
            412
        );
        let stores = format!("{}/v2/key-value-stores?name=n{number}", server.url());
        flag.store(true, Ordering::Relaxed);
        assert_eq!(status(http.post(&stores)), 201);
        assert_eq!(status(http.post(&stores)), 200);
    }
}

#[test]
fn a_write_into_a_deleted_store_is_refused_and_leaves_nothing() {
    let storage = Storage::default();
    let (here, there) = (storage.bucket(), storage.bucket());
    let (made, _) = here
        .create(&described("A", "one"), soon())
        .expect("a store");
    let mounted = here.store(&made);
    assert!(there.remove("A", soon()).expect("a deletion"));
    let large = vec![1; 9 << 20];
    for bytes in [&b"late"[..], &large] {
        let put = mounted.put(
            &key("k"),
            &PutRequest::default(),
            Upload::Bytes(bytes),
            soon(),
        );
        assert_eq!(put.expect_err("no store").kind(), ErrorKind::StoreNotFound);
    }
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let records = Path::from("p/stores");
    let left = runtime.block_on(storage.0.objects.list(Some(&records)).count());
    assert_eq!(left, 0);
    // Its name is free at once.
    assert!(
        here.create(&described("B", "one"), soon())
            .expect("a store")
            .1
    );
}

#[test]
fn objects_of_other_programs_are_no_records() {
    let storage = Storage::default();
    let bucket = storage.bucket();
    let (made, _) = bucket
        .create(&described("A", "one"), soon())
        .expect("a store");
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let names = [
        "=a",
        "=a0",
        "=we~ird",
        "=x1",
        "=x1/=ghost",
        "=x10",
        "=x2",
        "plain",
    ];
    for name in names {
        let path = Path::parse(format!("p/stores/A/{name}")).expect("a path");
        let put = storage.0.objects.put(&path, "x".into());
        runtime.block_on(put).expect("an object");
    }
    let listed = |prefix: Option<&str>, after: Option<&str>, limit: usize| {
        let mut query = ListQuery {
            prefix: prefix.map(Into::into),
            after: after.map(Into::into),
            limit: Some(limit),
            ..ListQuery::default()
        };
        let mut keys = Vec::new();
        loop {
            let page = bucket
                .store(&made)
                .list_page(&query, soon())
                .expect("a page");
            keys.extend(page.items.into_iter().map(|item| item.key.to_string()));
            query.after = match page.next {
                Some(next) => Some(next),
                None => return keys,
            };
        }
    };
    for limit in [1, 2, 1000] {
        assert_eq!(listed(None, None, limit), ["a", "a0", "x1", "x10", "x2"]);
        assert_eq!(listed(Some("x"), None, limit), ["x1", "x10", "x2"]);
        assert_eq!(listed(Some("x1"), None, limit), ["x1", "x10"]);
        assert_eq!(listed(None, Some("a~"), limit), ["x1", "x10", "x2"]);
    }
}

#[test]
fn what_another_version_laid_out_is_refused() {
    let storage = Storage::default();
    let bucket = storage.bucket();
    bucket.check(Use::Shared, soon()).expect("a bucket");
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let newer = Path::from("p/layout");
    let newer = storage.0.objects.put(&newer, "{\"version\": 3}".into());
    runtime.block_on(newer).expect("a layout");
    let error = storage
        .bucket()
        .check(Use::Read, soon())
        .expect_err("newer");
    assert!(error.to_string().contains("a newer kvfs"), "{error}");
}

#[test]
fn a_storage_that_ignores_conditions_serves_one_server_only() {
    let storage = Storage::default();
    storage.0.ignores_conditions.store(true, Ordering::Relaxed);
    let error = storage
        .bucket()
        .check(Use::Shared, soon())
        .expect_err("refused");
    assert!(
        error.to_string().contains("ignores the conditions"),
        "{error}"
    );
    let bucket = storage.bucket();
    bucket.check(Use::Alone, soon()).expect("a bucket");
    let server = TestServer::over_bucket(&bucket, |_| {});
    let http = http();
    let stores = format!("{}/v2/key-value-stores?name=wanted", server.url());
    let record = server.record_url("k");
    let tried = |ask: &(dyn Fn() -> u16 + Sync)| -> Vec<u16> {
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(ask)).collect();
            let joined = threads.into_iter().map(|thread| thread.join());
            joined.map(|status| status.expect("a status")).collect()
        })
    };
    let once = |statuses: &[u16], wanted: u16| statuses.iter().filter(|s| **s == wanted).count();
    let made = tried(&|| status(http.post(&stores)));
    assert_eq!(once(&made, 201), 1, "{made:?}");
    let put = tried(&|| status(http.put(&record).header("if-none-match", "*").body("x")));
    assert_eq!(once(&put, 201), 1, "{put:?}");
    let listed: Value = {
        let list = format!("{}/v2/key-value-stores", server.url());
        let answer = http.get(list).bearer_auth(TOKEN).send().expect("an answer");
        serde_json::from_str(&answer.text().expect("text")).expect("JSON")
    };
    assert_eq!(listed["data"]["total"], 2);
}
