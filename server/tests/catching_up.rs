//! Members that were away for longer than the log reaches, and what goes wrong while they fetch the state of another one, as real processes under load that is held
//! against linearizability.
//!
//! The rows are those of the list of faults in the design of replication.
mod support;

use rustix::process::Signal;
use std::cell::RefCell;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use sternpost_server::wire::etcdserverpb::kv_client::KvClient;
use sternpost_server::wire::etcdserverpb::request_op::Request as Op;
use sternpost_server::wire::etcdserverpb::{PutRequest, RangeRequest, RequestOp, TxnRequest};
use support::cluster::{Cluster, Member, runtime, until};
use support::latency::Latencies;
use support::proxy::{Damage, Proxy};
use support::register::Load;
use tokio::time::Instant;
use tonic::transport::Channel;

/// So that little has to be written until a member that is away needs the state; and nobody should be elected because this machine is busy.
const OPTIONS: &[&str] = &[
    "--wal-retain-bytes=1048576",
    "--memtable-bytes=1048576",
    "--heartbeat-interval=300",
    "--election-timeout=3000",
];
const MISSED_MIB: usize = 80;
const FETCHED: &str = "fetched the state of another member";

/// Text that no compression makes much smaller; the state goes on.
fn noise(state: &mut u64, bytes: usize) -> String {
    std::iter::repeat_with(|| {
        *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        char::from(b' ' + (*state >> 58) as u8)
    })
    .take(bytes)
    .collect()
}

/// Puts values until the log cannot hold them all.
async fn fill(member: &Member, mib: usize) {
    let mut state = mib as u64;
    for number in 0..mib {
        let value = noise(&mut state, 1 << 20);
        until("a big write", async || member.put(&format!("missed-{number}"), &value).await.ok()).await;
    }
}

/// Three members, each reached by the others through a proxy.
fn start_with_proxies(options: &[&str]) -> (Cluster, Vec<Proxy>) {
    let proxies = RefCell::new(Vec::new());
    let cluster = Cluster::start_with(3, |member| {
        let proxy = Proxy::start(member.peer_address());
        member.advertised_peer_url = Some(proxy.url());
        member.options = options.iter().map(ToString::to_string).collect();
        proxies.borrow_mut().push(proxy);
    });
    (cluster, proxies.into_inner())
}

// ---- keys that always change together

const TOGETHER: usize = 16;

fn put(key: String, value: String) -> PutRequest {
    PutRequest { key: key.into(), value: value.into(), ..Default::default() }
}

