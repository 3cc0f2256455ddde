//! `kvfs cat`.

use std::io::{self, Write};
use std::sync::Arc;
use std::time::Duration;

use super::args::{CatArgs, GlobalArgs};
use super::direct::{Direct, failure, key, shown};
use super::error::{CliError, Kind};
use super::settings::{Environment, disk_cache};
use crate::base::clock::{SystemClock, Wait};
use crate::cache::records::{Records, RecordsConfig};
use crate::mount::build::open_disk;
use crate::store::{Key, wait};

/// Bytes read and printed at once.
const CHUNK: usize = 1 << 20;
/// Content kept in memory: what is printed once needs little.
const MEMORY: u64 = 4 << 20;

/// Prints records one after the other, through the same caches as a mount.
///
/// # Errors
/// That a record is not there or cannot be read; those before it have been printed.
pub fn run(args: &CatArgs, global: GlobalArgs, environment: &Environment) -> Result<(), CliError> {
    let keys: Vec<Key> = args
        .keys
        .iter()
        .map(|typed| key(typed))
        .collect::<Result<_, _>>()?;
    let direct = Direct::open_unasked(&args.store, &args.access, global, environment)?;
    let disk = disk_cache(&args.disk, environment)?
        .and_then(|disk| open_disk(&disk, &*direct.store, args.raw, &direct.metrics));
    let records = Records::new(
        Arc::clone(&direct.store),
        RecordsConfig {
            raw: args.raw,
            max_content: args.max_content_size.map(|size| size.0),
            ttl: Some(Duration::ZERO),
            clock_lag: None,
            memory_capacity: MEMORY,
        },
        disk,
        Arc::new(SystemClock),
        Arc::clone(&direct.metrics),
    );
    let mut out = io::stdout().lock();
    for key in &keys {
        print(&mut out, &direct, &records, key)?;
    }
    out.flush()?;
    records.finish_writing(direct.deadline());
    Ok(())
}

fn print(
    out: &mut impl Write,
    direct: &Direct,
    records: &Arc<Records>,
    key: &Key,
) -> Result<(), CliError> {
    let failed = |error: wait::Error| match error {
        wait::Error::Failed(error) => failure(&format!("cannot read {}", shown(key)), &error),
        // All that is asked here may wait.
        wait::Error::WouldBlock => {
            CliError::of(Kind::Internal, format!("cannot read {}", shown(key)))
        }
    };
    let wait = || Wait::Until(direct.deadline());
    let content = records.content(key, wait()).map_err(failed)?;
    let reader = content.reader().map_err(failed)?;
    let mut offset = 0;
    loop {
        let bytes = reader.read_at(offset, CHUNK, wait()).map_err(failed)?;
        if bytes.is_empty() {
            return Ok(());
        }
        out.write_all(&bytes)?;
        offset += bytes.len() as u64;
    }
}
