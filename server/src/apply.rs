//! The replicated state machine: commands in, changes of the store out.
//!
//! **Contract.** Implements [`StateMachine`] over the engine's writer. Deterministic: what a command does depends on the
//! state and the command alone. Reads no clock, no randomness, no network; two local things leave it, neither of which is
//! part of the state: results by command id (only when the log is not being replayed), and [`Notice`]s.
//!
//! **Invariants.**
//! - A1: applying the same entries gives the same state on every member.
//! - A2: every member decodes a command to the same value, or stops (see [`command`]).
//! - A3: every system record decodes (see [`records`]).
//! - A4: entries are applied in index order, each once.
//! - A5: a command that this member cannot carry out, because its disk cannot be read, is not skipped: the process ends
//!   before anybody is served from a state that others do not have.
//!
//! **Order of checks at apply**, as etcd's appliers are nested: CORRUPT, then NOSPACE, then who asks, then quotas of prefixes, then the operation's own errors. A
//! write that exceeds this member's quota is applied and then answered as refused.
//!
//! **Reading order**: [`command`], [`outcome`], here, [`records`], `alarm`, `lease`, `auth`, [`members`], [`promises`], [`quota`], [`prefix_quota`], [`view`].
mod alarm;
mod auth;
pub mod command;
mod lease;
pub mod members;
pub mod outcome;
pub mod prefix_quota;
pub mod promises;
pub mod quota;
pub mod records;
pub mod view;

pub use outcome::{Applied, Notice, Notices, Outcome, Results};
pub use promises::Promises;
pub use quota::Quota;
pub use records::GenesisState;
pub use view::{AppliedView, EMPTY_STORE_BYTES};

use crate::auth::AuthState;
use crate::auth::origin::Origin;
use crate::comparison::marks::Mark;
use crate::wire::etcdserverpb::{self as pb, AlarmType};
use crate::wire::status::ApiError;
use alarm::AlarmTable;
use command::{Command, Decoded, Kind, MarkCommand};
use lease::LeaseTable;
use members::MemberCommand;
use prefix_quota::PrefixQuotas;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use sternpost_engine::mvcc::{
    DeleteRange, Put, StateSum, Store, StoreWriter, Txn, TxnOperationOutcome, TxnOutcome,
};
use sternpost_replication::{Announce, ChangeEntry, Entry, Rejection, StateMachine};

/// No build of ours writes such an entry.
const MISPLACED: ApiError =
    ApiError::Unimplemented("a change of the members outside of an entry of its kind");

/// See the module.
pub struct Machine {
    writer: StoreWriter,
    leases: LeaseTable,
    alarms: AlarmTable,
    auth: Arc<AuthState>,
    view: Arc<AppliedView>,
    results: Arc<dyn Results>,
    notices: Box<dyn Notices>,
    quota: Quota,
    prefix_quotas: PrefixQuotas,
    promises: Arc<Promises>,
    times: Option<Box<dyn ApplyTimes>>,
    /// Estimate of the store's size between two flushes; only the quota looks at it.
    size_bytes: i64,
}

/// What a command is applied under.
#[derive(Clone, Copy)]
struct Context {
    index: u64,
    replay: bool,
}

impl Context {
    /// Counts what a command did, unless the log is being replayed.
    fn count(self, counter: &AtomicU64, count: i64) {
        if !self.replay {
            counter.fetch_add(count.unsigned_abs(), Ordering::Relaxed);
        }
    }
}

/// Hears how long commands take. The machine itself has no clock: what it does is the same on every member.
pub trait ApplyTimes: Send {
    /// Microseconds since some moment.
    fn now_us(&self) -> u64;

    /// A command was applied, not replayed.
    fn applied(&self, kind: Kind, is_success: bool, took_us: u64);

    /// A lease was granted.
    fn granted(&self, ttl_s: i64);
}

impl Machine {
    /// A machine over `writer`, which may hold a checkpoint already.
    pub fn new(
        writer: StoreWriter,
        view: Arc<AppliedView>,
        results: Arc<dyn Results>,
        notices: Box<dyn Notices>,
        quota: Quota,
    ) -> Self {
        let mut machine = Self {
            leases: LeaseTable::default(),
            alarms: AlarmTable::default(),
            auth: Arc::default(),
            size_bytes: 0,
            writer,
            view,
            results,
            notices,
            quota,
            prefix_quotas: PrefixQuotas::default(),
            promises: Arc::default(),
            times: None,
        };
        machine.load();
        machine
    }

    /// With somebody who hears how long commands take.
    pub fn with_times(self, times: Box<dyn ApplyTimes>) -> Self {
        Self { times: Some(times), ..self }
    }

