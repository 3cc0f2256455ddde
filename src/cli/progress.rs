//! Progress of work that takes longer than a second, on terminals only.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::ui::Ui;
use crate::metrics::Metrics;

/// What is over sooner is not worth a bar.
const PATIENCE: Duration = Duration::from_secs(1);
/// How often a bar is drawn.
const EVERY: Duration = Duration::from_millis(100);

/// Returns a bar of bytes with rate and time left; it is silent unless on a terminal.
pub fn bar(ui: Ui) -> ProgressBar {
    if ui.quiet {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(0);
    const FIELDS: &str =
        "{bar:24} {bytes}/{total_bytes}  {binary_bytes_per_sec}  {eta} left  {msg}";
    // A constant that is right; without it the bar looks plainer.
    if let Ok(style) = ProgressStyle::with_template(FIELDS) {
        bar.set_style(style.progress_chars("=> "));
    }
    bar
}

/// A bar that a thread draws; it goes away when this is dropped.
#[derive(Debug)]
pub struct Progress {
    ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Progress {
    /// Shows how much of an upload of `size` bytes has gone out.
    pub fn of_upload(ui: Ui, metrics: &Arc<Metrics>, size: u64) -> Self {
        let metrics = Arc::clone(metrics);
        Self::start(ui, move |bar| {
            bar.set_length(size);
            bar.set_position(metrics.snapshot().sent_bytes.min(size));
        })
    }

    /// Shows what `update` tells the bar, from a second on.
    pub fn start(ui: Ui, update: impl Fn(&ProgressBar) + Send + 'static) -> Self {
        let ended = Arc::new(AtomicBool::new(false));
        let end = Arc::clone(&ended);
        let began = Instant::now();
        let thread = thread::Builder::new()
            .name("progress".into())
            .spawn(move || {
                let bar = bar(ui);
                bar.set_draw_target(ProgressDrawTarget::hidden());
                let mut shown = false;
                while !end.load(Ordering::Relaxed) {
                    if !shown && began.elapsed() >= PATIENCE && !ui.quiet {
                        bar.set_draw_target(ProgressDrawTarget::stderr());
                        shown = true;
                    }
                    update(&bar);
                    thread::park_timeout(EVERY);
                }
                bar.finish_and_clear();
            });
        Self {
            ended,
            // Without a thread there is no bar.
            thread: thread.ok(),
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            let _ = thread.join();
        }
    }
}
