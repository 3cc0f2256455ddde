//! Drops caches, here and in the kernel, on request.

use std::ffi::OsString;
use std::sync::Arc;

use super::types::{Ino, KernelCache};
use super::{KvFs, Result, name};
use crate::listing::Listing;
use crate::store::Key;

/// What the kernel still has of what was forgotten.
#[derive(Debug)]
pub struct Forgotten {
    /// Cached contents that are gone.
    pub contents: u64,
    kernel: Option<Arc<dyn KernelCache>>,
    inodes: Vec<Ino>,
    names: Vec<OsString>,
    /// Whether to drop pages, too.
    pages: bool,
}

impl Forgotten {
    /// Makes the kernel forget, too; returns how many files it may have had pages of.
    ///
    /// Waits for reads under way. Call it from a thread that answers no request and holds no
    /// lock: the kernel may hold a directory or a page for a request that this mount must answer
    /// first (docs/DESIGN.md).
    pub fn tell_kernel(self) -> u64 {
        let Some(kernel) = self.kernel else { return 0 };
        for name in &self.names {
            kernel.invalidate_name(name);
        }
        for ino in &self.inodes {
            if self.pages {
                kernel.invalidate_pages(*ino);
            } else {
                kernel.invalidate_attributes(*ino);
            }
        }
        self.inodes.len() as u64
    }
}

impl KvFs {
    /// Forgets everything cached of these records, or of all: contents in memory and on disk,
    /// sizes, absence, and the list of names. Files that are open stay on their version.
    ///
    /// No request is made: the next use of a record asks the store.
    pub fn invalidate(&self, keys: Option<&[Key]>) -> Forgotten {
        *self.forgotten.lock() = Some(self.clock.now());
        if let Some(index) = &self.index {
            index.forget();
        }
        if self.listing.latest().is_some() {
            // Begun now and not read yet, it knows nothing but the inode numbers from before.
            let begin = |before| Listing::again(self.source(), self.clock.now(), before);
            self.listing.fresh(|_| false, begin);
        }
        let contents = match keys {
            None => self.records.evict_all(),
            Some(keys) => self.records.evict(keys),
        };
        let mut names: Vec<OsString> = match keys {
            None => self
                .absent
                .lock()
                .iter()
                .map(|(name, ())| name.clone())
                .collect(),
            Some(keys) => keys.iter().map(|key| name::of_key(key).into()).collect(),
        };
        let inodes = self.inodes.lock();
        let inodes: Vec<Ino> = match keys {
            None => inodes
                .all()
                .inspect(|(_, inode)| names.push(name::of_key(&inode.key).into()))
                .filter(|(_, inode)| inode.version().is_some())
                .map(|(ino, _)| ino)
                .collect(),
            Some(keys) => keys
                .iter()
                .filter_map(|key| inodes.ino_of(key.as_str()))
                .collect(),
        };
        Forgotten {
            contents,
            kernel: self.kernel.get().cloned(),
            inodes,
            names,
            pages: true,
        }
    }

    /// Returns what the kernel believes of names and attributes, to be forgotten there: more time has
    /// passed than it knows of. What is cached here has its own age.
    pub fn forget_beliefs(&self) -> Forgotten {
        let absent = self.absent.lock();
        let mut names: Vec<OsString> = absent.iter().map(|(name, ())| name.clone()).collect();
        drop(absent);
        let table = self.inodes.lock();
        let inodes = table
            .all()
            .inspect(|(_, inode)| names.push(name::of_key(&inode.key).into()))
            .map(|(ino, _)| ino)
            .collect();
        Forgotten {
            contents: 0,
            kernel: self.kernel.get().cloned(),
            inodes,
            names,
            pages: false,
        }
    }

    /// Returns the key that a name in the mount means, as far as that is known without a request.
    pub fn key_named(&self, name: &std::ffi::OsStr) -> Option<Key> {
        match name::meaning(name) {
            name::Meaning::Key(key) => Some(key),
            name::Meaning::Listed => self.listed_name(name),
            name::Meaning::Nothing => None,
        }
    }

    /// Returns whether a record exists, asking the store unless the answer is fresh.
    ///
    /// # Errors
    /// [`super::FsError::NoEntry`] and errors of the store.
    pub fn check_exists(&self, key: &Key, wait: crate::base::clock::Wait) -> Result<()> {
        self.ask(key, wait).map(drop)
    }
}
