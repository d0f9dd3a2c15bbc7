//! From a checked request to its answer: propose and wait, or read.
//!
//! **Contract.** [`Pipeline`] is what services call: one method for each thing a client can ask of the data. Every method
//! answers with engine values or with an error of etcd's table; headers and protobuf are the services' business.
//!
//! **Order of checks of a write**, as etcd's: quota, static validation, who asks, overload, size, then (at apply) alarms, what the caller may do, and what
//! depends on the state.
//!
//! **Cost.** A put is validated in place, encoded once into the command, and waits on one slot; the decoded request is
//! dropped before the wait, because its bytes keep the received frame alive. No task, and nothing that has to fire, per request. A read runs on
//! the calling task, against the store itself.
//!
//! **Bounds.** Commands that wait: `waiters_max`. Bytes that wait: the replicator's own bound. Both answer overload.
//!
//! **Does not know** sockets, protobuf of services, headers.
//!
//! **Reading order**: here, [`limits`], [`wait`], [`id`], [`read`], `room`, [`range_stream`], [`kv_hash`], [`snapshot`],
//! [`members`], [`auth`].
pub mod auth;
pub mod id;
pub mod kv_hash;
pub mod limits;
pub mod members;
pub mod range_stream;
pub mod read;
mod room;
pub mod snapshot;
pub mod wait;

use crate::answers::{AnswerShare, Room};
use crate::apply::command::{self, Kind, LeaseExpiry, MarkCommand, Origin};
use crate::apply::{Applied, AppliedView, Outcome, Quota, prefix_quota, quota};
use crate::auth::origin::Credential;
use crate::auth::password::{self, Passwords};
use crate::auth::token::Tokens;
use crate::membership::Membership;
use crate::metrics::timing::{Timed, Timer, Timing};
use crate::warnings::Warnings;
use crate::wire::etcdserverpb::alarm_request::AlarmAction;
use crate::wire::etcdserverpb::{self as pb, AlarmType};
use crate::wire::status::ApiError;
use bytes::Bytes;
use id::IdSource;
use kv_hash::KvHashes;
use limits::Limits;
use prost::Message;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use sternpost_engine::base::clock::MonotonicClock;
use sternpost_engine::mvcc::{DeleteRangeOutcome, PutOutcome, Store, TxnOutcome};
use sternpost_replication::{Class, ProposeError, Replicator, TransferError};
use tokio::sync::Semaphore;
use tonic::Code;
use wait::{Waiters, Waiting};

/// Commands that may wait for their result at a time. etcd refuses when its apply is 5,000 entries behind; what waits for
/// the disk comes on top.
pub const WAITERS_MAX: usize = 65_536;

/// Counters of requests since the process started.
#[derive(Default, Debug)]
pub struct RequestCounters {
    /// Ranges served, also as streams and inside read-only transactions.
    pub ranges: AtomicU64,
    /// Read-only transactions.
    pub read_only_txns: AtomicU64,
    /// Commands that were not taken over or whose result nobody could wait for.
    pub proposals_failed: AtomicU64,
}

/// What a pipeline is run with.
#[derive(Clone, Copy, Debug)]
pub struct PipelineOptions {
    /// Bounds on requests.
    pub limits: Limits,
    /// Bound on the store.
    pub quota: Quota,
    /// How long a request may take: 5 s and two election timeouts.
    pub timeout: Duration,
    /// Least TTL of a lease in seconds: one and a half election timeouts, rounded up.
    pub lease_ttl_min: i64,
    /// For changes of the membership.
    pub members: members::MemberLimits,
}

/// See the module.
pub struct Pipeline {
    replicator: Arc<dyn Replicator>,
    store: Store,
    view: Arc<AppliedView>,
    waiters: Arc<Waiters>,
    ids: IdSource,
    options: PipelineOptions,
    member_id: u64,
    hashes: Arc<KvHashes>,
    membership: Arc<Membership>,
    tokens: Arc<Tokens>,
    passwords: Passwords,
    /// Turns of those who take snapshots.
    snapshots: Arc<Semaphore>,
    timing: Timing,
    warnings: Arc<Warnings>,
    /// What was asked so far.
    pub counters: RequestCounters,
}

