//! Bits that flip on the disk of one member, as real processes under load that is held against linearizability.
//!
//! The rows are those of the list of faults in the design of replication.
mod support;

use rustix::process::Signal;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;
use sternpost_server::wire::etcdserverpb::MoveLeaderRequest;
use sternpost_server::wire::etcdserverpb::maintenance_client::MaintenanceClient;
use support::changes::{Calls, id};
use support::cluster::{Cluster, runtime, until};
use support::register::Load;

/// Flips a bit of the first place in the files of a folder where these bytes are; false if they are nowhere.
fn flip_at(folder: &Path, bytes: &[u8]) -> bool {
    let mut paths: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    for path in paths {
        let content = std::fs::read(&path).unwrap();
        if let Some(at) = content.windows(bytes.len()).position(|window| window == bytes) {
            flip(&OpenOptions::new().write(true).open(&path).unwrap(), at, content[at]);
            return true;
        }
    }
    false
}

fn flip(file: &File, at: usize, byte: u8) {
    file.write_all_at(&[byte ^ 4], at as u64).unwrap();
    file.sync_all().unwrap();
}

/// Row 11: a member whose log is damaged where it had acknowledged does not start, and says where; the others go on, and it is replaced.
#[test]
fn a_bit_that_flips_in_what_one_member_acknowledged_is_noticed_and_loses_nothing() {
    runtime().block_on(async {
        let mut load = Load::start(Cluster::start(3, &[])).await;
        let leader = load.cluster.leader().await;
        let damaged = (leader + 1) % 3;
        let marked = "bytes that are nowhere else in the log of this member ".repeat(20);
        load.cluster.members[leader].put("marked", &marked).await.unwrap();
        let member = &load.cluster.members[damaged];
        until("the marked value", async || member.get("marked", true).await.ok()?).await;
        load.goes_on("writes behind it").await;
        let damaged_id = id(member).await;
        load.cluster.members[damaged].end(Signal::KILL);
        assert!(flip_at(&load.cluster.members[damaged].folder.join("wal"), marked.as_bytes()));
        load.cluster.start_member(damaged);
        assert_eq!(load.cluster.members[damaged].exit_code().await, Some(1), "it takes no part");
        assert!(load.cluster.members[damaged].has_said("damage"), "and says why");
        load.goes_on("writes of the others").await;
        // What to do about it.
        let asked = &load.cluster.members[leader];
        until("the removal", async || Cluster::remove(asked, damaged_id).await.ok()).await;
        load.cluster.forget(damaged);
        let new = load.cluster.new_member(&[]);
        let url = load.cluster.members[new].peer_url();
        let asked = &load.cluster.members[leader];
        let new_id = until("the addition", async || Cluster::add(asked, url.clone(), true).await.ok()).await;
        load.cluster.name(new);
        load.cluster.join(new);
        let asked = &load.cluster.members[leader];
        until("the promotion", async || Cluster::promote(asked, new_id).await.ok()).await;
        load.include(new);
        let member = &load.cluster.members[new];
        let value = until("the marked value", async || member.get("marked", false).await.ok()?).await;
        assert_eq!(value, marked);
        load.end().await;
    });
}

/// Row 43: what is damaged on the disk of whoever gives its state away is not installed; it is fetched from another one as soon as that leads.
#[test]
fn a_state_that_is_damaged_on_the_disk_of_its_source_is_not_installed() {
    let options = &["--wal-retain-bytes=1048576", "--memtable-bytes=1048576", "--scrub-bytes-per-second=0"];
    runtime().block_on(async {
        let mut load = Load::start(Cluster::start(3, options)).await;
        let leader = load.cluster.leader().await;
        let [away, other] = [(leader + 1) % 3, (leader + 2) % 3];
        let other_id = id(&load.cluster.members[other]).await;
        load.cluster.members[away].end(Signal::KILL);
        // Short enough to be stored as it is, many enough for several segments.
        let value = |number: usize| format!("{number:08}").repeat(64 << 10);
        for number in 0..160 {
            let member = &load.cluster.members[leader];
            let put = async || member.put(&format!("missed-{number}"), &value(number)).await.ok();
            until("a big put", put).await;
        }
        // Somewhere in the middle of the largest file.
        let folder = load.cluster.members[leader].folder.join("seg");
        let paths = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path());
        let largest = paths.max_by_key(|path| path.metadata().map_or(0, |metadata| metadata.len())).unwrap();
        let content = std::fs::read(&largest).unwrap();
        let at = content.len() / 2;
        flip(&OpenOptions::new().write(true).open(&largest).unwrap(), at, content[at]);
        load.cluster.start_member(away);
        load.cluster.members[away].says("cannot fetch the state of another member").await;
        load.goes_on("writes of the others").await;
        assert!(!load.cluster.members[away].has_said("fetched the state of another member"));
        let mut client = MaintenanceClient::new(load.cluster.members[leader].channel());
        client.move_leader(MoveLeaderRequest { target_id: other_id }).await.unwrap();
        load.cluster.members[away].says("fetched the state of another member").await;
        load.cluster.catches_up(away, other).await;
        // Whoever has the damage answers for itself; the others have the same.
        load.cluster.members[leader].end(Signal::KILL);
        load.end().await;
    });
}
