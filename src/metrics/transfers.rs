//! The transfers under way, with their progress.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

/// The most transfers that are shown, the oldest first.
const SHOWN: usize = 32;

/// All transfers of a mount. There are no more than requests in flight.
#[derive(Debug, Default)]
pub struct Transfers(Mutex<(u64, BTreeMap<u64, Arc<Running>>)>);

#[derive(Debug)]
struct Running {
    key: String,
    direction: Direction,
    total: Option<u64>,
    bytes: AtomicU64,
    since: Instant,
}

/// Which way the bytes go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// From the store.
    #[default]
    Down,
    /// To the store.
    Up,
}

/// A transfer at one moment.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct TransferEntry {
    /// The record's key.
    pub key: String,
    /// Which way.
    pub direction: Direction,
    /// Bytes moved so far, as stored.
    pub bytes: u64,
    /// Bytes in all, where that is known.
    pub total_bytes: Option<u64>,
    /// How long it has been under way, in milliseconds.
    pub age_ms: u64,
}

/// A transfer under way; it is over when this is dropped.
#[derive(Debug)]
pub struct Transfer {
    all: Arc<Transfers>,
    number: u64,
    running: Arc<Running>,
}

impl Transfers {
    /// Notes that a transfer begins.
    pub fn begin(
        self: &Arc<Self>,
        key: &str,
        direction: Direction,
        total: Option<u64>,
    ) -> Transfer {
        let running = Arc::new(Running {
            key: key.to_owned(),
            direction,
            total,
            bytes: AtomicU64::new(0),
            since: Instant::now(),
        });
        let mut state = self.0.lock();
        state.0 += 1;
        let number = state.0;
        state.1.insert(number, Arc::clone(&running));
        drop(state);
        Transfer {
            all: Arc::clone(self),
            number,
            running,
        }
    }

    /// Returns how many are under way.
    pub fn count(&self) -> usize {
        self.0.lock().1.len()
    }

    /// Returns the oldest of them.
    pub fn snapshot(&self) -> Vec<TransferEntry> {
        let running: Vec<_> = self.0.lock().1.values().take(SHOWN).cloned().collect();
        running
            .iter()
            .map(|running| TransferEntry {
                key: running.key.clone(),
                direction: running.direction,
                bytes: running.bytes.load(Ordering::Relaxed),
                total_bytes: running.total,
                age_ms: u64::try_from(running.since.elapsed().as_millis()).unwrap_or(u64::MAX),
            })
            .collect()
    }
}

impl Transfer {
    /// Notes that `bytes` more bytes have moved.
    pub fn moved(&self, bytes: u64) {
        self.running.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Notes that it starts again, with the first byte.
    pub fn restarted(&self) {
        self.running.bytes.store(0, Ordering::Relaxed);
    }
}

impl Drop for Transfer {
    fn drop(&mut self) {
        self.all.0.lock().1.remove(&self.number);
    }
}

/// A body that counts its bytes for a transfer, which ends with it.
#[derive(Debug)]
pub struct Metered<R> {
    inner: R,
    transfer: Transfer,
}

impl<R> Metered<R> {
    /// Counts what is read from `inner`.
    pub fn new(inner: R, transfer: Transfer) -> Self {
        Self { inner, transfer }
    }
}

impl<R: Read> Read for Metered<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.transfer.moved(n as u64);
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transfer_is_shown_with_its_progress_until_it_ends() {
        let all = Arc::new(Transfers::default());
        let transfer = all.begin("big", Direction::Down, Some(10));
        let mut body = Metered::new(&b"0123456789"[..], transfer);
        body.read_exact(&mut [0; 4]).expect("four bytes");
        let shown = all.snapshot();
        assert_eq!(
            (shown[0].key.as_str(), shown[0].bytes, shown[0].total_bytes),
            ("big", 4, Some(10))
        );
        drop(body);
        assert_eq!(all.count(), 0);
    }
}
