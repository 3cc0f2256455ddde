//! Selects records by words of the command line: keys, or patterns that a listing answers.

use globset::{GlobSet, GlobSetBuilder};

use super::direct::{Direct, failure, shown};
use super::error::{CliError, Kind};
use crate::copy::filter::pattern;
use crate::store::pager::Pager;
use crate::store::{Key, ListItem, ListQuery};

/// The records that words mean.
#[derive(Debug, Default)]
pub struct Selection {
    /// Those that were named one by one, in the order of the words; whether they are there is not
    /// known.
    pub named: Vec<Key>,
    /// Those that a listing has shown to match a pattern or prefix.
    pub listed: Vec<ListItem>,
    /// Patterns that nothing matches.
    pub unmatched: Vec<String>,
}

/// Returns whether a word is a pattern. No key of the platform holds such characters.
pub fn is_pattern(word: &str) -> bool {
    word.contains(['*', '?', '[', '{'])
}

/// Refuses words that look like patterns and are none, before any store is asked.
///
/// # Errors
/// What is wrong with a pattern.
pub fn check_patterns(words: &[String]) -> Result<(), CliError> {
    let patterns: Vec<&str> = words
        .iter()
        .map(String::as_str)
        .filter(|word| is_pattern(word))
        .collect();
    globs(&patterns).map(drop)
}

/// Finds the records that `keys` and `prefix` mean; a key that is there as it is written is no
/// pattern.
///
/// # Errors
/// That a pattern is none, or that the store cannot be listed.
pub fn select(
    direct: &Direct,
    keys: Vec<Key>,
    prefix: Option<&str>,
) -> Result<Selection, CliError> {
    let (patterns, named): (Vec<Key>, Vec<Key>) =
        keys.into_iter().partition(|key| is_pattern(key.as_str()));
    let mut selection = Selection {
        named,
        ..Selection::default()
    };
    if patterns.is_empty() && prefix.is_none() {
        return Ok(selection);
    }
    let words: Vec<&str> = patterns.iter().map(Key::as_str).collect();
    let set = globs(&words)?;
    let mut matched = vec![false; words.len()];
    let query = ListQuery {
        prefix: prefix.map(Into::into).or_else(|| common_start(&words)),
        ..ListQuery::default()
    };
    let mut literal = vec![false; words.len()];
    let mut pager = Pager::new(query);
    while let Some(page) = pager
        .next_page(&*direct.store, direct.deadline())
        .map_err(|error| failure("cannot list the store", &error))?
    {
        for item in page {
            let text = item.key.as_str();
            if let Some(at) = words.iter().position(|word| *word == text) {
                literal[at] = true;
            }
            let hits = set.matches(text);
            for at in &hits {
                matched[*at] = true;
            }
            if words.is_empty() || !hits.is_empty() || words.contains(&text) {
                selection.listed.push(item);
            }
        }
    }
    // What is a key is meant as one, however it looks.
    if literal.contains(&true) {
        let kept: Vec<&str> = words
            .iter()
            .zip(&literal)
            .filter(|(_, literal)| !**literal)
            .map(|(word, _)| *word)
            .collect();
        let rest = globs(&kept)?;
        selection.listed.retain(|item| {
            let text = item.key.as_str();
            words.contains(&text) || !kept.is_empty() && rest.is_match(text)
        });
    }
    let found = matched.iter().zip(&literal).map(|(a, b)| *a || *b);
    selection.unmatched = words
        .iter()
        .zip(found)
        .filter(|(_, found)| !found)
        .map(|(word, _)| (*word).to_owned())
        .collect();
    if let Some(prefix) = prefix.filter(|_| words.is_empty() && selection.listed.is_empty()) {
        selection.unmatched.push(format!("{prefix}*"));
    }
    Ok(selection)
}

/// Returns the failure of patterns that match nothing.
pub fn no_match(patterns: &[String], store: &str) -> CliError {
    let shown: Vec<String> = patterns.iter().map(|word| format!("'{word}'")).collect();
    CliError::of(
        Kind::NotFound,
        format!("no key of {store} matches {}", shown.join(", ")),
    )
}

/// Returns the failure of a record that is not there.
pub fn no_record(key: &Key, store: &str) -> CliError {
    CliError::of(
        Kind::NotFound,
        format!("no record {} in {store}", shown(key)),
    )
}

fn globs(words: &[&str]) -> Result<GlobSet, CliError> {
    let mut set = GlobSetBuilder::new();
    for word in words {
        set.add(pattern(word).map_err(CliError::usage)?);
    }
    set.build()
        .map_err(|error| CliError::usage(error.to_string()))
}

/// Returns what all keys that match begin with, so that less is listed.
fn common_start(words: &[&str]) -> Option<std::sync::Arc<str>> {
    let [word] = words else { return None };
    // A key that is written like the pattern begins with this, too.
    let start = &word[..word.find(['*', '?', '[', '{', '\\']).unwrap_or(word.len())];
    (!start.is_empty()).then(|| start.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_are_told_from_keys() {
        for word in ["*.json", "a?", "[ab]", "{a,b}"] {
            assert!(is_pattern(word), "{word}");
        }
        assert!(!is_pattern("a!'()-_.z"));
        assert_eq!(common_start(&["img-*"]).as_deref(), Some("img-"));
        assert_eq!(common_start(&["*"]), None);
        assert_eq!(common_start(&["a*", "b*"]), None);
        assert!(globs(&["[a"]).is_err());
    }
}
