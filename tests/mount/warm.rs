//! Contents that are in the cache: read by the kernel itself where it may, and always right.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use kvfs::local::MemoryStore;
use kvfs::store::Encoding;

use crate::support::mounted::{MountedSession, eventually, pattern};

const MIB: usize = 1 << 20;

/// Tells whether the kernel lets this user's mounts read cache files through it: Linux 6.9 and
/// root.
fn may_pass_through() -> bool {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").expect("Linux");
    let mut numbers = release
        .split(['.', '-'])
        .map_while(|part| part.parse::<u32>().ok());
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    rustix::process::geteuid().is_root() && version >= (6, 9)
}

fn mounted(content: &[u8]) -> (Arc<MemoryStore>, MountedSession) {
    let store = Arc::new(MemoryStore::new());
    store.insert("big", "text/plain", Encoding::Identity, content.to_vec());
    let shared: Arc<dyn kvfs::store::Store> = Arc::<MemoryStore>::clone(&store);
    (
        store,
        MountedSession::with(shared, |config| config.ttl = None),
    )
}

fn warm(mounted: &MountedSession, content: &[u8]) {
    assert!(fs::read(mounted.file("big")).expect("its bytes") == content);
    eventually("the content is in the disk cache", || {
        mounted.counters().cache_disk_bytes > content.len() as u64
            && mounted.counters().open_files == 0
    });
}

#[test]
fn a_cached_large_content_is_read_without_the_daemon() {
    let content = pattern(5 * MIB + 123);
    let (_, mounted) = mounted(&content);
    warm(&mounted, &content);
    let before = mounted.counters();
    let (mut first, second) = (open(&mounted), open(&mounted));
    let mut bytes = Vec::new();
    first.read_to_end(&mut bytes).expect("its bytes");
    assert!(bytes == content);
    let mut tail = vec![0; 200];
    let n = second
        .read_at(&mut tail, content.len() as u64 - 100)
        .expect("its tail");
    assert_eq!(tail[..n], content[content.len() - 100..]);
    assert_eq!(first.metadata().expect("stat").len(), content.len() as u64);
    drop(first);
    // One of them is closed, the other reads on, and a third joins it.
    assert!(fs::read(mounted.file("big")).expect("its bytes") == content);
    second.read_exact_at(&mut tail, 0).expect("its head");
    assert_eq!(tail, content[..200]);
    let after = mounted.counters();
    assert_eq!(after.requests_total, before.requests_total);
    if may_pass_through() {
        assert_eq!(after.read_bytes, before.read_bytes, "the daemon was asked");
    }
}

#[test]
fn handles_from_before_the_content_was_whole_and_later_ones_read_the_same() {
    let content = pattern(5 * MIB);
    let (_, mounted) = mounted(&content);
    let early = open(&mounted);
    warm_behind(&mounted, &early, &content);
    // The kernel refuses to mix the two ways of reading one inode.
    let late = open(&mounted);
    for file in [&early, &late] {
        let mut bytes = vec![0; content.len()];
        file.read_exact_at(&mut bytes, 0).expect("its bytes");
        assert!(bytes == content);
    }
    drop((early, late));
    warm(&mounted, &content);
    assert!(fs::read(mounted.file("big")).expect("its bytes") == content);
}

#[test]
fn an_evicted_or_replaced_cache_file_stays_readable_to_who_has_it_open() {
    let content = pattern(3 * MIB);
    let (store, mounted) = mounted(&content);
    warm(&mounted, &content);
    let held = open(&mounted);
    store.insert("big", "text/plain", Encoding::Identity, vec![7; 2 * MIB]);
    let cache = mounted.path().with_file_name("cache");
    fs::remove_dir_all(cache).expect("the test's own folder");
    let mut bytes = vec![0; content.len()];
    held.read_exact_at(&mut bytes, 0).expect("its bytes");
    assert!(bytes == content);
}

fn open(mounted: &MountedSession) -> File {
    File::open(mounted.file("big")).expect("open")
}

fn warm_behind(mounted: &MountedSession, file: &File, content: &[u8]) {
    let mut bytes = vec![0; content.len()];
    file.read_exact_at(&mut bytes, 0).expect("its bytes");
    eventually("the content is in the disk cache", || {
        mounted.counters().cache_disk_bytes > content.len() as u64
    });
}
