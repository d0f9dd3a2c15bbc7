//! Flags that do not fit end the start, in the words of the real etcd, which is asked too if it is there.
use crate::support::process::{Program, free_port, required};
use crate::support::tls::{Authority, Wanted};
use std::process::{Command, Stdio};

/// Runs a program until it ends by itself; what it said.
fn said(
    program: Program,
    folder: &std::path::Path,
    client: &str,
    peer: &str,
    flags: &[String],
) -> Option<String> {
    let binary = program.binary().ok()?;
    let data = folder.join(format!("data-{program:?}"));
    let ended = Command::new(binary)
        .arg("--name=m0")
        .arg(format!("--data-dir={}", data.display()))
        .arg(format!("--listen-client-urls={client}"))
        .arg(format!("--advertise-client-urls={client}"))
        .arg(format!("--listen-peer-urls={peer}"))
        .arg(format!("--initial-advertise-peer-urls={peer}"))
        .arg(format!("--initial-cluster=m0={peer}"))
        .args(flags)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let _ = std::fs::remove_dir_all(&data);
    assert!(!ended.status.success(), "{program:?} takes {flags:?}");
    Some(String::from_utf8_lossy(&ended.stderr).into_owned())
}

#[test]
fn flags_that_do_not_fit_end_the_start_with_etcds_words() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let authority = Authority::new("the authority");
    authority.bundle(folder.path(), &[]);
    authority.sign(folder.path(), &Wanted::local("a", 1));
    authority.sign(folder.path(), &Wanted::local("b", 2));
    std::fs::write(path("junk"), "no certificate\n").unwrap();
    let [cert, key, other_key, junk, missing] = ["a.pem", "a.key", "b.key", "junk", "missing"].map(path);
    let is_there = Program::Etcd.binary().is_ok();
    assert!(is_there || !required("STERNPOST_REQUIRE_PEERS"), "etcd is not there");
    let (http, https) =
        (|| format!("http://127.0.0.1:{}", free_port()), || format!("https://127.0.0.1:{}", free_port()));
    let pair = |cert: &str, key: &str| vec![format!("--cert-file={cert}"), format!("--key-file={key}")];
    let peer_pair =
        |cert: &str, key: &str| vec![format!("--peer-cert-file={cert}"), format!("--peer-key-file={key}")];
    let with = |flags: Vec<String>, more: &[&str]| {
        let mut flags = flags;
        flags.extend(more.iter().map(ToString::to_string));
        flags
    };
    let ca_missing = format!("--trusted-ca-file={missing}");
    let client_cert = format!("--client-cert-file={cert}");
    let peer_client_cert = format!("--peer-client-cert-file={cert}");
    let no_file = format!("open {missing}: no such file or directory");
    let switched = "tls: failed to find certificate PEM data in certificate input, but did find a private key; PEM inputs may have been \
                    switched";
    // Whether clients and whether members are to come by TLS; flags; words.
    let cases: Vec<(bool, bool, Vec<String>, &str)> = vec![
        (
            true,
            false,
            vec![],
            "TLS key/cert (--cert-file, --key-file) must be provided for client url https://127.0.0.1:",
        ),
        (
            true,
            false,
            with(vec![], &[&format!("--cert-file={cert}")]),
            "KeyFile and CertFile must both be present[key: , cert: ",
        ),
        (true, false, pair(&missing, &key), &no_file),
        (true, false, pair(&cert, &missing), &no_file),
        (true, false, pair(&cert, &other_key), "tls: private key does not match public key"),
        (true, false, pair(&junk, &key), "tls: failed to find any PEM data in certificate input"),
        (true, false, pair(&cert, &junk), "tls: failed to find any PEM data in key input"),
        (
            true,
            false,
            pair(&cert, &cert),
            "tls: found a certificate rather than a key in the PEM for the private key",
        ),
        (true, false, pair(&key, &key), switched),
        (true, false, with(pair(&cert, &key), &[&ca_missing]), &no_file),
        (
            true,
            false,
            with(pair(&cert, &key), &[&client_cert]),
            "ClientKeyFile and ClientCertFile must both be present or both absent: key: , cert: ",
        ),
        (
            true,
            false,
            with(pair(&cert, &key), &["--cipher-suites=nope"]),
            "unexpected TLS cipher suite \\\"nope\\\"",
        ),
        (
            true,
            false,
            with(pair(&cert, &key), &["--cipher-suites=TLS_AES_128_GCM_SHA256"]),
            "http2: TLSConfig.CipherSuites is missing an HTTP/2-required AES_128_GCM_SHA256 cipher",
        ),
        (
            true,
            false,
            with(pair(&cert, &key), &["--tls-min-version=TLS1.3", "--tls-max-version=TLS1.2"]),
            "min version (TLS1.3) is greater than max version (TLS1.2)",
        ),
        (
            false,
            false,
            with(vec![], &["--tls-min-version=TLS1.1"]),
            "unexpected TLS version \\\"TLS1.1\\\" (must be one of: TLS1.2, TLS1.3)",
        ),
        (
            false,
            false,
            with(vec![], &["--tls-min-version=TLS1.3", "--cipher-suites=TLS_AES_128_GCM_SHA256"]),
            "cipher suites cannot be configured when only TLS1.3 is enabled",
        ),
        (
            true,
            false,
            with(vec![], &["--auto-tls", "--self-signed-cert-validity=0"]),
            "selfSignedCertValidity is invalid,it should be greater than 0",
        ),
        (false, true, vec![], "KeyFile and CertFile are not presented"),
        (false, true, peer_pair(&cert, &other_key), "tls: private key does not match public key"),
        (
            false,
            true,
            vec![format!("--peer-cert-file={cert}")],
            "KeyFile and CertFile must both be present[key: , cert: ",
        ),
        (
            false,
            true,
            with(peer_pair(&cert, &key), &["--peer-cert-allowed-cn=a", "--peer-cert-allowed-hostname=b"]),
            "AllowedCNs and AllowedHostnames are mutually exclusive (cns=[\\\"a\\\"], hostnames=[\\\"b\\\"])",
        ),
        (
            false,
            true,
            with(peer_pair(&cert, &key), &[&peer_client_cert]),
            "ClientKeyFile and ClientCertFile must both be present or both absent: key: , cert: ",
        ),
        (
            false,
            false,
            vec![format!("--listen-metrics-urls={}", https())],
            "client TLS key/cert (--cert-file, --key-file) must be provided for metrics secure url",
        ),
    ];
    for (client_tls, peer_tls, flags, words) in cases {
        let client = if client_tls { https() } else { http() };
        let peer = if peer_tls { https() } else { http() };
        for program in [Program::Sternpost, Program::Etcd] {
            if let Some(said) = said(program, folder.path(), &client, &peer, &flags) {
                assert!(said.contains(words), "{program:?} {flags:?} does not say {words:?}:\n{said}");
            }
        }
    }
    if !is_there {
        eprintln!("skipped: the same of etcd (benches/peers/build.sh builds it)");
    }
}
