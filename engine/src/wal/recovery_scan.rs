//! Reading the log from the start position to its end, and judging that end: torn tail or damage.
//!
//! The reader streams consecutive segments with several large reads in flight and hands out slices of what
//! arrived; only a group that straddles two reads is copied. Nothing here writes.
//!
//! **The end of the log** is the first position x where no valid group continues the chain. It is the end a crash
//! left if nothing that lies behind x promises more than x; otherwise acknowledged data is damaged. Promises are:
//! a group header behind x in the same or the next segment (a valid header is enough, its payload may be torn), the
//! header of any later segment, a hard state that witnesses more entries than were read, and the start position
//! itself. The cases by name are in `docs/recovery.md`, and each is a test in `tests/crash.rs`.
use super::format::{
    BODY_BYTES_MAX, GROUP_EOS, GROUP_HEADER_BYTES, GROUP_IDS_MAX, GroupHeader, GroupHeaderFault,
    RECORD_FIRST, RECORD_LAST, RECORD_REPEATED, RECORD_WHOLE, RECORD_WITNESS, RecordFault, RecordKind,
    RecordMeta, RecordView, Records, SEGMENT_HEADER_BYTES, SegmentHeader, SegmentIndex, note_entry,
};
use super::pool::path;
use super::recovery::{Record, RecoveryProgress};
use super::tail_copy::TailGroup;
use super::writer::{GroupState, StateRecord};
use super::{DIRECTORY, WalOptions, planted};
use crate::base::checksum::crc32;
use crate::base::ids::{GroupId, Lsn};
use crate::error::{Error, Result};
use crate::io::disk::{BLOCK_BYTES, run};
use crate::io::{Completion, FileId, Io, IoBuffer, IoError, Open, Operation, Outcome, Token, Wait};
use std::collections::{BTreeMap, VecDeque};

/// Bytes of one read.
pub(super) const READ_BYTES: usize = 1 << 20;
/// Reads under way at once.
const READS_IN_FLIGHT: usize = 8;
/// A block that does not verify is read so many times more before it is judged: the fault may be the bus's.
pub(super) const READS_AGAIN: u32 = 2;
/// How far the segment behind the end is searched. Groups there start at its beginning, and the fifth group behind
/// a position can only have been submitted when that position was durable.
const NEXT_BYTES: u64 = 8 << 20;
/// Groups behind the end whose hard states are read; a crash leaves at most four.
const WITNESSES_MAX: usize = 16;

/// A segment file with a valid header.
#[derive(Clone, Debug)]
pub(super) struct SegmentFile {
    pub(super) name: String,
    pub(super) header: SegmentHeader,
}

/// The segments found, by number.
pub(super) type Segments = BTreeMap<u64, SegmentFile>;

/// File name for messages.
pub(super) fn display(name: &str) -> String {
    format!("{DIRECTORY}/{name}")
}

pub(super) fn open_file(io: &mut dyn Io, name: &str) -> Result<FileId> {
    match run(io, Operation::Open { path: path(name), open: Open::Existing })? {
        (Outcome::Opened(file), _) => Ok(file),
        _ => unreachable!("opening a file gives a file"),
    }
}

const OPEN_TOKEN: Token = Token(u64::MAX - 1);
const CLOSE_TOKEN: Token = Token(u64::MAX - 2);

struct Chunk {
    seq: u64,
    offset: u64,
    file: FileId,
    read: Option<Result<IoBuffer, IoError>>,
}

/// Consecutive segments as one stream of bytes, read ahead.
struct Stream<'a> {
    io: &'a mut dyn Io,
    /// (number, name) of the segments, in order.
    segments: Vec<(u64, String)>,
    segment_bytes: u64,
    /// Where the next read starts: position in `segments`, offset.
    ahead: (usize, u64),
    /// Reads under way at once.
    depth: usize,
    ahead_file: Option<FileId>,
    chunks: VecDeque<Chunk>,
    /// Number of the first of `chunks`; tokens are these numbers.
    front_number: u64,
    in_flight: usize,
    buffers: Vec<IoBuffer>,
    completions: Vec<Completion>,
    opened: Option<Result<Outcome, IoError>>,
    straddle: Vec<u8>,
    bytes_done: u64,
}

