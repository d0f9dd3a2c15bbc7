//! No metric is a constant: each has two values at least under the loads of this test, or a reason why not.
//!
//! Two of the same value count as none: what differs in labels alone says nothing. Three servers are looked at again and again, while what they count
//! happens to them: one alone, one alone with other settings, and a group that loses its leader, its quorum, and gets a new member.
mod support;

use rustix::process::Signal;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::TcpStream;
use sternpost_server::metrics::names::METRICS;
use sternpost_server::wire::etcdserverpb::alarm_request::AlarmAction;
use sternpost_server::wire::etcdserverpb::auth_client::AuthClient;
use sternpost_server::wire::etcdserverpb::cluster_client::ClusterClient;
use sternpost_server::wire::etcdserverpb::kv_client::KvClient;
use sternpost_server::wire::etcdserverpb::lease_client::LeaseClient;
use sternpost_server::wire::etcdserverpb::maintenance_client::MaintenanceClient;
use sternpost_server::wire::etcdserverpb::watch_client::WatchClient;
use sternpost_server::wire::etcdserverpb::*;
use support::cluster::{Cluster, Member, runtime, until};
use support::process::{Program, Server};
use tonic::transport::{Channel, Endpoint};

/// What has one value here, and why; where another test sees it move, that test's file.
const STILL: &[(&str, &str, &str)] = &[
    ("etcd_server_id", "its label says it", ""),
    ("etcd_server_version", "its label says it", ""),
    ("etcd_cluster_version", "its label says it", ""),
    ("etcd_network_known_peers", "its labels say it: one for each member", ""),
    ("process_max_fds", "a limit that the system gives a process at its start", ""),
    ("os_fd_limit", "a limit that the system gives a process at its start", ""),
    ("process_virtual_memory_max_bytes", "a limit that the system gives a process at its start", ""),
    ("etcd_disk_defrag_inflight", "1 only while a call lasts that has nothing to do", ""),
    ("promhttp_metric_handler_requests_in_flight", "who looks sees the own request", ""),
    (
        "etcd_server_snapshot_apply_in_progress_total",
        "1 only while a state is fetched, which is over at once here",
        "",
    ),
    ("sternpost_disk_quarantined_units", "moves when a disk is damaged", ""),
    ("sternpost_comparison_differing_members", "moves when members differ", ""),
    ("sternpost_lists_reading", "above 0 only while a list is put together", ""),
    ("sternpost_lists_waiting", "above 0 only while many lists are", ""),
    ("sternpost_prefix_quotas", "needs a prefix with a quota", "prefix_quotas.rs"),
    ("sternpost_prefix_quota_refused_total", "needs a prefix with a quota", ""),
    ("sternpost_audit_lines_total", "needs an audit stream", "audit.rs"),
    ("sternpost_audit_lost_total", "needs an audit stream that cannot be written", "audit.rs"),
    ("sternpost_space_warning", "moves when something is nearly full", "warnings.rs"),
    ("sternpost_answer_refused_total", "needs clients that read nothing of 16 MiB", "hostile.rs"),
    ("sternpost_tls_certificate_expiration_timestamp_seconds", "needs certificates", "tls/rotation.rs"),
];

/// Values by metric, over all scrapes.
#[derive(Default)]
struct Seen(BTreeMap<&'static str, BTreeSet<String>>);

impl Seen {
    /// Looks at what a server shows; answers the text.
    fn look(&mut self, address: &str) -> Option<String> {
        let mut socket = TcpStream::connect(address).ok()?;
        socket.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").ok()?;
        let mut text = String::new();
        socket.read_to_string(&mut text).ok()?;
        let mut shown = BTreeSet::new();
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let Some((series, value)) = line.rsplit_once(' ') else { continue };
            let name = series.split('{').next().unwrap_or(series);
            let bare = ["_bucket", "_sum", "_count"].iter().find_map(|ending| name.strip_suffix(ending));
            let spec = METRICS.iter().find(|spec| spec.name == name || Some(spec.name) == bare);
            if let Some(spec) = spec {
                self.0.entry(spec.name).or_default().insert(value.to_owned());
                shown.insert(spec.name);
            }
        }
        // A label that nothing has happened for is not shown.
        for spec in METRICS.iter().filter(|spec| !shown.contains(spec.name)) {
            self.0.entry(spec.name).or_default().insert("none".to_owned());
        }
        Some(text)
    }

    fn moves(&self, name: &str) -> bool {
        self.0.get(name).is_some_and(|values| values.len() > 1)
    }

    /// Looks until a metric has had two values.
    async fn until_moved(&mut self, address: &str, name: &str) {
        let seen = std::cell::RefCell::new(self);
        until(&format!("{name} to move"), async || {
            seen.borrow_mut().look(address)?;
            seen.borrow().moves(name).then_some(())
        })
        .await;
    }
}

fn status_of(address: &str, path: &str) -> String {
    let mut socket = TcpStream::connect(address).expect("the server listens");
    socket.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes()).expect("it reads");
    let mut text = String::new();
    socket.read_to_string(&mut text).expect("an answer");
    text.split(' ').nth(1).unwrap_or_default().to_owned()
}

