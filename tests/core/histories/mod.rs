//! Every history of a few steps, and all that can happen while one of them waits for the store.
//!
//! A step is what a program does to a file: it stores it again, edits it in place, appends to it,
//! creates it exclusively, each with and without `fsync`; it holds it open, changes and closes it
//! later; it deletes, renames or truncates it. Wherever a step, or an upload in the background, waits
//! for the store, one thing happens: it is answered, refused with 403 or 412, fails with 500, its
//! answer is lost, the program is ended, the daemon is killed (before or after) and mounts again, the
//! disk is full, another client stores the record, or the next step is made meanwhile. Then `kvfs
//! recover --upload` is run.
//!
//! Store, mount and journal are compared with a reference model, and with the rules W1 to W6 that
//! `upload` states (`oracle`). Everything runs without a kernel; time and the order of requests are
//! the run's. `KVFS_HISTORY` runs one history as a failure names it; `KVFS_HISTORIES`, or the long form,
//! runs those of two and three steps too, `KVFS_TEST_SHARE=3/20` a share of each set.
#![allow(clippy::print_stdout, reason = "says how much was tried")]

mod actor;
mod choices;
mod explore;
mod oracle;
mod rig;
mod run;
mod steps;
mod turnstile;

use std::time::{Duration, Instant};

use explore::explore;
use rig::{Folders, Mode};
use run::Case;
use steps::{Step, histories};

use crate::support::{long, share};

/// Returns whether sets are run whose runs take long.
#[expect(
    clippy::disallowed_methods,
    reason = "which tests are run is no setting of kvfs"
)]
fn all_sets() -> bool {
    long() || std::env::var_os("KVFS_HISTORIES").is_some()
}

/// With and without entity tags; with `--write-back` uploads are made at once, or as late as they can.
fn modes() -> Vec<Mode> {
    let mut modes = Vec::new();
    for etags in [true, false] {
        for (write_back, lazy) in [(false, false), (true, false), (true, true)] {
            modes.push(Mode {
                write_back,
                etags,
                lazy,
            });
        }
    }
    modes
}

/// Which histories of one length, and what may happen in them.
struct Set {
    len: usize,
    exists: [bool; 2],
    steps: Vec<Step>,
    case: Case,
}

impl Set {
    fn new(len: usize) -> Self {
        let case = Case {
            mode: modes()[0],
            exists: [true, false],
            suffix: "",
            steps: Vec::new(),
            clock_points: false,
            warm: false,
            deviations: 1,
            eventful: len,
            only_clock: false,
        };
        Self {
            len,
            exists: case.exists,
            steps: steps::all(),
            case,
        }
    }

    fn cases(&self) -> Vec<Case> {
        let mut cases = Vec::new();
        for steps in histories(self.len, self.exists, &self.steps) {
            for mode in modes() {
                cases.push(Case {
                    mode,
                    exists: self.exists,
                    steps: steps.clone(),
                    ..self.case.clone()
                });
            }
        }
        cases
    }
}

/// The steps of histories of three: of those that take the same way through the code, one.
fn few() -> Vec<Step> {
    let mut steps = vec![Step::Change, Step::Close];
    for name in [0, 1] {
        steps.extend([
            Step::Store(name),
            Step::Append(name),
            Step::Exclusive(name),
            Step::StoreSync(name),
            Step::Hold(name),
            Step::Take(name),
            Step::Unlink(name),
            Step::Rename(name, 1 - name),
            Step::Truncate(name),
        ]);
    }
    steps
}

/// Runs the histories of a set, and fails if any of them breaks a rule.
fn all_hold(what: &str, sets: &[Set]) {
    let (start, threads) = (Instant::now(), threads());
    let _folders = Folders::new();
    let mut cases: Vec<Case> = sets.iter().flat_map(Set::cases).collect();
    let all = cases.len();
    if all_sets() {
        cases = share(all).iter().map(|at| cases[*at].clone()).collect();
    }
    let found = explore(&cases, threads, limit());
    println!(
        "{what}: {} histories of {}, {} runs, {:.1?}",
        found.histories,
        all,
        found.runs,
        start.elapsed()
    );
    let mut failures: Vec<_> = found.failures.values().collect();
    failures.sort_by_key(|failure| failure.weight());
    let shown: Vec<String> = failures.iter().map(|failure| failure.text()).collect();
    assert!(
        shown.is_empty(),
        "{} runs broke a rule; the shortest of each kind:\n{}",
        found.failed,
        shown.join("\n")
    );
}

fn threads() -> usize {
    std::thread::available_parallelism().map_or(2, |n| n.get().min(8))
}

fn limit() -> Duration {
    Duration::from_secs(if all_sets() { 3600 } else { 1200 })
}

#[test]
fn one_step_and_two_events() {
    let mut sets = vec![Set::new(1), Set::new(1), Set::new(1)];
    sets[1].case.suffix = ".part";
    sets[2].exists = [true, true];
    for set in &mut sets {
        set.case.deviations = 2;
    }
    all_hold("one step", &sets);
}

#[test]
fn two_steps_and_one_event() {
    if !all_sets() {
        return;
    }
    let mut sets = vec![Set::new(2), Set::new(2)];
    // Only what a rename replaces differs from the first set.
    sets[1].exists = [true, true];
    all_hold("two steps", &sets);
}

#[test]
fn two_steps_with_temporary_names() {
    if !all_sets() {
        return;
    }
    let mut set = Set::new(2);
    set.case.suffix = ".part";
    all_hold("temporary names", &[set]);
}

#[test]
fn two_steps_at_once_on_one_machine() {
    let mut set = Set::new(2);
    (set.case.clock_points, set.case.only_clock) = (true, true);
    all_hold("two steps at once", &[set]);
}

#[test]
fn three_steps_and_one_event() {
    if !all_sets() {
        return;
    }
    let mut set = Set::new(3);
    set.steps = few();
    (set.case.warm, set.case.eventful) = (true, 2);
    all_hold("three steps", &[set]);
}

/// As many as there is time for.
#[test]
fn longer_histories_and_more_events() {
    if !long() {
        return;
    }
    let mut two = Set::new(2);
    two.case.deviations = 2;
    let three = Set::new(3);
    let mut four = Set::new(4);
    four.steps = few();
    (four.case.warm, four.case.eventful) = (true, 3);
    all_hold("two steps and two events", &[two]);
    all_hold("all of three steps", &[three]);
    all_hold("four steps", &[four]);
}

/// Runs the history that `KVFS_HISTORY` names, and shows what happens.
#[test]
#[expect(
    clippy::disallowed_methods,
    reason = "which history is run is no setting of kvfs"
)]
fn the_named_history() {
    let Ok(text) = std::env::var("KVFS_HISTORY") else {
        return;
    };
    let (case, choices) = explore::parse(&text);
    let _folders = Folders::new();
    let (_, broken, trace) = explore::run_once(&mut None, &case, choices);
    println!("{}", trace.join("\n"));
    assert!(broken.is_empty(), "{broken:#?}");
}
