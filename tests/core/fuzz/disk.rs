//! What lies in folders of ours: entries of the cache, saved listings, the journal.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use kvfs::disk::{DiskTier, Fresh, Stored};
use kvfs::listing::packed::Packed;
use kvfs::listing::partition::Guide;
use kvfs::listing::saved::Index;
use kvfs::metrics::Metrics;
use kvfs::staging::folder::StoreFile;
use kvfs::staging::{EntryId, StagingConfig, StagingFolder};
use kvfs::store::{Encoding, Key, ListItem, ListQuery, RecordMeta};
use twox_hash::{XxHash3_64, XxHash3_128};

use super::engine::fuzz;

/// The data file of the cache entry.
const DATA: &str = "A.data";

fn key() -> Key {
    Key::new("A").expect("a key")
}

fn open(dir: &Path) -> Arc<DiskTier> {
    DiskTier::open(dir, 1 << 20, "fuzz", Arc::new(Metrics::default())).expect("a cache")
}

/// Makes an entry whose data is `A.data`; returns the path of what describes it.
fn entry(tier: &Arc<DiskTier>, content: &[u8]) -> PathBuf {
    let spool = tier.spool(content.len() as u64).expect("room");
    std::os::unix::fs::FileExt::write_all_at(&**spool.file(), content, 0).expect("a file");
    let mut sum = kvfs::disk::Checksum::default();
    sum.update(content);
    let meta = RecordMeta {
        content_type: Some("text/plain".into()),
        encoding: Encoding::Gzip,
        ..RecordMeta::default()
    };
    let size = content.len() as u64;
    let key = key();
    let fresh = Fresh {
        key: &key,
        meta: &meta,
        modified: SystemTime::now(),
        read: None,
    };
    spool.publish(fresh, size, sum.finish()).expect("an entry");
    let mut paths: Vec<PathBuf> = Vec::new();
    for shard in fs::read_dir(tier.scope_dir()).expect("the scope").flatten() {
        paths.extend(
            fs::read_dir(shard.path())
                .expect("a shard")
                .flatten()
                .map(|entry| entry.path()),
        );
    }
    let json = paths
        .into_iter()
        .find(|path| path.as_os_str().as_bytes().ends_with(b".json"))
        .expect("a description");
    // Its name is random: files of the corpus could not tell of it.
    let text = fs::read_to_string(&json).expect("a description");
    let described: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let name = described["data"].as_str().expect("a name");
    fs::rename(json.with_file_name(name), json.with_file_name(DATA)).expect("its data");
    fs::write(&json, text.replace(name, DATA)).expect("a description");
    json
}

