//! Bounds the bytes in a staging folder: of files being written and of files waiting to be
//! uploaded.
//!
//! INVARIANT: [`Budget::used`] is the sum of all [`Space`]s, where those of one file count as the
//! largest of them; a dropped space gives back its bytes.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;

use crate::base::sync::Mutex;

/// Without a limit of its own, a staging folder leaves this much of its disk free, in bytes, or a
/// twentieth of the disk if that is less.
const RESERVE: u64 = 1 << 30;
/// How many bytes may be taken between two looks at the disk's free space.
const LOOK_EVERY: u64 = 8 << 20;

/// The bytes of one staging folder.
#[derive(Debug)]
pub struct Budget {
    folder: File,
    limit: Option<u64>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    used: u64,
    /// What may still be taken before the disk is looked at again.
    credit: u64,
    /// The spaces of files, by inode: a file that is open and in the journal has two.
    files: HashMap<u64, Vec<u64>>,
}

impl State {
    fn counted(&self, inode: u64) -> u64 {
        let spaces = self.files.get(&inode);
        spaces.into_iter().flatten().copied().max().unwrap_or(0)
    }

    /// Changes a space; `taken` bytes more are counted for it already.
    fn resize(&mut self, inode: Option<u64>, from: u64, to: u64, taken: u64) {
        let (before, after) = match inode {
            None => (from, to),
            Some(inode) => {
                let before = self.counted(inode);
                let spaces = self.files.entry(inode).or_default();
                if let Some(at) = spaces.iter().position(|bytes| *bytes == from && from > 0) {
                    spaces.swap_remove(at);
                }
                if to > 0 {
                    spaces.push(to);
                }
                if spaces.is_empty() {
                    self.files.remove(&inode);
                }
                (before, self.counted(inode))
            }
        };
        self.used = (self.used + after).saturating_sub(before + taken);
    }
}

impl Budget {
    /// Returns the budget of `folder`: `limit` bytes, or what its disk can spare.
    pub fn new(folder: File, limit: Option<u64>) -> Arc<Self> {
        Arc::new(Self {
            folder,
            limit,
            state: Mutex::default(),
        })
    }

    /// Returns how many bytes are taken.
    pub fn used(&self) -> u64 {
        self.state.lock().used
    }

    /// Returns how many bytes can still be taken.
    #[cfg(feature = "testing")]
    pub fn available(&self) -> u64 {
        let spare = spare_bytes(&self.folder).unwrap_or(u64::MAX);
        match self.limit {
            Some(limit) => spare.min(limit.saturating_sub(self.used())),
            None => spare,
        }
    }

    /// Returns a space of no bytes.
    pub fn space(self: &Arc<Self>) -> Space {
        Space {
            budget: Arc::clone(self),
            inode: None,
            bytes: 0,
        }
    }

    /// Returns a space of no bytes for a file, which may have other spaces.
    pub fn space_of(self: &Arc<Self>, file: &File) -> Space {
        let inode = rustix::fs::fstat(file.as_fd()).map(|stat| stat.st_ino);
        Space {
            budget: Arc::clone(self),
            inode: inode.ok(),
            bytes: 0,
        }
    }

    /// Takes `bytes` that are there already, whatever the limit.
    pub fn occupied(self: &Arc<Self>, bytes: u64) -> Space {
        self.space().at_least(bytes)
    }

    /// Takes `bytes` of a file, which may have other spaces, whatever the limit.
    pub fn occupied_by(self: &Arc<Self>, file: &File, bytes: u64) -> Space {
        self.space_of(file).at_least(bytes)
    }

    fn take(&self, bytes: u64) -> io::Result<()> {
        let full = || Err(io::Error::from_raw_os_error(libc::ENOSPC));
        {
            let mut state = self.state.lock();
            if self
                .limit
                .is_some_and(|limit| state.used.saturating_add(bytes) > limit)
            {
                return full();
            }
            if self.limit.is_some() || bytes <= state.credit {
                state.credit = state.credit.saturating_sub(bytes);
                state.used += bytes;
                return Ok(());
            }
        }
        // The disk is asked without the lock; two that ask at once may both get the last credit.
        let spare = spare_bytes(&self.folder)?;
        if bytes > spare {
            return full();
        }
        let mut state = self.state.lock();
        state.credit = (spare - bytes).min(LOOK_EVERY);
        state.used += bytes;
        Ok(())
    }
}

