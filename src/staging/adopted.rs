//! The bytes of entries that an earlier process journalled: opened only when somebody reads them, so
//! that more may wait than files may be open.

use std::collections::VecDeque;
use std::fmt;
use std::fs::File;
use std::io;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use super::entry::EntryId;
use super::journal::Journal;

/// Files that are kept open for who reads on in them.
const OPEN: usize = 32;

/// Makes a file of an entry's bytes: its content.
pub type Decode = Box<dyn Fn(File) -> io::Result<File> + Send + Sync>;

/// The files that are kept open, the one opened last at the end.
#[derive(Debug, Default)]
pub(super) struct OpenFiles(Mutex<VecDeque<Arc<File>>>);

/// An entry's bytes.
pub(super) struct Adopted {
    journal: Arc<Journal>,
    id: EntryId,
    decode: Option<Decode>,
    open: Arc<OpenFiles>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// They are what the earlier process wrote.
    verified: bool,
    file: Weak<File>,
    pinned: Option<Arc<File>>,
}

impl fmt::Debug for Adopted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Adopted").field(&self.id).finish()
    }
}

impl Adopted {
    pub(super) fn new(
        journal: &Arc<Journal>,
        id: &EntryId,
        decode: Option<Decode>,
        open: &Arc<OpenFiles>,
    ) -> Self {
        Self {
            journal: Arc::clone(journal),
            id: id.clone(),
            decode,
            open: Arc::clone(open),
            state: Mutex::default(),
        }
    }

    /// Returns the open file. The first time its bytes are checked.
    pub(super) fn open(&self) -> io::Result<Arc<File>> {
        let verified = {
            let state = self.state.lock();
            if let Some(file) = state.pinned.clone().or_else(|| state.file.upgrade()) {
                return Ok(file);
            }
            state.verified
        };
        if !verified {
            self.journal.verify(&self.id)?;
        }
        let data = self.journal.open(&self.id)?;
        let file = Arc::new(match &self.decode {
            Some(decode) => decode(data)?,
            None => data,
        });
        {
            let mut state = self.state.lock();
            state.verified = true;
            state.file = Arc::downgrade(&file);
        }
        let mut open = self.open.0.lock();
        open.push_back(Arc::clone(&file));
        let oldest = (open.len() > OPEN).then(|| open.pop_front());
        drop(open);
        drop(oldest);
        Ok(file)
    }

    /// Keeps it open: the entry is about to go.
    pub(super) fn pin(&self) {
        if let Ok(file) = self.open() {
            self.state.lock().pinned = Some(file);
        }
    }
}
