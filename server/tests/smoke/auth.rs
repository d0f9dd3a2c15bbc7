//! Every method of the API without a name; what is noticed between the moment a request comes in and the moment it is applied; what is no token.
//! Who may do what is in `permissions.rs`.
use crate::raw::{self, Raw};
use crate::support::{Immediate, Running, bytes, refused, start, start_with};
use sternpost_replication::{Entry, StateMachine};
use sternpost_server::apply::command::{Identity, Kind, Origin, encode};
use sternpost_server::server::{AuthOptions, ServerOptions};
use sternpost_server::wire::authpb::UserAddOptions;
use sternpost_server::wire::etcdserverpb::auth_client::AuthClient;
use sternpost_server::wire::etcdserverpb::kv_client::KvClient;
use sternpost_server::wire::etcdserverpb::request_op::Request as Op;
use sternpost_server::wire::etcdserverpb::*;
use sternpost_server::wire::v3electionpb::{LeaderKey, ProclaimRequest};
use sternpost_server::wire::v3lockpb::UnlockRequest;
use tonic::{Code, Request};

/// CVE-2026-33413 and its like: a method that nobody thought of is refused, because all of them are asked without a name.
#[tokio::test]
async fn no_method_but_those_that_are_for_everybody_answers_without_a_name() {
    let running = enabled().await;
    let set = include_bytes!(concat!(env!("OUT_DIR"), "/etcd.descriptors"));
    let pool = prost_reflect::DescriptorPool::decode(set.as_slice()).unwrap();
    let (mut asked, mut open) = (0, Vec::new());
    for service in pool.services() {
        // Errors of these two come without a code of their own, from etcd too.
        let is_recipe = ["v3lockpb.Lock", "v3electionpb.Election"].contains(&service.full_name());
        for method in service.methods() {
            let path = format!("/{}/{}", service.full_name(), method.name());
            let request = match method.name() {
                "Range" | "RangeStream" | "DeleteRange" => {
                    Raw::from(&RangeRequest { key: bytes("a"), ..Default::default() })
                }
                "Put" => Raw::from(&PutRequest { key: bytes("a"), ..Default::default() }),
                "Txn" => {
                    let range = RangeRequest { key: bytes("a"), ..Default::default() };
                    let operation = RequestOp { request: Some(Op::RequestRange(range)) };
                    Raw::from(&TxnRequest { success: vec![operation], ..Default::default() })
                }
                // Nobody is the user without a name, for etcd, who is then not found.
                "UserGet" => Raw::from(&AuthUserGetRequest { name: "root".into() }),
                "MemberAdd" => {
                    let peer_ur_ls = vec!["http://a:1".into()];
                    Raw::from(&MemberAddRequest { peer_ur_ls, ..Default::default() })
                }
                "Watch" => {
                    let create = WatchCreateRequest { key: bytes("a"), ..Default::default() };
                    let union = Some(watch_request::RequestUnion::CreateRequest(create));
                    Raw::from(&WatchRequest { request_union: union })
                }
                "LeaseKeepAlive" => Raw::from(&LeaseKeepAliveRequest { id: 7 }),
                "Unlock" => Raw::from(&UnlockRequest { key: bytes("a") }),
                // Both have the same field.
                "Proclaim" | "Resign" => {
                    let leader = LeaderKey { key: bytes("a"), rev: 1, lease: 7, ..Default::default() };
                    Raw::from(&ProclaimRequest { leader: Some(leader), ..Default::default() })
                }
                _ => Raw::default(),
            };
            asked += 1;
            match raw::ask(running.channel.clone(), &path, request, None).await {
                Err(status) => {
                    let refused = (status.code(), status.message());
                    let code = if is_recipe { Code::Unknown } else { Code::InvalidArgument };
                    if refused != (code, "etcdserver: user name is empty") {
                        open.push(format!("{} {refused:?}", method.name()));
                    }
                }
                Ok(Some(bytes)) if method.name() == "Watch" => {
                    let response: WatchResponse = prost::Message::decode(bytes).unwrap();
                    assert_eq!(
                        response.cancel_reason,
                        "rpc error: code = InvalidArgument desc = etcdserver: user name is empty"
                    );
                }
                Ok(_) => open.push(method.name().to_owned()),
            }
        }
    }
    assert!(asked >= 51, "{asked}");
    open.sort();
    let wrong =
        "Authenticate (InvalidArgument, \"etcdserver: authentication failed, invalid user ID or password\")";
    assert_eq!(open, ["AuthStatus", wrong]);
}

