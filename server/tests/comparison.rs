//! Members whose data differs, as real processes: found, named, taken out and repaired, or reported where nobody can tell who is right.
//!
//! A member is made to differ by a forged log (`support/forge.rs`): it applies another value than the others, as after a fault in its memory, and nothing in its own
//! directory shows it.
mod support;

use rustix::process::Signal;
use sternpost_engine::inspect::Inspection;
use sternpost_server::wire::etcdserverpb::alarm_request::AlarmAction;
use sternpost_server::wire::etcdserverpb::maintenance_client::MaintenanceClient;
use sternpost_server::wire::etcdserverpb::{AlarmRequest, AlarmType};
use support::cluster::{Cluster, Member, runtime, until};
use support::forge::replace_in_log;

const OFTEN: &[&str] = &["--compact-hash-check-time=500ms"];
const TRUE_VALUE: &str = "as it was written";
const FALSE_VALUE: &str = "as it is imagined";

/// Index of the last entry that a replay of this member's log does not apply.
fn checkpoint_index(member: &Member) -> u64 {
    Inspection::open(&member.folder).unwrap().superblock().applied_index
}

/// Kills a member and has it hold [`FALSE_VALUE`] at `victim` when it is started again; the others have [`TRUE_VALUE`].
async fn make_differ(cluster: &mut Cluster, number: usize) {
    let other = (number + 1) % cluster.members.len();
    loop {
        let before = until("a status", async || cluster.members[other].status().await.ok()).await;
        until("a put", async || cluster.members[other].put("victim", TRUE_VALUE).await.ok()).await;
        let index = cluster.members[other].status().await.unwrap().raft_applied_index;
        until("the member to have it", async || {
            (cluster.members[number].status().await.ok()?.raft_applied_index >= index).then_some(())
        })
        .await;
        cluster.members[number].end(Signal::KILL);
        // A checkpoint that is just made has the put already; then once more.
        if checkpoint_index(&cluster.members[number]) <= before.raft_applied_index
            && replace_in_log(&cluster.members[number].folder, TRUE_VALUE.as_bytes(), FALSE_VALUE.as_bytes())
                > 0
        {
            return;
        }
        cluster.start_member(number);
    }
}

async fn has_true_value(member: &Member) {
    until("the true value", async || {
        (member.get("victim", true).await.ok()?.as_deref() == Some(TRUE_VALUE)).then_some(())
    })
    .await;
}

#[test]
fn a_member_that_differs_takes_itself_out_and_comes_back_with_what_the_others_have() {
    let mut cluster = Cluster::start(3, OFTEN);
    runtime().block_on(async {
        for number in 0..100 {
            let key = format!("key-{number}");
            until("a put", async || cluster.members[0].put(&key, "value").await.ok()).await;
        }
        let leader = cluster.leader().await;
        for differing in [(leader + 1) % 3, leader] {
            make_differ(&mut cluster, differing).await;
            cluster.start_member(differing);
            // Marks are made where something was written.
            cluster.members[differing].says("stops serving and fetches theirs").await;
            cluster.members[differing].says("starts again with it").await;
            has_true_value(&cluster.members[differing]).await;
            let others = [(differing + 1) % 3, (differing + 2) % 3];
            let named =
                |member: &Member| member.has_said_all(&["the data of members differs from that of most"]);
            until("the others to name it", async || {
                others.iter().any(|other| named(&cluster.members[*other])).then_some(())
            })
            .await;
            cluster.leader().await;
            until("a put everywhere", async || cluster.members[differing].put("after", "1").await.ok()).await;
            cluster.agree().await;
        }
    });
}

