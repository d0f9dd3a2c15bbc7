//! One side's TLS: its certificates, whom it trusts, and the settings of rustls for one connection.
//!
//! **Data.** A [`Side`] is what the flags of one side name, read and watched: certificate and key to present, another pair for connections that are made, CA
//! bundle, revocation list. Members and clients have one each.
//!
//! **Contract.** Whatever changes on disk counts for connections that begin afterwards ([`super::watched`]). No session is resumed: whoever
//! connects is verified, every time; members and etcd's clients keep their connections.
//!
//! **Does not know** sockets.
use super::pem::{self, Facts, Identity};
use super::suites;
use super::verify::{Presented, Roots, Rules, Trust, Verifier};
use super::watched::Watched;
use crate::config::tls::{TlsSettings, is_given};
use rustls::client::{ResolvesClientCert, Resumption};
use rustls::crypto::CryptoProvider;
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{
    ClientConfig, ConfigBuilder, ConfigSide, ServerConfig, SignatureScheme, SupportedProtocolVersion,
    WantsVerifier, WantsVersions,
};
use std::path::Path;
use std::sync::Arc;

/// See the module.
#[derive(Debug)]
pub struct Side {
    settings: TlsSettings,
    provider: Arc<CryptoProvider>,
    versions: Vec<&'static SupportedProtocolVersion>,
    /// None if there is none to present.
    identity: Option<Arc<Watched<Identity>>>,
    /// Of connections that are made.
    client_identity: Option<Arc<Watched<Identity>>>,
    trust: Arc<Trust>,
    rules: Arc<Rules>,
}

/// A certificate that is in use, for those who watch its age.
#[derive(Clone, Debug)]
pub struct InUse {
    /// The flag that named it.
    pub flag: &'static str,
    /// What it says.
    pub facts: Facts,
    /// Where it lies.
    pub path: String,
    /// It is one of a bundle of those who sign, not one that is presented.
    pub is_authority: bool,
}

impl Side {
    /// Reads what the flags name.
    ///
    /// # Errors
    /// One line for the user: Go's texts where it has one.
    pub fn open(settings: TlsSettings) -> Result<Arc<Self>, String> {
        let provider = Arc::new(suites::provider(&suites::choose(&settings.suites)?));
        let mut versions = Vec::new();
        if settings.has_tls13 {
            versions.push(&rustls::version::TLS13);
        }
        if settings.has_tls12 {
            versions.push(&rustls::version::TLS12);
        }
        let flags = settings.flags;
        let pair = |flag: &str, cert: &Path, key: &Path| {
            let provider = Arc::clone(&provider);
            let what = format!("the certificate of {flag}");
            let parse = move |files: &[Vec<u8>]| pem::identity(&files[0], &files[1], &provider);
            Watched::open(what, vec![cert.into(), key.into()], parse).map(Arc::new)
        };
        let mut identity = None;
        if settings.has_certificate() {
            identity = Some(pair(flags.cert, &settings.cert_file, &settings.key_file)?);
        }
        let mut client_identity = identity.clone();
        if is_given(&settings.client_cert_file) {
            client_identity =
                Some(pair(flags.client_cert, &settings.client_cert_file, &settings.client_key_file)?);
        }
        let trust = Arc::new(Self::trust(&settings, &provider)?);
        let mut revoked = None;
        if is_given(&settings.crl_file) {
            let what = format!("the revocation list of {}", flags.crl);
            let opened =
                Watched::open(what, vec![settings.crl_file.clone()], |files| pem::revocation_list(&files[0]));
            revoked = Some(opened.map_err(|error| format!("{} {error}", flags.crl))?);
        }
        let rules = Arc::new(Rules {
            revoked,
            allowed_cns: settings.allowed_cns.clone(),
            allowed_hostnames: settings.allowed_hostnames.clone(),
            server_name: None,
        });
        Ok(Arc::new(Self { settings, provider, versions, identity, client_identity, trust, rules }))
    }

