//! The one writer: single operations, publication.
//!
//! It depends on its state and arguments alone: no clock, no randomness that could be seen. What a key was before may
//! have to be read from disk; nothing is written there. Transactions are evaluated in `write_txn`, accounting of
//! compactions is in `compaction`, what goes to disk and what comes from it in `flush`.
//!
//! Every change becomes one record: it is inserted into the active memtable, the record that it replaces is told the
//! new main revision, and counters and the lease index follow. The head moves last, so that the changes of one main
//! revision become visible together (M1, M2).
//!
//! Failure: an operation is checked completely before its first change; a refused one changes nothing. When something on
//! disk cannot be read, a transaction may be half done: the writer refuses everything from then on, and what was
//! published stays readable.
use super::flush::Flush;
use super::found::{Found, Hit, Parts, copy_all, copy_one};
use super::operation::*;
use super::priors::{self, Priors, ReplayPriors};
use super::range_counts::RangeCounts;
use super::state_sum::{ChangeSum, StateSum, system_hash};
use super::store::{Leases, Shared, Store, StoreOptions};
use super::view_set::{NewestFound, ViewSet};
use super::write_txn;
use crate::base::ids::Revision;
use crate::base::record_hash::CanonicalRecord;
use crate::disk_state::DiskState;
use crate::error::{Error, OperationError, Result, Unreadable};
use crate::memtable::{KeyHasher, Memtable, MemtableWriter, Newest, Prev, Record};
use arc_swap::ArcSwap;
use bytes::Bytes;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

/// The one writer. Every method is deterministic: it depends on the state and its arguments alone, and a refused
/// operation changes nothing. A change is visible to readers when the method returns.
pub struct StoreWriter {
    pub(super) store: Store,
    pub(super) options: StoreOptions,
    /// The published view set.
    pub(super) view: Arc<ViewSet>,
    /// Fills the first table of `view`.
    pub(super) active: MemtableWriter,
    /// The published head.
    pub(super) head: i64,
    /// What the listeners were told last.
    pub(super) notified: i64,
    /// Dead records are accounted up to this revision; it follows the compact revision.
    pub(super) accounted_revision: i64,
    /// Memtables that are on disk now, to be let go one by one.
    pub(super) retired: Vec<Arc<Memtable>>,
    /// What goes to disk.
    pub(super) flush: Flush,
    /// What keys were before they were changed.
    pub(super) priors: Priors,
    /// The part of the state's sum that was counted, and the one that follows from the system records.
    pub(super) change_sum: ChangeSum,
    pub(super) system_sum: u64,
    /// Index of the last entry applied, as [`Store::applied`] has it.
    pub(super) applied_index: u64,
    /// Keys of certain ranges.
    pub(super) range_counts: RangeCounts,
    /// Set when a change may be half done: nothing is changed any more.
    broken: Option<OperationError>,
}

/// The changes of one main revision while it is being made.
pub(crate) struct Changes {
    /// The main revision that they get.
    main: i64,
    /// How many there are.
    pub(super) count: i64,
    /// Keys whose lease changes, with the one before and the one after (0: none). They follow when the revision is published: a change
    /// that fails half way shows nowhere.
    leases: Vec<(Bytes, i64, i64)>,
    /// Keys more, or fewer, than before.
    keys_added: i64,
    /// The same in each range that is counted; empty where none has changed.
    pub(super) counted_added: Vec<i64>,
    /// A value that the answer should hold and that cannot be read. The state does not depend on it, so the changes are made: a replay,
    /// or another member, makes them too, whatever it can read.
    unanswered: Option<Unreadable>,
}

impl Changes {
    /// The revision that a read among the changes sees, and that goes into its answer.
    pub(super) fn revision(&self) -> i64 {
        if self.count > 0 { self.main } else { self.main - 1 }
    }

