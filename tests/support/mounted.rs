//! Real mounts in this process, for real tools to work on.
#![allow(clippy::result_large_err, reason = "a mount that failed is rare")]

use std::fs;
use std::io::Read;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, LazyLock};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use kvfs::apify::http::HttpOptions;
use kvfs::apify::plain::PlainHttp;
use kvfs::apify::retry::RetryPolicy;
use kvfs::base::clock::{Clock, SystemClock};
use kvfs::base::redact::Secret;
use kvfs::base::units::ByteSize;
use kvfs::fs::write::Overwrite;
use kvfs::metrics::{Metrics, Snapshot};
use kvfs::mount::build::{
    DiskCacheConfig, MountAccess, MountConfig, SetupError, StatusSource, WriteSettings,
};
use kvfs::mount::open::{OpenConfig, TokenSource};
use kvfs::store::Store;
use kvfs::store::reference::StoreRef;
use rustix::mount::UnmountFlags;
use tempfile::TempDir;
use url::Url;

use super::scripted::{Answer, ScriptedServer, Seen};
use super::served::{TOKEN, TestServer};

/// The longest that a command in a mount may take before the test fails.
const COMMAND_LIMIT: Duration = Duration::from_secs(60);
/// The longest that a session may take to end once nothing uses it.
const END_LIMIT: Duration = Duration::from_secs(20);
/// The id of the store that scripted servers pretend to have.
pub const SCRIPTED_ID: &str = "WkzbQMuFYuamGv3YF";

/// A mount served by a thread of this process; it ends when this is dropped.
pub struct MountedSession {
    folder: TempDir,
    metrics: Arc<Metrics>,
    status: StatusSource,
    thread: Option<JoinHandle<std::io::Result<()>>>,
}

/// What a command left.
#[derive(Debug)]
pub struct Output {
    pub status: ExitStatus,
    pub stdout: Vec<u8>,
    pub stderr: String,
    pub took: Duration,
}

impl Output {
    /// Returns what it wrote, as text without the last line break.
    #[track_caller]
    pub fn text(&self) -> String {
        let text = String::from_utf8(self.stdout.clone()).expect("text");
        text.strip_suffix('\n').unwrap_or(&text).to_owned()
    }

    /// Returns the signal that ended it.
    pub fn signal(&self) -> Option<i32> {
        self.status.signal()
    }
}

/// Returns settings for reading `reference` with no credentials.
pub fn open_config(reference: StoreRef) -> OpenConfig {
    OpenConfig {
        reference,
        api_url: None,
        token: TokenSource::None,
        signature: None,
        run_status: None,
        run_origin: None,
        plain_http: PlainHttp::default(),
        attempt_timeout: Duration::from_secs(10),
        deadline: Duration::from_secs(20),
        budget_dir: None,
    }
}

/// Returns settings for the store of a test server, with its owner's token.
pub fn open_served(server: &TestServer) -> OpenConfig {
    OpenConfig {
        api_url: Some(Url::parse(&server.url()).expect("a URL")),
        token: TokenSource::Environment(Secret::new(TOKEN)),
        ..open_config(server.entry.id.parse().expect("an id"))
    }
}

/// Retries as usual, but without the waiting.
pub fn quick_retries() -> HttpOptions {
    HttpOptions {
        retry: RetryPolicy {
            attempts: 3,
            base_delay: Duration::from_millis(1),
            max_delay: Duration::from_millis(4),
        },
        resume_timeout: Duration::from_secs(10),
        ..HttpOptions::new(Duration::from_secs(10))
    }
}

/// Starts a server whose answers, but for the one that describes the store, are scripted.
pub fn scripted(
    handler: impl Fn(&Seen, usize) -> Answer + Send + Sync + 'static,
) -> ScriptedServer {
    ScriptedServer::start(move |seen, count| match count {
        0 => Answer::new(
            200,
            format!(
                r#"{{"data":{{"id":"{SCRIPTED_ID}","name":"n","modifiedAt":"2024-01-02T03:04:05.678Z"}}}}"#
            ),
        ),
        _ => handler(seen, count - 1),
    })
}

/// Returns the path of a record on scripted servers.
pub fn scripted_path(key: &str) -> String {
    format!("/v2/key-value-stores/{SCRIPTED_ID}/records/{key}")
}

