//! Turns an answered request into a [`Content`]: decides where the bytes go.
//!
//! * small or of unknown size: read at once into memory; most records end here
//! * larger: a [`Download`] into the disk cache, filled by a thread of its own
//! * larger than the disk cache has room for: streamed by each handle

use std::io::Read;
use std::sync::Arc;
use std::time::SystemTime;

use super::content::{Content, Data, Opened, Streamed, VersionId};
use super::records::{Need, Records};
use crate::base::clock::Deadline;
use crate::base::sync::Mutex;
use crate::base::units::KIB;
use crate::disk::{DiskTier, Patience, Spool};
use crate::store::codec::{DecoderMemory, Turn, expansion};
use crate::store::{ErrorKind, Fetched, Key, RecordMeta, Result, StoreError};
use crate::transfer::download::{Download, read_some};
use crate::transfer::fill::Outcome;
use crate::transfer::prefix::Prefix;
use crate::transfer::stream::{Body, Origin};

/// Bytes read at once into memory.
const CHUNK: usize = 64 * KIB as usize;

/// Counts stored bytes, for records sent without a length.
struct Counted<R> {
    inner: R,
    count: Arc<Mutex<u64>>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let n = self.inner.read(buffer)?;
        *self.count.lock() += n as u64;
        Ok(n)
    }
}

/// What has come of a large record so far.
struct Arriving {
    /// Its first bytes, which have been read.
    head: Vec<u8>,
    /// The others.
    body: Body,
    /// The content's size, where the headers told it.
    expected: Option<u64>,
    /// Whether anything but the end of the connection tells where it ends.
    is_delimited: bool,
}

/// A record on its way, and as what it is known: which version, with which time, and since when by
/// the server's clock the store has it at the latest.
pub(super) type Received = (Fetched, VersionId, SystemTime, Option<SystemTime>);

impl Records {
    /// Takes a record in, as this version and with this time, unless its bytes turn out to be those
    /// of `before`.
    pub(super) fn receive(
        self: &Arc<Self>,
        key: &Key,
        (fetched, version, modified, read): Received,
        before: Option<&Arc<Content>>,
        need: Need,
        deadline: Deadline,
    ) -> Result<Arc<Content>> {
        let mut meta = fetched.meta;
        let plain = self.config().raw || meta.encoding.is_identity();
        let count = Arc::new(Mutex::new(0));
        let counted: Body = Box::new(Counted {
            inner: fetched.body,
            count: Arc::clone(&count),
        });
        let mut body = if plain {
            counted
        } else {
            let most = self.config().max_content;
            let turn = match need {
                Need::Attributes | Need::Content => Turn::Reader(deadline),
                Need::Ahead | Need::Warm => Turn::Ahead(deadline),
            };
            let memory = DecoderMemory::of_process();
            expansion::decoder(&meta.encoding, counted, most, memory, turn)
                .map_err(|error| error.with_key(key))?
        };
        let expected = meta.stored_size.filter(|_| plain);
        let mut head = Vec::new();
        if expected.is_none_or(|size| size <= self.memory_record_max())
            && self
                .read_head(&mut body, &mut head, expected, deadline)
                .map_err(|error| error.with_key(key))?
        {
            let stored = *meta.stored_size.get_or_insert(*count.lock());
            self.check_end(key, fetched.is_delimited, stored)?;
            // The same bytes are the same version, whatever the server says.
            let same = before.filter(|old| old.in_memory().is_some_and(|bytes| *bytes == head));
            if let Some(old) = same.filter(|old| old.meta == meta) {
                return Ok(Arc::clone(old));
            }
            let content = Arc::new(Content {
                key: key.clone(),
                version: same.map_or(version, |old| old.version),
                meta,
                modified: same.map_or(modified, |old| old.modified),
                read,
                data: Data::Memory(head.into()),
            });
            self.keep_in_memory(&content);
            self.write_behind(&content);
            return Ok(content);
        }
        self.receive_large(
            Content {
                key: key.clone(),
                version,
                meta,
                modified,
                read,
                data: Data::Memory(bytes::Bytes::new()),
            },
            Arriving {
                head,
                body,
                expected,
                // What is encoded tells its end.
                is_delimited: fetched.is_delimited || !plain,
            },
            need,
            deadline,
        )
    }

