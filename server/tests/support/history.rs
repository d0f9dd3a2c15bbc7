//! Clients that swap what is in a few cells, everything that they were told, and a checker of that against linearizability.
//!
//! **Data.** A cell is a key. Every value that anybody tries to put is the number of that try's operation, so the cluster's own history, watched from
//! its first revision on, says of each operation whether it was carried out, and when: its position is its revision. A read's position is the revision that its answer names.
//!
//! **What is checked** ([`check`]): no operation is carried out twice, or behind another value than it asked for; what was acknowledged is in the
//! history, at the revision that was said; what was read is what the history has there; and positions do not contradict the order in
//! which operations began and ended. Then the order of positions is a linearization: nothing need be searched for.
//!
//! **Retries.** A swap whose fate is not known is tried again as it was, until an answer says more; it stays one operation.
use super::cluster::{Cluster, until};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use sternpost_server::wire::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use sternpost_server::wire::etcdserverpb::kv_client::KvClient;
use sternpost_server::wire::etcdserverpb::request_op::Request as Op;
use sternpost_server::wire::etcdserverpb::response_op::Response as Answer;
use sternpost_server::wire::etcdserverpb::watch_client::WatchClient;
use sternpost_server::wire::etcdserverpb::watch_request::RequestUnion;
use sternpost_server::wire::etcdserverpb::{
    Compare, PutRequest, RangeRequest, RangeResponse, RequestOp, TxnRequest, WatchCreateRequest, WatchRequest,
};
use tonic::transport::Channel;

/// A client gives up a call after this; what became of it is not known then.
const CALL_TIME: Duration = Duration::from_millis(700);
const PREFIX: &str = "cell-";

/// What a cell holds: the revision that put it there, and the operation; zeros are nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Content {
    pub revision: i64,
    pub operation: u64,
}

/// What was asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Asked {
    Read,
    /// To put one's own number where the content's revision is this one.
    Swap {
        expected: i64,
    },
}

/// What was told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Told {
    /// Nothing that says whether it was carried out.
    Nothing,
    /// It is in the history at this revision.
    Swapped { revision: i64 },
    /// It is not, and never will be.
    Refused,
    /// This was there at this revision.
    Found { revision: i64, content: Content },
}

/// One operation of one client.
#[derive(Clone, Copy, Debug)]
pub struct Operation {
    pub number: u64,
    pub cell: u64,
    pub asked: Asked,
    /// Ticks of a counter that all clients share.
    pub begun: u64,
    /// None: it may be carried out at any time after its begin.
    pub ended: Option<u64>,
    pub told: Told,
}

/// One change in the cluster's own history.
#[derive(Clone, Copy, Debug)]
pub struct Change {
    pub revision: i64,
    pub cell: u64,
    pub operation: u64,
}

