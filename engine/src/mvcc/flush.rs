//! What of the store goes to disk, and what comes from it: the writer's side of a checkpoint.
//!
//! The writer notes which system records and which keys of leases changed. At the end of an entry of the log it can cut:
//! what is in memory then becomes a [`Run`], which a checkpoint turns into a new state on disk; when that is durable,
//! [`StoreWriter::install`] puts it under the memtables and lets those go that are in it.
//!
//! **System tree.** Three kinds of keys: `s` + the caller's key, with the caller's value; `l` + lease (i64, big-endian) + key,
//! without a value, for each key that is attached to a lease. So a start reads what leases hold, never all keys. And one key `c`: the
//! sum of all changes up to the checkpoint (see [`super::state_sum`]).
//!
//! Invariant F1: a cut lies between two entries of the log: what a run holds is the effect of the entries up to its
//! index, whole (I4 of the engine's crash argument).
use super::state_sum::{ChangeSum, system_hash};
use super::writer::StoreWriter;
use crate::base::ids::Lsn;
use crate::disk_state::{DiskState, undecodable};
use crate::error::{Error, Result};
use crate::memtable::Memtable;
use bytes::{BufMut, Bytes, BytesMut};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

const SYSTEM_PREFIX: u8 = b's';
pub(crate) const LEASE_PREFIX: u8 = b'l';
/// Key of the system tree with the sum of changes.
pub(crate) const CHANGE_SUM_KEY: &[u8] = b"c";

/// Changes of the system tree: new value, or none for a removal.
pub(crate) type SystemChanges = BTreeMap<Bytes, Option<Bytes>>;

/// Where in the log a cut is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CutPosition {
    /// Index of the last entry whose effects are included.
    pub index: u64,
    /// Its term.
    pub term: u64,
    /// Its position; recovery starts there, and skips what is applied.
    pub lsn: Lsn,
}

/// A run of frozen memtables that becomes a checkpoint.
#[derive(Clone)]
pub(crate) struct Run {
    /// Oldest first; empty if only a compaction or the system tree has something to write.
    pub(crate) tables: Vec<Arc<Memtable>>,
    pub(crate) position: CutPosition,
    /// Head at the cut.
    pub(crate) revision: i64,
    /// Compact revision at the cut.
    pub(crate) compact_revision: i64,
    pub(crate) system: SystemChanges,
}

/// What the writer keeps for its next cut.
#[derive(Default)]
pub(super) struct Flush {
    system: SystemChanges,
    /// Memtables of runs that are not installed yet: those are not cut again.
    cut_tables: Vec<Arc<Memtable>>,
    /// A compaction was applied since the last cut, and there is something on disk for it.
    compacted: bool,
    /// The sum of changes that the last cut has, or the state that this began with.
    change_sum: Option<ChangeSum>,
}

fn system_key(key: &[u8]) -> Bytes {
    let mut bytes = BytesMut::with_capacity(key.len() + 1);
    bytes.put_u8(SYSTEM_PREFIX);
    bytes.put_slice(key);
    bytes.freeze()
}

/// Key of the system tree that says that `key` is attached to `lease`.
pub(crate) fn lease_key(lease: i64, key: &[u8]) -> Bytes {
    let mut bytes = BytesMut::with_capacity(key.len() + 9);
    bytes.put_u8(LEASE_PREFIX);
    bytes.put_i64(lease);
    bytes.put_slice(key);
    bytes.freeze()
}

impl Flush {
    pub(super) fn note_system(&mut self, key: &[u8], value: Option<&Bytes>) {
        self.system.insert(system_key(key), value.cloned());
    }

    pub(super) fn note_lease(&mut self, key: &[u8], from: i64, to: i64) {
        if from != 0 {
            self.system.insert(lease_key(from, key), None);
        }
        if to != 0 {
            self.system.insert(lease_key(to, key), Some(Bytes::new()));
        }
    }

    /// True while memtables are on their way to disk: they will hold what a compaction makes dead.
    pub(super) fn has_cut_tables(&self) -> bool {
        !self.cut_tables.is_empty()
    }

    pub(super) fn note_compaction(&mut self) {
        self.compacted = true;
    }
}

