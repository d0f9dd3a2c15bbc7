//! A superblock that cannot be written takes nothing from either state.
use super::CheckpointOptions;
use super::simulated::SimulatedCheckpoints;
use crate::io::fault_plan::{Effect, Fault, OperationKind};
use crate::io::sim_disk::{CrashPolicy, SimDisk};
use crate::mvcc::{AnyLease, Put, StoreOptions, StoreWriter};

fn put(writer: &mut StoreWriter, checkpoints: &mut SimulatedCheckpoints, number: u64) {
    let key = format!("key {}", number % 7).into();
    let put = Put { key, value: vec![number as u8; 300].into(), ..Put::default() };
    writer.put(&put, &AnyLease).expect("a put");
    checkpoints.after_operation(writer);
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
