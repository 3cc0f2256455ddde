//! Small contents in the database: whatever happens to it, a reader gets right bytes or none.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Instant;

use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::base::units::KIB;

const ROOMY: u64 = 256 * MIB;

fn open(folder: &Path, capacity: u64) -> Arc<DiskTier> {
    DiskTier::open(folder, capacity, "test", Arc::default()).expect("a cache")
}

fn key(name: usize) -> Key {
    Key::new(format!("r{name}")).expect("a key")
}

fn content(name: usize, version: usize, len: usize) -> Bytes {
    let mut rng = fastrand::Rng::with_seed((name * 1000 + version) as u64);
    std::iter::repeat_with(|| rng.u8(..)).take(len).collect()
}

fn fresh<'a>(key: &'a Key, meta: &'a RecordMeta) -> Fresh<'a> {
    Fresh {
        key,
        meta,
        modified: SystemTime::UNIX_EPOCH,
        read: None,
    }
}

/// Keeps a content as the cache would.
fn keep(tier: &Arc<DiskTier>, name: usize, bytes: &Bytes) -> Result<(), (String, bool)> {
    let (key, meta) = (key(name), RecordMeta::default());
    if bytes.len() as u64 <= tier.small_most() {
        return tier.keep_small(&[(fresh(&key, &meta), bytes)]).map(drop);
    }
    let spool = tier.spool(bytes.len() as u64).expect("room");
    spool.file().write_all_at(bytes, 0).expect("written");
    let mut sum = Checksum::default();
    sum.update(bytes);
    let size = bytes.len() as u64;
    let id = spool.publish(fresh(&key, &meta), size, sum.finish());
    id.map(drop).map_err(|error| (error.to_string(), false))
}

fn find(tier: &Arc<DiskTier>, name: usize) -> Option<Bytes> {
    let entry = tier.find(&key(name), Duration::from_secs(5))?;
    Some(match entry.stored {
        Stored::Memory(bytes) => bytes,
        Stored::File(file) => {
            let mut bytes = vec![0; entry.size as usize];
            file.read_exact_at(&mut bytes, 0).expect("its bytes");
            bytes.into()
        }
    })
}

fn database(tier: &DiskTier) -> PathBuf {
    tier.scope_dir().join("small/contents.sqlite")
}

/// Makes a cache with many small contents; returns its database's bytes.
fn filled(folder: &Path) -> (Vec<Bytes>, Vec<u8>) {
    let tier = open(folder, ROOMY);
    let contents: Vec<Bytes> = (0..40).map(|n| content(n, 0, n * 37)).collect();
    for (name, bytes) in contents.iter().enumerate() {
        keep(&tier, name, bytes).expect("kept");
    }
    let all = fs::read(database(&tier)).expect("a database");
    (contents, all)
}

/// Checks that nothing wrong is found, and that the cache works, at the latest once it was used.
#[track_caller]
fn is_right_or_missing(folder: &Path, contents: &[Bytes], case: &str) {
    let tier = open(folder, ROOMY);
    for (name, bytes) in contents.iter().enumerate() {
        if let Some(found) = find(&tier, name) {
            assert!(found == *bytes, "{case}: wrong bytes of {name}");
        }
    }
    // What is written into a damaged part is found out when it is read.
    for name in 0..contents.len() {
        let bytes = content(name, 1, 500);
        let works = (0..3).any(|_| {
            let _ = keep(&tier, name, &bytes);
            find(&tier, name).is_some_and(|found| found == bytes)
        });
        assert!(works, "{case}: {name} is not kept");
    }
}

#[test]
fn a_flipped_bit_anywhere_in_the_database_gives_no_wrong_bytes() {
    let folder = tempfile::tempdir().expect("a folder");
    let (contents, whole) = filled(folder.path());
    let path = database(&open(folder.path(), ROOMY));
    let mut rng = fastrand::Rng::with_seed(15);
    // The header and the first page tell of all the others.
    let mut bits: Vec<usize> = (0..60).map(|n| n * 14 + rng.usize(..14)).collect();
    bits.extend((0..60).map(|_| rng.usize(..whole.len() * 8)));
    for bit in bits {
        let mut flipped = whole.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        fs::remove_dir_all(path.parent().expect("its folder")).expect("removed");
        fs::create_dir(path.parent().expect("its folder")).expect("a folder");
        fs::write(&path, flipped).expect("a database");
        is_right_or_missing(folder.path(), &contents, &format!("bit {bit}"));
    }
}

