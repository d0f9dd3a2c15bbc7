//! What goes wrong, and how all is made well again.
//!
//! **Bounds.** Each fault alone is one that members must bear; disks that lie (rot) are those of one member at most.
//!
//! **Does not know** what must hold all the same.
use super::bug::{Bug, ShellBug};
use super::calls::Call;
use super::words_of;
use super::world::{Event, Member, World};
use std::any::Any;
use sternpost_engine::Error;
use sternpost_engine::base::rng::Rng;
use sternpost_engine::io::Io;
use sternpost_engine::io::fault_plan::{Effect, Fault, OperationKind};
use sternpost_replication::Replicator;

/// Faults that [`World::fault`] chooses from.
const KINDS: u64 = 18;
/// Whose disk rots, where one does.
const ROTTEN: usize = 1;
/// Between two attempts to replace it.
const REPLACE_US: u64 = 500_000;

impl World {
    /// One fault, if the plan has it, or the links carry again.
    pub(super) fn fault(&mut self) {
        if self.is_healed {
            return;
        }
        let pause_us = 1 + self.below(2 * self.plan.fault_pause_us);
        self.after(pause_us, Event::Fault);
        let count = self.members.len();
        let (member, other) = (self.below(count as u64) as usize, self.below(count as u64) as usize);
        let faults = self.plan.faults;
        let (now_us, kind) = (self.now_us, self.below(KINDS));
        self.trace.note(|| format!("{now_us} fault {kind} at place {member}, {other}"));
        match kind {
            0 if faults.crashes > 0 => self.cut_power(member),
            1 if faults.kills > 0 && self.members[member].running.is_some() => self.kill(member),
            2 if faults.blackouts > 0 => (0..count).for_each(|member| self.cut_power(member)),
            3 if faults.partitions > 0 => self.network.cut_where(count, |one, _| one == member),
            4 if faults.one_way > 0 && member != other => self.network.cut_one_way(member, other),
            5 if faults.bridges > 0 => {
                self.network.cut_where(count, |one, two| one != member && two != member)
            }
            6 if faults.chains > 0 => self.network.cut_where(count, |one, two| one.abs_diff(two) > 1),
            7 if faults.freezes > 0 => {
                let frozen_us = 50_000 + self.below(2_000_000);
                self.members[member].frozen_until_us = self.now_us + frozen_us;
            }
            8 if faults.jumps > 0 => {
                let by_us = 10_000 + self.below(3_000_000);
                self.members[member].clock.jump(by_us);
                self.oracle.jumped(by_us);
                self.stats.jumps += 1;
                self.turn_at(member, self.now_us);
            }
            9 if faults.stalls > 0 => {
                let stall_us = 20_000 + self.below(1_500_000);
                let kind = [OperationKind::Write, OperationKind::Sync][self.below(2) as usize];
                self.members[member].disk.add_fault(Fault::nth(kind, 0, Effect::Stall(stall_us)));
            }
            10 if faults.disk_errors > 0 => {
                self.stats.disk_errors += 1;
                let (kind, effect) = match self.below(4) {
                    0 => (OperationKind::Write, Effect::Fail),
                    1 => (OperationKind::Sync, Effect::SyncFailsLosing),
                    2 => (OperationKind::Sync, Effect::SyncFailsKeeping),
                    _ => (OperationKind::Open, Effect::Fail),
                };
                let nth = self.below(4);
                self.members[member].disk.add_fault(Fault::nth(kind, nth, effect));
            }
            11 if faults.full_disks > 0 => {
                self.stats.full_disks += 1;
                let used_bytes = self.members[member].disk.allocated_bytes();
                self.members[member].disk.set_capacity(Some(used_bytes + self.rng.below(64 << 10)));
                let delay_us = 200_000 + self.below(3_000_000);
                self.after(delay_us, Event::Room { member });
            }
            12 if faults.transfers > 0 => {
                let to = if self.below(2) == 0 { 0 } else { self.members[other].id };
                if let Some(running) = &self.members[member].running {
                    // Who does not lead refuses.
                    let _ = running.node.raft().transfer_leader(to);
                }
            }
            13 if faults.rot > 0 => self.rot(),
            14 if faults.deposed > 0 => self.depose(),
            15..KINDS => {
                self.network.mend();
                self.meet_all();
            }
            _ => {}
        }
    }

    /// The process of `of` has ended, and its machine refuses whoever wants to connect; or it only looks like that. All others hear so in a while, or one.
    pub(super) fn seems_gone(&mut self, of: usize, to_one: bool) {
        if !self.plan.quick_elections {
            return;
        }
        let one = self.alarms.below(self.members.len() as u64) as usize;
        for member in (0..self.members.len()).filter(|member| *member != of) {
            let delay_us = 150 + self.alarms.below(3_000);
            if (!to_one || member == one) && !self.network.is_cut(of, member) {
                self.after(delay_us, Event::Absent { member, of });
            }
        }
    }

    /// A leader that lives seems gone, as when something between it and others resets connections.
    pub(super) fn alarm(&mut self) {
        if self.is_healed {
            return;
        }
        let pause_us = 1 + self.alarms.below(4 * self.plan.fault_pause_us);
        self.after(pause_us, Event::Alarm);
        let to_one = self.alarms.chance(1, 2);
        let leads = |member: &Member| member.running.as_ref().is_some_and(|it| it.proved_term().is_some());
        if let Some(leader) = self.members.iter().position(leads) {
            self.seems_gone(leader, to_one);
        }
    }

