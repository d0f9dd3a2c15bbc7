//! `snapshot save`, `status` and `restore`: etcd's snapshot files, from a server into a file, looked at, and into a data directory of ours.
//!
//! **Contract.** `save` is etcdctl's, `status` and `restore` are etcdutl's: arguments, flags, standard output, exit codes. Different on purpose: `save`
//! compares the SHA-256 of what it has received before the file gets its name; `restore` moves the revision on by [`BUMP_REVISION`] and marks
//! everything before as compacted, unless `--same-revisions` is given, since clients that keep what they have seen (Kubernetes'
//! informers) would otherwise take other changes for the ones that they know. On a terminal a line of progress on standard error.
//!
//! **Does not know** what is in the file: that is `sternpost_server::etcd_snapshot`.
use crate::ctl::connect::Client;
use crate::ctl::failure::{Exit, Failure, raw_status_text, system_text};
use crate::ctl::json::{Object, text};
use crate::ctl::options::GlobalOptions;
use crate::ctl::printer::{Format, Printer, no_protobuf};
use crate::ctl::table::{self, bytes_text};
use crate::progress::ProgressLine;
use clap::{Args, Subcommand};
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use sternpost_replication::Genesis;
use sternpost_server::config::{self, ConfigError, Request, url};
use sternpost_server::etcd_snapshot::format::has_sum;
use sternpost_server::etcd_snapshot::import::{ImportOptions, ImportReport, import};
use sternpost_server::etcd_snapshot::read::verify_sum;
use sternpost_server::etcd_snapshot::status::{SnapshotStatus, status};
use sternpost_server::identity;
use sternpost_server::log_directory;
use sternpost_server::wire::etcdserverpb::SnapshotRequest;

/// By how much a restored revision goes on if nothing else is said: more than a cluster writes between two backups.
const BUMP_REVISION: u64 = 1_000_000_000;
const STATUS_COLUMNS: [&str; 5] = ["hash", "revision", "total keys", "total size", "version"];

#[derive(Args)]
#[command(infer_subcommands = true, arg_required_else_help = true)]
pub(crate) struct SnapshotCommand {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Store the state of one server in a file
    Save {
        /// The file
        #[arg(value_name = "FILE")]
        arguments: Vec<PathBuf>,
    },
    /// Check a snapshot file and say what is in it; speaks to no server
    Status {
        /// The file
        #[arg(value_name = "FILE")]
        arguments: Vec<PathBuf>,
    },
    /// Make a data directory from a snapshot file of etcd's or of ours; speaks to no server
    Restore(Box<RestoreOptions>),
}

#[derive(Args)]
struct RestoreOptions {
    /// The file
    #[arg(value_name = "FILE")]
    arguments: Vec<PathBuf>,
    /// Data directory to make; NAME.etcd if not given
    #[arg(long)]
    data_dir: Option<PathBuf>,
    /// Directory of the log, if not inside the data directory
    #[arg(long)]
    wal_dir: Option<PathBuf>,
    /// Name of this member
    #[arg(long, default_value = "default")]
    name: String,
    /// The first members of the new cluster, NAME=URL,...; this member alone if not given
    #[arg(long)]
    initial_cluster: Option<String>,
    /// Token of the new cluster
    #[arg(long, default_value = "etcd-cluster")]
    initial_cluster_token: String,
    /// Peer URLs of this member
    #[arg(long, default_value = "http://localhost:2380")]
    initial_advertise_peer_urls: String,
    /// Take a file without a SHA-256, or with a wrong one: one that was copied from a data directory of etcd's
    #[arg(long)]
    skip_hash_check: bool,
    /// By how much the revision goes on; 1000000000 if not given, 0 for --same-revisions
    #[arg(long, value_name = "N")]
    bump_revision: Option<u64>,
    /// Everything up to the new revision counts as compacted; on, unless the revisions stay the same
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    mark_compacted: Option<bool>,
    /// Keep the revisions as they are in the file: only where no client has seen later ones
    #[arg(long)]
    same_revisions: bool,
    /// Accepted, without meaning: the file is not mapped
    #[arg(long, hide = true)]
    initial_memory_map_size: Option<u64>,
}

