//! Which stores a bucket has, what they are called, and whose they are.
//!
//! `<prefix>/catalog/<id>` describes a store. `<prefix>/names/<account>/<name>` is a claim: it says
//! which store has a name. A claim is made and given up by conditional writes only, so that of
//! several servers that make a store of one name at once exactly one does. What is to be described
//! stands in the claim, too: whoever finds a claim without a description, because its maker is not
//! there yet or never will be, finishes the work.

use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use object_store::PutMode;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Bucket;
use crate::store::{ErrorKind, Result, StoreError};

const CATALOG: &str = "catalog";
const NAMES: &str = "names";
const STORES: &str = "stores";

/// The account of stores that do not say whose they are.
const OWN: &str = "own";

/// How often a write is repeated that others got ahead of.
const ATTEMPTS: usize = 20;

/// How long a name is kept for a store that is not called so: it may be about to be.
const RENAMING: Duration = Duration::from_secs(60);

/// What is known of a store, but for its records.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Description {
    /// The store's id.
    pub id: String,
    /// The id of the account that it belongs to; `None` for the server's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    /// Its name, unique in its account without regard to case.
    #[serde(default)]
    pub name: Option<String>,
    /// What people call it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub title: Option<String>,
    /// When it was made.
    #[serde(default)]
    pub created_at: Option<Timestamp>,
    /// When this description was last changed.
    #[serde(default)]
    pub modified_at: Option<Timestamp>,
    /// Who may read it, as the API puts it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub general_access: Option<Value>,
    /// The schema that says which keys belong together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schema: Option<Value>,
}

/// Another store has the name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NameTaken;

/// Which store has a name.
#[derive(Debug, Serialize, Deserialize)]
struct Claim {
    /// `None` once the name was given up.
    store: Option<Description>,
    at: Timestamp,
}

impl Bucket {
    /// Returns what is known of a store; `None` if there is none with this id.
    ///
    /// # Errors
    /// Those of the bucket.
    pub fn describe(&self, id: &str) -> Result<Option<Description>> {
        match self.read(&[CATALOG, &id.to_ascii_lowercase()])? {
            Some(found) => parse(&found.bytes).map(Some),
            None => Ok(None),
        }
    }

    /// Finds an account's store by its name. `owner` is `None` for the server's own account.
    ///
    /// # Errors
    /// Those of the bucket.
    pub fn named(&self, owner: Option<&str>, name: &str) -> Result<Option<Description>> {
        let Some(found) = self.read(&claim_path(owner, &name.to_ascii_lowercase()))? else {
            return Ok(None);
        };
        let Some(claimed) = parse::<Claim>(&found.bytes)?.store else {
            return Ok(None);
        };
        let found = self.describe(&claimed.id)?;
        Ok(found.filter(|found| found.is_called(name)))
    }

    /// Returns all stores, in any order.
    ///
    /// # Errors
    /// Those of the bucket.
    pub fn descriptions(&self) -> Result<Vec<Description>> {
        let all = self.read_all(&[CATALOG])?;
        all.iter().map(|bytes| parse(bytes)).collect()
    }

    /// Makes a store, unless one of its account has its name already: then that one is returned,
    /// and false.
    ///
    /// # Errors
    /// Those of the bucket.
    pub fn create(&self, new: &Description) -> Result<(Description, bool)> {
        let Some(name) = &new.name else {
            self.write_new(new)?;
            return Ok((new.clone(), true));
        };
        match self.claim(new, name)? {
            None => {
                // Somebody may have found the claim and been faster: it is this store all the same.
                self.write_new(new)?;
                Ok((new.clone(), true))
            }
            Some(other) => Ok((other, false)),
        }
    }

    /// Changes what is known of a store; `None` if there is none.
    ///
    /// # Errors
    /// Those of the bucket.
    pub fn change(
        &self,
        id: &str,
        change: impl Fn(&mut Description),
    ) -> Result<Option<Result<Description, NameTaken>>> {
        let id = id.to_ascii_lowercase();
        for _ in 0..ATTEMPTS {
            let Some(found) = self.read(&[CATALOG, &id])? else {
                return Ok(None);
            };
            let old: Description = parse(&found.bytes)?;
            let mut new = old.clone();
            change(&mut new);
            new.modified_at = Some(Timestamp::now());
            let renamed = !same(old.name.as_deref(), new.name.as_deref());
            if renamed
                && let Some(name) = &new.name
                && self.claim(&new, name)?.is_some()
            {
                return Ok(Some(Err(NameTaken)));
            }
            let mode = PutMode::Update(found.version);
            if self.write(&[CATALOG, &id], text(&new)?, mode)? {
                if renamed && let Some(name) = &old.name {
                    self.give_up(&old, name)?;
                }
                return Ok(Some(Ok(new)));
            }
        }
        Err(contended())
    }

