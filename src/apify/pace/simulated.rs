//! The pace against servers that count in several ways, over lines that hold requests up.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

use super::*;

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const START: Moment = Duration::from_secs(1000);
/// Requests that a process has in flight at once.
const IN_FLIGHT: usize = 56;
/// After so many answers a process knows that a request did not need a connection of its own.
const CONNECTED: usize = 64;

/// How a server counts.
#[derive(Clone, Copy, Debug)]
enum Counting {
    /// In seconds that begin at this moment after the full one.
    Fixed(Duration),
    /// In the second that has just passed.
    Sliding,
    /// A bucket for so many, which fills at the limit.
    Bucket(f64),
}

#[derive(Debug)]
struct Server {
    counting: Counting,
    limit: usize,
    seen: VecDeque<Moment>,
    second: u128,
    in_second: usize,
    level: f64,
    filled: Moment,
}

impl Server {
    fn new(counting: Counting, limit: usize) -> Self {
        Self {
            counting,
            limit,
            seen: VecDeque::new(),
            second: 0,
            in_second: 0,
            level: match counting {
                Counting::Bucket(capacity) => capacity,
                Counting::Fixed(_) | Counting::Sliding => 0.0,
            },
            filled: START,
        }
    }

    /// Returns whether a request is served.
    fn admit(&mut self, now: Moment) -> bool {
        match self.counting {
            Counting::Fixed(phase) => {
                let second = (now + phase).as_nanos() / SECOND.as_nanos();
                if second != self.second {
                    (self.second, self.in_second) = (second, 0);
                }
                self.in_second += 1;
                self.in_second <= self.limit
            }
            Counting::Sliding => {
                while self.seen.front().is_some_and(|at| *at + SECOND <= now) {
                    self.seen.pop_front();
                }
                // Refused ones count, too: the strictest way.
                self.seen.push_back(now);
                self.seen.len() <= self.limit
            }
            Counting::Bucket(capacity) => {
                let since = now.saturating_sub(self.filled).as_secs_f64();
                self.level = (self.level + since * self.limit as f64).min(capacity);
                self.filled = now;
                let is_served = self.level >= 1.0;
                if is_served {
                    self.level -= 1.0;
                }
                is_served
            }
        }
    }
}

/// What a line does to what it carries, beyond the time that it takes at least.
#[derive(Clone, Copy, Debug)]
enum Line {
    Even,
    /// Holds each up for as long as this.
    Uneven(Duration),
    /// Delivers only so often, all that has come by then.
    Bunching(Duration),
}

