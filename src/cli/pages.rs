//! `kvfs completions` and `kvfs man`, made from the definitions of the command line.

use std::fs;
use std::io::{self, Write};
use std::path::Path;

use clap::Command;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};

use super::args::{CompletionsArgs, ManArgs};
use super::error::CliError;
use super::examples::EXAMPLES;
use super::ui::Ui;

/// What each exit code means, for all commands.
pub const EXIT_STATUS: [(&str, &str); 9] = [
    ("0", "done"),
    (
        "1",
        "failed: the network, the disk, the server; `diff`: they differ",
    ),
    (
        "2",
        "the command line, a variable or the settings file is wrong",
    ),
    (
        "3",
        "nothing is mounted there, or the mount is dead or does not answer; `doctor` found a fault; \
         `diff` could not compare something",
    ),
    ("4", "no such store, record, or file in a mount"),
    (
        "5",
        "no access: the token or link does not grant it, or the mount is another user's",
    ),
    (
        "6",
        "a condition does not hold (`--if-absent`, `--if-match`)",
    ),
    ("130", "interrupted"),
    ("255", "a bug in kvfs"),
];

/// Variables that are no option's.
const VARIABLES: [(&str, &str); 7] = [
    ("APIFY_TOKEN", "the API token"),
    (
        "APIFY_CLIENT_BASE_URL, APIFY_API_BASE_URL",
        "the API's address, without --api-url",
    ),
    (
        "KVFS_...",
        "each option of kvfs mount: KVFS_TTL for --ttl, KVFS_RAW=1 for --raw",
    ),
    (
        "KVFS_SERVE_...",
        "each option of kvfs serve; KVFS_SERVE_TOKEN holds the token",
    ),
    ("KVFS_CONFIG", "the settings file"),
    ("XDG_RUNTIME_DIR", "where mounts register"),
    ("NO_COLOR", "no colours"),
];

/// Files and folders.
const FILES: [(&str, &str); 5] = [
    ("~/.config/kvfs/config.toml", "settings and named stores"),
    ("~/.cache/kvfs", "the disk cache, kept across mounts"),
    ("~/.local/state/kvfs/logs", "a log for each mount point"),
    (
        "~/.local/state/kvfs/staging",
        "written files that are not in their store yet",
    ),
    ("~/.apify/auth.json", "the token of apify login"),
];

/// Prints completions.
///
/// # Errors
/// That standard output is closed or full.
pub fn completions(ui: Ui, args: &CompletionsArgs) -> Result<(), CliError> {
    let mut script = Vec::new();
    let mut visible = without_hidden(super::definition());
    clap_complete::generate(args.shell, &mut visible, "kvfs", &mut script);
    ui.data(String::from_utf8_lossy(&script).trim_end())?;
    Ok(())
}

/// Returns the definitions without what is hidden: completions would offer it.
fn without_hidden(definition: Command) -> Command {
    let hidden = |command: &Command| command.is_hide_set();
    let mut visible = Command::new("kvfs")
        .version(env!("CARGO_PKG_VERSION"))
        .about(definition.get_about().cloned().unwrap_or_default())
        .args(definition.get_arguments());
    for command in definition
        .get_subcommands()
        .filter(|command| !hidden(command))
    {
        visible = visible.subcommand(command.clone());
    }
    visible
}

/// Writes a manual page for each command, and those of the helpers of mount(8).
///
/// # Errors
/// That the folder cannot be written to.
pub fn man(ui: Ui, args: &ManArgs) -> Result<(), CliError> {
    let cannot = |error: io::Error| {
        CliError::failed(format!("cannot write to {}", args.dir.display())).caused_by(&error)
    };
    fs::create_dir_all(&args.dir).map_err(cannot)?;
    let mut definition = super::definition();
    definition.build();
    page(&args.dir, "kvfs", &definition).map_err(cannot)?;
    for command in definition
        .get_subcommands()
        .filter(|command| !command.is_hide_set())
    {
        page(&args.dir, &format!("kvfs-{}", command.get_name()), command).map_err(cannot)?;
    }
    for helper in ["mount.kvfs", "mount.fuse.kvfs"] {
        // A page that is another one.
        fs::write(
            args.dir.join(format!("{helper}.8")),
            ".so man1/kvfs-mount.1\n",
        )
        .map_err(cannot)?;
    }
    ui.say(format_args!("wrote the pages to {}", args.dir.display()));
    Ok(())
}

fn page(dir: &Path, name: &str, command: &Command) -> io::Result<()> {
    let version = env!("CARGO_PKG_VERSION");
    let man = Man::new(command.clone())
        .title(name.to_ascii_uppercase())
        .section("1")
        .source(format!("kvfs {version}"))
        .manual("kvfs");
    let mut out = Vec::new();
    man.render_title(&mut out)?;
    man.render_name_section(&mut out)?;
    man.render_synopsis_section(&mut out)?;
    man.render_description_section(&mut out)?;
    man.render_options_section(&mut out)?;
    if command.has_subcommands() {
        man.render_subcommands_section(&mut out)?;
    }
    let short = command.get_name();
    if let Some((_, examples)) = EXAMPLES.iter().find(|(known, _)| *known == short) {
        section(&mut out, "EXAMPLES", examples)?;
    }
    let plain: Vec<(&str, String)> = EXIT_STATUS
        .iter()
        .map(|(code, what)| (*code, what.replace('`', "")))
        .collect();
    let plain: Vec<(&str, &str)> = plain.iter().map(|(code, what)| (*code, &**what)).collect();
    section(&mut out, "EXIT STATUS", &plain)?;
    section(&mut out, "ENVIRONMENT", &VARIABLES)?;
    section(&mut out, "FILES", &FILES)?;
    let mut roff = Roff::new();
    roff.control("SH", ["SEE ALSO"]);
    let others = match name {
        "kvfs" => "kvfs-mount(1), kvfs-serve(1), kvfs-doctor(1), fuse(4), mount(8)",
        _ => "kvfs(1), kvfs-mount(1), kvfs-doctor(1), mount(8)",
    };
    roff.text([roman(others)]);
    roff.to_writer(&mut out)?;
    fs::write(dir.join(format!("{name}.1")), out)
}

fn section(out: &mut dyn Write, title: &str, rows: &[(&str, &str)]) -> io::Result<()> {
    let mut roff = Roff::new();
    roff.control("SH", [title]);
    for (term, what) in rows {
        roff.control("TP", []);
        roff.text([bold(*term)]);
        roff.text([roman(*what)]);
    }
    roff.to_writer(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn manual_pages_have_the_sections_that_people_look_for() {
        let dir = tempfile::tempdir().expect("a folder");
        let ui = Ui {
            quiet: true,
            color: false,
        };
        let args = ManArgs {
            dir: dir.path().to_path_buf(),
        };
        man(ui, &args).expect("pages");
        let page = fs::read_to_string(dir.path().join("kvfs-mount.1")).expect("a page");
        for part in [
            "EXAMPLES",
            "EXIT STATUS",
            "ENVIRONMENT",
            "FILES",
            "SEE ALSO",
            "KVFS\\-MOUNT",
        ] {
            assert!(
                page.contains(part) || page.contains(&part.replace("\\", "")),
                "no {part}"
            );
        }
        assert!(!page.contains(".TH kvfs"), "the title names the page");
        assert!(dir.path().join("mount.kvfs.8").exists());
        assert!(!dir.path().join("kvfs-daemon.1").exists());
    }
}
