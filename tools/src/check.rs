//! `check perf` and `check datascale`: whether a cluster bears one of four loads.
//!
//! **Contract.** The loads, the limits that are passed or failed, and the sentences are etcdctl's: `perf` puts keys at a steady rate for a minute and judges
//! throughput, the slowest answer and how far answers are apart; `datascale` puts a number of keys and says how much more memory the
//! server has then. Both begin on an empty prefix and leave none of its keys behind.
//!
//! For measurements there is `bench`, which corrects for requests that wait for others (`bench.rs`); these two do not.
use crate::ctl::connect::Client;
use crate::ctl::failure::{Exit, Failure};
use crate::ctl::http;
use crate::kv::prefix_range;
use crate::progress::ProgressLine;
use bytes::Bytes;
use clap::{Args, Subcommand};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use sternpost_engine::base::clock::{Clock, MonotonicClock};
use sternpost_server::wire::etcdserverpb as pb;

/// How long `perf` goes on.
const PERF_S: u64 = 60;
const PERF_VALUE_BYTES: usize = 1_024;
const PERF_KEY_BYTES: usize = 256;
/// Key and value of `datascale` are as long.
const SCALE_BYTES: usize = 512;
/// What is put, before the prefix: distinct, and spread over the keys.
const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;
const MEMORY: &str = "process_resident_memory_bytes";

/// A put may wait longer than other commands do, as in etcdctl, which waits for ever.
const PUT_PATIENCE: Duration = Duration::from_secs(120);

#[derive(Args)]
#[command(infer_subcommands = true, arg_required_else_help = true)]
pub(crate) struct CheckCommand {
    #[command(subcommand)]
    command: CheckSubcommand,
}

#[derive(Subcommand)]
enum CheckSubcommand {
    /// Put keys at a steady rate for a minute
    Perf {
        #[command(flatten)]
        load: Load,
        /// Prefix of the keys
        #[arg(long, default_value = "/etcdctl-check-perf/")]
        prefix: String,
        #[arg(hide = true)]
        arguments: Vec<String>,
    },
    /// Put keys and see how much memory the first endpoint takes for them
    Datascale {
        #[command(flatten)]
        load: Load,
        /// Prefix of the keys
        #[arg(long, default_value = "/etcdctl-check-datascale/")]
        prefix: String,
        #[arg(hide = true)]
        arguments: Vec<String>,
    },
}

#[derive(Args)]
struct Load {
    /// How much: s, m, l or xl (small, medium, large, xLarge)
    #[arg(long, default_value = "s")]
    load: String,
    /// Compact at the last revision afterwards
    #[arg(long)]
    auto_compact: bool,
    /// Give unused space back afterwards
    #[arg(long)]
    auto_defrag: bool,
}

impl Load {
    /// Which of four.
    fn size(&self) -> Result<usize, Failure> {
        match self.load.as_str() {
            "s" | "small" => Ok(0),
            "m" | "medium" => Ok(1),
            "l" | "large" => Ok(2),
            "xl" | "xLarge" => Ok(3),
            other => Err(Failure::bad_feature(format!("unknown load option {other}"))),
        }
    }
}

/// Puts per second and connections of `perf`, by size.
const PERF_LOADS: [(u64, u64); 4] = [(150, 50), (1_000, 200), (8_000, 500), (15_000, 1_000)];
/// Keys and connections of `datascale`, by size.
const SCALE_LOADS: [(u64, u64); 4] = [(10_000, 50), (100_000, 200), (1_000_000, 500), (3_000_000, 1_000)];

/// What the puts were like.
#[derive(Default)]
struct Outcome {
    /// Of those that were answered, in microseconds.
    latencies_us: Vec<u64>,
    /// Texts of errors.
    errors: Vec<String>,
    elapsed_us: u64,
}

pub(crate) async fn run(client: &Client, command: CheckCommand) -> Result<(), Failure> {
    match command.command {
        CheckSubcommand::Perf { load, prefix, .. } => perf(client, &load, &prefix).await,
        CheckSubcommand::Datascale { load, prefix, .. } => scale(client, &load, &prefix).await,
    }
}

