//! What a state is made of, as one member says it to another.
//!
//! **Layout.** The engine's envelope (kind 4, see [`envelope`]); its body is one byte string, little-endian, without gaps:
//!
//! ```text
//! database [16] · mode u8 (1 embedded, 2 replicated) · cluster id u64 · member id u64 · sequence u64 · bytes of a segment of the log u32
//! applied index u64 · term u64 · revision i64 · compact revision i64 · swept revision i64
//! roots of key tree, system tree, segment table: page reference [48] each, zeros for none
//! number of the next segment u32 · segments u32, then for each: number u32 · kind u8 (1 r, 2 k) · bytes u64 · r: summary [72]
//! versions 2 and 3: root of the pending tree: page reference [48], in version 3 zeros for none
//! ```
//!
//! **Failure.** It comes from outside: what does not verify, is longer than [`BYTES_MAX`], names a segment twice or cannot be a state is
//! refused, and nothing that it says is used before.
//!
//! **Does not know** what is in the segments.
use crate::base::codec::{Reader, Truncated};
use crate::base::envelope::{self, EnvelopeKind};
use crate::base::ids::{Lsn, SegmentId};
use crate::disk_state::Positions;
use crate::error::{Error, Result};
use crate::io::disk::BLOCK_BYTES;
use crate::revision_log::SegmentSummary;
use crate::segment::{self, SegmentKind};
use crate::superblock::{Mode, Roots, Stage, Superblock};
use crate::tree::{PAGE_REF_BYTES, PageRef};
use crate::wal::format::{SEGMENT_BYTES_MAX, SEGMENT_BYTES_MIN};
use std::collections::BTreeSet;
use std::path::PathBuf;

/// Version of the body; a reader refuses a higher one. A state without stations of keys is written as version 2, one that has no pending
/// tree either as version 1, which the releases before know.
const FORMAT_VERSION: u16 = 3;
const FORMAT_VERSION_WITHOUT_STATIONS: u16 = 2;
const FORMAT_VERSION_WITHOUT_PENDING: u16 = 1;
/// Longest manifest: of some ten terabytes in segments of 64 MiB.
pub(super) const BYTES_MAX: usize = 16 << 20;
/// No file is longer.
const SEGMENT_FILE_BYTES_MAX: u64 = 1 << 40;

/// One segment of a state.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SegmentEntry {
    /// Its number.
    pub id: SegmentId,
    /// Length of its file, whole blocks.
    pub bytes: u64,
    /// Of an r segment, what the segment table says of it; all of the file is verified by that.
    pub(super) summary: Option<SegmentSummary>,
}

impl SegmentEntry {
    /// Revision records or pages.
    pub fn kind(&self) -> SegmentKind {
        if self.summary.is_some() { SegmentKind::Revisions } else { SegmentKind::Pages }
    }

    /// Where it is in a data directory.
    pub fn path(&self) -> PathBuf {
        segment::path(self.id, self.kind())
    }
}

/// What a state is made of. See the module.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Manifest {
    /// Identity of the database; whoever installs the state takes it over, because every segment repeats it.
    pub database: [u8; 16],
    /// Embedded or replicated.
    pub mode: Mode,
    /// The caller's.
    pub cluster_id: u64,
    /// Of the member that it comes from.
    pub member_id: u64,
    /// Number of its superblock.
    pub sequence: u64,
    /// Bytes of a segment of its log; that of the receiver will have them too.
    pub log_segment_bytes: u32,
    /// Index and term of the last entry that is in it.
    pub applied: (u64, u64),
    /// Main revision.
    pub revision: i64,
    /// Compact revision as of the applied index.
    pub compact_revision: i64,
    /// Up to here changes were looked at for what the compaction made dead.
    pub swept_revision: i64,
    /// Trees.
    pub roots: Roots,
    /// Cells of keys may name stations.
    pub has_stations: bool,
    /// Number of the next segment.
    pub next_segment: u32,
    /// All segments.
    pub files: Vec<SegmentEntry>,
}

