//! Whether a record that both stores have is the same in both.

use super::Copy;
use crate::copy::fingerprint::of_version;
use crate::copy::memory::Known;
use crate::copy::report::Outcome;
use crate::store::{Key, ListItem, Result};

impl Copy<'_> {
    /// Decides about a record that both have: by size, by what is remembered, else by reading both.
    pub(super) fn compare(&self, from: &ListItem, to: &ListItem) -> Result<Outcome> {
        let key = &from.key;
        if let (Some(one), Some(other)) = (from.stored_size, to.stored_size)
            && one != other
        {
            return match self.options.dry_run {
                true => Ok(Outcome::Copied),
                false => self.copy_new(key),
            };
        }
        let known = self
            .memory
            .get(key)
            .filter(|known| !self.options.checksum && from.stored_size == Some(known.size));
        let source_same = match known {
            Some(known) => self.source_is_same(key, known)?,
            None => false,
        };
        let target_same = match known {
            Some(known) => self.target_is_same(key, known)?,
            None => false,
        };
        if let Some(known) = known.filter(|_| source_same && target_same) {
            let by = match (self.source.is_local, known.source == self.source_clock) {
                (false, true) => "the store's clock",
                _ => "its version",
            };
            return Ok(Outcome::Unchanged(by));
        }
        let target_print = match known.filter(|_| target_same) {
            Some(known) => (known.target_version, known.print),
            None => {
                let (meta, print) = self.read(self.target, key)?;
                (of_version(&meta), print)
            }
        };
        if let Some(known) = known.filter(|_| source_same) {
            if known.print == target_print.1 {
                self.note(
                    key,
                    known.print,
                    known.size,
                    known.source_version,
                    target_print.0,
                );
                return Ok(Outcome::Unchanged("its content"));
            }
            return self.copy_new(key);
        }
        let held = self.fetch(key)?;
        if held.print == target_print.1 {
            let source = of_version(&held.meta);
            self.note(key, held.print, held.size, source, target_print.0);
            return Ok(Outcome::Unchanged("its content"));
        }
        self.send(key, &held)
    }

    /// Returns whether the source has the record as it was remembered.
    fn source_is_same(&self, key: &Key, known: &Known) -> Result<bool> {
        if self.source.is_local {
            let version = of_version(&self.source.store.head(key, self.deadline())?);
            return Ok(version != 0 && version == known.source);
        }
        if self.source_clock != 0 && self.source_clock == known.source {
            return Ok(true);
        }
        Ok(known.source_version != 0
            && of_version(&self.source.store.head(key, self.deadline())?) == known.source_version)
    }

    /// The same of the target.
    fn target_is_same(&self, key: &Key, known: &Known) -> Result<bool> {
        if self.target.is_local {
            let version = of_version(&self.target.store.head(key, self.deadline())?);
            return Ok(version != 0 && version == known.target);
        }
        if self.target_trusted && known.at_ms > 0 {
            return Ok(true);
        }
        Ok(known.target_version != 0
            && of_version(&self.target.store.head(key, self.deadline())?) == known.target_version)
    }
}
