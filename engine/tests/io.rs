//! One battery of claims, run on every backend; each test prints which ones it got (corrections G5).
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use sternpost_engine::base::rng::Rng;
use sternpost_engine::io::dir_lock::DirLock;
use sternpost_engine::io::sim_disk::SimDisk;
use sternpost_engine::io::{
    BackendChoice, Completion, Durability, FileId, Io, IoBuffer, IoError, IoErrorKind, Open, Operation,
    Outcome, Token, Wait,
    disk::{BLOCK_BYTES, run},
    open_backend,
};

const BLOCK: u64 = BLOCK_BYTES as u64;
const DURABILITIES: [Durability; 3] = [Durability::None, Durability::Synced, Durability::Dsync];

/// Runs a claim on every backend that can be had here, each in a directory of its own.
fn on_every_backend(claim: impl Fn(Box<dyn Io>)) {
    claim(announced(Box::new(SimDisk::new(1))));
    on_every_kernel_backend(|disk, _| claim(disk));
}

/// The same without the simulated disk; for claims about threads and real files.
fn on_every_kernel_backend(claim: impl Fn(Box<dyn Io>, &Path)) {
    for choice in [BackendChoice::Auto, BackendChoice::Syscall] {
        let directory = tempfile::tempdir().expect("a directory");
        claim(announced(open_backend(directory.path(), None, choice).expect("a backend")), directory.path());
    }
}

fn announced(disk: Box<dyn Io>) -> Box<dyn Io> {
    println!("{:?}", disk.backend());
    disk
}

fn done(disk: &mut dyn Io, operation: Operation) -> Outcome {
    run(disk, operation).expect("the operation succeeds").0
}

fn fails(disk: &mut dyn Io, operation: Operation) -> IoError {
    run(disk, operation).expect_err("the operation fails")
}

fn open(disk: &mut dyn Io, path: &str, open: Open) -> FileId {
    match done(disk, Operation::Open { path: path.into(), open }) {
        Outcome::Opened(file) => file,
        other => panic!("open gave {other:?}"),
    }
}

fn create(disk: &mut dyn Io, path: &str) -> FileId {
    open(disk, path, Open::CreateNew)
}

fn read(disk: &mut dyn Io, file: FileId, block: u64, blocks: usize) -> Vec<u8> {
    let buffer = disk.buffer(blocks * BLOCK_BYTES);
    match run(disk, Operation::Read { file, offset: block * BLOCK, buffer }) {
        Ok((Outcome::Bytes(count), Some(buffer))) => buffer[..count].to_vec(),
        other => panic!("read gave {other:?}"),
    }
}

fn filled(byte: u8, blocks: usize) -> IoBuffer {
    let mut buffer = IoBuffer::zeroed(blocks * BLOCK_BYTES);
    buffer.fill(byte);
    buffer
}

fn write(file: FileId, block: u64, byte: u8, blocks: usize, durability: Durability) -> Operation {
    Operation::Write { file, offset: block * BLOCK, buffer: filled(byte, blocks), durability }
}

fn names(disk: &mut dyn Io, path: &str) -> Vec<String> {
    match done(disk, Operation::List { path: path.into() }) {
        Outcome::Names(names) => names,
        other => panic!("list gave {other:?}"),
    }
}

#[test]
fn what_is_written_is_read_whatever_the_durability_and_the_size() {
    on_every_backend(|mut disk| {
        let disk = disk.as_mut();
        let file = create(disk, "file");
        let mut block = 0;
        for durability in DURABILITIES {
            for blocks in [1, 2, 16, 256] {
                let byte = u8::try_from(block % 251).expect("below 251") + 1;
                let operation = write(file, block, byte, blocks, durability);
                assert_eq!(done(disk, operation), Outcome::Bytes(blocks * BLOCK_BYTES));
                let bytes = read(disk, file, block, blocks);
                assert_eq!((bytes.len(), bytes.iter().all(|b| *b == byte)), (blocks * BLOCK_BYTES, true));
                block += blocks as u64;
            }
        }
        assert_eq!(done(disk, Operation::Sync { file }), Outcome::Done);
        assert_eq!(done(disk, Operation::Length { file }), Outcome::Length(block * BLOCK));
    });
}

#[test]
fn a_read_is_short_only_at_the_end_of_the_file_and_a_hole_is_zeros() {
    on_every_backend(|mut disk| {
        let disk = disk.as_mut();
        let file = create(disk, "file");
        assert_eq!(read(disk, file, 0, 1), []);
        done(disk, write(file, 2, 7, 1, Durability::None));
        assert_eq!(read(disk, file, 0, 4), [vec![0; 2 * BLOCK_BYTES], vec![7; BLOCK_BYTES]].concat());
        assert_eq!(read(disk, file, 3, 1), []);
        assert_eq!(read(disk, file, 100, 1), []);
    });
}

