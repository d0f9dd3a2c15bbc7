//! Certificates that are replaced while everything runs.
use super::{Secured, all_serve};
use crate::support::cluster::{Member, runtime, until};
use crate::support::tls::{Authority, Wanted, client, replace};
use rustix::process::Signal;
use std::sync::Arc;
use sternpost_server::tls::connect;
use sternpost_server::tls::pem::Facts;

/// The serial number of what a member presents to clients.
async fn presented(member: &Member) -> Option<String> {
    let (host, port) = member.client_address();
    let stream = connect::connect(member.client_tls.clone()?, &host, port).await.ok()?;
    let certificate = stream.get_ref().1.peer_certificates()?.first()?.clone();
    Some(Facts::of(&certificate)?.serial)
}

async fn all_present(secured: &Secured, serial: &str) {
    for member in &secured.cluster.members {
        until("the new certificate", async || {
            (presented(member).await.as_deref() == Some(serial)).then_some(())
        })
        .await;
    }
}

#[test]
fn certificates_and_their_authority_are_replaced_without_a_restart() {
    let mut secured = Secured::plain(3);
    runtime().block_on(async {
        secured.cluster.leader().await;
        all_present(&secured, "01").await;
        let folder = secured.folder.path().to_owned();
        let sign_all = |authority: &Authority, serial| {
            (0..3).for_each(|number| {
                authority.sign(&folder, &Wanted::local(&format!("m{number}"), serial));
            });
        };
        // New certificates of the same authority.
        sign_all(&secured.authority, 2);
        all_present(&secured, "02").await;
        secured.cluster.members[2].end(Signal::KILL);
        secured.cluster.start_member(2);
        secured.cluster.leader().await;
        all_serve(&secured.cluster, &[0, 1, 2], "renewed").await;

        // A file that is no certificate counts for nothing but a line in the log.
        replace(&folder.join("m0.pem"), b"not yet");
        until("what is wrong to be said", async || {
            presented(&secured.cluster.members[0]).await;
            let said = ["has changed and cannot be used", "failed to find any PEM data in certificate input"];
            secured.cluster.members[0].has_said_all(&said).then_some(())
        })
        .await;
        all_present(&secured, "02").await;

        // Another authority: trusted beside the first, then used, then alone.
        let next = Authority::new("the next authority");
        let both = secured.authority.bundle(&folder, &[&next]);
        let of_first =
            crate::support::tls::Pair { cert: folder.join("client.pem"), key: folder.join("client.key") };
        for member in &mut secured.cluster.members {
            member.client_tls = Some(client(Some(&of_first), &both));
        }
        sign_all(&next, 3);
        all_present(&secured, "03").await;
        let ca = next.bundle(&folder, &[]);
        let renewed = next.sign(&folder, &Wanted::local("renewed-client", 901));
        let before = secured.cluster.members[0].client_tls.clone().unwrap();
        for member in &mut secured.cluster.members {
            member.client_tls = Some(client(Some(&renewed), &ca));
        }
        all_present(&secured, "03").await;
        for number in [2, 1, 0] {
            secured.cluster.members[number].end(Signal::TERM);
            secured.cluster.start_member(number);
            secured.cluster.leader().await;
        }
        all_serve(&secured.cluster, &[0, 1, 2], "another authority").await;
        secured.cluster.agree().await;

        // A client with a certificate of the first one is refused now.
        let old = connect_and_ask(&secured.cluster.members[0], before).await;
        assert!(old.is_err(), "{old:?}");
        secured.cluster.members[0].says("rejected connection on client endpoint").await;
    });
}

/// With TLS 1.3 a client hears that it is refused when it reads.
async fn connect_and_ask(member: &Member, config: Arc<rustls::ClientConfig>) -> std::io::Result<usize> {
    use tokio::io::AsyncReadExt;
    let (host, port) = member.client_address();
    let mut stream = connect::connect(config, &host, port).await?;
    stream.read(&mut [0; 64]).await
}

/// A certificate that is about to expire, and one that has: told at the start, with the flag, the file and what to do; and in the metrics.
#[test]
fn what_expires_is_told_in_time() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new("the authority");
    let ca = authority.bundle(folder.path(), &[]);
    let soon = authority.sign(folder.path(), &Wanted { days: (-1, 3), ..Wanted::local("soon", 7) });
    let over = authority.sign(folder.path(), &Wanted { days: (-9, -1), ..Wanted::local("over", 8) });
    let cluster = crate::support::cluster::Cluster::start_with(1, |member| {
        member.client_tls = Some(client(None, &ca));
        member.options = vec![
            format!("--cert-file={}", soon.cert.display()),
            format!("--key-file={}", soon.key.display()),
            format!("--peer-cert-file={}", over.cert.display()),
            format!("--peer-key-file={}", over.key.display()),
        ];
    });
    runtime().block_on(async {
        let member = &cluster.members[0];
        member.says("a certificate expires soon").await;
        member.says("a certificate has expired").await;
        cluster.leader().await;
        assert!(member.has_said_all(&["\"flag\":\"--cert-file\"", "soon.pem", "\"days-left\":"]));
        assert!(member.has_said_all(&["\"flag\":\"--peer-cert-file\"", "over.pem"]));
        let metrics = super::clients::http_get(member, "/metrics").await;
        let name = "sternpost_tls_certificate_expiration_timestamp_seconds{flag=\"--cert-file\"} 1";
        assert!(metrics.contains(name), "{metrics}");
    });
}
