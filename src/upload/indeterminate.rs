//! Uploads with an unknown outcome, and how to find it out.
//!
//! An upload under a condition may have changed the record although its answer was lost, or was a
//! server error. A later upload under the same condition is then refused, though no other writer has
//! changed anything. So bytes sent without an answer are remembered (`staging::unanswered`), and a
//! refusal counts only if the store has other bytes.

use std::io::{self, Read};

use twox_hash::XxHash3_128;

use crate::base::clock::Deadline;
use crate::staging::{Began, Pending, Unanswered, UnansweredUploads};
use crate::store::codec::{self, DecoderMemory, Turn};
use crate::store::{
    ETag, ErrorKind, GetOutcome, GetRequest, Key, PutRequest, RecordMeta, Store, StoreError,
};

/// Bytes read at once.
const CHUNK: usize = 64 << 10;

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

/// Finds out what the store has, now that an upload with `request` was refused or not answered.
///
/// # Errors
/// Those of the store; that it has no such record is no error.
pub fn look(
    sent: &UnansweredUploads,
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
    let alike: Vec<&Unanswered> = sent.iter().filter(alike).collect();
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

/// Makes a request one that replaces what an earlier upload has made of the record.
pub fn replace(request: &mut PutRequest, stored: &RecordMeta) {
    request.if_match = stored.etag.clone().filter(ETag::is_strong);
    request.if_absent = false;
}

/// Returns whether the store may have done what it was asked although it failed so.
pub fn may_have_arrived(error: &StoreError) -> bool {
    if error.is_unanswered() {
        return true;
    }
    match error.kind() {
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
            Ok(0) => return Ok(Some((len, format!("{:032x}", sum.finish_128())))),
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

/// What a record has as far as this mount knows: the version or the bytes that a change began from, or
/// what uploads without an answer have made of it.
#[derive(Clone, Debug, Default)]
pub struct Expected {
    /// Whether the store had such a record.
    pub exists: bool,
    /// The version.
    pub etag: Option<ETag>,
    /// The bytes, where there is no version to name.
    pub began: Option<Began>,
    /// How many bytes it had as stored, where these are too many to be compared.
    pub size: Option<u64>,
    /// Uploads that may have arrived since.
    pub unanswered: UnansweredUploads,
}

/// Returns whether a record is still what is `expected`, or gone.
///
/// # Errors
/// Those of the store.
pub fn is_still(
    store: &dyn Store,
    key: &Key,
    expected: &Expected,
    deadline: Deadline,
) -> Result<bool, StoreError> {
    let sent = &expected.unanswered;
    if let Some(etag) = expected.etag.as_ref().filter(|etag| etag.is_strong()) {
        match store.head(key, deadline) {
            Ok(now) if now.etag.as_ref() == Some(etag) => return Ok(true),
            Ok(_) if sent.is_empty() => return Ok(false),
            Ok(_) => {}
            Err(gone) if gone.kind() == ErrorKind::NotFound => return Ok(true),
            Err(error) => return Err(error),
        }
    } else if let Some(began) = &expected.began {
        let compared = compare_bytes(store, key, began, sent, deadline)?;
        return Ok(!matches!(compared, Compared::Other));
    } else if let Some(size) = expected.size {
        return match store.head(key, deadline) {
            Ok(now) => Ok(now.stored_size.is_none_or(|now| now == size)),
            Err(gone) if gone.kind() == ErrorKind::NotFound => Ok(true),
            Err(error) => Err(error),
        };
    } else if expected.exists || sent.is_empty() {
        return Ok(true);
    }
    let request = PutRequest {
        if_match: expected.etag.clone(),
        // A record that is gone is not another writer's.
        if_absent: true,
        ..PutRequest::default()
    };
    let found = look(sent, store, key, &request, deadline)?;
    Ok(!matches!(found, Found::Other))
}

/// Returns the error of an upload that would replace another writer's change.
pub fn changed(key: &Key) -> StoreError {
    let message = "the record has changed: it no longer has the bytes that the change began from";
    StoreError::new(ErrorKind::Changed, message).with_key(key)
}

/// Compares what a record has with what an upload is to replace, where the server would not: it tells no
/// versions, or is `tagless` so far as is known. Returns the error of an upload that would replace
/// something else.
///
/// # Errors
/// Those of the store.
pub fn compare(
    store: &dyn Store,
    pending: &Pending,
    tagless: bool,
    deadline: Deadline,
) -> Result<Option<StoreError>, StoreError> {
    let key = &pending.key;
    let changed = || Some(changed(key));
    if pending.if_absent && tagless {
        return match store.head(key, deadline) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Ok(meta) if meta.strong_etag().is_some() => Ok(None),
            // Perhaps it is an upload of ours without an answer.
            Ok(_) if !pending.unanswered.is_empty() => {
                let request = PutRequest {
                    if_absent: true,
                    ..PutRequest::default()
                };
                let found = look(&pending.unanswered, store, key, &request, deadline)?;
                Ok(if matches!(found, Found::Other) {
                    changed()
                } else {
                    None
                })
            }
            Ok(_) => Ok(changed()),
            Err(error) => Err(error),
        };
    }
    let Some(began) = &pending.began else {
        return Ok(None);
    };
    let compared = compare_bytes(store, key, began, &pending.unanswered, deadline)?;
    Ok(match compared {
        Compared::Same => None,
        Compared::Gone | Compared::Other => changed(),
    })
}

/// What came of comparing a record's bytes.
enum Compared {
    /// It has those that a change began from, or those of an upload of ours.
    Same,
    /// There is no such record.
    Gone,
    /// It has others.
    Other,
}

fn compare_bytes(
    store: &dyn Store,
    key: &Key,
    began: &Began,
    sent: &UnansweredUploads,
    deadline: Deadline,
) -> Result<Compared, StoreError> {
    let found = match store.get(key, &GetRequest::default(), deadline) {
        Ok(GetOutcome::Found(found)) => found,
        Ok(GetOutcome::NotModified) => return Ok(Compared::Same),
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Compared::Gone),
        Err(error) => return Err(error),
    };
    let failed = |error: io::Error| StoreError::from_io(error, ErrorKind::Network).with_key(key);
    let encoding = found.meta.encoding.clone();
    let ours = |size: u64, sum: &str| {
        let mut sent = sent.iter();
        sent.any(|one| one.encoding == encoding && one.size == size && *one.checksum == *sum)
    };
    let is_same = if began.decoded && !encoding.is_identity() {
        let most = began.bytes.size;
        let body = codec::decoder(
            &encoding,
            found.body,
            DecoderMemory::of_process(),
            Turn::Reader(deadline),
        )
        .map_err(|error| error.with_key(key))?;
        checksum(body, most).map_err(failed)? == Some((most, began.bytes.checksum.to_string()))
    } else {
        let sizes = sent.iter().map(|one| one.size);
        let most = sizes.chain([began.bytes.size]).max().unwrap_or(0);
        let sum = checksum(found.body, most).map_err(failed)?;
        sum.is_some_and(|(size, sum)| {
            let began = size == began.bytes.size && *began.bytes.checksum == *sum;
            began || ours(size, &sum)
        })
    };
    Ok(if is_same {
        Compared::Same
    } else {
        Compared::Other
    })
}
