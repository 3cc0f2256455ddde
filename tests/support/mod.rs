//! What several tests need.
#![allow(dead_code, missing_docs, reason = "each test binary uses its own part")]

pub mod core;
pub mod mounted;
pub mod scripted;
pub mod served;
pub mod storage;
pub mod terminal;
pub mod tls;

/// Tells whether there is time for runs that take minutes: `KVFS_TEST_LONG` is set, as
/// `scripts/long` does.
#[expect(
    clippy::disallowed_methods,
    reason = "how tests are run is no setting of kvfs"
)]
pub fn long() -> bool {
    std::env::var_os("KVFS_TEST_LONG").is_some()
}

/// Returns how many cases of a random test to run: as many as `PROPTEST_CASES` says, else `many`
/// where there is time for that, else `few`.
#[expect(
    clippy::disallowed_methods,
    reason = "how tests are run is no setting of kvfs"
)]
pub fn cases(few: u32, many: u32) -> u32 {
    let said = std::env::var("PROPTEST_CASES").ok();
    let said = said.map(|said| said.parse().expect("a number as PROPTEST_CASES"));
    said.unwrap_or(if long() { many } else { few })
}
