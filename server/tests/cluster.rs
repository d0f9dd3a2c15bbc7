//! Three processes with etcd's flags: a cluster as clients see it.
//!
//! What is written through any member is read through every other; a leader that is killed is replaced, and nothing that was acknowledged is lost; a
//! member that comes back has what it missed; leadership moves when it is asked to, and when a leader is stopped; a minority serves
//! what it has and nothing more.
mod support;

use std::collections::VecDeque;
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use sternpost_server::wire::etcdserverpb::cluster_client::ClusterClient;
use sternpost_server::wire::etcdserverpb::kv_client::KvClient;
use sternpost_server::wire::etcdserverpb::lease_client::LeaseClient;
use sternpost_server::wire::etcdserverpb::maintenance_client::MaintenanceClient;
use sternpost_server::wire::etcdserverpb::{
    HashKvRequest, LeaseGrantRequest, LeaseKeepAliveRequest, LeaseTimeToLiveRequest, MemberListRequest,
    MoveLeaderRequest, PutRequest, RangeRequest, StatusRequest, StatusResponse,
};
use support::process::Program;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

/// Far longer than anything takes; what is waited for is a state.
const PATIENCE: Duration = Duration::from_secs(60);
const LOOK_AGAIN: Duration = Duration::from_millis(20);
const LOG_LINES_KEPT: usize = 60;

/// One process of the cluster.
struct Member {
    name: String,
    client_port: u16,
    peer_port: u16,
    folder: PathBuf,
    child: Option<Child>,
    log: Arc<Mutex<VecDeque<String>>>,
}

impl Member {
    fn start(&mut self, initial_cluster: &str) {
        assert!(self.child.is_none(), "it runs");
        let client_url = format!("http://127.0.0.1:{}", self.client_port);
        let peer_url = format!("http://127.0.0.1:{}", self.peer_port);
        let mut child = Command::new(Program::Sternpost.binary().unwrap())
            .arg(format!("--name={}", self.name))
            .arg(format!("--data-dir={}", self.folder.display()))
            .arg(format!("--listen-client-urls={client_url}"))
            .arg(format!("--advertise-client-urls={client_url}"))
            .arg(format!("--listen-peer-urls={peer_url}"))
            .arg(format!("--initial-advertise-peer-urls={peer_url}"))
            .arg(format!("--initial-cluster={initial_cluster}"))
            .arg("--initial-cluster-state=new")
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let stderr = child.stderr.take().unwrap();
        let log = Arc::clone(&self.log);
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                let mut log = log.lock().unwrap();
                if log.len() == LOG_LINES_KEPT {
                    log.pop_front();
                }
                log.push_back(line);
            }
        });
        self.child = Some(child);
    }

    fn end(&mut self, signal: Signal) {
        let mut child = self.child.take().expect("it runs");
        kill_process(Pid::from_child(&child), signal).unwrap();
        child.wait().unwrap();
    }

    fn channel(&self) -> Channel {
        Endpoint::from_shared(format!("http://127.0.0.1:{}", self.client_port)).unwrap().connect_lazy()
    }

    async fn status(&self) -> Result<StatusResponse, Status> {
        Ok(MaintenanceClient::new(self.channel()).status(StatusRequest {}).await?.into_inner())
    }

    async fn put(&self, key: &str, value: &str) -> Result<i64, Status> {
        let request =
            PutRequest { key: key.to_owned().into(), value: value.to_owned().into(), ..Default::default() };
        let answer = KvClient::new(self.channel()).put(request).await?.into_inner();
        Ok(answer.header.unwrap().revision)
    }

    async fn get(&self, key: &str, serializable: bool) -> Result<Option<String>, Status> {
        let request = RangeRequest { key: key.to_owned().into(), serializable, ..Default::default() };
        let answer = KvClient::new(self.channel()).range(request).await?.into_inner();
        Ok(answer.kvs.first().map(|kv| String::from_utf8(kv.value.to_vec()).unwrap()))
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
            if std::thread::panicking() {
                let log = self.log.lock().unwrap();
                eprintln!("--- {}\n{}", self.name, log.iter().cloned().collect::<Vec<_>>().join("\n"));
            }
        }
    }
}

struct Cluster {
    members: Vec<Member>,
    initial_cluster: String,
    _folder: tempfile::TempDir,
}

impl Cluster {
    fn start() -> Self {
        let folder = tempfile::Builder::new().prefix("sternpost-cluster-").tempdir().unwrap();
        let members: Vec<Member> = (0..3)
            .map(|number| Member {
                name: format!("m{number}"),
                client_port: free_port(),
                peer_port: free_port(),
                folder: folder.path().join(format!("m{number}")),
                child: None,
                log: Arc::default(),
            })
            .collect();
        let urls =
            members.iter().map(|member| format!("{}=http://127.0.0.1:{}", member.name, member.peer_port));
        let initial_cluster = urls.collect::<Vec<_>>().join(",");
        let mut cluster = Self { members, initial_cluster, _folder: folder };
        for number in 0..3 {
            cluster.members[number].start(&cluster.initial_cluster.clone());
        }
        cluster
    }

