//! Authentication with real processes: three members, certificates, JSON Web Tokens, wrong flags, etcdctl, and what is found in files and logs.
//!
//! - `STERNPOST_REQUIRE_PEERS=1` makes a missing etcd or etcdctl a failure; without it those tests say so and pass.
mod support;

use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der};
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{self, EcdsaKeyPair, Ed25519KeyPair, KeyPair, RsaKeyPair};
use base64::Engine;
use rustix::process::Signal;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use sternpost_server::wire::authpb::Permission;
use sternpost_server::wire::authpb::permission::Type;
use sternpost_server::wire::etcdserverpb::auth_client::AuthClient;
use sternpost_server::wire::etcdserverpb::cluster_client::ClusterClient;
use sternpost_server::wire::etcdserverpb::kv_client::KvClient;
use sternpost_server::wire::etcdserverpb::maintenance_client::MaintenanceClient;
use sternpost_server::wire::etcdserverpb::*;
use support::cluster::{Cluster, Member, runtime, until};
use support::command::run;
use support::process::{Program, Server, peer, required};
use support::tls::{Authority, Wanted, client, client_flags};
use tonic::{Code, Request, Status};

const ROOT_PASSWORD: &str = "roots-own-p4ssword";
const ANN_PASSWORD: &str = "anns-own-p4ssword";

fn with<M>(message: M, token: &str) -> Request<M> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("token", token.parse().unwrap());
    request
}

fn user_add(name: &str, password: &str) -> AuthUserAddRequest {
    AuthUserAddRequest { name: name.into(), password: password.into(), ..Default::default() }
}

/// Root, and ann, who may read and write what begins with "a".
async fn set_up(member: &Member) {
    let mut auth = AuthClient::new(member.channel());
    until("the first user", async || {
        let mut auth = auth.clone();
        auth.user_add(user_add("root", ROOT_PASSWORD)).await.ok()
    })
    .await;
    auth.user_add(user_add("ann", ANN_PASSWORD)).await.unwrap();
    for role in ["root", "some"] {
        auth.role_add(AuthRoleAddRequest { name: role.into() }).await.unwrap();
    }
    let perm = Permission { perm_type: Type::Readwrite.into(), key: "a".into(), range_end: "b".into() };
    let grant = AuthRoleGrantPermissionRequest { name: "some".into(), perm: Some(perm) };
    auth.role_grant_permission(grant).await.unwrap();
    for (user, role) in [("root", "root"), ("ann", "some")] {
        let grant = AuthUserGrantRoleRequest { user: user.into(), role: role.into() };
        auth.user_grant_role(grant).await.unwrap();
    }
    auth.auth_enable(AuthEnableRequest {}).await.unwrap();
}

async fn log_in(member: &Member, name: &str, password: &str) -> Result<String, Status> {
    let request = AuthenticateRequest { name: name.into(), password: password.into() };
    Ok(AuthClient::new(member.channel()).authenticate(request).await?.into_inner().token)
}

/// A token, as soon as the member can give one.
async fn token(member: &Member, name: &str, password: &str) -> String {
    until("a token", async || log_in(member, name, password).await.ok()).await
}

async fn put(member: &Member, key: &'static str, token: &str) -> Result<(), Status> {
    let put = PutRequest { key: key.into(), ..Default::default() };
    KvClient::new(member.channel()).put(with(put, token)).await.map(drop)
}

async fn get(member: &Member, key: &'static str, token: &str) -> Result<(), Status> {
    let range = RangeRequest { key: key.into(), ..Default::default() };
    KvClient::new(member.channel()).range(with(range, token)).await.map(drop)
}

#[track_caller]
fn says(answer: Result<(), Status>, code: Code, text: &str) {
    let status = answer.expect_err("refused");
    assert_eq!((status.code(), status.message()), (code, text));
}

const DENIED: (Code, &str) = (Code::PermissionDenied, "etcdserver: permission denied");
const INVALID: (Code, &str) = (Code::Unauthenticated, "etcdserver: invalid auth token");

