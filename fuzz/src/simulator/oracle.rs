//! What the cluster must be, from the order of the commands alone: the naive model of the store, leases and members, and what clients were told.
//!
//! **Contract.** Entries are told as members apply them. The first member to apply an index moves the model; every other one must apply the same. Whatever
//! a member delivers, reads, hashes or gives to a watcher is held against the model there and then; an error says what is violated.
//!
//! **Linearizability.** The model gives every command a place in one order, and every answer says a revision of that order. An answer must be what the model says at
//! its place, and its place must lie behind everything that anybody had been told when the call began (`floor`). That is enough: the order is a
//! witness, and it respects real time.
//!
//! **Does not know** disks, networks, or which faults there were.
use super::calls::{Answer, Call};
use super::clock::{DRIFT_PPM_MAX, RATE_PPM};
use super::observed::{StateHash, mix, mix_bytes};
use crate::naive::Model;
use std::collections::{BTreeMap, BTreeSet};
use sternpost_engine::base::ids::Revision;
use sternpost_engine::mvcc::{Event, EventBatch, EventKind, KeyValue, Range, RangeOutcome, StateSum, Store};
use sternpost_replication::Rejection;
use sternpost_server::apply::command::{self, Command, Decoded};
use sternpost_server::apply::{Applied, Outcome};
use sternpost_server::wire::status::ApiError;

/// Told to nobody yet: a floor below everything.
type Floor = (u64, i64);

/// The moment at which a call began.
#[derive(Clone, Copy, Debug)]
pub(super) struct Begun {
    /// Everything that anybody had been told by then lies before the call.
    floor: Floor,
    pub(super) at_us: u64,
    jumped_us: u64,
}

/// What a committed command does.
#[derive(Clone, Debug)]
struct Expected {
    index: u64,
    result: Result<Outcome, ApiError>,
}

#[derive(Clone, Copy, Debug)]
struct Lease {
    ttl_us: u64,
    granted_index: u64,
    /// The last moment of the world from which on its holder may count on its TTL.
    from_us: u64,
    /// How far clocks had jumped ahead by then, all together.
    jumped_us: u64,
}

/// A lease that is gone.
#[derive(Clone, Copy, Debug)]
struct Ended {
    at_us: u64,
    /// As in [`Lease`].
    jumped_us: u64,
    ttl_us: u64,
    /// It was not revoked.
    by_itself: bool,
}

/// See the module.
pub(super) struct Oracle {
    /// As the store of a member that applied everything.
    model: Model,
    /// The same, never compacted, for answers of revisions that are gone.
    whole: Model,
    /// Last index applied by anybody.
    last: u64,
    /// Index → term, and digest of what the entry holds.
    entries: BTreeMap<u64, (u64, u64)>,
    /// Index → revision behind it.
    heads: BTreeMap<u64, i64>,
    /// Index → state behind it.
    states: BTreeMap<u64, StateHash>,
    /// Index → what members compare there.
    sums: BTreeMap<u64, StateSum>,
    expected: BTreeMap<u64, Expected>,
    /// Main revision → its events.
    changes: BTreeMap<i64, Vec<Event>>,
    leases: BTreeMap<i64, Lease>,
    /// Leases that are gone.
    ended: BTreeMap<i64, Ended>,
    /// Index → the change of the members there, and whether it was made.
    member_changes: BTreeMap<u64, (Command, Option<bool>)>,
    /// Id → whether it votes.
    members: BTreeMap<u64, bool>,
    /// Id → index of its addition, and of its removal.
    added: BTreeMap<u64, u64>,
    removed: BTreeMap<u64, u64>,
    refused: BTreeSet<u64>,
    /// Term → (member, start) that led in it.
    leaders: BTreeMap<u64, (u64, u64)>,
    /// Highest index and revision that anybody was told.
    told: Floor,
    /// How far all clocks have jumped ahead so far.
    jumped_us: u64,
    pub(super) counts: Counts,
}

/// What was checked.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Counts {
    pub(super) entries: u64,
    pub(super) writes_told: u64,
    pub(super) reads_told: u64,
    pub(super) results: u64,
    pub(super) states: u64,
    pub(super) events: u64,
    pub(super) leaders: u64,
    pub(super) leases_expired: u64,
    pub(super) renewals: u64,
    pub(super) compactions: u64,
    pub(super) member_changes: u64,
}

