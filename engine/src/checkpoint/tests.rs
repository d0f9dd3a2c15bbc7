//! A superblock that cannot be written takes nothing from either state; space comes back without writes; trees that contradict
//! each other are damage.
use super::simulated::SimulatedCheckpoints;
use super::{CheckpointOptions, PlantedBug};
use crate::io::fault_plan::{Effect, Fault, OperationKind};
use crate::io::sim_disk::{CrashPolicy, SimDisk};
use crate::mvcc::{AnyLease, DeleteRange, KeyRange, Put, StoreOptions, StoreWriter};
use bytes::Bytes;
use std::path::PathBuf;

fn put(writer: &mut StoreWriter, checkpoints: &mut SimulatedCheckpoints, number: u64) {
    let key = format!("key {}", number % 7).into();
    let put = Put { key, value: vec![number as u8; 300].into(), ..Put::default() };
    writer.put(&put, &AnyLease).expect("a put");
    checkpoints.after_operation(writer);
}

/// A value of 200 bytes that is like the others, as far as a dictionary is concerned.
fn object(number: u64) -> String {
    let id = number.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    format!(
        "{{\"kind\":\"Pod\",\"metadata\":{{\"name\":\"pod-{number:08}\",\"uid\":\"{id:016x}\",\"labels\":{{\"app\":\"web\"}}}},\
         \"status\":{{\"phase\":\"Running\",\"podIP\":\"10.0.{}.{}\",\"reason\":\"{:024x}\"}}}}",
        id % 251,
        id % 241,
        id.rotate_left(17)
    )
}

/// What a compaction killed is swept and cleaned by upkeep alone, part by part, without an operation behind it; then there is an end
/// to it. Values keep what a dictionary wins.
#[test]
fn space_comes_back_without_writes() {
    const KEYS: u64 = 6_000;
    const ROUNDS: u64 = 4;
    let disk = SimDisk::new(77);
    let (_, mut writer) = StoreWriter::new(StoreOptions { memtable_bytes: 4 << 20 });
    let mut options = CheckpointOptions { sweep_changes_max: 1_000, ..CheckpointOptions::default() };
    options.shelf.segment_bytes = 256 << 10;
    options.shelf.page_bytes = 1024;
    let mut checkpoints = SimulatedCheckpoints::open(&disk, &mut writer, &options).expect("it opens");
    let bytes = |disk: &SimDisk| -> u64 {
        let is_of_records = |file: &PathBuf| file.extension().is_some_and(|kind| kind == "r");
        let files = disk.files().into_iter().filter(is_of_records);
        files.filter_map(|file| disk.read_file(&file)).map(|bytes| bytes.len() as u64).sum()
    };
    let mut puts = 0;
    for round in 0..ROUNDS {
        // Something of each round stays alive, so that its segments have to be cleaned and not only dropped.
        for number in (0..KEYS).filter(|number| round == 0 || number % ROUNDS != round) {
            puts += 1;
            let value = object(round * KEYS + number).into();
            let put = Put { key: format!("key {number:06}").into(), value, ..Put::default() };
            writer.put(&put, &AnyLease).expect("a put");
            checkpoints.after_operation(&mut writer);
        }
        checkpoints.make(&mut writer, true).expect("a checkpoint");
    }
    let before = bytes(&disk);
    let revision = writer.store().revision();
    writer.compact(revision).expect("a compaction");
    checkpoints.after_operation(&mut writer);
    checkpoints.make(&mut writer, false).expect("a checkpoint, and what upkeep there is");
    let stats = checkpoints.stats();
    assert!(stats.upkeeps_count >= (puts - KEYS) / 1_000, "{stats:?}");
    let after = bytes(&disk);
    assert!(
        after < before * KEYS / puts * 12 / 10,
        "{after} bytes are left of {before}, {KEYS} records of {puts}"
    );
    checkpoints.verify().expect("the state is whole");
    checkpoints.make(&mut writer, false).expect("nothing to do");
    assert_eq!(checkpoints.stats().upkeeps_count, stats.upkeeps_count, "upkeep ends");
    let stats = writer.store().stats();
    assert_eq!(stats.keys_count, KEYS);
}

fn open(disk: &SimDisk) -> (StoreWriter, SimulatedCheckpoints) {
    let (_, mut writer) = StoreWriter::new(StoreOptions::default());
    let checkpoints =
        SimulatedCheckpoints::open(disk, &mut writer, &CheckpointOptions::default()).expect("it opens");
    (writer, checkpoints)
}

