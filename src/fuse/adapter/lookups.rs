//! Lookups that wait for a record, and are answered sooner when a listing names it.
//!
//! The kernel looks up one name once at a time: whatever else needs that name waits, and so does
//! READDIRPLUS with an entry of that name (fuse_direntplus_link in fs/fuse/readdir.c). So a record
//! that the server is silent about would hold up `ls` until the lookup's deadline.

use std::ffi::OsString;
use std::sync::{Arc, Weak};
use std::time::Instant;

use fuser::ReplyEntry;
use parking_lot::Mutex;

use super::Adapter;
use super::answer::Asked;
use super::names::send;
use crate::base::clock::Wait;
use crate::fs::types::{Ino, Lookup};
use crate::fuse::pending::Ticket;

/// A lookup that waits.
#[derive(Debug)]
pub(super) struct WaitingLookup {
    pub(super) asked: Asked,
    pub(super) parent: Ino,
    pub(super) name: OsString,
}

/// All lookups that wait: at most as many as the pool takes.
#[derive(Debug, Default)]
pub(super) struct Lookups(Mutex<Vec<(WaitingLookup, Weak<Ticket<ReplyEntry>>)>>);

impl Lookups {
    /// Notes a lookup that begins to wait.
    pub(super) fn add(&self, lookup: WaitingLookup, ticket: &Arc<Ticket<ReplyEntry>>) {
        let mut waiting = self.0.lock();
        waiting.retain(|(_, ticket)| ticket.strong_count() > 0);
        waiting.push((lookup, Arc::downgrade(ticket)));
    }

    /// Answers those whose names memory knows by now. The work of each goes on: a program that
    /// opens the file waits for it.
    pub(super) fn answer_known(&self, adapter: &Adapter) {
        let waiting = {
            let mut waiting = self.0.lock();
            if waiting.is_empty() {
                return;
            }
            std::mem::take(&mut *waiting)
        };
        let unknown: Vec<_> = waiting
            .into_iter()
            .filter(|(lookup, ticket)| {
                ticket
                    .upgrade()
                    .is_some_and(|ticket| !lookup.answer_if_known(adapter, &ticket))
            })
            .collect();
        self.0.lock().extend(unknown);
    }
}

impl WaitingLookup {
    /// Answers with what memory knows; returns whether it has an answer.
    fn answer_if_known(&self, adapter: &Adapter, ticket: &Ticket<ReplyEntry>) -> bool {
        // After a stale answer it waits for the name to settle.
        if self.asked.was_stale() {
            return false;
        }
        let (fs, at) = (adapter.fs(), Instant::now());
        let Ok(Lookup::Found(found)) = fs.lookup(self.parent, &self.name, Wait::Never) else {
            return false;
        };
        let ino = found.attr.ino;
        match ticket.take() {
            Some(reply) => {
                self.asked.found(&adapter.calls, ino, at);
                send(reply, Lookup::Found(found), adapter.appearance());
            }
            None => fs.forget(ino, 1),
        }
        true
    }
}
