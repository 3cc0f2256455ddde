//! The command line as clap sees it: structs only, no I/O, no environment. Their doc comments
//! are the help texts.

use clap::{ArgAction, Args, Parser, Subcommand};

mod access;
mod copy;
mod direct;
mod machine;
mod mount;
mod mounted;
mod serve;
pub(super) mod values;

pub use access::{DiskArgs, StoreArgs};
pub use copy::{
    CopyArgs, DiffArgs, FilterArgs, StoresArgs, StoresCommand, StoresCreateArgs, StoresListArgs,
    StoresRemoveArgs,
};
pub use direct::{CatArgs, InfoArgs, LsArgs, PutArgs, RmArgs, ShareArgs};
pub use machine::{CompletionsArgs, ConfigArgs, DaemonArgs, DemoArgs, DoctorArgs, ManArgs};
pub use mount::{CompressArg, MountArgs, OverwriteArg};
pub use mounted::{
    CacheArgs, CacheClearArgs, CacheCommand, CacheInfoArgs, RecoverArgs, RefreshArgs, StatusArgs,
    SyncArgs, TraceArgs, UnmountArgs, WarmArgs,
};
pub use serve::ServeArgs;

/// Mounts Apify key-value stores as directories: every record is a file
#[derive(Debug, Parser)]
#[command(name = "kvfs", version, max_term_width = 80, propagate_version = true)]
#[command(arg_required_else_help = true)]
pub struct Cli {
    /// The command.
    #[command(subcommand)]
    pub command: Command,
    /// Options of every command.
    #[command(flatten)]
    pub global: GlobalArgs,
}

/// Options of every command.
#[derive(Clone, Copy, Debug, Args)]
pub struct GlobalArgs {
    /// Log requests (-v), and filesystem operations too (-vv)
    #[arg(short, long, global = true, action = ArgAction::Count, display_order = 900)]
    pub verbose: u8,
    /// Print and log only warnings and errors
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
    /// Unmount a store; waits for uploads first
    #[command(visible_alias = "umount")]
    Unmount(UnmountArgs),
    /// Show mounts and their latest errors
    ///
    /// Exits with 3 if a mount is dead or does not answer.
    Status(StatusArgs),
    /// Wait until the store has every file closed on a mount
    Sync(SyncArgs),
    /// List, upload or drop files that are not in their store yet
    ///
    /// These are files that a mount with --write-back had no time to upload, and files that the
    /// store refused. Works with and without a mount of the store; a mount resumes interrupted
    /// uploads by itself.
    Recover(RecoverArgs),
    /// Fetch files into the cache, with progress
    ///
    /// The daemon fetches at its lowest priority and within the limits of the API. It skips files
    /// that are cached and fresh, so the same command resumes where an earlier one ended. Exits
    /// with 1 if something did not fit into the cache or could not be fetched.
    Warm(WarmArgs),
    /// Drop a mount's caches, including the kernel's
    ///
    /// Asks the store for nothing; the next open of a file does.
    Refresh(RefreshArgs),
    /// Show or empty the disk cache, also of unmounted stores
    Cache(CacheArgs),
    /// Show the file operations on a mount, live
    ///
    /// Each operation with its time, its result, and the source of the answer: the kernel (its pages are
    /// still right), memory, prefetch (fetched ahead of a scan), disk, or the network.
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
    /// Show the metadata of a store or a record
    Info(InfoArgs),
    /// Copy a whole store, to and from folders too, without a mount
    ///
    /// Copies records as they are stored, many at once, within the limits of the API. Skips records that
    /// are the same in both: stored sizes decide, and what earlier copies remember together with the
    /// store's clock; else both are read. Resumes after an interruption. Failures do not stop it: it exits
    /// with 1 and names the records it could not copy.
    Copy(Box<CopyArgs>),
    /// Compare two stores, runs or folders
    ///
    /// Exits with 1 if they differ, with 3 if something could not be compared.
    Diff(Box<DiffArgs>),
    /// List, make and delete stores
    Stores(Box<StoresArgs>),
    /// Make a link that lets anyone read a store or a record
    ///
    /// The link is signed on this machine with the store's own key, which the API shows only to
    /// accounts that may write to the store. It works without an account.
    Share(ShareArgs),
    /// Find out what keeps mounts from working
    ///
    /// Checks the machine, the settings, the mounts and the API; with STORE also whether that store
    /// can be used. Every finding comes with its fix. Exits with 3 if a check failed; warnings do not
    /// count.
    Doctor(DoctorArgs),
    /// Show the settings, and where each comes from
    ///
    /// Each comes from a flag, else from the environment, else from the settings file, else it is
    /// the default. The settings of a named store, as in `kvfs mount @prod /mnt`, count as flags.
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

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
