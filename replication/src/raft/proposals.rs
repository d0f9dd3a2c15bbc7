//! What became of the commands that this member took over.
//!
//! **Places.** A command *waits* until a leader is known; it is *placed* when it was given to the leader of a term: appended here, or
//! forwarded. It is *decided* when it is seen in the committed log (the state machine then answers for it), or given up.
//!
//! **Invariants.** R14: a command is placed with the leader of one term and refused in any other. When the first committed entry of a later term
//! is seen, every entry of earlier terms that will ever be committed has been seen (terms do not decrease along the log): a command placed
//! in an earlier term and not seen by then is certainly lost, and waits again. Nothing is placed twice without this proof.
//!
//! **Forwards** are numbered for (leader, term, start of the sender), taken in order, each once; the leader says up to which it took.
//! What is not confirmed is sent again: the number makes that harmless. A leader that cannot take more does not confirm, and so
//! slows its followers down.
//!
//! **Bounds.** [`OPEN_COUNT_MAX`] commands and [`OPEN_BYTES_MAX`] bytes, twice that with privileged ones; [`WINDOW_BYTES`] of them are forwarded and not
//! confirmed; each until its time is up.
use super::input::Proposal;
use std::collections::{BTreeMap, VecDeque};

/// Commands that one member waits for; etcd answers `too many requests` beyond the same number.
pub const OPEN_COUNT_MAX: usize = 5_000;
/// Their bytes.
pub const OPEN_BYTES_MAX: usize = 64 << 20;
/// Bytes forwarded and not confirmed.
const WINDOW_BYTES: usize = 8 << 20;
/// A frame of forwards takes no further command once it holds this much.
const FORWARD_BYTES: usize = 256 << 10;
/// Starts of other members whose forwards a leader tells apart in one term.
const SENDERS_MAX: usize = 1024;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Place {
    Waiting,
    /// With the leader of this term.
    Placed {
        term: u64,
    },
}

struct Open {
    proposal: Proposal,
    place: Place,
}

/// One frame of forwards.
struct Sent {
    number: u64,
    ids: Vec<u64>,
    bytes: usize,
}

/// What goes to one leader in one term.
struct Channel {
    leader: u64,
    term: u64,
    next_number: u64,
    unconfirmed: VecDeque<Sent>,
    unconfirmed_bytes: usize,
    sent_tick: u64,
    /// The leader said that it does not lead any more.
    is_closed: bool,
}

/// See the module.
pub(super) struct Proposals {
    boot: u64,
    open: BTreeMap<u64, Open>,
    open_bytes: usize,
    /// Those among them that are for one term alone.
    bound_count: usize,
    waiting: VecDeque<u64>,
    /// (when its time is up, id), ascending.
    deadlines: VecDeque<(u64, u64)>,
    channel: Option<Channel>,
    /// As leader of `taken_term`: the last number taken, by (member, start).
    taken_term: u64,
    taken: BTreeMap<(u64, u64), u64>,
    /// Term of the newest committed entry seen.
    seen_term: u64,
}

/// A frame of forwards to be sent: number and commands.
pub(super) type Forward = (u64, Vec<Proposal>);

impl Proposals {
    pub(super) fn new(boot: u64, seen_term: u64) -> Self {
        Self {
            boot,
            open: BTreeMap::new(),
            open_bytes: 0,
            bound_count: 0,
            waiting: VecDeque::new(),
            deadlines: VecDeque::new(),
            channel: None,
            taken_term: 0,
            taken: BTreeMap::new(),
            seen_term,
        }
    }

    pub(super) fn boot(&self) -> u64 {
        self.boot
    }

    pub(super) fn open_count(&self) -> usize {
        self.open.len()
    }

