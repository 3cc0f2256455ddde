//! From stored bytes to content: undoes `Content-Encoding`.

use std::io::{self, BufRead, BufReader, Read};

use flate2::bufread::{DeflateDecoder, MultiGzDecoder, ZlibDecoder};

use crate::store::{Encoding, ErrorKind, StoreError};

pub mod brotli;
pub mod expansion;
mod memory;

pub use memory::{DecoderMemory, Turn, has_made_way, is_no_place};

/// Read buffer of the decoders, in bytes.
const BUFFER: usize = 32 << 10;

/// Where the decoders read from.
type Body<'a> = BufReader<Box<dyn Read + Send + 'a>>;

/// Returns a reader of the content behind `body`'s stored bytes.
///
/// A stream that ends early, is damaged, or has bytes behind its end is an [`io::Error`], never a
/// short content. An error of `body` itself comes through unchanged. What it needs is taken from
/// `memory`, when it is first needed.
///
/// # Errors
/// [`ErrorKind::Corrupt`] for an encoding that kvfs cannot undo, and errors of the first read. Later,
/// from reading, those of [`is_no_place`] and [`has_made_way`].
pub fn decoder<'a>(
    encoding: &Encoding,
    body: Box<dyn Read + Send + 'a>,
    memory: &DecoderMemory,
    turn: Turn,
) -> Result<Box<dyn Read + Send + 'a>, StoreError> {
    let buffered = |body| BufReader::with_capacity(BUFFER, body);
    Ok(match encoding {
        Encoding::Identity => body,
        Encoding::Gzip => Box::new(Whole::new(MultiGzDecoder::new(buffered(body)), "gzip")),
        Encoding::Brotli => {
            let decoder = brotli::Decoder::new(buffered(body), memory, turn);
            Box::new(Whole::new(decoder, "br"))
        }
        Encoding::Deflate => deflate(buffered(body))?,
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
fn deflate<'a>(mut body: Body<'a>) -> Result<Box<dyn Read + Send + 'a>, StoreError> {
    let mut head = Vec::with_capacity(2);
    (&mut body)
        .take(2)
        .read_to_end(&mut head)
        .map_err(|error| StoreError::from_io(error, ErrorKind::Network))?;
    let zlib = matches!(head[..], [cmf, flg] if cmf & 0x0f == 8 && (u16::from(cmf) << 8 | u16::from(flg)) % 31 == 0);
    let whole = io::Cursor::new(head).chain(body);
    Ok(if zlib {
        Box::new(Whole::new(ZlibDecoder::new(whole), "deflate"))
    } else {
        Box::new(Whole::new(DeflateDecoder::new(whole), "deflate"))
    })
}

/// Ensures that nothing follows a stream: at the end of the content the body must end too.
///
/// So a transfer that broke behind the last compressed byte is noticed, and the connection can be
/// used again. The first byte too many is an error; nothing more is read.
///
/// What the decoder complains of is said in words; errors of the body stay as they are. An error
/// stays: a reader that goes on after it never takes it for the end.
struct Whole<D> {
    decoder: D,
    name: &'static str,
    state: State,
}

enum State {
    Content,
    End,
    Failed(StoreError),
}

impl<D: Read + Source> Whole<D> {
    fn new(decoder: D, name: &'static str) -> Self {
        Self {
            decoder,
            name,
            state: State::Content,
        }
    }

    fn step(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let len = self.decoder.read(buffer)?;
        if len > 0 || buffer.is_empty() {
            return Ok(len);
        }
        if !self.decoder.source().fill_buf()?.is_empty() {
            return Err(io::Error::other("bytes follow after its end"));
        }
        self.state = State::End;
        Ok(0)
    }

    /// Distinguishes errors of the decoder from those of the body.
    fn explain(&self, error: io::Error) -> StoreError {
        let is_the_bodys = error
            .get_ref()
            .is_some_and(|inner| inner.is::<StoreError>());
        if is_the_bodys {
            return StoreError::from_io(error, ErrorKind::Network);
        }
        let message = format!("the stored bytes do not decode as {}: {error}", self.name);
        StoreError::new(ErrorKind::Corrupt, message)
    }
}

/// The decoders' way to their source.
trait Source {
    fn source(&mut self) -> &mut dyn BufRead;
}

impl<R: BufRead> Source for MultiGzDecoder<R> {
    fn source(&mut self) -> &mut dyn BufRead {
        self.get_mut()
    }
}

impl<R: BufRead> Source for ZlibDecoder<R> {
    fn source(&mut self) -> &mut dyn BufRead {
        self.get_mut()
    }
}

impl<R: BufRead> Source for DeflateDecoder<R> {
    fn source(&mut self) -> &mut dyn BufRead {
        self.get_mut()
    }
}

impl<R: BufRead> Source for brotli::Decoder<R> {
    fn source(&mut self) -> &mut dyn BufRead {
        self.get_mut()
    }
}

impl<D: Read + Source> Read for Whole<D> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match &self.state {
            State::Content => {}
            State::End => return Ok(0),
            State::Failed(error) => return Err(error.duplicate().into()),
        }
        self.step(buffer).map_err(|error| {
            // Those of the system are told by their number.
            if error.kind() == io::ErrorKind::Interrupted || error.raw_os_error().is_some() {
                return error;
            }
            let error = self.explain(error);
            self.state = State::Failed(error.duplicate());
            error.into()
        })
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use proptest::prelude::*;

    use super::*;

    fn decoder<'a>(
        encoding: &Encoding,
        body: Box<dyn Read + Send + 'a>,
    ) -> Result<Box<dyn Read + Send + 'a>, StoreError> {
        super::decoder(encoding, body, DecoderMemory::of_process(), Turn::Now)
    }

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
                ::brotli::CompressorWriter::new(&mut out, 4096, 4, 20)
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
        fn nothing_may_follow_a_stream(
            content in proptest::collection::vec(any::<u8>(), 0..2000),
            more in proptest::collection::vec(any::<u8>(), 1..100_000),
        ) {
            for encoding in &ENCODINGS[1..] {
                let stored = encode(encoding, &content);
                prop_assert!(decode(encoding, &[&stored[..], &more].concat()).is_err(), "{:?}", encoding);
                // Only of gzip several streams are one (RFC 1952, 2.2).
                let twice = decode(encoding, &[&stored[..], &stored].concat());
                prop_assert_eq!(twice.is_ok(), *encoding == Encoding::Gzip, "{:?}", encoding);
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
    fn brotli_windows_are_no_larger_than_the_standard_allows() {
        let mut stored = Vec::new();
        let parameters = ::brotli::enc::BrotliEncoderParams {
            quality: 4,
            lgwin: 28,
            large_window: true,
            ..Default::default()
        };
        ::brotli::BrotliCompress(&mut &[7; 5000][..], &mut stored, &parameters).expect("in memory");
        assert!(decode(&Encoding::Brotli, &stored).is_err());
    }

    #[test]
    fn what_follows_a_stream_is_neither_dropped_nor_read_for_ever() {
        for encoding in &ENCODINGS[1..] {
            let stored = encode(encoding, b"hello");
            let endless = io::Cursor::new(stored).chain(io::repeat(7));
            let mut reader = decoder(encoding, Box::new(endless)).expect("a decoder");
            for _ in 0..2 {
                let error = reader.read_to_end(&mut Vec::new()).expect_err("an error");
                let error = StoreError::from_io(error, ErrorKind::Network);
                assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
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
