//! Brotli as `Content-Encoding: br` allows it (RFC 7932): windows of at most 16 MiB.

use std::fmt;
use std::io::{self, BufRead, Read};

use brotli::{BrotliDecompressStream, BrotliResult, BrotliState, HeapAlloc, HuffmanCode};

type State = BrotliState<HeapAlloc<u8>, HeapAlloc<u32>, HeapAlloc<HuffmanCode>>;

/// Decodes brotli and takes no byte from the source that lies behind the stream's end.
///
/// The crate's own reader accepts the "large window" format too, with which 2 KB of input make it
/// set 1 GiB aside, and keeps what it has read too much.
pub struct Decoder<R> {
    source: R,
    state: Box<State>,
    /// Whether the decoder has more to hand out before it needs further input.
    has_output: bool,
    has_ended: bool,
}

impl<R: BufRead> Decoder<R> {
    /// Starts to decode what `source` yields.
    pub fn new(source: R) -> Self {
        let state = BrotliState::new_strict(
            HeapAlloc::new(0),
            HeapAlloc::new(0),
            HeapAlloc::new(HuffmanCode::default()),
        );
        Self {
            source,
            state: Box::new(state),
            has_output: false,
            has_ended: false,
        }
    }

    /// Returns the source: at the end of the content, what follows behind it.
    pub fn get_mut(&mut self) -> &mut R {
        &mut self.source
    }
}

impl<R: BufRead> Read for Decoder<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() || self.has_ended {
            return Ok(0);
        }
        loop {
            let input = match self.has_output {
                true => &[][..],
                false => self.source.fill_buf()?,
            };
            let is_cut = input.is_empty() && !self.has_output;
            let (mut input_left, mut used) = (input.len(), 0);
            let (mut room, mut made, mut total) = (buffer.len(), 0, 0);
            let result = BrotliDecompressStream(
                &mut input_left,
                &mut used,
                input,
                &mut room,
                &mut made,
                buffer,
                &mut total,
                &mut self.state,
            );
            if !self.has_output {
                self.source.consume(used);
            }
            self.has_output = matches!(result, BrotliResult::NeedsMoreOutput);
            match result {
                BrotliResult::ResultSuccess => self.has_ended = true,
                BrotliResult::ResultFailure => {
                    return Err(io::Error::new(io::ErrorKind::InvalidData, "invalid data"));
                }
                BrotliResult::NeedsMoreInput if made == 0 => {
                    if is_cut {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                    continue;
                }
                BrotliResult::NeedsMoreInput | BrotliResult::NeedsMoreOutput => {}
            }
            return Ok(made);
        }
    }
}

impl<R> fmt::Debug for Decoder<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Decoder").finish_non_exhaustive()
    }
}
