//! Leaders that go in every way, as real processes under load that is held against linearizability.
//!
//! The rows are those of the list of faults in the design of replication.
mod support;

use rustix::process::Signal;
use std::time::{Duration, Instant};
use sternpost_server::wire::etcdserverpb::cluster_client::ClusterClient;
use sternpost_server::wire::etcdserverpb::kv_client::KvClient;
use sternpost_server::wire::etcdserverpb::lease_client::LeaseClient;
use sternpost_server::wire::etcdserverpb::maintenance_client::MaintenanceClient;
use sternpost_server::wire::etcdserverpb::{
    LeaseGrantRequest, MemberRemoveRequest, MoveLeaderRequest, PutRequest, RangeRequest,
};
use support::cluster::{Cluster, Member, runtime, until};
use support::register::Load;

async fn id(member: &Member) -> u64 {
    until("a member's status", async || Some(member.status().await.ok()?.header?.member_id)).await
}

/// Row 2: everybody at once, three times.
#[test]
fn all_members_are_killed_at_once_and_everything_acknowledged_is_there() {
    runtime().block_on(async {
        let mut load = Load::start(Cluster::start(3, &[])).await;
        for _ in 0..3 {
            (0..3).for_each(|number| load.cluster.members[number].signal(Signal::STOP));
            // None of them hears of the others' end.
            (0..3).for_each(|number| load.cluster.members[number].end(Signal::KILL));
            (0..3).for_each(|number| load.cluster.start_member(number));
            load.goes_on("writes behind it").await;
        }
        load.end().await;
    });
}

/// Row 16.
#[test]
fn a_second_process_does_not_open_a_members_directory() {
    runtime().block_on(async {
        let mut load = Load::start(Cluster::start(3, &[])).await;
        let twin = load.cluster.new_member(&[]);
        load.cluster.members[twin].folder = load.cluster.members[0].folder.clone();
        load.cluster.name(twin);
        load.cluster.start_member(twin);
        until("the twin to wait", async || {
            load.cluster.members[twin].has_said("is locked by process").then_some(())
        })
        .await;
        load.goes_on("writes beside it").await;
        assert_eq!(load.cluster.members[twin].exit_code().await, Some(1), "it gives up");
        load.end().await;
    });
}

/// Row 31: by turns to everybody, and to one who does not answer.
#[test]
fn leadership_moves_under_load_and_not_to_a_member_that_is_stopped() {
    runtime().block_on(async {
        let load = Load::start(Cluster::start(3, &[])).await;
        for round in 0..6 {
            let leader = load.cluster.leader().await;
            let target = (leader + 1 + round % 2) % 3;
            let target_id = id(&load.cluster.members[target]).await;
            let mut client = MaintenanceClient::new(load.cluster.members[leader].channel());
            client.move_leader(MoveLeaderRequest { target_id }).await.unwrap();
            assert_eq!(load.leader_without(leader).await, target);
            load.goes_on("writes behind it").await;
        }
        let leader = load.cluster.leader().await;
        let stopped = (leader + 1) % 3;
        let target_id = id(&load.cluster.members[stopped]).await;
        load.cluster.members[stopped].signal(Signal::STOP);
        let mut client = MaintenanceClient::new(load.cluster.members[leader].channel());
        let refused = client.move_leader(MoveLeaderRequest { target_id }).await.unwrap_err();
        assert!(refused.message().contains("etcdserver: request timed out"), "{refused:?}");
        load.goes_on("writes behind the attempt").await;
        load.cluster.members[stopped].signal(Signal::CONT);
        load.end().await;
    });
}

/// Row 35: it finishes what it has, the others elect, and it ends by itself.
#[test]
fn the_leader_is_removed_under_load() {
    runtime().block_on(async {
        let mut load = Load::start(Cluster::start(3, &[])).await;
        let leader = load.cluster.leader().await;
        let leader_id = id(&load.cluster.members[leader]).await;
        let other = (leader + 1) % 3;
        let mut client = ClusterClient::new(load.cluster.members[other].channel());
        let removed = client.member_remove(MemberRemoveRequest { id: leader_id }).await.unwrap().into_inner();
        assert_eq!(removed.members.len(), 2);
        assert_eq!(load.cluster.members[leader].exit_code().await, Some(0));
        load.goes_on("writes of the others").await;
        load.end().await;
    });
}

/// Row 47: leases whose time is up while their leader dies. None ends before its time, for whoever kept it would have lost it; all end.
#[test]
fn leases_end_late_and_never_early_when_their_leader_dies() {
    const LEASES: i64 = 200;
    const TTL: i64 = 3;
    let mut cluster = Cluster::start(3, &[]);
    runtime().block_on(async {
        let leader = cluster.leader().await;
        let other = cluster.members[(leader + 1) % 3].channel();
        let (mut leases, mut kv) = (LeaseClient::new(other.clone()), KvClient::new(other.clone()));
        let begun = now();
        for lease in 1..=LEASES {
            leases.lease_grant(LeaseGrantRequest { ttl: TTL, id: lease }).await.unwrap();
            let put = PutRequest {
                key: format!("leased-{lease}").into(),
                value: "1".into(),
                lease,
                ..Default::default()
            };
            kv.put(put).await.unwrap();
        }
        let granted = now();
        // About when the first ones end.
        let ttl = Duration::from_secs(TTL as u64);
        tokio::time::sleep(ttl.saturating_sub(begun.elapsed())).await;
        cluster.members[leader].end(Signal::KILL);
        let count = async || {
            let request = RangeRequest {
                key: "leased-".into(),
                range_end: "leased.".into(),
                count_only: true,
                ..Default::default()
            };
            Some(KvClient::new(other.clone()).range(request).await.ok()?.into_inner().count)
        };
        let first = until("an answer", count).await;
        // Those granted last have not had their time.
        assert!(granted.elapsed() >= ttl || first > 0, "a lease ended before its time");
        until("their end", async || (count().await? == 0).then_some(())).await;
        // The new leader gives each its full time again.
        assert!(granted.elapsed() >= ttl, "a lease ended before its time");
        cluster.start_member(leader);
        cluster.leader().await;
        cluster.agree().await;
    });
}

/// Row 56: the others do not wait for its silence. By that alone it would be missed nine seconds later.
#[test]
fn a_leader_that_is_killed_is_replaced_at_once_where_elections_are_quick() {
    const QUICK: &[&str] = &["--heartbeat-interval=1000", "--election-timeout=10000", "--quick-elections"];
    runtime().block_on(async {
        let mut load = Load::start(Cluster::start(3, QUICK)).await;
        for _ in 0..5 {
            let leader = load.cluster.leader().await;
            let term = load.term(leader).await;
            let begun = now();
            load.cluster.members[leader].end(Signal::KILL);
            let next = load.leader_without(leader).await;
            let gap = begun.elapsed();
            eprintln!("the next one leads, and answers, after {gap:?}");
            assert!(gap < Duration::from_secs(8), "{gap:?}");
            assert_eq!(load.term(next).await, term + 1, "one election");
            load.goes_on("writes of the others").await;
            load.cluster.start_member(leader);
            load.cluster.leader().await;
            assert_eq!(load.term(leader).await, term + 1, "it comes back without one");
        }
        load.end().await;
    });
}

#[expect(clippy::disallowed_methods, reason = "times are what some rows are about")]
fn now() -> Instant {
    Instant::now()
}
