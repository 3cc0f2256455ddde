//! Limits how many requests are in flight and how many begin each second, and decides which is
//! next.
//!
//! The cap on requests in flight holds for those that have begun lately: a server that is silent about
//! some records must not hold up all others. The paces ([`super::budget`]) hold once the server
//! is known to limit: it is the platform, it sent `X-RateLimit-Limit`, or it answered 429.
//!
//! Requests wait in line, those of each kind by themselves: first by priority, then by arrival.
//! Only the first in line asks for its turn, so that none of the others can be faster.
//!
//! Locks: none is held while waiting, and no two at a time.

use std::collections::{BTreeMap, VecDeque};
use std::path::Path;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use super::budget::{self, Budgets, KINDS};
use super::pace::Moment;
use crate::base::clock::Deadline;
use crate::base::descriptors;
use crate::base::sync::{self, Condvar, Mutex};
use crate::store::Priority;

/// Requests in flight at once; hundreds more only queue at the server. Few where schedules are
/// explored.
pub const MAX_IN_FLIGHT: usize = if cfg!(feature = "shuttle") { 3 } else { 64 };

/// A request that has been in flight for longer does not count any more.
const SLOW: Duration = Duration::from_secs(2);
/// Requests in flight at once, slow ones and all.
pub const MAX_IN_ALL: usize = 8 * MAX_IN_FLIGHT;

/// Requests in flight at once in this process: fewer where it may have few descriptors.
static AT_ONCE: LazyLock<usize> = LazyLock::new(|| descriptors::at_once(MAX_IN_FLIGHT));

/// Of these, the ones reserved for requests that a program waits for, at most.
const FOREGROUND_ONLY: usize = if cfg!(feature = "shuttle") { 1 } else { 8 };

/// The API's limits by endpoint (documentation, section Rate limiting).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Budget {
    /// Getting, storing, deleting one record: 200 requests a second for a store.
    Records,
    /// A record's metadata: not documented, so counted apart, as 60 requests a second.
    Heads,
    /// Everything else: 60 requests a second.
    Rest,
    /// Pages of keys: 200 requests a second, as the platform's answers say.
    Lists,
}

/// Requests a second of each [`Budget`], until the server says otherwise.
const LIMITS: [f64; KINDS] = [200.0, 60.0, 60.0, 200.0];

/// Lets requests begin.
#[derive(Debug)]
pub struct Limiter {
    budgets: Budgets,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Requests in flight by number, with when they began.
    in_flight: BTreeMap<u64, Instant>,
    last: u64,
    lines: [Line; KINDS],
}

/// Requests of one kind that wait, the most urgent first.
#[derive(Debug, Default)]
struct Line([VecDeque<Arc<Turn>>; Priority::ALL.len()]);

/// A request that waits; told when it may be its turn.
#[derive(Debug, Default)]
struct Turn(Condvar);

impl Line {
    fn first(&self) -> Option<&Arc<Turn>> {
        self.0.iter().find_map(VecDeque::front)
    }

    fn leave(&mut self, turn: &Arc<Turn>, priority: Priority) {
        self.0[priority as usize].retain(|other| !Arc::ptr_eq(other, turn));
        self.call_first();
    }

    fn call_first(&self) {
        if let Some(first) = self.first() {
            first.0.notify_one();
        }
    }
}

/// The right to have one request in flight; ends when dropped.
#[derive(Debug)]
pub struct Permit {
    limiter: Arc<Limiter>,
    number: u64,
    kind: usize,
    priority: Priority,
    departed: Moment,
    is_answered: bool,
}

impl Permit {
    /// Notes that the server has answered, whatever comes of the answer's body.
    pub fn answered(&mut self) {
        self.is_answered = true;
        let budgets = &self.limiter.budgets;
        budgets.answered(self.kind, self.priority, self.departed, budget::now());
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if !self.is_answered {
            let budgets = &self.limiter.budgets;
            budgets.failed(self.kind, self.priority, self.departed, budget::now());
        }
        self.limiter.end_one(self.number);
    }
}