    pub(super) fn has_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Takes a command over; false if the bounds do not allow it.
    pub(super) fn add(&mut self, proposal: Proposal, deadline_us: u64) -> bool {
        let factor = if proposal.is_privileged { 2 } else { 1 };
        let bytes = self.open_bytes + proposal.command.len();
        if self.open.len() >= factor * OPEN_COUNT_MAX || bytes > factor * OPEN_BYTES_MAX {
            return false;
        }
        let id = proposal.id;
        self.open_bytes = bytes;
        self.bound_count += usize::from(proposal.only_term.is_some());
        let before = self.open.insert(id, Open { proposal, place: Place::Waiting });
        assert!(before.is_none(), "R14: an id is used once, {id:x} is open");
        self.deadlines.push_back((deadline_us, id));
        self.waiting.push_back(id);
        true
    }

    fn remove(&mut self, id: u64) -> Option<Open> {
        let open = self.open.remove(&id)?;
        self.open_bytes -= open.proposal.command.len();
        self.bound_count -= usize::from(open.proposal.only_term.is_some());
        Some(open)
    }

    /// The next batch of those that wait, at most `bytes_max` and `count_max`, at least one; they are placed in `term`.
    pub(super) fn place(&mut self, term: u64, bytes_max: usize, count_max: usize) -> Vec<Proposal> {
        let (mut batch, mut bytes) = (Vec::new(), 0);
        while let Some(&id) = self.waiting.front() {
            let Some(open) = self.open.get_mut(&id).filter(|open| open.place == Place::Waiting) else {
                // Decided meanwhile.
                self.waiting.pop_front();
                continue;
            };
            bytes += open.proposal.command.len();
            if !batch.is_empty() && (bytes > bytes_max || batch.len() == count_max) {
                break;
            }
            open.place = Place::Placed { term };
            batch.push(open.proposal.clone());
            self.waiting.pop_front();
        }
        batch
    }

    /// Takes a placement back that the library refused: nothing of it is in the log.
    pub(super) fn unplace(&mut self, batch: &[Proposal]) {
        for proposal in batch.iter().rev() {
            if let Some(open) = self.open.get_mut(&proposal.id) {
                open.place = Place::Waiting;
                self.waiting.push_front(proposal.id);
            }
        }
    }

    /// The leader of `term` did not take it. Forgotten, and true, if it is still placed there: it may be placed in a later term by now, and what was
    /// said of the earlier place says nothing of this one.
    pub(super) fn reject(&mut self, id: u64, term: u64) -> bool {
        let is_placed_there = self.open.get(&id).is_some_and(|open| open.place == Place::Placed { term });
        is_placed_there && self.remove(id).is_some()
    }

    /// The planted bug: whatever place the refusal is of.
    pub(super) fn reject_anywhere(&mut self, id: u64) -> bool {
        self.remove(id).is_some()
    }

    /// What waits and is for another term than the one that this member leads in, to be refused.
    pub(super) fn take_unleading(&mut self, leads_in: Option<u64>) -> Vec<u64> {
        if self.bound_count == 0 {
            return Vec::new();
        }
        let is_over = |open: &Open| {
            open.place == Place::Waiting && open.proposal.only_term.is_some_and(|term| Some(term) != leads_in)
        };
        let over: Vec<u64> =
            self.waiting.iter().copied().filter(|id| self.open.get(id).is_some_and(is_over)).collect();
        over.iter().for_each(|id| {
            self.remove(*id);
        });
        over
    }

    /// What waits, ordinary commands only, to be refused because the device is full.
    pub(super) fn take_ordinary(&mut self) -> Vec<u64> {
        let waiting = std::mem::take(&mut self.waiting);
        let (mut refused, mut kept) = (Vec::new(), VecDeque::new());
        for id in waiting {
            match self.open.get(&id) {
                Some(open) if open.place == Place::Waiting && !open.proposal.is_privileged => {
                    refused.push(id)
                }
                Some(_) => kept.push_back(id),
                None => {}
            }
        }
        self.waiting = kept;
        refused.iter().for_each(|id| {
            self.remove(*id);
        });
        refused
    }

