//! Seeds one after the other, and one seed looked at closely.
//!
//! | arguments | what |
//! |---|---|
//! | `SEED` | one seed |
//! | `SEED trace` | the same, and the last things that happened in it |
//! | `SEED shrink` | a failing seed with as few faults and as little time as still fail |
//! | `SEED without=crashes,kills until_ms=9000` | what that has found, again; also with `trace` |
//! | `many FIRST COUNT [FILE]` | many seeds; with a file the campaign goes on where it was |
//! | `planted COUNT [NAME]` | every planted bug, or those with this in their name, by at most so many seeds each |
//!
//! **Resumable.** A campaign with a file appends a line for every hundred seeds that are done: the next seed, the digest of all digests so far, the seeds that failed.
use super::bug::{Bug, SHELL_BUGS};
use super::plan::{Case, Length};
use super::shrink::shrink;
use super::stats::Stats;
use super::trace::Trace;
use super::{mix, run};
use std::fs::OpenOptions;
use std::io::Write;
use std::time::Instant;

/// Seeds between two lines.
const LINE_SEEDS: u64 = 100;
const USAGE: &str = "usage: fuzz simulate <seed> [trace | shrink] [without=<fault,...>] [until_ms=<n>] | fuzz simulate many <first seed> <count> [file] | fuzz simulate planted <seeds each> [name]";

/// Carries out `simulate` with these arguments.
///
/// # Errors
/// What is wrong with the arguments, or what was found.
pub(crate) fn command(arguments: &[String]) -> Result<(), String> {
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        ["many", first, count] => many(number(first)?, number(count)?, None),
        ["many", first, count, file] => many(number(first)?, number(count)?, Some(file)),
        ["planted", count] => planted(number(count)?, ""),
        ["planted", count, name] => planted(number(count)?, name),
        [seed, ref how @ ..] => one(number(seed)?, how),
        [] => Err(USAGE.into()),
    }
}

fn number(text: &str) -> Result<u64, String> {
    text.parse().map_err(|_| format!("'{text}' is no number; {USAGE}"))
}

fn one(seed: u64, how: &[&str]) -> Result<(), String> {
    let mut case = Case::new(seed, Length::FULL);
    let (mut trace, mut shrinks) = (Trace::default(), false);
    for word in how {
        match word.split_once('=') {
            Some(("without", names)) => case.without.extend(names.split(',').map(str::to_owned)),
            Some(("until_ms", ms)) => case.until_us = Some(number(ms)? * 1_000),
            None if *word == "trace" => trace = Trace::wanted(),
            None if *word == "shrink" => shrinks = true,
            _ => return Err(USAGE.into()),
        }
    }
    if shrinks {
        silence();
        let (smallest, what) = shrink(&case)?;
        println!("{what}\n{}", replay(&smallest));
        return Ok(());
    }
    let (digest, stats) = run(&case, trace).map_err(|what| format!("seed {seed}: {what}"))?;
    println!("seed {seed}: digest {digest:016x}, {stats:?}");
    Ok(())
}

/// The line that runs a case again.
fn replay(case: &Case) -> String {
    let mut line = format!("cargo run --release -p sternpost-fuzz -- simulate {}", case.seed);
    if !case.without.is_empty() {
        line += &format!(" without={}", case.without.join(","));
    }
    if let Some(until_us) = case.until_us {
        line += &format!(" until_ms={}", until_us.div_ceil(1_000));
    }
    line
}

/// What a broken invariant says is told with its seed, and not twice.
fn silence() {
    std::panic::set_hook(Box::new(|_| {}));
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
    silence();
    #[expect(clippy::disallowed_methods, reason = "the speed of a campaign is in time on the clock")]
    let begun = Instant::now();
    let (begun_at, end) = (progress.next, first + count);
    let mut totals = Stats::default();
    while progress.next < end {
        let case = Case::new(progress.next, Length::FULL);
        match run(&case, Trace::default()) {
            Ok((digest, stats)) => {
                totals += stats;
                progress.digest = mix(progress.digest, digest);
            }
            Err(what) => {
                println!("seed {}: {what}\nreplay: {}", case.seed, replay(&case));
                progress.failed.push(case.seed);
            }
        }
        progress.next += 1;
        if progress.next.is_multiple_of(LINE_SEEDS) || progress.next == end {
            let per_minute = (progress.next - begun_at) as f64 / begun.elapsed().as_secs_f64() * 60.0;
            eprintln!(
                "{} of {count} seeds, {per_minute:.0} a minute, {} fail; since the start {totals:?}",
                progress.next - first,
                progress.failed.len()
            );
            if let Some(file) = file {
                write_line(file, &progress)?;
            }
        }
    }
    println!("seeds {first} to {}: digest {:016x}; since the start {totals:?}", end - 1, progress.digest);
    match progress.failed.is_empty() {
        true => Ok(()),
        false => Err(format!("seeds that fail: {:?}", progress.failed)),
    }
}

/// A line of [`write_line`]; what is no such line is left out: it was cut short.
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

/// The first of `count` seeds from `first` on that finds `bug`, and how it shows.
pub(super) fn find(bug: Bug, length: Length, first: u64, count: u64) -> Option<(u64, String)> {
    let finds = |seed| Some((seed, run(&Case::new(seed, length).over(bug), Trace::default()).err()?));
    (first..first + count).find_map(finds)
}

fn planted(count: u64, name: &str) -> Result<(), String> {
    silence();
    let bugs = SHELL_BUGS.into_iter().map(Bug::Shell);
    #[cfg(feature = "planted-bugs")]
    let bugs = bugs.chain(super::bug::CORE_BUGS.into_iter().map(Bug::Core));
    #[cfg(feature = "planted-bugs")]
    let bugs = bugs.chain(super::bug::CHECKPOINT_BUGS.into_iter().map(Bug::Checkpoint));
    let mut missed = Vec::new();
    for bug in bugs.filter(|bug| format!("{bug:?}").contains(name)) {
        match find(bug, Length::FULL, 0, count) {
            Some((seed, what)) => println!("{bug:?}: seed {seed}: {what:.300}"),
            None => {
                println!("{bug:?}: not found");
                missed.push(bug);
            }
        }
    }
    if missed.is_empty() { Ok(()) } else { Err(format!("not found by {count} seeds: {missed:?}")) }
}
