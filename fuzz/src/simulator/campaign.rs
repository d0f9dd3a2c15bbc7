//! Seeds one after the other: `fuzz simulate SEED`, `fuzz simulate FIRST COUNT`.
use super::plan::Length;
use super::run;
use super::world::Stats;

/// Carries out `simulate` with these arguments.
///
/// # Errors
/// What is wrong with the arguments, or what was found.
pub(crate) fn command(arguments: &[String]) -> Result<(), String> {
    let number = |index: usize| match arguments.get(index) {
        None => Ok(None),
        Some(text) => text.parse::<u64>().map(Some).map_err(|_| format!("'{text}' is not a number")),
    };
    let first = number(0)?.ok_or("usage: fuzz simulate <seed> [count]")?;
    let count = number(1)?.unwrap_or(1);
    let mut totals = Stats::default();
    let mut failed = Vec::new();
    for seed in first..first + count {
        match run(seed, Length::FULL, None) {
            Ok((digest, stats)) => {
                totals += stats;
                if count == 1 {
                    println!("seed {seed}: digest {digest:016x}");
                }
            }
            Err(what) => {
                println!("seed {seed}: {what}\nreplay: cargo run --release -p sternpost-fuzz -- simulate {seed}");
                failed.push(seed);
            }
        }
    }
    println!("{count} seeds: {totals:?}");
    if failed.is_empty() { Ok(()) } else { Err(format!("seeds that fail: {failed:?}")) }
}
