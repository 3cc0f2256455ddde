//! Locks, threads and the monotonic time, for code with explored schedules.
//!
//! Normally these are those of `parking_lot` and the standard library, under their own names. With
//! the feature `shuttle` they are [shuttle's](https://docs.rs/shuttle): one thread runs at a time,
//! chosen again wherever threads can affect each other, so that a test tries thousands of schedules
//! and can repeat each one. Such a build works only inside `explore`.

#[cfg(not(feature = "shuttle"))]
mod system;
#[cfg(not(feature = "shuttle"))]
pub use system::{Condvar, Mutex, MutexGuard, atomic, now, point, since_boot, thread, time_asleep};

#[cfg(feature = "shuttle")]
pub mod explore;
#[cfg(feature = "shuttle")]
mod explored;
#[cfg(feature = "shuttle")]
mod time;
#[cfg(feature = "shuttle")]
pub use explored::{Condvar, Mutex, MutexGuard, WaitTimeoutResult, atomic, point, thread};
#[cfg(feature = "shuttle")]
pub use time::{now, since_boot, time_asleep};
