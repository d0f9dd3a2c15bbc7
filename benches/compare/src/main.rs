//! How does sternpost compare with etcd on this machine? Both in turn on one disk, A B A B, and one table with ratios.
//!
//! **What is done.** In each round each server is started alone, on a fresh data directory, with the same flags; its
//! memory is noted when it is ready and quiet; then `sternctl bench` puts the workloads of `matrix` on it, one after
//! the other; then it is stopped. Every number in the table is the median over the rounds, and every ratio is of two such
//! medians from this run: numbers of different runs or machines are never put beside each other.
//!
//! **Same durability.** Both acknowledge a put after it is on the disk, with their defaults. Both get the same
//! flags; neither is tuned.
//!
//! **What would make a number misleading**: other work on the machine or its disk; a generator that takes the processors
//! the server needs (its own use is in the table); a debug build of either; a data directory in memory.
//!
//! Needs etcd (`benches/peers/build.sh`), `sternpost` and `sternctl` built with `--release`. Reading order: `matrix` (the
//! workloads), `server` (start, stop), `awake`, `table` (medians and ratios).
#![forbid(unsafe_code)]

mod awake;
mod matrix;
mod server;
mod table;

use clap::Parser;
use matrix::Row;
use server::{Contestant, Running};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;
use sternpost_tools::bench::device::BlockDevice;
use sternpost_tools::bench::machine::{Machine, memory_of};
use sternpost_tools::bench::report::BenchmarkResult;
use table::{Comparison, Round, RowResult, RunFacts};

/// Time between the ready line and the reading of idle memory: a server's own start-up work is over.
const SETTLE: Duration = Duration::from_secs(2);

#[derive(Parser)]
#[command(name = "compare", about = "etcd and sternpost in turn on one disk: one table with ratios", version)]
struct Arguments {
    /// The etcd program [default: from benches/peers]
    #[arg(long)]
    etcd: Option<PathBuf>,
    /// The sternpost program [default: beside this one]
    #[arg(long)]
    sternpost: Option<PathBuf>,
    /// The sternctl program [default: beside this one]
    #[arg(long)]
    sternctl: Option<PathBuf>,
    /// A directory on the disk to measure; what is made there is removed
    #[arg(long, default_value = ".")]
    directory: PathBuf,
    /// So many members each, on this machine; clients use all of them, and what all use together is counted
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=7))]
    members: u8,
    /// How often each server has its turn
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Length of the measured part of each workload in seconds
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Length of the part before it in seconds
    #[arg(long, default_value_t = 2)]
    warm_up_seconds: u64,
    /// Only the workloads whose name contains this
    #[arg(long, default_value = "")]
    only: String,
    /// Keep the processors from sleeping meanwhile, as booting with idle=poll would (needs chrt): see benches/README.md
    #[arg(long)]
    keep_awake: bool,
    /// Say what the workloads are, and measure nothing
    #[arg(long)]
    list: bool,
    /// Write everything that was measured as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write the table to a file as well
    #[arg(long, value_name = "FILE")]
    markdown: Option<PathBuf>,
    /// Flags for both servers, after a lone --
    #[arg(last = true)]
    server_flags: Vec<String>,
}

