//! TLS between members and with clients, as real processes: what works, who is refused and how both sides say so, and certificates that change.
mod support;

use rustix::process::Signal;
use std::path::Path;
use support::cluster::{Cluster, Member, runtime, until};
use support::tls::{Authority, Pair, Wanted, client, client_flags, peer_flags};

/// A folder of certificates, and a cluster that uses them.
struct Secured {
    authority: Authority,
    cluster: Cluster,
    folder: tempfile::TempDir,
}

impl Secured {
    /// Members with mutual TLS among them and with their clients.
    fn start(count: usize, more: &[&str]) -> Self {
        let folder = tempfile::Builder::new().prefix("sternpost-tls-").tempdir().unwrap();
        let authority = Authority::new("the authority");
        let ca = authority.bundle(folder.path(), &[]);
        let of_client = authority.sign(folder.path(), &Wanted::local("client", 900));
        let config = client(Some(&of_client), &ca);
        let cluster = Cluster::start_with(count, |member| {
            let pair = authority.sign(folder.path(), &Wanted::local(&member.name, 1));
            secure(member, &pair, &ca, more);
            member.client_tls = Some(config.clone());
        });
        Self { authority, cluster, folder }
    }
}

fn secure(member: &mut Member, pair: &Pair, ca: &Path, more: &[&str]) {
    member.is_peer_secure = true;
    member.options = peer_flags(pair, ca);
    member.options.extend(client_flags(pair, ca));
    member.options.extend(more.iter().map(ToString::to_string));
}

/// Every living member takes a write, and every other one reads it.
async fn all_serve(cluster: &Cluster, round: &str) {
    for (writer, member) in cluster.living() {
        let key = format!("{round}-{writer}");
        until("a put", async || member.put(&key, "1").await.ok()).await;
        for (reader, other) in cluster.living() {
            let read = until("a get", async || other.get(&key, false).await.ok()).await;
            assert_eq!(read.as_deref(), Some("1"), "{key} through {reader}");
        }
    }
}

#[test]
fn members_and_clients_speak_tls_and_a_killed_leader_is_replaced() {
    let mut secured = Secured::start(3, &[]);
    let cluster = &mut secured.cluster;
    runtime().block_on(async {
        let leader = cluster.leader().await;
        all_serve(cluster, "first").await;
        cluster.members[leader].end(Signal::KILL);
        let next = cluster.leader().await;
        assert_ne!(next, leader);
        all_serve(cluster, "second").await;
        cluster.start_member(leader);
        cluster.leader().await;
        all_serve(cluster, "third").await;
        cluster.agree().await;
    });
}
