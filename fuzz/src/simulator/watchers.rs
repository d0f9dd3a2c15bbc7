//! Watchers: each has seen everything before a revision, and reads what follows from the history of some member.
//!
//! **Contract.** A watcher goes to another member when its own is gone, and goes on where it was; one that comes behind the compact revision begins anew there,
//! as etcd's clients do.
//!
//! **Does not know** which events there should be.
use super::bug::{Bug, ShellBug};
use super::world::World;
use sternpost_engine::OperationError;

/// See the module.
#[derive(Debug)]
pub(super) struct Watcher {
    member: usize,
    /// First revision that it has not seen.
    next: i64,
}

impl Watcher {
    /// One that sees everything, at first from this member.
    pub(super) fn new(member: usize) -> Self {
        Self { member, next: 2 }
    }

    /// First revision that it has not seen.
    pub(super) fn next(&self) -> i64 {
        self.next
    }
}

impl World {
    /// Gives the watchers of `member` what is new.
    pub(super) fn watch(&mut self, member: usize) -> Result<(), String> {
        for number in 0..self.watchers.len() {
            let Watcher { member: at, next } = self.watchers[number];
            if at != member {
                // Now and then somebody changes, or must.
                if self.members[at].running.is_none() || self.rng.chance(1, 2_000) {
                    self.watchers[number].member = member;
                }
                continue;
            }
            let events_max = 1 + self.rng.below(40) as usize;
            let Some(running) = &self.members[member].running else { return Ok(()) };
            let id = self.members[member].id;
            let store = &running.store;
            let mut batch = match store.events(next, events_max, 1 << 20) {
                Ok(batch) => batch,
                Err(OperationError::Compacted(compacted)) if next < compacted => {
                    self.watchers[number].next = compacted + 1;
                    continue;
                }
                Err(OperationError::Unreadable(_)) if self.bears_disk_faults() => {
                    self.watchers[number].member = self.rng.below(self.members.len() as u64) as usize;
                    continue;
                }
                Err(error) => {
                    return Err(format!("watch: member {id} cannot give what follows {next}: {error}"));
                }
            };
            if Bug::is(self.plan.bug, ShellBug::SkipsEvent) && batch.events.len() > 2 {
                batch.events.remove(1);
            }
            if Bug::is(self.plan.bug, ShellBug::DoublesEvent) && batch.events.len() > 2 {
                let event = batch.events[1].clone();
                batch.events.insert(1, event);
            }
            self.watchers[number].next = batch.next_revision.max(next);
            self.oracle.watched(id, next, &batch)?;
            if let Some(event) = batch.events.last() {
                let found = match store.previous(event) {
                    Ok(found) => found,
                    Err(_) if self.bears_disk_faults() => continue,
                    Err(error) => {
                        return Err(format!("watch: member {id} cannot look before {event:?}: {error}"));
                    }
                };
                self.oracle.previous(id, event, found.as_ref(), store.compact_revision())?;
            }
        }
        Ok(())
    }
}
