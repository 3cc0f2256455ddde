//! After a suspend, the kernel still trusts names and attributes for the rest of their TTLs, as its
//! clock stood still. So this module invalidates them.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, timerfd_create, timerfd_settime,
};

use crate::base::clock::Clock;
use crate::fs::KvFs;

/// How often the thread looks whether it is still wanted, and at the clocks where nothing wakes it.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// The clocks are read one after the other; less than this is no suspend.
const LEAST: Duration = Duration::from_secs(1);

/// Starts the thread that handles suspends, which `clock` reports; it ends with the filesystem. Not
/// needed where nothing ever changes.
///
/// # Errors
/// When no thread can be started.
pub fn watch(fs: &Arc<KvFs>, clock: Arc<dyn Clock>) -> io::Result<()> {
    let fs = Arc::downgrade(fs);
    thread::Builder::new()
        .name("kvfs-suspend".into())
        .stack_size(128 << 10)
        .spawn(move || {
            let alarm = alarm().ok();
            let mut before = clock.asleep();
            loop {
                wait(alarm.as_ref(), LOOK_EVERY);
                let Some(fs) = fs.upgrade() else { return };
                let now = clock.asleep();
                if now.saturating_sub(before) >= LEAST {
                    let forgotten = fs.forget_beliefs().tell_kernel();
                    tracing::info!(
                        "the machine was suspended; the kernel drops names and attributes of {forgotten} files"
                    );
                }
                before = now;
            }
        })
        .map(drop)
}

/// Returns a descriptor that becomes readable when the wall clock is set, as it is when a machine
/// wakes up (timerfd_create(2), `TFD_TIMER_CANCEL_ON_SET`).
fn alarm() -> rustix::io::Result<OwnedFd> {
    let alarm = timerfd_create(
        TimerfdClockId::Realtime,
        TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK,
    )?;
    set(&alarm)?;
    Ok(alarm)
}

fn set(alarm: &OwnedFd) -> rustix::io::Result<()> {
    let never = Itimerspec {
        it_interval: Timespec::default(),
        it_value: Timespec {
            tv_sec: i64::from(i32::MAX),
            tv_nsec: 0,
        },
    };
    let flags = TimerfdTimerFlags::ABSTIME | TimerfdTimerFlags::CANCEL_ON_SET;
    timerfd_settime(alarm, flags, &never).map(drop)
}

fn wait(alarm: Option<&OwnedFd>, span: Duration) {
    let Some(alarm) = alarm else {
        return thread::sleep(span);
    };
    let timeout = Timespec {
        tv_sec: i64::try_from(span.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: span.subsec_nanos().into(),
    };
    let mut fds = [PollFd::new(alarm, PollFlags::IN)];
    if poll(&mut fds, Some(&timeout)).is_ok_and(|ready| ready > 0) {
        // Fails with ECANCELED, which makes it wait for the next time.
        let _ = rustix::io::read(alarm, &mut [0; 8]);
        let _ = set(alarm);
    }
}
