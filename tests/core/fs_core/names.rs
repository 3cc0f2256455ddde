//! Names and listings: what they cost and what they remember.

use kvfs::base::clock::Wait;
use kvfs::fs::FsError;
use kvfs::fs::types::Ino;
use kvfs::local::fault::Call;
use kvfs::local::memory::MemoryStore;
use kvfs::store::{Encoding, ErrorKind};

use super::{plain, requests};
use crate::support::core::{Setup, TTL, patient};

#[test]
fn what_cannot_be_a_key_costs_nothing_and_a_missing_key_one_request() {
    let core = Setup::new(plain(&[])).core(None);
    for name in ["a b", "%", "x%2fy", &"x".repeat(300)] {
        assert_eq!(core.lookup(name).expect("an answer"), None, "{name}");
    }
    assert_eq!(requests(&core), 0);
    assert_eq!(core.lookup("missing").expect("an answer"), None);
    assert_eq!(requests(&core), 1);
    assert_eq!(core.lookup("missing").expect("an answer"), None);
    assert_eq!(requests(&core), 0);
    core.clock.advance(TTL);
    assert_eq!(core.lookup("missing").expect("an answer"), None);
    assert_eq!(
        requests(&core),
        1,
        "absence is remembered no longer than the TTL"
    );
}

#[test]
fn names_that_are_not_there_are_listed_page_by_page_and_never_missed() {
    let store = MemoryStore::new();
    for i in 0..2500 {
        store.insert(
            &format!("key-{i:04}"),
            "text/plain",
            Encoding::Identity,
            "5",
        );
    }
    let setup = Setup::new(store);
    let core = setup.core(None);
    let absent = |name: &str| assert_eq!(core.lookup(name).expect("an answer"), None, "{name}");
    let lists = || core.faults.calls(Call::List);
    // One request each, until three were not there: then a page, which does not come so far.
    for n in 0..3 {
        absent(&format!("new-{n}"));
    }
    assert_eq!((lists(), requests(&core)), (0, 3));
    absent("new-3");
    assert_eq!(lists(), 1);
    absent("key-0500x");
    assert_eq!(lists(), 1, "the page knows");
    assert!(core.lookup("key-0500").expect("an answer").is_some());
    for n in 4..40 {
        absent(&format!("new-{n}"));
    }
    assert_eq!(lists(), 3);
    assert_eq!(requests(&core), 9 + 3);
    // No longer than any listing is believed, and what is there is found without one.
    setup
        .store
        .insert("new-7", "text/plain", Encoding::Identity, "it");
    core.clock.advance(TTL);
    assert!(core.lookup("new-7").expect("an answer").is_some());
    assert_eq!((lists(), requests(&core)), (0, 1));
    // Waiting for one name is no reason to list all.
    for _ in 0..9 {
        core.clock.advance(TTL);
        absent("awaited");
    }
    assert_eq!((lists(), requests(&core)), (0, 9));
    // Who may not list asks for each.
    core.faults.fail_next(Call::List, 1, ErrorKind::Denied);
    for n in 40..80 {
        absent(&format!("new-{n}"));
    }
    assert_eq!(lists(), 1);
    assert_eq!(requests(&core), 40 + 1);
}

#[test]
fn a_listing_costs_a_request_a_page_and_answers_lookups_and_stats() {
    let store = MemoryStore::new();
    for i in 0..4_000 {
        store.insert(
            &format!("key-{i:05}"),
            "text/plain",
            Encoding::Identity,
            &b"12345"[..],
        );
    }
    let core = Setup::new(store).core(None);
    let listed = core.list().expect("a listing");
    assert_eq!(listed.len(), 4_000);
    assert_eq!(requests(&core), 4);
    assert!(
        listed
            .windows(2)
            .all(|pair| pair[0].1.attr.ino < pair[1].1.attr.ino),
        "inodes follow the listing"
    );
    let again = core.list().expect("a listing");
    assert_eq!(listed, again);
    for name in ["key-00000", "key-01999", "key-03999"] {
        let reply = core.lookup(name).expect("an answer").expect("present");
        assert_eq!((reply.attr.size, reply.ttl), (5, TTL));
        assert_eq!(
            core.fs
                .getattr(reply.attr.ino, Wait::Never)
                .expect("from memory")
                .attr
                .size,
            5
        );
    }
    assert_eq!(
        core.lookup("key-1").expect("an answer"),
        None,
        "the listing knows what is not there"
    );
    assert_eq!(requests(&core), 0);
    core.clock.advance(TTL);
    let later = core.list().expect("a listing");
    assert_eq!(requests(&core), 4);
    let inodes = |list: &[(std::ffi::OsString, kvfs::fs::types::AttrReply)]| {
        list.iter()
            .map(|entry| entry.1.attr.ino)
            .collect::<Vec<_>>()
    };
    assert_eq!(inodes(&listed), inodes(&later), "keys keep their inodes");
}

/// Waits for the listing that is written to a cache folder in the background.
fn saved_listing(cache: &std::path::Path) -> std::path::PathBuf {
    let find = || {
        let scopes = std::fs::read_dir(cache.join("kvfs-1")).ok()?.flatten();
        let files = scopes.filter_map(|scope| std::fs::read_dir(scope.path()).ok());
        let mut paths = files.flatten().flatten().map(|entry| entry.path());
        paths.find(|path| path.extension().is_some_and(|end| end == "index"))
    };
    crate::support::mounted::eventually("the listing is on disk", || find().is_some());
    find().expect("it was there")
}

