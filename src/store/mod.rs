//! The store contract: what the filesystem and the server need of a key-value store.
//!
//! Every implementation passes the contract suite in `tests/core/contract.rs`.

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

pub mod codec;
pub mod error;
pub mod freshness;
pub mod pager;
pub mod record;
pub mod reference;
pub mod wait;

pub use error::{ErrorKind, Result, StoreError};
pub use record::{ETag, Encoding, Key, ListItem, RecordMeta, StoreInfo, Validator};

use crate::base::clock::Deadline;
use crate::base::redact::Secret;
use crate::store::freshness::{Span, StoreState};

/// The most keys that the API puts on one page of a listing.
pub const MAX_PAGE: usize = 1000;

/// The largest size that a file can have, in bytes: whatever claims more has none that is known.
pub const MAX_SIZE: u64 = i64::MAX as u64;

/// A key-value store.
///
/// All calls block, none longer than to its deadline (bodies: see [`Store::get`]). Stored bytes
/// are handed over verbatim, whatever their encoding. Transient failures have been retried when
/// an error arrives here.
pub trait Store: Send + Sync + fmt::Debug {
    /// Returns what was learnt when the store was opened; makes no request.
    fn info(&self) -> StoreInfo;

    /// Returns whether the store can be changed at all; the account may still not be allowed to.
    fn is_writable(&self) -> bool {
        true
    }

    /// Returns the record's public address, without token or signature; `None` where it has none.
    fn record_url(&self, _key: &Key) -> Option<String> {
        None
    }

    /// Returns the public link to a record, or without a key to the listing; makes no request.
    ///
    /// A listing's link is good until `expires`, `None` meaning for ever; a record's always is.
    /// `None` where the store's signing key is not known to this account, or there is none.
    fn shared_url(&self, _key: Option<&Key>, _expires: Option<SystemTime>) -> Option<Secret> {
        None
    }

    /// Asks what the server says of the store as a whole; `None` where nothing tells when it was
    /// last changed.
    ///
    /// # Errors
    /// As for [`Store::list_page`].
    fn state(&self, _deadline: Deadline) -> Result<Option<StoreState>> {
        Ok(None)
    }

    /// Returns what the server said of the store when it was opened; makes no request.
    fn first_state(&self) -> Option<FirstState> {
        None
    }

    /// Returns the address of the server, without anything secret; `None` where there is none.
    fn server(&self) -> Option<String> {
        None
    }

    /// Returns what time it is by the server's clock, as far as its answers have told.
    fn server_time(&self) -> Option<Span> {
        None
    }

    /// Returns one page of the keys in UTF-8 binary order.
    ///
    /// # Errors
    /// [`ErrorKind::StoreNotFound`], [`ErrorKind::Denied`], [`ErrorKind::SignatureExpired`], or
    /// that the server could not be asked.
    fn list_page(&self, query: &ListQuery, deadline: Deadline) -> Result<ListPage>;

    /// Returns what is known of a record without fetching it. `stored_size` may be missing.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] and as for [`Store::list_page`].
    fn head(&self, key: &Key, deadline: Deadline) -> Result<RecordMeta>;

    /// Returns whether [`Store::head`] asks for less than the record, as far as is known.
    fn answers_head(&self) -> bool {
        true
    }

    /// Fetches a record, or a part of it. Returns when the headers are there.
    ///
    /// The deadline bounds the wait for the headers. The body is bounded by stalls (the attempt
    /// timeout), not in all: it may take as long as bytes keep coming. Reading it yields exactly
    /// the stored bytes of the version that `meta` describes and then EOF, or an error; a broken
    /// transfer has then been resumed or retried without success. Dropping it closes the
    /// connection.
    ///
    /// A store may ignore `range` and send the whole record ([`Fetched::range`] is then `None`).
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`]; [`ErrorKind::Changed`] when `if_match` does not hold; else as
    /// for [`Store::list_page`].
    fn get(&self, key: &Key, request: &GetRequest, deadline: Deadline) -> Result<GetOutcome>;

    /// Stores a record whole: readers see the old version or the new one, nothing between.
    ///
    /// The deadline bounds the time in which nothing goes out. While bytes do, it moves on, by as much
    /// in all as they take at [`SLOWEST_UPLOAD`]; a store that cannot see them go out allows for that
    /// from the start.
    ///
    /// Returns what is known of the new version.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidKey`], [`ErrorKind::TooLarge`], [`ErrorKind::Quota`],
    /// [`ErrorKind::Changed`] when a precondition does not hold, [`ErrorKind::Unsupported`] on
    /// read-only stores.
    fn put(
        &self,
        key: &Key,
        request: &PutRequest,
        body: Upload<'_>,
        deadline: Deadline,
    ) -> Result<RecordMeta>;

    /// Deletes a record. Deleting an absent one succeeds, as on the platform.
    ///
    /// # Errors
    /// As for [`Store::put`].
    fn delete(&self, key: &Key, deadline: Deadline) -> Result<()>;

    /// As [`Store::put`], but what is refused or fails is not repeated: the caller has compared what the
    /// store has, and compares it again first.
    ///
    /// # Errors
    /// As for [`Store::put`].
    fn put_once(
        &self,
        key: &Key,
        request: &PutRequest,
        body: Upload<'_>,
        deadline: Deadline,
    ) -> Result<RecordMeta> {
        self.put(key, request, body, deadline)
    }

    /// As [`Store::delete`], but not repeated either.
    ///
    /// # Errors
    /// As for [`Store::put`].
    fn delete_once(&self, key: &Key, deadline: Deadline) -> Result<()> {
        self.delete(key, deadline)
    }
}

