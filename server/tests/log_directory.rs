//! `--wal-dir` with real processes: the log in another directory, ends of all kinds, pairs that do not belong together, a group. What offline tools make of
//! it is in `tools/tests/log_directory.rs`.
mod support;

use rustix::process::Signal;
use std::path::Path;
use sternpost_server::wire::etcdserverpb::kv_client::KvClient;
use sternpost_server::wire::etcdserverpb::{PutRequest, RangeRequest};
use support::cluster::{Cluster, runtime, until};
use support::process::{Program, Server};
use tonic::transport::{Channel, Endpoint};

async fn channel(server: &Server) -> Channel {
    let endpoint = Endpoint::from_shared(server.endpoint()).unwrap();
    until("a connection", async || endpoint.connect().await.ok()).await
}

async fn put(server: &Server, number: usize) {
    let put =
        PutRequest { key: format!("key{number}").into(), value: vec![7; 1_000].into(), ..Default::default() };
    KvClient::new(channel(server).await).put(put).await.unwrap();
}

async fn count(server: &Server) -> i64 {
    let range =
        RangeRequest { key: "key".into(), range_end: "kez".into(), count_only: true, ..Default::default() };
    KvClient::new(channel(server).await).range(range).await.unwrap().into_inner().count
}

fn flag(log: &Path) -> Vec<String> {
    // Checkpoints too, so that the log is cut.
    vec![format!("--wal-dir={}", log.display()), "--memtable-bytes=100000".to_owned()]
}

fn segments(log: &Path) -> usize {
    let names = std::fs::read_dir(log).into_iter().flatten().flatten();
    names.filter(|entry| entry.path().extension().is_some_and(|ending| ending == "wal")).count()
}

#[test]
fn the_log_is_where_the_flag_says_and_found_there_after_every_end() {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("on another disk/log");
    let mut server = Server::start(Program::Sternpost, &flag(&log));
    runtime().block_on(async {
        assert_eq!(std::fs::read_link(server.data_dir().join("wal")).unwrap(), log.canonicalize().unwrap());
        let mut expected = 0;
        for round in 0..6 {
            for number in 0..50 {
                put(&server, round * 50 + number).await;
            }
            expected += 50;
            assert!(segments(&log) > 0);
            match round % 2 {
                0 => server.kill(),
                _ => server.stop(),
            }
            // The data directory knows it by itself.
            server.set_flags(&if round % 3 == 0 { Vec::new() } else { flag(&log) });
            server.start_again();
            assert_eq!(count(&server).await, expected, "round {round}");
        }
    });
}

#[test]
fn pairs_that_do_not_belong_together_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let [one, two, other] = ["one", "two", "other"].map(|name| folder.path().join(name));
    let mut first = Server::start(Program::Sternpost, &flag(&one));
    let mut second = Server::start(Program::Sternpost, &flag(&two));
    runtime().block_on(async {
        put(&first, 1).await;
        put(&second, 2).await;
    });

    // A new data directory does not take the log of a member that runs.
    let mut third = Server::not_started(Program::Sternpost, &flag(&one));
    let refused = third.start_refused();
    assert!(refused.contains("is not empty") && refused.contains("log of another member"), "{refused}");
    first.kill();
    second.kill();
    let refused = third.start_refused();
    assert!(refused.contains("is not empty"), "{refused}");

    first.set_flags(&flag(&other));
    let refused = first.start_refused();
    assert!(refused.contains("the log of this data directory is in") && refused.contains("one"), "{refused}");

    // Swapped behind the flag: the log says whose it is.
    let away = folder.path().join("away");
    for (from, to) in [(&one, &away), (&two, &one), (&away, &two)] {
        std::fs::rename(from, to).unwrap();
    }
    first.set_flags(&flag(&one));
    let refused = first.start_refused();
    assert!(refused.contains("belongs to database"), "{refused}");
    for (from, to) in [(&two, &away), (&one, &two), (&away, &one)] {
        std::fs::rename(from, to).unwrap();
    }

    // The disk is not there, or another one is in its place.
    std::fs::rename(&one, &away).unwrap();
    let refused = first.start_refused();
    assert!(refused.contains("is its device there?"), "{refused}");
    std::fs::create_dir(&one).unwrap();
    let refused = first.start_refused();
    assert!(refused.contains("00000001.wal"), "{refused}");
    std::fs::remove_dir_all(&one).unwrap();
    std::fs::rename(&away, &one).unwrap();
    first.start_again();
    second.start_again();
    runtime().block_on(async {
        assert_eq!((count(&first).await, count(&second).await), (1, 1));
    });

    // A log that is in the data directory is not left there in silence.
    let mut inside = Server::start(Program::Sternpost, &[]);
    runtime().block_on(put(&inside, 1));
    inside.stop();
    inside.set_flags(&flag(&other));
    let refused = inside.start_refused();
    assert!(refused.contains("put a symbolic link to it in its place"), "{refused}");
    // As the message says.
    let wal = inside.data_dir().join("wal");
    let _ = std::fs::remove_dir_all(&other);
    std::fs::rename(&wal, &other).unwrap();
    std::os::unix::fs::symlink(other.canonicalize().unwrap(), &wal).unwrap();
    inside.start_again();
    runtime().block_on(async { assert_eq!(count(&inside).await, 1) });
}

/// Members of a group, one of which comes late and fetches the whole state, and one of which is so far behind that it fetches it in the place of its own.
#[test]
fn a_group_with_its_logs_elsewhere() {
    let folder = tempfile::tempdir().unwrap();
    let log = |number: usize| folder.path().join(format!("log{number}"));
    let options = |number: usize| {
        let mut options = flag(&log(number));
        options.extend(["--wal-retain-bytes=1".to_owned(), "--memtable-bytes=1".to_owned()]);
        options
    };
    runtime().block_on(async {
        let number = std::cell::Cell::new(0);
        let mut cluster = Cluster::start_with(3, |member| {
            member.options = options(number.get());
            number.set(number.get() + 1);
        });
        let leader = cluster.leader().await;
        let behind = (leader + 1) % 3;
        cluster.members[leader].put("a", "1").await.unwrap();
        cluster.members[behind].end(Signal::KILL);
        for number in 0..300 {
            let value = "v".repeat(1_000);
            until("a put", async || cluster.members[leader].put(&format!("k{number}"), &value).await.ok())
                .await;
        }
        cluster.start_member(behind);
        cluster.agree().await;
        let client = &mut sternpost_server::wire::etcdserverpb::cluster_client::ClusterClient::new(
            cluster.members[leader].channel(),
        );
        let new = cluster.new_member(&[]);
        cluster.members[new].options = options(new);
        cluster.name(new);
        let add = sternpost_server::wire::etcdserverpb::MemberAddRequest {
            peer_ur_ls: vec![cluster.members[new].peer_url()],
            is_learner: false,
        };
        client.member_add(add).await.unwrap();
        cluster.join(new);
        cluster.agree().await;
        for number in 0..4 {
            assert!(segments(&log(number)) > 0, "member {number}");
            assert!(cluster.members[number].folder.join("wal").is_symlink(), "member {number}");
            cluster.members[number].end(Signal::KILL);
        }
        for number in 0..4 {
            cluster.start_member(number);
        }
        cluster.agree().await;
    });
}