type Checked = Result<(), String>;

impl Oracle {
    /// Of a new cluster of these: its genesis is index 1.
    pub(super) fn new(voters: &[u64]) -> Self {
        let mut model = Model::new();
        model.leases.clear();
        Self {
            whole: model.clone(),
            model,
            last: 1,
            entries: BTreeMap::new(),
            heads: BTreeMap::from([(1, 1)]),
            states: BTreeMap::new(),
            sums: BTreeMap::new(),
            expected: BTreeMap::new(),
            changes: BTreeMap::new(),
            leases: BTreeMap::new(),
            ended: BTreeMap::new(),
            member_changes: BTreeMap::new(),
            members: voters.iter().map(|id| (*id, true)).collect(),
            added: BTreeMap::new(),
            removed: BTreeMap::new(),
            refused: BTreeSet::new(),
            leaders: BTreeMap::new(),
            told: (0, 0),
            jumped_us: 0,
            counts: Counts::default(),
        }
    }

    /// Last index that anybody has applied.
    pub(super) fn last(&self) -> u64 {
        self.last
    }

    /// Revision and compact revision of the model.
    pub(super) fn revisions(&self) -> (i64, i64) {
        (self.model.head, self.model.compact)
    }

    /// True as long as there is a lease.
    pub(super) fn has_leases(&self) -> bool {
        !self.leases.is_empty()
    }

    /// Some clock jumps ahead.
    pub(super) fn jumped(&mut self, by_us: u64) {
        self.jumped_us += by_us;
    }

    /// Election safety: one leader for each term, in one start.
    pub(super) fn leads(&mut self, term: u64, member: u64, start: u64) -> Checked {
        self.counts.leaders += 1;
        let first = *self.leaders.entry(term).or_insert((member, start));
        if first == (member, start) {
            return Ok(());
        }
        Err(format!("election safety: term {term} is led by {first:?} and by {:?}", (member, start)))
    }

    // --- What members apply

    /// A member applies an entry of commands.
    pub(super) fn entry(
        &mut self,
        member: u64,
        (index, term): (u64, u64),
        commands: &[Vec<u8>],
        now_us: u64,
    ) -> Checked {
        let digest = commands.iter().fold(0, |digest, command| mix_bytes(digest, command));
        if !self.is_new(member, (index, term), digest)? {
            return Ok(());
        }
        for bytes in commands {
            let Decoded { id, command, .. } =
                command::decode(bytes).map_err(|error| format!("entry {index} does not decode: {error}"))?;
            let result = self.apply(index, command, now_us)?;
            self.expect(id, index, result)?;
        }
        self.heads.insert(index, self.model.head);
        Ok(())
    }

    /// A member applies a change of the members.
    pub(super) fn change(&mut self, member: u64, (index, term): (u64, u64), bytes: &[u8]) -> Checked {
        if !self.is_new(member, (index, term), mix_bytes(1, bytes))? {
            return Ok(());
        }
        let Decoded { id, command, .. } =
            command::decode(bytes).map_err(|error| format!("change {index} does not decode: {error}"))?;
        if self.refused.contains(&id) {
            return Err(format!("change {id:x} was refused and is applied at {index}"));
        }
        self.member_changes.insert(index, (command, None));
        self.heads.insert(index, self.model.head);
        Ok(())
    }

    /// It made that change, or not. The id of a member that is new by it.
    pub(super) fn change_made(
        &mut self,
        member: u64,
        index: u64,
        is_made: bool,
    ) -> Result<Option<u64>, String> {
        let Some((command, first)) = self.member_changes.get_mut(&index) else {
            return Err(format!("member {member} made a change at {index}, where there is none"));
        };
        if let Some(first) = *first {
            if first == is_made {
                return Ok(None);
            }
            return Err(format!("the change at {index} is made: {first}, and at member {member} {is_made}"));
        }
        *first = Some(is_made);
        if !is_made {
            return Ok(None);
        }
        self.counts.member_changes += 1;
        match command {
            Command::MemberAdd(new) => {
                self.members.insert(new.id, false);
                self.added.insert(new.id, index);
                return Ok(Some(new.id));
            }
            Command::MemberPromote(learner) => {
                self.members.insert(learner.id, true);
            }
            Command::MemberRemove(gone) => {
                self.members.remove(&gone.id);
                self.removed.insert(gone.id, index);
            }
            other => return Err(format!("no change of the members: {other:?}")),
        }
        Ok(None)
    }

