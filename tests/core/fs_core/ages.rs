//! How old answers are, and which of several counts.

use std::ffi::OsStr;
use std::thread;
use std::time::Duration;

use kvfs::base::clock::Wait;
use kvfs::fs::FsError;
use kvfs::fs::types::{Ino, Lookup};
use kvfs::local::fault::Call;
use kvfs::local::memory::MemoryStore;
use kvfs::store::{Encoding, ErrorKind, Key, Store};

use super::{data_files, entries, plain, requests, soon, wait_for};
use crate::support::core::{Core, Names, Setup, TTL, patient};

const MOST_OF_IT: Duration = Duration::from_secs(6);

fn put(setup: &Setup, key: &str, bytes: &[u8]) {
    setup
        .store
        .insert(key, "text/plain", Encoding::Identity, bytes.to_vec());
}

fn delete(setup: &Setup, key: &str) {
    let key = Key::new(key).expect("a key");
    setup.store.delete(&key, soon()).expect("deleted");
}

fn numbered(count: usize) -> MemoryStore {
    let store = MemoryStore::new();
    for at in 0..count {
        store.insert(&format!("b{at:05}"), "text/plain", Encoding::Identity, "x");
    }
    store
}

fn size(core: &Core, name: &str) -> Option<u64> {
    let found = core.lookup(name).expect("an answer");
    found.map(|reply| reply.attr.size)
}

/// Runs `work`, which asks the store once, and has that take as long as `span`.
fn slowly<T: Send>(core: &Core, call: Call, span: Duration, work: impl FnOnce() -> T + Send) -> T {
    core.faults.block(call);
    thread::scope(|scope| {
        let asking = scope.spawn(work);
        assert!(core.faults.wait_blocked(call, 1, soon()), "it asks");
        core.clock.advance(span);
        core.faults.release(call);
        asking.join().expect("it does not panic")
    })
}

#[test]
fn an_answer_is_as_old_as_its_question() {
    let setup = Setup::new(plain(&[("A", b"a")]));
    let core = setup.core(None);
    slowly(&core, Call::Get, MOST_OF_IT, || core.cat("A")).expect("its bytes");
    requests(&core);
    core.clock.advance(TTL - MOST_OF_IT);
    core.cat("A").expect("its bytes");
    assert_eq!(requests(&core), 1, "it was asked for a TTL ago");
    slowly(&core, Call::Get, MOST_OF_IT, || core.lookup("none")).expect("an answer");
    requests(&core);
    core.clock.advance(TTL - MOST_OF_IT);
    core.lookup("none").expect("an answer");
    assert_eq!(requests(&core), 1, "absence too");
}

#[test]
fn a_page_of_a_listing_is_as_old_as_its_question() {
    let setup = Setup::new(plain(&[("A", b"a")]));
    let core = setup.core(None);
    slowly(&core, Call::List, MOST_OF_IT, || core.list()).expect("a listing");
    requests(&core);
    core.clock.advance(TTL - MOST_OF_IT);
    assert_eq!(core.lookup("B").expect("an answer"), None);
    assert_eq!(requests(&core), 1, "the listing says nothing any more");
}

#[test]
fn pages_that_were_fetched_ahead_are_as_old_as_they_are_when_a_reader_comes_to_them() {
    let setup = Setup::new(numbered(15_000));
    let core = setup.core(None);
    let dir = core.fs.opendir(Ino::ROOT).expect("open");
    // Beyond the pages that come one by one, many come at once, ahead of their readers.
    let mut names = Names::default();
    core.fs
        .await_dir(dir, 10_002, false, patient())
        .expect("a page");
    wait_for(|| core.faults.calls(Call::List) >= 13);
    delete(&setup, "b14999");
    put(&setup, "b14500x", b"new");
    core.clock.advance(TTL);
    core.fs
        .readdir(dir, 0, false, &mut names, patient())
        .expect("a listing");
    requests(&core);
    assert!(core.lookup("b14500x").expect("an answer").is_some());
    assert_eq!(core.lookup("b14999").expect("an answer"), None);
    core.fs.releasedir(dir);
}

#[test]
fn a_name_before_all_others_is_absent_since_the_first_page_and_not_the_last() {
    let setup = Setup::new(numbered(2500));
    let core = setup.core(None);
    let dir = core.fs.opendir(Ino::ROOT).expect("open");
    for offset in [0, 1002, 2002] {
        core.fs
            .await_dir(dir, offset, false, patient())
            .expect("a page");
        core.clock.advance(MOST_OF_IT);
    }
    put(&setup, "OUTPUT", b"made while it was listed");
    assert!(
        core.lookup("OUTPUT").expect("an answer").is_some(),
        "the first page is older than the TTL"
    );
}

