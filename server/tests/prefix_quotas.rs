//! Quotas of prefixes in a group of real members: agreed by all, kept by all, whatever becomes of them.
mod support;

use rustix::process::Signal;
use sternpost_server::wire::etcdserverpb::kv_client::KvClient;
use sternpost_server::wire::etcdserverpb::{DeleteRangeRequest, PutRequest};
use sternpost_server::wire::sternpostpb::usage_client::UsageClient;
use sternpost_server::wire::sternpostpb::{PrefixQuota, PrefixQuotasRequest, SetPrefixQuotaRequest};
use support::changes::Calls;
use support::cluster::{Cluster, Member, runtime, until};
use tonic::{Code, Status};

async fn set(member: &Member, prefix: &str, keys_max: Option<u64>) -> Result<(), Status> {
    let request = SetPrefixQuotaRequest { prefix: prefix.to_owned().into(), keys_max };
    UsageClient::new(member.channel()).set_prefix_quota(request).await.map(drop)
}

async fn quotas(member: &Member) -> Option<Vec<PrefixQuota>> {
    let answer = UsageClient::new(member.channel()).prefix_quotas(PrefixQuotasRequest {}).await;
    Some(answer.ok()?.into_inner().quotas)
}

/// Waits until every living member says this of the one quota.
async fn all_say(cluster: &Cluster, keys: u64, keys_max: u64) {
    for (number, member) in cluster.living() {
        until(&format!("member {number} to count {keys} of {keys_max} keys"), async || {
            let quotas = quotas(member).await?;
            (quotas.len() == 1 && (quotas[0].keys, quotas[0].keys_max) == (keys, keys_max)).then_some(())
        })
        .await;
    }
}

async fn is_full(member: &Member, key: &str) {
    let refused = until("an answer", async || match member.put(key, "v").await {
        Err(status) if status.code() == Code::ResourceExhausted => Some(status),
        Err(_) => None,
        Ok(_) => panic!("{key} is one too many"),
    })
    .await;
    assert!(
        refused.message().starts_with("sternpost: the quota of keys that begin with \"jobs/\""),
        "{refused}"
    );
}

#[test]
fn all_members_keep_to_a_quota_through_restarts_and_so_does_one_that_joins() {
    runtime().block_on(async {
        // Checkpoints come often, so that a start has both a checkpoint and a log.
        let mut cluster = Cluster::start(3, &["--memtable-bytes=1048576", "--wal-retain-bytes=1048576"]);
        let leader = cluster.leader().await;
        let follower = (leader + 1) % 3;
        let put = async |number: usize, key: String, bytes: usize| {
            let mut kv = KvClient::new(cluster.members[number].channel());
            kv.put(PutRequest { key: key.into(), value: vec![b'v'; bytes].into(), ..Default::default() })
                .await
        };
        for number in 0..10 {
            put(follower, format!("jobs/{number}"), 10).await.unwrap();
        }
        set(&cluster.members[follower], "jobs/", Some(12)).await.unwrap();
        put(leader, "jobs/10".into(), 10).await.unwrap();
        put(follower, "jobs/11".into(), 10).await.unwrap();
        for member in &cluster.members {
            is_full(member, "jobs/12").await;
            assert!(member.put("jobs/11", "another").await.is_ok(), "it exists");
        }
        all_say(&cluster, 12, 12).await;

        // Beyond a checkpoint, then killed, all at once.
        for number in 0..64 {
            put(leader, format!("filler/{number}"), 64 << 10).await.unwrap();
        }
        cluster.members[leader].put("jobs/3", "changed").await.unwrap();
        for number in 0..3 {
            cluster.members[number].end(Signal::KILL);
        }
        (0..3).for_each(|number| cluster.start_member(number));
        let leader = cluster.leader().await;
        for member in &cluster.members {
            is_full(member, "jobs/12").await;
        }
        all_say(&cluster, 12, 12).await;

        // One more member, which gets its state from the others.
        let new = cluster.new_member(&["--memtable-bytes=1048576"]);
        let url = cluster.members[new].peer_url();
        until("the member to be added", async || {
            Cluster::add(&cluster.members[leader], url.clone(), false).await.ok()
        })
        .await;
        cluster.name(new);
        cluster.join(new);
        cluster.catches_up(new, leader).await;
        is_full(&cluster.members[new], "jobs/12").await;
        all_say(&cluster, 12, 12).await;

        let delete =
            DeleteRangeRequest { key: "jobs/1".into(), range_end: "jobs/2".into(), ..Default::default() };
        let mut kv = KvClient::new(cluster.members[new].channel());
        assert_eq!(kv.delete_range(delete).await.unwrap().into_inner().deleted, 3);
        all_say(&cluster, 9, 12).await;
        cluster.members[new].put("jobs/12", "v").await.unwrap();
        all_say(&cluster, 10, 12).await;
        set(&cluster.members[new], "jobs/", Some(1)).await.unwrap();
        is_full(&cluster.members[leader], "jobs/13").await;
        all_say(&cluster, 10, 1).await;
        set(&cluster.members[leader], "jobs/", None).await.unwrap();
        cluster.members[new].put("jobs/13", "v").await.unwrap();
        cluster.agree().await;
    });
}

#[test]
fn a_quota_that_makes_no_sense_is_refused() {
    runtime().block_on(async {
        let cluster = Cluster::start(1, &[]);
        let member = &cluster.members[0];
        until("the first put", async || member.put("ready", "yes").await.ok()).await;
        for prefix in [String::new(), "p".repeat(1025)] {
            let error = set(member, &prefix, Some(1)).await.unwrap_err();
            assert_eq!(error.code(), Code::InvalidArgument, "{error}");
        }
        assert_eq!(set(member, "none", None).await.unwrap_err().code(), Code::NotFound);
        for number in 0..64 {
            set(member, &format!("{number}/"), Some(number)).await.unwrap();
        }
        let error = set(member, "64/", Some(1)).await.unwrap_err();
        assert_eq!(error.code(), Code::ResourceExhausted, "{error}");
        set(member, "3/", Some(5)).await.unwrap();
        assert_eq!(quotas(member).await.unwrap().len(), 64);
        assert_eq!(member.metric("sternpost_prefix_quotas").await, Some(64.0));
    });
}
