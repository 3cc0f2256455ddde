//! Maps errors to the errno that a program gets.

use libc::c_int;

use crate::store::{ErrorKind, StoreError, wait};

/// Why an operation failed.
#[derive(Debug)]
pub enum FsError {
    /// It would have to wait, and the caller asked not to. Never reaches a program.
    WouldBlock,
    /// The program that asked has ended; nothing was done.
    Interrupted,
    /// The file does not exist.
    NoEntry,
    /// The inode or handle is of a version that is gone; the kernel looks the name up again.
    Stale,
    /// The mount is read-only.
    ReadOnly,
    /// The attribute does not exist.
    NoAttribute,
    /// This kind of attribute does not exist on this filesystem. Unlike a missing attribute,
    /// that makes programs such as `ls` stop asking after the first file.
    NotSupported,
    /// Not a directory, or not a file.
    WrongKind(c_int),
    /// The handle is not open.
    BadHandle,
    /// It is not possible, and a person should know why.
    Refused(Refusal),
    /// The store failed.
    Store(StoreError),
}

/// Why something is not possible, and what to do.
#[derive(Clone, Debug)]
pub struct Refusal {
    errno: c_int,
    /// What is wrong.
    pub message: String,
    /// What to do about it.
    pub hint: &'static str,
}

/// The result of a filesystem operation.
pub type Result<T, E = FsError> = std::result::Result<T, E>;

impl From<wait::Error> for FsError {
    fn from(error: wait::Error) -> Self {
        match error {
            wait::Error::WouldBlock => Self::WouldBlock,
            wait::Error::Failed(error) => error.into(),
        }
    }
}

impl From<StoreError> for FsError {
    fn from(error: StoreError) -> Self {
        if error.kind() == ErrorKind::NotFound {
            Self::NoEntry
        } else {
            Self::Store(error)
        }
    }
}

impl FsError {
    /// Returns an error with an explanation.
    pub(super) fn refused(errno: c_int, message: String, hint: &'static str) -> Self {
        Self::Refused(Refusal {
            errno,
            message,
            hint,
        })
    }

    /// Returns the errno. No wildcard: a new kind does not compile until its errno is chosen.
    pub fn errno(&self) -> c_int {
        match self {
            Self::WouldBlock => libc::EAGAIN,
            Self::Interrupted => libc::EINTR,
            Self::NoEntry => libc::ENOENT,
            Self::Stale => libc::ESTALE,
            Self::ReadOnly => libc::EROFS,
            Self::NoAttribute => libc::ENODATA,
            Self::NotSupported => libc::EOPNOTSUPP,
            Self::WrongKind(errno) => *errno,
            Self::BadHandle => libc::EBADF,
            Self::Refused(refusal) => refusal.errno,
            Self::Store(error) => store_errno(error.kind()),
        }
    }

    /// Returns whether a person should hear of it: not of a missing file or attribute.
    pub fn is_remarkable(&self) -> bool {
        matches!(self, Self::Store(_) | Self::Refused(_) | Self::BadHandle)
    }
}

fn store_errno(kind: ErrorKind) -> c_int {
    match kind {
        ErrorKind::NotFound => libc::ENOENT,
        // Not ENOENT: C libraries take that for the plain end of a directory being read, and a
        // program for the word that one file is gone. Nor ESTALE, for which the kernel asks again.
        ErrorKind::StoreNotFound => libc::EIO,
        ErrorKind::Denied | ErrorKind::SignatureExpired => libc::EACCES,
        ErrorKind::InvalidKey => libc::EINVAL,
        ErrorKind::TooLarge => libc::EFBIG,
        ErrorKind::Quota => libc::EDQUOT,
        ErrorKind::Changed => libc::ESTALE,
        ErrorKind::Timeout => libc::ETIMEDOUT,
        ErrorKind::RateLimited
        | ErrorKind::Network
        | ErrorKind::Server
        | ErrorKind::Protocol
        | ErrorKind::Corrupt
        | ErrorKind::Disk => libc::EIO,
        ErrorKind::Unsupported => libc::EROFS,
    }
}

/// Returns the symbolic name of the errnos that kvfs answers.
pub fn errno_name(errno: c_int) -> &'static str {
    match errno {
        libc::EAGAIN => "EAGAIN",
        libc::ENOENT => "ENOENT",
        libc::ESTALE => "ESTALE",
        libc::EROFS => "EROFS",
        libc::ENODATA => "ENODATA",
        libc::EOPNOTSUPP => "EOPNOTSUPP",
        libc::ERANGE => "ERANGE",
        libc::ENOTDIR => "ENOTDIR",
        libc::EISDIR => "EISDIR",
        libc::EBADF => "EBADF",
        libc::EACCES => "EACCES",
        libc::EINVAL => "EINVAL",
        libc::EFBIG => "EFBIG",
        libc::EDQUOT => "EDQUOT",
        libc::ETIMEDOUT => "ETIMEDOUT",
        libc::EEXIST => "EEXIST",
        libc::EPERM => "EPERM",
        libc::ENOSPC => "ENOSPC",
        libc::ENXIO => "ENXIO",
        libc::ENAMETOOLONG => "ENAMETOOLONG",
        libc::EINTR => "EINTR",
        libc::EIO => "EIO",
        _ => "an errno",
    }
}
