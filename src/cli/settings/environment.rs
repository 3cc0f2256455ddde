//! The environment variables. Only this file reads them.

use std::ffi::OsString;
use std::fs;
use std::io::{self, IsTerminal};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use clap::{Arg, Command};
use url::Url;

use super::files::absolute;
use crate::base::proxies::Proxies;
use crate::base::redact::Secret;
use crate::bucket;
use crate::cli::args::values::api_url;
use crate::cli::config_file::{ConfigFile, Setting, Value, judge};
use crate::cli::error::CliError;
use crate::cli::options::{self, serve_command};
use crate::daemon::LogFormat;
use crate::daemon::registry::Registry;

/// The variables that the HTTP client heeds.
const PROXIES: [&str; 8] = [
    "HTTPS_PROXY",
    "https_proxy",
    "HTTP_PROXY",
    "http_proxy",
    "ALL_PROXY",
    "all_proxy",
    "NO_PROXY",
    "no_proxy",
];

/// The variables by which a user names the authorities to trust.
const CERTIFICATES: [&str; 2] = ["SSL_CERT_FILE", "SSL_CERT_DIR"];

/// What the variables of options begin with.
pub const VARIABLE: &str = "KVFS_";
/// The same for those of `kvfs serve`.
pub const SERVE_VARIABLE: &str = "KVFS_SERVE_";

/// Options with variables that follow rules of their own.
const NOT_GENERAL: [&str; 3] = ["config", "signature", "staging-dir"];

/// Returns the variable that stands for an option.
pub fn variable_of(begin: &str, option: &str) -> String {
    format!("{begin}{}", option.to_ascii_uppercase().replace('-', "_"))
}

/// Returns what variables say of the options of a command.
fn said(
    command: &Command,
    begin: &str,
    except: &[&str],
    text: impl Fn(&str) -> Option<String>,
) -> Vec<(String, String, String)> {
    options::all(command)
        .filter_map(Arg::get_long)
        .filter(|name| !except.contains(name))
        .filter_map(|name| {
            let variable = variable_of(begin, name);
            let value = text(&variable)?;
            Some((name.to_owned(), variable, value))
        })
        .collect()
}

/// Turns what variables say into settings, each with its variable.
fn as_settings(
    command: &Command,
    said: &[(String, String, String)],
) -> Result<Vec<(Setting, String)>, CliError> {
    said.iter()
        .map(|(name, variable, value)| {
            let wrong = |why: &str| CliError::usage(format!("the variable {variable}: {why}"));
            let is_switch = options::find(command, name).is_some_and(options::is_switch);
            let value = match (is_switch, value.trim().to_ascii_lowercase().as_str()) {
                (true, "1" | "true" | "yes" | "on") => Value::Switch(true),
                (true, "0" | "false" | "no" | "off") => Value::Switch(false),
                (true, _) => return Err(wrong("is neither 1 nor 0")),
                (false, _) => Value::Text(value.clone()),
            };
            let setting = Setting {
                name: name.clone(),
                value,
            };
            judge(command, &setting).map_err(|why| wrong(&why))?;
            Ok((setting, variable.clone()))
        })
        .collect()
}

