//! Linearizable reads: who waits for a read index, from the question to the moment at which the state machine holds it.
//!
//! **A round.** The leader asks a quorum "do I still lead?" by a heartbeat with a context; when they said yes, what was committed when
//! the round began is a read index for everybody who had asked by then. One round is under way, the next takes all who came since
//! (design, 2.4: one round trip, no sync, for any number of reads).
//!
//! **Invariants.** Q1: a context is (member, start, counter), made here, and never used twice (etcd #20418: the library matches
//! acknowledgements by context alone, so a reused one releases reads with a stale index). Q2: a round begins only with an entry of the leader's own term committed and no transfer pending (design 1.6, rule 3).
//! Q3: who waits for a round is not answered by another term's: a change of role ends the round, and its waiters join a later one.
//!
//! **A follower** asks the leader once for all its waiters, by a number that is never used twice; an answer to an older number says nothing. It
//! answers from its own state once that has reached the index.
//!
//! **Bounds.** [`READS_MAX`] tokens, each until its time is up; of other members [`REMOTE_MAX`].
use super::input::Refusal;
use bytes::{BufMut, Bytes, BytesMut};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Tokens that wait at one member.
pub(super) const READS_MAX: usize = 65_536;
/// Other members whose question waits for a round; each member has one at a time.
const REMOTE_MAX: usize = 64;

/// Who waits for a round.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Waiter {
    Local(u64),
    Remote { member: u64, boot: u64, number: u64 },
}

struct Round {
    context: Bytes,
    waiters: Vec<Waiter>,
}

/// What a follower asked its leader.
struct Question {
    number: u64,
    leader: u64,
    tokens: Vec<u64>,
    asked_tick: u64,
}

/// A finished question of another member: (member, start, number, read index).
pub(super) type Answer = (u64, u64, u64, u64);

/// See the module.
pub(super) struct Reads {
    member: u64,
    boot: u64,
    counter: u64,
    /// Who asked since the round began.
    queue: Vec<Waiter>,
    round: Option<Round>,
    question: Option<Question>,
    /// Read index known, not applied yet.
    behind: BTreeMap<u64, Vec<u64>>,
    /// Tokens that are not answered.
    open: BTreeSet<u64>,
    /// (when its time is up, token), ascending.
    deadlines: VecDeque<(u64, u64)>,
}

impl Reads {
    pub(super) fn new(member: u64, boot: u64) -> Self {
        Self {
            member,
            boot,
            counter: 0,
            queue: Vec::new(),
            round: None,
            question: None,
            behind: BTreeMap::new(),
            open: BTreeSet::new(),
            deadlines: VecDeque::new(),
        }
    }

    /// A token of this member asks; false if there are too many.
    pub(super) fn ask(&mut self, token: u64, deadline_us: u64) -> bool {
        if self.open.len() >= READS_MAX {
            return false;
        }
        let is_new = self.open.insert(token);
        assert!(is_new, "a token is used once, {token} was used before");
        self.deadlines.push_back((deadline_us, token));
        self.queue.push(Waiter::Local(token));
        true
    }

    /// Another member asks, and this one leads. Its older question is void.
    pub(super) fn ask_for(&mut self, member: u64, boot: u64, number: u64) {
        self.queue
            .retain(|waiter| !matches!(waiter, Waiter::Remote { member: other, .. } if *other == member));
        let remote_count = self.queue.iter().filter(|waiter| matches!(waiter, Waiter::Remote { .. })).count();
        if remote_count < REMOTE_MAX {
            self.queue.push(Waiter::Remote { member, boot, number });
        }
    }

    /// True if somebody waits for a round or question and none is under way.
    pub(super) fn wants_round(&self) -> bool {
        self.round.is_none() && !self.queue.is_empty()
    }

    fn next_number(&mut self) -> u64 {
        self.counter += 1;
        self.counter
    }

    /// Begins a round with all who wait; its context.
    pub(super) fn begin_round(&mut self, reuse_context: bool) -> Bytes {
        let counter = if reuse_context { 0 } else { self.next_number() };
        let boot = if reuse_context { 0 } else { self.boot };
        let mut context = BytesMut::with_capacity(24);
        // Q1
        context.put_u64_le(if reuse_context { 0 } else { self.member });
        context.put_u64_le(boot);
        context.put_u64_le(counter);
        let context = context.freeze();
        let waiters = std::mem::take(&mut self.queue);
        self.round = Some(Round { context: context.clone(), waiters });
        context
    }

    /// A round has ended with a read index. Returns what to answer to other members.
    pub(super) fn round_done(&mut self, context: &[u8], index: u64) -> Vec<Answer> {
        let Some(round) = self.round.take_if(|round| round.context == context) else { return Vec::new() };
        let mut answers = Vec::new();
        for waiter in round.waiters {
            match waiter {
                Waiter::Local(token) => self.behind.entry(index).or_default().push(token),
                Waiter::Remote { member, boot, number } => answers.push((member, boot, number, index)),
            }
        }
        answers
    }

