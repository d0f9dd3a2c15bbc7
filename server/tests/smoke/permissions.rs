//! Who may do what: random users, roles and requests against a naive model, for keys, transactions, watches, leases, locks and elections, in each of three
//! ways: calls of what the services call, gRPC, the JSON gateway over HTTP.
//!
//! 100,000 cases of each way from one seed in every run; `STERNPOST_AUTH_CASES` and `STERNPOST_AUTH_SEED` are for others.
mod model;
mod ways;

use crate::support::{Running, start_with};
use bytes::Bytes;
use model::{
    LEASES, LETTERS, Model, ROLES, USERS, lease_of, letter, lock_key, place_of, put_of, queue_of, span, txn,
};
use std::collections::{BTreeMap, BTreeSet};
use sternpost_engine::base::rng::Rng;
use sternpost_server::apply::command::Kind;
use sternpost_server::auth::origin::Credential;
use sternpost_server::server::{AuthOptions, ServerOptions};
use sternpost_server::wire::authpb::Permission;
use sternpost_server::wire::etcdserverpb::auth_client::AuthClient;
use sternpost_server::wire::etcdserverpb::*;
use sternpost_server::wire::v3electionpb::{CampaignRequest, LeaderKey};
use sternpost_server::wire::v3lockpb::LockRequest;
use ways::{Asked, DENIED, Way};

/// Kinds of requests, which take turns.
const KINDS: u64 = 16;
const CASES: u64 = 100_000;

