//! Seeds one after the other: `fuzz simulate SEED` for one, with `trace` behind it the last things that happened too; `fuzz simulate FIRST COUNT [FILE]` for many.
//!
//! **Resumable.** A campaign with a file appends a line for every hundred seeds that are done, and goes on behind the last one when it is started again: seed
//! behind the last that is done, and the digest of the digests so far.
use super::plan::Length;
use super::stats::Stats;
use super::trace::Trace;
use super::{mix, run};
use std::fs::OpenOptions;
use std::io::Write;
use std::time::Instant;

/// Seeds between two lines.
const LINE_SEEDS: u64 = 100;
const USAGE: &str =
    "usage: fuzz simulate <seed> [trace] | fuzz simulate <first seed> <count> [file to go on with]";

/// Carries out `simulate` with these arguments.
///
/// # Errors
/// What is wrong with the arguments, or what was found.
pub(crate) fn command(arguments: &[String]) -> Result<(), String> {
    let number = |index: usize| match arguments.get(index) {
        None => Ok(None),
        Some(text) => text.parse::<u64>().map(Some).map_err(|_| format!("'{text}' is no number; {USAGE}")),
    };
    let first = number(0)?.ok_or(USAGE)?;
    if arguments.get(1).is_some_and(|word| word == "trace") {
        return one(first, Trace::wanted());
    }
    match number(1)? {
        None => one(first, Trace::default()),
        Some(count) => many(first, count, arguments.get(2).map(String::as_str)),
    }
}

fn one(seed: u64, trace: Trace) -> Result<(), String> {
    let (digest, stats) =
        run(seed, Length::FULL, None, trace).map_err(|what| format!("seed {seed}: {what}"))?;
    println!("seed {seed}: digest {digest:016x}, {stats:?}");
    Ok(())
}

/// Where a campaign stands.
struct Progress {
    next: u64,
    digest: u64,
    failed: Vec<u64>,
}

fn many(first: u64, count: u64, file: Option<&str>) -> Result<(), String> {
    let mut progress = Progress { next: first, digest: 0, failed: Vec::new() };
    if let Some(text) = file.and_then(|file| std::fs::read_to_string(file).ok()) {
        text.lines().for_each(|line| read_line(line, &mut progress));
    }
    // What a broken invariant says is told with its seed.
    std::panic::set_hook(Box::new(|_| {}));
    #[expect(clippy::disallowed_methods, reason = "the speed of a campaign is in time on the clock")]
    let begun = Instant::now();
    let (begun_at, end) = (progress.next, first + count);
    let mut totals = Stats::default();
    while progress.next < end {
        let seed = progress.next;
        match run(seed, Length::FULL, None, Trace::default()) {
            Ok((digest, stats)) => {
                totals += stats;
                progress.digest = mix(progress.digest, digest);
            }
            Err(what) => {
                println!(
                    "seed {seed}: {what}\nreplay: cargo run --release -p sternpost-fuzz -- simulate {seed}"
                );
                progress.failed.push(seed);
            }
        }
        progress.next += 1;
        if progress.next.is_multiple_of(LINE_SEEDS) || progress.next == end {
            let per_minute = (progress.next - begun_at) as f64 / begun.elapsed().as_secs_f64() * 60.0;
            eprintln!(
                "{} of {count} seeds, {per_minute:.0} a minute, {} fail; so far {totals:?}",
                progress.next - first,
                progress.failed.len()
            );
            if let Some(file) = file {
                write_line(file, &progress)?;
            }
        }
    }
    println!("seeds {first} to {}: digest {:016x}; {totals:?}", end - 1, progress.digest);
    match progress.failed.is_empty() {
        true => Ok(()),
        false => Err(format!("seeds that fail: {:?}", progress.failed)),
    }
}

/// `next digest failed,failed,…`; what is no such line is left out: it was cut short.
fn read_line(line: &str, progress: &mut Progress) {
    let mut words = line.split(' ');
    let (Some(next), Some(digest), Some(failed)) = (words.next(), words.next(), words.next()) else { return };
    let (Ok(next), Ok(digest)) = (next.parse(), u64::from_str_radix(digest, 16)) else { return };
    progress.next = next;
    progress.digest = digest;
    progress.failed = failed.split(',').filter_map(|seed| seed.parse().ok()).collect();
}

fn write_line(file: &str, progress: &Progress) -> Result<(), String> {
    let failed: Vec<String> = progress.failed.iter().map(ToString::to_string).collect();
    let line = format!("{} {:016x} {}\n", progress.next, progress.digest, failed.join(","));
    let open = OpenOptions::new().create(true).append(true).open(file);
    open.and_then(|mut open| open.write_all(line.as_bytes())).map_err(|error| format!("{file}: {error}"))
}
