//! One member's Raft, without the world: inputs in, outputs out, no thread, clock, socket or disk.
//!
//! **Contract.** [`Core::handle`] takes one [`Input`] and appends [`Output`]s, which are to be carried out in their order. The same inputs
//! give the same outputs, so that a simulation replays from its seed. Nothing in here blocks.
//!
//! **Around the library.** `raft` 0.7.0 is used unmodified; what it lacks or does wrong is made good here by public calls. The rules are those of
//! `replication/docs/raft.md`, by number; each has an assert or a test that names it:
//!
//! | rule | where |
//! |---|---|
//! | 1 election timeouts from the seed | [`Core::note_role`] |
//! | 2, 3 read contexts; reads in rounds | [`super::reads`], [`Core::pump_reads`] |
//! | 4 sorted configurations | [`sorted`] |
//! | 5 applied <= durable | `hand_over`, by the library |
//! | 6, 7 what is in memory | [`super::log_view`] |
//! | 9 (R7) a removed leader steps down at once | [`Core::apply_change`] |
//! | 11 (R11) windows | bytes are bounded by the transport, which reports what it drops |
//! | 12 snapshots | none by the library: `MsgSnapshot` is dropped, and never sent; [`Core::skip_to_committed`] |
//! | 13 (R6) what travels | [`super::guards`] |
//! | 15 a lone voter campaigns only when its log is durable | [`Core::tick`] |
//! | R1 commit at start; hard state before a change is applied | [`Core::new`], [`Core::hand_over`] |
//! | R8 one change at a time, durable behind the commit of the one before | [`Core::propose_change`], `split_write` |
//! | R14 fate of proposals | [`super::proposals`] |
//! | R18 acknowledgements of heartbeats wait for no disk | [`Core::drain`] |
//! | R22 a disk that went back | [`Input::Promised`] |
//! | R20 hand-over when the disk hangs | [`super::stall`] |
//! | 10 a leader whose process is gone is forgotten | [`absence`] |
//!
//! **Invariants.** D1: nothing leaves before what it promises is durable: votes and appends acknowledged, and everything said in a term, before the
//! hard state of that term. D2: persists are numbered and become durable in order. D3: entries are handed to the state machine in order,
//! each once.
//!
//! **Does not know** what a command means: it knows its id by a function it is given.
//!
//! Reading order: here, `library`, `committed`, `absence`.
mod absence;
mod committed;
mod library;

use super::frame::{Body, Frame};
use super::guards::{self, Situation, Verdict};
use super::input::{Input, Output, Proposal, Quarantine, Refusal, Role};
use super::log_view::LogView;
use super::planted::{Planted, PlantedBug};
use super::proposals::Proposals;
use super::reads::Reads;
use super::stall::Watchdog;
use super::terms::Terms;
use crate::entry_format::{add_command, start_entry};
use absence::Absence;
use bytes::Bytes;
use raft::eraftpb::{ConfChangeV2, ConfState, Entry, EntryType, HardState, Message, MessageType};
use raft::{Config, RawNode, ReadOnlyOption, StateRole};
use std::collections::{BTreeMap, VecDeque};

/// An entry takes no further command once it holds this much; with [`ENTRY_COMMANDS_MAX`] the bounds of one step of the log.
pub const ENTRY_BYTES_MAX: usize = 256 << 10;
/// See [`ENTRY_BYTES_MAX`].
pub const ENTRY_COMMANDS_MAX: usize = 1024;
/// Bytes of appended and not committed entries of a leader; of unapplied ones of a follower, which then takes no more.
pub const UNAPPLIED_BYTES_MAX: usize = 64 << 20;
/// A follower gives clients up when its disk has hung for so many times what makes a leader hand over.
const HUNG_STALLS: u64 = 4;
/// Messages of entries on their way to one peer.
const INFLIGHT_MESSAGES_MAX: usize = 128;
/// Ids in one frame of rejections: a frame of the control lane is short.
const REJECTED_IDS_MAX: usize = 4096;

