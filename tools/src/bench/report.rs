//! The result of a run: what is kept in a file, and how it is told.
//!
//! A result is kept in two forms: JSON for other programs (`--json`), and the engine's checksummed envelope
//! (`--result`), which says by itself when it was damaged. [`BenchmarkResult::read`] takes both. Times are in
//! microseconds; a name ends in its unit.
use super::machine::{CpuTime, Machine};
use super::record::Window;
use bincode::{Decode, Encode};
use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};
use std::fmt::Write;
use sternpost_engine::base::envelope::{self, EnvelopeKind};

/// Version of [`BenchmarkResult`] inside the envelope.
const RESULT_VERSION: u16 = 1;

/// Everything that is known of a run.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize, Encode, Decode)]
pub struct BenchmarkResult {
    /// What the user calls the run.
    pub label: String,
    /// The arguments of the program.
    pub command: Vec<String>,
    /// Start of the run, in seconds since 1970.
    pub started_unix_s: u64,
    /// Where the generator ran.
    pub machine: Machine,
    /// What answered.
    pub server: Server,
    /// What was asked for.
    pub settings: Settings,
    /// The measured part as a whole.
    pub summary: Summary,
    /// What the generator used in the measured part.
    pub generator: Generator,
    /// What the server used in it, when it ran on the same machine and was named.
    pub usage: Option<Usage>,
    /// The measured part second by second.
    pub timeline: Vec<Second>,
}

/// What the server said of itself before the run.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, Encode, Decode)]
pub struct Server {
    /// The endpoints.
    pub endpoints: Vec<String>,
    /// Its version; empty when it did not say.
    pub version: String,
    /// Size of its data in bytes.
    pub db_size_bytes: i64,
}

/// The load.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize, Encode, Decode)]
pub struct Settings {
    /// What an operation is.
    pub workload: String,
    /// What else there is to say of it.
    pub details: String,
    /// Threads of the generator.
    pub threads: u64,
    /// Connections.
    pub connections: u64,
    /// Operations that could be under way at once.
    pub clients: u64,
    /// Operations a second; 0 for a closed loop.
    pub rate: f64,
    /// Keys in the key space.
    pub keys: u64,
    /// Bytes of a key.
    pub key_bytes: u64,
    /// Bytes of a value.
    pub value_bytes: u64,
    /// Keys came one after the other.
    pub sequential_keys: bool,
    /// What values look like.
    pub value_kind: String,
    /// Length of the part that was not measured, in seconds.
    pub warm_up_s: f64,
    /// What all choices were drawn from.
    pub seed: u64,
}

/// A run in numbers.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize, Encode, Decode)]
pub struct Summary {
    /// Measured operations that succeeded; for watches, events delivered.
    pub operations: u64,
    /// Length of the measured part in seconds.
    pub seconds: f64,
    /// The one divided by the other.
    pub operations_per_second: f64,
    /// Latencies.
    pub series: Vec<Series>,
    /// Counters of the workload.
    pub counters: Vec<Counter>,
    /// Failures by their text.
    pub errors: Vec<Counter>,
}

/// The latencies of one kind.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize, Encode, Decode)]
pub struct Series {
    /// `latency` counts from the moment an operation was meant to begin, `service` from when it did, `lag` is the
    /// time between; `commit_to_delivery`, `send_to_delivery` and `put` belong to watches.
    pub name: String,
    /// How many.
    pub count: u64,
    /// Mean.
    pub mean_us: f64,
    /// Half are at most this.
    pub p50_us: u64,
    /// 90 of 100 are at most this.
    pub p90_us: u64,
    /// 99 of 100 are at most this.
    pub p99_us: u64,
    /// 999 of 1,000 are at most this.
    pub p999_us: u64,
    /// The longest.
    pub max_us: u64,
}

/// A name and a number.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, Encode, Decode)]
pub struct Counter {
    /// What is counted.
    pub name: String,
    /// How many.
    pub count: u64,
}

/// The generator's own use of the machine.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize, Encode, Decode)]
pub struct Generator {
    /// Its version.
    pub version: String,
    /// Processor time in its own code.
    pub cpu_user_us: u64,
    /// Processor time in the kernel.
    pub cpu_system_us: u64,
    /// Both, for 1,000 operations.
    pub cpu_us_per_1000_operations: f64,
}

/// What a server used while it was measured, and what the disk did.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, Encode, Decode)]
pub struct Usage {
    /// Processor time in its own code.
    pub cpu_user_us: u64,
    /// Processor time in the kernel.
    pub cpu_system_us: u64,
    /// Its resident memory at the end (`VmRSS`).
    pub resident_kib: u64,
    /// The part of it that belongs to no file (`RssAnon`).
    pub anonymous_kib: u64,
    /// The disk under its data, and what decides how long a durable write takes.
    pub device: String,
    /// Bytes written to the disk, by everybody.
    pub device_write_bytes: u64,
    /// Writes to the disk.
    pub device_writes: u64,
    /// Flushes of the disk's cache.
    pub device_flushes: u64,
}