/// One of everything.
async fn everything(channel: &Channel) {
    let mut kv = KvClient::new(channel.clone());
    for key in ["a", "b", "c"] {
        kv.put(PutRequest { key: key.into(), value: "v".into(), ..Default::default() }).await.unwrap();
    }
    kv.range(RangeRequest { key: "a".into(), range_end: "z".into(), ..Default::default() }).await.unwrap();
    let put = PutRequest { key: "t".into(), ..Default::default() };
    let put = RequestOp { request: Some(request_op::Request::RequestPut(put)) };
    kv.txn(TxnRequest { success: vec![put], ..Default::default() }).await.unwrap();
    kv.delete_range(DeleteRangeRequest { key: "c".into(), ..Default::default() }).await.unwrap();
    kv.compact(CompactionRequest { revision: 2, physical: true }).await.unwrap();
    let mut lease = LeaseClient::new(channel.clone());
    let id = lease.lease_grant(LeaseGrantRequest { ttl: 60, id: 0 }).await.unwrap().into_inner().id;
    let renewal = tokio_stream::once(LeaseKeepAliveRequest { id });
    lease.lease_keep_alive(renewal).await.unwrap().into_inner().message().await.unwrap();
    lease.lease_revoke(LeaseRevokeRequest { id }).await.unwrap();
    let mut maintenance = MaintenanceClient::new(channel.clone());
    maintenance.hash(HashRequest {}).await.unwrap();
    maintenance.hash_kv(HashKvRequest { revision: 0 }).await.unwrap();
    maintenance.defragment(DefragmentRequest {}).await.unwrap();
    let mut snapshot = maintenance.snapshot(SnapshotRequest {}).await.unwrap().into_inner();
    while snapshot.message().await.unwrap().is_some() {}
    let user = AuthUserAddRequest { name: "ann".into(), password: "ann".into(), ..Default::default() };
    AuthClient::new(channel.clone()).user_add(user).await.unwrap();
}

/// One alone: all calls, an expired lease, an alarm, a watcher that reads nothing, a body that does not come to its end.
async fn alone(seen: &mut Seen) {
    let server =
        Server::start(Program::Sternpost, &["--metrics=extensive".to_owned(), "--bcrypt-cost=4".to_owned()]);
    let address = server.address();
    seen.look(&address).unwrap();
    let channel = Endpoint::from_shared(server.endpoint()).unwrap().connect_lazy();
    everything(&channel).await;
    for path in ["/health", "/livez", "/readyz"] {
        assert_eq!(status_of(&address, path), "200", "{path}");
    }
    seen.look(&address).unwrap();
    LeaseClient::new(channel.clone()).lease_grant(LeaseGrantRequest { ttl: 1, id: 0 }).await.unwrap();

    let mut maintenance = MaintenanceClient::new(channel.clone());
    let member_id =
        maintenance.status(StatusRequest {}).await.unwrap().into_inner().header.unwrap().member_id;
    for action in [AlarmAction::Activate, AlarmAction::Deactivate] {
        let alarm = AlarmType::Nospace.into();
        maintenance.alarm(AlarmRequest { action: action.into(), member_id, alarm }).await.unwrap();
        status_of(&address, "/health");
        seen.look(&address).unwrap();
    }

    // A watch whose client takes nothing: a connection of its own, whose window fills.
    let idle = Endpoint::from_shared(server.endpoint()).unwrap().connect_lazy();
    let create = WatchCreateRequest { key: "w".into(), ..Default::default() };
    let union = Some(watch_request::RequestUnion::CreateRequest(create));
    let (sender, requests) = tokio::sync::mpsc::channel(1);
    sender.send(WatchRequest { request_union: union }).await.unwrap();
    let requests = tokio_stream::wrappers::ReceiverStream::new(requests);
    let mut watch = WatchClient::new(idle).watch(requests).await.unwrap().into_inner();
    assert!(watch.message().await.unwrap().unwrap().created);
    let mut kv = KvClient::new(channel.clone());
    for _ in 0..100 {
        let put = PutRequest { key: "w".into(), value: vec![7; 500_000].into(), ..Default::default() };
        kv.put(put).await.unwrap();
        seen.look(&address).unwrap();
    }
    seen.until_moved(&address, "sternpost_watch_lagged_total").await;
    seen.until_moved(&address, "etcd_debugging_mvcc_slow_watcher_total").await;

    let mut half = TcpStream::connect(&address).unwrap();
    let head = format!("POST /v3/kv/put HTTP/1.1\r\nHost: {address}\r\nContent-Length: 1000000\r\n\r\n");
    half.write_all(head.as_bytes()).unwrap();
    half.write_all(&[b' '; 500_000]).unwrap();
    seen.until_moved(&address, "sternpost_request_inflight_bytes").await;
    seen.until_moved(&address, "etcd_debugging_server_lease_expired_total").await;
    drop((half, watch, sender));
}

