//! The lock and election services, where calls wait for each other: against etcd and against us, and over three members.
//!
//! What a single call answers is in `api/lock.txt`. Without etcd its half says that it skips; `STERNPOST_REQUIRE_PEERS=1` makes that a failure.
mod support;

use rustix::process::Signal;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use sternpost_server::wire::etcdserverpb::auth_client::AuthClient;
use sternpost_server::wire::etcdserverpb::kv_client::KvClient;
use sternpost_server::wire::etcdserverpb::lease_client::LeaseClient;
use sternpost_server::wire::etcdserverpb::*;
use sternpost_server::wire::v3electionpb::election_client::ElectionClient;
use sternpost_server::wire::v3electionpb::{CampaignRequest, LeaderKey, LeaderRequest, ResignRequest};
use sternpost_server::wire::v3lockpb::lock_client::LockClient;
use sternpost_server::wire::v3lockpb::{LockRequest, UnlockRequest};
use support::cluster::{Cluster, runtime, until};
use support::process::{Program, Server, required};
use tokio::sync::mpsc;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

/// Both servers where there are both.
fn programs() -> Vec<Program> {
    let mut programs = vec![Program::Sternpost];
    match Program::Etcd.binary() {
        Ok(_) => programs.push(Program::Etcd),
        Err(missing) => {
            assert!(!required("STERNPOST_REQUIRE_PEERS"), "{missing}");
            eprintln!("skipped for etcd: {missing}");
        }
    }
    programs
}

/// Runs `check` against each server, fresh.
fn against_each(check: impl AsyncFn(Channel)) {
    for program in programs() {
        let server = Server::start(program, &[]);
        runtime().block_on(async {
            let channel = Endpoint::from_shared(server.endpoint()).unwrap().connect_lazy();
            check(channel).await;
        });
    }
}

async fn lease(channel: &Channel, ttl: i64) -> i64 {
    let request = LeaseGrantRequest { ttl, id: 0 };
    LeaseClient::new(channel.clone()).lease_grant(request).await.unwrap().into_inner().id
}

async fn revoke(channel: &Channel, id: i64) {
    LeaseClient::new(channel.clone()).lease_revoke(LeaseRevokeRequest { id }).await.unwrap();
}

async fn lock(channel: Channel, lease: i64) -> Result<Vec<u8>, Status> {
    let request = LockRequest { name: "room".into(), lease };
    Ok(LockClient::new(channel).lock(request).await?.into_inner().key.to_vec())
}

async fn unlock(channel: &Channel, key: Vec<u8>) {
    LockClient::new(channel.clone()).unlock(UnlockRequest { key: key.into() }).await.unwrap();
}

/// Keys of the queue `name`, in the order of their creation.
async fn queue(channel: &Channel, name: &str) -> Vec<String> {
    let request = RangeRequest {
        key: format!("{name}/").into(),
        range_end: format!("{name}0").into(),
        sort_order: range_request::SortOrder::Ascend.into(),
        sort_target: range_request::SortTarget::Create.into(),
        ..Default::default()
    };
    let kvs = KvClient::new(channel.clone()).range(request).await.unwrap().into_inner().kvs;
    kvs.into_iter().map(|kv| String::from_utf8(kv.key.to_vec()).unwrap()).collect()
}

/// Waits until so many keys stand in the queue.
async fn queued(channel: &Channel, name: &str, count: usize) -> Vec<String> {
    until("keys in the queue", async || {
        let keys = queue(channel, name).await;
        (keys.len() == count).then_some(keys)
    })
    .await
}

#[track_caller]
fn says<T: std::fmt::Debug>(answer: Result<T, Status>, text: &str) {
    let status = answer.expect_err("refused");
    assert_eq!((status.code(), status.message()), (Code::Unknown, text));
}

