use super::*;

const MS: Duration = Duration::from_millis(1);

/// Lets requests begin as fast as they may from `now` on, all answered at once; returns when each
/// began.
fn run(pace: &mut Pace, priority: Priority, mut now: Moment, count: usize) -> Vec<Moment> {
    let mut begun = Vec::new();
    while begun.len() < count {
        match pace.take(priority, now) {
            Ok(()) => {
                pace.land(priority, now, now, None);
                begun.push(now);
            }
            Err(wait) => now += wait,
        }
    }
    begun
}

fn bytes(pace: &Pace) -> Vec<u8> {
    let mut bytes = Vec::new();
    pace.write(&mut bytes);
    bytes
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
        assert!(most as f64 >= limit * WINDOW_SHARE, "{most} of {limit}");
        let seconds = (begun[2999] - begun[0]).as_secs_f64();
        assert!(3000.0 / seconds > limit * 0.93, "{seconds}");
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
fn after_a_refusal_requests_begin_evenly_for_an_hour() {
    let mut pace = Pace::new(200.0, true);
    let refused = Duration::from_secs(50);
    pace.refuse(refused, None, true);
    let most_in_ten = |pace: &mut Pace, now| {
        let begun = run(pace, Priority::Foreground, now, 400);
        let of = |from: Moment| {
            begun
                .iter()
                .filter(move |at| (from..from + MS * 10).contains(at))
        };
        begun.iter().map(|from| of(*from).count()).max()
    };
    let recovered = refused + Duration::from_secs(60);
    assert_eq!(pace.share(recovered), 1.0);
    assert!(most_in_ten(&mut pace, recovered) <= Some(6));
    let later = refused + EVEN;
    assert!(most_in_ten(&mut pace, later) >= Some(190));
}

#[test]
fn an_answer_frees_its_place_a_second_later_and_silence_after_three() {
    let mut pace = Pace::new(2.0, true);
    let start = Duration::from_secs(50);
    let foreground = Priority::Foreground;
    for _ in 0..2 {
        pace.take(foreground, start).expect("a place");
    }
    let answered = start + MS * 500;
    pace.land(foreground, start, answered, None);
    let second = Duration::from_secs(1);
    assert!(pace.clone().take(foreground, answered + second).is_err());
    let late = answered + second + MS * 30;
    pace.take(foreground, late)
        .expect("that of the answered one");
    pace.land(foreground, late, late, None);
    assert!(pace.clone().take(foreground, start + second * 2).is_err());
    let forgotten = start + second * 3;
    pace.take(foreground, forgotten).expect("both");
    pace.take(foreground, forgotten).expect("both");
}

#[test]
fn what_the_line_always_takes_delays_no_other() {
    let start = Duration::from_secs(50);
    let mut pace = Pace::new(1.0, true);
    let trip = MS * 400;
    let mut now = start;
    for _ in 0..20 {
        while let Err(wait) = pace.take(Priority::Foreground, now) {
            now += wait;
        }
        pace.land(Priority::Foreground, now, now + trip, Some(trip));
        now += trip;
    }
    let a_second_each = Duration::from_secs(19) + trip;
    assert!((a_second_each..a_second_each + MS * 30 * 20).contains(&(now - start)));
}

#[test]
fn the_less_urgent_leaves_places_and_waits_for_whoever_waits() {
    let mut pace = Pace::new(100.0, true);
    let mut now = Duration::from_secs(50);
    let take_all = |pace: &mut Pace, priority| {
        let mut count = 0;
        while pace.take(priority, now).is_ok() {
            pace.land(priority, now, now, None);
            count += 1;
        }
        count
    };
    assert_eq!(take_all(&mut pace, Priority::Prefetch), 95);
    assert_eq!(take_all(&mut pace, Priority::Foreground), 3);
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
fn where_a_program_asks_for_much_more_places_stay_for_it() {
    let mut pace = Pace::new(200.0, true);
    let now = Duration::from_secs(50);
    for _ in 0..40 {
        pace.take(Priority::Foreground, now).expect("a place");
    }
    let mut ahead = 0;
    while pace.take(Priority::Prefetch, now).is_ok() {
        ahead += 1;
    }
    assert_eq!(ahead, 196 - 40 - 40);
}

#[test]
fn what_is_on_disk_makes_sense_or_is_not_believed() {
    let now = Duration::from_secs(1000);
    let mut pace = Pace::new(200.0, true);
    pace.refuse(now, Some(Duration::from_secs(2)), true);
    let _ = pace.take(Priority::Listing, now);
    assert_eq!(Pace::from_bytes(&bytes(&pace), now), Some(pace.clone()));
    // Read by a process that has looked at the time before that.
    let before = Pace::from_bytes(&bytes(&pace), now - MS * 100).expect("sense");
    assert_eq!(before.window, pace.window);
    // The machine has been restarted: the time begins at 0 again.
    let mut after = Pace::from_bytes(&bytes(&pace), Duration::from_secs(1)).expect("sense");
    let begun = run(&mut after, Priority::Foreground, Duration::from_secs(1), 1);
    assert!(begun[0] <= Duration::from_secs(2), "{begun:?}");
    for broken in [f64::NAN, 0.0, -1.0, f64::INFINITY] {
        let limited = Pace {
            limit: broken,
            ..pace.clone()
        };
        assert_eq!(Pace::from_bytes(&bytes(&limited), now), None);
        let shared = Pace {
            share: broken,
            ..pace.clone()
        };
        assert_eq!(Pace::from_bytes(&bytes(&shared), now), None);
    }
}
