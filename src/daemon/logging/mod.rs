//! Logging of the serving process: to its log file, or to standard error in the foreground.
//!
//! One event is one line, whatever its text holds (`base::text`). Repeated events leave one line in
//! a while (`folded`), and a file that grows large is rotated (`file`), so that no program fills
//! the disk with log lines.

use std::fmt;
use std::io::{self, IsTerminal};
use std::sync::OnceLock;

use tracing::level_filters::LevelFilter;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::format::{Format, Full, Json, Writer};
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, MakeWriter, layer};
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::registry::{LookupSpan, Registry};
use tracing_subscriber::util::SubscriberInitExt;

use super::{LogConfig, LogFormat, LogLevel};
use crate::base::text;

mod file;
mod folded;

pub use file::LogFile;

use folded::Folded;

/// The log file of this process.
static LOG: OnceLock<LogFile> = OnceLock::new();

/// Starts logging; returns the log file, for what else the process has to say.
///
/// # Errors
/// That the log file cannot be written.
pub fn start(config: &LogConfig) -> io::Result<Option<LogFile>> {
    // Libraries log URLs, with the signatures in them, below the level of warnings.
    let filter = Targets::new()
        .with_default(LevelFilter::WARN)
        .with_target("kvfs", level(config.level));
    let (file, lines) = match &config.file {
        Some(path) => {
            let file = LogFile::open(path)?;
            let _ = LOG.set(file.clone());
            let to_file = file.clone();
            (
                Some(file),
                lines(config.format, move || to_file.clone(), false),
            )
        }
        None => {
            let color = config.color && io::stderr().is_terminal();
            (None, lines(config.format, io::stderr, color))
        }
    };
    // Already started means that a test did.
    let _ = tracing_subscriber::registry()
        .with(lines)
        .with(filter)
        .try_init();
    Ok(file)
}

/// Opens the log file of this process again, if there is one: another may have its name now.
pub fn reopen() {
    if let Some(log) = LOG.get() {
        log.reopen();
    }
}

/// Returns what writes lines of this format.
fn lines<W>(format: LogFormat, writer: W, color: bool) -> Box<dyn Layer<Registry> + Send + Sync>
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let layer = layer().with_ansi(false);
    match format {
        LogFormat::Text => layer
            .event_format(Lines::new(Style::Plain { color }, SystemTime))
            .with_writer(writer)
            .boxed(),
        LogFormat::Json => layer
            .json()
            .event_format(JsonLines::default())
            .with_writer(writer)
            .boxed(),
        LogFormat::Command => layer
            .event_format(Lines::new(Style::Command, ()))
            .with_writer(writer)
            .boxed(),
        LogFormat::Journal => layer
            .event_format(Lines::new(Style::Journal, ()))
            .with_writer(writer)
            .boxed(),
    }
}

/// The longest line, in characters: keys and names of a server may be of any length.
const LONGEST_LINE: usize = 16 << 10;

/// How lines look.
enum Style {
    Plain {
        /// Whether the level is coloured.
        color: bool,
    },
    /// As commands talk to people: `warning: message`.
    Command,
    /// As sd-daemon(3) describes them, each with its priority in front.
    Journal,
}

/// Writes an event as one line.
struct Lines<T> {
    format: Format<Full, T>,
    style: Style,
    folded: Folded,
}

impl<T> Lines<T> {
    fn new(style: Style, timer: T) -> Self {
        let level = matches!(style, Style::Plain { .. });
        Self {
            format: Format::default()
                .with_target(!matches!(style, Style::Command))
                .with_timer(timer)
                .with_level(level)
                .with_ansi(false),
            style,
            folded: Folded::default(),
        }
    }
}

impl<S, N, T> FormatEvent<S, N> for Lines<T>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
    T: FormatTime,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut text = String::new();
        self.format
            .format_event(context, Writer::new(&mut text), event)?;
        let level = *event.metadata().level();
        // The time in front is another each time.
        let what = match self.style {
            Style::Plain { .. } => text.split_once(' ').map_or(&*text, |(_, what)| what),
            Style::Journal | Style::Command => &text,
        };
        let Some(repeats) = self.folded.shown(what) else {
            return Ok(());
        };
        let text = text::short(text.trim_end_matches('\n'), LONGEST_LINE);
        let line = text::line(&text);
        match &self.style {
            Style::Plain { color: true } => {
                writer.write_str(&line.replacen(level.as_str(), colored(level), 1))
            }
            Style::Plain { color: false } => writer.write_str(&line),
            Style::Command => match level {
                Level::ERROR => write!(writer, "error: {line}"),
                Level::WARN => write!(writer, "warning: {line}"),
                _ => writer.write_str(&line),
            },
            Style::Journal => write!(writer, "<{}>{line}", priority(level)),
        }?;
        match repeats {
            0 => writeln!(writer),
            repeats => writeln!(writer, " ({repeats} more times before)"),
        }
    }
}

