//! The folder in which this process stages, made again when it was removed.
//!
//! People remove state folders to free space or to begin afresh; later writes must not fail for that
//! until the mount ends. A folder that was moved, or is hidden by a mount, does not count as removed.
//! On another disk nothing is made: the right disk was taken away, and would hide the new folder when
//! it is back.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::folder::{StoreFile, make_scope};
use super::owner::OwnerDir;
use crate::base::sync::Mutex;
use crate::base::sync::atomic::{AtomicBool, Ordering};

/// The folder of a process, whichever it is at the moment.
///
/// Lock order: `making`, then `current`. `making` alone is held while the local disk works.
#[derive(Debug)]
pub(super) struct Own {
    dir: PathBuf,
    scope: String,
    store: Option<StoreFile>,
    /// The disk that it was made on.
    device: u64,
    current: Mutex<Arc<OwnerDir>>,
    remade: AtomicBool,
    /// Its holder makes the folder again.
    making: Mutex<()>,
}

impl Own {
    /// Returns the place of `made`, which lies in the scope `scope` of the staging folder `dir`.
    ///
    /// # Errors
    /// That the folder cannot be looked at.
    pub(super) fn new(
        dir: &Path,
        scope: &str,
        store: Option<&StoreFile>,
        made: OwnerDir,
    ) -> io::Result<Self> {
        Ok(Self {
            dir: dir.to_owned(),
            scope: scope.to_owned(),
            store: store.cloned(),
            device: fs::metadata(made.path())?.dev(),
            current: Mutex::new(Arc::new(made)),
            remade: AtomicBool::new(false),
            making: Mutex::default(),
        })
    }

    /// Returns the folder.
    pub(super) fn get(&self) -> Arc<OwnerDir> {
        Arc::clone(&self.current.lock())
    }

    /// Returns whether it was made again since the last call.
    pub(super) fn take_remade(&self) -> bool {
        self.remade.swap(false, Ordering::Relaxed)
    }

    /// Notes again that the folder was made again: the work that follows is not done.
    pub(super) fn set_remade(&self) {
        self.remade.store(true, Ordering::Relaxed);
    }

    /// Does something in the folder; once more in a new one if the folder was removed.
    ///
    /// # Errors
    /// Those of `work`.
    pub(super) fn within<T>(
        &self,
        work: impl Fn(&Arc<OwnerDir>) -> io::Result<T>,
    ) -> io::Result<T> {
        let own = self.get();
        let error = match work(&own) {
            // In a folder that is just going, nameless files are not permitted.
            Err(error) if may_be_removed(error.kind()) && own.is_removed() => error,
            done => return done,
        };
        match self.make_anew(&own) {
            Ok(own) => work(&own),
            Err(why) => {
                tracing::warn!(
                    "the staging folder {} was removed, and is not made again: {why}",
                    self.dir.display()
                );
                Err(error)
            }
        }
    }

    fn make_anew(&self, removed: &Arc<OwnerDir>) -> io::Result<Arc<OwnerDir>> {
        let _one = self.making.lock();
        let now = self.get();
        if !Arc::ptr_eq(&now, removed) {
            return Ok(now);
        }
        let above = self.dir.ancestors().find_map(|dir| fs::metadata(dir).ok());
        if above.map(|above| above.dev()) != Some(self.device) {
            return Err(io::Error::other("another disk is there now"));
        }
        // Kernel threads may wait for this, so it is not done while other processes look for what
        // dead ones left; the writer tries again.
        let (scope, lock) = make_scope(&self.dir, &self.scope, self.store.as_ref(), false)?;
        let made = Arc::new(OwnerDir::create(&scope)?);
        drop(lock);
        *self.current.lock() = Arc::clone(&made);
        self.set_remade();
        tracing::warn!(
            "the staging folder {} was removed; it is made again",
            self.dir.display()
        );
        Ok(made)
    }
}

fn may_be_removed(kind: io::ErrorKind) -> bool {
    [io::ErrorKind::NotFound, io::ErrorKind::PermissionDenied].contains(&kind)
}
