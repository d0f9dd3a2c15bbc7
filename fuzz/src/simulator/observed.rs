//! The server's state machine as its member runs it, and what it did, in order, for the checker.
//!
//! **Contract.** Everything is handed on; what is reported is reported before the command is applied, results as they are delivered, and the hash of the whole
//! state behind every [`HASH_INTERVAL`]th entry.
//!
//! **Does not know** what is right.
use super::bug::ShellBug;
use std::sync::{Arc, Mutex, PoisonError};
use sternpost_engine::mvcc::{StateSum, Store, StoreWriter};
use sternpost_replication::raft::RaftEvent;
use sternpost_replication::{Announce, ChangeEntry, Entry, Rejection, StateMachine};
use sternpost_server::apply::{Applied, Machine, Outcome, Results};
use sternpost_server::request::wait::Waiters;

/// Entries between two hashes.
pub(super) const HASH_INTERVAL: u64 = 16;

/// What a member did.
#[derive(Debug)]
pub(super) enum Report {
    /// An entry is about to be applied.
    Entry { index: u64, term: u64, commands: Vec<Vec<u8>> },
    /// A change of the members is about to be applied.
    Change { index: u64, term: u64, command: Vec<u8> },
    /// That change was made, or not.
    ChangeMade { index: u64, is_made: bool },
    /// A command's result was delivered.
    Result { id: u64, applied: Applied },
    /// A proposal was given up.
    GivenUp { id: u64, rejection: Rejection },
    /// The state behind an entry.
    State { index: u64, state: StateHash },
    /// What the members compare, behind an entry.
    Sum { index: u64, sum: StateSum },
    /// The log failed.
    Stopped,
    /// What Raft says of itself.
    Raft(RaftEvent),
}

/// A member's reports that nobody has looked at.
#[derive(Clone, Default)]
pub(super) struct Reports(Arc<Mutex<Vec<Report>>>);

impl Reports {
    pub(super) fn push(&self, report: Report) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(report);
    }

    /// The result that was just delivered is that of a command that was not applied.
    fn forget_result(&self) {
        let mut reports = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if matches!(reports.last(), Some(Report::Result { .. })) {
            reports.pop();
        }
    }

    pub(super) fn take(&self) -> Vec<Report> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// A state in three numbers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct StateHash {
    /// Of every retained record, in revision order, and of what is visible.
    pub(super) records: u64,
    /// Of every system record.
    pub(super) system: u64,
    /// Revision and compact revision.
    pub(super) revisions: (i64, i64),
}

/// Adds `value` to a digest.
pub(super) fn mix(digest: u64, value: u64) -> u64 {
    (digest ^ value).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(29)
}

/// Adds bytes to a digest.
pub(super) fn mix_bytes(digest: u64, bytes: &[u8]) -> u64 {
    let digest = mix(digest, bytes.len() as u64);
    bytes.chunks(8).fold(digest, |digest, chunk| {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        mix(digest, u64::from_le_bytes(word))
    })
}

impl StateHash {
    /// That of `store`.
    ///
    /// # Errors
    /// What cannot be read.
    pub(super) fn of(store: &Store) -> Result<Self, String> {
        let mut records = 0;
        let read = store.for_each_retained(store.revision(), &mut |record| {
            for number in [
                record.revision.main,
                record.revision.sub,
                record.create_revision,
                record.version,
                record.lease,
                i64::from(record.visible),
            ] {
                records = mix(records, number as u64);
            }
            records = mix_bytes(mix_bytes(records, record.key), record.value);
        });
        let compact_revision = read.map_err(|error| error.to_string())?;
        let system = store
            .system_scan(b"")
            .iter()
            .fold(0, |digest, (key, value)| mix_bytes(mix_bytes(digest, key), value));
        Ok(Self { records, system, revisions: (store.revision(), compact_revision) })
    }
}

/// Where results go: to who waits, and to the checker.
pub(super) struct ObservedResults {
    pub(super) waiters: Arc<Waiters>,
    pub(super) reports: Reports,
    pub(super) bug: Option<ShellBug>,
}

impl Results for ObservedResults {
    fn deliver(&self, id: u64, applied: Applied) {
        self.reports.push(Report::Result { id, applied: applied.clone() });
        let applied = match applied {
            Applied { result: Ok(Outcome::Put(mut put)), over_quota }
                if self.bug == Some(ShellBug::AnswersOldRevision) && id.is_multiple_of(7) =>
            {
                put.revision -= 1;
                Applied { result: Ok(Outcome::Put(put)), over_quota }
            }
            applied => applied,
        };
        self.waiters.deliver(id, applied);
    }

    fn stop(&self) {
        self.waiters.stop();
    }
}

/// See the module.
pub(super) struct Observed {
    pub(super) machine: Machine,
    pub(super) reports: Reports,
    /// Leaves out commands.
    pub(super) skips: bool,
}

impl Observed {
    fn report_sum(&self, index: u64) {
        self.reports.push(Report::Sum { index, sum: self.machine.state_sum() });
    }

    fn report_state(&self, index: u64) {
        if index.is_multiple_of(HASH_INTERVAL) {
            self.report_state_now(index);
        }
    }

    /// Reports the hash of the whole state.
    pub(super) fn report_state_now(&self, index: u64) {
        // What cannot be read is not wrong: whoever needs it says so.
        if let Ok(state) = StateHash::of(self.machine.store()) {
            self.reports.push(Report::State { index, state });
        }
    }
}

impl StateMachine for Observed {
    fn apply(&mut self, entry: &Entry<'_>) {
        let commands = entry.commands.iter().map(|command| command.to_vec()).collect();
        self.reports.push(Report::Entry { index: entry.index, term: entry.term, commands });
        if self.skips && entry.index.is_multiple_of(23) {
            self.machine.apply(&Entry { commands: Vec::new(), ..entry.clone() });
        } else {
            self.machine.apply(entry);
        }
        self.report_sum(entry.index);
        self.report_state(entry.index);
    }

    fn apply_change(&mut self, entry: &ChangeEntry<'_>) -> bool {
        let ChangeEntry { index, term, command, .. } = *entry;
        self.reports.push(Report::Change { index, term, command: command.to_vec() });
        let is_made = self.machine.apply_change(entry);
        self.reports.push(Report::ChangeMade { index, is_made });
        self.report_sum(index);
        is_made
    }

    fn flush(&mut self) {
        self.machine.flush();
    }

    fn maintain(&mut self) -> bool {
        self.machine.maintain()
    }

    fn storage(&mut self) -> Option<&mut StoreWriter> {
        self.machine.storage()
    }

    fn attached(&mut self) {
        self.machine.attached();
    }

    fn announcer(&self) -> Option<Announce> {
        self.machine.announcer()
    }

    fn restore(&mut self, index: u64, term: u64, state: &[u8]) {
        self.machine.restore(index, term, state);
    }

    fn applied_index(&self) -> u64 {
        self.machine.applied_index()
    }

    fn rejected(&mut self, command: &[u8], rejection: &Rejection) {
        self.machine.rejected(command, rejection);
    }

    fn given_up(&mut self, id: u64, rejection: &Rejection) {
        self.reports.push(Report::GivenUp { id, rejection: rejection.clone() });
        self.machine.given_up(id, rejection);
        self.reports.forget_result();
    }

    fn stopped(&mut self, reason: &str) {
        self.reports.push(Report::Stopped);
        self.machine.stopped(reason);
    }
}
