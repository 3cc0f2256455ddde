//! As much of S3 as kvfs asks, in memory: it counts, and answers some requests as it is told.

use std::collections::BTreeMap;
use std::sync::Arc;

use kvfs::bucket::{Bucket, Options};
use parking_lot::Mutex;
use percent_encoding::percent_decode_str;
use url::Url;

use super::scripted::{Answer, ScriptedServer, Seen};

/// What stands in for the answer to some requests.
type Fault = Box<dyn Fn(&Seen) -> Option<Answer> + Send>;

/// An object: its bytes, its version, and the headers that were stored with it.
struct Object {
    bytes: Vec<u8>,
    version: u64,
    headers: Vec<(String, String)>,
}

#[derive(Default)]
struct Contents {
    objects: BTreeMap<String, Object>,
    versions: u64,
    fault: Option<Fault>,
}

/// The storage.
pub struct FakeS3 {
    pub server: ScriptedServer,
    contents: Arc<Mutex<Contents>>,
}

impl FakeS3 {
    pub fn start() -> Self {
        let contents = Arc::new(Mutex::new(Contents::default()));
        let asked = contents.clone();
        let server = ScriptedServer::start(move |seen, _| {
            let mut contents = asked.lock();
            let fault = contents.fault.as_ref().and_then(|fault| fault(seen));
            fault.unwrap_or_else(|| contents.answer(seen))
        });
        Self { server, contents }
    }

    /// Answers so from here on where there is something to answer.
    pub fn answer_so(&self, fault: impl Fn(&Seen) -> Option<Answer> + Send + 'static) {
        self.contents.lock().fault = Some(Box::new(fault));
    }

    /// Answers as a storage does from here on.
    pub fn answer_well(&self) {
        self.contents.lock().fault = None;
    }

    /// Puts an object there.
    pub fn put(&self, name: &str, bytes: &[u8]) {
        let put = Seen {
            method: "PUT".into(),
            target: format!("/b/{name}"),
            headers: Vec::new(),
            body: bytes.into(),
        };
        self.contents.lock().answer(&put);
    }

    /// Returns the names of all objects that begin so.
    pub fn names(&self, begin: &str) -> Vec<String> {
        let contents = self.contents.lock();
        let names = contents.objects.keys();
        let names = names.filter(|name| name.starts_with(begin));
        names.cloned().collect()
    }

    /// Returns the variables by which it is found.
    pub fn variables(&self) -> Vec<(String, String)> {
        let url = self.server.url();
        let variables = [
            ("AWS_ENDPOINT_URL", url.trim_end_matches('/')),
            ("AWS_ACCESS_KEY_ID", "id"),
            ("AWS_SECRET_ACCESS_KEY", "key"),
            ("AWS_REGION", "us-east-1"),
        ];
        let owned = |(name, value): (&str, &str)| (name.to_owned(), value.to_owned());
        variables.into_iter().map(owned).collect()
    }

    /// Opens the bucket that there is.
    pub fn bucket(&self) -> Bucket {
        let options: Options = self.variables().into_iter().collect();
        let address = Url::parse("s3://b/p").expect("an address");
        Bucket::open(&address, &options).expect("a bucket")
    }
}

/// Returns an error as S3 puts it.
pub fn refusal(status: u16, code: &str) -> Answer {
    let body = format!("<Error><Code>{code}</Code><Message>Because of {code}</Message></Error>");
    Answer::new(status, body).header("content-type", "application/xml")
}

fn xml(body: impl Into<Vec<u8>>) -> Answer {
    Answer::new(200, body).header("content-type", "application/xml")
}