impl Line {
    fn deliver(self, least: Duration, now: Moment, rng: &mut fastrand::Rng) -> Moment {
        match self {
            Self::Even => now + least,
            Self::Uneven(most) => now + least + most.mul_f64(rng.f64()),
            Self::Bunching(period) => {
                let due = (now + least).as_nanos();
                let periods = due.div_ceil(period.as_nanos());
                Duration::from_nanos((periods * period.as_nanos()) as u64)
            }
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Case {
    counting: Counting,
    limit: usize,
    processes: usize,
    round_trip: Duration,
    /// The share of the round trip that the way to the server takes.
    forward: f64,
    /// To the server and back.
    lines: [Line; 2],
    /// What the server takes for each answer, and for one of ten.
    thinking: [Duration; 2],
    span: Duration,
}

impl Case {
    fn new(counting: Counting) -> Self {
        Self {
            counting,
            limit: 200,
            processes: 1,
            round_trip: MS * 50,
            forward: 0.5,
            lines: [Line::Even; 2],
            thinking: [Duration::ZERO; 2],
            span: SECOND * 20,
        }
    }
}

/// What has come of it.
#[derive(Debug, Default)]
struct Outcome {
    served: usize,
    refused: usize,
    /// Of these, in the second half of the time.
    refused_late: usize,
    served_in_first_second: usize,
}

impl Outcome {
    /// Returns the served requests as a share of what the server would serve.
    fn share(&self, case: &Case) -> f64 {
        self.served as f64 / (case.limit as f64 * case.span.as_secs_f64())
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Ask,
    Arrival,
    Answer { is_served: bool },
}

#[derive(Default)]
struct Process {
    flying: usize,
    idle: usize,
    answers: usize,
    is_asking: bool,
}

/// Lets all processes ask for as much as they can get.
fn simulate(case: &Case, pace: &mut Pace, seed: u64) -> Outcome {
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut server = Server::new(case.counting, case.limit);
    let mut outcome = Outcome::default();
    let mut processes: Vec<Process> = (0..case.processes).map(|_| Process::default()).collect();
    let mut events = BinaryHeap::new();
    let mut number = 0_u64;
    let mut push = |events: &mut BinaryHeap<_>, at: Moment, event, process, departed| {
        number += 1;
        events.push(Reverse((at, number, event, process, departed)));
    };
    let ways = [case.forward, 1.0 - case.forward].map(|share| case.round_trip.mul_f64(share));
    for process in 0..case.processes {
        processes[process].is_asking = true;
        push(&mut events, START, Event::Ask, process, START);
    }
    while let Some(Reverse((now, _, event, at, departed))) = events.pop() {
        if now > START + case.span {
            break;
        }
        let process = &mut processes[at];
        match event {
            Event::Ask => match pace.take(Priority::Prefetch, now) {
                Ok(()) => {
                    process.flying += 1;
                    process.is_asking = process.flying < IN_FLIGHT;
                    if process.is_asking {
                        push(&mut events, now, Event::Ask, at, now);
                    }
                    let mut sent = now;
                    if process.idle > 0 {
                        process.idle -= 1;
                    } else {
                        for way in [0, 1, 0, 1, 0, 1] {
                            sent = case.lines[way].deliver(ways[way], sent, &mut rng);
                        }
                    }
                    let arrival = case.lines[0].deliver(ways[0], sent, &mut rng);
                    push(&mut events, arrival, Event::Arrival, at, now);
                }
                Err(wait) => {
                    assert!(!wait.is_zero());
                    push(&mut events, now + wait, Event::Ask, at, now);
                }
            },
            Event::Arrival => {
                let is_served = server.admit(now);
                if is_served {
                    outcome.served += 1;
                    outcome.served_in_first_second += usize::from(now < START + SECOND);
                } else {
                    outcome.refused += 1;
                    outcome.refused_late += usize::from(now > START + case.span / 2);
                }
                let slow = usize::from(rng.usize(..10) == 0);
                let left = now + case.thinking[slow];
                let answer = case.lines[1].deliver(ways[1], left, &mut rng);
                push(
                    &mut events,
                    answer,
                    Event::Answer { is_served },
                    at,
                    departed,
                );
            }
            Event::Answer { is_served } => {
                process.flying -= 1;
                process.idle += 1;
                process.answers += 1;
                let took = (process.answers > CONNECTED).then(|| now - departed);
                pace.land(Priority::Prefetch, departed, now, took);
                if !is_served {
                    pace.refuse(now, None, true);
                }
                if !process.is_asking {
                    process.is_asking = true;
                    push(&mut events, now, Event::Ask, at, now);
                }
            }
        }
    }
    outcome
}

fn run(case: &Case, seed: u64) -> Outcome {
    simulate(case, &mut Pace::new(case.limit as f64, true), seed)
}

/// Returns a line and a server of a kind that is made up.
fn any(counting: Counting, rng: &mut fastrand::Rng) -> Case {
    let trip = [1, 5, 20, 50, 100, 200, 500][rng.usize(..7)];
    // With a new connection seven ways lead to an arrival, in less than three seconds in all.
    let longest = (2990 - 4 * trip) / 7;
    Case {
        limit: [5, 20, 60, 200, 1000][rng.usize(..5)],
        processes: rng.usize(1..=4),
        round_trip: MS * trip,
        forward: rng.f64(),
        lines: [8, longest].map(|apart| match rng.usize(..3) {
            0 => Line::Even,
            1 => Line::Uneven(MS * rng.u32(1..longest)),
            _ => Line::Bunching(MS * rng.u32(1..=apart)),
        }),
        thinking: [MS * rng.u32(0..50), MS * rng.u32(0..3000)],
        span: SECOND * 6,
        counting,
    }
}

#[test]
fn servers_that_count_by_the_second_refuse_no_request_however_the_line_bunches_them() {
    for seed in 0..60 {
        let mut rng = fastrand::Rng::with_seed(seed);
        let counting = match rng.usize(..3) {
            0 => Counting::Fixed(MS * rng.u32(0..1000)),
            _ => Counting::Sliding,
        };
        let case = any(counting, &mut rng);
        let outcome = run(&case, seed);
        assert!(outcome.served > 0, "{case:?}");
        assert_eq!(outcome.refused, 0, "{seed}: {case:?}");
    }
}

#[test]
fn nine_tenths_of_the_limit_are_used_and_a_second_carries_it_at_once() {
    for trip in [5, 20, 50, 100] {
        for processes in [1, 3] {
            for line in [Line::Even, Line::Uneven(MS * 10)] {
                let case = Case {
                    lines: [line; 2],
                    processes,
                    round_trip: MS * trip,
                    ..Case::new(Counting::Sliding)
                };
                let outcome = run(&case, 1);
                let share = outcome.share(&case);
                assert!((0.9..=1.0).contains(&share), "{share}: {case:?}");
                let first = outcome.served_in_first_second;
                assert!(first >= case.limit * 9 / 10, "{first}: {case:?}");
            }
        }
    }
}

#[test]
fn a_server_that_counts_more_strictly_refuses_what_is_on_its_way_and_little_more() {
    for capacity in [1.0, 5.0, 20.0] {
        for trip in [5, 50, 100] {
            for processes in [1, 3] {
                let case = Case {
                    processes,
                    round_trip: MS * trip,
                    span: SECOND * 60,
                    ..Case::new(Counting::Bucket(capacity))
                };
                let outcome = run(&case, 1);
                let on_their_way = processes * IN_FLIGHT;
                assert!(
                    outcome.refused <= on_their_way + 60,
                    "{outcome:?}: {case:?}"
                );
                assert!(outcome.refused_late <= 60, "{outcome:?}: {case:?}");
                assert!(outcome.share(&case) > 0.4, "{outcome:?}: {case:?}");
            }
        }
    }
}
