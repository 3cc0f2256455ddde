//! The process that serves a mount, in the background or in the foreground.
//!
//! Nothing forks here. The parent ([`launch`]) checks the settings and starts this program
//! again; the child ([`child`]) reads its [`Order`] from a pipe, so that no secret is in its
//! arguments or its environment, leaves the terminal, and says `ready` on another pipe once the
//! mount answers. Until then a failure travels back to the parent, which prints it. A mount in
//! the foreground runs the same [`serve`] in the process that the user started.

use std::error::Error;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::base::proxies::Proxies;
use crate::daemon::registry::Registry;
use crate::daemon::registry::mount_point::MountPointError;
use crate::mount::build::MountConfig;
use crate::store::ErrorKind;

pub mod child;
pub mod control;
pub mod desk;
pub mod launch;
pub mod logging;
pub mod memory;
pub mod panics;
pub mod registry;
pub mod serve;
pub mod session;
pub mod signals;

/// The hidden subcommand under which the child runs.
pub const SUBCOMMAND: &str = "daemon";

/// Everything that the serving process needs to know.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Order {
    /// What to mount and how. The mount point is canonical.
    pub mount: MountConfig,
    /// The store reference, without secrets, for people to read.
    pub store: String,
    /// What to log, and where.
    pub log: LogConfig,
    /// Where to register.
    pub registry: Registry,
    /// Where to serve the counters.
    pub metrics: Option<SocketAddr>,
    /// The variables that name certificates, with paths that hold wherever the daemon is.
    #[serde(default)]
    pub certificates: Vec<(String, PathBuf)>,
    /// The proxies that the user's variables name, which the daemon's environment does not have.
    #[serde(default)]
    pub proxies: Proxies,
}

/// What to log, and where.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LogConfig {
    /// The file; `None` for standard error.
    pub file: Option<PathBuf>,
    /// How much.
    pub level: LogLevel,
    /// Whether standard error may be coloured.
    pub color: bool,
    /// How a line looks.
    pub format: LogFormat,
}

/// How a line of the log looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum LogFormat {
    /// For people: time, level, message.
    #[default]
    Text,
    /// A JSON object a line.
    Json,
    /// For the person who typed a command: `warning: message`.
    Command,
    /// For the systemd journal, which knows the time: the priority as `<3>`, then the message.
    Journal,
}

/// How much to log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum LogLevel {
    /// Only what went wrong.
    Warn,
    /// And what a person may want to know afterwards.
    #[default]
    Info,
    /// And every request.
    Debug,
    /// And every filesystem operation.
    Trace,
}

/// What kind of failure it is; decides the exit code.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureKind {
    /// It did not work.
    #[default]
    Failed,
    /// The store or the record is not there.
    NotFound,
    /// Token or link do not grant access.
    Denied,
    /// The record is not the version that was asked for.
    Changed,
}

impl From<ErrorKind> for FailureKind {
    fn from(kind: ErrorKind) -> Self {
        match kind {
            ErrorKind::NotFound | ErrorKind::StoreNotFound => Self::NotFound,
            ErrorKind::Denied | ErrorKind::SignatureExpired => Self::Denied,
            ErrorKind::Changed => Self::Changed,
            _ => Self::Failed,
        }
    }
}

/// Why a mount failed, as it travels from the daemon to its parent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// What kind it is.
    #[serde(default)]
    pub kind: FailureKind,
    /// What failed, in one sentence.
    pub message: String,
    /// Why, from the outside in.
    pub causes: Vec<String>,
    /// What to do about it.
    pub hints: Vec<String>,
}

impl Failure {
    /// Returns a failure without causes or hints.
    pub fn new(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            ..Self::default()
        }
    }

    /// Returns `error` and its causes as a failure.
    pub fn from_error(error: &dyn Error) -> Self {
        Self {
            causes: causes(error),
            ..Self::new(error.to_string())
        }
    }

    /// Adds the cause of what [`Failure::new`] named.
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

    /// Says what kind it is.
    pub fn of_kind(mut self, kind: FailureKind) -> Self {
        self.kind = kind;
        self
    }
}

impl From<MountPointError> for Failure {
    fn from(error: MountPointError) -> Self {
        Self {
            hints: error.hint().into_iter().collect(),
            ..Self::from_error(&error)
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        self.causes
            .iter()
            .try_for_each(|cause| write!(f, ": {cause}"))
    }
}

impl Error for Failure {}

/// Returns the causes of `error`, from the outside in, without those that repeat what is said.
pub fn causes(error: &dyn Error) -> Vec<String> {
    let mut said = error.to_string();
    let mut causes = Vec::new();
    let mut next = error.source();
    while let Some(cause) = next {
        let text = cause.to_string();
        if !said.ends_with(&text) {
            causes.push(text.clone());
        }
        said = text;
        next = cause.source();
    }
    causes
}
