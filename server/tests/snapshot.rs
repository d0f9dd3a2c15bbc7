//! Snapshots between real servers: ours and the real etcd, both ways and back, files that are damaged, a server that is being written.
//!
//! - `STERNPOST_REQUIRE_PEERS=1` makes a missing etcd or etcdutl a failure; without it those tests say so and pass.
mod support;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use sternpost_engine::base::rng::Rng;
use sternpost_replication::Genesis;
use sternpost_server::etcd_snapshot::import::{ImportOptions, ImportReport, import};
use sternpost_server::etcd_snapshot::status::status;
use sternpost_server::identity;
use sternpost_server::wire::authpb::Permission;
use sternpost_server::wire::etcdserverpb::auth_client::AuthClient;
use sternpost_server::wire::etcdserverpb::kv_client::KvClient;
use sternpost_server::wire::etcdserverpb::lease_client::LeaseClient;
use sternpost_server::wire::etcdserverpb::maintenance_client::MaintenanceClient;
use sternpost_server::wire::etcdserverpb::request_op::Request as Op;
use sternpost_server::wire::etcdserverpb::*;
use support::cluster::{Cluster, Member, runtime, until};
use support::command::run;
use support::process::{Program, Server, peer, required};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request};

const KEYS: usize = 100_000;
/// etcd's greatest number of operations of a transaction.
const TXN_OPERATIONS: usize = 128;
const PASSWORD: &str = "a-passw0rd";

async fn channel(server: &Server) -> Channel {
    let endpoint = Endpoint::from_shared(server.endpoint()).unwrap();
    until("a connection", async || endpoint.connect().await.ok()).await
}

fn with<M>(message: M, token: &str) -> Request<M> {
    let mut request = Request::new(message);
    if !token.is_empty() {
        request.metadata_mut().insert("token", token.parse().unwrap());
    }
    request
}

async fn log_in(channel: &Channel) -> String {
    let request = AuthenticateRequest { name: "root".into(), password: PASSWORD.into() };
    let mut auth = AuthClient::new(channel.clone());
    until("a token", async || auth.clone().authenticate(request.clone()).await.ok()).await;
    auth.authenticate(request).await.unwrap().into_inner().token
}

fn put(key: String, value: Vec<u8>, lease: i64) -> RequestOp {
    let put = PutRequest { key: key.into(), value: value.into(), lease, ..Default::default() };
    RequestOp { request: Some(Op::RequestPut(put)) }
}

fn delete(key: String) -> RequestOp {
    let delete = DeleteRangeRequest { key: key.into(), ..Default::default() };
    RequestOp { request: Some(Op::RequestDeleteRange(delete)) }
}

async fn txns(channel: &Channel, operations: Vec<RequestOp>) {
    let mut kv = KvClient::new(channel.clone());
    let mut operations = operations.into_iter().peekable();
    while operations.peek().is_some() {
        let success = operations.by_ref().take(TXN_OPERATIONS).collect();
        kv.txn(TxnRequest { success, ..Default::default() }).await.unwrap();
    }
}

fn key(number: usize) -> String {
    format!("key/{number:08}")
}

/// Keys, some overwritten, some deleted, some of those back again; leases; a compaction in the middle of it; users and roles, and
/// authentication on at the end.
async fn fill(channel: &Channel, keys: usize) {
    let mut rng = Rng::new(11);
    let mut value = move || (0..rng.below(120)).map(|_| rng.below(256) as u8).collect::<Vec<u8>>();
    let mut lease = LeaseClient::new(channel.clone());
    for id in 1..=50 {
        lease.lease_grant(LeaseGrantRequest { id, ttl: 100_000 + id }).await.unwrap();
    }
    let leased = |number: usize| if number.is_multiple_of(100) { 1 + (number / 100 % 40) as i64 } else { 0 };
    txns(channel, (0..keys).map(|number| put(key(number), value(), leased(number))).collect()).await;
    txns(channel, (0..keys).step_by(3).map(|number| put(key(number), value(), 0)).collect()).await;
    txns(channel, (0..keys).step_by(7).map(|number| delete(key(number))).collect()).await;
    let mut kv = KvClient::new(channel.clone());
    let middle = kv.put(PutRequest { key: "middle".into(), ..Default::default() }).await.unwrap();
    let revision = middle.into_inner().header.unwrap().revision - 5;
    kv.compact(CompactionRequest { revision, physical: true }).await.unwrap();
    txns(channel, (0..keys).step_by(14).map(|number| put(key(number), value(), 50)).collect()).await;
    txns(channel, (0..keys).step_by(5).map(|number| put(key(number), value(), 0)).collect()).await;
    txns(channel, vec![put("long".into(), vec![7; 300_000], 0)]).await;
    txns(channel, (0..keys).step_by(11).map(|number| delete(key(number))).collect()).await;
    lease.lease_revoke(LeaseRevokeRequest { id: 3 }).await.unwrap();
    let mut auth = AuthClient::new(channel.clone());
    for name in ["root", "ann"] {
        let add = AuthUserAddRequest { name: name.into(), password: PASSWORD.into(), ..Default::default() };
        auth.user_add(add).await.unwrap();
        auth.role_add(AuthRoleAddRequest { name: name.into() }).await.unwrap();
        auth.user_grant_role(AuthUserGrantRoleRequest { user: name.into(), role: name.into() })
            .await
            .unwrap();
    }
    let perm = Permission { perm_type: 2, key: "key/".into(), range_end: "key0".into() };
    auth.role_grant_permission(AuthRoleGrantPermissionRequest { name: "ann".into(), perm: Some(perm) })
        .await
        .unwrap();
    auth.auth_enable(AuthEnableRequest {}).await.unwrap();
}