    /// A committed entry: of `term`, with these ids. Decides what it holds and what its term proves lost.
    pub(super) fn committed(&mut self, term: u64, ids: impl Iterator<Item = u64>) {
        assert!(
            term >= self.seen_term,
            "R14: an entry of term {term} follows one of term {}",
            self.seen_term
        );
        if term > self.seen_term {
            self.seen_term = term;
            // R14: everything of earlier terms has been seen.
            self.wait_again(|placed| placed < term);
        }
        for id in ids {
            self.remove(id);
        }
    }

    /// What was placed in a term that `is_lost` waits again, before what waits already.
    fn wait_again(&mut self, is_lost: impl Fn(u64) -> bool) {
        let lost = self.open.iter_mut().filter_map(|(id, open)| match open.place {
            Place::Placed { term } if is_lost(term) => {
                open.place = Place::Waiting;
                Some(*id)
            }
            _ => None,
        });
        let mut lost: VecDeque<u64> = lost.collect();
        lost.append(&mut self.waiting);
        self.waiting = lost;
    }

    /// The planted bug: everything waits again, whatever became of it.
    pub(super) fn wait_again_unproved(&mut self) {
        self.wait_again(|_| true);
    }

    /// Follower: frames of forwards for (leader, term) that are to be sent now. `again` sends once more what is not confirmed.
    pub(super) fn forwards(&mut self, leader: u64, term: u64, tick: u64, again: bool) -> Vec<Forward> {
        if self.channel.as_ref().is_none_or(|channel| (channel.leader, channel.term) != (leader, term)) {
            // What went to the channel before stays placed in its term, until that term's fate is seen.
            self.channel = Some(Channel {
                leader,
                term,
                next_number: 1,
                unconfirmed: VecDeque::new(),
                unconfirmed_bytes: 0,
                sent_tick: tick,
                is_closed: false,
            });
        }
        let mut frames = Vec::new();
        let Some(mut channel) = self.channel.take_if(|channel| !channel.is_closed) else { return frames };
        if again && !channel.unconfirmed.is_empty() {
            channel.sent_tick = tick;
            for sent in &channel.unconfirmed {
                // One that was decided since is left out: taking it again could only be harmless or wrong.
                let ids = sent.ids.iter();
                frames.push((
                    sent.number,
                    ids.filter_map(|id| Some(self.open.get(id)?.proposal.clone())).collect(),
                ));
            }
        }
        while channel.unconfirmed_bytes < WINDOW_BYTES {
            let batch = self.place(term, FORWARD_BYTES, 1024);
            if batch.is_empty() {
                break;
            }
            let bytes = batch.iter().map(|proposal| proposal.command.len() + 32).sum();
            let number = channel.next_number;
            channel.next_number += 1;
            channel.sent_tick = tick;
            channel.unconfirmed_bytes += bytes;
            let ids = batch.iter().map(|proposal| proposal.id).collect();
            channel.unconfirmed.push_back(Sent { number, ids, bytes });
            frames.push((number, batch));
        }
        self.channel = Some(channel);
        frames
    }

    /// True if something was forwarded so long ago that it should have been confirmed.
    pub(super) fn is_late(&self, tick: u64, again_ticks: u64) -> bool {
        self.channel.as_ref().is_some_and(|channel| {
            !channel.is_closed
                && !channel.unconfirmed.is_empty()
                && tick.saturating_sub(channel.sent_tick) >= again_ticks
        })
    }

    fn channel_for(&mut self, leader: u64, term: u64, boot: u64) -> Option<&mut Channel> {
        let is_mine = boot == self.boot;
        self.channel.as_mut().filter(|channel| is_mine && (channel.leader, channel.term) == (leader, term))
    }

    /// Follower: the leader took everything up to `number`.
    pub(super) fn confirmed(&mut self, leader: u64, term: u64, boot: u64, number: u64) {
        let Some(channel) = self.channel_for(leader, term, boot) else { return };
        while let Some(sent) = channel.unconfirmed.pop_front_if(|sent| sent.number <= number) {
            channel.unconfirmed_bytes -= sent.bytes;
        }
    }