    /// Follower: the number of a question for all who wait, if one is to be asked now.
    pub(super) fn next_question(&mut self, leader: u64, tick: u64, again_ticks: u64) -> Option<(u64, u64)> {
        let is_late = |question: &Question| {
            question.leader != leader || tick.saturating_sub(question.asked_tick) >= again_ticks
        };
        if let Some(question) = self.question.take_if(|question| is_late(question)) {
            // Abandoned: its waiters join the next one, whose index is taken after they asked all the same.
            self.queue.extend(question.tokens.into_iter().map(Waiter::Local));
        }
        if self.question.is_some() {
            return None;
        }
        let tokens: Vec<u64> = self
            .queue
            .drain(..)
            .filter_map(|waiter| match waiter {
                Waiter::Local(token) => Some(token),
                Waiter::Remote { .. } => None,
            })
            .collect();
        if tokens.is_empty() {
            return None;
        }
        let number = self.next_number();
        self.question = Some(Question { number, leader, tokens, asked_tick: tick });
        Some((self.boot, number))
    }

    /// Follower: the leader answered.
    pub(super) fn answered(&mut self, boot: u64, number: u64, index: u64) {
        if boot != self.boot {
            return;
        }
        if let Some(question) = self.question.take_if(|question| question.number == number) {
            self.behind.entry(index).or_default().extend(question.tokens);
        }
    }

    /// Role, term or leader changed: nothing that is under way counts (Q3), and only this member's own tokens are its business.
    pub(super) fn role_changed(&mut self) {
        let round = self.round.take().map(|round| round.waiters).unwrap_or_default();
        let question = self.question.take().map(|question| question.tokens).unwrap_or_default();
        self.queue.extend(round);
        self.queue.extend(question.into_iter().map(Waiter::Local));
        self.queue.retain(|waiter| matches!(waiter, Waiter::Local(_)));
    }

    /// Tokens whose index is applied, by index.
    pub(super) fn ready(&mut self, applied: u64) -> Vec<(u64, Vec<u64>)> {
        let mut ready = Vec::new();
        while let Some(first) = self.behind.first_entry()
            && *first.key() <= applied
        {
            let (index, mut tokens) = first.remove_entry();
            tokens.retain(|token| self.open.remove(token));
            if !tokens.is_empty() {
                ready.push((index, tokens));
            }
        }
        ready
    }

    /// Tokens whose time is up.
    pub(super) fn expire(&mut self, now_us: u64, has_leader: bool) -> Option<(Vec<u64>, Refusal)> {
        let mut tokens = Vec::new();
        while let Some((_, token)) = self.deadlines.pop_front_if(|(deadline_us, _)| *deadline_us <= now_us) {
            if self.open.remove(&token) {
                tokens.push(token);
            }
        }
        if tokens.is_empty() {
            return None;
        }
        let gone: BTreeSet<u64> = tokens.iter().copied().collect();
        self.queue.retain(|waiter| !matches!(waiter, Waiter::Local(token) if gone.contains(token)));
        Some((tokens, if has_leader { Refusal::Unknown } else { Refusal::NoLeader }))
    }

    /// Everything that waits here, to be refused.
    pub(super) fn take_all(&mut self) -> Vec<u64> {
        self.queue.clear();
        self.round = None;
        self.question = None;
        self.behind.clear();
        std::mem::take(&mut self.open).into_iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_context_is_never_used_twice() {
        let mut seen = BTreeSet::new();
        for boot in 1..4 {
            let mut reads = Reads::new(7, boot);
            for token in 0..100 {
                reads.ask(token, 10);
                assert!(seen.insert(reads.begin_round(false)), "Q1");
                reads.role_changed();
            }
        }
    }

    #[test]
    fn the_next_round_takes_all_who_came_meanwhile_and_an_old_one_answers_nobody() {
        let mut reads = Reads::new(1, 1);
        reads.ask(1, 10);
        let first = reads.begin_round(false);
        reads.ask(2, 10);
        reads.ask_for(9, 5, 77);
        assert!(!reads.wants_round(), "one at a time");
        reads.role_changed();
        assert!(reads.round_done(&first, 3).is_empty(), "Q3");
        assert!(reads.ready(100).is_empty(), "Q3");
        let second = reads.begin_round(false);
        assert!(reads.round_done(&second, 5).is_empty(), "the other member asks its new leader itself");
        assert!(reads.ready(4).is_empty());
        assert_eq!(reads.ready(5), [(5, vec![2, 1])]);
    }

    #[test]
    fn a_late_answer_says_nothing_and_time_runs_out() {
        let mut reads = Reads::new(2, 1);
        reads.ask(1, 10);
        let (boot, old) = reads.next_question(3, 0, 6).unwrap();
        assert_eq!(reads.next_question(3, 5, 6), None, "one at a time");
        reads.ask(2, 20);
        let (_, new) = reads.next_question(3, 6, 6).unwrap();
        reads.answered(boot, old, 4);
        assert!(reads.ready(9).is_empty());
        assert_eq!(reads.expire(10, true), Some((vec![1], Refusal::Unknown)));
        reads.answered(boot, new, 4);
        assert_eq!(reads.ready(4), [(4, vec![2])]);
        assert_eq!(reads.expire(100, false), None);
    }
}