/// What the token of one member is at the others: theirs at once, also behind a leader's end; a member that starts anew has none and the same users.
#[test]
fn a_token_that_one_member_gave_is_good_at_the_others() {
    runtime().block_on(async {
        let mut cluster = Cluster::start(3, &["--bcrypt-cost=4", "--memtable-bytes=1"]);
        let leader = cluster.leader().await;
        set_up(&cluster.members[0]).await;
        // No waiting in between: a token from ahead of a member is waited for by it.
        for round in 0..30 {
            let given = token(&cluster.members[round % 3], "ann", ANN_PASSWORD).await;
            for member in &cluster.members {
                put(member, "a1", &given).await.unwrap();
                get(member, "a1", &given).await.unwrap();
                says(put(member, "b1", &given).await, DENIED.0, DENIED.1);
                says(get(member, "b1", &given).await, DENIED.0, DENIED.1);
            }
        }
        let given = token(&cluster.members[leader], "ann", ANN_PASSWORD).await;
        let root = token(&cluster.members[leader], "root", ROOT_PASSWORD).await;
        put(&cluster.members[(leader + 1) % 3], "a2", &given).await.unwrap();
        put(&cluster.members[(leader + 2) % 3], "a2", &given).await.unwrap();
        cluster.members[leader].end(Signal::KILL);
        for other in [(leader + 1) % 3, (leader + 2) % 3] {
            let member = &cluster.members[other];
            until("writes behind the leader's end", async || put(member, "a3", &given).await.ok()).await;
            says(put(member, "b1", &given).await, DENIED.0, DENIED.1);
        }
        cluster.start_member(leader);
        let member = &cluster.members[leader];
        until("the member that was gone", async || {
            let answer = put(member, "a4", &given).await.expect_err("it has no tokens");
            (answer.code() == INVALID.0).then_some(())
        })
        .await;
        let again = token(member, "ann", ANN_PASSWORD).await;
        put(member, "a4", &again).await.unwrap();
        says(put(member, "b1", &again).await, DENIED.0, DENIED.1);

        // A permission that is taken through one is gone at all, at once.
        let one = &cluster.members[(leader + 1) % 3];
        let mut auth = AuthClient::new(one.channel());
        let revoke = AuthUserRevokeRoleRequest { name: "ann".into(), role: "some".into() };
        auth.user_revoke_role(with(revoke, &root)).await.unwrap();
        for member in &cluster.members {
            // A linearizable read waits for what another member was told. A put without one, at a member that is behind, is refused as of an old revision.
            says(get(member, "a5", &again).await, DENIED.0, DENIED.1);
            says(put(member, "a5", &again).await, DENIED.0, DENIED.1);
        }
        let changed =
            AuthUserChangePasswordRequest { name: "ann".into(), password: "x".into(), ..Default::default() };
        auth.user_change_password(with(changed, &root)).await.unwrap();
        for member in &cluster.members {
            // Behind a barrier each has applied it.
            until("tokens of the old password to be void", async || {
                (get(member, "a5", &again).await.expect_err("refused").code() == INVALID.0).then_some(())
            })
            .await;
        }
        says(
            log_in(one, "ann", ANN_PASSWORD).await.map(drop),
            Code::InvalidArgument,
            "etcdserver: authentication failed, invalid user ID or password",
        );
    });
}

/// A member that joins is sent the state, users and all; who asks a follower for a promotion is root there too.
#[test]
fn a_member_that_joins_knows_the_users() {
    runtime().block_on(async {
        let mut cluster = Cluster::start(3, &["--bcrypt-cost=4", "--memtable-bytes=1"]);
        let leader = cluster.leader().await;
        set_up(&cluster.members[0]).await;
        let follower = (leader + 1) % 3;
        let root = token(&cluster.members[follower], "root", ROOT_PASSWORD).await;
        let ann = token(&cluster.members[follower], "ann", ANN_PASSWORD).await;
        let new = cluster.new_member(&["--bcrypt-cost=4", "--memtable-bytes=1"]);
        cluster.name(new);
        let add = MemberAddRequest { peer_ur_ls: vec![cluster.members[new].peer_url()], is_learner: true };
        let mut client = ClusterClient::new(cluster.members[follower].channel());
        let denied = client.member_add(with(add.clone(), &ann)).await.unwrap_err();
        assert_eq!(denied.code(), Code::PermissionDenied);
        let added = client.member_add(with(add, &root)).await.unwrap().into_inner().member.unwrap().id;
        cluster.join(new);
        until("the promotion", async || {
            let mut client = client.clone();
            client.member_promote(with(MemberPromoteRequest { id: added }, &root)).await.ok()
        })
        .await;
        let member = &cluster.members[new];
        let given = token(member, "ann", ANN_PASSWORD).await;
        put(member, "a1", &given).await.unwrap();
        says(put(member, "b1", &given).await, DENIED.0, DENIED.1);
        let mut moving = MaintenanceClient::new(cluster.members[leader].channel());
        let to = MoveLeaderRequest { target_id: added };
        assert_eq!(moving.move_leader(with(to, &given)).await.unwrap_err().code(), Code::PermissionDenied);
        let root = token(&cluster.members[leader], "root", ROOT_PASSWORD).await;
        moving.move_leader(with(to, &root)).await.unwrap();
        until("writes behind it", async || put(member, "a2", &given).await.ok()).await;
    });
}

