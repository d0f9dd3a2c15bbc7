//! What the flags say about TLS, for members and for clients, with etcd's complaints.
//!
//! **Contract.** Nothing is opened here: that a file is there and fits is found when [`crate::tls`] opens it. What can be judged by the flags alone
//! is judged in etcd's order: versions and suites, then the URLs of members, then those of clients.
//!
//! **Source**: `Config.Validate`, `configurePeerListeners` and `configureClientListeners` in `server/embed`, `client/pkg/transport/listener.go` of etcd 3.7.3.
use super::flags::Settings;
use super::url::{Scheme, Url};
use super::{Config, Notice};
use crate::tls::suites;
use std::path::{Path, PathBuf};

/// Names of the flags of one side, for messages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TlsFlags {
    /// Of the certificate.
    pub cert: &'static str,
    /// Of its key.
    pub key: &'static str,
    /// Of the certificate for connections that this side makes.
    pub client_cert: &'static str,
    /// Of the CA bundle.
    pub ca: &'static str,
    /// Of the revocation list.
    pub crl: &'static str,
}

const CLIENT_FLAGS: TlsFlags = TlsFlags {
    cert: "--cert-file",
    key: "--key-file",
    client_cert: "--client-cert-file",
    ca: "--trusted-ca-file",
    crl: "--client-crl-file",
};

const PEER_FLAGS: TlsFlags = TlsFlags {
    cert: "--peer-cert-file",
    key: "--peer-key-file",
    client_cert: "--peer-client-cert-file",
    ca: "--peer-trusted-ca-file",
    crl: "--peer-crl-file",
};

/// A certificate to be made by the server itself, if it is not there yet.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SelfSigned {
    /// Where it lies, with its key.
    pub folder: PathBuf,
    /// Host names and addresses that it is for.
    pub hosts: Vec<String>,
    /// How long it is valid, in years of 365 days; at least 1.
    pub years: u64,
}

/// TLS of one side: etcd's `TLSInfo`. Empty paths were not given.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TlsSettings {
    /// Names of the flags.
    pub flags: TlsFlags,
    /// Certificate, and what is between it and its CA.
    pub cert_file: PathBuf,
    /// Its key.
    pub key_file: PathBuf,
    /// What connections that this side makes present; the one above if it was not given.
    pub client_cert_file: PathBuf,
    /// Its key.
    pub client_key_file: PathBuf,
    /// Who signs certificates of others.
    pub trusted_ca_file: PathBuf,
    /// Others must present a certificate, also if no CA is given: then one that the system trusts.
    pub client_cert_auth: bool,
    /// Revoked certificates.
    pub crl_file: PathBuf,
    /// Common names that others may have; empty for any.
    pub allowed_cns: Vec<String>,
    /// Names and addresses, for one of which certificates of others must be valid; empty for any.
    pub allowed_hostnames: Vec<String>,
    /// Addresses of others need not be in their certificates.
    pub skips_san_check: bool,
    /// The certificate is the server's own work, and nobody's is verified.
    pub self_signed: Option<SelfSigned>,
    /// Suites of TLS 1.2 by Go's names; empty for all.
    pub suites: Vec<String>,
    /// TLS 1.2 is spoken.
    pub has_tls12: bool,
    /// TLS 1.3 is spoken.
    pub has_tls13: bool,
}

impl TlsSettings {
    /// What the flags for members say.
    pub(super) fn of_peers(settings: &Settings) -> Self {
        Self::new(PEER_FLAGS, settings)
    }

    /// What the flags for clients say.
    pub(super) fn of_clients(settings: &Settings) -> Self {
        Self::new(CLIENT_FLAGS, settings)
    }

