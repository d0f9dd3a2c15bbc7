//! What must be true of a cluster, whatever happens to it. Everything is checked as it happens, against disks and not against memory.
use super::member::{ConfState, Done, Entry, Machine, Member, Place, REGISTERS, Write, command_id};
use std::collections::{BTreeMap, BTreeSet};

/// A client's operation that has begun.
#[derive(Clone, Debug)]
pub struct Begun {
    /// Newest place of each register that somebody had been told before this began.
    floor: [Place; REGISTERS],
}

pub struct Checker {
    /// What a member that applied everything committed would hold.
    machine: Machine,
    /// Voters at the last committed index, and before the last change.
    voters: [Vec<u64>; 2],
    /// Index → digest and configuration of whoever applied so far.
    states: BTreeMap<u64, (u64, Vec<u8>)>,
    /// (index, term) → id of the change that was proposed there.
    proposed: BTreeMap<(u64, u64), u64>,
    /// Term → (member, incarnation) that led in it.
    leaders: BTreeMap<u64, (u64, u64)>,
    /// Committed entries, by index: term and data.
    committed: BTreeMap<u64, Entry>,
    /// (index, term) → term of the entry before, if some log said it, and data.
    entries: BTreeMap<(u64, u64), (Option<u64>, Vec<u8>)>,
    /// Writes in the committed log.
    applied: BTreeMap<u64, Place>,
    /// Ids that a client was told are not in the log.
    refused: BTreeSet<u64>,
    begun: BTreeMap<u64, Begun>,
    told: [Place; REGISTERS],
    pub writes_acknowledged: u64,
    pub reads_answered: u64,
    pub leaders_count: u64,
}

impl Checker {
    pub fn new(genesis: &Machine) -> Self {
        let voters = genesis.configuration().voters;
        Self {
            machine: genesis.clone(),
            voters: [voters.clone(), voters],
            states: BTreeMap::from([(genesis.applied, (genesis.digest, genesis.configuration.clone()))]),
            proposed: BTreeMap::new(),
            leaders: BTreeMap::new(),
            committed: BTreeMap::new(),
            entries: BTreeMap::new(),
            applied: BTreeMap::new(),
            refused: BTreeSet::new(),
            begun: BTreeMap::new(),
            told: Default::default(),
            writes_acknowledged: 0,
            reads_answered: 0,
            leaders_count: 0,
        }
    }

    /// Of the last committed index.
    pub fn configuration(&self) -> ConfState {
        self.machine.configuration()
    }

    /// A member that applied everything committed holds this.
    pub fn machine(&self) -> &Machine {
        &self.machine
    }

    /// Election safety: one leader for each term, and none leads it again after a restart.
    pub fn leads(&mut self, term: u64, member: u64, incarnation: u64) -> Result<(), String> {
        self.leaders_count += 1;
        let first = *self.leaders.entry(term).or_insert((member, incarnation));
        if first == (member, incarnation) {
            return Ok(());
        }
        Err(format!("election safety: term {term} is led by {first:?} and by {:?}", (member, incarnation)))
    }

    /// Log matching: two logs with the same index and term have the same entries up to there.
    pub fn durable(&mut self, member: &Member, entries: &[Entry]) -> Result<(), String> {
        for entry in entries {
            // The one before may be in no log any more.
            let before = member.disk.log.get(&(entry.index - 1)).map(|before| before.term);
            let what = [entry.data.as_ref(), entry.context.as_ref()].concat();
            let known =
                self.entries.entry((entry.index, entry.term)).or_insert_with(|| (before, what.clone()));
            let differs = matches!((known.0, before), (Some(known), Some(before)) if known != before);
            known.0 = known.0.or(before);
            if differs || known.1 != what {
                return Err(format!(
                    "log matching: entry {} of term {} differs at member {}",
                    entry.index, entry.term, member.id
                ));
            }
        }
        Ok(())
    }

