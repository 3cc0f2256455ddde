//! What must hold of every history, whatever failed on its way.

use std::collections::HashMap;
use std::marker::PhantomData;

use serde_json::Value;

use super::client::immediately;
use super::model::Model;
use super::told::{Event, Protocol, Step, Told};

/// The names in play.
const NAMES: [&str; 3] = ["a", "b", "c"];

/// A store that is there.
struct Live {
    id: String,
    name: Option<String>,
}

fn live(model: &Model) -> Vec<Live> {
    let text = |value: &Value, field: &str| value[field].as_str().map(str::to_owned);
    let all = model.json("p/catalog").into_iter();
    let there = all.filter(|(_, value)| value["deleting"] != true);
    there
        .filter_map(|(_, value)| {
            Some(Live {
                id: text(&value, "id")?,
                name: text(&value, "name"),
            })
        })
        .collect()
}

/// What comes of what a history leaves in the storage, whatever clients were told.
struct Later {
    wrong: Vec<String>,
    /// The stores that are there when the next server has come, and all objects.
    stores: Vec<Live>,
    objects: Vec<String>,
    /// The stores that are handed out under their names then.
    handed_out: Vec<String>,
}

/// Judges histories; what comes of equal ends is found out once.
pub(super) struct Judge<P> {
    known: HashMap<u64, Later>,
    protocol: PhantomData<P>,
}

impl<P> Default for Judge<P> {
    fn default() -> Self {
        Self {
            known: HashMap::new(),
            protocol: PhantomData,
        }
    }
}

impl<P: Protocol> Judge<P> {
    /// Returns what is wrong at the end of a history.
    pub(super) fn judge(&mut self, model: &Model, log: &[Event], faultless: bool) -> Vec<String> {
        let later = self
            .known
            .entry(model.content())
            .or_insert_with(|| later::<P>(&mut model.clone()));
        let mut wrong = later.wrong.clone();
        what_was_told(log, faultless, &mut wrong);
        lasting(later, log, &mut wrong);
        let gone = deleted(log);
        if later
            .handed_out
            .iter()
            .any(|id| gone.contains(&id.as_str()))
        {
            wrong.push("a deleted store came back under a name".to_owned());
        }
        wrong
    }
}

fn later<P: Protocol>(model: &mut Model) -> Later {
    let mut wrong = Vec::new();
    names_are_unique(model, "at the end", &mut wrong);
    // The next server comes.
    immediately::<P, _>(model, true, |server| async move { server.tidy().await });
    let stores = live(model);
    for store in &stores {
        let Some(name) = store.name.clone() else {
            continue;
        };
        let named = immediately::<P, _>(
            model,
            true,
            |server| async move { server.named(&name).await },
        );
        if named.as_ref() != Some(&store.id) {
            wrong.push("a store is not found by its name".to_owned());
        }
    }
    let objects = model.objects().keys().map(ToString::to_string).collect();
    let mut handed_out = Vec::new();
    for (at, name) in NAMES.iter().enumerate() {
        let make = |model: &mut Model, id: String| {
            immediately::<P, _>(model, true, |server| async move {
                server.create(name, &id).await
            })
        };
        let told = make(model, format!("L{at}"));
        let Told::Store(id, called, new) = &told else {
            wrong.push(format!("a name can never be had again: {told:?}"));
            continue;
        };
        if called.as_deref() != Some(*name) {
            wrong.push("a store is handed out under a name that it does not have".to_owned());
        }
        handed_out.push(id.clone());
        let is_called = |store: &Live| store.name.as_deref() == Some(*name);
        if *new && stores.iter().any(is_called) {
            wrong.push("a second store of one name".to_owned());
        }
        let again = make(model, format!("M{at}"));
        if again != Told::Store(id.clone(), called.clone(), false) {
            wrong.push("a name leads to another store each time".to_owned());
        }
    }
    names_are_unique(model, "after the next server came", &mut wrong);
    Later {
        wrong,
        stores,
        objects,
        handed_out,
    }
}