/// What does not change while a core lives.
#[derive(Clone, Debug)]
pub struct CoreOptions {
    /// Who this is, not 0.
    pub member: u64,
    /// Of this start: differs from every other start of this member.
    pub boot: u64,
    /// Makes the election timeouts, together with member and term.
    pub seed: u64,
    /// Ticks between heartbeats, at least 1.
    pub heartbeat_ticks: usize,
    /// Least ticks without a leader before an election; each is drawn from this to below twice this. More than the heartbeat's.
    pub election_ticks: usize,
    /// Microseconds of a tick.
    pub tick_us: u64,
    /// A proposal or read is given up after so many microseconds.
    pub request_timeout_us: u64,
    /// A leader whose write has been in flight for so many microseconds hands over.
    pub stall_us: u64,
    /// An election begins as soon as the leader is said to be gone ([`Input::Absent`]), and not only when it was not heard of for long enough.
    pub quick_elections: bool,
    /// Bytes of entries kept in memory only for followers that are behind.
    pub cache_bytes_max: usize,
    /// Finds the id in a command.
    pub command_id: fn(&[u8]) -> Option<u64>,
    /// A bug on purpose.
    pub planted: Planted,
}

/// Where a core starts: see [`super::replay`].
#[derive(Clone, Debug)]
pub struct CoreStart {
    /// As the log has it.
    pub hard_state: HardState,
    /// As of `applied`.
    pub configuration: ConfState,
    /// What the state machine holds.
    pub applied: u64,
    /// (index, term) before the first entry in files.
    pub base: (u64, u64),
    /// (index, term) of the entries in files, at least where a term begins and the last.
    pub terms: Vec<(u64, u64)>,
    /// The entries behind `applied`.
    pub tail: Vec<Entry>,
}

/// A Ready of the library, or a hard state alone, that is not durable yet or waits for one that is not.
struct Outstanding {
    /// The library's number, none for a hard state of ours.
    ready: Option<u64>,
    /// The number of the write, if something is written.
    persist: Option<u64>,
    /// It changes term or vote.
    changes_vote: bool,
    /// Leave when it and everything before is durable.
    messages: Vec<Message>,
    /// Handed to the state machine then (R1).
    held: Vec<Entry>,
}

/// What is known of another member.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Peer {
    /// Its disk score: age of its oldest write in milliseconds.
    pub(super) disk_ms: u32,
    /// Tick of its last frame.
    pub(super) heard_tick: u64,
    /// It needs a snapshot, and that was said.
    needs_snapshot: bool,
}

/// How far a peer is, as its leader sees it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PeerProgress {
    /// The peer.
    pub id: u64,
    /// Last index known to be durable there.
    pub matched: u64,
    /// It was heard of within the last election timeout.
    pub is_active: bool,
    /// It lags behind what the log's files hold: only a snapshot could help it.
    pub needs_snapshot: bool,
}

/// Positions and roles.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CoreStatus {
    /// Term, role, leader.
    pub role: Role,
    /// Last committed index known here.
    pub committed: u64,
    /// Last index the state machine has confirmed.
    pub applied: u64,
    /// Last index of the log, durable or not.
    pub last: u64,
    /// (index, term) of the last entry.
    pub last_term: u64,
    /// Term in which this member has proved to lead, if it does now.
    pub proved_term: Option<u64>,
    /// Leadership is being handed over to this member.
    pub transferee: Option<u64>,
    /// As leader: the others.
    pub peers: Vec<PeerProgress>,
    /// Voters, sorted.
    pub voters: Vec<u64>,
    /// Learners, sorted.
    pub learners: Vec<u64>,
    /// Set when this member takes no part.
    pub quarantine: Option<Quarantine>,
    /// Frames that the guards dropped since the start.
    pub frames_dropped_count: u64,
}

/// See the module.
pub struct Core {
    options: CoreOptions,
    node: RawNode<LogView>,
    now_us: u64,
    tick: u64,
    write_age_us: u64,
    role: Role,
    /// Changes of role seen: part of what election timeouts are drawn from.
    draws: u64,
    outstanding: VecDeque<Outstanding>,
    persist_number: u64,
    durable_number: u64,
    /// Newest hard state, and the newest that was given to the log.
    hard_state: HardState,
    written: HardState,
    /// Commit index of the newest durable hard state.
    durable_commit: u64,
    /// (number of a write, commit index of its hard state), until durable.
    written_commits: VecDeque<(u64, u64)>,
    /// Last index handed to the state machine; the last one it confirmed.
    handed: u64,
    applied: u64,
    /// Changes of the configuration handed over and not confirmed.
    changes: VecDeque<(u64, ConfChangeV2)>,
    configuration: ConfState,
    proposals: Proposals,
    reads: Reads,
    peers: BTreeMap<u64, Peer>,
    watchdog: Watchdog,
    absence: Option<Absence>,
    /// What this member goes by, for its frames; and its leader, 0 if that has not said.
    election_ms: u16,
    leader_election_ms: u16,
    has_room: bool,
    proved_term: Option<u64>,
    quarantine: Option<Quarantine>,
    frames_dropped_count: u64,
}