fn priority(level: Level) -> u8 {
    match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        Level::DEBUG | Level::TRACE => 7,
    }
}

fn colored(level: Level) -> &'static str {
    match level {
        Level::ERROR => "\x1b[31mERROR\x1b[0m",
        Level::WARN => "\x1b[33mWARN\x1b[0m",
        Level::INFO => "\x1b[32mINFO\x1b[0m",
        Level::DEBUG => "\x1b[34mDEBUG\x1b[0m",
        Level::TRACE => "\x1b[35mTRACE\x1b[0m",
    }
}

/// Writes an event as one line of JSON in which nothing is dangerous to look at.
struct JsonLines {
    format: Format<Json, ()>,
    folded: Folded,
}

impl Default for JsonLines {
    fn default() -> Self {
        Self {
            format: Format::default().json().flatten_event(true).without_time(),
            folded: Folded::default(),
        }
    }
}

impl<S, N> FormatEvent<S, N> for JsonLines
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
        let mut what = String::new();
        self.format
            .format_event(context, Writer::new(&mut what), event)?;
        let Some(repeats) = self.folded.shown(&what) else {
            return Ok(());
        };
        // The time stands in front, and what was left out behind it.
        writer.write_str("{\"timestamp\":\"")?;
        SystemTime.format_time(&mut writer)?;
        writer.write_str("\",")?;
        if repeats > 0 {
            write!(writer, "\"repeats\":{repeats},")?;
        }
        writer.write_str(&text::json(what.strip_prefix('{').unwrap_or(&what)))
    }
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
    use std::sync::Arc;

    use parking_lot::Mutex;

    use super::*;

    #[derive(Clone, Default)]
    struct Kept(Arc<Mutex<Vec<u8>>>);

    impl Write for Kept {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn logged(format: LogFormat, color: bool, say: impl FnOnce()) -> String {
        let kept = Kept::default();
        let writer = kept.clone();
        let lines = lines(format, move || writer.clone(), color);
        let subscriber = tracing_subscriber::registry().with(lines);
        tracing::subscriber::with_default(subscriber, say);
        let text = kept.0.lock().clone();
        String::from_utf8(text).expect("text")
    }

    #[test]
    fn foreign_text_gives_no_orders_and_forges_no_lines() {
        const FOREIGN: &str = "a\nERROR forged\r\x1b[31m\u{9b}1m\u{202e}z";
        for format in [LogFormat::Text, LogFormat::Json, LogFormat::Journal] {
            for color in [false, true] {
                let shown = logged(format, color, || {
                    tracing::warn!(key = FOREIGN, other = %FOREIGN, third = ?FOREIGN, "{FOREIGN}");
                });
                assert_eq!(shown.lines().count(), 1, "{shown:?}");
                let plain = shown.replace("\x1b[33mWARN\x1b[0m", "WARN");
                let end = plain.strip_suffix('\n').expect("a line");
                assert_eq!(text::line(end), end, "{shown:?}");
            }
        }
    }

    #[test]
    fn no_line_is_as_long_as_a_foreign_name_may_be() {
        for format in [LogFormat::Text, LogFormat::Journal] {
            let shown = logged(format, false, || {
                tracing::warn!("{}", "k".repeat(1_000_000))
            });
            assert!(shown.len() < LONGEST_LINE + 100, "{}", shown.len());
        }
    }

    #[test]
    fn what_repeats_is_told_once_in_a_while() {
        for format in [LogFormat::Text, LogFormat::Json, LogFormat::Journal] {
            let shown = logged(format, false, || {
                for n in 0..1000 {
                    tracing::warn!("the same");
                    if n == 500 {
                        tracing::warn!("something else");
                    }
                }
            });
            assert!(shown.lines().count() < 10, "{shown}");
            assert!(shown.contains("something else"), "{shown}");
        }
    }

    #[test]
    fn a_line_of_json_has_its_time_and_its_fields() {
        let shown = logged(LogFormat::Json, false, || tracing::warn!(key = "k", "said"));
        let line: serde_json::Value = serde_json::from_str(&shown).expect("JSON");
        assert_eq!(
            (&line["level"], &line["key"]),
            (&"WARN".into(), &"k".into())
        );
        assert_eq!(line["message"], "said");
        let time = line["timestamp"].as_str().expect("a time");
        assert!(time.parse::<jiff::Timestamp>().is_ok(), "{time}");
    }
}
