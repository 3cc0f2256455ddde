//! What lies in the folder: counted when a mount begins, cleared of what dead processes left, and
//! emptied when somebody asks for it.
//!
//! Other processes use the folder meanwhile, and so does this one: an entry that has come or gone
//! since it was found is not counted and not removed.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::{DiskTier, ENTRY_OVERHEAD, EntryMeta, temp};

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
}

fn folders(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect()
}
