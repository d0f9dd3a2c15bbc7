use crate::support::*;
use sternpost_server::wire::etcdserverpb::*;
use tonic::Code;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

#[tokio::test]
async fn the_member_list_knows_this_member_and_says_no_revision() {
    let mut server = start().await;
    let request = MemberListRequest { linearizable: true };
    let response = server.cluster.member_list(request).await.unwrap().into_inner();
    let header = response.header.unwrap();
    assert_eq!((header.revision, header.raft_term), (0, 1));
    let [member] = &response.members[..] else { panic!("{:?}", response.members) };
    assert_eq!((member.id, member.name.as_str(), member.is_learner), (header.member_id, "default", false));
    assert_eq!(member.peer_ur_ls, ["http://localhost:2380"]);
    assert_eq!(member.client_ur_ls, ["http://localhost:2379"]);
}

#[tokio::test]
async fn a_replicator_without_raft_says_that_its_membership_cannot_change() {
    let mut server = start().await;
    let request = MemberAddRequest { peer_ur_ls: vec!["http://127.0.0.1:1".to_owned()], is_learner: false };
    let status = server.cluster.member_add(request).await.unwrap_err();
    assert_eq!(status.code(), Code::Unimplemented);
    assert!(status.message().contains("membership"), "{status}");
}

#[tokio::test]
async fn health_serves_the_empty_name_only() {
    let server = start().await;
    let mut health = HealthClient::new(server.channel.clone());
    let check = |service: &str| HealthCheckRequest { service: service.to_owned() };
    let answer = health.check(check("")).await.unwrap().into_inner();
    assert_eq!(answer.status, ServingStatus::Serving as i32);
    refused(health.check(check("etcd")).await, Code::NotFound, "unknown service");
    let mut changes = health.watch(check("")).await.unwrap().into_inner();
    assert_eq!(changes.message().await.unwrap().unwrap().status, ServingStatus::Serving as i32);
    server.server.announce_stop();
    assert_eq!(changes.message().await.unwrap().unwrap().status, ServingStatus::NotServing as i32);
    let mut unknown = health.watch(check("etcd")).await.unwrap().into_inner();
    assert_eq!(unknown.message().await.unwrap().unwrap().status, ServingStatus::ServiceUnknown as i32);
}

#[tokio::test]
async fn methods_that_nothing_serves_are_unimplemented() {
    let server = start().await;
    let mut grpc = tonic::client::Grpc::new(server.channel.clone());
    grpc.ready().await.unwrap();
    let path = tonic::codegen::http::uri::PathAndQuery::from_static("/etcdserverpb.KV/Nope");
    let codec = sternpost_server::wire::codec::EtcdCodec::<PutRequest, PutResponse>::default();
    let answer = grpc.unary(tonic::Request::new(put("a", "1")), path, codec).await;
    refused(answer, Code::Unimplemented, "unknown method Nope for service etcdserverpb.KV");
}