    fn start_member(&mut self, number: usize) {
        self.members[number].start(&self.initial_cluster.clone());
    }

    fn living(&self) -> impl Iterator<Item = (usize, &Member)> {
        self.members.iter().enumerate().filter(|(_, member)| member.child.is_some())
    }

    /// Waits until all who live name the same leader, and it answers; its number.
    async fn leader(&self) -> usize {
        until("a leader that everybody knows", async || {
            let mut leaders = Vec::new();
            let mut own = Vec::new();
            for (number, member) in self.living() {
                let status = member.status().await.ok()?;
                let id = status.header.as_ref()?.member_id;
                own.push((id, number));
                leaders.push(status.leader);
            }
            let leader = *leaders.first()?;
            let number = own.iter().find(|(id, _)| *id == leader)?.1;
            (leader != 0 && leaders.iter().all(|other| *other == leader)).then_some(number)
        })
        .await
    }

    /// Waits until all who live have the same revision, and compares their hashes.
    async fn agree(&self) {
        until("the same state everywhere", async || {
            let mut hashes = Vec::new();
            for (_, member) in self.living() {
                let mut client = MaintenanceClient::new(member.channel());
                let answer = client.hash_kv(HashKvRequest { revision: 0 }).await.ok()?.into_inner();
                hashes.push((answer.hash, answer.compact_revision, answer.hash_revision));
            }
            let newest = hashes.iter().map(|hash| hash.2).max()?;
            if hashes.iter().any(|hash| hash.2 < newest) {
                return None;
            }
            assert!(
                hashes.iter().all(|hash| *hash == hashes[0]),
                "the same revision and another hash: {hashes:?}"
            );
            Some(())
        })
        .await;
    }
}

