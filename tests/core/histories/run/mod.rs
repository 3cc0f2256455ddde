//! One run of a history: which step goes on when, and what becomes of every request.

use std::fs;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use bytes::Bytes;
use kvfs::store::{ErrorKind, Key};
use parking_lot::Mutex;

use super::actor::{self, Actor, Directory, End, Op, Shared};
use super::choices::Choices;
use super::oracle::{Broken, Content, Past, of, shown};
use super::rig::{HANG, Kept, Mode, Rig};
use super::steps::Step;
use super::turnstile::{Ask, Call, Stir, Verdict};

mod events;

use events::name_of;

mod ending;

/// How often a step is looked at that may be waiting for another.
const LOOK: Duration = Duration::from_micros(300);

/// What is run.
#[derive(Clone, Debug)]
pub struct Case {
    pub mode: Mode,
    /// Which of the two names are records when the history begins.
    pub exists: [bool; 2],
    /// What the names end in.
    pub suffix: &'static str,
    pub steps: Vec<Step>,
    /// Steps can also come between where another looks at the clock.
    pub clock_points: bool,
    /// The records were read before the history begins.
    pub warm: bool,
    pub deviations: usize,
    /// Something may happen in so many steps, the first ones.
    pub eventful: usize,
    /// All that may happen is that a step comes in between where another looks at the clock.
    pub only_clock: bool,
}

/// What may happen at a point where something waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Event {
    Go(Verdict),
    /// Another client stores the record first.
    Other,
    /// The program that waits is ended; the request goes on.
    Interrupt,
    /// The next step is made meanwhile, then this becomes of it.
    Overlap(Verdict),
    /// The daemon is killed before it happens.
    Kill,
    /// The daemon is killed when it has happened.
    KillAfter,
    Full,
}

use Event::{Full, Go, Interrupt, Kill, KillAfter, Other, Overlap};

const ANSWER: Verdict = Verdict::Answer;
const DENIED: Verdict = Verdict::Fail(ErrorKind::Denied);
const CHANGED: Verdict = Verdict::Fail(ErrorKind::Changed);
const FAILED: Verdict = Verdict::Fail(ErrorKind::Server);
const LOST: Verdict = Verdict::Lose(ErrorKind::Network);

/// A step under way.
struct Live {
    index: usize,
    thread: JoinHandle<()>,
    tid: Arc<Mutex<Option<u32>>>,
}

/// A request that waits until something else has happened.
struct Waiting {
    call: Call,
    /// What becomes of it; `None` if that is chosen then.
    verdict: Option<Verdict>,
    /// The step at whose end it goes on.
    until: Option<usize>,
}

pub struct Run<'a> {
    rig: &'a mut Rig,
    case: &'a Case,
    pub choices: Choices,
    shared: Arc<Shared>,
    start: [Content; 2],
    live: Vec<Live>,
    /// Of programs that were ended, and of mounts that were killed.
    leaving: Vec<JoinHandle<()>>,
    next: usize,
    waiting: Vec<Waiting>,
    injected: Vec<ErrorKind>,
    sent: Vec<bool>,
    overlapped: bool,
    full: bool,
    /// The folder of a mount after which no other came.
    killed: Option<u32>,
    others: usize,
    pub broken: Vec<Broken>,
    pub trace: Vec<String>,
    is_hung: bool,
}

impl<'a> Run<'a> {
    pub fn new(rig: &'a mut Rig, case: &'a Case, serial: u64, choices: Choices) -> Self {
        let names = ["a", "b"].map(|name| format!("{name}{serial}{}", case.suffix));
        let mut start = [None, None];
        for (name, exists) in case.exists.into_iter().enumerate() {
            if exists {
                let text = format!("{}0------", ["A", "B"][name]);
                let memory = &rig.turnstile.memory;
                memory.insert(&names[name], "text/plain", Default::default(), text.clone());
                start[name] = Some(Bytes::from(text));
            }
        }
        let steps = case.steps.len();
        Self {
            rig,
            case,
            choices,
            shared: Arc::new(Shared {
                names,
                dir: Directory::default(),
                ops: Mutex::default(),
                held: Mutex::default(),
            }),
            start,
            live: Vec::new(),
            leaving: Vec::new(),
            next: 0,
            waiting: Vec::new(),
            injected: Vec::new(),
            sent: vec![false; steps + 1],
            overlapped: false,
            full: false,
            killed: None,
            others: 0,
            broken: Vec::new(),
            trace: Vec::new(),
            is_hung: false,
        }
    }

