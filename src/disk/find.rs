//! Finding an entry, and whether it is what it should be.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::entry::{EntryMeta, Fault};
use super::{AT_LEAST, DiskEntry, DiskTier, SMALL, Stored};
use crate::base::sync;
use crate::store::Key;

impl DiskTier {
    /// Finds the entry of `key`; a broken one is removed and is a miss, as is a large one that has
    /// not been checked since the machine was started, if that takes longer than `patience`. Nothing
    /// is found on a disk that hangs for a second longer.
    pub fn lookup(self: &Arc<Self>, key: &Key, patience: Duration) -> Option<DiskEntry> {
        let (tier, key) = (Arc::clone(self), key.clone());
        self.patience
            .wait(patience + AT_LEAST, move || tier.find(&key, patience))?
    }

    pub(super) fn find(self: &Arc<Self>, key: &Key, patience: Duration) -> Option<DiskEntry> {
        if let Some(entry) = self.find_row(key) {
            return Some(entry);
        }
        let path = self.json_path(key);
        sync::point();
        let mut text = fs::read(self.root.join(&path)).ok()?;
        loop {
            let reason = match self.check(key, &path, &text) {
                Ok(entry) => {
                    self.index.lock().used(&path);
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
    pub(super) fn remove_broken(&self, key: &str, path: &Path, text: &[u8], reason: &str) {
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
        let meta = EntryMeta::parse(text)?;
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
        if size <= SMALL {
            let whole = read_whole(&file, size).map_err(|error| error.to_string())?;
            meta.check(&whole)?;
            return Ok(meta.entry(Stored::Memory(whole.into()))?);
        }
        if !self.is_trusted(&meta) {
            return Err(Fault::Unchecked(Box::new((meta, file))));
        }
        Ok(meta.entry(Stored::File(Arc::new(file)))?)
    }

    /// Returns whether an entry's bytes are those that were written: because that was in this boot
    /// of the machine, or was checked since. Where the boot cannot be told, only because it was.
    fn is_trusted(&self, meta: &EntryMeta) -> bool {
        (!self.boot_id.is_empty() && meta.boot_id == self.boot_id)
            || self.checks.has_passed(&meta.data)
    }
}

/// Reads a file of `size` bytes.
fn read_whole(file: &File, size: u64) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; size as usize];
    file.read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}
