//! The secrets that this process uses, to be found in texts of others: a server or a proxy may quote
//! what it was sent, in any disguise.
//!
//! A secret of some length is found whatever stands between its letters and digits, in capitals or
//! not, and percent-encoded, in hexadecimal digits or in base64 as well. A shorter one is found as it
//! is and percent-encoded, with control characters and what is not seen in between.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::fmt::Write;
use std::ops::Range;

use super::redact::Secret;
use super::text;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use parking_lot::RwLock;

/// What stands in place of a secret.
pub const REDACTED: &str = "[redacted]";

/// What is shorter is a word of any language, and opens nothing that is worth it.
const SHORTEST: usize = 6;
/// So many letters and digits are no accident.
const LONG: usize = 12;
/// Secrets that are remembered; the oldest is forgotten. A process uses a few.
const MOST: usize = 64;
/// The longest secret that is looked for, in bytes.
const LONGEST: usize = 4096;

static IN_USE: RwLock<VecDeque<Forms>> = RwLock::new(VecDeque::new());

/// A secret, as it may be met.
#[derive(Debug)]
struct Forms {
    secret: Secret,
    is_long: bool,
    forms: Vec<Vec<char>>,
}

/// Keeps a secret out of all that [`without`] is asked to clean from now on.
pub fn keep_out(secret: &Secret) {
    let len = secret.expose().len();
    let is_known = |known: &VecDeque<Forms>| known.iter().any(|forms| forms.secret == *secret);
    if !(SHORTEST..=LONGEST).contains(&len) || is_known(&IN_USE.read()) {
        return;
    }
    let forms = Forms::of(secret);
    let mut known = IN_USE.write();
    if is_known(&known) {
        return;
    }
    if known.len() >= MOST {
        known.pop_front();
    }
    known.push_back(forms);
}

/// Returns a text without the secrets that are in use, nor `more`.
pub fn without<'t>(text: &'t str, more: &[Secret]) -> Cow<'t, str> {
    let known = IN_USE.read();
    if known.is_empty() && more.is_empty() {
        return Cow::Borrowed(text);
    }
    let more: Vec<Forms> = more
        .iter()
        .filter(|secret| (1..=LONGEST).contains(&secret.expose().len()))
        .map(Forms::of)
        .collect();
    let mut found = Vec::new();
    for is_long in [true, false] {
        let folded = fold(text, is_long);
        known
            .iter()
            .chain(&more)
            .filter(|forms| forms.is_long == is_long)
            .flat_map(|forms| &forms.forms)
            .for_each(|form| find(&folded, form, &mut found));
    }
    drop(known);
    replaced(text, found)
}

/// Returns a text of one's own without the secrets in use that it may quote.
pub fn cleaned(text: String) -> String {
    match without(&text, &[]) {
        Cow::Borrowed(_) => text,
        Cow::Owned(clean) => clean,
    }
}

impl Forms {
    fn of(secret: &Secret) -> Self {
        let plain = secret.expose();
        let is_long = fold(plain, true).len() >= LONG;
        let mut forms = vec![plain.to_owned()];
        if is_long {
            forms.push(plain.bytes().fold(String::new(), |mut hex, byte| {
                let _ = write!(hex, "{byte:02x}");
                hex
            }));
            forms.extend((0..3).map(|before| within_base64(plain.as_bytes(), before)));
        }
        let mut forms: Vec<Vec<char>> = forms
            .iter()
            .map(|form| fold(form, is_long).into_iter().map(|(c, _)| c).collect())
            .filter(|form: &Vec<char>| !form.is_empty())
            .collect();
        forms.sort();
        forms.dedup();
        Self {
            secret: secret.clone(),
            is_long,
            forms,
        }
    }
}

/// Returns what all base64 has in common that holds `bytes` after `before` others (modulo 3).
fn within_base64(bytes: &[u8], before: usize) -> String {
    let padded = [vec![0; before], bytes.to_vec()].concat();
    let encoded = STANDARD.encode(&padded);
    // Six bits a digit; those at both ends hold bits of other bytes.
    let range = (before * 8).div_ceil(6)..padded.len() * 8 / 6;
    encoded.get(range).unwrap_or_default().to_owned()
}

/// Returns the characters that count, with their places; what is percent-encoded, however often,
/// counts as what it stands for.
fn fold(text: &str, is_long: bool) -> Vec<(char, Range<usize>)> {
    let mut folded = Vec::with_capacity(text.len());
    let mut end = 0;
    for (at, c) in text.char_indices() {
        if at < end {
            continue;
        }
        let escaped = if c == '%' {
            escape(text.as_bytes(), at)
        } else {
            None
        };
        let (c, next) = escaped.unwrap_or((c, at + c.len_utf8()));
        end = next;
        let counts = match is_long {
            true => c.is_ascii_alphanumeric(),
            false => !text::is_unseen(c),
        };
        if counts {
            let c = if is_long { c.to_ascii_lowercase() } else { c };
            folded.push((c, at..end));
        }
    }
    folded
}

