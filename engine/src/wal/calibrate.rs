//! Which way of making groups durable is best on this device: measured, because it cannot be told from its name.
//!
//! The linked pair is good everywhere with one group in flight. A durable write (`RWF_DSYNC`) is one command, and the best,
//! where the device writes through or has forced unit access; elsewhere its second half runs in a kernel worker that may
//! wait for a processor, but two of them overlap where two linked pairs take turns. A plain write and a sync that the driver
//! does itself are a pipeline of two stages without a kernel worker: the best with two in flight, and one wake-up more than a
//! durable write alone, hence the mixture.
//!
//! **Contract.** [`measure`] blocks for [`WRITES`] writes per candidate, half of them alone and half of them two at a
//! time, on an `Io` of its own with nothing else in flight: the caller runs it on a thread in the background, once per
//! device, and keeps the result in the superblock. [`choose`] is a pure function of the measurements.
//!
//! **Why these two numbers, and why a margin.** The median of all methods is alike. One client feels the tail of a lone
//! write; many clients feel how fast two groups in flight go through. A change for less than a fifth of either would
//! follow the noise of the day.
use super::SyncMethod;
use crate::error::{Error, Result};
use crate::io::disk::{BLOCK_BYTES, run};
use crate::io::{Completion, Durability, FileId, Io, IoErrorKind, Open, Operation, Outcome, Token, Wait};
use std::fmt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

/// Writes per candidate.
pub const WRITES: usize = 512;
/// Writes of one candidate before the next one has its turn, so that a slow second hits all of them.
const TURN_WRITES: usize = 64;
const FILE_BYTES: usize = WRITES * BLOCK_BYTES;
/// Writes in flight in the second half.
const PAIR: usize = 2;

/// Latencies of one candidate.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Measurement {
    /// The candidate.
    pub method: SyncMethod,
    /// Median of one durable write of 4 KiB alone, in microseconds.
    pub p50_us: u64,
    /// 99th percentile, in microseconds.
    pub p99_us: u64,
    /// Mean of one durable write of 4 KiB alone, in microseconds.
    pub alone_us: u64,
    /// Mean time for one more durable write while two are in flight, in microseconds.
    pub pair_us: u64,
}

impl fmt::Display for Measurement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { method, p50_us, p99_us, alone_us, pair_us } = self;
        write!(
            f,
            "{method}: p50 {p50_us} us, p99 {p99_us} us, mean {alone_us} us, {pair_us} us each in pairs"
        )
    }
}

/// The method to use. Another one than `current` if it gains at least a fifth: in the time of two in flight, with a tail
/// that is at most half as long again; or in the tail, without being slower with two in flight. Among those the one with the
/// least sum of both means.
pub fn choose(current: SyncMethod, measurements: &[Measurement]) -> SyncMethod {
    let Some(now) = measurements.iter().find(|measurement| measurement.method == current) else {
        return current;
    };
    let gains = |then: u64, now: u64| then < now && then.saturating_mul(5) <= now.saturating_mul(4);
    let better = |other: &&Measurement| {
        let in_pairs = gains(other.pair_us, now.pair_us)
            && other.p99_us.saturating_mul(2) <= now.p99_us.saturating_mul(3);
        let in_the_tail = gains(other.p99_us, now.p99_us) && other.pair_us <= now.pair_us;
        in_pairs || in_the_tail
    };
    let best =
        measurements.iter().filter(better).min_by_key(|other| (other.alone_us + other.pair_us, other.p99_us));
    best.map_or(current, |best| best.method)
}

