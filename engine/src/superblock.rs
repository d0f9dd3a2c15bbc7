//! The file `super`: what a database is, and where its recovery starts. Four copies of one block.
//!
//! **Contract.** [`Superblock::read`] gives the newest sequence that at least two valid copies hold, and makes all four
//! copies hold it. [`Superblock::write`] replaces them two at a time with a sync in between, never touching the last
//! two copies of the sequence that is valid on disk: at every moment one sequence has two valid copies.
//!
//! **Layout**, little-endian, one block of 4 KiB per copy; the table is in `docs/data_file.md`.
//!
//! **Invariants.** S2: the newest superblock is the highest sequence with two valid copies, never chosen by position.
//! S3: what a superblock refers to is durable before its first copy is written (the caller's duty), so that a lone
//! valid copy is true as well: it is taken, and reported, when no sequence has two.
//!
//! **Failure.** A crash leaves the old or the new sequence. A superblock that is being made says so
//! ([`Stage::Creating`]) until the log exists: opening such a directory starts its creation again. A log without a
//! superblock is refused: nothing says whose it is.
//!
//! **Does not know** what its fields mean to anybody.
//!
//! Threads that share an open database's superblock do so through [`SharedSuperblock`].
mod shared;

pub use shared::SharedSuperblock;

use crate::base::checksum::crc32;
use crate::base::codec::Reader;
use crate::base::ids::Lsn;
use crate::error::{Error, Result};
use crate::io::disk::{BLOCK_BYTES, run};
use crate::io::{Durability, FileId, Io, IoErrorKind, Open, Operation, Outcome};
use crate::tree::{PAGE_REF_BYTES, PageRef};
use crate::wal::SyncMethod;
use std::path::PathBuf;

/// Path of the file, relative to the data directory.
pub const FILE: &str = "super";
/// Version of this file; a reader refuses a higher one. A state is written as the lowest version that can say it, so that an older
/// release opens the directory as long as it can: version 1 knows no checkpoints, version 2 none that has left a part of a compaction to
/// the next, version 3 no pending tree, version 4 no stations of keys.
pub const FORMAT_VERSION: u32 = 5;
const FORMAT_VERSION_WITHOUT_CHECKPOINT: u32 = 1;
const FORMAT_VERSION_SWEPT: u32 = 2;
const FORMAT_VERSION_WITHOUT_PENDING: u32 = 3;
const FORMAT_VERSION_WITHOUT_STATIONS: u32 = 4;
/// Copies of the block in the file.
pub const COPIES: usize = 4;
/// Longest name of a device.
pub const DEVICE_BYTES_MAX: usize = 64;

const MAGIC: &[u8; 8] = b"STRNSUPR";
const CRC_OFFSET: usize = BLOCK_BYTES - 4;

/// Whether the directory is whole.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stage {
    /// Something may be missing, and nothing was ever acknowledged: start again.
    Creating,
    /// All parts exist.
    Ready,
}

/// Who orders the changes of this database. Fixed for life.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// The embedded database.
    Embedded,
    /// A replicated log, be it of one member.
    Replicated,
}

/// Roots of the trees of a checkpoint; none for an empty tree.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Roots {
    /// Root of the key tree.
    pub keys: Option<PageRef>,
    /// Root of the system tree.
    pub system: Option<PageRef>,
    /// Root of the segment table.
    pub segments: Option<PageRef>,
    /// Root of the pending tree.
    pub pending: Option<PageRef>,
}

impl Roots {
    /// Those that every version has, in the order in which they are written.
    pub fn first_three(&self) -> [Option<PageRef>; 3] {
        [self.keys, self.system, self.segments]
    }
}

/// The measured choice of how groups of the log become durable.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Calibration {
    /// The choice.
    pub method: SyncMethod,
    /// The device it was measured on; measured again on another. At most [`DEVICE_BYTES_MAX`] bytes.
    pub device: String,
}

/// Why a member may not take part, and what it must catch up to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Quarantine {
    /// The caller's number for the reason; not 0.
    pub reason: u32,
    /// Last index it had acknowledged.
    pub last_index: u64,
    /// Term of that entry.
    pub last_term: u64,
}

