//! Changes samples at random and keeps what leads somewhere new.

use std::collections::HashSet;
use std::collections::hash_map::DefaultHasher;
use std::fs;
use std::hash::{Hash, Hasher};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use fastrand::Rng;

/// How long each target is tried if nothing else is said.
const BRIEFLY: Duration = Duration::from_millis(500);
/// One try that takes longer is a finding: with so few bytes nothing may.
const SLOW: Duration = Duration::from_secs(10);
/// Longer inputs are cut.
const LONGEST: usize = 64 << 10;
/// The most inputs that are kept because they led somewhere new.
const MOST_KEPT: usize = 4096;
/// Bytes that parsers like to stumble over.
const ODD: &[u8] = b"\0\x01\x7f\x80\xff\"\\/%:;,.-_{}[]()<> \t\r\n0129aZ";
/// Texts of the same kind.
const ODD_TEXTS: &[&str] = &[
    "18446744073709551615",
    "18446744073709551616",
    "9223372036854775808",
    "4294967296",
    "-1",
    "1e999",
    "null",
    "[[[[[[[[[[[[[[[[",
    "{\"a\":",
    "%00",
    "%2F",
    "%2E%2E",
    "../",
    "\u{feff}",
    "\u{202e}",
    "é",
    "bytes ",
    "W/\"",
    "http://",
    "https://[::1]:99999/",
    "signature=",
];

#[expect(clippy::disallowed_methods, reason = "how long to search")]
fn told(name: &str) -> Option<u64> {
    std::env::var(name)
        .ok()
        .map(|text| text.parse().expect("a number"))
}

/// Tells whether one target is searched for long, with nothing beside it.
pub fn is_alone() -> bool {
    told("KVFS_FUZZ_SECONDS").is_some()
}

/// Returns the inputs in `tests/corpus/TARGET`.
fn corpus(target: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/corpus")
        .join(target);
    let mut files: Vec<PathBuf> = fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .collect();
    files.sort();
    files
        .iter()
        .map(|path| fs::read(path).expect("an input"))
        .collect()
}

/// Tries the samples, the corpus, and changes of them. `run` returns what tells one kind of
/// outcome from another; inputs that lead to a new kind are changed further.
///
/// An input that makes it panic or take long is written to `target/fuzz` and fails the test.
#[expect(clippy::print_stdout, reason = "what a long search comes to")]
pub fn fuzz<T: Hash>(target: &str, samples: &[&[u8]], mut run: impl FnMut(&[u8]) -> T) {
    let span = told("KVFS_FUZZ_SECONDS").map_or(BRIEFLY, Duration::from_secs);
    let seed = told("KVFS_FUZZ_SEED").unwrap_or(1);
    let mut rng = Rng::with_seed(seed);
    let mut pool: Vec<Vec<u8>> = samples.iter().map(|sample| sample.to_vec()).collect();
    pool.extend(corpus(target));
    assert!(!pool.is_empty(), "{target} has no samples");
    let mut seen = HashSet::new();
    let mut tries = 0u64;
    let start = Instant::now();
    let mut attempt = |input: &[u8]| {
        let begun = Instant::now();
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            let mut hasher = DefaultHasher::new();
            run(input).hash(&mut hasher);
            hasher.finish()
        }));
        let slow = begun.elapsed() > SLOW;
        match outcome {
            Ok(outcome) if !slow => seen.insert(outcome),
            _ => {
                let path = keep(target, input);
                panic!(
                    "{target}: {} with {} (seed {seed}): {}",
                    if slow { "slow" } else { "a panic" },
                    path.display(),
                    input.escape_ascii()
                );
            }
        }
    };
    for input in &pool {
        attempt(input);
        tries += 1;
    }
    while start.elapsed() < span {
        let input = changed(&pool, &mut rng);
        if attempt(&input) && pool.len() < MOST_KEPT {
            pool.push(input);
        }
        tries += 1;
    }
    println!(
        "{target}: {tries} tries in {:.1} s, {} kinds of outcome, seed {seed}",
        start.elapsed().as_secs_f64(),
        seen.len()
    );
}

fn keep(target: &str, input: &[u8]) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("fuzz");
    let mut hasher = DefaultHasher::new();
    input.hash(&mut hasher);
    let path = folder.join(format!("{target}-{:016x}", hasher.finish()));
    let _ = fs::create_dir_all(&folder).and_then(|()| fs::write(&path, input));
    path
}

/// Returns an input that somebody has been at.
fn changed(pool: &[Vec<u8>], rng: &mut Rng) -> Vec<u8> {
    let mut input = pool[rng.usize(..pool.len())].clone();
    for _ in 0..1 << rng.u32(..4) {
        let at = rng.usize(..=input.len());
        match rng.u32(..9) {
            0 if at < input.len() => input[at] ^= 1 << rng.u32(..8),
            1 if at < input.len() => input[at] = rng.u8(..),
            2 => input.insert(at, ODD[rng.usize(..ODD.len())]),
            3 => {
                let end = (at + rng.usize(1..17)).min(input.len());
                input.drain(at..end);
            }
            4 => {
                let end = (at + rng.usize(1..65)).min(input.len());
                let piece = input[at..end].to_vec();
                let times = 1 << rng.u32(..6);
                let to = rng.usize(..=input.len());
                input.splice(to..to, piece.repeat(times));
            }
            5 => {
                let text = ODD_TEXTS[rng.usize(..ODD_TEXTS.len())];
                input.splice(at..at, text.bytes());
            }
            6 => {
                // A number, where there is one, becomes another.
                let digits = |byte: &u8| byte.is_ascii_digit();
                if let Some(from) = input[at..].iter().position(digits).map(|by| at + by) {
                    let len = input[from..].iter().take_while(|byte| digits(byte)).count();
                    let text = ODD_TEXTS[rng.usize(..6)];
                    input.splice(from..from + len, text.bytes());
                }
            }
            7 => {
                let other = &pool[rng.usize(..pool.len())];
                let from = rng.usize(..=other.len());
                input.truncate(at);
                input.extend_from_slice(&other[from..]);
            }
            8 => input.truncate(at),
            _ => {}
        }
        input.truncate(LONGEST);
    }
    input
}
