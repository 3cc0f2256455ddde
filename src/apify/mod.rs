//! The Apify API as a store.

pub mod endpoint;
pub mod errors;
pub mod limit;
pub mod retry;
pub mod token;
pub mod wire;