/// One second.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, Encode, Decode)]
pub struct Second {
    /// Its number, from 0.
    pub second: u64,
    /// Operations that ended in it.
    pub operations: u64,
    /// Failures in it.
    pub errors: u64,
    /// Half of the latencies are at most this.
    pub p50_us: u64,
    /// 99 of 100 are at most this.
    pub p99_us: u64,
    /// The longest.
    pub max_us: u64,
}

impl Second {
    /// A complete window in numbers.
    pub(crate) fn of(window: &Window) -> Self {
        let main = &window.series[0];
        Self {
            second: window.number,
            operations: main.len(),
            errors: window.errors_count(),
            p50_us: main.value_at_quantile(0.5),
            p99_us: main.value_at_quantile(0.99),
            max_us: main.max(),
        }
    }

    /// For the progress line.
    pub(crate) fn line(&self) -> String {
        format!(
            "{:>4}s {:>9}/s  p50 {:>8}  p99 {:>8}  max {:>8}  errors {}",
            self.second + 1,
            grouped(self.operations),
            us_text(self.p50_us),
            us_text(self.p99_us),
            us_text(self.max_us),
            self.errors
        )
    }
}

impl Summary {
    /// All windows in numbers.
    pub(crate) fn of(sum: &Window, seconds: f64, series_names: &[&str], counter_names: &[&str]) -> Self {
        let operations = sum.series[0].len();
        let counter = |(name, count): (&str, u64)| Counter { name: name.to_owned(), count };
        Self {
            operations,
            seconds,
            operations_per_second: operations as f64 / seconds,
            series: series_names
                .iter()
                .zip(&sum.series)
                .map(|(name, histogram)| series(name, histogram))
                .collect(),
            counters: counter_names.iter().copied().zip(sum.counters.iter().copied()).map(counter).collect(),
            errors: sum.errors.iter().map(|(text, count)| counter((text, *count))).collect(),
        }
    }
}

fn series(name: &str, histogram: &Histogram<u64>) -> Series {
    Series {
        name: name.to_owned(),
        count: histogram.len(),
        mean_us: histogram.mean(),
        p50_us: histogram.value_at_quantile(0.5),
        p90_us: histogram.value_at_quantile(0.9),
        p99_us: histogram.value_at_quantile(0.99),
        p999_us: histogram.value_at_quantile(0.999),
        max_us: histogram.max(),
    }
}

impl Generator {
    pub(crate) fn of(cpu: &CpuTime, operations: u64) -> Self {
        Self {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            cpu_user_us: cpu.user_us,
            cpu_system_us: cpu.system_us,
            cpu_us_per_1000_operations: cpu.total_us() as f64 * 1_000.0 / operations.max(1) as f64,
        }
    }
}

impl BenchmarkResult {
    /// The result as an enveloped file.
    pub fn to_envelope(&self) -> Vec<u8> {
        envelope::seal(EnvelopeKind::BenchmarkResult, RESULT_VERSION, self)
    }

