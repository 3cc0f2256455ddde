//! Programs that exercise filesystems: fsx on one record, and pjdfstest on a whole mount.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use kvfs::base::units::ByteSize;
use kvfs::mount::build::MountConfig;

use super::Writable;
use crate::support::long;

/// A program that `scripts/test` has built.
fn tool(name: &str) -> PathBuf {
    let binaries = Path::new(env!("CARGO_BIN_EXE_kvfs")).parent();
    let target = binaries.and_then(Path::parent).expect("a target folder");
    let tool = target.join("test-tools/posix").join(name);
    assert!(
        tool.is_file(),
        "{} is missing: scripts/test builds it",
        tool.display()
    );
    tool
}

/// All operations that fsx knows for files, and how often.
const FSX: &str = "
flen = 262144
[opsize]
max = 65536
[weights]
close_open = 1
read = 10
write = 10
mapread = 10
mapwrite = 10
invalidate = 1
truncate = 10
fsync = 1
fdatasync = 1
posix_fallocate = 2
punch_hole = 2
sendfile = 3
posix_fadvise = 2
copy_file_range = 3
";

/// Lets fsx work on one record, which ends as the bytes that fsx has at its end.
fn fsx(seed: u64, change: impl FnOnce(&mut MountConfig)) {
    let (operations, limit) = match long() {
        true => (200_000, Duration::from_secs(3600)),
        false => (3_000, Duration::from_secs(120)),
    };
    let writable = Writable::mounted(change);
    let beside = writable.mount.beside();
    fs::write(beside.join("fsx.toml"), FSX).expect("a file");
    let ran = writable
        .mount
        .start_sh(&format!(
            "{} -N {operations} -S {seed} -f $BESIDE/fsx.toml -P $BESIDE record",
            tool("fsx").display(),
        ))
        .wait(limit);
    assert!(
        ran.status.success(),
        "fsx -S {seed}: {}{}",
        String::from_utf8_lossy(&ran.stdout),
        ran.stderr
    );
    let bytes = fs::read(writable.file("record")).expect("the record");
    writable.mount.works("sync record");
    writable.holds("record", bytes);
    writable.leaves(&["record"]);
}

#[test]
fn fsx_finds_every_byte_that_it_wrote() {
    fsx(1, |_| {});
}

#[test]
fn fsx_finds_every_byte_when_next_to_nothing_can_be_cached() {
    fsx(2, |config| {
        config.memory_cache = ByteSize(256 << 10);
        if let Some(disk) = &mut config.disk_cache {
            disk.size = ByteSize(1 << 20);
        }
    });
}

#[test]
fn fsx_finds_every_byte_that_is_uploaded_in_the_background() {
    fsx(3, |config| {
        if let Some(write) = &mut config.write {
            write.write_back = true;
        }
    });
}

/// The settings of pjdfstest: what is optional on Linux, and two users to work as.
const PJDFSTEST: &str = r#"
[features]
posix_fallocate = {}
utimensat = {}
utime_now = {}
[settings]
naptime = 0.01
[dummy_auth]
entries = [["nobody", "nogroup"], ["daemon", "daemon"]]
"#;

/// Which cases do not pass, and why: lines of a pattern (`*` for anything) after a `#` reason.
const SKIPPED: &str = include_str!("pjdfstest.skip");

#[test]
fn pjdfstest_passes_but_for_what_needs_more_than_a_flat_folder_of_files() {
    let writable = Writable::mounted(|config| {
        config.access = kvfs::mount::build::MountAccess::Everybody;
        // A case writes 2 GiB and waits until a busy machine has stored them.
        config.deadline = Duration::from_secs(200);
    });
    let beside = writable.mount.beside();
    fs::write(beside.join("pjdfstest.toml"), PJDFSTEST).expect("a file");
    let ran = writable
        .mount
        .start_sh(&format!(
            "exec {} -c $BESIDE/pjdfstest.toml -s $BESIDE -p {}",
            tool("pjdfstest").display(),
            writable.mount.path().display()
        ))
        .wait(Duration::from_secs(240));
    let out = String::from_utf8_lossy(&ran.stdout);
    let mut passed = 0;
    let mut wrong = Vec::new();
    let mut unused: BTreeSet<&str> = patterns().collect();
    let mut lines = out.lines().peekable();
    while let Some(line) = lines.next() {
        let plain = without_colors(line);
        let mut words = plain.split_whitespace();
        let (Some(case), Some(verdict), None) = (words.next(), words.next(), words.next()) else {
            continue;
        };
        if !matches!(verdict, "ok" | "FAILED" | "skipped") || !case.contains("::") {
            continue;
        }
        let skipped: Vec<&str> = patterns().filter(|pattern| fits(pattern, case)).collect();
        match (verdict, skipped.is_empty()) {
            ("ok", true) => passed += 1,
            ("ok", false) => {}
            (_, true) => {
                let why = lines.peek().map_or("", |why| why.trim());
                wrong.push(format!("{case} {verdict}: {why}"));
            }
            (_, false) => {
                for pattern in skipped {
                    unused.remove(pattern);
                }
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "{} cases:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
    assert!(unused.is_empty(), "these pass: {unused:?}");
    assert!(
        passed >= 50,
        "only {passed} cases passed: {out}{}",
        ran.stderr
    );
}

fn patterns() -> impl Iterator<Item = &'static str> {
    let lines = SKIPPED.lines().map(str::trim);
    lines.filter(|line| !line.is_empty() && !line.starts_with('#'))
}

/// Tells whether a case fits a pattern in which `*` stands for anything.
fn fits(pattern: &str, case: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == case,
        Some((start, rest)) => case
            .strip_prefix(start)
            .is_some_and(|case| (0..=case.len()).any(|skipped| fits(rest, &case[skipped..]))),
    }
}

fn without_colors(line: &str) -> String {
    let mut plain = String::new();
    let mut parts = line.split('\u{1b}');
    plain.push_str(parts.next().unwrap_or_default());
    for part in parts {
        plain.push_str(part.split_once('m').map_or("", |(_, text)| text));
    }
    plain
}
