//! The audit stream of a real member: who did what, over gRPC and the gateway, with users and without.
mod support;

use rustix::process::Signal;
use std::path::Path;
use sternpost_server::wire::authpb::Permission;
use sternpost_server::wire::authpb::permission::Type;
use sternpost_server::wire::etcdserverpb::auth_client::AuthClient;
use sternpost_server::wire::etcdserverpb::kv_client::KvClient;
use sternpost_server::wire::etcdserverpb::watch_client::WatchClient;
use sternpost_server::wire::etcdserverpb::watch_request::RequestUnion;
use sternpost_server::wire::etcdserverpb::{
    AuthEnableRequest, AuthRoleAddRequest, AuthRoleGrantPermissionRequest, AuthUserAddRequest,
    AuthUserGrantRoleRequest, AuthenticateRequest, DeleteRangeRequest, PutRequest, RangeRequest,
    WatchCreateRequest, WatchRequest,
};
use support::cluster::{Cluster, Member, runtime, until};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tonic::{Code, Request};

const PASSWORD: &str = "the password of somebody";
const VALUE: &str = "the value of something";

/// Lines that are there now.
fn lines(path: &Path) -> Vec<serde_json::Value> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    // The last one may be on its way.
    text.split_inclusive('\n')
        .filter(|line| line.ends_with('\n'))
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{line}: {error}")))
        .collect()
}

/// Waits for the newest line about a path.
async fn line(path: &Path, rpc: &str, key: &str) -> serde_json::Value {
    until(&format!("a line about {rpc} of {key}"), async || {
        lines(path).into_iter().rev().find(|line| line["rpc"] == rpc && line["targets"][0]["key"] == key)
    })
    .await
}

async fn one(options: &[&str]) -> Cluster {
    let cluster = Cluster::start(1, options);
    until("the first put", async || cluster.members[0].put("ready", "yes").await.ok()).await;
    cluster
}

fn with_token<T>(message: T, token: &str) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("token", token.parse().unwrap());
    request
}

/// Users root and alice; she may read and write below `a/`. Her token.
async fn enable_auth(member: &Member) -> String {
    let mut auth = AuthClient::new(member.channel());
    for (user, role) in [("root", "root"), ("alice", "of-a")] {
        let add = AuthUserAddRequest { name: user.into(), password: PASSWORD.into(), ..Default::default() };
        auth.user_add(add).await.unwrap();
        auth.role_add(AuthRoleAddRequest { name: role.into() }).await.unwrap();
        let grant = AuthUserGrantRoleRequest { user: user.into(), role: role.into() };
        auth.user_grant_role(grant).await.unwrap();
    }
    let perm = Permission { perm_type: Type::Readwrite.into(), key: "a/".into(), range_end: "a0".into() };
    let grant = AuthRoleGrantPermissionRequest { name: "of-a".into(), perm: Some(perm) };
    auth.role_grant_permission(grant).await.unwrap();
    auth.auth_enable(AuthEnableRequest {}).await.unwrap();
    let alice = AuthenticateRequest { name: "alice".into(), password: PASSWORD.into() };
    auth.authenticate(alice).await.unwrap().into_inner().token
}

