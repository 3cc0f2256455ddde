//! Reads and checks the headers of an answer about a record.

use reqwest::header::{
    ACCEPT_RANGES, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG, HeaderMap,
    HeaderName, LAST_MODIFIED, TRANSFER_ENCODING,
};

use super::body::HttpBody;
use super::peer::RATE_LIMIT;
use super::transport::Reply;
use super::wire;
use crate::store::{ETag, Encoding, MAX_SIZE, RecordMeta};

/// An answer to a get that is not a failure.
#[derive(Debug)]
pub struct Answer {
    /// 200, 206, 304 or 416.
    pub status: u16,
    /// What the headers say; `stored_size` is the whole record's.
    pub meta: RecordMeta,
    /// The part that a 206 holds.
    pub part: Option<ContentRange>,
    /// Whether the body's end is declared, by a length or by chunks.
    pub is_delimited: bool,
    /// The bytes.
    pub body: HttpBody,
}

/// A `Content-Range` header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ContentRange {
    /// First byte and the one after the last; `None` in a 416.
    pub bytes: Option<(u64, u64)>,
    /// The whole's length, if it is known.
    pub total: Option<u64>,
}

impl ContentRange {
    /// Reads the header; `None` if it is invalid.
    pub fn parse(value: &str) -> Option<Self> {
        let (range, total) = value.trim().strip_prefix("bytes ")?.split_once('/')?;
        let total = match total.trim() {
            "*" => None,
            digits => Some(parse_number(digits)?),
        };
        let bytes = match range.trim() {
            "*" => None,
            range => {
                let (first, last) = range.split_once('-')?;
                let (first, end) = (parse_number(first)?, parse_number(last)?.checked_add(1)?);
                if first >= end || total.is_some_and(|total| end > total) {
                    return None;
                }
                Some((first, end))
            }
        };
        (bytes.is_some() || total.is_some()).then_some(Self { bytes, total })
    }
}

/// Reads decimal digits and nothing else: no sign, no space. No file has 2^63 bytes.
fn parse_number(digits: &str) -> Option<u64> {
    if !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    digits.parse().ok().filter(|number| *number <= MAX_SIZE)
}
/// Returns a header's value; `None` where it cannot be read, or there are several that differ.
fn text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    let mut lines = headers.get_all(name).iter();
    let first = lines.next()?;
    lines.all(|line| line == first).then_some(())?;
    first.to_str().ok()
}

/// Returns how a body is encoded, by all lines of the header; what cannot be read is unknown.
pub(super) fn encoding_of(headers: &HeaderMap) -> Encoding {
    let lines: Vec<_> = headers
        .get_all(CONTENT_ENCODING)
        .iter()
        .map(|line| String::from_utf8_lossy(line.as_bytes()))
        .collect();
    let members: Vec<_> = lines
        .iter()
        .flat_map(|line| line.split(','))
        .map(str::trim)
        .filter(|member| !member.is_empty() && !member.eq_ignore_ascii_case("identity"))
        .collect();
    Encoding::from_header(Some(&members.join(", ")))
}

/// Reads what an answer's headers say of the record.
pub fn meta_of(reply: &Reply) -> RecordMeta {
    let headers = &reply.headers;
    let stored_size = text(headers, &CONTENT_LENGTH)
        .filter(|_| !headers.contains_key(TRANSFER_ENCODING))
        .and_then(parse_number);
    RecordMeta {
        content_type: text(headers, &CONTENT_TYPE).map(Into::into),
        encoding: match (reply.status, stored_size) {
            // No bytes are no bytes in any encoding.
            (200, Some(0)) => Encoding::Identity,
            _ => encoding_of(headers),
        },
        stored_size,
        etag: text(headers, &ETAG).map(ETag::new),
        last_modified: text(headers, &LAST_MODIFIED).map(Into::into),
        accepts_ranges: reply.status == 206
            || text(headers, &ACCEPT_RANGES).is_some_and(|value| value.contains("bytes")),
    }
}

pub(super) fn answer_of(reply: Reply) -> Result<Answer, &'static str> {
    let mut meta = meta_of(&reply);
    let mut part = None;
    // No coding was asked for (RFC 9112, 7.4), and the bytes would be those of the coding.
    let is_coded = reply.headers.get_all(TRANSFER_ENCODING).iter().any(|line| {
        line.as_bytes()
            .split(|byte| *byte == b',')
            .any(|coding| !coding.trim_ascii().eq_ignore_ascii_case(b"chunked"))
    });
    if is_coded {
        return Err("the server sent the record in a transfer coding that was not asked for");
    }
    let is_delimited = meta.stored_size.is_some() || reply.headers.contains_key(TRANSFER_ENCODING);
    match reply.status {
        200 | 304 => {}
        206 => {
            let range = text(&reply.headers, &CONTENT_RANGE)
                .and_then(ContentRange::parse)
                .filter(|range| range.bytes.is_some())
                .ok_or("the server sent a part of the record without saying which")?;
            if let (Some((start, end)), Some(len)) = (range.bytes, meta.stored_size)
                && end - start != len
            {
                return Err("the server sent a part of the record with a wrong length");
            }
            meta.stored_size = range.total;
            part = Some(range);
        }
        416 => {
            part = text(&reply.headers, &CONTENT_RANGE).and_then(ContentRange::parse);
            meta = RecordMeta {
                // The answer's own type and length are those of an error text.
                content_type: None,
                encoding: Encoding::Identity,
                stored_size: None,
                ..meta
            };
        }
        _ => return Err("the server's answer cannot be about a record"),
    }
    Ok(Answer {
        status: reply.status,
        meta,
        part,
        is_delimited,
        body: reply.body,
    })
}
/// Returns whether an answer with a 2xx status says that a change has been made: as the platform
/// does, or as any other server of the API might. A page for people does not.
pub(super) fn is_done(reply: &Reply) -> bool {
    if wire::is_web_page(&reply.headers) {
        return false;
    }
    match reply.status {
        201 | 204 => true,
        200 => {
            wire::is_json(&reply.headers)
                || reply.headers.contains_key(RATE_LIMIT)
                || reply
                    .headers
                    .get(CONTENT_LENGTH)
                    .is_some_and(|len| len == "0")
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn content_ranges_are_read_strictly() {
        let range = |bytes, total| Some(ContentRange { bytes, total });
        for (value, expected) in [
            ("bytes 0-9/10", range(Some((0, 10)), Some(10))),
            ("bytes 5-5/*", range(Some((5, 6)), None)),
            ("bytes */7", range(None, Some(7))),
            ("bytes */*", None),
            ("bytes 5-4/10", None),
            ("bytes 0-10/10", None),
            ("bytes +0-9/10", None),
            ("bytes 0-18446744073709551615/*", None),
            ("bytes 0-9/9223372036854775808", None),
            ("items 0-9/10", None),
            ("bytes 0-9", None),
            ("", None),
        ] {
            assert_eq!(ContentRange::parse(value), expected, "{value}");
        }
    }

    proptest! {
        #[test]
        fn no_content_range_panics(value in "(bytes )?[0-9*/ -]{0,30}") {
            if let Some(ContentRange { bytes: Some((start, end)), total }) = ContentRange::parse(&value) {
                prop_assert!(start < end && total.is_none_or(|total| end <= total));
            }
        }
    }
}
