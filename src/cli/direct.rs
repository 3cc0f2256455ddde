//! Shared by the commands that use a store without a mount: opening it, and its failures.

use std::io::{self, IsTerminal};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::args::{GlobalArgs, StoreArgs};
use super::error::{CliError, Kind};
use super::mounted::Daemon;
use super::mounted_store::MountedStore;
use super::places::{self, InMount};
use super::reference;
use super::settings::{Environment, open_config};
use super::ui::patiently;
use crate::apify::account::StoreSummary;
use crate::base::clock::Deadline;
use crate::base::text::Line;
use crate::daemon::{FailureKind, LogConfig, LogFormat, LogLevel, causes, logging};
use crate::fs::name::{self, Meaning};
use crate::metrics::Metrics;
use crate::mount::account::open_account;
use crate::mount::open::{self, OpenConfig};
use crate::store::record::{MAX_KEY_LEN, is_key_byte};
use crate::store::reference::StoreRef;
use crate::store::{ErrorKind, Key, Store, StoreError};

/// How long an operation in a mount may take; its daemon has a deadline of its own.
const MOUNT_TIMEOUT: Duration = Duration::from_secs(120);

/// Opens a store of these settings.
pub type Opener = fn(&OpenConfig, Arc<Metrics>) -> crate::store::Result<Arc<dyn Store>>;

/// A store in use by a command.
#[derive(Debug)]
pub struct Direct {
    /// The store.
    pub store: Arc<dyn Store>,
    /// What was asked of it.
    pub metrics: Arc<Metrics>,
    /// Which it is, without secrets.
    pub shown: String,
    /// The mount that was named in its place, and perhaps a file in it.
    pub mount: Option<InMount>,
    /// How it was opened, unless through a mount.
    config: Option<OpenConfig>,
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
        Self::open_word(typed, args, environment, open::open)
    }

    /// Opens the store that `typed` names to change it: a local folder, too.
    ///
    /// # Errors
    /// As [`Direct::open`].
    pub fn open_writable(
        typed: &str,
        args: &StoreArgs,
        global: GlobalArgs,
        environment: &Environment,
    ) -> Result<Self, CliError> {
        start_log(global, environment)?;
        Self::open_word(typed, args, environment, open::open_writable)
    }

    /// Opens a store without starting to log.
    ///
    /// # Errors
    /// As [`Direct::open`].
    pub fn open_quietly(
        typed: &str,
        args: &StoreArgs,
        environment: &Environment,
    ) -> Result<Self, CliError> {
        Self::open_word(typed, args, environment, open::open)
    }

    fn open_word(
        typed: &str,
        args: &StoreArgs,
        environment: &Environment,
        open: Opener,
    ) -> Result<Self, CliError> {
        let Some(place) = places::inside(Path::new(typed)) else {
            let reference = reference::parse(&[typed.to_owned()])?;
            return Self::open_reference(reference, args, environment, open);
        };
        let daemon = Daemon::find(&place.mount_point, environment)?;
        let state = daemon.state()?;
        Ok(Self {
            store: Arc::new(MountedStore::new(&place.mount_point, &state)),
            metrics: Arc::default(),
            shown: place.mount_point.display().to_string(),
            mount: Some(place),
            config: None,
            timeout: args.deadline.unwrap_or(MOUNT_TIMEOUT),
        })
    }

    /// Returns the keys that words mean in this store. In a mount they are names of files, or their
    /// paths, and the store's own word may have named one.
    ///
    /// # Errors
    /// A usage error for an empty key, or a path that leads elsewhere.
    pub fn keys(&self, words: &[String]) -> Result<Vec<Key>, CliError> {
        let Some(place) = &self.mount else {
            return words.iter().map(|word| key(word)).collect();
        };
        let names = places::names_in(&place.mount_point, words)?;
        place
            .name
            .iter()
            .chain(&names)
            .map(|name| match name::meaning(name.as_ref()) {
                Meaning::Key(key) => Ok(key),
                // Odd keys can be written as they are, too.
                Meaning::Listed | Meaning::Nothing => key(name),
            })
            .collect()
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
        Self::open_word(typed, args, environment, open::open_unasked)
    }

    /// As [`Direct::open_unasked`], to change the store: a local folder, too.
    ///
    /// # Errors
    /// As [`Direct::open`].
    pub fn open_to_delete(
        typed: &str,
        args: &StoreArgs,
        global: GlobalArgs,
        environment: &Environment,
    ) -> Result<Self, CliError> {
        start_log(global, environment)?;
        Self::open_word(typed, args, environment, |config, metrics| {
            match &config.reference {
                StoreRef::Directory(_) => open::open_writable(config, metrics),
                _ => open::open_unasked(config, metrics),
            }
        })
    }

    /// Opens a store by its parsed reference; nothing is logged yet.
    ///
    /// # Errors
    /// As [`Direct::open`].
    pub fn open_reference(
        reference: StoreRef,
        args: &StoreArgs,
        environment: &Environment,
        open: Opener,
    ) -> Result<Self, CliError> {
        let shown = reference.to_string();
        let config = open_config(args, environment, reference)?;
        let metrics = Arc::new(Metrics::default());
        let say = || {
            if io::stderr().is_terminal() {
                tracing::warn!("still waiting for an answer of {shown}");
            }
        };
        let opened = patiently(say, || open(&config, Arc::clone(&metrics)));
        Ok(Self {
            store: opened.map_err(|error| cannot_open(&shown, &error))?,
            metrics,
            shown,
            mount: None,
            timeout: config.deadline,
            config: Some(config),
        })
    }

    /// Returns the API's other data of the store, for one that is opened by a token.
    pub fn described(&self) -> Option<StoreSummary> {
        let config = self.config.as_ref()?;
        if !matches!(config.reference, StoreRef::Remote(_)) || config.signature.is_some() {
            return None;
        }
        let account = open_account(config, Arc::clone(&self.metrics)).ok()?;
        account
            .describe(&self.store.info().id, self.deadline())
            .ok()
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
        format: match (global.verbose, environment.log_format()) {
            (0, LogFormat::Text) => LogFormat::Command,
            (_, format) => format,
        },
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
    let mut failed = CliError {
        causes: causes(error),
        hints: error.hint().map(Into::into).into_iter().collect(),
        ..CliError::of(kind_of(error.kind()), format!("{what}: {}", Line(error)))
    };
    if error.kind() == ErrorKind::InvalidKey
        && let Some(fault) = error.key().and_then(key_fault)
    {
        failed.hints.insert(0, fault);
    }
    failed
}

/// Returns why a store cannot be opened.
pub fn cannot_open(shown: &str, error: &StoreError) -> CliError {
    failure(&format!("cannot open {shown}"), error)
}

/// Returns what exit code a store's failure leads to; one cause has one code in every command.
pub fn kind_of(kind: ErrorKind) -> Kind {
    FailureKind::from(kind).into()
}

/// Says why the platform accepts no record of this key; `None` where it does.
pub fn key_fault(key: &Key) -> Option<String> {
    let text = key.as_str();
    if let Some(odd) = text
        .chars()
        .find(|c| !u8::try_from(*c).is_ok_and(is_key_byte))
    {
        return Some(format!(
            "the key '{}' holds {odd:?}; the platform's keys are of letters, digits and !-_.'()",
            shown(key)
        ));
    }
    (text.len() > MAX_KEY_LEN).then(|| {
        format!(
            "the key has {} characters; the platform's keys have at most {MAX_KEY_LEN}",
            text.len()
        )
    })
}

/// Returns a key as it is shown to people.
pub fn shown(key: &Key) -> Line<&str> {
    Line(key.as_str())
}
