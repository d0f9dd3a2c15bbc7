//! Random operations on the store, compared with a naive model after each.
//!
//! `cargo test` runs 50,000 operations. `STERNPOST_MODEL_OPERATIONS=1000000` runs as many and prints progress;
//! `STERNPOST_MODEL_SEED=n` starts elsewhere, which also repeats one failing run. A failing run is shortened, and the seed
//! and the shortest list of operations that still fails are printed.
#[path = "model/naive.rs"]
mod naive;
#[path = "model/operations.rs"]
mod operations;

use naive::{FewLeases, Model, has_duplicate_keys};
use operations::{Generator, Horizon, Operation, shrink};
use std::fmt::Debug;
use std::panic::{AssertUnwindSafe, catch_unwind};
use sternpost_engine::Bytes;
use sternpost_engine::base::rng::Rng;
use sternpost_engine::checkpoint::CheckpointOptions;
use sternpost_engine::checkpoint::simulated::SimulatedCheckpoints;
use sternpost_engine::disk_state::ShelfOptions;
use sternpost_engine::io::sim_disk::SimDisk;
use sternpost_engine::mvcc::*;

/// Operations of one run: long enough for many memtables, short enough to be shortened.
const RUN_OPERATIONS: usize = 1000;
const OPERATIONS_DEFAULT: usize = 50_000;

#[test]
fn the_store_does_what_the_model_does() {
    let number = |name| {
        let text = std::env::var(name).ok()?;
        Some(text.parse::<u64>().unwrap_or_else(|error| panic!("{name} is a number: {error}")))
    };
    let first_seed = number("STERNPOST_MODEL_SEED").unwrap_or(1);
    let asked = number("STERNPOST_MODEL_OPERATIONS");
    let operations_count = asked.map_or(OPERATIONS_DEFAULT, |asked| asked as usize);
    for run in 0..operations_count.div_ceil(RUN_OPERATIONS) {
        check_seed(first_seed + run as u64);
        if asked.is_some() && (run + 1) % 50 == 0 {
            println!(
                "{} operations, seeds {first_seed} to {}",
                (run + 1) * RUN_OPERATIONS,
                first_seed + run as u64
            );
        }
    }
}

/// One run; panics with a short list of operations if store and model differ.
fn check_seed(seed: u64) {
    let mut generator = Generator::new(seed);
    let sizes = Sizes { memtable_bytes: generator.memtable_bytes(), seed };
    let mut operations = Vec::new();
    let outcome = attempt(sizes, |pair| {
        for _ in 0..RUN_OPERATIONS {
            let horizon = Horizon { head: pair.model.head, compact: pair.model.compact };
            let operation = generator.operation(&horizon);
            operations.push(operation.clone());
            pair.step(&operation)?;
        }
        pair.check_everything()
    });
    let Err(first) = outcome else { return };
    let run = |operations: &[Operation]| {
        attempt(sizes, |pair| {
            operations.iter().try_for_each(|operation| pair.step(operation))?;
            pair.check_everything()
        })
    };
    // The asserts of shorter and shorter runs would fill the screen.
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let shortest = shrink(operations, |operations| run(operations).is_err());
    let last = run(&shortest);
    std::panic::set_hook(hook);
    let mut list = String::new();
    let _ = attempt(sizes, |pair| {
        for operation in &shortest {
            list += &format!("  {:?}\n", operation.absolute(pair.model.head));
            pair.step(operation)?;
        }
        Ok(())
    });
    panic!(
        "store and model differ: STERNPOST_MODEL_SEED={seed}, {sizes:?}\nfirst seen: \
         {first}\nshortest list of operations, which fails with {last:?}:\n{list}"
    );
}

/// Runs with a new store; a panic is a difference too.
fn attempt(sizes: Sizes, body: impl FnOnce(&mut Pair) -> Result<(), String>) -> Result<(), String> {
    catch_unwind(AssertUnwindSafe(|| body(&mut Pair::new(sizes)))).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        Err(text.or_else(|| panic.downcast_ref::<&str>().map(|text| text.to_string())).unwrap_or_default())
    })
}

