//! What must be true of a cluster, whatever happens to it. Everything is checked as it happens, against disks and not against memory.
use super::member::{Entry, Member, Place, REGISTERS, Write};
use std::collections::{BTreeMap, BTreeSet};

/// A client's operation that has begun.
#[derive(Clone, Debug)]
pub struct Begun {
    /// Newest place of each register that somebody had been told before this began.
    floor: [Place; REGISTERS],
}

#[derive(Default)]
pub struct Checker {
    quorum: usize,
    /// Term → (member, incarnation) that led in it.
    leaders: BTreeMap<u64, (u64, u64)>,
    /// Committed entries, by index: term and data.
    committed: BTreeMap<u64, Entry>,
    /// (index, term) → term of the entry before, and data.
    entries: BTreeMap<(u64, u64), (u64, Vec<u8>)>,
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
    pub fn new(members: usize) -> Self {
        Self { quorum: members / 2 + 1, ..Self::default() }
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
            let before = member.disk.log.get(&(entry.index - 1)).map_or(1, |before| before.term);
            let what = (before, entry.data.to_vec());
            let known = self.entries.entry((entry.index, entry.term)).or_insert_with(|| what.clone());
            if *known != what {
                return Err(format!(
                    "log matching: entry {} of term {} differs at member {}",
                    entry.index, entry.term, member.id
                ));
            }
        }
        Ok(())
    }

    /// An entry is handed to a state machine: committed for ever, on a quorum's disks, and on this one's.
    pub fn committed(
        &mut self,
        by: u64,
        entry: &Entry,
        members: &[Member],
    ) -> Result<Vec<(Write, Place)>, String> {
        let index = entry.index;
        let holds =
            |member: &&Member| member.disk.log.get(&index).is_some_and(|held| held.term == entry.term);
        if !members.iter().filter(|member| member.id == by).any(|member| holds(&member)) {
            return Err(format!("member {by} applies entry {index}, which its disk does not hold"));
        }
        if let Some(known) = self.committed.get(&index) {
            if (known.term, &known.data) != (entry.term, &entry.data) {
                return Err(format!(
                    "committed prefix: entry {index} is of term {} and of {}",
                    known.term, entry.term
                ));
            }
            return Ok(Vec::new());
        }
        if self.committed.last_key_value().is_some_and(|(last, _)| index != last + 1) {
            return Err(format!("committed prefix: entry {index} leaves a gap"));
        }
        let count = members.iter().filter(holds).count();
        if count < self.quorum {
            return Err(format!("entry {index} is committed and on {count} disks of {}", members.len()));
        }
        self.committed.insert(index, entry.clone());
        let mut machine = super::member::Machine { applied: index - 1, ..Default::default() };
        let writes = machine.apply(entry)?;
        for (write, place) in &writes {
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
        Ok(writes)
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
        self.committed.last_key_value().map_or(1, |(index, _)| *index)
    }
}
