//! Three processes with etcd's flags: a cluster as clients see it.
//!
//! What is written through any member is read through every other; a leader that is killed is replaced, and nothing that was acknowledged is lost; a
//! member that comes back has what it missed; leadership moves when it is asked to, and when a leader is stopped; a minority serves
//! what it has and nothing more.
mod support;

use rustix::process::Signal;
use sternpost_server::wire::etcdserverpb::cluster_client::ClusterClient;
use sternpost_server::wire::etcdserverpb::kv_client::KvClient;
use sternpost_server::wire::etcdserverpb::lease_client::LeaseClient;
use sternpost_server::wire::etcdserverpb::maintenance_client::MaintenanceClient;
use sternpost_server::wire::etcdserverpb::{
    LeaseGrantRequest, LeaseKeepAliveRequest, LeaseTimeToLiveRequest, MemberListRequest, MoveLeaderRequest,
    PutRequest,
};
use support::cluster::{Cluster, runtime, until};
use tonic::Code;

#[test]
fn a_cluster_survives_its_leader_and_every_member_serves() {
    let mut cluster = Cluster::start(3, &[]);
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
    let mut cluster = Cluster::start(3, &[]);
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
    let mut cluster = Cluster::start(3, &[]);
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
    let mut cluster = Cluster::start(3, &[]);
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