impl Pipeline {
    /// A pipeline of the member that `membership` knows; `start_ms` is the wall clock, for ids.
    pub fn new(
        replicator: Arc<dyn Replicator>,
        store: Store,
        view: Arc<AppliedView>,
        waiters: Arc<Waiters>,
        options: PipelineOptions,
        membership: Arc<Membership>,
        start_ms: u64,
    ) -> Self {
        let member_id = membership.member_id();
        Self {
            replicator,
            store,
            view,
            waiters,
            ids: IdSource::new(member_id, start_ms),
            options,
            member_id,
            hashes: Arc::default(),
            membership,
            tokens: Arc::new(Tokens::simple(Arc::new(MonotonicClock::default()))),
            passwords: Passwords::new(password::COST_DEFAULT),
            snapshots: Arc::new(Semaphore::new(snapshot::STREAMS_MAX)),
            timing: Timing::default(),
            warnings: Arc::default(),
            counters: RequestCounters::default(),
        }
    }

    /// With these tokens and passwords instead of etcd's defaults.
    pub fn with_auth(self, tokens: Arc<Tokens>, passwords: Passwords) -> Self {
        Self { tokens, passwords, ..self }
    }

    /// With handles that somebody looks at.
    pub fn with_timing(self, timing: Timing) -> Self {
        Self { timing, ..self }
    }

    /// With what is nearly full.
    pub fn with_warnings(self, warnings: Arc<Warnings>) -> Self {
        Self { warnings, ..self }
    }

    /// The same, to keep.
    pub fn shared_warnings(&self) -> Arc<Warnings> {
        Arc::clone(&self.warnings)
    }

    /// What is nearly full.
    pub fn warnings(&self) -> &Warnings {
        &self.warnings
    }

    /// How long things take.
    pub fn timing(&self) -> &Timing {
        &self.timing
    }

    /// The store, for reads that need no barrier.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// What the state machine publishes.
    pub fn view(&self) -> &AppliedView {
        &self.view
    }

    /// The replicator's positions and roles.
    pub fn replicator(&self) -> &dyn Replicator {
        &*self.replicator
    }

    /// The key space's hash at `revision`, 0 for the current one.
    pub async fn hash_kv(&self, revision: i64) -> Result<kv_hash::KvHash, ApiError> {
        let _lasting = self.timing.hash_of_revision();
        self.hashes.hash(&self.store, revision).await
    }

    /// What this member is to the cluster.
    pub fn membership(&self) -> &Membership {
        &self.membership
    }

    /// The same, to keep.
    pub fn shared_membership(&self) -> Arc<Membership> {
        Arc::clone(&self.membership)
    }

    /// Commands that wait for their result.
    pub fn waiting_count(&self) -> usize {
        self.waiters.count()
    }

    /// Options as given.
    pub fn options(&self) -> &PipelineOptions {
        &self.options
    }

    /// Sets one key.
    pub async fn put(&self, request: pb::PutRequest, who: &Credential) -> Result<PutOutcome, ApiError> {
        self.put_in(request, who, None).await.map(|(outcome, _)| outcome)
    }

    /// The same for a connection that has a `share` of the room for answers.
    pub async fn put_in(
        &self,
        request: pb::PutRequest,
        who: &Credential,
        share: Option<&Arc<AnswerShare>>,
    ) -> Result<(PutOutcome, Room), ApiError> {
        self.admit(quota::put_cost(&request)).await?;
        limits::check_put(&request)?;
        let origin = self.caller(who).await?;
        let room = match request.prev_kv {
            true => {
                // Who may not see a value does not hear either how large it is.
                self.view.auth().check_put(&origin, &request, &self.leases())?;
                self.room_for(room::ranges_of_put(&request), share).await?
            }
            false => Room::default(),
        };
        let waiting = self.propose(Kind::Put, origin, &request)?;
        drop(request);
        match self.outcome(waiting).await? {
            Outcome::Put(put) => Ok((put, room)),
            other => mixed_up(&other),
        }
    }

    /// Deletes a range.
    pub async fn delete_range(
        &self,
        request: pb::DeleteRangeRequest,
        who: &Credential,
    ) -> Result<DeleteRangeOutcome, ApiError> {
        self.delete_range_in(request, who, None).await.map(|(outcome, _)| outcome)
    }

