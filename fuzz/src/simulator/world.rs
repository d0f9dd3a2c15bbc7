//! A cluster in one thread: members, disks, clocks, network and clients, all from one seed.
//!
//! **Contract.** Events are taken in the order of their time. A member gets a *turn* when something came for it or its own time has come: rounds of its log's
//! thread until its clock says now, a round of the thread that applies or not, and the tasks of its server. Whatever it does while it reads and writes beside the
//! log (opening, a checkpoint, a state that comes) takes time of its disk, and until then it gets no turn.
//!
//! **Does not know** what is right: that is the oracle's.
use super::bug::{Bug, ShellBug};
use super::calls::{Answer, Call, Done, Purpose};
use super::clients::Client;
use super::clock::{Clock, DRIFT_PPM_MAX, RATE_PPM};
use super::network::Network;
use super::observed::{Report, mix};
use super::oracle::{Begun, Oracle};
use super::plan::Plan;
use super::running::{Running, new_member};
use super::stats::Stats;
use super::streams::{self, StreamClient};
use super::trace::Trace;
use super::transfers::Fetch;
use super::watchers::Watcher;
use bytes::Bytes;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};

use sternpost_engine::base::rng::Rng;
use sternpost_engine::io::Io;
use sternpost_engine::io::sim_disk::{CrashPolicy, SimDisk};
use sternpost_replication::Genesis;
use sternpost_replication::raft::RaftEvent;
use sternpost_server::apply::Applied;
use sternpost_server::apply::records::{FEATURE_LEVEL, GenesisState};
use sternpost_server::wire::status::ApiError;

/// The cluster.
const CLUSTER: u64 = 7;
/// How long everything may take to be well again.
const HEALING_US: u64 = 15_000_000;
/// A client waits so long for an answer.
const CALL_US_MAX: u64 = 4_000_000;
/// So long at most passes between something to apply and a round of the thread that applies.
const APPLY_PAUSE_US: u64 = 400;

/// A member has a turn at every tick of its clock; one that has none for so long stood still, or its clock has jumped.
const STOOD_STILL_US: u64 = 25_000;

/// What happens.
#[derive(Debug)]
pub(super) enum Event {
    /// A member's turn, if this is still the next one.
    Turn { member: usize },
    /// A frame arrives.
    Deliver { from: usize, to: usize, frame: Bytes },
    /// A client does something.
    Client { client: usize },
    /// A client of the watch hub does something.
    Stream { client: usize },
    /// A call's time is over.
    GiveUp { call: u64 },
    /// Something goes wrong.
    Fault,
    /// A member starts, if this is still its next start.
    Start { member: usize, start: u64 },
    /// A device has room again.
    Room { member: usize },
    /// Who needs a state, and who is to stop?
    Look,
    /// A state is on its way to this member.
    Fetch { member: usize },
    /// Somebody wants to change the members.
    Change,
    /// A member whose disk has rotted is to be removed.
    Replace,
    /// A member finds nobody where this one was.
    Absent { member: usize, of: usize },
    /// A leader that lives seems gone.
    Alarm,
    /// Members see what their network is like.
    Pace,
}

/// One member, running or not.
pub(super) struct Member {
    pub(super) id: u64,
    pub(super) genesis: Genesis,
    pub(super) disk: SimDisk,
    pub(super) running: Option<Running>,
    pub(super) clock: Clock,
    rate_ppm: u64,
    /// Of the run that it is in, or that comes next: differs from every other start of any member.
    pub(super) start: u64,
    pub(super) frozen_until_us: u64,
    next_turn_us: u64,
    /// It has nothing, and needs a state before it can start.
    pub(super) is_empty: bool,
    /// It will never run again.
    pub(super) is_gone: bool,
}

impl Member {
    pub(super) fn new(id: u64, genesis: Genesis, disk: SimDisk, clock: Clock, rate_ppm: u64) -> Self {
        Self {
            id,
            genesis,
            disk,
            running: None,
            clock,
            rate_ppm,
            start: 0,
            frozen_until_us: 0,
            next_turn_us: u64::MAX,
            is_empty: false,
            is_gone: false,
        }
    }
}

/// How fast somebody's clock runs.
pub(super) fn draw_rate_ppm(rng: &mut Rng) -> u64 {
    RATE_PPM - DRIFT_PPM_MAX + rng.below(2 * DRIFT_PPM_MAX + 1)
}

