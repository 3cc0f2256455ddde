//! Whether the program that asked for the operation on this thread still waits for it.
//!
//! A program that is ended gets its answer at once (`fuse::pending`), while the thread that works for
//! it goes on. An operation that has not taken effect by then must not do so later: it would collide
//! with later ones.

use std::cell::{Cell, RefCell};
use std::time::{Duration, Instant};

/// What a thread asks about the program that it works for.
pub trait Caller {
    /// Returns whether it still waits.
    fn waits(&self) -> bool;

    /// Returns the same; from then on it waits until it is answered.
    fn claim(&self) -> bool;

    /// Lets it go again: what it asked for has taken effect, and is finished without it.
    fn release(&self);

    /// Notes that the operation gets on: its time begins again then; with `None` no time passes.
    fn gets_on(&self, _since: Option<Instant>) {}
}

thread_local! {
    static CALLER: RefCell<Option<Box<dyn Caller>>> = const { RefCell::new(None) };
    static LEAVES: Cell<bool> = const { Cell::new(false) };
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

/// Lets the program go that [`claim`] made wait, once the next upload is handed to the store: the store's
/// answer is seen to whether the program waits or not.
pub fn leave_once_sent() {
    LEAVES.set(true);
}

/// Notes that an upload is handed to the store.
pub fn sends() {
    if LEAVES.take() {
        CALLER.with_borrow(|caller| {
            if let Some(caller) = caller {
                caller.release();
            }
        });
    }
}

/// Asks the store something, which has deadlines of its own: meanwhile no time of the operation passes.
pub fn asking<T>(ask: impl FnOnce() -> T) -> T {
    gets_on(None);
    let answer = ask();
    moves();
    answer
}

/// Sends the store a file of this disk, which takes no longer than `most` and one deadline.
pub fn sending<T>(most: Duration, send: impl FnOnce() -> T) -> T {
    let now = Instant::now();
    gets_on(Some(now.checked_add(most).unwrap_or(now)));
    let answer = send();
    moves();
    answer
}

/// Notes that the operation gets on, as it has waited for its turn until now or begins to.
pub fn moves() {
    gets_on(Some(Instant::now()));
}

fn gets_on(since: Option<Instant>) {
    CALLER.with_borrow(|caller| {
        if let Some(caller) = caller {
            caller.gets_on(since);
        }
    });
}

struct Reset;

impl Drop for Reset {
    fn drop(&mut self) {
        CALLER.with_borrow_mut(|current| *current = None);
        LEAVES.set(false);
    }
}
