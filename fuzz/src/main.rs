//! Seeded fuzzers on the stable compiler: `fuzz <name> [first seed] [seconds]`, `fuzz smoke [seconds each]`, `fuzz list`; with the
//! feature `planted-bugs` also `fuzz planted [seconds each]`.
//!
//! A run draws an input from the target's own seeds, mutates it, and calls the target, which must not panic. A
//! failing input is printed with the seed that makes it again. `smoke` also runs the canary, which must fail: a driver
//! that has never failed proves nothing. `planted` does the same to the target of whole databases, with every bug of the engine's
//! test builds; what the other targets have caught is in `fuzz/planted`. `fuzz simulate ...` runs whole clusters: see [`simulator`].
mod damage;
#[path = "../../engine/tests/db_support/mod.rs"]
mod db_support;
#[allow(dead_code, reason = "shared with the engine's own test of its model")]
#[path = "../../engine/tests/model/naive.rs"]
mod naive;
mod seals;
mod simulator;
mod targets;

use peak_alloc::PeakAlloc;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::time::{Duration, Instant};
use sternpost_engine::base::rng::Rng;
use targets::{TARGETS, Target};

/// Counts what a target allocates.
#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

thread_local! {
    /// Where the last panic was.
    static PLACE: Cell<String> = const { Cell::new(String::new()) };
}

/// Inputs never grow beyond this.
const INPUT_BYTES_MAX: usize = 64 << 10;

fn main() -> ExitCode {
    let arguments = std::env::args().skip(1).collect::<Vec<_>>();
    let number = |index: usize, default: u64| match arguments.get(index) {
        None => Ok(default),
        Some(text) => text.parse().map_err(|_| format!("'{text}' is not a number")),
    };
    let result = match arguments.first().map(String::as_str) {
        Some("smoke") => number(1, 2).and_then(smoke),
        #[cfg(feature = "planted-bugs")]
        Some("planted") => number(1, 120).and_then(planted),
        Some("simulate") => simulator::command(&arguments[1..]),
        Some("list") => {
            TARGETS.iter().for_each(|target| println!("{}", target.name));
            Ok(())
        }
        Some(name) => match TARGETS.iter().find(|target| target.name == name) {
            Some(target) => {
                let seconds = number(2, 60);
                let run = seconds.and_then(|seconds| {
                    number(1, 1).and_then(|seed| run_for(target, seed, Duration::from_secs(seconds)))
                });
                run.map(|inputs| println!("{}: {inputs} inputs", target.name))
            }
            None => Err(format!("no target '{name}'; `fuzz list` names them")),
        },
        None => {
            Err("usage: fuzz <name> [first seed] [seconds] | fuzz smoke [seconds each] | fuzz list | fuzz simulate ...".into())
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("{message}");
            ExitCode::FAILURE
        }
    }
}

/// Every target for `seconds`; the canary must fail, the others must not.
fn smoke(seconds: u64) -> Result<(), String> {
    for target in TARGETS {
        let result = run_for(target, 1, Duration::from_secs(seconds));
        match (target.canary, result) {
            (false, Ok(inputs)) => println!("{}: {inputs} inputs", target.name),
            (true, Err(_)) => println!("{}: failed, as it must", target.name),
            (true, Ok(_)) => return Err("the canary did not fail: the driver notices nothing".into()),
            (false, Err(message)) => return Err(message),
        }
    }
    Ok(())
}

/// The target of whole databases, with each bug in turn: it must fail within `seconds`.
#[cfg(feature = "planted-bugs")]
fn planted(seconds: u64) -> Result<(), String> {
    let target = TARGETS.iter().find(|target| target.name == "database").ok_or("there is no such target")?;
    let mut missed = Vec::new();
    targets::each_planted(|bug| match run_for(target, 1, Duration::from_secs(seconds)) {
        Ok(inputs) => {
            println!("{bug}: not caught by {inputs} inputs");
            missed.push(bug.to_owned());
        }
        Err(message) => println!("{bug}: {:.200}", message.lines().next().unwrap_or_default()),
    });
    if missed.is_empty() { Ok(()) } else { Err(format!("not caught: {missed:?}")) }
}

fn run_for(target: &Target, first_seed: u64, limit: Duration) -> Result<u64, String> {
    // A panic is the finding; its default report would hide ours among thousands of lines.
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(|place| format!("{}:{}", place.file(), place.line()));
        PLACE.set(place.unwrap_or_default());
    }));
    #[expect(clippy::disallowed_methods, reason = "the budget of a fuzz run is time on the clock")]
    let start = Instant::now();
    let mut seed = first_seed;
    let result = loop {
        let input = make_input(target, seed);
        if let Err(text) = run_once(target, &input) {
            break Err(format!(
                "{} failed at seed {seed}: {text}\ninput: {input:02x?}\nreplay: cargo run -p sternpost-fuzz -- {} {seed}",
                target.name, target.name
            ));
        }
        seed += 1;
        if seed.is_multiple_of(64) && start.elapsed() > limit {
            break Ok(seed - first_seed);
        }
    };
    let _ = std::panic::take_hook();
    result
}

/// Runs the target; a panic and too much memory are findings.
fn run_once(target: &Target, input: &[u8]) -> Result<(), String> {
    let before_bytes = MEMORY.current_usage();
    MEMORY.reset_peak_usage();
    catch_unwind(AssertUnwindSafe(|| (target.run)(input))).map_err(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| text.to_string()));
        format!("{} ({})", text.unwrap_or_else(|| "a panic without a text".into()), PLACE.take())
    })?;
    let taken_bytes = MEMORY.peak_usage().saturating_sub(before_bytes);
    match taken_bytes <= target.memory_bytes_max {
        true => Ok(()),
        false => {
            Err(format!("{taken_bytes} bytes were allocated, at most {} are meant", target.memory_bytes_max))
        }
    }
}

fn make_input(target: &Target, seed: u64) -> Vec<u8> {
    let mut rng = Rng::new(seed);
    let mut input = (target.seeds)(&mut rng);
    for _ in 0..rng.below(8) {
        mutate(&mut input, &mut rng);
    }
    input.truncate(INPUT_BYTES_MAX);
    input
}

/// One change: a bit, a byte, an interesting number, a cut, a copy of a part.
fn mutate(input: &mut Vec<u8>, rng: &mut Rng) {
    const NUMBERS: [u32; 6] = [0, 1, 127, 0x7fff_ffff, 0xffff_fff0, u32::MAX];
    if input.is_empty() {
        input.push(rng.next_u64() as u8);
        return;
    }
    let at = rng.below(input.len() as u64) as usize;
    match rng.below(6) {
        0 => input[at] ^= 1 << rng.below(8),
        1 => input[at] = rng.next_u64() as u8,
        2 => {
            let number = NUMBERS[rng.below(6) as usize].to_le_bytes();
            for (target, source) in input[at..].iter_mut().zip(number) {
                *target = source;
            }
        }
        3 => input.truncate(at),
        4 => input.insert(at, rng.next_u64() as u8),
        _ => {
            let part = input[at..].to_vec();
            input.extend_from_slice(&part);
        }
    }
}
