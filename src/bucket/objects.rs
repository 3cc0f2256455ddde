//! Small objects of a bucket: read, written under conditions, deleted.
//!
//! Every write bears a mark of its own, so that a write with a lost answer is looked up before
//! anything else is said: the object either bears the mark or it does not.

use std::borrow::Cow;
use std::fmt;
use std::iter::repeat_with;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt};
use object_store::list::{PaginatedListOptions, PaginatedListStore};
use object_store::path::Path;
use object_store::{
    Attribute, Attributes, Error, GetOptions, GetResult, ObjectMeta, ObjectStore, ObjectStoreExt,
    PutMode, PutOptions, PutPayload, PutResult, UpdateVersion,
};
use serde::{Deserialize, Serialize};
use tokio::sync::{Mutex, OnceCell};

use super::errors::{corrupt, failed};
use super::index::Index;
use super::known::Known;
use super::layout::Use;
use crate::store::{ErrorKind, Result, StoreError};

/// The attribute that tells versions apart. Azure takes no hyphens in it.
pub(super) const VERSION: Attribute = Attribute::Metadata(Cow::Borrowed("kvfsversion"));

/// Letters and digits of a version.
const VERSION_LEN: usize = 12;

/// What the bucket's protocol works with; nothing here blocks.
pub(super) struct Objects {
    pub(super) store: Arc<dyn ObjectStore>,
    /// Lists a page at a time, where the storage can.
    pub(super) pages: Option<Arc<dyn PaginatedListStore>>,
    pub(super) root: Path,
    pub(super) known: Known,
    pub(super) index: Index,
    /// Whether uploads in parts keep to conditions; asked when it first matters.
    pub(super) conditional_parts: OnceCell<bool>,
    /// What the bucket is used for; [`Use::Shared`] unless something else was said.
    pub(super) wanted: OnceLock<Use>,
    /// Held while something changes under a condition, if nothing else writes to the bucket.
    pub(super) alone: Arc<Mutex<()>>,
    /// Whether lists leave out the object that is called like the prefix, as the library's of Azure.
    pub(super) azure: bool,
    /// How often a write is repeated that others got ahead of.
    pub(super) attempts: u32,
    /// How often a name is asked for again that another server is about to give.
    pub(super) waits: u32,
    /// How long such a claim must have stood still until the next server settles it.
    pub(super) patience: Duration,
}

impl fmt::Debug for Objects {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // What the library prints of itself includes credentials.
        f.debug_struct("Objects")
            .field("root", &self.root)
            .finish_non_exhaustive()
    }
}

/// A small object as it was at one moment.
#[derive(Clone, Debug)]
pub(super) struct Seen<T> {
    pub(super) value: T,
    /// What tells whether it is still the same.
    pub(super) version: UpdateVersion,
}

impl Objects {
    pub(super) fn is_for(&self, wanted: Use) -> bool {
        self.wanted.get() == Some(&wanted)
    }

    /// Returns the path of an object. What a name may not hold is escaped.
    pub(super) fn path(&self, parts: &[&str]) -> Path {
        let parts = parts.iter().map(|part| (*part).to_owned().into());
        self.root.parts().chain(parts).collect()
    }

    /// Reads a small object; `None` if there is none.
    pub(super) async fn get_small(&self, path: &Path) -> Result<Option<Seen<Bytes>>> {
        let found = match self.store.get_opts(path, GetOptions::default()).await {
            Ok(found) => found,
            Err(error) => return absent(error),
        };
        let version = version_of(&found);
        let value = found.bytes().await.map_err(|error| failed(error, None))?;
        Ok(Some(Seen { value, version }))
    }

    /// Reads what [`Objects::write`] wrote; `None` if there is nothing.
    pub(super) async fn read<T: for<'a> Deserialize<'a>>(
        &self,
        path: &Path,
    ) -> Result<Option<Seen<T>>> {
        let Some(Seen { value, version }) = self.get_small(path).await? else {
            return Ok(None);
        };
        let value = serde_json::from_slice(&value).map_err(corrupt)?;
        Ok(Some(Seen { value, version }))
    }