/// A call that is not answered.
pub(super) struct OpenCall {
    pub(super) client: usize,
    member: usize,
    call: Call,
    begun: Begun,
    /// Of the command that it became.
    id: Option<u64>,
}

/// One run.
pub(super) struct World {
    pub(super) plan: Plan,
    pub(super) rng: Rng,
    /// Of what quick elections bring.
    pub(super) alarms: Rng,
    pub(super) now_us: u64,
    events: BTreeMap<(u64, u64), Event>,
    events_count: u64,
    pub(super) members: Vec<Member>,
    pub(super) network: Network,
    pub(super) clients: Vec<Client>,
    pub(super) watchers: Vec<Watcher>,
    pub(super) streams: Vec<StreamClient>,
    pub(super) oracle: Oracle,
    /// By who receives.
    pub(super) fetches: BTreeMap<usize, Fetch>,
    /// Ids are never used twice.
    pub(super) next_member: u64,
    calls: BTreeMap<u64, OpenCall>,
    pub(super) calls_count: u64,
    starts_count: u64,
    pub(super) is_healed: bool,
    digest: u64,
    pub(super) stats: Stats,
    /// What happened last, if somebody wants to read it.
    pub(super) trace: Trace,
}

impl World {
    /// A new cluster, nobody running yet.
    pub(super) fn new(plan: Plan, trace: Trace) -> Self {
        let mut rng = Rng::new(plan.seed);
        let voters: Vec<u64> = (1..=plan.members_count as u64).map(|number| number * 11).collect();
        let members = voters.iter().map(|id| new_member(*id, false)).collect();
        let state =
            GenesisState { cluster_id: CLUSTER, feature_level: FEATURE_LEVEL, members, restored: None }
                .encode();
        let members = voters
            .iter()
            .map(|id| {
                let genesis = Genesis {
                    cluster_id: CLUSTER,
                    member_id: *id,
                    voters: voters.clone(),
                    state: state.clone(),
                };
                let disk = SimDisk::new(rng.next_u64());
                disk.set_latency(plan.latency);
                let rate_ppm = draw_rate_ppm(&mut rng);
                Member::new(*id, genesis, disk, Clock::new(0, rate_ppm), rate_ppm)
            })
            .collect::<Vec<_>>();
        let clients = (0..plan.clients_count).map(|number| Client::new(number, members.len())).collect();
        let watchers = (0..2).map(|number| Watcher::new(number % members.len())).collect();
        Self {
            alarms: Rng::new(plan.seed ^ 0xa1a4),
            plan,
            rng,
            now_us: 0,
            events: BTreeMap::new(),
            events_count: 0,
            members,
            network: Network::default(),
            clients,
            watchers,
            streams: (0..streams::CLIENTS).map(|_| StreamClient::new()).collect(),
            oracle: Oracle::new(&voters),
            fetches: BTreeMap::new(),
            next_member: (voters.len() as u64 + 1) * 11,
            calls: BTreeMap::new(),
            calls_count: 0,
            starts_count: 0,
            is_healed: false,
            digest: 0,
            stats: Stats::default(),
            trace,
        }
    }

    pub(super) fn below(&mut self, bound: u64) -> u64 {
        self.rng.below(bound)
    }

    pub(super) fn at(&mut self, at_us: u64, event: Event) {
        self.events_count += 1;
        self.events.insert((at_us.max(self.now_us), self.events_count), event);
    }

    pub(super) fn after(&mut self, delay_us: u64, event: Event) {
        self.at(self.now_us + delay_us, event);
    }

    /// Runs to the end: the digest of everything that happened. The error says what was violated.
    pub(super) fn run(mut self) -> Result<(u64, Stats), String> {
        for member in 0..self.members.len() {
            self.starts_in(member, 0);
        }
        for client in 0..self.clients.len() {
            let delay_us = 400_000 + self.below(200_000);
            self.after(delay_us, Event::Client { client });
        }
        for client in 0..self.streams.len() {
            self.after(300_000, Event::Stream { client });
        }
        self.after(500_000, Event::Fault);
        self.after(700_000, Event::Look);
        if self.plan.faults.changes > 0 {
            self.after(1_000_000, Event::Change);
        }
        if self.plan.is_adaptive {
            self.after(1_000_000, Event::Pace);
        }
        if self.plan.faults.alarms > 0 {
            self.after(1_000_000, Event::Alarm);
        }
        while self.now_us < self.plan.length.chaos_us {
            self.step()?;
        }
        self.heal();
        let healed_us = self.now_us;
        while !self.is_well() {
            if self.now_us > healed_us + HEALING_US {
                return Err(format!("liveness: {} s later: {}", HEALING_US / 1_000_000, self.describe()));
            }
            self.step()?;
        }
        self.check_end()?;
        let counts = self.oracle.counts;
        let stats = Stats {
            entries: counts.entries,
            leaders: counts.leaders,
            writes: counts.writes_told,
            reads: counts.reads_told,
            watched: counts.events,
            states: counts.states,
            compactions: counts.compactions,
            leases_expired: counts.leases_expired,
            renewals: counts.renewals,
            member_changes: counts.member_changes,
            ..self.stats
        };
        Ok((self.digest, stats))
    }

