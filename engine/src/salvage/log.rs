//! What a damaged log still holds: every group that verifies at its place, and from these the entries that follow one another.
//!
//! A group says itself where it belongs, so that it is found without the header of its segment and behind a damaged one; a
//! recovery, which must not take what a crash left for part of the log, follows the chain instead and stops. Here the index
//! of the entries decides: an entry is taken only if all before it were.
//!
//! **Contract.** [`SavedLog::read`] looks at all files and keeps the newest states; [`SavedLog::copy`] then writes them and the
//! entries into a new log, in their order.
//!
//! **Memory**: two segments, and one body.
//!
//! **Does not know** what an entry says.
use super::report::{Damage, LostEntries};
use super::source::Source;
use crate::base::checksum::crc32;
use crate::base::ids::{GroupId, Lsn};
use crate::disk_state::VerifyProgress;
use crate::error::Result;
use crate::io::disk::BLOCK_BYTES;
use crate::io::{Io, Wait};
use crate::wal::format::{
    BODY_BYTES_MAX, GROUP_EOS, GROUP_HEADER_BYTES, GroupHeader, RECORD_FIRST, RECORD_LAST, Records,
    SEGMENT_HEADER_BYTES, SegmentHeader,
};
use crate::wal::{DIRECTORY, RecordKind, RecordMeta, Reserve, Wal};
use std::collections::BTreeMap;
use std::path::Path;

/// Bytes that may be appended and not written.
const PENDING_BYTES_MAX: usize = 4 << 20;

/// One state of a replication group: its position, header and body.
type State = (Lsn, RecordMeta, Vec<u8>);

/// See the module.
#[derive(Default)]
pub(super) struct SavedLog {
    /// Database in the headers, if one verifies.
    pub(super) database: Option<[u8; 16]>,
    /// Bytes of a segment, likewise.
    pub(super) segment_bytes: Option<u32>,
    /// Files by number of the segment.
    files: BTreeMap<u64, String>,
    /// Groups that an interrupted recovery has put aside, by position.
    aside: BTreeMap<u64, Vec<u8>>,
    /// Newest mark and hard state of each replication group.
    marks: BTreeMap<GroupId, State>,
    hard_states: BTreeMap<GroupId, State>,
    /// Entries are operations of an embedded database.
    pub(super) is_embedded: bool,
    /// Lowest and highest index of an entry that was read.
    pub(super) indexes: Option<(u64, u64)>,
    /// Every byte of the log before this one was durable at some time: what is missing there is damage. What is missing behind it
    /// was in flight when the process ended.
    promised: Lsn,
    damages: Vec<Damage>,
}

/// A group, or bytes where one should be.
enum Piece<'a> {
    Group(&'a GroupHeader, &'a [u8]),
    /// Offset, bytes.
    Hole(u64, u64),
}

impl SavedLog {
    /// Looks at all files. `known` are database and segment size in the superblock, if there is one.
    pub(super) fn read(
        source: &mut Source<'_>,
        known: Option<([u8; 16], u32)>,
        progress: &mut dyn FnMut(VerifyProgress),
    ) -> Result<Self> {
        let mut log = Self {
            database: known.map(|known| known.0),
            segment_bytes: known.map(|known| known.1),
            ..Self::default()
        };
        let names = source.list(DIRECTORY)?;
        let mut headless = Vec::new();
        for name in &names {
            let is_segment = name.ends_with(".wal");
            if !is_segment && !name.ends_with(".free") {
                continue;
            }
            let block =
                source.read_at(&Path::new(DIRECTORY).join(name), 0, SEGMENT_HEADER_BYTES).unwrap_or_default();
            match SegmentHeader::decode(&block) {
                Ok(header) if log.database.is_none_or(|database| database == header.database) => {
                    log.database = Some(header.database);
                    log.segment_bytes.get_or_insert(header.segment_bytes);
                    log.promised = log.promised.max(header.durable_lsn);
                    log.files.insert(header.seq, name.clone());
                }
                // The header is the identity; where it is gone the name is what is left.
                _ if is_segment => headless.push(name.clone()),
                _ => {}
            }
        }
        for name in headless {
            if let Some(seq) = name.strip_suffix(".wal").and_then(|digits| digits.parse().ok())
                && !log.files.contains_key(&seq)
            {
                log.files.insert(seq, name);
            }
        }
        for name in names.iter().filter(|name| name.starts_with("tail-") && !name.ends_with(".part")) {
            log.read_aside(source, name);
        }
        let files = log.files.clone();
        for (number, (&seq, name)) in files.iter().enumerate() {
            let Some(bytes) = source.load(Path::new(DIRECTORY).join(name)) else { continue };
            let mut pieces = Vec::new();
            log.each_piece(seq, &bytes, &mut |piece| {
                if let Piece::Group(header, group) = piece {
                    pieces.push((*header, group.to_vec()));
                }
            });
            for (header, group) in pieces {
                log.promised = log.promised.max(header.durable_lsn);
                log.note_states(header.lsn, payload(&group, header.payload_len));
            }
            let (bytes_done, bytes_total) =
                ((number as u64 + 1) * bytes.len() as u64, files.len() as u64 * bytes.len() as u64);
            progress(VerifyProgress { part: "log", bytes_done, bytes_total });
        }
        Ok(log)
    }