    /// An entry is handed to a state machine: committed for ever, on a quorum's disks, and on this one's. What it did, if it is the
    /// first time.
    pub fn committed(&mut self, by: u64, entry: &Entry, members: &[Member]) -> Result<Option<Done>, String> {
        let index = entry.index;
        if !members.iter().any(|member| member.id == by && member.holds(index, entry.term)) {
            return Err(format!("member {by} applies entry {index}, which its disk does not hold"));
        }
        if let Some(known) = self.committed.get(&index) {
            if (known.term, &known.data, &known.context) != (entry.term, &entry.data, &entry.context) {
                return Err(format!(
                    "committed prefix: entry {index} is of term {} and of {}",
                    known.term, entry.term
                ));
            }
            return Ok(None);
        }
        if index != self.machine.applied + 1 {
            return Err(format!("committed prefix: entry {index} leaves a gap"));
        }
        let holders: BTreeSet<u64> =
            members.iter().filter(|member| member.holds(index, entry.term)).map(|member| member.id).collect();
        let is_quorum = |voters: &Vec<u64>| {
            voters.iter().filter(|voter| holders.contains(voter)).count() > voters.len() / 2
        };
        // A leader counts by what it has applied when it commits, and that may lack the last change (R8: never more than that).
        if !self.voters.iter().any(is_quorum) {
            return Err(format!(
                "entry {index} is committed and on the disks of {holders:?}: no quorum of {:?} or {:?}",
                self.voters[0], self.voters[1]
            ));
        }
        self.committed.insert(index, entry.clone());
        let done = self.machine.apply(entry)?;
        self.states.insert(index, (self.machine.digest, self.machine.configuration.clone()));
        if done.change == Some(true) {
            let [last, before] = &mut self.voters;
            *before = std::mem::replace(last, self.machine.configuration().voters);
        }
        let proposed = self.proposed.get(&(index, entry.term)).copied();
        if done.change.is_some() {
            let id = command_id(&entry.context);
            if proposed != id {
                return Err(format!("the change at {index} is {id:?}, proposed was {proposed:?}"));
            }
            if id.is_some_and(|id| self.refused.contains(&id)) {
                return Err(format!("the change at {index} was refused, and is committed"));
            }
        } else if let Some(id) = proposed {
            return Err(format!("change {id:x} was proposed at {index}, and it is no change"));
        }
        let writes = &done.writes;
        for (write, place) in writes {
            if let Some(before) = self.applied.insert(write.id, *place) {
                return Err(format!("write {:x} is applied at {before:?} and at {place:?}", write.id));
            }
            if self.refused.contains(&write.id) {
                return Err(format!("write {:x} was refused and is applied at {place:?}", write.id));
            }
            // Linearizability: whatever was told before this write began lies before it.
            if let Some(begun) = self.begun.get(&write.id)
                && begun.floor[write.register] >= *place
            {
                return Err(format!(
                    "linearizability: write {:x} at {place:?} began after {:?} was told",
                    write.id, begun.floor[write.register]
                ));
            }
        }
        Ok(Some(done))
    }

    /// A lone voter lost its own vote with everything it did in this term.
    pub fn never_led(&mut self, term: u64) {
        self.proposed.retain(|(_, proposed), _| *proposed != term);
    }

    /// A state machine holds what it should, after an entry, a restart or an install.
    pub fn holds(&self, member: u64, machine: &Machine) -> Result<(), String> {
        let index = machine.applied;
        let Some((digest, configuration)) = self.states.get(&index) else {
            return Err(format!("member {member} applied {index}, which is not committed"));
        };
        if (*digest, configuration) == (machine.digest, &machine.configuration) {
            return Ok(());
        }
        Err(format!("member {member} has another state than others at {index}"))
    }

    /// A change of the members is in a log.
    pub fn proposed(&mut self, id: u64, index: u64, term: u64) -> Result<(), String> {
        match self.proposed.insert((index, term), id) {
            None => Ok(()),
            Some(other) => Err(format!("changes {other:x} and {id:x} are both at {index} in term {term}")),
        }
    }

    /// A client begins an operation.
    pub fn begins(&mut self, id: u64) {
        self.begun.insert(id, Begun { floor: self.told });
    }

    /// A client is told that its write was made.
    pub fn write_told(&mut self, write: Write, place: Place) -> Result<(), String> {
        if self.applied.get(&write.id) != Some(&place) {
            return Err(format!("write {:x} is acknowledged at {place:?} and not committed there", write.id));
        }
        self.writes_acknowledged += 1;
        self.told[write.register] = self.told[write.register].max(place);
        self.begun.remove(&write.id);
        Ok(())
    }

    /// A client is told what the registers are.
    pub fn read_told(
        &mut self,
        token: u64,
        member: u64,
        registers: &[Place; REGISTERS],
    ) -> Result<(), String> {
        self.reads_answered += 1;
        let Some(begun) = self.begun.remove(&token) else {
            return Err(format!("read {token} is answered twice"));
        };
        let places = registers.iter().zip(&begun.floor).zip(&mut self.told);
        for (register, ((place, floor), told)) in places.enumerate() {
            if place < floor {
                return Err(format!(
                    "linearizability: member {member} reads register {register} at {place:?}, {floor:?} was told before"
                ));
            }
            *told = (*told).max(*place);
        }
        Ok(())
    }

    /// A client is told that its write is not in the log and will never be.
    pub fn refused(&mut self, id: u64) -> Result<(), String> {
        self.refused.insert(id);
        match self.applied.get(&id) {
            Some(place) => Err(format!("write {id:x} is refused and was applied at {place:?}")),
            None => Ok(()),
        }
    }

    /// The last committed index.
    pub fn last(&self) -> u64 {
        self.machine.applied
    }
}