/// Those who wait get the lock one after the other, in the order in which they came.
#[test]
fn a_lock_goes_to_who_came_first() {
    against_each(async |channel| {
        let mut leases = Vec::new();
        for _ in 0..5 {
            leases.push(lease(&channel, 600).await);
        }
        let mut waiting = Vec::new();
        for (number, id) in leases.iter().enumerate() {
            waiting.push(tokio::spawn(lock(channel.clone(), *id)));
            queued(&channel, "room", number + 1).await;
        }
        for (number, waits) in waiting.into_iter().enumerate() {
            let key = waits.await.unwrap().unwrap();
            assert_eq!(key, format!("room/{:x}", leases[number]).into_bytes());
            assert_eq!(queue(&channel, "room").await.len(), 5 - number, "nobody behind it has it or is gone");
            // One goes on his own, one because his lease ends.
            if number % 2 == 0 { unlock(&channel, key).await } else { revoke(&channel, leases[number]).await }
        }
        assert_eq!(queue(&channel, "room").await, [""; 0]);
    });
}

/// Who goes away while waiting leaves no key behind, and who comes after does not wait for it.
#[test]
fn a_call_that_is_given_up_takes_its_key_back() {
    against_each(async |channel| {
        let (first, second, third) =
            (lease(&channel, 600).await, lease(&channel, 600).await, lease(&channel, 600).await);
        let held = lock(channel.clone(), first).await.unwrap();
        let gives_up = tokio::spawn(lock(channel.clone(), second));
        queued(&channel, "room", 2).await;
        let waits = tokio::spawn(lock(channel.clone(), third));
        queued(&channel, "room", 3).await;
        gives_up.abort();
        let left = queued(&channel, "room", 2).await;
        assert_eq!(left, [format!("room/{first:x}"), format!("room/{third:x}")]);
        unlock(&channel, held).await;
        assert_eq!(waits.await.unwrap().unwrap(), format!("room/{third:x}").into_bytes());

        // The same of an election.
        let campaign = async |lease: i64| {
            let request = CampaignRequest { name: "chair".into(), lease, value: "v".into() };
            ElectionClient::new(channel.clone()).campaign(request).await
        };
        campaign(first).await.unwrap();
        let mut election = ElectionClient::new(channel.clone());
        let request = CampaignRequest { name: "chair".into(), lease: second, value: "v".into() };
        let gives_up = tokio::spawn(async move { election.campaign(request).await });
        queued(&channel, "chair", 2).await;
        gives_up.abort();
        assert_eq!(queued(&channel, "chair", 1).await, [format!("chair/{first:x}")]);
    });
}

#[test]
fn a_lock_whose_lease_ends_while_it_waits_is_told_so() {
    against_each(async |channel| {
        let (first, second) = (lease(&channel, 600).await, lease(&channel, 600).await);
        let held = lock(channel.clone(), first).await.unwrap();
        let waits = tokio::spawn(lock(channel.clone(), second));
        queued(&channel, "room", 2).await;
        revoke(&channel, second).await;
        unlock(&channel, held).await;
        says(waits.await.unwrap(), "mutex: session is expired");
    });
}

