//! Logging of the serving process: to its log file, or to standard error in the foreground.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, IsTerminal};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Mutex;

use tracing::level_filters::LevelFilter;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::format::{Format, Full, Writer};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, MakeWriter, layer};
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::registry::{LookupSpan, Registry};
use tracing_subscriber::util::SubscriberInitExt;

use super::{LogConfig, LogFormat, LogLevel};

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
        let to_stderr = lines(config.format, io::stderr, color);
        // Already started means that a test did.
        let _ = tracing_subscriber::registry()
            .with(to_stderr)
            .with(filter)
            .try_init();
        return Ok(None);
    };
    let file = open(path)?;
    let to_file = lines(config.format, Mutex::new(file.try_clone()?), false);
    let _ = tracing_subscriber::registry()
        .with(to_file)
        .with(filter)
        .try_init();
    Ok(Some(file))
}

/// Returns what writes lines of this format.
fn lines<W>(format: LogFormat, writer: W, color: bool) -> Box<dyn Layer<Registry> + Send + Sync>
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    match format {
        LogFormat::Text => layer().with_writer(writer).with_ansi(color).boxed(),
        LogFormat::Json => layer()
            .json()
            .flatten_event(true)
            .with_writer(writer)
            .boxed(),
        LogFormat::Journal => layer()
            .with_ansi(false)
            .event_format(Journal::new())
            .with_writer(writer)
            .boxed(),
    }
}

/// Lines as sd-daemon(3) describes them, each with its priority in front.
struct Journal(Format<Full, ()>);

impl Journal {
    fn new() -> Self {
        Self(Format::default().without_time().with_level(false))
    }
}

impl<S, N> FormatEvent<S, N> for Journal
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut text = String::new();
        self.0
            .format_event(context, Writer::new(&mut text), event)?;
        let priority = match *event.metadata().level() {
            Level::ERROR => 3,
            Level::WARN => 4,
            Level::INFO => 6,
            Level::DEBUG | Level::TRACE => 7,
        };
        text.lines()
            .try_for_each(|line| writeln!(writer, "<{priority}>{line}"))
    }
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
