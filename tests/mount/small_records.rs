//! Small records in the disk cache: rows of one file, which are read again without the store.

use std::path::Path;
use std::sync::Arc;

use kvfs::base::units::ByteSize;
use kvfs::disk::usage;
use kvfs::local::fault::{Call, FaultStore};
use kvfs::local::memory::MemoryStore;
use kvfs::mount::build::DiskCacheConfig;
use kvfs::store::Encoding;

use crate::support::mounted::{MountedSession, eventually, text};

const RECORDS: usize = 400;

fn mount(store: &FaultStore, cache: &Path) -> MountedSession {
    MountedSession::with(Arc::new(store.clone()), |config| {
        // Nothing changes, and nothing is asked about again.
        config.ttl = None;
        config.memory_cache = ByteSize(64 << 10);
        config.disk_cache = Some(DiskCacheConfig {
            dir: cache.to_owned(),
            size: ByteSize(1 << 30),
        });
    })
}

fn cached(cache: &Path) -> u64 {
    let scopes = usage::scopes(cache).expect("the cache");
    scopes.iter().map(|scope| scope.contents).sum()
}

fn files_below(folder: &Path) -> usize {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .map(|entry| match entry.path().is_dir() {
            true => files_below(&entry.path()),
            false => 1,
        })
        .sum()
}

#[test]
fn a_remount_reads_all_small_records_from_one_file_and_asks_for_no_body() {
    let memory = MemoryStore::new();
    for n in 0..RECORDS {
        let key = format!("r{n:03}");
        memory.insert(&key, "text/plain", Encoding::Identity, text(n * 10));
    }
    let store = FaultStore::new(Arc::new(memory));
    let cache = tempfile::tempdir().expect("a folder");
    let first = mount(&store, cache.path());
    let sum = first.works("cat * | md5sum");
    eventually("all are cached", || cached(cache.path()) == RECORDS as u64);
    first.unmount();
    let files = files_below(cache.path());
    assert!(files < 20, "{files} files");
    store.reset_counts();
    let again = mount(&store, cache.path());
    assert_eq!(again.works("cat * | md5sum"), sum);
    assert_eq!(store.calls(Call::Get), 0);
    // `kvfs cache clear` while it is mounted.
    for scope in usage::scopes(cache.path()).expect("the cache") {
        usage::clear(&scope).expect("removed");
    }
    assert_eq!(again.works("cat * | md5sum"), sum);
    eventually("some are cached again", || cached(cache.path()) > 0);
    again.unmount();
}
