//! What a real member says of who costs it the most.
mod support;

use sternpost_server::wire::etcdserverpb::RangeRequest;
use sternpost_server::wire::etcdserverpb::kv_client::KvClient;
use sternpost_server::wire::sternpostpb::heavy_hitters_request::Dimension;
use sternpost_server::wire::sternpostpb::usage_client::UsageClient;
use sternpost_server::wire::sternpostpb::{HeavyHittersRequest, HeavyHittersResponse};
use support::cluster::{Cluster, Member, runtime, until};

async fn report(member: &Member, dimension: Dimension, limit: u32) -> HeavyHittersResponse {
    let request = HeavyHittersRequest { dimension: dimension.into(), limit };
    UsageClient::new(member.channel()).heavy_hitters(request).await.unwrap().into_inner()
}

fn names(report: &HeavyHittersResponse) -> Vec<String> {
    report.entries.iter().map(|entry| String::from_utf8(entry.name.to_vec()).unwrap()).collect()
}

#[test]
fn what_costs_most_comes_first_and_names_without_end_take_no_room() {
    runtime().block_on(async {
        let cluster = Cluster::start(1, &[]);
        let member = &cluster.members[0];
        until("the first put", async || member.put("ready", "yes").await.ok()).await;
        for number in 0..64 {
            member.put(&format!("/registry/pods/default/{number}"), &"p".repeat(4096)).await.unwrap();
        }
        // Ten lists of a quarter of a MiB, and each of 1,000 prefixes once.
        let mut kv = KvClient::new(member.channel());
        for _ in 0..10 {
            let list = RangeRequest {
                key: "/registry/pods/".into(),
                range_end: "/registry/pods0".into(),
                ..Default::default()
            };
            assert_eq!(kv.range(list).await.unwrap().into_inner().kvs.len(), 64);
        }
        for number in 0..1000 {
            member.put(&format!("once{number}/key"), "v").await.unwrap();
        }
        let by_prefix = report(member, Dimension::Prefix, 5).await;
        assert_eq!(by_prefix.entries.len(), 5);
        let first = &by_prefix.entries[0];
        assert_eq!(names(&by_prefix)[0], "/registry/pods/");
        assert!(first.sent_bytes > 10 * 64 * 4096 && first.requests >= 10, "{first:?}");
        assert!(first.cost > by_prefix.total_cost / 2 && first.cost <= by_prefix.total_cost, "{by_prefix:?}");
        let all = report(member, Dimension::Prefix, 0).await;
        // One in eight of them, at most as many as there are places.
        assert!((100..=256).contains(&all.entries.len()), "{}", all.entries.len());
        let by_method = report(member, Dimension::Method, 0).await;
        assert_eq!(names(&by_method)[0], "/etcdserverpb.KV/Range");
        assert!(names(&by_method).contains(&"/etcdserverpb.KV/Put".to_owned()));
        let by_client = report(member, Dimension::Client, 0).await;
        assert_eq!(names(&by_client), ["127.0.0.1"]);
        let puts = by_method.entries.iter().find(|entry| entry.name.ends_with(b"/Put")).unwrap();
        assert!((1000..=1100).contains(&puts.requests), "one in eight stands for eight: {puts:?}");
    });
}