    fn step(&mut self) -> Result<(), String> {
        let Some(((at_us, number), event)) = self.events.pop_first() else {
            return Err("nothing happens any more".into());
        };
        self.now_us = at_us;
        self.stats.events += 1;
        self.digest = mix(self.digest, at_us ^ number << 40);
        match event {
            Event::Turn { member } => {
                let here = &mut self.members[member];
                if here.next_turn_us != at_us {
                    return Ok(());
                }
                here.next_turn_us = u64::MAX;
                if here.frozen_until_us > at_us {
                    let until_us = here.frozen_until_us;
                    self.turn_at(member, until_us);
                    return Ok(());
                }
                self.turn(member)
            }
            Event::Deliver { from, to, frame } => {
                let id = self.members[from].id;
                let Some(running) = &self.members[to].running else { return Ok(()) };
                running
                    .node
                    .raft()
                    .inbox()
                    .frame(id, frame)
                    .map_err(|error| format!("a frame of member {id} is refused: {error:?}"))?;
                let delay_us = self.below(30);
                self.turn_at(to, self.now_us + delay_us);
                Ok(())
            }
            Event::Client { client } => {
                self.client(client);
                Ok(())
            }
            Event::Stream { client } => self.stream_client(client),
            Event::GiveUp { call } => {
                if let Some(open) = self.calls.remove(&call) {
                    self.stats.calls_given_up += 1;
                    if let Some(running) = &mut self.members[open.member].running {
                        running.give_up(call);
                    }
                    self.heard(open.client, &open.call, None);
                }
                Ok(())
            }
            Event::Fault => {
                self.fault();
                Ok(())
            }
            Event::Start { member, start } => {
                if self.members[member].start == start && self.members[member].running.is_none() {
                    self.start(member)?;
                }
                Ok(())
            }
            Event::Room { member } => {
                self.members[member].disk.set_capacity(None);
                Ok(())
            }
            Event::Look => self.look(),
            Event::Fetch { member } => self.fetch(member),
            Event::Change => {
                self.wants_change();
                Ok(())
            }
            Event::Replace => {
                self.replace_rotten();
                Ok(())
            }
            Event::Absent { member, of } => {
                let id = self.members[of].id;
                if let Some(running) = &self.members[member].running {
                    self.stats.absences += 1;
                    running.node.raft().inbox().absent(id);
                    self.turn_at(member, self.now_us);
                }
                Ok(())
            }
            Event::Alarm => {
                self.alarm();
                Ok(())
            }
            Event::Pace => {
                self.see_round_trips();
                Ok(())
            }
        }
    }

    // --- Members

    /// A member that does not run starts in a while.
    pub(super) fn starts_in(&mut self, member: usize, delay_us: u64) {
        self.starts_count += 1;
        let start = self.starts_count;
        self.members[member].start = start;
        self.after(delay_us, Event::Start { member, start });
    }

    fn start(&mut self, member: usize) -> Result<(), String> {
        let here = &mut self.members[member];
        if here.is_gone || here.is_empty {
            return Ok(());
        }
        here.clock = Clock::new(self.now_us, here.rate_ppm);
        here.frozen_until_us = 0;
        if Bug::is(self.plan.bug, ShellBug::ForgetsDisk) && here.start.is_multiple_of(5) {
            here.disk = SimDisk::new(here.start);
        }
        self.stats.starts += 1;
        if self.plan.faults.crashes > 0 && !self.is_healed && self.rng.chance(1, 10) {
            // The power fails while it starts.
            here.disk.stop_after(1 + self.rng.below(20));
        }
        let (now_us, id, start) = (self.now_us, here.id, here.start);
        self.trace.note(|| format!("{now_us} member {id} starts, start {start}"));
        let open = AssertUnwindSafe(|| Running::open(&here.disk, &self.plan, &here.genesis, here.start));
        let opened = match catch_unwind(open) {
            Ok(opened) => opened,
            Err(panic) => return self.aborted(member, &*panic),
        };
        match opened {
            Ok(running) => {
                here.running = Some(running);
                self.reports(member)?;
                self.turn_at(member, self.now_us);
                self.meet(member);
                Ok(())
            }
            Err(_) if here.disk.is_stopped() => {
                // The power failed meanwhile.
                self.stats.starts_cut += 1;
                self.power_off(member);
                Ok(())
            }
            Err(error) => self.did_not_open(member, &error),
        }
    }

