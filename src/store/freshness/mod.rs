//! The store clock: which contents are still current where records have no validators.
//!
//! The platform gives a record neither an entity tag nor a time, but it says when the store last
//! changed (`modifiedAt`). So one question about the store answers for all its records: what was read
//! from the store after its last change is what the store still has. The clock is trusted only as far
//! as it has earned it ([`Trust`]); observed changes contradict it.
//!
//! Everything here is arithmetic: no request, no disk, no time but what is handed in. All times are
//! the server's ([`Span`] says how well they are known), never this machine's.

use std::time::{Duration, SystemTime};

mod clock;
mod own;
mod server_time;
mod span;

#[cfg(test)]
mod tests;

pub use clock::{Remembered, StoreClock, Trust};
pub use server_time::ServerTime;
pub use span::Span;

/// How much later than a write `modifiedAt` may tell of it, unless something else is said: the
/// platform's takes 5 to 10 seconds, as far as is known.
pub const USUAL_LAG: Duration = Duration::from_secs(15);

/// What a server says of a store as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoreState {
    /// When the store was last changed (`modifiedAt`).
    pub modified: SystemTime,
    /// When the store was made, where the server tells.
    pub created: Option<SystemTime>,
    /// How many records were ever stored and deleted, where the server counts.
    pub changes: Option<u64>,
}

/// How far this machine's clock may be wrong, where the server does not tell the time.
const OWN_MARGIN: Duration = Duration::from_secs(120);

/// Returns the server's time of something that began `ago` before now; `server` is the time there
/// now, as far as it is known, and `here` this machine's.
pub fn moment(server: Option<Span>, ago: Duration, here: SystemTime) -> Span {
    server
        .unwrap_or_else(|| Span::around(here, OWN_MARGIN))
        .begun(ago)
}
