//! Medians, ratios, and the table.
//!
//! A ratio is always sternpost's number divided by etcd's, and says by an arrow which direction is better. Fewer than three
//! rounds give a table that says so.
use serde::Serialize;
use std::fmt::Write;
use sternpost_tools::bench::machine::Machine;
use sternpost_tools::bench::report::{BenchmarkResult, Series, grouped, us_text};

/// Everything that was measured.
#[derive(Serialize)]
pub(crate) struct Comparison {
    /// Where and how.
    pub(crate) facts: RunFacts,
    /// Turns in the order in which they ran.
    pub(crate) rounds: Vec<Round>,
}

/// Where and how a run was made.
#[derive(Serialize)]
pub(crate) struct RunFacts {
    /// The machine.
    pub(crate) machine: Machine,
    /// The disk under the data.
    pub(crate) device: String,
    /// Names of the contestants; the first is what ratios are against.
    pub(crate) names: Vec<String>,
    /// What they say of their versions.
    pub(crate) versions: Vec<String>,
    /// The commit of this project.
    pub(crate) commit: String,
    /// Arguments of this program.
    pub(crate) command: String,
    /// Turns of each contestant.
    pub(crate) rounds: usize,
    /// Length of the measured part of each workload.
    pub(crate) seconds: u64,
    /// True when this program, and so probably the others, was built without optimisation.
    pub(crate) is_debug_build: bool,
}

/// One turn of one contestant.
#[derive(Serialize)]
pub(crate) struct Round {
    /// Its position in the names.
    pub(crate) contestant: usize,
    /// From start to ready line.
    pub(crate) ready_ms: u64,
    /// Resident memory when ready and quiet.
    pub(crate) idle_resident_kib: u64,
    /// The part of it that belongs to no file.
    pub(crate) idle_anonymous_kib: u64,
    /// Resident memory after all workloads.
    pub(crate) end_resident_kib: u64,
    /// The part of it that belongs to no file.
    pub(crate) end_anonymous_kib: u64,
    /// The workloads.
    pub(crate) results: Vec<RowResult>,
}

/// One workload of one turn.
#[derive(Serialize)]
pub(crate) struct RowResult {
    /// Its name.
    pub(crate) row: String,
    /// What `sternctl bench` measured.
    pub(crate) result: BenchmarkResult,
}

/// One column: what it is called, whether less is better, how it is read and written.
struct Column {
    title: &'static str,
    is_less_better: bool,
    value: fn(&BenchmarkResult) -> f64,
    text: fn(f64) -> String,
}

const COLUMNS: [Column; 7] = [
    Column {
        title: "ops/s",
        is_less_better: false,
        value: |result| result.summary.operations_per_second,
        text: count_text,
    },
    Column {
        title: "p50",
        is_less_better: true,
        value: |result| main_series(result).p50_us as f64,
        text: time_text,
    },
    Column {
        title: "p99",
        is_less_better: true,
        value: |result| main_series(result).p99_us as f64,
        text: time_text,
    },
    Column {
        title: "max",
        is_less_better: true,
        value: |result| main_series(result).max_us as f64,
        text: time_text,
    },
    Column {
        title: "server CPU/1000",
        is_less_better: true,
        value: |result| {
            per_1000(result, result.usage.as_ref().map_or(0, |usage| usage.cpu_user_us + usage.cpu_system_us))
        },
        text: time_text,
    },
    Column {
        title: "disk KiB/1000",
        is_less_better: true,
        value: |result| {
            per_1000(result, result.usage.as_ref().map_or(0, |usage| usage.device_write_bytes)) / 1024.0
        },
        text: decimal_text,
    },
    Column {
        title: "generator CPU/1000",
        is_less_better: true,
        value: |result| result.generator.cpu_us_per_1000_operations,
        text: time_text,
    },
];

