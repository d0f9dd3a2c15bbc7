//! What is written through `Io` is read through `Files`: on the simulated disk, and on both kernel backends in one
//! directory with them.
use std::path::Path;
use std::sync::Arc;
use sternpost_engine::io::fault_plan::{Effect, Fault, OperationKind};
use sternpost_engine::io::sim_disk::{CrashPolicy, SimDisk};
use sternpost_engine::io::{
    BackendChoice, Durability, FileId, Files, Io, IoBuffer, IoErrorKind, Open, Operation, Outcome, ReadFile,
    disk::{BLOCK_BYTES, run},
    open_backend, open_files,
};

const BLOCK: u64 = BLOCK_BYTES as u64;

/// Runs a claim on every backend that can be had here, each with the files of its directory.
fn on_every_backend(claim: impl Fn(&mut dyn Io, &dyn Files)) {
    let mut simulated = SimDisk::new(1);
    let files = simulated.clone();
    claim(&mut simulated, &files);
    for choice in [BackendChoice::Auto, BackendChoice::Syscall] {
        let directory = tempfile::tempdir().expect("a directory");
        let mut disk = open_backend(directory.path(), None, choice).expect("a backend");
        println!("{:?}", disk.backend());
        let files = open_files(directory.path()).expect("the directory");
        claim(disk.as_mut(), files.as_ref());
    }
}

fn done(disk: &mut dyn Io, operation: Operation) -> Outcome {
    run(disk, operation).expect("the operation succeeds").0
}

fn create(disk: &mut dyn Io, path: &str) -> FileId {
    match done(disk, Operation::Open { path: path.into(), open: Open::CreateNew }) {
        Outcome::Opened(file) => file,
        other => panic!("open gave {other:?}"),
    }
}

fn write(disk: &mut dyn Io, file: FileId, block: u64, byte: u8, blocks: usize) {
    let mut buffer = IoBuffer::zeroed(blocks * BLOCK_BYTES);
    buffer.fill(byte);
    let (offset, durability) = (block * BLOCK, Durability::None);
    done(disk, Operation::Write { file, offset, buffer, durability });
}

fn open(files: &dyn Files, path: &str) -> Arc<dyn ReadFile> {
    files.open(Path::new(path)).expect("the file is there")
}

#[track_caller]
fn assert_read(file: &dyn ReadFile, block: u64, blocks: usize, expected: &[u8]) {
    let bytes = file.read(block * BLOCK, blocks * BLOCK_BYTES).expect("a read");
    assert_eq!(bytes.as_ptr() as usize % BLOCK_BYTES, 0);
    let expected: Vec<u8> = expected.iter().flat_map(|byte| [*byte; BLOCK_BYTES]).collect();
    assert!(*bytes == expected[..], "{} bytes at block {block} of {}", bytes.len(), file.path());
}

#[test]
fn a_write_that_completed_is_read_before_and_after_its_sync() {
    on_every_backend(|disk, files| {
        done(disk, Operation::CreateDirectory { path: "seg".into() });
        let file = create(disk, "seg/1");
        write(disk, file, 0, 1, 2);
        write(disk, file, 2, 2, 1);
        let reader = open(files, "seg/1");
        assert_eq!(reader.path(), "seg/1");
        assert_read(reader.as_ref(), 0, 3, &[1, 1, 2]);
        write(disk, file, 3, 3, 1);
        assert_read(reader.as_ref(), 2, 2, &[2, 3]);
        done(disk, Operation::Sync { file });
        done(disk, Operation::Close { file });
        assert_read(reader.as_ref(), 1, 3, &[1, 2, 3]);
        assert_read(open(files, "seg/1").as_ref(), 0, 4, &[1, 1, 2, 3]);
    });
}

#[test]
fn a_read_is_short_only_at_the_end_of_the_file() {
    on_every_backend(|disk, files| {
        let file = create(disk, "file");
        let reader = open(files, "file");
        assert_read(reader.as_ref(), 0, 1, &[]);
        write(disk, file, 0, 1, 3);
        assert_read(reader.as_ref(), 0, 0, &[]);
        assert_read(reader.as_ref(), 1, 5, &[1, 1]);
        assert_read(reader.as_ref(), 2, 1024, &[1]);
        assert_read(reader.as_ref(), 3, 1, &[]);
        assert_read(reader.as_ref(), 1 << 30, 1, &[]);
    });
}

#[test]
fn an_open_file_outlives_its_name_and_a_missing_one_is_not_found() {
    on_every_backend(|disk, files| {
        let file = create(disk, "file");
        write(disk, file, 0, 1, 1);
        done(disk, Operation::Close { file });
        let reader = open(files, "file");
        done(disk, Operation::Unlink { path: "file".into() });
        done(disk, Operation::SyncDirectory { path: "".into() });
        assert_read(reader.as_ref(), 0, 1, &[1]);
        let other = create(disk, "file");
        write(disk, other, 0, 2, 1);
        assert_read(reader.as_ref(), 0, 1, &[1]);
        assert_read(open(files, "file").as_ref(), 0, 1, &[2]);
        for path in ["none", "no/file"] {
            let error = files.open(Path::new(path)).err().expect("it is not there");
            assert_eq!((error.kind, error.what), (IoErrorKind::NotFound, format!("open {path}")));
        }
    });
}

#[test]
fn a_path_that_leads_out_of_the_directory_stops_the_process() {
    on_every_backend(|_, files| {
        for path in ["../file", "/file", "seg/../../file"] {
            let open = std::panic::AssertUnwindSafe(|| files.open(Path::new(path)).map(|_| ()));
            assert!(std::panic::catch_unwind(open).is_err(), "{path}");
        }
    });
}

