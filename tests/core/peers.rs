//! The official clients, SDKs and command line, and the API's contract, against the server.
//!
//! `scripts/test` installs them, in the versions that `tests/clients` and `tests/peers` name.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use kvfs::base::redact::Secret;
use kvfs::server::{RunEntry, ServerConfig, User};
use serde_json::json;
use tempfile::TempDir;

use crate::support::served::{STORE, TOKEN, TestServer};
use crate::support::storage;

/// The longest that one program may take: Node.js and Python start slowly on a busy machine.
const LIMIT: Duration = Duration::from_secs(300);

/// The token of the second account.
const OTHER: &str = "T2";

/// The token of the account that stores are made in.
const MAKING: &str = "T3";

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

/// Puts records through the server, has a program read and extend the folder, and reads what that
/// has written.
fn reads_what_the_server_wrote(mut program: Command, home: &Home, kinds: &[&str], writer: &str) {
    let server = server();
    let records: [(&str, &str, &str, &[u8]); 5] = [
        (
            "note",
            "text/plain; charset=utf-8",
            "text",
            "größer\n".as_bytes(),
        ),
        ("empty", "text/plain; charset=utf-8", "text", b""),
        (
            "OUTPUT",
            "application/json; charset=utf-8",
            "json",
            b"{\"ok\": [1, null]}",
        ),
        ("photo", "image/png", "bytes", b"\x89PNG\x00\xff"),
        (
            "a!'()-_.z",
            "text/plain",
            "text",
            b"every character of a valid key",
        ),
    ];
    let mut expected = serde_json::Map::new();
    for (key, content_type, kind, bytes) in records {
        if !kinds.contains(&kind) || (kinds.len() == 1 && key.contains('!')) {
            continue;
        }
        let put = http()
            .put(server.record_url(key))
            .bearer_auth(TOKEN)
            .header("content-type", content_type)
            .body(bytes);
        assert_eq!(put.send().expect("an answer").status(), 201);
        let value = match kind {
            "text" => json!(String::from_utf8_lossy(bytes)),
            "json" => serde_json::from_slice(bytes).expect("JSON"),
            _ => json!(BASE64.encode(bytes)),
        };
        expected.insert(key.to_owned(), json!([kind, value]));
    }
    let manifest = home.0.path().join("expected.json");
    fs::write(&manifest, json!(expected).to_string()).expect("a file");
    let storage = server.folder.path();
    home.succeeds(program.arg(storage).arg(STORE).arg(manifest));
    let written = http()
        .get(server.record_url(writer))
        .bearer_auth(TOKEN)
        .send()
        .expect("an answer");
    let kind = written.headers()["content-type"].clone();
    assert!(kind.to_str().expect("text").starts_with("application/json"));
    let written: serde_json::Value =
        serde_json::from_slice(&written.bytes().expect("a body")).expect("JSON");
    assert_eq!(written, json!({ "written": "größer" }));
}

#[test]
fn crawlee_and_the_sdk_for_python_read_what_the_server_wrote() {
    let home = Home::new();
    let mut program = home.command(tool("python").join("bin/python"));
    program.arg(peers("reads.py"));
    reads_what_the_server_wrote(program, &home, &["text", "json", "bytes"], "by-apify");
}

#[test]
fn crawlee_and_the_sdk_for_javascript_read_the_texts_that_the_server_wrote() {
    let home = Home::new();
    let mut program = home.command("node");
    let modules = tool("node").join("node_modules");
    program.env("NODE_PATH", modules).arg(peers("reads.js"));
    reads_what_the_server_wrote(program, &home, &["text"], "by-apify");
}

/// Has a program fill a folder, serves that, and reads all records.
fn is_served(mut program: Command, home: &Home, script: &str, stores: &[&str]) {
    let clients = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients");
    let server = server();
    let found = home.0.path().join("found");
    program.arg(clients.join(script));
    home.succeeds(program.arg(server.folder.path()).arg(&found));
    for store in stores {
        let manifest = fs::read(found.join(format!("{store}.json"))).expect("a manifest");
        let manifest: Vec<serde_json::Value> = serde_json::from_slice(&manifest).expect("JSON");
        assert!(!manifest.is_empty());
        for record in manifest {
            let key = record["key"].as_str().expect("a key");
            let encoded = kvfs::apify::endpoint::encode(key);
            let name = if *store == "default" {
                "default"
            } else {
                &format!("local~{store}")
            };
            let got = http()
                .get(format!(
                    "{}/v2/key-value-stores/{name}/records/{encoded}?attachment=1",
                    server.url()
                ))
                .bearer_auth(TOKEN)
                .send()
                .expect("an answer");
            assert_eq!(got.status(), 200, "{store}: {key}");
            assert_eq!(
                got.headers()["content-type"],
                record["contentType"].as_str().expect("a type")
            );
            let bytes = got.bytes().expect("a body");
            if record["json"].is_null() {
                let content = record["content"].as_str().expect("the content");
                assert_eq!(
                    bytes,
                    BASE64.decode(content).expect("base64"),
                    "{store}: {key}"
                );
            } else {
                let found: serde_json::Value = serde_json::from_slice(&bytes).expect("JSON");
                assert_eq!(found, record["json"], "{store}: {key}");
            }
        }
    }
}