    /// Refuses a body without a declared length if a fresh listing says that it is longer or
    /// shorter.
    fn check_end(&self, key: &Key, is_delimited: bool, stored: u64) -> Result<()> {
        match self.listed_size(key) {
            Some(listed) if !is_delimited && listed != stored => Err(StoreError::new(
                ErrorKind::Protocol,
                format!("the connection ended after {stored} bytes, the listing says {listed}"),
            )
            .with_key(key)
            .with_hint(
                "the server ends records by closing the connection, so a broken one looks like a whole one; open it again",
            )),
            _ => Ok(()),
        }
    }

    /// Reads a body into memory; `false` when it is larger than memory is for.
    fn read_head(
        &self,
        body: &mut Body,
        head: &mut Vec<u8>,
        expected: Option<u64>,
        deadline: Deadline,
    ) -> Result<bool> {
        let most = self.memory_record_max();
        head.reserve_exact(expected.map_or(CHUNK, |size| size as usize));
        let mut buffer = vec![0; expected.map_or(CHUNK, |size| (size as usize + 1).min(CHUNK))];
        loop {
            let n = read_some(body, &mut buffer)
                .map_err(|error| StoreError::from_io(error, ErrorKind::Corrupt))?;
            if n == 0 {
                return match expected {
                    Some(size) if size != head.len() as u64 => Err(StoreError::new(
                        ErrorKind::Protocol,
                        format!(
                            "the record has {} bytes, its headers said {size}",
                            head.len()
                        ),
                    )),
                    _ => Ok(true),
                };
            }
            head.extend_from_slice(&buffer[..n]);
            if head.len() as u64 > most {
                return Ok(false);
            }
            if deadline.remaining().is_none() {
                return Err(StoreError::new(
                    ErrorKind::Timeout,
                    "the deadline passed while fetching the record",
                ));
            }
        }
    }

    fn receive_large(
        self: &Arc<Self>,
        content: Content,
        arriving: Arriving,
        need: Need,
        deadline: Deadline,
    ) -> Result<Arc<Content>> {
        let Arriving {
            head,
            mut body,
            expected,
            is_delimited,
        } = arriving;
        let plain = self.config().raw || content.meta.encoding.is_identity();
        let origin = self.origin(&content.key, &content.meta);
        self.forget_paused(&content.key);
        let listed = self.listed_size(&content.key).filter(|_| !is_delimited);
        if let Some(spool) = self.spool(expected, head.len() as u64, deadline) {
            let tools = self.tools().clone();
            let download = Download::new(origin, &spool, expected, listed, tools);
            if need == Need::Ahead {
                download.is_ahead();
            }
            let content = Arc::new(Content {
                data: Data::Download(download),
                ..content
            });
            self.connect(&content);
            return match (self.fill(&content, head, Some(body), spool), expected) {
                (Ok(()), _) => Ok(content),
                // All threads are at work: each reader reads it by itself.
                (Err(_), Some(size)) => Ok(self.unkept(&content, size)),
                (Err(error), None) => Err(error),
            };
        }
        let mut prefix = Prefix::default();
        let (size, body) = match expected {
            Some(size) if head.is_empty() => (size, Some(Opened(body))),
            Some(size) => (size, None),
            // It may never be opened.
            None if need == Need::Ahead => {
                return Err(StoreError::new(
                    ErrorKind::TooLarge,
                    "there is no room for what it decodes to",
                )
                .with_key(&content.key));
            }
            // Only reading all of it tells how large it is; nothing can keep it meanwhile.
            None => {
                prefix.update(&head);
                read_rest(&mut body, &mut prefix, deadline)
                    .map_err(|error| error.with_key(&content.key))?;
                if plain {
                    self.check_end(&content.key, is_delimited, prefix.len())?;
                }
                (prefix.len(), None)
            }
        };
        Ok(Arc::new(Content {
            data: Data::Streamed(Box::new(Streamed {
                origin,
                size,
                body: Mutex::new(body),
                prefix,
            })),
            ..content
        }))
    }