/// What a run is made with. Nothing of it may show in an answer.
#[derive(Clone, Copy, Debug)]
struct Sizes {
    memtable_bytes: usize,
    seed: u64,
}

impl Sizes {
    /// Two runs in three are over a disk, with small pages, segments and caches of all kinds.
    fn disk(self) -> Option<CheckpointOptions> {
        let mut rng = Rng::new(self.seed ^ 0xd15c);
        rng.chance(2, 3).then(|| CheckpointOptions {
            shelf: ShelfOptions {
                cache_bytes: [0, 64 << 10, 64 << 20][rng.below(3) as usize],
                page_bytes: [160, 512, 4096, 16384][rng.below(4) as usize],
                segment_bytes: [16 << 10, 64 << 10, 1 << 20][rng.below(3) as usize],
                ..ShelfOptions::default()
            },
            sweep_changes_max: [1, 12, 1 << 18][rng.below(3) as usize],
            wal_bytes_max: [500, 5_000, 1 << 30][rng.below(3) as usize],
            pending_percent_max: [0, 25, 200, 1_000][rng.below(4) as usize],
            ..CheckpointOptions::default()
        })
    }
}

/// The store and what it must be like.
struct Pair {
    sizes: Sizes,
    disk: Option<(SimDisk, SimulatedCheckpoints)>,
    model: Model,
    store: Store,
    writer: StoreWriter,
    /// All changes so far, to be repeated.
    history: Vec<Operation>,
    steps: u64,
}

fn equal<T: PartialEq + Debug>(what: &str, found: T, expected: T) -> Result<(), String> {
    if found == expected { Ok(()) } else { Err(format!("{what}\n   found {found:?}\nexpected {expected:?}")) }
}

impl Pair {
    fn new(sizes: Sizes) -> Pair {
        let (store, mut writer) = StoreWriter::new(StoreOptions { memtable_bytes: sizes.memtable_bytes });
        let disk = sizes.disk().map(|options| {
            let disk = SimDisk::new(sizes.seed);
            let checkpoints =
                SimulatedCheckpoints::open(&disk, &mut writer, &options).expect("a new disk opens");
            (disk, checkpoints)
        });
        Pair { sizes, disk, model: Model::new(), store, writer, history: Vec::new(), steps: 0 }
    }

    fn step(&mut self, operation: &Operation) -> Result<(), String> {
        let operation = &operation.absolute(self.model.head);
        match operation {
            Operation::Put(put) => {
                equal("put", self.writer.put(put, &FewLeases), self.model.put(put))?;
            }
            Operation::DeleteRange(delete) => {
                equal("delete", self.writer.delete_range(delete), self.model.delete_range(delete))?;
            }
            Operation::DeleteLeaseKeys(lease) => {
                let found = self.writer.delete_lease_keys(*lease);
                equal("delete lease keys", found, Ok(self.model.delete_lease_keys(*lease)))?;
            }
            Operation::Txn(txn) => {
                equal("duplicate keys", check_duplicate_keys(txn).is_err(), has_duplicate_keys(txn))?;
                equal("txn", self.writer.txn(txn, &FewLeases), self.model.txn(txn))?;
            }
            Operation::Compact(revision) => {
                equal("compact", self.writer.compact(*revision), self.model.compact(*revision))?;
            }
            Operation::Range(range) => {
                equal("range", self.store.range(range), self.model.range(range))?;
                self.check_bounded(range)?;
            }
            Operation::Scan(scan) => {
                equal("scan", self.store.scan(scan), self.model.scan(scan))?;
            }
            Operation::Events { start, events_max, bytes_max } => {
                self.check_events(*start, *events_max, *bytes_max)?;
            }
            Operation::Retained(revision) => self.check_retained(*revision)?,
            Operation::LeaseKeys(lease) => self.check_lease(*lease)?,
            Operation::Maintain(steps) => {
                for _ in 0..*steps {
                    if !self.writer.maintain() {
                        break;
                    }
                }
            }
            Operation::Reopen { memtable_bytes } => self.reopen(*memtable_bytes)?,
        }
        if matches!(
            operation,
            Operation::Put(_)
                | Operation::DeleteRange(_)
                | Operation::DeleteLeaseKeys(_)
                | Operation::Txn(_)
                | Operation::Compact(_)
        ) {
            self.history.push(operation.clone());
            if let Some((_, checkpoints)) = &mut self.disk {
                checkpoints.after_operation(&mut self.writer);
            }
        }
        // Some checkpoints are made long after their cut.
        if let Some((_, checkpoints)) = &mut self.disk
            && self.steps.is_multiple_of(3)
        {
            checkpoints
                .make(&mut self.writer, self.steps.is_multiple_of(99))
                .map_err(|error| error.to_string())?;
        }
        equal("revision", self.store.revision(), self.model.head)?;
        equal("compact revision", self.store.compact_revision(), self.model.compact)?;
        self.steps += 1;
        if self.steps.is_multiple_of(200) { self.check_everything() } else { Ok(()) }
    }

