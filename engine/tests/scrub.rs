//! The scrubber finds what nobody has read, behind the cache, and forgets what is whole again.
mod db_support;

use db_support::*;
use std::time::{Duration, Instant};
use sternpost_engine::base::rng::Rng;
use sternpost_engine::db::SimulatedDb;
use sternpost_engine::io::fault_plan::{Effect, Fault, FaultPlan, OperationKind};
use sternpost_engine::io::sim_disk::SimDisk;
use sternpost_engine::mvcc::encoding::LogOperation;
use sternpost_engine::mvcc::{Put, Range};
use sternpost_engine::{Bytes, Db, DurabilityLevel, Error, Options};

const BLOCK: usize = 4096;

fn small() -> Options {
    let mut options = Options::new().memtable_bytes(24 << 10).cache_bytes(8 << 20);
    options.log.segment_bytes = Some(64 << 10);
    options.checkpoint.shelf.page_bytes = 512;
    options.checkpoint.shelf.segment_bytes = 64 << 10;
    options.checkpoint.pending_percent_max = 200;
    options
}

fn key_of(number: u64) -> Bytes {
    Bytes::from(format!("key/{number:05}"))
}

fn whole() -> SimDisk {
    let disk = SimDisk::new(4);
    let mut db = SimulatedDb::open(&disk, &small(), 1).expect("a new disk opens");
    let mut rng = Rng::new(3);
    for number in 0..400 {
        let mut value = vec![0; 100 + rng.below(300) as usize];
        rng.fill(&mut value);
        let put = Put { key: key_of(number % 110), value: value.into(), ..Put::default() };
        write(&mut db, &LogOperation::Put(put)).expect("a put");
    }
    write(&mut db, &LogOperation::SystemPut("a".into(), "b".into())).expect("a system record");
    assert!(db.checkpoint_stats().checkpoints_count > 4);
    db.close().expect("a close");
    disk
}

fn get(db: &SimulatedDb, key: Bytes) -> Result<(), Error> {
    db.store().range(&Range { range: one(key), ..Range::default() })?;
    Ok(())
}

#[test]
fn damage_behind_the_cache_is_found_listed_and_forgotten_when_it_is_gone() {
    let whole = whole();
    let (mut found, mut missed) = (0, Vec::new());
    for path in whole.files().into_iter().filter(|path| path.starts_with("seg")) {
        let name = path.display().to_string();
        let bytes = whole.read_file(&path).expect("a file");
        for block in 0..bytes.len() / BLOCK {
            let disk = whole.duplicate(1);
            let db = SimulatedDb::open(&disk, &small(), 7).expect("it is whole");
            dump(db.store());
            let clean = db.scrub();
            assert!(clean.findings == 0 && clean.bytes > 0 && clean.passes == 1, "{clean:?}");
            let offset = (block * BLOCK) as u64;
            assert!(disk.flip_bit(&name, offset + 77, 3));
            let scrubbed = db.scrub();
            let units = db.store().quarantine().units;
            if (scrubbed.findings > 0) != db.verify().is_err() {
                missed.push(format!("block {block} of {name}: {scrubbed:?}"));
            }
            if scrubbed.findings > 0 {
                found += 1;
                assert!(units.iter().any(|unit| unit.file == name), "{name}: {units:?}");
            }
            assert!(disk.flip_bit(&name, offset + 77, 3));
            assert_eq!(db.scrub().findings, 0, "block {block} of {name} is whole again");
            assert_eq!(db.store().quarantine().units, [], "block {block} of {name}");
        }
    }
    assert!(missed.is_empty(), "{missed:#?}");
    assert!(found > 20, "{found}");
}

#[test]
fn every_damaged_record_of_a_segment_is_listed() {
    let disk = whole();
    let db = SimulatedDb::open(&disk, &small(), 7).expect("it is whole");
    let mut names = disk.files().into_iter().map(|path| path.display().to_string());
    let name = names.rfind(|name| name.ends_with(".r")).expect("a segment");
    let bytes = disk.read_file(&name).expect("a file").len();
    assert!(bytes > 6 * BLOCK);
    for block in [1, 3] {
        assert!(disk.damage(&name, (block * BLOCK) as u64, &[0x11; BLOCK]));
    }
    let scrubbed = db.scrub();
    let offsets: Vec<_> =
        db.store().quarantine().units.iter().map(|unit| unit.offset / BLOCK as u64).collect();
    assert!(
        offsets.contains(&1) && offsets.contains(&3) && scrubbed.findings > 4,
        "{offsets:?} {scrubbed:?}"
    );
}

/// What the device did not give is not asked for again by readers; a scrub asks, and then they are served.
#[test]
fn a_device_that_has_recovered_is_found_out_by_a_scrub() {
    let disk = whole();
    let mut options = small();
    options.checkpoint.shelf.cache_bytes = 0;
    let db = SimulatedDb::open(&disk, &options, 7).expect("it is whole");
    disk.add_fault(Fault::nth(OperationKind::Read, 0, Effect::Fail).on(".r").sticky());
    let failing = (0..110).map(key_of).find(|key| get(&db, key.clone()).is_err()).expect("a value on disk");
    disk.set_plan(FaultPlan::default());
    assert!(matches!(get(&db, failing.clone()), Err(Error::Io(_))), "it is not asked for again");
    assert_eq!(db.scrub().findings, 0);
    get(&db, failing).expect("the device gives it now");
    assert_eq!(db.store().stats().quarantined_count, 0);
}

#[test]
fn the_thread_ends_its_pass_and_what_it_finds_shows_in_the_stats() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut options = small().calibrate(false).scrub_bytes_per_second(1 << 40);
    options.durability = DurabilityLevel::Manual;
    let db = Db::open(directory.path(), options.clone()).expect("a new database");
    for number in 0..2000_u64 {
        db.put(key_of(number % 300), [number as u8; 200]).expect("a put");
    }
    db.close().expect("a close");
    let segment = std::fs::read_dir(directory.path().join("seg")).expect("segments");
    let mut names: Vec<_> = segment.map(|entry| entry.expect("an entry").path()).collect();
    names.retain(|path| path.extension().is_some_and(|extension| extension == "r"));
    names.sort();
    let path = names.last().expect("a segment");
    let mut bytes = std::fs::read(path).expect("a file");
    bytes[BLOCK + 100] ^= 1;
    std::fs::write(path, bytes).expect("a write");
    let db = Db::open(directory.path(), options).expect("it opens");
    #[expect(clippy::disallowed_methods, reason = "a test that waits for a state gives up some time")]
    let start = Instant::now();
    // The first pass may begin behind the damage.
    let scrubbed = |db: &Db| db.stats().scrub.is_some_and(|scrub| scrub.passes > 0);
    while !scrubbed(&db) {
        assert!(start.elapsed() < Duration::from_secs(120), "{:?}", db.stats());
        std::thread::yield_now();
    }
    assert!(db.scrub().findings > 0);
    let stats = db.stats();
    assert!(stats.scrub.is_some_and(|scrub| scrub.bytes > 0), "{stats:?}");
    let name = format!("seg/{}", path.file_name().expect("a name").display());
    assert!(stats.quarantine.units.iter().any(|unit| unit.file == name), "{stats:?}");
    db.close().expect("a close");
}