    /// Connections to and from a member stand.
    fn meet(&mut self, member: usize) {
        let ids: Vec<(usize, u64)> =
            self.members.iter().enumerate().map(|(number, other)| (number, other.id)).collect();
        for (other, id) in ids {
            if other == member {
                continue;
            }
            let own = self.members[member].id;
            for (at, whose) in [(member, id), (other, own)] {
                if let Some(running) = &self.members[at].running {
                    let inbox = running.node.raft().inbox();
                    inbox.unreachable(whose);
                    inbox.connected(whose);
                }
            }
        }
    }

    /// All connections are made anew.
    pub(super) fn meet_all(&mut self) {
        for member in 0..self.members.len() {
            self.meet(member);
        }
    }

    /// A member gets a turn at `at_us`, or before.
    pub(super) fn turn_at(&mut self, member: usize, at_us: u64) {
        let at_us = at_us.max(self.now_us);
        let here = &mut self.members[member];
        // Not before its disk has come to an end with what it does.
        let at_us = at_us.max(here.clock.world_us(here.disk.now_us()));
        if at_us < here.next_turn_us {
            here.next_turn_us = at_us;
            self.at(at_us, Event::Turn { member });
        }
    }

    fn turn(&mut self, member: usize) -> Result<(), String> {
        let here = &mut self.members[member];
        let local_us = here.clock.local_us(self.now_us);
        let Some(running) = &mut here.running else { return Ok(()) };
        if local_us.saturating_sub(here.disk.now_us()) > STOOD_STILL_US {
            running.node.stand_still_until(local_us);
        }
        let has_applied = !self.rng.chance(1, 4);
        let rounds = AssertUnwindSafe(|| {
            running.node.run_until(local_us);
            !has_applied || running.node.apply()
        });
        let is_more = match catch_unwind(rounds) {
            Ok(is_more) => is_more,
            Err(panic) => return self.aborted(member, &*panic),
        };
        running.timers(local_us);
        self.reports(member)?;
        self.tasks(member)?;
        let here = &mut self.members[member];
        let Some(running) = &mut here.running else { return Ok(()) };
        let is_alive = running.node.run_until(local_us);
        let frames = running.outbox.take();
        let next_us = here.clock.world_us(running.node.next_us());
        let is_more = is_more || running.has_woken();
        if here.disk.is_stopped() {
            // What it has said since is said by nobody.
            self.power_off(member);
            return Ok(());
        }
        self.reports(member)?;
        let said_us = self.members[member].clock.world_us(self.members[member].disk.now_us());
        for (to, frame) in frames {
            self.carry(member, to, said_us, frame);
        }
        if !is_alive {
            return self.failed(member);
        }
        self.watch(member)?;
        let next_us = if is_more { self.now_us + 1 + self.below(APPLY_PAUSE_US) } else { next_us };
        self.turn_at(member, next_us.max(self.now_us + 1));
        Ok(())
    }

    fn carry(&mut self, from: usize, to: u64, said_us: u64, frame: Bytes) {
        self.digest = mix(self.digest, to ^ frame.len() as u64);
        let Some(to) = self.members.iter().position(|member| member.id == to) else { return };
        for delay_us in self.network.delays_us(&self.plan.faults, (from, to), &mut self.rng) {
            let at_us = said_us.max(self.now_us) + delay_us;
            self.at(at_us, Event::Deliver { from, to, frame: frame.clone() });
        }
    }