/// What a turn's memory and start are called and where they are.
type RoundField = (&'static str, fn(&Round) -> f64, fn(f64) -> String);

const ROUND_FIELDS: [RoundField; 5] = [
    ("start to ready line", |round| round.ready_ms as f64, |ms| format!("{ms:.0} ms")),
    ("idle resident", |round| round.idle_resident_kib as f64, mib_text),
    ("idle anonymous", |round| round.idle_anonymous_kib as f64, mib_text),
    ("resident at the end", |round| round.end_resident_kib as f64, mib_text),
    ("anonymous at the end", |round| round.end_anonymous_kib as f64, mib_text),
];

impl Comparison {
    /// The table and what is needed to judge it.
    pub(crate) fn markdown(&self) -> String {
        let mut out = String::new();
        // Writing to a string does not fail.
        self.write_markdown(&mut out).expect("a string takes everything");
        out
    }

    fn write_markdown(&self, out: &mut String) -> std::fmt::Result {
        let facts = &self.facts;
        let [reference, other] = [&facts.names[0], &facts.names[1]];
        writeln!(out, "{} against {}: medians of {} rounds, in turn\n", other, reference, facts.rounds)?;
        if facts.is_debug_build {
            writeln!(out, "**Built without optimisation: the numbers mean nothing.**\n")?;
        }
        if facts.rounds < 3 {
            writeln!(out, "**Fewer than three rounds: no number here is a median of anything.**\n")?;
        }
        write!(out, "| workload |")?;
        for column in &COLUMNS {
            write!(out, " {} {} |", column.title, if column.is_less_better { "↓" } else { "↑" })?;
        }
        writeln!(out, "\n|---|{}", "---|".repeat(COLUMNS.len()))?;
        for row in self.row_names() {
            write!(out, "| {row} |")?;
            for column in &COLUMNS {
                let value = |contestant| median(self.row_values(contestant, row, column.value));
                write!(out, " {} |", cell(value(0), value(1), column.text))?;
            }
            writeln!(out)?;
            self.write_from_send(out, row)?;
        }
        writeln!(out, "\n| memory and start ↓ | {reference} / {other} |\n|---|---|")?;
        for (title, value, text) in &ROUND_FIELDS {
            let values = |contestant| median(self.turns(contestant).map(value).collect());
            writeln!(out, "| {title} | {} |", cell(values(0), values(1), *text))?;
        }
        writeln!(out, "\nCells: {reference} / {other} (ratio); ↓ less is better, ↑ more is better.")?;
        let machine = &facts.machine;
        let memory_gib = machine.memory_kib as f64 / 1024.0 / 1024.0;
        writeln!(
            out,
            "{}, {} CPUs, {memory_gib:.0} GiB, kernel {}; {}.",
            machine.cpu_model, machine.cpus, machine.kernel, facts.device
        )?;
        writeln!(out, "{}; {}; commit {}.", facts.versions[0], facts.versions[1], facts.commit)?;
        writeln!(out, "`compare {}`, {} s each.", facts.command, facts.seconds)?;
        for note in self.notes() {
            writeln!(out, "- {note}")?;
        }
        Ok(())
    }

    /// A second line for watches: from the sending of a put, because an event that overtakes the writer's answer is
    /// delivered 0 after the commit, of which there is no ratio.
    fn write_from_send(&self, out: &mut String, row: &str) -> std::fmt::Result {
        let columns: [fn(&BenchmarkResult) -> f64; 3] = [
            |result| series(result, "send_to_delivery").map_or(0.0, |series| series.p50_us as f64),
            |result| series(result, "send_to_delivery").map_or(0.0, |series| series.p99_us as f64),
            |result| series(result, "send_to_delivery").map_or(0.0, |series| series.max_us as f64),
        ];
        let value = |contestant, column| median(self.row_values(contestant, row, column));
        if value(0, columns[2]) == 0.0 {
            return Ok(());
        }
        write!(out, "| {row}, from send | |")?;
        for column in columns {
            write!(out, " {} |", cell(value(0, column), value(1, column), time_text))?;
        }
        writeln!(out, " | | |")
    }

    /// Names of the workloads in the order of the first turn.
    fn row_names(&self) -> Vec<&str> {
        self.rounds
            .first()
            .map_or_else(Vec::new, |round| round.results.iter().map(|r| r.row.as_str()).collect())
    }

    fn turns(&self, contestant: usize) -> impl Iterator<Item = &Round> {
        self.rounds.iter().filter(move |round| round.contestant == contestant)
    }

    fn row_values(&self, contestant: usize, row: &str, value: fn(&BenchmarkResult) -> f64) -> Vec<f64> {
        let results =
            self.turns(contestant).flat_map(|round| &round.results).filter(|result| result.row == row);
        results.map(|result| value(&result.result)).collect()
    }

    /// Failures, so that no number hides one.
    fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        for round in &self.rounds {
            for RowResult { row, result } in &round.results {
                for error in &result.summary.errors {
                    let name = &self.facts.names[round.contestant];
                    notes.push(format!("{name}, {row}: {} failures: {}", error.count, error.name));
                }
            }
        }
        notes
    }
}

