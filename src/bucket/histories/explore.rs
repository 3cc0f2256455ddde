//! Tries every interleaving of what several servers do, with every fault at every step.
//!
//! A state is what the storage holds, what each server has been answered so far and what clients
//! were told: the servers' code runs for real, and does nothing else but ask the storage. So what a
//! server does next follows from its answers; it runs once for each sequence of them ([`Node`]).
//! States that were seen are not gone into again.

use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::fmt::Write;
use std::future::Future;
use std::hash::{Hash, Hasher};
use std::marker::PhantomData;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Waker};

use object_store::ObjectStore;
use parking_lot::Mutex;

use super::client::{Client, immediately, run};
use super::model::{Answer, Call, Gate, Model, Reply};
use super::told::{EVERY_FATE, Event, Fate, Found, Protocol, Scenario, Step, Told};

/// The most clients of a scenario.
const CLIENTS: usize = 4;

/// A choice: which client goes on, and what becomes of its request. After the clients come the
/// requests that are done late.
type Choice = (u8, u8);

/// How far a client's server is after so many answers.
struct Node {
    /// What it asks; `None` when it has ended.
    call: Option<Call>,
    /// What its client asks for with this request, if that is the first one for it.
    asking: Option<Event>,
    /// What its client was told since the last answer.
    said: Vec<Event>,
    /// Hash of all answers.
    heard: u64,
    /// Whether it may have written a claim, so that others may know the store that it makes.
    is_known: bool,
    /// The last answer, and where it came.
    before: Option<(Arc<Node>, Answer)>,
}

#[derive(Clone)]
struct World {
    model: Model,
    /// `None` for those with dead servers.
    clients: Vec<Option<Arc<Node>>>,
    late: Vec<Call>,
    faults: usize,
    log: Log,
}

/// What clients asked and were told.
#[derive(Clone, Default)]
struct Log {
    last: Option<Rc<Logged>>,
    /// What each client asked and was told, and which stores were known to be gone by then: which of
    /// two clients heard something first makes no other difference.
    heard: [u64; CLIENTS],
    gone: BTreeSet<String>,
}

struct Logged(Event, Option<Rc<Logged>>);

impl Log {
    fn add(&mut self, event: &Event) {
        let (Event::Asked(at, ..) | Event::Told(at, ..)) = event;
        let mut hasher = DefaultHasher::new();
        (self.heard[*at], event).hash(&mut hasher);
        if matches!(event, Event::Asked(..) | Event::Told(_, Step::Put, ..)) {
            self.gone.hash(&mut hasher);
        }
        self.heard[*at] = hasher.finish();
        self.gone.extend(event.deleted().map(str::to_owned));
        self.last = Some(Rc::new(Logged(event.clone(), self.last.take())));
    }

    /// Returns all events, the first one first.
    fn events(&self) -> Vec<Event> {
        let mut events = Vec::new();
        let mut last = self.last.as_ref();
        while let Some(logged) = last {
            events.push(logged.0.clone());
            last = logged.1.as_ref();
        }
        events.reverse();
        events
    }
}

/// What a choice led to.
struct Happened {
    /// `None` for what is done late.
    client: Option<(usize, Fate)>,
    call: Call,
    answer: Option<Answer>,
}

impl World {
    fn choices(&self, fates: &[Fate]) -> Vec<Choice> {
        let mut choices = Vec::new();
        let private = (0..self.clients.len()).find(|at| self.is_private(*at));
        for (at, client) in self.clients.iter().enumerate() {
            let Some(call) = client.as_ref().and_then(|node| node.call.as_ref()) else {
                continue;
            };
            if private.is_some_and(|private| private != at) {
                continue;
            }
            for (number, fate) in EVERY_FATE.iter().enumerate() {
                let possible = match fate {
                    Fate::Answered => true,
                    _ if self.faults == 0 || !fates.contains(fate) => false,
                    Fate::Refused => true,
                    Fate::Repeated | Fate::Conflict => call.is_conditional(),
                    _ => call.writes(),
                };
                if possible {
                    choices.push((at as u8, number as u8));
                }
            }
        }
        let late = 0..self.late.len();
        choices.extend(late.map(|late| ((self.clients.len() + late) as u8, 0)));
        choices
    }

    /// Returns whether what a client's server asks next concerns only itself: a store that it makes
    /// and that no claim has ever named. Whether others go on before or after makes no difference.
    fn is_private(&self, at: usize) -> bool {
        let node = self.clients[at].as_ref().filter(|node| !node.is_known);
        let call = node.and_then(|node| node.call.as_ref());
        self.late.is_empty() && call.is_some_and(|call| concerns(call, at))
    }

