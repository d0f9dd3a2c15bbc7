//! Members in network namespaces of their own: cut off, half cut off, on a link that comes and goes, with packets lost, stopped; and a checker that
//! holds what clients are told against linearizability all the while.
//!
//! Needs root, `ip`, and `tc` with netem or `nft`; says what it skips without them. The rows are those of the list of faults in the design of replication.
mod support;

use rustix::process::Signal;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use sternpost_server::wire::etcdserverpb::PutRequest;
use sternpost_server::wire::etcdserverpb::kv_client::KvClient;
use support::cluster::{Cluster, runtime, until};
use support::register::{Load, read};

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

    fn places(&self) -> Vec<(String, String)> {
        (0..self.count).map(|member| (self.address(member), self.space(member))).collect()
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

    /// These two do not hear each other from now on, or they do again.
    fn set_apart(&self, one: usize, two: usize, is_cut: bool) {
        self.set_cut(one, two, is_cut);
        self.set_cut(two, one, is_cut);
    }

    /// The connections between these two are reset; new ones can be made. False if the system cannot do that.
    fn reset(&self, one: usize, two: usize) -> bool {
        [(one, two), (two, one)].iter().all(|(near, far)| {
            run("ip", &format!("netns exec {} ss -K dst {}", self.space(*near), self.address(*far)))
        })
    }

    /// The machine of `member` resets every connection with these others from now on, also those that somebody begins to make, as for a process that is gone; or
    /// not any more. False if the system cannot do that.
    fn set_refused(&self, member: usize, others: &[usize], is_refused: bool) -> bool {
        let mut rules = "add table inet refuse ; delete table inet refuse".to_owned();
        if is_refused {
            rules += " ; add table inet refuse";
            for (hook, side) in [("input", "saddr"), ("output", "daddr")] {
                rules +=
                    &format!(" ; add chain inet refuse {hook} {{ type filter hook {hook} priority 0 ; }}");
                for other in others {
                    let address = self.address(*other);
                    rules += &format!(
                        " ; add rule inet refuse {hook} ip {side} {address} tcp flags & rst == 0 reject with tcp reset"
                    );
                }
            }
        }
        run("ip", &format!("netns exec {} nft {rules}", self.space(member)))
    }

    /// No member sends more than this from now on; first come, first served. False if the system cannot do that.
    fn slow_down(&self, kilobits_per_second: u64) -> bool {
        (0..self.count).all(|member| {
            let (space, device) = (self.space(member), format!("{}i", self.tag));
            let shape = format!("tbf rate {kilobits_per_second}kbit burst 64kb limit 2mb");
            run("tc", &format!("-n {space} qdisc replace dev {device} root {shape}"))
        })
    }

    /// What the members' names stand for, and that there is nobody to ask: files that `ip netns exec` puts in the place of the machine's.
    fn resolve(&self, names: &[(String, String)]) {
        for member in 0..self.count {
            let folder = self.names_folder(member);
            std::fs::create_dir_all(&folder).unwrap();
            let lines = names.iter().map(|(name, address)| format!("{address} {name}\n"));
            // Written in place: a running member has this file, and not whatever has its name.
            std::fs::write(folder.join("hosts"), lines.collect::<String>()).unwrap();
            std::fs::write(
                folder.join("resolv.conf"),
                "nameserver 127.0.0.1\noptions timeout:1 attempts:1\n",
            )
            .unwrap();
        }
    }

    fn names_folder(&self, member: usize) -> std::path::PathBuf {
        std::path::Path::new("/etc/netns").join(self.space(member))
    }

    /// Every member loses this share of what it sends, or of what it is sent. False if the system can do neither.
    fn lose(&self, percent: u32) -> bool {
        let mut rules = "add table inet loss ; delete table inet loss".to_owned();
        if percent > 0 {
            rules +=
                " ; add table inet loss ; add chain inet loss in { type filter hook input priority 0 ; }";
            rules += &format!(" ; add rule inet loss in numgen random mod 100 < {percent} drop");
        }
        (0..self.count).all(|member| {
            let (space, device) = (self.space(member), format!("{}i", self.tag));
            run("tc", &format!("-n {space} qdisc replace dev {device} root netem loss {percent}%"))
                || run("ip", &format!("netns exec {space} nft {rules}"))
        })
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for member in 0..self.count {
            run("ip", &format!("netns del {}", self.space(member)));
            let _ = std::fs::remove_dir_all(self.names_folder(member));
        }
        run("ip", &format!("link del {}", self.tag));
    }
}

fn run(program: &str, arguments: &str) -> bool {
    let output = Command::new(program).args(arguments.split_whitespace()).output();
    output.is_ok_and(|output| output.status.success())
}

/// Three members under load, each in a namespace of its own.
struct Bench {
    load: Load,
    // Goes last: the members run in it.
    network: Network,
}

impl std::ops::Deref for Bench {
    type Target = Load;

    fn deref(&self) -> &Load {
        &self.load
    }
}