/// Rule 4: the library's lists come out of hash sets.
pub fn sorted(mut configuration: ConfState) -> ConfState {
    for list in [
        &mut configuration.voters,
        &mut configuration.learners,
        &mut configuration.voters_outgoing,
        &mut configuration.learners_next,
    ] {
        list.sort_unstable();
    }
    configuration
}

impl Core {
    /// Starts where the log and the checkpoint left off. An error is a member that must not take part.
    pub fn new(options: CoreOptions, start: CoreStart) -> Result<Self, Quarantine> {
        let CoreStart { mut hard_state, configuration, applied, base, terms, tail } = start;
        if !options.planted.has(PlantedBug::CommitOfHardState) {
            // R1: what was applied was committed, though nothing may have written it.
            hard_state.commit = hard_state.commit.max(applied);
        }
        let configuration = sorted(configuration);
        let mut known = Terms::new(base.0, base.1);
        // Runs: what lies between two is of the first one's term.
        let mut previous = base;
        for (index, term) in terms {
            for between in previous.0 + 1..index {
                known.put(between, previous.1);
            }
            known.put(index, term);
            previous = (index, term);
        }
        let log = LogView::new(
            hard_state.clone(),
            configuration.clone(),
            known,
            base.0 + 1,
            tail,
            options.cache_bytes_max,
        );
        guards::judge_start(&hard_state, &configuration, &log, applied, options.member)
            .map_err(Quarantine::Start)?;
        let seen_term = log.term_at(applied).unwrap_or(0);
        let config = Config {
            id: options.member,
            election_tick: options.election_ticks,
            heartbeat_tick: options.heartbeat_ticks,
            applied,
            max_size_per_msg: ENTRY_BYTES_MAX as u64,
            max_inflight_msgs: INFLIGHT_MESSAGES_MAX,
            check_quorum: true,
            pre_vote: true,
            min_election_tick: options.election_ticks,
            max_election_tick: 2 * options.election_ticks,
            // Never the other one: it compares no clock (design 1.2).
            read_only_option: ReadOnlyOption::Safe,
            max_uncommitted_size: UNAPPLIED_BYTES_MAX as u64,
            max_committed_size_per_ready: 4 << 20,
            ..Config::default()
        };
        let logger = slog::Logger::root(slog::Discard, slog::o!());
        let node = RawNode::new(&config, log, &logger)
            .map_err(|_| Quarantine::Start(super::input::StartFault::BadConfiguration))?;
        let mut core = Self {
            node,
            now_us: 0,
            tick: 0,
            write_age_us: 0,
            role: Role { term: hard_state.term, role: StateRole::Follower, leader: 0 },
            draws: 0,
            outstanding: VecDeque::new(),
            persist_number: 0,
            durable_number: 0,
            durable_commit: hard_state.commit,
            written: hard_state.clone(),
            hard_state,
            written_commits: VecDeque::new(),
            handed: applied,
            applied,
            changes: VecDeque::new(),
            configuration,
            proposals: Proposals::new(options.boot, seen_term),
            reads: Reads::new(options.member, options.boot),
            peers: BTreeMap::new(),
            watchdog: Watchdog::default(),
            absence: None,
            election_ms: 0,
            leader_election_ms: 0,
            has_room: true,
            proved_term: None,
            quarantine: None,
            frames_dropped_count: 0,
            options,
        };
        core.draw_timeout();
        Ok(core)
    }

    /// Takes one input; what is to be done comes into `out`, in order.
    pub fn handle(&mut self, now_us: u64, input: Input, out: &mut Vec<Output>) {
        self.now_us = now_us;
        if self.quarantine.is_some() {
            return self.handle_quarantined(input, out);
        }
        let mut again = false;
        match input {
            Input::Tick { write_age_us } => again = self.tick(write_age_us, out),
            Input::Frame(frame) => self.frame(frame, out),
            Input::Propose(proposals) => self.take_over(proposals, out),
            Input::ProposeChange { id, change, context } => self.propose_change(id, &change, &context, out),
            Input::Read { token } => {
                if !self.reads.ask(token, now_us + self.options.request_timeout_us) {
                    out.push(Output::ReadFailed { tokens: vec![token], why: Refusal::TooMany });
                }
            }
            Input::Durable { number } => self.durable(number, out),
            Input::Applied { index, change } => self.applied(index, change, out),
            Input::Loaded { low, entries } => {
                for context in self.node.mut_store().loaded(low, entries) {
                    self.node.on_entries_fetched(context);
                    self.settle(out);
                }
            }
            Input::FilesBeginAt { first } => self.node.mut_store().files_begin_at(first),
            Input::Room { is_left } => self.has_room = is_left,
            Input::Unreachable { id } => {
                self.node.report_unreachable(id);
                self.settle(out);
            }
            Input::Connected { id } => again = id == self.role.leader,
            Input::Absent { id } => self.absent(id, out),
            Input::TransferLeader { to } => self.transfer(to, out),
            Input::StateDiffers => return self.enter_quarantine(Quarantine::StateDiffers, out),
            Input::Promised { by, term, index } => {
                // Whoever holds what he has promised was judged by where he stood a moment before.
                if self.hard_state.term < term || self.node.raft.raft_log.last_index() < index {
                    return self.enter_quarantine(Quarantine::Regressed { by }, out);
                }
            }
        }
        self.pump(again, out);
        self.ask_for_entries(out);
        self.answer_reads(out);
    }