async fn perf(client: &Client, load: &Load, prefix: &str) -> Result<(), Failure> {
    let (rate, connections) = PERF_LOADS[load.size()?];
    check_empty(client, prefix).await?;
    let plan = Plan {
        connections,
        puts: rate * PERF_S,
        rate: Some(rate),
        prefix: prefix.to_owned(),
        key_bytes: PERF_KEY_BYTES,
        value: Bytes::from(vec![0; PERF_VALUE_BYTES]),
    };
    let outcome = tokio::select! {
        outcome = plan.run(client) => outcome,
        _ = tokio::signal::ctrl_c() => {
            clean(client, load, prefix).await;
            return Err(Failure::new(Exit::Error, ""));
        }
    }?;
    clean(client, load, prefix).await;
    let mut is_passed = report_errors(&outcome);
    let seconds = outcome.elapsed_us as f64 / 1e6;
    let count = outcome.latencies_us.len() as f64;
    let throughput = count / seconds.max(1e-6);
    let mut judge = |is_good: bool, good: String, bad: String| {
        println!("{}", if is_good { good } else { bad });
        is_passed &= is_good;
    };
    let shown = throughput as u64 + 1;
    judge(
        throughput / rate as f64 > 0.9,
        format!("PASS: Throughput is {shown} writes/s"),
        format!("FAIL: Throughput too low: {shown} writes/s"),
    );
    let slowest = outcome.latencies_us.iter().max().copied().unwrap_or(0) as f64 / 1e6;
    judge(
        slowest <= 0.5,
        format!("PASS: Slowest request took {slowest:.6}s"),
        format!("Slowest request took too long: {slowest:.6}s"),
    );
    let deviation = standard_deviation_s(&outcome.latencies_us);
    judge(
        deviation <= 0.1,
        format!("PASS: Stddev is {deviation:.6}s"),
        format!("Stddev too high: {deviation:.6}s"),
    );
    println!("{}", if is_passed { "PASS" } else { "FAIL" });
    if is_passed { Ok(()) } else { Err(Failure::new(Exit::Error, "")) }
}

async fn scale(client: &Client, load: &Load, prefix: &str) -> Result<(), Failure> {
    let (keys, connections) = SCALE_LOADS[load.size()?];
    check_empty(client, prefix).await?;
    let before = memory_bytes(client, "before").await?;
    let bytes = 2 * SCALE_BYTES;
    println!(
        "Start data scale check for work load [{keys} key-value pairs, {bytes} bytes per key-value, {connections} concurrent clients]."
    );
    let plan = Plan {
        connections,
        puts: keys,
        rate: None,
        prefix: prefix.to_owned(),
        key_bytes: SCALE_BYTES,
        value: Bytes::from(vec![0; SCALE_BYTES]),
    };
    let outcome = plan.run(client).await?;
    let after = memory_bytes(client, "after").await?;
    clean(client, load, prefix).await;
    if !report_errors(&outcome) {
        return Err(Failure::new(Exit::Error, ""));
    }
    println!("PASS: Approximate system memory used : {:.2} MB.", (after - before) / f64::from(1 << 20));
    Ok(())
}

async fn check_empty(client: &Client, prefix: &str) -> Result<(), Failure> {
    let (key, range_end) = prefix_range(Bytes::copy_from_slice(prefix.as_bytes()));
    let request = pb::RangeRequest { key, range_end, limit: 1, ..pb::RangeRequest::default() };
    let found = client.call(client.kv().await?.range(request)).await?;
    if found.kvs.is_empty() {
        return Ok(());
    }
    let advice = format!("Delete with 'sternctl del --prefix {prefix}' first");
    Err(Failure::invalid_input(format!("prefix {prefix:?} has keys. {advice}")))
}

/// Resident memory of the first endpoint.
async fn memory_bytes(client: &Client, when: &str) -> Result<f64, Failure> {
    let endpoint = client.endpoints().into_iter().next().unwrap_or_default();
    let found = async {
        let text = http::get(client, &endpoint, "/metrics").await?;
        let line = text.lines().find_map(|line| line.strip_prefix(MEMORY)).unwrap_or_default();
        line.trim().parse::<f64>().map_err(|_| Failure::new(Exit::Error, format!("could not find: {MEMORY}")))
    };
    found.await.map_err(|failure| {
        println!("fetch error: {}", failure.message);
        println!("FAIL: Could not read {MEMORY} {when} the put operations.");
        Failure::new(Exit::Error, "")
    })
}

/// Deletes the keys, and does what the flags want done afterwards. A failure is told, and changes nothing about what was found.
async fn clean(client: &Client, load: &Load, prefix: &str) {
    let cleaned = async {
        let (key, range_end) = prefix_range(Bytes::copy_from_slice(prefix.as_bytes()));
        let request = pb::DeleteRangeRequest { key, range_end, prev_kv: false };
        let deleted = client.patient(PUT_PATIENCE).call(client.kv().await?.delete_range(request)).await?;
        if load.auto_compact {
            let revision = deleted.header.map_or(0, |header| header.revision);
            println!("Compacting with revision {revision}");
            let request = pb::CompactionRequest { revision, physical: true };
            client.patient(PUT_PATIENCE).call(client.kv().await?.compact(request)).await?;
            println!("Compacted with revision {revision}");
        }
        if load.auto_defrag {
            for endpoint in client.endpoints() {
                println!("Defragmenting {endpoint:?}");
                let mut maintenance = client.maintenance(&endpoint).await?;
                let request = pb::DefragmentRequest {};
                client.patient(PUT_PATIENCE).call(maintenance.defragment(request)).await?;
                println!("Defragmented {endpoint:?}");
            }
        }
        Ok::<_, Failure>(())
    };
    if let Err(failure) = cleaned.await {
        println!("FAIL: Cleanup failed during key deletion: ERROR({})", failure.message);
    }
}

