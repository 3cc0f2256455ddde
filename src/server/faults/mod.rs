//! Faults on purpose: which answers fail (`rule`), and how their bodies break (`body`).

use axum::http::Method;
use fastrand::Rng;
use parking_lot::Mutex;

mod body;
mod rule;

pub use rule::{FaultAction, FaultRule};

pub(super) use body::BodyFault;

use super::routes::Route;

/// The rules of a server, with what they have done so far.
#[derive(Debug)]
pub(super) struct Faults(Vec<(FaultRule, Mutex<Progress>)>);

#[derive(Debug)]
struct Progress {
    rng: Rng,
    /// Requests that the rule was about.
    seen: u64,
    /// Those that it broke.
    broken: u64,
}

impl Faults {
    pub(super) fn new(rules: &[FaultRule]) -> Self {
        let progress = |rule: &FaultRule| Progress {
            rng: Rng::with_seed(rule.seed),
            seen: 0,
            broken: 0,
        };
        Self(
            rules
                .iter()
                .map(|rule| (rule.clone(), Mutex::new(progress(rule))))
                .collect(),
        )
    }

    /// Decides whether this request goes wrong: the first rule that says so wins.
    pub(super) fn decide(&self, method: &Method, route: &Route) -> Option<FaultAction> {
        self.0
            .iter()
            .filter(|(rule, _)| rule.is_about(method, route))
            .find(|(rule, progress)| {
                let mut progress = progress.lock();
                let Progress { rng, seen, broken } = &mut *progress;
                *seen += 1;
                let due = *seen > rule.skip
                    && rule.count.is_none_or(|count| *broken < count)
                    && (rule.probability >= 1.0 || rng.f64() < rule.probability);
                *broken += u64::from(due);
                due
            })
            .map(|(rule, _)| rule.action)
    }
}
