//! Certificates for tests: authorities, what they sign, and flags that name the files.
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType, ExtendedKeyUsagePurpose,
    IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SanType, SerialNumber,
};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use sternpost_server::tls::connect::{ClientConfig, ClientOptions};

const DAY: Duration = Duration::from_secs(24 * 3600);

/// Somebody who signs certificates, in a folder.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

/// What is to be signed.
#[derive(Clone)]
pub struct Wanted {
    /// Of the files.
    pub name: String,
    pub common_name: String,
    /// Names and addresses.
    pub hosts: Vec<String>,
    pub serial: u64,
    /// Days from now, the first and the one after the last.
    pub days: (i64, i64),
}

impl Wanted {
    /// For a process on this machine.
    pub fn local(name: &str, serial: u64) -> Self {
        let hosts = vec!["127.0.0.1".to_owned(), "localhost".to_owned()];
        Self { name: name.to_owned(), common_name: name.to_owned(), hosts, serial, days: (-1, 365) }
    }
}

/// A certificate and its key.
#[derive(Clone)]
pub struct Pair {
    pub cert: PathBuf,
    pub key: PathBuf,
}

#[expect(clippy::disallowed_methods, reason = "certificates are valid by the wall clock")]
fn day(number: i64) -> SystemTime {
    let now = SystemTime::now();
    let distance = DAY * u32::try_from(number.unsigned_abs()).unwrap();
    if number < 0 { now - distance } else { now + distance }
}

impl Authority {
    pub fn new(name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut parameters = CertificateParams::default();
        parameters.distinguished_name.push(DnType::CommonName, name);
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        parameters.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let pem = parameters.self_signed(&key).unwrap().pem();
        Self { issuer: Issuer::new(parameters, key), pem }
    }

    /// Its certificate as a file.
    pub fn bundle(&self, folder: &Path, others: &[&Authority]) -> PathBuf {
        let path = folder.join("ca.pem");
        let mut text = self.pem.clone();
        others.iter().for_each(|other| text += &other.pem);
        replace(&path, text.as_bytes());
        path
    }

    /// Signs, and writes `<name>.pem` and `<name>.key`.
    pub fn sign(&self, folder: &Path, wanted: &Wanted) -> Pair {
        let key = KeyPair::generate().unwrap();
        let mut parameters = CertificateParams::default();
        parameters.distinguished_name.push(DnType::CommonName, wanted.common_name.as_str());
        parameters.serial_number = Some(SerialNumber::from(wanted.serial));
        (parameters.not_before, parameters.not_after) =
            (day(wanted.days.0).into(), day(wanted.days.1).into());
        parameters.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        for host in &wanted.hosts {
            parameters.subject_alt_names.push(match host.parse::<IpAddr>() {
                Ok(address) => SanType::IpAddress(address),
                Err(_) => SanType::DnsName(host.as_str().try_into().unwrap()),
            });
        }
        let certificate = parameters.signed_by(&key, &self.issuer).unwrap();
        let pair = Pair {
            cert: folder.join(format!("{}.pem", wanted.name)),
            key: folder.join(format!("{}.key", wanted.name)),
        };
        replace(&pair.key, key.serialize_pem().as_bytes());
        replace(&pair.cert, certificate.pem().as_bytes());
        pair
    }

    /// A list of revoked serial numbers, in DER.
    pub fn revoke(&self, path: &Path, serials: &[u64]) {
        let revoked_certs = serials
            .iter()
            .map(|serial| RevokedCertParams {
                serial_number: SerialNumber::from(*serial),
                revocation_time: day(-1).into(),
                reason_code: None,
                invalidity_date: None,
            })
            .collect();
        let list = CertificateRevocationListParams {
            this_update: day(-1).into(),
            next_update: day(1).into(),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs,
            key_identifier_method: KeyIdMethod::Sha256,
        };
        replace(path, list.signed_by(&self.issuer).unwrap().der());
    }
}

/// Whole or not at all.
pub fn replace(path: &Path, bytes: &[u8]) {
    let new = path.with_extension("new");
    std::fs::write(&new, bytes).unwrap();
    std::fs::rename(&new, path).unwrap();
}

/// Flags for members.
pub fn peer_flags(pair: &Pair, ca: &Path) -> Vec<String> {
    vec![
        format!("--peer-cert-file={}", pair.cert.display()),
        format!("--peer-key-file={}", pair.key.display()),
        format!("--peer-trusted-ca-file={}", ca.display()),
        "--peer-client-cert-auth".to_owned(),
    ]
}

/// Flags for clients.
pub fn client_flags(pair: &Pair, ca: &Path) -> Vec<String> {
    vec![
        format!("--cert-file={}", pair.cert.display()),
        format!("--key-file={}", pair.key.display()),
        format!("--trusted-ca-file={}", ca.display()),
        "--client-cert-auth".to_owned(),
    ]
}

/// A client that presents this, and believes that CA.
pub fn client(pair: Option<&Pair>, ca: &Path) -> Arc<ClientConfig> {
    let identity = pair.map(|pair| (pair.cert.clone(), pair.key.clone()));
    ClientOptions { cacert: Some(ca.to_owned()), identity, ..ClientOptions::default() }.config().unwrap()
}
