//! Adds the settings file's options to the command line, unless flags or variables set them.
//!
//! In order: flags, the settings of a named store, the environment (`KVFS_TTL` for `--ttl`, and so on for
//! every option of `kvfs mount`), the file's defaults. A named
//! store stands before the environment because it is named on the command line: `@prod` has its own
//! token and address even where APIFY_TOKEN is set for another account.

use std::ffi::OsString;

use clap::parser::ValueSource;
use clap::{ArgMatches, Command as Definition};

use super::args::{Command, StoreArgs};
use super::config_file::{ConfigFile, Setting, TOKEN, Value, conflict};
use super::error::CliError;
use super::options;
use super::settings::Environment;
use crate::base::redact::Secret;
use crate::store::reference::{RemoteRef, StoreRef};

/// What a command takes for STORE.
#[derive(Debug)]
pub enum Stores<'a> {
    /// One word.
    One(&'a mut String),
    /// One word that may be missing.
    Perhaps(&'a mut Option<String>),
    /// `STORE... MOUNTPOINT`.
    BeforeMountPoint(&'a mut Vec<OsString>),
}

/// Where a setting comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum From {
    /// The settings of a named store.
    Store(String),
    /// This variable.
    Variable(String),
    /// The file's defaults.
    Defaults,
}

/// Returns what of a command names a store, and how that is opened; `None` if it takes no store.
pub fn stores(command: &mut Command) -> Option<(Stores<'_>, &mut StoreArgs)> {
    Some(match command {
        Command::Mount(args) => {
            let args = &mut **args;
            (Stores::BeforeMountPoint(&mut args.paths), &mut args.store)
        }
        Command::Ls(args) => (Stores::One(&mut args.store), &mut args.access),
        Command::Cat(args) => (Stores::One(&mut args.store), &mut args.access),
        Command::Put(args) => (Stores::One(&mut args.store), &mut args.access),
        Command::Rm(args) => (Stores::One(&mut args.store), &mut args.access),
        Command::Info(args) => (Stores::One(&mut args.store), &mut args.access),
        Command::Share(args) => (Stores::One(&mut args.store), &mut args.access),
        Command::Doctor(args) => (Stores::Perhaps(&mut args.store), &mut args.access),
        _ => return None,
    })
}

impl Stores<'_> {
    /// Returns the name in `@NAME`.
    ///
    /// # Errors
    /// That it stands among others.
    pub fn name(&self) -> Result<Option<String>, CliError> {
        let words = self.words();
        match words.as_slice() {
            [word] => Ok(word.strip_prefix('@').map(str::to_owned)),
            words if words.iter().any(|word| word.starts_with('@')) => {
                Err(CliError::usage("a named store stands alone"))
            }
            _ => Ok(None),
        }
    }

    fn words(&self) -> Vec<&str> {
        match self {
            Self::One(word) => vec![word.as_str()],
            Self::Perhaps(word) => word.as_deref().into_iter().collect(),
            Self::BeforeMountPoint(paths) => {
                let words = paths.split_last().map_or(&[][..], |(_, words)| words);
                words.iter().filter_map(|word| word.to_str()).collect()
            }
        }
    }

    /// Returns whether this can be the store of a last run.
    pub fn may_mean_last_run(&self) -> bool {
        let [word] = self.words()[..] else {
            return self.words().is_empty();
        };
        match StoreRef::parse(&[word.to_owned()]) {
            Ok(StoreRef::Remote(remote) | StoreRef::Url { remote, .. }) => matches!(
                remote,
                RemoteRef::LastRunOfActor(_) | RemoteRef::LastRunOfTask(_)
            ),
            Ok(_) => false,
            Err(_) => true,
        }
    }

    /// Puts what is meant in the place of the name.
    ///
    /// # Errors
    /// That this command takes only one word.
    pub fn replace(self, name: &str, meant: &[String]) -> Result<(), CliError> {
        match (self, meant) {
            (Self::BeforeMountPoint(paths), meant) => {
                paths.splice(..1, meant.iter().map(OsString::from));
            }
            (Self::One(word), [meant]) => meant.clone_into(word),
            (Self::Perhaps(word), [meant]) => *word = Some(meant.clone()),
            _ => {
                return Err(CliError::usage(format!(
                    "@{name} stands for several records, which only kvfs mount takes"
                )));
            }
        }
        Ok(())
    }
}

