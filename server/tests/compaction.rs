//! Automatic compaction with real processes: alone, beside etcd, and in a group whose leader dies. When what is due is tested in `src/compactor.rs`.
mod support;

use rustix::process::Signal;
use sternpost_server::wire::etcdserverpb::kv_client::KvClient;
use sternpost_server::wire::etcdserverpb::{PutRequest, RangeRequest};
use support::cluster::{Cluster, runtime, until};
use support::process::{Program, Server, required};
use tonic::Code;
use tonic::transport::{Channel, Endpoint};

const FLAGS: [&str; 2] = ["--auto-compaction-mode=periodic", "--auto-compaction-retention=1s"];

/// Puts once; answers the revision.
async fn put(channel: &Channel) -> Option<i64> {
    let request = PutRequest { key: "k".into(), ..Default::default() };
    Some(KvClient::new(channel.clone()).put(request).await.ok()?.into_inner().header?.revision)
}

/// Some if what was there at `revision` is compacted.
async fn is_compacted(channel: &Channel, revision: i64) -> Option<()> {
    let request = RangeRequest { key: "k".into(), revision, serializable: true, ..Default::default() };
    let status = KvClient::new(channel.clone()).range(request).await.err()?;
    (status.code() == Code::OutOfRange
        && status.message() == "etcdserver: mvcc: required revision has been compacted")
        .then_some(())
}

#[test]
fn what_is_older_than_the_retention_is_compacted() {
    let mut programs = vec![Program::Sternpost];
    match Program::Etcd.binary() {
        Ok(_) => programs.push(Program::Etcd),
        Err(missing) => {
            assert!(!required("STERNPOST_REQUIRE_PEERS"), "{missing}");
            eprintln!("skipped for etcd: {missing}");
        }
    }
    for program in programs {
        let server = Server::start(program, &FLAGS.map(str::to_owned));
        runtime().block_on(async {
            let channel = Endpoint::from_shared(server.endpoint()).unwrap().connect_lazy();
            let first = until("a first write", async || put(&channel).await).await;
            until("the first compaction", async || {
                put(&channel).await?;
                is_compacted(&channel, first).await
            })
            .await;
            let last = put(&channel).await.unwrap();
            // What is the newest stays readable, however often it is compacted.
            until("the next one", async || {
                let newest = put(&channel).await?;
                assert_eq!(is_compacted(&channel, newest).await, None);
                is_compacted(&channel, last).await
            })
            .await;
        });
    }
}

#[test]
fn a_new_leader_goes_on_compacting() {
    runtime().block_on(async {
        let mut cluster = Cluster::start(3, &FLAGS);
        let leader = cluster.leader().await;
        let term = cluster.members[leader].status().await.unwrap().raft_term;
        let others = [(leader + 1) % 3, (leader + 2) % 3];
        let channel = cluster.members[others[0]].channel();
        let first = until("a first write", async || put(&channel).await).await;
        for member in &cluster.members {
            let at = member.channel();
            until("a compaction, at every member", async || {
                put(&channel).await?;
                is_compacted(&at, first).await
            })
            .await;
        }
        cluster.members[leader].says("completed auto compaction").await;
        // On a busy machine another one may have led in between.
        let is_same = cluster.members[leader].status().await.unwrap().raft_term == term;
        for other in others.into_iter().filter(|_| is_same) {
            let has_compacted = cluster.members[other].has_said("completed auto compaction");
            assert!(!has_compacted, "only the leader compacts");
        }
        cluster.members[leader].end(Signal::KILL);
        let behind = until("a write with the next leader", async || put(&channel).await).await;
        until("its compaction", async || {
            put(&channel).await?;
            is_compacted(&channel, behind).await
        })
        .await;
        cluster.start_member(leader);
        cluster.agree().await;
    });
}