    /// Follower: the leader of `term` leads no more, and took nothing behind `number`. That is the proof for the rest.
    pub(super) fn refused(&mut self, leader: u64, term: u64, boot: u64, number: u64) {
        self.confirmed(leader, term, boot, number);
        let Some(channel) = self.channel_for(leader, term, boot) else { return };
        channel.is_closed = true;
        channel.unconfirmed_bytes = 0;
        let lost: Vec<u64> = channel.unconfirmed.drain(..).flat_map(|sent| sent.ids).collect();
        for id in lost.into_iter().rev() {
            if let Some(open) = self.open.get_mut(&id).filter(|open| open.place == (Place::Placed { term })) {
                open.place = Place::Waiting;
                self.waiting.push_front(id);
            }
        }
    }

    /// This member leads in `term` from now on.
    pub(super) fn lead(&mut self, term: u64) {
        if term != self.taken_term {
            self.taken_term = term;
            self.taken.clear();
        }
    }

    /// Leader of `term`: whether a forward is the next of its sender. Followed by [`Self::took`] if it was taken.
    pub(super) fn is_next(&self, member: u64, boot: u64, number: u64) -> bool {
        let known = self.taken.get(&(member, boot));
        (known.is_some() || self.taken.len() < SENDERS_MAX) && number == known.map_or(1, |last| last + 1)
    }

    /// Leader: took it.
    pub(super) fn took(&mut self, member: u64, boot: u64, number: u64) {
        self.taken.insert((member, boot), number);
    }

    /// The last number taken in `term`, if this member led in it since its start and can say.
    pub(super) fn taken(&self, term: u64, member: u64, boot: u64) -> Option<u64> {
        (term == self.taken_term).then(|| self.taken.get(&(member, boot)).copied().unwrap_or(0))
    }

    /// Those whose time is up: ids that no leader was given, ids whose fate is unknown.
    pub(super) fn expire(&mut self, now_us: u64) -> (Vec<u64>, Vec<u64>) {
        let (mut never, mut unknown) = (Vec::new(), Vec::new());
        while let Some((_, id)) = self.deadlines.pop_front_if(|(deadline_us, _)| *deadline_us <= now_us) {
            match self.remove(id).map(|open| open.place) {
                None => {}
                Some(Place::Waiting) => never.push(id),
                Some(Place::Placed { .. }) => unknown.push(id),
            }
        }
        (never, unknown)
    }

