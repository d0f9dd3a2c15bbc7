//! Members that come, learn, are promoted, move and go, as real processes; and members that were away for longer than the log reaches.
mod support;

use rustix::process::Signal;
use std::sync::atomic::{AtomicBool, Ordering};
use sternpost_replication::raft::survey::{Survey, judge};
use sternpost_server::wire::etcdserverpb::cluster_client::ClusterClient;
use sternpost_server::wire::etcdserverpb::kv_client::KvClient;
use sternpost_server::wire::etcdserverpb::lease_client::LeaseClient;
use sternpost_server::wire::etcdserverpb::{LeaseGrantRequest, MemberUpdateRequest, PutRequest};
use support::changes::{Calls, id};
use support::cluster::{Cluster, runtime, until};
use tonic::Status;

/// So that little has to be written until a member that is away needs the state.
const SMALL_LOG: &[&str] = &["--wal-retain-bytes=1048576", "--memtable-bytes=1048576"];

/// Puts values until the log cannot hold them all.
async fn fill(member: &support::cluster::Member, prefix: &str) {
    for number in 0..80 {
        let value = format!("{number:08}").repeat(128 << 10);
        member.put(&format!("{prefix}-{number}"), &value).await.unwrap();
    }
}

#[test]
fn one_member_grows_to_three_and_shrinks_to_another_one_while_it_serves() {
    let mut cluster = Cluster::start(1, &[]);
    runtime().block_on(async {
        cluster.leader().await;
        cluster.members[0].put("first", "1").await.unwrap();
        let lease = LeaseClient::new(cluster.members[0].channel())
            .lease_grant(LeaseGrantRequest { ttl: 600, id: 77 })
            .await
            .unwrap()
            .into_inner();
        let put =
            PutRequest { key: "leased".into(), value: "1".into(), lease: lease.id, ..Default::default() };
        KvClient::new(cluster.members[0].channel()).put(put).await.unwrap();

        // A voter joins.
        let second = cluster.new_member(&[]);
        let url = cluster.members[second].peer_url();
        let second_id = Cluster::add(&cluster.members[0], url, false).await.unwrap();
        cluster.name(second);
        cluster.join(second);
        assert_eq!(id(&cluster.members[second]).await, second_id);
        cluster.leader().await;
        assert_eq!(cluster.members[second].get("first", false).await.unwrap().as_deref(), Some("1"));

        // A learner joins, asked for at the follower; it serves what it has and nothing else until it is promoted.
        let third = cluster.new_member(&[]);
        let url = cluster.members[third].peer_url();
        let third_id = Cluster::add(&cluster.members[second], url, true).await.unwrap();
        cluster.name(third);
        cluster.join(third);
        assert_eq!(id(&cluster.members[third]).await, third_id);
        let learner = &cluster.members[third];
        until("the learner's data", async || {
            (learner.get("first", true).await.ok()?.as_deref() == Some("1")).then_some(())
        })
        .await;
        assert!(learner.status().await.unwrap().is_learner);
        for refused in
            [learner.get("first", false).await.unwrap_err(), learner.put("no", "1").await.unwrap_err()]
        {
            assert_eq!(refused.message(), "etcdserver: rpc not supported for learner");
        }
        let fourth_url = "http://127.0.0.1:1".to_owned();
        let refused = Cluster::add(&cluster.members[0], fourth_url, true).await.unwrap_err();
        assert_eq!(refused.message(), "etcdserver: too many learner members in cluster");
        let members =
            until("the promotion", async || Cluster::promote(&cluster.members[second], third_id).await.ok())
                .await;
        assert!(members.iter().all(|member| !member.is_learner), "{members:?}");
        let refused = Cluster::promote(&cluster.members[0], third_id).await.unwrap_err();
        assert_eq!(refused.message(), "etcdserver: can only promote a learner member");
        until("writes through the promoted one", async || learner_put(&cluster, third).await.ok()).await;
        let names = until("three names", async || {
            let members = Cluster::list(&cluster.members[0]).await.ok()?;
            let names: Vec<String> = members.into_iter().map(|member| member.name).collect();
            (names.iter().filter(|name| !name.is_empty()).count() == 3).then_some(names)
        })
        .await;
        assert_eq!(names.len(), 3);
        cluster.agree().await;

        // All start again, by flags that only count on an empty directory.
        for number in 0..3 {
            cluster.members[number].end(Signal::KILL);
        }
        for number in 0..3 {
            cluster.start_member(number);
        }
        cluster.leader().await;
        cluster.agree().await;
        assert_eq!(cluster.members[third].get("leased", false).await.unwrap().as_deref(), Some("1"));

        // The leader is removed, by its own hand; then the next one.
        for left in [2, 1] {
            let leader = cluster.leader().await;
            let leader_id = id(&cluster.members[leader]).await;
            let members = Cluster::remove(&cluster.members[leader], leader_id).await.unwrap();
            assert_eq!(members.len(), left);
            assert_eq!(cluster.members[leader].exit_code().await, Some(0));
            cluster.forget(leader);
            let next = cluster.leader().await;
            until("a write after the removal", async || cluster.members[next].put("after", "1").await.ok())
                .await;
            let refused = Cluster::remove(&cluster.members[next], leader_id).await.unwrap_err();
            assert_eq!(refused.message(), "etcdserver: member not found");
        }
        let last = cluster.leader().await;
        let last_id = id(&cluster.members[last]).await;
        let refused = Cluster::remove(&cluster.members[last], last_id).await.unwrap_err();
        assert_eq!(
            refused.message(),
            "etcdserver: re-configuration failed due to not enough started members"
        );
        assert_eq!(cluster.members[last].get("first", false).await.unwrap().as_deref(), Some("1"));
    });
}

