//! Backups under power cuts, on a device that fails, and beside writers.
//!
//! A seed gives a list of operations. Half of them are written, then a backup is made into another directory of the same
//! simulated disk, and between its pieces the other half is written, with checkpoints, cleaning and a log that is used again.
//! From every step of that come the disks that a power cut may leave. On each of them the backup is whole (B1: it verifies,
//! opens, and is exactly the state that the operations up to some moment behind the call give) or says that it is not finished; and the source
//! is what it would be without a backup (B2). The same for restores.
//!
//! `STERNPOST_SEEDS=100` runs so many seeds, and every step of them.
mod db_support;

use db_support::*;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use sternpost_engine::backup::{
    Backup, BackupOptions, BackupReport, MANIFEST_FILE, PlantedBug, restore_simulated,
};
use sternpost_engine::base::rng::Rng;
use sternpost_engine::db::SimulatedDb;
use sternpost_engine::io::fault_plan::{Effect, Fault, OperationKind};
use sternpost_engine::io::sim_disk::{CrashPolicy, SimDisk};
use sternpost_engine::io::sim_subdirectory::SimSubdirectory;
use sternpost_engine::io::{Io, Operation, disk::run};
use sternpost_engine::mvcc::encoding::LogOperation;
use sternpost_engine::{DurabilityLevel, Error, Options};

const OPERATIONS_BEFORE: usize = 30;
const OPERATIONS_DURING: usize = 50;
const SEEDS_DEFAULT: u64 = 8;

fn options_of(seed: u64) -> Options {
    let mut options = options(seed);
    options.durability = match seed % 4 {
        0 | 1 => DurabilityLevel::Group,
        2 => DurabilityLevel::Manual,
        _ => DurabilityLevel::Interval(Duration::from_millis(2)),
    };
    options
}

/// A run with a backup in the middle, and what each prefix of its operations gives.
struct Run {
    seed: u64,
    options: Options,
    operations: Vec<LogOperation>,
    dumps: Vec<Dump>,
    disk: SimDisk,
    report: Result<BackupReport, Error>,
    /// Operations answered when the backup was asked for.
    answered: usize,
    /// Operations written while it was made.
    during: usize,
    /// Checkpoints made meanwhile, and segments of the log used again.
    checkpoints: u64,
    recycled: u64,
}

fn make_directory(disk: &SimDisk, name: &str) {
    let mut io = disk.handle();
    run(&mut io, Operation::CreateDirectory { path: name.into() }).expect("a directory");
    run(&mut io, Operation::SyncDirectory { path: PathBuf::new() }).expect("a sync");
}

impl Run {
    fn new(seed: u64, backup: &BackupOptions, prepare: impl FnOnce(&SimDisk)) -> Self {
        let operations = operations(&mut Rng::new(seed), OPERATIONS_BEFORE + OPERATIONS_DURING);
        let options = options_of(seed);
        let disk = SimDisk::new(seed);
        make_directory(&disk, "backup");
        let mut db = SimulatedDb::open(&disk, &options, seed).expect("a new disk opens");
        for operation in &operations[..OPERATIONS_BEFORE] {
            let answer = write(&mut db, operation);
            assert!(answer.as_ref().err().is_none_or(is_refusal), "seed {seed}: {answer:?}");
        }
        let (stats, log) = (db.checkpoint_stats(), db.wal_stats());
        prepare(&disk);
        let mut next = OPERATIONS_BEFORE;
        let mut rng = Rng::new(seed ^ 0xbac);
        let mut during = |db: &mut SimulatedDb, _| {
            // The first piece of the log is enough to hold it for long.
            for _ in 0..rng.below(12) {
                if next < operations.len() && !disk.is_stopped() {
                    let mut answer = db.write(&operations[next]);
                    next += 1;
                    let mut rounds = 0;
                    while poll_once(&mut answer).is_none() && !disk.is_stopped() && rounds < ROUNDS_MAX {
                        db.step(1_000);
                        rounds += 1;
                    }
                }
            }
        };
        let report = db.backup_to(&disk, "backup", backup, &mut during);
        let (checkpoints, recycled) =
            (db.checkpoint_stats().checkpoints_count, db.wal_stats().segments_recycled_count);
        // What was kept for the backup goes now.
        for _ in 0..4 {
            db.step(1_000);
        }
        drop(db);
        Self {
            seed,
            options,
            dumps: expected(&operations),
            operations,
            disk,
            report,
            answered: OPERATIONS_BEFORE,
            during: next - OPERATIONS_BEFORE,
            checkpoints: checkpoints - stats.checkpoints_count,
            recycled: recycled - log.segments_recycled_count,
        }
    }

