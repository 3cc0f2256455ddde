//! The command line as clap sees it: structs only, no I/O, no environment. Their doc comments
//! are the help texts.

use std::ffi::OsString;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};
use url::Url;

use crate::daemon::LogFormat;
use crate::redact::Secret;
use crate::server::{FaultRule, RunEntry};
use crate::units::{ByteSize, parse_duration};

/// Mounts Apify key-value stores as directories: every record is a file
#[derive(Debug, Parser)]
#[command(name = "kvfs", version, max_term_width = 100, propagate_version = true)]
#[command(arg_required_else_help = true, disable_help_subcommand = true)]
pub struct Cli {
    /// What is to be done.
    #[command(subcommand)]
    pub command: Command,
    /// What every command has.
    #[command(flatten)]
    pub global: GlobalArgs,
}

/// What every command has.
#[derive(Clone, Copy, Debug, Args)]
pub struct GlobalArgs {
    /// Log more: -v every request, -vv every filesystem operation
    #[arg(short, long, global = true, action = ArgAction::Count, display_order = 900)]
    pub verbose: u8,
    /// Print and log only what went wrong
    #[arg(
        short,
        long,
        global = true,
        display_order = 901,
        conflicts_with = "verbose"
    )]
    pub quiet: bool,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Mount a store; returns when the mount answers
    ///
    /// STORE is one of: @NAME of the settings file; a store id; NAME of your own as ~NAME; USER~NAME or USER/NAME; run:ID for
    /// the default store of a run; actor:NAME or task:NAME for that of the last run; a URL from the
    /// API or from Apify Console, signed or not; the URLs of single records; a local folder; a store in
    /// a bucket that kvfs serve serves, as s3://BUCKET/PREFIX/NAME, or with gs:// or az://.
    ///
    /// The token comes from --token-file, else from the variable APIFY_TOKEN, else from what `apify
    /// login` stored. A signature comes from the URL, --signature, --signature-file or the variable
    /// KVFS_SIGNATURE.
    Mount(Box<MountArgs>),
    /// Unmount, after everything under way has finished
    #[command(visible_alias = "umount")]
    Unmount(UnmountArgs),
    /// Show what is mounted, and what went wrong there
    ///
    /// Exits with 3 if a mount is dead or does not answer.
    Status(StatusArgs),
    /// Wait until everything that was closed on a mount is in its store
    Sync(SyncArgs),
    /// List, upload or drop what was written and is not in its store
    ///
    /// That is what a mount with --write-back had no time to upload, and what the store refused.
    /// Works with and without a mount of the store; a mount uploads by itself what was only
    /// interrupted.
    Recover(RecoverArgs),
    /// Fetch ahead what will be read, with progress
    ///
    /// The daemon fetches at its lowest priority and within the limits of the API; what is cached
    /// and fresh costs nothing, so that the same command goes on where an earlier one ended. Exits
    /// with 1 if something did not fit into the cache or could not be had.
    Warm(WarmArgs),
    /// Forget what is cached of a mount, in the kernel too; asks the store for nothing
    Refresh(RefreshArgs),
    /// Show what programs ask of a mount, live: operation, time, result, and where it came from
    ///
    /// A source is the kernel (what it has is still right), memory, prefetch (fetched ahead of a
    /// scan), disk, or the network.
    Trace(TraceArgs),
    /// Serve a folder of stores as a local Apify API
    ///
    /// Clients and kvfs use it like the platform. The token comes from --token-file, else from the
    /// variable KVFS_SERVE_TOKEN; without either a new one is made and shown.
    Serve(Box<ServeArgs>),
    /// Show kvfs at work on a sample store, without an account
    Demo(DemoArgs),
    /// List the keys of a store, without a mount
    ///
    /// Like all commands that need no mount, exits with 4 if the store or a record is not there, with
    /// 5 if the token or link does not grant access, and with 6 if a condition does not hold.
    Ls(LsArgs),
    /// Print records, without a mount
    Cat(CatArgs),
    /// Store a record, without a mount
    Put(PutArgs),
    /// Delete records, without a mount
    Rm(RmArgs),
    /// Tell what is known of a store or a record
    Info(InfoArgs),
    /// Make a link that lets anybody read a store or a record
    ///
    /// The link is signed on this machine with the store's own key, which the API shows to who may
    /// write to the store. It works without an account.
    Share(ShareArgs),
    /// Look for what keeps mounts from working
    ///
    /// Checks the machine, the settings, the mounts and the API; with STORE also whether that can be
    /// used. Every finding comes with its fix. Exits with 3 if a check failed; warnings do not count.
    Doctor(DoctorArgs),
    /// Show the settings, and where each comes from
    ///
    /// They come from flags, else from the environment, else from the settings file, else they are
    /// the defaults. A store that the file names, as in `kvfs mount @prod /mnt`, brings settings
    /// of its own; these are as good as flags.
    Config(ConfigArgs),
    /// Print completions for a shell
    ///
    /// For bash: kvfs completions bash > ~/.local/share/bash-completion/completions/kvfs
    Completions(CompletionsArgs),
    /// Write the manual pages
    Man(ManArgs),
    /// Serve a mount in the background (started by `kvfs mount`)
    #[command(name = crate::daemon::SUBCOMMAND, hide = true)]
    Daemon(DaemonArgs),
}

