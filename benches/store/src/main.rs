//! The embedded engine with data on disk: how fast it loads, what that writes, how much memory it takes, how fast it opens.
//!
//! `store --keys 1000000 --value 1024 --overwrites 2 --dir D` loads the keys in batches of 1,000, overwrites as many of them with
//! skew, compacts, reads at random, and opens the database again. One line a phase. Bytes written are those of this process by the kernel's count, which is exact for direct I/O.
//!
//! Values: every second one is text as in a Kubernetes object (compressible), the others are random.
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};
use sternpost_engine::base::rng::Rng;
use sternpost_engine::{Batch, Db, Options};

const BATCH: u64 = 1_000;

struct Arguments {
    directory: PathBuf,
    keys: u64,
    value_bytes: usize,
    overwrites: u64,
    gets: u64,
    cache_bytes: usize,
}

fn main() -> ExitCode {
    match parse().and_then(|arguments| run(&arguments)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("store: {message}");
            ExitCode::FAILURE
        }
    }
}

fn parse() -> Result<Arguments, String> {
    let mut parsed = Arguments {
        directory: PathBuf::from("store-bench"),
        keys: 1_000_000,
        value_bytes: 1024,
        overwrites: 1,
        gets: 100_000,
        cache_bytes: 256 << 20,
    };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or(format!("{word} needs a value"));
        let number = |text: String| text.parse::<u64>().map_err(|_| format!("'{text}' is not a number"));
        match word.as_str() {
            "--dir" => parsed.directory = value()?.into(),
            "--keys" => parsed.keys = number(value()?)?,
            "--value" => parsed.value_bytes = number(value()?)? as usize,
            "--overwrites" => parsed.overwrites = number(value()?)?,
            "--gets" => parsed.gets = number(value()?)?,
            "--cache-mib" => parsed.cache_bytes = (number(value()?)? as usize) << 20,
            _ => return Err(format!("unknown argument {word}")),
        }
    }
    Ok(parsed)
}

fn key(number: u64) -> String {
    format!("/registry/pods/namespace-{:04}/pod-{number:012}", number % 997)
}

fn value(number: u64, bytes: usize, rng: &mut Rng) -> Vec<u8> {
    let mut value = vec![0; bytes];
    if number.is_multiple_of(2) {
        rng.fill(&mut value);
        return value;
    }
    let mut text = String::with_capacity(bytes + 200);
    while text.len() < bytes {
        text += &format!(
            "{{\"kind\":\"Pod\",\"metadata\":{{\"name\":\"pod-{number}\",\"uid\":\"{:016x}\",\"labels\":{{\"app\":\"web\",\
             \"tier\":\"{}\"}}}},\"status\":{{\"phase\":\"Running\",\"podIP\":\"10.0.{}.{}\"}}}}",
            rng.next_u64(),
            rng.below(4),
            rng.below(256),
            rng.below(256)
        );
    }
    text.into_bytes()[..bytes].to_vec()
}

#[expect(clippy::disallowed_methods, reason = "a benchmark times itself")]
fn now() -> Instant {
    Instant::now()
}

/// A number of a file in /proc, 0 if there is none.
fn proc_number(file: &str, name: &str) -> u64 {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_default();
    line.split_whitespace().nth(1).and_then(|number| number.parse().ok()).unwrap_or(0)
}

fn written_bytes() -> u64 {
    proc_number("/proc/self/io", "write_bytes:")
}

fn rss_mib() -> u64 {
    proc_number("/proc/self/status", "RssAnon:") / 1024
}

fn directory_bytes(directory: &std::path::Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(directory) else { return 0 };
    entries
        .flatten()
        .map(|entry| match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => directory_bytes(&entry.path()),
            Ok(metadata) => metadata.len(),
            Err(_) => 0,
        })
        .sum()
}

struct Phase {
    name: String,
    begun: Instant,
    written: u64,
    longest: Duration,
}

impl Phase {
    fn begin(name: &str) -> Self {
        Self { name: name.to_string(), begun: now(), written: written_bytes(), longest: Duration::ZERO }
    }

    fn end(self, operations: u64, user_bytes: u64) {
        let seconds = self.begun.elapsed().as_secs_f64();
        let written = written_bytes() - self.written;
        println!(
            "{:<12} {operations:>10} in {seconds:7.2} s = {:>9.0}/s · longest {:6.1} ms · written {:>6} MiB{} · RssAnon {} MiB",
            self.name,
            operations as f64 / seconds,
            self.longest.as_secs_f64() * 1000.0,
            written >> 20,
            if user_bytes > 0 {
                format!(" = {:.2}x", written as f64 / user_bytes as f64)
            } else {
                String::new()
            },
            rss_mib()
        );
    }
}

fn run(arguments: &Arguments) -> Result<(), String> {
    let Arguments { directory, keys, value_bytes, overwrites, gets, cache_bytes } = arguments;
    let text = |error: sternpost_engine::Error| error.to_string();
    let options = || Options::new().cache_bytes(*cache_bytes).calibrate(false);
    let db = Db::open(directory, options()).map_err(text)?;
    let mut rng = Rng::new(7);
    let per_key = (key(0).len() + value_bytes) as u64;

    let mut phase = Phase::begin("load");
    for first in (0..*keys).step_by(BATCH as usize) {
        let mut batch = Batch::new();
        for number in first..(first + BATCH).min(*keys) {
            batch = batch.put(key(number), value(number, *value_bytes, &mut rng));
        }
        let begun = now();
        db.write(batch).map_err(text)?;
        phase.longest = phase.longest.max(begun.elapsed());
    }
    phase.end(*keys, keys * per_key);

    for round in 1..=*overwrites {
        let mut phase = Phase::begin(&format!("overwrite {round}"));
        for _ in 0..keys / BATCH {
            let mut seen = std::collections::BTreeSet::new();
            let mut batch = Batch::new();
            while (seen.len() as u64) < BATCH {
                // Nine of ten updates go to a twentieth of the keys.
                let number = if rng.chance(9, 10) { rng.below(keys / 20 + 1) * 20 } else { rng.below(*keys) };
                let number = number % keys;
                if seen.insert(number) {
                    batch = batch.put(key(number), value(number, *value_bytes, &mut rng));
                }
            }
            let begun = now();
            db.write(batch).map_err(text)?;
            phase.longest = phase.longest.max(begun.elapsed());
        }
        let revision = db.latest().revision();
        db.compact(revision).map_err(text)?;
        phase.end(keys / BATCH * BATCH, keys / BATCH * BATCH * per_key);
    }

    let mut phase = Phase::begin("get");
    for _ in 0..*gets {
        let number = rng.below(*keys);
        let begun = now();
        let found = db.get(key(number)).map_err(text)?;
        phase.longest = phase.longest.max(begun.elapsed());
        if found.is_none_or(|found| found.value.len() != *value_bytes) {
            return Err(format!("key {number} is not what was put"));
        }
    }
    phase.end(*gets, 0);

    let stats = db.stats();
    println!("{:?}", stats.checkpoints);
    println!(
        "disk {} MiB, of which log {} MiB; live {} MiB logically",
        directory_bytes(directory) >> 20,
        directory_bytes(&directory.join("wal")) >> 20,
        stats.store.retained_bytes >> 20
    );
    db.close().map_err(text)?;
    let begun = now();
    let again = Db::open(directory, options()).map_err(text)?;
    let found = again.get(key(1)).map_err(text)?;
    println!(
        "open         to the first get {:.3} s, found {}",
        begun.elapsed().as_secs_f64(),
        found.is_some()
    );
    again.close().map_err(text)
}
