//! Old versions of keys that were changed often: found over stations, in a number of reads that is logarithmic in the number of
//! versions, and found right whatever stations say.
use std::collections::{BTreeMap, BTreeSet};
use sternpost_engine::Bytes;
use sternpost_engine::base::rng::Rng;
use sternpost_engine::checkpoint::simulated::SimulatedCheckpoints;
use sternpost_engine::checkpoint::{CheckpointOptions, PlantedBug};
use sternpost_engine::disk_state::ShelfOptions;
use sternpost_engine::io::sim_disk::SimDisk;
use sternpost_engine::mvcc::{AnyLease, DeleteRange, KeyRange, Put, Range, StoreOptions, StoreWriter};

/// A store over a simulated disk, and what every key was at every revision.
struct World {
    disk: SimDisk,
    options: CheckpointOptions,
    memtable_bytes: usize,
    writer: StoreWriter,
    checkpoints: SimulatedCheckpoints,
    /// By key: main revision, and the value then; none if it was deleted.
    history: BTreeMap<String, Vec<(i64, Option<u64>)>>,
    changes: u64,
}

fn options() -> CheckpointOptions {
    let shelf = ShelfOptions {
        cache_bytes: 8 << 20,
        page_bytes: 4096,
        segment_bytes: 1 << 20,
        ..ShelfOptions::default()
    };
    CheckpointOptions { shelf, ..CheckpointOptions::default() }
}

impl World {
    fn new(options: CheckpointOptions, memtable_bytes: usize) -> Self {
        let disk = SimDisk::new(1);
        let (writer, checkpoints) = Self::open(&disk, &options, memtable_bytes);
        let history = BTreeMap::new();
        Self { disk, options, memtable_bytes, writer, checkpoints, history, changes: 0 }
    }

    fn open(
        disk: &SimDisk,
        options: &CheckpointOptions,
        memtable_bytes: usize,
    ) -> (StoreWriter, SimulatedCheckpoints) {
        let (_, mut writer) = StoreWriter::new(StoreOptions { memtable_bytes });
        let checkpoints = SimulatedCheckpoints::open(disk, &mut writer, options).expect("it opens");
        (writer, checkpoints)
    }

    fn note(&mut self, key: &str, value: Option<u64>) {
        let revision = self.writer.store().revision();
        self.history.entry(key.to_string()).or_default().push((revision, value));
        self.after();
    }

    fn after(&mut self) {
        self.checkpoints.after_operation(&mut self.writer);
        self.checkpoints.make(&mut self.writer, false).expect("no fault is planned");
    }

    fn put(&mut self, key: &str) {
        self.changes += 1;
        // Some values are in the cell, others in the record alone.
        let value = format!("{:0width$}", self.changes, width = [20, 100][self.changes as usize % 2]);
        let put = Put { key: key.to_string().into(), value: value.into(), ..Put::default() };
        self.writer.put(&put, &AnyLease).expect("a put");
        self.note(key, Some(self.changes));
    }

    fn delete(&mut self, key: &str) {
        let range = KeyRange { key: key.to_string().into(), end: Bytes::new() };
        let deleted = self.writer.delete_range(&DeleteRange { range, prev_kv: false }).expect("a delete");
        if deleted.deleted > 0 {
            self.note(key, None);
        }
    }

    fn compact(&mut self, revision: i64) {
        self.writer.compact(revision).expect("it is a revision");
        self.after();
    }

    fn checkpoint(&mut self) {
        self.checkpoints.make(&mut self.writer, true).expect("no fault is planned");
    }

    fn reopen(&mut self) {
        self.checkpoint();
        (self.writer, self.checkpoints) = Self::open(&self.disk, &self.options, self.memtable_bytes);
    }

    /// What the history says of a key at a revision: main revision, value.
    fn expected(&self, key: &str, revision: i64) -> Option<(i64, u64)> {
        let history = self.history.get(key)?;
        let below = history.partition_point(|(main, _)| *main <= revision);
        let (main, value) = history[below.checked_sub(1)?];
        value.map(|value| (main, value))
    }

    /// What the store says.
    fn found(&self, key: &str, revision: i64) -> Result<Option<(i64, u64)>, String> {
        let range = KeyRange { key: key.to_string().into(), end: Bytes::new() };
        let outcome = self.writer.store().range(&Range { range, revision, ..Range::default() });
        let kvs = outcome.map_err(|error| error.to_string())?.kvs;
        Ok(kvs.first().map(|kv| {
            assert_eq!(kv.key, key);
            (kv.mod_revision, std::str::from_utf8(&kv.value).expect("digits").parse().expect("digits"))
        }))
    }

