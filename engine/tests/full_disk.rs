//! The embedded database on a disk that is full of its own data: what is taken, what is refused, and that space comes back, in one
//! process, over restarts and over a power cut at every moment of it. `docs/full_disk.md` says what is promised.
//!
//! The disk has a capacity, and the database fills it with values that do not compress. Whoever deletes and compacts has to get room for
//! new writes, and as much of it as before, with everything that was acknowledged as it was.
//!
//! `STERNPOST_SEEDS=1` cuts the power at every step; `cargo test` at one in some dozens.
mod db_support;

use db_support::*;
use sternpost_engine::base::rng::Rng;
use sternpost_engine::checkpoint::{ReserveSize, ReserveStats};
use sternpost_engine::db::{Answer, SimulatedDb};
use sternpost_engine::io::sim_disk::{CrashPolicy, SimDisk};
use sternpost_engine::mvcc::encoding::LogOperation;
use sternpost_engine::mvcc::{DeleteRange, KeyRange, Put, StoreWriter};
use sternpost_engine::{Bytes, Error, Options};

const VALUE_BYTES: usize = 1_500;
const CAPACITY_BYTES: u64 = 2 << 20;
/// Far more rounds than the pauses between tries on a full disk take.
const PATIENCE: usize = 400;

fn sizes() -> Options {
    let mut options = Options::new().memtable_bytes(48 << 10).cache_bytes(64 << 10);
    options.log.segment_bytes = Some(64 << 10);
    options.checkpoint.wal_bytes_max = 96 << 10;
    options.checkpoint.rest_wal_bytes_max = 16 << 10;
    options.checkpoint.shelf.page_bytes = 1024;
    options.checkpoint.shelf.segment_bytes = 64 << 10;
    options.checkpoint.reserve = Some(ReserveSize::Bytes(512 << 10));
    options
}

/// A database with a disk, and what it must hold.
struct Life {
    disk: SimDisk,
    options: Options,
    db: Option<SimulatedDb>,
    rng: Rng,
    /// A store without a disk with all that was acknowledged.
    model: StoreWriter,
    applied: u64,
    /// Number of the next key.
    next: usize,
    /// Keys below this one are deleted.
    first: usize,
}

impl Life {
    fn new(seed: u64, options: Options) -> Self {
        let disk = SimDisk::new(seed);
        let db = SimulatedDb::open(&disk, &options, seed).expect("a new disk opens");
        disk.set_capacity(Some(CAPACITY_BYTES));
        let (_, model) = StoreWriter::new(Options::new().store);
        Self { disk, options, db: Some(db), rng: Rng::new(seed), model, applied: 0, next: 0, first: 0 }
    }

    fn db(&mut self) -> &mut SimulatedDb {
        self.db.as_mut().expect("it is open")
    }

    fn write(&mut self, operation: &LogOperation) -> Result<Answer, Error> {
        let answer = write(self.db(), operation);
        if answer.is_ok() {
            apply(&mut self.model, operation);
            self.applied += 1;
        }
        answer
    }

    fn put(&mut self) -> Result<Answer, Error> {
        let mut value = vec![0; VALUE_BYTES];
        value.fill_with(|| self.rng.next_u64() as u8);
        let key = Bytes::from(format!("key{:06}", self.next));
        let answer = self.write(&LogOperation::Put(Put { key, value: value.into(), ..Put::default() }));
        self.next += usize::from(answer.is_ok());
        answer
    }

    /// Puts until that is refused for good.
    fn fill(&mut self) {
        let mut refused = 0;
        while refused < 30 {
            match self.put() {
                Ok(_) => refused = 0,
                Err(Error::NoSpace(_)) => {
                    refused += 1;
                    rest(self.db());
                }
                Err(error) => panic!("a full disk is no reason for this: {error}"),
            }
        }
    }

    /// What is where, for a test that fails.
    fn describe(&mut self) -> String {
        let files = self.disk.files();
        let sizes =
            files.iter().map(|path| (path, self.disk.read_file(path).map_or(0, |bytes| bytes.len() >> 10)));
        let sizes: Vec<_> = sizes.collect();
        let bytes = self.disk.allocated_bytes();
        format!(
            "{bytes} bytes, in KiB {sizes:?}, {:?} {:?}",
            self.db().checkpoint_stats(),
            self.db().wal_stats()
        )
    }

    fn live_count(&self) -> usize {
        self.next - self.first
    }

    fn reserve(&mut self) -> ReserveStats {
        self.db().checkpoint_stats().reserve
    }

