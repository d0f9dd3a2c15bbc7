//! Reads: linearizable behind a barrier, serializable at once, read-only transactions at one revision.
use super::Pipeline;
use super::limits;
use super::room::{AnswerRoom, read_measured};
use crate::answers::{AnswerShare, Room, Turn};
use crate::auth::check::Access;
use crate::auth::origin::Credential;
use crate::first_turn;
use crate::large_answer::size_of;
use crate::metrics::timing::Timed;
use crate::wire::etcdserverpb::{RangeRequest, TxnRequest};
use crate::wire::status::ApiError;
use std::cmp::Ordering as Order;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Poll;
use sternpost_engine::OperationError;
use sternpost_engine::mvcc::{
    BoundedRange, Compare, CompareResult, CompareTarget, KeyValue, Range, RangeOutcome, Store, Txn,
    TxnOperation, TxnOperationOutcome, TxnOutcome, key_after,
};
use sternpost_replication::ReadError;

/// What of a range is compared at once.
const COMPARED_KEYS_MAX: u64 = 4096;
/// The same in bytes.
const COMPARED_BYTES_MAX: u64 = 256 << 10;
/// Tries of a read-only transaction whose revision was compacted while it ran; each starts at a newer one.
const READ_TXN_TRIES: usize = 8;

impl Pipeline {
    /// Waits until the store holds everything that was acknowledged before the call.
    pub async fn read_barrier(&self) -> Result<(), ApiError> {
        let mut barrier = pin!(self.replicator.read_barrier());
        // A single node's barrier is ready at once: no timer for it, and no time.
        let first = poll_fn(|context| Poll::Ready(barrier.as_mut().poll(context))).await;
        let reached = match first {
            Poll::Ready(reached) => reached,
            Poll::Pending => {
                let begun = tokio::time::Instant::now();
                let reached = tokio::time::timeout(self.options.timeout, barrier).await;
                self.timing.barrier(matches!(reached, Ok(Ok(_))), begun.elapsed());
                reached.map_err(|_| ApiError::Timeout)?
            }
        };
        match reached {
            Ok(_) => Ok(()),
            Err(ReadError::NoLeader) => Err(ApiError::NoLeader),
            Err(ReadError::TimedOut) => Err(ApiError::Timeout),
            Err(ReadError::TooManyRequests) => Err(ApiError::TooManyRequests),
            Err(_) => Err(ApiError::Stopped),
        }
    }

    /// Reads a range, whatever its size: for what asks for little.
    pub async fn range(&self, request: RangeRequest, who: &Credential) -> Result<RangeOutcome, ApiError> {
        match self.range_bounded(request, who, u64::MAX, None).await?.0 {
            BoundedRange::Whole(outcome) => Ok(outcome),
            BoundedRange::Large(large) => Ok(large.read()?),
        }
    }

    /// Reads a range that is held as a whole up to `bytes_max`, and only measured above; the client may read all of it then. Where there is a `share`, a range
    /// of many keys waits for its turn there, which comes with it.
    pub async fn range_bounded(
        &self,
        request: RangeRequest,
        who: &Credential,
        bytes_max: u64,
        share: Option<&Arc<AnswerShare>>,
    ) -> Result<(BoundedRange, Option<Turn>), ApiError> {
        limits::check_range(&request)?;
        let timer = self.timing.request(Timed::Range);
        if !request.serializable {
            self.read_barrier().await?;
        }
        let origin = self.caller(who).await?;
        self.view().auth().check_range(&origin, Access::Read, &request.key, &request.range_end)?;
        self.counters.ranges.fetch_add(1, Ordering::Relaxed);
        let range = Range::from(request);
        let is_list = !range.range.end.is_empty() && !range.count_only;
        let turn = match share.filter(|_| is_list) {
            Some(share) => Some(share.turn(self.options.timeout).await?),
            None => None,
        };
        let read = || {
            let begun = tokio::time::Instant::now();
            let outcome = if range.range.end.is_empty() {
                self.store.range(&range).map(BoundedRange::Whole)
            } else {
                self.store.range_bounded(&range, bytes_max, size_of)
            };
            self.timing.range(outcome.is_ok(), begun.elapsed());
            outcome
        };
        let outcome = if range.range.end.is_empty() {
            read()?
        } else {
            first_turn::leave().await;
            read_many(&self.store, read)?
        };
        self.still_current(&origin)?;
        timer.end(true);
        Ok((outcome, turn))
    }

    /// Runs a checked transaction that only reads.
    pub(super) async fn read_txn(
        &self,
        request: TxnRequest,
        who: &Credential,
        share: Option<&Arc<AnswerShare>>,
    ) -> Result<(TxnOutcome, Room), ApiError> {
        let timer = self.timing.request(Timed::ReadOnlyTxn);
        if !limits::is_serializable(&request) {
            self.read_barrier().await?;
        }
        let origin = self.caller(who).await?;
        self.view().auth().check_txn(&origin, &request, &self.leases())?;
        first_turn::leave().await;
        let txn = Txn::from(request);
        let turn = match share.filter(|_| reads_many(&txn)) {
            Some(share) => Some(share.turn(self.options.timeout).await?),
            None => None,
        };
        self.counters.read_only_txns.fetch_add(1, Ordering::Relaxed);
        let mut room = AnswerRoom::new(share);
        let mut read = || {
            room.clear();
            read_many(&self.store, || read_txn(&self.store, &txn, &mut room))
        };
        let mut outcome = read();
        for _ in 1..READ_TXN_TRIES {
            match outcome {
                Err(ReadTxnError::Overtaken) => outcome = read(),
                decided => {
                    outcome = decided;
                    break;
                }
            }
        }
        let outcome = outcome.map_err(|error| match error {
            ReadTxnError::Operation(error) => error.into(),
            ReadTxnError::Overtaken => ApiError::Compacted,
            ReadTxnError::Refused(error) => error,
        })?;
        self.still_current(&origin)?;
        timer.end(true);
        Ok((outcome, Room::new(turn, room.into_held())))
    }
}

