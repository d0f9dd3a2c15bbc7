//! Members among themselves: failover, state, and those who are refused.
use super::{Secured, all_serve, flags_of, set_up};
use crate::support::cluster::{Cluster, runtime, until};
use crate::support::tls::{Authority, Wanted};
use rustix::process::Signal;
use sternpost_server::wire::etcdserverpb::cluster_client::ClusterClient;
use sternpost_server::wire::etcdserverpb::{MemberAddRequest, MemberUpdateRequest};

#[test]
fn members_and_clients_speak_tls_and_a_killed_leader_is_replaced() {
    let mut secured = Secured::plain(3);
    let cluster = &mut secured.cluster;
    runtime().block_on(async {
        let leader = cluster.leader().await;
        all_serve(cluster, &[0, 1, 2], "first").await;
        cluster.members[leader].end(Signal::KILL);
        let living: Vec<usize> = cluster.living().map(|(number, _)| number).collect();
        let next = cluster.leader().await;
        assert_ne!(next, leader);
        all_serve(cluster, &living, "second").await;
        cluster.start_member(leader);
        cluster.leader().await;
        all_serve(cluster, &[0, 1, 2], "third").await;
        cluster.agree().await;
    });
}

/// One alone grows: the new member asks who the others are, fetches their state, and later, after it was away for longer than the log reaches,
/// fetches it again; all of it by TLS.
#[test]
fn states_are_fetched_by_tls() {
    let small_log = ["--wal-retain-bytes=1048576", "--memtable-bytes=1048576"].map(str::to_owned);
    let mut secured = Secured::start(1, |_, _| small_log.to_vec());
    runtime().block_on(async {
        secured.cluster.leader().await;
        fill(&secured.cluster, "before").await;
        for _ in 0..2 {
            let number = secured.cluster.new_member(&[]);
            let config = secured.cluster.members[0].client_tls.clone().unwrap();
            let member = &mut secured.cluster.members[number];
            set_up(member, &secured.authority, secured.folder.path(), config, &small_log);
            let peer_ur_ls = vec![secured.cluster.members[number].peer_url()];
            assert!(peer_ur_ls[0].starts_with("https://"));
            until("the member to be added", async || {
                let request = MemberAddRequest { peer_ur_ls: peer_ur_ls.clone(), is_learner: false };
                ClusterClient::new(secured.cluster.members[0].channel()).member_add(request).await.ok()
            })
            .await;
            secured.cluster.name(number);
            secured.cluster.join(number);
            secured.cluster.members[number].says("fetched the state of another member").await;
            secured.cluster.leader().await;
        }
        all_serve(&secured.cluster, &[0, 1, 2], "grown").await;
        secured.cluster.members[2].end(Signal::KILL);
        fill(&secured.cluster, "away").await;
        secured.cluster.start_member(2);
        secured.cluster.members[2].says("fetched the state of another member").await;
        // It starts itself again with it: a test's process ends instead, or goes on, as the supervisor would have it.
        until("the member to be back", async || {
            secured.cluster.members[2].get("away-79", true).await.ok().flatten()
        })
        .await;
        secured.cluster.agree().await;
    });
}

/// More than the log keeps.
async fn fill(cluster: &Cluster, prefix: &str) {
    for number in 0..80 {
        let value = format!("{number:08}").repeat(128 << 10);
        let key = format!("{prefix}-{number}");
        until("a put", async || cluster.members[0].put(&key, &value).await.ok()).await;
    }
}

/// A member comes back with a certificate that is wrong in one way. It and the others say so, the others go on, and with the right one it is
/// a member again.
#[test]
fn a_member_with_a_wrong_certificate_is_refused_and_both_sides_say_why() {
    let more = |authority: &Authority, folder: &std::path::Path| {
        let list = folder.join("revoked.der");
        authority.revoke(&list, &[0x6666]);
        vec!["--peer-cert-allowed-cn=m0,m1,m2".to_owned(), format!("--peer-crl-file={}", list.display())]
    };
    let mut secured = Secured::start(3, more);
    let stranger = Authority::new("a stranger");
    let good = Wanted::local("m2", 1);
    let wrong = |serial| Wanted { name: "wrong".into(), ..Wanted::local("m2", serial) };
    runtime().block_on(async {
        secured.cluster.leader().await;
        let of_two = secured.cluster.members[2].options.clone();
        // What is wrong; what the others say; what the member itself says.
        let cases = [
            (wrong(0x51), true, "it is signed by no CA of", "it refuses our certificate"),
            (
                Wanted { days: (-9, -1), ..wrong(0x52) },
                false,
                "it expired on",
                "CertificateExpired; its log says why",
            ),
            (
                Wanted { common_name: "intruder".into(), ..wrong(0x53) },
                false,
                "client certificate authentication failed",
                "it refuses our certificate",
            ),
            (
                wrong(0x6666),
                false,
                "transport: certificate serial 6666 revoked",
                "it refuses our certificate",
            ),
            (
                Wanted { hosts: vec!["10.9.8.7".into()], ..wrong(0x54) },
                false,
                "x509: certificate is valid for 10.9.8.7, not 127.0.0.1",
                "cannot be reached at",
            ),
        ];
        for (number, (wanted, by_stranger, others_say, it_says)) in cases.into_iter().enumerate() {
            secured.cluster.members[2].end(Signal::KILL);
            let signer = if by_stranger { &stranger } else { &secured.authority };
            let pair = signer.sign(secured.folder.path(), &wanted);
            let member = &mut secured.cluster.members[2];
            // The last one of a flag counts.
            member.options = of_two.clone();
            member.options.push(format!("--peer-cert-file={}", pair.cert.display()));
            member.options.push(format!("--peer-key-file={}", pair.key.display()));
            secured.cluster.start_member(2);
            let serial = format!("serial {:02x}", wanted.serial);
            until(others_say, async || {
                let said = secured.cluster.members[..2]
                    .iter()
                    .any(|member| member.has_said_all(&["rejected connection on peer endpoint", others_say]));
                said.then_some(())
            })
            .await;
            secured.cluster.members[2].says(it_says).await;
            let named = |member: &crate::support::cluster::Member| member.has_said(&serial);
            assert!(secured.cluster.members.iter().any(named), "{serial}");
            all_serve(&secured.cluster, &[0, 1], &format!("without-{number}")).await;
        }
        secured.cluster.members[2].end(Signal::KILL);
        let pair = secured.authority.sign(secured.folder.path(), &good);
        let more = more(&secured.authority, secured.folder.path());
        let ca = secured.ca();
        secured.cluster.members[2].options = flags_of(&pair, &ca, &more);
        secured.cluster.start_member(2);
        secured.cluster.leader().await;
        all_serve(&secured.cluster, &[0, 1, 2], "again").await;
        secured.cluster.agree().await;
    });
}

