//! Making a backup.
//!
//! **Order**: the mark of an unfinished backup → the log, which is given back then → segments, whose names are given back then
//! → superblock → a look at the copied log → manifest. Files are synced before their directories, those before the manifest,
//! and the manifest gets its name last (B1).
//!
//! The log comes first because holding it makes it grow, by every write that arrives meanwhile. Second names are given in
//! moments, and read for their checksums when the source has been let go; only copies keep it longer.
use super::chain::open_base;
use super::file_sums::FileSums;
use super::manifest::{BaseBackup, FileEntry, Location, Manifest};
use super::marker::{self, BACKUP_PART, OWNER_FILE};
use super::target::write_file;
use super::{BackupOptions, BackupProgress, BackupReport, Reading, Source, planted};
use crate::disk_state::SegmentFile;
use crate::error::{Error, Result};
use crate::io::dir_lock::{DirLock, LOCK_FILE};
use crate::io::disk::{BLOCK_BYTES, run};
use crate::io::files::make_directory;
use crate::io::{BackendChoice, Files, Io, IoError, IoErrorKind, Operation, ReadFile, open_backend};
use crate::wal::format::SegmentHeader;
use crate::{segment, superblock, wal};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Zeros behind the end of the log are written in pieces of this size.
const ZEROS_BYTES: usize = 1 << 20;

/// An empty directory that a backup or restore is written into.
pub(crate) struct Place<'a> {
    pub(crate) io: &'a mut dyn Io,
    /// The same directory.
    pub(crate) files: &'a dyn Files,
}

/// Refuses a directory that exists and holds anything but a file that was locked, and a link to where a log shall be.
///
/// # Errors
/// [`Error::Refused`], and what the system says.
pub(crate) fn refuse_unempty(directory: &Path) -> Result<()> {
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => {
            return Err(
                IoError::from_system(format!("list directory {}", directory.display()), &error).into()
            );
        }
    };
    // Left by who locked it and came no further; a log that is to lie elsewhere, of which the log judges what is there.
    let is_nothing = |entry: &std::fs::DirEntry| {
        entry.file_name() == LOCK_FILE || (entry.file_name() == wal::DIRECTORY && entry.path().is_symlink())
    };
    match entries.flatten().find(|entry| !is_nothing(entry)) {
        None => Ok(()),
        Some(_) => Err(Error::Refused(format!(
            "{} is not empty: name a new directory, so that nothing is overwritten",
            directory.display()
        ))),
    }
}

