//! What the hot paths cost, in instructions: the same on a busy machine as on a quiet one.
//!
//! The test runs itself under callgrind, whose counts are those of this profile and not of a
//! release: they guard against what makes a path several times longer, which no timing can.

use std::process::Command;
use std::time::Duration;

use kvfs::fs::types::Ino;
use kvfs::local::memory::MemoryStore;
use kvfs::prefetch::detector::{Ahead, Detector, Records};
use kvfs::store::Encoding;

use crate::support::core::{Core, Names, Setup, patient};

const RECORDS: usize = 1000;

/// Tells the inner run from the outer one.
const INNER: &str = "KVFS_TEST_HOT_PATHS";

/// The function, what it does once for each record, and the most instructions that this may take:
/// about half more than it took when this was written.
const LIMITS: [(&str, &str, u64); 4] = [
    ("hot_list", "an entry of a listing that is known", 46_000),
    (
        "hot_lookup",
        "looking up a name that is known, and forgetting it",
        150_000,
    ),
    (
        "hot_read",
        "opening, reading and closing a record in memory",
        37_000,
    ),
    ("hot_scan", "noticing an open of a scan", 11_000),
];

fn name(n: usize) -> String {
    format!("rec-{n:07}.json")
}

#[inline(never)]
fn hot_list(core: &Core) {
    let fh = core.fs.opendir(Ino::ROOT).expect("a handle");
    let mut names = Names::default();
    core.fs
        .readdir(fh, 0, true, &mut names, patient())
        .expect("a listing");
    core.fs.releasedir(fh);
    assert_eq!(names.0.len(), RECORDS);
}

#[inline(never)]
fn hot_lookup(core: &Core, names: &[String]) {
    for name in names {
        let reply = core.lookup(name).expect("an answer").expect("present");
        core.fs.forget(reply.attr.ino, 1);
    }
}

#[inline(never)]
fn hot_read(core: &Core, inodes: &[Ino]) {
    for ino in inodes {
        let opened = core.fs.open(*ino, false, patient()).expect("open");
        let bytes = core.fs.read(opened.fh, 0, 4096, patient()).expect("bytes");
        assert_eq!(bytes.len(), 4096);
        core.fs.release(opened.fh);
    }
}

#[inline(never)]
fn hot_scan(detector: &mut Detector, records: &dyn Records) {
    let mut wanted = 0;
    for rank in 0..RECORDS as u64 {
        wanted += detector
            .opened(rank, Duration::from_millis(rank), records)
            .len();
    }
    assert!(wanted > RECORDS / 2, "a scan is noticed");
}

/// Records of one class and size.
struct Alike;

impl Records for Alike {
    fn at(&self, rank: u64) -> Option<Ahead> {
        (rank < RECORDS as u64).then_some(Ahead {
            class: 0,
            shape: 0,
            bytes: 4096,
        })
    }
}

fn work() {
    let store = MemoryStore::new();
    let names: Vec<String> = (0..RECORDS).map(name).collect();
    for name in &names {
        let bytes = vec![b'x'; 4096];
        store.insert(name, "application/json", Encoding::Identity, bytes);
    }
    let core = Setup::new(store).core(None);
    core.list().expect("a listing");
    let mut inodes = Vec::new();
    for name in &names {
        core.cat(name).expect("its bytes");
        let reply = core.lookup(name).expect("an answer").expect("present");
        inodes.push(reply.attr.ino);
    }
    hot_list(&core);
    hot_lookup(&core, &names);
    hot_read(&core, &inodes);
    hot_scan(
        &mut Detector::new(64 << 20, Duration::from_secs(10)),
        &Alike,
    );
}

/// Returns the instructions of each function of [`LIMITS`], with what it calls.
fn counts(annotated: &str) -> Vec<u64> {
    let count = |name: &&str| {
        let end = format!("::{name}");
        let line = annotated.lines().find(|line| {
            let function = line.split(" [").next().unwrap_or_default();
            function.ends_with(&end)
        });
        let digits = line?.trim_start().split(' ').next()?.replace(',', "");
        digits.parse().ok()
    };
    let names = LIMITS.iter().map(|(name, ..)| name);
    names
        .map(|name| count(name).unwrap_or_else(|| panic!("{name} is not in\n{annotated}")))
        .collect()
}

#[test]
#[expect(
    clippy::disallowed_methods,
    reason = "tells the inner run from the outer one"
)]
fn the_hot_paths_take_about_as_many_instructions_as_ever() {
    if std::env::var_os(INNER).is_some() {
        return work();
    }
    let dir = tempfile::tempdir().expect("a folder");
    let out = dir.path().join("out");
    let run = Command::new("valgrind")
        .args(["--tool=callgrind", "--quiet"])
        .arg(format!("--callgrind-out-file={}", out.display()))
        .arg(std::env::current_exe().expect("this program"))
        .args(["--exact", "--test-threads=1"])
        .arg("instructions::the_hot_paths_take_about_as_many_instructions_as_ever")
        .env(INNER, "1")
        .output()
        .expect("valgrind");
    assert!(run.status.success(), "{run:?}");
    let annotated = Command::new("callgrind_annotate")
        .args(["--inclusive=yes", "--threshold=100"])
        .arg(&out)
        .output()
        .expect("callgrind_annotate");
    assert!(annotated.status.success(), "{annotated:?}");
    let counts = counts(&String::from_utf8_lossy(&annotated.stdout));
    let mut longer = Vec::new();
    for ((name, what, most), count) in LIMITS.iter().zip(counts) {
        let each = count / RECORDS as u64;
        eprintln!("{what}: {each} instructions, at most {most} ({name})");
        if each > *most {
            longer.push(format!(
                "{what}: {each} instructions instead of at most {most}"
            ));
        }
    }
    assert!(longer.is_empty(), "{longer:#?}");
}