/// Measures every method the backend has, in a scratch file that is made and removed; `None` if `stop` was set meanwhile.
///
/// # Errors
/// Whatever the device reports first. The scratch file is removed all the same if the device lets it; a file that a
/// process left which was killed is replaced.
pub fn measure(io: &mut dyn Io, scratch: &Path, stop: &AtomicBool) -> Result<Option<Vec<Measurement>>> {
    match run(io, Operation::Unlink { path: scratch.to_path_buf() }) {
        Err(error) if error.kind != IoErrorKind::NotFound => return Err(error.into()),
        _ => {}
    }
    let open = Operation::Open { path: scratch.to_path_buf(), open: Open::CreateNew };
    let (Outcome::Opened(file), _) = run(io, open)? else { unreachable!("opening a file gives a file") };
    let measured = measure_in(io, file, stop);
    let closed = run(io, Operation::Close { file });
    let removed = run(io, Operation::Unlink { path: scratch.to_path_buf() });
    let measured = measured?;
    closed?;
    removed?;
    Ok(measured)
}

/// What was timed of one method.
#[derive(Default)]
struct Times {
    alone_us: Vec<u64>,
    pairs_us: u64,
    pairs_writes: u64,
}

fn measure_in(io: &mut dyn Io, file: FileId, stop: &AtomicBool) -> Result<Option<Vec<Measurement>>> {
    // The log never writes into extents that were not written before, so neither does this.
    let zeros = io.buffer(FILE_BYTES);
    let write = Operation::Write { file, offset: 0, buffer: zeros, durability: Durability::None };
    if let Some(buffer) = run(io, write)?.1 {
        io.recycle(buffer);
    }
    run(io, Operation::Sync { file })?;
    let dsync = io.backend().dsync;
    let methods =
        SyncMethod::ALL.into_iter().filter(|method| method.on(dsync) == *method).collect::<Vec<_>>();
    let mut times: Vec<Times> = methods.iter().map(|_| Times::default()).collect();
    for turn in 0..WRITES / TURN_WRITES {
        for (&method, times) in methods.iter().zip(&mut times) {
            let in_flight_max = if turn % 2 == 0 { 1 } else { PAIR };
            let start_us = io.now_us();
            let alone_us = write_durably(io, file, turn * TURN_WRITES, method, in_flight_max, stop)?;
            if stop.load(Ordering::Relaxed) {
                return Ok(None);
            }
            if in_flight_max == 1 {
                times.alone_us.extend(alone_us);
            } else {
                times.pairs_us += io.now_us() - start_us;
                times.pairs_writes += TURN_WRITES as u64;
            }
        }
    }
    let result = methods.iter().zip(times).map(|(&method, mut times)| {
        times.alone_us.sort_unstable();
        let at =
            |percent: usize| times.alone_us.get(times.alone_us.len() * percent / 100).copied().unwrap_or(0);
        Measurement {
            method,
            p50_us: at(50),
            p99_us: at(99),
            alone_us: times.alone_us.iter().sum::<u64>() / times.alone_us.len().max(1) as u64,
            pair_us: times.pairs_us / times.pairs_writes.max(1),
        }
    });
    Ok(Some(result.collect()))
}

