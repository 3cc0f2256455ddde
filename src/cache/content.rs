//! One version of a record's content, in memory, on disk or in the store.

use std::fs::File;
use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

use bytes::Bytes;

use super::written::read_staged_within;
use crate::base::clock::Wait;
use crate::base::sync::Mutex;
use crate::disk::Patience;
use crate::metrics::origin;
use crate::staging::file::Frozen;
use crate::store::wait::{Error, Result};
use crate::store::{ErrorKind, Key, RecordMeta, StoreError, Validator};
use crate::transfer::download::{Download, Size};
use crate::transfer::file::read_file_within;
use crate::transfer::prefix::Prefix;
use crate::transfer::stream::{Body, Origin, StreamReader};

/// Distinguishes the versions that this process has seen; never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct VersionId(pub u64);

/// One version of a record's content (C1), in one read mode.
#[derive(Debug)]
pub struct Content {
    /// The record.
    pub key: Key,
    /// Which version.
    pub version: VersionId,
    /// What is known of it.
    pub meta: RecordMeta,
    /// The time that files of this version show.
    pub modified: SystemTime,
    /// The store had it at that time by the server's clock or later, where that is known.
    pub read: Option<SystemTime>,
    /// Where the bytes are.
    pub data: Data,
}

/// Where a content's bytes are.
#[derive(Debug)]
pub enum Data {
    /// Whole, in memory.
    Memory(Bytes),
    /// Whole, in a file of the disk cache.
    File(Box<Kept>),
    /// Whole, with this many bytes, in the staging file that was uploaded.
    Staged(Frozen, u64),
    /// On their way to disk, or there.
    Download(Arc<Download>),
    /// Nowhere: every handle streams them from the store.
    Streamed(Box<Streamed>),
}

/// A whole content in the disk cache.
#[derive(Debug)]
pub struct Kept {
    /// The content, nothing else.
    pub file: Arc<File>,
    /// Its size in bytes.
    pub size: u64,
    /// Its checksum.
    pub checksum: u128,
    /// The disk cache's name for it.
    pub id: String,
    /// How to get its bytes where the disk hangs or fails.
    pub origin: Origin,
    /// What waits for the disk.
    pub disk: Arc<Patience>,
}

/// A content that nothing keeps.
#[derive(Debug)]
pub struct Streamed {
    /// How to get its bytes.
    pub origin: Origin,
    /// The content's size in bytes.
    pub size: u64,
    /// The body that is open already, for the first handle.
    pub body: Mutex<Option<Opened>>,
    /// What is known of its bytes: every handle must get the same.
    pub prefix: Prefix,
}

/// An open body; a wrapper because bodies have no `Debug`.
pub struct Opened(pub Body);

impl std::fmt::Debug for Opened {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Opened")
    }
}

impl Content {
    /// Returns the content's size; waits where only decoding finds it.
    ///
    /// # Errors
    /// Those of the download; see [`Download::size`].
    pub fn size(&self, wait: Wait) -> Result<Size> {
        Ok(match &self.data {
            Data::Memory(bytes) => Size::Exact(bytes.len() as u64),
            Data::Staged(_, size) => Size::Exact(*size),
            Data::File(kept) => Size::Exact(kept.size),
            Data::Streamed(streamed) => Size::Exact(streamed.size),
            Data::Download(download) => return download.size(wait),
        })
    }

    /// Returns the exact size if it is known now.
    pub fn known_size(&self) -> Option<u64> {
        match self.size(Wait::Never) {
            Ok(Size::Exact(size) | Size::Unkept(size)) => Some(size),
            Err(_) => None,
        }
    }

    /// Returns whether new handles may use it.
    pub fn is_usable(&self) -> bool {
        match &self.data {
            Data::Download(download) => download.is_usable(),
            // Its bytes may have been replaced, where only they tell.
            Data::Streamed(streamed) => streamed.body.lock().is_some(),
            _ => true,
        }
    }

    /// Returns the whole content if it is in memory.
    pub fn in_memory(&self) -> Option<&Bytes> {
        match &self.data {
            Data::Memory(bytes) => Some(bytes),
            _ => None,
        }
    }

    /// Returns the file that holds the content, if all of it is in one.
    pub fn whole_file(&self) -> Option<&Arc<File>> {
        match &self.data {
            Data::File(kept) => Some(&kept.file),
            Data::Download(download) if download.is_complete() => Some(download.file()),
            _ => None,
        }
    }

