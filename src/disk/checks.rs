//! Checks large entries from before the last boot, in the background: a slow disk takes longer for
//! that than a person waits, and the server has the bytes too.

use std::collections::HashSet;
use std::fs::File;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use lru::LruCache;

use super::{DiskTier, EntryMeta, checksum};
use crate::base::sync::{self, Condvar, Mutex};
use crate::base::workers::Workers;
use crate::metrics::Metrics;

/// Entries that wait to be checked.
const QUEUED: usize = 64;
/// Entries remembered that have passed.
const MOST_PASSED: NonZeroUsize = NonZeroUsize::MIN.saturating_add((1 << 16) - 1);

/// The checks of one folder, one at a time.
#[derive(Debug)]
pub(super) struct Checks {
    worker: Arc<Workers>,
    state: Mutex<State>,
    done: Condvar,
}

#[derive(Debug)]
struct State {
    /// Entries being checked, or waiting for it.
    under_way: HashSet<PathBuf>,
    /// Data files that have passed.
    passed: LruCache<String, ()>,
}

impl Checks {
    pub(super) fn new(metrics: Arc<Metrics>) -> Self {
        Self {
            worker: Workers::new("kvfs-check", 1, QUEUED, metrics),
            state: Mutex::new(State {
                under_way: HashSet::new(),
                passed: LruCache::new(MOST_PASSED),
            }),
            done: Condvar::new(),
        }
    }

    /// Returns whether a data file has been checked by this process.
    pub(super) fn has_passed(&self, data: &str) -> bool {
        self.state.lock().passed.get(data).is_some()
    }
}

impl DiskTier {
    /// Checks an entry in the background, and waits a moment for that; returns whether its `.json`
    /// is worth looking at again.
    pub(super) fn check_behind(
        self: &Arc<Self>,
        path: &Path,
        text: Vec<u8>,
        meta: EntryMeta,
        file: File,
        patience: Duration,
    ) -> bool {
        let until = sync::now() + patience;
        let mut state = self.checks.state.lock();
        if state.under_way.insert(path.to_owned()) {
            drop(state);
            let (tier, entry) = (Arc::clone(self), path.to_owned());
            let job = move || {
                let over = Over(&tier, &entry);
                tier.check_now(&entry, &text, &meta, &file);
                drop(over);
            };
            if self.checks.worker.spawn(job).is_err() {
                self.checks.state.lock().under_way.remove(path);
                return false;
            }
            state = self.checks.state.lock();
        }
        while state.under_way.contains(path) {
            if sync::now() >= until {
                tracing::debug!("{} is still being checked", path.display());
                return false;
            }
            self.checks.done.wait_until(&mut state, until);
        }
        drop(state);
        // Gone, if it was broken.
        self.root.join(path).exists()
    }

    fn check_now(&self, path: &Path, text: &[u8], meta: &EntryMeta, file: &File) {
        match checksum(file) {
            Ok(sum) if sum == meta.checksum => {
                self.checks.state.lock().passed.put(meta.data.clone(), ());
                let boot_id = &self.boot_id;
                self.change(path, |now| {
                    let is_it = now.data == meta.data && now.boot_id != *boot_id;
                    is_it.then(|| EntryMeta {
                        boot_id: boot_id.clone(),
                        ..now.clone()
                    })
                });
            }
            Ok(_) => self.remove_broken(&meta.key, path, text, "its checksum does not match"),
            Err(error) => self.remove_broken(&meta.key, path, text, &error.to_string()),
        }
    }
}

/// Ends a check, also one that panics.
struct Over<'a>(&'a DiskTier, &'a Path);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.checks.state.lock().under_way.remove(self.1);
        self.0.checks.done.notify_all();
    }
}
