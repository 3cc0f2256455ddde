//! `kvfs doctor`: finds what keeps mounts from working, and says how to mend it.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::args::{DoctorArgs, GlobalArgs};
use super::error::{CliError, Kind};
use super::settings::Environment;
use super::ui::Ui;

mod bundle;
mod changes;
mod folders;
mod machine;
mod network;
mod server;
mod staging;

pub use folders::usable;

/// The width that every line keeps to, unless a word is longer.
const WIDTH: usize = 80;

/// How serious a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// As it should be.
    Ok,
    /// Something does not work as it might.
    Warning,
    /// Something does not work.
    Failure,
}

impl State {
    fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Failure => "failure",
        }
    }
}

/// What one check has found.
#[derive(Debug)]
struct Finding {
    check: &'static str,
    state: State,
    message: String,
    fix: Option<String>,
}

impl Finding {
    fn ok(check: &'static str, message: impl Into<String>) -> Self {
        Self {
            check,
            state: State::Ok,
            message: message.into(),
            fix: None,
        }
    }

    fn warning(check: &'static str, message: impl Into<String>, fix: impl Into<String>) -> Self {
        Self {
            state: State::Warning,
            fix: Some(fix.into()),
            ..Self::ok(check, message)
        }
    }

    fn failure(check: &'static str, message: impl Into<String>, fix: impl Into<String>) -> Self {
        Self {
            state: State::Failure,
            ..Self::warning(check, message, fix)
        }
    }

    /// Returns what a command would have failed with.
    fn error(check: &'static str, error: &CliError) -> Self {
        let mut message = error.message.clone();
        for cause in &error.causes {
            message = format!("{message}: {cause}");
        }
        Self {
            check,
            state: State::Failure,
            message,
            fix: Some(error.hints.join("; ")).filter(|fix| !fix.is_empty()),
        }
    }
}

/// Checks everything that a mount needs.
///
/// # Errors
/// [`Kind::Trouble`] if a check failed; that the report cannot be written.
pub fn run(
    ui: Ui,
    args: &DoctorArgs,
    _global: GlobalArgs,
    environment: &Environment,
) -> Result<(), CliError> {
    let file = environment.config_file(args.access.config.as_deref());
    let mut findings = machine::check(environment, file.as_ref().ok());
    findings.push(folders::settings_file(&file));
    findings.push(folders::state(environment));
    findings.push(folders::cache(&args.disk, environment));
    findings.extend(staging::staging(environment, file.as_ref().ok()));
    let mounts = folders::mounts(environment, &mut findings);
    network::check(args, environment, &mut findings);

    if args.json {
        let shown = as_json(&findings);
        ui.json(&shown)?;
    } else {
        ui.data(lines(&findings))?;
    }
    if let Some(path) = &args.bundle {
        bundle::write(path, &findings, &mounts, file.as_ref().ok(), environment)?;
        ui.say(format_args!(
            "wrote {}: it holds no tokens, but names of stores, keys and folders; read it \
             before you send it",
            path.display()
        ));
    }
    match count(&findings, State::Failure) {
        0 => Ok(()),
        1 => Err(CliError::of(Kind::Trouble, "a check failed")),
        n => Err(CliError::of(Kind::Trouble, format!("{n} checks failed"))),
    }
}

fn count(findings: &[Finding], state: State) -> usize {
    findings
        .iter()
        .filter(|finding| finding.state == state)
        .count()
}

fn as_json(findings: &[Finding]) -> Value {
    let checks: Vec<Value> = findings
        .iter()
        .map(|finding| {
            json!({
                "check": finding.check,
                "state": finding.state.name(),
                "message": finding.message,
                "fix": finding.fix,
            })
        })
        .collect();
    let mut counts = BTreeMap::new();
    for state in [State::Ok, State::Warning, State::Failure] {
        counts.insert(state.name(), count(findings, state));
    }
    json!({ "version": env!("CARGO_PKG_VERSION"), "checks": checks, "counts": counts })
}

/// Shows a finding a line, its fix below it.
fn lines(findings: &[Finding]) -> String {
    let widest = findings.iter().map(|finding| finding.check.len()).max();
    let column = widest.unwrap_or(0);
    let indent = "warning  ".len() + column + 2;
    let mut lines = Vec::new();
    for finding in findings {
        let start = format!("{:<7}  {:<column$}  ", finding.state.name(), finding.check);
        lines.push(wrap(&start, indent, &finding.message));
        if let Some(fix) = &finding.fix {
            let start = format!("{:indent$}fix: ", "");
            lines.push(wrap(&start, indent + "fix: ".len(), fix));
        }
    }
    lines.join("\n")
}

/// Breaks `text` between words so that lines, which begin with blanks from the second on, fit.
fn wrap(start: &str, indent: usize, text: &str) -> String {
    let mut out = start.to_owned();
    let mut column = start.chars().count();
    let mut fresh = true;
    for word in text.split_whitespace() {
        let len = word.chars().count();
        if !fresh && column + 1 + len > WIDTH {
            out.push('\n');
            out.push_str(&" ".repeat(indent));
            column = indent;
        } else if !fresh {
            out.push(' ');
            column += 1;
        }
        out.push_str(word);
        column += len;
        fresh = false;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn findings_fit_80_columns_with_the_fix_below() {
        let long = "word ".repeat(30);
        let shown = lines(&[
            Finding::ok("device", "fine"),
            Finding::failure("fusermount3", long.as_str(), long.as_str()),
        ]);
        let lines: Vec<&str> = shown.lines().collect();
        assert_eq!(lines[0], "ok       device       fine");
        assert!(
            lines[1].starts_with("failure  fusermount3  word"),
            "{shown}"
        );
        assert!(
            shown.contains("\n                      fix: word"),
            "{shown}"
        );
        assert!(
            lines.iter().all(|line| line.chars().count() <= WIDTH),
            "{shown}"
        );
        assert_eq!(shown.matches("word").count(), 60);
    }
}