/// The series that a row is judged by.
fn main_series(result: &BenchmarkResult) -> &Series {
    static NONE: Series = Series {
        name: String::new(),
        count: 0,
        mean_us: 0.0,
        p50_us: 0,
        p90_us: 0,
        p99_us: 0,
        p999_us: 0,
        max_us: 0,
    };
    result.summary.series.first().unwrap_or(&NONE)
}

fn series<'a>(result: &'a BenchmarkResult, name: &str) -> Option<&'a Series> {
    result.summary.series.iter().find(|series| series.name == name)
}

fn per_1000(result: &BenchmarkResult, amount: u64) -> f64 {
    amount as f64 * 1_000.0 / result.summary.operations.max(1) as f64
}

/// The middle value; of two middle ones their mean; 0 of none.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => 0.0,
        count if count % 2 == 1 => values[middle],
        _ => f64::midpoint(values[middle - 1], values[middle]),
    }
}

fn cell(reference: f64, other: f64, text: fn(f64) -> String) -> String {
    let ratio = if reference > 0.0 { format!("{:.2}x", other / reference) } else { "–".to_owned() };
    format!("{} / {} ({ratio})", text(reference), text(other))
}

fn count_text(value: f64) -> String {
    grouped(value.round() as u64)
}

fn time_text(value: f64) -> String {
    us_text(value.round() as u64)
}

fn decimal_text(value: f64) -> String {
    if value < 10.0 { format!("{value:.1}") } else { grouped(value.round() as u64) }
}

fn mib_text(kib: f64) -> String {
    format!("{:.1} MiB", kib / 1024.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use sternpost_tools::bench::report::{Counter, Summary, Usage};

    fn turn(contestant: usize, per_second: f64, cpu_us: u64) -> Round {
        let summary = Summary {
            operations: 10_000,
            operations_per_second: per_second,
            series: vec![Series { p50_us: 500, p99_us: 2_000, max_us: 9_000, ..Series::default() }],
            errors: if contestant == 1 {
                vec![Counter { name: "late".to_owned(), count: 3 }]
            } else {
                Vec::new()
            },
            ..Summary::default()
        };
        let usage = Usage { cpu_user_us: cpu_us, device_write_bytes: 1 << 20, ..Usage::default() };
        let result = BenchmarkResult { summary, usage: Some(usage), ..BenchmarkResult::default() };
        Round {
            contestant,
            ready_ms: 100,
            idle_resident_kib: 20 << 10,
            idle_anonymous_kib: 10 << 10,
            end_resident_kib: 40 << 10,
            end_anonymous_kib: 30 << 10,
            results: vec![RowResult { row: "put".to_owned(), result }],
        }
    }

    #[test]
    fn the_table_has_medians_and_ratios_against_the_first() {
        let comparison = Comparison {
            facts: RunFacts {
                machine: Machine::default(),
                device: "disk".to_owned(),
                names: vec!["etcd".to_owned(), "sternpost".to_owned()],
                versions: vec!["one".to_owned(), "two".to_owned()],
                commit: "c".to_owned(),
                command: String::new(),
                rounds: 3,
                seconds: 10,
                is_debug_build: false,
            },
            rounds: vec![
                turn(0, 1_000.0, 500_000),
                turn(1, 2_500.0, 250_000),
                turn(0, 9_000.0, 500_000),
                turn(1, 2_000.0, 250_000),
                turn(0, 1_000.0, 500_000),
                turn(1, 2_000.0, 250_000),
            ],
        };
        let table = comparison.markdown();
        assert!(table.contains("| put | 1,000 / 2,000 (2.00x) | 500 µs / 500 µs (1.00x) |"), "{table}");
        assert!(table.contains("50.0 ms / 25.0 ms (0.50x) | 102 / 102 (1.00x)"), "{table}");
        assert!(table.contains("| idle resident | 20.0 MiB / 20.0 MiB (1.00x) |"), "{table}");
        assert!(table.contains("- sternpost, put: 3 failures: late"), "{table}");
    }

    #[test]
    fn the_median_is_the_middle() {
        assert_eq!(median(vec![]), 0.0);
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), 2.5);
    }
}
