//! Runs a test under many schedules.

use std::panic::{AssertUnwindSafe, catch_unwind};

use shuttle::scheduler::{PctScheduler, RandomScheduler, Schedule, Scheduler, Task, TaskId};
use shuttle::{Config, FailurePersistence, MaxSteps, Runner};

use super::time;

/// The second task of an execution has deadlines pass; see [`time::begin`].
const KEEPER: usize = 1;
/// Threads here are shallow, but not as shallow as shuttle takes them to be.
const STACK: usize = 256 << 10;
/// An execution of more steps than this goes round in circles.
const MOST_STEPS: usize = 200_000;
/// Changes of priority in an execution, by the scheduler that works with priorities: the number of
/// steps that must come in just the wrong order for a fault to show.
const DEPTH: usize = 3;

/// Which schedules to try.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// What a test is called in a report.
    pub name: &'static str,
    /// How many schedules are chosen at random, and how many by priorities that change seldom.
    pub schedules: usize,
    /// Of 1024 steps, this many let the next deadline pass although a thread could run.
    pub hurry: u32,
    /// The first seed.
    pub seed: u64,
}

/// Runs `test` under all schedules of the plan: the first half random, the second by priorities.
///
/// # Panics
/// When an execution does, or ends in a deadlock. The name and the seed that are printed then say
/// how to have that very schedule again.
pub fn explore(plan: Plan, test: impl Fn() + Send + Sync + Clone + 'static) {
    // Each schedule chosen at random has a seed of its own.
    for seed in (plan.seed..).take(plan.schedules) {
        let scheduler = RandomScheduler::new_from_seed(seed, 1);
        run(plan, "random", seed, scheduler, test.clone());
    }
    // The first execution only measures how long they are.
    let scheduler = PctScheduler::new_from_seed(plan.seed, DEPTH, plan.schedules + 1);
    run(plan, "priorities", plan.seed, scheduler, test);
}

fn run(
    plan: Plan,
    kind: &str,
    seed: u64,
    scheduler: impl Scheduler + 'static,
    test: impl Fn() + Send + Sync + 'static,
) {
    let mut config = Config::new();
    config.stack_size = STACK;
    config.max_steps = MaxSteps::FailAfter(MOST_STEPS);
    config.failure_persistence = FailurePersistence::None;
    config.silence_warnings = true;
    let scheduler = Patient {
        inner: scheduler,
        hurry: plan.hurry,
        dice: fastrand::Rng::with_seed(seed),
    };
    let runner = Runner::new(scheduler, config);
    let result = catch_unwind(AssertUnwindSafe(|| {
        runner.run(move || {
            time::begin();
            test();
        })
    }));
    // What it was has been printed.
    assert!(
        result.is_ok(),
        "{}: a schedule failed, kind: {kind}, seed: {seed}",
        plan.name
    );
}

/// Lets no deadline pass while a thread can run, but for the chances that `hurry` gives.
struct Patient<S> {
    inner: S,
    hurry: u32,
    dice: fastrand::Rng,
}

impl<S: Scheduler> Scheduler for Patient<S> {
    fn new_execution(&mut self) -> Option<Schedule> {
        self.inner.new_execution()
    }

    fn next_task(
        &mut self,
        runnable: &[&Task],
        current: Option<TaskId>,
        is_yielding: bool,
    ) -> Option<TaskId> {
        let keeper = TaskId::from(KEEPER);
        // Without the threads that would be woken for nothing.
        let mut able: Vec<&Task> = runnable
            .iter()
            .copied()
            .filter(|task| task.runnable())
            .collect();
        let others = able.iter().filter(|task| task.id() != keeper).count();
        let in_hurry = others < able.len() && self.dice.u32(..1024) < self.hurry;
        if others == 0 || in_hurry {
            return Some(keeper);
        }
        able.retain(|task| task.id() != keeper);
        let is_yielding = is_yielding && able.iter().any(|task| Some(task.id()) == current);
        self.inner.next_task(&able, current, is_yielding)
    }

    fn next_u64(&mut self) -> u64 {
        self.inner.next_u64()
    }
}
