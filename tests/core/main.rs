//! Tests that need no kernel: the parts against each other, over loopback where a server is needed.

mod api;
mod bombs;
mod bucket_answers;
mod bucket_faults;
mod bucket_requests;
mod buckets;
mod budget;
mod cache_kills;
mod cache_shared;
mod cli;
mod cli_config;
mod cli_direct;
mod cli_doctor;
mod cli_hostile;
mod contract;
mod copy;
mod fs_core;
mod fs_rename_race;
mod fs_write;
mod fuzz;
mod histories;
mod instructions;
mod model;
mod peers;
mod plain_http;
mod recover;
mod server;
#[path = "../support/mod.rs"]
mod support;
mod transfer;
mod write_model;
