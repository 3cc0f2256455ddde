//! One record on its way from a store to another: exactly its stored bytes, or an error.

use std::fs::File;
use std::io::{self, Read, Write};
use std::time::Duration;

use super::fingerprint::{Fingerprint, Fingerprinter};
use crate::base::clock::Deadline;
use crate::store::codec::expansion::decoder;
use crate::store::codec::{DecoderMemory, Turn};
use crate::store::{
    Encoding, ErrorKind, Fetched, GetOutcome, GetRequest, Key, Priority, PutRequest, RecordMeta,
    Result, Store, StoreError, Upload,
};

/// Records of up to this many bytes are held in memory, larger ones in a temporary file.
const IN_MEMORY: u64 = 1 << 20;
/// Bytes moved at once.
const CHUNK: usize = 128 << 10;

/// Is told how many bytes have moved.
pub type Moved<'a> = &'a (dyn Fn(u64) + Sync);

/// A whole record.
#[derive(Debug)]
pub struct Held {
    /// What is known of it.
    pub meta: RecordMeta,
    /// What tells it from others.
    pub print: Fingerprint,
    /// Stored bytes.
    pub size: u64,
    bytes: Bytes,
}

#[derive(Debug)]
enum Bytes {
    Memory(Vec<u8>),
    File(File),
}

/// Fetches a record whole.
///
/// # Errors
/// Those of [`Store::get`] and of its body; that there is no room for it.
pub fn fetch(store: &dyn Store, key: &Key, timeout: Duration, moved: Moved<'_>) -> Result<Held> {
    let Fetched { meta, mut body, .. } = get(store, key, timeout)?;
    let mut print = Fingerprinter::default();
    let expected = meta.stored_size.unwrap_or(0);
    let mut memory = Vec::with_capacity(expected.min(IN_MEMORY) as usize);
    let mut file: Option<File> = None;
    each_chunk(&mut *body, key, |chunk| {
        print.update(chunk);
        moved(chunk.len() as u64);
        match &mut file {
            Some(file) => file.write_all(chunk).map_err(no_room),
            None if print.size() <= IN_MEMORY => {
                memory.extend_from_slice(chunk);
                Ok(())
            }
            None => {
                let mut made = tempfile::tempfile().map_err(no_room)?;
                made.write_all(&memory).map_err(no_room)?;
                made.write_all(chunk).map_err(no_room)?;
                memory = Vec::new();
                file = Some(made);
                Ok(())
            }
        }
    })?;
    let size = print.size();
    complete(&meta, size, key)?;
    Ok(Held {
        print: print.finish(&meta),
        meta,
        size,
        bytes: match file {
            Some(file) => Bytes::File(file),
            None => Bytes::Memory(memory),
        },
    })
}

/// Reads a record to its end and keeps nothing but what tells it from others.
///
/// # Errors
/// Those of [`Store::get`] and of its body.
pub fn read(
    store: &dyn Store,
    key: &Key,
    timeout: Duration,
    moved: Moved<'_>,
) -> Result<(RecordMeta, Fingerprint)> {
    let Fetched { meta, mut body, .. } = get(store, key, timeout)?;
    let mut print = Fingerprinter::default();
    each_chunk(&mut *body, key, |chunk| {
        print.update(chunk);
        moved(chunk.len() as u64);
        Ok(())
    })?;
    complete(&meta, print.size(), key)?;
    let print = print.finish(&meta);
    Ok((meta, print))
}

/// Reads the content of a record to its end; the fingerprint is of the decoded bytes alone. One that
/// kvfs cannot decode is taken as it is stored.
///
/// # Errors
/// Those of [`Store::get`], of its body, and of bytes that do not decode, or to too many.
pub fn read_decoded(
    store: &dyn Store,
    key: &Key,
    timeout: Duration,
) -> Result<(RecordMeta, Fingerprint)> {
    let Fetched { meta, body, .. } = get(store, key, timeout)?;
    let as_stored = matches!(meta.encoding, Encoding::Unknown(_));
    let mut content = match as_stored {
        true => body,
        false => {
            let turn = Turn::Reader(Deadline::after(timeout));
            decoder(
                &meta.encoding,
                body,
                None,
                DecoderMemory::of_process(),
                turn,
            )
            .map_err(|error| error.with_key(key))?
        }
    };
    let mut print = Fingerprinter::default();
    each_chunk(&mut *content, key, |chunk| {
        print.update(chunk);
        Ok(())
    })?;
    let print = print.finish(&RecordMeta {
        encoding: match as_stored {
            true => meta.encoding.clone(),
            false => Encoding::Identity,
        },
        ..RecordMeta::default()
    });
    Ok((meta, print))
}

