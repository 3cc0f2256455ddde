use std::collections::VecDeque;

use super::*;

const NAME: &str = "store";
const LIMITS: [f64; KINDS] = [200.0, 60.0, 60.0, 200.0];

fn process(dir: &Path) -> Budgets {
    let budgets = Budgets::new(LIMITS, true);
    budgets.share(dir, NAME);
    budgets
}

/// Runs processes that all want as much as they can get, for this long; returns when requests
/// began, and in which process.
fn saturate(processes: &[(Budgets, Priority)], span: Duration) -> Vec<(Moment, usize)> {
    let start = Duration::from_secs(100);
    let mut turns: VecDeque<(Moment, usize)> =
        (0..processes.len()).map(|index| (start, index)).collect();
    let mut begun = Vec::new();
    while let Some((now, index)) = turns.pop_front() {
        if now > start + span {
            continue;
        }
        let (budgets, priority) = &processes[index];
        let again = match budgets.take(0, *priority, now) {
            Ok(()) => {
                budgets.answered(0, *priority, now, now);
                begun.push((now, index));
                now
            }
            Err(wait) => now + wait,
        };
        let place = turns.partition_point(|(at, _)| *at <= again);
        turns.insert(place, (again, index));
    }
    begun
}

fn most_in_a_second(begun: &[(Moment, usize)]) -> usize {
    let mut from = 0;
    let mut most = 0;
    for (at, (moment, _)) in begun.iter().enumerate() {
        while *moment >= begun[from].0 + Duration::from_secs(1) {
            from += 1;
        }
        most = most.max(at - from + 1);
    }
    most
}

#[test]
fn three_processes_together_keep_to_the_limit() {
    let dir = tempfile::tempdir().expect("a temp folder");
    let processes: Vec<_> = (0..3)
        .map(|_| (process(dir.path()), Priority::Prefetch))
        .collect();
    let begun = saturate(&processes, Duration::from_secs(60));
    assert!(
        most_in_a_second(&begun) <= 200,
        "{}",
        most_in_a_second(&begun)
    );
    assert!(begun.len() > 60 * 180, "{}", begun.len());
    for index in 0..3 {
        let share = begun.iter().filter(|(_, other)| *other == index).count();
        assert!(
            share > begun.len() / 10,
            "{index} got {share} of {}",
            begun.len()
        );
    }
}

#[test]
fn a_person_goes_before_the_prefetching_of_another_process() {
    let dir = tempfile::tempdir().expect("a temp folder");
    let processes = [
        (process(dir.path()), Priority::Foreground),
        (process(dir.path()), Priority::Prefetch),
    ];
    let begun = saturate(&processes, Duration::from_secs(20));
    assert!(most_in_a_second(&begun) <= 200);
    let urgent = begun.iter().filter(|(_, index)| *index == 0).count();
    assert!(
        urgent * 100 > begun.len() * 98,
        "{urgent} of {}",
        begun.len()
    );
}

#[test]
fn what_one_process_is_told_the_others_know() {
    let dir = tempfile::tempdir().expect("a temp folder");
    let (one, other) = (process(dir.path()), process(dir.path()));
    let now = Duration::from_secs(100);
    one.learn(1, 10.0, now);
    one.refuse(1, now, Some(Duration::from_secs(5)), true);
    let wait = other
        .take(1, Priority::Foreground, now)
        .expect_err("a pause");
    assert!(wait >= Duration::from_secs(5), "{wait:?}");
    assert_eq!(
        other.take(0, Priority::Foreground, now),
        Ok(()),
        "another kind"
    );
}

#[test]
fn requests_that_began_before_a_limit_was_known_count_in_all_processes() {
    let dir = tempfile::tempdir().expect("a temp folder");
    let now = Duration::from_secs(100);
    let known = process(dir.path());
    for _ in 0..50 {
        known.take(1, Priority::Foreground, now).expect("a place");
    }
    let unaware = Budgets::new(LIMITS, false);
    unaware.share(dir.path(), NAME);
    for _ in 0..5 {
        unaware.take(1, Priority::Foreground, now).expect("a place");
    }
    unaware.answered(1, Priority::Foreground, now, now);
    unaware.learn(1, LIMITS[1], now);
    let mut left = 0;
    while known.take(1, Priority::Foreground, now).is_ok() {
        left += 1;
    }
    assert_eq!(left, 59 - 50 - 5);
}

#[test]
fn a_missing_broken_or_locked_file_is_no_hindrance() {
    let dir = tempfile::tempdir().expect("a temp folder");
    let path = dir.path().join(format!("{NAME}.{VERSION}"));
    let mut now = Duration::from_secs(100);
    let mut both_take = |what: &str| {
        now += Duration::from_secs(10);
        let (one, other) = (process(dir.path()), process(dir.path()));
        let mut begun = 0;
        while one.take(1, Priority::Listing, now).is_ok()
            || other.take(1, Priority::Listing, now).is_ok()
        {
            begun += 1;
        }
        // Together as many as one may.
        assert_eq!(begun, 59, "{what}");
    };
    both_take("missing");
    fs::write(&path, b"").expect("an empty file");
    both_take("empty");
    fs::write(&path, [0xff; KINDS * PART_LEN]).expect("a broken file");
    both_take("broken");
    fs::write(&path, vec![7; 1 << 16]).expect("a large file");
    both_take("large");
    fs::remove_file(&path).expect("a file");
    let removed = process(dir.path());
    assert_eq!(removed.take(1, Priority::Listing, now), Ok(()));
    fs::remove_file(&path).expect("it was made again");
    assert_eq!(removed.take(1, Priority::Listing, now), Ok(()));
    assert!(path.exists(), "a removed file is not written on in secret");
    // A process was stopped while holding the lock: this process counts for itself.
    let held = File::open(&path).expect("a file");
    flock(&held, FlockOperation::LockExclusive).expect("a lock");
    let stuck = process(dir.path());
    assert_eq!(stuck.take(1, Priority::Listing, now), Ok(()));
    while stuck.take(1, Priority::Listing, now).is_ok() {}
    // No folder can be made below a file.
    let nowhere = Budgets::new(LIMITS, true);
    nowhere.share(&path.join("x"), NAME);
    assert_eq!(nowhere.take(1, Priority::Listing, now), Ok(()));
    while nowhere.take(1, Priority::Listing, now).is_ok() {}
}

#[test]
fn nothing_is_written_for_a_server_that_does_not_limit() {
    let dir = tempfile::tempdir().expect("a temp folder");
    let budgets = Budgets::new(LIMITS, false);
    budgets.share(&dir.path().join("budgets"), NAME);
    for _ in 0..1000 {
        assert_eq!(budgets.take(0, Priority::Prefetch, now()), Ok(()));
    }
    assert!(!dir.path().join("budgets").exists());
}
