//! From a key to the files of its record, opened together.

use std::fs::File;
use std::io;
use std::time::{Duration, UNIX_EPOCH};

use super::folder::is_absence;
use super::names::{self, SIDECAR_SUFFIX};
use super::scan::Files;
use super::sidecar::{Description, Identity, NONE_TYPE, Sidecar};
use super::{DirectoryStore, dir, media, unreadable};
use crate::local::transfer::not_found;
use crate::store::{ETag, Key, RecordMeta, Result};

/// How often a value and a sidecar that change while they are read are read again.
const PAIRING_ATTEMPTS: usize = 8;

/// A record that has been found and opened.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) files: Files,
    pub(super) file: File,
    pub(super) identity: Identity,
    description: Description,
}

impl DirectoryStore {
    /// Finds a record and opens its value together with the sidecar that describes it. Files of
    /// other layouts that others made less than `tolerated` ago may be missed.
    pub(super) fn locate(&self, key: &Key, tolerated: Duration) -> Result<Opened> {
        for name in [names::quote(key.as_str()), names::other_name(key.as_str())] {
            if let Some(opened) = self.open_named(key, Files::named(name))? {
                return Ok(opened);
            }
        }
        self.refresh(tolerated)?;
        for claim in self.index.claims(key) {
            let files = claim.files(key);
            let opened = match &files.sidecar {
                Some(_) => self.open_named(key, files)?,
                None => self
                    .open_bare(files)
                    .map_err(|error| unreadable(key, error))?,
            };
            if let Some(opened) = opened {
                return Ok(opened);
            }
        }
        Err(not_found(key))
    }

    /// Returns the files of the key that this sidecar names.
    pub(super) fn described(
        &self,
        key: &Key,
        sidecar_path: &str,
        sidecar: &Sidecar,
    ) -> Result<Option<Files>> {
        let value = match (&sidecar.filename, sidecar_path.strip_suffix(SIDECAR_SUFFIX)) {
            (None, Some(stem)) => stem.to_owned(),
            (Some(name), Some(stem)) => {
                let (folder, own) = dir::split(stem);
                let value = match folder {
                    "" => name.clone(),
                    folder => format!("{folder}/{name}"),
                };
                // A file that has a sidecar of its own is what that says.
                if name != own {
                    let other = self.folder.sidecar(&names::sidecar_name(&value));
                    if other.map_err(|error| unreadable(key, error))?.is_some() {
                        return Ok(None);
                    }
                }
                value
            }
            (_, None) => return Ok(None),
        };
        Ok(Some(Files {
            value,
            sidecar: Some(sidecar_path.to_owned()),
        }))
    }

    /// Opens a value that has a sidecar; `None` unless both are there and about this key.
    fn open_named(&self, key: &Key, mut files: Files) -> Result<Option<Opened>> {
        let Some(sidecar_path) = files.sidecar.clone() else {
            return Ok(None);
        };
        let read = || match self.folder.sidecar(&sidecar_path) {
            Ok(found) => Ok(found.filter(|sidecar| sidecar.key == key.as_str())),
            Err(error) => Err(unreadable(key, error)),
        };
        let Some(mut sidecar): Option<Sidecar> = read()? else {
            return Ok(None);
        };
        for attempt in 1.. {
            if sidecar.extension.is_none() {
                match self.described(key, &sidecar_path, &sidecar)? {
                    Some(described) => files = described,
                    None => return Ok(None),
                }
            }
            let Some((file, identity)) = self.open_value(key, &files.value)? else {
                return Ok(None);
            };
            let description = sidecar.describe(&identity);
            let again = if description.certain {
                None
            } else {
                read()?.filter(|again| *again != sidecar && attempt < PAIRING_ATTEMPTS)
            };
            match again {
                // A writer was between the two renames, or has replaced both.
                Some(again) => sidecar = again,
                None => {
                    self.note_doubt(&description, &files);
                    return Ok(Some(Opened {
                        files,
                        file,
                        identity,
                        description,
                    }));
                }
            }
        }
        Ok(None)
    }

    fn note_doubt(&self, description: &Description, files: &Files) {
        if !description.certain && self.warned.lock().insert(files.value.clone()) {
            tracing::debug!(
                file = files.value,
                "the metadata next to the file was not written for it"
            );
        }
    }

    fn open_bare(&self, files: Files) -> io::Result<Option<Opened>> {
        let (file, identity) = match self.folder.opened(&files.value) {
            Ok(opened) => opened,
            Err(error) if is_absence(&error) => return Ok(None),
            Err(error) => return Err(error),
        };
        Ok(Some(Opened {
            identity,
            description: Description {
                content_type: Some(media::content_type(&files.value)),
                encoding: Default::default(),
                certain: true,
            },
            files,
            file,
        }))
    }

    fn open_value(&self, key: &Key, value: &str) -> Result<Option<(File, Identity)>> {
        match self.folder.opened(value) {
            Ok(opened) => Ok(Some(opened)),
            Err(error) if is_absence(&error) => Ok(None),
            Err(error) => Err(unreadable(key, error)),
        }
    }
}

impl Opened {
    pub(super) fn meta(&self) -> RecordMeta {
        let content_type = self
            .description
            .content_type
            .clone()
            .unwrap_or_else(|| media::content_type(&self.files.value));
        meta(&self.identity, content_type, &self.description)
    }
}

pub(super) fn meta(
    identity: &Identity,
    content_type: String,
    description: &Description,
) -> RecordMeta {
    // The record of `None` is an empty file, whatever else may have got into it.
    let size = if content_type == NONE_TYPE {
        0
    } else {
        identity.size
    };
    let encoding = description.encoding.header_value().unwrap_or_default();
    let since = u64::try_from(identity.mtime_ns).unwrap_or_default();
    let modified = UNIX_EPOCH + Duration::from_nanos(since);
    RecordMeta {
        content_type: Some(content_type.into()),
        encoding: description.encoding.clone(),
        stored_size: Some(size),
        etag: Some(ETag::new(format!(
            "\"{:x}-{:x}-{:x}{}{encoding}\"",
            identity.inode,
            identity.size,
            identity.mtime_ns,
            if encoding.is_empty() { "" } else { "-" },
        ))),
        last_modified: Some(httpdate::fmt_http_date(modified).into()),
        accepts_ranges: true,
    }
}