/// What a server said of a store when it was opened.
#[derive(Clone, Copy, Debug)]
pub struct FirstState {
    /// When it was asked.
    pub asked: Instant,
    /// When that was by the server's clock.
    pub span: Span,
    /// What it said.
    pub state: StoreState,
}

/// The slowest connection over which an upload is not given up, in bytes a second.
pub const SLOWEST_UPLOAD: u64 = 16 << 10;

/// Returns how long an upload of `size` bytes may take beyond its deadline, if they keep going out.
pub fn upload_allowance(size: u64) -> Duration {
    Duration::from_secs(size / SLOWEST_UPLOAD)
}

/// Which page of a listing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct ListQuery {
    /// List keys after this string; it need not be a key of the store.
    pub after: Option<Arc<str>>,
    /// At most this many, 1 to [`MAX_PAGE`].
    pub limit: Option<usize>,
    /// Only keys that begin so.
    pub prefix: Option<Arc<str>>,
    /// Only keys of this collection of the store's schema.
    pub collection: Option<Arc<str>>,
}

/// One page of a listing.
#[derive(Clone, Debug, Default)]
pub struct ListPage {
    /// Records in key order.
    pub items: Vec<ListItem>,
    /// Where the next page starts after; `None` on the last page.
    pub next: Option<Arc<str>>,
}

/// What to fetch of a record.
#[derive(Clone, Debug, Default)]
pub struct GetRequest {
    /// These stored bytes only; the end is exclusive and may lie past the end of the record.
    pub range: Option<Range<u64>>,
    /// Answer [`GetOutcome::NotModified`] if this is still the version.
    pub if_none_match: Option<Validator>,
    /// Fail with [`ErrorKind::Changed`] unless this is still the version.
    pub if_match: Option<ETag>,
    /// Its priority, by what waits for it.
    pub priority: Priority,
}

/// The priority of a request, by what waits for it; the first goes before all others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Priority {
    /// A person, for bytes that are not at hand.
    #[default]
    Foreground,
    /// A person, for the word that what is at hand is still right.
    Revalidation,
    /// A program that reads the directory.
    Listing,
    /// An upload: its bytes are safe on disk meanwhile.
    Upload,
    /// No program waits yet: it never delays a request that a program waits for.
    Prefetch,
}

impl Priority {
    /// All of them, the first to go first.
    pub const ALL: [Self; 5] = [
        Self::Foreground,
        Self::Revalidation,
        Self::Listing,
        Self::Upload,
        Self::Prefetch,
    ];
}

/// What a get found.
#[derive(Debug)]
pub enum GetOutcome {
    /// The version asked about is still the newest.
    NotModified,
    /// The record.
    Found(Fetched),
}

/// A record on its way.
pub struct Fetched {
    /// What is known of it. `stored_size` is the whole record's, also for a range.
    pub meta: RecordMeta,
    /// The stored bytes that `body` yields, when a range was asked for and is honoured.
    pub range: Option<Range<u64>>,
    /// Whether the end of the bytes is declared, by a length or by chunks; else a body that broke
    /// off looks like one that has ended.
    pub is_delimited: bool,
    /// The bytes.
    pub body: Box<dyn Read + Send>,
}

impl fmt::Debug for Fetched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fetched")
            .field("meta", &self.meta)
            .field("range", &self.range)
            .finish_non_exhaustive()
    }
}

/// What to store with a record's bytes.
#[derive(Clone, Debug, Default)]
pub struct PutRequest {
    /// `Content-Type`; the store decides when it is `None`.
    pub content_type: Option<Arc<str>>,
    /// How the bytes are encoded.
    pub encoding: Encoding,
    /// Fail with [`ErrorKind::Changed`] unless this is the current version.
    pub if_match: Option<ETag>,
    /// Fail with [`ErrorKind::Changed`] if the record exists.
    pub if_absent: bool,
}

/// The bytes of a new record.
pub enum Upload<'a> {
    /// All of them, in memory; may be sent again.
    Bytes(&'a [u8]),
    /// A file from its start, with this many bytes; may be sent again.
    File(&'a File, u64),
    /// A stream, sent once; its length where known.
    Stream(&'a mut (dyn Read + Send), Option<u64>),
}

impl Upload<'_> {
    /// Returns how many bytes there are, where known.
    pub fn size(&self) -> Option<u64> {
        match self {
            Self::Bytes(bytes) => Some(bytes.len() as u64),
            Self::File(_, len) => Some(*len),
            Self::Stream(_, len) => *len,
        }
    }
}

impl fmt::Debug for Upload<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bytes(bytes) => write!(f, "Bytes({})", bytes.len()),
            Self::File(_, len) => write!(f, "File({len})"),
            Self::Stream(_, len) => write!(f, "Stream({len:?})"),
        }
    }
}