    /// The same for a connection that has a `share` of the room for answers.
    pub async fn delete_range_in(
        &self,
        request: pb::DeleteRangeRequest,
        who: &Credential,
        share: Option<&Arc<AnswerShare>>,
    ) -> Result<(DeleteRangeOutcome, Room), ApiError> {
        limits::check_delete_range(&request)?;
        let origin = self.caller(who).await?;
        let room = match request.prev_kv {
            true => {
                self.view.auth().check_delete(&origin, &request)?;
                self.room_for(room::ranges_of_delete(&request), share).await?
            }
            false => Room::default(),
        };
        let waiting = self.propose(Kind::DeleteRange, origin, &request)?;
        drop(request);
        match self.outcome(waiting).await? {
            Outcome::DeleteRange(delete) => Ok((delete, room)),
            other => mixed_up(&other),
        }
    }

    /// Runs a transaction: through the log, unless it only reads.
    pub async fn txn(&self, request: pb::TxnRequest, who: &Credential) -> Result<TxnOutcome, ApiError> {
        self.txn_in(request, who, None).await.map(|(outcome, _)| outcome)
    }

    /// The same for a connection that has a `share` of the room for answers.
    pub async fn txn_in(
        &self,
        request: pb::TxnRequest,
        who: &Credential,
        share: Option<&Arc<AnswerShare>>,
    ) -> Result<(TxnOutcome, Room), ApiError> {
        self.admit(quota::txn_cost(&request)).await?;
        limits::check_txn(&request, &self.options.limits)?;
        if limits::is_read_only(&request) {
            return self.read_txn(request, who, share).await;
        }
        // What puts nothing is a deletion: etcd takes it where space is exceeded.
        let class = if quota::txn_cost(&request) > 0 { Class::Ordinary } else { Class::Privileged };
        let origin = self.caller(who).await?;
        let ranges = room::ranges_of(&request);
        if ranges.iter().any(|branch| !branch.is_empty()) {
            self.view.auth().check_txn(&origin, &request, &self.leases())?;
        }
        let room = self.room_for(ranges, share).await?;
        let waiting = self.propose_as(class, Kind::Txn, origin, &request)?;
        drop(request);
        match self.outcome(waiting).await? {
            Outcome::Txn(txn) => Ok((txn, room)),
            other => mixed_up(&other),
        }
    }

    /// Compacts; answers the current revision. With `physical` it waits until the hash of the compacted history is kept.
    pub async fn compact(&self, request: pb::CompactionRequest, who: &Credential) -> Result<i64, ApiError> {
        let origin = self.check_root(who).await?;
        // The hash needs what the compaction is about to forget, so its scan begins before the command is proposed.
        let scan = self.hashes.scan_before_compaction(&self.store, request.revision).await;
        let outcome = match self.propose(Kind::Compact, origin, &request) {
            Ok(waiting) => self.outcome(waiting).await,
            Err(error) => Err(error),
        };
        if let Some(scan) = scan {
            let previous = match &outcome {
                Ok(Outcome::Compact { previous_compact_revision, .. }) => Some(*previous_compact_revision),
                _ => None,
            };
            scan.settle(previous, request.physical).await;
        }
        match outcome? {
            Outcome::Compact { revision, .. } => Ok(revision),
            other => mixed_up(&other),
        }
    }

    /// Grants a lease: answers (id, TTL as granted).
    pub async fn lease_grant(
        &self,
        mut request: pb::LeaseGrantRequest,
        who: &Credential,
    ) -> Result<(i64, i64), ApiError> {
        self.admit(quota::LEASE_COST_BYTES).await?;
        let origin = self.check_user(who).await?;
        if request.id == 0 {
            request.id = self.ids.next_lease();
        }
        // Raised here and not at apply, because members may have different election timeouts.
        request.ttl = request.ttl.max(self.options.lease_ttl_min);
        match self.outcome(self.propose(Kind::LeaseGrant, origin, &request)?).await? {
            Outcome::LeaseGrant { lease, ttl, .. } => Ok((lease, ttl)),
            other => mixed_up(&other),
        }
    }

    /// Revokes a lease; answers the revision after its keys were deleted.
    pub async fn lease_revoke(&self, lease: i64, who: &Credential) -> Result<i64, ApiError> {
        let origin = self.check_user(who).await?;
        let request = pb::LeaseRevokeRequest { id: lease };
        match self.outcome(self.propose(Kind::LeaseRevoke, origin, &request)?).await? {
            Outcome::LeaseRevoke { revision } => Ok(revision),
            other => mixed_up(&other),
        }
    }

