//! `-w protobuf`: the bytes that etcdctl writes, which a file of lines cannot hold.
//!
//! Both programs ask the same server what changes nothing, so their bytes are equal. What changes something has another revision for
//! each of them, and is decoded.
use crate::cluster::{Cluster, Server, peer};
use crate::is_on;
use prost::Message;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use sternpost_server::wire::etcdserverpb::{
    DeleteRangeResponse, LeaseGrantResponse, LeaseKeepAliveResponse, LeaseLeasesResponse,
    LeaseRevokeResponse, LeaseTimeToLiveResponse, MemberUpdateResponse, PutResponse, RangeResponse,
    TxnResponse, WatchResponse,
};

/// Answers of other than one message have no such form.
const NO_FORM: &str = "Error: protobuf not supported as output format\n";

/// Command lines that change nothing; the last word may hold lines of standard input.
const QUESTIONS: [(&[&str], &str); 15] = [
    (&["get", "a"], ""),
    (&["get", "", "--prefix", "--keys-only", "--limit=1"], ""),
    (&["get", "nothing"], ""),
    (&["get", "a", "--hex"], ""),
    (&["del", "nothing"], ""),
    (&["txn"], "value(\"a\") = \"1\"\n\nget a\nget b\n\nget c\n\n"),
    (&["member", "list"], ""),
    (&["alarm", "list"], ""),
    (&["auth", "status"], ""),
    (&["user", "list"], ""),
    (&["user", "get", "u"], ""),
    (&["role", "list"], ""),
    (&["role", "get", "r"], ""),
    (&["endpoint", "status"], ""),
    (&["endpoint", "hashkv"], ""),
];