    /// Groups of a copy that a recovery made and did not put back.
    fn read_aside(&mut self, source: &Source<'_>, name: &str) {
        let Some(bytes) = source.load(Path::new(DIRECTORY).join(name)) else { return };
        let mut rest = bytes.get(BLOCK_BYTES..).unwrap_or_default();
        while let Some((header, group)) = group_at(rest) {
            rest = &rest[group.len()..];
            self.aside.insert(header.lsn.0, group.to_vec());
        }
    }

    fn note_states(&mut self, lsn: Lsn, payload: &[u8]) {
        for view in Records::new(payload).map_while(Result::ok) {
            let states = match view.meta.kind {
                RecordKind::HardState => &mut self.hard_states,
                RecordKind::SnapshotMark => &mut self.marks,
                RecordKind::Batch | RecordKind::RaftEntry => {
                    self.is_embedded |= view.meta.kind == RecordKind::Batch;
                    let (first, last) = self.indexes.get_or_insert((view.meta.index, view.meta.index));
                    (*first, *last) = ((*first).min(view.meta.index), (*last).max(view.meta.index));
                    continue;
                }
                _ => continue,
            };
            let known = states.entry(view.meta.group).or_insert_with(|| (lsn, view.meta, view.body.to_vec()));
            if known.0 <= lsn {
                *known = (lsn, view.meta, view.body.to_vec());
            }
        }
    }

