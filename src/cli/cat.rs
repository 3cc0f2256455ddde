//! `kvfs cat`.

use std::io::{self, IsTerminal, Read, Write};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::args::{CatArgs, GlobalArgs};
use super::direct::{Direct, failure, key_fault, shown};
use super::error::{CliError, Kind};
use super::places;
use super::select::{check_patterns, no_match, no_record, select};
use super::settings::{Environment, disk_cache};
use super::ui::Ui;
use crate::base::clock::{SystemClock, Wait};
use crate::base::text::Line;
use crate::cache::content::{Content, ContentReader};
use crate::cache::records::{Records, RecordsConfig};
use crate::mount::build::open_disk;
use crate::store::{ErrorKind, GetOutcome, GetRequest, Key, StoreError, wait};
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
    let which = || {
        CliError::usage("name the records: kvfs cat STORE KEY..., or the path of a file in a mount")
            .hinted("list the records with: kvfs ls STORE")
    };
    let place = places::inside(Path::new(&args.store));
    if args.keys.is_empty() && place.is_none() {
        return Err(which());
    }
    check_patterns(&args.keys)?;
    if args.follow && place.is_some() {
        return Err(CliError::usage(
            "--follow asks the store itself: name it instead of the mount",
        ));
    }
    let direct = Direct::open_unasked(&args.store, &args.access, global, environment)?;
    let keys = direct.keys(&args.keys)?;
    if keys.is_empty() {
        return Err(which());
    }
    let selection = select(&direct, keys, None)?;
    let keys: Vec<Key> = selection
        .named
        .into_iter()
        .chain(selection.listed.into_iter().map(|item| item.key))
        .collect();
    if !selection.unmatched.is_empty() {
        return Err(no_match(&selection.unmatched, &direct.shown));
    }
    if args.follow && keys.len() > 1 {
        return Err(CliError::usage("--follow follows one record")
            .hinted("start kvfs cat --follow for each record"));
    }
    let mut out = Output {
        out: io::stdout().lock(),
        guards_terminal: !args.binary && io::stdout().is_terminal(),
    };
    if direct.mount.is_some() {
        for key in &keys {
            print_mounted(&mut out, &direct, key)?;
        }
        out.out.flush()?;
        return Ok(());
    }
    let disk = disk_cache(&args.disk, environment)?
        .and_then(|disk| open_disk(&disk, &*direct.store, args.raw, &direct.metrics));
    let records = Records::new(
        Arc::clone(&direct.store),
        RecordsConfig {
            raw: args.raw,
            max_content: args.max_content_size.map(|size| size.0),
            ttl: Some(Duration::ZERO),
            clock_lag: None,
            asks_each_time: false,
            keeps_plain_sizes: false,
            memory_capacity: MEMORY,
        },
        disk,
        Arc::new(SystemClock),
        Arc::clone(&direct.metrics),
    );
    for key in &keys {
        let content = fetch(&direct, &records, key)?;
        print(&mut out, &direct, &content, 0)?;
        if args.follow {
            out.out.flush()?;
            follow(ui, &mut out, (&direct, &records, content), args.interval)?;
        }
    }
    out.out.flush()?;
    records.finish_writing(direct.deadline());
    Ok(())
}

/// Standard output, which shows nothing but text on a terminal.
struct Output {
    out: io::StdoutLock<'static>,
    guards_terminal: bool,
}

impl Output {
    fn write(&mut self, key: &Key, bytes: &[u8]) -> Result<(), CliError> {
        if self.guards_terminal && !is_text(bytes) {
            return Err(CliError::failed(format!(
                "{} is not text; it could send commands to the terminal",
                shown(key)
            ))
            .hinted("send it to a file or a program, or give --binary"));
        }
        Ok(self.out.write_all(bytes)?)
    }
}

/// Whether a terminal can show these bytes of a text, which may be cut within a character.
fn is_text(bytes: &[u8]) -> bool {
    let text = match std::str::from_utf8(bytes) {
        Ok(text) => text,
        Err(error) if error.error_len().is_none() || error.valid_up_to() + 4 > bytes.len() => {
            std::str::from_utf8(&bytes[..error.valid_up_to()]).unwrap_or_default()
        }
        // Cut at its beginning, where a chunk before it ended.
        Err(error) if error.valid_up_to() == 0 && bytes.len() > 4 => {
            return bytes.iter().take(3).all(|byte| byte & 0xc0 == 0x80)
                && std::str::from_utf8(&bytes[3..]).is_ok();
        }
        Err(_) => return false,
    };
    !text
        .chars()
        .any(|c| c.is_control() && !matches!(c, '\n' | '\r' | '\t' | '\u{c}'))
}

/// Prints a file of a mount, as the mount shows it.
fn print_mounted(out: &mut Output, direct: &Direct, key: &Key) -> Result<(), CliError> {
    let failed = |error: StoreError| failure(&format!("cannot read {}", shown(key)), &error);
    let outcome = direct
        .store
        .get(key, &GetRequest::default(), direct.deadline())
        .map_err(failed)?;
    let GetOutcome::Found(mut fetched) = outcome else {
        return Ok(());
    };
    let mut buffer = vec![0; CHUNK];
    loop {
        match fetched.body.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(n) => out.write(key, &buffer[..n])?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(failed(StoreError::from_io(error, ErrorKind::Server))),
        }
    }
}

/// Prints what is added to a record, until printing fails or Ctrl-C ends the program.
fn follow(
    ui: Ui,
    out: &mut Output,
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
            ui.say(format_args!("{} was replaced", Line(&shown.key)));
        }
        print(out, direct, &content, from)?;
        out.out.flush()?;
        shown = content;
    }
}

/// Returns whether a content begins with all of another.
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
        Err(error) => Err(failed(direct, &content.key, error)),
    }
}

fn failed(direct: &Direct, key: &Key, error: wait::Error) -> CliError {
    match error {
        wait::Error::Failed(error) if error.kind() == ErrorKind::NotFound => {
            let missing = no_record(key, &direct.shown);
            match key_fault(key) {
                Some(fault) => missing.hinted(fault),
                None => missing,
            }
        }
        wait::Error::Failed(error) if error.kind() == ErrorKind::Corrupt => {
            let mut failed = failure(&format!("cannot read {}", shown(key)), &error);
            failed.hints = vec!["kvfs cat --raw prints the bytes as they are stored".to_owned()];
            failed
        }
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
        .map_err(|error| failed(direct, key, error))
}

fn print(
    out: &mut Output,
    direct: &Direct,
    content: &Arc<Content>,
    from: u64,
) -> Result<(), CliError> {
    let failed = |error| failed(direct, &content.key, error);
    let reader = content.reader().map_err(failed)?;
    let mut offset = from;
    loop {
        let bytes = reader
            .read_at(offset, CHUNK, Wait::Until(direct.deadline()))
            .map_err(failed)?;
        if bytes.is_empty() {
            return Ok(());
        }
        out.write(&content.key, &bytes)?;
        offset += bytes.len() as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_told_from_what_a_terminal_would_take_for_commands() {
        for text in ["", "plain\n", "größer\t\r\n", "日本語"] {
            assert!(is_text(text.as_bytes()), "{text:?}");
        }
        // Cut within a character.
        assert!(is_text(&"größer日".as_bytes()[..9]));
        for bytes in [
            &b"\x1b[31m"[..],
            b"\0",
            b"\x89PNG\r\n\x1a\n",
            b"a\xff\xfeb\xff\xfe",
        ] {
            assert!(!is_text(bytes), "{bytes:?}");
        }
    }
}