#[test]
fn absence_has_what_is_left_of_its_ttl_at_each_answer() {
    let core = Setup::new(plain(&[])).core(None);
    let ttl = || match core.fs.lookup(Ino::ROOT, OsStr::new("A"), patient()) {
        Ok(Lookup::Absent(ttl)) => ttl,
        other => panic!("{other:?}"),
    };
    assert_eq!(ttl(), TTL);
    core.clock.advance(MOST_OF_IT);
    assert_eq!(ttl(), TTL - MOST_OF_IT);
    let slow = slowly(&core, Call::Get, MOST_OF_IT, || {
        core.fs.lookup(Ino::ROOT, OsStr::new("B"), patient())
    });
    assert!(
        matches!(slow, Ok(Lookup::Absent(ttl)) if ttl == TTL - MOST_OF_IT),
        "{slow:?}"
    );
}

#[test]
fn a_younger_listing_goes_before_what_was_known_of_a_record() {
    let setup = Setup::new(plain(&[("A", b"short"), ("B", b"b")]));
    let core = setup.core(None);
    core.cat("A").expect("its bytes");
    core.cat("B").expect("its bytes");
    put(&setup, "A", b"much longer now");
    delete(&setup, "B");
    core.clock.advance(Duration::from_secs(1));
    let names = core.list().expect("a listing");
    assert_eq!(names.len(), 1);
    assert_eq!(names[0].1.attr.size, 15);
    assert_eq!(size(&core, "A"), Some(15));
    assert_eq!(core.lookup("B").expect("an answer"), None);
    assert_eq!(core.cat("A").expect("its bytes"), b"much longer now");
}

#[test]
fn a_directory_that_is_read_again_shows_what_has_come_since() {
    let setup = Setup::new(plain(&[("A", b"a")]));
    let core = setup.core(None);
    let dir = core.fs.opendir(Ino::ROOT).expect("open");
    let listed = || {
        let mut names = Names::default();
        core.fs
            .readdir(dir, 0, false, &mut names, patient())
            .expect("a listing");
        names.0.len()
    };
    assert_eq!(listed(), 1);
    put(&setup, "B", b"b");
    assert_eq!(listed(), 1, "within the TTL");
    core.clock.advance(TTL);
    assert_eq!(listed(), 2);
    core.fs.releasedir(dir);
}

#[test]
fn a_name_leads_to_the_new_version_while_the_old_one_is_open() {
    let setup = Setup::new(plain(&[("A", b"line 1\n")]));
    let core = setup.core(None);
    let (old, fh) = core.open("A").expect("open");
    put(&setup, "A", b"line 1\nline 2\n");
    core.clock.advance(TTL);
    // By a listing, or by asking for the record.
    for listed in [true, false] {
        let attr = if listed {
            core.list().expect("a listing")[0].1.attr
        } else {
            core.lookup("A").expect("an answer").expect("present").attr
        };
        assert_eq!(attr.size, 14, "listed: {listed}");
        assert_ne!(attr.ino, old);
    }
    assert_eq!(
        core.fs
            .getattr(old, patient())
            .expect("attributes")
            .attr
            .size,
        7
    );
    assert_eq!(core.read_all(fh).expect("its bytes"), b"line 1\n");
    core.fs.release(fh);
}

#[test]
fn a_name_that_only_a_listing_tells_is_found_while_the_next_one_has_not_come_so_far() {
    let long = "z".repeat(300);
    let store = numbered(1500);
    store.insert(&long, "text/plain", Encoding::Identity, "long");
    let core = Setup::new(store).core(None);
    core.list().expect("a listing");
    core.clock.advance(TTL);
    let dir = core.fs.opendir(Ino::ROOT).expect("open");
    core.fs
        .await_dir(dir, 0, false, patient())
        .expect("the first page");
    assert_eq!(core.cat(&long).expect("its bytes"), b"long");
    core.fs.releasedir(dir);
}

#[test]
fn a_directory_never_ends_with_the_word_that_something_is_not_there() {
    for kind in [ErrorKind::StoreNotFound, ErrorKind::NotFound] {
        let core = Setup::new(numbered(1500)).core(None);
        let dir = core.fs.opendir(Ino::ROOT).expect("open");
        for offset in [0, 1002] {
            core.faults.fail_next(Call::List, 1, kind);
            let error = core
                .fs
                .await_dir(dir, offset, true, patient())
                .expect_err("no page");
            assert_eq!(error.errno(), libc::EIO, "{kind:?} at {offset}");
            assert!(error.is_remarkable());
            core.fs
                .await_dir(dir, offset, true, patient())
                .expect("the next time");
        }
        core.fs.releasedir(dir);
    }
}

