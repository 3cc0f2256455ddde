//! The secret that all servers of a bucket share, from which the signing keys of links follow.

use object_store::PutMode;

use super::Bucket;
use super::objects::Objects;
use crate::base::clock::Deadline;
use crate::base::random::letters;
use crate::store::{ErrorKind, Result, StoreError};

/// The object that holds it, next to `catalog`.
const OBJECT: [&str; 1] = ["secret"];

/// Letters and digits of a secret: 256 bits.
const LENGTH: usize = 43;

impl Bucket {
    /// Returns the secret; the first server makes it.
    ///
    /// # Errors
    /// That the bucket cannot be read, holds none and takes none, or holds something else.
    pub fn secret(&self, deadline: Deadline) -> Result<String> {
        let made = letters(LENGTH).map_err(|error| {
            StoreError::new(ErrorKind::Disk, "there are no random numbers").with_source(error)
        })?;
        self.wait(deadline, self.objects.secret(made))?
    }
}

impl Objects {
    async fn secret(&self, made: String) -> Result<String> {
        if let Some(found) = self.kept_secret().await? {
            return Ok(found);
        }
        let payload = made.clone().into();
        match self
            .put_small(&self.path(&OBJECT), payload, PutMode::Create)
            .await?
        {
            Some(_) => Ok(made),
            None => self.kept_secret().await?.ok_or_else(damaged),
        }
    }

    async fn kept_secret(&self) -> Result<Option<String>> {
        let Some(found) = self.get_small(&self.path(&OBJECT)).await? else {
            return Ok(None);
        };
        let text = String::from_utf8_lossy(&found.value);
        let text = text.trim();
        match text.len() >= LENGTH && text.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
            true => Ok(Some(text.to_owned())),
            false => Err(damaged()),
        }
    }
}

fn damaged() -> StoreError {
    StoreError::new(
        ErrorKind::Protocol,
        "the object 'secret' of the bucket holds no secret",
    )
    .with_hint("remove it to get a new one; links that were signed with the old one end")
}