/// Makes `directory`, which must not exist or be empty, and lets `write` fill it.
pub(super) fn in_directory<T>(
    directory: &Path,
    reading: &Reading,
    write: impl FnOnce(Place<'_>) -> Result<T>,
) -> Result<T> {
    make_directory(directory)?;
    refuse_unempty(directory)?;
    let mut io = open_backend(directory, None, BackendChoice::Auto)?;
    let files = reading.open(directory)?;
    write(Place { io: &mut *io, files: &*files })
}

/// Backs up a directory that nobody has open, into a new one.
///
/// # Errors
/// [`Error::Locked`] if somebody has it open (a live database is asked by [`crate::Db::backup_to`]); [`Error::Refused`] if
/// there is no database in it or `to` is not empty; [`Error::Corruption`] if what it refers to is damaged or missing.
pub fn create_offline(
    directory: impl AsRef<Path>,
    to: impl AsRef<Path>,
    options: &BackupOptions,
    progress: &mut dyn FnMut(BackupProgress),
) -> Result<BackupReport> {
    let directory = directory.as_ref();
    // Before the lock, whose file would be made in any directory.
    Source::still(directory).map(drop).or_else(|error| match error {
        Error::Corruption { .. } | Error::Io(_) if directory.is_dir() => Ok(()),
        error => Err(error),
    })?;
    let _lock = DirLock::acquire(directory, Duration::ZERO, |_| {})?;
    let source = Source { files: options.reading.open(directory)?, ..Source::still(directory)? };
    create_in(to.as_ref(), || Ok(source), options, progress)
}

/// Makes a backup of what `source` gives, asked when the directory is ready, in a new or empty directory.
pub(crate) fn create_in(
    directory: &Path,
    source: impl FnOnce() -> Result<Source>,
    options: &BackupOptions,
    progress: &mut dyn FnMut(BackupProgress),
) -> Result<BackupReport> {
    let base = options.base.as_deref().map(open_base).transpose()?;
    in_directory(directory, &options.reading, |place| create(source()?, place, options, base, progress))
}

/// Makes a backup of `source` in an empty directory. See the module.
pub(crate) fn create<'o>(
    mut source: Source,
    place: Place<'_>,
    options: &'o BackupOptions,
    base: Option<(BaseBackup, Manifest)>,
    progress: &'o mut dyn FnMut(BackupProgress),
) -> Result<BackupReport> {
    if let Some((base, manifest)) = &base
        && manifest.database != source.superblock.database
    {
        return Err(Error::Refused(format!(
            "{} is a backup of another database, so it has nothing that this one needs",
            base.directory.display()
        )));
    }
    marker::begin(place.io, BACKUP_PART)?;
    for directory in [wal::DIRECTORY, segment::DIRECTORY] {
        run(place.io, Operation::CreateDirectory { path: directory.into() })?;
    }
    let mut backup = Attempt { place, options, files: Vec::new(), report: BackupReport::default(), progress };
    if planted!(options, GiveBackLog) {
        source.log = None;
    }
    backup.copy_log(&source)?;
    source.log = None;
    if planted!(options, GiveBackNames) {
        source.names = None;
    }
    let linked = backup.take_segments(&source, base.as_ref().map(|(_, manifest)| manifest))?;
    source.names = None;
    backup.sum_linked(&linked)?;
    backup.take_owner(&source)?;
    backup.write_superblock(&source)?;
    backup.check_log(&source)?;
    let Attempt { place, files, mut report, .. } = backup;
    let manifest = manifest_of(&source, base.map(|(base, _)| base), files);
    report.revision = manifest.revision;
    report.files_count = manifest.files.len() as u64;
    report.bytes = manifest.bytes();
    manifest.finish(place.io)?;
    Ok(report)
}

fn manifest_of(source: &Source, base: Option<BaseBackup>, files: Vec<FileEntry>) -> Manifest {
    let superblock = &source.superblock;
    // A base that nothing is left in is none.
    let base = base.filter(|_| files.iter().any(|file| file.location == Location::Base));
    Manifest {
        database: superblock.database,
        mode: superblock.mode,
        cluster_id: superblock.cluster_id,
        member_id: superblock.member_id,
        sequence: superblock.sequence(),
        replay_lsn: superblock.wal_replay_lsn,
        end_lsn: source.extent.end_lsn,
        applied: (superblock.applied_index, superblock.applied_term),
        checkpoint_revision: superblock.revision,
        compact_revision: superblock.compact_revision,
        revision: source.revision,
        base,
        files,
    }
}

/// A backup under way.
struct Attempt<'p, 'o> {
    place: Place<'p>,
    options: &'o BackupOptions,
    files: Vec<FileEntry>,
    report: BackupReport,
    progress: &'o mut dyn FnMut(BackupProgress),
}

impl Attempt<'_, '_> {
    fn syncs(&self) -> bool {
        !planted!(self.options, SkipSync)
    }

    fn sync_directory(&mut self, path: impl Into<PathBuf>) -> Result<()> {
        if !planted!(self.options, ManifestEarly) {
            run(self.place.io, Operation::SyncDirectory { path: path.into() })?;
        }
        Ok(())
    }

    fn add(&mut self, path: PathBuf, location: Location, sums: FileSums) {
        self.files.push(FileEntry { path, location, sums });
    }