    /// Gives a part of the answer, or nothing in its place if it cannot be read.
    pub(super) fn answer<T: Default>(
        &mut self,
        read: Result<T, OperationError>,
    ) -> Result<T, OperationError> {
        match read {
            Err(OperationError::Unreadable(what)) => {
                self.unanswered.get_or_insert(what);
                Ok(T::default())
            }
            read => read,
        }
    }
}

/// A version to be added.
pub(super) struct NewVersion<'a> {
    pub(super) revision: Revision,
    pub(super) create_revision: i64,
    pub(super) version: i64,
    pub(super) state: NewState<'a>,
}

/// What a key is set to; `None` deletes it.
pub(super) type NewState<'a> = Option<(&'a [u8], i64)>;

impl StoreWriter {
    /// An empty store at revision 1.
    pub fn new(options: StoreOptions) -> (Store, StoreWriter) {
        let (table, active) = Memtable::new();
        let view = Arc::new(ViewSet {
            tables: vec![table],
            disk: Arc::new(DiskState::empty()),
            compact_revision: -1,
            hasher: KeyHasher::default(),
        });
        let store = Store {
            shared: Arc::new(Shared {
                head: AtomicI64::new(1),
                views: ArcSwap::new(view.clone()),
                leases: Default::default(),
                system: Default::default(),
                applied: Default::default(),
                listeners: Default::default(),
                keys_count: AtomicU64::new(0),
            }),
        };
        let writer = StoreWriter {
            store: store.clone(),
            options,
            view,
            active,
            head: 1,
            notified: 1,
            accounted_revision: -1,
            retired: Vec::new(),
            flush: Flush::default(),
            priors: Priors::default(),
            change_sum: ChangeSum::default(),
            system_sum: 0,
            applied_index: 0,
            range_counts: RangeCounts::default(),
            broken: None,
        };
        (store, writer)
    }

    /// The reading side.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Sets one key.
    pub fn put(&mut self, put: &Put, leases: &dyn Leases) -> Result<PutOutcome, OperationError> {
        self.check_whole()?;
        if put.key.is_empty() {
            return Err(OperationError::EmptyKey);
        }
        check_lease(put, leases)?;
        let mut changes = self.begin();
        let outcome = self.put_one(put, &mut changes)?;
        self.publish(changes)?;
        Ok(outcome)
    }

    /// Deletes a range.
    pub fn delete_range(&mut self, delete: &DeleteRange) -> Result<DeleteRangeOutcome, OperationError> {
        self.check_whole()?;
        if delete.range.key.is_empty() {
            return Err(OperationError::EmptyKey);
        }
        self.change_all(|writer, changes| writer.delete_all(delete, changes))
    }

    /// Deletes the keys attached to `lease`, sorted, in one main revision; returns how many. Fails only if something
    /// on disk cannot be read.
    pub fn delete_lease_keys(&mut self, lease: i64) -> Result<DeleteRangeOutcome, OperationError> {
        self.check_whole()?;
        self.change_all(|writer, changes| {
            let view = writer.view.clone();
            for key in writer.store.lease_keys(lease) {
                let hash = view.hasher.hash(&key);
                let newest = writer.before_change(&view, &key, hash)?;
                // The two come from two trees on disk.
                let exists = newest.as_ref().map(NewestFound::newest);
                if !exists.is_some_and(|newest| newest.version > 0 && newest.lease == lease) {
                    return Err(contradiction(&key, lease).into());
                }
                writer.change(changes, &key, hash, newest, None);
            }
            Ok(DeleteRangeOutcome {
                revision: changes.revision(),
                deleted: changes.count,
                prev_kvs: Vec::new(),
            })
        })
    }

