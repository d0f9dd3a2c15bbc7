//! Looking at a data directory without opening the database: what is where, and whether all of it verifies.
//!
//! **Contract.** For tools and support. Read-only: no lock is taken, nothing is written or synced, so a directory that a process
//! has open is looked at as well as one that lies still. An [`Inspection`] is one state of the directory; its files are held
//! open, so it stays whole when a checkpoint replaces them. What is found may not survive a power cut: nobody may act on it but
//! a person.
//!
//! **A directory in use** changes under the reader: a superblock is read while it is written, a segment is removed between the
//! superblock and the file, the log grows behind its end and loses its beginning. So damage counts only when the same is found twice
//! ([`Retries`]); and the log is read from where the superblock of that moment says, not that of minutes ago.
//!
//! **Does not know** how anything is printed. Never repairs.
//!
//! Reading order: this file (opening, verification), `view` (the plain structs and how they are filled).
mod view;

pub use view::{
    CellView, IndexBlockView, KeyView, LivePageView, LogRecordView, LogView, PageView, RecordView,
    SegmentDetail, SegmentView, SuperblockView, TreeView,
};

use crate::base::ids::Lsn;
use crate::disk_state::{DiskState, Positions, Shelf, ShelfOptions, VerifyCounts, VerifyProgress};
use crate::error::{Error, Result};
use crate::io::disk::{BLOCK_BYTES, run};
use crate::io::read_only_disk::ReadOnlyDisk;
use crate::io::{IoErrorKind, Operation, Outcome};
use crate::segment;
use crate::superblock::{self, Stage, Superblock};
use crate::wal::{self, LogReport, Record};
use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// A directory in use changes its superblock every few seconds at most.
const ATTEMPTS_MAX: u32 = 8;
/// The same for the log, whose oldest segments may be gone a moment behind the superblock that begins with them, where checkpoints are
/// small and many.
const LOG_ATTEMPTS_MAX: u32 = 64;
/// Long enough for a superblock or a group that was being written to be whole.
const PAUSE: Duration = Duration::from_millis(50);
/// Index blocks and inner pages of a verification; every byte is read from its file all the same.
const CACHE_BYTES: usize = 64 << 20;

/// One state of a directory.
pub struct Inspection {
    directory: PathBuf,
    superblock: Superblock,
    shelf: Arc<Shelf>,
    state: DiskState,
}

/// What a verification read.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Verified {
    /// The checkpoint's part; all 0 if there is none.
    pub checkpoint: VerifyCounts,
    /// The log's part; none while the directory is being made.
    pub log: Option<LogReport>,
}

/// Decides whether an error is damage or a directory that changed under the reader.
struct Retries {
    attempts: u32,
    attempts_max: u32,
    last: Option<String>,
}

impl Retries {
    fn new(attempts_max: u32) -> Self {
        Self { attempts: 0, attempts_max, last: None }
    }

    /// The error to report, or none to try again. What a newer superblock does without is not found missing again, so the same
    /// error twice is damage; one that was never the same twice is not known to be any.
    fn judge(&mut self, error: Error) -> Option<Error> {
        self.attempts += 1;
        let may_pass = match &error {
            Error::Corruption { .. } => true,
            Error::Io(error) => error.kind == IoErrorKind::NotFound,
            _ => false,
        };
        let found = error.to_string();
        if !may_pass || self.last.as_ref() == Some(&found) {
            return Some(error);
        }
        if self.attempts >= self.attempts_max {
            return Some(Error::Refused(format!(
                "the directory changes faster than it is read: {} times something was not there any more, at last: {found}. \
                 Look at it while less is written, or while nobody has it open",
                self.attempts
            )));
        }
        self.last = Some(found);
        pause();
        None
    }
}

/// Files in `seg`, relative to the directory.
fn list_segments(directory: &Path) -> Result<Vec<String>> {
    let mut disk = ReadOnlyDisk::open(directory)?;
    match run(&mut disk, Operation::List { path: PathBuf::from(segment::DIRECTORY) }) {
        Ok((Outcome::Names(names), _)) => {
            Ok(names.iter().map(|name| format!("{}/{name}", segment::DIRECTORY)).collect())
        }
        Ok(_) => unreachable!("a listing gives names"),
        Err(error) if error.kind == IoErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error.into()),
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "a tool waits for another process; nothing of the engine runs here"
)]
fn pause() {
    std::thread::sleep(PAUSE);
}

