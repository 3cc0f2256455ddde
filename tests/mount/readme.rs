//! Runs what documents show in `console` blocks, as written, and compares the output.
//!
//! `…` in an expected line stands for anything within it, and a last line `…` for any further
//! lines: `kvfs status` shows the mounts of other tests, too. All blocks run in one shell, in an
//! empty folder; only the port of `kvfs serve` is another, since 8010 may be in use.

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Stdio};

/// A command of a document and what it is said to print.
struct Example {
    command: String,
    output: Vec<String>,
}

fn examples(readme: &str) -> Vec<Example> {
    let mut examples: Vec<Example> = Vec::new();
    let mut inside = false;
    for line in readme.lines() {
        if line.starts_with("```") {
            inside = line == "```console";
        } else if !inside {
        } else if let Some(command) = line.strip_prefix("$ ") {
            examples.push(Example {
                command: command.to_owned(),
                output: Vec::new(),
            });
        } else {
            let example = examples.last_mut().expect("a command before its output");
            match line.strip_prefix("> ") {
                Some(rest) if example.output.is_empty() => {
                    example.command.push('\n');
                    example.command.push_str(rest);
                }
                _ => example.output.push(line.to_owned()),
            }
        }
    }
    examples
}

/// Tells whether a line is as expected, `…` standing for anything and blanks for any number.
fn fits(expected: &str, line: &str) -> bool {
    let one_blank = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let line = one_blank(line);
    let expected = one_blank(expected);
    let parts: Vec<&str> = expected.split('…').collect();
    let [first, middle @ .., last] = parts.as_slice() else {
        return line == expected;
    };
    let Some(mut rest) = line.strip_prefix(first) else {
        return false;
    };
    for part in middle {
        let Some(at) = rest.find(part) else {
            return false;
        };
        rest = &rest[at + part.len()..];
    }
    rest.ends_with(last)
}

#[test]
fn what_the_readme_shows_is_what_happens() {
    is_what_happens("README.md", 20);
}

#[test]
fn what_the_document_of_the_server_shows_is_what_happens() {
    is_what_happens("docs/SERVE.md", 8);
}

#[test]
fn what_the_recipes_show_is_what_happens() {
    is_what_happens("docs/RECIPES.md", 20);
}

fn is_what_happens(document: &str, least: usize) {
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(document));
    let examples = examples(&text.expect("the document"));
    assert!(examples.len() > least, "{document} has lost its examples");

    let home = tempfile::tempdir().expect("a folder");
    let port = {
        let free = TcpListener::bind("127.0.0.1:0").expect("a port");
        free.local_addr().expect("its number").port().to_string()
    };
    const MARK: &str = "==== after example";
    let mut script = "trap 'kill $(jobs -p) 2>&-' EXIT\n".to_owned();
    for (n, example) in examples.iter().enumerate() {
        let command = example.command.replace("8010", &port).replace(
            "kvfs serve ",
            &format!("kvfs serve --listen 127.0.0.1:{port} "),
        );
        script.push_str(&format!("{command}\necho '{MARK}' {n} $?\n"));
    }
    let programs = Path::new(env!("CARGO_BIN_EXE_kvfs"))
        .parent()
        .expect("a folder");
    // What scripts/test installs for the recipes.
    let target = programs.parent().expect("the target folder");
    let tools = target.join("test-tools/recipes/bin");
    #[expect(clippy::disallowed_methods, reason = "the examples run other programs")]
    let path = std::env::var("PATH").unwrap_or_default();
    let run = Command::new("bash")
        .args(["-c", &format!("exec 2>&1\n{script}")])
        .env_clear()
        .env(
            "PATH",
            format!("{}:{}:{path}", programs.display(), tools.display()),
        )
        .env("HOME", home.path())
        .env("LC_ALL", "C.UTF-8")
        .current_dir(home.path())
        .stdin(Stdio::null())
        .output()
        .expect("bash runs");
    // Whatever has been left mounted would outlive the test.
    let _ = Command::new(env!("CARGO_BIN_EXE_kvfs"))
        .args(["unmount", "--force"])
        .arg(home.path().join("mnt"))
        .env("HOME", home.path())
        .output();

    let said = String::from_utf8_lossy(&run.stdout).replace(&port, "8010");
    let mut lines = said.lines();
    for (n, example) in examples.iter().enumerate() {
        let mark = format!("{MARK} {n} ");
        let printed: Vec<&str> = lines
            .by_ref()
            .take_while(|line| !line.starts_with(&mark))
            .collect();
        let (expected, more) = match example.output.as_slice() {
            [lines @ .., last] if last == "…" => (lines, true),
            lines => (lines, false),
        };
        let as_shown = (printed.len() == expected.len() || more && printed.len() > expected.len())
            && expected
                .iter()
                .zip(&printed)
                .all(|(expected, line)| fits(expected, line));
        assert!(
            as_shown,
            "{document} shows\n$ {}\n{}\nbut it is\n{}\n\n{said}",
            example.command,
            example.output.join("\n"),
            printed.join("\n"),
        );
    }
}

#[test]
fn dots_stand_for_anything() {
    assert!(fits(
        "mounted … on …/mnt; log: …",
        "mounted ~a on /x/mnt; log: /y"
    ));
    assert!(fits("a  b", "a b"));
    assert!(!fits("a…c", "abd") && !fits("a b", "a c") && !fits("…x…", "abc"));
}