    /// The store that it fills.
    pub fn store(&self) -> &Store {
        self.writer.store()
    }

    /// What the log says that members have promised, while it is replayed.
    pub fn promises(&self) -> Arc<Promises> {
        Arc::clone(&self.promises)
    }

    /// Fills what is kept in memory from the system records.
    fn load(&mut self) {
        self.leases = LeaseTable::load(self.writer.store());
        for (lease, record) in self.leases.iter() {
            let (ttl, granted_index) = (record.ttl, record.granted_index);
            self.notices.notice(Notice::LeaseGranted { lease, ttl, granted_index });
        }
        self.alarms = AlarmTable::load(self.writer.store());
        self.view.set_alarms(self.alarms.list(AlarmType::None as i32));
        self.auth = Arc::new(records::auth(self.writer.store()));
        self.view.set_auth(Arc::clone(&self.auth));
        self.view.set_term(self.writer.store().applied().1);
        self.load_prefix_quotas();
        self.publish_size();
    }

    fn publish_size(&mut self) {
        let retained = self.writer.store().stats().retained_bytes;
        self.size_bytes = view::EMPTY_STORE_BYTES.saturating_add(i64::try_from(retained).unwrap_or(i64::MAX));
        self.view.set_size_bytes(self.size_bytes);
    }

    /// Applies one command: [`ApiError::Corrupt`] and [`ApiError::NoSpace`] first, then who asks, then what it is.
    fn execute(&mut self, context: Context, origin: &Origin, command: Command) -> Applied {
        let cost = match &command {
            Command::Put(put) => quota::put_cost(put),
            Command::Txn(txn) => quota::txn_cost(txn),
            Command::LeaseGrant(_) => quota::LEASE_COST_BYTES,
            _ => 0,
        };
        if let Err(error) = self.admit(&command, cost).and_then(|()| self.permit(origin, &command)) {
            return Applied::refused(error);
        }
        if let Err(error) = self.admit_by_prefix(context, &command) {
            return Applied::refused(error);
        }
        let over_quota = !context.replay && !self.quota.admits(self.size_bytes, cost);
        let result = match command {
            Command::Put(put) => self.put(put.into()),
            Command::DeleteRange(delete) => self.delete_range(delete.into()),
            Command::Txn(txn) => self.txn(txn.into()),
            Command::Compact(compaction) => self.compact(compaction.revision),
            Command::LeaseGrant(grant) => self.lease_grant(context, grant),
            Command::LeaseRevoke(revoke) => self.lease_end(context, revoke.id),
            Command::LeaseExpire(expiry) => self.lease_expire(context, expiry),
            Command::Alarm(request) => Ok(self.alarm(request)),
            Command::MemberPublish(member) => self.member_publish(member),
            Command::MemberUpdate(member) => {
                self.change_members(MemberCommand::Update(member.id, member.peer_ur_ls))
            }
            Command::Mark(mark) => Ok(self.mark(context, &mark)),
            Command::AuthEnable => self.change_auth(AuthState::enable),
            Command::AuthDisable => self.auth_disable(),
            Command::Authenticate(request) => self.authenticate(context, request),
            Command::UserAdd(request) => self.change_auth(|auth| auth.user_add(request)),
            Command::UserDelete(request) => self.user_delete(request.name),
            Command::UserChangePassword(request) => self.user_change_password(request),
            Command::UserGrantRole(request) => {
                self.change_auth(|auth| auth.user_grant_role(request.user, request.role))
            }
            Command::UserRevokeRole(request) => {
                self.change_auth(|auth| auth.user_revoke_role(request.name, &request.role))
            }
            Command::RoleAdd(request) => self.change_auth(|auth| auth.role_add(request.name)),
            Command::RoleDelete(request) => self.change_auth(|auth| auth.role_delete(request.role)),
            Command::RoleGrantPermission(request) => {
                self.change_auth(|auth| auth.role_grant_permission(request))
            }
            Command::RoleRevokePermission(request) => {
                self.change_auth(|auth| auth.role_revoke_permission(request))
            }
            Command::PrefixQuota(quota) => self.set_prefix_quota(quota),
            // They come by entries of another kind, see `apply_change`.
            Command::MemberAdd(_) | Command::MemberRemove(_) | Command::MemberPromote(_) => Err(MISPLACED),
        };
        if let Ok(outcome) = &result {
            self.size_bytes = self.size_bytes.saturating_add(cost);
            self.count(context, outcome);
        }
        Applied { result, over_quota }
    }

