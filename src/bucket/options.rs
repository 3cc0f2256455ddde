//! Opens a bucket from an address and the providers' usual variables.

use std::fmt::Write;
use std::sync::Arc;
use std::time::Duration;

use object_store::aws::AmazonS3Builder;
use object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::list::PaginatedListStore;
use object_store::path::Path;
use object_store::{BackoffConfig, ObjectStore, ObjectStoreScheme, RetryConfig};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use url::Url;

use super::errors::{chain, shown};
use super::transport::Connector;
use super::{Bucket, Scope};
use crate::base::in_use;
use crate::base::proxies::Proxies;
use crate::base::redact::{Secret, bare};
use crate::store::{ErrorKind, Result, StoreError};

/// What the names of the providers' variables begin with.
pub const VARIABLES: [&str; 3] = ["AWS_", "GOOGLE_", "AZURE_"];

/// How long the storage may be silent within an answer.
const SILENCE: &str = "30 seconds";

/// The longest that a whole transfer may take. What is large takes long; silence ends it earlier.
const TRANSFER: &str = "24 hours";

/// The variables that say where a storage is.
const ENDPOINTS: [&str; 6] = [
    "aws_endpoint",
    "aws_endpoint_url",
    "aws_endpoint_url_s3",
    "azure_endpoint",
    "azure_storage_endpoint",
    "google_base_url",
];

/// Parts of names of variables with values that are secret or change often.
const SECRETS: [&str; 5] = ["secret", "token", "password", "service_account_key", "sas"];

/// How a bucket is reached: the providers' variables, by name, in lower case.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Options(Vec<(String, Secret)>);

impl FromIterator<(String, String)> for Options {
    fn from_iter<T: IntoIterator<Item = (String, String)>>(variables: T) -> Self {
        let variables = variables
            .into_iter()
            .map(|(name, value)| (name.to_ascii_lowercase(), Secret::new(value)));
        let mut variables: Vec<_> = variables.collect();
        variables.sort_by(|a, b| a.0.cmp(&b.0));
        Self(variables)
    }
}

impl Options {
    /// Returns the values that grant access.
    pub fn secrets(&self) -> impl Iterator<Item = Secret> {
        self.0
            .iter()
            .filter(|(name, _)| {
                SECRETS.iter().any(|part| name.contains(part)) || name.ends_with("_key")
            })
            .map(|(_, value)| value.clone())
    }

    /// Whether the configured endpoint is not encrypted, as with servers on this machine.
    fn plain(&self) -> bool {
        self.0.iter().any(|(name, value)| {
            ENDPOINTS.contains(&&**name) && value.expose().to_ascii_lowercase().starts_with("http:")
        })
    }

    fn scope(&self, address: &Url) -> Scope {
        let is_account = |name: &str| {
            name == "aws_access_key_id" || !SECRETS.iter().any(|secret| name.contains(secret))
        };
        Scope {
            bucket: self.hash(address, |name| ENDPOINTS.contains(&name)),
            account: self.hash(address, is_account),
        }
    }

    /// Returns a name for an address and the variables that count.
    fn hash(&self, address: &Url, counts: impl Fn(&str) -> bool) -> Arc<str> {
        let mut hash = Sha256::new();
        hash.update(address.as_str());
        for (name, value) in &self.0 {
            if counts(name) {
                hash.update(format!("\0{name}={}", value.expose()));
            }
        }
        let digest = hash.finalize();
        let mut scope = String::from("bucket:");
        for byte in &digest[..16] {
            // Writing into a String cannot fail.
            let _ = write!(scope, "{byte:02x}");
        }
        scope.into()
    }
}

/// How often a request is repeated that the storage could not do, and for how long.
const RETRIES: (usize, Duration) = (4, Duration::from_secs(30));

/// A storage, twice: as it keeps objects, and as it lists them page by page.
type Opened = (Arc<dyn ObjectStore>, Arc<dyn PaginatedListStore>);

/// Makes a storage by one of the library's builders.
macro_rules! opened {
    ($builder:ty, $address:expr, $options:expr, $connector:expr) => {{
        let builder = $options.fold(
            <$builder>::new().with_url($address.to_string()),
            |builder, (name, value)| match name.parse() {
                Ok(known) => builder.with_config(known, value),
                Err(_) => builder,
            },
        );
        builder
            .with_retry(retries())
            .with_http_connector($connector)
    }};
}

fn retries() -> RetryConfig {
    RetryConfig {
        backoff: BackoffConfig {
            max_backoff: Duration::from_secs(5),
            ..BackoffConfig::default()
        },
        max_retries: RETRIES.0,
        retry_timeout: RETRIES.1,
    }
}

