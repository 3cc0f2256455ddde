//! The arguments of `kvfs mount`.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};

use super::values::{ClockLag, clock_lag, group_id, log_format, metrics_address, mode, user_id};
use super::{DiskArgs, StoreArgs};
use crate::base::units::{ByteSize, parse_duration};
use crate::daemon::LogFormat;

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

    /// Show only records with keys that begin with PREFIX
    #[arg(long, value_name = "PREFIX", help_heading = "What to show")]
    pub prefix: Option<String>,
    /// Show only records of this collection of the store's schema
    #[arg(long, value_name = "NAME", help_heading = "What to show")]
    pub collection: Option<String>,
    /// Show records as they are stored, compressed ones compressed
    #[arg(long, help_heading = "What to show")]
    pub raw: bool,
    /// Show exact sizes of compressed records before they are opened; costs a request for each record, two for compressed ones
    #[arg(long, help_heading = "What to show")]
    pub exact_sizes: bool,

    /// How long cached names, sizes and missing-file results stay valid; 0 asks every time [default: 10s]
    #[arg(long, value_name = "DURATION", value_parser = parse_duration, help_heading = "Caching")]
    pub ttl: Option<Duration>,
    /// How late the store's modifiedAt may show a write, where records have no ETag; files may be
    /// that much older than --ttl says. 'never' asks for each record [default: 15s]
    #[arg(long, value_name = "DURATION", value_parser = clock_lag, help_heading = "Caching")]
    pub clock_lag: Option<ClockLag>,
    /// Assume that the store never changes: ask for everything only once
    #[arg(long, help_heading = "Caching", conflicts_with = "ttl")]
    pub immutable: bool,
    /// The largest content that a record is decoded to [default: 64MiB, or 1100 times what is stored]
    #[arg(
        long,
        value_name = "SIZE",
        help_heading = "Caching",
        conflicts_with = "raw"
    )]
    pub max_content_size: Option<ByteSize>,
    /// The size of the memory cache [default: 64MiB]
    #[arg(long, value_name = "SIZE", help_heading = "Caching")]
    pub memory_cache: Option<ByteSize>,
    /// Content on disk.
    #[command(flatten)]
    pub disk: DiskArgs,

    /// Let programs change the store through the mount
    #[arg(long, help_heading = "Writing", conflicts_with = "immutable")]
    pub rw: bool,
    /// Mount read-only even if the settings file has rw; read-only is the default
    #[arg(long, alias = "ro", help_heading = "Writing", conflicts_with = "rw")]
    pub read_only: bool,
    /// Whether a write may overwrite a record that has changed in the store since the file was
    /// opened [default: unchanged]
    #[arg(long, value_name = "WHEN", value_enum, help_heading = "Writing")]
    pub overwrite: Option<OverwriteArg>,
    /// Compress written files before storing them, where that makes them smaller
    #[arg(
        long,
        value_name = "ENCODING",
        value_enum,
        help_heading = "Writing",
        conflicts_with = "raw"
    )]
    pub compress: Option<CompressArg>,
    /// Names that stay in the mount and never become records, as a pattern with * and ?, besides
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
    /// close waits for the local disk only; the upload follows soon, also after a crash. fsync and
    /// `kvfs sync` wait for the store
    #[arg(long, help_heading = "Writing")]
    pub write_back: bool,
    /// How long unmounting waits for uploads [default: 30s]
    #[arg(long, value_name = "DURATION", value_parser = parse_duration, help_heading = "Writing")]
    pub unmount_timeout: Option<Duration>,
    /// The folder of written files until the store has them, and of those that the store refused
    /// [default: staging in kvfs in the user's state folder]
    #[arg(long, value_name = "DIR", help_heading = "Writing")]
    pub staging_dir: Option<PathBuf>,
    /// Most bytes in --staging-dir before writes fail with ENOSPC [default: what the disk can
    /// spare]
    #[arg(long, value_name = "SIZE", help_heading = "Writing")]
    pub staging_size: Option<ByteSize>,

    /// Show all files as this user's, by number or name [default: yours]
    #[arg(long, value_name = "UID", value_parser = user_id, help_heading = "Permissions")]
    pub uid: Option<u32>,
    /// Show all files as this group's, by number or name [default: yours]
    #[arg(long, value_name = "GID", value_parser = group_id, help_heading = "Permissions")]
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
    /// The source that mount(8) shows, as in fstab.
    #[arg(long, hide = true, value_name = "SOURCE")]
    pub fstab_source: Option<String>,
    /// Stay in the foreground and log to standard error
    #[arg(short, long, help_heading = "Running")]
    pub foreground: bool,
    /// Serve Prometheus metrics at this address, at /metrics; a port alone is open to this machine
    /// only
    #[arg(long, value_name = "ADDRESS", value_parser = metrics_address, help_heading = "Running")]
    pub metrics: Option<SocketAddr>,
    /// Log to this file [default: one for each mount point in the user's state folder]
    #[arg(long, value_name = "FILE", help_heading = "Running")]
    pub log_file: Option<PathBuf>,
    /// The format of log lines: text, or json with an object a line; in the systemd journal's own form
    /// if that is standard error [default: text]
    #[arg(long, value_name = "FORMAT", value_parser = log_format, help_heading = "Running")]
    pub log_format: Option<LogFormat>,
}

/// When a record may be overwritten.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum OverwriteArg {
    /// Only the version that was opened, where the server distinguishes versions
    Unchanged,
    /// Always: the last writer wins
    Always,
}

/// The encoding of written files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum CompressArg {
    /// Brotli
    Br,
    /// gzip
    Gzip,
}
