//! The embedded database on a simulated disk against the naive model: an input is a list of operations, checkpoints,
//! power cuts and reopenings.
//!
//! **Layout of an input.** byte 0: sizes of memtables, pages, segments and cache · then steps of 4 bytes: kind u8 · three bytes that
//! the step's details are drawn from. Any bytes are an input.
//!
//! A power cut comes between two steps or at any operation of the device during a write, with the checkpoints, sweeps and
//! cleaning that it sets off; afterwards the write was made or not, and all before it were.
use crate::db_support::{self, all, is_refusal, one, write};
use crate::naive::Model;
#[cfg(feature = "planted-bugs")]
use std::cell::Cell;
use std::collections::BTreeMap;
use sternpost_engine::base::record_hash::CanonicalRecord;
use sternpost_engine::base::rng::Rng;
#[cfg(feature = "planted-bugs")]
use sternpost_engine::checkpoint::PlantedBug;
use sternpost_engine::db::{Answer, SimulatedDb};
use sternpost_engine::io::sim_disk::{CrashPolicy, SimDisk};
use sternpost_engine::mvcc::encoding::LogOperation;
use sternpost_engine::mvcc::{KeyRange, Range, RangeSum, SumWay};
use sternpost_engine::{Bytes, Error, Options};

#[cfg(feature = "planted-bugs")]
thread_local! {
    /// The bug in the databases of this thread.
    static PLANTED: Cell<Option<PlantedBug>> = const { Cell::new(None) };
}

/// Calls `run` with each bug planted that a checkpoint can have; its name is given.
#[cfg(feature = "planted-bugs")]
pub(crate) fn each_planted(mut run: impl FnMut(&str)) {
    use PlantedBug::*;
    for bug in [
        SkipSegmentSync,
        SkipDirectorySync,
        SuperblockFirst,
        UnlinkEarly,
        YoungerCompaction,
        ReplayBehindCut,
        HandOverEarly,
        ReuseSegmentIds,
        ForgetReplaced,
        CleanByOldBits,
        KeepLeaseKeys,
        ForgetPurges,
        DropUnswept,
        DropPushed,
        OlderPushed,
        CountTwice,
    ] {
        PLANTED.set(Some(bug));
        run(&format!("{bug:?}"));
    }
    PLANTED.set(None);
}

const STEP_BYTES: usize = 4;
/// Steps behind it are left out: an input stays a matter of milliseconds.
const STEPS_MAX: usize = 120;

pub(crate) fn seed(rng: &mut Rng) -> Vec<u8> {
    let mut input = vec![0; 1 + STEP_BYTES * (20 + rng.below(100) as usize)];
    rng.fill(&mut input);
    input
}

/// The database and what it must be like.
struct Pair {
    disk: SimDisk,
    options: Options,
    /// None only while it is reopened.
    db: Option<SimulatedDb>,
    model: Model,
    system: BTreeMap<Bytes, Bytes>,
    /// Operations that were answered, refused ones too: the index of the last.
    applied_count: u64,
    opened_count: u64,
}

pub(crate) fn database(input: &[u8]) {
    let (sizes, steps) = input.split_at(input.len().min(1));
    let seed = u64::from(sizes.first().copied().unwrap_or(0));
    let disk = SimDisk::new(seed);
    #[cfg_attr(not(feature = "planted-bugs"), expect(unused_mut, reason = "a bug is planted in it"))]
    let mut options = db_support::options(seed);
    #[cfg(feature = "planted-bugs")]
    (options.checkpoint.planted = PLANTED.get());
    let db = SimulatedDb::open(&disk, &options, seed).expect("a new disk opens");
    let mut pair = Pair {
        disk,
        options,
        db: Some(db),
        model: Model::new(),
        system: BTreeMap::new(),
        applied_count: 0,
        opened_count: 0,
    };
    for step in steps.chunks_exact(STEP_BYTES).take(STEPS_MAX) {
        let mut rng = Rng::new(u64::from(u32::from_le_bytes([step[1], step[2], step[3], 0])));
        match step[0] {
            0..=7 => pair.reopen(&mut rng),
            8..=15 => pair.rest(&mut rng),
            16..=23 => pair.check(&mut rng),
            24..=39 => pair.interrupt(&mut rng),
            _ => {
                let operation = db_support::operation(&mut rng, pair.model.head);
                pair.apply(&operation);
            }
        }
    }
    pair.check(&mut Rng::new(1));
    pair.reopen(&mut Rng::new(2));
    pair.check(&mut Rng::new(3));
}

impl Pair {
    fn db(&self) -> &SimulatedDb {
        self.db.as_ref().expect("it is open between steps")
    }

    fn apply(&mut self, operation: &LogOperation) {
        let db = self.db.as_mut().expect("it is open between steps");
        let found = match write(db, operation) {
            Ok(answer) => Ok(answer),
            Err(error) if is_refusal(&error) => Err(error.to_string()),
            Err(error) => panic!("{operation:?}: {error}"),
        };
        let head = |model: &Model| Answer::Done(model.head);
        let expected = match operation {
            LogOperation::Put(put) => self.model.put(put).map(Answer::Put),
            LogOperation::DeleteRange(delete) => self.model.delete_range(delete).map(Answer::DeleteRange),
            LogOperation::Txn(txn) => self.model.txn(txn).map(Answer::Txn),
            LogOperation::Compact(revision) => self.model.compact(*revision).map(|()| head(&self.model)),
            LogOperation::DeleteLeaseKeys(lease) => {
                Ok(Answer::DeleteRange(self.model.delete_lease_keys(*lease)))
            }
            LogOperation::SystemPut(key, value) => {
                self.system.insert(key.clone(), value.clone());
                Ok(head(&self.model))
            }
            LogOperation::SystemDelete(key) => {
                self.system.remove(key);
                Ok(head(&self.model))
            }
        };
        let expected = expected.map_err(|error| Error::from(error).to_string());
        assert_eq!(format!("{found:?}"), format!("{expected:?}"), "{operation:?}");
        self.applied_count += 1;
    }