#[test]
fn a_database_cut_short_or_of_other_kinds_is_made_again() {
    let folder = tempfile::tempdir().expect("a folder");
    let (contents, whole) = filled(folder.path());
    let path = database(&open(folder.path(), ROOMY));
    let mut rng = fastrand::Rng::with_seed(16);
    let mut cases: Vec<Vec<u8>> = (0..12)
        .map(|n| whole[..n * 8192.min(whole.len() / 12)].to_vec())
        .collect();
    cases.extend((0..10).map(|_| whole[..rng.usize(..whole.len())].to_vec()));
    cases.push(b"no database".to_vec());
    for (case, bytes) in cases.into_iter().enumerate() {
        let case = format!("case {case}, {} of {} bytes", bytes.len(), whole.len());
        fs::remove_dir_all(path.parent().expect("its folder")).expect("removed");
        fs::create_dir(path.parent().expect("its folder")).expect("a folder");
        fs::write(&path, bytes).expect("a database");
        is_right_or_missing(folder.path(), &contents, &case);
    }
    rusqlite::Connection::open(&path)
        .and_then(|other| other.execute_batch("PRAGMA user_version = 7"))
        .expect("another version");
    let metrics = Arc::<Metrics>::default();
    let tier = DiskTier::open(folder.path(), ROOMY, "test", Arc::clone(&metrics)).expect("a cache");
    assert_eq!(find(&tier, 3), None);
    keep(&tier, 3, &contents[3]).expect("kept");
    assert_eq!(find(&tier, 3), Some(contents[3].clone()));
    assert_eq!(metrics.cache_healed.get(), 1);
}

#[test]
fn a_database_that_is_removed_under_our_feet_is_made_again_for_all() {
    let folder = tempfile::tempdir().expect("a folder");
    let tiers = [open(folder.path(), ROOMY), open(folder.path(), ROOMY)];
    let clears: [&dyn Fn(); 3] = [
        &|| {
            for scope in usage::scopes(folder.path()).expect("the folder") {
                usage::clear(&scope).expect("removed");
            }
        },
        &|| assert_eq!(tiers[1].clear(), 1),
        &|| fs::remove_dir_all(folder.path().join(FOLDER)).expect("removed"),
    ];
    for clear in clears {
        let bytes = content(1, 0, 700);
        keep(&tiers[0], 1, &bytes).expect("kept");
        assert!(
            tiers
                .iter()
                .all(|tier| find(tier, 1) == Some(bytes.clone()))
        );
        clear();
        assert!(tiers.iter().all(|tier| find(tier, 1).is_none()));
        keep(&tiers[1], 2, &bytes).expect("kept");
        assert!(
            tiers
                .iter()
                .all(|tier| find(tier, 2) == Some(bytes.clone()))
        );
        tiers[0].remove(&key(2));
        assert!(tiers.iter().all(|tier| find(tier, 2).is_none()));
    }
}

#[test]
fn a_locked_database_is_a_miss_in_time_and_small_contents_are_files_then() {
    let folder = tempfile::tempdir().expect("a folder");
    let tier = open(folder.path(), ROOMY);
    let bytes = content(1, 0, 700);
    keep(&tier, 1, &bytes).expect("kept");
    let other = rusqlite::Connection::open(database(&tier)).expect("a connection");
    other.execute_batch("BEGIN EXCLUSIVE").expect("a lock");
    let begun = Instant::now();
    assert_eq!(find(&tier, 1), None);
    assert!(matches!(keep(&tier, 2, &bytes), Err((_, true))));
    assert!(begun.elapsed() < Duration::from_secs(20));
    other.execute_batch("ROLLBACK").expect("unlocked");
    while find(&tier, 1) != Some(bytes.clone()) {
        assert!(begun.elapsed() < Duration::from_secs(60), "still away");
        std::thread::yield_now();
    }
}

#[test]
fn what_a_killed_process_left_half_done_is_undone() {
    let folder = tempfile::tempdir().expect("a folder");
    let (contents, _) = filled(folder.path());
    let path = database(&open(folder.path(), ROOMY));
    // A journal as a killed process leaves it: copied from a transaction that has spilled.
    let other = rusqlite::Connection::open(&path).expect("a connection");
    other
        .execute_batch(
            "PRAGMA journal_mode = DELETE; PRAGMA synchronous = OFF; PRAGMA cache_size = 1;
             BEGIN IMMEDIATE; UPDATE contents SET bytes = zeroblob(length(bytes));",
        )
        .expect("a transaction");
    let copy = tempfile::tempdir().expect("a folder");
    let tier = open(copy.path(), ROOMY);
    let torn = database(&tier);
    fs::create_dir(torn.parent().expect("its folder")).expect("a folder");
    let journal = |path: &Path| path.with_file_name("contents.sqlite-journal");
    fs::copy(journal(&path), journal(&torn)).expect("a journal");
    fs::copy(&path, &torn).expect("a database");
    for (name, bytes) in contents.iter().enumerate() {
        assert_eq!(find(&tier, name), Some(bytes.clone()), "{name}");
    }
}

