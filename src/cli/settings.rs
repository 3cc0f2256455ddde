//! From arguments, environment and defaults to validated settings. Nothing else reads the
//! environment.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{self, IsTerminal, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use url::Url;

use super::args::values::api_url;
use super::args::{CompressArg, DiskArgs, GlobalArgs, MountArgs, OverwriteArg, StoreArgs};
use super::config_file::ConfigFile;
use super::error::CliError;
use super::reference;
use crate::bucket;
use crate::daemon::{LogConfig, LogFormat, LogLevel, Order};
use crate::fs::scratch::ScratchRules;
use crate::fs::writing::Overwrite;
use crate::open::{OpenConfig, TokenSource};
use crate::redact::Secret;
use crate::registry::{self, Registry, mount_point};
use crate::setup::{DiskCacheConfig, MountAccess, MountConfig, WriteSettings};
use crate::store::reference::StoreRef;
use crate::units::ByteSize;

/// How long metadata is believed where nothing else is said.
const DEFAULT_TTL: Duration = Duration::from_secs(10);
const DEFAULT_MEMORY_CACHE: ByteSize = ByteSize::mib(64);
const DEFAULT_CACHE_SIZE: ByteSize = ByteSize::gib(2);
const DEFAULT_UNMOUNT_TIMEOUT: Duration = Duration::from_secs(30);
const DEFAULT_SCRATCH_DELAY: Duration = Duration::from_secs(1);
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);
const DEFAULT_DEADLINE: Duration = Duration::from_secs(60);

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

/// The longest token or signature that a file may hold.
const MAX_SECRET: u64 = 64 << 10;