/// Returns a scripted page of keys.
pub fn scripted_keys(items: &[(&str, u64)]) -> Answer {
    let items: Vec<_> = items
        .iter()
        .map(|(key, size)| serde_json::json!({"key": key, "size": size}))
        .collect();
    let page = serde_json::json!({"data": {
        "items": items, "count": items.len(), "limit": 1000, "isTruncated": false,
        "exclusiveStartKey": null, "nextExclusiveStartKey": null,
    }});
    Answer::new(200, page.to_string()).header("content-type", "application/json")
}

/// Lets the store be changed through the mount.
pub fn make_writable(config: &mut MountConfig) {
    let beside = config.mount_point.with_file_name("staging");
    config.file_mode = 0o644;
    config.dir_mode = 0o755;
    config.write = Some(WriteSettings {
        overwrite: Overwrite::Unchanged,
        compress: None,
        scratch: Vec::new(),
        scratch_delay: Duration::from_secs(1),
        max_record_size: None,
        staging_dir: beside,
        other_staging: Vec::new(),
        staging_size: None,
        write_back: false,
        unmount_timeout: std::time::Duration::from_secs(10),
    });
}

impl MountedSession {
    /// Mounts a store.
    pub fn of(store: Arc<dyn Store>) -> Self {
        Self::with(store, |_| {})
    }

    /// Mounts a store after `change` has had its way with the settings.
    pub fn with(store: Arc<dyn Store>, change: impl FnOnce(&mut MountConfig)) -> Self {
        let reference = StoreRef::Directory("/in-this-process".into());
        Self::start(open_config(reference), change, |config, metrics| {
            kvfs::mount::build::mount_store(store, config, metrics)
        })
    }

    /// Mounts a store to be changed.
    pub fn writable(store: Arc<dyn Store>) -> Self {
        Self::with(store, make_writable)
    }

    /// Mounts the store of a test server to be changed.
    pub fn served_writable(server: &TestServer) -> Self {
        Self::served_with(server, make_writable)
    }

    /// Mounts the store of a test server, through the API client.
    pub fn served(server: &TestServer) -> Self {
        Self::served_with(server, |_| {})
    }

    /// The same after `change` has had its way with the settings.
    pub fn served_with(server: &TestServer, change: impl FnOnce(&mut MountConfig)) -> Self {
        Self::opened(open_served(server), change)
    }

    /// Opens a store and mounts it, as `kvfs mount` does.
    pub fn opened(open: OpenConfig, change: impl FnOnce(&mut MountConfig)) -> Self {
        Self::start(open, change, kvfs::mount::build::mount)
    }

    /// Mounts what a scripted server has.
    pub fn scripted(
        server: &ScriptedServer,
        options: HttpOptions,
        change: impl FnOnce(&mut MountConfig),
    ) -> Self {
        Self::at(&server.url(), options, change)
    }

    /// The same by a clock that the test moves.
    pub fn by_clock(
        url: &str,
        options: HttpOptions,
        clock: Arc<dyn Clock>,
        change: impl FnOnce(&mut MountConfig),
    ) -> Self {
        let open = OpenConfig {
            api_url: Some(Url::parse(url).expect("a URL")),
            token: TokenSource::Environment(Secret::new(TOKEN)),
            ..open_config(SCRIPTED_ID.parse().expect("an id"))
        };
        Self::start(open, change, |config, metrics| {
            let store = kvfs::mount::open::open_with(&config.open, options, Arc::clone(&metrics))
                .map_err(SetupError::Store)?;
            kvfs::mount::build::mount_store_by(store, config, metrics, clock)
        })
    }

    /// Mounts the scripted store of the server at an address.
    pub fn at(url: &str, options: HttpOptions, change: impl FnOnce(&mut MountConfig)) -> Self {
        Self::by_clock(url, options, Arc::new(SystemClock), change)
    }

