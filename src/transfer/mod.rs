//! Moving the bytes of a record from the store to its readers and into the cache folder.

pub mod connections;
pub mod download;
pub(crate) mod file;
pub mod fill;
pub mod prefix;
pub mod ranges;
mod state;
pub mod stream;
pub mod tools;
pub mod window;