    /// Pings between members, of which the simulated network has none, took so long: little at some, much at others, and it changes.
    pub(super) fn see_round_trips(&mut self) {
        self.after(500_000, Event::Pace);
        let epoch = self.now_us / 5_000_000;
        for member in &self.members {
            let mut network = Rng::new(self.plan.seed ^ member.id.rotate_left(32) ^ epoch);
            let us = if network.chance(1, 2) { 500 } else { 5_000 + network.below(90_000) };
            if let Some(running) = &member.running {
                running.node.raft().inbox().round_trip(us);
            }
        }
    }

    /// The leader is cut off and stands still for longer than the others need for a new one.
    fn depose(&mut self) {
        let leads = |member: &Member| member.running.as_ref().is_some_and(|it| it.proved_term().is_some());
        let Some(leader) = self.members.iter().position(leads) else { return };
        self.network.cut_where(self.members.len(), |one, _| one == leader);
        let frozen_us = 300_000 + self.below(700_000);
        self.members[leader].frozen_until_us = self.now_us + frozen_us;
    }

    /// A bit of a segment at rest is wrong, at the one member whose disk rots.
    fn rot(&mut self) {
        let here = &self.members[ROTTEN];
        let files = here.disk.files();
        let segments: Vec<_> = files.iter().filter(|path| path.starts_with("seg")).collect();
        let Some(path) = segments.get(self.rng.below(segments.len() as u64) as usize) else { return };
        let bytes = here.disk.read_file(path).map_or(0, |content| content.len() as u64);
        if here.disk.flip_bit(path, self.rng.below(bytes), self.rng.below(8) as u8) {
            self.stats.bits_rotten += 1;
        }
    }

    /// True for a member whose disk is not what it wrote.
    pub(super) fn is_rotten(&self, member: usize) -> bool {
        member == ROTTEN && self.stats.bits_rotten > 0
    }

    /// A member whose disk has rotted is replaced: this is the half of it that removes it.
    pub(super) fn replace_rotten(&mut self) {
        let id = self.members[ROTTEN].id;
        if !self.oracle.is_member(id) {
            return;
        }
        self.after(REPLACE_US, Event::Replace);
        let leads = |member: &Member| member.running.as_ref().is_some_and(|it| it.proved_term().is_some());
        if let Some(leader) = self.members.iter().position(leads) {
            let operator = self.operator();
            self.ask(operator, leader, Call::Remove(id));
        }
    }

    /// The power of a member fails, now or some steps of its disk later.
    fn cut_power(&mut self, member: usize) {
        if self.members[member].running.is_none() {
            return;
        }
        if self.below(2) == 0 {
            return self.power_off(member);
        }
        let steps = 1 + self.below(200);
        self.members[member].disk.stop_after(steps);
    }

    /// True if disks may fail in this run.
    pub(super) fn bears_disk_faults(&self) -> bool {
        let faults = self.plan.faults;
        faults.disk_errors + faults.full_disks + faults.rot > 0
    }

    /// The log of a member has failed: its process ends, and is started again.
    pub(super) fn failed(&mut self, member: usize) -> Result<(), String> {
        let why = self.members[member].running.as_ref().and_then(|it| it.node.failed().map(str::to_owned));
        if !self.bears_disk_faults() {
            return Err(format!("the log of member {} fails: {why:?}", self.members[member].id));
        }
        self.kill(member);
        Ok(())
    }

    /// A broken invariant, or what a member cannot do without, has ended its process.
    pub(super) fn aborted(&mut self, member: usize, panic: &(dyn Any + Send)) -> Result<(), String> {
        let words = words_of(panic);
        // A5: it could not read what it needs to go on.
        if words.starts_with("A5") {
            if self.members[member].disk.is_stopped() {
                // Its power had failed.
                self.power_off(member);
                return Ok(());
            }
            if self.is_rotten(member) || self.plan.faults.disk_errors > 0 {
                self.stats.aborts += 1;
                self.kill(member);
                return Ok(());
            }
        }
        Err(format!("member {} stops: {words}", self.members[member].id))
    }

    /// A member does not start.
    pub(super) fn did_not_open(&mut self, member: usize, error: &Error) -> Result<(), String> {
        if !self.bears_disk_faults() {
            return Err(format!("member {} does not open: {error}", self.members[member].id));
        }
        self.stats.starts_refused += 1;
        self.kill(member);
        Ok(())
    }

    /// Nothing goes wrong any more.
    pub(super) fn heal(&mut self) {
        self.is_healed = true;
        self.network.heal();
        if Bug::is(self.plan.bug, ShellBug::StaysCut) {
            self.members[0].is_gone = true;
            self.down(0);
        }
        if self.is_rotten(ROTTEN) {
            self.down(ROTTEN);
            self.members[ROTTEN].is_gone = true;
            self.after(REPLACE_US, Event::Replace);
        }
        for member in 0..self.members.len() {
            let here = &mut self.members[member];
            here.disk.set_plan(Default::default());
            here.disk.set_capacity(None);
            here.frozen_until_us = 0;
            if here.running.is_some() {
                here.disk.stop_after(u64::MAX);
                let busy_us = here.clock.world_us(here.disk.now_us());
                self.turn_at(member, busy_us);
            } else if !here.is_gone {
                self.starts_in(member, 0);
            }
        }
        self.meet_all();
    }
}
