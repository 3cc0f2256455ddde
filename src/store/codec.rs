//! From stored bytes to content: undoes `Content-Encoding`.

use std::io::{self, Read};

use flate2::read::{DeflateDecoder, MultiGzDecoder, ZlibDecoder};

use crate::store::{Encoding, ErrorKind, StoreError};

/// Read buffer of the decoders, in bytes.
const BUFFER: usize = 32 << 10;

/// Returns a reader of the content behind `body`'s stored bytes.
///
/// A stream that ends early or is damaged is an [`io::Error`], never a short content. An error
/// of `body` itself comes through unchanged.
///
/// # Errors
/// [`ErrorKind::Corrupt`] for an encoding that kvfs cannot undo, and errors of the first read.
pub fn decoder<'a>(
    encoding: &Encoding,
    body: Box<dyn Read + Send + 'a>,
) -> Result<Box<dyn Read + Send + 'a>, StoreError> {
    Ok(match encoding {
        Encoding::Identity => body,
        Encoding::Gzip => Box::new(Drained(MultiGzDecoder::new(body), "gzip")),
        Encoding::Brotli => Box::new(Drained(brotli::Decompressor::new(body, BUFFER), "br")),
        Encoding::Deflate => deflate(body)?,
        Encoding::Unknown(name) => {
            return Err(StoreError::new(
                ErrorKind::Corrupt,
                format!("kvfs cannot decode the content encoding '{name}'"),
            )
            .with_hint("mount with --raw to read the stored bytes"));
        }
    })
}

/// HTTP's `deflate` is zlib (RFC 9110, 8.4.1.2); some senders leave the zlib frame out.
fn deflate<'a>(
    mut body: Box<dyn Read + Send + 'a>,
) -> Result<Box<dyn Read + Send + 'a>, StoreError> {
    let mut head = Vec::with_capacity(2);
    (&mut body)
        .take(2)
        .read_to_end(&mut head)
        .map_err(|error| StoreError::from_io(error, ErrorKind::Network))?;
    let zlib = matches!(head[..], [cmf, flg] if cmf & 0x0f == 8 && (u16::from(cmf) << 8 | u16::from(flg)) % 31 == 0);
    let whole = io::Cursor::new(head).chain(body);
    Ok(if zlib {
        Box::new(Drained(ZlibDecoder::new(whole), "deflate"))
    } else {
        Box::new(Drained(DeflateDecoder::new(whole), "deflate"))
    })
}

