//! `ACTION[,CONDITION]...`, as `kvfs serve --fault` takes it.

use std::str::FromStr;
use std::time::Duration;

use axum::http::{Method, StatusCode};

use crate::base::units::{ByteSize, parse_duration};
use crate::server::routes::Route;

/// The forms of a rule, for people who got it wrong.
const GRAMMAR: &str = "write ACTION[,CONDITION]..., for example \
    status=503,method=GET,key=img-*,probability=0.2,seed=7; actions: status=CODE, delay=TIME, \
    reset, lose, stall[=TIME], truncate[=BYTES], corrupt[=BYTE]; conditions: method=METHOD or \
    LIST, key=PATTERN, probability=0..1, seed=N, skip=N, count=N";

/// What goes wrong with an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultAction {
    /// The request is not carried out; this is the answer's status.
    Status(StatusCode),
    /// The answer comes so much later.
    Delay(Duration),
    /// The request is not carried out, and the connection reset.
    Reset,
    /// The request is carried out, but instead of the answer comes a reset.
    Lose,
    /// In the middle of the body nothing comes for this long; `None`: until the client gives up.
    Stall(Option<Duration>),
    /// The connection ends after this many bytes of the body; `None`: in its middle.
    Truncate(Option<u64>),
    /// A bit of this byte of the body is wrong; `None`: of the one in its middle.
    Corrupt(Option<u64>),
}

/// When something goes wrong, and what.
#[derive(Clone, Debug, PartialEq)]
pub struct FaultRule {
    /// What goes wrong.
    pub action: FaultAction,
    /// Only with this method; `LIST` for listings of keys.
    pub method: Option<String>,
    /// Only for records with a matching key: `*` stands for any characters, `?` for one.
    pub key: Option<String>,
    /// How often, from 0 to 1.
    pub probability: f64,
    /// Where the random numbers begin: the same seed, the same faults.
    pub seed: u64,
    /// This many requests pass first.
    pub skip: u64,
    /// At most this many requests fail.
    pub count: Option<u64>,
}

impl FaultRule {
    /// Returns a rule about every request.
    pub fn always(action: FaultAction) -> Self {
        Self {
            action,
            method: None,
            key: None,
            probability: 1.0,
            seed: 0,
            skip: 0,
            count: None,
        }
    }

    /// Returns whether the rule is about such requests.
    pub(super) fn is_about(&self, method: &Method, route: &Route) -> bool {
        let right_method = match self.method.as_deref() {
            None => true,
            Some("LIST") => matches!(route, Route::Keys(_)),
            Some(wanted) => method.as_str() == wanted,
        };
        let right_key = match (&self.key, route) {
            (None, _) => true,
            (Some(pattern), Route::Record(_, key)) => fits(pattern, key.as_str()),
            (Some(_), _) => false,
        };
        right_method && right_key
    }
}

impl FromStr for FaultRule {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut parts = text.split(',').map(str::trim);
        let first = parts.next().unwrap_or_default();
        let action = action(first).map_err(|why| format!("{why}: {GRAMMAR}"))?;
        let mut rule = Self::always(action);
        for part in parts {
            rule.condition(part)
                .map_err(|why| format!("{why}: {GRAMMAR}"))?;
        }
        Ok(rule)
    }
}

fn action(text: &str) -> Result<FaultAction, String> {
    let (name, value) = match text.split_once('=') {
        Some((name, value)) => (name, Some(value)),
        None => (text, None),
    };
    let bytes = || {
        let size = |value: &str| value.parse::<ByteSize>().map(|size| size.0);
        value.map(size).transpose()
    };
    match (name, value) {
        ("status", Some(code)) => code
            .parse()
            .ok()
            .filter(|code| (400..600).contains(code))
            .and_then(|code| StatusCode::from_u16(code).ok())
            .map(FaultAction::Status)
            .ok_or_else(|| format!("'{code}' is not the status of an error")),
        ("delay", Some(time)) => parse_duration(time).map(FaultAction::Delay),
        ("reset", None) => Ok(FaultAction::Reset),
        ("lose", None) => Ok(FaultAction::Lose),
        ("stall", time) => time.map(parse_duration).transpose().map(FaultAction::Stall),
        ("truncate", _) => bytes().map(FaultAction::Truncate),
        ("corrupt", _) => bytes().map(FaultAction::Corrupt),
        _ => Err(format!("'{text}' is no action")),
    }
}