/// Every file below a folder.
fn bytes_below(folder: &Path) -> Vec<u8> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            all.extend(bytes_below(&path));
        } else {
            all.extend(std::fs::read(path).unwrap());
        }
    }
    all
}

fn holds(haystack: &[u8], needle: &str) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle.as_bytes())
}

/// CVE-2021-28235 and its like: neither passwords nor tokens are in any file of the data directory, or in the log at its most talkative.
#[test]
fn no_secret_is_in_files_or_logs() {
    let logs = tempfile::tempdir().unwrap();
    let log = logs.path().join("log");
    let output = format!("--log-outputs=stderr,{}", log.display());
    runtime().block_on(async {
        let options = ["--bcrypt-cost=4", "--log-level=debug", &output];
        let mut cluster = Cluster::start(1, &options);
        set_up(&cluster.members[0]).await;
        let given = token(&cluster.members[0], "ann", ANN_PASSWORD).await;
        let wrong = log_in(&cluster.members[0], "ann", "a-wr0ng-password").await;
        assert!(wrong.is_err());
        put(&cluster.members[0], "a1", &given).await.unwrap();
        assert!(put(&cluster.members[0], "a1", "an-invalid-t0ken.7").await.is_err());
        let folder = cluster.members[0].folder.clone();
        // As it begins in a record, and in a command, which has it in base64.
        let hashes = ["$2a$04$", "JDJhJDA0J"];
        for stopped in [false, true] {
            if stopped {
                // Now there is a checkpoint.
                cluster.members[0].end(Signal::TERM);
            }
            let (files, log) = (bytes_below(&folder), std::fs::read(&log).unwrap());
            assert!(
                holds(&files, "ann") && hashes.iter().any(|hash| holds(&files, hash)),
                "users are looked for in the right place"
            );
            assert!(holds(&log, "invalid authentication was requested"), "so is the log");
            let letters = given.split('.').next().unwrap();
            for secret in [ROOT_PASSWORD, ANN_PASSWORD, "a-wr0ng-password", letters, "an-invalid-t0ken"] {
                assert!(
                    !holds(&files, secret) && !holds(&log, secret),
                    "{secret} with the server stopped: {stopped}"
                );
            }
            assert!(!hashes.iter().any(|hash| holds(&log, hash)));
        }
    });
}