impl Inspection {
    /// Looks at a directory.
    ///
    /// # Errors
    /// [`Error::Refused`] if there is no database in it, or one of a later format; [`Error::Corruption`] if the superblock or
    /// what the state is made of does not verify.
    pub fn open(directory: impl AsRef<Path>) -> Result<Self> {
        let mut retries = Retries::new(ATTEMPTS_MAX);
        loop {
            match Self::open_once(directory.as_ref()) {
                // A file that has lost its name is found missing only when it is read: it belongs to a state that has gone by, or
                // it is damage, which is shown as far as it can be.
                Ok(inspection) => match inspection.state.check_headers() {
                    Ok(()) => return Ok(inspection),
                    Err(error) => {
                        if retries.judge(error).is_some() {
                            return Ok(inspection);
                        }
                    }
                },
                Err(error) => {
                    if let Some(error) = retries.judge(error) {
                        return Err(error);
                    }
                }
            }
        }
    }

    fn open_once(directory: &Path) -> Result<Self> {
        let mut disk = ReadOnlyDisk::open(directory)?;
        crate::backup::refuse_unfinished(&mut disk)?;
        let Some(superblock) = Superblock::inspect(&mut disk)? else {
            return Err(Error::Refused(format!("there is no database in {}", directory.display())));
        };
        let options = ShelfOptions { cache_bytes: CACHE_BYTES, ..ShelfOptions::default() };
        let shelf = Shelf::new(disk.files(), superblock.database, options);
        let state = match superblock.has_checkpoint() {
            true => DiskState::open(
                shelf.clone(),
                superblock.roots,
                Positions {
                    applied: (superblock.applied_index, superblock.applied_term),
                    revision: superblock.revision,
                    compact_revision: superblock.compact_revision,
                    swept_revision: superblock.swept_revision,
                },
            )?,
            false => DiskState::empty(),
        };
        Ok(Self { directory: directory.to_path_buf(), superblock, shelf, state })
    }

    /// Reads and verifies everything that the superblock refers to: its own four copies, the log from the replay position to its
    /// end, all pages, all records. `progress` is called every few hundred KiB.
    ///
    /// # Errors
    /// The first damage found: file, offset, what was expected and what was found.
    pub fn verify(directory: impl AsRef<Path>, progress: &mut dyn FnMut(VerifyProgress)) -> Result<Verified> {
        Self::look(directory.as_ref(), &mut |inspection| inspection.verify_once(progress))
    }

    /// Reads and verifies the log from the replay position to its end. Holds the newest `newest_max` records, with the first
    /// [`LogRecordView::BODY_BYTES_MAX`] bytes of each. `progress` as for [`Self::verify`].
    ///
    /// # Errors
    /// The first damage found.
    pub fn log(
        directory: impl AsRef<Path>,
        newest_max: usize,
        progress: &mut dyn FnMut(VerifyProgress),
    ) -> Result<LogView> {
        Self::look(directory.as_ref(), &mut |inspection| inspection.log_once(newest_max, progress))
    }

