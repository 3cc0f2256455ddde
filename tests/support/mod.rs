//! What several test programs use.

#[allow(dead_code, reason = "not every test program uses all of it")]
pub mod scripted;
