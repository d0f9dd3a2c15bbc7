//! Clusters to speak to: the real etcd as processes, ours inside this one.
//!
//! **Contract.** `Cluster::start` returns when there is a leader, which is the member with the least id. Members stand in the order of
//! their ids, since that is how servers list them. Processes are killed when the value is dropped; servers of ours live
//! as long as the test does.
use super::ports::free_port;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use sternpost_server::config::{self, Request};
use sternpost_server::wire::etcdserverpb as pb;
use sternpost_server::wire::etcdserverpb::cluster_client::ClusterClient;
use sternpost_server::wire::etcdserverpb::maintenance_client::MaintenanceClient;

/// A start takes a second; the rest is for a busy machine.
const PATIENCE: Duration = Duration::from_secs(180);
const LOOK_AGAIN: Duration = Duration::from_millis(30);
/// They differ in length from nothing that a server prints.
const NAMES: [&str; 3] = ["alder", "birch", "cedar"];

/// Whose server it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Server {
    Etcd,
    Sternpost,
}

/// One member as the others know it.
#[derive(Clone, Debug)]
pub(crate) struct Member {
    pub(crate) id: u64,
    pub(crate) name: String,
    pub(crate) client_port: u16,
    pub(crate) peer_port: u16,
}

pub(crate) struct Cluster {
    pub(crate) id: u64,
    /// In the order of their ids; the first leads.
    pub(crate) members: Vec<Member>,
    processes: Vec<Child>,
    _folder: tempfile::TempDir,
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for process in &mut self.processes {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

/// A program of the peers' folder (`STERNPOST_PEERS`, or the cache folder that `benches/peers/build.sh` uses).
pub(crate) fn peer(name: &str) -> Option<PathBuf> {
    let folder = std::env::var_os("STERNPOST_PEERS").map(PathBuf::from).unwrap_or_else(|| {
        let home = std::env::var_os("HOME").map(PathBuf::from).unwrap_or_default();
        let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
        cache.unwrap_or_else(|| home.join(".cache")).join("sternpost/peers")
    });
    let path = folder.join(name);
    path.is_file().then_some(path)
}

impl Cluster {
    pub(crate) fn start(server: Server, members_count: usize, flags: &[String]) -> Self {
        let folder = tempfile::tempdir().expect("a temporary directory");
        let members: Vec<Member> = (0..members_count)
            .map(|index| Member {
                id: 0,
                name: NAMES[index].to_owned(),
                client_port: free_port(),
                peer_port: free_port(),
            })
            .collect();
        let initial: Vec<String> =
            members.iter().map(|it| format!("{}=http://127.0.0.1:{}", it.name, it.peer_port)).collect();
        let mut processes = Vec::new();
        for member in &members {
            let (client, peer) = (member.client_port, member.peer_port);
            let mut arguments = vec![
                format!("--name={}", member.name),
                format!("--data-dir={}", folder.path().join(&member.name).display()),
                format!("--listen-client-urls=http://127.0.0.1:{client}"),
                format!("--advertise-client-urls=http://127.0.0.1:{client}"),
                format!("--listen-peer-urls=http://127.0.0.1:{peer}"),
                format!("--initial-advertise-peer-urls=http://127.0.0.1:{peer}"),
                format!("--initial-cluster={}", initial.join(",")),
            ];
            arguments.extend(flags.iter().cloned());
            match server {
                Server::Etcd => processes.push(start_etcd(&arguments)),
                Server::Sternpost => start_sternpost(&arguments),
            }
        }
        let mut cluster = Self { id: 0, members, processes, _folder: folder };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let begun = cluster.begin();
            tokio::time::timeout(PATIENCE, begun).await.unwrap_or_else(|_| panic!("{server:?}: no leader"))
        });
        cluster
    }

    /// Waits for all to be known, and has the first one lead.
    async fn begin(&mut self) {
        for member in &mut self.members {
            loop {
                // etcd's store takes its version when all members have told the leader theirs.
                if let Some(status) = status(member.client_port).await
                    && status.leader != 0
                    && status.storage_version == "3.7.0"
                {
                    let header = status.header.expect("servers send it");
                    (self.id, member.id) = (header.cluster_id, header.member_id);
                    break;
                }
                tokio::time::sleep(LOOK_AGAIN).await;
            }
        }
        self.members.sort_by_key(|member| member.id);
        let first = self.members[0].clone();
        // Everybody must have told the others its client URLs before they are listed.
        while !self.all_are_listed().await {
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        let mut agreed_count = 0;
        while agreed_count < self.members.len() {
            agreed_count = 0;
            for member in &self.members {
                let leader = status(member.client_port).await.map_or(0, |status| status.leader);
                if leader == first.id {
                    agreed_count += 1;
                } else if leader == member.id {
                    let url = format!("http://127.0.0.1:{}", member.client_port);
                    if let Ok(mut maintenance) = MaintenanceClient::connect(url).await {
                        // It may lead no more, which the next look tells.
                        let _ = maintenance.move_leader(pb::MoveLeaderRequest { target_id: first.id }).await;
                    }
                }
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    async fn all_are_listed(&self) -> bool {
        for member in &self.members {
            let url = format!("http://127.0.0.1:{}", member.client_port);
            let Ok(mut client) = ClusterClient::connect(url).await else { return false };
            let list = client.member_list(pb::MemberListRequest { linearizable: false }).await;
            let is_listed = list.is_ok_and(|list| {
                let members = list.into_inner().members;
                members.len() == self.members.len() && members.iter().all(|it| !it.client_ur_ls.is_empty())
            });
            if !is_listed {
                return false;
            }
        }
        true
    }
}

async fn status(client_port: u16) -> Option<pb::StatusResponse> {
    let url = format!("http://127.0.0.1:{client_port}");
    let mut maintenance = MaintenanceClient::connect(url).await.ok()?;
    maintenance.status(pb::StatusRequest {}).await.ok().map(|response| response.into_inner())
}

fn start_etcd(arguments: &[String]) -> Child {
    Command::new(peer("etcd").expect("looked for before"))
        .args(arguments)
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("etcd starts")
}

fn start_sternpost(arguments: &[String]) {
    let loaded = match config::load(arguments, &[]) {
        Ok(Request::Serve(loaded)) => loaded,
        _ => panic!("the flags are etcd's: {arguments:?}"),
    };
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        let runtime = runtime.expect("a runtime");
        runtime.block_on(sternpost_server::run::run(*loaded)).expect("the server runs until the test ends");
    });
}
