//! Room for what a transaction or a change with previous values answers, taken before anything is done.
//!
//! **Contract.** H1 of [`crate::answers`]: what is refused was not carried out. A read takes room before it reads a value, by what the key tree says of it. A
//! change takes room before it is proposed, by what it would answer now; between that and its turn in the log others may write, so its answer can be larger
//! than its room, by what they write meanwhile. It is then answered all the same, and counts.
//!
//! **Cost.** A change that answers no value (a put, a deletion without `prev_kv`, a transaction of those) is not looked at. Of one that answers single keys
//! each costs a look into the key tree, which reads no value.
//!
//! **Why not at apply**: members may differ in their bounds, and what is refused there has to be refused by all.
use super::Pipeline;
use crate::answers::{AnswerClass, AnswerShare, HeldAnswer, Room, WHOLE_BYTES_MAX};
use crate::first_turn;
use crate::large_answer::size_of;
use crate::request::read::read_many;
use crate::wire::etcdserverpb::request_op::Request as Op;
use crate::wire::etcdserverpb::{self as pb, RequestOp};
use crate::wire::status::ApiError;
use bytes::Bytes;
use std::sync::Arc;
use sternpost_engine::OperationError;
use sternpost_engine::mvcc::{BoundedRange, KeyRange, Range, RangeOutcome, Store};

/// Answers from here on stand back as lists do.
const LIST_BYTES_MIN: u64 = 64 << 10;

/// Room that grows with an answer that is being read.
pub(super) struct AnswerRoom<'a> {
    share: Option<&'a Arc<AnswerShare>>,
    held: Option<HeldAnswer>,
    /// What may still be read without asking.
    free_bytes: u64,
}

impl<'a> AnswerRoom<'a> {
    /// Of a connection; without one nothing is refused.
    pub(super) fn new(share: Option<&'a Arc<AnswerShare>>) -> Self {
        let mut room = Self { share, held: None, free_bytes: 0 };
        room.clear();
        room
    }

    /// Gives everything back, for another try.
    pub(super) fn clear(&mut self) {
        self.held = None;
        self.free_bytes = if self.share.is_some() { WHOLE_BYTES_MAX as u64 } else { u64::MAX };
    }

    /// What may be read without being measured first.
    pub(super) fn free_bytes(&self) -> u64 {
        self.free_bytes
    }

    /// Takes room for so much, which is held twice while it is encoded.
    fn take(&mut self, bytes: u64) -> Result<(), ApiError> {
        let Some(share) = self.share else { return Ok(()) };
        if bytes <= self.free_bytes {
            self.free_bytes -= bytes;
            return Ok(());
        }
        let bytes = usize::try_from(bytes.saturating_mul(2)).unwrap_or(usize::MAX);
        match &mut self.held {
            Some(held) => held.ask(AnswerClass::List, bytes),
            None => share.begin_with(AnswerClass::List, bytes).map(|held| self.held = Some(held)),
        }
        .map_err(refused)
    }

    /// What is held now.
    pub(super) fn into_held(self) -> Option<HeldAnswer> {
        self.held
    }
}

/// The answer to a range that was measured, once there is room for it.
pub(super) fn read_measured(
    measured: BoundedRange,
    room: &mut AnswerRoom<'_>,
) -> Result<Result<RangeOutcome, OperationError>, ApiError> {
    match measured {
        BoundedRange::Whole(outcome) => {
            let bytes = outcome.kvs.iter().map(|kv| (kv.key.len() + kv.value.len() + 32) as u64).sum();
            // It was read within what is free; encoding adds a little.
            room.take(u64::min(bytes, room.free_bytes()))?;
            Ok(Ok(outcome))
        }
        BoundedRange::Large(large) => {
            room.take(large.bytes_to_hold())?;
            Ok(large.read())
        }
    }
}

/// The bound as etcd has none: our own text.
fn refused(status: tonic::Status) -> ApiError {
    ApiError::Other(status.code(), status.message().to_owned().into())
}

/// What a range or the previous values of one take in an answer now. What cannot be read answers an error, and takes nothing.
fn bytes_now(store: &Store, range: &Range) -> u64 {
    if range.count_only {
        return 0;
    }
    match store.range_bounded(range, 0, size_of) {
        Ok(BoundedRange::Large(large)) => large.bytes(),
        Ok(BoundedRange::Whole(_)) | Err(_) => 0,
    }
}

fn previous(key: &Bytes, range_end: &Bytes) -> Range {
    Range { range: KeyRange { key: key.clone(), end: range_end.clone() }, ..Range::default() }
}

/// What of a branch is answered with values.
fn for_each_range(branch: &[RequestOp], visit: &mut dyn FnMut(Range)) {
    for operation in branch {
        match &operation.request {
            Some(Op::RequestRange(range)) => visit(range.clone().into()),
            Some(Op::RequestPut(put)) if put.prev_kv => visit(previous(&put.key, &Bytes::new())),
            Some(Op::RequestDeleteRange(delete)) if delete.prev_kv => {
                visit(previous(&delete.key, &delete.range_end));
            }
            Some(Op::RequestTxn(txn)) => {
                for_each_range(&txn.success, visit);
                for_each_range(&txn.failure, visit);
            }
            _ => {}
        }
    }
}

/// What each branch may answer with values.
pub(super) fn ranges_of(txn: &pb::TxnRequest) -> [Vec<Range>; 2] {
    [&txn.success, &txn.failure].map(|branch| {
        let mut ranges = Vec::new();
        for_each_range(branch, &mut |range| ranges.push(range));
        ranges
    })
}

/// The same of a put.
pub(super) fn ranges_of_put(put: &pb::PutRequest) -> [Vec<Range>; 2] {
    let range = put.prev_kv.then(|| previous(&put.key, &Bytes::new()));
    [range.into_iter().collect(), Vec::new()]
}

/// The same of a deletion.
pub(super) fn ranges_of_delete(delete: &pb::DeleteRangeRequest) -> [Vec<Range>; 2] {
    let range = delete.prev_kv.then(|| previous(&delete.key, &delete.range_end));
    [range.into_iter().collect(), Vec::new()]
}

impl Pipeline {
    /// Room for what a change would answer now, which is the larger of two branches.
    ///
    /// # Errors
    /// `ResourceExhausted` where there is none; nothing was proposed then.
    pub(super) async fn room_for(
        &self,
        branches: [Vec<Range>; 2],
        share: Option<&Arc<AnswerShare>>,
    ) -> Result<Room, ApiError> {
        let Some(share) = share.filter(|_| branches.iter().any(|ranges| !ranges.is_empty())) else {
            return Ok(Room::default());
        };
        let is_many = |range: &Range| !range.range.end.is_empty() && !range.count_only;
        let measure = || {
            let of_branch = |ranges: &Vec<Range>| {
                ranges.iter().fold(0_u64, |bytes, range| bytes.saturating_add(bytes_now(self.store(), range)))
            };
            branches.iter().map(of_branch).max().unwrap_or(0)
        };
        let bytes = if branches.iter().flatten().any(is_many) {
            first_turn::leave().await;
            // Going over many keys takes its turn as reading them does.
            let _turn = share.turn(self.options().timeout).await?;
            read_many(self.store(), measure)
        } else {
            measure()
        };
        let class = if bytes < LIST_BYTES_MIN { AnswerClass::Key } else { AnswerClass::List };
        let bytes = usize::try_from(bytes.saturating_mul(2)).unwrap_or(usize::MAX);
        Ok(Room::new(None, Some(share.begin_with(class, bytes).map_err(refused)?)))
    }
}
