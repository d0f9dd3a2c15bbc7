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
use clap::Args;
use std::io::{IsTerminal, Write};
use sternpost_engine::base::clock::{Clock, MonotonicClock};
use sternpost_engine::disk_state::VerifyProgress;
use sternpost_engine::inspect::{Inspection, Verified};

/// Between two lines of progress.
const INTERVAL_US: u64 = 200_000;

#[derive(Args)]
pub(crate) struct VerifyCommand {
    #[command(flatten)]
    directory: DirectoryOption,
}

pub(crate) fn run(command: &VerifyCommand, options: &GlobalOptions) -> Result<(), Failure> {
    let mut printer = options.printer()?;
    let mut line = ProgressLine::new();
    let verified = Inspection::verify(&command.directory.data_dir, &mut |progress| line.show(&progress));
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

/// One line of a terminal that is written over and over.
pub(crate) struct ProgressLine {
    is_terminal: bool,
    clock: MonotonicClock,
    shown_us: Option<u64>,
}

impl ProgressLine {
    pub(crate) fn new() -> Self {
        Self {
            is_terminal: std::io::stderr().is_terminal(),
            clock: MonotonicClock::default(),
            shown_us: None,
        }
    }

    pub(crate) fn show(&mut self, progress: &VerifyProgress) {
        let now_us = self.clock.now_us();
        if !self.is_terminal || self.shown_us.is_some_and(|shown_us| now_us < shown_us + INTERVAL_US) {
            return;
        }
        self.shown_us = Some(now_us);
        // What has no known end is counted by piece.
        let done = match progress.bytes_total {
            0 => progress.bytes_done.to_string(),
            total => format!("{} of {}", bytes_text(progress.bytes_done), bytes_text(total)),
        };
        // Nobody is harmed by a line that a closed terminal does not show.
        let _ = write!(std::io::stderr(), "\r\x1b[K{}: {done}", progress.part);
    }

    pub(crate) fn clear(&self) {
        if self.shown_us.is_some() {
            let _ = write!(std::io::stderr(), "\r\x1b[K");
        }
    }
}
