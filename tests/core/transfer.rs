//! Large records on their way to disk: several connections, pauses, who comes back.

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use kvfs::base::clock::{Deadline, Wait};
use kvfs::base::workers::Workers;
use kvfs::cache::content::{Content, Data, Kept, VersionId};
use kvfs::disk::{Checksum, DiskTier};
use kvfs::local::fault::{Call, FaultStore};
use kvfs::local::memory::MemoryStore;
use kvfs::store::codec::{DecoderMemory, Turn, decoder};
use kvfs::store::{Encoding, ErrorKind, Key, Store};
use kvfs::transfer::download::Download;
use kvfs::transfer::fill::Outcome;
use kvfs::transfer::prefix::Prefix;
use kvfs::transfer::stream::{Origin, StreamReader};
use kvfs::transfer::tools::Tools;

use crate::support::core::{Core, Setup, TTL, patient};
use crate::support::served::remembering;

/// Bytes that tell where in the record they are.
fn numbered(len: usize) -> Vec<u8> {
    (0..len as u32 / 4).flat_map(u32::to_le_bytes).collect()
}

fn core_with(content: &[u8], cache: &Path) -> Core {
    let store = MemoryStore::new();
    store.insert("big", "text/plain", Encoding::Identity, content.to_vec());
    Setup::new(store).core(Some(cache))
}

fn wait_for(condition: impl Fn() -> bool) {
    let deadline = patient().deadline().expect("one");
    while !condition() {
        assert!(deadline.remaining().is_some(), "it never came about");
        thread::yield_now();
    }
}

#[test]
fn slow_connections_are_joined_by_others_and_the_bytes_are_in_their_places() {
    let content = numbered(48 << 20);
    let cache = tempfile::tempdir().expect("a temp folder");
    let store = MemoryStore::new();
    store.insert("big", "text/plain", Encoding::Identity, content.clone());
    let setup = Setup::new(store);
    let core = setup.core(Some(cache.path()));
    core.faults.slow_bodies(6 << 20);
    assert!(core.cat("big").expect("its bytes") == content);
    let most = core.faults.most_bodies();
    assert!((4..=11).contains(&most), "{most} connections");
    let fetched = core.faults.body_bytes();
    assert!(
        fetched <= content.len() as u64 + (2 << 20),
        "{fetched} bytes fetched"
    );
    let gets = core.faults.calls(Call::Get);
    assert!(gets <= 49, "{gets} requests");
    // What the disk cache then holds is right, and so is its checksum, which another boot checks.
    wait_for(|| entry(cache.path()).is_some());
    let json = entry(cache.path()).expect("waited for");
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").expect("Linux");
    let text = fs::read_to_string(&json).expect("there");
    assert!(text.contains(boot.trim()));
    fs::write(&json, text.replace(boot.trim(), "another")).expect("ours");
    // In the background: a person would get the server's bytes meanwhile.
    let tier = DiskTier::open(cache.path(), 1 << 30, "test", Arc::default()).expect("a cache");
    let (key, moment) = (Key::new("big").expect("a key"), Duration::from_secs(1));
    wait_for(|| tier.lookup(&key, moment).is_some());
    let warm = setup.core(Some(cache.path()));
    assert!(warm.cat("big").expect("its bytes") == content);
    assert_eq!(
        (warm.faults.body_bytes(), warm.metrics.cache_healed.get()),
        (0, 0)
    );
}

/// Returns the file that names the one entry of a cache folder.
fn entry(cache: &Path) -> Option<PathBuf> {
    let folders = |dir: &Path| -> Vec<PathBuf> {
        let entries = fs::read_dir(dir).into_iter().flatten().flatten();
        entries.map(|entry| entry.path()).collect()
    };
    let scopes = folders(&cache.join("kvfs-1"));
    let shards = scopes.iter().flat_map(|scope| folders(scope));
    shards
        .flat_map(|shard| folders(&shard))
        .find(|path| path.extension().is_some_and(|ext| ext == "json"))
}

#[test]
fn fast_connections_and_servers_without_ranges_get_one() {
    for ranges in [true, false] {
        let content = numbered(24 << 20);
        let store = MemoryStore::new().with_ranges(ranges);
        store.insert("big", "text/plain", Encoding::Identity, content.clone());
        let cache = tempfile::tempdir().expect("a temp folder");
        let core = Setup::new(store).core(Some(cache.path()));
        if !ranges {
            core.faults.slow_bodies(20 << 20);
        }
        assert!(core.cat("big").expect("its bytes") == content);
        if !ranges {
            assert_eq!(core.faults.calls(Call::Get), 1);
        }
    }
}

#[test]
fn helpers_that_fail_leave_the_first_connection_alone() {
    let content = numbered(24 << 20);
    let cache = tempfile::tempdir().expect("a temp folder");
    let core = core_with(&content, cache.path());
    core.faults.slow_bodies(6 << 20);
    let (_, fh) = core.open("big").expect("open");
    core.faults.fail_next(Call::Get, 3, ErrorKind::Server);
    assert!(core.read_all(fh).expect("its bytes") == content);
}