impl Contents {
    fn answer(&mut self, seen: &Seen) -> Answer {
        let name = seen.path().trim_start_matches("/b").trim_start_matches('/');
        let name = percent_decode_str(name).decode_utf8_lossy().into_owned();
        let query = seen
            .target
            .split_once('?')
            .map_or("", |(_, query)| query)
            .to_owned();
        let asks = |name: &str| {
            let mut pairs = url::form_urlencoded::parse(query.as_bytes());
            pairs.find_map(|(known, value)| (known == name).then(|| value.into_owned()))
        };
        match &*seen.method {
            "GET" if asks("list-type").is_some() => self.list(&asks),
            "POST" if asks("uploads").is_some() => xml(format!(
                "<InitiateMultipartUploadResult><Bucket>b</Bucket><Key>{name}</Key>\
                 <UploadId>upload</UploadId></InitiateMultipartUploadResult>"
            )),
            "PUT" if asks("partNumber").is_some() => {
                Answer::new(200, "").header("etag", "\"part\"")
            }
            "POST" if asks("uploadId").is_some() => xml(
                "<CompleteMultipartUploadResult><ETag>\"whole\"</ETag></CompleteMultipartUploadResult>",
            ),
            "DELETE" if asks("uploadId").is_some() => Answer::new(204, ""),
            "POST" => {
                let asked = String::from_utf8_lossy(&seen.body).into_owned();
                let mut deleted = String::new();
                for name in asked.split("<Key>").skip(1) {
                    let name = name.split("</Key>").next().unwrap_or_default();
                    self.objects.remove(name);
                    deleted += &format!("<Deleted><Key>{name}</Key></Deleted>");
                }
                xml(format!("<DeleteResult>{deleted}</DeleteResult>"))
            }
            "DELETE" => {
                self.objects.remove(&name);
                Answer::new(204, "")
            }
            "PUT" => self.store(name, seen),
            _ => match self.objects.get(&name) {
                None => refusal(404, "NoSuchKey"),
                Some(object) => {
                    let answer = Answer::new(200, object.bytes.clone())
                        .header("etag", &format!("\"{}\"", object.version))
                        .header("last-modified", "Thu, 01 Jan 2026 00:00:00 GMT");
                    let headers = object.headers.iter();
                    headers.fold(answer, |answer, (name, value)| answer.header(name, value))
                }
            },
        }
    }

    fn store(&mut self, name: String, seen: &Seen) -> Answer {
        let known = self.objects.get(&name).map(|object| object.version);
        let refused = match (seen.header("if-none-match"), seen.header("if-match")) {
            (Some(_), _) => known.is_some(),
            (_, Some(wanted)) => known.map(|known| format!("\"{known}\"")) != Some(wanted.into()),
            _ => false,
        };
        if refused {
            return refusal(412, "PreconditionFailed");
        }
        self.versions += 1;
        let kept = |name: &str| name == "content-type" || name.starts_with("x-amz-meta-");
        let object = Object {
            bytes: seen.body.clone(),
            version: self.versions,
            headers: seen
                .headers
                .iter()
                .filter(|(name, _)| kept(name))
                .cloned()
                .collect(),
        };
        self.objects.insert(name, object);
        Answer::new(200, "").header("etag", &format!("\"{}\"", self.versions))
    }

    fn list(&self, asks: &dyn Fn(&str) -> Option<String>) -> Answer {
        let prefix = asks("prefix").unwrap_or_default();
        let after = asks("continuation-token").or_else(|| asks("start-after"));
        let after = after.unwrap_or_default();
        let most = asks("max-keys").and_then(|most| most.parse().ok());
        let most = most.unwrap_or(1000).min(1000);
        let mut names = self
            .objects
            .range(after.clone()..)
            .filter(|(name, _)| **name != after && name.starts_with(&prefix));
        let mut page = String::new();
        let mut last = String::new();
        for (name, object) in names.by_ref().take(most) {
            page += &format!(
                "<Contents><Key>{name}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified>\
                 <ETag>\"{}\"</ETag><Size>{}</Size></Contents>",
                object.version,
                object.bytes.len()
            );
            last.clone_from(name);
        }
        let more = match names.next() {
            Some(_) => format!(
                "<IsTruncated>true</IsTruncated><NextContinuationToken>{last}</NextContinuationToken>"
            ),
            None => "<IsTruncated>false</IsTruncated>".to_owned(),
        };
        xml(format!(
            "<ListBucketResult><Name>b</Name><Prefix>{prefix}</Prefix>{more}{page}</ListBucketResult>"
        ))
    }
}
