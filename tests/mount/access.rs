//! The built program against a server: which store it opens, with which credentials, what it says
//! when it may not, and that no secret shows anywhere.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant, SystemTime};

use kvfs::base::signature::{sign_keys, sign_record};
use kvfs::store::Encoding;

use super::daemon::{User, soon};
use super::sandbox::Sandbox;
use crate::support::mounted::Running;
use crate::support::served::{TOKEN, TestServer};

fn server() -> TestServer {
    let server = TestServer::start();
    server.put_text("INPUT", "{}");
    server.put_encoded("page.html", "text/html", Encoding::Brotli, b"<p>hello</p>");
    server
}

/// Runs `kvfs` for a user who has the server's address and this token.
#[track_caller]
fn run(user: &User, server: &TestServer, token: Option<&str>, args: &[&str]) -> (i32, String) {
    let mut command = user.command(args);
    command
        .env("APIFY_CLIENT_BASE_URL", server.url())
        .env_remove("APIFY_TOKEN");
    if let Some(token) = token {
        command.env("APIFY_TOKEN", token);
    }
    let output = Running::start(&mut command).wait(Duration::from_secs(30));
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &output.stderr;
    (output.status.code().expect("an exit code"), said)
}

#[track_caller]
fn mounts(user: &User, server: &TestServer, token: Option<&str>, args: &[&str]) -> String {
    let (code, said) = run(user, server, token, args);
    assert_eq!(code, 0, "{args:?}: {said}");
    said
}

#[track_caller]
fn refuses(user: &User, server: &TestServer, token: Option<&str>, args: &[&str]) -> String {
    let start = Instant::now();
    let (code, said) = run(user, server, token, args);
    assert!([1, 2, 4, 5].contains(&code), "{args:?}: {code}, {said}");
    assert!(start.elapsed() < Duration::from_secs(10), "{args:?}");
    assert!(user.nothing_left(), "something is left");
    assert!(!said.contains(TOKEN), "{said}");
    said
}

fn read(user: &User, name: &str) -> String {
    fs::read_to_string(user.path("mnt").join(name)).expect(name)
}

/// Checks that none of the secrets shows where other programs, or people, may look.
#[track_caller]
fn nothing_shows(user: &User, secrets: &[&str]) {
    let pid = user.pid();
    let mnt = user.path("mnt");
    let shell = |script: &str| {
        let output = Command::new("sh")
            .args(["-c", script])
            .current_dir(&mnt)
            .output()
            .expect("a shell");
        String::from_utf8_lossy(&output.stdout).into_owned()
            + &String::from_utf8_lossy(&output.stderr)
    };
    let mut places = vec![
        (
            "attributes",
            shell("getfattr -d . *; getfattr -n user.kvfs.stats ."),
        ),
        ("mounts", shell("cat /proc/self/mountinfo; df .")),
        // Mounts of other tests are shown too, and decide its exit code.
        ("status", user.run(&["status"]).1),
        ("status of one", user.works(&["status", "mnt"])),
        ("JSON", format!("{:?}", user.status())),
    ];
    for file in ["cmdline", "environ"] {
        let bytes = fs::read(Path::new("/proc").join(&pid).join(file)).expect(file);
        places.push((file, String::from_utf8_lossy(&bytes).into_owned()));
    }
    let logs = user.path(".local/state/kvfs/logs");
    for log in fs::read_dir(&logs).expect("logs") {
        let path = log.expect("a log").path();
        places.push(("log", fs::read_to_string(path).expect("a log")));
    }
    let files = Command::new("find")
        .args([user.path(".cache"), user.path("run")])
        .output()
        .expect("find");
    places.push((
        "file names",
        String::from_utf8_lossy(&files.stdout).into_owned(),
    ));
    for (place, text) in places {
        assert!(!text.is_empty() || place == "environ", "{place}");
        for secret in secrets {
            assert!(!text.contains(secret), "{secret} shows in {place}: {text}");
        }
    }
}

#[test]
fn every_form_of_a_store_mounts_it() {
    let (user, server) = (User::new(), server());
    let id = server.entry.id.clone();
    for form in [
        id.clone(),
        "~test-store".into(),
        "local~test-store".into(),
        "local/test-store".into(),
        "run:run0000000000000A".into(),
        "actor:local~my-actor".into(),
        "task:local/my-task".into(),
        format!("{}/v2/key-value-stores/{id}", server.url()),
        format!("{}/v2/key-value-stores/{id}/keys", server.url()),
    ] {
        mounts(&user, &server, Some(TOKEN), &["mount", &form, "mnt"]);
        assert_eq!(read(&user, "INPUT"), "{}", "{form}");
        assert_eq!(user.status()[0]["store_id"], id.as_str(), "{form}");
        mounts(&user, &server, None, &["unmount", "mnt"]);
        assert!(user.nothing_left(), "{form}");
    }
}

