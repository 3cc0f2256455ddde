//! Groups requests into system calls: those of one call share one deadline.
//!
//! The kernel does not say. To open a path it may look the name up again because its entry has
//! expired, look it up once more because that failed, open it, and begin again where that was stale;
//! `stat` looks up and asks for attributes. A request of the same thread about the same file, that
//! comes at once after an answer which does not end a call, goes on with that call.
//!
//! The kernel asks for a name once at a time: other threads that need it wait for that lookup, and
//! ask only when it has failed. So what begins right after a long lookup has waited for it.

use std::ffi::OsStr;
use std::hash::{BuildHasher, RandomState};
use std::num::NonZeroUsize;
use std::time::{Duration, Instant};

use lru::LruCache;
use parking_lot::Mutex;

use super::slow_reads::SlowReads;
use crate::fs::FsError;
use crate::store::ErrorKind;

/// How many threads have their last call remembered.
const MOST: NonZeroUsize = NonZeroUsize::MIN.saturating_add(1023);
/// The kernel goes on with a call within this time, unless the machine is very busy; a program takes
/// about as long to begin another one.
pub(super) const GAP: Duration = Duration::from_millis(20);
/// The same after an answer that the kernel never hands to the program, but asks again for: the next
/// thing that the thread does about the file.
const GAP_OF_STALE: Duration = Duration::from_secs(1);
/// For so long after a long lookup, threads that have waited for it begin, one after the other.
const QUEUE: Duration = Duration::from_millis(250);
/// Of a deadline, a request that was not the first of its call has at least this part: what looked
/// like one call may have been two.
pub(super) const LEAST: u32 = 4;

/// What a request is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Subject {
    /// A name of the root, by its hash.
    Name(u64),
    /// An inode.
    Ino(u64),
}

/// The calls of all threads.
#[derive(Debug)]
pub(super) struct Calls {
    hasher: RandomState,
    deadline: Duration,
    latest: Mutex<LruCache<u32, Call>>,
    /// The latest long lookup of each name, and of each inode that one found.
    long: Mutex<LruCache<Subject, LongLookup>>,
    /// The names that led to inodes lately, by inode. After a stale open the kernel may take an inode
    /// that another thread has just looked up by the same name.
    names: Mutex<LruCache<u64, u64>>,
    /// Reads, of which a thread may have several.
    pub(super) reads: SlowReads,
}

#[derive(Debug)]
struct Call {
    begun: Instant,
    /// When its latest request was answered.
    answered: Option<Instant>,
    name: Option<u64>,
    ino: Option<u64>,
    is_late: bool,
    was_stale: bool,
    /// When the name was looked up after that.
    looked_up: Option<Instant>,
}

/// A lookup for which other threads may have waited.
#[derive(Clone, Copy, Debug)]
struct LongLookup {
    thread: u32,
    begun: Instant,
    answered: Instant,
    /// When the latest thread began that had waited for it.
    followed: Instant,
    has_failed: bool,
}

/// How a request of a call stands.
#[derive(Clone, Copy, Debug)]
pub(super) struct Standing {
    /// How long ago the call began.
    pub age: Duration,
    /// How long it may go on; zero when its deadline has passed.
    pub left: Duration,
    /// Whether an open of it was stale: a second one would be an error.
    pub was_stale: bool,
    /// When the kernel looked the name up since; `None` if it has not.
    pub looked_up: Option<Instant>,
}

impl Calls {
    pub(super) fn new(deadline: Duration) -> Self {
        Self {
            hasher: RandomState::new(),
            deadline,
            latest: Mutex::new(LruCache::new(MOST)),
            long: Mutex::new(LruCache::new(MOST)),
            names: Mutex::new(LruCache::new(MOST)),
            reads: SlowReads::new(deadline),
        }
    }

    /// Returns what a request about a name is about.
    pub(super) fn name(&self, name: &OsStr) -> Subject {
        Subject::Name(self.hasher.hash_one(name))
    }

    /// Notes a request of a thread.
    pub(super) fn begin(&self, thread: u32, subject: Subject) -> Standing {
        let now = Instant::now();
        let name = match subject {
            Subject::Name(name) => Some(name),
            Subject::Ino(ino) => self.names.lock().get(&ino).copied(),
        };
        let mut latest = self.latest.lock();
        if let Some(call) = latest.get_mut(&thread)
            && call.goes_on(subject, name, now, self.deadline)
        {
            if let (true, Subject::Ino(ino)) = (call.was_stale, subject) {
                call.ino = Some(ino);
            }
            call.answered = None;
            let age = now.saturating_duration_since(call.begun);
            let left = if call.is_late {
                Duration::ZERO
            } else {
                self.deadline.saturating_sub(age).max(self.deadline / LEAST)
            };
            let (was_stale, looked_up) = (call.was_stale, call.looked_up);
            if call.is_late {
                latest.pop(&thread);
            }
            return Standing {
                age,
                left,
                was_stale,
                looked_up,
            };
        }
        let ino = match subject {
            Subject::Name(_) => None,
            Subject::Ino(ino) => Some(ino),
        };
        let call = Call {
            begun: now,
            answered: None,
            name,
            ino,
            is_late: false,
            was_stale: false,
            looked_up: None,
        };
        latest.put(thread, call);
        drop(latest);
        Standing {
            age: Duration::ZERO,
            left: self.left_after_long(thread, subject, now),
            was_stale: false,
            looked_up: None,
        }
    }