    /// Where a member was added, if it was not there from the beginning.
    pub(super) fn added_at(&self, id: u64) -> Option<u64> {
        self.added.get(&id).copied()
    }

    /// Where a member was removed.
    pub(super) fn removed_at(&self, id: u64) -> Option<u64> {
        self.removed.get(&id).copied()
    }

    /// True for a member, as of the last index.
    pub(super) fn is_member(&self, id: u64) -> bool {
        self.members.contains_key(&id)
    }

    /// True for one that votes.
    pub(super) fn is_voter(&self, id: u64) -> bool {
        self.members.get(&id) == Some(&true)
    }

    /// True for an index that nobody had applied.
    fn is_new(&mut self, member: u64, (index, term): (u64, u64), digest: u64) -> Result<bool, String> {
        if index > self.last + 1 {
            return Err(format!("member {member} applies entry {index}, and {} was the last one", self.last));
        }
        if index == self.last + 1 {
            self.last = index;
            self.entries.insert(index, (term, digest));
            self.counts.entries += 1;
            return Ok(true);
        }
        match self.entries.get(&index) {
            Some(known) if *known == (term, digest) => Ok(false),
            known => Err(format!(
                "committed prefix: member {member} applies entry {index} of term {term}, others {known:?}"
            )),
        }
    }

    fn expect(&mut self, id: u64, index: u64, result: Result<Outcome, ApiError>) -> Checked {
        if self.refused.contains(&id) {
            return Err(format!("command {id:x} was refused and is applied at {index}"));
        }
        match self.expected.insert(id, Expected { index, result }) {
            None => Ok(()),
            Some(before) => Err(format!("command {id:x} is applied at {} and at {index}", before.index)),
        }
    }

    fn apply(
        &mut self,
        index: u64,
        command: Command,
        now_us: u64,
    ) -> Result<Result<Outcome, ApiError>, String> {
        let before = self.model.head;
        let result = match command {
            Command::Put(put) => {
                let _ = self.whole.put(&put.clone().into());
                self.model.put(&put.into()).map(Outcome::Put).map_err(ApiError::from)
            }
            Command::DeleteRange(delete) => {
                let _ = self.whole.delete_range(&delete.clone().into());
                self.model.delete_range(&delete.into()).map(Outcome::DeleteRange).map_err(ApiError::from)
            }
            Command::Txn(txn) => {
                let txn = txn.into();
                let result = self.model.txn(&txn).map(Outcome::Txn).map_err(ApiError::from);
                if result.is_ok() {
                    let _ = self.whole.txn(&txn);
                }
                result
            }
            Command::Compact(compaction) => {
                let previous_compact_revision = self.model.compact;
                let compacted = self.model.compact(compaction.revision).map_err(ApiError::from);
                self.counts.compactions += u64::from(compacted.is_ok());
                compacted.map(|()| Outcome::Compact { revision: before, previous_compact_revision })
            }
            Command::LeaseGrant(grant) => self.grant(index, grant.id, grant.ttl, now_us),
            Command::LeaseRevoke(revoke) => self.end_lease(revoke.id, now_us, false),
            Command::LeaseExpire(expiry) => {
                let lease = self.leases.get(&expiry.lease).copied();
                match lease.filter(|lease| lease.granted_index == expiry.granted_index) {
                    None => Err(ApiError::LeaseNotFound),
                    Some(lease) => {
                        self.counts.leases_expired += 1;
                        self.check_expiry(expiry.lease, lease, (now_us, self.jumped_us))?;
                        self.end_lease(expiry.lease, now_us, true)
                    }
                }
            }
            other => return Err(format!("a command that nobody proposes: {other:?}")),
        };
        if self.model.head != self.whole.head {
            return Err(format!("the models part at entry {index}"));
        }
        if self.model.head > before {
            let events = events_at(&self.whole, self.model.head);
            self.changes.insert(self.model.head, events);
        }
        Ok(result)
    }

    // --- Leases

