//! Panics of any thread of the serving process: logged without secrets, and counted.
//!
//! A handler of a request catches its own panic and answers EIO; only panics that no handler
//! catches are logged and counted here.

use std::any::Any;
use std::backtrace::{Backtrace, BacktraceStatus};
use std::panic::PanicHookInfo;
use std::sync::Arc;
use std::thread;

use crate::base::redact::{self, Secret};
use crate::metrics::Metrics;

/// Logs and counts all panics of this process from now on. `known` secrets are kept out of the log,
/// as is whatever looks like one.
pub fn watch(metrics: &Arc<Metrics>, known: Vec<Secret>) {
    metrics.counts_panics_by_hook();
    let metrics = Arc::clone(metrics);
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        metrics.panics_total.one();
        if tracing::dispatcher::has_been_set() {
            tracing::error!("{}; please report this", told(info, &known));
            let trace = Backtrace::capture();
            if trace.status() == BacktraceStatus::Captured {
                // One event is one line.
                for line in trace.to_string().lines() {
                    tracing::error!("{line}");
                }
            }
        } else {
            before(info);
        }
    }));
}

fn told(info: &PanicHookInfo<'_>, known: &[Secret]) -> String {
    let thread = thread::current();
    let name = thread.name().unwrap_or("without a name");
    let place = info.location().map(ToString::to_string).unwrap_or_default();
    let message = redact::text(message(info.payload()), known);
    format!("the thread '{name}' panicked at {place}: {message}")
}

fn message(payload: &dyn Any) -> &str {
    match (
        payload.downcast_ref::<&str>(),
        payload.downcast_ref::<String>(),
    ) {
        (Some(text), _) => text,
        (None, Some(text)) => text,
        (None, None) => "something that is no text",
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    const TOKEN: &str = "a-token-of-no-known-form";

    /// The hook is the process's, so that this test needs one of its own.
    #[test]
    fn a_panic_of_any_thread_is_counted_and_told_without_secrets() {
        let here = std::env::current_exe().expect("this program");
        let inner = "daemon::panics::tests::panics_in_a_process_of_its_own";
        let output = Command::new(here)
            .args(["--exact", inner, "--ignored", "--nocapture"])
            .output()
            .expect("it runs");
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said);
        assert!(
            output.status.success() && said.contains("1 passed"),
            "{said}"
        );
        assert!(
            said.contains("the thread 'some-thread' panicked at src/daemon/panics.rs"),
            "{said}"
        );
        assert!(said.contains("on purpose, with [redacted]"), "{said}");
        assert!(said.contains("signature=[redacted]"), "{said}");
        assert!(!said.contains(TOKEN) && !said.contains("s3cret"), "{said}");
    }

    #[test]
    #[ignore = "run by the test above"]
    fn panics_in_a_process_of_its_own() {
        let _ = tracing_subscriber::fmt()
            .with_writer(std::io::stderr)
            .try_init();
        let metrics = Arc::new(Metrics::default());
        watch(&metrics, vec![Secret::new(TOKEN)]);
        let panicked = thread::Builder::new()
            .name("some-thread".into())
            .spawn(|| panic!("on purpose, with {TOKEN}, http://h/keys?signature=s3cret"))
            .expect("a thread")
            .join();
        assert!(panicked.is_err());
        assert_eq!(metrics.panics_total.get(), 1);
        // A handler that catches one does not count it again.
        metrics.caught_panic();
        assert_eq!(metrics.panics_total.get(), 1);
    }
}
