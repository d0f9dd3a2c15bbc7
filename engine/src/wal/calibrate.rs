//! Which way of making groups durable is best on this device: measured, because it cannot be told from its name.
//!
//! The linked pair is good everywhere. A durable write (`RWF_DSYNC`) is one command, and the best, where the device
//! writes through or has forced unit access; elsewhere its second half runs in a kernel worker that may wait for a
//! processor. Plain write and sync one after the other wins nowhere on a ring, and is what a syscall backend does anyway.
//!
//! **Contract.** [`measure`] blocks for 512 writes per candidate, on an `Io` of its own with nothing else in flight: the
//! caller runs it on a thread in the background, once per device, and keeps the result in the superblock.
//! [`choose`] is a pure function of the measurements.
//!
//! **Why p99, and why a margin.** The median of all methods is alike; users see the tail. A change for less than a
//! fifth would follow the noise of the day.
use super::SyncMethod;
use crate::error::{Error, Result};
use crate::io::disk::{BLOCK_BYTES, run};
use crate::io::{Durability, FileId, Io, IoErrorKind, Open, Operation, Outcome};
use std::path::Path;

/// Writes per candidate.
pub const WRITES: usize = 512;
/// Writes of one candidate before the next one has its turn, so that a slow second hits all of them.
const TURN_WRITES: usize = 64;
const FILE_BYTES: usize = WRITES * BLOCK_BYTES;

/// Latencies of one candidate.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Measurement {
    /// The candidate.
    pub method: SyncMethod,
    /// Median of one durable write of 4 KiB, in microseconds.
    pub p50_us: u64,
    /// 99th percentile, in microseconds.
    pub p99_us: u64,
}

/// The method to use: the best by p99, if it beats `current` by at least a fifth; `current` otherwise.
pub fn choose(current: SyncMethod, measurements: &[Measurement]) -> SyncMethod {
    let Some(now) = measurements.iter().find(|measurement| measurement.method == current) else {
        return current;
    };
    match measurements.iter().min_by_key(|measurement| (measurement.p99_us, measurement.p50_us)) {
        Some(best)
            if best.p99_us < now.p99_us && best.p99_us.saturating_mul(5) <= now.p99_us.saturating_mul(4) =>
        {
            best.method
        }
        _ => current,
    }
}

/// Measures every method the backend has, in a scratch file that is made and removed.
///
/// # Errors
/// Whatever the device reports; the scratch file may be left then, and the next call replaces it.
pub fn measure(io: &mut dyn Io, scratch: &Path) -> Result<Vec<Measurement>> {
    match run(io, Operation::Unlink { path: scratch.to_path_buf() }) {
        Err(error) if error.kind != IoErrorKind::NotFound => return Err(error.into()),
        _ => {}
    }
    let open = Operation::Open { path: scratch.to_path_buf(), open: Open::CreateNew };
    let (Outcome::Opened(file), _) = run(io, open)? else { unreachable!("opening a file gives a file") };
    let measured = measure_in(io, file);
    run(io, Operation::Close { file })?;
    run(io, Operation::Unlink { path: scratch.to_path_buf() })?;
    measured
}

fn measure_in(io: &mut dyn Io, file: FileId) -> Result<Vec<Measurement>> {
    // The log never writes into extents that were not written before, so neither does this.
    let zeros = io.buffer(FILE_BYTES);
    let write = Operation::Write { file, offset: 0, buffer: zeros, durability: Durability::None };
    if let Some(buffer) = run(io, write)?.1 {
        io.recycle(buffer);
    }
    run(io, Operation::Sync { file })?;
    let mut methods = vec![SyncMethod::Linked, SyncMethod::Separate];
    if io.backend().dsync {
        methods.push(SyncMethod::Dsync);
    }
    let mut latencies = vec![Vec::with_capacity(WRITES); methods.len()];
    for turn in 0..WRITES / TURN_WRITES {
        for (method, latencies) in methods.iter().zip(&mut latencies) {
            for write in 0..TURN_WRITES {
                let offset = ((turn * TURN_WRITES + write) * BLOCK_BYTES) as u64;
                latencies.push(durable_write(io, file, offset, *method)?);
            }
        }
    }
    let result = methods.iter().zip(latencies).map(|(&method, mut latencies)| {
        latencies.sort_unstable();
        let at = |percent: usize| latencies[(latencies.len() * percent / 100).min(latencies.len() - 1)];
        Measurement { method, p50_us: at(50), p99_us: at(99) }
    });
    Ok(result.collect())
}

fn durable_write(io: &mut dyn Io, file: FileId, offset: u64, method: SyncMethod) -> Result<u64> {
    let buffer = io.buffer(BLOCK_BYTES);
    let durability = match method {
        SyncMethod::Linked => Durability::Synced,
        SyncMethod::Dsync => Durability::Dsync,
        SyncMethod::Separate => Durability::None,
    };
    let start_us = io.now_us();
    let (_, buffer) = run(io, Operation::Write { file, offset, buffer, durability }).map_err(Error::from)?;
    if method == SyncMethod::Separate {
        run(io, Operation::Sync { file })?;
    }
    let end_us = io.now_us();
    if let Some(buffer) = buffer {
        io.recycle(buffer);
    }
    Ok(end_us - start_us)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(linked_us: u64, dsync_us: u64, separate_us: u64) -> [Measurement; 3] {
        [(SyncMethod::Linked, linked_us), (SyncMethod::Dsync, dsync_us), (SyncMethod::Separate, separate_us)]
            .map(|(method, p99_us)| Measurement { method, p50_us: p99_us / 2, p99_us })
    }

    #[test]
    fn a_change_needs_a_gain_of_a_fifth_in_the_tail() {
        for (current, measurements, expected) in [
            (SyncMethod::Linked, measured(100, 81, 200), SyncMethod::Linked),
            (SyncMethod::Linked, measured(100, 80, 200), SyncMethod::Dsync),
            (SyncMethod::Dsync, measured(100, 90, 200), SyncMethod::Dsync),
            (SyncMethod::Dsync, measured(100, 4000, 90), SyncMethod::Separate),
            (SyncMethod::Separate, measured(0, 0, 0), SyncMethod::Separate),
        ] {
            assert_eq!(choose(current, &measurements), expected, "{current:?}, {measurements:?}");
        }
        assert_eq!(choose(SyncMethod::Dsync, &[]), SyncMethod::Dsync);
    }

    #[cfg(feature = "sim")]
    #[test]
    fn every_method_is_measured_and_nothing_is_left() {
        let mut disk = crate::io::sim_disk::SimDisk::new(1);
        disk.put_file("scratch", b"left by a run that died");
        let measured = measure(&mut disk, Path::new("scratch")).unwrap();
        assert_eq!(measured.len(), 3);
        assert!(measured.iter().all(|it| it.p50_us > 0 && it.p99_us >= it.p50_us), "{measured:?}");
        assert!(disk.files().is_empty());
    }
}