#[test]
fn the_folder_stays_within_its_size_and_what_is_used_stays_in_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let capacity = 16 * MIB;
    let tier = open(folder.path(), capacity);
    let hot = content(0, 0, 3000);
    keep(&tier, 0, &hot).expect("kept");
    let mut rng = fastrand::Rng::with_seed(17);
    for round in 1..150 {
        let names: Vec<Key> = (0..32).map(|n| key(round * 100 + n)).collect();
        let meta = RecordMeta::default();
        let bytes = content(round, 0, rng.usize(1000..16_000));
        let batch: Vec<_> = names
            .iter()
            .map(|key| (fresh(key, &meta), &bytes))
            .collect();
        tier.keep_small(&batch).expect("kept");
        if round % 5 == 0 {
            keep(&tier, round * 100 + 50, &content(round, 1, 1 << 20)).expect("kept");
        }
        assert_eq!(find(&tier, round * 100), Some(bytes), "{round}");
        assert_eq!(find(&tier, 0), Some(hot.clone()), "{round}");
        let used = bytes_below(folder.path());
        assert!(used <= capacity + 64 * KIB, "{round}: {used} of {capacity}");
        let account = tier.index.lock().used_bytes();
        assert!(account <= capacity, "{round}: {account} of {capacity}");
        tier.index.lock().lru.check_invariants();
    }
    let used = bytes_below(folder.path());
    assert!(used >= capacity / 2, "{used} of {capacity}");
    assert_eq!(find(&tier, 100), None, "the first to go");
    // A large content needs room that rows have.
    keep(&tier, 1, &content(1, 1, 12 << 20)).expect("kept");
    let used = bytes_below(folder.path());
    assert!(used <= capacity + 64 * KIB, "{used} of {capacity}");
}

fn bytes_below(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .map(|entry| match entry.path().is_dir() {
            true => bytes_below(&entry.path()),
            false => entry.metadata().map_or(0, |metadata| metadata.len()),
        })
        .sum()
}

#[test]
fn another_stores_rows_go_first_where_they_are_older() {
    let folder = tempfile::tempdir().expect("a folder");
    let capacity = 16 * MIB;
    let other = DiskTier::open(folder.path(), capacity, "other", Arc::default()).expect("a cache");
    for name in 0..200 {
        keep(&other, name, &content(name, 0, 16_000)).expect("kept");
    }
    let tier = open(folder.path(), capacity);
    let large = content(1, 0, 15 << 20);
    keep(&tier, 1, &large).expect("kept");
    assert_eq!(find(&tier, 1), Some(large));
    assert_eq!(find(&other, 0), None);
    assert!(bytes_below(folder.path()) <= capacity + 64 * KIB);
}

#[test]
fn only_the_owner_may_read_the_database() {
    let folder = tempfile::tempdir().expect("a folder");
    let tier = open(folder.path(), ROOMY);
    keep(&tier, 1, &content(1, 0, 10)).expect("kept");
    let mode = |path: &Path| path.metadata().expect("it").permissions().mode() & 0o777;
    assert_eq!(mode(&database(&tier)), 0o600);
    assert_eq!(mode(database(&tier).parent().expect("its folder")), 0o700);
}

#[test]
fn a_cache_folder_may_be_reached_by_a_link() {
    let folder = tempfile::tempdir().expect("a folder");
    let (real, link) = (folder.path().join("real"), folder.path().join("link"));
    fs::create_dir(&real).expect("a folder");
    std::os::unix::fs::symlink(&real, &link).expect("a link");
    let bytes = content(1, 0, 10);
    let tier = open(&link.join("cache"), ROOMY);
    keep(&tier, 1, &bytes).expect("kept");
    assert_eq!(find(&tier, 1), Some(bytes));
}

