//! `kvfs cat`.

use std::io::{self, Write};
use std::sync::Arc;
use std::time::Duration;

use super::args::{CatArgs, GlobalArgs};
use super::direct::{Direct, failure, key, shown};
use super::error::{CliError, Kind};
use super::settings::{Environment, disk_cache};
use super::ui::Ui;
use crate::base::clock::{SystemClock, Wait};
use crate::cache::content::{Content, ContentReader};
use crate::cache::records::{Records, RecordsConfig};
use crate::mount::build::open_disk;
use crate::store::{Key, wait};
use crate::transfer::download::Size;

/// Bytes read and printed at once.
const CHUNK: usize = 1 << 20;
/// Content kept in memory: what is printed once needs little.
const MEMORY: u64 = 4 << 20;

/// Prints records one after the other, through the same caches as a mount.
///
/// # Errors
/// That a record is not there or cannot be read; those before it have been printed.
pub fn run(
    ui: Ui,
    args: &CatArgs,
    global: GlobalArgs,
    environment: &Environment,
) -> Result<(), CliError> {
    let keys: Vec<Key> = args
        .keys
        .iter()
        .map(|typed| key(typed))
        .collect::<Result<_, _>>()?;
    if args.follow && keys.len() > 1 {
        return Err(CliError::usage("--follow follows one record")
            .hinted("start kvfs cat --follow for each"));
    }
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
        let content = fetch(&direct, &records, key)?;
        print(&mut out, &direct, &content, 0)?;
        if args.follow {
            out.flush()?;
            follow(ui, &mut out, (&direct, &records, content), args.interval)?;
        }
    }
    out.flush()?;
    records.finish_writing(direct.deadline());
    Ok(())
}

/// Prints what is added to a record, until printing fails or Ctrl-C ends the program.
fn follow(
    ui: Ui,
    out: &mut impl Write,
    (direct, records, mut shown): (&Direct, &Arc<Records>, Arc<Content>),
    interval: Duration,
) -> Result<(), CliError> {
    loop {
        std::thread::sleep(interval);
        let content = fetch(direct, records, &shown.key)?;
        if content.version == shown.version {
            continue;
        }
        let begins = common(direct, &shown, &content)?;
        let from = if begins { size(direct, &shown)? } else { 0 };
        if !begins {
            ui.say(format_args!("{} was replaced", shown.key));
        }
        print(out, direct, &content, from)?;
        out.flush()?;
        shown = content;
    }
}

/// Tells whether a content begins with all of another.
fn common(direct: &Direct, first: &Arc<Content>, longer: &Arc<Content>) -> Result<bool, CliError> {
    let size = size(direct, first)?;
    if self::size(direct, longer)? < size {
        return Ok(false);
    }
    let readers = (first.reader(), longer.reader());
    let (Ok(first_reader), Ok(longer_reader)) = readers else {
        return Ok(false);
    };
    let mut at = 0;
    while at < size {
        let len = CHUNK.min(usize::try_from(size - at).unwrap_or(CHUNK));
        let wait = || Wait::Until(direct.deadline());
        let read = |reader: &ContentReader| reader.read_at(at, len, wait());
        let (one, other) = (read(&first_reader), read(&longer_reader));
        match (one, other) {
            (Ok(one), Ok(other)) if one == other && !one.is_empty() => at += one.len() as u64,
            _ => return Ok(false),
        }
    }
    Ok(true)
}

fn size(direct: &Direct, content: &Arc<Content>) -> Result<u64, CliError> {
    match content.size(Wait::Until(direct.deadline())) {
        Ok(Size::Exact(size) | Size::Unkept(size)) => Ok(size),
        Err(error) => Err(failed(&content.key, error)),
    }
}

fn failed(key: &Key, error: wait::Error) -> CliError {
    match error {
        wait::Error::Failed(error) => failure(&format!("cannot read {}", shown(key)), &error),
        // All that is asked here may wait.
        wait::Error::WouldBlock => {
            CliError::of(Kind::Internal, format!("cannot read {}", shown(key)))
        }
    }
}

fn fetch(direct: &Direct, records: &Arc<Records>, key: &Key) -> Result<Arc<Content>, CliError> {
    records
        .content(key, Wait::Until(direct.deadline()))
        .map_err(|error| failed(key, error))
}

fn print(
    out: &mut impl Write,
    direct: &Direct,
    content: &Arc<Content>,
    from: u64,
) -> Result<(), CliError> {
    let failed = |error| failed(&content.key, error);
    let reader = content.reader().map_err(failed)?;
    let mut offset = from;
    loop {
        let bytes = reader
            .read_at(offset, CHUNK, Wait::Until(direct.deadline()))
            .map_err(failed)?;
        if bytes.is_empty() {
            return Ok(());
        }
        out.write_all(&bytes)?;
        offset += bytes.len() as u64;
    }
}
