//! Reads what the kernel has in memory of a file, and nothing from the disk, which may hang.

use std::fs::File;
use std::io::{self, IoSliceMut};
use std::ops::Range;

use rustix::io::{Errno, ReadWriteFlags};

/// Reads `wanted`, fewer bytes only at the end of the file; `None` if that would take the disk.
/// Filesystems that cannot tell have nothing in memory.
///
/// # Errors
/// Those of the disk.
pub fn read(file: &File, wanted: Range<u64>) -> io::Result<Option<Vec<u8>>> {
    let len = usize::try_from(wanted.end.saturating_sub(wanted.start)).unwrap_or(usize::MAX);
    let (mut bytes, mut done) = (vec![0; len], 0);
    while done < len {
        let mut rest = [IoSliceMut::new(&mut bytes[done..])];
        let at = wanted.start + done as u64;
        match rustix::io::preadv2(file, &mut rest, at, ReadWriteFlags::NOWAIT) {
            Ok(0) => break,
            Ok(more) => done += more,
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN | Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => return Ok(None),
            Err(error) => return Err(error.into()),
        }
    }
    bytes.truncate(done);
    Ok(Some(bytes))
}