/// The arguments of `kvfs mount`.
#[derive(Debug, Args)]
#[command(override_usage = "kvfs mount [OPTIONS] STORE... MOUNTPOINT")]
#[command(args_override_self = true)]
pub struct MountArgs {
    /// The store, or the URLs of records; last, the existing directory to mount on
    #[arg(required = true, num_args = 1.., value_name = "STORE... MOUNTPOINT")]
    pub paths: Vec<OsString>,

    /// How the store is opened.
    #[command(flatten)]
    pub store: StoreArgs,

    /// Show only records whose key begins so
    #[arg(long, value_name = "PREFIX", help_heading = "What to show")]
    pub prefix: Option<String>,
    /// Show only records of this collection of the store's schema
    #[arg(long, value_name = "NAME", help_heading = "What to show")]
    pub collection: Option<String>,
    /// Show records as they are stored, compressed ones compressed
    #[arg(long, help_heading = "What to show")]
    pub raw: bool,
    /// Show exact sizes of compressed records before they are opened; costs a request for each
    #[arg(long, help_heading = "What to show")]
    pub exact_sizes: bool,

    /// How long names and sizes are believed before the API is asked again; 0 asks every time [default: 10s]
    #[arg(long, value_name = "DURATION", value_parser = parse_duration, help_heading = "Caching")]
    pub ttl: Option<Duration>,
    /// The store never changes: ask for everything only once
    #[arg(long, help_heading = "Caching", conflicts_with = "ttl")]
    pub immutable: bool,
    /// How much content is kept in memory [default: 64MiB]
    #[arg(long, value_name = "SIZE", help_heading = "Caching")]
    pub memory_cache: Option<ByteSize>,
    /// Content on disk.
    #[command(flatten)]
    pub disk: DiskArgs,