async fn learner_put(cluster: &Cluster, number: usize) -> Result<i64, Status> {
    cluster.members[number].put("promoted", "1").await
}

#[test]
fn a_member_that_missed_more_than_the_log_holds_fetches_the_state() {
    let mut cluster = Cluster::start(3, SMALL_LOG);
    runtime().block_on(async {
        let leader = cluster.leader().await;
        let away = (leader + 1) % 3;
        cluster.members[leader].put("k", "1").await.unwrap();
        cluster.agree().await;
        cluster.members[away].end(Signal::KILL);
        fill(&cluster.members[leader], "missed").await;
        cluster.start_member(away);
        // Killed in the middle of what it does about it, a few times; it goes on.
        for text in ["fetching the state of another member", "fetched the state of another member"] {
            let member = &cluster.members[away];
            until(text, async || member.has_said(text).then_some(())).await;
            cluster.members[away].end(Signal::KILL);
            cluster.start_member(away);
        }
        cluster.leader().await;
        cluster.agree().await;
        let read = cluster.members[away].get("missed-79", false).await.unwrap();
        assert_eq!(read.map(|value| value.len()), Some(1 << 20));
        // It votes again: with another one away it is needed.
        let other = (leader + 2) % 3;
        cluster.members[other].end(Signal::KILL);
        until("a write by both", async || cluster.members[away].put("again", "1").await.ok()).await;
        cluster.start_member(other);
        cluster.leader().await;
        cluster.agree().await;
    });
}

