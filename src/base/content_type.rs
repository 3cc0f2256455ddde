//! Which `Content-Type` a new record gets: by its name's extension, else by its bytes.

use std::io::{self, BufReader, Read, Seek};

use serde::de::IgnoredAny;

/// What is neither recognised nor text.
pub const UNKNOWN: &str = "application/octet-stream";
const JSON: &str = "application/json; charset=utf-8";
const TEXT: &str = "text/plain; charset=utf-8";

/// As much of the beginning is looked at for magic numbers.
const MAGIC: u64 = 8 << 10;
/// Longer texts are not parsed to find out whether they are JSON.
const LONGEST_JSON: u64 = 64 << 20;
const CHUNK: usize = 64 << 10;

/// Returns the type of a record with this name and content; the content is read from its start.
///
/// Types of text say `charset=utf-8` if that is what the bytes are.
///
/// # Errors
/// Those of reading.
pub fn guess(name: &str, content: &mut (impl Read + Seek)) -> io::Result<String> {
    let Some(by_name) = mime_guess::from_path(name).first_raw() else {
        return of_bytes(content).map(str::to_owned);
    };
    if is_text(by_name) && is_utf8(content)? {
        return Ok(format!("{by_name}; charset=utf-8"));
    }
    Ok(by_name.to_owned())
}

/// Returns whether a name tells the type of what it names.
pub fn is_told_by(name: &str) -> bool {
    mime_guess::from_path(name).first_raw().is_some()
}

/// Returns the type of a content by its bytes, when the name says nothing.
fn of_bytes(content: &mut (impl Read + Seek)) -> io::Result<&'static str> {
    let mut head = Vec::new();
    content.rewind()?;
    content.by_ref().take(MAGIC).read_to_end(&mut head)?;
    // Scripts and markup are text like any other.
    let known = infer::get(&head).filter(|kind| kind.matcher_type() != infer::MatcherType::Text);
    if let Some(kind) = known {
        return Ok(kind.mime_type());
    }
    if head.is_empty() || head.contains(&0) || !is_utf8(content)? {
        return Ok(UNKNOWN);
    }
    if may_be_json(&head) && is_json(content)? {
        return Ok(JSON);
    }
    Ok(TEXT)
}

/// Returns whether a type is one of text, for which the charset matters.
fn is_text(media_type: &str) -> bool {
    media_type.starts_with("text/")
        || media_type.ends_with("+xml")
        || matches!(
            media_type,
            "application/json" | "application/xml" | "application/javascript"
        )
}

fn is_utf8(content: &mut (impl Read + Seek)) -> io::Result<bool> {
    content.rewind()?;
    let mut buffer = vec![0; CHUNK];
    // The beginning of a character that goes on in the next chunk.
    let mut kept = 0;
    loop {
        let space = buffer.get_mut(kept..).unwrap_or_default();
        let read = content.read(space)?;
        if read == 0 {
            return Ok(kept == 0);
        }
        let filled = buffer.get(..kept + read).unwrap_or_default();
        kept = match str::from_utf8(filled) {
            Ok(_) => 0,
            Err(error) if error.error_len().is_some() => return Ok(false),
            Err(error) => {
                let good = error.valid_up_to();
                let end = kept + read;
                buffer.copy_within(good..end, 0);
                end - good
            }
        };
    }
}

fn may_be_json(head: &[u8]) -> bool {
    let first = head.iter().find(|byte| !byte.is_ascii_whitespace());
    first.is_some_and(|byte| b"{[\"-0123456789tfn".contains(byte))
}

/// Returns whether the whole content, known to be UTF-8, is one JSON value.
fn is_json(content: &mut (impl Read + Seek)) -> io::Result<bool> {
    if content.seek(io::SeekFrom::End(0))? > LONGEST_JSON {
        return Ok(false);
    }
    content.rewind()?;
    let parsed: Result<IgnoredAny, _> = serde_json::from_reader(BufReader::new(content));
    match parsed {
        Ok(_) => Ok(true),
        Err(error) if error.is_io() => Err(error.into()),
        Err(_) => Ok(false),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use proptest::prelude::*;

    use super::*;

    fn guessed(name: &str, content: impl AsRef<[u8]>) -> String {
        guess(name, &mut Cursor::new(content.as_ref())).expect("memory can be read")
    }

    #[test]
    fn the_extension_decides_first() {
        assert_eq!(guessed("a.png", "text"), "image/png");
        assert_eq!(guessed("a.json", "not json"), JSON);
        assert_eq!(guessed("a.html", "<p>"), "text/html; charset=utf-8");
        assert_eq!(guessed("a.html", b"\xff"), "text/html");
        assert_eq!(guessed("a.csv", "a,b"), "text/csv; charset=utf-8");
        assert_eq!(guessed("a.pdf", ""), "application/pdf");
    }

    #[test]
    fn then_the_bytes() {
        for (content, wanted) in [
            (&b"{\"a\": [1, 2]}\n"[..], JSON),
            (b" [] ", JSON),
            (b"\"text\"", JSON),
            (b"{\"a\": 1} {\"b\": 2}", TEXT),
            (b"{ not json }", TEXT),
            (b"<html>", TEXT),
            (b"#!/bin/sh\n", TEXT),
            ("grüße".as_bytes(), TEXT),
            (b"gr\xfc\xdfe", UNKNOWN),
            (b"", UNKNOWN),
            (b"a\0b", UNKNOWN),
            (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "image/png"),
            (b"\xff\xd8\xff\xe0\0\x10JFIF", "image/jpeg"),
            (b"%PDF-1.7\n", "application/pdf"),
            (b"PK\x03\x04\x14\0\0\0", "application/zip"),
        ] {
            assert_eq!(guessed("INPUT", content), wanted, "{content:?}");
        }
    }

    #[test]
    fn long_text_is_not_taken_for_json() {
        let long = format!("[{}]", "1,".repeat((LONGEST_JSON / 2) as usize) + "1");
        assert_eq!(guessed("INPUT", long), TEXT);
    }

    proptest! {
        #[test]
        fn utf8_is_recognised_wherever_chunks_end(text in "\\PC{0,8}", lead in 0..6usize, broken: bool) {
            let mut bytes = vec![b'a'; CHUNK - lead];
            bytes.extend(text.as_bytes());
            if broken {
                bytes.push(0xff);
            }
            let found = is_utf8(&mut Cursor::new(&bytes)).expect("memory can be read");
            prop_assert_eq!(found, str::from_utf8(&bytes).is_ok());
        }
    }
}
