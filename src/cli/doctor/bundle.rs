//! `kvfs doctor --bundle`: a report for a bug ticket, without secrets.

use std::fs::{self, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde_json::Value;

use super::{Finding, lines};
use crate::base::redact;
use crate::base::text;
use crate::cli::config;
use crate::cli::config_file::ConfigFile;
use crate::cli::error::CliError;
use crate::cli::settings::Environment;

/// Log files that go in: those written last.
const LOG_FILES: usize = 5;
/// Lines of each.
const LOG_LINES: usize = 100;
/// How much of a log's end is looked at, in bytes.
const LOG_TAIL: u64 = 64 << 10;

/// Writes the report to a new file that only its owner can read.
///
/// # Errors
/// That the file is there already or cannot be written.
pub fn write(
    path: &Path,
    findings: &[Finding],
    mounts: &[Value],
    file: Option<&ConfigFile>,
    environment: &Environment,
) -> Result<(), CliError> {
    let settings = match file.map(|file| config::settings(environment, file)) {
        Some(Ok(settings)) => pretty(&settings),
        Some(Err(error)) => error.to_string(),
        None => "the settings file cannot be used".to_owned(),
    };
    let mut sections = vec![
        ("made", now()),
        ("system", system()),
        ("findings", lines(findings)),
        ("settings", settings),
        ("mounts", pretty(&Value::from(mounts.to_vec()))),
    ];
    let logs = logs(mounts, environment);
    for (log, text) in &logs {
        sections.push((log, text.clone()));
    }
    let text: String = sections
        .iter()
        .map(|(title, text)| format!("== {title}\n\n{}\n\n", text.trim_end()))
        .collect();
    let text = redact::text(&text, &environment.secrets());
    let text = match environment.home() {
        Some(home) if home != Path::new("/") => text.replace(&*home.to_string_lossy(), "~"),
        _ => text,
    };
    // The report is read on a terminal.
    let text = text::lines(&text);
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .map_err(|error| {
            let name = path.display();
            CliError::failed(format!("cannot write the report {name}")).caused_by(&error)
        })
}

fn pretty(value: &Value) -> String {
    text::json(&serde_json::to_string_pretty(value).unwrap_or_default()).into_owned()
}

fn now() -> String {
    jiff::Timestamp::try_from(SystemTime::now()).map_or_else(|_| "?".into(), |now| now.to_string())
}

fn system() -> String {
    let os = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let name = os
        .lines()
        .find_map(|line| line.strip_prefix("PRETTY_NAME="))
        .unwrap_or("unknown system");
    let uid = rustix::process::geteuid().as_raw();
    format!("{}, uid {uid}", name.trim_matches('"'))
}

/// Returns the ends of the logs that were written last, those of mounts that failed among them.
fn logs(mounts: &[Value], environment: &Environment) -> Vec<(String, String)> {
    let named = mounts
        .iter()
        .filter_map(|mount| mount["log_file"].as_str().map(PathBuf::from));
    let in_folder = environment
        .log_dir()
        .and_then(|dir| fs::read_dir(dir).map_err(CliError::from))
        .into_iter()
        .flatten()
        .filter_map(|item| Some(item.ok()?.path()));
    let mut files: Vec<(SystemTime, PathBuf)> = named
        .chain(in_folder)
        .filter_map(|path| Some((fs::metadata(&path).ok()?.modified().ok()?, path)))
        .collect();
    files.sort();
    files.dedup();
    files
        .into_iter()
        .rev()
        .take(LOG_FILES)
        .map(|(_, path)| {
            let text = tail(&path).unwrap_or_else(|error| format!("cannot be read: {error}"));
            (format!("log {}", path.display()), text)
        })
        .collect()
}

fn tail(path: &Path) -> io::Result<String> {
    let mut file = fs::File::open(path)?;
    let len = file.metadata()?.len();
    file.seek(SeekFrom::Start(len.saturating_sub(LOG_TAIL)))?;
    let mut bytes = Vec::new();
    file.take(LOG_TAIL).read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().collect();
    Ok(lines[lines.len().saturating_sub(LOG_LINES)..].join("\n"))
}
