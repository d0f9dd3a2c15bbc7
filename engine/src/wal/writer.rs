//! The end of the log in memory: records are encoded straight into the slab that will be written, and get their
//! positions at once.
//!
//! Only the last group is open; every group before it is sealed, its length known. That is why a position can be
//! given before anything is submitted. A record that does not fit the open group starts the next one; a group
//! that does not fit the segment ends it: an end-of-segment group is queued, and the next group opens at the
//! start of the next segment, repeating the newest states of every replication group.
//!
//! **Does not know** files, syncs or what is durable, but for the marks it is told of.
//!
//! **Bounds.** The queue is as long as the caller lets it be: it watches `pending_bytes`.
use super::format::{
    EOS_BYTES, FRAGMENT_BYTES_MAX, GROUP_EOS, GROUP_FIRST, GROUP_HEADER_BYTES, GROUP_IDS_MAX, GroupHeader,
    RECORD_FIRST, RECORD_LAST, RECORD_REPEATED, RECORD_WHOLE, RECORD_WITNESS, RecordKind, RecordMeta,
    SEGMENT_HEADER_BYTES, SegmentIndex, encode_eos, encode_record, note_entry, record_bytes,
};
use crate::base::checksum::crc32;
use crate::base::ids::{GroupId, Lsn};
use crate::error::{Error, Result};
use crate::io::IoBuffer;
use crate::io::disk::BLOCK_BYTES;
use std::collections::VecDeque;

/// A `HardState` or `SnapshotMark` kept to be repeated.
#[derive(Clone, Debug)]
pub(super) struct StateRecord {
    pub(super) meta: RecordMeta,
    pub(super) body: Vec<u8>,
}

/// What the log remembers of one replication group.
#[derive(Clone, Debug)]
pub(super) struct GroupState {
    pub(super) group: GroupId,
    pub(super) hard_state: Option<StateRecord>,
    pub(super) mark: Option<StateRecord>,
    /// Index of the newest entry (or mark) appended, and the term it had.
    pub(super) last_index: u64,
    pub(super) last_term: u64,
    /// The same of what is durable.
    pub(super) durable_index: u64,
    /// What the caller said is committed.
    pub(super) commit_noted: u64,
    /// An entry came since the last seal.
    touched: bool,
}

impl GroupState {
    pub(super) fn new(group: GroupId) -> Self {
        Self {
            group,
            hard_state: None,
            mark: None,
            last_index: 0,
            last_term: 0,
            durable_index: 0,
            commit_noted: 0,
            touched: false,
        }
    }
}

/// One group, open or sealed.
#[derive(Debug)]
pub(super) struct Group {
    /// All of the slab while open, the group's length once sealed.
    pub(super) buffer: IoBuffer,
    pub(super) seq: u64,
    /// Offset of the group in its segment.
    pub(super) offset: u64,
    pub(super) flags: u8,
    pub(super) records_count: u16,
    /// Records in it that a caller appended.
    pub(super) records_own_count: u16,
    /// Bytes used, header included.
    pub(super) used: usize,
    pub(super) payload_crc: u32,
    pub(super) last_index: u64,
    pub(super) last_term: u32,
    /// When the pump first saw it waiting.
    pub(super) queued_us: Option<u64>,
}

impl Group {
    /// Bytes on disk.
    pub(super) fn len(&self) -> usize {
        self.used.next_multiple_of(BLOCK_BYTES)
    }

    fn seal(&mut self) {
        let length = self.len();
        self.buffer[self.used..length].fill(0);
        self.buffer.set_len(length);
        self.payload_crc = crc32(&self.buffer[GROUP_HEADER_BYTES..]);
    }

    /// Fills the header of a sealed group; returns its chain value.
    pub(super) fn stamp(&mut self, segment_bytes: u64, salt_lo: u32, durable: Lsn, prev_crc: u32) -> u32 {
        let header = GroupHeader {
            flags: self.flags,
            records_count: self.records_count,
            group_len: self.buffer.len() as u32,
            payload_len: (self.used - GROUP_HEADER_BYTES) as u32,
            lsn: Lsn(self.seq * segment_bytes + self.offset),
            seq: self.seq as u32,
            salt_lo,
            durable_lsn: durable,
            prev_crc,
            payload_crc: self.payload_crc,
            last_index: self.last_index,
            last_term: self.last_term,
        };
        header.encode(&mut self.buffer)
    }
}

/// Sizes that placement obeys.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sizes {
    pub(super) segment_bytes: u64,
    pub(super) group_bytes_max: usize,
    pub(super) group_records_max: usize,
    /// Longest body that is not split.
    pub(super) fragment_bytes_max: usize,
    /// Bound on all states that a new segment repeats, as record bytes.
    states_bytes_max: usize,
}

