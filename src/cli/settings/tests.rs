use clap::Parser;
use tempfile::TempDir;

use super::*;
use crate::cli::args::{Cli, Command};

struct Home {
    dir: TempDir,
    variables: Vec<(String, String)>,
}

impl Home {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        for name in ["mnt", "run"] {
            fs::create_dir(dir.path().join(name)).expect("a folder");
        }
        let home = dir.path().display().to_string();
        Self {
            dir,
            variables: vec![("HOME".into(), home)],
        }
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).display().to_string()
    }

    fn set(&mut self, name: &str, value: &str) -> &mut Self {
        self.variables.push((name.into(), value.into()));
        self
    }

    fn environment(&self) -> Environment {
        Environment::from_variables(|name| {
            let (_, value) = self.variables.iter().rfind(|(known, _)| known == name)?;
            Some(value.into())
        })
    }

    fn order(&self, flags: &[&str]) -> Result<Order, CliError> {
        let mount_point = self.path("mnt");
        let line = ["kvfs", "mount"]
            .into_iter()
            .chain(flags.iter().copied())
            .chain(["~mine", &mount_point]);
        let cli = Cli::try_parse_from(line).expect("arguments");
        let Command::Mount(args) = cli.command else {
            unreachable!("a mount");
        };
        mount_order(&args, cli.global, &self.environment())
    }
}

fn token(order: &Order) -> String {
    match &order.mount.open.token {
        TokenSource::None => "none".into(),
        TokenSource::Bucket(_) => "variables".into(),
        TokenSource::Environment(secret) => secret.expose().into(),
        TokenSource::File(path) | TokenSource::CliLogin(path) => {
            path.file_name().expect("a name").to_string_lossy().into()
        }
    }
}

#[test]
fn the_token_comes_from_the_file_then_the_environment_then_the_login() {
    let mut home = Home::new();
    assert_eq!(token(&home.order(&[]).expect("settings")), "none");
    fs::create_dir(home.path(".apify")).expect("a folder");
    fs::write(home.path(".apify/auth.json"), "{}").expect("a file");
    assert_eq!(token(&home.order(&[]).expect("settings")), "auth.json");
    home.set("APIFY_TOKEN", "");
    assert_eq!(token(&home.order(&[]).expect("settings")), "auth.json");
    home.set("APIFY_TOKEN", " t1\n");
    assert_eq!(token(&home.order(&[]).expect("settings")), "t1");
    let file = home.path("token.txt");
    fs::write(&file, "t2\n").expect("a file");
    let order = home.order(&["--token-file", &file]).expect("settings");
    assert_eq!(token(&order), "token.txt");
}

#[test]
fn a_token_file_must_hold_a_token() {
    let home = Home::new();
    for (name, content) in [("empty", ""), ("two", "a\nb\n")] {
        let file = home.path(name);
        fs::write(&file, content).expect("a file");
        assert!(home.order(&["--token-file", &file]).is_err(), "{name}");
    }
    let error = home
        .order(&["--token-file", "apify_api_s3cret"])
        .expect_err("no file");
    assert!(!format!("{error:?}").contains("s3cret"));
}

#[test]
fn the_api_url_comes_from_the_flag_then_the_clients_then_the_sdks_variable() {
    let mut home = Home::new();
    let url = |order: Result<Order, CliError>| order.expect("settings").mount.open.api_url;
    assert_eq!(url(home.order(&[])), None);
    home.set("APIFY_API_BASE_URL", "http://sdk");
    assert_eq!(url(home.order(&[])), Url::parse("http://sdk").ok());
    home.set("APIFY_CLIENT_BASE_URL", "http://client/v2/");
    assert_eq!(url(home.order(&[])), Url::parse("http://client").ok());
    assert_eq!(
        url(home.order(&["--api-url", "http://flag"])),
        Url::parse("http://flag").ok()
    );
    home.set("APIFY_CLIENT_BASE_URL", "nonsense");
    let error = home.order(&[]).expect_err("nonsense");
    assert!(error.message.contains("APIFY_CLIENT_BASE_URL"), "{error}");
}

#[test]
fn the_signature_comes_from_the_flag_then_the_file_then_the_environment() {
    let mut home = Home::new();
    let file = home.path("signature");
    fs::write(&file, "s2\n").expect("a file");
    home.set("KVFS_SIGNATURE", "s3");
    for (flags, expected) in [
        (vec!["--signature", "s1"], "s1"),
        (vec!["--signature-file", &file], "s2"),
        (vec![], "s3"),
    ] {
        let order = home.order(&flags).expect("settings");
        let signature = order.mount.open.signature.expect("a signature");
        assert_eq!(signature.expose(), expected);
    }
}

