//! `kvfs serve`.

use std::error::Error;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use url::Url;

use super::args::ServeArgs;
use super::error::CliError;
use super::settings::{Environment, read_secret};
use super::ui::Ui;
use crate::redact::Secret;
use crate::registry::mount_point::quoted;
use crate::server::{GeneralAccess, RunningServer, Server, ServerConfig};

/// Letters and digits of a token that was made up: 190 bits.
const TOKEN_LENGTH: usize = 32;

/// What to serve, and to whom.
#[derive(Debug)]
pub struct ServeSettings {
    /// The folder of stores.
    pub root: PathBuf,
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
    _server: RunningServer,
}

/// Starts a server.
///
/// # Errors
/// That the folder cannot be used, or the address is taken.
pub fn start(settings: &ServeSettings) -> Result<Running, CliError> {
    let failed = |error: &dyn Error| {
        let (root, listen) = (settings.root.display(), settings.listen);
        CliError::failed(format!("cannot serve {root} at {listen}")).caused_by(error)
    };
    let server = Server::start(ServerConfig {
        listen: settings.listen,
        token: Some(settings.token.clone()),
        general_access: if settings.public {
            GeneralAccess::AnyoneWithNameCanRead
        } else {
            GeneralAccess::Restricted
        },
        ..ServerConfig::new(&settings.root)
    })
    .map_err(|error| failed(&error))?;
    Ok(Running {
        url: Url::parse(&server.url()).map_err(|error| failed(&error))?,
        _server: server,
    })
}

/// Serves until Ctrl-C or SIGTERM.
///
/// # Errors
/// That the server cannot be started.
pub fn run(ui: Ui, args: &ServeArgs, environment: &Environment) -> Result<(), CliError> {
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
    let settings = ServeSettings {
        root: make_root(&args.dir)?,
        listen: args.listen,
        token: match given {
            Some(token) => token,
            None => random_token()?,
        },
        public: args.public,
    };
    // Caught before anything is announced, so that whoever waits for that may end this.
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP])
        .map_err(|error| CliError::failed("cannot catch signals").caused_by(&error))?;
    let running = start(&settings)?;
    announce(ui, &settings, &running.url, made_up);
    signals.forever().next();
    ui.say("\nstopped");
    Ok(())
}

fn make_root(dir: &Path) -> Result<PathBuf, CliError> {
    fs::create_dir_all(dir)
        .and_then(|()| fs::canonicalize(dir))
        .map_err(|error| {
            CliError::failed(format!("cannot use the folder {}", dir.display())).caused_by(&error)
        })
}

fn announce(ui: Ui, settings: &ServeSettings, url: &Url, made_up: bool) {
    let url = url.as_str().trim_end_matches('/');
    let token = if made_up {
        // Shown this once: nobody else knows it.
        settings.token.expose()
    } else {
        "YOUR-TOKEN"
    };
    ui.say(format_args!("serving {} at {url}", quoted(&settings.root)));
    if settings.public {
        ui.say("everybody who reaches this address can read the stores");
    }
    ui.say(format_args!(
        "\nmount a store with:\n  APIFY_TOKEN={token} kvfs mount --api-url {url} ~default MOUNTPOINT"
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
    const ALPHABET: &[u8; 62] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";
    let mut token = String::from("kvfs_");
    let mut noise = [0; 64];
    let no_noise =
        |error: std::io::Error| CliError::failed("cannot make up a token").caused_by(&error);
    let mut source = fs::File::open("/dev/urandom").map_err(no_noise)?;
    while token.len() < TOKEN_LENGTH + 5 {
        std::io::Read::read_exact(&mut source, &mut noise).map_err(no_noise)?;
        let fair = noise.iter().map(|byte| usize::from(byte & 63));
        let letters = fair.filter_map(|index| ALPHABET.get(index));
        token.extend(
            letters
                .take(TOKEN_LENGTH + 5 - token.len())
                .map(|byte| char::from(*byte)),
        );
    }
    Ok(Secret::new(token))
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
