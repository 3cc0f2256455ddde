//! Records that change or go while they are read.

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use kvfs::local::MemoryStore;
use kvfs::store::Encoding;

use super::MIB;
use crate::support::mounted::{
    MountedSession, pattern, quick_retries, scripted, scripted_keys, text,
};
use crate::support::scripted::Answer;

/// Opens a file, changes the record, opens it again: the first handle must go on reading the
/// first version, also what it had not read before.
fn two_versions(first: &[u8], second: &[u8]) {
    let store = Arc::new(MemoryStore::new());
    store.insert("k", "text/plain", Encoding::Identity, first.to_vec());
    let mount = MountedSession::with(store.clone(), |config| config.ttl = Some(Duration::ZERO));
    use std::os::unix::fs::FileExt;
    let old = fs::File::open(mount.file("k")).expect("the first version");
    let mut begin = vec![0; 10.min(first.len())];
    old.read_exact_at(&mut begin, 0).expect("its beginning");
    store.insert("k", "text/plain", Encoding::Identity, second.to_vec());
    let new = fs::File::open(mount.file("k")).expect("the second version");
    let read = |file: &fs::File| {
        let len = file.metadata().expect("a size").len();
        let mut bytes = vec![0; len as usize + 10];
        let mut read = 0;
        loop {
            match file
                .read_at(&mut bytes[read..], read as u64)
                .expect("bytes")
            {
                0 => break,
                n => read += n,
            }
        }
        assert_eq!(read as u64, len, "fstat disagrees with the bytes");
        bytes.truncate(read);
        bytes
    };
    for _ in 0..2 {
        assert!(read(&old) == first, "the old handle left its version");
        assert!(read(&new) == second, "the new handle has another version");
    }
    assert!(fs::read(mount.file("k")).expect("bytes") == second);
    drop((old, new));
    assert!(fs::read(mount.file("k")).expect("bytes") == second);
}

#[test]
fn an_open_handle_keeps_its_version_beside_one_on_the_next() {
    two_versions(b"the first version", b"the 2nd");
    two_versions(b"short", &pattern(200_000));
    let (mut a, b) = (pattern(300_000), text(300_000));
    two_versions(&a, &b);
    a.truncate(4096);
    two_versions(&a, &b[..4096]);
}

#[test]
fn an_open_handle_on_a_large_record_keeps_its_version_or_fails() {
    two_versions(&pattern(5 * MIB), &text(5 * MIB + 1));
}

#[test]
fn a_changed_record_of_the_same_size_drops_the_pages() {
    let store = Arc::new(MemoryStore::new());
    let mount = MountedSession::with(store.clone(), |config| config.ttl = Some(Duration::ZERO));
    for (len, round) in [(100, 0), (4096, 1), (200_000, 2), (3 * MIB, 3)] {
        for version in 0..3u8 {
            let content = vec![b'a' + version + round * 3; len];
            store.insert("k", "text/plain", Encoding::Identity, content.clone());
            assert!(fs::read(mount.file("k")).expect("bytes") == content);
            assert!(fs::read(mount.file("k")).expect("bytes") == content);
        }
    }
}

#[test]
fn a_record_deleted_while_open_is_read_to_its_end_and_then_gone() {
    use kvfs::store::Store;
    use std::os::unix::fs::FileExt;
    let store = Arc::new(MemoryStore::new());
    let content = pattern(700_000);
    store.insert("k", "text/plain", Encoding::Identity, content.clone());
    let mount = MountedSession::with(store.clone(), |config| config.ttl = Some(Duration::ZERO));
    let file = fs::File::open(mount.file("k")).expect("a file");
    store
        .delete(
            &crate::support::served::key("k"),
            crate::support::served::soon(),
        )
        .expect("a delete");
    let error = fs::File::open(mount.file("k")).expect_err("it is gone");
    assert_eq!(error.raw_os_error(), Some(libc::ENOENT));
    let mut bytes = vec![0; content.len()];
    file.read_exact_at(&mut bytes, 0).expect("all of it");
    assert!(bytes == content);
    assert_eq!(mount.works("ls"), "");
}

