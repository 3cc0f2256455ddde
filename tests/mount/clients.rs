//! Stores filled by the official clients, by Crawlee and by the Apify SDKs, read through a mount
//! of the built program and compared byte for byte with what was stored.
//!
//! `scripts/test` installs them, in the versions that `tests/clients` names.

use std::collections::BTreeSet;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use kvfs::fs::name;
use kvfs::store::{GetOutcome, GetRequest};
use serde::Deserialize;
use tempfile::TempDir;

use crate::support::served::{TOKEN, TestServer, key, soon};

/// The longest that filling stores may take: starting Node.js and Python on a busy machine.
const FILL_LIMIT: Duration = Duration::from_secs(120);

/// A record as the program that stored it describes it.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Stored {
    key: String,
    content_type: String,
    encoding: Option<String>,
    /// In base64.
    content: Option<String>,
    /// Instead of `content`, where the layout of the JSON is its writer's business.
    json: Option<serde_json::Value>,
}

impl Stored {
    fn name(&self) -> String {
        name::of_key(&key(&self.key))
    }
}

/// Where `scripts/test` puts the official clients: beside the build's output.
fn tools() -> PathBuf {
    let program = Path::new(env!("CARGO_BIN_EXE_kvfs"));
    let target = program.ancestors().nth(2).expect("a target folder");
    target.join("test-tools")
}

/// Runs one of the programs in `tests/clients` to its end.
#[track_caller]
#[expect(
    clippy::disallowed_methods,
    reason = "the programs under test find others by it"
)]
fn fill(program: &str, args: &[&Path]) {
    let (interpreter, packages) = if program.ends_with(".js") {
        (PathBuf::from("node"), tools().join("node/done"))
    } else {
        (
            tools().join("python/bin/python"),
            tools().join("python/done"),
        )
    };
    assert!(
        packages.exists(),
        "the official clients are not installed: run the tests with scripts/test, which installs them into {}",
        tools().display()
    );
    let home = tempfile::tempdir().expect("a folder");
    let log = home.path().join("log");
    let mut child = Command::new(&interpreter)
        .arg(
            Path::new(env!("CARGO_MANIFEST_DIR"))
                .join("tests/clients")
                .join(program),
        )
        .args(args)
        .env_clear()
        .env("PATH", std::env::var("PATH").unwrap_or_default())
        .env("HOME", home.path())
        .env("NODE_PATH", tools().join("node/node_modules"))
        .env("APIFY_TOKEN", TOKEN)
        .current_dir(home.path())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(fs::File::create(&log).expect("a log"))
        .spawn()
        .unwrap_or_else(|error| panic!("{} does not run: {error}", interpreter.display()));
    let start = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().expect("a status") {
            break status;
        }
        if start.elapsed() > FILL_LIMIT {
            let _ = child.kill();
            let _ = child.wait();
            panic!("{program} takes longer than {FILL_LIMIT:?}");
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    let said = fs::read(&log).unwrap_or_default();
    let said = String::from_utf8_lossy(&said);
    assert!(status.success(), "{program}: {status}: {said}");
}

fn manifest(path: &Path) -> Vec<Stored> {
    let text = fs::read(path).expect("what was stored");
    let stored: Vec<Stored> = serde_json::from_slice(&text).expect("what was stored");
    assert!(!stored.is_empty(), "nothing was stored");
    stored
}

/// A mount by the built program; unmounts when dropped.
struct Mount {
    home: TempDir,
}

impl Mount {
    #[track_caller]
    fn new(flags: &[&str], store: &str, api: Option<&str>) -> Self {
        let home = tempfile::tempdir().expect("a folder");
        for name in ["mnt", "run"] {
            fs::create_dir(home.path().join(name)).expect("a folder");
        }
        let mount = Self { home };
        let mut args = vec!["mount"];
        args.extend(flags);
        let point = mount.path().display().to_string();
        args.extend([store, &point]);
        mount.kvfs(&args, api);
        mount
    }

    fn path(&self) -> PathBuf {
        self.home.path().join("mnt")
    }

    #[track_caller]
    #[expect(
        clippy::disallowed_methods,
        reason = "the program under test runs others"
    )]
    fn kvfs(&self, args: &[&str], api: Option<&str>) {
        let output = Command::new(env!("CARGO_BIN_EXE_kvfs"))
            .args(args)
            .env_clear()
            .env("PATH", std::env::var("PATH").unwrap_or_default())
            .env("HOME", self.home.path())
            .env("XDG_RUNTIME_DIR", self.home.path().join("run"))
            .env("APIFY_TOKEN", TOKEN)
            .envs(api.map(|url| ("APIFY_CLIENT_BASE_URL", url)))
            .stdin(Stdio::null())
            .output()
            .expect("kvfs runs");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "kvfs {args:?}: {said}");
    }

    fn names(&self) -> BTreeSet<String> {
        fs::read_dir(self.path())
            .expect("a directory")
            .map(|entry| entry.expect("an entry").file_name())
            .map(|name| name.into_string().expect("a name in UTF-8"))
            .collect()
    }

    #[track_caller]
    fn attribute(&self, file: &str, name: &str) -> Option<String> {
        let name = format!("user.apify.{name}");
        xattr::get(self.path().join(file), &name)
            .expect("an answer")
            .map(|value| String::from_utf8(value).expect("text"))
    }

    /// Compares everything with what was stored.
    #[track_caller]
    fn shows(&self, stored: &[Stored]) {
        let expected: BTreeSet<String> = stored.iter().map(Stored::name).collect();
        assert_eq!(self.names(), expected);
        for record in stored {
            let file = record.name();
            let path = self.path().join(&file);
            let content = fs::read(&path).expect("its bytes");
            match (&record.content, &record.json) {
                (Some(wanted), None) => {
                    let wanted = BASE64_STANDARD.decode(wanted).expect("base64");
                    assert!(content == wanted, "{file}: other bytes than were stored");
                }
                (None, Some(wanted)) => {
                    let found: serde_json::Value = serde_json::from_slice(&content).expect("JSON");
                    assert_eq!(found, *wanted, "{file}");
                }
                _ => panic!("{file}: either bytes or JSON"),
            }
            let size = fs::metadata(&path).expect("a status").len();
            assert_eq!(size, content.len() as u64, "{file}");
            assert_eq!(
                self.attribute(&file, "key").as_ref(),
                Some(&record.key),
                "{file}"
            );
            assert_eq!(
                self.attribute(&file, "content-type").as_ref(),
                Some(&record.content_type),
                "{file}"
            );
            assert_eq!(
                self.attribute(&file, "content-encoding"),
                record.encoding,
                "{file}"
            );
        }
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let point = self.path().display().to_string();
        if std::thread::panicking() {
            let _ = Command::new(env!("CARGO_BIN_EXE_kvfs"))
                .args(["unmount", "--force", &point])
                .env("XDG_RUNTIME_DIR", self.home.path().join("run"))
                .output();
        } else {
            self.kvfs(&["unmount", &point], None);
        }
    }
}

