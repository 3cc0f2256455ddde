//! The arguments of `kvfs serve`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use url::Url;

use super::values::{
    account, api_url, listen_address, positive_duration, positive_number, positive_size, user_name,
};
use crate::base::units::{ByteSize, parse_duration};
use crate::server::{FaultRule, Platform, RunEntry};

/// The arguments of `kvfs serve`.
#[derive(Debug, Args)]
pub struct ServeArgs {
    /// The folder, in the layout that Crawlee and the Apify SDKs use, made if it is missing; or a
    /// bucket: s3://BUCKET/PREFIX, gs://BUCKET/PREFIX, az://CONTAINER/PREFIX
    ///
    /// Endpoint, region and credentials of a bucket come from the variables of the provider's own
    /// tools: AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL, GOOGLE_APPLICATION_CREDENTIALS,
    /// AZURE_STORAGE_ACCOUNT_NAME, ... Any number of servers can share a bucket; give them one token.
    #[arg(default_value = "./storage")]
    pub dir: PathBuf,
    /// The address to listen on; one open to other machines needs a token of your own
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8010", value_parser = listen_address)]
    pub listen: SocketAddr,
    /// Read the token that clients must send from this file
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// Let everyone read the stores without a token
    #[arg(long)]
    pub public: bool,
    /// Refuse everything that changes a store
    #[arg(long)]
    pub read_only: bool,
    /// Serve a bucket although its storage ignores conditions on writes; nothing else may write to
    /// it
    ///
    /// Servers that share a bucket rely on its storage to refuse a write when another came first;
    /// without the flag, a storage that does not is refused at the start. A single server keeps the
    /// order by itself.
    #[arg(long, conflicts_with = "read_only")]
    pub single_server: bool,
    /// The address in links to stores and records, for a server behind a proxy
    #[arg(long, value_name = "URL", value_parser = api_url)]
    pub public_url: Option<Url>,
    /// The name of the server's own account, as in NAME~STORE
    #[arg(long, value_name = "NAME", default_value = "local", value_parser = user_name)]
    pub username: String,
    /// Add an account with stores of its own; its token is in the file. May be repeated
    #[arg(long = "user", value_name = "NAME:TOKEN-FILE", value_parser = account)]
    pub users: Vec<(String, PathBuf)>,
    /// Offer a run with the default store STORE: ID=STORE, optionally with ,actor=NAME ,task=NAME
    /// ,status=STATUS ,origin=ORIGIN, actor and task by id or name. May be repeated
    #[arg(long = "run", value_name = "RUN")]
    pub runs: Vec<RunEntry>,
    /// Offer the runs in this file, one a line as for --run; # begins a comment
    #[arg(long, value_name = "FILE")]
    pub runs_file: Option<PathBuf>,
    /// Accept records of at most this size
    #[arg(long, value_name = "SIZE", value_parser = positive_size, help_heading = "Limits")]
    pub max_record: Option<ByteSize>,
    /// Serve at most this many connections at once; more have to wait
    #[arg(
        long,
        value_name = "NUMBER",
        default_value_t = 1000,
        value_parser = positive_number,
        help_heading = "Limits"
    )]
    pub max_connections: usize,
    /// Hang up on clients that are silent for this long
    #[arg(long, value_name = "TIME", default_value = "2m", value_parser = positive_duration, help_heading = "Limits")]
    pub idle_timeout: Duration,
    /// After Ctrl-C, let uploads and downloads under way finish for at most this long; 0 cuts them
    /// off
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = parse_duration, help_heading = "Limits")]
    pub grace: Duration,
    /// Answer as the Apify platform does, and no kinder: records without ETag, Last-Modified and
    /// ranges
    ///
    /// It also copies the platform's other habits: JSON indented and from 1 kB on compressed, weak
    /// ETags on objects and pages, limits named in each answer, conditions on records ignored, and
    /// modifiedAt that shows writes some seconds later. Settings, separated by commas: lag=TIME is how
    /// much later (7s); clock=writes, nothing, reads or back is what modifiedAt follows; rested=TIME
    /// makes stores look as if they had last changed that long ago; 304=no never answers 304;
    /// limits=yes enforces the limits: 200 requests a second for records and keys, 60 for the store.
    #[arg(
        long,
        value_name = "SETTINGS",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "",
        help_heading = "For tests and rehearsals"
    )]
    pub platform: Option<Platform>,
    /// Wait before each answer
    #[arg(long, value_name = "TIME", value_parser = parse_duration, help_heading = "For tests and rehearsals")]
    pub latency: Option<Duration>,
    /// Move at most this many bytes a second, over all connections
    #[arg(long, value_name = "SIZE", value_parser = positive_size, help_heading = "For tests and rehearsals")]
    pub bandwidth: Option<ByteSize>,
    /// Answer 429 beyond this many requests a second for each store
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..), help_heading = "For tests and rehearsals")]
    pub rate_limit: Option<u32>,
    /// Make answers fail, for example status=503,method=GET,key=img-*,probability=0.2
    ///
    /// A rule is an action and conditions, separated by commas. Actions: status=CODE answers with
    /// this error; delay=TIME answers later; reset drops the connection without doing anything;
    /// lose carries the request out and then drops the connection; stall[=TIME] pauses in the
    /// middle of the body, for ever if no time is given; truncate[=BYTES] breaks off after that
    /// many bytes, else in the middle; corrupt[=BYTE] falsifies one byte. Conditions:
    /// method=METHOD, or LIST for lists of keys; key=PATTERN with * and ?; probability=0..1 with
    /// seed=NUMBER, the same seed giving the same faults; skip=NUMBER lets the first requests pass;
    /// count=NUMBER is the most that go wrong. May be repeated: the first rule that applies counts.
    #[arg(
        long = "fault",
        value_name = "RULE",
        help_heading = "For tests and rehearsals"
    )]
    pub faults: Vec<FaultRule>,
}
