//! The threads that upload: as many as there is work for, until nothing is left.

use std::sync::Arc;

use super::Uploader;
use crate::base::sync::thread;
use crate::store::Key;

impl Uploader {
    /// Looks again at what can start: the clock has moved.
    #[cfg(feature = "testing")]
    pub fn look(self: &Arc<Self>) {
        self.staff();
    }

    /// Starts threads for uploads that can start.
    pub(super) fn staff(self: &Arc<Self>) {
        let mut state = self.state.lock();
        let wanted = state.gates.startable() + usize::from(state.gates.next_start().is_some());
        let missing = wanted
            .saturating_sub(state.idle)
            .min(self.config.parallel.saturating_sub(state.threads));
        state.threads += missing;
        drop(state);
        self.changed.notify_all();
        for _ in 0..missing {
            let this = Arc::clone(self);
            if self.workers.spawn(move || this.work()).is_err() {
                self.state.lock().threads -= 1;
            }
        }
    }

    /// Uploads until nothing is left.
    fn work(self: &Arc<Self>) {
        let mut state = self.state.lock();
        while !state.stopped {
            if let Some((key, id)) = state.gates.start(self.clock.now()) {
                drop(state);
                let attempt = Attempt(self, key);
                self.upload(&attempt.1, &id);
                drop(attempt);
                self.count();
                state = self.state.lock();
                continue;
            }
            let Some(at) = state.gates.next_start() else {
                break;
            };
            state.idle += 1;
            let wait = at.saturating_duration_since(self.clock.now());
            self.changed.wait_for(&mut state, wait);
            state.idle -= 1;
        }
        state.threads -= 1;
        let last = state.threads == 0 && state.gates.is_empty();
        drop(state);
        if last {
            self.settle();
        }
    }
}

/// An attempt under way; one that panicked is made again later.
struct Attempt<'a>(&'a Arc<Uploader>, Key);

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        let Self(uploader, key) = self;
        // Otherwise it has ended, and what runs by now is another thread's.
        if thread::panicking() {
            let running = uploader.state.lock().gates.running(key).cloned();
            if let Some(id) = running {
                uploader.journal.note_sent(&id);
            }
            {
                let mut state = uploader.state.lock();
                let next = uploader.clock.now() + uploader.config.max_delay;
                let error = "kvfs has a bug; see the log".to_owned();
                state.gates.retry(key, next, error);
                state.threads -= 1;
            }
        }
        uploader.staff();
    }
}
