//! Which keys differ between members, as real processes: exactly those, by few requests, whatever the trees look like; and who may ask.
//!
//! A member is made to differ by a forged log, as in `comparison.rs`; marks are so far apart that it is not taken out meanwhile.
mod support;

use rustix::process::Signal;
use sternpost_engine::inspect::Inspection;
use sternpost_server::differences::{Asked, Found, find};
use sternpost_server::wire::etcdserverpb::auth_client::AuthClient;
use sternpost_server::wire::etcdserverpb::kv_client::KvClient;
use sternpost_server::wire::etcdserverpb::{
    AuthEnableRequest, AuthRoleAddRequest, AuthUserAddRequest, AuthUserGrantRoleRequest, AuthenticateRequest,
    CompactionRequest, DeleteRangeRequest, PutRequest, RequestOp, TxnRequest, request_op,
};
use sternpost_server::wire::sternpostpb as pb;
use sternpost_server::wire::sternpostpb::ranges_client::RangesClient;
use support::cluster::{Cluster, Member, runtime, until};
use support::forge::replace_in_log;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

const RARELY: &str = "--compact-hash-check-time=10h";
const TRUE_VALUE: &str = "as it was written";
const FALSE_VALUE: &str = "as it is imagined";
const KEYS: usize = 6_000;

struct Asking(RangesClient<Channel>);

impl Asked for Asking {
    type Error = Status;

    async fn sums(&mut self, request: pb::RangeSumsRequest) -> Result<pb::RangeSumsResponse, Status> {
        self.0.sums(request).await.map(tonic::Response::into_inner)
    }

    async fn parts(&mut self, request: pb::RangePartsRequest) -> Result<pb::RangePartsResponse, Status> {
        self.0.parts(request).await.map(tonic::Response::into_inner)
    }

    async fn keys(&mut self, request: pb::RangeKeysRequest) -> Result<pb::RangeKeysResponse, Status> {
        self.0.keys(request).await.map(tonic::Response::into_inner)
    }
}

fn everything() -> pb::KeySpan {
    pb::KeySpan { key: "\0".into(), range_end: "\0".into() }
}

async fn compare(cluster: &Cluster, revision: i64) -> Found {
    let mut members: Vec<_> =
        cluster.members.iter().map(|member| Asking(RangesClient::new(member.channel()))).collect();
    find(&mut members, everything(), revision, 10, &mut |_| {}).await.expect("all answer")
}

/// Transactions of a hundred puts; the revision behind them.
async fn fill(member: &Member, keys: usize) -> i64 {
    let mut revision = 0;
    for first in (0..keys).step_by(100) {
        let put = |number: usize| {
            let (key, value) =
                (format!("key-{number:06}").into(), format!("value {number}").repeat(3).into());
            let put = PutRequest { key, value, ..Default::default() };
            RequestOp { request: Some(request_op::Request::RequestPut(put)) }
        };
        let txn = TxnRequest { success: (first..first + 100).map(put).collect(), ..Default::default() };
        let done = async || KvClient::new(member.channel()).txn(txn.clone()).await.ok();
        revision = until("a transaction", done).await.into_inner().header.unwrap().revision;
    }
    revision
}

/// Waits until each member has a revision.
async fn all_have(cluster: &Cluster, revision: i64) {
    for member in &cluster.members {
        until("a revision everywhere", async || {
            (member.status().await.ok()?.header?.revision >= revision).then_some(())
        })
        .await;
    }
}

/// Puts a key, and has `number` hold another value of it; the revision of the put.
async fn make_differ(cluster: &mut Cluster, number: usize, key: &str) -> i64 {
    let other = (number + 1) % cluster.members.len();
    loop {
        let before = until("a status", async || cluster.members[other].status().await.ok()).await;
        until("a put", async || cluster.members[other].put(key, TRUE_VALUE).await.ok()).await;
        let status = cluster.members[other].status().await.unwrap();
        all_have(cluster, status.header.as_ref().unwrap().revision).await;
        cluster.members[number].end(Signal::KILL);
        let folder = cluster.members[number].folder.clone();
        let checkpoint_index = Inspection::open(&folder).unwrap().superblock().applied_index;
        // A checkpoint that is just made has the put already; then once more.
        let is_forged = checkpoint_index <= before.raft_applied_index
            && replace_in_log(&folder, TRUE_VALUE.as_bytes(), FALSE_VALUE.as_bytes()) > 0;
        cluster.start_member(number);
        if is_forged {
            let revision = status.header.unwrap().revision;
            all_have(cluster, revision).await;
            return revision;
        }
    }
}