/// One state of the database's fixed facts and positions.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Superblock {
    /// Is the directory whole?
    pub stage: Stage,
    /// Identity of this database; segments of the log repeat it.
    pub database: [u8; 16],
    /// The caller's; 0 if it has none.
    pub cluster_id: u64,
    /// The caller's; 0 if it has none.
    pub member_id: u64,
    /// Embedded or replicated.
    pub mode: Mode,
    /// Bytes of a segment of the log.
    pub segment_bytes: u32,
    /// Recovery of the log starts here; 0 at first.
    pub wal_replay_lsn: Lsn,
    /// Index of the newest command in the checkpoint; the caller's.
    pub applied_index: u64,
    /// Term of that command.
    pub applied_term: u64,
    /// Main revision of the checkpoint; 1 at first.
    pub revision: i64,
    /// Compact revision as of the applied index; −1 at first.
    pub compact_revision: i64,
    /// Up to here changes were looked at for what the compaction made dead; the compact revision, unless a part is left.
    pub swept_revision: i64,
    /// Trees of the checkpoint.
    pub roots: Roots,
    /// Cells of keys may name stations on the way to older versions. Once set it stays.
    pub has_stations: bool,
    /// Number of the next segment of a checkpoint, 1 at first; each is used once.
    pub next_segment: u32,
    /// How groups become durable, if it was measured.
    pub calibration: Option<Calibration>,
    /// Set while the member must not take part.
    pub quarantine: Option<Quarantine>,
    /// Which sequence each copy on disk holds; maintained here.
    copies: [Option<u64>; COPIES],
    /// Sequence of this state on disk; 0 before it was written.
    sequence: u64,
    /// Only one copy was valid when it was read.
    lone: bool,
}

impl Superblock {
    /// A new database that holds nothing yet, not written.
    pub fn new(database: [u8; 16], mode: Mode, segment_bytes: u32) -> Self {
        Self {
            stage: Stage::Creating,
            database,
            cluster_id: 0,
            member_id: 0,
            mode,
            segment_bytes,
            wal_replay_lsn: Lsn(0),
            applied_index: 0,
            applied_term: 0,
            revision: 1,
            compact_revision: -1,
            swept_revision: -1,
            roots: Roots::default(),
            has_stations: false,
            next_segment: 1,
            calibration: None,
            quarantine: None,
            copies: [None; COPIES],
            sequence: 0,
            lone: false,
        }
    }

    /// The same, to be written with a number behind this one.
    pub(crate) fn numbered_behind(self, sequence: u64) -> Self {
        Self { sequence, ..self }
    }

    /// True if there is a checkpoint: recovery of the log then adds to it.
    pub fn has_checkpoint(&self) -> bool {
        self.applied_index > 0
    }

    /// Number of this state, counted up by every write.
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    /// Which sequence each copy on disk holds; none for one that does not verify.
    pub fn copies(&self) -> [Option<u64>; COPIES] {
        self.copies
    }

    /// The version that this state is written as.
    pub fn format_version(&self) -> u32 {
        if !self.has_checkpoint() {
            FORMAT_VERSION_WITHOUT_CHECKPOINT
        } else if self.has_stations {
            FORMAT_VERSION
        } else if self.roots.pending.is_some() {
            FORMAT_VERSION_WITHOUT_STATIONS
        } else if self.swept_revision == self.compact_revision {
            FORMAT_VERSION_SWEPT
        } else {
            FORMAT_VERSION_WITHOUT_PENDING
        }
    }

    /// True if only one valid copy of it was found: to be logged.
    pub fn is_lone(&self) -> bool {
        self.lone
    }

    /// Refuses the other mode and names the right call.
    pub fn expect_mode(&self, mode: Mode) -> Result<()> {
        if self.mode == mode {
            return Ok(());
        }
        Err(Error::Refused(match self.mode {
            Mode::Embedded => {
                "this directory is an embedded database, which keeps its own order of changes for life: \
                               open it with Db::open, or export it and import it elsewhere"
                    .to_string()
            }
            Mode::Replicated => {
                "this directory belongs to a server, whose replicated log orders its changes: open \
                                 it with open_replicated (start the server on it)"
                    .to_string()
            }
        }))
    }

    /// Makes the file and writes this state to it, durable with its name. The stage should be
    /// [`Stage::Creating`] until everything else exists.
    pub fn create(mut self, io: &mut dyn Io) -> Result<Self> {
        let file = match open(io, Open::CreateNew) {
            Err(Error::Io(error)) if error.kind == IoErrorKind::AlreadyExists => open(io, Open::Existing)?,
            file => file?,
        };
        self.copies = [None; COPIES];
        let written = self.write_to(io, file);
        run(io, Operation::Close { file })?;
        written?;
        run(io, Operation::SyncDirectory { path: PathBuf::new() })?;
        Ok(self)
    }

