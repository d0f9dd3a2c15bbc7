//! Files of keys and certificates into what rustls uses, with Go's words for what is wrong.
//!
//! **Contract.** Functions over bytes; nothing here panics on any. A certificate of X.509 version 1 is refused: rustls knows none, Go takes them.
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::{PemObject, SectionKind};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use x509_parser::prelude::{CertificateRevocationList, FromDer, X509Certificate, X509Version};

/// What a person is told of a certificate.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Facts {
    /// Common name, empty if it has none.
    pub common_name: String,
    /// In hexadecimal.
    pub serial: String,
    /// First and last second of its validity, since 1970.
    pub valid: (i64, i64),
    /// The last one, for people.
    pub valid_until: String,
}

impl Facts {
    /// Of a certificate; none if it cannot be read.
    pub fn of(certificate: &CertificateDer<'_>) -> Option<Self> {
        let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
        let validity = certificate.validity();
        let name = certificate.subject().iter_common_name().next();
        Some(Self {
            // The first, as Go's parser has it; client text, so without control characters.
            common_name: name.and_then(|name| name.as_str().ok()).map(printable).unwrap_or_default(),
            serial: hex(certificate.raw_serial()),
            valid: (validity.not_before.timestamp(), validity.not_after.timestamp()),
            valid_until: validity.not_after.to_string(),
        })
    }
}

impl fmt::Display for Facts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { common_name, serial, valid_until, .. } = self;
        write!(f, "CN={common_name:?}, serial {serial}, valid until {valid_until}")
    }
}

fn printable(text: &str) -> String {
    text.chars().filter(|character| !character.is_control()).take(200).collect()
}

/// As Go prints bytes with `%x`; at most 64 of them, which is more than a serial number has.
fn hex(bytes: &[u8]) -> String {
    significant(bytes).iter().take(64).map(|byte| format!("{byte:02x}")).collect()
}

/// A serial number without leading zeros, as Go compares them.
fn significant(serial: &[u8]) -> &[u8] {
    let zeros = serial.iter().take_while(|byte| **byte == 0).count();
    &serial[zeros..]
}

/// A certificate with its key and what is between it and its CA.
#[derive(Debug)]
pub struct Identity {
    /// As rustls presents it.
    pub key: Arc<CertifiedKey>,
    /// Of the certificate itself.
    pub facts: Facts,
}

type Sections = Vec<(SectionKind, Vec<u8>)>;

fn sections(pem: &[u8]) -> Sections {
    // Go's decoder skips what is no block, and so does this.
    <(SectionKind, Vec<u8>) as PemObject>::pem_slice_iter(pem).filter_map(Result::ok).collect()
}

fn is_key(kind: SectionKind) -> bool {
    matches!(kind, SectionKind::PrivateKey | SectionKind::RsaPrivateKey | SectionKind::EcPrivateKey)
}

/// A certificate file and a key file.
///
/// # Errors
/// Go's texts, as `tls.X509KeyPair` has them, where it has one.
pub fn identity(certificate: &[u8], key: &[u8], provider: &CryptoProvider) -> Result<Identity, String> {
    let found = sections(certificate);
    let chain: Vec<CertificateDer<'static>> = found
        .iter()
        .filter(|(kind, _)| *kind == SectionKind::Certificate)
        .map(|(_, der)| CertificateDer::from(der.clone()))
        .collect();
    let Some(leaf) = chain.first() else {
        return Err(match found.first() {
            None => "tls: failed to find any PEM data in certificate input".into(),
            Some((kind, _)) if found.len() == 1 && is_key(*kind) => {
                "tls: failed to find certificate PEM data in certificate input, but did find a private key; PEM inputs may \
                 have been switched"
                    .into()
            }
            Some(_) => "tls: failed to find \"CERTIFICATE\" PEM block in certificate input".to_owned(),
        });
    };
    check_version(leaf)?;
    let facts = Facts::of(leaf).ok_or("x509: malformed certificate")?;
    let found = sections(key);
    let Some((kind, der)) = found.into_iter().fold(None, |first, section| match first {
        Some(first) => Some(first),
        None if is_key(section.0) => Some(section),
        None => None,
    }) else {
        return Err(match sections(key).first() {
            None => "tls: failed to find any PEM data in key input",
            Some((SectionKind::Certificate, _)) => {
                "tls: found a certificate rather than a key in the PEM for the private key"
            }
            Some(_) => "tls: failed to find PEM block with type ending in \"PRIVATE KEY\" in key input",
        }
        .into());
    };
    let key = match kind {
        SectionKind::PrivateKey => PrivateKeyDer::Pkcs8(der.into()),
        SectionKind::RsaPrivateKey => PrivateKeyDer::Pkcs1(der.into()),
        _ => PrivateKeyDer::Sec1(der.into()),
    };
    let signer = provider
        .key_provider
        .load_private_key(key)
        .map_err(|_| "tls: failed to parse private key".to_owned())?;
    let key = CertifiedKey::new(chain, signer);
    match key.keys_match() {
        Ok(()) | Err(rustls::Error::InconsistentKeys(rustls::InconsistentKeys::Unknown)) => {}
        Err(rustls::Error::InconsistentKeys(_)) => {
            return Err("tls: private key does not match public key".into());
        }
        Err(error) => return Err(format!("x509: {error}")),
    }
    Ok(Identity { key: Arc::new(key), facts })
}

