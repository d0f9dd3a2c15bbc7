//! The embedded engine beside redb, fjall, RocksDB, LMDB, SQLite and sled: same disk, same cache, every commit durable.
//!
//! ```text
//! engines [--engines a,b,…] [--keys N] [--value BYTES] [--rounds N] [--dir D] [--json FILE] …
//! round 1: a b c …   round 2: a b c …   each engine in a process of its own, on a fresh directory
//! ```
//!
//! The parent starts itself once for each engine and round (`--child`), so that memory and processor time are those of one
//! engine alone, and prints medians over the rounds. What each row means: `benches/README.md`.
mod engine;
mod measure;
mod peers;
mod report;
mod workload;

use clap::Parser;
use engine::{PEERS, Peer, Result};
use report::Round;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

/// Compares embedded engines on one disk.
#[derive(Parser, Clone, Debug)]
pub(crate) struct Arguments {
    /// Which engines, separated by commas; all that are built in if not given.
    #[arg(long, value_delimiter = ',')]
    engines: Vec<String>,
    /// Keys that are loaded.
    #[arg(long, default_value_t = 300_000)]
    pub(crate) keys: u64,
    /// Bytes of a value; every second one is text that compresses, the others are random.
    #[arg(long, default_value_t = 512)]
    pub(crate) value: usize,
    /// Times that every engine runs, in turn.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Directory on the disk to measure; made, and emptied for each run.
    #[arg(long, default_value = "engines-bench")]
    pub(crate) dir: PathBuf,
    /// Cache of every engine, in MiB.
    #[arg(long, default_value_t = 256)]
    pub(crate) cache_mib: usize,
    /// Cache of every engine in the row of cold gets, in MiB.
    #[arg(long, default_value_t = 8)]
    pub(crate) cold_cache_mib: usize,
    /// Durable single puts.
    #[arg(long, default_value_t = 5_000)]
    pub(crate) puts: u64,
    /// Durable batches of 100.
    #[arg(long, default_value_t = 500)]
    pub(crate) batches: u64,
    /// Random gets, warm.
    #[arg(long, default_value_t = 200_000)]
    pub(crate) gets: u64,
    /// Random gets after the system's caches were dropped.
    #[arg(long, default_value_t = 5_000)]
    pub(crate) cold_gets: u64,
    /// Scans of 100.
    #[arg(long, default_value_t = 10_000)]
    pub(crate) scans: u64,
    /// Operations of the mixed row: puts and gets by turns.
    #[arg(long, default_value_t = 10_000)]
    pub(crate) mixed: u64,
    /// Writes everything that was measured to this file.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Runs one engine once and prints its round as JSON; for the parent.
    #[arg(long, hide = true)]
    child: Option<String>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let done = match &arguments.child {
        Some(name) => peer(name).and_then(|peer| {
            println!("{}", serde_json::to_string(&workload::run(peer, &arguments)?)?);
            Ok(())
        }),
        None => compare(&arguments),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("engines: {error}");
            ExitCode::FAILURE
        }
    }
}

fn peer(name: &str) -> Result<&'static Peer> {
    let known = || PEERS.iter().map(|peer| peer.name).collect::<Vec<_>>().join(", ");
    PEERS
        .iter()
        .find(|peer| peer.name == name)
        .ok_or_else(|| format!("no engine '{name}'; there are {}", known()).into())
}

fn compare(arguments: &Arguments) -> Result<()> {
    let chosen: Vec<&Peer> = match arguments.engines.is_empty() {
        true => PEERS.iter().collect(),
        false => arguments.engines.iter().map(|name| peer(name)).collect::<Result<_>>()?,
    };
    std::fs::create_dir_all(&arguments.dir)
        .map_err(|error| format!("{}: {error}", arguments.dir.display()))?;
    let machine = measure::machine(&arguments.dir);
    let mut rounds = Vec::new();
    for round in 1..=arguments.rounds {
        for peer in &chosen {
            eprintln!("round {round} of {}: {}", arguments.rounds, peer.name);
            rounds.push(run_child(peer)?);
        }
    }
    if let Some(path) = &arguments.json {
        let all = serde_json::json!({ "machine": machine, "rounds": rounds });
        std::fs::write(path, serde_json::to_vec_pretty(&all)?)
            .map_err(|error| format!("{}: {error}", path.display()))?;
    }
    print!("{}", report::markdown(&machine, &chosen, arguments, &rounds));
    Ok(())
}

/// This program again, with the same arguments, for one engine.
fn run_child(peer: &Peer) -> Result<Round> {
    let mut child = Command::new(std::env::current_exe()?);
    child.args(std::env::args_os().skip(1)).args(["--child", peer.name]).stderr(Stdio::inherit());
    let output = child.output()?;
    if !output.status.success() {
        return Err(format!("the run of {} ended with {}", peer.name, output.status).into());
    }
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// The directory of one engine, empty.
pub(crate) fn fresh_directory(directory: &Path, name: &str) -> Result<PathBuf> {
    let directory = directory.join(name);
    if directory.exists() {
        std::fs::remove_dir_all(&directory)?;
    }
    std::fs::create_dir_all(&directory)?;
    Ok(directory)
}
