//! Decides how many connections a download uses. Pure.
//!
//! It begins with one. If that is slow, it adds more, as long as they make the whole faster:
//! several help against a limit on each connection, but not on a full link.

use std::time::{Duration, Instant};

use crate::base::units::MIB;

/// The most connections for one record.
const MOST: usize = 10;
/// The number tried when one connection is slow.
const SECOND: usize = 4;
/// Bytes a second at which one connection is good enough.
const FAST: f64 = 32e6;
/// How long the speed is measured, at least.
const SPAN: Duration = Duration::from_millis(120);
/// How long new connections are given to come up to speed before that.
const WARM_UP: Duration = Duration::from_millis(180);
/// The speed must have grown by this factor to keep more connections.
const GAIN: f64 = 1.3;
/// How long one connection should be busy with one part.
const PART_SECONDS: f64 = 0.5;
/// The least and the most bytes of such a part.
const PART: (u64, u64) = (MIB, 8 * MIB);

/// The course of a download's speed.
#[derive(Debug)]
pub struct Pace {
    target: usize,
    before: usize,
    /// The speed with `before` connections, then with `target`, in bytes a second.
    rate: f64,
    settled: bool,
    sample: Option<(Instant, u64)>,
    warm: Option<Instant>,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            target: 1,
            before: 1,
            rate: 0.0,
            settled: false,
            sample: None,
            warm: None,
        }
    }
}

impl Pace {
    /// Returns how many connections there should be.
    pub fn target(&self) -> usize {
        self.target
    }

    /// Drops the measurements since the last decision: no reader wanted more bytes.
    pub fn pause(&mut self) {
        self.sample = None;
    }

    /// Goes back to one connection for good, after one failed.
    pub fn give_up(&mut self) {
        self.target = 1;
        self.settled = true;
    }

    /// Notes that `total` bytes have arrived until `now`, over `active` connections.
    pub fn step(&mut self, now: Instant, total: u64, active: usize) {
        if self.settled || self.warm.is_some_and(|warm| now < warm) {
            return;
        }
        let (since, before) = match self.sample {
            Some(sample) if active >= self.target => sample,
            _ => {
                self.sample = Some((now, total));
                return;
            }
        };
        let span = now.saturating_duration_since(since);
        if span < SPAN {
            return;
        }
        let rate = total.saturating_sub(before) as f64 / span.as_secs_f64();
        self.sample = None;
        if self.target == 1 {
            self.settled = rate >= FAST;
        } else if rate < self.rate * GAIN {
            self.target = self.before;
            self.settled = true;
        } else {
            self.settled = self.target == MOST;
        }
        if self.settled {
            return;
        }
        self.rate = rate;
        self.before = self.target;
        self.target = if self.target == 1 { SECOND } else { MOST };
        self.warm = Some(now + WARM_UP);
    }

    /// Returns the size of the next part, of `left` bytes that no connection fetches yet.
    pub fn part(&self, left: u64) -> u64 {
        let busy = self.rate / self.before as f64 * PART_SECONDS;
        // Towards the end parts become smaller, so that all connections end at about one time.
        let share = left / self.target.max(1) as u64;
        (busy as u64).clamp(PART.0, PART.1).min(share).max(PART.0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Runs a download of 256 MiB over connections of `each` bytes a second, `all` together;
    /// returns the numbers of connections it had, without repetitions.
    fn course(each: f64, all: f64) -> Vec<usize> {
        let (mut pace, start) = (Pace::default(), Instant::now());
        let (mut total, mut at, mut seen) = (0.0, Duration::ZERO, vec![1]);
        while total < (256 << 20) as f64 {
            let step = Duration::from_millis(10);
            total += (each * pace.target() as f64).min(all) * step.as_secs_f64();
            at += step;
            pace.step(start + at, total as u64, pace.target());
            if seen.last() != Some(&pace.target()) {
                seen.push(pace.target());
            }
        }
        seen
    }

    #[test]
    fn slow_connections_are_added_while_that_pays() {
        assert_eq!(course(12.5e6, 1e12), [1, 4, 10]);
        assert_eq!(course(1e9, 1e12), [1], "fast enough");
        assert_eq!(course(5e6, 5e6), [1, 4, 1], "the link is full");
        assert_eq!(course(12.5e6, 60e6), [1, 4, 10, 4], "full with four");
    }

    #[test]
    fn pauses_are_not_taken_for_slowness() {
        let (mut pace, start) = (Pace::default(), Instant::now());
        for i in 0..100u32 {
            pace.step(start + SPAN * i, u64::from(i), 1);
            pace.pause();
        }
        assert_eq!(pace.target(), 1);
    }

    proptest! {
        #[test]
        fn numbers_and_parts_stay_within_their_bounds(
            steps in proptest::collection::vec((0u64..500, 0u64..50_000_000, 0usize..12), 0..60),
            left in 0u64..1 << 40,
        ) {
            let (mut pace, mut now, mut total) = (Pace::default(), Instant::now(), 0);
            for (ms, bytes, active) in steps {
                now += Duration::from_millis(ms);
                total += bytes;
                pace.step(now, total, active);
                prop_assert!((1..=MOST).contains(&pace.target()));
                prop_assert!((PART.0..=PART.1).contains(&pace.part(left)));
            }
        }
    }
}
