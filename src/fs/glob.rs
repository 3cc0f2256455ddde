//! Patterns of names.

use globset::{GlobBuilder, GlobMatcher};

use super::Result;
use crate::store::{ErrorKind, StoreError};

/// Returns what matches a pattern.
pub(super) fn matcher(glob: &str) -> Result<GlobMatcher> {
    let glob = GlobBuilder::new(glob).build().map_err(|error| {
        StoreError::new(
            ErrorKind::InvalidKey,
            format!("the pattern is invalid: {error}"),
        )
    })?;
    Ok(glob.compile_matcher())
}

/// Returns what every match of a glob begins with.
pub(super) fn literal_start(glob: &str) -> String {
    glob.chars()
        .take_while(|character| !"*?[{\\".contains(*character))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_glob_is_listed_from_its_literal_start() {
        assert_eq!(literal_start("2026-*.json"), "2026-");
        assert_eq!(literal_start("{a,b}"), "");
        let matches = |glob: &str, name: &str| matcher(glob).expect("a glob").is_match(name);
        assert!(matches("*.{html,json}", "x.json") && !matches("*.html", "x.json"));
        assert!(matches("a?[0-9]", "ab7") && !matches("a?[0-9]", "ab"));
        assert!(matcher("[").is_err());
    }
}