#[test]
fn a_mount_with_a_token_shows_it_nowhere() {
    let (user, server) = (User::new(), server());
    let id = server.entry.id.as_str();
    mounts(&user, &server, Some(TOKEN), &["mount", "-vv", id, "mnt"]);
    assert_eq!(read(&user, "page.html"), "<p>hello</p>");
    fs::read(user.path("mnt/missing")).expect_err("it is missing");
    nothing_shows(&user, &[TOKEN]);
    let status = user.status();
    assert_eq!(status[0]["store_name"], "test-store");
    assert_eq!(status[0]["mode"], "decoded");
    assert!(status[0]["stats"]["requests_total"].as_u64() >= Some(3));
    let shown = user.works(&["status", "mnt"]);
    assert!(shown.contains("test-store"), "{shown}");
}

#[test]
fn a_token_file_is_read_again_when_it_changes() {
    let (user, server) = (User::new(), server());
    let id = server.entry.id.as_str();
    let file = user.path("token");
    fs::write(&file, "apify_api_wrong\n").expect("a token");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).expect("its mode");
    let args = ["mount", "--token-file", "token", "--ttl", "0", id, "mnt"];
    let said = refuses(&user, &server, None, &args);
    assert!(said.contains("token"), "{said}");
    fs::write(&file, format!("{TOKEN}\n")).expect("a token");
    mounts(&user, &server, None, &args);
    assert_eq!(read(&user, "INPUT"), "{}");
    fs::write(&file, "apify_api_wrong_and_longer\n").expect("a token");
    let error = fs::read(user.path("mnt/INPUT")).expect_err("a wrong token");
    assert_eq!(error.raw_os_error(), Some(libc::EACCES));
    fs::write(&file, TOKEN).expect("a token");
    assert_eq!(read(&user, "INPUT"), "{}");
    nothing_shows(&user, &[TOKEN, "apify_api_wrong"]);
}

#[test]
fn a_wrong_store_or_token_fails_the_mount_with_the_reason() {
    let (user, server) = (User::new(), server());
    let id = server.entry.id.as_str();
    let said = refuses(&user, &server, Some(TOKEN), &["mount", "~nothing", "mnt"]);
    assert!(
        said.contains("does not exist") && said.contains("check"),
        "{said}"
    );
    let said = refuses(
        &user,
        &server,
        Some(TOKEN),
        &["mount", "run:nothing", "mnt"],
    );
    assert!(said.contains("run"), "{said}");
    // Without a token, with a wrong one, and with that of somebody who may not.
    let said = refuses(&user, &server, None, &["mount", id, "mnt"]);
    assert!(
        said.contains("no token was sent") && said.contains("APIFY_TOKEN"),
        "{said}"
    );
    let said = refuses(
        &user,
        &server,
        Some("apify_api_wrong"),
        &["mount", id, "mnt"],
    );
    assert!(
        said.contains("token") && !said.contains("apify_api_wrong"),
        "{said}"
    );
    let (code, said) = run(&user, &server, None, &["mount", "what is this", "mnt"]);
    assert!(
        code != 0 && said.contains("user~name") || said.contains("USER~NAME"),
        "{code} {said}"
    );
    let (code, said) = run(&user, &server, Some(TOKEN), &["mount", id, "nowhere"]);
    assert!(code != 0 && said.contains("nowhere"), "{code} {said}");
    let (code, said) = run(&user, &server, Some(TOKEN), &["mount", id, "store/a"]);
    assert!(code != 0 && said.contains("director"), "{code} {said}");
    let url = server.url();
    drop(server);
    let start = Instant::now();
    let mut command = user.command(&["mount", "--deadline", "1s", "--api-url", &url, "~x", "mnt"]);
    let output = Running::start(&mut command).wait(Duration::from_secs(10));
    assert_eq!(output.status.code(), Some(1));
    assert!(start.elapsed() < Duration::from_secs(5));
    assert!(
        output.stderr.contains("127.0.0.1") || output.stderr.contains("network"),
        "{}",
        output.stderr
    );
}