fn command(program: &Path, cluster: &Cluster, arguments: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.env_clear().arg(format!("--endpoints=127.0.0.1:{}", cluster.members[0].client_port));
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn run(program: &Path, cluster: &Cluster, arguments: &[&str], input: &str) -> Output {
    let mut child = command(program, cluster, arguments).spawn().expect("it starts");
    child.stdin.take().expect("piped").write_all(input.as_bytes()).expect("it reads");
    child.wait_with_output().expect("it ends")
}

/// What `sternctl -w protobuf` says, as a message of this type.
fn said<M: Message + Default>(cluster: &Cluster, arguments: &[&str]) -> M {
    let sternctl = Path::new(env!("CARGO_BIN_EXE_sternctl"));
    let output = run(sternctl, cluster, &[arguments, &["-w", "protobuf"]].concat(), "");
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    M::decode(output.stdout.as_slice()).unwrap_or_else(|error| panic!("{arguments:?}: {error}"))
}

/// What a watch of key `a` from its first revision writes of both of its versions; the watch is killed then.
fn watched(program: &Path, cluster: &Cluster) -> Vec<u8> {
    let mut child =
        command(program, cluster, &["watch", "a", "--rev=2", "-w", "protobuf"]).spawn().expect("it starts");
    let out = child.stdout.as_mut().expect("piped");
    let mut bytes = Vec::new();
    // A message may come in pieces: its first byte is that of a line's end.
    while !WatchResponse::decode(bytes.as_slice()).is_ok_and(|message| message.events.len() == 2) {
        let mut piece = [0; 1024];
        let count = out.read(&mut piece).expect("it writes");
        assert!(count > 0, "it ended behind {bytes:?}");
        bytes.extend_from_slice(&piece[..count]);
    }
    child.kill().expect("it runs");
    child.wait().expect("it ends");
    bytes
}

#[test]
fn messages_are_whole_and_etcdctls_byte_for_byte() {
    let cluster = Cluster::start(Server::Sternpost, 1, &[]);
    let sternctl = Path::new(env!("CARGO_BIN_EXE_sternctl"));

    let put: PutResponse = said(&cluster, &["put", "a", "1"]);
    assert_eq!(put.header.expect("a header").revision, 2);
    let put: PutResponse = said(&cluster, &["put", "a", "1", "--prev-kv"]);
    assert_eq!(put.prev_kv.expect("it was there").value, b"1".as_slice());
    said::<PutResponse>(&cluster, &["put", "b", "2"]);
    said::<PutResponse>(&cluster, &["put", "c", "3"]);
    assert_eq!(said::<DeleteRangeResponse>(&cluster, &["del", "c"]).deleted, 1);
    let kvs = said::<RangeResponse>(&cluster, &["get", "", "--prefix"]).kvs;
    assert_eq!(kvs.iter().map(|kv| kv.key.as_ref()).collect::<Vec<_>>(), [b"a", b"b"]);
    let members: MemberUpdateResponse = said(
        &cluster,
        &[
            "member",
            "update",
            &format!("{:x}", cluster.members[0].id),
            &format!("--peer-urls=http://127.0.0.1:{}", cluster.members[0].peer_port),
        ],
    );
    assert_eq!(members.members.len(), 1);
    for arguments in [
        &["user", "add", "u:secret"][..],
        &["role", "add", "r"],
        &["role", "grant-permission", "r", "readwrite", "a", "c"],
        &["user", "grant-role", "u", "r"],
    ] {
        // A header is the first field of every answer.
        assert!(said::<PutResponse>(&cluster, arguments).header.is_some(), "{arguments:?}");
    }

    // etcdctl fails with all of these: it prints structures of its own.
    let lease = said::<LeaseGrantResponse>(&cluster, &["lease", "grant", "1000"]);
    assert_eq!((lease.ttl, lease.id != 0), (1000, true));
    let id = format!("{:x}", lease.id);
    let ttl = said::<LeaseTimeToLiveResponse>(&cluster, &["lease", "timetolive", &id]);
    assert_eq!((ttl.id, ttl.granted_ttl), (lease.id, 1000));
    let kept = said::<LeaseKeepAliveResponse>(&cluster, &["lease", "keep-alive", "--once", &id]);
    assert_eq!((kept.id, kept.ttl), (lease.id, 1000));
    assert_eq!(said::<LeaseLeasesResponse>(&cluster, &["lease", "list"]).leases.len(), 1);
    assert!(said::<LeaseRevokeResponse>(&cluster, &["lease", "revoke", &id]).header.is_some());

    watched(sternctl, &cluster);
    let txn = run(sternctl, &cluster, &["txn", "-w", "protobuf"], QUESTIONS[5].1);
    let txn = TxnResponse::decode(txn.stdout.as_slice()).expect("a message");
    assert!(txn.succeeded && txn.responses.len() == 2, "{txn:?}");
    for what in ["status", "health", "hashkv"] {
        let output = run(sternctl, &cluster, &["endpoint", what, "-w", "protobuf"], "");
        assert_eq!((output.status.code(), output.stdout.len()), (Some(4), 0), "{what}");
        assert_eq!(String::from_utf8_lossy(&output.stderr), NO_FORM, "{what}");
    }

    let Some(etcdctl) = peer("etcdctl") else {
        assert!(!is_on("STERNPOST_REQUIRE_PEERS"), "no etcdctl: benches/peers/build.sh");
        eprintln!("skipped: etcdctl (benches/peers/build.sh builds it)");
        return;
    };
    for (arguments, input) in QUESTIONS {
        let arguments = [arguments, &["-w", "protobuf"]].concat();
        let [theirs, ours] = [&etcdctl, sternctl].map(|program| run(program, &cluster, &arguments, input));
        assert_eq!(ours.status.code(), theirs.status.code(), "{arguments:?}");
        assert_eq!(ours.stdout, theirs.stdout, "{arguments:?}");
        assert_eq!(ours.stdout.is_empty(), !ours.status.success(), "{arguments:?}");
    }
    assert_eq!(watched(sternctl, &cluster), watched(&etcdctl, &cluster));
}
