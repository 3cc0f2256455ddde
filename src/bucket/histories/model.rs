//! A storage that is asked step by step: each request waits until the explorer decides what
//! becomes of it.

use std::collections::BTreeMap;
use std::collections::hash_map::DefaultHasher;
use std::fmt;
use std::future::poll_fn;
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::task::Poll;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::{self, BoxStream};
use futures_util::{FutureExt, StreamExt};
use object_store::path::Path;
use object_store::{
    Attributes, CopyOptions, Error, GetOptions, GetResult, GetResultPayload, ListResult,
    MultipartUpload, ObjectMeta, ObjectStore, PutMode, PutMultipartOptions, PutOptions, PutPayload,
    PutResult, Result,
};
use parking_lot::Mutex;

use crate::bucket::objects::VERSION;

/// A request.
#[derive(Clone, Debug)]
pub(super) enum Call {
    Get(Path),
    Put(Path, Bytes, Attributes, PutMode),
    Delete(Path),
    List(Path),
}

impl Call {
    pub(super) fn writes(&self) -> bool {
        matches!(self, Self::Put(..) | Self::Delete(_))
    }

    pub(super) fn path(&self) -> &Path {
        match self {
            Self::Get(path) | Self::Put(path, ..) | Self::Delete(path) | Self::List(path) => path,
        }
    }

    pub(super) fn is_conditional(&self) -> bool {
        matches!(self, Self::Put(.., PutMode::Create | PutMode::Update(_)))
    }

    /// Returns what tells a write from others.
    pub(super) fn print(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        std::mem::discriminant(self).hash(&mut hasher);
        if let Self::Put(path, bytes, ..) = self {
            (path, content_of(bytes)).hash(&mut hasher);
        }
        hasher.finish()
    }
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Get(path) => write!(f, "GET {path}"),
            Self::Put(path, bytes, _, mode) => {
                let condition = match mode {
                    PutMode::Overwrite => String::new(),
                    PutMode::Create => " if absent".to_owned(),
                    PutMode::Update(seen) => {
                        format!(" if still {}", seen.e_tag.as_deref().unwrap_or_default())
                    }
                };
                let text = String::from_utf8_lossy(bytes);
                let text: String = text.split_whitespace().collect();
                write!(f, "PUT {path}{condition} {text}")
            }
            Self::Delete(path) => write!(f, "DELETE {path}"),
            Self::List(path) => write!(f, "LIST {path}"),
        }
    }
}

/// What is answered.
#[derive(Clone, Debug)]
pub(super) enum Reply {
    Object(Arc<Stored>),
    Done(u32),
    Listed(Vec<(Path, Arc<Stored>)>),
}

/// What becomes of a request.
#[derive(Clone, Debug)]
pub(super) enum Answer {
    Replied(Reply),
    /// There is no such object.
    Absent,
    /// The condition does not hold.
    Refused,
    /// Two writes met.
    Conflict,
    Unavailable,
}

impl Answer {
    /// Returns what the library makes of it.
    pub(super) fn result(&self, call: &Call) -> Result<Reply> {
        let path = call.path().to_string();
        match (self, call) {
            (Self::Replied(reply), _) => Ok(reply.clone()),
            (Self::Absent, _) => Err(Error::NotFound {
                path,
                source: "no such object".into(),
            }),
            (Self::Refused, Call::Put(.., PutMode::Create)) => Err(Error::AlreadyExists {
                path,
                source: "there is one".into(),
            }),
            (Self::Refused, _) => Err(Error::Precondition {
                path,
                source: "it is another one".into(),
            }),
            (Self::Conflict, _) => Err(Error::AlreadyExists {
                path,
                source: "ConditionalRequestConflict".into(),
            }),
            (Self::Unavailable, _) => Err(Error::Generic {
                store: "model",
                source: "503 Service Unavailable".into(),
            }),
        }
    }
}