    /// Returns the server's validator of this version.
    pub fn validator(&self) -> Option<Validator> {
        self.meta.validator()
    }

    /// Returns where the bytes of a content on disk come from, and what is known of them.
    fn source(&self) -> Option<(Origin, Prefix)> {
        match &self.data {
            Data::File(kept) => {
                let prefix = Prefix::of_whole(kept.size, kept.checksum);
                Some((kept.origin.clone(), prefix))
            }
            Data::Download(download) => Some((download.origin().clone(), download.prefix())),
            _ => None,
        }
    }

    /// Opens the content for reading.
    ///
    /// # Errors
    /// [`ErrorKind::Changed`] when a download was given up a moment ago: ask for it again.
    pub fn reader(self: &Arc<Self>) -> Result<ContentReader> {
        let stream = match &self.data {
            Data::Download(download) if !download.attach() => {
                return Err(Error::Failed(
                    StoreError::new(ErrorKind::Changed, "the download was given up")
                        .with_key(&self.key),
                ));
            }
            Data::Streamed(streamed) => {
                let body = streamed.body.lock().take();
                Some(StreamReader::new(
                    streamed.origin.clone(),
                    streamed.size,
                    body.map(|opened| opened.0),
                    streamed.prefix.clone(),
                ))
            }
            _ => None,
        };
        Ok(ContentReader {
            content: Arc::clone(self),
            stream,
            beside: OnceLock::new(),
        })
    }
}

/// An open content: stays on its version, whatever the store and the caches do (C6).
#[derive(Debug)]
pub struct ContentReader {
    content: Arc<Content>,
    stream: Option<StreamReader>,
    /// Past the disk, since the disk failed.
    beside: OnceLock<StreamReader>,
}

impl ContentReader {
    /// Returns what is being read.
    pub fn content(&self) -> &Arc<Content> {
        &self.content
    }

    /// Reads `len` bytes at `offset`, fewer only at the end of the content.
    ///
    /// # Errors
    /// [`Error::WouldBlock`] and those of the transfer; never short or wrong bytes.
    pub fn read_at(&self, offset: u64, len: usize, wait: Wait) -> Result<Bytes> {
        if let Some(stream) = &self.stream {
            origin::note(origin::Origin::Network);
            return stream.read_at(offset, len, wait);
        }
        let size = match self.content.size(wait)? {
            Size::Exact(size) | Size::Unkept(size) => size,
        };
        let end = size.min(offset.saturating_add(len as u64));
        if offset >= end {
            return Ok(Bytes::new());
        }
        if let Some(beside) = self.beside.get() {
            origin::note(origin::Origin::Network);
            return beside.read_at(offset, len, wait);
        }
        let read = match &self.content.data {
            Data::Memory(bytes) => Ok(bytes.slice(offset as usize..end as usize)),
            Data::File(kept) => {
                origin::note(origin::Origin::Disk);
                read_file_within(&kept.disk, &kept.file, offset..end, wait)
            }
            Data::Staged(bytes, _) => {
                origin::note(origin::Origin::Disk);
                read_staged_within(bytes, offset..end, wait)
            }
            Data::Download(download) => {
                // A read that may wait does so because the bytes were not there.
                let arrives = wait != Wait::Never && !download.is_complete();
                origin::note(if arrives {
                    origin::Origin::Network
                } else {
                    origin::Origin::Disk
                });
                download.read(offset..end, wait)
            }
            Data::Streamed(_) => Ok(Bytes::new()),
        };
        match (read, self.content.source()) {
            // A full, broken or hanging disk costs speed, not answers.
            (Err(Error::Failed(error)), Some((origin, prefix)))
                if error.kind() == ErrorKind::Disk =>
            {
                let beside = self.beside.get_or_init(|| {
                    let key = &self.content.key;
                    tracing::warn!("reading {key} without the cache: {error}");
                    StreamReader::new(origin, size, None, prefix)
                });
                origin::note(origin::Origin::Network);
                beside.read_at(offset, len, wait)
            }
            (read, _) => read,
        }
    }
}

impl Drop for ContentReader {
    fn drop(&mut self) {
        if let Data::Download(download) = &self.content.data {
            download.detach();
        }
    }
}