/// What must be the same on both sides.
#[derive(PartialEq, Debug)]
struct Observed {
    revision: i64,
    hash: (u32, i64, i64),
    /// HashKV at an older revision.
    older_hash: (u32, i64, i64),
    /// Granted TTL and keys of each lease.
    leases: BTreeMap<i64, (i64, Vec<Vec<u8>>)>,
    auth_revision: u64,
    users: Vec<String>,
    ann: Vec<Permission>,
    /// Some keys, at some revisions of the history.
    read: Vec<RangeResponse>,
}

async fn observe(channel: &Channel) -> Observed {
    let token = &log_in(channel).await;
    let mut maintenance = MaintenanceClient::new(channel.clone());
    let mut hash = async |revision| {
        let answer = maintenance.hash_kv(with(HashKvRequest { revision }, token)).await.unwrap().into_inner();
        let header = answer.header.unwrap();
        (header.revision, (answer.hash, answer.compact_revision, answer.hash_revision))
    };
    let (revision, newest) = hash(0).await;
    let compacted = newest.1;
    let middle = compacted + (revision - compacted) / 2;
    let (_, older_hash) = hash(middle).await;
    let mut lease = LeaseClient::new(channel.clone());
    let mut leases = BTreeMap::new();
    let listed = lease.lease_leases(with(LeaseLeasesRequest {}, token)).await.unwrap().into_inner();
    for LeaseStatus { id } in listed.leases {
        let asked = LeaseTimeToLiveRequest { id, keys: true };
        let found = lease.lease_time_to_live(with(asked, token)).await.unwrap().into_inner();
        let mut keys: Vec<_> = found.keys.iter().map(|key| key.to_vec()).collect();
        keys.sort();
        leases.insert(id, (found.granted_ttl, keys));
    }
    let mut auth = AuthClient::new(channel.clone());
    let users = auth.user_list(with(AuthUserListRequest {}, token)).await.unwrap().into_inner().users;
    let ann = auth.role_get(with(AuthRoleGetRequest { role: "ann".into() }, token)).await.unwrap();
    let auth_status = auth.auth_status(with(AuthStatusRequest {}, token)).await.unwrap().into_inner();
    let mut kv = KvClient::new(channel.clone());
    let mut read = Vec::new();
    for revision in [compacted, compacted + 1, middle, revision] {
        for number in (0..KEYS).step_by(1_777) {
            let range = RangeRequest { key: key(number).into(), revision, ..Default::default() };
            let mut found = kv.range(with(range, token)).await.unwrap().into_inner();
            found.header = None;
            read.push(found);
        }
    }
    Observed {
        revision,
        hash: newest,
        older_hash,
        leases,
        auth_revision: auth_status.auth_revision,
        users,
        ann: ann.into_inner().perm,
        read,
    }
}

