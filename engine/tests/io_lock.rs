//! A killed process holds its directory until the last of its writes has landed (corrections E1).
//!
//! The story: the lock was an ordinary file lock, which the kernel frees when it has closed the files of a dead
//! process. Its io_uring goes on for some time after that. A successor took the lock, found the end of the log,
//! acknowledged a group there, and a write of its predecessor landed on it: 10 of 12 kills with 192 MiB in flight, up
//! to 58 ms later. Each ring now registers the lock's descriptor, and the lock lives as long as the ring.
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;
use sternpost_engine::io::dir_lock::{DirLock, SERVER_WAIT};
use sternpost_engine::io::{
    BackendChoice, Completion, Durability, FileId, Io, IoBuffer, Open, Operation, Outcome, Token, Wait,
    disk::{BLOCK_BYTES, run},
    open_backend,
};

const CHILD_DIRECTORY: &str = "STERNPOST_IO_LOCK_CHILD";
const CHILD_BACKEND: &str = "STERNPOST_IO_LOCK_BACKEND";
/// "1" leaves the lock out of the backend: to see that the test notices.
const CHILD_UNPROTECTED: &str = "STERNPOST_IO_LOCK_UNPROTECTED";

const GROUP_BYTES: usize = 1 << 20;
const GROUPS: u64 = 64;

/// Fills the successor's blocks. No number of a group looks like it.
const MARK: u8 = 0xee;

/// Not a claim: the process that is killed. Without its variables it does nothing.
#[test]
fn child_that_writes_until_it_is_killed() {
    let Ok(directory) = std::env::var(CHILD_DIRECTORY) else { return };
    let choice = match std::env::var(CHILD_BACKEND).as_deref() {
        Ok("syscall") => BackendChoice::Syscall,
        _ => BackendChoice::Auto,
    };
    let directory = Path::new(&directory);
    let lock = DirLock::acquire(directory, SERVER_WAIT, |_| ()).expect("the lock");
    let protected = std::env::var(CHILD_UNPROTECTED).is_err();
    let mut disk = open_backend(directory, protected.then_some(&lock), choice).expect("a backend");
    let disk = disk.as_mut();
    let name = "groups";
    let opened = match run(disk, Operation::Open { path: name.into(), open: Open::CreateNew }) {
        Ok((opened, _)) => opened,
        Err(_) => run(disk, Operation::Open { path: name.into(), open: Open::Existing }).expect("the file").0,
    };
    let Outcome::Opened(file) = opened else { panic!("open gave {opened:?}") };
    let group = |number: u64| {
        let mut buffer = IoBuffer::zeroed(GROUP_BYTES);
        buffer.chunks_mut(BLOCK_BYTES).for_each(|block| block[..8].copy_from_slice(&number.to_le_bytes()));
        let offset = number % GROUPS * GROUP_BYTES as u64;
        Operation::Write { file, offset, buffer, durability: Durability::None }
    };
    let mut completions: Vec<Completion> = Vec::new();
    let mut in_flight = 0;
    for number in 1.. {
        disk.submit(Token(number), group(number));
        in_flight += 1;
        while in_flight == GROUPS {
            disk.wait(Wait::AtMostUs(1_000_000), &mut completions);
            for completion in completions.drain(..) {
                completion.result.expect("a write");
                in_flight -= 1;
            }
        }
        if number % GROUPS == 0 {
            let mut out = std::io::stdout();
            writeln!(out, "round {}", disk.backend().name)
                .and_then(|()| out.flush())
                .expect("the parent listens");
        }
    }
}

#[test]
fn the_lock_of_a_killed_process_outlives_its_writes() {
    for choice in [BackendChoice::Auto, BackendChoice::Syscall] {
        let directory = tempfile::tempdir().expect("a directory");
        let (mut ghosts, mut waits) = (0, 0);
        let mut backend = String::new();
        for kill in 0..4 {
            backend = kill_a_writer(directory.path(), choice, 2 + kill % 2);
            // As a server does: at once, with patience.
            let mut waited = false;
            let lock = DirLock::acquire(directory.path(), SERVER_WAIT, |_| waited = true).expect("the lock");
            let mut disk = open_backend(directory.path(), Some(&lock), choice).expect("a backend");
            // The successor's own groups, acknowledged; then time for ghosts to show.
            write_marks(disk.as_mut());
            disk.wait(Wait::AtMostUs(150_000), &mut Vec::new());
            let destroyed = GROUPS - marks_left(disk.as_mut());
            println!("{backend}, kill {kill}: waited for the lock {waited}, groups destroyed {destroyed}");
            ghosts += destroyed;
            waits += u64::from(waited);
        }
        assert_eq!(ghosts, 0, "writes of a dead process landed after its lock was free");
        // 64 MiB are in flight at each kill, which takes the disk tens of milliseconds; an ordinary file lock is free
        // within one. A thread's call ends before its process does, so there is nothing to wait for there.
        if backend == "io_uring" {
            assert!(waits > 0, "no lock outlived its process by the writes in flight");
        }
    }
}