/// Puts to be done.
struct Plan {
    connections: u64,
    puts: u64,
    /// A second; as fast as they are answered without it.
    rate: Option<u64>,
    prefix: String,
    key_bytes: usize,
    value: Bytes,
}

impl Plan {
    async fn run(self, client: &Client) -> Result<Outcome, Failure> {
        let plan = Arc::new(self);
        let next = Arc::new(AtomicU64::new(0));
        let clock = Arc::new(MonotonicClock::default());
        let mut services = Vec::new();
        for _ in 0..plan.connections {
            services.push(client.kv().await?);
        }
        let started_us = clock.now_us();
        let mut workers = tokio::task::JoinSet::new();
        for mut kv in services {
            let (plan, next, clock) = (Arc::clone(&plan), Arc::clone(&next), Arc::clone(&clock));
            let client = client.patient(PUT_PATIENCE);
            workers.spawn(async move {
                let mut outcome = Outcome::default();
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= plan.puts {
                        return outcome;
                    }
                    if let Some(rate) = plan.rate {
                        // Each has its moment; who is late goes at once, but not beyond the end.
                        let due_us = started_us + number * 1_000_000 / rate;
                        let now_us = clock.now_us();
                        if now_us > started_us + PERF_S * 1_000_000 {
                            return outcome;
                        }
                        tokio::time::sleep(Duration::from_micros(due_us.saturating_sub(now_us))).await;
                    }
                    let sent_us = clock.now_us();
                    match client.call(kv.put(plan.request(number))).await {
                        Ok(_) => outcome.latencies_us.push(clock.now_us() - sent_us),
                        Err(failure) => outcome.errors.push(failure.message),
                    }
                }
            });
        }
        let mut line = ProgressLine::new();
        let mut whole = Outcome::default();
        let mut look = tokio::time::interval(Duration::from_secs(1));
        loop {
            tokio::select! {
                worker = workers.join_next() => match worker {
                    None => break,
                    Some(worker) => {
                        let part = worker.map_err(|error| Failure::new(Exit::Error, error.to_string()))?;
                        whole.latencies_us.extend(part.latencies_us);
                        whole.errors.extend(part.errors);
                    }
                },
                _ = look.tick() => {
                    let done = next.load(Ordering::Relaxed).min(plan.puts);
                    line.show_text("put", &|| format!("{done} of {}", plan.puts));
                }
            }
        }
        line.clear();
        whole.elapsed_us = clock.now_us() - started_us;
        Ok(whole)
    }

    fn request(&self, number: u64) -> pb::PutRequest {
        let mut key = Vec::with_capacity(self.prefix.len() + self.key_bytes);
        key.extend_from_slice(self.prefix.as_bytes());
        key.extend_from_slice(&(number + 1).wrapping_mul(SPREAD).to_be_bytes());
        key.resize(self.prefix.len() + self.key_bytes, 0);
        pb::PutRequest { key: key.into(), value: self.value.clone(), ..pb::PutRequest::default() }
    }
}

/// Prints each sort of error with its number; true if there was none.
fn report_errors(outcome: &Outcome) -> bool {
    let mut counts = std::collections::BTreeMap::<&str, usize>::new();
    for error in &outcome.errors {
        *counts.entry(error).or_default() += 1;
    }
    if !counts.is_empty() {
        println!("FAIL: too many errors");
    }
    for (error, count) in &counts {
        println!("FAIL: ERROR({error}) -> {count}");
    }
    counts.is_empty()
}

fn standard_deviation_s(latencies_us: &[u64]) -> f64 {
    let count = latencies_us.len().max(1) as f64;
    let seconds = || latencies_us.iter().map(|us| *us as f64 / 1e6);
    let mean = seconds().sum::<f64>() / count;
    (seconds().map(|s| (s - mean).powi(2)).sum::<f64>() / count).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_distinct_and_as_long_as_they_should_be() {
        let plan = Plan {
            connections: 1,
            puts: 1,
            rate: None,
            prefix: "p/".into(),
            key_bytes: 16,
            value: Bytes::new(),
        };
        let keys: std::collections::BTreeSet<_> = (0..1_000).map(|number| plan.request(number).key).collect();
        assert!(keys.len() == 1_000 && keys.iter().all(|key| key.len() == 18 && key.starts_with(b"p/")));
    }

    #[test]
    fn how_far_answers_are_apart() {
        assert_eq!(standard_deviation_s(&[]), 0.0);
        assert!((standard_deviation_s(&[1_000_000, 3_000_000]) - 1.0).abs() < 1e-9);
    }
}
