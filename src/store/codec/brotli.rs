//! Brotli as `Content-Encoding: br` allows it (RFC 7932): windows of at most 16 MiB.

use std::fmt;
use std::io::{self, BufRead, Read};
use std::sync::{Arc, Weak};
use std::time::Instant;

use brotli::{
    Allocator, BrotliDecompressStream, BrotliResult, BrotliState, HeapAlloc, HuffmanCode,
    SliceWrapper,
};
use parking_lot::Mutex;

use super::memory::{Account, DecoderMemory, Resting, Turn, made_way};

type State = BrotliState<Counted<u8>, Counted<u32>, Counted<HuffmanCode>>;

/// Decodes brotli and takes no byte from the source that lies behind the stream's end.
///
/// The crate's own reader accepts the "large window" format too, with which 2 KB of input make it
/// set 1 GiB aside, and keeps what it has read too much.
pub struct Decoder<R> {
    source: R,
    held: Arc<Held>,
    /// Whether the decoder has more to hand out before it needs further input.
    has_output: bool,
    has_begun: bool,
    has_ended: bool,
}

/// A decoder's state and memory, which it loses if others need it while it rests.
struct Held {
    /// The state, and since when it has rested; taken from here to work.
    resting: Mutex<Option<(Box<State>, Instant)>>,
    account: Arc<Account>,
}

/// Allocates on an account.
struct Counted<T: Clone + Default> {
    heap: HeapAlloc<T>,
    account: Arc<Account>,
}

impl<T: Clone + Default> Counted<T> {
    fn new(account: &Arc<Account>) -> Self {
        Self {
            heap: HeapAlloc::new(T::default()),
            account: Arc::clone(account),
        }
    }
}

impl<T: Clone + Default> Allocator<T> for Counted<T> {
    type AllocatedMemory = <HeapAlloc<T> as Allocator<T>>::AllocatedMemory;

    fn alloc_cell(&mut self, len: usize) -> Self::AllocatedMemory {
        match self.account.take((len * size_of::<T>()) as u64) {
            true => self.heap.alloc_cell(len),
            // No memory, by which the decoder fails.
            false => Self::AllocatedMemory::default(),
        }
    }

    fn free_cell(&mut self, cell: Self::AllocatedMemory) {
        let bytes = size_of_val(cell.slice()) as u64;
        self.heap.free_cell(cell);
        self.account.give(bytes);
    }
}

impl Resting for Held {
    fn since(&self) -> Option<Instant> {
        self.resting.lock().as_ref().map(|(_, since)| *since)
    }

    fn give_up(&self) {
        let resting = self.resting.lock().take();
        if resting.is_some() {
            drop(resting);
            self.account.close();
        }
    }
}

impl<R: BufRead> Decoder<R> {
    /// Starts to decode what `source` yields.
    pub fn new(source: R, memory: &DecoderMemory, turn: Turn) -> Self {
        let account = Arc::new(Account::new(memory, turn));
        let state = BrotliState::new_strict(
            Counted::new(&account),
            Counted::new(&account),
            Counted::new(&account),
        );
        let held = Arc::new(Held {
            resting: Mutex::new(Some((Box::new(state), Instant::now()))),
            account,
        });
        let holder: Weak<dyn Resting> = Arc::downgrade(&held) as _;
        held.account.belongs_to(holder);
        Self {
            source,
            held,
            has_output: false,
            has_begun: false,
            has_ended: false,
        }
    }

    /// Returns the source: at the end of the content, what follows behind it.
    pub fn get_mut(&mut self) -> &mut R {
        &mut self.source
    }

    fn decode(&mut self, state: &mut State, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let input = match self.has_output {
                true => &[][..],
                false => self.source.fill_buf()?,
            };
            if let (false, Some(first)) = (self.has_begun, input.first()) {
                self.held.account.set_window(window(*first));
                self.has_begun = true;
            }
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
                state,
            );
            if !self.has_output {
                self.source.consume(used);
            }
            self.has_output = matches!(result, BrotliResult::NeedsMoreOutput);
            match result {
                BrotliResult::ResultSuccess => self.has_ended = true,
                BrotliResult::ResultFailure => {
                    return Err(match self.held.account.refusal() {
                        Some(refusal) => refusal.into(),
                        None => io::Error::new(io::ErrorKind::InvalidData, "invalid data"),
                    });
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

/// Returns the size of the window that a stream's first byte announces (RFC 7932, 9.1).
fn window(first: u8) -> u64 {
    let bits = match (first & 1, first >> 1 & 7, first >> 4 & 7) {
        (0, ..) => 16,
        (_, 0, 0) => 17,
        (_, 0, more) => 8 + more,
        (_, more, _) => 17 + more,
    };
    1 << bits
}

impl<R: BufRead> Read for Decoder<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() || self.has_ended {
            return Ok(0);
        }
        let resting = self.held.resting.lock().take();
        let Some((mut state, _)) = resting else {
            return Err(made_way().into());
        };
        let read = self.decode(&mut state, buffer);
        if self.has_ended {
            drop(state);
            self.held.account.close();
        } else {
            *self.held.resting.lock() = Some((state, Instant::now()));
        }
        read
    }
}

impl<R> fmt::Debug for Decoder<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Decoder").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_byte_tells_the_window() {
        for bits in 10..=24 {
            let mut stored = Vec::new();
            let mut parameters = brotli::enc::BrotliEncoderParams {
                lgwin: bits,
                ..Default::default()
            };
            parameters.quality = 5;
            let content = vec![7; 40 << 20 >> (24 - bits)];
            brotli::BrotliCompress(&mut &content[..], &mut stored, &parameters).expect("in memory");
            assert_eq!(window(stored[0]), 1 << bits, "{bits}");
        }
    }
}
