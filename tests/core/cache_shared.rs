//! Two mounts, in two processes as far as they know, with one cache folder.

use std::thread;
use std::time::{Duration, SystemTime};

use kvfs::base::clock::Deadline;
use kvfs::local::memory::MemoryStore;
use kvfs::store::Encoding;

use crate::support::core::{Setup, TTL};
use crate::support::mounted::eventually;

/// What the cache may hold; the records together are three times as large.
const CAPACITY: u64 = 400 << 10;
const RECORDS: u64 = 24;

fn content(n: u64, version: u64) -> Vec<u8> {
    let mut rng = fastrand::Rng::with_seed(n * 1000 + version);
    let head = format!("{n} {version} ");
    let body = std::iter::repeat_with(|| rng.u8(..)).take(30_000 + n as usize * 2000);
    head.into_bytes().into_iter().chain(body).collect()
}

#[test]
fn mounts_that_share_a_cache_folder_drive_out_each_others_entries_and_never_lie() {
    let cache = tempfile::tempdir().expect("a folder");
    let store = MemoryStore::new();
    for n in 0..RECORDS {
        store.insert(&format!("r{n}"), "x/y", Encoding::Identity, content(n, 0));
    }
    let mut setup = Setup::new(store);
    setup.disk_capacity = CAPACITY;
    setup.records.memory_capacity = 0;
    let cores = [
        setup.core(Some(cache.path())),
        setup.core(Some(cache.path())),
    ];
    thread::scope(|scope| {
        for (seed, core) in (0u64..).zip(cores.iter().chain(&cores)) {
            let setup = &setup;
            scope.spawn(move || {
                let mut rng = fastrand::Rng::with_seed(seed);
                for round in 0..150 {
                    let n = rng.u64(..RECORDS);
                    if seed == 0 && round % 10 == 9 {
                        let next = content(n, 1 + round);
                        setup
                            .store
                            .insert(&format!("r{n}"), "x/y", Encoding::Identity, next);
                        core.clock.advance(TTL);
                        continue;
                    }
                    let Ok(bytes) = core.cat(&format!("r{n}")) else {
                        continue; // replaced while it was read
                    };
                    let text = String::from_utf8_lossy(&bytes[..20]).into_owned();
                    let mut numbers = text.split(' ').map(|number| number.parse::<u64>());
                    assert_eq!(numbers.next(), Some(Ok(n)));
                    let version = numbers.next().and_then(Result::ok).expect("a version");
                    assert!(bytes == content(n, version), "r{n}, version {version}");
                }
            });
        }
    });
    let tmp = cache.path().join("kvfs-1/tmp");
    // A reader has its last byte before the download's own thread has made it an entry.
    eventually("no file on its way is left", || {
        std::fs::read_dir(&tmp).expect("the folder").count() == 0
    });
    // Another one has a look at everything, and all of it is whole.
    let third = setup.core(Some(cache.path()));
    for n in 0..RECORDS {
        let bytes = third.cat(&format!("r{n}")).expect("a record");
        let text = String::from_utf8_lossy(&bytes[..20]).into_owned();
        let version = text.split(' ').nth(1).and_then(|text| text.parse().ok());
        assert!(bytes == content(n, version.expect("a version")), "r{n}");
    }
}

#[test]
fn mounts_that_share_a_cache_folder_keep_to_its_size_together() {
    let cache = tempfile::tempdir().expect("a folder");
    let mut mounted = Vec::new();
    for scope in ["one", "two", "three"] {
        let store = MemoryStore::new();
        for n in 0..RECORDS {
            store.insert(&format!("r{n}"), "x/y", Encoding::Identity, content(n, 0));
        }
        let mut setup = Setup::new(store);
        setup.disk_capacity = CAPACITY;
        // Each of them has another store.
        setup.scope = scope;
        let core = setup.core(Some(cache.path()));
        for n in 0..RECORDS {
            core.cat(&format!("r{n}")).expect("a record");
            core.records
                .finish_writing(Deadline::after(Duration::from_secs(60)));
        }
        // Still mounted while the others fill the folder.
        mounted.push(core);
    }
    let used = used(cache.path());
    assert!(used <= CAPACITY * 13 / 10, "{used} of {CAPACITY} bytes");
    assert!(used >= CAPACITY / 2, "{used} of {CAPACITY} bytes");
}

/// Bytes of all contents below a folder.
fn used(folder: &std::path::Path) -> u64 {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .map(|entry| match entry.file_type() {
            Ok(kind) if kind.is_dir() => used(&entry.path()),
            _ => entry.metadata().map_or(0, |metadata| metadata.len()),
        })
        .sum()
}

#[test]
fn wall_clocks_that_jump_change_nothing_but_the_times_shown() {
    let cache = tempfile::tempdir().expect("a folder");
    let store = MemoryStore::new();
    store.insert("small", "x/y", Encoding::Identity, content(1, 0));
    store.insert("large", "x/y", Encoding::Identity, vec![7; 3 << 20]);
    let setup = Setup::new(store);
    let far = [
        SystemTime::UNIX_EPOCH,
        SystemTime::UNIX_EPOCH - Duration::from_secs(10_000_000_000),
        SystemTime::UNIX_EPOCH + Duration::from_secs(100_000_000_000),
        SystemTime::now(),
    ];
    for time in far {
        let core = setup.core(Some(cache.path()));
        core.list().expect("a listing");
        core.clock.set_wall(time);
        for step in [Duration::ZERO, TTL] {
            core.clock.advance(step);
            assert!(core.cat("small").expect("a record") == content(1, 0));
            assert_eq!(core.cat("large").expect("a record").len(), 3 << 20);
            core.list().expect("a listing");
        }
        core.fs.check_invariants();
    }
}