    /// Goes through a segment: its groups, and what is between them.
    fn each_piece(&self, seq: u64, bytes: &[u8], visit: &mut dyn FnMut(Piece<'_>)) {
        let segment_bytes = u64::from(self.segment_bytes.unwrap_or_default());
        let header = SegmentHeader::decode(bytes.get(..SEGMENT_HEADER_BYTES).unwrap_or_default()).ok();
        // The salt tells this life of the file from earlier ones, if the header can be read; else the position does.
        let mut salt = header.map(|header| header.salt_lo());
        let (mut offset, mut hole) = (SEGMENT_HEADER_BYTES as u64, None);
        while offset < segment_bytes {
            let lsn = seq * segment_bytes + offset;
            let rest = bytes.get(offset as usize..).unwrap_or_default();
            let here = group_at(rest).or_else(|| self.aside.get(&lsn).and_then(|group| group_at(group)));
            let here = here.filter(|(header, _)| {
                header.lsn == Lsn(lsn)
                    && header.seq == seq as u32
                    && salt.is_none_or(|salt| salt == header.salt_lo)
            });
            let Some((header, group)) = here else {
                hole.get_or_insert(offset);
                offset += BLOCK_BYTES as u64;
                continue;
            };
            salt = Some(header.salt_lo);
            if let Some(start) = hole.take() {
                visit(Piece::Hole(start, offset - start));
            }
            visit(Piece::Group(&header, group));
            if header.flags & GROUP_EOS != 0 {
                return;
            }
            offset += group.len() as u64;
        }
        if let Some(start) = hole {
            visit(Piece::Hole(start, segment_bytes - start));
        }
    }

    /// Writes states and entries into `wal`, which is empty. `applied` is the last index that the checkpoint holds, `replay_seq` the
    /// segment in which recovery would start. Returns how many entries are there, and those that are not.
    pub(super) fn copy(
        &mut self,
        source: &Source<'_>,
        (applied, replay_seq): (u64, Option<u64>),
        wal: &mut Wal,
        io: &mut dyn Io,
        progress: &mut dyn FnMut(VerifyProgress),
    ) -> Result<(u64, Option<LostEntries>)> {
        let mut target = Target {
            wal,
            io,
            next: BTreeMap::new(),
            entries: 0,
            lost: None,
            is_over: false,
            newest: 0,
            is_open: false,
        };
        for (_, meta, body) in self.marks.values().chain(self.hard_states.values()) {
            target.append(*meta, body)?;
        }
        for group in self.marks.keys().copied().chain([GroupId(0)]) {
            let mark = self.marks.get(&group).map_or(0, |(_, meta, _)| meta.index);
            target.next.insert(group, mark.max(applied) + 1);
        }
        let mut assembler = Assembler::default();
        let (segment_bytes, promised) = (u64::from(self.segment_bytes.unwrap_or_default()), self.promised);
        let needed = self.files.range(replay_seq.unwrap_or(0)..);
        let files: Vec<(u64, String)> = needed.map(|(seq, name)| (*seq, name.clone())).collect();
        let mut damages = Vec::new();
        let mut expected_seq = replay_seq.or_else(|| files.first().map(|(seq, _)| *seq));
        for (number, (seq, name)) in files.iter().enumerate() {
            let file = format!("{DIRECTORY}/{name}");
            if let Some(expected) = expected_seq.filter(|expected| expected < seq) {
                let what =
                    format!("segments {expected} to {} of the log expected before it, none found", seq - 1);
                damages.push(Damage { file: file.clone(), what, ..Damage::default() });
            }
            expected_seq = Some(seq + 1);
            let bytes = source.load(&file).unwrap_or_default();
            if let Err(fault) = SegmentHeader::decode(bytes.get(..SEGMENT_HEADER_BYTES).unwrap_or_default())
                && Lsn(seq * segment_bytes) < promised
            {
                let what = format!("the header of segment {seq} of the log expected: {fault:?}");
                damages.push(Damage {
                    file: file.clone(),
                    bytes: BLOCK_BYTES as u64,
                    what,
                    ..Damage::default()
                });
            }
            let mut outcome = Ok(());
            self.each_piece(*seq, &bytes, &mut |piece| match piece {
                _ if outcome.is_err() => {}
                Piece::Hole(offset, bytes) if Lsn(seq * segment_bytes + offset) < promised => {
                    let what = "groups of the log expected, bytes that verify as none found".into();
                    target.is_open = true;
                    damages.push(Damage { file: file.clone(), offset, bytes, what, ..Damage::default() });
                }
                Piece::Hole(..) => target.is_over = true,
                Piece::Group(header, group) => outcome = target.group(header, group, &mut assembler),
            });
            outcome?;
            progress(VerifyProgress {
                part: "entries",
                bytes_done: (number as u64 + 1) * segment_bytes,
                bytes_total: files.len() as u64 * segment_bytes,
            });
        }
        let (entries, lost) = (target.entries, target.lost());
        target.drain(0)?;
        self.damages = damages;
        Ok((entries, lost))
    }

    /// What [`Self::copy`] found damaged.
    pub(super) fn take_damages(&mut self) -> Vec<Damage> {
        std::mem::take(&mut self.damages)
    }
}

/// The group at the start of `bytes`, if one verifies.
fn group_at(bytes: &[u8]) -> Option<(GroupHeader, &[u8])> {
    let header = GroupHeader::decode(bytes.get(..GROUP_HEADER_BYTES)?).ok()?;
    let group = bytes.get(..header.group_len as usize)?;
    (crc32(&group[GROUP_HEADER_BYTES..]) == header.payload_crc).then_some((header, group))
}

fn payload(group: &[u8], payload_len: u32) -> &[u8] {
    group.get(GROUP_HEADER_BYTES..GROUP_HEADER_BYTES + payload_len as usize).unwrap_or_default()
}

/// Puts fragments together; a body that lacks one is dropped, and its index is missing then.
#[derive(Default)]
struct Assembler {
    open: Option<RecordMeta>,
    body: Vec<u8>,
}

impl Assembler {
    /// The body that ends here, if one does.
    fn take(&mut self, meta: RecordMeta, flags: u8, part: &[u8]) -> Option<&[u8]> {
        if flags & RECORD_FIRST != 0 {
            self.open = Some(meta);
            self.body.clear();
        } else if self.open != Some(meta) || self.body.len() + part.len() > BODY_BYTES_MAX {
            self.open = None;
            return None;
        }
        self.body.extend_from_slice(part);
        (flags & RECORD_LAST != 0 && self.open.take().is_some()).then_some(&self.body[..])
    }
}

struct Target<'a> {
    wal: &'a mut Wal,
    io: &'a mut dyn Io,
    /// Index of the next entry of each group.
    next: BTreeMap<GroupId, u64>,
    entries: u64,
    lost: Option<LostEntries>,
    /// What follows was never promised, and something before it is missing.
    is_over: bool,
    /// Newest index of group 0 that the header of a group names.
    newest: u64,
    /// The last thing read is damage: nothing says what was there.
    is_open: bool,
}

