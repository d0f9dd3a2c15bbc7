//! Files of the log beside the one being written: spares filled with zeros ahead of time, the next segment with its
//! header already durable, and obsolete segments on their way back into use.
//!
//! **Contract.** Nothing here ever delays a commit: every step is one operation in the background, driven by
//! completions. `next` is ready when its header, its name and the directory are durable (E2); only then may the
//! end-of-segment group of the segment before be submitted.
//!
//! **Names.** `00000012.wal` a segment; `spare-00000003.free` a spare; `spare-00000003.part` a spare whose filling
//! did not end. The header of a file is its identity, the name a hint: an obsolete segment waits under its old name
//! until it is renamed to its new one.
//!
//! **Invariants.** W5: the log is written only into extents that were written before: a file becomes a spare only
//! after a sync that followed its last zero. W6: a segment is put back to use only when every byte that the
//! replay position needs lies in later segments, whose first group is durable.
//!
//! **Failure.** A full device is no failure of the log: the half-made file is removed, appends are refused when
//! the spares run out, and filling is tried again after a pause. Any other failed operation poisons the log.
use super::format::{SEGMENT_HEADER_BYTES, SegmentHeader};
use super::{DIRECTORY, TokenKind, token};
use crate::base::ids::Lsn;
use crate::base::rng::Rng;
use crate::io::{Durability, FileId, Io, IoBuffer, IoError, IoErrorKind, Open, Operation, Outcome};
use std::collections::VecDeque;
use std::path::{Path, PathBuf};

/// Zeros are written in pieces of this size.
pub(super) const FILL_BYTES: usize = 1 << 20;
/// Pieces under way at once while there is no spare at all; otherwise one.
const FILL_IN_FLIGHT_URGENT: usize = 4;
/// First pause after the device was full; doubled up to the last.
const FULL_PAUSE_US_FIRST: u64 = 1_000_000;
const FULL_PAUSE_US_LAST: u64 = 30_000_000;
/// Spares that are kept where room is needed for other things.
const SPARING_SPARES: usize = 1;

/// Name of segment `seq`.
pub(super) fn segment_name(seq: u64) -> String {
    format!("{seq:08}.wal")
}

/// Name of spare number `number`.
pub(super) fn spare_name(number: u64) -> String {
    format!("spare-{number:08}.free")
}

fn part_name(number: u64) -> String {
    format!("spare-{number:08}.part")
}

/// What a name in the directory of the log says about a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum FileName {
    /// A segment (the name's number is a hint).
    Segment,
    /// A spare with this number.
    Spare(u64),
    /// A spare that was not finished.
    Part(u64),
    /// A copy of what recovery cut off.
    Cut,
    /// A copy of the newest groups, with its number.
    Tail(u64),
    /// Such a copy that was not finished.
    TailPart,
    /// Not ours.
    Other,
}

/// Classifies a name.
pub(super) fn classify(name: &str) -> FileName {
    let number = |text: &str| text.parse().ok().filter(|_| text.bytes().all(|byte| byte.is_ascii_digit()));
    if let Some(stem) = name.strip_suffix(".wal") {
        return if number(stem).is_some() { FileName::Segment } else { FileName::Other };
    }
    if let Some(stem) = name.strip_prefix("spare-").and_then(|stem| stem.strip_suffix(".free")) {
        return number(stem).map_or(FileName::Other, FileName::Spare);
    }
    if let Some(stem) = name.strip_prefix("spare-").and_then(|stem| stem.strip_suffix(".part")) {
        return number(stem).map_or(FileName::Other, FileName::Part);
    }
    if name == super::tail_copy::PART {
        return FileName::TailPart;
    }
    if let Some(stem) = name.strip_prefix("tail-") {
        return number(stem).map_or(FileName::Other, FileName::Tail);
    }
    if name.starts_with("cut-") { FileName::Cut } else { FileName::Other }
}

/// Path of a file of the log.
pub(super) fn path(name: &str) -> PathBuf {
    Path::new(DIRECTORY).join(name)
}

