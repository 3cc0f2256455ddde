//! Looks names up, and forgets inodes.

use std::ffi::OsStr;
use std::time::Duration;

use super::attributes::apply_overrides;
use super::inode::Inode;
use super::name::{self, Meaning};
use super::types::{Ino, Lookup};
use super::view::{Existence, Facts};
use super::{FOREVER, FsError, KvFs, Result};
use crate::base::clock::Wait;
use crate::store::{ErrorKind, Key};

impl KvFs {
    /// Finds a name in a directory and counts the reference that the kernel gets.
    ///
    /// Costs no request for what the listing or memory knows, for names that no key has, and
    /// for keys outside the mount's prefix; else one, which for a small record also fetches it.
    /// After several names in a row that are not there it is one for a page of the listing.
    ///
    /// # Errors
    /// [`FsError::WrongKind`] when `parent` is no directory; errors of the store.
    pub fn lookup(&self, parent: Ino, name: &OsStr, wait: Wait) -> Result<Lookup> {
        let found = self.look_up(parent, name, wait)?;
        // What no key can be called will not exist later either.
        if matches!(found, Lookup::Absent(_)) && name::meaning(name) != Meaning::Nothing {
            self.absent.lock().put(name.to_owned(), ());
        }
        Ok(found)
    }

    /// Waits until no deletion and no rename of this name is under way.
    ///
    /// # Errors
    /// Those of the deadline.
    pub fn await_settled(&self, name: &OsStr, wait: Wait) -> Result<()> {
        match (&self.writing, name::meaning(name)) {
            (Some(side), Meaning::Key(key)) => self.await_names(side, &key, wait),
            _ => Ok(()),
        }
    }

    fn look_up(&self, parent: Ino, name: &OsStr, wait: Wait) -> Result<Lookup> {
        if parent != Ino::ROOT {
            return Err(FsError::WrongKind(libc::ENOTDIR));
        }
        self.about(name);
        if let Some(side) = &self.writing
            && let Some(draft) = side.drafts.of_scratch(name)
        {
            return Ok(Lookup::Found(self.enter_draft(&draft)));
        }
        let key = match name::meaning(name) {
            Meaning::Key(key) => key,
            Meaning::Listed => match self.listed_name(name) {
                Some(key) => key,
                // It may be listed by the next question.
                None => return Ok(Lookup::Absent(self.believed_of_listing())),
            },
            Meaning::Nothing => return Ok(self.absent(FOREVER)),
        };
        if self
            .config
            .prefix
            .as_ref()
            .is_some_and(|prefix| !key.as_str().starts_with(&**prefix))
        {
            return Ok(Lookup::Absent(FOREVER));
        }
        let facts = match self.existence(&key) {
            Existence::Present(facts) if !self.wants_exact(&key, &facts) => facts,
            Existence::Absent(ttl) => return Ok(self.absent(ttl)),
            _ => match self.find_out(&key, wait) {
                Ok(facts) => facts,
                // As old as the question that was answered so.
                Err(FsError::NoEntry) => {
                    return Ok(match self.existence(&key) {
                        Existence::Absent(ttl) => self.absent(ttl),
                        _ => Lookup::Absent(Duration::ZERO),
                    });
                }
                // The name came from a listing or a person: a key that the server refuses to look for
                // does not exist. One that cannot be asked for may exist.
                Err(FsError::Store(error))
                    if error.kind() == ErrorKind::InvalidKey && error.status().is_some() =>
                {
                    let never = if key.is_valid() {
                        Duration::ZERO
                    } else {
                        FOREVER
                    };
                    return Ok(self.absent(never));
                }
                Err(error) => return Err(error),
            },
        };
        Ok(Lookup::Found(self.enter(&key, &facts)))
    }

    /// Says that there is no such name, to be believed for `ttl` where nothing can be made here:
    /// of a name that a rename made and failed half way, the kernel is not told.
    fn absent(&self, ttl: Duration) -> Lookup {
        match self.writing {
            None => Lookup::Absent(ttl),
            Some(_) => Lookup::Absent(Duration::ZERO),
        }
    }

    /// Asks the store whether a key exists.
    pub(super) fn find_out(&self, key: &Key, wait: Wait) -> Result<Facts> {
        if self.config.collection.is_some() {
            // Only a listing tells what belongs to a collection.
            self.list_past(key, wait)?;
            return match self.existence(key) {
                Existence::Present(facts) if !self.wants_exact(key, &facts) => Ok(facts),
                Existence::Present(_) => self.ask(key, wait),
                _ => Err(FsError::NoEntry),
            };
        }
        self.list_instead(key, wait);
        self.list_again(key, wait);
        match self.existence(key) {
            Existence::Present(facts) if !self.wants_exact(key, &facts) => return Ok(facts),
            Existence::Absent(_) => return Err(FsError::NoEntry),
            _ => {}
        }
        let answer = self.ask(key, wait);
        self.note_asked(key, &answer);
        answer
    }

    /// Gives a record its inode, counted as held by the kernel.
    pub(super) fn enter(&self, key: &Key, facts: &Facts) -> super::types::AttrReply {
        let mut inodes = self.inodes.lock();
        if let Some(ino) = inodes.ino_of(key.as_str())
            && inodes
                .get(ino)
                .is_some_and(|inode| is_another(inode, facts))
        {
            // Open handles stay on their version; the name leads to the current one.
            inodes.detach(ino);
            if let Some(side) = &self.writing {
                side.drafts.detach(ino);
            }
        }
        let ino = inodes.number(key, facts.listed);
        let mut reply = self.attributes_of(ino, facts);
        // The kernel must not be told another size than that of the version it has open.
        if let Some((_, size)) = inodes
            .get(ino)
            .filter(|inode| inode.opens > 0 && !facts.staged)
            .and_then(Inode::version)
        {
            reply.attr.size = size;
        }
        apply_overrides(&mut reply.attr, inodes.get(ino));
        inodes.remember(ino, key, reply.attr.size);
        self.metrics.inodes.set(inodes.count() as u64);
        reply
    }

    /// Takes back `lookups` references that the kernel held.
    pub fn forget(&self, ino: Ino, lookups: u64) {
        let mut inodes = self.inodes.lock();
        inodes.forget(ino, lookups);
        self.metrics.inodes.set(inodes.count() as u64);
    }

    /// Finds the key of a name that only a listing can explain.
    pub(super) fn listed_name(&self, name: &OsStr) -> Option<Key> {
        self.listing
            .find_key(&|key| OsStr::new(&name::of_key(key)) == name)
    }

    /// Returns how long it is certain that a name missing in the listing has no key.
    fn believed_of_listing(&self) -> Duration {
        match self.listing.latest() {
            Some(listing) if listing.is_done() => self.believed(listing.started),
            _ => Duration::ZERO,
        }
    }
}

/// Returns whether an inode is open in another version than these facts are of.
fn is_another(inode: &Inode, facts: &Facts) -> bool {
    if inode.opens == 0 || facts.staged {
        return false;
    }
    let (Some((version, _)), opened) = (inode.version(), inode.opened()) else {
        return false;
    };
    match facts.version {
        Some(other) => other != version && opened.asked.is_some_and(|asked| facts.at > asked),
        // Of a listing, which may be from before the open.
        None => {
            facts.stored.is_some()
                && opened.stored.is_some()
                && facts.stored != opened.stored
                && opened.asked.is_some_and(|asked| facts.at > asked)
        }
    }
}
