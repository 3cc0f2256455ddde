//! Two programs change one record at the same time, and the answers of the store are lost: every call
//! ends with its deadline, and what was written is in the store or in the journal.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::support::mounted::{PYTHON, Running};
use crate::write_back::Writer;

/// The mount's deadline where nothing is answered.
const SHORT: Duration = Duration::from_secs(3);
/// The same where a few answers are lost: by then all is found out, however busy the machine is.
const LONG: Duration = Duration::from_secs(60);
/// What a busy machine may add to all the calls of a program.
const BUSY: Duration = Duration::from_secs(15);

/// Changes the file `$2` as `$1` says: `$3` is in it afterwards. Each takes three calls that may wait at
/// most.
const CHANGE: &str = "import os, sys
how, path, text = sys.argv[1], sys.argv[2], sys.argv[3].encode()
flags = {'over': os.O_TRUNC, 'add': os.O_APPEND, 'edit': 0, 'move': os.O_TRUNC}[how]
target = path + '.new' if how == 'move' else path
fd = os.open(target, os.O_WRONLY | os.O_CREAT | flags, 0o644)
os.write(fd, text)
os.close(fd)
if how == 'move': os.rename(target, path)
";

/// How the first program changes a record and how the second one does.
const PAIRS: [(&str, &str); 6] = [
    ("over", "over"),
    ("add", "add"),
    ("edit", "over"),
    ("over", "move"),
    ("add", "over"),
    ("move", "add"),
];

/// Returns everything that lies in the journal of a user's mounts.
fn journalled(writer: &Writer) -> String {
    fn collect(folder: &Path, into: &mut Vec<u8>) {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                collect(&path, into);
            } else if path
                .extension()
                .is_some_and(|extension| extension == "data")
            {
                into.extend(fs::read(&path).unwrap_or_default());
            }
        }
    }
    let mut all = Vec::new();
    collect(&writer.user.path(".local/state/kvfs/staging"), &mut all);
    String::from_utf8_lossy(&all).into_owned()
}

/// Runs all pairs while so many uploads of each record have no answer, carried out or not.
fn lose_answers(etags: bool, write_back: bool, fault: &str, lost: u64) {
    let about = format!("{etags}, {write_back}, {fault}, {lost}");
    let is_found_out = lost <= 3;
    let deadline = if is_found_out { LONG } else { SHORT };
    let writer = Writer::new(|config| {
        config.knobs.etags = etags;
        let rules = (0..PAIRS.len()).map(|key| {
            let rule = format!("{fault},method=PUT,key=key-{key},count={lost}");
            rule.parse().expect("a rule")
        });
        config.knobs.faults = rules.collect();
    });
    for key in 0..PAIRS.len() {
        let text = kvfs::store::Encoding::Identity;
        let name = format!("key-{key}");
        writer.server.put(&name, "text/plain", text, b"base\n");
    }
    let seconds = format!("{}s", deadline.as_secs());
    let store = format!("~{}", crate::support::served::STORE);
    let mut args = vec!["mount", "--rw", "--unmount-timeout", "1s"];
    args.extend(["--deadline", &seconds, &store, "mnt"]);
    if write_back {
        args.insert(1, "--write-back");
    }
    writer.works(&args);
    let text = |key: usize, program: usize| format!("text-{key}-{program}\n");
    let start = |how: &str, key: usize, program: usize| {
        let mut python = PYTHON.split(' ');
        let mut command = Command::new(python.next().expect("an interpreter"));
        command.args(python).args(["-c", CHANGE, how]);
        command.arg(writer.user.path("mnt").join(format!("key-{key}")));
        Running::start(command.arg(text(key, program)))
    };
    let started: Vec<_> = PAIRS
        .iter()
        .enumerate()
        .map(|(key, (one, two))| [start(one, key, 1), start(two, key, 2)])
        .collect();
    let ended: Vec<_> = started
        .into_iter()
        .map(|pair| pair.map(|program| program.wait(3 * deadline + BUSY)))
        .collect();
    for (key, ended) in ended.iter().enumerate() {
        let name = format!("key-{key}");
        let stored = writer.stored(&name).unwrap_or_default();
        let there = journalled(&writer) + &String::from_utf8_lossy(&stored);
        let has = [1, 2].map(|program| there.contains(text(key, program).trim_end()));
        let about = format!("{about}, {:?}: {there:?} {ended:?}", PAIRS[key]);
        assert!(has[0] || has[1], "{about}");
        let replaces = |how| how != "add";
        for (program, other) in [(0, 1), (1, 0)] {
            let how = [PAIRS[key].0, PAIRS[key].1][other];
            let is_replaced = replaces(how) && has[other];
            let is_safe = has[program] || is_replaced;
            assert!(is_safe || !ended[program].status.success(), "{about}");
        }
    }
    if is_found_out {
        let synced = writer.run(&["sync", "mnt", "--timeout", "30s"]);
        let status = || writer.run(&["status", "mnt"]);
        assert_eq!(synced.0, 0, "{about}: {synced:?} {:?}", status());
        for (key, ended) in ended.iter().enumerate() {
            let about = format!("{about}, {:?}: {ended:?}", PAIRS[key]);
            assert!(ended.iter().any(|one| one.status.success()), "{about}");
            let name = format!("key-{key}");
            let stored = writer.stored(&name).expect("a record");
            assert_eq!(writer.read(&name), stored, "{about}");
        }
    }
    writer.run(&["unmount", "mnt"]);
}

#[test]
fn answers_that_are_lost_three_times_in_a_row_lose_no_bytes() {
    for (etags, write_back) in [(true, false), (false, false), (true, true), (false, true)] {
        lose_answers(etags, write_back, "lose", 3);
    }
}

#[test]
fn every_call_ends_with_its_deadline_while_no_upload_is_answered() {
    for (etags, write_back, fault) in [
        (true, false, "lose"),
        (false, false, "reset"),
        (true, true, "reset"),
        (false, true, "lose"),
    ] {
        lose_answers(etags, write_back, fault, 1_000_000);
    }
}