    fn reopen(&mut self, memtable_bytes: usize) -> Result<(), String> {
        let (store, mut writer) = StoreWriter::new(StoreOptions { memtable_bytes });
        let mut applied = 0;
        if let Some((disk, checkpoints)) = &mut self.disk
            && let Some(options) = self.sizes.disk()
        {
            *checkpoints =
                SimulatedCheckpoints::open(disk, &mut writer, &options).map_err(|error| error.to_string())?;
            applied = checkpoints.applied() as usize;
        }
        for (index, operation) in self.history.iter().enumerate().skip(applied) {
            match operation {
                Operation::Put(put) => drop(writer.put(put, &FewLeases)),
                Operation::DeleteRange(delete) => drop(writer.delete_range(delete)),
                Operation::DeleteLeaseKeys(lease) => drop(writer.delete_lease_keys(*lease)),
                Operation::Txn(txn) => drop(writer.txn(txn, &FewLeases)),
                Operation::Compact(revision) => drop(writer.compact(*revision)),
                _ => unreachable!("the history holds changes"),
            }
            if let Some((_, checkpoints)) = &mut self.disk {
                checkpoints.after_operation(&mut writer);
            }
            if index % 7 == 0 {
                writer.maintain();
            }
        }
        (self.store, self.writer) = (store, writer);
        Ok(())
    }

    /// A range that is not held as a whole has what was measured, and by pages or at once it is the same.
    fn check_bounded(&self, range: &Range) -> Result<(), String> {
        let size_of: SizeOf = |outline| 3 + outline.key.len() as u64 + u64::from(outline.value_bytes);
        let bytes_of = |kvs: &[KeyValue]| -> u64 {
            kvs.iter().map(|kv| 3 + kv.key.len() as u64 + kv.value.len() as u64).sum()
        };
        let expected = self.model.range(range);
        for bytes_max in [0, 5, 60, 1000, 1 << 20] {
            let mut large = match (self.store.range_bounded(range, bytes_max, size_of), &expected) {
                (Ok(BoundedRange::Large(large)), Ok(_)) => large,
                (Ok(BoundedRange::Whole(outcome)), _) => {
                    equal("a bounded range", Ok(outcome), expected.clone())?;
                    continue;
                }
                (found, _) => {
                    equal("a bounded range", found.map(|_| ()), expected.clone().map(|_| ()))?;
                    continue;
                }
            };
            let expected = expected.clone().map_err(|error| error.to_string())?;
            equal("a large range", large.read(), Ok(expected.clone()))?;
            let measured = (large.revision(), large.count(), large.more(), large.keys_count());
            let keys_count = expected.kvs.len() as u64;
            equal(
                "what is known of it",
                measured,
                (expected.revision, expected.count, expected.more, keys_count),
            )?;
            let bytes = bytes_of(&expected.kvs);
            if !large.has_pages() {
                equal("at least its bytes", large.bytes() >= bytes, true)?;
                continue;
            }
            equal("its bytes", large.bytes(), bytes)?;
            let mut kvs = Vec::new();
            loop {
                let page = large.next_page(bytes_max).map_err(|error| error.to_string())?;
                if page.is_empty() {
                    break;
                }
                equal("a page is in its bound", page.len() == 1 || bytes_of(&page) <= bytes_max, true)?;
                kvs.extend(page);
            }
            equal("its pages", kvs, expected.kvs)?;
        }
        Ok(())
    }

