//! `sternctl` with a server that asks for TLS: etcdctl's flags, its words for wrong ones, and what is said when a side does not trust the other.
#[path = "../../server/tests/support/tls.rs"]
#[allow(dead_code, unreachable_pub, reason = "shared with the server's tests, which use more of it")]
mod certificates;
mod support;

use certificates::{Authority, Wanted, client_flags};
use std::process::Command;
use support::start_on;

/// Exit code, standard output, standard error.
type Said = (Option<i32>, String, String);

fn sternctl(arguments: &[&str]) -> Said {
    let output = Command::new(env!("CARGO_BIN_EXE_sternctl"))
        .args(arguments)
        .stdin(std::process::Stdio::null())
        .output()
        .expect("sternctl starts");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

#[test]
fn sternctl_speaks_tls_with_etcdctls_flags() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new("the authority");
    let ca = authority.bundle(folder.path(), &[]);
    let server = authority.sign(folder.path(), &Wanted::local("server", 1));
    let client = authority.sign(folder.path(), &Wanted::local("client", 2));
    let stranger = Authority::new("a stranger").sign(folder.path(), &Wanted::local("stranger", 3));
    let other_ca = {
        let other = folder.path().join("other");
        std::fs::create_dir(&other).unwrap();
        Authority::new("another").bundle(&other, &[])
    };
    let endpoint = start_on(&folder.path().join("data"), "https", &client_flags(&server, &ca));
    let url = format!("https://{endpoint}");
    let text = |path: &std::path::Path| path.display().to_string();
    let (ca, cert, key) = (text(&ca), text(&client.cert), text(&client.key));
    let with = |endpoint: &str, tls: &[&str], command: &[&str]| {
        let dial = ["--dial-timeout", "20s", "--endpoints", endpoint];
        sternctl(&[&dial[..], tls, command].concat())
    };
    let tls = ["--cacert", &ca, "--cert", &cert, "--key", &key];
    let well = |out: &str| (Some(0), out.to_owned(), String::new());
    assert_eq!(with(&url, &tls, &["put", "a", "1"]), well("OK\n"));
    // Without a scheme the flags say that it is TLS.
    let bare = endpoint.replace("127.0.0.1", "localhost");
    assert_eq!(with(&bare, &tls, &["get", "a"]), well("a\n1\n"));
    let skipping = ["--insecure-skip-tls-verify", "--cert", &cert, "--key", &key];
    assert_eq!(with(&url, &skipping, &["get", "a"]), well("a\n1\n"));
    let (exit, out, err) =
        with(&url, &tls, &["bench", "put", "--clients", "2", "--total", "20", "--warm-up", "0s"]);
    assert_eq!(exit, Some(0), "{out}{err}");

    // Neither side takes somebody whom it cannot verify.
    let brief = |tls: &[&str]| {
        sternctl(&[&["--dial-timeout", "1s", "--endpoints", &url][..], tls, &["get", "a"]].concat())
    };
    let (exit, _, err) = brief(&["--cacert", &text(&other_ca), "--cert", &cert, "--key", &key]);
    assert!(exit == Some(2) && err.contains("invalid peer certificate: UnknownIssuer"), "{err}");
    let (exit, _, err) = brief(&["--cacert", &ca]);
    assert!(exit != Some(0) && err.contains("CertificateRequired"), "{err}");
    let (exit, _, err) =
        brief(&["--cacert", &ca, "--cert", &text(&stranger.cert), "--key", &text(&stranger.key)]);
    assert!(exit != Some(0) && err.contains("UnknownCA"), "{err}");
    let plain = format!("http://{endpoint}");
    let (exit, _, err) = sternctl(&["--dial-timeout", "1s", "--endpoints", &plain, "get", "a"]);
    assert!(exit != Some(0) && err.starts_with("Error: "), "{err}");

    // Flags that do not fit, in etcdctl's words.
    let missing = text(&folder.path().join("missing"));
    let no_file = format!("Error: open {missing}: no such file or directory\n");
    let no_key = format!("Error: KeyFile and CertFile must both be present[key: , cert: {cert}]\n");
    let no_cert = format!("Error: KeyFile and CertFile must both be present[key: {key}, cert: ]\n");
    let cases: [(&[&str], &str); 7] = [
        (&["--cert="], "Error: empty string is passed to --cert option\n"),
        (&["--cacert="], "Error: empty string is passed to --cacert option\n"),
        (&["--cert", &cert], &no_key),
        (&["--key", &key], &no_cert),
        (
            &["--cert", &cert, "--key", &text(&stranger.key)],
            "Error: tls: private key does not match public key\n",
        ),
        (&["--cert", &missing, "--key", &key], &no_file),
        (&["--cacert", &missing], &no_file),
    ];
    for (flags, said) in cases {
        let expected = (Some(128), String::new(), said.to_owned());
        assert_eq!(sternctl(&[flags, &["get", "a"]].concat()), expected, "{flags:?}");
    }
}
