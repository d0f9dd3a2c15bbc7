//! Members that are asked for more than they can do, or get next to no processor, as real processes.
//!
//! Asserted is what has to be true on any machine: what was acknowledged is there, memory is bounded, leases that are kept alive live, nobody is elected for
//! nothing. Latencies and rates are printed. The rows are those of the list of faults in the design of replication; `STERNPOST_SECONDS` makes them longer.
mod support;

use rustix::process::Signal;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use sternpost_server::wire::etcdserverpb::kv_client::KvClient;
use sternpost_server::wire::etcdserverpb::lease_client::LeaseClient;
use sternpost_server::wire::etcdserverpb::request_op::Request as Op;
use sternpost_server::wire::etcdserverpb::{
    LeaseGrantRequest, LeaseKeepAliveRequest, PutRequest, RangeRequest, RequestOp, TxnRequest,
};
use support::cluster::{Cluster, runtime, until};
use support::history::{Recording, prove_the_checker};
use support::latency::Latencies;
use support::proxy::Proxy;
use support::register::Load;
use support::seconds::seconds;
use support::starvation::Starvation;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tonic::transport::Channel;

/// Nobody should be elected because this machine is busy with these tests.
const PATIENT: &[&str] = &["--heartbeat-interval=500", "--election-timeout=5000"];
/// Seconds.
const TTL: i64 = 20;
/// Of one member: what its bounds add up to (64 MiB of proposals, as much for each peer's log lane, two memtables, caches, what clients send) is less.
const RESIDENT_MIB_MAX: u64 = 1024;

