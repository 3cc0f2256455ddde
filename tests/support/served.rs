//! A server over a folder of its own, and records put there behind its back.

use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use kvfs::apify::plain::PlainHttp;
use kvfs::base::clock::Deadline;
use kvfs::base::redact::Secret;
use kvfs::bucket::{Bucket, Scope};
use kvfs::mount::open::{OpenConfig, TokenSource, open};
use kvfs::server::{
    BucketCatalog, Counts, GeneralAccess, Lookup, NewStore, RunEntry, RunningServer, Server,
    ServerConfig, StoreEntry,
};
use kvfs::store::{Encoding, Key, PutRequest, RecordMeta, Store, Upload};
use tempfile::TempDir;
use url::Url;

/// The token of the server's owner.
pub const TOKEN: &str = "apify_api_TestServerToken0000000000000000000";

/// The name of the store that every test server begins with.
pub const STORE: &str = "test-store";

/// A running server and its folder.
#[derive(Debug)]
pub struct TestServer {
    pub server: RunningServer,
    pub folder: TempDir,
    pub entry: StoreEntry,
}

/// Returns a deadline that no test reaches.
pub fn soon() -> Deadline {
    Deadline::after(Duration::from_secs(60))
}

/// Returns a key.
pub fn key(text: &str) -> Key {
    Key::new(text).expect("a key")
}

impl TestServer {
    /// Starts a server with one empty, restricted store and a token.
    pub fn start() -> Self {
        Self::start_with(|_| {})
    }

    /// Starts a server after `change` has had its way with the settings.
    pub fn start_with(change: impl FnOnce(&mut ServerConfig)) -> Self {
        Self::start_over(change, Server::start)
    }

    /// Starts a server over a bucket.
    pub fn over_bucket(bucket: &Bucket, change: impl FnOnce(&mut ServerConfig)) -> Self {
        Self::start_over(change, |config| {
            let catalog = BucketCatalog::new(bucket.clone(), &config);
            Server::start_with(config, Arc::new(catalog))
        })
    }

    /// Starts a server over a bucket in memory.
    pub fn in_memory() -> Self {
        let objects = Arc::new(object_store::memory::InMemory::new());
        let scope = Scope {
            bucket: "memory".into(),
            account: "memory".into(),
        };
        let bucket = Bucket::over(objects, "stores".into(), scope).expect("a bucket");
        Self::over_bucket(&bucket, |_| {})
    }

    /// Makes another store on the server.
    pub fn another_store(&self, name: &str) -> StoreEntry {
        let made = self.server.catalog().create(&NewStore::named(name));
        made.expect("a store").0
    }

    /// Opens a store of the server as a mount does.
    pub fn open(&self, entry: &StoreEntry) -> Arc<dyn Store> {
        let config = OpenConfig {
            reference: entry.id.parse().expect("a reference"),
            api_url: Some(Url::parse(&self.url()).expect("a URL")),
            token: TokenSource::Environment(Secret::new(TOKEN)),
            signature: None,
            run_status: None,
            run_origin: None,
            plain_http: PlainHttp::default(),
            attempt_timeout: Duration::from_secs(30),
            deadline: Duration::from_secs(60),
            budget_dir: None,
        };
        open(&config, Arc::default()).expect("a store")
    }