/// A certificate's name is a user, a token comes before it, and what a gateway passes on does not bring the gateway's: CVE-2018-16886.
#[test]
fn a_certificate_names_a_user_but_not_through_a_gateway() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new("authority");
    let ca = authority.bundle(folder.path(), &[]);
    let pairs = ["server", "root", "ann", "stranger"]
        .map(|name| authority.sign(folder.path(), &Wanted::local(name, name.len() as u64)));
    let [server, root, ann, stranger] = &pairs;
    let as_user = |pair| Some(client(Some(pair), &ca));
    runtime().block_on(async {
        let mut cluster = Cluster::start_with(1, |member| {
            member.client_tls = as_user(root);
            member.options = client_flags(server, &ca);
            member.options.push("--bcrypt-cost=4".into());
        });
        set_up(&cluster.members[0]).await;
        let member = &mut cluster.members[0];
        let plain = async |member: &Member, key: &'static str| {
            let request = PutRequest { key: key.into(), ..Default::default() };
            KvClient::new(member.channel()).put(request).await.map(drop)
        };
        plain(member, "b1").await.unwrap();
        member.client_tls = as_user(stranger);
        says(plain(member, "a1").await, DENIED.0, DENIED.1);
        member.client_tls = as_user(ann);
        plain(member, "a1").await.unwrap();
        says(plain(member, "b1").await, DENIED.0, DENIED.1);
        let by_root = token(member, "root", ROOT_PASSWORD).await;
        put(member, "b1", &by_root).await.unwrap();
        says(put(member, "a1", "nonsense").await, INVALID.0, INVALID.1);
        let mut through = Request::new(PutRequest { key: "a1".into(), ..Default::default() });
        through.metadata_mut().insert("grpcgateway-accept", "*/*".parse().unwrap());
        let refused = KvClient::new(member.channel()).put(through).await.map(drop);
        says(refused, Code::InvalidArgument, "etcdserver: user name is empty");
        // The user's rights are those of now, without a token that goes by a revision.
        let mut auth = AuthClient::new(member.channel());
        let revoke = AuthUserRevokeRoleRequest { name: "ann".into(), role: "some".into() };
        auth.user_revoke_role(with(revoke, &by_root)).await.unwrap();
        says(plain(member, "a1").await, DENIED.0, DENIED.1);
    });
}

fn ed25519(folder: &Path) -> (String, String) {
    let key = Ed25519KeyPair::generate().unwrap();
    let pem = |label: &str, der: &[u8]| {
        let text = base64::engine::general_purpose::STANDARD.encode(der);
        format!("-----BEGIN {label}-----\n{text}\n-----END {label}-----\n")
    };
    // A public key of this kind is its 32 bytes behind these.
    let mut public = b"\x30\x2a\x30\x05\x06\x03\x2b\x65\x70\x03\x21\x00".to_vec();
    public.extend_from_slice(key.public_key().as_ref());
    let (private_path, public_path) = (folder.join("jwt.key"), folder.join("jwt.pub"));
    std::fs::write(&private_path, pem("PRIVATE KEY", key.to_pkcs8v1().unwrap().as_ref())).unwrap();
    std::fs::write(&public_path, pem("PUBLIC KEY", &public)).unwrap();
    (private_path.display().to_string(), public_path.display().to_string())
}

/// A token is good at every member that has the key, also after all of them started anew, until users or roles change.
#[test]
fn a_signed_token_outlives_starts_and_not_a_change_of_roles() {
    let folder = tempfile::tempdir().unwrap();
    let (private, public) = ed25519(folder.path());
    let kind = format!("--auth-token=jwt,sign-method=EdDSA,priv-key={private},pub-key={public}");
    runtime().block_on(async {
        let mut cluster = Cluster::start(3, &["--bcrypt-cost=4", &kind]);
        set_up(&cluster.members[0]).await;
        let given = token(&cluster.members[0], "ann", ANN_PASSWORD).await;
        for member in &cluster.members {
            put(member, "a1", &given).await.unwrap();
            says(put(member, "b1", &given).await, DENIED.0, DENIED.1);
        }
        (0..3).for_each(|number| cluster.members[number].end(Signal::KILL));
        (0..3).for_each(|number| cluster.start_member(number));
        for member in &cluster.members {
            until("the token behind the start", async || put(member, "a1", &given).await.ok()).await;
        }
        let root = token(&cluster.members[1], "root", ROOT_PASSWORD).await;
        let mut auth = AuthClient::new(cluster.members[1].channel());
        auth.role_add(with(AuthRoleAddRequest { name: "another".into() }, &root)).await.unwrap();
        for member in &cluster.members {
            let old = "etcdserver: revision of auth store is old";
            says(put(member, "a1", &given).await, Code::InvalidArgument, old);
            says(get(member, "a1", &given).await, Code::InvalidArgument, old);
        }
        // What is root's goes on with the old one, as in etcd.
        auth.role_delete(with(AuthRoleDeleteRequest { role: "another".into() }, &root)).await.unwrap();
    });
}

