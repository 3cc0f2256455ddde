//! Names of stores: unique in their account.
//!
//! `<prefix>/names/<account>/<name>` is a claim: the id of a store, nothing else. A store has the
//! name that its description says; a claim only keeps others from it. To give a store a name, a
//! server says so in its description first (`next`), then writes the claim, even if it is there
//! already, and then the name under the condition that the description is still the same. So a
//! claim can be taken whenever the description, read after it, neither has the name nor is about to
//! have it, and claims need not be given up: those of stores that were renamed or deleted block no
//! one.

use std::time::Duration;

use jiff::Timestamp;
use object_store::path::Path;
use object_store::{PutMode, UpdateVersion};
use serde::{Deserialize, Serialize};

use super::catalog::Description;
use super::objects::{Objects, Seen, contended};
use crate::store::Result;

const NAMES: &str = "names";

/// The account of stores that name none.
const OWN: &str = "own";

/// Which store may have a name.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Claim {
    id: String,
}

/// What came of giving a store its name.
pub(super) enum Naming {
    /// It is called so.
    Done(Description),
    /// This store is called so.
    Taken(Description),
    /// Another server is about to call another store so.
    Busy,
    /// The store's description is no longer the same.
    Changed,
}

impl Objects {
    fn claim(&self, owner: Option<&str>, name: &str) -> Path {
        self.path(&[NAMES, owner.unwrap_or(OWN), &name.to_ascii_lowercase()])
    }

    /// Finds an account's store by its name. What was read in the last `age` will do.
    pub(super) async fn named(
        &self,
        owner: Option<&str>,
        name: &str,
        age: Duration,
    ) -> Result<Option<Description>> {
        let path = self.claim(owner, name);
        // A store that is called so has the name, however long ago its claim was read.
        if let Some(id) = self.known.holder(&path)
            && let Some(found) = self.describe(&id, age).await?
            && found.is_called(name)
        {
            return Ok(Some(found));
        }
        let Some(claim) = self.read::<Claim>(&path).await? else {
            return Ok(None);
        };
        let found = self.describe(&claim.value.id, age).await?;
        let found = found.filter(|found| found.is_called(name));
        if found.is_some() {
            self.known.hold(&path, &claim.value.id);
        }
        Ok(found)
    }

    /// Gives a store the name that its description says it is about to have, and changes it.
    pub(super) async fn name(
        &self,
        store: &Seen<Description>,
        change: impl Fn(&mut Description),
    ) -> Result<Naming> {
        let Some(name) = &store.value.next else {
            return Ok(Naming::Changed);
        };
        let path = self.claim(store.value.owner.as_deref(), name);
        for times in 0..self.attempts {
            let claim = self.read::<Claim>(&path).await?;
            let version = claim.as_ref().map(|claim| &claim.version);
            let holder = match &claim {
                Some(claim) if claim.value.id != store.value.id => {
                    self.look(&claim.value.id).await?
                }
                _ => None,
            };
            match holder {
                Some(other) if other.value.is_called(name) => {
                    return Ok(Naming::Taken(other.value));
                }
                Some(other) if other.value.is_about_to_be(name) => {
                    if times < self.waits {
                        self.pause(times).await;
                    } else if self.known.stood_still(&path, version, self.patience) {
                        self.settle(&other, &path, version).await?;
                    } else {
                        return Ok(Naming::Busy);
                    }
                }
                // Free, left behind, or this store's own: written either way, so that a server that
                // has found it left behind can no longer take it.
                _ => {
                    if self.take(&path, &store.value.id, version).await? {
                        return self.call(store, name, &change).await;
                    }
                }
            }
        }
        Err(contended())
    }

    /// Writes a claim; false if it is no longer the one that was seen.
    async fn take(&self, path: &Path, id: &str, seen: Option<&UpdateVersion>) -> Result<bool> {
        let claim = Claim { id: id.to_owned() };
        let mode = seen.map_or(PutMode::Create, |seen| PutMode::Update(seen.clone()));
        Ok(self.write(path, &claim, mode).await?.is_some())
    }

    /// Writes the name of a store after its claim was written.
    async fn call(
        &self,
        store: &Seen<Description>,
        name: &str,
        change: &impl Fn(&mut Description),
    ) -> Result<Naming> {
        let mut named = store.value.clone();
        change(&mut named);
        named.name = Some(name.to_owned());
        named.next = None;
        named.modified_at = Some(Timestamp::now());
        Ok(match self.replace(store, named).await? {
            Some(named) => Naming::Done(named.value),
            None => Naming::Changed,
        })
    }

    /// Ends what another server has begun and left: a store without a name gets the one it is
    /// about to have, and one that has a name keeps it.
    async fn settle(
        &self,
        other: &Seen<Description>,
        path: &Path,
        claim: Option<&UpdateVersion>,
    ) -> Result<()> {
        match (&other.value.name, &other.value.next) {
            (None, Some(next)) => {
                if self.take(path, &other.value.id, claim).await? {
                    self.call(other, next, &|_: &mut Description| {}).await?;
                }
            }
            _ => {
                let kept = Description {
                    next: None,
                    ..other.value.clone()
                };
                self.replace(other, kept).await?;
            }
        }
        Ok(())
    }
}

impl Description {
    fn is_about_to_be(&self, name: &str) -> bool {
        let next = self.next.as_deref();
        !self.deleting && next.is_some_and(|next| next.eq_ignore_ascii_case(name))
    }
}
