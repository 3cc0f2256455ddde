//! kvfs as a helper of mount(8): a link to it named `/sbin/mount.kvfs` or
//! `/sbin/mount.fuse.kvfs` lets `/etc/fstab` mount stores. Without such a link, mount(8) starts
//! `mount.fuse3` for the type `fuse.kvfs`, and that starts `kvfs SPEC DIR -o OPTIONS`.

use std::ffi::{OsStr, OsString};
use std::path::Path;

use clap::CommandFactory;

use url::Url;

use super::args::Cli;
use super::error::CliError;
use crate::base::redact::has_secret;

/// The names under which mount(8) looks for helpers of the types `kvfs` and `fuse.kvfs`.
const NAMES: [&str; 2] = ["mount.kvfs", "mount.fuse.kvfs"];

/// Turns `mount.kvfs SPEC DIR [-sfnv] [-N NAMESPACE] [-t TYPE] [-o OPTIONS]` into a `kvfs mount`
/// command line, and leaves every other one as it is; `None` if nothing is to be done.
///
/// # Errors
/// That kvfs cannot do what mount(8) asks for.
pub fn translate(argv: Vec<OsString>) -> Result<Option<Vec<OsString>>, CliError> {
    if let [_, spec, dir, flag, options] = argv.as_slice()
        && flag == "-o"
        && !is_command(spec)
        && !is_helper(&argv)
    {
        let options = without_defaults(options);
        let line = ["kvfs".into(), "mount".into(), "--quiet".into()];
        let places = [spec.clone(), dir.clone(), "-o".into(), options];
        let source = source(spec);
        return Ok(Some(line.into_iter().chain(source).chain(places).collect()));
    }
    if !is_helper(&argv) {
        return Ok(Some(argv));
    }
    let mut translated: Vec<OsString> = vec!["kvfs".into(), "mount".into()];
    if !argv.iter().any(|word| word == "-v") {
        // At boot the lines of other helpers say nothing either.
        translated.push("--quiet".into());
    }
    translated.extend(argv.get(1).and_then(|spec| source(spec)));
    let mut words = argv.into_iter().skip(1);
    while let Some(word) = words.next() {
        match word.to_str() {
            // There is no mtab to leave alone, and unknown options stay errors.
            Some("-n" | "-s") => {}
            Some("-f") => return Ok(None),
            Some("-t") => drop(words.next()),
            Some("-N") => {
                return Err(
                    CliError::usage("mounting in another namespace is not supported")
                        .hinted("run kvfs there: nsenter --mount=NAMESPACE kvfs mount ..."),
                );
            }
            _ => translated.push(word),
        }
    }
    Ok(Some(translated))
}

/// Returns the option that has the mount show the source of fstab, by which `mount -a` knows that it is
/// up; none where the source holds a secret.
fn source(spec: &OsStr) -> Option<OsString> {
    let text = spec.to_str().filter(|text| !text.starts_with('-'))?;
    let has_secret = Url::parse(text).is_ok_and(|url| has_secret(&url));
    (!has_secret).then(|| format!("--fstab-source={text}").into())
}

/// Whether mount(8) started this.
fn is_helper(argv: &[OsString]) -> bool {
    let name = argv.first().and_then(|name| Path::new(name).file_name());
    name.and_then(OsStr::to_str)
        .is_some_and(|name| NAMES.contains(&name))
}

/// Whether a command line begins so that is not meant for `kvfs mount`.
fn is_command(word: &OsStr) -> bool {
    word.as_encoded_bytes().starts_with(b"-")
        || Cli::command().get_subcommands().any(|command| {
            command
                .get_name_and_visible_aliases()
                .iter()
                .any(|name| word == *name)
        })
}

/// Takes away what `mount.fuse3` adds unless fstab says otherwise; mounts have neither.
fn without_defaults(options: &OsStr) -> OsString {
    let Some(text) = options.to_str() else {
        return options.to_owned();
    };
    let kept: Vec<&str> = text
        .split(',')
        .filter(|option| !["dev", "suid"].contains(option))
        .collect();
    kept.join(",").into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn translated(line: &str) -> Option<String> {
        let argv = line.split(' ').map(OsString::from).collect();
        let argv = translate(argv).expect("a command line")?;
        Some(argv.join(OsStr::new(" ")).to_string_lossy().into_owned())
    }

    #[test]
    fn what_mount_asks_for_becomes_a_kvfs_mount() {
        assert_eq!(
            translated("/sbin/mount.kvfs ~mine /m -n -s -v -t kvfs -o ro,ttl=1m").as_deref(),
            Some("kvfs mount --fstab-source=~mine ~mine /m -v -o ro,ttl=1m")
        );
        assert_eq!(
            translated("mount.kvfs https://h/keys?signature=s3cret /m -o ro").as_deref(),
            Some("kvfs mount --quiet https://h/keys?signature=s3cret /m -o ro")
        );
        assert_eq!(translated("mount.fuse.kvfs a /m -f"), None);
        assert!(translate(vec!["mount.kvfs".into(), "-N".into()]).is_err());
    }

    #[test]
    fn what_mount_fuse3_starts_becomes_a_kvfs_mount() {
        for (line, expected) in [
            (
                "kvfs ~s /m -o ro,ttl=1m,dev,suid",
                "kvfs mount --quiet --fstab-source=~s ~s /m -o ro,ttl=1m",
            ),
            (
                "/bin/kvfs @prod /m -o ro,nodev,nosuid",
                "kvfs mount --quiet --fstab-source=@prod @prod /m -o ro,nodev,nosuid",
            ),
            ("kvfs mount /m -o ro", "kvfs mount /m -o ro"),
            ("kvfs umount /m -o ro", "kvfs umount /m -o ro"),
            ("kvfs -v mount -o ro", "kvfs -v mount -o ro"),
        ] {
            assert_eq!(translated(line).as_deref(), Some(expected), "{line}");
        }
    }

    #[test]
    fn other_command_lines_stay() {
        for line in ["kvfs status", "/usr/bin/kvfs mount a b -f", "kvfs"] {
            assert_eq!(translated(line).as_deref(), Some(line));
        }
    }
}
