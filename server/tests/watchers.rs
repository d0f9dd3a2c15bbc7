//! Ten thousand watchers of real processes while leaders die, history is compacted, and a member fetches the state of another one.
//!
//! Row 48 of the list of faults in the design of replication. Every key is only ever put, so each of its events has the version behind the one before: a watcher that
//! counts them knows that it has missed none, has none twice, and has them in order.
mod support;

use rustix::process::Signal;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::time::Duration;
use sternpost_server::wire::etcdserverpb::kv_client::KvClient;
use sternpost_server::wire::etcdserverpb::watch_client::WatchClient;
use sternpost_server::wire::etcdserverpb::watch_request::RequestUnion;
use sternpost_server::wire::etcdserverpb::{
    CompactionRequest, RangeRequest, WatchCreateRequest, WatchRequest, WatchResponse,
};
use support::cluster::{Cluster, Member, runtime, until};
use tokio::task::JoinSet;
use tonic::transport::Channel;

const OPTIONS: &[&str] = &["--wal-retain-bytes=1048576", "--memtable-bytes=1048576"];
const WATCHERS: usize = 10_000;
const KEYS: usize = 100;
/// Watchers of one stream; each member has so many streams that all watchers have one.
const OF_STREAM: usize = 334;

/// What a watcher of one key has seen.
#[derive(Default)]
struct Seen {
    revision: AtomicI64,
    version: AtomicI64,
    /// History that it had not seen was compacted: some versions are missing before the next one.
    has_gap: AtomicBool,
}

#[derive(Default)]
struct Watchers {
    seen: Vec<Seen>,
    /// Watches that were ended because what they asked for is compacted, by member.
    compacted: [AtomicU64; 3],
    events: AtomicU64,
    is_over: AtomicBool,
}

fn key(watcher: usize) -> String {
    format!("watched-{}", watcher % KEYS)
}