    /// Returns how long a call may take that begins now: less when it has waited for another's lookup.
    fn left_after_long(&self, thread: u32, subject: Subject, now: Instant) -> Duration {
        let mut long = self.long.lock();
        let Some(lookup) = long.get_mut(&subject).filter(|own| own.thread != thread) else {
            return self.deadline;
        };
        let since = |at| now.saturating_duration_since(at);
        if since(lookup.followed) >= GAP || since(lookup.answered) >= QUEUE {
            long.pop(&subject);
            return self.deadline;
        }
        lookup.followed = now;
        if lookup.has_failed {
            return Duration::ZERO;
        }
        let left = self.deadline.saturating_sub(since(lookup.begun));
        left.max(self.deadline / LEAST)
    }

    /// Notes a lookup that took long.
    fn note_long(&self, thread: u32, call: &Call, has_failed: bool) {
        let now = Instant::now();
        let lookup = LongLookup {
            thread,
            begun: call.begun,
            answered: now,
            followed: now,
            has_failed,
        };
        let mut long = self.long.lock();
        if let Some(name) = call.name {
            long.put(Subject::Name(name), lookup);
        }
        if let Some(ino) = call.ino.filter(|_| !has_failed) {
            long.put(Subject::Ino(ino), lookup);
        }
    }

    /// Notes that a name led to an inode when it was looked up `at` this time or later.
    pub(super) fn found(&self, thread: u32, ino: u64, at: Instant) {
        let name = {
            let mut latest = self.latest.lock();
            let Some(call) = latest.get_mut(&thread) else {
                return;
            };
            call.ino = Some(ino);
            call.looked_up = call.was_stale.then_some(at);
            call.name
        };
        if let Some(name) = name {
            self.names.lock().put(ino, name);
        }
    }

    /// Notes an answer.
    pub(super) fn answered(&self, thread: u32, operation: &str, error: Option<&FsError>) {
        let mut latest = self.latest.lock();
        if operation == "lookup"
            && let Some(call) = latest.peek(&thread)
            && call.begun.elapsed() >= self.deadline / LEAST
        {
            self.note_long(thread, call, error.is_some());
        }
        // A server's silence may end sooner than the deadline: the next request has what is left.
        let is_over = latest
            .peek(&thread)
            .is_some_and(|call| call.begun.elapsed() >= self.deadline - self.deadline / LEAST);
        let is_late = |error: &FsError| match error {
            FsError::Store(error) => is_over && error.kind() == ErrorKind::Timeout,
            _ => false,
        };
        let goes_on = match (operation, error) {
            ("lookup", None) => true,
            ("lookup", Some(error)) => is_late(error),
            (_, error) => matches!(error, Some(FsError::Stale)),
        };
        match latest.get_mut(&thread) {
            Some(call) if goes_on => {
                call.answered = Some(Instant::now());
                call.is_late |= error.is_some_and(is_late);
                if matches!(error, Some(FsError::Stale)) {
                    (call.was_stale, call.looked_up) = (true, None);
                }
            }
            _ => {
                latest.pop(&thread);
            }
        }
    }
}

