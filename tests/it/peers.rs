//! The official clients, SDKs and command line, and the API's contract, against the server.
//!
//! `scripts/test` installs them, in the versions that `tests/clients` and `tests/peers` name.

use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use kvfs::redact::Secret;
use kvfs::server::{RunEntry, ServerConfig, User};
use serde_json::json;
use tempfile::TempDir;

use crate::support::served::{TOKEN, TestServer};
use crate::support::storage;

/// The longest that one program may take: Node.js and Python start slowly on a busy machine.
const LIMIT: Duration = Duration::from_secs(300);

/// The token of the second account.
const OTHER: &str = "T2";

/// Where `scripts/test` puts the official clients: beside the build's output.
fn tools() -> PathBuf {
    let program = Path::new(env!("CARGO_BIN_EXE_kvfs"));
    let target = program.ancestors().nth(2).expect("a target folder");
    target.join("test-tools")
}

/// Returns the folder of an installed tool.
#[track_caller]
fn tool(name: &str) -> PathBuf {
    let folder = tools().join(name);
    assert!(
        folder.join("done").exists(),
        "the official clients are not installed: run the tests with scripts/test, which installs them into {}",
        tools().display()
    );
    folder
}

fn peers(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/peers")
        .join(name)
}

fn with_two_accounts(config: &mut ServerConfig) {
    let other = (User::named("other"), Secret::new(OTHER));
    config.other_users.push(other);
}

fn server() -> TestServer {
    TestServer::start_with(with_two_accounts)
}

/// A server over a bucket of a real S3 implementation.
fn server_over_bucket() -> TestServer {
    TestServer::over_bucket(&storage::s3().bucket(), with_two_accounts)
}

/// A folder to run programs in.
struct Home(TempDir);

impl Home {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a folder"))
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "the programs under test find others by it"
    )]
    fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        command
            .env_clear()
            .env("PATH", std::env::var("PATH").unwrap_or_default())
            .env("HOME", self.0.path())
            .current_dir(self.0.path())
            .stdin(Stdio::null());
        command
    }

    /// Runs a program to its end; returns whether it succeeded and what it said.
    #[track_caller]
    fn run(&self, command: &mut Command) -> (bool, String) {
        let log = self.0.path().join("log");
        let file = fs::File::create(&log).expect("a log");
        command
            .stdout(file.try_clone().expect("a log"))
            .stderr(file);
        let mut child = command
            .spawn()
            .unwrap_or_else(|error| panic!("{command:?} does not run: {error}"));
        let start = Instant::now();
        let status = loop {
            if let Some(status) = child.try_wait().expect("a status") {
                break status;
            }
            if start.elapsed() > LIMIT {
                let _ = child.kill();
                let _ = child.wait();
                panic!("{command:?} takes longer than {LIMIT:?}");
            }
            std::thread::sleep(Duration::from_millis(10));
        };
        let said = fs::read(&log).unwrap_or_default();
        (
            status.success(),
            String::from_utf8_lossy(&said).into_owned(),
        )
    }

    #[track_caller]
    fn succeeds(&self, command: &mut Command) -> String {
        let (success, said) = self.run(command);
        assert!(success, "{command:?}: {said}");
        said
    }
}

#[test]
fn every_method_of_the_javascript_client_and_sdk_works() {
    javascript_walks_over(&server());
}

#[test]
fn every_method_of_the_javascript_client_and_sdk_works_over_a_bucket() {
    javascript_walks_over(&server_over_bucket());
}

fn javascript_walks_over(server: &TestServer) {
    let home = Home::new();
    let modules = tool("node").join("node_modules");
    home.succeeds(
        home.command("node")
            .env("NODE_PATH", modules)
            .env("APIFY_TOKEN", TOKEN)
            .arg(peers("walk.js"))
            .args([&server.url(), OTHER]),
    );
}

#[test]
fn every_method_of_the_python_clients_and_sdk_works() {
    python_walks_over(&server());
}

#[test]
fn every_method_of_the_python_clients_and_sdk_works_over_a_bucket() {
    python_walks_over(&server_over_bucket());
}

fn python_walks_over(server: &TestServer) {
    let home = Home::new();
    home.succeeds(
        home.command(tool("python").join("bin/python"))
            .env("APIFY_TOKEN", TOKEN)
            .arg(peers("walk.py"))
            .args([&server.url(), OTHER]),
    );
}

#[test]
fn the_rust_client_passes_its_own_tests() {
    rust_tests(&server());
}

#[test]
fn the_rust_client_passes_its_own_tests_over_a_bucket() {
    rust_tests(&server_over_bucket());
}

fn rust_tests(server: &TestServer) {
    let home = Home::new();
    let said = home.succeeds(
        home.command(tool("rust").join("key_value_store"))
            .env("APIFY_TOKEN", TOKEN)
            .env("APIFY_API_URL", format!("{}/v2", server.url())),
    );
    // Without a token they would all pass by doing nothing.
    assert!(said.contains("8 passed"), "{said}");
    assert!(server.counts().put > 0, "{said}");
}

