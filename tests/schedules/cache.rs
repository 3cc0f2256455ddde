//! The content cache: whoever reads gets all bytes of one version, and afterwards the accounts say
//! what is there.

use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use kvfs::base::clock::{Deadline, SystemClock};
use kvfs::base::sync::{now, thread};
use kvfs::cache::records::{Records, RecordsConfig};
use kvfs::disk::{Checksum, DiskTier, Fresh, Stored};
use kvfs::metrics::Metrics;
use kvfs::store::{RecordMeta, Store};
use shuttle::rand::{Rng, thread_rng};

use crate::explore;
use crate::stage::{Pieces, Stage, assert_nobody_overslept, cat, folder, key};

/// What the disk cache takes an entry to cost beyond its content.
const OVERHEAD: u64 = 4096;
/// Room for two large records and two small ones.
const CAPACITY: u64 = 2 * (6000 + OVERHEAD) + 2 * (400 + OVERHEAD);
/// A record that goes into memory, and one that is downloaded to disk.
const SMALL: usize = 300;
const LARGE: usize = 5000;

struct Scene {
    stage: Arc<Stage>,
    records: Arc<Records>,
    disk: Arc<DiskTier>,
    metrics: Arc<Metrics>,
    folder: tempfile::TempDir,
}

impl Scene {
    fn new(ttl: Duration) -> Self {
        let stage = Arc::new(Stage::default());
        stage.pace(
            Pieces {
                size: 900,
                ..Pieces::default()
            },
            Pieces::default(),
        );
        let folder = folder();
        let metrics = Arc::new(Metrics::default());
        let disk = DiskTier::open(folder.path(), CAPACITY, "test", Arc::clone(&metrics))
            .expect("a cache folder");
        let config = RecordsConfig {
            raw: false,
            max_content: None,
            ttl: Some(ttl),
            memory_capacity: 1500,
            clock_lag: None,
            asks_each_time: false,
            keeps_plain_sizes: false,
        };
        let records = Records::new(
            Arc::<Stage>::clone(&stage) as Arc<dyn Store>,
            config,
            Some(Arc::clone(&disk)),
            Arc::new(SystemClock),
            Arc::clone(&metrics),
        );
        let scene = Self {
            stage,
            records,
            disk,
            metrics,
            folder,
        };
        for (name, len) in [
            ("a", SMALL),
            ("b", LARGE),
            ("c", LARGE),
            ("d", SMALL),
            ("e", LARGE),
        ] {
            scene.stage.put(name, len);
        }
        scene
    }

    /// Reads a record whole.
    fn check(&self, name: &str) {
        let bytes = cat(&self.records, name, 2000).expect("bytes");
        assert!(
            self.stage.had(name, &bytes),
            "{name}: {} bytes of no version",
            bytes.len()
        );
    }

    fn compare(&self) -> Result<(), String> {
        let (entries, orphans, bytes) = on_disk(&self.disk.scope_dir());
        if !orphans.is_empty() {
            return Err(format!("files that nothing names: {orphans:?}"));
        }
        let (account, there) = (
            self.metrics.cache_disk_bytes.get(),
            bytes + entries * OVERHEAD,
        );
        if account != there {
            return Err(format!(
                "the account says {account} bytes, {entries} entries take {there}"
            ));
        }
        Ok(())
    }

    /// What is kept of a download for who comes back is a temporary file, until it is forgotten.
    fn no_temporary_files(&self) -> Result<(), String> {
        let temporary = self.folder.path().join("kvfs-1/tmp");
        match std::fs::read_dir(temporary).expect("it").count() {
            0 => Ok(()),
            count => Err(format!("{count} temporary files")),
        }
    }

    /// Nobody has anything open any more: compares the accounts with what is there.
    fn assert_accounts(&self) {
        let day = Deadline::after(Duration::from_secs(24 * 3600));
        self.records.finish_writing(day);
        assert_eq!(self.metrics.panics_total.get(), 0);
        eventually(|| self.compare());
        self.records.evict_all();
        self.check("a");
        eventually(|| {
            self.records.finish_writing(day);
            self.records.evict_all();
            let left = (
                self.metrics.cache_memory_bytes.get(),
                self.metrics.cache_disk_bytes.get(),
            );
            match self.disk.spool(CAPACITY - OVERHEAD) {
                Some(spool) if left == (0, 0) => {
                    drop(spool);
                    self.no_temporary_files()
                }
                room => Err(format!(
                    "left in memory and on disk: {left:?}, room: {room:?}"
                )),
            }
        });
    }
}

/// Downloads that nobody uses end by themselves, in a minute. Where deadlines pass at any moment,
/// that takes more than one look.
fn eventually(check: impl Fn() -> Result<(), String>) {
    for look in 1.. {
        thread::sleep(Duration::from_secs(60));
        match check() {
            Ok(()) => return,
            Err(difference) => assert!(look < 50, "{difference}"),
        }
    }
}