impl Sizes {
    pub(super) fn new(segment_bytes: u64, group_bytes_max: usize, group_records_max: usize) -> Self {
        let usable = segment_bytes as usize - SEGMENT_HEADER_BYTES - EOS_BYTES;
        let group_bytes_max = group_bytes_max.min(usable) / BLOCK_BYTES * BLOCK_BYTES;
        // A quarter of a segment at most, so that little is left unused at its end; half of a group, so that the
        // repeated states (a quarter) fit before it.
        let fragment_bytes_max = FRAGMENT_BYTES_MAX.min(usable / 4).min(group_bytes_max / 2) / 8 * 8;
        Self {
            segment_bytes,
            group_bytes_max,
            group_records_max,
            fragment_bytes_max,
            states_bytes_max: group_bytes_max / 4,
        }
    }

    /// First offset behind the last group of a segment that is not its end-of-segment group.
    fn groups_end(&self) -> u64 {
        self.segment_bytes - EOS_BYTES as u64
    }
}

/// The end of the log in memory.
pub(super) struct Tail {
    pub(super) sizes: Sizes,
    /// Segment of the open group, or of the next to open.
    pub(super) seq: u64,
    /// Offset of the next group to open: the end of the last sealed one.
    pub(super) offset: u64,
    pub(super) filling: Option<Group>,
    pub(super) sealed: VecDeque<Group>,
    /// Slabs of `group_bytes_max` bytes for reuse.
    pub(super) slabs: Vec<IoBuffer>,
    pub(super) states: Vec<GroupState>,
    /// Entries of segment `seq`.
    pub(super) index: Vec<SegmentIndex>,
    /// Split records whose end is not durable yet: positions of first and last fragment.
    pub(super) split: VecDeque<(Lsn, Lsn)>,
    /// (end of a group, replication group, newest index up to there), until durable.
    pub(super) index_marks: VecDeque<(Lsn, GroupId, u64)>,
    /// Bytes of sealed groups.
    pub(super) sealed_bytes: usize,
    scratch: Vec<u8>,
}

impl Tail {
    pub(super) fn new(sizes: Sizes, seq: u64, offset: u64) -> Self {
        Self {
            sizes,
            seq,
            offset,
            filling: None,
            sealed: VecDeque::new(),
            slabs: Vec::new(),
            states: Vec::new(),
            index: Vec::new(),
            split: VecDeque::new(),
            index_marks: VecDeque::new(),
            sealed_bytes: 0,
            scratch: Vec::new(),
        }
    }

    /// Bytes queued and not submitted.
    pub(super) fn queued_bytes(&self) -> usize {
        self.sealed_bytes + self.filling.as_ref().map_or(0, |group| group.used)
    }

    /// Position of the next group to open.
    pub(super) fn next_lsn(&self) -> Lsn {
        Lsn(self.seq * self.sizes.segment_bytes + self.offset)
    }

    /// The state of a replication group, made at its first record.
    pub(super) fn state(&mut self, group: GroupId) -> Result<&mut GroupState> {
        match self.states.iter().position(|state| state.group == group) {
            Some(at) => Ok(&mut self.states[at]),
            None if self.states.len() == GROUP_IDS_MAX => Err(Error::Refused(format!(
                "the log has room for {GROUP_IDS_MAX} replication groups, and group {} would be one more",
                group.0
            ))),
            None => {
                self.states.push(GroupState::new(group));
                Ok(self.states.last_mut().expect("one was pushed"))
            }
        }
    }

    /// Refuses a state that would make the start of a segment too long.
    pub(super) fn check_state_room(&self, meta: &RecordMeta, body: &[u8]) -> Result<()> {
        let others: usize = self
            .states
            .iter()
            .flat_map(|state| [&state.hard_state, &state.mark])
            .flatten()
            .filter(|record| (record.meta.group, record.meta.kind) != (meta.group, meta.kind))
            .map(|record| record_bytes(record.body.len()))
            .sum();
        if others + record_bytes(body.len()) > self.sizes.states_bytes_max {
            return Err(Error::Refused(format!(
                "the states of all replication groups must fit {} bytes of the log",
                self.sizes.states_bytes_max
            )));
        }
        Ok(())
    }

