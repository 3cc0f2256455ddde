//! A server that does everything wrong that a server, a gateway or a line can do wrong, one thing of
//! each kind at a time: every pair of wrongs here, every combination in `scripts/long`.
//!
//! Whatever it does, a read ends with the bytes of one version or an error that the log explains, a
//! listing is complete or an error, and no system call outlives the deadline.

mod listings;
mod long;
mod pairs;
mod records;
pub mod server;
