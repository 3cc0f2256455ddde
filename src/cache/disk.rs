//! Whole contents on disk, kept across mounts.
//!
//! Layout under the cache folder, all of it ours, folders 0700 and files 0600:
//!
//! ```text
//! kvfs-1/CACHEDIR.TAG
//! kvfs-1/<scope>/<2 hex>/<hash of key>.json            what the entry is; names its data file
//! kvfs-1/<scope>/<2 hex>/<hash of key>.<random>.data   the content, nothing else
//! kvfs-1/tmp/<pid>-<random>                            contents on their way, locked while they are
//! ```
//!
//! The scope is a hash of server, store, account and read mode, so that none sees another's
//! bytes (C1). An entry is published by renaming its data file, then its `.json`: what a
//! `.json` names is whole or missing, and missing is a miss (C2, C7). Nothing is fsynced: an
//! entry written before the last boot of the machine is trusted only after its checksum matched.

use std::collections::HashSet;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tempfile::NamedTempFile;
use xxhash_rust::xxh3::Xxh3;

use super::lru::LruBytes;
use crate::folders::private_dir;
use crate::metrics::Metrics;
use crate::store::{ETag, Encoding, Key, RecordMeta};
use crate::sync::{self, Condvar, Mutex, thread};

/// Our sub-folder; the number is the format's version.
const FOLDER: &str = "kvfs-1";
/// What an entry is taken to cost beyond its content: two directory entries, two inodes, a block.
pub(super) const ENTRY_OVERHEAD: u64 = 4096;
/// A data file that no `.json` names may be one that another process is just publishing.
const ORPHAN_AGE: Duration = Duration::from_secs(600);

/// The content cache on disk.
#[derive(Debug)]
pub struct DiskTier {
    root: PathBuf,
    scope: String,
    boot_id: String,
    metrics: Arc<Metrics>,
    index: Mutex<Index>,
    scanned: Condvar,
    /// Somebody has finished with the files of an entry.
    free: Condvar,
}

#[derive(Debug)]
struct Index {
    /// Path of the `.json` below the root; the value is the data file's name.
    lru: LruBytes<PathBuf, String>,
    scanned: bool,
    /// Entries whose files somebody is changing: one at a time, so that files and index agree.
    busy: HashSet<PathBuf>,
    /// Entries that were removed before the folder had been scanned.
    removed: HashSet<PathBuf>,
}

/// The right to change the files of one entry. Nobody holds two.
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
    /// The time shown for this version.
    pub modified: SystemTime,
    /// Identifies this very entry: the data file's name.
    pub id: String,
}

