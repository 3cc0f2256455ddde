//! Room in the cache and a file in it, for a content on its way: reserve, fill, publish.
//!
//! INVARIANT: a content has its place before a `.json` names it (C2).

use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tempfile::NamedTempFile;

use super::{
    DiskTier, ENTRY_OVERHEAD, EntryMeta, Filed, Fresh, Room, hash, key_hash, now_ms, temp,
};
use crate::base::folders::private_dir;
use crate::base::sync;
use crate::base::sync::atomic::Ordering;

/// Room in the disk cache and a file for a content on its way. Dropping it gives both back.
#[derive(Debug)]
pub struct Spool {
    tier: Arc<DiskTier>,
    temp: Option<NamedTempFile>,
    file: Arc<File>,
    room: Arc<Room>,
}

impl DiskTier {
    /// Starts an entry of at most `bytes` content bytes, for which [`Room::take`] sets room aside as
    /// they come; `None` when there is no room or no disk.
    ///
    /// Waits for the first scan of the folder, at most a few seconds.
    pub fn spool(self: &Arc<Self>, bytes: u64) -> Option<Spool> {
        self.await_scan();
        self.spool_in(Room::new(self, bytes)?)
    }

    /// The same for a content of unknown size, with at least `bytes` bytes.
    pub fn spool_some(self: &Arc<Self>, bytes: u64) -> Option<Spool> {
        self.await_scan();
        self.spool_in(Room::some(self, bytes)?)
    }

    pub(super) fn await_scan(&self) {
        let mut index = self.index.lock();
        if !index.scanned {
            self.scanned.wait_for(&mut index, Duration::from_secs(5));
        }
    }

    fn spool_in(self: &Arc<Self>, room: Room) -> Option<Spool> {
        let room = Arc::new(room);
        let temp = self
            .temp()
            .and_then(|temp| Ok((Arc::new(temp.as_file().try_clone()?), temp)));
        match temp {
            Ok((file, temp)) => Some(Spool {
                tier: Arc::clone(self),
                temp: Some(temp),
                file,
                room,
            }),
            Err(error) => {
                tracing::warn!(
                    "cannot write to the cache folder {}: {error}; reading goes on without it",
                    self.root.display()
                );
                None
            }
        }
    }

    /// Makes a file for something on its way, locked for as long as this process has it open.
    pub(super) fn temp(&self) -> io::Result<NamedTempFile> {
        let folder = self.root.join("tmp");
        temp::create(&folder).or_else(|error| {
            if error.kind() != io::ErrorKind::NotFound {
                return Err(error);
            }
            // A person has removed the cache folder, as people do to free space.
            private_dir(&self.root)?;
            private_dir(&self.root.join(&self.scope))?;
            private_dir(&folder)?;
            temp::create(&folder)
        })
    }
}

impl Spool {
    /// Returns the file; it stays readable after publishing and after eviction.
    pub fn file(&self) -> &Arc<File> {
        &self.file
    }

    /// Returns the room for its content.
    pub fn room(&self) -> &Arc<Room> {
        &self.room
    }

    /// Makes the content, `size` bytes with that checksum, an entry; returns its id.
    ///
    /// # Errors
    /// When the disk refuses; the content is then not cached.
    pub fn publish(mut self, fresh: Fresh<'_>, size: u64, checksum: String) -> io::Result<String> {
        let key = fresh.key;
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
            boot_id: tier.boot_id.clone(),
            immutable: tier.is_immutable.load(Ordering::Relaxed),
            ..EntryMeta::new(fresh, id.clone(), size, checksum)
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
            index.lru.unreserve(self.room.give_up());
            let filed = Filed {
                data: id.clone(),
                used: now_ms(),
            };
            index.insert(path.clone(), filed, size + ENTRY_OVERHEAD)
        };
        let mut victims = victims.unwrap_or_default();
        let (replaced, files): (Vec<_>, Vec<_>) = std::mem::take(&mut victims.files)
            .into_iter()
            .partition(|(victim, _)| *victim == path);
        victims.files = files;
        for (_, data) in replaced {
            // Its `.json` is already the new one; a scan may have come upon that before.
            if data != id {
                tier.delete_data(&path, &data);
            }
        }
        drop(claim);
        // It may have been small before.
        tier.rows.remove(&key_hash(key.as_str()), None);
        tier.evict(victims);
        tier.count_others(size);
        Ok(id)
    }
}

impl Drop for Spool {
    fn drop(&mut self) {
        self.room.give_back();
    }
}