    fn grant(&mut self, index: u64, lease: i64, ttl: i64, now_us: u64) -> Result<Outcome, ApiError> {
        if self.leases.contains_key(&lease) {
            return Err(ApiError::LeaseExists);
        }
        let ttl_us = ttl.unsigned_abs() * 1_000_000;
        let known = Lease { ttl_us, granted_index: index, from_us: now_us, jumped_us: self.jumped_us };
        self.leases.insert(lease, known);
        self.ended.remove(&lease);
        self.model.leases.insert(lease);
        self.whole.leases.insert(lease);
        Ok(Outcome::LeaseGrant { lease, ttl, revision: self.model.head })
    }

    fn end_lease(&mut self, lease: i64, now_us: u64, by_itself: bool) -> Result<Outcome, ApiError> {
        let Some(Lease { ttl_us, .. }) = self.leases.remove(&lease) else {
            return Err(ApiError::LeaseNotFound);
        };
        self.model.delete_lease_keys(lease);
        self.whole.delete_lease_keys(lease);
        self.model.leases.remove(&lease);
        self.whole.leases.remove(&lease);
        self.ended.insert(lease, Ended { at_us: now_us, jumped_us: self.jumped_us, ttl_us, by_itself });
        Ok(Outcome::LeaseRevoke { revision: self.model.head })
    }

    /// Lease safety: none ends by itself before its TTL is over, by the fastest clock that there may be.
    fn check_expiry(&self, id: i64, lease: Lease, (at_us, jumped_us): (u64, u64)) -> Checked {
        let passed_us = at_us.saturating_sub(lease.from_us) * (RATE_PPM + DRIFT_PPM_MAX) / RATE_PPM;
        let passed_us = passed_us + jumped_us.saturating_sub(lease.jumped_us);
        if passed_us >= lease.ttl_us {
            return Ok(());
        }
        Err(format!(
            "lease safety: lease {id} of {} us ends {passed_us} us after {} us, by the fastest clock",
            lease.ttl_us, lease.from_us
        ))
    }

    // --- What members say

    /// A member delivers the result of a command.
    pub(super) fn result(&mut self, member: u64, id: u64, applied: &Applied) -> Checked {
        self.counts.results += 1;
        let Some(expected) = self.expected.get(&id) else {
            // A change of the members, whose result is a table.
            return Ok(());
        };
        if expected.result == applied.result {
            return Ok(());
        }
        Err(format!(
            "state agreement: command {id:x} at {} gives {:?} at member {member}, must be {:?}",
            expected.index, applied.result, expected.result
        ))
    }

    /// A member holds this behind an entry.
    pub(super) fn state(&mut self, member: u64, index: u64, state: StateHash) -> Checked {
        self.counts.states += 1;
        if index == self.last && state.records != self.model_hash() {
            return Err(format!("member {member} holds other records than the model behind entry {index}"));
        }
        let first = *self.states.entry(index).or_insert(state);
        if first == state {
            return Ok(());
        }
        Err(format!(
            "state agreement: behind entry {index} member {member} holds {state:?}, others {first:?}"
        ))
    }

    /// A member would say this of itself at a mark there: one that differs takes itself out, so none may that holds the same.
    pub(super) fn sum(&mut self, member: u64, index: u64, sum: StateSum) -> Checked {
        let first = *self.sums.entry(index).or_insert(sum);
        if first == sum {
            return Ok(());
        }
        Err(format!(
            "state sums: behind entry {index} member {member} adds up to {sum:?}, others to {first:?}"
        ))
    }

    fn model_hash(&self) -> u64 {
        let retained = self.model.retained(0).expect("the head can be read");
        retained.iter().fold(0, |digest, (key, version, visible)| {
            let numbers = [
                version.main,
                version.sub,
                version.create_revision,
                version.version,
                version.lease,
                i64::from(*visible),
            ];
            let digest = numbers.into_iter().fold(digest, |digest, number| mix(digest, number as u64));
            mix_bytes(mix_bytes(digest, key), &version.value)
        })
    }

    /// A member gave a proposal up.
    pub(super) fn given_up(&mut self, id: u64, rejection: &Rejection) -> Checked {
        // Of these alone it is said that the log will never have them.
        if !matches!(
            rejection,
            Rejection::NoSpace | Rejection::NoLeader | Rejection::TooManyRequests | Rejection::ChangeRefused
        ) {
            return Ok(());
        }
        self.refused.insert(id);
        match self.expected.get(&id) {
            None => Ok(()),
            Some(expected) => Err(format!(
                "command {id:x} is refused ({rejection:?}) and was applied at {}",
                expected.index
            )),
        }
    }

