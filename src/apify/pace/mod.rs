//! How fast requests of one kind may begin. Pure: the caller says what time it is.
//!
//! Places in a window (see `window`): nearly the whole limit may begin at once, and however the line
//! bunches requests up, in no second do more arrive than the limit. Some places stay for requests that
//! a program waits for. Where the server refuses even so, it counts more strictly, or is not alone with
//! this machine: then requests begin evenly, too, as from a leaky bucket, for an hour. An answer 429
//! halves the rate, at most once a second, and it grows back slowly. The first priority goes first:
//! while a more urgent request waits, here or in another process, the others wait too.

use std::time::Duration;

use crate::store::Priority;

#[cfg(test)]
mod simulated;
#[cfg(test)]
mod tests;
mod window;

use window::{Class, WINDOW_LEN, Window};

/// The share of the limit whose places may be occupied.
const WINDOW_SHARE: f64 = 0.98;
/// The share of the limit that stays for requests that a program waits for; as many more as have
/// begun lately, up to the second.
const RESERVED_SHARE: [f64; 2] = [0.03, 0.25];
/// How long requests begin evenly after a refusal.
const EVEN: Duration = Duration::from_secs(3600);
/// The share of the limit that flows evenly.
const EVEN_SHARE: f64 = 0.93;
/// The share that may come at once even so.
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
#[derive(Clone, Debug, PartialEq)]
pub struct Pace {
    /// Requests a second, by the server's word.
    limit: f64,
    /// Whether the server is known to limit at all.
    is_enforced: bool,
    /// No request begins before.
    paused: Moment,
    /// Until when requests begin evenly.
    even: Moment,
    /// When the bucket of these will have run dry.
    next: Moment,
    /// The share of the limit that is used, as of the last refusal.
    share: f64,
    refused: Moment,
    /// Until when a request of each priority is known to wait.
    awaited: [Moment; Priority::ALL.len()],
    window: Window,
}

const HEAD_LEN: usize = 8 * (7 + Priority::ALL.len());
/// Bytes of a pace on disk.
pub const PACE_LEN: usize = HEAD_LEN + WINDOW_LEN;

impl Pace {
    /// Returns a pace of `limit` requests a second.
    pub fn new(limit: f64, is_enforced: bool) -> Self {
        Self {
            limit,
            is_enforced,
            paused: Moment::ZERO,
            even: Moment::ZERO,
            next: Moment::ZERO,
            share: 1.0,
            refused: Moment::ZERO,
            awaited: [Moment::ZERO; Priority::ALL.len()],
            window: Window::new(),
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
        let class = class(priority);
        if !self.is_enforced {
            self.window.depart(class, now);
            return Ok(());
        }
        let mut wait = self.paused.saturating_sub(now);
        let is_even = now < self.even;
        let next = self.next.max(now);
        if is_even {
            // Part of the burst stays for requests that a program waits for.
            let burst = match class {
                Class::Urgent => self.burst(now),
                Class::Other => self.burst(now) / 2,
            };
            wait = wait.max(next.saturating_sub(now + burst));
        }
        for more_urgent in &self.awaited[..priority as usize] {
            wait = wait.max(more_urgent.saturating_sub(now));
        }
        let [urgent, other] = self.window.occupied(now);
        let most = self.places(class, urgent, now);
        if urgent + other >= most {
            let places = urgent + other + 1 - most;
            wait = wait.max(self.window.until_free(places, now));
        }
        if wait.is_zero() {
            if is_even {
                self.next = next + self.interval(now);
            }
            self.window.depart(class, now);
            return Ok(());
        }
        let awaited = &mut self.awaited[priority as usize];
        *awaited = (*awaited).max(now + wait + GRACE);
        Err(wait)
    }

    /// Notes that a request that began at `departed` is answered, or not waited for any more.
    ///
    /// `took` is how long it took, if it found a connection, as far as is known.
    pub fn land(
        &mut self,
        priority: Priority,
        departed: Moment,
        now: Moment,
        took: Option<Duration>,
    ) {
        self.window.land(class(priority), departed, now, took);
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
            self.paused = self.paused.max(now + SAME_REFUSAL);
        } else if now.saturating_sub(self.refused) >= SAME_REFUSAL {
            self.share = (self.share(now) * DECREASE).max(LEAST_SHARE);
            self.refused = now;
            self.even = now + EVEN;
        }
        let pause = retry_after.unwrap_or_default().min(LONGEST_PAUSE);
        self.paused = self.paused.max(now + pause);
        // What may come at once has come.
        self.next = self.next.max(self.paused + self.burst(now));
    }

