//! `/metrics` beside etcd's: the same names, types, labels and buckets, or a reason; and what it says of a cluster.
mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::TcpStream;
use sternpost_server::metrics::names::{ABSENT, METRICS};
use sternpost_server::wire::etcdserverpb::kv_client::KvClient;
use sternpost_server::wire::etcdserverpb::lease_client::LeaseClient;
use sternpost_server::wire::etcdserverpb::maintenance_client::MaintenanceClient;
use sternpost_server::wire::etcdserverpb::{
    CompactionRequest, DefragmentRequest, DeleteRangeRequest, HashKvRequest, HashRequest, LeaseGrantRequest,
    LeaseKeepAliveRequest, LeaseRevokeRequest, PutRequest, RangeRequest, SnapshotRequest, TxnRequest,
};
use support::cluster::{Cluster, runtime, until};
use support::process::{Program, Server, required};
use tonic::transport::{Channel, Endpoint};

/// The text, from `host:port`.
fn scrape(address: &str) -> Option<String> {
    let mut socket = TcpStream::connect(address).ok()?;
    socket.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").ok()?;
    let mut text = String::new();
    socket.read_to_string(&mut text).ok()?;
    Some(text)
}

/// What the text says of one name.
#[derive(Default, PartialEq, Eq, Debug)]
struct Family {
    kind: String,
    labels: BTreeSet<String>,
    bounds: BTreeSet<String>,
}

fn families(text: &str) -> BTreeMap<String, Family> {
    let mut families = BTreeMap::<String, Family>::new();
    let mut name = String::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (of, kind) = rest.split_once(' ').unwrap();
            name = of.to_owned();
            families.entry(name.clone()).or_default().kind = kind.to_owned();
            continue;
        }
        let Some(rest) = line.strip_prefix(name.as_str()).filter(|_| !name.is_empty()) else { continue };
        let family = families.get_mut(&name).unwrap();
        let Some((_, labels)) = rest.split_once('{') else { continue };
        let Some((labels, _)) = labels.rsplit_once('}') else { continue };
        for pair in labels.split("\",") {
            let (label, value) = pair.split_once("=\"").unwrap();
            match label {
                "le" => {
                    let bound: f64 = value.trim_end_matches('"').parse().unwrap();
                    family.bounds.insert(format!("{bound:.6}"));
                }
                _ => drop(family.labels.insert(label.to_owned())),
            }
        }
    }
    families
}

/// One of everything that counts.
async fn exercise(channel: Channel) {
    let mut kv = KvClient::new(channel.clone());
    for key in ["a", "b", "c"] {
        kv.put(PutRequest { key: key.into(), value: "v".into(), ..Default::default() }).await.unwrap();
    }
    kv.range(RangeRequest { key: "a".into(), range_end: "z".into(), ..Default::default() }).await.unwrap();
    kv.txn(TxnRequest::default()).await.unwrap();
    kv.delete_range(DeleteRangeRequest { key: "c".into(), ..Default::default() }).await.unwrap();
    kv.compact(CompactionRequest { revision: 2, physical: true }).await.unwrap();
    let mut lease = LeaseClient::new(channel.clone());
    let id = lease.lease_grant(LeaseGrantRequest { ttl: 60, id: 0 }).await.unwrap().into_inner().id;
    let renewal = tokio_stream::once(LeaseKeepAliveRequest { id });
    let mut renewals = lease.lease_keep_alive(renewal).await.unwrap().into_inner();
    assert_eq!(renewals.message().await.unwrap().unwrap().ttl, 60);
    lease.lease_revoke(LeaseRevokeRequest { id }).await.unwrap();
    let mut maintenance = MaintenanceClient::new(channel);
    maintenance.hash(HashRequest {}).await.unwrap();
    maintenance.hash_kv(HashKvRequest { revision: 0 }).await.unwrap();
    maintenance.defragment(DefragmentRequest {}).await.unwrap();
    let mut snapshot = maintenance.snapshot(SnapshotRequest {}).await.unwrap().into_inner();
    while snapshot.message().await.unwrap().is_some() {}
}

fn covers(pattern: &str, name: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(beginning) => name.starts_with(beginning),
        None => pattern == name,
    }
}

/// The families of a fresh server behind one of everything.
fn shown_by(program: Program) -> BTreeMap<String, Family> {
    let server = Server::start(program, &["--metrics=extensive".to_owned()]);
    runtime().block_on(async {
        exercise(Endpoint::from_shared(server.endpoint()).unwrap().connect_lazy()).await;
        // Its own numbers of scrapes begin with the first.
        scrape(&server.address()).unwrap();
        families(&scrape(&server.address()).unwrap())
    })
}

