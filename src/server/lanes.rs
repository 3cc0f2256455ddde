//! The event loops of a server, one a core.
//!
//! A connection stays with the loop that it was given to. Loops that take work from each other
//! would wake each other for every request, which costs more than answering it.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use tokio::runtime::{Builder, Handle, Runtime};
use tokio::sync::oneshot;

/// Event loops, at least and at most.
const LANES: (usize, usize) = (2, 16);

/// The event loops of a server. Dropping this ends them, and all connections with them.
#[derive(Debug)]
pub(super) struct Lanes {
    lanes: Arc<[Lane]>,
    /// Dropping them tells the loops to end.
    _ends: Vec<oneshot::Sender<()>>,
}

#[derive(Debug)]
struct Lane {
    handle: Handle,
    connections: Arc<AtomicUsize>,
}

/// A connection's place in an event loop, until it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    lane: Handle,
    connections: Arc<AtomicUsize>,
}

/// Finds the event loop for each new connection.
#[derive(Clone, Debug)]
pub(super) struct Dispatcher(Arc<[Lane]>);

impl Lanes {
    /// Starts as many loops as there are cores, each with up to `blocking` threads for what is
    /// slow.
    ///
    /// # Errors
    /// When there are no more threads or file descriptors.
    pub(super) fn start(blocking: usize) -> io::Result<Self> {
        let cores = thread::available_parallelism().map_or(LANES.0, usize::from);
        let mut lanes = Vec::new();
        let mut ends = Vec::new();
        for _ in 0..cores.clamp(LANES.0, LANES.1) {
            let runtime = Builder::new_current_thread()
                .max_blocking_threads(blocking)
                .thread_name("kvfs-serve")
                .enable_all()
                .build()?;
            let handle = runtime.handle().clone();
            let (end, ended) = oneshot::channel();
            thread::Builder::new()
                .name("kvfs-serve".into())
                .spawn(move || run(runtime, ended))?;
            lanes.push(Lane {
                handle,
                connections: Arc::default(),
            });
            ends.push(end);
        }
        Ok(Self {
            lanes: lanes.into(),
            _ends: ends,
        })
    }

    /// Returns the loop for the server's own work.
    pub(super) fn first(&self) -> &Handle {
        &self.lanes[0].handle
    }

    /// Returns what gives connections to loops.
    pub(super) fn dispatcher(&self) -> Dispatcher {
        Dispatcher(self.lanes.clone())
    }
}

fn run(runtime: Runtime, ended: oneshot::Receiver<()>) {
    // An error is the end, too: the sender is gone.
    let _ = runtime.block_on(ended);
    // Work on other threads may wait for a disk.
    runtime.shutdown_background();
}

impl Dispatcher {
    /// Returns a place in the loop that has the fewest connections.
    pub(super) fn place(&self) -> Option<Place> {
        let least = |lane: &&Lane| lane.connections.load(Ordering::Relaxed);
        let lane = self.0.iter().min_by_key(least)?;
        lane.connections.fetch_add(1, Ordering::Relaxed);
        Some(Place {
            lane: lane.handle.clone(),
            connections: lane.connections.clone(),
        })
    }
}

impl Place {
    /// Returns the loop.
    pub(super) fn lane(&self) -> &Handle {
        &self.lane
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_are_spread_evenly() {
        let lanes = Lanes::start(1).expect("loops");
        let dispatcher = lanes.dispatcher();
        let most = dispatcher.0.len();
        let mut places: Vec<_> = (0..2 * most).filter_map(|_| dispatcher.place()).collect();
        let counts = || -> Vec<usize> {
            let lanes = dispatcher.0.iter();
            lanes
                .map(|lane| lane.connections.load(Ordering::Relaxed))
                .collect()
        };
        assert_eq!(counts(), vec![2; most]);
        drop(places.remove(1));
        assert_eq!(counts().iter().sum::<usize>(), 2 * most - 1);
        places.extend(dispatcher.place());
        assert_eq!(counts(), vec![2; most]);
        drop(places);
        assert_eq!(counts(), vec![0; most]);
    }
}
