//! Whole contents on disk, kept across mounts.
//!
//! Layout under the cache folder, all of it ours, folders 0700 and files 0600:
//!
//! ```text
//! kvfs-1/CACHEDIR.TAG
//! kvfs-1/<scope>/store.txt                             the store's id, for people: see [`usage`]
//! kvfs-1/<scope>/<2 hex>/<hash of key>.json            what the entry is; names its data file
//! kvfs-1/<scope>/<2 hex>/<hash of key>.<random>.data   the content, nothing else
//! kvfs-1/tmp/<pid>-<random>.tmp                        contents on their way, locked while they are
//! ```
//!
//! The scope is a hash of server, store, account and read mode, so that none sees another's
//! bytes (C1). An entry is published by renaming its data file, then its `.json`: what a
//! `.json` names is whole or missing, and missing is a miss (C2, C7). Nothing is fsynced: a large
//! entry written before the last boot of the machine is trusted only after its checksum matched,
//! which is found out in the background (`checks`). Small ones are read whole and always checked.

use std::collections::HashSet;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::base::folders::private_dir;
use crate::base::sync::atomic::{AtomicBool, Ordering};
use crate::base::sync::{self, Condvar, Mutex, thread};
use crate::base::units::MIB;
use crate::disk::lru::LruBytes;
use crate::metrics::Metrics;
use crate::store::{ETag, Encoding, Key, RecordMeta};

mod checks;
mod checksum;
pub mod lru;
mod patience;
mod room;
mod scan;
mod spool;
pub(crate) mod temp;
pub mod usage;

use checks::Checks;
pub use checksum::Checksum;
pub(super) use checksum::checksum;
pub use patience::Patience;
pub use room::Room;
pub use spool::Spool;

/// Our sub-folder; the number is the format's version.
const FOLDER: &str = "kvfs-1";
/// Beside the entries of a scope: the id of its store.
const STORE_FILE: &str = "store.txt";
/// Contents up to this size, in bytes, are read whole when they are looked up.
pub const SMALL: u64 = MIB;
/// What an entry is taken to cost beyond its content: two directory entries, two inodes, a block.
pub(super) const ENTRY_OVERHEAD: u64 = 4096;
/// How long a disk may take for a few small files.
const AT_LEAST: Duration = Duration::from_secs(1);

/// The content cache on disk.
#[derive(Debug)]
pub struct DiskTier {
    root: PathBuf,
    scope: String,
    boot_id: String,
    metrics: Arc<Metrics>,
    index: Mutex<Index>,
    scanned: Condvar,
    /// A thread has finished with the files of an entry.
    free: Condvar,
    checks: Checks,
    patience: Arc<Patience>,
    /// Whether what is published is known to be current although nothing changes any more.
    is_immutable: AtomicBool,
}

#[derive(Debug)]
struct Index {
    /// Path of the `.json` below the root; the value is the data file's name.
    lru: LruBytes<PathBuf, String>,
    scanned: bool,
    /// Entries with files that a thread is changing: one thread at a time, so that files and index
    /// agree.
    busy: HashSet<PathBuf>,
    /// Entries that were removed before the folder had been scanned.
    removed: HashSet<PathBuf>,
    /// Bytes published since others' entries were counted.
    published: u64,
    counting: bool,
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

/// What a `.json` file says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct EntryMeta {
    key: String,
    data: String,
    content_size: u64,
    checksum: String,
    boot_id: String,
    content_type: Option<String>,
    encoding: Option<String>,
    stored_size: Option<u64>,
    etag: Option<String>,
    last_modified: Option<String>,
    accepts_ranges: bool,
    modified_unix_ns: u64,
    /// When the store had it by its own clock, in milliseconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    read_unix_ms: Option<u64>,
    /// Whether it was current when a mount was told that nothing changes any more.
    #[serde(default)]
    immutable: bool,
}

/// An entry found in the cache.
#[derive(Debug)]
pub struct DiskEntry {
    /// What is known of the record.
    pub meta: RecordMeta,
    /// Its content.
    pub file: Arc<File>,
    /// The content's size in bytes.
    pub size: u64,
    /// The content's checksum.
    pub checksum: u128,
    /// The time shown for this version.
    pub modified: SystemTime,
    /// The store had it at that time by the server's clock or later, where that is known.
    pub read: Option<SystemTime>,
    /// Identifies this very entry: the data file's name.
    pub id: String,
    /// Whether it was current when a mount was told that nothing changes any more.
    pub is_marked: bool,
    /// All of a small content.
    pub bytes: Option<Bytes>,
}

