//! Groups on their way: filling → in flight → durable, acknowledged in the order of their positions.
//!
//! The filling group is closed the moment a slot is free; there is no timer. That is within a thousandth of the
//! best timer when clients wait for their own writes, and never worse at one client.
//!
//! **Invariants.** W2 and W7 are kept here. A group is done when its own write and a sync that began after it are
//! complete; it is acknowledged when every group before it is done too, whatever completed first. At most
//! [`GROUPS_IN_FLIGHT_MAX`] groups are not acknowledged at any time, and of those at most the option's number is at the
//! device: one that overtook an earlier one makes room for the next.
use super::format::{GROUP_CLOSE, GROUP_EOS, GROUP_IDLE, GROUPS_IN_FLIGHT_MAX};
use super::{TokenKind, Wal, planted, token};
use crate::base::ids::Lsn;
use crate::io::{Durability, FileId, Io, IoBuffer, IoError, Operation, Outcome};
use std::collections::VecDeque;

/// The segment that groups are submitted to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Current {
    pub(super) seq: u64,
    pub(super) file: FileId,
    pub(super) salt_lo: u32,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    Writing,
    Syncing,
    Done,
}

#[derive(Debug)]
struct InFlight {
    end: Lsn,
    bytes: usize,
    file: FileId,
    flags: u8,
    records_own_count: u16,
    promised: Lsn,
    submitted_us: u64,
    stage: Stage,
    /// Written without a sync of its own: one follows. Kept here because the method may change while it is under way.
    sync_follows: bool,
}

/// What is in flight and what is durable.
#[derive(Debug)]
pub(super) struct Commit {
    pub(super) current: Current,
    /// Chain value of the last group submitted.
    chain: u32,
    in_flight: VecDeque<InFlight>,
    /// Number of the front of `in_flight`; tokens carry these numbers.
    front_number: u64,
    /// First byte not known to be durable.
    pub(super) durable: Lsn,
    /// Segment of the group that follows the durable ones.
    next_seq: u64,
    /// Newest promise that is durable itself.
    pub(super) promised: Lsn,
    /// End of the last durable group that holds records of a caller.
    pub(super) records_end: Lsn,
    /// When a group was last acknowledged or the log opened.
    active_us: u64,
}

impl Commit {
    pub(super) fn new(current: Current, chain: u32, durable: Lsn, now_us: u64) -> Self {
        let current_seq = current.seq;
        Self {
            current,
            chain,
            in_flight: VecDeque::new(),
            front_number: 0,
            durable,
            next_seq: current_seq,
            promised: Lsn(0),
            records_end: Lsn(0),
            active_us: now_us,
        }
    }

    /// The segment in which the log goes on at `durable`.
    pub(super) fn next_seq(&self) -> u64 {
        self.next_seq
    }

    pub(super) fn in_flight_bytes(&self) -> usize {
        self.in_flight.iter().map(|group| group.bytes).sum()
    }
}

impl Wal {
    /// What the next header may promise.
    pub(super) fn promise(&self) -> Lsn {
        if planted!(self.options, ForgetDurableLsn) { Lsn(0) } else { self.commit.durable }
    }

    /// Whether one more group may be submitted. A group that has overtaken an earlier one needs the device no more, so
    /// its slot is free; the bound on what is not acknowledged is recovery's, see [`GROUPS_IN_FLIGHT_MAX`].
    fn has_slot(&self) -> bool {
        self.groups_in_flight() < self.options.groups_in_flight_max
            && self.commit.in_flight.len() < GROUPS_IN_FLIGHT_MAX
    }

    /// Groups at the device. Those that are done and wait for an earlier one are not counted.
    pub fn groups_in_flight(&self) -> usize {
        self.commit.in_flight.iter().filter(|group| group.stage != Stage::Done).count()
    }

