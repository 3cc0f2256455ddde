//! Writes contents in memory to the disk cache, behind their readers' backs.

use std::os::unix::fs::FileExt;
use std::sync::Arc;

use super::content::Content;
use super::records::Records;
use crate::disk::{Checksum, DiskTier};

/// Small contents written to disk together.
const SMALL_AT_ONCE: usize = 256;
/// Small contents that wait for that.
const SMALL_WAITING: usize = 2048;

/// Small contents that wait to be written to disk.
#[derive(Debug, Default)]
pub(super) struct SmallWaiting {
    contents: Vec<Arc<Content>>,
    /// Whether a job will write them.
    is_awaited: bool,
}

impl SmallWaiting {
    /// Adds a content; returns whether a job is needed.
    fn push(&mut self, content: &Arc<Content>) -> bool {
        if self.contents.len() >= SMALL_WAITING {
            tracing::debug!("the disk cache cannot keep up; a record stays in memory only");
        } else {
            self.contents.push(Arc::clone(content));
        }
        !std::mem::replace(&mut self.is_awaited, true)
    }

    /// Takes what is written next; after the last the job is over.
    fn take(&mut self) -> Vec<Arc<Content>> {
        let most = self.contents.len().min(SMALL_AT_ONCE);
        self.is_awaited = most > 0;
        self.contents.drain(..most).collect()
    }
}

impl Records {
    /// Writes a small content to the disk cache, later; not at all when the disk cannot keep up.
    pub(super) fn write_behind(self: &Arc<Self>, content: &Arc<Content>) {
        let Some(disk) = self.disk().cloned() else {
            return;
        };
        let Some(bytes) = content.in_memory().map(bytes::Bytes::len) else {
            return;
        };
        let is_small = bytes as u64 <= disk.small_most();
        if is_small && !self.small_waiting().lock().push(content) {
            return;
        }
        let (records, content) = (Arc::clone(self), Arc::clone(content));
        let queued = self.writers().spawn(move || match is_small {
            true => records.write_small(&disk),
            false => records.write_file(&disk, &content),
        });
        if queued.is_err() {
            if is_small {
                self.small_waiting().lock().is_awaited = false;
            }
            tracing::debug!("the disk cache cannot keep up; a record stays in memory only");
        }
    }

    /// Writes the small contents that wait, many at once.
    fn write_small(&self, disk: &Arc<DiskTier>) {
        loop {
            let waiting = self.small_waiting().lock().take();
            if waiting.is_empty() {
                return;
            }
            if self.publish_small(disk, &waiting) {
                for content in waiting {
                    self.write_file(disk, &content);
                }
            }
        }
    }

    /// Writes a content in memory to a file of the disk cache.
    fn write_file(&self, disk: &Arc<DiskTier>, content: &Content) {
        let Some(bytes) = content.in_memory() else {
            return;
        };
        let Some(spool) = disk.spool(bytes.len() as u64) else {
            return;
        };
        let mut sum = Checksum::default();
        sum.update(bytes);
        match spool.file().write_all_at(bytes, 0) {
            Ok(()) => self.publish(content, spool, bytes.len() as u64, sum.finish()),
            Err(error) => {
                tracing::warn!("cannot write {} to the disk cache: {error}", content.key)
            }
        }
    }
}