/// One turn: so many writes, one behind the other in the file; the time each took. Cut short when `stop` is set.
fn write_durably(
    io: &mut dyn Io,
    file: FileId,
    first: usize,
    method: SyncMethod,
    in_flight_max: usize,
    stop: &AtomicBool,
) -> Result<Vec<u64>> {
    // Tokens: twice the number of the write, and one more for its sync if that is an operation of its own.
    let mut starts_us = Vec::with_capacity(TURN_WRITES);
    let mut took_us = Vec::with_capacity(TURN_WRITES);
    let mut completions: Vec<Completion> = Vec::new();
    let mut failed = None;
    let mut in_flight = 0;
    let mut sync_follows = [false; TURN_WRITES];
    loop {
        let go_on = failed.is_none() && !stop.load(Ordering::Relaxed);
        while in_flight < in_flight_max && starts_us.len() < TURN_WRITES && go_on {
            let buffer = io.buffer(BLOCK_BYTES);
            let number = starts_us.len();
            let offset = ((first + number) * BLOCK_BYTES) as u64;
            starts_us.push(io.now_us());
            let durability;
            (durability, sync_follows[number]) = method.write(in_flight == 0);
            io.submit(Token(number as u64 * 2), Operation::Write { file, offset, buffer, durability });
            in_flight += 1;
        }
        if in_flight == 0 {
            break;
        }
        if io.is_stopped() {
            return Err(super::recovery_scan::stopped("measure the device"));
        }
        io.wait(Wait::AtMostUs(1_000_000), &mut completions);
        let now_us = io.now_us();
        for completion in completions.drain(..) {
            let Token(token) = completion.token;
            if let Some(buffer) = completion.buffer {
                io.recycle(buffer);
            }
            match completion.result {
                Err(error) => failed = Some(error),
                Ok(_) if token % 2 == 0 && sync_follows[(token / 2) as usize] && failed.is_none() => {
                    io.submit(Token(token + 1), Operation::SyncUrgent { file });
                    continue;
                }
                Ok(_) => took_us.push(now_us.saturating_sub(starts_us[(token / 2) as usize])),
            }
            in_flight -= 1;
        }
    }
    failed.map_or(Ok(took_us), |error| Err(Error::from(error)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use SyncMethod::{Dsync, Linked, Separate};

    #[test]
    fn a_change_needs_a_gain_of_a_fifth() {
        // Of linked, dsync and separate: the tail of one alone, the time of one in two.
        let measured = |tails_us: [u64; 3], pairs_us: [u64; 3]| {
            let of = |at: usize, method| {
                let (p99_us, pair_us) = (tails_us[at], pairs_us[at]);
                Measurement { method, p50_us: p99_us / 2, p99_us, alone_us: p99_us / 2, pair_us }
            };
            [of(0, Linked), of(1, Dsync), of(2, Separate)]
        };
        for (current, tails_us, pairs_us, expected) in [
            (Linked, [100, 81, 200], [100, 81, 200], Linked),
            (Linked, [100, 80, 200], [100, 100, 200], Dsync),
            (Linked, [100, 80, 200], [100, 101, 200], Linked),
            (Linked, [100, 100, 200], [100, 80, 200], Dsync),
            (Linked, [100, 150, 200], [100, 60, 200], Dsync),
            (Linked, [100, 151, 200], [100, 60, 200], Linked),
            (Linked, [100, 100, 100], [100, 80, 70], Separate),
            (Dsync, [90, 100, 100], [90, 100, 100], Dsync),
            (Separate, [0, 0, 0], [0, 0, 0], Separate),
        ] {
            let measurements = measured(tails_us, pairs_us);
            assert_eq!(choose(current, &measurements), expected, "{current:?}, {measurements:?}");
        }
        assert_eq!(choose(Dsync, &[]), Dsync);
    }

    #[cfg(feature = "sim")]
    #[test]
    fn every_method_is_measured_and_nothing_is_left() {
        let mut disk = crate::io::sim_disk::SimDisk::new(1);
        disk.put_file("scratch", b"left by a run that died");
        let go_on = AtomicBool::new(false);
        let measured = measure(&mut disk, Path::new("scratch"), &go_on).unwrap().unwrap();
        assert_eq!(measured.len(), SyncMethod::ALL.len());
        assert!(measured.iter().all(|it| it.p50_us > 0 && it.p99_us >= it.p50_us), "{measured:?}");
        assert!(measured.iter().all(|it| it.pair_us > 0), "{measured:?}");
        assert!(disk.files().is_empty());
        assert_eq!(measure(&mut disk, Path::new("scratch"), &AtomicBool::new(true)).unwrap(), None);
        assert!(disk.files().is_empty());
    }

    #[cfg(feature = "sim")]
    #[test]
    fn a_device_that_fails_is_an_error() {
        use crate::io::fault_plan::{Effect, Fault, OperationKind};
        for nth in [0, 1, 100, 700] {
            let mut disk = crate::io::sim_disk::SimDisk::new(1);
            disk.add_fault(Fault::nth(OperationKind::Write, nth, Effect::Fail));
            let measured = measure(&mut disk, Path::new("scratch"), &AtomicBool::new(false));
            assert!(matches!(measured, Err(Error::Io(_))), "write {nth}: {measured:?}");
        }
    }
}