    fn start(
        open: OpenConfig,
        change: impl FnOnce(&mut MountConfig),
        mount: impl FnOnce(MountConfig, Arc<Metrics>) -> Result<kvfs::mount::build::Mounted, SetupError>,
    ) -> Self {
        assert!(
            Path::new("/dev/fuse").exists(),
            "these tests need /dev/fuse: load the module (modprobe fuse), or start the container with --device /dev/fuse --cap-add SYS_ADMIN"
        );
        let folder = tempfile::Builder::new()
            .prefix("kvfs-test-")
            .tempdir()
            .expect("a temporary folder");
        let mount_point = folder.path().join("mnt");
        fs::create_dir(&mount_point).expect("a mount point");
        let mut config = MountConfig {
            open,
            mount_point,
            source: None,
            raw: false,
            max_content: None,
            prefix: None,
            collection: None,
            ttl: Some(Duration::from_secs(10)),
            clock_lag: Some(kvfs::store::freshness::USUAL_LAG),
            exact_sizes: false,
            memory_cache: ByteSize(64 << 20),
            disk_cache: Some(DiskCacheConfig {
                dir: folder.path().join("cache"),
                size: ByteSize(2 << 30),
            }),
            deadline: Duration::from_secs(20),
            uid: rustix::process::geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
            file_mode: 0o444,
            dir_mode: 0o555,
            access: MountAccess::Owner,
            write: None,
        };
        change(&mut config);
        let metrics = Arc::new(Metrics::default());
        let mounted = mount(config, Arc::clone(&metrics)).expect("a mount");
        let status = mounted.status_source();
        let thread = thread::Builder::new()
            .name("mounted".into())
            .spawn(move || mounted.run())
            .expect("a thread");
        Self {
            folder,
            metrics,
            status,
            thread: Some(thread),
        }
    }

    /// Returns the mount point.
    pub fn path(&self) -> PathBuf {
        self.folder.path().join("mnt")
    }

    /// Returns a file's path.
    pub fn file(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }

    /// Returns a folder beside the mount for whatever a test needs.
    pub fn beside(&self) -> PathBuf {
        let path = self.folder.path().join("beside");
        fs::create_dir_all(&path).expect("a folder");
        path
    }

    /// Returns the counters.
    pub fn counters(&self) -> Snapshot {
        self.metrics.snapshot()
    }

    /// Returns what `kvfs status` would say.
    pub fn status(&self) -> serde_json::Value {
        (self.status)()
    }

    /// Starts a shell in the mount; `$BESIDE` is a folder beside it.
    pub fn start_sh(&self, script: &str) -> Running {
        Running::start(
            Command::new("sh")
                .arg("-c")
                .arg(format!("cd {} || exit 99\n{script}", self.path().display()))
                .env("LC_ALL", "C")
                .env("BESIDE", self.beside())
                .env("PYTHON", *PYTHON),
        )
    }

    /// Runs a shell in the mount, for at most a minute.
    #[track_caller]
    pub fn sh(&self, script: &str) -> Output {
        self.start_sh(script).wait(COMMAND_LIMIT)
    }

    /// Runs a shell in the mount and returns what it wrote; the test fails if the shell does.
    #[track_caller]
    pub fn works(&self, script: &str) -> String {
        let output = self.sh(script);
        assert!(
            output.status.success(),
            "{script}: {}: {}{}",
            output.status,
            String::from_utf8_lossy(&output.stdout),
            output.stderr
        );
        output.text()
    }

    /// Runs a shell in the mount that must fail; returns what it complained.
    #[track_caller]
    pub fn fails(&self, script: &str) -> String {
        let output = self.sh(script);
        assert!(!output.status.success(), "{script} worked: {output:?}");
        output.stderr
    }

    /// Runs a Python program in the mount.
    #[track_caller]
    pub fn python(&self, program: &str) -> String {
        let file = self.beside().join("program.py");
        fs::write(&file, program).expect("a program");
        self.works(&format!("$PYTHON {}", file.display()))
    }

    /// Unmounts as `umount -l` does and waits for the session's end, which nothing may delay.
    #[track_caller]
    pub fn unmount(mut self) {
        self.end(false);
    }

    /// Waits for the end of a session whose mount somebody else has taken away.
    #[track_caller]
    pub fn ended(mut self) {
        let thread = self.thread.take().expect("a session");
        eventually("the session ends", || thread.is_finished());
        // What a connection that was cut off says is of no interest.
        let _ = thread.join().expect("the session does not panic");
    }

    fn end(&mut self, by_force: bool) {
        let Some(thread) = self.thread.take() else {
            return;
        };
        // Force fails all requests in flight, so that nothing can hold the session back.
        let mut flags = UnmountFlags::DETACH | UnmountFlags::NOFOLLOW;
        if by_force {
            flags |= UnmountFlags::FORCE;
        }
        let unmounted = rustix::mount::unmount(self.path(), flags);
        let start = Instant::now();
        while !thread.is_finished() && start.elapsed() < END_LIMIT {
            thread::sleep(Duration::from_millis(2));
        }
        if thread::panicking() {
            return;
        }
        assert!(thread.is_finished(), "the session does not end");
        unmounted.expect("an unmount");
        thread
            .join()
            .expect("the session does not panic")
            .expect("the session ends well");
    }
}

