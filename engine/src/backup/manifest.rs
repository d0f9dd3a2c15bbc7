//! The manifest: what a backup holds.
//!
//! **Layout.** The engine's envelope (kind 3, see [`envelope`]), then zeros up to a multiple of 4 KiB. The body is bincode's
//! standard encoding of the tuple that [`Body`] names; `docs/data_file.md` says it in words.
//!
//! **Failure.** What does not verify, a path that is none of a data directory, or lengths that do not fit their checksums are
//! refused; nothing that a manifest says is used before.
//!
//! **Does not know** where the files are.
use super::file_sums::{CHUNK_BYTES, FileSums};
use super::marker::{BACKUP_PART, OWNER_FILE};
use crate::base::checksum::crc32;
use crate::base::envelope::{self, EnvelopeKind};
use crate::base::ids::Lsn;
use crate::error::{Error, Result};
use crate::io::disk::{BLOCK_BYTES, run};
use crate::io::{Durability, Files, Io, Open, Operation, Outcome, ReadFile};
use crate::superblock::{self, Mode};
use crate::{segment, wal};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Name of the file.
pub const MANIFEST_FILE: &str = "backup.manifest";
/// Version of the body; a reader refuses another one.
const FORMAT_VERSION: u16 = 1;
/// A manifest of a petabyte is smaller.
const BYTES_MAX: usize = 1 << 30;

/// database, mode, (cluster, member), sequence of the source's superblock, (replay position, end) of the log, (applied index,
/// term), (revision, compact revision) of the checkpoint, newest revision, base, files.
type Body = (
    [u8; 16],
    u8,
    (u64, u64),
    u64,
    (u64, u64),
    (u64, u64),
    (i64, i64),
    Option<i64>,
    Option<BaseBody>,
    Vec<FileBody>,
);
/// Directory, checksum of its manifest.
type BaseBody = (String, u32);
/// Path, bytes, checksum of each chunk, whether it is in the base.
type FileBody = (String, u64, Vec<u32>, bool);

/// Where a file of a backup is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Location {
    /// In its own directory.
    Here,
    /// In the base, or in the base of that one.
    Base,
}

/// One file of a backup.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FileEntry {
    /// Relative to the directory: `super`, `raft`, `wal/NNNNNNNN.wal`, `seg/NNNNNNNN.r`, `seg/NNNNNNNN.k`.
    pub path: PathBuf,
    /// Where it is.
    pub location: Location,
    pub(super) sums: FileSums,
}

impl FileEntry {
    /// Length of the file.
    pub fn bytes(&self) -> u64 {
        self.sums.bytes
    }

    /// CRC-32 of each 4 MiB of it.
    pub fn chunk_checksums(&self) -> &[u32] {
        &self.sums.chunks
    }
}

/// The backup that an incremental one builds on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BaseBackup {
    /// Where it was when this one was made.
    pub directory: PathBuf,
    /// CRC-32 of its manifest: no other backup takes its place.
    pub manifest_checksum: u32,
}

/// What a backup holds. See the module.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Manifest {
    /// Identity of the database.
    pub database: [u8; 16],
    /// Embedded or replicated.
    pub mode: Mode,
    /// The caller's ids.
    pub cluster_id: u64,
    /// See `cluster_id`.
    pub member_id: u64,
    /// Sequence of the superblock that was backed up.
    pub sequence: u64,
    /// Recovery of the log starts here.
    pub replay_lsn: Lsn,
    /// End of the log in this backup.
    pub end_lsn: Lsn,
    /// Index and term of the last entry in the checkpoint.
    pub applied: (u64, u64),
    /// Revision of the checkpoint; the log adds to it.
    pub checkpoint_revision: i64,
    /// Compact revision of the checkpoint.
    pub compact_revision: i64,
    /// Newest revision, log included; none if nobody replayed it.
    pub revision: Option<i64>,
    /// What it builds on.
    pub base: Option<BaseBackup>,
    /// Everything it needs, in the order in which it is restored.
    pub files: Vec<FileEntry>,
}

