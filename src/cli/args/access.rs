//! Options that open a store and cache it, for every command that reads one.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use url::Url;

use super::values::{api_url, positive_duration};
use crate::base::redact::Secret;
use crate::base::units::ByteSize;

/// How a store is opened, for every command that takes STORE.
#[derive(Clone, Debug, Default, Args)]
pub struct StoreArgs {
    /// Read the API token from this file, again whenever it changes
    #[arg(long, value_name = "FILE", help_heading = "Access")]
    pub token_file: Option<PathBuf>,
    /// The API's address [default: APIFY_CLIENT_BASE_URL or APIFY_API_BASE_URL, else the platform]
    #[arg(long, value_name = "URL", value_parser = api_url, help_heading = "Access")]
    pub api_url: Option<Url>,
    /// Send token and signature over http:// to other machines, too; others on the way can read them
    #[arg(long, help_heading = "Access")]
    pub insecure_http: bool,
    /// The signature that grants access to a store's keys (others can see it in the list of processes)
    #[arg(
        long,
        value_name = "SIGNATURE",
        help_heading = "Access",
        conflicts_with = "signature_file"
    )]
    pub signature: Option<String>,
    /// Read the signature from this file
    #[arg(long, value_name = "FILE", help_heading = "Access")]
    pub signature_file: Option<PathBuf>,

    /// With actor: and task:, only runs with this status, such as SUCCEEDED
    #[arg(long, value_name = "STATUS", help_heading = "What to show")]
    pub status: Option<String>,
    /// With actor: and task:, only runs started from: API, WEB, SCHEDULER, ...
    #[arg(long, value_name = "ORIGIN", help_heading = "What to show")]
    pub origin: Option<String>,

    /// Read defaults and named stores from this file [default: kvfs/config.toml in the user's config folder]
    #[arg(long, value_name = "FILE", help_heading = "Running")]
    pub config: Option<PathBuf>,
    /// The token from the settings file; not an option, as others would see it.
    #[arg(skip)]
    pub token: Option<Secret>,
    /// The longest wait for one answer of the API [default: 30s]
    #[arg(long, value_name = "DURATION", value_parser = positive_duration, help_heading = "Running")]
    pub timeout: Option<Duration>,
    /// The longest that one file operation may take, with all retries [default: 60s]
    #[arg(long, value_name = "DURATION", value_parser = positive_duration, help_heading = "Running")]
    pub deadline: Option<Duration>,
}

impl StoreArgs {
    /// Returns the equivalent flags, except those that choose one of several last runs.
    pub fn flags(&self) -> Vec<OsString> {
        let mut flags: Vec<OsString> = Vec::new();
        let mut add = |name: &str, value: Option<&OsStr>| {
            if let Some(value) = value {
                let mut flag = OsString::from(format!("--{name}="));
                flag.push(value);
                flags.push(flag);
            }
        };
        let seconds = |time: &Duration| format!("{}s", time.as_secs_f64());
        add(
            "token-file",
            self.token_file.as_ref().map(|path| path.as_os_str()),
        );
        add(
            "api-url",
            self.api_url.as_ref().map(|url| OsStr::new(url.as_str())),
        );
        add("signature", self.signature.as_ref().map(OsStr::new));
        add(
            "signature-file",
            self.signature_file.as_ref().map(|path| path.as_os_str()),
        );
        add("config", self.config.as_ref().map(|path| path.as_os_str()));
        let (timeout, deadline) = (
            self.timeout.as_ref().map(seconds),
            self.deadline.as_ref().map(seconds),
        );
        add("timeout", timeout.as_ref().map(OsStr::new));
        add("deadline", deadline.as_ref().map(OsStr::new));
        if self.insecure_http {
            flags.push("--insecure-http".into());
        }
        flags
    }
}

/// The disk cache.
#[derive(Clone, Debug, Default, Args)]
pub struct DiskArgs {
    /// The folder of the disk cache [default: kvfs in the user's cache folder]
    #[arg(long, value_name = "DIR", help_heading = "Caching")]
    pub cache_dir: Option<PathBuf>,
    /// The size of the disk cache [default: 2GiB]
    #[arg(long, value_name = "SIZE", help_heading = "Caching")]
    pub cache_size: Option<ByteSize>,
    /// Disable the disk cache
    #[arg(long, help_heading = "Caching")]
    pub no_disk_cache: bool,
}
