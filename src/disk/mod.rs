//! Whole contents on disk, kept across mounts.
//!
//! Layout under the cache folder, all of it ours, folders 0700 and files 0600:
//!
//! ```text
//! kvfs-1/CACHEDIR.TAG
//! kvfs-1/<scope>/store.txt                             the store's id, for people: see [`usage`]
//! kvfs-1/<scope>/small/contents.sqlite                 contents up to 4 KiB, and what they are
//! kvfs-1/<scope>/<2 hex>/<hash of key>.json            what a larger one is; names its data file
//! kvfs-1/<scope>/<2 hex>/<hash of key>.<random>.data   the content, nothing else
//! kvfs-1/tmp/<pid>-<random>.tmp                        contents on their way, locked while they are
//! ```
//!
//! The scope is a hash of server, store, account and read mode, so that none sees another's
//! bytes (C1). Small contents are rows of a database (`database`), as two files each would cost five
//! times their size. Another entry is published by renaming its data file, then its `.json`: what a
//! `.json` names is whole or missing, and missing is a miss (C2, C7). Nothing is fsynced: a large
//! entry written before the last boot of the machine is trusted only after its checksum matched,
//! which is found out in the background (`checks`). What is read whole is always checked: rows, and
//! files up to 1 MiB. A small content may be in files all the same: where the cache is small, where
//! the database is locked for long, and from earlier versions.

use std::fmt::Write as _;
use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use sha2::{Digest, Sha256};

use crate::base::folders::private_dir;
use crate::base::sync::atomic::{AtomicBool, Ordering};
use crate::base::sync::{self, Condvar, Mutex, thread};
use crate::base::units::MIB;
use crate::metrics::Metrics;
use crate::store::{Key, RecordMeta};

mod account;
mod checks;
mod checksum;
mod database;
mod entry;
mod find;
pub mod lru;
mod patience;
mod room;
mod rows;
mod scan;
mod spool;
pub(crate) mod temp;
#[cfg(all(test, not(feature = "shuttle")))]
mod tests;
pub mod usage;

use account::{Filed, Index};
use checks::Checks;
pub use checksum::Checksum;
pub(super) use checksum::{checksum, seal};
use database::Database;
pub use entry::{DiskEntry, Fresh, Stored};
use entry::{EntryMeta, millis};
pub use patience::Patience;
pub use room::Room;
use rows::now_ms;
pub use spool::Spool;

/// Our sub-folder; the number is the format's version.
const FOLDER: &str = "kvfs-1";
/// Beside the entries of a scope: the id of its store.
const STORE_FILE: &str = "store.txt";
/// Contents up to this size, in bytes, are read whole when they are looked up.
pub const SMALL: u64 = MIB;
/// What an entry is taken to cost beyond its content: two directory entries, two inodes, a block.
const ENTRY_OVERHEAD: u64 = 4096;
/// How long a disk may take for a few small files.
const AT_LEAST: Duration = Duration::from_secs(1);

/// The content cache on disk.
#[derive(Debug)]
pub struct DiskTier {
    root: PathBuf,
    scope: String,
    boot_id: String,
    metrics: Arc<Metrics>,
    /// The scope's small contents.
    rows: Arc<Database>,
    index: Mutex<Index>,
    scanned: Condvar,
    /// A thread has finished with the files of an entry.
    free: Condvar,
    checks: Checks,
    patience: Arc<Patience>,
    /// Whether what is published is known to be current although nothing changes any more.
    is_immutable: AtomicBool,
}

/// The right to change the files of one entry. No thread holds two.
struct Claim<'a> {
    tier: &'a DiskTier,
    path: &'a Path,
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        self.tier.index.lock().busy.remove(self.path);
        self.tier.free.notify_all();
    }
}

