//! Election timeouts that follow the network, as real processes under load behind proxies that delay what they carry.
mod support;

use rustix::process::Signal;
use support::cluster::{Cluster, runtime, until};
use support::proxy::Proxy;
use support::register::Load;

const TOLD: &str = "raft: the election timeout is another one";
/// In each direction: ten round trips of 60 ms are 600.
const DELAY_MS: u64 = 30;

/// Three members, each reached by the others through a proxy.
fn start_with_proxies(options: &[&str]) -> (Cluster, Vec<Proxy>) {
    let proxies = std::sync::Mutex::new(Vec::new());
    let cluster = Cluster::start_with(3, |member| {
        member.options = options.iter().map(ToString::to_string).collect();
        let proxy = Proxy::start(member.peer_address());
        member.advertised_peer_url = Some(proxy.url());
        proxies.lock().unwrap().push(proxy);
    });
    (cluster, proxies.into_inner().unwrap())
}

#[test]
fn timeouts_grow_with_the_round_trips_and_shrink_with_them() {
    runtime().block_on(async {
        let (cluster, proxies) = start_with_proxies(&[]);
        let mut load = Load::start(cluster).await;
        proxies.iter().for_each(|proxy| proxy.set_delay(DELAY_MS));
        let all = async |is_it: &dyn Fn(u64) -> bool, load: &Load| {
            for member in &load.cluster.members {
                until("another election timeout", async || {
                    member.last_number_said(TOLD, "ms").is_some_and(is_it).then_some(())
                })
                .await;
            }
        };
        all(&|ms| ms >= 500, &load).await;
        load.goes_on("writes over a slow network").await;
        let leader = load.cluster.leader().await;
        load.cluster.members[leader].end(Signal::KILL);
        load.leader_without(leader).await;
        load.goes_on("writes of the others").await;
        load.cluster.start_member(leader);
        load.cluster.leader().await;
        proxies.iter().for_each(|proxy| proxy.set_delay(0));
        all(&|ms| ms <= 250, &load).await;
        load.end().await;
    });
}

/// As in etcd: who says what the timers are has them.
#[test]
fn timeouts_that_are_given_stay() {
    runtime().block_on(async {
        let (cluster, proxies) = start_with_proxies(&["--election-timeout=1000"]);
        let load = Load::start(cluster).await;
        proxies.iter().for_each(|proxy| proxy.set_delay(DELAY_MS));
        for _ in 0..5 {
            load.goes_on("writes over a slow network").await;
        }
        assert!(load.cluster.members.iter().all(|member| !member.has_said(TOLD)));
        load.end().await;
    });
}