/// Returns version `n` of a record that changes: sizes go up and down, every byte tells which.
fn version(n: u64) -> Vec<u8> {
    let len = [10, 5000, 4096, 150_000, 1, 2_000_000, 4097][n as usize % 7];
    let mut bytes = vec![b'a' + (n % 26) as u8; len];
    let tag = n.to_string();
    for at in (0..len.saturating_sub(16)).step_by(1000) {
        bytes[at..at + tag.len()].copy_from_slice(tag.as_bytes());
    }
    bytes
}

#[test]
fn readers_of_a_record_that_keeps_changing_each_see_one_whole_version() {
    use std::os::unix::fs::FileExt;
    for encoding in [Encoding::Identity, Encoding::Gzip] {
        let store = Arc::new(MemoryStore::new());
        let put = |n: u64| {
            let stored = match encoding {
                Encoding::Identity => version(n),
                _ => {
                    let mut encoder =
                        flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
                    std::io::Write::write_all(&mut encoder, &version(n)).expect("in memory");
                    encoder.finish().expect("in memory")
                }
            };
            store.insert("k", "text/plain", encoding.clone(), stored);
        };
        put(0);
        let mount = MountedSession::with(store.clone(), |config| {
            config.ttl = Some(Duration::ZERO);
        });
        let until = std::time::Instant::now() + Duration::from_secs(2);
        let latest = std::sync::atomic::AtomicU64::new(0);
        let whole = std::sync::atomic::AtomicU64::new(0);
        std::thread::scope(|scope| {
            for seed in 0..4 {
                let (mount, latest, whole) = (&mount, &latest, &whole);
                scope.spawn(move || {
                    let mut random = fastrand::Rng::with_seed(seed);
                    while std::time::Instant::now() < until {
                        let before = latest.load(std::sync::atomic::Ordering::SeqCst);
                        let mut read = || -> std::io::Result<Vec<u8>> {
                            let file = fs::File::open(mount.file("k"))?;
                            let len = file.metadata()?.len();
                            let piece = [700, 5000, 70_000, 3_000_000][random.usize(..4)];
                            let mut bytes = vec![0; len as usize + piece];
                            let mut at = 0;
                            loop {
                                match file.read_at(&mut bytes[at..at + piece], at as u64)? {
                                    0 => break,
                                    n => at += n,
                                }
                            }
                            assert_eq!(at as u64, len, "fstat is not the length that was read");
                            assert_eq!(
                                file.metadata()?.len(),
                                len,
                                "the open file changed its size"
                            );
                            bytes.truncate(at);
                            Ok(bytes)
                        };
                        match read() {
                            Ok(bytes) => {
                                let after = latest.load(std::sync::atomic::Ordering::SeqCst);
                                assert!(
                                    (before..=after + 1).any(|n| bytes == version(n)),
                                    "{} bytes are of no version from {before} to {after}",
                                    bytes.len()
                                );
                                whole.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                            }
                            Err(error) => {
                                assert_eq!(error.raw_os_error(), Some(libc::ESTALE), "{error}");
                            }
                        }
                    }
                });
            }
            let mut n = 0;
            while std::time::Instant::now() < until {
                n += 1;
                put(n);
                latest.store(n, std::sync::atomic::Ordering::SeqCst);
                std::thread::sleep(Duration::from_millis(fastrand::u64(..20)));
            }
        });
        let whole = whole.into_inner();
        assert!(whole > 20, "only {whole} reads came through");
        assert_eq!(mount.counters().panics_total, 0);
        mount.unmount();
    }
}

#[test]
fn what_is_another_version_at_each_answer_can_be_opened_by_many_at_once() {
    let server = scripted(|seen, count| match seen.path().ends_with("/keys") {
        true => scripted_keys(&[("OUTPUT", 10)]),
        false => Answer::new(200, format!("version {count}"))
            .header("content-type", "text/plain")
            .header("etag", &format!("\"{count}\"")),
    });
    let mount = MountedSession::scripted(&server, quick_retries(), |config| {
        config.ttl = Some(Duration::ZERO);
    });
    let until = std::time::Instant::now() + Duration::from_secs(3);
    let whole = std::sync::atomic::AtomicU64::new(0);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                while std::time::Instant::now() < until {
                    let bytes = fs::read(mount.file("OUTPUT")).expect("one version or another");
                    assert!(bytes.starts_with(b"version "), "{bytes:?}");
                    whole.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                }
            });
        }
    });
    assert!(whole.into_inner() > 20);
    mount.unmount();
}
