//! Backups of real directories: beside writers, linked and copied, incremental, verified and restored.
use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use sternpost_engine::backup::{Backup, BackupOptions, Location, create_offline, restore};
use sternpost_engine::base::rng::Rng;
use sternpost_engine::inspect::Inspection;
use sternpost_engine::{Db, Error, Options};

/// Sizes with which a few thousand writes make checkpoints, cleaning and a log that is used again.
fn options() -> Options {
    let mut options = Options::new().memtable_bytes(256 << 10).calibrate(false);
    options.log.segment_bytes = Some(256 << 10);
    options.checkpoint.wal_bytes_max = 512 << 10;
    options.checkpoint.shelf.segment_bytes = 256 << 10;
    options
}

/// Keys and values at a revision.
fn content(db: &Db, revision: i64) -> BTreeMap<Vec<u8>, (i64, Vec<u8>)> {
    let snapshot = db.at(revision).expect("a revision that is there");
    let pairs = snapshot.range::<&[u8]>(..).map(|kv| kv.expect("a key"));
    pairs.map(|kv| (kv.key.to_vec(), (kv.mod_revision, kv.value.to_vec()))).collect()
}

fn put_some(db: &Db, rng: &mut Rng, count: usize) {
    for _ in 0..count {
        let value = vec![rng.next_u64() as u8; 200 + rng.below(2_000) as usize];
        // Nobody waits: checkpoints come behind.
        drop(db.put_async(format!("key{:04}", rng.below(500)), value));
    }
    db.sync().expect("a sync");
}

fn open(directory: &Path) -> Db {
    Db::open(directory, options()).unwrap_or_else(|error| panic!("{}: {error}", directory.display()))
}

fn backup(directory: &Path) -> Backup {
    Backup::open(directory, &[]).unwrap_or_else(|error| panic!("{}: {error}", directory.display()))
}

#[test]
fn a_backup_beside_writers_opens_at_its_revision_and_the_source_goes_on() {
    let root = tempfile::tempdir().expect("a directory");
    let source = open(&root.path().join("source"));
    put_some(&source, &mut Rng::new(1), 3_000);
    let (stop, written) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut rng = Rng::new(2);
            while !stop.load(Ordering::Acquire) {
                let key = format!("key{:04}", rng.below(500));
                source.put(key, vec![3; rng.below(3_000) as usize]).expect("a write");
                written.fetch_add(1, Ordering::AcqRel);
            }
        });
        for (number, links) in [true, false, true, false].into_iter().enumerate() {
            let to = root.path().join(format!("backup{number}"));
            let before = source.latest().revision();
            let writes = written.load(Ordering::Acquire);
            let options = BackupOptions { links, ..BackupOptions::default() };
            let report = source.backup_to(&to, &options, &mut |_| {}).expect("a backup");
            let revision = report.revision.expect("an open database knows it");
            assert!(revision >= before, "{revision} is backed up, {before} was answered");
            assert_eq!(report.bytes_linked > 0, links, "{report:?}");
            let expected = content(&source, revision);
            backup(&to).verify(&mut |_| {}).expect("it is whole");
            Inspection::verify(&to, &mut |_| {}).expect("all that it refers to is there");
            // Restored, and then opened as it is.
            let restored = root.path().join(format!("restored{number}"));
            restore(&backup(&to), &restored, &mut |_| {}).expect("a restore");
            for directory in [&restored, &to] {
                let copy = open(directory);
                assert_eq!(copy.latest().revision(), revision);
                assert!(content(&copy, revision) == expected, "another content");
                put_some(&copy, &mut Rng::new(3), 500);
                copy.close().expect("a close");
                Inspection::verify(directory, &mut |_| {}).expect("it goes on");
            }
            while written.load(Ordering::Acquire) < writes + 20 {
                std::thread::yield_now();
            }
        }
        stop.store(true, Ordering::Release);
    });
    let head = source.latest().revision();
    let expected = content(&source, head);
    source.close().expect("a close");
    Inspection::verify(root.path().join("source"), &mut |_| {}).expect("the source is whole");
    assert!(content(&open(&root.path().join("source")), head) == expected);
}

