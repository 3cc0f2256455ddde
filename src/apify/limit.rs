//! How many requests may be in flight, and how many may begin each second.
//!
//! The cap on requests in flight always holds. The rates hold once the server is known to limit:
//! it is the platform, it sent `X-RateLimit-Limit`, or it answered 429. In no second do more
//! requests begin than the server's limit: nine tenths of it flow steadily, one tenth may come
//! at once.
//!
//! Locks: none is held while waiting, and no two at a time.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::clock::Deadline;
use crate::store::Priority;

/// Requests in flight at once; hundreds more only queue at the server.
pub const MAX_IN_FLIGHT: usize = 64;

/// Of these, the ones that only requests somebody waits for may use.
const FOREGROUND_ONLY: usize = 8;

/// The share of the limit that flows steadily; the rest is the burst.
const STEADY_SHARE: f64 = 0.9;

/// The API's limits by endpoint (documentation, section Rate limiting).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Budget {
    /// Getting, storing, deleting one record: 200 requests a second for a store.
    Records,
    /// A record's metadata: not documented, so counted apart, as 60 requests a second.
    Heads,
    /// Everything else: 60 requests a second.
    Rest,
}

/// Lets requests begin.
#[derive(Debug)]
pub struct Limiter {
    in_flight: Mutex<usize>,
    ended: Condvar,
    rates: [Mutex<Rate>; 3],
}

/// The right to have one request in flight; ends when dropped.
#[derive(Debug)]
pub struct Permit(Arc<Limiter>);

impl Drop for Permit {
    fn drop(&mut self) {
        *self.0.in_flight.lock() -= 1;
        self.0.ended.notify_one();
    }
}

impl Limiter {
    /// Returns a limiter; `enforced` says that the server is known to limit.
    pub fn new(enforced: bool) -> Self {
        Self {
            in_flight: Mutex::new(0),
            ended: Condvar::new(),
            rates: [200.0, 60.0, 60.0].map(|per_second| {
                Mutex::new(Rate {
                    per_second,
                    enforced,
                    next: None,
                })
            }),
        }
    }

    /// Waits until a request may begin; `None` when that would be past the deadline.
    ///
    /// What nobody waits for takes no turn before it can begin, so that it never stands in
    /// front of a request that somebody waits for.
    pub fn acquire(
        self: &Arc<Self>,
        budget: Budget,
        priority: Priority,
        deadline: Deadline,
    ) -> Option<Permit> {
        let most = match priority {
            Priority::Foreground | Priority::Revalidation | Priority::Listing => MAX_IN_FLIGHT,
            Priority::Upload | Priority::Prefetch => MAX_IN_FLIGHT - FOREGROUND_ONLY,
        };
        match priority {
            Priority::Foreground | Priority::Revalidation | Priority::Listing => {
                let wait = self
                    .rate(budget)
                    .lock()
                    .reserve(Instant::now(), deadline.remaining()?)?;
                if !wait.is_zero() {
                    std::thread::sleep(wait);
                }
            }
            Priority::Upload | Priority::Prefetch => loop {
                let left = deadline.remaining()?;
                let wait = self.rate(budget).lock().reserve_free(Instant::now());
                match wait {
                    None => break,
                    Some(wait) => std::thread::sleep(wait.min(left)),
                }
            },
        }
        let mut in_flight = self.in_flight.lock();
        while *in_flight >= most {
            if self
                .ended
                .wait_until(&mut in_flight, deadline.instant())
                .timed_out()
            {
                return None;
            }
        }
        *in_flight += 1;
        drop(in_flight);
        Some(Permit(Arc::clone(self)))
    }

    /// Takes note of a limit that the server named, in requests a second.
    pub fn learn(&self, budget: Budget, per_second: u32) {
        let mut rate = self.rate(budget).lock();
        rate.per_second = f64::from(per_second.max(1));
        rate.enforced = true;
    }

    /// Takes note of a 429: the burst is used up.
    pub fn refused(&self, budget: Budget) {
        let mut rate = self.rate(budget).lock();
        rate.enforced = true;
        let full = Instant::now() + rate.tolerance();
        rate.next = Some(rate.next.map_or(full, |next| next.max(full)));
    }

    /// Returns how many requests a second the server allows; 0 while it is not known to limit.
    pub fn allowed(&self, budget: Budget) -> u64 {
        let rate = self.rate(budget).lock();
        if rate.enforced {
            rate.per_second as u64
        } else {
            0
        }
    }

    fn rate(&self, budget: Budget) -> &Mutex<Rate> {
        &self.rates[match budget {
            Budget::Records => 0,
            Budget::Heads => 1,
            Budget::Rest => 2,
        }]
    }
}

/// A leaky bucket: the time at which it will have run dry.
#[derive(Debug)]
struct Rate {
    per_second: f64,
    enforced: bool,
    next: Option<Instant>,
}

impl Rate {
    fn interval(&self) -> Duration {
        Duration::from_secs_f64(1.0 / (self.per_second * STEADY_SHARE))
    }

    fn tolerance(&self) -> Duration {
        let burst = (self.per_second * (1.0 - STEADY_SHARE)).floor();
        self.interval().mul_f64((burst - 1.0).max(0.0))
    }