    /// Runs it, and checks everything.
    pub fn play(&mut self) {
        self.rig.turnstile.reset();
        self.rig.mount.later();
        // What exists is known without asking; its content is where so told.
        self.rig.mount.list();
        if self.case.warm {
            for name in &self.shared.names.clone() {
                let _ = self.rig.mount.cat(name);
            }
        }
        self.rig.turnstile.set_clock_points(self.case.clock_points);
        self.rig.turnstile.set_open(false);
        self.play_steps();
        self.rig.turnstile.set_clock_points(false);
        if self.is_hung {
            self.rig.fit = false;
            return;
        }
        self.finish();
        self.clean_up();
    }

    fn play_steps(&mut self) {
        while !self.is_hung && self.killed.is_none() {
            if self.live.is_empty() && !self.rig.mode.lazy {
                self.drain(false);
            }
            if self.live.is_empty() {
                if self.next == self.case.steps.len() {
                    break;
                }
                self.begin();
            }
            self.turn();
        }
        if self.killed.is_some() || self.is_hung {
            return;
        }
        if self.rig.mode.lazy && self.rig.mount.is_uploading() && self.choices.pick(2) == 1 {
            self.say("killed while uploads wait");
            self.kill(true);
            return;
        }
        self.drain(true);
    }

    /// Begins the next step.
    fn begin(&mut self) {
        let index = self.next;
        self.next += 1;
        let step = self.case.steps[index];
        let began = self.rig.turnstile.tick();
        self.shared.ops.lock().push(Op::new(step, began));
        self.say(format!("{index}: {step}"));
        self.start_actor(index);
    }

    fn start_actor(&mut self, index: usize) {
        let actor = Actor {
            mount: Arc::clone(&self.rig.mount),
            shared: Arc::clone(&self.shared),
            index,
        };
        let tid = Arc::new(Mutex::new(None));
        let own = Arc::clone(&tid);
        let thread = thread::spawn(move || {
            // PID/task/TID
            let own_path = fs::read_link("/proc/thread-self").ok();
            let number = own_path
                .as_ref()
                .and_then(|path| path.file_name()?.to_str()?.parse().ok());
            *own.lock() = number;
            actor.run();
        });
        self.live.push(Live { index, thread, tid });
    }

    /// Lets one thing happen.
    fn turn(&mut self) {
        let since = Instant::now();
        let mut still = 0;
        let mut before = None;
        loop {
            match self.rig.turnstile.next(LOOK) {
                Stir::Call(call) => return self.arrived(call),
                Stir::Finished(mount, _) if mount != self.rig.mount.number => {}
                Stir::Finished(_, index) => return self.finished(index),
                Stir::Nothing => {}
            }
            if self.waiting.is_empty() {
                if since.elapsed() > HANG && self.is_asleep().is_some() {
                    self.hang();
                    return;
                }
                continue;
            }
            let now = self.is_asleep();
            still = if now.is_some() && now == before {
                still + 1
            } else {
                0
            };
            before = now;
            if still >= 3 {
                return self.blocked();
            }
        }
    }

    /// Tells, by how often they ran, whether all steps sleep that do not wait for the store.
    fn is_asleep(&self) -> Option<Vec<u64>> {
        let waiting: Vec<usize> = self
            .waiting
            .iter()
            .filter_map(|one| one.call.step)
            .collect();
        let mut ran = Vec::new();
        for live in self
            .live
            .iter()
            .filter(|live| !waiting.contains(&live.index))
        {
            let tid = (*live.tid.lock())?;
            let read = |what| fs::read_to_string(format!("/proc/self/task/{tid}/{what}")).ok();
            let state = read("stat")?;
            if !state.rsplit_once(')')?.1.trim_start().starts_with('S') {
                return None;
            }
            ran.push(
                read("schedstat")?
                    .split(' ')
                    .next_back()?
                    .trim()
                    .parse()
                    .ok()?,
            );
        }
        Some(ran)
    }

    /// Tells whether the next step can be made while another is: not by two with the same descriptor.
    fn may_begin(&self) -> bool {
        let held = |step| {
            matches!(
                step,
                Step::Hold(_) | Step::Take(_) | Step::Change | Step::Close
            )
        };
        let mut live = self.live.iter().map(|live| self.case.steps[live.index]);
        self.case
            .steps
            .get(self.next)
            .is_some_and(|next| !held(*next) || !live.any(held))
    }

    /// Everybody waits for what is held at the store.
    fn blocked(&mut self) {
        let may_begin =
            self.next < self.case.steps.len() && self.live.len() < 2 && !self.live.is_empty();
        let alternatives = if may_begin { 2 } else { 1 };
        if self.choices.pick(alternatives) == 1 {
            self.say("meanwhile:");
            self.overlapped = true;
            return self.begin();
        }
        let one = self.waiting.remove(0);
        self.go_on(one);
    }