    fn handle_quarantined(&mut self, input: Input, out: &mut Vec<Output>) {
        match input {
            Input::Propose(proposals) => {
                let ids = proposals.iter().map(|proposal| proposal.id).collect();
                out.push(Output::Rejected { ids, why: Refusal::Quarantined });
            }
            Input::ProposeChange { id, .. } => {
                out.push(Output::Rejected { ids: vec![id], why: Refusal::Quarantined });
            }
            Input::Read { token } => {
                out.push(Output::ReadFailed { tokens: vec![token], why: Refusal::Quarantined });
            }
            Input::Applied { index, .. } => self.applied = index,
            _ => {}
        }
    }

    fn enter_quarantine(&mut self, quarantine: Quarantine, out: &mut Vec<Output>) {
        self.quarantine = Some(quarantine);
        self.proved_term = None;
        let role = Role { role: StateRole::Follower, leader: 0, ..self.role };
        if role != self.role {
            self.role = role;
            out.push(Output::Role(role));
        }
        let (never, unknown) = self.proposals.take_all();
        reject(never, Refusal::Quarantined, out);
        reject(unknown, Refusal::Unknown, out);
        let tokens = self.reads.take_all();
        if !tokens.is_empty() {
            out.push(Output::ReadFailed { tokens, why: Refusal::Quarantined });
        }
        out.push(Output::Quarantined(quarantine));
    }

    /// Positions and roles now.
    pub fn status(&self) -> CoreStatus {
        let raft = &self.node.raft;
        let mut peers = Vec::new();
        if self.role.is_leader() {
            for (&id, progress) in raft.prs().iter().filter(|(id, _)| **id != self.options.member) {
                let peer = self.peers.get(&id).copied().unwrap_or_default();
                peers.push(PeerProgress {
                    id,
                    matched: progress.matched,
                    is_active: peer.heard_tick > 0
                        && self.tick - peer.heard_tick <= self.options.election_ticks as u64,
                    needs_snapshot: peer.needs_snapshot && progress.next_idx < self.node.store().first(),
                });
            }
            peers.sort_unstable_by_key(|peer| peer.id);
        }
        CoreStatus {
            role: self.role,
            committed: raft.raft_log.committed,
            applied: self.applied,
            last: raft.raft_log.last_index(),
            last_term: self.node.store().term_at(self.node.store().last()).unwrap_or(0),
            proved_term: self.proved_term,
            transferee: raft.lead_transferee,
            peers,
            voters: self.configuration.voters.clone(),
            learners: self.configuration.learners.clone(),
            quarantine: self.quarantine,
            frames_dropped_count: self.frames_dropped_count,
        }
    }

    /// Who this is.
    pub fn member(&self) -> u64 {
        self.options.member
    }

    /// Nothing more will come in: the ids of everything that is open.
    pub fn give_up(&mut self) -> Vec<u64> {
        let (mut ids, unknown) = self.proposals.take_all();
        ids.extend(unknown);
        ids
    }

    /// Commands taken over and not decided.
    pub fn open_proposals_count(&self) -> usize {
        self.proposals.open_count()
    }

    /// The election timeout that this member's leader goes by, in milliseconds, if another one leads and has said it.
    pub fn leader_election_ms(&self) -> Option<u16> {
        Some(self.leader_election_ms).filter(|ms| *ms != 0 && !self.role.is_leader())
    }

    /// This member goes by this election timeout, in milliseconds: its ticks come accordingly.
    pub fn set_election_ms(&mut self, ms: u16) {
        self.election_ms = ms;
    }

