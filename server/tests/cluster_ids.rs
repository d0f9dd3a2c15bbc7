//! A cluster of three real etcds on free ports has the ids and the member table that we compute from the same flags; and what is wrong with
//! `--initial-cluster` is said by both with the same words.
//!
//! Without etcd the parts that need it say so and pass; `STERNPOST_REQUIRE_PEERS=1` makes that a failure.
mod support;

use std::collections::BTreeMap;
use std::process::{Child, Command, Stdio};

use sternpost_server::apply::GenesisState;
use sternpost_server::identity;
use sternpost_server::wire::etcdserverpb::cluster_client::ClusterClient;
use sternpost_server::wire::etcdserverpb::{Member, MemberListRequest};
use support::process::{Program, Server, free_port, required};

/// One process of a cluster, killed when dropped.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// True if etcd is there; says so if not.
fn has_etcd() -> bool {
    match Program::Etcd.binary() {
        Ok(_) => true,
        Err(missing) => {
            assert!(!required("STERNPOST_REQUIRE_PEERS"), "{missing}");
            eprintln!("skipped: {missing}");
            false
        }
    }
}

#[tokio::test]
async fn three_etcds_have_the_ids_that_we_compute() {
    if !has_etcd() {
        return;
    }
    let ports: Vec<u16> = (0..6).map(|_| free_port()).collect();
    let url = |port: u16| format!("http://127.0.0.1:{port}");
    // Names and ports in different orders, so that nothing fits by accident of sorting.
    let initial_cluster: Vec<(String, Vec<String>)> = [("b", ports[2]), ("c", ports[0]), ("a", ports[1])]
        .map(|(name, port)| (name.to_owned(), vec![url(port)]))
        .into();
    let text: Vec<String> =
        initial_cluster.iter().map(|(name, urls)| format!("{name}={}", urls[0])).collect();
    let token = "a token of its own";
    let folder = tempfile::tempdir().unwrap();
    let mut processes = Vec::new();
    for ((name, urls), client_port) in initial_cluster.iter().zip(&ports[3..]) {
        let child = Command::new(Program::Etcd.binary().unwrap())
            .arg(format!("--name={name}"))
            .arg(format!("--data-dir={}", folder.path().join(name).display()))
            .arg(format!("--listen-client-urls={}", url(*client_port)))
            .arg(format!("--advertise-client-urls={}", url(*client_port)))
            .arg(format!("--listen-peer-urls={}", urls[0]))
            .arg(format!("--initial-advertise-peer-urls={}", urls[0]))
            .arg(format!("--initial-cluster={}", text.join(",")))
            .arg(format!("--initial-cluster-token={token}"))
            .env_clear()
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        processes.push(Process(child));
    }
    // Until all three have published their client URLs.
    let mut attempts = 0;
    let (header, theirs) = loop {
        attempts += 1;
        assert!(attempts < 600, "the etcds did not become a cluster");
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        let Ok(mut client) = ClusterClient::connect(url(ports[3])).await else { continue };
        let request = MemberListRequest { linearizable: true };
        let Ok(response) = client.member_list(request).await else { continue };
        let response = response.into_inner();
        if response.members.iter().all(|member| !member.client_ur_ls.is_empty()) {
            break (response.header.unwrap(), response.members);
        }
    };
    let genesis = identity::genesis("b", &initial_cluster, token).unwrap();
    assert_eq!(format!("{:x}", genesis.cluster_id), format!("{:x}", header.cluster_id));
    assert_eq!(format!("{:x}", genesis.member_id), format!("{:x}", header.member_id));
    let ours = GenesisState::decode(&genesis.state).unwrap().members;
    let by_id = |members: Vec<Member>| -> BTreeMap<u64, Member> {
        // What a member publishes once it has started is not in a genesis.
        let without = |member: Member| (member.id, Member { client_ur_ls: Vec::new(), ..member });
        members.into_iter().map(without).collect()
    };
    assert_eq!(by_id(ours), by_id(theirs));
}

