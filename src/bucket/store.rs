//! One store of a bucket.

use std::borrow::Cow;
use std::fs::File;
use std::io::{self, Read};
use std::iter::repeat_with;
use std::os::unix::fs::FileExt;
use std::time::SystemTime;

use futures_util::TryStreamExt;
use object_store::path::Path;
use object_store::{
    Attribute, Attributes, Error, GetOptions, GetRange, ObjectMeta, ObjectStoreExt, PutMode,
    PutMultipartOptions, PutOptions, PutPayload, UpdateVersion,
};

use super::body::{Body, fill};
use super::{Bucket, Description, failed};
use crate::base::clock::Deadline;
use crate::store::{
    ETag, Encoding, ErrorKind, Fetched, GetOutcome, GetRequest, Key, ListItem, ListPage, ListQuery,
    MAX_PAGE, PutRequest, RecordMeta, Result, Store, StoreError, StoreInfo, Upload, Validator,
    upload_allowance,
};

/// What stands in front of a key.
const SIGN: &str = "=";

/// Bytes of a record that go out at once; larger records go in several parts.
const PART: usize = 8 << 20;

/// The attribute that tells versions apart. Azure takes no hyphens in it.
const VERSION: Attribute = Attribute::Metadata(Cow::Borrowed("kvfsversion"));

/// Letters and digits of a version.
const VERSION_LEN: usize = 12;

/// A store in a bucket.
#[derive(Clone, Debug)]
pub struct BucketStore {
    bucket: Bucket,
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

