//! The data model written down as naively as possible: all versions of all keys in a map, nothing clever.
use std::collections::{BTreeMap, BTreeSet};
use sternpost_engine::mvcc::*;
use sternpost_engine::{Bytes, OperationError};

/// One version; `version` 0 is a tombstone.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Version {
    pub(crate) main: i64,
    pub(crate) sub: i64,
    pub(crate) create_revision: i64,
    pub(crate) version: i64,
    pub(crate) lease: i64,
    pub(crate) value: Bytes,
}

pub(crate) type State = BTreeMap<Bytes, Version>;

/// Leases 1 to 3 exist, as in a new [`Model`].
pub(crate) struct FewLeases;

impl Leases for FewLeases {
    fn exists(&self, lease: i64) -> bool {
        (1..=3).contains(&lease)
    }
}

/// What the store must do.
#[derive(Clone)]
pub(crate) struct Model {
    pub(crate) head: i64,
    pub(crate) compact: i64,
    /// Retained versions, oldest first.
    pub(crate) keys: BTreeMap<Bytes, Vec<Version>>,
    /// Leases that exist.
    pub(crate) leases: BTreeSet<i64>,
    /// Changes made so far of the main revision under way.
    changes: i64,
}

fn contains(range: &KeyRange, key: &[u8]) -> bool {
    if range.end.is_empty() {
        key == &range.key[..]
    } else {
        key >= &range.key[..] && (range.end[..] == [0] || key < &range.end[..])
    }
}

fn to_kv(key: &Bytes, version: &Version) -> KeyValue {
    KeyValue {
        key: key.clone(),
        create_revision: version.create_revision,
        mod_revision: version.main,
        version: version.version,
        value: version.value.clone(),
        lease: version.lease,
    }
}

impl Model {
    pub(crate) fn new() -> Model {
        Model { head: 1, compact: -1, keys: BTreeMap::new(), leases: (1..=3).collect(), changes: 0 }
    }

    /// Keys that exist at a main revision.
    pub(crate) fn state(&self, main: i64) -> State {
        let newest = |(key, versions): (&Bytes, &Vec<Version>)| {
            let version = versions.iter().rev().find(|version| version.main <= main)?;
            (version.version != 0).then(|| (key.clone(), version.clone()))
        };
        self.keys.iter().filter_map(newest).collect()
    }

    fn live(&self, key: &Bytes) -> Option<Version> {
        self.keys.get(key)?.last().filter(|version| version.version != 0).cloned()
    }

    fn seen_revision(&self) -> i64 {
        if self.changes > 0 { self.head + 1 } else { self.head }
    }

    fn finish(&mut self) -> i64 {
        if self.changes > 0 {
            self.head += 1;
            self.changes = 0;
        }
        self.head
    }

    fn change(&mut self, key: &Bytes, new: Option<(Bytes, i64)>) {
        let main = self.head + 1;
        let live = self.live(key);
        let version = match new {
            None => Version {
                main,
                sub: self.changes,
                create_revision: 0,
                version: 0,
                lease: 0,
                value: Bytes::new(),
            },
            Some((value, lease)) => Version {
                main,
                sub: self.changes,
                create_revision: live.as_ref().map_or(main, |live| live.create_revision),
                version: live.map_or(1, |live| live.version + 1),
                lease,
                value,
            },
        };
        self.keys.entry(key.clone()).or_default().push(version);
        self.changes += 1;
    }

    fn readable(&self, revision: i64) -> Result<i64, OperationError> {
        let main = if revision <= 0 { self.head } else { revision };
        if main > self.head {
            Err(OperationError::FutureRevision(self.head))
        } else if main < self.compact {
            Err(OperationError::Compacted(self.compact))
        } else {
            Ok(main)
        }
    }

    pub(crate) fn range(&self, range: &Range) -> Result<RangeOutcome, OperationError> {
        if range.range.key.is_empty() {
            return Err(OperationError::EmptyKey);
        }
        let main = self.readable(range.revision)?;
        Ok(self.range_at(range, main))
    }

    pub(crate) fn scan(&self, scan: &Scan) -> Result<Vec<KeyValue>, OperationError> {
        let mut found: Vec<KeyValue> = self
            .state(self.readable(scan.revision)?)
            .iter()
            .map(|(key, version)| to_kv(key, version))
            .collect();
        found.retain(|kv| kv.key >= scan.lower && scan.upper.as_ref().is_none_or(|upper| kv.key < upper));
        if scan.reverse {
            found.reverse();
        }
        found.truncate(scan.limit);
        if scan.keys_only {
            found.iter_mut().for_each(|kv| (kv.value, kv.lease) = (Bytes::new(), 0));
        }
        Ok(found)
    }

