//! Two questions about the log, answered on the disk that holds the current directory (or `--dir`):
//!
//! - `wal`: how near do single durable 4 KiB groups come to what the device can do, with one and with two in flight?
//! - `wal replay`: how long does opening an embedded database with a 1 GiB log take?
//!
//! Rounds of the log and of every raw method alternate, so that a device that changes its mind hurts all alike; medians
//! are printed with their ratio. Needs a quiet machine.
mod raw;
mod replay;

use raw::{Method, measure_raw};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::AtomicBool;
use std::time::Instant;
use sternpost_engine::base::ids::{GroupId, Lsn};
use sternpost_engine::io::{BackendChoice, Io, Wait, open_backend};
use sternpost_engine::wal::calibrate;
use sternpost_engine::wal::format::GROUPS_IN_FLIGHT_MAX;
use sternpost_engine::wal::{RecordKind, RecordMeta, Reserve, SyncMethod, Wal, WalOptions};
use sternpost_engine::{Db, Options};

/// A record of this many bytes and its headers fill exactly one block.
const BODY_BYTES: usize = 4096 - 64 - 32;

/// Of the log that is measured: room for the default number of operations, and with the spares as many zeros before the
/// clock starts as each raw method writes. A device that has just taken 256 MiB is slower than one that took 64.
const SEGMENT_BYTES: u64 = 20 << 20;

struct Arguments {
    replay: bool,
    directory: PathBuf,
    operations: usize,
    rounds: usize,
    log_bytes: u64,
}

fn main() -> ExitCode {
    match parse().and_then(|arguments| run(&arguments)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("wal: {message}");
            ExitCode::FAILURE
        }
    }
}

fn parse() -> Result<Arguments, String> {
    let mut parsed = Arguments {
        replay: false,
        directory: PathBuf::from("."),
        operations: 4_000,
        rounds: 5,
        log_bytes: 1 << 30,
    };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or(format!("{word} needs a value"));
        let number = |text: String| text.parse().map_err(|_| format!("'{text}' is not a number"));
        match word.as_str() {
            "replay" => parsed.replay = true,
            "--dir" => parsed.directory = value()?.into(),
            "--operations" => parsed.operations = number(value()?)?,
            "--rounds" => parsed.rounds = number(value()?)?,
            "--log-mib" => parsed.log_bytes = (number(value()?)? as u64) << 20,
            _ => {
                return Err(format!(
                    "'{word}' is not known; usage: wal [replay] [--dir D] [--operations N] [--rounds N] [--log-mib N]"
                ));
            }
        }
    }
    Ok(parsed)
}

fn run(arguments: &Arguments) -> Result<(), String> {
    let scratch = arguments.directory.join(format!("wal-bench-{}", std::process::id()));
    std::fs::create_dir_all(&scratch).map_err(|error| format!("make {}: {error}", scratch.display()))?;
    let result = if arguments.replay {
        replay::measure(&scratch, arguments.log_bytes)
    } else {
        compare(&scratch, arguments)
    };
    let _ = std::fs::remove_dir_all(&scratch);
    result
}

/// One measurement: operations per second, and latencies in microseconds.
#[derive(Clone, Copy, Debug, Default)]
struct Rate {
    per_second: f64,
    p50_us: u64,
    p99_us: u64,
    max_us: u64,
}

impl Rate {
    fn of(started: Instant, mut latencies_us: Vec<u64>) -> Self {
        let seconds = started.elapsed().as_secs_f64();
        latencies_us.sort_unstable();
        let at = |share: f64| latencies_us.get(((latencies_us.len() - 1) as f64 * share) as usize).copied();
        Self {
            per_second: latencies_us.len() as f64 / seconds,
            p50_us: at(0.5).unwrap_or(0),
            p99_us: at(0.99).unwrap_or(0),
            max_us: latencies_us.last().copied().unwrap_or(0),
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "a benchmark measures time on the clock")]
fn now() -> Instant {
    Instant::now()
}

fn us_since(start: Instant) -> u64 {
    u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX)
}

