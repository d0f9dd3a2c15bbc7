//! The simulated disk does what `docs/fault_model.md` says, and nothing else: only then do the crash tests above it
//! mean anything.
use std::collections::BTreeSet;
use std::path::PathBuf;
use sternpost_engine::io::fault_plan::{Effect, Fault, FaultPlan, OperationKind};
use sternpost_engine::io::sim_disk::{CrashPolicy, SimDisk, TornUnits, UnsyncedChange};
use sternpost_engine::io::{
    Completion, Durability, FileId, Io, IoBuffer, IoError, IoErrorKind, Open, Operation, Outcome, Token,
    Wait,
    disk::{BLOCK_BYTES, run},
};

const BLOCK: u64 = BLOCK_BYTES as u64;

fn buffer(byte: u8, blocks: usize) -> IoBuffer {
    let mut buffer = IoBuffer::zeroed(blocks * BLOCK_BYTES);
    buffer.fill(byte);
    buffer
}

fn write(file: FileId, block: u64, byte: u8, durability: Durability) -> Operation {
    Operation::Write { file, offset: block * BLOCK, buffer: buffer(byte, 1), durability }
}

fn create(disk: &mut SimDisk, path: &str) -> FileId {
    open(disk, path, Open::CreateNew)
}

fn open(disk: &mut SimDisk, path: &str, open: Open) -> FileId {
    match run(disk, Operation::Open { path: PathBuf::from(path), open }) {
        Ok((Outcome::Opened(file), None)) => file,
        other => panic!("open gave {other:?}"),
    }
}

/// A disk with one durable file of `blocks` blocks of ones.
fn disk_with_file(seed: u64, blocks: usize) -> (SimDisk, FileId) {
    let mut disk = SimDisk::new(seed);
    disk.put_file("file", &vec![1; blocks * BLOCK_BYTES]);
    let file = open(&mut disk, "file", Open::Existing);
    (disk, file)
}

fn done(disk: &mut SimDisk, operation: Operation) -> Result<(), IoError> {
    run(disk, operation).map(|_| ())
}

/// First bytes of each block after a crash.
fn blocks_after(disk: &SimDisk, policy: &CrashPolicy) -> Vec<u8> {
    blocks(&disk.crash(policy))
}

fn blocks(disk: &SimDisk) -> Vec<u8> {
    disk.read_file("file").expect("the file is there").chunks(BLOCK_BYTES).map(|block| block[0]).collect()
}

fn wait_all(disk: &mut SimDisk, count: usize) -> Vec<Completion> {
    let mut completions = Vec::new();
    while completions.len() < count && !disk.is_stopped() {
        disk.wait(Wait::AtMostUs(1_000_000), &mut completions);
    }
    completions
}

#[test]
fn an_unsynced_write_may_or_may_not_survive_a_power_cut_and_a_synced_one_does() {
    let (mut disk, file) = disk_with_file(1, 2);
    done(&mut disk, write(file, 0, 2, Durability::None)).expect("a write");
    assert_eq!(blocks(&disk), [2, 1], "a completed write can be read");
    assert_eq!(blocks_after(&disk, &CrashPolicy::KeepAll), [2, 1]);
    assert_eq!(blocks_after(&disk, &CrashPolicy::DropAll), [1, 1]);
    done(&mut disk, Operation::Sync { file }).expect("a sync");
    assert_eq!(disk.unsynced(), []);
    assert_eq!(blocks_after(&disk, &CrashPolicy::DropAll), [2, 1]);
    for durability in [Durability::Synced, Durability::Dsync] {
        done(&mut disk, write(file, 1, 7, durability)).expect("a synced write");
        assert_eq!(blocks_after(&disk, &CrashPolicy::DropAll)[1], 7);
    }
}

#[test]
fn a_sync_covers_what_completed_before_it_was_submitted_and_nothing_else() {
    // The write and the sync are submitted together: whichever ends first, the sync has not covered the write.
    for seed in 0..20 {
        let (mut disk, file) = disk_with_file(seed, 1);
        disk.submit(Token(1), write(file, 0, 2, Durability::None));
        disk.submit(Token(2), Operation::Sync { file });
        wait_all(&mut disk, 2);
        assert_eq!(disk.unsynced().len(), 1, "seed {seed}");
        assert_eq!(blocks_after(&disk, &CrashPolicy::DropAll), [1], "seed {seed}");
    }
}