    /// How many segments further the log would be after a body of this length, rather one too many than one too
    /// few; for the full-disk check.
    pub(super) fn rotations_for(&self, body_bytes: usize) -> u64 {
        let mut left = body_bytes;
        let mut piece = left.min(self.sizes.fragment_bytes_max);
        let (mut offset, mut header_bytes) = match &self.filling {
            Some(group) if group.used + record_bytes(piece) <= self.sizes.group_bytes_max => {
                (group.offset + group.used as u64, 0)
            }
            Some(group) => (group.offset + group.len() as u64, GROUP_HEADER_BYTES),
            None => (self.offset, GROUP_HEADER_BYTES),
        };
        let mut rotations = 0;
        loop {
            let end = offset + (header_bytes + record_bytes(piece)) as u64;
            header_bytes = GROUP_HEADER_BYTES;
            if end > self.sizes.groups_end() {
                rotations += 1;
                offset = (SEGMENT_HEADER_BYTES + self.sizes.states_bytes_max) as u64;
                continue;
            }
            left -= piece;
            if left == 0 {
                return rotations;
            }
            piece = left.min(self.sizes.fragment_bytes_max);
            offset = end.next_multiple_of(BLOCK_BYTES as u64);
        }
    }

    /// Places one record; returns its position. The caller has checked sizes and room.
    pub(super) fn append(&mut self, meta: &RecordMeta, body: &[u8]) -> Lsn {
        let mut flags = 0;
        if meta.kind == RecordKind::HardState
            && self.states.iter().any(|state| state.group == meta.group && meta.index <= state.durable_index)
        {
            flags = RECORD_WITNESS;
        }
        let fragment = self.sizes.fragment_bytes_max;
        let lsn = if body.len() <= fragment {
            let lsn = self.place(meta, RECORD_WHOLE | flags, body);
            self.note_position(meta, lsn);
            lsn
        } else {
            let pieces = body.len().div_ceil(fragment);
            let mut first = Lsn(0);
            for (number, piece) in body.chunks(fragment).enumerate() {
                let mut flags = 0;
                if number == 0 {
                    flags |= RECORD_FIRST;
                }
                if number == pieces - 1 {
                    flags |= RECORD_LAST;
                }
                let lsn = self.place(meta, flags, piece);
                if number == 0 {
                    first = lsn;
                    self.note_position(meta, lsn);
                } else if number == pieces - 1 {
                    self.split.push_back((first, lsn));
                }
            }
            first
        };
        self.note_state(meta, body);
        lsn
    }

    /// The segment's list names an entry where its first byte is, and before the segment can end.
    fn note_position(&mut self, meta: &RecordMeta, lsn: Lsn) {
        if meta.kind.is_entry() {
            let offset = (lsn.0 - self.seq * self.sizes.segment_bytes) as u32;
            note_entry(&mut self.index, meta.group, meta.index, offset);
        }
    }

    fn note_state(&mut self, meta: &RecordMeta, body: &[u8]) {
        let Some(state) = self.states.iter_mut().find(|state| state.group == meta.group) else { return };
        match meta.kind {
            RecordKind::Batch | RecordKind::RaftEntry => {
                (state.last_index, state.last_term) = (meta.index, meta.term);
                state.touched = true;
            }
            RecordKind::HardState => keep_state(&mut state.hard_state, meta, body),
            RecordKind::SnapshotMark => {
                keep_state(&mut state.mark, meta, body);
                if meta.index > state.last_index {
                    (state.last_index, state.last_term) = (meta.index, meta.term);
                    state.touched = true;
                }
            }
            _ => {}
        }
        if meta.group == GroupId(0) {
            let (index, term) = (state.last_index, state.last_term as u32);
            if let Some(group) = &mut self.filling {
                (group.last_index, group.last_term) = (index, term);
            }
        }
    }

    fn capacity(&self, offset: u64) -> usize {
        let rest = self.sizes.groups_end().saturating_sub(offset);
        self.sizes.group_bytes_max.min(usize::try_from(rest).unwrap_or(usize::MAX))
    }

    fn place(&mut self, meta: &RecordMeta, flags: u8, body: &[u8]) -> Lsn {
        let need = record_bytes(body.len());
        loop {
            if let Some(group) = &self.filling {
                let capacity = self.capacity(group.offset);
                if group.used + need <= capacity
                    && usize::from(group.records_count) < self.sizes.group_records_max
                {
                    break;
                }
                self.seal_filling();
            }
            self.open_group(need);
        }
        let segment_start = self.seq * self.sizes.segment_bytes;
        let group = self.filling.as_mut().expect("a group is open");
        let lsn = Lsn(segment_start + group.offset + group.used as u64);
        group.used += encode_record(&mut group.buffer[group.used..], meta, flags, body);
        group.records_count += 1;
        if flags & RECORD_REPEATED == 0 {
            group.records_own_count += 1;
        }
        lsn
    }

