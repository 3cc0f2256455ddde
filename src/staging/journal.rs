//! The pending uploads on disk, of this process and of dead ones that it has adopted.
//!
//! INVARIANT: when [`Journal::keep`] has returned, the entry survives `kill -9`, and the end of the
//! machine if it was asked to be durable. At every moment before, the entry is not there at all.
//!
//! Lock order: `index` or `unsettled`, alone; never held across disk I/O.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use rustix::fs::{AtFlags, CWD};

use super::budget::{Budget, Space};
use super::entry::{self, EntryId, Pending};
use super::own::Own;
use super::owner::{self, Found, OwnerDir};
use super::unanswered::Unanswered;
use crate::base::sync::Mutex;
use crate::base::sync::atomic::{AtomicU64, Ordering};
use crate::store::Key;

/// How much of a file is copied at once, in bytes.
const COPY: usize = 1 << 20;

/// The pending uploads.
#[derive(Debug)]
pub struct Journal {
    own: Arc<Own>,
    budget: Arc<Budget>,
    index: Mutex<Index>,
    last: AtomicU64,
    /// Folders from which entries were removed since they were last synced.
    unsettled: Mutex<Vec<Arc<OwnerDir>>>,
    steps: steps::Steps,
}

#[derive(Debug, Default)]
struct Index {
    entries: BTreeMap<EntryId, Indexed>,
    by_key: HashMap<Key, Vec<EntryId>>,
}

#[derive(Debug)]
struct Indexed {
    pending: Pending,
    data_checksum: String,
    owner: Arc<OwnerDir>,
    adopted: bool,
    /// Whether an upload of it may have arrived.
    sent: bool,
    _space: Space,
}

/// A pending upload.
#[derive(Clone, Debug, PartialEq)]
pub struct JournalEntry {
    /// Its name.
    pub id: EntryId,
    /// What it is.
    pub pending: Pending,
    /// Whether another process closed the file, so that its bytes are yet to be checked.
    pub adopted: bool,
    /// Whether the store may have it, though no answer said so.
    pub sent: bool,
    /// What the store then has of it.
    pub as_sent: Unanswered,
    /// Where its bytes are.
    pub data: PathBuf,
}

impl Journal {
    /// Returns the journal of the owner of `own` and of the dead ones that it takes over.
    pub(super) fn new(
        own: Arc<Own>,
        dead: Vec<(Arc<OwnerDir>, Vec<Found>)>,
        budget: Arc<Budget>,
    ) -> Self {
        let mut index = Index::default();
        for (owner, entries) in dead {
            for found in entries {
                let space = budget.occupied(found.pending.size);
                index.add(
                    found.id,
                    Indexed {
                        pending: found.pending,
                        data_checksum: found.data_checksum,
                        owner: Arc::clone(&owner),
                        adopted: true,
                        // By the process that is gone.
                        sent: true,
                        _space: space,
                    },
                );
            }
        }
        let last = index.entries.keys().map(EntryId::order).max().unwrap_or(0);
        Self {
            own,
            budget,
            index: Mutex::new(index),
            last: AtomicU64::new(last),
            unsettled: Mutex::default(),
            steps: steps::Steps::new(),
        }
    }

    /// Makes `pending` an entry, its bytes being the first `pending.size` of `file`.
    ///
    /// A file of [`super::StagingFolder::new_file`] becomes the entry's data without a copy, as
    /// often as need be; so no write to it may follow. Any other file is copied. With `durable` the
    /// entry survives the end of the machine, else only that of the process.
    ///
    /// # Errors
    /// That the disk refuses; there is then no entry.
    pub fn keep(&self, file: &File, pending: Pending, durable: bool) -> io::Result<EntryId> {
        let id = self.stamp();
        self.keep_as(&id, file, pending, durable)?;
        Ok(id)
    }

    /// The same under a name that [`Journal::stamp`] has given.
    ///
    /// # Errors
    /// As for [`Journal::keep`].
    pub fn keep_as(
        &self,
        id: &EntryId,
        file: &File,
        pending: Pending,
        durable: bool,
    ) -> io::Result<()> {
        let data_checksum = entry::data_checksum(ReadAt(file, 0), pending.size)?;
        let (own, space) = self.own.within(|own| {
            let space = self.write(own, id, file, (&pending, &data_checksum), durable)?;
            Ok((Arc::clone(own), space))
        })?;
        let indexed = Indexed {
            pending,
            data_checksum,
            owner: own,
            adopted: false,
            sent: false,
            _space: space,
        };
        self.index.lock().add(id.clone(), indexed);
        Ok(())
    }

