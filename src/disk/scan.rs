//! Scans the folder: counts it when a mount begins, removes the leftovers of dead processes, and
//! empties it on request.
//!
//! Other processes use the folder meanwhile, and so does this one: an entry that has come or gone
//! since it was found is not counted and not removed.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::account::Victims;
use super::{DiskTier, ENTRY_OVERHEAD, EntryMeta, Filed, millis, now_ms, temp};

/// How often, while the cache is filled once, it is counted what others have added.
const COUNTS: u64 = 10;
/// A data file that no `.json` names may be one that another process is just publishing.
const ORPHAN_AGE: Duration = Duration::from_secs(600);

impl DiskTier {
    /// Counts what is in the folder, oldest use first, and clears what dead processes left.
    pub(super) fn scan(&self) {
        let mut found = Vec::new();
        for scope in folders(&self.root) {
            temp::remove_abandoned(&scope);
            for shard in folders(&scope) {
                self.scan_shard(&shard, &mut found);
            }
        }
        found.sort_by_key(|(used, ..)| *used);
        let (mut evicted, mut replaced) = (self.count_databases(), Vec::new());
        {
            let mut index = self.index.lock();
            for (used, path, data, bytes) in found {
                if let Some(newer) = index.lru.peek(&path) {
                    // Published since it was found.
                    if newer.data != data {
                        replaced.push((path, data));
                    }
                    continue;
                }
                if index.removed.contains(&path) {
                    continue;
                }
                let used = millis(used).map_or(0, |ms| i64::try_from(ms).unwrap_or(0));
                evicted.extend(index.enter(path, Filed { data, used }, bytes));
            }
            index.scanned = true;
            index.removed = HashSet::new();
        }
        self.scanned.notify_all();
        for (path, data) in replaced {
            self.delete_data(&path, &data);
        }
        self.evict(evicted);
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
                        .and_then(|text| EntryMeta::parse(&text).ok())
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

    /// Counts, now and then, what other processes have published in the folder and removed from it:
    /// the capacity is that of the folder. Between two counts each process may add so much.
    pub(super) fn count_others(&self, published: u64) {
        {
            let mut index = self.index.lock();
            index.published = index.published.saturating_add(published);
            let is_due = index.published >= index.lru.capacity() / COUNTS;
            if !is_due || index.counting || !index.scanned {
                return;
            }
            index.counting = true;
            index.published = 0;
        }
        let evicted = self.recount();
        self.index.lock().counting = false;
        self.evict(evicted);
    }

    /// Brings the index up to what is in the folder; returns what must go for it.
    fn recount(&self) -> Victims {
        let known: Vec<PathBuf> = self.index.lock().lru.keys().cloned().collect();
        let mut found = Vec::new();
        for shard in folders(&self.root).iter().flat_map(|scope| folders(scope)) {
            self.find_others(&shard, &mut found);
        }
        // Removed by another process, unless it has been published again since.
        let gone: Vec<PathBuf> = known
            .into_iter()
            .filter(|path| !self.root.join(path).exists())
            .collect();
        let mut evicted = self.count_databases();
        let mut index = self.index.lock();
        for path in gone {
            if !index.busy.contains(&path) {
                index.lru.remove(&path);
            }
        }
        for (path, data, bytes) in found {
            let known = index.lru.peek(&path);
            let is_known = known.is_some_and(|known| known.data == data);
            if is_known || index.busy.contains(&path) {
                continue;
            }
            // What was known under this name was replaced, files and all.
            index.lru.remove(&path);
            let used = now_ms();
            evicted.extend(index.enter(path, Filed { data, used }, bytes));
        }
        evicted
    }

    /// Finds entries of a shard that the index does not know, or knows with other data.
    fn find_others(&self, shard: &Path, found: &mut Vec<(PathBuf, String, u64)>) {
        let (mut named, mut data) = (Vec::new(), HashSet::new());
        for entry in fs::read_dir(shard).into_iter().flatten().flatten() {
            let path = entry.path();
            match path.extension().and_then(|extension| extension.to_str()) {
                Some("data") => {
                    data.insert(entry.file_name());
                }
                Some("json") => named.push(path),
                _ => {}
            }
        }
        for path in named {
            let Ok(relative) = path.strip_prefix(&self.root) else {
                continue;
            };
            let is_known = self
                .index
                .lock()
                .lru
                .peek(&relative.to_owned())
                .is_some_and(|known| data.contains(OsStr::new(&known.data)));
            if is_known {
                continue;
            }
            let meta = fs::read(&path).ok();
            let meta = meta.and_then(|text| EntryMeta::parse(&text).ok());
            if let Some(meta) = meta.filter(|meta| !meta.data.contains('/')) {
                let bytes = meta.content_size.saturating_add(ENTRY_OVERHEAD);
                found.push((relative.to_owned(), meta.data, bytes));
            }
        }
    }

    /// Forgets all entries of this scope; returns how many there were.
    pub fn clear(&self) -> u64 {
        let mut entries = self.rows.count().map_or(0, |(rows, _)| rows);
        self.rows.remove_all();
        self.index.lock().set_database(&self.scope, None);
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
}

pub(super) fn folders(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect()
}