#[test]
fn connections_are_closed_soon_after_their_last_use() {
    let folder = tempfile::tempdir().expect("a folder");
    let tier = open(folder.path(), ROOMY);
    keep(&tier, 1, &content(1, 0, 10)).expect("kept");
    find(&tier, 1).expect("its bytes");
    let path = database(&tier).canonicalize().expect("a path");
    let is_open = || {
        let descriptors = fs::read_dir("/proc/self/fd")
            .expect("descriptors")
            .flatten();
        descriptors
            .filter_map(|descriptor| fs::read_link(descriptor.path()).ok())
            .any(|to| to == path)
    };
    let begun = Instant::now();
    while is_open() {
        assert!(begun.elapsed() < Duration::from_secs(60), "still open");
        std::thread::yield_now();
    }
}

#[test]
fn several_threads_and_caches_agree() {
    let folder = tempfile::tempdir().expect("a folder");
    let tiers = [open(folder.path(), ROOMY), open(folder.path(), ROOMY)];
    std::thread::scope(|scope| {
        for seed in 0..4 {
            let tier = &tiers[seed % 2];
            scope.spawn(move || {
                let mut rng = fastrand::Rng::with_seed(seed as u64);
                for _ in 0..150 {
                    let (name, version) = (rng.usize(..8), rng.usize(..3));
                    match rng.u8(..3) {
                        0 => drop(keep(tier, name, &content(name, version, 600 + version))),
                        1 => tier.remove(&key(name)),
                        _ => {
                            if let Some(found) = find(tier, name) {
                                let version = found.len() - 600;
                                assert_eq!(found, content(name, version, 600 + version));
                            }
                        }
                    }
                }
            });
        }
    });
    for name in 0..8 {
        assert_eq!(find(&tiers[0], name), find(&tiers[1], name));
    }
    assert!(
        tiers
            .iter()
            .all(|tier| tier.metrics.cache_healed.get() == 0)
    );
}

#[derive(Clone, Debug)]
enum Op {
    Keep(usize, usize, usize),
    Remove(usize),
    Confirm(usize),
    Mark(usize),
    Reopen,
    Clear,
}

fn op() -> impl Strategy<Value = Op> {
    let len = prop_oneof![0usize..100, 15_000usize..18_000, Just(2usize << 20)];
    prop_oneof![
        8 => (0usize..6, 0usize..100, len).prop_map(|(name, version, len)| Op::Keep(name, version, len)),
        2 => (0usize..6).prop_map(Op::Remove),
        1 => (0usize..6).prop_map(Op::Confirm),
        1 => (0usize..6).prop_map(Op::Mark),
        1 => Just(Op::Reopen),
        1 => Just(Op::Clear),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn two_caches_in_one_folder_are_as_one(
        ops in proptest::collection::vec((0usize..2, op()), 1..40)
    ) {
        let folder = tempfile::tempdir().expect("a folder");
        let mut tiers = [open(folder.path(), ROOMY), open(folder.path(), ROOMY)];
        let mut model: HashMap<usize, Bytes> = HashMap::new();
        let read = SystemTime::UNIX_EPOCH + Duration::from_secs(1000);
        for (at, op) in ops {
            match op {
                Op::Keep(name, version, len) => {
                    let bytes = content(name, version, len);
                    keep(&tiers[at], name, &bytes).expect("kept");
                    model.insert(name, bytes);
                }
                Op::Remove(name) => {
                    tiers[at].remove(&key(name));
                    model.remove(&name);
                }
                Op::Confirm(name) => {
                    tiers[at].confirm(&key(name), SystemTime::now(), read);
                    let described = tiers[1 - at].describe(&key(name));
                    prop_assert_eq!(described.is_some(), model.contains_key(&name));
                    if let Some((_, confirmed)) = described {
                        prop_assert_eq!(confirmed, Some(read));
                    }
                }
                Op::Mark(name) => {
                    let described = tiers[at].describe(&key(name));
                    if let Some((meta, _)) = described {
                        tiers[at].mark(&key(name), &meta);
                        let found = tiers[1 - at].find(&key(name), Duration::from_secs(5));
                        prop_assert!(found.is_some_and(|entry| entry.is_marked));
                    }
                }
                Op::Reopen => tiers[at] = open(folder.path(), ROOMY),
                Op::Clear => {
                    prop_assert_eq!(tiers[at].clear(), model.len() as u64);
                    model.clear();
                }
            }
            for name in 0..6 {
                for tier in &tiers {
                    prop_assert_eq!(tier.contains(&key(name)), model.contains_key(&name));
                    prop_assert_eq!(find(tier, name), model.get(&name).cloned());
                }
            }
        }
    }
}
