//! How fast requests of one kind may begin. Pure: the caller says what time it is.
//!
//! A leaky bucket: most of the limit flows steadily, and a little may come at once. What is left of it
//! is for the way to the server, on which requests that began evenly bunch up: in no second do more
//! arrive than the limit. An answer 429 halves the rate, at most once a second, and it grows back
//! slowly. The first priority goes first: while a more urgent request waits, here or in another
//! process, the others wait too.

use std::time::Duration;

use crate::store::Priority;

/// The share of the limit that flows steadily.
const STEADY_SHARE: f64 = 0.93;
/// The share that may come at once. With 200 requests a second, 190 begin in a second at most; of as
/// many as 200, 209 arrived within one where the machine was busy.
const BURST_SHARE: f64 = 0.02;
/// What a 429 leaves of the rate.
const DECREASE: f64 = 0.5;
/// What of the limit comes back each second after one.
const RECOVERY: f64 = 0.02;
/// The rate never falls below this share of the limit.
const LEAST_SHARE: f64 = 0.05;
/// Answers 429 within this long of one another count as one.
const SAME_REFUSAL: Duration = Duration::from_secs(1);
/// The longest that a server may ask all requests to wait.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// How much longer than its wait a request counts as waiting.
const GRACE: Duration = Duration::from_millis(5);
/// Limits that make sense, in requests a second.
const LIMITS: std::ops::RangeInclusive<f64> = 1.0..=1e6;

/// A moment: the time since the machine was started, the same for all its processes.
pub type Moment = Duration;

/// The pace of one kind of requests.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pace {
    /// Requests a second, by the server's word.
    limit: f64,
    /// Whether the server is known to limit at all.
    is_enforced: bool,
    /// When the bucket will have run dry.
    next: Moment,
    /// The share of the limit that is used, as of the last refusal.
    share: f64,
    refused: Moment,
    /// Until when a request of each priority is known to wait.
    awaited: [Moment; Priority::ALL.len()],
}

/// Bytes of a pace on disk.
pub const PACE_LEN: usize = 8 * (5 + Priority::ALL.len());

impl Pace {
    /// Returns a pace of `limit` requests a second.
    pub fn new(limit: f64, is_enforced: bool) -> Self {
        Self {
            limit,
            is_enforced,
            next: Moment::ZERO,
            share: 1.0,
            refused: Moment::ZERO,
            awaited: [Moment::ZERO; Priority::ALL.len()],
        }
    }

    /// Returns whether the server is known to limit.
    pub fn is_enforced(&self) -> bool {
        self.is_enforced
    }

    /// Returns the limit, in requests a second.
    pub fn limit(&self) -> f64 {
        self.limit
    }

    /// Lets a request begin now.
    ///
    /// # Errors
    /// How long to wait before asking again; until then the asker counts as waiting.
    pub fn take(&mut self, priority: Priority, now: Moment) -> Result<(), Duration> {
        if !self.is_enforced {
            return Ok(());
        }
        // Part of the burst stays for requests that a program waits for.
        let burst = match priority {
            Priority::Foreground | Priority::Revalidation | Priority::Listing => self.burst(now),
            Priority::Upload | Priority::Prefetch => self.burst(now) / 2,
        };
        let next = self.next.max(now);
        let mut wait = next.saturating_sub(now + burst);
        for more_urgent in &self.awaited[..priority as usize] {
            wait = wait.max(more_urgent.saturating_sub(now));
        }
        if wait.is_zero() {
            self.next = next + self.interval(now);
            return Ok(());
        }
        let awaited = &mut self.awaited[priority as usize];
        *awaited = (*awaited).max(now + wait + GRACE);
        Err(wait)
    }

    /// Notes a limit that the server named, in requests a second.
    pub fn learn(&mut self, per_second: f64) {
        self.limit = per_second.clamp(*LIMITS.start(), *LIMITS.end());
        self.is_enforced = true;
    }

    /// Notes a 429 and what its `Retry-After` says; `was_paced` says whether what was refused had
    /// waited for its turn.
    pub fn refuse(&mut self, now: Moment, retry_after: Option<Duration>, was_paced: bool) {
        if !self.is_enforced || !was_paced {
            // Nothing was held back, so nothing is known of the limit that is assumed.
            // What is on its way is refused too, until the server's second is over.
            self.is_enforced = true;
            // What has come back since an earlier refusal, of other processes perhaps, stays.
            self.share = self.share(now);
            self.refused = now;
            self.next = self.next.max(now + SAME_REFUSAL + self.burst(now));
        } else if now.saturating_sub(self.refused) >= SAME_REFUSAL {
            self.share = (self.share(now) * DECREASE).max(LEAST_SHARE);
            self.refused = now;
        }
        let pause = retry_after.unwrap_or_default().min(LONGEST_PAUSE);
        self.next = self.next.max(now + pause + self.burst(now));
    }

