//! Who may do what: random users, roles and requests against a naive model, on every path; every method of the API without a name; what is noticed
//! between the moment a request comes in and the moment it is applied.
//!
//! 100,000 cases from one seed in every run; `STERNPOST_AUTH_CASES` and `STERNPOST_AUTH_SEED` are for others.
use crate::support::{Immediate, Running, bytes, refused, start, start_with};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use sternpost_engine::base::rng::Rng;
use sternpost_replication::{Entry, StateMachine};
use sternpost_server::apply::command::{Identity, Kind, Origin, encode};
use sternpost_server::auth::origin::Credential;
use sternpost_server::request::Pipeline;
use sternpost_server::server::{AuthOptions, ServerOptions};
use sternpost_server::wire::authpb::{Permission, UserAddOptions};
use sternpost_server::wire::etcdserverpb::auth_client::AuthClient;
use sternpost_server::wire::etcdserverpb::kv_client::KvClient;
use sternpost_server::wire::etcdserverpb::request_op::Request as Op;
use sternpost_server::wire::etcdserverpb::*;
use sternpost_server::wire::status::ApiError;
use tonic::{Code, Request};

/// Keys are the numbers below this, as one letter each, so that the model can hold sets of all of them.
const KEYS: u8 = 12;
const USERS: [&str; 4] = ["root", "ann", "bob", "eve"];
const ROLES: [&str; 3] = ["one", "two", "three"];
const LEASES: [i64; 3] = [1, 2, 3];

fn key(number: u8) -> Bytes {
    vec![b'a' + number].into()
}

/// A range as a request has it, and the keys in it: a range with an open end holds one key more, which stands for all behind the last one.
#[derive(Clone, Debug)]
struct Span {
    key: Bytes,
    range_end: Bytes,
    keys: BTreeSet<u8>,
}

fn span(rng: &mut Rng) -> Span {
    let first = rng.below(u64::from(KEYS)) as u8;
    match rng.below(4) {
        0 | 1 => Span { key: key(first), range_end: Bytes::new(), keys: [first].into() },
        2 => {
            let end = first + 1 + rng.below(u64::from(KEYS - first)) as u8;
            Span { key: key(first), range_end: key(end), keys: (first..end).collect() }
        }
        _ => Span { key: key(first), range_end: bytes("\0"), keys: (first..=KEYS).collect() },
    }
}

/// What is known of users and roles, as sets of keys and nothing else.
#[derive(Default)]
struct Model {
    /// By role: (key, range end) → type and keys.
    roles: BTreeMap<&'static str, Vec<(Span, i32)>>,
    users: BTreeMap<&'static str, BTreeSet<&'static str>>,
    /// Keys of leases.
    leases: BTreeMap<u8, i64>,
}

impl Model {
    fn may(&self, user: &str, write: bool, keys: &BTreeSet<u8>) -> bool {
        if user == "root" {
            return true;
        }
        let mut allowed = BTreeSet::new();
        for role in &self.users[user] {
            for (span, kind) in &self.roles[role] {
                if *kind == 2 || *kind == i32::from(write) {
                    allowed.extend(&span.keys);
                }
            }
        }
        // A range permission on [a, b) of whole letters does not hold what lies between the letters of single keys.
        keys.is_subset(&allowed)
    }
}

/// Single keys that stand side by side do not make a range: only ranges hold what is between.
fn spans_gap(model: &Model, user: &str, write: bool, span: &Span) -> bool {
    if user == "root" || span.range_end.is_empty() {
        return false;
    }
    let mut in_ranges = BTreeSet::new();
    for role in &model.users[user] {
        for (granted, kind) in &model.roles[role] {
            if (*kind == 2 || *kind == i32::from(write)) && !granted.range_end.is_empty() {
                in_ranges.extend(&granted.keys);
            }
        }
    }
    !span.keys.is_subset(&in_ranges)
}

fn may(model: &Model, user: &str, write: bool, span: &Span) -> bool {
    model.may(user, write, &span.keys) && !spans_gap(model, user, write, span)
}

