//! `kvfs serve`.

use std::error::Error;
use std::fmt;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use url::Url;

use super::args::{GlobalArgs, ServeArgs};
use super::error::CliError;
use super::settings::{Environment, log_level, read_secret};
use super::ui::{Ui, patiently};
use crate::apify::plain::is_exposed;
use crate::base::clock::Deadline;
use crate::base::random::letters;
use crate::base::redact::Secret;
use crate::bucket::{Bucket, CHECK, Use};
use crate::daemon::registry::mount_point::quoted;
use crate::daemon::{LogConfig, logging};
use crate::server::{
    BucketCatalog, Catalog, GeneralAccess, Lookup, NewStore, RunEntry, RunningServer, Server,
    ServerConfig, User,
};
use crate::store::StoreError;
use crate::store::reference::bucket_address;

/// Letters and digits of a token that was made up: 190 bits.
const TOKEN_LENGTH: usize = 32;

/// The least length of a token where others can reach the server, and try.
const LEAST_TOKEN: usize = 16;

/// How long uploads into a bucket may take to be ended.
const ENDING: Duration = Duration::from_secs(5);

/// The store that programs use when they name none.
const DEFAULT_STORE: &str = "default";

/// Where the stores are.
#[derive(Debug)]
pub enum Root {
    /// In a folder.
    Folder(PathBuf),
    /// In a bucket.
    Bucket(Url, Bucket),
}

impl fmt::Display for Root {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Folder(path) => f.write_str(&quoted(path)),
            Self::Bucket(address, _) => write!(f, "{address}"),
        }
    }
}

/// What to serve, and to whom.
#[derive(Debug)]
pub struct ServeSettings {
    /// The stores.
    pub root: Root,
    /// Where to listen; port 0 for a free one.
    pub listen: SocketAddr,
    /// The token that clients must send.
    pub token: Secret,
    /// Whether reading needs no token.
    pub public: bool,
}

/// A server that runs until this is dropped.
#[derive(Debug)]
pub struct Running {
    /// Its base URL, `/v2` not included.
    pub url: Url,
    server: RunningServer,
}

/// Starts a server.
///
/// # Errors
/// That the folder cannot be used, or the address is taken.
pub fn start(settings: &ServeSettings) -> Result<Running, CliError> {
    start_with(settings, |_| {})
}

fn start_with(
    settings: &ServeSettings,
    change: impl FnOnce(&mut ServerConfig),
) -> Result<Running, CliError> {
    let failed = |error: &dyn Error| {
        let (root, listen) = (&settings.root, settings.listen);
        CliError::failed(format!("cannot serve {root} at {listen}")).caused_by(error)
    };
    let mut config = ServerConfig {
        listen: settings.listen,
        token: Some(settings.token.clone()),
        general_access: if settings.public {
            GeneralAccess::AnyoneWithNameCanRead
        } else {
            GeneralAccess::Restricted
        },
        ..ServerConfig::new(match &settings.root {
            Root::Folder(path) => path.as_path(),
            Root::Bucket(..) => Path::new(""),
        })
    };
    change(&mut config);
    let server = match &settings.root {
        Root::Folder(_) => Server::start(config),
        Root::Bucket(_, bucket) => {
            let catalog = BucketCatalog::new(bucket.clone(), &config);
            Server::start_with(config, Arc::new(catalog))
        }
    };
    let server = server.map_err(|error| failed(&error))?;
    Ok(Running {
        url: Url::parse(&server.url()).map_err(|error| failed(&error))?,
        server,
    })
}

/// Serves until Ctrl-C or SIGTERM.
///
/// # Errors
/// That the server cannot be started.
pub fn run(
    ui: Ui,
    args: &ServeArgs,
    global: GlobalArgs,
    environment: &Environment,
) -> Result<(), CliError> {
    let given = match &args.token_file {
        Some(path) => Some(read_secret("token", path)?),
        None => environment.serve_token(),
    };
    if given.is_none() && !args.listen.ip().is_loopback() {
        return Err(CliError::usage(format!(
            "{} can be reached from other machines, so a token must be given",
            args.listen
        ))
        .hinted("put one into a file for --token-file, or set the variable KVFS_SERVE_TOKEN"));
    }
    let made_up = given.is_none();
    let token = match given {
        Some(token) => token,
        None => random_token()?,
    };
    let users = accounts(args, &token)?;
    check_tokens(
        args.listen,
        users.iter().map(|(_, token)| token).chain([&token]),
    )?;
    let runs = runs(args)?;
    let settings = ServeSettings {
        root: root(args, environment, ui)?,
        listen: args.listen,
        token,
        public: args.public,
    };
    let log = LogConfig {
        file: None,
        level: log_level(global),
        color: environment.color(),
        format: environment.log_format(),
    };
    logging::start(&log)
        .map_err(|error| CliError::failed("cannot log to standard error").caused_by(&error))?;
    // Caught before the announcement, so that a program that waits for it may end this one.
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP])
        .map_err(|error| CliError::failed("cannot catch signals").caused_by(&error))?;
    let running = start_with(&settings, |config| {
        configure(config, args, users, runs);
        config.state = environment.serve_dir();
    })?;
    let owner = User::default().id;
    let store = shown_store(&**running.server.catalog(), &owner, !args.read_only);
    if made_up && ui.quiet {
        // It is known nowhere else.
        ui.data(settings.token.expose())?;
    }
    announce(ui, &settings, &running.url, &store, made_up);
    signals.forever().next();
    stop(ui, running.server, args.grace, signals);
    if let Root::Bucket(_, bucket) = &settings.root {
        // Else the storage keeps their parts, and they are paid for.
        bucket.end_uploads(ENDING);
    }
    Ok(())
}

