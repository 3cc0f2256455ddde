//! The clock against simulated stores: it must never vouch for what has changed.

use std::time::{Duration, SystemTime};

use proptest::prelude::*;

use super::{Remembered, Span, StoreClock, StoreState, Trust};

/// A moment of the simulated server, in milliseconds.
fn at(ms: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000) + Duration::from_millis(ms)
}

const fn seconds(count: u64) -> u64 {
    count * 1000
}

/// What is known of a moment: up to 1.2 seconds too early, 0.8 too late.
fn seen(ms: u64) -> Span {
    Span {
        earliest: at(ms - 1200),
        latest: at(ms + 800),
    }
}

const LAG: Duration = Duration::from_secs(15);
const START: u64 = 100_000_000;

/// A store that shows writes some time later, in order.
struct Server {
    /// Writes: when, and when they show.
    writes: Vec<(u64, u64)>,
}

impl Server {
    fn new() -> Self {
        Self {
            writes: vec![(START - seconds(3600), START - seconds(3600))],
        }
    }

    fn write(&mut self, now: u64, lag: u64) {
        let before = self.writes.last().map_or(0, |(_, shows)| *shows);
        self.writes.push((now, before.max(now + lag)));
    }

    fn state(&self, now: u64) -> StoreState {
        let shown = self.writes.iter().filter(|(_, shows)| *shows <= now);
        StoreState {
            modified: at(shown
                .clone()
                .map(|(write, _)| *write)
                .max()
                .unwrap_or(START)),
            created: Some(at(START - seconds(7200))),
            changes: Some(shown.count() as u64),
        }
    }
}

#[derive(Clone, Debug)]
enum Step {
    /// Another writer writes; it shows this many milliseconds later.
    Others(u64),
    /// This mount writes.
    Own(u64),
    /// The store is asked about.
    Ask,
    /// A content is read.
    Read,
    /// The mount ends and another begins.
    Remount,
}

fn step() -> impl Strategy<Value = (u64, Step)> {
    let lag = 0u64..15_000;
    let step = prop_oneof![
        2 => lag.clone().prop_map(Step::Others),
        2 => lag.prop_map(Step::Own),
        5 => Just(Step::Ask),
        4 => Just(Step::Read),
        1 => Just(Step::Remount),
    ];
    (0u64..20_000, step)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    /// No other writer has changed what the clock vouches for since it was read, up to the last
    /// question less the lag; while own writes do not all show yet, less four times the lag.
    #[test]
    fn it_never_vouches_for_what_others_have_changed(steps in proptest::collection::vec(step(), 1..60)) {
        let (mut server, mut clock) = (Server::new(), StoreClock::new(LAG, None));
        let (mut now, mut asked) = (START, None);
        let mut others: Vec<u64> = Vec::new();
        let mut own: Vec<u64> = Vec::new();
        let mut reads: Vec<(u64, SystemTime)> = Vec::new();
        for (pause, step) in steps {
            now += pause + 1;
            match step {
                Step::Others(lag) => {
                    others.push(now);
                    server.write(now, lag);
                }
                Step::Own(lag) => {
                    own.push(now);
                    server.write(now, lag);
                    clock.wrote(seen(now), false);
                }
                Step::Ask => {
                    clock.answered(seen(now), &server.state(now));
                    asked = Some(now);
                }
                Step::Read => reads.push((now, seen(now).earliest)),
                Step::Remount => {
                    clock = StoreClock::new(LAG, Some(clock.remembered()));
                    asked = None;
                }
            }
            let Some(asked) = asked else { continue };
            let is_own_open = own.iter().any(|write| write + 17_000 > asked);
            let shown = asked - if is_own_open { 62_000 } else { 16_200 };
            for (read, told) in &reads {
                let changed = others.iter().any(|write| write > read && *write <= shown);
                prop_assert!(
                    !(changed && clock.vouches(*told)),
                    "read at {read}, asked at {asked}, others wrote at {others:?}, own {own:?}"
                );
            }
        }
    }

    /// After a while without changes it vouches for all that was read since the last one.
    #[test]
    fn it_vouches_for_a_store_at_rest(
        before in proptest::collection::vec(step(), 0..40),
        reads in proptest::collection::vec(0u64..seconds(60), 1..5),
    ) {
        let (mut server, mut clock) = (Server::new(), StoreClock::new(LAG, None));
        let mut now = START;
        for (pause, step) in before {
            now += pause + 1;
            match step {
                Step::Others(lag) => server.write(now, lag),
                Step::Own(lag) => {
                    server.write(now, lag);
                    clock.wrote(seen(now), false);
                }
                Step::Ask => {
                    clock.answered(seen(now), &server.state(now));
                }
                Step::Read => {}
                Step::Remount => clock = StoreClock::new(LAG, Some(clock.remembered())),
            }
        }
        let quiet = now + seconds(20);
        let end = quiet + seconds(61);
        clock.answered(seen(end), &server.state(end));
        for read in reads {
            prop_assert!(clock.vouches(seen(quiet + read).earliest), "{clock:?}");
        }
        let again = StoreClock::new(LAG, Some(clock.remembered()));
        prop_assert!(!again.vouches(seen(quiet).earliest), "nothing was asked yet");
    }

    /// Whatever a server says, in any order: no panic, and nothing read before a change that was
    /// seen is vouched for.
    #[test]
    fn no_server_makes_it_forget_a_change_that_was_seen(
        answers in proptest::collection::vec((0u64..seconds(400), 0u64..seconds(400), proptest::option::of(0u64..9)), 1..30),
        change in 0u64..seconds(200),
    ) {
        let mut clock = StoreClock::new(LAG, None);
        clock.saw_change(at(START + change), at(START + change + 500));
        let mut answers = answers;
        answers.sort_by_key(|(asked, ..)| *asked);
        for (asked, modified, changes) in answers {
            let state = StoreState {
                modified: at(START + modified),
                created: Some(at(START - seconds(7200))),
                changes,
            };
            clock.answered(seen(START + asked), &state);
            if modified < change {
                prop_assert!(!clock.vouches(at(START + change)), "{clock:?}");
            }
        }
    }
}

