//! `-o` options as in fstab: each becomes the long flag of the same name, or is one of mount(8).

use std::ffi::OsString;

use clap::{Arg, ArgAction, Args, Command};

use super::args::{MountArgs, ServeArgs};
use super::error::CliError;

/// Options of mount(8), systemd and fstab that mean nothing to a filesystem or that kvfs
/// fulfils anyway.
const ACCEPTED: [&str; 28] = [
    "defaults",
    "auto",
    "noauto",
    "user",
    "nouser",
    "users",
    "owner",
    "group",
    "_netdev",
    "nofail",
    "nosuid",
    "nodev",
    "noexec",
    "noatime",
    "atime",
    "relatime",
    "norelatime",
    "strictatime",
    "nostrictatime",
    "lazytime",
    "nolazytime",
    "nodiratime",
    "diratime",
    "sync",
    "async",
    "nosymfollow",
    "nomand",
    "silent",
];

/// What kvfs will not do, and why not.
const REFUSED: [(&str, &str); 8] = [
    ("suid", "mounts are always nosuid"),
    ("dev", "mounts are always nodev"),
    ("exec", "mounts are always noexec"),
    (
        "remount",
        "a mount cannot be changed; unmount it and mount it again",
    ),
    ("umask", "write file-mode=MODE and dir-mode=MODE"),
    ("fmask", "write file-mode=MODE"),
    ("dmask", "write dir-mode=MODE"),
    (
        "token",
        "a token in options could be seen by others; write token-file=FILE",
    ),
];

/// Arguments that cannot be given as options.
const NOT_OPTIONS: [&str; 5] = ["paths", "options", "fstab_source", "help", "version"];

/// What the values of `-o` say.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Said {
    /// The long flags that say the same.
    pub flags: Vec<OsString>,
    /// Switches to turn off, whatever settings say.
    pub off: Vec<String>,
}

/// Turns the values of `-o` into long flags.
///
/// # Errors
/// A usage error that names the option and what is known.
pub fn to_flags(values: &[String]) -> Result<Said, CliError> {
    let command = mount_command();
    let mut said = Said::default();
    for option in values.iter().flat_map(|value| split(value)) {
        // The last of the two counts, as for mount(8).
        let excluded = match option.as_str() {
            "ro" => Some("--rw"),
            "rw" => Some("--read-only"),
            _ => None,
        };
        said.flags
            .retain(|flag| excluded.is_none_or(|excluded| flag != excluded));
        match to_flag(&command, &option)? {
            Some(Flag::On(flag)) => said.flags.push(OsString::from(flag)),
            Some(Flag::Off(name)) => said.off.push(name),
            None => {}
        }
    }
    Ok(said)
}

/// What one option says.
enum Flag {
    On(String),
    Off(String),
}

/// Returns the definition of `kvfs mount`, in which every other place looks names up.
pub fn mount_command() -> Command {
    MountArgs::augment_args(Command::new("mount"))
}

/// Returns the definition of `kvfs serve`.
pub fn serve_command() -> Command {
    ServeArgs::augment_args(Command::new("serve"))
}

/// Returns the option of this name, in which `_` is as good as `-`.
pub fn find<'a>(command: &'a Command, name: &str) -> Option<&'a Arg> {
    let long = name.replace('_', "-");
    all(command).find(|argument| {
        let aliases = argument.get_all_aliases().unwrap_or_default();
        argument.get_long() == Some(&long) || aliases.contains(&long.as_str())
    })
}

/// Returns the options that have a long name, in the order of the help.
pub fn all(command: &Command) -> impl Iterator<Item = &Arg> {
    command.get_arguments().filter(|argument| {
        argument.get_long().is_some() && !NOT_OPTIONS.contains(&argument.get_id().as_str())
    })
}

/// Returns whether an option takes no value: it is there or not.
pub fn is_switch(argument: &Arg) -> bool {
    matches!(argument.get_action(), ArgAction::SetTrue)
}

fn to_flag(command: &Command, option: &str) -> Result<Option<Flag>, CliError> {
    let (name, value) = match option.split_once('=') {
        Some((name, value)) => (name, Some(value)),
        None => (option, None),
    };
    if name.starts_with("x-") || name.starts_with("X-") || name == "comment" {
        return Ok(None);
    }
    if value.is_none() && ACCEPTED.contains(&name) {
        return Ok(None);
    }
    if let Some((_, why)) = REFUSED.iter().find(|(refused, _)| *refused == name) {
        return Err(CliError::usage(format!(
            "the option '{name}' is not possible: {why}"
        )));
    }
    // Only the name: the value may be a secret.
    let argument = find(command, name).ok_or_else(|| unknown(command, name))?;
    let long = argument.get_long().unwrap_or_default();
    match (
        is_switch(argument),
        value.map(|value| (value, value.parse::<bool>())),
    ) {
        (true, None | Some((_, Ok(true)))) => Ok(Some(Flag::On(format!("--{long}")))),
        (true, Some((_, Ok(false)))) => Ok(Some(Flag::Off(long.to_owned()))),
        (true, Some((_, Err(_)))) => Err(CliError::usage(format!(
            "the option '{name}' takes no value but true or false"
        ))),
        (false, Some((value, _))) => Ok(Some(Flag::On(format!("--{long}={value}")))),
        (false, None) => Err(CliError::usage(format!(
            "the option '{name}' needs a value: {name}=..."
        ))),
    }
}

