//! Backups: a copy of a state of a data directory, made while it is written, that opens as a database.
//!
//! **Contract.** A backup is a directory: the sealed segments of one checkpoint (second names of the same files where that is
//! possible), a copy of the superblock that names it, a copy of the log from its replay position to the end of a durable
//! group, and last a manifest with the length and the checksums of all of them. It holds every write that was answered as
//! durable before it was asked for, it opens as a database, and what happens to the source afterwards does not reach it.
//!
//! ```text
//! backup.part       first and durable before anything else: not finished. At the end the manifest is written into it,
//! backup.manifest     and it gets this name: the backup is whole (B1)
//! super             four copies, one state
//! wal/NNNNNNNN.wal  copied; zeros behind the end
//! seg/NNNNNNNN.r    second names, or copies
//! seg/NNNNNNNN.k
//! raft              if the source has it: the layer above knows by it that the directory is its own
//! ```
//!
//! **Invariants.** B1: `backup.manifest` is there only when all that it lists is durable, names included; until then
//! `backup.part` is, and no call opens the directory. B2: the source is only read, and its files get names elsewhere; nothing
//! that has two names is ever written. B3: between the look at the superblock and the last name or copied byte, no segment that
//! it refers to loses its name, and no segment of the log is used again.
//!
//! **Failure.** A crash, a full disk or an error leaves `backup.part` and what was written: the directory is refused by name,
//! and is to be removed. Whatever happens, the source is as it was.
//!
//! **Second names share their bytes**: they cost no space and no time, and what rots in one rots in the other. A backup that is
//! to survive the disk lies on another one, where everything is copied.
//!
//! **Does not know** keys, what a revision holds, or who writes meanwhile.
//!
//! Reading order: `marker` (the two names), `manifest`, `file_sums` (lengths and checksums), `target` (writing), `source`
//! (what is copied), `reading`, `create`, `live` (of a log that its caller drives), `chain` (backups that need older ones; verification), `restore`.
mod chain;
mod create;
mod file_sums;
mod live;
mod manifest;
mod marker;
mod reading;
mod restore;
mod source;
mod target;

pub use chain::{Backup, VerifiedBackup};
pub(crate) use create::create_in;
pub use create::create_offline;
pub(crate) use create::refuse_unempty;
#[cfg(feature = "sim")]
pub(crate) use create::{Place, create};
pub use live::{LiveSource, create_live};
pub use manifest::{BaseBackup, FileEntry, Location, MANIFEST_FILE, Manifest};
pub use marker::{OWNER_FILE, RESTORED_FILE, forget_restored, is_from_backup};
pub(crate) use marker::{claim_import, note_opening, refuse_unfinished, release_import};
pub use reading::Reading;
#[cfg(feature = "sim")]
pub use restore::restore_simulated;
pub use restore::{RestoreReport, restore};
pub(crate) use source::Source;

use std::path::PathBuf;

/// How a backup is made.
#[derive(Clone, Debug)]
pub struct BackupOptions {
    /// Give segments a second name instead of copying them, where the file system does that. True by default.
    pub links: bool,
    /// An earlier backup, or its manifest alone: segments that it has, and those it refers to, are left out. Each of them is read
    /// and compared by its checksums first, since a restored directory may give a number a second time.
    pub base: Option<PathBuf>,
    /// How segments are read, for copies and checksums.
    pub reading: Reading,
    /// A bug on purpose.
    #[cfg(feature = "planted-bugs")]
    pub planted: Option<PlantedBug>,
}

impl BackupOptions {
    /// Sets whether segments may get second names.
    pub fn links(mut self, links: bool) -> Self {
        self.links = links;
        self
    }

    /// Sets the base.
    pub fn base(mut self, base: Option<PathBuf>) -> Self {
        self.base = base;
        self
    }

    /// Sets how segments are read.
    pub fn reading(mut self, reading: Reading) -> Self {
        self.reading = reading;
        self
    }
}

impl Default for BackupOptions {
    fn default() -> Self {
        Self {
            links: true,
            base: None,
            reading: Reading::default(),
            #[cfg(feature = "planted-bugs")]
            planted: None,
        }
    }
}

/// Which bug is planted; the tests must find each one, see `tests/backup_crash.rs`.
#[cfg(feature = "planted-bugs")]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PlantedBug {
    /// The names of segments are given back before they have second ones (B3).
    GiveBackNames,
    /// The log is given back before it is copied (B3).
    GiveBackLog,
    /// The manifest gets its name before the directories are synced (B1).
    ManifestEarly,
    /// Copies are not synced (B1).
    SkipSync,
    /// The log is copied to the end of its segments, durable or not.
    CopyPastEnd,
}

/// True if `bug` is planted; constant false in a product build.
macro_rules! planted {
    ($options:expr, $bug:ident) => {{
        #[cfg(feature = "planted-bugs")]
        let planted = $options.planted == Some($crate::backup::PlantedBug::$bug);
        #[cfg(not(feature = "planted-bugs"))]
        let planted = {
            let _ = &$options;
            false
        };
        planted
    }};
}
use planted;

/// How far a backup, a verification or a restore is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BackupProgress {
    /// What is being done, in a word or two.
    pub part: &'static str,
    /// Bytes of it that are done.
    pub bytes_done: u64,
    /// Bytes of it; 0 if that is not known.
    pub bytes_total: u64,
}

/// What was backed up.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct BackupReport {
    /// The newest revision in it; none if the log was not replayed to find out.
    pub revision: Option<i64>,
    /// Files in its manifest.
    pub files_count: u64,
    /// Bytes of these.
    pub bytes: u64,
    /// Bytes of files that got a second name.
    pub bytes_linked: u64,
    /// Bytes of files that were copied.
    pub bytes_copied: u64,
    /// Bytes of files that the base has.
    pub bytes_in_base: u64,
}