/// Returns whether the store says that it has no such record. Asks with a get: the answer to a head
/// has no body, which would tell a missing record from a missing store.
///
/// # Errors
/// That it could not be asked, or that the store itself is not there.
pub fn is_absent(store: &dyn Store, key: &Key, timeout: Duration) -> Result<bool> {
    let request = GetRequest {
        range: Some(0..1),
        priority: Priority::Listing,
        ..GetRequest::default()
    };
    match store.get(key, &request, Deadline::after(timeout)) {
        Ok(_) => Ok(false),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(true),
        Err(error) => Err(error),
    }
}

impl Held {
    /// Stores the record as it was stored before.
    ///
    /// # Errors
    /// Those of [`Store::put`]; the target is as it was then.
    pub fn send(&self, store: &dyn Store, key: &Key, timeout: Duration) -> Result<RecordMeta> {
        let body = match &self.bytes {
            Bytes::Memory(bytes) => Upload::Bytes(bytes),
            Bytes::File(file) => Upload::File(file, self.size),
        };
        let deadline = Deadline::after(timeout);
        store.put(key, &request(&self.meta), body, deadline)
    }
}

/// Copies a record without holding it: into a store that keeps nothing of a body that breaks off.
///
/// # Errors
/// Those of [`Store::get`], of its body, and of [`Store::put`]; the target is as it was then.
pub fn pass(
    source: &dyn Store,
    target: &dyn Store,
    key: &Key,
    timeout: Duration,
    moved: Moved<'_>,
) -> Result<(RecordMeta, RecordMeta, Fingerprint, u64)> {
    let Fetched { meta, body, .. } = get(source, key, timeout)?;
    let mut passing = Passing {
        body,
        print: Fingerprinter::default(),
        moved,
    };
    let put = target.put(
        key,
        &request(&meta),
        Upload::Stream(&mut passing, meta.stored_size),
        Deadline::after(timeout),
    )?;
    let size = passing.print.size();
    let print = passing.print.finish(&meta);
    Ok((meta, put, print, size))
}

struct Passing<'a> {
    body: Box<dyn Read + Send>,
    print: Fingerprinter,
    moved: Moved<'a>,
}

impl Read for Passing<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.body.read(buffer)?;
        self.print.update(&buffer[..n]);
        (self.moved)(n as u64);
        Ok(n)
    }
}

fn get(store: &dyn Store, key: &Key, timeout: Duration) -> Result<Fetched> {
    let request = GetRequest {
        priority: Priority::Listing,
        ..GetRequest::default()
    };
    match store.get(key, &request, Deadline::after(timeout))? {
        GetOutcome::Found(fetched) if fetched.is_delimited => Ok(fetched),
        GetOutcome::Found(_) => Err(StoreError::new(
            ErrorKind::Protocol,
            "the server does not say where the record ends: a broken one would look whole",
        )
        .with_key(key)),
        GetOutcome::NotModified => Err(StoreError::new(
            ErrorKind::Protocol,
            "the server answered 304 to a request without a condition",
        )
        .with_key(key)),
    }
}

fn request(meta: &RecordMeta) -> PutRequest {
    PutRequest {
        content_type: meta.content_type.clone(),
        encoding: meta.encoding.clone(),
        if_match: None,
        if_absent: false,
    }
}

fn each_chunk(
    body: &mut (dyn Read + Send),
    key: &Key,
    mut take: impl FnMut(&[u8]) -> Result<()>,
) -> Result<()> {
    let mut buffer = vec![0; CHUNK];
    loop {
        match body.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(n) => take(&buffer[..n])?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(StoreError::from_io(error, ErrorKind::Network).with_key(key)),
        }
    }
}

/// Refuses a body that is shorter or longer than announced.
fn complete(meta: &RecordMeta, size: u64, key: &Key) -> Result<()> {
    match meta.stored_size {
        Some(expected) if expected != size => Err(StoreError::new(
            ErrorKind::Protocol,
            format!("the record came with {size} bytes instead of {expected}"),
        )
        .with_key(key)),
        _ => Ok(()),
    }
}

fn no_room(error: io::Error) -> StoreError {
    StoreError::new(
        ErrorKind::Disk,
        format!("no room for the record on its way: {error}"),
    )
    .with_hint("make room in the folder for temporary files, or set TMPDIR to another")
    .with_source(error)
}
