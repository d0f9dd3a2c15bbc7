//! Members in network namespaces of their own: cut off, half cut off, on a link that comes and goes, with packets lost, stopped; and a checker that
//! holds what clients are told against linearizability all the while.
//!
//! Needs root, `ip` and `tc`; says that it skips without them. The rows are those of the list of faults in the design of replication.
mod support;

use rustix::process::Signal;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use sternpost_server::wire::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use sternpost_server::wire::etcdserverpb::kv_client::KvClient;
use sternpost_server::wire::etcdserverpb::request_op::Request as Op;
use sternpost_server::wire::etcdserverpb::{Compare, PutRequest, RangeRequest, RequestOp, TxnRequest};
use support::cluster::{Cluster, runtime, until};
use tonic::transport::Channel;

/// How long a call may take before a client gives it up; what it did is not known then.
const CALL_TIME: Duration = Duration::from_millis(700);
const KEY: &str = "register";

/// A register that one writer counts up, each value under the condition that the one before is there, so that what is applied late changes nothing;
/// and readers at every member.
#[derive(Default)]
struct Register {
    acknowledged: AtomicU64,
    attempted: AtomicU64,
    reads: AtomicU64,
    is_over: AtomicBool,
}

impl Register {
    /// Counts up to the end.
    async fn write(self: Arc<Self>, channels: Vec<Channel>) {
        let mut turn = 0;
        for value in 1_u64.. {
            self.attempted.store(value, Ordering::SeqCst);
            while !self.is_over.load(Ordering::Relaxed) {
                turn += 1;
                if count_up(&channels[turn % channels.len()], value).await {
                    self.acknowledged.store(value, Ordering::SeqCst);
                    break;
                }
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            if self.is_over.load(Ordering::Relaxed) {
                return;
            }
        }
    }

    /// Reads at one member to the end; a read never says less than what was acknowledged before it began, nor more than was tried.
    async fn read(self: Arc<Self>, channel: Channel, number: usize) {
        while !self.is_over.load(Ordering::Relaxed) {
            let floor = self.acknowledged.load(Ordering::SeqCst);
            if let Some(value) = read(&channel, false).await {
                let top = self.attempted.load(Ordering::SeqCst);
                assert!(
                    (floor..=top).contains(&value),
                    "linearizability: member {number} reads {value}, {floor} was acknowledged before, {top} is the newest"
                );
                self.reads.fetch_add(1, Ordering::Relaxed);
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

async fn read(channel: &Channel, serializable: bool) -> Option<u64> {
    let request = RangeRequest { key: KEY.into(), serializable, ..Default::default() };
    let mut client = KvClient::new(channel.clone());
    let answer = tokio::time::timeout(CALL_TIME, client.range(request)).await.ok()?.ok()?.into_inner();
    let value = answer.kvs.first().map_or(0, |kv| std::str::from_utf8(&kv.value).unwrap().parse().unwrap());
    Some(value)
}

/// True if `value` is known to be there, by this call or one before it.
async fn count_up(channel: &Channel, value: u64) -> bool {
    let previous = if value == 1 { String::new() } else { (value - 1).to_string() };
    let compare = |text: String| Compare {
        result: CompareResult::Equal.into(),
        target: CompareTarget::Value.into(),
        key: KEY.into(),
        target_union: Some(TargetUnion::Value(text.into())),
        ..Default::default()
    };
    let is_absent = Compare {
        result: CompareResult::Equal.into(),
        target: CompareTarget::Version.into(),
        key: KEY.into(),
        target_union: Some(TargetUnion::Version(0)),
        ..Default::default()
    };
    let put = PutRequest { key: KEY.into(), value: value.to_string().into(), ..Default::default() };
    let get = RangeRequest { key: KEY.into(), ..Default::default() };
    let request = TxnRequest {
        compare: vec![if value == 1 { is_absent } else { compare(previous) }],
        success: vec![RequestOp { request: Some(Op::RequestPut(put)) }],
        failure: vec![RequestOp { request: Some(Op::RequestRange(get)) }],
    };
    let mut client = KvClient::new(channel.clone());
    let Ok(Ok(answer)) = tokio::time::timeout(CALL_TIME, client.txn(request)).await else { return false };
    let answer = answer.into_inner();
    // An earlier attempt was made after all; nobody else counts.
    answer.succeeded || format!("{answer:?}").contains(&format!("value: b\"{value}\""))
}

/// Namespaces on one bridge of this machine.
struct Network {
    tag: String,
    subnet: String,
    count: usize,
}

impl Network {
    /// None where that is not possible; says so.
    fn new(count: usize) -> Option<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let process = u64::from(std::process::id());
        let tag = format!("sp{:x}{number}", process & 0xffff);
        let subnet = format!("10.{}.{}", 60 + process % 150, number);
        let network = Self { tag, subnet, count };
        if !rustix::process::geteuid().is_root() || !network.make() {
            eprintln!("skipped: network namespaces cannot be made here (root, ip and tc are needed)");
            return None;
        }
        Some(network)
    }

    fn make(&self) -> bool {
        let (tag, subnet) = (&self.tag, &self.subnet);
        let mut commands = vec![
            format!("link add {tag} type bridge"),
            format!("addr add {subnet}.254/24 dev {tag}"),
            format!("link set {tag} up"),
        ];
        for member in 0..self.count {
            let (space, inner, outer) = (self.space(member), format!("{tag}i"), format!("{tag}o{member}"));
            commands.push(format!("netns add {space}"));
            commands.push(format!("link add {outer} type veth peer name {inner} netns {space}"));
            commands.push(format!("link set {outer} master {tag} up"));
            commands.push(format!("-n {space} link set lo up"));
            commands.push(format!("-n {space} addr add {}/24 dev {inner}", self.address(member)));
            commands.push(format!("-n {space} link set {inner} up"));
        }
        commands.iter().all(|command| run("ip", command))
    }

    fn space(&self, member: usize) -> String {
        format!("{}m{member}", self.tag)
    }

    fn address(&self, member: usize) -> String {
        format!("{}.{}", self.subnet, member + 1)
    }

    /// What `from` sends to `to` is lost from now on, or not any more.
    fn set_cut(&self, from: usize, to: usize, is_cut: bool) {
        let verb = if is_cut { "replace" } else { "del" };
        let command = format!("-n {} route {verb} blackhole {}/32", self.space(from), self.address(to));
        assert!(run("ip", &command), "{command}");
    }

    /// Nothing gets from or to `member` but what clients say.
    fn set_isolated(&self, member: usize, is_cut: bool) {
        for other in (0..self.count).filter(|other| *other != member) {
            self.set_cut(member, other, is_cut);
            self.set_cut(other, member, is_cut);
        }
    }

    /// Every member loses this share of what it sends. False if the system cannot.
    fn lose(&self, percent: u32) -> bool {
        (0..self.count).all(|member| {
            let device = format!("{}i", self.tag);
            run(
                "tc",
                &format!("-n {} qdisc replace dev {device} root netem loss {percent}%", self.space(member)),
            )
        })
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for member in 0..self.count {
            run("ip", &format!("netns del {}", self.space(member)));
        }
        run("ip", &format!("link del {}", self.tag));
    }
}

fn run(program: &str, arguments: &str) -> bool {
    let output = Command::new(program).args(arguments.split_whitespace()).output();
    output.is_ok_and(|output| output.status.success())
}

/// Three members under load.
struct Bench {
    cluster: Cluster,
    register: Arc<Register>,
    tasks: tokio::task::JoinSet<()>,
    // Goes last: the members run in it.
    network: Network,
}

impl Bench {
    fn start() -> Option<(Self, tokio::runtime::Runtime)> {
        let network = Network::new(3)?;
        let places = (0..3).map(|member| (network.address(member), network.space(member)));
        let cluster = Cluster::start_in(&places.collect::<Vec<_>>());
        let runtime = runtime();
        let mut bench =
            Self { cluster, register: Arc::default(), tasks: tokio::task::JoinSet::new(), network };
        runtime.block_on(async {
            bench.cluster.leader().await;
            let channels: Vec<_> = bench.cluster.members.iter().map(|member| member.channel()).collect();
            for (number, channel) in channels.iter().enumerate() {
                bench.tasks.spawn(Arc::clone(&bench.register).read(channel.clone(), number));
            }
            bench.tasks.spawn(Arc::clone(&bench.register).write(channels));
            bench.goes_on("the first writes").await;
        });
        Some((bench, runtime))
    }

    /// Waits until so many more writes are acknowledged.
    async fn goes_on(&self, what: &str) {
        let goal = self.register.acknowledged.load(Ordering::SeqCst) + 20;
        until(what, async || (self.register.acknowledged.load(Ordering::SeqCst) >= goal).then_some(())).await;
    }

    async fn term(&self, member: usize) -> u64 {
        until("a term", async || Some(self.cluster.members[member].status().await.ok()?.raft_term)).await
    }

    /// The load ends; everybody has the same, and everything that was acknowledged.
    async fn end(mut self) {
        self.goes_on("writes at the end").await;
        self.register.is_over.store(true, Ordering::Relaxed);
        while let Some(task) = self.tasks.join_next().await {
            task.unwrap();
        }
        self.cluster.leader().await;
        self.cluster.agree().await;
        let acknowledged = self.register.acknowledged.load(Ordering::SeqCst);
        for member in &self.cluster.members {
            let value = until("a read", async || read(&member.channel(), false).await).await;
            assert!(value >= acknowledged, "{value} of {acknowledged}");
        }
        assert!(self.register.reads.load(Ordering::Relaxed) > 100, "it was read");
    }

    /// Waits until a majority without `member` has another leader; its number.
    async fn leader_without(&self, member: usize) -> usize {
        until("a leader of the others", async || {
            let mut ids = Vec::new();
            let mut leaders = Vec::new();
            for number in (0..3).filter(|number| *number != member) {
                let status = self.cluster.members[number].status().await.ok()?;
                ids.push((status.header.as_ref()?.member_id, number));
                leaders.push(status.leader);
            }
            let number = ids.iter().find(|(id, _)| *id == leaders[0])?.1;
            (leaders[0] == leaders[1]).then_some(number)
        })
        .await
    }
}

/// Row 17.
#[test]
fn a_leader_that_is_cut_off_is_replaced_and_serves_nothing_but_what_it_has() {
    let Some((bench, runtime)) = Bench::start() else { return };
    runtime.block_on(async {
        for _ in 0..3 {
            let leader = bench.cluster.leader().await;
            bench.network.set_isolated(leader, true);
            bench.leader_without(leader).await;
            bench.goes_on("writes of the majority").await;
            let alone = &bench.cluster.members[leader];
            until("its stepping down", async || (alone.status().await.ok()?.leader == 0).then_some(())).await;
            assert!(read(&alone.channel(), true).await.is_some(), "serializable reads go on");
            let refused = alone.put("other", "1").await.unwrap_err();
            assert_eq!(refused.message(), "etcdserver: request timed out");
            bench.network.set_isolated(leader, false);
        }
        bench.end().await;
    });
}

/// Row 17: two thirds of nothing. Whoever is cut off alone comes back without a new election.
#[test]
fn a_follower_that_is_cut_off_disturbs_nobody_when_it_comes_back() {
    let Some((bench, runtime)) = Bench::start() else { return };
    runtime.block_on(async {
        let leader = bench.cluster.leader().await;
        let term = bench.term(leader).await;
        let follower = (leader + 1) % 3;
        bench.network.set_isolated(follower, true);
        let alone = &bench.cluster.members[follower];
        until("no leader", async || (alone.status().await.ok()?.leader == 0).then_some(())).await;
        bench.goes_on("writes of the majority").await;
        bench.network.set_isolated(follower, false);
        assert_eq!(bench.cluster.leader().await, leader);
        assert_eq!(bench.term(follower).await, term, "pre-votes: its term did not grow");
        bench.end().await;
    });
}

/// Row 18, both directions.
#[test]
fn a_leader_that_is_heard_or_hears_in_one_direction_only_does_not_hold_up_the_others() {
    let Some((bench, runtime)) = Bench::start() else { return };
    runtime.block_on(async {
        for is_out in [true, false] {
            let leader = bench.cluster.leader().await;
            for other in (0..3).filter(|other| *other != leader) {
                let (from, to) = if is_out { (leader, other) } else { (other, leader) };
                bench.network.set_cut(from, to, true);
            }
            bench.leader_without(leader).await;
            bench.goes_on("writes of the others").await;
            for other in (0..3).filter(|other| *other != leader) {
                let (from, to) = if is_out { (leader, other) } else { (other, leader) };
                bench.network.set_cut(from, to, false);
            }
            bench.goes_on("writes after it").await;
        }
        bench.end().await;
    });
}

/// Row 20: two members that do not hear each other, and one in between.
#[test]
fn two_members_that_only_a_third_one_hears_go_on() {
    let Some((bench, runtime)) = Bench::start() else { return };
    runtime.block_on(async {
        let leader = bench.cluster.leader().await;
        let (one, two) = ((leader + 1) % 3, (leader + 2) % 3);
        // The leader in between: nothing happens.
        let term = bench.term(leader).await;
        bench.network.set_cut(one, two, true);
        bench.network.set_cut(two, one, true);
        bench.goes_on("writes through the middle").await;
        assert_eq!(bench.term(leader).await, term);
        bench.network.set_cut(one, two, false);
        bench.network.set_cut(two, one, false);
        // A follower in between: whoever leads, writes go on.
        bench.network.set_cut(leader, one, true);
        bench.network.set_cut(one, leader, true);
        bench.goes_on("writes with the leader at an end").await;
        bench.network.set_cut(leader, one, false);
        bench.network.set_cut(one, leader, false);
        bench.end().await;
    });
}

/// Row 22, for ten seconds.
#[test]
fn a_link_that_comes_and_goes_stops_nobody() {
    let Some((bench, runtime)) = Bench::start() else { return };
    runtime.block_on(async {
        let leader = bench.cluster.leader().await;
        let follower = (leader + 1) % 3;
        for _ in 0..100 {
            bench.network.set_cut(leader, follower, true);
            tokio::time::sleep(Duration::from_millis(50)).await;
            bench.network.set_cut(leader, follower, false);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        bench.end().await;
    });
}

/// Row 23.
#[test]
fn lost_packets_lose_no_writes() {
    let Some((bench, runtime)) = Bench::start() else { return };
    runtime.block_on(async {
        for percent in [1, 5, 20] {
            if !bench.network.lose(percent) {
                eprintln!("skipped: packets cannot be lost on purpose here (netem)");
                break;
            }
            bench.goes_on("writes in spite of it").await;
        }
        bench.network.lose(0);
        bench.end().await;
    });
}

/// Row 27: the first thing it says when it goes on is not old.
#[test]
fn a_leader_that_was_stopped_says_nothing_old_when_it_goes_on() {
    let Some((bench, runtime)) = Bench::start() else { return };
    runtime.block_on(async {
        for _ in 0..3 {
            let leader = bench.cluster.leader().await;
            bench.cluster.members[leader].signal(Signal::STOP);
            bench.leader_without(leader).await;
            bench.goes_on("writes of the others").await;
            bench.cluster.members[leader].signal(Signal::CONT);
            bench.goes_on("writes with it").await;
        }
        bench.end().await;
    });
}

/// Rows 1 and 45: killed, and stopped in turn, under load.
#[test]
fn members_are_killed_and_restarted_one_after_the_other() {
    let Some((mut bench, runtime)) = Bench::start() else { return };
    runtime.block_on(async {
        for round in 0..6 {
            let number = if round < 3 { bench.cluster.leader().await } else { round % 3 };
            bench.cluster.members[number].end(if round < 3 { Signal::KILL } else { Signal::TERM });
            bench.goes_on("writes without it").await;
            bench.cluster.start_member(number);
            bench.cluster.leader().await;
        }
        bench.end().await;
    });
}