    /// Ends a lease that ran out, if this member still leads in `term`.
    pub async fn lease_expire(&self, expiry: LeaseExpiry, term: u64) -> Result<(), ApiError> {
        let id = self.ids.next();
        let command = command::encode_lease_expiry(id, expiry);
        let waiting = self.waiters.register(id)?;
        self.taken_over(self.replicator.propose_in_term(command, Class::Privileged, term))?;
        self.outcome(Proposed { waiting, timer: self.timing.request(Timed::Command(Kind::LeaseExpire)) })
            .await
            .map(|_| ())
    }

    /// Makes a place to compare the members at, as leader of `term`; returns when it is applied here.
    pub async fn make_mark(&self, is_deep: bool, term: u64) -> Result<(), ApiError> {
        let status = self.replicator.status();
        // What is matched was acknowledged in this term. What is not committed may be overwritten, and is gone then by right; of our own
        // log what is applied is durable.
        let others = self.replicator.peers().into_iter().filter(|peer| peer.matched_index > 0);
        let others = others.map(|peer| (peer.id, peer.matched_index.min(status.committed_index)));
        let promised = others.chain([(self.member_id, status.applied_index)]).collect();
        let id = self.ids.next();
        let waiting = self.waiters.register(id)?;
        let command = command::encode_mark(id, &MarkCommand { is_deep, term, promised });
        self.taken_over(self.replicator.propose_in_term(command, Class::Ordinary, term))?;
        self.outcome(Proposed { waiting, timer: self.timing.request(Timed::Command(Kind::Mark)) })
            .await
            .map(|_| ())
    }