/// The keys of a real etcd: its tokens are good here, and ours there, for every kind of method.
#[test]
fn tokens_of_the_real_etcd_are_ours_and_ours_are_its() {
    if let Err(missing) = Program::Etcd.binary() {
        assert!(!required("STERNPOST_REQUIRE_PEERS"), "{missing}");
        return eprintln!("skipped: {missing}");
    }
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, label: &str, der: &[u8]| {
        let text = base64::engine::general_purpose::STANDARD.encode(der);
        let path = folder.path().join(name);
        std::fs::write(&path, format!("-----BEGIN {label}-----\n{text}\n-----END {label}-----\n")).unwrap();
        path.display().to_string()
    };
    let rsa = RsaKeyPair::generate(KeySize::Rsa2048).unwrap();
    let rsa: Pkcs8V1Der<'_> = rsa.as_der().unwrap();
    let rsa = write("rsa", "PRIVATE KEY", rsa.as_ref());
    let ec = |name: &str, algorithm| {
        let key = EcdsaKeyPair::generate(algorithm).unwrap();
        write(name, "PRIVATE KEY", key.to_pkcs8v1().unwrap().as_ref())
    };
    let (ed, _) = ed25519(folder.path());
    let methods = [
        ("RS256", rsa.clone()),
        ("RS384", rsa.clone()),
        ("RS512", rsa.clone()),
        ("PS256", rsa.clone()),
        ("PS384", rsa.clone()),
        ("PS512", rsa.clone()),
        ("ES256", ec("es256", &signature::ECDSA_P256_SHA256_FIXED_SIGNING)),
        ("ES384", ec("es384", &signature::ECDSA_P384_SHA384_FIXED_SIGNING)),
        ("ES512", ec("es512", &signature::ECDSA_P521_SHA512_FIXED_SIGNING)),
        ("EdDSA", ed.clone()),
        ("HS256", ed.clone()),
        ("HS384", ed.clone()),
        ("HS512", ed),
    ];
    runtime().block_on(async {
        for (method, key) in methods {
            let flags = [
                "--bcrypt-cost=4".to_owned(),
                format!("--auth-token=jwt,sign-method={method},priv-key={key},ttl=1h"),
            ];
            let starting = tokio::task::spawn_blocking(move || {
                [Program::Sternpost, Program::Etcd].map(|program| Server::start(program, &flags))
            });
            let servers = starting.await.unwrap();
            let mut tokens = Vec::new();
            let channel = |server: &Server| {
                tonic::transport::Endpoint::from_shared(server.endpoint()).unwrap().connect_lazy()
            };
            for server in &servers {
                let mut auth = AuthClient::new(channel(server));
                auth.user_add(user_add("root", ROOT_PASSWORD)).await.unwrap();
                auth.role_add(AuthRoleAddRequest { name: "root".into() }).await.unwrap();
                let grant = AuthUserGrantRoleRequest { user: "root".into(), role: "root".into() };
                auth.user_grant_role(grant).await.unwrap();
                auth.auth_enable(AuthEnableRequest {}).await.unwrap();
                let request = AuthenticateRequest { name: "root".into(), password: ROOT_PASSWORD.into() };
                tokens.push(auth.authenticate(request).await.unwrap().into_inner().token);
            }
            for server in &servers {
                for token in &tokens {
                    let put = PutRequest { key: "a".into(), ..Default::default() };
                    let answer = KvClient::new(channel(server)).put(with(put, token)).await;
                    answer.unwrap_or_else(|status| panic!("{method} at {}: {status}", server.endpoint()));
                }
            }
        }
    });
}