    /// Writes an entry's files; returns the room that they take.
    fn write(
        &self,
        own: &Arc<OwnerDir>,
        id: &EntryId,
        file: &File,
        (pending, data_checksum): (&Pending, &str),
        durable: bool,
    ) -> io::Result<Space> {
        let mut space = if is_linkable(file) {
            // The bytes of a staging file, which count once.
            self.budget.occupied_by(file, pending.size)
        } else {
            let mut space = self.budget.space();
            space.grow_to(pending.size)?;
            space
        };
        let data = owner::data_path(own.path(), id);
        let written = self.steps.next().and_then(|()| -> io::Result<()> {
            let copied = match link(file, &data) {
                Ok(()) => None,
                Err(_) => Some(copy(file, pending.size, &data)?),
            };
            if let Some(copied) = &copied {
                space = self.budget.occupied_by(copied, pending.size);
            }
            let data = copied.as_ref().unwrap_or(file);
            let durable = durable.then_some(data);
            self.describe(own, id, pending, data_checksum, durable)?;
            self.steps.next()?;
            durable.map_or(Ok(()), |_| own.sync())
        });
        if let Err(error) = written {
            // None of it is an entry yet, or no caller has been told that it is one.
            let folder = own.path();
            for path in [
                owner::new_path(folder, id),
                owner::json_path(folder, id),
                data,
            ] {
                let _ = self.steps.next().and_then(|()| fs::remove_file(path));
            }
            return Err(error);
        }
        Ok(space)
    }

    /// Writes an entry again after its files were removed, from a descriptor of its bytes; `change`
    /// may replace them. Durable.
    ///
    /// # Errors
    /// That there is no such entry, or the disk refuses; it then stays without files.
    /// [`io::ErrorKind::InvalidData`] if these are not the bytes that an earlier process wrote.
    pub fn keep_again(
        &self,
        id: &EntryId,
        file: &File,
        change: impl FnOnce(&mut Pending),
    ) -> io::Result<()> {
        let entry = self.get(id).ok_or(io::ErrorKind::NotFound)?;
        let mut pending = entry.pending;
        let encoding = pending.encoding.clone();
        change(&mut pending);
        let data_checksum = entry::data_checksum(ReadAt(file, 0), pending.size)?;
        let is_same = *data_checksum == *entry.as_sent.checksum;
        if entry.adopted && pending.encoding == encoding && !is_same {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let (own, space) = self.own.within(|own| {
            let space = self.write(own, id, file, (&pending, &data_checksum), true)?;
            Ok((Arc::clone(own), space))
        })?;
        let mut index = self.index.lock();
        index.replace(id, pending);
        let Some(found) = index.entries.get_mut(id) else {
            drop(index);
            // It was removed meanwhile.
            own.remove_description(id)?;
            own.remove_data(id);
            self.unsettle(&own);
            return Ok(());
        };
        found.data_checksum = data_checksum;
        let before = (
            std::mem::replace(&mut found.owner, own),
            std::mem::replace(&mut found._space, space),
        );
        drop(index);
        // The last of a folder is removed with it, which is not for under the lock.
        drop(before);
        Ok(())
    }

    /// Writes an entry's description in place of the one it has. With `data` both are on disk
    /// before the description has its name; only the folder is then left to be synced.
    fn describe(
        &self,
        owner: &OwnerDir,
        id: &EntryId,
        pending: &Pending,
        data_checksum: &str,
        data: Option<&File>,
    ) -> io::Result<()> {
        let new = owner::new_path(owner.path(), id);
        self.steps.next()?;
        let mut json = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW)
            .open(&new)?;
        let text = entry::encode(pending, data_checksum)?;
        if self.steps.next().is_err() {
            json.write_all(&text[..text.len() / 2])?;
            return Err(io::ErrorKind::Interrupted.into());
        }
        json.write_all(&text)?;
        self.steps.next()?;
        if let Some(data) = data {
            sync_both(data, &json)?;
        }
        self.steps.next()?;
        fs::rename(&new, owner::json_path(owner.path(), id))
    }