    /// Reads the log from the replay position to its end into what `visit` makes of it, together with the state below it. A directory in use may be read
    /// more than once; each time begins with a new `V`. `progress` as for [`Self::verify`].
    ///
    /// # Errors
    /// The first damage found, and what `visit` says.
    pub fn read<V: Default>(
        directory: impl AsRef<Path>,
        visit: &mut dyn FnMut(&mut V, &Self, &Record<'_>) -> Result<()>,
        progress: &mut dyn FnMut(VerifyProgress),
    ) -> Result<(SuperblockView, V)> {
        Self::look(directory.as_ref(), &mut |inspection| {
            let mut found = V::default();
            if inspection.superblock.stage == Stage::Ready {
                inspection.read_log(&mut |record| visit(&mut found, inspection, record), progress)?;
            }
            Ok((inspection.superblock(), found))
        })
    }

    /// A system record of the checkpoint; none if it is not there, or later than the checkpoint.
    ///
    /// # Errors
    /// [`Error::Corruption`], and those of reading.
    pub fn system(&self, key: &[u8]) -> Result<Option<Vec<u8>>> {
        let mut found = None;
        self.state.for_each_system(&mut |at, value| {
            if at == key {
                found = Some(value.to_vec());
            }
            Ok(())
        })?;
        Ok(found)
    }

    /// What `what` finds, until a directory in use held still for it.
    fn look<T>(directory: &Path, what: &mut dyn FnMut(&Self) -> Result<T>) -> Result<T> {
        let mut retries = Retries::new(ATTEMPTS_MAX);
        loop {
            let opened = Self::open_once(directory);
            match opened.and_then(|inspection| what(&inspection)) {
                Ok(found) => return Ok(found),
                Err(error) => {
                    if let Some(error) = retries.judge(error) {
                        return Err(error);
                    }
                }
            }
        }
    }

    fn log_once(&self, newest_max: usize, progress: &mut dyn FnMut(VerifyProgress)) -> Result<LogView> {
        let segment_bytes = u64::from(self.superblock.segment_bytes);
        let mut take = |newest: &mut VecDeque<_>, record: &Record<'_>| {
            if newest.len() == newest_max {
                newest.pop_front();
            }
            if newest.len() < newest_max {
                newest.push_back(LogRecordView::of(record, segment_bytes));
            }
            Ok(())
        };
        let (replay_lsn, newest, report) = match self.superblock.stage {
            Stage::Creating => (self.superblock.wal_replay_lsn, VecDeque::new(), None),
            Stage::Ready => {
                let (replay_lsn, newest, report) = self.read_log_now(&mut take, progress)?;
                (replay_lsn, newest, Some(report))
            }
        };
        Ok(LogView { replay_lsn: replay_lsn.0, report, newest: newest.into() })
    }

    fn verify_once(&self, progress: &mut dyn FnMut(VerifyProgress)) -> Result<Verified> {
        self.verify_copies()?;
        let log = match self.superblock.stage {
            Stage::Creating => None,
            Stage::Ready => Some(self.read_log_now(&mut |(), _| Ok(()), progress)?.2),
        };
        Ok(Verified { checkpoint: self.state.verify(progress)?, log })
    }

    /// All four copies of the superblock hold the state in force.
    fn verify_copies(&self) -> Result<()> {
        let expected = self.superblock.sequence();
        for (copy, found) in self.superblock.copies().into_iter().enumerate() {
            if found != Some(expected) {
                return Err(Error::Corruption {
                    file: superblock::FILE.to_string(),
                    offset: (copy * BLOCK_BYTES) as u64,
                    what: match found {
                        Some(found) => {
                            format!("copy {copy} with sequence {expected} expected, {found} found")
                        }
                        None => format!(
                            "copy {copy} with sequence {expected} expected, a block that does not verify found"
                        ),
                    },
                });
            }
        }
        Ok(())
    }

