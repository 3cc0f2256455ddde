//! The mounted filesystem as the process around it sees it.

use std::fmt;
use std::io;
use std::sync::Arc;

use serde_json::Value;

use super::Failure;
use crate::metrics::Metrics;
use crate::registry::unmount::{UnmountMode, unmount};
use crate::setup::{self, MountConfig};

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
    /// How to end it.
    pub unmounter: Unmounter,
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
    let mounted = setup::mount(config.clone(), metrics).map_err(|error| {
        let failure = Failure::from_error(&error);
        match error.hint() {
            Some(hint) => failure.hinted(hint),
            None => failure,
        }
    })?;
    let mount_point = config.mount_point.clone();
    Ok(Session {
        status: mounted.status_source(),
        unmounter: Arc::new(move |mode| Ok(unmount(&mount_point, mode)?)),
        run: Box::new(move || mounted.run()),
    })
}