#[test]
fn who_comes_back_goes_on_where_the_last_reader_left() {
    let content = numbered(64 << 20);
    let cache = tempfile::tempdir().expect("a temp folder");
    let core = Arc::new(core_with(&content, cache.path()));
    let leave_half_way = || {
        let (_, fh) = core.open("big").expect("open");
        for at in (0..8 << 20).step_by(1 << 20) {
            core.fs.read(fh, at, 1 << 20, patient()).expect("its bytes");
        }
        core.fs.release(fh);
        wait_for(|| core.records.kept_downloads() == 1);
    };
    leave_half_way();
    // On a slow machine others join the first connection; several run farther ahead, up to 40 MiB.
    assert_eq!(core.faults.calls(Call::Get) - core.faults.ranged_gets(), 1);
    let before = core.faults.body_bytes();
    assert!((8 << 20..=41 << 20).contains(&before), "{before} bytes");
    // Later, so that the version is asked about: nothing arrives twice.
    core.clock.advance(TTL);
    assert!(core.cat("big").expect("its bytes") == content);
    assert_eq!(
        core.faults.conditional_gets(),
        core.faults.calls(Call::Get) - 1
    );
    let fetched = core.faults.body_bytes();
    assert!(fetched <= content.len() as u64, "{fetched} bytes fetched");
    wait_for(|| core.records.kept_downloads() == 0);
}

#[test]
fn what_is_kept_of_an_older_version_is_never_joined_to_a_newer_one() {
    let content = numbered(64 << 20);
    let cache = tempfile::tempdir().expect("a temp folder");
    let store = MemoryStore::new();
    store.insert("big", "text/plain", Encoding::Identity, content.clone());
    let setup = Setup::new(store);
    let core = setup.core(Some(cache.path()));
    let (_, fh) = core.open("big").expect("open");
    for at in (0..8 << 20).step_by(1 << 20) {
        core.fs.read(fh, at, 1 << 20, patient()).expect("its bytes");
    }
    core.fs.release(fh);
    wait_for(|| core.records.kept_downloads() == 1);
    let newer: Vec<u8> = content.iter().map(|byte| !byte).collect();
    setup
        .store
        .insert("big", "text/plain", Encoding::Identity, newer.clone());
    core.clock.advance(TTL);
    assert!(core.cat("big").expect("its bytes") == newer);
    assert_eq!(core.records.kept_downloads(), 0);
}

/// On a full disk the download can have failed before the open that began it has got hold of it.
#[test]
fn a_download_whose_disk_failed_at_once_is_read_past_the_disk() {
    let bytes = numbered(3 << 20);
    let store = MemoryStore::new();
    store.insert("big", "text/plain", Encoding::Identity, bytes.clone());
    let folder = tempfile::tempdir().expect("a temp folder");
    let disk = DiskTier::open(folder.path(), 1 << 30, "test", Arc::default()).expect("a cache");
    let spool = disk.spool(bytes.len() as u64).expect("room");
    let key = Key::new("big").expect("a key");
    let deadline = Deadline::after(std::time::Duration::from_secs(60));
    let meta = store.head(&key, deadline).expect("a record");
    let origin = Origin::new(Arc::new(store), key.clone(), meta.clone(), false);
    let tools = Tools::new(Workers::new("test", 8, 8, Arc::default()));
    // Writing to it fails, as it does where a disk is full.
    let file = Arc::new(fs::File::open("/dev/null").expect("a file to read"));
    let size = Some(bytes.len() as u64);
    let download = Download::into_file(origin, (file, spool.room()), size, None, tools);
    let body = Box::new(std::io::Cursor::new(bytes.clone()));
    download.fill(&[], Some(body), spool);
    let content = Arc::new(Content {
        key,
        version: VersionId(1),
        meta,
        modified: std::time::SystemTime::UNIX_EPOCH,
        read: None,
        data: Data::Download(download),
    });
    assert!(!content.is_usable(), "the next open asks anew");
    let reader = content.reader().expect("a reader all the same");
    let read = reader.read_at(1 << 20, 100, Wait::Until(deadline));
    assert_eq!(read.expect("bytes")[..], bytes[1 << 20..][..100]);
}