fn unknown(command: &Command, name: &str) -> CliError {
    let mut known: Vec<&str> = all(command).filter_map(Arg::get_long).collect();
    known.sort_unstable();
    let error = CliError::usage(format!("unknown option '{name}' in -o"));
    let error = match nearest(name, known.iter().copied()) {
        Some(near) => error.hinted(format!("did you mean '{near}'?")),
        None => error,
    };
    error
        .hinted(format!("known are: {}", known.join(", ")))
        .hinted(format!(
            "accepted without effect: {}, x-*",
            ACCEPTED.join(", ")
        ))
}

/// Returns the candidate that a mistyped word most likely means: no more than a third of its letters
/// are other ones.
pub fn nearest<'a>(word: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let most = (word.chars().count() / 3).max(1);
    candidates
        .map(|candidate| (distance(word, candidate), candidate))
        .filter(|(distance, _)| *distance <= most)
        .min()
        .map(|(_, candidate)| candidate)
}

/// Returns how many letters differ: changed, left out, put in or exchanged with the next one.
fn distance(one: &str, other: &str) -> usize {
    let (one, other): (Vec<char>, Vec<char>) = (one.chars().collect(), other.chars().collect());
    let mut rows = vec![(0..=other.len()).collect::<Vec<usize>>()];
    for (i, a) in one.iter().enumerate() {
        let mut row = vec![i + 1];
        for (j, b) in other.iter().enumerate() {
            let changed = rows[i][j] + usize::from(a != b);
            let mut least = changed.min(rows[i][j + 1] + 1).min(row[j] + 1);
            if i > 0 && j > 0 && *a == other[j - 1] && one[i - 1] == *b {
                least = least.min(rows[i - 1][j - 1] + 1);
            }
            row.push(least);
        }
        rows.push(row);
    }
    rows[one.len()][other.len()]
}

/// Splits at commas; `\,` is a comma in a value.
fn split(value: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut characters = value.chars().peekable();
    while let Some(character) = characters.next() {
        match (character, characters.peek()) {
            ('\\', Some(',')) => {
                characters.next();
                if let Some(last) = parts.last_mut() {
                    last.push(',');
                }
            }
            (',', _) => parts.push(String::new()),
            _ => {
                if let Some(last) = parts.last_mut() {
                    last.push(character);
                }
            }
        }
    }
    parts.retain(|part| !part.is_empty());
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flags(value: &str) -> Result<Vec<String>, CliError> {
        to_flags(&[value.to_owned()]).map(|said| {
            said.flags
                .into_iter()
                .filter_map(|flag| flag.into_string().ok())
                .collect()
        })
    }

    #[test]
    fn options_become_the_flags_of_the_same_name() {
        assert_eq!(
            flags("ttl=1m,raw,,token_file=/a b,file-mode=0400,allow_other").expect("flags"),
            [
                "--ttl=1m",
                "--raw",
                "--token-file=/a b",
                "--file-mode=0400",
                "--allow-other"
            ]
        );
        assert_eq!(
            flags(r"prefix=a\,b=c,raw").expect("flags"),
            ["--prefix=a,b=c", "--raw"]
        );
        assert_eq!(flags("").expect("flags"), [""; 0]);
    }

    #[test]
    fn what_mount_and_systemd_add_is_accepted() {
        let fstab = "noauto,user,_netdev,nofail,x-systemd.automount,x-gvfs-show,nosuid,nodev,\
            noexec,defaults,X-mount.mkdir,comment=mine";
        assert_eq!(flags(fstab).expect("flags"), [""; 0]);
    }

    #[test]
    fn writing_is_an_option_and_the_last_word_counts() {
        assert_eq!(
            flags("rw,scratch=*.bak").expect("flags"),
            ["--rw", "--scratch=*.bak"]
        );
        assert_eq!(
            flags("rw,ttl=1s,ro").expect("flags"),
            ["--ttl=1s", "--read-only"]
        );
        assert_eq!(flags("ro,rw").expect("flags"), ["--rw"]);
        let error = flags("suid").expect_err("refused");
        assert!(error.message.contains("nosuid"), "{error}");
    }

    #[test]
    fn unknown_options_list_the_known_and_hide_values() {
        let error = flags("tokn=s3cret").expect_err("unknown");
        assert!(error.message.contains("'tokn'"), "{error}");
        assert!(
            error
                .hints
                .iter()
                .any(|hint| hint.contains("token-file, ttl")),
            "{:?}",
            error.hints
        );
        assert!(!format!("{error:?}").contains("s3cret"));
        let error = flags("token=s3cret").expect_err("refused");
        assert!(!format!("{error:?}").contains("s3cret"));
        assert!(flags("paths=x").is_err());
        assert!(flags("options=x").is_err());
    }

    #[test]
    fn mistyped_words_are_found() {
        let known = ["ttl", "timeout", "exact-sizes", "raw"];
        for (typed, meant) in [
            ("tll", Some("ttl")),
            ("exact-size", Some("exact-sizes")),
            ("timout", Some("timeout")),
            ("rwa", Some("raw")),
            ("something", None),
        ] {
            assert_eq!(nearest(typed, known.into_iter()), meant, "{typed}");
        }
    }

    #[test]
    fn values_are_where_they_belong() {
        let error = flags("raw=1").expect_err("a value");
        assert!(error.message.contains("takes no value"), "{error}");
        let said = to_flags(&["raw=false,rw=false,exact-sizes=true".to_owned()]).expect("flags");
        assert_eq!(said.off, ["raw", "rw"]);
        assert_eq!(said.flags, ["--exact-sizes"]);
        let error = flags("ttl").expect_err("no value");
        assert!(error.message.contains("ttl=..."), "{error}");
    }
}
