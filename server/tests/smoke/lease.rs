use crate::support::*;
use std::time::Duration;
use sternpost_server::server::ServerOptions;
use sternpost_server::wire::etcdserverpb::*;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;

#[tokio::test]
async fn a_lease_lives_with_its_keys_and_takes_them_along() {
    let mut server = start().await;
    let grant = LeaseGrantRequest { ttl: 60, id: 0 };
    let granted = server.lease.lease_grant(grant).await.unwrap().into_inner();
    assert!(granted.id > 0);
    assert_eq!((granted.ttl, granted.error.as_str(), granted.header.unwrap().revision), (60, "", 1));
    for key in ["b", "a"] {
        let put = PutRequest { lease: granted.id, ..put(key, "1") };
        server.kv.put(put).await.unwrap();
    }
    let ask = LeaseTimeToLiveRequest { id: granted.id, keys: true };
    let left = server.lease.lease_time_to_live(ask).await.unwrap().into_inner();
    assert_eq!((left.granted_ttl, left.keys), (60, vec![bytes("a"), bytes("b")]));
    assert!((58..=60).contains(&left.ttl), "{}", left.ttl);
    let revoke = LeaseRevokeRequest { id: granted.id };
    let revoked = server.lease.lease_revoke(revoke).await.unwrap().into_inner();
    assert_eq!(revoked.header.unwrap().revision, 4);
    assert_eq!(server.get("a").await, None);
    let text = "etcdserver: requested lease not found";
    refused(server.lease.lease_revoke(revoke).await, Code::NotFound, text);
    let left = server.lease.lease_time_to_live(ask).await.unwrap().into_inner();
    assert_eq!((left.id, left.ttl, left.granted_ttl), (granted.id, -1, 0));
}

#[tokio::test]
async fn grants_are_refused_as_etcd_refuses_them_and_small_ttls_are_raised() {
    let mut server = start().await;
    let grant = |id, ttl| LeaseGrantRequest { id, ttl };
    let small = server.lease.lease_grant(grant(7, -5)).await.unwrap().into_inner();
    assert_eq!((small.id, small.ttl), (7, 2));
    let again = server.lease.lease_grant(grant(7, 60)).await;
    refused(again, Code::FailedPrecondition, "etcdserver: lease already exists");
    let large = server.lease.lease_grant(grant(8, 9_000_000_001)).await;
    refused(large, Code::OutOfRange, "etcdserver: too large lease TTL");
    assert!(server.lease.lease_grant(grant(8, 9_000_000_000)).await.is_ok());
    assert!(server.lease.lease_grant(grant(9, 100)).await.is_ok());
    let leases = server.lease.lease_leases(LeaseLeasesRequest {}).await.unwrap().into_inner().leases;
    assert_eq!(leases.iter().map(|lease| lease.id).collect::<Vec<_>>(), [7, 9, 8]);
}

#[tokio::test]
async fn a_keepalive_stream_answers_in_order_and_zero_for_the_unknown() {
    let mut server = start().await;
    server.lease.lease_grant(LeaseGrantRequest { id: 7, ttl: 60 }).await.unwrap();
    let (sender, requests) = tokio::sync::mpsc::channel(4);
    for id in [7, 8, 7] {
        sender.send(LeaseKeepAliveRequest { id }).await.unwrap();
    }
    drop(sender);
    let mut answers =
        server.lease.lease_keep_alive(ReceiverStream::new(requests)).await.unwrap().into_inner();
    let mut found = Vec::new();
    while let Some(answer) = answers.message().await.unwrap() {
        assert_eq!(answer.header.unwrap().revision, 1);
        found.push((answer.id, answer.ttl));
    }
    assert_eq!(found, [(7, 60), (8, 0), (7, 60)]);
}

#[tokio::test]
async fn a_lease_that_runs_out_is_revoked_through_the_log() {
    let mut server = start_with(ServerOptions { lease_ttl_min: 1, ..Default::default() }).await;
    server.lease.lease_grant(LeaseGrantRequest { id: 7, ttl: 1 }).await.unwrap();
    server.kv.put(PutRequest { lease: 7, ..put("a", "1") }).await.unwrap();
    // A keepalive of a lease that ran out waits until it is gone, whenever exactly that is.
    let gone = async {
        let mut ticks = tokio::time::interval(Duration::from_millis(20));
        while server.get("a").await.is_some() {
            ticks.tick().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), gone).await.expect("the lease ends");
    let left = server.lease.lease_time_to_live(LeaseTimeToLiveRequest { id: 7, keys: true }).await;
    assert_eq!(left.unwrap().into_inner().ttl, -1);
    assert_eq!(server.server.store().revision(), 3);
}