    /// Term and vote as last given to the log, for checkers of simulations.
    pub fn written_hard_state(&self) -> &HardState {
        &self.written
    }

    // ---- time

    /// One tick. Returns true when forwards are to be sent again.
    fn tick(&mut self, write_age_us: u64, out: &mut Vec<Output>) -> bool {
        self.tick += 1;
        self.write_age_us = write_age_us;
        let (never, unknown) = self.proposals.expire(self.now_us);
        reject(never, Refusal::NoLeader, out);
        reject(unknown, Refusal::Unknown, out);
        if let Some((tokens, why)) = self.reads.expire(self.now_us, self.role.leader != 0) {
            out.push(Output::ReadFailed { tokens, why });
        }
        if self.is_disk_hung() {
            self.give_up_for_others(out);
        }
        let is_slow = self.is_disk_slow();
        let should_not_lead = is_slow || !self.has_room;
        if self.role.is_leader() && should_not_lead {
            let second_us = 1_000_000 / self.options.tick_us.max(1);
            let target = self.watchdog.target(
                self.tick,
                &self.healthy_others(),
                self.configuration.voters.len(),
                self.options.election_ticks as u64,
                second_us,
            );
            if let Some(target) = target {
                self.transfer(target, out);
            }
        } else if !should_not_lead {
            self.watchdog.recovered();
        }
        // A follower whose disk hangs cannot make its vote durable: it does not campaign. Rule 15: neither does a lone voter
        // whose log is not durable, which the library would take for a bug.
        let is_lone = self.configuration.voters == [self.options.member];
        let has_writes = self.outstanding.iter().any(|outstanding| outstanding.persist.is_some());
        if is_lone && !self.role.is_leader() && !has_writes {
            // Nobody else could win.
            let _ = self.node.campaign();
            self.settle(out);
        } else if self.role.is_leader() || !(is_slow || is_lone && has_writes) {
            self.node.tick();
            self.settle(out);
        }
        self.campaign_in_turn(out);
        self.proposals.is_late(self.tick, self.again_ticks())
    }

    /// Nothing that a client waits for here can come: what is not durable here is not applied here. Somebody else leads, so another member can
    /// answer; of a group whose leader this is, or that has none, nobody could do better.
    fn is_disk_hung(&self) -> bool {
        let is_led_by_another = self.role.leader != 0 && self.role.leader != self.options.member;
        is_led_by_another && self.write_age_us >= HUNG_STALLS * self.options.stall_us
    }

    /// Clients hear at once that this member cannot, instead of waiting for their time-out.
    fn give_up_for_others(&mut self, out: &mut Vec<Output>) {
        let (never, unknown) = self.proposals.take_all();
        reject(never, Refusal::DiskHangs, out);
        reject(unknown, Refusal::Unknown, out);
        let tokens = self.reads.take_all();
        if !tokens.is_empty() {
            out.push(Output::ReadFailed { tokens, why: Refusal::DiskHangs });
        }
    }

    fn is_disk_slow(&self) -> bool {
        self.write_age_us >= self.options.stall_us
    }

    /// (last index known to be there, id) of the other voters whose disks are well, as far as was heard lately.
    fn healthy_others(&self) -> Vec<(u64, u64)> {
        let progress = |id: u64| self.node.raft.prs().get(id).map_or(0, |progress| progress.matched);
        let healthy_ms = u32::try_from(self.options.stall_us / 2_000).unwrap_or(u32::MAX);
        let is_healthy = |id: u64| {
            self.peers.get(&id).is_some_and(|peer| {
                peer.disk_ms <= healthy_ms
                    && self.tick - peer.heard_tick <= self.options.election_ticks as u64
            })
        };
        let others = self.configuration.voters.iter().copied().filter(|id| *id != self.options.member);
        others.filter(|id| is_healthy(*id)).map(|id| (progress(id), id)).collect()
    }

    /// What clients write has room here, or will have where leadership goes: a leader with a full disk hands over (R20), and what it was given goes with
    /// that. Only where nobody is better off it is refused.
    fn takes_ordinary(&self) -> bool {
        self.has_room
            || !self.role.is_leader()
            || self.healthy_others().len() > self.configuration.voters.len() / 2
    }

    /// So long nothing is said twice.
    fn again_ticks(&self) -> u64 {
        2 * self.options.heartbeat_ticks as u64
    }

    // ---- frames