    /// Holds what a member did against the oracle.
    pub(super) fn reports(&mut self, member: usize) -> Result<(), String> {
        let here = &self.members[member];
        let (id, start) = (here.id, here.start);
        let Some(running) = &here.running else { return Ok(()) };
        let voters = running.node.raft().core_status().voters;
        let may_not_read = self.bears_disk_faults() || here.disk.is_stopped();
        let now_us = self.now_us;
        for report in running.reports.take() {
            self.trace.note(|| format!("{now_us} member {id} of {voters:?}: {report:?}"));
            match report {
                Report::Entry { index, term, commands } => {
                    self.digest = mix(self.digest, index ^ term << 40);
                    self.oracle.entry(id, (index, term), &commands, self.now_us)?;
                }
                Report::Change { index, term, command } => {
                    self.oracle.change(id, (index, term), &command)?;
                }
                Report::ChangeMade { index, is_made } => {
                    if let Some(new) = self.oracle.change_made(id, index, is_made)? {
                        self.welcome(new);
                    }
                }
                Report::Result { applied: Applied { result: Err(ApiError::Unanswered(_)), .. }, .. }
                    if may_not_read => {}
                Report::Result { id: command, applied } => self.oracle.result(id, command, &applied)?,
                Report::GivenUp { id, rejection } => self.oracle.given_up(id, &rejection)?,
                Report::State { index, state } => {
                    self.digest = mix(self.digest, state.records);
                    self.oracle.state(id, index, state)?;
                }
                Report::Sum { index, sum } => {
                    self.digest = mix(self.digest, sum.changes ^ sum.system);
                    self.oracle.sum(id, index, sum)?;
                }
                Report::Raft(RaftEvent::Role(role)) => {
                    self.digest = mix(self.digest, role.term ^ role.leader << 32);
                    // A lone voter leads by its own vote, which may not be durable yet; it says nothing before it is (D1).
                    if role.is_leader() && voters != [id] {
                        self.oracle.leads(role.term, id, start)?;
                    }
                }
                Report::Raft(RaftEvent::Quarantined(why)) => {
                    return Err(format!("member {id} takes no part any more: {why}"));
                }
                Report::Raft(RaftEvent::ElectionTimeout { .. }) => self.stats.timeouts_changed += 1,
                Report::Raft(RaftEvent::LogUnreadable { .. }) if may_not_read => {
                    self.stats.logs_unreadable += 1
                }
                Report::Raft(RaftEvent::LogUnreadable { index, error }) => {
                    return Err(format!("member {id} cannot read entry {index} of its log: {error}"));
                }
                Report::Raft(_) | Report::Stopped => {}
            }
        }
        Ok(())
    }

    /// Goes on with what its server does.
    fn tasks(&mut self, member: usize) -> Result<(), String> {
        // A task may wake another one; what is left is for the next turn.
        for _ in 0..4 {
            let Some(running) = &mut self.members[member].running else { return Ok(()) };
            if !running.has_woken() {
                break;
            }
            let polled = running.poll();
            let is_stopped = self.members[member].disk.is_stopped();
            for (purpose, id, done) in polled {
                let Purpose::Call(call) = purpose else { continue };
                let Some(open) = self.calls.get_mut(&call) else { continue };
                open.id = open.id.or(id);
                // Nobody hears a member whose power has failed.
                let Some(Done::Answer(answer)) = done.filter(|_| !is_stopped) else { continue };
                if let Some(open) = self.calls.remove(&call) {
                    self.answered(&open, answer)?;
                }
            }
        }
        Ok(())
    }

    fn answered(&mut self, open: &OpenCall, answer: Result<Answer, ApiError>) -> Result<(), String> {
        let (now_us, id) = (self.now_us, self.members[open.member].id);
        self.trace.note(|| format!("{now_us} member {id} answers {:?}: {answer:?}", open.call));
        self.digest = mix(self.digest, open.client as u64 ^ u64::from(answer.is_ok()) << 32);
        match &answer {
            Ok(answer) => self.oracle.answered(&open.call, open.id, open.begun, answer)?,
            Err(ApiError::Unreadable(what) | ApiError::Unanswered(what)) if !self.bears_disk_faults() => {
                return Err(format!("something cannot be read: {what}"));
            }
            Err(_) => {}
        }
        self.heard(open.client, &open.call, Some(answer));
        Ok(())
    }

