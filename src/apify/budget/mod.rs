//! The paces of one store's requests, shared by all processes of a user on this machine.
//!
//! On disk, one small file for each store, named by a hash of server and store: for each kind a
//! magic, its [`Pace`], a checksum. When a request begins and when its answer comes, a process locks
//! the file with `flock`, reads, changes and writes that kind's part, which takes microseconds; no
//! process holds the lock while a request is under way. A lock that cannot be taken at once is held by a process that was stopped
//! in between: then, and where the file cannot be made, read or written, this process counts for
//! itself. A missing, torn or nonsensical file counts as one in which nothing has happened yet.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use twox_hash::XxHash3_64;

use super::pace::{Moment, PACE_LEN, Pace};
use crate::base::sync::{self, Mutex, thread};
use crate::store::Priority;

#[cfg(test)]
mod tests;

/// Kinds of requests that have a pace of their own.
pub const KINDS: usize = 4;

const MAGIC: &[u8; 16] = b"kvfs budget 3\n\0\0";
/// Other versions' files have other names.
const VERSION: &str = "3";
const PART_LEN: usize = MAGIC.len() + PACE_LEN + 8;
/// Answers after which a request is likely to have found a connection: as many as are made at once.
const CONNECTED: usize = super::limit::MAX_IN_FLIGHT;
/// The lock is tried so often, and between tries others get so much time.
const TRIES: usize = 50;
const PAUSE: Duration = Duration::from_micros(100);
/// A file that has not been written to for this long is removed.
const FORGOTTEN: Duration = Duration::from_secs(7 * 24 * 3600);

/// Returns the time since the machine was started.
pub fn now() -> Moment {
    sync::since_boot()
}

/// The paces of all kinds.
#[derive(Debug)]
pub struct Budgets(Mutex<State>);

#[derive(Debug)]
struct State {
    /// As this process last saw them.
    paces: [Pace; KINDS],
    /// Answers that this process got.
    answers: usize,
    shared: Option<Shared>,
}

#[derive(Debug)]
struct Shared {
    path: PathBuf,
    file: Option<File>,
}

impl Budgets {
    /// Returns paces of this process alone, by requests a second.
    pub fn new(limits: [f64; KINDS], is_enforced: bool) -> Self {
        Self(Mutex::new(State {
            paces: limits.map(|limit| Pace::new(limit, is_enforced)),
            answers: 0,
            shared: None,
        }))
    }

    /// Shares them from now on with all processes that name the same folder and store.
    ///
    /// Nothing is written before the server is known to limit.
    pub fn share(&self, dir: &Path, name: &str) {
        self.0.lock().shared = Some(Shared {
            path: dir.join(format!("{name}.{VERSION}")),
            file: None,
        });
    }

    /// Lets a request begin now; see [`Pace::take`].
    ///
    /// # Errors
    /// How long to wait before asking again.
    pub fn take(&self, kind: usize, priority: Priority, now: Moment) -> Result<(), Duration> {
        let mut state = self.0.lock();
        state.count(kind, now, |pace| pace.take(priority, now))
    }

    /// Notes that a request that began at `departed` is answered.
    pub fn answered(&self, kind: usize, priority: Priority, departed: Moment, now: Moment) {
        let mut state = self.0.lock();
        state.answers = state.answers.saturating_add(1);
        let took = (state.answers > CONNECTED).then(|| now.saturating_sub(departed));
        state.count(kind, now, |pace| pace.land(priority, departed, now, took));
    }

    /// Notes that a request that began at `departed` has failed.
    pub fn failed(&self, kind: usize, priority: Priority, departed: Moment, now: Moment) {
        let mut state = self.0.lock();
        state.count(kind, now, |pace| pace.land(priority, departed, now, None));
    }

    /// Returns the limit of a kind, in requests a second; `None` while there is none.
    pub fn limit(&self, kind: usize) -> Option<f64> {
        let state = self.0.lock();
        let pace = &state.paces[kind];
        pace.is_enforced().then(|| pace.limit())
    }

    /// Notes a limit that the server named, in requests a second.
    pub fn learn(&self, kind: usize, per_second: f64, now: Moment) {
        let mut state = self.0.lock();
        let pace = &state.paces[kind];
        if !pace.is_enforced() || pace.limit() != per_second {
            state.change(kind, now, |pace| pace.learn(per_second));
        }
    }

    /// Notes a 429; see [`Pace::refuse`].
    pub fn refuse(&self, kind: usize, now: Moment, retry_after: Option<Duration>, was_paced: bool) {
        let mut state = self.0.lock();
        state.change(kind, now, |pace| pace.refuse(now, retry_after, was_paced));
    }
}

