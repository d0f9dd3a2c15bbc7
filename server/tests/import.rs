//! `--import-snapshot`: a server that begins with a snapshot file, as a process.
//!
//! - `STERNPOST_REQUIRE_PEERS=1` makes a missing etcd a failure; without it that part says so and passes.
//! - `STERNPOST_IMPORT_BYTES` is for a campaign: a file of so many bytes, and the memory of the process that imports it.
mod support;

use std::io::{Seek, SeekFrom, Write};
use std::path::Path;
use std::time::Duration;
use sternpost_server::wire::etcdserverpb::kv_client::KvClient;
use sternpost_server::wire::etcdserverpb::lease_client::LeaseClient;
use sternpost_server::wire::etcdserverpb::maintenance_client::MaintenanceClient;
use sternpost_server::wire::etcdserverpb::request_op::Request as Op;
use sternpost_server::wire::etcdserverpb::*;
use support::cluster::{Cluster, runtime, until};
use support::process::{Program, Server, required};
use tonic::transport::{Channel, Endpoint};

/// etcd's greatest number of operations of a transaction.
const TXN_OPERATIONS: usize = 128;
/// What an import may hold in memory, whatever the size of the file.
const MEMORY_MIB_MAX: u64 = 512;

async fn channel(server: &Server) -> Channel {
    let endpoint = Endpoint::from_shared(server.endpoint()).unwrap();
    until("a connection", async || endpoint.connect().await.ok()).await
}

fn key(number: usize) -> String {
    format!("key/{number:08}")
}

/// Keys of so many bytes, each written twice, and a lease.
async fn fill(channel: &Channel, keys: usize, value_bytes: usize) {
    let grant = LeaseGrantRequest { id: 7, ttl: 100_000 };
    LeaseClient::new(channel.clone()).lease_grant(grant).await.unwrap();
    let mut kv = KvClient::new(channel.clone()).max_decoding_message_size(usize::MAX);
    let in_one = TXN_OPERATIONS.min((1 << 20) / value_bytes.max(1)).max(1);
    for round in 0..2_u8 {
        for from in (0..keys).step_by(in_one) {
            let put = |number: usize| {
                let lease = if number.is_multiple_of(10) { 7 } else { 0 };
                // Nothing that could be made smaller.
                let seed = (number as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ u64::from(round);
                let mut value = vec![0; value_bytes];
                sternpost_engine::base::rng::Rng::new(seed).fill(&mut value);
                let put =
                    PutRequest { key: key(number).into(), value: value.into(), lease, ..Default::default() };
                RequestOp { request: Some(Op::RequestPut(put)) }
            };
            let success = (from..(from + in_one).min(keys)).map(put).collect();
            kv.txn(TxnRequest { success, ..Default::default() }).await.unwrap();
        }
    }
}

async fn save(channel: &Channel, path: &Path) {
    let mut maintenance = MaintenanceClient::new(channel.clone());
    let mut pieces = maintenance.snapshot(SnapshotRequest {}).await.unwrap().into_inner();
    let mut file = std::fs::File::create(path).unwrap();
    while let Some(piece) = pieces.message().await.unwrap() {
        file.write_all(&piece.blob).unwrap();
    }
}

/// Revision, HashKV, keys of the lease.
async fn observe(channel: &Channel) -> (i64, u32, usize) {
    let hash = MaintenanceClient::new(channel.clone()).hash_kv(HashKvRequest { revision: 0 }).await.unwrap();
    let hash = hash.into_inner();
    let asked = LeaseTimeToLiveRequest { id: 7, keys: true };
    let lease = LeaseClient::new(channel.clone()).lease_time_to_live(asked).await.unwrap().into_inner();
    (hash.header.unwrap().revision, hash.hash, lease.keys.len())
}

fn importing(file: &Path, more: &[&str]) -> Vec<String> {
    let own = format!("--import-snapshot={}", file.display());
    [own].into_iter().chain(more.iter().map(ToString::to_string)).collect()
}

/// A file of a server of `program`, and what that server has.
async fn file_of(program: Program, file: &Path, keys: usize) -> (i64, u32, usize) {
    let server = Server::start(program, &[]);
    let client = channel(&server).await;
    fill(&client, keys, 100).await;
    save(&client, file).await;
    observe(&client).await
}

#[test]
fn a_new_server_begins_with_a_file_and_one_with_data_refuses_it() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("a.db");
    let programs = match Program::Etcd.binary() {
        Ok(_) => vec![Program::Sternpost, Program::Etcd],
        Err(missing) => {
            assert!(!required("STERNPOST_REQUIRE_PEERS"), "{missing}");
            eprintln!("skipped: {missing}");
            vec![Program::Sternpost]
        }
    };
    runtime().block_on(async {
        for program in programs {
            let first = file_of(program, &file, 2_000).await;
            let mut same =
                Server::not_started(Program::Sternpost, &importing(&file, &["--import-bump-revision=0"]));
            same.start_again();
            assert_eq!(observe(&channel(&same).await).await, first, "{program:?}");
            // With data the option is refused, and nothing happens to the data; without it that goes on.
            same.stop();
            let refused = same.start_refused();
            assert!(refused.contains("holds data, so --import-snapshot"), "{refused}");
            same.set_flags(&[]);
            same.start_again();
            assert_eq!(observe(&channel(&same).await).await, first, "{program:?}");

            // As a rule the revision goes on, and what clients have seen is compacted.
            let bumped = Server::start(Program::Sternpost, &importing(&file, &[]));
            let client = channel(&bumped).await;
            let (revision, _, leased) = observe(&client).await;
            assert_eq!((revision, leased), (first.0 + 1_000_000_000, first.2));
            let mut kv = KvClient::new(client);
            let range = |revision| RangeRequest { key: key(3).into(), revision, ..Default::default() };
            assert_eq!(kv.range(range(0)).await.unwrap().into_inner().kvs.len(), 1);
            let error = kv.range(range(first.0)).await.unwrap_err();
            assert_eq!(error.message(), "etcdserver: mvcc: required revision has been compacted");
            let put = PutRequest { key: "after".into(), ..Default::default() };
            let answer = kv.put(put).await.unwrap().into_inner();
            assert_eq!(answer.header.unwrap().revision, revision + 1);
        }
    });
}

