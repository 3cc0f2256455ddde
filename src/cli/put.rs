//! `kvfs put`.

use std::fs::File;
use std::io::{self, IsTerminal, Read, Seek};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::json;

use super::args::{GlobalArgs, PutArgs};
use super::direct::{Direct, failure, shown};
use super::error::{CliError, Kind};
use super::info::add_meta;
use super::progress::Progress;
use super::settings::Environment;
use super::ui::Ui;
use crate::base::content_type;
use crate::base::units::ByteSize;
use crate::staging::entry::is_transient;
use crate::store::{
    self, ETag, Encoding, ErrorKind, Key, PutRequest, RecordMeta, StoreError, Upload,
};
use crate::upload::may_have_arrived;

/// The first and the longest pause before a conditional upload that was refused is sent again.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(8);

/// Stores a file or standard input as a record.
///
/// # Errors
/// That it cannot be read or stored; then the record is as it was.
pub fn run(
    ui: Ui,
    args: &PutArgs,
    global: GlobalArgs,
    environment: &Environment,
) -> Result<(), CliError> {
    if args.key.is_empty() {
        return Err(CliError::usage("a key is empty"));
    }
    let reads_terminal = args
        .file
        .as_deref()
        .is_none_or(|path| path == Path::new("-"))
        && io::stdin().is_terminal();
    if reads_terminal {
        ui.say("type the content; Ctrl-D ends it");
    }
    let mut file = content(args.file.as_deref())?;
    let direct = Direct::open_writable(&args.store, &args.access, global, environment)?;
    let keys = direct.keys(std::slice::from_ref(&args.key))?;
    let Some(key) = keys.last().cloned() else {
        return Err(CliError::usage("a key is empty"));
    };
    let request = request(args, &key, &mut file)?;
    let size = file.metadata().map_err(|error| unread(args, &error))?.len();
    let progress = Progress::of_upload(ui, &direct.metrics, size);
    let stored = put(&direct, args, &key, &request, (&file, size));
    drop(progress);
    let stored = stored?;
    let meta = stored.map_err(|error| refused(args, &key, &error))?;
    if args.json {
        let mut facts = json!({ "key": key.as_str(), "size": size });
        add_meta(&mut facts, &meta, None);
        facts["content_type"] = request.content_type.as_deref().into();
        facts["content_encoding"] = request.encoding.header_value().into();
        return Ok(ui.data(facts)?);
    }
    ui.say(format_args!(
        "stored {}, {} as {}",
        shown(&key),
        ByteSize(size),
        request
            .content_type
            .as_deref()
            .unwrap_or(content_type::UNKNOWN)
    ));
    Ok(())
}

fn refused(args: &PutArgs, key: &Key, error: &StoreError) -> CliError {
    if error.kind() != ErrorKind::Changed {
        return failure(&format!("cannot store {}", shown(key)), error);
    }
    does_not_hold(args, key)
}

/// Returns the error of a condition that does not hold.
fn does_not_hold(args: &PutArgs, key: &Key) -> CliError {
    let why = if args.if_absent {
        "the record exists already"
    } else {
        "it has changed meanwhile"
    };
    CliError::of(
        Kind::Changed,
        format!("{} is not stored: {why}", shown(key)),
    )
    .hinted("look at the record with: kvfs info")
}

/// Asks whether a condition holds: a server without entity tags, such as the platform, takes no notice
/// of conditions and would overwrite the record. A mount asks by itself.
fn check_condition(direct: &Direct, args: &PutArgs, key: &Key) -> Result<(), CliError> {
    if direct.mount.is_some() || !(args.if_absent || args.if_match.is_some()) {
        return Ok(());
    }
    let found = match direct.store.head(key, direct.deadline()) {
        Ok(meta) => Some(meta),
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        Err(error) => return Err(failure(&format!("cannot look for {}", shown(key)), &error)),
    };
    let holds = match (&args.if_match, found) {
        (None, found) => found.is_none(),
        (Some(_), None) => false,
        (Some(wanted), Some(_)) if wanted == "*" => true,
        (Some(wanted), Some(meta)) => match meta.etag {
            Some(etag) => etag.as_str() == wanted,
            None => {
                return Err(CliError::usage(
                    "this server tells no versions of records: --if-match has nothing to compare",
                )
                .hinted("leave it out, or use a mount, which compares what it replaces"));
            }
        },
    };
    match holds {
        true => Ok(()),
        false => Err(does_not_hold(args, key)),
    }
}