#[test]
fn a_signed_list_of_keys_mounts_read_only_without_an_account() {
    let (user, server) = (User::new(), server());
    let entry = server.entry_now();
    let signature = sign_keys(&entry.signing_key, &entry.id, None);
    let url = format!(
        "{}/keys?signature={}",
        server.store_url(),
        signature.expose()
    );
    mounts(&user, &server, None, &["mount", "-vv", &url, "mnt"]);
    assert_eq!(read(&user, "page.html"), "<p>hello</p>");
    let names: Vec<_> = fs::read_dir(user.path("mnt"))
        .expect("a listing")
        .map(|entry| entry.expect("an entry").file_name())
        .collect();
    assert_eq!(names, ["INPUT", "page.html"]);
    let error = fs::write(user.path("mnt/new"), "x").expect_err("it is read-only");
    assert_eq!(error.raw_os_error(), Some(libc::EROFS));
    let records = sign_record(&entry.signing_key, "page.html");
    nothing_shows(&user, &[signature.expose(), records.expose()]);
    mounts(&user, &server, None, &["unmount", "mnt"]);

    // The same by flag, file and variable.
    fs::write(user.path("signature"), signature.expose()).expect("a file");
    for args in [
        vec!["mount", "--signature", signature.expose(), &entry.id, "mnt"],
        vec!["mount", "--signature-file", "signature", &entry.id, "mnt"],
    ] {
        mounts(&user, &server, None, &args);
        assert_eq!(read(&user, "INPUT"), "{}");
        nothing_shows(&user, &[signature.expose()]);
        mounts(&user, &server, None, &["unmount", "mnt"]);
    }
    let mut command = user.command(&["mount", &entry.id, "mnt"]);
    command
        .env("APIFY_CLIENT_BASE_URL", server.url())
        .env("KVFS_SIGNATURE", signature.expose())
        .env_remove("APIFY_TOKEN");
    let output = Running::start(&mut command).wait(Duration::from_secs(20));
    assert!(output.status.success(), "{output:?}");
    assert_eq!(read(&user, "INPUT"), "{}");
    nothing_shows(&user, &[signature.expose()]);
}

#[test]
fn an_expired_or_wrong_signature_fails_the_mount() {
    let (user, server) = (User::new(), server());
    let entry = server.entry_now();
    let hour = Duration::from_secs(3600);
    let signature = sign_keys(
        &entry.signing_key,
        &entry.id,
        Some(SystemTime::now() - hour),
    );
    let url = format!(
        "{}/keys?signature={}",
        server.store_url(),
        signature.expose()
    );
    let said = refuses(&user, &server, None, &["mount", &url, "mnt"]);
    assert!(said.contains("expired"), "{said}");
    assert!(!said.contains(signature.expose()), "{said}");
    let url = format!("{}/keys?signature=abc", server.store_url());
    refuses(&user, &server, None, &["mount", &url, "mnt"]);
}

#[test]
fn a_signature_that_runs_out_later_is_an_error_that_says_so() {
    let (user, server) = (User::new(), server());
    let entry = server.entry_now();
    let expires = SystemTime::now() + Duration::from_secs(3);
    let signature = sign_keys(&entry.signing_key, &entry.id, Some(expires));
    let url = format!(
        "{}/keys?signature={}",
        server.store_url(),
        signature.expose()
    );
    mounts(
        &user,
        &server,
        None,
        &["mount", "--ttl", "100ms", &url, "mnt"],
    );
    assert_eq!(
        fs::read_dir(user.path("mnt")).expect("a listing").count(),
        2
    );
    assert!(user.status()[0]["signature_expires_unix_s"].is_u64());
    soon(|| expires < SystemTime::now());
    std::thread::sleep(Duration::from_millis(150));
    let error = fs::read_dir(user.path("mnt"))
        .and_then(|mut entries| entries.next().transpose())
        .expect_err("the signature has run out");
    assert_eq!(error.raw_os_error(), Some(libc::EACCES), "{error}");
    let status = user.status();
    assert_eq!(status[0]["signature_expired"], true);
    assert!(
        status[0]["stats"]["last_errors"]
            .to_string()
            .contains("expired"),
        "{status:?}"
    );
    let shown = user.works(&["status", "mnt"]);
    assert!(shown.contains("expired"), "{shown}");
    let logs = Command::new("grep")
        .args(["-rc", "expired"])
        .arg(user.path(".local/state/kvfs/logs"))
        .output()
        .expect("grep");
    assert!(logs.status.success(), "the log says nothing");
    nothing_shows(&user, &[signature.expose()]);
}