impl Manifest {
    /// Bytes of all files.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(FileEntry::bytes).sum()
    }

    /// The entry of a file.
    pub fn file(&self, path: &Path) -> Option<&FileEntry> {
        self.files.iter().find(|file| file.path == path)
    }

    fn encode(&self) -> Vec<u8> {
        let file = |file: &FileEntry| {
            let in_base = file.location == Location::Base;
            (file.path.display().to_string(), file.sums.bytes, file.sums.chunks.clone(), in_base)
        };
        let base = |base: &BaseBackup| (base.directory.display().to_string(), base.manifest_checksum);
        let body: Body = (
            self.database,
            match self.mode {
                Mode::Embedded => 1,
                Mode::Replicated => 2,
            },
            (self.cluster_id, self.member_id),
            self.sequence,
            (self.replay_lsn.0, self.end_lsn.0),
            self.applied,
            (self.checkpoint_revision, self.compact_revision),
            self.revision,
            self.base.as_ref().map(base),
            self.files.iter().map(file).collect(),
        );
        let mut bytes = envelope::seal(EnvelopeKind::BackupManifest, FORMAT_VERSION, &body);
        bytes.resize(bytes.len().next_multiple_of(BLOCK_BYTES), 0);
        bytes
    }

    /// Reads the bytes of a manifest; else what is wrong with them.
    fn decode(bytes: &[u8]) -> Result<Self, String> {
        let sealed = envelope::without_padding(bytes).map_err(|error| error.to_string())?;
        let body: Body = envelope::open(EnvelopeKind::BackupManifest, FORMAT_VERSION, sealed)
            .map_err(|error| error.to_string())?;
        let (
            database,
            mode,
            (cluster_id, member_id),
            sequence,
            log,
            applied,
            checkpoint,
            revision,
            base,
            files,
        ) = body;
        let mode = match mode {
            1 => Mode::Embedded,
            2 => Mode::Replicated,
            other => return Err(format!("the mode of a database is 1 or 2, here is {other}")),
        };
        let files = files.into_iter().map(decode_file).collect::<Result<Vec<_>, _>>()?;
        let paths: BTreeSet<&Path> = files.iter().map(|file| file.path.as_path()).collect();
        if paths.len() < files.len() {
            return Err("it names a file twice".into());
        }
        if base.is_none() && files.iter().any(|file| file.location == Location::Base) {
            return Err("it leaves files to a base and names none".into());
        }
        Ok(Self {
            database,
            mode,
            cluster_id,
            member_id,
            sequence,
            replay_lsn: Lsn(log.0),
            end_lsn: Lsn(log.1),
            applied,
            checkpoint_revision: checkpoint.0,
            compact_revision: checkpoint.1,
            revision,
            base: base.map(|(directory, manifest_checksum)| BaseBackup {
                directory: directory.into(),
                manifest_checksum,
            }),
            files,
        })
    }

    /// Writes it into the file that says that the backup is not finished, and makes that file the manifest: everything that it
    /// lists is durable (B1).
    pub(super) fn finish(&self, io: &mut dyn Io) -> Result<()> {
        let file = match run(io, Operation::Open { path: BACKUP_PART.into(), open: Open::Existing })?.0 {
            Outcome::Opened(file) => file,
            _ => unreachable!("opening a file gives a file"),
        };
        let written = self.encode().chunks(1 << 20).zip(0..).try_for_each(|(piece, number)| {
            let mut buffer = io.buffer(piece.len());
            buffer.copy_from_slice(piece);
            let write = Operation::Write { file, offset: number << 20, buffer, durability: Durability::None };
            run(io, write).map(|(_, buffer)| buffer.into_iter().for_each(|buffer| io.recycle(buffer)))
        });
        let synced = written.and_then(|()| run(io, Operation::Sync { file }).map(drop));
        run(io, Operation::Close { file })?;
        synced?;
        run(io, Operation::Rename { from: BACKUP_PART.into(), to: MANIFEST_FILE.into() })?;
        run(io, Operation::SyncDirectory { path: PathBuf::new() })?;
        Ok(())
    }

    /// Reads the manifest at `path`, and its checksum.
    ///
    /// # Errors
    /// `NotFound` if there is none; [`Error::Corruption`] if it does not verify.
    pub(super) fn read(files: &dyn Files, path: &Path) -> Result<(Self, u32)> {
        let file = files.open(path)?;
        let bytes = read_all(&*file)?;
        match Self::decode(&bytes) {
            Ok(manifest) => Ok((manifest, crc32(&bytes))),
            Err(what) => Err(Error::Corruption { file: file.path().to_string(), offset: 0, what }),
        }
    }
}