impl Bucket {
    /// Opens the bucket at an address such as `s3://bucket/prefix`. Makes no request.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] for an address or options that make no sense.
    pub fn open(address: &Url, options: &Options) -> Result<Self> {
        options
            .secrets()
            .for_each(|secret| in_use::keep_out(&secret));
        // An error only says that there is a provider already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let unusable = |hint: &str| {
            let message = format!("{} is not a bucket that can be used", bare(address));
            StoreError::new(ErrorKind::Unsupported, message).with_hint(hint)
        };
        // Their lists are in no order.
        if address
            .host_str()
            .is_some_and(|bucket| bucket.ends_with("--x-s3"))
        {
            return Err(unusable(
                "directory buckets of S3 Express list in no order; use a general purpose bucket",
            ));
        }
        let ((store, pages), root) = Self::reach(address, options).map_err(|error| {
            unusable(
                "the variables AWS_…, GOOGLE_… or AZURE_… tell of endpoint, region and credentials",
            )
            .with_source(shown(&chain(&error)))
        })?;
        let azure = address.scheme() == "az";
        Self::with(store, Some(pages), azure, root, options.scope(address))
    }

    fn reach(address: &Url, options: &Options) -> object_store::Result<(Opened, Path)> {
        let plain = options.plain().then_some(("allow_http", "true"));
        let scheme = if options.plain() { "http" } else { "https" };
        let proxies = Proxies::given();
        let proxy = proxies.and_then(|given| given.of(scheme));
        let excluded = proxy.and(proxies.and_then(Proxies::excluded));
        let proxy = proxy.map(|proxy| ("proxy_url", proxy.expose()));
        let excluded = excluded.map(|hosts| ("proxy_excludes", hosts));
        let given = options
            .0
            .iter()
            .map(|(name, value)| (name.as_str(), value.expose()));
        let all = [("timeout", TRANSFER), ("read_timeout", SILENCE)].into_iter();
        let all = all.chain(plain).chain(proxy).chain(excluded).chain(given);
        let (scheme, root) = ObjectStoreScheme::parse(address)?;
        let mut connector = Connector::default();
        let opened: Opened = match scheme {
            ObjectStoreScheme::GoogleCloudStorage => {
                connector.google = true;
                let store = opened!(GoogleCloudStorageBuilder, address, all, connector).build()?;
                let store = Arc::new(store);
                (store.clone(), store)
            }
            ObjectStoreScheme::MicrosoftAzure => {
                let signs = connector.azure.clone();
                let builder = opened!(MicrosoftAzureBuilder, address, all, connector);
                let account = builder.get_config_value(&AzureConfigKey::AccountName);
                let store = Arc::new(builder.build()?);
                // Set once, here.
                let _ = signs.set((store.credentials().clone(), account.unwrap_or_default()));
                (store.clone(), store)
            }
            _ => {
                let store = Arc::new(opened!(AmazonS3Builder, address, all, connector).build()?);
                (store.clone(), store)
            }
        };
        Ok((opened, root))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(variables: &[(&str, &str)]) -> Options {
        let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        variables.iter().map(owned).collect()
    }

    fn address(text: &str) -> Url {
        Url::parse(text).expect("a URL")
    }

    #[test]
    fn buckets_of_all_providers_open_with_their_usual_variables() {
        let key = r#"{"type":"service_account","private_key":"-","private_key_id":"-",
            "client_email":"a@example.com","disable_oauth":true,"gcs_base_url":"http://127.0.0.1:9"}"#;
        for (text, variables) in [
            (
                "s3://bucket/a/b",
                &[
                    ("AWS_ACCESS_KEY_ID", "id"),
                    ("AWS_SECRET_ACCESS_KEY", "key"),
                    ("AWS_REGION", "eu-central-1"),
                    ("AWS_ENDPOINT_URL", "http://127.0.0.1:9"),
                    ("AWS_UNKNOWN", "x"),
                ][..],
            ),
            ("gs://bucket/a/b", &[("GOOGLE_SERVICE_ACCOUNT_KEY", key)]),
            (
                "az://container/a/b",
                &[
                    ("AZURE_STORAGE_ACCOUNT_NAME", "account"),
                    ("AZURE_STORAGE_ACCOUNT_KEY", "a2V5"),
                    ("AZURE_ENDPOINT", "http://127.0.0.1:9"),
                ],
            ),
        ] {
            let bucket = Bucket::open(&address(text), &options(variables)).expect(text);
            assert_eq!(bucket.objects.root.as_ref(), "a/b", "{text}");
            assert!(!format!("{bucket:?}").contains("key"), "{bucket:?}");
        }
        let error = Bucket::open(&address("az://container"), &Options::default());
        let error = error.expect_err("an account is missing");
        assert!(
            error.hint().is_some_and(|hint| hint.contains("AZURE_")),
            "{error}"
        );
    }

    #[test]
    fn cache_scopes_differ_by_bucket_and_account_and_hold_no_secret() {
        let scope = |text: &str, variables: &[(&str, &str)]| {
            options(variables).scope(&address(text)).account
        };
        let mine = [("AWS_ACCESS_KEY_ID", "a"), ("AWS_SECRET_ACCESS_KEY", "s")];
        let first = scope("s3://b/p", &mine);
        let others = [
            scope("s3://b/q", &mine),
            scope("s3://b/p", &[("AWS_ACCESS_KEY_ID", "b")]),
            scope(
                "s3://b/p",
                &[("AWS_ACCESS_KEY_ID", "a"), ("AWS_ENDPOINT", "http://h")],
            ),
        ];
        for other in others {
            assert_ne!(first, other);
        }
        // A token that is renewed leaves the cache warm.
        let renewed = [("AWS_ACCESS_KEY_ID", "a"), ("AWS_SESSION_TOKEN", "t")];
        assert_eq!(first, scope("s3://b/p", &renewed));
    }

    #[test]
    fn an_endpoint_that_cannot_be_used_is_not_shown_with_its_secrets() {
        for endpoint in ["http://user:s3cret@h:x/", "http://user:s3cret@/?key=s3cret"] {
            let options = options(&[
                ("AZURE_STORAGE_ACCOUNT_NAME", "account"),
                ("AZURE_ENDPOINT", endpoint),
            ]);
            let error = Bucket::open(&address("az://container"), &options);
            let error = error.expect_err("it is no address");
            assert!(!format!("{error:?}").contains("s3cret"), "{error:?}");
        }
    }

    #[test]
    fn endpoints_without_encryption_are_those_that_say_so() {
        assert!(options(&[("AWS_ENDPOINT_URL", "http://h")]).plain());
        assert!(options(&[("GOOGLE_BASE_URL", "http://h")]).plain());
        assert!(!options(&[("AWS_ENDPOINT_URL", "https://h")]).plain());
    }
}