fn main() -> ExitCode {
    if std::env::args().nth(1).as_deref() == Some(awake::SPIN_ARGUMENT) {
        awake::spin();
    }
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("compare: {message}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<(), String> {
    if arguments.list {
        for row in matrix::ROWS {
            println!("{:<24} {}", row.name, row.question);
        }
        return Ok(());
    }
    let contestants = contestants(arguments)?;
    let sternctl = program(arguments.sternctl.as_deref(), "sternctl")?;
    let rows: Vec<&Row> = matrix::ROWS.iter().filter(|row| row.name.contains(&arguments.only)).collect();
    if rows.is_empty() {
        let names: Vec<&str> = matrix::ROWS.iter().map(|row| row.name).collect();
        return Err(format!(
            "no workload's name contains {:?}; there are {}",
            arguments.only,
            names.join(", ")
        ));
    }
    let scratch = arguments.directory.join(format!("compare-{}", std::process::id()));
    std::fs::create_dir_all(&scratch).map_err(|error| format!("make {}: {error}", scratch.display()))?;
    let scratch = Scratch(scratch);
    let _awake = arguments.keep_awake.then(awake::Awake::start).transpose()?;
    let mut comparison = Comparison { facts: facts(arguments, &contestants, &scratch.0), rounds: Vec::new() };
    for round in 0..arguments.rounds.max(1) {
        for (position, contestant) in contestants.iter().enumerate() {
            eprintln!("round {} of {}: {}", round + 1, arguments.rounds.max(1), contestant.name);
            let measured = measure(arguments, contestant, &sternctl, &rows, &scratch.0)?;
            comparison.rounds.push(Round { contestant: position, ..measured });
        }
    }
    let markdown = comparison.markdown();
    println!("{markdown}");
    if let Some(file) = &arguments.markdown {
        write_file(file, &markdown)?;
    }
    if let Some(file) = &arguments.json {
        let json = serde_json::to_string_pretty(&comparison).expect("numbers and texts are JSON");
        write_file(file, &(json + "\n"))?;
    }
    Ok(())
}

/// One turn of one server: started alone, all workloads, stopped.
fn measure(
    arguments: &Arguments,
    contestant: &Contestant,
    sternctl: &Path,
    rows: &[&Row],
    scratch: &Path,
) -> Result<Round, String> {
    let directory = scratch.join("data");
    let _ = std::fs::remove_dir_all(&directory);
    let running = Running::start(contestant, &directory, arguments.members.into(), &arguments.server_flags)?;
    #[expect(
        clippy::disallowed_methods,
        reason = "idle memory is what is left after some time of doing nothing"
    )]
    std::thread::sleep(SETTLE);
    let memory = |when: &str| -> Result<(u64, u64), String> {
        running.pids().try_fold((0, 0), |(resident, anonymous), pid| {
            let memory = memory_of(pid).ok_or_else(|| format!("a server ended {when}"))?;
            Ok((resident + memory.resident_kib, anonymous + memory.anonymous_kib))
        })
    };
    let idle = memory("right after its start")?;
    let pids = running.pids().map(|pid| pid.to_string()).collect::<Vec<_>>().join(",");
    let mut results = Vec::new();
    for row in rows {
        let file = scratch.join("result.json");
        let _ = std::fs::remove_file(&file);
        let output = Command::new(sternctl)
            .args(["--endpoints", &running.endpoint(), "bench"])
            .args(row.arguments)
            .args(["--duration", &format!("{}s", arguments.seconds)])
            .args(["--warm-up", &format!("{}s", arguments.warm_up_seconds)])
            .args(["--server-pid", &pids, "--quiet", "--json"])
            .arg(&file)
            .arg("--device-of")
            .arg(&directory)
            .output()
            .map_err(|error| format!("start {}: {error}", sternctl.display()))?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            return Err(format!("{} against {}: {}", row.name, contestant.name, said.trim()));
        }
        let bytes = std::fs::read(&file).map_err(|error| format!("read {}: {error}", file.display()))?;
        let result = BenchmarkResult::read(&bytes)?;
        eprintln!("  {:<24} {:>10.0}/s", row.name, result.summary.operations_per_second);
        results.push(RowResult { row: row.name.to_owned(), result });
    }
    let end = memory("under load")?;
    let ready_ms = running.ready_ms;
    running.stop()?;
    Ok(Round {
        contestant: 0,
        ready_ms,
        idle_resident_kib: idle.0,
        idle_anonymous_kib: idle.1,
        end_resident_kib: end.0,
        end_anonymous_kib: end.1,
        results,
    })
}

/// etcd first: it is what the ratios are against.
fn contestants(arguments: &Arguments) -> Result<Vec<Contestant>, String> {
    let etcd = match &arguments.etcd {
        Some(etcd) => etcd.clone(),
        None => peers_directory()?.join("etcd"),
    };
    if !etcd.is_file() {
        return Err(format!("{} does not exist; benches/peers/build.sh builds it", etcd.display()));
    }
    let sternpost = program(arguments.sternpost.as_deref(), "sternpost")?;
    Ok(vec![Contestant::new("etcd", etcd)?, Contestant::new("sternpost", sternpost)?])
}

/// Where `benches/peers/build.sh` puts its programs.
fn peers_directory() -> Result<PathBuf, String> {
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    variable("STERNPOST_PEERS")
        .or_else(|| variable("XDG_CACHE_HOME").map(|cache| cache.join("sternpost/peers")))
        .or_else(|| variable("HOME").map(|home| home.join(".cache/sternpost/peers")))
        .ok_or_else(|| "neither --etcd nor STERNPOST_PEERS nor HOME is set".to_owned())
}

/// A program of this project: as given, or beside this one.
fn program(given: Option<&Path>, name: &str) -> Result<PathBuf, String> {
    let path = match given {
        Some(path) => path.to_owned(),
        None => {
            let this = std::env::current_exe().map_err(|error| format!("find this program: {error}"))?;
            this.with_file_name(name)
        }
    };
    if !path.is_file() {
        let path = path.display();
        return Err(format!("{path} does not exist; cargo build --release --bins builds it"));
    }
    Ok(path)
}

fn facts(arguments: &Arguments, contestants: &[Contestant], scratch: &Path) -> RunFacts {
    RunFacts {
        machine: Machine::this(),
        device: BlockDevice::of(scratch).map_or_else(|| "none".to_owned(), |device| device.description()),
        versions: contestants.iter().map(|contestant| contestant.version.clone()).collect(),
        names: contestants.iter().map(|contestant| contestant.name.to_owned()).collect(),
        commit: commit(),
        command: std::env::args().skip(1).collect::<Vec<_>>().join(" "),
        rounds: arguments.rounds.max(1),
        seconds: arguments.seconds,
        is_debug_build: cfg!(debug_assertions),
    }
}

/// The commit of the current directory's checkout, with a `+` when files differ from it.
fn commit() -> String {
    let git = |arguments: &[&str]| {
        let output = Command::new("git").args(arguments).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let Some(commit) = git(&["rev-parse", "--short=12", "HEAD"]) else { return "unknown".to_owned() };
    let is_changed = git(&["status", "--porcelain"]).is_some_and(|changes| !changes.is_empty());
    if is_changed { commit + "+" } else { commit }
}

fn write_file(file: &Path, text: &str) -> Result<(), String> {
    std::fs::write(file, text).map_err(|error| format!("write {}: {error}", file.display()))
}

/// A directory that is removed at the end, however the run ends.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