/// Killed at any line of its log, it begins anew and ends with the whole file; with a log in another place too, and with certificates of its own, which lie in
/// the data directory.
#[test]
fn an_import_that_is_cut_short_is_begun_anew() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("a.db");
    let first = runtime().block_on(file_of(Program::Sternpost, &file, 5_000));
    let mut cut_short = 0;
    for lines in 0..40 {
        let log = folder.path().join(format!("log{lines}"));
        let mut flags = importing(&file, &["--import-bump-revision=0", "--peer-auto-tls"]);
        if lines % 2 == 0 {
            flags.push(format!("--wal-dir={}", log.display()));
        }
        let mut server = Server::not_started(Program::Sternpost, &flags);
        server.start_and_kill(lines);
        cut_short += u32::from(server.data_dir().join("import.part").exists());
        let is_whole =
            server.data_dir().join("super").exists() && !server.data_dir().join("import.part").exists();
        if is_whole {
            server.set_flags(&["--peer-auto-tls".to_owned()]);
        }
        server.start_again();
        let found = runtime().block_on(async { observe(&channel(&server).await).await });
        assert_eq!(found, first, "killed behind {lines} lines");
    }
    assert!(cut_short >= 3, "{cut_short} of them were in the middle");
}

#[test]
fn what_cannot_be_imported_is_said_and_nothing_is_left() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("a.db");
    runtime().block_on(async {
        let first = file_of(Program::Sternpost, &file, 500).await;
        let mut server = Server::not_started(Program::Sternpost, &[]);
        for (flags, text) in [
            (importing(&folder.path().join("missing.db"), &[]), "No such file"),
            (importing(folder.path(), &[]), "it is no file"),
            (importing(&file, &["--initial-cluster-state=existing"]), "is for a new cluster"),
            (
                importing(&file, &["--import-bump-revision=9223372036854775807"]),
                "leads beyond what a revision can be",
            ),
        ] {
            server.set_flags(&flags);
            let refused = server.start_refused();
            assert!(refused.contains(text), "{refused}");
            assert!(!server.data_dir().join("super").exists(), "{text}");
        }
        // One bit.
        let mut whole = std::fs::OpenOptions::new().read(true).write(true).open(&file).unwrap();
        whole.seek(SeekFrom::Start(9_000)).unwrap();
        whole.write_all(&[0xa5]).unwrap();
        server.set_flags(&importing(&file, &[]));
        let refused = server.start_refused();
        assert!(refused.contains("expected sha256 ["), "{refused}");
        // The same place is good for a good file.
        let again = file_of(Program::Sternpost, &file, 500).await;
        assert_eq!(again.0, first.0);
        server.set_flags(&importing(&file, &["--import-bump-revision=0"]));
        server.start_again();
        assert_eq!(observe(&channel(&server).await).await, again);
    });
}

/// Three members, each with the same file, are one cluster.
#[test]
fn members_that_import_one_file_are_a_cluster() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("a.db");
    runtime().block_on(async {
        let first = file_of(Program::Sternpost, &file, 500).await;
        let flags = importing(&file, &[]);
        let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
        let cluster = Cluster::start(3, &flags);
        let leader = cluster.leader().await;
        let revision = cluster.members[leader].put("after", "b").await.unwrap();
        assert_eq!(revision, first.0 + 1_000_000_001);
        cluster.agree().await;
    });
}

/// The memory of a server that imports does not follow the file. 64 MiB in every run; the campaign has its own size.
#[test]
fn memory_stays_within_its_bound() {
    let bytes = std::env::var("STERNPOST_IMPORT_BYTES").ok().and_then(|bytes| bytes.parse().ok());
    let bytes: usize = bytes.unwrap_or(64 << 20);
    let value_bytes = 4_000;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("a.db");
    runtime().block_on(async {
        let first = {
            let server = Server::start(Program::Sternpost, &["--quota-backend-bytes=-1".to_owned()]);
            let client = channel(&server).await;
            fill(&client, bytes / value_bytes / 2, value_bytes).await;
            save(&client, &file).await;
            observe(&client).await
        };
        let length = std::fs::metadata(&file).unwrap().len();
        let mut server =
            Server::not_started(Program::Sternpost, &importing(&file, &["--import-bump-revision=0"]));
        // A tenth of the file between two lines, on a busy machine.
        server.start_again_within(Duration::from_mins(10));
        let memory = server.resident_mib_max();
        eprintln!("a file of {length} bytes: {memory} MiB of memory at most");
        assert!(length as usize >= bytes, "{length}");
        assert!(memory < MEMORY_MIB_MAX, "{memory} MiB for a file of {length} bytes");
        for tenth in ["##########", "#####....."] {
            assert!(server.has_logged(tenth), "a line with its progress: {tenth}");
        }
        assert_eq!(observe(&channel(&server).await).await, first);
    });
}
