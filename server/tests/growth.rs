//! A cluster that grows and shrinks while leaders die and members that were removed do not know it yet, as real processes under load that is held against
//! linearizability.
//!
//! The rows are those of the list of faults in the design of replication.
mod support;

use rustix::process::Signal;
use std::time::Duration;
use sternpost_server::wire::etcdserverpb::Member;
use support::changes::{Calls, id};
use support::cluster::{Cluster, runtime, until};
use support::register::Load;

/// Nobody should be elected because this machine is busy with these tests.
const PATIENT: &[&str] = &["--heartbeat-interval=300", "--election-timeout=3000"];

/// The members as each of those who live says, all the same. Learners do not answer that.
async fn members(cluster: &Cluster) -> Vec<Member> {
    until("the same members everywhere", async || {
        let mut lists = Vec::new();
        for (_, member) in cluster.living() {
            if member.status().await.ok()?.is_learner {
                continue;
            }
            let mut list = Cluster::list(member).await.ok()?;
            list.sort_by_key(|member| member.id);
            lists.push(list);
        }
        let first = lists.pop()?;
        lists.iter().all(|list| *list == first).then_some(first)
    })
    .await
}

/// Row 33: in each step of a learner's way to a voter the leader dies. A step that was acknowledged is never undone, one that was not is done wholly or not at all,
/// and can be asked for again.
#[test]
fn a_learner_becomes_a_voter_though_the_leader_dies_in_each_step() {
    runtime().block_on(async {
        let mut load = Load::start(Cluster::start(3, &[])).await;
        // How long the leader lives after a step was asked for.
        for delay_ms in [0, 3, 15] {
            let delay = Duration::from_millis(delay_ms);
            let new = load.cluster.new_member(&[]);
            let url = load.cluster.members[new].peer_url();
            // Added.
            let leader = load.cluster.leader().await;
            let other = (leader + 1) % 3;
            let asked = &load.cluster.members[other];
            let (victim, acknowledged) = {
                let dying = async {
                    tokio::time::sleep(delay).await;
                    load.cluster.members[leader].signal(Signal::KILL);
                    leader
                };
                let (victim, added) = tokio::join!(dying, Cluster::add(asked, url.clone(), true));
                (victim, added.ok())
            };
            load.cluster.members[victim].end(Signal::KILL);
            load.goes_on("writes of the others").await;
            load.cluster.start_member(victim);
            load.cluster.leader().await;
            let list = members(&load.cluster).await;
            let found = list.iter().find(|member| member.peer_ur_ls == [url.clone()]);
            if let Some(id) = acknowledged {
                assert!(found.is_some_and(|member| member.id == id), "an addition was lost: {list:?}");
            }
            if found.is_none() {
                let asked = &load.cluster.members[other];
                until("the addition", async || Cluster::add(asked, url.clone(), true).await.ok()).await;
            }
            let list = members(&load.cluster).await;
            let added: Vec<_> = list.iter().filter(|member| member.peer_ur_ls == [url.clone()]).collect();
            assert!(added.len() == 1 && added[0].is_learner, "once, as a learner: {list:?}");
            let new_id = added[0].id;

            // On its way to what the others have.
            load.cluster.name(new);
            load.cluster.join(new);
            tokio::time::sleep(delay).await;
            let leader = load.cluster.leader_of(new).await;
            load.cluster.members[leader].end(Signal::KILL);
            load.goes_on("writes of the others").await;
            load.cluster.start_member(leader);
            assert_eq!(id(&load.cluster.members[new]).await, new_id);

            // Promoted.
            let leader = load.cluster.leader().await;
            let asked = &load.cluster.members[(leader + 1) % 3];
            let promoting = async {
                for _ in 0..200 {
                    match Cluster::promote(asked, new_id).await {
                        Ok(_) => return true,
                        Err(error) if error.message() == "etcdserver: can only promote a learner member" => {
                            return true;
                        }
                        Err(_) => tokio::time::sleep(Duration::from_millis(1)).await,
                    }
                }
                false
            };
            let dying = async {
                tokio::time::sleep(delay).await;
                load.cluster.members[leader].signal(Signal::KILL);
            };
            let ((), is_promoted) = tokio::join!(dying, promoting);
            load.cluster.members[leader].end(Signal::KILL);
            load.goes_on("writes of the others").await;
            load.cluster.start_member(leader);
            let is_voter = async || {
                let list = members(&load.cluster).await;
                list.iter().any(|member| member.id == new_id && !member.is_learner)
            };
            if is_promoted {
                assert!(is_voter().await, "a promotion was lost");
            } else {
                let asked = &load.cluster.members[(leader + 1) % 3];
                until("the promotion", async || {
                    let _ = Cluster::promote(asked, new_id).await;
                    is_voter().await.then_some(())
                })
                .await;
            }
            load.goes_on("writes of four").await;
            // Removed again: it ends, and the next one comes.
            let leader = load.cluster.leader().await;
            let asked = &load.cluster.members[if leader == new { 0 } else { leader }];
            until("the removal", async || {
                let removed = Cluster::remove(asked, new_id).await;
                let is_gone = removed.is_ok_and(|members| members.len() == 3);
                (is_gone || members(&load.cluster).await.len() == 3).then_some(())
            })
            .await;
            assert_eq!(load.cluster.members[new].exit_code().await, Some(0));
            load.cluster.forget(new);
        }
        load.end().await;
    });
}

