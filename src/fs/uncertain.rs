//! Uploads under a condition whose answer was lost.
//!
//! A plain upload is simply sent again (`apify::http`). One that asks the server to store it only
//! if nothing has changed must not be: the first attempt may have changed it. So the store is
//! asked what it has now.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;

use super::KvFs;
use super::writing::WriteSide;
use crate::clock::Deadline;
use crate::store::{
    ErrorKind, GetOutcome, GetRequest, Key, PutRequest, RecordMeta, Result, StoreError,
};

/// How often an upload is sent again because the one before did not arrive.
const MOST_REPEATS: u32 = 3;
/// Bytes compared at once.
const CHUNK: usize = 64 << 10;

/// What became of an upload without an answer.
enum Fate {
    /// The store has these bytes.
    Arrived(RecordMeta),
    /// The store has what it had before.
    Lost,
    /// Something else.
    Unknown,
}

impl KvFs {
    /// Sends a file's bytes as a record, and finds out what became of them if the answer is lost.
    pub(super) fn send_surely(
        &self,
        side: &WriteSide,
        key: &Key,
        request: &PutRequest,
        file: &File,
        size: u64,
    ) -> Result<RecordMeta, StoreError> {
        let conditional = request.if_match.is_some() || request.if_absent;
        let mut repeats = 0;
        loop {
            let error = match self.send(side, key, request, file, size) {
                Err(error) if conditional && is_uncertain(error.kind()) => error,
                answer => return answer,
            };
            let deadline = Deadline::after(side.config.deadline);
            match self.fate(key, request, file, size, deadline) {
                Fate::Arrived(meta) => return Ok(meta),
                Fate::Lost if repeats < MOST_REPEATS => repeats += 1,
                Fate::Lost | Fate::Unknown => return Err(error),
            }
        }
    }

    fn fate(
        &self,
        key: &Key,
        request: &PutRequest,
        file: &File,
        size: u64,
        deadline: Deadline,
    ) -> Fate {
        let found = match self.store.get(key, &GetRequest::default(), deadline) {
            Ok(GetOutcome::Found(found)) => found,
            Err(error) if error.kind() == ErrorKind::NotFound && request.if_absent => {
                return Fate::Lost;
            }
            Ok(GetOutcome::NotModified) | Err(_) => return Fate::Unknown,
        };
        if request.if_match.is_some() && found.meta.etag == request.if_match {
            return Fate::Lost;
        }
        let other_size = found.meta.stored_size.is_some_and(|stored| stored != size);
        if other_size || found.meta.encoding != request.encoding {
            return Fate::Unknown;
        }
        match same_bytes(found.body, file, size) {
            Ok(true) => Fate::Arrived(RecordMeta {
                stored_size: Some(size),
                ..found.meta
            }),
            _ => Fate::Unknown,
        }
    }
}

/// Tells whether the store may have done what it was asked all the same.
fn is_uncertain(kind: ErrorKind) -> bool {
    matches!(
        kind,
        ErrorKind::Network | ErrorKind::Timeout | ErrorKind::Server | ErrorKind::Protocol
    )
}

fn same_bytes(mut body: impl Read, file: &File, size: u64) -> std::io::Result<bool> {
    let mut at = 0;
    let (mut theirs, mut ours) = (vec![0; CHUNK], vec![0; CHUNK]);
    loop {
        let n = match body.read(&mut theirs) {
            Ok(0) => return Ok(at == size),
            Ok(n) => n,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        if at + n as u64 > size {
            return Ok(false);
        }
        file.read_exact_at(&mut ours[..n], at)?;
        if theirs[..n] != ours[..n] {
            return Ok(false);
        }
        at += n as u64;
    }
}
