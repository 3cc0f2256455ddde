//! The store's metadata of a record, as extended attributes.

use super::types::Ino;
use super::write::draft::Draft;
use super::{FsError, KvFs, Result};
use crate::base::clock::Wait;
use crate::cache::records::Peek;
use crate::listing::Found;
use crate::store::RecordMeta;

const KEY: &str = "user.apify.key";
pub(super) const CONTENT_TYPE: &str = "user.apify.content-type";
pub(super) const CONTENT_ENCODING: &str = "user.apify.content-encoding";
const ETAG: &str = "user.apify.etag";
const STORED_SIZE: &str = "user.apify.stored-size";
const URL: &str = "user.apify.url";
const STORE_ID: &str = "user.apify.store-id";
const STORE_NAME: &str = "user.apify.store-name";
const STATS: &str = "user.kvfs.stats";

impl KvFs {
    /// Returns an attribute's value. One that only the store can tell is asked for; the answer
    /// then serves all of them.
    ///
    /// # Errors
    /// [`FsError::NoAttribute`], [`FsError::NotSupported`], and errors of the store.
    pub fn getxattr(&self, ino: Ino, name: &str, wait: Wait) -> Result<Vec<u8>> {
        if !name.starts_with("user.") {
            return Err(FsError::NotSupported);
        }
        if ino == Ino::ROOT {
            return self.root_attribute(name);
        }
        let text = |text: &str| Ok(text.as_bytes().to_vec());
        let key = self.key_of(ino)?;
        match name {
            KEY => text(key.as_str()),
            URL => text(&self.store.record_url(&key).ok_or(FsError::NoAttribute)?),
            STORED_SIZE if self.listed_size(&key).is_some() => text(
                &self
                    .listed_size(&key)
                    .ok_or(FsError::NoAttribute)?
                    .to_string(),
            ),
            CONTENT_TYPE | CONTENT_ENCODING | ETAG | STORED_SIZE => {
                if let Some(draft) = self.draft(ino) {
                    let value = draft_value(&draft, name).ok_or(FsError::NoAttribute)?;
                    return text(&value);
                }
                let meta = self.records.described(&key, wait)?;
                text(&meta_value(&meta, name).ok_or(FsError::NoAttribute)?)
            }
            _ => Err(FsError::NoAttribute),
        }
    }

    fn listed_size(&self, key: &crate::store::Key) -> Option<u64> {
        let listing = self.listing.latest()?;
        match listing.find(key) {
            Found::Listed(entry, at) if self.records.is_fresh(at) => entry.stored_size,
            _ => None,
        }
    }

    fn root_attribute(&self, name: &str) -> Result<Vec<u8>> {
        let info = self.store.info();
        match name {
            STORE_ID => Ok(info.id.into_bytes()),
            STORE_NAME => info
                .name
                .map(String::into_bytes)
                .ok_or(FsError::NoAttribute),
            STATS => self
                .status
                .get()
                .map(|status| (status.0)().into_bytes())
                .ok_or(FsError::NoAttribute),
            _ => Err(FsError::NoAttribute),
        }
    }

    /// Returns the names of an inode's attributes; makes no request.
    ///
    /// # Errors
    /// [`FsError::Stale`] for an inode that is not in use.
    pub fn listxattr(&self, ino: Ino) -> Result<Vec<&'static str>> {
        if ino == Ino::ROOT {
            let mut names = vec![STORE_ID];
            names.extend(self.store.info().name.map(|_| STORE_NAME));
            names.extend(self.status.get().map(|_| STATS));
            return Ok(names);
        }
        let key = self.key_of(ino)?;
        let mut names = vec![KEY];
        names.extend(self.store.record_url(&key).map(|_| URL));
        if let Some(draft) = self.draft(ino) {
            names.extend(
                [CONTENT_TYPE, CONTENT_ENCODING, ETAG, STORED_SIZE]
                    .iter()
                    .filter(|name| draft_value(&draft, name).is_some()),
            );
            return Ok(names);
        }
        match self.records.peek(&key) {
            Peek::Present(known) => {
                names.extend(
                    [CONTENT_TYPE, CONTENT_ENCODING, ETAG, STORED_SIZE]
                        .iter()
                        .filter(|name| meta_value(&known.meta, name).is_some()),
                );
            }
            _ => names.extend([CONTENT_TYPE, STORED_SIZE]),
        }
        Ok(names)
    }
}

/// What is known of a file that is being changed: what a program has set, else what the version
/// says that it replaces.
fn draft_value(draft: &Draft, name: &str) -> Option<String> {
    let facts = draft.facts();
    let base = facts.base.as_ref();
    match name {
        CONTENT_TYPE => {
            let known = facts.content_type.as_deref();
            let of_base = base.and_then(|meta| meta.content_type.as_deref());
            known.or(of_base).map(Into::into)
        }
        CONTENT_ENCODING => {
            let known = facts.encoding.as_ref();
            let of_base = base.map(|meta| &meta.encoding);
            known.or(of_base)?.header_value().map(Into::into)
        }
        ETAG if !draft.is_dirty() => base?.etag.as_ref().map(|etag| etag.as_str().into()),
        STORED_SIZE if !draft.is_dirty() => base?.stored_size.map(|size| size.to_string()),
        _ => None,
    }
}

fn meta_value(meta: &RecordMeta, name: &str) -> Option<String> {
    match name {
        CONTENT_TYPE => meta.content_type.as_deref().map(Into::into),
        CONTENT_ENCODING => meta.encoding.header_value().map(Into::into),
        ETAG => meta.etag.as_ref().map(|etag| etag.as_str().into()),
        STORED_SIZE => meta.stored_size.map(|size| size.to_string()),
        _ => None,
    }
}