/// Row 36: whoever was removed while it did not run, the one who led too, campaigns and leads by what it remembers; nobody follows it, no term grows, and it ends when it
/// hears of it.
#[test]
fn a_member_that_does_not_know_that_it_was_removed_disturbs_nobody() {
    runtime().block_on(async {
        let mut load = Load::start(Cluster::start(5, PATIENT)).await;
        for is_leader in [false, true] {
            let leader = load.cluster.leader().await;
            let removed = if is_leader {
                leader
            } else {
                load.cluster.living().map(|(number, _)| number).find(|number| *number != leader).unwrap()
            };
            let removed_id = id(&load.cluster.members[removed]).await;
            load.cluster.members[removed].signal(Signal::STOP);
            let leads = load.leader_without(removed).await;
            let asked = &load.cluster.members[leads];
            until("the removal", async || Cluster::remove(asked, removed_id).await.ok()).await;
            load.cluster.forget(removed);
            let term = load.term(leads).await;
            load.goes_on("writes without it").await;
            load.cluster.members[removed].signal(Signal::CONT);
            assert_eq!(load.cluster.members[removed].exit_code().await, Some(0), "it hears of it, and ends");
            // Once more by its directory, which still says who its voters were.
            load.cluster.start_member(removed);
            assert_eq!(load.cluster.members[removed].exit_code().await, Some(0));
            load.goes_on("writes of the others").await;
            assert_eq!(load.cluster.leader().await, leads);
            assert_eq!(load.term(leads).await, term, "no term grew");
        }
        load.end().await;
    });
}

/// Row 38: one becomes three, each of the new ones a learner first, and somebody writes all the time: the quorum is never lost.
#[test]
fn one_grows_to_three_under_load() {
    runtime().block_on(async {
        let mut load = Load::start(Cluster::start(1, PATIENT)).await;
        let mut term = None;
        for _ in 0..2 {
            let new = load.cluster.new_member(PATIENT);
            let url = load.cluster.members[new].peer_url();
            let asked = &load.cluster.members[0];
            let new_id =
                until("the addition", async || Cluster::add(asked, url.clone(), true).await.ok()).await;
            load.goes_on("writes with a learner that does not run").await;
            load.cluster.name(new);
            load.cluster.join(new);
            load.goes_on("writes while it learns").await;
            let asked = &load.cluster.members[0];
            until("the promotion", async || Cluster::promote(asked, new_id).await.ok()).await;
            load.goes_on("writes with one more voter").await;
            load.include(new);
            // From one to two its log becomes a group's; no election is needed behind that.
            let now = load.term(0).await;
            assert_eq!(now, *term.get_or_insert(now), "nobody was elected");
            assert_eq!(load.cluster.leader().await, 0);
        }
        let list = members(&load.cluster).await;
        assert!(list.len() == 3 && list.iter().all(|member| !member.is_learner), "{list:?}");
        // Each of the new ones counts: the first one dies.
        load.cluster.members[0].end(Signal::KILL);
        let next = load.leader_without(0).await;
        until("a write by both of them", async || load.cluster.members[next].put("grown", "1").await.ok())
            .await;
        load.cluster.start_member(0);
        load.end().await;
    });
}