fn may_write_lease(model: &Model, user: &str, lease: i64) -> bool {
    let keys = model.leases.iter().filter(|(_, holder)| **holder == lease).map(|(key, _)| *key);
    keys.into_iter().all(|key| model.may(user, true, &[key].into()))
}

fn may_read_lease(model: &Model, user: &str, lease: i64) -> bool {
    let keys = model.leases.iter().filter(|(_, holder)| **holder == lease).map(|(key, _)| *key);
    keys.into_iter().all(|key| model.may(user, false, &[key].into()))
}

fn put_of(rng: &mut Rng) -> (u8, PutRequest) {
    let number = rng.below(u64::from(KEYS)) as u8;
    let lease = if rng.below(3) == 0 { LEASES[rng.below(3) as usize] } else { 0 };
    let put = PutRequest { key: key(number), lease, prev_kv: rng.below(3) == 0, ..Default::default() };
    (number, put)
}

fn may_put(model: &Model, user: &str, number: u8, put: &PutRequest) -> bool {
    let keys = BTreeSet::from([number]);
    model.may(user, true, &keys)
        && (put.lease == 0 || may_write_lease(model, user, put.lease))
        && (!put.prev_kv || model.may(user, false, &keys))
}

fn may_delete(model: &Model, user: &str, span: &Span, prev_kv: bool) -> bool {
    may(model, user, true, span) && (!prev_kv || may(model, user, false, span))
}

/// Operations of a transaction, each with whether the user may have it.
fn operation(rng: &mut Rng, model: &Model, user: &str, depth: u32) -> (bool, RequestOp) {
    let (allowed, request) = match rng.below(if depth < 2 { 4 } else { 3 }) {
        0 => {
            let span = span(rng);
            let range = RangeRequest {
                key: span.key.clone(),
                range_end: span.range_end.clone(),
                ..Default::default()
            };
            (may(model, user, false, &span), Op::RequestRange(range))
        }
        1 => {
            let (number, put) = put_of(rng);
            (may_put(model, user, number, &put), Op::RequestPut(put))
        }
        2 => {
            let (span, prev_kv) = (span(rng), rng.below(2) == 0);
            let delete =
                DeleteRangeRequest { key: span.key.clone(), range_end: span.range_end.clone(), prev_kv };
            (may_delete(model, user, &span, prev_kv), Op::RequestDeleteRange(delete))
        }
        _ => {
            let (allowed, txn) = txn(rng, model, user, depth + 1);
            (allowed, Op::RequestTxn(txn))
        }
    };
    (allowed, RequestOp { request: Some(request) })
}

fn txn(rng: &mut Rng, model: &Model, user: &str, depth: u32) -> (bool, TxnRequest) {
    let mut allowed = true;
    let mut request = TxnRequest::default();
    if rng.below(2) == 0 {
        let span = span(rng);
        allowed &= may(model, user, false, &span);
        let compare = Compare { key: span.key, range_end: span.range_end, ..Default::default() };
        request.compare.push(compare);
    }
    // One in each branch: two that touch the same key are refused for another reason.
    for branch in [&mut request.success, &mut request.failure] {
        if rng.below(3) > 0 {
            let (may, operation) = operation(rng, model, user, depth);
            allowed &= may;
            branch.push(operation);
        }
    }
    (allowed, request)
}

struct World {
    running: Running,
    model: Model,
    tokens: BTreeMap<&'static str, Credential>,
}