/// Refuses tokens that can be guessed where others can try.
fn check_tokens<'a>(
    listen: SocketAddr,
    mut tokens: impl Iterator<Item = &'a Secret>,
) -> Result<(), CliError> {
    if listen.ip().is_loopback() || tokens.all(|token| token.expose().len() >= LEAST_TOKEN) {
        return Ok(());
    }
    Err(CliError::usage(format!(
        "{listen} can be reached from other machines, so tokens must have at least {LEAST_TOKEN} \
         characters"
    ))
    .hinted("make one with: head -c 24 /dev/urandom | base64"))
}

fn configure(
    config: &mut ServerConfig,
    args: &ServeArgs,
    users: Vec<(User, Secret)>,
    runs: Vec<RunEntry>,
) {
    config.other_users = users;
    config.owner.username.clone_from(&args.username);
    config.runs = runs;
    config.read_only = args.read_only;
    config.public_url = args.public_url.as_ref().map(ToString::to_string);
    config.limits.record = args.max_record.map(|size| size.0);
    config.limits.connections = args.max_connections;
    config.limits.idle = args.idle_timeout;
    config.platform.clone_from(&args.platform);
    config.knobs.latency = args.latency.unwrap_or_default();
    config.knobs.bandwidth = args.bandwidth.map(|size| size.0);
    config.knobs.rate_limit = args.rate_limit;
    config.knobs.faults.clone_from(&args.faults);
}

/// Lets what is under way finish; another signal ends it at once.
fn stop(ui: Ui, server: RunningServer, grace: Duration, mut signals: Signals) {
    let under_way = server.counts().in_flight;
    if under_way > 0 {
        ui.say(format_args!(
            "\nfinishing {under_way} requests; Ctrl-C again ends them"
        ));
    }
    let stopper = server.stopper();
    // Ends with the process.
    std::thread::spawn(move || {
        if signals.forever().next().is_some() {
            stopper.stop();
        }
    });
    if server.stop_within(grace) {
        ui.say("\nstopped");
    } else {
        ui.warn("stopped; requests under way were cut off");
    }
}

/// Returns the accounts besides the server's own.
fn accounts(args: &ServeArgs, token: &Secret) -> Result<Vec<(User, Secret)>, CliError> {
    let mut names = vec![args.username.clone()];
    let mut tokens = vec![token.clone()];
    let mut users = Vec::new();
    for (name, file) in &args.users {
        let token = read_secret("token", file)?;
        if names.iter().any(|known| known.eq_ignore_ascii_case(name)) {
            return Err(
                CliError::usage(format!("there is an account '{name}' already"))
                    .hinted(format!("'{}' is the server's own account", args.username)),
            );
        }
        if tokens.contains(&token) {
            return Err(CliError::usage(format!(
                "the token of '{name}' belongs to another account already"
            )));
        }
        names.push(name.clone());
        tokens.push(token.clone());
        users.push((User::named(name), token));
    }
    Ok(users)
}

/// Returns the runs that the arguments and their file tell of.
fn runs(args: &ServeArgs) -> Result<Vec<RunEntry>, CliError> {
    let mut runs = Vec::new();
    if let Some(path) = &args.runs_file {
        let text = fs::read_to_string(path).map_err(|error| {
            CliError::failed(format!("cannot read the runs in {}", path.display()))
                .caused_by(&error)
        })?;
        for (number, line) in text.lines().enumerate() {
            let line = line.split('#').next().unwrap_or_default().trim();
            if !line.is_empty() {
                let run = line.parse().map_err(|why: String| {
                    let place = format!("{}, line {}", path.display(), number + 1);
                    CliError::usage(format!("{place}: {why}"))
                })?;
                runs.push(run);
            }
        }
    }
    runs.extend(args.runs.iter().cloned());
    Ok(runs)
}

