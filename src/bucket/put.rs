//! Records on their way into a bucket.

use object_store::path::Path;
use object_store::{
    Attribute, Attributes, ObjectMeta, PutMode, PutMultipartOptions, PutOptions, PutPayload,
    PutResult, UpdateVersion,
};
use tokio::sync::{OwnedMutexGuard, SemaphorePermit};

use super::Bucket;
use super::errors::failed;
use super::layout::Use;
use super::objects::{Lookup, VERSION, mark};
use super::pieces::{PART, Piece, Pieces};
use super::store::{BucketStore, meta, tag};
use super::transport::{Condition, under};
use crate::base::clock::Deadline;
use crate::store::{
    ErrorKind, Key, PutRequest, RecordMeta, Result, Store, StoreError, Upload, upload_allowance,
};

impl BucketStore {
    /// Stores a record whole: in one request, or in parts that readers see when all are there.
    pub(super) fn send(
        &self,
        key: &Key,
        request: &PutRequest,
        body: Upload<'_>,
        deadline: Deadline,
    ) -> Result<RecordMeta> {
        let path = self.path(key)?;
        let announced = body.size();
        let deadline = deadline.later(upload_allowance(announced.unwrap_or_default()));
        let mut pieces = Pieces::of(body);
        let first = pieces.next()?;
        let mark = mark();
        let attributes = attributes(request, &mark);
        let (size, done) = if first.len() < PART {
            let size = first.len() as u64;
            check_length(size, announced)?;
            let (_room, payload) = self.load(first, deadline)?;
            let _alone = self.alone(request, deadline)?;
            let mode = self.mode(key, &path, request, deadline)?;
            let options = PutOptions {
                mode,
                attributes,
                ..PutOptions::default()
            };
            let objects = &self.bucket.objects;
            let id = self.info().id;
            let put = objects.put_record(&id, &path, payload, options, &mark);
            (size, self.bucket.wait(deadline, put)??)
        } else {
            let upload = Parts {
                store: self,
                key,
                path: &path,
                request,
                mark: &mark,
                announced,
                deadline,
            };
            upload.send(first, &mut pieces, attributes)?
        };
        Ok(RecordMeta {
            content_type: request.content_type.clone(),
            encoding: request.encoding.clone(),
            stored_size: Some(size),
            etag: tag(done.e_tag.as_deref(), Some(&mark)),
            last_modified: None,
            accepts_ranges: true,
        })
    }

    /// Takes the memory for a piece, as soon as there is room.
    fn load(
        &self,
        piece: Piece<'_>,
        deadline: Deadline,
    ) -> Result<(SemaphorePermit<'_>, PutPayload)> {
        let size = u32::try_from(piece.len() / 1024).unwrap_or(u32::MAX);
        let room = self
            .bucket
            .wait(deadline, self.bucket.room.acquire_many(size))?;
        let room = room.map_err(|_| {
            let message = "this server is being stopped, and the upload with it";
            StoreError::new(ErrorKind::Server, message).with_status(503, None)
        })?;
        Ok((room, piece.load()?))
    }

    /// Keeps other puts of this process out where the storage keeps to no conditions.
    fn alone(
        &self,
        request: &PutRequest,
        deadline: Deadline,
    ) -> Result<Option<OwnedMutexGuard<()>>> {
        if request.if_match.is_none() && !request.if_absent {
            return Ok(None);
        }
        self.bucket.alone(deadline)
    }

    /// Returns how to put a record so that the request's conditions hold then.
    fn mode(
        &self,
        key: &Key,
        path: &Path,
        request: &PutRequest,
        deadline: Deadline,
    ) -> Result<PutMode> {
        let alone = self.bucket.objects.is_for(Use::Alone);
        match &request.if_match {
            None if !request.if_absent => return Ok(PutMode::Overwrite),
            // The storage itself looks whether there is one.
            None if !alone => return Ok(PutMode::Create),
            _ => {}
        }
        let asked = self.bucket.objects.head(path);
        let found: Option<(ObjectMeta, Attributes)> = match self.bucket.wait(deadline, asked)? {
            Ok(found) => Some(found),
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            Err(error) => return Err(error.with_key(key)),
        };
        match (&request.if_match, found) {
            (None, None) => Ok(PutMode::Create),
            (Some(wanted), Some((found, attributes)))
                if meta(&found, &attributes).etag.as_ref() == Some(wanted) =>
            {
                // Google wants the version, the others the tag.
                Ok(PutMode::Update(UpdateVersion {
                    e_tag: found.e_tag,
                    version: found.version,
                }))
            }
            _ => Err(changed(key)),
        }
    }
}