    /// Hands leadership to `target` and waits until it leads.
    pub async fn move_leader(&self, target: u64) -> Result<(), ApiError> {
        if self.replicator.status().leader != self.member_id {
            return Err(ApiError::NotLeader);
        }
        // 0 is our own word for "the best one".
        if target == 0 {
            return Err(ApiError::BadLeaderTransferee);
        }
        self.replicator.transfer_leader(target).map_err(|error| match error {
            TransferError::NotLeader => ApiError::NotLeader,
            TransferError::BadTransferee => ApiError::BadLeaderTransferee,
            _ => ApiError::TimeoutLeaderTransfer,
        })?;
        let led_by_target = async {
            while self.replicator.status().leader != target {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let moved = tokio::time::timeout(self.options.timeout, led_by_target).await;
        moved.map_err(|_| ApiError::TimeoutLeaderTransfer)
    }

    /// Lists, raises or takes back alarms; answers those concerned and the revision.
    pub async fn alarm(
        &self,
        request: pb::AlarmRequest,
        who: &Credential,
    ) -> Result<(Vec<pb::AlarmMember>, i64), ApiError> {
        if request.action() == AlarmAction::Get {
            self.check_user(who).await?;
            self.read_barrier().await?;
            let wanted = |alarm: &pb::AlarmMember| {
                request.alarm == AlarmType::None as i32 || alarm.alarm == request.alarm
            };
            return Ok((self.view.alarms().into_iter().filter(wanted).collect(), self.store.revision()));
        }
        let origin = self.check_root(who).await?;
        match self.outcome(self.propose(Kind::Alarm, origin, &request)?).await? {
            Outcome::Alarm { alarms, revision } => Ok((alarms, revision)),
            other => mixed_up(&other),
        }
    }

    /// Sets how many keys may begin with a prefix, or takes that back; answers the revision.
    pub async fn set_prefix_quota(
        &self,
        prefix: Bytes,
        keys_max: Option<u64>,
        who: &Credential,
    ) -> Result<i64, ApiError> {
        let origin = self.check_root(who).await?;
        let bytes = prefix.len();
        if bytes == 0 || bytes > prefix_quota::PREFIX_BYTES_MAX {
            let text = format!(
                "sternpost: a prefix with a quota has 1 to {} bytes, not {bytes}",
                prefix_quota::PREFIX_BYTES_MAX
            );
            return Err(ApiError::Other(Code::InvalidArgument, text.into()));
        }
        let quota = command::PrefixQuota { prefix: prefix.to_vec(), keys_max };
        match self.outcome(self.propose(Kind::PrefixQuota, origin, &quota)?).await? {
            Outcome::PrefixQuota { revision } => Ok(revision),
            other => mixed_up(&other),
        }
    }

    /// Says this member's name and client URLs to the cluster.
    pub async fn publish_member(&self, member: pb::Member) -> Result<(), ApiError> {
        let id = self.ids.next();
        let command = command::encode(Kind::MemberPublish, Origin::RootInternal, id, &member);
        self.outcome(self.propose_command(Kind::MemberPublish, id, command, Class::Privileged)?)
            .await
            .map(|_| ())
    }

    /// The quota check before anything else: a write of `cost` that does not fit raises this member's alarm.
    async fn admit(&self, cost: i64) -> Result<(), ApiError> {
        if self.options.quota.admits(self.view.size_bytes(), cost) {
            return Ok(());
        }
        self.raise_no_space().await;
        Err(ApiError::NoSpace)
    }

    /// Raises NOSPACE for this member, unless it is raised. A failure is not the caller's: its write is refused anyway, and
    /// the next one tries again.
    async fn raise_no_space(&self) {
        let mine = |alarm: &pb::AlarmMember| {
            alarm.member_id == self.member_id && alarm.alarm == AlarmType::Nospace as i32
        };
        if self.view.has_alarm(AlarmType::Nospace) && self.view.alarms().iter().any(mine) {
            return;
        }
        let request = pb::AlarmRequest {
            action: AlarmAction::Activate.into(),
            member_id: self.member_id,
            alarm: AlarmType::Nospace.into(),
        };
        if let Ok(waiting) = self.propose(Kind::Alarm, Origin::RootInternal, &request) {
            let _ = self.result(waiting).await;
        }
    }

    /// Encodes a command and hands it to the replicator.
    fn propose(&self, kind: Kind, origin: Origin, request: &impl Message) -> Result<Proposed, ApiError> {
        let class = match kind {
            Kind::Put | Kind::Txn | Kind::LeaseGrant | Kind::Authenticate => Class::Ordinary,
            _ => Class::Privileged,
        };
        self.propose_as(class, kind, origin, request)
    }

    fn propose_as(
        &self,
        class: Class,
        kind: Kind,
        origin: Origin,
        request: &impl Message,
    ) -> Result<Proposed, ApiError> {
        let timer = self.timing.request(Timed::Command(kind));
        let id = self.ids.next();
        let measured = limits::internal_request_bytes(id, &origin, request.encoded_len());
        let command = command::encode(kind, origin, id, request);
        if measured > self.options.limits.request_bytes_max {
            // Overload comes first where both apply.
            return Err(if self.waiters.is_full() {
                ApiError::TooManyRequests
            } else {
                ApiError::RequestTooLarge
            });
        }
        let waiting = self.waiters.register(id)?;
        self.taken_over(self.replicator.propose(command, class))?;
        Ok(Proposed { waiting, timer })
    }

    fn propose_command(
        &self,
        kind: Kind,
        id: u64,
        command: Vec<u8>,
        class: Class,
    ) -> Result<Proposed, ApiError> {
        let timer = self.timing.request(Timed::Command(kind));
        let waiting = self.waiters.register(id)?;
        self.taken_over(self.replicator.propose(command, class))?;
        Ok(Proposed { waiting, timer })
    }

    fn taken_over(&self, proposed: Result<(), ProposeError>) -> Result<(), ApiError> {
        proposed.map_err(|error| {
            self.counters.proposals_failed.fetch_add(1, Ordering::Relaxed);
            match error {
                ProposeError::TooManyRequests => ApiError::TooManyRequests,
                _ => ApiError::Stopped,
            }
        })
    }

    /// What comes of a command, with nothing done about the quota.
    async fn result(&self, proposed: Proposed) -> Applied {
        let Proposed { waiting, timer } = proposed;
        let applied = waiting.await;
        timer.end(applied.result.is_ok());
        applied
    }

    async fn outcome(&self, proposed: Proposed) -> Result<Outcome, ApiError> {
        let Applied { result, over_quota } = self.result(proposed).await;
        if matches!(result, Err(ApiError::Timeout | ApiError::Stopped)) {
            self.counters.proposals_failed.fetch_add(1, Ordering::Relaxed);
        }
        if over_quota && result.is_ok() {
            self.raise_no_space().await;
            return Err(ApiError::NoSpace);
        }
        result
    }
}

/// A command on its way.
struct Proposed {
    waiting: Waiting,
    timer: Timer,
}

/// Ids are unique, so a command cannot hear the answer of another kind.
fn mixed_up(outcome: &Outcome) -> ! {
    panic!("a command was answered as if it were another: {outcome:?}")
}