impl World {
    async fn new() -> Self {
        let auth = AuthOptions { bcrypt_cost: 4, ..AuthOptions::default() };
        let running = start_with(ServerOptions { auth, ..Default::default() }).await;
        let mut model = Model::default();
        let mut client = AuthClient::new(running.channel.clone());
        for name in USERS {
            let request =
                AuthUserAddRequest { name: name.into(), password: name.into(), ..Default::default() };
            client.user_add(request).await.unwrap();
            model.users.insert(name, BTreeSet::new());
        }
        for name in ROLES {
            client.role_add(AuthRoleAddRequest { name: name.into() }).await.unwrap();
            model.roles.insert(name, Vec::new());
        }
        let root = AuthUserGrantRoleRequest { user: "root".into(), role: "root".into() };
        client.user_grant_role(root).await.unwrap();
        for id in LEASES {
            running
                .server
                .pipeline
                .lease_grant(LeaseGrantRequest { id, ttl: 10_000 }, &Credential::Nobody)
                .await
                .unwrap();
        }
        client.auth_enable(AuthEnableRequest {}).await.unwrap();
        let mut tokens = BTreeMap::new();
        for name in USERS {
            let request = AuthenticateRequest { name: name.into(), password: name.into() };
            let token = client.authenticate(request).await.unwrap().into_inner().token;
            tokens.insert(name, Credential::Token(token.into()));
        }
        Self { running, model, tokens }
    }

    fn pipeline(&self) -> &Arc<Pipeline> {
        &self.running.server.pipeline
    }

    /// Users and roles become others.
    async fn change(&mut self, rng: &mut Rng) {
        let root = &self.tokens["root"];
        let pipeline = &self.running.server.pipeline;
        let (user, role) = (USERS[1 + rng.below(3) as usize], ROLES[rng.below(3) as usize]);
        match rng.below(4) {
            0 => {
                let request = AuthUserGrantRoleRequest { user: user.into(), role: role.into() };
                pipeline.change_auth(Kind::UserGrantRole, &request, root).await.unwrap();
                self.model.users.get_mut(user).unwrap().insert(role);
            }
            1 => {
                let request = AuthUserRevokeRoleRequest { name: user.into(), role: role.into() };
                let revoked = pipeline.change_auth(Kind::UserRevokeRole, &request, root).await;
                assert_eq!(revoked.is_ok(), self.model.users.get_mut(user).unwrap().remove(role));
            }
            2 => {
                let (span, perm_type) = (span(rng), rng.below(3) as i32);
                let permissions = self.model.roles.get_mut(role).unwrap();
                // etcd leaves a second one standing where another begins with the same key; the model keeps out of that.
                if permissions
                    .iter()
                    .any(|(granted, _)| granted.key == span.key && granted.range_end != span.range_end)
                {
                    return;
                }
                let perm = Permission { perm_type, key: span.key.clone(), range_end: span.range_end.clone() };
                let request = AuthRoleGrantPermissionRequest { name: role.into(), perm: Some(perm) };
                pipeline.change_auth(Kind::RoleGrantPermission, &request, root).await.unwrap();
                permissions.retain(|(granted, _)| granted.key != span.key);
                permissions.push((span, perm_type));
            }
            _ => {
                let permissions = self.model.roles.get_mut(role).unwrap();
                if permissions.is_empty() {
                    return;
                }
                let (span, _) = permissions.swap_remove(rng.below(permissions.len() as u64) as usize);
                let request = AuthRoleRevokePermissionRequest {
                    role: role.into(),
                    key: span.key,
                    range_end: span.range_end,
                };
                pipeline.change_auth(Kind::RoleRevokePermission, &request, root).await.unwrap();
            }
        }
    }