    /// Replaces what is on disk with this state; durable in all copies when it returns. After an error the disk
    /// holds the old or the new state: the database must be opened anew.
    pub fn write(&mut self, io: &mut dyn Io) -> Result<()> {
        let file = open(io, Open::Existing)?;
        let written = self.write_to(io, file);
        run(io, Operation::Close { file })?;
        written
    }

    fn write_to(&mut self, io: &mut dyn Io, file: FileId) -> Result<()> {
        let newest = self.copies.iter().flatten().copied().max().unwrap_or(0).max(self.sequence);
        let current = self.sequence;
        self.sequence = newest + 1;
        self.write_copies(io, file, current)
    }

    /// Writes all copies that do not hold this sequence; first those that do not hold `current` either, so that
    /// two copies of one of the two are valid at every moment.
    fn write_copies(&mut self, io: &mut dyn Io, file: FileId, current: u64) -> Result<()> {
        let mut order: Vec<usize> =
            (0..COPIES).filter(|&copy| self.copies[copy] != Some(self.sequence)).collect();
        order.sort_by_key(|&copy| self.copies[copy] == Some(current));
        let stale = order.iter().filter(|&&copy| self.copies[copy] != Some(current)).count();
        let first = order.len().min(stale.max(COPIES / 2));
        for part in [&order[..first], &order[first..]] {
            for &copy in part {
                let mut buffer = io.buffer(BLOCK_BYTES);
                self.encode(copy, &mut buffer);
                let offset = (copy * BLOCK_BYTES) as u64;
                let write = Operation::Write { file, offset, buffer, durability: Durability::None };
                if let Some(buffer) = run(io, write)?.1 {
                    io.recycle(buffer);
                }
            }
            if !part.is_empty() {
                run(io, Operation::Sync { file })?;
            }
            for &copy in part {
                self.copies[copy] = Some(self.sequence);
            }
        }
        Ok(())
    }

    /// Reads the superblock and makes all copies equal; `None` if there is no database here yet.
    ///
    /// # Errors
    /// [`Error::Refused`] for a later format, or a log without a superblock; [`Error::Corruption`] if no copy is
    /// valid and there is a log.
    pub fn read(io: &mut dyn Io) -> Result<Option<Self>> {
        let Some(mut superblock) = Self::inspect(io)? else { return Ok(None) };
        if superblock.copies != [Some(superblock.sequence); COPIES] {
            // What was read may be acted upon, so it must not be the copy that a second fault takes away. The
            // number stays: a lone newer copy was never whole.
            let file = open(io, Open::Existing)?;
            let current = superblock.sequence;
            let written = superblock.write_copies(io, file, current);
            run(io, Operation::Close { file })?;
            written?;
        }
        Ok(Some(superblock))
    }

    /// Like [`Superblock::read`], changing nothing.
    pub fn inspect(io: &mut dyn Io) -> Result<Option<Self>> {
        let log_exists = log_exists(io)?;
        let file = match open(io, Open::Existing) {
            Err(Error::Io(error)) if error.kind == IoErrorKind::NotFound => {
                if log_exists {
                    return Err(Error::Refused(format!(
                        "there is a log in {}/ and no file {FILE}, so nothing says which database it is: restore \
                         {FILE} from a backup, or move the directory away",
                        crate::wal::DIRECTORY
                    )));
                }
                return Ok(None);
            }
            file => file?,
        };
        // What is read must survive the next crash, even if whoever wrote it died before its sync.
        let read = run(io, Operation::Sync { file }).map_err(Error::from).and_then(|_| read_copies(io, file));
        run(io, Operation::Close { file })?;
        let copies = read?;
        match Self::choose(copies) {
            Some(superblock) => Ok(Some(superblock)),
            None if log_exists => Err(Error::Corruption {
                file: FILE.to_string(),
                offset: 0,
                what: "none of its four copies verifies".to_string(),
            }),
            None => Ok(None),
        }
    }

