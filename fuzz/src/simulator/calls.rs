//! What clients ask, what they are answered, and the futures between the two.
//!
//! **Contract.** A [`Task`] is polled by the world, in the order of its number, when it was woken: no runtime, no thread. The server's time-outs that belong
//! to tokio never come; the world gives a call up when its time is over, as a client would.
//!
//! **Does not know** what an answer should be.
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use sternpost_engine::mvcc::{DeleteRangeOutcome, PutOutcome, RangeOutcome, TxnOutcome};
use sternpost_server::apply::Outcome;
use sternpost_server::apply::command::LeaseExpiry;
use sternpost_server::wire::etcdserverpb as pb;
use sternpost_server::wire::status::ApiError;

/// What a client asks.
#[derive(Clone, PartialEq, Debug)]
pub(super) enum Call {
    Put(pb::PutRequest),
    Range(pb::RangeRequest),
    Delete(pb::DeleteRangeRequest),
    Txn(pb::TxnRequest),
    Compact(i64),
    Grant { lease: i64, ttl: i64 },
    Revoke(i64),
    Renew(i64),
    AddLearner(u64),
    Promote(u64),
    Remove(u64),
}

/// What it is answered.
#[derive(Clone, PartialEq, Debug)]
pub(super) enum Answer {
    Put(PutOutcome),
    Range(RangeOutcome),
    Delete(DeleteRangeOutcome),
    Txn(TxnOutcome),
    /// The outcome of another command.
    Outcome(Outcome),
    /// Seconds, 0 if there is no such lease.
    Renewed(i64),
    Changed,
}

/// What comes of a task.
pub(super) enum Done {
    /// The answer to a call.
    Answer(Result<Answer, ApiError>),
    /// Leases to be revoked, with the term in which they may.
    Due(Vec<(LeaseExpiry, u64)>),
    /// Nothing that anybody waits for.
    Nothing,
}

/// Whose a task is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Purpose {
    /// The call with this number.
    Call(u64),
    /// A look for leases that ran out.
    Look,
    /// The member's own business.
    Own,
}

#[derive(Default)]
struct Flag(AtomicBool);

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Release);
    }
}

/// See the module.
pub(super) struct Task {
    pub(super) purpose: Purpose,
    future: Pin<Box<dyn Future<Output = Done>>>,
    flag: Arc<Flag>,
}

impl Task {
    pub(super) fn new(purpose: Purpose, future: impl Future<Output = Done> + 'static) -> Self {
        let flag = Arc::new(Flag(AtomicBool::new(true)));
        Self { purpose, future: Box::pin(future), flag }
    }

    /// Goes on, if it was woken; what it comes to, if it is over.
    pub(super) fn poll(&mut self) -> Option<Done> {
        if !self.flag.0.swap(false, Ordering::AcqRel) {
            return None;
        }
        let waker = Waker::from(Arc::clone(&self.flag));
        match self.future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(done) => Some(done),
            Poll::Pending => None,
        }
    }

    /// It has something to do.
    pub(super) fn is_woken(&self) -> bool {
        self.flag.0.load(Ordering::Acquire)
    }
}
