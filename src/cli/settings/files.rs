//! Files and folders that arguments name.

use std::ffi::OsStr;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use crate::base::redact::Secret;
use crate::cli::error::CliError;

/// The longest token or signature that a file may hold.
const MAX_SECRET: u64 = 64 << 10;

/// Reads a token or signature from a file.
///
/// # Errors
/// That the file cannot be read, is empty or holds more than one line.
pub fn read_secret(what: &str, path: &Path) -> Result<Secret, CliError> {
    let shown = shown(path);
    let mut text = String::new();
    fs::File::open(path)
        .and_then(|file| file.take(MAX_SECRET).read_to_string(&mut text))
        .map_err(|error| {
            CliError::failed(format!("cannot read the {what} file {shown}")).caused_by(&error)
        })?;
    let text = text.trim();
    if text.is_empty() || text.contains(char::is_whitespace) {
        return Err(
            CliError::failed(format!("the {what} file {shown} does not hold a {what}"))
                .hinted(format!("it must hold the {what} and nothing else")),
        );
    }
    Ok(Secret::new(text))
}

/// Returns `path` as it is from everywhere.
///
/// # Errors
/// That there is no current folder.
pub fn absolute(path: &Path) -> Result<PathBuf, CliError> {
    std::path::absolute(path).map_err(|error| {
        CliError::failed(format!("cannot use the path {}", shown(path))).caused_by(&error)
    })
}

/// Returns `path` for an error message, unless it looks like a token.
fn shown(path: &Path) -> String {
    let name: &OsStr = path.as_os_str();
    if name.as_encoded_bytes().starts_with(b"apify_api_") {
        return "(not shown: it looks like a token)".to_owned();
    }
    path.display().to_string()
}