    /// Deletes what is older than a half, one by one, and compacts.
    fn delete_half(&mut self) {
        let until = self.first + self.live_count() / 2;
        for number in self.first..until {
            let range = one(Bytes::from(format!("key{number:06}")));
            self.insist(&LogOperation::DeleteRange(DeleteRange { range, prev_kv: false }));
        }
        self.first = until;
        let head = self.model.store().revision();
        self.insist(&LogOperation::Compact(head));
    }

    /// What makes the data smaller is taken on a full disk; it may have to wait for a checkpoint.
    fn insist(&mut self, operation: &LogOperation) {
        let mut refusal = String::new();
        for _ in 0..PATIENCE {
            match self.write(operation) {
                Ok(_) => return,
                Err(Error::NoSpace(why)) => {
                    refusal = why;
                    rest(self.db());
                }
                Err(error) => panic!("{error}"),
            }
        }
        panic!("refused for good: {refusal}: {}", self.describe());
    }

    /// Puts one, as soon as that is taken.
    fn put_when_there_is_room(&mut self, story: &str) {
        for _ in 0..PATIENCE {
            match self.put() {
                Ok(_) => return,
                Err(Error::NoSpace(_)) => rest(self.db()),
                Err(error) => panic!("{story}: {error}"),
            }
        }
        panic!("{story}: no room comes back: {}", self.describe());
    }

    fn check(&mut self, story: &str) {
        let expected = dump(self.model.store());
        assert_same(&dump(self.db().store()), &expected, story);
        self.db().verify().unwrap_or_else(|error| panic!("{story}: {error}"));
    }

    fn reopen(&mut self, how: Reopen) {
        let db = self.db.take().expect("it is open");
        match how {
            Reopen::No => return self.db = Some(db),
            Reopen::Closed => {
                // One that cannot take what is in memory leaves it to the log.
                let _ = db.close();
            }
            Reopen::Killed => {
                drop(db);
                self.disk = self.disk.crash(&CrashPolicy::DropAll);
            }
        }
        let db = SimulatedDb::open(&self.disk, &self.options, 7);
        self.db = Some(db.unwrap_or_else(|error| panic!("a full disk opens: {how:?}: {error}")));
    }
}

/// Time passes: what is tried again is tried again behind a pause.
fn rest(db: &mut SimulatedDb) {
    for _ in 0..3 {
        db.step(1_000_000);
    }
}

/// Writes as soon as that is taken; false if it never is.
fn write_in_time(db: &mut SimulatedDb, operation: &LogOperation) -> bool {
    (0..PATIENCE).any(|_| {
        let is_taken = write(db, operation).is_ok();
        if !is_taken {
            rest(db);
        }
        is_taken
    })
}

#[derive(Clone, Copy, Debug)]
enum Reopen {
    No,
    Closed,
    Killed,
}

#[test]
fn deletions_and_a_compaction_give_a_full_disk_its_room_back() {
    for how in [Reopen::No, Reopen::Closed, Reopen::Killed] {
        let mut life = Life::new(1, sizes());
        let mut live_counts = Vec::new();
        for cycle in 0..4 {
            life.fill();
            let allocated_bytes = life.disk.allocated_bytes();
            assert!(allocated_bytes > CAPACITY_BYTES * 2 / 3, "{allocated_bytes} bytes are taken");
            let story = format!("{how:?}, cycle {cycle}");
            life.check(&story);
            live_counts.push(life.live_count());
            life.reopen(how);
            let reserve = life.reserve();
            assert!(reserve.short.is_some(), "{story}: nobody forgets what was given up: {reserve:?}");
            life.check(&story);
            life.delete_half();
            life.put_when_there_is_room(&story);
            life.check(&story);
        }
        println!("{how:?}: {live_counts:?} keys when full, {:?}", life.db().checkpoint_stats().totals);
        let (first, last) = (live_counts[0], live_counts[3]);
        assert!(last * 10 >= first * 8, "{how:?}: as much fits as at first: {live_counts:?}");
    }
}

/// Without the reserve this is how it was: nothing frees itself any more. That a test like this one sees it.
#[test]
fn without_a_reserve_a_full_disk_stays_full() {
    let mut options = sizes();
    options.checkpoint.reserve = Some(ReserveSize::Bytes(0));
    let mut life = Life::new(1, options);
    life.fill();
    let until = life.live_count() / 2;
    for number in 0..until {
        let range = one(Bytes::from(format!("key{number:06}")));
        let _ = life.write(&LogOperation::DeleteRange(DeleteRange { range, prev_kv: false }));
    }
    let head = life.model.store().revision();
    let _ = life.write(&LogOperation::Compact(head));
    let refused = (0..PATIENCE).all(|_| {
        rest(life.db());
        life.put().is_err()
    });
    assert!(refused, "there is room without a reserve: what fills the disk in these tests does not fill it");
}