    fn send(&self, to: u64, body: Body, out: &mut Vec<Output>) {
        // One without room is as little of a help as one that hangs.
        let trouble_us =
            if self.has_room { self.write_age_us } else { self.write_age_us.max(self.options.stall_us) };
        let disk_ms = u32::try_from(trouble_us / 1000).unwrap_or(u32::MAX);
        let (from, election_ms) = (self.options.member, self.election_ms);
        out.push(Output::Send(Frame { from, to, disk_ms, election_ms, body }));
    }

    fn frame(&mut self, frame: Frame, out: &mut Vec<Output>) {
        let Frame { from, to, disk_ms, election_ms, body } = frame;
        if to != self.options.member || from == self.options.member || from == 0 {
            self.frames_dropped_count += 1;
            return;
        }
        let tick = self.tick;
        if self.absence.is_some_and(|absence| absence.is_deaf_to(from, tick)) {
            self.frames_dropped_count += 1;
            return;
        }
        // Members only: what strangers say must not grow this map.
        if self.node.raft.prs().get(from).is_some() {
            let peer = self.peers.entry(from).or_default();
            (peer.disk_ms, peer.heard_tick) = (disk_ms, tick);
        }
        if from == self.role.leader && election_ms != 0 {
            self.leader_election_ms = election_ms;
        }
        match body {
            Body::Raft(message) => self.message(from, *message, out),
            Body::Forward { term, boot, number, proposals } => {
                self.forwarded(from, term, boot, number, proposals, out);
            }
            Body::ForwardTaken { term, boot, number } => self.proposals.confirmed(from, term, boot, number),
            Body::ForwardRefused { term, boot, number } => self.proposals.refused(from, term, boot, number),
            Body::ProposalsRejected { term, reason, mut ids } => {
                let is_late_taken = self.options.planted.has(PlantedBug::TakeLateRefusals);
                ids.retain(|id| match is_late_taken {
                    true => self.proposals.reject_anywhere(*id),
                    false => self.proposals.reject(*id, term),
                });
                reject(ids, Refusal::from_number(reason), out);
            }
            Body::ReadRequest { boot, number } => {
                // Who does not lead says nothing: the asker asks again, and knows the leader soon.
                if self.role.is_leader() {
                    self.reads.ask_for(from, boot, number);
                }
            }
            Body::ReadAnswer { boot, number, index } => self.reads.answered(boot, number, index),
            // The servers' business, which does not come by here.
            Body::Question { .. } | Body::Answer { .. } => self.frames_dropped_count += 1,
        }
    }

    fn message(&mut self, from: u64, message: Message, out: &mut Vec<Output>) {
        let bytes_behind = |core: &Self| core.node.store().bytes_behind(core.applied);
        let situation = Situation {
            member: self.options.member,
            is_disk_slow: self.is_disk_slow(),
            is_full: message.msg_type == MessageType::MsgAppend as i32
                && !message.entries.is_empty()
                && self.node.store().last() > self.applied
                && bytes_behind(self) > UNAPPLIED_BYTES_MAX,
        };
        if message.from != from {
            self.frames_dropped_count += 1;
            return;
        }
        match guards::judge(&self.node, &situation, &message) {
            Verdict::Step => {
                // Rule 12: the library keeps the highest commit index that a peer ever named; a crash may have taken back what was not durable
                // there, and a probe behind it would be rejected again and again.
                if message.msg_type == MessageType::MsgHeartbeatResponse as i32
                    && message.term == self.node.raft.term
                    && let Some(progress) = self.node.raft.mut_prs().get_mut(from)
                {
                    progress.committed_index = message.commit;
                }
                // Its own refusals (not a member, dropped) leave nothing to do.
                let _ = self.node.step(message);
                self.settle(out);
            }
            Verdict::Drop => self.frames_dropped_count += 1,
            Verdict::Quarantine(quarantine) => self.enter_quarantine(quarantine, out),
        }
    }