    /// Reads the log from where the superblock of now says, which is the first that must still be there, into what `visit` makes of
    /// it. Also returns where that is.
    fn read_log_now<V: Default>(
        &self,
        visit: &mut dyn FnMut(&mut V, &Record<'_>) -> Result<()>,
        progress: &mut dyn FnMut(VerifyProgress),
    ) -> Result<(Lsn, V, LogReport)> {
        let mut retries = Retries::new(LOG_ATTEMPTS_MAX);
        loop {
            let superblock = Superblock::inspect(&mut ReadOnlyDisk::open(&self.directory)?)?;
            // One that cannot be read now was read when this was opened, and is judged there.
            let replay_lsn = superblock.map_or(self.superblock.wal_replay_lsn, |it| it.wal_replay_lsn);
            let mut found = V::default();
            match self.read_log_from(replay_lsn, &mut |record| visit(&mut found, record), progress) {
                Ok(report) => return Ok((replay_lsn, found, report)),
                Err(error) => {
                    if let Some(error) = retries.judge(error) {
                        return Err(error);
                    }
                }
            }
        }
    }

    /// Reads the log behind the state.
    fn read_log(
        &self,
        visit: &mut dyn FnMut(&Record<'_>) -> Result<()>,
        progress: &mut dyn FnMut(VerifyProgress),
    ) -> Result<LogReport> {
        self.read_log_from(self.superblock.wal_replay_lsn, visit, progress)
    }

    fn read_log_from(
        &self,
        replay_lsn: Lsn,
        visit: &mut dyn FnMut(&Record<'_>) -> Result<()>,
        progress: &mut dyn FnMut(VerifyProgress),
    ) -> Result<LogReport> {
        let mut disk = ReadOnlyDisk::open(&self.directory)?;
        let Superblock { database, segment_bytes, .. } = self.superblock;
        wal::inspect(&mut disk, database, u64::from(segment_bytes), replay_lsn, visit, &mut |read| {
            progress(VerifyProgress {
                part: "log",
                bytes_done: read.bytes_done,
                bytes_total: read.bytes_total,
            });
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Db, DurabilityLevel, Options};

    /// Once in a while `sternctl verify` said of a directory in use that the segment which its log begins with was missing: between
    /// its look at the superblock and the one at the log, checkpoints had given that segment back, eight times in a row. Now the log is
    /// read from where the superblock of that moment says.
    #[test]
    fn a_log_that_was_recycled_since_the_directory_was_opened_is_not_damage() {
        let mut options = Options::new().memtable_bytes(16 << 10).durability(DurabilityLevel::Manual);
        options.log.segment_bytes = Some(64 << 10);
        options.checkpoint.wal_bytes_max = 16 << 10;
        options.checkpoint.pending_percent_max = 1_000;
        let directory = tempfile::tempdir().expect("a directory");
        let db = Db::open(directory.path(), options).expect("a new database");
        let write = || {
            (0..50).for_each(|number| {
                db.put(format!("key/{number}"), vec![7; 300]).expect("a put");
            });
            db.sync().expect("a sync");
        };
        let first_segment = || {
            let newest = Inspection::open(directory.path()).expect("it opens");
            newest.superblock.wal_replay_lsn.0 / u64::from(newest.superblock.segment_bytes)
        };
        while first_segment() == 0 {
            write();
        }
        let inspection = Inspection::open(directory.path()).expect("it opens");
        let opened_at =
            inspection.superblock.wal_replay_lsn.0 / u64::from(inspection.superblock.segment_bytes);
        while first_segment() < opened_at + 3 {
            write();
        }
        let gone = inspection
            .read_log(&mut |_| Ok(()), &mut |_| {})
            .expect_err("where it was opened nothing is left");
        assert!(gone.to_string().contains("is missing"), "{gone}");
        inspection.verify_once(&mut |_| {}).expect("nothing is damaged");
        let log = inspection.log_once(3, &mut |_| {}).expect("nothing is damaged");
        assert!(log.replay_lsn / u64::from(inspection.superblock.segment_bytes) >= opened_at + 3);
        assert_eq!((log.newest.len(), log.report.is_some()), (3, true));
        db.close().expect("a close");
    }

    #[test]
    fn the_same_twice_is_damage_and_what_is_another_thing_each_time_is_none() {
        let damage = |number: u32| {
            let what = format!("segment {number} is missing");
            Error::Corruption { file: "wal".into(), offset: 0, what }
        };
        let mut retries = Retries::new(3);
        assert!(retries.judge(damage(1)).is_none());
        assert!(retries.judge(damage(2)).is_none());
        assert!(matches!(retries.judge(damage(2)), Some(Error::Corruption { .. })));
        let mut retries = Retries::new(3);
        assert!(retries.judge(damage(1)).is_none());
        assert!(retries.judge(damage(2)).is_none());
        let Some(Error::Refused(what)) = retries.judge(damage(3)) else {
            panic!("it is not known to be damage")
        };
        assert!(what.contains("changes faster") && what.contains("segment 3"), "{what}");
        let refused = Error::Refused("a later format".into());
        assert!(matches!(Retries::new(3).judge(refused), Some(Error::Refused(_))));
    }
}