impl DiskTier {
    /// Opens the cache folder for one scope and starts counting what is in it.
    ///
    /// # Errors
    /// When the folder cannot be made, is a symlink, or belongs to another user.
    pub fn open(
        dir: &Path,
        capacity: u64,
        scope: &str,
        metrics: Arc<Metrics>,
    ) -> io::Result<Arc<Self>> {
        let root = dir.join(FOLDER);
        private_dir(dir)?;
        private_dir(&root)?;
        private_dir(&root.join("tmp"))?;
        let tag = root.join("CACHEDIR.TAG");
        if !tag.exists() {
            fs::write(
                tag,
                "Signature: 8a477f597d28d172789f06886806bc55\n# This folder is a cache of kvfs.\n",
            )?;
        }
        let scope = hash(scope);
        private_dir(&root.join(&scope))?;
        let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id")
            .unwrap_or_default()
            .trim()
            .to_owned();
        let trash = root.join("tmp");
        let rows = Database::of(&root.join(&scope), trash, Arc::clone(&metrics), true);
        let tier = Arc::new(Self {
            root,
            scope,
            boot_id,
            rows,
            index: Mutex::new(Index::new(capacity)),
            scanned: Condvar::new(),
            free: Condvar::new(),
            checks: Checks::new(Arc::clone(&metrics)),
            patience: Arc::new(Patience::new(Arc::clone(&metrics))),
            is_immutable: AtomicBool::new(false),
            metrics,
        });
        let scanner = Arc::clone(&tier);
        thread::Builder::new()
            .name("kvfs-scan".into())
            .spawn(move || scanner.scan())?;
        Ok(tier)
    }

    /// Returns the folder of this scope, for other files that belong to the store.
    pub fn scope_dir(&self) -> PathBuf {
        self.root.join(&self.scope)
    }

    fn json_path(&self, key: &Key) -> PathBuf {
        let hash = hash(key.as_str());
        Path::new(&self.scope)
            .join(&hash[..2])
            .join(format!("{hash}.json"))
    }

    /// Waits for the right to change an entry's files, as long as the disk needs for another's
    /// change.
    fn claim<'a>(&'a self, path: &'a Path) -> Claim<'a> {
        let mut index = self.index.lock();
        while index.busy.contains(path) {
            self.free.wait(&mut index);
        }
        index.busy.insert(path.to_owned());
        Claim { tier: self, path }
    }

    /// From now on, marks what is published as current although nothing changes any more.
    pub fn set_immutable(&self) {
        self.is_immutable.store(true, Ordering::Relaxed);
    }

    /// Returns the waiter for this disk, for callers with another way where it hangs.
    pub fn patience(&self) -> &Arc<Patience> {
        &self.patience
    }

    /// Notes that the entry of `key`, if it is of that version, is current although nothing changes
    /// any more.
    pub fn mark(&self, key: &Key, version: &RecordMeta) {
        let marked = |meta: &EntryMeta| {
            let is_it = meta.key == key.as_str() && meta.record() == *version;
            (is_it && !meta.immutable).then(|| EntryMeta {
                immutable: true,
                ..meta.clone()
            })
        };
        self.change_of(key, marked);
    }

    /// Notes that the entry of `key`, if it is the one that the store had at `was_read`, is what the
    /// store had at `read`, too.
    pub fn confirm(&self, key: &Key, was_read: SystemTime, read: SystemTime) {
        self.change_of(key, |meta| {
            let is_it = meta.key == key.as_str() && meta.read_unix_ms <= millis(was_read);
            let later = millis(read).filter(|later| Some(*later) > meta.read_unix_ms);
            Some(EntryMeta {
                read_unix_ms: Some(later.filter(|_| is_it)?),
                ..meta.clone()
            })
        });
    }

    fn change_of(&self, key: &Key, change: impl Fn(&EntryMeta) -> Option<EntryMeta>) {
        if !self.change_row(key, &change) {
            self.change(&self.json_path(key), change);
        }
    }

    /// Returns what the entry of `key` says of the record, and when the store had it.
    pub fn describe(&self, key: &Key) -> Option<(RecordMeta, Option<SystemTime>)> {
        let meta = self.row_meta(key).or_else(|| {
            let text = fs::read(self.root.join(self.json_path(key))).ok()?;
            EntryMeta::parse(&text).ok()
        })?;
        (meta.key == key.as_str()).then(|| (meta.record(), meta.read()))
    }