/// Flags that make no sense end the start with etcd's words.
#[test]
fn wrong_flags_are_told_as_etcd_tells_them() {
    let folder = tempfile::tempdir().unwrap();
    let (private, public) = ed25519(folder.path());
    let other = tempfile::tempdir().unwrap();
    let (_, others_public) = ed25519(other.path());
    let cases = [
        "nonsense".to_owned(),
        "simple,x".into(),
        "jwt".into(),
        "jwt,sign-method=RS257".into(),
        "jwt,sign-method=HS256,sign-method=HS256".into(),
        "jwt,sign-method=HS256".into(),
        "jwt,sign-method=EdDSA".into(),
        "jwt,sign-method=EdDSA,priv-key=/nowhere/key".into(),
        format!("jwt,sign-method=EdDSA,priv-key={private},pub-key={others_public}"),
        format!("jwt,sign-method=EdDSA,priv-key={private},ttl=long"),
        format!("jwt,sign-method=EdDSA,priv-key={private}=1"),
        format!("jwt,sign-method=RS256,pub-key={public}"),
        format!("jwt,sign-method=ES256,priv-key={private}"),
        "jwt,sign-method=none".into(),
    ];
    let mut programs = vec![Program::Sternpost.binary().unwrap()];
    match Program::Etcd.binary() {
        Ok(etcd) => programs.push(etcd),
        Err(missing) => {
            assert!(!required("STERNPOST_REQUIRE_PEERS"), "{missing}");
            eprintln!("compared with nothing: {missing}");
        }
    }
    let said = |program: &Path, kind: &str| {
        let data = tempfile::tempdir().unwrap();
        let mut command = Command::new(program);
        command.args([
            format!("--auth-token={kind}"),
            format!("--data-dir={}", data.path().join("data").display()),
            "--listen-client-urls=http://127.0.0.1:0".into(),
            "--advertise-client-urls=http://127.0.0.1:1".into(),
            "--listen-peer-urls=http://127.0.0.1:0".into(),
        ]);
        let ended = run(&mut command, "");
        assert!(!ended.success, "{kind}");
        // The fatal line's own error.
        let fatal =
            ended.err.lines().rev().find(|line| line.contains("\"level\":\"fatal\"")).map(str::to_owned);
        let fatal: serde_json::Value = serde_json::from_str(&fatal.unwrap_or(ended.err)).unwrap();
        fatal["error"].as_str().unwrap_or_default().to_owned()
    };
    for kind in &cases {
        let texts: Vec<String> = programs.iter().map(|program| said(program, kind)).collect();
        assert!(texts.iter().all(|text| *text == texts[0] && !text.is_empty()), "{kind}: {texts:?}");
    }
}

