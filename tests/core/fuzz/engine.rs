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
/// All targets: each has a folder in `tests/corpus`, and there are no others.
const TARGETS: &[&str] = &[
    "answer",
    "cache-entry",
    "decode",
    "error",
    "header",
    "journal",
    "listing",
    "name",
    "page",
    "pending",
    "reference",
    "request",
    "saved-listing",
    "signature",
];
/// What is checked in is to be looked at by people.
const LONGEST_CHECKED_IN: usize = 4 << 10;
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

fn corpora() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus")
}

/// Returns the inputs in `tests/corpus/TARGET`.
fn corpus(target: &str) -> Vec<Vec<u8>> {
    let files = fs::read_dir(corpora().join(target)).expect("a folder of the target's");
    let mut paths: Vec<PathBuf> = files.map(|file| file.expect("a file").path()).collect();
    paths.sort();
    assert!(!paths.is_empty(), "{target} has no corpus");
    paths
        .iter()
        .map(|path| fs::read(path).expect("an input"))
        .collect()
}

#[test]
fn every_corpus_is_that_of_a_target() {
    let folders = fs::read_dir(corpora()).expect("the corpora");
    let mut names: Vec<String> = folders
        .map(|folder| folder.expect("a folder").file_name())
        .map(|name| name.into_string().expect("a name"))
        .collect();
    names.sort();
    assert_eq!(names, TARGETS);
    for target in TARGETS {
        for input in corpus(target) {
            assert!(
                input.len() <= LONGEST_CHECKED_IN,
                "{target}: {}",
                input.escape_ascii()
            );
        }
    }
}

/// Tries the samples, the corpus, and changes of them; however short the time, all samples and the
/// whole corpus. `run` returns what tells one kind of outcome from another; inputs that lead to a
/// new kind are changed further.
///
/// An input that makes it panic, or take long whenever it is tried, is written to `target/tmp/fuzz`
/// and fails the test. Time in which the machine stood still does not count.
#[expect(clippy::print_stdout, reason = "what a long search comes to")]
pub fn fuzz<T: Hash>(target: &str, samples: &[&[u8]], mut run: impl FnMut(&[u8]) -> T) {
    let span = told("KVFS_FUZZ_SECONDS").map_or(BRIEFLY, Duration::from_secs);
    let seed = told("KVFS_FUZZ_SEED").unwrap_or(1);
    let mut rng = Rng::with_seed(seed);
    assert!(TARGETS.contains(&target), "{target} is a target");
    let mut pool: Vec<Vec<u8>> = samples.iter().map(|sample| sample.to_vec()).collect();
    pool.extend(corpus(target));
    let mut seen = HashSet::new();
    let mut tries = 0u64;
    let mut searched = Duration::ZERO;
    let mut attempt = |input: &[u8]| {
        let (mut outcome, mut took) = (None, Duration::MAX);
        for _ in 0..2 {
            let begun = Instant::now();
            outcome = catch_unwind(AssertUnwindSafe(|| {
                let mut hasher = DefaultHasher::new();
                run(input).hash(&mut hasher);
                hasher.finish()
            }))
            .ok();
            took = begun.elapsed();
            if took <= SLOW || outcome.is_none() {
                break;
            }
        }
        match outcome {
            Some(outcome) if took <= SLOW => seen.insert(outcome),
            _ => {
                let path = keep(target, input);
                panic!(
                    "{target}: {} with {} (seed {seed}): {}",
                    outcome.map_or("a panic", |_| "slow"),
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
    while searched < span {
        let begun = Instant::now();
        let input = changed(&pool, &mut rng);
        if attempt(&input) && pool.len() < MOST_KEPT {
            pool.push(input);
        }
        tries += 1;
        let took = begun.elapsed();
        if took <= SLOW {
            searched += took;
        }
    }
    println!(
        "{target}: {tries} tries in {:.1} s, {} kinds of outcome, seed {seed}",
        searched.as_secs_f64(),
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
