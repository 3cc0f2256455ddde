//! Errors of the command line: kinds that decide the exit code, causes, and hints.

use std::error::Error;
use std::fmt;
use std::io;
use std::path::Path;
use std::process::ExitCode;

use crate::daemon::launch::LaunchError;
use crate::daemon::registry::mount_point::{MountPointError, quoted};
use crate::daemon::registry::unmount::UnmountError;
use crate::daemon::{Failure, FailureKind, causes};

/// What kind of failure; decides the exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It did not work: the user's mistake, the network, the machine.
    Failed,
    /// The command line is wrong.
    Usage,
    /// Nothing is mounted there, or the mount is dead or does not answer; `doctor` found something
    /// broken.
    Trouble,
    /// The store or the record is not there.
    NotFound,
    /// Token or link do not grant access.
    Denied,
    /// The record is not as the caller made a condition of it.
    Changed,
    /// Ctrl-C.
    Interrupted,
    /// The reader of standard output has stopped; that is no failure.
    BrokenPipe,
    /// A bug in kvfs.
    Internal,
}

impl Kind {
    /// Returns the exit code.
    pub fn exit_code(self) -> u8 {
        match self {
            Self::BrokenPipe => 0,
            Self::Failed => 1,
            Self::Usage => 2,
            Self::Trouble => 3,
            Self::NotFound => 4,
            Self::Denied => 5,
            Self::Changed => 6,
            Self::Interrupted => 130,
            Self::Internal => 255,
        }
    }
}

impl From<Kind> for ExitCode {
    fn from(kind: Kind) -> Self {
        Self::from(kind.exit_code())
    }
}

/// A failure as it is printed.
#[derive(Debug)]
pub struct CliError {
    /// What kind.
    pub kind: Kind,
    /// What failed, in one sentence; empty if everything has been said already.
    pub message: String,
    /// Why, from the outside in.
    pub causes: Vec<String>,
    /// What to do about it.
    pub hints: Vec<String>,
}

impl CliError {
    /// Returns a failure of the user or the environment.
    pub fn failed(message: impl Into<String>) -> Self {
        Self::of(Kind::Failed, message)
    }

    /// Returns a misuse of the command line.
    pub fn usage(message: impl Into<String>) -> Self {
        Self::of(Kind::Usage, message)
    }

    /// Returns a failure of `kind`.
    pub fn of(kind: Kind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
            causes: Vec::new(),
            hints: Vec::new(),
        }
    }

    /// Returns a failure of which everything has been said.
    pub fn silent(kind: Kind) -> Self {
        Self::of(kind, "")
    }

    /// Returns the first of several failures, the others as causes; `None` of none.
    pub fn several(errors: Vec<Self>) -> Option<Self> {
        let mut errors = errors.into_iter();
        let mut first = errors.next()?;
        for other in errors {
            first.causes.push(format!("also: {}", other.message));
            for hint in other.hints {
                if !first.hints.contains(&hint) {
                    first.hints.push(hint);
                }
            }
        }
        Some(first)
    }

    /// Adds the cause of what was named.
    pub fn caused_by(mut self, error: &dyn Error) -> Self {
        self.causes.push(error.to_string());
        self.causes.extend(causes(error));
        self
    }

    /// Adds what to do about it.
    pub fn hinted(mut self, hint: impl Into<String>) -> Self {
        self.hints.push(hint.into());
        self
    }
}

impl fmt::Display for CliError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl Error for CliError {}

impl From<Failure> for CliError {
    fn from(failure: Failure) -> Self {
        Self {
            kind: failure.kind.into(),
            message: failure.message,
            causes: failure.causes,
            hints: failure.hints,
        }
    }
}

impl From<FailureKind> for Kind {
    fn from(kind: FailureKind) -> Self {
        match kind {
            FailureKind::Failed => Self::Failed,
            FailureKind::NotFound => Self::NotFound,
            FailureKind::Denied => Self::Denied,
            FailureKind::Changed => Self::Changed,
        }
    }
}

impl From<LaunchError> for CliError {
    fn from(error: LaunchError) -> Self {
        match error {
            LaunchError::Failed(failure) => failure.into(),
            LaunchError::Interrupted => {
                Self::of(Kind::Interrupted, "interrupted; nothing is mounted")
            }
        }
    }
}

impl From<MountPointError> for CliError {
    fn from(error: MountPointError) -> Self {
        Failure::from(error).into()
    }
}

/// Returns why the mount at `mount_point` cannot be unmounted, and what to do.
pub fn cannot_unmount(mount_point: &Path, error: &UnmountError) -> CliError {
    let failed = CliError::failed(format!("cannot unmount {}: {error}", quoted(mount_point)));
    match error.hint(mount_point) {
        Some(hint) => failed.hinted(hint),
        None => failed,
    }
}

/// Standard output failed.
impl From<io::Error> for CliError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::silent(Kind::BrokenPipe),
            _ => Self::failed("cannot write to standard output").caused_by(&error),
        }
    }
}