    /// The result as JSON.
    pub fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).expect("numbers and texts are JSON") + "\n"
    }

    /// Reads a file of either form.
    ///
    /// # Errors
    /// When it is neither, damaged, or of another version; the text says which.
    pub fn read(file: &[u8]) -> Result<Self, String> {
        if file.trim_ascii_start().starts_with(b"{") {
            return serde_json::from_slice(file).map_err(|error| format!("not a result in JSON: {error}"));
        }
        envelope::open(EnvelopeKind::BenchmarkResult, RESULT_VERSION, file).map_err(|error| error.to_string())
    }

    /// The result for people; with the timeline when there is one to show.
    pub fn text(&self, with_timeline: bool) -> String {
        let mut out = String::new();
        // Writing to a string does not fail.
        self.write_text(&mut out, with_timeline).expect("a string takes everything");
        out
    }

    fn write_text(&self, out: &mut String, with_timeline: bool) -> std::fmt::Result {
        let Self { settings, summary, server, machine, generator, .. } = self;
        let pace = if settings.rate > 0.0 {
            format!("open loop, {}/s", grouped(settings.rate.round() as u64))
        } else {
            "closed loop".to_owned()
        };
        if !self.label.is_empty() {
            writeln!(out, "{}", self.label)?;
        }
        writeln!(out, "{} against {} ({})", settings.workload, server.endpoints.join(", "), server.version)?;
        writeln!(
            out,
            "{} clients, {} connections, {} threads, {pace}; {} keys of {} B, values of {} B{}",
            settings.clients,
            settings.connections,
            settings.threads,
            grouped(settings.keys),
            settings.key_bytes,
            settings.value_bytes,
            if settings.details.is_empty() { String::new() } else { format!("; {}", settings.details) },
        )?;
        writeln!(out, "{}, {} CPUs, kernel {}", machine.cpu_model, machine.cpus, machine.kernel)?;
        if with_timeline {
            writeln!(out)?;
            for second in &self.timeline {
                writeln!(out, "{}", second.line())?;
            }
        }
        writeln!(out)?;
        writeln!(
            out,
            "{} operations in {:.2} s: {}/s; generator {} of CPU per 1,000",
            grouped(summary.operations),
            summary.seconds,
            grouped(summary.operations_per_second.round() as u64),
            us_text(generator.cpu_us_per_1000_operations.round() as u64),
        )?;
        let heads = ["count", "p50", "p90", "p99", "p99.9", "max", "mean"];
        write!(out, "{:<20}", "")?;
        for head in heads {
            write!(out, "{head:>11}")?;
        }
        writeln!(out)?;
        for series in &summary.series {
            let times = [series.p50_us, series.p90_us, series.p99_us, series.p999_us, series.max_us];
            write!(out, "{:<20}{:>11}", series.name, grouped(series.count))?;
            for time in times.into_iter().chain([series.mean_us.round() as u64]) {
                write!(out, "{:>11}", us_text(time))?;
            }
            writeln!(out)?;
        }
        if let Some(usage) = &self.usage {
            let per_1000 = |amount: u64| amount as f64 * 1_000.0 / summary.operations.max(1) as f64;
            writeln!(
                out,
                "server: {} of CPU and {:.1} KiB to {} per 1,000 operations; {} MiB resident",
                us_text(per_1000(usage.cpu_user_us + usage.cpu_system_us).round() as u64),
                per_1000(usage.device_write_bytes) / 1024.0,
                usage.device,
                usage.resident_kib / 1024,
            )?;
        }
        for counter in &summary.counters {
            writeln!(out, "{:<20}{:>11}", counter.name, grouped(counter.count))?;
        }
        for error in &summary.errors {
            writeln!(out, "error {}x: {}", grouped(error.count), error.name)?;
        }
        Ok(())
    }
}

/// Microseconds for people.
pub fn us_text(us: u64) -> String {
    match us {
        0..1_000 => format!("{us} µs"),
        1_000..10_000 => format!("{:.2} ms", us as f64 / 1e3),
        10_000..1_000_000 => format!("{:.1} ms", us as f64 / 1e3),
        _ => format!("{:.2} s", us as f64 / 1e6),
    }
}

/// A number with a comma every three digits.
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (position, digit) in digits.chars().enumerate() {
        if position > 0 && (digits.len() - position).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::super::record::add_latency;
    use super::*;

    fn example() -> BenchmarkResult {
        let mut window = Window::new(0, 2, 1);
        for us in 1..=1_000 {
            // Beyond the 2,048 µs that a histogram holds before it grows.
            add_latency(&mut window.series[0], us * 1_000);
        }
        window.errors.insert("etcdserver: too many requests".to_owned(), 2);
        BenchmarkResult {
            label: "a label".to_owned(),
            summary: Summary::of(&window, 2.0, &["latency", "lag"], &["conflicts"]),
            timeline: vec![Second::of(&window)],
            ..BenchmarkResult::default()
        }
    }

    #[test]
    fn a_result_comes_back_from_both_forms() {
        let result = example();
        assert_eq!(BenchmarkResult::read(&result.to_envelope()).unwrap(), result);
        assert_eq!(BenchmarkResult::read(result.to_json().as_bytes()).unwrap(), result);
        assert!(BenchmarkResult::read(b"").unwrap_err().contains("damaged"));
        assert!(BenchmarkResult::read(b"{}").unwrap_err().contains("not a result"));
    }

    #[test]
    fn a_summary_says_what_was_recorded() {
        let summary = example().summary;
        assert_eq!((summary.operations, summary.operations_per_second), (1_000, 500.0));
        let latency = &summary.series[0];
        // To three digits: the number that stands for a latency is at most 0.1 % above it.
        for (found, expected) in
            [(latency.p50_us, 500_000), (latency.p99_us, 990_000), (latency.max_us, 1_000_000)]
        {
            assert!((expected..=expected + expected / 1_000).contains(&found), "{found} {expected}");
        }
        assert!(example().text(true).contains("error 2x: etcdserver: too many requests"));
    }

    #[test]
    fn numbers_are_written_for_people() {
        assert_eq!([grouped(0), grouped(999), grouped(1_234_567)], ["0", "999", "1,234,567"]);
        assert_eq!(
            [us_text(7), us_text(1_234), us_text(12_345), us_text(1_234_567)],
            ["7 µs", "1.23 ms", "12.3 ms", "1.23 s"]
        );
    }
}