/// Looks until there is something, and fails with what was waited for.
async fn until<T>(what: &str, look: impl AsyncFn() -> Option<T>) -> T {
    let found = async {
        loop {
            if let Some(found) = look().await {
                return found;
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    };
    tokio::time::timeout(PATIENCE, found).await.unwrap_or_else(|_| panic!("waited for {what}"))
}

fn free_port() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    std::iter::repeat_with(|| {
        let step = NEXT.fetch_add(1, Ordering::Relaxed);
        u16::try_from(20_000 + (std::process::id().wrapping_mul(89).wrapping_add(step)) % 12_000).unwrap()
    })
    .find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok())
    .unwrap()
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

#[test]
fn a_cluster_survives_its_leader_and_every_member_serves() {
    let mut cluster = Cluster::start();
    runtime().block_on(async {
        let leader = cluster.leader().await;
        // Through each member, read through each.
        for writer in 0..3 {
            let key = format!("from-{writer}");
            cluster.members[writer].put(&key, "1").await.unwrap();
            for reader in 0..3 {
                let read = cluster.members[reader].get(&key, false).await.unwrap();
                assert_eq!(read.as_deref(), Some("1"), "{key} through {reader}");
            }
        }
        let members = ClusterClient::new(cluster.members[leader].channel())
            .member_list(MemberListRequest { linearizable: true })
            .await
            .unwrap()
            .into_inner()
            .members;
        assert_eq!(members.len(), 3);
        let id = cluster.members[leader].status().await.unwrap().header.unwrap().member_id;

        // Killed, replaced; what was acknowledged is there, and writes go on.
        let mut acknowledged = Vec::new();
        for number in 0..50 {
            let key = format!("before-{number}");
            cluster.members[number % 3].put(&key, "x").await.unwrap();
            acknowledged.push(key);
        }
        cluster.members[leader].end(Signal::KILL);
        let next = until("another leader", async || {
            let (_, member) = cluster.living().next()?;
            let leader = member.status().await.ok()?.leader;
            (leader != 0 && leader != id).then_some(leader)
        })
        .await;
        for (number, (_, member)) in cluster.living().enumerate() {
            let key = format!("after-{number}");
            let put =
                until("a put after the leader's death", async || member.put(&key, "y").await.ok()).await;
            assert!(put > 50);
            acknowledged.push(key);
        }
        for key in &acknowledged {
            for (number, member) in cluster.living() {
                assert!(member.get(key, false).await.unwrap().is_some(), "{key} through {number}");
            }
        }
        // Back, it has what it missed.
        cluster.start_member(leader);
        let leads = cluster.leader().await;
        assert_eq!(cluster.members[leads].status().await.unwrap().leader, next, "its return changes nothing");
        cluster.agree().await;
        for key in &acknowledged {
            assert!(cluster.members[leader].get(key, false).await.unwrap().is_some(), "{key}");
        }
        let status = cluster.members[leader].status().await.unwrap();
        assert!(status.raft_term > 1 && status.raft_applied_index <= status.raft_index, "{status:?}");
        assert!(status.errors.is_empty(), "{status:?}");
    });
}

#[test]
fn leadership_moves_and_a_stopped_leader_hands_over() {
    let mut cluster = Cluster::start();
    runtime().block_on(async {
        let leader = cluster.leader().await;
        let target = (leader + 1) % 3;
        let target_id = cluster.members[target].status().await.unwrap().header.unwrap().member_id;
        let move_to = async |member: usize, target_id: u64| {
            MaintenanceClient::new(cluster.members[member].channel())
                .move_leader(MoveLeaderRequest { target_id })
                .await
        };
        let refused = move_to(target, target_id).await.unwrap_err();
        assert_eq!((refused.code(), refused.message()), (Code::FailedPrecondition, "etcdserver: not leader"));
        let refused = move_to(leader, 7).await.unwrap_err();
        assert_eq!(refused.message(), "etcdserver: bad leader transferee");
        move_to(leader, target_id).await.unwrap();
        assert_eq!(cluster.leader().await, target);
        cluster.members[leader].put("moved", "1").await.unwrap();

        // SIGTERM: the others have a leader when the process is gone.
        cluster.members[target].end(Signal::TERM);
        let next = cluster.leader().await;
        assert_ne!(next, target);
        cluster.members[next].put("stopped", "1").await.unwrap();
        cluster.start_member(target);
        cluster.leader().await;
        cluster.agree().await;
    });
}

#[test]
fn a_minority_serves_what_it_has_and_takes_nothing() {
    let mut cluster = Cluster::start();
    runtime().block_on(async {
        cluster.leader().await;
        cluster.members[0].put("k", "v").await.unwrap();
        cluster.agree().await;
        cluster.members[1].end(Signal::KILL);
        cluster.members[2].end(Signal::KILL);
        let alone = &cluster.members[0];
        until("no leader", async || (alone.status().await.ok()?.leader == 0).then_some(())).await;
        let status = alone.status().await.unwrap();
        assert_eq!(status.errors, ["etcdserver: no leader"]);
        assert_eq!(alone.get("k", true).await.unwrap().as_deref(), Some("v"));
        let mut with_leader = tonic::Request::new(PutRequest { key: "k".into(), ..Default::default() });
        with_leader.metadata_mut().insert("hasleader", "true".parse().unwrap());
        let refused = KvClient::new(alone.channel()).put(with_leader).await.unwrap_err();
        assert_eq!((refused.code(), refused.message()), (Code::Unavailable, "etcdserver: no leader"));
        let (read, put) = tokio::join!(alone.get("k", false), alone.put("k", "w"));
        assert_eq!(read.unwrap_err().code(), Code::Unavailable);
        assert_eq!(put.unwrap_err().message(), "etcdserver: request timed out");
        cluster.start_member(1);
        cluster.leader().await;
        let put = until("writes again", async || cluster.members[0].put("k", "z").await.ok()).await;
        assert!(put > 1);
        assert_eq!(cluster.members[1].get("k", false).await.unwrap().as_deref(), Some("z"));
    });
}

#[test]
fn leases_are_kept_through_every_member_and_over_a_change_of_leader() {
    let mut cluster = Cluster::start();
    runtime().block_on(async {
        let leader = cluster.leader().await;
        let follower = (leader + 1) % 3;
        let mut client = LeaseClient::new(cluster.members[follower].channel());
        let lease = client.lease_grant(LeaseGrantRequest { ttl: 600, id: 0 }).await.unwrap().into_inner().id;
        let put = PutRequest { key: "leased".into(), value: "1".into(), lease, ..Default::default() };
        KvClient::new(cluster.members[follower].channel()).put(put).await.unwrap();
        let keep_alive = async |member: usize| {
            let requests = tokio_stream::iter([LeaseKeepAliveRequest { id: lease }]);
            let mut client = LeaseClient::new(cluster.members[member].channel());
            let mut answers = client.lease_keep_alive(requests).await.unwrap().into_inner();
            answers.message().await.unwrap().unwrap().ttl
        };
        for member in 0..3 {
            assert_eq!(keep_alive(member).await, 600, "through {member}");
        }
        cluster.members[leader].end(Signal::KILL);
        cluster.leader().await;
        let member = &cluster.members[follower];
        let left = until("the time that is left", async || {
            let request = LeaseTimeToLiveRequest { id: lease, keys: true };
            Some(LeaseClient::new(member.channel()).lease_time_to_live(request).await.ok()?.into_inner())
        })
        .await;
        assert!(left.ttl > 500 && left.granted_ttl == 600, "{left:?}");
        assert_eq!(left.keys, ["leased"]);
        // A short one ends, on all members.
        let short = until("a short lease", async || {
            let grant = LeaseGrantRequest { ttl: 1, id: 0 };
            Some(LeaseClient::new(member.channel()).lease_grant(grant).await.ok()?.into_inner().id)
        })
        .await;
        let put = PutRequest { key: "short".into(), value: "1".into(), lease: short, ..Default::default() };
        KvClient::new(member.channel()).put(put).await.unwrap();
        until("the end of a lease", async || member.get("short", false).await.ok()?.is_none().then_some(()))
            .await;
        cluster.agree().await;
    });
}
