//! Which form of a record goes out: as stored where the client takes its encoding, else decoded.
//!
//! Decoded bytes go out even to a client that forbids `identity`: a record is never refused for
//! its encoding.

use std::io::{self, BufRead, BufReader, Read};

use flate2::read::{DeflateDecoder, MultiGzDecoder, ZlibDecoder};

use crate::store::Encoding;

/// Bytes decoded at once.
const BUFFER: usize = 64 * 1024;

/// Tells whether an `Accept-Encoding` header takes `coding`. Without a header nothing but plain
/// bytes is taken: the platform decodes for clients that do not ask.
pub(super) fn accepts(header: Option<&str>, coding: &str) -> bool {
    let mut any = false;
    for item in header.unwrap_or_default().split(',') {
        let mut parts = item.split(';');
        let name = parts.next().unwrap_or_default().trim();
        let quality = parts
            .filter_map(|part| part.split_once('='))
            .find(|(name, _)| name.trim().eq_ignore_ascii_case("q"))
            .map_or(1.0, |(_, value)| value.trim().parse::<f32>().unwrap_or(0.0));
        let same = name.eq_ignore_ascii_case(coding)
            || (coding == "gzip" && name.eq_ignore_ascii_case("x-gzip"));
        if same {
            return quality > 0.0;
        }
        any |= name == "*" && quality > 0.0;
    }
    any
}

/// Tells whether a record must be decoded for this client.
pub(super) fn must_decode(header: Option<&str>, stored: &Encoding) -> bool {
    match stored {
        Encoding::Identity | Encoding::Unknown(_) => false,
        Encoding::Gzip | Encoding::Brotli | Encoding::Deflate => {
            !accepts(header, stored.header_value().unwrap_or_default())
        }
    }
}

/// Undoes an encoding on the fly; bytes that are not encoded so end in an error.
pub(super) fn decode(
    encoding: &Encoding,
    body: Box<dyn Read + Send>,
) -> io::Result<Box<dyn Read + Send>> {
    Ok(match encoding {
        Encoding::Identity | Encoding::Unknown(_) => body,
        Encoding::Gzip => Box::new(MultiGzDecoder::new(body)),
        Encoding::Brotli => Box::new(brotli::Decompressor::new(body, BUFFER)),
        Encoding::Deflate => {
            let mut body = BufReader::with_capacity(BUFFER, body);
            if is_zlib(body.fill_buf()?) {
                Box::new(ZlibDecoder::new(body))
            } else {
                Box::new(DeflateDecoder::new(body))
            }
        }
    })
}

/// Tells zlib from bare deflate by its two header bytes (RFC 1950).
fn is_zlib(start: &[u8]) -> bool {
    match start {
        [method, flags, ..] => {
            method & 0x0f == 8 && (u16::from(*method) << 8 | u16::from(*flags)).is_multiple_of(31)
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn encodings_are_accepted_by_name_wildcard_and_quality() {
        for (header, gzip, br) in [
            (None, false, false),
            (Some(""), false, false),
            (Some("gzip, deflate, br"), true, true),
            (Some("GZIP"), true, false),
            (Some("x-gzip;q=0.2"), true, false),
            (Some("gzip;q=0, *"), false, true),
            (Some("*;q=0"), false, false),
            (Some("br;q=0.001, identity;q=0"), false, true),
            (Some("br; q=0.0"), false, false),
            (Some("identity"), false, false),
        ] {
            assert_eq!(accepts(header, "gzip"), gzip, "{header:?}");
            assert_eq!(accepts(header, "br"), br, "{header:?}");
        }
    }

    #[test]
    fn both_kinds_of_deflate_are_decoded() {
        let text = b"text ".repeat(100);
        let level = flate2::Compression::default();
        let mut zlib = flate2::write::ZlibEncoder::new(Vec::new(), level);
        let mut bare = flate2::write::DeflateEncoder::new(Vec::new(), level);
        zlib.write_all(&text).expect("encoding");
        bare.write_all(&text).expect("encoding");
        for bytes in [zlib.finish(), bare.finish()] {
            let stored = io::Cursor::new(bytes.expect("encoding"));
            let mut plain = Vec::new();
            decode(&Encoding::Deflate, Box::new(stored))
                .expect("a decoder")
                .read_to_end(&mut plain)
                .expect("decoding");
            assert_eq!(plain, text);
        }
    }
}
