//! Shuttle's locks and threads, in the form of `parking_lot` and the standard library.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use shuttle::rand::{Rng, thread_rng};
use shuttle::sync as inner;

use super::time::{Waiter, now};

pub use shuttle::sync::atomic;

/// Threads.
pub mod thread {
    use std::time::Duration;

    pub use shuttle::thread::{Builder, JoinHandle, Scope, panicking, scope, spawn, yield_now};

    /// Waits this long.
    pub fn sleep(span: Duration) {
        super::Waiter::new().wait(Some(super::now() + span));
    }
}

/// Here the disk works: others may go on before it.
pub fn point() {
    // Touching what threads share is where shuttle lets others run.
    atomic::AtomicBool::new(false).load(atomic::Ordering::SeqCst);
}

/// A lock.
#[derive(Default)]
pub struct Mutex<T: ?Sized>(inner::Mutex<T>);

/// Holds a lock.
pub struct MutexGuard<'a, T: ?Sized> {
    mutex: &'a Mutex<T>,
    /// Gone only while it waits.
    held: Option<inner::MutexGuard<'a, T>>,
}

impl<T> Mutex<T> {
    /// Makes a lock.
    pub const fn new(value: T) -> Self {
        Self(inner::Mutex::new(value))
    }
}

impl<T: ?Sized> Mutex<T> {
    /// Waits for the lock.
    pub fn lock(&self) -> MutexGuard<'_, T> {
        MutexGuard {
            mutex: self,
            held: Some(self.take()),
        }
    }

    fn take(&self) -> inner::MutexGuard<'_, T> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T: ?Sized> fmt::Debug for Mutex<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Mutex")
    }
}

impl<'a, T: ?Sized> MutexGuard<'a, T> {
    fn held(&self) -> &inner::MutexGuard<'a, T> {
        self.held.as_ref().expect("held unless it waits")
    }
}

impl<T: ?Sized> Deref for MutexGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.held()
    }
}

impl<T: ?Sized> DerefMut for MutexGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        self.held.as_mut().expect("held unless it waits")
    }
}

impl<T: ?Sized> fmt::Debug for MutexGuard<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MutexGuard")
    }
}

/// A condition to wait for. No thread is woken for nothing; of several waiting threads, any is
/// notified.
#[derive(Default)]
pub struct Condvar {
    waiting: std::sync::Mutex<Vec<Arc<Waiter>>>,
    /// Touched before a notification, so that others may run before it.
    point: atomic::AtomicBool,
}

/// Whether a wait ended because its time was over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WaitTimeoutResult(bool);

impl WaitTimeoutResult {
    /// Returns whether the time was over.
    pub fn timed_out(&self) -> bool {
        self.0
    }
}

impl fmt::Debug for Condvar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Condvar")
    }
}

impl Condvar {
    /// Makes a condition.
    pub const fn new() -> Self {
        Self {
            waiting: std::sync::Mutex::new(Vec::new()),
            point: atomic::AtomicBool::new(false),
        }
    }

    /// Waits for a notification; the lock is free meanwhile.
    pub fn wait<T: ?Sized>(&self, guard: &mut MutexGuard<'_, T>) {
        self.wait_for_either(guard, None);
    }

    /// The same, not past `until`.
    pub fn wait_until<T: ?Sized>(
        &self,
        guard: &mut MutexGuard<'_, T>,
        until: Instant,
    ) -> WaitTimeoutResult {
        WaitTimeoutResult(self.wait_for_either(guard, Some(until)))
    }

    /// The same, not longer than `span`.
    pub fn wait_for<T: ?Sized>(
        &self,
        guard: &mut MutexGuard<'_, T>,
        span: Duration,
    ) -> WaitTimeoutResult {
        self.wait_until(guard, now() + span)
    }

    /// Notifies one waiting thread.
    pub fn notify_one(&self) {
        self.point.load(atomic::Ordering::SeqCst);
        let chosen = {
            let mut waiting = self.list();
            waiting.retain(|waiter| waiter.is_waiting());
            match waiting.len() {
                0 => return,
                1 => waiting.remove(0),
                count => waiting.remove(thread_rng().gen_range(0..count)),
            }
        };
        chosen.notify();
    }

    /// Notifies all waiting threads.
    pub fn notify_all(&self) {
        self.point.load(atomic::Ordering::SeqCst);
        let all = std::mem::take(&mut *self.list());
        for waiter in all {
            waiter.notify();
        }
    }

    fn wait_for_either<T: ?Sized>(
        &self,
        guard: &mut MutexGuard<'_, T>,
        until: Option<Instant>,
    ) -> bool {
        // Others may run before the lock is free, and then not before this thread waits.
        guard.held = None;
        let is_over = if until.is_some_and(|until| until <= now()) {
            true
        } else {
            let waiter = Waiter::new();
            self.list().push(Arc::clone(&waiter));
            let is_over = waiter.wait(until);
            self.list().retain(|other| !Arc::ptr_eq(other, &waiter));
            is_over
        };
        guard.held = Some(guard.mutex.take());
        is_over
    }

    fn list(&self) -> std::sync::MutexGuard<'_, Vec<Arc<Waiter>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
