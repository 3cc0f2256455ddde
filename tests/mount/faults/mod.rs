//! Servers and stores that fail: every failure is an errno and one line of explanation, none is
//! a hang, and no wrong byte is ever read.

mod answers;
mod blocked;
mod panics;
mod stores;

use std::fs;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kvfs::apify::http::HttpOptions;
use kvfs::local::MemoryStore;
use kvfs::local::fault::FaultStore;
use kvfs::metrics::ErrorEntry;
use kvfs::store::Encoding;

use crate::support::mounted::{MountedSession, pattern, quick_retries, scripted, scripted_keys};
use crate::support::scripted::{Answer, ScriptedServer, Seen};

fn impatient() -> HttpOptions {
    HttpOptions {
        attempt_timeout: Duration::from_millis(300),
        ..quick_retries()
    }
}

/// Mounts a scripted server that lists one key `k` and answers as told for the rest.
fn mounted(
    options: HttpOptions,
    answer: impl Fn(&Seen) -> Answer + Send + Sync + 'static,
) -> (ScriptedServer, MountedSession) {
    let server = scripted(move |seen, _| {
        if seen.path().ends_with("/keys") {
            scripted_keys(&[("k", 10)])
        } else {
            answer(seen)
        }
    });
    let mount = MountedSession::scripted(&server, options, |config| {
        config.deadline = Duration::from_secs(3);
    });
    (server, mount)
}

/// Reads `k` and returns the errno; the error has left exactly one entry, which is returned too.
#[track_caller]
fn failure(mount: &MountedSession) -> (i32, ErrorEntry) {
    let start = Instant::now();
    let error = match fs::read(mount.file("k")) {
        Err(error) => error,
        Ok(bytes) => panic!(
            "read {} bytes: {:?}",
            bytes.len(),
            &bytes[..bytes.len().min(50)]
        ),
    };
    assert!(
        start.elapsed() < Duration::from_secs(5),
        "it took {:?}",
        start.elapsed()
    );
    let errors = mount.counters().last_errors;
    assert_eq!(errors.len(), 1, "{errors:?}");
    let entry = errors[0].clone();
    assert_eq!(entry.count, 1, "{entry:?}");
    (error.raw_os_error().expect("an errno"), entry)
}

/// Checks that a record that is answered so fails as expected, and that the mount goes on.
#[track_caller]
fn fails_with(
    errno: i32,
    words: &[&str],
    answer: impl Fn(&Seen) -> Answer + Send + Sync + 'static,
) {
    let (_server, mount) = mounted(quick_retries(), answer);
    let (actual, entry) = failure(&mount);
    assert_eq!(actual, errno, "{entry:?}");
    for word in words {
        assert!(
            entry.message.contains(word)
                || entry.hint.as_ref().is_some_and(|hint| hint.contains(word)),
            "{word} is not in {entry:?}"
        );
    }
    assert_eq!(entry.key.as_deref(), Some("k"));
    assert_eq!(mount.works("ls"), "k");
}

/// A store in memory that fails as told, with a TTL so long that nothing is asked twice.
fn faulty(change: impl FnOnce(&MemoryStore)) -> (FaultStore, MountedSession) {
    let memory = MemoryStore::new();
    for (name, content) in [("a", "first"), ("b", "second"), ("c", "third")] {
        memory.insert(name, "text/plain", Encoding::Identity, content);
    }
    memory.insert("large", "text/plain", Encoding::Identity, pattern(8 << 20));
    change(&memory);
    let store = FaultStore::new(Arc::new(memory));
    let mount = MountedSession::with(Arc::new(store.clone()), |config| {
        config.deadline = Duration::from_secs(30);
    });
    (store, mount)
}