/// Every word of every leader, from the first on, in order; also what was said before anybody led.
#[test]
fn who_observes_hears_every_leader() {
    against_each(async |channel| {
        let mut election = ElectionClient::new(channel.clone());
        // etcd's answer begins with the first leader's word, so somebody else waits for it.
        let (said, mut heard) = mpsc::channel(1);
        let mut observer = election.clone();
        let observing = tokio::spawn(async move {
            let request = LeaderRequest { name: "chair".into() };
            let mut observed = observer.observe(request).await.unwrap().into_inner();
            while let Some(response) = observed.message().await.unwrap() {
                said.send(response).await.unwrap();
            }
        });
        let mut hears = async || {
            let waiting = tokio::time::timeout(Duration::from_mins(1), heard.recv());
            let response = waiting.await.expect("the leader's word").expect("it goes on");
            let kv = response.kv.unwrap();
            (
                String::from_utf8(kv.value.to_vec()).unwrap(),
                kv.mod_revision,
                response.header.unwrap().revision,
            )
        };
        let (first, second) = (lease(&channel, 600).await, lease(&channel, 600).await);
        let campaign = |lease: i64, value: &'static str| {
            let mut election = ElectionClient::new(channel.clone());
            let request = CampaignRequest { name: "chair".into(), lease, value: value.into() };
            tokio::spawn(async move { election.campaign(request).await })
        };
        let office = campaign(first, "one").await.unwrap().unwrap().into_inner().leader.unwrap();
        assert_eq!(hears().await, ("one".into(), 2, 2));
        let waits = campaign(second, "two");
        queued(&channel, "chair", 2).await;
        let request = sternpost_server::wire::v3electionpb::ProclaimRequest {
            leader: Some(office.clone()),
            value: "still one".into(),
        };
        election.proclaim(request.clone()).await.unwrap();
        assert_eq!(hears().await, ("still one".into(), 4, 4));
        let resign = ResignRequest { leader: Some(office.clone()) };
        election.resign(resign.clone()).await.unwrap();
        let next: LeaderKey = waits.await.unwrap().unwrap().into_inner().leader.unwrap();
        assert_eq!((next.rev, next.lease), (3, second));
        assert_eq!(hears().await, ("two".into(), 3, 5));
        says(election.proclaim(request).await, "election: not leader");
        // Nobody leads for a while.
        election.resign(ResignRequest { leader: Some(next) }).await.unwrap();
        says(election.leader(LeaderRequest { name: "chair".into() }).await, "election: no leader");
        campaign(first, "three").await.unwrap().unwrap();
        assert_eq!(hears().await, ("three".into(), 7, 7));
        observing.abort();
    });
}

async fn count(kv: &KvClient<Channel>) -> Option<u64> {
    let get = RangeRequest { key: "counter".into(), ..Default::default() };
    let kvs = kv.clone().range(get).await.ok()?.into_inner().kvs;
    Some(kvs.first().map_or(0, |kv| String::from_utf8_lossy(&kv.value).parse().unwrap()))
}

/// Adds one to the counter under the lock, with a lease that is gone afterwards; None if the lock was not to be had. What fails may have been done, so
/// each try has a lease of its own.
async fn turn(channel: &Channel, holders: &AtomicU64) -> Option<()> {
    let mut leases = LeaseClient::new(channel.clone());
    let request = LeaseGrantRequest { ttl: 600, id: 0 };
    let id = leases.lease_grant(request).await.ok()?.into_inner().id;
    let held = lock(channel.clone(), id).await;
    if held.is_ok() {
        assert_eq!(holders.fetch_add(1, Ordering::SeqCst), 0, "two have the lock");
        let kv = KvClient::new(channel.clone());
        let seen = until("the counter", async || count(&kv).await).await;
        until("the counter's next", async || {
            let value = (seen + 1).to_string().into();
            let put = PutRequest { key: "counter".into(), value, ..Default::default() };
            kv.clone().put(put).await.ok()
        })
        .await;
        assert_eq!(holders.fetch_sub(1, Ordering::SeqCst), 1, "two had the lock");
    }
    until("the lease's end", async || {
        let ended = leases.clone().lease_revoke(LeaseRevokeRequest { id }).await;
        ended.map_or_else(|status| (status.code() == Code::NotFound).then_some(()), |_| Some(()))
    })
    .await;
    held.ok().map(drop)
}