/// Runs a program to its end on a new directory; what it wrote to standard error.
fn complaint(program: Program, arguments: &[String]) -> String {
    let folder = tempfile::tempdir().unwrap();
    let output = Command::new(program.binary().unwrap())
        .arg("--data-dir=data")
        .args(arguments)
        .env_clear()
        .current_dir(folder.path())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1), "{program:?} {arguments:?}");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn what_is_wrong_with_the_initial_cluster_is_said_in_etcds_words() {
    let ports: Vec<u16> = (0..2).map(|_| free_port()).collect();
    let (client, peer) = (format!("http://127.0.0.1:{}", ports[0]), format!("http://127.0.0.1:{}", ports[1]));
    let other = "http://127.0.0.1:1";
    let last = "http://127.0.0.1:2";
    // The initial cluster, what is advertised, and the complaint.
    let cases = [
        (
            format!("b={peer}"),
            peer.clone(),
            "couldn't find local name \"a\" in the initial cluster configuration".to_owned(),
        ),
        (
            String::new(),
            peer.clone(),
            "couldn't find local name \"a\" in the initial cluster configuration".to_owned(),
        ),
        (
            format!("a={other}"),
            peer.clone(),
            format!(
                "--initial-cluster has a={other} but missing from --initial-advertise-peer-urls={peer} (resolved urls: \"{peer}\" \
                 != \"{other}\")"
            ),
        ),
        (
            format!("a={peer},a={other}"),
            peer.clone(),
            format!(
                "--initial-cluster has a={other} but missing from --initial-advertise-peer-urls={peer} (len([\"{peer}\"]) != \
                 len([\"{other}\" \"{peer}\"]))"
            ),
        ),
        (
            format!("a={peer}"),
            format!("{peer},{other}"),
            format!(
                "--initial-advertise-peer-urls has {other} but missing from --initial-cluster=a={other},a={peer}"
            ),
        ),
        (
            format!("a={peer},b={last},c={last}"),
            peer.clone(),
            format!("initial cluster a={peer},b={last},c={last} has duplicate url"),
        ),
        (
            format!("a={peer},b"),
            peer.clone(),
            "error setting up initial cluster: URL scheme must be http, https, unix, or unixs: ".to_owned(),
        ),
        (
            format!("a={peer},b=ftp://x:1"),
            peer.clone(),
            "error setting up initial cluster: URL scheme must be http, https, unix, or unixs: ftp://x:1"
                .to_owned(),
        ),
        (
            format!("a={peer},b=http://x"),
            peer.clone(),
            "error setting up initial cluster: URL address does not have the form \"host:port\": http://x"
                .to_owned(),
        ),
    ];
    for (initial_cluster, advertised, expected) in cases {
        let arguments = [
            "--name=a".to_owned(),
            format!("--listen-client-urls={client}"),
            format!("--advertise-client-urls={client}"),
            format!("--listen-peer-urls={peer}"),
            format!("--initial-advertise-peer-urls={advertised}"),
            format!("--initial-cluster={initial_cluster}"),
        ];
        // As JSON writes it.
        let expected = serde_json::to_string(&expected).unwrap();
        let expected = expected.trim_matches('"').trim_end_matches('\\');
        let ours = complaint(Program::Sternpost, &arguments);
        assert!(ours.contains(expected), "--initial-cluster={initial_cluster}: {expected}\n{ours}");
        if has_etcd() {
            let theirs = complaint(Program::Etcd, &arguments);
            assert!(theirs.contains(expected), "--initial-cluster={initial_cluster}: {expected}\n{theirs}");
        }
    }
}

/// Flags about the first members count only for a new directory, in etcd as here.
#[test]
fn a_start_on_data_takes_no_notice_of_the_initial_cluster() {
    let mut programs = vec![Program::Sternpost];
    programs.extend(has_etcd().then_some(Program::Etcd));
    for program in programs {
        let mut server = Server::start(program, &[]);
        server.stop();
        server.set_flags(&[
            "--name=other".to_owned(),
            "--initial-cluster=nobody=http://127.0.0.1:1,somebody=http://127.0.0.1:2".to_owned(),
            "--initial-cluster-state=existing".to_owned(),
            "--initial-cluster-token=other".to_owned(),
        ]);
        server.start_again();
    }
}
