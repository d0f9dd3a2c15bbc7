//! `backup`: makes, verifies and restores backups of data directories that no process has open, and exports and imports what embedded
//! databases hold. Offline; speaks to no server, but for `remote`, which is in `remote_backup`.
//!
//! **Contract.** Exit code 0 and one line on standard output with what was done, or exit code 1 and what is wrong on standard
//! error: file, offset, what was expected and what was found. On a terminal a line of progress on standard error. `-w json` (or
//! `--json`) prints the same as an object. A directory in use is refused: the program that has it open backs it up.
//!
//! An export is written under another name until it is durable, and never over a file that exists; `-` is standard output or
//! input.
//!
//! **Does not know** what is in the files.
use crate::ctl::connect::Client;
use crate::ctl::failure::Failure;
use crate::ctl::json::Object;
use crate::ctl::options::GlobalOptions;
use crate::ctl::printer::{Format, Printer};
use crate::ctl::table::bytes_text;
use crate::inspect::failure;
use crate::progress::ProgressLine;
use crate::remote_backup::{self, RemoteBackup};
use clap::{Args, Subcommand};
use std::fs::File;
use std::io::{BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;
use sternpost_engine::backup::{Backup, BackupOptions, BackupProgress, Reading, create_offline, restore};
use sternpost_engine::export::StreamReport;
use sternpost_engine::inspect::Inspection;
use sternpost_engine::io::IoError;
use sternpost_engine::{Db, Error, Options, Result};

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
    /// Backups that a running member makes of itself
    #[command(subcommand)]
    Remote(RemoteBackup),
    /// Write what an embedded database holds to a file, for any later release to import
    Export {
        /// Data directory
        directory: PathBuf,
        /// New file, or `-`
        #[arg(long)]
        to: PathBuf,
        #[command(flatten)]
        range: ExportRange,
    },
    /// Read an export into a new data directory, or changes into the one that they follow
    Import {
        /// The file, or `-`
        file: PathBuf,
        /// Data directory
        #[arg(long)]
        to: PathBuf,
    },
}

/// Which revisions are exported.
#[derive(Args)]
struct ExportRange {
    /// The state at this revision instead of the newest
    #[arg(long, conflicts_with = "since")]
    revision: Option<i64>,
    /// Only the changes after this revision
    #[arg(long)]
    since: Option<i64>,
}

impl BackupCommand {
    /// True if a server is asked.
    pub(crate) fn is_remote(&self) -> bool {
        matches!(self.what, What::Remote(_))
    }
}

/// See [`BackupCommand::is_remote`].
pub(crate) async fn run_remote(
    client: &Client,
    mut printer: Printer,
    command: BackupCommand,
) -> Result<(), Failure> {
    if command.json {
        printer.format = Format::Json;
    }
    match command.what {
        What::Remote(what) => remote_backup::run(client, printer, what).await,
        _ => unreachable!("only a remote one comes here"),
    }
}

pub(crate) fn run(command: BackupCommand, global: &GlobalOptions) -> Result<(), Failure> {
    let mut printer = global.printer()?;
    if command.json {
        printer.format = Format::Json;
    }
    let mut line = ProgressLine::new();
    let mut progress = |done: BackupProgress| {
        line.show(done.part, done.bytes_done, (done.bytes_total > 0).then_some(done.bytes_total))
    };
    let printed = match command.what {
        What::Create { directory, to, base, copy } => {
            let options = BackupOptions::default().links(!copy).base(base).reading(reading());
            create_offline(directory, to, &options, &mut progress).map(|report| created(&printer, &report))
        }
        What::Verify { directory, base } => Backup::open_reading(directory, &base, &reading())
            .and_then(|backup| backup.verify(&mut progress))
            .map(|verified| self::verified(&printer, &verified)),
        What::Restore { directory, to, base } => Backup::open_reading(directory, &base, &reading())
            .and_then(|backup| restore(&backup, to, &mut progress))
            .map(|report| restored(&printer, &report)),
        What::Remote(_) => unreachable!("it needs a connection"),
        What::Export { directory, to, range } => {
            export(&directory, &to, &range, &mut progress).map(|report| {
                // Standard output may be the export.
                if to.as_os_str() == "-" { String::new() } else { streamed(&printer, "exported", &report) }
            })
        }
        What::Import { file, to } => {
            import(&file, &to, &mut progress).map(|report| streamed(&printer, "imported", &report))
        }
    };
    line.clear();
    let printed = printed.map_err(|error| failure(&error))?;
    if !printed.is_empty() {
        printer.line(printed);
    }
    printer.flush()
}

