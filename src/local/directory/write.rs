//! Puts and deletes: the quoted layout, durable, and never half visible.
//!
//! A put writes value and sidecar to unfinished files, then renames first the sidecar and then
//! the value. A new record appears with the second rename, since a sidecar alone is no record.
//! A replaced record keeps its old bytes until then, and the new sidecar still describes them
//! (`sidecar`), so readers see the old version or the new one at every moment and after every
//! crash; the next put of the key heals what is left over. A delete removes the value first.

use std::time::Duration;

use super::folder::FolderLock;
use super::found::{Opened, meta};
use super::names::{self, sidecar_name};
use super::scan::{Claim, Files};
use super::sidecar::{Description, Identity, Ours, Previous, Sidecar};
use super::unfinished::Unfinished;
use super::{Access, DirectoryStore};
use crate::base::clock::Deadline;
use crate::local::transfer::{self, disk};
use crate::store::{ErrorKind, Key, PutRequest, RecordMeta, Result, StoreError, Upload};

/// How old the index may be for a put without preconditions: what it misses, a file of another
/// layout made meanwhile for the same key, yields to the new record anyway.
const PUT_TOLERANCE: Duration = Duration::from_secs(10);

/// What a record without a content type gets.
const DEFAULT_TYPE: &str = "application/octet-stream";

impl DirectoryStore {
    pub(super) fn check_writable(&self) -> Result<()> {
        match self.access {
            Access::ReadWrite => Ok(()),
            Access::ReadOnly => Err(StoreError::new(
                ErrorKind::Unsupported,
                "the folder was opened for reading only",
            )),
        }
    }