#[test]
fn defaults_are_those_of_the_help() {
    let home = Home::new();
    let order = home.order(&[]).expect("settings");
    let mount = &order.mount;
    assert_eq!(mount.ttl, Some(DEFAULT_TTL));
    assert_eq!(mount.memory_cache, ByteSize::mib(64));
    assert_eq!((mount.file_mode, mount.dir_mode), (0o444, 0o555));
    assert_eq!(mount.access, MountAccess::Owner);
    let disk = mount.disk_cache.as_ref().expect("a cache");
    assert_eq!(disk.dir, home.dir.path().join(".cache/kvfs"));
    assert_eq!(disk.size, ByteSize::gib(2));
    let log = order.log.file.expect("a log file");
    assert!(
        log.starts_with(home.path(".local/state/kvfs/logs")),
        "{log:?}"
    );
    assert_eq!(order.log.level, LogLevel::Info);
    assert_eq!(order.store, "~mine");
}

#[test]
fn flags_do_what_they_say() {
    let home = Home::new();
    let order = home
        .order(&[
            "--immutable",
            "--raw",
            "--exact-sizes",
            "--no-disk-cache",
            "--allow-root",
            "-f",
            "--uid=7",
            "--gid=8",
            "--file-mode=400",
            "--dir-mode=0500",
            "--status=succeeded",
            "--origin=api",
            "--prefix=a",
            "--collection=c",
            "--timeout=1",
            "--deadline=2",
            "-vv",
        ])
        .expect("settings");
    let mount = order.mount;
    assert_eq!(mount.ttl, None);
    assert!(mount.raw && mount.exact_sizes && mount.disk_cache.is_none());
    assert_eq!((mount.uid, mount.gid), (7, 8));
    assert_eq!((mount.file_mode, mount.dir_mode), (0o400, 0o500));
    assert_eq!(mount.access, MountAccess::OwnerAndRoot);
    assert_eq!(mount.prefix.as_deref(), Some("a"));
    assert_eq!(mount.collection.as_deref(), Some("c"));
    assert_eq!(mount.open.run_status.as_deref(), Some("SUCCEEDED"));
    assert_eq!(mount.open.run_origin.as_deref(), Some("API"));
    assert_eq!(mount.open.attempt_timeout, Duration::from_secs(1));
    assert_eq!(mount.deadline, Duration::from_secs(2));
    assert_eq!(order.log.level, LogLevel::Trace);
    assert_eq!(order.log.file, None, "foreground logs to standard error");
    let off = home.order(&["--cache-size=0"]).expect("settings");
    assert!(off.mount.disk_cache.is_none());
}

#[test]
fn a_mount_that_would_wait_for_itself_is_refused() {
    let home = Home::new();
    let inside = home.path("mnt/cache");
    for flag in ["--cache-dir", "--log-file"] {
        let error = home.order(&[flag, &inside]).expect_err("inside");
        assert!(error.message.contains("inside the mount point"), "{error}");
    }
}

#[test]
fn the_runtime_folder_is_used_only_if_it_is_there() {
    let mut home = Home::new();
    let registry = |home: &Home| format!("{:?}", home.environment().registry().expect("it"));
    let state = home.path(".local/state/kvfs/mounts");
    assert!(registry(&home).contains(&format!("dir: {state:?}")));
    home.set("XDG_RUNTIME_DIR", &home.path("none"));
    assert!(registry(&home).contains(&format!("dir: {state:?}")));
    home.set("XDG_RUNTIME_DIR", &home.path("run"));
    assert!(registry(&home).contains(&format!("dir: {:?}", home.path("run/kvfs"))));
    assert!(
        registry(&home).contains(&state),
        "the other one is read, too"
    );
}

#[test]
fn log_files_have_names_to_recognise_and_never_share_one() {
    let slugs: Vec<String> = ["/mnt/a b", "/mnt/a_b", "/mnt-a_b", "/"]
        .iter()
        .map(|path| slug(Path::new(path)))
        .collect();
    assert!(slugs[0].starts_with("mnt-a_b-"), "{slugs:?}");
    for (index, slug) in slugs.iter().enumerate() {
        assert!(!slugs[..index].contains(slug), "{slugs:?}");
    }
}

#[test]
fn settings_show_no_secrets() {
    let mut home = Home::new();
    home.set("APIFY_TOKEN", "s3cret")
        .set("KVFS_SIGNATURE", "s3cret");
    let shown = format!("{:?} {:?}", home.environment(), home.order(&[]));
    assert!(!shown.contains("s3cret"), "{shown}");
}
