//! A record that decodes to a thousand times what is stored and more, under every command that
//! meets it: none takes the memory, the disk or the time of what it decodes to.

use std::io::Write;
use std::process::{Command, Output};
use std::sync::OnceLock;

use kvfs::store::Encoding;

use crate::cli::{Ran, User, ran};
use crate::support::served::{STORE, TOKEN, TestServer};

/// What the bomb decodes to.
pub const LARGE: usize = 512 << 20;

/// KiB of memory that a command may have, and of any file that it writes.
const MOST: usize = 192 << 10;

/// Zeros under brotli.
pub fn bomb() -> &'static [u8] {
    static BOMB: OnceLock<Vec<u8>> = OnceLock::new();
    BOMB.get_or_init(|| {
        let mut stored = Vec::new();
        {
            let mut encoder = brotli::CompressorWriter::new(&mut stored, 1 << 16, 2, 22);
            let zeros = vec![0; 1 << 20];
            for _ in 0..LARGE >> 20 {
                encoder.write_all(&zeros).expect("brotli");
            }
        }
        assert!(stored.len() < LARGE / 5000, "{} bytes", stored.len());
        stored
    })
}

/// Runs a command that may take little memory and disk.
pub fn limited(user: &User, args: &[&str]) -> Command {
    let mut command = Command::new("sh");
    // Files count in blocks of 512 bytes.
    let limits = format!("ulimit -d {MOST}; ulimit -f {}; exec \"$@\"", MOST * 2);
    command.args(["-c", &limits, "sh", env!("CARGO_BIN_EXE_kvfs")]);
    command.args(args).env_clear().current_dir(user.path(""));
    for (name, value) in user.kvfs().get_envs() {
        command.envs(value.map(|value| (name, value)));
    }
    command.env("APIFY_TOKEN", TOKEN);
    command
}

struct Desk {
    server: TestServer,
    user: User,
}

impl Desk {
    fn new() -> Self {
        let server = TestServer::start();
        server.put("bomb", "text/plain", Encoding::Brotli, bomb());
        server.put_text("honest", "text");
        Self {
            server,
            user: User::new(),
        }
    }

    fn output(&self, args: &[&str]) -> Output {
        let mut command = limited(&self.user, args);
        command.env("APIFY_CLIENT_BASE_URL", self.server.url());
        command.output().expect("a shell")
    }

    fn run(&self, args: &[&str]) -> Ran {
        ran(self.output(args))
    }
}

#[test]
fn a_record_that_decodes_to_much_is_not_printed_but_raw() {
    let (desk, store) = (Desk::new(), format!("~{STORE}"));
    let refused = desk.run(&["cat", &store, "honest", "bomb"]);
    assert_ne!(refused.code, 0);
    assert!(refused.err.contains("decodes to more than"), "{refused:?}");
    assert!(refused.err.contains("--raw"), "{refused:?}");
    let raw = desk.output(&["cat", "--raw", &store, "bomb"]);
    assert!(raw.status.success() && raw.stdout == bomb());
}

#[test]
fn a_record_that_decodes_to_much_is_copied_and_compared_as_it_is_stored() {
    let (desk, store) = (Desk::new(), format!("~{STORE}"));
    for copy in [&["copy"][..], &["copy", "--verify", "--checksum"]] {
        let copied = desk.run(&[copy, &[&store, "saved"]].concat());
        assert_eq!(copied.code, 0, "{copied:?}");
    }
    let saved = std::fs::read(desk.user.path("saved/bomb")).expect("a file");
    assert!(saved == bomb());
    let same = desk.run(&["diff", &store, "saved"]);
    assert_eq!(same.code, 0, "{same:?}");
    // One of them is not compared, the other is.
    let refused = desk.run(&["diff", "--content", &store, "saved"]);
    assert_eq!(refused.code, 3, "{refused:?}");
    assert!(refused.err.contains("decodes to more than"), "{refused:?}");
}
