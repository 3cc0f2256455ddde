//! Sizes that only decoding tells.

use std::io::Write;

use kvfs::base::clock::Wait;
use kvfs::fs::types::Ino;
use kvfs::local::fault::Call;
use kvfs::local::memory::MemoryStore;
use kvfs::store::{Encoding, ErrorKind};

use super::{plain, requests, soon};
use crate::support::core::{Names, Setup, TTL, Told, patient};

fn gzip(content: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(content).expect("in memory");
    encoder.finish().expect("in memory")
}

#[test]
fn the_exact_size_of_an_encoded_record_is_known_from_open_on_and_across_remounts() {
    let content = b"all work and no play ".repeat(500);
    let stored = gzip(&content);
    let store = MemoryStore::new();
    store.insert("A", "text/plain", Encoding::Gzip, stored.clone());
    let setup = Setup::new(store);
    let cache = tempfile::tempdir().expect("a temp folder");
    {
        let core = setup.core(Some(cache.path()));
        let listed = core.list().expect("a listing");
        assert_eq!(listed[0].1.attr.size, stored.len() as u64, "provisional");
        let ino = core
            .lookup("A")
            .expect("an answer")
            .expect("present")
            .attr
            .ino;
        let opened = core.fs.open(ino, false, patient()).expect("open");
        assert_eq!(
            core.fs.getattr(ino, Wait::Never).expect("open").attr.size,
            content.len() as u64
        );
        let told = core.kernel.0.lock().clone();
        assert_eq!(
            told,
            [
                Told::ForgetAttributes(ino),
                Told::Store(ino, 0, content.clone())
            ]
        );
        assert!(opened.keep_cache, "the kernel has all pages");
        core.fs.release(opened.fh);
        assert_eq!(
            core.list().expect("a listing")[0].1.attr.size,
            content.len() as u64
        );
        core.records.finish_writing(soon());
    }
    let core = setup.core(Some(cache.path()));
    assert_eq!(
        core.list().expect("a listing")[0].1.attr.size,
        content.len() as u64,
        "remembered across remounts"
    );
    assert_eq!(core.faults.calls(Call::Get), 0);
}

/// The kernel asks for a name and for the listing at the same time, and believes whichever answer
/// comes first, though the other was given later.
#[test]
fn an_open_tells_the_kernel_the_size_when_answers_with_different_ones_were_under_way() {
    let content = b"all work and no play ".repeat(10_000);
    let store = MemoryStore::new();
    store.insert("A", "text/plain", Encoding::Gzip, gzip(&content));
    let setup = Setup::new(store);
    let core = setup.core(None);
    let dir = core.fs.opendir(Ino::ROOT).expect("the directory");
    let mut names = Names::default();
    core.fs
        .readdir(dir, 0, true, &mut names, patient())
        .expect("a listing");
    let listed = names.0[0].1.attr;
    assert!(listed.size < content.len() as u64, "provisional");
    // The listing is too old by now, and cannot be had: the record is fetched, and its size exact.
    core.clock.advance(TTL);
    core.faults.fail_next(Call::List, 1, ErrorKind::Network);
    let found = core.lookup("A").expect("an answer").expect("present").attr;
    assert_eq!((found.ino, found.size), (listed.ino, content.len() as u64));
    let opened = core.fs.open(found.ino, false, patient()).expect("open");
    let told = core.kernel.0.lock().clone();
    assert_eq!(
        told,
        [
            Told::Store(found.ino, found.size - 1, vec![0]),
            Told::ForgetPages(found.ino)
        ]
    );
    core.kernel.0.lock().clear();
    // From then on it is known what the kernel believes.
    core.fs.release(opened.fh);
    let (_, fh) = core.open("A").expect("open");
    assert_eq!(*core.kernel.0.lock(), []);
    core.fs.release(fh);
    core.fs.check_invariants();
}

#[test]
fn a_raw_mount_shows_stored_bytes() {
    let stored = gzip(b"hello");
    let store = MemoryStore::new();
    store.insert("A", "text/plain", Encoding::Gzip, stored.clone());
    let mut setup = Setup::new(store);
    setup.records.raw = true;
    assert_eq!(setup.core(None).cat("A").expect("its bytes"), stored);
}

#[test]
fn a_large_encoded_record_has_its_exact_size_when_open_returns() {
    let content: Vec<u8> = (0..5u32 << 20).map(|i| (i % 251) as u8).collect();
    for capacity in [1 << 30, 3 << 20] {
        let store = MemoryStore::new();
        store.insert("A", "application/x-thing", Encoding::Gzip, gzip(&content));
        let mut setup = Setup::new(store);
        setup.disk_capacity = capacity;
        let cache = tempfile::tempdir().expect("a temp folder");
        let core = setup.core(Some(cache.path()));
        let (ino, fh) = core.open("A").expect("open");
        assert_eq!(
            core.fs.getattr(ino, Wait::Never).expect("open").attr.size,
            content.len() as u64
        );
        assert!(
            core.read_all(fh).expect("its bytes") == content,
            "capacity {capacity}"
        );
    }
}

#[test]
fn the_attributes_of_a_large_record_are_known_before_its_bytes() {
    let core = Setup::new(plain(&[("big", &vec![0; 8 << 20])])).core(None);
    let reply = core.lookup("big").expect("an answer").expect("present");
    assert_eq!(reply.attr.size, 8 << 20);
    let value = core
        .fs
        .getxattr(reply.attr.ino, "user.apify.content-type", Wait::Never)
        .expect("known");
    assert_eq!(value, b"text/plain");
    assert_eq!(
        core.fs
            .getxattr(reply.attr.ino, "user.apify.key", Wait::Never)
            .expect("known"),
        b"big"
    );
    assert_eq!(
        core.fs
            .getxattr(reply.attr.ino, "user.apify.stored-size", Wait::Never)
            .expect("known"),
        b"8388608"
    );
    assert_eq!(requests(&core), 1);
}

#[test]
fn exact_sizes_are_bought_with_requests_where_they_are_wanted() {
    let content = vec![b'x'; 9999];
    let store = MemoryStore::new();
    for i in 0..40 {
        store.insert(
            &format!("r{i}"),
            "text/plain",
            Encoding::Gzip,
            gzip(&content),
        );
    }
    let mut setup = Setup::new(store);
    setup.fs.exact_sizes = true;
    let core = setup.core(None);
    let listed = core.list().expect("a listing");
    assert_eq!(listed.len(), 40);
    assert!(listed.iter().all(|(_, reply)| reply.attr.size == 9999));
    assert_eq!(core.faults.calls(Call::Head), 40);
    assert_eq!(requests(&core), 81);
}

#[test]
fn exact_sizes_of_what_is_not_encoded_cost_no_bytes() {
    let store = MemoryStore::new();
    for i in 0..40 {
        let bytes = vec![b'x'; 100 + i];
        store.insert(&format!("r{i}"), "text/plain", Encoding::Identity, bytes);
    }
    let mut setup = Setup::new(store);
    setup.fs.exact_sizes = true;
    let core = setup.core(None);
    let listed = core.list().expect("a listing");
    let sum: u64 = listed.iter().map(|(_, reply)| reply.attr.size).sum();
    assert_eq!(sum, (100..140).sum::<u64>());
    assert_eq!(core.faults.calls(Call::Head), 40);
    assert_eq!(core.faults.calls(Call::Get), 0);
    assert_eq!(requests(&core), 41);
    core.list().expect("a listing");
    assert_eq!(requests(&core), 0);
}
