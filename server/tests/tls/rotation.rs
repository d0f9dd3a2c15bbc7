//! Certificates that are replaced while everything runs.
use super::{Secured, all_serve};
use crate::support::cluster::{Member, runtime, until};
use crate::support::tls::{Authority, Wanted, client, replace};
use rustix::process::Signal;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use sternpost_server::tls::connect;
use sternpost_server::tls::pem::Facts;
use sternpost_server::wire::etcdserverpb::kv_client::KvClient;
use sternpost_server::wire::etcdserverpb::watch_client::WatchClient;
use sternpost_server::wire::etcdserverpb::watch_request::RequestUnion;
use sternpost_server::wire::etcdserverpb::{PutRequest, WatchCreateRequest, WatchRequest};
use tokio_stream::StreamExt;
use tonic::Status;

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

/// Everything that is put, as a watch of it sees it: numbers from 0 on, without a gap. Ends with the first error.
async fn watch_numbers(member: &Member, seen: &AtomicU64) -> Result<(), Status> {
    let create = WatchCreateRequest {
        key: "load/".into(),
        range_end: "load0".into(),
        start_revision: 1,
        ..Default::default()
    };
    let request = WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
    let requests = tokio_stream::once(request).chain(tokio_stream::pending());
    let mut answers = WatchClient::new(member.channel()).watch(requests).await?.into_inner();
    while let Some(answer) = answers.message().await? {
        assert!(!answer.canceled, "{answer:?}");
        for event in answer.events {
            let value = String::from_utf8(event.kv.unwrap().value.to_vec()).unwrap();
            assert_eq!(
                value,
                seen.load(Ordering::Relaxed).to_string(),
                "nothing is missed, nothing comes twice"
            );
            seen.fetch_add(1, Ordering::Relaxed);
        }
    }
    Err(Status::cancelled("the watch ended"))
}

/// Leaf, bundle of authorities and revocation list of all members, fifty times, by two authorities in turn. Who trusts both notices nothing:
/// connections that stand, connections that are made meanwhile, watches.
#[test]
fn certificates_are_replaced_fifty_times_under_load() {
    const ROUNDS: u64 = 50;
    let lists = |folder: &Path| {
        ["client", "peer"]
            .map(|of| format!("--{of}-crl-file={}", folder.join("revoked.crl").display()))
            .to_vec()
    };
    let mut secured = Secured::start(3, |authority, folder| {
        authority.revoke(&folder.join("revoked.crl"), &[5_000]);
        lists(folder)
    });
    let folder = secured.folder.path().to_owned();
    let second = Authority::new("the second authority");
    let both = secured.authority.bundle(&folder, &[&second]);
    let of_first = secured.authority.sign(&folder, &Wanted::local("of-first", 901));
    let of_second = second.sign(&folder, &Wanted::local("of-second", 902));
    let configs = [&of_first, &of_second].map(|pair| client(Some(pair), &both));
    for (number, member) in secured.cluster.members.iter_mut().enumerate() {
        member.client_tls = Some(Arc::clone(&configs[number % 2]));
    }
    let secured = &secured;
    runtime().block_on(async {
        let members = &secured.cluster.members;
        secured.cluster.leader().await;
        // The members have read that both are trusted when one of them serves a certificate of the second.
        for round in 0..2 {
            let authority = [&secured.authority, &second][round];
            for member in members {
                authority.sign(&folder, &Wanted::local(&member.name, 10 + round as u64));
            }
            all_present(secured, &format!("{:02x}", 10 + round)).await;
        }

        let done = AtomicBool::new(false);
        let put = AtomicU64::new(0);
        // Alternately over a connection that stands since before the first round and over a new one.
        let writer = async {
            let mut standing: Vec<_> = members.iter().map(|member| KvClient::new(member.channel())).collect();
            while !done.load(Ordering::Relaxed) {
                let number = put.load(Ordering::Relaxed);
                let member = number as usize % 3;
                let request = PutRequest {
                    key: format!("load/{}", number % 100).into(),
                    value: number.to_string().into(),
                    ..Default::default()
                };
                let mut fresh = KvClient::new(members[member].channel());
                let client = if number.is_multiple_of(2) { &mut standing[member] } else { &mut fresh };
                client.put(request).await.unwrap_or_else(|status| panic!("put {number}: {status}"));
                put.fetch_add(1, Ordering::Relaxed);
            }
        };
        let seen = [const { AtomicU64::new(0) }; 3];
        let watches = async {
            let [one, two, three] =
                std::array::from_fn(|number| watch_numbers(&members[number], &seen[number]));
            tokio::try_join!(one, two, three).map(drop)
        };
        let rotation = async {
            for round in 0..ROUNDS {
                let authorities = [&secured.authority, &second];
                let (signer, other) =
                    (authorities[round as usize % 2], authorities[(round as usize + 1) % 2]);
                let serial = 20 + round;
                signer.bundle(&folder, &[other]);
                signer.revoke(&folder.join("revoked.crl"), &[5_000 + round]);
                for member in members {
                    signer.sign(&folder, &Wanted::local(&member.name, serial));
                }
                all_present(secured, &format!("{serial:02x}")).await;
                let before = put.load(Ordering::Relaxed);
                until("puts to go on", async || (put.load(Ordering::Relaxed) > before + 6).then_some(()))
                    .await;
            }
            done.store(true, Ordering::Relaxed);
        };
        let load = async {
            tokio::join!(writer, rotation);
            let put = put.load(Ordering::Relaxed);
            until("all watches to have everything", async || {
                seen.iter().all(|seen| seen.load(Ordering::Relaxed) == put).then_some(())
            })
            .await;
        };
        tokio::select! {
            ended = watches => panic!("a watch ended: {ended:?}"),
            () = load => {}
        }
        secured.cluster.agree().await;
        let put = put.load(Ordering::Relaxed);
        assert!(put > 6 * ROUNDS, "{put}");
    });
}
