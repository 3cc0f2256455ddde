//! Printing: data to standard output, messages to standard error. All text goes through
//! `base::text`, so no server or folder can control the terminal.

use std::fmt::Display;
use std::io::{self, Write};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use serde::Serialize;

use super::error::CliError;
use crate::base::text::{self, Line};

/// How long something may be waited for until that is said.
const SILENT: Duration = Duration::from_secs(2);

/// Does something, and says so if it takes long.
pub fn patiently<T>(say: impl FnOnce() + Send, work: impl FnOnce() -> T) -> T {
    let (done, ends) = mpsc::channel::<()>();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            if ends.recv_timeout(SILENT) == Err(RecvTimeoutError::Timeout) {
                say();
            }
        });
        let worked = work();
        drop(done);
        worked
    })
}

/// The two output channels.
#[derive(Clone, Copy, Debug)]
pub struct Ui {
    /// Whether only failures are talked about.
    pub quiet: bool,
    /// Whether talk may be coloured.
    pub color: bool,
}

const RED: &str = "\x1b[1;31m";
const YELLOW: &str = "\x1b[1;33m";
const CYAN: &str = "\x1b[1;36m";
const RESET: &str = "\x1b[0m";

impl Ui {
    /// Prints data.
    ///
    /// # Errors
    /// That standard output is closed or full.
    pub fn data(&self, text: impl Display) -> io::Result<()> {
        let mut stdout = io::stdout().lock();
        writeln!(stdout, "{}", text::lines(&text.to_string()))?;
        stdout.flush()
    }

    /// Prints data for programs, one value in several lines.
    ///
    /// # Errors
    /// That standard output is closed or full.
    pub fn json(&self, value: &impl Serialize) -> io::Result<()> {
        let text = serde_json::to_string_pretty(value).unwrap_or_default();
        self.json_text(&text)
    }

    /// The same in one line.
    ///
    /// # Errors
    /// That standard output is closed or full.
    pub fn json_line(&self, value: &impl Serialize) -> io::Result<()> {
        let text = serde_json::to_string(value).unwrap_or_default();
        self.json_text(&text)
    }

    fn json_text(&self, text: &str) -> io::Result<()> {
        let mut stdout = io::stdout().lock();
        writeln!(stdout, "{}", text::json(text))?;
        stdout.flush()
    }

    /// Prints what was done; not with `--quiet`.
    pub fn say(&self, text: impl Display) {
        if !self.quiet {
            talk("", text);
        }
    }

    /// Prints what may be a problem.
    pub fn warn(&self, text: impl Display) {
        talk(&self.label(YELLOW, "warning: "), text);
    }

    /// Prints a failure with its causes and what to do.
    pub fn error(&self, error: &CliError) {
        if error.message.is_empty() {
            return;
        }
        talk(&self.label(RED, "error: "), &error.message);
        for cause in &error.causes {
            talk("  caused by: ", Line(cause));
        }
        for hint in &error.hints {
            self.hint(hint);
        }
    }

    /// Prints what to do about what was printed.
    pub fn hint(&self, hint: impl Display) {
        talk(&self.label(CYAN, "hint: "), hint);
    }

    fn label(&self, color: &str, text: &str) -> String {
        if self.color {
            format!("{color}{}{RESET} ", text.trim_end())
        } else {
            text.to_owned()
        }
    }
}

fn talk(label: &str, text: impl Display) {
    let text = text.to_string();
    // There is no place to report that standard error is closed.
    let _ = writeln!(io::stderr().lock(), "{label}{}", text::lines(&text));
}

/// The widest that a cell of a table is shown, in characters; `--json` has what is cut off.
const WIDEST: usize = 240;

/// Returns a text as a cell of a table shows it.
pub fn cell(text: &str) -> String {
    // First, so that little is escaped; again, since escapes take more room.
    let cell = text::line(&text::short(text, WIDEST)).into_owned();
    text::short(&cell, WIDEST).into_owned()
}

/// Lines up the cells of `rows` under `header`.
pub fn table(header: &[&str], rows: &[Vec<String>]) -> String {
    let safe = |text: &String| cell(text);
    let rows: Vec<Vec<String>> = rows
        .iter()
        .map(|row| row.iter().map(safe).collect())
        .collect();
    let width = |column: usize| {
        rows.iter()
            .filter_map(|row| row.get(column))
            .map(|cell| cell.chars().count())
            .chain([header[column].len()])
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..header.len()).map(width).collect();
    let line = |cells: Vec<&str>| {
        let padded: Vec<String> = cells
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:width$}"))
            .collect();
        padded.join("  ").trim_end().to_owned()
    };
    let mut lines = vec![line(header.to_vec())];
    lines.extend(
        rows.iter()
            .map(|row| line(row.iter().map(String::as_str).collect())),
    );
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_line_up() {
        let rows = [
            vec!["a".to_owned(), "1".to_owned()],
            vec!["é long".to_owned(), "22".to_owned()],
        ];
        assert_eq!(
            table(&["NAME", "N"], &rows),
            "NAME    N\na       1\né long  22"
        );
    }

    #[test]
    fn no_cell_is_wider_than_a_line() {
        for cell in ["n".repeat(70_000), "\u{1b}".repeat(70_000)] {
            let table = table(&["NAME", "N"], &[vec![cell, "1".to_owned()]]);
            for line in table.lines() {
                assert!(line.chars().count() <= WIDEST + 3, "{line}");
            }
            assert!(table.ends_with("…  1"), "{table}");
        }
    }
}