#[test]
fn a_file_that_ends_inside_a_block_is_read_to_its_end() {
    on_every_kernel_backend(|mut disk, directory| {
        std::fs::write(directory.join("file"), vec![5; 5000]).expect("a file");
        let file = open(disk.as_mut(), "file", Open::Existing);
        assert_eq!(done(disk.as_mut(), Operation::Length { file }), Outcome::Length(5000));
        assert_eq!(read(disk.as_mut(), file, 0, 4), vec![5; 5000]);
        assert_eq!(read(disk.as_mut(), file, 1, 1), vec![5; 904]);
    });
}

#[test]
fn names_are_made_listed_renamed_and_removed() {
    on_every_backend(|mut disk| {
        let disk = disk.as_mut();
        done(disk, Operation::CreateDirectory { path: "wal".into() });
        done(disk, Operation::CreateDirectory { path: "wal".into() });
        done(disk, Operation::CreateDirectory { path: "wal/inner".into() });
        for name in ["wal/b", "wal/a", "wal/c", "top"] {
            let file = create(disk, name);
            done(disk, write(file, 0, name.as_bytes()[name.len() - 1], 1, Durability::Synced));
            done(disk, Operation::Close { file });
        }
        assert_eq!(names(disk, "wal"), ["a", "b", "c"]);
        assert_eq!(names(disk, ""), ["top"]);
        done(disk, Operation::Rename { from: "wal/a".into(), to: "wal/d".into() });
        done(disk, Operation::Rename { from: "wal/b".into(), to: "wal/c".into() });
        assert_eq!(names(disk, "wal"), ["c", "d"]);
        let file = open(disk, "wal/c", Open::Existing);
        assert_eq!(read(disk, file, 0, 1), vec![b'b'; BLOCK_BYTES]);
        done(disk, Operation::Unlink { path: "wal/c".into() });
        assert_eq!(read(disk, file, 0, 1), vec![b'b'; BLOCK_BYTES], "an open file outlives its name");
        done(disk, Operation::SyncDirectory { path: "wal".into() });
        done(disk, Operation::SyncDirectory { path: PathBuf::new() });
        assert_eq!(names(disk, "wal"), ["d"]);
    });
}

#[test]
fn a_second_name_is_the_same_file() {
    on_every_backend(|mut disk| {
        let disk = disk.as_mut();
        done(disk, Operation::CreateDirectory { path: "inner".into() });
        let file = create(disk, "one");
        done(disk, write(file, 0, 3, 1, Durability::Synced));
        done(disk, Operation::Close { file });
        done(disk, Operation::Link { from: "one".into(), to: "inner/two".into() });
        assert_eq!(
            (names(disk, ""), names(disk, "inner")),
            (vec!["one".to_string()], vec!["two".to_string()])
        );
        done(disk, Operation::Unlink { path: "one".into() });
        let file = open(disk, "inner/two", Open::Existing);
        assert_eq!(read(disk, file, 0, 1), vec![3; BLOCK_BYTES], "it outlives the first");
    });
}

#[test]
fn errors_say_what_was_tried_and_are_of_the_kind_that_callers_act_on() {
    on_every_backend(|mut disk| {
        let disk = disk.as_mut();
        create(disk, "file");
        let cases = [
            (Operation::Open { path: "none".into(), open: Open::Existing }, "NotFound open none"),
            (Operation::Open { path: "no/file".into(), open: Open::CreateNew }, "NotFound create no/file"),
            (Operation::Open { path: "file".into(), open: Open::CreateNew }, "AlreadyExists create file"),
            (Operation::Rename { from: "none".into(), to: "x".into() }, "NotFound rename none to x"),
            (Operation::Link { from: "none".into(), to: "x".into() }, "NotFound link none to x"),
            (Operation::Link { from: "file".into(), to: "file".into() }, "AlreadyExists link file to file"),
            (Operation::Unlink { path: "none".into() }, "NotFound remove none"),
            (Operation::List { path: "none".into() }, "NotFound list directory none"),
            (Operation::SyncDirectory { path: "none".into() }, "NotFound sync directory none"),
            (Operation::CreateDirectory { path: "file".into() }, "AlreadyExists make directory file"),
            (Operation::CreateDirectory { path: "no/inner".into() }, "NotFound make directory no/inner"),
        ];
        for (operation, expected) in cases {
            let error = fails(disk, operation);
            assert_eq!(format!("{:?} {}", error.kind, error.what), expected);
            assert!(!error.cause.is_empty());
        }
    });
}

