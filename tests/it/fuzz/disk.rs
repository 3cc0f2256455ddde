//! What lies in the cache folder: entries and saved listings.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use kvfs::cache::disk::DiskTier;
use kvfs::cache::index::Index;
use kvfs::cache::page::Packed;
use kvfs::metrics::Metrics;
use kvfs::store::{Encoding, Key, ListItem, ListQuery, RecordMeta};

use super::engine::fuzz;

fn key() -> Key {
    Key::new("A").expect("a key")
}

fn open(dir: &Path) -> Arc<DiskTier> {
    DiskTier::open(dir, 1 << 20, "fuzz", Arc::new(Metrics::default())).expect("a cache")
}

/// Makes an entry; returns the path of what describes it.
fn entry(tier: &Arc<DiskTier>, content: &[u8]) -> PathBuf {
    let spool = tier.spool(content.len() as u64).expect("room");
    std::os::unix::fs::FileExt::write_all_at(&**spool.file(), content, 0).expect("a file");
    let mut sum = kvfs::cache::disk::Checksum::default();
    sum.update(content);
    let meta = RecordMeta {
        content_type: Some("text/plain".into()),
        encoding: Encoding::Gzip,
        ..RecordMeta::default()
    };
    let size = content.len() as u64;
    spool
        .publish(&key(), &meta, size, sum.finish(), SystemTime::now())
        .expect("an entry");
    let mut paths: Vec<PathBuf> = Vec::new();
    for shard in fs::read_dir(tier.scope_dir()).expect("the scope").flatten() {
        paths.extend(
            fs::read_dir(shard.path())
                .expect("a shard")
                .flatten()
                .map(|entry| entry.path()),
        );
    }
    paths
        .into_iter()
        .find(|path| path.as_os_str().as_bytes().ends_with(b".json"))
        .expect("a description")
}

#[test]
fn entries_of_the_cache() {
    let dir = tempfile::tempdir().expect("a folder");
    let content = b"all work and no play";
    let tier = open(dir.path());
    let json = entry(&tier, content);
    let whole = fs::read(&json).expect("a description");
    let data = json.with_file_name(
        serde_json::from_slice::<serde_json::Value>(&whole).expect("JSON")["data"]
            .as_str()
            .expect("a name"),
    );
    let outside = dir.path().join("of-somebody-else");
    fs::write(&outside, "mine").expect("a file");
    let far = r#"{"key":"A","data":"../../../of-somebody-else","content_size":4,"checksum":"","boot_id":"","content_type":null,"encoding":null,"stored_size":null,"etag":null,"last_modified":null,"accepts_ranges":false,"modified_unix_ns":0}"#;
    let huge = String::from_utf8_lossy(&whole).replace(
        "\"content_size\":20",
        "\"content_size\":18446744073709551615",
    );
    let late = String::from_utf8_lossy(&whole).replace(
        "\"modified_unix_ns\":1",
        "\"modified_unix_ns\":18446744073709551615, \"x\":1",
    );
    assert_ne!(huge.as_bytes(), whole);
    let samples: [&[u8]; 4] = [&whole, far.as_bytes(), huge.as_bytes(), late.as_bytes()];
    fuzz("cache-entry", &samples, |input| {
        fs::write(&json, input).expect("a description");
        fs::write(&data, content).expect("its data");
        let found = tier.lookup(&key()).map(|entry| {
            let mut bytes = vec![0; content.len()];
            std::os::unix::fs::FileExt::read_exact_at(&*entry.file, &mut bytes, 0)
                .expect("its bytes");
            assert_eq!((entry.size, &bytes[..]), (20, &content[..]));
            let _ = entry.modified;
        });
        // A new mount counts what is there, and drives out what does not fit.
        fs::write(&json, input).expect("a description");
        let again = open(dir.path());
        let room = again.spool(4096).is_some();
        assert!(room, "what is counted wrongly leaves no room");
        again.remove(&key());
        assert!(outside.exists(), "a file of somebody else is gone");
        found.is_some()
    });
}

#[test]
fn saved_listings() {
    let dir = tempfile::tempdir().expect("a folder");
    let items: Vec<ListItem> = (0..40)
        .map(|n| ListItem {
            key: Key::new(format!("key-{n:03}")).expect("a key"),
            stored_size: Some(n),
            modified: None,
            public_url: None,
        })
        .collect();
    let index = Index::new(dir.path(), &ListQuery::default(), true);
    index.save([Packed::new(&items)].iter(), Instant::now(), index.epoch());
    let path = fs::read_dir(dir.path())
        .expect("the folder")
        .flatten()
        .next()
        .expect("a file")
        .path();
    let whole = fs::read(&path).expect("a listing");
    fuzz("saved-listing", &[&whole], |input| {
        fs::write(&path, input).expect("a listing");
        let saved = Index::new(dir.path(), &ListQuery::default(), true).load();
        if let Some(saved) = &saved {
            // A checksum covers it.
            assert_eq!(saved.pages, [Packed::new(&items)]);
        }
        (saved.is_some(), path.exists())
    });
}
