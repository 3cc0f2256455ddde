//! Certificates made up for a test, a relay that speaks TLS in front of a server that does not, and
//! a proxy that notes whom it is asked for.

use std::path::Path;
use std::sync::Arc;

use parking_lot::Mutex;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::task::AbortHandle;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;

/// The longest head of a request to the proxy, in bytes.
const MAX_HEAD: usize = 16 << 10;

/// Somebody who signs certificates.
pub struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    /// Returns one that nobody knows.
    pub fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        Self(CertifiedIssuer::self_signed(params, key).expect("a certificate"))
    }

    /// Writes what makes programs trust it.
    pub fn write(&self, path: &Path) {
        std::fs::write(path, self.0.pem()).expect("a file");
    }

    /// Returns what a server of these names or addresses needs.
    pub fn server(&self, names: &[&str]) -> Arc<ServerConfig> {
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        let key = KeyPair::generate().expect("a key");
        let certificate = CertificateParams::new(names)
            .and_then(|params| params.signed_by(&key, &self.0))
            .expect("a certificate");
        let private = PrivateKeyDer::try_from(key.serialize_der()).expect("a key");
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .and_then(|builder| {
                builder
                    .with_no_client_auth()
                    .with_single_cert(vec![certificate.der().clone()], private)
            });
        Arc::new(config.expect("a server"))
    }
}

/// Passes on to another server what comes in over TLS; ends when dropped.
pub struct TlsRelay {
    runtime: Option<Runtime>,
    port: u16,
    config: Arc<Mutex<Arc<ServerConfig>>>,
    connections: Arc<Mutex<Vec<AbortHandle>>>,
}

impl TlsRelay {
    /// Starts a relay to the port `to` of this machine.
    pub fn start(to: u16, config: Arc<ServerConfig>) -> Self {
        let runtime = runtime();
        let listener = runtime.block_on(TcpListener::bind("0.0.0.0:0"));
        let listener = listener.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let config = Arc::new(Mutex::new(config));
        let connections = Arc::<Mutex<Vec<AbortHandle>>>::default();
        let (current, all) = (Arc::clone(&config), Arc::clone(&connections));
        runtime.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let mut all = all.lock();
                let acceptor = TlsAcceptor::from(Arc::clone(&current.lock()));
                let task = tokio::spawn(async move {
                    // Whoever does not trust it hangs up.
                    let mut stream = acceptor.accept(stream).await?;
                    let mut server = TcpStream::connect(("127.0.0.1", to)).await?;
                    copy_bidirectional(&mut stream, &mut server).await
                });
                all.push(task.abort_handle());
            }
        });
        Self {
            runtime: Some(runtime),
            port,
            config,
            connections,
        }
    }

    /// Returns the relay's port, on every address of this machine.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Shows another certificate from now on; who is connected has to connect again.
    pub fn show(&self, config: Arc<ServerConfig>) {
        let mut connections = self.connections.lock();
        *self.config.lock() = config;
        for connection in connections.drain(..) {
            connection.abort();
        }
    }
}

impl Drop for TlsRelay {
    fn drop(&mut self) {
        end(&mut self.runtime);
    }
}

/// A proxy that reaches one server, whatever it is asked for; ends when dropped.
pub struct Proxy {
    runtime: Option<Runtime>,
    port: u16,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Proxy {
    /// Starts a proxy to the port `to` of this machine.
    pub fn start(to: u16) -> Self {
        let runtime = runtime();
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0"));
        let listener = listener.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let asked = Arc::<Mutex<Vec<String>>>::default();
        let noted = Arc::clone(&asked);
        runtime.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(relay(stream, to, Arc::clone(&noted)));
            }
        });
        Self {
            runtime: Some(runtime),
            port,
            asked,
        }
    }

    /// Returns the proxy's address.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Returns the first line of each request so far: `CONNECT host:port HTTP/1.1`.
    pub fn asked(&self) -> Vec<String> {
        self.asked.lock().clone()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        end(&mut self.runtime);
    }
}

async fn relay(
    mut stream: TcpStream,
    to: u16,
    asked: Arc<Mutex<Vec<String>>>,
) -> std::io::Result<()> {
    let mut head = Vec::new();
    while !head.windows(4).any(|end| end == b"\r\n\r\n") && head.len() < MAX_HEAD {
        if stream.read_buf(&mut head).await? == 0 {
            return Ok(());
        }
    }
    let text = String::from_utf8_lossy(&head);
    let line = text.lines().next().unwrap_or_default().to_owned();
    let is_tunnel = line.starts_with("CONNECT ");
    asked.lock().push(line);
    let mut server = TcpStream::connect(("127.0.0.1", to)).await?;
    if is_tunnel {
        stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await?;
    } else {
        server.write_all(&head).await?;
    }
    copy_bidirectional(&mut stream, &mut server).await.map(drop)
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .expect("a thread")
}

fn end(runtime: &mut Option<Runtime>) {
    if let Some(runtime) = runtime.take() {
        runtime.shutdown_background();
    }
}
