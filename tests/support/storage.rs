//! Object storages that run on this machine: one process of each kind for all tests.

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use hmac::{Hmac, KeyInit, Mac};
use kvfs::bucket::{Bucket, Options};
use sha2::Sha256;
use url::Url;

/// The account that the implementation of Azure's storage knows.
const ACCOUNT: &str = "devstoreaccount1";

/// Its well-known key.
const ACCOUNT_KEY: &str =
    "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==";

/// An account of Google's that needs no token.
const SERVICE_ACCOUNT: &str = r#"{"type":"service_account","private_key":"-","private_key_id":"-",
    "client_email":"tests@example.com","disable_oauth":true}"#;

/// The bucket of all tests; each has a prefix of its own.
const BUCKET: &str = "tests";

/// Ends what it started when its standard input ends, and so with the tests.
const UNTIL_THE_END: &str = r#""$@" & read -r _; kill $!"#;

/// An object storage.
#[derive(Debug)]
pub struct Storage {
    /// What stands in front of `://`.
    scheme: &'static str,
    /// Its address.
    pub url: String,
    _process: Child,
}

/// Returns the folder of an installed tool.
#[track_caller]
fn tool(name: &str) -> PathBuf {
    let program = Path::new(env!("CARGO_BIN_EXE_kvfs"));
    let target = program.ancestors().nth(2).expect("a target folder");
    let folder = target.join("test-tools").join(name);
    assert!(
        folder.join("done").exists(),
        "{} is not there: run the tests with scripts/test, which installs it",
        folder.display()
    );
    folder
}

fn spawn(program: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new("sh");
    command
        .args(["-c", UNTIL_THE_END, "sh"])
        .arg(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command
}

/// Returns an S3 implementation.
pub fn s3() -> &'static Storage {
    static S3: OnceLock<Storage> = OnceLock::new();
    S3.get_or_init(|| moto("s3"))
}

/// Returns what comes closest to Google's storage.
pub fn gcs() -> &'static Storage {
    static GCS: OnceLock<Storage> = OnceLock::new();
    GCS.get_or_init(|| moto("gs"))
}

/// Starts a storage that is moto at its core; it says where it listens.
fn moto(scheme: &'static str) -> Storage {
    let program = tool("storage").join("bin/python");
    let script = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/tests/peers/storage/buckets.py"
    );
    let mut command = spawn(&program, &[script, scheme, "127.0.0.1", "0"]);
    let mut process = command.stderr(Stdio::piped()).spawn().expect("moto runs");
    let mut lines = BufReader::new(process.stderr.take().expect("a pipe")).lines();
    let url = loop {
        let line = lines.next().expect("an address").expect("a line");
        if let Some((_, url)) = line.split_once("Running on ") {
            break url.trim().to_owned();
        }
    };
    // It says a line for each request.
    std::thread::spawn(move || lines.for_each(drop));
    let made = http().put(format!("{url}/{BUCKET}")).send();
    assert!(made.expect("an answer").status().is_success());
    Storage {
        scheme,
        url,
        _process: process,
    }
}

/// Returns an implementation of Azure's blob storage.
pub fn azure() -> &'static Storage {
    static AZURE: OnceLock<Storage> = OnceLock::new();
    AZURE.get_or_init(|| {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("an address").port();
        drop(listener);
        let program = tool("azure").join("node_modules/.bin/azurite-blob");
        let port_text = port.to_string();
        let process = spawn(
            &program,
            &[
                "--blobHost",
                "127.0.0.1",
                "--blobPort",
                &port_text,
                "--inMemoryPersistence",
                "--silent",
                "--skipApiVersionCheck",
            ],
        )
        .spawn()
        .expect("azurite runs");
        let url = format!("http://127.0.0.1:{port}/{ACCOUNT}");
        make_container(&url);
        Storage {
            scheme: "az",
            url,
            _process: process,
        }
    })
}

/// Makes the container, as soon as the storage answers.
fn make_container(url: &str) {
    let date = httpdate::fmt_http_date(std::time::SystemTime::now());
    let version = "2021-12-02";
    let to_sign = format!(
        "PUT\n\n\n\n\n\n\n\n\n\n\n\nx-ms-date:{date}\nx-ms-version:{version}\n\
         /{ACCOUNT}/{ACCOUNT}/{BUCKET}\nrestype:container"
    );
    let key = BASE64.decode(ACCOUNT_KEY).expect("a key");
    let mut mac = Hmac::<Sha256>::new_from_slice(&key).expect("a key");
    mac.update(to_sign.as_bytes());
    let signature = BASE64.encode(mac.finalize().into_bytes());
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let request = http()
            .put(format!("{url}/{BUCKET}?restype=container"))
            .header("x-ms-date", &date)
            .header("x-ms-version", version)
            .header("content-length", "0")
            .header("authorization", format!("SharedKey {ACCOUNT}:{signature}"));
        match request.send() {
            Ok(answer) => {
                let status = answer.status();
                assert_eq!(status, 201, "{}", answer.text().unwrap_or_default());
                return;
            }
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn http() -> reqwest::blocking::Client {
    // Fails only if another test was first.
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::blocking::Client::builder()
        .no_proxy()
        .build()
        .expect("a client")
}

impl Storage {
    /// Returns the variables by which it is found.
    pub fn variables(&self) -> Vec<(String, String)> {
        let variables: &[(&str, &str)] = match self.scheme {
            "s3" => &[
                ("AWS_ENDPOINT_URL", &self.url),
                ("AWS_ACCESS_KEY_ID", "id"),
                ("AWS_SECRET_ACCESS_KEY", "key"),
                ("AWS_REGION", "us-east-1"),
            ],
            "gs" => &[
                ("GOOGLE_BASE_URL", &self.url),
                ("GOOGLE_SERVICE_ACCOUNT_KEY", SERVICE_ACCOUNT),
            ],
            _ => &[
                ("AZURE_ENDPOINT", &self.url),
                ("AZURE_STORAGE_ACCOUNT_NAME", ACCOUNT),
                ("AZURE_STORAGE_ACCOUNT_KEY", ACCOUNT_KEY),
            ],
        };
        let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        variables.iter().map(owned).collect()
    }

    /// Returns how kvfs finds it.
    pub fn options(&self) -> Options {
        self.variables().into_iter().collect()
    }

    /// Returns an address in it that no other test uses.
    pub fn address(&self) -> Url {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let next = NEXT.fetch_add(1, Ordering::Relaxed);
        let address = format!("{}://{BUCKET}/prefix/{next}", self.scheme);
        Url::parse(&address).expect("an address")
    }

    /// Opens a part of it that no other test uses.
    pub fn bucket(&self) -> Bucket {
        Bucket::open(&self.address(), &self.options()).expect("a bucket")
    }
}