    /// Opens a directory as a database, and finds out the state of how many operations it is.
    fn held(&self, disk: &SimDisk, goes_on: bool, story: &str) -> usize {
        let mut options = self.options.clone();
        options.durability = DurabilityLevel::Group;
        let mut db = SimulatedDb::open(disk, &options, self.seed ^ 0x5a5a)
            .unwrap_or_else(|error| panic!("{story}: does not open: {error}"));
        let held = db.store().applied().0 as usize;
        assert!(held < self.dumps.len(), "{story}: {held} operations");
        db.verify().unwrap_or_else(|error| panic!("{story}: does not verify: {error}"));
        assert_same(
            &dump(db.store()),
            &self.dumps[held],
            &format!("{story}: not the first {held} operations"),
        );
        // It goes on like any database, with the operations that it lacks.
        if !goes_on {
            return held;
        }
        for operation in &self.operations[held..] {
            let answer = write(&mut db, operation);
            assert!(answer.as_ref().err().is_none_or(is_refusal), "{story}: {answer:?}");
        }
        assert_same(&dump(db.store()), &self.dumps[self.operations.len()], &format!("{story}, gone on"));
        db.verify().unwrap_or_else(|error| panic!("{story}: does not verify afterwards: {error}"));
        held
    }

    /// The backup on this disk is whole or says that it is not; true if it is whole. The source is harmed in neither case.
    fn check(&self, disk: &SimDisk, goes_on: bool, story: &str) -> bool {
        let below = disk.below("backup", self.seed);
        let files = below.files();
        let is_whole = files.contains(&PathBuf::from(MANIFEST_FILE));
        if is_whole {
            let backup = Backup::on_simulated_disk(Arc::new(below.clone()))
                .unwrap_or_else(|error| panic!("{story}: B1: no manifest: {error}"));
            let verified = backup.verify(&mut |_| {}).unwrap_or_else(|error| panic!("{story}: B1: {error}"));
            let held = self.held(&below, goes_on, &format!("{story}, the backup"));
            assert!(held >= self.answered, "{story}: {} were answered, {held} are backed up", self.answered);
            assert_eq!(Some(self.revision_of(held)), verified.revision, "{story}: of {held} operations");
            let gone = Backup::on_simulated_disk(Arc::new(below));
            assert!(gone.is_err(), "{story}: a directory that was used is no backup");
        } else if !files.is_empty() {
            match SimulatedDb::open(&below, &self.options, 1) {
                Err(Error::Refused(what)) => {
                    assert!(what.contains("backup.part is there"), "{story}: {what}")
                }
                Err(error) => panic!("{story}: {error}"),
                Ok(_) => panic!("{story}: half a backup opens, with {files:?}"),
            }
        }
        self.held(disk, goes_on, &format!("{story}, the source"));
        is_whole
    }

    fn revision_of(&self, held: usize) -> i64 {
        let positions = &self.dumps[held][0].1;
        let head = positions.strip_prefix("head ").and_then(|rest| rest.split(',').next());
        head.and_then(|head| head.parse().ok()).expect("the first line has the revision")
    }
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|text| text.parse().ok())
}

/// By turns linked and copied.
fn backup_options(seed: u64) -> BackupOptions {
    BackupOptions { links: !seed.is_multiple_of(3), ..BackupOptions::default() }
}

/// Checks the disks that a cut may leave after every `stride`-th step of a backup.
fn check_seed(seed: u64, stride: usize, options: &BackupOptions) -> (Run, usize, usize) {
    let run = Run::new(seed, options, |disk| disk.record_images());
    let report = run.report.as_ref().unwrap_or_else(|error| panic!("seed {seed}: no fault: {error}"));
    assert_eq!(report.bytes, report.bytes_linked + report.bytes_copied, "seed {seed}");
    run.check(&run.disk.crash(&CrashPolicy::KeepAll), true, &format!("seed {seed}, at the end"));
    let (mut disks, mut whole) = (0, 0);
    let images = run.disk.take_images();
    let mut rng = Rng::new(seed);
    for (step, image) in images.iter().enumerate() {
        // The end of a backup is where everything happens that matters.
        let one_in = if step + 40 > images.len() { stride.div_ceil(20) } else { stride };
        if !rng.chance(1, one_in as u64) {
            continue;
        }
        for policy in [CrashPolicy::DropAll, CrashPolicy::KeepAll, CrashPolicy::Random(rng.next_u64())] {
            let story = format!("seed {seed}, step {step}, {policy:?}");
            whole += usize::from(run.check(&image.crash(&policy), rng.chance(1, 10), &story));
            disks += 1;
        }
    }
    (run, disks, whole)
}