    /// Another member's proposals. R14: taken in the term they are addressed to and in no other, in order, each once.
    fn forwarded(
        &mut self,
        from: u64,
        term: u64,
        boot: u64,
        number: u64,
        proposals: Vec<Proposal>,
        out: &mut Vec<Output>,
    ) {
        let planted = self.options.planted;
        let leads =
            self.role.is_leader() && (term == self.role.term || planted.has(PlantedBug::TakeStaleForwards));
        if !leads {
            if let Some(number) = self.proposals.taken(term, from, boot) {
                self.send(from, Body::ForwardRefused { term, boot, number }, out);
            }
            return;
        }
        let is_next = self.proposals.is_next(from, boot, number)
            || planted.has(PlantedBug::TakeForwardsTwice)
            || planted.has(PlantedBug::TakeStaleForwards);
        // What cannot be taken now is not confirmed, and comes again.
        let has_room = self.has_room;
        let is_soon_elsewhere = !has_room && self.takes_ordinary();
        if is_next && self.node.raft.lead_transferee.is_none() && !is_soon_elsewhere {
            let (taken, refused): (Vec<_>, Vec<_>) =
                proposals.into_iter().partition(|proposal| has_room || proposal.is_privileged);
            if taken.is_empty() || self.append(&taken) {
                self.proposals.took(from, boot, number);
                for ids in refused.chunks(REJECTED_IDS_MAX) {
                    let ids = ids.iter().map(|proposal| proposal.id).collect();
                    let reason = Refusal::NoSpace.number();
                    self.send(from, Body::ProposalsRejected { term, reason, ids }, out);
                }
                self.settle(out);
            }
        }
        if let Some(number) = self.proposals.taken(term, from, boot) {
            self.send(from, Body::ForwardTaken { term, boot, number }, out);
        }
    }

    // ---- proposals

    fn take_over(&mut self, proposals: Vec<Proposal>, out: &mut Vec<Output>) {
        if self.is_disk_hung() {
            let ids = proposals.iter().map(|proposal| proposal.id).collect();
            return reject(ids, Refusal::DiskHangs, out);
        }
        let deadline_us = self.now_us + self.options.request_timeout_us;
        let mut refused = Vec::new();
        for proposal in proposals {
            let id = proposal.id;
            if !self.proposals.add(proposal, deadline_us) {
                refused.push(id);
            }
        }
        reject(refused, Refusal::TooMany, out);
    }

    /// Appends one entry with these commands, as leader. False if the library refuses, and then nothing has happened.
    fn append(&mut self, batch: &[Proposal]) -> bool {
        let bytes: usize = batch.iter().map(|proposal| proposal.command.len() + 4).sum();
        let mut body = Vec::with_capacity(1 + bytes);
        start_entry(&mut body);
        for proposal in batch {
            add_command(&mut body, &proposal.command);
        }
        let last = self.node.raft.raft_log.last_index();
        let is_taken = self.node.propose(Vec::new(), body).is_ok();
        let entry = self.node.raft.raft_log.last_index();
        assert!(!is_taken || entry == last + 1, "R14: a proposal is the next entry, {entry} follows {last}");
        is_taken
    }

    fn propose_change(&mut self, id: u64, change: &ConfChangeV2, context: &Bytes, out: &mut Vec<Output>) {
        let is_joint = !self.configuration.voters_outgoing.is_empty();
        if self.options.planted.has(PlantedBug::TwoChanges) {
            self.node.raft.pending_conf_index = 0;
        }
        let raft = &self.node.raft;
        // R8: the library answers Ok and appends an empty entry instead.
        let is_possible = self.role.is_leader()
            && !raft.has_pending_conf()
            && (!is_joint || change.leave_joint())
            && raft.lead_transferee.is_none();
        if !is_possible {
            return reject(vec![id], Refusal::ChangeRefused, out);
        }
        if self.node.propose_conf_change(context.to_vec(), change.clone()).is_err() {
            return reject(vec![id], Refusal::ChangeRefused, out);
        }
        let Some(entry) = self.node.raft.raft_log.unstable_entries().last() else {
            unreachable!("R8: what was proposed is not taken over by the log yet")
        };
        if entry.get_entry_type() != EntryType::EntryConfChangeV2 {
            reject(vec![id], Refusal::ChangeRefused, out);
        } else {
            out.push(Output::ChangeProposed { id, index: entry.index, term: entry.term });
            if self.options.planted.has(PlantedBug::ChangeUncommitted) {
                self.apply_change(change);
            }
        }
        self.settle(out);
    }

    fn transfer(&mut self, to: u64, out: &mut Vec<Output>) {
        if !self.role.is_leader() {
            return;
        }
        let prs = self.node.raft.prs();
        let others = self.configuration.voters.iter().copied().filter(|id| *id != self.options.member);
        let heard = |id: &u64| self.peers.get(id).map_or(0, |peer| peer.heard_tick);
        let best =
            || others.max_by_key(|id| (prs.get(*id).map_or(0, |progress| progress.matched), heard(id)));
        let Some(target) = (if to == 0 { best() } else { Some(to) }) else { return };
        if self.configuration.voters.contains(&target) && target != self.options.member {
            self.node.transfer_leader(target);
            self.settle(out);
        }
    }

