//! Decides which new names are records, and which are temporary names of programs. Pure.
//!
//! Editors write a copy under another name and rename it, leave swap files and probe whether they
//! may write. None of that may become a record. But a name alone does not always decide: `sed`'s
//! `sedXXXXXX` may be a word, `4913` (vim's probe) a number, `x-journal` (SQLite's) a journal. So a
//! name that could be a record's own is scratch only where something besides it says so, and else
//! at most *temporary*: its upload waits a moment for the final name.

use std::ffi::OsStr;
use std::sync::LazyLock;

use globset::{Glob, GlobMatcher, GlobSet};

use crate::store::record::is_key_byte;

/// Names that are scratch whatever else there is.
static SCRATCH: LazyLock<GlobSet> = LazyLock::new(|| {
    known(&[
        ".*.sw?",
        // vim makes it to see whether names are cut off.
        ".*.sw?x",
        "*~",
        ".#*",
        "#*#",
        ".goutputstream-*",
        ".~lock.*",
        "._*",
        ".DS_Store",
    ])
});

/// Names that programs give to what they soon rename.
static TEMPORARY: LazyLock<GlobSet> = LazyLock::new(|| {
    known(&[
        "*.tmp",
        "*.TMP",
        "*.temp",
        "*.part",
        "*.partial",
        "*.tmp.*",
        ".tmp*",
        "tmp??????",
        "tmp????????",
        "*.vsctmp",
        "*.crdownload",
        "*.dpkg-new",
        "4913",
    ])
});

fn known(patterns: &[&str]) -> GlobSet {
    let globs = patterns.iter().filter_map(|text| Glob::new(text).ok());
    GlobSet::new(globs).unwrap_or_default()
}

/// What a new name is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// A record.
    Record,
    /// A record, unless it is renamed or deleted a moment after it was closed.
    Temporary,
    /// The daemon only.
    Scratch,
}

/// Distinguishes names.
#[derive(Clone, Debug, Default)]
pub struct ScratchRules {
    own: Vec<GlobMatcher>,
}

impl ScratchRules {
    /// Adds patterns with `*`, `?` and `[...]` to those that are known.
    ///
    /// # Errors
    /// A sentence that names the pattern that is none.
    pub fn new<'a>(patterns: impl IntoIterator<Item = &'a str>) -> Result<Self, String> {
        let own = patterns.into_iter().map(|text| {
            Glob::new(text)
                .map(|glob| glob.compile_matcher())
                .map_err(|error| format!("'{text}' is not a pattern: {}", error.kind()))
        });
        Ok(Self {
            own: own.collect::<Result<_, _>>()?,
        })
    }

    /// Returns what a new name is for. `exists` says whether another name exists, too.
    pub fn classify(&self, name: &OsStr, exists: impl Fn(&str) -> bool) -> Class {
        let Some(text) = name.to_str() else {
            return Class::Record;
        };
        if SCRATCH.is_match(text) || self.own.iter().any(|pattern| pattern.is_match(text)) {
            return Class::Scratch;
        }
        if let Some(base) = text.strip_suffix("-journal")
            && !base.is_empty()
            && exists(base)
        {
            return Class::Scratch;
        }
        let class = match random_suffix(text) {
            Some((suffix, among)) if looks_random(suffix, among) => Class::Scratch,
            Some(_) => Class::Temporary,
            None if TEMPORARY.is_match(text) => Class::Temporary,
            None => Class::Record,
        };
        // What cannot be a key has no other use than to be renamed to one.
        if class == Class::Temporary && !text.bytes().all(is_key_byte) {
            return Class::Scratch;
        }
        class
    }
}

/// What a name may be that ends in six characters as `mkstemp` draws them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Among {
    /// `.NAME.XXXXXX`, as rsync has them: hidden, so that few records are called so.
    Hidden,
    /// `sedXXXXXX`: `sedentary` is a word, `sediment2` a good name.
    Words,
}

/// Returns the six characters that `sed -i` (`sedXXXXXX`) and rsync (`.NAME.XXXXXX`) draw.
fn random_suffix(text: &str) -> Option<(&str, Among)> {
    let found = match text.strip_prefix("sed") {
        Some(suffix) => (suffix, Among::Words),
        None => (text.strip_prefix('.')?.rsplit_once('.')?.1, Among::Hidden),
    };
    let drawn = found.0.len() == 6 && found.0.bytes().all(|byte| byte.is_ascii_alphanumeric());
    drawn.then_some(found)
}

/// Distinguishes a random suffix from a word: 199 of 200 have a digit or a capital, 6 of 10 both.
/// One that is taken for a word is held back all the same, and most are renamed in time.
fn looks_random(suffix: &str, among: Among) -> bool {
    let digit = suffix.bytes().any(|byte| byte.is_ascii_digit());
    let capital = suffix.bytes().any(|byte| byte.is_ascii_uppercase());
    match among {
        Among::Hidden => digit || capital,
        Among::Words => digit && capital,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn class(name: &str) -> Class {
        ScratchRules::default().classify(OsStr::new(name), |other| other == "db")
    }

    #[test]
    fn scratch_names_are_known() {
        for name in [
            ".notes.txt.swp",
            ".notes.txt.swx",
            "notes.txt~",
            ".#notes.txt",
            "#notes.txt#",
            ".goutputstream-A1B2C3",
            ".~lock.table.ods#",
            "sedXa81kQ",
            "db-journal",
            "._INPUT",
            ".DS_Store",
            ".INPUT.json.Ab3dE9",
            "a b.tmp",
        ] {
            assert_eq!(class(name), Class::Scratch, "{name}");
        }
    }

    #[test]
    fn names_that_may_be_records_are_at_most_held_back() {
        for name in [
            "sedentary",
            "sediment2",
            "4913",
            "a.tmp",
            "tmpx81_abcd",
            ".travis.backup",
            ".tmpAbC",
        ] {
            assert_eq!(class(name), Class::Temporary, "{name}");
        }
        for name in [
            "INPUT",
            "trip-journal",
            "-journal",
            "4914",
            ".hidden",
            "a.json",
            "sed",
            "template",
            ".a.b",
            "photo.jpeg",
        ] {
            assert_eq!(class(name), Class::Record, "{name}");
        }
    }

    #[test]
    fn own_patterns_are_scratch_and_bad_ones_are_named() {
        let rules = ScratchRules::new(["*.bak", "draft[0-9]"]).expect("patterns");
        assert_eq!(
            rules.classify(OsStr::new("a.bak"), |_| false),
            Class::Scratch
        );
        assert_eq!(
            rules.classify(OsStr::new("draft7"), |_| false),
            Class::Scratch
        );
        assert_eq!(
            rules.classify(OsStr::new("draftx"), |_| false),
            Class::Record
        );
        let error = ScratchRules::new(["a[b"]).expect_err("no pattern");
        assert!(error.contains("a[b"), "{error}");
    }
}
