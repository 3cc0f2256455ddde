//! The sample store of `kvfs demo`: what a crawler leaves behind.

use std::io::Write;

use flate2::Compression;
use flate2::write::ZlibEncoder;

use crate::base::clock::Deadline;
use crate::store::{Encoding, Key, PutRequest, Store, StoreError, Upload};

/// How many products the sample crawler found.
const PRODUCTS: u32 = 500;

/// The width and height of the screenshot.
const WIDTH: u32 = 320;
const HEIGHT: u32 = 200;

/// How many bytes the brotli encoder works on at a time.
const BROTLI_BUFFER: usize = 4096;

/// A record of the sample store.
#[derive(Debug)]
pub struct Sample {
    /// Its key.
    pub key: &'static str,
    /// Its `Content-Type`.
    pub content_type: &'static str,
    /// Whether it is stored compressed, with `Content-Encoding: br`.
    pub brotli: bool,
    /// Its content, not yet compressed.
    pub content: Vec<u8>,
}

/// Returns the sample records.
pub fn samples() -> Vec<Sample> {
    let sample = |key, content_type, brotli, content| Sample {
        key,
        content_type,
        brotli,
        content,
    };
    let json = "application/json; charset=utf-8";
    vec![
        sample("INPUT", json, false, input().into_bytes()),
        sample("OUTPUT", json, false, output().into_bytes()),
        sample(
            "index.html",
            "text/html; charset=utf-8",
            false,
            page().into_bytes(),
        ),
        sample(
            "products.csv",
            "text/csv; charset=utf-8",
            false,
            csv().into_bytes(),
        ),
        sample("products.json", json, true, products().into_bytes()),
        sample("SCREENSHOT.png", "image/png", false, screenshot()),
    ]
}

/// Stores the sample records.
///
/// # Errors
/// The first that the store refuses.
pub fn fill(store: &dyn Store, deadline: Deadline) -> Result<(), StoreError> {
    for sample in samples() {
        let (encoding, body) = if sample.brotli {
            (Encoding::Brotli, brotli(&sample.content))
        } else {
            (Encoding::Identity, sample.content)
        };
        let request = PutRequest {
            content_type: Some(sample.content_type.into()),
            encoding,
            ..PutRequest::default()
        };
        if let Some(key) = Key::new(sample.key) {
            store.put(&key, &request, Upload::Bytes(&body), deadline)?;
        }
    }
    Ok(())
}

fn input() -> String {
    r#"{
  "startUrls": [{ "url": "https://shop.example/" }],
  "maxPagesPerCrawl": 500,
  "proxy": { "useApifyProxy": true }
}
"#
    .to_owned()
}

fn output() -> String {
    format!("{{\n  \"status\": \"SUCCEEDED\",\n  \"products\": {PRODUCTS},\n  \"failed\": 3\n}}\n")
}

fn page() -> String {
    let items: String = (1..=10)
        .map(|n| format!("    <li><a href=\"/p/{n}\">Product {n}</a></li>\n"))
        .collect();
    format!(
        "<!doctype html>\n<html>\n  <head><title>A shop</title></head>\n  <body>\n  <ul>\n{items}  \
         </ul>\n  </body>\n</html>\n"
    )
}

/// Returns name and price in cents of a product.
fn product(n: u32) -> (String, u32) {
    (format!("Product {n}"), 499 + n * 37 % 9000)
}

fn csv() -> String {
    let rows: String = (1..=PRODUCTS)
        .map(|n| {
            let (name, cents) = product(n);
            format!("{n},{name},{}.{:02},EUR\n", cents / 100, cents % 100)
        })
        .collect();
    format!("id,name,price,currency\n{rows}")
}

fn products() -> String {
    let rows: Vec<String> = (1..=PRODUCTS)
        .map(|n| {
            let (name, cents) = product(n);
            format!("  {{ \"id\": {n}, \"name\": \"{name}\", \"cents\": {cents} }}")
        })
        .collect();
    format!("[\n{}\n]\n", rows.join(",\n"))
}

fn brotli(content: &[u8]) -> Vec<u8> {
    let mut writer = brotli::CompressorWriter::new(Vec::new(), BROTLI_BUFFER, 9, 22);
    // Writing to memory does not fail.
    let _ = writer.write_all(content);
    writer.into_inner()
}

/// Returns a picture that compresses about as well as a photo of a web page.
fn screenshot() -> Vec<u8> {
    let mut rows = Vec::new();
    for y in 0..HEIGHT {
        // Every row begins with its filter: none.
        rows.push(0);
        for x in 0..WIDTH {
            let header = y < 24;
            let card = (x / 80 + y / 60) % 2 == 0;
            let shade = ((x * 7) ^ (y * 13)) & 15;
            rows.extend(match (header, card) {
                (true, _) => [24, 60 + (shade >> 1) as u8, 130],
                (false, true) => [225 + shade as u8, 230, 240],
                (false, false) => [250, 250, 240 + shade as u8],
            });
        }
    }
    png(WIDTH, HEIGHT, &rows)
}

/// Encodes rows of RGB pixels, each row after its filter byte, as PNG.
fn png(width: u32, height: u32, rows: &[u8]) -> Vec<u8> {
    let mut header = Vec::new();
    header.extend(width.to_be_bytes());
    header.extend(height.to_be_bytes());
    // 8 bits a channel, RGB, deflate, adaptive filters, not interlaced.
    header.extend([8, 2, 0, 0, 0]);
    let mut deflate = ZlibEncoder::new(Vec::new(), Compression::default());
    // Writing to memory does not fail.
    let _ = deflate.write_all(rows);
    let pixels = deflate.finish().unwrap_or_default();
    let mut out = b"\x89PNG\r\n\x1a\n".to_vec();
    for (kind, data) in [(b"IHDR", header), (b"IDAT", pixels), (b"IEND", Vec::new())] {
        let length = u32::try_from(data.len()).unwrap_or(0);
        out.extend(length.to_be_bytes());
        let start = out.len();
        out.extend(kind);
        out.extend(data);
        let mut crc = flate2::Crc::new();
        crc.update(&out[start..]);
        out.extend(crc.sum().to_be_bytes());
    }
    out
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn the_json_records_are_json() {
        for sample in samples() {
            if sample.content_type.starts_with("application/json") {
                let parsed: Result<serde_json::Value, _> = serde_json::from_slice(&sample.content);
                assert!(parsed.is_ok(), "{}: {parsed:?}", sample.key);
            }
        }
    }

    #[test]
    fn the_screenshot_is_a_png_of_its_size() {
        let picture = screenshot();
        assert_eq!(&picture[..8], b"\x89PNG\r\n\x1a\n");
        assert_eq!(&picture[16..24], &[0, 0, 1, 64, 0, 0, 0, 200]);
        assert_eq!(&picture[picture.len() - 8..], b"IEND\xae\x42\x60\x82");
    }

    #[test]
    fn brotli_can_be_undone() {
        let content = products().into_bytes();
        let compressed = brotli(&content);
        assert!(compressed.len() < content.len() / 4);
        let mut back = Vec::new();
        brotli::Decompressor::new(compressed.as_slice(), BROTLI_BUFFER)
            .read_to_end(&mut back)
            .expect("brotli");
        assert_eq!(back, content);
    }
}
