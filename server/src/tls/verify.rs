//! Whether the certificate of the other side is good enough: chain, revocation, names.
//!
//! **Contract.** The chain is webpki's to judge, at the time of the machine. Beyond it, in etcd's way: every certificate that is presented is looked for by its serial
//! number in the revocation list ([`Rules::check`]); the first one must have an allowed common name, or be valid for an allowed name.
//! A certificate that stands itself in the bundle is trusted without a chain, as Go does, if its validity and names are right.
//!
//! An authority's own certificate counts also when it has expired: to webpki it is a name and a key. (Go refuses it; [`super::expiry`] warns.)
//!
//! **Both directions.** Names are checked of those who connect and of those who are connected to, as in etcd; revocation too, where
//! etcd looks at those who connect alone.
//!
//! **Why a verifier for each connection**: what was presented is to be named in the log, and rustls hands it out only when it was accepted.
use super::pem::{self, Facts, Revoked};
use super::watched::Watched;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_name};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, RootCertStore,
    SignatureScheme,
};
use std::fmt;
use std::sync::{Arc, OnceLock};

/// What etcd says of a certificate whose names are not allowed.
const NOT_ALLOWED: &str = "client certificate authentication failed";

/// Those who sign certificates.
pub struct Roots {
    certificates: Vec<CertificateDer<'static>>,
    clients: Arc<dyn ClientCertVerifier>,
    servers: Arc<dyn ServerCertVerifier>,
}

impl Roots {
    /// Of certificates, at least one.
    ///
    /// # Errors
    /// A sentence.
    pub fn new(
        certificates: Vec<CertificateDer<'static>>,
        provider: &Arc<CryptoProvider>,
    ) -> Result<Self, String> {
        let mut store = RootCertStore::empty();
        for certificate in &certificates {
            store.add(certificate.clone()).map_err(|error| format!("x509: {error}"))?;
        }
        let store = Arc::new(store);
        let clients =
            WebPkiClientVerifier::builder_with_provider(Arc::clone(&store), Arc::clone(provider)).build();
        let servers = WebPkiServerVerifier::builder_with_provider(store, Arc::clone(provider)).build();
        Ok(Self {
            certificates,
            clients: clients.map_err(|error| error.to_string())?,
            servers: servers.map_err(|error| error.to_string())? as _,
        })
    }

    /// Those that the system trusts, as Go takes them where no CA is given.
    ///
    /// # Errors
    /// A sentence; there may be none.
    pub fn of_system(provider: &Arc<CryptoProvider>) -> Result<Self, String> {
        let mut found = rustls_native_certs::load_native_certs().certs;
        // What webpki cannot read is of no use, and no reason to do without the others.
        found.retain(|certificate| RootCertStore::empty().add(certificate.clone()).is_ok());
        if found.is_empty() {
            return Err("the system has no certificates of CAs".into());
        }
        Self::new(found, provider)
    }

    /// What the certificates say.
    pub fn facts(&self) -> Vec<Facts> {
        self.certificates.iter().filter_map(Facts::of).collect()
    }

    /// A certificate of the bundle itself is trusted, in its time.
    fn trusts_itself(&self, leaf: &CertificateDer<'_>, now: UnixTime) -> Option<Result<(), Error>> {
        self.certificates.iter().find(|root| root.as_ref() == leaf.as_ref())?;
        let Some(facts) = Facts::of(leaf) else { return Some(Err(refused("x509: malformed certificate"))) };
        let time =
            |second: i64| UnixTime::since_unix_epoch(std::time::Duration::from_secs(second.max(0) as u64));
        let (not_before, not_after) = (time(facts.valid.0), time(facts.valid.1));
        let wrong = if now < not_before {
            CertificateError::NotValidYetContext { time: now, not_before }
        } else if now > not_after {
            CertificateError::ExpiredContext { time: now, not_after }
        } else {
            return Some(Ok(()));
        };
        Some(Err(Error::InvalidCertificate(wrong)))
    }
}

/// Whose certificates count.
#[derive(Debug)]
pub enum Trust {
    /// Those of a file.
    File(Watched<Roots>),
    /// Those of the system.
    System(Arc<Roots>),
    /// Nobody's, for this reason: the system has none.
    Nobody(String),
    /// Everybody's: the other side is encrypted and not known. For certificates that servers sign themselves.
    Everybody,
}

