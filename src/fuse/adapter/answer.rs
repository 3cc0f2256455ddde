//! Answers a request: tries it on the kernel's thread, and if it would wait, repeats it on a pool
//! with a deadline.
//!
//! INVARIANT: every request gets one reply, or its program has given it up; a panic is an EIO.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use fuser::{Errno, INodeNo, Request};

use super::Adapter;
use crate::base::caller;
use crate::base::clock::{Deadline, Wait};
use crate::fs::types::{Ino, Resolved};
use crate::fs::{FsError, KvFs};
use crate::fuse::pending::{Refuse, Ticket};
use crate::fuse::slow_reads::Read;
use crate::fuse::syscalls::{Calls, Standing, Subject};
use crate::metrics::origin;
use crate::store::ErrorKind;

/// With so many requests that change something and do not get on, no more are begun: there are threads
/// for twice as many.
const MOST_LATE: usize = 32;

/// The kinds of requests that wait together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::fuse) enum Lane {
    /// Requests that ask the store; none waits past the deadline.
    Wait,
    /// Requests that change something, perhaps on the local disk; those that get on may go on.
    Upload,
}

impl Adapter {
    /// Runs `work`, at once if it need not wait, else on the pool, and hands its result to `done`.
    pub(in crate::fuse) fn answer<R: Refuse, T: 'static>(
        &self,
        asked: Asked,
        reply: R,
        work: impl Fn(&KvFs, Wait) -> Result<T, FsError> + Send + 'static,
        done: impl FnOnce(R, T) + Send + 'static,
    ) {
        self.answer_or_undo(asked, reply, work, done, |_, _| {});
    }

    /// The same for work that counts something which the kernel gives back only if it gets the
    /// reply: when the request has been given up meanwhile, `undo` takes the result back.
    pub(in crate::fuse) fn answer_or_undo<R: Refuse, T: 'static>(
        &self,
        asked: Asked,
        reply: R,
        work: impl Fn(&KvFs, Wait) -> Result<T, FsError> + Send + 'static,
        done: impl FnOnce(R, T) + Send + 'static,
        undo: fn(&KvFs, T),
    ) {
        self.answer_watched(asked, reply, work, done, undo, |_| {});
    }

    /// The same for work that is not the only one to answer: when it has to wait, `waits` gets the
    /// right to answer, too.
    pub(super) fn answer_watched<R: Refuse, T: 'static>(
        &self,
        asked: Asked,
        reply: R,
        work: impl Fn(&KvFs, Wait) -> Result<T, FsError> + Send + 'static,
        done: impl FnOnce(R, T) + Send + 'static,
        undo: fn(&KvFs, T),
        waits: impl FnOnce(&Arc<Ticket<R>>),
    ) {
        let Asked {
            operation,
            ino,
            pid,
            lane,
            ..
        } = asked;
        tracing::trace!(operation, ino = ino.0, pid, "operation");
        let reply = match asked.stages {
            true => self.stage_at_once(asked, reply, |fs| work(fs, Wait::Never)),
            false => match self.at_once(asked, |fs| work(fs, Wait::Never)) {
                Some(result) => Tried::Done(Some(reply), result),
                None => Tried::Waits(reply),
            },
        };
        let reply = match reply {
            Tried::Waits(reply) => reply,
            Tried::Done(Some(reply), Ok(answer)) => return done(reply, answer),
            Tried::Done(None, Ok(answer)) => return undo(&self.fs, answer),
            Tried::Done(Some(reply), Err(error)) => {
                return fail(&self.fs, operation, ino, reply, &error);
            }
            Tried::Done(None, Err(_)) | Tried::Answered => return,
        };
        let asked = asked.waits(&self.calls);
        let (patience, deadline) = match asked.standing {
            // The same system call has had its time; that was told then.
            Some(standing) if lane == Lane::Wait && standing.left.is_zero() => {
                tracing::debug!(operation, pid, "the deadline of the system call has passed");
                asked.ended(self);
                return reply.refuse(Errno::ETIMEDOUT);
            }
            // What changes something has its own time for each part.
            Some(standing) if lane == Lane::Wait => (standing.left, Deadline::after(standing.left)),
            _ => (self.deadline, Deadline::after(self.deadline)),
        };
        let late = &self.late[lane as usize];
        if lane == Lane::Upload && late.load(Ordering::Relaxed) >= MOST_LATE {
            tracing::warn!(
                "{operation}: too many requests do not get on [EIO]; is the disk of the staging folder answering?"
            );
            return reply.refuse(Errno::EIO);
        }
        let ticket = Arc::new(self.watcher.watch(reply, operation, pid, patience, late));
        if lane == Lane::Upload {
            // As long as it waits for a thread, no time passes.
            ticket.caller().gets_on(None);
        }
        waits(&ticket);
        let (fs, job, calls) = (
            Arc::clone(&self.fs),
            Arc::clone(&ticket),
            Arc::clone(&self.calls),
        );
        let pool = match lane {
            Lane::Wait => &self.pool,
            Lane::Upload => &self.uploads,
        };
        let queued = pool.spawn(move || {
            let caller = job.caller();
            if lane == Lane::Upload {
                caller.gets_on(Some(Instant::now()));
            }
            // What is given up before it has begun does not begin; what was closed is stored.
            if !caller.waits() && operation != "close" {
                return;
            }
            let work = || guarded(&fs, operation, || work(&fs, Wait::Until(deadline)));
            let result = caller::with(caller, work);
            asked.answered(&fs, result.as_ref().err());
            let reply = job.take();
            if reply.is_some() {
                asked.goes_on(&calls, result.as_ref().err());
            }
            match (reply, result) {
                (Some(reply), Ok(answer)) => done(reply, answer),
                (Some(reply), Err(error)) => fail(&fs, operation, ino, reply, &error),
                (None, Ok(answer)) => undo(&fs, answer),
                (None, Err(_)) => {}
            }
        });
        if queued.is_err()
            && let Some(reply) = ticket.take()
        {
            tracing::warn!(
                "{operation}: too many requests are waiting [EIO]; is the server answering?"
            );
            reply.refuse(Errno::EIO);
        }
    }

    /// Lets one of the kernel's threads work with the local disk, if others are left.
    pub(in crate::fuse) fn stages(&self) -> Option<Turn<'_>> {
        Turn::take(&self.staging)
    }

    /// Tries `work` on the kernel's thread, although it may write to the local disk: on some of these
    /// threads, so that the others go on if that disk hangs, and watched over.
    pub(in crate::fuse) fn stage_at_once<R: Refuse, T>(
        &self,
        asked: Asked,
        reply: R,
        work: impl FnOnce(&KvFs) -> Result<T, FsError>,
    ) -> Tried<R, T> {
        let Some(_turn) = self.stages() else {
            return Tried::Waits(reply);
        };
        let late = &self.late[Lane::Upload as usize];
        let ticket = self
            .watcher
            .watch(reply, asked.operation, asked.pid, self.deadline, late);
        let result = caller::with(ticket.caller(), || self.at_once(asked, work));
        match (ticket.take(), result) {
            (reply, Some(result)) => Tried::Done(reply, result),
            (Some(reply), None) => Tried::Waits(reply),
            (None, None) => Tried::Answered,
        }
    }

    /// Tries `work` on the kernel's thread; `None` when it would wait.
    pub(in crate::fuse) fn at_once<T>(
        &self,
        asked: Asked,
        work: impl FnOnce(&KvFs) -> Result<T, FsError>,
    ) -> Option<Result<T, FsError>> {
        let result = guarded(&self.fs, asked.operation, || work(&self.fs));
        if matches!(result, Err(FsError::WouldBlock)) {
            return None;
        }
        asked.answered(&self.fs, result.as_ref().err());
        asked.goes_on(&self.calls, result.as_ref().err());
        Some(result)
    }
}

