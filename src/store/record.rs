//! The plain types of the store contract: keys, validators, what is known of a record.

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use compact_str::CompactString;

use crate::base::redact::SafeUrl;

/// The longest key the platform accepts, in bytes.
pub const MAX_KEY_LEN: usize = 256;

/// The name of a record in its store. Up to 24 bytes of it need no memory of their own: a listing
/// makes a million of them.
///
/// Any non-empty string can be a key, because old stores hold keys that today's platform would
/// refuse; [`Key::is_valid`] tells whether a new record may have it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(CompactString);

impl Key {
    /// Wraps `text`; `None` for an empty one.
    pub fn new(text: impl AsRef<str>) -> Option<Self> {
        let text = text.as_ref();
        (!text.is_empty()).then(|| Self(text.into()))
    }

    /// Returns the key as the API spells it, not percent-encoded.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns whether the platform accepts this key for a new record:
    /// `^[a-zA-Z0-9!\-_.'()]{1,256}$` (documentation, section Limits).
    ///
    /// `.` and `..` are valid by that rule, though no URL can carry them unescaped.
    pub fn is_valid(&self) -> bool {
        self.0.len() <= MAX_KEY_LEN && self.0.bytes().all(is_key_byte)
    }
}

/// Returns whether the platform accepts this byte in a key.
pub fn is_key_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!-_.'()".contains(&byte)
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.as_str())
    }
}

/// How a record's stored bytes are encoded: its `Content-Encoding`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub enum Encoding {
    /// The stored bytes are the content.
    #[default]
    Identity,
    /// gzip (also `x-gzip`).
    Gzip,
    /// Brotli.
    Brotli,
    /// zlib, as `deflate` means in HTTP; some senders use bare deflate.
    Deflate,
    /// Something kvfs cannot undo; such a record is readable in a raw mount only.
    Unknown(Arc<str>),
}

impl Encoding {
    /// Reads a `Content-Encoding` header; an absent or empty one is [`Encoding::Identity`].
    pub fn from_header(value: Option<&str>) -> Self {
        let value = value.unwrap_or_default().trim();
        match value.to_ascii_lowercase().as_str() {
            "" | "identity" => Self::Identity,
            "gzip" | "x-gzip" => Self::Gzip,
            "br" => Self::Brotli,
            "deflate" => Self::Deflate,
            _ => Self::Unknown(value.into()),
        }
    }

    /// Returns the header's value, `None` for [`Encoding::Identity`].
    pub fn header_value(&self) -> Option<&str> {
        match self {
            Self::Identity => None,
            Self::Gzip => Some("gzip"),
            Self::Brotli => Some("br"),
            Self::Deflate => Some("deflate"),
            Self::Unknown(value) => Some(value),
        }
    }

    /// Returns whether the stored bytes are the content.
    pub fn is_identity(&self) -> bool {
        *self == Self::Identity
    }
}

/// An entity tag as the server sent it, quotes and a leading `W/` included.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ETag(Arc<str>);

impl ETag {
    /// Wraps the header's value.
    pub fn new(value: impl Into<Arc<str>>) -> Self {
        Self(value.into())
    }

    /// Returns the header's value.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns whether equal tags mean equal bytes (RFC 9110, 8.8.1), so that ranges may be joined.
    pub fn is_strong(&self) -> bool {
        !self.0.starts_with("W/")
    }
}

/// What tells one version of a record from another.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Validator {
    /// The server's entity tag.
    ETag(ETag),
    /// `Last-Modified` (verbatim) with the stored size.
    Modified(Arc<str>, u64),
}

/// What is known of one version of a record, without its bytes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RecordMeta {
    /// `Content-Type`, charset included.
    pub content_type: Option<Arc<str>>,
    /// `Content-Encoding`.
    pub encoding: Encoding,
    /// Bytes as stored (encoded), of the whole record, where known.
    pub stored_size: Option<u64>,
    /// `ETag`.
    pub etag: Option<ETag>,
    /// `Last-Modified`, verbatim.
    pub last_modified: Option<Arc<str>>,
    /// Whether the server says that it honours `Range`.
    pub accepts_ranges: bool,
}

impl RecordMeta {
    /// Returns the best validator there is.
    pub fn validator(&self) -> Option<Validator> {
        if let Some(etag) = &self.etag {
            return Some(Validator::ETag(etag.clone()));
        }
        Some(Validator::Modified(
            self.last_modified.clone()?,
            self.stored_size?,
        ))
    }

    /// Returns the entity tag when ranges of different responses may be joined under it.
    pub fn strong_etag(&self) -> Option<&ETag> {
        self.etag.as_ref().filter(|etag| etag.is_strong())
    }

    /// Returns the time in `Last-Modified`.
    pub fn modified(&self) -> Option<SystemTime> {
        httpdate::parse_http_date(self.last_modified.as_deref()?).ok()
    }
}

/// One entry of a listing.
#[derive(Clone, Debug, PartialEq)]
pub struct ListItem {
    /// The record's key.
    pub key: Key,
    /// Bytes as stored (encoded); the API names it `size`.
    pub stored_size: Option<u64>,
    /// When the record last changed: directories know it, the API does not say.
    pub modified: Option<SystemTime>,
    /// The API's `recordPublicUrl`, signed or plain.
    pub public_url: Option<SafeUrl>,
}

/// What is known of a store itself.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StoreInfo {
    /// The store's id, or a directory's path.
    pub id: String,
    /// The store's name, if it has one.
    pub name: Option<String>,
    /// Identifies store, server and what may be seen of it, for cache folders; no secret in it.
    pub cache_scope: String,
    /// Identifies store and server for all accounts: for writes on their way into the store, which
    /// outlive a token.
    pub upload_scope: String,
    /// When the store was last changed, as of opening it.
    pub modified: Option<SystemTime>,
    /// When the store was made: never changes.
    pub created: Option<SystemTime>,
    /// When the signature that opened the store stops being accepted.
    pub expires: Option<SystemTime>,
}