/// A segment that holds part of the log.
#[derive(Clone, Debug)]
pub(super) struct LiveSegment {
    pub(super) seq: u64,
    pub(super) name: String,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum NextStage {
    Opening,
    WritingHeader,
    Renaming,
    SyncingDirectory,
    Ready,
}

/// The segment after the current one.
#[derive(Debug)]
pub(super) struct Next {
    pub(super) seq: u64,
    pub(super) salt: u64,
    pub(super) file: FileId,
    from: String,
    stage: NextStage,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum FillStage {
    Opening,
    Writing,
    Syncing,
    Closing,
    Renaming,
    Removing,
}

/// A spare being made.
#[derive(Debug)]
struct Fill {
    number: u64,
    file: FileId,
    stage: FillStage,
    submitted_bytes: u64,
    in_flight: usize,
    full: bool,
}

/// See the module documentation.
pub(super) struct Pool {
    segment_bytes: u64,
    database: [u8; 16],
    spares_min: usize,
    salts: Rng,
    spares: Vec<String>,
    next: Option<Next>,
    fill: Option<Fill>,
    /// Segments that hold the log, oldest first, the current one last.
    pub(super) live: VecDeque<LiveSegment>,
    /// Segments and spares to be removed, one at a time.
    remove: Vec<String>,
    removing: bool,
    /// Number of the next spare.
    spare_number: u64,
    zeros: Vec<IoBuffer>,
    /// Why no spare could be made at the last try.
    full: Option<String>,
    full_pause_us: u64,
    full_until_us: u64,
    stopping: bool,
    /// No more spares are kept than one beside the next segment.
    sparing: bool,
    pub(super) filled_count: u64,
    pub(super) recycled_count: u64,
    pub(super) removed_count: u64,
}

impl Pool {
    pub(super) fn new(segment_bytes: u64, database: [u8; 16], spares_min: usize, salts: Rng) -> Self {
        Self {
            segment_bytes,
            database,
            spares_min,
            salts,
            spares: Vec::new(),
            next: None,
            fill: None,
            live: VecDeque::new(),
            remove: Vec::new(),
            removing: false,
            spare_number: 1,
            zeros: Vec::new(),
            full: None,
            full_pause_us: FULL_PAUSE_US_FIRST,
            full_until_us: 0,
            stopping: false,
            sparing: false,
            filled_count: 0,
            recycled_count: 0,
            removed_count: 0,
        }
    }

    /// Spares worth keeping: the next segment, and half of the steady number more than the least, as TiKV's raft-engine does, so that a
    /// burst finds some.
    pub(super) fn spares_max(&self) -> usize {
        if self.sparing { SPARING_SPARES } else { self.spares_min + 1 + self.live.len() / 2 }
    }

    /// How many are made.
    fn spares_wanted(&self) -> usize {
        match self.sparing {
            true => usize::from(self.next.is_none()).min(self.spares_min),
            false => self.spares_min,
        }
    }

    /// See [`super::Wal::set_sparing`].
    pub(super) fn set_sparing(&mut self, sparing: bool) {
        if std::mem::replace(&mut self.sparing, sparing) == sparing {
            return;
        }
        if sparing {
            let surplus = self.spares.len().saturating_sub(SPARING_SPARES);
            self.remove.extend(self.spares.drain(..surplus));
        }
        // There is room again, or need of it.
        self.full_until_us = 0;
    }

    /// Takes over what recovery found.
    pub(super) fn adopt(&mut self, spares: Vec<String>, spare_number: u64) {
        self.spares = spares;
        self.spare_number = spare_number;
    }

    /// Segments that can follow the current one without another being made.
    pub(super) fn available(&self) -> u64 {
        self.spares.len() as u64 + u64::from(self.next.is_some())
    }

    /// Why no spare can be made, while none can.
    pub(super) fn full(&self) -> Option<&str> {
        self.full.as_deref()
    }

    /// When filling is to be tried again.
    pub(super) fn deadline_us(&self) -> Option<u64> {
        // While a spare is being made its completions drive it, and where none is wanted nothing will be tried: a time that has passed would only
        // keep the driver awake.
        let is_wanted = self.fill.is_none() && self.spares.len() < self.spares_wanted();
        (self.full.is_some() && is_wanted && !self.stopping).then_some(self.full_until_us)
    }

    /// True when no operation is under way.
    pub(super) fn is_quiet(&self) -> bool {
        let next_waits = self.next.as_ref().is_some_and(|next| next.stage != NextStage::Ready);
        !next_waits && self.fill.is_none() && !self.removing
    }

    /// Starts nothing new any more.
    pub(super) fn stop(&mut self) {
        self.stopping = true;
    }

    /// The prepared segment `seq`, if it is ready.
    pub(super) fn next_ready(&self, seq: u64) -> Option<&Next> {
        self.next.as_ref().filter(|next| next.stage == NextStage::Ready && next.seq == seq)
    }

    /// Makes the prepared segment the current one.
    pub(super) fn take_next(&mut self) -> Next {
        let next = self.next.take().expect("W7: the next segment is ready");
        assert_eq!(next.stage, NextStage::Ready, "W7: the next segment is ready");
        self.live.push_back(LiveSegment { seq: next.seq, name: segment_name(next.seq) });
        next
    }

