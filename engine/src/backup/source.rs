//! What a backup is made of: a state that is kept as it is while it is copied.
//!
//! **Contract.** A [`Source`] names a superblock that is durable, the part of the log that belongs to it, and whoever keeps
//! both from changing (B3): the guards of a live database, or the lock of a directory that nobody uses.
//!
//! **Does not know** where the copy goes.
use crate::base::ids::Lsn;
use crate::disk_state::{DiskState, NamesKept, Positions, SegmentFile, Shelf, ShelfOptions};
use crate::error::{Error, Result};
use crate::io::disk::run;
use crate::io::files::Files;
use crate::io::read_only_disk::ReadOnlyDisk;
use crate::io::{Operation, Outcome};
use crate::log::LogHold;
use crate::segment::SegmentKind;
use crate::superblock::{Stage, Superblock};
use crate::wal::{self, LogExtent};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// See the module.
pub(crate) struct Source {
    /// In force, and durable.
    pub(crate) superblock: Superblock,
    /// Durable, from the superblock's replay position on.
    pub(crate) extent: LogExtent,
    /// The newest revision in `extent`, if somebody knows it.
    pub(crate) revision: Option<i64>,
    /// For reading.
    pub(crate) files: Arc<dyn Files>,
    /// Where second names lead from.
    pub(crate) root: PathBuf,
    /// Keeps the segments' names; none where nobody removes any.
    pub(crate) names: Option<NamesKept>,
    /// Keeps the log; none where nobody writes it.
    pub(crate) log: Option<LogHold>,
}

impl Source {
    /// A directory whose lock the caller has, and which nobody has open.
    ///
    /// # Errors
    /// [`Error::Refused`] if there is no database in it, or one that has to be opened once before.
    pub(super) fn still(directory: &Path) -> Result<Self> {
        let mut disk = ReadOnlyDisk::open(directory)?;
        super::refuse_unfinished(&mut disk)?;
        let superblock = Superblock::inspect(&mut disk)?.filter(|found| found.stage == Stage::Ready);
        let superblock = superblock
            .ok_or_else(|| Error::Refused(format!("there is no database in {}", directory.display())))?;
        refuse_interrupted_recovery(&mut disk)?;
        let (segment_bytes, replay_lsn) = (u64::from(superblock.segment_bytes), superblock.wal_replay_lsn);
        let report = wal::inspect(
            &mut disk,
            superblock.database,
            segment_bytes,
            replay_lsn,
            &mut |_| Ok(()),
            &mut |_| {},
        )?;
        let Lsn(end) = report.end_lsn;
        let extent =
            LogExtent { replay_lsn, end_lsn: report.end_lsn, last_seq: end / segment_bytes, segment_bytes };
        let files = disk.files();
        let root = std::path::absolute(directory).unwrap_or_else(|_| directory.to_path_buf());
        Ok(Self { superblock, extent, revision: None, files, root, names: None, log: None })
    }

    /// All segments of the checkpoint.
    pub(super) fn segments(&self) -> Result<Vec<SegmentFile>> {
        let superblock = &self.superblock;
        if !superblock.has_checkpoint() {
            return Ok(Vec::new());
        }
        let options = ShelfOptions { cache_bytes: 0, ..ShelfOptions::default() };
        let shelf = Shelf::new(self.files.clone(), superblock.database, options);
        let positions = Positions {
            applied: (superblock.applied_index, superblock.applied_term),
            revision: superblock.revision,
            compact_revision: superblock.compact_revision,
            swept_revision: superblock.swept_revision,
        };
        let state = DiskState::open(shelf, superblock.roots, positions)?;
        let revisions = state.revisions.iter().map(|file| (file.info.summary.id, SegmentKind::Revisions));
        let pages = state.pages.keys().map(|&id| (id, SegmentKind::Pages));
        Ok(revisions.chain(pages).collect())
    }
}

/// A recovery that was cut short may owe groups that lie in a copy beside the log.
fn refuse_interrupted_recovery(disk: &mut ReadOnlyDisk) -> Result<()> {
    let names = match run(disk, Operation::List { path: wal::DIRECTORY.into() })?.0 {
        Outcome::Names(names) => names,
        _ => unreachable!("a listing gives names"),
    };
    match names.iter().find(|name| name.starts_with("tail-")) {
        None => Ok(()),
        Some(name) => Err(Error::Refused(format!(
            "the last start of this database was cut short ({}/{name} is there): start it once and stop it, then back it up",
            wal::DIRECTORY
        ))),
    }
}
