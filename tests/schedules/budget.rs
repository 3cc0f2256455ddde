//! The request budget: permits are neither lost nor doubled, the urgent go first, all get on.

use std::sync::Arc;
use std::time::{Duration, Instant};

use kvfs::apify::limit::{Budget, Limiter, MAX_IN_FLIGHT};
use kvfs::base::clock::Deadline;
use kvfs::base::sync::{Mutex, now, thread};
use kvfs::store::Priority::{self, Foreground, Listing, Prefetch, Upload};

use crate::explore;

/// What is in flight at a time, by who waits for it.
#[derive(Default)]
struct Flying {
    urgent: usize,
    others: usize,
}

impl Flying {
    fn of(&mut self, priority: Priority) -> &mut usize {
        if matches!(priority, Upload | Prefetch) {
            &mut self.others
        } else {
            &mut self.urgent
        }
    }
}

fn after(seconds: u64) -> Deadline {
    Deadline::after(Duration::from_secs(seconds))
}

/// Has a request under way for `span`; tells whether it could begin before the deadline.
fn request(
    limiter: &Arc<Limiter>,
    flying: &Mutex<Flying>,
    budget: Budget,
    priority: Priority,
    deadline: Deadline,
    span: Duration,
) -> bool {
    let Some(permit) = limiter.acquire(budget, priority, deadline) else {
        return false;
    };
    {
        let mut flying = flying.lock();
        *flying.of(priority) += 1;
        assert!(
            flying.urgent + flying.others <= MAX_IN_FLIGHT,
            "too many at once"
        );
    }
    // One that the server is silent about for two seconds does not count any more.
    let counts = span.min(Duration::from_millis(1_999));
    thread::sleep(counts);
    *flying.lock().of(priority) -= 1;
    thread::sleep(span - counts);
    drop(permit);
    true
}

/// All permits are there again, and not one more.
fn assert_all_back(limiter: &Arc<Limiter>) {
    let all: Vec<_> = (0..MAX_IN_FLIGHT)
        .map(|_| {
            limiter
                .acquire(Budget::Heads, Foreground, after(1))
                .expect("a permit was lost")
        })
        .collect();
    let more = limiter.acquire(Budget::Heads, Foreground, after(1));
    assert!(more.is_none(), "a permit was doubled");
    drop(all);
}

/// How long a request takes.
const SPAN: Duration = Duration::from_millis(20);

/// Requests of all kinds and priorities; `patience` is how long some of them wait.
fn crowd(patience: Duration) {
    let limiter = Arc::new(Limiter::new(false));
    let flying = Mutex::new(Flying::default());
    let begun = now();
    thread::scope(|scope| {
        for (budget, priority, is_patient) in [
            (Budget::Records, Foreground, false),
            (Budget::Records, Foreground, true),
            (Budget::Records, Prefetch, true),
            (Budget::Records, Upload, true),
            (Budget::Rest, Listing, false),
            (Budget::Rest, Listing, true),
        ] {
            let (limiter, flying) = (&limiter, &flying);
            scope.spawn(move || {
                for _ in 0..2 {
                    let deadline = if is_patient {
                        after(3600)
                    } else {
                        Deadline::after(patience)
                    };
                    let began = request(limiter, flying, budget, priority, deadline, SPAN);
                    assert!(began || !is_patient, "{priority:?} waited in vain");
                }
            });
        }
    });
    assert!(
        now() - begun < Duration::from_secs(10),
        "somebody was not told"
    );
    assert_all_back(&limiter);
}

#[test]
fn permits_are_neither_lost_nor_doubled() {
    explore("permits", 500, 0, || crowd(Duration::from_secs(3600)));
}

