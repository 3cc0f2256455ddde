//! Logging of the serving process: to its log file, or to standard error in the foreground.

use std::fs::{self, File, OpenOptions};
use std::io::{self, IsTerminal};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Mutex;

use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::layer;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use super::{LogConfig, LogLevel};

/// A log file that is larger when a daemon starts is put aside as `….log.1`.
const ROTATE_ABOVE: u64 = 10 << 20;

/// Starts logging; returns the log file, for what else the process has to say.
///
/// # Errors
/// That the log file cannot be written.
pub fn start(config: &LogConfig) -> io::Result<Option<File>> {
    // Libraries log URLs, with the signatures in them, below the level of warnings.
    let filter = Targets::new()
        .with_default(LevelFilter::WARN)
        .with_target("kvfs", level(config.level));
    let Some(path) = &config.file else {
        let color = config.color && io::stderr().is_terminal();
        let to_stderr = layer().with_writer(io::stderr).with_ansi(color);
        let subscriber = tracing_subscriber::registry().with(filter).with(to_stderr);
        // Already started means that a test did.
        let _ = subscriber.try_init();
        return Ok(None);
    };
    let file = open(path)?;
    let to_file = layer()
        .with_writer(Mutex::new(file.try_clone()?))
        .with_ansi(false);
    let _ = tracing_subscriber::registry()
        .with(filter)
        .with(to_file)
        .try_init();
    Ok(Some(file))
}

/// Opens a log file for appending, readable for its owner only.
///
/// # Errors
/// That the file or its folder cannot be made.
pub fn open(path: &Path) -> io::Result<File> {
    if let Some(dir) = path.parent().filter(|dir| !dir.as_os_str().is_empty()) {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)?;
    }
    if fs::metadata(path).is_ok_and(|found| found.is_file() && found.len() > ROTATE_ABOVE) {
        let mut aside = path.as_os_str().to_owned();
        aside.push(".1");
        fs::rename(path, aside)?;
    }
    OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(path)
}

fn level(level: LogLevel) -> LevelFilter {
    match level {
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_log_file_is_private_appended_to_and_put_aside_when_large() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("logs/a.log");
        for line in ["one\n", "two\n"] {
            open(&path)
                .and_then(|mut file| file.write_all(line.as_bytes()))
                .expect("a log file");
        }
        assert_eq!(fs::read_to_string(&path).expect("it"), "one\ntwo\n");
        let mode = fs::metadata(&path).expect("it").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        open(&path)
            .and_then(|file| file.set_len(ROTATE_ABOVE + 1))
            .expect("a large file");
        open(&path).expect("a log file");
        assert_eq!(fs::metadata(&path).expect("it").len(), 0);
        assert!(dir.path().join("logs/a.log.1").exists());
    }
}