impl Drop for MountedSession {
    fn drop(&mut self) {
        self.end(thread::panicking());
        // What is still being written to the cache keeps a removal from removing all, and makes
        // folders anew.
        self.folder.disable_cleanup(true);
        let start = Instant::now();
        let mut removals = 0;
        while removals < 3 && start.elapsed() < END_LIMIT {
            removals = match fs::remove_dir_all(self.folder.path()) {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => removals + 1,
                _ => 0,
            };
            thread::sleep(Duration::from_millis(20));
        }
    }
}

/// The interpreter for Python programs.
///
/// Not a wrapper that looks for files of its own in the current folder: those cost requests.
pub static PYTHON: LazyLock<&str> = LazyLock::new(|| {
    if Path::new("/usr/bin/python3").exists() {
        "/usr/bin/python3 -I"
    } else {
        "python3 -I"
    }
});

/// A program that is running, with its children. Dropping it kills them.
pub struct Running {
    child: Child,
    started: Instant,
    stdout: Option<JoinHandle<Vec<u8>>>,
    stderr: Option<JoinHandle<Vec<u8>>>,
}

impl Running {
    /// Starts a program in a process group of its own.
    pub fn start(command: &mut Command) -> Self {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()
            .expect("a program");
        let (out, err) = (child.stdout.take(), child.stderr.take());
        Self {
            stdout: Some(thread::spawn(move || collect(out))),
            stderr: Some(thread::spawn(move || collect(err))),
            child,
            started: Instant::now(),
        }
    }

    /// Returns the program's pid.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Tells whether it still runs.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("a status").is_none()
    }

    /// Sends a signal to it and its children.
    pub fn signal(&self, signal: rustix::process::Signal) {
        // The child has not been waited for, so that the number is still its own.
        let group = i32::try_from(self.child.id())
            .ok()
            .and_then(rustix::process::Pid::from_raw);
        let _ = rustix::process::kill_process_group(group.expect("a pid"), signal);
    }

    /// Waits for its end; the test fails when that takes longer than `limit` from its start.
    #[track_caller]
    pub fn wait(mut self, limit: Duration) -> Output {
        let status = loop {
            if let Some(status) = self.child.try_wait().expect("a status") {
                break status;
            }
            assert!(
                self.started.elapsed() < limit,
                "a command takes longer than {limit:?}"
            );
            thread::sleep(Duration::from_millis(2));
        };
        let took = self.started.elapsed();
        let take = |pipe: Option<JoinHandle<Vec<u8>>>| {
            pipe.expect("a pipe").join().expect("what it wrote")
        };
        Output {
            status,
            stdout: take(self.stdout.take()),
            stderr: String::from_utf8_lossy(&take(self.stderr.take())).into_owned(),
            took,
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            self.signal(rustix::process::Signal::KILL);
            let _ = self.child.wait();
        }
    }
}

fn collect(pipe: Option<impl Read>) -> Vec<u8> {
    let mut bytes = Vec::new();
    if let Some(mut pipe) = pipe {
        let _ = pipe.read_to_end(&mut bytes);
    }
    bytes
}

/// Closes a file and returns what `close` answers, which dropping the file does not.
///
/// # Errors
/// Those of `close`.
pub fn close(file: fs::File) -> std::io::Result<()> {
    use std::os::fd::IntoRawFd;
    // SAFETY: the descriptor is nobody else's from here on.
    #[expect(unsafe_code, reason = "nothing else tells what close answers")]
    match unsafe { libc::close(file.into_raw_fd()) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}

/// Waits until something is true; the test fails when that takes longer than a minute.
#[track_caller]
pub fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < Duration::from_secs(60), "not yet: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// Returns bytes that no two offsets share: any shift or mix of them is noticed.
pub fn pattern(len: usize) -> Vec<u8> {
    (0..len as u64)
        .step_by(8)
        .flat_map(|at| {
            (at ^ 0x5bd1_e995)
                .wrapping_mul(0x9e37_79b9_7f4a_7c15)
                .to_le_bytes()
        })
        .take(len)
        .collect()
}

/// Returns text that compresses well and tells its own offsets.
pub fn text(len: usize) -> Vec<u8> {
    (0u64..)
        .flat_map(|line| format!("line {line:08} of the text of a record\n").into_bytes())
        .take(len)
        .collect()
}
