//! The source of the answer to the operation on this thread.
//!
//! An operation runs on one thread from beginning to end. The adapter calls [`begin`] at its start,
//! caches and transfers [`note`] what they had to do for it, and the reply asks for [`current`].
//! The slowest source counts.

use std::cell::{Cell, RefCell};

use serde::{Deserialize, Serialize};

/// Where an answer comes from; the later, the slower.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// What the daemon had in memory.
    #[default]
    Memory,
    /// The kernel's page cache: it was told that what it has is still right.
    Kernel,
    /// Memory, where it is because it was fetched ahead of a scan.
    Prefetch,
    /// The disk cache.
    Disk,
    /// The store.
    Network,
}

impl Origin {
    /// Returns the word for it in traces.
    pub fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Kernel => "kernel",
            Self::Prefetch => "prefetch",
            Self::Disk => "disk",
            Self::Network => "network",
        }
    }
}

thread_local! {
    static ORIGIN: Cell<Origin> = const { Cell::new(Origin::Memory) };
    static ABSENT: Cell<bool> = const { Cell::new(false) };
    static SUBJECT: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Begins an operation on this thread.
pub fn begin() {
    ORIGIN.set(Origin::Memory);
    ABSENT.set(false);
    SUBJECT.with_borrow_mut(|subject| *subject = None);
}

/// Notes that the operation needed this source.
pub fn note(origin: Origin) {
    ORIGIN.set(ORIGIN.get().max(origin));
}

/// Notes that the answer is that there is no such file.
pub fn absent() {
    ABSENT.set(true);
}

/// Returns whether [`absent`] has been called since [`begin`].
pub fn is_absent() -> bool {
    ABSENT.get()
}

/// Notes which name the operation is about.
pub fn about(name: String) {
    SUBJECT.with_borrow_mut(|subject| *subject = Some(name));
}

/// Returns the slowest source noted since [`begin`].
pub fn current() -> Origin {
    ORIGIN.get()
}

/// Takes the name noted since [`begin`].
pub fn take_subject() -> Option<String> {
    SUBJECT.with_borrow_mut(Option::take)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slowest_source_is_told_and_the_next_operation_begins_anew() {
        begin();
        note(Origin::Network);
        note(Origin::Disk);
        about("a".into());
        assert_eq!(current(), Origin::Network);
        assert_eq!(take_subject().as_deref(), Some("a"));
        begin();
        assert_eq!(current(), Origin::Memory);
        assert_eq!(take_subject(), None);
    }
}