struct World {
    running: Running,
    model: Model,
    tokens: BTreeMap<&'static str, String>,
    /// Cases that were allowed and those that were not, by kind.
    counts: [[u64; 2]; KINDS as usize],
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
            let grant = LeaseGrantRequest { id, ttl: 10_000 };
            running.server.pipeline.lease_grant(grant, &Credential::Nobody).await.unwrap();
        }
        client.auth_enable(AuthEnableRequest {}).await.unwrap();
        let mut tokens = BTreeMap::new();
        for name in USERS {
            let request = AuthenticateRequest { name: name.into(), password: name.into() };
            let token = client.authenticate(request).await.unwrap().into_inner().token;
            tokens.insert(name, token);
        }
        Self { running, model, tokens, counts: [[0; 2]; KINDS as usize] }
    }

    fn root(&self) -> Credential {
        Credential::Token(self.tokens["root"].as_str().into())
    }

    /// Users and roles become others.
    async fn change(&mut self, rng: &mut Rng) {
        let root = &self.root();
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

    /// The create revision of a key, none if it is not there.
    async fn created(&self, key: Bytes) -> Option<i64> {
        let range = RangeRequest { key, ..Default::default() };
        let found = self.running.server.pipeline.range(range, &self.root()).await.unwrap();
        found.kvs.first().map(|kv| kv.create_revision)
    }

    /// One request of a kind, and whether the model allows it.
    async fn case(&self, rng: &mut Rng, kind: u64, user: &str, has_streams: bool) -> (bool, Asked) {
        let model = &self.model;
        let number = rng.below(u64::from(LETTERS)) as u8;
        let lease = LEASES[rng.below(3) as usize];
        match kind {
            0 => {
                let span = span(rng);
                let allowed = model.may_read(user, &span);
                let range = RangeRequest {
                    key: span.key,
                    range_end: span.range_end,
                    serializable: rng.below(2) == 0,
                    ..Default::default()
                };
                let is_stream = rng.below(3) == 0 && has_streams;
                (allowed, if is_stream { Asked::RangeStream(range) } else { Asked::Range(range) })
            }
            1 => {
                let put = put_of(rng);
                (model.may_put(user, &put), Asked::Put(put))
            }
            2 => {
                let (span, prev_kv) = (span(rng), rng.below(2) == 0);
                let allowed = model.may_delete(user, &span, prev_kv);
                let delete = DeleteRangeRequest { key: span.key, range_end: span.range_end, prev_kv };
                (allowed, Asked::DeleteRange(delete))
            }
            3 => {
                let (allowed, txn) = txn(rng, model, user, 0);
                (allowed, Asked::Txn(txn))
            }
            4 => {
                let span = span(rng);
                let allowed = model.may_read(user, &span);
                let create =
                    WatchCreateRequest { key: span.key, range_end: span.range_end, ..Default::default() };
                (allowed, Asked::Watch(create))
            }
            5 => (model.may_write_lease(user, lease), Asked::KeepAlive(lease)),
            6 => (model.may_read_lease(user, lease), Asked::KeysOfLease(lease)),
            7 => (LEASES.iter().all(|lease| model.may_read_lease(user, *lease)), Asked::Leases),
            8 => (model.may_write_lease(user, lease), Asked::Revoke(lease)),
            9 => {
                let lock = LockRequest { name: letter(number), lease: lease_of(number) };
                (model.may_wait(user, number), Asked::Lock(lock))
            }
            10 => {
                let put = put_of(rng);
                let key = PutRequest { key: put.key.clone(), ..Default::default() };
                (model.may_put(user, &key), Asked::Unlock(put.key))
            }
            11 => {
                let value = if rng.below(2) == 0 { "v" } else { "w" };
                let (name, lease) = (letter(number), lease_of(number));
                let campaign = CampaignRequest { name, lease, value: value.into() };
                (model.may_wait(user, number), Asked::Campaign(campaign))
            }
            12 => (model.may_proclaim(user, number), Asked::Proclaim(self.leader_key(number).await)),
            13 => (model.may_read(user, &queue_of(number)), Asked::Leader(letter(number))),
            14 => {
                // So that there is something to be told.
                let put = PutRequest { key: lock_key(number), ..Default::default() };
                self.running.server.pipeline.put(put, &self.root()).await.unwrap();
                (model.may_read(user, &queue_of(number)), Asked::Observe(letter(number)))
            }
            _ => (model.may_resign(user, number), Asked::Resign(self.leader_key(number).await)),
        }
    }

    /// The office of a name, as if the caller had it; often it does.
    async fn leader_key(&self, number: u8) -> LeaderKey {
        let (name, key, lease) = (letter(number), lock_key(number), lease_of(number));
        let rev = self.created(key.clone()).await.unwrap_or(1);
        LeaderKey { name, key, rev, lease }
    }

    /// One request of one user, and whether it is answered as the model says.
    async fn ask(&mut self, rng: &mut Rng, kind: u64, way: &mut Way) {
        let user = USERS[rng.below(4) as usize];
        let has_streams = !matches!(way, Way::Gateway(_));
        let (allowed, asked) = self.case(rng, kind, user, has_streams).await;
        let queued = match &asked {
            Asked::Campaign(campaign) => Some(lock_key(campaign.name[0] - b'a')),
            _ => None,
        };
        let was_there = match &queued {
            Some(key) => self.created(key.clone()).await.is_some(),
            None => false,
        };
        let answer = match way.ask(&self.running, &asked, &self.tokens[user]).await {
            // What is wrong with a request in itself says nothing of rights.
            Err(text) if text == "etcdserver: duplicate key given in txn request" => return,
            Err(text) if text == "election: not leader" || text == "election: no leader" => Ok(()),
            answer => answer,
        };
        let expected = if allowed { Ok(()) } else { Err(DENIED.to_owned()) };
        let model = &self.model;
        assert_eq!(answer, expected, "{user} asks for {asked:?}; roles {:?} {:?}", model.users, model.roles);
        self.counts[kind as usize][usize::from(allowed)] += 1;
        if let Some(key) = queued.filter(|_| !allowed && !was_there) {
            // Who may write the key and not read the queue has entered it, and is taken out again behind the answer.
            while self.created(key.clone()).await.is_some() {
                tokio::task::yield_now().await;
            }
        }
        if let (Asked::Revoke(id), true) = (&asked, allowed) {
            let grant = LeaseGrantRequest { id: *id, ttl: 10_000 };
            self.running.server.pipeline.lease_grant(grant, &self.root()).await.unwrap();
        }
        // Which lease holds which key is only a fact here.
        let store = self.running.server.pipeline.store();
        let holders = LEASES
            .iter()
            .flat_map(|lease| store.lease_keys(*lease).into_iter().map(|key| (place_of(&key), *lease)));
        self.model.leases = holders.collect();
    }
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|number| number.parse().ok())
}

async fn check(world: &mut World, way: &mut Way) {
    let cases = number("STERNPOST_AUTH_CASES").unwrap_or(CASES);
    let mut rng = Rng::new(number("STERNPOST_AUTH_SEED").unwrap_or(7));
    for number in 0..cases {
        if rng.below(8) == 0 {
            world.change(&mut rng).await;
        }
        world.ask(&mut rng, number % KINDS, way).await;
    }
    if cases >= 10_000 {
        for (kind, counts) in world.counts.iter().enumerate() {
            let least = *counts.iter().min().unwrap();
            assert!(
                least * KINDS * 50 >= cases,
                "of kind {kind} one in fifty is allowed, and is not: {counts:?}"
            );
        }
    }
}

#[tokio::test]
async fn calls_agree_with_a_naive_model() {
    let mut world = World::new().await;
    let mut way = Way::direct(&world.running);
    check(&mut world, &mut way).await;
}

#[tokio::test]
async fn requests_by_grpc_agree_with_a_naive_model() {
    let mut world = World::new().await;
    let mut way = Way::grpc(&world.running).await;
    check(&mut world, &mut way).await;
}

#[tokio::test]
async fn requests_through_the_gateway_agree_with_a_naive_model() {
    let mut world = World::new().await;
    let mut way = Way::gateway(&world.running);
    check(&mut world, &mut way).await;
}