    /// Changes what is said of an entry, durably.
    ///
    /// # Errors
    /// That there is no such entry, or the disk refuses; the entry is then as it was, or changed
    /// but not durably so.
    pub fn update(&self, id: &EntryId, change: impl FnOnce(&mut Pending)) -> io::Result<()> {
        let (mut pending, data_checksum, owner) = {
            let index = self.index.lock();
            let found = index.entries.get(id).ok_or(io::ErrorKind::NotFound)?;
            (
                found.pending.clone(),
                found.data_checksum.clone(),
                Arc::clone(&found.owner),
            )
        };
        let size = pending.size;
        change(&mut pending);
        pending.size = size;
        let data = self.open(id)?;
        self.describe(&owner, id, &pending, &data_checksum, Some(&data))?;
        // From here on it is the new one, though not yet for sure after the end of the machine.
        self.index.lock().replace(id, pending);
        self.steps.next()?;
        owner.sync()?;
        Ok(())
    }

    /// Changes what is said of an entry until this process ends: the disk does not take it.
    pub fn note(&self, id: &EntryId, change: impl FnOnce(&mut Pending)) {
        let mut index = self.index.lock();
        let Some(found) = index.entries.get(id) else {
            return;
        };
        let mut pending = found.pending.clone();
        change(&mut pending);
        index.replace(id, pending);
    }

    /// Notes that an upload of an entry may have arrived, though no answer said so.
    pub fn note_sent(&self, id: &EntryId) {
        if let Some(found) = self.index.lock().entries.get_mut(id) {
            found.sent = true;
        }
    }

    /// Removes an entry: the store has its bytes, or they are not wanted any more.
    ///
    /// # Errors
    /// That the disk refuses; the entry then stays.
    pub fn remove(&self, id: &EntryId) -> io::Result<()> {
        let Some(owner) = self.owner_of(id) else {
            return Ok(());
        };
        self.steps.next()?;
        owner.remove_description(id)?;
        self.unsettle(&owner);
        let gone = self.index.lock().remove(id);
        self.steps.next()?;
        owner.remove_data(id);
        if let Some(gone) = gone
            .as_ref()
            .filter(|gone| !Arc::ptr_eq(&gone.owner, &owner))
        {
            // It was just kept again.
            gone.owner.remove_description(id)?;
            gone.owner.remove_data(id);
            self.unsettle(&gone.owner);
        }
        drop(gone);
        Ok(())
    }

    /// Notes that something was removed from a folder, which is not durable yet.
    fn unsettle(&self, owner: &Arc<OwnerDir>) {
        let mut unsettled = self.unsettled.lock();
        if !unsettled.iter().any(|known| Arc::ptr_eq(known, owner)) {
            unsettled.push(Arc::clone(owner));
        }
    }

    /// Takes an entry with damaged bytes out of the journal, and logs it.
    pub fn quarantine(&self, id: &EntryId, why: &str) {
        let gone = self.index.lock().remove(id);
        if let Some(gone) = gone {
            gone.owner.quarantine(id, why);
        }
    }

    /// Makes removals durable, so that the end of the machine brings nothing back.
    ///
    /// # Errors
    /// That the disk refuses.
    pub fn settle(&self) -> io::Result<()> {
        let unsettled = std::mem::take(&mut *self.unsettled.lock());
        unsettled.iter().try_for_each(|owner| owner.sync())
    }

    /// Returns whether all removals are durable.
    #[cfg(test)]
    pub fn is_settled(&self) -> bool {
        self.unsettled.lock().is_empty()
    }

    /// Returns all entries, the first closed first.
    pub fn entries(&self) -> Vec<JournalEntry> {
        let index = self.index.lock();
        let entries = index.entries.iter();
        entries.map(|(id, found)| found.shown(id)).collect()
    }

    /// Returns the entries that failed for good.
    pub fn kept(&self) -> Vec<JournalEntry> {
        self.forget_removed();
        let mut kept = self.entries();
        kept.retain(|entry| entry.pending.why.is_failed());
        kept
    }

