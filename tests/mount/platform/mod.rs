//! What things cost where the server answers as the platform does, and that nothing wrong is shown
//! whatever the store's clock does.

use std::path::Path;
use std::time::{Duration, Instant};

use kvfs::mount::build::{DiskCacheConfig, MountConfig};
use kvfs::server::{Platform, StoreClockKind};
use kvfs::store::Encoding;

use crate::support::mounted::{MountedSession, eventually, make_writable, pattern, text};
use crate::support::served::{TOKEN, TestServer};

mod clocks;
mod costs;
mod unknown;

const TTL: Duration = Duration::from_millis(1500);
/// How late the server's clock is, and how late it may be.
const LAG: Duration = Duration::from_millis(300);
const ALLOWED: Duration = Duration::from_secs(2);

/// A server that answers as the platform, with stores that have rested for an hour.
fn platform(change: impl FnOnce(&mut Platform)) -> TestServer {
    TestServer::start_with(|config| {
        let mut platform = Platform {
            lag: LAG,
            rested: Duration::from_secs(3600),
            ..Platform::default()
        };
        change(&mut platform);
        config.platform = Some(platform);
    })
}

fn mount(server: &TestServer, change: impl FnOnce(&mut MountConfig)) -> MountedSession {
    MountedSession::served_with(server, |config| {
        config.ttl = Some(TTL);
        config.clock_lag = Some(ALLOWED);
        change(config);
    })
}

/// As [`mount`], with a cache that outlives the mount.
fn mount_with_cache(server: &TestServer, cache: &Path) -> MountedSession {
    mount(server, |config| {
        config.disk_cache = Some(DiskCacheConfig {
            dir: cache.to_owned(),
            size: kvfs::base::units::ByteSize(1 << 30),
        });
    })
}

/// Stores a record as others do: through the server.
fn put(server: &TestServer, key: &str, bytes: &[u8]) {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = reqwest::blocking::Client::builder().no_proxy().build();
    let answer = client
        .expect("a client")
        .put(server.record_url(key))
        .bearer_auth(TOKEN)
        .body(bytes.to_vec())
        .send()
        .expect("an answer");
    assert_eq!(answer.status(), 201);
}

fn outlive_ttl() {
    std::thread::sleep(TTL + Duration::from_millis(100));
}

/// What was asked of a server meanwhile, but for the puts of [`put`].
#[derive(Debug)]
struct Cost {
    /// Methods and paths.
    requests: Vec<String>,
}

impl Cost {
    fn of(server: &TestServer, work: impl FnOnce()) -> Self {
        let before = server.server.requests().len();
        work();
        let requests = server.server.requests();
        let since = requests[before.min(requests.len())..].iter();
        Self {
            requests: since
                .map(|request| format!("{} {}", request.method, request.path))
                .collect(),
        }
    }

    fn bodies(&self) -> usize {
        let is_body = |line: &&String| line.starts_with("GET") && line.contains("/records/");
        self.requests.iter().filter(is_body).count()
    }

    fn heads(&self) -> usize {
        let is_head = |line: &&String| line.starts_with("HEAD");
        self.requests.iter().filter(is_head).count()
    }

    fn puts(&self) -> usize {
        let is_put = |line: &&String| line.starts_with("PUT");
        self.requests.iter().filter(is_put).count()
    }

    /// Checks that there were so many requests, and one more to check the clock.
    #[track_caller]
    fn is_at_most(&self, most: usize) {
        assert!(self.requests.len() <= most + 1, "{self:#?}");
    }
}

/// Fills a store with small records, some encoded.
fn fill(server: &TestServer, count: usize) {
    for n in 0..count {
        let content = text(2000 + n);
        let encoding = if n % 3 == 0 {
            Encoding::Brotli
        } else {
            Encoding::Identity
        };
        server.put_encoded(
            &format!("record-{n:03}.txt"),
            "text/plain",
            encoding,
            &content,
        );
    }
}

/// Reads all records until they are what they should be, and fails if that takes longer than the
/// TTL and the lag.
#[track_caller]
fn converges(mount: &MountedSession, expected: &str, within: Duration) {
    let start = Instant::now();
    loop {
        let asked = start.elapsed();
        if mount.works("cat a b c d e") == expected {
            return;
        }
        assert!(
            asked < within,
            "after {asked:?}: {}",
            mount.works("cat a b c d e")
        );
        std::thread::sleep(Duration::from_millis(200));
    }
}