    /// Counts the requests of a process that knew of no limit and shared nothing.
    pub fn add_requests(&mut self, of: &Self) {
        self.window.add(&of.window);
    }

    /// Returns the share of the limit that is used now.
    pub fn share(&self, now: Moment) -> f64 {
        let since = now.saturating_sub(self.refused).as_secs_f64();
        (self.share + since * RECOVERY).min(1.0)
    }

    /// Returns how many places may be occupied before one more of this class begins.
    fn places(&self, class: Class, urgent: usize, now: Moment) -> usize {
        let limit = self.limit * self.share(now);
        let all = (limit * WINDOW_SHARE).ceil() as usize;
        let reserved = match class {
            Class::Urgent => 0,
            Class::Other => {
                let [least, most] = RESERVED_SHARE.map(|share| (limit * share) as usize);
                urgent.clamp(least, most)
            }
        };
        all.saturating_sub(reserved).max(1)
    }

    fn interval(&self, now: Moment) -> Duration {
        Duration::from_secs_f64(1.0 / (self.limit * self.share(now) * EVEN_SHARE))
    }

    /// Returns how far ahead of its time a request may begin.
    fn burst(&self, now: Moment) -> Duration {
        let requests = (self.limit * self.share(now) * BURST_SHARE).ceil();
        self.interval(now).mul_f64((requests - 1.0).max(0.0))
    }

    /// Writes a form for the disk, [`PACE_LEN`] bytes.
    pub fn write(&self, into: &mut Vec<u8>) {
        let head = [
            self.limit.to_bits(),
            u64::from(self.is_enforced),
            self.share.to_bits(),
            nanos(self.refused),
            nanos(self.paused),
            nanos(self.even),
            nanos(self.next),
        ];
        let words = head.into_iter().chain(self.awaited.map(nanos));
        into.extend(words.flat_map(u64::to_le_bytes));
        self.window.write(into);
    }

    /// Reads what [`Pace::write`] wrote; `None` for invalid bytes. What was written before the
    /// machine was last started is brought into reach.
    pub fn from_bytes(bytes: &[u8], now: Moment) -> Option<Self> {
        let (head, window) = bytes.split_at_checked(HEAD_LEN)?;
        let mut words = head
            .chunks_exact(8)
            .filter_map(|word| Some(u64::from_le_bytes(word.try_into().ok()?)));
        let limit = f64::from_bits(words.next()?);
        let is_enforced = words.next()? == 1;
        let share = f64::from_bits(words.next()?);
        let mut moment = |reach: Duration| {
            let time = Duration::from_nanos(words.next()?);
            Some(if time > now + reach { now } else { time })
        };
        let soon = LONGEST_PAUSE + Duration::from_secs(1);
        let pace = Self {
            limit,
            is_enforced,
            share,
            refused: moment(Duration::ZERO)?,
            paused: moment(soon)?,
            even: moment(EVEN)?,
            next: moment(soon)?,
            awaited: {
                let mut awaited = [Moment::ZERO; Priority::ALL.len()];
                for until in &mut awaited {
                    *until = moment(soon)?;
                }
                awaited
            },
            window: Window::read(window, now)?,
        };
        (LIMITS.contains(&pace.limit) && (LEAST_SHARE..=1.0).contains(&pace.share)).then_some(pace)
    }
}

fn class(priority: Priority) -> Class {
    match priority {
        Priority::Foreground | Priority::Revalidation | Priority::Listing => Class::Urgent,
        Priority::Upload | Priority::Prefetch => Class::Other,
    }
}

fn nanos(moment: Moment) -> u64 {
    u64::try_from(moment.as_nanos()).unwrap_or(u64::MAX)
}