    /// A watcher of `member` that has everything before `next` is given `batch`.
    pub(super) fn watched(&mut self, member: u64, next: i64, batch: &EventBatch) -> Checked {
        self.counts.events += batch.events.len() as u64;
        let due = self.changes.range(next..batch.next_revision.max(next)).flat_map(|(_, events)| events);
        let mut given = batch.events.iter();
        for event in due {
            match given.next() {
                Some(found) if **found == *event => {}
                found => {
                    return Err(format!(
                        "watch: member {member} gives {found:?} behind {next}, must be {event:?}"
                    ));
                }
            }
        }
        match given.next() {
            None => Ok(()),
            Some(event) => {
                Err(format!("watch: member {member} gives {event:?}, which is no event behind {next}"))
            }
        }
    }

    /// The state before an event, as `member` says.
    pub(super) fn previous(
        &self,
        member: u64,
        event: &Event,
        found: Option<&KeyValue>,
        compact_revision: i64,
    ) -> Checked {
        let before = event.revision.main - 1;
        let expected = self.before(event);
        // Between the two looks at the store it may have been compacted.
        let is_gone = before < compact_revision && found.is_none();
        if is_gone || expected.as_ref() == found {
            return Ok(());
        }
        Err(format!(
            "watch: before {event:?} there was {expected:?}, member {member} says {found:?} (compacted {compact_revision})"
        ))
    }

    /// The events of the revisions from `from` to `to`, in order.
    pub(super) fn events(&self, from: i64, to: i64) -> impl Iterator<Item = &Event> {
        self.changes.range(from..(to + 1).max(from)).flat_map(|(_, events)| events)
    }

    /// The state before an event, if the key was there.
    pub(super) fn before(&self, event: &Event) -> Option<KeyValue> {
        let before = self.whole.state(event.revision.main - 1);
        before.get(&event.kv.key).map(|version| kv(&event.kv.key, version))
    }

    // --- What clients hear

    /// A call begins at `now_us`.
    pub(super) fn begins(&self, now_us: u64) -> Begun {
        Begun { floor: self.told, at_us: now_us, jumped_us: self.jumped_us }
    }

    /// A call is answered; `id` is that of the command that it became, if it did.
    pub(super) fn answered(
        &mut self,
        call: &Call,
        id: Option<u64>,
        begun: Begun,
        answer: &Answer,
    ) -> Checked {
        let Begun { floor, at_us, jumped_us } = begun;
        match (call, answer) {
            (Call::Renew(lease), Answer::Renewed(ttl)) => self.renewed(*lease, *ttl, (at_us, jumped_us)),
            (Call::Range(range), Answer::Range(outcome)) => {
                self.read(range.serializable, &Range::from(range.clone()), floor, outcome)
            }
            (_, Answer::Changed) => Ok(()),
            _ => self.wrote(id, floor, answer),
        }
    }

    fn wrote(&mut self, id: Option<u64>, (floor_index, floor_revision): Floor, answer: &Answer) -> Checked {
        self.counts.writes_told += 1;
        let expected = id.and_then(|id| self.expected.get(&id));
        let Some(Expected { index, result }) = expected else {
            return Err(format!("a write is acknowledged that was not committed: {answer:?}"));
        };
        let told = match answer {
            Answer::Put(put) => Outcome::Put(put.clone()),
            Answer::Delete(delete) => Outcome::DeleteRange(delete.clone()),
            Answer::Txn(txn) => Outcome::Txn(txn.clone()),
            Answer::Outcome(outcome) => outcome.clone(),
            other => return Err(format!("an answer of another kind: {other:?}")),
        };
        if *result != Ok(told.clone()) {
            return Err(format!("linearizability: a client hears {told:?}, must be {result:?}"));
        }
        let revision = self.heads.get(index).copied().unwrap_or(self.model.head);
        if *index < floor_index || revision < floor_revision {
            return Err(format!(
                "linearizability: a write at {index} (revision {revision}) began after ({floor_index}, {floor_revision}) was told"
            ));
        }
        self.told.0 = self.told.0.max(*index);
        self.told.1 = self.told.1.max(revision_of(&told));
        Ok(())
    }

