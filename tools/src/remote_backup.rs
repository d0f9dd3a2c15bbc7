//! `backup remote create` and `backup remote list`: backups that a running member makes of itself, on its own disk.
//!
//! **Contract.** Exit code 0 and one line on standard output with what was done, or exit code 1 and the member's sentence on standard error. On a terminal a line of
//! progress on standard error. The first endpoint that answers is the member that is meant: name one.
//!
//! **Does not know** where the member writes.
use crate::ctl::connect::Client;
use crate::ctl::failure::{Exit, Failure};
use crate::ctl::json::Object;
use crate::ctl::printer::{Format, Printer};
use crate::ctl::table::bytes_text;
use crate::progress::ProgressLine;
use clap::Subcommand;
use sternpost_server::wire::sternpostpb::backup_entry::State;
use sternpost_server::wire::sternpostpb::{
    BackupEntry, BackupReport, CreateBackupRequest, ListBackupsRequest,
};

#[derive(Subcommand)]
pub(crate) enum RemoteBackup {
    /// Have a running member back itself up, below its --backup-dir
    Create {
        /// Name of the new backup
        name: String,
        /// Leave out what this earlier backup of that member has already
        #[arg(long, default_value = "")]
        base: String,
        /// Copy segments even where they could get a second name (hard link)
        #[arg(long)]
        copy: bool,
    },
    /// What is below the --backup-dir of a member
    List,
}

pub(crate) async fn run(client: &Client, mut printer: Printer, command: RemoteBackup) -> Result<(), Failure> {
    match command {
        RemoteBackup::Create { name, base, copy } => {
            let report = create(client, CreateBackupRequest { name: name.clone(), base, copy }).await?;
            printer.line(created(&printer, &name, &report));
        }
        RemoteBackup::List => {
            let mut backups = client.backups().await?;
            let listed = client.call(backups.list(ListBackupsRequest {})).await?;
            if printer.format == Format::Json {
                let entries = listed.backups.iter().map(entry_json).collect();
                let all = Object::new().list("backups", entries).truth("more", listed.more).end();
                printer.line(all);
                return printer.flush();
            }
            for entry in &listed.backups {
                printer.line(entry_line(entry));
            }
            if listed.more {
                printer.line("and more");
            }
        }
    }
    printer.flush()
}

async fn create(client: &Client, request: CreateBackupRequest) -> Result<BackupReport, Failure> {
    let mut line = ProgressLine::new();
    let mut backups = client.backups().await?;
    let mut answers = client.call(backups.create(request)).await?;
    let report = loop {
        match answers.message().await {
            Ok(Some(answer)) => match answer.report {
                Some(report) => break Ok(report),
                None => {
                    let total = (answer.bytes_total > 0).then_some(answer.bytes_total);
                    line.show(&answer.part, answer.bytes_done, total);
                }
            },
            Ok(None) => break Err(Failure::new(Exit::Error, "the member said nothing of how it ended")),
            Err(status) => break Err(status.into()),
        }
    };
    line.clear();
    report
}

fn created(printer: &Printer, name: &str, report: &BackupReport) -> String {
    let BackupReport { revision_min, files, bytes, bytes_linked, bytes_copied, bytes_in_base } = *report;
    match printer.format {
        Format::Json => Object::new()
            .text("name", name)
            .number_always("revision_min", revision_min)
            .number_always("files", files)
            .number_always("bytes", bytes)
            .number_always("bytes_linked", bytes_linked)
            .number_always("bytes_copied", bytes_copied)
            .number_always("bytes_in_base", bytes_in_base)
            .end(),
        _ => format!(
            "backed up into {name}: revision {revision_min} or later, {files} files, {} ({} linked, {} copied, {} in the base)",
            bytes_text(bytes),
            bytes_text(bytes_linked),
            bytes_text(bytes_copied),
            bytes_text(bytes_in_base)
        ),
    }
}

fn entry_line(entry: &BackupEntry) -> String {
    match entry.state() {
        State::Whole => {
            let base = if entry.base.is_empty() { String::new() } else { format!(", on {}", entry.base) };
            format!(
                "{}: whole, {} files of {}, checkpoint at revision {}{base}",
                entry.name,
                entry.files,
                bytes_text(entry.bytes),
                entry.checkpoint_revision
            )
        }
        State::UnderWay => format!("{}: under way", entry.name),
        state => format!("{}: {}, {}", entry.name, state_name(state), entry.what),
    }
}

fn entry_json(entry: &BackupEntry) -> String {
    let object = Object::new().text("name", &entry.name).text("state", state_name(entry.state()));
    if entry.state() != State::Whole {
        return object.text("what", &entry.what).end();
    }
    object
        .number_always("files", entry.files)
        .number_always("bytes", entry.bytes)
        .number_always("checkpoint_revision", entry.checkpoint_revision)
        .text("base", &entry.base)
        .number_always("member_id", entry.member_id)
        .number_always("cluster_id", entry.cluster_id)
        .end()
}

fn state_name(state: State) -> &'static str {
    match state {
        State::Whole => "whole",
        State::UnderWay => "under way",
        State::Unfinished => "unfinished",
        State::Opened => "opened",
        State::Damaged => "damaged",
    }
}
