//! The library's HTTP client, with what the library lacks: conditions of uploads in parts, and a
//! check of lists before they are used.

use std::io;
use std::sync::{Arc, OnceLock};

use async_trait::async_trait;
use object_store::azure::{AzureAuthorizer, AzureCredentialProvider};
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpService,
    ReqwestConnector,
};
use object_store::path::Path;
use object_store::{ClientOptions, HeaderValue, UpdateVersion};

tokio::task_local! {
    /// What must hold when an upload is completed.
    static CONDITION: Condition;
}

/// What must hold of an object that is about to be replaced.
#[derive(Clone, Debug)]
pub(super) enum Condition {
    /// There is none.
    Absent,
    /// It is still this version.
    Same(UpdateVersion),
}

/// Completes an upload in parts under a condition.
pub(super) async fn under<T>(
    condition: Option<Condition>,
    completing: impl Future<Output = T>,
) -> T {
    match condition {
        Some(condition) => CONDITION.scope(condition, completing).await,
        None => completing.await,
    }
}

/// Makes clients that do the above.
#[derive(Clone, Debug, Default)]
pub(super) struct Connector {
    /// Whether versions are Google's numbers.
    pub(super) google: bool,
    /// The signer of requests to Azure, which signs conditions, too.
    pub(super) azure: Arc<OnceLock<(AzureCredentialProvider, String)>>,
}

impl HttpConnector for Connector {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(Transport {
            client: ReqwestConnector::default().connect(options)?,
            connector: self.clone(),
        }))
    }
}

#[derive(Debug)]
struct Transport {
    client: HttpClient,
    connector: Connector,
}

#[async_trait]
impl HttpService for Transport {
    async fn call(&self, mut request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let query = request.uri().query().unwrap_or_default();
        let method = request.method().as_str();
        let completes = (method == "POST" && query.contains("uploadId="))
            || (method == "PUT" && query.contains("comp=blocklist"));
        let lists =
            method == "GET" && (query.contains("list-type=2") || query.contains("comp=list"));
        if completes && let Ok(condition) = CONDITION.try_with(Clone::clone) {
            self.connector.require(&mut request, condition).await?;
        }
        let response = self.client.execute(request).await?;
        if !lists || !response.status().is_success() {
            return Ok(response);
        }
        let (mut head, body) = response.into_parts();
        let listed = body.bytes().await?;
        let listed = list(&String::from_utf8_lossy(&listed))?;
        head.headers.remove("content-length");
        Ok(HttpResponse::from_parts(head, listed.into()))
    }
}

impl Connector {
    /// Adds a condition to a request. S3 and Google let headers be added to what is signed.
    async fn require(
        &self,
        request: &mut HttpRequest,
        condition: Condition,
    ) -> Result<(), HttpError> {
        let (name, value) = match (condition, self.google) {
            (Condition::Absent, false) => ("if-none-match", Some("*".to_owned())),
            (Condition::Absent, true) => ("x-goog-if-generation-match", Some("0".to_owned())),
            (Condition::Same(version), false) => ("if-match", version.e_tag),
            (Condition::Same(version), true) => ("x-goog-if-generation-match", version.version),
        };
        let value = value.and_then(|value| HeaderValue::from_str(&value).ok());
        let value =
            value.ok_or_else(|| error(HttpErrorKind::Unknown, "a version without a name"))?;
        request.headers_mut().insert(name, value);
        if let Some((credentials, account)) = self.azure.get()
            && request.headers().contains_key("authorization")
        {
            let unsigned = |error| HttpError::new(HttpErrorKind::Unknown, error);
            let credential = credentials.get_credential().await.map_err(unsigned)?;
            request.headers_mut().remove("authorization");
            let authorizer = AzureAuthorizer::new(&credential, account);
            authorizer.try_authorize(request).map_err(unsigned)?;
        }
        Ok(())
    }
}

/// Returns a list as it can be read: whole, and without objects that the library takes for errors.
fn list(text: &str) -> Result<String, HttpError> {
    let (root, entry, key) = if text.contains("<EnumerationResults") {
        ("</EnumerationResults>", "Blob", "Name")
    } else {
        ("</ListBucketResult>", "Contents", "Key")
    };
    if !text.trim_end().ends_with(root) {
        let is_list = text.contains(&root.replace("</", "<").replace('>', ""));
        let asks_less = text.contains("SlowDown") || text.contains("InternalError");
        // What was cut short or asks for it is asked for again.
        let kind = if is_list || asks_less {
            HttpErrorKind::Request
        } else {
            HttpErrorKind::Decode
        };
        let shown: String = text.chars().take(200).collect();
        return Err(error(
            kind,
            &format!("the answer is no list of objects: {shown}"),
        ));
    }
    let (open, close) = (format!("<{entry}>"), format!("</{entry}>"));
    let (named, name_ends) = (format!("<{key}>"), format!("</{key}>"));
    let mut kept = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, more)) = rest.split_once(&open) {
        kept.push_str(before);
        let Some((object, after)) = more.split_once(&close) else {
            break;
        };
        let name = object.split_once(&named).map_or("", |(_, name)| name);
        let name = name.split_once(&name_ends).map_or("", |(name, _)| name);
        if Path::parse(name).is_ok() {
            kept.extend([&open, object, &close]);
        }
        rest = after;
    }
    kept.push_str(rest);
    Ok(kept)
}

fn error(kind: HttpErrorKind, message: &str) -> HttpError {
    HttpError::new(kind, io::Error::other(message.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(text: &str) -> HttpErrorKind {
        list(text).expect_err("no list").kind()
    }

    #[test]
    fn only_whole_lists_are_believed() {
        let empty = "<?xml version=\"1.0\"?><ListBucketResult></ListBucketResult>\n";
        assert_eq!(list(empty).expect("a list"), empty);
        assert_eq!(kind("<html>hello</html>"), HttpErrorKind::Decode);
        assert_eq!(
            kind("<Error><Code>SlowDown</Code></Error>"),
            HttpErrorKind::Request
        );
        let cut = "<ListBucketResult><Contents><Key>a";
        assert_eq!(kind(cut), HttpErrorKind::Request);
    }

    #[test]
    fn objects_that_have_no_path_are_left_out_of_lists() {
        let object = |key: &str| format!("<Contents><Key>{key}</Key><Size>1</Size></Contents>");
        let whole = |objects: &[&str]| {
            let objects: String = objects.iter().map(|key| object(key)).collect();
            format!("<ListBucketResult>{objects}<KeyCount>3</KeyCount></ListBucketResult>")
        };
        let listed = list(&whole(&["p/a", "p//x", "p/b"])).expect("a list");
        assert_eq!(listed, whole(&["p/a", "p/b"]));
    }
}