#[test]
fn exact_sizes_are_asked_for_once_also_where_nothing_is_believed() {
    let setup = {
        let mut setup = Setup::new(plain(&[("A", b"a"), ("B", b"bb")]));
        setup.fs.exact_sizes = true;
        setup.records.ttl = Some(Duration::ZERO);
        setup
    };
    let cache = tempfile::tempdir().expect("a temp folder");
    let core = setup.core(Some(cache.path()));
    assert_eq!(core.list().expect("a listing").len(), 2);
    assert_eq!(core.faults.calls(Call::Head), 2);
    assert_eq!(core.faults.calls(Call::Get), 0);
    requests(&core);
    assert_eq!(core.list().expect("a listing").len(), 2);
    let asked = || core.faults.calls(Call::Get) + core.faults.calls(Call::Head);
    assert_eq!(asked(), 0, "they are known");
    let dir = core.fs.opendir(Ino::ROOT).expect("open");
    core.fs.await_dir(dir, 0, true, patient()).expect("a page");
    let mut names = Names::default();
    core.fs
        .fill_dir(dir, 0, true, &mut names)
        .expect("what was waited for is there");
    assert_eq!(names.0.len(), 2);
    core.fs.releasedir(dir);
    core.records.finish_writing(soon());
    drop(core);
    let core = setup.core(Some(cache.path()));
    core.list().expect("a listing");
    let asked = core.faults.calls(Call::Get) + core.faults.calls(Call::Head);
    assert_eq!(asked, 0, "after a remount");
}

#[test]
fn an_immutable_mount_asks_once_about_what_was_cached_while_the_store_changed() {
    let big = vec![1u8; 2 << 20];
    let mut setup = Setup::new(plain(&[("small", b"while it ran"), ("big", &big)]));
    let cache = tempfile::tempdir().expect("a temp folder");
    {
        let core = setup.core(Some(cache.path()));
        core.cat("small").expect("its bytes");
        core.cat("big").expect("its bytes");
        wait_for(|| entries(cache.path()) == 2);
    }
    put(&setup, "small", b"the result");
    setup.records.ttl = None;
    let core = setup.core(Some(cache.path()));
    assert_eq!(core.cat("small").expect("its bytes"), b"the result");
    assert_eq!(core.cat("big").expect("its bytes"), big);
    assert_eq!(core.faults.conditional_gets(), 2);
    core.records.finish_writing(soon());
    drop(core);
    let core = setup.core(Some(cache.path()));
    core.cat("small").expect("its bytes");
    core.cat("big").expect("its bytes");
    assert_eq!(core.faults.total_calls(), 0, "from now on not at all");
}

#[test]
fn one_answer_does_not_hide_for_ever_what_is_listed() {
    let mut setup = Setup::new(plain(&[("A", b"a")]));
    setup.records.ttl = None;
    let core = setup.core(None);
    core.list().expect("a listing");
    core.faults.fail_next(Call::Get, 1, ErrorKind::NotFound);
    assert!(matches!(core.cat("A"), Err(FsError::NoEntry)));
    assert!(core.lookup("A").expect("an answer").is_some());
    assert_eq!(core.cat("A").expect("its bytes"), b"a");
}

/// Returns the file with the small contents of the only store.
fn database(cache: &std::path::Path) -> std::path::PathBuf {
    let scopes = std::fs::read_dir(cache.join("kvfs-1"))
        .expect("the cache")
        .flatten();
    let mut databases = scopes.map(|scope| scope.path().join("small/contents.sqlite"));
    databases.find(|path| path.exists()).expect("a database")
}

#[test]
fn a_flipped_bit_in_a_small_cached_content_is_noticed_within_one_boot() {
    // In files, and as rows.
    for capacity in [8 << 20, 1 << 30] {
        let mut setup = Setup::new(plain(&[("A", b"the bytes")]));
        setup.disk_capacity = capacity;
        let cache = tempfile::tempdir().expect("a temp folder");
        setup.core(Some(cache.path())).cat("A").expect("its bytes");
        wait_for(|| entries(cache.path()) == 1);
        let files = data_files(cache.path());
        let file = files
            .first()
            .cloned()
            .unwrap_or_else(|| database(cache.path()));
        let mut bytes = std::fs::read(&file).expect("ours");
        let at = bytes.windows(9).position(|bytes| bytes == b"the bytes");
        bytes[at.expect("its bytes")] ^= 1;
        std::fs::write(&file, bytes).expect("ours");
        let core = setup.core(Some(cache.path()));
        assert_eq!(core.cat("A").expect("its bytes"), b"the bytes");
        assert_eq!(core.metrics.cache_healed.get(), 1);
    }
}