fn state(modified: u64, changes: u64) -> StoreState {
    StoreState {
        modified: at(modified),
        created: Some(at(START - seconds(7200))),
        changes: Some(changes),
    }
}

/// A clock that has answered once, of a store that rests since long.
fn rested(lag: Duration) -> StoreClock {
    let mut clock = StoreClock::new(lag, None);
    clock.answered(seen(START), &state(START - seconds(3600), 7));
    clock
}

const READ: u64 = START - seconds(100);

#[test]
fn a_clock_that_only_shows_the_creation_is_not_believed() {
    let mut clock = StoreClock::new(LAG, None);
    let never = StoreState {
        created: Some(at(START - seconds(3600))),
        ..state(START - seconds(3600) + 900, 7)
    };
    clock.answered(seen(START), &never);
    assert_eq!(clock.trust(), &Trust::Unproven);
    assert!(!clock.vouches(at(READ)));
    // An own write that shows earns it trust.
    clock.wrote(seen(START + seconds(1)), false);
    let moved = StoreState {
        modified: at(START + seconds(1)),
        changes: Some(8),
        ..never
    };
    clock.answered(seen(START + seconds(40)), &moved);
    assert_eq!(clock.trust(), &Trust::Earned);
    assert!(clock.vouches(at(READ)), "no other writer has written");
}

#[test]
fn a_clock_that_stands_still_while_something_changes_proves_nothing_and_is_given_up() {
    let mut clock = rested(LAG);
    assert!(clock.vouches(at(READ)));
    let still = state(START - seconds(3600), 7);
    clock.saw_change(at(START + seconds(1)), at(START + seconds(2)));
    assert!(!clock.vouches(at(READ)), "what was read before the change");
    clock.answered(seen(START + seconds(12)), &still);
    assert!(!clock.is_doubted(), "it may be late");
    assert!(
        clock.vouches(at(START + seconds(8))),
        "read after the change"
    );
    clock.answered(seen(START + seconds(30)), &still);
    assert!(clock.is_doubted() && !clock.vouches(at(START + seconds(8))));
    clock.answered(seen(START + seconds(200)), &still);
    assert!(matches!(clock.trust(), Trust::Lost(_)), "{clock:?}");
    let again = StoreClock::new(LAG, Some(clock.remembered()));
    assert!(matches!(again.trust(), Trust::Lost(_)), "it is remembered");
    let patient = StoreClock::new(LAG * 4, Some(clock.remembered()));
    assert_eq!(patient.trust(), &Trust::Unproven, "with more patience");
}

#[test]
fn a_doubt_outlives_the_mount() {
    let mut clock = rested(LAG);
    clock.saw_change(at(START + seconds(1)), at(START + seconds(2)));
    let mut again = StoreClock::new(LAG, Some(clock.remembered()));
    again.answered(seen(START + seconds(60)), &state(START - seconds(3600), 7));
    assert!(again.is_doubted() && !again.vouches(at(READ)));
}

#[test]
fn a_clock_that_is_later_than_allowed_is_learned_from() {
    let mut clock = rested(LAG);
    let still = state(START - seconds(3600), 7);
    clock.answered(seen(START + seconds(50)), &still);
    assert!(clock.vouches(at(READ)), "nothing shows that it is late");
    clock.answered(seen(START + seconds(61)), &state(START + seconds(1), 8));
    assert!(clock.lag() >= Duration::from_secs(45), "{:?}", clock.lag());
    assert!(
        !clock.vouches(at(START + seconds(30))),
        "read while the change did not show"
    );
    let again = StoreClock::new(LAG, Some(clock.remembered()));
    assert_eq!(again.lag(), clock.lag());
}