    fn range_at(&self, range: &Range, main: i64) -> RangeOutcome {
        let mut found: Vec<KeyValue> = self
            .state(main)
            .iter()
            .filter(|(key, _)| contains(&range.range, key))
            .map(|(key, version)| to_kv(key, version))
            .collect();
        let mut outcome =
            RangeOutcome { revision: self.seen_revision(), count: found.len() as i64, ..Default::default() };
        if range.count_only {
            return outcome;
        }
        let filters = [
            range.min_mod_revision,
            range.max_mod_revision,
            range.min_create_revision,
            range.max_create_revision,
        ];
        let natural = range.sort_order == SortOrder::None
            || (range.sort_order == SortOrder::Ascend && range.sort_target == SortTarget::Key);
        if range.limit > 0 && natural && filters == [0; 4] {
            found.truncate(range.limit as usize + 1);
        }
        found.retain(|kv| range.max_mod_revision == 0 || kv.mod_revision <= range.max_mod_revision);
        found.retain(|kv| range.min_mod_revision == 0 || kv.mod_revision >= range.min_mod_revision);
        found.retain(|kv| range.max_create_revision == 0 || kv.create_revision <= range.max_create_revision);
        found.retain(|kv| range.min_create_revision == 0 || kv.create_revision >= range.min_create_revision);
        let by = |kv: &KeyValue| match range.sort_target {
            SortTarget::Key => (0, kv.key.clone()),
            SortTarget::Version => (kv.version, Bytes::new()),
            SortTarget::Create => (kv.create_revision, Bytes::new()),
            SortTarget::Mod => (kv.mod_revision, Bytes::new()),
            SortTarget::Value => (0, kv.value.clone()),
        };
        match range.sort_order {
            SortOrder::Descend => found.sort_by_key(|kv| std::cmp::Reverse(by(kv))),
            _ => found.sort_by_key(by),
        }
        if range.limit > 0 && found.len() > range.limit as usize {
            found.truncate(range.limit as usize);
            outcome.more = true;
        }
        if range.keys_only {
            for kv in &mut found {
                kv.value = Bytes::new();
                if range.sort_target != SortTarget::Value {
                    kv.lease = 0;
                }
            }
        }
        outcome.kvs = found;
        outcome
    }

    pub(crate) fn put(&mut self, put: &Put) -> Result<PutOutcome, OperationError> {
        if put.key.is_empty() {
            return Err(OperationError::EmptyKey);
        }
        self.check_put(put, &self.state(self.head), &[])?;
        let outcome = self.put_checked(put);
        self.finish();
        Ok(outcome)
    }

    fn check_put(&self, put: &Put, before: &State, deletes: &[&KeyRange]) -> Result<(), OperationError> {
        if put.lease != 0 && !self.leases.contains(&put.lease) {
            return Err(OperationError::LeaseNotFound);
        }
        let deleted = deletes.iter().any(|range| contains(range, &put.key));
        if (put.ignore_value || put.ignore_lease) && (!before.contains_key(&put.key) || deleted) {
            return Err(OperationError::KeyNotFound);
        }
        Ok(())
    }

    fn put_checked(&mut self, put: &Put) -> PutOutcome {
        let live = self.live(&put.key);
        let mut new = (put.value.clone(), put.lease);
        if put.ignore_value {
            new.0 = live.as_ref().expect("checked").value.clone();
        }
        if put.ignore_lease {
            new.1 = live.as_ref().expect("checked").lease;
        }
        self.change(&put.key, Some(new));
        let prev_kv = live.filter(|_| put.prev_kv).map(|live| to_kv(&put.key, &live));
        PutOutcome { revision: self.head + 1, prev_kv }
    }

    pub(crate) fn delete_range(
        &mut self,
        delete: &DeleteRange,
    ) -> Result<DeleteRangeOutcome, OperationError> {
        if delete.range.key.is_empty() {
            return Err(OperationError::EmptyKey);
        }
        let outcome = self.delete_checked(delete);
        self.finish();
        Ok(outcome)
    }

    fn delete_checked(&mut self, delete: &DeleteRange) -> DeleteRangeOutcome {
        let mut gone = self.state(i64::MAX);
        gone.retain(|key, _| contains(&delete.range, key));
        for key in gone.keys() {
            self.change(key, None);
        }
        let prev_kvs =
            gone.iter().filter(|_| delete.prev_kv).map(|(key, version)| to_kv(key, version)).collect();
        DeleteRangeOutcome { revision: self.seen_revision(), deleted: gone.len() as i64, prev_kvs }
    }