    /// A client asks a member.
    pub(super) fn ask(&mut self, client: usize, member: usize, call: Call) {
        self.calls_count += 1;
        self.stats.calls += 1;
        let number = self.calls_count;
        let begun = self.oracle.begins(self.now_us);
        let (now_us, id) = (self.now_us, self.members[member].id);
        self.trace.note(|| format!("{now_us} client {client} asks member {id}: {call:?}"));
        let Some(running) = &mut self.members[member].running else {
            return self.heard(client, &call, None);
        };
        running.call(number, call.clone());
        self.calls.insert(number, OpenCall { client, member, call, begun, id: None });
        self.after(CALL_US_MAX, Event::GiveUp { call: number });
        self.turn_at(member, self.now_us);
    }

    /// The process of a member is no more; who waits for it hears nothing.
    pub(super) fn down(&mut self, member: usize) {
        let (now_us, id) = (self.now_us, self.members[member].id);
        self.trace.note(|| format!("{now_us} member {id} ends"));
        let here = &mut self.members[member];
        if let Some(running) = here.running.take() {
            self.stats.checkpoints += running.node.checkpoint_stats().checkpoints_count;
        }
        here.frozen_until_us = 0;
        here.next_turn_us = u64::MAX;
        let gone = self.calls.extract_if(.., |_, open| open.member == member).collect::<Vec<_>>();
        for (_, open) in gone {
            self.heard(open.client, &open.call, None);
        }
    }

    /// The power fails, or has failed: what was not synced may be lost.
    pub(super) fn power_off(&mut self, member: usize) {
        self.stats.crashes += 1;
        let here = &mut self.members[member];
        let policies = here.disk.crash_policies();
        let policy = match self.rng.below(3) {
            0 if !policies.is_empty() => policies[self.rng.below(policies.len() as u64) as usize].clone(),
            _ => CrashPolicy::Random(self.rng.next_u64()),
        };
        let disk = here.disk.crash(&policy);
        self.ends(member, disk);
    }

    /// The process is killed: what was written is there, and not durable.
    pub(super) fn kill(&mut self, member: usize) {
        self.stats.kills += 1;
        let here = &mut self.members[member];
        let seed = self.rng.next_u64();
        let disk = here.disk.crash_process(seed);
        self.ends(member, disk);
        self.seems_gone(member, false);
    }

    /// The process ends when nothing of its disk is in flight that anybody waits for, and starts again at once.
    pub(super) fn kill_at_rest(&mut self, member: usize) {
        let seed = self.rng.next_u64();
        let disk = self.members[member].disk.crash_process(seed);
        self.down(member);
        self.members[member].disk = disk;
        let delay_us = 1_000 + self.below(20_000);
        self.starts_in(member, delay_us);
    }

    fn ends(&mut self, member: usize, disk: SimDisk) {
        self.down(member);
        self.members[member].disk = disk;
        let delay_us =
            if self.below(2) == 0 { 1_000 + self.below(50_000) } else { 50_000 + self.below(3_000_000) };
        let delay_us = if self.is_healed { 1_000 } else { delay_us };
        self.starts_in(member, delay_us);
    }

    // --- The end

    /// A leader, everybody holds the same, nobody waits, and the leases that nobody renews have ended.
    fn is_well(&self) -> bool {
        let running =
            || self.members.iter().filter(|member| !member.is_gone || self.oracle.is_member(member.id));
        self.calls.is_empty()
            && !self.oracle.has_leases()
            && running().all(|member| member.running.is_some())
            && running()
                .filter(|member| member.running.as_ref().is_some_and(|it| it.proved_term().is_some()))
                .count()
                == 1
            && running().all(|member| {
                member.running.as_ref().is_some_and(|it| it.store.applied().0 == self.oracle.last())
            })
            && self.watchers.iter().all(|watcher| watcher.next() > self.oracle.revisions().0)
            && self.streams_are_well()
    }

    fn check_end(&mut self) -> Result<(), String> {
        for member in 0..self.members.len() {
            let here = &mut self.members[member];
            let Some(running) = &mut here.running else { continue };
            self.oracle.holds(here.id, &running.store)?;
            self.stats.checkpoints += running.node.checkpoint_stats().checkpoints_count;
        }
        Ok(())
    }

    pub(super) fn describe(&self) -> String {
        let mut text = format!("{} calls open, {} applied", self.calls.len(), self.oracle.last());
        for member in &self.members {
            let status = member.running.as_ref().map(|running| {
                (running.store.applied(), running.node.raft().core_status(), running.tasks.len())
            });
            text += &format!("\n  member {} (gone: {}): {status:?}", member.id, member.is_gone);
        }
        for client in &self.streams {
            text += &format!("\n  a stream {}", client.describe());
        }
        text
    }
}