    /// Deletes a store with all its records; false if there was none.
    ///
    /// # Errors
    /// Those of the bucket. What is left then is deleted by the next attempt.
    pub fn remove(&self, id: &str) -> Result<bool> {
        let Some(found) = self.describe(id)? else {
            return Ok(false);
        };
        self.delete_all(&[STORES, &found.id])?;
        if let Some(name) = &found.name {
            self.give_up(&found, name)?;
        }
        self.delete(&[CATALOG, &found.id.to_ascii_lowercase()])?;
        // What was written while the rest went.
        self.delete_all(&[STORES, &found.id])?;
        Ok(true)
    }

    fn write_new(&self, new: &Description) -> Result<bool> {
        let id = new.id.to_ascii_lowercase();
        self.write(&[CATALOG, &id], text(new)?, PutMode::Create)
    }

    /// Takes a name for a store; returns the store that has it, if it is another.
    fn claim(&self, store: &Description, name: &str) -> Result<Option<Description>> {
        let lower = name.to_ascii_lowercase();
        let path = claim_path(store.owner.as_deref(), &lower);
        let claim = text(&Claim {
            store: Some(store.clone()),
            at: Timestamp::now(),
        })?;
        for _ in 0..ATTEMPTS {
            let mode = match self.read(&path)? {
                None => PutMode::Create,
                Some(found) => {
                    let old: Claim = parse(&found.bytes)?;
                    match self.holder(&path, old, name)? {
                        Some(holder) if holder.id == store.id => return Ok(None),
                        Some(holder) => return Ok(Some(holder)),
                        None => PutMode::Update(found.version),
                    }
                }
            };
            if self.write(&path, claim.clone(), mode)? {
                return Ok(None);
            }
        }
        Err(contended())
    }

    /// Returns the store that has a name by this claim.
    fn holder(&self, path: &[&str], claim: Claim, name: &str) -> Result<Option<Description>> {
        let Some(claimed) = claim.store else {
            return Ok(None);
        };
        if let Some(found) = self.describe(&claimed.id)? {
            let age = SystemTime::now().duration_since(claim.at.into());
            let is_young = age.is_ok_and(|age| age < RENAMING);
            return Ok(Some(found).filter(|found| found.is_called(name) || is_young));
        }
        self.write_new(&claimed)?;
        // It may have been deleted meanwhile, rather than not quite made.
        let still = match self.read(path)? {
            Some(found) => parse::<Claim>(&found.bytes)?.store,
            None => None,
        };
        if still.is_some_and(|still| still.id == claimed.id) {
            return Ok(Some(claimed));
        }
        self.delete(&[CATALOG, &claimed.id.to_ascii_lowercase()])?;
        Ok(None)
    }

    /// Lets others have a store's name.
    fn give_up(&self, store: &Description, name: &str) -> Result<()> {
        let lower = name.to_ascii_lowercase();
        let path = claim_path(store.owner.as_deref(), &lower);
        let Some(found) = self.read(&path)? else {
            return Ok(());
        };
        let holder = parse::<Claim>(&found.bytes)?.store;
        if holder.is_some_and(|holder| holder.id == store.id) {
            let free = text(&Claim {
                store: None,
                at: Timestamp::now(),
            })?;
            // Else somebody has it already.
            self.write(&path, free, PutMode::Update(found.version))?;
        }
        Ok(())
    }
}

impl Description {
    fn is_called(&self, name: &str) -> bool {
        same(self.name.as_deref(), Some(name))
    }
}

fn same(one: Option<&str>, other: Option<&str>) -> bool {
    match (one, other) {
        (Some(one), Some(other)) => one.eq_ignore_ascii_case(other),
        (one, other) => one.is_none() && other.is_none(),
    }
}

fn claim_path<'a>(owner: Option<&'a str>, name: &'a str) -> [&'a str; 3] {
    [NAMES, owner.unwrap_or(OWN), name]
}

