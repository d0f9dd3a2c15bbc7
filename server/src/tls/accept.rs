//! TLS of clients' connections: the handshake, bounded, on the runtime.
//!
//! **Contract.** [`ClientTls::accept`] takes a connection whose first byte is a TLS handshake's, and has a stream that speaks HTTP, or says in the log why not
//! (etcd's line, at most one a second and what it stands for). A client that is refused hears an alert: what it still sends is read for a moment,
//! since a close with unread bytes would take the alert away.
//!
//! **Bounds.** [`HANDSHAKE_MAX`] for one handshake, as in etcd. [`HANDSHAKES_MAX`] connections in one; one more ends the oldest, so that those who are silent
//! keep nobody out.
use super::san;
use super::side::Side;
use super::text::describe;
use super::verify::Presented;
use crate::auth::origin::CertificateName;
use crate::config::Url;
use rustls::pki_types::CertificateDer;
use std::collections::VecDeque;
use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::oneshot;
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use x509_parser::prelude::{FromDer, X509Certificate};

/// How long a handshake may take, etcd's.
pub const HANDSHAKE_MAX: Duration = Duration::from_secs(10);
/// Handshakes at a time.
const HANDSHAKES_MAX: usize = 1_024;
/// How long, and how much of, what a refused client sends is read.
const LINGER_MAX: Duration = Duration::from_secs(1);
const LINGER_BYTES_MAX: u64 = 64 << 10;
/// Between two lines about refused connections.
const SAY_INTERVAL: Duration = Duration::from_secs(1);

/// What may be spoken inside.
const ALPN: &[&[u8]] = &[b"h2", b"http/1.1"];

/// See the module.
#[derive(Debug)]
pub struct ClientTls {
    side: Arc<Side>,
    /// Clients come from an address of their certificate.
    checks_san: bool,
    /// Certificates name users.
    names_users: bool,
    under_way: Mutex<VecDeque<oneshot::Sender<()>>>,
    said: Mutex<Said>,
}

#[derive(Debug, Default)]
struct Said {
    last: Option<Instant>,
    unsaid_count: u64,
}

impl ClientTls {
    /// Of the certificates of `side`; with `names_users` those of clients, which `side` then verifies, say who they are.
    pub fn new(side: Arc<Side>, checks_san: bool, names_users: bool) -> Self {
        Self { side, checks_san, names_users, under_way: Mutex::default(), said: Mutex::default() }
    }

    /// The stream inside TLS; none if it did not come to that, which has been logged.
    pub async fn accept<S>(
        &self,
        stream: S,
        remote: &str,
        ip: Option<IpAddr>,
        url: &Url,
    ) -> Option<TlsStream<S>>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let pushed_out = self.enter();
        let handshake = async {
            let (error, refused) = match tokio::time::timeout(HANDSHAKE_MAX, self.shake(stream, ip)).await {
                Ok(Ok(stream)) => return Some(stream),
                Ok(Err(refused)) => refused,
                Err(_) => ("the TLS handshake takes too long".into(), None),
            };
            self.say(&error, remote, url);
            if let Some(stream) = refused {
                linger(stream).await;
            }
            None
        };
        tokio::select! {
            stream = handshake => stream,
            _ = pushed_out => {
                self.say("too many connections are in the TLS handshake; this one is the oldest", remote, url);
                None
            }
        }
    }

    /// The user that a client's certificate names, if they do: its common name as it is, the last one if there are several, as Go has it.
    pub fn user_of(&self, connection: &rustls::ServerConnection) -> Option<CertificateName> {
        let leaf = connection.peer_certificates().filter(|_| self.names_users)?.first()?;
        let (_, certificate) = X509Certificate::from_der(leaf).ok()?;
        let name = certificate.subject().iter_common_name().last().and_then(|name| name.as_str().ok());
        Some(CertificateName(name.unwrap_or_default().into()))
    }

    /// Takes a place among the handshakes; resolves when somebody else needs it.
    fn enter(&self) -> oneshot::Receiver<()> {
        let (push_out, pushed_out) = oneshot::channel();
        let mut under_way = self.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        under_way.retain(|other| !other.is_closed());
        if under_way.len() >= HANDSHAKES_MAX {
            under_way.pop_front();
        }
        under_way.push_back(push_out);
        pushed_out
    }

    /// The stream, or why not, with what is left of it if the client may still hear why.
    async fn shake<S>(&self, stream: S, ip: Option<IpAddr>) -> Result<TlsStream<S>, (String, Option<S>)>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (config, presented) = self.side.accept(ALPN).map_err(|error| (error, None))?;
        match TlsAcceptor::from(config).accept(stream).into_fallible().await {
            Ok(stream) => match (self.checks_san, ip, stream.get_ref().1.peer_certificates()) {
                (true, Some(ip), Some([leaf, ..])) => {
                    check_san(leaf.clone().into_owned(), ip).await.map_err(|error| (error, None))?;
                    Ok(stream)
                }
                _ => Ok(stream),
            },
            Err((error, stream)) => Err((self.text(&error, &presented), Some(stream))),
        }
    }

    fn text(&self, error: &io::Error, presented: &Presented) -> String {
        let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
        match inner {
            Some(inner) => describe(inner, presented.get(), &self.side),
            None if error.kind() == io::ErrorKind::UnexpectedEof => {
                "it closed the connection in the TLS handshake".into()
            }
            None => error.to_string(),
        }
    }

    /// etcd's line.
    pub fn say(&self, error: &str, remote: &str, url: &Url) {
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if said.last.is_some_and(|last| now - last < SAY_INTERVAL) {
            said.unsaid_count += 1;
            return;
        }
        said.last = Some(now);
        let unsaid = std::mem::take(&mut said.unsaid_count);
        drop(said);
        tracing::warn!(
            remote_addr = remote,
            url = %url,
            error,
            others_since_the_last_line = unsaid,
            "rejected connection on client endpoint"
        );
    }
}

async fn check_san(leaf: CertificateDer<'static>, ip: IpAddr) -> Result<(), String> {
    let checked = tokio::task::spawn_blocking(move || san::check(&leaf, ip)).await;
    checked.unwrap_or_else(|error| Err(error.to_string()))
}

async fn linger<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S) {
    let drain = async {
        let _ = stream.shutdown().await;
        let mut dropped = tokio::io::sink();
        let _ = tokio::io::copy(&mut (&mut stream).take(LINGER_BYTES_MAX), &mut dropped).await;
    };
    let _ = tokio::time::timeout(LINGER_MAX, drain).await;
}
