//! What several tests need.
#![allow(dead_code, missing_docs, reason = "each test binary uses its own part")]

use std::cell::Cell;
use std::time::Instant;

use proptest::prelude::{ProptestConfig, Strategy};
use proptest::test_runner::{TestCaseResult, TestRunner};

pub mod core;
pub mod fake_s3;
pub mod hanging;
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

/// Returns the numbers of the cases of a long run, of `all`: those of the share that `KVFS_TEST_SHARE`
/// names, else all. In no order.
#[expect(
    clippy::disallowed_methods,
    reason = "how tests are run is no setting of kvfs"
)]
pub fn share(all: usize) -> Vec<usize> {
    let share = std::env::var("KVFS_TEST_SHARE").unwrap_or("1/1".into());
    let (which, of) = share.split_once('/').expect("KVFS_TEST_SHARE=3/20");
    let number = |text: &str| text.parse::<usize>().expect("KVFS_TEST_SHARE=3/20");
    let (which, of) = (number(which), number(of));
    assert!((1..=of).contains(&which), "there is no share {share}");
    let mut numbers: Vec<usize> = (0..all).collect();
    fastrand::Rng::with_seed(7).shuffle(&mut numbers);
    numbers[all * (which - 1) / of..all * which / of].to_vec()
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

/// Runs a property test, of a sequence of operations besides other things, until so many
/// operations have been tried: `usual`, or `thorough` where there is [time](long). Says how many
/// it were.
#[expect(clippy::print_stdout, reason = "`scripts/long` shows what tests say")]
pub fn operations<S: Strategy>(
    what: &str,
    (usual, thorough): (usize, usize),
    strategy: S,
    config: &ProptestConfig,
    length: impl Fn(&S::Value) -> usize,
    test: impl Fn(S::Value) -> TestCaseResult,
) {
    let (wanted, start) = (if long() { thorough } else { usual }, Instant::now());
    let count = Cell::new(0);
    // Sequences of a failure that is being simplified count too; then it is of no interest.
    while count.get() < wanted {
        let config = ProptestConfig {
            cases: 8,
            ..config.clone()
        };
        let ran = TestRunner::new(config).run(&strategy, |value| {
            count.set(count.get() + length(&value));
            test(value)
        });
        if let Err(error) = ran {
            panic!("{error}");
        }
    }
    println!(
        "{what}: {} operations, {:.0?}",
        count.get(),
        start.elapsed()
    );
}
