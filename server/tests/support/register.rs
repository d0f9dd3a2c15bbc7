//! One register under load all the while, held against linearizability: one writer that counts up at all members in turn, and readers at every one.
use super::cluster::{Cluster, until};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use sternpost_server::wire::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use sternpost_server::wire::etcdserverpb::kv_client::KvClient;
use sternpost_server::wire::etcdserverpb::request_op::Request as Op;
use sternpost_server::wire::etcdserverpb::{Compare, PutRequest, RangeRequest, RequestOp, TxnRequest};
use tonic::transport::Channel;

/// How long a call may take before a client gives it up; what it did is not known then.
const CALL_TIME: Duration = Duration::from_millis(700);
const KEY: &str = "register";

/// A register that one writer counts up, each value under the condition that the one before is there, so that what is applied late changes nothing;
/// and readers at every member.
#[derive(Default)]
pub struct Register {
    acknowledged: AtomicU64,
    attempted: AtomicU64,
    reads: AtomicU64,
    is_over: AtomicBool,
}

impl Register {
    /// Counts up to the end.
    async fn write(self: Arc<Self>, channels: Vec<Channel>) {
        let mut turn = 0;
        for value in 1_u64.. {
            self.attempted.store(value, Ordering::SeqCst);
            while !self.is_over.load(Ordering::Relaxed) {
                turn += 1;
                if count_up(&channels[turn % channels.len()], value).await {
                    self.acknowledged.store(value, Ordering::SeqCst);
                    break;
                }
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            if self.is_over.load(Ordering::Relaxed) {
                return;
            }
        }
    }

    /// Reads at one member to the end; a read never says less than what was acknowledged before it began, nor more than was tried.
    async fn read(self: Arc<Self>, channel: Channel, number: usize) {
        while !self.is_over.load(Ordering::Relaxed) {
            let floor = self.acknowledged.load(Ordering::SeqCst);
            if let Some(value) = read(&channel, false).await {
                let top = self.attempted.load(Ordering::SeqCst);
                assert!(
                    (floor..=top).contains(&value),
                    "linearizability: member {number} reads {value}, {floor} was acknowledged before, {top} is the newest"
                );
                self.reads.fetch_add(1, Ordering::Relaxed);
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

/// The register at one member; none if it does not say.
pub async fn read(channel: &Channel, serializable: bool) -> Option<u64> {
    let request = RangeRequest { key: KEY.into(), serializable, ..Default::default() };
    let mut client = KvClient::new(channel.clone());
    let answer = tokio::time::timeout(CALL_TIME, client.range(request)).await.ok()?.ok()?.into_inner();
    let value = answer.kvs.first().map_or(0, |kv| std::str::from_utf8(&kv.value).unwrap().parse().unwrap());
    Some(value)
}

/// True if `value` is known to be there, by this call or one before it.
async fn count_up(channel: &Channel, value: u64) -> bool {
    let previous = if value == 1 { String::new() } else { (value - 1).to_string() };
    let compare = |text: String| Compare {
        result: CompareResult::Equal.into(),
        target: CompareTarget::Value.into(),
        key: KEY.into(),
        target_union: Some(TargetUnion::Value(text.into())),
        ..Default::default()
    };
    let is_absent = Compare {
        result: CompareResult::Equal.into(),
        target: CompareTarget::Version.into(),
        key: KEY.into(),
        target_union: Some(TargetUnion::Version(0)),
        ..Default::default()
    };
    let put = PutRequest { key: KEY.into(), value: value.to_string().into(), ..Default::default() };
    let get = RangeRequest { key: KEY.into(), ..Default::default() };
    let request = TxnRequest {
        compare: vec![if value == 1 { is_absent } else { compare(previous) }],
        success: vec![RequestOp { request: Some(Op::RequestPut(put)) }],
        failure: vec![RequestOp { request: Some(Op::RequestRange(get)) }],
    };
    let mut client = KvClient::new(channel.clone());
    let Ok(Ok(answer)) = tokio::time::timeout(CALL_TIME, client.txn(request)).await else { return false };
    let answer = answer.into_inner();
    // An earlier attempt was made after all; nobody else counts.
    answer.succeeded || format!("{answer:?}").contains(&format!("value: b\"{value}\""))
}

/// A cluster under load.
pub struct Load {
    pub cluster: Cluster,
    register: Arc<Register>,
    tasks: tokio::task::JoinSet<()>,
}

impl Load {
    /// Begins as soon as there is a leader, and returns when something was written.
    pub async fn start(cluster: Cluster) -> Self {
        let mut load = Self { cluster, register: Arc::default(), tasks: tokio::task::JoinSet::new() };
        load.cluster.leader().await;
        let channels: Vec<_> = load.cluster.members.iter().map(|member| member.channel()).collect();
        for (number, channel) in channels.iter().enumerate() {
            load.tasks.spawn(Arc::clone(&load.register).read(channel.clone(), number));
        }
        load.tasks.spawn(Arc::clone(&load.register).write(channels));
        load.goes_on("the first writes").await;
        load
    }

    /// A member that came later is read from as well.
    pub fn include(&mut self, number: usize) {
        let channel = self.cluster.members[number].channel();
        self.tasks.spawn(Arc::clone(&self.register).read(channel, number));
    }

    /// Waits until so many more writes are acknowledged.
    pub async fn goes_on(&self, what: &str) {
        let goal = self.register.acknowledged.load(Ordering::SeqCst) + 20;
        until(what, async || (self.register.acknowledged.load(Ordering::SeqCst) >= goal).then_some(())).await;
    }

    /// The newest value that was acknowledged.
    pub fn acknowledged(&self) -> u64 {
        self.register.acknowledged.load(Ordering::SeqCst)
    }

    pub async fn term(&self, member: usize) -> u64 {
        until("a term", async || Some(self.cluster.members[member].status().await.ok()?.raft_term)).await
    }

    /// The load ends; everybody has the same, and everything that was acknowledged.
    pub async fn end(mut self) {
        self.goes_on("writes at the end").await;
        until("reads", async || (self.register.reads.load(Ordering::Relaxed) > 100).then_some(())).await;
        self.register.is_over.store(true, Ordering::Relaxed);
        while let Some(task) = self.tasks.join_next().await {
            task.unwrap();
        }
        self.cluster.leader().await;
        self.cluster.agree().await;
        let acknowledged = self.acknowledged();
        for (_, member) in self.cluster.living() {
            let value = until("a read", async || read(&member.channel(), false).await).await;
            assert!(value >= acknowledged, "{value} of {acknowledged}");
        }
    }

    /// Waits until all others have another leader than `member`; its number.
    pub async fn leader_without(&self, member: usize) -> usize {
        self.leader_without_all(&[member]).await
    }
    /// The same, and nobody asks these either.
    pub async fn leader_without_all(&self, members: &[usize]) -> usize {
        self.cluster.leader_without(members).await
    }
}