#[test]
fn every_power_cut_leaves_a_whole_backup_or_one_that_says_it_is_not() {
    let asked = number("STERNPOST_SEEDS");
    let first = number("STERNPOST_SEED_FIRST").unwrap_or(0);
    let (mut disks, mut whole, mut during, mut checkpoints, mut recycled) = (0, 0, 0, 0, 0);
    let seeds = asked.unwrap_or(SEEDS_DEFAULT);
    for seed in first..first + seeds {
        let stride = if asked.is_some() { 1 } else { 60 };
        let (run, some, those) = check_seed(seed, stride, &backup_options(seed));
        (disks, whole) = (disks + some, whole + those);
        during += run.during;
        checkpoints += run.checkpoints;
        recycled += run.recycled;
        if asked.is_some() {
            eprintln!("seed {seed}: {disks} disks, {whole} with a whole backup");
        }
    }
    eprintln!(
        "{disks} disks, {whole} whole; {during} writes, {checkpoints} checkpoints, {recycled} segments of the log used again meanwhile"
    );
    // What many seeds reach together; one that is replayed need not.
    if seeds >= SEEDS_DEFAULT {
        assert!(whole > seeds as usize && disks > 5 * seeds as usize, "{disks}, {whole}");
        assert!(
            during as u64 >= 10 * seeds && checkpoints >= 2 * seeds && recycled > 0,
            "{during} {checkpoints} {recycled}"
        );
    }
}

/// The backups of a bug, until one is caught.
fn find(planted: PlantedBug) -> Option<String> {
    (0..40).find_map(|seed| {
        let options = BackupOptions { planted: Some(planted), ..backup_options(seed) };
        let life = catch_unwind(AssertUnwindSafe(|| check_seed(seed, 60, &options)));
        let panic = life.err()?;
        let words = panic.downcast_ref::<String>().cloned();
        words.or_else(|| panic.downcast_ref::<&str>().map(|it| it.to_string()))
    })
}

/// A check that has never failed proves nothing.
#[test]
fn each_planted_bug_is_found() {
    for bug in [
        PlantedBug::GiveBackNames,
        PlantedBug::GiveBackLog,
        PlantedBug::ManifestEarly,
        PlantedBug::SkipSync,
        PlantedBug::CopyPastEnd,
    ] {
        match find(bug) {
            Some(words) => println!("{bug:?} is found: {:.200}", words.replace('\n', " ")),
            None => panic!("{bug:?} is not found"),
        }
    }
}

#[test]
fn an_error_of_the_device_at_any_operation_leaves_no_whole_backup_and_the_source_as_it_was() {
    let mut failed = 0;
    for (kind, effects) in [
        (OperationKind::Open, &[Effect::Fail][..]),
        (OperationKind::Read, &[Effect::Fail]),
        (OperationKind::Write, &[Effect::Fail, Effect::NoSpace]),
        (OperationKind::Sync, &[Effect::Fail, Effect::SyncFailsLosing]),
        (OperationKind::SyncDirectory, &[Effect::Fail]),
        (OperationKind::Link, &[Effect::Fail, Effect::NoSpace]),
        (OperationKind::Rename, &[Effect::Fail]),
        (OperationKind::CreateDirectory, &[Effect::Fail]),
        (OperationKind::Close, &[Effect::Fail]),
        (OperationKind::List, &[Effect::Fail]),
    ] {
        for (&effect, seed) in effects.iter().zip([4, 6]) {
            for nth in (0..).step_by(4) {
                let fault = Fault { path_part: "backup".into(), ..Fault::nth(kind, nth, effect) };
                let run = Run::new(seed, &backup_options(seed), |disk| disk.add_fault(fault.clone()));
                let story = format!("{kind:?} {nth}, {effect:?}");
                let is_whole = run.check(&run.disk.crash(&CrashPolicy::KeepAll), false, &story);
                assert!(run.report.is_err() || is_whole, "{story}: {:?}", run.report);
                if run.report.is_ok() {
                    break;
                }
                failed += 1;
            }
        }
    }
    println!("{failed} backups failed");
    assert!(failed > 20, "{failed}");
}

