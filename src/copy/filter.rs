//! Selects the keys of a copy or a comparison.

use globset::{Glob, GlobBuilder, GlobSet, GlobSetBuilder};

use crate::store::{Key, ListQuery};

/// Selects keys by what they begin with and by patterns.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    prefix: Option<String>,
    /// Without any, every key is included.
    include: Option<GlobSet>,
    exclude: GlobSet,
}

impl Filter {
    /// Makes a filter: keys that begin with `prefix`, match one of `include` if there is any, and
    /// none of `exclude`.
    ///
    /// # Errors
    /// What is wrong with a pattern.
    pub fn new(
        prefix: Option<&str>,
        include: &[String],
        exclude: &[String],
    ) -> Result<Self, String> {
        Ok(Self {
            prefix: prefix.map(str::to_owned),
            include: (!include.is_empty()).then(|| set(include)).transpose()?,
            exclude: set(exclude)?,
        })
    }

    /// Returns whether the key takes part.
    pub fn takes(&self, key: &Key) -> bool {
        let key = key.as_str();
        self.prefix
            .as_deref()
            .is_none_or(|prefix| key.starts_with(prefix))
            && self
                .include
                .as_ref()
                .is_none_or(|include| include.is_match(key))
            && !self.exclude.is_match(key)
    }

    /// Returns the question that lists no fewer keys than take part.
    pub fn query(&self) -> ListQuery {
        ListQuery {
            prefix: self.prefix.as_deref().map(Into::into),
            ..ListQuery::default()
        }
    }
}

/// Parses a pattern as every command understands it: `*`, `?`, `[...]` and `{a,b}`, in which `*`
/// stands for any characters of a key.
///
/// # Errors
/// What is wrong with it.
pub fn pattern(text: &str) -> Result<Glob, String> {
    GlobBuilder::new(text).build().map_err(|error| {
        format!(
            "'{}' is not a pattern: {}",
            crate::base::text::line(text),
            error.kind()
        )
    })
}

fn set(patterns: &[String]) -> Result<GlobSet, String> {
    let mut set = GlobSetBuilder::new();
    for text in patterns {
        set.add(pattern(text)?);
    }
    set.build().map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn takes(filter: &Filter, key: &str) -> bool {
        filter.takes(&Key::new(key).expect("a key"))
    }

    #[test]
    fn prefixes_and_patterns_select_keys() {
        let words = |words: &[&str]| {
            words
                .iter()
                .map(|&word| word.to_owned())
                .collect::<Vec<_>>()
        };
        let everything = Filter::new(None, &[], &[]).expect("a filter");
        assert!(takes(&everything, "a") && takes(&everything, "ü/b"));
        let some = Filter::new(Some("p"), &words(&["*.json", "pa*"]), &words(&["*secret*"]));
        let some = some.expect("a filter");
        for (key, taken) in [
            ("page.json", true),
            ("p/x.json", true),
            ("pages", true),
            ("picture.png", false),
            ("a.json", false),
            ("pa-secret", false),
        ] {
            assert_eq!(takes(&some, key), taken, "{key}");
        }
        assert!(Filter::new(None, &words(&["[a"]), &[]).is_err());
    }
}