/// Holds what was told against the history; how many operations were carried out and not known to be, or what is wrong.
pub fn check(operations: &[Operation], history: &[Change]) -> Result<usize, String> {
    let by_number: BTreeMap<u64, &Operation> =
        operations.iter().map(|operation| (operation.number, operation)).collect();
    let mut cells: BTreeMap<u64, Vec<Content>> = BTreeMap::new();
    let mut carried_out: BTreeMap<u64, i64> = BTreeMap::new();
    for change in history {
        let operation = by_number.get(&change.operation).ok_or(format!("nobody tried {change:?}"))?;
        let versions = cells.entry(change.cell).or_default();
        let before = versions.last().copied().unwrap_or_default();
        if operation.cell != change.cell || operation.asked != (Asked::Swap { expected: before.revision }) {
            return Err(format!("{change:?} behind {before:?} is not what was asked for: {operation:?}"));
        }
        if carried_out.insert(change.operation, change.revision).is_some() {
            return Err(format!("carried out twice: {operation:?}"));
        }
        if operation.told == Told::Refused {
            return Err(format!("carried out at {}, and was refused: {operation:?}", change.revision));
        }
        versions.push(Content { revision: change.revision, operation: change.operation });
    }
    let mut placed = Vec::new();
    for operation in operations {
        let position = match operation.told {
            Told::Swapped { revision } => {
                if carried_out.get(&operation.number) != Some(&revision) {
                    return Err(format!("acknowledged, and not in the history: {operation:?}"));
                }
                revision
            }
            Told::Found { revision, content } => {
                let versions = cells.get(&operation.cell).map_or(&[][..], Vec::as_slice);
                let count = versions.partition_point(|version| version.revision <= revision);
                let there = count.checked_sub(1).map(|last| versions[last]).unwrap_or_default();
                if there != content {
                    return Err(format!("{there:?} was there, and was not read: {operation:?}"));
                }
                revision
            }
            Told::Nothing => match carried_out.get(&operation.number) {
                Some(revision) => *revision,
                None => continue,
            },
            Told::Refused => continue,
        };
        placed.push((position, operation));
    }
    placed.sort_by_key(|(_, operation)| operation.begun);
    let mut ends: Vec<(u64, i64)> =
        placed.iter().filter_map(|(position, operation)| Some((operation.ended?, *position))).collect();
    ends.sort_unstable();
    let mut ends = ends.into_iter().peekable();
    let mut newest = 0;
    for (position, operation) in placed {
        while let Some((_, ended)) = ends.next_if(|(end, _)| *end < operation.begun) {
            newest = newest.max(ended);
        }
        let is_late = if operation.asked == Asked::Read { position >= newest } else { position > newest };
        if !is_late {
            return Err(format!(
                "at {position}, though something at {newest} had ended before it began: {operation:?}"
            ));
        }
    }
    let unknown = operations.iter().filter(|operation| operation.told == Told::Nothing);
    Ok(unknown.filter(|operation| carried_out.contains_key(&operation.number)).count())
}

#[derive(Default)]
struct Record {
    ticks: AtomicU64,
    numbers: AtomicU64,
    acknowledged: AtomicU64,
    operations: Mutex<Vec<Operation>>,
    is_over: AtomicBool,
}

impl Record {
    fn tick(&self) -> u64 {
        self.ticks.fetch_add(1, Ordering::SeqCst)
    }

    fn begin(&self, cell: u64, asked: Asked) -> Operation {
        let number = self.numbers.fetch_add(1, Ordering::SeqCst) + 1;
        Operation { number, cell, asked, begun: self.tick(), ended: None, told: Told::Nothing }
    }

    fn end(&self, operation: Operation) {
        if matches!(operation.told, Told::Swapped { .. }) {
            self.acknowledged.fetch_add(1, Ordering::SeqCst);
        }
        self.operations.lock().unwrap().push(operation);
    }

    fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Relaxed)
    }

    /// One client, at each member in turn.
    async fn work(self: Arc<Self>, channels: Vec<Channel>, client: u64, cells: u64) {
        let mut turn = client as usize;
        while !self.is_over() {
            turn += 1;
            let cell = turn as u64 % cells;
            let mut channel = &channels[turn % channels.len()];
            let mut reading = self.begin(cell, Asked::Read);
            let Some((revision, content)) = read(channel, cell).await else { continue };
            reading.ended = Some(self.tick());
            reading.told = Told::Found { revision, content };
            self.end(reading);
            let mut swap = self.begin(cell, Asked::Swap { expected: content.revision });
            // The same again until something is known of it.
            for attempt in 1.. {
                let begun = self.tick();
                match try_to_swap(channel, &swap).await {
                    Some((revision, None)) => swap.told = Told::Swapped { revision },
                    Some((_, Some(found))) if found.operation == swap.number => {
                        swap.told = Told::Swapped { revision: found.revision };
                    }
                    Some((revision, Some(content))) => {
                        // The first attempt was not carried out. Of several, an earlier one may have been, and overwritten.
                        swap.told = if attempt == 1 { Told::Refused } else { Told::Nothing };
                        let mut reading = self.begin(cell, Asked::Read);
                        (reading.begun, reading.ended) = (begun, Some(self.tick()));
                        reading.told = Told::Found { revision, content };
                        self.end(reading);
                    }
                    None if self.is_over() => break,
                    None => {
                        turn += 1;
                        channel = &channels[turn % channels.len()];
                        tokio::time::sleep(Duration::from_millis(5)).await;
                        continue;
                    }
                }
                swap.ended = Some(self.tick());
                break;
            }
            self.end(swap);
        }
    }
}