    /// Let the store be changed through the mount
    #[arg(long, help_heading = "Writing", conflicts_with = "immutable")]
    pub rw: bool,
    /// Whether a record that somebody else has changed since it was opened may be overwritten
    /// [default: unchanged]
    #[arg(long, value_name = "WHEN", value_enum, help_heading = "Writing")]
    pub overwrite: Option<OverwriteArg>,
    /// Store what is written compressed, where that makes it smaller
    #[arg(
        long,
        value_name = "ENCODING",
        value_enum,
        help_heading = "Writing",
        conflicts_with = "raw"
    )]
    pub compress: Option<CompressArg>,
    /// Names that stay in the mount and never become records, as a pattern with * and ?, beside
    /// those of editors. May be repeated
    #[arg(long, value_name = "GLOB", help_heading = "Writing")]
    pub scratch: Vec<String>,
    /// How long a file with a temporary name (x.tmp) waits for its final name before it is stored
    /// [default: 1s]
    #[arg(long, value_name = "DURATION", value_parser = parse_duration, help_heading = "Writing")]
    pub scratch_delay: Option<Duration>,
    /// Refuse to let a file become larger than this
    #[arg(long, value_name = "SIZE", help_heading = "Writing")]
    pub max_record_size: Option<ByteSize>,
    /// Let closing a file wait for the local disk only; it is uploaded soon, also after a crash.
    /// fsync and `kvfs sync` wait for the store
    #[arg(long, help_heading = "Writing")]
    pub write_back: bool,
    /// How long unmounting waits for uploads [default: 30s]
    #[arg(long, value_name = "DURATION", value_parser = parse_duration, help_heading = "Writing")]
    pub unmount_timeout: Option<Duration>,
    /// Where changed files are until they are stored, and what could not be stored [default: staging
    /// in kvfs in the user's state folder]
    #[arg(long, value_name = "DIR", help_heading = "Writing")]
    pub staging_dir: Option<PathBuf>,
    /// How much may be there [default: what the disk can spare]
    #[arg(long, value_name = "SIZE", help_heading = "Writing")]
    pub staging_size: Option<ByteSize>,

    /// Show all files as this user's (a number) [default: who mounts]
    #[arg(long, value_name = "UID", help_heading = "Permissions")]
    pub uid: Option<u32>,
    /// Show all files as this group's (a number) [default: who mounts]
    #[arg(long, value_name = "GID", help_heading = "Permissions")]
    pub gid: Option<u32>,
    /// Permission bits of files, octal [default: 0444, with --rw 0644]
    #[arg(long, value_name = "MODE", value_parser = mode, help_heading = "Permissions")]
    pub file_mode: Option<u32>,
    /// Permission bits of directories, octal [default: 0555, with --rw 0755]
    #[arg(long, value_name = "MODE", value_parser = mode, help_heading = "Permissions")]
    pub dir_mode: Option<u32>,
    /// Let other users use the mount, as far as the permission bits allow
    #[arg(long, help_heading = "Permissions")]
    pub allow_other: bool,
    /// Let root use the mount
    #[arg(long, help_heading = "Permissions", conflicts_with = "allow_other")]
    pub allow_root: bool,

    /// Options as in fstab, separated by commas: every long option without its dashes (ttl=1m,raw),
    /// and those of mount(8) that make sense here
    #[arg(
        short = 'o',
        value_name = "OPTIONS",
        allow_hyphen_values = true,
        help_heading = "Running"
    )]
    pub options: Vec<String>,
    /// Stay in the foreground and log to standard error
    #[arg(short, long, help_heading = "Running")]
    pub foreground: bool,
    /// Serve counters for Prometheus here, at /metrics; a mere port is open to this machine only
    #[arg(long, value_name = "ADDRESS", value_parser = metrics_address, help_heading = "Running")]
    pub metrics: Option<SocketAddr>,
    /// Log to this file [default: one for each mount point in the user's state folder]
    #[arg(long, value_name = "FILE", help_heading = "Running")]
    pub log_file: Option<PathBuf>,
    /// How log lines look: text, or json with an object a line; for the systemd journal, where that is
    /// standard error, lines are as it wants them [default: text]
    #[arg(long, value_name = "FORMAT", value_parser = log_format, help_heading = "Running")]
    pub log_format: Option<LogFormat>,
}

/// When a record may be overwritten.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum OverwriteArg {
    /// Only the version that was opened, where the server can tell versions apart
    Unchanged,
    /// Always: the last writer wins
    Always,
}

/// How what is written is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum CompressArg {
    /// Brotli
    Br,
    /// gzip
    Gzip,
}