    fn check_events(&self, start: i64, events_max: usize, bytes_max: usize) -> Result<(), String> {
        let expected = match self.model.events(start) {
            Ok(expected) => expected,
            Err(error) => {
                return equal("events", self.store.events(start, events_max, bytes_max).err(), Some(error));
            }
        };
        let mut from = start;
        let mut all = Vec::new();
        loop {
            let batch = self.store.events(from, events_max, bytes_max).map_err(|error| error.to_string())?;
            if batch.next_revision <= from && from <= self.model.head {
                return Err(format!("events from {from} do not advance: {batch:?}"));
            }
            // Whole revisions, and no more of them than the bounds allow.
            let mains: Vec<i64> = batch.events.iter().map(|event| event.revision.main).collect();
            if let Some(&last) = mains.last() {
                let before_last = mains.iter().filter(|&&main| main < last).count();
                let bytes: usize = batch.events[..before_last]
                    .iter()
                    .map(|event| event.kv.key.len() + event.kv.value.len())
                    .sum();
                let too_many = before_last > 0 && (before_last >= events_max || bytes >= bytes_max);
                if too_many || last >= batch.next_revision {
                    return Err(format!("bounds {events_max}, {bytes_max} are not kept: {batch:?}"));
                }
            }
            all.extend(batch.events);
            from = batch.next_revision;
            if from > self.model.head {
                break;
            }
        }
        equal("next revision", from, start.max(self.model.head + 1))?;
        let found: Vec<Event> = all
            .iter()
            .map(|event| Event {
                prev_kv: self.store.previous(event).expect("the disk is whole"),
                ..Event::clone(event)
            })
            .collect();
        equal("events", found, expected)
    }

    fn check_retained(&self, revision: i64) -> Result<(), String> {
        let mut found = Vec::new();
        let compact = self.store.for_each_retained(revision, &mut |record| {
            let version = naive::Version {
                main: record.revision.main,
                sub: record.revision.sub,
                create_revision: record.create_revision,
                version: record.version,
                lease: record.lease,
                value: Bytes::copy_from_slice(record.value),
            };
            assert_eq!(record.tombstone, record.version == 0);
            found.push((Bytes::copy_from_slice(record.key), version, record.visible));
        });
        let found = compact.map(|compact| (compact, found));
        equal("retained", found, self.model.retained(revision).map(|records| (self.model.compact, records)))
    }

    fn check_lease(&self, lease: i64) -> Result<(), String> {
        equal("lease keys", self.store.lease_keys(lease), self.model.lease_keys(lease))
    }

    fn check_everything(&mut self) -> Result<(), String> {
        let everything = KeyRange { key: Bytes::from_static(b"\0"), end: Bytes::from_static(b"\0") };
        let mut rng = Rng::new(self.steps);
        let oldest = self.model.compact.max(1);
        for _ in 0..5 {
            let revision = oldest + rng.below((self.model.head - oldest + 1) as u64) as i64;
            let range = Range { range: everything.clone(), revision, ..Range::default() };
            equal("everything", self.store.range(&range), self.model.range(&range))?;
        }
        self.check_events(oldest, 7, 1 << 20)?;
        self.check_retained(0)?;
        (1..=3).try_for_each(|lease| self.check_lease(lease))?;
        let stats = self.store.stats();
        equal("keys", stats.keys_count as usize, self.model.state(self.model.head).len())?;
        // A large compaction is accounted in pieces; until then the count is above.
        let retained_bytes = self.model.retained_bytes();
        if stats.retained_bytes < retained_bytes {
            return equal("retained bytes", stats.retained_bytes, retained_bytes);
        }
        if rng.chance(1, 2) {
            while self.writer.maintain() {}
            if let Some((_, checkpoints)) = &mut self.disk {
                checkpoints.make(&mut self.writer, true).map_err(|error| error.to_string())?;
                checkpoints.verify().map_err(|error| error.to_string())?;
            }
            equal("retained bytes", self.store.stats().retained_bytes, retained_bytes)?;
        }
        Ok(())
    }
}
