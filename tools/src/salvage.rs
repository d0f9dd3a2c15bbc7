//! `salvage`: a new directory from what still verifies in a damaged one. Offline; the damaged directory is only read.
//!
//! **Contract.** Exit code 0 if everything that was acknowledged is in the new directory, as far as that can be known. Exit code 1 if
//! something is missing (the new directory is made all the same), or if no directory could be made. Standard output has every damage with its
//! place, what was expected and what was found, every version, range of keys and entry of the log that is missing, and what is
//! there; `-w json` prints the same as one object. On a terminal a line of progress on standard error.
use crate::ctl::failure::{Exit, Failure};
use crate::ctl::options::GlobalOptions;
use crate::inspect::failure;
use crate::inspect::report::{Cell, Report, Section};
use crate::progress::ProgressLine;
use clap::Args;
use std::path::PathBuf;
use sternpost_engine::salvage::{Damage, SalvageOptions, SalvageReport, salvage};

#[derive(Args)]
pub(crate) struct SalvageCommand {
    /// The damaged data directory, which no process has open; nothing in it is changed
    #[arg(value_name = "DIR")]
    from: PathBuf,
    /// The directory to make; it must not exist, or be empty
    #[arg(long, value_name = "NEWDIR")]
    to: PathBuf,
    /// Memory for keys whose page is lost, in MiB; with less, the records are read more often
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    memory_mib: u32,
}

pub(crate) fn run(command: &SalvageCommand, options: &GlobalOptions) -> Result<(), Failure> {
    let mut printer = options.printer()?;
    let mut line = ProgressLine::new();
    let memory_bytes = usize::try_from(u64::from(command.memory_mib) << 20).unwrap_or(usize::MAX);
    let salvage_options = SalvageOptions { memory_bytes, ..SalvageOptions::default() };
    let report = salvage(&command.from, &command.to, &salvage_options, &mut |progress| {
        match progress.bytes_total {
            // What has no known end is counted by piece.
            0 => line.show_text(progress.part, &|| progress.bytes_done.to_string()),
            total => line.show(progress.part, progress.bytes_done, Some(total)),
        }
    });
    line.clear();
    let report = report.map_err(|error| failure(&error))?;
    printer.report(&printed(&report))?;
    printer.flush()?;
    match report.is_complete() {
        true => Ok(()),
        false => Err(Failure::new(
            Exit::Error,
            format!(
                "{} was made, and something is missing from it; the report names it",
                command.to.display()
            ),
        )),
    }
}

fn optional(number: Option<impl Into<i128>>) -> Cell {
    number.map_or(Cell::None, Cell::number)
}

fn damage_row(damage: &Damage) -> Vec<Cell> {
    let revision = |revision: Option<String>| revision.map_or(Cell::None, Cell::text);
    vec![
        Cell::text(&damage.file),
        Cell::number(damage.offset),
        Cell::number(damage.bytes),
        Cell::text(&damage.what),
        revision(damage.between.map(|(after, _)| after.to_string())),
        revision(damage.between.map(|(_, before)| before.to_string())),
        Cell::text(if damage.is_loss() { "yes" } else { "no" }),
    ]
}

fn printed(report: &SalvageReport) -> Report {
    let records = report.damages.iter().flat_map(|damage| {
        damage.records.iter().map(move |(revision, record)| {
            vec![
                Cell::text(revision.to_string()),
                record.key.as_ref().map_or(Cell::None, |key| Cell::bytes(key)),
                Cell::text(record.fate.name()),
                Cell::text(&damage.file),
                Cell::number(damage.offset),
            ]
        })
    });
    let ranges =
        report.damages.iter().filter_map(|damage| damage.range.as_ref().map(|range| (damage, range)));
    let ranges = ranges.map(|(damage, range)| {
        vec![
            Cell::text(range.tree),
            Cell::bytes(&range.from),
            range.to.as_ref().map_or(Cell::None, |to| Cell::bytes(to)),
            optional(range.keys_expected),
            Cell::number(range.keys_found),
            Cell::text(if range.is_proven { "yes" } else { "no" }),
            Cell::text(&damage.file),
            Cell::number(damage.offset),
        ]
    });
    let entries = report
        .entries_lost
        .map(|lost| vec![Cell::number(lost.first), Cell::number(lost.last), Cell::number(lost.behind)]);
    Report::new(vec![
        Section::fields(
            "salvaged",
            vec![
                ("complete", Cell::text(if report.is_complete() { "yes" } else { "no" })),
                ("revision", Cell::number(report.revision)),
                ("compact_revision", Cell::number(report.compact_revision)),
                ("compact_revision_before", optional(report.compact_revision_before)),
                ("records", Cell::number(report.records)),
                ("keys", Cell::number(report.keys)),
                ("system_records", Cell::number(report.system_records)),
                ("entries", Cell::number(report.entries)),
            ],
        ),
        Section::list(
            "damages",
            &["file", "offset", "bytes", "expected_and_found", "after_revision", "before_revision", "loss"],
            report.damages.iter().map(damage_row).collect(),
        ),
        Section::list("records", &["revision", "key", "fate", "file", "offset"], records.collect()),
        Section::list(
            "ranges",
            &["tree", "from", "to", "keys_expected", "keys_found", "proven", "file", "offset"],
            ranges.collect(),
        ),
        Section::list(
            "entries_lost",
            &["first_index", "last_index", "behind"],
            entries.into_iter().collect(),
        ),
        Section::list("notes", &["note"], report.notes.iter().map(|note| vec![Cell::text(note)]).collect()),
    ])
}