    /// The prepared segment when the log is closed.
    pub(super) fn abandon_next(&mut self) -> Option<FileId> {
        // One that is still being opened has no file yet: it is given up when the log fails.
        self.next.take().filter(|next| next.stage != NextStage::Opening).map(|next| next.file)
    }

    /// Segments below `seq` are obsolete: back into the pool, or away if there are enough.
    pub(super) fn recycle_below(&mut self, seq: u64) {
        while self.live.len() > 1 && self.live.front().is_some_and(|segment| segment.seq < seq) {
            let Some(segment) = self.live.pop_front() else { break };
            if self.spares.len() < self.spares_max() {
                self.recycled_count += 1;
                self.spares.push(segment.name);
                self.full = None;
            } else {
                self.remove.push(segment.name);
            }
        }
    }

    /// Spares beyond the least are removed, counting one that is being made.
    pub(super) fn trim(&mut self) {
        let coming = usize::from(self.fill.is_some());
        let surplus = (self.spares.len() + coming).saturating_sub(self.spares_min).min(self.spares.len());
        self.remove.extend(self.spares.drain(..surplus));
    }

    /// Starts what can be started. `next_seq` is the segment to prepare, if it is time to.
    pub(super) fn pump(&mut self, io: &mut dyn Io, now_us: u64, next_seq: Option<u64>) {
        if self.stopping {
            return;
        }
        if let (None, Some(seq)) = (&self.next, next_seq)
            && let Some(from) = self.spares.pop()
        {
            self.next = Some(Next {
                seq,
                salt: self.salts.next_u64(),
                file: FileId(0),
                from: from.clone(),
                stage: NextStage::Opening,
            });
            let operation = Operation::Open { path: path(&from), open: Open::Existing };
            io.submit(token(TokenKind::Next, 0), operation);
        }
        if self.fill.is_none()
            && self.spares.len() < self.spares_wanted()
            && (self.full.is_none() || now_us >= self.full_until_us)
        {
            let number = self.spare_number;
            self.spare_number += 1;
            self.fill = Some(Fill {
                number,
                file: FileId(0),
                stage: FillStage::Opening,
                submitted_bytes: 0,
                in_flight: 0,
                full: false,
            });
            let operation = Operation::Open { path: path(&part_name(number)), open: Open::CreateNew };
            io.submit(token(TokenKind::Fill, 0), operation);
        }
        if !self.removing
            && let Some(name) = self.remove.pop()
        {
            self.removing = true;
            io.submit(token(TokenKind::Remove, 0), Operation::Retire { path: path(&name) });
        }
        self.fill_more(io);
    }

    fn fill_more(&mut self, io: &mut dyn Io) {
        let urgent = self.spares.is_empty();
        let Some(fill) = &mut self.fill else { return };
        if fill.stage != FillStage::Writing {
            return;
        }
        let limit = if urgent { FILL_IN_FLIGHT_URGENT } else { 1 };
        let stop = self.stopping || fill.full;
        while !stop && fill.in_flight < limit && fill.submitted_bytes < self.segment_bytes {
            let bytes = (self.segment_bytes - fill.submitted_bytes).min(FILL_BYTES as u64) as usize;
            let buffer = match self.zeros.pop() {
                Some(mut zeros) if zeros.capacity() >= bytes => {
                    zeros.set_len(bytes);
                    zeros
                }
                _ => io.buffer(bytes),
            };
            let operation = Operation::Write {
                file: fill.file,
                offset: fill.submitted_bytes,
                buffer,
                durability: Durability::None,
            };
            io.submit(token(TokenKind::Fill, 0), operation);
            fill.submitted_bytes += bytes as u64;
            fill.in_flight += 1;
        }
        if fill.in_flight == 0 {
            if stop {
                fill.stage = FillStage::Closing;
                fill.full = true;
                io.submit(token(TokenKind::Fill, 0), Operation::Close { file: fill.file });
            } else if fill.submitted_bytes == self.segment_bytes {
                fill.stage = FillStage::Syncing;
                io.submit(token(TokenKind::Fill, 0), Operation::Sync { file: fill.file });
            }
        }
    }

    fn note_full(&mut self, error: &IoError, now_us: u64) {
        self.full_pause_us = match self.full {
            None => FULL_PAUSE_US_FIRST,
            Some(_) => (self.full_pause_us * 2).min(FULL_PAUSE_US_LAST),
        };
        self.full = Some(error.to_string());
        self.full_until_us = now_us + self.full_pause_us;
    }