#[test]
fn the_first_byte_of_a_large_record_drives_nothing_out_of_the_cache() {
    let store = plain(&[]);
    for at in 0..10u8 {
        let bytes = vec![at; 1 << 20];
        store.insert(&format!("s{at}"), "text/plain", Encoding::Identity, bytes);
    }
    store.insert("big", "text/plain", Encoding::Identity, vec![9; 15 << 20]);
    let mut setup = Setup::new(store);
    setup.disk_capacity = 16 << 20;
    let cache = tempfile::tempdir().expect("a temp folder");
    let core = setup.core(Some(cache.path()));
    for at in 0..10 {
        core.cat(&format!("s{at}")).expect("its bytes");
        core.records.finish_writing(soon());
    }
    assert_eq!(entries(cache.path()), 10);
    let (_, fh) = core.open("big").expect("open");
    assert_eq!(core.fs.read(fh, 0, 1, patient()).expect("a byte").len(), 1);
    assert_eq!(entries(cache.path()), 10);
    assert_eq!(core.read_all(fh).expect("its bytes").len(), 15 << 20);
    core.fs.release(fh);
}

#[test]
fn an_open_joins_the_version_that_others_opened_since_its_call_began() {
    let setup = {
        let mut setup = Setup::new(plain(&[("A", b"1")]));
        setup.records.ttl = Some(Duration::ZERO);
        setup
    };
    let core = setup.core(None);
    let (ino, first) = core.open("A").expect("open");
    put(&setup, "A", b"2");
    let young = Duration::from_secs(5);
    let opened = core
        .fs
        .open_since(ino, Some(young), patient())
        .expect("open");
    assert_eq!(core.read_all(opened.fh).expect("its bytes"), b"1");
    core.fs.release(opened.fh);
    core.clock.advance(Duration::from_secs(1));
    // After a stale open of the same call: a second one would be an error for the program.
    let opened = core.fs.open_since(ino, None, patient()).expect("open");
    assert_eq!(core.read_all(opened.fh).expect("its bytes"), b"1");
    core.fs.release(opened.fh);
    assert!(matches!(
        core.fs.open(ino, false, patient()),
        Err(FsError::Stale)
    ));
    core.fs.release(first);
}

#[test]
fn more_large_records_can_be_open_and_partly_read_than_there_are_threads_to_fill_them() {
    const OPEN: usize = 300;
    for ranges in [true, false] {
        let store = MemoryStore::new().with_ranges(ranges);
        let content = vec![7u8; 3 << 20];
        for at in 0..OPEN {
            store.insert(
                &format!("f{at}"),
                "text/plain",
                Encoding::Identity,
                content.clone(),
            );
        }
        let cache = tempfile::tempdir().expect("a temp folder");
        let core = Setup::new(store).core(Some(cache.path()));
        let mut open = Vec::new();
        for at in 0..OPEN {
            let (_, fh) = core.open(&format!("f{at}")).expect("open");
            let read = core.fs.read(fh, 100, 10, patient());
            assert_eq!(read.expect("ten bytes"), &content[..10], "{at}");
            open.push(fh);
        }
        for fh in open.drain(..).take(20) {
            assert!(core.read_all(fh).expect("the rest") == content);
            core.fs.release(fh);
        }
    }
}

#[test]
fn what_is_on_a_disk_that_may_be_slow_is_not_read_on_a_thread_that_may_not_wait() {
    let content = vec![7u8; 3 << 20];
    let setup = Setup::new(plain(&[("big", &content)]));
    let cache = tempfile::tempdir().expect("a temp folder");
    setup
        .core(Some(cache.path()))
        .cat("big")
        .expect("its bytes");
    wait_for(|| entries(cache.path()) == 1);
    let core = setup.core(Some(cache.path()));
    let (_, fh) = core.open("big").expect("open");
    // In the page cache or not: an answer, or the word that it would have to wait.
    match core.fs.read(fh, 1 << 20, 100, Wait::Never) {
        Ok(bytes) => assert_eq!(bytes.len(), 100),
        Err(error) => assert!(matches!(error, FsError::WouldBlock), "{error:?}"),
    }
    core.fs.release(fh);
}

#[test]
fn a_name_that_was_missing_opens_once_a_younger_listing_shows_it() {
    for ttl in [Some(TTL), None] {
        let mut setup = Setup::new(plain(&[("A", b"a")]));
        setup.records.ttl = ttl;
        let core = setup.core(None);
        assert_eq!(core.lookup("NEW").expect("an answer"), None);
        put(&setup, "NEW", b"new");
        core.clock.advance(TTL / 2);
        assert_eq!(core.list().expect("a listing").len(), 2);
        assert!(core.lookup("NEW").expect("an answer").is_some());
        requests(&core);
        assert_eq!(core.cat("NEW").expect("its bytes"), b"new", "{ttl:?}");
        assert_eq!(requests(&core), 1);
    }
}
