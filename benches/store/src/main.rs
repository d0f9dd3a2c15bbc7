//! The embedded engine with data on disk, as an embedding program uses it.
//!
//! | command | question |
//! |---|---|
//! | `load` | how fast do data come in, what is written for them and by what, how much memory and space does it take? |
//! | `restart` | how long from `exec` to the first get, after a close and after `kill -9`? |
//! | `pause` | how long does a writer wait at worst while a million versions are compacted and cleaned? |
//! | `reads` | which part of the reads that the device can do do gets reach? |
//! | `pages` | how much of the trees do checkpoints write for scattered changes, and what does it cost reads? |
//!
//! `load` leaves its directory for the others. To run it under a limit of memory: `benches/store/limited.sh 1024 load …`.
//!
//! Reading order: `load`, `restart`, `pause`, `reads`, `pages`; `data` (keys and values), `process` (what the kernel counts).
#![forbid(unsafe_code)]

mod data;
mod load;
mod pages;
mod pause;
mod process;
mod reads;
mod restart;

use clap::Parser;
use std::path::PathBuf;
use std::process::ExitCode;
use sternpost_engine::Options;

#[derive(Parser)]
#[command(name = "store", about = "The embedded engine with data on disk", version)]
enum Command {
    /// Loads keys, overwrites them with skew, compacts; memory, space and bytes written by source
    Load(load::Load),
    /// From exec to the first get, after a close and after a kill
    Restart(restart::Restart),
    /// The longest wait of writers at a fixed rate while a compaction is swept and cleaned
    Pause(pause::Pause),
    /// Random gets at a queue depth against raw random reads
    Reads(reads::Reads),
    /// Bytes of pages that checkpoints write for scattered changes, by tree, and lookups that gets miss
    Pages(pages::Pages),
    /// Opens, gets one key, says so and ends (what `restart` starts)
    #[command(hide = true)]
    FirstGet(restart::FirstGet),
    /// Writes until it is killed (what `restart` starts)
    #[command(hide = true)]
    WriteOn(restart::WriteOn),
}

/// What all commands need to know of a database.
#[derive(clap::Args, Clone)]
struct Place {
    /// Directory of the database
    #[arg(long, default_value = "store-bench")]
    dir: PathBuf,
    /// How many keys there are
    #[arg(long, default_value_t = 1_000_000)]
    keys: u64,
    /// Bytes of a value
    #[arg(long, default_value_t = 1024)]
    value: usize,
    /// Memory for the cache in MiB
    #[arg(long, default_value_t = 256)]
    cache_mib: usize,
}

impl Place {
    fn options(&self) -> Options {
        Options::new().cache_bytes(self.cache_mib << 20).calibrate(false)
    }

    /// Bytes of a key and its value.
    fn user_bytes(&self) -> u64 {
        (data::key(0).len() + self.value) as u64
    }
}

fn main() -> ExitCode {
    let result = match Command::parse() {
        Command::Load(command) => command.run(),
        Command::Restart(command) => command.run(),
        Command::Pause(command) => command.run(),
        Command::Reads(command) => command.run(),
        Command::Pages(command) => command.run(),
        Command::FirstGet(command) => command.run(),
        Command::WriteOn(command) => command.run(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("store: {message}");
            ExitCode::FAILURE
        }
    }
}

/// An error of the engine as text.
fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}
