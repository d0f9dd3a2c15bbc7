//! Backups of an open database.
//!
//! The caller's thread copies; the engine's thread only says what is durable and keeps it (`Core::answer_holders`). Writers and
//! readers go on.
use super::Db;
use super::core::Held;
use crate::backup::{BackupOptions, BackupProgress, BackupReport, Source, create_in};
use crate::error::{Error, Result};
use crate::io::files::Files;
use std::path::{Path, PathBuf};
use std::sync::Arc;

impl Held {
    /// What a backup is made of; `root` leads to the directory that `files` reads.
    pub(super) fn into_source(self, files: Arc<dyn Files>, root: PathBuf) -> Source {
        let Self { names, superblock, extent, log, revision } = self;
        Source {
            superblock,
            extent,
            revision: Some(revision),
            files,
            root,
            names: Some(names),
            log: Some(log),
        }
    }
}

impl Db {
    /// Makes a backup in `directory`, which must not exist or be empty, while others read and write: every write that was
    /// answered before the call, and perhaps some that came later. It opens as a database at the revision of the report.
    ///
    /// At levels other than `Group` the log is synced first. While the log is copied it is not used again, and while segments are
    /// copied (linking takes moments) none is removed: the directory grows by what is written meanwhile.
    ///
    /// # Errors
    /// [`Error::Refused`] if the directory is not empty, [`Error::Closed`], [`Error::LogPoisoned`], or what the device of either
    /// directory reports. The database is as before; what is in `directory` says that it is not finished.
    pub fn backup_to(
        &self,
        directory: impl AsRef<Path>,
        options: &BackupOptions,
        progress: &mut dyn FnMut(BackupProgress),
    ) -> Result<BackupReport> {
        let source = || {
            let held = self.inner.shared.hold().recv().unwrap_or(Err(Error::Closed))?;
            Ok(held.into_source(options.reading.open(&self.inner.directory)?, self.inner.directory.clone()))
        };
        create_in(directory.as_ref(), source, options, progress)
    }
}