#[test]
fn many_operations_in_flight_each_come_back_once_with_their_own_buffer() {
    on_every_backend(|mut disk| {
        let file = create(disk.as_mut(), "file");
        let mut rng = Rng::new(7);
        let slots = disk.in_flight_max() as u64;
        let mut model = vec![0_u8; disk.in_flight_max()];
        for round in 0..20 {
            // Each block has one operation at most, so the order in which they end does not matter.
            for block in 0..slots {
                let byte = u8::try_from(rng.below(255)).expect("below 255") + 1;
                let operation = match rng.below(4) {
                    0 if round > 0 => Operation::Read { file, offset: block * BLOCK, buffer: filled(0, 1) },
                    draw => {
                        model[usize::try_from(block).expect("small")] = byte;
                        let durability =
                            if round % 5 == 0 { DURABILITIES[(draw % 3) as usize] } else { Durability::None };
                        write(file, block, byte, 1, durability)
                    }
                };
                disk.submit(Token(block), operation);
            }
            let mut completions: Vec<Completion> = Vec::new();
            while completions.len() < model.len() {
                disk.wait(Wait::AtMostUs(1_000_000), &mut completions);
            }
            completions.sort_by_key(|completion| completion.token);
            for (block, completion) in completions.into_iter().enumerate() {
                assert_eq!(completion.token, Token(block as u64));
                assert_eq!(completion.result.expect("it succeeds"), Outcome::Bytes(BLOCK_BYTES));
                let buffer = completion.buffer.expect("the buffer comes back");
                assert!(buffer.iter().all(|byte| *byte == model[block]), "round {round}, block {block}");
                disk.recycle(buffer);
            }
        }
    });
}

#[test]
fn an_urgent_sync_completes_however_the_caller_waits() {
    on_every_backend(|mut disk| {
        let (one, other) = (create(disk.as_mut(), "one"), create(disk.as_mut(), "other"));
        for wait in [Wait::No, Wait::AtMostUs(1_000_000)] {
            // A write beside them, and two syncs of one file.
            let buffer = disk.buffer(BLOCK_BYTES);
            let write = Operation::Write { file: other, offset: 0, buffer, durability: Durability::None };
            disk.submit(Token(0), write);
            for (token, file) in [(1, one), (2, one), (3, other)] {
                disk.submit(Token(token), Operation::SyncUrgent { file });
            }
            let mut completions = Vec::new();
            disk.wait(wait, &mut completions);
            while completions.len() < 4 {
                disk.wait(Wait::AtMostUs(1_000_000), &mut completions);
            }
            completions.sort_by_key(|completion| completion.token);
            for (number, completion) in completions.into_iter().enumerate() {
                assert_eq!(completion.token, Token(number as u64));
                completion.result.expect("it succeeds");
            }
        }
        // The file stays open until its sync is done.
        disk.submit(Token(4), Operation::SyncUrgent { file: one });
        disk.submit(Token(5), Operation::Close { file: one });
        let mut completions = Vec::new();
        while completions.len() < 2 {
            disk.wait(Wait::AtMostUs(1_000_000), &mut completions);
        }
        assert!(completions.iter().all(|completion| completion.result.is_ok()), "{completions:?}");
    });
}

#[test]
fn one_operation_too_many_stops_the_process() {
    on_every_backend(|mut disk| {
        let file = create(disk.as_mut(), "file");
        let submit_all = std::panic::AssertUnwindSafe(|| {
            for token in 0..=disk.in_flight_max() as u64 {
                disk.submit(Token(token), Operation::Sync { file });
            }
        });
        let panic = std::panic::catch_unwind(submit_all).expect_err("one too many");
        let text = panic.downcast_ref::<String>().expect("a message");
        assert!(text.contains("64"), "{text}");
    });
}

#[test]
fn a_wait_ends_at_its_limit_and_a_poll_at_once() {
    on_every_backend(|mut disk| {
        let mut completions = Vec::new();
        let start_us = disk.now_us();
        disk.wait(Wait::AtMostUs(20_000), &mut completions);
        let waited_us = disk.now_us() - start_us;
        assert!(waited_us >= 20_000, "waited {waited_us} us");
        let start_us = disk.now_us();
        disk.wait(Wait::No, &mut completions);
        disk.waker()();
        disk.wait(Wait::AtMostUs(10_000_000), &mut completions);
        let waited_us = disk.now_us() - start_us;
        assert!(waited_us < 5_000_000, "a wake before the wait ends it; waited {waited_us} us");
        assert!(completions.is_empty());
    });
}