    fn choose(copies: [Option<Self>; COPIES]) -> Option<Self> {
        let sequences = copies.each_ref().map(|copy| copy.as_ref().map(|copy| copy.sequence));
        let count = |sequence| sequences.iter().flatten().filter(|&&other| other == sequence).count();
        let newest = |least| sequences.iter().flatten().copied().filter(|&it| count(it) >= least).max();
        let chosen = newest(2).or_else(|| newest(1))?;
        let mut superblock = copies.into_iter().flatten().find(|copy| copy.sequence == chosen)?;
        superblock.lone = count(chosen) == 1;
        superblock.copies = sequences;
        Some(superblock)
    }

    fn encode(&self, copy: usize, block: &mut [u8]) {
        let mut out = Vec::with_capacity(256);
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&self.format_version().to_le_bytes());
        out.push(copy as u8);
        out.push(match self.stage {
            Stage::Creating => 0,
            Stage::Ready => 1,
        });
        out.push(match self.mode {
            Mode::Embedded => 1,
            Mode::Replicated => 2,
        });
        out.push(self.calibration.as_ref().map_or(0, |calibration| calibration.method.number()));
        out.extend_from_slice(&self.sequence.to_le_bytes());
        out.extend_from_slice(&self.database);
        out.extend_from_slice(&self.cluster_id.to_le_bytes());
        out.extend_from_slice(&self.member_id.to_le_bytes());
        out.extend_from_slice(&self.wal_replay_lsn.0.to_le_bytes());
        out.extend_from_slice(&self.applied_index.to_le_bytes());
        out.extend_from_slice(&self.applied_term.to_le_bytes());
        out.extend_from_slice(&self.revision.to_le_bytes());
        out.extend_from_slice(&self.compact_revision.to_le_bytes());
        out.extend_from_slice(&self.segment_bytes.to_le_bytes());
        let quarantine = self.quarantine.unwrap_or(Quarantine { reason: 0, last_index: 0, last_term: 0 });
        out.extend_from_slice(&quarantine.reason.to_le_bytes());
        out.extend_from_slice(&quarantine.last_index.to_le_bytes());
        out.extend_from_slice(&quarantine.last_term.to_le_bytes());
        let device = self.calibration.as_ref().map_or("", |calibration| &calibration.device);
        let device = &device.as_bytes()[..device.floor_char_boundary(DEVICE_BYTES_MAX)];
        let mut field = [0; DEVICE_BYTES_MAX];
        field[..device.len()].copy_from_slice(device);
        out.extend_from_slice(&field);
        if self.has_checkpoint() {
            out.extend_from_slice(&self.next_segment.to_le_bytes());
            for root in self.roots.first_three() {
                out.extend_from_slice(&root.map_or([0; PAGE_REF_BYTES], |root| root.encode()));
            }
            if self.format_version() > FORMAT_VERSION_SWEPT {
                out.extend_from_slice(&self.swept_revision.to_le_bytes());
            }
            // Of a later version its zeros are those behind it.
            if let Some(pending) = &self.roots.pending {
                out.extend_from_slice(&pending.encode());
            }
        }
        block.fill(0);
        block[..out.len()].copy_from_slice(&out);
        let crc = crc32(&block[..CRC_OFFSET]);
        block[CRC_OFFSET..].copy_from_slice(&crc.to_le_bytes());
    }

    /// The state in `block`, if it is a valid copy number `copy`.
    fn decode(copy: usize, block: &[u8]) -> Result<Option<Self>> {
        Ok(match Self::decode_fields(copy, block) {
            Ok(Decoded::Valid(superblock)) => Some(*superblock),
            Ok(Decoded::Future(version)) => {
                return Err(Error::Refused(format!(
                    "{FILE} is of format version {version}, which a later release wrote; this one reads up to \
                     {FORMAT_VERSION}. Open the directory with that release or a newer one"
                )));
            }
            Ok(Decoded::Invalid) | Err(_) => None,
        })
    }

    fn decode_fields(copy: usize, block: &[u8]) -> Result<Decoded, crate::base::codec::Truncated> {
        let mut reader = Reader::new(block);
        let covered = reader.take(CRC_OFFSET)?;
        if crc32(covered) != reader.u32()? {
            return Ok(Decoded::Invalid);
        }
        let mut reader = Reader::new(covered);
        if reader.take(8)? != MAGIC {
            return Ok(Decoded::Invalid);
        }
        let version = reader.u32()?;
        if !(FORMAT_VERSION_WITHOUT_CHECKPOINT..=FORMAT_VERSION).contains(&version) {
            return Ok(Decoded::Future(version));
        }
        let copy_found = reader.u8()?;
        let stage = match reader.u8()? {
            0 => Stage::Creating,
            1 => Stage::Ready,
            _ => return Ok(Decoded::Invalid),
        };
        let mode = match reader.u8()? {
            1 => Mode::Embedded,
            2 => Mode::Replicated,
            _ => return Ok(Decoded::Invalid),
        };
        let method = match reader.u8()? {
            0 => None,
            number => match SyncMethod::from_number(number) {
                Some(method) => Some(method),
                None => return Ok(Decoded::Invalid),
            },
        };
        // A copy that landed at another copy's place must not count as a second one.
        if usize::from(copy_found) != copy {
            return Ok(Decoded::Invalid);
        }
        let sequence = reader.u64()?;
        let mut database = [0; 16];
        database.copy_from_slice(reader.take(16)?);
        let (cluster_id, member_id) = (reader.u64()?, reader.u64()?);
        let wal_replay_lsn = Lsn(reader.u64()?);
        let (applied_index, applied_term) = (reader.u64()?, reader.u64()?);
        let (revision, compact_revision) = (reader.i64()?, reader.i64()?);
        let segment_bytes = reader.u32()?;
        let quarantine =
            Quarantine { reason: reader.u32()?, last_index: reader.u64()?, last_term: reader.u64()? };
        let device = reader.take(DEVICE_BYTES_MAX)?;
        // A name that is no text was not written by a release of ours: the device is measured again.
        let device = std::str::from_utf8(device).ok().map(|device| device.trim_end_matches('\0').to_string());
        let (mut roots, mut next_segment) = (Roots::default(), 1);
        if version > FORMAT_VERSION_WITHOUT_CHECKPOINT {
            next_segment = reader.u32()?;
            for root in [&mut roots.keys, &mut roots.system, &mut roots.segments] {
                match decode_root(reader.take(PAGE_REF_BYTES)?) {
                    Ok(reference) => *root = reference,
                    Err(_) => return Ok(Decoded::Invalid),
                }
            }
        }
        let swept_revision = if version > FORMAT_VERSION_SWEPT { reader.i64()? } else { compact_revision };
        if version > FORMAT_VERSION_WITHOUT_PENDING {
            match decode_root(reader.take(PAGE_REF_BYTES)?) {
                // Without such a tree version 4 is not written.
                Ok(None) if version == FORMAT_VERSION_WITHOUT_STATIONS => return Ok(Decoded::Invalid),
                Ok(root) => roots.pending = root,
                Err(_) => return Ok(Decoded::Invalid),
            }
        }
        if swept_revision > compact_revision {
            return Ok(Decoded::Invalid);
        }
        Ok(Decoded::Valid(Box::new(Self {
            stage,
            database,
            cluster_id,
            member_id,
            mode,
            segment_bytes,
            wal_replay_lsn,
            applied_index,
            applied_term,
            revision,
            compact_revision,
            swept_revision,
            roots,
            has_stations: version > FORMAT_VERSION_WITHOUT_STATIONS,
            next_segment,
            calibration: method.zip(device).map(|(method, device)| Calibration { method, device }),
            quarantine: (quarantine.reason != 0).then_some(quarantine),
            copies: [None; COPIES],
            sequence,
            lone: false,
        })))
    }
}

