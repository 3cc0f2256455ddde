//! The catalog of stores.

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use serde_json::Value;

use super::config::GeneralAccess;
use crate::base::redact::Secret;
use crate::store::{Result, Store};

/// A store that the server offers.
#[derive(Clone, Debug)]
pub struct StoreEntry {
    /// 17 letters and digits.
    pub id: String,
    /// The id of the account that it belongs to.
    pub owner: String,
    /// The name, unique in its account without regard to case.
    pub name: Option<String>,
    /// What people call it.
    pub title: Option<String>,
    /// When it was made.
    pub created: SystemTime,
    /// When it was last written to.
    pub modified: SystemTime,
    /// When it was last used.
    pub accessed: SystemTime,
    /// The accounts that may read it; never [`GeneralAccess::FollowUserSetting`].
    pub access: GeneralAccess,
    /// What [`StoreEntry::access`] follows from, as the API shows it.
    pub general_access: GeneralAccess,
    /// The schema that says which keys belong together.
    pub schema: Option<Arc<Value>>,
    /// Signs the store's public URLs.
    pub signing_key: Secret,
    /// The records.
    pub store: Arc<dyn Store>,
}

/// How a store is looked up. Case does not matter.
#[derive(Clone, Copy, Debug)]
pub enum Lookup<'a> {
    /// By id.
    Id(&'a str),
    /// By name, in the account with this id.
    Name {
        /// The account.
        owner: &'a str,
        /// The name.
        name: &'a str,
    },
}

/// A store to be made.
#[derive(Clone, Debug, Default)]
pub struct NewStore {
    /// The id of the account that gets it; `None` for the server's own.
    pub owner: Option<String>,
    /// Its name, if it gets one.
    pub name: Option<String>,
    /// Its schema.
    pub schema: Option<Value>,
}

impl NewStore {
    /// Returns a store of the server's own account.
    pub fn named(name: &str) -> Self {
        Self {
            name: Some(name.to_owned()),
            ..Self::default()
        }
    }
}

/// A change of a store; `None` leaves a field alone.
#[derive(Clone, Debug, Default)]
pub struct StoreChange {
    /// The new name; `Some(None)` takes it away.
    pub name: Option<Option<String>>,
    /// The new title.
    pub title: Option<Option<String>>,
    /// The accounts that may read it from now on.
    pub general_access: Option<GeneralAccess>,
    /// The new schema; `Some(None)` takes it away.
    pub schema: Option<Option<Value>>,
}

/// What came of a change.
#[derive(Debug)]
pub enum Changed {
    /// It is done.
    Done(Box<StoreEntry>),
    /// Another store has the name.
    NameTaken,
    /// There is no such store.
    Missing,
}

/// The stores of a server. All calls block.
pub trait Catalog: Send + Sync + fmt::Debug {
    /// Returns whether reading mostly takes no longer than handing it to another thread: the stores
    /// lie on this machine.
    fn is_near(&self) -> bool {
        false
    }

    /// Finds a store.
    ///
    /// # Errors
    /// Those of the disk; an absent store is none.
    fn find(&self, lookup: Lookup<'_>) -> Result<Option<StoreEntry>>;

    /// Finds a store as it is now: [`Catalog::find`] may do with what was known a second ago.
    ///
    /// # Errors
    /// As for [`Catalog::find`].
    fn find_now(&self, lookup: Lookup<'_>) -> Result<Option<StoreEntry>> {
        self.find(lookup)
    }

    /// Returns all stores, in any order.
    ///
    /// # Errors
    /// Those of the disk.
    fn list(&self) -> Result<Vec<StoreEntry>>;

    /// Returns the account's store of that name as it is, or makes one; a nameless one is always
    /// new. The flag tells whether it is new.
    ///
    /// # Errors
    /// Those of the disk, and [`crate::store::ErrorKind::Unsupported`].
    fn create(&self, new: &NewStore) -> Result<(StoreEntry, bool)>;

    /// Changes the store that was found, and no other that has taken its place since.
    ///
    /// # Errors
    /// As for [`Catalog::create`].
    fn update(&self, entry: &StoreEntry, change: &StoreChange) -> Result<Changed>;

    /// Deletes the store that was found, with all its records; false if it is gone.
    ///
    /// # Errors
    /// As for [`Catalog::create`].
    fn delete(&self, entry: &StoreEntry) -> Result<bool>;
}