#[test]
fn what_crawlee_and_the_sdk_for_python_wrote_is_served() {
    let home = Home::new();
    let program = home.command(tool("python").join("bin/python"));
    is_served(
        program,
        &home,
        "folders.py",
        &["python-crawlee", "python-sdk", "default"],
    );
}

#[test]
fn what_crawlee_and_the_sdk_for_javascript_wrote_is_served() {
    let home = Home::new();
    let mut program = home.command("node");
    program.env("NODE_PATH", tool("node").join("node_modules"));
    is_served(
        program,
        &home,
        "folders.js",
        &["js-plain", "js-metadata", "js-sdk"],
    );
}

fn http() -> reqwest::blocking::Client {
    // Fails only if another test was first.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = reqwest::blocking::Client::builder().no_proxy();
    client.build().expect("a client")
}

#[test]
fn the_server_keeps_the_contract() {
    let contract = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/serve-api.json");
    let run = |id: &str, actor: &str, store: &str| RunEntry {
        store: store.into(),
        ..format!("{id}=x,actor={actor}").parse().expect("a run")
    };
    // What tests/peers/contract/schemathesis.toml names.
    const STORE: &str = "WkzbQMuFYuamGv3YF";
    const RENAMED: &str = "CCCCCCCCCCCCCCCCC";
    let accounts = [("making", MAKING), ("renaming", OTHER)];
    let renaming = User::named("renaming").id;
    let server = TestServer::start_with(|config| {
        for (name, token) in accounts {
            config
                .other_users
                .push((User::named(name), Secret::new(token)));
        }
        config.runs = vec![
            run("3KH8gEpp4d8uQSe8T", "compass~google-maps-extractor", STORE),
            run("deleted", "other", "AAAAAAAAAAAAAAAAA"),
            run("last", "deleted", "BBBBBBBBBBBBBBBBB"),
            run("last-of-acts", "deleted-too", "EEEEEEEEEEEEEEEEE"),
            run("renamed", "renamed", "DDDDDDDDDDDDDDDDD"),
        ];
        for (task, store) in [
            ("my-task", STORE),
            ("deleted", "FFFFFFFFFFFFFFFFF"),
            ("renamed", "DDDDDDDDDDDDDDDDD"),
        ] {
            let run = format!("of-{task}={store},task={task}");
            config.runs.push(run.parse().expect("a run"));
        }
        let stores = config.root.join("key_value_stores");
        let schema = json!({
            "actorKeyValueStoreSchemaVersion": 1,
            "title": "Records",
            "collections": { "postImages": { "title": "Images", "keyPrefix": "post-images-" } },
        });
        // None has a name, so that all names are free for those that are made and renamed.
        for id in [
            STORE,
            "HG7ML7M8z78YcAPEB",
            "AAAAAAAAAAAAAAAAA",
            "BBBBBBBBBBBBBBBBB",
            "EEEEEEEEEEEEEEEEE",
            "FFFFFFFFFFFFFFFFF",
            RENAMED,
            "DDDDDDDDDDDDDDDDD",
        ] {
            let folder = stores.join(id);
            fs::create_dir_all(&folder).expect("a folder");
            let mut metadata = json!({ "id": id, "schema": schema });
            if id == RENAMED {
                metadata["owner"] = json!(renaming);
            }
            fs::write(folder.join("__metadata__.json"), metadata.to_string()).expect("a file");
        }
    });
    // The checker takes names that it has read for new ones, and this one is another store's.
    let named = http().delete(server.store_url()).bearer_auth(TOKEN).send();
    assert_eq!(named.expect("an answer").status(), 204);
    let home = Home::new();
    home.succeeds(
        home.command(tool("contract").join("bin/schemathesis"))
            .env("TOKEN", TOKEN)
            .env("RENAMING_TOKEN", OTHER)
            .env("MAKING_TOKEN", MAKING)
            .arg("--config-file")
            .arg(peers("contract/schemathesis.toml"))
            .arg("run")
            .arg(&contract)
            .args(["--url", &server.url()])
            .args(["--phases", "examples,coverage,fuzzing"])
            .args(["--max-examples", "25", "--seed", "1", "--no-color"])
            .args(["--continue-on-failure", "--request-timeout", "30"]),
    );
}
