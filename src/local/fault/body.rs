//! Bodies that wait, crawl and end as they are told.

use std::io::{self, Read};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Cut, Shared, injected};

/// A body that stops where the plan says.
pub(super) struct FaultyBody {
    pub(super) inner: Box<dyn Read + Send>,
    pub(super) read: u64,
    pub(super) cut: Option<(u64, Cut)>,
    /// Bytes a second, and since when.
    pub(super) slow: Option<(u64, Instant)>,
    pub(super) shared: Arc<Shared>,
}

impl Drop for FaultyBody {
    fn drop(&mut self) {
        self.shared.state.lock().bodies_open -= 1;
    }
}

impl FaultyBody {
    /// Waits while the gate for bodies is closed at this position; returns the next stop.
    fn pass_gate(&self) -> Option<u64> {
        let mut state = self.shared.state.lock();
        let mut counted = false;
        while state.body_gate.is_some_and(|gate| self.read >= gate) {
            if !counted {
                counted = true;
                state.bodies_waiting += 1;
                self.shared.moved.notify_all();
            }
            self.shared.moved.wait(&mut state);
        }
        if counted {
            state.bodies_waiting -= 1;
        }
        state.body_gate
    }
}

impl Read for FaultyBody {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if let Some((after, cut)) = self.cut
            && self.read >= after
        {
            return match cut {
                Cut::Error(kind) => Err(injected(kind).into()),
                Cut::Silent => Ok(0),
            };
        }
        let gate = self.pass_gate();
        let stop = [gate, self.cut.map(|(after, _)| after)]
            .into_iter()
            .flatten()
            .map(|stop| stop - self.read)
            .min();
        let most = match stop {
            Some(stop) => buffer
                .len()
                .min(usize::try_from(stop).unwrap_or(usize::MAX)),
            None => buffer.len(),
        };
        let most = if self.slow.is_some() {
            most.min(16 << 10)
        } else {
            most
        };
        let n = self.inner.read(&mut buffer[..most])?;
        self.read += n as u64;
        self.shared.state.lock().body_bytes += n as u64;
        if let Some((speed, since)) = self.slow {
            let due = since + Duration::from_secs_f64(self.read as f64 / speed as f64);
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
        }
        Ok(n)
    }
}
