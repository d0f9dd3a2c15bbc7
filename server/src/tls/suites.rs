//! Cipher suites and versions: Go's names, which etcd's flags take, and what rustls has of them.
//!
//! **Data.** [`NAMES`]: every name that Go 1.26 knows, which are those of IANA, and two old names that etcd takes too. rustls has no suite with CBC, RC4 or
//! 3DES and none without a key exchange that is forgotten afterwards: those names are known and count for nothing.
//!
//! **Rule.** As in Go, a choice is one of TLS 1.2's suites; those of TLS 1.3 are always there.
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::{CipherSuite, SupportedCipherSuite};

/// What Go's HTTP/2 server says of a choice without a suite that RFC 7540 asks for.
pub const NO_HTTP2_SUITE: &str = "http2: TLSConfig.CipherSuites is missing an HTTP/2-required AES_128_GCM_SHA256 cipher \
     (need at least one of TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256 or TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256)";

/// Names with what rustls calls them, if it has them.
const NAMES: &[(&str, Option<CipherSuite>)] = &[
    ("TLS_AES_128_GCM_SHA256", Some(CipherSuite::TLS13_AES_128_GCM_SHA256)),
    ("TLS_AES_256_GCM_SHA384", Some(CipherSuite::TLS13_AES_256_GCM_SHA384)),
    ("TLS_CHACHA20_POLY1305_SHA256", Some(CipherSuite::TLS13_CHACHA20_POLY1305_SHA256)),
    ("TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256", Some(CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256)),
    ("TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384", Some(CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384)),
    ("TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256", Some(CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256)),
    ("TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384", Some(CipherSuite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384)),
    (
        "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256",
        Some(CipherSuite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256),
    ),
    (
        "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256",
        Some(CipherSuite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256),
    ),
    ("TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305", Some(CipherSuite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256)),
    (
        "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305",
        Some(CipherSuite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256),
    ),
    ("TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA", None),
    ("TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA", None),
    ("TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA", None),
    ("TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA", None),
    ("TLS_RSA_WITH_RC4_128_SHA", None),
    ("TLS_RSA_WITH_3DES_EDE_CBC_SHA", None),
    ("TLS_RSA_WITH_AES_128_CBC_SHA", None),
    ("TLS_RSA_WITH_AES_256_CBC_SHA", None),
    ("TLS_RSA_WITH_AES_128_CBC_SHA256", None),
    ("TLS_RSA_WITH_AES_128_GCM_SHA256", None),
    ("TLS_RSA_WITH_AES_256_GCM_SHA384", None),
    ("TLS_ECDHE_ECDSA_WITH_RC4_128_SHA", None),
    ("TLS_ECDHE_RSA_WITH_RC4_128_SHA", None),
    ("TLS_ECDHE_RSA_WITH_3DES_EDE_CBC_SHA", None),
    ("TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA256", None),
    ("TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA256", None),
];

/// What a list of names comes to.
#[derive(Clone, Debug, Default)]
pub struct Chosen {
    suites: Vec<CipherSuite>,
    /// Names that count for nothing.
    pub unknown: Vec<String>,
    /// A suite without which Go serves no HTTP/2 is among them.
    pub has_http2_suite: bool,
}

/// Looks names up; none means all that there are.
///
/// # Errors
/// etcd's text for a name that is none; a sentence if all of them count for nothing.
pub fn choose(names: &[String]) -> Result<Chosen, String> {
    let mut chosen = Chosen::default();
    for name in names {
        match NAMES.iter().find(|known| known.0 == name) {
            None => return Err(format!("unexpected TLS cipher suite {name:?}")),
            Some((_, Some(suite))) => chosen.suites.push(*suite),
            Some((_, None)) => chosen.unknown.push(name.clone()),
        }
        chosen.has_http2_suite |=
            ["TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256", "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256"]
                .contains(&name.as_str());
    }
    if !names.is_empty() && chosen.suites.is_empty() {
        return Err(format!("--cipher-suites names none that this server's TLS has: {}", names.join(",")));
    }
    Ok(chosen)
}

/// The cryptography, with the suites that were chosen.
pub fn provider(chosen: &Chosen) -> CryptoProvider {
    let mut provider = aws_lc_rs::default_provider();
    if !chosen.suites.is_empty() {
        provider.cipher_suites.retain(|suite: &SupportedCipherSuite| {
            suite.tls13().is_some() || chosen.suites.contains(&suite.suite())
        });
    }
    provider
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_name_is_known_to_rustls_or_counts_for_nothing_or_is_none() {
        let all = provider(&Chosen::default()).cipher_suites.len();
        assert_eq!(provider(&choose(&[]).unwrap()).cipher_suites.len(), all);
        for (name, suite) in NAMES {
            let chosen = choose(&names(&[name, "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256"])).unwrap();
            assert_eq!(chosen.unknown.is_empty(), suite.is_some(), "{name}");
            let left = provider(&chosen).cipher_suites;
            assert!(suite.is_none_or(|suite| left.iter().any(|one| one.suite() == suite)), "{name}");
            assert_eq!(left.iter().filter(|one| one.tls13().is_some()).count(), 3, "TLS 1.3 is always there");
        }
        assert_eq!(choose(&names(&["nope"])).unwrap_err(), "unexpected TLS cipher suite \"nope\"");
        assert!(choose(&names(&["TLS_RSA_WITH_RC4_128_SHA"])).unwrap_err().contains("names none"));
    }
}
