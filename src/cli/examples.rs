//! Examples of each command, for its help and its manual page. A test parses each of them.

/// A command, its examples, each with what it does.
type Examples = (&'static str, &'static [(&'static str, &'static str)]);

/// The examples by command.
pub const EXAMPLES: &[Examples] = &[
    (
        "mount",
        &[
            ("kvfs mount '~my-store' mnt", "a store of your own"),
            (
                "kvfs mount run:HG7ML7M8z78YcAPEB mnt",
                "the default store of a run",
            ),
            ("kvfs mount --rw user~name mnt", "writable"),
            (
                "kvfs mount ./storage/key_value_stores/default mnt",
                "a folder of Crawlee",
            ),
            ("kvfs mount @prod mnt", "a named store of the settings file"),
        ],
    ),
    (
        "unmount",
        &[
            ("kvfs unmount mnt", "waits for uploads first"),
            ("kvfs unmount --all", "all mounts of this session"),
            ("kvfs unmount --force mnt", "even if it hangs"),
        ],
    ),
    (
        "status",
        &[
            ("kvfs status", "all mounts, a line each"),
            ("kvfs status mnt", "one, with its last errors"),
            ("kvfs status --watch mnt", "live"),
        ],
    ),
    ("sync", &[("kvfs sync mnt", "waits for all closed files")]),
    (
        "recover",
        &[
            ("kvfs recover", "what is not in its store"),
            ("kvfs recover --upload", "upload it"),
        ],
    ),
    (
        "warm",
        &[
            ("kvfs warm mnt", "everything"),
            ("kvfs warm mnt 'product-*'", "files that match a pattern"),
        ],
    ),
    (
        "cache",
        &[
            ("kvfs cache info", "what each store takes on disk"),
            ("kvfs cache clear", "remove all of it"),
        ],
    ),
    (
        "refresh",
        &[
            ("kvfs refresh mnt", "everything"),
            ("kvfs refresh mnt mnt/INPUT", "one file"),
        ],
    ),
    (
        "trace",
        &[
            ("kvfs trace mnt", "each operation, live"),
            ("kvfs trace --for 10s --summary mnt", "and sums"),
        ],
    ),
    (
        "serve",
        &[
            ("kvfs serve ./storage", "at http://127.0.0.1:8010"),
            (
                "kvfs serve --listen 8411 --latency 50ms ./storage",
                "like a distant server",
            ),
        ],
    ),
    ("demo", &[("kvfs demo --exit", "the tour, then exit")]),
    (
        "ls",
        &[
            ("kvfs ls '~my-store'", "all keys"),
            ("kvfs ls -lh '~my-store' 'img-*'", "sizes and types of some"),
            ("kvfs ls --json run:HG7ML7M8z78YcAPEB", "for programs"),
        ],
    ),
    (
        "cat",
        &[
            ("kvfs cat '~my-store' INPUT", "a record"),
            ("kvfs cat mnt/INPUT", "a file of a mount"),
        ],
    ),
    (
        "put",
        &[
            ("kvfs put '~my-store' INPUT input.json", "a file"),
            (
                "kvfs put --if-absent '~my-store' LOCK",
                "standard input, once",
            ),
        ],
    ),
    (
        "rm",
        &[
            ("kvfs rm '~my-store' OLD", "a record"),
            (
                "kvfs rm --dry-run '~my-store' 'tmp-*'",
                "only print what would be deleted",
            ),
        ],
    ),
    (
        "info",
        &[
            ("kvfs info '~my-store'", "a store"),
            ("kvfs info --json '~my-store' INPUT", "a record"),
        ],
    ),
    (
        "copy",
        &[
            (
                "kvfs copy run:HG7ML7M8z78YcAPEB ./run",
                "keep the store of a run",
            ),
            ("kvfs copy ./run '~my-store'", "push a folder"),
            (
                "kvfs copy --delete --dry-run @prod ./backup",
                "what a backup would do",
            ),
        ],
    ),
    (
        "diff",
        &[
            (
                "kvfs diff run:HG7ML7M8z78YcAPEB run:Yc7ML7M8z78HGAPEB",
                "two runs, by size",
            ),
            ("kvfs diff --content '~my-store' ./backup", "by content"),
        ],
    ),
    (
        "stores",
        &[
            ("kvfs stores", "those of the token's account"),
            ("kvfs stores ./storage", "those of a folder"),
            ("kvfs stores create my-store", "a new one"),
            (
                "kvfs stores remove '~my-store'",
                "with all records; asks first",
            ),
        ],
    ),
    (
        "share",
        &[
            ("kvfs share --expires 7d '~my-store'", "a link for a week"),
            ("kvfs share mnt/page.html", "to one record"),
        ],
    ),
    (
        "doctor",
        &[
            ("kvfs doctor", "this machine"),
            ("kvfs doctor '~my-store'", "and a store"),
            ("kvfs doctor --bundle report.txt", "for a bug report"),
        ],
    ),
    (
        "config",
        &[
            ("kvfs config", "the settings, and their sources"),
            ("kvfs config @prod", "for a named store"),
        ],
    ),
    (
        "completions",
        &[("kvfs completions zsh", "for a file in fpath")],
    ),
    ("man", &[("kvfs man ./pages", "kvfs.1, kvfs-mount.1, ...")]),
];

/// Returns the examples of a command as lines of its help.
pub fn help(command: &str) -> Option<String> {
    let (_, examples) = EXAMPLES.iter().find(|(name, _)| *name == command)?;
    let lines: Vec<String> = examples
        .iter()
        .map(|(line, what)| match line.len() + what.len() < 60 {
            true => format!("  {line:<42}  {what}"),
            false => format!("  {line}\n{:46}{what}", ""),
        })
        .collect();
    Some(format!("Examples:\n{}", lines.join("\n")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::definition;

    /// Splits a line as a shell does, as far as the examples need it.
    fn words(line: &str) -> Vec<String> {
        line.split(' ')
            .map(|word| word.trim_matches('\'').to_owned())
            .collect()
    }

    #[test]
    fn every_command_has_examples_and_each_of_them_is_understood() {
        for command in definition()
            .get_subcommands()
            .filter(|command| !command.is_hide_set())
        {
            assert!(help(command.get_name()).is_some(), "{}", command.get_name());
        }
        for (name, examples) in EXAMPLES {
            for (line, _) in *examples {
                let words = words(line);
                assert_eq!(words[1], *name);
                let parsed = definition().try_get_matches_from(&words);
                assert!(parsed.is_ok(), "{line}: {:?}", parsed.err());
            }
        }
        for (name, _) in EXAMPLES {
            let shown = help(name).expect("examples");
            let longest = shown.lines().map(|line| line.chars().count()).max();
            assert!(longest <= Some(80), "{shown}");
        }
    }
}