    /// Returns what tells this state from others. How a server that has ended got there does not
    /// matter any more.
    fn key(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.model.hash().hash(&mut hasher);
        for client in &self.clients {
            let runs = client.as_ref().filter(|node| node.call.is_some());
            runs.map(|node| node.heard).hash(&mut hasher);
        }
        for call in &self.late {
            call.print().hash(&mut hasher);
        }
        self.faults.hash(&mut hasher);
        (self.log.heard, &self.log.gone).hash(&mut hasher);
        hasher.finish()
    }
}

/// Returns whether a request is about the store that a client's server makes.
fn concerns(call: &Call, at: usize) -> bool {
    let own = format!("N{at}");
    let mut parts = call.path().parts();
    parts.any(|part| part.as_ref().eq_ignore_ascii_case(&own))
}

/// Runs the servers of a scenario.
struct Runner<'a, P> {
    scenario: &'a Scenario,
    nodes: HashMap<(usize, u64), Arc<Node>>,
    protocol: PhantomData<P>,
}

impl<'a, P: Protocol> Runner<'a, P> {
    fn new(scenario: &'a Scenario) -> Self {
        Self {
            scenario,
            nodes: HashMap::new(),
            protocol: PhantomData,
        }
    }

    fn start(&mut self) -> World {
        let mut model = Model::default();
        for (at, name) in self.scenario.given.iter().enumerate() {
            // What is made up is the same in each run.
            fastrand::seed(at as u64);
            let told = immediately::<P, _>(&mut model, true, |server| async move {
                server.create(name, &format!("S{at}")).await
            });
            assert_eq!(
                told,
                Told::Store(format!("S{at}"), Some((*name).to_owned()), true)
            );
        }
        let clients = 0..self.scenario.clients.len();
        let clients: Vec<_> = clients.map(|at| Some(self.node(at, None))).collect();
        let mut log = Log::default();
        for event in clients.iter().flatten().flat_map(|node| &node.said) {
            log.add(event);
        }
        World {
            model,
            clients,
            late: Vec::new(),
            faults: self.scenario.faults,
            log,
        }
    }

    /// Returns how far a client's server comes with an answer.
    fn node(&mut self, at: usize, before: Option<(Arc<Node>, Answer)>) -> Arc<Node> {
        let heard = before
            .as_ref()
            .map_or(0, |(node, answer)| heard(node.heard, answer));
        if let Some(known) = self.nodes.get(&(at, heard)) {
            return known.clone();
        }
        let mut answers = Vec::new();
        let mut last = before.clone();
        while let Some((node, answer)) = last {
            last = node.before.clone();
            answers.push((node, answer));
        }
        let gate = Gate::default();
        let store: Arc<dyn ObjectStore> = Arc::new(gate.clone());
        let server = if self.scenario.hasty {
            P::settling(store)
        } else {
            P::over(store)
        };
        let client = Arc::new(Mutex::new(Client::default()));
        let steps = self.scenario.clients[at].clone();
        let mut run = Box::pin(run(server, at, steps, client.clone()));
        let mut go_on = |heard: u64| {
            // What is made up follows from what was heard.
            fastrand::seed(heard.wrapping_add(at as u64));
            let mut context = Context::from_waker(Waker::noop());
            let ended = run.as_mut().poll(&mut context).is_ready();
            gate.0.lock().call.take().filter(|_| !ended)
        };
        let mut call = go_on(0);
        let mut so_far = 0;
        for (node, answer) in answers.into_iter().rev() {
            let Some(asked) = call else { break };
            {
                let mut client = client.lock();
                client.asking = None;
                so_far = client.told.len();
            }
            gate.0.lock().answer = Some(answer.result(&asked));
            call = go_on(self::heard(node.heard, &answer));
        }
        let mut client = client.lock();
        let is_known = before.as_ref().is_some_and(|(node, _)| {
            let claims = |call: &Call| call.writes() && call.path().as_ref().contains("/names/");
            node.is_known || node.call.as_ref().is_some_and(claims)
        });
        let node = Arc::new(Node {
            call,
            asking: client.asking.take(),
            said: client.told.split_off(so_far),
            heard,
            is_known,
            before,
        });
        self.nodes.insert((at, heard), node.clone());
        node
    }