    pub(super) fn submit_groups(&mut self, io: &mut dyn Io, now_us: u64) {
        while self.has_slot() {
            if self.tail.sealed.is_empty() {
                self.tail.seal_filling();
            }
            let Some(front) = self.tail.sealed.front() else { break };
            let ends_segment = front.flags & GROUP_EOS != 0;
            // W7: the look-ahead of recovery needs the header of the next segment.
            if ends_segment && self.pool.next_ready(front.seq + 1).is_none() {
                break;
            }
            let Some(mut group) = self.tail.take_sealed() else { break };
            assert_eq!(group.seq, self.commit.current.seq, "W1: groups are submitted segment by segment");
            let promised = self.promise();
            let segment_bytes = self.options.segment_bytes;
            self.commit.chain =
                group.stamp(segment_bytes, self.commit.current.salt_lo, promised, self.commit.chain);
            let file = self.file_of_current();
            let bytes = group.buffer.len();
            let number = self.commit.front_number + self.commit.in_flight.len() as u64;
            if self.commit.in_flight.is_empty() {
                self.probe.set(Some(now_us));
            }
            let (durability, sync_follows) = match self.options.sync.write(self.groups_in_flight() == 0) {
                _ if planted!(self.options, SkipSync) => (Durability::None, false),
                step => step,
            };
            self.commit.in_flight.push_back(InFlight {
                end: Lsn(group.seq * segment_bytes + group.offset + bytes as u64),
                bytes,
                file,
                flags: group.flags,
                records_own_count: group.records_own_count,
                promised,
                submitted_us: now_us,
                stage: Stage::Writing,
                sync_follows,
            });
            self.stats.queue_wait.record(now_us.saturating_sub(group.queued_us.unwrap_or(now_us)));
            let write = Operation::Write { file, offset: group.offset, buffer: group.buffer, durability };
            io.submit(token(TokenKind::Group, number), write);
            if ends_segment {
                let next = self.pool.take_next();
                self.commit.current = Current { seq: next.seq, file: next.file, salt_lo: next.salt as u32 };
                self.stats.rotations_count += 1;
            }
        }
        // The first look at what has to wait for a slot.
        let waiting = self.tail.sealed.iter_mut().chain(&mut self.tail.filling);
        for group in waiting {
            group.queued_us.get_or_insert(now_us);
        }
    }

    pub(super) fn on_group_written(
        &mut self,
        io: &mut dyn Io,
        number: u64,
        result: Result<Outcome, IoError>,
        buffer: Option<IoBuffer>,
    ) {
        if let Some(mut buffer) = buffer {
            buffer.set_len(buffer.capacity());
            if self.tail.slabs.len() <= self.options.groups_in_flight_max {
                self.tail.slabs.push(buffer);
            } else {
                io.recycle(buffer);
            }
        }
        let Some(at) = self.in_flight_at(number) else { return };
        let group = &mut self.commit.in_flight[at];
        match result {
            Ok(Outcome::Bytes(bytes)) if bytes == group.bytes => {}
            Ok(outcome) => {
                let what = format!("a group of {} bytes was written short: {outcome:?}", group.bytes);
                return self.poison(&what);
            }
            Err(error) => return self.poison(&error.to_string()),
        }
        if self.poisoned.is_some() {
            return;
        }
        if group.sync_follows {
            group.stage = Stage::Syncing;
            let file = group.file;
            io.submit(token(TokenKind::GroupSync, number), Operation::SyncUrgent { file });
        } else {
            self.on_group_done(io, at);
        }
    }

    pub(super) fn on_group_synced(&mut self, io: &mut dyn Io, number: u64, result: Result<Outcome, IoError>) {
        let Some(at) = self.in_flight_at(number) else { return };
        match result {
            Ok(_) => self.on_group_done(io, at),
            Err(error) => self.poison(&error.to_string()),
        }
    }

    fn in_flight_at(&self, number: u64) -> Option<usize> {
        let at = usize::try_from(number.checked_sub(self.commit.front_number)?).ok()?;
        (at < self.commit.in_flight.len()).then_some(at)
    }