/// What speaks to no server; None for `save`, which is [`save`].
pub(crate) fn run(command: SnapshotCommand, global: &GlobalOptions) -> Result<Option<PathBuf>, Failure> {
    match command.what {
        What::Save { arguments } => {
            only(arguments, "snapshot save expects one argument <filename>").map(Some)
        }
        What::Status { arguments } => {
            let path = only(arguments, "snapshot status requires exactly one argument")?;
            print_status(&path, global.printer()?).map(|()| None)
        }
        What::Restore(options) => restore(*options, global.printer()?).map(|()| None),
    }
}

fn only(arguments: Vec<PathBuf>, message: &str) -> Result<PathBuf, Failure> {
    let [only] = <[PathBuf; 1]>::try_from(arguments).map_err(|_| Failure::bad_arguments(message))?;
    Ok(only)
}

fn open(path: &Path) -> Result<File, Failure> {
    let failed = |error: io::Error| Failure::new(Exit::Error, format!("open {}: {error}", path.display()));
    let file = File::open(path).map_err(failed)?;
    match file.metadata().map_err(failed)?.is_file() {
        true => Ok(file),
        false => Err(Failure::new(Exit::Error, format!("{} is no file", path.display()))),
    }
}

fn print_status(path: &Path, mut printer: Printer) -> Result<(), Failure> {
    let file = open(path)?;
    let mut line = ProgressLine::new();
    let found = status(&file, &mut |done, total| line.show("check", done, Some(total)));
    line.clear();
    let found = found.map_err(|error| Failure::new(Exit::Error, error.to_string()))?;
    let SnapshotStatus { hash, revision, total_key, total_size, version } = &found;
    let row = || {
        vec![
            format!("{hash:x}"),
            revision.to_string(),
            total_key.to_string(),
            bytes_text(*total_size),
            version.clone(),
        ]
    };
    match printer.format {
        Format::Simple => printer.line(row().join(", ")),
        Format::Table => printer.line(table::render(&STATUS_COLUMNS, &[row()]).trim_end()),
        Format::Json => printer.line(
            Object::new()
                .number_always("hash", *hash)
                .number_always("revision", *revision)
                .number_always("totalKey", *total_key)
                .number_always("totalSize", *total_size)
                .raw("version", &text(version))
                .end(),
        ),
        Format::Fields => {
            let fields = [
                ("Hash", hash.to_string()),
                ("Revision", revision.to_string()),
                ("Keys", total_key.to_string()),
                ("Size", total_size.to_string()),
                ("Version", version.clone()),
            ];
            fields.iter().for_each(|(name, value)| printer.line(format!("\"{name}\" : {value}")));
        }
        Format::Protobuf => return Err(no_protobuf()),
    }
    printer.flush()
}

impl RestoreOptions {
    /// By how much the revision goes on; 0 for not at all.
    fn bump(&self) -> Result<u64, Failure> {
        if self.same_revisions {
            if self.bump_revision.is_some_and(|bump| bump > 0) || self.mark_compacted == Some(true) {
                return Err(Failure::bad_arguments(
                    "--same-revisions keeps the revisions, so it goes neither with --bump-revision nor with --mark-compacted",
                ));
            }
            return Ok(0);
        }
        match (self.bump_revision, self.mark_compacted) {
            (None, None | Some(true)) => Ok(BUMP_REVISION),
            (None | Some(0), Some(false)) | (Some(0), None) => Ok(0),
            (Some(0), Some(true)) | (Some(_), Some(false)) => {
                Err(Failure::bad_arguments("--mark-compacted required if --revision-bump > 0"))
            }
            (Some(bump), None | Some(true)) => Ok(bump),
        }
    }