fn read_all(file: &dyn ReadFile) -> Result<Vec<u8>> {
    const PIECE_BYTES: usize = 1 << 20;
    let mut bytes = Vec::new();
    loop {
        let piece = file.read(bytes.len() as u64, PIECE_BYTES)?;
        bytes.extend_from_slice(&piece);
        if piece.len() < PIECE_BYTES || bytes.len() > BYTES_MAX {
            return Ok(bytes);
        }
    }
}

fn decode_file((path, bytes, chunks, in_base): FileBody) -> Result<FileEntry, String> {
    let path = PathBuf::from(path);
    if !is_ours(&path) {
        return Err(format!("{} is no file of a data directory", path.display()));
    }
    if bytes.div_ceil(CHUNK_BYTES) != chunks.len() as u64 {
        return Err(format!("{} has {bytes} bytes and {} checksums", path.display(), chunks.len()));
    }
    let location = if in_base { Location::Base } else { Location::Here };
    Ok(FileEntry { path, location, sums: FileSums { bytes, chunks } })
}

/// True for the paths that a backup may hold: what is restored goes nowhere else.
fn is_ours(path: &Path) -> bool {
    let Some(name) = path.file_name().and_then(|name| name.to_str()) else { return false };
    if path == Path::new(superblock::FILE) || path == Path::new(OWNER_FILE) {
        return true;
    }
    let is_segment = segment::parse_name(name).is_some_and(|(id, kind)| segment::path(id, kind) == path);
    let sequence = name.strip_suffix(".wal").and_then(|digits| digits.parse().ok());
    is_segment || sequence.is_some_and(|sequence| wal::segment_path(sequence) == path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest() -> Manifest {
        let file = |path: &str, bytes: u64, location| FileEntry {
            path: path.into(),
            location,
            sums: FileSums { bytes, chunks: vec![7; bytes.div_ceil(CHUNK_BYTES) as usize] },
        };
        Manifest {
            database: [3; 16],
            mode: Mode::Embedded,
            cluster_id: 1,
            member_id: 2,
            sequence: 9,
            replay_lsn: Lsn(5),
            end_lsn: Lsn(6),
            applied: (7, 8),
            checkpoint_revision: 10,
            compact_revision: -1,
            revision: Some(11),
            base: Some(BaseBackup { directory: "/backups/monday".into(), manifest_checksum: 12 }),
            files: vec![
                file("super", 16 << 10, Location::Here),
                file("wal/00000001.wal", 64 << 20, Location::Here),
                file("seg/00000002.r", 0, Location::Base),
            ],
        }
    }

    #[test]
    fn what_is_written_is_read_and_damage_is_refused() {
        let bytes = manifest().encode();
        assert_eq!(Manifest::decode(&bytes), Ok(manifest()));
        for bit in 0..bytes.len() * 8 {
            let mut bad = bytes.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(Manifest::decode(&bad).is_err(), "bit {bit}");
        }
        for cut in 0..bytes.len() {
            // Zeros behind the envelope may be missing, and nothing else.
            let cut = Manifest::decode(&bytes[..cut]);
            assert!(cut.is_err() || cut == Ok(manifest()));
        }
    }

    #[test]
    fn a_path_that_leads_elsewhere_is_refused() {
        for path in
            ["/etc/passwd", "../super", "seg/../super", "seg/1.r", "wal/+1.wal", "LOCK", "", "seg/00000001.x"]
        {
            let mut manifest = manifest();
            manifest.files[0].path = path.into();
            let error = Manifest::decode(&manifest.encode()).expect_err(path);
            assert!(error.contains("no file of a data directory"), "{error}");
        }
        let mut twice = manifest();
        twice.files[1] = twice.files[0].clone();
        assert!(Manifest::decode(&twice.encode()).is_err());
        let mut groundless = manifest();
        groundless.base = None;
        assert!(Manifest::decode(&groundless.encode()).is_err());
    }
}