    /// Returns the share of the limit that is used now.
    pub fn share(&self, now: Moment) -> f64 {
        let since = now.saturating_sub(self.refused).as_secs_f64();
        (self.share + since * RECOVERY).min(1.0)
    }

    fn interval(&self, now: Moment) -> Duration {
        Duration::from_secs_f64(1.0 / (self.limit * self.share(now) * STEADY_SHARE))
    }

    /// Returns how far ahead of its time a request may begin.
    fn burst(&self, now: Moment) -> Duration {
        let requests = (self.limit * self.share(now) * BURST_SHARE).ceil();
        self.interval(now).mul_f64((requests - 1.0).max(0.0))
    }

    /// Returns a form for the disk.
    pub fn to_bytes(self) -> [u8; PACE_LEN] {
        let mut bytes = [0; PACE_LEN];
        let head = [
            self.limit.to_bits(),
            u64::from(self.is_enforced),
            nanos(self.next),
            self.share.to_bits(),
            nanos(self.refused),
        ];
        let words = head.into_iter().chain(self.awaited.map(nanos));
        for (place, word) in bytes.chunks_exact_mut(8).zip(words) {
            place.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    /// Reads what [`Pace::to_bytes`] wrote; `None` for invalid bytes. What was written before the
    /// machine was last started is brought into reach.
    pub fn from_bytes(bytes: &[u8; PACE_LEN], now: Moment) -> Option<Self> {
        let word = |at: usize| -> Option<u64> {
            let bytes = bytes.get(8 * at..8 * at + 8)?;
            Some(u64::from_le_bytes(bytes.try_into().ok()?))
        };
        let soon = now + LONGEST_PAUSE + Duration::from_secs(1);
        let moment = |at| {
            Some(Duration::from_nanos(word(at)?)).map(|time| if time > soon { now } else { time })
        };
        let pace = Self {
            limit: f64::from_bits(word(0)?),
            is_enforced: word(1)? == 1,
            next: moment(2)?,
            share: f64::from_bits(word(3)?),
            refused: moment(4)?.min(now),
            awaited: {
                let mut awaited = [Moment::ZERO; Priority::ALL.len()];
                for (at, until) in awaited.iter_mut().enumerate() {
                    *until = moment(5 + at)?;
                }
                awaited
            },
        };
        (LIMITS.contains(&pace.limit) && (LEAST_SHARE..=1.0).contains(&pace.share)).then_some(pace)
    }
}

fn nanos(moment: Moment) -> u64 {
    u64::try_from(moment.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// Lets requests begin as fast as they may from `now` on; returns when each began.
    fn run(pace: &mut Pace, priority: Priority, mut now: Moment, count: usize) -> Vec<Moment> {
        let mut begun = Vec::new();
        while begun.len() < count {
            match pace.take(priority, now) {
                Ok(()) => begun.push(now),
                Err(wait) => now += wait,
            }
        }
        begun
    }

    /// Returns the most requests that begin in any second.
    fn most_in_a_second(begun: &[Moment]) -> usize {
        let mut from = 0;
        let mut most = 0;
        for (at, moment) in begun.iter().enumerate() {
            while *moment >= begun[from] + Duration::from_secs(1) {
                from += 1;
            }
            most = most.max(at - from + 1);
        }
        most
    }

    #[test]
    fn no_second_sees_more_requests_than_the_limit() {
        for limit in [1.0, 5.0, 60.0, 200.0, 1000.0] {
            let mut pace = Pace::new(limit, true);
            let begun = run(
                &mut pace,
                Priority::Foreground,
                Duration::from_secs(100),
                3000,
            );
            let most = most_in_a_second(&begun);
            assert!(most as f64 <= limit, "{most} of {limit}");
            assert!(limit < 200.0 || most as f64 <= limit * 0.955, "{most}");
            let seconds = (begun[2999] - begun[0]).as_secs_f64();
            assert!(3000.0 / seconds > limit * 0.85, "{seconds}");
        }
    }

    #[test]
    fn a_refusal_halves_the_rate_once_and_it_grows_back_slowly() {
        let mut pace = Pace::new(200.0, true);
        let start = Duration::from_secs(50);
        for at in 0..10 {
            pace.refuse(start + MS * at, None, true);
        }
        assert_eq!(pace.share(start), 0.5);
        let begun = run(&mut pace, Priority::Foreground, start, 400);
        let first = begun
            .iter()
            .filter(|at| **at < start + Duration::from_secs(1))
            .count();
        assert!((60..=100).contains(&first), "{first}");
        pace.refuse(start + Duration::from_secs(2), None, true);
        assert!((0.2..0.3).contains(&pace.share(start + Duration::from_secs(2))));
        assert_eq!(pace.share(start + Duration::from_secs(60)), 1.0);
    }

    #[test]
    fn the_first_refusal_of_a_server_that_named_no_limit_tells_that_there_is_one() {
        let mut pace = Pace::new(200.0, false);
        let start = Duration::from_secs(50);
        assert_eq!(run(&mut pace, Priority::Prefetch, start, 1000)[999], start);
        for late in 0..56 {
            pace.refuse(start + MS * late, None, late > 0);
        }
        let now = start + MS * 56;
        assert_eq!(pace.share(now), 1.0);
        let begun = run(&mut pace, Priority::Prefetch, now, 400);
        assert!(begun[0] >= start + Duration::from_secs(1), "{:?}", begun[0]);
        assert!(begun[399] <= begun[0] + Duration::from_millis(2150));
        assert!(most_in_a_second(&begun) <= 200);
        // Refused again at that rate: the limit is lower than was assumed.
        pace.refuse(begun[0] + Duration::from_secs(1), None, true);
        assert!(pace.share(begun[0] + Duration::from_secs(1)) <= 0.51);
    }

    #[test]
    fn who_was_not_paced_spoils_nothing_for_those_who_are() {
        let mut pace = Pace::new(200.0, true);
        let start = Duration::from_secs(50);
        for at in 0..10 {
            pace.refuse(start + Duration::from_secs(at), None, true);
        }
        let now = start + Duration::from_secs(100);
        assert_eq!(pace.share(now), 1.0);
        pace.refuse(now, Some(Duration::from_secs(20)), true);
        let share = pace.share(now);
        pace.refuse(now, None, false);
        assert_eq!(pace.share(now), share);
        let begun = run(&mut pace, Priority::Foreground, now, 1);
        assert!(begun[0] >= now + Duration::from_secs(20), "{begun:?}");
        let later = now + Duration::from_secs(60);
        pace.refuse(later, None, false);
        assert_eq!(pace.share(later), 1.0);
    }

    #[test]
    fn nobody_begins_before_retry_after_has_passed() {
        let mut pace = Pace::new(60.0, true);
        let now = Duration::from_secs(50);
        pace.refuse(now, Some(Duration::from_secs(3)), true);
        let begun = run(&mut pace, Priority::Foreground, now, 1);
        assert!(begun[0] >= now + Duration::from_secs(3), "{begun:?}");
        pace.refuse(now, Some(Duration::from_secs(3600)), true);
        let begun = run(&mut pace, Priority::Foreground, now, 1);
        assert!(begun[0] <= now + Duration::from_secs(31), "{begun:?}");
    }

    #[test]
    fn the_less_urgent_waits_for_whoever_waits() {
        let mut pace = Pace::new(100.0, true);
        let mut now = Duration::from_secs(50);
        while pace.take(Priority::Prefetch, now).is_ok() {}
        pace.take(Priority::Foreground, now)
            .expect("half of the burst is left");
        while pace.take(Priority::Listing, now).is_ok() {}
        // The listing waits for the next free moment, and no less urgent request takes it.
        let wait = pace
            .take(Priority::Listing, now)
            .expect_err("nothing is left");
        now += wait;
        for priority in [Priority::Upload, Priority::Prefetch] {
            pace.take(priority, now).expect_err("the listing waits");
        }
        pace.clone()
            .take(Priority::Foreground, now)
            .expect("a person is more urgent");
        pace.take(Priority::Listing, now).expect("its moment");
        // A request that waited and never came back delays no other for long.
        now += Duration::from_secs(1);
        pace.take(Priority::Prefetch, now).expect("free again");
    }

    #[test]
    fn what_is_on_disk_makes_sense_or_is_not_believed() {
        let now = Duration::from_secs(1000);
        let mut pace = Pace::new(200.0, true);
        pace.refuse(now, Some(Duration::from_secs(2)), true);
        let _ = pace.take(Priority::Listing, now);
        assert_eq!(Pace::from_bytes(&pace.to_bytes(), now), Some(pace));
        // The machine has been restarted: the time begins at 0 again.
        let mut after = Pace::from_bytes(&pace.to_bytes(), Duration::from_secs(1)).expect("sense");
        let begun = run(&mut after, Priority::Foreground, Duration::from_secs(1), 1);
        assert!(begun[0] <= Duration::from_secs(2), "{begun:?}");
        for broken in [f64::NAN, 0.0, -1.0, f64::INFINITY] {
            let bytes = Pace {
                limit: broken,
                ..pace
            }
            .to_bytes();
            assert_eq!(Pace::from_bytes(&bytes, now), None);
            let bytes = Pace {
                share: broken,
                ..pace
            }
            .to_bytes();
            assert_eq!(Pace::from_bytes(&bytes, now), None);
        }
    }
}
