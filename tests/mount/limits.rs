//! A daemon that may use little: few descriptors, little address space.

use std::process::Command;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use crate::daemon::User;
use crate::support::served::{STORE, TOKEN, TestServer, remembering};

/// So many small records.
const SMALL: usize = 200;
/// Files written at once of which the daemon cannot have all in memory.
const COPIES: usize = 4;
/// What the server takes for each answer, so that all programs wait for one at a time.
const LATENCY: Duration = Duration::from_millis(30);

fn limited(user: &User, limit: &str, server: &TestServer) -> Command {
    let kvfs = user.command(&[]);
    let mut command = Command::new("prlimit");
    command.env_clear();
    for (name, value) in kvfs.get_envs() {
        if let Some(value) = value {
            command.env(name, value);
        }
    }
    command
        .args([limit, env!("CARGO_BIN_EXE_kvfs"), "mount", "--rw"])
        .args([&format!("~{STORE}"), "mnt"])
        .env("APIFY_TOKEN", TOKEN)
        .env("APIFY_CLIENT_BASE_URL", server.url())
        .current_dir(user.path(""));
    command
}

/// Mounts under a limit; then many programs read everything at once, and write while they do.
fn works_under(limit: &str, copies: usize) {
    let server = TestServer::start_with(|config| config.knobs.latency = LATENCY);
    let user = Arc::new(User::new());
    for n in 0..SMALL {
        server.put_text(&format!("r{n:03}"), &format!("{n}\n").repeat(1000));
    }
    let mut big = vec![0; 48 << 20];
    fastrand::Rng::with_seed(1).fill(&mut big);
    server.put("big", "application/octet-stream", Default::default(), &big);

    let mounted = limited(&user, limit, &server)
        .output()
        .expect("prlimit runs");
    assert!(mounted.status.success(), "{mounted:?}");
    let readers: Vec<_> = (0..16)
        .map(|reader| {
            let user = Arc::clone(&user);
            thread::spawn(move || {
                for n in (reader % 4..SMALL).step_by(4) {
                    let text = std::fs::read_to_string(user.path(&format!("mnt/r{n:03}")));
                    assert_eq!(text.expect("a record"), format!("{n}\n").repeat(1000));
                }
            })
        })
        .collect();
    assert!(std::fs::read(user.path("mnt/big")).expect("a record") == big);
    let writers: Vec<_> = (0..6)
        .map(|writer| {
            let user = Arc::clone(&user);
            thread::spawn(move || {
                for n in 0..20 {
                    let path = user.path(&format!("mnt/w{writer}-{n}"));
                    std::fs::write(path, format!("{writer} {n}\n").repeat(2000)).expect("stored");
                }
            })
        })
        .collect();
    thread::scope(|scope| {
        for copy in 0..copies {
            let path = user.path(&format!("mnt/copy{copy}"));
            let big = &big;
            scope.spawn(move || std::fs::write(path, big).expect("stored"));
        }
    });
    for program in readers.into_iter().chain(writers) {
        program.join().expect("a program that finds no fault");
    }
    for copy in 0..copies {
        let name = format!("copy{copy}");
        let folder = std::fs::read_dir(server.store_folder()).expect("the store");
        let copy = folder
            .map(|file| file.expect("a file").path())
            .find(|path| path.file_stem().is_some_and(|stem| *stem == *name));
        assert!(std::fs::read(copy.expect("a record")).expect("it") == big);
    }
    let status = &user.status()[0]["stats"];
    assert_eq!(status["errors_total"], 0, "{status}");
    assert_eq!(status["panics_total"], 0, "{status}");
    assert_eq!(server.counts().put, 6 * 20 + copies as u64);
    user.works(&["unmount", "mnt"]);
}

#[test]
fn sixty_four_descriptors_are_enough() {
    works_under("--nofile=64", 1);
}

#[test]
fn a_quarter_of_a_gibibyte_of_addresses_is_enough() {
    works_under("--as=268435456", COPIES);
}

#[test]
fn records_that_need_much_to_be_decoded_are_decoded_one_after_the_other() {
    let (len, files) = (12 << 20, 16);
    let server = TestServer::start();
    let user = User::new();
    for n in 0..files {
        let stored = remembering(len + n);
        let name = format!("r{n:02}");
        server.put(&name, "text/plain", kvfs::store::Encoding::Brotli, &stored);
    }
    let mounted = limited(&user, "--as=402653184", &server)
        .output()
        .expect("prlimit runs");
    assert!(mounted.status.success(), "{mounted:?}");
    thread::scope(|scope| {
        for n in 0..files {
            let path = user.path(&format!("mnt/r{n:02}"));
            scope.spawn(move || {
                let read = std::fs::read(path).expect("a record");
                assert_eq!(read.len(), len + n);
            });
        }
    });
    let status = &user.status()[0]["stats"];
    assert_eq!(status["errors_total"], 0, "{status}");
    user.works(&["unmount", "mnt"]);
}