    pub(crate) fn lease_keys(&self, lease: i64) -> Vec<Bytes> {
        let state = self.state(self.head);
        state.iter().filter(|(_, version)| version.lease == lease).map(|(key, _)| key.clone()).collect()
    }

    pub(crate) fn delete_lease_keys(&mut self, lease: i64) -> DeleteRangeOutcome {
        let keys = self.lease_keys(lease);
        for key in &keys {
            self.change(key, None);
        }
        DeleteRangeOutcome { revision: self.finish(), deleted: keys.len() as i64, prev_kvs: vec![] }
    }

    pub(crate) fn txn(&mut self, txn: &Txn) -> Result<TxnOutcome, OperationError> {
        if has_empty_key(txn) {
            return Err(OperationError::EmptyKey);
        }
        let before = self.state(self.head);
        self.check_txn(txn, &before, &mut Vec::new())?;
        let mut outcome = self.run_txn(txn, &before);
        outcome.revision = self.finish();
        Ok(outcome)
    }

    fn check_txn<'a>(
        &self,
        txn: &'a Txn,
        before: &State,
        deletes: &mut Vec<&'a KeyRange>,
    ) -> Result<(), OperationError> {
        for operation in executed(txn, before).1 {
            match operation {
                TxnOperation::Range(range) if range.revision != 0 => {
                    if range.revision > self.head {
                        return Err(OperationError::FutureRevision(self.head));
                    }
                    if range.revision < self.compact {
                        return Err(OperationError::Compacted(self.compact));
                    }
                }
                TxnOperation::Range(_) => {}
                TxnOperation::Put(put) => self.check_put(put, before, deletes)?,
                TxnOperation::DeleteRange(delete) => deletes.push(&delete.range),
                TxnOperation::Txn(nested) => self.check_txn(nested, before, deletes)?,
            }
        }
        Ok(())
    }

    fn run_txn(&mut self, txn: &Txn, before: &State) -> TxnOutcome {
        let (succeeded, operations) = executed(txn, before);
        let mut responses = Vec::new();
        for operation in operations {
            responses.push(match operation {
                TxnOperation::Range(range) => {
                    let main = if range.revision <= 0 { self.seen_revision() } else { range.revision };
                    TxnOperationOutcome::Range(self.range_at(range, main))
                }
                TxnOperation::Put(put) => TxnOperationOutcome::Put(self.put_checked(put)),
                TxnOperation::DeleteRange(delete) => {
                    TxnOperationOutcome::DeleteRange(self.delete_checked(delete))
                }
                TxnOperation::Txn(nested) => TxnOperationOutcome::Txn(self.run_txn(nested, before)),
            });
        }
        TxnOutcome { revision: 0, succeeded, responses }
    }

    pub(crate) fn compact(&mut self, revision: i64) -> Result<(), OperationError> {
        if revision > self.head {
            return Err(OperationError::FutureRevision(self.head));
        }
        if revision <= self.compact {
            return Err(OperationError::Compacted(self.compact));
        }
        self.compact = revision;
        for versions in self.keys.values_mut() {
            let below = versions.iter().filter(|version| version.main <= revision).count();
            let first = below.saturating_sub(1);
            versions.drain(..first);
            if versions.first().is_some_and(|version| version.version == 0 && version.main < revision) {
                versions.remove(0);
            }
        }
        self.keys.retain(|_, versions| !versions.is_empty());
        Ok(())
    }

    /// Retained versions in revision order, with "visible at `revision`".
    pub(crate) fn retained(&self, revision: i64) -> Result<Vec<(Bytes, Version, bool)>, OperationError> {
        let main = self.readable(revision)?;
        let state = self.state(main);
        let mut all = Vec::new();
        for (key, versions) in &self.keys {
            for version in versions.iter().filter(|version| version.main <= main) {
                all.push((key.clone(), version.clone(), state.get(key) == Some(version)));
            }
        }
        all.sort_by_key(|(_, version, _)| (version.main, version.sub));
        Ok(all)
    }

    /// All events from `start` on, each with the state before.
    pub(crate) fn events(&self, start: i64) -> Result<Vec<Event>, OperationError> {
        if start < self.compact {
            return Err(OperationError::Compacted(self.compact));
        }
        let mut events = Vec::new();
        for (key, version, _) in self.retained(0)? {
            if version.main < start {
                continue;
            }
            let created = version.version > 0 && version.create_revision == version.main;
            let prev_kv = if created || version.main - 1 < self.compact {
                None
            } else {
                self.state(version.main - 1).get(&key).map(|before| to_kv(&key, before))
            };
            events.push(Event {
                kind: if version.version == 0 { EventKind::Delete } else { EventKind::Put },
                revision: sternpost_engine::base::ids::Revision::new(version.main, version.sub),
                kv: to_kv(&key, &version),
                prev_kv,
            });
        }
        Ok(events)
    }

    pub(crate) fn retained_bytes(&self) -> u64 {
        let bytes = |key: &Bytes, version: &Version| (key.len() + version.value.len() + 64) as u64;
        self.keys
            .iter()
            .flat_map(|(key, versions)| versions.iter().map(move |version| bytes(key, version)))
            .sum()
    }
}

