//! Opening an existing log: find the files, read the log, judge its end, cut what a crash left, go on behind it.
//!
//! Phases, in order; up to the judgement nothing on disk changes, but for a copy put back in 2:
//! 1. every file is synced before it is read, then the directory: what recovery sees survives the next crash;
//! 2. headers are read: identity, format, segment size; the header is the identity of a file, its name a hint; a copy
//!    that phase 5 of an earlier recovery left is put back;
//! 3. the log is streamed from the segment of the replay position and its records delivered;
//! 4. what lies behind the end is searched for promises: damage is reported, a torn tail goes on to 5;
//! 5. the groups that no promise proves durable are written once more, by way of a copy (`tail_copy`);
//! 6. what could have been in flight is copied aside, then zeroed, with the headers of all later segments;
//! 7. files get the names they should have; whatever is not part of the log becomes a spare.
//!
//! A crash in 5 to 7 is harmless: the log up to its end stays as it is or is put back, so the next recovery finds the
//! same end. Records are delivered in 3, and what was delivered counts once the recovery has ended well.
use super::cut_file::{CutRange, write_copy};
use super::format::{
    GROUP_IDS_MAX, IN_FLIGHT_BYTES_MAX, SEGMENT_HEADER_BYTES, SegmentHeader, SegmentHeaderFault,
};
use super::group_commit::Current;
use super::pool::{FileName, LiveSegment, Pool, classify, path, segment_name, spare_name};
use super::recovery_scan::{
    READ_BYTES, ScanEnd, SegmentFile, Segments, display, look_ahead, open_file, refuse_future, scan, stopped,
};
use super::tail_copy;
use super::writer::Tail;
use super::{DIRECTORY, RecordMeta, Wal, WalOptions, planted};
use crate::base::ids::Lsn;
use crate::base::rng::Rng;
use crate::error::{Error, Result};
use crate::io::disk::{BLOCK_BYTES, run};
use crate::io::{
    Completion, Durability, FileId, Io, IoBuffer, IoError, IoErrorKind, Open, Operation, Outcome, Token, Wait,
};
use std::path::PathBuf;

/// Files looked at at once.
const FILES_IN_FLIGHT: usize = 16;

/// A record of the log, as recovery delivers it.
#[derive(Clone, Copy, Debug)]
pub struct Record<'a> {
    /// Its position: what `append` returned.
    pub lsn: Lsn,
    /// Its header.
    pub meta: RecordMeta,
    /// Its body, all fragments together.
    pub body: &'a [u8],
}

/// How far reading is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RecoveryProgress {
    /// Bytes of segments read.
    pub bytes_done: u64,
    /// Bytes of all segments from the replay position on; the log may end before.
    pub bytes_total: u64,
}

/// What was cut off at the end of the log.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CutReport {
    /// The segment, relative to the data directory.
    pub file: String,
    /// Where in the segment the log ends.
    pub offset: u64,
    /// Bytes copied and zeroed. They may be old contents of a file used again.
    pub bytes: u64,
    /// Groups among them that belong to this log: not acknowledged, or acknowledged within the last second and
    /// damaged since. 0 when only old contents were found.
    pub groups_count: u64,
    /// The copy, relative to the data directory; empty when the device had no room for it.
    pub copy: String,
}

/// What recovery found.
#[derive(Clone, Debug)]
pub struct RecoveryReport {
    /// Where the log ends and the next group goes.
    pub end_lsn: Lsn,
    /// Records delivered.
    pub records_count: u64,
    /// Bytes of groups read.
    pub bytes: u64,
    /// Segments that hold the log.
    pub segments_count: u64,
    /// What was cut off, if anything had to be.
    pub cut: Option<CutReport>,
    /// Bytes of groups that nothing proved durable. They were written and synced once more, unless `rewritten` is false.
    pub unproven_bytes: u64,
    /// False when the device had no room for the copy that a rewrite needs. Then groups whose sync failed in the
    /// process before this one may still be lost by a power cut before the next group is durable.
    pub rewritten: bool,
}

impl RecoveryReport {
    /// Of a log that was just made.
    pub(crate) fn of_a_new_log(end_lsn: Lsn) -> Self {
        Self {
            end_lsn,
            records_count: 0,
            bytes: 0,
            segments_count: 1,
            cut: None,
            unproven_bytes: 0,
            rewritten: true,
        }
    }
}

