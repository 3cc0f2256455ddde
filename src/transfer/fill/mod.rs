//! Fills a download: one connection front to back, more of them where one is slow.
//!
//! It runs a little ahead of the farthest reader, so that `head -c` of a huge record costs about as much as
//! it reads. Where the server honours ranges and one connection is slow, helpers fetch parts farther on, as
//! many as [`crate::transfer::connections`] finds worth it; the first connection goes on until it meets such
//! a part. An unused download is paused if much of it has arrived, so that the next reader resumes there,
//! else given up.

use std::sync::Arc;
use std::time::Duration;

use super::download::{Download, read_some};
use super::prefix::Prefix;
use super::state::Status;
use super::stream::Body;
use crate::base::clock::Deadline;
use crate::base::sync::atomic::Ordering;
use crate::base::units::{KIB, MIB};
use crate::disk::{self, Spool};
use crate::store::StoreError;
use crate::store::codec::has_made_way;

mod parts;
mod readahead;
mod sequential;

use sequential::Front;

/// Bytes moved at once where no block is free, and by helpers.
const CHUNK: usize = 256 * KIB as usize;
/// How long the head of an answer that begins again may take.
const AGAIN_DEADLINE: Duration = Duration::from_secs(60);
/// A download of which this much has arrived is kept for the next reader.
const WORTH_KEEPING: u64 = 4 * MIB;

/// How a download ended, for the thread that ran it.
#[derive(Debug)]
pub enum Outcome {
    /// Whole: to be published under this size and checksum.
    Whole(Box<Spool>, u64, String),
    /// It is unused; [`Download::resume`] takes it up again.
    Paused,
    /// Its readers have what they want for now; the next read takes it up again.
    Parked,
    /// Anything else; readers have been told.
    Over,
}

/// Why filling ended, unless it failed.
enum End {
    Whole,
    Unused,
    Enough,
}

impl Download {
    /// Fills the download: with `head`, which has been read already, then `body`; without a body,
    /// with what is missing: in parts, or by another transfer that begins the same.
    pub fn fill(self: &Arc<Self>, head: &[u8], body: Option<Body>, spool: Spool) -> Outcome {
        self.state.lock().active += 1;
        let mut front = Front::new(spool);
        let mut result = match body {
            Some(body) => self.fill_front(&mut front, head, body),
            None if self.origin.has_ranges() => self.fill_parts(&mut front),
            None => self.fill_again(&mut front),
        };
        while result.as_ref().is_err_and(has_made_way) {
            result = self.fill_again(&mut front);
        }
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
            // Marked as given up under the lock that found it unused; a kept one is usable.
            (Ok(End::Unused), Some(spool))
                if self.may_help() && state.present.len() >= WORTH_KEEPING =>
            {
                state.status = Status::Paused(Box::new(spool));
                None
            }
            (Ok(End::Enough), Some(spool)) => {
                state.status = Status::Parked(Box::new(spool));
                None
            }
            (Ok(End::Unused | End::Enough), _) => None,
            (Err(error), _) => {
                state.status = Status::Failed(error);
                None
            }
        };
        self.wake_all(&state);
        let paused = matches!(state.status, Status::Paused(_));
        let parked = matches!(state.status, Status::Parked(_));
        let window = state.window.clear();
        drop(state);
        drop(window);
        match outcome {
            Some(spool) => {
                // Known where all came in order.
                let sum = {
                    let prefix = self.prefix.lock();
                    (prefix.len() == size).then(|| prefix.checksum())
                };
                let sum = sum.map_or_else(|| disk::checksum(&self.file), Ok);
                match sum {
                    Ok(sum) => Outcome::Whole(Box::new(spool), size, sum),
                    Err(error) => {
                        tracing::warn!("cache disk: {error}");
                        Outcome::Over
                    }
                }
            }
            None if paused => Outcome::Paused,
            None if parked => Outcome::Parked,
            None => Outcome::Over,
        }
    }

    /// Goes on with another transfer from the start; its first bytes must equal those that are
    /// here.
    fn fill_again(self: &Arc<Self>, front: &mut Front) -> Result<End, StoreError> {
        let mut body = self.origin.whole(Deadline::after(AGAIN_DEADLINE))?;
        let (len, hash) = {
            let prefix = self.prefix.lock();
            (prefix.len(), prefix.hash())
        };
        let mut again = Prefix::default();
        let mut buffer = vec![0; CHUNK];
        while again.len() < len {
            let most = usize::try_from(len - again.len()).map_or(CHUNK, |left| left.min(CHUNK));
            match read_some(&mut body, &mut buffer[..most])
                .map_err(|error| self.body_error(error))?
            {
                0 => return Err(self.origin.changed()),
                more => again.update(&buffer[..more]),
            }
            if self.is_unused(&mut self.state.lock()) {
                return Ok(End::Unused);
            }
        }
        if again.hash() != hash {
            return Err(self.origin.changed());
        }
        front.position = len;
        {
            let mut state = self.state.lock();
            state.position = len;
            state.front = None;
        }
        self.fill_front(front, &[], body)
    }

    /// Returns whether the content can be fetched in parts.
    fn may_help(&self) -> bool {
        self.expected.is_some() && self.origin.has_ranges()
    }
}
