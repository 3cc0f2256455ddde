//! The secret from which the signing keys of stores follow, and the ids of stores that have none of
//! their own: random, and kept, so that links outlive the server that signed them. It is not
//! derived from a token: the receiver of a link could test guesses of the token against it.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use super::folders::metadata::derived_id;
use crate::base::folders::private_dir;
use crate::base::random::letters;
use crate::base::redact::Secret;
use crate::local::directory::dir::Dir;
use crate::local::directory::names::SECRET;

/// Letters and digits of a secret: 256 bits.
const LENGTH: usize = 43;

/// Larger files hold no secret, in bytes.
const MOST: u64 = 1024;

/// Returns the secret of a folder of stores: that in the folder, or where the folder may not be
/// written to the one in `state`, a folder of this user.
///
/// # Errors
/// That there is none and none can be kept.
pub(super) fn of_folder(root: &Path, writable: bool, state: Option<&Path>) -> io::Result<Secret> {
    let folder = Dir::open(root)?;
    match read(&folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        // That of another user who serves the same folder.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {}
        found => return found,
    }
    if writable && let Ok(made) = make(&folder) {
        return Ok(made);
    }
    let state: PathBuf = state
        .ok_or_else(|| io::Error::from(io::ErrorKind::PermissionDenied))?
        .join(derived_id(&format!("folder {}", root.display())));
    private_dir(&state)?;
    let folder = Dir::open(&fs::canonicalize(&state)?)?;
    match read(&folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => make(&folder),
        found => found,
    }
}

/// Returns the secret that `kept` gives, else one that ends with this server.
pub(super) fn or_passing<E: std::fmt::Display>(kept: Result<Secret, E>) -> Secret {
    kept.unwrap_or_else(|error| {
        tracing::warn!(
            "signed links end with this server, since their secret cannot be kept next to the \
             stores: {error}"
        );
        passing()
    })
}

/// Returns a secret that nothing keeps.
pub(super) fn passing() -> Secret {
    // A kernel without random numbers starts no TLS and no server either.
    letters(LENGTH).map_or_else(
        |error| {
            tracing::error!(%error, "there are no random numbers");
            Secret::new(format!("{:?}", std::time::Instant::now()))
        },
        Secret::new,
    )
}

fn read(folder: &Dir) -> io::Result<Secret> {
    let file = folder.file(SECRET)?;
    let damaged = || {
        let message = format!("the file {SECRET} holds no secret; remove it to get a new one");
        io::Error::new(io::ErrorKind::InvalidData, message)
    };
    if !file.metadata()?.is_file() {
        return Err(damaged());
    }
    let mut text = String::new();
    file.take(MOST).read_to_string(&mut text)?;
    let text = text.trim();
    match text.len() >= LENGTH && text.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
        true => Ok(Secret::new(text)),
        false => Err(damaged()),
    }
}

/// Makes a secret, unless another server makes one at the same time.
fn make(folder: &Dir) -> io::Result<Secret> {
    let unfinished = format!("{SECRET}-{}", letters(12)?);
    let mut file: File = folder.create_private(&unfinished)?;
    let secret = letters(LENGTH)?;
    let made = file
        .write_all(format!("{secret}\n").as_bytes())
        .and_then(|()| file.sync_all())
        .and_then(|()| folder.rename_new(&unfinished, SECRET));
    match made {
        Ok(()) => folder.sync().map(|()| Secret::new(secret)),
        Err(error) => {
            // It may be full as well as read-only.
            let _ = folder.remove(&unfinished);
            match error.kind() {
                io::ErrorKind::AlreadyExists => read(folder),
                _ => Err(error),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_secret_is_made_once_for_its_owner_only() {
        let root = tempfile::tempdir().expect("a folder");
        let first = of_folder(root.path(), true, None).expect("a secret");
        assert_eq!(first.expose().len(), LENGTH);
        assert_eq!(of_folder(root.path(), true, None).expect("it"), first);
        assert_eq!(of_folder(root.path(), false, None).expect("it"), first);
        let mode = fs::metadata(root.path().join(SECRET)).expect("it");
        assert_eq!(mode.permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(root.path()).expect("it").count(), 1);
        fs::write(root.path().join(SECRET), "short").expect("a file");
        assert!(of_folder(root.path(), true, None).is_err());
    }

    #[test]
    fn what_may_not_be_written_to_has_its_secret_elsewhere() {
        let (root, state) = (
            tempfile::tempdir().expect("a folder"),
            tempfile::tempdir().expect("a folder"),
        );
        assert!(of_folder(root.path(), false, None).is_err());
        let state = state.path().join("serve");
        let secret = of_folder(root.path(), false, Some(&state)).expect("a secret");
        let again = of_folder(root.path(), false, Some(&state)).expect("it");
        assert_eq!(again, secret);
        assert_eq!(fs::read_dir(root.path()).expect("it").count(), 0);
    }
}
