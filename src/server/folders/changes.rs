//! Stores of a folder that are made, changed and deleted.

use std::io;
use std::sync::Arc;
use std::time::SystemTime;

use parking_lot::MutexGuard;

use super::metadata::{Metadata, date, disk, is_id, random_id};
use super::{DEFAULT, DirectoryCatalog, STORES};
use crate::base::clock::Deadline;
use crate::local::Access;
use crate::local::directory::dir::Dir;
use crate::server::catalog::{Catalog, Changed, Lookup, NewStore, StoreChange, StoreEntry};
use crate::store::{ErrorKind, Result, StoreError};

/// How the folders of stores that are being made are called.
const UNFINISHED: &str = ".new-";

impl DirectoryCatalog {
    /// Keeps other changes out, those of other servers of the folder, too.
    fn change(&self) -> Result<(MutexGuard<'_, ()>, Dir)> {
        let deadline = Deadline::after(self.patience);
        let held = || {
            let message = "another change of a store holds the lock of the folder";
            StoreError::new(ErrorKind::Timeout, message)
        };
        let changing = self.changing.try_lock_for(self.patience).ok_or_else(held)?;
        let root = Dir::open(&self.root).map_err(disk)?;
        match root.lock(deadline).map_err(disk)? {
            true => Ok((changing, root)),
            false => Err(held()),
        }
    }

    fn must_write(&self) -> Result<()> {
        if self.access == Access::ReadWrite && !self.single {
            Ok(())
        } else {
            Err(StoreError::new(
                ErrorKind::Unsupported,
                "stores cannot be made, changed or deleted here",
            ))
        }
    }

    /// Returns whether a store of this account may lie in a folder that is called like it: local
    /// programs take such names for ids.
    fn may_be_folder(&self, name: &str, owner: &str) -> bool {
        !is_id(name) && (name != DEFAULT || owner == self.owner)
    }

    /// Gives a folder a name that is free and may be one, else the other, which is free.
    fn place(
        &self,
        stores: &Dir,
        from: &str,
        name: Option<&str>,
        otherwise: &str,
    ) -> Result<String> {
        if let Some(name) = name {
            match stores.rename_new(from, name) {
                Ok(()) => return Ok(name.to_owned()),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(disk(error)),
            }
        }
        if otherwise != from {
            stores.rename_new(from, otherwise).map_err(disk)?;
        }
        Ok(otherwise.to_owned())
    }