#[test]
fn a_poll_finds_what_has_completed() {
    on_every_backend(|mut disk| {
        let file = create(disk.as_mut(), "file");
        disk.submit(Token(1), write(file, 0, 1, 1, Durability::Synced));
        let mut completions = Vec::new();
        while completions.is_empty() {
            disk.wait(Wait::No, &mut completions);
        }
        assert_eq!(completions.len(), 1);
    });
}

#[test]
fn no_wake_is_lost_between_a_look_and_a_sleep() {
    on_every_kernel_backend(|mut disk, _| {
        const ROUNDS: u64 = 20_000;
        const LIMIT_US: u64 = 30_000_000;
        let (asked, answered) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let waker = disk.waker();
        let asker = {
            let (asked, answered) = (asked.clone(), answered.clone());
            std::thread::spawn(move || {
                for round in 1..=ROUNDS {
                    asked.store(round, Ordering::Release);
                    waker();
                    while answered.load(Ordering::Acquire) < round {
                        std::hint::spin_loop();
                        std::thread::yield_now();
                    }
                }
            })
        };
        let mut completions = Vec::new();
        while answered.load(Ordering::Relaxed) < ROUNDS {
            let start_us = disk.now_us();
            let before = answered.load(Ordering::Relaxed);
            if asked.load(Ordering::Acquire) == before {
                disk.wait(Wait::AtMostUs(LIMIT_US), &mut completions);
            }
            assert!(disk.now_us() - start_us < LIMIT_US / 2, "a wake was lost");
            answered.store(asked.load(Ordering::Acquire), Ordering::Release);
        }
        asker.join().expect("the asker ends");
    });
}

#[test]
fn a_disk_recovers_on_one_thread_and_serves_on_another() {
    on_every_kernel_backend(|mut disk, _| {
        let file = create(disk.as_mut(), "file");
        done(disk.as_mut(), write(file, 0, 1, 1, Durability::Synced));
        let waker = disk.waker();
        let (serving, served) = std::sync::mpsc::channel();
        let mut disk = std::thread::scope(|scope| {
            let serve = scope.spawn(move || {
                done(disk.as_mut(), write(file, 1, 2, 1, Durability::Synced));
                serving.send(()).expect("the test listens");
                let start_us = disk.now_us();
                disk.wait(Wait::AtMostUs(60_000_000), &mut Vec::new());
                assert!(disk.now_us() - start_us < 30_000_000, "the waker works whichever thread waits");
                disk
            });
            served.recv().expect("it serves");
            waker();
            serve.join().expect("no panic")
        });
        assert_eq!(read(disk.as_mut(), file, 1, 1), vec![2; BLOCK_BYTES]);
    });
}

#[test]
fn dropping_a_disk_ends_what_is_in_flight_and_then_frees_the_directory() {
    for choice in [BackendChoice::Auto, BackendChoice::Syscall] {
        let directory = tempfile::tempdir().expect("a directory");
        for round in 0..20_u8 {
            let lock = DirLock::acquire(directory.path(), Duration::ZERO, |_| ()).expect("the lock is free");
            let mut disk = announced(open_backend(directory.path(), Some(&lock), choice).expect("a backend"));
            drop(lock);
            DirLock::acquire(directory.path(), Duration::ZERO, |_| ()).expect_err("the disk still holds it");
            let disk = disk.as_mut();
            let file = match round {
                0 => create(disk, "file"),
                _ => open(disk, "file", Open::Existing),
            };
            if round > 0 {
                assert_eq!(read(disk, file, 0, 64), vec![round; 64 * BLOCK_BYTES]);
            }
            for block in 0..64 {
                disk.submit(Token(block), write(file, block, round + 1, 1, Durability::Synced));
            }
        }
    }
}

#[test]
fn a_syscall_backend_is_had_by_asking_and_says_so() {
    let directory = tempfile::tempdir().expect("a directory");
    let backend = open_backend(directory.path(), None, BackendChoice::Syscall).expect("a backend").backend();
    assert_eq!(backend.name, "syscall");
    assert!(backend.detail.contains("as asked"), "{}", backend.detail);
    let missing = open_backend(&directory.path().join("none"), None, BackendChoice::Auto);
    assert_eq!(missing.err().expect("no directory, no backend").kind, IoErrorKind::NotFound);
}