    /// Everything that is open, to be refused: ids that no leader was given, ids whose fate is unknown.
    pub(super) fn take_all(&mut self) -> (Vec<u64>, Vec<u64>) {
        self.expire(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    fn proposal(id: u64) -> Proposal {
        Proposal { id, is_privileged: false, only_term: None, command: Bytes::from_static(b"command") }
    }

    fn with(ids: &[u64]) -> Proposals {
        let mut proposals = Proposals::new(5, 1);
        ids.iter().for_each(|id| assert!(proposals.add(proposal(*id), 100 + id)));
        proposals
    }

    fn ids(batch: &[Proposal]) -> Vec<u64> {
        batch.iter().map(|proposal| proposal.id).collect()
    }

    #[test]
    fn the_first_entry_of_a_later_term_decides_what_was_placed_before() {
        let mut proposals = with(&[1, 2, 3]);
        assert_eq!(ids(&proposals.place(2, 1 << 20, 100)), [1, 2, 3]);
        proposals.committed(2, [1].into_iter());
        assert!(!proposals.has_waiting(), "R14: no proof for 2 and 3 yet");
        proposals.committed(3, std::iter::empty());
        assert_eq!(ids(&proposals.place(3, 1 << 20, 100)), [2, 3], "lost, with proof, and 1 is decided");
        proposals.committed(3, [3, 2].into_iter());
        assert_eq!(proposals.open_count(), 0);
    }

    #[test]
    fn a_forward_is_taken_once_and_in_order() {
        let mut follower = with(&[1, 2]);
        let frames = follower.forwards(9, 4, 0, false);
        assert_eq!((frames.len(), frames[0].0), (1, 1));
        let mut leader = Proposals::new(8, 1);
        leader.lead(4);
        assert!(leader.is_next(7, 5, 1));
        leader.took(7, 5, 1);
        assert!(!leader.is_next(7, 5, 1), "again");
        assert!(!leader.is_next(7, 5, 3), "a gap");
        assert!(leader.is_next(7, 6, 1), "another start of the same member");
        assert_eq!(leader.taken(4, 7, 5), Some(1));
        assert_eq!(leader.taken(3, 7, 5), None, "it never led there");
        // Not confirmed: sent again under the same number.
        assert!(follower.is_late(6, 6));
        let again = follower.forwards(9, 4, 6, true);
        assert_eq!((again[0].0, ids(&again[0].1)), (1, vec![1, 2]));
        follower.confirmed(9, 4, 5, 1);
        assert!(!follower.is_late(100, 6));
    }

    #[test]
    fn a_leader_that_steps_down_proves_what_it_never_took() {
        let mut follower = with(&[1]);
        follower.forwards(9, 4, 0, false);
        follower.add(proposal(2), 200);
        follower.forwards(9, 4, 0, false);
        follower.refused(9, 4, 5, 1);
        assert!(follower.forwards(9, 4, 1, true).is_empty(), "closed");
        let frames = follower.forwards(8, 5, 1, false);
        assert_eq!(ids(&frames[0].1), [2], "1 was taken: its fate is not known yet");
        assert_eq!(follower.expire(1_000), (vec![], vec![1, 2]));
    }

    /// A leader with a full device refused a command that was forwarded to it, and was deposed; the command was placed anew in the next term, as it must be, since
    /// the log proved that the old place was lost. Then the refusal arrived, late: its client heard that there is no space, and the command was applied all
    /// the same (seed 74 of the simulator of clusters). Now a refusal names the term that it is about.
    #[test]
    fn a_late_refusal_says_nothing_of_a_later_place() {
        let mut follower = with(&[1, 2]);
        follower.forwards(9, 4, 0, false);
        assert!(follower.reject(2, 4));
        follower.committed(5, std::iter::empty());
        assert_eq!(ids(&follower.place(5, 1 << 20, 100)), [1]);
        assert!(!follower.reject(1, 4), "that was another place");
        assert!(follower.reject(1, 5));
    }

    #[test]
    fn what_is_for_one_term_is_placed_in_no_other() {
        let mut proposals = with(&[1]);
        assert!(proposals.add(Proposal { only_term: Some(4), ..proposal(2) }, 100));
        assert_eq!(proposals.take_unleading(Some(4)), []);
        assert_eq!(ids(&proposals.place(4, 1 << 20, 100)), [1, 2]);
        assert_eq!(proposals.take_unleading(Some(5)), [], "it is placed: its fate is not known yet");
        proposals.committed(5, std::iter::empty());
        assert_eq!(proposals.take_unleading(Some(5)), [2], "lost, with proof, and not proposed again");
        assert_eq!(ids(&proposals.place(5, 1 << 20, 100)), [1]);
    }

    #[test]
    fn bounds_hold_and_time_runs_out() {
        let mut proposals = with(&[]);
        for id in 0..OPEN_COUNT_MAX as u64 {
            assert!(proposals.add(proposal(id), 10));
        }
        assert!(!proposals.add(proposal(u64::MAX), 10));
        assert!(proposals.add(Proposal { is_privileged: true, ..proposal(u64::MAX) }, 10));
        assert_eq!(proposals.take_ordinary().len(), OPEN_COUNT_MAX);
        assert_eq!(proposals.expire(10), (vec![u64::MAX], vec![]));
        assert_eq!(proposals.open_bytes, 0);
    }
}
