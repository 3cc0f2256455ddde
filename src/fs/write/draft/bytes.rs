//! The bytes of a draft: read, written, cut off, synced.
//!
//! INVARIANT: frozen bytes stay as they are; a change of them makes a copy first.

use std::io;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use parking_lot::MutexGuard;

use super::{Draft, State};
use crate::base::clock::Wait;
use crate::fs::{FsError, Result};
use crate::staging::StagingFolder;
use crate::staging::file::StagingFile;

impl Draft {
    /// Reads `len` bytes at `offset`, fewer only at its end.
    ///
    /// # Errors
    /// [`FsError::WouldBlock`] and those of the local disk.
    pub fn read(&self, offset: u64, len: usize, wait: Wait) -> Result<Bytes> {
        let (file, size) = {
            let state = self.state.lock();
            (Arc::clone(&state.file), state.size)
        };
        let left = usize::try_from(size.saturating_sub(offset)).unwrap_or(usize::MAX);
        let len = len.min(left);
        let read = match wait {
            Wait::Never => file.read_now(offset, len),
            Wait::Until(_) => file.read_at(offset, len).map(Some),
        };
        let read = read.map_err(|error| FsError::staging("cannot read", &error))?;
        read.map(Bytes::from).ok_or(FsError::WouldBlock)
    }

    /// Writes bytes at `offset`.
    ///
    /// # Errors
    /// [`FsError::WouldBlock`] and those of the local disk.
    pub fn write(
        &self,
        offset: u64,
        bytes: &[u8],
        now: SystemTime,
        folder: &StagingFolder,
        wait: Wait,
    ) -> Result<()> {
        let end = offset.saturating_add(bytes.len() as u64);
        let change = |file: &StagingFile, size: u64| {
            file.write_at(offset, bytes)?;
            Ok(size.max(end))
        };
        self.edit_or(now, folder, wait, change, |state, done| match done {
            Ok(()) => state.write_again(offset..end),
            Err(error) => state.lose(offset..end, error),
        })
    }

    /// Cuts it off, or lengthens it with zeros.
    ///
    /// # Errors
    /// As for [`Draft::write`].
    pub fn set_size(
        &self,
        size: u64,
        now: SystemTime,
        folder: &StagingFolder,
        wait: Wait,
    ) -> Result<()> {
        if size == 0 {
            // Nothing of the old bytes is needed: no copy of what is frozen, a new file.
            return self.empty(now, folder, wait);
        }
        let change = |file: &StagingFile, _| file.set_len(size).map(|()| size);
        self.edit_or(now, folder, wait, change, |state, done| {
            if done.is_ok() {
                state.cut_off(size);
            }
        })
    }

    /// Changes the bytes; `change` gets the size and returns the new one.
    ///
    /// # Errors
    /// As for [`Draft::write`].
    pub fn edit(
        &self,
        now: SystemTime,
        folder: &StagingFolder,
        wait: Wait,
        change: impl FnOnce(&StagingFile, u64) -> io::Result<u64>,
    ) -> Result<()> {
        self.edit_or(now, folder, wait, change, |_, _| ())
    }

    /// As [`Draft::edit`]; `note` sees the result before any other thread can.
    fn edit_or(
        &self,
        now: SystemTime,
        folder: &StagingFolder,
        wait: Wait,
        change: impl FnOnce(&StagingFile, u64) -> io::Result<u64>,
        note: impl FnOnce(&mut State, Result<(), &FsError>),
    ) -> Result<()> {
        let _order = self.take_order(wait)?;
        let (mut file, size) = {
            let state = self.state.lock();
            (Arc::clone(&state.file), state.size)
        };
        let changed = (|| {
            if file.is_frozen() {
                if wait == Wait::Never {
                    return Err(FsError::WouldBlock);
                }
                file = file
                    .copy(size, folder)
                    .map_err(|error| FsError::staging("cannot copy", &error))?;
                self.state.lock().file = Arc::clone(&file);
            }
            let changed = file.mend(size).and_then(|()| change(&file, size));
            changed.map_err(|error| FsError::staging("cannot write", &error))
        })();
        let mut state = self.state.lock();
        match changed {
            Ok(new_size) => {
                state.size = new_size;
                state.untouched = false;
                state.changed(now);
                note(&mut state, Ok(()));
                Ok(())
            }
            Err(error) => {
                note(&mut state, Err(&error));
                Err(error)
            }
        }
    }

    fn empty(&self, now: SystemTime, folder: &StagingFolder, wait: Wait) -> Result<()> {
        let _order = self.take_order(wait)?;
        let file = Arc::clone(&self.state.lock().file);
        let file = if file.is_frozen() {
            StagingFile::new(folder)
        } else {
            file.set_len(0).map(|()| file)
        };
        let file = file.map_err(|error| FsError::staging("cannot empty", &error))?;
        let mut state = self.state.lock();
        state.file = file;
        state.size = 0;
        state.untouched = true;
        state.changed(now);
        state.empty();
        Ok(())
    }

    fn take_order(&self, wait: Wait) -> Result<MutexGuard<'_, ()>> {
        match wait {
            Wait::Never => self.order.try_lock().ok_or(FsError::WouldBlock),
            // Its holder works on the local disk.
            Wait::Until(_) => Ok(self.order.lock()),
        }
    }
}

impl State {
    fn changed(&mut self, now: SystemTime) {
        self.change += 1;
        self.modified = now;
    }
}
