//! States on their way from one member to another: who needs one, how it comes, what follows.
//!
//! **Contract.** A member that has nothing fetches the state of somebody who knows of it; one that runs does when a leader says that no log reaches back to it, as
//! `server::join` and `server::peers` do. The manifest is made by the source's own rounds; its segments then come within one event, or a part of them. The
//! member is stopped, and its next start installs what was staged.
//!
//! **Does not know** what is in a state.
use super::world::{Event, World};
use sternpost_engine::io::Io;
use sternpost_replication::raft::simulated::receive;
use sternpost_replication::transport::StateSource;

/// Between two looks for members that need a state, or are to stop.
const LOOK_US: u64 = 300_000;
/// Between two looks whether a manifest is made.
const MANIFEST_US: u64 = 20_000;
/// So often it is looked for.
const MANIFEST_LOOKS_MAX: u32 = 100;

/// A state that somebody waits for.
pub(super) struct Fetch {
    from: usize,
    from_start: u64,
    own_start: u64,
    source: Box<dyn StateSource>,
    looks: u32,
}

impl World {
    /// Looks who needs a state, and who is to stop for good.
    pub(super) fn look(&mut self) -> Result<(), String> {
        self.after(LOOK_US, Event::Look);
        for member in 0..self.members.len() {
            let here = &self.members[member];
            if here.is_gone || self.fetches.contains_key(&member) {
                continue;
            }
            if self.is_to_stop(member) {
                self.down(member);
                self.members[member].is_gone = true;
                continue;
            }
            let from = if here.is_empty { self.who_knows(member) } else { self.who_says_so(member) };
            if let Some(from) = from {
                self.begin_fetch(member, from);
            }
        }
        Ok(())
    }

    /// A leader that says that this member needs its state.
    fn who_says_so(&self, member: usize) -> Option<usize> {
        let id = self.members[member].id;
        self.members[member].running.as_ref()?;
        self.members.iter().position(|other| {
            other.frozen_until_us <= self.now_us
                && other.running.as_ref().is_some_and(|running| {
                    let status = running.node.raft().core_status();
                    status.peers.iter().any(|peer| peer.id == id && peer.needs_snapshot && peer.is_active)
                })
        })
    }

    /// Somebody who has applied that this member was added.
    fn who_knows(&mut self, member: usize) -> Option<usize> {
        let added_at = self.oracle.added_at(self.members[member].id)?;
        let knows = |number: &usize| {
            let other = &self.members[*number];
            other.running.as_ref().is_some_and(|it| it.store.applied().0 >= added_at) && *number != member
        };
        let knowing: Vec<usize> = (0..self.members.len()).filter(knows).collect();
        let at = self.rng.below(knowing.len() as u64) as usize;
        knowing.get(at).copied()
    }

    fn begin_fetch(&mut self, member: usize, from: usize) {
        if self.network.is_cut(member, from) || self.network.is_cut(from, member) {
            return;
        }
        let other = &self.members[from];
        let Some(running) = &other.running else { return };
        let source = running.node.raft().state_source();
        let (from_start, own_start) = (other.start, self.members[member].start);
        self.fetches.insert(member, Fetch { from, from_start, own_start, source, looks: 0 });
        self.after(0, Event::Fetch { member });
    }

    /// Goes on with a fetch.
    pub(super) fn fetch(&mut self, member: usize) -> Result<(), String> {
        let Some(mut fetch) = self.fetches.remove(&member) else { return Ok(()) };
        let (here, other) = (&self.members[member], &self.members[fetch.from]);
        let is_same = here.start == fetch.own_start
            && here.running.is_some() != here.is_empty
            && other.start == fetch.from_start
            && other.running.is_some();
        if !is_same || self.network.is_cut(member, fetch.from) || self.network.is_cut(fetch.from, member) {
            return Ok(());
        }
        fetch.looks += 1;
        match fetch.source.manifest() {
            Ok(Some(manifest)) => self.receive(member, fetch, manifest),
            Ok(None) if fetch.looks < MANIFEST_LOOKS_MAX => {
                let from = fetch.from;
                self.fetches.insert(member, fetch);
                self.turn_at(from, self.now_us);
                self.after(MANIFEST_US, Event::Fetch { member });
                Ok(())
            }
            Ok(None) => Ok(()),
            Err(_) if self.bears_disk_faults() || self.members[fetch.from].disk.is_stopped() => Ok(()),
            Err(error) => Err(format!("member {} gives no state: {error}", self.members[fetch.from].id)),
        }
    }

    fn receive(&mut self, member: usize, mut fetch: Fetch, manifest: Vec<u8>) -> Result<(), String> {
        // Cut short after so many reads, or not.
        let mut reads_left = if self.rng.chance(1, 4) { self.rng.below(6) } else { u64::MAX };
        let is_cut_short = reads_left != u64::MAX;
        let bears_it = is_cut_short || self.bears_disk_faults() || self.members[fetch.from].disk.is_stopped();
        let here = &mut self.members[member];
        let mut read = |file, offset, bytes| {
            reads_left = reads_left.checked_sub(1).ok_or("cut short")?;
            fetch.source.read(file, offset, bytes)
        };
        let received = receive(&here.disk, &here.genesis, manifest, &mut read);
        if here.disk.is_stopped() {
            self.power_off(member);
            return Ok(());
        }
        match received {
            Ok(_) => {
                self.stats.states_fetched += 1;
                here.is_empty = false;
                self.kill_at_rest(member);
                Ok(())
            }
            Err(_) if bears_it => {
                self.stats.fetches_cut_short += 1;
                self.turn_at(member, self.now_us);
                Ok(())
            }
            // Members that have had their states of one another number their segments alike: what an attempt before has brought from somebody else may
            // seem to fit. That is found, removed and asked for again, by this attempt once and by those that follow; whether it ends is liveness.
            Err(error) if error.contains("is damaged") => {
                self.stats.fetches_mixed += 1;
                self.turn_at(member, self.now_us);
                Ok(())
            }
            Err(error) => Err(format!("member {} cannot receive a state: {error}", here.id)),
        }
    }
}
