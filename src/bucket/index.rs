//! The list of all stores, without asking for each.
//!
//! A list of the catalog's objects names each one's version; a description is read only if that
//! version is not known yet. `<prefix>/index` keeps what is known for servers that start. It is
//! never trusted: an entry counts only under the version that the list names.

use std::collections::HashMap;
use std::sync::Arc;

use futures_util::{StreamExt, TryStreamExt, stream};
use object_store::{ObjectMeta, PutMode};
use parking_lot::Mutex;

use super::Bucket;
use super::catalog::Description;
use super::errors::failed;
use super::layout::Use;
use super::objects::Objects;
use crate::base::clock::Deadline;
use crate::store::Result;

/// Objects that are asked for at once.
const PARALLEL: usize = 16;

/// Descriptions that were asked for one by one until the index is written again.
const STALE: usize = 16;

/// Stores that are remembered; others are asked for each time.
const MOST: usize = 50_000;

/// The largest schema that is remembered, in bytes.
const MOST_SCHEMA: usize = 4096;

/// Descriptions by the version of their objects.
type Entries = HashMap<String, Description>;

/// What is known of descriptions.
#[derive(Debug, Default)]
pub(super) struct Index(Mutex<Option<Arc<Entries>>>);

impl Bucket {
    /// Returns all stores, in any order.
    ///
    /// # Errors
    /// Those of the bucket.
    pub fn descriptions(&self, deadline: Deadline) -> Result<Vec<Description>> {
        let mut all = self.wait(deadline, self.objects.all())??;
        let gone = all.extract_if(.., |found| found.deleting).collect();
        self.clear(gone);
        Ok(all)
    }

    /// Finishes in the background what deletions have left.
    pub fn tidy(&self) {
        let bucket = self.clone();
        self.handle.spawn(async move {
            match bucket.objects.all().await {
                Ok(mut all) => bucket.clear(all.extract_if(.., |found| found.deleting).collect()),
                Err(error) => tracing::debug!(%error, "what deletions have left is not known"),
            }
        });
    }

    fn clear(&self, gone: Vec<Description>) {
        if gone.is_empty() || self.objects.is_for(Use::Read) {
            return;
        }
        let objects = self.objects.clone();
        self.handle.spawn(async move {
            for gone in gone {
                if let Err(error) = objects.finish(&gone).await {
                    tracing::warn!(%error, id = gone.id, "a deleted store is not cleared away yet");
                }
            }
        });
    }
}

impl Objects {
    /// Returns all descriptions, also of stores that are being deleted.
    async fn all(&self) -> Result<Vec<Description>> {
        let folder = self.descriptions();
        let listed = self.store.list(Some(&folder));
        let listed: Vec<ObjectMeta> = listed
            .try_filter(|object| {
                let below = object.location.prefix_match(&folder);
                std::future::ready(below.is_some_and(|parts| parts.count() == 1))
            })
            .try_collect()
            .await
            .map_err(|error| failed(error, None))?;
        let known = self.index.0.lock().clone();
        let known = match known {
            Some(known) => known,
            None => Arc::new(self.kept().await),
        };
        let name = |object: &ObjectMeta| {
            let id = object.location.filename().unwrap_or_default();
            format!("{id} {}", object.e_tag.as_deref().unwrap_or_default())
        };
        let (there, missing): (Vec<_>, Vec<_>) = listed
            .into_iter()
            .map(|object| (name(&object), object))
            .partition(|(name, _)| known.contains_key(name));
        let mut all: Entries = there
            .into_iter()
            .filter_map(|(name, _)| known.get(&name).cloned().map(|found| (name, found)))
            .collect();
        let asked = missing.len();
        let asking = missing.into_iter().map(|(name, object)| async move {
            let read = self.read::<Description>(&object.location).await;
            Ok::<_, crate::store::StoreError>((name, self.readable(&object, read)?))
        });
        let mut found = stream::iter(asking).buffer_unordered(PARALLEL);
        while let Some((name, description)) = found.try_next().await? {
            all.extend(description.map(|description| (name, description)));
        }
        drop(found);
        let small = |found: &Description| {
            let schema = found.schema.as_ref().map(|schema| schema.to_string().len());
            schema.unwrap_or_default() <= MOST_SCHEMA
        };
        let kept = all.iter().filter(|(_, found)| small(found)).take(MOST);
        let kept = Arc::new(
            kept.map(|(name, found)| (name.clone(), found.clone()))
                .collect(),
        );
        *self.index.0.lock() = Some(Arc::clone(&kept));
        if asked > STALE && !self.is_for(Use::Read) {
            let path = self.path(&["index"]);
            // Only speed is lost without it.
            let written = self.write(&path, &*kept, PutMode::Overwrite).await;
            if let Err(error) = written {
                tracing::debug!(%error, "the index of stores was not written");
            }
        }
        Ok(all.into_values().collect())
    }

    async fn kept(&self) -> Entries {
        let kept = self.read::<Entries>(&self.path(&["index"])).await;
        kept.ok()
            .flatten()
            .map(|kept| kept.value)
            .unwrap_or_default()
    }

    /// Leaves out what is no description; whatever else uses the bucket may have put it there.
    fn readable(
        &self,
        object: &ObjectMeta,
        read: Result<Option<super::objects::Seen<Description>>>,
    ) -> Result<Option<Description>> {
        use crate::store::ErrorKind::Corrupt;
        match read {
            Ok(found) => Ok(found.map(|found| found.value).filter(|found| {
                let name = object.location.filename();
                name.is_some_and(|name| name.eq_ignore_ascii_case(&found.id))
            })),
            Err(error) if error.kind() == Corrupt => {
                tracing::warn!(object = %object.location, "this object describes no store");
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }
}