/// How a store is opened, for every command that takes STORE.
#[derive(Clone, Debug, Default, Args)]
pub struct StoreArgs {
    /// Read the API token from this file, again whenever it changes
    #[arg(long, value_name = "FILE", help_heading = "Access")]
    pub token_file: Option<PathBuf>,
    /// The API's address [default: APIFY_CLIENT_BASE_URL or APIFY_API_BASE_URL, else the platform]
    #[arg(long, value_name = "URL", value_parser = api_url, help_heading = "Access")]
    pub api_url: Option<Url>,
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
    /// With actor: and task:, only runs started so: API, WEB, SCHEDULER, ...
    #[arg(long, value_name = "ORIGIN", help_heading = "What to show")]
    pub origin: Option<String>,

    /// Read defaults and named stores from this file [default: kvfs/config.toml in the user's config folder]
    #[arg(long, value_name = "FILE", help_heading = "Running")]
    pub config: Option<PathBuf>,
    /// The token that the settings file holds; no option, for others would see it.
    #[arg(skip)]
    pub token: Option<Secret>,
    /// The longest wait for one answer of the API [default: 30s]
    #[arg(long, value_name = "DURATION", value_parser = positive_duration, help_heading = "Running")]
    pub timeout: Option<Duration>,
    /// The longest that one file operation may take, with all retries [default: 60s]
    #[arg(long, value_name = "DURATION", value_parser = positive_duration, help_heading = "Running")]
    pub deadline: Option<Duration>,
}

/// What is kept on disk of what was read.
#[derive(Clone, Debug, Default, Args)]
pub struct DiskArgs {
    /// Where content is kept on disk [default: kvfs in the user's cache folder]
    #[arg(long, value_name = "DIR", help_heading = "Caching")]
    pub cache_dir: Option<PathBuf>,
    /// How much content is kept on disk [default: 2GiB]
    #[arg(long, value_name = "SIZE", help_heading = "Caching")]
    pub cache_size: Option<ByteSize>,
    /// Keep no content on disk
    #[arg(long, help_heading = "Caching")]
    pub no_disk_cache: bool,
}

/// The arguments of `kvfs ls`.
#[derive(Debug, Args)]
pub struct LsArgs {
    /// The store, as for `kvfs mount`
    pub store: String,
    /// Show size, time, type and encoding too; costs a request for each record
    #[arg(short, long)]
    pub long: bool,
    /// Print a JSON object a line
    #[arg(long)]
    pub json: bool,
    /// List only keys that begin so
    #[arg(long, value_name = "PREFIX")]
    pub prefix: Option<String>,
    /// List only keys of this collection of the store's schema
    #[arg(long, value_name = "NAME")]
    pub collection: Option<String>,
    /// How the store is opened.
    #[command(flatten)]
    pub access: StoreArgs,
}

/// The arguments of `kvfs cat`.
#[derive(Debug, Args)]
pub struct CatArgs {
    /// The store, as for `kvfs mount`
    pub store: String,
    /// The records, printed one after the other
    #[arg(required = true, value_name = "KEY")]
    pub keys: Vec<String>,
    /// Print records as they are stored, compressed ones compressed
    #[arg(long)]
    pub raw: bool,
    /// How the store is opened.
    #[command(flatten)]
    pub access: StoreArgs,
    /// Content on disk.
    #[command(flatten)]
    pub disk: DiskArgs,
}

/// The arguments of `kvfs put`.
#[derive(Debug, Args)]
pub struct PutArgs {
    /// The store, as for `kvfs mount`
    pub store: String,
    /// The record; one that exists is replaced
    pub key: String,
    /// What to store [default: standard input]
    pub file: Option<PathBuf>,
    /// The content's type [default: by the key's or file's extension, else by the bytes]
    #[arg(long, value_name = "TYPE")]
    pub content_type: Option<String>,
    /// The bytes are encoded so already: gzip, br or deflate
    #[arg(long, value_name = "ENCODING")]
    pub content_encoding: Option<String>,
    /// Store nothing if there is such a record
    #[arg(long, conflicts_with = "if_match")]
    pub if_absent: bool,
    /// Store nothing unless this is the record's entity tag, as `kvfs info` shows it
    #[arg(long, value_name = "ETAG")]
    pub if_match: Option<String>,
    /// How the store is opened.
    #[command(flatten)]
    pub access: StoreArgs,
}

