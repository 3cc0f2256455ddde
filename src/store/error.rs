//! Errors of stores. The kind alone decides retry, errno and exit code.

use std::error::Error;
use std::fmt;
use std::io;

use super::record::Key;
use crate::base::in_use;

/// What went wrong, by what it means to the caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// The record does not exist.
    NotFound,
    /// The store, run, Actor or task does not exist, or this account may not know of it.
    StoreNotFound,
    /// The token is missing or unknown, or may not do this.
    Denied,
    /// The signature that opened the store has expired.
    SignatureExpired,
    /// The server does not accept this key.
    InvalidKey,
    /// The record is larger than the server accepts.
    TooLarge,
    /// The account is out of quota or money.
    Quota,
    /// The record's bytes are no longer those that were asked for.
    Changed,
    /// Still refused for too many requests after all retries.
    RateLimited,
    /// The deadline passed.
    Timeout,
    /// The server could not be reached, or the connection broke, after all retries.
    Network,
    /// The server answered 5xx after all retries.
    Server,
    /// The server answered something that breaks the protocol.
    Protocol,
    /// The record's bytes do not decode as its `Content-Encoding` says.
    Corrupt,
    /// This store cannot do that: a read-only reference, say.
    Unsupported,
    /// The local disk failed.
    Disk,
}

/// An error of a store operation, with what a person needs to act on it.
#[derive(Debug)]
pub struct StoreError {
    kind: ErrorKind,
    message: String,
    key: Option<Key>,
    status: Option<u16>,
    api_type: Option<String>,
    hint: Option<String>,
    is_unanswered: bool,
    source: Option<Box<dyn Error + Send + Sync>>,
}

/// The result of a store operation.
pub type Result<T, E = StoreError> = std::result::Result<T, E>;

impl StoreError {
    /// Returns an error of `kind`; `message` is one sentence without a period. What it quotes of a
    /// server loses the secrets in use.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: in_use::cleaned(message.into()),
            key: None,
            status: None,
            api_type: None,
            hint: None,
            is_unanswered: false,
            source: None,
        }
    }

    /// Says that an attempt at the change that failed may have been carried out all the same.
    pub fn unanswered(mut self) -> Self {
        self.is_unanswered = true;
        self
    }

    /// Returns whether the store may have done what it was asked, in an attempt that was not
    /// answered: also where a later attempt was refused.
    pub fn is_unanswered(&self) -> bool {
        self.is_unanswered
    }

    /// Names the record.
    pub fn with_key(mut self, key: &Key) -> Self {
        self.key.get_or_insert_with(|| key.clone());
        self
    }

    /// Adds the HTTP status and the API's error type.
    pub fn with_status(mut self, status: u16, api_type: Option<String>) -> Self {
        self.status = Some(status);
        self.api_type = api_type;
        self
    }

    /// Adds what the person can do.
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Keeps the cause. Its texts must hold no secrets.
    pub fn with_source(mut self, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// Returns what went wrong.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// Returns the record's key, if the error is about one.
    pub fn key(&self) -> Option<&Key> {
        self.key.as_ref()
    }

    /// Returns the HTTP status that the server answered.
    pub fn status(&self) -> Option<u16> {
        self.status
    }

    /// Returns the API's error type, if the server named one.
    pub fn api_type(&self) -> Option<&str> {
        self.api_type.as_deref()
    }

    /// Returns what the person can do about it.
    pub fn hint(&self) -> Option<&str> {
        self.hint.as_deref().or(match self.kind {
            _ if self.is_of_few_descriptors() => {
                Some("too many files are open: raise the limit with ulimit -n, or do less at once")
            }
            ErrorKind::Denied => {
                Some("check that the account of the token or link may read the store")
            }
            ErrorKind::SignatureExpired => Some("ask for a fresh link and mount that"),
            ErrorKind::StoreNotFound => {
                Some("check the store's id or name, and that the token's account may see it")
            }
            ErrorKind::RateLimited => {
                Some("other programs use up this account's request limit; try again later")
            }
            ErrorKind::Timeout | ErrorKind::Network => {
                Some("check the network and --api-url; a longer --deadline waits longer")
            }
            ErrorKind::Server => Some("the API has a problem; try again later"),
            ErrorKind::Corrupt => {
                Some("the stored bytes are damaged; a mount with --raw shows them as they are")
            }
            ErrorKind::Changed => Some("open the file again to read its new version"),
            ErrorKind::Disk => {
                Some("check the space on the disk and the permissions of the folder")
            }
            _ => None,
        })
    }

    /// Returns whether descriptors had run out. The libraries below hand on no more than the text.
    fn is_of_few_descriptors(&self) -> bool {
        let says_so = |text: &str| text.contains("(os error 24)") || text.contains("(os error 23)");
        let source = || {
            self.source
                .as_ref()
                .is_some_and(|source| says_so(&source.to_string()))
        };
        matches!(self.kind, ErrorKind::Disk | ErrorKind::Network)
            && (says_so(&self.message) || source())
    }

    /// Recovers the store error that a body's [`io::Read`] reported, or wraps the plain I/O error.
    pub fn from_io(error: io::Error, otherwise: ErrorKind) -> Self {
        match error.downcast::<Self>() {
            Ok(inner) => inner,
            Err(error) => Self::new(otherwise, error.to_string()),
        }
    }

    /// Makes a second error that says the same, for every waiter of one failed download.
    pub fn duplicate(&self) -> Self {
        Self {
            kind: self.kind,
            message: self.message.clone(),
            key: self.key.clone(),
            status: self.status,
            api_type: self.api_type.clone(),
            hint: self.hint.clone(),
            is_unanswered: self.is_unanswered,
            source: self.source.as_ref().map(|source| source.to_string().into()),
        }
    }
}

impl From<StoreError> for io::Error {
    fn from(error: StoreError) -> Self {
        Self::other(error)
    }
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        match (self.status, &self.api_type) {
            (Some(status), Some(api_type)) => write!(f, " (HTTP {status}, {api_type})"),
            (Some(status), None) => write!(f, " (HTTP {status})"),
            _ => Ok(()),
        }
    }
}

impl Error for StoreError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source
            .as_deref()
            .map(|source| source as &(dyn Error + 'static))
    }
}