/// Stores it. A condition that the server may take no notice of is asked for again before each attempt.
fn put(
    direct: &Direct,
    args: &PutArgs,
    key: &Key,
    request: &PutRequest,
    (file, size): (&File, u64),
) -> Result<store::Result<RecordMeta>, CliError> {
    let (deadline, mut pause) = (direct.deadline(), FIRST_PAUSE);
    loop {
        check_condition(direct, args, key)?;
        let bytes = Upload::File(file, size);
        if !args.if_absent && args.if_match.is_none() {
            return Ok(direct.store.put(key, request, bytes, deadline));
        }
        let error = match direct.store.put_once(key, request, bytes, deadline) {
            Err(error) if is_transient(error.kind()) && !may_have_arrived(&error) => error,
            done => return Ok(done),
        };
        if deadline.remaining().is_none_or(|left| left <= pause) {
            return Ok(Err(error));
        }
        std::thread::sleep(pause);
        pause = (2 * pause).min(LONGEST_PAUSE);
    }
}

/// Returns the content as a file; what is no regular file is copied, since its length is needed.
fn content(path: Option<&Path>) -> Result<File, CliError> {
    let path = path.filter(|path| *path != Path::new("-"));
    let unread = |error: io::Error| {
        let what = path.map_or("standard input".into(), |path| path.display().to_string());
        CliError::failed(format!("cannot read {what}")).caused_by(&error)
    };
    let mut source: Box<dyn io::Read> = match path {
        None => Box::new(io::stdin().lock()),
        Some(path) => {
            let file = File::open(path).map_err(unread)?;
            let found = file.metadata().map_err(unread)?;
            if found.is_dir() {
                return Err(unread(io::ErrorKind::IsADirectory.into()));
            }
            if found.is_file() {
                return Ok(file);
            }
            Box::new(file)
        }
    };
    let mut copy = tempfile::tempfile()
        .map_err(|error| CliError::failed("cannot make a temporary file").caused_by(&error))?;
    io::copy(&mut source, &mut copy).map_err(unread)?;
    Ok(copy)
}

fn request(args: &PutArgs, key: &Key, file: &mut File) -> Result<PutRequest, CliError> {
    let encoding = Encoding::from_header(args.content_encoding.as_deref());
    check_encoding(&encoding, file).map_err(|error| unread(args, &error))??;
    let content_type = match &args.content_type {
        Some(given) => given.clone(),
        None => {
            // Encoded bytes tell nothing about the content.
            let guessed = if encoding.is_identity() {
                content_type::guess(&name(key, args.file.as_ref()), file)
            } else {
                content_type::guess(&name(key, args.file.as_ref()), &mut io::Cursor::new([]))
            };
            guessed.map_err(|error| unread(args, &error))?
        }
    };
    file.rewind().map_err(|error| unread(args, &error))?;
    Ok(PutRequest {
        content_type: Some(content_type.into()),
        encoding,
        if_match: args.if_match.as_deref().map(ETag::new),
        if_absent: args.if_absent,
    })
}

/// Refuses bytes that are certainly not encoded as claimed: no reader could decode them.
fn check_encoding(encoding: &Encoding, file: &mut File) -> io::Result<Result<(), CliError>> {
    let mut start = [0; 2];
    file.rewind()?;
    let n = file.read(&mut start)?;
    let fits = match (encoding, start) {
        _ if n < 2 => encoding.is_identity(),
        (Encoding::Gzip, start) => start == [0x1f, 0x8b],
        // zlib (RFC 1950): method 8, and a check value over both bytes. Some senders leave it out.
        (Encoding::Identity | Encoding::Brotli | Encoding::Deflate | Encoding::Unknown(_), _) => {
            true
        }
    };
    Ok(match fits {
        true => Ok(()),
        false => Err(CliError::usage(format!(
            "the bytes are not encoded as {}",
            encoding.header_value().unwrap_or_default()
        ))
        .hinted(
            "--content-encoding names the encoding that the bytes already have; encode them first",
        )),
    })
}

/// Returns the name that decides by its extension: the key's, else the file's.
fn name(key: &Key, file: Option<&PathBuf>) -> String {
    let own = Path::new(key.as_str()).extension().is_some();
    match file.filter(|_| !own).and_then(|file| file.file_name()) {
        Some(name) => name.to_string_lossy().into_owned(),
        None => key.as_str().to_owned(),
    }
}

fn unread(args: &PutArgs, error: &io::Error) -> CliError {
    let what = args.file.as_deref().unwrap_or(Path::new("-"));
    CliError::failed(format!("cannot read {}", what.display())).caused_by(error)
}