    pub(super) fn write(
        &self,
        key: &Key,
        request: &PutRequest,
        body: Upload<'_>,
        deadline: Deadline,
    ) -> Result<RecordMeta> {
        let mut value = self.unfinished()?;
        transfer::copy(body, &mut value)?;
        let identity = value.finish().map_err(disk)?;
        let content_type = request.content_type.as_deref().unwrap_or(DEFAULT_TYPE);

        let lock = self.lock(deadline)?;
        let tolerated = if request.if_absent || request.if_match.is_some() {
            Duration::ZERO
        } else {
            PUT_TOLERANCE
        };
        let current = match self.locate(key, tolerated) {
            Ok(opened) => Some(opened),
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        let current_meta = current.as_ref().map(Opened::meta);
        transfer::may_put(key, request, current_meta.as_ref())?;
        let others = self.other_claims(key, tolerated)?;
        // A value that its sidecar gives a name of its own, as apify-cli does with inputs, keeps it.
        let quoted = names::quote(key.as_str());
        let named = current
            .as_ref()
            .map(|current| &current.files)
            .filter(|files| {
                files.sidecar.as_deref() == Some(&*sidecar_name(&quoted))
                    && files.value != quoted
                    && names::is_value(&files.value)
            });
        let (name, beside) = match named {
            Some(files) => (files.value.clone(), sidecar_name(&quoted)),
            None => {
                let name = self.choose_name(key)?;
                (name.clone(), sidecar_name(&name))
            }
        };
        if let Some(current) = &current {
            // Another user's program may read it.
            let kept = value.take_mode_of(&current.file);
            kept.unwrap_or_else(
                |error| tracing::debug!(%error, "a file loses its permission bits"),
            );
        }
        let sidecar = Sidecar {
            key: key.as_str().to_owned(),
            content_type: Some(content_type.to_owned()),
            size: Some(identity.size),
            filename: (beside != sidecar_name(&name)).then(|| name.clone()),
            extension: None,
            encoding: request.encoding.header_value().map(str::to_owned),
            kvfs: Some(Ours {
                file: identity.text(),
                previous: current
                    .filter(|current| current.files.value == name)
                    .and_then(|current| previous(&current)),
            }),
        };
        let files = Files {
            value: name.clone(),
            sidecar: Some(beside.clone()),
        };
        let claim = self.publish(files, &sidecar, value, key)?;
        for files in others {
            if files.value != name {
                self.remove(&files, Some(&beside))?;
            }
        }
        self.index.note(key, Some(claim));
        drop(lock);
        self.folder.sync().map_err(disk)?;
        let description = Description {
            content_type: None,
            encoding: request.encoding.clone(),
            certain: true,
        };
        Ok(meta(&identity, content_type.to_owned(), &description))
    }

    fn unfinished(&self) -> Result<Unfinished> {
        let folder = self.folder.dir().map_err(disk)?;
        Unfinished::create(folder).map_err(disk)
    }

    fn publish(
        &self,
        files: Files,
        sidecar: &Sidecar,
        value: Unfinished,
        key: &Key,
    ) -> Result<Claim> {
        let text = serde_json::to_vec_pretty(sidecar).map_err(|error| disk(error.into()))?;
        let mut beside = self.unfinished()?;
        transfer::copy(Upload::Bytes(&text), &mut beside)?;
        let Identity { inode, .. } = beside.finish().map_err(disk)?;
        let sidecar_path = files.sidecar.clone().unwrap_or_default();
        beside.publish(&sidecar_path).map_err(disk)?;
        value.publish(&files.value).map_err(disk)?;
        Ok(if files == Files::quoted(key) {
            Claim::Quoted(inode)
        } else {
            Claim::Other(Box::new(files))
        })
    }

    pub(super) fn erase(&self, key: &Key, deadline: Deadline) -> Result<()> {
        let lock = self.lock(deadline)?;
        let mut removed = false;
        for name in [names::quote(key.as_str()), names::other_name(key.as_str())] {
            if let Some(files) = self.owned(key, &sidecar_name(&name))? {
                self.remove(&files, None)?;
                removed = true;
            }
        }
        for files in self.other_claims(key, Duration::ZERO)? {
            self.remove(&files, None)?;
            removed = true;
        }
        self.index.note(key, None);
        drop(lock);
        if removed {
            self.folder.sync().map_err(disk)?;
        }
        Ok(())
    }

    fn lock(&self, deadline: Deadline) -> Result<FolderLock> {
        self.folder.lock(deadline).map_err(disk)?.ok_or_else(|| {
            StoreError::new(
                ErrorKind::Timeout,
                "another program holds the lock of the folder",
            )
        })
    }

    /// Returns the files that claim a key besides those the key's own names lead to.
    fn other_claims(&self, key: &Key, tolerated: Duration) -> Result<Vec<Files>> {
        self.refresh(tolerated)?;
        let claims = self.index.claims(key);
        let files = claims.iter().map(|claim| claim.files(key));
        Ok(files.filter(|files| *files != Files::quoted(key)).collect())
    }

    /// Returns the files that a sidecar describes, if it names this key.
    fn owned(&self, key: &Key, sidecar_path: &str) -> Result<Option<Files>> {
        let sidecar = self.folder.sidecar(sidecar_path).map_err(disk)?;
        match sidecar.filter(|sidecar| sidecar.key == key.as_str()) {
            Some(sidecar) => self.described(key, sidecar_path, &sidecar),
            None => Ok(None),
        }
    }

    /// Returns the name for a key's value, making way for files of other keys.
    fn choose_name(&self, key: &Key) -> Result<String> {
        let name = names::file_name(key.as_str());
        let found = self.folder.dir().and_then(|dir| dir.entry(&name));
        let taken = found.map_err(disk)?.map(|kind| kind.is_file());
        let sidecar = self.folder.sidecar(&sidecar_name(&name)).map_err(disk)?;
        let free = match (taken, sidecar) {
            (Some(false), _) => false,
            (_, Some(sidecar)) => sidecar.key == key.as_str(),
            (Some(true), None) => {
                names::bare_key(&name) == key.as_str() && !self.index.is_of_another(&name, key)
            }
            (None, None) => true,
        };
        Ok(if free {
            name
        } else {
            names::other_name(key.as_str())
        })
    }

    /// Removes a value, then its sidecar unless that is `kept`.
    fn remove(&self, files: &Files, kept: Option<&str>) -> Result<()> {
        self.folder.remove(&files.value).map_err(disk)?;
        match &files.sidecar {
            Some(sidecar) if Some(&**sidecar) != kept => self.folder.remove(sidecar).map_err(disk),
            _ => Ok(()),
        }
    }
}

/// Describes the version about to be replaced.
fn previous(current: &Opened) -> Option<Previous> {
    let meta = current.meta();
    Some(Previous {
        file: current.identity.text(),
        content_type: meta.content_type.map(|kind| kind.to_string()),
        encoding: meta.encoding.header_value().map(str::to_owned),
        size: current.identity.size,
    })
}
