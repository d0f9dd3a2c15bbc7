//! Certificates that a server signs itself, for `--auto-tls` and `--peer-auto-tls`: the wire is encrypted, and nobody knows with whom.
//!
//! **Contract.** Made once, in `fixtures/client` and `fixtures/peer` of the data directory as etcd does, and used for as long as they are there. What is
//! made is not renewed: when it has expired, whoever verifies nothing does not mind.
//!
//! **Layout.** `cert.pem` and `key.pem`, the key readable by its owner alone; each appears under its name when it is whole, the key first.
//! Subject and extensions are etcd's; so is the curve, P-521.
use crate::config::tls::SelfSigned;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P521_SHA512, SanType, SerialNumber,
};
use std::fs::{DirBuilder, OpenOptions};
use std::io::Write;
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, SystemTime};

/// Makes the certificate, if it is not there.
///
/// # Errors
/// One line for the user.
pub fn ensure(wanted: &SelfSigned) -> Result<(), String> {
    let (certificate, key) = (wanted.folder.join("cert.pem"), wanted.folder.join("key.pem"));
    if certificate.exists() && key.exists() {
        return Ok(());
    }
    let (certificate_pem, key_pem, until) =
        sign(wanted).map_err(|error| format!("cannot generate a certificate: {error}"))?;
    tracing::warn!(not_after = until, "automatically generate certificates");
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&wanted.folder)
        .map_err(|error| format!("cannot make {}: {error}", wanted.folder.display()))?;
    write(&key, &key_pem, 0o600)?;
    write(&certificate, &certificate_pem, 0o644)?;
    tracing::info!(path = %certificate.display(), "created cert file");
    tracing::info!(path = %key.display(), "created key file");
    Ok(())
}

#[expect(clippy::disallowed_methods, reason = "certificates are valid by the wall clock")]
fn sign(wanted: &SelfSigned) -> Result<(String, String, String), rcgen::Error> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P521_SHA512)?;
    let mut parameters = CertificateParams::default();
    let mut name = DistinguishedName::new();
    name.push(DnType::OrganizationName, "etcd");
    parameters.distinguished_name = name;
    let mut serial = rustls_random()?;
    // Positive and of 16 bytes.
    serial[0] = serial[0] & 0x7f | 0x40;
    parameters.serial_number = Some(SerialNumber::from_slice(&serial));
    let days = wanted.years.min(1_000).saturating_mul(365);
    let now = SystemTime::now();
    parameters.not_before = now.into();
    parameters.not_after = (now + Duration::from_secs(days * 24 * 3600)).into();
    parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    parameters.key_usages =
        vec![KeyUsagePurpose::KeyEncipherment, KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::CrlSign];
    parameters.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    for host in &wanted.hosts {
        let name = match host.parse::<IpAddr>() {
            Ok(address) => SanType::IpAddress(address),
            Err(_) => SanType::DnsName(host.as_str().try_into()?),
        };
        if !parameters.subject_alt_names.contains(&name) {
            parameters.subject_alt_names.push(name);
        }
    }
    let until = parameters.not_after.to_string();
    let certificate = parameters.self_signed(&key)?;
    Ok((certificate.pem(), key.serialize_pem(), until))
}

fn rustls_random() -> Result<[u8; 16], rcgen::Error> {
    let mut bytes = [0; 16];
    rustls::crypto::aws_lc_rs::default_provider()
        .secure_random
        .fill(&mut bytes)
        .map_err(|_| rcgen::Error::RingUnspecified)?;
    Ok(bytes)
}

fn write(path: &Path, text: &str, mode: u32) -> Result<(), String> {
    let whole = path.with_extension("new");
    let written = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(mode)
        .open(&whole)
        .and_then(|mut file| file.write_all(text.as_bytes()).and_then(|()| file.sync_all()))
        .and_then(|()| std::fs::rename(&whole, path));
    written.map_err(|error| format!("cannot write {}: {error}", path.display()))
}
