//! TLS for programs that are clients of a server, with the flags of etcdctl.
//!
//! **Contract.** [`ClientOptions::config`] is what rustls needs; [`connector`] makes connections by it for tonic's channels, which need no TLS of their own then.
//! As with etcdctl, a server is verified against `--cacert`, else against what the system trusts; `--insecure-skip-tls-verify` verifies nothing.
use super::pem;
use super::suites::{self, Chosen};
use super::verify::{Presented, Roots, Rules, Trust, Verifier};
use hyper_util::rt::TokioIo;
pub use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::transport::{Channel, Endpoint, Uri};

/// What a client is told about TLS.
#[derive(Clone, Debug, Default)]
pub struct ClientOptions {
    /// CA bundle that the server's certificate is verified against.
    pub cacert: Option<PathBuf>,
    /// Certificate to present, and its key: both or none.
    pub identity: Option<(PathBuf, PathBuf)>,
    /// Verify nothing of the server.
    pub skips_verification: bool,
    /// What servers are verified to be, if not the name that they are reached by.
    pub server_name: Option<String>,
}

impl ClientOptions {
    /// Reads the files.
    ///
    /// # Errors
    /// One line for the user.
    pub fn config(&self) -> Result<Arc<ClientConfig>, String> {
        let provider = Arc::new(suites::provider(&Chosen::default()));
        let trust = match &self.cacert {
            _ if self.skips_verification => Trust::Everybody,
            Some(path) => {
                let certificates =
                    pem::bundle(&read(path)?).map_err(|error| format!("{}: {error}", path.display()))?;
                Trust::System(Arc::new(Roots::new(certificates, &provider)?))
            }
            None => match Roots::of_system(&provider) {
                Ok(roots) => Trust::System(Arc::new(roots)),
                Err(why) => Trust::Nobody(why),
            },
        };
        let server_name = self.server_name.clone().map(|name| {
            ServerName::try_from(name.clone())
                .map_err(|error| format!("{name:?} is no name of a server: {error}"))
        });
        let verifier = Verifier {
            trust: Arc::new(trust),
            rules: Arc::new(Rules { server_name: server_name.transpose()?, ..Rules::default() }),
            provider: Arc::clone(&provider),
            presented: Presented::default(),
        };
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier));
        let mut config = match &self.identity {
            None => builder.with_no_client_auth(),
            Some((certificate, key)) => {
                let identity = pem::identity(&read(certificate)?, &read(key)?, &provider)?;
                builder
                    .with_client_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(identity.key)))
            }
        };
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Arc::new(config))
    }
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    std::fs::read(path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => format!("open {}: no such file or directory", path.display()),
        _ => format!("open {}: {error}", path.display()),
    })
}

/// Connects to `host:port` and shakes hands.
///
/// # Errors
/// Those of the connection, and what is wrong with either side's certificate.
pub async fn connect(config: Arc<ClientConfig>, host: &str, port: u16) -> io::Result<TlsStream<TcpStream>> {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
    let socket = TcpStream::connect((host, port)).await?;
    socket.set_nodelay(true)?;
    TlsConnector::from(config).connect(name, socket).await
}

type Connecting = Pin<Box<dyn Future<Output = io::Result<TokioIo<TlsStream<TcpStream>>>> + Send>>;

/// A channel that connects now, by TLS to the address of its endpoint, whose URL is one of `https`.
///
/// # Errors
/// Those of connecting.
pub async fn channel(
    endpoint: Endpoint,
    config: Arc<ClientConfig>,
) -> Result<Channel, tonic::transport::Error> {
    endpoint.connect_with_connector(connector(config)).await
}

/// The same, at its first call.
pub fn lazy_channel(endpoint: Endpoint, config: Arc<ClientConfig>) -> Channel {
    endpoint.connect_with_connector_lazy(connector(config))
}

fn connector(
    config: Arc<ClientConfig>,
) -> impl tower::Service<Uri, Response = TokioIo<TlsStream<TcpStream>>, Error = io::Error, Future = Connecting>
+ Send
+ 'static {
    tower::service_fn(move |uri: Uri| {
        let config = Arc::clone(&config);
        Box::pin(async move {
            let host = uri.host().unwrap_or_default();
            let port = uri.port_u16().unwrap_or(443);
            connect(config, host, port).await.map(TokioIo::new)
        }) as Connecting
    })
}