/// What `etcdctl snapshot save` does; the version that comes with it.
async fn save(channel: &Channel, token: &str, path: &Path) -> String {
    let mut maintenance = MaintenanceClient::new(channel.clone());
    let mut pieces = maintenance.snapshot(with(SnapshotRequest {}, token)).await.unwrap().into_inner();
    let mut file = File::create(path).unwrap();
    let (mut version, mut last, mut left) = (String::new(), 0, None);
    while let Some(piece) = pieces.message().await.unwrap() {
        let bytes = piece.blob.len() as u64;
        // The SHA-256 is not counted.
        if let Some(left) = left.filter(|left| *left > 0) {
            assert_eq!(piece.remaining_bytes + bytes, left, "remaining_bytes");
        }
        left = Some(piece.remaining_bytes);
        last = bytes;
        file.write_all(&piece.blob).unwrap();
        version = piece.version;
    }
    assert_eq!((left, last), (Some(0), 32));
    version
}

fn genesis(peer_url: &str) -> Genesis {
    identity::genesis("default", &[("default".into(), vec![peer_url.into()])], "etcd-cluster").unwrap()
}

fn restore_ours(file: &Path, data_dir: &Path, genesis: Genesis, bump_revision: u64) -> ImportReport {
    let options = ImportOptions { genesis, skip_hash_check: false, bump_revision };
    import(&File::open(file).unwrap(), data_dir, &options, &mut |_, _, _| {}).unwrap()
}

/// A server of `program` that goes on from a file, with the same revisions.
fn restored(program: Program, file: &Path) -> Server {
    Server::start_prepared(program, |data_dir, peer_url| match program {
        Program::Etcd => {
            let mut command = Command::new(peer("etcdutl").unwrap());
            command.args(["snapshot", "restore"]).arg(file).arg("--data-dir").arg(data_dir);
            command.arg(format!("--initial-advertise-peer-urls={peer_url}"));
            command.arg(format!("--initial-cluster=default={peer_url}"));
            run(&mut command, "").well();
        }
        _ => drop(restore_ours(file, data_dir, genesis(peer_url), 0)),
    })
}