/// The arguments of `kvfs rm`.
#[derive(Debug, Args)]
pub struct RmArgs {
    /// The store, as for `kvfs mount`
    pub store: String,
    /// The records; that there is none such is no failure
    #[arg(required = true, value_name = "KEY")]
    pub keys: Vec<String>,
    /// How the store is opened.
    #[command(flatten)]
    pub access: StoreArgs,
}

/// The arguments of `kvfs info`.
#[derive(Debug, Args)]
pub struct InfoArgs {
    /// The store, as for `kvfs mount`
    pub store: String,
    /// The record; without one, the store itself is described
    pub key: Option<String>,
    /// Print a JSON object
    #[arg(long)]
    pub json: bool,
    /// How the store is opened.
    #[command(flatten)]
    pub access: StoreArgs,
}

/// The arguments of `kvfs doctor`.
#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// The store, as for `kvfs mount`
    pub store: Option<String>,
    /// Print a JSON object
    #[arg(long)]
    pub json: bool,
    /// Also write a report for a bug ticket to this new file: findings, settings, mounts and the ends
    /// of the logs, without tokens and signatures
    #[arg(long, value_name = "FILE")]
    pub bundle: Option<PathBuf>,
    /// How the store is opened.
    #[command(flatten)]
    pub access: StoreArgs,
    /// Content on disk.
    #[command(flatten)]
    pub disk: DiskArgs,
}

/// The arguments of `kvfs config`.
#[derive(Debug, Args)]
pub struct ConfigArgs {
    /// Show the settings of this store of the settings file
    #[arg(value_name = "@NAME")]
    pub store: Option<String>,
    /// Print a JSON object
    #[arg(long)]
    pub json: bool,
    /// Look at this file [default: kvfs/config.toml in the user's config folder]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
}

/// The arguments of `kvfs completions`.
#[derive(Debug, Args)]
pub struct CompletionsArgs {
    /// For which shell
    pub shell: clap_complete::Shell,
}

/// The arguments of `kvfs man`.
#[derive(Debug, Args)]
pub struct ManArgs {
    /// Write a page for each command into this folder; made if it is missing
    pub dir: PathBuf,
}

/// The arguments of `kvfs share`.
#[derive(Debug, Args)]
pub struct ShareArgs {
    /// The store, as for `kvfs mount`; or a mount point, or a file in one
    pub store: String,
    /// The record; without one, the whole store is shared
    pub key: Option<String>,
    /// How long the link to a store is good, such as 7d [default: for ever]
    ///
    /// The platform has no links to single records that expire.
    #[arg(long, value_name = "DURATION", value_parser = positive_duration)]
    pub expires: Option<Duration>,
    /// Print a QR code of the link too
    #[arg(long, conflicts_with = "json")]
    pub qr: bool,
    /// Print a JSON object
    #[arg(long)]
    pub json: bool,
    /// How the store is opened.
    #[command(flatten)]
    pub access: StoreArgs,
}

/// The arguments of `kvfs unmount`.
#[derive(Debug, Args)]
pub struct UnmountArgs {
    /// Where it is mounted
    pub mountpoint: PathBuf,
    /// End the mount at once, even if it hangs; whatever still waits for it fails
    #[arg(long, conflicts_with = "lazy")]
    pub force: bool,
    /// Take the mount out of the tree at once; open files stay usable until closed
    #[arg(long)]
    pub lazy: bool,
}