/// Opens the folder or bucket to serve.
fn root(args: &ServeArgs, environment: &Environment, ui: Ui) -> Result<Root, CliError> {
    let Some(address) = args.dir.to_str().and_then(bucket_address) else {
        return make_root(&args.dir).map(Root::Folder);
    };
    let address = address.map_err(|error| CliError::usage(error.to_string()))?;
    let wanted = match (args.read_only, args.single_server) {
        (true, _) => Use::Read,
        (_, true) => Use::Alone,
        _ => Use::Shared,
    };
    let opened = Bucket::open(&address, environment.bucket()).and_then(|bucket| {
        let waiting = format!("waiting for an answer of {address}; Ctrl-C ends this");
        patiently(
            || ui.say(waiting),
            || bucket.check(wanted, Deadline::after(CHECK)),
        )?;
        bucket.tidy();
        Ok(bucket)
    });
    match opened {
        Ok(bucket) => Ok(Root::Bucket(address, bucket)),
        Err(error) => {
            let failed = CliError::failed(format!("cannot use {address}")).caused_by(&error);
            Err(match error.hint() {
                Some(hint) => failed.hinted(hint),
                None => failed,
            })
        }
    }
}

fn make_root(dir: &Path) -> Result<PathBuf, CliError> {
    if fs::metadata(dir).is_ok_and(|found| !found.is_dir()) {
        return Err(
            CliError::usage(format!("{} is a file, not a folder", dir.display()))
                .hinted("name the folder that holds the stores, such as ./storage"),
        );
    }
    fs::create_dir_all(dir)
        .and_then(|()| fs::canonicalize(dir))
        .map_err(|error| {
            CliError::failed(format!("cannot use the folder {}", dir.display())).caused_by(&error)
        })
}

/// Returns what a store is called that can be mounted: the default one, else one that is there. An
/// empty folder gets the default one; buckets, where looking through all stores may take long, do
/// not.
fn shown_store(catalog: &dyn Catalog, owner: &str, writable: bool) -> String {
    let name = DEFAULT_STORE;
    let shown = || {
        if catalog.find(Lookup::Name { owner, name })?.is_some() {
            return Ok(Some(format!("~{name}")));
        }
        if !catalog.is_near() {
            return Ok(None);
        }
        let mut stores = catalog.list()?;
        stores.retain(|store| store.owner == owner);
        if let Some(first) = stores.into_iter().min_by(|a, b| a.name.cmp(&b.name)) {
            return Ok(Some(first.name.map_or(first.id, |name| format!("~{name}"))));
        }
        if writable {
            catalog.create(&NewStore::named(name))?;
        }
        Ok(writable.then(|| format!("~{name}")))
    };
    // Nothing is lost but an example.
    let shown = shown().unwrap_or_else(|error: StoreError| {
        tracing::debug!(%error, "no store can be shown");
        None
    });
    shown.unwrap_or_else(|| "~STORE".to_owned())
}

fn announce(ui: Ui, settings: &ServeSettings, url: &Url, store: &str, made_up: bool) {
    let is_exposed = is_exposed(url);
    let url = url.as_str().trim_end_matches('/');
    let token = if made_up {
        // Shown this once: it is known nowhere else.
        settings.token.expose()
    } else {
        "YOUR-TOKEN"
    };
    ui.say(format_args!("serving {} at {url}", settings.root));
    if settings.public {
        ui.say(if settings.listen.ip().is_loopback() {
            "every program of this machine can read the stores; pages of web sites cannot"
        } else {
            "everyone who reaches this address can read the stores, web pages in their browsers too"
        });
    }
    let insecure = if is_exposed { " --insecure-http" } else { "" };
    ui.say(format_args!(
        "\nmount a store with:\n  APIFY_TOKEN={token} kvfs mount --api-url {url}{insecure} '{store}' MOUNTPOINT"
    ));
    ui.say(format_args!(
        "\npoint clients and SDKs to it with:\n  export APIFY_CLIENT_BASE_URL={url} \
         APIFY_API_BASE_URL={url} APIFY_TOKEN={token}"
    ));
    ui.say("\nCtrl-C stops it");
}

/// Makes up a token from the kernel's random numbers.
///
/// # Errors
/// That there are none.
pub fn random_token() -> Result<Secret, CliError> {
    let letters = letters(TOKEN_LENGTH)
        .map_err(|error| CliError::failed("cannot make up a token").caused_by(&error))?;
    Ok(Secret::new(format!("kvfs_{letters}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn made_up_tokens_are_long_and_never_the_same() {
        let token = random_token().expect("a token");
        assert_eq!(token.expose().len(), TOKEN_LENGTH + 5);
        assert_ne!(token, random_token().expect("a token"));
    }
}