    fn check(&self, key: &str, revision: i64) {
        let (found, expected) = (self.found(key, revision), self.expected(key, revision));
        assert_eq!(found, Ok(expected), "{key} at {revision}");
    }

    /// All keys at one revision, by one range.
    fn check_all(&self, revision: i64) {
        let range = KeyRange { key: Bytes::from_static(b"\0"), end: Bytes::from_static(b"\0") };
        let outcome = self.writer.store().range(&Range { range, revision, ..Range::default() });
        let found: Vec<_> =
            outcome.expect("it is whole").kvs.into_iter().map(|kv| (kv.key, kv.mod_revision)).collect();
        let expected = self.history.keys().filter_map(|key| {
            let (main, _) = self.expected(key, revision)?;
            Some((Bytes::from(key.clone()), main))
        });
        assert_eq!(found, expected.collect::<Vec<_>>(), "at {revision}");
    }

    /// Records read by `check`.
    fn reads_of(&self, key: &str, revision: i64) -> u64 {
        let before = self.checkpoints.stats().versions_read;
        self.check(key, revision);
        self.checkpoints.stats().versions_read - before
    }

    fn head(&self) -> i64 {
        self.writer.store().revision()
    }
}

fn super_version(disk: &SimDisk) -> u32 {
    let bytes = disk.read_file("super").expect("a superblock");
    u32::from_le_bytes([bytes[8], bytes[9], bytes[10], bytes[11]])
}

/// A get of a key with a million versions at an old revision read a million records, one after the other.
#[test]
fn an_old_version_is_a_logarithmic_number_of_reads_away() {
    const VERSIONS: i64 = 100_000;
    let mut world = World::new(options(), 512 << 10);
    let mut rng = Rng::new(1);
    for number in 0..VERSIONS {
        world.put("often");
        if number % 1_000 == 0 {
            world.put(&format!("seldom {}", rng.below(20)));
        }
        // Runs of one version are the hardest for a writer who knows only what it writes.
        if number > VERSIONS - 400 {
            world.checkpoint();
        }
    }
    world.checkpoint();
    assert!(world.checkpoints.stats().checkpoints_count > 420, "{:?}", world.checkpoints.stats());
    let log2 = (VERSIONS as f64).log2();
    let mut reads_max = 0;
    for revision in (2..=world.head()).step_by(37).chain(world.head() - 700..=world.head()) {
        reads_max = reads_max.max(world.reads_of("often", revision));
    }
    println!("{reads_max} reads at most");
    assert!(reads_max as f64 <= 2.0 * log2, "{reads_max} reads, log2 of the versions is {log2}");
    assert!(reads_max >= 16, "{reads_max}: some were far back");
    world.checkpoints.verify().expect("it is whole");
    assert_eq!(super_version(&world.disk), 5);
}

fn count(planted: Option<PlantedBug>) -> u64 {
    let mut world = World::new(CheckpointOptions { planted, ..options() }, 1 << 20);
    for number in 0..4_000 {
        world.put("often");
        world.put("also");
        if number % 100 == 0 {
            world.checkpoint();
        }
    }
    world.checkpoint();
    let bug_shows = planted == Some(PlantedBug::StationElsewhere);
    assert_eq!(world.checkpoints.verify().is_err_and(|error| error.to_string().contains("J1")), bug_shows);
    (2..=world.head()).step_by(11).map(|revision| world.reads_of("often", revision)).max().unwrap_or(0)
}

/// The check above would see it if stations were forgotten; and where they are wrong, a search is slow, and right.
#[test]
fn stations_that_are_wrong_or_forgotten_cost_reads_and_never_an_answer() {
    let right = count(None);
    assert!(right <= 26, "{right}");
    let forgotten = count(Some(PlantedBug::StationsForgotten));
    assert!(forgotten > 100, "{forgotten}");
    let elsewhere = count(Some(PlantedBug::StationElsewhere));
    assert!(elsewhere > 50, "{elsewhere}");
}

