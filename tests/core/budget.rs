//! Several clients of one store, as several processes would be: each has its own connections and
//! its own file descriptors, and only the folder of budgets is the same.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use kvfs::metrics::Metrics;
use kvfs::mount::open::{OpenConfig, open};
use kvfs::store::{GetOutcome, GetRequest, Priority};

use crate::support::mounted::open_served;
use crate::support::served::{TestServer, key, soon};

const LIMIT: u32 = 40;

#[test]
fn several_processes_keep_to_one_limit_and_nobody_is_refused() {
    let server = TestServer::start_with(|config| config.knobs.rate_limit = Some(LIMIT));
    server.put_text("A", "a");
    let budgets = tempfile::tempdir().expect("a temp folder");
    let metrics = Arc::new(Metrics::default());
    let clients: Vec<_> = (0..3)
        .map(|_| {
            let config = OpenConfig {
                budget_dir: Some(budgets.path().join("budgets")),
                ..open_served(&server)
            };
            open(&config, Arc::clone(&metrics)).expect("a store")
        })
        .collect();
    // The first answer tells of the limit.
    for client in &clients {
        let told = client.get(&key("A"), &GetRequest::default(), soon());
        assert!(matches!(told, Ok(GetOutcome::Found(_))), "{told:?}");
    }
    let (start, span) = (Instant::now(), Duration::from_secs(3));
    let answers = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for client in &clients {
            for priority in [Priority::Foreground, Priority::Prefetch, Priority::Prefetch] {
                let answers = &answers;
                scope.spawn(move || {
                    let request = GetRequest {
                        priority,
                        ..GetRequest::default()
                    };
                    while start.elapsed() < span {
                        let answer = client.get(&key("A"), &request, soon());
                        assert!(matches!(answer, Ok(GetOutcome::Found(_))), "{answer:?}");
                        answers.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
        }
    });
    let (answers, seconds) = (
        answers.load(Ordering::Relaxed) as f64,
        start.elapsed().as_secs_f64(),
    );
    assert_eq!(metrics.snapshot().responses_rate_limited, 0);
    assert!(answers <= f64::from(LIMIT) * (seconds + 1.0), "{answers}");
    // Also on a busy machine most of the budget is used.
    assert!(answers >= f64::from(LIMIT) * seconds * 0.5, "{answers}");
    let files: Vec<_> = std::fs::read_dir(budgets.path().join("budgets"))
        .expect("the folder of budgets")
        .map(|entry| entry.expect("an entry").file_name())
        .collect();
    assert_eq!(files.len(), 1, "{files:?}");
}