impl Target<'_> {
    fn group(&mut self, header: &GroupHeader, group: &[u8], assembler: &mut Assembler) -> Result<()> {
        if !self.is_over {
            self.newest = self.newest.max(header.last_index);
        }
        self.is_open = false;
        for view in Records::new(payload(group, header.payload_len)).map_while(Result::ok) {
            let meta = view.meta;
            if !meta.kind.is_entry() {
                continue;
            }
            let next = *self.next.entry(meta.group).or_insert(1);
            let Some(body) = assembler.take(meta, view.flags, view.body) else { continue };
            if meta.index < next {
                continue;
            }
            if meta.index > next && self.is_over && self.lost.is_none() {
                return Ok(());
            }
            if meta.index > next || self.lost.is_some() {
                let lost = self.lost.get_or_insert(LostEntries { first: next, behind: 0, last: next });
                lost.behind += 1;
                lost.last = lost.last.max(meta.index);
                continue;
            }
            append(self.wal, meta, body)?;
            self.next.insert(meta.group, next + 1);
            self.entries += 1;
        }
        if self.wal.pending_bytes() > PENDING_BYTES_MAX { self.drain(PENDING_BYTES_MAX) } else { Ok(()) }
    }

    fn append(&mut self, meta: RecordMeta, body: &[u8]) -> Result<()> {
        append(self.wal, meta, body)
    }

    /// Entries that were there and are not: those behind a missing one, and the last ones, which a later group names or nobody.
    fn lost(&self) -> Option<LostEntries> {
        let next = self.next.get(&GroupId(0)).copied().unwrap_or(1);
        let of_tail = LostEntries { first: next, behind: 0, last: self.newest.max(next) };
        self.lost.or_else(|| (self.newest >= next || self.is_open).then_some(of_tail))
    }

    /// Waits until no more than so many bytes are on their way.
    fn drain(&mut self, bytes: usize) -> Result<()> {
        let mut completions = Vec::new();
        while self.wal.pending_bytes() > bytes {
            if let Some(reason) = self.wal.poisoned() {
                return Err(crate::error::Error::LogPoisoned(reason.to_owned()));
            }
            self.wal.pump(self.io);
            self.io.wait(Wait::AtMostUs(100_000), &mut completions);
            for completion in completions.drain(..) {
                self.wal.on_completion(self.io, completion);
            }
        }
        Ok(())
    }
}

fn append(wal: &mut Wal, meta: RecordMeta, body: &[u8]) -> Result<()> {
    wal.append(meta, body, Reserve::Privileged).map(drop)
}