    /// One request of one user, and whether it is answered as the model says.
    async fn ask(&mut self, rng: &mut Rng, path: u64) {
        let user = USERS[rng.below(4) as usize];
        let (who, pipeline, model) = (&self.tokens[user], self.pipeline(), &self.model);
        let (what, allowed, answer): (String, bool, Result<(), ApiError>) = match path {
            0 => {
                let span = span(rng);
                let request = RangeRequest {
                    key: span.key.clone(),
                    range_end: span.range_end.clone(),
                    serializable: rng.below(2) == 0,
                    ..Default::default()
                };
                let answer = if rng.below(3) == 0 {
                    pipeline.range_stream(request, who).await.map(drop)
                } else {
                    pipeline.range(request, who).await.map(drop)
                };
                (format!("range {span:?}"), may(model, user, false, &span), answer)
            }
            1 => {
                let (number, put) = put_of(rng);
                let answer = pipeline.put(put.clone(), who).await.map(drop);
                (format!("{put:?}"), may_put(model, user, number, &put), answer)
            }
            2 => {
                let (span, prev_kv) = (span(rng), rng.below(2) == 0);
                let delete =
                    DeleteRangeRequest { key: span.key.clone(), range_end: span.range_end.clone(), prev_kv };
                let answer = pipeline.delete_range(delete, who).await.map(drop);
                (format!("delete {span:?}"), may_delete(model, user, &span, prev_kv), answer)
            }
            3 => {
                let (allowed, txn) = txn(rng, model, user, 0);
                let answer = pipeline.txn(txn.clone(), who).await.map(drop);
                (format!("{txn:?}"), allowed, answer)
            }
            4 => {
                let span = span(rng);
                let answer = pipeline.check_watch(who, &span.key, &span.range_end);
                (format!("watch {span:?}"), may(model, user, false, &span), answer)
            }
            5 => {
                let lease = LEASES[rng.below(3) as usize];
                let answer = pipeline.check_renew(who, lease).await;
                (format!("renew {lease}"), may_write_lease(model, user, lease), answer)
            }
            6 => {
                let lease = LEASES[rng.below(3) as usize];
                let origin = pipeline.check_user(who).await.unwrap();
                let answer = pipeline.check_lease_keys(&origin, &pipeline.store().lease_keys(lease));
                (format!("keys of {lease}"), may_read_lease(model, user, lease), answer)
            }
            7 => {
                let allowed = LEASES.iter().all(|lease| may_read_lease(model, user, *lease));
                ("leases".to_owned(), allowed, pipeline.check_lease_list(who, &LEASES).await)
            }
            _ => {
                let lease = LEASES[rng.below(3) as usize];
                let allowed = may_write_lease(model, user, lease);
                let answer = pipeline.lease_revoke(lease, who).await.map(drop);
                if answer.is_ok() {
                    let grant = LeaseGrantRequest { id: lease, ttl: 10_000 };
                    pipeline.lease_grant(grant, &self.tokens["root"]).await.unwrap();
                }
                (format!("revoke {lease}"), allowed, answer)
            }
        };
        // What is wrong with a request in itself says nothing of rights.
        if matches!(answer, Err(ApiError::DuplicateKey)) {
            return;
        }
        let expected = if allowed { Ok(()) } else { Err(ApiError::PermissionDenied) };
        assert_eq!(answer, expected, "{user} asks for {what}; roles {:?} {:?}", model.users, model.roles);
        // Which lease holds which key is only a fact here.
        let store = self.pipeline().store().clone();
        let holders = LEASES
            .iter()
            .flat_map(|lease| store.lease_keys(*lease).into_iter().map(|key| (key[0] - b'a', *lease)));
        self.model.leases = holders.collect();
    }
}

#[tokio::test]
async fn every_path_agrees_with_a_naive_model() {
    let number = |name: &str, default| {
        std::env::var(name).ok().and_then(|number| number.parse().ok()).unwrap_or(default)
    };
    let (cases, seed) = (number("STERNPOST_AUTH_CASES", 100_000), number("STERNPOST_AUTH_SEED", 7));
    let mut rng = Rng::new(seed);
    let mut world = World::new().await;
    for number in 0..cases {
        if rng.below(8) == 0 {
            world.change(&mut rng).await;
        }
        world.ask(&mut rng, number % 9).await;
    }
}