/// Keys that change often and seldom, are deleted and made anew, compacted and cleaned in between, with other sizes each time: every key
/// is at every retained revision what it was.
#[test]
fn every_retained_version_is_found_whatever_came_between() {
    let mut named = 0;
    for seed in 1..=8 {
        let mut rng = Rng::new(seed);
        let mut options = options();
        options.shelf.cache_bytes = [0, 64 << 10, 8 << 20][rng.below(3) as usize];
        options.shelf.page_bytes = [512, 4096][rng.below(2) as usize];
        options.shelf.segment_bytes = [32 << 10, 256 << 10][rng.below(2) as usize];
        options.pending_percent_max = [0, 25, 1_000][rng.below(3) as usize];
        options.sweep_changes_max = [50, 1 << 18][rng.below(2) as usize];
        let mut world = World::new(options, [4 << 10, 32 << 10, 128 << 10][rng.below(3) as usize]);
        let mut compacted = 1;
        for step in 0..6_000 {
            let key = format!("key {}", rng.below(4) * rng.below(4));
            match rng.below(40) {
                0 => world.delete(&key),
                1 => {
                    // Lives of one version.
                    for _ in 0..5 {
                        world.put("short");
                        world.delete("short");
                    }
                }
                2 if step % 10 == 0 => world.checkpoint(),
                3 if step % 8 == 0 => world.reopen(),
                _ => world.put(&key),
            }
            if step % 1_500 == 1_400 {
                let revision = world.head() - 800 - rng.below(3_000) as i64;
                if revision > compacted {
                    compacted = revision;
                    world.compact(compacted);
                }
            }
        }
        world.checkpoint();
        world.checkpoints.verify().unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        let keys: Vec<String> = world.history.keys().cloned().collect();
        for revision in (compacted..=world.head()).step_by(5).chain([compacted, compacted + 1, world.head()])
        {
            world.check(&keys[rng.below(keys.len() as u64) as usize], revision);
            if revision % 50 == 0 {
                world.check_all(revision);
            }
        }
        let changes: BTreeSet<i64> = world.history["key 0"].iter().map(|(main, _)| *main).collect();
        for &revision in changes.range(compacted..) {
            world.check("key 0", revision);
            world.check("key 0", revision - i64::from(revision > compacted));
        }
        named += world.reads_of("key 0", compacted);
        assert!(world.reads_of("key 0", compacted) <= 60, "seed {seed}");
        assert!(world.reads_of("short", compacted) <= 60, "seed {seed}");
    }
    assert!(named > 0);
}

/// A record that is damaged is an error for those who need it or come over it, and for nobody else.
#[test]
fn a_damaged_record_on_the_way_concerns_those_who_come_over_it() {
    let mut world = World::new(options(), 64 << 10);
    for _ in 0..2_000 {
        world.put("often");
        world.put("other");
    }
    world.reopen();
    let head = world.head();
    // Record 16 * 16 of "often" is a station of a high level, the 100th is none. A key and its number stand in the record.
    let damaged: Vec<i64> = [256, 100].map(|version| world.history["often"][version - 1].0).to_vec();
    for main in &damaged {
        let value = world.expected("often", *main).expect("a value").1;
        let width = [20, 100][value as usize % 2];
        let text = format!("often{value:0width$}");
        let mut hits = 0;
        for file in world.disk.files() {
            let Some(content) =
                world.disk.read_file(&file).filter(|_| file.extension().is_some_and(|it| it == "r"))
            else {
                continue;
            };
            if let Some(at) = content.windows(text.len()).position(|window| window == text.as_bytes()) {
                assert!(world.disk.flip_bit(&file, at as u64 + 10, 3));
                hits += 1;
            }
        }
        assert_eq!(hits, 1, "{text}");
    }
    world.checkpoints.verify().expect_err("it is damaged");
    let mut errors = 0;
    for revision in 2..=head {
        match world.found("often", revision) {
            Ok(found) => assert_eq!(found, world.expected("often", revision), "at {revision}"),
            Err(error) => {
                assert!(error.contains("seg/"), "{error}");
                errors += 1;
            }
        }
        world.check("other", revision);
    }
    // Below the station at 256: what only it leads to. Version by version from there.
    assert!((2..=256 * 2 + 2).contains(&errors), "{errors} revisions of {head}");
}

/// As long as no key has stations, releases that do not know them open the directory.
#[test]
fn a_directory_becomes_one_with_stations_when_it_has_some() {
    let mut world = World::new(CheckpointOptions { pending_percent_max: 0, ..options() }, 64 << 10);
    for number in 0..60 {
        world.put(&format!("key {}", number % 5));
    }
    world.delete("key 0");
    world.checkpoint();
    assert_eq!(super_version(&world.disk), 2);
    for _ in 0..4 {
        world.put("key 1");
    }
    world.checkpoint();
    assert_eq!(super_version(&world.disk), 5, "version 16 of a key");
    world.compact(world.head());
    world.reopen();
    world.put("key 2");
    world.checkpoint();
    assert_eq!(super_version(&world.disk), 5, "and stays one");
    world.checkpoints.verify().expect("it is whole");
    let mut world = World::new(CheckpointOptions { pending_percent_max: 0, ..options() }, 64 << 10);
    world.put("again");
    world.delete("again");
    world.put("again");
    world.checkpoint();
    assert_eq!(super_version(&world.disk), 5, "a key that was made anew");
}