/// Somebody else's files fill the disk, and go again: nobody has to do anything.
#[test]
fn room_that_others_took_and_gave_back_is_used_again() {
    let mut life = Life::new(2, sizes());
    for _ in 0..100 {
        life.put().expect("there is room");
    }
    for _ in 0..3 {
        let taken = life.disk.allocated_bytes();
        life.disk.set_capacity(Some(taken));
        life.fill();
        let revision = life.model.store().revision();
        assert_eq!(life.db().store().revision(), revision, "what was refused was not made");
        life.check("full of others");
        life.disk.set_capacity(Some(2 * CAPACITY_BYTES));
        life.put_when_there_is_room("the others are gone");
        life.disk.set_capacity(Some(CAPACITY_BYTES + life.disk.allocated_bytes()));
        for _ in 0..50 {
            life.put().expect("there is room");
        }
        life.check("with room");
    }
}

/// Each image of a disk from the moment when it is full until it has room again; what was acknowledged by then is there, and room comes
/// back by the same means.
#[test]
fn a_power_cut_at_any_moment_on_a_full_disk_loses_nothing_and_room_comes_back() {
    let deep = std::env::var_os("STERNPOST_SEEDS").is_some();
    let mut life = Life::new(3, sizes());
    life.fill();
    // From the last of the room on.
    let filled = life.applied;
    life.disk.record_images();
    let mut images = Vec::new();
    let mut operations = Vec::new();
    let until = life.first + life.live_count() / 2;
    let mut steps: Vec<LogOperation> = (life.first..until)
        .map(|number| {
            let range = one(Bytes::from(format!("key{number:06}")));
            LogOperation::DeleteRange(DeleteRange { range, prev_kv: false })
        })
        .collect();
    steps.push(LogOperation::Compact(life.model.store().revision() + steps.len() as i64));
    let value = Bytes::from(vec![7; VALUE_BYTES]);
    let fresh = |number: usize| Bytes::from(format!("new{number:06}"));
    steps.extend(
        (0..20).map(|number| {
            LogOperation::Put(Put { key: fresh(number), value: value.clone(), ..Put::default() })
        }),
    );
    let mut dumps = vec![dump(life.model.store())];
    for step in steps {
        life.insist(&step);
        dumps.push(dump(life.model.store()));
        operations.push(step);
        let taken = life.disk.take_images();
        images.extend(taken.into_iter().map(|image| (operations.len(), image)));
        life.disk.record_images();
    }
    let stride = if deep { 1 } else { 41 };
    let mut cuts = 0;
    for (at, (acknowledged, image)) in images.iter().enumerate().step_by(stride) {
        for policy in [CrashPolicy::DropAll, CrashPolicy::KeepAll, CrashPolicy::Random(at as u64)] {
            let story = format!("image {at} of {}, {acknowledged} acknowledged, {policy:?}", images.len());
            let disk = image.crash(&policy);
            let mut db = SimulatedDb::open(&disk, &life.options, 5)
                .unwrap_or_else(|error| panic!("{story}: does not open: {error}"));
            let held = (db.store().applied().0 - filled) as usize;
            // Images of the round of an operation were taken before its answer.
            assert!(held + 1 >= *acknowledged && held <= operations.len(), "{story}: {held} are there");
            assert_same(&dump(db.store()), &dumps[held], &story);
            let everything = KeyRange { key: Bytes::from_static(b"key"), end: Bytes::from_static(b"kez") };
            let head = db.store().revision() + 1;
            for operation in [
                LogOperation::DeleteRange(DeleteRange { range: everything, prev_kv: false }),
                LogOperation::Compact(head),
            ] {
                let is_taken = write_in_time(&mut db, &operation);
                assert!(is_taken, "{story}: {operation:?} is refused: {:?}", db.checkpoint_stats());
            }
            let put = LogOperation::Put(Put { key: fresh(1_000), value: value.clone(), ..Put::default() });
            let is_taken = write_in_time(&mut db, &put);
            assert!(is_taken, "{story}: no room comes back: {:?} {:?}", db.checkpoint_stats(), disk.files());
            db.verify().unwrap_or_else(|error| panic!("{story}: {error}"));
            cuts += 1;
        }
    }
    println!("{cuts} power cuts");
    assert!(cuts > 100, "{cuts}");
}

