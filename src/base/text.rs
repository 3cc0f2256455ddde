//! Foreign text on terminals and in logs: names, keys, types and messages from a server, a folder
//! or a person. Control characters could command a terminal, line breaks could forge lines, and
//! characters that turn the direction of writing could disguise a text. This module escapes all of
//! them; everything printed or logged goes through it.

use std::borrow::Cow;
use std::fmt::{self, Write};

/// A value shown on one line, with dangerous characters escaped as Rust does.
///
/// A backslash is doubled where something had to be escaped, so that nothing looks like an escape
/// that is none.
#[derive(Clone, Copy, Debug)]
pub struct Line<T>(pub T);

impl<T: fmt::Display> fmt::Display for Line<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Widths count what is shown.
        f.pad(&line(&self.0.to_string()))
    }
}

/// Returns a text as it may stand on one line of a terminal or a log.
pub fn line(text: &str) -> Cow<'_, str> {
    escaped(text, is_dangerous)
}

/// Returns a text with a space for whatever is dangerous in it: one that stays legible where it
/// need not be exact.
pub fn plain(text: &str) -> String {
    text.replace(is_dangerous, " ")
}

/// Returns a text of at most `most` characters, the last of them `…` where it was cut.
pub fn short(text: &str, most: usize) -> Cow<'_, str> {
    // Few texts are that long, and those that are need not be read to their ends.
    if text.len() <= most || text.chars().nth(most).is_none() {
        return Cow::Borrowed(text);
    }
    let start = text.chars().take(most.saturating_sub(1));
    Cow::Owned(start.chain(['…']).collect())
}

/// Returns a text of several lines, with its line breaks and tabs: one that was put together here,
/// with foreign parts that have gone through [`line()`] already.
pub fn lines(text: &str) -> Cow<'_, str> {
    escaped(text, |c| is_dangerous(c) && c != '\n' && c != '\t')
}

/// Returns JSON of the same meaning with dangerous characters in strings escaped, for people who
/// look at it.
pub fn json(text: &str) -> Cow<'_, str> {
    let dangerous = |c: char| is_dangerous(c) && !c.is_ascii_whitespace();
    if !text.contains(dangerous) {
        return Cow::Borrowed(text);
    }
    let mut safe = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if !dangerous(c) {
            safe.push(c);
            continue;
        }
        for unit in c.encode_utf16(&mut [0; 2]) {
            // Writing to a string does not fail.
            let _ = write!(safe, "\\u{unit:04x}");
        }
    }
    Cow::Owned(safe)
}

/// Returns whether a character is not seen where it stands: one that is dangerous, or joins or varies
/// others.
pub fn is_unseen(c: char) -> bool {
    is_dangerous(c)
        || matches!(c,
            '\u{34f}' | '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}' | '\u{180b}'..='\u{180f}'
            | '\u{200c}' | '\u{200d}' | '\u{3164}' | '\u{fe00}'..='\u{fe0f}' | '\u{ffa0}'
            | '\u{e0100}'..='\u{e01ef}')
}

fn escaped(text: &str, dangerous: impl Fn(char) -> bool) -> Cow<'_, str> {
    if !text.contains(&dangerous) {
        return Cow::Borrowed(text);
    }
    let mut safe = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match c {
            '\\' => safe.push_str("\\\\"),
            c if dangerous(c) => safe.extend(c.escape_default()),
            c => safe.push(c),
        }
    }
    Cow::Owned(safe)
}

/// Returns whether a character does something instead of being shown: control characters (Unicode
/// category Cc), separators of lines, and those of category Cf that no script needs.
fn is_dangerous(c: char) -> bool {
    c.is_control()
        || matches!(c,
            // Bidirectional marks, embeddings, overrides and isolates.
            '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}'
            // Separators of lines and paragraphs.
            | '\u{2028}' | '\u{2029}'
            // What is not seen at all. Joiners belong to scripts and emoji, and stay.
            | '\u{ad}' | '\u{180e}' | '\u{200b}' | '\u{2060}'..='\u{2065}' | '\u{206a}'..='\u{206f}'
            | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{1d173}'..='\u{1d17a}'
            | '\u{e0000}'..='\u{e007f}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_gives_orders_is_escaped_and_the_rest_stays() {
        for (text, shown) in [
            ("my!key'(v1).json", "my!key'(v1).json"),
            ("größer 日本 👩‍👩‍👧", "größer 日本 👩‍👩‍👧"),
            (r"C:\new", r"C:\new"),
            ("\x1b]0;title\x07", r"\u{1b}]0;title\u{7}"),
            ("two\nlines\r", r"two\nlines\r"),
            ("\u{9b}31m", r"\u{9b}31m"),
            ("\u{202e}txt.exe", r"\u{202e}txt.exe"),
            ("\u{2066}\u{2028}\u{feff}", r"\u{2066}\u{2028}\u{feff}"),
            ("\\n\n", r"\\n\n"),
            ("\0\x7f\t", r"\u{0}\u{7f}\t"),
        ] {
            assert_eq!(line(text), shown);
            assert_eq!(Line(text).to_string(), shown);
        }
        assert_eq!(format!("{:4}|", Line("a")), "a   |");
        assert_eq!(lines("a\n\tb\x1b"), "a\n\tb\\u{1b}");
        assert_eq!(plain("a\nb\\n\u{202e}c"), "a b\\n c");
        for (text, shown) in [
            ("abcd", "abcd"),
            ("abcde", "abc…"),
            ("äöüß", "äöüß"),
            ("äöüßa", "äöü…"),
        ] {
            assert_eq!(short(text, 4), shown);
        }
    }

    #[test]
    fn json_means_the_same_as_before() {
        let value = serde_json::json!({
            "a\u{9b}": ["\u{202e}", "\x7f", "\n\x1b", "\u{e0041}", "plain"]
        });
        for text in [value.to_string(), format!("{value:#}")] {
            let safe = json(&text);
            assert!(
                !safe.contains(|c: char| is_dangerous(c) && c != '\n'),
                "{safe}"
            );
            let again: serde_json::Value = serde_json::from_str(&safe).expect("JSON");
            assert_eq!(again, value);
        }
    }
}
