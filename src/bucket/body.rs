//! Bodies on their way out of the bucket, for blocking readers.

use std::io::{self, Read};

use bytes::{Buf, Bytes};
use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};
use object_store::GetResult;

use super::Bucket;
use super::errors::failed;

/// What is still read of a body that is not wanted, so that its connection can be used again.
const DRAINED: u64 = 64 << 10;

/// An object's bytes on their way.
pub(super) struct Body {
    stream: BoxStream<'static, object_store::Result<Bytes>>,
    current: Bytes,
    /// Bytes that are still to come.
    left: u64,
    bucket: Bucket,
}

impl Body {
    pub(super) fn new(found: GetResult, bucket: Bucket) -> Self {
        Self {
            left: found.range.end - found.range.start,
            stream: found.into_stream(),
            current: Bytes::new(),
            bucket,
        }
    }
}

impl Read for Body {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() {
            match self.bucket.handle.block_on(self.stream.next()) {
                Some(Ok(bytes)) => self.current = bytes,
                Some(Err(error)) => return Err(failed(error, None).into()),
                None => return Ok(0),
            }
            self.left = self.left.saturating_sub(self.current.len() as u64);
        }
        let n = buffer.len().min(self.current.len());
        self.current.copy_to_slice(&mut buffer[..n]);
        Ok(n)
    }
}

impl Drop for Body {
    fn drop(&mut self) {
        if (1..=DRAINED).contains(&self.left) {
            let rest = std::mem::replace(&mut self.stream, stream::empty().boxed());
            self.bucket.handle.spawn(rest.for_each(|_| async {}));
        }
    }
}