/// The same command lines of etcdctl against both: the same output and exit code.
#[test]
fn etcdctl_cannot_tell_us_from_etcd() {
    let found = peer("etcdctl").and_then(|ctl| Ok((ctl, Program::Etcd.binary()?)));
    let (ctl, _) = match found {
        Ok(found) => found,
        Err(missing) => {
            assert!(!required("STERNPOST_REQUIRE_PEERS"), "{missing}");
            return eprintln!("skipped: {missing}");
        }
    };
    let root = "--user=root:secret";
    let lines: &[&[&str]] = &[
        &["auth", "status"],
        &["auth", "enable"],
        &["user", "add", "root:secret"],
        &["auth", "enable"],
        &["auth", "enable"],
        &["auth", "status"],
        &[root, "auth", "status"],
        &["put", "a", "1"],
        &["get", "a"],
        &[root, "put", "a", "1"],
        &["--user=root", "--password=secret", "get", "a"],
        &["--user=root:wrong", "get", "a"],
        &["--user=nobody:secret", "get", "a"],
        &[root, "role", "add", "some"],
        &[root, "role", "add", "some"],
        &[root, "role", "grant-permission", "some", "read", "a"],
        &[root, "role", "grant-permission", "some", "readwrite", "foo", "--prefix"],
        &[root, "role", "grant-permission", "some", "write", "z", "--from-key"],
        &[root, "role", "grant-permission", "some", "read", "k", "l"],
        &[root, "role", "grant-permission", "some", "nothing", "k", "l"],
        &[root, "role", "get", "some"],
        &[root, "role", "get", "some", "-w", "json"],
        &[root, "role", "get", "root"],
        &[root, "role", "get", "nothing"],
        &[root, "role", "list"],
        &[root, "user", "add", "ann:pw"],
        &[root, "user", "add", "cert", "--no-password"],
        &[root, "user", "add", "eve", "--new-user-password=pw"],
        &[root, "user", "add", "ann:pw"],
        &[root, "user", "grant-role", "ann", "some"],
        &[root, "user", "grant-role", "ann", "nothing"],
        &[root, "user", "get", "ann"],
        &[root, "user", "get", "ann", "--detail"],
        &[root, "user", "list"],
        &["--user=ann:pw", "user", "list"],
        &["--user=ann:pw", "user", "get", "ann"],
        &["--user=ann:pw", "get", "a"],
        &["--user=ann:pw", "put", "a", "2"],
        &["--user=ann:pw", "put", "foo1", "2"],
        &["--user=ann:pw", "get", "foo", "--prefix"],
        &["--user=ann:pw", "get", "fo", "--prefix"],
        &["--user=ann:pw", "del", "foo", "--prefix"],
        &["--user=ann:pw", "put", "zzz", "1"],
        &["--user=ann:pw", "get", "zzz"],
        &["--user=ann:pw", "compact", "2"],
        &["--user=ann:pw", "lease", "list"],
        &["--user=ann:pw", "alarm", "list"],
        &["--user=ann:pw", "alarm", "disarm"],
        &["--user=ann:pw", "move-leader", "1"],
        &["--user=ann:pw", "member", "remove", "1"],
        &["--user=cert:pw", "get", "a"],
        &[root, "role", "revoke-permission", "some", "a"],
        &[root, "role", "revoke-permission", "some", "a"],
        &[root, "role", "revoke-permission", "some", "k", "l"],
        &[root, "role", "revoke-permission", "some", "z", "--from-key"],
        &["--user=ann:pw", "get", "a"],
        &[root, "user", "revoke-role", "ann", "some"],
        &[root, "user", "revoke-role", "ann", "some"],
        &[root, "user", "delete", "ann"],
        &["--user=ann:pw", "get", "a"],
        &[root, "user", "delete", "root"],
        &[root, "role", "delete", "some"],
        &[root, "auth", "disable"],
        &["auth", "status"],
        &["get", "a"],
        &["--user=ann:wrong", "get", "a"],
    ];
    let answers = |program: Program| -> Vec<(bool, String, String)> {
        let server = Server::start(program, &["--bcrypt-cost=4".to_owned()]);
        let endpoint = server.endpoint();
        let one = |line: &&[&str]| {
            let ended = run(Command::new(&ctl).arg(format!("--endpoints={endpoint}")).args(*line), "");
            // etcdctl logs beside its last line, with the time.
            let last = ended.err.lines().rfind(|line| line.starts_with("Error")).unwrap_or_default();
            (ended.success, without_ids(&ended.out), last.to_owned())
        };
        lines.iter().map(one).collect()
    };
    let (ours, etcds) = (answers(Program::Sternpost), answers(Program::Etcd));
    for (number, line) in lines.iter().enumerate() {
        assert_eq!(ours[number], etcds[number], "etcdctl {line:?}");
    }
    assert!(etcds.iter().filter(|(success, ..)| *success).count() > 35, "they do something");
}

/// JSON without the ids of cluster and member, which follow from ports.
fn without_ids(text: &str) -> String {
    let mut json: serde_json::Value = serde_json::from_str(text).unwrap_or_default();
    match json.get_mut("header") {
        Some(header) => *header = serde_json::Value::Null,
        None => return text.to_owned(),
    }
    json.to_string()
}

/// Whoever guesses passwords is bounded, and does not keep those out who have a token.
#[test]
fn who_guesses_passwords_does_not_stop_the_others() {
    runtime().block_on(async {
        let cluster = Cluster::start(1, &["--bcrypt-cost=8"]);
        let member = Arc::new(cluster.members.into_iter().next().unwrap());
        set_up(&member).await;
        let given = token(&member, "ann", ANN_PASSWORD).await;
        let mut guesses = tokio::task::JoinSet::new();
        for number in 0..600 {
            let member = Arc::clone(&member);
            guesses.spawn(async move { log_in(&member, "ann", &format!("guess {number}")).await });
        }
        let mut texts = std::collections::BTreeMap::new();
        let mut puts = 0;
        while !guesses.is_empty() {
            tokio::select! {
                guess = guesses.join_next() => {
                    let text = guess.unwrap().unwrap().expect_err("no guess is right").message().to_owned();
                    *texts.entry(text).or_insert(0) += 1;
                }
                answer = put(&member, "a1", &given) => {
                    answer.unwrap();
                    puts += 1;
                }
            }
        }
        assert!(puts > 0);
        assert_eq!(texts.len(), 2, "{texts:?}");
        assert!(texts["etcdserver: too many requests"] > 0, "{texts:?}");
    });
}