/// A counter that only who holds the lock may change, by callers of two members, while the third, which leads, is killed: no change is lost, and nobody
/// is forgotten.
#[test]
fn locks_hold_over_three_members_and_their_leaders_end() {
    const CALLERS: usize = 9;
    const TURNS: usize = 12;
    let callers = tokio::task::LocalSet::new();
    runtime().block_on(callers.run_until(async {
        let mut cluster = Cluster::start(3, &[]);
        let leader = cluster.leader().await;
        let others = [(leader + 1) % 3, (leader + 2) % 3];
        let holders = Rc::new(AtomicU64::new(0));
        let mut callers = tokio::task::JoinSet::new();
        for number in 0..CALLERS {
            let (channel, holders) = (cluster.members[others[number % 2]].channel(), Rc::clone(&holders));
            callers.spawn_local(async move {
                for _ in 0..TURNS {
                    until("a turn", async || turn(&channel, &holders).await).await;
                }
            });
        }
        let channel = cluster.members[others[0]].channel();
        let kv = KvClient::new(channel.clone());
        until("some turns", async || count(&kv).await.filter(|count| *count > CALLERS as u64)).await;
        cluster.members[leader].end(Signal::KILL);
        while let Some(ended) = callers.join_next().await {
            ended.unwrap();
        }
        assert_eq!(until("the count", async || count(&kv).await).await, (CALLERS * TURNS) as u64);
        assert_eq!(queue(&channel, "room").await, [""; 0]);
        cluster.start_member(leader);
        cluster.agree().await;
    }));
}

/// Root, and ann, who may read and write what lies under "mine"; answers a token of hers.
async fn with_users(channel: &Channel) -> String {
    let mut auth = AuthClient::new(channel.clone());
    for (name, password) in [("root", "r"), ("ann", "a")] {
        auth.user_add(AuthUserAddRequest {
            name: name.into(),
            password: password.into(),
            ..Default::default()
        })
        .await
        .unwrap();
        auth.role_add(AuthRoleAddRequest { name: name.into() }).await.unwrap();
        auth.user_grant_role(AuthUserGrantRoleRequest { user: name.into(), role: name.into() })
            .await
            .unwrap();
    }
    let perm = sternpost_server::wire::authpb::Permission {
        perm_type: sternpost_server::wire::authpb::permission::Type::Readwrite.into(),
        key: "mine/".into(),
        range_end: "mine0".into(),
    };
    let grant = AuthRoleGrantPermissionRequest { name: "ann".into(), perm: Some(perm) };
    auth.role_grant_permission(grant).await.unwrap();
    auth.auth_enable(AuthEnableRequest {}).await.unwrap();
    auth.authenticate(AuthenticateRequest { name: "ann".into(), password: "a".into() })
        .await
        .unwrap()
        .into_inner()
        .token
}

/// With authentication a recipe may do what its caller may do with the keys.
#[test]
fn rights_count_in_locks_and_elections() {
    against_each(async |channel| {
        let token = with_users(&channel).await;
        let asks = async |name: &'static str, token: Option<&str>| {
            let mut request = tonic::Request::new(LockRequest { name: name.into(), lease: 0 });
            if let Some(token) = token {
                request.metadata_mut().insert("token", token.parse().unwrap());
            }
            LockClient::new(channel.clone()).lock(request).await
        };
        asks("mine", Some(&token)).await.unwrap();
        says(asks("room", Some(&token)).await, "etcdserver: permission denied");
        says(asks("mine", Some("nobody's.7")).await, "etcdserver: invalid auth token");
        says(asks("mine", None).await, "etcdserver: user name is empty");
        let leads = async |name: &'static str| {
            let mut request = tonic::Request::new(LeaderRequest { name: name.into() });
            request.metadata_mut().insert("token", token.parse().unwrap());
            ElectionClient::new(channel.clone()).leader(request).await
        };
        says(leads("mine2").await, "etcdserver: permission denied");
        assert!(leads("mine").await.unwrap().into_inner().kv.unwrap().key.starts_with(b"mine/"));
    });
}

/// etcd, by its source, ends such a stream without a word.
#[test]
fn observing_what_may_not_be_read_is_refused() {
    let server = Server::start(Program::Sternpost, &[]);
    runtime().block_on(async {
        let channel = Endpoint::from_shared(server.endpoint()).unwrap().connect_lazy();
        let token = with_users(&channel).await;
        let mut request = tonic::Request::new(LeaderRequest { name: "chair".into() });
        request.metadata_mut().insert("token", token.parse().unwrap());
        let mut election = ElectionClient::new(channel);
        let mut observed = election.observe(request).await.unwrap().into_inner();
        says(observed.message().await, "etcdserver: permission denied");
    });
}