#[test]
fn dsync_makes_only_its_own_write_durable_and_an_older_one_cannot_undo_it() {
    let (mut disk, file) = disk_with_file(1, 2);
    done(&mut disk, write(file, 0, 2, Durability::None)).expect("a write");
    done(&mut disk, write(file, 1, 3, Durability::None)).expect("a write");
    done(&mut disk, write(file, 1, 4, Durability::Dsync)).expect("a write");
    assert_eq!(blocks_after(&disk, &CrashPolicy::DropAll), [1, 4]);
    assert_eq!(blocks_after(&disk, &CrashPolicy::KeepAll), [2, 4]);
    assert_eq!(blocks_after(&disk, &CrashPolicy::Only(vec![1])), [1, 4]);
}

#[test]
fn operations_overtake_one_another_and_a_seed_repeats_the_order() {
    let order = |seed| {
        let (mut disk, file) = disk_with_file(seed, 8);
        for block in 0..8 {
            disk.submit(Token(block), write(file, block, 2, Durability::Synced));
        }
        let tokens: Vec<u64> = wait_all(&mut disk, 8).iter().map(|completion| completion.token.0).collect();
        (tokens, disk.now_us())
    };
    let orders: BTreeSet<_> = (0..50).map(order).collect();
    assert!(orders.len() > 40, "only {} orders from 50 seeds", orders.len());
    assert_eq!(order(7), order(7));
}

