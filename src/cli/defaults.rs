//! Puts what the settings file says where flags would stand, unless something else was said.
//!
//! In order: flags, the settings of a named store, the environment, the file's defaults. A named
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
        let words: Vec<&str> = match self {
            Self::One(word) => vec![word.as_str()],
            Self::Perhaps(word) => word.as_deref().into_iter().collect(),
            Self::BeforeMountPoint(paths) => {
                let words = paths.split_last().map_or(&[][..], |(_, words)| words);
                words.iter().filter_map(|word| word.to_str()).collect()
            }
        };
        match words.as_slice() {
            [word] => Ok(word.strip_prefix('@').map(str::to_owned)),
            words if words.iter().any(|word| word.starts_with('@')) => {
                Err(CliError::usage("a named store stands alone"))
            }
            _ => Ok(None),
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
    let mut layers = Vec::new();
    if let Some(name) = store {
        let named = file.named(name)?;
        layers.push((named.settings.as_slice(), From::Store(name.to_owned())));
    }
    layers.push((file.defaults.as_slice(), From::Defaults));
    let mut settled = given;
    let mut chosen: Vec<(Setting, From)> = Vec::new();
    for (layer, from) in layers {
        let counts = |setting: &&Setting| {
            let said =
                |name: &String| *name == setting.name || conflict(&command, name, &setting.name);
            let in_environment =
                from == From::Defaults && environment.variable(&setting.name).is_some();
            !in_environment && !settled.iter().any(said)
        };
        let more: Vec<Setting> = layer.iter().filter(counts).cloned().collect();
        settled.extend(more.iter().map(|setting| setting.name.clone()));
        chosen.extend(more.into_iter().map(|setting| (setting, from.clone())));
    }
    Ok(chosen)
}

/// Returns the flags for those of `settings` that the command has.
pub fn flags(settings: &[(Setting, From)], command: &Definition) -> Vec<OsString> {
    settings
        .iter()
        .filter(|(setting, _)| options::find(command, &setting.name).is_some())
        .filter_map(|(setting, _)| setting.flag())
        .map(OsString::from)
        .collect()
}

/// Returns the flags that variables stand for where neither flags nor a named store say otherwise.
///
/// Only of switches: other variables have no other way to say less than a flag.
///
/// # Errors
/// What is wrong with a variable.
pub fn environment_flags(
    settings: &[(Setting, From)],
    given: &[String],
    environment: &Environment,
) -> Result<Option<OsString>, CliError> {
    const NAME: &str = "insecure-http";
    let is_said = given.iter().any(|name| name == NAME)
        || settings.iter().any(|(setting, _)| setting.name == NAME);
    let is_on = environment.insecure_http()?.unwrap_or(false);
    Ok((is_on && !is_said).then(|| format!("--{NAME}").into()))
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
            (options::is_switch(argument) && long == name)
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
