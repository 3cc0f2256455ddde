//! What the disk cache keeps, for whom and how much of it.

use std::fs;

use kvfs::local::memory::MemoryStore;
use kvfs::store::Encoding;

use super::{data_files, entries, json_beside, plain, wait_for};
use crate::support::core::Setup;

#[test]
fn the_disk_cache_outlives_the_mount_and_is_revalidated() {
    let big = vec![7u8; 3 << 20];
    let setup = Setup::new(plain(&[("small", b"s"), ("big", &big)]));
    let cache = tempfile::tempdir().expect("a temp folder");
    {
        let core = setup.core(Some(cache.path()));
        assert_eq!(core.cat("small").expect("its bytes"), b"s");
        assert_eq!(core.cat("big").expect("its bytes"), big);
        wait_for(|| entries(cache.path()) == 2);
    }
    let core = setup.core(Some(cache.path()));
    assert_eq!(core.cat("small").expect("its bytes"), b"s");
    assert_eq!(core.cat("big").expect("its bytes"), big);
    assert_eq!(
        (core.faults.conditional_gets(), core.faults.total_calls()),
        (2, 2)
    );
    assert_eq!(
        core.metrics.cache_disk_hits.get() + core.metrics.cache_memory_hits.get(),
        2
    );
    assert_eq!(core.metrics.cache_misses.get(), 0);
}

#[test]
fn an_immutable_store_is_read_from_the_disk_cache_without_any_request() {
    let mut setup = Setup::new(plain(&[("A", b"a")]));
    setup.records.ttl = None;
    let cache = tempfile::tempdir().expect("a temp folder");
    assert_eq!(
        setup.core(Some(cache.path())).cat("A").expect("its bytes"),
        b"a"
    );
    wait_for(|| entries(cache.path()) == 1);
    let core = setup.core(Some(cache.path()));
    assert_eq!(core.cat("A").expect("its bytes"), b"a");
    assert_eq!(core.faults.total_calls(), 0);
}

#[test]
fn a_broken_cache_entry_is_a_miss_and_never_wrong_bytes() {
    let mut setup = Setup::new(plain(&[("A", b"the bytes"), ("B", b"others")]));
    // Small contents are files in so small a cache.
    setup.disk_capacity = 8 << 20;
    let break_entry: [&dyn Fn(&std::path::Path); 4] = [
        &|data| fs::write(data, b"short").expect("writable"),
        &|data| fs::remove_file(data).expect("there"),
        &|data| fs::write(json_beside(data), b"{not json").expect("writable"),
        // Same length, other bytes, and the machine was rebooted since.
        &|data| {
            fs::write(data, b"WRONG!!!!").expect("writable");
            let json = json_beside(data);
            let text = fs::read_to_string(&json).expect("readable");
            let at = text.find("\"boot_id\":\"").expect("a boot id") + 11;
            let mut text = text.into_bytes();
            text[at] = b'#';
            fs::write(json, text).expect("writable");
        },
    ];
    for (round, break_it) in break_entry.iter().enumerate() {
        let cache = tempfile::tempdir().expect("a temp folder");
        assert_eq!(
            setup.core(Some(cache.path())).cat("A").expect("its bytes"),
            b"the bytes"
        );
        wait_for(|| entries(cache.path()) == 1);
        break_it(&data_files(cache.path())[0]);
        let core = setup.core(Some(cache.path()));
        assert_eq!(
            core.cat("A").expect("its bytes"),
            b"the bytes",
            "round {round}"
        );
        // The scan of the folder and the lookup may both have found it.
        assert!(core.metrics.cache_healed.get() >= 1, "round {round}");
        wait_for(|| entries(cache.path()) == 1);
    }
}

#[test]
fn another_account_or_read_mode_never_sees_the_same_cache_entry() {
    let cache = tempfile::tempdir().expect("a temp folder");
    let setup = Setup::new(plain(&[("A", b"mine")]));
    assert_eq!(
        setup.core(Some(cache.path())).cat("A").expect("its bytes"),
        b"mine"
    );
    wait_for(|| entries(cache.path()) == 1);
    let mut other = Setup::new(plain(&[("A", b"theirs")]));
    other.scope = "other";
    other.records.ttl = None;
    assert_eq!(
        other.core(Some(cache.path())).cat("A").expect("its bytes"),
        b"theirs"
    );
}

#[test]
fn the_disk_cache_stays_within_its_size() {
    let store = MemoryStore::new();
    for i in 0..20 {
        store.insert(
            &format!("r{i:02}"),
            "text/plain",
            Encoding::Identity,
            vec![i as u8; 2 << 20],
        );
    }
    let mut setup = Setup::new(store);
    setup.disk_capacity = 10 << 20;
    let cache = tempfile::tempdir().expect("a temp folder");
    let core = setup.core(Some(cache.path()));
    for i in 0..20 {
        assert_eq!(
            core.cat(&format!("r{i:02}")).expect("its bytes"),
            vec![i as u8; 2 << 20]
        );
        let used: u64 = data_files(cache.path())
            .iter()
            .filter_map(|path| path.metadata().ok())
            .map(|data| data.len())
            .sum();
        assert!(used <= 10 << 20, "{used} bytes on disk");
    }
}
