//! Chooses the form of a record: as stored if the client accepts its encoding, else decoded.
//!
//! Decoded bytes go out even to a client that forbids `identity`: a record is never refused for
//! its encoding.

use std::io::{Cursor, Read};
use std::time::Duration;

use crate::base::clock::Deadline;
use crate::store::codec::{DecoderMemory, Turn, expansion};
use crate::store::{Encoding, ErrorKind, StoreError};

/// How far a record is decoded before its answer begins, in bytes.
const LOOK: u64 = 64 * 1024;

/// How long a request waits for the memory of a decoder: long enough that those of clients that do
/// not read on have made way.
const PATIENCE: Duration = Duration::from_secs(5);

/// Returns whether an `Accept-Encoding` header takes `coding`. Without a header nothing but plain
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

/// Returns whether a record must be decoded for this client.
pub(super) fn must_decode(header: Option<&str>, stored: &Encoding) -> bool {
    match stored {
        Encoding::Identity | Encoding::Unknown(_) => false,
        Encoding::Gzip | Encoding::Brotli | Encoding::Deflate => {
            !accepts(header, stored.header_value().unwrap_or_default())
        }
    }
}

/// Decodes a record, up to `most` bytes as [`expansion::decoder`] does; `None` if the beginning shows
/// that it is not encoded as its sender said.
pub(super) fn decoded(
    encoding: &Encoding,
    body: Box<dyn Read + Send>,
    most: Option<u64>,
    memory: &DecoderMemory,
) -> Result<Option<Box<dyn Read + Send>>, StoreError> {
    let turn = Turn::Reader(Deadline::after(PATIENCE));
    let mut plain = expansion::decoder(encoding, body, most, memory, turn)?;
    let mut beginning = Vec::new();
    match (&mut plain).take(LOOK).read_to_end(&mut beginning) {
        Ok(_) => Ok(Some(Box::new(Cursor::new(beginning).chain(plain)))),
        Err(error) => match StoreError::from_io(error, ErrorKind::Disk) {
            error if error.kind() == ErrorKind::Corrupt => Ok(None),
            error => Err(error),
        },
    }
}

#[cfg(test)]
mod tests {
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
}