#[test]
fn signed_records_mount_as_a_folder_of_exactly_these() {
    let (user, server) = (User::new(), server());
    server.put_text("OTHER", "other");
    server.put_text("a/b", "slash");
    let key = &server.entry_now().signing_key;
    let link = |name: &str, path: &str| {
        let signature = sign_record(key, name);
        (
            format!(
                "{}?signature={}",
                server.record_url(path),
                signature.expose()
            ),
            signature.expose().to_owned(),
        )
    };
    let (one, first) = link("INPUT", "INPUT");
    let (two, second) = link("page.html", "page.html");
    let (three, third) = link("a/b", "a%2Fb");
    mounts(&user, &server, None, &["mount", "-vv", &one, "mnt"]);
    assert_eq!(read(&user, "INPUT"), "{}");
    assert_eq!(
        fs::read_dir(user.path("mnt")).expect("a listing").count(),
        1
    );
    nothing_shows(&user, &[&first]);
    mounts(&user, &server, None, &["unmount", "mnt"]);
    mounts(&user, &server, None, &["mount", &one, &two, &three, "mnt"]);
    assert_eq!(read(&user, "page.html"), "<p>hello</p>");
    assert_eq!(read(&user, "a%2Fb"), "slash");
    assert_eq!(
        fs::read_dir(user.path("mnt")).expect("a listing").count(),
        3
    );
    fs::read(user.path("mnt/OTHER")).expect_err("it was not given");
    nothing_shows(&user, &[&first, &second, &third]);
    mounts(&user, &server, None, &["unmount", "mnt"]);
    let wrong = one.replace("signature=", "signature=x");
    let said = refuses(&user, &server, None, &["mount", &wrong, "mnt"]);
    assert!(!said.contains(&first), "{said}");
}

#[test]
fn flags_and_fstab_options_reach_the_mount() {
    let (user, server) = (User::new(), server());
    let id = server.entry.id.as_str();
    let args = [
        "mount",
        "-o",
        "ttl=1m,raw,uid=1234,gid=2345,file-mode=0400",
        "--prefix",
        "page",
        id,
        "mnt",
    ];
    mounts(&user, &server, Some(TOKEN), &args);
    let output = Command::new("stat")
        .args(["-c", "%u %g %a"])
        .arg(user.path("mnt/page.html"))
        .output()
        .expect("stat");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "1234 2345 400\n");
    assert!(fs::read(user.path("mnt/page.html")).expect("stored bytes") != b"<p>hello</p>");
    assert!(!user.path("mnt/INPUT").exists());
    assert_eq!(user.status()[0]["mode"], "raw");
}

#[test]
fn unmounting_with_open_files_lazily_lets_them_be_read_to_their_end() {
    let (user, server) = (User::new(), server());
    server.put_text("long", &"0123456789".repeat(300_000));
    let id = server.entry.id.as_str();
    mounts(&user, &server, Some(TOKEN), &["mount", id, "mnt"]);
    let mut file = fs::File::open(user.path("mnt/long")).expect("a file");
    let unmounted = Command::new("umount")
        .arg("-l")
        .arg(user.path("mnt"))
        .status();
    assert!(unmounted.expect("umount").success());
    let mut read = String::new();
    std::io::Read::read_to_string(&mut file, &mut read).expect("all of it");
    assert!(read == "0123456789".repeat(300_000));
    drop(file);
    soon(|| user.nothing_left());
}

#[test]
fn a_user_without_privileges_mounts_through_fusermount3() {
    assert!(
        Path::new("/usr/bin/fusermount3").exists() || Path::new("/bin/fusermount3").exists(),
        "fusermount3 is missing: apt install fuse3"
    );
    let (worked, said) = Sandbox::with_device("666", "").as_nobody(
        "set -e
        $KVFS mount ./store mnt
        cat mnt/a
        stat -c %U mnt/a
        grep \"$PWD/mnt \" /proc/self/mounts | cut -d' ' -f3,4
        $KVFS status --json | grep -c '\"state\": *\"live\"'
        ! touch mnt/b 2>/dev/null
        $KVFS unmount mnt
        ls mnt | wc -l
        ls run/kvfs | wc -l",
    );
    assert!(worked, "{said}");
    let lines: Vec<&str> = said
        .lines()
        .filter(|line| !line.contains("mounted"))
        .collect();
    assert!(lines.contains(&"hi") && lines.contains(&"nobody"), "{said}");
    let options = lines
        .iter()
        .find(|line| line.starts_with("fuse.kvfs"))
        .expect("options");
    for option in ["ro", "nosuid", "nodev", "noexec"] {
        assert!(
            options.split([' ', ',']).any(|found| found == option),
            "{options}"
        );
    }
}

#[test]
fn a_user_who_may_not_open_the_device_is_told_so() {
    let (worked, said) = Sandbox::with_device("600", "").as_nobody("$KVFS mount ./store mnt");
    assert!(!worked);
    assert!(said.contains("/dev/fuse"), "{said}");
}
