//! The bytes that arrived last, still in memory for waiting readers.
//!
//! They are read from the network into large blocks, written to disk from there, and given to
//! readers from there: no reader reads back from disk what has just arrived. Blocks are used again
//! as long as any is in use, and given back to the system after that.

use crate::base::sync::Mutex;
use crate::base::units::MIB;
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

/// Bytes in a block: what the kernel asks for at once.
pub const BLOCK: usize = MIB as usize;
/// Blocks in use at once, over all downloads: the bound on their memory.
const MOST_BLOCKS: usize = 40;
/// Blocks that one download keeps for its readers; they lag behind by a few requests.
const KEPT: usize = 6;

/// Blocks of memory, lent and given back.
#[derive(Debug, Default)]
pub struct Blocks(Mutex<Lent>);

#[derive(Debug, Default)]
struct Lent {
    count: usize,
    spare: Vec<Box<[u8]>>,
}

/// A block that is lent until it is dropped.
#[derive(Debug)]
pub struct Block {
    bytes: Box<[u8]>,
    len: usize,
    pool: Arc<Blocks>,
}

impl Blocks {
    /// Lends a block; `None` when too many are in use. What is in it is of no meaning.
    pub fn take(self: &Arc<Self>) -> Option<Block> {
        let mut lent = self.0.lock();
        if lent.count == MOST_BLOCKS {
            return None;
        }
        lent.count += 1;
        let spare = lent.spare.pop();
        drop(lent);
        Some(Block {
            bytes: spare.unwrap_or_else(|| vec![0; BLOCK].into()),
            len: 0,
            pool: Arc::clone(self),
        })
    }

    /// Returns how many are in use.
    #[cfg(feature = "testing")]
    pub fn in_use(&self) -> usize {
        self.0.lock().count
    }
}

impl Block {
    /// Returns all of it, to be filled.
    pub fn room(&mut self) -> &mut [u8] {
        &mut self.bytes
    }

    /// Returns its first `len` bytes; the block is given back with the last reference to them.
    pub fn freeze(mut self, len: usize) -> Bytes {
        self.len = len;
        Bytes::from_owner(self)
    }
}

impl AsRef<[u8]> for Block {
    fn as_ref(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        let bytes = std::mem::take(&mut self.bytes);
        let mut lent = self.pool.0.lock();
        lent.count -= 1;
        lent.spare.push(bytes);
        // Freed without the lock.
        let unused = if lent.count == 0 {
            std::mem::take(&mut lent.spare)
        } else {
            Vec::new()
        };
        drop(lent);
        drop(unused);
    }
}

/// The last blocks of one download, oldest first.
#[derive(Debug, Default)]
pub struct Window(VecDeque<(u64, Bytes)>);

impl Window {
    /// Adds what begins at `start`; returns what had to make room, to be dropped without locks.
    pub fn push(&mut self, start: u64, bytes: Bytes) -> Option<Bytes> {
        self.0.push_back((start, bytes));
        if self.0.len() > KEPT {
            self.shrink()
        } else {
            None
        }
    }

    /// Gives up the oldest block.
    pub fn shrink(&mut self) -> Option<Bytes> {
        self.0.pop_front().map(|(_, bytes)| bytes)
    }

    /// Returns the wanted bytes if one block has them all.
    pub fn get(&self, wanted: &Range<u64>) -> Option<Bytes> {
        self.0.iter().rev().find_map(|(start, bytes)| {
            let end = start + bytes.len() as u64;
            (*start <= wanted.start && wanted.end <= end).then(|| {
                bytes.slice((wanted.start - start) as usize..(wanted.end - start) as usize)
            })
        })
    }

    /// Gives up everything.
    pub fn clear(&mut self) -> Vec<Bytes> {
        self.0.drain(..).map(|(_, bytes)| bytes).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_bounded_and_given_back_with_their_last_reader() {
        let blocks = Arc::new(Blocks::default());
        let mut window = Window::default();
        let mut lent = Vec::new();
        while let Some(mut block) = blocks.take() {
            block.room()[0] = lent.len() as u8;
            lent.push(block.freeze(10));
        }
        assert_eq!(lent.len(), MOST_BLOCKS);
        for (i, bytes) in lent.drain(..).enumerate() {
            drop(window.push(i as u64 * 10, bytes));
        }
        assert_eq!(blocks.in_use(), KEPT);
        let last = MOST_BLOCKS as u64 * 10 - 10;
        assert_eq!(
            window.get(&(last..last + 3)).expect("kept")[0],
            MOST_BLOCKS as u8 - 1
        );
        assert!(window.get(&(last - 1..last + 1)).is_none(), "in two blocks");
        assert!(window.get(&(0..1)).is_none(), "given up");
        let reader = window.get(&(last..last + 1));
        drop(window.clear());
        assert_eq!(blocks.in_use(), 1);
        drop(reader);
        assert_eq!(blocks.in_use(), 0);
        assert!(blocks.0.lock().spare.is_empty());
    }
}