/// Sizes of a reserve that follows the data: 2 MiB to 16 MiB.
fn sizes_by_data() -> Options {
    let mut options = sizes().memtable_bytes(1 << 20);
    options.checkpoint.wal_bytes_max = 2 << 20;
    options.checkpoint.shelf.page_bytes = 4096;
    options.checkpoint.shelf.segment_bytes = 4 << 20;
    options.checkpoint.reserve = Some(ReserveSize::ByData);
    options
}

fn settle(life: &mut Life) {
    for _ in 0..20 {
        rest(life.db());
    }
}

fn size_of(reserve: &ReserveStats) -> u64 {
    assert_eq!(reserve.held_bytes, reserve.wanted_bytes, "there is room: {reserve:?}");
    reserve.held_bytes
}

/// Little data has a small reserve, a full memtable a larger one, and what was deleted gives it back. A power cut in between leaves one that a start makes
/// right.
#[test]
fn the_reserve_is_as_large_as_the_data_asks_for() {
    let mut life = Life::new(4, sizes_by_data());
    life.disk.set_capacity(Some(512 << 20));
    settle(&mut life);
    life.put().expect("there is room");
    settle(&mut life);
    assert_eq!(size_of(&life.reserve()), 2 << 20);

    life.disk.record_images();
    while life.live_count() < 3_000 {
        life.put().expect("there is room");
    }
    let images = life.disk.take_images();
    settle(&mut life);
    assert_eq!(size_of(&life.reserve()), 8 << 20, "eight times the memtable");
    life.reopen(Reopen::Killed);
    settle(&mut life);
    assert_eq!(size_of(&life.reserve()), 8 << 20);

    let mut sizes_seen = std::collections::BTreeSet::new();
    for (at, image) in images.iter().enumerate().step_by(images.len() / 40) {
        let disk = image.crash(&CrashPolicy::Random(at as u64));
        disk.set_capacity(Some(512 << 20));
        let mut db = SimulatedDb::open(&disk, &life.options, 9).expect("it opens");
        for _ in 0..10 {
            rest(&mut db);
        }
        sizes_seen.insert(size_of(&db.checkpoint_stats().reserve));
        db.verify().expect("it is whole");
    }
    println!("{sizes_seen:?} behind {} images", images.len());
    assert!(sizes_seen.len() > 1, "{sizes_seen:?}");

    life.check("with all of it");
    let everything = KeyRange { key: Bytes::from_static(b"key"), end: Bytes::from_static(b"kez") };
    life.insist(&LogOperation::DeleteRange(DeleteRange { range: everything, prev_kv: false }));
    life.first = life.next;
    let head = life.model.store().revision();
    life.insist(&LogOperation::Compact(head));
    // Behind several runs that need much less.
    for _ in 0..10 {
        for _ in 0..20 {
            life.put().expect("there is room");
        }
        settle(&mut life);
    }
    assert_eq!(size_of(&life.reserve()), 2 << 20, "next to nothing is left");
    life.check("with next to nothing");
}

/// Where a reserve would take a good part of what is left, the database does without and says so; it has one as soon as there is room.
#[test]
fn a_disk_without_room_for_a_reserve_is_written_to_without_one() {
    let mut life = Life::new(5, sizes_by_data());
    let taken = life.disk.allocated_bytes();
    life.disk.set_capacity(Some(taken + (6 << 20)));
    for _ in 0..100 {
        life.put().expect("there is room for this");
    }
    settle(&mut life);
    let reserve = life.reserve();
    assert!(reserve.held_bytes == 0 && reserve.wanted_bytes > 0 && reserve.short.is_none(), "{reserve:?}");
    life.reopen(Reopen::Killed);
    life.put().expect("there is room for this");

    life.disk.set_capacity(Some(512 << 20));
    for _ in 0..40 {
        settle(&mut life);
    }
    assert!(size_of(&life.reserve()) > 0);

    // A larger one is wanted, and there is no room for that: nobody is refused for it.
    let taken = life.disk.allocated_bytes();
    life.disk.set_capacity(Some(taken + (12 << 20)));
    for _ in 0..2_000 {
        life.put().expect("there is room for this");
    }
    let reserve = life.reserve();
    assert!(reserve.held_bytes < reserve.wanted_bytes && reserve.short.is_none(), "{reserve:?}");
    life.check("with a small one");
}