    fn start_over(
        change: impl FnOnce(&mut ServerConfig),
        start: impl FnOnce(ServerConfig) -> std::io::Result<RunningServer>,
    ) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mut config = ServerConfig::new(folder.path());
        config.token = Some(Secret::new(TOKEN));
        config.runs.push(RunEntry {
            id: "run0000000000000A".into(),
            actor_id: "actor00000000000A".into(),
            actor_name: Some("my-actor".into()),
            task_id: Some("task000000000000A".into()),
            task_name: Some("my-task".into()),
            status: "SUCCEEDED".into(),
            origin: "API".into(),
            store: STORE.into(),
        });
        change(&mut config);
        let server = start(config).expect("a server");
        let (entry, _) = server
            .catalog()
            .create(&NewStore::named(STORE))
            .expect("a store");
        Self {
            server,
            folder,
            entry,
        }
    }

    /// Starts a server whose store anybody may read.
    pub fn public() -> Self {
        Self::start_with(|config| config.general_access = GeneralAccess::AnyoneWithNameCanRead)
    }

    /// Returns the server's base URL, `/v2` not included.
    pub fn url(&self) -> String {
        self.server.url()
    }

    /// Returns the URL of the test store.
    pub fn store_url(&self) -> String {
        format!("{}/v2/key-value-stores/{}", self.url(), self.entry.id)
    }

    /// Returns the URL of a record; the key must need no encoding.
    pub fn record_url(&self, key: &str) -> String {
        format!("{}/records/{key}", self.store_url())
    }

    /// Returns the test store behind the server.
    pub fn store(&self) -> Arc<dyn Store> {
        self.entry.store.clone()
    }

    /// Returns the folder of the test store.
    pub fn store_folder(&self) -> PathBuf {
        self.folder.path().join("key_value_stores").join(STORE)
    }

    /// Puts a record behind the server's back.
    pub fn put(
        &self,
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
        self.entry
            .store
            .put(&key(name), &request, Upload::Bytes(bytes), soon())
            .expect("a put")
    }

    /// Puts a plain text record behind the server's back.
    pub fn put_text(&self, name: &str, text: &str) -> RecordMeta {
        self.put(
            name,
            "text/plain; charset=utf-8",
            Encoding::Identity,
            text.as_bytes(),
        )
    }

    /// Puts content under an encoding and returns the stored bytes.
    pub fn put_encoded(
        &self,
        name: &str,
        content_type: &str,
        encoding: Encoding,
        content: &[u8],
    ) -> Vec<u8> {
        let stored = encode(&encoding, content);
        self.put(name, content_type, encoding, &stored);
        stored
    }

    /// Makes the test store readable as `access` says.
    pub fn set_access(&self, access: GeneralAccess) {
        let change = kvfs::server::StoreChange {
            general_access: Some(access),
            ..Default::default()
        };
        self.server
            .catalog()
            .update(&self.entry, &change)
            .expect("a change");
    }

    /// Returns the store's entry as it is now.
    pub fn entry_now(&self) -> StoreEntry {
        self.server
            .catalog()
            .find(Lookup::Id(&self.entry.id))
            .expect("a catalog")
            .expect("the store")
    }

    /// Returns what the server has counted.
    pub fn counts(&self) -> Counts {
        self.server.counts()
    }
}

/// Returns a content of this length in brotli of which a decoder has to remember 16 MiB.
pub fn remembering(len: usize) -> Vec<u8> {
    let mut encoded = Vec::new();
    let mut encoder = brotli::CompressorWriter::new(&mut encoded, 1 << 16, 5, 24);
    encoder.write_all(&vec![7; len]).expect("brotli");
    drop(encoder);
    encoded
}

/// Encodes content.
pub fn encode(encoding: &Encoding, content: &[u8]) -> Vec<u8> {
    let level = flate2::Compression::default();
    match encoding {
        Encoding::Identity | Encoding::Unknown(_) => content.to_vec(),
        Encoding::Gzip => {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), level);
            encoder.write_all(content).expect("gzip");
            encoder.finish().expect("gzip")
        }
        Encoding::Deflate => {
            let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), level);
            encoder.write_all(content).expect("zlib");
            encoder.finish().expect("zlib")
        }
        Encoding::Brotli => {
            let mut encoded = Vec::new();
            {
                let mut encoder = brotli::CompressorWriter::new(&mut encoded, 4096, 5, 20);
                encoder.write_all(content).expect("brotli");
            }
            encoded
        }
    }
}