    /// Returns the folder of all scopes.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Rewrites an entry's `.json`, where `change` has something to change.
    fn change(&self, path: &Path, change: impl FnOnce(&EntryMeta) -> Option<EntryMeta>) {
        let _claim = self.claim(path);
        let changed = fs::read(self.root.join(path))
            .ok()
            .and_then(|text| EntryMeta::parse(&text).ok())
            .and_then(|meta| change(&meta));
        if let Some(meta) = changed
            && let Err(error) = self.write_json(path, &meta)
        {
            tracing::debug!("cannot change {}: {error}", path.display());
        }
    }

    /// Forgets the entry of `key`.
    pub fn remove(&self, key: &Key) {
        self.rows.remove(&key_hash(key.as_str()), None);
        let path = self.json_path(key);
        let claim = self.claim(&path);
        self.remove_claimed(&path);
        drop(claim);
        self.gauge();
    }

    fn remove_claimed(&self, path: &Path) {
        let mut data = {
            let mut index = self.index.lock();
            if !index.scanned {
                index.removed.insert(path.to_owned());
            }
            let filed = index.lru.remove(&path.to_owned());
            filed.map(|filed| filed.data)
        };
        if data.is_none() {
            // Not counted yet, or another process's.
            data = self.data_of(path);
        }
        self.delete_files(path, data.as_deref());
    }

    /// Returns the name of an entry's data file.
    fn data_of(&self, path: &Path) -> Option<String> {
        let text = fs::read(self.root.join(path)).ok()?;
        let meta = EntryMeta::parse(&text).ok()?;
        Some(meta.data).filter(|data| !data.contains('/'))
    }

    /// Returns the most bytes that the cache holds, all stores together.
    pub fn capacity(&self) -> u64 {
        self.index.lock().lru.capacity()
    }

    /// Returns whether there is an entry of `key`; it may still turn out to be broken.
    pub fn contains(&self, key: &Key) -> bool {
        self.root.join(self.json_path(key)).exists()
            || self.rows.about(&key_hash(key.as_str())).is_some()
    }

    fn write_json(&self, path: &Path, meta: &EntryMeta) -> io::Result<()> {
        let mut temp = self.temp()?;
        temp.write_all(&meta.write().map_err(io::Error::other)?)?;
        temp.persist(self.root.join(path))
            .map_err(|error| error.error)?;
        Ok(())
    }

    fn delete_victims(&self, victims: Vec<(PathBuf, String)>) {
        for (path, data) in victims {
            let _claim = self.claim(&path);
            // It may have been published again since it was chosen.
            if self.index.lock().lru.peek(&path).is_none() {
                self.delete_files(&path, Some(&data));
            } else {
                self.delete_data(&path, &data);
            }
        }
        self.gauge();
    }

    /// Removes files; already gone is fine. An open handle keeps its descriptor (C6).
    fn delete_files(&self, json: &Path, data: Option<&str>) {
        sync::point();
        let _ = fs::remove_file(self.root.join(json));
        if let Some(data) = data {
            self.delete_data(json, data);
        }
    }

    fn delete_data(&self, json: &Path, data: &str) {
        sync::point();
        let _ = fs::remove_file(self.root.join(json).with_file_name(data));
    }

    fn gauge(&self) {
        self.metrics
            .cache_disk_bytes
            .set(self.index.lock().used_bytes());
    }
}

/// Returns a name for files that belong to `text`.
pub(crate) fn hash(text: &str) -> String {
    let mut hex = String::with_capacity(40);
    for byte in key_hash(text) {
        let _ = write!(hex, "{byte:02x}");
    }
    hex
}

/// The same, as bytes.
fn key_hash(text: &str) -> [u8; 20] {
    let mut hash = [0; 20];
    hash.copy_from_slice(&Sha256::digest(text.as_bytes())[..20]);
    hash
}
