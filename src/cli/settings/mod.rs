//! Validates settings from arguments, environment and defaults.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use url::Url;

use super::args::{CompressArg, DiskArgs, GlobalArgs, MountArgs, OverwriteArg, StoreArgs};
use super::error::{CliError, Kind};
use super::left_behind;
use super::reference;
use crate::apify::plain::PlainHttp;
use crate::base::redact::Secret;
use crate::base::units::ByteSize;
use crate::daemon::registry::mount_point::quoted;
use crate::daemon::registry::{self, mount_point};
use crate::daemon::{LogConfig, LogFormat, LogLevel, Order};
use crate::fs::write::Overwrite;
use crate::fs::write::scratch::ScratchRules;
use crate::mount::build::{DiskCacheConfig, MountAccess, MountConfig, WriteSettings};
use crate::mount::open::{self, OpenConfig, TokenSource};
use crate::store::freshness::USUAL_LAG;
use crate::store::reference::StoreRef;

mod environment;
mod files;

pub use environment::{Environment, SERVE_VARIABLE, VARIABLE, variable_of};
use files::absolute;
pub use files::read_secret;

/// How long metadata stays valid by default.
const DEFAULT_TTL: Duration = Duration::from_secs(10);
const DEFAULT_MEMORY_CACHE: ByteSize = ByteSize::mib(64);
const DEFAULT_CACHE_SIZE: ByteSize = ByteSize::gib(2);
const DEFAULT_UNMOUNT_TIMEOUT: Duration = Duration::from_secs(30);
const DEFAULT_SCRATCH_DELAY: Duration = Duration::from_secs(1);
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);
const DEFAULT_DEADLINE: Duration = Duration::from_secs(60);

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
    let open = open_config(&args.store, environment, reference.clone())?;
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
            open,
            mount_point,
            source: args.fstab_source.clone(),
            raw: args.raw,
            max_content: args.max_content_size,
            prefix: args.prefix.clone(),
            collection: args.collection.clone(),
            ttl: (!args.immutable).then(|| args.ttl.unwrap_or(DEFAULT_TTL)),
            clock_lag: args.clock_lag.map_or(Some(USUAL_LAG), |lag| lag.0),
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
        certificates: environment.certificates()?,
        proxies: environment.given_proxies(),
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
            source: None,
            raw: false,
            max_content: None,
            prefix: None,
            collection: None,
            ttl: Some(DEFAULT_TTL),
            clock_lag: Some(USUAL_LAG),
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
        certificates: environment.certificates()?,
        proxies: environment.given_proxies(),
    })
}

/// Returns how to open a store of a local server, which no other process sends requests to.
pub fn local_open_config(reference: StoreRef, api_url: Url, token: Secret) -> OpenConfig {
    OpenConfig {
        reference,
        api_url: Some(api_url),
        token: TokenSource::Environment(token),
        signature: None,
        run_status: None,
        run_origin: None,
        plain_http: PlainHttp::ThisMachine,
        attempt_timeout: DEFAULT_TIMEOUT,
        deadline: DEFAULT_DEADLINE,
        budget_dir: None,
    }
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
    let config = OpenConfig {
        reference,
        api_url: match &args.api_url {
            Some(url) => Some(url.clone()),
            None => environment.api_url()?,
        },
        token,
        signature,
        run_status: args.status.as_deref().map(str::to_ascii_uppercase),
        run_origin: args.origin.as_deref().map(str::to_ascii_uppercase),
        plain_http: match args.insecure_http {
            true => PlainHttp::Anywhere,
            false => PlainHttp::ThisMachine,
        },
        attempt_timeout: args.timeout.unwrap_or(DEFAULT_TIMEOUT),
        deadline: args.deadline.unwrap_or(DEFAULT_DEADLINE),
        budget_dir: environment.state_dir().ok().map(|dir| dir.join("budgets")),
    };
    // A matter of usage, not of what the server says.
    match open::access::refused_plain_http(&config) {
        Some(error) => Err(CliError {
            hints: error.hint().map(Into::into).into_iter().collect(),
            ..CliError::usage(error.to_string())
        }),
        None => Ok(config),
    }
}

fn token_source(args: &StoreArgs, environment: &Environment) -> Result<TokenSource, CliError> {
    if let Some(path) = &args.token_file {
        // It is read again when it changes; now it must be there.
        read_secret("token", path)?;
        return Ok(TokenSource::File(absolute(path)?));
    }
    let given = [
        ("the token of the settings file", args.token.as_ref()),
        ("the variable APIFY_TOKEN", environment.token.as_ref()),
    ];
    for (from, token) in given {
        let Some(token) = token else { continue };
        if !token.expose().bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(CliError::usage(format!(
                "{from} cannot be a token: it holds other than letters, digits and signs"
            ))
            .hinted("take it from Apify Console, Settings, API & Integrations"));
        }
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
    let dir = environment.cache_dir(args.cache_dir.as_deref())?;
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
        other_staging: left_behind::folders(environment),
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
        let given = paths.first().map(|word| word.to_string_lossy());
        let given = given.unwrap_or_default();
        let store = quoted(Path::new(&*given));
        return Err(match Path::new(&*given).is_dir()
            && reference::parse(&[given.to_string()]).is_err()
        {
            true => CliError::usage(format!("the store is missing: kvfs mount STORE {store}")),
            false => CliError::usage(format!(
                "the mount point is missing: kvfs mount {store} MOUNTPOINT"
            )),
        }
        .hinted("any empty folder of yours is a mount point: mkdir -p mnt"));
    };
    let store: Option<Vec<String>> = store
        .iter()
        .map(|part| part.to_str().map(str::to_owned))
        .collect();
    let store = store.ok_or_else(|| CliError::usage("the store is not valid UTF-8"))?;
    Ok((store, Path::new(mount_point)))
}

/// Makes folders absolute: the daemon leaves the current one.
///
/// # Errors
/// [`Kind::NotFound`] that there is no such folder.
pub fn absolute_reference(reference: StoreRef) -> Result<StoreRef, CliError> {
    Ok(match reference {
        StoreRef::Directory(path) => {
            let path = fs::canonicalize(&path).map_err(|error| {
                let kind = match error.kind() {
                    io::ErrorKind::NotFound => Kind::NotFound,
                    io::ErrorKind::PermissionDenied => Kind::Denied,
                    _ => Kind::Failed,
                };
                CliError::of(kind, format!("cannot use the folder {}", path.display()))
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

#[cfg(test)]
mod tests;
