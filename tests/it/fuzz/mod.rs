//! Arbitrary bytes where bytes come from outside: whatever they are, they are an answer or an
//! error, soon and in bounded memory. What has been found stays in `tests/corpus`.
//!
//! Each test tries changed samples for half a second, the same in each run;
//! `scripts/fuzz` lets them search for long, with another seed each time.

mod disk;
mod engine;
mod http;
mod parsers;
