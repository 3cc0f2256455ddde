//! The secret that all servers of a bucket share, from which the signing keys of links follow.

use object_store::PutMode;

use super::Bucket;
use crate::base::random::letters;
use crate::store::{ErrorKind, Result, StoreError};

/// The object that holds it, beside `catalog`.
const OBJECT: [&str; 1] = ["secret"];

/// Letters and digits of a secret: 256 bits.
const LENGTH: usize = 43;

impl Bucket {
    /// Returns the secret; the first server makes it.
    ///
    /// # Errors
    /// That the bucket cannot be read, holds none and takes none, or holds something else.
    pub fn secret(&self) -> Result<String> {
        if let Some(found) = self.kept_secret()? {
            return Ok(found);
        }
        let made = letters(LENGTH).map_err(|error| {
            StoreError::new(ErrorKind::Disk, "there are no random numbers").with_source(error)
        })?;
        if self.write(&OBJECT, made.clone().into_bytes(), PutMode::Create)? {
            return Ok(made);
        }
        self.kept_secret()?.ok_or_else(damaged)
    }

    fn kept_secret(&self) -> Result<Option<String>> {
        let Some(found) = self.read(&OBJECT)? else {
            return Ok(None);
        };
        let text = String::from_utf8(found.bytes).map_err(|_| damaged())?;
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
