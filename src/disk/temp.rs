//! Files on their way into the cache folder.
//!
//! INVARIANT: the writer of a file holds its lock until the file has its name or is gone. A file
//! without a lock is what a dead process left, whichever pid it had where it ran; the scan at the
//! beginning of a mount removes it. A writer that has not locked its new file yet loses it, and
//! caches less.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::path::Path;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use tempfile::NamedTempFile;

/// How the names of these files end, and that of the folder which holds nothing else.
const SUFFIX: &str = "tmp";

/// How often a file is made again because a scan is just looking at it.
const ATTEMPTS: usize = 5;

/// Makes a file in `dir`, locked for as long as this process has it open.
pub(crate) fn create(dir: &Path) -> io::Result<NamedTempFile> {
    let mut attempts = 0;
    loop {
        attempts += 1;
        let temp = tempfile::Builder::new()
            .prefix(&format!("{}-", std::process::id()))
            .suffix(&format!(".{SUFFIX}"))
            .tempfile_in(dir)?;
        match flock(temp.as_file(), FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(temp),
            Err(Errno::WOULDBLOCK) if attempts < ATTEMPTS => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Removes those in `dir` that no process is writing any more.
pub(super) fn remove_abandoned(dir: &Path) {
    let all = dir.file_name() == Some(OsStr::new(SUFFIX));
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if !all && path.extension() != Some(OsStr::new(SUFFIX)) {
            continue;
        }
        let is_free = File::open(&path)
            .is_ok_and(|file| flock(&file, FlockOperation::NonBlockingLockShared).is_ok());
        if is_free && (!all || !path.is_dir()) {
            let _ = fs::remove_file(path);
        } else if is_free {
            // On its way out of the cache.
            let _ = fs::remove_dir_all(path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::DiskTier;

    #[test]
    fn what_a_killed_process_left_anywhere_in_the_cache_is_removed_by_the_next_mount() {
        let folder = tempfile::tempdir().expect("a folder");
        let open =
            || DiskTier::open(folder.path(), 1 << 20, "test", Default::default()).expect("a cache");
        let first = open();
        // Waits for the scan.
        drop(first.spool(1).expect("room"));
        let scope = first.scope_dir();
        let on_the_way = scope.with_file_name("tmp");
        let left = [&scope, &on_the_way].map(|dir| dir.join("1-left.tmp"));
        let held = [&scope, &on_the_way].map(|dir| create(dir).expect("a file"));
        for path in &left {
            fs::write(path, "half").expect("a file");
        }
        let other = scope.join("sizes.jsonl");
        fs::write(&other, "").expect("a file");
        drop(open().spool(1).expect("room"));
        assert!(left.iter().all(|path| !path.exists()));
        assert!(held.iter().all(|temp| temp.path().exists()));
        assert!(other.exists());
    }
}
