//! What real tools read from a real mount, and that it is what the store has.

mod attributes;
mod names;
mod servers;
mod sizes;
mod tools;
mod versions;

use std::fs;
use std::process::Command;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use kvfs::local::MemoryStore;
use kvfs::store::Encoding;

use crate::support::mounted::{MountedSession, PYTHON, Running, pattern, text};
use crate::support::served::encode;

const MIB: usize = 1 << 20;

/// A record for the tools to read.
struct Sample {
    name: String,
    encoding: Encoding,
    content: Vec<u8>,
    stored: Vec<u8>,
}

/// Those of all tests: encoding takes a while.
static SAMPLES: LazyLock<Vec<Sample>> = LazyLock::new(samples);

/// Returns records under every encoding, of sizes around those that matter: empty, a byte, whole
/// pages, what is pushed to the page cache, what is read into memory; compressed ones that grow
/// when decoded and ones that shrink.
fn samples() -> Vec<Sample> {
    let encodings = [
        ("br", Encoding::Brotli),
        ("gzip", Encoding::Gzip),
        ("deflate", Encoding::Deflate),
        ("identity", Encoding::Identity),
    ];
    let mut samples = Vec::new();
    for (suffix, encoding) in encodings {
        let mut add = |kind: &str, content: Vec<u8>| {
            samples.push(Sample {
                name: format!("{kind}-{}.{suffix}", content.len()),
                encoding: encoding.clone(),
                stored: encode(&encoding, &content),
                content,
            });
        };
        add("empty", Vec::new());
        add("byte", vec![b'x']);
        for len in [4095, 4096, 4097, 8192, 131_072, 131_073] {
            add("grows", text(len));
        }
        for len in [4090, 4096, 4100, 12_288] {
            add("shrinks", pattern(len));
        }
        add("grows", text(MIB));
        add("shrinks", pattern(MIB + 1));
        add("grows", text(5 * MIB));
    }
    samples
}

/// A store with the samples, and a plain folder with the same files.
struct Twins {
    store: Arc<MemoryStore>,
    folder: tempfile::TempDir,
}

impl Twins {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let store = MemoryStore::new();
        for sample in &*SAMPLES {
            store.insert(
                &sample.name,
                "application/octet-stream",
                sample.encoding.clone(),
                sample.stored.clone(),
            );
            fs::write(folder.path().join(&sample.name), &sample.content).expect("a file");
        }
        Self {
            store: Arc::new(store),
            folder,
        }
    }

    /// Runs a script in a fresh mount, right after `ls -l`, and in the folder: both must say the
    /// same. `$OUT` is an empty folder.
    #[track_caller]
    fn agree_on(&self, script: &str) {
        let mount = MountedSession::of(self.store.clone());
        mount.works("ls -l");
        self.agree_in(&mount, script);
        mount.unmount();
    }

    #[track_caller]
    fn agree_in(&self, mount: &MountedSession, script: &str) {
        let out = tempfile::tempdir_in(mount.beside()).expect("a folder");
        let full = format!("OUT={}; {script}", out.path().display());
        let in_mount = mount.sh(&full);
        let out = tempfile::tempdir_in(mount.beside()).expect("a folder");
        let full = format!("OUT={}; {script}", out.path().display());
        let in_folder = Running::start(
            Command::new("sh")
                .args(["-c", &full])
                .env("LC_ALL", "C")
                .env("BESIDE", mount.beside())
                .env("PYTHON", *PYTHON)
                .current_dir(self.folder.path()),
        )
        .wait(Duration::from_secs(60));
        assert!(in_folder.status.success(), "{script}: {in_folder:?}");
        assert!(in_mount.status.success(), "{script}: {in_mount:?}");
        let lines = |output: &[u8]| {
            String::from_utf8_lossy(output)
                .lines()
                .map(str::to_owned)
                .collect::<Vec<_>>()
        };
        assert_eq!(
            lines(&in_mount.stdout),
            lines(&in_folder.stdout),
            "{script}: {}",
            in_mount.stderr
        );
    }
}
