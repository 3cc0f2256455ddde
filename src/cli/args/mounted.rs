//! The arguments of the commands about mounts that there are, and what these have left.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::values::positive_duration;
use crate::base::units::parse_duration;

/// The arguments of `kvfs unmount`.
#[derive(Debug, Args)]
pub struct UnmountArgs {
    /// Where it is mounted; or @NAME of the settings file
    #[arg(value_name = "MOUNTPOINT", required_unless_present = "all")]
    pub mountpoints: Vec<PathBuf>,
    /// Unmount everything that `kvfs status` knows of this login session
    #[arg(long, conflicts_with = "mountpoints")]
    pub all: bool,
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
    /// Show only these mounts, in detail; or @NAME of the settings file
    #[arg(value_name = "MOUNTPOINT")]
    pub mountpoints: Vec<PathBuf>,
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
    /// Where the store is mounted; or @NAME of the settings file
    #[arg(value_name = "MOUNTPOINT", required_unless_present = "all")]
    pub mountpoints: Vec<PathBuf>,
    /// Wait for everything that is mounted in this login session
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
    /// List what is not in its store (the default)
    #[arg(long, conflicts_with_all = ["upload", "discard"])]
    pub list: bool,
    /// Upload it; what somebody else's change is in the way of only if its ID is given: it overwrites that
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
    /// Send the token over http:// to other machines, too; anybody on the way can read it
    #[arg(long)]
    pub insecure_http: bool,
    /// With --upload: the longest that the uploads to one store may take [default: 10m]
    #[arg(long, value_name = "DURATION", value_parser = positive_duration)]
    pub timeout: Option<Duration>,
}

/// The arguments of `kvfs warm`.
#[derive(Debug, Args)]
pub struct WarmArgs {
    /// Where it is mounted; or @NAME of the settings file
    pub mountpoint: PathBuf,
    /// What names begin with, a pattern such as '*.json', or files in the mount; - takes names from
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
    /// Where it is mounted; or @NAME of the settings file
    pub mountpoint: PathBuf,
    /// Forget only these files, by name or path [default: all]
    #[arg(value_name = "FILE")]
    pub names: Vec<String>,
    /// Print a JSON object
    #[arg(long)]
    pub json: bool,
}

/// The arguments of `kvfs trace`.
#[derive(Debug, Args)]
pub struct TraceArgs {
    /// Where it is mounted; or @NAME of the settings file
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