impl<'a> Stream<'a> {
    /// A stream of `segments` that starts in the first of them, at `offset` or before.
    fn new(io: &'a mut dyn Io, segments: Vec<(u64, String)>, segment_bytes: u64, offset: u64) -> Self {
        Self {
            io,
            segments,
            segment_bytes,
            ahead: (0, offset / READ_BYTES as u64 * READ_BYTES as u64),
            depth: READS_IN_FLIGHT,
            ahead_file: None,
            chunks: VecDeque::new(),
            front_number: 0,
            in_flight: 0,
            buffers: Vec::new(),
            completions: Vec::new(),
            opened: None,
            straddle: Vec::new(),
            bytes_done: 0,
        }
    }

    /// Waits for completions and files them.
    fn collect(&mut self) -> Result<()> {
        if self.io.is_stopped() {
            return Err(stopped("read the log"));
        }
        self.io.wait(Wait::AtMostUs(1_000_000), &mut self.completions);
        for completion in self.completions.drain(..) {
            self.in_flight -= 1;
            match completion.token {
                OPEN_TOKEN => self.opened = Some(completion.result),
                CLOSE_TOKEN => {}
                Token(number) => {
                    let read = completion.result.and_then(|outcome| {
                        let mut buffer = completion.buffer.ok_or_else(lost_buffer)?;
                        if let Outcome::Bytes(bytes) = outcome {
                            // Shorter only at the end of the file: what is not there is as good as zeros.
                            buffer[bytes..].fill(0);
                        }
                        Ok(buffer)
                    });
                    let chunk = number
                        .checked_sub(self.front_number)
                        .and_then(|at| self.chunks.get_mut(usize::try_from(at).ok()?));
                    if let Some(chunk) = chunk {
                        chunk.read = Some(read);
                    }
                }
            }
        }
        Ok(())
    }

    fn read_ahead(&mut self) -> Result<()> {
        while self.chunks.len() < self.depth {
            let (at, offset) = self.ahead;
            let Some((seq, name)) = self.segments.get(at) else { return Ok(()) };
            let (seq, name) = (*seq, path(name));
            let file = match self.ahead_file {
                Some(file) => file,
                None => {
                    self.io.submit(OPEN_TOKEN, Operation::Open { path: name, open: Open::Existing });
                    self.in_flight += 1;
                    let opened = loop {
                        if let Some(opened) = self.opened.take() {
                            break opened?;
                        }
                        self.collect()?;
                    };
                    let Outcome::Opened(file) = opened else { unreachable!("opening a file gives a file") };
                    self.ahead_file = Some(file);
                    file
                }
            };
            let bytes = (self.segment_bytes - offset).min(READ_BYTES as u64) as usize;
            let mut buffer = match self.buffers.pop() {
                Some(buffer) if buffer.capacity() >= bytes => buffer,
                _ => self.io.buffer(bytes),
            };
            buffer.set_len(bytes);
            let number = self.front_number + self.chunks.len() as u64;
            self.chunks.push_back(Chunk { seq, offset, file, read: None });
            self.io.submit(Token(number), Operation::Read { file, offset, buffer });
            self.in_flight += 1;
            let end = offset + bytes as u64;
            self.ahead = if end == self.segment_bytes {
                self.ahead_file = None;
                (at + 1, 0)
            } else {
                (at, end)
            };
        }
        Ok(())
    }

    /// Lets go of the first chunk, and of its file if it was the last of it.
    fn drop_front(&mut self) {
        let Some(chunk) = self.chunks.pop_front() else { return };
        self.front_number += 1;
        if let Some(Ok(mut buffer)) = chunk.read {
            self.bytes_done += buffer.len() as u64;
            buffer.set_len(buffer.capacity());
            self.buffers.push(buffer);
        }
        let needed = self.chunks.iter().any(|other| other.file == chunk.file);
        if !needed && self.ahead_file != Some(chunk.file) {
            self.io.submit(CLOSE_TOKEN, Operation::Close { file: chunk.file });
            self.in_flight += 1;
        }
    }

    /// Waits for chunk `at` and returns its bytes.
    fn arrive(&mut self, at: usize) -> Result<()> {
        loop {
            self.read_ahead()?;
            match self.chunks.get(at).map(|chunk| &chunk.read) {
                Some(Some(Ok(_))) => return Ok(()),
                Some(Some(Err(error))) => return Err(Error::Io(error.clone())),
                Some(None) => self.collect()?,
                None => unreachable!("W1: nothing is read beyond the segments that were found"),
            }
        }
    }

