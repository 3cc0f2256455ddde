//! The layout of a bucket, and the check that its storage honours conditions.

use std::time::Duration;

use futures_util::StreamExt;
use object_store::path::Path;
use object_store::{Error, PutMode, PutMultipartOptions, PutPayload, UpdateVersion};
use serde::{Deserialize, Serialize};

use super::Bucket;
use super::errors::failed;
use super::objects::Objects;
use super::transport::{Condition, under};
use crate::base::clock::Deadline;
use crate::store::{ErrorKind, Result, StoreError};

/// The layout that this version reads and writes. 1 was without this object.
const LAYOUT: u32 = 2;

/// The longest that the first questions to a bucket may take.
pub const CHECK: Duration = Duration::from_secs(20);

#[derive(Serialize, Deserialize)]
struct Layout {
    version: u32,
}

/// What a bucket is wanted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// It is only read.
    Read,
    /// Several servers may share it.
    Shared,
    /// No other server and no writable mount uses it.
    Alone,
}

impl Bucket {
    /// Asks whether the bucket can be used so.
    ///
    /// # Errors
    /// [`ErrorKind::Denied`], [`ErrorKind::Unsupported`] for the layout of a newer version and for
    /// a storage that ignores conditions, or that it cannot be asked.
    pub fn check(&self, wanted: Use, deadline: Deadline) -> Result<()> {
        // The first use stays.
        let _ = self.objects.wanted.set(wanted);
        self.wait(deadline, self.objects.check(wanted))?
    }

    /// Refuses a bucket that a newer version has laid out.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`], or that the bucket cannot be asked.
    pub fn must_be_known(&self, deadline: Deadline) -> Result<()> {
        self.wait(deadline, self.objects.must_be_known())?
    }
}

impl Objects {
    fn layout(&self) -> Path {
        self.path(&["layout"])
    }

    async fn check(&self, wanted: Use) -> Result<()> {
        if let Some(Err(error)) = self.store.list(Some(&self.root)).next().await {
            return Err(failed(error, None));
        }
        self.must_be_known().await?;
        if wanted == Use::Read {
            return Ok(());
        }
        let unwritable = |error: Error| match failed(error, None) {
            error if error.kind() == ErrorKind::Denied => {
                let message = "the bucket can be read but not written";
                StoreError::new(ErrorKind::Denied, message)
                    .with_hint(
                        "allow the credentials to write and delete, or serve with --read-only",
                    )
                    .with_source(error)
            }
            error => error,
        };
        let other = UpdateVersion {
            e_tag: Some("\"00000000000000000000000000000000\"".to_owned()),
            version: Some("1".to_owned()),
        };
        let mut ignored = false;
        // The first makes the object where there is none; neither of the others may.
        for (mode, may) in [
            (PutMode::Create, true),
            (PutMode::Create, false),
            (PutMode::Update(other), false),
        ] {
            match self
                .store
                .put_opts(&self.layout(), payload(), mode.into())
                .await
            {
                Ok(_) => ignored |= !may,
                Err(Error::AlreadyExists { .. } | Error::Precondition { .. }) => {}
                Err(error) => return Err(unwritable(error)),
            }
        }
        if ignored && wanted == Use::Shared {
            let message = "this storage ignores the conditions of writes (If-Match, If-None-Match)";
            return Err(StoreError::new(ErrorKind::Unsupported, message).with_hint(
                "servers that share it would overwrite each other's stores and records; \
                 --single-server goes on for a bucket that nothing else writes to",
            ));
        }
        Ok(())
    }

    async fn must_be_known(&self) -> Result<()> {
        let found = self.read::<Layout>(&self.layout()).await?;
        match found.map(|found| found.value.version) {
            Some(version) if version > LAYOUT => {
                let message = format!(
                    "a newer kvfs laid out this bucket: its layout is {version}, and this kvfs knows {LAYOUT}"
                );
                let error = StoreError::new(ErrorKind::Unsupported, message);
                Err(error.with_hint("update kvfs"))
            }
            _ => Ok(()),
        }
    }

    /// Returns whether uploads in parts keep to conditions when they are completed; asked once.
    pub(super) async fn completes_under_conditions(&self) -> Result<bool> {
        let asked = self.conditional_parts.get_or_try_init(|| async {
            // A probe of what must fail, on an object that is the same in any case.
            let path = self.layout();
            let made = self.store.put_opts(&path, payload(), PutMode::Create.into()).await;
            if let Err(error) = made
                && !matches!(error, Error::AlreadyExists { .. } | Error::Precondition { .. })
            {
                return Err(error);
            }
            let options = PutMultipartOptions::default();
            let mut upload = self.store.put_multipart_opts(&path, options).await?;
            upload.put_part(payload()).await?;
            match under(Some(Condition::Absent), upload.complete()).await {
                Ok(_) => Ok(false),
                Err(error) => {
                    // Where there is nothing to abort that is fine.
                    let _ = upload.abort().await;
                    match failed(error, None) {
                        error if error.kind() == ErrorKind::Changed => Ok(true),
                        error => {
                            tracing::info!(%error, "the storage completes no uploads under conditions");
                            Ok(false)
                        }
                    }
                }
            }
        });
        asked.await.copied().map_err(|error| failed(error, None))
    }
}

fn payload() -> PutPayload {
    format!("{{\n  \"version\": {LAYOUT}\n}}").into()
}
