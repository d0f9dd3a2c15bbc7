//! Backups of a directory that is open in this process, whose log its owner drives: a server's.
//!
//! **Contract.** The thread of the log makes a [`LiveSource`], in a moment, which keeps segments and log as they are (B3); any other thread copies them
//! ([`create_live`]). What is held is what was durable at that moment: everything that this log has acknowledged before, and perhaps a tail that nobody was
//! promised, as behind a crash.
//!
//! **Does not know** what an entry is, or what is acknowledged elsewhere.
use super::{BackupOptions, BackupProgress, BackupReport, Source, create_in};
use crate::disk_state::NamesKept;
use crate::error::Result;
use crate::log::{Log, LogHold};
use crate::superblock::Superblock;
use crate::transfer::StateHolder;
use crate::wal::LogExtent;
use std::path::Path;

/// A state that is kept as it is until this is dropped: the directory grows meanwhile by what is written.
pub struct LiveSource {
    names: NamesKept,
    superblock: Superblock,
    extent: LogExtent,
    log: LogHold,
}

impl LiveSource {
    /// Holds what is durable now. To be called on the thread of the log.
    pub fn hold(log: &Log, holder: &StateHolder) -> Self {
        // The names before the superblock: see the module of the kept names.
        let names = holder.keep_names();
        let (superblock, extent, log) = log.hold();
        Self { names, superblock, extent, log }
    }
}

/// Makes a backup of `directory`, which is open, in `to`, which must not exist or be empty. `hold` is called when that is ready. The revision in it is not known
/// before it is opened.
///
/// # Errors
/// [`crate::Error::Refused`] if `to` is not empty or the base is none of this database, what `hold` says, and what the device of either directory reports. The
/// source is as before; what is in `to` says that it is not finished.
pub fn create_live(
    directory: &Path,
    to: &Path,
    hold: impl FnOnce() -> Result<LiveSource>,
    options: &BackupOptions,
    progress: &mut dyn FnMut(BackupProgress),
) -> Result<BackupReport> {
    // What backs off one of the two must be found from anywhere.
    let root = std::path::absolute(directory).unwrap_or_else(|_| directory.to_path_buf());
    let source = || {
        let files = options.reading.open(&root)?;
        let LiveSource { names, superblock, extent, log } = hold()?;
        Ok(Source {
            superblock,
            extent,
            revision: None,
            files,
            root: root.clone(),
            names: Some(names),
            log: Some(log),
        })
    };
    create_in(to, source, options, progress)
}