/// The state of the first of these goes by a file to the next one, and so on; nobody may see a difference.
fn goes_around(programs: &[Program], keys: usize) {
    if let Err(missing) = peer("etcd").and(peer("etcdutl"))
        && programs.contains(&Program::Etcd)
    {
        assert!(!required("STERNPOST_REQUIRE_PEERS"), "{missing}");
        eprintln!("skipped: {missing}");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    runtime().block_on(async {
        let mut server = Server::start(programs[0], &[]);
        let mut client = channel(&server).await;
        fill(&client, keys).await;
        let first = observe(&client).await;
        assert_eq!(first.leases.len(), 49);
        assert!(first.hash.1 > 50 && first.revision > first.hash.1 + 20, "{:?}", first.hash);
        for (number, program) in programs.iter().enumerate().skip(1) {
            let file = folder.path().join(format!("{number}.db"));
            let token = log_in(&client).await;
            assert_eq!(save(&client, &token, &file).await, "3.7.0");
            drop(server);
            if let Ok(etcdutl) = peer("etcdutl") {
                let arguments = ["snapshot", "status", "-w", "json"];
                let told = run(Command::new(etcdutl).args(arguments).arg(&file), "").well();
                let ours = status(&File::open(&file).unwrap(), &mut |_, _| {}).unwrap();
                assert_eq!(ours.revision, first.revision);
                let ours = serde_json::json!({
                    "hash": ours.hash, "revision": ours.revision, "totalKey": ours.total_key,
                    "totalSize": ours.total_size, "version": ours.version,
                });
                assert_eq!(serde_json::from_str::<serde_json::Value>(&told).unwrap(), ours);
            }
            server = restored(*program, &file);
            client = channel(&server).await;
            let found = observe(&client).await;
            assert!(found == first, "{program:?}, {number}:\n{found:#?}\n{first:#?}");
        }
        // It lives: the next revision is the next one.
        let token = log_in(&client).await;
        let put = PutRequest { key: "after".into(), ..Default::default() };
        let answer = KvClient::new(client.clone()).put(with(put, &token)).await.unwrap().into_inner();
        assert_eq!(answer.header.unwrap().revision, first.revision + 1);
    });
}

#[test]
fn etcd_to_us_to_etcd() {
    goes_around(&[Program::Etcd, Program::Sternpost, Program::Etcd], KEYS);
}

#[test]
fn us_to_etcd_to_us() {
    goes_around(&[Program::Sternpost, Program::Etcd, Program::Sternpost], KEYS);
}

#[test]
fn us_to_us_from_checkpoints() {
    // Every change is a checkpoint there.
    goes_around(&[Program::SternpostOnDisk, Program::SternpostOnDisk], KEYS / 20);
}

/// A file from a server that is being written and compacted is of one revision: HashKV of the directory that it makes is what the server says
/// of that revision.
#[test]
fn a_snapshot_of_a_server_that_is_written_is_of_one_revision() {
    let folder = tempfile::tempdir().unwrap();
    runtime().block_on(async {
        let server = Server::start(Program::SternpostOnDisk, &[]);
        let client = channel(&server).await;
        txns(&client, (0..20_000).map(|number| put(key(number), vec![1; 100], 0)).collect()).await;
        let goes_on = Arc::new(AtomicBool::new(true));
        let writing = {
            let (client, goes_on) = (client.clone(), Arc::clone(&goes_on));
            tokio::spawn(async move {
                let mut written = 0;
                while goes_on.load(Ordering::Relaxed) {
                    let number = written * 7 % 20_000;
                    let operations = vec![put(key(number), vec![2; 50], 0), delete(key(number + 1))];
                    txns(&client, operations).await;
                    written += 1;
                }
                written
            })
        };
        for round in 0..5 {
            let file = folder.path().join(format!("{round}.db"));
            save(&client, "", &file).await;
            let found = status(&File::open(&file).unwrap(), &mut |_, _| {}).unwrap();
            let told = MaintenanceClient::new(client.clone())
                .hash_kv(HashKvRequest { revision: found.revision })
                .await
                .unwrap()
                .into_inner();
            let other = restored(Program::Sternpost, &file);
            let mut maintenance = MaintenanceClient::new(channel(&other).await);
            let found = maintenance.hash_kv(HashKvRequest { revision: 0 }).await.unwrap().into_inner();
            assert_eq!((found.hash, found.hash_revision), (told.hash, told.hash_revision), "round {round}");
        }
        goes_on.store(false, Ordering::Relaxed);
        assert!(writing.await.unwrap() > 20, "nothing was written meanwhile");
    });
}

/// What is wrong with a file is said, and no directory is left.
#[test]
fn a_damaged_file_makes_no_directory() {
    let folder = tempfile::tempdir().unwrap();
    let whole = folder.path().join("whole.db");
    runtime().block_on(async {
        let server = Server::start(Program::Sternpost, &[]);
        let client = channel(&server).await;
        txns(&client, (0..3_000).map(|number| put(key(number), vec![1; 100], 0)).collect()).await;
        save(&client, "", &whole).await;
    });
    let bytes = std::fs::read(&whole).unwrap();
    let (data_dir, file) = (folder.path().join("data"), folder.path().join("bad.db"));
    let attempt = |bad: &[u8], skip_hash_check| {
        std::fs::write(&file, bad).unwrap();
        let genesis = genesis("http://localhost:2380");
        let options = ImportOptions { genesis, skip_hash_check, bump_revision: 0 };
        let made = import(&File::open(&file).unwrap(), &data_dir, &options, &mut |_, _, _| {});
        assert_eq!(made.is_err(), !data_dir.exists(), "{made:?}");
        if data_dir.exists() {
            std::fs::remove_dir_all(&data_dir).unwrap();
        }
        made.map_err(|error| error.to_string())
    };
    assert!(attempt(&bytes, false).is_ok());
    let mut rng = Rng::new(5);
    let mut refused_count = 0;
    for round in 0..60 {
        let mut bad = bytes.clone();
        let at = rng.below(bad.len() as u64) as usize;
        bad[at] ^= 1 << rng.below(8);
        let error = attempt(&bad, false).unwrap_err();
        assert!(error.starts_with("expected sha256 ["), "round {round}: {error}");
        // Where nobody asks for the SHA-256, the pages themselves may show it, late in the reading too.
        let page = rng.below((bad.len() / 4096) as u64) as usize;
        bad[page * 4096 + 16 + rng.below(400) as usize] ^= 0xff;
        refused_count += u32::from(attempt(&bad, true).is_err());
    }
    assert!(refused_count > 30, "{refused_count}");
    let error = attempt(&bytes[..bytes.len() - 32], false).unwrap_err();
    assert_eq!(error, "snapshot missing hash but --skip-hash-check=false");
    assert!(attempt(&bytes[..bytes.len() - 32], true).is_ok());
    for count in [0, 31, 32, 4_096, 8_192, bytes.len() / 2] {
        assert!(attempt(&bytes[..count], true).is_err(), "cut at {count}");
    }
    std::fs::create_dir(&data_dir).unwrap();
    std::fs::write(data_dir.join("mine"), "").unwrap();
    let options = ImportOptions { genesis: genesis("http://a:1"), skip_hash_check: false, bump_revision: 0 };
    let error = import(&File::open(&whole).unwrap(), &data_dir, &options, &mut |_, _, _| {}).unwrap_err();
    assert!(error.to_string().ends_with("not empty or could not be read"), "{error}");
    assert!(data_dir.join("mine").exists());
}

/// A revision that goes on: what was before is compacted, and a watcher from then is told so.
#[test]
fn a_bumped_revision_compacts_everything_before_it() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("a.db");
    runtime().block_on(async {
        let server = Server::start(Program::Sternpost, &[]);
        let client = channel(&server).await;
        txns(&client, vec![put("a".into(), b"1".to_vec(), 0)]).await;
        save(&client, "", &file).await;
        let bumped = Server::start_prepared(Program::Sternpost, |data_dir, peer_url| {
            let report = restore_ours(&file, data_dir, genesis(peer_url), 1_000);
            assert_eq!((report.revision, report.compact_revision), (1_002, Some(1_002)));
        });
        let mut kv = KvClient::new(channel(&bumped).await);
        let range = |revision| RangeRequest { key: "a".into(), revision, ..Default::default() };
        let found = kv.range(range(0)).await.unwrap().into_inner();
        assert_eq!(found.header.unwrap().revision, 1_002);
        assert_eq!(found.kvs[0].mod_revision, 2);
        let error = kv.range(range(2)).await.unwrap_err();
        assert_eq!(error.message(), "etcdserver: mvcc: required revision has been compacted");
    });
}

