//! The paces of one store's requests, shared by all processes of a user on this machine.
//!
//! On disk, one small file for each store, named by a hash of server and store: a magic, the
//! [`Pace`] of each kind, a checksum. To let a request begin, a process locks it with `flock`,
//! reads, changes and writes it, which takes microseconds; no process holds the lock while a
//! request is under way. A lock that cannot be taken at once is held by a process that was stopped
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

/// Kinds of requests that have a pace of their own.
pub const KINDS: usize = 4;

const MAGIC: &[u8; 16] = b"kvfs budget 2\n\0\0";
const FILE_LEN: usize = MAGIC.len() + KINDS * PACE_LEN + 8;
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
            shared: None,
        }))
    }

    /// Shares them from now on with all processes that name the same folder and store.
    ///
    /// Nothing is written before the server is known to limit.
    pub fn share(&self, dir: &Path, name: &str) {
        self.0.lock().shared = Some(Shared {
            path: dir.join(name),
            file: None,
        });
    }

    /// Lets a request begin now; see [`Pace::take`].
    ///
    /// # Errors
    /// How long to wait before asking again.
    pub fn take(&self, kind: usize, priority: Priority, now: Moment) -> Result<(), Duration> {
        let mut state = self.0.lock();
        if !state.paces[kind].is_enforced() {
            return Ok(());
        }
        state.change(now, |paces| paces[kind].take(priority, now))
    }

    /// Returns the limit of a kind, in requests a second; `None` while there is none.
    pub fn limit(&self, kind: usize) -> Option<f64> {
        let pace = self.0.lock().paces[kind];
        pace.is_enforced().then(|| pace.limit())
    }

    /// Notes a limit that the server named, in requests a second.
    pub fn learn(&self, kind: usize, per_second: f64, now: Moment) {
        let mut state = self.0.lock();
        let pace = &state.paces[kind];
        if !pace.is_enforced() || pace.limit() != per_second {
            state.change(now, |paces| paces[kind].learn(per_second));
        }
    }

    /// Notes a 429; see [`Pace::refuse`].
    pub fn refuse(&self, kind: usize, now: Moment, retry_after: Option<Duration>, was_paced: bool) {
        let mut state = self.0.lock();
        state.change(now, |paces| {
            paces[kind].refuse(now, retry_after, was_paced);
        });
    }
}