/// A root; none if it is zeros.
fn decode_root(bytes: &[u8]) -> Result<Option<PageRef>, String> {
    match bytes.iter().all(|&byte| byte == 0) {
        true => Ok(None),
        false => PageRef::decode(bytes).map(Some),
    }
}

enum Decoded {
    Valid(Box<Superblock>),
    Future(u32),
    Invalid,
}

fn open(io: &mut dyn Io, open: Open) -> Result<FileId> {
    match run(io, Operation::Open { path: PathBuf::from(FILE), open })? {
        (Outcome::Opened(file), _) => Ok(file),
        _ => unreachable!("opening a file gives a file"),
    }
}

fn log_exists(io: &mut dyn Io) -> Result<bool> {
    match run(io, Operation::List { path: PathBuf::from(crate::wal::DIRECTORY) }) {
        Ok((Outcome::Names(names), _)) => Ok(!names.is_empty()),
        Ok(_) => unreachable!("a listing gives names"),
        Err(error) if error.kind == IoErrorKind::NotFound => Ok(false),
        Err(error) => Err(error.into()),
    }
}

fn read_copies(io: &mut dyn Io, file: FileId) -> Result<[Option<Superblock>; COPIES]> {
    let mut copies = [const { None }; COPIES];
    for (copy, slot) in copies.iter_mut().enumerate() {
        let buffer = io.buffer(BLOCK_BYTES);
        let read = Operation::Read { file, offset: (copy * BLOCK_BYTES) as u64, buffer };
        let (outcome, Some(buffer)) = run(io, read)? else { continue };
        if outcome == Outcome::Bytes(BLOCK_BYTES) {
            *slot = Superblock::decode(copy, &buffer)?;
        }
        io.recycle(buffer);
    }
    Ok(copies)
}

