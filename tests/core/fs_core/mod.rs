//! The filesystem core over a store in memory: requests, freshness, versions, sizes, caches.

mod ages;
mod bombs;
mod disk_cache;
mod fetching;
mod names;
mod sizes;
mod versions;

use std::fs;
use std::thread;
use std::time::Duration;

use kvfs::base::clock::Deadline;
use kvfs::local::memory::MemoryStore;
use kvfs::store::Encoding;

use crate::support::core::Core;

fn plain(records: &[(&str, &[u8])]) -> MemoryStore {
    let store = MemoryStore::new();
    for (key, bytes) in records {
        store.insert(key, "text/plain", Encoding::Identity, bytes.to_vec());
    }
    store
}

fn soon() -> Deadline {
    Deadline::after(Duration::from_secs(60))
}

/// Requests made since the last call.
fn requests(core: &Core) -> u64 {
    let made = core.faults.total_calls();
    core.faults.reset_counts();
    made
}

/// Waits until something holds that another thread brings about.
fn wait_for(condition: impl Fn() -> bool) {
    let deadline = soon();
    while !condition() {
        assert!(deadline.remaining().is_some(), "it never came about");
        thread::sleep(Duration::from_millis(1));
    }
}

fn json_beside(data: &std::path::Path) -> std::path::PathBuf {
    let name = data
        .file_name()
        .and_then(|name| name.to_str())
        .expect("a name");
    data.with_file_name(format!("{}.json", name.split('.').next().expect("a hash")))
}

/// Data files that a `.json` stands beside: published entries.
fn data_files(cache: &std::path::Path) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![cache.join("kvfs-1")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            if entry.path().is_dir() {
                folders.push(entry.path());
            } else if entry
                .path()
                .extension()
                .is_some_and(|extension| extension == "data")
                && json_beside(&entry.path()).exists()
            {
                found.push(entry.path());
            }
        }
    }
    found
}

/// Published entries, in files or as rows.
fn entries(cache: &std::path::Path) -> usize {
    let scopes = kvfs::disk::usage::scopes(cache).unwrap_or_default();
    scopes.iter().map(|scope| scope.contents as usize).sum()
}