#[test]
fn the_official_command_line_manages_stores_and_values() {
    let (server, home) = (server(), Home::new());
    let program = tool("cli").join("node_modules/.bin/apify");
    let apify = |arguments: &[&str]| {
        let mut command = home.command(&program);
        command
            .env("APIFY_CLIENT_BASE_URL", server.url())
            .env("APIFY_DISABLE_KEYRING", "1")
            .env("APIFY_CLI_DISABLE_TELEMETRY", "1")
            .env("APIFY_CLI_SKIP_UPDATE_CHECK", "1")
            .args(arguments);
        command
    };
    let does = |arguments: &[&str]| home.succeeds(&mut apify(arguments));
    let stores = |arguments: &[&str]| {
        let arguments = [&["key-value-stores"], arguments].concat();
        home.succeeds(&mut apify(&arguments))
    };
    let says = |said: &str, wanted: &[&str]| {
        for text in wanted {
            assert!(said.contains(text), "no '{text}' in: {said}");
        }
    };
    does(&["login", "--token", TOKEN]);
    stores(&["create", "by-cli"]);
    says(&stores(&["ls"]), &["by-cli", "test-store"]);
    says(&stores(&["info", "by-cli"]), &["by-cli", "local"]);
    let long = "größer ".repeat(1000);
    stores(&["set-value", "by-cli", "small", r#"{"a":1}"#]);
    says(&stores(&["get-value", "by-cli", "small"]), &[r#""a": 1"#]);
    stores(&[
        "set-value",
        "by-cli",
        "long",
        &long,
        "--content-type",
        "text/plain",
    ]);
    says(
        &stores(&["get-value", "by-cli", "long"]),
        &[long.trim_end()],
    );
    says(&stores(&["keys", "by-cli"]), &["small", "long"]);
    stores(&["rename", "by-cli", "renamed-by-cli"]);
    stores(&["delete-value", "renamed-by-cli", "small", "--yes"]);
    let keys = stores(&["keys", "renamed-by-cli"]);
    assert!(keys.contains("long") && !keys.contains("small"), "{keys}");
    stores(&["rm", "renamed-by-cli", "--yes"]);
    let left = stores(&["ls"]);
    assert!(
        left.contains("test-store") && !left.contains("by-cli"),
        "{left}"
    );
}

/// Finds the API's contract, which lies beside the project.
#[expect(
    clippy::disallowed_methods,
    reason = "whoever runs the tests says where it is"
)]
fn contract() -> Option<PathBuf> {
    let beside = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/apify-kv-openapi.json");
    let path = std::env::var_os("KVFS_CONTRACT").map_or_else(beside, PathBuf::from);
    if path.is_file() {
        return Some(path);
    }
    // Not through `eprintln`, which the test runner would swallow.
    let _ = writeln!(
        std::io::stderr(),
        "SKIPPED the_server_keeps_the_contract: the API's contract, which is no part of this \
         project, is not at {}; set KVFS_CONTRACT to its path",
        path.display()
    );
    None
}

#[test]
fn the_server_keeps_the_contract() {
    let Some(contract) = contract() else { return };
    let run = |id: &str, actor: &str, store: &str| RunEntry {
        store: store.into(),
        ..format!("{id}=x,actor={actor}").parse().expect("a run")
    };
    // What tests/peers/contract/schemathesis.toml names.
    const STORE: &str = "WkzbQMuFYuamGv3YF";
    let server = TestServer::start_with(|config| {
        config.runs = vec![
            run("3KH8gEpp4d8uQSe8T", "compass~google-maps-extractor", STORE),
            run("deleted", "other", "deleted-by-run"),
            run("last", "deleted", "deleted-by-actor"),
        ];
        let stores = config.root.join("key_value_stores");
        let schema = json!({
            "actorKeyValueStoreSchemaVersion": 1,
            "title": "Records",
            "collections": { "postImages": { "title": "Images", "keyPrefix": "post-images-" } },
        });
        for (id, name) in [
            (STORE, "example"),
            ("HG7ML7M8z78YcAPEB", "deleted"),
            ("AAAAAAAAAAAAAAAAA", "deleted-by-run"),
            ("BBBBBBBBBBBBBBBBB", "deleted-by-actor"),
        ] {
            let folder = stores.join(name);
            fs::create_dir_all(&folder).expect("a folder");
            let metadata = json!({ "id": id, "name": name, "schema": schema });
            fs::write(folder.join("__metadata__.json"), metadata.to_string()).expect("a file");
        }
    });
    let home = Home::new();
    home.succeeds(
        home.command(tool("contract").join("bin/schemathesis"))
            .arg("--config-file")
            .arg(peers("contract/schemathesis.toml"))
            .arg("run")
            .arg(contract)
            .args(["--url", &server.url()])
            .args(["--header", &format!("Authorization: Bearer {TOKEN}")])
            .args(["--phases", "examples,coverage,fuzzing"])
            .args(["--max-examples", "25", "--seed", "1", "--no-color"])
            .args(["--continue-on-failure", "--request-timeout", "30"]),
    );
}
