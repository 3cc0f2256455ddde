//! Decides which close of a shared open file stores it.
//!
//! The kernel reports every close of every descriptor (FLUSH), also of those that a process has
//! only inherited: a program that starts another closes them in it before that begins. Storing the
//! file each time would show others half of it, and cost a request each. So a file is stored when
//! the process that opened it closes a descriptor of it; and, once that process has none left, when
//! one does that has written through it. Whatever else is left, the last close stores.

use std::sync::Arc;

use super::draft::{Draft, Why};
use crate::base::clock::Wait;
use crate::fs::types::{Fh, Ino, Process, Thread};
use crate::fs::{FsError, KvFs, Result};

/// This many writing threads are remembered; with more, every thread counts as one of them.
const MOST_WRITERS: usize = 64;

/// The processes that are known to share an open file.
#[derive(Debug, Default)]
pub struct Sharers {
    opener: Option<Process>,
    writers: Vec<(Thread, Process)>,
    crowded: bool,
}

/// What a process has to do with an open file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// It opened the file, or the opener is unknown.
    Opener,
    /// It was handed the file, and has written through it.
    Writer {
        /// The process that opened it.
        opener: Process,
    },
    /// It was handed the file, and has done nothing with it.
    Bystander,
}

impl Sharers {
    /// Notes the process that opened the file.
    pub fn opened(&mut self, process: Process) {
        self.opener = Some(process);
    }

    /// Returns whether it is known that this thread has written through the file.
    pub fn knows(&self, thread: Thread) -> bool {
        self.crowded || self.writers.iter().any(|(known, _)| *known == thread)
    }

    /// Notes a process that has written through the file.
    pub fn wrote(&mut self, thread: Thread, process: Process) {
        if self.writers.len() == MOST_WRITERS {
            self.crowded = true;
        } else if !self.knows(thread) {
            self.writers.push((thread, process));
        }
    }

    /// Returns what a process has to do with the file; `None` if it is unknown.
    pub fn part_of(&self, process: Option<Process>) -> Part {
        let (Some(opener), Some(process)) = (self.opener, process) else {
            return Part::Opener;
        };
        if opener == process {
            Part::Opener
        } else if self.crowded || self.writers.iter().any(|(_, known)| *known == process) {
            Part::Writer { opener }
        } else {
            Part::Bystander
        }
    }
}

impl KvFs {
    /// Returns the process that a thread belongs to, if that can be told.
    pub fn process_of(&self, thread: Thread) -> Option<Process> {
        self.programs.get()?.process_of(thread)
    }

    /// Notes the process that opened a file for writing.
    pub fn opened_by(&self, fh: Fh, process: Option<Process>) {
        let handle = self.handles.lock().file(fh);
        if let (Some(handle), Some(process)) = (handle, process) {
            handle.sharers.lock().opened(process);
        }
    }

    /// Notes a process that writes through an open file.
    pub fn written_by(&self, fh: Fh, thread: Thread) {
        let Some(handle) = self.handles.lock().file(fh) else {
            return;
        };
        if handle.sharers.lock().knows(thread) {
            return;
        }
        if let Some(process) = self.process_of(thread) {
            handle.sharers.lock().wrote(thread, process);
        }
    }

    /// Closes a descriptor of an open file for a process: stores the file and returns the store's
    /// verdict, unless another process will close and store it later; then returns an already known
    /// verdict.
    ///
    /// # Errors
    /// As [`KvFs::flush`].
    pub fn flush_by(&self, fh: Fh, process: Option<Process>, wait: Wait) -> Result<()> {
        let handle = self.handles.lock().file(fh).ok_or(FsError::BadHandle)?;
        let part = handle.sharers.lock().part_of(process);
        let stores = match part {
            Part::Opener => true,
            Part::Bystander => false,
            // The holders are looked up below only where something depends on them.
            Part::Writer { opener } => {
                if self
                    .draft(handle.ino)
                    .is_none_or(|draft| draft.is_settled(Why::Close))
                {
                    return Ok(());
                }
                if wait == Wait::Never {
                    return Err(FsError::WouldBlock);
                }
                !self.holds(opener, handle.ino)
            }
        };
        if stores {
            let is_last = |draft: Arc<Draft>| {
                // Nothing was written: a holder may still do so, else no later close reports it.
                draft.needs_commit(Why::Last) && !draft.needs_commit(Why::Close)
            };
            let asks = self.programs.get().is_some() && self.draft(handle.ino).is_some_and(is_last);
            if !asks {
                return self.flush(fh, wait);
            }
            if wait == Wait::Never {
                return Err(FsError::WouldBlock);
            }
            return match process {
                Some(process) if self.holds(process, handle.ino) => Ok(()),
                _ => self.flush_last(fh, wait),
            };
        }
        let refused = self.draft(handle.ino).and_then(|draft| draft.refusal());
        refused.map_or(Ok(()), Err)
    }

    /// Returns whether a process is known to have a file open for writing.
    fn holds(&self, process: Process, ino: Ino) -> bool {
        let programs = self.programs.get();
        programs.is_some_and(|programs| programs.holds(process, ino) == Some(true))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OPENER: Process = Process(10);
    const CHILD: Process = Process(20);

    #[test]
    fn whoever_opened_a_file_stores_it_and_who_only_inherited_it_does_not() {
        let mut sharers = Sharers::default();
        assert_eq!(sharers.part_of(Some(CHILD)), Part::Opener, "unknown opener");
        sharers.opened(OPENER);
        assert_eq!(sharers.part_of(Some(OPENER)), Part::Opener);
        assert_eq!(sharers.part_of(Some(CHILD)), Part::Bystander);
        assert_eq!(sharers.part_of(None), Part::Opener);
        sharers.wrote(Thread(21), CHILD);
        assert!(sharers.knows(Thread(21)) && !sharers.knows(Thread(20)));
        let writer = Part::Writer { opener: OPENER };
        assert_eq!(sharers.part_of(Some(CHILD)), writer);
        assert_eq!(sharers.part_of(Some(Process(30))), Part::Bystander);
    }

    #[test]
    fn where_too_many_write_everybody_counts_as_a_writer() {
        let mut sharers = Sharers::default();
        sharers.opened(OPENER);
        for thread in 0..2 * MOST_WRITERS as u32 {
            sharers.wrote(Thread(thread), Process(thread));
        }
        assert_eq!(sharers.writers.len(), MOST_WRITERS);
        let writer = Part::Writer { opener: OPENER };
        assert_eq!(sharers.part_of(Some(Process(999_999))), writer);
    }
}
