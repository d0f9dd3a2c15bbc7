//! TLS: rustls between sockets and what is spoken on them, for members and for clients, with etcd's flags and etcd's rules.
//!
//! **Reading order.** [`watched`]: files that change while the server runs; [`pem`]: what is in them; [`suites`]; [`verify`]: whether a certificate is good
//! enough; [`side`]: all of it for one side, and the settings of one connection; [`text`]: errors for people. Then who uses it: [`peer`] and [`san`] for the
//! transport between members, [`accept`] for clients, [`expiry`] for those who must renew certificates in time, [`self_signed`] for
//! those who have none, [`connect`] for programs that are clients. The flags are read in `config/tls.rs`.
//!
//! **Contract.** A file that is missing or does not fit ends the start, with Go's words, since people search for them; one that goes bad later is complained
//! about, and what was read before stays in use. No byte from a file or a socket panics. No session is resumed. What is not verified is said
//! in `docs/tls.md`, and why rustls over aws-lc-rs in `docs/decisions/0001-tls.md`.
//!
//! **Does not know** what is spoken inside, or who may do what.
pub mod accept;
pub mod connect;
pub mod expiry;
pub mod peer;
pub mod pem;
pub mod san;
pub mod self_signed;
pub mod side;
pub mod suites;
pub mod text;
pub mod verify;
pub mod watched;

use crate::config::Config;
use crate::config::tls::is_given;
use side::Side;
use std::sync::Arc;
use sternpost_replication::transport::Secure;

/// What a server has of TLS.
#[derive(Clone, Debug, Default)]
pub struct Tls {
    /// For connections of clients, if a URL asks for it.
    pub clients: Option<Arc<Side>>,
    /// For connections with members, if there is something to present or to verify with.
    pub peers: Option<Arc<Side>>,
}

impl Tls {
    /// Reads what the flags name, after making what is to be made. Blocks for files.
    ///
    /// # Errors
    /// One line for the user.
    pub fn open(config: &Config) -> Result<Self, String> {
        let (peer, client) = (&config.peer_tls, &config.client_tls);
        let urls = || config.listen_client_urls.iter().chain(&config.listen_client_http_urls);
        let is_served = urls().chain(&config.listen_metrics_urls).any(|url| url.scheme.is_secure());
        for wanted in [&peer.self_signed, &client.self_signed].into_iter().flatten() {
            self_signed::ensure(wanted)?;
        }
        let is_spoken = peer.has_certificate()
            || is_given(&peer.trusted_ca_file)
            || config.initial_cluster.iter().flat_map(|(_, urls)| urls).any(|url| url.scheme.is_secure());
        let peers = if is_spoken { Some(Side::open(peer.clone())?) } else { None };
        let clients = if is_served { Some(Side::open(client.clone())?) } else { None };
        for (side, what) in [(&peers, "peer"), (&clients, "client")] {
            if let Some(side) = side {
                tracing::info!(
                    cert = %side.settings().cert_file.display(),
                    key = %side.settings().key_file.display(),
                    trusted_ca = %side.settings().trusted_ca_file.display(),
                    crl_file = %side.settings().crl_file.display(),
                    client_cert_auth = side.settings().asks_for_certificates(),
                    "starting with {what} TLS"
                );
            }
        }
        Ok(Self { clients, peers })
    }

    /// The streams of the peer transport.
    pub fn secure(&self) -> Option<Arc<dyn Secure>> {
        self.peers.as_ref().map(|side| Arc::new(peer::PeerTls(Arc::clone(side))) as _)
    }

    /// Both sides that there are.
    pub fn sides(&self) -> Vec<Arc<Side>> {
        self.peers.iter().chain(&self.clients).map(Arc::clone).collect()
    }
}
