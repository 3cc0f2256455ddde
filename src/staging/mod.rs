//! Written bytes that are not in the store yet: staging files and the journal of pending uploads.
//!
//! On disk, below the staging folder, all of it ours, folders 0700 and files 0600:
//!
//! ```text
//! kvfs-1/<scope>/store.json             which store this is, for `kvfs recover`
//! kvfs-1/<scope>/<owner>/lock           held with flock while the owner (a daemon) lives
//! kvfs-1/<scope>/<owner>/<id>.data      the bytes of a pending upload
//! kvfs-1/<scope>/<owner>/<id>.json      what they are; there is an entry if this is there
//! kvfs-1/<scope>/damaged/<id>.*         entries that do not check out, kept for a person to see
//! ```
//!
//! The scope is a hash of server and store. An entry is written data first,
//! both files and then the folder fsynced; it is removed `.json` first. So whatever a crash leaves,
//! each entry is there whole or not at all: a `.data` alone was never promised to a program, or is
//! in the store. Staging files have no name at all and go with their process.
//!
//! INVARIANT: a process that uploads, changes or removes an entry holds its owner's lock. `kvfs
//! recover` asks a living owner to do it, and takes over from dead ones as the next mount does.

pub mod adopted;
pub mod budget;
pub mod entry;
pub mod file;
pub mod folder;
pub mod journal;
mod own;
pub mod owner;
pub mod report;
pub mod unanswered;

pub use entry::{EntryId, Pending, Why};
pub use folder::{StagingConfig, StagingFolder};
pub use journal::{Journal, JournalEntry};
pub use unanswered::{Began, Unanswered, UnansweredUploads};

/// Our sub-folder of the staging folder; the number is the format's version.
pub const FOLDER: &str = "kvfs-1";
