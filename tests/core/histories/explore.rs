//! All runs of many histories, on several threads; what was broken, the shortest history first.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::choices::Choices;
use super::oracle::Broken;
use super::rig::{Mode, Rig};
use super::run::{Case, Run};

/// A run that broke a rule.
#[derive(Clone, Debug)]
pub struct Failure {
    pub case: Case,
    pub choices: Choices,
    pub broken: Vec<Broken>,
    pub trace: Vec<String>,
}

impl Failure {
    pub fn weight(&self) -> (usize, usize, usize) {
        (
            self.case.steps.len(),
            self.choices.deviations(),
            self.trace.len(),
        )
    }

    /// Returns the history, and what was broken.
    pub fn text(&self) -> String {
        let mut text = format!("{}\n", name_of(&self.case, &self.choices));
        for line in &self.trace {
            let _ = writeln!(text, "    {line}");
        }
        for broken in &self.broken {
            let _ = writeln!(text, "  {}: {}", broken.rule, broken.how);
        }
        text
    }
}

/// Returns a run as `KVFS_HISTORY` takes it.
pub fn name_of(case: &Case, choices: &Choices) -> String {
    let steps: Vec<String> = case.steps.iter().map(ToString::to_string).collect();
    let Mode {
        write_back,
        etags,
        lazy,
    } = case.mode;
    let mut flags = Vec::new();
    flags.push(if write_back { "back" } else { "through" });
    flags.push(if etags { "etags" } else { "bare" });
    flags.push(if lazy { "lazy" } else { "eager" });
    flags.push(match case.exists {
        [true, true] => "both",
        [true, false] => "one",
        [false, true] => "other",
        [false, false] => "none",
    });
    if case.clock_points {
        flags.push(if case.only_clock {
            "only clock"
        } else {
            "clock"
        });
    }
    if case.warm {
        flags.push("warm");
    }
    if !case.suffix.is_empty() {
        flags.push("temporary");
    }
    format!(
        "{},{}: {} @{}",
        flags.join(","),
        case.eventful,
        steps.join("; "),
        choices.text()
    )
}

/// Reads what [`name_of`] wrote.
pub fn parse(text: &str) -> (Case, Choices) {
    let (flags, rest) = text.split_once(": ").expect("flags: steps");
    let (steps, choices) = rest.split_once(" @").unwrap_or((rest, ""));
    let (_, eventful) = flags.rsplit_once(',').expect("a number of steps");
    let has = |flag: &str| flags.split(',').any(|one| one == flag);
    let case = Case {
        mode: Mode {
            write_back: has("back"),
            etags: has("etags"),
            lazy: has("lazy"),
        },
        exists: [has("one") || has("both"), has("other") || has("both")],
        suffix: if has("temporary") { ".part" } else { "" },
        steps: steps
            .split("; ")
            .map(|step| step.parse().expect("a step"))
            .collect(),
        clock_points: has("clock") || has("only clock"),
        only_clock: has("only clock"),
        eventful: eventful.parse().expect("a number"),
        warm: has("warm"),
        deviations: 0,
    };
    let given = choices.split('.').filter(|one| !one.is_empty());
    let given = given.map(|one| one.parse().expect("a choice")).collect();
    (case, Choices::new(given))
}

/// What came of an exploration.
#[derive(Debug, Default)]
pub struct Found {
    /// Those of which all runs were made.
    pub histories: usize,
    pub runs: u64,
    /// The shortest of each kind.
    pub failures: BTreeMap<String, Failure>,
    pub failed: u64,
}

static SERIAL: AtomicU64 = AtomicU64::new(0);

/// Runs one case with some choices.
pub fn run_once(
    rig: &mut Option<Rig>,
    case: &Case,
    choices: Choices,
) -> (Choices, Vec<Broken>, Vec<String>) {
    let fit = rig.take().filter(|rig| rig.fit && rig.mode == case.mode);
    let mut own = fit.unwrap_or_else(|| Rig::new(case.mode));
    let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
    let mut run = Run::new(&mut own, case, serial, choices);
    run.play();
    let outcome = (run.choices, run.broken, run.trace);
    *rig = Some(own);
    outcome
}

/// Makes all runs of all cases.
pub fn explore(cases: &[Case], threads: usize, stop_after: Duration) -> Found {
    let next = AtomicUsize::new(0);
    let found = Mutex::new(Found::default());
    let start = Instant::now();
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                let mut rig = None;
                while let Some(case) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
                    explore_case(&mut rig, case, &found);
                    found.lock().histories += 1;
                    if start.elapsed() > stop_after {
                        break;
                    }
                }
            });
        }
    });
    found.into_inner()
}

fn explore_case(rig: &mut Option<Rig>, case: &Case, found: &Mutex<Found>) {
    let mut left = vec![Vec::new()];
    while let Some(given) = left.pop() {
        let (choices, broken, trace) = run_once(rig, case, Choices::new(given));
        left.extend(choices.others(case.deviations));
        let mut found = found.lock();
        found.runs += 1;
        if broken.is_empty() {
            continue;
        }
        found.failed += 1;
        let failure = Failure {
            case: case.clone(),
            choices,
            broken,
            trace,
        };
        let kind = kind_of(&failure);
        let shortest = found
            .failures
            .entry(kind)
            .or_insert_with(|| failure.clone());
        if failure.weight() < shortest.weight() {
            *shortest = failure;
        }
    }
}

/// Returns what failures have in common that are worth being shown once.
fn kind_of(failure: &Failure) -> String {
    let mut rules: Vec<&str> = failure.broken.iter().map(|broken| broken.rule).collect();
    rules.dedup();
    let kinds: Vec<String> = failure
        .case
        .steps
        .iter()
        .map(|step| {
            let text = step.to_string();
            text.split([' ', '+']).next().unwrap_or_default().to_owned()
        })
        .collect();
    let mode = if failure.case.mode.write_back {
        "back"
    } else {
        "through"
    };
    format!("{} {mode} {}", rules.join("+"), kinds.join(" "))
}
