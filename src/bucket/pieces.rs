//! The bytes of an upload, piece by piece.
//!
//! What a client sends slowly waits on disk: memory is taken only for whole pieces, and for a fixed
//! number at once, however many clients there are.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;

use object_store::PutPayload;

use crate::store::{ErrorKind, Result, StoreError, Upload};

/// Bytes of a record that go out at once; larger records go in several parts.
pub(super) const PART: usize = 8 << 20;

/// Pieces in memory at once, over all uploads of a process.
pub(super) const MOST_PIECES: usize = 8;

/// Bytes of a piece that do not need to wait on disk.
const SMALL: usize = 32 << 10;

/// Where an upload's bytes come from.
pub(super) enum Pieces<'a> {
    Bytes(&'a [u8]),
    /// A file, from here on.
    File(&'a File, u64),
    Stream(&'a mut (dyn Read + Send)),
}

/// A piece that is whole.
pub(super) enum Piece<'a> {
    Small(Vec<u8>),
    Bytes(&'a [u8]),
    /// In a file, from here on, this many bytes.
    File(&'a File, u64, usize),
    Waiting(File, usize),
}

impl<'a> Pieces<'a> {
    pub(super) fn of(upload: Upload<'a>) -> Self {
        match upload {
            Upload::Bytes(bytes) => Self::Bytes(bytes),
            Upload::File(file, _) => Self::File(file, 0),
            Upload::Stream(stream, _) => Self::Stream(stream),
        }
    }

    /// Waits until the next piece is whole; one that is shorter than [`PART`] is the last.
    pub(super) fn next(&mut self) -> Result<Piece<'a>> {
        match self {
            Self::Bytes(bytes) => {
                let (piece, rest) = bytes.split_at(bytes.len().min(PART));
                *bytes = rest;
                Ok(Piece::Bytes(piece))
            }
            Self::File(file, at) => {
                let end = file.metadata().map_err(disk)?.len();
                let size = end.saturating_sub(*at).min(PART as u64);
                let piece = Piece::File(file, *at, usize::try_from(size).unwrap_or(PART));
                *at += size;
                Ok(piece)
            }
            Self::Stream(stream) => collect(*stream),
        }
    }
}

impl Piece<'_> {
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Small(bytes) => bytes.len(),
            Self::Bytes(bytes) => bytes.len(),
            Self::File(.., size) | Self::Waiting(_, size) => *size,
        }
    }

    /// Takes the memory for it.
    pub(super) fn load(self) -> Result<PutPayload> {
        let read = |file: &File, at, size| {
            let mut bytes = vec![0; size];
            file.read_exact_at(&mut bytes, at).map_err(disk)?;
            Ok(PutPayload::from(bytes))
        };
        match self {
            Self::Small(bytes) => Ok(bytes.into()),
            Self::Bytes(bytes) => Ok(bytes.to_vec().into()),
            Self::File(file, at, size) => read(file, at, size),
            Self::Waiting(file, size) => read(&file, 0, size),
        }
    }
}

fn collect<'a>(stream: &mut dyn Read) -> Result<Piece<'a>> {
    let mut head = Vec::new();
    stream
        .take(SMALL as u64)
        .read_to_end(&mut head)
        .map_err(broken)?;
    if head.len() < SMALL {
        return Ok(Piece::Small(head));
    }
    let mut file = tempfile::tempfile().map_err(disk)?;
    file.write_all(&head).map_err(disk)?;
    let mut size = head.len();
    while size < PART {
        let most = head.len().min(PART - size);
        let n = match stream.read(&mut head[..most]) {
            Ok(0) => break,
            Ok(n) => n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(broken(error)),
        };
        file.write_all(&head[..n]).map_err(disk)?;
        size += n;
    }
    Ok(Piece::Waiting(file, size))
}

fn broken(error: io::Error) -> StoreError {
    StoreError::from_io(error, ErrorKind::Network)
}

fn disk(error: io::Error) -> StoreError {
    let message = "an upload cannot wait on disk";
    StoreError::new(ErrorKind::Disk, message)
        .with_hint("TMPDIR names the folder; it needs 8 MiB for each upload under way")
        .with_source(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_and_bytes_come_in_the_same_pieces() {
        for size in [0, 5, SMALL, SMALL + 1, PART - 1, PART, PART + 7] {
            let content: Vec<u8> = (0..size).map(|n| (n / 251) as u8).collect();
            let mut stream: &[u8] = &content;
            let mut file = tempfile::tempfile().expect("a file");
            file.write_all(&content).expect("a write");
            for upload in [
                Upload::Bytes(&content),
                Upload::File(&file, size as u64),
                Upload::Stream(&mut stream, None),
            ] {
                let mut pieces = Pieces::of(upload);
                let mut got = Vec::new();
                loop {
                    let piece = pieces.next().expect("a piece");
                    let last = piece.len() < PART;
                    for bytes in piece.load().expect("bytes").iter() {
                        got.extend_from_slice(bytes);
                    }
                    if last {
                        break;
                    }
                }
                assert!(got == content, "{size}");
            }
        }
    }
}
