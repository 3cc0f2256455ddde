//! Reading from a file in the disk cache: what is in memory at once, the rest no longer than a disk that
//! is well needs.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use crate::base::clock::Wait;
use crate::base::page_cache;
use crate::disk::Patience;
use crate::store::wait::{Result, may_block};
use crate::store::{ErrorKind, StoreError};

/// What to do where the cache's disk has failed.
pub(super) const CACHE_HINT: &str =
    "check space and permissions of the cache folder, or mount with --no-disk-cache";

pub(super) fn disk_error(error: io::Error) -> StoreError {
    StoreError::new(ErrorKind::Disk, format!("the cache disk failed: {error}"))
        .with_hint(CACHE_HINT)
}

/// Reads all of `wanted` from a file that holds it: what is in memory where the caller may not wait,
/// as for a disk that hangs. A read that may wait does not wait for such a disk until the deadline.
///
/// # Errors
/// [`crate::store::wait::Error::WouldBlock`], and those of the disk.
pub(crate) fn read_file_within(
    disk: &Patience,
    file: &Arc<File>,
    wanted: Range<u64>,
    wait: Wait,
) -> Result<Bytes> {
    if let Some(bytes) = page_cache::read(file, wanted.clone()).map_err(disk_error)? {
        if bytes.len() as u64 != wanted.end - wanted.start {
            return Err(disk_error(io::ErrorKind::UnexpectedEof.into()).into());
        }
        return Ok(bytes.into());
    }
    let patience = Patience::of(may_block(wait)?);
    let file = Arc::clone(file);
    match disk.wait(patience, move || read_file(&file, wanted)) {
        Some(read) => Ok(read?),
        None => Err(disk_error(io::ErrorKind::TimedOut.into()).into()),
    }
}

/// Reads all of `wanted` from a file that holds it.
pub(crate) fn read_file(file: &File, wanted: Range<u64>) -> Result<Bytes, StoreError> {
    let len = (wanted.end - wanted.start) as usize;
    let mut bytes = Vec::with_capacity(len);
    while bytes.len() < len {
        let at = wanted.start + bytes.len() as u64;
        match rustix::io::pread(file, rustix::buffer::spare_capacity(&mut bytes), at) {
            Ok(0) => return Err(disk_error(io::ErrorKind::UnexpectedEof.into())),
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(disk_error(error.into())),
        }
    }
    bytes.truncate(len);
    Ok(bytes.into())
}