    /// Copies the log up to its end, and zeros where it would go on: a log is written only into what was written before (W5).
    fn copy_log(&mut self, source: &Source) -> Result<()> {
        let sync = self.syncs();
        let segments: Vec<(u64, u64)> = source.extent.segments().collect();
        let bytes_total = segments.iter().map(|&(_, bytes)| bytes).sum();
        let mut bytes_done = 0;
        (self.progress)(BackupProgress { part: "log", bytes_done, bytes_total });
        for (seq, mut bytes) in segments {
            let path = wal::segment_path(seq);
            let file = source.files.open(&path)?;
            check_log_segment(&*file, seq, source)?;
            if planted!(self.options, CopyPastEnd) {
                bytes = source.extent.segment_bytes;
            }
            let sums = write_file(self.place.io, &path, sync, |target| {
                while target.sums.bytes < bytes {
                    let wanted = (bytes - target.sums.bytes).min(ZEROS_BYTES as u64) as usize;
                    let piece = file.read(target.sums.bytes, wanted)?;
                    if piece.len() < wanted {
                        return Err(Error::Corruption {
                            file: path.display().to_string(),
                            offset: target.sums.bytes,
                            what: format!(
                                "{wanted} bytes of the log expected, the file ends after {}",
                                piece.len()
                            ),
                        });
                    }
                    target.write(&piece)?;
                    bytes_done += wanted as u64;
                    (self.progress)(BackupProgress { part: "log", bytes_done, bytes_total });
                }
                let zeros = vec![0; ZEROS_BYTES];
                while target.sums.bytes < source.extent.segment_bytes {
                    let wanted = (source.extent.segment_bytes - target.sums.bytes).min(ZEROS_BYTES as u64);
                    target.write(&zeros[..wanted as usize])?;
                }
                Ok(())
            })?;
            self.report.bytes_copied += sums.bytes;
            self.add(path, Location::Here, sums);
        }
        self.sync_directory(wal::DIRECTORY)
    }

    /// Gives every segment a second name, copies it, or leaves it to the base. Returns those with second names, whose checksums
    /// are still to be computed.
    fn take_segments(&mut self, source: &Source, base: Option<&Manifest>) -> Result<Vec<PathBuf>> {
        let (mut linked, mut links) = (Vec::new(), self.options.links);
        let mut bytes_done = 0;
        (self.progress)(BackupProgress { part: "segments", bytes_done, bytes_total: 0 });
        let segments = source.segments()?;
        for (id, kind) in segments {
            let path = segment::path(id, kind);
            if let Some(known) = base.and_then(|base| base.file(&path)) {
                let sums = FileSums::of(&*open_segment(source, (id, kind))?, &mut |_, _| Ok(()))?;
                bytes_done += sums.bytes;
                (self.progress)(BackupProgress { part: "segments", bytes_done, bytes_total: 0 });
                if sums == known.sums {
                    self.report.bytes_in_base += sums.bytes;
                    self.add(path, Location::Base, sums);
                    continue;
                }
            }
            if links {
                let link = Operation::Link { from: source.root.join(&path), to: path.clone() };
                match run(self.place.io, link) {
                    Ok(_) => {
                        linked.push(path);
                        continue;
                    }
                    // It will be no other for the next one.
                    Err(error) if error.kind == IoErrorKind::CannotLink => links = false,
                    Err(error) if error.kind == IoErrorKind::NotFound => return Err(missing(&path)),
                    Err(error) => return Err(error.into()),
                }
            }
            let (file, sync) = (open_segment(source, (id, kind))?, self.syncs());
            let sums = write_file(self.place.io, &path, sync, |target| {
                FileSums::of(&*file, &mut |offset, piece| {
                    if !piece.len().is_multiple_of(BLOCK_BYTES) {
                        return Err(Error::Corruption {
                            file: file.path().to_string(),
                            offset,
                            what: "a whole number of blocks expected, the file ends within one".into(),
                        });
                    }
                    bytes_done += piece.len() as u64;
                    (self.progress)(BackupProgress { part: "segments", bytes_done, bytes_total: 0 });
                    target.write(piece)
                })
                .map(drop)
            })?;
            self.report.bytes_copied += sums.bytes;
            self.add(path, Location::Here, sums);
        }
        self.sync_directory(segment::DIRECTORY)?;
        Ok(linked)
    }