/// The arguments of `kvfs status`.
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// Show only this mount, in detail
    pub mountpoint: Option<PathBuf>,
    /// Show it live, a screen or, where there is no terminal, a line each second; q or Ctrl-C ends
    #[arg(long, short)]
    pub watch: bool,
    /// Print a JSON array with an object for each mount; with --watch, an object a line
    #[arg(long)]
    pub json: bool,
}

/// The arguments of `kvfs sync`.
#[derive(Debug, Args)]
pub struct SyncArgs {
    /// Where the store is mounted
    pub mountpoint: PathBuf,
    /// The longest wait [default: 10m]
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub timeout: Option<Duration>,
}

/// The arguments of `kvfs recover`.
#[derive(Debug, Args)]
pub struct RecoverArgs {
    /// Only these, by id or key [default: everything]
    #[arg(value_name = "ID or KEY")]
    pub wanted: Vec<String>,
    /// List what is not in its store (the default)
    #[arg(long, conflicts_with_all = ["upload", "discard"])]
    pub list: bool,
    /// Upload it; what the store refused because the record has changed now replaces that
    #[arg(long, conflicts_with = "discard")]
    pub upload: bool,
    /// Drop it for good
    #[arg(long)]
    pub discard: bool,
    /// With --discard: everything
    #[arg(long, requires = "discard")]
    pub all: bool,
    /// Print a JSON array with an object for each
    #[arg(long, conflicts_with_all = ["upload", "discard"])]
    pub json: bool,
    /// Where mounts keep what is not in the store yet [default: KVFS_STAGING_DIR, else kvfs/staging
    /// in the user's state folder]
    #[arg(long, value_name = "DIR")]
    pub staging_dir: Option<PathBuf>,
    /// Read the API token from this file
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// With --upload: the longest that the uploads to one store may take [default: 10m]
    #[arg(long, value_name = "DURATION", value_parser = positive_duration)]
    pub timeout: Option<Duration>,
}

/// The arguments of `kvfs warm`.
#[derive(Debug, Args)]
pub struct WarmArgs {
    /// Where it is mounted
    pub mountpoint: PathBuf,
    /// What names begin with, or a pattern such as '*.json'; - takes names from standard input
    #[arg(value_name = "PREFIX|PATTERN|-")]
    pub what: Option<String>,
    /// Print a JSON object at the end
    #[arg(long)]
    pub json: bool,
}

/// The arguments of `kvfs refresh`.
#[derive(Debug, Args)]
pub struct RefreshArgs {
    /// Where it is mounted
    pub mountpoint: PathBuf,
    /// Forget only these files [default: all]
    #[arg(value_name = "FILE")]
    pub names: Vec<String>,
    /// Print a JSON object
    #[arg(long)]
    pub json: bool,
}

/// The arguments of `kvfs trace`.
#[derive(Debug, Args)]
pub struct TraceArgs {
    /// Where it is mounted
    pub mountpoint: PathBuf,
    /// End with sums by operation and by file
    #[arg(long)]
    pub summary: bool,
    /// End after this time [default: with Ctrl-C]
    #[arg(long = "for", value_name = "DURATION", value_parser = positive_duration)]
    pub span: Option<Duration>,
    /// Print a JSON object a line
    #[arg(long)]
    pub json: bool,
}