/// Returns the ASCII character that is percent-encoded at a place, and where it ends.
fn escape(text: &[u8], at: usize) -> Option<(char, usize)> {
    let digit = |at: usize| char::from(*text.get(at)?).to_digit(16);
    let mut at = at + 1;
    // A sign of percent may itself be encoded.
    while text.get(at..at + 2) == Some(b"25") && digit(at + 2).is_some() && digit(at + 3).is_some()
    {
        at += 2;
    }
    let byte = u8::try_from(digit(at)? * 16 + digit(at + 1)?).ok()?;
    byte.is_ascii().then_some((char::from(byte), at + 2))
}

fn find(text: &[(char, Range<usize>)], form: &[char], found: &mut Vec<Range<usize>>) {
    let Some(first) = form.first() else { return };
    for window in text.windows(form.len()) {
        if window[0].0 == *first && window.iter().map(|(c, _)| c).eq(form) {
            let end = window.last().map_or(0, |(_, place)| place.end);
            found.push(window[0].1.start..end);
        }
    }
}

fn replaced(text: &str, mut found: Vec<Range<usize>>) -> Cow<'_, str> {
    if found.is_empty() {
        return Cow::Borrowed(text);
    }
    found.sort_by_key(|range| range.start);
    let mut clean = String::with_capacity(text.len());
    let mut end = 0;
    for range in found {
        if range.start >= end {
            clean.push_str(text.get(end..range.start).unwrap_or_default());
            clean.push_str(REDACTED);
        }
        end = end.max(range.end);
    }
    clean.push_str(text.get(end..).unwrap_or_default());
    Cow::Owned(clean)
}

#[cfg(test)]
mod tests {
    use percent_encoding::{NON_ALPHANUMERIC, percent_encode_byte, utf8_percent_encode};

    use super::*;

    const TOKEN: &str = "in-use_Token/of+thisTest0123=";

    fn split(by: &str) -> String {
        let chars: Vec<String> = TOKEN.chars().map(String::from).collect();
        chars.join(by)
    }

    #[test]
    fn a_secret_in_use_is_found_in_any_disguise() {
        keep_out(&Secret::new(TOKEN));
        let every = TOKEN.bytes().map(percent_encode_byte).collect::<String>();
        let basic = |user: &str| STANDARD.encode(format!("{user}:{TOKEN}!"));
        for quoted in [
            TOKEN.to_owned(),
            format!("{TOKEN}{TOKEN}"),
            TOKEN.to_ascii_uppercase(),
            split("\n"),
            split("\u{1b}"),
            split("\u{200b}"),
            split("\u{200d}"),
            split("\u{fe0f}"),
            split(" "),
            split("-"),
            every.to_ascii_lowercase(),
            every,
            utf8_percent_encode(TOKEN, NON_ALPHANUMERIC).to_string(),
            TOKEN.replace('/', "%25252f"),
            STANDARD.encode(TOKEN),
            basic("u"),
            basic("us"),
            basic("use"),
        ] {
            let text = format!("you sent {quoted}, why?");
            let shown = without(&text, &[]);
            assert!(shown.starts_with("you sent "), "{shown}");
            assert!(shown.ends_with("why?"), "{shown}");
            assert!(shown.contains(REDACTED), "{text}: {shown}");
            // Not even a part stays, but for the digits that belong to others too.
            assert!(shown.len() < "you sent , why?".len() + 40, "{shown}");
        }
        let plain = "the record is not served: in use is a token that is known";
        assert_eq!(without(plain, &[]), plain);
    }

    #[test]
    fn a_short_secret_is_found_as_it_is_and_what_is_shorter_is_a_word() {
        keep_out(&Secret::new("sh0rt!"));
        for quoted in ["sh0rt!", "s\u{200b}h0\nrt!", "sh0rt%21"] {
            assert_eq!(without(quoted, &[]), REDACTED, "{quoted}");
        }
        assert_eq!(without("sh0rt", &[]), "sh0rt");
        keep_out(&Secret::new("words"));
        assert_eq!(without("in other words", &[]), "in other words");
        assert_eq!(
            without("kn0wn", &[Secret::new("kn0wn"), Secret::new("")]),
            REDACTED
        );
    }
}