    /// Drops failed entries that were kept in a folder that has been removed.
    fn forget_removed(&self) {
        let failed: Vec<(EntryId, Arc<OwnerDir>)> = {
            let index = self.index.lock();
            let failed = index.entries.iter();
            let failed = failed.filter(|(_, found)| found.pending.why.is_failed());
            failed
                .map(|(id, found)| (id.clone(), Arc::clone(&found.owner)))
                .collect()
        };
        for (id, owner) in failed {
            if !owner.is_removed() {
                continue;
            }
            let gone = self.index.lock().remove(&id);
            let Some(gone) = gone else { continue };
            tracing::error!(
                "the bytes of {} that were kept after their upload had failed are gone: the staging \
                 folder was removed",
                gone.pending.key
            );
        }
    }

    /// Returns an entry.
    pub fn get(&self, id: &EntryId) -> Option<JournalEntry> {
        let index = self.index.lock();
        index.entries.get(id).map(|found| found.shown(id))
    }

    /// Returns the entries of `key`, the first closed first.
    pub fn of_key(&self, key: &Key) -> Vec<JournalEntry> {
        let index = self.index.lock();
        let ids = index.by_key.get(key).into_iter().flatten();
        ids.filter_map(|id| Some(index.entries.get(id)?.shown(id)))
            .collect()
    }

    /// Returns how many entries there are, and their bytes.
    #[cfg(feature = "testing")]
    pub fn total(&self) -> (usize, u64) {
        let index = self.index.lock();
        let bytes = index.entries.values().map(|found| found.pending.size).sum();
        (index.entries.len(), bytes)
    }

    /// Opens an entry's bytes.
    ///
    /// # Errors
    /// That there is no such entry, or its data is not there.
    pub fn open(&self, id: &EntryId) -> io::Result<File> {
        self.owner_of(id)
            .ok_or(io::ErrorKind::NotFound)?
            .open_data(id)
    }

    /// Returns whether the folder was made again since the last call.
    pub fn take_remade(&self) -> bool {
        self.own.take_remade()
    }

    /// Notes again that the folder was made again: the work that follows is not done.
    pub fn set_remade(&self) {
        self.own.set_remade();
    }

    /// Returns whether the bytes of an entry were removed under it.
    pub fn is_lost(&self, id: &EntryId) -> bool {
        let opened = self.owner_of(id).map(|owner| owner.open_data(id));
        matches!(opened, Some(Err(error)) if error.kind() == io::ErrorKind::NotFound)
    }

    fn owner_of(&self, id: &EntryId) -> Option<Arc<OwnerDir>> {
        let index = self.index.lock();
        Some(Arc::clone(&index.entries.get(id)?.owner))
    }

    /// Checks that the bytes of an entry are those that were written.
    ///
    /// # Errors
    /// That they cannot be read; [`io::ErrorKind::InvalidData`] when they are others.
    pub fn verify(&self, id: &EntryId) -> io::Result<()> {
        let (expected, size) = {
            let index = self.index.lock();
            let found = index.entries.get(id).ok_or(io::ErrorKind::NotFound)?;
            (found.data_checksum.clone(), found.pending.size)
        };
        if entry::data_checksum(self.open(id)?, size)? == expected {
            return Ok(());
        }
        Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "the checksum of its data does not match",
        ))
    }

    /// Returns the name of an entry that is closed now: greater than all before.
    pub fn stamp(&self) -> EntryId {
        let now = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .map_or(0, |since| u64::try_from(since.as_nanos()).unwrap_or(0));
        let last = self
            .last
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |last| {
                Some(now.max(last + 1))
            })
            .unwrap_or(0);
        EntryId::new(now.max(last + 1), fastrand::u32(..))
    }
}

impl Index {
    fn add(&mut self, id: EntryId, entry: Indexed) {
        let key = entry.pending.key.clone();
        let of_key = self.by_key.entry(key).or_default();
        let at = of_key.partition_point(|known| *known < id);
        of_key.insert(at, id.clone());
        self.entries.insert(id, entry);
    }

    fn remove(&mut self, id: &EntryId) -> Option<Indexed> {
        let gone = self.entries.remove(id)?;
        self.forget_key(&gone.pending.key, id);
        Some(gone)
    }