#[test]
fn a_clock_that_goes_back_is_given_up_and_one_from_the_past_is_no_news() {
    let mut clock = rested(LAG);
    assert!(clock.answered(seen(START + seconds(30)), &state(START + seconds(1), 8)));
    let older = state(START + seconds(1) - 9000, 8);
    assert!(!clock.answered(seen(START + seconds(60)), &older));
    assert_eq!(clock.trust(), &Trust::Earned);
    clock.answered(seen(START + seconds(90)), &state(START - seconds(3600), 7));
    assert!(matches!(clock.trust(), Trust::Lost(_)));
}

#[test]
fn what_was_read_before_the_time_was_set_back_is_not_believed() {
    let hour = seconds(3600);
    for remounts in [false, true] {
        let mut clock = rested(LAG);
        let store = state(START - hour, 7);
        assert!(clock.answered(seen(START + hour), &store));
        let read = at(START + hour - seconds(1));
        assert!(clock.vouches(read));
        if remounts {
            clock = StoreClock::new(LAG, Some(clock.remembered()));
        }
        clock.answered(seen(START), &store);
        for later in [0, 1800, 3600, 3610] {
            clock.answered(seen(START + seconds(later)), &store);
            assert!(!clock.vouches(read), "{later} s after");
        }
        let now = START + hour + seconds(60);
        clock.answered(seen(now), &store);
        assert!(!clock.vouches(read));
        assert!(clock.vouches(at(now - seconds(30))), "read since");
    }
}

#[test]
fn a_clock_that_moves_when_records_are_read_proves_nothing() {
    let mut clock = rested(LAG);
    for ask in 1..20 {
        let now = START + seconds(10 * ask);
        clock.answered(seen(now), &state(now - 7000, 7));
        assert!(!clock.vouches(at(now - 9000)), "{ask}");
    }
}

#[test]
fn own_writes_are_told_from_those_of_others_by_counting() {
    for (others, changes, vouched) in [(false, 8, true), (true, 9, false)] {
        let mut clock = rested(LAG);
        let write = START + seconds(5);
        clock.wrote(seen(write), false);
        // Before it shows, when it shows but could hide others', and once all must show.
        clock.answered(seen(write + 2000), &state(START - seconds(3600), 7));
        assert!(clock.vouches(at(READ)));
        clock.answered(seen(write + seconds(9)), &state(write, changes));
        assert_eq!(clock.vouches(at(READ)), vouched, "others: {others}");
        clock.answered(seen(write + seconds(40)), &state(write, changes));
        assert_eq!(clock.vouches(at(READ)), vouched, "others: {others}");
    }
    // Without a count, own writes are like others'.
    let mut clock = StoreClock::new(LAG, None);
    let bare = |modified| StoreState {
        changes: None,
        ..state(modified, 0)
    };
    clock.answered(seen(START), &bare(START - seconds(3600)));
    clock.wrote(seen(START + seconds(5)), false);
    clock.answered(seen(START + seconds(60)), &bare(START + seconds(5)));
    assert!(!clock.vouches(at(READ)));
    assert!(clock.vouches(at(START + seconds(20))));
}

#[test]
fn a_write_whose_outcome_is_not_known_proves_nothing() {
    let mut clock = rested(LAG);
    clock.wrote(seen(START + seconds(5)), true);
    clock.answered(seen(START + seconds(40)), &state(START + seconds(5), 8));
    assert!(!clock.vouches(at(READ)));
}

#[test]
fn a_store_at_work_is_asked_for_each_record() {
    let mut clock = rested(LAG);
    clock.answered(seen(START + seconds(30)), &state(START + seconds(20), 8));
    assert!(
        !clock.vouches(at(START + seconds(26))),
        "it may change again"
    );
    clock.answered(seen(START + seconds(40)), &state(START + seconds(20), 8));
    assert!(clock.vouches(at(START + seconds(26))));
}

#[test]
fn what_an_earlier_mount_knew_of_others_holds_while_nothing_has_changed() {
    let mut clock = rested(LAG);
    let write = START + seconds(5);
    clock.wrote(seen(write), false);
    clock.answered(seen(write + seconds(40)), &state(write, 8));
    let next = |answer: StoreState| {
        let mut next = StoreClock::new(LAG, Some(clock.remembered()));
        next.answered(seen(START + seconds(90)), &answer);
        next
    };
    assert!(next(state(write, 8)).vouches(at(READ)));
    assert!(
        !next(state(write, 9)).vouches(at(READ)),
        "another writer has written"
    );
    assert!(!next(state(START + seconds(60), 9)).vouches(at(READ)));
    assert_eq!(Remembered::default(), StoreClock::default().remembered());
}