/// Gives all of them the next value, over and over.
async fn write_together(channels: Vec<Channel>, is_over: Arc<AtomicBool>) {
    for value in 1_u64.. {
        if is_over.load(Ordering::Relaxed) {
            return;
        }
        let operation = |number| RequestOp {
            request: Some(Op::RequestPut(put(format!("together-{number}"), value.to_string()))),
        };
        let request = TxnRequest { success: (0..TOGETHER).map(operation).collect(), ..Default::default() };
        let mut kv = KvClient::new(channels[value as usize % channels.len()].clone());
        let _ = tokio::time::timeout(Duration::from_millis(700), kv.txn(request)).await;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// The value that all of them have at a member, by what it has itself.
async fn read_together(member: &Member) -> u64 {
    until("a serializable read", async || {
        let request = RangeRequest {
            key: "together-".into(),
            range_end: "together.".into(),
            serializable: true,
            ..Default::default()
        };
        let answer = KvClient::new(member.channel()).range(request).await.ok()?.into_inner();
        let values: Vec<&[u8]> = answer.kvs.iter().map(|kv| kv.value.as_ref()).collect();
        assert!(
            values.len() == TOGETHER && values.iter().all(|value| *value == values[0]),
            "a mix of two states: {values:?}"
        );
        Some(std::str::from_utf8(values[0]).unwrap().parse().unwrap())
    })
    .await
}

// ---- row 39

/// Row 39: whoever was away fetches the state, and the others go on with the leader that they had.
#[test]
fn a_member_comes_back_from_beyond_the_log_while_the_others_work() {
    runtime().block_on(async {
        let mut load = Load::start(Cluster::start(3, OPTIONS)).await;
        let leader = load.cluster.leader().await;
        let away = (leader + 1) % 3;
        load.cluster.members[away].end(Signal::KILL);
        fill(&load.cluster.members[leader], MISSED_MIB).await;
        let term = load.term(leader).await;
        let (is_over, latencies) = (AtomicBool::new(false), Latencies::default());
        let mut kv = KvClient::new(load.cluster.members[leader].channel());
        let measuring = async {
            while !is_over.load(Ordering::Relaxed) {
                let begun = Instant::now();
                kv.put(put("measured".into(), "1".into())).await.expect("writes at the leader go on");
                latencies.note(begun);
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        let returning = async {
            until("writes without it", async || (latencies.count() > 500).then_some(())).await;
            let before = latencies.take();
            load.cluster.start_member(away);
            load.cluster.members[away].says(FETCHED).await;
            eprintln!("puts at the leader before: {before}; meanwhile: {}", latencies.take());
            load.cluster.catches_up(away, leader).await;
            is_over.store(true, Ordering::Relaxed);
        };
        tokio::join!(measuring, returning);
        assert_eq!(load.cluster.leader().await, leader);
        assert_eq!(load.term(leader).await, term, "nobody was elected");
        // It counts again.
        let other = (leader + 2) % 3;
        load.cluster.members[other].end(Signal::KILL);
        load.goes_on("writes of the two").await;
        load.cluster.start_member(other);
        load.end().await;
    });
}

// ---- row 40

/// Row 40: killed at ten points of what it does about what it missed, and the leader too, it has the old state each time, and the new one in the end.
#[test]
fn a_fetch_that_is_killed_over_and_over_leaves_one_state_or_the_other() {
    const ROUNDS: usize = 2;
    const POINTS: u64 = 5;
    runtime().block_on(async {
        // Some seconds for the whole.
        let pace = format!("--state-bytes-per-second={}", 12 << 20);
        let options: Vec<&str> = OPTIONS.iter().copied().chain([pace.as_str()]).collect();
        let (cluster, proxies) = start_with_proxies(&options);
        let mut load = Load::start(cluster).await;
        let leader = load.cluster.leader().await;
        let away = (leader + 1) % 3;
        let is_over: Arc<AtomicBool> = Arc::default();
        let channels = load.cluster.members.iter().map(Member::channel).collect();
        let writer = tokio::spawn(write_together(channels, Arc::clone(&is_over)));
        until("the first of them", async || load.cluster.members[away].get("together-0", true).await.ok()?)
            .await;
        let mut least = 0;
        let bytes_back = || proxies.iter().map(Proxy::bytes_back).sum::<u64>();
        let mut random = u64::from(std::process::id());
        eprintln!("seed {random}");
        for _ in 0..ROUNDS {
            load.cluster.members[away].end(Signal::KILL);
            let leader = load.cluster.leader().await;
            // Neither the last we saw: it may have applied more before its end, and what it applied without having written that this is committed comes
            // back only when a leader says so again.
            let known = read_together(&load.cluster.members[leader]).await;
            fill(&load.cluster.members[leader], MISSED_MIB).await;
            for point in 1..=POINTS {
                load.cluster.start_member(away);
                // What it serves until it has all of the other state is what it had.
                let value = read_together(&load.cluster.members[away]).await;
                let old = least..=known;
                assert!(
                    old.contains(&value),
                    "{value}, neither the old state {old:?} nor the new one, which it has not"
                );
                if point == POINTS {
                    // Between the fetch and the start that installs it, or in that.
                    load.cluster.members[away].says(FETCHED).await;
                } else {
                    noise(&mut random, 1);
                    // All of them together are not the whole.
                    let goal = bytes_back() + (random >> 33) % (10 << 20);
                    until("bytes of the state", async || (bytes_back() >= goal).then_some(())).await;
                }
                if point == 3 {
                    // Whoever gives it away dies in the middle.
                    let leader = load.cluster.leader_without(&[away]).await;
                    load.cluster.members[leader].end(Signal::KILL);
                    load.cluster.leader_without(&[leader, away]).await;
                    load.cluster.start_member(leader);
                }
                load.cluster.members[away].end(Signal::KILL);
            }
            load.cluster.start_member(away);
            load.goes_on("writes with it").await;
            load.cluster.catches_up(away, load.cluster.leader().await).await;
            let value = read_together(&load.cluster.members[away]).await;
            assert!(value > known, "the new state");
            // That was in the state that was installed.
            least = known;
        }
        is_over.store(true, Ordering::Relaxed);
        writer.await.unwrap();
        load.end().await;
    });
}

// ---- row 43

/// Row 43: bits that change on the way, and connections that end in the middle, are noticed, and what they spoilt is fetched again; only that.
#[test]
fn a_state_that_is_damaged_on_its_way_is_not_installed() {
    runtime().block_on(async {
        let (cluster, proxies) = start_with_proxies(OPTIONS);
        let mut load = Load::start(cluster).await;
        let leader = load.cluster.leader().await;
        let away = (leader + 1) % 3;
        load.cluster.members[away].end(Signal::KILL);
        fill(&load.cluster.members[leader], MISSED_MIB).await;
        let proxy = &proxies[leader];
        let before = proxy.bytes_back();
        // The manifest comes first. On other connections so much never comes back.
        let damages = [
            Damage::Flip(2_000),
            Damage::Flip(300_000),
            Damage::Cut(1_000_000),
            Damage::Flip(2_500_000),
            Damage::Cut(3_000_000),
            Damage::Flip(5_000_000),
        ];
        for damage in damages {
            proxy.plan(damage);
        }
        load.cluster.start_member(away);
        load.cluster.members[away].says("cannot fetch the state of another member").await;
        until("the last damage", async || (proxy.planned() == 0).then_some(())).await;
        load.cluster.members[away].says(FETCHED).await;
        load.cluster.catches_up(away, leader).await;
        let state = directory_bytes(&load.cluster.members[leader].folder.join("seg"));
        let came = proxy.bytes_back() - before;
        eprintln!("{came} bytes came for a state of {state}, {} times damaged", damages.len());
        // Each attempt begins with a new checkpoint and throws away no more than the segment that it was in.
        assert!(came < 3 * state, "{came} bytes for {state}: whole segments were fetched again");
        load.end().await;
    });
}

fn directory_bytes(folder: &Path) -> u64 {
    let entries = std::fs::read_dir(folder).unwrap().map(Result::unwrap);
    entries.map(|entry| entry.metadata().map_or(0, |metadata| metadata.len())).sum()
}