/// An object.
#[derive(Clone, Debug)]
pub(super) struct Stored {
    pub(super) bytes: Bytes,
    pub(super) attributes: Attributes,
    /// Never the same twice for one path.
    pub(super) version: u32,
    /// What tells one content from another, and one write: times do not count.
    pub(super) content: u64,
    mark: u64,
}

/// The storage itself. Clones share what they hold until one of them is written to.
#[derive(Clone, Debug, Default)]
pub(super) struct Model(Arc<Held>);

#[derive(Clone, Debug, Default)]
struct Held {
    objects: BTreeMap<Path, Arc<Stored>>,
    versions: BTreeMap<Path, u32>,
    /// Of all of it.
    hash: u64,
}

impl Held {
    /// Adds an object to the hash of all, or takes it out.
    fn toggle(&mut self, path: &Path) {
        let stored = self.objects.get(path);
        let stored = stored.map(|stored| (stored.version, stored.content, stored.mark));
        let mut hasher = DefaultHasher::new();
        (path, stored, self.versions.get(path)).hash(&mut hasher);
        self.hash ^= hasher.finish();
    }
}

impl Model {
    pub(super) fn execute(&mut self, call: &Call) -> Answer {
        match call {
            Call::Get(path) => match self.objects().get(path) {
                Some(found) => Answer::Replied(Reply::Object(found.clone())),
                None => Answer::Absent,
            },
            Call::Put(path, bytes, attributes, mode) => {
                let known = self.objects().get(path).map(|known| tag(known.version));
                let refused = match mode {
                    PutMode::Overwrite => false,
                    PutMode::Create => known.is_some(),
                    PutMode::Update(wanted) => known.is_none() || known != wanted.e_tag,
                };
                if refused {
                    return Answer::Refused;
                }
                let held = Arc::make_mut(&mut self.0);
                held.toggle(path);
                let version = held.versions.entry(path.clone()).or_default();
                *version += 1;
                let version = *version;
                let mut mark = DefaultHasher::new();
                let value = attributes.get(&VERSION).map(AsRef::<str>::as_ref);
                value.hash(&mut mark);
                let stored = Stored {
                    bytes: bytes.clone(),
                    attributes: attributes.clone(),
                    version,
                    content: content_of(bytes),
                    mark: mark.finish(),
                };
                held.objects.insert(path.clone(), Arc::new(stored));
                held.toggle(path);
                Answer::Replied(Reply::Done(version))
            }
            Call::Delete(path) => {
                let held = Arc::make_mut(&mut self.0);
                held.toggle(path);
                held.objects.remove(path);
                held.toggle(path);
                Answer::Replied(Reply::Done(0))
            }
            Call::List(folder) => {
                let below = |path: &Path| {
                    path.prefix_match(folder)
                        .is_some_and(|mut rest| rest.next().is_some())
                };
                let objects = self.objects().iter().filter(|(path, _)| below(path));
                let owned = |(path, stored): (&Path, &Arc<Stored>)| (path.clone(), stored.clone());
                Answer::Replied(Reply::Listed(objects.map(owned).collect()))
            }
        }
    }

    /// Returns the JSON objects right below a folder.
    pub(super) fn json(&self, folder: &str) -> Vec<(String, serde_json::Value)> {
        let folder = Path::from(folder);
        let found = self.objects().iter().filter_map(|(path, stored)| {
            path.prefix_match(&folder)?.next()?;
            let value = serde_json::from_slice(&stored.bytes).ok()?;
            Some((path.filename()?.to_owned(), value))
        });
        found.collect()
    }

    pub(super) fn objects(&self) -> &BTreeMap<Path, Arc<Stored>> {
        &self.0.objects
    }

    /// Hashes what the storage holds, and what it has held.
    pub(super) fn hash(&self) -> u64 {
        self.0.hash
    }

    /// Returns what tells one content of the storage from another, however it got there.
    pub(super) fn content(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        for (path, stored) in self.objects() {
            (path, stored.content).hash(&mut hasher);
        }
        hasher.finish()
    }
}