    /// Takes the next free moment and says how far off it is; `None`, taking nothing, when it
    /// is further than `remaining`.
    fn reserve(&mut self, now: Instant, remaining: Duration) -> Option<Duration> {
        if !self.enforced {
            return Some(Duration::ZERO);
        }
        let next = self.next.map_or(now, |next| next.max(now));
        let wait = next.saturating_duration_since(now + self.tolerance());
        if wait >= remaining {
            return None;
        }
        self.next = Some(next + self.interval());
        Some(wait)
    }

    /// Takes the next free moment if it is now; else says when to ask again.
    fn reserve_free(&mut self, now: Instant) -> Option<Duration> {
        if !self.enforced {
            return None;
        }
        // Half of the burst stays for requests that somebody waits for.
        let next = self.next.map_or(now, |next| next.max(now));
        let wait = next.saturating_duration_since(now + self.tolerance() / 2);
        if wait.is_zero() {
            self.next = Some(next + self.interval());
            return None;
        }
        Some(wait)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Priority::{Foreground, Prefetch};

    fn rate(per_second: f64) -> Rate {
        Rate {
            per_second,
            enforced: true,
            next: None,
        }
    }

    #[test]
    fn no_second_sees_more_requests_than_the_limit() {
        for per_second in [1.0, 5.0, 60.0, 200.0, 1000.0] {
            let mut rate = rate(per_second);
            let start = Instant::now();
            let begun: Vec<_> = (0..3000)
                .map(|_| rate.reserve(start, Duration::MAX).expect("no deadline"))
                .collect();
            for (at, moment) in begun.iter().enumerate() {
                let until = *moment + Duration::from_millis(999);
                let count = begun[at..].iter().take_while(|m| **m <= until).count();
                assert!(count as f64 <= per_second, "{count} of {per_second}");
            }
            let seconds = begun[2999].as_secs_f64();
            assert!(3000.0 / seconds > per_second * 0.85, "{seconds}");
        }
    }

    #[test]
    fn a_wait_past_the_deadline_is_not_begun() {
        let mut rate = rate(1.0);
        let now = Instant::now();
        let short = Duration::from_millis(10);
        assert_eq!(rate.reserve(now, short), Some(Duration::ZERO));
        assert_eq!(rate.reserve(now, short), None);
        assert_eq!(
            rate.reserve(now + Duration::from_secs(2), short),
            Some(Duration::ZERO)
        );
    }

    #[test]
    fn a_server_that_does_not_limit_is_not_limited() {
        let limiter = Arc::new(Limiter::new(false));
        let deadline = Deadline::after(Duration::from_millis(200));
        for _ in 0..10_000 {
            limiter
                .acquire(Budget::Rest, Foreground, deadline)
                .expect("a permit");
        }
    }

    #[test]
    fn a_refusal_uses_up_the_burst() {
        let limiter = Arc::new(Limiter::new(false));
        limiter.learn(Budget::Rest, 10);
        limiter.refused(Budget::Rest);
        limiter.acquire(
            Budget::Rest,
            Foreground,
            Deadline::after(Duration::from_secs(60)),
        );
        let at_once = Deadline::after(Duration::from_micros(1));
        assert!(limiter.acquire(Budget::Rest, Foreground, at_once).is_none());
        let other = Deadline::after(Duration::from_secs(60));
        assert!(
            limiter
                .acquire(Budget::Records, Foreground, other)
                .is_some()
        );
    }

    #[test]
    fn requests_in_flight_are_capped_until_one_ends() {
        let limiter = Arc::new(Limiter::new(false));
        let deadline = Deadline::after(Duration::from_millis(20));
        let mut permits: Vec<_> = (0..MAX_IN_FLIGHT)
            .map(|_| {
                limiter
                    .acquire(Budget::Records, Foreground, deadline)
                    .expect("a permit")
            })
            .collect();
        assert!(
            limiter
                .acquire(Budget::Records, Foreground, deadline)
                .is_none()
        );
        permits.pop();
        let later = Deadline::after(Duration::from_secs(60));
        assert!(
            limiter
                .acquire(Budget::Records, Foreground, later)
                .is_some()
        );
    }

    #[test]
    fn prefetch_leaves_room_in_flight_and_in_the_rate_for_those_who_wait() {
        let limiter = Arc::new(Limiter::new(false));
        let long = Deadline::after(Duration::from_secs(60));
        let short = Deadline::after(Duration::from_millis(20));
        let ahead: Vec<_> =
            std::iter::from_fn(|| limiter.acquire(Budget::Records, Prefetch, short))
                .take(1000)
                .collect();
        assert_eq!(ahead.len(), MAX_IN_FLIGHT - FOREGROUND_ONLY);
        assert!(limiter.acquire(Budget::Records, Foreground, long).is_some());
        drop(ahead);
        let mut rate = rate(100.0);
        let now = Instant::now();
        while rate.reserve_free(now).is_none() {}
        let wait = rate.reserve(now, Duration::MAX);
        assert_eq!(wait, Some(Duration::ZERO), "half of the burst is left");
    }
}