    /// Writes a value; `None` if the mode's condition does not hold.
    pub(super) async fn write(
        &self,
        path: &Path,
        value: &impl Serialize,
        mode: PutMode,
    ) -> Result<Option<UpdateVersion>> {
        let text = serde_json::to_vec_pretty(value).map_err(corrupt)?;
        self.put_small(path, text.into(), mode).await
    }

    /// Writes a small object; `None` if the mode's condition does not hold.
    pub(super) async fn put_small(
        &self,
        path: &Path,
        payload: PutPayload,
        mode: PutMode,
    ) -> Result<Option<UpdateVersion>> {
        let mark = mark();
        let options = PutOptions {
            mode,
            attributes: Attributes::from_iter([(VERSION, mark.clone())]),
            ..PutOptions::default()
        };
        match self.put(path, payload, options, &mark).await {
            Ok(done) => Ok(Some(UpdateVersion {
                e_tag: done.e_tag,
                version: done.version,
            })),
            Err(error) if error.kind() == ErrorKind::Changed => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Puts an object with the version `mark`. Returns [`ErrorKind::Changed`] only if the condition
    /// did not hold, whatever became of the answers.
    pub(super) async fn put(
        &self,
        path: &Path,
        payload: PutPayload,
        options: PutOptions,
        mark: &str,
    ) -> Result<PutResult> {
        for _ in 0..3 {
            let put = self
                .store
                .put_opts(path, payload.clone(), options.clone())
                .await;
            let error = match put {
                Ok(done) => return Ok(done),
                Err(error) => error,
            };
            let refused = matches!(
                error,
                Error::AlreadyExists { .. } | Error::Precondition { .. }
            );
            match (&options.mode, self.lookup(path, mark).await) {
                (_, Ok(Lookup::Own(done))) => return Ok(done),
                // Refused, although its condition holds: storages do so for writes that met.
                (PutMode::Create, Ok(Lookup::Absent)) if refused => {}
                (PutMode::Update(wanted), Ok(Lookup::Other(found)))
                    if refused
                        && wanted.e_tag == found.e_tag
                        && wanted.version == found.version => {}
                _ => return Err(failed(error, None)),
            }
        }
        Err(contended())
    }

    /// Looks up whether a write arrived.
    pub(super) async fn lookup(&self, path: &Path, mark: &str) -> Result<Lookup> {
        let options = GetOptions {
            head: true,
            ..GetOptions::default()
        };
        match self.store.get_opts(path, options).await {
            Ok(found) => {
                let version = version_of(&found);
                let is_own = found
                    .attributes
                    .get(&VERSION)
                    .is_some_and(|version| version.as_ref() == mark);
                if !is_own {
                    return Ok(Lookup::Other(version));
                }
                Ok(Lookup::Own(PutResult {
                    e_tag: version.e_tag,
                    version: version.version,
                    extensions: found.extensions,
                }))
            }
            Err(Error::NotFound { .. }) => Ok(Lookup::Absent),
            Err(error) => Err(failed(error, None)),
        }
    }

    /// Puts a record, and looks at its store once more: one that is gone takes the record with it.
    pub(super) async fn put_record(
        &self,
        id: &str,
        path: &Path,
        payload: PutPayload,
        options: PutOptions,
        mark: &str,
    ) -> Result<PutResult> {
        let done = self.put(path, payload, options, mark).await?;
        self.keep(id, path).await?;
        Ok(done)
    }

    /// Deletes a record that was just written if its store is gone.
    ///
    /// A store that is still there now is deleted after this, and the record with it.
    pub(super) async fn keep(&self, id: &str, path: &Path) -> Result<()> {
        if self
            .look(id)
            .await?
            .is_some_and(|found| !found.value.deleting)
        {
            return Ok(());
        }
        self.delete(path).await?;
        let message = "the store was deleted meanwhile, and the record with it";
        Err(StoreError::new(ErrorKind::StoreNotFound, message))
    }

    /// Returns what is known of an object without its bytes.
    pub(super) async fn head(&self, path: &Path) -> Result<(ObjectMeta, Attributes)> {
        let options = GetOptions {
            head: true,
            ..GetOptions::default()
        };
        let found = match self.store.get_opts(path, options).await {
            // Without a body an absent bucket looks the same.
            Err(Error::NotFound { .. }) => self.store.get_opts(path, GetOptions::default()).await,
            found => found,
        };
        let found = found.map_err(|error| failed(error, None))?;
        Ok((found.meta, found.attributes))
    }

    /// Returns up to `limit` objects with names that begin with `below`, after `offset`, in order;
    /// and whether there are more.
    pub(super) async fn page(
        &self,
        below: &str,
        offset: Option<String>,
        limit: usize,
    ) -> Result<(Vec<ObjectMeta>, bool)> {
        let from_start = offset.as_deref().is_none_or(|offset| offset < below);
        let mut found = Vec::new();
        let mut more;
        if let Some(pages) = &self.pages {
            // Azure begins with the offset itself, which the library takes out of the page.
            let wanted = limit + usize::from(self.azure && offset.is_some());
            let mut options = PaginatedListOptions {
                offset,
                max_keys: Some(wanted),
                ..PaginatedListOptions::default()
            };
            loop {
                let page = pages.list_paginated(Some(below), options.clone()).await;
                let page = page.map_err(|error| failed(error, None))?;
                found.extend(page.result.objects);
                more = page.page_token.is_some();
                // Nothing on this page was what the library takes for an object.
                if !found.is_empty() || !more {
                    break;
                }
                options.page_token = page.page_token;
            }
            more |= found.len() > limit;
            found.truncate(limit);
        } else {
            let folder = below.rsplit_once('/').map_or("", |(folder, _)| folder);
            let all = self.store.list(Some(&Path::from(folder)));
            let all: Vec<ObjectMeta> = all
                .try_collect()
                .await
                .map_err(|error| failed(error, None))?;
            let wanted = |object: &ObjectMeta| {
                let name = object.location.as_ref();
                name.starts_with(below) && offset.as_deref().is_none_or(|offset| name > offset)
            };
            found.extend(all.into_iter().filter(wanted));
            found.sort_by(|one, other| one.location.cmp(&other.location));
            more = found.len() > limit;
            found.truncate(limit);
        }
        if self.azure
            && from_start
            && let Ok(exact) = Path::parse(below)
        {
            match self.head(&exact).await {
                Ok((object, _)) if object.location.as_ref() == below => found.insert(0, object),
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok((found, more))
    }

    /// Deletes an object; an absent one is fine.
    pub(super) async fn delete(&self, path: &Path) -> Result<()> {
        match self.store.delete(path).await {
            Ok(()) => Ok(()),
            Err(error) => absent::<()>(error).map(drop),
        }
    }

    /// Deletes all objects below a folder.
    pub(super) async fn delete_all(&self, folder: &Path) -> Result<()> {
        let paths = self.store.list(Some(folder));
        let paths = paths.map_ok(|object| object.location).boxed();
        let deleting = self.store.delete_stream(paths);
        match deleting.try_for_each(|_| async { Ok(()) }).await {
            Ok(()) => Ok(()),
            Err(error) => absent::<()>(error).map(drop),
        }
    }

    /// Lets others go on for a moment, longer each time.
    pub(super) async fn pause(&self, times: u32) {
        if self.waits > 0 {
            let most = 25u64 << times.min(5);
            let pause = fastrand::u64(most / 2..=most);
            tokio::time::sleep(Duration::from_millis(pause)).await;
        }
    }
}

/// What a lookup of a write found.
pub(super) enum Lookup {
    /// The write itself.
    Own(PutResult),
    /// What something else wrote.
    Other(UpdateVersion),
    Absent,
}

/// Makes up what tells a write from all others.
pub(super) fn mark() -> String {
    repeat_with(fastrand::alphanumeric)
        .take(VERSION_LEN)
        .collect()
}

fn version_of(found: &GetResult) -> UpdateVersion {
    UpdateVersion {
        e_tag: found.meta.e_tag.clone(),
        version: found.meta.version.clone(),
    }
}

fn absent<T>(error: Error) -> Result<Option<T>> {
    match failed(error, None) {
        error if error.kind() == ErrorKind::NotFound => Ok(None),
        error => Err(error),
    }
}

/// The error for what others changed each time before it could be changed.
pub(super) fn contended() -> StoreError {
    let message = "other servers change the store all the time; nothing was changed";
    StoreError::new(ErrorKind::Server, message).with_status(503, None)
}
