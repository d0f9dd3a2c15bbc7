//! TLS between members and with clients, as real processes: what works, who is refused and how both sides say so, and certificates that change.
mod support;

#[path = "tls/clients.rs"]
mod clients;
#[path = "tls/flags.rs"]
mod flags;
#[path = "tls/hostile.rs"]
mod hostile;
#[path = "tls/members.rs"]
mod members;
#[path = "tls/rotation.rs"]
mod rotation;

use std::path::Path;
use std::sync::Arc;
use support::cluster::{Cluster, Member, until};
use support::tls::{Authority, Pair, Wanted, client, client_flags, peer_flags};

/// A folder of certificates, and a cluster that uses them.
struct Secured {
    authority: Authority,
    cluster: Cluster,
    folder: tempfile::TempDir,
}

impl Secured {
    /// Members with mutual TLS among them and with their clients. `more` are options of all.
    fn start(count: usize, more: impl Fn(&Authority, &Path) -> Vec<String>) -> Self {
        let folder = tempfile::Builder::new().prefix("sternpost-tls-").tempdir().unwrap();
        let authority = Authority::new("the authority");
        let ca = authority.bundle(folder.path(), &[]);
        let of_client = authority.sign(folder.path(), &Wanted::local("client", 900));
        let config = client(Some(&of_client), &ca);
        let cluster = Cluster::start_with(count, |member| {
            set_up(member, &authority, folder.path(), config.clone(), &more(&authority, folder.path()));
        });
        Self { authority, cluster, folder }
    }

    fn plain(count: usize) -> Self {
        Self::start(count, |_, _| Vec::new())
    }

    fn ca(&self) -> std::path::PathBuf {
        self.folder.path().join("ca.pem")
    }
}

fn set_up(
    member: &mut Member,
    authority: &Authority,
    folder: &Path,
    client: Arc<rustls::ClientConfig>,
    more: &[String],
) {
    let pair = authority.sign(folder, &Wanted::local(&member.name, 1));
    member.is_peer_secure = true;
    member.client_tls = Some(client);
    member.options = flags_of(&pair, &folder.join("ca.pem"), more);
}

fn flags_of(pair: &Pair, ca: &Path, more: &[String]) -> Vec<String> {
    let mut flags = peer_flags(pair, ca);
    flags.extend(client_flags(pair, ca));
    flags.extend_from_slice(more);
    flags
}

/// Each of these members takes a write, and every other one reads it.
async fn all_serve(cluster: &Cluster, numbers: &[usize], round: &str) {
    for writer in numbers {
        let key = format!("{round}-{writer}");
        until("a put", async || cluster.members[*writer].put(&key, "1").await.ok()).await;
        for reader in numbers {
            let read = until("a get", async || cluster.members[*reader].get(&key, false).await.ok()).await;
            assert_eq!(read.as_deref(), Some("1"), "{key} through {reader}");
        }
    }
}
