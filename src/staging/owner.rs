//! A daemon's own folder below the scope: made, adopted when its daemon is dead, and removed.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags, flock, unlinkat};

use super::entry::{self, EntryId, MAX_DESCRIPTION, Pending, Unreadable};
use crate::base::folders::private_dir;

/// The file that an owner holds locked.
const LOCK: &str = "lock";
/// The folder of the scope for entries that do not check out.
pub const DAMAGED: &str = "damaged";
/// How long a killed process is waited for until it holds no lock any more: a thread of it may be in
/// an fsync of a busy disk.
const DYING: Duration = Duration::from_secs(10);
/// How long a program that this process starts may have copies of its locks, until it runs.
const STARTING: Duration = Duration::from_millis(500);
/// How long others may have a lock to see whether its owner lives.
const LOOKED_AT: Duration = Duration::from_millis(50);
/// How often it is looked at meanwhile.
const DYING_POLL: Duration = Duration::from_millis(5);
/// What ends the name of a description on its way.
const NEW: &str = "new";

/// A folder that this process holds the lock of. Dropping it removes the folder if it is empty.
#[derive(Debug)]
pub struct OwnerDir {
    path: PathBuf,
    dir: File,
    _lock: File,
}

/// An entry as it lies on disk.
#[derive(Debug, Clone, PartialEq)]
pub struct Found {
    /// Its name.
    pub id: EntryId,
    /// What it is.
    pub pending: Pending,
    /// The checksum that its data must have.
    pub data_checksum: String,
}

/// What lies in an owner's folder.
#[derive(Debug, Default)]
pub struct Contents {
    /// The entries, by name.
    pub entries: Vec<Found>,
    /// Entries that do not check out, and why.
    pub damaged: Vec<(EntryId, String)>,
    /// Entries of later versions of kvfs.
    pub newer: Vec<EntryId>,
    /// Leftovers of a crash that no program was promised.
    pub leftovers: Vec<PathBuf>,
}

impl OwnerDir {
    /// Makes a folder for this process in `scope`; the caller holds the lock of `scope`.
    ///
    /// # Errors
    /// That the disk refuses.
    pub fn create(scope: &Path) -> io::Result<Self> {
        let name = format!("{}-{:08x}", std::process::id(), fastrand::u32(..));
        let path = scope.join(name);
        private_folder(&path)?;
        // Waits only for processes that look whether its owner lives.
        let this = Self::lock(&path, FlockOperation::LockExclusive)?
            .ok_or_else(|| io::Error::other("the new staging folder is locked"))?;
        sync_dir(scope)?;
        Ok(this)
    }

    /// Takes over the folder at `path` if its owner is dead. The caller holds the scope's lock, so
    /// that the folder is not one that is just being made.
    ///
    /// # Errors
    /// That the disk refuses, or the folder is not this user's.
    pub fn adopt(path: &Path) -> io::Result<Option<Arc<Self>>> {
        private_folder(path)?;
        let began = Instant::now();
        loop {
            let locked = Self::lock(path, FlockOperation::NonBlockingLockExclusive)?;
            let patience = if is_dying(path) {
                DYING
            } else if is_own(path) {
                STARTING
            } else {
                LOOKED_AT
            };
            let waits = began.elapsed() < patience;
            if locked.is_some() || !waits {
                return Ok(locked.map(Arc::new));
            }
            thread::sleep(DYING_POLL);
        }
    }

