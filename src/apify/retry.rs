//! Decides whether and when a failed request is sent again. Pure: it never sleeps or sends.
//!
//! INVARIANT: attempts and total time are both bounded, the time by the operation's deadline.
//! The only loop that asks these questions is `HttpClient::call`; the one that resumes bodies
//! asks them about whole resumptions.

use std::time::{Duration, Instant, SystemTime};

/// How failed requests are repeated.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RetryPolicy {
    /// The most attempts, the first included.
    pub attempts: u32,
    /// The wait before the second attempt, without jitter; it doubles each time.
    pub base_delay: Duration,
    /// The longest wait between two attempts, without jitter; `Retry-After` may ask for more.
    pub max_delay: Duration,
}

impl Default for RetryPolicy {
    /// The official clients' numbers: 8 attempts, 500 ms doubling, times 1 to 2 at random.
    fn default() -> Self {
        Self {
            attempts: 8,
            base_delay: Duration::from_millis(500),
            max_delay: Duration::from_secs(20),
        }
    }
}

/// What a failure means for repeating the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The same request would fail again, or must not be repeated.
    Permanent,
    /// It may succeed when repeated, though not before this wait, if the server named one.
    Transient {
        /// The server's `Retry-After`.
        retry_after: Option<Duration>,
    },
    /// There were too many requests; in a second there may be room again.
    Refused {
        /// The server's `Retry-After`.
        retry_after: Option<Duration>,
    },
}

impl Verdict {
    /// A failure that may be repeated whenever the policy likes.
    pub const TRANSIENT: Self = Self::Transient { retry_after: None };
}

/// The course of one operation: how many attempts there have been since when.
#[derive(Clone, Copy, Debug)]
pub struct RetryState {
    policy: RetryPolicy,
    started: Instant,
    attempt: u32,
    /// Attempts that were refused for too many requests: they do not count as failed.
    refused: u32,
}

/// Attempts that may be refused, for each that may fail.
const REFUSALS: u32 = 8;

impl RetryState {
    /// Starts an operation with its first attempt.
    pub fn new(policy: RetryPolicy, now: Instant) -> Self {
        Self {
            policy,
            started: now,
            attempt: 1,
            refused: 0,
        }
    }

    /// Returns the number of the current attempt, from 1.
    pub fn attempt(&self) -> u32 {
        self.attempt
    }

    /// Returns how long the operation has been going on.
    pub fn elapsed(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.started)
    }

    /// Says how long to wait before the next attempt, or `None` to give up.
    ///
    /// `jitter` is a random number from 0 to 1. `remaining` is the time left to the operation's
    /// deadline; a wait that would use it up is not begun, because nothing could follow it.
    pub fn next_delay(
        &mut self,
        verdict: Verdict,
        remaining: Option<Duration>,
        jitter: f64,
    ) -> Option<Duration> {
        let remaining = remaining?;
        let jitter = jitter.clamp(0.0, 1.0);
        let failed = self.attempt - 1 - self.refused;
        let (delay, retry_after) = match verdict {
            Verdict::Permanent => return None,
            Verdict::Transient { retry_after } => {
                if failed + 1 >= self.policy.attempts {
                    return None;
                }
                let delay = self.policy.base_delay.saturating_mul(1 << failed.min(20));
                (
                    delay.min(self.policy.max_delay).mul_f64(1.0 + jitter),
                    retry_after,
                )
            }
            Verdict::Refused { retry_after } => {
                if self.refused + 1 >= self.policy.attempts.saturating_mul(REFUSALS) {
                    return None;
                }
                // The limit is one of requests a second, so it is no use to wait for many.
                let most = if self.refused == 0 { 0.3 } else { 1.0 };
                let delay = (2 * self.policy.base_delay).mul_f64(1.0 + most * jitter);
                (delay, retry_after)
            }
        };
        let delay = delay.max(retry_after.unwrap_or_default());
        if delay >= remaining {
            return None;
        }
        self.attempt += 1;
        self.refused += u32::from(matches!(verdict, Verdict::Refused { .. }));
        Some(delay)
    }
}

