//! Arbitrary bytes where bytes come from outside: whatever they are, they are an answer or an
//! error, soon and in bounded memory.
//!
//! `tests/corpus` has a folder for each target: what programs and servers send and write, what is
//! nearly that, and what has been found. Each test tries all of it, and then changes of it for half
//! a second, the same in each run; `scripts/fuzz` lets them search for long, with another seed each
//! time.

mod disk;
mod engine;
mod http;
mod parsers;