impl State {
    /// Returns whether another request may begin now, else when that may change by itself.
    fn has_room(&self, most: usize, now: Instant) -> Result<(), Option<Instant>> {
        let is_recent = |begun: &&Instant| now.saturating_duration_since(**begun) < SLOW;
        let recent = self.in_flight.values().filter(is_recent).count();
        let all = MAX_IN_ALL / MAX_IN_FLIGHT * *AT_ONCE - (*AT_ONCE - most);
        if recent < most && self.in_flight.len() < all {
            return Ok(());
        }
        let oldest = self.in_flight.values().find(is_recent);
        Err(oldest.map(|begun| *begun + SLOW))
    }
}

impl Limiter {
    /// Returns a limiter; `enforced` says that the server is known to limit.
    pub fn new(enforced: bool) -> Self {
        Self {
            budgets: Budgets::new(LIMITS, enforced),
            state: Mutex::default(),
        }
    }

    /// Counts requests together with those of other processes that name the same folder and
    /// store. See [`super::budget`].
    pub fn share(&self, dir: &Path, store: &str) {
        self.budgets.share(dir, store);
    }

    /// Waits until a request may begin; `None` when that would be past the deadline.
    pub fn acquire(
        self: &Arc<Self>,
        budget: Budget,
        priority: Priority,
        deadline: Deadline,
    ) -> Option<Permit> {
        let kind = budget as usize;
        let turn = Arc::new(Turn::default());
        let mut state = self.state.lock();
        state.lines[kind].0[priority as usize].push_back(Arc::clone(&turn));
        while deadline.remaining().is_some() {
            let mut until = deadline.instant();
            let is_first = state.lines[kind]
                .first()
                .is_some_and(|first| Arc::ptr_eq(first, &turn));
            let room = state.has_room(most_in_flight(priority), sync::now());
            if let (true, Err(Some(later))) = (is_first, room) {
                until = until.min(later);
            }
            if is_first && room.is_ok() {
                // Counted before it is certain, so that no lock is held while asking.
                state.last += 1;
                let number = state.last;
                state.in_flight.insert(number, sync::now());
                drop(state);
                let departed = budget::now();
                let answer = self.budgets.take(kind, priority, departed);
                let again = answer.err().map(|wait| sync::now() + wait);
                if again.is_some() {
                    self.end_one(number);
                }
                state = self.state.lock();
                match again {
                    None => {
                        state.lines[kind].leave(&turn, priority);
                        return Some(Permit {
                            limiter: Arc::clone(self),
                            number,
                            kind,
                            priority,
                            departed,
                            is_answered: false,
                        });
                    }
                    Some(again) if again < until => until = again,
                    // Nothing could follow the wait.
                    Some(_) => break,
                }
            }
            turn.0.wait_until(&mut state, until);
        }
        state.lines[kind].leave(&turn, priority);
        None
    }

    /// Notes a limit that the server named, in requests a second.
    pub fn learn(&self, budget: Budget, per_second: u32) {
        let limit = f64::from(per_second.max(1));
        self.budgets.learn(budget as usize, limit, budget::now());
    }

    /// Notes a 429 and its `Retry-After`; `was_paced` says whether the server was known to limit
    /// when the request began.
    pub fn refused(&self, budget: Budget, retry_after: Option<Duration>, was_paced: bool) {
        self.budgets
            .refuse(budget as usize, budget::now(), retry_after, was_paced);
    }

    /// Returns how many requests a second the server allows; 0 while it is not known to limit.
    pub fn allowed(&self, budget: Budget) -> u64 {
        self.budgets
            .limit(budget as usize)
            .map_or(0, |limit| limit as u64)
    }

    fn end_one(&self, number: u64) {
        let mut state = self.state.lock();
        state.in_flight.remove(&number);
        for line in &state.lines {
            line.call_first();
        }
    }
}