/// What the environment says.
#[derive(Clone, Debug, Default)]
pub struct Environment {
    home: Option<PathBuf>,
    cache_home: Option<PathBuf>,
    config_home: Option<PathBuf>,
    state_home: Option<PathBuf>,
    runtime_dir: Option<PathBuf>,
    staging_dir: Option<PathBuf>,
    token: Option<Secret>,
    signature: Option<Secret>,
    serve_token: Option<Secret>,
    api_urls: Vec<(&'static str, String)>,
    proxies: Vec<(&'static str, String)>,
    path: Vec<PathBuf>,
    no_color: bool,
    journal: Option<String>,
    bucket: bucket::Options,
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

    fn from_variables(variable: impl Fn(&str) -> Option<OsString>) -> Self {
        // An empty variable is as good as none, and a relative folder is to be ignored (XDG).
        let set = |name: &str| variable(name).filter(|value| !value.is_empty());
        let folder = |name| {
            set(name)
                .map(PathBuf::from)
                .filter(|path| path.is_absolute())
        };
        let text = |name| set(name).and_then(|value| value.into_string().ok());
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
            api_urls: ["APIFY_CLIENT_BASE_URL", "APIFY_API_BASE_URL"]
                .into_iter()
                .filter_map(|name| Some((name, text(name)?)))
                .collect(),
            proxies: PROXIES
                .into_iter()
                .filter_map(|name| Some((name, text(name)?)))
                .collect(),
            path: set("PATH").map_or_else(Vec::new, |path| std::env::split_paths(&path).collect()),
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
            // who redirects it is not mistaken.
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
    fn state_dir(&self) -> Result<PathBuf, CliError> {
        self.folder(self.state_home.as_ref(), ".local/state")
    }

    /// Returns the proxies, with what may be credentials.
    pub fn proxies(&self) -> &[(&'static str, String)] {
        &self.proxies
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
        [&self.token, &self.signature, &self.serve_token]
            .into_iter()
            .flatten()
            .cloned()
            .collect()
    }

    /// Returns where mounts log if nothing else is said.
    ///
    /// # Errors
    /// That there is no home folder.
    pub fn log_dir(&self) -> Result<PathBuf, CliError> {
        Ok(self.state_dir()?.join("logs"))
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

    /// Returns where content is kept on disk if nothing else is said.
    ///
    /// # Errors
    /// That there is no home folder.
    pub fn cache_dir(&self) -> Result<PathBuf, CliError> {
        self.folder(self.cache_home.as_ref(), ".cache")
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
        if let Some(path) = path {
            return ConfigFile::read(absolute(path)?, home, true);
        }
        match self.folder(self.config_home.as_ref(), ".config") {
            Ok(dir) => ConfigFile::read(dir.join("config.toml"), home, false),
            // Without a home folder there is no file.
            Err(_) => Ok(ConfigFile::default()),
        }
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
            "staging-dir" => self.staging_dir.is_some().then_some("KVFS_STAGING_DIR"),
            "token" | "token-file" => self.token.is_some().then_some("APIFY_TOKEN"),
            "signature" | "signature-file" => self.signature.is_some().then_some("KVFS_SIGNATURE"),
            _ => None,
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

/// Returns the settings of `kvfs mount`.
///
/// # Errors
/// What is wrong with the arguments, the environment or the files that they name.
pub fn mount_order(
    args: &MountArgs,
    global: GlobalArgs,
    environment: &Environment,
) -> Result<Order, CliError> {
    let (store, mount_point) = split_paths(&args.paths)?;
    let reference = absolute_reference(reference::parse(&store)?)?;
    let mount_point = mount_point::resolve(mount_point)?;
    let disk_cache = disk_cache(&args.disk, environment)?;
    let log = LogConfig {
        file: log_file(args, environment, &mount_point)?,
        level: log_level(global),
        color: environment.color(),
        format: args.log_format.unwrap_or_else(|| environment.log_format()),
    };
    let write = write_settings(args, environment)?;
    let folders = [
        (
            "the staging folder",
            write.as_ref().map(|write| write.staging_dir.as_path()),
        ),
        ("the store", directory_of(&reference)),
        (
            "the cache folder",
            disk_cache.as_ref().map(|cache| cache.dir.as_path()),
        ),
        ("the log file", log.file.as_deref()),
    ];
    for (what, path) in folders {
        // Such a mount would wait for itself.
        if path.is_some_and(|path| path.starts_with(&mount_point)) {
            return Err(CliError::usage(format!("{what} is inside the mount point"))
                .hinted("mount on another directory"));
        }
    }
    Ok(Order {
        store: reference.to_string(),
        mount: MountConfig {
            open: open_config(&args.store, environment, reference)?,
            mount_point,
            raw: args.raw,
            prefix: args.prefix.clone(),
            collection: args.collection.clone(),
            ttl: (!args.immutable).then(|| args.ttl.unwrap_or(DEFAULT_TTL)),
            exact_sizes: args.exact_sizes,
            memory_cache: args.memory_cache.unwrap_or(DEFAULT_MEMORY_CACHE),
            disk_cache,
            deadline: args.store.deadline.unwrap_or(DEFAULT_DEADLINE),
            uid: args
                .uid
                .unwrap_or_else(|| rustix::process::getuid().as_raw()),
            gid: args
                .gid
                .unwrap_or_else(|| rustix::process::getgid().as_raw()),
            file_mode: args
                .file_mode
                .unwrap_or(if args.rw { 0o644 } else { 0o444 }),
            dir_mode: args.dir_mode.unwrap_or(if args.rw { 0o755 } else { 0o555 }),
            access: match (args.allow_other, args.allow_root) {
                (true, _) => MountAccess::Everybody,
                (false, true) => MountAccess::OwnerAndRoot,
                (false, false) => MountAccess::Owner,
            },
            write,
        },
        log,
        registry: environment.registry()?,
        metrics: args.metrics,
    })
}

/// Returns how `kvfs mount` logs: more with `-v`, less with `-q`.
pub fn log_level(global: GlobalArgs) -> LogLevel {
    match (global.quiet, global.verbose) {
        (true, _) => LogLevel::Warn,
        (false, 0) => LogLevel::Info,
        (false, 1) => LogLevel::Debug,
        (false, _) => LogLevel::Trace,
    }
}

/// Returns the settings of the mount that `kvfs demo` makes.
///
/// # Errors
/// That the mount point or the state folder cannot be used.
pub fn demo_order(
    environment: &Environment,
    open: OpenConfig,
    mount_point: &Path,
    log_file: PathBuf,
) -> Result<Order, CliError> {
    Ok(Order {
        store: open.reference.to_string(),
        mount: MountConfig {
            open,
            mount_point: mount_point::resolve(mount_point)?,
            raw: false,
            prefix: None,
            collection: None,
            ttl: Some(DEFAULT_TTL),
            exact_sizes: false,
            memory_cache: DEFAULT_MEMORY_CACHE,
            disk_cache: None,
            deadline: DEFAULT_DEADLINE,
            uid: rustix::process::getuid().as_raw(),
            gid: rustix::process::getgid().as_raw(),
            file_mode: 0o444,
            dir_mode: 0o555,
            access: MountAccess::Owner,
            write: None,
        },
        log: LogConfig {
            file: Some(log_file),
            level: LogLevel::Info,
            color: false,
            format: LogFormat::Text,
        },
        registry: environment.registry()?,
        metrics: None,
    })
}

/// Returns how to open a store of a local server, whose requests nobody else counts.
pub fn local_open_config(reference: StoreRef, api_url: Url, token: Secret) -> OpenConfig {
    OpenConfig {
        reference,
        api_url: Some(api_url),
        token: TokenSource::Environment(token),
        signature: None,
        run_status: None,
        run_origin: None,
        attempt_timeout: DEFAULT_TIMEOUT,
        deadline: DEFAULT_DEADLINE,
        budget_dir: None,
    }
}

/// Reads a token or signature from a file.
///
/// # Errors
/// That the file cannot be read, is empty or holds more than one line.
pub fn read_secret(what: &str, path: &Path) -> Result<Secret, CliError> {
    let shown = shown(path);
    let mut text = String::new();
    fs::File::open(path)
        .and_then(|file| file.take(MAX_SECRET).read_to_string(&mut text))
        .map_err(|error| {
            CliError::failed(format!("cannot read the {what} file {shown}")).caused_by(&error)
        })?;
    let text = text.trim();
    if text.is_empty() || text.contains(char::is_whitespace) {
        return Err(
            CliError::failed(format!("the {what} file {shown} does not hold a {what}"))
                .hinted(format!("it must hold the {what} and nothing else")),
        );
    }
    Ok(Secret::new(text))
}

/// Returns how to open a store.
///
/// # Errors
/// What is wrong with the arguments, the environment or the files that they name.
pub fn open_config(
    args: &StoreArgs,
    environment: &Environment,
    reference: StoreRef,
) -> Result<OpenConfig, CliError> {
    let signature = match (&args.signature, &args.signature_file) {
        (Some(signature), _) => Some(Secret::new(signature.trim())),
        (None, Some(path)) => Some(read_secret("signature", path)?),
        (None, None) => environment.signature.clone(),
    };
    let token = match &reference {
        StoreRef::Bucket { .. } => TokenSource::Bucket(environment.bucket.clone()),
        _ => token_source(args, environment)?,
    };
    Ok(OpenConfig {
        reference,
        api_url: match &args.api_url {
            Some(url) => Some(url.clone()),
            None => environment.api_url()?,
        },
        token,
        signature,
        run_status: args.status.as_deref().map(str::to_ascii_uppercase),
        run_origin: args.origin.as_deref().map(str::to_ascii_uppercase),
        attempt_timeout: args.timeout.unwrap_or(DEFAULT_TIMEOUT),
        deadline: args.deadline.unwrap_or(DEFAULT_DEADLINE),
        budget_dir: environment.state_dir().ok().map(|dir| dir.join("budgets")),
    })
}

fn token_source(args: &StoreArgs, environment: &Environment) -> Result<TokenSource, CliError> {
    if let Some(path) = &args.token_file {
        // It is read again when it changes; now it must be there.
        read_secret("token", path)?;
        return Ok(TokenSource::File(absolute(path)?));
    }
    if let Some(token) = args.token.as_ref().or(environment.token.as_ref()) {
        return Ok(TokenSource::Environment(token.clone()));
    }
    Ok(environment
        .cli_login()
        .map_or(TokenSource::None, TokenSource::CliLogin))
}

/// Returns where content is kept on disk.
///
/// # Errors
/// That there is no folder for it.
pub fn disk_cache(
    args: &DiskArgs,
    environment: &Environment,
) -> Result<Option<DiskCacheConfig>, CliError> {
    let size = args.cache_size.unwrap_or(DEFAULT_CACHE_SIZE);
    if args.no_disk_cache || size.0 == 0 {
        return Ok(None);
    }
    let dir = match &args.cache_dir {
        Some(dir) => absolute(dir)?,
        None => environment.cache_dir()?,
    };
    Ok(Some(DiskCacheConfig { dir, size }))
}

/// Returns how the store may be changed; `None` without `--rw`.
fn write_settings(
    args: &MountArgs,
    environment: &Environment,
) -> Result<Option<WriteSettings>, CliError> {
    if !args.rw {
        let given = [
            ("--overwrite", args.overwrite.is_some()),
            ("--compress", args.compress.is_some()),
            ("--scratch", !args.scratch.is_empty()),
            ("--scratch-delay", args.scratch_delay.is_some()),
            ("--max-record-size", args.max_record_size.is_some()),
            ("--staging-size", args.staging_size.is_some()),
            ("--write-back", args.write_back),
            ("--unmount-timeout", args.unmount_timeout.is_some()),
        ];
        return match given.iter().find(|(_, given)| *given) {
            Some((name, _)) => Err(CliError::usage(format!("{name} needs --rw"))),
            None => Ok(None),
        };
    }
    ScratchRules::new(args.scratch.iter().map(String::as_str)).map_err(CliError::usage)?;
    Ok(Some(WriteSettings {
        overwrite: match args.overwrite {
            Some(OverwriteArg::Always) => Overwrite::Always,
            Some(OverwriteArg::Unchanged) | None => Overwrite::Unchanged,
        },
        compress: args.compress.map(|encoding| match encoding {
            CompressArg::Br => "br".to_owned(),
            CompressArg::Gzip => "gzip".to_owned(),
        }),
        scratch: args.scratch.clone(),
        scratch_delay: args.scratch_delay.unwrap_or(DEFAULT_SCRATCH_DELAY),
        max_record_size: args.max_record_size,
        staging_dir: environment.staging_dir(args.staging_dir.as_deref())?,
        staging_size: args.staging_size,
        write_back: args.write_back,
        unmount_timeout: args.unmount_timeout.unwrap_or(DEFAULT_UNMOUNT_TIMEOUT),
    }))
}

fn log_file(
    args: &MountArgs,
    environment: &Environment,
    mount_point: &Path,
) -> Result<Option<PathBuf>, CliError> {
    match &args.log_file {
        Some(path) => absolute(path).map(Some),
        None if args.foreground => Ok(None),
        None => {
            let name = format!("{}.log", slug(mount_point));
            Ok(Some(environment.log_dir()?.join(name)))
        }
    }
}

/// Returns a file name by which a person recognises `path`, and which no other path has.
fn slug(path: &Path) -> String {
    let words: String = path
        .to_string_lossy()
        .trim_matches('/')
        .chars()
        .map(|c| match c {
            '/' => '-',
            c if c.is_ascii_alphanumeric() || "._-".contains(c) => c,
            _ => '_',
        })
        .take(80)
        .collect();
    format!("{words}-{}", &registry::hash(path)[..8])
}

/// Splits `STORE... MOUNTPOINT`.
fn split_paths(paths: &[OsString]) -> Result<(Vec<String>, &Path), CliError> {
    let Some((mount_point, store)) = paths.split_last().filter(|(_, store)| !store.is_empty())
    else {
        return Err(CliError::usage("a store and a mount point are needed"));
    };
    let store: Option<Vec<String>> = store
        .iter()
        .map(|part| part.to_str().map(str::to_owned))
        .collect();
    let store = store.ok_or_else(|| CliError::usage("the store is not valid UTF-8"))?;
    Ok((store, Path::new(mount_point)))
}

/// Makes folders absolute: the daemon leaves the current one.
fn absolute_reference(reference: StoreRef) -> Result<StoreRef, CliError> {
    Ok(match reference {
        StoreRef::Directory(path) => {
            let path = fs::canonicalize(&path).map_err(|error| {
                CliError::failed(format!("cannot use the folder {}", path.display()))
                    .caused_by(&error)
            })?;
            StoreRef::Directory(path)
        }
        other => other,
    })
}

fn directory_of(reference: &StoreRef) -> Option<&Path> {
    match reference {
        StoreRef::Directory(path) => Some(path),
        StoreRef::Remote(_)
        | StoreRef::Url { .. }
        | StoreRef::Records(_)
        | StoreRef::Bucket { .. } => None,
    }
}

fn absolute(path: &Path) -> Result<PathBuf, CliError> {
    std::path::absolute(path).map_err(|error| {
        CliError::failed(format!("cannot use the path {}", shown(path))).caused_by(&error)
    })
}

/// Returns `path` for an error message, unless somebody gave the token in its place.
fn shown(path: &Path) -> String {
    let name: &OsStr = path.as_os_str();
    if name.as_encoded_bytes().starts_with(b"apify_api_") {
        return "(not shown: it looks like a token)".to_owned();
    }
    path.display().to_string()
}

fn no_home() -> CliError {
    CliError::failed("there is no home folder").hinted("set the variable HOME")
}

#[cfg(test)]
#[path = "settings_tests.rs"]
mod tests;