#[test]
fn every_request_has_a_line_with_its_user_and_its_end_and_without_its_secrets() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("audit.log");
    let option = format!("--audit-log={}", path.display());
    runtime().block_on(async {
        let mut cluster = one(&[&option]).await;
        let member = &cluster.members[0];
        let token = enable_auth(member).await;
        let mut kv = KvClient::new(member.channel());
        let put =
            |key: &str| PutRequest { key: key.to_owned().into(), value: VALUE.into(), ..Default::default() };
        let revision =
            kv.put(with_token(put("a/1"), &token)).await.unwrap().into_inner().header.unwrap().revision;
        let done = line(&path, "/etcdserverpb.KV/Put", "a/1").await;
        assert_eq!((done["user"].as_str(), done["code"].as_str()), (Some("alice"), Some("Ok")), "{done}");
        assert_eq!(done["revision"].as_i64(), Some(revision));
        assert!(done["client"].as_str().unwrap().starts_with("127.0.0.1:"), "{done}");
        assert!(done["ts"].as_str().unwrap().ends_with('Z') && done["took_us"].as_u64().is_some());

        let refused = kv.put(with_token(put("b/1"), &token)).await.unwrap_err();
        assert_eq!(refused.code(), Code::PermissionDenied);
        let denied = line(&path, "/etcdserverpb.KV/Put", "b/1").await;
        assert_eq!(
            (denied["user"].as_str(), denied["code"].as_str()),
            (Some("alice"), Some("PermissionDenied"))
        );
        kv.put(with_token(put("a/2"), "no.1")).await.unwrap_err();
        let stranger = line(&path, "/etcdserverpb.KV/Put", "a/2").await;
        assert_eq!((stranger.get("user"), stranger["code"].as_str()), (None, Some("Unauthenticated")));

        let delete = DeleteRangeRequest { key: "a/".into(), range_end: "a0".into(), ..Default::default() };
        kv.delete_range(with_token(delete, &token)).await.unwrap();
        let deleted = line(&path, "/etcdserverpb.KV/DeleteRange", "a/").await;
        assert_eq!(deleted["targets"][0]["range_end"], "a0");
        let range = RangeRequest { key: "a/".into(), range_end: "a0".into(), ..Default::default() };
        kv.range(with_token(range.clone(), &token)).await.unwrap();
        assert_eq!(line(&path, "/etcdserverpb.KV/Range", "a/").await["user"], "alice");
        kv.range_stream(with_token(range, &token)).await.unwrap();
        assert_eq!(line(&path, "/etcdserverpb.KV/RangeStream", "a/").await["user"], "alice");

        // Watchers, allowed and not.
        let create = |key: &str| {
            let create = WatchCreateRequest { key: key.to_owned().into(), ..Default::default() };
            WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) }
        };
        let requests = tokio_stream::iter([create("a/3"), create("b/3")]);
        let mut watch = WatchClient::new(member.channel());
        let mut answers = watch.watch(with_token(requests, &token)).await.unwrap().into_inner();
        answers.message().await.unwrap();
        let watched = line(&path, "/etcdserverpb.Watch/Watch#create", "a/3").await;
        assert_eq!((watched["user"].as_str(), watched["code"].as_str()), (Some("alice"), Some("Ok")));
        let watched = line(&path, "/etcdserverpb.Watch/Watch#create", "b/3").await;
        assert_eq!(
            (watched["user"].as_str(), watched["code"].as_str()),
            (Some("alice"), Some("PermissionDenied"))
        );

        // Through the gateway.
        let (address, port) = member.client_address();
        let mut socket = tokio::net::TcpStream::connect((address.as_str(), port)).await.unwrap();
        let body = "{\"key\":\"YS93ZWI=\",\"value\":\"dGhlIHZhbHVl\"}";
        let request = format!(
            "POST /v3/kv/put HTTP/1.0\r\nAuthorization: {token}\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        socket.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        socket.read_to_string(&mut answer).await.unwrap();
        assert!(answer.contains("revision"), "{answer}");
        assert_eq!(line(&path, "/etcdserverpb.KV/Put", "a/web").await["user"], "alice");

        let before = lines(&path).len();
        assert!(before > 10);
        drop((answers, watch));
        // What was answered is there after a stop.
        kv.put(with_token(put("a/last"), &token)).await.unwrap();
        cluster.members[0].end(Signal::TERM);
        line(&path, "/etcdserverpb.KV/Put", "a/last").await;
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(!text.contains(PASSWORD) && !text.contains(VALUE) && !text.contains(&token));
        assert!(text.contains("\"what\":\"user\",\"name\":\"alice\""), "who got a token is named");
        cluster.start_member(0);
        until("it to serve", async || {
            cluster.members[0].status().await.map(drop).map_or_else(
                |status| {
                    (status.code() == Code::Unauthenticated || status.code() == Code::InvalidArgument)
                        .then_some(())
                },
                |()| Some(()),
            )
        })
        .await;
        assert!(std::fs::read_to_string(&path).unwrap().starts_with(&text), "the file is continued");
    });
}

#[test]
fn reads_have_no_lines_where_nobody_wants_them_and_a_file_that_is_moved_away_is_made_anew() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("audit.log");
    let option = format!("--audit-log={}", path.display());
    runtime().block_on(async {
        let cluster = one(&[&option, "--audit-log-reads=false"]).await;
        let member = &cluster.members[0];
        member.get("ready", false).await.unwrap();
        member.put("first", "v").await.unwrap();
        line(&path, "/etcdserverpb.KV/Put", "first").await;
        let reads = |line: &serde_json::Value| line["rpc"] == "/etcdserverpb.KV/Range";
        assert!(!lines(&path).iter().any(reads));
        let moved = folder.path().join("moved");
        std::fs::rename(&path, &moved).unwrap();
        until("a new file", async || {
            member.put("second", "v").await.unwrap();
            path.exists().then_some(())
        })
        .await;
        line(&path, "/etcdserverpb.KV/Put", "second").await;
        assert!(lines(&moved).iter().any(|line| line["targets"][0]["key"] == "first"));
        assert!(member.metric("sternpost_audit_lines_total").await.unwrap() >= 2.0);
        assert_eq!(member.metric("sternpost_audit_lost_total").await, Some(0.0));
    });
}