/// Starts the child, lets it write some rounds, kills it in the middle of the next and reaps it. Name of its backend.
fn kill_a_writer(directory: &Path, choice: BackendChoice, rounds: usize) -> String {
    let mut child = Command::new(std::env::current_exe().expect("this test"))
        .args(["--exact", "child_that_writes_until_it_is_killed", "--nocapture"])
        .env(CHILD_DIRECTORY, directory)
        .env(CHILD_BACKEND, if choice == BackendChoice::Syscall { "syscall" } else { "auto" })
        .stdout(Stdio::piped())
        .spawn()
        .expect("a child");
    let lines = BufReader::new(child.stdout.take().expect("its output")).lines();
    let seen = lines.map_while(Result::ok).filter(|line| line.contains("round ")).nth(rounds - 1);
    child.kill().expect("it is alive");
    child.wait().expect("it ends");
    seen.expect("the child wrote").split("round ").last().unwrap_or_default().to_string()
}

fn open(disk: &mut dyn Io) -> FileId {
    let opened =
        run(disk, Operation::Open { path: "groups".into(), open: Open::Existing }).expect("the file");
    let Outcome::Opened(file) = opened.0 else { panic!("open gave {opened:?}") };
    file
}

/// Offset of the last block of a group, which its write reaches last.
fn mark_offset(group: u64) -> u64 {
    (group + 1) * GROUP_BYTES as u64 - BLOCK_BYTES as u64
}

/// Writes and syncs one block into each group, all at once.
fn write_marks(disk: &mut dyn Io) {
    let file = open(disk);
    for group in 0..GROUPS {
        let mut buffer = disk.buffer(BLOCK_BYTES);
        buffer.fill(MARK);
        let (offset, durability) = (mark_offset(group), Durability::Synced);
        disk.submit(Token(group), Operation::Write { file, offset, buffer, durability });
    }
    let mut completions = Vec::new();
    while completions.len() < GROUPS as usize {
        disk.wait(Wait::AtMostUs(1_000_000), &mut completions);
    }
    completions.into_iter().for_each(|completion| drop(completion.result.expect("a write")));
    run(disk, Operation::Close { file }).expect("a close");
}

/// How many of them are still there.
fn marks_left(disk: &mut dyn Io) -> u64 {
    let file = open(disk);
    let mut left = 0;
    for group in 0..GROUPS {
        let (offset, buffer) = (mark_offset(group), disk.buffer(BLOCK_BYTES));
        let read = run(disk, Operation::Read { file, offset, buffer });
        let Ok((Outcome::Bytes(BLOCK_BYTES), Some(buffer))) = read else { panic!("read gave {read:?}") };
        left += u64::from(buffer.iter().all(|byte| *byte == MARK));
    }
    run(disk, Operation::Close { file }).expect("a close");
    left
}

#[test]
fn a_lock_that_is_held_is_refused_with_the_pid_of_the_holder() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut child = Command::new(std::env::current_exe().expect("this test"))
        .args(["--exact", "child_that_writes_until_it_is_killed", "--nocapture"])
        .env(CHILD_DIRECTORY, directory.path())
        .stdout(Stdio::piped())
        .spawn()
        .expect("a child");
    let lines = BufReader::new(child.stdout.take().expect("its output")).lines();
    lines.map_while(Result::ok).find(|line| line.contains("round ")).expect("the child wrote");
    let refused = DirLock::acquire(directory.path(), Duration::ZERO, |_| ()).expect_err("it is taken");
    child.kill().expect("it is alive");
    assert!(refused.to_string().contains(&format!("process {}", child.id())), "{refused}");
    child.wait().expect("it ends");
}