/// True if a transaction compares or reads ranges of keys.
fn reads_many(txn: &Txn) -> bool {
    let is_many = |operation: &TxnOperation| matches!(operation, TxnOperation::Range(range) if !range.range.end.is_empty() && !range.count_only);
    txn.compares.iter().any(|compare| !compare.range.end.is_empty())
        || txn.success.iter().chain(&txn.failure).any(is_many)
}

enum ReadTxnError {
    /// The client's own revision cannot be read.
    Operation(OperationError),
    /// The revision that the transaction runs at was compacted meanwhile.
    Overtaken,
    /// There is no room for the answer.
    Refused(ApiError),
}

impl ReadTxnError {
    /// Of a read at the revision of the transaction.
    fn at_now(error: OperationError) -> Self {
        match error {
            OperationError::Unreadable(_) => Self::Operation(error),
            _ => Self::Overtaken,
        }
    }
}

/// Runs a read of many keys. Once there is something on disk it may have to wait for the device many times, and the
/// runtime's other tasks shall not wait with it. One key is one or two reads at worst, and handing over costs as much.
pub(crate) fn read_many<T>(store: &Store, read: impl FnOnce() -> T) -> T {
    use tokio::runtime::{Handle, RuntimeFlavor};
    let other_threads = || Handle::try_current().map(|handle| handle.runtime_flavor());
    if store.is_on_disk() && matches!(other_threads(), Ok(RuntimeFlavor::MultiThread)) {
        tokio::task::block_in_place(read)
    } else {
        read()
    }
}

/// Compares and ranges, all at the revision that is current now.
fn read_txn(store: &Store, txn: &Txn, room: &mut AnswerRoom) -> Result<TxnOutcome, ReadTxnError> {
    let revision = store.revision();
    let mut succeeded = true;
    for compare in &txn.compares {
        if !holds(store, compare, revision)? {
            succeeded = false;
            break;
        }
    }
    let branch = if succeeded { &txn.success } else { &txn.failure };
    let mut responses = Vec::with_capacity(branch.len());
    for operation in branch {
        let TxnOperation::Range(range) = operation else {
            unreachable!("a read-only transaction has only ranges")
        };
        let (range, error): (_, fn(OperationError) -> ReadTxnError) = if range.revision <= 0 {
            (&Range { revision, ..range.clone() }, ReadTxnError::at_now)
        } else if range.revision > revision {
            return Err(ReadTxnError::Operation(OperationError::FutureRevision(revision)));
        } else {
            (range, ReadTxnError::Operation)
        };
        let measured = store.range_bounded(range, room.free_bytes(), size_of).map_err(error)?;
        let outcome = read_measured(measured, room).map_err(ReadTxnError::Refused)?.map_err(error)?;
        responses.push(TxnOperationOutcome::Range(RangeOutcome { revision, ..outcome }));
    }
    Ok(TxnOutcome { revision, succeeded, responses })
}

/// True if `compare` holds at `revision` for every key in its range. A range without keys is compared as one key that was
/// never written, except that a value compare then never holds.
fn holds(store: &Store, compare: &Compare, revision: i64) -> Result<bool, ReadTxnError> {
    let range = Range {
        range: compare.range.clone(),
        revision,
        keys_only: !matches!(compare.target, CompareTarget::Value(_) | CompareTarget::Lease(_)),
        ..Range::default()
    };
    let mut from = range.range.key.clone();
    let mut is_empty = true;
    // A page at a time: what is compared is not answered, so nothing of it is held.
    loop {
        let page = store.range_page(&range, &from, COMPARED_KEYS_MAX, COMPARED_BYTES_MAX, size_of);
        let page = page.map_err(ReadTxnError::at_now)?;
        let Some(last) = page.last() else { break };
        is_empty = false;
        if !page.iter().all(|kv| holds_for(compare, kv)) {
            return Ok(false);
        }
        if range.range.end.is_empty() {
            break;
        }
        from = key_after(&last.key);
    }
    let is_value = matches!(compare.target, CompareTarget::Value(_));
    Ok(!is_empty || (!is_value && holds_for(compare, &KeyValue::default())))
}

fn holds_for(compare: &Compare, kv: &KeyValue) -> bool {
    let order = match &compare.target {
        CompareTarget::Version(version) => kv.version.cmp(version),
        CompareTarget::Create(revision) => kv.create_revision.cmp(revision),
        CompareTarget::Mod(revision) => kv.mod_revision.cmp(revision),
        CompareTarget::Value(value) => kv.value.cmp(value),
        CompareTarget::Lease(lease) => kv.lease.cmp(lease),
        CompareTarget::Unknown => Order::Equal,
    };
    match compare.result {
        CompareResult::Equal => order == Order::Equal,
        CompareResult::NotEqual => order != Order::Equal,
        CompareResult::Greater => order == Order::Greater,
        CompareResult::Less => order == Order::Less,
        CompareResult::Unknown => true,
    }
}