    fn go_on(&mut self, one: Waiting) {
        match one.verdict {
            Some(verdict) => {
                self.say(format!("{} goes on: {verdict:?}", name_of(&one.call)));
                self.decide(&one.call, verdict);
            }
            None => self.choose_upload(&one.call),
        }
    }

    fn decide(&mut self, call: &Call, verdict: Verdict) {
        if let Verdict::Fail(kind) | Verdict::Lose(kind) = verdict {
            self.injected.push(kind);
        }
        if let Some(step) = call.step.filter(|_| call.ask.changes()) {
            self.sent[step] = true;
            self.shared.ops.lock()[step].deletes |= call.ask == Ask::Delete;
        }
        self.rig.turnstile.decide(call.id, verdict);
    }

    /// A step has come to its end.
    fn finished(&mut self, index: usize) {
        // Else its mount was killed.
        let Some(at) = self.live.iter().position(|live| live.index == index) else {
            return;
        };
        let live = self.live.remove(at);
        self.leaving.push(live.thread);
        if std::mem::take(&mut self.full) {
            self.rig.mount.set_full(false);
        }
        let op = self.shared.ops.lock()[index].clone();
        self.say(format!("{index} ends: {:?}", op.end));
        self.follow_names(&op);
        let (now, later) = std::mem::take(&mut self.waiting)
            .into_iter()
            .partition(|one| one.until == Some(index));
        self.waiting = later;
        let now: Vec<Waiting> = now;
        for one in now {
            self.go_on(one);
        }
        if self.live.is_empty() && self.waiting.iter().all(|one| one.call.step.is_none()) {
            self.check_now();
        }
    }

    /// Keeps the name under which the held file is.
    fn follow_names(&self, op: &Op) {
        if let Step::Hold(name) | Step::Take(name) = op.step {
            // What took the name meanwhile may have met this file, or another.
            let ops = self.shared.ops.lock();
            let met = ops.iter().find_map(|other| match other.step {
                // What a program that was ended has asked for goes on.
                _ if other.end != Some(End::Interrupted)
                    && other.ended.is_some_and(|ended| ended < op.began) =>
                {
                    None
                }
                Step::Unlink(of) if of == name => Some(None),
                Step::Rename(from, to) if from == name => Some(Some(to)),
                Step::Rename(_, to) if to == name => Some(None),
                _ => None,
            });
            if let Some(held) = &mut *self.shared.held.lock() {
                held.or = held.or.or(met);
            }
            return;
        }
        if let Some(held) = &mut *self.shared.held.lock() {
            let before = held.name;
            held.name = match (op.step, held.name) {
                (Step::Unlink(name), Some(held)) if held == name => None,
                (Step::Rename(from, to), Some(held)) if held == from => Some(to),
                (Step::Rename(_, to), Some(held)) if held == to => None,
                (_, name) => name,
            };
            // It may be another file that was opened while the name changed hands.
            let at_once = op.began < held.opened.1;
            if held.name != before && (op.end != Some(End::Ok) || at_once) {
                held.or = Some(before);
            }
        }
    }

    /// Lets all uploads be made that wait; what is held back for its final name only at the end.
    fn drain(&mut self, last: bool) {
        let since = Instant::now();
        let mut idle = 0;
        let holds_back = !self.case.suffix.is_empty();
        if last && holds_back {
            self.rig.mount.later();
        }
        while !self.is_hung && self.killed.is_none() {
            if !self.waiting.is_empty() {
                let one = self.waiting.remove(0);
                self.go_on(one);
                continue;
            }
            let leaving = self.leaving.iter().any(|thread| !thread.is_finished());
            if !self.rig.mount.is_uploading() && !leaving {
                break;
            }
            match self.rig.turnstile.next(LOOK) {
                Stir::Call(call) if call.step.is_some() => self.decide(&call, ANSWER),
                Stir::Call(call) => self.choose_upload(&call),
                _ if since.elapsed() > HANG => self.hang(),
                _ if holds_back && !last && idle > 4 => break,
                _ => idle += 1,
            }
        }
    }

    fn hang(&mut self) {
        self.is_hung = true;
        let ops = self.shared.ops.lock();
        let all = self.live.iter();
        let all: Vec<String> = all
            .map(|live| format!("'{}' in {}", ops[live.index].step, ops[live.index].call))
            .collect();
        drop(ops);
        self.broken.push(Broken {
            rule: "W6",
            how: format!(
                "all requests are answered, and these wait: {}",
                all.join(", ")
            ),
        });
    }

    fn say(&mut self, text: impl Into<String>) {
        self.trace.push(text.into());
    }
}
