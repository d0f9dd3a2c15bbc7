//! What is nearly full, as a real member tells it: before NOSPACE, and no longer when there is room.
mod support;

use sternpost_server::wire::etcdserverpb::kv_client::KvClient;
use sternpost_server::wire::etcdserverpb::maintenance_client::MaintenanceClient;
use sternpost_server::wire::etcdserverpb::{AlarmRequest, CompactionRequest, DeleteRangeRequest, PutRequest};
use sternpost_server::wire::sternpostpb::usage_client::UsageClient;
use sternpost_server::wire::sternpostpb::{SetPrefixQuotaRequest, Warning, WarningsRequest};
use support::cluster::{Cluster, Member, runtime, until};

const QUOTA_BYTES: i64 = 4 << 20;

async fn warnings(member: &Member) -> Vec<Warning> {
    let answer = UsageClient::new(member.channel()).warnings(WarningsRequest {}).await.unwrap();
    // The disk of this machine may be as full as it likes.
    answer.into_inner().warnings.into_iter().filter(|warning| warning.of != "disk").collect()
}

/// The metric, whose label is part of the name in the text of a scrape.
async fn rung(member: &Member, of: &str) -> Option<f64> {
    member.metric(&format!("sternpost_space_warning{{of=\"{of}\"}}")).await
}

async fn alarms(member: &Member) -> usize {
    let answer = MaintenanceClient::new(member.channel()).alarm(AlarmRequest::default()).await.unwrap();
    answer.into_inner().alarms.len()
}

async fn size_percent(member: &Member) -> i64 {
    member.status().await.unwrap().db_size * 100 / QUOTA_BYTES
}

#[test]
fn the_ladder_is_climbed_before_the_alarm_and_climbed_down_by_itself() {
    runtime().block_on(async {
        let quota = format!("--quota-backend-bytes={QUOTA_BYTES}");
        let cluster = Cluster::start(1, &[&quota, "--warnings-in-status"]);
        let member = &cluster.members[0];
        until("the first put", async || member.put("ready", "yes").await.ok()).await;
        assert!(warnings(member).await.is_empty());
        let mut kv = KvClient::new(member.channel());
        let mut number = 0;
        for (percent, expected) in [(81, 1), (91, 2), (96, 3)] {
            while size_percent(member).await < percent {
                let value = vec![b'v'; 16 << 10];
                let put = PutRequest {
                    key: format!("k{number}").into(),
                    value: value.into(),
                    ..Default::default()
                };
                kv.put(put).await.unwrap();
                number += 1;
            }
            let listed = until("the warning", async || {
                warnings(member).await.into_iter().find(|warning| warning.rung == expected)
            })
            .await;
            assert_eq!((listed.of.as_str(), listed.limit), ("quota", QUOTA_BYTES as u64));
            // The rung begins one below; that look may have been a little ago.
            assert!(listed.used * 100 / listed.limit >= percent as u64 - 1, "{listed:?}");
            until("the metric", async || (rung(member, "quota").await? == f64::from(expected)).then_some(()))
                .await;
            assert_eq!(alarms(member).await, 0, "no alarm of etcd's");
            let errors = member.status().await.unwrap().errors;
            assert!(errors.iter().any(|error| error.starts_with("sternpost: the data takes ")), "{errors:?}");
        }
        until("a word in the log", async || member.has_said("nearly full: the data takes 9").then_some(()))
            .await;

        // Everything goes, and its history.
        let all = DeleteRangeRequest { key: "k".into(), range_end: "l".into(), ..Default::default() };
        let revision = kv.delete_range(all).await.unwrap().into_inner().header.unwrap().revision;
        kv.compact(CompactionRequest { revision, physical: true }).await.unwrap();
        until("no warning any more", async || warnings(member).await.is_empty().then_some(())).await;
        until("the metric", async || (rung(member, "quota").await? == 0.0).then_some(())).await;
        member.says("there is room again").await;
        assert!(member.status().await.unwrap().errors.is_empty());
    });
}

#[test]
fn a_prefix_warns_of_its_quota_and_stops_when_that_is_taken_back() {
    runtime().block_on(async {
        let cluster = Cluster::start(1, &[]);
        let member = &cluster.members[0];
        until("the first put", async || member.put("p/0", "yes").await.ok()).await;
        for number in 1..9 {
            member.put(&format!("p/{number}"), "v").await.unwrap();
        }
        let set = async |keys_max| {
            let request = SetPrefixQuotaRequest { prefix: "p/".into(), keys_max };
            UsageClient::new(member.channel()).set_prefix_quota(request).await.unwrap();
        };
        set(Some(10)).await;
        let listed = until("the warning", async || warnings(member).await.pop()).await;
        assert_eq!((&listed.of[..], &listed.prefix[..], listed.rung), ("prefix", &b"p/"[..], 2));
        assert_eq!((listed.used, listed.limit), (9, 10));
        until("the metric", async || (rung(member, "prefix").await? == 2.0).then_some(())).await;
        assert!(member.status().await.unwrap().errors.is_empty(), "not without the flag");
        set(None).await;
        until("no warning any more", async || warnings(member).await.is_empty().then_some(())).await;
        until("the metric", async || (rung(member, "prefix").await? == 0.0).then_some(())).await;
    });
}
