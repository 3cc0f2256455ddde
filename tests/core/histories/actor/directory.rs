//! The lock that the kernel has on a directory.

use parking_lot::{Condvar, Mutex};

/// The kernel's lock of the directory: one name at a time is made, deleted or changed. A program that
/// is ended gives it up, though the daemon still works for it.
#[derive(Debug, Default)]
pub struct Directory {
    owner: Mutex<Option<usize>>,
    free: Condvar,
}

impl Directory {
    pub(super) fn lock(&self, step: usize) -> Locked<'_> {
        let mut owner = self.owner.lock();
        while owner.is_some() {
            self.free.wait(&mut owner);
        }
        *owner = Some(step);
        Locked(self, step)
    }

    /// Frees it if that step has it.
    pub fn give_up(&self, step: usize) {
        let mut owner = self.owner.lock();
        if *owner == Some(step) {
            *owner = None;
        }
        self.free.notify_all();
    }
}

pub(super) struct Locked<'a>(&'a Directory, usize);

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        self.0.give_up(self.1);
    }
}