    fn on_group_done(&mut self, io: &mut dyn Io, at: usize) {
        let now_us = io.now_us();
        let group = &mut self.commit.in_flight[at];
        group.stage = Stage::Done;
        self.stats.write_sync.record(now_us.saturating_sub(group.submitted_us));
        if planted!(self.options, AcknowledgeEarly) {
            self.commit.durable = self.commit.durable.max(group.end);
        }
        // Once poisoned nothing is acknowledged: a sync that failed elsewhere leaves the device's state unknown.
        if self.poisoned.is_some() {
            return;
        }
        while self.commit.in_flight.front().is_some_and(|group| group.stage == Stage::Done) {
            self.acknowledge(io, now_us);
        }
        self.probe.set(self.commit.in_flight.front().map(|group| group.submitted_us));
    }

    fn acknowledge(&mut self, io: &mut dyn Io, now_us: u64) {
        let Some(group) = self.commit.in_flight.pop_front() else { return };
        self.commit.front_number += 1;
        assert!(
            group.end > self.commit.durable || planted!(self.options, AcknowledgeEarly),
            "W2: the durable position moves forward, from {} to {}",
            self.commit.durable,
            group.end
        );
        self.commit.durable = self.commit.durable.max(group.end);
        let seq = (group.end.0 - 1) / self.options.segment_bytes;
        self.commit.next_seq = seq + u64::from(group.flags & GROUP_EOS != 0);
        self.commit.promised = self.commit.promised.max(group.promised);
        if group.records_own_count > 0 {
            self.commit.records_end = group.end;
        }
        self.commit.active_us = now_us;
        self.stats.groups_count += 1;
        self.stats.group_bytes += group.bytes as u64;
        self.stats.groups_idle_count += u64::from(group.flags & GROUP_IDLE != 0);
        self.stats.ack.record(now_us.saturating_sub(group.submitted_us));
        if group.flags & GROUP_EOS != 0 {
            self.closing_count += 1;
            io.submit(token(TokenKind::Close, 0), Operation::Close { file: group.file });
        }
        let durable = self.commit.durable;
        while self.tail.split.front().is_some_and(|&(_, last)| last < durable) {
            self.tail.split.pop_front();
        }
        while let Some(&(end, group, index)) = self.tail.index_marks.front()
            && end <= durable
        {
            self.tail.index_marks.pop_front();
            if let Some(state) = self.tail.states.iter_mut().find(|state| state.group == group) {
                state.durable_index = index;
            }
        }
    }

    /// True when something acknowledged is not promised yet.
    pub(super) fn owes_promise(&self) -> bool {
        self.commit.promised < self.commit.records_end
    }

    /// The same, and nothing is on its way that would promise it.
    fn wants_idle(&self) -> bool {
        self.owes_promise() && self.commit.in_flight.is_empty() && self.tail.queued_bytes() == 0
    }

    pub(super) fn idle_deadline_us(&self) -> Option<u64> {
        (self.wants_idle() && self.can_promise()).then_some(self.commit.active_us + super::IDLE_US)
    }

    pub(super) fn idle(&mut self, now_us: u64) {
        if self.idle_deadline_us().is_some_and(|deadline| now_us >= deadline) {
            self.queue_promise(GROUP_IDLE);
        }
    }

    /// False when a group without records would need a segment that cannot be made now.
    pub(super) fn can_promise(&self) -> bool {
        self.tail.rotations_for(self.tail.states_bytes()) == 0 || self.pool.full().is_none()
    }

    /// Queues a group without own records: its header promises everything durable, its hard states carry the
    /// commit index.
    pub(super) fn queue_promise(&mut self, flag: u8) {
        debug_assert!(flag == GROUP_IDLE || flag == GROUP_CLOSE);
        self.tail.queue_states(flag);
    }
}
