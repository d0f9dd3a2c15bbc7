//! A backup into a new data directory.
//!
//! **Order**: everything is read and compared with its checksums → the mark of an unfinished restore → log and segments → their
//! directories → superblock → the mark goes. What is read for copying is compared again. A crash leaves the mark, and a
//! directory that no call opens.
//!
//! **Does not know** what is in the files. The new directory has the identity of the old one: it is that database, and is
//! not to run beside it; where its log is a replicated one it says so to whoever starts with it ([`RESTORED_FILE`]).
use super::create::{Place, in_directory};
use super::marker::{self, RESTORE_PART, RESTORED_FILE};
use super::target::write_file;
use super::{Backup, BackupProgress, Reading};
use crate::error::Result;
use crate::io::disk::run;
use crate::io::{Open, Operation, Outcome, ReadFile};
use crate::superblock::Mode;
use crate::{segment, superblock, wal};
use std::path::{Path, PathBuf};

/// What was restored.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RestoreReport {
    /// Newest revision, if the manifest has it.
    pub revision: Option<i64>,
    /// Files written.
    pub files_count: u64,
    /// Bytes of these.
    pub bytes: u64,
}

/// Restores a backup into `to`, which must not exist or be empty.
///
/// # Errors
/// [`crate::Error::Corruption`] if something in the backup differs from its manifest: then nothing was written;
/// [`crate::Error::Refused`] if `to` is not empty; what the device reports, and then `to` is not finished.
pub fn restore(
    backup: &Backup,
    to: impl AsRef<Path>,
    progress: &mut dyn FnMut(BackupProgress),
) -> Result<RestoreReport> {
    backup.verify(progress)?;
    in_directory(to.as_ref(), &Reading::default(), |place| restore_into(backup, place, progress))
}

/// The same into an empty directory of a simulated disk.
#[cfg(feature = "sim")]
pub fn restore_simulated(
    backup: &Backup,
    mut to: crate::io::sim_subdirectory::SimSubdirectory,
) -> Result<RestoreReport> {
    backup.verify(&mut |_| {})?;
    let files = to.clone();
    restore_into(backup, Place { io: &mut to, files: &files }, &mut |_| {})
}

fn restore_into(
    backup: &Backup,
    place: Place<'_>,
    progress: &mut dyn FnMut(BackupProgress),
) -> Result<RestoreReport> {
    let Place { io, .. } = place;
    let manifest = backup.manifest();
    marker::begin(io, RESTORE_PART)?;
    for directory in [wal::DIRECTORY, segment::DIRECTORY] {
        run(io, Operation::CreateDirectory { path: directory.into() })?;
    }
    let bytes_total = manifest.bytes();
    let mut bytes_done = 0;
    let is_superblock = |path: &Path| path == Path::new(superblock::FILE);
    let (last, first): (Vec<_>, Vec<_>) = manifest.files.iter().partition(|entry| is_superblock(&entry.path));
    for (entries, directories) in
        [(first, [wal::DIRECTORY, segment::DIRECTORY].as_slice()), (last, [""].as_slice())]
    {
        for entry in entries {
            let copy = |file: &dyn ReadFile| {
                write_file(io, &entry.path, true, |target| {
                    entry.sums.verify(file, &mut |_, piece| {
                        bytes_done += piece.len() as u64;
                        progress(BackupProgress { part: "restoring", bytes_done, bytes_total });
                        target.write(piece)
                    })
                })
            };
            backup.with_file(entry, copy)?;
        }
        for directory in directories {
            run(io, Operation::SyncDirectory { path: PathBuf::from(directory) })?;
        }
    }
    if manifest.mode == Mode::Replicated {
        let opened = run(io, Operation::Open { path: RESTORED_FILE.into(), open: Open::CreateNew })?.0;
        if let Outcome::Opened(file) = opened {
            run(io, Operation::Close { file })?;
        }
        // Its name must not come later than that of the other one goes.
        run(io, Operation::SyncDirectory { path: PathBuf::new() })?;
    }
    run(io, Operation::Unlink { path: RESTORE_PART.into() })?;
    run(io, Operation::SyncDirectory { path: PathBuf::new() })?;
    Ok(RestoreReport {
        revision: manifest.revision,
        files_count: manifest.files.len() as u64,
        bytes: bytes_total,
    })
}
