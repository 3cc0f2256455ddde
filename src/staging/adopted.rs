//! The bytes of entries that an earlier process journalled: opened only when they are read, so that
//! more may wait than files may be open.

use std::collections::VecDeque;
use std::fmt;
use std::fs::File;
use std::io;
use std::sync::{Arc, Weak};

use super::entry::EntryId;
use super::journal::Journal;
use crate::base::sync::Mutex;

/// Files that are kept open for the next read.
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

    /// Returns the file if it is open.
    pub(super) fn opened(&self) -> Option<Arc<File>> {
        let state = self.state.lock();
        state.pinned.clone().or_else(|| state.file.upgrade())
    }

    /// Returns the open file. The first time its bytes are checked.
    pub(super) fn open(&self) -> io::Result<Arc<File>> {
        if let Some(file) = self.opened() {
            return Ok(file);
        }
        let verified = self.state.lock().verified;
        let file = match self.open_entry(verified) {
            Ok(file) => Arc::new(file),
            // The entry may have gone meanwhile: then its bytes were pinned before.
            Err(error) => return self.state.lock().pinned.clone().ok_or(error),
        };
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

    fn open_entry(&self, verified: bool) -> io::Result<File> {
        if !verified {
            self.journal.verify(&self.id)?;
        }
        let data = self.journal.open(&self.id)?;
        match &self.decode {
            Some(decode) => decode(data),
            None => Ok(data),
        }
    }

    /// Keeps it open: the entry is about to go.
    pub(super) fn pin(&self) {
        if let Ok(file) = self.open() {
            self.state.lock().pinned = Some(file);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::super::StagingFolder;
    use super::super::entry::{Pending, Why};
    use super::super::file::tests::folder;
    use super::*;
    use crate::store::{Encoding, Key};

    fn keep(folder: &StagingFolder) -> EntryId {
        let file = folder.new_file().expect("a file");
        file.write_all_at(b"bytes", 0).expect("written");
        let pending = Pending {
            key: Key::new("K").expect("a key"),
            content_type: None,
            encoding: Encoding::Identity,
            if_match: None,
            if_absent: false,
            size: 5,
            is_new: false,
            closed_at: jiff::Timestamp::UNIX_EPOCH,
            why: Why::WriteBack,
            attempts: 0,
            unanswered: Default::default(),
            began: None,
        };
        let kept = folder.journal().keep(&file, pending, true);
        kept.expect("kept")
    }

    #[test]
    fn of_many_entries_few_are_open_and_none_that_was_not_read() {
        let (_dir, folder) = folder(None);
        let open = Arc::default();
        let entries: Vec<Adopted> = (0..2 * OPEN)
            .map(|_| Adopted::new(folder.journal(), &keep(&folder), None, &open))
            .collect();
        assert_eq!(open.0.lock().len(), 0);
        let is_open = |entry: &&Adopted| entry.state.lock().file.strong_count() > 0;
        for entry in &entries {
            assert_eq!(entry.open().expect("it").metadata().expect("it").len(), 5);
            assert!(entries.iter().filter(is_open).count() <= OPEN);
        }
        // What was closed is opened again.
        assert!(entries[0].open().is_ok());
    }

    #[test]
    fn who_opens_an_entry_that_goes_meanwhile_reads_what_was_pinned() {
        let (_dir, folder) = folder(None);
        let (journal, id) = (folder.journal(), keep(&folder));
        let this: Arc<OnceLock<Adopted>> = Arc::default();
        let (seen, is_first) = (Arc::clone(&this), AtomicBool::new(true));
        let (goes, going) = (Arc::clone(journal), id.clone());
        // While the first opener is at work, the store gets it.
        let decode: Decode = Box::new(move |data| {
            if is_first.swap(false, Ordering::Relaxed) {
                seen.get().expect("it").pin();
                goes.remove(&going)?;
                return Err(io::ErrorKind::NotFound.into());
            }
            Ok(data)
        });
        let adopted =
            this.get_or_init(|| Adopted::new(journal, &id, Some(decode), &Arc::default()));
        let opened = adopted.open().expect("what was pinned");
        assert_eq!(opened.metadata().expect("its size").len(), 5);
    }
}