/// CVE-2026-33413 and its like: a method that nobody thought of is refused, because all of them are asked without a name.
#[tokio::test]
async fn no_method_but_those_that_are_for_everybody_answers_without_a_name() {
    let running = enabled().await;
    let set = include_bytes!(concat!(env!("OUT_DIR"), "/etcd.descriptors"));
    let pool = prost_reflect::DescriptorPool::decode(set.as_slice()).unwrap();
    let (mut asked, mut open) = (0, Vec::new());
    let is_served = |name: &str| name.starts_with("etcdserverpb.") || name.starts_with("sternpostpb.");
    for service in pool.services().filter(|service| is_served(service.full_name())) {
        for method in service.methods() {
            let path = format!("/{}/{}", service.full_name(), method.name());
            let mut grpc = tonic::client::Grpc::new(running.channel.clone());
            grpc.ready().await.unwrap();
            // Streams and unary methods alike: one message, one answer or a status.
            let request = match method.name() {
                "Range" | "RangeStream" | "DeleteRange" => {
                    RangeRequest { key: bytes("a"), ..Default::default() }.into()
                }
                "Put" => {
                    Raw(prost::Message::encode_to_vec(&PutRequest { key: bytes("a"), ..Default::default() })
                        .into())
                }
                "Txn" => {
                    let range = RangeRequest { key: bytes("a"), ..Default::default() };
                    let operation = RequestOp { request: Some(Op::RequestRange(range)) };
                    let txn = TxnRequest { success: vec![operation], ..Default::default() };
                    Raw(prost::Message::encode_to_vec(&txn).into())
                }
                // Nobody is the user without a name, for etcd, who is then not found.
                "UserGet" => {
                    let get = AuthUserGetRequest { name: "root".into() };
                    Raw(prost::Message::encode_to_vec(&get).into())
                }
                "MemberAdd" => {
                    let add =
                        MemberAddRequest { peer_ur_ls: vec!["http://a:1".into()], ..Default::default() };
                    Raw(prost::Message::encode_to_vec(&add).into())
                }
                "Watch" => {
                    let create = WatchCreateRequest { key: bytes("a"), ..Default::default() };
                    let union = Some(watch_request::RequestUnion::CreateRequest(create));
                    Raw(prost::Message::encode_to_vec(&WatchRequest { request_union: union }).into())
                }
                "LeaseKeepAlive" => {
                    Raw(prost::Message::encode_to_vec(&LeaseKeepAliveRequest { id: 7 }).into())
                }
                _ => Raw(Bytes::new()),
            };
            let path = tonic::codegen::http::uri::PathAndQuery::try_from(path).unwrap();
            let requests = tokio_stream::once(request);
            let answer = grpc.streaming(Request::new(requests), path, RawCodec).await;
            let answer = match answer {
                Ok(answers) => answers.into_inner().message().await,
                Err(status) => Err(status),
            };
            asked += 1;
            match answer {
                Err(status) => {
                    let refused = (status.code(), status.message());
                    if refused != (Code::InvalidArgument, "etcdserver: user name is empty") {
                        open.push(format!("{} {refused:?}", method.name()));
                    }
                }
                Ok(Some(Raw(bytes))) if method.name() == "Watch" => {
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
    assert!(asked >= 44, "{asked}");
    open.sort();
    let wrong =
        "Authenticate (InvalidArgument, \"etcdserver: authentication failed, invalid user ID or password\")";
    assert_eq!(open, ["AuthStatus", wrong]);
}

/// Messages as they are.
#[derive(Clone, Default)]
struct Raw(Bytes);

impl From<RangeRequest> for Raw {
    fn from(request: RangeRequest) -> Self {
        Self(prost::Message::encode_to_vec(&request).into())
    }
}

#[derive(Clone, Default)]
struct RawCodec;

impl tonic::codec::Codec for RawCodec {
    type Encode = Raw;
    type Decode = Raw;
    type Encoder = RawCodec;
    type Decoder = RawCodec;
    fn encoder(&mut self) -> RawCodec {
        RawCodec
    }
    fn decoder(&mut self) -> RawCodec {
        RawCodec
    }
}

impl tonic::codec::Encoder for RawCodec {
    type Item = Raw;
    type Error = tonic::Status;
    fn encode(&mut self, item: Raw, out: &mut tonic::codec::EncodeBuf<'_>) -> Result<(), tonic::Status> {
        bytes::BufMut::put_slice(out, &item.0);
        Ok(())
    }
}

impl tonic::codec::Decoder for RawCodec {
    type Item = Raw;
    type Error = tonic::Status;
    fn decode(&mut self, from: &mut tonic::codec::DecodeBuf<'_>) -> Result<Option<Raw>, tonic::Status> {
        let count = bytes::Buf::remaining(from);
        Ok(Some(Raw(bytes::Buf::copy_to_bytes(from, count))))
    }
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