    /// The `bytes` at `offset` of segment `seq`; what lies before is let go. They end inside the segment.
    fn peek(&mut self, seq: u64, offset: u64, bytes: usize) -> Result<&[u8]> {
        loop {
            self.arrive(0)?;
            let front = &self.chunks[0];
            let length = front.read.as_ref().and_then(|read| read.as_ref().ok()).map_or(0, |read| read.len());
            if front.seq == seq && offset < front.offset + length as u64 {
                break;
            }
            self.drop_front();
        }
        let start = (offset - self.chunks[0].offset) as usize;
        let (mut at, mut have) = (0, self.chunk(0).len() - start);
        if have >= bytes {
            return Ok(&self.chunk(0)[start..start + bytes]);
        }
        while have < bytes {
            at += 1;
            self.depth = self.depth.max(at + 1);
            self.arrive(at)?;
            assert_eq!(self.chunks[at].seq, seq, "W1: a group ends in its segment");
            have += self.chunk(at).len();
        }
        let mut straddle = std::mem::take(&mut self.straddle);
        straddle.clear();
        for number in 0..=at {
            let chunk = &self.chunk(number)[if number == 0 { start } else { 0 }..];
            let left = bytes - straddle.len();
            straddle.extend_from_slice(&chunk[..left.min(chunk.len())]);
        }
        self.straddle = straddle;
        Ok(&self.straddle)
    }

    /// The next piece as it was read: (segment, offset, bytes); None at the end.
    fn next_piece(&mut self, first: bool) -> Result<Option<(u64, u64, &[u8])>> {
        if !first {
            self.drop_front();
        }
        self.read_ahead()?;
        if self.chunks.is_empty() {
            return Ok(None);
        }
        self.arrive(0)?;
        Ok(Some((self.chunks[0].seq, self.chunks[0].offset, self.chunk(0))))
    }

    fn chunk(&self, at: usize) -> &[u8] {
        match &self.chunks[at].read {
            Some(Ok(buffer)) => buffer,
            _ => &[],
        }
    }

    /// Waits for everything under way and closes the files.
    fn finish(&mut self) -> Result<()> {
        // Reads first: a file is closed when nothing of it is under way.
        while self.in_flight > 0 {
            self.collect()?;
        }
        let mut files: Vec<FileId> =
            self.chunks.iter().map(|chunk| chunk.file).chain(self.ahead_file).collect();
        files.dedup();
        for file in files {
            self.io.submit(CLOSE_TOKEN, Operation::Close { file });
            self.in_flight += 1;
        }
        while self.in_flight > 0 {
            self.collect()?;
        }
        let kept = self.chunks.drain(..).filter_map(|chunk| chunk.read?.ok());
        for buffer in self.buffers.drain(..).chain(kept) {
            self.io.recycle(buffer);
        }
        Ok(())
    }
}

/// The device will complete nothing any more.
pub(super) fn stopped(what: &str) -> Error {
    Error::Io(IoError {
        kind: crate::io::IoErrorKind::Device,
        what: what.into(),
        cause: "the device has stopped".into(),
    })
}

fn lost_buffer() -> IoError {
    IoError {
        kind: crate::io::IoErrorKind::Device,
        what: "read the log".into(),
        cause: "the read gave no buffer back".into(),
    }
}

/// What was learnt of one replication group besides its state.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Witness {
    /// Highest index that a hard state witnesses.
    pub(super) index: u64,
    /// Any entry or mark was read: without one the entries lie before the start position.
    pub(super) seen: bool,
}

/// Where the log ends and what it held.
#[derive(Debug)]
pub(super) struct ScanEnd {
    pub(super) seq: u64,
    pub(super) offset: u64,
    pub(super) chain: u32,
    /// Why no group follows.
    pub(super) fault: &'static str,
    /// Newest promise read.
    pub(super) promised: Lsn,
    /// The groups it does not cover: only a crash can leave more than those in flight, and those of one record in
    /// fragments.
    pub(super) unpromised: VecDeque<TailGroup>,
    /// End of the last group with records of a caller.
    pub(super) records_end: Lsn,
    /// Entries of segment `seq`.
    pub(super) index: Vec<SegmentIndex>,
    pub(super) states: Vec<GroupState>,
    pub(super) witnesses: Vec<Witness>,
    pub(super) records_count: u64,
    pub(super) bytes: u64,
}