#[test]
fn who_gives_up_waiting_takes_no_permit_along_and_holds_nobody_up() {
    // Deadlines that pass when a permit comes: then somebody else must be told of it.
    explore("giving_up", 500, 0, || crowd(SPAN));
    // And at any other moment.
    explore("giving_up_at_any_moment", 500, 30, || {
        let limiter = Arc::new(Limiter::new(false));
        let flying = Mutex::new(Flying::default());
        thread::scope(|scope| {
            for priority in [Prefetch, Foreground, Listing, Foreground, Prefetch] {
                let (limiter, flying) = (&limiter, &flying);
                scope.spawn(move || {
                    let span = Duration::from_millis(5);
                    let deadline = Deadline::after(Duration::from_millis(8));
                    request(limiter, flying, Budget::Records, priority, deadline, span);
                });
            }
        });
        let all: Vec<_> = (0..MAX_IN_FLIGHT)
            .map(|_| limiter.acquire(Budget::Heads, Foreground, after(1 << 30)))
            .collect();
        assert!(all.iter().all(Option::is_some), "a permit was lost");
    });
}

#[test]
fn a_permit_for_who_gives_up_that_moment_goes_to_the_next() {
    explore("next", 500, 0, || {
        let limiter = Arc::new(Limiter::new(false));
        let take = |deadline| limiter.acquire(Budget::Records, Foreground, deadline);
        let all: Vec<_> = (0..MAX_IN_FLIGHT).map(|_| take(after(1))).collect();
        let begun = now();
        thread::scope(|scope| {
            scope.spawn(|| drop(take(Deadline::after(SPAN))));
            scope.spawn(|| assert!(take(after(3600)).is_some(), "in vain"));
            scope.spawn(move || {
                thread::sleep(SPAN);
                drop(all);
            });
        });
        assert!(now() - begun <= SPAN, "it was not told");
        assert_all_back(&limiter);
    });
}

#[test]
fn a_queue_of_prefetches_delays_nobody_who_waits() {
    explore("priorities", 500, 0, || {
        let limiter = Arc::new(Limiter::new(false));
        let flying = Mutex::new(Flying::default());
        thread::scope(|scope| {
            let (limiter, flying) = (&limiter, &flying);
            for _ in 0..MAX_IN_FLIGHT + 1 {
                // The server takes an hour for what nobody waits for.
                let hour = Duration::from_secs(3600);
                scope.spawn(move || {
                    request(
                        limiter,
                        flying,
                        Budget::Records,
                        Prefetch,
                        after(1 << 20),
                        hour,
                    )
                });
            }
            scope.spawn(move || {
                for _ in 0..3 {
                    let asked = now();
                    let span = Duration::from_secs(1);
                    assert!(request(
                        limiter,
                        flying,
                        Budget::Records,
                        Foreground,
                        after(60),
                        span
                    ));
                    assert!(now() - asked <= span, "it stood behind prefetches");
                }
            });
        });
        assert_all_back(&limiter);
    });
}

/// A server that allows ten a second, and refuses once.
#[test]
fn the_pace_holds_whoever_asks_and_a_refusal_stops_everybody() {
    const LIMIT: u32 = 10;
    explore("pace", 130, 0, || {
        let limiter = Arc::new(Limiter::new(false));
        limiter.learn(Budget::Records, LIMIT);
        let begun: Mutex<Vec<Instant>> = Mutex::default();
        let pause = Duration::from_secs(5);
        let refused = Mutex::new(None);
        thread::scope(|scope| {
            for priority in [Prefetch, Foreground, Listing] {
                let (limiter, begun, refused) = (&limiter, &begun, &refused);
                scope.spawn(move || {
                    for round in 0..6 {
                        let permit = limiter
                            .acquire(Budget::Records, priority, after(3600))
                            .expect("everybody gets on");
                        begun.lock().push(now());
                        if priority == Listing && round == 2 {
                            limiter.refused(Budget::Records, Some(pause), true);
                            *refused.lock() = Some(now());
                        }
                        drop(permit);
                    }
                });
            }
        });
        let begun = begun.lock();
        for from in begun.iter() {
            let second = *from..*from + Duration::from_secs(1);
            let count = begun.iter().filter(|at| second.contains(at)).count();
            assert!(count <= LIMIT as usize, "{count} in a second");
        }
        let refused = refused.lock().expect("it was");
        // Those that had been let through before the refusal came may still begin.
        let during = begun
            .iter()
            .filter(|at| (refused..refused + pause).contains(at) && **at > refused)
            .count();
        assert_eq!(during, 0, "begun although told to wait");
        drop(begun);
        assert_all_back(&limiter);
    });
}