/// What the environment says.
#[derive(Clone, Debug, Default)]
pub struct Environment {
    home: Option<PathBuf>,
    cache_home: Option<PathBuf>,
    config_home: Option<PathBuf>,
    state_home: Option<PathBuf>,
    runtime_dir: Option<PathBuf>,
    staging_dir: Option<PathBuf>,
    pub(super) token: Option<Secret>,
    pub(super) signature: Option<Secret>,
    serve_token: Option<Secret>,
    insecure_http: Option<String>,
    api_urls: Vec<(&'static str, String)>,
    proxies: Vec<(&'static str, String)>,
    certificates: Vec<(&'static str, PathBuf)>,
    path: Vec<PathBuf>,
    /// What `KVFS_...` variables say: the option, the variable and its value.
    options: Vec<(String, String, String)>,
    /// The same for `kvfs serve`.
    serve: Vec<(String, String, String)>,
    config: Option<PathBuf>,
    no_color: bool,
    journal: Option<String>,
    pub(super) bucket: bucket::Options,
}

impl Environment {
    /// Reads the process's environment.
    #[expect(
        clippy::disallowed_methods,
        reason = "this is the one place that reads the environment"
    )]
    pub fn read() -> Self {
        let mut environment = Self::from_variables(|name| std::env::var_os(name));
        environment.bucket = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .filter(|(name, value)| {
                !value.is_empty()
                    && bucket::VARIABLES
                        .iter()
                        .any(|begin| name.starts_with(begin))
            })
            .collect();
        if environment.home.is_none() {
            environment.home = etcetera::home_dir().ok();
        }
        environment
    }

    pub(in crate::cli) fn from_variables(variable: impl Fn(&str) -> Option<OsString>) -> Self {
        // An empty variable is as good as none, and a relative folder is to be ignored (XDG).
        let set = |name: &str| variable(name).filter(|value| !value.is_empty());
        let folder = |name| {
            set(name)
                .map(PathBuf::from)
                .filter(|path| path.is_absolute())
        };
        let text = |name: &str| set(name).and_then(|value| value.into_string().ok());
        let secret = |name| {
            text(name)
                .map(|text| text.trim().to_owned())
                .filter(|text| !text.is_empty())
                .map(Secret::new)
        };
        Self {
            home: folder("HOME"),
            cache_home: folder("XDG_CACHE_HOME"),
            config_home: folder("XDG_CONFIG_HOME"),
            state_home: folder("XDG_STATE_HOME"),
            runtime_dir: folder("XDG_RUNTIME_DIR"),
            staging_dir: folder("KVFS_STAGING_DIR"),
            token: secret("APIFY_TOKEN"),
            signature: secret("KVFS_SIGNATURE"),
            serve_token: secret("KVFS_SERVE_TOKEN"),
            insecure_http: text("KVFS_INSECURE_HTTP"),
            api_urls: ["APIFY_CLIENT_BASE_URL", "APIFY_API_BASE_URL"]
                .into_iter()
                .filter_map(|name| Some((name, text(name)?)))
                .collect(),
            proxies: PROXIES
                .into_iter()
                .filter_map(|name| Some((name, text(name)?)))
                .collect(),
            certificates: CERTIFICATES
                .into_iter()
                .filter_map(|name| Some((name, PathBuf::from(set(name)?))))
                .collect(),
            path: set("PATH").map_or_else(Vec::new, |path| std::env::split_paths(&path).collect()),
            options: said(&options::mount_command(), VARIABLE, &NOT_GENERAL, text),
            serve: said(&serve_command(), SERVE_VARIABLE, &[], text),
            config: set("KVFS_CONFIG").map(PathBuf::from),
            no_color: set("NO_COLOR").is_some(),
            journal: text("JOURNAL_STREAM"),
            bucket: bucket::Options::default(),
        }
    }

    /// Returns whether talk may be coloured.
    pub fn color(&self) -> bool {
        !self.no_color && io::stderr().is_terminal()
    }

    /// Returns how lines on standard error look: as the journal wants them if it reads them.
    pub fn log_format(&self) -> LogFormat {
        let is_journal = |stream: &String| {
            // systemd.exec(5): the device and inode of what standard error is connected to, so that
            // redirecting it is noticed.
            rustix::fs::fstat(io::stderr())
                .is_ok_and(|found| *stream == format!("{}:{}", found.st_dev, found.st_ino))
        };
        if self.journal.as_ref().is_some_and(is_journal) {
            LogFormat::Journal
        } else {
            LogFormat::Text
        }
    }

    /// Returns where mounts are registered.
    ///
    /// # Errors
    /// That there is no folder for it.
    pub fn registry(&self) -> Result<Registry, CliError> {
        let me = rustix::process::geteuid().as_raw();
        let mine = |dir: &PathBuf| {
            fs::metadata(dir).is_ok_and(|found| found.is_dir() && found.uid() == me)
        };
        let runtime = self.runtime_dir.clone().filter(mine);
        let session = Some(PathBuf::from(format!("/run/user/{me}"))).filter(mine);
        let state = self.state_dir().ok();
        let mut dirs: Vec<PathBuf> = Vec::new();
        dirs.extend(runtime.map(|dir| dir.join("kvfs")));
        dirs.extend(state.map(|dir| dir.join("mounts")));
        dirs.extend(session.map(|dir| dir.join("kvfs")));
        if dirs.is_empty() {
            return Err(no_home());
        }
        let first = dirs.remove(0);
        dirs.retain(|dir| *dir != first);
        Ok(Registry::new(first, dirs))
    }

    /// Returns the token for `kvfs serve`.
    pub fn serve_token(&self) -> Option<Secret> {
        self.serve_token.clone()
    }

    /// Returns how buckets are reached.
    pub fn bucket(&self) -> &bucket::Options {
        &self.bucket
    }

    /// Returns the folder for what outlives a reboot: logs, and mounts where there is no
    /// runtime folder.
    pub fn state_dir(&self) -> Result<PathBuf, CliError> {
        self.folder(self.state_home.as_ref(), ".local/state")
    }

    /// Returns where `kvfs serve` keeps the secret of a folder that may not be written to.
    pub fn serve_dir(&self) -> Option<PathBuf> {
        Some(self.state_dir().ok()?.join("serve"))
    }

    /// Returns the proxies for another process.
    pub(super) fn given_proxies(&self) -> Proxies {
        Proxies::new(self.proxies.iter().map(|(name, value)| (*name, &**value)))
    }

    /// Returns the proxies, with what may be credentials.
    pub fn proxies(&self) -> &[(&'static str, String)] {
        &self.proxies
    }

    /// Returns what names the authorities to trust, as it holds in every folder.
    ///
    /// # Errors
    /// That there is no current folder.
    pub fn certificates(&self) -> Result<Vec<(String, PathBuf)>, CliError> {
        let holds = |name: &str, path: &PathBuf| -> Result<PathBuf, CliError> {
            if name == "SSL_CERT_FILE" {
                return absolute(path);
            }
            // Of folders there may be several, with a colon between.
            let all: Vec<PathBuf> = std::env::split_paths(path)
                .map(|path| absolute(&path))
                .collect::<Result<_, _>>()?;
            let joined = std::env::join_paths(&all).map(PathBuf::from);
            Ok(joined.unwrap_or_else(|_| path.clone()))
        };
        self.certificates
            .iter()
            .map(|(name, path)| Ok(((*name).to_owned(), holds(name, path)?)))
            .collect()
    }

    /// Returns the folders of programs.
    pub fn path(&self) -> &[PathBuf] {
        &self.path
    }

    /// Returns the home folder.
    pub fn home(&self) -> Option<&Path> {
        self.home.as_deref()
    }

    /// Returns every secret that variables hold, to keep it out of reports.
    pub fn secrets(&self) -> Vec<Secret> {
        let proxies = self.proxies.iter();
        let proxies = Proxies::new(proxies.map(|(name, value)| (*name, value.as_str())));
        [&self.token, &self.signature, &self.serve_token]
            .into_iter()
            .flatten()
            .cloned()
            .chain(self.bucket.secrets())
            .chain(proxies.passwords())
            .collect()
    }

    /// Returns where mounts log if nothing else is said.
    ///
    /// # Errors
    /// That there is no home folder.
    pub fn log_dir(&self) -> Result<PathBuf, CliError> {
        Ok(self.state_dir()?.join("logs"))
    }

    /// Returns the folder for what copies remember.
    ///
    /// # Errors
    /// That there is no home folder.
    pub fn copies_dir(&self) -> Result<PathBuf, CliError> {
        Ok(self.state_dir()?.join("copies"))
    }

    /// Returns the folder for what was written and is not in its store yet.
    ///
    /// # Errors
    /// That there is no folder for it.
    pub fn staging_dir(&self, given: Option<&Path>) -> Result<PathBuf, CliError> {
        match given.or(self.staging_dir.as_deref()) {
            Some(dir) => absolute(dir),
            None => Ok(self.state_dir()?.join("staging")),
        }
    }

    /// Returns where content is kept on disk: in `given`, else in the user's cache folder.
    ///
    /// # Errors
    /// That there is no home folder, or that a path makes no sense.
    pub fn cache_dir(&self, given: Option<&Path>) -> Result<PathBuf, CliError> {
        match given {
            Some(dir) => absolute(dir),
            None => self.folder(self.cache_home.as_ref(), ".cache"),
        }
    }

    fn folder(&self, base: Option<&PathBuf>, below_home: &str) -> Result<PathBuf, CliError> {
        base.cloned()
            .or_else(|| Some(self.home.as_ref()?.join(below_home)))
            .map(|dir| dir.join("kvfs"))
            .ok_or_else(no_home)
    }

    /// Reads the settings file: that at `path`, else the user's, which need not be there.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn config_file(&self, path: Option<&Path>) -> Result<ConfigFile, CliError> {
        let home = self.home.as_deref();
        if let Some(path) = path.or(self.config.as_deref()) {
            return ConfigFile::read(absolute(path)?, home, true);
        }
        match self.folder(self.config_home.as_ref(), ".config") {
            Ok(dir) => ConfigFile::read(dir.join("config.toml"), home, false),
            // Without a home folder there is no file.
            Err(_) => Ok(ConfigFile::default()),
        }
    }

    /// Returns what variables say of the options of `kvfs mount`, each with its variable.
    ///
    /// # Errors
    /// What is wrong with one.
    pub fn settings(&self) -> Result<Vec<(Setting, String)>, CliError> {
        as_settings(&options::mount_command(), &self.options)
    }

    /// Returns what variables say of the options of `kvfs serve`.
    ///
    /// # Errors
    /// What is wrong with one.
    pub fn serve_settings(&self, command: &Command) -> Result<Vec<Setting>, CliError> {
        let said = as_settings(command, &self.serve)?;
        Ok(said.into_iter().map(|(setting, _)| setting).collect())
    }

    /// Returns the file that `apify login` has left.
    pub fn cli_login(&self) -> Option<PathBuf> {
        let path = self.home.as_ref()?.join(".apify/auth.json");
        path.is_file().then_some(path)
    }

    /// Returns the variable that is set and says the same as the option `name`.
    pub fn variable(&self, name: &str) -> Option<&'static str> {
        match name {
            "api-url" => self.api_urls.first().map(|(name, _)| *name),
            "insecure-http" => self.insecure_http.is_some().then_some("KVFS_INSECURE_HTTP"),
            "staging-dir" => self.staging_dir.is_some().then_some("KVFS_STAGING_DIR"),
            "token" | "token-file" => self.token.is_some().then_some("APIFY_TOKEN"),
            "signature" | "signature-file" => self.signature.is_some().then_some("KVFS_SIGNATURE"),
            _ => None,
        }
    }

    /// Returns whether a variable lets secrets travel unencrypted, or forbids it.
    ///
    /// # Errors
    /// That it says neither.
    pub fn insecure_http(&self) -> Result<Option<bool>, CliError> {
        match self.insecure_http.as_deref().map(str::trim) {
            None => Ok(None),
            Some("1" | "true") => Ok(Some(true)),
            Some("0" | "false") => Ok(Some(false)),
            Some(_) => Err(CliError::usage(
                "the variable KVFS_INSECURE_HTTP is neither 1 nor 0",
            )),
        }
    }

    /// Returns the API's address that a variable gives.
    ///
    /// # Errors
    /// That it is none.
    pub fn api_url(&self) -> Result<Option<Url>, CliError> {
        let Some((name, text)) = self.api_urls.first() else {
            return Ok(None);
        };
        api_url(text)
            .map(Some)
            .map_err(|why| CliError::usage(format!("the variable {name} is {why}")))
    }
}

fn no_home() -> CliError {
    CliError::failed("there is no home folder").hinted("set the variable HOME")
}
