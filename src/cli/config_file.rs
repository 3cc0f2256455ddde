//! The settings file: defaults, and stores that have a name.
//!
//! ```toml
//! [defaults]
//! ttl = "1m"
//!
//! [stores.prod]
//! store = "user~name"
//! token-file = "~/.config/kvfs/prod.token"
//! ```
//!
//! The names in it are the long options of `kvfs mount`, taken from the definitions of the command
//! line, and so are the rules for values. Added are only `store` and `token`. A file that holds
//! secrets must not be readable by others, and no file may be written by others: a writer could
//! have the token sent elsewhere.

use std::any::TypeId;
use std::collections::BTreeMap;
use std::error::Error;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use clap::{Arg, Command};
use serde::Deserialize;
use toml::{Table, Value as Toml};
use url::Url;

use super::error::CliError;
use super::options;
use crate::base::redact::{Secret, has_secret};

/// The largest settings file, in bytes.
const MAX_LEN: u64 = 1 << 20;

/// The name of the setting that is the token itself; an option of this name there is not.
pub const TOKEN: &str = "token";

/// Options that make no sense in the file.
const NOT_SETTINGS: [&str; 1] = ["config"];

/// What the file says.
#[derive(Debug, Default)]
pub struct ConfigFile {
    /// Where it is, or would be.
    pub path: PathBuf,
    /// Whether there is one.
    pub found: bool,
    /// What holds where nothing else is said.
    pub defaults: Vec<Setting>,
    /// The named stores.
    pub stores: BTreeMap<String, NamedStore>,
}

/// A store that has a name.
#[derive(Debug)]
pub struct NamedStore {
    /// What would be typed for STORE.
    pub store: Vec<String>,
    /// Its settings.
    pub settings: Vec<Setting>,
}

/// A setting of the file.
#[derive(Clone, Debug)]
pub struct Setting {
    /// The long option, or [`TOKEN`].
    pub name: String,
    /// Its value.
    pub value: Value,
}

/// The value of a setting.
#[derive(Clone, Debug)]
pub enum Value {
    /// A switch.
    Switch(bool),
    /// As it would be typed.
    Text(String),
    /// A token or a signature.
    Secret(Secret),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Tables {
    #[serde(default)]
    defaults: Table,
    #[serde(default)]
    stores: BTreeMap<String, Table>,
}

impl ConfigFile {
    /// Reads the file at `path`; if it is not there, nothing is set, unless it was `asked_for`.
    ///
    /// # Errors
    /// That it cannot be read, is open to others, or what in it is wrong and what is known.
    pub fn read(path: PathBuf, home: Option<&Path>, asked_for: bool) -> Result<Self, CliError> {
        let unreadable = |error: &io::Error| {
            CliError::failed(format!("cannot read the settings file {}", path.display()))
                .caused_by(error)
        };
        let mut file = match File::open(&path) {
            Ok(file) => file,
            // A file in the place of a folder: there can be none.
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
                ) && !asked_for =>
            {
                return Ok(Self {
                    path,
                    ..Self::default()
                });
            }
            Err(error) => return Err(unreadable(&error)),
        };
        let found = file.metadata().map_err(|error| unreadable(&error))?;
        let mut text = String::new();
        file.by_ref()
            .take(MAX_LEN)
            .read_to_string(&mut text)
            .map_err(|error| unreadable(&error))?;
        let reader = Reader {
            path: &path,
            home,
            command: options::mount_command(),
            private: found.mode() & 0o077 == 0,
        };
        reader.check_owner(&found)?;
        let (defaults, stores) = reader.tables(&text)?;
        Ok(Self {
            path,
            found: true,
            defaults,
            stores,
        })
    }

    /// Returns the store that is called `@name`.
    ///
    /// # Errors
    /// That there is none, and which there are.
    pub fn named(&self, name: &str) -> Result<&NamedStore, CliError> {
        if let Some(store) = self.stores.get(name) {
            return Ok(store);
        }
        let path = self.path.display();
        let error = CliError::usage(format!("no store is called @{name} in {path}"));
        if !self.found {
            return Err(error.hinted(format!(
                "there is no such file: make it, with two lines: [stores.{name}] and store = \"user~name\""
            )));
        }
        let known: Vec<String> = self.stores.keys().map(|name| format!("@{name}")).collect();
        Err(error.hinted(match known.as_slice() {
            [] => format!("it names none; add a table: [stores.{name}]"),
            known => format!("known are: {}", known.join(", ")),
        }))
    }
}

