//! Files whose name says what a directory is: a backup, one that is not finished, or one that was used.
//!
//! **States of a directory**
//!
//! | name | what is true |
//! |---|---|
//! | `backup.part` | a backup that is being made, or was cut short: anything may be missing |
//! | `restore.part` | a restore that is being made, or was cut short |
//! | `import.part` | an import of a state that is being made, or was cut short |
//! | `backup.manifest` | a whole backup; no database has been opened here |
//! | `backup.opened` | was a backup, until somebody opened it as a database: what the manifest says is not true any more |
//! | `restored` | beside others: it came out of a backup, and the layer above has not started with it since |
//! | none of them | a data directory; or one in which a received state is being installed, see [`crate::transfer`] |
//!
//! **Does not know** what a manifest says.
use super::manifest::MANIFEST_FILE;
use crate::error::{Error, Result};
use crate::io::disk::{BLOCK_BYTES, run};
use crate::io::{Durability, Io, IoError, Open, Operation, Outcome};
use crate::transfer::refuse_half_installed;
use std::path::{Path, PathBuf};

/// A backup that is not finished.
pub(super) const BACKUP_PART: &str = "backup.part";
/// A restore that is not finished.
pub(super) const RESTORE_PART: &str = "restore.part";
/// An import of a state that is not finished.
const IMPORT_PART: &str = "import.part";
const OPENED: &str = "backup.opened";
/// An empty file, made by who drives a replicated log, by which that knows that the directory is a group's. It goes with a backup.
pub const OWNER_FILE: &str = "raft";
/// An empty file: the directory came out of a backup, and its owner has not been told yet. Only in directories of replicated logs: they are older than what
/// their owner has acknowledged.
pub const RESTORED_FILE: &str = "restored";

/// True if a directory came out of a backup, or is one, and whoever drives its log has not said that he knows.
pub fn is_from_backup(directory: &Path) -> bool {
    [RESTORED_FILE, MANIFEST_FILE].iter().any(|name| directory.join(name).exists())
}

/// Says that he does. Durable when it returns.
///
/// # Errors
/// What the system says.
pub fn forget_restored(directory: &Path) -> Result<()> {
    let path = directory.join(RESTORED_FILE);
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => {
            return Err(IoError::from_system(format!("remove {}", path.display()), &error).into());
        }
        Ok(()) => {}
    }
    let synced = std::fs::File::open(directory).and_then(|directory| directory.sync_all());
    synced.map_err(|error| IoError::from_system(format!("sync {}", directory.display()), &error).into())
}

fn names(io: &mut dyn Io) -> Result<Vec<String>> {
    match run(io, Operation::List { path: PathBuf::new() })?.0 {
        Outcome::Names(names) => Ok(names),
        _ => unreachable!("a listing gives names"),
    }
}

/// Refuses a directory in which a backup, a restore, an import or the installation of a received state did not end.
///
/// # Errors
/// [`Error::Refused`], which says what it is and what to do.
pub(crate) fn refuse_unfinished(io: &mut dyn Io) -> Result<()> {
    check(&names(io)?)
}

fn check(names: &[String]) -> Result<()> {
    for (part, what, again) in [
        (BACKUP_PART, "a backup", "make the backup again, into another one"),
        (RESTORE_PART, "the restore of a backup", "restore again, into another one"),
        (IMPORT_PART, "an import", "import again, into another one"),
    ] {
        if names.iter().any(|name| name == part) {
            return Err(Error::Refused(format!(
                "{what} into this directory is under way or was cut short ({part} is there), so anything may be missing: \
                 wait for it, or remove the directory and {again}"
            )));
        }
    }
    refuse_half_installed(names)
}

/// Before a database is opened for writing: refuses what [`refuse_unfinished`] does, and takes a whole backup its manifest,
/// which will not be true any more.
///
/// # Errors
/// As above, and what the device reports.
pub(crate) fn note_opening(io: &mut dyn Io) -> Result<()> {
    let names = names(io)?;
    check(&names)?;
    if names.iter().any(|name| name == MANIFEST_FILE) {
        run(io, Operation::Rename { from: MANIFEST_FILE.into(), to: OPENED.into() })?;
        run(io, Operation::SyncDirectory { path: PathBuf::new() })?;
    }
    Ok(())
}

/// Why there is no manifest in a directory with these names.
pub(super) fn no_manifest(names: &[String], directory: &Path) -> Error {
    if let Err(error) = check(names) {
        return error;
    }
    let directory = directory.display();
    Error::Refused(match names.iter().any(|name| name == OPENED) {
        true => format!(
            "{directory} was a backup and has been opened as a database since ({OPENED} is there): what it holds now is not \
             what was backed up"
        ),
        false => format!("{directory} is no backup: there is no file {MANIFEST_FILE} in it"),
    })
}

/// Claims an empty directory: from now on, and after any crash, it says that it is not finished.
///
/// # Errors
/// [`Error::Refused`] if it is not empty, and what the device reports.
pub(super) fn begin(io: &mut dyn Io, part: &str) -> Result<()> {
    let mut found = names(io)?;
    for directory in [crate::wal::DIRECTORY, crate::segment::DIRECTORY] {
        if let Ok((Outcome::Names(names), _)) = run(io, Operation::List { path: directory.into() }) {
            found.extend(names.into_iter().map(|name| format!("{directory}/{name}")));
        }
    }
    if let Some(name) = found.first() {
        return Err(Error::Refused(format!(
            "the directory is not empty ({name} is in it): name a new one, so that nothing is overwritten"
        )));
    }
    claim(io, part)
}

/// Says of a new database that an import of a state into it is not finished.
pub(crate) fn claim_import(io: &mut dyn Io) -> Result<()> {
    claim(io, IMPORT_PART)
}

/// Says that it is.
pub(crate) fn release_import(io: &mut dyn Io) -> Result<()> {
    run(io, Operation::Unlink { path: IMPORT_PART.into() })?;
    run(io, Operation::SyncDirectory { path: PathBuf::new() })?;
    Ok(())
}

fn claim(io: &mut dyn Io, part: &str) -> Result<()> {
    let file = match run(io, Operation::Open { path: part.into(), open: Open::CreateNew })?.0 {
        Outcome::Opened(file) => file,
        _ => unreachable!("opening a file gives a file"),
    };
    let mut buffer = io.buffer(BLOCK_BYTES);
    let words = b"This directory is not finished: it may lack anything.\n";
    buffer[..words.len()].copy_from_slice(words);
    let write = Operation::Write { file, offset: 0, buffer, durability: Durability::Synced };
    let written = run(io, write);
    run(io, Operation::Close { file })?;
    if let Some(buffer) = written?.1 {
        io.recycle(buffer);
    }
    run(io, Operation::SyncDirectory { path: PathBuf::new() })?;
    Ok(())
}