#[cfg(all(test, feature = "sim"))]
mod tests {
    use super::*;
    use crate::io::sim_disk::SimDisk;

    fn fresh() -> Superblock {
        let mut superblock = Superblock::new([7; 16], Mode::Replicated, 65536);
        superblock.calibration = Some(Calibration { method: SyncMethod::Dsync, device: "259:0".into() });
        superblock.quarantine = Some(Quarantine { reason: 1, last_index: 2, last_term: 3 });
        superblock
    }

    /// What counts: the fields a caller sets.
    fn same(a: &Superblock, b: &Superblock) -> bool {
        let plain = |it: &Superblock| Superblock { copies: [None; COPIES], lone: false, ..it.clone() };
        plain(a) == plain(b)
    }

    #[test]
    fn what_was_written_is_read() {
        let mut disk = SimDisk::new(1);
        assert_eq!(Superblock::read(&mut disk).unwrap(), None);
        let mut superblock = fresh().create(&mut disk).unwrap();
        superblock.stage = Stage::Ready;
        superblock.wal_replay_lsn = Lsn(99);
        superblock.write(&mut disk).unwrap();
        let read = Superblock::read(&mut disk).unwrap().unwrap();
        assert!(same(&read, &superblock));
        assert_eq!((read.sequence(), read.is_lone()), (2, false));
    }

    /// An older release opens what it can understand, and nothing else.
    #[test]
    fn a_state_is_written_as_the_lowest_version_that_can_say_it() {
        let mut disk = SimDisk::new(2);
        let mut superblock = fresh().create(&mut disk).unwrap();
        let pending = Some(PageRef { level: 2, crc: 5, ..PageRef::NOWHERE });
        for (applied_index, compact_revision, swept_revision, pending, has_stations, version) in [
            (0, -1, -1, None, false, 1),
            (1, -1, -1, None, false, 2),
            (2, 90, 90, None, false, 2),
            (3, 90, 40, None, false, 3),
            (4, 90, 40, pending, false, 4),
            (5, 90, 90, pending, false, 4),
            (6, 90, 90, None, false, 2),
            (7, 90, 90, None, true, 5),
            (8, 90, 40, pending, true, 5),
        ] {
            superblock.has_stations = has_stations;
            superblock.roots.pending = pending;
            superblock.applied_index = applied_index;
            (superblock.compact_revision, superblock.swept_revision) = (compact_revision, swept_revision);
            superblock.write(&mut disk).unwrap();
            let read = Superblock::read(&mut disk).unwrap().unwrap();
            assert!(same(&read, &superblock), "{read:?}");
            assert_eq!(read.format_version(), version);
        }
    }

