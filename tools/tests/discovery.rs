//! `--discovery-srv`: endpoints from SRV records of a name server of this test, which a network namespace asks.
#[path = "../../server/tests/support/tls.rs"]
#[allow(dead_code, unreachable_pub, reason = "shared with the server's tests, which use more of it")]
mod certificates;
#[path = "../../server/tests/support/names.rs"]
#[allow(unreachable_pub, reason = "shared with the server's tests")]
mod names;
mod support;

use certificates::{Authority, Wanted, client_flags};
use names::{DOMAIN, HOST, Space, answer, serve_names};
use std::net::UdpSocket;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use support::start_on;

/// Exit code, standard output, standard error.
type Said = (Option<i32>, String, String);

/// What `sternctl` says inside.
fn sternctl(space: &Space, arguments: &[&str]) -> Said {
    let output = Command::new("ip")
        .args(["netns", "exec", &space.name, env!("CARGO_BIN_EXE_sternctl"), "--dial-timeout=20s"])
        .args(arguments)
        .output()
        .expect("ip starts");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

#[test]
fn endpoints_are_found_in_dns() {
    let Some(space) = Space::new("spctl", 78) else {
        eprintln!("skipped: no network namespace can be made here (root and ip are needed)");
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new("the authority");
    let ca = authority.bundle(folder.path(), &[]);
    // Certified for the domain alone, and not for the host that the record names.
    let wanted = Wanted { hosts: vec![DOMAIN.to_owned()], ..Wanted::local("server", 1) };
    let server = authority.sign(folder.path(), &wanted);
    let listening = |scheme: &str, port: u16| {
        let url = format!("{scheme}://{}:{port}", space.host);
        [format!("--listen-client-urls={url}"), format!("--advertise-client-urls={url}")]
    };
    // Nobody else is in this network.
    let (plain, secure) = (2379, 2381);
    start_on(&folder.path().join("plain"), "http", &listening("http", plain));
    let mut flags = listening("https", secure).to_vec();
    // No certificates of clients.
    flags.extend(client_flags(&server, &ca).into_iter().take(2));
    start_on(&folder.path().join("secure"), "https", &flags);

    let socket = UdpSocket::bind((space.host.as_str(), 53)).unwrap();
    let is_over = Arc::new(AtomicBool::new(false));
    let (over, address) = (Arc::clone(&is_over), space.host.clone());
    let name_server = std::thread::spawn(move || {
        serve_names(&socket, &over, |query| {
            let asks_for = |name: &[u8]| query.windows(name.len()).any(|part| part == name);
            match () {
                () if asks_for(b"etcd-client-ssl-green") => {
                    answer(query, "_etcd-client-ssl-green._tcp", &address, &[secure])
                }
                () => answer(query, "_etcd-client-blue._tcp", &address, &[plain]),
            }
        });
    });

    let domain = format!("--discovery-srv={DOMAIN}");
    let blue = [domain.as_str(), "--discovery-srv-name=blue"];
    let well = |out: &str| (Some(0), out.to_owned(), String::new());
    assert_eq!(sternctl(&space, &[&blue[..], &["put", "a", "plain"]].concat()), well("OK\n"));
    assert_eq!(
        sternctl(&space, &["-d", DOMAIN, "--discovery-srv-name", "blue", "get", "a"]),
        well("a\nplain\n")
    );
    // Endpoints without TLS are left out if that is wanted, and if nothing is left, those that were typed count.
    let there = format!("--endpoints={}:{plain}", space.host);
    let (exit, out, err) =
        sternctl(&space, &[&blue[..], &["--insecure-discovery=false", &there, "get", "a"]].concat());
    assert_eq!((exit, out.as_str()), (Some(0), "a\nplain\n"), "{err}");
    assert_eq!(err, format!("ignoring discovered insecure endpoint \"http://{HOST}:{plain}\"\n"));

    // By TLS the server has to be the domain, unless discovery may be insecure: then it has to be the host.
    let ca = format!("--cacert={}", ca.display());
    let green = [domain.as_str(), "--discovery-srv-name=green", &ca];
    let secure = |more: &[&str]| sternctl(&space, &[&green[..], more].concat());
    assert_eq!(secure(&["--insecure-discovery=false", "put", "a", "secure"]), well("OK\n"));
    assert_eq!(secure(&["--insecure-discovery=false", "get", "a"]), well("a\nsecure\n"));
    let (exit, out, err) = secure(&["--dial-timeout=1s", "get", "a"]);
    assert_eq!((exit, out.as_str()), (Some(2), ""), "{err}");
    assert!(err.contains("certificate not valid for name \"member.cluster.test\""), "{err}");

    // Neither name has a record.
    let (exit, out, err) = sternctl(&space, &[&domain, "get", "a"]);
    assert_eq!((exit, out.as_str()), (Some(1), ""), "{err}");
    assert!(err.starts_with("Error: dns lookup errors: lookup _etcd-client-ssl._tcp.cluster.test"), "{err}");
    assert!(err.contains(" and lookup _etcd-client._tcp.cluster.test"), "{err}");
    is_over.store(true, Ordering::Relaxed);
    name_server.join().unwrap();
}
