use crate::support::*;
use sternpost_server::server::ServerOptions;
use sternpost_server::wire::etcdserverpb::alarm_request::AlarmAction;
use sternpost_server::wire::etcdserverpb::*;
use tonic::Code;

const NO_SPACE: &str = "etcdserver: mvcc: database space exceeded";

async fn status(server: &mut Running) -> StatusResponse {
    server.maintenance.status(StatusRequest {}).await.unwrap().into_inner()
}

fn alarm(action: AlarmAction, member_id: u64, alarm: AlarmType) -> AlarmRequest {
    AlarmRequest { action: action.into(), member_id, alarm: alarm.into() }
}

#[tokio::test]
async fn status_says_what_clients_parse() {
    let mut server = start().await;
    let found = status(&mut server).await;
    assert_eq!((found.version.as_str(), found.storage_version.as_str()), ("3.7.3", "3.7.0"));
    assert_eq!(found.leader, found.header.unwrap().member_id);
    assert!(found.db_size > 0 && found.db_size < 53 << 10, "{}", found.db_size);
    assert_eq!((found.db_size_quota, found.downgrade_info), (2_147_483_648, Some(DowngradeInfo::default())));
    assert_eq!((found.raft_term, found.errors, found.is_learner), (1, vec![], false));
    assert!(found.raft_index >= 2 && found.raft_applied_index == found.raft_index);
}

#[tokio::test]
async fn a_full_store_refuses_puts_until_it_is_compacted_and_the_alarm_disarmed() {
    let mut server = start_with(ServerOptions { quota_bytes: Some(53_248), ..Default::default() }).await;
    let value = "x".repeat(4000);
    let mut puts = 0;
    let refusal = loop {
        match server.kv.put(put("a", &value)).await {
            Ok(_) => puts += 1,
            Err(status) => break status,
        }
        assert!(puts < 13, "the quota is never reached");
    };
    assert_eq!((refusal.code(), refusal.message()), (Code::ResourceExhausted, NO_SPACE));
    let full = status(&mut server).await;
    assert_eq!(full.errors, [format!("memberID:{} alarm:NOSPACE", full.leader)]);

    // What frees space, and what only reads, still goes.
    refused(server.kv.put(put("b", "")).await, Code::ResourceExhausted, NO_SPACE);
    let txn = TxnRequest { failure: vec![put_op("b", "1")], ..Default::default() };
    refused(server.kv.txn(txn).await, Code::ResourceExhausted, NO_SPACE);
    let grant = LeaseGrantRequest { ttl: 60, id: 7 };
    refused(server.lease.lease_grant(grant).await, Code::ResourceExhausted, NO_SPACE);
    assert!(server.get("a").await.is_some());
    let delete = TxnRequest { success: vec![delete_op("a")], ..Default::default() };
    let revision = server.kv.txn(delete).await.unwrap().into_inner().header.unwrap().revision;
    let compact = CompactionRequest { revision, physical: true };
    server.kv.compact(compact).await.unwrap();
    assert_eq!(server.maintenance.defragment(DefragmentRequest {}).await.unwrap().into_inner().header, None);
    assert!(status(&mut server).await.db_size < full.db_size);

    // The alarm stays until somebody takes it back.
    refused(server.kv.put(put("b", "")).await, Code::ResourceExhausted, NO_SPACE);
    let list =
        server.maintenance.alarm(alarm(AlarmAction::Get, 0, AlarmType::None)).await.unwrap().into_inner();
    assert_eq!(list.alarms, [AlarmMember { member_id: full.leader, alarm: AlarmType::Nospace.into() }]);
    let disarm = alarm(AlarmAction::Deactivate, full.leader, AlarmType::Nospace);
    let disarmed = server.maintenance.alarm(disarm).await.unwrap().into_inner();
    assert_eq!(disarmed.alarms, list.alarms);
    assert!(server.kv.put(put("b", "")).await.is_ok());
}