/// A store behind a server, filled by a client, and mounted in both read modes.
fn client_and_mount_agree(program: &str, encoding: &str) {
    let server = TestServer::start();
    let beside = tempfile::tempdir().expect("a folder");
    let file = beside.path().join("stored.json");
    fill(
        program,
        &[Path::new(&server.url()), Path::new(&server.entry.id), &file],
    );
    let stored = manifest(&file);
    let encoded = stored
        .iter()
        .filter(|record| record.encoding.as_deref() == Some(encoding));
    assert!(encoded.count() > 3, "the client compressed nothing");

    let url = server.url();
    let mount = Mount::new(&[], &server.entry.id, Some(&url));
    mount.shows(&stored);

    let raw = Mount::new(&["--raw"], &server.entry.id, Some(&url));
    let mut smaller = 0;
    for record in &stored {
        let name = record.name();
        let size = fs::metadata(raw.path().join(&name))
            .expect("a status")
            .len();
        let bytes = fs::read(raw.path().join(&name)).expect("its bytes");
        assert!(
            bytes == stored_bytes(&server, &record.key),
            "{name}: not as stored"
        );
        assert_eq!(
            size,
            bytes.len() as u64,
            "{name}: the listing's size is exact"
        );
        let address = mount.attribute(&name, "url").expect("an address");
        assert!(
            address.starts_with(&server.store_url()) && !address.contains('?'),
            "{address}"
        );
        let stored_size = mount.attribute(&name, "stored-size");
        assert_eq!(stored_size, Some(bytes.len().to_string()), "{name}");
        let decoded = fs::metadata(mount.path().join(&name)).expect("a status");
        smaller += usize::from(size < decoded.len());
    }
    assert!(smaller > 3, "nothing is stored compressed");
}

fn stored_bytes(server: &TestServer, name: &str) -> Vec<u8> {
    let outcome = server
        .store()
        .get(&key(name), &GetRequest::default(), soon());
    let Ok(GetOutcome::Found(mut fetched)) = outcome else {
        panic!("{name} is not there: {outcome:?}");
    };
    let mut bytes = Vec::new();
    fetched.body.read_to_end(&mut bytes).expect("its bytes");
    bytes
}

#[test]
fn what_the_javascript_client_stores_is_read_byte_for_byte() {
    client_and_mount_agree("api.js", "br");
}

#[test]
fn what_the_python_client_stores_is_read_byte_for_byte() {
    client_and_mount_agree("api.py", "gzip");
}

/// Folders filled by a program, each mounted as a store.
fn folders_are_stores(program: &str, stores: &[&str]) {
    let beside = tempfile::tempdir().expect("a folder");
    let (storage, found) = (
        beside.path().join("storage"),
        beside.path().join("manifests"),
    );
    fill(program, &[&storage, &found]);
    for store in stores {
        let folder = storage.join("key_value_stores").join(store);
        let stored = manifest(&found.join(format!("{store}.json")));
        let mount = Mount::new(&[], &folder.display().to_string(), None);
        mount.shows(&stored);
    }
}

#[test]
fn folders_of_crawlee_and_the_sdk_for_javascript_are_stores() {
    folders_are_stores("folders.js", &["js-plain", "js-metadata", "js-sdk"]);
}

#[test]
fn folders_of_crawlee_and_the_sdk_for_python_are_stores() {
    folders_are_stores("folders.py", &["python-crawlee", "python-sdk", "default"]);
}

#[test]
fn what_crawlee_writes_while_its_folder_is_mounted_shows_up_within_the_ttl() {
    let beside = tempfile::tempdir().expect("a folder");
    let (storage, found) = (
        beside.path().join("storage"),
        beside.path().join("manifests"),
    );
    let folder = storage.join("key_value_stores/python-crawlee");
    fs::create_dir_all(&folder).expect("a folder");
    let mount = Mount::new(&["--ttl", "1s"], &folder.display().to_string(), None);
    assert_eq!(mount.names(), BTreeSet::new());
    fill("folders.py", &[&storage, &found]);
    // The TTL, and the second for which a folder's listing may be remembered.
    std::thread::sleep(Duration::from_millis(2100));
    mount.shows(&manifest(&found.join("python-crawlee.json")));
}
