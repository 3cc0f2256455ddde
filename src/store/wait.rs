//! Answers that may have to wait: why there is none yet, and waits with a deadline.

use super::{ErrorKind, StoreError};
use crate::base::clock::{Deadline, Wait};
use crate::base::sync::{Condvar, MutexGuard};

/// Why there is no answer.
#[derive(Debug)]
pub enum Error {
    /// It would have to wait, and the caller may not.
    WouldBlock,
    /// The store or the disk failed.
    Failed(StoreError),
}

impl Error {
    /// Returns the kind of a failure.
    pub fn kind(&self) -> Option<ErrorKind> {
        match self {
            Self::WouldBlock => None,
            Self::Failed(error) => Some(error.kind()),
        }
    }
}

/// The result of asking a cache.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl From<StoreError> for Error {
    fn from(error: StoreError) -> Self {
        Self::Failed(error)
    }
}

/// Returns the deadline of a wait, or [`Error::WouldBlock`].
pub(crate) fn may_block(wait: Wait) -> Result<Deadline> {
    wait.deadline().ok_or(Error::WouldBlock)
}

/// Returns the error of a wait that took too long.
pub(crate) fn timed_out(what: &str) -> Error {
    Error::Failed(StoreError::new(
        ErrorKind::Timeout,
        format!("the deadline passed while waiting for {what}"),
    ))
}

/// Waits for a change, not past the deadline.
pub(crate) fn wait_until<T>(
    changed: &Condvar,
    guard: &mut MutexGuard<'_, T>,
    deadline: Deadline,
    what: &str,
) -> Result<()> {
    if deadline.remaining().is_none() {
        return Err(timed_out(what));
    }
    changed.wait_until(guard, deadline.instant());
    Ok(())
}
