//! Records that decode to thousands of times what is stored cost what ordinary ones cost.

use kvfs::fs::FsError;
use kvfs::store::{Encoding, ErrorKind};

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
