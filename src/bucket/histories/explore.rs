//! Tries every interleaving of what several servers do, with every fault at every step.
//!
//! A state is what the storage holds, what each server has been answered so far and what clients
//! were told: the servers' code runs for real, and does nothing else but ask the storage. States
//! that were seen are not gone into again.

use std::collections::hash_map::DefaultHasher;
use std::collections::{HashSet, VecDeque};
use std::fmt::Write;
use std::future::Future;
use std::hash::{Hash, Hasher};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Waker};

use object_store::{Error, ObjectStore};
use parking_lot::Mutex;

use super::model::{Call, Gate, Model, Reply, hash_content, refusal};
use super::told::{Event, Found, Protocol, Scenario, Step, Told};

/// What becomes of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Answered,
    /// Done, but the answer is an error.
    Lost,
    /// Done, and repeated by the library, which then gets a failed condition.
    Repeated,
    /// Not done, and the answer is an error.
    Refused,
    /// Not done: the storage says that two writes met.
    Conflict,
    /// The answer is an error, and it is done at some later time.
    Late,
    /// The server dies before it asks, or before it hears.
    DiesBefore,
    DiesAfter,
}

const FATES: [Fate; 8] = [
    Fate::Answered,
    Fate::Lost,
    Fate::Repeated,
    Fate::Refused,
    Fate::Conflict,
    Fate::Late,
    Fate::DiesBefore,
    Fate::DiesAfter,
];

/// A choice: which client goes on, and what becomes of its request. After the clients come the
/// requests that are done late.
type Choice = (u8, u8);

struct Client {
    run: Option<Pin<Box<dyn Future<Output = ()>>>>,
    gate: Gate,
    /// Hash of all answers.
    heard: u64,
}

struct World {
    model: Model,
    clients: Vec<Client>,
    late: Vec<Call>,
    faults: usize,
    log: Arc<Mutex<Vec<Event>>>,
    /// What each client is about to ask; said in the log with its first request.
    asking: Arc<Mutex<Vec<Option<Event>>>>,
}

impl World {
    fn start<P: Protocol>(scenario: &Scenario) -> Self {
        let mut model = Model::default();
        for (at, name) in scenario.given.iter().enumerate() {
            let told = immediately::<P, _>(&mut model, true, |server| async move {
                server.create(name, &format!("S{at}")).await
            });
            assert_eq!(
                told,
                Told::Store(format!("S{at}"), Some((*name).to_owned()), true)
            );
        }
        let log = Arc::new(Mutex::new(Vec::new()));
        let asking = Arc::new(Mutex::new(vec![None; scenario.clients.len()]));
        let clients = scenario.clients.iter().enumerate().map(|(at, steps)| {
            let gate = Gate::default();
            let store: Arc<dyn ObjectStore> = Arc::new(gate.clone());
            let server = if scenario.hasty {
                P::settling(store)
            } else {
                P::over(store)
            };
            let run = run(server, at, steps.clone(), log.clone(), asking.clone());
            Client {
                run: Some(Box::pin(run)),
                gate,
                heard: 0,
            }
        });
        let clients = clients.collect();
        let mut world = Self {
            model,
            clients,
            late: Vec::new(),
            faults: scenario.faults,
            log,
            asking,
        };
        for at in 0..world.clients.len() {
            world.go_on(at);
        }
        world
    }

    /// Lets a client's server work until its next request.
    fn go_on(&mut self, at: usize) {
        let client = &mut self.clients[at];
        let Some(run) = &mut client.run else { return };
        // What is made up is the same in each run.
        fastrand::seed(client.heard.wrapping_add(at as u64));
        let mut context = Context::from_waker(Waker::noop());
        if run.as_mut().poll(&mut context).is_ready() {
            client.run = None;
        }
    }