/// Some are on disk with pages and memtables of their own sizes, one is in memory alone.
fn of_different_shapes() -> Cluster {
    let number = std::cell::Cell::new(0);
    Cluster::start_with(3, |member| {
        let shape: &[&str] = match number.replace(number.get() + 1) {
            0 => &["--memtable-bytes=65536", "--cache-bytes=0"],
            1 => &["--memtable-bytes=1048576"],
            _ => &[],
        };
        member.options = shape.iter().chain(&[RARELY]).map(ToString::to_string).collect();
    })
}

#[test]
fn the_key_that_differs_is_named_by_few_requests_and_no_other() {
    let mut cluster = of_different_shapes();
    runtime().block_on(async {
        cluster.leader().await;
        let filled = fill(&cluster.members[0], KEYS).await;
        all_have(&cluster, filled).await;
        let found = compare(&cluster, filled).await;
        let sums = &found.sums;
        assert!(sums.iter().all(|sum| sum.keys == KEYS as u64 && *sum == sums[0]), "{sums:?}");
        assert_eq!((found.differing_keys, found.requests, found.keys_listed), (0, 3, 0), "one look each");

        let key = "key-003456";
        let revision = make_differ(&mut cluster, 2, key).await;
        let found = compare(&cluster, revision).await;
        println!("{} requests, {} keys listed", found.requests, found.keys_listed);
        assert_eq!((found.differing_keys, found.unexplained.len()), (1, 0), "{found:?}");
        let difference = &found.differences[0];
        assert_eq!(difference.key, key);
        let held: Vec<_> = difference.held.iter().map(|held| held.as_ref().unwrap()).collect();
        assert!(held.iter().all(|held| held.mod_revision == revision && held.version >= 2), "{held:?}");
        let hash = |text: &str| xxhash(text);
        let hashes: Vec<_> = held.iter().map(|held| held.value_hash).collect();
        assert_eq!(hashes, [hash(TRUE_VALUE), hash(TRUE_VALUE), hash(FALSE_VALUE)]);
        // A look, at most three divisions of sixteen parts, and a list, at each of three.
        assert!(found.requests <= 3 * 5 && found.keys_listed <= 3 * 128, "{found:?}");
        // Before the put all were the same, and are still.
        assert_eq!(compare(&cluster, revision - 1).await.differing_keys, 0);

        // It stays so behind what is written and deleted everywhere, on disk too.
        let again = fill(&cluster.members[0], 2_000).await;
        let delete = DeleteRangeRequest {
            key: "key-004000".into(),
            range_end: "key-004500".into(),
            ..Default::default()
        };
        let deleted =
            async || KvClient::new(cluster.members[1].channel()).delete_range(delete.clone()).await.ok();
        let last = until("a delete", deleted).await.into_inner().header.unwrap().revision;
        assert!(last > again);
        all_have(&cluster, last).await;
        for at in [revision, again, last] {
            let found = compare(&cluster, at).await;
            let keys: Vec<_> = found.differences.iter().map(|difference| &difference.key[..]).collect();
            assert_eq!((keys, found.differing_keys), (vec![key.as_bytes()], 1), "at {at}");
        }
        // A compacted revision is refused by name.
        let compact = CompactionRequest { revision: last, physical: true };
        KvClient::new(cluster.members[0].channel()).compact(compact).await.unwrap();
        let mut client = RangesClient::new(cluster.members[0].channel());
        let request = pb::RangeSumsRequest { revision, spans: vec![everything()] };
        let refused = client.sums(request).await.expect_err("compacted");
        assert_eq!(
            (refused.code(), refused.message()),
            (Code::OutOfRange, "etcdserver: mvcc: required revision has been compacted")
        );
        let position =
            client.sums(pb::RangeSumsRequest::default()).await.unwrap().into_inner().position.unwrap();
        assert_eq!((position.head_revision, position.compact_revision), (last, last));
    });
}