/// The greatest resident memory of any member while it is looked at.
async fn watch_memory(cluster: &Cluster, is_over: &AtomicBool) -> u64 {
    let mut most = 0;
    while !is_over.load(Ordering::Relaxed) {
        most = cluster.members.iter().map(support::cluster::Member::resident_mib).fold(most, u64::max);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    most
}

fn put(key: String, value: String) -> PutRequest {
    PutRequest { key: key.into(), value: value.into(), ..Default::default() }
}

// ---- row 49

/// Clients that each count up a key of their own as fast as they are let.
struct Crowd {
    /// By client, the newest value that was acknowledged.
    acknowledged: Vec<AtomicU64>,
    refused: AtomicU64,
    is_over: AtomicBool,
}

impl Crowd {
    fn new(clients: usize) -> Arc<Self> {
        let acknowledged = std::iter::repeat_with(AtomicU64::default).take(clients).collect();
        Arc::new(Self { acknowledged, refused: AtomicU64::new(0), is_over: AtomicBool::new(false) })
    }

    async fn work(self: Arc<Self>, channel: Channel, client: usize) {
        let mut kv = KvClient::new(channel);
        let filler = "v".repeat(1000);
        for value in self.acknowledged[client].load(Ordering::SeqCst) + 1.. {
            loop {
                if self.is_over.load(Ordering::Relaxed) {
                    return;
                }
                match kv.put(put(format!("crowd-{client}"), format!("{value} {filler}"))).await {
                    Ok(_) => break,
                    Err(error) => {
                        if error.message() == "etcdserver: too many requests" {
                            self.refused.fetch_add(1, Ordering::Relaxed);
                        }
                        tokio::time::sleep(Duration::from_millis(20)).await;
                    }
                }
            }
            self.acknowledged[client].store(value, Ordering::SeqCst);
        }
    }

    fn total(&self) -> u64 {
        self.acknowledged.iter().map(|value| value.load(Ordering::SeqCst)).sum()
    }

    /// So many of the clients work for so long, or until it is over; what is acknowledged a second.
    async fn run(self: &Arc<Self>, channels: &[Channel], clients: usize, time: Duration) -> f64 {
        self.is_over.store(false, Ordering::Relaxed);
        let before = self.total();
        let begun = Instant::now();
        let mut tasks = JoinSet::new();
        for client in 0..clients {
            tasks.spawn(Arc::clone(self).work(channels[client % channels.len()].clone(), client));
        }
        let is_cut_short = async {
            while !self.is_over.load(Ordering::Relaxed) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::select! {
            () = tokio::time::sleep(time) => {}
            () = is_cut_short => {}
        }
        let (done, took) = (self.total() - before, begun.elapsed());
        self.is_over.store(true, Ordering::Relaxed);
        while let Some(task) = tasks.join_next().await {
            task.unwrap();
        }
        done as f64 / took.as_secs_f64()
    }
}

/// Row 49: what is too much waits, or is refused by etcd's name for it; the rest is done, keepalives with it, and memory has a bound. In the end nothing can be done at all for
/// a moment, so that more than may wait has come for certain.
#[test]
fn clients_beyond_what_can_be_done_cost_nothing_that_was_promised() {
    const CLIENTS: usize = 9_000;
    let cluster = Cluster::start(3, PATIENT);
    runtime().block_on(async {
        let leader = cluster.leader().await;
        let term = cluster.members[leader].status().await.unwrap().raft_term;
        let lease = 77;
        let kept = cluster.members[(leader + 1) % 3].channel();
        let grant = LeaseGrantRequest { ttl: TTL, id: lease };
        LeaseClient::new(kept.clone()).lease_grant(grant).await.unwrap();
        let leased = PutRequest { lease, ..put("leased".into(), "1".into()) };
        KvClient::new(kept.clone()).put(leased).await.unwrap();

        // Most come to the leader; a connection carries some hundred each.
        let channels = |connections: usize| -> Vec<Channel> {
            let member = |number: usize| if number.is_multiple_of(8) { (leader + 1) % 3 } else { leader };
            (0..connections).map(|number| cluster.members[member(number)].channel()).collect()
        };
        let crowd = Crowd::new(CLIENTS);
        let peak = crowd.run(&channels(8), 128, seconds(12) / 4).await;
        let quiet_mib = cluster.members[leader].resident_mib();
        let (is_over, keepalives) = (AtomicBool::new(false), Latencies::default());
        let keeping = async {
            while !is_over.load(Ordering::Relaxed) {
                let begun = Instant::now();
                let requests = tokio_stream::iter([LeaseKeepAliveRequest { id: lease }]);
                let mut client = LeaseClient::new(kept.clone());
                let answers = client.lease_keep_alive(requests).await.expect("keepalives are not refused");
                let mut answers = answers.into_inner();
                let answer = answers.message().await.expect("keepalives are not refused").unwrap();
                assert_eq!(answer.ttl, TTL, "the lease lives");
                keepalives.note(begun);
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        };
        let crowding = async {
            let rate = crowd.run(&channels(32), CLIENTS, seconds(12)).await;
            is_over.store(true, Ordering::Relaxed);
            rate
        };
        let (goodput, most_mib, ()) = tokio::join!(crowding, watch_memory(&cluster, &is_over), keeping);
        let refused = || crowd.refused.load(Ordering::Relaxed);
        eprintln!(
            "128 clients: {peak:.0} puts/s; {CLIENTS}: {goodput:.0} ({:.0} %), {} refused; {quiet_mib} MiB before, at most {most_mib}; keepalives: {keepalives}",
            100.0 * goodput / peak,
            refused()
        );
        assert!(most_mib < RESIDENT_MIB_MAX, "{most_mib} MiB");
        assert!(keepalives.count() > 0);
        for (number, member) in cluster.living() {
            let status = member.status().await.unwrap();
            assert_eq!(status.raft_term, term, "member {number}: nobody was elected");
        }
        let get = async |key: String| {
            until("a read", async || cluster.members[leader].get(&key, false).await.ok()).await
        };
        assert!(get("leased".into()).await.is_some(), "the lease lives");
        // Nobody is there to acknowledge anything.
        let signal = |signal| {
            let others = (0..3).filter(|number| *number != leader);
            others.for_each(|number| cluster.members[number].signal(signal));
        };
        is_over.store(false, Ordering::Relaxed);
        let stopping = async {
            let before = refused();
            signal(Signal::STOP);
            until("refusals", async || (refused() > before).then_some(())).await;
            signal(Signal::CONT);
            let done = crowd.total();
            until("writes again", async || (crowd.total() > done + 1_000).then_some(())).await;
            crowd.is_over.store(true, Ordering::Relaxed);
            is_over.store(true, Ordering::Relaxed);
        };
        let last_channels = channels(32);
        let crowding = crowd.run(&last_channels, CLIENTS, Duration::from_secs(600));
        let (_, most_mib, ()) = tokio::join!(crowding, watch_memory(&cluster, &is_over), stopping);
        eprintln!("without a quorum: {} refused, at most {most_mib} MiB", refused());
        assert!(most_mib < RESIDENT_MIB_MAX, "{most_mib} MiB");
        for (client, acknowledged) in crowd.acknowledged.iter().enumerate() {
            let acknowledged = acknowledged.load(Ordering::SeqCst);
            if acknowledged > 0 {
                let value = get(format!("crowd-{client}")).await.unwrap_or_default();
                let value: u64 = value.split(' ').next().unwrap().parse().unwrap();
                assert!(value >= acknowledged, "client {client}: {value} of {acknowledged}");
            }
        }
        cluster.agree().await;
    });
}

// ---- row 50

/// Row 50: transactions as large as they may be do not keep small writes from being done.
#[test]
fn small_writes_go_on_between_the_largest_transactions() {
    const OPERATIONS: usize = 128;
    let cluster = Cluster::start(3, PATIENT);
    runtime().block_on(async {
        let leader = cluster.leader().await;
        let term = cluster.members[leader].status().await.unwrap().raft_term;
        let (is_over, latencies) = (AtomicBool::new(false), Arc::new(Latencies::default()));
        let small = async |writer: usize| {
            let mut kv = KvClient::new(cluster.members[writer % 3].channel());
            let mut last = 0_u64;
            while !is_over.load(Ordering::Relaxed) {
                let begun = Instant::now();
                kv.put(put(format!("small-{writer}"), (last + 1).to_string())).await.expect("a small write");
                last += 1;
                latencies.note(begun);
            }
            last
        };
        let big = async |writer: usize| {
            let mut kv = KvClient::new(cluster.members[writer % 3].channel());
            let mut last = 0_u64;
            while !is_over.load(Ordering::Relaxed) {
                // With its frame just below 1.5 MiB.
                let value = format!("{:>12000}", last + 1);
                let operation = |number| {
                    let request = Op::RequestPut(put(format!("big-{writer}-{number}"), value.clone()));
                    RequestOp { request: Some(request) }
                };
                let success = (0..OPERATIONS).map(operation).collect();
                let request = TxnRequest { success, ..Default::default() };
                match kv.txn(request).await {
                    Ok(_) => last += 1,
                    // Refused as a whole, by the bound of bytes; then it is tried again.
                    Err(error) => assert_eq!(error.message(), "etcdserver: too many requests"),
                }
            }
            last
        };
        let begun = Instant::now();
        let pausing = async {
            tokio::time::sleep(seconds(12) / 4).await;
            let alone = latencies.take();
            eprintln!("small writes alone: {alone}");
        };
        let ending = async {
            tokio::time::sleep(seconds(12)).await;
            is_over.store(true, Ordering::Relaxed);
        };
        let later_big = async |writer: usize| {
            tokio::time::sleep(seconds(12) / 4).await;
            big(writer).await
        };
        let (_, (), most_mib, small, big) = tokio::join!(
            pausing,
            ending,
            watch_memory(&cluster, &is_over),
            async { tokio::join!(small(0), small(1), small(2), small(3)) },
            async { tokio::join!(later_big(0), later_big(1), later_big(2), later_big(3)) },
        );
        eprintln!(
            "beside {:?} transactions in {:?}: {latencies}; at most {most_mib} MiB",
            big,
            begun.elapsed()
        );
        assert!(latencies.count() > 0, "small writes go on");
        assert!(most_mib < RESIDENT_MIB_MAX, "{most_mib} MiB");
        assert_eq!(cluster.members[leader].status().await.unwrap().raft_term, term, "nobody was elected");
        for (writer, last) in [small.0, small.1, small.2, small.3].into_iter().enumerate() {
            let value = cluster.members[0].get(&format!("small-{writer}"), false).await.unwrap().unwrap();
            assert_eq!(value, last.to_string());
        }
        for (writer, last) in [big.0, big.1, big.2, big.3].into_iter().enumerate() {
            assert!(last > 0, "large ones go on");
            for number in [0, OPERATIONS - 1] {
                let value = cluster.members[1].get(&format!("big-{writer}-{number}"), false).await.unwrap();
                assert_eq!(value.unwrap().trim(), last.to_string(), "all of a transaction");
            }
        }
        cluster.agree().await;
    });
}

// ---- row 51

/// Row 51: what clients have asked for and do not take holds up nobody, neither the leader nor an election.
#[test]
fn clients_that_take_a_large_answer_slowly_hold_up_nobody() {
    const KEYS: usize = 100_000;
    runtime().block_on(async {
        let mut load = Load::start(Cluster::start(3, PATIENT)).await;
        let leader = load.cluster.leader().await;
        let mut kv = KvClient::new(load.cluster.members[leader].channel());
        for first in (0..KEYS).step_by(100) {
            let operation = |number| {
                let request = Op::RequestPut(put(format!("many-{number:06}"), "v".repeat(100)));
                RequestOp { request: Some(request) }
            };
            let success = (first..first + 100).map(operation).collect();
            kv.txn(TxnRequest { success, ..Default::default() }).await.unwrap();
        }
        let quiet_mib = load.cluster.members[leader].resident_mib();
        // Two at each member, who get 100 KiB a second of some 15 MiB.
        let proxies: Vec<Proxy> =
            load.cluster.members.iter().map(|member| Proxy::start(member.client_address())).collect();
        let mut slow = Vec::new();
        for number in 0..6 {
            let proxy = &proxies[number % 3];
            proxy.set_pace(100 << 10);
            let channel = Channel::from_shared(proxy.url()).unwrap().connect_lazy();
            let mut kv = KvClient::new(channel).max_decoding_message_size(usize::MAX);
            let request =
                RangeRequest { key: "many-".into(), range_end: "many.".into(), ..Default::default() };
            slow.push((number % 3, tokio::spawn(async move { kv.range(request).await })));
        }
        until("answers on their way", async || {
            proxies.iter().all(|proxy| proxy.bytes_back() > 100 << 10).then_some(())
        })
        .await;
        let term = load.term(leader).await;
        load.goes_on("writes beside them").await;
        assert_eq!(load.term(leader).await, term, "nobody was elected");
        load.cluster.members[leader].end(Signal::KILL);
        load.leader_without(leader).await;
        load.goes_on("writes of the others beside them").await;
        let most_mib = load.cluster.members.iter().map(support::cluster::Member::resident_mib).max().unwrap();
        eprintln!("{quiet_mib} MiB before, {most_mib} with slow clients");
        assert!(most_mib < RESIDENT_MIB_MAX, "{most_mib} MiB");
        load.cluster.start_member(leader);
        assert!(slow.iter().any(|(_, asking)| !asking.is_finished()), "they were slow");
        for proxy in &proxies {
            proxy.set_pace(0);
        }
        for (member, asking) in slow {
            match asking.await.unwrap() {
                Ok(answer) => {
                    let answer = answer.into_inner();
                    assert_eq!((answer.count, answer.kvs.len()), (KEYS as i64, KEYS), "at member {member}");
                }
                Err(error) => assert_eq!(member, leader, "only who died answers less: {error:?}"),
            }
        }
        load.end().await;
    });
}

// ---- row 30

/// Row 30: whoever starves leads on or hands over, and the others are not drawn into election after election.
#[test]
fn a_member_without_a_processor_starts_no_storm_of_elections() {
    runtime().block_on(async {
        let load = Load::start(Cluster::start(3, &[])).await;
        for is_leader in [true, false] {
            let leader = load.cluster.leader().await;
            let starving = if is_leader { leader } else { (leader + 1) % 3 };
            let other = (starving + 1) % 3;
            let term = load.term(other).await;
            let starvation = Starvation::of(load.cluster.members[starving].child.as_ref().unwrap());
            let begun = Instant::now();
            if is_leader {
                // It is silent for most of every second.
                load.leader_without(starving).await;
            }
            while begun.elapsed() < seconds(8) {
                load.goes_on("writes in spite of it").await;
            }
            let elections = load.term(other).await - term;
            drop(starvation);
            load.goes_on("writes with all of them").await;
            let name = if is_leader { "leader" } else { "follower" };
            eprintln!("a starving {name}: {elections} elections in {:?}", begun.elapsed());
            // Whoever led is deposed once, and that machine may be busy; without pre-votes a follower in such need had three.
            assert!(elections <= 1 + begun.elapsed().as_secs() / 8, "{elections} elections");
        }
        load.end().await;
    });
}

// ---- row 55

/// Row 55: swaps whose fate nobody knew are tried again until it is known, while members die, stop and lead in turn.
#[test]
fn swaps_that_are_tried_again_are_carried_out_once() {
    prove_the_checker();
    let mut cluster = Cluster::start(3, &[]);
    runtime().block_on(async {
        cluster.leader().await;
        let recording = Recording::start(&cluster, 8, 3);
        recording.goes_on("the first swaps").await;
        let begun = Instant::now();
        for round in 0.. {
            if begun.elapsed() >= seconds(20) {
                break;
            }
            let leader = cluster.leader().await;
            match round % 3 {
                0 => {
                    cluster.members[leader].end(Signal::KILL);
                    recording.goes_on("swaps of the others").await;
                    cluster.start_member(leader);
                }
                1 => {
                    cluster.members[leader].signal(Signal::STOP);
                    recording.goes_on("swaps of the others").await;
                    cluster.members[leader].signal(Signal::CONT);
                }
                _ => {
                    let follower = (leader + 1) % 3;
                    cluster.members[follower].end(Signal::KILL);
                    cluster.start_member(follower);
                }
            }
            recording.goes_on("swaps of all").await;
        }
        recording.end(&cluster).await;
    });
}