    /// A clean close, a killed process or a power cut; whatever was acknowledged is there afterwards.
    fn reopen(&mut self, rng: &mut Rng) {
        let db = self.db.take().expect("it is open between steps");
        match rng.below(4) {
            0 => db.close().expect("a close"),
            _ => drop(db),
        }
        let disk = self.disk.clone();
        self.open_what_is_left(&disk, rng);
        assert_eq!(self.db().store().applied().0, self.applied_count, "everything was acknowledged");
    }

    /// A killed process or a power cut while an operation is written.
    fn interrupt(&mut self, rng: &mut Rng) {
        let before = (self.model.clone(), self.system.clone(), self.applied_count);
        self.disk.record_images();
        let operation = db_support::operation(rng, self.model.head);
        self.apply(&operation);
        let images = self.disk.take_images();
        drop(self.db.take());
        self.open_what_is_left(&images[rng.below(images.len() as u64) as usize], rng);
        let held = self.db().store().applied().0;
        if held == before.2 {
            (self.model, self.system, self.applied_count) = before;
        }
        assert_eq!(held, self.applied_count, "all before was acknowledged, and nothing came behind");
    }

    fn open_what_is_left(&mut self, image: &SimDisk, rng: &mut Rng) {
        self.disk = match rng.below(4) {
            0 => image.crash(&CrashPolicy::KeepAll),
            1 => image.crash(&CrashPolicy::DropAll),
            2 => image.crash(&CrashPolicy::Random(rng.next_u64())),
            _ => image.crash_process(rng.next_u64()),
        };
        self.opened_count += 1;
        let db = SimulatedDb::open(&self.disk, &self.options, self.opened_count).expect("a sound disk opens");
        self.db = Some(db);
    }

    /// Time passes: checkpoints and cleaning get their turns.
    fn rest(&mut self, rng: &mut Rng) {
        let db = self.db.as_mut().expect("it is open between steps");
        for _ in 0..1 + rng.below(20) {
            db.step(1_000_000);
        }
        let failing = db.checkpoint_stats().failing;
        assert!(failing.is_none(), "checkpoints fail on a sound disk: {failing:?}");
    }

    fn check(&mut self, rng: &mut Rng) {
        let (store, model) = (self.db().store(), &self.model);
        assert_eq!((store.revision(), store.compact_revision()), (model.head, model.compact));
        let oldest = model.compact.max(1);
        for range in [all(), one(Bytes::from(format!("key{}", rng.below(8))))] {
            let revision = oldest + rng.below((model.head - oldest + 1) as u64) as i64;
            let range = Range { range, revision, limit: rng.below(3) as i64 * 5, ..Range::default() };
            assert_eq!(store.range(&range), model.range(&range), "{range:?}");
        }
        let mut retained = Vec::new();
        let compact = store.for_each_retained(model.head, &mut |record| {
            let key = Bytes::copy_from_slice(record.key);
            retained.push((
                key,
                record.revision.main,
                record.version,
                Bytes::copy_from_slice(record.value),
                record.visible,
            ));
        });
        assert_eq!(compact, Ok(model.compact));
        let expected = model.retained(model.head).expect("the head is readable").into_iter();
        let expected: Vec<_> =
            expected.map(|(key, it, visible)| (key, it.main, it.version, it.value, visible)).collect();
        assert_eq!(retained, expected);
        self.check_sums(oldest + rng.below((model.head - oldest + 1) as u64) as i64);
        for lease in db_support::LEASES {
            assert_eq!(store.lease_keys(lease), model.lease_keys(lease), "lease {lease}");
        }
        let system: Vec<_> = self.system.iter().map(|(key, value)| (key.clone(), value.clone())).collect();
        assert_eq!(store.system_scan(b""), system);
        let events = store.events(oldest, usize::MAX, usize::MAX).map(|batch| batch.events.len());
        assert_eq!(events, model.events(oldest).map(|events| events.len()));
        assert_eq!(store.stats().keys_count as usize, model.state(model.head).len());
        self.db().verify().expect("a sound disk verifies");
    }

    /// Range sums in every way, against the records themselves.
    fn check_sums(&self, revision: i64) {
        let store = self.db().store();
        let some = KeyRange { key: Bytes::from_static(b"key3"), end: Bytes::from_static(b"rare3") };
        let ranges = [all(), some.clone()];
        let mut expected = [RangeSum::default(); 2];
        let recounted = store.for_each_retained(revision, &mut |record| {
            let canonical = CanonicalRecord {
                key: record.key,
                revision: record.revision,
                create_revision: record.create_revision,
                version: record.version,
                lease: record.lease,
                value: record.value,
            };
            let is_in = [true, some.key <= record.key && record.key < &some.end[..]];
            for (sum, _) in expected.iter_mut().zip(is_in).filter(|(_, is_in)| *is_in && record.visible) {
                sum.keys_count += 1;
                sum.hash_sum = sum.hash_sum.wrapping_add(canonical.hash());
            }
        });
        assert_eq!(recounted, Ok(self.model.compact));
        for way in [SumWay::Cheapest, SumWay::Walk, SumWay::Changes] {
            let found = store.range_sums_by(&ranges, revision, way).expect("a sound disk");
            assert_eq!(found, expected.map(|sum| (sum, sum.keys_count)), "{way:?} at {revision}");
        }
    }
}
