//! The arguments of the commands about existing mounts and the files they have left to upload.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};

use super::values::positive_duration;
use crate::base::units::parse_duration;

/// The arguments of `kvfs unmount`.
#[derive(Debug, Args)]
pub struct UnmountArgs {
    /// The mount point, or @NAME of the settings file
    #[arg(value_name = "MOUNTPOINT", required_unless_present = "all")]
    pub mountpoints: Vec<PathBuf>,
    /// Unmount all mounts that `kvfs status` lists
    #[arg(long, conflicts_with = "mountpoints")]
    pub all: bool,
    /// End the mount at once, even if it hangs; operations under way fail
    #[arg(long, conflicts_with = "lazy")]
    pub force: bool,
    /// Take the mount out of the tree at once; open files stay usable until closed
    #[arg(long)]
    pub lazy: bool,
}

/// The arguments of `kvfs status`.
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// Show only these mounts, in detail; or @NAME of the settings file
    #[arg(value_name = "MOUNTPOINT")]
    pub mountpoints: Vec<PathBuf>,
    /// Update every second, full screen or, without a terminal, a line each; q or Ctrl-C ends
    #[arg(long, short)]
    pub watch: bool,
    /// Print a JSON array with an object for each mount; with --watch, an object a line
    #[arg(long)]
    pub json: bool,
}

/// The arguments of `kvfs sync`.
#[derive(Debug, Args)]
pub struct SyncArgs {
    /// The mount point, or @NAME of the settings file
    #[arg(value_name = "MOUNTPOINT", required_unless_present = "all")]
    pub mountpoints: Vec<PathBuf>,
    /// Wait for all mounts of this login session
    #[arg(long, conflicts_with = "mountpoints")]
    pub all: bool,
    /// The longest wait [default: 10m]
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub timeout: Option<Duration>,
    /// Print a JSON array with an object for each mount
    #[arg(long)]
    pub json: bool,
}

/// The arguments of `kvfs recover`.
#[derive(Debug, Args)]
pub struct RecoverArgs {
    /// Only these, by id or key [default: everything]
    #[arg(value_name = "ID or KEY")]
    pub wanted: Vec<String>,
    /// List files that are not in their store (the default)
    #[arg(long, conflicts_with_all = ["upload", "discard"])]
    pub list: bool,
    /// Upload them; a file that conflicts with a newer record only if its ID is given, and then it
    /// overwrites the record
    #[arg(long, conflicts_with = "discard")]
    pub upload: bool,
    /// Drop them for good
    #[arg(long)]
    pub discard: bool,
    /// With --discard: everything
    #[arg(long, requires = "discard")]
    pub all: bool,
    /// Print a JSON array with an object for each
    #[arg(long, conflicts_with_all = ["upload", "discard"])]
    pub json: bool,
    /// The staging folder of the mounts [default: KVFS_STAGING_DIR, else kvfs/staging in the user's
    /// state folder]
    #[arg(long, value_name = "DIR")]
    pub staging_dir: Option<PathBuf>,
    /// Read the API token from this file
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// Send the token over http:// to other machines, too; others on the way can read it
    #[arg(long)]
    pub insecure_http: bool,
    /// With --upload: the longest that the uploads to one store may take [default: 10m]
    #[arg(long, value_name = "DURATION", value_parser = positive_duration)]
    pub timeout: Option<Duration>,
}

/// The arguments of `kvfs warm`.
#[derive(Debug, Args)]
pub struct WarmArgs {
    /// The mount point, or @NAME of the settings file
    pub mountpoint: PathBuf,
    /// A prefix of names, a pattern such as '*.json', or files in the mount; - reads names from
    /// standard input
    #[arg(value_name = "PREFIX|PATTERN|FILE|-")]
    pub what: Vec<String>,
    /// Print a JSON object at the end
    #[arg(long)]
    pub json: bool,
}

/// The arguments of `kvfs refresh`.
#[derive(Debug, Args)]
pub struct RefreshArgs {
    /// The mount point, or @NAME of the settings file
    pub mountpoint: PathBuf,
    /// Drop only these files, by name or path [default: all]
    #[arg(value_name = "FILE")]
    pub names: Vec<String>,
    /// Print a JSON object
    #[arg(long)]
    pub json: bool,
}

/// The arguments of `kvfs trace`.
#[derive(Debug, Args)]
pub struct TraceArgs {
    /// The mount point, or @NAME of the settings file
    pub mountpoint: PathBuf,
    /// Print totals by operation and by file at the end
    #[arg(long)]
    pub summary: bool,
    /// End after this time [default: with Ctrl-C]
    #[arg(long = "for", value_name = "DURATION", value_parser = positive_duration)]
    pub span: Option<Duration>,
    /// Print a JSON object a line
    #[arg(long)]
    pub json: bool,
}

/// The arguments of `kvfs cache`.
#[derive(Debug, Args)]
pub struct CacheArgs {
    /// What is to be done.
    #[command(subcommand)]
    pub command: CacheCommand,
}

/// What `kvfs cache` does.
#[derive(Debug, Subcommand)]
pub enum CacheCommand {
    /// Show where the cache is and what each store takes in it
    Info(CacheInfoArgs),
    /// Remove what is cached; mounts fetch again what they need
    Clear(CacheClearArgs),
}

/// The arguments of `kvfs cache info`.
#[derive(Debug, Args)]
pub struct CacheInfoArgs {
    /// The folder [default: that of mounts]
    #[arg(long, value_name = "DIR")]
    pub cache_dir: Option<PathBuf>,
    /// Print a JSON object for each store
    #[arg(long)]
    pub json: bool,
}

/// The arguments of `kvfs cache clear`.
#[derive(Debug, Args)]
pub struct CacheClearArgs {
    /// Only what belongs to these stores, by id [default: all stores]
    #[arg(value_name = "ID")]
    pub stores: Vec<String>,
    /// The folder [default: that of mounts]
    #[arg(long, value_name = "DIR")]
    pub cache_dir: Option<PathBuf>,
}
