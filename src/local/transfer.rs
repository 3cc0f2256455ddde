//! Shared by the local stores: copying uploads, cutting ranges, checking preconditions.

use std::io::{self, Read, Write};
use std::ops::Range;
use std::os::unix::fs::FileExt;

use crate::base::clock::Deadline;
use crate::store::{
    ETag, ErrorKind, GetRequest, Key, PutRequest, RecordMeta, Result, StoreError, Upload, Validator,
};

/// Bytes copied at once.
const CHUNK: usize = 64 * 1024;

/// Fails with [`ErrorKind::Timeout`] once `deadline` has passed.
pub(super) fn check(deadline: Deadline) -> Result<()> {
    match deadline.remaining() {
        Some(_) => Ok(()),
        None => Err(StoreError::new(
            ErrorKind::Timeout,
            "the deadline passed before the operation began",
        )),
    }
}

/// Copies an upload from its start and returns how many bytes it held.
///
/// A body that is shorter or longer than announced is an error: nothing of it may be kept.
pub(super) fn copy(body: Upload<'_>, out: &mut dyn Write) -> Result<u64> {
    match body {
        Upload::Bytes(bytes) => {
            out.write_all(bytes).map_err(disk)?;
            Ok(bytes.len() as u64)
        }
        Upload::File(file, len) => {
            let mut at = 0;
            let from_file = FromFile { file, at: &mut at };
            copy_stream(from_file, Some(len), out)
        }
        Upload::Stream(stream, len) => copy_stream(stream, len, out),
    }
}

/// Reads a file at its own offset, whatever the file's cursor says.
struct FromFile<'a> {
    file: &'a std::fs::File,
    at: &'a mut u64,
}

impl Read for FromFile<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.file.read_at(buffer, *self.at)?;
        *self.at += n as u64;
        Ok(n)
    }
}

fn copy_stream(mut body: impl Read, len: Option<u64>, out: &mut dyn Write) -> Result<u64> {
    let mut buffer = vec![0; CHUNK];
    let mut copied = 0u64;
    loop {
        // Files may grow while they are read; streams are taken to their end.
        let n = match body.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(StoreError::from_io(error, ErrorKind::Network)),
        };
        copied += n as u64;
        if len.is_some_and(|len| copied > len) {
            break;
        }
        out.write_all(&buffer[..n]).map_err(disk)?;
    }
    match len {
        Some(len) if len != copied => Err(StoreError::new(
            ErrorKind::Protocol,
            format!("the body was announced with {len} bytes but did not have that length"),
        )),
        _ => Ok(copied),
    }
}

/// Turns a failure of the local disk into a store error.
pub(super) fn disk(error: io::Error) -> StoreError {
    StoreError::new(
        ErrorKind::Disk,
        format!("the local disk failed: {}", plain(&error)),
    )
    .with_source(error)
}

fn plain(error: &io::Error) -> String {
    let text = error.to_string();
    match text.split_once(" (os error") {
        Some((plain, _)) => plain.to_ascii_lowercase(),
        None => text,
    }
}

/// Cuts what was asked for to what there is: a range behind the end is empty.
pub(super) fn clamp(range: &Range<u64>, size: u64) -> Range<u64> {
    let start = range.start.min(size);
    start..range.end.clamp(start, size)
}

/// What the preconditions of a get come to.
pub(super) enum Verdict {
    /// Send it.
    Send,
    /// The version asked about is still the newest.
    NotModified,
}

/// Judges `if_match` and `if_none_match` as RFC 9110 orders them.
pub(super) fn judge(key: &Key, request: &GetRequest, meta: &RecordMeta) -> Result<Verdict> {
    if let (Some(wanted), Some(current)) = (&request.if_match, &meta.etag)
        && !(wanted == current && wanted.is_strong())
    {
        return Err(changed(key));
    }
    let same = match &request.if_none_match {
        Some(Validator::ETag(known)) => meta
            .etag
            .as_ref()
            .is_some_and(|current| weakly_equal(known, current)),
        Some(Validator::Modified(date, size)) => {
            meta.last_modified.as_ref() == Some(date) && meta.stored_size == Some(*size)
        }
        None => false,
    };
    Ok(if same {
        Verdict::NotModified
    } else {
        Verdict::Send
    })
}

/// Judges the preconditions of a put against the current version, if there is one.
pub(super) fn may_put(key: &Key, request: &PutRequest, current: Option<&RecordMeta>) -> Result<()> {
    if request.if_absent && current.is_some() {
        return Err(changed(key));
    }
    if let Some(wanted) = &request.if_match {
        let held = current.and_then(|meta| meta.etag.as_ref()) == Some(wanted);
        if !held {
            return Err(changed(key));
        }
    }
    Ok(())
}

fn weakly_equal(a: &ETag, b: &ETag) -> bool {
    a.as_str().trim_start_matches("W/") == b.as_str().trim_start_matches("W/")
}

fn changed(key: &Key) -> StoreError {
    StoreError::new(
        ErrorKind::Changed,
        "the record is no longer the version that was asked for",
    )
    .with_key(key)
}

/// Returns the error for a record that does not exist.
pub(super) fn not_found(key: &Key) -> StoreError {
    StoreError::new(ErrorKind::NotFound, "there is no such record").with_key(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_of_another_length_than_announced_is_refused() {
        for announced in [2u64, 4] {
            let mut body: &[u8] = b"abc";
            let mut out = Vec::new();
            let error = copy(Upload::Stream(&mut body, Some(announced)), &mut out)
                .expect_err("a wrong length");
            assert_eq!(error.kind(), ErrorKind::Protocol, "{announced}");
        }
    }

    #[test]
    fn ranges_are_cut_to_the_record() {
        assert_eq!(clamp(&(2..u64::MAX), 5), 2..5);
        assert_eq!(clamp(&(7..9), 5), 5..5);
        assert_eq!(clamp(&(1..3), 5), 1..3);
    }
}
