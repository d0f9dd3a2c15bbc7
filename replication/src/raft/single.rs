//! A single node that becomes a member of a group when somebody joins it.
//!
//! **Why.** One member alone needs no Raft, and is faster without: one thread appends and applies. Its log is what a one-voter group in term 1 would
//! have written, so it goes on as one (R16) without a restart: at the first change of its members everything that is queued is applied, and log,
//! state machine and checkpoints are handed to [`Raft`] on the same thread. Whoever proposes meanwhile waits for that.
//!
//! **For good**: a directory that a group has written to is a group's, though it may have one member again (see `node::is_of_group`).
use super::node::{GroupOptions, Grown, Raft};
use crate::replicator::{
    Answer, Answerer, Class, MemberChange, PeerStatus, ProposeError, ReadBarrier, Replicator,
    ReplicatorStatus, TransferError,
};
use crate::solo::{Opened, Solo, SoloOptions};
use crate::state_machine::StateMachine;
use std::sync::{Arc, Condvar, Mutex, PoisonError, RwLock, RwLockReadGuard};
use sternpost_engine::{Result, backup};

/// See the module.
pub struct Single {
    solo: Solo,
    /// None once it has grown, or could not.
    grown: Mutex<Option<Grown>>,
    /// What it has grown to. Held while it is called, so that nobody calls what has ended.
    raft: RwLock<Option<Arc<Raft>>>,
    /// Set when it has; order of locks: `raft`, then `grown`, this one alone.
    has_grown: Mutex<bool>,
    grown_now: Condvar,
    /// Until there is somebody to answer.
    answerer: Mutex<Option<Answerer>>,
}

impl Single {
    /// Opens the directory as a single node's; see [`Solo::start`].
    ///
    /// # Errors
    /// Those of opening.
    pub fn start<M: StateMachine>(options: SoloOptions, group: GroupOptions, machine: M) -> Result<Self> {
        // A node that was alone has promised nothing to anybody.
        backup::forget_restored(&options.directory)?;
        let (successor, grown) = Raft::successor(options.directory.clone(), group);
        let solo = Solo::start_with_successor(options, machine, successor)?;
        Ok(Self {
            solo,
            grown: Mutex::new(Some(grown)),
            raft: RwLock::new(None),
            has_grown: Mutex::new(false),
            grown_now: Condvar::new(),
            answerer: Mutex::new(None),
        })
    }

    /// The single node, for what was found at its start and for measuring the device.
    pub fn solo(&self) -> &Solo {
        &self.solo
    }

    /// What was found at the start.
    pub fn opened(&self) -> &Opened {
        self.solo.opened()
    }

    fn raft(&self) -> RwLockReadGuard<'_, Option<Arc<Raft>>> {
        self.raft.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// The member of a group that it has become, if it has.
    pub fn as_raft(&self) -> Option<Arc<Raft>> {
        self.raft().clone()
    }

    /// Waits until it has become one, or `until` says that nobody waits any more; asked about four times a second.
    pub fn wait_grown(&self, until: impl Fn() -> bool) -> Option<Arc<Raft>> {
        let mut has_grown = self.has_grown.lock().unwrap_or_else(PoisonError::into_inner);
        while !*has_grown {
            if until() {
                return None;
            }
            let pause = std::time::Duration::from_millis(250);
            has_grown =
                self.grown_now.wait_timeout(has_grown, pause).unwrap_or_else(PoisonError::into_inner).0;
        }
        drop(has_grown);
        self.as_raft()
    }

    /// Becomes a member of a group, once. Blocks until everything that is queued is applied.
    fn grow(&self) -> std::result::Result<(), ProposeError> {
        let mut raft = self.raft.write().unwrap_or_else(PoisonError::into_inner);
        if raft.is_some() {
            return Ok(());
        }
        let stopped = |what: String| ProposeError::Stopped(what);
        let grown = self.grown.lock().unwrap_or_else(PoisonError::into_inner).take();
        let stopping = || stopped("the server is stopping".into());
        let grown = grown.ok_or_else(stopping)?;
        let thread = self.solo.hand_over().ok_or_else(stopping)?;
        let member = Arc::new(grown.wait(thread).map_err(|error| stopped(error.to_string()))?);
        if let Some(answerer) = self.answerer.lock().unwrap_or_else(PoisonError::into_inner).take() {
            member.answer_with(answerer);
        }
        *raft = Some(member);
        drop(raft);
        *self.has_grown.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.grown_now.notify_all();
        Ok(())
    }
}

/// Calls whichever it is.
macro_rules! either {
    ($self:ident, $node:ident => $call:expr) => {
        match &*$self.raft() {
            Some(raft) => {
                let $node = &**raft;
                $call
            }
            None => {
                let $node = &$self.solo;
                $call
            }
        }
    };
}

impl Replicator for Single {
    fn propose(&self, command: Vec<u8>, class: Class) -> std::result::Result<(), ProposeError> {
        either!(self, node => node.propose(command, class))
    }

    fn propose_in_term(
        &self,
        command: Vec<u8>,
        class: Class,
        term: u64,
    ) -> std::result::Result<(), ProposeError> {
        either!(self, node => node.propose_in_term(command, class, term))
    }

    fn propose_change(
        &self,
        change: MemberChange,
        command: Vec<u8>,
    ) -> std::result::Result<(), ProposeError> {
        self.grow()?;
        either!(self, node => node.propose_change(change, command))
    }

    fn read_barrier(&self) -> ReadBarrier {
        either!(self, node => node.read_barrier())
    }

    fn status(&self) -> ReplicatorStatus {
        either!(self, node => node.status())
    }

    fn transfer_leader(&self, to: u64) -> std::result::Result<(), TransferError> {
        either!(self, node => node.transfer_leader(to))
    }

    fn ask_leader(&self, question: Vec<u8>) -> Answer {
        either!(self, node => node.ask_leader(question))
    }

    fn ask_member(&self, member: u64, question: Vec<u8>) -> Answer {
        either!(self, node => node.ask_member(member, question))
    }

    fn answer_with(&self, answerer: Answerer) {
        match &*self.raft() {
            Some(raft) => raft.answer_with(answerer),
            None => *self.answerer.lock().unwrap_or_else(PoisonError::into_inner) = Some(answerer),
        }
    }

    fn peers(&self) -> Vec<PeerStatus> {
        either!(self, node => node.peers())
    }

    fn oldest_write_age_us(&self) -> u64 {
        either!(self, node => node.oldest_write_age_us())
    }

    fn shutdown(&self) -> std::result::Result<(), String> {
        // Nobody grows any more.
        drop(self.grown.lock().unwrap_or_else(PoisonError::into_inner).take());
        let raft = self.as_raft();
        let solo_stopped = self.solo.shutdown();
        raft.map_or(solo_stopped, |raft| raft.shutdown())
    }
}