fn executed<'a>(txn: &'a Txn, before: &State) -> (bool, &'a [TxnOperation]) {
    let succeeded = txn.compares.iter().all(|compare| holds(compare, before));
    (succeeded, if succeeded { &txn.success } else { &txn.failure })
}

fn holds(compare: &Compare, before: &State) -> bool {
    let found: Vec<&Version> =
        before.iter().filter(|(key, _)| contains(&compare.range, key)).map(|(_, version)| version).collect();
    if found.is_empty() {
        if matches!(compare.target, CompareTarget::Value(_)) {
            return false;
        }
        let zero = Version { main: 0, sub: 0, create_revision: 0, version: 0, lease: 0, value: Bytes::new() };
        return holds_for(compare, &zero);
    }
    found.iter().all(|version| holds_for(compare, version))
}

fn holds_for(compare: &Compare, version: &Version) -> bool {
    use std::cmp::Ordering::*;
    let ordering = match &compare.target {
        CompareTarget::Version(given) => version.version.cmp(given),
        CompareTarget::Create(given) => version.create_revision.cmp(given),
        CompareTarget::Mod(given) => version.main.cmp(given),
        CompareTarget::Value(given) => version.value.cmp(given),
        CompareTarget::Lease(given) => version.lease.cmp(given),
        CompareTarget::Unknown => Equal,
    };
    match compare.result {
        CompareResult::Equal => ordering == Equal,
        CompareResult::NotEqual => ordering != Equal,
        CompareResult::Greater => ordering == Greater,
        CompareResult::Less => ordering == Less,
        CompareResult::Unknown => true,
    }
}

fn has_empty_key(txn: &Txn) -> bool {
    txn.compares.iter().any(|compare| compare.range.key.is_empty())
        || txn.success.iter().chain(&txn.failure).any(|operation| match operation {
            TxnOperation::Range(range) => range.range.key.is_empty(),
            TxnOperation::Put(put) => put.key.is_empty(),
            TxnOperation::DeleteRange(delete) => delete.range.key.is_empty(),
            TxnOperation::Txn(nested) => has_empty_key(nested),
        })
}

/// etcd's `checkIntervals`, with lists instead of trees.
pub(crate) fn has_duplicate_keys(txn: &Txn) -> bool {
    changed_keys(&txn.success).is_none() || changed_keys(&txn.failure).is_none()
}

type Changed = (Vec<Bytes>, Vec<KeyRange>);

/// Puts and deletes of a branch, or none if it is refused.
fn changed_keys(operations: &[TxnOperation]) -> Option<Changed> {
    // The end of one zero byte is no open end here: such a range is empty.
    let covered = |deletes: &[KeyRange], key: &Bytes| {
        deletes.iter().any(|range| range.end[..] != [0] && contains(range, key))
    };
    let mut puts: Vec<Bytes> = Vec::new();
    let mut deletes: Vec<KeyRange> = Vec::new();
    for operation in operations {
        if let TxnOperation::DeleteRange(delete) = operation {
            deletes.push(delete.range.clone());
        }
    }
    for operation in operations {
        let TxnOperation::Txn(nested) = operation else { continue };
        let (success_puts, success_deletes) = changed_keys(&nested.success)?;
        let (failure_puts, failure_deletes) = changed_keys(&nested.failure)?;
        for key in success_puts.iter().chain(&failure_puts) {
            if puts.contains(key) || covered(&deletes, key) {
                return None;
            }
        }
        puts.extend(success_puts.into_iter().chain(failure_puts));
        deletes.extend(success_deletes.into_iter().chain(failure_deletes));
    }
    for operation in operations {
        let TxnOperation::Put(put) = operation else { continue };
        if puts.contains(&put.key) || covered(&deletes, &put.key) {
            return None;
        }
        puts.push(put.key.clone());
    }
    Some((puts, deletes))
}