fn parse<T: for<'a> Deserialize<'a>>(bytes: &[u8]) -> Result<T> {
    serde_json::from_slice(bytes).map_err(|error| {
        StoreError::new(
            ErrorKind::Corrupt,
            "the bucket's list of stores cannot be read",
        )
        .with_hint("was it written by a newer kvfs, or by something else?")
        .with_source(error)
    })
}

fn text(value: &impl Serialize) -> Result<Vec<u8>> {
    serde_json::to_vec_pretty(value).map_err(|error| {
        StoreError::new(ErrorKind::Protocol, "a store cannot be described").with_source(error)
    })
}

fn contended() -> StoreError {
    StoreError::new(
        ErrorKind::Server,
        "others change the store all the time; nothing was changed",
    )
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use object_store::memory::InMemory;

    use super::super::Scope;
    use super::*;

    fn bucket() -> Bucket {
        let scope = Scope {
            bucket: "test".into(),
            account: "test".into(),
        };
        Bucket::over(Arc::new(InMemory::new()), "p".into(), scope).expect("a bucket")
    }

    fn described(id: &str, name: &str) -> Description {
        Description {
            id: id.into(),
            name: Some(name.into()),
            ..Description::default()
        }
    }

    fn claim(bucket: &Bucket, name: &str, store: Description, age: Duration) {
        let at = Timestamp::now() - age;
        let claim = Claim {
            store: Some(store),
            at,
        };
        let written = bucket.write(
            &claim_path(None, name),
            text(&claim).expect("text"),
            PutMode::Overwrite,
        );
        assert!(written.expect("a write"));
    }

    #[test]
    fn a_store_that_was_claimed_but_not_described_is_finished_by_the_next() {
        let bucket = bucket();
        claim(&bucket, "name", described("A", "Name"), Duration::ZERO);
        assert_eq!(bucket.named(None, "name").expect("an answer"), None);
        let made = bucket.create(&described("B", "NAME")).expect("a store");
        assert_eq!(made, (described("A", "Name"), false));
        let found = bucket.named(None, "name").expect("an answer");
        assert_eq!(found, Some(described("A", "Name")));
        assert_eq!(bucket.descriptions().expect("a list").len(), 1);
    }

    #[test]
    fn names_are_free_again_after_a_deletion_and_after_another_name() {
        let bucket = bucket();
        bucket.create(&described("A", "one")).expect("a store");
        let renamed = bucket.change("a", |store| store.name = Some("two".into()));
        let renamed = renamed
            .expect("a change")
            .expect("a store")
            .expect("a name");
        assert_eq!(renamed.name.as_deref(), Some("two"));
        let (second, new) = bucket.create(&described("B", "One")).expect("a store");
        assert!(new && second.id == "B");
        let taken = bucket.change("b", |store| store.name = Some("TWO".into()));
        assert_eq!(taken.expect("an answer"), Some(Err(NameTaken)));
        assert!(bucket.remove("A").expect("a deletion"));
        assert!(!bucket.remove("A").expect("an answer"));
        assert!(bucket.create(&described("C", "two")).expect("a store").1);
        // One that changes the case of its name keeps it.
        let upper = bucket.change("c", |store| store.name = Some("TWO".into()));
        assert!(matches!(upper, Ok(Some(Ok(_)))), "{upper:?}");
    }

    #[test]
    fn a_name_whose_store_is_called_otherwise_is_kept_for_a_while_only() {
        let bucket = bucket();
        bucket.create(&described("A", "one")).expect("a store");
        claim(&bucket, "two", described("A", "two"), Duration::ZERO);
        assert_eq!(bucket.named(None, "two").expect("an answer"), None);
        assert!(!bucket.create(&described("B", "two")).expect("an answer").1);
        claim(&bucket, "two", described("A", "two"), RENAMING * 2);
        assert!(bucket.create(&described("B", "two")).expect("an answer").1);
    }

    #[test]
    fn what_another_version_wrote_wrongly_is_said_so() {
        let bucket = bucket();
        bucket
            .write(&[CATALOG, "a"], b"{".to_vec(), PutMode::Overwrite)
            .expect("a write");
        let error = bucket.describe("A").expect_err("not JSON");
        assert_eq!(error.kind(), ErrorKind::Corrupt);
    }
}
