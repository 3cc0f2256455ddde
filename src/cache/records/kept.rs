//! Cached contents: memory tier, disk tier, and paused downloads that a later open can resume.

use std::collections::VecDeque;
use std::sync::Arc;

use super::Records;
use super::known::{Known, Peek, Slot, SlotState};
use crate::base::clock::Deadline;
use crate::base::sync::Mutex;
use crate::cache::content::{Content, Data, Kept, VersionId};
use crate::disk::{DiskEntry, DiskTier, Fresh, Patience, SMALL, Spool, Stored};
use crate::store::Key;

/// The largest record that is read into memory whole when there is a disk cache for larger ones.
const MEMORY_RECORD: u64 = SMALL;
/// Contents kept a moment longer than the memory cache would, so that a lookup's bytes are still
/// there for the open that follows it.
const RECENT: usize = 8;
/// What a content in memory costs beyond its bytes: what is known of it, its place and blocks of the
/// allocator.
pub(in crate::cache) const MEMORY_OVERHEAD: u64 = 512;
/// Unused downloads, kept for a later open.
const MOST_PAUSED: usize = 4;

impl Records {
    pub(in crate::cache) fn memory_record_max(&self) -> u64 {
        if self.disk.is_some() {
            MEMORY_RECORD
        } else {
            MEMORY_RECORD.max(self.config.memory_capacity / 4)
        }
    }

    /// Returns whether an open of this record would be answered from memory.
    pub fn is_at_hand(&self, key: &Key) -> bool {
        match self.peek(key) {
            Peek::Present(known) => self.memory_content(key, known.version).is_some(),
            Peek::Absent(_) => true,
            Peek::Unknown => false,
        }
    }

    pub(in crate::cache) fn is_in_memory(&self, key: &Key) -> bool {
        self.memory.lock().get(key).is_some()
    }

    pub(super) fn memory_content(&self, key: &Key, version: VersionId) -> Option<Arc<Content>> {
        self.memory
            .lock()
            .get(key)
            .filter(|content| content.version == version)
            .cloned()
    }

    /// Returns what the disk cache has, and whether that was current when nothing changed any more.
    pub(super) fn disk_content(
        &self,
        key: &Key,
        known: Option<&Known>,
        deadline: Deadline,
    ) -> Option<(Arc<Content>, bool)> {
        let disk = self.disk.as_ref()?;
        let entry = disk.lookup(key, Patience::of(deadline))?;
        let same = |known: &&Known| {
            known.disk_id.as_ref() == Some(&entry.id)
                || (entry.meta.validator().is_some()
                    && known.meta.validator() == entry.meta.validator())
        };
        let version = known
            .filter(same)
            .map_or_else(|| self.new_version(), |known| known.version);
        let DiskEntry {
            meta,
            stored,
            size,
            modified,
            read,
            id,
            checksum,
            is_marked,
        } = entry;
        let data = match stored {
            Stored::Memory(bytes) => Data::Memory(bytes),
            Stored::File(file) => Data::File(Box::new(Kept {
                file,
                size,
                checksum,
                id,
                origin: self.origin(key, &meta),
                disk: Arc::clone(disk.patience()),
            })),
        };
        let content = Arc::new(Content {
            key: key.clone(),
            version,
            meta,
            modified,
            read,
            data,
        });
        self.keep_in_memory(&content);
        Some((content, is_marked))
    }

    pub(in crate::cache) fn keep_in_memory(&self, content: &Arc<Content>) {
        let Some(bytes) = content.in_memory() else {
            return;
        };
        let size = bytes.len() as u64 + MEMORY_OVERHEAD;
        let mut memory = self.memory.lock();
        let victims = memory.insert(content.key.clone(), Arc::clone(content), size);
        self.metrics.cache_memory_bytes.set(memory.used());
        drop(memory);
        drop(victims);
    }

    pub(in crate::cache) fn recent(&self) -> &Mutex<VecDeque<Arc<Content>>> {
        &self.recent
    }

    pub(in crate::cache) fn keep_recent(&self, content: &Arc<Content>) {
        let mut recent = self.recent.lock();
        let dropped = if recent.len() >= RECENT {
            recent.pop_front()
        } else {
            None
        };
        recent.push_back(Arc::clone(content));
        drop(recent);
        // Dropping a content may close a connection: not under the lock.
        drop(dropped);
    }

