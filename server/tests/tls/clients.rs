//! Clients: by TLS, without it where it is asked for, on one port with both, and those who are refused.
use super::{Secured, all_serve};
use crate::support::cluster::{Cluster, Member, runtime, until};
use crate::support::process::{Program, peer, required};
use crate::support::tls::{Authority, Pair, Wanted, client};
use std::process::Command;
use std::sync::Arc;
use sternpost_server::tls::connect;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// What HTTP/1.1 answers by TLS.
pub(crate) async fn http_get(member: &Member, path: &str) -> String {
    let config = member.client_tls.clone().unwrap();
    http_get_from(&config, member.client_address().1, path).await.unwrap()
}

async fn http_get_from(config: &connect::ClientConfig, port: u16, path: &str) -> std::io::Result<String> {
    let mut config = config.clone();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    let mut stream = connect::connect(Arc::new(config), "127.0.0.1", port).await?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: elsewhere\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    // A refusal comes here; so may an end without a farewell, behind an answer.
    match stream.read_to_end(&mut answer).await {
        Err(error) if answer.is_empty() => Err(error),
        _ => Ok(String::from_utf8_lossy(&answer).into_owned()),
    }
}

/// What HTTP/1.1 answers without TLS; empty if the connection was closed.
async fn plain_get(member: &Member, path: &str) -> String {
    let (host, port) = member.client_address();
    let mut stream = TcpStream::connect((host, port)).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: elsewhere\r\nConnection: close\r\n\r\n");
    let _ = stream.write_all(request.as_bytes()).await;
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    String::from_utf8_lossy(&answer).into_owned()
}

/// gRPC and HTTP/1.1 come by TLS; who speaks none is closed; a host that is not in the whitelist is one only without TLS.
#[test]
fn a_port_with_tls_serves_tls_alone() {
    let secured = Secured::start(1, |_, _| vec!["--host-whitelist=nobody".to_owned()]);
    runtime().block_on(async {
        secured.cluster.leader().await;
        let member = &secured.cluster.members[0];
        assert!(http_get(member, "/health").await.contains("\"health\":\"true\""));
        assert_eq!(plain_get(member, "/health").await, "");
        member.says("first record does not look like a TLS handshake").await;
        all_serve(&secured.cluster, &[0], "still").await;
    });
}

#[test]
fn a_port_without_tls_refuses_tls() {
    let folder = tempfile::tempdir().unwrap();
    let ca = Authority::new("the authority").bundle(folder.path(), &[]);
    let cluster = Cluster::start(1, &[]);
    runtime().block_on(async {
        cluster.leader().await;
        let (host, port) = cluster.members[0].client_address();
        connect::connect(client(None, &ca), &host, port).await.unwrap_err();
        cluster.members[0].put("plain", "1").await.unwrap();
    });
}

/// Those who scrape by TLS are verified as clients are, and come from an address of their certificate.
#[test]
fn metrics_are_served_by_tls() {
    let port = crate::support::process::free_port();
    let url = format!("--listen-metrics-urls=https://127.0.0.1:{port}");
    let secured = Secured::start(1, |_, _| vec![url.clone()]);
    let elsewhere = Wanted { hosts: vec!["10.9.8.7".into()], ..Wanted::local("elsewhere", 0x91) };
    let elsewhere = secured.authority.sign(secured.folder.path(), &elsewhere);
    let ca = secured.ca();
    runtime().block_on(async {
        secured.cluster.leader().await;
        let member = &secured.cluster.members[0];
        let good = member.client_tls.clone().unwrap();
        let metrics = http_get_from(&good, port, "/metrics").await.unwrap();
        assert!(metrics.contains("etcd_server_has_leader 1"), "{metrics}");
        assert!(http_get_from(&good, port, "/health").await.unwrap().contains("\"health\":\"true\""));
        http_get_from(&client(None, &ca), port, "/metrics").await.unwrap_err();
        let refused = http_get_from(&client(Some(&elsewhere), &ca), port, "/metrics").await;
        assert!(refused.as_ref().map_or(true, String::is_empty), "{refused:?}");
        until("what is wrong to be said", async || {
            let _ = http_get_from(&client(Some(&elsewhere), &ca), port, "/metrics").await;
            member.has_said("certificate is valid for 10.9.8.7, not 127.0.0.1").then_some(())
        })
        .await;
    });
}

/// As etcd's launchers do: one address, one URL of each scheme.
#[test]
fn one_port_serves_both_where_it_was_given_for_both() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new("the authority");
    let ca = authority.bundle(folder.path(), &[]);
    let pair = authority.sign(folder.path(), &Wanted::local("m0", 1));
    let mut cluster = Cluster::start_with(1, |member| {
        let (host, port) = member.client_address();
        member.options = vec![
            format!("--listen-client-urls=http://{host}:{port},https://{host}:{port}"),
            format!("--cert-file={}", pair.cert.display()),
            format!("--key-file={}", pair.key.display()),
        ];
    });
    runtime().block_on(async {
        cluster.leader().await;
        cluster.members[0].put("plain", "1").await.unwrap();
        assert!(plain_get(&cluster.members[0], "/version").await.contains("etcdserver"));
        cluster.members[0].client_tls = Some(client(None, &ca));
        assert_eq!(cluster.members[0].get("plain", false).await.unwrap().as_deref(), Some("1"));
        assert!(http_get(&cluster.members[0], "/version").await.contains("etcdserver"));
        assert!(cluster.members[0].has_said("serving client traffic securely"));
        assert!(cluster.members[0].has_said("serving client traffic insecurely"));
    });
}