    fn lock(path: &Path, how: FlockOperation) -> io::Result<Option<Self>> {
        let lock = open_lock(&path.join(LOCK))?;
        match flock(&lock, how) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Ok(None),
            Err(error) => return Err(error.into()),
        }
        Ok(Some(Self {
            path: path.to_owned(),
            dir: File::open(path)?,
            _lock: lock,
        }))
    }

    /// Returns where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns whether the folder was removed, wherever it was then.
    pub fn is_removed(&self) -> bool {
        rustix::fs::fstat(&self.dir).is_ok_and(|found| found.st_nlink == 0)
    }

    /// Opens an entry's bytes, wherever the folder is by now: moved, or under another mount.
    ///
    /// # Errors
    /// That they cannot be opened; [`io::ErrorKind::NotFound`] only if they are gone.
    pub fn open_data(&self, id: &EntryId) -> io::Result<File> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let opened = rustix::fs::openat(&self.dir, data_name(id), flags, Mode::empty())?;
        Ok(opened.into())
    }

    /// Removes an entry's description: there is no such entry any more.
    ///
    /// # Errors
    /// That the description cannot be removed; an absent one is fine.
    pub fn remove_description(&self, id: &EntryId) -> io::Result<()> {
        match unlinkat(&self.dir, json_name(id), AtFlags::empty()) {
            Err(error) if error != rustix::io::Errno::NOENT => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// Removes an entry's bytes. What is left of it then is a leftover.
    pub fn remove_data(&self, id: &EntryId) {
        let _ = unlinkat(&self.dir, data_name(id), AtFlags::empty());
    }

    /// Makes what happened in the folder durable.
    ///
    /// # Errors
    /// That the disk refuses.
    pub fn sync(&self) -> io::Result<()> {
        self.dir.sync_all()
    }

    /// Moves a damaged entry to where it is not uploaded and people find it.
    pub fn quarantine(&self, id: &EntryId, why: &str) {
        let target = match self.path.parent() {
            Some(scope) => scope.join(DAMAGED),
            None => return,
        };
        let moved = private_folder(&target).and_then(|()| {
            // The data first: without a description it would be taken for a leftover.
            for path in [data_path(&self.path, id), json_path(&self.path, id)] {
                let Some(name) = path.file_name() else {
                    continue;
                };
                match fs::rename(&path, target.join(name)) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                    _ => {}
                }
            }
            sync_dir(&target)
        });
        let shown = target.display();
        match moved {
            Ok(()) => tracing::error!(
                "the pending upload {id} is damaged: {why}; its remains are in {shown}"
            ),
            Err(error) => tracing::error!(
                "the pending upload {id} is damaged: {why}; it cannot be moved to {shown}: {error}"
            ),
        }
    }
}

impl OwnerDir {
    /// Removes the folder if there is nothing in it; nothing more may be put there.
    pub fn remove_if_empty(&self) {
        let empty = fs::read_dir(&self.path).is_ok_and(|mut entries| {
            entries.all(|entry| entry.is_ok_and(|entry| entry.file_name() == LOCK))
        });
        if empty {
            // A process may wait for this lock: an adopter finds the folder gone, or makes it
            // again.
            let _ = fs::remove_file(self.path.join(LOCK));
            let _ = fs::remove_dir(&self.path);
        }
    }
}

impl Drop for OwnerDir {
    fn drop(&mut self) {
        self.remove_if_empty();
    }
}

/// Returns whether this process has made the folder at `path`.
fn is_own(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str());
    name.and_then(owner_pid) == Some(std::process::id())
}

/// Returns whether the process that made the folder at `path` has been killed, though some of its
/// threads have not ended yet: these hold its lock a little longer.
fn is_dying(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str());
    let Some(pid) = name.and_then(owner_pid) else {
        return false;
    };
    // The state follows the program's name, which may hold anything.
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| {
        let state = stat.rsplit_once(')').map(|(_, rest)| rest.trim_start());
        state.is_some_and(|state| state.starts_with(['Z', 'X']))
    })
}

/// Returns whether the owner of the folder at `path` lives.
///
/// # Errors
/// That it cannot be found out.
pub fn is_alive(path: &Path) -> io::Result<bool> {
    let lock = match File::open(path.join(LOCK)) {
        Ok(lock) => lock,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    };
    let began = Instant::now();
    loop {
        match flock(&lock, FlockOperation::NonBlockingLockShared) {
            Ok(()) => return Ok(false),
            Err(rustix::io::Errno::WOULDBLOCK) => {}
            Err(error) => return Err(error.into()),
        }
        // What was killed lets go of the lock only when the last of its threads has ended.
        if !is_dying(path) || began.elapsed() >= DYING {
            return Ok(true);
        }
        thread::sleep(DYING_POLL);
    }
}

/// Returns what lies in the folder at `path`. Changes nothing.
///
/// # Errors
/// That it cannot be read.
pub fn contents(path: &Path) -> io::Result<Contents> {
    let mut found = Contents::default();
    let mut data = Vec::new();
    let mut described = std::collections::HashSet::new();
    for file in fs::read_dir(path)? {
        let file = file?.path();
        let Some((id, kind)) = parse_name(&file) else {
            continue;
        };
        match kind {
            FileKind::New => found.leftovers.push(file),
            FileKind::Data => data.push((id, file)),
            FileKind::Description => {
                described.insert(id.clone());
                match read_entry(path, &id) {
                    Ok(entry) => found.entries.push(entry),
                    Err(Unreadable::Newer(_)) => found.newer.push(id),
                    Err(Unreadable::Damaged(why)) => found.damaged.push((id, why)),
                }
            }
        }
    }
    let alone = data.into_iter().filter(|(id, _)| !described.contains(id));
    found.leftovers.extend(alone.map(|(_, file)| file));
    found.entries.sort_by(|a, b| a.id.cmp(&b.id));
    Ok(found)
}

