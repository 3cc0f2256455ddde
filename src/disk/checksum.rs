//! The checksum that finds damaged contents.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use serde::Serialize;
use twox_hash::XxHash3_128;

/// The checksum of contents: xxh3-128, in hex. It finds damage, not malice.
#[derive(Default)]
pub struct Checksum(XxHash3_128);

impl std::fmt::Debug for Checksum {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Checksum")
    }
}

impl Checksum {
    /// Adds the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.write(bytes);
    }

    /// Returns the checksum of all bytes so far.
    pub fn finish(&self) -> String {
        format!("{:032x}", self.0.finish_128())
    }
}

/// Returns the checksum of what a value says: it finds what was damaged on disk.
///
/// # Errors
/// None that is known.
pub(crate) fn seal(value: &impl Serialize) -> Result<String, serde_json::Error> {
    let mut sum = Checksum::default();
    sum.update(&serde_json::to_vec(value)?);
    Ok(sum.finish())
}

/// Returns the checksum of a whole file.
pub(crate) fn checksum(file: &File) -> io::Result<String> {
    let mut sum = Checksum::default();
    let mut buffer = vec![0; 256 << 10];
    let mut at = 0;
    loop {
        match file.read_at(&mut buffer, at)? {
            0 => return Ok(sum.finish()),
            n => {
                sum.update(&buffer[..n]);
                at += n as u64;
            }
        }
    }
}