#[test]
fn a_member_is_replaced_while_clients_write() {
    let mut cluster = Cluster::start(3, SMALL_LOG);
    runtime().block_on(async {
        let leader = cluster.leader().await;
        let dead = (leader + 1) % 3;
        let other = (leader + 2) % 3;
        let dead_id = id(&cluster.members[dead]).await;
        fill(&cluster.members[leader], "before").await;
        cluster.members[dead].end(Signal::KILL);
        let is_over = AtomicBool::new(false);
        let writer = cluster.members[other].channel();
        let writing = async {
            let mut acknowledged = Vec::new();
            let mut client = KvClient::new(writer);
            while !is_over.load(Ordering::Relaxed) {
                let key = format!("meanwhile-{}", acknowledged.len());
                let put = PutRequest { key: key.clone().into(), value: "1".into(), ..Default::default() };
                if client.put(put).await.is_ok() {
                    acknowledged.push(key);
                }
            }
            acknowledged
        };
        let replacing = async {
            Cluster::remove(&cluster.members[other], dead_id).await.unwrap();
            cluster.forget(dead);
            let new = cluster.new_member(SMALL_LOG);
            let url = cluster.members[new].peer_url();
            let new_id = Cluster::add(&cluster.members[other], url, true).await.unwrap();
            cluster.name(new);
            cluster.join(new);
            until("the promotion", async || Cluster::promote(&cluster.members[other], new_id).await.ok())
                .await;
            is_over.store(true, Ordering::Relaxed);
            new
        };
        let (acknowledged, new) = tokio::join!(writing, replacing);
        cluster.leader().await;
        cluster.agree().await;
        for key in &acknowledged {
            let read = until("a read", async || cluster.members[new].get(key, false).await.ok()).await;
            assert!(read.is_some(), "{key} was acknowledged");
        }
        // The one that was removed while it was down hears of it when it comes back.
        cluster.start_member(dead);
        assert_eq!(cluster.members[dead].exit_code().await, Some(0));
    });
}

/// The one that is away knows none of those who are there when it comes back.
#[test]
fn a_member_finds_a_cluster_whose_other_members_were_all_replaced_while_it_was_away() {
    let options = &["--strict-reconfig-check=false"];
    let mut cluster = Cluster::start(3, options);
    runtime().block_on(async {
        cluster.leader().await;
        cluster.agree().await;
        cluster.members[2].end(Signal::KILL);
        for old in [0, 1] {
            let asked = if old == 0 { 1 } else { 3 };
            let new = cluster.new_member(options);
            let url = cluster.members[new].peer_url();
            until("an addition", async || Cluster::add(&cluster.members[1], url.clone(), false).await.ok())
                .await;
            cluster.name(new);
            cluster.join(new);
            let member = &cluster.members[new];
            until("a write through the new one", async || member.put("new", "1").await.ok()).await;
            let old_id = id(&cluster.members[old]).await;
            until("a removal", async || Cluster::remove(&cluster.members[asked], old_id).await.ok()).await;
            assert_eq!(cluster.members[old].exit_code().await, Some(0));
            cluster.forget(old);
        }
        cluster.start_member(2);
        cluster.leader().await;
        cluster.agree().await;
        until("a write through it", async || cluster.members[2].put("found", "1").await.ok()).await;
        // With one of the two new ones gone it is needed.
        cluster.members[4].end(Signal::KILL);
        until("a write by both", async || cluster.members[3].put("needed", "1").await.ok()).await;
    });
}

/// Rows 14 and 15 of the list of faults in the design of replication.
#[test]
fn a_member_whose_data_was_lost_or_went_back_takes_no_part() {
    let mut cluster = Cluster::start(3, &[]);
    runtime().block_on(async {
        let leader = cluster.leader().await;
        let victim = (leader + 1) % 3;
        cluster.members[leader].put("k", "1").await.unwrap();
        cluster.agree().await;
        until("all names", async || {
            let members = Cluster::list(&cluster.members[leader]).await.ok()?;
            members.iter().all(|member| !member.client_ur_ls.is_empty()).then_some(())
        })
        .await;
        // Its directory as it is now; later it is put back.
        cluster.members[victim].end(Signal::KILL);
        let folder = cluster.members[victim].folder.clone();
        let old = folder.with_extension("old");
        copy(&folder, &old);
        cluster.start_member(victim);
        cluster.leader().await;
        for number in 0..20 {
            cluster.members[victim].put(&format!("k-{number}"), "1").await.unwrap();
        }
        cluster.agree().await;
        cluster.members[victim].end(Signal::KILL);
        // Lost.
        std::fs::rename(&folder, folder.with_extension("lost")).unwrap();
        cluster.start_member(victim);
        assert_eq!(cluster.members[victim].exit_code().await, Some(1));
        assert!(cluster.members[victim].has_said("has started before, and its data directory is empty"));
        // Rolled back.
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::rename(&old, &folder).unwrap();
        cluster.start_member(victim);
        let member = &cluster.members[victim];
        until("the quarantine", async || {
            let errors = member.status().await.ok()?.errors;
            errors.iter().any(|error| error.contains("holds less than it has acknowledged")).then_some(())
        })
        .await;
        // The others go on.
        cluster.members[leader].put("k", "2").await.unwrap();
    });
}