impl State {
    /// Changes a pace, in the file only if the server is known to limit.
    fn count<T>(&mut self, kind: usize, now: Moment, change: impl FnOnce(&mut Pace) -> T) -> T {
        if self.paces[kind].is_enforced() {
            self.change(kind, now, change)
        } else {
            change(&mut self.paces[kind])
        }
    }

    /// Changes a pace, in the file where it is shared.
    fn change<T>(&mut self, kind: usize, now: Moment, change: impl FnOnce(&mut Pace) -> T) -> T {
        let pace = &mut self.paces[kind];
        let Some(shared) = &mut self.shared else {
            return change(pace);
        };
        let (result, failure) = shared.change(kind, pace, now, change);
        if let Err(error) = failure {
            self.give_up(&error);
        }
        result
    }

    fn give_up(&mut self, error: &io::Error) {
        if let Some(shared) = self.shared.take() {
            tracing::warn!(
                "requests are not counted together with those of other kvfs processes: {}: {error}; with several mounts of one store, make that folder writable",
                shared.path.display()
            );
        }
    }
}

impl Shared {
    /// Changes a pace in the file, else this one only; says what is wrong with the file.
    fn change<T>(
        &mut self,
        kind: usize,
        pace: &mut Pace,
        now: Moment,
        change: impl FnOnce(&mut Pace) -> T,
    ) -> (T, io::Result<()>) {
        let locked = match self.lock() {
            Ok(Some(locked)) => locked,
            Ok(None) => return (change(pace), Ok(())),
            Err(error) => return (change(pace), Err(error)),
        };
        // What this process has learnt and the file does not say is not lost.
        if let Some(mut known) = locked.read(kind, now)
            && (known.is_enforced() || !pace.is_enforced())
        {
            if !pace.is_enforced() {
                known.add_requests(pace);
            }
            *pace = known;
        }
        let result = change(pace);
        (result, locked.write(kind, pace))
    }

    /// Locks the file; `None` when another process holds the lock for long.
    fn lock(&mut self) -> io::Result<Option<Locked<'_>>> {
        // A removed file is no longer shared.
        if self
            .file
            .as_ref()
            .is_some_and(|file| file.metadata().is_ok_and(|meta| meta.nlink() == 0))
        {
            self.file = None;
        }
        let file = match self.file.take() {
            Some(file) => file,
            None => open(&self.path)?,
        };
        let file = self.file.insert(file);
        for _ in 0..TRIES {
            match flock(&*file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(Some(Locked(file))),
                Err(rustix::io::Errno::WOULDBLOCK | rustix::io::Errno::INTR) => {
                    thread::sleep(PAUSE);
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(None)
    }
}

/// The file while this process has it for itself.
struct Locked<'a>(&'a File);

impl Locked<'_> {
    fn read(&self, kind: usize, now: Moment) -> Option<Pace> {
        let mut bytes = [0; PART_LEN];
        self.0.read_exact_at(&mut bytes, place(kind)).ok()?;
        let (content, sum) = bytes.split_last_chunk::<8>()?;
        let (magic, pace) = content.split_first_chunk::<16>()?;
        if magic != MAGIC || u64::from_le_bytes(*sum) != XxHash3_64::oneshot(content) {
            return None;
        }
        Pace::from_bytes(pace, now)
    }

    fn write(&self, kind: usize, pace: &Pace) -> io::Result<()> {
        let mut bytes = Vec::with_capacity(PART_LEN);
        bytes.extend_from_slice(MAGIC);
        pace.write(&mut bytes);
        bytes.extend_from_slice(&XxHash3_64::oneshot(&bytes).to_le_bytes());
        self.0.write_all_at(&bytes, place(kind))
    }
}

fn place(kind: usize) -> u64 {
    (kind * PART_LEN) as u64
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        // Closing the file would do it too, at the latest.
        let _ = flock(self.0, FlockOperation::Unlock);
    }
}

/// Opens the file of a store, and removes unused ones.
fn open(path: &Path) -> io::Result<File> {
    let Some(dir) = path.parent() else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    let owner = rustix::process::geteuid().as_raw();
    if fs::metadata(dir)?.uid() != owner {
        return Err(io::Error::other("the folder belongs to another user"));
    }
    for entry in fs::read_dir(dir)?.flatten().take(1000) {
        let is_forgotten = entry
            .metadata()
            .and_then(|meta| meta.modified())
            .is_ok_and(|at| at.elapsed().is_ok_and(|age| age > FORGOTTEN));
        if is_forgotten && entry.path() != path {
            let _ = fs::remove_file(entry.path());
        }
    }
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC)
        .open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is not a file"));
    }
    Ok(file)
}
