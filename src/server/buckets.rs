//! The stores of a bucket, as the server offers them.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use jiff::Timestamp;

use super::catalog::{Catalog, Changed, Lookup, NewStore, StoreChange, StoreEntry};
use super::config::{GeneralAccess, ServerConfig};
use super::folders::metadata::random_id;
use super::secret;
use crate::base::clock::Deadline;
use crate::base::redact::Secret;
use crate::base::signature::sign_record;
use crate::bucket::{Bucket, Description, NameTaken};
use crate::store::Result;

/// The longest that finding, making or changing a store may take.
const DEADLINE: Duration = Duration::from_secs(30);

/// How long requests for records do with what is known of their store.
const KNOWN: Duration = Duration::from_secs(1);

/// The stores of a bucket. Nothing is remembered: other servers may use the bucket, too.
#[derive(Debug)]
pub struct BucketCatalog {
    bucket: Bucket,
    general_access: GeneralAccess,
    signing_secret: Secret,
    /// The id of the account that stores without an owner belong to.
    owner: String,
}

impl BucketCatalog {
    /// Wraps a bucket; `config` names the account of stores that name none, and who may read them.
    pub fn new(bucket: Bucket, config: &ServerConfig) -> Self {
        Self {
            general_access: match config.general_access {
                GeneralAccess::FollowUserSetting => GeneralAccess::Restricted,
                other => other,
            },
            signing_secret: match &config.signing_secret {
                Some(secret) => secret.clone(),
                None => secret::or_passing(bucket.secret(deadline()).map(Secret::new)),
            },
            bucket,
            owner: config.owner.id.clone(),
        }
    }

    /// Returns the account as the bucket knows it.
    fn account<'a>(&self, owner: &'a str) -> Option<&'a str> {
        Some(owner).filter(|owner| **owner != *self.owner)
    }

    fn look(&self, lookup: Lookup<'_>, age: Duration) -> Result<Option<StoreEntry>> {
        let found = match lookup {
            Lookup::Id(id) => self.bucket.describe(id, age, deadline())?,
            Lookup::Name { owner, name } => {
                self.bucket
                    .named(self.account(owner), name, age, deadline())?
            }
        };
        Ok(found.map(|found| self.entry(found)))
    }

    fn entry(&self, found: Description) -> StoreEntry {
        let general_access = found
            .general_access
            .as_ref()
            .and_then(|access| serde_json::from_value(access.clone()).ok())
            .unwrap_or(GeneralAccess::FollowUserSetting);
        let created = found.created_at.map_or(SystemTime::UNIX_EPOCH, Into::into);
        let modified = found.modified_at.map_or(created, Into::into);
        StoreEntry {
            store: Arc::new(self.bucket.store(&found)),
            signing_key: sign_record(&self.signing_secret, &format!("store {}", found.id)),
            owner: found.owner.unwrap_or_else(|| self.owner.clone()),
            access: match general_access {
                GeneralAccess::FollowUserSetting => self.general_access,
                own => own,
            },
            general_access,
            schema: found.schema.map(Arc::new),
            id: found.id,
            name: found.name,
            title: found.title,
            created,
            modified,
            accessed: modified,
        }
    }
}

impl Catalog for BucketCatalog {
    fn find(&self, lookup: Lookup<'_>) -> Result<Option<StoreEntry>> {
        self.look(lookup, KNOWN)
    }

    fn find_now(&self, lookup: Lookup<'_>) -> Result<Option<StoreEntry>> {
        self.look(lookup, Duration::ZERO)
    }

    fn list(&self) -> Result<Vec<StoreEntry>> {
        let all = self.bucket.descriptions(deadline())?;
        Ok(all.into_iter().map(|found| self.entry(found)).collect())
    }

    fn create(&self, new: &NewStore) -> Result<(StoreEntry, bool)> {
        let owner = new.owner.as_deref().and_then(|owner| self.account(owner));
        let now = Some(Timestamp::now());
        let new = Description {
            id: random_id()?,
            owner: owner.map(str::to_owned),
            name: new.name.clone(),
            created_at: now,
            modified_at: now,
            schema: new.schema.clone(),
            ..Description::default()
        };
        let (made, is_new) = self.bucket.create(&new, deadline())?;
        Ok((self.entry(made), is_new))
    }

    fn update(&self, entry: &StoreEntry, change: &StoreChange) -> Result<Changed> {
        let access = match &change.general_access {
            Some(access) => serde_json::to_value(access).ok(),
            None => None,
        };
        let change = |description: &mut Description| {
            if let Some(name) = &change.name {
                description.name.clone_from(name);
            }
            if let Some(title) = &change.title {
                description.title.clone_from(title);
            }
            if let Some(schema) = &change.schema {
                description.schema.clone_from(schema);
            }
            if access.is_some() {
                description.general_access.clone_from(&access);
            }
        };
        Ok(match self.bucket.change(&entry.id, change, deadline())? {
            Some(Ok(found)) => Changed::Done(Box::new(self.entry(found))),
            Some(Err(NameTaken)) => Changed::NameTaken,
            None => Changed::Missing,
        })
    }

    fn delete(&self, entry: &StoreEntry) -> Result<bool> {
        self.bucket.remove(&entry.id, deadline())
    }
}

fn deadline() -> Deadline {
    Deadline::after(DEADLINE)
}
