//! What was measured, and the table of it: medians over the rounds, one table for each row.
use crate::Arguments;
use crate::engine::Peer;
use serde::{Deserialize, Serialize};
use std::fmt::Write;

/// One row of one round.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Row {
    pub(crate) row: String,
    /// Puts, gets or pairs a second, without the time that making them took.
    pub(crate) per_second: f64,
    /// Of one operation; a batch or a scan is one.
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
    pub(crate) max_us: f64,
    /// Processor time of the whole process for one put, get or pair, making them included.
    pub(crate) cpu_us: f64,
    /// Bytes at the block device for one put, get or pair.
    pub(crate) written: f64,
    /// Bytes at the block device for one byte of keys and values; 0 where nothing is put.
    pub(crate) amplification: f64,
    /// Reads of the block device for one operation.
    pub(crate) reads: f64,
}

/// One engine, once.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Round {
    pub(crate) engine: String,
    pub(crate) rows: Vec<Row>,
    /// Behind all writes, and after the engine was asked to give space back.
    pub(crate) disk_bytes_before: u64,
    pub(crate) disk_bytes: u64,
    /// Keys and values that exist.
    pub(crate) live_bytes: u64,
    pub(crate) peak_rss_anon_bytes: u64,
    /// From the call to the first get, caches dropped.
    pub(crate) open_ms: f64,
    pub(crate) caches_dropped: bool,
}

fn median(mut numbers: Vec<f64>) -> f64 {
    numbers.sort_by(f64::total_cmp);
    let middle = numbers.len() / 2;
    match numbers.len() {
        0 => 0.0,
        count if count % 2 == 1 => numbers[middle],
        _ => (numbers[middle - 1] + numbers[middle]) / 2.0,
    }
}

/// A number with as many digits as say something.
fn number(number: f64) -> String {
    match number {
        n if n >= 1000.0 => {
            let digits = format!("{n:.0}");
            let groups = digits.as_bytes().rchunks(3).rev().map(|group| String::from_utf8_lossy(group));
            groups.collect::<Vec<_>>().join(",")
        }
        n if n >= 100.0 => format!("{n:.0}"),
        n if n >= 10.0 => format!("{n:.1}"),
        n => format!("{n:.2}"),
    }
}

/// All of it, for a person.
pub(crate) fn markdown(machine: &str, peers: &[&Peer], arguments: &Arguments, rounds: &[Round]) -> String {
    let mut out = String::new();
    let _ = writeln!(
        out,
        "{machine}. {} keys, values of {} B, cache {} MiB (cold {} MiB), {} rounds in turn, medians.{}\n",
        arguments.keys,
        arguments.value,
        arguments.cache_mib,
        arguments.cold_cache_mib,
        rounds.len() / peers.len().max(1),
        if cfg!(debug_assertions) { " **Built without optimisation.**" } else { "" }
    );
    let of = |peer: &Peer| rounds.iter().filter(|round| round.engine == peer.name).collect::<Vec<_>>();
    let names = rounds.first().map(|round| round.rows.iter().map(|row| row.row.clone()).collect::<Vec<_>>());
    for (at, name) in names.unwrap_or_default().iter().enumerate() {
        let _ = writeln!(
            out,
            "**{name}**\n\n| engine | /s ↑ | p50 µs | p99 µs | max µs | CPU µs | written B | per byte put | reads |\n\
             |---|---|---|---|---|---|---|---|---|"
        );
        for peer in peers {
            let column = |field: fn(&Row) -> f64| {
                number(median(of(peer).iter().filter_map(|round| round.rows.get(at)).map(field).collect()))
            };
            let _ = writeln!(
                out,
                "| {} | {} | {} | {} | {} | {} | {} | {} | {} |",
                peer.name,
                column(|row| row.per_second),
                column(|row| row.p50_us),
                column(|row| row.p99_us),
                column(|row| row.max_us),
                column(|row| row.cpu_us),
                column(|row| row.written),
                column(|row| row.amplification),
                column(|row| row.reads)
            );
        }
        out.push('\n');
    }
    let _ = writeln!(
        out,
        "**space, memory, open**\n\n| engine | disk MiB, at once | disk MiB, settled | of live bytes | peak RssAnon MiB | open to the first get, ms |\n\
         |---|---|---|---|---|---|"
    );
    for peer in peers {
        let column = |field: fn(&Round) -> f64| number(median(of(peer).into_iter().map(field).collect()));
        let _ = writeln!(
            out,
            "| {} | {} | {} | {} | {} | {} |",
            peer.name,
            column(|round| round.disk_bytes_before as f64 / (1 << 20) as f64),
            column(|round| round.disk_bytes as f64 / (1 << 20) as f64),
            column(|round| round.disk_bytes as f64 / round.live_bytes as f64),
            column(|round| round.peak_rss_anon_bytes as f64 / (1 << 20) as f64),
            column(|round| round.open_ms)
        );
    }
    out.push('\n');
    if rounds.iter().any(|round| !round.caches_dropped) {
        out.push_str(
            "**The system's caches could not be dropped (not root): the cold rows are not cold.**\n\n",
        );
    }
    for peer in peers {
        let _ = writeln!(out, "- {}: {}", peer.name, peer.settings);
    }
    out
}