/// Returns how many entries there are, the data files of no entry, and the bytes of the others.
fn on_disk(scope: &Path) -> (u64, Vec<String>, u64) {
    let files = || {
        let shards = std::fs::read_dir(scope).expect("the scope").flatten();
        shards
            .filter_map(|shard| std::fs::read_dir(shard.path()).ok())
            .flat_map(|files| files.flatten())
            .map(|file| file.path())
    };
    let named: Vec<String> = files()
        .filter(|path| path.extension().is_some_and(|end| end == "json"))
        .map(|path| {
            let text = std::fs::read_to_string(path).expect("text");
            let meta: serde_json::Value = serde_json::from_str(&text).expect("an entry");
            meta["data"].as_str().expect("a name").to_owned()
        })
        .collect();
    let (mut orphans, mut bytes) = (Vec::new(), 0);
    for path in files().filter(|path| path.extension().is_some_and(|end| end == "data")) {
        let name = path
            .file_name()
            .expect("a name")
            .to_string_lossy()
            .into_owned();
        if named.contains(&name) {
            bytes += path.metadata().expect("a file").len();
        } else {
            orphans.push(name);
        }
    }
    (named.len() as u64, orphans, bytes)
}

#[test]
fn readers_of_one_record_share_it_and_ask_once() {
    explore("one_record", 80, 0, || {
        let begun = now();
        let scene = Scene::new(Duration::from_secs(3600));
        let name = ["a", "b"][thread_rng().gen_range(0..2)];
        thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| scene.check(name));
            }
        });
        assert_eq!(scene.stage.gets(name), 1, "single flight");
        assert_nobody_overslept(begun);
        scene.assert_accounts();
    });
}

#[test]
fn readers_get_one_version_whole_while_another_comes_and_all_is_forgotten() {
    explore("one_version", 80, 0, || {
        let begun = now();
        let scene = Scene::new(Duration::ZERO);
        let (name, len) = [("a", SMALL), ("b", LARGE)][thread_rng().gen_range(0..2)];
        thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    for _ in 0..2 {
                        scene.check(name);
                    }
                });
            }
            scope.spawn(|| {
                thread::sleep(Duration::from_millis(thread_rng().gen_range(0..5)));
                scene.stage.put(name, len);
                scene.records.invalidate(&key(name));
                // Told: nobody may see the version before from now on.
                let seen = cat(&scene.records, name, 2000).expect("bytes");
                assert!(seen == scene.stage.bytes(name), "an old version");
            });
            scope.spawn(|| {
                scene.records.evict(&[key(name)]);
                scene.records.evict_all();
            });
        });
        assert_nobody_overslept(begun);
        scene.assert_accounts();
    });
}

#[test]
fn readers_of_several_records_get_them_whole_while_they_are_evicted() {
    explore("several_records", 80, 0, || {
        let begun = now();
        let scene = Scene::new(Duration::from_millis(5));
        thread::scope(|scope| {
            for names in [["a", "b", "c"], ["b", "a", "e"], ["e", "c", "d"]] {
                let scene = &scene;
                scope.spawn(move || names.into_iter().for_each(|name| scene.check(name)));
            }
            scope.spawn(|| {
                scene.records.evict(&[key("b"), key("c")]);
            });
        });
        assert_nobody_overslept(begun);
        scene.assert_accounts();
    });
}

/// Deadlines pass at any moment: downloads are paused, given up and taken up again.
#[test]
fn readers_get_their_bytes_from_downloads_that_are_given_up_and_taken_up() {
    explore("taken_up", 80, 20, || {
        let scene = Scene::new(Duration::from_secs(1 << 30));
        thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    for at in [0, 4000, 100] {
                        thread::sleep(Duration::from_secs(thread_rng().gen_range(0..6)));
                        let Ok(content) = scene.records.content(&key("b"), far()) else {
                            continue;
                        };
                        let Ok(reader) = content.reader() else {
                            continue;
                        };
                        if let Ok(bytes) = reader.read_at(at, 700, far()) {
                            let all = scene.stage.bytes("b");
                            assert!(bytes == all[at as usize..at as usize + 700], "wrong bytes");
                        }
                    }
                });
            }
        });
        scene.assert_accounts();
    });
}

/// The disk cache by itself: two versions of a record are published, and forgotten meanwhile.
#[test]
fn entries_are_published_replaced_and_removed_at_once_and_the_account_is_right() {
    explore("entries", 160, 0, || {
        let scene = Scene::new(Duration::ZERO);
        let publish = |len: usize| {
            let spool = scene.disk.spool(len as u64).expect("room");
            let bytes = vec![len as u8; len];
            spool.file().write_all_at(&bytes, 0).expect("written");
            let mut sum = Checksum::default();
            sum.update(&bytes);
            let meta = RecordMeta::default();
            let now = SystemTime::UNIX_EPOCH;
            let key = key("a");
            let fresh = Fresh {
                key: &key,
                meta: &meta,
                modified: now,
                read: None,
            };
            spool
                .publish(fresh, len as u64, sum.finish())
                .expect("published");
        };
        thread::scope(|scope| {
            scope.spawn(|| publish(100));
            scope.spawn(|| publish(200));
            scope.spawn(|| scene.disk.remove(&key("a")));
            scope.spawn(|| {
                if let Some(entry) = scene
                    .disk
                    .lookup(&key("a"), std::time::Duration::from_secs(5))
                {
                    let Stored::Memory(bytes) = &entry.stored else {
                        panic!("a small content is read whole")
                    };
                    assert_eq!(bytes[..], vec![entry.size as u8; entry.size as usize][..]);
                }
            });
        });
        assert_eq!(scene.metrics.cache_healed.get(), 0, "broken");
        scene.assert_accounts();
    });
}

fn far() -> kvfs::base::clock::Wait {
    kvfs::base::clock::Wait::Until(Deadline::after(Duration::from_secs(1 << 30)))
}