fn content(answer: &RangeResponse) -> Content {
    answer.kvs.first().map_or_else(Content::default, |kv| Content {
        revision: kv.mod_revision,
        operation: std::str::from_utf8(&kv.value).unwrap().parse().unwrap(),
    })
}

fn key(cell: u64) -> String {
    format!("{PREFIX}{cell}")
}

/// What a cell holds, and at which revision.
async fn read(channel: &Channel, cell: u64) -> Option<(i64, Content)> {
    let request = RangeRequest { key: key(cell).into(), ..Default::default() };
    let mut client = KvClient::new(channel.clone());
    let answer = tokio::time::timeout(CALL_TIME, client.range(request)).await.ok()?.ok()?.into_inner();
    Some((answer.header.as_ref()?.revision, content(&answer)))
}

/// The revision of the answer, and what was there instead.
async fn try_to_swap(channel: &Channel, swap: &Operation) -> Option<(i64, Option<Content>)> {
    let Asked::Swap { expected } = swap.asked else { return None };
    let key = key(swap.cell);
    let compare = Compare {
        result: CompareResult::Equal.into(),
        target: CompareTarget::Mod.into(),
        key: key.clone().into(),
        target_union: Some(TargetUnion::ModRevision(expected)),
        ..Default::default()
    };
    let put =
        PutRequest { key: key.clone().into(), value: swap.number.to_string().into(), ..Default::default() };
    let get = RangeRequest { key: key.into(), ..Default::default() };
    let request = TxnRequest {
        compare: vec![compare],
        success: vec![RequestOp { request: Some(Op::RequestPut(put)) }],
        failure: vec![RequestOp { request: Some(Op::RequestRange(get)) }],
    };
    let mut client = KvClient::new(channel.clone());
    let answer = tokio::time::timeout(CALL_TIME, client.txn(request)).await.ok()?.ok()?.into_inner();
    let revision = answer.header.as_ref()?.revision;
    match answer.responses.into_iter().next()?.response? {
        Answer::ResponseRange(range) => Some((revision, Some(content(&range)))),
        _ => Some((revision, None)),
    }
}

/// Clients at work on a cluster.
pub struct Recording {
    record: Arc<Record>,
    tasks: tokio::task::JoinSet<()>,
}

impl Recording {
    pub fn start(cluster: &Cluster, clients: u64, cells: u64) -> Self {
        let record: Arc<Record> = Arc::default();
        let mut tasks = tokio::task::JoinSet::new();
        for client in 0..clients {
            let channels = cluster.members.iter().map(super::cluster::Member::channel).collect();
            tasks.spawn(Arc::clone(&record).work(channels, client, cells));
        }
        Self { record, tasks }
    }

    /// Waits until so many more swaps are acknowledged.
    pub async fn goes_on(&self, what: &str) {
        let acknowledged = || self.record.acknowledged.load(Ordering::SeqCst);
        let goal = acknowledged() + 20;
        until(what, async || (acknowledged() >= goal).then_some(())).await;
    }

    /// The clients end; what they were told is checked against the history that a member tells.
    pub async fn end(mut self, cluster: &Cluster) {
        self.record.is_over.store(true, Ordering::Relaxed);
        while let Some(task) = self.tasks.join_next().await {
            task.unwrap();
        }
        cluster.leader().await;
        cluster.agree().await;
        let (_, member) = cluster.living().next().unwrap();
        let history = history(&member.channel()).await;
        let operations = std::mem::take(&mut *self.record.operations.lock().unwrap());
        match check(&operations, &history) {
            Ok(unknown) => eprintln!(
                "{} operations, {} changes, {unknown} of them unknown to who asked: linearizable",
                operations.len(),
                history.len()
            ),
            Err(error) => panic!("{error}"),
        }
    }
}