/// Hashes an object's text but for the times in it.
fn content_of(bytes: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    for line in bytes.split(|byte| *byte == b'\n') {
        let text = std::str::from_utf8(line).unwrap_or_default();
        if !text.contains("_at\"") && !text.contains("\"at\"") {
            line.hash(&mut hasher);
        }
    }
    hasher.finish()
}

fn tag(version: u32) -> String {
    format!("\"{version}\"")
}

/// What one client's server has asked, and what it was answered.
#[derive(Debug, Default)]
pub(super) struct Slot {
    pub(super) call: Option<Call>,
    pub(super) answer: Option<Result<Reply>>,
}

/// The storage as one server sees it.
#[derive(Clone, Debug, Default)]
pub(super) struct Gate(pub(super) Arc<Mutex<Slot>>);

impl fmt::Display for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a gate")
    }
}

impl Gate {
    async fn ask(self, call: Call) -> Result<Reply> {
        self.0.lock().call = Some(call);
        poll_fn(move |_| match self.0.lock().answer.take() {
            Some(answer) => Poll::Ready(answer),
            None => Poll::Pending,
        })
        .await
    }
}

fn meta(path: &Path, stored: &Stored) -> ObjectMeta {
    ObjectMeta {
        location: path.clone(),
        last_modified: Default::default(),
        size: stored.bytes.len() as u64,
        e_tag: Some(tag(stored.version)),
        version: None,
    }
}

fn unasked<T>() -> Result<T> {
    Err(Error::NotSupported {
        source: "not a step of the protocol".into(),
    })
}

#[async_trait]
impl ObjectStore for Gate {
    async fn put_opts(
        &self,
        path: &Path,
        payload: PutPayload,
        options: PutOptions,
    ) -> Result<PutResult> {
        let call = Call::Put(
            path.clone(),
            payload.into(),
            options.attributes,
            options.mode,
        );
        match self.clone().ask(call).await? {
            Reply::Done(version) => Ok(PutResult {
                e_tag: Some(tag(version)),
                version: None,
                extensions: Default::default(),
            }),
            _ => unasked(),
        }
    }

    async fn put_multipart_opts(
        &self,
        _: &Path,
        _: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        unasked()
    }

    async fn get_opts(&self, path: &Path, _: GetOptions) -> Result<GetResult> {
        match self.clone().ask(Call::Get(path.clone())).await? {
            Reply::Object(stored) => Ok(GetResult {
                meta: meta(path, &stored),
                range: 0..stored.bytes.len() as u64,
                attributes: stored.attributes.clone(),
                payload: GetResultPayload::Stream(
                    stream::once(async move { Ok(stored.bytes.clone()) }).boxed(),
                ),
                extensions: Default::default(),
            }),
            _ => unasked(),
        }
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        let gate = self.clone();
        locations
            .then(move |path| {
                let gate = gate.clone();
                async move {
                    let path = path?;
                    gate.ask(Call::Delete(path.clone())).await?;
                    Ok(path)
                }
            })
            .boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let folder = prefix.cloned().unwrap_or_default();
        let asked = self.clone().ask(Call::List(folder));
        asked
            .map(|answer| match answer {
                Ok(Reply::Listed(found)) => {
                    let found = found.into_iter();
                    let found = found.map(|(path, stored)| Ok(meta(&path, &stored)));
                    stream::iter(found.collect::<Vec<_>>())
                }
                Ok(_) => stream::iter(vec![unasked()]),
                Err(error) => stream::iter(vec![Err(error)]),
            })
            .flatten_stream()
            .boxed()
    }

    async fn list_with_delimiter(&self, _: Option<&Path>) -> Result<ListResult> {
        unasked()
    }

    async fn copy_opts(&self, _: &Path, _: &Path, _: CopyOptions) -> Result<()> {
        unasked()
    }
}