    /// Gives what waits to whoever leads.
    fn pump(&mut self, again: bool, out: &mut Vec<Output>) {
        if self.quarantine.is_some() {
            return;
        }
        let leads_in = self.role.is_leader().then_some(self.role.term);
        reject(self.proposals.take_unleading(leads_in), Refusal::NotLeader, out);
        while self.role.is_leader()
            && self.node.raft.lead_transferee.is_none()
            && self.proposals.has_waiting()
        {
            if !self.has_room {
                if self.takes_ordinary() {
                    break;
                }
                let refused = self.proposals.take_ordinary();
                reject(refused, Refusal::NoSpace, out);
            }
            let batch = self.proposals.place(self.role.term, ENTRY_BYTES_MAX, ENTRY_COMMANDS_MAX);
            if batch.is_empty() {
                break;
            }
            if !self.append(&batch) {
                self.proposals.unplace(&batch);
                break;
            }
            self.settle(out);
        }
        if !self.role.is_leader() && self.role.leader != 0 && (again || self.proposals.has_waiting()) {
            let Role { term, leader, .. } = self.role;
            let boot = self.proposals.boot();
            for (number, proposals) in self.proposals.forwards(leader, term, self.tick, again) {
                self.send(leader, Body::Forward { term, boot, number, proposals }, out);
            }
        }
        self.pump_reads(out);
    }

    fn pump_reads(&mut self, out: &mut Vec<Output>) {
        let raft = &self.node.raft;
        if self.role.is_leader() {
            // Rule 3 (Q2).
            let can_ask = raft.commit_to_current_term() && raft.lead_transferee.is_none();
            if can_ask && self.reads.wants_round() {
                let planted = self.options.planted;
                let index = raft.raft_log.committed;
                let context = self.reads.begin_round(planted.has(PlantedBug::ReuseReadContext));
                if planted.has(PlantedBug::SkipReadRound) {
                    self.round_done(&context, index, out);
                } else {
                    self.node.read_index(context.to_vec());
                    self.settle(out);
                }
            }
        } else if self.role.leader != 0
            && let Some((boot, number)) =
                self.reads.next_question(self.role.leader, self.tick, self.again_ticks())
        {
            self.send(self.role.leader, Body::ReadRequest { boot, number }, out);
        }
    }

    fn round_done(&mut self, context: &[u8], index: u64, out: &mut Vec<Output>) {
        for (member, boot, number, index) in self.reads.round_done(context, index) {
            self.send(member, Body::ReadAnswer { boot, number, index }, out);
        }
    }

    fn answer_reads(&mut self, out: &mut Vec<Output>) {
        let applied =
            if self.options.planted.has(PlantedBug::ReadBeforeApplied) { u64::MAX } else { self.applied };
        for (index, tokens) in self.reads.ready(applied) {
            out.push(Output::ReadAt { tokens, index });
        }
    }

    /// Rule 12. The library would send a snapshot to a peer whose next entry is in no file any more, although the peer got the state by another way
    /// since: its acknowledgements of heartbeats say what is committed there, and everything committed is the same everywhere. The next
    /// append then probes behind that; what it matches is still for the peer to say, when it is durable there.
    fn skip_to_committed(&mut self, id: u64, first: u64) -> bool {
        let last = self.node.raft.raft_log.last_index();
        let Some(progress) = self.node.raft.mut_prs().get_mut(id) else { return true };
        let next = progress.committed_index + 1;
        if next < first || next <= progress.next_idx || next > last + 1 {
            return false;
        }
        progress.become_probe();
        progress.next_idx = next;
        if self.options.planted.has(PlantedBug::SkipIsMatched) {
            progress.matched = progress.matched.max(next - 1);
        }
        if let Some(peer) = self.peers.get_mut(&id) {
            peer.needs_snapshot = false;
        }
        true
    }

    fn ask_for_entries(&mut self, out: &mut Vec<Output>) {
        let store = self.node.mut_store();
        for (low, high) in store.take_wanted() {
            out.push(Output::Load { low, high });
        }
        let first = store.first();
        for id in store.take_snapshots_needed() {
            if self.skip_to_committed(id, first) {
                continue;
            }
            let peer = self.peers.entry(id).or_default();
            if !std::mem::replace(&mut peer.needs_snapshot, true) {
                out.push(Output::NeedsSnapshot { id });
            }
        }
    }
}

fn reject(ids: Vec<u64>, why: Refusal, out: &mut Vec<Output>) {
    if !ids.is_empty() {
        out.push(Output::Rejected { ids, why });
    }
}