/// Everything that ever happened to the cells.
async fn history(channel: &Channel) -> Vec<Change> {
    let range_end = b"cell.".to_vec();
    let request =
        RangeRequest { key: PREFIX.into(), range_end: range_end.clone().into(), ..Default::default() };
    let answer = KvClient::new(channel.clone()).range(request).await.unwrap().into_inner();
    let last = answer.kvs.iter().map(|kv| kv.mod_revision).max().unwrap_or(0);
    let create = WatchCreateRequest {
        key: PREFIX.into(),
        range_end: range_end.into(),
        start_revision: 1,
        ..Default::default()
    };
    let create = WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
    // The stream of requests stays open behind the first one.
    let requests = tokio_stream::StreamExt::chain(tokio_stream::iter([create]), tokio_stream::pending());
    let mut stream = WatchClient::new(channel.clone()).watch(requests).await.unwrap().into_inner();
    let mut changes: Vec<Change> = Vec::new();
    while changes.last().map_or(0, |change| change.revision) < last {
        let answer = stream.message().await.unwrap().expect("the watch goes on");
        assert!(!answer.canceled, "{answer:?}");
        for event in answer.events {
            let kv = event.kv.unwrap();
            let text = |bytes: &[u8]| std::str::from_utf8(bytes).unwrap().to_owned();
            changes.push(Change {
                revision: kv.mod_revision,
                cell: text(&kv.key)[PREFIX.len()..].parse().unwrap(),
                operation: text(&kv.value).parse().unwrap(),
            });
        }
    }
    changes
}

/// Histories that are right, and each with one violation that has to be found.
pub fn prove_the_checker() {
    let swap = |number, expected, begun, ended, told| Operation {
        number,
        cell: 0,
        asked: Asked::Swap { expected },
        begun,
        ended,
        told,
    };
    let found = |number, begun, ended, revision, content| Operation {
        number,
        cell: 0,
        asked: Asked::Read,
        begun,
        ended: Some(ended),
        told: Told::Found { revision, content },
    };
    let change = |revision, operation| Change { revision, cell: 0, operation };
    let one = Content { revision: 2, operation: 1 };
    let two = Content { revision: 3, operation: 2 };
    let operations = [
        swap(1, 0, 0, Some(1), Told::Swapped { revision: 2 }),
        swap(2, 2, 2, None, Told::Nothing),
        found(3, 3, 6, 2, one),
        found(4, 4, 5, 3, two),
        swap(5, 2, 7, Some(8), Told::Refused),
    ];
    let history = [change(2, 1), change(3, 2)];
    // Those two reads overlap: the one that ended last may have been first.
    assert_eq!(check(&operations, &history), Ok(1));
    let with = |number: usize, operation: Operation| {
        let mut changed = operations;
        changed[number] = operation;
        changed
    };
    let wrong: [(&str, &[Operation], &[Change]); 8] = [
        ("stale read", &with(2, found(3, 6, 7, 2, one)), &history),
        ("read of the future", &with(3, found(4, 0, 1, 3, two)), &history),
        ("read of nothing", &with(2, found(3, 3, 6, 2, Content::default())), &history),
        ("lost", &operations, &[]),
        ("twice", &operations, &[change(2, 1), change(3, 1)]),
        ("behind another value", &operations, &[change(2, 1), change(3, 5)]),
        ("refused and done", &with(1, swap(2, 2, 2, Some(3), Told::Refused)), &history),
        ("at another revision", &with(0, swap(1, 0, 0, Some(1), Told::Swapped { revision: 3 })), &history),
    ];
    for (what, operations, history) in wrong {
        assert!(check(operations, history).is_err(), "not found: {what}");
    }
}