#[test]
fn linked_segments_are_the_same_files_and_nothing_else_is() {
    let root = tempfile::tempdir().expect("a directory");
    let (from, to) = (root.path().join("source"), root.path().join("backup"));
    let source = open(&from);
    put_some(&source, &mut Rng::new(1), 3_000);
    source.close().expect("a close");
    let report = create_offline(&from, &to, &BackupOptions::default(), &mut |_| {}).expect("a backup");
    assert!(report.bytes_linked > 0 && report.revision.is_none(), "{report:?}");
    let inode = |path: &Path| std::fs::metadata(path).map(|metadata| metadata.ino()).ok();
    for file in &backup(&to).manifest().files {
        let is_segment = file.path.starts_with("seg");
        let same = inode(&from.join(&file.path)) == inode(&to.join(&file.path));
        assert_eq!(same, is_segment, "{}", file.path.display());
    }
}

#[test]
fn a_directory_in_use_or_without_a_database_is_not_backed_up_offline_nor_over_another() {
    let root = tempfile::tempdir().expect("a directory");
    let (from, to) = (root.path().join("source"), root.path().join("backup"));
    let source = open(&from);
    put_some(&source, &mut Rng::new(1), 100);
    let offline = |from: &Path, to: &Path| create_offline(from, to, &BackupOptions::default(), &mut |_| {});
    let error = offline(&from, &to).expect_err("it is open");
    assert!(matches!(error, Error::Locked(_)), "{error}");
    source.close().expect("a close");
    std::fs::create_dir(root.path().join("empty")).expect("a directory");
    let error = offline(&root.path().join("empty"), &to).expect_err("there is no database").to_string();
    assert!(error.contains("there is no database in"), "{error}");
    assert!(std::fs::read_dir(root.path().join("empty")).expect("it is there").next().is_none());
    assert!(offline(&root.path().join("none"), &to).is_err());
    assert!(!root.path().join("none").exists() && !to.exists(), "nothing was made");
    let error = offline(&from, &from).expect_err("it is not empty").to_string();
    assert!(error.contains("is not empty"), "{error}");
    offline(&from, &to).expect("now it can be");
    let error = offline(&from, &to).expect_err("there is a backup").to_string();
    assert!(error.contains("is not empty"), "{error}");
    backup(&to).verify(&mut |_| {}).expect("the first one is whole");
    // What is no backup is named.
    let error = Backup::open(&from, &[]).err().expect("a data directory").to_string();
    assert!(error.contains("is no backup"), "{error}");
    open(&to).close().expect("a close");
    let error = Backup::open(&to, &[]).err().expect("it was used").to_string();
    assert!(error.contains("has been opened as a database since"), "{error}");
}