impl DiskTier {
    /// Opens the cache folder for one scope and starts counting what is in it.
    ///
    /// # Errors
    /// When the folder cannot be made, is a symlink, or belongs to somebody else.
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
        });
        let tier = Arc::new(Self {
            root,
            scope,
            boot_id,
            metrics,
            index,
            scanned: Condvar::new(),
            free: Condvar::new(),
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

    /// Finds the entry of `key`; a broken one is removed and is a miss.
    pub fn lookup(&self, key: &Key) -> Option<DiskEntry> {
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
                Err(reason) => reason,
            };
            let claim = self.claim(&path);
            let now = fs::read(self.root.join(&path)).ok()?;
            if now == text {
                tracing::warn!("cache entry of {key} is broken ({reason}); fetching it again");
                self.metrics.cache_healed.one();
                self.remove_claimed(&path);
                drop(claim);
                self.gauge();
                return None;
            }
            // It was replaced between reading what it is and opening it.
            text = now;
        }
    }

    fn check(&self, key: &Key, path: &Path, text: &[u8]) -> Result<DiskEntry, String> {
        let meta: EntryMeta = serde_json::from_slice(text).map_err(|error| error.to_string())?;
        if meta.key != key.as_str() || meta.data.contains('/') {
            return Err("it belongs to another key".into());
        }
        let data = self.root.join(path).with_file_name(&meta.data);
        sync::point();
        let file = File::open(&data).map_err(|error| error.to_string())?;
        let size = file.metadata().map_err(|error| error.to_string())?.len();
        if size != meta.content_size {
            return Err(format!("{size} bytes instead of {}", meta.content_size));
        }
        if meta.boot_id != self.boot_id {
            if checksum(&file).map_err(|error| error.to_string())? != meta.checksum {
                return Err("its checksum does not match".into());
            }
            self.trust(path, text, &meta);
        }
        Ok(DiskEntry {
            size,
            modified: SystemTime::UNIX_EPOCH + Duration::from_nanos(meta.modified_unix_ns),
            id: meta.data.clone(),
            meta: RecordMeta {
                content_type: meta.content_type.map(Into::into),
                encoding: Encoding::from_header(meta.encoding.as_deref()),
                stored_size: meta.stored_size,
                etag: meta.etag.map(ETag::new),
                last_modified: meta.last_modified.map(Into::into),
                accepts_ranges: meta.accepts_ranges,
            },
            file: Arc::new(file),
        })
    }

    /// Notes that the checksum matched since this boot.
    fn trust(&self, path: &Path, text: &[u8], meta: &EntryMeta) {
        let _claim = self.claim(path);
        if !fs::read(self.root.join(path)).is_ok_and(|now| now == text) {
            return;
        }
        let checked = EntryMeta {
            boot_id: self.boot_id.clone(),
            ..meta.clone()
        };
        if let Err(error) = self.write_json(path, &checked) {
            tracing::debug!("cannot note that {} was checked: {error}", path.display());
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

    /// Tells whether there is an entry of `key`; it may still turn out to be broken.
    pub fn contains(&self, key: &Key) -> bool {
        self.root.join(self.json_path(key)).exists()
    }

    /// Forgets all entries of this scope; returns how many there were.
    pub fn clear(&self) -> u64 {
        let mut entries = 0;
        for shard in folders(&self.scope_dir()) {
            for entry in fs::read_dir(shard).into_iter().flatten().flatten() {
                let path = entry.path();
                if path.extension().is_none_or(|extension| extension != "json") {
                    continue;
                }
                let Ok(relative) = path.strip_prefix(&self.root) else {
                    continue;
                };
                let _claim = self.claim(relative);
                self.remove_claimed(relative);
                entries += 1;
            }
        }
        self.gauge();
        entries
    }

    /// Starts an entry of `bytes` content bytes; `None` when there is no room or no disk.
    ///
    /// Waits for the first scan of the folder, at most a few seconds.
    pub fn spool(self: &Arc<Self>, bytes: u64) -> Option<Spool> {
        let bytes = bytes.checked_add(ENTRY_OVERHEAD)?;
        let victims = {
            let mut index = self.index.lock();
            if !index.scanned {
                self.scanned.wait_for(&mut index, Duration::from_secs(5));
            }
            index.lru.reserve(bytes)?
        };
        self.delete_victims(victims);
        let temp = self
            .temp()
            .and_then(|temp| Ok((Arc::new(temp.as_file().try_clone()?), temp)));
        match temp {
            Ok((file, temp)) => Some(Spool {
                tier: Arc::clone(self),
                temp: Some(temp),
                file,
                reserved: bytes,
            }),
            Err(error) => {
                tracing::warn!(
                    "cannot write to the cache folder {}: {error}; reading goes on without it",
                    self.root.display()
                );
                self.index.lock().lru.unreserve(bytes);
                None
            }
        }
    }

    /// Makes a file for something on its way, locked for as long as anybody here has it open.
    fn temp(&self) -> io::Result<NamedTempFile> {
        let folder = self.root.join("tmp");
        let prefix = format!("{}-", std::process::id());
        let make = || {
            tempfile::Builder::new()
                .prefix(&prefix)
                .tempfile_in(&folder)
        };
        let temp = make().or_else(|error| {
            if error.kind() != io::ErrorKind::NotFound {
                return Err(error);
            }
            // Somebody has removed the cache folder, as people do to free space.
            private_dir(&self.root)?;
            private_dir(&self.root.join(&self.scope))?;
            private_dir(&folder)?;
            make()
        })?;
        rustix::fs::flock(temp.as_file(), FlockOperation::NonBlockingLockExclusive)?;
        Ok(temp)
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
            // It may have been published anew since it was chosen.
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

    /// Counts what is in the folder, oldest use first, and clears what dead processes left.
    fn scan(&self) {
        let mut found = Vec::new();
        for scope in folders(&self.root) {
            for shard in folders(&scope) {
                self.scan_shard(&shard, &mut found);
            }
        }
        self.clear_temp();
        found.sort_by_key(|(used, ..)| *used);
        let (mut evicted, mut replaced) = (Vec::new(), Vec::new());
        {
            let mut index = self.index.lock();
            for (_, path, data, bytes) in found {
                if let Some(newer) = index.lru.get(&path) {
                    // Published since it was found.
                    if *newer != data {
                        replaced.push((path, data));
                    }
                    continue;
                }
                if index.removed.contains(&path) {
                    continue;
                }
                match index.lru.insert(path.clone(), data.clone(), bytes) {
                    Some(victims) => evicted.extend(victims),
                    None => evicted.push((path, data)),
                }
            }
            index.scanned = true;
            index.removed = HashSet::new();
        }
        self.scanned.notify_all();
        for (path, data) in replaced {
            self.delete_data(&path, &data);
        }
        self.delete_victims(evicted);
    }

    fn scan_shard(&self, shard: &Path, found: &mut Vec<(SystemTime, PathBuf, String, u64)>) {
        let mut named = Vec::new();
        let mut data = Vec::new();
        for entry in fs::read_dir(shard).into_iter().flatten().flatten() {
            let path = entry.path();
            match path.extension().and_then(|extension| extension.to_str()) {
                Some("data") => data.push(path),
                Some("json") => {
                    let meta = fs::read(&path)
                        .ok()
                        .and_then(|text| serde_json::from_slice::<EntryMeta>(&text).ok())
                        .filter(|meta| !meta.data.contains('/'));
                    let used = entry
                        .metadata()
                        .and_then(|metadata| metadata.modified())
                        .unwrap_or(SystemTime::UNIX_EPOCH);
                    match (meta, path.strip_prefix(&self.root)) {
                        (Some(meta), Ok(relative)) => {
                            named.push(meta.data.clone());
                            found.push((
                                used,
                                relative.to_owned(),
                                meta.data,
                                meta.content_size.saturating_add(ENTRY_OVERHEAD),
                            ));
                        }
                        _ => {
                            self.metrics.cache_healed.one();
                            let _ = fs::remove_file(&path);
                        }
                    }
                }
                _ => {}
            }
        }
        for path in data {
            let name = path
                .file_name()
                .and_then(|name| name.to_str())
                .unwrap_or_default();
            let old = path
                .metadata()
                .and_then(|metadata| metadata.modified())
                .is_ok_and(|at| at.elapsed().is_ok_and(|age| age > ORPHAN_AGE));
            if old && !named.iter().any(|known| known == name) {
                let _ = fs::remove_file(&path);
            }
        }
    }

    /// Removes what dead processes left: the living hold locks, whichever pids they have where
    /// they run. One that has not come to locking a new file yet loses it, and caches less.
    fn clear_temp(&self) {
        for entry in fs::read_dir(self.root.join("tmp"))
            .into_iter()
            .flatten()
            .flatten()
        {
            let is_free = File::open(entry.path()).is_ok_and(|file| {
                rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared).is_ok()
            });
            if is_free {
                let _ = fs::remove_file(entry.path());
            }
        }
    }
}

/// Room in the disk cache and a file for a content on its way. Dropping it gives both back.
#[derive(Debug)]
pub struct Spool {
    tier: Arc<DiskTier>,
    temp: Option<NamedTempFile>,
    file: Arc<File>,
    reserved: u64,
}

impl Spool {
    /// Returns the file; it stays readable after publishing and after eviction.
    pub fn file(&self) -> &Arc<File> {
        &self.file
    }

    /// Sets more room aside, so that `bytes` of content fit; `false` when there is none.
    pub fn grow(&mut self, bytes: u64) -> bool {
        let Some(more) = (bytes + ENTRY_OVERHEAD)
            .checked_sub(self.reserved)
            .filter(|more| *more > 0)
        else {
            return true;
        };
        let Some(victims) = self.tier.index.lock().lru.reserve(more) else {
            return false;
        };
        self.tier.delete_victims(victims);
        self.reserved += more;
        true
    }

    /// Makes the content, `size` bytes with that checksum, an entry; returns its id.
    ///
    /// # Errors
    /// When the disk refuses; the content is then not cached.
    pub fn publish(
        mut self,
        key: &Key,
        meta: &RecordMeta,
        size: u64,
        checksum: String,
        modified: SystemTime,
    ) -> io::Result<String> {
        let tier = Arc::clone(&self.tier);
        let path = tier.json_path(key);
        let shard = tier
            .root
            .join(&path)
            .parent()
            .map(Path::to_owned)
            .unwrap_or_default();
        private_dir(&shard)?;
        let id = format!("{}.{:016x}.data", hash(key.as_str()), fastrand::u64(..));
        let entry = EntryMeta {
            key: key.as_str().into(),
            data: id.clone(),
            content_size: size,
            checksum,
            boot_id: tier.boot_id.clone(),
            content_type: meta.content_type.as_deref().map(Into::into),
            encoding: meta.encoding.header_value().map(Into::into),
            stored_size: meta.stored_size,
            etag: meta.etag.as_ref().map(|etag| etag.as_str().into()),
            last_modified: meta.last_modified.as_deref().map(Into::into),
            accepts_ranges: meta.accepts_ranges,
            modified_unix_ns: modified
                .duration_since(SystemTime::UNIX_EPOCH)
                .map_or(0, |since| u64::try_from(since.as_nanos()).unwrap_or(0)),
        };
        let Some(temp) = self.temp.take() else {
            return Err(io::Error::other("published twice"));
        };
        let claim = tier.claim(&path);
        sync::point();
        temp.persist(shard.join(&id)).map_err(|error| error.error)?;
        sync::point();
        if let Err(error) = tier.write_json(&path, &entry) {
            let _ = fs::remove_file(shard.join(&id));
            return Err(error);
        }
        let victims = {
            let mut index = tier.index.lock();
            index.lru.unreserve(std::mem::take(&mut self.reserved));
            index
                .lru
                .insert(path.clone(), id.clone(), size + ENTRY_OVERHEAD)
        };
        let (replaced, victims): (Vec<_>, Vec<_>) = victims
            .unwrap_or_default()
            .into_iter()
            .partition(|(victim, _)| *victim == path);
        for (_, data) in replaced {
            // Its `.json` is already the new one; a scan may have come upon that before.
            if data != id {
                tier.delete_data(&path, &data);
            }
        }
        drop(claim);
        tier.delete_victims(victims);
        Ok(id)
    }
}

impl Drop for Spool {
    fn drop(&mut self) {
        if self.reserved > 0 {
            self.tier.index.lock().lru.unreserve(self.reserved);
        }
    }
}

/// The checksum of contents: xxh3-128, in hex. It finds damage, not malice.
#[derive(Default)]
pub struct Checksum(Xxh3);

impl std::fmt::Debug for Checksum {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Checksum")
    }
}

impl Checksum {
    /// Adds the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// Returns the checksum of all bytes so far.
    pub fn finish(&self) -> String {
        format!("{:032x}", self.0.digest128())
    }
}

/// Returns the checksum of a whole file.
pub(super) fn checksum(file: &File) -> io::Result<String> {
    let mut sum = Checksum::default();
    let mut buffer = vec![0; 256 << 10];
    let mut at = 0;
    loop {
        match file.read_at(&mut buffer, at)? {
            0 => return Ok(sum.finish()),
            n => {
                sum.update(&buffer[..n]);
                at += n as u64;
            }
        }
    }
}

fn folders(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect()
}

fn hash(text: &str) -> String {
    let mut hex = String::with_capacity(40);
    for byte in &Sha256::digest(text.as_bytes())[..20] {
        let _ = write!(hex, "{byte:02x}");
    }
    hex
}