/// A client is refused in the handshake, and the log says for what.
#[test]
fn clients_without_the_right_certificate_are_refused() {
    let more = |authority: &Authority, folder: &std::path::Path| {
        let list = folder.join("revoked.der");
        authority.revoke(&list, &[0x77]);
        vec![
            format!("--client-crl-file={}", list.display()),
            "--client-cert-allowed-hostname=localhost,else.where".to_owned(),
        ]
    };
    let mut secured = Secured::start(1, more);
    let stranger = Authority::new("a stranger");
    let folder = secured.folder.path().to_owned();
    let ca = secured.ca();
    runtime().block_on(async {
        secured.cluster.leader().await;
        let sign = |wanted: &Wanted| secured.authority.sign(&folder, wanted);
        let wanted = |serial| Wanted::local("other", serial);
        let cases: [(Option<Pair>, &str); 5] = [
            (None, "tls: client didn't provide a certificate"),
            (
                Some(stranger.sign(&folder, &Wanted { name: "stranger".into(), ..wanted(0x71) })),
                "signed by no CA of",
            ),
            (Some(sign(&Wanted { name: "late".into(), days: (-3, -2), ..wanted(0x72) })), "it expired on"),
            (
                Some(sign(&Wanted { name: "revoked".into(), ..wanted(0x77) })),
                "transport: certificate serial 77 revoked",
            ),
            (
                Some(sign(&Wanted { name: "host".into(), hosts: vec!["no.where".into()], ..wanted(0x73) })),
                "client certificate authentication failed",
            ),
        ];
        for (pair, said) in &cases {
            let member = &mut secured.cluster.members[0];
            member.client_tls = Some(client(pair.as_ref(), &ca));
            member.status().await.unwrap_err();
            let member = &secured.cluster.members[0];
            // A line a second is enough for the log: whoever comes again is heard then.
            until(said, async || {
                let _ = member.status().await;
                member.has_said_all(&["rejected connection on client endpoint", said]).then_some(())
            })
            .await;
        }
        // A list that grows counts for the next connection.
        let good = secured.authority.sign(&folder, &Wanted::local("good", 0x78));
        secured.cluster.members[0].client_tls = Some(client(Some(&good), &ca));
        secured.cluster.members[0].put("taken", "1").await.unwrap();
        secured.authority.revoke(&folder.join("revoked.der"), &[0x77, 0x78]);
        secured.cluster.members[0].put("refused", "1").await.unwrap_err();
    });
}

/// etcdctl, which nobody here wrote, with a certificate and without one; and the same from the real etcd.
#[test]
fn etcdctl_speaks_tls_and_hears_why_not() {
    let ctl = match peer("etcdctl") {
        Ok(ctl) => ctl,
        Err(missing) => {
            assert!(!required("STERNPOST_REQUIRE_PEERS"), "{missing}");
            eprintln!("skipped: {missing}");
            return;
        }
    };
    assert!(Program::Sternpost.binary().is_ok());
    let secured = Secured::plain(3);
    runtime().block_on(secured.cluster.leader());
    let folder = secured.folder.path();
    let run = |arguments: &[&str]| {
        let urls: Vec<_> = secured.cluster.members.iter().map(Member::client_url).collect();
        let mut command = Command::new(&ctl);
        command.arg("--endpoints").arg(urls.join(",")).args(arguments);
        let ended = command.output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (ended.status.success(), text(&ended.stdout), text(&ended.stderr))
    };
    let [ca, cert, key] =
        ["ca.pem", "client.pem", "client.key"].map(|name| folder.join(name).display().to_string());
    let tls = ["--cacert", &ca, "--cert", &cert, "--key", &key];
    let with = |more: &[&'static str]| [&tls[..], more].concat();
    assert_eq!(run(&with(&["put", "a", "1"])), (true, "OK\n".into(), String::new()));
    assert_eq!(run(&with(&["get", "a"])), (true, "a\n1\n".into(), String::new()));
    let (is_well, _, said) = run(&with(&["endpoint", "health"]));
    assert!(is_well && said.matches("is healthy").count() == 0, "{said}");
    let (is_well, members, _) = run(&with(&["member", "list"]));
    assert!(is_well && members.matches("https://").count() == 6, "{members}");
    let (is_well, _, said) = run(&["--cacert", &ca, "get", "a"]);
    assert!(!is_well && said.contains("tls: certificate required"), "{said}");
    let (is_well, _, said) = run(&["--cert", &cert, "--key", &key, "get", "a"]);
    assert!(!is_well && said.contains("x509: certificate signed by unknown authority"), "{said}");
    let skipping = ["--insecure-skip-tls-verify", "--cert", &cert, "--key", &key, "get", "a"];
    assert_eq!(run(&skipping), (true, "a\n1\n".into(), String::new()));
}