impl Setting {
    /// Returns the flag that says the same; none for what is switched off, and for the token.
    pub fn flag(&self) -> Option<String> {
        let name = &self.name;
        match &self.value {
            _ if name == TOKEN => None,
            Value::Switch(on) => on.then(|| format!("--{name}")),
            Value::Text(text) => Some(format!("--{name}={text}")),
            Value::Secret(secret) => Some(format!("--{name}={}", secret.expose())),
        }
    }
}

/// Whether two settings, or options, exclude each other.
pub fn conflict(command: &Command, one: &str, other: &str) -> bool {
    let names = [one, other];
    if names.contains(&TOKEN) {
        return names.contains(&"token-file");
    }
    // The definitions name one of the two directions.
    let excludes = |one: &str, other: &str| {
        options::find(command, one).is_some_and(|argument| {
            command
                .get_arg_conflicts_with(argument)
                .iter()
                .any(|excluded| excluded.get_long() == Some(other))
        })
    };
    excludes(one, other) || excludes(other, one)
}

/// What reading needs to know.
struct Reader<'a> {
    path: &'a Path,
    home: Option<&'a Path>,
    command: Command,
    /// Whether only its owner can read the file.
    private: bool,
}

impl Reader<'_> {
    fn check_owner(&self, found: &fs::Metadata) -> Result<(), CliError> {
        let me = rustix::process::geteuid().as_raw();
        let path = self.path.display();
        if found.uid() != me && found.uid() != 0 {
            return Err(CliError::failed(format!(
                "the settings file {path} belongs to another user"
            ))
            .hinted("another user who can write it could have your token sent elsewhere"));
        }
        if found.mode() & 0o002 != 0 {
            return Err(CliError::failed(format!(
                "every user can write to the settings file {path}"
            ))
            .hinted(format!("chmod o-w {path}")));
        }
        Ok(())
    }

    fn tables(&self, text: &str) -> Result<(Vec<Setting>, BTreeMap<String, NamedStore>), CliError> {
        let tables: Tables = toml::from_str(text).map_err(|error| {
            // Not the whole error: it quotes the line, which may hold a secret.
            let before = error.span().and_then(|span| text.get(..span.start));
            let line = before.map_or(1, |before| before.matches('\n').count() + 1);
            CliError::usage(format!(
                "{}:{line}: {}",
                self.path.display(),
                error.message()
            ))
        })?;
        let defaults = self.settings("defaults", tables.defaults)?;
        let mut stores = BTreeMap::new();
        for (name, mut table) in tables.stores {
            let place = format!("stores.{name}");
            let store = table.remove("store");
            let store = self.store(&place, store)?;
            let settings = self.settings(&place, table)?;
            stores.insert(name, NamedStore { store, settings });
        }
        Ok((defaults, stores))
    }

    fn wrong(&self, place: &str, what: impl std::fmt::Display) -> CliError {
        CliError::usage(format!("{}: [{place}] {what}", self.path.display()))
    }

    /// Reads what would be typed for STORE: one text, or several for the URLs of records.
    fn store(&self, place: &str, value: Option<Toml>) -> Result<Vec<String>, CliError> {
        let wrong = || {
            self.wrong(place, "needs the store, as for kvfs mount")
                .hinted("store = \"user~name\"")
        };
        let words = match value {
            Some(Toml::String(word)) => vec![word],
            Some(Toml::Array(words)) if !words.is_empty() => words
                .iter()
                .map(|word| word.as_str().map(str::to_owned).ok_or_else(wrong))
                .collect::<Result<_, _>>()?,
            _ => return Err(wrong()),
        };
        for word in &words {
            if word.is_empty() || word.starts_with('@') {
                return Err(wrong());
            }
            if Url::parse(word).is_ok_and(|url| has_secret(&url)) {
                self.check_private(place, "store")?;
            }
        }
        // `~name` is a store of one's own; a folder begins with `~/` or `.`.
        let is_relative = |word: &str| word.starts_with("~/") || word.starts_with('.');
        Ok(words
            .into_iter()
            .map(|word| match is_relative(&word) {
                true => self.absolute(&word),
                false => word,
            })
            .collect())
    }

    fn settings(&self, place: &str, table: Table) -> Result<Vec<Setting>, CliError> {
        let mut settings: Vec<Setting> = Vec::new();
        for (key, value) in table {
            let setting = self.setting(place, &key, value)?;
            let excluded = settings
                .iter()
                .find(|other| conflict(&self.command, &setting.name, &other.name));
            if let Some(other) = excluded {
                let both = format!("'{}' and '{}' exclude each other", other.name, setting.name);
                return Err(self.wrong(place, both));
            }
            settings.push(setting);
        }
        Ok(settings)
    }

    fn setting(&self, place: &str, key: &str, value: Toml) -> Result<Setting, CliError> {
        let secret = |name: &str| {
            self.check_private(place, name)?;
            match value.as_str().map(str::trim) {
                Some(text) if !text.is_empty() => Ok(Setting {
                    name: name.to_owned(),
                    value: Value::Secret(Secret::new(text)),
                }),
                _ => Err(self.wrong(place, format_args!("'{name}' must be a text"))),
            }
        };
        if key == TOKEN {
            return secret(TOKEN);
        }
        let argument = options::find(&self.command, key)
            .filter(|argument| !NOT_SETTINGS.contains(&argument.get_id().as_str()))
            .ok_or_else(|| self.unknown(place, key))?;
        let name = argument.get_long().unwrap_or_default();
        if name == "signature" {
            return secret(name);
        }
        let value = match (options::is_switch(argument), value) {
            (true, Toml::Boolean(on)) => Value::Switch(on),
            (true, _) => return Err(self.wrong(place, format_args!("'{name}' is true or false"))),
            (false, Toml::String(text)) => Value::Text(self.text(argument, text)),
            (false, Toml::Integer(number)) if !is_octal(argument) => {
                Value::Text(number.to_string())
            }
            (false, _) => {
                let what = format!("'{name}' must be a text: {name} = \"...\"");
                return Err(self.wrong(place, what));
            }
        };
        let setting = Setting {
            name: name.to_owned(),
            value,
        };
        self.check_value(place, &setting)?;
        Ok(setting)
    }

    /// Lets the option's own parser judge the value.
    fn check_value(&self, place: &str, setting: &Setting) -> Result<(), CliError> {
        judge(&self.command, setting)
            .map_err(|why| self.wrong(place, format_args!("'{}': {why}", setting.name)))
    }

    fn check_private(&self, place: &str, name: &str) -> Result<(), CliError> {
        if self.private {
            return Ok(());
        }
        let path = self.path.display();
        let what = format!("'{name}' is a secret, and others can read the file");
        Err(self
            .wrong(place, what)
            .hinted(format!("chmod 600 {path}"))
            .hinted("or put it into a file of its own: token-file, signature-file"))
    }

    fn text(&self, argument: &Arg, text: String) -> String {
        if argument.get_value_parser().type_id() == TypeId::of::<PathBuf>() {
            self.absolute(&text)
        } else {
            text
        }
    }

    /// Returns a path of the file, which counts from the file's folder; `~/` is the home folder.
    fn absolute(&self, text: &str) -> String {
        let below_home = text.strip_prefix("~/").zip(self.home);
        let path = match (below_home, self.path.parent()) {
            (Some((rest, home)), _) => home.join(rest),
            (None, Some(folder)) => folder.join(text),
            (None, None) => text.into(),
        };
        path.to_string_lossy().into_owned()
    }

    fn unknown(&self, place: &str, key: &str) -> CliError {
        let mut known: Vec<&str> = options::all(&self.command)
            .filter(|argument| !NOT_SETTINGS.contains(&argument.get_id().as_str()))
            .filter_map(Arg::get_long)
            .chain([TOKEN])
            .chain((place != "defaults").then_some("store"))
            .collect();
        known.sort_unstable();
        let error = self.wrong(place, format_args!("'{key}' is not a setting"));
        let known_are = format!("known are: {}", known.join(", "));
        match options::nearest(key, known.iter().copied()) {
            Some(near) => error.hinted(format!("did you mean '{near}'? {known_are}")),
            None => error.hinted(known_are),
        }
    }
}

/// Lets the option's own parser judge the value of a setting of this command.
///
/// # Errors
/// What is wrong with it.
pub fn judge(command: &Command, setting: &Setting) -> Result<(), String> {
    let Some(flag) = setting.flag() else {
        return Ok(());
    };
    let line = [command.get_name(), &flag, "STORE", "MOUNTPOINT"];
    let words = match command.get_name() {
        "mount" => line.len(),
        _ => 2,
    };
    let judged = command.clone().try_get_matches_from(&line[..words]);
    judged.map(drop).map_err(|error| {
        error.source().map_or_else(
            || "this value is not allowed".to_owned(),
            ToString::to_string,
        )
    })
}

/// Permission bits: as a number, TOML would take them for decimal.
fn is_octal(argument: &Arg) -> bool {
    argument
        .get_value_names()
        .is_some_and(|names| names.iter().any(|name| name == "MODE"))
}

#[cfg(test)]
#[path = "config_file_tests.rs"]
mod tests;