impl Manifest {
    /// Of a durable superblock with a checkpoint, and its segments.
    pub(super) fn new(superblock: &Superblock, files: Vec<SegmentEntry>) -> Self {
        Self {
            database: superblock.database,
            mode: superblock.mode,
            cluster_id: superblock.cluster_id,
            member_id: superblock.member_id,
            sequence: superblock.sequence(),
            log_segment_bytes: superblock.segment_bytes,
            applied: (superblock.applied_index, superblock.applied_term),
            revision: superblock.revision,
            compact_revision: superblock.compact_revision,
            swept_revision: superblock.swept_revision,
            roots: superblock.roots,
            has_stations: superblock.has_stations,
            next_segment: superblock.next_segment,
            files,
        }
    }

    /// Bytes of all segments.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.bytes).sum()
    }

    /// The superblock of member `member_id` with this state and an empty log.
    pub(super) fn superblock(&self, member_id: u64) -> Superblock {
        let mut superblock = Superblock::new(self.database, self.mode, self.log_segment_bytes);
        superblock.stage = Stage::Ready;
        superblock.cluster_id = self.cluster_id;
        superblock.member_id = member_id;
        superblock.wal_replay_lsn = Lsn(0);
        (superblock.applied_index, superblock.applied_term) = self.applied;
        superblock.revision = self.revision;
        superblock.compact_revision = self.compact_revision;
        superblock.swept_revision = self.swept_revision;
        superblock.roots = self.roots;
        superblock.has_stations = self.has_stations;
        superblock.next_segment = self.next_segment;
        superblock.numbered_behind(self.sequence)
    }

    pub(super) fn positions(&self) -> Positions {
        Positions {
            applied: self.applied,
            revision: self.revision,
            compact_revision: self.compact_revision,
            swept_revision: self.swept_revision,
        }
    }

    /// The bytes of a manifest.
    ///
    /// # Errors
    /// [`Error::Refused`] if there are more segments than one may list.
    pub fn encode(&self) -> Result<Vec<u8>> {
        let mut body = Vec::with_capacity(1024 + self.files.len() * 88);
        body.extend_from_slice(&self.database);
        body.push(match self.mode {
            Mode::Embedded => 1,
            Mode::Replicated => 2,
        });
        for number in [self.cluster_id, self.member_id, self.sequence] {
            body.extend_from_slice(&number.to_le_bytes());
        }
        body.extend_from_slice(&self.log_segment_bytes.to_le_bytes());
        body.extend_from_slice(&self.applied.0.to_le_bytes());
        body.extend_from_slice(&self.applied.1.to_le_bytes());
        for revision in [self.revision, self.compact_revision, self.swept_revision] {
            body.extend_from_slice(&revision.to_le_bytes());
        }
        for root in self.roots.first_three() {
            body.extend_from_slice(&root.map_or([0; PAGE_REF_BYTES], |root| root.encode()));
        }
        body.extend_from_slice(&self.next_segment.to_le_bytes());
        let count = u32::try_from(self.files.len()).unwrap_or(u32::MAX);
        body.extend_from_slice(&count.to_le_bytes());
        for file in &self.files {
            body.extend_from_slice(&file.id.0.to_le_bytes());
            body.push(file.kind() as u8);
            body.extend_from_slice(&file.bytes.to_le_bytes());
            if let Some(summary) = &file.summary {
                summary.encode(&mut body);
            }
        }
        let version = match (self.has_stations, self.roots.pending) {
            (true, _) => FORMAT_VERSION,
            (false, Some(_)) => FORMAT_VERSION_WITHOUT_STATIONS,
            (false, None) => FORMAT_VERSION_WITHOUT_PENDING,
        };
        if version > FORMAT_VERSION_WITHOUT_PENDING {
            let root = self.roots.pending.map_or([0; PAGE_REF_BYTES], |root| root.encode());
            body.extend_from_slice(&root);
        }
        let bytes = envelope::seal(EnvelopeKind::TransferManifest, version, &body);
        match bytes.len() <= BYTES_MAX {
            true => Ok(bytes),
            false => Err(Error::Refused(format!(
                "the manifest of {} segments has {} bytes, at most {BYTES_MAX} are sent",
                self.files.len(),
                bytes.len()
            ))),
        }
    }

    /// Reads what [`Self::encode`] wrote, whoever sent it.
    ///
    /// # Errors
    /// [`Error::Refused`], which says what is wrong with it.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        Self::read(bytes).map_err(|what| Error::Refused(format!("the manifest of a state: {what}")))
    }

    /// The same; else what is wrong.
    pub(super) fn read(bytes: &[u8]) -> Result<Self, String> {
        if bytes.len() > BYTES_MAX {
            return Err(format!("at most {BYTES_MAX} bytes expected, {} found", bytes.len()));
        }
        let version = envelope::version_of(bytes)
            .unwrap_or(FORMAT_VERSION)
            .clamp(FORMAT_VERSION_WITHOUT_PENDING, FORMAT_VERSION);
        let body: Vec<u8> = envelope::open(EnvelopeKind::TransferManifest, version, bytes)
            .map_err(|error| error.to_string())?;
        let mut reader = Reader::new(&body);
        let mut manifest =
            Self::read_fields(&mut reader).unwrap_or_else(|Truncated| Err("it is cut short".into()))?;
        if version > FORMAT_VERSION_WITHOUT_PENDING {
            let root = reader.take(PAGE_REF_BYTES).map_err(|Truncated| "it is cut short".to_string())?;
            let is_none = version == FORMAT_VERSION && root.iter().all(|&byte| byte == 0);
            if !is_none {
                let root = PageRef::decode(root).map_err(|what| format!("a root: {what}"))?;
                manifest.roots.pending = Some(root);
            }
        }
        manifest.has_stations = version == FORMAT_VERSION;
        if !reader.is_empty() {
            return Err(format!("{} bytes behind its end", reader.rest().len()));
        }
        manifest.check()?;
        Ok(manifest)
    }

    fn read_fields(reader: &mut Reader<'_>) -> Result<Result<Self, String>, Truncated> {
        let mut database = [0; 16];
        database.copy_from_slice(reader.take(16)?);
        let mode = match reader.u8()? {
            1 => Mode::Embedded,
            2 => Mode::Replicated,
            other => return Ok(Err(format!("the mode of a database is 1 or 2, here is {other}"))),
        };
        let (cluster_id, member_id, sequence) = (reader.u64()?, reader.u64()?, reader.u64()?);
        let log_segment_bytes = reader.u32()?;
        let applied = (reader.u64()?, reader.u64()?);
        let (revision, compact_revision, swept_revision) = (reader.i64()?, reader.i64()?, reader.i64()?);
        let mut roots = Roots::default();
        for root in [&mut roots.keys, &mut roots.system, &mut roots.segments] {
            let bytes = reader.take(PAGE_REF_BYTES)?;
            if bytes.iter().any(|&byte| byte != 0) {
                match PageRef::decode(bytes) {
                    Ok(reference) => *root = Some(reference),
                    Err(what) => return Ok(Err(format!("a root: {what}"))),
                }
            }
        }
        let (next_segment, count) = (reader.u32()?, reader.u32()?);
        let mut files = Vec::new();
        for _ in 0..count {
            let (id, kind, bytes) = (SegmentId(reader.u32()?), reader.u8()?, reader.u64()?);
            let summary = match kind {
                1 => match SegmentSummary::decode(reader.take(SegmentSummary::BYTES)?) {
                    Ok(summary) => Some(summary),
                    Err(what) => return Ok(Err(what)),
                },
                2 => None,
                other => return Ok(Err(format!("the kind of a segment is 1 or 2, here is {other}"))),
            };
            files.push(SegmentEntry { id, bytes, summary });
        }
        Ok(Ok(Self {
            database,
            mode,
            cluster_id,
            member_id,
            sequence,
            log_segment_bytes,
            applied,
            revision,
            compact_revision,
            swept_revision,
            roots,
            has_stations: false,
            next_segment,
            files,
        }))
    }

    /// Whether a state can be so.
    pub(super) fn check(&self) -> Result<(), String> {
        let log_bytes = u64::from(self.log_segment_bytes);
        let log_fits = (SEGMENT_BYTES_MIN..=SEGMENT_BYTES_MAX).contains(&log_bytes);
        if !log_fits || !log_bytes.is_multiple_of(BLOCK_BYTES as u64) {
            return Err(format!(
                "a segment of the log has {SEGMENT_BYTES_MIN} to {SEGMENT_BYTES_MAX} bytes, here {log_bytes}"
            ));
        }
        if self.applied.0 == 0 || self.revision < 1 {
            return Err(format!(
                "a checkpoint holds an entry, here it is of index {} and revision {}",
                self.applied.0, self.revision
            ));
        }
        if self.swept_revision > self.compact_revision || self.compact_revision > self.revision {
            return Err(format!(
                "swept, compact and newest revision in order expected, {}, {} and {} found",
                self.swept_revision, self.compact_revision, self.revision
            ));
        }
        if self.sequence == u64::MAX {
            return Err("no superblock follows its own".into());
        }
        let mut ids = BTreeSet::new();
        for file in &self.files {
            let name = file.path().display().to_string();
            // Both kinds draw from one counter.
            if !ids.insert(file.id) {
                return Err(format!("it names segment {} twice", file.id));
            }
            if file.id.0 == 0 || file.id.0 >= self.next_segment {
                return Err(format!("{name} and a next segment {}", self.next_segment));
            }
            let is_whole = file.bytes.is_multiple_of(BLOCK_BYTES as u64)
                && (BLOCK_BYTES as u64..=SEGMENT_FILE_BYTES_MAX).contains(&file.bytes);
            let agrees = file.summary.is_none_or(|it| (it.id, it.file_bytes) == (file.id, file.bytes));
            if !is_whole || !agrees {
                return Err(format!("{name} of {} bytes", file.bytes));
            }
        }
        let pages: BTreeSet<SegmentId> =
            self.files.iter().filter(|file| file.summary.is_none()).map(|file| file.id).collect();
        let roots = self.roots.first_three();
        match roots.iter().chain([&self.roots.pending]).flatten().find(|root| !pages.contains(&root.segment))
        {
            Some(root) => Err(format!("a root in k segment {}, which it does not name", root.segment)),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::ids::Revision;
    use crate::tree::Aggregate;

    fn manifest() -> Manifest {
        let root = |block| PageRef {
            segment: SegmentId(2),
            block,
            blocks: 4,
            level: 1,
            crc: 77,
            aggregate: Aggregate { live_keys: 3, max_mod_revision: 9, hash_sum: 5 },
        };
        let summary = SegmentSummary {
            id: SegmentId(1),
            file_bytes: 64 << 10,
            records: 3,
            first: Revision::new(2, 0),
            last: Revision::new(9, 1),
            record_bytes: 500,
            stored_bytes: 400,
            trailer_crc: 6,
        };
        Manifest {
            database: [3; 16],
            mode: Mode::Replicated,
            cluster_id: 1,
            member_id: 2,
            sequence: 9,
            log_segment_bytes: 64 << 10,
            applied: (7, 3),
            revision: 10,
            compact_revision: 4,
            swept_revision: 3,
            roots: Roots { keys: Some(root(1)), segments: Some(root(5)), ..Roots::default() },
            has_stations: false,
            next_segment: 5,
            files: vec![
                SegmentEntry { id: SegmentId(1), bytes: 64 << 10, summary: Some(summary) },
                SegmentEntry { id: SegmentId(2), bytes: 36 << 10, summary: None },
            ],
        }
    }

    fn refused(change: impl FnOnce(&mut Manifest)) -> String {
        let mut manifest = manifest();
        change(&mut manifest);
        Manifest::decode(&manifest.encode().expect("it is short")).expect_err("it is no state").to_string()
    }

    /// A state without a pending tree is sent as the releases before know it.
    #[test]
    fn a_pending_tree_is_sent_in_a_version_of_its_own() {
        let mut manifest = manifest();
        let bytes = manifest.encode().expect("it is short");
        assert_eq!(envelope::version_of(&bytes), Some(1));
        manifest.roots.pending = manifest.roots.keys.map(|root| PageRef { block: 9, ..root });
        let bytes = manifest.encode().expect("it is short");
        assert_eq!(envelope::version_of(&bytes), Some(2));
        assert_eq!(Manifest::read(&bytes), Ok(manifest.clone()));
        let body: Vec<u8> = envelope::open(EnvelopeKind::TransferManifest, 2, &bytes).expect("it is whole");
        for cut in 0..body.len() {
            let sealed = envelope::seal(EnvelopeKind::TransferManifest, 2, &body[..cut].to_vec());
            assert!(Manifest::decode(&sealed).is_err(), "cut {cut}");
        }
        manifest.has_stations = true;
        for pending in [manifest.roots.pending, None] {
            let manifest = Manifest { roots: Roots { pending, ..manifest.roots }, ..manifest.clone() };
            let bytes = manifest.encode().expect("it is short");
            assert_eq!(envelope::version_of(&bytes), Some(3));
            assert_eq!(Manifest::read(&bytes), Ok(manifest));
        }
        manifest.has_stations = false;
        let later = envelope::seal(EnvelopeKind::TransferManifest, 4, &body);
        assert!(Manifest::decode(&later).expect_err("a later one").to_string().contains("version 4"));
        manifest.roots.pending = manifest.roots.keys.map(|root| PageRef { segment: SegmentId(1), ..root });
        let error = Manifest::decode(&manifest.encode().expect("it is short")).expect_err("no page file");
        assert!(error.to_string().contains("a root"), "{error}");
    }

    #[test]
    fn what_is_sent_is_read_and_damage_is_refused() {
        let bytes = manifest().encode().expect("it is short");
        assert_eq!(Manifest::read(&bytes), Ok(manifest()));
        for bit in 0..bytes.len() * 8 {
            let mut bad = bytes.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(Manifest::decode(&bad).is_err(), "bit {bit}");
        }
        for cut in 0..bytes.len() {
            assert!(Manifest::decode(&bytes[..cut]).is_err(), "cut {cut}");
        }
    }

    #[test]
    fn a_body_that_was_sealed_and_cut_short_or_goes_on_is_refused() {
        let bytes = manifest().encode().expect("it is short");
        let body: Vec<u8> = envelope::open(EnvelopeKind::TransferManifest, 1, &bytes).expect("it is whole");
        for cut in 0..body.len() {
            let sealed = envelope::seal(EnvelopeKind::TransferManifest, 1, &body[..cut].to_vec());
            assert!(Manifest::decode(&sealed).is_err(), "cut {cut}");
        }
        let longer = [&body[..], &[0]].concat();
        let error = Manifest::decode(&envelope::seal(EnvelopeKind::TransferManifest, 1, &longer));
        assert!(error.expect_err("a byte more").to_string().contains("1 bytes behind its end"));
    }

    #[test]
    fn what_cannot_be_a_state_is_refused() {
        assert!(refused(|it| it.files[1].id = SegmentId(1)).contains("twice"));
        assert!(refused(|it| it.next_segment = 2).contains("next segment"));
        assert!(refused(|it| it.files[1].bytes += 1).contains("bytes"));
        assert!(refused(|it| it.files[0].bytes += 4096).contains("bytes"));
        assert!(refused(|it| it.files[1].bytes = 0).contains("bytes"));
        assert!(refused(|it| it.files.truncate(1)).contains("a root"));
        assert!(refused(|it| it.applied.0 = 0).contains("index 0"));
        assert!(refused(|it| it.swept_revision = 5).contains("in order"));
        assert!(refused(|it| it.log_segment_bytes = 4096).contains("segment of the log"));
        assert!(refused(|it| it.sequence = u64::MAX).contains("superblock"));
    }

    #[test]
    fn a_long_list_is_refused_by_both_sides() {
        let mut manifest = manifest();
        manifest.files =
            (0..1_300_000).map(|id| SegmentEntry { id: SegmentId(id), bytes: 4096, summary: None }).collect();
        assert!(matches!(manifest.encode(), Err(Error::Refused(_))));
        assert!(Manifest::decode(&vec![0; BYTES_MAX + 1]).is_err());
    }
}
