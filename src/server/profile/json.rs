//! JSON as the platform writes it: indented, in its order, tagged, and from 1 kB on compressed.

use std::io::Write;

use axum::body::Body;
use axum::http::{HeaderMap, header};
use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use futures_util::stream;
use ring::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use serde_json::Value;

use super::{NO_ENDPOINT, set};

/// Shorter answers are not compressed.
const COMPRESSED: usize = 1024;

/// The platform's order of the fields of errors and store objects. Other fields follow as they
/// come; pages of keys keep the server's own order.
const ORDER: &[&str] = &[
    "type",
    "message",
    "id",
    "name",
    "userId",
    "createdAt",
    "modifiedAt",
    "accessedAt",
    "actId",
    "actRunId",
    "consoleUrl",
    "keysPublicUrl",
    "schema",
    "generalAccess",
    "urlSigningSecretKey",
    "stats",
    "readCount",
    "writeCount",
    "deleteCount",
    "listCount",
    "storageBytes",
    "s3StorageBytes",
];

/// Returns an answer's JSON as the platform would have written it.
pub(super) fn presented(text: &[u8], is_no_endpoint: bool) -> Vec<u8> {
    let is_page = text.starts_with(b"{\"data\":{\"items\":");
    if is_page {
        return indented(text);
    }
    let Ok(mut value) = serde_json::from_slice::<Value>(text) else {
        return text.to_vec();
    };
    if is_no_endpoint
        && let Some(Value::String(message)) = value.pointer_mut("/error/message")
        && !message.ends_with(NO_ENDPOINT)
    {
        message.push_str(NO_ENDPOINT);
    }
    let mut ordered = Vec::with_capacity(text.len());
    write(&value, &mut ordered);
    indented(&ordered)
}

/// Writes a value with its fields in order, without spaces.
fn write(value: &Value, out: &mut Vec<u8>) {
    match value {
        Value::Object(fields) => {
            let place = |name: &String| ORDER.iter().position(|known| known == name);
            let mut names: Vec<_> = fields.iter().collect();
            names.sort_by_key(|(name, _)| place(name).unwrap_or(ORDER.len()));
            out.push(b'{');
            for (at, (name, value)) in names.into_iter().enumerate() {
                if at > 0 {
                    out.push(b',');
                }
                out.extend_from_slice(Value::from(name.as_str()).to_string().as_bytes());
                out.push(b':');
                write(value, out);
            }
            out.push(b'}');
        }
        Value::Array(items) => {
            out.push(b'[');
            for (at, item) in items.iter().enumerate() {
                if at > 0 {
                    out.push(b',');
                }
                write(item, out);
            }
            out.push(b']');
        }
        plain => out.extend_from_slice(plain.to_string().as_bytes()),
    }
}

/// Indents JSON that has no spaces by two.
fn indented(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len() * 3 / 2);
    let (mut depth, mut in_text, mut escaped) = (0, false, false);
    let line = |out: &mut Vec<u8>, depth: usize| {
        out.push(b'\n');
        out.resize(out.len() + 2 * depth, b' ');
    };
    for (at, &byte) in text.iter().enumerate() {
        if in_text {
            out.push(byte);
            in_text = escaped || byte != b'"';
            escaped = byte == b'\\' && !escaped;
            continue;
        }
        match byte {
            b'{' | b'[' => {
                out.push(byte);
                if !matches!(text.get(at + 1), Some(b'}' | b']')) {
                    depth += 1;
                    line(&mut out, depth);
                }
            }
            b'}' | b']' => {
                if !matches!(
                    at.checked_sub(1).and_then(|at| text.get(at)),
                    Some(b'{' | b'[')
                ) {
                    depth -= 1;
                    line(&mut out, depth);
                }
                out.push(byte);
            }
            b',' => {
                out.push(byte);
                line(&mut out, depth);
            }
            b':' => out.extend_from_slice(b": "),
            byte => {
                in_text = byte == b'"';
                out.push(byte);
            }
        }
    }
    out
}

/// Returns the weak entity tag of a text: its length and SHA-1.
pub(super) fn tag(text: &[u8]) -> String {
    let sum = STANDARD_NO_PAD.encode(digest(&SHA1_FOR_LEGACY_USE_ONLY, text));
    format!("W/\"{:x}-{sum}\"", text.len())
}

/// Returns the body of an answer, compressed if it is long and that is accepted.
pub(super) fn body(text: Vec<u8>, takes_gzip: bool, headers: &mut HeaderMap) -> Body {
    headers.remove(header::CONTENT_LENGTH);
    if text.len() < COMPRESSED {
        return Body::from(text);
    }
    set(headers, "vary", "Accept-Encoding");
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    let packed = takes_gzip
        .then(|| encoder.write_all(&text).and_then(|()| encoder.finish()))
        .and_then(Result::ok);
    match packed {
        Some(packed) => {
            set(headers, "content-encoding", "gzip");
            // Without a length, as what is compressed on its way out.
            let piece = std::io::Result::Ok(Bytes::from(packed));
            Body::from_stream(stream::once(async { piece }))
        }
        None => Body::from(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_written_as_recorded() {
        let text = presented(
            br#"{"error":{"message":"Record was not found","type":"record-not-found"}}"#,
            false,
        );
        let shown = "{\n  \"error\": {\n    \"type\": \"record-not-found\",\n    \"message\": \"Record was not found\"\n  }\n}";
        assert_eq!(String::from_utf8_lossy(&text), shown);
        assert_eq!(tag(b"{}"), super::super::EMPTY_OBJECT);
        let page = br#"{"data":{"items":[],"count":0,"x":"a\"{,:\\","y":[{}]}}"#;
        let value: Value = serde_json::from_slice(page).expect("JSON");
        assert_eq!(
            serde_json::from_slice::<Value>(&indented(page)).expect("JSON"),
            value
        );
        assert!(
            indented(page).starts_with(b"{\n  \"data\": {\n    \"items\": [],\n    \"count\": 0,")
        );
    }
}
