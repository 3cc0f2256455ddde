//! Marks on lanes: whoever changes a lane and the journal together has one, so that who closes a
//! file, an upload that ends, and a hold do not meet.

use std::sync::Arc;

use super::Uploader;
use crate::base::clock::Deadline;
use crate::store::{Key, StoreError};
use crate::upload::lanes::Mark;

impl Uploader {
    pub(super) fn mark(
        self: &Arc<Self>,
        key: &Key,
        mark: Mark,
        deadline: Deadline,
    ) -> Result<Marked, StoreError> {
        self.wait_for(key, deadline, |lanes| lanes.try_mark(key, mark))?;
        Ok(self.marked(key, mark))
    }

    /// Marks the lane of an upload that ends. Waits for who is just closing a file: that takes no
    /// longer than writing to the disk.
    pub(super) fn mark_end(self: &Arc<Self>, key: &Key) -> Marked {
        let mut state = self.state.lock();
        while !state.lanes.try_mark(key, Mark::End) {
            self.changed.wait(&mut state);
        }
        drop(state);
        self.marked(key, Mark::End)
    }

    fn marked(self: &Arc<Self>, key: &Key, mark: Mark) -> Marked {
        Marked {
            uploader: Arc::clone(self),
            key: key.clone(),
            mark,
        }
    }
}

/// A mark on a lane; dropping it takes it away.
pub(super) struct Marked {
    uploader: Arc<Uploader>,
    key: Key,
    mark: Mark,
}

impl Drop for Marked {
    fn drop(&mut self) {
        self.uploader
            .state
            .lock()
            .lanes
            .unmark(&self.key, self.mark);
        self.uploader.staff();
    }
}