/// Reads an entry and checks that its data is there; the data's checksum is not compared.
///
/// # Errors
/// That it does not check out, or is of a later version.
pub fn read_entry(folder: &Path, id: &EntryId) -> Result<Found, Unreadable> {
    let unreadable = |error: io::Error| Unreadable::Damaged(format!("it cannot be read: {error}"));
    let mut text = Vec::new();
    open_own(&json_path(folder, id))
        .and_then(|json| json.take(MAX_DESCRIPTION + 1).read_to_end(&mut text))
        .map_err(unreadable)?;
    let (pending, data_checksum) = entry::decode(&text)?;
    let len = open_own(&data_path(folder, id))
        .and_then(|data| data.metadata())
        .map_err(|error| Unreadable::Damaged(format!("its data cannot be read: {error}")))?
        .len();
    if len < pending.size {
        return Err(Unreadable::Damaged(format!(
            "{len} bytes instead of {}",
            pending.size
        )));
    }
    Ok(Found {
        id: id.clone(),
        pending,
        data_checksum,
    })
}

/// The lock of a scope: held while owners are made and adopted there, which may take seconds.
///
/// # Errors
/// That the disk refuses.
pub fn lock_scope(scope: &Path, wait: bool) -> io::Result<File> {
    let lock = open_lock(&scope.join(LOCK))?;
    let how = if wait {
        FlockOperation::LockExclusive
    } else {
        FlockOperation::NonBlockingLockExclusive
    };
    flock(&lock, how)?;
    Ok(lock)
}

/// Returns the folders of owners in `scope`, living and dead.
///
/// # Errors
/// That it cannot be read.
pub fn owners(scope: &Path) -> io::Result<Vec<PathBuf>> {
    let mut owners = Vec::new();
    for entry in fs::read_dir(scope)? {
        let entry = entry?;
        let name = entry.file_name();
        let is_owner = name.to_str().and_then(owner_pid).is_some();
        if is_owner && entry.file_type()?.is_dir() {
            owners.push(entry.path());
        }
    }
    owners.sort();
    Ok(owners)
}

/// Returns the process that made a folder of this name.
pub fn owner_pid(name: &str) -> Option<u32> {
    let (pid, random) = name.split_once('-')?;
    let is_random = random.len() == 8 && random.bytes().all(|byte| byte.is_ascii_hexdigit());
    pid.parse().ok().filter(|_| is_random)
}

fn data_name(id: &EntryId) -> String {
    format!("{id}.data")
}

fn json_name(id: &EntryId) -> String {
    format!("{id}.json")
}

/// Returns the path of an entry's data.
pub fn data_path(folder: &Path, id: &EntryId) -> PathBuf {
    folder.join(data_name(id))
}

/// Returns the path of an entry's description.
pub fn json_path(folder: &Path, id: &EntryId) -> PathBuf {
    folder.join(json_name(id))
}

/// Returns the path of an entry's description on its way.
pub fn new_path(folder: &Path, id: &EntryId) -> PathBuf {
    folder.join(format!("{id}.json.{NEW}"))
}

enum FileKind {
    Data,
    Description,
    New,
}

fn parse_name(path: &Path) -> Option<(EntryId, FileKind)> {
    let (id, kind) = path.file_name()?.to_str()?.split_once('.')?;
    let kind = match kind {
        "data" => FileKind::Data,
        "json" => FileKind::Description,
        "json.new" => FileKind::New,
        _ => return None,
    };
    Some((id.parse().ok()?, kind))
}

/// Opens a file of ours for reading; a symbolic link is refused.
///
/// # Errors
/// That it cannot be opened.
pub fn open_own(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW)
        .open(path)
}

/// Makes `dir` if it is missing, refuses one that others could have planted, and closes it to them.
///
/// # Errors
/// That it cannot be made, or is not this user's.
pub fn private_folder(dir: &Path) -> io::Result<()> {
    private_dir(dir)?;
    let found = fs::symlink_metadata(dir)?;
    if found.mode() & 0o077 != 0 {
        fs::set_permissions(dir, fs::Permissions::from_mode(0o700))?;
    }
    Ok(())
}

/// Makes what happened in the folder at `path` durable.
///
/// # Errors
/// That the disk refuses.
pub fn sync_dir(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

fn open_lock(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(path)
}

#[cfg(test)]
#[path = "owner_tests.rs"]
mod tests;
