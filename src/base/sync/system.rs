//! The real locks, threads and clock, from parking_lot and the standard library.

use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

pub use parking_lot::{Condvar, Mutex, MutexGuard};
pub use std::sync::atomic;
pub use std::thread;

/// Returns the monotonic time.
#[inline]
pub fn now() -> Instant {
    Instant::now()
}

/// Here the disk works: others may go on before it.
#[inline]
pub fn point() {}

/// Returns the time since the machine was started.
pub fn since_boot() -> Duration {
    read(ClockId::Boottime)
}

/// Returns for how long the machine has slept since it was started.
pub fn time_asleep() -> Duration {
    // In this order, so that it is never too much.
    let total = read(ClockId::Boottime);
    total.saturating_sub(read(ClockId::Monotonic))
}

fn read(clock: ClockId) -> Duration {
    let time = clock_gettime(clock);
    Duration::new(
        u64::try_from(time.tv_sec).unwrap_or_default(),
        u32::try_from(time.tv_nsec).unwrap_or_default(),
    )
}