fn xxhash(text: &str) -> u64 {
    let (store, mut writer) = sternpost_engine::mvcc::StoreWriter::new(Default::default());
    let put =
        sternpost_engine::mvcc::Put { key: "k".into(), value: text.to_owned().into(), ..Default::default() };
    writer.put(&put, &sternpost_engine::mvcc::AnyLease).unwrap();
    let range = sternpost_engine::mvcc::KeyRange { key: "k".into(), end: Default::default() };
    store.fingerprints(&range, 0, 1, 1).unwrap().0.keys[0].value_hash
}

#[test]
fn requests_have_bounds_and_what_is_wrong_with_them_is_said() {
    let cluster = Cluster::start(1, &[]);
    runtime().block_on(async {
        until("a put", async || cluster.members[0].put("a", "1").await.ok()).await;
        let mut client = RangesClient::new(cluster.members[0].channel());
        let spans = vec![everything(); 65];
        let refused = client.sums(pb::RangeSumsRequest { revision: 0, spans }).await.expect_err("too many");
        assert_eq!(
            (refused.code(), refused.message()),
            (Code::InvalidArgument, "65 spans in one request; at most 64")
        );
        let spans = vec![pb::KeySpan::default()];
        let refused = client.sums(pb::RangeSumsRequest { revision: 0, spans }).await.expect_err("no key");
        assert_eq!(
            (refused.code(), refused.message()),
            (Code::InvalidArgument, "etcdserver: key is not provided")
        );
        let spans = vec![everything()];
        let refused = client.sums(pb::RangeSumsRequest { revision: 99, spans }).await.expect_err("future");
        assert_eq!(
            (refused.code(), refused.message()),
            (Code::OutOfRange, "etcdserver: mvcc: required revision is a future revision")
        );
        let request = pb::RangePartsRequest { revision: 0, span: Some(everything()), parts_max: u32::MAX };
        assert_eq!(client.parts(request).await.unwrap().into_inner().parts.len(), 1);
        let request = pb::RangeKeysRequest { revision: 0, span: Some(everything()), keys_max: u32::MAX };
        let listed = client.keys(request).await.unwrap().into_inner();
        assert_eq!((listed.keys.len(), listed.more), (1, false));
    });
}

#[test]
fn only_root_may_ask_where_authentication_is_on() {
    let cluster = Cluster::start(1, &[]);
    runtime().block_on(async {
        cluster.leader().await;
        let channel = cluster.members[0].channel();
        let mut auth = AuthClient::new(channel.clone());
        for name in ["root", "other"] {
            auth.role_add(AuthRoleAddRequest { name: name.into() }).await.unwrap();
            let add =
                AuthUserAddRequest { name: name.into(), password: "secret".into(), ..Default::default() };
            auth.user_add(add).await.unwrap();
            let grant = AuthUserGrantRoleRequest { user: name.into(), role: name.into() };
            auth.user_grant_role(grant).await.unwrap();
        }
        auth.auth_enable(AuthEnableRequest {}).await.unwrap();
        let mut client = RangesClient::new(channel);
        let request = pb::RangeSumsRequest { revision: 0, spans: vec![everything()] };
        let nobody = client.sums(request.clone()).await.expect_err("nobody");
        assert_eq!(nobody.code(), Code::InvalidArgument, "{nobody:?}");
        for (name, expected) in [("other", Some(Code::PermissionDenied)), ("root", None)] {
            let login = AuthenticateRequest { name: name.into(), password: "secret".into() };
            let token = auth.authenticate(login).await.unwrap().into_inner().token;
            let with_token = |request| {
                let mut request = Request::new(request);
                request.metadata_mut().insert("token", token.parse().unwrap());
                request
            };
            assert_eq!(client.sums(with_token(request.clone())).await.err().map(|it| it.code()), expected);
            let mut parts =
                Request::new(pb::RangePartsRequest { span: Some(everything()), ..Default::default() });
            parts.metadata_mut().insert("token", token.parse().unwrap());
            assert_eq!(client.parts(parts).await.err().map(|it| it.code()), expected);
            let mut keys =
                Request::new(pb::RangeKeysRequest { span: Some(everything()), ..Default::default() });
            keys.metadata_mut().insert("token", token.parse().unwrap());
            assert_eq!(client.keys(keys).await.err().map(|it| it.code()), expected);
        }
    });
}