/// Puts fragments together.
#[derive(Default)]
struct Assembler {
    /// Position and header of the first fragment, while the last is missing.
    open: Option<(Lsn, RecordMeta)>,
    body: Vec<u8>,
}

struct Scan<'v> {
    replay_lsn: Lsn,
    segment_bytes: u64,
    visit: &'v mut dyn FnMut(&Record<'_>) -> Result<()>,
    assembler: Assembler,
    end: ScanEnd,
}

impl Scan<'_> {
    fn state(&mut self, group: GroupId) -> usize {
        let known = self.end.states.iter().position(|state| state.group == group);
        known.unwrap_or_else(|| {
            self.end.states.push(GroupState::new(group));
            self.end.witnesses.push(Witness::default());
            self.end.states.len() - 1
        })
    }

    /// One record or fragment; returns what is wrong with it, if anything.
    fn record(&mut self, lsn: Lsn, view: &RecordView<'_>) -> Result<Option<&'static str>> {
        if matches!(view.meta.kind, RecordKind::Eos | RecordKind::Pad) {
            return Ok(None);
        }
        if view.flags & RECORD_REPEATED != 0 && !view.meta.kind.is_state() {
            return Ok(Some("what is repeated is no state"));
        }
        let known = self.end.states.iter().any(|state| state.group == view.meta.group);
        if !known && self.end.states.len() == GROUP_IDS_MAX {
            return Ok(Some("there are more replication groups than a log can have"));
        }
        if view.flags & RECORD_WHOLE == RECORD_WHOLE {
            if view.flags & RECORD_REPEATED == 0 {
                // A body whose last fragment never became durable.
                self.assembler.open = None;
            }
            self.whole(lsn, &view.meta, view.flags, view.body)?;
            return Ok(None);
        }
        if view.flags & RECORD_FIRST != 0 {
            self.assembler.open = Some((lsn, view.meta));
            self.assembler.body.clear();
        } else {
            match self.assembler.open {
                // The first fragment lies before the start position.
                None => return Ok(None),
                Some((_, meta)) if meta != view.meta => {
                    return Ok(Some("fragments of two records are mixed"));
                }
                Some(_) => {}
            }
        }
        if self.assembler.body.len() + view.body.len() > BODY_BYTES_MAX {
            return Ok(Some("a record in fragments is longer than any record"));
        }
        self.assembler.body.extend_from_slice(view.body);
        if view.flags & RECORD_LAST != 0
            && let Some((first, meta)) = self.assembler.open.take()
        {
            let body = std::mem::take(&mut self.assembler.body);
            self.whole(first, &meta, 0, &body)?;
            self.assembler.body = body;
        }
        Ok(None)
    }

    fn whole(&mut self, lsn: Lsn, meta: &RecordMeta, flags: u8, body: &[u8]) -> Result<()> {
        let at = self.state(meta.group);
        let (state, witness) = (&mut self.end.states[at], &mut self.end.witnesses[at]);
        match meta.kind {
            RecordKind::Batch | RecordKind::RaftEntry => {
                (state.last_index, state.last_term) = (meta.index, meta.term);
                witness.seen = true;
                if lsn.0 / self.segment_bytes == self.end.seq {
                    let offset = (lsn.0 % self.segment_bytes) as u32;
                    note_entry(&mut self.end.index, meta.group, meta.index, offset);
                }
            }
            RecordKind::HardState => {
                state.hard_state = Some(StateRecord { meta: *meta, body: body.to_vec() });
                if flags & RECORD_WITNESS != 0 {
                    witness.index = witness.index.max(meta.index);
                }
            }
            RecordKind::SnapshotMark => {
                state.mark = Some(StateRecord { meta: *meta, body: body.to_vec() });
                if meta.index >= state.last_index {
                    (state.last_index, state.last_term) = (meta.index, meta.term);
                    witness.seen = true;
                }
            }
            _ => {}
        }
        if lsn < self.replay_lsn && !meta.kind.is_state() {
            return Ok(());
        }
        self.end.records_count += 1;
        (self.visit)(&Record { lsn, meta: *meta, body })
    }
}