    fn trust(settings: &TlsSettings, provider: &Arc<CryptoProvider>) -> Result<Trust, String> {
        if settings.self_signed.is_some() {
            return Ok(Trust::Everybody);
        }
        if !is_given(&settings.trusted_ca_file) {
            return Ok(match Roots::of_system(provider) {
                Ok(roots) => Trust::System(Arc::new(roots)),
                Err(why) => Trust::Nobody(format!("no {} is given, and {why}", settings.flags.ca)),
            });
        }
        let (flag, provider) = (settings.flags.ca, Arc::clone(provider));
        let parse = move |files: &[Vec<u8>]| Roots::new(pem::bundle(&files[0])?, &provider);
        let opened =
            Watched::open(format!("the CA bundle of {flag}"), vec![settings.trusted_ca_file.clone()], parse);
        // Go names the file that is not there, and nothing else.
        let name =
            |error: String| if error.starts_with("open ") { error } else { format!("{flag}: {error}") };
        Ok(Trust::File(opened.map_err(name)?))
    }

    /// What the flags said.
    pub fn settings(&self) -> &TlsSettings {
        &self.settings
    }

    /// The certificates of the CA bundle that a flag names.
    pub fn authorities(&self) -> Vec<InUse> {
        let Trust::File(roots) = &*self.trust else { return Vec::new() };
        let (flag, path) = (self.settings.flags.ca, roots.path().display().to_string());
        let facts = roots.current().facts();
        facts.into_iter().map(|facts| InUse { flag, facts, path: path.clone(), is_authority: true }).collect()
    }

    /// The certificates that this side presents.
    pub fn in_use(&self) -> Vec<InUse> {
        let flags = self.settings.flags;
        let mut found = Vec::new();
        let mut add = |flag, watched: &Watched<Identity>| {
            let path = watched.path().display().to_string();
            let facts = watched.current().facts.clone();
            found.push(InUse { flag, facts, path, is_authority: false });
        };
        if let Some(identity) = &self.identity {
            add(flags.cert, identity);
        }
        if is_given(&self.settings.client_cert_file)
            && let Some(identity) = &self.client_identity
        {
            add(flags.client_cert, identity);
        }
        found
    }

    /// What this side presents when it connects, for people.
    pub fn own(&self) -> Option<InUse> {
        self.in_use().pop()
    }

    fn verifier(&self) -> (Arc<Verifier>, Presented) {
        let presented = Presented::default();
        let (trust, rules) = (Arc::clone(&self.trust), Arc::clone(&self.rules));
        let provider = Arc::clone(&self.provider);
        (Arc::new(Verifier { trust, rules, provider, presented: Arc::clone(&presented) }), presented)
    }

    fn versions<S: ConfigSide>(
        &self,
        builder: ConfigBuilder<S, WantsVersions>,
    ) -> Result<ConfigBuilder<S, WantsVerifier>, String> {
        builder.with_protocol_versions(&self.versions).map_err(|error| error.to_string())
    }

    /// Settings for a connection that somebody made, and what he will present. `alpn` are the protocols that may be spoken in it.
    ///
    /// # Errors
    /// A sentence.
    pub fn accept(&self, alpn: &[&[u8]]) -> Result<(Arc<ServerConfig>, Presented), String> {
        let identity = self.identity.as_ref().ok_or("there is no certificate to present")?;
        let builder = self.versions(ServerConfig::builder_with_provider(Arc::clone(&self.provider)))?;
        let (verifier, presented) = self.verifier();
        let builder = match self.settings.asks_for_certificates() {
            true => builder.with_client_cert_verifier(verifier),
            false => builder.with_no_client_auth(),
        };
        let mut config = builder.with_cert_resolver(Arc::new(Presents(Arc::clone(identity))));
        config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok((Arc::new(config), presented))
    }

    /// Settings for a connection that this side makes, and what the other one will present.
    ///
    /// # Errors
    /// A sentence.
    pub fn connect(&self, alpn: &[&[u8]]) -> Result<(Arc<ClientConfig>, Presented), String> {
        let builder = self.versions(ClientConfig::builder_with_provider(Arc::clone(&self.provider)))?;
        let (verifier, presented) = self.verifier();
        let builder = builder.dangerous().with_custom_certificate_verifier(verifier);
        let mut config = match &self.client_identity {
            Some(identity) => builder.with_client_cert_resolver(Arc::new(Presents(Arc::clone(identity)))),
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
        config.resumption = Resumption::disabled();
        Ok((Arc::new(config), presented))
    }
}

/// Presents what is in the files at that moment, whatever name is asked for.
#[derive(Debug)]
struct Presents(Arc<Watched<Identity>>);

impl ResolvesServerCert for Presents {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0.current().key))
    }
}

impl ResolvesClientCert for Presents {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0.current().key))
    }

    fn has_certs(&self) -> bool {
        true
    }
}
