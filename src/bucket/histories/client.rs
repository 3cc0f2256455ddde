//! What a client asks its server for, one step after the other, and what it is told.

use std::future::Future;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use object_store::ObjectStore;
use parking_lot::Mutex;

use super::model::{Gate, Model};
use super::told::{Event, Protocol, Step, Told};

/// What a client has to say.
#[derive(Default)]
pub(super) struct Client {
    /// What it is about to ask for.
    pub(super) asking: Option<Event>,
    pub(super) told: Vec<Event>,
}

pub(super) async fn run<P: Protocol>(
    server: P,
    at: usize,
    steps: Vec<Step>,
    client: Arc<Mutex<Client>>,
) {
    let mut store = "S0".to_owned();
    for step in steps {
        client.lock().asking = Some(Event::Asked(at, step, store.clone()));
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
        {
            let mut client = client.lock();
            let asked = client.asking.take();
            client.told.extend(asked);
            let event = Event::Told(at, step, store.clone(), told.clone());
            client.told.push(event);
        }
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
        if let Poll::Ready(done) = work.as_mut().poll(&mut context) {
            return done;
        }
        let mut slot = gate.0.lock();
        if let Some(call) = slot.call.take() {
            slot.answer = Some(model.execute(&call).result(&call));
        }
    }
}