impl std::ops::DerefMut for Bench {
    fn deref_mut(&mut self) -> &mut Load {
        &mut self.load
    }
}

impl Bench {
    fn start() -> Option<(Self, tokio::runtime::Runtime)> {
        Self::start_many(3, &[])
    }

    fn start_many(count: usize, options: &[&str]) -> Option<(Self, tokio::runtime::Runtime)> {
        let network = Network::new(count)?;
        let cluster = Cluster::start_in_with(&network.places(), options, |_, _| {});
        let runtime = runtime();
        let load = runtime.block_on(Load::start(cluster));
        Some((Self { load, network }, runtime))
    }

    async fn end(self) {
        self.load.end().await;
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

/// Row 19: of five, everybody hears one of them and nobody else, and that one does not lead: it is the only one that has a quorum.
#[test]
fn the_only_member_that_everybody_hears_takes_over() {
    let Some((bench, runtime)) = Bench::start_many(5, &[]) else { return };
    runtime.block_on(async {
        for _ in 0..3 {
            let leader = bench.cluster.leader().await;
            let hub = (leader + 1) % 5;
            let leaves = || (0..5).filter(move |member| *member != hub);
            let pairs =
                || leaves().flat_map(|one| leaves().filter(move |two| one < *two).map(move |two| (one, two)));
            pairs().for_each(|(one, two)| bench.network.set_apart(one, two, true));
            let begun = tokio::time::Instant::now();
            assert_eq!(bench.leader_without(leader).await, hub);
            eprintln!("the hub leads after {:?}", begun.elapsed());
            bench.goes_on("writes through the hub").await;
            let term = bench.term(hub).await;
            for _ in 0..5 {
                bench.goes_on("more of them").await;
            }
            // One more if this machine was busy, and no election after the other.
            assert!(bench.term(hub).await <= term + 1, "the leaves do not campaign");
            pairs().for_each(|(one, two)| bench.network.set_apart(one, two, false));
            bench.goes_on("writes after it").await;
        }
        bench.end().await;
    });
}

/// Nobody is missed by silence for more than four seconds.
const QUICK: &[&str] = &["--heartbeat-interval=500", "--election-timeout=5000", "--quick-elections"];
/// What is not done by silence is done within this.
const SOON: Duration = Duration::from_secs(4);

/// Row 56: one follower alone finds the leader gone. It says so, gets no votes, and nothing changes.
#[test]
fn a_leader_that_seems_gone_to_one_follower_leads_on() {
    let Some((bench, runtime)) = Bench::start_many(3, QUICK) else { return };
    runtime.block_on(async {
        for number in 1..3 {
            let leader = bench.cluster.leader().await;
            let term = bench.term(leader).await;
            let follower = (leader + number) % 3;
            let begun = tokio::time::Instant::now();
            if !bench.network.set_refused(follower, &[leader], true) {
                eprintln!("skipped: connections cannot be refused on purpose here (nft)");
                return;
            }
            let told = &bench.cluster.members[follower];
            until("a leader that is forgotten", async || {
                (told.status().await.ok()?.leader == 0).then_some(())
            })
            .await;
            let forgotten = begun.elapsed();
            eprintln!("the leader is forgotten after {forgotten:?}");
            assert!(forgotten < SOON, "{forgotten:?}");
            for _ in 0..5 {
                bench.goes_on("writes of the others").await;
            }
            assert!(bench.network.set_refused(follower, &[], false));
            assert_eq!(bench.cluster.leader().await, leader);
            for member in 0..3 {
                assert_eq!(bench.term(member).await, term, "no term grows");
            }
        }
        bench.end().await;
    });
}

/// Row 56: all others find the leader gone, and it lives: one election, and it follows when it hears of it.
#[test]
fn a_leader_that_lives_and_seems_gone_to_all_is_replaced_once() {
    let Some((bench, runtime)) = Bench::start_many(3, QUICK) else { return };
    runtime.block_on(async {
        for _ in 0..3 {
            let leader = bench.cluster.leader().await;
            let term = bench.term(leader).await;
            let others = [(leader + 1) % 3, (leader + 2) % 3];
            let begun = tokio::time::Instant::now();
            if !bench.network.set_refused(leader, &others, true) {
                eprintln!("skipped: connections cannot be refused on purpose here (nft)");
                return;
            }
            let next = bench.leader_without(leader).await;
            let gap = begun.elapsed();
            eprintln!("the next one leads, and answers, after {gap:?}");
            assert!(gap < SOON, "{gap:?}");
            bench.goes_on("writes of the others").await;
            assert!(bench.network.set_refused(leader, &[], false));
            assert_eq!(bench.cluster.leader().await, next);
            for member in 0..3 {
                assert_eq!(bench.term(member).await, term + 1, "one clean change");
            }
        }
        bench.end().await;
    });
}

/// Row 56: connections that are reset and made again say nothing of whoever is at their end.
#[test]
fn a_leader_whose_connections_are_reset_again_and_again_leads_on() {
    let Some((bench, runtime)) = Bench::start_many(3, QUICK) else { return };
    runtime.block_on(async {
        let leader = bench.cluster.leader().await;
        let term = bench.term(leader).await;
        let others = [(leader + 1) % 3, (leader + 2) % 3];
        for round in 0..20 {
            let reset = &others[..1 + round % 2];
            if !reset.iter().all(|other| bench.network.reset(leader, *other)) {
                eprintln!("skipped: connections cannot be reset on purpose here (ss -K)");
                return;
            }
            bench.goes_on("writes in spite of it").await;
        }
        for other in others {
            bench.cluster.members[other].says("lost the connection to a member").await;
        }
        assert_eq!(bench.cluster.leader().await, leader);
        for member in 0..3 {
            assert_eq!(bench.term(member).await, term, "no term grows");
        }
        bench.end().await;
    });
}

/// Row 24: seconds of entries wait for a line that carries too little; heartbeats do not wait behind them.
#[test]
fn heartbeats_do_not_wait_behind_a_full_log_lane() {
    const WRITES: usize = 16;
    // Less than one entry needs on that line: only heartbeats keep a follower from campaigning.
    let options = &["--heartbeat-interval=100", "--election-timeout=1000"];
    let Some((bench, runtime)) = Bench::start_many(3, options) else { return };
    runtime.block_on(async {
        let leader = bench.cluster.leader().await;
        let term = bench.term(leader).await;
        // 1 MB a second to two others: 1 MiB takes two seconds.
        if !bench.network.slow_down(8_000) {
            eprintln!("skipped: nothing here makes a line slow (tc with tbf)");
            return;
        }
        let value = "v".repeat(1 << 20);
        let member = &bench.cluster.members[leader];
        let begun = tokio::time::Instant::now();
        let mut writes = Vec::new();
        for number in 0..WRITES {
            let (channel, value) = (member.channel(), value.clone());
            writes.push(tokio::spawn(async move {
                let put = PutRequest {
                    key: format!("big-{number}").into(),
                    value: value.into(),
                    ..Default::default()
                };
                KvClient::new(channel).put(put).await
            }));
        }
        let mut acknowledged = Vec::new();
        for (number, write) in writes.into_iter().enumerate() {
            // The last ones may wait for longer than a request may.
            if write.await.unwrap().is_ok() {
                acknowledged.push(number);
            }
        }
        eprintln!("{} of {WRITES} MiB acknowledged within {:?}", acknowledged.len(), begun.elapsed());
        assert!(!acknowledged.is_empty());
        assert_eq!(bench.term(leader).await, term, "nobody missed a heartbeat");
        assert_eq!(bench.cluster.leader().await, leader);
        assert!(bench.network.slow_down(1_000_000));
        bench.goes_on("writes on a fast line").await;
        for number in acknowledged {
            let read = until("a read", async || member.get(&format!("big-{number}"), false).await.ok()).await;
            assert!(read.is_some(), "big-{number} was acknowledged");
        }
        bench.end().await;
    });
}

/// Row 53: names that nobody can resolve yet are tried again; once members know each other, it does not matter whether they can, nor for one that comes
/// back when they can again.
#[test]
fn names_that_do_not_resolve_delay_a_start_and_disturb_no_running_cluster() {
    let Some(network) = Network::new(3) else { return };
    let names: Vec<(String, String)> =
        (0..3).map(|member| (format!("m{member}.sternpost.test"), network.address(member))).collect();
    network.resolve(&[]);
    let options = &["--heartbeat-interval=300", "--election-timeout=3000"];
    let mut cluster = Cluster::start_in_with(&network.places(), options, |number, member| {
        let (_, port) = member.peer_address();
        member.advertised_peer_url = Some(format!("http://{}:{port}", names[number].0));
    });
    runtime().block_on(async {
        for number in 0..3 {
            let member = &cluster.members[number];
            // Each serves what it can alone: its status.
            until("a status without a leader", async || {
                (member.status().await.ok()?.leader == 0).then_some(())
            })
            .await;
        }
        for number in 0..3 {
            assert!(cluster.members[number].child.as_mut().unwrap().try_wait().unwrap().is_none());
        }
        network.resolve(&names);
        let mut load = Load::start(cluster).await;
        let leader = load.cluster.leader().await;
        let term = load.term(leader).await;
        network.resolve(&[]);
        load.goes_on("writes without names").await;
        load.goes_on("more of them").await;
        assert_eq!(load.cluster.leader().await, leader);
        assert_eq!(load.term(leader).await, term, "nobody was elected");
        // Who starts now cannot find the others; they find it where it was.
        let other = (leader + 1) % 3;
        load.cluster.members[other].end(Signal::KILL);
        load.goes_on("writes of the two").await;
        load.cluster.start_member(other);
        load.goes_on("writes without names").await;
        network.resolve(&names);
        load.cluster.leader().await;
        load.end().await;
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
                eprintln!("skipped: packets cannot be lost on purpose here (netem or nft)");
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