/// An upload in parts.
struct Parts<'a> {
    store: &'a BucketStore,
    key: &'a Key,
    path: &'a Path,
    request: &'a PutRequest,
    mark: &'a str,
    announced: Option<u64>,
    deadline: Deadline,
}

impl Parts<'_> {
    fn bucket(&self) -> &Bucket {
        &self.store.bucket
    }

    fn send(
        &self,
        first: Piece<'_>,
        pieces: &mut Pieces<'_>,
        attributes: Attributes,
    ) -> Result<(u64, PutResult)> {
        let objects = &self.bucket().objects;
        let _under_way = self.bucket().uploads.begin();
        let options = PutMultipartOptions {
            attributes,
            ..PutMultipartOptions::default()
        };
        let begun = objects.store.put_multipart_opts(self.path, options);
        let begun = self.bucket().wait(self.deadline, begun)?;
        let mut upload = begun.map_err(|error| failed(error, Some(self.key)))?;
        let sent = (|| {
            let (mut piece, mut size) = (first, 0);
            loop {
                let last = piece.len() < PART;
                size += piece.len() as u64;
                if piece.len() > 0 {
                    let (_room, payload) = self.store.load(piece, self.deadline)?;
                    let part = upload.put_part(payload);
                    let part = self.bucket().wait(self.deadline, part)?;
                    part.map_err(|error| failed(error, Some(self.key)))?;
                }
                if last {
                    check_length(size, self.announced)?;
                    break;
                }
                piece = pieces.next()?;
            }
            let _alone = self.store.alone(self.request, self.deadline)?;
            let condition = self.condition()?;
            let completing = async {
                let done = match under(condition, upload.complete()).await {
                    Ok(done) => done,
                    // Storages forget a complete upload: a repeated request is told that there is
                    // none.
                    Err(error) => match objects.lookup(self.path, self.mark).await {
                        Ok(Lookup::Own(done)) => done,
                        _ => return Err(completion(error, self.key)),
                    },
                };
                objects.keep(&self.store.info().id, self.path).await?;
                Ok(done)
            };
            Ok((size, self.bucket().wait(self.deadline, completing)??))
        })();
        if sent.is_err() {
            let aborted = self.bucket().wait(Deadline::after(ABORT), upload.abort());
            if let Ok(Err(error)) = aborted {
                tracing::info!(%error, "an upload that ended early cannot be aborted, or is complete");
            }
        }
        sent
    }

    /// Returns the condition of the last step. Storages that keep to none then are asked before it.
    fn condition(&self) -> Result<Option<Condition>> {
        if self.request.if_match.is_none() && !self.request.if_absent {
            return Ok(None);
        }
        let mode = self
            .store
            .mode(self.key, self.path, self.request, self.deadline)?;
        let asked = self.bucket().objects.completes_under_conditions();
        let kept = self.bucket().wait(self.deadline, asked)??;
        Ok(match mode {
            PutMode::Create if !kept => match self.store.head(self.key, self.deadline) {
                Ok(_) => return Err(changed(self.key)),
                Err(error) if error.kind() == ErrorKind::NotFound => None,
                Err(error) => return Err(error),
            },
            _ if !kept => None,
            PutMode::Create => Some(Condition::Absent),
            PutMode::Update(version) => Some(Condition::Same(version)),
            PutMode::Overwrite => None,
        })
    }
}

/// How long the end of an upload that failed may take.
const ABORT: std::time::Duration = std::time::Duration::from_secs(10);

/// What a completion that failed means: the record is not stored.
fn completion(error: object_store::Error, key: &Key) -> StoreError {
    match failed(error, Some(key)) {
        error if error.kind() == ErrorKind::NotFound => {
            let message = "the bucket forgot an upload before it was complete";
            StoreError::new(ErrorKind::Server, message)
                .with_status(503, None)
                .with_key(key)
                .with_source(error)
        }
        error => error,
    }
}

fn attributes(request: &PutRequest, mark: &str) -> Attributes {
    let content_type = request.content_type.as_deref();
    let content_type = content_type
        .unwrap_or("application/octet-stream")
        .to_owned();
    let mut attributes = Attributes::from_iter([
        (Attribute::ContentType, content_type),
        (VERSION, mark.to_owned()),
    ]);
    if let Some(encoding) = request.encoding.header_value() {
        attributes.insert(Attribute::ContentEncoding, encoding.to_owned().into());
        // Else Google decompresses gzip for clients that do not ask for it, and the bytes differ.
        attributes.insert(Attribute::CacheControl, "no-transform".into());
    }
    attributes
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

pub(super) fn changed(key: &Key) -> StoreError {
    let message = "the record is no longer the version that was asked for";
    StoreError::new(ErrorKind::Changed, message).with_key(key)
}