/// Members from one file become a cluster; one from another file is not let in.
#[test]
fn members_from_one_file_become_a_cluster() {
    let folder = tempfile::tempdir().unwrap();
    let (file, other) = (folder.path().join("a.db"), folder.path().join("b.db"));
    runtime().block_on(async {
        let server = Server::start(Program::Sternpost, &[]);
        let client = channel(&server).await;
        txns(&client, (0..2_000).map(|number| put(key(number), vec![1; 100], 0)).collect()).await;
        save(&client, "", &file).await;
        txns(&client, vec![put("more".into(), vec![], 0)]).await;
        save(&client, "", &other).await;
        let make = |file: &Path, member: &Member, initial_cluster: &str| {
            let members: Vec<(String, Vec<String>)> = initial_cluster
                .split(',')
                .map(|one| one.split_once('=').map(|(name, url)| (name.into(), vec![url.into()])).unwrap())
                .collect();
            let genesis = identity::genesis(&member.name, &members, "etcd-cluster").unwrap();
            restore_ours(file, &member.folder, genesis, 0);
        };
        let mut cluster = Cluster::start_prepared(3, |number, member, initial_cluster| {
            make(if number == 2 { &other } else { &file }, member, initial_cluster);
        });
        until("a write on a majority", async || cluster.members[0].put("new", "1").await.ok()).await;
        until("the other one to be refused", async || {
            let says = |member: &Member| member.has_said("it was started with other first members");
            cluster.members.iter().any(says).then_some(())
        })
        .await;
        // A member of two does not see what the third one has.
        assert_eq!(cluster.members[1].get("more", false).await.unwrap(), None);
        cluster.members[2].end(rustix::process::Signal::TERM);
        std::fs::remove_dir_all(&cluster.members[2].folder).unwrap();
        make(&file, &cluster.members[2], cluster.initial_cluster());
        cluster.start_member(2);
        until("the third one", async || cluster.members[2].get("new", true).await.ok().flatten()).await;
        cluster.agree().await;
    });
}

/// Who is not root gets nothing.
#[test]
fn only_root_gets_a_snapshot() {
    runtime().block_on(async {
        let server = Server::start(Program::Sternpost, &[]);
        let client = channel(&server).await;
        fill(&client, 100).await;
        let mut maintenance = MaintenanceClient::new(client.clone());
        let error = maintenance.snapshot(SnapshotRequest {}).await.unwrap_err();
        assert_eq!(
            (error.code(), error.message()),
            (Code::InvalidArgument, "etcdserver: user name is empty")
        );
        let request = AuthenticateRequest { name: "ann".into(), password: PASSWORD.into() };
        let token = AuthClient::new(client.clone()).authenticate(request).await.unwrap().into_inner().token;
        let error = maintenance.snapshot(with(SnapshotRequest {}, &token)).await.unwrap_err();
        assert_eq!(
            (error.code(), error.message()),
            (Code::PermissionDenied, "etcdserver: permission denied")
        );
    });
}