/// One alone with other settings, which bring about what is rare.
async fn alone_otherwise(seen: &mut Seen) {
    let flags = [
        "--quota-backend-bytes=1000000000",
        "--warning-apply-duration=1ns",
        "--max-inflight-bytes=1000",
        "--metrics=extensive",
        "--memtable-bytes=1",
    ];
    let server = Server::start(Program::Sternpost, &flags.map(str::to_owned));
    let channel = Endpoint::from_shared(server.endpoint()).unwrap().connect_lazy();
    let mut kv = KvClient::new(channel);
    kv.put(PutRequest { key: "a".into(), value: vec![7; 100].into(), ..Default::default() }).await.unwrap();
    let large = PutRequest { key: "a".into(), value: vec![7; 10_000].into(), ..Default::default() };
    kv.put(large).await.unwrap_err();
    for name in ["sternpost_request_refused_total", "etcd_server_slow_apply_total"] {
        seen.until_moved(&server.address(), name).await;
    }
}

fn address_of(member: &Member) -> String {
    format!("{}:{}", member.address, member.client_address().1)
}

/// A group: compared, led by another one, joined by a learner that is promoted too early and then in time, and at last without a quorum.
async fn group(seen: &mut Seen) {
    let mut cluster = Cluster::start(3, &["--compact-hash-check-time=1s"]);
    let leader = cluster.leader().await;
    let look_at_all = |seen: &mut Seen, cluster: &Cluster| {
        for (_, member) in cluster.living() {
            seen.look(&address_of(member));
        }
    };
    cluster.members[leader].put("a", "b").await.unwrap();
    look_at_all(seen, &cluster);
    seen.until_moved(&address_of(&cluster.members[leader]), "sternpost_comparison_agreed_total").await;

    let new = cluster.new_member(&[]);
    cluster.name(new);
    let add = MemberAddRequest { peer_ur_ls: vec![cluster.members[new].peer_url()], is_learner: true };
    let mut client = ClusterClient::new(cluster.members[leader].channel());
    let id = client.member_add(add).await.unwrap().into_inner().member.unwrap().id;
    client.member_promote(MemberPromoteRequest { id }).await.unwrap_err();
    cluster.join(new);
    let address = address_of(&cluster.members[new]);
    seen.until_moved(&address, "etcd_server_is_learner").await;
    let promoted = async || client.clone().member_promote(MemberPromoteRequest { id }).await.ok();
    until("the promotion", promoted).await;
    look_at_all(seen, &cluster);

    let mut moving = MaintenanceClient::new(cluster.members[leader].channel());
    moving.move_leader(MoveLeaderRequest { target_id: id }).await.unwrap();
    look_at_all(seen, &cluster);
    let leader = cluster.leader().await;
    look_at_all(seen, &cluster);

    // Two of four are no quorum; the leader is one of them, so that it loses what it leads.
    let others: Vec<usize> = (0..4).filter(|number| *number != leader).collect();
    cluster.members[others[0]].end(Signal::KILL);
    cluster.members[others[1]].end(Signal::KILL);
    let address = address_of(&cluster.members[leader]);
    let left = &cluster.members[leader];
    let (put, get) = (left.put("a", "c"), left.get("a", false));
    let watched = async {
        for name in ["etcd_server_proposals_pending", "etcd_server_has_leader", "etcd_network_active_peers"] {
            seen.until_moved(&address, name).await;
        }
        status_of(&address, "/readyz");
    };
    let (put, get, ()) = tokio::join!(put, get, watched);
    assert!(put.is_err() && get.is_err(), "there is no quorum");
    for name in [
        "etcd_server_proposals_failed_total",
        "etcd_server_read_indexes_failed_total",
        "etcd_server_slow_read_indexes_total",
        "etcd_server_heartbeat_send_failures_total",
        "etcd_network_disconnected_peers_total",
    ] {
        seen.until_moved(&address, name).await;
    }
}

#[test]
fn no_metric_is_a_constant() {
    let mut seen = Seen::default();
    runtime().block_on(async {
        alone(&mut seen).await;
        alone_otherwise(&mut seen).await;
        group(&mut seen).await;
    });
    let mut faults = Vec::new();
    for spec in METRICS {
        let reason = STILL.iter().find(|(name, ..)| *name == spec.name);
        let values = seen.0.get(spec.name).cloned().unwrap_or_default();
        match (seen.moves(spec.name), reason) {
            (false, None) => faults.push(format!("{} never moved: {values:?}", spec.name)),
            (true, Some(_)) => {
                faults.push(format!("{} moves, and has a reason why not: {values:?}", spec.name))
            }
            _ => {}
        }
    }
    for (name, _, test) in STILL {
        if !METRICS.iter().any(|spec| spec.name == *name) {
            faults.push(format!("{name} is no metric"));
        }
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(test);
        if !test.is_empty() && !std::fs::read_to_string(path).unwrap_or_default().contains(name) {
            faults.push(format!("{test} does not look at {name}"));
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}
