//! What can be seen of a mount at work: how long operations take ([`latency`]), where their
//! answers come from ([`origin`]), each of them live ([`trace`]), and transfers under way
//! ([`transfers`]). The counters of [`crate::metrics`] hold one of each.

pub mod latency;
pub mod origin;
pub mod trace;
pub mod transfers;