    /// Runs a transaction. Checks before the first write everything that etcd checks (revisions of ranges, leases,
    /// ignore_* keys) and refuses as a whole.
    ///
    /// Whether a key is changed twice is not checked here; see [`check_duplicate_keys`](super::check_duplicate_keys).
    pub fn txn(&mut self, txn: &Txn, leases: &dyn Leases) -> Result<TxnOutcome, OperationError> {
        self.check_whole()?;
        write_txn::check_keys(txn)?;
        self.read_ahead(txn);
        let view = self.view.clone();
        let path = write_txn::evaluate(txn, &view, self.head, &mut |key| self.noted(&view, key))?;
        write_txn::check(txn, &path, &self.view, self.head, leases)?;
        self.change_all(|writer, changes| {
            let mut outcome = write_txn::execute(writer, txn, &path, changes)?;
            outcome.revision = changes.revision();
            Ok(outcome)
        })
    }

    /// Says which keys a transaction will need, if they are several: a single one, as kube-apiserver compares and puts it, is read at once
    /// anyway.
    fn read_ahead(&self, txn: &Txn) {
        let mut keys = txn.single_keys();
        let first = keys.next();
        if keys.any(|key| Some(key) != first) {
            txn.single_keys().for_each(|key| self.view.read_ahead(key));
        }
    }

    /// Makes several changes one main revision. When one of them fails, those before it are in the memtable and not
    /// published, and the next main revision would contain them: so there is no next one.
    fn change_all<T>(
        &mut self,
        change: impl FnOnce(&mut Self, &mut Changes) -> Result<T, OperationError>,
    ) -> Result<T, OperationError> {
        let mut changes = self.begin();
        match change(self, &mut changes) {
            Ok(outcome) => {
                self.publish(changes)?;
                Ok(outcome)
            }
            Err(error) => {
                self.broken = Some(error.clone());
                Err(error)
            }
        }
    }

    /// Makes the changes visible; then fails if their answer is not whole.
    fn publish(&mut self, mut changes: Changes) -> Result<(), OperationError> {
        let unanswered = changes.unanswered.take();
        self.publish_head(changes);
        unanswered.map_or(Ok(()), |what| Err(OperationError::Unanswered(what)))
    }

    /// Refuses when an earlier change may be half done.
    fn check_whole(&self) -> Result<(), OperationError> {
        self.broken.clone().map_or(Ok(()), Err)
    }

    /// Sets a system record.
    pub fn system_put(&mut self, key: Bytes, value: Bytes) {
        self.flush.note_system(&key, Some(&value));
        self.system_sum = self.system_sum.wrapping_add(system_hash(&key, &value));
        let mut system = self.store.shared.system.write().expect("nothing panics while it holds this lock");
        if let Some(before) = system.get(&key) {
            self.system_sum = self.system_sum.wrapping_sub(system_hash(&key, before));
        }
        system.insert(key, value);
    }

    /// Removes a system record.
    pub fn system_delete(&mut self, key: &[u8]) {
        self.flush.note_system(key, None);
        let mut system = self.store.shared.system.write().expect("nothing panics while it holds this lock");
        if let Some(before) = system.remove(key) {
            self.system_sum = self.system_sum.wrapping_sub(system_hash(key, &before));
        }
    }

    /// What replicas compare, as of the last entry applied.
    pub fn state_sum(&self) -> StateSum {
        StateSum {
            changes: self.change_sum.sum,
            since_revision: self.change_sum.since_revision,
            system: self.system_sum,
            revision: self.head,
            compact_revision: self.view.compact_revision,
        }
    }

    /// Says that the log entry (index, term) is applied, with all its effects.
    pub fn set_applied(&mut self, index: u64, term: u64) {
        *self.store.shared.applied.lock().expect("nothing panics while it holds this lock") = (index, term);
        self.applied_index = index;
        self.priors.end_entry(index);
    }

    /// Begins to note what keys were before they are changed, see [`Self::take_notes`], and to use the notes that a replay
    /// finds; `wrong` is a planted bug.
    pub(crate) fn begin_notes(&mut self, database: &[u8; 16], replay: Arc<ReplayPriors>, wrong: bool) {
        self.priors.begin(priors::seed(database), replay, wrong);
    }