/// Somebody without TLS at a port with it, and the other way round: the members say what has been mixed up.
#[test]
fn a_member_without_tls_is_no_member_of_a_cluster_with_it() {
    let mut secured = Secured::plain(3);
    runtime().block_on(async {
        secured.cluster.leader().await;
        secured.cluster.members[2].end(Signal::KILL);
        let options = secured.cluster.members[2].options.clone();
        let url = secured.cluster.members[2].peer_url();
        let plain = url.replace("https", "http");
        // The same address, which it serves without TLS; the table goes on saying https.
        secured.cluster.members[2].options.push(format!("--listen-peer-urls={plain}"));
        secured.cluster.start_member(2);
        secured.cluster.members[2].says("the other side speaks TLS").await;
        until("the others to notice", async || {
            let said = |member: &crate::support::cluster::Member| {
                member.has_said("http and https URLs may have been mixed up")
            };
            secured.cluster.members[..2].iter().any(said).then_some(())
        })
        .await;
        all_serve(&secured.cluster, &[0, 1], "without").await;
        secured.cluster.members[2].end(Signal::KILL);
        secured.cluster.members[2].options = options;
        secured.cluster.start_member(2);
        secured.cluster.leader().await;
        all_serve(&secured.cluster, &[0, 1, 2], "with").await;
    });
}

/// A cluster of http becomes one of https while it serves: all get certificates, then one after the other gets another URL.
#[test]
fn a_cluster_without_tls_becomes_one_with_it() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new("the authority");
    let ca = authority.bundle(folder.path(), &[]);
    let mut cluster = Cluster::start(3, &[]);
    runtime().block_on(async {
        cluster.leader().await;
        all_serve(&cluster, &[0, 1, 2], "plain").await;
        let mut ids = Vec::new();
        for number in 0..3 {
            ids.push(cluster.members[number].status().await.unwrap().header.unwrap().member_id);
            cluster.members[number].end(Signal::TERM);
            let pair = authority.sign(folder.path(), &Wanted::local(&format!("m{number}"), 1));
            cluster.members[number].options = crate::support::tls::peer_flags(&pair, &ca);
            cluster.start_member(number);
            cluster.members[number].says("scheme is HTTP while key and cert files are present").await;
            cluster.leader().await;
        }
        for (number, id) in ids.into_iter().enumerate() {
            let peer_ur_ls = vec![cluster.members[number].peer_url().replace("http:", "https:")];
            until("the new URL to be taken", async || {
                // Of another one: once the others have it, they do not reach this one any more, to tell it that they have.
                let asked = &cluster.members[(number + 1) % 3];
                let request = MemberUpdateRequest { id, peer_ur_ls: peer_ur_ls.clone() };
                ClusterClient::new(asked.channel()).member_update(request).await.ok()
            })
            .await;
            cluster.members[number].end(Signal::TERM);
            cluster.members[number].is_peer_secure = true;
            cluster.start_member(number);
            cluster.leader().await;
            all_serve(&cluster, &[0, 1, 2], &format!("half-{number}")).await;
        }
        cluster.agree().await;
    });
}

/// What a server signs itself is enough for the wire, is kept, and is nobody's else's to read.
#[test]
fn certificates_that_members_sign_themselves_are_made_once() {
    use std::os::unix::fs::PermissionsExt;
    use sternpost_server::tls::connect::ClientOptions;
    let options = ClientOptions { skips_verification: true, ..ClientOptions::default() };
    let config = options.config().unwrap();
    let mut cluster = Cluster::start_with(3, |member| {
        member.is_peer_secure = true;
        member.client_tls = Some(config.clone());
        member.options = vec!["--auto-tls".into(), "--peer-auto-tls".into()];
    });
    runtime().block_on(async {
        cluster.leader().await;
        all_serve(&cluster, &[0, 1, 2], "first").await;
        let fixtures = cluster.members[0].folder.join("fixtures");
        let read = |name: &str| std::fs::read(fixtures.join(name)).unwrap();
        let before = (read("client/cert.pem"), read("peer/cert.pem"));
        assert_ne!(before.0, before.1);
        let mode = std::fs::metadata(fixtures.join("peer/key.pem")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        cluster.members[0].end(Signal::TERM);
        cluster.start_member(0);
        cluster.leader().await;
        assert!((read("client/cert.pem"), read("peer/cert.pem")) == before, "they were made again");
        all_serve(&cluster, &[0, 1, 2], "second").await;
    });
}