#[test]
fn entries_of_the_cache() {
    let dir = tempfile::tempdir().expect("a folder");
    let content = b"all work and no play";
    let tier = open(dir.path());
    let json = entry(&tier, content);
    let whole = fs::read(&json).expect("a description");
    let data = json.with_file_name(DATA);
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
    let shard = json.parent().expect("a shard").metadata();
    let folder = String::from_utf8_lossy(&whole).replace(DATA, ".").replace(
        "\"content_size\":20",
        &format!("\"content_size\":{}", shard.expect("it is there").len()),
    );
    let samples = [&*huge, &late, &folder, far].map(str::as_bytes);
    let samples = [&[&*whole], &samples[..]].concat();
    fuzz("cache-entry", &samples, |input| {
        fs::write(&json, input).expect("a description");
        fs::write(&data, content).expect("its data");
        let found = tier
            .lookup(&key(), std::time::Duration::from_secs(5))
            .map(|entry| {
                let Stored::Memory(bytes) = &entry.stored else {
                    panic!("a small content is read whole")
                };
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
    let load = || Index::new(dir.path(), &ListQuery::default(), true).load();
    fuzz("saved-listing", &[&whole], |input| {
        fs::write(&path, input).expect("a listing");
        let saved = load();
        assert_eq!(saved.is_some(), path.exists(), "what is broken is removed");
        // What lies behind the checksum must do no harm either.
        let content = &input[..input.len().saturating_sub(8)];
        let summed = [content, &XxHash3_64::oneshot(content).to_le_bytes()].concat();
        fs::write(&path, &summed).expect("a listing");
        let behind = load();
        if saved.is_some() {
            assert_eq!(summed, input, "a checksum covers it");
        }
        let behind = behind.map(|saved| {
            for rank in 0..=saved.keys() {
                let key = saved.key_at(rank);
                assert_eq!(key.is_some(), rank > 0);
                assert_eq!(key.map_or(0, |key| saved.rank_of(&key)), rank);
            }
            index.forget();
            index.save(saved.pages.iter(), Instant::now(), index.epoch());
            assert_eq!(load().expect("it was just saved").pages, saved.pages);
            (saved.is_current, saved.pages.len(), saved.keys())
        });
        (saved.is_some(), behind)
    });
}

/// Returns what the journal would have written; `entry` is under the right checksum, unless it is
/// more than the entry.
fn described(entry: &[u8]) -> Vec<u8> {
    let entry = entry.trim_ascii();
    if entry.starts_with(b"{\"version\"") {
        return entry.to_vec();
    }
    let checksum = XxHash3_128::oneshot(entry);
    let mut text = format!(r#"{{"version":1,"checksum":"{checksum:032x}","entry":"#).into_bytes();
    text.extend_from_slice(entry);
    text.push(b'}');
    text
}

#[test]
fn journals_of_dead_processes() {
    let dir = tempfile::tempdir().expect("a folder");
    let config = StagingConfig {
        dir: dir.path().to_owned(),
        scope: "scope".into(),
        store: StoreFile::default(),
        limit: None,
    };
    let open = || StagingFolder::open(&config).expect("a staging folder");
    let scope = open().path().to_owned();
    // No process has this number.
    let dead = scope.join("4194305-0000000a");
    let (id, torn) = (EntryId::new(7, 1), EntryId::new(8, 1));
    let data = b"hello, world";
    let whole = format!(
        r#"{{"key":"k","content_type":null,"encoding":null,"if_match":null,"if_absent":false,"size":12,"closed_at":"2026-01-02T03:04:05Z","why":"write_back","attempts":0,"data_checksum":"{:032x}"}}"#,
        XxHash3_128::oneshot(data)
    );
    let newer = br#"{"version":2,"checksum":"","entry":{}}"#;
    fuzz("journal", &[whole.as_bytes(), newer], |input| {
        fs::create_dir_all(&dead).expect("a folder");
        let file = |id: &EntryId, kind: &str| dead.join(format!("{id}.{kind}"));
        fs::write(file(&id, "json"), described(input)).expect("a description");
        fs::write(file(&id, "data"), data).expect("its data");
        fs::write(file(&torn, "data"), b"never promised").expect("a leftover");
        let folder = open();
        let journal = folder.journal();
        let entry = journal.get(&id);
        let mut whole = None;
        if let Some(entry) = &entry {
            assert!(entry.pending.size <= data.len() as u64);
            assert_eq!(
                journal.of_key(&entry.pending.key),
                std::slice::from_ref(entry)
            );
            let written = journal.update(&id, |pending| pending.attempts = 1);
            written.expect("what was read can be written");
            whole = Some(journal.verify(&id).is_ok());
        }
        assert!(!file(&torn, "data").exists(), "what nobody was promised");
        let damaged = folder.damaged();
        drop(folder);
        // Bytes of somebody's are in the journal, or where a person finds them, or left alone.
        let again = open();
        let kept = again.journal().get(&id);
        let is_newer = file(&id, "json").exists() && entry.is_none();
        assert_eq!(damaged == [id.clone()], entry.is_none() && !is_newer);
        if let Some(before) = entry {
            let after = kept.expect("it is still there").pending;
            assert_eq!((after.key, after.attempts), (before.pending.key, 1));
            assert_eq!(after.closed_at, before.pending.closed_at);
            assert_eq!(after.unanswered, before.pending.unanswered);
        }
        let place = if damaged.is_empty() {
            dead.clone()
        } else {
            scope.join("damaged")
        };
        let bytes = fs::read(place.join(format!("{id}.data"))).expect("its data");
        assert_eq!(bytes, data);
        drop(again);
        fs::remove_dir_all(&place).expect("it is there");
        let _ = fs::remove_dir_all(&dead);
        (whole, is_newer, damaged.len())
    });
}
