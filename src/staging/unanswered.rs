//! Uploads without an answer, and what they may have left in the store.
//!
//! An upload under a condition may have changed the record although its answer was lost. Whatever
//! is then uploaded under the same condition is refused, and nobody else has changed anything. So
//! what was sent without an answer is remembered, and a refusal counts only if the store has
//! something else.

use std::fs::File;
use std::io::{self, Read};
use std::sync::Arc;

use twox_hash::XxHash3_128;

use super::entry;
use super::journal::ReadAt;
use crate::base::clock::Deadline;
use crate::store::{
    ETag, Encoding, ErrorKind, GetOutcome, GetRequest, Key, PutRequest, RecordMeta, Store,
    StoreError,
};

/// The most of one record that are remembered. Of uploads under the same condition the store took
/// one at most.
const MOST: usize = 64;
/// Bytes read at once.
const CHUNK: usize = 64 << 10;

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

/// The uploads of one record that may have arrived since its version was last known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UnansweredUploads(Vec<Unanswered>);

/// What the store turned out to have.
#[derive(Debug)]
pub enum Found {
    /// What one of the uploads made of the record.
    Ours(Unanswered, RecordMeta),
    /// The version that they were to replace, or no record where they were to make one.
    Before,
    /// Something else.
    Other,
}

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

    /// Tells whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns them, the first sent first.
    pub fn iter(&self) -> impl Iterator<Item = &Unanswered> {
        self.0.iter()
    }

    /// Finds out what the store has, now that an upload with `request` was refused or not answered.
    ///
    /// # Errors
    /// Those of the store; that it has no such record is no error.
    pub fn look(
        &self,
        store: &dyn Store,
        key: &Key,
        request: &PutRequest,
        deadline: Deadline,
    ) -> Result<Found, StoreError> {
        let found = match store.get(key, &GetRequest::default(), deadline) {
            Ok(GetOutcome::Found(found)) => found,
            Ok(GetOutcome::NotModified) => return Ok(Found::Other),
            Err(error) if error.kind() == ErrorKind::NotFound => {
                return Ok(if request.if_absent {
                    Found::Before
                } else {
                    Found::Other
                });
            }
            Err(error) => return Err(error),
        };
        let meta = found.meta;
        if request.if_match.is_some() && meta.etag == request.if_match {
            return Ok(Found::Before);
        }
        let alike = |one: &&Unanswered| {
            one.encoding == meta.encoding && meta.stored_size.is_none_or(|size| size == one.size)
        };
        let alike: Vec<&Unanswered> = self.0.iter().filter(alike).collect();
        let Some(largest) = alike.iter().map(|one| one.size).max() else {
            return Ok(Found::Other);
        };
        let sum = checksum(found.body, largest)
            .map_err(|error| StoreError::from_io(error, ErrorKind::Network).with_key(key))?;
        let ours = alike
            .into_iter()
            .find(|one| sum.as_ref() == Some(&(one.size, one.checksum.to_string())));
        Ok(match ours {
            Some(ours) => {
                let stored_size = Some(ours.size);
                let meta = RecordMeta {
                    stored_size,
                    ..meta
                };
                Found::Ours(ours.clone(), meta)
            }
            None => Found::Other,
        })
    }
}

impl FromIterator<Unanswered> for UnansweredUploads {
    fn from_iter<T: IntoIterator<Item = Unanswered>>(all: T) -> Self {
        let mut list = Self::default();
        all.into_iter().for_each(|one| list.add(one));
        list
    }
}

/// Makes a request one that replaces what an earlier upload has made of the record.
pub fn replace(request: &mut PutRequest, stored: &RecordMeta) {
    request.if_match = stored.etag.clone().filter(ETag::is_strong);
    request.if_absent = false;
}

/// Tells whether the store may have done what it was asked although it failed so.
pub fn may_have_arrived(error: &StoreError) -> bool {
    error.is_unanswered() || is_doubtful(error.kind())
}

fn is_doubtful(kind: ErrorKind) -> bool {
    match kind {
        ErrorKind::Network
        | ErrorKind::Timeout
        | ErrorKind::Server
        | ErrorKind::Protocol
        | ErrorKind::Corrupt => true,
        ErrorKind::NotFound
        | ErrorKind::StoreNotFound
        | ErrorKind::Denied
        | ErrorKind::SignatureExpired
        | ErrorKind::InvalidKey
        | ErrorKind::TooLarge
        | ErrorKind::Quota
        | ErrorKind::Changed
        | ErrorKind::RateLimited
        | ErrorKind::Unsupported
        | ErrorKind::Disk => false,
    }
}

/// Returns length and checksum of what `body` yields; `None` if it is more than `most` bytes.
fn checksum(mut body: impl Read, most: u64) -> io::Result<Option<(u64, String)>> {
    let mut sum = XxHash3_128::new();
    let mut buffer = vec![0; CHUNK];
    let mut len = 0;
    loop {
        match body.read(&mut buffer) {
            Ok(0) => return Ok(Some((len, entry::hex(sum.finish_128())))),
            Ok(n) => {
                len += n as u64;
                if len > most {
                    return Ok(None);
                }
                sum.write(&buffer[..n]);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}