    fn admit(&self, command: &Command, cost: i64) -> Result<(), ApiError> {
        if self.alarms.is_quiet() {
            return Ok(());
        }
        let changes_data = matches!(
            command,
            Command::Put(_)
                | Command::DeleteRange(_)
                | Command::Txn(_)
                | Command::Compact(_)
                | Command::LeaseGrant(_)
                | Command::LeaseRevoke(_)
                | Command::LeaseExpire(_)
        );
        if changes_data && self.alarms.has(AlarmType::Corrupt) {
            return Err(ApiError::Corrupt);
        }
        if cost > 0 && self.alarms.has(AlarmType::Nospace) {
            return Err(ApiError::NoSpace);
        }
        Ok(())
    }

    fn put(&mut self, put: Put) -> Result<Outcome, ApiError> {
        Ok(Outcome::Put(self.writer.put(&put, &self.leases)?))
    }

    fn delete_range(&mut self, delete: DeleteRange) -> Result<Outcome, ApiError> {
        Ok(Outcome::DeleteRange(self.writer.delete_range(&delete)?))
    }

    fn txn(&mut self, txn: Txn) -> Result<Outcome, ApiError> {
        Ok(Outcome::Txn(self.writer.txn(&txn, &self.leases)?))
    }

    fn compact(&mut self, revision: i64) -> Result<Outcome, ApiError> {
        let previous_compact_revision = self.writer.store().compact_revision();
        self.notices.notice(Notice::Compacting);
        self.writer.compact(revision)?;
        Ok(Outcome::Compact { revision: self.writer.store().revision(), previous_compact_revision })
    }

    fn alarm(&mut self, request: pb::AlarmRequest) -> Outcome {
        let alarms = self.alarms.apply(&mut self.writer, &request);
        self.view.set_alarms(self.alarms.list(AlarmType::None as i32));
        Outcome::Alarm { alarms, revision: self.writer.store().revision() }
    }

    /// Whoever compares hears what the state is. What members have acknowledged is kept, so that one that holds less at its next start is found out by whoever
    /// has this (R22).
    fn mark(&mut self, context: Context, mark: &MarkCommand) -> Outcome {
        for &(member, index) in &mark.promised {
            records::raise_promised(&mut self.writer, member, (mark.term, index));
        }
        let mark = Mark { index: context.index, is_deep: mark.is_deep, sum: self.writer.state_sum() };
        self.notices.notice(Notice::Marked { mark, replay: context.replay });
        Outcome::Marked
    }

    /// What this member's state adds up to, for comparison with others at the same index.
    pub fn state_sum(&self) -> StateSum {
        self.writer.state_sum()
    }

    /// A member says its name and client URLs; what it may not say (peer URLs, learner) is kept.
    fn member_publish(&mut self, said: pb::Member) -> Result<Outcome, ApiError> {
        let member = records::member(self.writer.store(), said.id).ok_or(ApiError::MemberNotFound)?;
        let member = pb::Member { name: said.name, client_ur_ls: said.client_ur_ls, ..member };
        records::put_member(&mut self.writer, &member);
        self.notices.notice(Notice::MembersChanged);
        Ok(Outcome::MemberPublish)
    }

    fn count(&self, context: Context, outcome: &Outcome) {
        let counters = &self.view.counters;
        match outcome {
            Outcome::Put(_) => context.count(&counters.puts, 1),
            Outcome::DeleteRange(delete) => context.count(&counters.keys_deleted, delete.deleted),
            Outcome::Txn(txn) => {
                let (puts, deleted) = changes(txn);
                context.count(&counters.txns, 1);
                context.count(&counters.puts, puts);
                context.count(&counters.keys_deleted, deleted);
            }
            _ => {}
        }
    }
}

/// Puts and deleted keys of a transaction that ran.
fn changes(txn: &TxnOutcome) -> (i64, i64) {
    txn.responses.iter().fold((0, 0), |(puts, deleted), response| match response {
        TxnOperationOutcome::Range(_) => (puts, deleted),
        TxnOperationOutcome::Put(_) => (puts + 1, deleted),
        TxnOperationOutcome::DeleteRange(delete) => (puts, deleted + delete.deleted),
        TxnOperationOutcome::Txn(txn) => {
            let (nested_puts, nested_deleted) = changes(txn);
            (puts + nested_puts, deleted + nested_deleted)
        }
    })
}

