//! `kvfs status --watch`: a live view on a terminal, a line a second elsewhere.

use std::collections::VecDeque;
use std::io::{self, IsTerminal};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use serde_json::Value;

use super::error::{CliError, Kind};
use super::settings::Environment;
use super::status;
use super::ui::Ui;

pub mod plain;
pub mod sample;
pub mod view;

use sample::{Sample, Span};

/// How often the mount is asked.
const EVERY: Duration = Duration::from_secs(1);
/// Rates and times are those of the last this many samples.
const WINDOW: usize = 10;

/// Watches the mount at `path` until the user has seen enough or it is gone.
///
/// # Errors
/// [`Kind::Trouble`] when the mount is dead, does not answer or ends.
pub fn run(ui: Ui, path: &Path, json: bool, environment: &Environment) -> Result<(), CliError> {
    let registry = environment.registry()?;
    let ask = || status::one(&registry, path);
    // What is wrong from the beginning is told on the plain screen.
    live(ask()?, path)?;
    if json || !io::stdout().is_terminal() {
        return lines(ui, path, json, &ask);
    }
    let mut terminal = ratatui::try_init()
        .map_err(|error| CliError::failed("the terminal cannot be used").caused_by(&error))?;
    let result = screen(&mut terminal, path, &ask);
    ratatui::restore();
    result
}

type Ask<'a> = &'a dyn Fn() -> Result<Value, CliError>;

/// Refuses the state of a mount that does not work.
fn live(state: Value, path: &Path) -> Result<Value, CliError> {
    match state["state"].as_str() {
        Some("live") => Ok(state),
        other => Err(CliError::of(
            Kind::Trouble,
            format!(
                "the mount on {} is {}",
                path.display(),
                other.unwrap_or("gone").replace('_', " ")
            ),
        )),
    }
}

/// The last samples.
#[derive(Debug, Default)]
struct Window(VecDeque<Sample>);

impl Window {
    fn take(&mut self, state: &Value) {
        if self.0.len() > WINDOW {
            self.0.pop_front();
        }
        self.0.push_back(Sample::new(state, Instant::now()));
    }

    fn span(&self) -> Option<Span<'_>> {
        Some(Span {
            first: self.0.front()?,
            last: self.0.back()?,
        })
    }
}

fn lines(ui: Ui, path: &Path, json: bool, ask: Ask<'_>) -> Result<(), CliError> {
    let mut window = Window::default();
    loop {
        let state = live(ask()?, path)?;
        if json {
            ui.json_line(&state)?;
        } else {
            window.take(&state);
            if let Some(span) = window.span() {
                ui.data(plain::line(&span))?;
            }
            // Between two lines, so that each is of one second.
            while window.0.len() > 1 {
                window.0.pop_front();
            }
        }
        thread::sleep(EVERY);
    }
}

fn screen(terminal: &mut DefaultTerminal, path: &Path, ask: Ask<'_>) -> Result<(), CliError> {
    let broken =
        |error: io::Error| CliError::failed("the terminal cannot be used").caused_by(&error);
    let mut window = Window::default();
    loop {
        window.take(&live(ask()?, path)?);
        let next = Instant::now() + EVERY;
        loop {
            if let Some(span) = window.span() {
                terminal
                    .draw(|frame| view::draw(frame, &span))
                    .map_err(broken)?;
            }
            let left = next.saturating_duration_since(Instant::now());
            if !event::poll(left).map_err(broken)? {
                break;
            }
            // Any other event, such as a resized window, has the view drawn again.
            if let Event::Key(key) = event::read().map_err(broken)?
                && key.kind == KeyEventKind::Press
                && (matches!(key.code, KeyCode::Char('q') | KeyCode::Esc)
                    || key.code == KeyCode::Char('c')
                        && key.modifiers.contains(KeyModifiers::CONTROL))
            {
                return Ok(());
            }
        }
    }
}