/// Nobody remembers it who has run since, and everybody does: what members had acknowledged stands in the state.
#[test]
fn a_member_whose_data_went_back_takes_no_part_though_all_start_anew() {
    let mut cluster = Cluster::start(3, &["--compact-hash-check-time=200ms"]);
    runtime().block_on(async {
        let leader = cluster.leader().await;
        let victim = (leader + 1) % 3;
        cluster.members[leader].put("k", "1").await.unwrap();
        cluster.agree().await;
        cluster.members[victim].end(Signal::KILL);
        let folder = cluster.members[victim].folder.clone();
        let old = folder.with_extension("old");
        copy(&folder, &old);
        cluster.start_member(victim);
        cluster.leader().await;
        for number in 0..20 {
            cluster.members[victim].put(&format!("k-{number}"), "1").await.unwrap();
        }
        cluster.agree().await;
        // Behind this one comes a mark, which has what is acknowledged by now.
        let revision = cluster.members[leader].put("k", "2").await.unwrap();
        for member in &cluster.members {
            until("a mark behind it", async || {
                let status = member.status().await.ok()?;
                let agreed_index = member.metric("sternpost_comparison_agreed_index").await?;
                let is_there = status.header?.revision >= revision;
                (is_there && agreed_index >= status.raft_applied_index as f64).then_some(())
            })
            .await;
        }
        for number in 0..3 {
            cluster.members[number].end(Signal::KILL);
        }
        std::fs::remove_dir_all(&folder).unwrap();
        std::fs::rename(&old, &folder).unwrap();
        for number in 0..3 {
            cluster.start_member(number);
        }
        let member = &cluster.members[victim];
        until("the quarantine", async || {
            let errors = member.status().await.ok()?.errors;
            errors.iter().any(|error| error.contains("holds less than it has acknowledged")).then_some(())
        })
        .await;
        until("the others to go on", async || cluster.members[leader].put("k", "3").await.ok()).await;
        for number in 0..20 {
            let value = cluster.members[leader].get(&format!("k-{number}"), false).await.unwrap();
            assert_eq!(value.as_deref(), Some("1"));
        }
    });
}

#[test]
fn an_update_moves_a_member_to_other_peer_urls() {
    let mut cluster = Cluster::start(3, &[]);
    runtime().block_on(async {
        let leader = cluster.leader().await;
        let moving = (leader + 1) % 3;
        let moving_id = id(&cluster.members[moving]).await;
        cluster.members[moving].end(Signal::TERM);
        cluster.members[moving].take_other_peer_port();
        let request =
            MemberUpdateRequest { id: moving_id, peer_ur_ls: vec![cluster.members[moving].peer_url()] };
        let mut client = ClusterClient::new(cluster.members[(leader + 2) % 3].channel());
        let members = client.member_update(request).await.unwrap().into_inner().members;
        assert!(members.iter().any(|member| member.peer_ur_ls == [cluster.members[moving].peer_url()]));
        cluster.start_member(moving);
        cluster.leader().await;
        until("a write through it", async || cluster.members[moving].put("moved", "1").await.ok()).await;
        cluster.agree().await;
    });
}

