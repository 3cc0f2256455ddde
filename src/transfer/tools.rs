//! What all downloads of a mount share.

use std::collections::VecDeque;
use std::sync::{Arc, Weak};

use super::download::Download;
use super::window::Blocks;
use crate::base::sync::Mutex;
use crate::base::workers::Workers;

/// What all downloads of a mount share.
#[derive(Clone, Debug)]
pub struct Tools {
    /// Memory for what has just arrived.
    pub blocks: Arc<Blocks>,
    /// Threads that fill.
    pub fillers: Arc<Workers>,
    /// Downloads with threads that wait for readers, oldest first.
    idle: Arc<Mutex<VecDeque<Weak<Download>>>>,
}

impl Tools {
    /// Makes the tools of a mount; `fillers` are the threads that fill.
    pub fn new(fillers: Arc<Workers>) -> Self {
        Self {
            blocks: Arc::default(),
            fillers,
            idle: Arc::default(),
        }
    }

    /// Gets a thread for another download: where all are taken, from one that waits for its reader.
    pub fn make_way(&self) {
        while self.fillers.is_full() {
            let Some(idle) = self.idle.lock().pop_front() else {
                return;
            };
            if idle
                .upgrade()
                .is_some_and(|download| download.ask_to_park())
            {
                return;
            }
        }
    }

    pub(super) fn note_idle(&self, download: &Arc<Download>) {
        self.idle.lock().push_back(Arc::downgrade(download));
    }

    pub(super) fn note_busy(&self, download: &Arc<Download>) {
        let own = Arc::downgrade(download);
        self.idle.lock().retain(|other| !other.ptr_eq(&own));
    }
}
