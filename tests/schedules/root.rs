//! Parts in which threads wait for each other, under thousands of schedules each.
//!
//! `scripts/schedules` runs this; see `src/base/sync/explore.rs`. A failure prints the test's name, the
//! kind of schedule and its seed: `KVFS_SCHEDULE=SEED scripts/schedules NAME` tries that first.

mod budget;
mod cache;
mod download;
mod prefetch;
mod stage;
mod upload;

use kvfs::base::sync::explore::{self, Plan};

/// Explores `schedules` schedules of a test: `KVFS_SCHEDULES` times as many in the long form, from
/// the seed `KVFS_SCHEDULE` on.
#[expect(
    clippy::disallowed_methods,
    reason = "how tests are run is no setting of kvfs"
)]
fn explore(
    name: &'static str,
    schedules: usize,
    hurry: u32,
    test: impl Fn() + Send + Sync + Clone + 'static,
) {
    let number = |name: &str| std::env::var(name).ok()?.parse::<u64>().ok();
    let plan = Plan {
        name,
        schedules: schedules * number("KVFS_SCHEDULES").unwrap_or(1) as usize,
        hurry,
        seed: number("KVFS_SCHEDULE").unwrap_or(1),
    };
    explore::explore(plan, test);
}

/// There is nothing to run but the tests.
#[cfg(not(test))]
fn main() {}