    fn new(flags: TlsFlags, settings: &Settings) -> Self {
        let path = |flag: &str| PathBuf::from(settings.text(flag.trim_start_matches("--")));
        let is_peer = flags == PEER_FLAGS;
        let auth = if is_peer { "peer-client-cert-auth" } else { "client-cert-auth" };
        let hostnames = if is_peer { "peer-cert-allowed-hostname" } else { "client-cert-allowed-hostname" };
        Self {
            flags,
            cert_file: path(flags.cert),
            key_file: path(flags.key),
            client_cert_file: path(flags.client_cert),
            client_key_file: path(if is_peer { "peer-client-key-file" } else { "client-key-file" }),
            trusted_ca_file: path(flags.ca),
            client_cert_auth: settings.flag(auth),
            crl_file: path(flags.crl),
            allowed_cns: if is_peer { words(settings, "peer-cert-allowed-cn") } else { Vec::new() },
            allowed_hostnames: words(settings, hostnames),
            skips_san_check: is_peer && settings.flag("peer-skip-client-san-verification"),
            self_signed: None,
            suites: words(settings, "cipher-suites"),
            has_tls12: settings.text("tls-min-version") != "TLS1.3",
            has_tls13: settings.text("tls-max-version") != "TLS1.2",
        }
    }

    /// True if there is something to present: etcd's `!Empty()`.
    pub fn has_certificate(&self) -> bool {
        is_given(&self.cert_file) || is_given(&self.key_file)
    }

    /// Others must present a certificate.
    pub fn asks_for_certificates(&self) -> bool {
        self.self_signed.is_none() && (self.client_cert_auth || is_given(&self.trusted_ca_file))
    }

    /// What is wrong by the names alone.
    fn check(&self) -> Result<(), String> {
        let shown = Path::display;
        if !is_given(&self.cert_file) || !is_given(&self.key_file) {
            return Err(format!(
                "KeyFile and CertFile must both be present[key: {}, cert: {}]",
                shown(&self.key_file),
                shown(&self.cert_file)
            ));
        }
        if is_given(&self.client_cert_file) != is_given(&self.client_key_file) {
            return Err(format!(
                "ClientKeyFile and ClientCertFile must both be present or both absent: key: {}, cert: {}]",
                shown(&self.client_key_file),
                shown(&self.client_cert_file)
            ));
        }
        if !self.allowed_cns.is_empty() && !self.allowed_hostnames.is_empty() {
            return Err(format!(
                "AllowedCNs and AllowedHostnames are mutually exclusive (cns={}, hostnames={})",
                quoted(&self.allowed_cns),
                quoted(&self.allowed_hostnames)
            ));
        }
        Ok(())
    }

    /// The server makes its certificate itself, unless there is one.
    fn sign_oneself(
        &mut self,
        folder: PathBuf,
        urls: &[&Url],
        years: u64,
        notices: &mut Vec<Notice>,
    ) -> Result<(), String> {
        if self.has_certificate() {
            let side = if self.flags == PEER_FLAGS { "peer" } else { "client" };
            notices.push(Notice::warning(&format!("ignoring {side} auto TLS since certs given")));
            return Ok(());
        }
        if years == 0 {
            return Err("selfSignedCertValidity is invalid,it should be greater than 0".into());
        }
        self.cert_file = folder.join("cert.pem");
        self.key_file = folder.join("key.pem");
        let hosts = urls.iter().map(|url| url.host().to_owned()).collect();
        self.self_signed = Some(SelfSigned { folder, hosts, years });
        Ok(())
    }
}

/// True for a path that a flag gave.
pub fn is_given(path: &Path) -> bool {
    !path.as_os_str().is_empty()
}

/// The words of a list in their order.
fn words(settings: &Settings, name: &str) -> Vec<String> {
    settings.text(name).split(',').filter(|word| !word.is_empty()).map(str::to_owned).collect()
}

/// As Go prints a list with `%q`.
fn quoted(words: &[String]) -> String {
    format!("[{}]", words.iter().map(|word| format!("{word:?}")).collect::<Vec<_>>().join(" "))
}

