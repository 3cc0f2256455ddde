//! Makes connections: names, addresses, TLS.

use std::fmt;
use std::io;
use std::time::Duration;

use hyper::http::uri::Uri;
use hyper_rustls::{HttpsConnector, MaybeHttpsStream};
use hyper_util::client::legacy::connect::HttpConnector;
use parking_lot::Mutex;
use tower_service::Service;

use super::direct::connection::Connection;
use super::errors::Failure;
use crate::store::ErrorKind;

/// How long a connection is silent before the kernel asks whether the server is still there.
const KEEPALIVE: Duration = Duration::from_secs(15);

/// Makes connections to any server.
pub type Connector = HttpsConnector<HttpConnector>;

/// Why there is no connection.
pub type Error = Box<dyn std::error::Error + Send + Sync>;

/// Keeps the connector, once somebody has needed it.
pub struct LazyConnector {
    /// Held by who makes it, which reads the system's certificates: once is enough.
    made: Mutex<Option<Connector>>,
    timeout: Duration,
}

impl LazyConnector {
    /// Returns one that is not made yet, and will give each address so long.
    pub fn new(timeout: Duration) -> Self {
        Self {
            made: Mutex::new(None),
            timeout,
        }
    }

    /// Returns how long each address gets.
    pub fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Returns the connector, making it if need be.
    ///
    /// # Errors
    /// Permanent: the system has no certificates that could be trusted.
    pub fn get(&self) -> Result<Connector, Failure> {
        let mut made = self.made.lock();
        let connector = match made.take() {
            Some(connector) => connector,
            None => connector(self.timeout)?,
        };
        Ok(made.insert(connector).clone())
    }
}

impl fmt::Debug for LazyConnector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LazyConnector").finish_non_exhaustive()
    }
}

fn connector(timeout: Duration) -> Result<Connector, Failure> {
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_connect_timeout(Some(timeout));
    // A download that waits for its reader keeps its place in what lies between, and who has gone is
    // noticed (tcp(7)).
    tcp.set_keepalive(Some(KEEPALIVE));
    tcp.set_keepalive_interval(Some(KEEPALIVE));
    tcp.set_keepalive_retries(Some(3));
    tcp.set_tcp_user_timeout(Some(2 * KEEPALIVE));
    Ok(hyper_rustls::HttpsConnectorBuilder::new()
        .try_with_platform_verifier()
        .map_err(|error| {
            Failure::permanent(ErrorKind::Network, format!("TLS cannot start: {error}"))
        })?
        .https_or_http()
        .enable_http1()
        .wrap_connector(tcp))
}

/// Connects to the server of an address.
///
/// # Errors
/// There is none, it refuses, or its certificate is not trusted.
pub async fn connect(mut connector: Connector, uri: Uri) -> Result<Connection, Error> {
    std::future::poll_fn(|context| connector.poll_ready(context)).await?;
    Ok(match connector.call(uri).await? {
        MaybeHttpsStream::Http(stream) => Connection::plain(blocking(stream.into_inner())?),
        MaybeHttpsStream::Https(stream) => {
            let (stream, session) = stream.into_inner().into_inner();
            Connection::tls(session, blocking(stream.into_inner().into_inner())?)
        }
    })
}

/// Takes a socket out of the asynchronous world; it still does not block.
fn blocking(socket: tokio::net::TcpStream) -> io::Result<std::net::TcpStream> {
    socket.into_std()
}