impl StateMachine for Machine {
    fn apply(&mut self, entry: &Entry<'_>) {
        let applied = self.applied_index();
        assert_eq!(entry.index, applied + 1, "A4: entries come in index order, each once");
        let context = Context { index: entry.index, replay: entry.replay };
        let decoded = entry.commands.iter().map(|bytes| {
            command::decode(bytes).unwrap_or_else(|error| {
                panic!("A2: log entry {} holds a command that cannot be applied: {error}", entry.index)
            })
        });
        let decoded = decoded.collect::<Vec<_>>();
        if decoded.len() > 1 && !entry.replay {
            // What one of them needs from disk is read while those before it are executed.
            for decoded in &decoded {
                if let Command::Put(put) = &decoded.command {
                    self.writer.store().read_ahead(&put.key);
                }
            }
        }
        for Decoded { id, origin, command } in decoded {
            let kind = command.kind();
            let begun = self.times.as_ref().filter(|_| !entry.replay).map(|times| times.now_us());
            let applied = self.execute(context, &origin, command);
            if let (Some(times), Some(begun)) = (&self.times, begun) {
                times.applied(kind, applied.result.is_ok(), times.now_us().saturating_sub(begun));
                if let Ok(Outcome::LeaseGrant { ttl, .. }) = &applied.result {
                    times.granted(*ttl);
                }
            }
            if let Err(ApiError::Unreadable(what)) = &applied.result {
                // Nothing after it may be applied either, so this member has come to its end.
                panic!("A5: log entry {} cannot be applied, since its own disk fails: {what}", entry.index);
            }
            if !entry.replay {
                self.results.deliver(id, applied);
            }
        }
        self.writer.set_applied(entry.index, entry.term);
        self.view.set_term(entry.term);
    }

    fn apply_change(&mut self, entry: &ChangeEntry<'_>) -> bool {
        let applied = self.applied_index();
        assert_eq!(entry.index, applied + 1, "A4: entries come in index order, each once");
        let Decoded { id, command, .. } = command::decode(entry.command).unwrap_or_else(|error| {
            panic!("A2: log entry {} holds a change that cannot be applied: {error}", entry.index)
        });
        let result = match MemberCommand::of(command) {
            Some(command) if entry.is_possible => self.change_members(command),
            Some(command) => {
                // The group's configuration and the table say the same, so the table knows why.
                members::check(self.writer.store(), &command, None).and(Err(ApiError::MemberNotFound))
            }
            None => Err(MISPLACED),
        };
        let is_made = result.is_ok();
        if !entry.replay {
            self.results.deliver(id, Applied { result, over_quota: false });
        }
        self.writer.set_applied(entry.index, entry.term);
        self.view.set_term(entry.term);
        is_made
    }

    fn storage(&mut self) -> Option<&mut StoreWriter> {
        Some(&mut self.writer)
    }

    fn attached(&mut self) {
        self.load();
    }

    fn announcer(&self) -> Option<Announce> {
        let store = self.writer.store().clone();
        let promises = Arc::clone(&self.promises);
        let has_checkpoint = store.has_checkpoint();
        Some(Box::new(move |bytes| {
            if !has_checkpoint && command::kind(bytes) != Some(Kind::Mark as u8) {
                return;
            }
            match command::decode(bytes).map(|decoded| decoded.command) {
                Ok(Command::Put(put)) => store.read_ahead(&put.key),
                Ok(Command::Txn(txn)) => {
                    Txn::from(txn).single_keys().for_each(|key| store.read_ahead(key));
                }
                Ok(Command::Mark(mark)) => {
                    mark.promised
                        .iter()
                        .for_each(|&(member, index)| promises.raise(member, (mark.term, index)));
                }
                _ => {}
            }
        }))
    }

    fn flush(&mut self) {
        self.publish_size();
        self.publish_prefixes();
        self.writer.notify();
    }

    fn maintain(&mut self) -> bool {
        let more = self.writer.maintain();
        self.publish_size();
        more
    }

    fn restore(&mut self, index: u64, term: u64, state: &[u8]) {
        let genesis = GenesisState::decode(state).unwrap_or_else(|| {
            panic!("A3: the genesis at index {index} is of a format this build does not know")
        });
        records::put_genesis(&mut self.writer, &genesis);
        self.writer.set_applied(index, term);
        self.load();
    }

    fn applied_index(&self) -> u64 {
        self.writer.store().applied().0
    }

    fn rejected(&mut self, command: &[u8], rejection: &Rejection) {
        if let Some(id) = command::id(command) {
            self.given_up(id, rejection);
        }
    }

    fn given_up(&mut self, id: u64, rejection: &Rejection) {
        let error = match rejection {
            Rejection::NoSpace => ApiError::NoSpace,
            Rejection::Stopped(_) => ApiError::Stopped,
            Rejection::TooManyRequests => ApiError::TooManyRequests,
            Rejection::ChangeRefused => ApiError::ChangeRefused,
            // etcd's proposals wait for a leader until their time is up.
            Rejection::NoLeader | Rejection::Unknown => ApiError::Timeout,
        };
        self.results.deliver(id, Applied::refused(error));
    }

    fn stopped(&mut self, _reason: &str) {
        self.results.stop();
    }
}

#[cfg(test)]
mod tests;
