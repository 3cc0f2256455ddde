//! What several tests need.
#![allow(dead_code, missing_docs, reason = "each test binary uses its own part")]

pub mod core;
pub mod mounted;
pub mod scripted;
pub mod served;
pub mod storage;