/// Reads the log from the start of segment `first` and delivers its records.
#[expect(clippy::too_many_arguments, reason = "what a scan needs; a struct would name them a second time")]
pub(super) fn scan(
    io: &mut dyn Io,
    segments: &Segments,
    first: u64,
    options: &WalOptions,
    replay_lsn: Lsn,
    bytes_total: u64,
    visit: &mut dyn FnMut(&Record<'_>) -> Result<()>,
    progress: &mut dyn FnMut(RecoveryProgress),
) -> Result<ScanEnd> {
    let mut scan = Scan {
        replay_lsn,
        segment_bytes: options.segment_bytes,
        visit,
        assembler: Assembler::default(),
        end: ScanEnd {
            seq: first,
            offset: SEGMENT_HEADER_BYTES as u64,
            chain: 0,
            fault: "",
            promised: Lsn(0),
            unpromised: VecDeque::new(),
            records_end: Lsn(0),
            index: Vec::new(),
            states: Vec::new(),
            witnesses: Vec::new(),
            records_count: 0,
            bytes: 0,
        },
    };
    let mut bytes_before = 0;
    let mut faults_at = ((0, 0), 0);
    loop {
        let (seq, offset) = (scan.end.seq, scan.end.offset);
        let consecutive =
            (seq..).map_while(|seq| segments.get(&seq).map(|file| (seq, file.name.clone()))).collect();
        let mut stream = Stream::new(&mut *io, consecutive, options.segment_bytes, offset);
        let again = faults_at.1 > 0;
        if again {
            stream.depth = 1;
        }
        let told = bytes_before;
        let mut tell = |bytes_done| progress(RecoveryProgress { bytes_done: told + bytes_done, bytes_total });
        let result = scan_groups(&mut stream, &mut scan, segments, options, first, &mut tell);
        bytes_before += stream.bytes_done;
        let finished = stream.finish();
        result?;
        finished?;
        let end = (scan.end.seq, scan.end.offset);
        faults_at = if faults_at.0 == end { (end, faults_at.1 + 1) } else { (end, 1) };
        if faults_at.1 > READS_AGAIN {
            return Ok(scan.end);
        }
    }
}

/// Delivers groups until one does not continue the log; `scan.end` says where and why.
fn scan_groups(
    stream: &mut Stream<'_>,
    scan: &mut Scan<'_>,
    segments: &Segments,
    options: &WalOptions,
    first: u64,
    tell: &mut dyn FnMut(u64),
) -> Result<()> {
    let segment_bytes = options.segment_bytes;
    let mut bytes_told = u64::MAX;
    loop {
        if stream.bytes_done != bytes_told {
            bytes_told = stream.bytes_done;
            tell(bytes_told);
        }
        let (seq, offset) = (scan.end.seq, scan.end.offset);
        let file = &segments[&seq];
        let expected = Expected { seq, offset, segment_bytes, salt_lo: file.header.salt_lo() };
        let header = match expected.header(stream.peek(seq, offset, BLOCK_BYTES)?) {
            Ok(header) => header,
            Err(HeaderFault::Invalid(fault)) => {
                scan.end.fault = fault;
                return Ok(());
            }
            Err(HeaderFault::Future(version)) => return Err(refuse_future(&file.name, u32::from(version))),
        };
        let is_first_read = seq == first && offset == SEGMENT_HEADER_BYTES as u64;
        // What came before the first segment read is obsolete, so its checksum is not known; nothing comes before
        // segment 1.
        let chain_known = !is_first_read || seq == 1;
        if chain_known && header.prev_crc != scan.end.chain && !planted!(options, IgnoreChain) {
            scan.end.fault = "the group does not continue the one before it";
            return Ok(());
        }
        let bytes = stream.peek(seq, offset, header.group_len as usize)?;
        if crc32(&bytes[GROUP_HEADER_BYTES..]) != header.payload_crc {
            scan.end.fault = "the checksum of a group's records does not hold";
            return Ok(());
        }
        let corrupt =
            |what: &str| Error::Corruption { file: display(&file.name), offset, what: what.to_string() };
        let start = seq * segment_bytes + offset;
        let payload = &bytes[GROUP_HEADER_BYTES..GROUP_HEADER_BYTES + header.payload_len as usize];
        let chain = GroupHeader::chain(bytes);
        let (mut count, mut own) = (0_u32, false);
        for view in Records::new(payload) {
            let view = match view {
                Ok(view) => view,
                Err(RecordFault::Damaged(what)) => return Err(corrupt(what)),
                Err(RecordFault::Future(number)) => return Err(refuse_future(&file.name, u32::from(number))),
            };
            count += 1;
            own |= view.flags & RECORD_REPEATED == 0 && view.meta.kind != RecordKind::Eos;
            let lsn = Lsn(start + (GROUP_HEADER_BYTES + view.offset) as u64);
            if let Some(what) = scan.record(lsn, &view)? {
                return Err(corrupt(what));
            }
        }
        if count != u32::from(header.records_count) {
            return Err(corrupt("a group holds another number of records than its header says"));
        }
        // What had to be read again is past.
        stream.depth = READS_IN_FLIGHT;
        let end = &mut scan.end;
        end.chain = chain;
        end.promised = end.promised.max(header.durable_lsn);
        end.unpromised.push_back(TailGroup {
            lsn: Lsn(start),
            bytes: header.group_len,
            chain,
            payload_crc: header.payload_crc,
        });
        while end.unpromised.front().is_some_and(|group| group.end() <= end.promised) {
            end.unpromised.pop_front();
        }
        end.bytes += u64::from(header.group_len);
        if own {
            end.records_end = Lsn(start + u64::from(header.group_len));
        }
        if header.flags & GROUP_EOS == 0 {
            end.offset += u64::from(header.group_len);
            continue;
        }
        if !segments.contains_key(&(seq + 1)) {
            return Err(Error::Corruption {
                file: display(&super::pool::segment_name(seq + 1)),
                offset: 0,
                what: format!(
                    "segment {seq} of the log ended in order, so segment {} existed, and now it is missing or \
                     its header does not verify",
                    seq + 1
                ),
            });
        }
        (end.seq, end.offset) = (seq + 1, SEGMENT_HEADER_BYTES as u64);
        end.index.clear();
    }
}

/// The refusal of a file that a later version wrote.
pub(super) fn refuse_future(name: &str, version: u32) -> Error {
    Error::Refused(format!(
        "{} is of format version {version}, which a later release wrote; this one reads up to {}. Open it with that \
         release or a newer one",
        display(name),
        super::format::FORMAT_VERSION
    ))
}

/// What a group at one position of the log must say of itself.
#[derive(Clone, Copy)]
struct Expected {
    seq: u64,
    offset: u64,
    segment_bytes: u64,
    salt_lo: u32,
}

enum HeaderFault {
    Invalid(&'static str),
    Future(u8),
}

impl Expected {
    fn header(&self, block: &[u8]) -> Result<GroupHeader, HeaderFault> {
        use HeaderFault::{Future, Invalid};
        let header = match GroupHeader::decode(block) {
            Ok(header) => header,
            Err(GroupHeaderFault::Damaged(what)) => return Err(Invalid(what)),
            Err(GroupHeaderFault::Future(version, salt_lo)) if salt_lo == self.salt_lo => {
                return Err(Future(version));
            }
            Err(GroupHeaderFault::Future(..)) => {
                return Err(Invalid("a group of an earlier life of the file"));
            }
        };
        if header.salt_lo != self.salt_lo
            || header.seq != self.seq as u32
            || header.lsn.0 != self.seq * self.segment_bytes + self.offset
        {
            return Err(Invalid("a group of an earlier life of the file"));
        }
        let end = self.offset + u64::from(header.group_len);
        let room = if header.flags & GROUP_EOS == 0 { super::format::EOS_BYTES as u64 } else { 0 };
        if end + room > self.segment_bytes {
            return Err(Invalid("the group reaches beyond its segment"));
        }
        Ok(header)
    }
}

/// What lies behind the end of the log.
#[derive(Debug, Default)]
pub(super) struct LookAhead {
    /// Why the end is no end but damage: what promises more, and up to where.
    pub(super) promise: Option<String>,
    /// Groups of the present life of the files that will be cut off.
    pub(super) groups_count: u64,
    /// End of the last such group in the segment after the one that ends the log; 0 if there is none.
    pub(super) next_segment_end: u64,
}

/// Looks for promises behind the end of the log.
pub(super) fn look_ahead(
    io: &mut dyn Io,
    segments: &Segments,
    end: &ScanEnd,
    replay_lsn: Lsn,
    segment_bytes: u64,
) -> Result<LookAhead> {
    let x = Lsn(end.seq * segment_bytes + end.offset);
    let mut found = LookAhead::default();
    if x < replay_lsn {
        found.promise =
            Some(format!("the superblock was written when everything before {replay_lsn} was durable"));
        return Ok(found);
    }
    for (state, witness) in end.states.iter().zip(&end.witnesses) {
        if witness.seen && witness.index > state.last_index {
            found.promise = Some(format!(
                "a hard state of group {} witnesses entries up to {}, and the log ends at {}",
                state.group.0, witness.index, state.last_index
            ));
            return Ok(found);
        }
    }
    for (seq, file) in segments.range(end.seq + 1..) {
        if file.header.durable_lsn > x {
            found.promise = Some(format!(
                "the header of segment {seq} was written when everything before {} was durable",
                file.header.durable_lsn
            ));
            return Ok(found);
        }
    }
    let files = [end.seq, end.seq + 1]
        .into_iter()
        .filter_map(|seq| segments.get(&seq).map(|file| (seq, file.name.clone())))
        .collect();
    let mut stream = Stream::new(&mut *io, files, segment_bytes, end.offset);
    let mut headers = Vec::new();
    let looked = look_through(&mut stream, segments, end, x, &mut found, &mut headers);
    let finished = stream.finish();
    looked?;
    finished?;
    for (seq, offset, header) in headers {
        if found.promise.is_some() {
            break;
        }
        let id = open_file(io, &segments[&seq].name)?;
        let promise = hard_state_promise(io, id, offset, &header, end);
        run(io, Operation::Close { file: id })?;
        found.promise = promise?;
    }
    Ok(found)
}

/// Collects the groups behind x, and stops at the first that promises more.
fn look_through(
    stream: &mut Stream<'_>,
    segments: &Segments,
    end: &ScanEnd,
    x: Lsn,
    found: &mut LookAhead,
    headers: &mut Vec<(u64, u64, GroupHeader)>,
) -> Result<()> {
    let segment_bytes = stream.segment_bytes;
    let mut first = true;
    while let Some((seq, offset, bytes)) = stream.next_piece(std::mem::take(&mut first))? {
        if seq != end.seq && offset >= NEXT_BYTES {
            break;
        }
        let file = &segments[&seq];
        for at in (0..bytes.len()).step_by(BLOCK_BYTES) {
            let position = offset + at as u64;
            if position < if seq == end.seq { end.offset } else { SEGMENT_HEADER_BYTES as u64 } {
                continue;
            }
            let expected = Expected { seq, offset: position, segment_bytes, salt_lo: file.header.salt_lo() };
            let header = match expected.header(&bytes[at..]) {
                Ok(header) => header,
                Err(HeaderFault::Invalid(_)) => continue,
                Err(HeaderFault::Future(version)) => {
                    return Err(refuse_future(&file.name, u32::from(version)));
                }
            };
            found.groups_count += 1;
            if seq != end.seq {
                found.next_segment_end = position + u64::from(header.group_len);
            }
            if header.durable_lsn > x {
                found.promise = Some(format!(
                    "the group at {position} of {} was written when everything before {} was durable",
                    display(&file.name),
                    header.durable_lsn
                ));
                return Ok(());
            }
            if headers.len() < WITNESSES_MAX {
                headers.push((seq, position, header));
            }
        }
    }
    Ok(())
}

/// What the hard states in a whole group behind the end say of entries before it.
fn hard_state_promise(
    io: &mut dyn Io,
    id: FileId,
    offset: u64,
    header: &GroupHeader,
    end: &ScanEnd,
) -> Result<Option<String>> {
    let buffer = io.buffer(header.group_len as usize);
    let (outcome, back) = run(io, Operation::Read { file: id, offset, buffer })?;
    let buffer = back.ok_or_else(lost_buffer)?;
    let whole =
        outcome == Outcome::Bytes(buffer.len()) && crc32(&buffer[GROUP_HEADER_BYTES..]) == header.payload_crc;
    let mut promise = None;
    if whole {
        let payload = &buffer[GROUP_HEADER_BYTES..GROUP_HEADER_BYTES + header.payload_len as usize];
        for view in Records::new(payload).map_while(Result::ok) {
            if view.meta.kind != RecordKind::HardState || view.flags & RECORD_WITNESS == 0 {
                continue;
            }
            let known =
                end.states.iter().zip(&end.witnesses).find(|(state, _)| state.group == view.meta.group);
            if let Some((state, witness)) = known
                && witness.seen
                && view.meta.index > state.last_index
            {
                promise = Some(format!(
                    "a hard state behind it witnesses entries of group {} up to {}, and the log ends at {}",
                    state.group.0, view.meta.index, state.last_index
                ));
            }
        }
    }
    io.recycle(buffer);
    Ok(promise)
}
