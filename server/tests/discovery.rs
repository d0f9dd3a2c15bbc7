//! Clusters whose first members find each other: by a discovery service, and by SRV records of a name server of this test.
mod support;

use rustix::process::Signal;
use std::net::UdpSocket;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use sternpost_server::wire::etcdserverpb::cluster_client::ClusterClient;
use sternpost_server::wire::etcdserverpb::{MemberListRequest, PutRequest, kv_client::KvClient};
use support::cluster::{Cluster, Member, runtime, until};
use support::names::{DOMAIN, Space, answer, serve_names};
use support::process::{Program, Server, required};
use tonic::transport::Endpoint;

async fn names(member: &Member) -> Vec<String> {
    let request = MemberListRequest { linearizable: true };
    let answer = ClusterClient::new(member.channel()).member_list(request).await.unwrap().into_inner();
    let mut names: Vec<String> = answer.members.into_iter().map(|member| member.name).collect();
    names.sort();
    names
}

/// They have found each other, have said their names, and hold the same.
async fn is_one_cluster(cluster: &Cluster, count: usize) {
    cluster.leader().await;
    until("a put", async || cluster.members[0].put("key", "value").await.ok()).await;
    cluster.agree().await;
    let expected: Vec<String> = (0..count).map(|number| format!("m{number}")).collect();
    until("their names", async || (names(&cluster.members[0]).await == expected).then_some(())).await;
}

fn flags_of_registry(endpoint: &str, token: &str) -> Vec<String> {
    vec![format!("--discovery-endpoints={endpoint}"), format!("--discovery-token={token}")]
}

async fn write_size(service: &Member, token: &str, size: &str) {
    let key = format!("/_etcd/registry/{token}/_config/size");
    service.put(&key, size).await.unwrap();
}

/// Three members of one token, at a service that is one of ours; what is left over finds the cluster full, and a start with data asks nobody.
#[test]
fn members_that_register_with_a_service_are_one_cluster() {
    let mut service = Cluster::start(1, &[]);
    runtime().block_on(async {
        service.leader().await;
        let endpoint = service.members[0].client_url().replace("http://", "");
        // Nobody has said how many there will be.
        let mut lost =
            Cluster::start_with(1, |member| member.discovery = Some(flags_of_registry(&endpoint, "none")));
        assert_eq!(lost.members[0].exit_code().await, Some(1));
        assert!(lost.members[0].has_said("failed to join discovery cluster (discovery: size key not found)"));
        write_size(&service.members[0], "bad", "three").await;
        let mut lost =
            Cluster::start_with(1, |member| member.discovery = Some(flags_of_registry(&endpoint, "bad")));
        assert_eq!(lost.members[0].exit_code().await, Some(1));
        assert!(lost.members[0].has_said("failed to join discovery cluster (discovery: size key is bad)"));

        write_size(&service.members[0], "tok", "3").await;
        let mut cluster =
            Cluster::start_with(3, |member| member.discovery = Some(flags_of_registry(&endpoint, "tok")));
        is_one_cluster(&cluster, 3).await;
        let mut late =
            Cluster::start_with(1, |member| member.discovery = Some(flags_of_registry(&endpoint, "tok")));
        assert_eq!(late.members[0].exit_code().await, Some(1));
        assert!(late.members[0].has_said("failed to join discovery cluster (discovery: cluster is full)"));

        service.members[0].end(Signal::KILL);
        (0..3).for_each(|number| cluster.members[number].end(Signal::KILL));
        (0..3).for_each(|number| cluster.start_member(number));
        is_one_cluster(&cluster, 3).await;
        assert!(cluster.members[0].has_said("discovery token is ignored since cluster already initialized"));
    });
}

/// A member waits for its service, as it often has to where everything starts at once; and the service may be etcd.
#[test]
fn members_wait_for_a_service_that_comes_later() {
    if let Err(missing) = Program::Etcd.binary() {
        assert!(!required("STERNPOST_REQUIRE_PEERS"), "{missing}");
        eprintln!("skipped: {missing}");
        return;
    }
    let mut service = Server::start(Program::Etcd, &[]);
    runtime().block_on(async {
        let channel = Endpoint::from_shared(format!("http://{}", service.address())).unwrap().connect_lazy();
        let key = "/_etcd/registry/tok/_config/size";
        let request = PutRequest { key: key.into(), value: "3".into(), ..Default::default() };
        KvClient::new(channel).put(request).await.unwrap();
    });
    service.kill();
    let endpoint = service.address();
    let cluster =
        Cluster::start_with(3, |member| member.discovery = Some(flags_of_registry(&endpoint, "tok")));
    runtime().block_on(cluster.members[0].says("retry connecting to discovery service"));
    service.start_again();
    runtime().block_on(is_one_cluster(&cluster, 3));
}

/// Each knows its own address and the domain; the name server comes up after them, and is gone when they start again.
#[test]
fn members_that_dns_names_are_one_cluster() {
    let Some(space) = Space::new("spdns", 77) else {
        eprintln!("skipped: no network namespace can be made here (root and ip are needed)");
        return;
    };
    let (inside, name) = (space.inside.clone(), space.name.clone());
    let mut cluster = Cluster::start_with(3, |member| {
        (member.address, member.space) = (inside.clone(), Some(name.clone()));
        member.discovery =
            Some(vec![format!("--discovery-srv={DOMAIN}"), "--discovery-srv-name=blue".into()]);
    });
    runtime().block_on(cluster.members[0].says("failed to resolve during SRV discovery"));
    let ports: Vec<u16> = cluster.members.iter().map(|member| member.peer_address().1).collect();
    let socket = UdpSocket::bind((space.host.as_str(), 53)).unwrap();
    let is_over = Arc::new(AtomicBool::new(false));
    let (over, address) = (Arc::clone(&is_over), space.inside.clone());
    let server = std::thread::spawn(move || {
        serve_names(&socket, &over, |query| answer(query, "_etcd-server-blue._tcp", &address, &ports));
    });
    runtime().block_on(is_one_cluster(&cluster, 3));

    // Somebody whom the records do not name.
    let mut stranger = Cluster::start_with(1, |member| {
        (member.address, member.space) = (inside.clone(), Some(name.clone()));
        member.discovery =
            Some(vec![format!("--discovery-srv={DOMAIN}"), "--discovery-srv-name=blue".into()]);
    });
    assert_eq!(runtime().block_on(stranger.members[0].exit_code()), Some(1));
    assert!(stranger.members[0].has_said_all(&["cannot find local etcd member", "m0", "in SRV records"]));

    // What is started with data asks nobody who the members are.
    for number in 0..3 {
        cluster.members[number].end(Signal::TERM);
    }
    for number in 0..3 {
        cluster.start_member(number);
    }
    runtime().block_on(is_one_cluster(&cluster, 3));
    is_over.store(true, Ordering::Relaxed);
    server.join().unwrap();
}
