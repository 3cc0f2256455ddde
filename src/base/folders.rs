//! Folders that only their owner may use.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::Path;

/// Makes `dir` (and its parents) if it is missing, and refuses one that others could have planted.
///
/// # Errors
/// That it cannot be made, is no folder, or belongs to another user.
pub fn private_dir(dir: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    let metadata = fs::symlink_metadata(dir)?;
    let own = rustix::process::geteuid().as_raw();
    if !metadata.is_dir() || metadata.uid() != own {
        return Err(io::Error::other(format!(
            "{} is not a folder of this user: remove it or name another",
            dir.display()
        )));
    }
    Ok(())
}