/// The ids of stores with a confirmed deletion.
fn deleted(log: &[Event]) -> Vec<&str> {
    log.iter().filter_map(Event::deleted).collect()
}

fn names_are_unique(model: &Model, when: &str, wrong: &mut Vec<String>) {
    let stores = live(model);
    for name in NAMES {
        let called = stores
            .iter()
            .filter(|store| store.name.as_deref() == Some(name));
        if called.count() > 1 {
            wrong.push(format!("two stores of one name {when}"));
        }
    }
}

/// What answers say must fit what was asked and what was said before.
fn what_was_told(log: &[Event], faultless: bool, wrong: &mut Vec<String>) {
    let mut gone: Vec<&str> = Vec::new();
    let mut gone_when_asked: Vec<Vec<&str>> = vec![Vec::new(); 4];
    for event in log {
        match event {
            Event::Asked(at, ..) => gone_when_asked[*at] = gone.clone(),
            Event::Told(_, Step::Create(name), _, Told::Store(_, called, _))
                if called.as_deref() != Some(*name) =>
            {
                wrong.push("POST ?name= answers with a store that is not called so".to_owned());
            }
            Event::Told(at, Step::Create(_), _, Told::Store(id, ..))
                if gone_when_asked[*at].contains(&id.as_str()) =>
            {
                wrong.push("POST ?name= answers with a deleted store".to_owned());
            }
            Event::Told(_, Step::Put, id, Told::Done) if gone.contains(&id.as_str()) => {
                wrong.push("a write into a deleted store was confirmed".to_owned());
            }
            Event::Told(_, Step::Delete, id, Told::Done) => gone.push(id),
            Event::Told(_, step, _, Told::Unknown) if faultless => {
                let busy = matches!(step, Step::Create(_) | Step::Rename(_));
                if !busy {
                    wrong.push(format!("{step:?} failed although nothing did"));
                }
            }
            _ => {}
        }
    }
}

/// What was confirmed must be there, unless something undid it.
fn lasting(later: &Later, log: &[Event], wrong: &mut Vec<String>) {
    let Later {
        stores, objects, ..
    } = later;
    let asked = |wanted: Step, id: &str| {
        let same = |event: &Event| matches!(event, Event::Asked(_, step, of) if *step == wanted && of == id);
        log.iter().any(same)
    };
    let is_there = |id: &str| stores.iter().any(|store| store.id == id);
    for event in log {
        match event {
            Event::Told(_, Step::Create(_), _, Told::Store(id, ..))
                if !asked(Step::Delete, id) && !is_there(id) =>
            {
                wrong.push("a store is gone that no client deleted".to_owned());
            }
            Event::Told(at, Step::Put, id, Told::Done) if !asked(Step::Delete, id) => {
                let path = format!("p/stores/{id}/=k{at}");
                if !objects.contains(&path) {
                    wrong.push("a confirmed record is gone".to_owned());
                }
            }
            Event::Told(_, Step::Rename(name), id, Told::Done) if is_there(id) => {
                let renames = log.iter().filter(
                    |event| matches!(event, Event::Asked(_, Step::Rename(_), of) if of == id),
                );
                let called = |store: &Live| store.id == *id && store.name.as_deref() == Some(*name);
                if renames.count() == 1 && !stores.iter().any(called) {
                    wrong.push("a confirmed name is gone".to_owned());
                }
            }
            _ => {}
        }
    }
    for id in deleted(log) {
        if is_there(id) {
            wrong.push("a deleted store is still listed".to_owned());
        }
        let unconfirmed = log
            .iter()
            .filter(|event| matches!(event, Event::Asked(_, Step::Put, of) if of == id));
        let told = log.iter().filter(|event| {
            matches!(event, Event::Told(_, Step::Put, of, told) if of == id && *told != Told::Unknown)
        });
        let folder = format!("p/stores/{id}/");
        let left = objects.iter().any(|path| path.starts_with(&folder));
        if left && unconfirmed.count() == told.count() {
            wrong.push("records of a deleted store stay behind".to_owned());
        }
    }
}