    fn path(&self, key: &Key) -> Result<Path> {
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

    fn wait<T>(&self, deadline: Deadline, work: impl Future<Output = T>) -> Result<T> {
        let late = || StoreError::new(ErrorKind::Timeout, "the bucket took too long");
        let left = deadline.remaining().ok_or_else(late)?;
        self.bucket
            .wait(async { tokio::time::timeout(left, work).await })
            .map_err(|_| late())
    }

    fn absent(key: &Key) -> StoreError {
        StoreError::new(ErrorKind::NotFound, "there is no such record").with_key(key)
    }

    /// Sends a record that is too large for one request. Readers see it when it is complete.
    fn put_parts(
        &self,
        path: &Path,
        attributes: Attributes,
        first: Vec<u8>,
        (body, announced): (&mut dyn Read, Option<u64>),
        holds: &dyn Fn() -> Result<()>,
        deadline: Deadline,
    ) -> Result<(u64, Option<String>)> {
        let options = PutMultipartOptions {
            attributes,
            ..PutMultipartOptions::default()
        };
        let begun = self.bucket.objects.put_multipart_opts(path, options);
        let mut upload = self
            .wait(deadline, begun)?
            .map_err(|error| failed(error, None))?;
        let sent = (|| {
            let mut piece = first;
            let mut size = 0u64;
            loop {
                let last = piece.len() < PART;
                size += piece.len() as u64;
                if !piece.is_empty() {
                    let part = upload.put_part(PutPayload::from(piece));
                    self.wait(deadline, part)?
                        .map_err(|error| failed(error, None))?;
                }
                if last {
                    check_length(size, announced)?;
                    holds()?;
                    return Ok(size);
                }
                piece = fill(body, PART).map_err(broken)?;
            }
        })();
        match sent {
            Ok(size) => {
                let done = self
                    .wait(deadline, upload.complete())?
                    .map_err(|error| failed(error, None))?;
                Ok((size, done.e_tag))
            }
            Err(error) => {
                if let Err(error) = self.bucket.wait(upload.abort()) {
                    tracing::warn!(%error, "parts of a broken upload stay behind in the bucket");
                }
                Err(error)
            }
        }
    }
}

fn broken(error: io::Error) -> StoreError {
    StoreError::from_io(error, ErrorKind::Network)
}

fn check_length(size: u64, announced: Option<u64>) -> Result<()> {
    match announced {
        Some(announced) if announced != size => Err(StoreError::new(
            ErrorKind::Protocol,
            format!("the body was announced with {announced} bytes but did not have that length"),
        )),
        _ => Ok(()),
    }
}

fn meta(object: &ObjectMeta, attributes: &Attributes) -> RecordMeta {
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
fn tag(own: Option<&str>, version: Option<&str>) -> Option<ETag> {
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

fn attributes(request: &PutRequest, version: &str) -> Attributes {
    let content_type = request.content_type.as_deref();
    let content_type = content_type
        .unwrap_or("application/octet-stream")
        .to_owned();
    let mut attributes = Attributes::from_iter([
        (Attribute::ContentType, content_type),
        (VERSION, version.to_owned()),
    ]);
    if let Some(encoding) = request.encoding.header_value() {
        attributes.insert(Attribute::ContentEncoding, encoding.to_owned().into());
        // Else Google decompresses gzip for whoever does not ask for it, and the bytes are others.
        attributes.insert(Attribute::CacheControl, "no-transform".into());
    }
    attributes
}

impl Store for BucketStore {
    fn info(&self) -> StoreInfo {
        self.info.clone()
    }

    fn list_page(&self, query: &ListQuery, deadline: Deadline) -> Result<ListPage> {
        if query.collection.is_some() {
            return Err(StoreError::new(
                ErrorKind::Unsupported,
                "collections are resolved by who knows the schema",
            ));
        }
        let limit = query.limit.unwrap_or(MAX_PAGE).clamp(1, MAX_PAGE);
        let prefix = query.prefix.as_deref().unwrap_or_default();
        let after = query.after.as_deref().unwrap_or_default();
        let mut items = Vec::new();
        // The list begins behind a key; the prefix itself may be one.
        let from = if after < prefix { prefix } else { after };
        if after < prefix
            && let Some(key) = Key::new(prefix).filter(Key::is_valid)
        {
            let path = self.path(&key)?;
            match self.wait(deadline, self.bucket.objects.head(&path))? {
                Ok(found) => items.push(item(key, &found)),
                Err(Error::NotFound { .. }) => {}
                Err(error) => return Err(failed(error, None)),
            }
        }
        let offset = Path::from(format!("{}/{SIGN}{from}", self.folder));
        let mut objects = self
            .bucket
            .objects
            .list_with_offset(Some(&self.folder), &offset);
        let listed = async {
            while items.len() <= limit
                && let Some(object) = objects.try_next().await?
            {
                let name = object.location.filename().unwrap_or_default();
                let key = name.strip_prefix(SIGN).unwrap_or_default();
                if !key.starts_with(prefix) {
                    // What comes in order is past the prefix for good.
                    break;
                }
                if let Some(key) = Key::new(key) {
                    items.push(item(key, &object));
                }
            }
            Ok(())
        };
        self.wait(deadline, listed)?
            .map_err(|error| failed(error, None))?;
        let more = items.len() > limit;
        items.truncate(limit);
        let next = items
            .last()
            .filter(|_| more)
            .map(|last| last.key.as_str().into());
        Ok(ListPage { items, next })
    }

    fn head(&self, key: &Key, deadline: Deadline) -> Result<RecordMeta> {
        let path = self.path(key).map_err(|_| Self::absent(key))?;
        let options = GetOptions {
            head: true,
            ..GetOptions::default()
        };
        let found = self
            .wait(deadline, self.bucket.objects.get_opts(&path, options))?
            .map_err(|error| failed(error, Some(key)))?;
        Ok(meta(&found.meta, &found.attributes))
    }

    fn get(&self, key: &Key, request: &GetRequest, deadline: Deadline) -> Result<GetOutcome> {
        let path = self.path(key).map_err(|_| Self::absent(key))?;
        if let Some(Validator::ETag(known)) = &request.if_none_match
            && self.head(key, deadline)?.etag.as_ref() == Some(known)
        {
            return Ok(GetOutcome::NotModified);
        }
        let range = request.range.as_ref().map(|range| match range.end {
            u64::MAX => GetRange::Offset(range.start),
            end => GetRange::Bounded(range.start..end),
        });
        let options = GetOptions {
            if_match: request.if_match.as_ref().map(own_tag),
            range,
            ..GetOptions::default()
        };
        let found = match self.wait(deadline, self.bucket.objects.get_opts(&path, options))? {
            Ok(found) => found,
            Err(error) => return Err(failed(error, Some(key))),
        };
        let meta = meta(&found.meta, &found.attributes);
        if request.if_match.is_some() && request.if_match != meta.etag {
            return Err(changed(key));
        }
        let range = request.range.is_some().then(|| found.range.clone());
        Ok(GetOutcome::Found(Fetched {
            is_delimited: true,
            meta,
            range,
            body: Box::new(Body {
                stream: found.into_stream(),
                current: bytes::Bytes::new(),
                bucket: self.bucket.clone(),
            }),
        }))
    }

    fn put(
        &self,
        key: &Key,
        request: &PutRequest,
        body: Upload<'_>,
        deadline: Deadline,
    ) -> Result<RecordMeta> {
        let path = self.path(key)?;
        let mode = self.mode(key, &path, request, deadline)?;
        let mut from_file;
        let mut from_bytes;
        let (reader, announced): (&mut dyn Read, Option<u64>) = match body {
            Upload::Bytes(bytes) => {
                from_bytes = bytes;
                (&mut from_bytes, None)
            }
            Upload::File(file, size) => {
                from_file = FromFile { file, at: 0 };
                (&mut from_file, Some(size))
            }
            Upload::Stream(stream, size) => (stream, size),
        };
        let deadline = deadline.later(upload_allowance(announced.unwrap_or_default()));
        let version: String = repeat_with(fastrand::alphanumeric)
            .take(VERSION_LEN)
            .collect();
        let attributes = attributes(request, &version);
        let first = fill(reader, PART).map_err(broken)?;
        let (size, etag) = if first.len() < PART {
            let size = first.len() as u64;
            check_length(size, announced).map_err(|error| error.with_key(key))?;
            let options = PutOptions {
                mode,
                attributes,
                ..PutOptions::default()
            };
            let put = self
                .bucket
                .objects
                .put_opts(&path, PutPayload::from(first), options);
            let done = self
                .wait(deadline, put)?
                .map_err(|error| failed(error, Some(key)))?;
            (size, done.e_tag)
        } else {
            // The library's uploads in parts have no conditions: the best that can be done is to
            // look once more when all is there.
            let holds = || self.mode(key, &path, request, deadline).map(drop);
            self.put_parts(
                &path,
                attributes,
                first,
                (reader, announced),
                &holds,
                deadline,
            )
            .map_err(|error| error.with_key(key))?
        };
        Ok(RecordMeta {
            content_type: request.content_type.clone(),
            encoding: request.encoding.clone(),
            stored_size: Some(size),
            etag: tag(etag.as_deref(), Some(&version)),
            last_modified: None,
            accepts_ranges: true,
        })
    }

    fn delete(&self, key: &Key, deadline: Deadline) -> Result<()> {
        let Ok(path) = self.path(key) else {
            return Ok(());
        };
        match self.wait(deadline, self.bucket.objects.delete(&path))? {
            Ok(()) | Err(Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(failed(error, Some(key))),
        }
    }
}

impl BucketStore {
    /// Returns how a record is to be put, so that the request's conditions hold then.
    fn mode(
        &self,
        key: &Key,
        path: &Path,
        request: &PutRequest,
        deadline: Deadline,
    ) -> Result<PutMode> {
        if request.if_match.is_none() && !request.if_absent {
            return Ok(PutMode::Overwrite);
        }
        let options = GetOptions {
            head: true,
            ..GetOptions::default()
        };
        let found = match self.wait(deadline, self.bucket.objects.get_opts(path, options))? {
            Ok(found) => Some(found),
            Err(Error::NotFound { .. }) => None,
            Err(error) => return Err(failed(error, Some(key))),
        };
        match (&request.if_match, found) {
            (None, None) => Ok(PutMode::Create),
            (Some(wanted), Some(found))
                if meta(&found.meta, &found.attributes).etag.as_ref() == Some(wanted) =>
            {
                // Google wants the version, the others the tag.
                Ok(PutMode::Update(UpdateVersion {
                    e_tag: found.meta.e_tag,
                    version: found.meta.version,
                }))
            }
            _ => Err(changed(key)),
        }
    }
}

fn changed(key: &Key) -> StoreError {
    let message = "the record is no longer the version that was asked for";
    StoreError::new(ErrorKind::Changed, message).with_key(key)
}

fn item(key: Key, object: &ObjectMeta) -> ListItem {
    ListItem {
        key,
        stored_size: Some(object.size),
        modified: Some(object.last_modified.into()),
        public_url: None,
    }
}

/// Reads a file from its start, whatever its cursor says.
struct FromFile<'a> {
    file: &'a File,
    at: u64,
}

impl Read for FromFile<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.file.read_at(buffer, self.at)?;
        self.at += n as u64;
        Ok(n)
    }
}
