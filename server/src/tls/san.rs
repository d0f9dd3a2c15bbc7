//! Whether somebody who connects does so from an address that its certificate names.
//!
//! **Rule**, etcd's (`checkCertSAN`): a certificate without names and addresses is good for any; else the remote address must be one of its
//! addresses, or what the resolver knows as one of its names: the name of the address (which may match `*.domain`), or an address of a name.
//!
//! **Bounds.** Lookups can hang as long as the system's resolver does: they have a thread of their own and [`LOOKUP_MAX`]; what is not found by then is
//! refused. A thread that hangs ends by itself.
use rustls::pki_types::CertificateDer;
use std::net::{IpAddr, ToSocketAddrs};
use std::sync::mpsc;
use std::time::Duration;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

/// See the module.
const LOOKUP_MAX: Duration = Duration::from_secs(3);
/// Names of a certificate that are looked up; more is nobody's certificate.
const NAMES_MAX: usize = 64;

/// Checks the certificate of somebody at `remote`; may block for [`LOOKUP_MAX`].
///
/// # Errors
/// etcd's text.
pub fn check(certificate: &CertificateDer<'_>, remote: IpAddr) -> Result<(), String> {
    let remote = remote.to_canonical();
    let (names, addresses) = alternatives(certificate)?;
    if addresses.contains(&remote) || (names.is_empty() && addresses.is_empty()) {
        return Ok(());
    }
    if names.is_empty() {
        let listed = addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        return Err(format!("x509: certificate is valid for {listed}, not {remote}"));
    }
    let looked_for = names.clone();
    let (answer, answered) = mpsc::channel();
    let started = std::thread::Builder::new().name("resolve".into()).spawn(move || {
        let _ = answer.send(is_one_of(remote, &looked_for));
    });
    let found = match started {
        Ok(_) => {
            answered.recv_timeout(LOOKUP_MAX).unwrap_or_else(|_| Err("the lookup takes too long".into()))
        }
        Err(error) => Err(error.to_string()),
    };
    match found {
        Ok(true) => Ok(()),
        other => {
            let names = names.iter().map(|name| format!("{name:?}")).collect::<Vec<_>>().join(" ");
            let why = other.err().map(|why| format!(" ({why})")).unwrap_or_default();
            Err(format!("tls: \"{remote}\" does not match any of DNSNames [{names}]{why}"))
        }
    }
}

/// The names and addresses of a certificate.
fn alternatives(certificate: &CertificateDer<'_>) -> Result<(Vec<String>, Vec<IpAddr>), String> {
    let (_, parsed) = X509Certificate::from_der(certificate).map_err(|_| "x509: malformed certificate")?;
    let found = parsed.subject_alternative_name().map_err(|_| "x509: malformed certificate")?;
    let (mut names, mut addresses) = (Vec::new(), Vec::new());
    for name in found.iter().flat_map(|extension| &extension.value.general_names) {
        match name {
            GeneralName::DNSName(name) if names.len() < NAMES_MAX => names.push((*name).to_owned()),
            GeneralName::IPAddress(bytes) => {
                let v4 = <[u8; 4]>::try_from(*bytes).map(IpAddr::from);
                addresses.extend(v4.or_else(|_| <[u8; 16]>::try_from(*bytes).map(IpAddr::from)));
            }
            _ => {}
        }
    }
    Ok((names, addresses))
}

fn is_one_of(remote: IpAddr, names: &[String]) -> Result<bool, String> {
    let reverse = dns_lookup::lookup_addr(&remote).map_err(|error| error.to_string());
    if let Ok(name) = &reverse {
        let name = name.trim_end_matches('.');
        let matches = |pattern: &String| match pattern.strip_prefix('*') {
            Some(suffix) if suffix.starts_with('.') => name.ends_with(suffix),
            _ => name == pattern,
        };
        if names.iter().any(matches) {
            return Ok(true);
        }
    }
    let mut last = reverse.err();
    for name in names.iter().filter(|name| !name.starts_with("*.")) {
        match (name.as_str(), 0).to_socket_addrs() {
            Ok(mut found) => {
                if found.any(|found| found.ip().to_canonical() == remote) {
                    return Ok(true);
                }
            }
            Err(error) => last = Some(error.to_string()),
        }
    }
    last.map_or(Ok(false), Err)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, KeyPair, SanType};

    fn certificate(hosts: &[&str]) -> CertificateDer<'static> {
        let mut parameters = CertificateParams::default();
        for host in hosts {
            parameters.subject_alt_names.push(match host.parse::<IpAddr>() {
                Ok(address) => SanType::IpAddress(address),
                Err(_) => SanType::DnsName((*host).try_into().unwrap()),
            });
        }
        parameters.self_signed(&KeyPair::generate().unwrap()).unwrap().der().clone()
    }

    fn judge(hosts: &[&str], remote: &str) -> Result<(), String> {
        check(&certificate(hosts), remote.parse().unwrap())
    }

    #[test]
    fn an_address_must_be_named_or_be_that_of_a_name() {
        judge(&[], "10.0.0.1").unwrap();
        judge(&["10.0.0.1", "::1"], "10.0.0.1").unwrap();
        judge(&["10.0.0.1", "::1"], "::1").unwrap();
        judge(&["10.0.0.1"], "::ffff:10.0.0.1").unwrap();
        assert_eq!(
            judge(&["10.0.0.1", "::1"], "10.0.0.2").unwrap_err(),
            "x509: certificate is valid for 10.0.0.1, ::1, not 10.0.0.2"
        );
        // What every machine resolves.
        judge(&["localhost"], "127.0.0.1").unwrap();
        judge(&["10.0.0.1", "localhost"], "127.0.0.1").unwrap();
        let refused = judge(&["*.no.where", "localhost"], "10.9.8.7").unwrap_err();
        let words = "tls: \"10.9.8.7\" does not match any of DNSNames [\"*.no.where\" \"localhost\"]";
        assert!(refused.starts_with(words), "{refused}");
    }
}
