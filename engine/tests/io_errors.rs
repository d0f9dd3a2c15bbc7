//! Errors of a real kernel, on both backends that have one: a full disk, and a write that is cut short.
//!
//! Each claim runs in a child process, because what provokes the error (a small file system in a mount namespace of
//! its own, a limit on the size of files) must not touch the other tests.
use std::path::Path;
use std::process::Command;
use sternpost_engine::io::{
    BackendChoice, Completion, Durability, FileId, Io, IoBuffer, IoErrorKind, Open, Operation, Outcome,
    Token, Wait,
    disk::{BLOCK_BYTES, run},
    open_backend,
};

const CHILD_DIRECTORY: &str = "STERNPOST_IO_ERRORS_CHILD";

/// Runs one test of this file in a child, behind a line of shell that ends by executing `"$@"`. False if the shell
/// could not set the scene.
fn in_child(test: &str, directory: &Path, program: &[&str]) -> bool {
    const CANNOT: i32 = 77;
    let this = std::env::current_exe().expect("this test");
    let output = Command::new(program[0])
        .args(&program[1..])
        .arg(this)
        .args(["--exact", test, "--nocapture"])
        .env(CHILD_DIRECTORY, directory)
        .output();
    let Ok(output) = output else { return false };
    println!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let set = output.status.code() != Some(CANNOT) && !output.stdout.is_empty();
    assert!(!set || output.status.success(), "the child failed");
    set
}

/// The child's directory; `None` in the parent.
fn child_directory() -> Option<std::path::PathBuf> {
    std::env::var_os(CHILD_DIRECTORY).map(Into::into)
}

fn on_both(directory: &Path, claim: impl Fn(&mut dyn Io, FileId)) {
    for (choice, name) in [(BackendChoice::Auto, "a"), (BackendChoice::Syscall, "b")] {
        let mut disk = open_backend(directory, None, choice).expect("a backend");
        println!("{:?}", disk.backend());
        let opened = run(disk.as_mut(), Operation::Open { path: name.into(), open: Open::CreateNew });
        let Ok((Outcome::Opened(file), None)) = opened else { panic!("open gave {opened:?}") };
        claim(disk.as_mut(), file);
        run(disk.as_mut(), Operation::Close { file }).expect("a close");
        run(disk.as_mut(), Operation::Unlink { path: name.into() }).expect("an unlink");
    }
}

/// Writes `blocks` blocks at `block` and returns all of the completion: the buffer must come back.
fn write(disk: &mut dyn Io, file: FileId, block: u64, blocks: usize, durability: Durability) -> Completion {
    let mut buffer = IoBuffer::zeroed(blocks * BLOCK_BYTES);
    buffer.fill(7);
    let offset = block * BLOCK_BYTES as u64;
    disk.submit(Token(1), Operation::Write { file, offset, buffer, durability });
    let mut completions = Vec::new();
    while completions.is_empty() {
        disk.wait(Wait::AtMostUs(1_000_000), &mut completions);
    }
    assert_eq!(completions.len(), 1);
    let completion = completions.remove(0);
    assert_eq!(completion.buffer.as_ref().map(|buffer| buffer.len()), Some(blocks * BLOCK_BYTES));
    completion
}

#[test]
fn a_full_disk_is_no_space_and_the_device_goes_on() {
    let Some(directory) = child_directory() else {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().display().to_string();
        let script = format!("mount -t tmpfs -o size=1m none '{path}' || exit 77; exec \"$@\"");
        let unshare = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", &script, "sh"];
        if !in_child("a_full_disk_is_no_space_and_the_device_goes_on", directory.path(), &unshare) {
            println!("NOT CHECKED: no mount namespace can be had here");
        }
        return;
    };
    on_both(&directory, |disk, file| {
        for durability in [Durability::None, Durability::Synced, Durability::Dsync] {
            let error = write(disk, file, 0, 512, durability).result.expect_err("2 MiB do not fit");
            assert_eq!(error.kind, IoErrorKind::NoSpace, "{durability:?}: {error}");
            assert!(error.what.starts_with("write 2097152 bytes at 0 of "), "{error}");
        }
        // What is allocated can still be written, and read back.
        write(disk, file, 0, 16, Durability::Synced).result.expect("its blocks are there");
    });
}

#[test]
fn a_write_that_is_cut_short_fails_with_the_reason() {
    let Some(directory) = child_directory() else {
        let directory = tempfile::tempdir().expect("a directory");
        // 24 units of 512 bytes (POSIX) are three blocks; without the trap the signal would end the child.
        let shell = ["sh", "-c", "trap '' XFSZ; ulimit -f 24 || exit 77; exec \"$@\"", "sh"];
        assert!(in_child("a_write_that_is_cut_short_fails_with_the_reason", directory.path(), &shell));
        return;
    };
    on_both(&directory, |disk, file| {
        for durability in [Durability::None, Durability::Synced, Durability::Dsync] {
            let error = write(disk, file, 0, 8, durability).result.expect_err("the limit is three blocks");
            assert_eq!(error.kind, IoErrorKind::Device, "{error}");
            assert!(error.cause.contains("too large"), "{durability:?}: {error}");
            write(disk, file, 0, 3, durability).result.expect("three blocks are allowed");
            let error = write(disk, file, 3, 1, durability).result.expect_err("and no fourth");
            assert!(error.cause.contains("too large"), "{durability:?}: {error}");
        }
    });
}
