//! The protocol of the catalog, tried in every order with every fault.

mod client;
mod explore;
mod judge;
mod model;
mod told;

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use object_store::{Attributes, GetOptions, ObjectStore, PutMode, PutOptions};

use super::catalog::{Description, NameTaken, STORES};
use super::objects::{Objects, VERSION, mark};
use crate::store::{ErrorKind, Result};
use explore::explore;
use judge::Judge;
use told::{EVERY_FATE, Fate, Found, Protocol, Scenario, Step, Told};

/// The code of this crate, which repeats a write so often that others got ahead of.
#[derive(Clone)]
struct Trying<const ATTEMPTS: u32>(Arc<Objects>);

type Now = Trying<3>;

impl<const ATTEMPTS: u32> Trying<ATTEMPTS> {
    fn with(store: Arc<dyn ObjectStore>, patience: Duration) -> Self {
        Self(Arc::new(Objects {
            store,
            pages: None,
            root: "p".into(),
            known: Default::default(),
            index: Default::default(),
            conditional_parts: Default::default(),
            wanted: Default::default(),
            alone: Default::default(),
            azure: false,
            attempts: ATTEMPTS,
            waits: 0,
            patience,
        }))
    }
}

fn answered<T>(answer: Result<T>, told: impl FnOnce(T) -> Told) -> Told {
    match answer {
        Ok(answer) => told(answer),
        Err(error) if error.kind() == ErrorKind::StoreNotFound => Told::Missing,
        Err(_) => Told::Unknown,
    }
}

impl<const ATTEMPTS: u32> Protocol for Trying<ATTEMPTS> {
    fn over(store: Arc<dyn ObjectStore>) -> Self {
        Self::with(store, Duration::MAX)
    }

    fn settling(store: Arc<dyn ObjectStore>) -> Self {
        Self::with(store, Duration::ZERO)
    }

    async fn create(&self, name: &str, id: &str) -> Told {
        let new = Description {
            id: id.into(),
            name: Some(name.into()),
            ..Description::default()
        };
        answered(self.0.create(&new).await, |(made, new)| {
            Told::Store(made.id, made.name, new)
        })
    }

    async fn rename(&self, id: &str, name: &str) -> Told {
        let renamed = self
            .0
            .change(id, |store| store.name = Some(name.into()))
            .await;
        answered(renamed, |renamed| match renamed {
            Some(Ok(_)) => Told::Done,
            Some(Err(NameTaken)) => Told::Taken,
            None => Told::Missing,
        })
    }

    async fn delete(&self, id: &str) -> Told {
        match self.0.mark(id).await {
            Ok(Some(gone)) => {
                // What is left is for the next server.
                let _ = self.0.finish(&gone).await;
                Told::Done
            }
            other => answered(other, |_| Told::Missing),
        }
    }

    async fn put(&self, id: &str, key: &str) -> Told {
        match self.0.describe(id, Duration::ZERO).await {
            Ok(Some(_)) => {}
            other => return answered(other, |_| Told::Missing),
        }
        let path = self.0.path(&[STORES, id, &format!("={key}")]);
        let mark = mark();
        let options = PutOptions {
            attributes: Attributes::from_iter([(VERSION, mark.clone())]),
            ..PutOptions::default()
        };
        let put = self
            .0
            .put_record(id, &path, "record".into(), options, &mark);
        answered(put.await, |_| Told::Done)
    }

    async fn get(&self, id: &str, key: &str) -> Told {
        match self.0.describe(id, Duration::ZERO).await {
            Ok(Some(_)) => {}
            other => return answered(other, |_| Told::Missing),
        }
        let path = self.0.path(&[STORES, id, &format!("={key}")]);
        match self.0.store.get_opts(&path, GetOptions::default()).await {
            Ok(_) => Told::Done,
            Err(object_store::Error::NotFound { .. }) => Told::Missing,
            Err(_) => Told::Unknown,
        }
    }

    async fn named(&self, name: &str) -> Option<String> {
        let found = self.0.named(None, name, Duration::ZERO).await;
        found.expect("an answer").map(|found| found.id)
    }

    async fn tidy(&self) {
        let mut all = self.0.store.list(Some(&self.0.descriptions()));
        while let Some(found) = all.next().await {
            let path = found.expect("a list").location;
            let read = self.0.read::<Description>(&path).await;
            if let Some(found) = read
                .expect("an answer")
                .filter(|found| found.value.deleting)
            {
                self.0.finish(&found.value).await.expect("an answer");
            }
        }
    }
}