impl StoreWriter {
    /// Starts from a state on disk; to be called on a fresh writer, before anything is applied.
    ///
    /// # Errors
    /// If the system tree cannot be read.
    pub(crate) fn attach(&mut self, disk: Arc<DiskState>) -> Result<()> {
        let shared = &self.store.shared;
        let mut system = BTreeMap::new();
        let (mut change_sum, mut system_sum) = (None, 0u64);
        disk.for_each_system(&mut |key, value| {
            match key.split_first() {
                _ if key == CHANGE_SUM_KEY => {
                    let sum = ChangeSum::decode(value);
                    change_sum = Some(sum.map_err(|_| undecodable("the sum of changes"))?);
                }
                Some((&SYSTEM_PREFIX, key)) => {
                    system_sum = system_sum.wrapping_add(system_hash(key, value));
                    system.insert(Bytes::copy_from_slice(key), Bytes::copy_from_slice(value));
                }
                Some((&LEASE_PREFIX, rest)) if rest.len() >= 8 => {
                    let (lease, key) = rest.split_at(8);
                    let lease = i64::from_be_bytes(lease.try_into().expect("eight bytes"));
                    shared.leases.change(&Bytes::copy_from_slice(key), 0, lease);
                }
                _ => {
                    return Err(Error::Refused(format!(
                        "the system tree holds a key of a kind this build does not know: {key:02x?}"
                    )));
                }
            }
            Ok(())
        })?;
        *shared.system.write().expect("nothing panics while it holds this lock") = system;
        self.flush.change_sum = change_sum;
        // A state of a build that did not count: from here on.
        let uncounted = ChangeSum { sum: 0, since_revision: disk.revision() };
        self.change_sum = change_sum.unwrap_or(uncounted);
        self.system_sum = system_sum;
        shared.keys_count.store(disk.keys_count(), Ordering::Relaxed);
        *shared.applied.lock().expect("nothing panics while it holds this lock") = disk.applied();
        self.applied_index = disk.applied().0;
        self.head = disk.revision().max(1);
        self.notified = self.head;
        shared.head.store(self.head, Ordering::Release);
        self.accounted_revision = disk.compact_revision();
        let compact_revision = disk.compact_revision();
        self.publish_view(self.view.tables.clone(), disk, compact_revision);
        Ok(())
    }

    /// True when the active memtable has reached its size.
    pub(crate) fn is_full(&self) -> bool {
        self.active.used_bytes() >= self.options.memtable_bytes
    }

    /// Which share of its size the active memtable has reached, from 0; above 1 where the last write went over it.
    pub(crate) fn filled(&self) -> f64 {
        self.active.used_bytes() as f64 / self.options.memtable_bytes.max(1) as f64
    }

    /// The size at which a memtable is frozen.
    pub(crate) fn memtable_bytes(&self) -> usize {
        self.options.memtable_bytes
    }

    /// Records of the active memtable, and their bytes.
    pub(crate) fn active_size(&self) -> (u64, u64) {
        (self.active.table().events_count() as u64, self.active.table().record_bytes())
    }

    /// True when a compaction has made something on disk dead since the last cut.
    pub(crate) fn wants_sweep(&self) -> bool {
        self.flush.compacted
    }

    /// Cuts behind the entry at `position`, which is applied with all its effects (F1).
    pub(crate) fn cut(&mut self, position: CutPosition) -> Run {
        assert_eq!(
            self.store.applied().0,
            position.index,
            "F1: the entry at the cut is the last one applied"
        );
        self.freeze();
        let mut tables: Vec<_> = self.view.tables[1..]
            .iter()
            .filter(|table| !self.flush.cut_tables.iter().any(|cut| Arc::ptr_eq(cut, table)))
            .cloned()
            .collect();
        tables.reverse();
        self.flush.cut_tables.extend(tables.iter().cloned());
        self.flush.compacted = false;
        let mut system = std::mem::take(&mut self.flush.system);
        if self.flush.change_sum != Some(self.change_sum) {
            self.flush.change_sum = Some(self.change_sum);
            system.insert(Bytes::from_static(CHANGE_SUM_KEY), Some(self.change_sum.encode()));
        }
        Run { tables, position, revision: self.head, compact_revision: self.view.compact_revision, system }
    }

    /// Puts the state that a checkpoint of `run` has made under the memtables, and lets those of the run go.
    pub(crate) fn install(&mut self, run: &Run, disk: Arc<DiskState>) {
        assert_eq!(disk.revision(), run.revision, "M4: the state on disk is that of the cut");
        let is_of_run = |table: &Arc<Memtable>| run.tables.iter().any(|other| Arc::ptr_eq(other, table));
        let tables: Vec<_> = self.view.tables.iter().filter(|table| !is_of_run(table)).cloned().collect();
        self.flush.cut_tables.retain(|table| !is_of_run(table));
        self.publish_view(tables, disk, self.view.compact_revision);
        self.retired.extend(run.tables.iter().cloned());
    }

    /// Puts a state of the same content in the place of the one under the memtables.
    pub(crate) fn replace(&mut self, disk: Arc<DiskState>) {
        let (old, new) = (self.view.disk.revision(), disk.revision());
        assert_eq!(old, new, "M4: upkeep changes no content");
        self.publish_view(self.view.tables.clone(), disk, self.view.compact_revision);
    }
}

#[cfg(feature = "sim")]
impl super::Store {
    /// The state under the memtables.
    pub(crate) fn disk(&self) -> Arc<DiskState> {
        self.shared.views.load().disk.clone()
    }
}