/// Reads a `Retry-After` header: seconds, or an HTTP date. One in the past means no wait.
pub fn parse_retry_after(value: &str, now: SystemTime) -> Option<Duration> {
    let value = value.trim();
    if let Ok(seconds) = value.parse::<u64>() {
        return Some(Duration::from_secs(seconds));
    }
    let date = httpdate::parse_http_date(value).ok()?;
    Some(date.duration_since(now).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLENTY: Option<Duration> = Some(Duration::from_secs(3600));

    fn state() -> RetryState {
        RetryState::new(RetryPolicy::default(), Instant::now())
    }

    #[test]
    fn delays_double_from_half_a_second_and_end_after_eight_attempts() {
        let mut state = state();
        let delays: Vec<_> =
            std::iter::from_fn(|| state.next_delay(Verdict::TRANSIENT, PLENTY, 0.0))
                .map(|delay| delay.as_millis())
                .collect();
        assert_eq!(delays, [500, 1000, 2000, 4000, 8000, 16000, 20000]);
        assert_eq!(state.attempt(), 8);
    }

    #[test]
    fn a_refusal_costs_a_second_or_two_each_time_and_no_attempt() {
        let refused = Verdict::Refused { retry_after: None };
        let mut state = state();
        let first = state.next_delay(refused, PLENTY, 1.0).expect("again");
        assert_eq!(first, Duration::from_millis(1300));
        for _ in 0..20 {
            let next = state.next_delay(refused, PLENTY, 1.0).expect("again");
            assert_eq!(next, Duration::from_secs(2));
        }
        // Then it fails, as often as any other request may.
        let after = state.next_delay(Verdict::TRANSIENT, PLENTY, 0.0);
        assert_eq!(after, Some(Duration::from_millis(500)));
        assert_eq!(state.attempt(), 23);
        // It ends.
        let left = std::iter::from_fn(|| state.next_delay(refused, PLENTY, 0.0)).count();
        assert!((1..100).contains(&left), "{left}");
        let asked = Verdict::Refused {
            retry_after: Some(Duration::from_secs(7)),
        };
        let mut state = RetryState::new(RetryPolicy::default(), Instant::now());
        let delay = state.next_delay(asked, PLENTY, 0.0);
        assert_eq!(delay, Some(Duration::from_secs(7)));
    }

    #[test]
    fn jitter_at_most_doubles_a_delay() {
        for (jitter, millis) in [(0.0, 500), (0.5, 750), (1.0, 1000), (9.0, 1000)] {
            let delay = state().next_delay(Verdict::TRANSIENT, PLENTY, jitter);
            assert_eq!(delay, Some(Duration::from_millis(millis)));
        }
    }

    #[test]
    fn a_permanent_failure_is_not_repeated() {
        assert_eq!(state().next_delay(Verdict::Permanent, PLENTY, 0.0), None);
    }

    #[test]
    fn retry_after_is_honoured_within_the_deadline() {
        let asked = |seconds| Verdict::Transient {
            retry_after: Some(Duration::from_secs(seconds)),
        };
        let minute = Some(Duration::from_secs(60));
        for (seconds, delay) in [(7, Some(7)), (59, Some(59)), (60, None), (u64::MAX, None)] {
            let found = state().next_delay(asked(seconds), minute, 0.0);
            assert_eq!(found, delay.map(Duration::from_secs), "{seconds}");
        }
        let shorter = state().next_delay(asked(0), minute, 0.0);
        assert_eq!(shorter, Some(Duration::from_millis(500)));
    }

    #[test]
    fn nothing_is_repeated_past_the_deadline() {
        let mut state = state();
        assert_eq!(state.next_delay(Verdict::TRANSIENT, None, 0.0), None);
        let short = Some(Duration::from_millis(400));
        assert_eq!(state.next_delay(Verdict::TRANSIENT, short, 0.0), None);
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let now = httpdate::parse_http_date("Sun, 06 Nov 1994 08:49:37 GMT").expect("a date");
        for (value, seconds) in [
            ("3", Some(3)),
            (" 0 ", Some(0)),
            ("Sun, 06 Nov 1994 08:49:47 GMT", Some(10)),
            ("Sun, 06 Nov 1994 08:49:07 GMT", Some(0)),
            ("-1", None),
            ("soon", None),
        ] {
            let expected = seconds.map(Duration::from_secs);
            assert_eq!(parse_retry_after(value, now), expected, "{value}");
        }
    }
}