    fn choose(&mut self, world: &mut World, (at, number): Choice) -> Option<Happened> {
        let at = usize::from(at);
        if at >= world.clients.len() {
            let call = world.late.remove(at - world.clients.len());
            // No client gets the answer.
            let answer = Some(world.model.execute(&call));
            let client = None;
            return Some(Happened {
                client,
                call,
                answer,
            });
        }
        let fate = EVERY_FATE[usize::from(number)];
        let node = world.clients[at].clone()?;
        let call = node.call.clone()?;
        if let Some(asking) = &node.asking {
            world.log.add(asking);
        }
        world.faults -= usize::from(fate != Fate::Answered);
        let done = match fate {
            Fate::Answered | Fate::Lost | Fate::Repeated | Fate::DiesAfter => {
                Some(world.model.execute(&call))
            }
            _ => None,
        };
        let answer = match (fate, done) {
            (Fate::Answered, Some(done)) => Some(done),
            (Fate::Repeated, Some(Answer::Replied(_))) => Some(Answer::Refused),
            (Fate::Conflict, _) => Some(Answer::Conflict),
            (Fate::DiesBefore | Fate::DiesAfter, _) => None,
            _ => Some(Answer::Unavailable),
        };
        if fate == Fate::Late {
            world.late.push(call.clone());
        }
        world.clients[at] = answer.clone().map(|answer| {
            let next = self.node(at, Some((node, answer)));
            next.said.iter().for_each(|event| world.log.add(event));
            next
        });
        Some(Happened {
            client: Some((at, fate)),
            call,
            answer,
        })
    }

    /// Returns a history in words.
    fn tell(&mut self, choices: &[Choice]) -> String {
        let mut world = self.start();
        let mut told = String::new();
        for choice in choices {
            let known = world.log.events().len();
            let Some(happened) = self.choose(&mut world, *choice) else {
                continue;
            };
            let _ = writeln!(told, "  {}", happened.shown());
            for event in &world.log.events()[known..] {
                if let Event::Told(at, step, store, answer) = event {
                    let name = (b'A' + *at as u8) as char;
                    let _ = writeln!(told, "     {name} told of {step:?} ({store}): {answer:?}");
                }
            }
        }
        told
    }
}

impl Happened {
    fn shown(&self) -> String {
        let outcome = match &self.answer {
            Some(Answer::Replied(Reply::Object(stored))) => {
                let text = String::from_utf8_lossy(&stored.bytes);
                let text: String = text.split_whitespace().collect();
                format!("\"{}\" {text}", stored.version)
            }
            Some(Answer::Replied(Reply::Done(version))) => format!("\"{version}\""),
            Some(Answer::Replied(Reply::Listed(found))) => format!("{} objects", found.len()),
            other => format!("{other:?}"),
        };
        let call = &self.call;
        match self.client {
            None => format!("late: {call} -> {outcome}"),
            Some((at, fate)) => {
                let name = (b'A' + at as u8) as char;
                format!("{name}: {call} -> {outcome} [{fate:?}]")
            }
        }
    }
}

fn heard(before: u64, answer: &Answer) -> u64 {
    let mut hasher = DefaultHasher::new();
    before.hash(&mut hasher);
    std::mem::discriminant(answer).hash(&mut hasher);
    match answer {
        Answer::Replied(Reply::Object(stored)) => {
            (stored.version, stored.content).hash(&mut hasher);
        }
        Answer::Replied(Reply::Done(version)) => version.hash(&mut hasher),
        Answer::Replied(Reply::Listed(found)) => {
            for (path, stored) in found {
                (path, stored.version).hash(&mut hasher);
            }
        }
        _ => {}
    }
    hasher.finish()
}

/// The choices that led to a state, the last one first.
struct Trail(Choice, Option<Rc<Trail>>);

fn choices(mut trail: Option<&Rc<Trail>>) -> Vec<Choice> {
    let mut choices = Vec::new();
    while let Some(step) = trail {
        choices.push(step.0);
        trail = step.1.as_ref();
    }
    choices.reverse();
    choices
}

/// Explores a scenario. `check` judges each complete history.
pub(super) fn explore<P: Protocol>(
    scenario: &Scenario,
    mut check: impl FnMut(&Model, &[Event], bool) -> Vec<String>,
) -> Found {
    let mut found = Found::default();
    let mut runner = Runner::<P>::new(scenario);
    let start = runner.start();
    let mut visited = HashSet::from([start.key()]);
    let mut waiting = vec![(start, None)];
    while let Some((world, trail)) = waiting.pop() {
        let open = world.choices(scenario.fates);
        // Nothing is under way any more but what may be late for ever.
        if open
            .iter()
            .all(|(at, _)| usize::from(*at) >= world.clients.len())
        {
            found.ends += 1;
            let faultless = world.faults == scenario.faults;
            for wrong in check(&world.model, &world.log.events(), faultless) {
                if !found.violations.iter().any(|(known, _)| *known == wrong) {
                    let told = runner.tell(&choices(trail.as_ref()));
                    found.violations.push((wrong, told));
                }
            }
        }
        for choice in open {
            let mut next = world.clone();
            runner.choose(&mut next, choice);
            if visited.insert(next.key()) {
                waiting.push((next, Some(Rc::new(Trail(choice, trail.clone())))));
            }
        }
    }
    found.states = visited.len();
    found
}