    /// Lets the next reader take up a parked download.
    fn connect(self: &Arc<Self>, content: &Arc<Content>) {
        if let Data::Download(download) = &content.data {
            let (records, content) = (Arc::downgrade(self), Arc::downgrade(content));
            download.connect(move |spool| match (records.upgrade(), content.upgrade()) {
                (Some(records), Some(content)) => records.fill(&content, Vec::new(), None, spool),
                _ => Err(StoreError::new(ErrorKind::Changed, "the mount has ended")),
            });
        }
    }

    /// Makes room on disk; what is kept of paused downloads is worth less than a new one.
    fn spool(&self, expected: Option<u64>, least: u64, deadline: Deadline) -> Option<Spool> {
        let disk: &Arc<DiskTier> = self.disk()?;
        let spool = || {
            let tier = Arc::clone(disk);
            let make = move || match expected {
                Some(size) => tier.spool(size),
                None => tier.spool_some(least),
            };
            disk.patience().wait(Patience::of(deadline), make)?
        };
        spool().or_else(|| {
            self.forget_all_paused();
            spool()
        })
    }

    /// Fills a download on a thread of its own.
    fn fill(
        self: &Arc<Self>,
        content: &Arc<Content>,
        head: Vec<u8>,
        body: Option<Body>,
        spool: Spool,
    ) -> Result<()> {
        let Data::Download(download) = &content.data else {
            return Ok(());
        };
        let (records, job, download) =
            (Arc::clone(self), Arc::clone(content), Arc::clone(download));
        let tools = self.tools();
        tools.make_way();
        tools
            .fillers
            .spawn(move || match download.fill(&head, body, spool) {
                Outcome::Paused => records.keep_paused(job),
                Outcome::Parked => {}
                Outcome::Whole(spool, size, sum) => {
                    records.forget_paused(&job.key);
                    records.publish(&job, *spool, size, sum);
                }
                Outcome::Over => records.forget_paused(&job.key),
            })
            .map_err(|_| {
                StoreError::new(ErrorKind::Disk, "too many downloads at once")
                    .with_key(&content.key)
            })
    }

    /// Goes on with a download that was paused because it was unused.
    pub(super) fn resume(self: &Arc<Self>, content: &Arc<Content>) -> Result<()> {
        match &content.data {
            Data::Download(download) => match download.resume() {
                Some(spool) => self.fill(content, Vec::new(), None, spool),
                None => Ok(()),
            },
            _ => Ok(()),
        }
    }

    /// Replaces a download that had no room to keep its bytes; it is the same version.
    pub(super) fn unkept(&self, content: &Content, size: u64) -> Arc<Content> {
        Arc::new(Content {
            key: content.key.clone(),
            version: content.version,
            meta: content.meta.clone(),
            modified: content.modified,
            read: content.read,
            data: Data::Streamed(Box::new(Streamed {
                origin: self.origin(&content.key, &content.meta),
                size,
                body: Mutex::new(None),
                prefix: match &content.data {
                    Data::Download(download) => download.prefix(),
                    _ => Prefix::default(),
                },
            })),
        })
    }

    pub(super) fn origin(&self, key: &Key, meta: &RecordMeta) -> Origin {
        Origin::new(
            Arc::clone(self.store()),
            key.clone(),
            meta.clone(),
            self.config().raw,
        )
    }
}

/// Reads a body to its end, which tells its size and what it begins with.
fn read_rest(body: &mut Body, prefix: &mut Prefix, deadline: Deadline) -> Result<()> {
    let mut buffer = vec![0; CHUNK];
    loop {
        match read_some(body, &mut buffer)
            .map_err(|error| StoreError::from_io(error, ErrorKind::Corrupt))?
        {
            0 => return Ok(()),
            n => prefix.update(&buffer[..n]),
        }
        if deadline.remaining().is_none() {
            return Err(StoreError::new(
                ErrorKind::Timeout,
                "the deadline passed while decoding the record to learn its size",
            ));
        }
    }
}
