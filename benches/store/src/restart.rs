//! From `exec` to the first get, in a process of its own, after a close and after `kill -9`.
//!
//! Before each kill a process writes until `writes` of its puts are acknowledged, so that there is a log to replay.
use crate::data::{key, value};
use crate::process::now;
use crate::{Place, text};
use std::io::{BufRead, BufReader, Write as _};
use std::process::{Child, Command, Stdio};
use std::time::Instant;
use sternpost_engine::base::rng::Rng;
use sternpost_engine::{Batch, Db};

/// Puts of one batch of the process that is killed, of neighbouring keys.
const BATCH: u64 = 100;

#[derive(clap::Args)]
pub(crate) struct Restart {
    #[command(flatten)]
    place: Place,
    /// How often each way
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Puts between two kills, at least
    #[arg(long, default_value_t = 50_000)]
    writes: u64,
}

#[derive(clap::Args)]
pub(crate) struct FirstGet {
    #[command(flatten)]
    place: Place,
    /// Number of the key
    #[arg(long)]
    number: u64,
}

#[derive(clap::Args)]
pub(crate) struct WriteOn {
    #[command(flatten)]
    place: Place,
}

impl Place {
    fn arguments(&self) -> Vec<String> {
        let dir = self.dir.display().to_string();
        let numbers = [self.keys, self.value as u64, self.cache_mib as u64].map(|number| number.to_string());
        let [keys, value, cache] = numbers;
        ["--dir", &dir, "--keys", &keys, "--value", &value, "--cache-mib", &cache].map(String::from).to_vec()
    }

    /// This program with another command over the same place.
    fn start(&self, command: &str, more: &[String]) -> Result<Child, String> {
        let this = std::env::current_exe().map_err(|error| format!("find this program: {error}"))?;
        Command::new(this)
            .arg(command)
            .args(self.arguments())
            .args(more)
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| format!("start `store {command}`: {error}"))
    }
}

impl Restart {
    pub(crate) fn run(&self) -> Result<(), String> {
        let Self { place, rounds, writes } = self;
        let mut rng = Rng::new(11);
        let (mut clean, mut killed) = (Vec::new(), Vec::new());
        for _ in 0..*rounds {
            clean.push(self.first_get(rng.below(place.keys))?);
            self.write_and_kill(*writes)?;
            killed.push(self.first_get(rng.below(place.keys))?);
        }
        for (name, mut seconds) in [("after a close", clean), ("after a kill", killed)] {
            seconds.sort_by(f64::total_cmp);
            let median = seconds.get(seconds.len() / 2).copied().unwrap_or(0.0);
            let (min, max) =
                (seconds.first().copied().unwrap_or(0.0), seconds.last().copied().unwrap_or(0.0));
            println!(
                "{name:<14} exec to first get: median {median:.3} s, {min:.3} to {max:.3} s over {rounds} rounds"
            );
        }
        Ok(())
    }

    /// Seconds from `exec` to the line that says that a key was got; the process then closes the database.
    fn first_get(&self, number: u64) -> Result<f64, String> {
        let begun: Instant = now();
        let mut child = self.place.start("first-get", &["--number".into(), number.to_string()])?;
        let output = child.stdout.take().ok_or("no output")?;
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line).map_err(text)?;
        let seconds = begun.elapsed().as_secs_f64();
        let status = child.wait().map_err(text)?;
        match status.success() && line.starts_with("got") {
            true => Ok(seconds),
            false => Err(format!("`store first-get` ended with {status} and said {line:?}")),
        }
    }

    fn write_and_kill(&self, writes: u64) -> Result<(), String> {
        let mut child = self.place.start("write-on", &[])?;
        let output = child.stdout.take().ok_or("no output")?;
        for line in BufReader::new(output).lines() {
            let done = line.map_err(text)?.parse::<u64>().map_err(text)?;
            if done >= writes {
                child.kill().map_err(text)?;
                child.wait().map_err(text)?;
                return Ok(());
            }
        }
        Err("`store write-on` ended before it was killed".into())
    }
}

impl FirstGet {
    pub(crate) fn run(&self) -> Result<(), String> {
        let db = Db::open(&self.place.dir, self.place.options()).map_err(text)?;
        let found = db.get(key(self.number)).map_err(text)?;
        if found.is_none_or(|found| found.value.len() != self.place.value) {
            return Err(format!("key {} is not what was put", self.number));
        }
        println!("got {}", self.number);
        std::io::stdout().flush().map_err(text)?;
        db.close().map_err(text)
    }
}

impl WriteOn {
    pub(crate) fn run(&self) -> Result<(), String> {
        let db = Db::open(&self.place.dir, self.place.options()).map_err(text)?;
        let mut rng = Rng::new(13);
        let mut done = 0;
        loop {
            let mut puts = Batch::new();
            // Distinct: a batch takes a key once.
            let first = rng.below(self.place.keys);
            for number in (first..first + BATCH).map(|number| number % self.place.keys.max(BATCH)) {
                puts = puts.put(key(number), value(number, self.place.value, &mut rng));
            }
            db.write(puts).map_err(text)?;
            done += BATCH;
            println!("{done}");
            std::io::stdout().flush().map_err(text)?;
        }
    }
}
