//! `--import-snapshot`: a new data directory begins with the state of an etcd snapshot file.
//!
//! **Contract.** What `sternctl snapshot restore` does, with the members of the server's own flags, before anything else is in the directory. One that holds
//! data is refused, so that nobody takes an old state for the one in the file. An import that was cut short is begun anew: until it is finished nothing
//! opens the directory.
//!
//! **Does not know** what is in a file: that is `etcd_snapshot`.
use crate::config::Config;
use crate::etcd_snapshot::import::{ImportOptions, clear_unfinished, import, is_unfinished};
use crate::identity;
use crate::log_directory;
use std::fs::File;
use std::path::Path;
use sternpost_replication::Genesis;

/// Looks whether there is something to import, and whether it may be. `is_new`: there is no data. True if there is nothing but an import that did not end.
///
/// # Errors
/// One line for the user.
pub fn is_to_begin_anew(config: &Config, is_new: bool) -> Result<bool, String> {
    let Some(file) = &config.import_snapshot else { return Ok(false) };
    if config.initial_cluster_existing {
        return Err("--import-snapshot is for a new cluster: with --initial-cluster-state=existing the state comes from its members".into());
    }
    let directory = config.data_dir.display();
    match (is_new, is_unfinished(&config.data_dir)) {
        (_, true) => Ok(true),
        (true, false) => Ok(false),
        (false, false) => Err(format!(
            "the data directory {directory} holds data, so --import-snapshot {} is refused: leave the option out to go on with that data, or give a new --data-dir",
            file.display()
        )),
    }
}

/// Imports the file into the data directory, which has been made; blocks for as long as it takes.
///
/// # Errors
/// One line for the user.
pub fn run(config: &Config, file: &Path, members: &[(String, Vec<String>)]) -> Result<(), String> {
    let shown = file.display();
    let failed = |what: String| format!("--import-snapshot {shown}: {what}");
    if is_unfinished(&config.data_dir) {
        tracing::warn!("an import into this data directory was cut short; it is begun anew");
        clear_unfinished(&config.data_dir).map_err(|error| failed(error.to_string()))?;
        log_directory::place(&config.data_dir, config.wal_dir.as_deref(), true)?;
    }
    let source = File::open(file).map_err(|error| failed(error.to_string()))?;
    if !source.metadata().is_ok_and(|metadata| metadata.is_file()) {
        return Err(failed("it is no file".into()));
    }
    let options = ImportOptions {
        genesis: genesis(config, members).map_err(failed)?,
        skip_hash_check: config.import_skip_hash_check,
        bump_revision: config.import_bump_revision,
    };
    tracing::info!(file = %shown, bump_revision = options.bump_revision, "importing a snapshot");
    let mut told = ("", 0);
    let report = import(&source, &config.data_dir, &options, &mut |part, done, total| {
        let tenths = done * 10 / total.max(1);
        if (part, tenths) != told {
            told = (part, tenths);
            let bar = format!("{}{}", "#".repeat(tenths as usize), ".".repeat(10 - tenths.min(10) as usize));
            tracing::info!(
                part,
                bytes_done = done,
                bytes_total = total,
                progress = bar,
                "importing a snapshot"
            );
        }
    })
    .map_err(|error| failed(error.to_string()))?;
    tracing::info!(
        revision = report.revision,
        compact_revision = report.compact_revision.unwrap_or(0),
        records = report.records_count,
        leases = report.leases_count,
        users = report.users_count,
        roles = report.roles_count,
        "imported a snapshot"
    );
    Ok(())
}

fn genesis(config: &Config, members: &[(String, Vec<String>)]) -> Result<Genesis, String> {
    let of_options =
        if config.initial_names_known { identity::genesis } else { identity::genesis_without_names };
    of_options(&config.name, members, &config.initial_cluster_token)
}
