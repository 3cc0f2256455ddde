//! Whether a store tells when it was changed: by that, contents without entity tags are held current.

use std::thread;
use std::time::{Duration, Instant};

use super::Finding;
use super::network::store_error;
use crate::base::clock::Deadline;
use crate::store::freshness::{StoreClock, StoreState, Trust, USUAL_LAG};
use crate::store::{ErrorKind, Key, PutRequest, Result, Store, StoreError, Upload};

/// So long a change of the scratch record is waited for.
const PATIENCE: Duration = Duration::from_secs(120);
/// How often the store is asked meanwhile.
const POLL: Duration = Duration::from_secs(1);

const CHECK: &str = "changes";

/// Reports what the store says of its last change.
pub(super) fn told(store: &dyn Store, timeout: Duration) -> Finding {
    let state = match state(store, timeout) {
        Ok(Some(state)) => state,
        Ok(None) => return untold(),
        Err(error) => return store_error(CHECK, &error),
    };
    let counts = match state.changes {
        Some(_) => "it counts changes",
        None => "it counts no changes, so own ones are taken for others'",
    };
    let mut clock = StoreClock::default();
    if let Some(now) = store.server_time() {
        clock.answered(now, &state);
    }
    let believed = match clock.trust() {
        Trust::Earned => "modifiedAt is not just when the store was made: it is believed",
        Trust::Unproven => "modifiedAt is when the store was made: believed once it moves",
        Trust::Lost(_) => "modifiedAt is not believed",
    };
    Finding::ok(CHECK, format!("{believed}; {counts}"))
}

/// Measures with a record of its own how late the store tells of a change.
pub(super) fn measured(store: &dyn Store, timeout: Duration) -> Finding {
    let check = "lag";
    let lag = match measure(store, timeout) {
        Ok(lag) => lag,
        Err(error) => return store_error(check, &error),
    };
    match lag {
        Some(lag) if lag <= USUAL_LAG => Finding::ok(
            check,
            format!("modifiedAt told of a change after {} s", lag.as_secs()),
        ),
        Some(lag) => Finding::warning(
            check,
            format!("modifiedAt told of a change after {} s", lag.as_secs()),
            format!("mount with --clock-lag {}s", 2 * lag.as_secs()),
        ),
        None => Finding::warning(
            check,
            format!(
                "modifiedAt told of no change within {} s",
                PATIENCE.as_secs()
            ),
            "mount with --clock-lag never: records are asked for one by one",
        ),
    }
}

fn untold() -> Finding {
    Finding::ok(CHECK, "not told: contents are asked for one by one")
}

fn state(store: &dyn Store, timeout: Duration) -> Result<Option<StoreState>> {
    store.state(Deadline::after(timeout))
}

/// Stores a record and waits until the store tells of it; removes it on every way out.
fn measure(store: &dyn Store, timeout: Duration) -> Result<Option<Duration>> {
    let Some(before) = state(store, timeout)? else {
        let message = "the store does not tell when it was changed";
        return Err(StoreError::new(ErrorKind::Unsupported, message));
    };
    let name = format!("kvfs-doctor-{:016x}", fastrand::u64(..));
    let Some(key) = Key::new(&name) else {
        return Ok(None);
    };
    let request = PutRequest {
        content_type: Some("text/plain".into()),
        ..PutRequest::default()
    };
    let upload = Upload::Bytes(b"kvfs doctor measures how late the store tells of a change");
    let begun = Instant::now();
    let stored = store.put(&key, &request, upload, Deadline::after(timeout));
    let lag = stored.and_then(|_| {
        while begun.elapsed() < PATIENCE {
            if state(store, timeout)?.is_some_and(|now| now.modified > before.modified) {
                return Ok(Some(begun.elapsed()));
            }
            thread::sleep(POLL);
        }
        Ok(None)
    });
    let removed = store.delete(&key, Deadline::after(timeout));
    let lag = lag?;
    removed.map(|()| lag)
}
