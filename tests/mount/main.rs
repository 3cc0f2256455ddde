//! Tests that mount for real: they need `/dev/fuse`.

mod access;
mod adversary;
mod buckets;
mod clients;
mod commands;
mod daemon;
mod disks;
mod endings;
mod faults;
mod foreign_text;
mod hanging_disk;
mod interrupts;
mod left_behind;
mod limits;
mod listings;
mod outage;
mod platform;
mod reading;
mod readme;
mod requests;
mod round_trips;
mod sandbox;
mod secrets;
mod slow_servers;
mod small_records;
#[path = "../support/mod.rs"]
mod support;
mod suspend;
mod system;
mod tls;
mod troubleshooting;
mod warm;
mod watching;
mod write_back;
mod writing;