    /// Opens a group with room for a record of `need` bytes, in the next segment if this one has none.
    fn open_group(&mut self, need: usize) {
        assert!(self.filling.is_none(), "W1: one group is open at a time");
        if self.capacity(self.offset) < GROUP_HEADER_BYTES + need {
            self.end_segment();
        }
        let first = self.offset == SEGMENT_HEADER_BYTES as u64;
        let group = self.new_group(if first { GROUP_FIRST } else { 0 });
        self.filling = Some(group);
        if first {
            self.repeat_states(true);
        }
    }

    fn new_group(&mut self, flags: u8) -> Group {
        let mut buffer = self.slabs.pop().unwrap_or_else(|| IoBuffer::zeroed(self.sizes.group_bytes_max));
        buffer.set_len(buffer.capacity());
        let state = self.states.iter().find(|state| state.group == GroupId(0));
        Group {
            buffer,
            seq: self.seq,
            offset: self.offset,
            flags,
            records_count: 0,
            records_own_count: 0,
            used: GROUP_HEADER_BYTES,
            payload_crc: 0,
            last_index: state.map_or(0, |state| state.last_index),
            last_term: state.map_or(0, |state| state.last_term as u32),
            queued_us: None,
        }
    }

    /// Writes the newest states into the open group: hard states with the commit index as far as it is durable,
    /// and, at the start of a segment, the snapshot marks.
    fn repeat_states(&mut self, marks: bool) {
        let mut group = self.filling.take().expect("a group is open");
        for state in &mut self.states {
            if let Some(record) = &mut state.hard_state {
                record.meta.index = record.meta.index.max(state.commit_noted.min(state.durable_index));
                let witness = if record.meta.index <= state.durable_index { RECORD_WITNESS } else { 0 };
                let flags = RECORD_WHOLE | RECORD_REPEATED | witness;
                group.used +=
                    encode_record(&mut group.buffer[group.used..], &record.meta, flags, &record.body);
                group.records_count += 1;
            }
            if let (true, Some(record)) = (marks, &state.mark) {
                let flags = RECORD_WHOLE | RECORD_REPEATED;
                group.used +=
                    encode_record(&mut group.buffer[group.used..], &record.meta, flags, &record.body);
                group.records_count += 1;
            }
        }
        self.filling = Some(group);
    }

    /// Bytes that [`Tail::queue_states`] needs at most.
    pub(super) fn states_bytes(&self) -> usize {
        self.sizes.states_bytes_max
    }

    /// Queues a group that holds nothing but the newest hard states.
    pub(super) fn queue_states(&mut self, flag: u8) {
        self.open_group(self.sizes.states_bytes_max);
        let group = self.filling.as_mut().expect("a group was opened");
        group.flags |= flag;
        if group.records_count == 0 {
            self.repeat_states(false);
        }
        self.seal_filling();
    }

    /// Ends the open group, if there is one: its length and payload are final.
    pub(super) fn seal_filling(&mut self) {
        let Some(mut group) = self.filling.take() else { return };
        group.seal();
        self.offset = group.offset + group.len() as u64;
        let end = self.next_lsn();
        for state in &mut self.states {
            if std::mem::take(&mut state.touched) {
                self.index_marks.push_back((end, state.group, state.last_index));
            }
        }
        self.sealed_bytes += group.len();
        self.sealed.push_back(group);
    }

    /// Queues the end-of-segment group and moves to the next segment.
    fn end_segment(&mut self) {
        let mut group = self.new_group(GROUP_EOS);
        let mut body = std::mem::take(&mut self.scratch);
        encode_eos(&self.index, &mut body);
        let meta =
            RecordMeta { kind: RecordKind::Eos, entry_type: 0, group: GroupId(0), term: 0, index: self.seq };
        group.used += encode_record(&mut group.buffer[group.used..], &meta, RECORD_WHOLE, &body);
        group.records_count = 1;
        self.scratch = body;
        group.seal();
        assert_eq!(group.len(), EOS_BYTES, "W1: the end of a segment fits the room kept for it");
        self.sealed_bytes += group.len();
        self.sealed.push_back(group);
        self.index.clear();
        self.seq += 1;
        self.offset = SEGMENT_HEADER_BYTES as u64;
    }

    /// Takes the next sealed group for submission.
    pub(super) fn take_sealed(&mut self) -> Option<Group> {
        let group = self.sealed.pop_front()?;
        self.sealed_bytes -= group.len();
        Some(group)
    }
}

fn keep_state(kept: &mut Option<StateRecord>, meta: &RecordMeta, body: &[u8]) {
    let kept = kept.get_or_insert_with(|| StateRecord { meta: *meta, body: Vec::new() });
    kept.meta = *meta;
    kept.body.clear();
    kept.body.extend_from_slice(body);
}