    fn forget_key(&mut self, key: &Key, id: &EntryId) {
        if let Some(ids) = self.by_key.get_mut(key) {
            ids.retain(|known| known != id);
            if ids.is_empty() {
                self.by_key.remove(key);
            }
        }
    }

    fn replace(&mut self, id: &EntryId, pending: Pending) {
        let Some(found) = self.entries.get_mut(id) else {
            return;
        };
        let before = std::mem::replace(&mut found.pending, pending.clone()).key;
        if before != pending.key {
            self.forget_key(&before, id);
            self.by_key.entry(pending.key).or_default().push(id.clone());
        }
    }
}

impl Indexed {
    fn shown(&self, id: &EntryId) -> JournalEntry {
        JournalEntry {
            id: id.clone(),
            pending: self.pending.clone(),
            adopted: self.adopted,
            sent: self.sent,
            as_sent: Unanswered {
                size: self.pending.size,
                encoding: self.pending.encoding.clone(),
                checksum: self.data_checksum.as_str().into(),
            },
            data: owner::data_path(self.owner.path(), id),
        }
    }
}

/// Removes a file that may be gone already.
pub(super) fn remove_file(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Returns whether a file has no name, or one in a journal: then it was made by a staging folder.
fn is_linkable(file: &File) -> bool {
    rustix::fs::fcntl_getfl(file)
        .is_ok_and(|flags| flags.bits() & libc::O_TMPFILE as u32 == libc::O_TMPFILE as u32)
}

/// Gives a file that was made without a name this one.
fn link(file: &File, path: &Path) -> io::Result<()> {
    if !is_linkable(file) {
        return Err(io::ErrorKind::Unsupported.into());
    }
    let descriptor = format!("/proc/self/fd/{}", file.as_raw_fd());
    rustix::fs::linkat(CWD, descriptor, CWD, path, AtFlags::SYMLINK_FOLLOW)?;
    Ok(())
}

/// Copies the first `size` bytes of `file` into a new file.
fn copy(file: &File, size: u64, path: &Path) -> io::Result<File> {
    let mut target = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    let mut buffer = vec![0; COPY];
    let mut source = ReadAt(file, 0).take(size);
    loop {
        match source.read(&mut buffer)? {
            0 => return Ok(target),
            n => target.write_all(&buffer[..n])?,
        }
    }
}

/// Puts two files on disk at the same time: most filesystems do that in one go.
fn sync_both(data: &File, json: &File) -> io::Result<()> {
    std::thread::scope(|scope| {
        let data = scope.spawn(|| data.sync_data());
        json.sync_data()?;
        data.join()
            .unwrap_or_else(|_| Err(io::Error::other("the thread that syncs panicked")))
    })
}

/// Reads a file from a place of its own, whatever others do with the descriptor.
pub(super) struct ReadAt<'a>(pub(super) &'a File, pub(super) u64);

impl Read for ReadAt<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.0.read_at(buffer, self.1)?;
        self.1 += n as u64;
        Ok(n)
    }
}

/// Crashes on purpose: in tests, the steps of a journal end at one of them and never go on. Other threads
/// may go on before each.
mod steps {
    #[cfg(test)]
    #[derive(Debug)]
    pub(super) struct Steps(pub(super) std::sync::atomic::AtomicI64);

    #[cfg(not(test))]
    #[derive(Debug)]
    pub(super) struct Steps;

    impl Steps {
        #[cfg(test)]
        pub(super) fn new() -> Self {
            Self(i64::MAX.into())
        }

        #[cfg(not(test))]
        pub(super) fn new() -> Self {
            Self
        }

        #[cfg(test)]
        pub(super) fn next(&self) -> std::io::Result<()> {
            let left = self.0.fetch_sub(1, std::sync::atomic::Ordering::Relaxed);
            if left > 0 {
                Ok(())
            } else {
                Err(std::io::ErrorKind::Interrupted.into())
            }
        }

        #[cfg(not(test))]
        #[expect(
            clippy::unnecessary_wraps,
            clippy::unused_self,
            reason = "in tests it fails"
        )]
        pub(super) fn next(&self) -> std::io::Result<()> {
            crate::base::sync::point();
            Ok(())
        }
    }
}

#[cfg(test)]
#[path = "journal_tests.rs"]
mod tests;