/// What came of trying a request on the kernel's thread.
pub(in crate::fuse) enum Tried<R, T> {
    /// It would wait.
    Waits(R),
    /// It is done; without a reply it was answered meanwhile.
    Done(Option<R>, Result<T, FsError>),
    /// It would wait, and was answered meanwhile.
    Answered,
}

/// The right of one of the kernel's threads to work with the local disk.
pub(in crate::fuse) struct Turn<'a>(&'a AtomicUsize);

impl<'a> Turn<'a> {
    fn take(left: &'a AtomicUsize) -> Option<Self> {
        let one_less = |left: usize| left.checked_sub(1);
        let taken = left.fetch_update(Ordering::Acquire, Ordering::Relaxed, one_less);
        taken.ok().map(|_| Self(left))
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::Release);
    }
}

/// A request as it came: where it waits, and its description for measurements and traces.
#[derive(Clone, Copy, Debug)]
pub(in crate::fuse) struct Asked {
    operation: &'static str,
    ino: Ino,
    pid: u32,
    at: Instant,
    lane: Lane,
    /// Whether it may write to the local disk.
    stages: bool,
    /// What is known of its system call, for those that may be of one with others.
    standing: Option<Standing>,
    /// Begin and end of what is read.
    range: Option<(u64, u64)>,
}

impl Asked {
    pub(in crate::fuse) fn new(request: &Request, operation: &'static str, ino: INodeNo) -> Self {
        Self {
            operation,
            ino: Ino(ino.0),
            pid: request.pid(),
            at: Instant::now(),
            lane: Lane::Wait,
            stages: false,
            standing: None,
            range: None,
        }
    }