/// Versions and suites.
pub(super) fn check_versions(settings: &Settings) -> Result<(), String> {
    let [least, greatest] = ["tls-min-version", "tls-max-version"].map(|name| settings.text(name));
    for version in [least, greatest] {
        if !["", "TLS1.2", "TLS1.3"].contains(&version) {
            return Err(format!("unexpected TLS version {version:?} (must be one of: TLS1.2, TLS1.3)"));
        }
    }
    if !greatest.is_empty() && least > greatest {
        return Err(format!("min version ({least}) is greater than max version ({greatest})"));
    }
    if least == "TLS1.3" && !settings.text("cipher-suites").is_empty() {
        return Err("cipher suites cannot be configured when only TLS1.3 is enabled".into());
    }
    Ok(())
}

/// Judges both sides' settings by the URLs of `config`, and lets servers sign their certificates where that is wanted.
pub(super) fn fill(
    config: &mut Config,
    settings: &Settings,
    notices: &mut Vec<Notice>,
) -> Result<(), String> {
    let (mut peer, mut client) = (config.peer_tls.clone(), config.client_tls.clone());
    let chosen = suites::choose(&peer.suites)?;
    if !chosen.unknown.is_empty() {
        notices.push(
            Notice::warning("some cipher suites of Go's are not known to this server's TLS and are left out")
                .with("cipher-suites", &chosen.unknown.join(",")),
        );
    }
    let years = settings.uint("self-signed-cert-validity");
    let fixtures = config.data_dir.join("fixtures");

    let peer_urls: Vec<&Url> = config.listen_peer_urls.iter().collect();
    if settings.flag("peer-auto-tls") {
        peer.sign_oneself(fixtures.join("peer"), &peer_urls, years, notices)?;
    }
    for url in &peer_urls {
        if url.scheme == Scheme::Http {
            ignore(&peer, url, "scheme is HTTP while", "--peer-client-cert-auth", "peer-url", notices);
        } else if url.scheme == Scheme::Https {
            if !peer.has_certificate() {
                return Err(format!(
                    "cannot listen on TLS for {}: KeyFile and CertFile are not presented",
                    url.address
                ));
            }
            peer.check()?;
        }
    }
    let client_urls: Vec<&Url> =
        config.listen_client_urls.iter().chain(&config.listen_client_http_urls).collect();
    if settings.flag("auto-tls") {
        client.sign_oneself(fixtures.join("client"), &client_urls, years, notices)?;
    }
    for url in &client_urls {
        if !url.scheme.is_secure() {
            ignore(&client, url, "scheme is http or unix while", "--client-cert-auth", "client-url", notices);
        } else if !client.has_certificate() {
            return Err(format!(
                "TLS key/cert (--cert-file, --key-file) must be provided for client url {url} with HTTPS scheme"
            ));
        }
    }
    for http in config.listen_client_http_urls.iter() {
        if config.listen_client_urls.iter().any(|url| url.address == http.address) {
            return Err(format!(
                "cannot bind both --listen-client-urls and --listen-client-http-urls on the same url {http}"
            ));
        }
    }
    if config.listen_metrics_urls.iter().any(|url| url.scheme.is_secure()) && !client.has_certificate() {
        return Err(
            "client TLS key/cert (--cert-file, --key-file) must be provided for metrics secure url".into()
        );
    }
    let secure =
        client_urls.iter().copied().chain(&config.listen_metrics_urls).find(|url| url.scheme.is_secure());
    if secure.is_some() {
        client.check()?;
        if client.has_tls12 && !client.suites.is_empty() && !chosen.has_http2_suite {
            return Err(suites::NO_HTTP2_SUITE.into());
        }
    }
    (config.peer_tls, config.client_tls) = (peer, client);
    Ok(())
}

/// What was given for TLS counts for nothing at a plain URL.
fn ignore(tls: &TlsSettings, url: &Url, scheme: &str, auth: &str, field: &str, notices: &mut Vec<Notice>) {
    let mut say = |what: &str| {
        notices.push(Notice::warning(&format!("{scheme} {what}")).with(field, &url.to_string()));
    };
    if tls.has_certificate() {
        say("key and cert files are present; ignoring key and cert files");
    }
    if tls.client_cert_auth {
        say(&format!("{auth} is enabled; ignoring client cert auth for this URL"));
    }
}
