//! One store of a bucket.

use std::time::SystemTime;

use object_store::path::Path;
use object_store::{Attribute, Attributes, GetOptions, GetRange, ObjectMeta};

use super::body::Body;
use super::errors::failed;
use super::objects::VERSION;
use super::put::changed;
use super::{Bucket, Description};
use crate::base::clock::Deadline;
use crate::store::{
    ETag, Encoding, ErrorKind, Fetched, GetOutcome, GetRequest, Key, ListItem, ListPage, ListQuery,
    MAX_PAGE, PutRequest, RecordMeta, Result, Store, StoreError, StoreInfo, Upload, Validator,
};

/// What stands in front of a key.
const SIGN: &str = "=";

/// A store in a bucket.
#[derive(Clone, Debug)]
pub struct BucketStore {
    pub(super) bucket: Bucket,
    folder: Path,
    info: StoreInfo,
}

impl BucketStore {
    pub(super) fn new(bucket: Bucket, folder: Path, description: &Description) -> Self {
        let info = StoreInfo {
            id: description.id.clone(),
            name: description.name.clone(),
            cache_scope: format!("{}:{folder}", bucket.scope.account),
            upload_scope: format!("{}:{folder}", bucket.scope.bucket),
            modified: description.modified_at.map(SystemTime::from),
            created: None,
            expires: None,
        };
        Self {
            bucket,
            folder,
            info,
        }
    }

    pub(super) fn path(&self, key: &Key) -> Result<Path> {
        // What the platform takes in keys needs no escaping in names of objects.
        if key.is_valid() {
            Ok(self.folder.clone().join(format!("{SIGN}{key}")))
        } else {
            Err(StoreError::new(
                ErrorKind::InvalidKey,
                "a bucket takes only keys that the platform takes",
            )
            .with_key(key))
        }
    }

    fn absent(key: &Key) -> StoreError {
        StoreError::new(ErrorKind::NotFound, "there is no such record").with_key(key)
    }
}

pub(super) fn meta(object: &ObjectMeta, attributes: &Attributes) -> RecordMeta {
    let text = |attribute: &Attribute| attributes.get(attribute).map(AsRef::<str>::as_ref);
    RecordMeta {
        content_type: text(&Attribute::ContentType).map(Into::into),
        encoding: Encoding::from_header(text(&Attribute::ContentEncoding)),
        stored_size: Some(object.size),
        etag: tag(object.e_tag.as_deref(), text(&VERSION)),
        last_modified: Some(httpdate::fmt_http_date(SystemTime::from(object.last_modified)).into()),
        accepts_ranges: true,
    }
}

/// Returns the tag of a version: what the storage calls it, and what kvfs does. Some storages tell
/// only bytes apart, not equal bytes of another type or encoding.
pub(super) fn tag(own: Option<&str>, version: Option<&str>) -> Option<ETag> {
    let own = own?.trim_matches('"');
    Some(match version {
        Some(version) => ETag::new(format!("\"{own}.{version}\"")),
        None => ETag::new(format!("\"{own}\"")),
    })
}

/// Returns what the storage calls a version.
fn own_tag(tag: &ETag) -> String {
    let tag = tag.as_str().trim_matches('"');
    let own = tag.rsplit_once('.').map_or(tag, |(own, _)| own);
    format!("\"{own}\"")
}

impl Store for BucketStore {
    fn info(&self) -> StoreInfo {
        self.info.clone()
    }

    fn list_page(&self, query: &ListQuery, deadline: Deadline) -> Result<ListPage> {
        if query.collection.is_some() {
            return Err(StoreError::new(
                ErrorKind::Unsupported,
                "the caller resolves collections by the schema",
            ));
        }
        let limit = query.limit.unwrap_or(MAX_PAGE).clamp(1, MAX_PAGE);
        let (prefix, after) = (query.prefix.as_deref(), query.after.as_deref());
        let (prefix, after) = (prefix.unwrap_or_default(), after.unwrap_or_default());
        let folder = format!("{}/", self.folder);
        let below = format!("{folder}{SIGN}{prefix}");
        let offset = (!after.is_empty()).then(|| format!("{folder}{SIGN}{after}"));
        let page = self.bucket.objects.page(&below, offset, limit);
        let (objects, more) = self.bucket.wait(deadline, page)??;
        let name = |object: &ObjectMeta| {
            let name = object.location.as_ref().strip_prefix(&*folder);
            name.unwrap_or_default().to_owned()
        };
        let next = objects.last().filter(|_| more).map(name);
        // What is not a record of this store, another program has put there.
        let items = objects.iter().filter_map(|object| {
            let key = Key::new(name(object).strip_prefix(SIGN)?).filter(Key::is_valid)?;
            Some(item(key, object))
        });
        let items = items.collect();
        let next = next.map(|next| next.strip_prefix(SIGN).unwrap_or(&next).into());
        Ok(ListPage { items, next })
    }

    fn head(&self, key: &Key, deadline: Deadline) -> Result<RecordMeta> {
        let path = self.path(key).map_err(|_| Self::absent(key))?;
        let asked = self.bucket.objects.head(&path);
        let (found, attributes) = self
            .bucket
            .wait(deadline, asked)?
            .map_err(|error| error.with_key(key))?;
        Ok(meta(&found, &attributes))
    }

    fn get(&self, key: &Key, request: &GetRequest, deadline: Deadline) -> Result<GetOutcome> {
        let path = self.path(key).map_err(|_| Self::absent(key))?;
        let range = request.range.as_ref().map(|range| match range.end {
            u64::MAX => GetRange::Offset(range.start),
            end => GetRange::Bounded(range.start..end),
        });
        let options = GetOptions {
            if_match: request.if_match.as_ref().map(own_tag),
            range,
            ..GetOptions::default()
        };
        let asked = self.bucket.objects.store.get_opts(&path, options);
        let found = self.bucket.wait(deadline, asked)?;
        let found = found.map_err(|error| failed(error, Some(key)))?;
        let meta = meta(&found.meta, &found.attributes);
        if request.if_match.is_some() && request.if_match != meta.etag {
            return Err(changed(key));
        }
        let range = request.range.is_some().then(|| found.range.clone());
        let body = Body::new(found, self.bucket.clone());
        // One request for either answer: the body of what is known already is dropped.
        if let Some(Validator::ETag(known)) = &request.if_none_match
            && meta.etag.as_ref() == Some(known)
        {
            return Ok(GetOutcome::NotModified);
        }
        Ok(GetOutcome::Found(Fetched {
            is_delimited: true,
            meta,
            range,
            body: Box::new(body),
        }))
    }

    fn put(
        &self,
        key: &Key,
        request: &PutRequest,
        body: Upload<'_>,
        deadline: Deadline,
    ) -> Result<RecordMeta> {
        self.send(key, request, body, deadline)
    }

    fn delete(&self, key: &Key, deadline: Deadline) -> Result<()> {
        let Ok(path) = self.path(key) else {
            return Ok(());
        };
        let deleted = self
            .bucket
            .wait(deadline, self.bucket.objects.delete(&path))?;
        deleted.map_err(|error| error.with_key(key))
    }
}

fn item(key: Key, object: &ObjectMeta) -> ListItem {
    ListItem {
        key,
        stored_size: Some(object.size),
        modified: Some(object.last_modified.into()),
        public_url: None,
    }
}