    /// The same request, about `subject`, with the deadline of its system call.
    pub(in crate::fuse) fn of_call(self, adapter: &Adapter, subject: Subject) -> Self {
        // Of threads that are not seen nothing is known.
        let standing = (self.pid != 0).then(|| adapter.calls.begin(self.pid, subject));
        Self { standing, ..self }
    }

    /// The same request, for these bytes of the file.
    pub(in crate::fuse) fn for_bytes(self, offset: u64, size: u32) -> Self {
        let range = (self.pid != 0).then(|| (offset, offset.saturating_add(size.into())));
        Self { range, ..self }
    }

    fn read(self) -> Option<Read> {
        let (start, end) = self.range?;
        Some(Read {
            thread: self.pid,
            ino: self.ino.0,
            range: start..end,
        })
    }

    /// The same request, which has to wait.
    fn waits(self, calls: &Calls) -> Self {
        let standing = match self.read() {
            Some(read) => Some(Standing {
                age: Duration::ZERO,
                left: calls.reads.begin(read),
                was_stale: false,
                looked_up: None,
            }),
            None => self.standing,
        };
        Self { standing, ..self }
    }

    /// Returns how long ago its system call began; `None` if an open of it was stale: a second one
    /// would be an error for the program.
    pub(in crate::fuse) fn age(self) -> Option<Duration> {
        let standing = self.standing.unwrap_or(Standing {
            age: Duration::ZERO,
            left: Duration::ZERO,
            was_stale: false,
            looked_up: None,
        });
        (!standing.was_stale).then_some(standing.age)
    }

    /// Returns whether an open of its system call was stale.
    pub(in crate::fuse) fn was_stale(self) -> bool {
        self.standing.is_some_and(|standing| standing.was_stale)
    }

    /// Returns how the kernel came to the inode.
    pub(in crate::fuse) fn resolved(self) -> Resolved {
        match self.standing {
            Some(Standing {
                was_stale: false, ..
            }) => Resolved::Entry(self.at),
            Some(Standing {
                looked_up: Some(at),
                ..
            }) => Resolved::LookedUp(at),
            _ => Resolved::Unknown(self.at),
        }
    }

    fn ended(self, adapter: &Adapter) {
        if self.range.is_some() {
            return;
        }
        adapter.calls.answered(self.pid, "", None);
    }

    fn goes_on(self, calls: &Calls, error: Option<&FsError>) {
        if self.standing.is_none() {
            return;
        }
        if let Some(read) = self.read() {
            let is_late = |error: &FsError| matches!(error, FsError::Store(error) if error.kind() == ErrorKind::Timeout);
            calls.reads.answered(&read, error.is_some_and(is_late));
        } else {
            calls.answered(self.pid, self.operation, error);
        }
    }

    /// Notes that a lookup, which began `at` this time or later, found this inode.
    pub(super) fn found(self, calls: &Calls, ino: Ino, at: Instant) {
        calls.found(self.pid, ino.0, at);
        self.goes_on(calls, None);
    }

    /// The same request, to wait in that lane if it must wait.
    pub(in crate::fuse) fn in_lane(self, lane: Lane) -> Self {
        Self { lane, ..self }
    }

    /// The same request, which may write to the local disk.
    pub(in crate::fuse) fn staging(self) -> Self {
        Self {
            stages: true,
            ..self
        }
    }

    pub(in crate::fuse) fn ino(self) -> Ino {
        self.ino
    }

    /// Notes the answer just before it is given, on the thread that found it.
    fn answered(self, fs: &KvFs, error: Option<&FsError>) {
        let took = self.at.elapsed();
        let metrics = fs.metrics();
        metrics.operation(self.operation, took);
        if metrics.tracer.is_active() {
            fs.tell(
                self.operation,
                self.ino,
                self.pid,
                took,
                error.map(FsError::errno),
            );
        }
    }
}

/// Runs a part of the core; a panic becomes an error.
fn guarded<T>(
    fs: &KvFs,
    operation: &str,
    work: impl FnOnce() -> Result<T, FsError>,
) -> Result<T, FsError> {
    origin::begin();
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| {
        fs.metrics().caught_panic();
        tracing::error!("{operation} panicked [EIO]; please report this");
        Err(FsError::WrongKind(libc::EIO))
    })
}

pub(in crate::fuse) fn fail<R: Refuse>(
    fs: &KvFs,
    operation: &str,
    ino: Ino,
    reply: R,
    error: &FsError,
) {
    fs.report(operation, Some(ino), error);
    let errno = match error {
        // Means nothing to a program. A request that may wait does not end with it.
        FsError::WouldBlock => {
            tracing::error!(
                "{operation}: no answer although it may wait [EIO]; please report this"
            );
            Errno::EIO
        }
        error => Errno::from_i32(error.errno()),
    };
    reply.refuse(errno);
}