#[tokio::test]
async fn alarms_are_raised_once_and_none_is_no_alarm() {
    let mut server = start().await;
    let raised = alarm(AlarmAction::Activate, 7, AlarmType::Corrupt);
    for _ in 0..2 {
        let answer = server.maintenance.alarm(raised).await.unwrap().into_inner();
        assert_eq!(answer.alarms, [AlarmMember { member_id: 7, alarm: AlarmType::Corrupt.into() }]);
    }
    let text = "etcdserver: corrupt cluster";
    refused(server.kv.put(put("a", "")).await, Code::DataLoss, text);
    refused(
        server.kv.delete_range(DeleteRangeRequest { key: bytes("a"), ..Default::default() }).await,
        Code::DataLoss,
        text,
    );
    refused(server.lease.lease_grant(LeaseGrantRequest { ttl: 60, id: 7 }).await, Code::DataLoss, text);
    assert!(server.kv.range(get("a")).await.is_ok());
    assert_eq!(status(&mut server).await.errors, ["memberID:7 alarm:CORRUPT"]);
    let none = alarm(AlarmAction::Activate, 7, AlarmType::None);
    assert_eq!(server.maintenance.alarm(none).await.unwrap().into_inner().alarms, []);
    let other = alarm(AlarmAction::Deactivate, 8, AlarmType::Corrupt);
    assert_eq!(server.maintenance.alarm(other).await.unwrap().into_inner().alarms, []);
    let disarm = alarm(AlarmAction::Deactivate, 7, AlarmType::Corrupt);
    assert_eq!(server.maintenance.alarm(disarm).await.unwrap().into_inner().alarms.len(), 1);
    assert!(server.kv.put(put("a", "")).await.is_ok());
}

async fn hash(server: &mut Running, revision: i64) -> (u32, i64, i64, i64) {
    let request = HashKvRequest { revision };
    let found = server.maintenance.hash_kv(request).await.unwrap().into_inner();
    (found.hash, found.compact_revision, found.hash_revision, found.header.unwrap().revision)
}

#[tokio::test]
async fn hash_kv_is_etcds_and_survives_compaction() {
    let mut server = start().await;
    let (_, compact, at, revision) = hash(&mut server, 0).await;
    assert_eq!((compact, at, revision), (-1, 1, 1));
    server.put("a", "1").await;
    server.put("a", "2").await;
    server.put("b", "3").await;
    let at_3 = hash(&mut server, 3).await;
    assert_eq!(at_3.1..=at_3.3, -1..=4);
    let text = "etcdserver: mvcc: required revision is a future revision";
    refused(server.maintenance.hash_kv(HashKvRequest { revision: 5 }).await, Code::OutOfRange, text);

    // The hash that the compaction saw is kept: it covers what is gone now.
    server.kv.compact(CompactionRequest { revision: 3, physical: true }).await.unwrap();
    assert_eq!(hash(&mut server, 3).await, at_3);
    let text = "etcdserver: mvcc: required revision has been compacted";
    refused(server.maintenance.hash_kv(HashKvRequest { revision: 2 }).await, Code::OutOfRange, text);
    let (_, compact, at, _) = hash(&mut server, 0).await;
    assert_eq!((compact, at), (3, 4));
    server.kv.compact(CompactionRequest { revision: 4, physical: true }).await.unwrap();
    assert_eq!(hash(&mut server, 3).await, at_3, "older compactions are kept too");
    let all = server.maintenance.hash(HashRequest {}).await.unwrap().into_inner();
    assert_ne!(all.hash, 0);
}

#[tokio::test]
async fn leadership_moves_to_the_leader_itself_only() {
    let mut server = start().await;
    let leader = status(&mut server).await.leader;
    let own = MoveLeaderRequest { target_id: leader };
    assert_eq!(server.maintenance.move_leader(own).await.unwrap().into_inner().header, None);
    let other = MoveLeaderRequest { target_id: 1 };
    let text = "etcdserver: bad leader transferee";
    refused(server.maintenance.move_leader(other).await, Code::FailedPrecondition, text);
}