impl Watchers {
    /// Watches for `watchers` at one member to the end, anew behind whatever they have seen each time that the stream ends.
    async fn follow(self: Arc<Self>, member: usize, channel: Channel, watchers: std::ops::Range<usize>) {
        while !self.is_over.load(Ordering::Relaxed) {
            let create = |watcher: usize| {
                let start_revision = self.seen[watcher].revision.load(Ordering::SeqCst) + 1;
                let create = WatchCreateRequest {
                    key: key(watcher).into(),
                    start_revision,
                    // 0 would have the server choose one.
                    watch_id: watcher as i64 + 1,
                    ..Default::default()
                };
                WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) }
            };
            let creates: Vec<WatchRequest> = watchers.clone().map(create).collect();
            // The stream of requests stays open.
            let requests =
                tokio_stream::StreamExt::chain(tokio_stream::iter(creates), tokio_stream::pending());
            if let Ok(answers) = WatchClient::new(channel.clone()).watch(requests).await {
                let mut answers = answers.into_inner();
                while let Ok(Some(answer)) = answers.message().await {
                    if !self.take(member, answer) {
                        break;
                    }
                }
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Checks what a member said; false if the stream is to be opened anew.
    fn take(&self, member: usize, answer: WatchResponse) -> bool {
        let watcher = usize::try_from(answer.watch_id - 1).unwrap();
        let seen = &self.seen[watcher];
        if answer.canceled {
            assert!(answer.compact_revision > seen.revision.load(Ordering::SeqCst), "{answer:?}");
            self.compacted[member].fetch_add(1, Ordering::SeqCst);
            seen.revision.store(answer.compact_revision - 1, Ordering::SeqCst);
            seen.has_gap.store(true, Ordering::SeqCst);
            return false;
        }
        for event in answer.events {
            let kv = event.kv.unwrap();
            assert_eq!(kv.key, key(watcher).as_bytes(), "an event of another key");
            let (revision, version) =
                (seen.revision.load(Ordering::SeqCst), seen.version.load(Ordering::SeqCst));
            assert!(kv.mod_revision > revision, "out of order: {kv:?} behind {revision}");
            let has_gap = seen.has_gap.swap(false, Ordering::SeqCst);
            assert!(
                kv.version == version + 1 || has_gap && kv.version > version,
                "watcher {watcher} at member {member}: version {} behind {version}",
                kv.version
            );
            seen.revision.store(kv.mod_revision, Ordering::SeqCst);
            seen.version.store(kv.version, Ordering::SeqCst);
            self.events.fetch_add(1, Ordering::SeqCst);
        }
        true
    }

    /// Waits until those of these members have seen the newest version of their keys, by what `member` says.
    async fn have_seen_all(&self, member: &Member, members: &[usize]) {
        let request =
            RangeRequest { key: "watched-".into(), range_end: "watched.".into(), ..Default::default() };
        let answer = until("all keys", async || {
            Some(KvClient::new(member.channel()).range(request.clone()).await.ok()?.into_inner())
        })
        .await;
        assert_eq!(answer.kvs.len(), KEYS);
        let newest = |watcher: usize| {
            let key = key(watcher);
            answer.kvs.iter().find(|kv| kv.key == key.as_bytes()).unwrap().version
        };
        let newest: Vec<i64> = (0..KEYS).map(newest).collect();
        until("all events", async || {
            let mut watchers = (0..WATCHERS).filter(|watcher| members.contains(&member_of(*watcher)));
            watchers
                .all(|watcher| self.seen[watcher].version.load(Ordering::SeqCst) >= newest[watcher % KEYS])
                .then_some(())
        })
        .await;
    }
}

/// Whole streams to each member in turn.
fn member_of(watcher: usize) -> usize {
    watcher / OF_STREAM % 3
}

/// Puts every key once. One whose put is not answered is put again, and has one version more.
async fn put_all(member: &Member) -> i64 {
    let mut revision = 0;
    for number in 0..KEYS {
        revision = until("a put", async || member.put(&key(number), "v").await.ok()).await;
    }
    revision
}

async fn compact(member: &Member, revision: i64) {
    let request = CompactionRequest { revision, physical: true };
    until("the compaction", async || KvClient::new(member.channel()).compact(request).await.ok()).await;
}

#[test]
fn ten_thousand_watchers_miss_nothing_that_was_not_compacted() {
    let mut cluster = Cluster::start(3, OPTIONS);
    runtime().block_on(async {
        let leader = cluster.leader().await;
        let seen = std::iter::repeat_with(Seen::default).take(WATCHERS).collect();
        let watchers = Arc::new(Watchers { seen, ..Watchers::default() });
        let mut tasks = JoinSet::new();
        for first in (0..WATCHERS).step_by(OF_STREAM) {
            let member = member_of(first);
            let of_stream = first..(first + OF_STREAM).min(WATCHERS);
            let channel = cluster.members[member].channel();
            tasks.spawn(Arc::clone(&watchers).follow(member, channel, of_stream));
        }
        put_all(&cluster.members[leader]).await;
        watchers.have_seen_all(&cluster.members[leader], &[0, 1, 2]).await;

        // The leader dies, with a third of them, and comes back.
        let other = (leader + 1) % 3;
        cluster.members[leader].end(Signal::KILL);
        put_all(&cluster.members[other]).await;
        cluster.start_member(leader);
        let revision = put_all(&cluster.members[leader]).await;
        watchers.have_seen_all(&cluster.members[other], &[0, 1, 2]).await;

        // Compacted up to what everybody has seen: nobody notices.
        compact(&cluster.members[other], revision).await;
        put_all(&cluster.members[other]).await;
        watchers.have_seen_all(&cluster.members[other], &[0, 1, 2]).await;
        let compacted = |member: usize| watchers.compacted[member].load(Ordering::SeqCst);
        assert_eq!([compacted(0), compacted(1), compacted(2)], [0; 3]);

        // A member misses more than the log has, and some of that is compacted.
        let leads = cluster.leader().await;
        let away = (leads + 1) % 3;
        let there = [leads, (leads + 2) % 3];
        cluster.members[away].end(Signal::KILL);
        let revision = put_all(&cluster.members[leads]).await;
        put_all(&cluster.members[leads]).await;
        for number in 0..80 {
            let value = format!("{number:08}").repeat(128 << 10);
            let member = &cluster.members[leads];
            until("a big put", async || member.put(&format!("big-{number}"), &value).await.ok()).await;
        }
        watchers.have_seen_all(&cluster.members[leads], &there).await;
        compact(&cluster.members[leads], revision + 1).await;
        cluster.start_member(away);
        cluster.members[away].says("fetched the state of another member").await;
        put_all(&cluster.members[leads]).await;
        watchers.have_seen_all(&cluster.members[leads], &[0, 1, 2]).await;
        for member in there {
            assert_eq!(compacted(member), 0, "member {member} had told them everything before");
        }
        assert!(compacted(away) > 0, "they had not seen what was compacted");
        put_all(&cluster.members[away]).await;
        watchers.have_seen_all(&cluster.members[away], &[0, 1, 2]).await;
        let memory: Vec<u64> = cluster.members.iter().map(Member::resident_mib).collect();
        eprintln!("{} events; {memory:?} MiB", watchers.events.load(Ordering::SeqCst));
        assert!(memory.iter().all(|mib| *mib < 1024), "{memory:?} MiB");
        watchers.is_over.store(true, Ordering::Relaxed);
        // Those that wait for an event end with the test; the others have not panicked.
        tasks.abort_all();
        while let Some(task) = tasks.join_next().await {
            assert!(!task.is_err_and(|error| error.is_panic()), "a watcher was told something wrong");
        }
        cluster.agree().await;
    });
}
