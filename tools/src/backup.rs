//! `backup`: makes, verifies and restores backups of data directories that no process has open. Offline; speaks to no server.
//!
//! **Contract.** Exit code 0 and one line on standard output with what was done, or exit code 1 and what is wrong on standard
//! error: file, offset, what was expected and what was found. On a terminal a line of progress on standard error. `-w json` (or
//! `--json`) prints the same as an object. A directory in use is refused: the program that has it open backs it up.
//!
//! **Does not know** what is in the files.
use crate::ctl::failure::Failure;
use crate::ctl::json::Object;
use crate::ctl::options::GlobalOptions;
use crate::ctl::printer::{Format, Printer};
use crate::ctl::table::bytes_text;
use crate::inspect::failure;
use crate::progress::ProgressLine;
use clap::{Args, Subcommand};
use std::path::PathBuf;
use sternpost_engine::backup::{Backup, BackupOptions, BackupProgress, create_offline, restore};

#[derive(Args)]
pub(crate) struct BackupCommand {
    #[command(subcommand)]
    what: What,
    /// Short for `-w json`
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Subcommand)]
enum What {
    /// Back up a data directory that is not in use
    Create {
        /// Data directory
        directory: PathBuf,
        /// New directory for the backup
        #[arg(long)]
        to: PathBuf,
        /// Leave out what this backup (or the one whose manifest this is) has already
        #[arg(long)]
        base: Option<PathBuf>,
        /// Copy segments even where they could get a second name (hard link)
        #[arg(long)]
        copy: bool,
    },
    /// Read a backup and its bases and compare everything with the checksums
    Verify {
        /// The backup
        directory: PathBuf,
        /// Where a base is, if it was moved; may be given several times
        #[arg(long)]
        base: Vec<PathBuf>,
    },
    /// Verify a backup, then restore it into a new data directory
    Restore {
        /// The backup
        directory: PathBuf,
        /// New data directory
        #[arg(long)]
        to: PathBuf,
        /// Where a base is, if it was moved; may be given several times
        #[arg(long)]
        base: Vec<PathBuf>,
    },
}

pub(crate) fn run(command: BackupCommand, options: &GlobalOptions) -> Result<(), Failure> {
    let mut printer = options.printer()?;
    if command.json {
        printer.format = Format::Json;
    }
    let mut line = ProgressLine::new();
    let mut progress = |done: BackupProgress| {
        line.show(done.part, done.bytes_done, (done.bytes_total > 0).then_some(done.bytes_total))
    };
    let printed = match command.what {
        What::Create { directory, to, base, copy } => {
            let options = BackupOptions::default().links(!copy).base(base);
            create_offline(directory, to, &options, &mut progress).map(|report| created(&printer, &report))
        }
        What::Verify { directory, base } => Backup::open(directory, &base)
            .and_then(|backup| backup.verify(&mut progress))
            .map(|verified| self::verified(&printer, &verified)),
        What::Restore { directory, to, base } => Backup::open(directory, &base)
            .and_then(|backup| restore(&backup, to, &mut progress))
            .map(|report| restored(&printer, &report)),
    };
    line.clear();
    printer.line(printed.map_err(|error| failure(&error))?);
    printer.flush()
}

/// An object with the revision, if it is known.
fn object(revision: Option<i64>) -> Object {
    let object = Object::new();
    match revision {
        Some(revision) => object.number_always("revision", revision),
        None => object,
    }
}

fn at(revision: Option<i64>) -> String {
    revision.map_or_else(String::new, |revision| format!(", revision {revision}"))
}

fn created(printer: &Printer, report: &sternpost_engine::backup::BackupReport) -> String {
    match printer.format {
        Format::Json => object(report.revision)
            .number_always("files", report.files_count)
            .number_always("bytes", report.bytes)
            .number_always("bytes_linked", report.bytes_linked)
            .number_always("bytes_copied", report.bytes_copied)
            .number_always("bytes_in_base", report.bytes_in_base)
            .end(),
        _ => format!(
            "backed up: {} files of {}: {} linked, {} copied, {} in the base{}",
            report.files_count,
            bytes_text(report.bytes),
            bytes_text(report.bytes_linked),
            bytes_text(report.bytes_copied),
            bytes_text(report.bytes_in_base),
            at(report.revision)
        ),
    }
}

fn verified(printer: &Printer, verified: &sternpost_engine::backup::VerifiedBackup) -> String {
    match printer.format {
        Format::Json => object(verified.revision)
            .number_always("files", verified.files_count)
            .number_always("bytes", verified.bytes)
            .number_always("backups", verified.backups_count)
            .end(),
        _ => format!(
            "verified: {} files of {} in {} backups{}",
            verified.files_count,
            bytes_text(verified.bytes),
            verified.backups_count,
            at(verified.revision)
        ),
    }
}

fn restored(printer: &Printer, report: &sternpost_engine::backup::RestoreReport) -> String {
    match printer.format {
        Format::Json => object(report.revision)
            .number_always("files", report.files_count)
            .number_always("bytes", report.bytes)
            .end(),
        _ => format!(
            "restored: {} files of {}{}",
            report.files_count,
            bytes_text(report.bytes),
            at(report.revision)
        ),
    }
}