    /// Reads what got a second name.
    fn sum_linked(&mut self, linked: &[PathBuf]) -> Result<()> {
        let mut bytes_done = 0;
        for path in linked {
            let file = self.place.files.open(path)?;
            let sums = FileSums::of(&*file, &mut |_, piece| {
                bytes_done += piece.len() as u64;
                (self.progress)(BackupProgress { part: "checksums", bytes_done, bytes_total: 0 });
                Ok(())
            })?;
            self.report.bytes_linked += sums.bytes;
            self.add(path.clone(), Location::Here, sums);
        }
        Ok(())
    }

    /// By what the layer above knows its own.
    fn take_owner(&mut self, source: &Source) -> Result<()> {
        let path = PathBuf::from(OWNER_FILE);
        match source.files.open(&path) {
            // It is empty: its name says all.
            Ok(_) => {}
            Err(error) if error.kind == IoErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error.into()),
        }
        let sync = self.syncs();
        let sums = write_file(self.place.io, &path, sync, |_| Ok(()))?;
        self.add(path, Location::Here, sums);
        Ok(())
    }

    fn write_superblock(&mut self, source: &Source) -> Result<()> {
        source.superblock.clone().create(self.place.io)?;
        let path = PathBuf::from(superblock::FILE);
        let sums = FileSums::of(&*self.place.files.open(&path)?, &mut |_, _| Ok(()))?;
        self.report.bytes_copied += sums.bytes;
        self.add(path, Location::Here, sums);
        Ok(())
    }

    /// What was copied of the log is a log that ends where it should: a recovery would find all of it.
    fn check_log(&mut self, source: &Source) -> Result<()> {
        let (extent, database) = (source.extent, source.superblock.database);
        let io = &mut *self.place.io;
        let visit = &mut |_: &wal::Record<'_>| Ok(());
        let found = wal::inspect(io, database, extent.segment_bytes, extent.replay_lsn, visit, &mut |_| {})?;
        if found.end_lsn == extent.recovered_end() {
            return Ok(());
        }
        Err(Error::Corruption {
            file: wal::segment_path(found.end_lsn.0 / extent.segment_bytes).display().to_string(),
            offset: found.end_lsn.0 % extent.segment_bytes,
            what: format!(
                "a log that ends at position {} expected, its copy ends at {}",
                extent.recovered_end(),
                found.end_lsn
            ),
        })
    }
}

fn open_segment(source: &Source, (id, kind): SegmentFile) -> Result<std::sync::Arc<dyn ReadFile>> {
    let path = segment::path(id, kind);
    let file = source.files.open(&path).map_err(|error| match error.kind {
        IoErrorKind::NotFound => missing(&path),
        _ => error.into(),
    })?;
    segment::check_header(&*file, id, kind, source.superblock.database)?;
    Ok(file)
}

fn missing(path: &Path) -> Error {
    Error::Corruption {
        file: path.display().to_string(),
        offset: 0,
        what: "a segment of the checkpoint expected, none found".into(),
    }
}

/// The name of a file of the log is a hint; after a crash it may be another's until the next start.
fn check_log_segment(file: &dyn ReadFile, seq: u64, source: &Source) -> Result<()> {
    let block = file.read(0, BLOCK_BYTES)?;
    let header = SegmentHeader::decode(&block);
    if header.is_ok_and(|header| header.seq == seq && header.database == source.superblock.database) {
        return Ok(());
    }
    Err(Error::Refused(format!(
        "{} is not segment {seq} of this log: start the database once and stop it, which puts its files in order, then back it \
         up",
        file.path()
    )))
}