#[test]
fn every_metric_of_etcd_is_here_or_has_a_reason() {
    if let Err(missing) = Program::Etcd.binary() {
        assert!(!required("STERNPOST_REQUIRE_PEERS"), "{missing}");
        eprintln!("skipped: {missing}");
        return;
    }
    let (etcds, ours) = (shown_by(Program::Etcd), shown_by(Program::Sternpost));
    let mut faults = Vec::new();
    for (name, theirs) in &etcds {
        let reason = ABSENT.iter().find(|(pattern, _)| covers(pattern, name));
        match (ours.get(name), reason) {
            (Some(_), Some(_)) => faults.push(format!("{name} is here, and has a reason why not")),
            (None, None) => faults.push(format!("{name} is not here, without a reason")),
            (Some(found), None) if found != theirs => {
                faults.push(format!("{name}: {found:?}, etcd {theirs:?}"))
            }
            _ => {}
        }
    }
    // Those that have no values yet are not shown.
    let registered = include_str!("surface/etcd.txt").lines().filter_map(|line| line.strip_prefix("metric "));
    let registered: Vec<&str> = registered.filter_map(|line| line.split(' ').next()).collect();
    for (pattern, _) in ABSENT {
        if !registered.iter().any(|name| covers(pattern, name)) {
            faults.push(format!("{pattern} is nothing of etcd's"));
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    // Nothing is shown that the table does not have.
    for name in ours.keys() {
        assert!(METRICS.iter().any(|spec| spec.name == *name), "{name}");
    }
}

/// The value of the first series that begins so.
fn value(text: &str, series: &str) -> Option<f64> {
    text.lines().find_map(|line| line.strip_prefix(series)?.trim().parse().ok())
}

#[test]
fn what_was_done_is_counted() {
    let server = Server::start(Program::Sternpost, &[]);
    runtime().block_on(async {
        exercise(Endpoint::from_shared(server.endpoint()).unwrap().connect_lazy()).await;
    });
    let text = scrape(&server.address()).unwrap();
    for (series, least) in [
        ("etcd_server_request_duration_seconds_count{success=\"true\",type=\"Put\"}", 3.0),
        ("etcd_server_request_duration_seconds_count{success=\"true\",type=\"Range\"}", 1.0),
        ("etcd_server_request_duration_seconds_count{success=\"true\",type=\"ReadonlyTxn\"}", 1.0),
        ("etcd_server_request_duration_seconds_count{success=\"true\",type=\"Compaction\"}", 1.0),
        ("etcd_server_apply_duration_seconds_count{op=\"Put\",success=\"true\",version=\"v3\"}", 3.0),
        ("etcd_server_apply_duration_seconds_count{op=\"LeaseGrant\",success=\"true\",version=\"v3\"}", 1.0),
        ("etcd_server_range_duration_seconds_count{success=\"true\"}", 1.0),
        ("etcd_debugging_lease_renewed_total", 1.0),
        ("etcd_debugging_lease_ttl_total_sum", 60.0),
        ("etcd_debugging_mvcc_db_compaction_last", 1_700_000_000.0),
        ("etcd_mvcc_hash_duration_seconds_count", 1.0),
        ("etcd_mvcc_hash_rev_duration_seconds_count", 1.0),
        ("etcd_disk_backend_defrag_duration_seconds_count", 1.0),
        ("etcd_disk_backend_snapshot_duration_seconds_count", 1.0),
        ("process_network_receive_bytes_total", 1.0),
        ("os_fd_used", 5.0),
    ] {
        let found = value(&text, series).unwrap_or_else(|| panic!("no {series}"));
        assert!(found >= least, "{series} {found}");
    }
    assert_eq!(value(&text, "etcd_disk_defrag_inflight"), Some(0.0));
}

#[test]
fn what_a_member_says_of_the_others() {
    runtime().block_on(async {
        let cluster = Cluster::start(3, &[]);
        // A follower may have nothing to say to another one.
        let member = &cluster.members[cluster.leader().await];
        member.put("key", "value").await.unwrap();
        let address = format!("{}:{}", member.address, member.client_address().1);
        // A ping a second tells the round trips; frames of the group come with whatever is said first.
        let text = until("something of both others", async || {
            let text = scrape(&address)?;
            let has_both = |name: &str| {
                let series = text.lines().filter(|line| line.starts_with(name));
                series.filter(|line| !line.ends_with(" 0")).count() == 2
            };
            let names = [
                "etcd_network_peer_round_trip_time_seconds_count{To=",
                "etcd_network_active_peers{",
                "etcd_network_peer_sent_bytes_total{To=",
                "etcd_network_peer_received_bytes_total{From=",
            ];
            names.into_iter().all(has_both).then_some(text)
        })
        .await;
        let known = text.lines().filter(|line| line.starts_with("etcd_network_known_peers{"));
        assert_eq!(known.count(), 3);
        assert!(
            text.contains("etcd_network_peer_sent_failures_total{To="),
            "there from the start, for alerts"
        );
    });
}
