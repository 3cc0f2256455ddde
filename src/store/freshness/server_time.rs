//! The time at the server, from the `Date` of its answers.
//!
//! `Date` is cut to a second. But an answer bounds the server's time from both sides: it was not
//! before its `Date` when the answer came, and less than a second past it when the request went out.
//! The bounds of several answers together are closer than any one's.

use std::time::{Duration, Instant, SystemTime};

use super::span::{Span, back};

/// What `Date` leaves out.
const CUT: Duration = Duration::from_secs(1);
/// Bounds are taken again from one answer after this long: clocks drift, and are set.
const RENEWED: Duration = Duration::from_secs(60);

/// The server's time as its answers tell it.
///
/// INVARIANT: both bounds are about the same moment `at` of this machine's monotonic clock.
#[derive(Clone, Copy, Debug)]
pub struct ServerTime {
    at: Instant,
    begun: Instant,
    span: Span,
}

impl ServerTime {
    /// Returns what one answer tells: a request that went out at `sent` was answered with this `Date`
    /// at `received`.
    pub fn from_answer(sent: Instant, received: Instant, date: SystemTime) -> Self {
        let took = received.saturating_duration_since(sent);
        Self {
            at: received,
            begun: received,
            span: Span {
                earliest: date,
                latest: date + CUT + took,
            },
        }
    }

    /// Takes another answer in.
    pub fn answered(&mut self, sent: Instant, received: Instant, date: SystemTime) {
        let new = Self::from_answer(sent, received, date);
        let known = self.at(received);
        let both = Span {
            earliest: known.earliest.max(new.span.earliest),
            latest: known.latest.min(new.span.latest),
        };
        let is_old = received.saturating_duration_since(self.begun) >= RENEWED;
        // No overlap: one of the clocks was set, or this machine was suspended. The answer is right.
        if is_old || both.earliest > both.latest {
            *self = new;
        } else {
            self.at = received;
            self.span = both;
        }
    }

    /// Returns what time it is at the server at a moment of this machine's clock.
    pub fn at(&self, moment: Instant) -> Span {
        let later = moment.saturating_duration_since(self.at);
        let earlier = self.at.saturating_duration_since(moment);
        Span {
            earliest: back(self.span.earliest + later, earlier),
            latest: back(self.span.latest + later, earlier),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ms(count: u64) -> Duration {
        Duration::from_millis(count)
    }

    proptest! {
        #[test]
        fn the_bounds_always_hold_and_get_closer(
            offset in 0u64..10_000,
            answers in proptest::collection::vec((0u64..3000, 0u64..2000, 0u64..2000), 1..30),
        ) {
            let (start, epoch) = (Instant::now(), SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000));
            let server = |local: u64| epoch + ms(offset + local);
            let mut known: Option<ServerTime> = None;
            let mut now = 0;
            for (pause, there, back_again) in answers {
                let sent = now + pause;
                let stamped = sent + there;
                let received = stamped + back_again;
                now = received;
                let exact = (offset + stamped) / 1000 * 1000;
                let date = epoch + ms(exact);
                let (sent, received) = (start + ms(sent), start + ms(received));
                match &mut known {
                    Some(known) => known.answered(sent, received, date),
                    None => known = Some(ServerTime::from_answer(sent, received, date)),
                }
                let span = known.expect("an answer").at(start + ms(now));
                prop_assert!(span.earliest <= server(now) && server(now) <= span.latest);
                let earlier = known.expect("an answer").at(sent);
                prop_assert!(earlier.earliest <= server(now) && earlier.earliest <= earlier.latest);
            }
        }
    }

    #[test]
    fn a_clock_that_was_set_is_believed_at_once() {
        let start = Instant::now();
        let date = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        let mut known = ServerTime::from_answer(start, start + ms(100), date(1000));
        known.answered(start + ms(200), start + ms(300), date(5000));
        assert_eq!(known.at(start + ms(300)).earliest, date(5000));
        known.answered(start + ms(400), start + ms(500), date(1000));
        assert_eq!(known.at(start + ms(500)).earliest, date(1000));
    }
}
