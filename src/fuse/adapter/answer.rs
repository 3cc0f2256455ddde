//! How a request is answered: tried on the kernel's thread, and if it would wait, repeated on a pool
//! with a deadline.
//!
//! INVARIANT: every request gets one reply, or has been given up by who asked; a panic is an EIO.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

use fuser::{Errno, INodeNo, Request};

use super::Adapter;
use crate::clock::Wait;
use crate::fs::types::Ino;
use crate::fs::{FsError, KvFs};
use crate::fuse::changes::deadline_of;
use crate::fuse::pending::Refuse;
use crate::observe::origin;

/// Who else waits where a request waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::fuse) enum Lane {
    /// Whoever asks the store for something; none waits past the deadline.
    Wait,
    /// Whoever changes something; what makes progress may go on.
    Upload,
}

impl Adapter {
    /// Runs `work`, at once if it need not wait, else on the pool, and hands its result to `done`.
    pub(super) fn answer<R: Refuse, T: 'static>(
        &self,
        request: &Request,
        operation: &'static str,
        ino: INodeNo,
        reply: R,
        work: impl Fn(&KvFs, Wait) -> Result<T, FsError> + Send + 'static,
        done: impl FnOnce(R, T) + Send + 'static,
    ) {
        self.answer_in(Lane::Wait, request, operation, ino, reply, work, done);
    }

    /// The same in another lane.
    #[expect(clippy::too_many_arguments, reason = "one more than a plain request")]
    pub(in crate::fuse) fn answer_in<R: Refuse, T: 'static>(
        &self,
        lane: Lane,
        request: &Request,
        operation: &'static str,
        ino: INodeNo,
        reply: R,
        work: impl Fn(&KvFs, Wait) -> Result<T, FsError> + Send + 'static,
        done: impl FnOnce(R, T) + Send + 'static,
    ) {
        self.answer_or_undo(lane, request, operation, ino, reply, work, done, |_, _| {});
    }

    /// The same for work that counts something which the kernel gives back only if it gets the
    /// reply: when the request has been given up meanwhile, `undo` takes the result back.
    #[expect(
        clippy::too_many_arguments,
        reason = "a lane and two more callbacks than a plain request"
    )]
    pub(in crate::fuse) fn answer_or_undo<R: Refuse, T: 'static>(
        &self,
        lane: Lane,
        request: &Request,
        operation: &'static str,
        ino: INodeNo,
        reply: R,
        work: impl Fn(&KvFs, Wait) -> Result<T, FsError> + Send + 'static,
        done: impl FnOnce(R, T) + Send + 'static,
        undo: fn(&KvFs, T),
    ) {
        let ino = Ino(ino.0);
        let asked = Asked::new(request, operation, ino);
        tracing::trace!(operation, ino = ino.0, pid = asked.pid, "operation");
        match guarded(&self.fs, operation, || work(&self.fs, Wait::Never)) {
            Ok(answer) => {
                asked.answered(&self.fs, None);
                return done(reply, answer);
            }
            Err(FsError::WouldBlock) => {}
            Err(error) => {
                asked.answered(&self.fs, Some(&error));
                return fail(&self.fs, operation, ino, reply, &error);
            }
        }
        let (patience, deadline) = deadline_of(lane, self.deadline);
        let ticket = Arc::new(
            self.watcher
                .watch(reply, operation, request.pid(), patience),
        );
        let (fs, job) = (Arc::clone(&self.fs), Arc::clone(&ticket));
        let pool = match lane {
            Lane::Wait => &self.pool,
            Lane::Upload => &self.uploads,
        };
        let queued = pool.spawn(move || {
            let result = guarded(&fs, operation, || work(&fs, Wait::Until(deadline)));
            asked.answered(&fs, result.as_ref().err());
            match (job.take(), result) {
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
}

/// A request as it came, for who measures or follows the operations.
#[derive(Clone, Copy, Debug)]
pub(in crate::fuse) struct Asked {
    operation: &'static str,
    ino: Ino,
    pid: u32,
    at: Instant,
}

impl Asked {
    pub(in crate::fuse) fn new(request: &Request, operation: &'static str, ino: Ino) -> Self {
        Self {
            operation,
            ino,
            pid: request.pid(),
            at: Instant::now(),
        }
    }

    /// Takes note of the answer just before it is given, on the thread that found it.
    pub(in crate::fuse) fn answered(self, fs: &KvFs, error: Option<&FsError>) {
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
pub(in crate::fuse) fn guarded<T>(
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
    reply.refuse(Errno::from_i32(error.errno()));
}
