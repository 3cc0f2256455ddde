//! Fills a download: one connection front to back, more of them where one is slow.
//!
//! It runs a little ahead of the farthest reader, so that `head -c` of a huge record costs about
//! that much. Where the server honours ranges and one connection is slow, helpers fetch parts
//! farther on, as many as [`crate::transfer::connections`] finds worth it; the first connection goes on until it
//! meets such a part. A download that nobody uses any more is paused if much of it has arrived,
//! so that who comes back goes on from there, else given up.

use std::sync::Arc;

use super::download::{Download, Status};
use super::stream::Body;
use crate::base::sync::atomic::Ordering;
use crate::base::units::{KIB, MIB};
use crate::disk::{self, Spool};

mod parts;
mod readahead;
mod sequential;

use sequential::Front;

/// Bytes moved at once where no block is to be had, and by helpers.
const CHUNK: usize = 256 * KIB as usize;
/// A download of which this much has arrived is kept for who comes back.
const WORTH_KEEPING: u64 = 4 * MIB;

/// How a download ended, for the thread that ran it.
#[derive(Debug)]
pub enum Outcome {
    /// Whole: to be published under this size and checksum.
    Whole(Box<Spool>, u64, String),
    /// Nobody uses it; [`Download::resume`] takes it up again.
    Paused,
    /// Anything else; readers have been told.
    Over,
}

/// Why filling ended, unless it failed.
enum End {
    Whole,
    Unused,
}

impl Download {
    /// Fills the download: with `head`, which has been read already, then `body`; without a body,
    /// with what is missing.
    pub fn fill(self: &Arc<Self>, head: &[u8], body: Option<Body>, spool: Spool) -> Outcome {
        self.state.lock().active += 1;
        let mut front = Front::new(spool);
        let result = match body {
            Some(body) => self.fill_front(&mut front, head, body),
            None => {
                front.sum = None;
                self.fill_parts()
            }
        };
        let mut state = self.state.lock();
        state.active -= 1;
        state.paused = false;
        let size = self.expected.unwrap_or(front.position);
        let outcome = match (result, front.spool) {
            (Ok(End::Whole), Some(spool)) => {
                self.complete.store(true, Ordering::Release);
                state.status = Status::Complete(size);
                Some(spool)
            }
            (Ok(End::Whole), None) => {
                state.status = Status::Counted(size);
                None
            }
            // Marked as given up by the lock that found nobody using it; what is kept is usable.
            (Ok(End::Unused), Some(spool))
                if self.may_help() && state.present.len() >= WORTH_KEEPING =>
            {
                state.status = Status::Paused(Box::new(spool));
                None
            }
            (Ok(End::Unused), _) => None,
            (Err(error), _) => {
                state.status = Status::Failed(error);
                None
            }
        };
        self.wake_all(&state);
        let paused = matches!(state.status, Status::Paused(_));
        let window = state.window.clear();
        drop(state);
        drop(window);
        match outcome {
            Some(spool) => {
                let sum = match front.sum {
                    Some(sum) => Ok(sum.finish()),
                    None => disk::checksum(&self.file),
                };
                match sum {
                    Ok(sum) => Outcome::Whole(Box::new(spool), size, sum),
                    Err(error) => {
                        tracing::warn!("cache disk: {error}");
                        Outcome::Over
                    }
                }
            }
            None if paused => Outcome::Paused,
            None => Outcome::Over,
        }
    }

    /// Tells whether the content can be fetched in parts.
    fn may_help(&self) -> bool {
        self.expected.is_some() && self.origin.has_ranges()
    }
}
