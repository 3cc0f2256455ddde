//! Bodies between blocking readers and the bucket's asynchronous library.

use std::io::{self, Read};

use bytes::{Buf, Bytes};
use futures_util::StreamExt;
use futures_util::stream::BoxStream;

use super::{Bucket, failed};

/// An object's bytes on their way.
pub(super) struct Body {
    pub(super) stream: BoxStream<'static, object_store::Result<Bytes>>,
    pub(super) current: Bytes,
    pub(super) bucket: Bucket,
}

impl Read for Body {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() {
            let next = self.stream.next();
            match self.bucket.handle.block_on(next) {
                Some(Ok(bytes)) => self.current = bytes,
                Some(Err(error)) => return Err(failed(error, None).into()),
                None => return Ok(0),
            }
        }
        let n = buffer.len().min(self.current.len());
        self.current.copy_to_slice(&mut buffer[..n]);
        Ok(n)
    }
}

/// Reads a whole piece of an upload; a shorter one means the end.
pub(super) fn fill(reader: &mut dyn Read, size: usize) -> io::Result<Vec<u8>> {
    let mut piece = Vec::new();
    reader.take(size as u64).read_to_end(&mut piece)?;
    Ok(piece)
}
