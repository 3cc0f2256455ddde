//! Store references between the command line and [`crate::store::reference`].

use std::path::Path;

use super::error::CliError;
use crate::store::reference::{RemoteRef, StoreRef};

/// Parses what the user typed for STORE.
///
/// A folder that exists wins over what only looks like `USER/NAME`, a word that is no id of the
/// platform's, or no reference at all.
///
/// # Errors
/// A usage error that shows the accepted forms.
pub fn parse(typed: &[String]) -> Result<StoreRef, CliError> {
    let parsed = StoreRef::parse(typed);
    if let [one] = typed
        && Path::new(one).is_dir()
    {
        let by_path = match &parsed {
            Ok(StoreRef::Remote(RemoteRef::Named { .. })) => one.contains('/'),
            Ok(StoreRef::Remote(remote)) => remote.mistaken_id().is_some(),
            Ok(_) => false,
            Err(_) => true,
        };
        if by_path {
            return Ok(StoreRef::Directory(one.into()));
        }
    }
    parsed.map_err(|error| CliError::usage(error.to_string()))
}