/// A contestant: its name and how to measure a round of it.
type Contestant<'a> = (String, Box<dyn Fn() -> Result<Rate, String> + 'a>);

fn compare(scratch: &Path, arguments: &Arguments) -> Result<(), String> {
    for depth in [1, 2] {
        let mut contestants: Vec<Contestant<'_>> = Vec::new();
        for method in Method::ALL {
            let run = move || measure_raw(scratch, method, depth, arguments.operations);
            contestants.push((format!("raw: {}", method.name()), Box::new(run)));
        }
        let raw_count = contestants.len();
        for (name, choice, sync) in [
            ("log, ring, linked", BackendChoice::Ring, SyncMethod::Linked),
            ("log, ring, dsync", BackendChoice::Ring, SyncMethod::Dsync),
            ("log, ring, separate", BackendChoice::Ring, SyncMethod::Separate),
            ("log, ring, mixed", BackendChoice::Ring, SyncMethod::Mixed),
            ("log, threads, write and sync", BackendChoice::Syscall, SyncMethod::Linked),
            ("log, threads, dsync", BackendChoice::Syscall, SyncMethod::Dsync),
        ] {
            let run = move || measure_log(scratch, choice, sync, depth, arguments.operations);
            contestants.push((name.to_owned(), Box::new(run)));
        }
        if depth == 1 {
            let run = || measure_db(scratch, arguments.operations);
            contestants.push(("database: put of 4,000 B, another thread".to_owned(), Box::new(run)));
        }
        let mut rounds = vec![Vec::new(); contestants.len()];
        for round in 0..arguments.rounds {
            for (index, (name, run)) in contestants.iter().enumerate() {
                eprint!("\rdepth {depth}, round {} of {}: {name:50}", round + 1, arguments.rounds);
                match run() {
                    Ok(rate) => rounds[index].push(rate),
                    Err(message) => eprintln!("\n{name}: {message}"),
                }
            }
        }
        eprint!("\r{:90}\r", "");
        print_table(depth, &contestants, &rounds, raw_count);
    }
    print_calibration(scratch)
}

/// What `--wal-sync auto` comes to here.
fn print_calibration(scratch: &Path) -> Result<(), String> {
    println!();
    for choice in [BackendChoice::Ring, BackendChoice::Syscall] {
        let mut io = open_backend(scratch, None, choice).map_err(|error| error.to_string())?;
        let measured = calibrate::measure(&mut *io, Path::new("calibration"), &AtomicBool::new(false));
        let measured = measured.map_err(|error| error.to_string())?.unwrap_or_default();
        let chosen = calibrate::choose(SyncMethod::Linked, &measured);
        let shown = measured.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
        println!("calibration, {}: {chosen} ({shown})", io.backend().name);
    }
    Ok(())
}

