//! What the device can do: the same 4 KiB durable writes by every method there is.
//!
//! Each measurement gets what the log's has: a new file that was filled with zeros once and synced, written from its start
//! with blocks that are not zeros. A file that earlier rounds wrote has its blocks where the device finds them faster, and a
//! device under a virtual machine may know zeros from other bytes.
use super::{Rate, now, us_since};
use std::fs::{File, OpenOptions};
use std::io::IoSlice;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::time::Instant;
use sternpost_engine::io::{
    BackendChoice, Durability, IoBuffer, Open, Operation, Outcome, Token, Wait, disk, open_backend,
};

const FILE: &str = "raw";
const FILE_BYTES: u64 = 64 << 20;
const BLOCK: usize = 4096;

/// One way to make a block durable.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Method {
    WriteSync,
    WriteDsync,
    RingLinked,
    RingDsync,
}

impl Method {
    pub(crate) const ALL: [Self; 4] = [Self::WriteSync, Self::WriteDsync, Self::RingLinked, Self::RingDsync];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::WriteSync => "pwrite, fdatasync",
            Self::WriteDsync => "pwritev2 RWF_DSYNC",
            Self::RingLinked => "ring, linked write and sync",
            Self::RingDsync => "ring, RWF_DSYNC",
        }
    }
}

fn open(scratch: &Path) -> Result<File, String> {
    let path = scratch.join(FILE);
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    let direct = i32::try_from(rustix::fs::OFlags::DIRECT.bits()).unwrap_or(0);
    let opened = options.clone().custom_flags(direct).open(&path).or_else(|_| options.open(&path));
    opened.map_err(|error| format!("open {}: {error}", path.display()))
}

/// Makes the file and writes it once, so that no later write changes metadata.
fn prewrite(scratch: &Path) -> Result<(), String> {
    let _ = std::fs::remove_file(scratch.join(FILE));
    let file = open(scratch)?;
    let zeros = IoBuffer::zeroed(1 << 20);
    for offset in (0..FILE_BYTES).step_by(zeros.len()) {
        file.write_all_at(&zeros, offset).map_err(|error| error.to_string())?;
    }
    file.sync_all().map_err(|error| error.to_string())
}

pub(crate) fn measure_raw(
    scratch: &Path,
    method: Method,
    depth: usize,
    operations: usize,
) -> Result<Rate, String> {
    prewrite(scratch)?;
    match method {
        Method::WriteSync | Method::WriteDsync => {
            by_calls(scratch, method == Method::WriteDsync, depth, operations)
        }
        Method::RingLinked => by_ring(scratch, Durability::Synced, depth, operations),
        Method::RingDsync => by_ring(scratch, Durability::Dsync, depth, operations),
    }
}

fn offset(operation: usize) -> u64 {
    (operation * BLOCK) as u64 % FILE_BYTES
}

/// `depth` threads, each with one write under way.
fn by_calls(scratch: &Path, dsync: bool, depth: usize, operations: usize) -> Result<Rate, String> {
    let started = now();
    let threads = (0..depth).map(|thread| {
        let file = open(scratch);
        std::thread::spawn(move || -> Result<Vec<u64>, String> {
            let file = file?;
            let mut block = IoBuffer::zeroed(BLOCK);
            block.fill(0x5a);
            let mut latencies_us = Vec::new();
            for operation in (thread..operations).step_by(depth) {
                let start = now();
                write_durably(&file, &block, offset(operation), dsync).map_err(|error| error.to_string())?;
                latencies_us.push(us_since(start));
            }
            Ok(latencies_us)
        })
    });
    let mut latencies_us = Vec::with_capacity(operations);
    for thread in threads.collect::<Vec<_>>() {
        latencies_us.extend(thread.join().map_err(|_| "a writing thread ended early")??);
    }
    Ok(Rate::of(started, latencies_us))
}

fn write_durably(file: &File, block: &[u8], offset: u64, dsync: bool) -> std::io::Result<()> {
    if !dsync {
        file.write_all_at(block, offset)?;
        return file.sync_data();
    }
    let written =
        rustix::io::pwritev2(file, &[IoSlice::new(block)], offset, rustix::io::ReadWriteFlags::DSYNC)?;
    if written == block.len() { Ok(()) } else { Err(std::io::ErrorKind::WriteZero.into()) }
}

/// One thread, `depth` operations in the ring.
fn by_ring(scratch: &Path, durability: Durability, depth: usize, operations: usize) -> Result<Rate, String> {
    let mut io = open_backend(scratch, None, BackendChoice::Ring).map_err(|error| error.to_string())?;
    let opened = disk::run(&mut *io, Operation::Open { path: FILE.into(), open: Open::Existing });
    let (Outcome::Opened(file), _) = opened.map_err(|error| error.to_string())? else {
        return Err("an open gives a file".into());
    };
    let mut completions = Vec::new();
    let mut latencies_us = Vec::with_capacity(operations);
    let mut starts: Vec<Option<Instant>> = vec![None; operations];
    let mut submitted = 0;
    let started = now();
    while latencies_us.len() < operations {
        while submitted < operations && submitted - latencies_us.len() < depth {
            let mut buffer = io.buffer(BLOCK);
            buffer.fill(0x5a);
            starts[submitted] = Some(now());
            let write = Operation::Write { file, offset: offset(submitted), buffer, durability };
            io.submit(Token(submitted as u64), write);
            submitted += 1;
        }
        io.wait(Wait::AtMostUs(1_000_000), &mut completions);
        for completion in completions.drain(..) {
            completion.result.map_err(|error| error.to_string())?;
            if let Some(start) = starts[completion.token.0 as usize] {
                latencies_us.push(us_since(start));
            }
            if let Some(buffer) = completion.buffer {
                io.recycle(buffer);
            }
        }
    }
    Ok(Rate::of(started, latencies_us))
}