fn check_version(certificate: &CertificateDer<'_>) -> Result<(), String> {
    let (_, parsed) = X509Certificate::from_der(certificate)
        .map_err(|error| format!("x509: malformed certificate: {error}"))?;
    if parsed.version() != X509Version::V3 {
        return Err(format!(
            "the certificate with serial {} is of X.509 version {}, which this server's TLS does not know; make it one of version 3",
            hex(parsed.raw_serial()),
            parsed.version().0 + 1
        ));
    }
    Ok(())
}

/// The certificates of a bundle, each of which can be read.
///
/// # Errors
/// A sentence; an empty bundle is one (etcd takes it, and refuses everybody).
pub fn bundle(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let mut certificates = Vec::new();
    for (_, der) in sections(pem).into_iter().filter(|(kind, _)| *kind == SectionKind::Certificate) {
        let certificate = CertificateDer::from(der);
        X509Certificate::from_der(&certificate)
            .map_err(|error| format!("x509: malformed certificate: {error}"))?;
        certificates.push(certificate);
    }
    if certificates.is_empty() {
        return Err("there is no certificate in it".into());
    }
    Ok(certificates)
}

/// Serial numbers of revoked certificates, as [`is_revoked`] looks them up.
pub type Revoked = BTreeSet<Vec<u8>>;

/// A revocation list, DER as etcd reads it. Its signature and its age are not judged, as in etcd.
///
/// # Errors
/// A sentence.
pub fn revocation_list(der: &[u8]) -> Result<Revoked, String> {
    if der.starts_with(b"-----BEGIN") {
        return Err("x509: malformed crl: it is PEM, and must be DER (openssl crl -outform DER)".into());
    }
    let (_, list) =
        CertificateRevocationList::from_der(der).map_err(|error| format!("x509: malformed crl: {error}"))?;
    Ok(list.iter_revoked_certificates().map(|revoked| significant(revoked.raw_serial()).to_vec()).collect())
}

/// The text, etcd's, if a certificate is revoked or cannot be read.
pub fn is_revoked(certificate: &CertificateDer<'_>, revoked: &Revoked) -> Option<String> {
    let Ok((_, parsed)) = X509Certificate::from_der(certificate) else {
        return Some("x509: malformed certificate".into());
    };
    let serial = significant(parsed.raw_serial());
    revoked.contains(serial).then(|| format!("transport: certificate serial {} revoked", hex(serial)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, KeyPair};

    fn provider() -> CryptoProvider {
        rustls::crypto::aws_lc_rs::default_provider()
    }

    /// Of some name, with its key.
    fn signed() -> (String, String, Vec<u8>) {
        let key = KeyPair::generate().unwrap();
        let mut parameters = CertificateParams::new(vec!["a.b".into()]).unwrap();
        parameters.distinguished_name.push(rcgen::DnType::CommonName, "somebody\n");
        parameters.serial_number = Some(rcgen::SerialNumber::from_slice(&[0x0a, 0xff]));
        let certificate = parameters.self_signed(&key).unwrap();
        (certificate.pem(), key.serialize_pem(), certificate.der().to_vec())
    }

    #[test]
    fn a_pair_is_read_with_what_surrounds_it() {
        let (certificate, key, _) = signed();
        let found =
            identity(format!("Bag Attributes\n{certificate}").as_bytes(), key.as_bytes(), &provider())
                .unwrap();
        assert_eq!((found.facts.common_name.as_str(), found.facts.serial.as_str()), ("somebody", "0aff"));
        // The key may lie in the file of the certificate, and the other way round.
        let both = format!("{key}{certificate}");
        identity(both.as_bytes(), both.as_bytes(), &provider()).unwrap();
        assert_eq!(bundle(both.as_bytes()).unwrap().len(), 1);
        assert_eq!(bundle(key.as_bytes()).unwrap_err(), "there is no certificate in it");
        assert!(revocation_list(b"-----BEGIN X509 CRL-----").unwrap_err().contains("must be DER"));
    }

    /// Whatever a file holds, it is refused or read.
    #[test]
    fn no_damage_panics() {
        let (certificate, key, der) = signed();
        let mut rng = sternpost_engine::base::rng::Rng::new(7);
        let mut damage = |bytes: &[u8]| {
            let mut bytes = bytes.to_vec();
            for _ in 0..1 + rng.below(3) {
                let place = rng.below(bytes.len() as u64) as usize;
                match rng.below(3) {
                    0 => bytes[place] = rng.below(256) as u8,
                    1 => bytes.truncate(place.max(1)),
                    _ => drop(bytes.remove(place.min(bytes.len() - 1))),
                }
                if bytes.len() < 2 {
                    bytes.extend([1, 2]);
                }
            }
            bytes
        };
        for _ in 0..3_000 {
            let _ = identity(&damage(certificate.as_bytes()), &damage(key.as_bytes()), &provider());
            let _ = bundle(&damage(certificate.as_bytes()));
            let damaged = damage(&der);
            let _ = revocation_list(&damaged);
            let damaged = CertificateDer::from(damaged);
            let _ = (Facts::of(&damaged), is_revoked(&damaged, &Revoked::new()));
        }
    }
}
