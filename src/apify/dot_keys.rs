//! Requests about the records `.` and `..` other than gets, which [`super::direct`] sends.
//!
//! The URL standard takes the path segments `%2E` and `%2E%2E` for `.` and `..` and removes
//! them, so reqwest cannot send these addresses; hyper sends what it is given. Such records are
//! rare: what is uploaded is buffered, and proxies are not supported.

use std::fmt;
use std::sync::OnceLock;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::http::uri::Uri;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use reqwest::Method;
use reqwest::header::{CONTENT_LENGTH, HeaderMap, HeaderValue, USER_AGENT};

use super::body::HttpBody;
use super::connector::{Connector, LazyConnector};
use super::errors::{Failure, chain};
use super::transport::{self, Reply, Transport};
use super::upload::Outgoing;
use crate::base::clock::Deadline;
use crate::store::ErrorKind;

/// The largest that such a record may become, in bytes; no answer is longer either.
const MAX_LEN: usize = 64 << 20;

type HyperClient = Client<Connector, Full<Bytes>>;

/// A client that sends addresses as they are; set up when first needed.
#[derive(Default)]
pub struct DotKeyClient(OnceLock<HyperClient>);

impl DotKeyClient {
    /// Sends a request and reads its whole answer.
    ///
    /// # Errors
    /// As [`Transport::send`]; permanent when a body is too large.
    pub fn send(
        &self,
        transport: &Transport,
        method: &Method,
        uri: &str,
        headers: HeaderMap,
        upload: Option<&mut Outgoing<'_, '_>>,
        deadline: Deadline,
    ) -> Result<Reply, Failure> {
        let body = upload.map(buffer).transpose()?;
        let client = self.client(&transport.connector)?;
        let uri: Uri = uri
            .parse()
            .map_err(|_| Failure::permanent(ErrorKind::Protocol, "the address is not a URI"))?;
        let mut request = hyper::Request::new(Full::new(Bytes::new()));
        *request.method_mut() = method.clone();
        *request.uri_mut() = uri;
        *request.headers_mut() = headers;
        request
            .headers_mut()
            .insert(USER_AGENT, HeaderValue::from_static(transport::USER_AGENT));
        if let Some(bytes) = body {
            request
                .headers_mut()
                .insert(CONTENT_LENGTH, HeaderValue::from(bytes.len()));
            transport.metrics.sent_bytes.add(bytes.len() as u64);
            *request.body_mut() = Full::new(bytes);
        }
        let patience = transport.patience(Some(deadline));
        let silent = || transport::silence(patience);
        let response = transport
            .wait(patience, client.request(request))
            .ok_or_else(silent)?
            .map_err(|error| {
                transport::check_certificate(Failure {
                    not_done: error.is_connect(),
                    ..Failure::transient(
                        ErrorKind::Network,
                        format!("the server cannot be reached: {}", chain(&error)),
                    )
                })
            })?;
        let (parts, body) = response.into_parts();
        let patience = transport.patience(Some(deadline));
        let bytes = transport
            .wait(patience, Limited::new(body, MAX_LEN).collect())
            .ok_or_else(silent)?
            .map_err(|error| {
                if error.is::<http_body_util::LengthLimitError>() {
                    return too_large();
                }
                Failure::transient(
                    ErrorKind::Network,
                    format!("the answer broke off: {}", chain(&*error)),
                )
            })?
            .to_bytes();
        transport.metrics.received_bytes.add(bytes.len() as u64);
        Ok(Reply {
            status: parts.status.as_u16(),
            headers: parts.headers,
            body: HttpBody::buffered(bytes),
        })
    }

    fn client(&self, connector: &LazyConnector) -> Result<&HyperClient, Failure> {
        let connector = connector.get()?;
        Ok(self
            .0
            .get_or_init(|| Client::builder(TokioExecutor::new()).build(connector)))
    }
}

impl fmt::Debug for DotKeyClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DotKeyClient").finish_non_exhaustive()
    }
}

fn buffer(outgoing: &mut Outgoing<'_, '_>) -> Result<Bytes, Failure> {
    let (mut chunks, ..) = outgoing.start();
    let mut all = Vec::new();
    while let Some(chunk) = chunks.next_chunk().map_err(|error| {
        Failure::permanent(
            ErrorKind::Disk,
            format!("the bytes to upload cannot be read: {error}"),
        )
    })? {
        if all.len() + chunk.len() > MAX_LEN {
            return Err(too_large());
        }
        all.extend_from_slice(&chunk);
    }
    Ok(all.into())
}

fn too_large() -> Failure {
    Failure::permanent(
        ErrorKind::TooLarge,
        format!("records named . or .. may have at most {MAX_LEN} bytes"),
    )
}