/// Files are read ahead through io_uring where that is allowed.
fn reading() -> Reading {
    Reading::with(|directory: &Path| sternpost_ring_stream::open_files(directory).map(|(files, _)| files))
}

/// Long enough for a process that was just killed to let go of its lock.
const LOCK_WAIT: Duration = Duration::from_millis(500);

fn options() -> Options {
    Options::new().calibrate(false).open_timeout(LOCK_WAIT)
}

fn io_error(what: &str, path: &Path, error: &std::io::Error) -> Error {
    IoError::from_system(format!("{what} {}", path.display()), error).into()
}

fn export(
    directory: &Path,
    to: &Path,
    range: &ExportRange,
    progress: &mut dyn FnMut(BackupProgress),
) -> Result<StreamReport> {
    // A database is opened here, not made.
    Inspection::open(directory)?;
    if to.as_os_str() == "-" {
        return export_into(directory, range, &mut std::io::stdout().lock(), progress);
    }
    if to.exists() {
        return Err(Error::Refused(format!(
            "{} exists: name a new file, so that nothing is overwritten",
            to.display()
        )));
    }
    let part = to.with_added_extension("part");
    let failed = |what| {
        let part = &part;
        move |error| io_error(what, part, &error)
    };
    let file = File::create(&part).map_err(failed("create"))?;
    let mut sink = BufWriter::with_capacity(1 << 20, &file);
    let report = export_into(directory, range, &mut sink, progress)?;
    drop(sink);
    file.sync_all().map_err(failed("sync"))?;
    std::fs::rename(&part, to).map_err(failed("rename"))?;
    let parent = to.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(parent)
        .and_then(|parent| parent.sync_all())
        .map_err(|error| io_error("sync directory", parent, &error))?;
    Ok(report)
}

fn export_into(
    directory: &Path,
    range: &ExportRange,
    sink: &mut dyn Write,
    progress: &mut dyn FnMut(BackupProgress),
) -> Result<StreamReport> {
    let db = Db::open(directory, options())?;
    let report = match range.since {
        Some(since) => db.export_changes(since, None, sink, progress),
        None => db.export(range.revision, sink, progress),
    };
    report.and_then(|report| db.close().map(|()| report))
}

fn import(file: &Path, to: &Path, progress: &mut dyn FnMut(BackupProgress)) -> Result<StreamReport> {
    if file.as_os_str() == "-" {
        return Db::import(to, &options(), &mut std::io::stdin().lock(), progress);
    }
    let opened = File::open(file).map_err(|error| io_error("open", file, &error))?;
    Db::import(to, &options(), &mut BufReader::with_capacity(1 << 20, opened), progress)
}

fn streamed(printer: &Printer, done: &str, report: &StreamReport) -> String {
    match printer.format {
        Format::Json => Object::new()
            .number("from", report.from)
            .number_always("revision", report.revision)
            .number_always("records", report.records_count)
            .number_always("bytes", report.bytes)
            .end(),
        _ => {
            let what = match report.from {
                0 => format!("the state at revision {}", report.revision),
                from => format!("the changes after revision {from}, to {}", report.revision),
            };
            format!("{done}: {what}, {} records of {}", report.records_count, bytes_text(report.bytes))
        }
    }
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