/// Returns the settings of the file that count where these flags have been given.
///
/// # Errors
/// That there is no store of this name.
pub fn settings(
    file: &ConfigFile,
    store: Option<&str>,
    given: Vec<String>,
    environment: &Environment,
) -> Result<Vec<(Setting, From)>, CliError> {
    let command = options::mount_command();
    let said = environment.settings()?;
    let mut candidates: Vec<(Setting, From)> = Vec::new();
    if let Some(name) = store {
        let named = file.named(name)?.settings.iter().cloned();
        candidates.extend(named.map(|setting| (setting, From::Store(name.to_owned()))));
    }
    candidates.extend(
        said.into_iter()
            .map(|(setting, variable)| (setting, From::Variable(variable))),
    );
    candidates.extend(
        file.defaults
            .iter()
            .filter(|setting| environment.variable(&setting.name).is_none())
            .map(|setting| (setting.clone(), From::Defaults)),
    );
    let mut chosen: Vec<(Setting, From)> = Vec::new();
    let mut settled = given;
    // One layer after the other: within one, nothing excludes anything.
    for layer in candidates.chunk_by(|(_, one), (_, other)| kind(one) == kind(other)) {
        let counts = |setting: &Setting| {
            !settled
                .iter()
                .any(|name| *name == setting.name || conflict(&command, name, &setting.name))
        };
        let more: Vec<_> = layer
            .iter()
            .filter(|(setting, _)| counts(setting))
            .cloned()
            .collect();
        settled.extend(more.iter().map(|(setting, _)| setting.name.clone()));
        chosen.extend(more);
    }
    Ok(chosen)
}

fn kind(from: &From) -> u8 {
    match from {
        From::Store(_) => 0,
        From::Variable(_) => 1,
        From::Defaults => 2,
    }
}

/// Returns the flags for those of `settings` that the command has. Those about writing mean nothing
/// to a mount that is not for writing.
pub fn flags(
    settings: &[(Setting, From)],
    command: &Definition,
    arguments: &ArgMatches,
) -> Vec<OsString> {
    let is_on = |(setting, _): &(Setting, From)| {
        setting.name == "rw" && matches!(setting.value, Value::Switch(true))
    };
    let given = arguments.try_get_one::<bool>("rw").ok().flatten();
    let writes = given == Some(&true) || settings.iter().any(is_on);
    settings
        .iter()
        .filter(|(setting, _)| {
            options::find(command, &setting.name).is_some_and(|argument| {
                writes
                    || argument.get_help_heading() != Some("Writing")
                    || setting.name == "read-only"
            })
        })
        .filter_map(|(setting, _)| setting.flag())
        .map(OsString::from)
        .collect()
}

/// Returns the flags of `kvfs serve` that variables stand for where no flag says otherwise.
///
/// # Errors
/// What is wrong with a variable.
pub fn serve_flags(
    command: &Definition,
    matches: &ArgMatches,
    environment: &Environment,
) -> Result<Vec<OsString>, CliError> {
    let given = given(command, matches);
    let said = environment.serve_settings(command)?;
    Ok(said
        .iter()
        .filter(|setting| !given.contains(&setting.name))
        .filter_map(Setting::flag)
        .map(OsString::from)
        .collect())
}

/// Returns the token among `settings`.
pub fn token(settings: &[(Setting, From)]) -> Option<Secret> {
    settings
        .iter()
        .find_map(|(setting, _)| match &setting.value {
            Value::Secret(secret) if setting.name == TOKEN => Some(secret.clone()),
            _ => None,
        })
}

/// Returns the options that were given to a command.
pub fn given(command: &Definition, matches: &ArgMatches) -> Vec<String> {
    options::all(command)
        .filter(|argument| {
            let id = argument.get_id().as_str();
            matches.try_contains_id(id).is_ok()
                && matches.value_source(id) == Some(ValueSource::CommandLine)
        })
        .filter_map(|argument| argument.get_long().map(str::to_owned))
        .collect()
}

/// Takes `--raw=false` and the like out of a command line: they switch off what the file says.
/// Returns what they switch off; `--raw=true` becomes `--raw`.
pub fn switched_off(argv: &mut Vec<OsString>) -> Vec<String> {
    let command = options::mount_command();
    let mut off = Vec::new();
    let mut literal = false;
    argv.retain_mut(|word| {
        literal |= word == "--";
        let said = word.to_str().filter(|_| !literal).and_then(|word| {
            let (name, value) = word.strip_prefix("--")?.split_once('=')?;
            let argument = options::find(&command, name)?;
            let long = argument.get_long()?;
            (options::is_switch(argument) && !name.contains('_'))
                .then(|| Some((long.to_owned(), value.parse::<bool>().ok()?)))?
        });
        match said {
            Some((name, true)) => *word = format!("--{name}").into(),
            Some((name, false)) => {
                off.push(name);
                return false;
            }
            None => {}
        }
        true
    });
    off
}