/// The quarantine outlives the process: nobody is served from what differs, however often it is killed.
#[test]
fn a_member_that_is_killed_while_it_fetches_serves_nobody_before_it_has_fetched() {
    let mut options = OFTEN.to_vec();
    // Slow enough to be killed in it.
    options.push("--state-bytes-per-second=200000");
    let mut cluster = Cluster::start(3, &options);
    runtime().block_on(async {
        let value = "0123456789abcdef".repeat(4096);
        for number in 0..30 {
            // Incompressible enough: the key differs, and the state is of some hundred KiB.
            let key = format!("key-{number}");
            until("a put", async || cluster.members[0].put(&key, &format!("{number}{value}")).await.ok())
                .await;
        }
        cluster.leader().await;
        make_differ(&mut cluster, 1).await;
        cluster.start_member(1);
        for _ in 0..3 {
            cluster.members[1].says("takes no part until it has the state").await;
            cluster.members[1].end(Signal::KILL);
            let quarantine =
                Inspection::open(&cluster.members[1].folder).unwrap().superblock().quarantine_reason;
            if quarantine.is_none() {
                // Installed already.
                break;
            }
            cluster.start_member(1);
        }
        if cluster.members[1].child.is_none() {
            cluster.start_member(1);
        }
        // Whoever gets an answer gets the true one.
        has_true_answer(&cluster.members[1]).await;
        cluster.agree().await;
    });
}

/// The first answer that it gives is the true one.
async fn has_true_answer(member: &Member) {
    let value = until("an answer", async || member.get("victim", true).await.ok()).await;
    assert_eq!(value.as_deref(), Some(TRUE_VALUE));
}

/// etcd's gate, which kubeadm sets: who differs is found before anybody can ask it.
#[test]
fn a_member_that_is_to_be_compared_first_serves_nobody_what_differs() {
    let mut cluster = Cluster::start(3, &["--compact-hash-check-time=10h"]);
    runtime().block_on(async {
        cluster.leader().await;
        make_differ(&mut cluster, 2).await;
        cluster.members[2].options.push("--feature-gates=InitialCorruptCheck=true".to_owned());
        cluster.start_member(2);
        has_true_answer(&cluster.members[2]).await;
        cluster.members[2].says("was compared with the others before it serves").await;
        // Nobody writes, so a state behind what it had acknowledged comes only of what it asked for: a mark to judge it at, one beyond its quarantine, and one more to
        // judge what it has now.
        let marked = cluster.members[2].status().await.unwrap().raft_applied_index;
        let least = cluster.members[2].number_said("takes no part until it has the state", "least-index");
        assert!(marked >= least + 2, "applied up to {marked}, quarantined at {least}");
        cluster.agree().await;
    });
}

/// One of two: nobody can tell who is right, so nothing more is written, as in etcd, until a person has decided.
#[test]
fn where_no_majority_has_the_same_the_alarm_is_raised_and_nothing_is_thrown_away() {
    let mut cluster = Cluster::start(2, OFTEN);
    runtime().block_on(async {
        cluster.leader().await;
        make_differ(&mut cluster, 1).await;
        cluster.start_member(1);
        let refused = until("the alarm", async || cluster.members[0].put("more", "1").await.err()).await;
        let refused = if refused.message().contains("corrupt") {
            refused
        } else {
            until("the alarm", async || {
                let error = cluster.members[0].put("more", "1").await.err()?;
                error.message().contains("corrupt").then_some(error)
            })
            .await
        };
        assert_eq!(
            (refused.code(), refused.message()),
            (tonic::Code::DataLoss, "etcdserver: corrupt cluster")
        );
        let mut client = MaintenanceClient::new(cluster.members[0].channel());
        let request =
            AlarmRequest { action: AlarmAction::Get.into(), member_id: 0, alarm: AlarmType::None.into() };
        let alarms = client.alarm(request).await.unwrap().into_inner().alarms;
        let found: Vec<_> = alarms.iter().map(|alarm| (alarm.member_id, alarm.alarm())).collect();
        assert_eq!(found, [(0, AlarmType::Corrupt)]);
        let values = [
            cluster.members[0].get("victim", true).await.unwrap(),
            cluster.members[1].get("victim", true).await.unwrap(),
        ];
        assert_eq!(values, [Some(TRUE_VALUE.to_owned()), Some(FALSE_VALUE.to_owned())]);
    });
}

#[test]
fn all_data_of_members_that_agree_is_found_to_be_the_same() {
    let cluster = Cluster::start(3, &["--corrupt-check-time=300ms"]);
    runtime().block_on(async {
        until("a put", async || cluster.members[0].put("key", "value").await.ok()).await;
        for member in &cluster.members {
            member.says("all data of the members is the same").await;
        }
    });
}
