//! The mounted filesystem as the process around it sees it.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::desk::Desk;
use super::{Failure, FailureKind, panics};
use crate::base::redact::Secret;
use crate::daemon::registry::unmount::{UnmountError, UnmountMode, unmount};
use crate::metrics::Metrics;
use crate::mount::build::{self, MountConfig};
use crate::mount::open::TokenSource;
use crate::upload::Uploads;

/// How long a mount in use is tried again before it counts as such.
const BUSY_PATIENCE: Duration = Duration::from_millis(500);

/// Returns the state of a mount as a JSON object.
pub type StatusSource = Arc<dyn Fn() -> Value + Send + Sync>;

/// Unmounts; the call that serves the mount then returns. May be called again, harder.
pub type Unmounter = Arc<dyn Fn(UnmountMode) -> io::Result<()> + Send + Sync>;

/// A filesystem that is mounted. Dropping it unmounts.
pub struct Session {
    /// Serves until it is unmounted, by whomever.
    pub run: Box<dyn FnOnce() -> io::Result<()> + Send>,
    /// Where its state comes from.
    pub status: StatusSource,
    /// Handles all other requests.
    pub desk: Desk,
    /// How to end it.
    pub unmounter: Unmounter,
    /// What is on its way to the store; `None` for a read-only mount.
    pub uploads: Option<Uploads>,
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session").finish_non_exhaustive()
    }
}

/// Mounts a store.
///
/// # Errors
/// What the store or the kernel refused, with what to do about it.
pub fn mount(config: &MountConfig, metrics: Arc<Metrics>) -> Result<Session, Failure> {
    panics::watch(&metrics, secrets(config));
    let mounted = build::mount(config.clone(), metrics).map_err(|error| {
        let kind = error.store_kind().map(FailureKind::from);
        let failure = Failure::from_error(&error).of_kind(kind.unwrap_or_default());
        match error.hint() {
            Some(hint) => failure.hinted(hint),
            None => failure,
        }
    })?;
    let mount_point = config.mount_point.clone();
    let uploads = mounted.uploads().cloned();
    let (ending, waiting) = (uploads.clone(), uploads.clone());
    Ok(Session {
        status: mounted.status_source(),
        desk: Desk::new(
            Arc::clone(mounted.fs()),
            Arc::clone(mounted.store()),
            config.deadline,
            config.prefix.is_some() || config.collection.is_some(),
        ),
        uploads,
        unmounter: Arc::new(move |mode| match (mode, unmount(&mount_point, mode)) {
            // Unmounted already: what it still does is to wait for uploads, which are safe on disk.
            (UnmountMode::Lazy | UnmountMode::Force, Err(UnmountError::NotMounted))
                if ending.is_some() =>
            {
                ending.iter().for_each(Uploads::give_up);
                Ok(())
            }
            (UnmountMode::Graceful, Err(UnmountError::Busy)) => {
                patiently(|| Ok(unmount(&mount_point, mode)?))
            }
            (_, result) => Ok(result?),
        }),
        run: Box::new(move || {
            let served = mounted.run();
            waiting.iter().for_each(Uploads::finish);
            served
        }),
    })
}

/// Returns the secrets that the settings hold.
fn secrets(config: &MountConfig) -> Vec<Secret> {
    let token = match &config.open.token {
        TokenSource::Environment(token) => Some(token),
        _ => None,
    };
    token
        .into_iter()
        .chain(&config.open.signature)
        .cloned()
        .collect()
}

/// Tries for a while: a program that has just stopped using a mount holds it for some milliseconds
/// longer.
fn patiently(unmount: impl Fn() -> io::Result<()>) -> io::Result<()> {
    let until = Instant::now() + BUSY_PATIENCE;
    loop {
        match unmount() {
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) && Instant::now() < until => {
                thread::sleep(BUSY_PATIENCE / 20);
            }
            result => return result,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[test]
    fn only_a_busy_mount_is_tried_again() {
        let tries = Cell::new(0);
        let result = patiently(|| {
            tries.set(tries.get() + 1);
            match tries.get() {
                3 => Ok(()),
                _ => Err(io::Error::from_raw_os_error(libc::EBUSY)),
            }
        });
        assert!(result.is_ok());
        assert_eq!(tries.get(), 3);
        let start = Instant::now();
        let result = patiently(|| Err(io::Error::from_raw_os_error(libc::EPERM)));
        assert_eq!(
            result.expect_err("refused").raw_os_error(),
            Some(libc::EPERM)
        );
        assert!(start.elapsed() < BUSY_PATIENCE);
    }
}