/// At the end of the content, reads the body to its end too, so that a transfer that broke
/// behind the last compressed byte is noticed and the connection can be used again.
///
/// What the decoder complains of is said in words; errors of the body stay as they are.
struct Drained<D>(D, &'static str);

impl<D> Drained<D> {
    fn explain(&self, error: io::Error) -> io::Error {
        let is_the_bodys = error.raw_os_error().is_some()
            || error
                .get_ref()
                .is_some_and(|inner| inner.is::<StoreError>());
        if is_the_bodys || error.kind() == io::ErrorKind::Interrupted {
            return error;
        }
        let message = format!("the stored bytes do not decode as {}: {error}", self.1);
        StoreError::new(ErrorKind::Corrupt, message).into()
    }
}

/// The decoders' way to their source.
trait Source {
    type Inner: Read;
    fn source(&mut self) -> &mut Self::Inner;
}

impl<R: Read> Source for MultiGzDecoder<R> {
    type Inner = R;
    fn source(&mut self) -> &mut R {
        self.get_mut()
    }
}

impl<R: Read> Source for ZlibDecoder<R> {
    type Inner = R;
    fn source(&mut self) -> &mut R {
        self.get_mut()
    }
}

impl<R: Read> Source for DeflateDecoder<R> {
    type Inner = R;
    fn source(&mut self) -> &mut R {
        self.get_mut()
    }
}

impl<R: Read> Source for brotli::Decompressor<R> {
    type Inner = R;
    fn source(&mut self) -> &mut R {
        self.get_mut()
    }
}

impl<D: Read + Source> Read for Drained<D> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = match self.0.read(buffer) {
            Ok(n) => n,
            Err(error) => return Err(self.explain(error)),
        };
        if n == 0 && !buffer.is_empty() {
            io::copy(self.0.source(), &mut io::sink())?;
        }
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use proptest::prelude::*;

    use super::*;

    fn encode(encoding: &Encoding, content: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        match encoding {
            Encoding::Gzip => {
                let mut encoder =
                    flate2::write::GzEncoder::new(&mut out, flate2::Compression::fast());
                encoder.write_all(content).expect("in memory");
                encoder.finish().expect("in memory");
            }
            Encoding::Deflate => {
                let mut encoder =
                    flate2::write::ZlibEncoder::new(&mut out, flate2::Compression::fast());
                encoder.write_all(content).expect("in memory");
                encoder.finish().expect("in memory");
            }
            Encoding::Brotli => {
                brotli::CompressorWriter::new(&mut out, 4096, 4, 20)
                    .write_all(content)
                    .expect("in memory");
            }
            _ => out.extend_from_slice(content),
        }
        out
    }

    fn decode(encoding: &Encoding, stored: &[u8]) -> Result<Vec<u8>, String> {
        let mut content = Vec::new();
        let mut reader = decoder(encoding, Box::new(stored)).map_err(|error| error.to_string())?;
        reader
            .read_to_end(&mut content)
            .map_err(|error| error.to_string())?;
        Ok(content)
    }

    const ENCODINGS: [Encoding; 4] = [
        Encoding::Identity,
        Encoding::Gzip,
        Encoding::Brotli,
        Encoding::Deflate,
    ];

    proptest! {
        #[test]
        fn decoding_undoes_encoding(content in proptest::collection::vec(any::<u8>(), 0..5000)) {
            for encoding in &ENCODINGS {
                prop_assert_eq!(decode(encoding, &encode(encoding, &content)), Ok(content.clone()));
            }
        }

        #[test]
        fn a_stream_cut_short_is_an_error_and_never_a_short_content(
            content in proptest::collection::vec(any::<u8>(), 1..2000), cut in 1usize..40,
        ) {
            for encoding in &ENCODINGS[1..] {
                let stored = encode(encoding, &content);
                let end = stored.len().saturating_sub(cut);
                prop_assert!(decode(encoding, &stored[..end]).is_err(), "{:?}", encoding);
            }
        }

        #[test]
        fn arbitrary_bytes_never_panic(stored in proptest::collection::vec(any::<u8>(), 0..300)) {
            for encoding in &ENCODINGS {
                let _ = decode(encoding, &stored);
            }
        }
    }

    #[test]
    fn deflate_without_the_zlib_frame_is_read_too() {
        let mut encoder =
            flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::best());
        encoder.write_all(b"hello hello hello").expect("in memory");
        let stored = encoder.finish().expect("in memory");
        assert_eq!(
            decode(&Encoding::Deflate, &stored).as_deref(),
            Ok(&b"hello hello hello"[..])
        );
    }

    #[test]
    fn what_does_not_decode_says_as_what_and_errors_of_the_body_stay() {
        for (name, encoding) in [
            ("gzip", Encoding::Gzip),
            ("br", Encoding::Brotli),
            ("deflate", Encoding::Deflate),
        ] {
            let mut bytes = Vec::new();
            let read = |body: Box<dyn Read + Send>, into: &mut Vec<u8>| {
                let error = decoder(&encoding, body)
                    .expect("a decoder")
                    .read_to_end(into)
                    .expect_err("an error");
                StoreError::from_io(error, ErrorKind::Network)
            };
            let garbage = Box::new(&b"this is not compressed"[..]);
            let error = read(garbage, &mut bytes);
            assert_eq!(error.kind(), ErrorKind::Corrupt);
            assert!(error.to_string().contains(name), "{error}");
            let mut half = encode(&encoding, &[7; 1000]);
            half.truncate(half.len() / 2);
            let broken = io::Cursor::new(half).chain(Breaks);
            let error = read(Box::new(broken), &mut bytes);
            assert_eq!(error.kind(), ErrorKind::Changed, "{error}");
        }
    }

    struct Breaks;

    impl Read for Breaks {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(StoreError::new(ErrorKind::Changed, "it broke").into())
        }
    }

    #[test]
    fn an_unknown_encoding_says_how_to_read_it() {
        let error = decoder(&Encoding::from_header(Some("zstd")), Box::new(&b""[..]))
            .err()
            .expect("an error");
        assert!(
            error.hint().is_some_and(|hint| hint.contains("--raw")),
            "{error:?}"
        );
    }
}
