//! What the tests share.
#![allow(
    dead_code,
    missing_docs,
    reason = "each test binary uses a part of it, and its readers read the code"
)]

pub mod core;
pub mod scripted;
pub mod served;
