//! Several handles of one simulated disk, each driven by a part of the engine of its own: what one has in flight the
//! other neither gets nor loses.
use std::collections::BTreeSet;
use sternpost_engine::base::rng::Rng;
use sternpost_engine::io::sim_disk::{CrashPolicy, SimDisk, Unsynced, UnsyncedChange};
use sternpost_engine::io::{
    Completion, Durability, FileId, Io, IoBuffer, IoErrorKind, Open, Operation, Outcome, Token, Wait,
    disk::{BLOCK_BYTES, run},
};

const BLOCK: u64 = BLOCK_BYTES as u64;

fn create(disk: &mut SimDisk, path: &str) -> FileId {
    match run(disk, Operation::Open { path: path.into(), open: Open::CreateNew }) {
        Ok((Outcome::Opened(file), None)) => file,
        other => panic!("open gave {other:?}"),
    }
}

fn write(file: FileId, block: u64, byte: u8, durability: Durability) -> Operation {
    let mut buffer = IoBuffer::zeroed(BLOCK_BYTES);
    buffer.fill(byte);
    Operation::Write { file, offset: block * BLOCK, buffer, durability }
}

fn tokens(completions: &[Completion]) -> BTreeSet<u64> {
    completions.iter().map(|completion| completion.token.0).collect()
}

fn wait_all(disk: &mut SimDisk, count: usize) -> Vec<Completion> {
    let mut completions = Vec::new();
    while completions.len() < count && !disk.is_stopped() {
        disk.wait(Wait::AtMostUs(1_000_000), &mut completions);
    }
    completions
}

#[test]
fn one_thing_at_a_time_on_one_handle_leaves_what_another_has_in_flight_to_it() {
    for seed in 0..50 {
        let mut log = SimDisk::new(seed);
        let mut checkpoint = log.handle();
        let group = create(&mut log, "wal");
        for block in 0..20 {
            log.submit(Token(block), write(group, block, 1, Durability::Synced));
        }
        let segment = create(&mut checkpoint, "seg");
        for block in 0..20 {
            run(&mut checkpoint, write(segment, block, 2, Durability::None)).expect("a write");
        }
        run(&mut checkpoint, Operation::Sync { file: segment }).expect("a sync");
        let mut completions = Vec::new();
        log.wait(Wait::No, &mut completions);
        assert!(!completions.is_empty(), "seed {seed}: what ended meanwhile was kept");
        let rest = wait_all(&mut log, 20 - completions.len());
        completions.extend(rest);
        assert_eq!(tokens(&completions), (0..20).collect(), "seed {seed}");
        assert!(completions.iter().all(|completion| completion.buffer.is_some()));
        let mut more = Vec::new();
        for handle in [&mut log, &mut checkpoint] {
            handle.wait(Wait::AtMostUs(1_000_000), &mut more);
        }
        assert!(more.is_empty(), "each completion comes once");
    }
}

#[test]
fn a_completion_that_was_kept_ends_a_wait_at_once() {
    let mut one = SimDisk::new(1);
    let mut two = one.handle();
    let file = create(&mut one, "file");
    one.submit(Token(7), write(file, 0, 1, Durability::None));
    let mut completions = Vec::new();
    two.wait(Wait::AtMostUs(1_000_000), &mut completions);
    assert!(completions.is_empty(), "the other's completion is no reason to come back");
    let before_us = Io::now_us(&one);
    one.wait(Wait::AtMostUs(1_000_000), &mut completions);
    assert_eq!((tokens(&completions), Io::now_us(&one)), (BTreeSet::from([7]), before_us));
}

#[test]
fn a_clone_is_the_same_owner() {
    let mut one = SimDisk::new(1).handle();
    let mut same = one.clone();
    let file = create(&mut one, "file");
    one.submit(Token(7), write(file, 0, 1, Durability::None));
    assert_eq!(tokens(&wait_all(&mut same, 1)), BTreeSet::from([7]));
    run(&mut same, Operation::Close { file }).expect("it may use the file");
}

#[test]
fn a_file_belongs_to_the_handle_that_opened_it() {
    let mut one = SimDisk::new(1);
    let mut two = one.handle();
    let file = create(&mut one, "file");
    let operations: [fn(FileId) -> Operation; 3] = [
        |file| write(file, 0, 1, Durability::None),
        |file| Operation::Sync { file },
        |file| Operation::Close { file },
    ];
    for operation in operations {
        let submit = std::panic::AssertUnwindSafe(|| two.submit(Token(1), operation(file)));
        assert!(std::panic::catch_unwind(submit).is_err());
    }
    run(&mut two, Operation::Unlink { path: "file".into() }).expect("names are everybody's");
    run(&mut one, write(file, 0, 1, Durability::None)).expect("the file outlives its name");
}

#[test]
fn each_handle_has_a_bound_of_its_own_which_counts_what_was_kept() {
    let mut one = SimDisk::new(1);
    let mut two = one.handle();
    let (file, other) = (create(&mut one, "file"), create(&mut two, "other"));
    for (disk, file) in [(&mut one, file), (&mut two, other)] {
        for token in 0..disk.in_flight_max() as u64 {
            disk.submit(Token(token), Operation::Sync { file });
        }
    }
    assert_eq!(wait_all(&mut two, 64).len(), 64);
    two.wait(Wait::AtMostUs(1_000_000), &mut Vec::new());
    let submit = std::panic::AssertUnwindSafe(|| one.submit(Token(64), Operation::Sync { file }));
    assert!(std::panic::catch_unwind(submit).is_err(), "64 completions wait for their owner");
    assert_eq!(wait_all(&mut one, 64).len(), 64);
    run(&mut one, Operation::Sync { file }).expect("there is room again");
}