fn print_table(depth: usize, contestants: &[Contestant<'_>], rounds: &[Vec<Rate>], raw_count: usize) {
    let medians = rounds.iter().map(|rates| median(rates)).collect::<Vec<_>>();
    let best_raw = medians[..raw_count].iter().map(|rate| rate.per_second).fold(0.0, f64::max);
    println!(
        "\n4 KiB durable writes, {depth} in flight, median of {} rounds\n",
        rounds.first().map_or(0, Vec::len)
    );
    println!("| what | per second | of the best raw | p50 us | p99 us | max us |");
    println!("|---|---|---|---|---|---|");
    for ((name, _), rate) in contestants.iter().zip(&medians) {
        println!(
            "| {name} | {:.0} | {:.2} | {} | {} | {} |",
            rate.per_second,
            rate.per_second / best_raw,
            rate.p50_us,
            rate.p99_us,
            rate.max_us
        );
    }
}

fn median(rates: &[Rate]) -> Rate {
    let mut sorted = rates.to_vec();
    sorted.sort_by(|a, b| a.per_second.total_cmp(&b.per_second));
    sorted.get(sorted.len() / 2).copied().unwrap_or_default()
}

/// The log alone, driven by the calling thread: from `append` to durable, `depth` groups in flight.
fn measure_log(
    scratch: &Path,
    choice: BackendChoice,
    sync: SyncMethod,
    depth: usize,
    operations: usize,
) -> Result<Rate, String> {
    let directory = scratch.join("log");
    let _ = std::fs::remove_dir_all(&directory);
    std::fs::create_dir_all(&directory).map_err(|error| error.to_string())?;
    let mut io = open_backend(&directory, None, choice).map_err(|error| error.to_string())?;
    let options = WalOptions {
        groups_in_flight_max: depth,
        sync,
        segment_bytes: SEGMENT_BYTES,
        ..WalOptions::default()
    };
    let files_ahead = options.spares_min + 1;
    let mut wal = Wal::create(&mut *io, [1; 16], options, 7).map_err(|error| error.to_string())?;
    let mut completions = Vec::new();
    let body = [0x5a_u8; BODY_BYTES];
    let meta = RecordMeta { kind: RecordKind::Batch, entry_type: 0, group: GroupId(0), term: 0, index: 1 };
    wal.append(meta, &body, Reserve::Ordinary).map_err(|error| error.to_string())?;
    // The next segment is prepared and the spares are filled before the clock starts: a log in service writes its
    // zeros once in its life, and this is about groups.
    while wal.stats().spares_count < files_ahead || wal.pending_bytes() > 0 {
        drive(&mut *io, &mut wal, &mut completions, Wait::AtMostUs(100_000));
    }
    let mut waiting: std::collections::VecDeque<(Lsn, Instant)> = std::collections::VecDeque::new();
    let mut latencies_us = Vec::with_capacity(operations);
    let started = now();
    let mut index = 1;
    while latencies_us.len() < operations {
        // So many at the device: a group that overtook another is done, and waits only for its acknowledgement.
        while wal.groups_in_flight() < depth
            && waiting.len() < GROUPS_IN_FLIGHT_MAX
            && (index as usize) <= operations
        {
            index += 1;
            let meta =
                RecordMeta { kind: RecordKind::Batch, entry_type: 0, group: GroupId(0), term: 0, index };
            let appended = now();
            let lsn = wal.append(meta, &body, Reserve::Ordinary).map_err(|error| error.to_string())?;
            wal.pump(&mut *io);
            waiting.push_back((lsn, appended));
        }
        drive(&mut *io, &mut wal, &mut completions, Wait::AtMostUs(1_000_000));
        let durable = wal.durable_lsn();
        while let Some((_, appended)) = waiting.pop_front_if(|(lsn, _)| *lsn < durable) {
            latencies_us.push(us_since(appended));
        }
        if let Some(reason) = wal.poisoned() {
            return Err(reason.to_owned());
        }
    }
    let rate = Rate::of(started, latencies_us);
    wal.close(&mut *io).map_err(|error| error.to_string())?;
    Ok(rate)
}

fn drive(
    io: &mut dyn Io,
    wal: &mut Wal,
    completions: &mut Vec<sternpost_engine::io::Completion>,
    wait: Wait,
) {
    wal.pump(io);
    io.wait(wait, completions);
    for completion in completions.drain(..) {
        assert!(wal.on_completion(io, completion).is_none(), "only the log submits here");
    }
    wal.pump(io);
}

/// Without a measurement of the device in the background, which would be measured here.
fn quiet() -> Options {
    Options::new().calibrate(false)
}

/// A put through the embedded database: the same group, and two hand-overs between threads.
fn measure_db(scratch: &Path, operations: usize) -> Result<Rate, String> {
    let directory = scratch.join("db");
    let _ = std::fs::remove_dir_all(&directory);
    let db = Db::open(&directory, quiet()).map_err(|error| error.to_string())?;
    let value = [0x5a_u8; 3_900];
    db.put("warm", value).map_err(|error| error.to_string())?;
    let mut latencies_us = Vec::with_capacity(operations);
    let started = now();
    for _ in 0..operations {
        let put = now();
        db.put("key", value).map_err(|error| error.to_string())?;
        latencies_us.push(us_since(put));
    }
    let rate = Rate::of(started, latencies_us);
    db.close().map_err(|error| error.to_string())?;
    Ok(rate)
}
