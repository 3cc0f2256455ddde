//! Drops contents and metadata of records on request.

use std::sync::Arc;

use super::content::{Content, Data};
use super::records::Records;
use crate::store::Key;

impl Records {
    /// Drops these records: the next question about them goes to the store. Returns how many
    /// contents were cached.
    pub fn evict(&self, keys: &[Key]) -> u64 {
        let mut contents = 0;
        self.freshness().forget(Some(keys));
        for key in keys {
            let on_disk = self.disk().is_some_and(|disk| disk.contains(key));
            contents += u64::from(on_disk || self.is_in_memory(key));
            self.invalidate(key);
            self.drop_recent(&|content| content.key == *key);
            self.forget_paused(key);
            if let Some(disk) = self.disk() {
                disk.remove(key);
            }
        }
        self.sizes().forget(Some(keys));
        contents
    }

    /// Drops everything; as [`Records::evict`].
    pub fn evict_all(&self) -> u64 {
        self.freshness().forget(None);
        let in_memory = self.drop_memory();
        self.drop_recent(&|_| true);
        self.forget_all_paused();
        self.sizes().forget(None);
        let on_disk = self.disk().map_or(0, |disk| disk.clear());
        in_memory.max(on_disk)
    }

    /// Drops contents in the staging folder that are not open, to make room. Returns whether there
    /// were any.
    pub fn drop_staged(&self) -> bool {
        let is_staged = |content: &Arc<Content>| matches!(content.data, Data::Staged(..));
        let any = self.recent().lock().iter().any(is_staged);
        if any {
            self.drop_recent(&is_staged);
        }
        any
    }

    fn drop_recent(&self, which: &dyn Fn(&Arc<Content>) -> bool) {
        let mut recent = self.recent().lock();
        let (dropped, kept) = recent
            .drain(..)
            .partition::<Vec<_>, _>(|content| which(content));
        recent.extend(kept);
        drop(recent);
        // Dropping a content may close a connection: not under the lock.
        drop(dropped);
    }
}
