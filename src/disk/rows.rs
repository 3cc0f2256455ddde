//! Small contents, as rows of the scope's database.

use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;

use super::account::Victims;
use super::database::{Database, NewRow, Trouble};
use super::{
    Checksum, DiskEntry, DiskTier, ENTRY_OVERHEAD, EntryMeta, Fresh, Stored, key_hash, millis,
};
use crate::base::sync::atomic::Ordering;
use crate::base::units::{KIB, MIB};
use crate::store::Key;

/// The largest content that is a row: one that fits into a block of most file systems.
const MOST: u64 = 4 * KIB;
/// In a smaller cache a database would take much of it by itself: all contents are files.
const LEAST_CAPACITY: u64 = 16 * MIB;
/// What a row is taken to cost beyond its content and what it is: its names, and room in pages.
const ROW_OVERHEAD: u64 = 256;
/// What is noted of a content, about.
const ABOUT: u64 = 512;

impl DiskTier {
    /// Returns the size of the largest content that [`DiskTier::keep_small`] keeps.
    pub fn small_most(&self) -> u64 {
        match self.capacity() >= LEAST_CAPACITY {
            true => MOST,
            false => 0,
        }
    }

    /// Returns the room that a content of `bytes` bytes takes.
    pub fn cost(&self, bytes: u64) -> u64 {
        bytes.saturating_add(match bytes <= self.small_most() {
            true => ROW_OVERHEAD + ABOUT,
            false => ENTRY_OVERHEAD,
        })
    }

    /// Makes small contents entries, all of them or none; returns their ids.
    ///
    /// Waits for the first scan of the folder, at most a few seconds.
    ///
    /// # Errors
    /// Why they are no entries; whether they may be ones as files.
    pub fn keep_small(
        self: &Arc<Self>,
        contents: &[(Fresh<'_>, &Bytes)],
    ) -> Result<Vec<String>, (String, bool)> {
        self.await_scan();
        let lost = |reason: String| (reason, false);
        let (mut ids, mut rows, mut bytes) = (Vec::new(), Vec::new(), 0);
        for (fresh, content) in contents {
            let id = format!("{:016x}", fastrand::u64(..));
            let mut sum = Checksum::default();
            sum.update(content);
            let size = content.len() as u64;
            let meta = EntryMeta {
                immutable: self.is_immutable.load(Ordering::Relaxed),
                ..EntryMeta::new(*fresh, id.clone(), size, sum.finish())
            };
            let about = meta.write().map_err(lost)?;
            bytes += size + about.len() as u64 + ROW_OVERHEAD;
            ids.push(id);
            rows.push(NewRow {
                name: key_hash(fresh.key.as_str()),
                about,
                bytes: Bytes::clone(content),
            });
        }
        let victims = {
            let mut index = self.index.lock();
            let more = index.beyond_free(&self.scope, bytes);
            let room = index.make_room(more);
            room.ok_or_else(|| lost("there is no room".to_owned()))?
        };
        self.evict_for(victims, true);
        let space = self
            .rows
            .put(&rows, now_ms())
            .map_err(|trouble| match trouble {
                Trouble::Unwritable(reason) => lost(reason),
                Trouble::Away(reason) | Trouble::Broken(reason) => (reason, true),
                Trouble::Missing => lost("the folder is gone".to_owned()),
            })?;
        let victims = self.index.lock().set_database(&self.scope, Some(space));
        self.evict(victims);
        for (fresh, _) in contents {
            self.remove_filed(fresh.key);
        }
        self.count_others(bytes);
        Ok(ids)
    }

    /// Removes the files of an entry that has become a row.
    fn remove_filed(&self, key: &Key) {
        let path = self.json_path(key);
        if self.root.join(&path).exists() {
            let _claim = self.claim(&path);
            self.remove_claimed(&path);
        }
    }

    pub(super) fn find_row(&self, key: &Key) -> Option<DiskEntry> {
        let name = key_hash(key.as_str());
        let row = self.rows.find(&name, now_ms())?;
        let entry = of_key(key, &row.about).and_then(|meta| {
            meta.check(&row.bytes)?;
            meta.entry(Stored::Memory(row.bytes.into()))
        });
        entry
            .inspect_err(|reason| {
                if self.rows.remove(&name, Some(&row.about)) {
                    tracing::warn!("cache entry of {key} is broken ({reason}); fetching it again");
                    self.metrics.cache_healed.one();
                }
            })
            .ok()
    }

    /// Returns what is noted of a key's row.
    pub(super) fn row_meta(&self, key: &Key) -> Option<EntryMeta> {
        let about = self.rows.about(&key_hash(key.as_str()))?;
        of_key(key, &about).ok()
    }

    /// Changes what is noted of a key's row, where `change` has something to change; returns whether
    /// there is one.
    pub(super) fn change_row(
        &self,
        key: &Key,
        change: impl Fn(&EntryMeta) -> Option<EntryMeta>,
    ) -> bool {
        self.rows.describe(&key_hash(key.as_str()), |about| {
            let meta = of_key(key, about).ok()?;
            change(&meta)?.write().ok()
        })
    }

    /// Removes what must go.
    pub(super) fn evict(&self, victims: Victims) {
        self.evict_for(victims, false);
    }

    /// Removes what must go, for rows of this scope to come or for other things.
    fn evict_for(&self, mut victims: Victims, for_rows: bool) {
        while !victims.is_empty() {
            self.delete_victims(std::mem::take(&mut victims.files));
            for (scope, bytes) in std::mem::take(&mut victims.rows) {
                let (database, shrinks) = match scope == self.scope {
                    true => (Arc::clone(&self.rows), !for_rows),
                    false => (self.database(&scope), true),
                };
                match database.evict(bytes, shrinks) {
                    // More may have to go, as it is made of pages.
                    Ok(space) => {
                        let more = self.index.lock().set_database(&scope, Some(space));
                        victims.extend(more);
                    }
                    Err(trouble) => tracing::debug!("cannot evict small contents: {trouble:?}"),
                }
            }
        }
        self.gauge();
    }

    /// Returns the database of a scope.
    pub(super) fn database(&self, scope: &str) -> Arc<Database> {
        let trash = self.root.join("tmp");
        let metrics = Arc::clone(&self.metrics);
        Database::of(&self.root.join(scope), trash, metrics, false)
    }

    /// Counts the databases of all scopes; returns what must go for them.
    pub(super) fn count_databases(&self) -> Victims {
        let mut scopes = self.index.lock().scopes();
        let found = super::scan::folders(&self.root);
        let names = found.iter().filter_map(|scope| scope.file_name()?.to_str());
        scopes.extend(names.map(str::to_owned));
        let mut victims = Victims::default();
        for scope in scopes {
            let space = match scope == self.scope {
                true => self.rows.space(),
                false => self.database(&scope).space(),
            };
            victims.extend(self.index.lock().set_database(&scope, space));
        }
        victims
    }
}

/// Reads what a row is about, which must be of this key.
fn of_key(key: &Key, about: &[u8]) -> Result<EntryMeta, String> {
    let meta = EntryMeta::parse(about)?;
    match meta.key == key.as_str() {
        true => Ok(meta),
        false => Err("it belongs to another key".to_owned()),
    }
}

/// Returns the time as uses are noted.
pub(super) fn now_ms() -> i64 {
    millis(SystemTime::now()).map_or(0, |ms| i64::try_from(ms).unwrap_or(i64::MAX))
}
