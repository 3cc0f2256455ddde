//! What the commands that use a store without a mount share: opening it, its failures.

use std::sync::Arc;
use std::time::Duration;

use super::args::{GlobalArgs, StoreArgs};
use super::error::{CliError, Kind};
use super::reference;
use super::settings::{Environment, open_config};
use crate::base::clock::Deadline;
use crate::base::text::Line;
use crate::daemon::{LogConfig, LogLevel, causes, logging};
use crate::metrics::Metrics;
use crate::mount::open::OpenConfig;
use crate::store::reference::StoreRef;
use crate::store::{ErrorKind, Key, Store, StoreError};

/// A store in use by a command.
#[derive(Debug)]
pub struct Direct {
    /// The store.
    pub store: Arc<dyn Store>,
    /// What was asked of it.
    pub metrics: Arc<Metrics>,
    /// Which it is, without secrets.
    pub shown: String,
    /// The longest that one operation may take.
    timeout: Duration,
}

impl Direct {
    /// Opens the store that `typed` names.
    ///
    /// # Errors
    /// What is wrong with the arguments, or that the store cannot be opened.
    pub fn open(
        typed: &str,
        args: &StoreArgs,
        global: GlobalArgs,
        environment: &Environment,
    ) -> Result<Self, CliError> {
        start_log(global, environment)?;
        let reference = reference::parse(&[typed.to_owned()])?;
        Self::open_reference(reference, args, environment)
    }

    /// As [`Direct::open`], for requests that need not know what the store is: where it is on a server,
    /// nothing is asked yet.
    ///
    /// # Errors
    /// As [`Direct::open`].
    pub fn open_unasked(
        typed: &str,
        args: &StoreArgs,
        global: GlobalArgs,
        environment: &Environment,
    ) -> Result<Self, CliError> {
        start_log(global, environment)?;
        let reference = reference::parse(&[typed.to_owned()])?;
        Self::open_with(
            reference,
            args,
            environment,
            crate::mount::open::open_unasked,
        )
    }

    /// Opens a store whose reference has been parsed; nothing is logged yet.
    ///
    /// # Errors
    /// As [`Direct::open`].
    pub fn open_reference(
        reference: StoreRef,
        args: &StoreArgs,
        environment: &Environment,
    ) -> Result<Self, CliError> {
        Self::open_with(reference, args, environment, crate::mount::open::open)
    }

    fn open_with(
        reference: StoreRef,
        args: &StoreArgs,
        environment: &Environment,
        open: fn(&OpenConfig, Arc<Metrics>) -> crate::store::Result<Arc<dyn Store>>,
    ) -> Result<Self, CliError> {
        let shown = reference.to_string();
        let config = open_config(args, environment, reference)?;
        let metrics = Arc::new(Metrics::default());
        let store = open(&config, Arc::clone(&metrics))
            .map_err(|error| failure("cannot open the store", &error))?;
        Ok(Self {
            store,
            metrics,
            shown,
            timeout: config.deadline,
        })
    }

    /// Returns when an operation that starts now has to have ended.
    pub fn deadline(&self) -> Deadline {
        Deadline::after(self.timeout)
    }
}

/// Lets warnings be seen, and with `-v` the requests.
///
/// # Errors
/// That standard error cannot be written to.
pub fn start_log(global: GlobalArgs, environment: &Environment) -> Result<(), CliError> {
    let level = match global.verbose {
        0 => LogLevel::Warn,
        1 => LogLevel::Debug,
        _ => LogLevel::Trace,
    };
    let log = LogConfig {
        file: None,
        level,
        color: environment.color(),
        format: environment.log_format(),
    };
    logging::start(&log)
        .map(drop)
        .map_err(|error| CliError::failed("cannot log to standard error").caused_by(&error))
}

/// Parses a key from the command line.
///
/// # Errors
/// A usage error for an empty one.
pub fn key(typed: &str) -> Result<Key, CliError> {
    Key::new(typed).ok_or_else(|| CliError::usage("a key is empty"))
}

/// Turns a failure of the store into one of the command; the exit code tells its kind.
pub fn failure(what: &str, error: &StoreError) -> CliError {
    let kind = match error.kind() {
        ErrorKind::NotFound | ErrorKind::StoreNotFound => Kind::NotFound,
        ErrorKind::Denied | ErrorKind::SignatureExpired => Kind::Denied,
        ErrorKind::Changed => Kind::Changed,
        _ => Kind::Failed,
    };
    CliError {
        causes: causes(error),
        hints: error.hint().map(Into::into).into_iter().collect(),
        ..CliError::of(kind, format!("{what}: {error}"))
    }
}

/// Returns a key as it is shown to people.
pub fn shown(key: &Key) -> Line<&str> {
    Line(key.as_str())
}
