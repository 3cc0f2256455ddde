//! The stores of a bucket, their names and their accounts.
//!
//! `<prefix>/catalog/<id>` describes a store: the only truth about it. `names` keeps names unique.
//! All changes are conditional writes; docs/SERVE.md has the protocol on one page.

use std::time::Duration;

use jiff::Timestamp;
use object_store::PutMode;
use object_store::path::Path;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::names::Naming;
use super::objects::{Objects, Seen, contended};
use crate::store::{ErrorKind, Result, StoreError};

const CATALOG: &str = "catalog";
pub(super) const STORES: &str = "stores";

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
    /// The name that it is about to have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
    /// Whether the store is gone for good, and what it held is being deleted.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub deleting: bool,
    /// What people call it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub title: Option<String>,
    /// When it was made.
    #[serde(default)]
    pub created_at: Option<Timestamp>,
    /// When this description was last changed.
    #[serde(default)]
    pub modified_at: Option<Timestamp>,
    /// The accounts that may read it, in the API's words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub general_access: Option<Value>,
    /// The schema that says which keys belong together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schema: Option<Value>,
}

/// Another store has the name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NameTaken;

impl Description {
    pub(super) fn is_called(&self, name: &str) -> bool {
        !self.deleting && same(self.name.as_deref(), Some(name))
    }
}

fn same(one: Option<&str>, other: Option<&str>) -> bool {
    match (one, other) {
        (Some(one), Some(other)) => one.eq_ignore_ascii_case(other),
        (one, other) => one.is_none() && other.is_none(),
    }
}

impl Objects {
    pub(super) fn described(&self, id: &str) -> Path {
        self.path(&[CATALOG, &id.to_ascii_lowercase()])
    }

    pub(super) fn descriptions(&self) -> Path {
        self.path(&[CATALOG])
    }

    /// Reads a description now, also that of a store which is being deleted.
    pub(super) async fn look(&self, id: &str) -> Result<Option<Seen<Description>>> {
        let asked = self.known.ask();
        let found = self.read(&self.described(id)).await?;
        self.known.remember(id, asked, found.as_ref());
        Ok(found)
    }

    /// Returns what is known of a store; `None` if there is none with this id. What was read in
    /// the last `age` will do.
    pub(super) async fn describe(&self, id: &str, age: Duration) -> Result<Option<Description>> {
        let found = match self.known.store(id, age) {
            Some(known) => Some(known),
            None => self.look(id).await?.map(|found| found.value),
        };
        Ok(found.filter(|found| !found.deleting))
    }

    /// Makes a store, unless one of its account has its name already: then that one is returned,
    /// and false.
    pub(super) async fn create(&self, new: &Description) -> Result<(Description, bool)> {
        let mut first = Description {
            name: None,
            next: new.name.clone(),
            ..new.clone()
        };
        if let Some(name) = &new.name
            && let Some(found) = self
                .named(new.owner.as_deref(), name, Duration::ZERO)
                .await?
        {
            return Ok((found, false));
        }
        let path = self.described(&new.id);
        let version = self.write(&path, &first, PutMode::Create).await?;
        let version = version.ok_or_else(contended)?;
        let Some(name) = &new.name else {
            return Ok((first, true));
        };
        let made = Seen {
            value: first.clone(),
            version: version.clone(),
        };
        let taken = match self.name(&made, |_| {}).await? {
            Naming::Done(named) => return Ok((named, true)),
            Naming::Taken(other) => Ok((other, false)),
            Naming::Busy => Err(busy(name)),
            // It may have its name by now from a server that found it nameless.
            Naming::Changed => {
                let call = |store: &mut Description| store.name = Some(name.clone());
                return match self.change(&new.id, call).await? {
                    Some(Ok(named)) => Ok((named, true)),
                    Some(Err(NameTaken)) | None => Err(busy(name)),
                };
            }
        };
        // No client knows of the nameless store: it goes, unless it was changed all the same.
        first.deleting = true;
        let mode = PutMode::Update(version);
        if self.write(&path, &first, mode).await?.is_some() {
            self.finish(&first).await?;
        }
        taken
    }

    /// Changes what is known of a store; `None` if there is none.
    pub(super) async fn change(
        &self,
        id: &str,
        change: impl Fn(&mut Description),
    ) -> Result<Option<Result<Description, NameTaken>>> {
        for times in 0..self.attempts {
            let Some(found) = self.look(id).await?.filter(|found| !found.value.deleting) else {
                return Ok(None);
            };
            let old = &found.value;
            let mut new = old.clone();
            change(&mut new);
            let renamed = !same(old.name.as_deref(), new.name.as_deref());
            if let Some(name) = new.name.take_if(|_| renamed) {
                // What it is about to be called is said first; whatever else changes, with the name.
                let next = Description {
                    next: Some(name.clone()),
                    ..old.clone()
                };
                if let Some(intended) = self.replace(&found, next).await? {
                    match self.name(&intended, &change).await? {
                        Naming::Done(named) => return Ok(Some(Ok(named))),
                        Naming::Changed => {}
                        refused => {
                            let kept = Description {
                                next: None,
                                ..old.clone()
                            };
                            self.replace(&intended, kept).await?;
                            return match refused {
                                Naming::Busy => Err(busy(&name)),
                                _ => Ok(Some(Err(NameTaken))),
                            };
                        }
                    }
                }
            } else {
                new.next = None;
                new.modified_at = Some(Timestamp::now());
                if let Some(changed) = self.replace(&found, new).await? {
                    return Ok(Some(Ok(changed.value)));
                }
            }
            self.pause(times).await;
        }
        Err(contended())
    }

    /// Replaces a description; `None` if it is no longer the one that was seen.
    pub(super) async fn replace(
        &self,
        seen: &Seen<Description>,
        new: Description,
    ) -> Result<Option<Seen<Description>>> {
        let asked = self.known.ask();
        let mode = PutMode::Update(seen.version.clone());
        let written = self.write(&self.described(&new.id), &new, mode).await;
        let new = written?.map(|version| Seen {
            value: new,
            version,
        });
        // Else another server was faster: nothing is known any more.
        self.known.remember(&seen.value.id, asked, new.as_ref());
        Ok(new)
    }

    /// Says that a store is gone; `None` if there is none.
    pub(super) async fn mark(&self, id: &str) -> Result<Option<Description>> {
        for _ in 0..self.attempts {
            let Some(found) = self.look(id).await?.filter(|found| !found.value.deleting) else {
                return Ok(None);
            };
            let gone = Description {
                deleting: true,
                ..found.value.clone()
            };
            if let Some(gone) = self.replace(&found, gone).await? {
                return Ok(Some(gone.value));
            }
        }
        Err(contended())
    }

    /// Deletes what a store held that is gone. Another server may do the same at the same time.
    pub(super) async fn finish(&self, gone: &Description) -> Result<()> {
        self.delete_all(&self.path(&[STORES, &gone.id])).await?;
        self.delete(&self.described(&gone.id)).await?;
        self.known.forget(&gone.id);
        Ok(())
    }
}

fn busy(name: &str) -> StoreError {
    let message = format!("another server is about to give the name {name} to a store");
    StoreError::new(ErrorKind::Server, message)
        .with_status(503, None)
        .with_hint("try again in a few seconds")
}