    pub(super) fn make(&self, new: &NewStore) -> Result<(StoreEntry, bool)> {
        let _changing = self.change()?;
        let owner = new.owner.as_deref().unwrap_or(&self.owner);
        if let Some(name) = &new.name
            && let Some(found) = self.find(Lookup::Name { owner, name })?
        {
            return Ok((found, false));
        }
        self.must_write()?;
        let id = random_id()?;
        let now = Some(date(SystemTime::now()));
        let metadata = Metadata {
            id: Some(id.clone()),
            name: new.name.clone(),
            accessed_at: now.clone(),
            created_at: now.clone(),
            modified_at: now,
            owner: Some(owner.to_owned()).filter(|owner| *owner != self.owner),
            schema: new.schema.clone(),
            ..Metadata::default()
        };
        match Dir::open(&self.root).and_then(|root| root.create_dir(STORES)) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(disk(error)),
            _ => {}
        }
        let stores = self.stores_dir().map_err(disk)?;
        // It gets its name together with its account.
        let unfinished = format!("{UNFINISHED}{id}");
        stores.create_dir(&unfinished).map_err(disk)?;
        let made = stores
            .dir(&unfinished)
            .map_err(disk)
            .and_then(|dir| metadata.write(&dir))
            .and_then(|()| {
                // Another account's store, or one that was renamed, may lie in the folder of that
                // name.
                let name = new.name.as_deref();
                let name = name.filter(|name| self.may_be_folder(name, owner));
                self.place(&stores, &unfinished, name, &id)
            });
        let folder = made.inspect_err(|_| {
            // What failed is told already.
            let _ = stores.remove_tree(&unfinished);
        })?;
        let entry = self.load(&folder)?.ok_or_else(vanished)?;
        Ok((entry, true))
    }

    pub(super) fn alter(&self, entry: &StoreEntry, change: &StoreChange) -> Result<Changed> {
        let _changing = self.change()?;
        let Some(folder) = self.folder_of(entry)? else {
            return Ok(Changed::Missing);
        };
        self.must_write()?;
        if let Some(Some(name)) = &change.name
            && let Some(other) = self.find(Lookup::Name {
                owner: &entry.owner,
                name,
            })?
            && !Arc::ptr_eq(&other.store, &entry.store)
        {
            return Ok(Changed::NameTaken);
        }
        let stores = self.stores_dir().map_err(disk)?;
        let dir = stores.dir(&folder).map_err(disk)?;
        let old = Metadata::open(&dir).map(|(file, _)| Metadata::read(file));
        let old = old.unwrap_or_default();
        let metadata = Metadata {
            id: Some(entry.id.clone()),
            name: change.name.clone().unwrap_or_else(|| entry.name.clone()),
            accessed_at: Some(date(entry.accessed)),
            created_at: Some(date(entry.created)),
            modified_at: Some(date(SystemTime::now())),
            title: change.title.clone().unwrap_or_else(|| entry.title.clone()),
            general_access: change.general_access.or(old.general_access),
            owner: old.owner,
            schema: change.schema.clone().unwrap_or(old.schema),
        };
        metadata.write(&dir)?;
        let renamed = match &change.name {
            _ if folder == DEFAULT => folder.clone(),
            None => folder.clone(),
            Some(Some(name)) if *name == folder => folder.clone(),
            Some(Some(name)) => {
                let name = Some(&**name).filter(|name| self.may_be_folder(name, &entry.owner));
                self.place(&stores, &folder, name, &folder)?
            }
            // The name is free for another store of any account.
            Some(None) => self.place(&stores, &folder, Some(&entry.id), &folder)?,
        };
        if renamed != folder {
            self.stores.lock().remove(&folder);
        }
        match self.load(&renamed)? {
            Some(entry) => Ok(Changed::Done(Box::new(entry))),
            None => Ok(Changed::Missing),
        }
    }

    pub(super) fn erase(&self, entry: &StoreEntry) -> Result<bool> {
        let _changing = self.change()?;
        let Some(folder) = self.folder_of(entry)? else {
            return Ok(false);
        };
        self.must_write()?;
        let stores = self.stores_dir().map_err(disk)?;
        stores.remove_tree(&folder).map_err(disk)?;
        self.stores.lock().remove(&folder);
        Ok(true)
    }
}

fn vanished() -> StoreError {
    StoreError::new(ErrorKind::StoreNotFound, "the store was deleted meanwhile")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::base::redact::Secret;
    use crate::server::config::GeneralAccess;

    #[test]
    fn a_lock_that_is_held_refuses_every_change_of_a_store() {
        let folder = tempfile::tempdir().expect("a folder");
        let secret = Some(Secret::new("secret"));
        let access = GeneralAccess::Restricted;
        let catalog =
            DirectoryCatalog::open(folder.path(), Access::ReadWrite, access, secret, None, "me");
        let mut catalog = catalog.expect("a catalog");
        let (store, _) = catalog.create(&NewStore::named("a")).expect("a store");
        catalog.patience = Duration::from_millis(50);

        let other = Dir::open(&catalog.root).expect("a folder");
        let now = Deadline::after(Duration::from_secs(10));
        assert!(other.lock(now).expect("a lock"));
        let refused = [
            catalog.create(&NewStore::named("b")).err(),
            catalog.update(&store, &StoreChange::default()).err(),
            catalog.delete(&store).err(),
        ];
        for refused in refused {
            let refused = refused.expect("a refusal");
            assert_eq!(refused.kind(), ErrorKind::Timeout);
            assert!(refused.to_string().contains("holds the lock"), "{refused}");
        }
        drop(other);
        assert!(catalog.delete(&store).expect("a deletion"));
    }
}