impl FaultRule {
    fn condition(&mut self, text: &str) -> Result<(), String> {
        let Some((name, value)) = text.split_once('=').filter(|(_, value)| !value.is_empty())
        else {
            return Err(format!("'{text}' is no condition"));
        };
        let number = || {
            value
                .parse::<u64>()
                .map_err(|_| format!("'{value}' is not a number"))
        };
        match name {
            "method" => self.method = Some(value.to_ascii_uppercase()),
            "key" => self.key = Some(value.to_owned()),
            "probability" => {
                self.probability = value
                    .parse()
                    .ok()
                    .filter(|probability| (0.0..=1.0).contains(probability))
                    .ok_or_else(|| format!("'{value}' is not a probability"))?;
            }
            "seed" => self.seed = number()?,
            "skip" => self.skip = number()?,
            "count" => self.count = Some(number()?),
            _ => return Err(format!("'{name}' is no condition")),
        }
        Ok(())
    }
}

/// Returns whether a text fits a pattern of `*`, `?` and characters that stand for themselves.
fn fits(pattern: &str, text: &str) -> bool {
    let pattern: Vec<char> = pattern.chars().collect();
    let text: Vec<char> = text.chars().collect();
    let (mut at, mut read) = (0, 0);
    // Where the last `*` was, and what it has swallowed so far.
    let mut star: Option<(usize, usize)> = None;
    while read < text.len() {
        match pattern.get(at) {
            Some('*') => {
                star = Some((at, read));
                at += 1;
            }
            Some(wanted) if *wanted == '?' || *wanted == text[read] => {
                at += 1;
                read += 1;
            }
            _ => match star {
                Some((place, swallowed)) => {
                    star = Some((place, swallowed + 1));
                    at = place + 1;
                    read = swallowed + 1;
                }
                None => return false,
            },
        }
    }
    pattern[at..].iter().all(|rest| *rest == '*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_read_as_the_grammar_says() {
        let rule = "status=503, method=get,key=img-*,probability=0.2,seed=7,skip=1,count=3"
            .parse::<FaultRule>();
        let expected = FaultRule {
            action: FaultAction::Status(StatusCode::SERVICE_UNAVAILABLE),
            method: Some("GET".into()),
            key: Some("img-*".into()),
            probability: 0.2,
            seed: 7,
            skip: 1,
            count: Some(3),
        };
        assert_eq!(rule, Ok(expected));
        for (text, action) in [
            ("reset", FaultAction::Reset),
            ("lose", FaultAction::Lose),
            ("stall", FaultAction::Stall(None)),
            ("stall=2s", FaultAction::Stall(Some(Duration::from_secs(2)))),
            ("delay=5ms", FaultAction::Delay(Duration::from_millis(5))),
            ("truncate", FaultAction::Truncate(None)),
            ("truncate=1KiB", FaultAction::Truncate(Some(1024))),
            ("corrupt=0", FaultAction::Corrupt(Some(0))),
        ] {
            assert_eq!(text.parse(), Ok(FaultRule::always(action)), "{text}");
        }
    }

    #[test]
    fn wrong_rules_are_told_the_grammar() {
        for text in [
            "",
            "status",
            "status=200",
            "status=x",
            "explode",
            "reset=1",
            "stall=soon",
            "reset,key",
            "reset,key=",
            "reset,probability=2",
            "reset,count=-1",
            "reset,color=red",
        ] {
            let error = text.parse::<FaultRule>().expect_err(text);
            assert!(error.contains("ACTION[,CONDITION]"), "{text}: {error}");
        }
    }

    #[test]
    fn patterns_fit() {
        for (pattern, text, expected) in [
            ("a", "a", true),
            ("a", "ab", false),
            ("*", "", true),
            ("img-*", "img-1", true),
            ("*.png", "a.png.png", true),
            ("a*b*c", "axxbxxc", true),
            ("a*b*c", "axxbxx", false),
            ("?", "é", true),
            ("?", "", false),
        ] {
            assert_eq!(fits(pattern, text), expected, "{pattern} {text}");
        }
    }
}