fn scenario(
    given: &'static [&'static str],
    clients: &[&[Step]],
    faults: usize,
    hasty: bool,
) -> Scenario {
    Scenario {
        given,
        clients: clients.iter().map(|steps| steps.to_vec()).collect(),
        faults,
        fates: &EVERY_FATE,
        hasty,
    }
}

use Step::{Create, Delete, Get, Put, Rename};

/// As [`Now`], but names are looked up and then given, deletions do not say so first, and the store of
/// a record is not checked once more.
#[derive(Clone)]
struct Careless(Now);

impl Careless {
    fn objects(&self) -> &Objects {
        &self.0.0
    }
}

impl Protocol for Careless {
    fn over(store: Arc<dyn ObjectStore>) -> Self {
        Self(Now::over(store))
    }

    fn settling(store: Arc<dyn ObjectStore>) -> Self {
        Self(Now::settling(store))
    }

    async fn create(&self, name: &str, id: &str) -> Told {
        match self.objects().named(None, name, Duration::ZERO).await {
            Ok(Some(found)) => return Told::Store(found.id, found.name, false),
            Ok(None) => {}
            Err(_) => return Told::Unknown,
        }
        let made = Description {
            id: id.into(),
            name: Some(name.into()),
            ..Description::default()
        };
        let path = self.objects().described(id);
        let described = self.objects().write(&path, &made, PutMode::Overwrite).await;
        let claim = self.objects().path(&["names", "own", name]);
        let claimed = serde_json::json!({ "id": id });
        let claimed = self.objects().write(&claim, &claimed, PutMode::Overwrite);
        match (described, claimed.await) {
            (Ok(_), Ok(_)) => Told::Store(made.id, made.name, true),
            _ => Told::Unknown,
        }
    }

    async fn rename(&self, id: &str, name: &str) -> Told {
        self.0.rename(id, name).await
    }

    async fn delete(&self, id: &str) -> Told {
        let gone = Description {
            id: id.into(),
            ..Description::default()
        };
        answered(self.objects().finish(&gone).await, |()| Told::Done)
    }

    async fn put(&self, id: &str, key: &str) -> Told {
        match self.objects().describe(id, Duration::ZERO).await {
            Ok(Some(_)) => {}
            other => return answered(other, |_| Told::Missing),
        }
        let path = self.objects().path(&[STORES, id, &format!("={key}")]);
        let put = self
            .objects()
            .put_small(&path, "record".into(), PutMode::Overwrite);
        answered(put.await, |_| Told::Done)
    }

    async fn get(&self, id: &str, key: &str) -> Told {
        self.0.get(id, key).await
    }

    async fn named(&self, name: &str) -> Option<String> {
        self.0.named(name).await
    }

    async fn tidy(&self) {
        self.0.tidy().await;
    }
}

#[test]
fn a_careless_protocol_is_found_out() {
    for (one, other, faults, expected) in [
        (
            Create("b"),
            Create("b"),
            0,
            "two stores of one name at the end",
        ),
        (
            Create("b"),
            Rename("b"),
            0,
            "two stores of one name at the end",
        ),
        (
            Create("b"),
            Get,
            1,
            "two stores of one name after the next server came",
        ),
        (Put, Delete, 0, "a write into a deleted store was confirmed"),
        (Put, Delete, 0, "records of a deleted store stay behind"),
    ] {
        let scenario = scenario(&["a"], &[&[one], &[other]], faults, true);
        let mut judge = Judge::<Careless>::default();
        let found = explore::<Careless>(&scenario, |model, log, faultless| {
            judge.judge(model, log, faultless)
        });
        let found: Vec<_> = found
            .violations
            .into_iter()
            .map(|(wrong, _)| wrong)
            .collect();
        assert!(
            found.iter().any(|wrong| wrong == expected),
            "{scenario:?}: {found:?}"
        );
    }
}

/// Everything that two clients of a store called `a` can do.
const EACH: [&[Step]; 9] = [
    &[Create("a")],
    &[Create("b")],
    &[Rename("b")],
    &[Rename("b"), Rename("a")],
    &[Delete],
    &[Delete, Create("a")],
    &[Put],
    &[Get],
    &[Create("b"), Put],
];

/// Explores scenarios and fails on the first history that is wrong. Says how much was tried.
fn all_is_well(scenarios: &[Scenario]) {
    all_is_well_of::<Now>(scenarios, true);
}