/// The bytes of one file in the staging folder. Dropping it gives them back.
#[derive(Debug)]
pub struct Space {
    budget: Arc<Budget>,
    inode: Option<u64>,
    bytes: u64,
}

impl Space {
    /// Returns how many bytes it has.
    #[cfg(feature = "testing")]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Takes as much as `bytes` need; what it has beyond that it keeps.
    ///
    /// # Errors
    /// `ENOSPC` when the limit or the disk does not allow it; nothing is then taken.
    pub fn grow_to(&mut self, bytes: u64) -> io::Result<()> {
        if bytes <= self.bytes {
            return Ok(());
        }
        let counted = match self.inode {
            Some(inode) => self.budget.state.lock().counted(inode),
            None => self.bytes,
        };
        let more = bytes.saturating_sub(counted);
        if more > 0 {
            self.budget.take(more)?;
        }
        self.resize(bytes, more);
        Ok(())
    }

    fn resize(&mut self, bytes: u64, taken: u64) {
        let mut state = self.budget.state.lock();
        state.resize(self.inode, self.bytes, bytes, taken);
        drop(state);
        self.bytes = bytes;
    }

    fn at_least(mut self, bytes: u64) -> Self {
        self.resize(bytes, 0);
        self
    }

    /// Gives back what is beyond `bytes`.
    pub fn shrink_to(&mut self, bytes: u64) {
        if bytes < self.bytes {
            self.resize(bytes, 0);
        }
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        self.shrink_to(0);
    }
}

/// Returns how much of the disk under `folder` may be used.
fn spare_bytes(folder: impl AsFd) -> io::Result<u64> {
    let disk = rustix::fs::fstatvfs(folder)?;
    let reserve = (disk.f_blocks.saturating_mul(disk.f_frsize) / 20).min(RESERVE);
    Ok(disk
        .f_bavail
        .saturating_mul(disk.f_frsize)
        .saturating_sub(reserve))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn budget(limit: Option<u64>) -> (tempfile::TempDir, Arc<Budget>) {
        let dir = tempfile::tempdir().expect("a folder");
        let file = File::open(dir.path()).expect("it");
        (dir, Budget::new(file, limit))
    }

    #[test]
    fn no_more_than_the_limit_is_taken_and_all_is_given_back() {
        let (_dir, budget) = budget(Some(100));
        let mut first = budget.space();
        first.grow_to(60).expect("room");
        let mut second = budget.occupied(30);
        assert_eq!(
            second.grow_to(41).map_err(|error| error.raw_os_error()),
            Err(Some(libc::ENOSPC))
        );
        assert_eq!((second.bytes(), budget.used()), (30, 90));
        second.grow_to(40).expect("room");
        second.grow_to(10).expect("has it already");
        assert_eq!((second.bytes(), budget.available()), (40, 0));
        first.shrink_to(20);
        assert_eq!(budget.used(), 60);
        drop(first);
        drop(second);
        assert_eq!(budget.used(), 0);
    }

    #[test]
    fn the_spaces_of_one_file_count_as_the_largest_of_them() {
        let (dir, budget) = budget(Some(100));
        let file = File::open(dir.path()).expect("a file");
        let mut written = budget.space_of(&file);
        written.grow_to(60).expect("room");
        let pending = budget.occupied_by(&file, 60);
        assert_eq!(budget.used(), 60);
        written.grow_to(70).expect("room");
        assert_eq!(budget.used(), 70);
        let mut other = budget.space();
        other.grow_to(31).expect_err("no room");
        other.grow_to(30).expect("room");
        written.grow_to(71).expect_err("no room");
        written.shrink_to(10);
        assert_eq!(budget.used(), 90);
        drop(written);
        assert_eq!(budget.used(), 90);
        drop(pending);
        assert_eq!(budget.used(), 30);
        drop(other);
        assert_eq!(budget.used(), 0);
        assert!(budget.state.lock().files.is_empty());
    }

    #[test]
    fn without_a_limit_the_disk_decides() {
        let (_dir, budget) = budget(None);
        let mut space = budget.space();
        space.grow_to(1).expect("room");
        let error = space.grow_to(u64::MAX / 2).expect_err("no such disk");
        assert_eq!(error.raw_os_error(), Some(libc::ENOSPC));
        assert_eq!(space.bytes(), 1);
    }
}
