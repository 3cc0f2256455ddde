//! Uploads under a condition whose answer was lost.
//!
//! A plain upload is simply sent again (`apify::http`). One that asks the server to store it only
//! if nothing has changed must not be: the first attempt may have changed it. So the store is
//! asked what it has now; and as long as it cannot be, what was sent is remembered for the next
//! attempt.

use std::fs::File;
use std::io;
use std::time::Duration;

use super::WriteSide;
use crate::base::clock::Deadline;
use crate::fs::KvFs;
use crate::staging::unanswered::{self, Found, may_have_arrived};
use crate::staging::{Unanswered, UnansweredUploads};
use crate::store::{ErrorKind, Key, PutRequest, RecordMeta, Result, StoreError};

/// How long the store may be asked what it has, once the deadline of the upload is over.
const LAST_LOOK: Duration = Duration::from_secs(5);

/// How often an upload is sent again because the one before did not arrive, or was refused because
/// an earlier one did.
const MOST_REPEATS: u32 = 6;

/// The pause before the second attempt after one that did not arrive; it doubles each time.
const PAUSE: Duration = Duration::from_millis(500);

impl KvFs {
    /// Sends a file's bytes as a record, and finds out what became of them if the answer is lost.
    ///
    /// `earlier` are the uploads that may have arrived before; in the end it is those that may have
    /// arrived by then.
    pub(in crate::fs) fn send_surely(
        &self,
        side: &WriteSide,
        key: &Key,
        mut request: PutRequest,
        (file, size): (&File, u64),
        earlier: &mut UnansweredUploads,
    ) -> Result<RecordMeta, StoreError> {
        // For all of it: a server that says nothing is not waited for twice.
        let deadline = Deadline::after(side.config.deadline);
        let mut repeats = 0;
        loop {
            let conditional = request.if_match.is_some() || request.if_absent;
            let error = match self.send(key, &request, (file, size), deadline) {
                Err(error) => error,
                Ok(meta) => return Ok(meta),
            };
            let refused = error.kind() == ErrorKind::Changed && !earlier.is_empty();
            if !refused && !may_have_arrived(&error) {
                return Err(error);
            }
            let this = Unanswered::new(file, size, &request.encoding).map_err(unreadable)?;
            if !refused {
                earlier.add(this.clone());
            }
            if !conditional {
                return Err(error);
            }
            // An upload that went on for long has left nothing of it.
            let until = match deadline.remaining() {
                Some(_) => deadline,
                None => Deadline::after(LAST_LOOK.min(side.config.deadline)),
            };
            match earlier.look(&*self.store, key, &request, until) {
                Ok(Found::Ours(one, meta)) if one == this => return Ok(meta),
                Ok(Found::Ours(_, meta)) => unanswered::replace(&mut request, &meta),
                // A server that has just failed gets time, as with any other request.
                Ok(Found::Before) => {
                    let pause = PAUSE * (1 << repeats);
                    std::thread::sleep(pause.min(deadline.remaining().unwrap_or_default()));
                }
                // As long as that is not known, nobody else is to blame.
                Err(unknown) if refused => return Err(unknown),
                Ok(Found::Other) | Err(_) => return Err(error),
            }
            if repeats == MOST_REPEATS || deadline.remaining().is_none() {
                return Err(error);
            }
            repeats += 1;
        }
    }
}

fn unreadable(error: io::Error) -> StoreError {
    StoreError::new(ErrorKind::Disk, "cannot read the staging file").with_source(error)
}