#[test]
fn a_survivor_goes_on_alone_where_it_is_forced_to_and_the_others_end_when_they_return() {
    let mut cluster = Cluster::start(3, &[]);
    runtime().block_on(async {
        let survivor = cluster.leader().await;
        let [one, other] = [(survivor + 1) % 3, (survivor + 2) % 3];
        let put = cluster.members[survivor].put("acknowledged", "1").await.unwrap();
        let before = cluster.members[survivor].status().await.unwrap().header.unwrap();
        // While the others work without it, nothing is forced.
        cluster.members[survivor].end(Signal::KILL);
        cluster.leader().await;
        let plain = cluster.members[survivor].options.clone();
        cluster.members[survivor].options.push("--force-new-cluster".to_owned());
        cluster.start_member(survivor);
        assert_eq!(cluster.members[survivor].exit_code().await, Some(1));
        assert!(
            cluster.members[survivor].has_said("would end a cluster that works: 2 of its 3 voting members")
        );
        cluster.members[survivor].options = plain.clone();
        cluster.start_member(survivor);
        until("a leader again", async || cluster.members[survivor].put("again", "1").await.ok()).await;
        // Two are gone, and what the survivor then took is in no other log.
        cluster.members[one].end(Signal::KILL);
        cluster.members[other].end(Signal::KILL);
        let member = &cluster.members[survivor];
        let left = member.put("left", "1").await.unwrap_err();
        assert!(left.message().contains("etcdserver:"), "{left:?}");
        cluster.members[survivor].end(Signal::KILL);
        // With the disk of one other member it is certain who has what, without it not.
        let survey = |number: usize| Survey::of(&cluster.members[number].folder, &mut |_, _| {}).unwrap();
        let surveys = [survey(survivor), survey(one), survey(other)];
        let judged = judge(&surveys[..1]).unwrap();
        assert_eq!((judged.is_proved, judged.has_quorum, judged.unseen.len()), (false, false, 2));
        assert!(judge(&surveys[..2]).unwrap().is_proved && judge(&surveys).unwrap().has_quorum);
        assert_eq!(surveys[0].newest().voters.len(), 3);
        cluster.members[survivor].options.push("--force-new-cluster".to_owned());
        cluster.start_member(survivor);
        let member = &cluster.members[survivor];
        until("the survivor to serve", async || member.put("alone", "1").await.ok()).await;
        let status = member.status().await.unwrap();
        let header = status.header.unwrap();
        assert_eq!((header.cluster_id, header.member_id), (before.cluster_id, before.member_id));
        assert!(header.raft_term > before.raft_term && header.revision > put);
        assert_eq!(member.get("acknowledged", false).await.unwrap().as_deref(), Some("1"));
        let members = Cluster::list(member).await.unwrap();
        let ids: Vec<u64> = members.iter().map(|member| member.id).collect();
        assert_eq!(ids, [before.member_id]);
        // The same again changes nothing, and neither does a start without the flag.
        for options in [&cluster.members[survivor].options.clone(), &plain] {
            cluster.members[survivor].end(Signal::KILL);
            cluster.members[survivor].options.clone_from(options);
            cluster.start_member(survivor);
            until("the survivor again", async || cluster.members[survivor].put("alone", "2").await.ok())
                .await;
        }
        for returning in [one, other] {
            cluster.start_member(returning);
            assert_eq!(cluster.members[returning].exit_code().await, Some(0));
            assert!(cluster.members[returning].has_said("was removed from its cluster"));
        }
        // It grows again.
        let fresh = cluster.new_member(&[]);
        let url = cluster.members[fresh].peer_url();
        Cluster::add(&cluster.members[survivor], url, false).await.unwrap();
        cluster.forget(one);
        cluster.forget(other);
        cluster.name(fresh);
        cluster.join(fresh);
        until("the new member", async || cluster.members[fresh].put("grown", "1").await.ok()).await;
        cluster.agree().await;
    });
}

fn copy(from: &std::path::Path, to: &std::path::Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().map(Result::unwrap) {
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}