/// The arguments of `kvfs serve`.
#[derive(Debug, Args)]
pub struct ServeArgs {
    /// The folder, in the layout that Crawlee and the Apify SDKs use, made if it is missing; or a
    /// bucket: s3://BUCKET/PREFIX, gs://BUCKET/PREFIX, az://CONTAINER/PREFIX
    ///
    /// Endpoint, region and credentials of a bucket come from the variables of the provider's own
    /// tools: AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL, GOOGLE_APPLICATION_CREDENTIALS,
    /// AZURE_STORAGE_ACCOUNT_NAME, ... Any number of servers can share a bucket; give them one token.
    #[arg(default_value = "./storage")]
    pub dir: PathBuf,
    /// Listen here; other than on this machine only with a token of your own
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8010")]
    pub listen: SocketAddr,
    /// Read the token that clients must send from this file
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// Let everybody read the stores without a token
    #[arg(long)]
    pub public: bool,
    /// Refuse everything that changes a store
    #[arg(long)]
    pub read_only: bool,
    /// The address that links to stores and records begin with, behind a proxy say
    #[arg(long, value_name = "URL", value_parser = api_url)]
    pub public_url: Option<Url>,
    /// The name of the server's own account, as in NAME~STORE
    #[arg(long, value_name = "NAME", default_value = "local", value_parser = user_name)]
    pub username: String,
    /// Add an account with stores of its own; its token is in the file. May be repeated
    #[arg(long = "user", value_name = "NAME:TOKEN-FILE", value_parser = account)]
    pub users: Vec<(String, PathBuf)>,
    /// Tell of a run whose default store is STORE: ID=STORE, and if need be ,actor=NAME ,task=NAME
    /// ,status=STATUS ,origin=ORIGIN, actor and task by id or name. May be repeated
    #[arg(long = "run", value_name = "RUN")]
    pub runs: Vec<RunEntry>,
    /// Tell of the runs in this file, one a line as for --run; # begins a comment
    #[arg(long, value_name = "FILE")]
    pub runs_file: Option<PathBuf>,
    /// Take records of at most this size
    #[arg(long, value_name = "SIZE", help_heading = "Limits")]
    pub max_record: Option<ByteSize>,
    /// Serve at most so many connections at once; more have to wait
    #[arg(
        long,
        value_name = "NUMBER",
        default_value_t = 1000,
        help_heading = "Limits"
    )]
    pub max_connections: usize,
    /// Hang up on clients that are silent for so long
    #[arg(long, value_name = "TIME", default_value = "2m", value_parser = positive_duration, help_heading = "Limits")]
    pub idle_timeout: Duration,
    /// After Ctrl-C, let uploads and downloads under way finish for at most so long
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = parse_duration, help_heading = "Limits")]
    pub grace: Duration,
    /// Wait before each answer
    #[arg(long, value_name = "TIME", value_parser = parse_duration, help_heading = "For tests and rehearsals")]
    pub latency: Option<Duration>,
    /// Move at most so many bytes a second, over all connections
    #[arg(long, value_name = "SIZE", help_heading = "For tests and rehearsals")]
    pub bandwidth: Option<ByteSize>,
    /// Answer 429 beyond so many requests a second for each store
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..), help_heading = "For tests and rehearsals")]
    pub rate_limit: Option<u32>,
    /// Let answers go wrong, for example status=503,method=GET,key=img-*,probability=0.2
    ///
    /// A rule is an action and conditions, separated by commas. Actions: status=CODE answers
    /// with this error; delay=TIME answers later; reset drops the connection instead of doing
    /// anything; lose does what was asked and then drops the connection; stall[=TIME] pauses
    /// in the middle of the body, for ever if no time is given; truncate[=BYTES] breaks off after
    /// so many bytes, else in the middle; corrupt[=BYTE] falsifies one byte. Conditions:
    /// method=METHOD, or LIST for lists of keys; key=PATTERN with * and ?; probability=0..1 with
    /// seed=NUMBER, the same seed giving the same faults; skip=NUMBER lets the first requests
    /// pass; count=NUMBER is the most that go wrong. May be repeated: the first rule that applies
    /// counts.
    #[arg(
        long = "fault",
        value_name = "RULE",
        help_heading = "For tests and rehearsals"
    )]
    pub faults: Vec<FaultRule>,
}

/// The arguments of `kvfs demo`.
#[derive(Debug, Args)]
pub struct DemoArgs {
    /// Mount here instead of in a new temporary folder
    pub mountpoint: Option<PathBuf>,
    /// Unmount and end after the tour
    #[arg(long)]
    pub exit: bool,
}