    fn read(
        &mut self,
        serializable: bool,
        range: &Range,
        (_, floor_revision): Floor,
        outcome: &RangeOutcome,
    ) -> Checked {
        self.counts.reads_told += 1;
        let revision = outcome.revision;
        if !serializable && revision < floor_revision {
            return Err(format!(
                "linearizability: a read at revision {revision} began after {floor_revision} was told"
            ));
        }
        let range = Range { revision, ..range.clone() };
        let expected = self.whole.range(&range).map_err(|error| format!("a read at {revision}: {error}"))?;
        if (&expected.kvs, expected.count) != (&outcome.kvs, outcome.count) {
            return Err(format!(
                "linearizability: a read at {revision} gives {:?}, must be {:?}",
                outcome.kvs, expected.kvs
            ));
        }
        if !serializable {
            self.told.1 = self.told.1.max(revision);
        }
        Ok(())
    }

    /// A lease was renewed at some moment from `begun_us` on, when clocks had jumped by `jumped_us`: its holder counts on its TTL from then on.
    fn renewed(&mut self, id: i64, ttl: i64, (begun_us, jumped_us): (u64, u64)) -> Checked {
        if ttl == 0 {
            return Ok(());
        }
        self.counts.renewals += 1;
        if let Some(lease) = self.leases.get_mut(&id) {
            if lease.from_us < begun_us {
                (lease.from_us, lease.jumped_us) = (begun_us, jumped_us);
            }
            return Ok(());
        }
        let Some(Ended { at_us, jumped_us: ended_jumped_us, ttl_us, by_itself }) =
            self.ended.get(&id).copied()
        else {
            return Err(format!("lease safety: lease {id} is renewed, and was never granted"));
        };
        if at_us < begun_us {
            return Err(format!(
                "lease safety: lease {id} is renewed at {begun_us} us, and ended at {at_us} us"
            ));
        }
        // The answer came late; the renewal was made before.
        let lease = Lease { ttl_us, granted_index: 0, from_us: begun_us, jumped_us };
        if by_itself { self.check_expiry(id, lease, (at_us, ended_jumped_us)) } else { Ok(()) }
    }

    // --- The end

    /// Everything is well again: this member must hold what the model does.
    pub(super) fn holds(&self, member: u64, store: &Store) -> Checked {
        if store.applied().0 != self.last {
            return Err(format!("member {member} has applied {:?}, not {}", store.applied(), self.last));
        }
        let state = StateHash::of(store).map_err(|error| format!("member {member}: {error}"))?;
        if (state.records, state.revisions) != (self.model_hash(), self.revisions()) {
            return Err(format!("member {member} holds another state than the model in the end"));
        }
        for lease in self.leases.keys() {
            if store.lease_keys(*lease) != self.model.lease_keys(*lease) {
                return Err(format!("member {member} has other keys of lease {lease}"));
            }
        }
        Ok(())
    }
}

fn revision_of(outcome: &Outcome) -> i64 {
    match outcome {
        Outcome::Put(put) => put.revision,
        Outcome::DeleteRange(delete) => delete.revision,
        Outcome::Txn(txn) => txn.revision,
        Outcome::Compact { revision, .. }
        | Outcome::LeaseGrant { revision, .. }
        | Outcome::LeaseRevoke { revision }
        | Outcome::Alarm { revision, .. }
        | Outcome::PrefixQuota { revision }
        | Outcome::Auth { revision }
        | Outcome::Authenticated { revision, .. } => *revision,
        Outcome::MemberPublish | Outcome::Members(_) | Outcome::Marked => 0,
    }
}

fn kv(key: &sternpost_engine::Bytes, version: &crate::naive::Version) -> KeyValue {
    KeyValue {
        key: key.clone(),
        create_revision: version.create_revision,
        mod_revision: version.main,
        version: version.version,
        value: version.value.clone(),
        lease: version.lease,
    }
}

/// The events of the newest main revision, without the states before.
fn events_at(model: &Model, main: i64) -> Vec<Event> {
    let mut events: Vec<Event> = Vec::new();
    for (key, versions) in &model.keys {
        for version in versions.iter().rev().take_while(|version| version.main == main) {
            events.push(Event {
                kind: if version.version == 0 { EventKind::Delete } else { EventKind::Put },
                revision: Revision::new(version.main, version.sub),
                kv: kv(key, version),
                prev_kv: None,
            });
        }
    }
    events.sort_by_key(|event| event.revision.sub);
    events
}