    fn choices(&self) -> Vec<Choice> {
        let mut choices = Vec::new();
        for (at, client) in self.clients.iter().enumerate() {
            let slot = client.gate.0.lock();
            let Some(call) = slot.call.as_ref().filter(|_| client.run.is_some()) else {
                continue;
            };
            for (number, fate) in FATES.iter().enumerate() {
                let possible = match fate {
                    Fate::Answered => true,
                    _ if self.faults == 0 => false,
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

    fn choose(&mut self, (at, number): Choice) -> String {
        let at = usize::from(at);
        if at >= self.clients.len() {
            let call = self.late.remove(at - self.clients.len());
            // No client gets the answer.
            let done = self.model.execute(&call).is_ok();
            return format!("late: {call}{}", if done { "" } else { " -> refused" });
        }
        let fate = FATES[usize::from(number)];
        if let Some(asked) = self.asking.lock()[at].take() {
            self.log.lock().push(asked);
        }
        let Some(call) = self.clients[at].gate.0.lock().call.take() else {
            return String::new();
        };
        self.faults -= usize::from(fate != Fate::Answered);
        let done = match fate {
            Fate::Answered | Fate::Lost | Fate::Repeated | Fate::DiesAfter => {
                Some(self.model.execute(&call))
            }
            _ => None,
        };
        let unavailable = || Error::Generic {
            store: "model",
            source: "503 Service Unavailable".into(),
        };
        let mut shown = format!("{}: {call}", (b'A' + at as u8) as char);
        let answer = match (fate, done, &call) {
            (Fate::Answered, Some(done), _) => {
                let _ = write!(shown, " -> {}", outcome(&done));
                done
            }
            (Fate::Repeated, Some(Ok(_)), Call::Put(path, .., mode)) => Err(refusal(path, mode)),
            (Fate::Conflict, _, Call::Put(path, ..)) => Err(Error::AlreadyExists {
                path: path.to_string(),
                source: "ConditionalRequestConflict".into(),
            }),
            (Fate::Late, ..) => {
                self.late.push(call.clone());
                Err(unavailable())
            }
            (Fate::DiesBefore | Fate::DiesAfter, ..) => {
                self.clients[at].run = None;
                let _ = write!(shown, " [{fate:?}]");
                return shown;
            }
            _ => Err(unavailable()),
        };
        if fate != Fate::Answered {
            let _ = write!(shown, " [{fate:?}]");
        }
        let client = &mut self.clients[at];
        client.heard = heard(client.heard, &answer);
        client.gate.0.lock().answer = Some(answer);
        self.go_on(at);
        shown
    }

    fn key(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.model.hash(&mut hasher);
        for client in &self.clients {
            (client.heard, client.run.is_some()).hash(&mut hasher);
        }
        for call in &self.late {
            if let Call::Put(path, bytes, ..) = call {
                path.hash(&mut hasher);
                hash_content(bytes, &mut hasher);
            }
            std::mem::discriminant(call).hash(&mut hasher);
        }
        self.faults.hash(&mut hasher);
        self.log.lock().hash(&mut hasher);
        hasher.finish()
    }
}

fn outcome(done: &object_store::Result<Reply>) -> String {
    match done {
        Ok(Reply::Object(stored)) => {
            let text = String::from_utf8_lossy(&stored.bytes);
            let text: String = text.split_whitespace().collect();
            format!("\"{}\" {text}", stored.version)
        }
        Ok(Reply::Done(version)) => format!("\"{version}\""),
        Ok(Reply::Listed(found)) => format!("{} objects", found.len()),
        Err(Error::NotFound { .. }) => "absent".to_owned(),
        Err(_) => "refused".to_owned(),
    }
}

fn heard(before: u64, answer: &object_store::Result<Reply>) -> u64 {
    let mut hasher = DefaultHasher::new();
    before.hash(&mut hasher);
    match answer {
        Ok(Reply::Object(stored)) => {
            stored.version.hash(&mut hasher);
            hash_content(&stored.bytes, &mut hasher);
        }
        Ok(Reply::Done(version)) => version.hash(&mut hasher),
        Ok(Reply::Listed(found)) => {
            for (path, stored) in found {
                (path, stored.version).hash(&mut hasher);
            }
        }
        Err(error) => std::mem::discriminant(error).hash(&mut hasher),
    }
    hasher.finish()
}

async fn run<P: Protocol>(
    server: P,
    at: usize,
    steps: Vec<Step>,
    log: Arc<Mutex<Vec<Event>>>,
    asking: Arc<Mutex<Vec<Option<Event>>>>,
) {
    let mut store = "S0".to_owned();
    for step in steps {
        asking.lock()[at] = Some(Event::Asked(at, step, store.clone()));
        let told = match step {
            Step::Create(name) => {
                let id = format!("N{at}");
                server.create(name, &id).await
            }
            Step::Rename(name) => server.rename(&store, name).await,
            Step::Delete => server.delete(&store).await,
            Step::Put => server.put(&store, &format!("k{at}")).await,
            Step::Get => server.get(&store, "k").await,
        };
        if let Some(asked) = asking.lock()[at].take() {
            log.lock().push(asked);
        }
        log.lock()
            .push(Event::Told(at, step, store.clone(), told.clone()));
        match told {
            Told::Store(id, ..) => store = id,
            // Without a store there is nothing to do.
            _ if matches!(step, Step::Create(_)) => return,
            _ => {}
        }
    }
}

/// Does something alone and without faults.
pub(super) fn immediately<P: Protocol, F: Future>(
    model: &mut Model,
    settling: bool,
    work: impl FnOnce(P) -> F,
) -> F::Output {
    let gate = Gate::default();
    let store: Arc<dyn ObjectStore> = Arc::new(gate.clone());
    let server = if settling {
        P::settling(store)
    } else {
        P::over(store)
    };
    let mut work = Box::pin(work(server));
    let mut context = Context::from_waker(Waker::noop());
    loop {
        if let std::task::Poll::Ready(done) = work.as_mut().poll(&mut context) {
            return done;
        }
        let mut slot = gate.0.lock();
        if let Some(call) = slot.call.take() {
            slot.answer = Some(model.execute(&call));
        }
    }
}

/// Explores a scenario. `check` judges each complete history.
pub(super) fn explore<P: Protocol>(
    scenario: &Scenario,
    shortest: bool,
    check: impl Fn(&mut Model, &[Event], bool) -> Vec<String>,
) -> Found {
    let mut found = Found::default();
    let mut visited = HashSet::new();
    let mut waiting: VecDeque<Vec<Choice>> = VecDeque::from([Vec::new()]);
    while let Some(mut prefix) = if shortest {
        waiting.pop_front()
    } else {
        waiting.pop_back()
    } {
        let mut world = World::start::<P>(scenario);
        for choice in &prefix {
            world.choose(*choice);
        }
        loop {
            if !visited.insert(world.key()) {
                break;
            }
            let choices = world.choices();
            // Nothing is under way any more but what may be late for ever.
            if choices
                .iter()
                .all(|(at, _)| usize::from(*at) >= world.clients.len())
            {
                found.histories += 1;
                let log = world.log.lock().clone();
                let mut model = world.model.clone();
                for wrong in check(&mut model, &log, world.faults == scenario.faults) {
                    if !found.violations.iter().any(|(known, _)| *known == wrong) {
                        let told = tell::<P>(scenario, &prefix);
                        found.violations.push((wrong, told));
                    }
                }
            }
            let Some((first, others)) = choices.split_first() else {
                break;
            };
            for other in if shortest { &choices } else { others } {
                let mut branch = prefix.clone();
                branch.push(*other);
                waiting.push_back(branch);
            }
            if shortest {
                break;
            }
            world.choose(*first);
            prefix.push(*first);
        }
    }
    found.states = visited.len();
    found
}

/// Returns a history in words.
fn tell<P: Protocol>(scenario: &Scenario, choices: &[Choice]) -> String {
    let mut world = World::start::<P>(scenario);
    let mut told = String::new();
    let mut known = 0;
    for choice in choices {
        let _ = writeln!(told, "  {}", world.choose(*choice));
        let log = world.log.lock();
        for event in &log[known..] {
            if let Event::Told(at, step, store, answer) = event {
                let who = (b'A' + *at as u8) as char;
                let _ = writeln!(told, "     {who} told of {step:?} ({store}): {answer:?}");
            }
        }
        known = log.len();
    }
    told
}