#[test]
fn readers_on_many_threads_see_all_that_was_written_while_the_device_writes_on() {
    const BLOCKS: u8 = 100;
    on_every_backend(|disk, files| {
        let file = create(disk, "file");
        let reader = open(files, "file");
        let written = std::sync::atomic::AtomicU8::new(0);
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    let mut seen = 0;
                    while seen < BLOCKS {
                        seen = written.load(std::sync::atomic::Ordering::Acquire);
                        for block in 0..seen {
                            assert_read(reader.as_ref(), u64::from(block), 1, &[block]);
                        }
                        std::thread::yield_now();
                    }
                });
            }
            for block in 0..BLOCKS {
                write(disk, file, u64::from(block), block, 1);
                written.store(block + 1, std::sync::atomic::Ordering::Release);
            }
        });
    });
}

#[test]
fn ring_threads_and_files_work_in_one_directory() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut backends = [BackendChoice::Auto, BackendChoice::Syscall]
        .map(|choice| open_backend(directory.path(), None, choice).expect("a backend"));
    let files = open_files(directory.path()).expect("the directory");
    for round in 0..10_u8 {
        for (number, disk) in backends.iter_mut().enumerate() {
            let path = format!("{round}-{number}");
            let file = create(disk.as_mut(), &path);
            write(disk.as_mut(), file, 0, round, 2);
            let reader = open(files.as_ref(), &path);
            assert_read(reader.as_ref(), 0, 2, &[round, round]);
            done(disk.as_mut(), Operation::Close { file });
        }
        // What one has made, the other removes.
        for (number, disk) in backends.iter_mut().rev().enumerate() {
            let path = format!("{round}-{number}");
            let reader = open(files.as_ref(), &path);
            done(disk.as_mut(), Operation::Unlink { path: path.as_str().into() });
            assert_read(reader.as_ref(), 1, 1, &[round]);
        }
    }
}

#[test]
fn the_plan_of_faults_hits_blocking_reads_and_opens_by_their_path() {
    let disk = SimDisk::new(1);
    disk.put_file("seg/1", &[1; BLOCK_BYTES]);
    disk.put_file("seg/2", &[2; BLOCK_BYTES]);
    disk.add_fault(Fault::nth(OperationKind::Open, 0, Effect::Fail).on("seg/2"));
    disk.add_fault(Fault::nth(OperationKind::Read, 1, Effect::Fail).on("seg/1"));
    disk.add_fault(Fault::nth(OperationKind::Read, 0, Effect::RottenRead { byte: 4097, bit: 1 }).on("seg/2"));
    let one = open(&disk, "seg/1");
    let error = disk.open(Path::new("seg/2")).err().expect("the planned fault");
    assert_eq!((error.kind, &error.what[..]), (IoErrorKind::Device, "open seg/2"));
    let two = open(&disk, "seg/2");
    assert_read(one.as_ref(), 0, 1, &[1]);
    let error = one.read(0, BLOCK_BYTES).expect_err("the planned fault");
    assert_eq!(error.to_string(), "read 4096 bytes at 0 of seg/1: Input/output error (simulated)");
    assert_read(one.as_ref(), 0, 1, &[1]);
    assert_eq!(two.read(0, BLOCK_BYTES).expect("a read")[..3], [2, 0, 2]);
    assert_read(two.as_ref(), 0, 1, &[2]);
}

#[test]
fn a_blocking_read_takes_no_simulated_time_is_no_step_and_sees_damage() {
    let disk = SimDisk::new(1);
    disk.put_file("file", &[1; BLOCK_BYTES]);
    let reader = open(&disk, "file");
    let before = (disk.steps(), Io::now_us(&disk));
    assert_read(reader.as_ref(), 0, 1, &[1]);
    assert!(disk.flip_bit("file", 7, 2));
    assert_eq!(reader.read(0, BLOCK_BYTES).expect("a read")[6..9], [1, 5, 1]);
    assert_eq!((disk.steps(), Io::now_us(&disk)), before);
}

#[test]
fn a_stopped_device_is_not_read_and_what_comes_of_it_is() {
    let mut disk = SimDisk::new(1);
    disk.put_file("file", &[1; BLOCK_BYTES]);
    let reader = open(&disk, "file");
    let file = create(&mut disk, "lost");
    write(&mut disk, file, 0, 2, 1);
    assert_read(open(&disk, "lost").as_ref(), 0, 1, &[2]);
    disk.stop_after(0);
    for error in [reader.read(0, BLOCK_BYTES).err(), disk.open(Path::new("file")).err()] {
        let error = error.expect("the power is off");
        assert_eq!((error.kind, &error.cause[..]), (IoErrorKind::Device, "the device has stopped"));
    }
    let next = disk.crash(&CrashPolicy::DropAll);
    assert_read(open(&next, "file").as_ref(), 0, 1, &[1]);
    assert_eq!(next.open(Path::new("lost")).err().expect("it was not synced").kind, IoErrorKind::NotFound);
    let next = disk.crash(&CrashPolicy::KeepAll);
    assert_read(open(&next, "lost").as_ref(), 0, 1, &[2]);
}

#[test]
fn the_space_of_an_unlinked_file_comes_back_when_its_last_reader_is_gone() {
    let mut disk = SimDisk::new(1);
    let file = create(&mut disk, "file");
    write(&mut disk, file, 0, 1, 2);
    done(&mut disk, Operation::Close { file });
    let (one, two) = (open(&disk, "file"), open(&disk, "file"));
    done(&mut disk, Operation::Unlink { path: "file".into() });
    drop(one);
    assert_eq!(disk.allocated_bytes(), 2 * BLOCK);
    assert_read(two.as_ref(), 0, 2, &[1, 1]);
    drop(two);
    assert_eq!(disk.allocated_bytes(), 0);
}