    /// The new cluster, by the rules and with the texts of the server's flags.
    fn genesis(&self) -> Result<Genesis, Failure> {
        let mut arguments = vec![
            format!("--name={}", self.name),
            format!("--initial-advertise-peer-urls={}", self.initial_advertise_peer_urls),
            format!("--initial-cluster-token={}", self.initial_cluster_token),
        ];
        arguments.extend(self.initial_cluster.iter().map(|members| format!("--initial-cluster={members}")));
        let failed = |what: String| Failure::new(Exit::Error, what);
        let loaded = match config::load(&arguments, &[]) {
            Ok(Request::Serve(loaded)) => loaded,
            Ok(Request::Print(text)) | Err(ConfigError::Usage(text) | ConfigError::Invalid(text)) => {
                return Err(failed(text));
            }
        };
        loaded.config.check_bootstrap().map_err(failed)?;
        let texts = |urls: &[url::Url]| urls.iter().map(ToString::to_string).collect();
        let members: Vec<(String, Vec<String>)> =
            loaded.config.initial_cluster.iter().map(|(name, urls)| (name.clone(), texts(urls))).collect();
        identity::genesis(&self.name, &members, &self.initial_cluster_token).map_err(failed)
    }
}

fn restore(options: RestoreOptions, mut printer: Printer) -> Result<(), Failure> {
    let bump_revision = options.bump()?;
    let genesis = options.genesis()?;
    let directory = options.data_dir.clone().unwrap_or_else(|| format!("{}.etcd", options.name).into());
    let skip_hash_check = options.skip_hash_check;
    let path = only(options.arguments, "snapshot restore requires exactly one argument")?;
    let file = open(&path)?;
    if let Some(log) = &options.wal_dir {
        put_log(&directory, log)?;
    }
    let mut line = ProgressLine::new();
    let made = import(
        &file,
        &directory,
        &ImportOptions { genesis, skip_hash_check, bump_revision },
        &mut |part, done, total| line.show(part, done, Some(total)),
    );
    line.clear();
    let report = made.map_err(|error| Failure::new(Exit::Error, error.to_string()))?;
    printer.line(restored(&report, printer.format, bump_revision));
    printer.flush()
}

/// Makes the data directory, if it is missing, and the link to its log in it.
fn put_log(directory: &Path, log: &Path) -> Result<(), Failure> {
    let failed = |what: String| Failure::new(Exit::Error, what);
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
        .map_err(|error| failed(format!("cannot make {}: {error}", directory.display())))?;
    log_directory::place(directory, Some(log), true).map_err(failed)
}

fn restored(report: &ImportReport, format: Format, bump_revision: u64) -> String {
    let ImportReport { revision, compact_revision, records_count, leases_count, users_count, roles_count } =
        *report;
    if format == Format::Json {
        return Object::new()
            .number_always("revision", revision)
            .number("compact_revision", compact_revision.unwrap_or(0))
            .number("bump_revision", bump_revision)
            .number_always("records", records_count)
            .number_always("leases", leases_count)
            .number_always("users", users_count)
            .number_always("roles", roles_count)
            .end();
    }
    let compacted =
        compact_revision.map_or_else(String::new, |compacted| format!(", compacted at {compacted}"));
    let bumped = match bump_revision {
        0 => String::new(),
        bump => format!(" ({bump} beyond that of the snapshot)"),
    };
    format!(
        "restored: revision {revision}{bumped}{compacted}, {records_count} records, {leases_count} leases, {users_count} users, \
         {roles_count} roles"
    )
}

/// `snapshot save`.
pub(crate) async fn save(client: &Client, mut printer: Printer, path: &Path) -> Result<(), Failure> {
    let endpoints = client.endpoints();
    let [endpoint] = &endpoints[..] else {
        let message = format!(
            "snapshot must be requested to one selected node, not multiple [{}]",
            endpoints.join(" ")
        );
        return Err(Failure::new(Exit::Interrupted, message));
    };
    let part = path.with_added_extension("part");
    let saved = client.whole(fetch(client, endpoint, path, &part)).await;
    if saved.is_err() {
        // It may not be there.
        let _ = std::fs::remove_file(&part);
    }
    let version = saved.map_err(|failure| failure.with_exit(Exit::Interrupted))?;
    printer.line(format!("Snapshot saved at {}", path.display()));
    if !version.is_empty() {
        printer.line(format!("Server version {version}"));
    }
    printer.flush()
}

