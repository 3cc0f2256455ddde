//! The proxies that the user's variables name, for a process without these variables:
//! `/proc/PID/environ` would show their passwords for as long as a daemon lives.

use std::sync::OnceLock;

use serde::{Deserialize, Serialize};

use super::in_use;
use super::redact::Secret;

/// Variables and their values, in the order in which the first one counts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Proxies(Vec<(String, Secret)>);

/// What the process was told, if it was.
static GIVEN: OnceLock<Proxies> = OnceLock::new();

impl Proxies {
    /// Takes variables as they are called: `HTTPS_PROXY`, `http_proxy`, `ALL_PROXY`, `NO_PROXY`.
    pub fn new<'a>(variables: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        let owned = |(name, value): (&str, &str)| (name.to_owned(), Secret::new(value));
        Self(variables.into_iter().map(owned).collect())
    }

    /// Makes this process use these instead of its environment. The first call counts.
    pub fn give(self) {
        self.passwords().iter().for_each(in_use::keep_out);
        // A second call would be of a process that serves two mounts; there is none.
        let _ = GIVEN.set(self);
    }

    /// Returns those that were given; `None` where the environment has them.
    pub fn given() -> Option<&'static Self> {
        GIVEN.get()
    }

    /// Returns the passwords in them.
    pub fn passwords(&self) -> Vec<Secret> {
        self.0
            .iter()
            .filter_map(|(_, address)| {
                let (credentials, _) = address.expose().rsplit_once('@')?;
                let (_, password) = credentials.rsplit_once(':')?;
                Some(Secret::new(password)).filter(|password| !password.expose().starts_with("//"))
            })
            .collect()
    }

    /// Returns the proxy for a scheme, `http` or `https`.
    pub fn of(&self, scheme: &str) -> Option<&Secret> {
        self.named(&format!("{scheme}_proxy"))
            .or_else(|| self.named("all_proxy"))
    }

    /// Returns the hosts that are asked without a proxy, as the variable lists them.
    pub fn excluded(&self) -> Option<&str> {
        self.named("no_proxy").map(Secret::expose)
    }

    fn named(&self, wanted: &str) -> Option<&Secret> {
        self.0
            .iter()
            .find(|(name, value)| name.eq_ignore_ascii_case(wanted) && !value.expose().is_empty())
            .map(|(_, value)| value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_variable_that_fits_counts() {
        let proxies = Proxies::new([
            ("HTTPS_PROXY", "http://secure"),
            ("https_proxy", "http://later"),
            ("all_proxy", "http://all"),
            ("NO_PROXY", "a,b"),
        ]);
        let of = |scheme| proxies.of(scheme).map(|proxy| proxy.expose().to_owned());
        assert_eq!(of("https").as_deref(), Some("http://secure"));
        assert_eq!(of("http").as_deref(), Some("http://all"));
        assert_eq!(proxies.excluded(), Some("a,b"));
        assert_eq!(Proxies::default().of("http"), None);
        let proxies = Proxies::new([
            ("http_proxy", "http://me:s3cret@h"),
            ("all_proxy", "http://me@h"),
        ]);
        assert_eq!(proxies.passwords(), [Secret::new("s3cret")]);
    }
}
