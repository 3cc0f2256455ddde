//! The arguments of the commands that use a store without a mount.

use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgAction, Args};

use super::values::positive_duration;
use super::{DiskArgs, StoreArgs};
use crate::base::units::ByteSize;

/// The arguments of `kvfs ls`.
#[derive(Debug, Args)]
#[command(disable_help_flag = true)]
pub struct LsArgs {
    /// The store, as for `kvfs mount`; or a mount point, or a file in one
    pub store: String,
    /// List only these keys, or those that match patterns with *, ?, [...] and {a,b}
    #[arg(value_name = "KEY|PATTERN")]
    pub keys: Vec<String>,
    /// Show stored size, time, type and encoding too; costs a request for each record
    #[arg(short, long)]
    pub long: bool,
    /// Show sizes as people read them, such as 1.2 MiB
    #[arg(short = 'h', long)]
    pub human_readable: bool,
    /// Print a JSON object a line
    #[arg(long)]
    pub json: bool,
    /// List only keys that begin with PREFIX
    #[arg(long, value_name = "PREFIX")]
    pub prefix: Option<String>,
    /// List only keys of this collection of the store's schema
    #[arg(long, value_name = "NAME")]
    pub collection: Option<String>,
    /// List at most this many
    #[arg(long, value_name = "NUMBER")]
    pub limit: Option<u64>,
    /// Print help
    #[arg(long, action = ArgAction::Help, display_order = 902)]
    pub help: Option<bool>,
    /// How the store is opened.
    #[command(flatten)]
    pub access: StoreArgs,
}

/// The arguments of `kvfs cat`.
#[derive(Debug, Args)]
pub struct CatArgs {
    /// The store, as for `kvfs mount`; or a mount point, or a file in one
    pub store: String,
    /// The records, printed one after the other, by key or by patterns with *, ?, [...] and {a,b}
    #[arg(value_name = "KEY|PATTERN")]
    pub keys: Vec<String>,
    /// Print records as they are stored, compressed ones compressed
    #[arg(long)]
    pub raw: bool,
    /// The largest content that a record is decoded to [default: 64MiB, or 1100 times what is stored]
    #[arg(long, value_name = "SIZE", conflicts_with = "raw")]
    pub max_content_size: Option<ByteSize>,
    /// Poll the record and print what is added; print a replaced record from its start. Ends with
    /// Ctrl-C
    #[arg(long, short)]
    pub follow: bool,
    /// The polling interval of --follow
    #[arg(long, value_name = "DURATION", value_parser = positive_duration, default_value = "2s", requires = "follow")]
    pub interval: Duration,
    /// Print binary content even to a terminal
    #[arg(long)]
    pub binary: bool,
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
    /// The store, as for `kvfs mount`; or a mount point
    pub store: String,
    /// The record; one that exists is replaced
    pub key: String,
    /// The file to store [default: standard input]
    pub file: Option<PathBuf>,
    /// The content's type [default: by the key's or file's extension, else by the bytes]
    #[arg(long, value_name = "TYPE")]
    pub content_type: Option<String>,
    /// The encoding that the bytes already have: gzip, br or deflate
    #[arg(long, value_name = "ENCODING")]
    pub content_encoding: Option<String>,
    /// Store nothing if there is such a record; it is asked for first
    #[arg(long, conflicts_with = "if_match")]
    pub if_absent: bool,
    /// Store nothing unless this is the record's entity tag, as `kvfs info` shows it; an error where
    /// the server has none, as the platform
    #[arg(long, value_name = "ETAG")]
    pub if_match: Option<String>,
    /// Print a JSON object about the new record
    #[arg(long)]
    pub json: bool,
    /// How the store is opened.
    #[command(flatten)]
    pub access: StoreArgs,
}

/// The arguments of `kvfs rm`.
#[derive(Debug, Args)]
pub struct RmArgs {
    /// The store, as for `kvfs mount`; or a mount point, or a file in one
    pub store: String,
    /// The records, by key or by patterns with *, ?, [...] and {a,b}
    #[arg(value_name = "KEY|PATTERN")]
    pub keys: Vec<String>,
    /// Delete all records with keys that begin with PREFIX
    #[arg(long, value_name = "PREFIX")]
    pub prefix: Option<String>,
    /// Only print what would be deleted
    #[arg(short = 'n', long)]
    pub dry_run: bool,
    /// Ignore records that do not exist
    #[arg(short, long)]
    pub force: bool,
    /// Print a JSON object a line
    #[arg(long)]
    pub json: bool,
    /// How the store is opened.
    #[command(flatten)]
    pub access: StoreArgs,
}

/// The arguments of `kvfs info`.
#[derive(Debug, Args)]
pub struct InfoArgs {
    /// The store, as for `kvfs mount`; or a mount point, or a file in one
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

/// The arguments of `kvfs share`.
#[derive(Debug, Args)]
pub struct ShareArgs {
    /// The store, as for `kvfs mount`; or a mount point, or a file in one
    pub store: String,
    /// The record; without one, the whole store is shared
    pub key: Option<String>,
    /// How long the link to a store stays valid, such as 7d [default: for ever]
    ///
    /// On the platform, links to single records do not expire.
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