    /// Every crash image at every step holds the old or the new state, whole, and once the write has returned only
    /// the new one; a state that was read once is never lost by crashing again and again while it is replaced.
    #[test]
    fn a_power_cut_at_any_step_leaves_the_old_or_the_new_state() {
        let mut disk = SimDisk::new(3);
        let mut superblock = fresh().create(&mut disk).unwrap();
        let old = superblock.clone();
        disk.record_images();
        superblock.applied_index = 10;
        superblock.write(&mut disk).unwrap();
        let images = disk.take_images();
        let last = images.len() - 1;
        let mut partial = 0;
        for (step, image) in images.iter().enumerate() {
            for policy in image.crash_policies() {
                let mut crashed = image.crash(&policy);
                let seen = Superblock::inspect(&mut crashed).unwrap().unwrap();
                partial += u64::from(seen.copies != [Some(seen.sequence); COPIES]);
                assert!(
                    same(&seen, &old) && step < last || same(&seen, &superblock),
                    "step {step}, {policy:?}"
                );
                // Again, while the next state is written over whatever mixture this is.
                let mut next = Superblock::read(&mut crashed.duplicate(1)).unwrap().unwrap();
                assert!(same(&next, &seen));
                crashed.record_images();
                let mut again = Superblock::inspect(&mut crashed).unwrap().unwrap();
                next.applied_index = 20;
                again.applied_index = 20;
                again.write(&mut crashed).unwrap();
                for image in crashed.take_images() {
                    for policy in image.crash_policies() {
                        let found = Superblock::inspect(&mut image.crash(&policy)).unwrap().unwrap();
                        assert!(
                            found.applied_index == seen.applied_index || found.applied_index == 20,
                            "step {step}: {} became {}",
                            seen.applied_index,
                            found.applied_index
                        );
                    }
                }
            }
        }
        assert!(partial > 0, "the runs include mixtures of two sequences");
    }

    /// A device's name that is no text was read with replacement characters, which are longer: written again it was another
    /// name, cut in the middle of a character. The fuzzer found it. Now such a device counts as not measured, and a long name
    /// is cut between characters.
    #[test]
    fn the_name_of_a_device_is_text_or_not_there() {
        let mut superblock = fresh();
        let device = format!("{}ä", "d".repeat(DEVICE_BYTES_MAX - 1));
        superblock.calibration = Some(Calibration { method: SyncMethod::Dsync, device });
        let mut block = vec![0; BLOCK_BYTES];
        superblock.encode(0, &mut block);
        let read = Superblock::decode(0, &block).unwrap().unwrap();
        assert_eq!(read.calibration.unwrap().device, "d".repeat(DEVICE_BYTES_MAX - 1));
        block[120 + DEVICE_BYTES_MAX - 1] = 0xc3;
        let crc = crc32(&block[..CRC_OFFSET]);
        block[CRC_OFFSET..].copy_from_slice(&crc.to_le_bytes());
        let read = Superblock::decode(0, &block).unwrap().unwrap();
        assert_eq!((read.calibration, read.segment_bytes), (None, superblock.segment_bytes));
    }

    #[test]
    fn two_bad_copies_are_survived_and_made_good() {
        for pair in [(0, 1), (0, 2), (1, 3), (2, 3)] {
            let mut disk = SimDisk::new(1);
            let superblock = fresh().create(&mut disk).unwrap();
            for copy in [pair.0, pair.1] {
                assert!(disk.flip_bit(FILE, copy * BLOCK_BYTES as u64 + 2000, 3));
            }
            assert!(same(&Superblock::read(&mut disk).unwrap().unwrap(), &superblock));
            let again = Superblock::inspect(&mut disk).unwrap().unwrap();
            assert_eq!(again.copies, [Some(1); COPIES]);
        }
    }

    #[test]
    fn a_lone_copy_is_taken_and_reported() {
        let mut disk = SimDisk::new(1);
        fresh().create(&mut disk).unwrap();
        for copy in [0, 1, 3] {
            disk.flip_bit(FILE, copy * BLOCK_BYTES as u64, 0);
        }
        assert!(Superblock::read(&mut disk).unwrap().unwrap().is_lone());
    }

    #[test]
    fn a_log_without_a_superblock_is_refused_and_one_with_a_damaged_superblock_is_damage() {
        let mut disk = SimDisk::new(1);
        disk.put_file("wal/00000001.wal", &[0; BLOCK_BYTES]);
        assert!(matches!(Superblock::read(&mut disk), Err(Error::Refused(_))));
        disk.put_file(FILE, &[0; COPIES * BLOCK_BYTES]);
        assert!(matches!(Superblock::read(&mut disk), Err(Error::Corruption { .. })));
    }

    #[test]
    fn a_later_format_is_refused() {
        let mut block = vec![0; BLOCK_BYTES];
        fresh().encode(0, &mut block);
        block[8] = FORMAT_VERSION as u8 + 1;
        let crc = crc32(&block[..CRC_OFFSET]);
        block[CRC_OFFSET..].copy_from_slice(&crc.to_le_bytes());
        assert!(matches!(Superblock::decode(0, &block), Err(Error::Refused(_))));
    }
}