#[test]
fn a_backup_to_another_file_system_is_copied_and_a_full_one_is_told() {
    let run = Run::new(1, &BackupOptions::default(), |disk| disk.set_links(false));
    let report = run.report.as_ref().expect("it is copied");
    assert_eq!((report.bytes_linked, report.bytes), (0, report.bytes_copied));
    assert!(run.check(&run.disk.crash(&CrashPolicy::DropAll), true, "copied"));
    let full = |disk: &SimDisk| {
        disk.set_links(false);
        disk.add_fault(Fault {
            count: u64::MAX,
            path_part: "backup/seg".into(),
            ..Fault::nth(OperationKind::Write, 1, Effect::NoSpace)
        });
    };
    let run = Run::new(1, &BackupOptions::default(), full);
    assert!(matches!(run.report, Err(Error::NoSpace(_))), "{:?}", run.report);
    assert!(!run.check(&run.disk.crash(&CrashPolicy::KeepAll), true, "full"));
}

#[test]
fn every_power_cut_of_a_restore_leaves_the_whole_directory_or_one_that_says_it_is_not() {
    let (mut disks, mut whole) = (0, 0);
    for seed in 0..4 {
        let run = Run::new(seed, &backup_options(seed), |_| {});
        run.report.as_ref().expect("no fault");
        let disk = run.disk.crash(&CrashPolicy::DropAll);
        make_directory(&disk, "restored");
        let backup = Backup::on_simulated_disk(Arc::new(SimSubdirectory::new(disk.handle(), "backup")));
        disk.record_images();
        let to = SimSubdirectory::new(disk.handle(), "restored");
        let restored = restore_simulated(&backup.expect("a backup"), to).expect("no fault");
        let images = disk.take_images();
        let mut rng = Rng::new(seed);
        for (step, image) in images.iter().enumerate() {
            for policy in [CrashPolicy::DropAll, CrashPolicy::KeepAll, CrashPolicy::Random(rng.next_u64())] {
                let story = format!("seed {seed}, step {step}, {policy:?}");
                let below = image.crash(&policy).below("restored", seed);
                if below.files().is_empty() {
                    continue;
                }
                disks += 1;
                match SimulatedDb::open(&below.duplicate(1), &run.options, 1) {
                    Ok(_) => {
                        let held = run.held(&below, rng.chance(1, 10), &story);
                        assert_eq!(Some(run.revision_of(held)), restored.revision, "{story}");
                        whole += 1;
                    }
                    Err(Error::Refused(what)) => {
                        assert!(what.contains("restore.part is there"), "{story}: {what}");
                    }
                    Err(error) => panic!("{story}: {error}"),
                }
            }
        }
        let last = images.last().expect("there are steps").crash(&CrashPolicy::DropAll);
        assert!(run.held(&last.below("restored", 1), true, "at the end") >= run.answered);
    }
    println!("{disks} disks, {whole} whole");
    assert!(whole >= 4 && disks > 100, "{disks} {whole}");
}

#[test]
fn damage_in_a_backup_is_named_and_nothing_is_restored() {
    let run = Run::new(1, &backup_options(1), |_| {});
    run.report.as_ref().expect("no fault");
    let disk = run.disk.crash(&CrashPolicy::DropAll);
    let mut rng = Rng::new(1);
    let below = disk.below("backup", 1);
    for path in below.files() {
        for _ in 0..6 {
            let bytes = below.read_file(&path).expect("it is there").len() as u64;
            let damaged = disk.below("backup", 2);
            let offset = rng.below(bytes);
            damaged.flip_bit(&path, offset, (rng.next_u64() % 8) as u8);
            let opened = Backup::on_simulated_disk(Arc::new(damaged));
            let error = opened.and_then(|backup| backup.verify(&mut |_| {})).expect_err("a bit is wrong");
            let Error::Corruption { file, offset: at, .. } = &error else { panic!("{error}") };
            assert_eq!(*file, path.display().to_string());
            assert!(*at <= offset && offset < at + (4 << 20), "{offset} is wrong, {error}");
        }
        if path.as_os_str() != MANIFEST_FILE {
            let lacking = disk.below("backup", 3);
            lacking.truncate_file(
                &path,
                lacking.read_file(&path).map_or(0, |content| content.len() as u64 - 4096),
            );
            let backup = Backup::on_simulated_disk(Arc::new(lacking.clone())).expect("the manifest is there");
            let error = backup.verify(&mut |_| {}).expect_err("a file is shorter").to_string();
            assert!(error.contains("it ends after"), "{error}");
            lacking.remove_file(&path);
            let backup = Backup::on_simulated_disk(Arc::new(lacking)).expect("the manifest is there");
            let error = backup.verify(&mut |_| {}).expect_err("a file is missing").to_string();
            assert!(error.contains(&path.display().to_string()), "{error}");
            make_directory(&disk, "restored");
            let to = SimSubdirectory::new(disk.handle(), "restored");
            restore_simulated(&backup, to).expect_err("a file is missing");
            assert!(disk.below("restored", 1).files().is_empty(), "nothing is written");
        }
    }
}