/// What the background process shows in the list of processes.
#[derive(Debug, Args)]
pub struct DaemonArgs {
    /// The store and the mount point; the order on standard input counts.
    pub shown: Vec<OsString>,
}

/// Parses permission bits in octal.
fn mode(text: &str) -> Result<u32, String> {
    u32::from_str_radix(text.strip_prefix("0o").unwrap_or(text), 8)
        .ok()
        .filter(|mode| *mode <= 0o777)
        .ok_or_else(|| {
            format!("'{text}' is not a file mode: write octal permission bits such as 0444 or 640")
        })
}

/// Parses how log lines look.
fn log_format(text: &str) -> Result<LogFormat, String> {
    match text {
        "text" => Ok(LogFormat::Text),
        "json" => Ok(LogFormat::Json),
        _ => Err(format!("'{text}' is not a log format: write text or json")),
    }
}

/// Parses `NAME:TOKEN-FILE`.
fn account(text: &str) -> Result<(String, PathBuf), String> {
    let wrong = || {
        format!(
            "'{text}' is not an account: write NAME:TOKEN-FILE, the name of letters, digits, '.', \
             '_' and '-'"
        )
    };
    let (name, file) = text.split_once(':').ok_or_else(wrong)?;
    let name = user_name(name).map_err(|_| wrong())?;
    if file.is_empty() {
        return Err(wrong());
    }
    Ok((name, file.into()))
}

fn user_name(text: &str) -> Result<String, String> {
    let named = text
        .bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte));
    if text.is_empty() || !named {
        return Err(format!(
            "'{text}' is not the name of an account: write letters, digits, '.', '_' and '-'"
        ));
    }
    Ok(text.to_owned())
}

/// Parses where to serve metrics: `PORT`, which this machine alone can reach, or `ADDRESS:PORT`.
fn metrics_address(text: &str) -> Result<SocketAddr, String> {
    match text.parse::<u16>() {
        Ok(port) => Ok((Ipv4Addr::LOCALHOST, port).into()),
        Err(_) => text
            .parse()
            .map_err(|_| format!("'{text}' is no address: write for example 9184 or [::1]:9184")),
    }
}

fn positive_duration(text: &str) -> Result<Duration, String> {
    parse_duration(text).and_then(|duration| {
        if duration.is_zero() {
            Err(format!("'{text}' leaves no time: write for example 30s"))
        } else {
            Ok(duration)
        }
    })
}

/// Parses the API's base URL; an ending `/v2`, which the official clients add, is dropped.
pub(super) fn api_url(text: &str) -> Result<Url, String> {
    // The text is not repeated: it may hold a token.
    let bad = || "not the address of an API: write for example https://api.apify.com".to_owned();
    let mut url = Url::parse(text.trim()).map_err(|_| bad())?;
    if !matches!(url.scheme(), "http" | "https") || !url.has_host() {
        return Err(bad());
    }
    url.set_query(None);
    url.set_fragment(None);
    let path = url.path().trim_end_matches('/');
    let path = path.strip_suffix("/v2").unwrap_or(path).to_owned();
    url.set_path(&path);
    Ok(url)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn modes_are_octal_permission_bits() {
        assert_eq!(mode("0444"), Ok(0o444));
        assert_eq!(mode("640"), Ok(0o640));
        for bad in ["", "8", "01777", "rw", "-1"] {
            assert!(mode(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn api_urls_lose_their_version() {
        for typed in [
            "http://h:1",
            "http://h:1/",
            "http://h:1/v2",
            "http://h:1/v2/?a=b",
        ] {
            assert_eq!(api_url(typed).map(String::from), Ok("http://h:1/".into()));
        }
        assert_eq!(
            api_url("https://h/proxy/v2").map(String::from),
            Ok("https://h/proxy".into())
        );
        for bad in ["", "h:1", "api.apify.com", "ftp://h", "file:///x"] {
            assert!(api_url(bad).is_err(), "{bad}");
        }
    }
}
