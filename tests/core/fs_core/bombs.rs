//! Records that decode to thousands of times what is stored cost what ordinary ones cost.

use std::os::unix::fs::FileExt;
use std::sync::Arc;

use kvfs::fs::FsError;
use kvfs::local::fault::{Call, FaultStore};
use kvfs::local::memory::MemoryStore;
use kvfs::staging::{Pending, Why};
use kvfs::store::{Encoding, ErrorKind, Store};

use super::{entries, plain, wait_for};
use crate::support::core::{Setup, patient};
use crate::support::served::{encode, key};

/// What the bombs decode to.
const LARGE: usize = 80 << 20;

fn with_bomb(encoding: Encoding, bytes: usize) -> Setup {
    let stored = encode(&encoding, &vec![0; bytes]);
    assert!(stored.len() < 200 << 10, "{} bytes", stored.len());
    let honest = vec![7; 2 << 20];
    let store = plain(&[("a", &honest), ("b", &honest)]);
    store.insert("bomb", "text/plain", encoding, stored);
    let mut setup = Setup::new(store);
    setup.records.memory_capacity = 1 << 20;
    setup.disk_capacity = 40 << 20;
    setup
}

#[test]
fn a_record_that_decodes_to_much_evicts_little_and_is_given_up() {
    // 600 times is what an honest record may have.
    let setup = with_bomb(Encoding::Gzip, LARGE);
    let cache = tempfile::tempdir().expect("a temp folder");
    let core = setup.core(Some(cache.path()));
    for name in ["a", "b"] {
        core.cat(name).expect("its bytes");
    }
    wait_for(|| entries(cache.path()) == 2);
    // Nobody opens it.
    let ahead = core.records.prefetch(&key("bomb"), patient());
    assert!(ahead.is_ok() || ahead.is_err_and(|error| error.kind().is_some()));
    let fetched = core.faults.total_calls();
    let bytes = core.cat("bomb").expect("its bytes");
    assert_eq!(bytes.len(), LARGE);
    assert!(
        core.faults.total_calls() > fetched,
        "it was kept although it is too large"
    );
    assert_eq!(entries(cache.path()), 2, "honest entries were evicted");
}

#[test]
fn a_record_that_no_honest_one_resembles_is_too_large() {
    let mut setup = with_bomb(Encoding::Brotli, LARGE);
    let core = setup.core(None);
    let failed = core.open("bomb").expect_err("a bomb");
    let FsError::Store(error) = failed else {
        panic!("{failed:?}")
    };
    assert_eq!(error.kind(), ErrorKind::TooLarge);
    assert!(
        error.hint().is_some_and(|hint| hint.contains("--raw")),
        "{error}"
    );
    setup.records.max_content = Some(LARGE as u64);
    assert_eq!(
        setup.core(None).cat("bomb").expect("its bytes").len(),
        LARGE
    );
    setup.records.max_content = Some(1000);
    let core = setup.core(None);
    assert!(core.open("bomb").is_err());
    // What is not encoded has no such limit.
    assert_eq!(core.cat("a").expect("its bytes").len(), 2 << 20);
    setup.records.raw = true;
    let core = setup.core(None);
    assert!(core.cat("bomb").expect("its bytes").len() < 200 << 10);
}

#[test]
fn a_waiting_upload_that_decodes_to_much_is_uploaded_and_not_decoded() {
    let dir = tempfile::tempdir().expect("a temp folder");
    let mut setup = Setup::new(MemoryStore::new()).write_back(dir.path());
    let stored = encode(&Encoding::Brotli, &vec![0; LARGE]);
    let staging = Arc::clone(&setup.fs.write.as_ref().expect("writable").staging);
    let file = staging.new_file().expect("a staging file");
    file.write_all_at(&stored, 0).expect("room");
    let pending = Pending {
        key: key("bomb"),
        content_type: Some("text/plain".into()),
        encoding: Encoding::Brotli,
        if_match: None,
        if_absent: false,
        size: stored.len() as u64,
        is_new: false,
        closed_at: "2026-02-03T04:05:06Z".parse().expect("a time"),
        why: Why::WriteBack,
        attempts: 1,
        unanswered: Default::default(),
        began: None,
    };
    let journal = staging.journal();
    journal.keep(&file, pending, true).expect("kept");
    let memory = Arc::clone(&setup.store) as Arc<dyn Store>;
    let faults = Arc::new(FaultStore::new(memory));
    faults.block(Call::Put);
    setup.remote = Some(Arc::<FaultStore>::clone(&faults));
    let core = setup.core(None);
    assert!(core.lookup("bomb").expect("an answer").is_none());
    faults.release(Call::Put);
    wait_for(|| journal.entries().is_empty());
    let arrived = setup.store.bytes("bomb").expect("a record");
    assert!(*arrived == *stored);
}