/// A server with authentication on: root, and eve with no rights.
async fn enabled() -> Running {
    let auth = AuthOptions { bcrypt_cost: 4, ..AuthOptions::default() };
    let running = start_with(ServerOptions { auth, ..Default::default() }).await;
    let mut client = AuthClient::new(running.channel.clone());
    for name in ["root", "eve"] {
        let request = AuthUserAddRequest { name: name.into(), password: name.into(), ..Default::default() };
        client.user_add(request).await.unwrap();
    }
    client
        .user_grant_role(AuthUserGrantRoleRequest { user: "root".into(), role: "root".into() })
        .await
        .unwrap();
    client.auth_enable(AuthEnableRequest {}).await.unwrap();
    running
}

/// A permission that is taken between a request's arrival and its place in the log is not there any more; a request that carries an older auth revision is refused
/// whatever it may do now.
#[tokio::test]
async fn rights_are_those_where_the_command_is_applied() {
    let running = enabled().await;
    let immediate: &Immediate = running.replicator.as_ref().unwrap();
    let revision = running.server.pipeline.view().auth().revision();
    let apply = |id: u64, user: &str, revision: u64| {
        let put = PutRequest { key: bytes("a"), ..Default::default() };
        let origin = Origin::User(Identity { user: user.into(), revision });
        let command = encode(Kind::Put, origin, id, &put);
        let before = running.server.store().revision();
        let mut machine = immediate.machine.lock().unwrap();
        let index = machine.applied_index() + 1;
        machine.apply(&Entry { index, term: 1, commands: vec![&command], replay: false });
        running.server.store().revision() - before
    };
    assert_eq!(apply(1 << 60, "root", revision), 1);
    assert_eq!(apply(2 << 60, "root", revision - 1), 0, "an older revision");
    assert_eq!(apply(3 << 60, "root", 0), 0, "no revision");
    assert_eq!(apply(4 << 60, "eve", revision), 0);
    assert_eq!(apply(5 << 60, "nobody", revision), 0);
}

/// A name in a certificate is not that of whoever speaks through a gateway: CVE-2018-16886. Here the other half: what is no token is refused and does not fall
/// back to anything.
#[tokio::test]
async fn what_is_no_token_is_refused() {
    let running = enabled().await;
    let mut kv = KvClient::new(running.channel.clone());
    for token in ["", " ", ".", "x.1", "Bearer ", "abcdefghijklmnop.18446744073709551615", "a.b.c"] {
        let mut request = Request::new(RangeRequest { key: bytes("a"), ..Default::default() });
        request.metadata_mut().insert("token", token.parse().unwrap());
        refused(kv.range(request).await, Code::Unauthenticated, "etcdserver: invalid auth token");
    }
}

#[tokio::test]
async fn a_user_without_password_is_named_by_certificates_alone() {
    let running = start().await;
    let mut client = AuthClient::new(running.channel.clone());
    let options = Some(UserAddOptions { no_password: true });
    let request =
        AuthUserAddRequest { name: "cert".into(), password: "x".into(), options, ..Default::default() };
    client.user_add(request).await.unwrap();
    let auth = running.server.pipeline.view().auth();
    assert!(auth.user("cert").unwrap().record.password.is_empty(), "its password is not kept");
}
