//! Records: 4 x 7 x 4 x 5 x 4 x 8 x 5 x 2 = 179,200 cases. About 60 of them have all pairs, 32 more have
//! one wrong each.
//!
//! What a case is, is in the record's key: the server keeps nothing but how often it was asked.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Mutex};
use std::time::Duration;

use kvfs::apify::http::HttpOptions;
use sha2::{Digest, Sha256};

use super::long::Outcome;
use super::pairs;
use super::server::{Adversary, Request, STORE, Then, Wire};
use crate::support;
use crate::support::mounted::{MountedSession, PYTHON, quick_retries};

const SIZES: [usize; 8] = [4, 7, 4, 5, 4, 8, 5, 2];
/// Programs that read at a time, in a short run.
const AT_ONCE: usize = 4;
/// The same in a long one, most of whose time is waiting for a server that says nothing.
const AT_ONCE_LONG: usize = 24;
/// Cases in one mount of a long run: one page of keys.
const IN_ONE_MOUNT: usize = 1000;
const DEADLINE: Duration = Duration::from_secs(4);
/// What a busy machine may add to it.
const BUSY: Duration = Duration::from_secs(20);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Validators {
    Strong,
    Weak,
    Date,
    None,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Encoding {
    None,
    Gzip,
    Br,
    Deflate,
    TwoLines,
    List,
    Unknown,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Framing {
    Length,
    Chunked,
    UntilClose,
    WrongLength,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ranges {
    Honoured,
    Ignored,
    Wrong,
    OtherEncoding,
    OtherTotal,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cut {
    Never,
    Head,
    Middle,
    LastByte,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Meanwhile {
    Nothing,
    SameSize,
    OtherSize,
    OtherEncoding,
    Deletion,
    Gateway,
    ServerError,
    Silence,
}

const VALIDATORS: [Validators; 4] = [
    Validators::Strong,
    Validators::Weak,
    Validators::Date,
    Validators::None,
];
const ENCODINGS: [Encoding; 7] = [
    Encoding::None,
    Encoding::Gzip,
    Encoding::Br,
    Encoding::Deflate,
    Encoding::TwoLines,
    Encoding::List,
    Encoding::Unknown,
];
const FRAMINGS: [Framing; 4] = [
    Framing::Length,
    Framing::Chunked,
    Framing::UntilClose,
    Framing::WrongLength,
];
const RANGES: [Ranges; 5] = [
    Ranges::Honoured,
    Ranges::Ignored,
    Ranges::Wrong,
    Ranges::OtherEncoding,
    Ranges::OtherTotal,
];
const CUTS: [Cut; 4] = [Cut::Never, Cut::Head, Cut::Middle, Cut::LastByte];
const MEANWHILE: [Meanwhile; 8] = [
    Meanwhile::Nothing,
    Meanwhile::SameSize,
    Meanwhile::OtherSize,
    Meanwhile::OtherEncoding,
    Meanwhile::Deletion,
    Meanwhile::Gateway,
    Meanwhile::ServerError,
    Meanwhile::Silence,
];
const READERS: [&str; 5] = ["cat", "pread", "mmap", "sendfile", "two"];

#[derive(Clone, Copy, Debug)]
struct Case {
    number: usize,
    validators: Validators,
    encoding: Encoding,
    framing: Framing,
    ranges: Ranges,
    cut: Cut,
    meanwhile: Meanwhile,
    reader: &'static str,
    is_large: bool,
}

impl Case {
    fn of(number: usize) -> Self {
        let case = pairs::nth(&SIZES, number);
        Self {
            number,
            validators: VALIDATORS[case[0]],
            encoding: ENCODINGS[case[1]],
            framing: FRAMINGS[case[2]],
            ranges: RANGES[case[3]],
            cut: CUTS[case[4]],
            meanwhile: MEANWHILE[case[5]],
            reader: READERS[case[6]],
            is_large: case[7] == 1,
        }
    }

    fn key(self) -> String {
        format!("c{:06}", self.number)
    }

    /// The n-th version's content; the second may be of another size.
    fn content(self, second: bool) -> &'static Version {
        let is_longer = second && self.meanwhile == Meanwhile::OtherSize;
        &VERSIONS[usize::from(self.is_large)][usize::from(second) + usize::from(is_longer)]
    }

    /// Whether the record is another one once it has been asked for.
    fn changes(self) -> bool {
        matches!(
            self.meanwhile,
            Meanwhile::SameSize | Meanwhile::OtherSize | Meanwhile::OtherEncoding
        )
    }

    /// How the record is encoded, at first or later.
    fn encoding(self, later: bool) -> Encoding {
        match self.encoding {
            encoding if !later || self.meanwhile != Meanwhile::OtherEncoding => encoding,
            Encoding::None => Encoding::Gzip,
            _ => Encoding::None,
        }
    }

    /// Whether it must be readable: nothing is wrong with it that a client need not expect.
    fn is_kind(self) -> bool {
        let decodes = matches!(
            self.encoding,
            Encoding::None | Encoding::Gzip | Encoding::Br | Encoding::Deflate
        );
        decodes
            && self.framing != Framing::WrongLength
            && self.cut == Cut::Never
            && self.meanwhile == Meanwhile::Nothing
            && matches!(self.ranges, Ranges::Honoured | Ranges::Ignored)
    }
}

/// A content and its stored forms.
struct Version {
    plain: Vec<u8>,
    gzip: Vec<u8>,
    br: Vec<u8>,
    deflate: Vec<u8>,
    br_of_gzip: Vec<u8>,
    sha: String,
}

impl Version {
    fn new(len: usize, seed: u64) -> Self {
        let plain = bytes(len, seed);
        let gzip = gzip(&plain);
        let mut deflate = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::fast());
        deflate.write_all(&plain).expect("memory");
        let sha = Sha256::digest(&plain);
        Self {
            br: brotli_of(&plain),
            br_of_gzip: brotli_of(&gzip),
            deflate: deflate.finish().expect("memory"),
            gzip,
            sha: sha.iter().map(|byte| format!("{byte:02x}")).collect(),
            plain,
        }
    }

    fn stored(&self, encoding: Encoding) -> &[u8] {
        match encoding {
            Encoding::None => &self.plain,
            Encoding::Gzip | Encoding::TwoLines | Encoding::Unknown => &self.gzip,
            Encoding::Br => &self.br,
            Encoding::Deflate => &self.deflate,
            Encoding::List => &self.br_of_gzip,
        }
    }
}

/// Lines that tell where they are and of which version.
fn bytes(len: usize, seed: u64) -> Vec<u8> {
    (0u64..)
        .flat_map(|line| {
            let noise = (line ^ seed).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            format!("{seed} {line:08} {noise:016x}\n").into_bytes()
        })
        .take(len)
        .collect()
}

fn gzip(plain: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(plain).expect("memory");
    encoder.finish().expect("memory")
}

fn brotli_of(plain: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut writer = brotli::CompressorWriter::new(&mut out, 1 << 16, 1, 20);
    writer.write_all(plain).expect("memory");
    drop(writer);
    out
}

/// Small and large ones: the first version, another of its size, another of another size.
static VERSIONS: LazyLock<[[Version; 3]; 2]> = LazyLock::new(|| {
    [40_003, (3 << 19) + 7].map(|len| {
        [
            Version::new(len, 1),
            Version::new(len, 2),
            Version::new(len + 1000, 3),
        ]
    })
});

/// What the server knows of a record that is being asked for.
#[derive(Clone, Copy, Default)]
struct Course {
    /// Answers with bytes of it so far.
    answers: usize,
    /// Whether that has happened which happens meanwhile.
    later: bool,
}

type Courses = Mutex<HashMap<usize, Course>>;

fn script(
    courses: &Courses,
    request: &Request,
    wire: &mut Wire<'_>,
    keys: &str,
) -> std::io::Result<Then> {
    let store = format!("/v2/key-value-stores/{STORE}");
    if request.path == format!("{store}/keys") {
        return wire.answer(200, "application/json", keys.as_bytes());
    }
    let key = request.path.strip_prefix(&format!("{store}/records/c"));
    let Some(number) = key.and_then(|key| key.parse().ok()) else {
        return wire.error(404, "record-not-found");
    };
    let case = Case::of(number);
    let course = {
        let mut courses = courses.lock().expect("no panic");
        let course = courses.entry(number).or_default();
        course.answers += 1;
        *course
    };
    if course.later {
        match case.meanwhile {
            Meanwhile::Deletion => return wire.error(404, "record-not-found"),
            Meanwhile::Gateway if number % 2 == 0 => return wire.gateway(404),
            Meanwhile::Gateway => return wire.gateway(502),
            Meanwhile::ServerError => return wire.error(500, "internal-error"),
            Meanwhile::Silence => return Ok(Then::Silence),
            _ => {}
        }
    }
    let later = || {
        courses
            .lock()
            .expect("no panic")
            .entry(number)
            .or_default()
            .later = true;
    };
    record(case, course, request, wire, &later)
}

fn record(
    case: Case,
    course: Course,
    request: &Request,
    wire: &mut Wire<'_>,
    later: &dyn Fn(),
) -> std::io::Result<Then> {
    let is_second = course.later && case.changes() && case.meanwhile != Meanwhile::OtherEncoding;
    let encoding = case.encoding(course.later);
    let mut body = case.content(is_second).stored(encoding);
    let mut status = 200;
    let mut head = String::new();
    let mut codings: &[&str] = match encoding {
        Encoding::None => &[],
        Encoding::Gzip => &["gzip"],
        Encoding::Br => &["br"],
        Encoding::Deflate => &["deflate"],
        Encoding::TwoLines => &["identity", "gzip"],
        Encoding::List => &["gzip, br"],
        Encoding::Unknown => &["zstd"],
    };
    // A tag that is said to be strong tells versions apart, but not encodings; the others nothing.
    let tag = match case.validators {
        Validators::Strong => format!("\"{}\"", u8::from(is_second)),
        Validators::Weak => "W/\"same\"".into(),
        Validators::Date | Validators::None => String::new(),
    };
    let unchanged = (!tag.is_empty() && request.header("if-none-match") == Some(&tag))
        || (case.validators == Validators::Date && request.header("if-modified-since").is_some());
    if unchanged {
        wire.send(format!("HTTP/1.1 304 Same\r\netag: {tag}\r\n\r\n").as_bytes())?;
        return Ok(Then::Listen);
    }
    let wanted = request.header("if-match").or(request.header("if-range"));
    let is_wanted = wanted.is_none_or(|wanted| wanted == tag);
    if request.header("if-match").is_some() && !is_wanted {
        return wire.error(412, "precondition-failed");
    }
    if let Some((first, last)) = request
        .range()
        .filter(|_| is_wanted && case.ranges != Ranges::Ignored)
    {
        if case.ranges == Ranges::OtherEncoding {
            let other = match encoding {
                Encoding::None => Encoding::Gzip,
                _ => Encoding::None,
            };
            body = case.content(is_second).stored(other);
            codings = if other == Encoding::Gzip {
                &["gzip"]
            } else {
                &[]
            };
        }
        let total = body.len()
            + if case.ranges == Ranges::OtherTotal {
                1000
            } else {
                0
            };
        let (mut first, mut end) = (
            first,
            last.map_or(body.len(), |last| last + 1).min(body.len()),
        );
        if case.ranges == Ranges::Wrong {
            (first, end) = (first + 100, end + 100);
        }
        let end = end.min(body.len());
        if first >= end {
            head += &format!("content-range: bytes */{}\r\n", body.len());
            wire.send(format!("HTTP/1.1 416 Range\r\n{head}content-length: 0\r\n\r\n").as_bytes())?;
            return Ok(Then::Listen);
        }
        status = 206;
        head += &format!("content-range: bytes {first}-{}/{total}\r\n", end - 1);
        body = &body[first..end];
    }
    for coding in codings {
        head += &format!("content-encoding: {coding}\r\n");
    }
    match case.validators {
        Validators::Strong | Validators::Weak => head += &format!("etag: {tag}\r\n"),
        Validators::Date => head += "last-modified: Wed, 01 Jan 2025 00:00:00 GMT\r\n",
        Validators::None => {}
    }
    match case.framing {
        Framing::Length => head += &format!("content-length: {}\r\n", body.len()),
        Framing::WrongLength => head += &format!("content-length: {}\r\n", body.len() + 100),
        Framing::Chunked => head += "transfer-encoding: chunked\r\n",
        Framing::UntilClose => head += "connection: close\r\n",
    }
    let head = format!(
        "HTTP/1.1 {status} Record\r\ncontent-type: a/b\r\naccept-ranges: bytes\r\n{head}\r\n"
    );
    // Some lines break each time, some once.
    let cut = match case.cut {
        cut if case.number.is_multiple_of(3) || course.answers == 1 => cut,
        _ => Cut::Never,
    };
    if cut == Cut::Head {
        later();
        wire.send(&head.as_bytes()[..head.len() / 2])?;
        return Ok(Then::Close);
    }
    wire.send(head.as_bytes())?;
    let len = match cut {
        Cut::Middle => body.len() / 2,
        Cut::LastByte => body.len() - 1,
        Cut::Never | Cut::Head => body.len(),
    };
    let (one, two) = body[..len].split_at(len / 2);
    for half in [one, two] {
        for chunk in half.chunks(60_000) {
            if case.framing == Framing::Chunked {
                wire.send(format!("{:x}\r\n", chunk.len()).as_bytes())?;
                wire.send(chunk)?;
                wire.send(b"\r\n")?;
            } else {
                wire.send(chunk)?;
            }
        }
        // Half of it has come.
        later();
    }
    if case.framing == Framing::Chunked && cut == Cut::Never {
        wire.send(b"0\r\n\r\n")?;
    }
    let closes = matches!(case.framing, Framing::UntilClose | Framing::WrongLength);
    match closes || cut != Cut::Never {
        true => Ok(Then::Close),
        false => Ok(Then::Listen),
    }
}

/// A program that reads what it is told to.
struct Reader {
    child: Child,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Reader {
    fn start(program: &std::path::Path) -> Self {
        let mut words = PYTHON.split(' ');
        let mut child = Command::new(words.next().expect("a program"))
            .args(words)
            .arg(program)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("python");
        Self {
            orders: child.stdin.take().expect("a pipe"),
            answers: BufReader::new(child.stdout.take().expect("a pipe")),
            child,
        }
    }

    fn read(&mut self, way: &str, path: &std::path::Path) -> serde_json::Value {
        let order = serde_json::json!({"way": way, "path": path});
        writeln!(self.orders, "{order}").expect("it listens");
        let mut line = String::new();
        self.answers.read_line(&mut line).expect("an answer");
        serde_json::from_str(&line).expect("an answer")
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Reads a record and returns what is wrong with what came of it.
fn check(case: Case, mount: &MountedSession, reader: &mut Reader) -> Result<bool, String> {
    let answer = reader.read(case.reader, &mount.file(&case.key()));
    let slowest = answer["slowest"].as_f64().unwrap_or_default();
    if slowest > (DEADLINE * 3 / 2 + BUSY).as_secs_f64() {
        return Err(format!("a system call took {slowest} s"));
    }
    if let Some(errno) = answer["errno"].as_str() {
        let is_gone = matches!(case.meanwhile, Meanwhile::Deletion) && errno == "ENOENT";
        let errors = mount.counters().last_errors;
        let is_told = errors
            .iter()
            .any(|error| error.key.as_deref() == Some(&case.key()) || error.key.is_none());
        return match errno {
            _ if case.is_kind() => Err(format!("{errno}, though nothing is wrong")),
            "EAGAIN" | "EINTR" | "ENOSYS" => Err(format!("{errno} means nothing here")),
            "ENOENT" if !is_gone => Err("ENOENT, though it was not deleted".into()),
            _ if !is_gone && !is_told => Err(format!("{errno}, and no word of it")),
            _ => Ok(false),
        };
    }
    let decodes = case.encoding != Encoding::Unknown || case.changes();
    let mut allowed = vec![case.content(false)];
    if case.changes() && case.meanwhile != Meanwhile::OtherEncoding {
        allowed.push(case.content(true));
    }
    for read in answer["reads"].as_array().into_iter().flatten() {
        let is_one = allowed
            .iter()
            .any(|version| read["sha"] == version.sha.as_str());
        if !is_one || read["mixed"] == true || !decodes {
            return Err(format!("wrong bytes: {read}"));
        }
        if read["len"] != read["size"] {
            return Err(format!("the size disagrees with the bytes: {read}"));
        }
        // Stored again, if only in another encoding, it has another time.
        let is_first =
            read["sha"] == allowed[0].sha.as_str() && case.meanwhile != Meanwhile::OtherEncoding;
        if is_first && read["mtime"] != answer["mtime"] {
            return Err(format!("the time has moved: {answer}"));
        }
    }
    match answer["reads"].as_array().and_then(|reads| reads.last()) {
        Some(last) if answer["after"] == last["len"] => Ok(true),
        _ => Err(format!("stat disagrees with the bytes: {answer}")),
    }
}

/// Runs cases in one mount, `at_once` of them at a time.
fn run(
    cases: &[usize],
    at_once: usize,
    change: impl FnOnce(&mut kvfs::mount::build::MountConfig),
) -> Outcome {
    let mut sorted: Vec<Case> = cases.iter().map(|number| Case::of(*number)).collect();
    sorted.sort_by_key(|case| case.number);
    let items: Vec<_> = sorted
        .iter()
        .map(|case| {
            let size = case.content(false).stored(case.encoding(false)).len();
            serde_json::json!({"key": case.key(), "size": size})
        })
        .collect();
    let keys = serde_json::json!({"data": {
        "items": items, "count": items.len(), "limit": 1000, "isTruncated": false,
        "exclusiveStartKey": null, "nextExclusiveStartKey": null,
    }})
    .to_string();
    let courses = Arc::new(Courses::default());
    let server = Adversary::start(move |request, wire| script(&courses, request, wire, &keys));
    let options = HttpOptions {
        attempt_timeout: Duration::from_secs(1),
        resume_timeout: Duration::from_secs(2),
        ..quick_retries()
    };
    let mount = MountedSession::at(&server.url(), options, |config| {
        config.deadline = DEADLINE;
        config.ttl = Some(Duration::from_secs(3600));
        change(config);
    });
    mount.works("ls -l > $BESIDE/listed");
    let program = mount.beside().join("reader.py");
    std::fs::write(&program, include_str!("reader.py")).expect("a program");
    let (next, read) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let wrong = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..at_once {
            scope.spawn(|| {
                let mut reader = Reader::start(&program);
                while let Some(case) = sorted.get(next.fetch_add(1, Ordering::SeqCst)) {
                    match check(*case, &mount, &mut reader) {
                        Ok(with_bytes) => {
                            read.fetch_add(usize::from(with_bytes), Ordering::SeqCst);
                        }
                        Err(reason) => {
                            let found = format!("{case:?}: {reason}");
                            wrong.lock().expect("no panic").push((case.number, found));
                        }
                    }
                }
            });
        }
    });
    Outcome {
        cases: sorted.len(),
        good: read.into_inner(),
        wrong: wrong.into_inner().expect("no panic"),
    }
}

fn chosen(seed: u64) -> Vec<usize> {
    let mut cases = pairs::all_pairs(&SIZES, seed);
    cases.extend(pairs::one_at_a_time(&SIZES));
    let numbers = cases.iter().map(|case| pairs::number_of(&SIZES, case));
    numbers
        .collect::<std::collections::BTreeSet<_>>()
        .into_iter()
        .collect()
}

#[test]
fn every_pair_of_wrongs_gives_one_version_or_an_error() {
    run(&chosen(1), AT_ONCE, |_| {}).end("bytes");
}

/// Nothing can be kept: what a reader has had must be proven when it goes back.
#[test]
fn every_pair_of_wrongs_gives_one_version_or_an_error_without_a_cache() {
    let without_cache = |config: &mut kvfs::mount::build::MountConfig| {
        config.disk_cache = None;
        config.memory_cache = kvfs::base::units::ByteSize(64 << 10);
    };
    run(&chosen(2), AT_ONCE, without_cache).end("bytes");
}

#[test]
fn every_combination_of_wrongs_gives_one_version_or_an_error() {
    if !support::long() {
        return;
    }
    let cases = support::share(SIZES.iter().product());
    let mut sum = Outcome::default();
    for chunk in cases.chunks(IN_ONE_MOUNT) {
        sum.add(run(chunk, AT_ONCE_LONG, |_| {}), |case| {
            run(&[case], 1, |_| {})
        });
        println!("{} of {}: {sum}", sum.cases, cases.len());
    }
    sum.end("bytes");
}