impl fmt::Debug for Roots {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Roots({})", self.certificates.len())
    }
}

impl Trust {
    fn roots(&self) -> Result<Option<Arc<Roots>>, Error> {
        match self {
            Self::File(watched) => Ok(Some(watched.current())),
            Self::System(roots) => Ok(Some(Arc::clone(roots))),
            Self::Nobody(why) => Err(refused(why)),
            Self::Everybody => Ok(None),
        }
    }
}

/// What is asked beyond the chain.
#[derive(Debug, Default)]
pub struct Rules {
    /// Revoked certificates.
    pub revoked: Option<Watched<Revoked>>,
    /// Empty for any.
    pub allowed_cns: Vec<String>,
    /// Empty for any.
    pub allowed_hostnames: Vec<String>,
    /// What a server has to be instead of the name that it is reached by.
    pub server_name: Option<ServerName<'static>>,
}

impl Rules {
    fn check(&self, leaf: &CertificateDer<'_>, others: &[CertificateDer<'_>]) -> Result<(), Error> {
        if !self.allowed_cns.is_empty() {
            let name = Facts::of(leaf).map(|facts| facts.common_name);
            if !name.is_some_and(|name| self.allowed_cns.contains(&name)) {
                return Err(refused(NOT_ALLOWED));
            }
        }
        if !self.allowed_hostnames.is_empty() {
            let parsed = ParsedCertificate::try_from(leaf)?;
            let fits = |name: &String| {
                let name = ServerName::try_from(name.as_str());
                name.is_ok_and(|name| verify_server_name(&parsed, &name).is_ok())
            };
            if !self.allowed_hostnames.iter().any(fits) {
                return Err(refused(NOT_ALLOWED));
            }
        }
        if let Some(revoked) = &self.revoked {
            let revoked = revoked.current();
            for certificate in std::iter::once(leaf).chain(others) {
                if let Some(text) = pem::is_revoked(certificate, &revoked) {
                    return Err(refused(&text));
                }
            }
        }
        Ok(())
    }
}

/// What the other side of one connection presented, for people.
pub type Presented = Arc<OnceLock<Facts>>;

/// The verifier of one connection, of either direction.
#[derive(Debug)]
pub struct Verifier {
    /// Whose certificates count.
    pub trust: Arc<Trust>,
    /// And what else is asked.
    pub rules: Arc<Rules>,
    /// The cryptography.
    pub provider: Arc<CryptoProvider>,
    /// Filled with what the other side presents.
    pub presented: Presented,
}

impl Verifier {
    fn note(&self, leaf: &CertificateDer<'_>) {
        if let Some(facts) = Facts::of(leaf) {
            let _ = self.presented.set(facts);
        }
    }
}

impl ClientCertVerifier for Verifier {
    // No hints: whoever has a certificate shows it, also while a CA is being replaced.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.note(leaf);
        if let Some(roots) = self.trust.roots()? {
            match roots.trusts_itself(leaf, now) {
                Some(judged) => judged?,
                None => {
                    roots.clients.verify_client_cert(leaf, others, now)?;
                }
            }
        }
        self.rules.check(leaf, others)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.note(leaf);
        let name = self.rules.server_name.as_ref().unwrap_or(name);
        if let Some(roots) = self.trust.roots()? {
            match roots.trusts_itself(leaf, now) {
                Some(judged) => {
                    judged?;
                    verify_server_name(&ParsedCertificate::try_from(leaf)?, name)?;
                }
                None => {
                    roots.servers.verify_server_cert(leaf, others, name, ocsp, now)?;
                }
            }
            self.rules.check(leaf, others)?;
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        ClientCertVerifier::verify_tls12_signature(self, message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        ClientCertVerifier::verify_tls13_signature(self, message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        ClientCertVerifier::supported_verify_schemes(self)
    }
}

/// A refusal in words of our own; the other side hears `certificate_unknown`.
#[derive(Debug)]
struct Refused(String);

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Refused {}

fn refused(text: &str) -> Error {
    Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(Refused(text.to_owned())))))
}