    /// The body of a record for the log, if there is anything to note:
    /// [`RecordKind::PriorNotes`](crate::wal::RecordKind::PriorNotes) with the index of the last entry applied, which is the
    /// other value. To be appended in front of the next entry, and no loss if it is not.
    pub fn take_notes(&mut self) -> Option<(u64, Vec<u8>)> {
        Some((self.applied_index, self.priors.take(self.applied_index)?))
    }

    /// What the log says about a key before the entry that is being applied, if no memtable has it and nothing speaks against it.
    pub(super) fn noted(&mut self, view: &ViewSet, key: &[u8]) -> Option<Option<Newest>> {
        let noted = self.priors.find(self.applied_index + 1, key)?;
        let hash = view.hasher.hash(key);
        let in_memory = view.tables.iter().any(|table| table.find(key, hash).is_some());
        let is_on_disk = noted.is_none_or(|newest| newest.revision.main <= view.disk.revision());
        if in_memory || !is_on_disk {
            return None;
        }
        #[cfg(any(debug_assertions, feature = "sim"))]
        check_note(view, key, noted);
        Some(noted)
    }

    /// The key's newest version before the change that is being made, a tombstone too: in a memtable, as the log has noted it, or on disk.
    /// Noted for a replay if that would not find it in a memtable.
    pub(super) fn before_change<'a>(
        &mut self,
        view: &'a ViewSet,
        key: &[u8],
        hash: u32,
    ) -> Result<Option<NewestFound<'a>>, OperationError> {
        if let Some(found) = view.tables[0].find(key, hash) {
            return Ok(Some(NewestFound::Memory(found, found.newest())));
        }
        let index = self.applied_index + 1;
        if let Some(noted) = self.noted(view, key) {
            self.priors.count_answer();
            return Ok(noted.map(NewestFound::Noted));
        }
        let newest = view.newest_of_all(key, hash)?;
        self.priors.note(index, key, newest.as_ref().map(NewestFound::newest).as_ref());
        Ok(newest)
    }

    /// Tells the listeners the head, if it moved since the last call. Called once per batch of operations.
    pub fn notify(&mut self) {
        if self.notified != self.head {
            self.notified = self.head;
            for listener in self.store.shared.listeners().iter() {
                listener(self.head);
            }
        }
    }

    fn begin(&self) -> Changes {
        self.begin_at(self.head + 1)
    }

    pub(super) fn begin_at(&self, main: i64) -> Changes {
        debug_assert!(main > self.head, "M1: main revision {main} follows {}", self.head);
        Changes {
            main,
            count: 0,
            leases: Vec::new(),
            keys_added: 0,
            counted_added: Vec::new(),
            unanswered: None,
        }
    }

    /// Makes the changes visible, all at once; nothing if there are none.
    fn publish_head(&mut self, changes: Changes) {
        if changes.count > 0 {
            assert_eq!(changes.main, self.head + 1, "M1: the main revision increases by one");
            self.publish_at(changes);
        }
    }

    /// Makes the changes visible, and their main revision the head.
    pub(super) fn publish_at(&mut self, changes: Changes) {
        let shared = &self.store.shared;
        for (key, before, after) in changes.leases {
            self.flush.note_lease(&key, before, after);
            shared.leases.change(&key, before, after);
        }
        let keys_count = shared.keys_count.load(Ordering::Relaxed);
        shared.keys_count.store(keys_count.saturating_add_signed(changes.keys_added), Ordering::Relaxed);
        self.range_counts.publish(&changes.counted_added);
        self.head = changes.main;
        self.store.shared.head.store(self.head, Ordering::Release);
    }

    /// Sets a key as one of the changes. Refuses before it changes anything.
    pub(super) fn put_one(&mut self, put: &Put, changes: &mut Changes) -> Result<PutOutcome, OperationError> {
        let view = self.view.clone();
        let hash = view.hasher.hash(&put.key);
        let newest = self.before_change(&view, &put.key, hash)?;
        let live = newest.as_ref().map(NewestFound::newest).filter(|newest| newest.version > 0);
        if (put.ignore_value || put.ignore_lease) && live.is_none() {
            return Err(OperationError::KeyNotFound);
        }
        let mut prev_kv = None;
        if (put.prev_kv || put.ignore_value)
            && live.is_some()
            && let Some(found) = &newest
        {
            let read = match found.found() {
                Some(found) => copy_one(&view, &put.key, found).map(Some),
                None => view
                    .live(&put.key, changes.main)
                    .and_then(|live| live.map(|found| copy_one(&view, &put.key, found)).transpose()),
            };
            // Only a value that is kept is part of the new state.
            prev_kv = if put.ignore_value { read? } else { changes.answer(read)? };
        }
        let kept_value = prev_kv.as_ref().filter(|_| put.ignore_value).map(|kv| kv.value.clone());
        let value = kept_value.as_deref().unwrap_or(&put.value);
        let lease = if put.ignore_lease { live.map_or(0, |live| live.lease) } else { put.lease };
        self.change(changes, &put.key, hash, newest, Some((value, lease)));
        Ok(PutOutcome { revision: changes.main, prev_kv: prev_kv.filter(|_| put.prev_kv) })
    }

    /// Deletes a range as part of the changes.
    pub(super) fn delete_all(
        &mut self,
        delete: &DeleteRange,
        changes: &mut Changes,
    ) -> Result<DeleteRangeOutcome, OperationError> {
        let view = self.view.clone();
        if let Some(key) = delete.range.single().filter(|_| !delete.prev_kv) {
            let hash = view.hasher.hash(key);
            let newest = self.before_change(&view, key, hash)?;
            let exists = newest.as_ref().is_some_and(|newest| newest.newest().version > 0);
            if exists {
                self.change(changes, key, hash, newest, None);
            }
            let revision = changes.revision();
            return Ok(DeleteRangeOutcome { revision, deleted: i64::from(exists), prev_kvs: Vec::new() });
        }
        let mut hits = Vec::new();
        view.scan(delete.range.bounds(), i64::MAX, |key, found| {
            hits.push(Hit::new(key, found));
            Ok(true)
        })?;
        let prev_kvs = match delete.prev_kv {
            true => changes.answer(copy_all(&view, hits.clone(), Parts::All))?,
            false => Vec::new(),
        };
        for hit in &hits {
            let hash = view.hasher.hash(hit.key());
            let newest = match &hit.found {
                Found::Disk(version) => Some(NewestFound::Disk(version.clone())),
                Found::Memory(_) => view.newest_of_all(hit.key(), hash)?,
            };
            self.change(changes, hit.key(), hash, newest, None);
        }
        Ok(DeleteRangeOutcome { revision: changes.revision(), deleted: hits.len() as i64, prev_kvs })
    }

    /// Adds one record: `key` gets a new state; `newest` is its newest version, a tombstone too.
    fn change(
        &mut self,
        changes: &mut Changes,
        key: &[u8],
        hash: u32,
        newest: Option<NewestFound<'_>>,
        state: NewState<'_>,
    ) {
        let before = newest.as_ref().map(NewestFound::newest);
        let live = before.filter(|before| before.version > 0);
        let (create_revision, version) = match (&state, live) {
            (None, _) => (0, 0),
            (Some(_), None) => (changes.main, 1),
            (Some(_), Some(live)) => (live.create_revision, live.version + 1),
        };
        let revision = Revision::new(changes.main, changes.count);
        self.insert(changes, key, hash, newest, &NewVersion { revision, create_revision, version, state });
    }

    /// Adds a record as it is; `newest` is what it replaces.
    pub(super) fn insert(
        &mut self,
        changes: &mut Changes,
        key: &[u8],
        hash: u32,
        newest: Option<NewestFound<'_>>,
        new: &NewVersion<'_>,
    ) {
        let &NewVersion { revision, create_revision, version, state } = new;
        let before = newest.as_ref().map(NewestFound::newest);
        let live = before.filter(|before| before.version > 0);
        let (value, lease) = state.unwrap_or_default();
        // Before the new record: it may come to stand where this one is noted.
        if let Some(NewestFound::Memory(newest, _)) = &newest {
            newest.replace_newest(changes.main);
        }
        self.make_room(key.len(), value.len());
        self.active.insert(
            &Record {
                key,
                revision,
                create_revision,
                version,
                lease,
                value,
                prev: before
                    .map(|before| Prev { revision: before.revision, value_bytes: before.value_bytes }),
            },
            hash,
        );
        let record = CanonicalRecord { key, revision, create_revision, version, lease, value };
        self.change_sum.add(record.hash());
        let lease_before = live.map_or(0, |live| live.lease);
        if lease_before != lease {
            changes.leases.push((Bytes::copy_from_slice(key), lease_before, lease));
        }
        let keys_added = i64::from(state.is_some()) - i64::from(live.is_some());
        changes.keys_added += keys_added;
        self.range_counts.note(key, keys_added, changes.counted());
        changes.count += 1;
    }

    /// Starts a new memtable when the active one has no room for a record of these sizes. It is far above the size at
    /// which one is flushed, so this is for a single transaction of gigabytes.
    fn make_room(&mut self, key_bytes: usize, value_bytes: usize) {
        if !self.active.fits(key_bytes, value_bytes) {
            self.freeze();
        }
    }

    /// Starts a new memtable, also between the changes of one main revision.
    pub(super) fn freeze(&mut self) {
        if self.active.table().events_count() == 0 {
            return;
        }
        let (table, active) = Memtable::new();
        self.active = active;
        let tables = std::iter::once(table).chain(self.view.tables.iter().cloned()).collect();
        self.publish_view(tables, self.view.disk.clone(), self.view.compact_revision);
    }

    /// Publishes another set of memtables over a state on disk.
    pub(super) fn publish_view(
        &mut self,
        tables: Vec<Arc<Memtable>>,
        disk: Arc<DiskState>,
        compact_revision: i64,
    ) {
        assert!(Arc::ptr_eq(&tables[0], self.active.table()), "M4: the first table is the active one");
        debug_assert!(
            tables.is_sorted_by(|newer, older| newer.first_revision() > older.first_revision()),
            "M4: tables are in descending order"
        );
        debug_assert!(
            tables.last().is_some_and(|oldest| oldest.first_main() > disk.revision()),
            "M4: what is in memory is newer than what is on disk"
        );
        self.view = Arc::new(ViewSet { tables, disk, compact_revision, hasher: self.view.hasher.clone() });
        self.store.shared.views.store(self.view.clone());
    }
}

/// The system tree has a key of a lease that the key tree does not have, or has with another lease (M5).
fn contradiction(key: &[u8], lease: i64) -> Error {
    Error::Corruption {
        file: crate::segment::DIRECTORY.to_string(),
        offset: 0,
        what: format!(
            "M5: the system tree says that lease {lease} has the key {}, and the key tree does not",
            key.escape_ascii()
        ),
    }
}

/// N1: a note is what the disk says, if that can be asked.
#[cfg(any(debug_assertions, feature = "sim"))]
fn check_note(view: &ViewSet, key: &[u8], noted: Option<Newest>) {
    if let Ok(on_disk) = view.disk.newest(key) {
        let on_disk = on_disk.map(|version| NewestFound::Disk(version).newest());
        let on_disk = on_disk.filter(|newest| newest.version > 0);
        assert_eq!(noted, on_disk, "N1: the note about {}", key.escape_ascii());
    }
}

/// A put may name only a lease that exists.
pub(super) fn check_lease(put: &Put, leases: &dyn Leases) -> Result<(), OperationError> {
    if put.lease != 0 && !leases.exists(put.lease) {
        return Err(OperationError::LeaseNotFound);
    }
    Ok(())
}
