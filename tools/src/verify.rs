//! `verify`: reads everything that a data directory refers to and checks it. Offline, read-only, without a lock.
//!
//! **Contract.** Exit code 0 and one line on standard output with what was checked, or exit code 1 and the first damage found on
//! standard error: file, offset, what was expected and what was found. On a terminal a line of progress on standard error.
//! `-w json` prints the same counts as an object. A directory in use may be verified: what changes meanwhile is read again.
use crate::ctl::failure::Failure;
use crate::ctl::json::Object;
use crate::ctl::options::GlobalOptions;
use crate::ctl::printer::Format;
use crate::ctl::table::bytes_text;
use crate::inspect::{DirectoryOption, failure};
use crate::progress::ProgressLine;
use clap::Args;
use sternpost_engine::inspect::{Inspection, Verified};

#[derive(Args)]
pub(crate) struct VerifyCommand {
    #[command(flatten)]
    directory: DirectoryOption,
}

pub(crate) fn run(command: &VerifyCommand, options: &GlobalOptions) -> Result<(), Failure> {
    let mut printer = options.printer()?;
    let mut line = ProgressLine::new();
    let verified = Inspection::verify(&command.directory.data_dir, &mut |progress| {
        line.show(progress.part, progress.bytes_done, Some(progress.bytes_total));
    });
    line.clear();
    let verified = verified.map_err(|error| failure(&error))?;
    printer.line(match printer.format {
        Format::Json => json(&verified),
        _ => sentence(&verified),
    });
    printer.flush()
}

fn sentence(verified: &Verified) -> String {
    let checkpoint = &verified.checkpoint;
    let log = match &verified.log {
        Some(log) => format!("{} of log with {} records", bytes_text(log.bytes), log.records_count),
        None => "no log yet".to_owned(),
    };
    format!(
        "verified: superblock, {log}, {} pages of {}, {} records in {} segments of {}, {} keys",
        checkpoint.pages,
        bytes_text(checkpoint.page_bytes),
        checkpoint.records,
        checkpoint.segments,
        bytes_text(checkpoint.revision_bytes),
        checkpoint.cells
    )
}

fn json(verified: &Verified) -> String {
    let checkpoint = &verified.checkpoint;
    let log = verified.log.map(|log| {
        Object::new()
            .number_always("bytes", log.bytes)
            .number_always("records", log.records_count)
            .number_always("segments", log.segments_count)
            .number_always("end_lsn", log.end_lsn.0)
            .number_always("groups_behind", log.groups_behind_count)
            .end()
    });
    Object::new()
        .object("log", log)
        .number_always("pages", checkpoint.pages)
        .number_always("page_bytes", checkpoint.page_bytes)
        .number_always("records", checkpoint.records)
        .number_always("segments", checkpoint.segments)
        .number_always("revision_bytes", checkpoint.revision_bytes)
        .number_always("cells", checkpoint.cells)
        .end()
}