#[test]
fn a_new_name_is_durable_only_by_a_sync_of_its_directory() {
    let mut disk = SimDisk::new(1);
    done(&mut disk, Operation::CreateDirectory { path: "wal".into() }).expect("a directory");
    let file = create(&mut disk, "wal/1");
    done(&mut disk, write(file, 0, 2, Durability::Synced)).expect("a write");
    assert!(disk.crash(&CrashPolicy::DropAll).files().is_empty(), "the data is synced and the name is not");
    assert_eq!(disk.crash(&CrashPolicy::KeepAll).files(), [PathBuf::from("wal/1")]);
    done(&mut disk, Operation::SyncDirectory { path: "wal".into() }).expect("a sync");
    assert!(disk.crash(&CrashPolicy::DropAll).files().is_empty(), "the directory itself has no durable name");
    done(&mut disk, Operation::SyncDirectory { path: PathBuf::new() }).expect("a sync");
    let crashed = disk.crash(&CrashPolicy::DropAll);
    assert_eq!(crashed.read_file("wal/1").expect("the file").len(), BLOCK_BYTES);

    done(&mut disk, Operation::Rename { from: "wal/1".into(), to: "wal/2".into() }).expect("a rename");
    let three = create(&mut disk, "wal/3");
    done(&mut disk, Operation::Close { file: three }).expect("a close");
    done(&mut disk, Operation::Unlink { path: "wal/3".into() }).expect("an unlink");
    let names = |policy| {
        let files = disk.crash(&policy).files();
        files.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(names(CrashPolicy::DropAll), "wal/1");
    assert_eq!(names(CrashPolicy::KeepAll), "wal/2");
    assert_eq!(names(CrashPolicy::Omit(vec![0])), "wal/1");
    assert_eq!(names(CrashPolicy::Omit(vec![2])), "wal/2 wal/3");
    assert_eq!(names(CrashPolicy::Only(vec![1])), "wal/1 wal/3");
}

#[test]
fn a_link_is_durable_with_its_directory_and_shares_what_the_file_holds() {
    let (mut disk, file) = disk_with_file(1, 1);
    done(&mut disk, Operation::CreateDirectory { path: "inner".into() }).expect("a directory");
    done(&mut disk, Operation::SyncDirectory { path: PathBuf::new() }).expect("a sync");
    done(&mut disk, Operation::Link { from: "file".into(), to: "inner/link".into() }).expect("a link");
    done(&mut disk, Operation::Unlink { path: "file".into() }).expect("an unlink");
    let names = |disk: &SimDisk| {
        disk.files().iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(names(&disk), "inner/link");
    assert_eq!(names(&disk.crash(&CrashPolicy::DropAll)), "file");
    assert_eq!(names(&disk.crash(&CrashPolicy::Omit(vec![0]))), "", "without the link nothing is left");
    assert_eq!(names(&disk.crash(&CrashPolicy::Only(vec![0]))), "file inner/link");
    done(&mut disk, Operation::SyncDirectory { path: "inner".into() }).expect("a sync");
    let crashed = disk.crash(&CrashPolicy::Only(vec![0]));
    assert_eq!(crashed.read_file("inner/link"), Some(vec![1; BLOCK_BYTES]));
    done(&mut disk, Operation::Close { file }).expect("a close");
    let below = crashed.below("inner", 2);
    assert_eq!((names(&below), below.read_file("link")), ("link".to_string(), Some(vec![1; BLOCK_BYTES])));

    disk.set_links(false);
    let error = done(&mut disk, Operation::Link { from: "inner/link".into(), to: "again".into() });
    assert_eq!(error.expect_err("as between two file systems").kind, IoErrorKind::CannotLink);
}

#[test]
fn a_rename_over_a_file_keeps_the_old_one_until_the_directory_is_synced() {
    let (mut disk, old) = disk_with_file(1, 1);
    done(&mut disk, Operation::Close { file: old }).expect("a close");
    let new = create(&mut disk, "new");
    done(&mut disk, write(new, 0, 2, Durability::Synced)).expect("a write");
    done(&mut disk, Operation::SyncDirectory { path: PathBuf::new() }).expect("a sync");
    done(&mut disk, Operation::Rename { from: "new".into(), to: "file".into() }).expect("a rename");
    assert_eq!(blocks(&disk), [2]);
    assert_eq!(blocks_after(&disk, &CrashPolicy::DropAll), [1]);
    assert_eq!(blocks_after(&disk, &CrashPolicy::KeepAll), [2]);
    assert_eq!(disk.crash(&CrashPolicy::KeepAll).files().len(), 1);
    done(&mut disk, Operation::SyncDirectory { path: PathBuf::new() }).expect("a sync");
    assert_eq!(blocks_after(&disk, &CrashPolicy::DropAll), [2]);
}

#[test]
fn a_write_tears_at_sectors_and_at_blocks() {
    let (mut disk, file) = disk_with_file(1, 3);
    let operation =
        Operation::Write { file, offset: 0, buffer: buffer(2, 3), durability: Durability::Synced };
    disk.submit(Token(1), operation);
    let torn = |unit_bytes, kept| {
        let policy = CrashPolicy::Tear { index: 0, unit_bytes, kept, others: true };
        let content = disk.crash(&policy).read_file("file").expect("the file");
        content.chunks(512).map(|sector| char::from(b'0' + sector[0])).collect::<String>()
    };
    assert!(
        matches!(disk.unsynced()[0].change, UnsyncedChange::Write { in_flight: true, .. }),
        "a write in flight can be torn"
    );
    assert_eq!(torn(512, TornUnits::First(3)), "222111111111111111111111");
    assert_eq!(torn(512, TornUnits::AllButFirst(9)), "111111111222222222222222");
    assert_eq!(torn(4096, TornUnits::First(1)), "222222221111111111111111");
    let random: BTreeSet<_> = (0..20).map(|seed| torn(512, TornUnits::Random(seed))).collect();
    assert!(random.len() > 15);
}

#[test]
fn a_stopped_disk_completes_nothing_and_every_step_can_be_visited() {
    let workload = |disk: &mut SimDisk, file| {
        let mut acknowledged = 0;
        for block in 0..4 {
            let durability = if block % 2 == 0 { Durability::Synced } else { Durability::Dsync };
            if done(disk, write(file, block, 2, durability)).is_err() {
                break;
            }
            acknowledged += 1;
        }
        acknowledged
    };
    let (mut disk, file) = disk_with_file(3, 4);
    let steps_before = disk.steps();
    disk.record_images();
    assert_eq!(workload(&mut disk, file), 4);
    let steps = disk.steps() - steps_before;
    assert_eq!(steps, 8, "a write with its sync is two steps");
    assert_eq!(disk.take_images().len(), 9);
    for stop in 0..steps {
        let (mut disk, file) = disk_with_file(3, 4);
        disk.stop_after(stop);
        let acknowledged = workload(&mut disk, file);
        assert!(disk.is_stopped());
        assert_eq!(acknowledged, stop / 2, "stopped after {stop} steps");
        let policies = disk.crash_policies();
        assert_eq!(
            policies.len() > 1,
            stop % 2 == 1,
            "after its first step a write is torn, kept or dropped"
        );
        for policy in policies {
            let after = blocks_after(&disk, &policy);
            let kept = after.iter().filter(|byte| **byte == 2).count() as u64;
            assert!(kept >= acknowledged, "stop {stop}, {policy:?}: {after:?}");
        }
    }
}

#[test]
fn a_killed_process_loses_nothing_that_completed_and_the_next_power_cut_may() {
    let mut in_flight_outcomes = BTreeSet::new();
    for seed in 0..40 {
        let (mut disk, file) = disk_with_file(1, 2);
        done(&mut disk, write(file, 0, 2, Durability::None)).expect("a write");
        disk.submit(Token(1), write(file, 1, 3, Durability::Synced));
        let next = disk.crash_process(seed);
        assert_eq!(blocks(&next)[0], 2);
        in_flight_outcomes.insert(blocks(&next)[1]);
        assert_eq!(blocks_after(&next, &CrashPolicy::DropAll), [1, 1]);
    }
    assert_eq!(in_flight_outcomes, BTreeSet::from([1, 3]));
}

#[test]
fn lost_and_misdirected_writes_are_acknowledged() {
    let (mut disk, file) = disk_with_file(1, 4);
    disk.set_plan(FaultPlan::new([
        Fault::nth(OperationKind::Write, 0, Effect::LostWrite),
        Fault::nth(OperationKind::Write, 1, Effect::MisdirectedWrite { offset: 3 * BLOCK }),
    ]));
    done(&mut disk, write(file, 0, 2, Durability::Synced)).expect("acknowledged");
    done(&mut disk, write(file, 1, 3, Durability::Synced)).expect("acknowledged");
    assert_eq!(blocks_after(&disk, &CrashPolicy::DropAll), [1, 1, 1, 3]);
    assert_eq!(blocks(&disk), [1, 1, 1, 3]);
}

#[test]
fn rot_is_in_the_file_or_in_one_read() {
    let (mut disk, file) = disk_with_file(1, 1);
    disk.add_fault(Fault::nth(OperationKind::Read, 0, Effect::RottenRead { byte: 5, bit: 1 }));
    let mut read = || match run(&mut disk, Operation::Read { file, offset: 0, buffer: buffer(0, 1) }) {
        Ok((Outcome::Bytes(BLOCK_BYTES), Some(buffer))) => buffer[5],
        other => panic!("the read gave {other:?}"),
    };
    assert_eq!((read(), read()), (3, 1));
    assert!(disk.flip_bit("file", 5, 1));
    assert_eq!(disk.read_file("file").expect("the file")[5], 3);
    assert_eq!(disk.crash(&CrashPolicy::DropAll).read_file("file").expect("the file")[5], 3);
    assert!(!disk.flip_bit("file", BLOCK, 1), "outside the file");
}

#[test]
fn after_a_failed_sync_the_next_one_succeeds_and_may_have_lost_everything() {
    for (effect, durable) in [(Effect::SyncFailsLosing, 1), (Effect::SyncFailsKeeping, 2)] {
        for separate in [true, false] {
            let (mut disk, file) = disk_with_file(1, 1);
            disk.add_fault(Fault::nth(OperationKind::Sync, 0, effect));
            let durability = if separate { Durability::None } else { Durability::Synced };
            let mut result = done(&mut disk, write(file, 0, 2, durability));
            if separate {
                result = result.and_then(|()| done(&mut disk, Operation::Sync { file }));
            }
            assert_eq!(result.expect_err("the sync fails").kind, IoErrorKind::Device);
            assert_eq!(blocks(&disk), [2], "reads show the write all the same");
            done(&mut disk, Operation::Sync { file }).expect("the next sync succeeds");
            assert_eq!(blocks_after(&disk, &CrashPolicy::DropAll), [durable]);
        }
    }
}

#[test]
fn an_error_hits_the_planned_operation_and_names_it() {
    let (mut disk, file) = disk_with_file(1, 2);
    disk.add_fault(Fault::nth(OperationKind::Write, 1, Effect::Fail));
    disk.add_fault(Fault::nth(OperationKind::Read, 0, Effect::Fail).on("file").sticky());
    done(&mut disk, write(file, 0, 2, Durability::None)).expect("the first write");
    let error = done(&mut disk, write(file, 1, 2, Durability::None)).expect_err("the second write");
    assert_eq!(error.kind, IoErrorKind::Device);
    assert_eq!(error.what, "write 4096 bytes at 4096 of file");
    for _ in 0..3 {
        done(&mut disk, Operation::Read { file, offset: 0, buffer: buffer(0, 1) }).expect_err("every read");
    }
}

#[test]
fn a_full_disk_refuses_new_blocks_takes_old_ones_and_recovers_with_space() {
    let (mut disk, file) = disk_with_file(1, 2);
    let other = create(&mut disk, "other");
    done(&mut disk, write(other, 0, 1, Durability::None)).expect("there is space");
    assert_eq!(disk.allocated_bytes(), 3 * BLOCK);
    disk.set_capacity(Some(3 * BLOCK));
    let error = done(&mut disk, write(file, 2, 2, Durability::Synced)).expect_err("there is none left");
    assert_eq!(error.kind, IoErrorKind::NoSpace);
    done(&mut disk, write(file, 1, 2, Durability::Synced)).expect("its block is there already");
    done(&mut disk, Operation::Unlink { path: "other".into() }).expect("an unlink");
    done(&mut disk, write(file, 2, 2, Durability::Synced)).expect_err("the file is still open");
    done(&mut disk, Operation::Close { file: other }).expect("a close");
    done(&mut disk, write(file, 2, 2, Durability::Synced)).expect("its space came back");
    assert_eq!(blocks(&disk), [1, 2, 2]);
}

#[test]
fn a_stall_takes_simulated_seconds_and_a_wait_ends_at_its_limit() {
    let (mut disk, file) = disk_with_file(1, 1);
    disk.add_fault(Fault::nth(OperationKind::Write, 0, Effect::Stall(5_000_000)));
    let start_us = disk.now_us();
    disk.submit(Token(1), write(file, 0, 2, Durability::None));
    let mut completions = Vec::new();
    disk.wait(Wait::AtMostUs(10_000), &mut completions);
    assert_eq!((completions.len(), disk.now_us() - start_us), (0, 10_000));
    disk.waker()();
    disk.wait(Wait::AtMostUs(10_000_000), &mut completions);
    assert!(completions.is_empty(), "the waker ended the wait");
    disk.wait(Wait::AtMostUs(10_000_000), &mut completions);
    assert_eq!(completions.len(), 1);
    assert!((5_000_000..5_100_000).contains(&(disk.now_us() - start_us)));
}

#[test]
fn a_read_is_short_only_at_the_end_of_the_file() {
    let (mut disk, file) = disk_with_file(1, 3);
    for (block, bytes) in [(0, 2 * BLOCK_BYTES), (2, BLOCK_BYTES), (3, 0), (9, 0)] {
        let operation = Operation::Read { file, offset: block * BLOCK, buffer: buffer(9, 2) };
        let (outcome, buffer) = run(&mut disk, operation).expect("a read");
        assert_eq!(outcome, Outcome::Bytes(bytes), "at block {block}");
        assert!(buffer.expect("the buffer")[..bytes].iter().all(|byte| *byte == 1));
    }
    done(&mut disk, write(file, 5, 2, Durability::None)).expect("a write beyond the end");
    assert_eq!(blocks(&disk), [1, 1, 1, 0, 0, 2]);
    assert_eq!(run(&mut disk, Operation::Length { file }).expect("a length").0, Outcome::Length(6 * BLOCK));
}