/// A checkpoint whose superblock could not be written removed its segments, as every failed attempt does. But two copies
/// may have reached the disk before the error: then the next open chose the new state, and its files were gone. Now what the
/// new superblock may refer to stays, and no further attempt is begun.
#[test]
fn a_superblock_that_fails_half_way_leaves_both_states_whole() {
    for (kind, nth) in
        (0..4).map(|nth| (OperationKind::Write, nth)).chain([0, 1].map(|nth| (OperationKind::Sync, nth)))
    {
        let disk = SimDisk::new(nth + 1);
        let (mut writer, mut checkpoints) = open(&disk);
        (0..20).for_each(|number| put(&mut writer, &mut checkpoints, number));
        checkpoints.make(&mut writer, true).expect("the first checkpoint");
        (20..40).for_each(|number| put(&mut writer, &mut checkpoints, number));
        let mut fault = Fault::nth(kind, nth, Effect::Fail);
        fault.path_part = "super".into();
        disk.add_fault(fault);
        checkpoints.make(&mut writer, true).expect_err("the superblock cannot be written");
        let files = disk.files();
        checkpoints.make(&mut writer, false).expect_err("nor again");
        assert_eq!(disk.files(), files, "and nothing more is written");
        for disk in
            [disk.crash_process(nth), disk.crash(&CrashPolicy::DropAll), disk.crash(&CrashPolicy::KeepAll)]
        {
            let (_, checkpoints) = open(&disk);
            assert!([20, 40].contains(&checkpoints.applied()), "{kind:?} {nth}: {}", checkpoints.applied());
            checkpoints.verify().expect("the state is whole");
        }
    }
}

/// A key of a lease in the system tree that the key tree does not have stopped the process when the lease was revoked. The two are
/// read from disk, where only a broken writer can have put them: it is damage, and nothing is deleted.
#[test]
fn a_key_of_a_lease_that_does_not_exist_is_damage() {
    let disk = SimDisk::new(1);
    let options =
        CheckpointOptions { planted: Some(PlantedBug::KeepLeaseKeys), ..CheckpointOptions::default() };
    let (_, mut writer) = StoreWriter::new(StoreOptions::default());
    let mut checkpoints = SimulatedCheckpoints::open(&disk, &mut writer, &options).expect("it opens");
    let range = KeyRange { key: "leased".into(), end: Bytes::new() };
    let put = Put { key: "leased".into(), lease: 7, ..Put::default() };
    writer.put(&put, &AnyLease).expect("a put");
    checkpoints.after_operation(&mut writer);
    checkpoints.make(&mut writer, true).expect("a checkpoint");
    writer.delete_range(&DeleteRange { range, prev_kv: false }).expect("a delete");
    checkpoints.after_operation(&mut writer);
    checkpoints.make(&mut writer, true).expect("a checkpoint that forgets the lease");
    let (mut writer, _) = open(&disk);
    let head = writer.store().revision();
    let error = writer.delete_lease_keys(7).expect_err("the trees contradict each other");
    assert!(error.to_string().contains("M5"), "{error}");
    assert_eq!(writer.store().revision(), head);
}

/// One operation of many kinds.
fn change(writer: &mut StoreWriter, number: u64) {
    let key: Bytes = format!("key {}", number % 11).into();
    let range = KeyRange { key: key.clone(), end: Bytes::new() };
    match number % 8 {
        0 => drop(writer.delete_range(&DeleteRange { range, prev_kv: false }).expect("a delete")),
        1 => drop(writer.compact(writer.store().revision())),
        2 => writer.system_put(key, number.to_be_bytes().to_vec().into()),
        3 => writer.system_delete(&key),
        4 => drop(writer.delete_lease_keys(number as i64 % 3 + 1).expect("keys of a lease")),
        _ => {
            let put = Put { key, value: object(number).into(), lease: number as i64 % 4, ..Put::default() };
            drop(writer.put(&put, &AnyLease).expect("a put"));
        }
    }
}

/// Checkpoints, restarts and upkeep do not show in the sum of a state, and a single other change shows for ever.
#[test]
fn the_sum_of_a_state_is_that_of_what_was_applied() {
    let disk = SimDisk::new(5);
    let (mut writer, mut checkpoints) = open(&disk);
    let (_, mut plain) = StoreWriter::new(StoreOptions::default());
    let (_, mut other) = StoreWriter::new(StoreOptions::default());
    for number in 0..400 {
        change(&mut writer, number);
        checkpoints.after_operation(&mut writer);
        change(&mut plain, number);
        change(&mut other, if number == 300 { 308 } else { number });
        assert_eq!(writer.state_sum(), plain.state_sum(), "after operation {number}");
        let is_same = writer.state_sum().changes == other.state_sum().changes;
        assert_eq!(is_same, number < 300, "after operation {number}");
        if number % 37 == 0 {
            checkpoints.make(&mut writer, true).expect("a checkpoint");
        }
        if number % 53 == 0 {
            // What the newest checkpoint does not have is applied again, as from a log.
            (writer, checkpoints) = open(&disk);
            (checkpoints.applied()..=number).for_each(|number| {
                change(&mut writer, number);
                checkpoints.after_operation(&mut writer);
            });
        }
    }
}
