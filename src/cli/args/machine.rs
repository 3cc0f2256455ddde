//! The arguments of the commands about this machine and kvfs itself.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::Args;

use super::{DiskArgs, StoreArgs};

/// The arguments of `kvfs doctor`.
#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// The store, as for `kvfs mount`
    pub store: Option<String>,
    /// Print a JSON object
    #[arg(long)]
    pub json: bool,
    /// Also store a record, wait until the store tells of the change, up to two minutes, and delete it
    #[arg(long, requires = "store")]
    pub scratch_record: bool,
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
    /// Show the settings of this named store
    #[arg(value_name = "@NAME")]
    pub store: Option<String>,
    /// Print a JSON object
    #[arg(long)]
    pub json: bool,
    /// Read this settings file [default: kvfs/config.toml in the user's config folder]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
}

/// The arguments of `kvfs completions`.
#[derive(Debug, Args)]
pub struct CompletionsArgs {
    /// The shell
    pub shell: clap_complete::Shell,
}

/// The arguments of `kvfs man`.
#[derive(Debug, Args)]
pub struct ManArgs {
    /// Write a page for each command into this folder; made if it is missing
    pub dir: PathBuf,
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

/// Shown in the list of processes for the background process.
#[derive(Debug, Args)]
pub struct DaemonArgs {
    /// The store and the mount point; the order on standard input counts.
    pub shown: Vec<OsString>,
}