async fn fetch(client: &Client, endpoint: &str, path: &Path, part: &Path) -> Result<String, Failure> {
    let failed = |what: String| Failure::new(Exit::Interrupted, what);
    let could_not = |what: &str| {
        let what = format!("could not {what}");
        move |error: io::Error| Failure::new(Exit::Interrupted, format!("{what}: {error}"))
    };
    let mut options = OpenOptions::new();
    let file = options.read(true).write(true).create(true).truncate(true).mode(0o600).open(part);
    let file = file.map_err(|error| {
        let part = part.display();
        failed(format!("could not open {part} (open {part}: {})", system_text(&error)))
    })?;
    let mut maintenance = client.maintenance(endpoint).await?;
    // etcdctl leaves the code in these texts alone.
    let refused = |status: tonic::Status| failed(raw_status_text(&status));
    let mut pieces = maintenance.snapshot(SnapshotRequest {}).await.map_err(refused)?.into_inner();
    let mut sink = BufWriter::with_capacity(1 << 20, &file);
    let mut line = ProgressLine::new();
    let (mut version, mut bytes) = (String::new(), 0_u64);
    while let Some(piece) = pieces.message().await.map_err(refused)? {
        bytes += piece.blob.len() as u64;
        sink.write_all(&piece.blob).map_err(could_not("write snapshot"))?;
        line.show("save", bytes, Some(bytes + piece.remaining_bytes));
        version = piece.version;
    }
    sink.flush().map_err(could_not("write snapshot"))?;
    drop(sink);
    if !has_sum(bytes) {
        return Err(failed(format!("sha256 checksum not found [bytes: {bytes}]")));
    }
    let verified = verify_sum(&file, &mut |done, total| line.show("verify", done, Some(total)));
    line.clear();
    verified.map_err(|error| failed(error.to_string()))?;
    file.sync_all().map_err(could_not("fsync snapshot"))?;
    std::fs::rename(part, path).map_err(could_not(&format!(
        "rename {} to {}",
        part.display(),
        path.display()
    )))?;
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(parent).and_then(|parent| parent.sync_all()).map_err(could_not("fsync directory"))?;
    Ok(version)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        options: RestoreOptions,
    }

    fn bump(flags: &[&str]) -> Result<u64, String> {
        let line =
            Line::try_parse_from(["restore"].iter().chain(flags)).map_err(|error| error.to_string())?;
        line.options.bump().map_err(|failure| failure.message)
    }

    #[test]
    fn revisions_go_on_unless_somebody_says_otherwise() {
        for flags in [&[][..], &["--mark-compacted"], &["--mark-compacted=true"]] {
            assert_eq!(bump(flags), Ok(BUMP_REVISION), "{flags:?}");
        }
        for flags in [
            &["--same-revisions"][..],
            &["--bump-revision=0"],
            &["--bump-revision=0", "--mark-compacted=false"],
            &["--mark-compacted=false"],
            &["--same-revisions", "--bump-revision=0"],
        ] {
            assert_eq!(bump(flags), Ok(0), "{flags:?}");
        }
        for flags in [&["--bump-revision", "7"][..], &["--bump-revision=7", "--mark-compacted"]] {
            assert_eq!(bump(flags), Ok(7), "{flags:?}");
        }
        for flags in [
            &["--bump-revision=7", "--mark-compacted=false"][..],
            &["--bump-revision=0", "--mark-compacted"],
            &["--same-revisions", "--mark-compacted"],
            &["--same-revisions", "--bump-revision=7"],
        ] {
            assert!(bump(flags).unwrap_err().contains("--mark-compacted"), "{flags:?}");
        }
    }
}