    /// Makes a whole content an entry of the disk cache.
    pub(in crate::cache) fn publish(
        &self,
        content: &Content,
        spool: Spool,
        size: u64,
        checksum: String,
    ) {
        let is_outdated = || self.freshness.is_overtaken(&content.key, content.read);
        // What was on its way while the record was stored here, or forgotten.
        if is_outdated() {
            return;
        }
        self.remember_size(content, size);
        match spool.publish(fresh(content), size, checksum) {
            Ok(_) if is_outdated() => {
                if let Some(disk) = &self.disk {
                    disk.remove(&content.key);
                }
            }
            Ok(id) => self.note_entry(content, id, size),
            Err(error) => tracing::warn!("cannot keep {} in the disk cache: {error}", content.key),
        }
    }

    /// Notes which entry of the disk cache a content has become.
    fn note_entry(&self, content: &Content, id: String, size: u64) {
        let slot = self.slot(&content.key);
        let mut state = slot.state.lock();
        let known = state.known.as_mut();
        if let Some(known) = known.filter(|known| known.version == content.version) {
            known.disk_id = Some(id);
            known.size = Some(size);
        }
    }

    /// Makes small contents entries of the disk cache; returns whether files could still hold them.
    pub(in crate::cache) fn publish_small(
        &self,
        disk: &Arc<DiskTier>,
        contents: &[Arc<Content>],
    ) -> bool {
        let is_outdated =
            |content: &Content| self.freshness.is_overtaken(&content.key, content.read);
        let small: Vec<_> = contents
            .iter()
            .filter(|content| !is_outdated(content))
            .filter_map(|content| Some((content, content.in_memory()?)))
            .collect();
        if small.is_empty() {
            return false;
        }
        let fresh: Vec<_> = small
            .iter()
            .map(|(content, bytes)| (fresh(content), *bytes))
            .collect();
        match disk.keep_small(&fresh) {
            Ok(ids) => {
                for ((content, bytes), id) in small.into_iter().zip(ids) {
                    let size = bytes.len() as u64;
                    self.remember_size(content, size);
                    if is_outdated(content) {
                        disk.remove(&content.key);
                    } else {
                        self.note_entry(content, id, size);
                    }
                }
                false
            }
            Err((reason, may_be_files)) => {
                tracing::debug!("small records are not kept in the disk cache: {reason}");
                may_be_files
            }
        }
    }

    /// Returns how many unused downloads are kept.
    #[cfg(feature = "testing")]
    pub fn kept_downloads(&self) -> usize {
        self.paused.lock().len()
    }

    /// Keeps the arrived bytes of a download for a later open.
    pub(in crate::cache) fn keep_paused(&self, content: Arc<Content>) {
        self.forget_paused(&content.key);
        let mut paused = self.paused.lock();
        paused.push_back(content);
        let oldest = (paused.len() > MOST_PAUSED)
            .then(|| paused.pop_front())
            .flatten();
        drop(paused);
        // Deletes its file: not under the lock.
        drop(oldest);
    }

    /// Gives up what is kept of another version of a record, or of one that is fetched again.
    pub(in crate::cache) fn forget_paused(&self, key: &Key) {
        let mut paused = self.paused.lock();
        let at = paused.iter().position(|content| content.key == *key);
        let found = at.and_then(|at| paused.remove(at));
        drop(paused);
        drop(found);
    }

    pub(in crate::cache) fn forget_all_paused(&self) {
        let all = std::mem::take(&mut *self.paused.lock());
        drop(all);
    }

    pub(in crate::cache) fn forget_content(&self, key: &Key) {
        let dropped = self.memory.lock().remove(key);
        drop(dropped);
        self.forget_paused(key);
        if let Some(disk) = self.disk.clone() {
            let (patience, key) = (Arc::clone(disk.patience()), key.clone());
            // On a disk that hangs it goes on; nothing in memory says any more that it is current.
            patience.wait(Patience::MOMENT, move || disk.remove(&key));
        }
    }

    /// Lets go of a content that was open: on another thread, as closing its file, or deleting it, may
    /// take a disk long.
    pub fn let_go(&self, content: Arc<Content>) {
        if content.in_memory().is_none() {
            // Where too many wait, it is closed here.
            let _ = self.closers.spawn(move || drop(content));
        }
    }

    /// Drops all contents in memory and all that is known; returns how many contents there were.
    pub(in crate::cache) fn drop_memory(&self) -> u64 {
        let slots: Vec<Arc<Slot>> = {
            let mut slots = self.slots.lock();
            std::iter::from_fn(|| slots.pop_lru().map(|(_, slot)| slot)).collect()
        };
        for slot in slots {
            *slot.state.lock() = SlotState::default();
        }
        let dropped = self.memory.lock().clear();
        self.metrics.cache_memory_bytes.set(0);
        dropped.len() as u64
    }
}

fn fresh(content: &Content) -> Fresh<'_> {
    Fresh {
        key: &content.key,
        meta: &content.meta,
        modified: content.modified,
        read: content.read,
    }
}