impl State {
    /// Changes the paces, in the file where they are shared.
    fn change<T>(&mut self, now: Moment, change: impl FnOnce(&mut [Pace; KINDS]) -> T) -> T {
        let Some(shared) = &mut self.shared else {
            return change(&mut self.paces);
        };
        let (result, failure) = shared.change(&mut self.paces, now, change);
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
    /// Changes the paces in the file, else these only; says what is wrong with the file.
    fn change<T>(
        &mut self,
        paces: &mut [Pace; KINDS],
        now: Moment,
        change: impl FnOnce(&mut [Pace; KINDS]) -> T,
    ) -> (T, io::Result<()>) {
        let locked = match self.lock() {
            Ok(Some(locked)) => locked,
            Ok(None) => return (change(paces), Ok(())),
            Err(error) => return (change(paces), Err(error)),
        };
        if let Some(known) = locked.read(now) {
            for (mine, known) in paces.iter_mut().zip(known) {
                // What this process has learnt and the file does not say is not lost.
                if known.is_enforced() || !mine.is_enforced() {
                    *mine = known;
                }
            }
        }
        let result = change(paces);
        (result, locked.write(paces))
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
    fn read(&self, now: Moment) -> Option<[Pace; KINDS]> {
        let mut bytes = [0; FILE_LEN];
        self.0.read_exact_at(&mut bytes, 0).ok()?;
        let (content, sum) = bytes.split_last_chunk::<8>()?;
        let (magic, mut rest) = content.split_first_chunk::<16>()?;
        if magic != MAGIC || u64::from_le_bytes(*sum) != XxHash3_64::oneshot(content) {
            return None;
        }
        let mut paces = [Pace::new(1.0, false); KINDS];
        for pace in &mut paces {
            let (bytes, after) = rest.split_first_chunk::<PACE_LEN>()?;
            *pace = Pace::from_bytes(bytes, now)?;
            rest = after;
        }
        Some(paces)
    }

    fn write(&self, paces: &[Pace; KINDS]) -> io::Result<()> {
        let mut bytes = Vec::with_capacity(FILE_LEN);
        bytes.extend_from_slice(MAGIC);
        for pace in paces {
            bytes.extend_from_slice(&pace.to_bytes());
        }
        bytes.extend_from_slice(&XxHash3_64::oneshot(&bytes).to_le_bytes());
        self.0.write_all_at(&bytes, 0)
    }
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

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;

    const NAME: &str = "store";
    const LIMITS: [f64; KINDS] = [200.0, 60.0, 60.0, 200.0];

    fn process(dir: &Path) -> Budgets {
        let budgets = Budgets::new(LIMITS, true);
        budgets.share(dir, NAME);
        budgets
    }

    /// Runs processes that all want as much as they can get, for this long; returns when requests
    /// began, and in which process.
    fn saturate(processes: &[(Budgets, Priority)], span: Duration) -> Vec<(Moment, usize)> {
        let start = Duration::from_secs(100);
        let mut turns: VecDeque<(Moment, usize)> =
            (0..processes.len()).map(|index| (start, index)).collect();
        let mut begun = Vec::new();
        while let Some((now, index)) = turns.pop_front() {
            if now > start + span {
                continue;
            }
            let (budgets, priority) = &processes[index];
            let again = match budgets.take(0, *priority, now) {
                Ok(()) => {
                    begun.push((now, index));
                    now
                }
                Err(wait) => now + wait,
            };
            let place = turns.partition_point(|(at, _)| *at <= again);
            turns.insert(place, (again, index));
        }
        begun
    }

    fn most_in_a_second(begun: &[(Moment, usize)]) -> usize {
        let mut from = 0;
        let mut most = 0;
        for (at, (moment, _)) in begun.iter().enumerate() {
            while *moment >= begun[from].0 + Duration::from_secs(1) {
                from += 1;
            }
            most = most.max(at - from + 1);
        }
        most
    }

    #[test]
    fn three_processes_together_keep_to_the_limit() {
        let dir = tempfile::tempdir().expect("a temp folder");
        let processes: Vec<_> = (0..3)
            .map(|_| (process(dir.path()), Priority::Prefetch))
            .collect();
        let begun = saturate(&processes, Duration::from_secs(60));
        assert!(
            most_in_a_second(&begun) <= 200,
            "{}",
            most_in_a_second(&begun)
        );
        assert!(begun.len() > 60 * 170, "{}", begun.len());
        for index in 0..3 {
            let share = begun.iter().filter(|(_, other)| *other == index).count();
            assert!(
                share > begun.len() / 10,
                "{index} got {share} of {}",
                begun.len()
            );
        }
    }

    #[test]
    fn a_person_goes_before_the_prefetching_of_another_process() {
        let dir = tempfile::tempdir().expect("a temp folder");
        let processes = [
            (process(dir.path()), Priority::Foreground),
            (process(dir.path()), Priority::Prefetch),
        ];
        let begun = saturate(&processes, Duration::from_secs(20));
        assert!(most_in_a_second(&begun) <= 200);
        let urgent = begun.iter().filter(|(_, index)| *index == 0).count();
        assert!(
            urgent * 100 > begun.len() * 98,
            "{urgent} of {}",
            begun.len()
        );
    }

    #[test]
    fn what_one_process_is_told_the_others_know() {
        let dir = tempfile::tempdir().expect("a temp folder");
        let (one, other) = (process(dir.path()), process(dir.path()));
        let now = Duration::from_secs(100);
        one.learn(1, 10.0, now);
        one.refuse(1, now, Some(Duration::from_secs(5)), true);
        let wait = other
            .take(1, Priority::Foreground, now)
            .expect_err("a pause");
        assert!(wait >= Duration::from_secs(5), "{wait:?}");
        assert_eq!(
            other.take(0, Priority::Foreground, now),
            Ok(()),
            "another kind"
        );
    }

    #[test]
    fn a_missing_broken_or_locked_file_is_no_hindrance() {
        let dir = tempfile::tempdir().expect("a temp folder");
        let path = dir.path().join(NAME);
        let mut now = Duration::from_secs(100);
        let mut both_take = |what: &str| {
            now += Duration::from_secs(10);
            let (one, other) = (process(dir.path()), process(dir.path()));
            let mut begun = 0;
            while one.take(1, Priority::Listing, now).is_ok()
                || other.take(1, Priority::Listing, now).is_ok()
            {
                begun += 1;
            }
            assert!((1..=6).contains(&begun), "{what}: {begun}");
        };
        both_take("missing");
        fs::write(&path, b"").expect("an empty file");
        both_take("empty");
        fs::write(&path, [0xff; FILE_LEN]).expect("a broken file");
        both_take("broken");
        fs::write(&path, vec![7; 1 << 16]).expect("a large file");
        both_take("large");
        fs::remove_file(&path).expect("a file");
        let removed = process(dir.path());
        assert_eq!(removed.take(1, Priority::Listing, now), Ok(()));
        fs::remove_file(&path).expect("it was made again");
        assert_eq!(removed.take(1, Priority::Listing, now), Ok(()));
        assert!(path.exists(), "a removed file is not written on in secret");
        // A process was stopped while holding the lock: this process counts for itself.
        let held = File::open(&path).expect("a file");
        flock(&held, FlockOperation::LockExclusive).expect("a lock");
        let stuck = process(dir.path());
        assert_eq!(stuck.take(1, Priority::Listing, now), Ok(()));
        while stuck.take(1, Priority::Listing, now).is_ok() {}
        // No folder can be made below a file.
        let nowhere = Budgets::new(LIMITS, true);
        nowhere.share(&path.join("x"), NAME);
        assert_eq!(nowhere.take(1, Priority::Listing, now), Ok(()));
        while nowhere.take(1, Priority::Listing, now).is_ok() {}
    }

    #[test]
    fn nothing_is_written_for_a_server_that_does_not_limit() {
        let dir = tempfile::tempdir().expect("a temp folder");
        let budgets = Budgets::new(LIMITS, false);
        budgets.share(&dir.path().join("budgets"), NAME);
        for _ in 0..1000 {
            assert_eq!(budgets.take(0, Priority::Prefetch, now()), Ok(()));
        }
        assert!(!dir.path().join("budgets").exists());
    }
}