    /// One step of making a spare. An error poisons the log.
    pub(super) fn on_fill(
        &mut self,
        io: &mut dyn Io,
        now_us: u64,
        result: Result<Outcome, IoError>,
        buffer: Option<IoBuffer>,
    ) -> Result<(), IoError> {
        if let Some(buffer) = buffer {
            if self.zeros.is_empty() {
                self.zeros.push(buffer);
            } else {
                io.recycle(buffer);
            }
        }
        let Some(stage) = self.fill.as_ref().map(|fill| fill.stage) else { return Ok(()) };
        if let Err(error) = &result {
            if error.kind != IoErrorKind::NoSpace {
                return Err(error.clone());
            }
            self.note_full(error, now_us);
        }
        let Some(fill) = &mut self.fill else { return Ok(()) };
        match (stage, result) {
            (FillStage::Opening, Ok(Outcome::Opened(file))) => {
                fill.file = file;
                fill.stage = FillStage::Writing;
                self.fill_more(io);
            }
            // A full device has no room for the name either, or for the sync of the file's metadata.
            (FillStage::Opening, Err(_)) => self.fill = None,
            (FillStage::Writing, result) => {
                fill.in_flight -= 1;
                fill.full |= result.is_err();
                self.fill_more(io);
            }
            (FillStage::Syncing, result) => {
                fill.full |= result.is_err();
                fill.stage = FillStage::Closing;
                io.submit(token(TokenKind::Fill, 0), Operation::Close { file: fill.file });
            }
            (FillStage::Closing, _) => {
                let from = path(&part_name(fill.number));
                let operation = if fill.full {
                    fill.stage = FillStage::Removing;
                    Operation::Unlink { path: from }
                } else {
                    fill.stage = FillStage::Renaming;
                    Operation::Rename { from, to: path(&spare_name(fill.number)) }
                };
                io.submit(token(TokenKind::Fill, 0), operation);
            }
            (FillStage::Renaming, Ok(_)) => {
                self.spares.push(spare_name(fill.number));
                self.fill = None;
                self.full = None;
                self.filled_count += 1;
            }
            (FillStage::Renaming, Err(_)) => {
                fill.stage = FillStage::Removing;
                let operation = Operation::Unlink { path: path(&part_name(fill.number)) };
                io.submit(token(TokenKind::Fill, 0), operation);
            }
            (FillStage::Removing, _) => self.fill = None,
            (FillStage::Opening, Ok(_)) => unreachable!("opening a file gives a file"),
        }
        Ok(())
    }

    /// One step of preparing the next segment, whose header promises `durable`. An error poisons the log.
    pub(super) fn on_next(
        &mut self,
        io: &mut dyn Io,
        durable: Lsn,
        result: Result<Outcome, IoError>,
        buffer: Option<IoBuffer>,
    ) -> Result<(), IoError> {
        if let Some(buffer) = buffer {
            io.recycle(buffer);
        }
        let outcome = result?;
        let Some(next) = &mut self.next else { return Ok(()) };
        let operation = match (next.stage, outcome) {
            (NextStage::Opening, Outcome::Opened(file)) => {
                next.file = file;
                next.stage = NextStage::WritingHeader;
                let mut buffer = io.buffer(SEGMENT_HEADER_BYTES);
                let header = SegmentHeader {
                    segment_bytes: self.segment_bytes as u32,
                    database: self.database,
                    seq: next.seq,
                    salt: next.salt,
                    durable_lsn: durable,
                };
                header.encode(&mut buffer);
                Operation::Write { file, offset: 0, buffer, durability: Durability::Synced }
            }
            (NextStage::WritingHeader, _) => {
                next.stage = NextStage::Renaming;
                Operation::Rename { from: path(&next.from), to: path(&segment_name(next.seq)) }
            }
            (NextStage::Renaming, _) => {
                next.stage = NextStage::SyncingDirectory;
                Operation::SyncDirectory { path: PathBuf::from(DIRECTORY) }
            }
            (NextStage::SyncingDirectory, _) => {
                next.stage = NextStage::Ready;
                return Ok(());
            }
            (NextStage::Opening | NextStage::Ready, _) => unreachable!("an outcome that was not asked for"),
        };
        io.submit(token(TokenKind::Next, 0), operation);
        Ok(())
    }

    /// A removal ended.
    pub(super) fn on_remove(&mut self, result: Result<Outcome, IoError>) -> Result<(), IoError> {
        self.removing = false;
        self.removed_count += 1;
        match result {
            Err(error) if error.kind != IoErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// For counts and tests.
    pub(super) fn spares_count(&self) -> usize {
        self.spares.len() + usize::from(self.next.is_some())
    }

    /// Adds a file that is not part of the log to the removals.
    pub(super) fn remove_later(&mut self, name: String) {
        self.remove.push(name);
    }

    /// A salt for a header written outside the pool.
    pub(super) fn draw_salt(&mut self) -> u64 {
        self.salts.next_u64()
    }
}
