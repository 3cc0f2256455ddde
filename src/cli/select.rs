//! Selects records by words of the command line: keys, or patterns that a listing answers.

use globset::{GlobSet, GlobSetBuilder};

use super::direct::{Direct, failure, shown};
use super::error::{CliError, Kind};
use crate::copy::filter::pattern;
use crate::store::pager::Pager;
use crate::store::{Key, ListItem, ListQuery, StoreError};

/// The most that is remembered of what a listing shows to match, in bytes.
const MOST_SELECTED: usize = 256 << 20;

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
/// That a pattern is none, that the store cannot be listed, or that too many match.
pub fn select(
    direct: &Direct,
    keys: Vec<Key>,
    prefix: Option<&str>,
) -> Result<Selection, CliError> {
    let wanted = Wanted::new(keys, prefix);
    let mut listed = Vec::new();
    let mut bytes = 0;
    let unmatched = wanted.each(direct, &mut |item| {
        bytes += item.key.as_str().len() + size_of::<ListItem>();
        listed.push(item);
        match bytes {
            ..=MOST_SELECTED => Ok(()),
            _ => Err(CliError::failed("too many records match to be remembered")
                .hinted("name fewer: by a narrower pattern, or by --prefix")),
        }
    })?;
    Ok(Selection {
        named: wanted.named,
        listed,
        unmatched,
    })
}

/// What words of the command line ask for.
#[derive(Debug)]
pub struct Wanted {
    /// Records that are named one by one, in the order of the words.
    pub named: Vec<Key>,
    patterns: Vec<Key>,
    prefix: Option<String>,
}

impl Wanted {
    /// Takes `keys`, of which some may be patterns, and what all others begin with.
    pub fn new(keys: Vec<Key>, prefix: Option<&str>) -> Self {
        let (patterns, named) = keys.into_iter().partition(|key| is_pattern(key.as_str()));
        Self {
            named,
            patterns,
            prefix: prefix.map(str::to_owned),
        }
    }

    /// Hands each record that a listing shows to match to `take`, page by page as they come; returns
    /// the patterns that nothing matches.
    ///
    /// # Errors
    /// That a pattern is none, that the store cannot be listed, and those of `take`.
    pub fn each(
        &self,
        direct: &Direct,
        take: &mut dyn FnMut(ListItem) -> Result<(), CliError>,
    ) -> Result<Vec<String>, CliError> {
        if self.patterns.is_empty() && self.prefix.is_none() {
            return Ok(Vec::new());
        }
        let words: Vec<&str> = self.patterns.iter().map(Key::as_str).collect();
        let set = globs(&words)?;
        // What is a key is meant as one, however it looks; for each word, as far as that is known.
        let mut is_literal = vec![None; words.len()];
        let mut matched = vec![false; words.len()];
        let mut found_any = false;
        let mut pager = Pager::new(ListQuery {
            prefix: self
                .prefix
                .as_deref()
                .map(Into::into)
                .or_else(|| common_start(&words)),
            ..ListQuery::default()
        });
        while let Some(page) = pager
            .next_page(&*direct.store, direct.deadline())
            .map_err(cannot_list)?
        {
            for item in page {
                let text = item.key.as_str();
                let mut wanted = words.is_empty();
                if let Some(at) = words.iter().position(|word| *word == text) {
                    (is_literal[at], matched[at], wanted) = (Some(true), true, true);
                }
                for at in set.matches(text) {
                    let is_key = match is_literal[at] {
                        Some(known) => known,
                        // Keys rise: it would have come.
                        None if words[at] < text => false,
                        None => is_key(direct, words[at])?,
                    };
                    is_literal[at] = Some(is_key);
                    if !is_key {
                        (matched[at], wanted) = (true, true);
                    }
                }
                if wanted {
                    found_any = true;
                    take(item)?;
                }
            }
        }
        let missing = words.iter().zip(matched).filter(|(_, matched)| !matched);
        let mut unmatched: Vec<String> = missing.map(|(word, _)| (*word).to_owned()).collect();
        if let Some(prefix) = self
            .prefix
            .as_ref()
            .filter(|_| words.is_empty() && !found_any)
        {
            unmatched.push(format!("{prefix}*"));
        }
        Ok(unmatched)
    }
}

/// Returns whether there is a record of this very key: it sorts before all others that begin with it.
fn is_key(direct: &Direct, word: &str) -> Result<bool, CliError> {
    let query = ListQuery {
        prefix: Some(word.into()),
        limit: Some(1),
        ..ListQuery::default()
    };
    let mut pager = Pager::new(query);
    let page = pager
        .next_page(&*direct.store, direct.deadline())
        .map_err(cannot_list)?;
    let first = page.and_then(|page| page.into_iter().next());
    Ok(first.is_some_and(|item| item.key.as_str() == word))
}

fn cannot_list(error: StoreError) -> CliError {
    failure("cannot list the store", &error)
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