#[test]
fn a_waker_ends_the_wait_of_its_own_handle() {
    let mut one = SimDisk::new(1);
    let mut two = one.handle();
    one.waker()();
    let waited_us = |disk: &mut SimDisk| {
        let before_us = Io::now_us(disk);
        disk.wait(Wait::AtMostUs(1000), &mut Vec::new());
        Io::now_us(disk) - before_us
    };
    assert_eq!(waited_us(&mut two), 1000);
    assert_eq!(waited_us(&mut one), 1);
    assert_eq!(waited_us(&mut one), 1000);
}

/// Two parts that each write and sync block after block, one with four in flight, one a thing at a time; the blocks that
/// each was told are durable.
fn workload(log: &mut SimDisk, checkpoint: &mut SimDisk, seed: u64) -> [BTreeSet<u64>; 2] {
    let mut acknowledged = [BTreeSet::new(), BTreeSet::new()];
    let mut rng = Rng::new(seed);
    let open = |disk: &mut SimDisk, path: &str| match run(
        disk,
        Operation::Open { path: path.into(), open: Open::Existing },
    ) {
        Ok((Outcome::Opened(file), None)) => Some(file),
        _ => None,
    };
    let (Some(wal), Some(seg)) = (open(log, "wal"), open(checkpoint, "seg")) else { return acknowledged };
    let mut in_flight = 0;
    let mut completions = Vec::new();
    for block in 0..12 {
        log.submit(Token(block), write(wal, block, 1, Durability::Synced));
        in_flight += 1;
        if rng.chance(1, 2) && run(checkpoint, write(seg, block, 2, Durability::Synced)).is_ok() {
            acknowledged[1].insert(block);
        }
        while in_flight >= 4 && !log.is_stopped() {
            log.wait(Wait::AtMostUs(10_000), &mut completions);
            in_flight -= completions.len();
            acknowledged[0].extend(completions.drain(..).map(|completion| completion.token.0));
        }
        if log.is_stopped() {
            break;
        }
    }
    acknowledged
}

fn disk_with_files(seed: u64) -> SimDisk {
    let disk = SimDisk::new(seed);
    disk.put_file("wal", &[0; 12 * BLOCK_BYTES]);
    disk.put_file("seg", &[0; 12 * BLOCK_BYTES]);
    disk
}

#[test]
fn steps_stops_and_images_are_those_of_the_device_whoever_drives_it() {
    for seed in 0..5 {
        let mut whole = disk_with_files(seed);
        let mut other = whole.handle();
        other.record_images();
        let all = workload(&mut whole, &mut other, seed);
        let images = whole.take_images();
        assert_eq!(images.len() as u64, whole.steps() + 1);
        assert!(!all[0].is_empty() && !all[1].is_empty());
        for stop in 0..=whole.steps() {
            let mut log = disk_with_files(seed);
            let mut checkpoint = log.handle();
            log.stop_after(stop);
            let acknowledged = workload(&mut log, &mut checkpoint, seed);
            assert_eq!((log.is_stopped(), checkpoint.is_stopped(), log.steps()), (true, true, stop));
            assert_eq!(
                images[stop as usize].unsynced(),
                log.unsynced(),
                "a run repeats itself up to its stop"
            );
            let after = log.crash(&CrashPolicy::DropAll);
            for (path, byte, blocks) in [("wal", 1, &acknowledged[0]), ("seg", 2, &acknowledged[1])] {
                let content = after.read_file(path).expect("the file");
                for block in blocks {
                    assert_eq!(
                        content[(block * BLOCK) as usize],
                        byte,
                        "seed {seed}, stop {stop}, {path} {block}"
                    );
                }
            }
            let error =
                run(&mut checkpoint, Operation::List { path: "".into() }).expect_err("the power is off");
            assert_eq!(error.kind, IoErrorKind::Device);
        }
    }
}

#[test]
fn handles_on_two_threads_each_get_all_of_their_own() {
    let disk = SimDisk::new(1);
    std::thread::scope(|scope| {
        for number in 0..2_u64 {
            let mut disk = disk.handle();
            scope.spawn(move || {
                let file = create(&mut disk, &format!("file-{number}"));
                for round in 0..200 {
                    for block in 0..8 {
                        disk.submit(
                            Token(number * 1000 + block),
                            write(file, block, round, Durability::Synced),
                        );
                    }
                    let expected = (0..8).map(|block| number * 1000 + block).collect();
                    assert_eq!(tokens(&wait_all(&mut disk, 8)), expected);
                    run(&mut disk, Operation::Sync { file }).expect("a sync");
                }
            });
        }
    });
    let is_name = |change: &Unsynced| change.change == UnsyncedChange::Create;
    assert!(disk.unsynced().iter().all(is_name), "every write is durable: {:?}", disk.unsynced());
}