impl Call {
    /// Returns whether a request about `subject`, which has this name as far as is known, is of this
    /// call.
    fn goes_on(
        &mut self,
        subject: Subject,
        name: Option<u64>,
        now: Instant,
        deadline: Duration,
    ) -> bool {
        let is_same = match subject {
            Subject::Name(name) => self.name.is_none_or(|own| own == name),
            Subject::Ino(ino) if self.ino == Some(ino) => true,
            Subject::Ino(_) => self.was_stale && name.is_some() && name == self.name,
        };
        match self.answered {
            Some(at) => {
                let gap = if self.was_stale { GAP_OF_STALE } else { GAP };
                is_same && now.saturating_duration_since(at) < gap
            }
            // It was answered because its deadline had passed: a thread asks one thing at a time.
            None => {
                let since = now.saturating_duration_since(self.begun);
                self.is_late = is_same && since >= deadline;
                self.is_late && since < deadline + deadline
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::StoreError;

    const DEADLINE: Duration = Duration::from_secs(60);

    fn late() -> FsError {
        StoreError::new(ErrorKind::Timeout, "late").into()
    }

    #[test]
    fn a_name_that_is_looked_up_again_because_that_was_late_has_no_time_left() {
        let deadline = Duration::from_millis(5);
        let calls = Calls::new(deadline);
        let name = calls.name(OsStr::new("a"));
        assert_eq!(calls.begin(1, name).left, deadline);
        std::thread::sleep(deadline);
        calls.answered(1, "lookup", Some(&late()));
        assert_eq!(calls.begin(1, name).left, Duration::ZERO);
        assert_eq!(calls.begin(1, name).left, deadline, "once");
    }

    #[test]
    fn a_server_that_is_silent_for_less_than_the_deadline_leaves_time() {
        let calls = Calls::new(DEADLINE);
        let name = calls.name(OsStr::new("a"));
        calls.begin(1, name);
        calls.answered(1, "lookup", Some(&late()));
        assert!(calls.begin(1, name).left > DEADLINE / 2);
    }

    #[test]
    fn other_names_other_threads_and_ended_calls_begin_anew() {
        let calls = Calls::new(DEADLINE);
        let (a, b) = (calls.name(OsStr::new("a")), calls.name(OsStr::new("b")));
        calls.begin(1, a);
        calls.answered(1, "lookup", Some(&late()));
        assert_eq!(calls.begin(2, a).left, DEADLINE);
        assert_eq!(calls.begin(1, b).left, DEADLINE);
        calls.answered(1, "lookup", None);
        calls.found(1, 7, Instant::now());
        assert!(calls.begin(1, Subject::Ino(8)).age.is_zero());
        calls.answered(1, "open", None);
        assert!(calls.begin(1, Subject::Ino(8)).age.is_zero());
    }

    #[test]
    fn threads_that_have_waited_for_a_long_lookup_have_what_it_left() {
        let deadline = Duration::from_millis(400);
        let calls = Calls::new(deadline);
        let name = calls.name(OsStr::new("a"));
        calls.begin(1, name);
        std::thread::sleep(deadline);
        calls.answered(1, "lookup", Some(&late()));
        let at = Instant::now();
        let left = [calls.begin(2, name).left, calls.begin(3, name).left];
        // On a busy machine they look like threads that have not waited.
        assert!(
            left == [Duration::ZERO; 2] || at.elapsed() >= GAP,
            "{left:?}"
        );
        std::thread::sleep(QUEUE);
        assert_eq!(calls.begin(4, name).left, deadline);
        // One that found an inode: those that waited go on to open it.
        calls.begin(5, name);
        std::thread::sleep(deadline / 2);
        calls.found(5, 7, Instant::now());
        calls.answered(5, "lookup", None);
        let at = Instant::now();
        let left = calls.begin(6, Subject::Ino(7)).left;
        assert!(left <= deadline / 2 || at.elapsed() >= GAP, "{left:?}");
        assert!(left >= deadline / LEAST);
    }

    #[test]
    fn what_follows_a_stale_answer_is_the_same_call_however_busy_the_machine_is() {
        let calls = Calls::new(DEADLINE);
        let name = calls.name(OsStr::new("a"));
        calls.begin(1, name);
        calls.found(1, 7, Instant::now());
        calls.answered(1, "lookup", None);
        calls.begin(1, Subject::Ino(7));
        calls.answered(1, "open", Some(&FsError::Stale));
        std::thread::sleep(GAP + GAP);
        let standing = calls.begin(1, name);
        assert!(standing.was_stale);
    }

    #[test]
    fn after_a_stale_open_the_inode_may_be_one_that_another_thread_has_looked_up() {
        let calls = Calls::new(DEADLINE);
        let (a, b) = (calls.name(OsStr::new("a")), calls.name(OsStr::new("b")));
        let look_up = |thread, name, ino| {
            calls.begin(thread, name);
            calls.found(thread, ino, Instant::now());
            calls.answered(thread, "lookup", None);
        };
        look_up(1, a, 7);
        calls.begin(1, Subject::Ino(7));
        calls.answered(1, "open", Some(&FsError::Stale));
        look_up(2, a, 8);
        look_up(2, b, 9);
        assert!(calls.begin(1, Subject::Ino(8)).was_stale);
        calls.answered(1, "open", Some(&FsError::Stale));
        assert!(!calls.begin(1, Subject::Ino(9)).was_stale, "another name");
    }

    #[test]
    fn an_open_that_follows_its_lookup_has_what_is_left() {
        let calls = Calls::new(Duration::from_millis(40));
        calls.begin(1, calls.name(OsStr::new("a")));
        std::thread::sleep(Duration::from_millis(15));
        calls.found(1, 7, Instant::now());
        calls.answered(1, "lookup", None);
        let open = calls.begin(1, Subject::Ino(7));
        // On a busy machine it looks like another call.
        assert!(open.age.is_zero() || open.left <= Duration::from_millis(25));
        assert!(open.left >= Duration::from_millis(10));
    }
}