/// A content that the disk cache has whole, on a disk that fails: the bytes must be those of the store,
/// proven by the checksum alone where the server tells versions apart by nothing.
#[test]
fn what_lies_on_a_disk_that_fails_is_read_past_it_and_proven_by_its_checksum() {
    let bytes = numbered(10 << 20);
    let folder = tempfile::tempdir().expect("a temp folder");
    let disk = DiskTier::open(folder.path(), 1 << 30, "test", Arc::default()).expect("a cache");
    let key = Key::new("big").expect("a key");
    let mut sum = Checksum::default();
    sum.update(&bytes);
    let checksum = u128::from_str_radix(&sum.finish(), 16).expect("a number");
    let until = || Wait::Until(Deadline::after(Duration::from_secs(60)));
    let reader = |stored: &[u8]| {
        let store = MemoryStore::new()
            .with_etags(false)
            .with_last_modified(false)
            .with_ranges(false);
        store.insert("big", "text/plain", Encoding::Identity, stored.to_vec());
        let meta = store
            .head(&key, until().deadline().expect("one"))
            .expect("a record");
        assert!(meta.validator().is_none());
        let content = Arc::new(Content {
            key: key.clone(),
            version: VersionId(1),
            meta: meta.clone(),
            modified: std::time::SystemTime::UNIX_EPOCH,
            read: None,
            data: Data::File(Box::new(Kept {
                // Nothing can be read from it, as where a disk fails.
                file: Arc::new(fs::File::open("/dev/null").expect("a file")),
                size: bytes.len() as u64,
                checksum,
                id: String::new(),
                origin: Origin::new(Arc::new(store), key.clone(), meta, false),
                disk: Arc::clone(disk.patience()),
            })),
        });
        content.reader().expect("a reader")
    };
    let same = reader(&bytes);
    for at in [0, 7 << 20, 9 << 20, 1 << 20] {
        let read = same.read_at(at, 1000, until()).expect("bytes");
        assert!(read[..] == bytes[at as usize..][..1000], "at {at}");
    }
    let mut changed = bytes.clone();
    changed[9 << 20] ^= 1;
    let other = reader(&changed).read_at(0, 1000, until());
    let error = other.expect_err("the store has another version by now");
    assert_eq!(error.kind(), Some(ErrorKind::Changed));
}

fn within_a_minute() -> Turn {
    Turn::Reader(Deadline::after(Duration::from_secs(60)))
}

/// Makes a store with a record of which a decoder has to remember much.
fn with_brotli(stored: &[u8]) -> (Arc<FaultStore>, Origin) {
    let store = MemoryStore::new();
    store.insert("big", "text/plain", Encoding::Brotli, stored.to_vec());
    let store = Arc::new(FaultStore::new(Arc::new(store)));
    let key = Key::new("big").expect("a key");
    let meta = store.head(&key, Deadline::after(Duration::from_secs(60)));
    let origin = Origin::new(store.clone(), key, meta.expect("a record"), false);
    (store, origin)
}

#[test]
fn a_download_that_had_to_stop_decoding_begins_again_and_ends() {
    let len = 12 << 20;
    let stored = remembering(len);
    let (store, origin) = with_brotli(&stored);
    let memory = DecoderMemory::new(24 << 20);
    let body = Box::new(io::Cursor::new(stored.clone()));
    let body = decoder(&Encoding::Brotli, body, &memory, within_a_minute());
    let (mut body, mut head) = (body.expect("a decoder"), vec![0; 2 << 20]);
    body.read_exact(&mut head).expect("its beginning");
    // Meanwhile another is decoded, with the same memory.
    let other = decoder(
        &Encoding::Brotli,
        Box::new(&*stored),
        &memory,
        within_a_minute(),
    );
    io::copy(&mut other.expect("a decoder"), &mut io::sink()).expect("its turn comes");
    let folder = tempfile::tempdir().expect("a temp folder");
    let disk = DiskTier::open(folder.path(), 1 << 30, "test", Arc::default()).expect("a cache");
    let spool = disk.spool(len as u64).expect("room");
    let tools = Tools::new(Workers::new("test", 8, 8, Arc::default()));
    let download = Download::new(origin, &spool, None, None, tools);
    assert!(download.attach());
    let outcome = download.fill(&head, Some(body), spool);
    assert!(
        matches!(outcome, Outcome::Whole(_, size, _) if size == len as u64),
        "{outcome:?}"
    );
    assert_eq!(store.calls(Call::Get), 1);
    let read = download.read(0..len as u64, patient()).expect("all of it");
    assert!(read.iter().all(|byte| *byte == 7));
}

#[test]
fn a_reader_that_was_away_while_others_decoded_goes_on() {
    let len = 40 << 20;
    let stored = remembering(len);
    let (store, origin) = with_brotli(&stored);
    let reader = StreamReader::new(origin, len as u64, None, Prefix::default());
    let memory = DecoderMemory::of_process();
    let one = |turn| decoder(&Encoding::Brotli, Box::new(&*stored), memory, turn).expect("one");
    let mut at = 0;
    let deadline = patient().deadline().expect("one");
    while store.calls(Call::Get) < 2 {
        assert!(
            deadline.remaining().is_some(),
            "it never had to begin again"
        );
        let read = reader.read_at(at, 1 << 20, patient()).expect("bytes");
        assert!(read.len() == 1 << 20 && read.iter().all(|byte| *byte == 7));
        at += 1 << 20;
        // All memory is taken, and then one more waits for its share.
        let mut others = Vec::new();
        while memory.taken() + (19 << 20) <= DecoderMemory::most() {
            let mut other = one(Turn::Now);
            other.read_exact(&mut vec![0; 2 << 20]).expect("some");
            others.push(other);
        }
        io::copy(&mut one(within_a_minute()), &mut io::sink()).expect("its turn comes");
    }
}