/// `persists` says whether servers repeat a write so often that it succeeds unless something fails.
fn all_is_well_of<P: Protocol>(scenarios: &[Scenario], persists: bool) {
    let (mut states, mut ends) = (0, 0);
    for scenario in scenarios {
        let mut judge = Judge::<P>::default();
        let found = explore::<P>(scenario, |model, log, faultless| {
            judge.judge(model, log, faultless && persists)
        });
        let Found {
            states: some,
            ends: few,
            ..
        } = found;
        println!("{some} states, {few} ends: {scenario}");
        states += some;
        ends += few;
        if let Some((wrong, how)) = found.violations.first() {
            panic!("{wrong}: {scenario:?}\n{how}");
        }
    }
    println!("{states} states, {ends} ends");
    assert!(states > scenarios.len());
}

fn pairs(of: &[&[Step]], faults: usize) -> Vec<Scenario> {
    let mut all = Vec::new();
    for hasty in [false, true] {
        for (at, one) in of.iter().enumerate() {
            for other in &of[at..] {
                all.push(scenario(&["a"], &[*one, *other], faults, hasty));
            }
        }
    }
    all
}

#[test]
fn two_servers_never_mix_up_stores() {
    for (one, other) in [
        (Create("a"), Create("a")),
        (Create("b"), Rename("b")),
        (Rename("b"), Delete),
        (Put, Delete),
    ] {
        all_is_well(&[scenario(&["a"], &[&[one], &[other]], 0, true)]);
    }
}

/// The pairs that meet most, with every fault at every step.
#[test]
fn no_fault_has_two_servers_mix_up_a_store() {
    for (one, other) in [
        (Create("a"), Create("a")),
        (Rename("b"), Delete),
        (Put, Delete),
    ] {
        all_is_well(&[scenario(&["a"], &[&[one], &[other]], 1, true)]);
    }
}

#[test]
#[ignore = "takes minutes; scripts/long runs it"]
fn two_servers_never_mix_up_stores_whatever_they_do() {
    all_is_well(&pairs(&EACH, 0));
}

#[test]
#[ignore = "takes minutes; scripts/long runs it"]
fn no_fault_has_two_servers_mix_up_stores() {
    const OFTEN: [&[Step]; 5] = [&[Create("a")], &[Rename("b")], &[Delete], &[Put], &[Get]];
    all_is_well(&pairs(&OFTEN, 1));
    all_is_well(&[scenario(&[], &[&[Create("a")], &[Create("a")]], 1, false)]);
}

#[test]
#[ignore = "takes an hour; scripts/long runs it"]
fn nothing_at_all_has_servers_mix_up_stores() {
    all_is_well(&pairs(&EACH, 1));
    let fresh: [&[Step]; 2] = [&[Create("a")], &[Create("a"), Put, Rename("b")]];
    for hasty in [false, true] {
        all_is_well(&[scenario(&[], &fresh, 1, hasty)]);
    }
}

#[test]
#[ignore = "takes an hour; scripts/long runs it"]
fn three_servers_never_mix_up_stores() {
    for hasty in [true, false] {
        for third in &EACH {
            for second in [&[Create("b")][..], &[Delete]] {
                let clients = [*third, &[Rename("b")], second];
                all_is_well(&[scenario(&["a"], &clients, 0, hasty)]);
            }
        }
    }
}

/// Three servers, two names, and one server that dies or one answer that is lost, anywhere. Which
/// server does what makes no difference, so each choice of three is tried once. They give up early, or
/// there were too many states. Those that settle at once what others are about to do come last.
#[test]
#[ignore = "takes an hour; scripts/long runs it"]
fn no_fault_has_three_servers_mix_up_stores() {
    const EACH: [Step; 4] = [Delete, Create("a"), Rename("b"), Create("b")];
    for hasty in [false, true] {
        for (at, one) in EACH.iter().enumerate() {
            for (further, other) in EACH[..=at].iter().enumerate() {
                for third in &EACH[..=further] {
                    let clients: [&[Step]; 3] = [&[*one], &[*other], &[*third]];
                    let tried = Scenario {
                        fates: &[Fate::Lost, Fate::DiesBefore, Fate::DiesAfter],
                        ..scenario(&["a"], &clients, 1, hasty)
                    };
                    all_is_well_of::<Trying<2>>(&[tried], false);
                }
            }
        }
    }
}