fn numbered(count: usize) -> MemoryStore {
    let store = MemoryStore::new();
    for i in 0..count {
        store.insert(
            &format!("key-{i:05}"),
            "text/plain",
            Encoding::Identity,
            &b"1"[..],
        );
    }
    store
}

#[test]
fn an_immutable_store_is_listed_at_once_when_it_is_mounted_again() {
    let mut setup = Setup::new(numbered(3000));
    setup.records.ttl = None;
    let cache = tempfile::tempdir().expect("a temp folder");
    let core = setup.core(Some(cache.path()));
    let first = core.list().expect("a listing");
    assert_eq!((first.len(), requests(&core)), (3000, 3));
    let saved = saved_listing(cache.path());
    drop(core);
    let core = setup.core(Some(cache.path()));
    assert_eq!(core.list().expect("a listing"), first);
    assert_eq!(core.lookup("key-3").expect("an answer"), None);
    assert_eq!(requests(&core), 0);
    drop(core);
    let core = setup.core(Some(cache.path()));
    let _ = core.fs.invalidate(None);
    assert_eq!(core.list().expect("a listing"), first);
    assert_eq!(requests(&core), 3, "somebody did not believe it");
    saved_listing(cache.path());
    drop(core);
    // What a crash left of it is no listing.
    let whole = std::fs::read(&saved).expect("the saved listing");
    std::fs::write(&saved, &whole[..whole.len() / 2]).expect("a torn one");
    let core = setup.core(Some(cache.path()));
    assert_eq!(core.list().expect("a listing"), first);
    assert_eq!(requests(&core), 3);
}

#[test]
fn a_store_that_may_change_is_listed_anew_page_for_page() {
    let setup = Setup::new(numbered(25_000));
    let cache = tempfile::tempdir().expect("a temp folder");
    let core = setup.core(Some(cache.path()));
    assert_eq!(core.list().expect("a listing").len(), 25_000);
    saved_listing(cache.path());
    drop(core);
    setup
        .store
        .insert("key-12345a", "text/plain", Encoding::Identity, &b"new"[..]);
    let core = setup.core(Some(cache.path()));
    let listed = core.list().expect("a listing");
    assert_eq!(listed.len(), 25_001);
    assert!(listed.is_sorted_by(|a, b| a.0 < b.0));
    assert!(requests(&core) <= 27, "a page more where a key is new");
    core.clock.advance(TTL);
    assert_eq!(core.list().expect("a listing").len(), 25_001);
    assert_eq!(requests(&core), 26);
}

#[test]
fn a_lookup_that_may_not_wait_changes_nothing_and_makes_no_request() {
    let core = Setup::new(plain(&[("A", b"a")])).core(None);
    let answer = core.fs.lookup(Ino::ROOT, "A".as_ref(), Wait::Never);
    assert!(matches!(answer, Err(FsError::WouldBlock)));
    let fh = core.fs.opendir(Ino::ROOT).expect("the root");
    let mut names = crate::support::core::Names::default();
    let answer = core.fs.readdir(fh, 0, true, &mut names, Wait::Never);
    assert!(matches!(answer, Err(FsError::WouldBlock)) && names.0.is_empty());
    assert_eq!(requests(&core), 0);
}

#[test]
fn every_odd_key_is_listed_and_can_be_read_by_its_name() {
    let keys = [
        ".",
        "..",
        "a/b",
        "a b",
        "é",
        "%41",
        "100%",
        &"k".repeat(256),
        &"ü".repeat(300),
        &"L".repeat(400),
    ];
    let store = MemoryStore::new();
    for key in keys {
        store.insert(
            key,
            "text/plain",
            Encoding::Identity,
            key.as_bytes().to_vec(),
        );
    }
    let core = Setup::new(store).core(None);
    let listed = core.list().expect("a listing");
    assert_eq!(listed.len(), keys.len());
    let mut read: Vec<Vec<u8>> = listed
        .iter()
        .map(|(name, _)| core.cat(name.to_str().expect("UTF-8")).expect("its bytes"))
        .collect();
    read.sort();
    let mut expected: Vec<Vec<u8>> = keys.iter().map(|key| key.as_bytes().to_vec()).collect();
    expected.sort();
    assert_eq!(read, expected);
}

#[test]
fn a_prefix_narrows_the_mount_without_requests_for_other_names() {
    let mut setup = Setup::new(plain(&[("a-1", b"1"), ("a-2", b"2"), ("b-1", b"3")]));
    setup.fs.prefix = Some("a-".into());
    let core = setup.core(None);
    assert_eq!(core.list().expect("a listing").len(), 2);
    requests(&core);
    assert_eq!(core.lookup("b-1").expect("an answer"), None);
    assert_eq!(requests(&core), 0);
    assert_eq!(core.cat("a-1").expect("its bytes"), b"1");
}

#[test]
fn a_listing_that_fails_half_way_goes_on_from_there() {
    let store = MemoryStore::new();
    for i in 0..2500 {
        store.insert(
            &format!("{i:04}"),
            "text/plain",
            Encoding::Identity,
            &b"x"[..],
        );
    }
    let core = Setup::new(store).core(None);
    let fh = core.fs.opendir(Ino::ROOT).expect("the root");
    core.faults.fail_next(Call::List, 1, ErrorKind::Server);
    let mut names = crate::support::core::Names::default();
    assert!(
        core.fs
            .readdir(fh, 0, false, &mut names, patient())
            .is_err()
    );
    assert!(names.0.is_empty());
    core.fs
        .readdir(fh, 0, false, &mut names, patient())
        .expect("a listing");
    assert_eq!(names.0.len(), 2500);
    assert_eq!(core.faults.calls(Call::List), 4);
}
