//! Long runs: all cases there are, in an order that makes any part of it a sample of the whole, and in
//! shares, so that several machines or nights can have them.
//!
//! `KVFS_TEST_LONG=1` runs all of them; `KVFS_TEST_SHARE=3/20`, the third of twenty equal shares.
#![allow(clippy::print_stdout, reason = "says how much was tried")]

use std::fmt;

/// What came of cases.
#[derive(Default)]
pub struct Outcome {
    pub cases: usize,
    /// How many of them ended with what was read, rather than with an error.
    pub good: usize,
    /// What was wrong with which others.
    pub wrong: Vec<(usize, String)>,
}

impl Outcome {
    /// Adds what came of others. What took too long has another try without company: on a busy machine
    /// a few seconds are nothing.
    pub fn add(&mut self, mut more: Self, alone: impl Fn(usize) -> Self) {
        let late = more
            .wrong
            .extract_if(.., |(_, found)| found.contains("ETIMEDOUT"));
        let late: Vec<_> = late.collect();
        for (case, _) in late {
            let again = alone(case);
            more.good += again.good;
            more.wrong.extend(again.wrong);
        }
        for (_, found) in &more.wrong {
            println!("wrong: {found}");
        }
        self.cases += more.cases;
        self.good += more.good;
        self.wrong.extend(more.wrong);
    }

    fn first_wrong(&self) -> Vec<&str> {
        let found = self.wrong.iter().map(|(_, found)| found.as_str());
        found.take(20).collect()
    }

    /// Ends the test: nothing may be wrong.
    pub fn end(self, with: &str) {
        assert!(
            self.wrong.is_empty(),
            "{} of {} cases:\n{}",
            self.wrong.len(),
            self.cases,
            self.first_wrong().join("\n")
        );
        println!("{} cases, {} of them with {with}", self.cases, self.good);
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} read, {} wrong", self.good, self.wrong.len())
    }
}
