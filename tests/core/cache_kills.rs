//! Killed at any moment, a process leaves a disk cache that the next one can use as it is.

use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::thread;
use std::time::Duration;

use crate::cli::User;
use crate::support::served::{STORE, TOKEN, TestServer};

/// How often a process is killed; `KVFS_KILLS` says otherwise.
const KILLS: u32 = 40;
/// The latest that a process is killed.
const LONGEST_LIFE: Duration = Duration::from_millis(120);

#[expect(clippy::disallowed_methods, reason = "how long this runs")]
fn kills() -> u32 {
    std::env::var("KVFS_KILLS")
        .ok()
        .map_or(KILLS, |text| text.parse().expect("a number"))
}

/// Records that stay in memory until they are written, and some that are spooled.
fn records() -> Vec<(String, Vec<u8>)> {
    [1, 100, 4096, 70_000, 300_000, 1_500_000, 3_000_000]
        .iter()
        .enumerate()
        .flat_map(|(kind, size)| (0..3).map(move |n| (kind, n, *size)))
        .map(|(kind, n, size)| {
            let mut rng = fastrand::Rng::with_seed((kind * 10 + n) as u64);
            let bytes = std::iter::repeat_with(|| rng.u8(..)).take(size).collect();
            (format!("r{kind}-{n}"), bytes)
        })
        .collect()
}

/// Returns the files of contents on their way in the cache folder.
fn temporary(cache: &Path) -> Vec<String> {
    fs::read_dir(cache.join("kvfs/kvfs-1/tmp"))
        .expect("the cache")
        .flatten()
        .map(|entry| entry.path().display().to_string())
        .collect()
}

#[test]
fn a_cache_survives_kills_at_any_moment() {
    let (server, user) = (TestServer::start(), User::new());
    let records = records();
    for (key, bytes) in &records {
        server.put(key, "application/octet-stream", Default::default(), bytes);
    }
    let store = format!("~{STORE}");
    let cat = |keys: &[&str]| {
        let mut command = user.kvfs();
        command
            .args([&["cat", "-v", &store], keys].concat())
            .env("APIFY_TOKEN", TOKEN)
            .env("APIFY_CLIENT_BASE_URL", server.url())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    };
    let keys: Vec<&str> = records.iter().map(|(key, _)| key.as_str()).collect();
    for round in 0..kills() {
        // Whatever it had got to, what it had cached is right; the rest is fetched.
        let (key, bytes) = &records[fastrand::usize(..records.len())];
        let read = cat(&[key]).output().expect("kvfs runs");
        let log = String::from_utf8_lossy(&read.stderr);
        assert!(read.stdout == *bytes, "round {round}, {key}: {log}");
        assert!(!log.contains("is broken"), "round {round}: {log}");

        // Now and then everything is to be fetched anew.
        if round % 8 == 7 {
            fs::remove_dir_all(user.path("cache")).expect("the cache");
        }
        let mut shuffled = keys.clone();
        fastrand::shuffle(&mut shuffled);
        let mut victim = cat(&shuffled)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("kvfs runs");
        thread::sleep(LONGEST_LIFE.mul_f64(fastrand::f64()));
        victim.kill().expect("a kill");
        victim.wait().expect("an end");
    }
    // Each process clears away what dead ones have left, unless it ends before it gets to that.
    let cleared = (0..100).any(|_| {
        let read = cat(&["r0-0", "r6-0"]).output().expect("kvfs runs");
        assert!(read.status.success(), "{read:?}");
        temporary(&user.path("cache")).is_empty()
    });
    let left = temporary(&user.path("cache"));
    assert!(cleared, "temporary files stay: {left:?}");
}
