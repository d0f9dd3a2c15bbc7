use crate::support::*;
use sternpost_server::wire::etcdserverpb::alarm_request::AlarmAction;
use sternpost_server::wire::etcdserverpb::*;

/// Everything that a client can see must come back: keys with their history, leases with their full time, alarms, the member.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_keeps_everything_and_gives_leases_their_full_time() {
    let folder = tempfile::tempdir().unwrap();
    let directory = folder.path().join("data");
    let mut server = start_durable(&directory).await;
    for value in ["1", "2", "3"] {
        server.put("a", value).await;
    }
    server.lease.lease_grant(LeaseGrantRequest { id: 7, ttl: 600 }).await.unwrap();
    server.kv.put(PutRequest { lease: 7, ..put("b", "x") }).await.unwrap();
    server.kv.compact(CompactionRequest { revision: 3, physical: true }).await.unwrap();
    let alarm =
        AlarmRequest { action: AlarmAction::Activate.into(), member_id: 9, alarm: AlarmType::Nospace.into() };
    server.maintenance.alarm(alarm).await.unwrap();
    let hash = |revision| HashKvRequest { revision };
    let before = server.maintenance.hash_kv(hash(0)).await.unwrap().into_inner();
    let members = server.cluster.member_list(MemberListRequest::default()).await.unwrap().into_inner();
    server.server.stop().await.unwrap();

    let mut server = start_durable(&directory).await;
    let after = server.maintenance.hash_kv(hash(0)).await.unwrap().into_inner();
    assert_eq!(after, before);
    assert_eq!(server.cluster.member_list(MemberListRequest::default()).await.unwrap().into_inner(), members);
    let old = RangeRequest { revision: 3, ..get("a") };
    assert_eq!(&server.kv.range(old).await.unwrap().into_inner().kvs[0].value[..], b"2");
    let ask = LeaseTimeToLiveRequest { id: 7, keys: true };
    let left = server.lease.lease_time_to_live(ask).await.unwrap().into_inner();
    assert_eq!((left.granted_ttl, left.keys), (600, vec![bytes("b")]));
    assert!(left.ttl >= 598, "{}", left.ttl);
    let status = server.maintenance.status(StatusRequest {}).await.unwrap().into_inner();
    assert_eq!(status.errors, ["memberID:9 alarm:NOSPACE"]);
    let disarm = AlarmRequest { action: AlarmAction::Deactivate.into(), ..alarm };
    server.maintenance.alarm(disarm).await.unwrap();
    assert_eq!(server.put("a", "4").await, 6);
    server.server.stop().await.unwrap();
}