#[test]
fn each_incremental_backup_has_only_what_is_new_and_the_chain_restores_each_state() {
    let root = tempfile::tempdir().expect("a directory");
    let source = open(&root.path().join("source"));
    let mut rng = Rng::new(1);
    let mut states = Vec::new();
    for number in 0..4 {
        // Most keys are written once: their segments stay.
        for key in 0..300 {
            // Nothing of it compresses, so that whole segments of it come to be.
            let mut value = vec![0; 3_000];
            rng.fill(&mut value);
            drop(source.put_async(format!("new{number}-{key}"), value));
        }
        put_some(&source, &mut rng, 100);
        let to = root.path().join(format!("backup{number}"));
        let base = (number > 0).then(|| root.path().join(format!("backup{}", number - 1)));
        // The manifest alone is enough.
        let base = base.map(|base| if number == 2 { base.join("backup.manifest") } else { base });
        let options = BackupOptions { links: false, base, ..BackupOptions::default() };
        let report = source.backup_to(&to, &options, &mut |_| {}).expect("a backup");
        assert_eq!(report.bytes_in_base > 0, number > 0, "{report:?}");
        let revision = report.revision.expect("it is known");
        states.push((revision, content(&source, revision)));
        let manifest = backup(&to).manifest().clone();
        for file in &manifest.files {
            assert_eq!(
                to.join(&file.path).exists(),
                file.location == Location::Here,
                "{}",
                file.path.display()
            );
        }
    }
    source.close().expect("a close");
    // The chain is found where it was, and where it is said to be.
    let moved = root.path().join("moved");
    std::fs::rename(root.path().join("backup1"), &moved).expect("a rename");
    let last = root.path().join("backup3");
    let error = Backup::open(&last, &[]).err().expect("a base is away").to_string();
    assert!(error.contains("backup1, where it is not"), "{error}");
    for (number, (revision, expected)) in states.iter().enumerate() {
        let from = if number == 1 { moved.clone() } else { root.path().join(format!("backup{number}")) };
        let chain = Backup::open(&from, std::slice::from_ref(&moved)).expect("a chain");
        let verified = chain.verify(&mut |_| {}).expect("it is whole");
        assert_eq!(verified.backups_count, number as u64 + 1);
        let to = root.path().join(format!("restored{number}"));
        restore(&chain, &to, &mut |_| {}).expect("a restore");
        let restored = open(&to);
        assert_eq!(restored.latest().revision(), *revision);
        assert!(content(&restored, *revision) == *expected, "state {number}");
    }
    // Damage in a base is damage of what builds on it, and named.
    let first = backup(&root.path().join("backup0")).manifest().clone();
    let chain = Backup::open(&last, std::slice::from_ref(&moved)).expect("a chain");
    let shared = chain.manifest().files.iter().find(|file| {
        first.file(&file.path) == Some(file) || {
            file.location == Location::Base && root.path().join("backup0").join(&file.path).exists()
        }
    });
    let damaged = root.path().join("backup0").join(&shared.expect("the oldest has some of it").path);
    let mut bytes = std::fs::read(&damaged).expect("a file");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&damaged, bytes).expect("a write");
    let error = chain.verify(&mut |_| {}).expect_err("it is damaged").to_string();
    assert!(error.contains(&damaged.display().to_string()), "{error}");
    let to = root.path().join("not-restored");
    restore(&chain, &to, &mut |_| {}).expect_err("it is damaged");
    assert!(!to.exists(), "nothing is written");
}

/// A restored directory goes on with the numbers of its backup. Its segments have the names of others of the original, and
/// other bytes: a backup that took the name for the content would restore a mixture of both.
#[test]
fn a_segment_with_a_known_name_and_other_bytes_is_not_taken_for_the_known_one() {
    let root = tempfile::tempdir().expect("a directory");
    let (one, two) = (root.path().join("one"), root.path().join("two"));
    // One checkpoint each time, cut at the same entry, of the same size.
    let fill = |directory: &Path, seed| {
        let (db, mut rng) = (open(directory), Rng::new(seed));
        for number in 0..120 {
            let mut value = vec![0; 3_000];
            rng.fill(&mut value);
            drop(db.put_async(format!("key{number}"), value));
        }
        db.sync().expect("a sync");
        while db.stats().checkpoints.is_none_or(|stats| stats.checkpoints_count == 0) {
            std::thread::yield_now();
        }
        db.close().expect("a close");
    };
    fill(&one, 1);
    let offline = |from: &Path, to: &str, base: Option<&str>| {
        let base = base.map(|base| root.path().join(base));
        let options = BackupOptions { base, links: false, ..BackupOptions::default() };
        create_offline(from, root.path().join(to), &options, &mut |_| {}).expect("a backup")
    };
    offline(&one, "common", None);
    restore(&backup(&root.path().join("common")), &two, &mut |_| {}).expect("a restore");
    fill(&one, 2);
    fill(&two, 3);
    offline(&one, "of-one", None);
    offline(&two, "of-two", Some("of-one"));
    let (of_one, of_two) = (backup(&root.path().join("of-one")), backup(&root.path().join("of-two")));
    let same_name = |file: &&sternpost_engine::backup::FileEntry| {
        file.path.starts_with("seg")
            && of_one.manifest().file(&file.path).is_some_and(|one| one.bytes() == file.bytes())
    };
    let twins =
        of_two.manifest().files.iter().filter(same_name).filter(|file| file.location == Location::Here);
    assert!(twins.count() > 0, "no name has two contents of one length: the test tests nothing");
    restore(&of_two, root.path().join("three"), &mut |_| {}).expect("a restore");
    let (two, three) = (open(&two), open(&root.path().join("three")));
    let revision = two.latest().revision();
    assert_eq!(three.latest().revision(), revision);
    assert!(content(&two, revision) == content(&three, revision), "a mixture");
    drop(three);
    Inspection::verify(root.path().join("three"), &mut |_| {}).expect("all of it verifies");
}