/// Why an entry is of no use at the moment.
enum Fault {
    /// It is not what it should be, for this reason.
    Broken(String),
    /// It is not known yet whether it is what it should be.
    Unchecked(Box<(EntryMeta, File)>),
}

impl From<String> for Fault {
    fn from(reason: String) -> Self {
        Self::Broken(reason)
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
        let index = Mutex::new(Index {
            lru: LruBytes::new(capacity),
            scanned: false,
            busy: HashSet::new(),
            removed: HashSet::new(),
            published: 0,
            counting: false,
        });
        let tier = Arc::new(Self {
            root,
            scope,
            boot_id,
            index,
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

    /// Finds the entry of `key`; a broken one is removed and is a miss, as is a large one that has
    /// not been checked since the machine was started, if that takes longer than `patience`. Nothing
    /// is found on a disk that hangs for a second longer.
    pub fn lookup(self: &Arc<Self>, key: &Key, patience: Duration) -> Option<DiskEntry> {
        let (tier, key) = (Arc::clone(self), key.clone());
        self.patience
            .wait(patience + AT_LEAST, move || tier.find(&key, patience))?
    }

    fn find(self: &Arc<Self>, key: &Key, patience: Duration) -> Option<DiskEntry> {
        let path = self.json_path(key);
        sync::point();
        let mut text = fs::read(self.root.join(&path)).ok()?;
        loop {
            let reason = match self.check(key, &path, &text) {
                Ok(entry) => {
                    self.index.lock().lru.get(&path);
                    // The order of use must outlive this process; losing one update is harmless.
                    let _ = File::options()
                        .write(true)
                        .open(self.root.join(&path))
                        .and_then(|json| json.set_modified(SystemTime::now()));
                    return Some(entry);
                }
                Err(Fault::Unchecked(unchecked)) => {
                    let (meta, file) = *unchecked;
                    if !self.check_behind(&path, text.clone(), meta, file, patience) {
                        return None;
                    }
                    continue;
                }
                Err(Fault::Broken(reason)) => reason,
            };
            let now = fs::read(self.root.join(&path)).ok()?;
            if now == text {
                self.remove_broken(key.as_str(), &path, &text, &reason);
                return None;
            }
            // It was replaced between reading what it is and opening it.
            text = now;
        }
    }

    /// Removes an entry that does not check out, unless it has been replaced.
    fn remove_broken(&self, key: &str, path: &Path, text: &[u8], reason: &str) {
        let claim = self.claim(path);
        if !fs::read(self.root.join(path)).is_ok_and(|now| now == text) {
            return;
        }
        tracing::warn!("cache entry of {key} is broken ({reason}); fetching it again");
        self.metrics.cache_healed.one();
        self.remove_claimed(path);
        drop(claim);
        self.gauge();
    }

    fn check(&self, key: &Key, path: &Path, text: &[u8]) -> Result<DiskEntry, Fault> {
        let meta: EntryMeta = serde_json::from_slice(text).map_err(|error| error.to_string())?;
        if meta.key != key.as_str() || meta.data.contains('/') {
            return Err("it belongs to another key".to_owned().into());
        }
        let data = self.root.join(path).with_file_name(&meta.data);
        sync::point();
        let file = File::open(&data).map_err(|error| error.to_string())?;
        let found = file.metadata().map_err(|error| error.to_string())?;
        if !found.is_file() {
            return Err("its data is no file".to_owned().into());
        }
        let size = found.len();
        if size != meta.content_size {
            return Err(format!("{size} bytes instead of {}", meta.content_size).into());
        }
        let mut bytes = None;
        if size <= SMALL {
            let whole = read_whole(&file, size).map_err(|error| error.to_string())?;
            let mut sum = Checksum::default();
            sum.update(&whole);
            if sum.finish() != meta.checksum {
                return Err("its checksum does not match".to_owned().into());
            }
            bytes = Some(whole.into());
        } else if !self.is_trusted(&meta) {
            return Err(Fault::Unchecked(Box::new((meta, file))));
        }
        Ok(DiskEntry {
            size,
            modified: SystemTime::UNIX_EPOCH + Duration::from_nanos(meta.modified_unix_ns),
            read: meta
                .read_unix_ms
                .map(|ms| SystemTime::UNIX_EPOCH + Duration::from_millis(ms)),
            id: meta.data.clone(),
            is_marked: meta.immutable,
            checksum: u128::from_str_radix(&meta.checksum, 16)
                .map_err(|error| format!("its checksum is none: {error}"))?,
            bytes,
            meta: meta.record(),
            file: Arc::new(file),
        })
    }

    /// Returns whether an entry's bytes are those that were written: because that was in this boot
    /// of the machine, or was checked since. Where the boot cannot be told, only because it was.
    fn is_trusted(&self, meta: &EntryMeta) -> bool {
        (!self.boot_id.is_empty() && meta.boot_id == self.boot_id)
            || self.checks.has_passed(&meta.data)
    }

    /// Notes that the entry of `key`, if it is of that version, is current although nothing changes
    /// any more.
    pub fn mark(&self, key: &Key, version: &RecordMeta) {
        let path = self.json_path(key);
        self.change(&path, |meta| {
            let is_it = meta.key == key.as_str() && meta.record() == *version;
            (is_it && !meta.immutable).then(|| EntryMeta {
                immutable: true,
                ..meta.clone()
            })
        });
    }

    /// Notes that the entry of `key`, if it is the one that the store had at `was_read`, is what the
    /// store had at `read`, too.
    pub fn confirm(&self, key: &Key, was_read: SystemTime, read: SystemTime) {
        let path = self.json_path(key);
        self.change(&path, |meta| {
            let is_it = meta.key == key.as_str() && meta.read_unix_ms <= millis(was_read);
            let later = millis(read).filter(|later| Some(*later) > meta.read_unix_ms);
            Some(EntryMeta {
                read_unix_ms: Some(later.filter(|_| is_it)?),
                ..meta.clone()
            })
        });
    }

    /// Returns what the entry of `key` says of the record, and when the store had it.
    pub fn describe(&self, key: &Key) -> Option<(RecordMeta, Option<SystemTime>)> {
        let text = fs::read(self.root.join(self.json_path(key))).ok()?;
        let meta: EntryMeta = serde_json::from_slice(&text).ok()?;
        let read = meta
            .read_unix_ms
            .map(|ms| SystemTime::UNIX_EPOCH + Duration::from_millis(ms));
        (meta.key == key.as_str()).then(|| (meta.record(), read))
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
            .and_then(|text| serde_json::from_slice(&text).ok())
            .and_then(|meta| change(&meta));
        if let Some(meta) = changed
            && let Err(error) = self.write_json(path, &meta)
        {
            tracing::debug!("cannot change {}: {error}", path.display());
        }
    }

    /// Forgets the entry of `key`.
    pub fn remove(&self, key: &Key) {
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
            index.lru.remove(&path.to_owned())
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
        let meta: EntryMeta = serde_json::from_slice(&text).ok()?;
        Some(meta.data).filter(|data| !data.contains('/'))
    }

    /// Returns the most bytes that the cache holds, all stores together.
    pub fn capacity(&self) -> u64 {
        self.index.lock().lru.capacity()
    }

    /// Returns whether there is an entry of `key`; it may still turn out to be broken.
    pub fn contains(&self, key: &Key) -> bool {
        self.root.join(self.json_path(key)).exists()
    }

    fn write_json(&self, path: &Path, meta: &EntryMeta) -> io::Result<()> {
        let mut temp = self.temp()?;
        temp.write_all(&serde_json::to_vec(meta)?)?;
        temp.persist(self.root.join(path))
            .map_err(|error| error.error)?;
        Ok(())
    }

    fn delete_victims(&self, victims: Vec<(PathBuf, String)>) {
        for (path, data) in victims {
            let _claim = self.claim(&path);
            // It may have been published again since it was chosen.
            if self.index.lock().lru.get(&path).is_none() {
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
            .set(self.index.lock().lru.used());
    }
}

impl EntryMeta {
    /// Returns what is known of the record.
    fn record(&self) -> RecordMeta {
        RecordMeta {
            content_type: self.content_type.as_deref().map(Into::into),
            encoding: Encoding::from_header(self.encoding.as_deref()),
            stored_size: self.stored_size,
            etag: self.etag.as_deref().map(ETag::new),
            last_modified: self.last_modified.as_deref().map(Into::into),
            accepts_ranges: self.accepts_ranges,
        }
    }
}

/// Reads a file of `size` bytes.
fn read_whole(file: &File, size: u64) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; size as usize];
    file.read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}

/// Returns a time as it is kept.
fn millis(at: SystemTime) -> Option<u64> {
    let since = at.duration_since(SystemTime::UNIX_EPOCH).ok()?;
    u64::try_from(since.as_millis()).ok()
}

/// Returns a name for files that belong to `text`.
pub(crate) fn hash(text: &str) -> String {
    let mut hex = String::with_capacity(40);
    for byte in &Sha256::digest(text.as_bytes())[..20] {
        let _ = write!(hex, "{byte:02x}");
    }
    hex
}