fn most_in_flight(priority: Priority) -> usize {
    match priority {
        Priority::Foreground | Priority::Revalidation | Priority::Listing => *AT_ONCE,
        Priority::Upload | Priority::Prefetch => *AT_ONCE - FOREGROUND_ONLY.min(*AT_ONCE / 3),
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;
    use crate::store::Priority::{Foreground, Listing, Prefetch};

    fn long() -> Deadline {
        Deadline::after(Duration::from_secs(60))
    }

    fn short() -> Deadline {
        Deadline::after(Duration::from_millis(20))
    }

    #[test]
    fn a_wait_past_the_deadline_is_not_begun() {
        let limiter = Arc::new(Limiter::new(false));
        limiter.learn(Budget::Rest, 1);
        assert!(limiter.acquire(Budget::Rest, Foreground, short()).is_some());
        let start = Instant::now();
        let soon = Deadline::after(Duration::from_millis(500));
        assert!(limiter.acquire(Budget::Rest, Foreground, soon).is_none());
        assert!(start.elapsed() < Duration::from_millis(400));
    }

    #[test]
    fn what_is_silent_for_long_does_not_count_any_more() {
        let start = Instant::now();
        let mut state = State::default();
        for number in 0..MAX_IN_FLIGHT as u64 {
            state.in_flight.insert(number, start);
        }
        let room = |state: &State, after| state.has_room(MAX_IN_FLIGHT, start + after);
        assert_eq!(room(&state, Duration::ZERO), Err(Some(start + SLOW)));
        assert_eq!(room(&state, SLOW), Ok(()));
        for number in 0..MAX_IN_ALL as u64 {
            state.in_flight.insert(number, start);
        }
        assert_eq!(room(&state, SLOW), Err(None), "not without bound");
    }

    #[test]
    fn a_server_that_does_not_limit_is_not_limited() {
        let limiter = Arc::new(Limiter::new(false));
        for _ in 0..10_000 {
            limiter
                .acquire(Budget::Rest, Foreground, long())
                .expect("a permit");
        }
    }

    #[test]
    fn a_refusal_uses_up_the_burst() {
        let limiter = Arc::new(Limiter::new(false));
        limiter.learn(Budget::Rest, 10);
        limiter.refused(Budget::Rest, None, true);
        limiter.acquire(Budget::Rest, Foreground, long());
        let at_once = Deadline::after(Duration::from_micros(500));
        assert!(limiter.acquire(Budget::Rest, Foreground, at_once).is_none());
        assert!(
            limiter
                .acquire(Budget::Records, Foreground, long())
                .is_some()
        );
    }

    #[test]
    fn requests_in_flight_are_capped_until_one_ends() {
        let limiter = Arc::new(Limiter::new(false));
        let mut permits: Vec<_> = (0..MAX_IN_FLIGHT)
            .map(|_| {
                limiter
                    .acquire(Budget::Records, Foreground, long())
                    .expect("a permit")
            })
            .collect();
        assert!(
            limiter
                .acquire(Budget::Records, Foreground, short())
                .is_none()
        );
        permits.pop();
        assert!(
            limiter
                .acquire(Budget::Records, Foreground, long())
                .is_some()
        );
    }

    #[test]
    fn prefetch_leaves_room_in_flight_for_those_who_wait() {
        let limiter = Arc::new(Limiter::new(false));
        let ahead: Vec<_> =
            std::iter::from_fn(|| limiter.acquire(Budget::Records, Prefetch, short()))
                .take(1000)
                .collect();
        assert_eq!(ahead.len(), MAX_IN_FLIGHT - FOREGROUND_ONLY);
        assert!(
            limiter
                .acquire(Budget::Records, Foreground, long())
                .is_some()
        );
    }

    #[test]
    fn the_most_urgent_of_all_who_wait_is_next() {
        let limiter = Arc::new(Limiter::new(false));
        let mut full: Vec<_> = (0..MAX_IN_FLIGHT)
            .map(|_| {
                limiter
                    .acquire(Budget::Records, Foreground, long())
                    .expect("a permit")
            })
            .collect();
        let order = Mutex::new(Vec::new());
        let waiting = || {
            let state = limiter.state.lock();
            let line = &state.lines[Budget::Records as usize];
            line.0.iter().map(VecDeque::len).sum::<usize>()
        };
        thread::scope(|scope| {
            for (at, priority) in [Prefetch, Listing, Prefetch, Foreground, Listing]
                .into_iter()
                .enumerate()
            {
                let (limiter, order) = (&limiter, &order);
                scope.spawn(move || {
                    let permit = limiter.acquire(Budget::Records, priority, long());
                    order.lock().push(priority);
                    drop(permit);
                });
                while waiting() <= at {
                    thread::yield_now();
                }
            }
            // Room for one at a time, and none for prefetching.
            full.pop();
            while order.lock().len() < 3 {
                thread::yield_now();
            }
            full.clear();
        });
        let mut first_three = order.lock()[..3].to_vec();
        first_three.sort_unstable();
        assert_eq!(first_three, [Foreground, Listing, Listing]);
    }
}
