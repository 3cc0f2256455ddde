//! Whether the program that asked for the operation on this thread still waits for it.
//!
//! A program that is ended gets its answer at once (`fuse::pending`), while the thread that works for
//! it goes on. An operation that has not taken effect by then must not do so later: it would collide
//! with later ones.

use std::cell::RefCell;

/// What a thread asks about the program that it works for.
pub trait Caller {
    /// Returns whether it still waits.
    fn waits(&self) -> bool;

    /// Returns the same; from then on it waits until it is answered.
    fn claim(&self) -> bool;
}

thread_local! {
    static CALLER: RefCell<Option<Box<dyn Caller>>> = const { RefCell::new(None) };
}

/// Works for `caller`.
pub fn with<T>(caller: Box<dyn Caller>, work: impl FnOnce() -> T) -> T {
    let _reset = Reset;
    CALLER.with_borrow_mut(|current| *current = Some(caller));
    work()
}

/// Returns whether the program still waits: ask before a request is sent that has an effect.
pub fn waits() -> bool {
    CALLER.with_borrow(|caller| caller.as_ref().is_none_or(|caller| caller.waits()))
}

/// Returns whether the program still waits, and makes it wait for its answer: ask before an effect
/// on this machine only.
pub fn claim() -> bool {
    CALLER.with_borrow(|caller| caller.as_ref().is_none_or(|caller| caller.claim()))
}

struct Reset;

impl Drop for Reset {
    fn drop(&mut self) {
        CALLER.with_borrow_mut(|current| *current = None);
    }
}
