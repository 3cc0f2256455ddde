//! Uploads without an answer, which may have left something in the store (`upload::indeterminate`).
//!
//! An upload under a condition may have changed the record although its answer was lost. A later
//! upload under the same condition is then refused, though no one else has changed anything. So
//! bytes sent without an answer are remembered, and a refusal counts only if the store has other
//! bytes.

use std::fs::File;
use std::io;
use std::sync::Arc;

use super::entry;
use super::journal::ReadAt;
use crate::store::Encoding;

/// The most of one record that are remembered. Of uploads under the same condition the store took
/// one at most.
const MOST: usize = 64;

/// The largest content that is compared with what a record has before it is replaced, in bytes: that
/// fetches the record.
pub const MOST_COMPARED: u64 = 8 << 20;

/// An upload that may have arrived.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unanswered {
    /// How many bytes.
    pub size: u64,
    /// How they are encoded.
    pub encoding: Encoding,
    /// Their checksum, that of [`super::entry::data_checksum`].
    pub checksum: Arc<str>,
}

/// What a change began from, where the server does not tell versions apart: it replaces nothing else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Began {
    /// The bytes that the record had.
    pub bytes: Unanswered,
    /// Whether these are its content, whatever its encoding; else they are its stored bytes.
    pub decoded: bool,
}

/// The uploads of one record that may have arrived since its version was last known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UnansweredUploads(Vec<Unanswered>);

impl Unanswered {
    /// Describes an upload of the first `size` bytes of `file`.
    ///
    /// # Errors
    /// That they cannot be read.
    pub fn new(file: &File, size: u64, encoding: &Encoding) -> io::Result<Self> {
        let checksum = entry::data_checksum(ReadAt(file, 0), size)?.into();
        let encoding = encoding.clone();
        Ok(Self {
            size,
            encoding,
            checksum,
        })
    }
}

impl UnansweredUploads {
    /// Adds one. Of very many those in the middle are forgotten: the first was sent when all the
    /// others had to be refused if it arrived, and the last is what the store has if none of the
    /// others did.
    pub fn add(&mut self, one: Unanswered) {
        if self.0.contains(&one) {
            return;
        }
        self.0.push(one);
        if self.0.len() > MOST {
            self.0.remove(MOST / 2);
        }
    }

    /// Adds those of another list.
    pub fn extend(&mut self, others: &Self) {
        for one in &others.0 {
            self.add(one.clone());
        }
    }

    /// Forgets all: the record's version is known.
    pub fn clear(&mut self) {
        self.0.clear();
    }

    /// Returns whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns them, the first sent first.
    pub fn iter(&self) -> impl Iterator<Item = &Unanswered> {
        self.0.iter()
    }
}

impl FromIterator<Unanswered> for UnansweredUploads {
    fn from_iter<T: IntoIterator<Item = Unanswered>>(all: T) -> Self {
        let mut list = Self::default();
        all.into_iter().for_each(|one| list.add(one));
        list
    }
}
