//! Changing a store through the core, with no kernel: what is sent, when, and what is seen meanwhile.

mod closing;
mod failures;
mod gate;
mod given_up;
mod meanwhile;
mod names;
mod others;
mod tagless;
mod types;

use std::time::Duration;

use kvfs::base::clock::Deadline;
use kvfs::fs::FsError;
use kvfs::local::fault::Call;
use kvfs::local::memory::MemoryStore;
use kvfs::store::{Encoding, GetOutcome, GetRequest, Key, RecordMeta, Store};

use crate::support::core::{Core, Setup};

/// A core whose store can be changed, and the folder of its staging files.
fn writable(records: &[(&str, &str, &[u8])]) -> (tempfile::TempDir, Setup, Core) {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let store = MemoryStore::new();
    for (key, content_type, bytes) in records {
        store.insert(key, content_type, Encoding::Identity, bytes.to_vec());
    }
    let setup = Setup::new(store).writable(dir.path());
    let core = setup.core(None);
    (dir, setup, core)
}

fn stored(setup: &Setup, key: &str) -> Option<Vec<u8>> {
    setup.store.bytes(key).map(|bytes| bytes.to_vec())
}

fn meta(setup: &Setup, key: &str) -> RecordMeta {
    let key = Key::new(key).expect("a key");
    let deadline = kvfs::base::clock::Deadline::after(Duration::from_secs(9));
    match setup.store.get(&key, &GetRequest::default(), deadline) {
        Ok(GetOutcome::Found(fetched)) => fetched.meta,
        other => panic!("{key}: {other:?}"),
    }
}

fn content_type(setup: &Setup, key: &str) -> String {
    let meta = meta(setup, key);
    meta.content_type
        .map(|kind| kind.to_string())
        .unwrap_or_default()
}

fn late() -> Deadline {
    Deadline::after(Duration::from_secs(20))
}

/// Requests of a kind made since the last call of [`reset`].
fn calls(core: &Core, call: Call) -> u64 {
    core.faults.calls(call)
}

fn reset(core: &Core) {
    core.faults.reset_counts();
}

fn names(core: &Core) -> Vec<String> {
    let listed = core.list().expect("a listing");
    let mut names: Vec<String> = listed
        .into_iter()
        .map(|(name, _)| name.to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

fn errno(result: Result<(), FsError>) -> i32 {
    result.expect_err("an error").errno()
}
