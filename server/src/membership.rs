//! What this member knows of itself as one of the cluster: whether it learns, and whether it was removed.
//!
//! **Contract.** [`Membership::look`] is called when the member table has changed; who waits on [`Membership::changed`] hears of it. Reading costs an
//! atomic load: every request asks whether this is a learner.
use crate::apply::records;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use sternpost_engine::mvcc::Store;
use tokio::sync::watch;

/// See the module.
pub struct Membership {
    /// 0 until it is known.
    member_id: AtomicU64,
    is_learner: AtomicBool,
    is_removed: AtomicBool,
    /// Another member has said so: it needs this one no more.
    is_told: AtomicBool,
    changes: watch::Sender<u64>,
}

impl Default for Membership {
    fn default() -> Self {
        Self {
            member_id: AtomicU64::new(0),
            is_learner: AtomicBool::new(false),
            is_removed: AtomicBool::new(false),
            is_told: AtomicBool::new(false),
            changes: watch::Sender::new(0),
        }
    }
}

impl Membership {
    /// Who this is; the table in `store` is looked at.
    pub fn set_member(&self, member_id: u64, store: &Store) {
        self.member_id.store(member_id, Ordering::Release);
        self.look(store);
    }

    /// Who this is, 0 before it is known.
    pub fn member_id(&self) -> u64 {
        self.member_id.load(Ordering::Acquire)
    }

    /// The table may have changed.
    pub fn look(&self, store: &Store) {
        let id = self.member_id();
        if id == 0 {
            return;
        }
        let is_learner = records::member(store, id).is_some_and(|member| member.is_learner);
        self.is_learner.store(is_learner, Ordering::Release);
        self.is_removed.fetch_or(records::is_removed(store, id), Ordering::AcqRel);
        self.changes.send_modify(|count| *count += 1);
    }

    /// Another member says that this one was removed: it will not hear it by the log.
    pub fn note_removed(&self) {
        self.is_told.store(true, Ordering::Release);
        self.is_removed.store(true, Ordering::Release);
        self.changes.send_modify(|count| *count += 1);
    }

    /// True if this member has no vote.
    pub fn is_learner(&self) -> bool {
        self.is_learner.load(Ordering::Acquire)
    }

    /// True once this member is none of the cluster any more: for ever.
    pub fn is_removed(&self) -> bool {
        self.is_removed.load(Ordering::Acquire)
    }

    /// Hears of each change; several may come as one.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Returns when this member was removed, and either another one says so or `grace` is over: of two members the other one may need this
    /// one's vote to learn of it.
    pub async fn removed(&self, grace: Duration) {
        let mut changes = self.changes();
        // The sender lives as long as `self`.
        while !self.is_removed() {
            let _ = changes.changed().await;
        }
        let told = async {
            while !self.is_told.load(Ordering::Acquire) {
                let _ = changes.changed().await;
            }
        };
        let _ = tokio::time::timeout(grace, told).await;
    }
}