/// What [`inspect`] found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LogReport {
    /// Where the log ends and the next group would go.
    pub end_lsn: Lsn,
    /// Records from the replay position on.
    pub records_count: u64,
    /// Bytes of groups read.
    pub bytes: u64,
    /// Segments from the replay position on.
    pub segments_count: u64,
    /// Groups behind the end that a start would cut off: in flight at a crash, or being written now.
    pub groups_behind_count: u64,
}

/// Phases 1 to 4 alone, for tools: reads the log and judges its end. Writes nothing, through a device that could not.
/// While a copy of the newest groups waits to be put back, the end may lie before it.
pub fn inspect(
    io: &mut dyn Io,
    database: [u8; 16],
    segment_bytes: u64,
    replay_lsn: Lsn,
    visit: &mut dyn FnMut(&Record<'_>) -> Result<()>,
    progress: &mut dyn FnMut(RecoveryProgress),
) -> Result<LogReport> {
    let options = WalOptions { segment_bytes, ..WalOptions::default() };
    let inventory = take_inventory(io, &database, segment_bytes)?;
    let first = (replay_lsn.0 / segment_bytes).max(1);
    let last = inventory.segments.range(first..).next_back().map(|(&last, _)| last);
    let Some(last) = last.filter(|_| inventory.segments.contains_key(&first)) else {
        return Err(missing(display(&segment_name(first)), first));
    };
    let bytes_total = (last + 1 - first) * segment_bytes;
    let end = scan(io, &inventory.segments, first, &options, replay_lsn, bytes_total, visit, progress)?;
    let behind = look_ahead(io, &inventory.segments, &end, replay_lsn, segment_bytes)?;
    if let Some(promise) = behind.promise {
        return Err(Error::Corruption {
            file: display(&inventory.segments[&end.seq].name),
            offset: end.offset,
            what: format!("{}, but {promise}", end.fault),
        });
    }
    Ok(LogReport {
        end_lsn: Lsn(end.seq * segment_bytes + end.offset),
        records_count: end.records_count,
        bytes: end.bytes,
        segments_count: end.seq + 1 - first,
        groups_behind_count: behind.groups_count,
    })
}

/// Names of the files in the directory of the log.
pub(super) fn list(io: &mut dyn Io) -> Result<Vec<String>> {
    match run(io, Operation::List { path: PathBuf::from(DIRECTORY) })?.0 {
        Outcome::Names(names) => Ok(names),
        _ => unreachable!("a listing gives names"),
    }
}

/// Result and buffer of an operation.
type Finished = (Result<Outcome, IoError>, Option<IoBuffer>);

/// Runs operations, several at a time; results in their order.
fn run_all(io: &mut dyn Io, operations: Vec<Operation>) -> Result<Vec<Finished>> {
    let mut results: Vec<Option<Finished>> = Vec::new();
    results.resize_with(operations.len(), || None);
    let mut completions: Vec<Completion> = Vec::new();
    let (mut in_flight, mut waiting) = (0, operations.into_iter().enumerate().peekable());
    while in_flight > 0 || waiting.peek().is_some() {
        while in_flight < FILES_IN_FLIGHT
            && let Some((number, operation)) = waiting.next()
        {
            io.submit(Token(number as u64), operation);
            in_flight += 1;
        }
        if io.is_stopped() {
            return Err(stopped("look at the files of the log"));
        }
        io.wait(Wait::AtMostUs(1_000_000), &mut completions);
        for completion in completions.drain(..) {
            in_flight -= 1;
            let Token(number) = completion.token;
            results[number as usize] = Some((completion.result, completion.buffer));
        }
    }
    Ok(results.into_iter().flatten().collect())
}

/// What the directory of the log holds.
#[derive(Default)]
struct Inventory {
    segments: Segments,
    /// Whole files that are no segments of this log: without a valid header.
    blank: Vec<String>,
    /// Files of another length than a segment.
    stunted: Vec<String>,
    parts: Vec<String>,
    cuts: Vec<String>,
    /// Numbers of copies of newest groups, ascending.
    tails: Vec<u64>,
    spare_number: u64,
}

/// Phases 1 and 2.
fn take_inventory(io: &mut dyn Io, database: &[u8; 16], segment_bytes: u64) -> Result<Inventory> {
    let mut inventory = Inventory { spare_number: 1, ..Inventory::default() };
    let mut files = Vec::new();
    for name in list(io)? {
        match classify(&name) {
            FileName::Segment => files.push(name),
            FileName::Spare(number) => {
                inventory.spare_number = inventory.spare_number.max(number + 1);
                files.push(name);
            }
            FileName::Part(number) => {
                inventory.spare_number = inventory.spare_number.max(number + 1);
                inventory.parts.push(name);
            }
            FileName::Cut => inventory.cuts.push(name),
            FileName::Tail(number) => inventory.tails.push(number),
            FileName::TailPart => inventory.parts.push(name),
            FileName::Other => {}
        }
    }
    for names in files.chunks(FILES_IN_FLIGHT) {
        let opens =
            names.iter().map(|name| Operation::Open { path: path(name), open: Open::Existing }).collect();
        let mut ids = Vec::new();
        for (result, _) in run_all(io, opens)? {
            let Outcome::Opened(id) = result? else { unreachable!("opening a file gives a file") };
            ids.push(id);
        }
        for (result, _) in run_all(io, ids.iter().map(|&file| Operation::Sync { file }).collect())? {
            result?;
        }
        let lengths = run_all(io, ids.iter().map(|&file| Operation::Length { file }).collect())?;
        let mut reads = Vec::new();
        for &file in &ids {
            reads.push(Operation::Read { file, offset: 0, buffer: io.buffer(SEGMENT_HEADER_BYTES) });
        }
        let mut headers = run_all(io, reads)?;
        // A header that does not verify is read once more before anything follows from it.
        for (file, (result, buffer)) in ids.iter().zip(&mut headers) {
            if let (Ok(Outcome::Bytes(SEGMENT_HEADER_BYTES)), Some(block)) = (&result, buffer.take()) {
                *buffer = match SegmentHeader::decode(&block) {
                    Ok(_) => Some(block),
                    Err(_) => run(io, Operation::Read { file: *file, offset: 0, buffer: block })?.1,
                };
            }
        }
        for (result, _) in run_all(io, ids.iter().map(|&file| Operation::Close { file }).collect())? {
            result?;
        }
        for ((name, (length, _)), (read, buffer)) in names.iter().zip(lengths).zip(headers) {
            let Outcome::Length(length) = length? else { unreachable!("asked for a length") };
            let Outcome::Bytes(bytes) = read? else { unreachable!("asked for bytes") };
            let decoded =
                SegmentHeader::decode(buffer.as_deref().unwrap_or_default().get(..bytes).unwrap_or_default());
            if let Some(buffer) = buffer {
                io.recycle(buffer);
            }
            inventory.place(name, length, decoded, database, segment_bytes)?;
        }
    }
    run(io, Operation::SyncDirectory { path: PathBuf::from(DIRECTORY) })?;
    inventory.tails.sort_unstable();
    Ok(inventory)
}

impl Inventory {
    fn place(
        &mut self,
        name: &str,
        length: u64,
        decoded: Result<SegmentHeader, SegmentHeaderFault>,
        database: &[u8; 16],
        segment_bytes: u64,
    ) -> Result<()> {
        let header = match decoded {
            Ok(header) => header,
            Err(SegmentHeaderFault::Future(version)) => return Err(refuse_future(name, version)),
            Err(SegmentHeaderFault::Damaged(_)) if length == segment_bytes => {
                self.blank.push(name.to_string());
                return Ok(());
            }
            Err(SegmentHeaderFault::Damaged(_)) => {
                self.stunted.push(name.to_string());
                return Ok(());
            }
        };
        refuse_other_database(name, &header, database)?;
        if u64::from(header.segment_bytes) != segment_bytes {
            return Err(Error::Refused(format!(
                "{} is a segment of {} bytes, and the log was to be opened with segments of {segment_bytes}; the \
                 size is fixed when a log is created",
                display(name),
                header.segment_bytes
            )));
        }
        let file = SegmentFile { name: name.to_string(), header };
        if let Some(other) = self.segments.insert(header.seq, file) {
            return Err(Error::Corruption {
                file: display(name),
                offset: 0,
                what: format!("it says it is segment {}, and so does {}", header.seq, display(&other.name)),
            });
        }
        Ok(())
    }
}

fn refuse_other_database(name: &str, header: &SegmentHeader, database: &[u8; 16]) -> Result<()> {
    if header.database == *database {
        return Ok(());
    }
    let hex = |uuid: &[u8; 16]| uuid.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    Err(Error::Refused(format!(
        "{} belongs to database {}, and this directory is database {}",
        display(name),
        hex(&header.database),
        hex(database)
    )))
}

/// Refuses if the file `name` is a segment of another database.
pub(super) fn refuse_foreign(io: &mut dyn Io, name: &str, database: &[u8; 16]) -> Result<()> {
    if !matches!(classify(name), FileName::Segment | FileName::Spare(_)) {
        return Ok(());
    }
    let file = open_file(io, name)?;
    let buffer = io.buffer(SEGMENT_HEADER_BYTES);
    let read = run(io, Operation::Read { file, offset: 0, buffer });
    run(io, Operation::Close { file })?;
    let (outcome, Some(buffer)) = read? else { return Ok(()) };
    let whole = outcome == Outcome::Bytes(SEGMENT_HEADER_BYTES);
    let decoded = SegmentHeader::decode(&buffer);
    io.recycle(buffer);
    match decoded {
        Ok(header) if whole => refuse_other_database(name, &header, database),
        _ => Ok(()),
    }
}

pub(super) fn recover(
    io: &mut dyn Io,
    database: [u8; 16],
    options: WalOptions,
    rng_seed: u64,
    replay_lsn: Lsn,
    visit: &mut dyn FnMut(&Record<'_>) -> Result<()>,
    progress: &mut dyn FnMut(RecoveryProgress),
) -> Result<(Wal, RecoveryReport)> {
    let segment_bytes = options.segment_bytes;
    let mut inventory = match take_inventory(io, &database, segment_bytes) {
        Err(Error::Io(error)) if error.kind == IoErrorKind::NotFound => {
            return Err(missing(DIRECTORY.into(), 0));
        }
        result => result?,
    };
    let needed = (replay_lsn.0 / segment_bytes).max(1);
    let Some((&last, _)) = inventory.segments.range(needed..).next_back() else {
        return Err(missing(display(&segment_name(needed)), needed));
    };
    if !inventory.segments.contains_key(&needed) {
        return Err(missing(display(&segment_name(needed)), needed));
    }
    let mut first = first_retained(&inventory.segments, needed, replay_lsn, &options);
    let place = tail_copy::Place { database: &database, segments: &inventory.segments, segment_bytes };
    tail_copy::restore(io, &place, &inventory.tails)?;
    let bytes_total = (last + 1 - first) * segment_bytes;
    let from = if first < needed { Lsn(first * segment_bytes) } else { replay_lsn };
    let mut end = scan(io, &inventory.segments, first, &options, from, bytes_total, visit, progress)?;
    if end.seq < needed {
        // What is only kept for others does not verify: it is let go, and the log begins where it is needed.
        first = needed;
        end = scan(io, &inventory.segments, first, &options, replay_lsn, bytes_total, visit, progress)?;
    }
    if end.states.len() > GROUP_IDS_MAX {
        return Err(Error::Refused(format!("the log holds more than {GROUP_IDS_MAX} replication groups")));
    }
    let behind = look_ahead(io, &inventory.segments, &end, replay_lsn, segment_bytes)?;
    let name = inventory.segments[&end.seq].name.clone();
    if let Some(promise) = behind.promise {
        return Err(Error::Corruption {
            file: display(&name),
            offset: end.offset,
            what: format!("{}, but {promise}", end.fault),
        });
    }
    progress(RecoveryProgress { bytes_done: bytes_total, bytes_total });

    for part in inventory.parts.iter().chain(&inventory.stunted) {
        run(io, Operation::Unlink { path: path(part) })?;
    }
    let unproven: Vec<_> = end.unpromised.iter().copied().collect();
    let unproven_bytes = unproven.iter().map(|group| u64::from(group.bytes)).sum();
    let mut rewritten = true;
    if !unproven.is_empty() && !planted!(options, TrustUnprovenTail) {
        let number = inventory.tails.last().map_or(1, |last| last + 1);
        let with_copy = !planted!(options, RewriteWithoutCopy);
        let place = tail_copy::Place { database: &database, segments: &inventory.segments, segment_bytes };
        rewritten = tail_copy::rewrite(io, &place, &unproven, number, with_copy)?;
        if rewritten {
            inventory.tails.push(number);
        }
    }
    tail_copy::remove(io, &inventory.tails)?;

    let file = open_file(io, &name)?;
    let mut ranges = Vec::new();
    let window = (segment_bytes - end.offset).min(IN_FLIGHT_BYTES_MAX);
    ranges.extend(read_range(io, file, end.seq, end.offset, window)?);
    if let Some(next) = inventory.segments.get(&(end.seq + 1))
        && behind.next_segment_end > 0
    {
        let id = open_file(io, &next.name)?;
        let bytes = behind.next_segment_end.min(SEGMENT_HEADER_BYTES as u64 + IN_FLIGHT_BYTES_MAX);
        let range = read_range(io, id, end.seq + 1, 0, bytes);
        run(io, Operation::Close { file: id })?;
        ranges.extend(range?);
    }
    let end_lsn = Lsn(end.seq * segment_bytes + end.offset);
    let mut cut = None;
    if !ranges.is_empty() {
        let copy = write_copy(io, &database, end_lsn.0, &ranges, &inventory.cuts)?;
        cut = Some(CutReport {
            file: display(&name),
            offset: end.offset,
            bytes: ranges.iter().map(CutRange::bytes).sum(),
            groups_count: behind.groups_count,
            copy,
        });
    }
    for range in ranges {
        let zero = range.seq == end.seq;
        let mut offset = range.offset;
        for mut piece in range.pieces {
            let bytes = piece.len() as u64;
            if zero {
                piece.fill(0);
                write_zeros(io, file, offset, piece)?;
            } else {
                io.recycle(piece);
            }
            offset += bytes;
        }
    }
    if cut.is_some() {
        run(io, Operation::Sync { file })?;
    }
    // Without its header nothing in a later segment can ever be taken for part of this log. Headers that do not verify
    // are zeroed too: that they read as nothing does not prove that the disk holds nothing.
    let later = inventory.segments.split_off(&(end.seq + 1)).into_values().map(|segment| segment.name);
    inventory.blank.extend(later);
    for name in &inventory.blank {
        let id = open_file(io, name)?;
        let zeros = io.buffer(SEGMENT_HEADER_BYTES);
        write_zeros(io, id, 0, zeros)?;
        run(io, Operation::Sync { file: id })?;
        run(io, Operation::Close { file: id })?;
    }
    let salts = inventory.segments.values().fold(Rng::new(rng_seed).next_u64(), |mixed, segment| {
        Rng::new(mixed ^ segment.header.salt).next_u64()
    });
    let salt_lo = inventory.segments[&end.seq].header.salt_lo();
    let mut pool = Pool::new(segment_bytes, database, options.spares_min, Rng::new(salts));
    settle_names(io, &mut inventory, first, &mut pool)?;

    let mut tail = Tail::new(options.sizes(), end.seq, end.offset);
    let ScanEnd { chain, promised, records_end, index, mut states, records_count, bytes, .. } = end;
    for state in &mut states {
        state.durable_index = state.last_index;
    }
    (tail.states, tail.index) = (states, index);
    let segments_count = pool.live.len() as u64;
    let current = Current { seq: end.seq, file, salt_lo };
    let kept = if first < needed { Lsn(first * segment_bytes) } else { replay_lsn };
    let mut wal = Wal::assemble(io, options, tail, pool, current, chain, kept);
    (wal.commit.promised, wal.commit.records_end) = (promised, records_end);
    let report =
        RecoveryReport { end_lsn, records_count, bytes, segments_count, cut, unproven_bytes, rewritten };
    Ok((wal, report))
}

/// The oldest segment that is kept beyond what is needed: its number follows down from `needed` without a gap. A file is used again only
/// after its header was written over, so one with its old header has its old content.
fn first_retained(segments: &Segments, needed: u64, replay_lsn: Lsn, options: &WalOptions) -> u64 {
    let lowest = (replay_lsn.0.saturating_sub(options.retain_bytes) / options.segment_bytes).max(1);
    (lowest..needed).rev().take_while(|seq| segments.contains_key(seq)).last().unwrap_or(needed)
}

fn missing(file: String, seq: u64) -> Error {
    let what = format!(
        "the log starts with segment {}, and it is missing or its header does not verify",
        seq.max(1)
    );
    Error::Corruption { file, offset: 0, what }
}

/// Reads a range up to its last block that is not zero; nothing if all of it is.
fn read_range(io: &mut dyn Io, file: FileId, seq: u64, offset: u64, bytes: u64) -> Result<Option<CutRange>> {
    let mut pieces = Vec::new();
    let mut done = 0;
    // Pieces up to the last that is not all zeros.
    let mut needed = 0;
    while done < bytes {
        let length = (bytes - done).min(READ_BYTES as u64) as usize;
        let buffer = io.buffer(length);
        let (outcome, Some(mut buffer)) = run(io, Operation::Read { file, offset: offset + done, buffer })?
        else {
            break;
        };
        if let Outcome::Bytes(read) = outcome {
            buffer[read..].fill(0);
        }
        let blocks = buffer.chunks(BLOCK_BYTES).rposition(|block| block.iter().any(|&byte| byte != 0));
        pieces.push(buffer);
        if let Some(last) = blocks {
            needed = pieces.len();
            if let Some(piece) = pieces.last_mut() {
                piece.set_len((last + 1) * BLOCK_BYTES);
            }
        }
        done += length as u64;
    }
    for piece in pieces.drain(needed..) {
        io.recycle(piece);
    }
    // Only the last piece may end early: the ranges of the pieces follow one another.
    let count = pieces.len();
    for piece in pieces.iter_mut().take(count.saturating_sub(1)) {
        piece.set_len(READ_BYTES);
    }
    Ok((!pieces.is_empty()).then_some(CutRange { seq, offset, pieces }))
}

fn write_zeros(io: &mut dyn Io, file: FileId, offset: u64, buffer: IoBuffer) -> Result<()> {
    let write = Operation::Write { file, offset, buffer, durability: Durability::None };
    if let Some(buffer) = run(io, write)?.1 {
        io.recycle(buffer);
    }
    Ok(())
}

/// Phase 7: live segments under their numbers, everything else a spare.
fn settle_names(io: &mut dyn Io, inventory: &mut Inventory, first: u64, pool: &mut Pool) -> Result<()> {
    let live = inventory.segments.split_off(&first);
    let obsolete = std::mem::take(&mut inventory.segments).into_values().map(|segment| segment.name);
    let mut spares = Vec::new();
    let mut renamed = false;
    for name in obsolete.chain(std::mem::take(&mut inventory.blank)) {
        if matches!(classify(&name), FileName::Spare(_)) {
            spares.push(name);
            continue;
        }
        // Its old name may be wanted for a segment to come.
        let spare = spare_name(inventory.spare_number);
        inventory.spare_number += 1;
        run(io, Operation::Rename { from: path(&name), to: path(&spare) })?;
        renamed = true;
        spares.push(spare);
    }
    // Somebody renamed segments by hand. Two steps, because one may have the name of another; a power cut between
    // them is harmless, since names are hints.
    let mut moved = Vec::new();
    for (seq, segment) in live {
        let name = segment_name(seq);
        if segment.name != name {
            let aside = spare_name(inventory.spare_number);
            inventory.spare_number += 1;
            run(io, Operation::Rename { from: path(&segment.name), to: path(&aside) })?;
            moved.push((aside, name.clone()));
        }
        pool.live.push_back(LiveSegment { seq, name });
    }
    for (aside, name) in moved {
        run(io, Operation::Rename { from: path(&aside), to: path(&name) })?;
        renamed = true;
    }
    if renamed {
        run(io, Operation::SyncDirectory { path: PathBuf::from(DIRECTORY) })?;
    }
    for name in spares.split_off(spares.len().min(pool.spares_max())) {
        pool.remove_later(name);
    }
    pool.adopt(spares, inventory.spare_number);
    Ok(())
}
