//! How many bytes may lie in a staging folder: what is being written and what waits to be uploaded.
//!
//! INVARIANT: the sum of all [`Space`]s is what [`Budget::used`] says; a space gives back what it
//! has when it is dropped.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;

use parking_lot::Mutex;

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
            bytes: 0,
        }
    }

    /// Takes `bytes` that are there already, whatever the limit.
    pub fn occupied(self: &Arc<Self>, bytes: u64) -> Space {
        self.state.lock().used += bytes;
        Space {
            budget: Arc::clone(self),
            bytes,
        }
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
    bytes: u64,
}

impl Space {
    /// Returns how many bytes it has.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Takes as much as `bytes` need; what it has beyond that it keeps.
    ///
    /// # Errors
    /// `ENOSPC` when the limit or the disk does not allow it; nothing is then taken.
    pub fn grow_to(&mut self, bytes: u64) -> io::Result<()> {
        if let Some(more) = bytes.checked_sub(self.bytes).filter(|more| *more > 0) {
            self.budget.take(more)?;
            self.bytes = bytes;
        }
        Ok(())
    }

    /// Gives back what is beyond `bytes`.
    pub fn shrink_to(&mut self, bytes: u64) {
        if let Some(less) = self.bytes.checked_sub(bytes) {
            self.budget.state.lock().used -= less;
            self.bytes = bytes;
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
    fn without_a_limit_the_disk_decides() {
        let (_dir, budget) = budget(None);
        let mut space = budget.space();
        space.grow_to(1).expect("room");
        let error = space.grow_to(u64::MAX / 2).expect_err("no such disk");
        assert_eq!(error.raw_os_error(), Some(libc::ENOSPC));
        assert_eq!(space.bytes(), 1);
    }
}
