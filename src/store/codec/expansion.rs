//! Limits how far a record may be decoded, so that a stranger's store costs no more than an
//! ordinary one.
//!
//! gzip and deflate make 1 MB of at most 1 KB; brotli makes terabytes of a megabyte, so that one
//! record could keep a processor busy for hours.

use std::io::{self, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::{DecoderMemory, Turn, decoder as unbounded};
use crate::base::units::{ByteSize, MIB};
use crate::store::{Encoding, ErrorKind, Result, StoreError};

/// Stored bytes or content.
type Body = Box<dyn Read + Send>;

/// Content up to this size is decoded however little is stored, in bytes.
const UNQUESTIONED: u64 = 64 * MIB;

/// How many times its stored size a larger content may have. The most that deflate can is 1032.
const MOST_TIMES: u64 = 1100;

/// Decodes a body. Content that grows beyond `most` bytes is an error, or where nothing is said,
/// beyond what an honest record has.
///
/// # Errors
/// [`ErrorKind::Unsupported`] for an unknown encoding; later, from reading, [`ErrorKind::TooLarge`].
pub fn decoder(
    encoding: &Encoding,
    body: Body,
    most: Option<u64>,
    memory: &DecoderMemory,
    turn: Turn,
) -> Result<Body> {
    let stored = Arc::new(AtomicU64::new(0));
    let counted = Counted(body, Arc::clone(&stored));
    Ok(Box::new(Bounded {
        inner: unbounded(encoding, Box::new(counted), memory, turn)?,
        stored,
        decoded: 0,
        most,
    }))
}

/// Counts stored bytes on their way to the decoder.
struct Counted(Body, Arc<AtomicU64>);

impl Read for Counted {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.0.read(buffer)?;
        self.1.fetch_add(n as u64, Ordering::Relaxed);
        Ok(n)
    }
}

/// A decoder that ends where a content is too large.
struct Bounded {
    inner: Body,
    stored: Arc<AtomicU64>,
    decoded: u64,
    most: Option<u64>,
}

impl Bounded {
    fn stored(&self) -> u64 {
        self.stored.load(Ordering::Relaxed)
    }
}

impl Read for Bounded {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.decoded += n as u64;
        let most = match self.most {
            Some(most) => most,
            None if self.decoded <= UNQUESTIONED => return Ok(n),
            None => UNQUESTIONED.max(self.stored().saturating_mul(MOST_TIMES)),
        };
        if self.decoded <= most {
            return Ok(n);
        }
        Err(too_large(most, self.stored()).into())
    }
}

fn too_large(most: u64, stored: u64) -> StoreError {
    let message = format!(
        "the record decodes to more than {} ({} of it are stored)",
        ByteSize(most),
        ByteSize(stored)
    );
    StoreError::new(ErrorKind::TooLarge, message)
        .with_hint("mount with --raw to read the stored bytes, or with a larger --max-content-size")
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    /// Zeros, encoded.
    fn zeros(encoding: &Encoding, bytes: u64) -> Vec<u8> {
        let mut zeros = io::repeat(0).take(bytes);
        let mut out = Vec::new();
        match encoding {
            Encoding::Brotli => {
                let mut encoder = brotli::CompressorWriter::new(&mut out, 1 << 16, 5, 22);
                io::copy(&mut zeros, &mut encoder).expect("brotli");
            }
            _ => {
                let level = flate2::Compression::best();
                let mut encoder = flate2::write::GzEncoder::new(&mut out, level);
                io::copy(&mut zeros, &mut encoder).expect("gzip");
                encoder.flush().expect("gzip");
                encoder.finish().expect("gzip");
            }
        }
        out
    }

    fn decoded(encoding: Encoding, bytes: u64, most: Option<u64>) -> Result<u64> {
        let stored = io::Cursor::new(zeros(&encoding, bytes));
        let mut body = decoder(
            &encoding,
            Box::new(stored),
            most,
            DecoderMemory::of_process(),
            Turn::Now,
        )?;
        io::copy(&mut body, &mut io::sink())
            .map_err(|error| StoreError::from_io(error, ErrorKind::Corrupt))
    }

    #[test]
    fn a_content_ends_where_no_honest_one_would() {
        let large = UNQUESTIONED + MIB;
        let whole = decoded(Encoding::Gzip, large, None).expect("gzip never makes so much");
        assert_eq!(whole, large);
        let small = decoded(Encoding::Brotli, MIB, None).expect("a small one");
        assert_eq!(small, MIB);
        let error = decoded(Encoding::Brotli, large, None).expect_err("a bomb");
        assert_eq!(error.kind(), ErrorKind::TooLarge);
        assert!(error.hint().is_some_and(|hint| hint.contains("--raw")));
    }

    #[test]
    fn what_was_said_counts_instead() {
        let large = UNQUESTIONED + MIB;
        let whole = decoded(Encoding::Brotli, large, Some(large)).expect("as large as allowed");
        assert_eq!(whole, large);
        let error = decoded(Encoding::Gzip, MIB, Some(1000)).expect_err("too large");
        assert_eq!(error.kind(), ErrorKind::TooLarge);
    }
}
