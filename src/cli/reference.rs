//! Store references between the command line and [`crate::store::reference`].

use super::error::CliError;
use crate::store::reference::StoreRef;

/// Parses what the user typed for STORE.
///
/// # Errors
/// A usage error that shows the accepted forms.
pub fn parse(typed: &[String]) -> Result<StoreRef, CliError> {
    StoreRef::parse(typed).map_err(|error| CliError::usage(error.to_string()))
}

/// Returns `reference` as people write it, without secrets.
pub fn describe(reference: &StoreRef) -> String {
    reference.to_string()
}
